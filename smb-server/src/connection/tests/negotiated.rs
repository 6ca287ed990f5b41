//! What a server agrees on (MS-SMB2 3.3.5.4).

use smb_protocol::{
    Command, Dialect, FileId, Header, NtStatus,
    compression::CompressionAlgorithm,
    fscc::{
        FsctlCode,
        fsctl::{ValidateNegotiate, ValidateNegotiateResponse},
    },
    header::HEADER_LEN,
    msg::{
        ioctl,
        negotiate::{self, Capabilities, Context},
    },
};

use super::peer::{Guard, House, KINDS, Peer};

/// Negotiates with these; the status and the answer.
fn answer(house: &House, request: &negotiate::Request) -> (NtStatus, negotiate::Response) {
    let mut peer = Peer::strange(house, KINDS[0]);
    let (header, body) = peer.ask(Command::NEGOTIATE, |out| request.encode(out));
    let response = match header.status {
        NtStatus::SUCCESS => negotiate::Response::parse(&body).unwrap(),
        _ => negotiate::Response::default(),
    };
    (header.status, response)
}

fn offer(house: &House, dialect: Dialect) -> negotiate::Request {
    let kind = (KINDS[0].0, dialect, KINDS[1].2);
    Peer::strange(house, kind).offer()
}

#[test]
fn capabilities_are_those_that_were_asked_for() {
    let house = House::new("encryption='offered'");
    // Those that a client has not asked for it may not know.
    let optional = Capabilities::DIRECTORY_LEASING
        | Capabilities::MULTI_CHANNEL
        | Capabilities::PERSISTENT_HANDLES
        | Capabilities::ENCRYPTION;
    for dialect in [
        Dialect::SMB_2_0_2,
        Dialect::SMB_2_1,
        Dialect::SMB_3_0,
        Dialect::SMB_3_0_2,
        Dialect::SMB_3_1_1,
    ] {
        for asked in 0..=0x7f {
            let mut request = offer(&house, dialect);
            request.capabilities = Capabilities(asked);
            // Not the signature that excludes channels.
            request.contexts.retain(|context| !matches!(context, Context::Signing(_)));
            let (status, response) = answer(&house, &request);
            assert_eq!(status, NtStatus::SUCCESS);
            let extra = response.capabilities.0 & optional.0 & !asked;
            assert_eq!(extra, 0, "{dialect:?} asked for {asked:#x}");
            let wants = |bit: Capabilities| request.capabilities.has(bit) && dialect.is_smb3();
            for bit in [Capabilities::DIRECTORY_LEASING, Capabilities::MULTI_CHANNEL] {
                assert_eq!(response.capabilities.has(bit), wants(bit), "{dialect:?} {asked:#x}");
            }
        }
    }
}

/// MS-SMB2 3.3.5.15.12: what a client is told again is what it was told, whatever it had asked for.
#[test]
fn a_validated_negotiation_is_the_one_that_was_given() {
    let house = House::new("signing='enabled'\nencryption='offered'");
    for dialect in [Dialect::SMB_2_1, Dialect::SMB_3_0, Dialect::SMB_3_0_2] {
        for asked in [0, 0x20, 0x47, 0x67, 0x7f] {
            let algorithm = if dialect.is_smb3() { KINDS[3].2 } else { KINDS[0].2 };
            let kind = (Guard::Plain, dialect, algorithm);
            let mut peer = Peer::strange(&house, kind);
            peer.capabilities = Capabilities(asked);
            peer.enter();
            let given = peer.given.clone().unwrap();
            let message = peer.tree_connect();
            peer.send(&message);
            let answer = peer.receive().pop().unwrap();
            peer.tree = Header::parse(&answer).unwrap().tree_id();
            let mut input = Vec::new();
            ValidateNegotiate {
                capabilities: asked,
                guid: peer.offer().client_guid,
                security_mode: peer.offer().security_mode.0,
                dialects: vec![dialect.0],
            }
            .encode(&mut input);
            let request = ioctl::Request {
                code: FsctlCode::VALIDATE_NEGOTIATE_INFO,
                file_id: FileId::RELATED,
                input: &input,
                max_output: 24,
                flags: 1,
                ..Default::default()
            };
            let (header, body) = peer.ask(Command::IOCTL, |out| request.encode(out));
            assert_eq!(header.status, NtStatus::SUCCESS);
            let output = ioctl::Response::parse(&body).unwrap().output;
            let again = ValidateNegotiateResponse::parse(output).unwrap();
            let wanted = ValidateNegotiateResponse {
                capabilities: given.capabilities.0,
                guid: given.server_guid,
                security_mode: given.security_mode.0,
                dialect: given.dialect.0,
            };
            assert_eq!(again, wanted, "{dialect:?} asked for {asked:#x}");
        }
    }
}

#[test]
fn lists_of_nothing_and_contexts_twice_are_refused() {
    let house = House::new("encryption='offered'");
    let good = offer(&house, Dialect::SMB_3_1_1);
    assert_eq!(answer(&house, &good).0, NtStatus::SUCCESS);
    let hashes = vec![negotiate::HashAlgorithm::SHA_512];
    let lists = [
        Context::Preauth { hashes, salt: vec![2; 32] },
        Context::Encryption(vec![negotiate::Cipher(2)]),
        Context::Signing(vec![negotiate::SigningAlgorithm(1)]),
        Context::Compression { flags: 0, algorithms: vec![CompressionAlgorithm::LZNT1] },
        Context::Other { kind: 7, data: vec![1, 0, 0, 0, 0, 0, 0, 0, 1, 0] },
    ];
    let empty = [
        Context::Preauth { hashes: Vec::new(), salt: vec![2; 32] },
        Context::Encryption(Vec::new()),
        Context::Signing(Vec::new()),
        Context::Compression { flags: 0, algorithms: Vec::new() },
        Context::Other { kind: 7, data: vec![0; 8] },
        Context::Other { kind: 7, data: Vec::new() },
    ];
    let without = |kind: u16| {
        let mut request = good.clone();
        request.contexts.retain(|context| context.kind() != kind);
        request
    };
    for list in lists {
        let mut once = without(list.kind());
        once.contexts.push(list.clone());
        assert_eq!(answer(&house, &once).0, NtStatus::SUCCESS, "{list:?}");
        once.contexts.push(list.clone());
        assert_eq!(answer(&house, &once).0, NtStatus::INVALID_PARAMETER, "twice {list:?}");
    }
    for list in empty {
        let mut request = without(list.kind());
        request.contexts.push(list.clone());
        assert_eq!(answer(&house, &request).0, NtStatus::INVALID_PARAMETER, "{list:?}");
    }
    // What is not known may come as often as it likes, and so may names, whatever is in them.
    let mut request = good.clone();
    for kind in [5, 5, 0x77, 0x77] {
        request.contexts.push(Context::Other { kind, data: vec![0xd8, 0xd8, 1] });
    }
    assert_eq!(answer(&house, &request).0, NtStatus::SUCCESS);
    assert_eq!(answer(&house, &without(1)).0, NtStatus::INVALID_PARAMETER);
}

#[test]
fn a_server_that_does_not_encrypt_knows_no_such_context() {
    for (setting, ciphers, wanted) in [
        ("off", vec![2], None),
        ("offered", vec![2], Some(2)),
        // None in common is told with a 0.
        ("offered", vec![0x77], Some(0)),
    ] {
        let house = House::new(&format!("encryption='{setting}'"));
        let mut request = offer(&house, Dialect::SMB_3_1_1);
        request.contexts.retain(|context| context.kind() != 2);
        let ciphers = ciphers.into_iter().map(negotiate::Cipher).collect();
        request.contexts.push(Context::Encryption(ciphers));
        let (status, response) = answer(&house, &request);
        assert_eq!(status, NtStatus::SUCCESS);
        let found = response.contexts.iter().find_map(|context| match context {
            Context::Encryption(list) => Some(list[0].0),
            _ => None,
        });
        assert_eq!(found, wanted, "{setting}");
    }
}

#[test]
fn answers_are_well_formed() {
    let house = House::new("encryption='off'");
    let mut peer = Peer::strange(&house, KINDS[1]);
    let offer = peer.offer();
    let message = peer.message(Command::NEGOTIATE, |out| offer.encode(out));
    peer.send(&message);
    let answer = peer.receive().pop().unwrap();
    assert_eq!(Header::parse(&answer).unwrap().credits, 32);
    assert!(negotiate::Response::parse(&answer[HEADER_LEN..]).is_ok());
}

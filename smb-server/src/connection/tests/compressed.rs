//! Compressed messages: what is agreed on, what comes of it, and what ends a connection
//! (MS-SMB2 3.3.5.2.1.2, 3.3.5.4, 3.3.4.1.5).

use smb_protocol::{
    Command, Dialect, FileId, Header, NtStatus,
    compression::{Compression, CompressionAlgorithm},
    crypto::SigningAlgorithm,
    header::{HEADER_LEN, PROTOCOL_COMPRESSED},
    msg::{
        negotiate::Context,
        read::{self, REQUEST_COMPRESSED},
        tree_connect::{self, ShareFlags},
        write,
    },
};

use super::peer::{Guard, House, Peer};

const KINDS: [(Guard, Dialect, SigningAlgorithm); 3] = [
    (Guard::Plain, Dialect::SMB_3_1_1, SigningAlgorithm::AesGmac),
    (Guard::Signed, Dialect::SMB_3_1_1, SigningAlgorithm::AesCmac),
    (Guard::Sealed, Dialect::SMB_3_1_1, SigningAlgorithm::AesGmac),
];
const OPEN: &str = "signing='enabled'\nencryption='offered'";
const PATTERN: CompressionAlgorithm = CompressionAlgorithm::PATTERN_V1;

/// A client that offers these.
fn offering(
    house: &House,
    kind: (Guard, Dialect, SigningAlgorithm),
    algorithms: &[CompressionAlgorithm],
    chained: bool,
) -> Peer {
    let mut peer = Peer::strange(house, kind);
    peer.offered = Some((algorithms.to_vec(), chained));
    peer.connected()
}

fn text(len: usize) -> Vec<u8> {
    let line = |n: usize| format!("line {n}, whose square is {}\n", n * n).into_bytes();
    (0..).flat_map(line).take(len).collect()
}

fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..len).map(|_| next()).collect()
}

/// A request that moves `len` bytes.
fn request(
    peer: &mut Peer,
    command: Command,
    len: usize,
    body: impl FnOnce(&mut Vec<u8>),
) -> Vec<u8> {
    let mut message = peer.message(command, body);
    let charge = len.div_ceil(1 << 16).max(1) as u16;
    message[6..8].copy_from_slice(&charge.to_le_bytes());
    peer.next_id += u64::from(charge) - 1;
    message
}

fn answer(peer: &mut Peer) -> (NtStatus, Vec<u8>) {
    loop {
        let answer = peer.receive().pop().expect("the connection stays");
        let status = Header::parse(&answer).unwrap().status;
        if status != NtStatus::PENDING {
            return (status, answer[HEADER_LEN..].to_vec());
        }
    }
}

fn write(peer: &mut Peer, file_id: FileId, data: &[u8]) {
    let write = write::Request { file_id, data, ..Default::default() };
    let message = request(peer, Command::WRITE, data.len(), |out| write.encode(out));
    peer.send(&message);
    assert_eq!(answer(peer).0, NtStatus::SUCCESS);
}

fn read(peer: &mut Peer, file_id: FileId, len: usize, flags: u8) -> Vec<u8> {
    let read = read::Request { flags, length: len as u32, file_id, ..Default::default() };
    let message = request(peer, Command::READ, len, |out| read.encode(out));
    peer.send(&message);
    let (status, body) = answer(peer);
    assert_eq!(status, NtStatus::SUCCESS);
    read::Response::parse(&body).unwrap().data.to_vec()
}

#[test]
fn each_algorithm_reads_and_writes_in_both_forms_plain_signed_and_sealed() {
    let house = House::new(OPEN);
    let small = text(9000);
    let large = [vec![0; 70_000], text(900_000), vec![7; 78_576]].concat();
    for kind in KINDS {
        for by in CompressionAlgorithm::ALL.into_iter().filter(|by| by.is_general()) {
            for chained in [false, true] {
                let what = format!("{kind:?} {by:?} {chained}");
                let mut peer = offering(&house, kind, &[by, PATTERN], chained);
                let agreed = peer.agreed.unwrap();
                assert_eq!((agreed.algorithm(), agreed.is_chained()), (by, chained), "{what}");
                let file = peer.create("f");
                for data in [&small, &large] {
                    peer.packs = true;
                    write(&mut peer, file, data);
                    peer.packs = false;
                    assert!(read(&mut peer, file, data.len(), 0) == **data, "{what}");
                    assert!(!peer.came_packed, "nobody asked for it: {what}");
                    assert!(
                        read(&mut peer, file, data.len(), REQUEST_COMPRESSED) == **data,
                        "{what}"
                    );
                    assert!(peer.came_packed, "{what}");
                }
            }
        }
    }
}

#[test]
fn an_answer_that_would_not_be_smaller_is_not_compressed() {
    let house = House::new(OPEN);
    let mut peer = offering(&house, KINDS[2], &CompressionAlgorithm::ALL, true);
    let file = peer.create("f");
    for (data, packed) in [
        (noise(300_000), false),
        (text(40), false),
        (vec![0xe0], false),
        (vec![0xe0; 1024], true),
        (text(8000), true),
    ] {
        write(&mut peer, file, &data);
        assert!(read(&mut peer, file, data.len(), REQUEST_COMPRESSED) == data);
        assert_eq!(peer.came_packed, packed, "{} bytes", data.len());
    }
}

/// MS-SMB2 3.3.5.2 <256>: who compresses a request wants a compressed answer.
#[test]
fn a_compressed_compound_is_answered_with_a_compressed_one() {
    let house = House::new(OPEN);
    for kind in KINDS {
        let mut peer = offering(&house, kind, &CompressionAlgorithm::ALL, true);
        let file = peer.create("f");
        let data = text(30_000);
        let write = write::Request { file_id: file, data: &data, ..Default::default() };
        let read = read::Request { length: 30_000, file_id: file, ..Default::default() };
        let write = request(&mut peer, Command::WRITE, 1, |out| write.encode(out));
        let read = request(&mut peer, Command::READ, 1, |out| read.encode(out));
        peer.packs = true;
        let frame = peer.frame(&[write, read]);
        peer.packs = false;
        peer.send_frame(&frame);
        let answers = peer.receive();
        assert!(peer.came_packed, "{kind:?}");
        assert_eq!(answers.len(), 2);
        let body = &answers[1][HEADER_LEN..];
        assert!(read::Response::parse(body).unwrap().data == data);
    }
}

/// The context of the answer: flags and algorithms.
fn context(peer: &Peer) -> Option<(u32, Vec<CompressionAlgorithm>)> {
    let contexts = &peer.given.as_ref().unwrap().contexts;
    contexts.iter().find_map(|context| match context {
        Context::Compression { flags, algorithms } => Some((*flags, algorithms.clone())),
        _ => None,
    })
}

/// MS-SMB2 3.3.5.4.
#[test]
fn what_is_in_common_is_answered_in_the_clients_order() {
    use CompressionAlgorithm as A;
    let negotiated = |house: &House, dialect, list: &[A], chained| {
        let mut peer = Peer::strange(house, (Guard::Plain, dialect, SigningAlgorithm::AesCmac));
        peer.offered = Some((list.to_vec(), chained));
        peer.negotiate();
        context(&peer)
    };
    let newest = Dialect::SMB_3_1_1;
    let house = House::new("compression_algorithms=['lz4', 'lznt1', 'pattern']");
    let all = [A::LZNT1, A::LZ77, A::LZNT1, A(31), A::PATTERN_V1, A::LZ77_HUFFMAN, A::LZ4];
    let common = vec![A::LZNT1, A::PATTERN_V1, A::LZ4];
    assert_eq!(negotiated(&house, newest, &all, false), Some((0, common.clone())));
    assert_eq!(negotiated(&house, newest, &all, true), Some((1, common)));
    let none = Some((1, vec![A::NONE]));
    assert_eq!(negotiated(&house, newest, &[A::LZ77, A(6)], true), none);
    assert_eq!(negotiated(&house, newest, &[A::NONE], true), none);
    assert_eq!(negotiated(&house, Dialect::SMB_3_0_2, &all, true), None);
    let off = House::new("compression='off'");
    assert_eq!(negotiated(&off, newest, &all, true), None);
}

#[test]
fn a_share_says_whether_its_data_are_compressed() {
    let offered = &CompressionAlgorithm::ALL;
    for (setting, told, packed) in
        [("off", false, false), ("on", false, true), ("force", true, true)]
    {
        let house = House::sharing(OPEN, &format!("compression='{setting}'"));
        let mut peer = offering(&house, KINDS[1], offered, true);
        let file = peer.create("f");
        let data = text(50_000);
        write(&mut peer, file, &data);
        assert!(read(&mut peer, file, data.len(), REQUEST_COMPRESSED) == data);
        assert_eq!(peer.came_packed, packed, "{setting}");
        // What a client compresses is read in any case.
        peer.packs = true;
        write(&mut peer, file, &data);
        peer.packs = false;
        let flags = |peer: &mut Peer| {
            let message = peer.tree_connect();
            peer.send(&message);
            tree_connect::Response::parse(&answer(peer).1).unwrap().flags
        };
        assert_eq!(flags(&mut peer).has(ShareFlags::COMPRESS_DATA), told, "{setting}");
        // Who cannot is not told to.
        let mut other = Peer::new(&house, KINDS[1]);
        assert!(!flags(&mut other).has(ShareFlags::COMPRESS_DATA), "{setting}");
    }
}

fn alone(size: u32, by: u16, flags: u16, offset: u32, rest: &[u8]) -> Vec<u8> {
    let header = [&PROTOCOL_COMPRESSED[..], &size.to_le_bytes(), &by.to_le_bytes()].concat();
    [&header[..], &flags.to_le_bytes(), &offset.to_le_bytes(), rest].concat()
}

/// Messages that end a connection on which LZ77 and patterns were agreed on, with chains.
fn hostile(agreed: &Compression, good: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let mut packed = Vec::new();
    assert!(agreed.compress(good, HEADER_LEN + 48, &mut packed));
    let with = |at: usize, bytes: &[u8]| {
        let mut packed = packed.clone();
        packed[at..at + bytes.len()].copy_from_slice(bytes);
        packed
    };
    let lead = 8 + 8 + HEADER_LEN + 48;
    let mut nested = packed.clone();
    nested[16..20].copy_from_slice(&PROTOCOL_COMPRESSED);
    let most = (8u32 << 20) + 256 + 16;
    vec![
        ("shorter than its header", PROTOCOL_COMPRESSED.to_vec()),
        ("cut within a payload", packed[..packed.len() - 1].to_vec()),
        ("flags that there are not", with(10, &[2])),
        ("an algorithm that was not agreed on", with(lead, &[1])),
        ("an algorithm that there is not", with(lead, &[9])),
        ("compressed within", nested),
        ("longer than announced", with(4, &[1, 0])),
        ("shorter than announced", with(4, &most.to_le_bytes())),
        ("more than any message", with(4, &(most + 1).to_le_bytes())),
        ("much more than any message", with(4, &u32::MAX.to_le_bytes())),
        ("a payload that is longer than all", with(lead + 4, &u32::MAX.to_le_bytes())),
        ("a payload without its length", with(lead + 4, &[3, 0, 0, 0])),
        ("an original length that lies", with(lead + 8, &u32::MAX.to_le_bytes())),
        ("unchained, not agreed on", alone(200, 1, 0, 0, &[0; 40])),
        ("unchained, none", alone(200, 0, 0, 0, &[0; 40])),
        ("unchained, with a pattern", alone(200, 4, 0, 0, &[0; 40])),
        ("unchained, an offset behind the end", alone(200, 2, 0, 41, &[0; 40])),
        ("unchained, malformed", alone(200, 2, 0, 0, &[0xff; 40])),
        ("unchained, more than any message", alone(most, 2, 0, 1, &[0; 40])),
    ]
}

#[test]
fn compressed_messages_that_lie_end_the_connection() {
    let house = House::new(OPEN);
    for kind in KINDS {
        let mut at = 0;
        loop {
            let algorithms = [CompressionAlgorithm::LZ77, PATTERN];
            let mut peer = offering(&house, kind, &algorithms, true);
            let file = peer.create("f");
            let data = text(20_000);
            let write = write::Request { file_id: file, data: &data, ..Default::default() };
            let message = request(&mut peer, Command::WRITE, 1, |out| write.encode(out));
            let agreed = peer.agreed.unwrap();
            let Some((what, bytes)) = hostile(&agreed, &message).into_iter().nth(at) else { break };
            let frame = peer.wrap(bytes);
            peer.send_frame(&frame);
            assert_eq!(peer.rest(), [0u8; 0], "{kind:?}: {what}");
            at += 1;
        }
    }
}

#[test]
fn a_compressed_message_where_nothing_was_agreed_on_ends_the_connection() {
    for (house, offers) in
        [(House::new(OPEN), false), (House::new(&format!("{OPEN}\ncompression='off'")), true)]
    {
        for kind in [KINDS[1], KINDS[2]] {
            let mut peer = Peer::strange(&house, kind);
            peer.offered = offers.then(|| (CompressionAlgorithm::ALL.to_vec(), true));
            let mut peer = peer.connected();
            peer.create("f");
            let frame = peer.wrap(alone(200, 2, 0, 0, &[0; 40]));
            peer.send_frame(&frame);
            assert_eq!(peer.rest(), [0u8; 0]);
        }
    }
    // Nor before there was a negotiation at all.
    let house = House::new(OPEN);
    let mut peer = Peer::strange(&house, KINDS[1]);
    let frame = peer.wrap(alone(200, 2, 0, 0, &[0; 40]));
    peer.send_frame(&frame);
    assert_eq!(peer.rest(), [0u8; 0]);
}

/// What waits on a connection, and what its user has held, leave no more room than that.
#[test]
fn a_compressed_message_is_counted_before_it_takes_memory() {
    let pending = "signing='enabled'\nencryption='offered'\n[limits]\npending_bytes='200KiB'";
    let user = "signing='enabled'\nencryption='offered'\n[limits]\nuser_bytes='200KiB'";
    for limits in [pending, user] {
        let house = House::new(limits);
        let mut peer = offering(&house, KINDS[1], &CompressionAlgorithm::ALL, true);
        let file = peer.create("f");
        peer.packs = true;
        write(&mut peer, file, &text(60_000));
        let data = text(250_000);
        let request = write::Request { file_id: file, data: &data, ..Default::default() };
        let message =
            self::request(&mut peer, Command::WRITE, data.len(), |out| request.encode(out));
        peer.send(&message);
        assert_eq!(peer.rest(), [0u8; 0], "{limits}");
    }
}

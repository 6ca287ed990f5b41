//! DCE/RPC: what is written to a pipe, and parameters in NDR.

use dce_rpc::{
    FaultStatus, PipeEnd, SyntaxId, Transfer,
    ndr::{Reader, Writer},
    pdu::{Bind, Context, Flags, Kind, Pdu, Request},
};
use smb_protocol::security::Sid;

/// The interface that is served: that of `srvsvc`.
const INTERFACES: &[SyntaxId] = &[SyntaxId::new(
    0x4b32_4fc8,
    0x1670,
    0x01d3,
    [0x12, 0x78, 0x5a, 0x47, 0xbf, 0x6e, 0xe1, 0x88],
    3,
    0,
)];

/// Most that an association holds: a call of 1 MiB, and answers of 256 KiB with one more.
const HELD: usize = 2 << 20;

/// A pipe: the first byte says in pieces of how many bytes the rest is written. Answers are whole
/// fragments, and what is held has a bound. A message that is read is written and read as the same.
pub fn run(bytes: &[u8]) {
    let Some((piece, bytes)) = bytes.split_first() else { return };
    let mut pipe = PipeEnd::new(INTERFACES, "\\PIPE\\srvsvc".into());
    for part in bytes.chunks((usize::from(*piece) * 8).max(1)) {
        let written = pipe.write(part, |call| match call.opnum {
            0 => Err(FaultStatus::OP_RANGE),
            more => Ok(vec![7; usize::from(more)]),
        });
        assert!(pipe.held() <= HELD, "{} bytes held", pipe.held());
        if written.is_err() {
            break;
        }
        if *piece & 1 == 0 {
            drain(&mut pipe, (usize::from(*piece) + 1) * 16);
        }
    }
    drain(&mut pipe, 100_000);
    if let Ok(Some((pdu, len))) = Pdu::split(bytes, 5840) {
        assert!(len <= bytes.len() && pdu.body.len() <= len);
        if let Ok(bind) = Bind::parse(pdu.body) {
            let mut out = Vec::new();
            bind.encode(&mut out);
            assert_eq!(Bind::parse(&out).as_ref(), Ok(&bind));
        }
        if let Ok(request) = Request::parse(Flags(0), pdu.body) {
            let mut out = Vec::new();
            request.encode(&mut out);
            assert_eq!(Request::parse(Flags(0), &out).as_ref(), Ok(&request));
        }
    }
}

/// Reads all answers: each must be one whole message.
fn drain(pipe: &mut PipeEnd, most: usize) {
    let mut fragment = Vec::new();
    while let Some((part, left)) = pipe.read(most) {
        fragment.extend(part);
        if left == 0 {
            let split = Pdu::split(&fragment, usize::MAX);
            assert!(matches!(split, Ok(Some((_, len))) if len == fragment.len()), "{split:?}");
            fragment.clear();
        }
    }
}

/// A bind, a call and a call in two fragments.
pub fn seeds() -> Vec<(String, Vec<u8>)> {
    let bind = Bind {
        max_transmit: 4280,
        max_receive: 4280,
        group: 0,
        contexts: vec![Context { id: 0, interface: INTERFACES[0], transfers: vec![SyntaxId::NDR] }],
    };
    let first = Flags(1);
    let last = Flags(2);
    let both = Flags(3);
    let bind = Pdu::encode(Kind::BIND, both, 1, |out| bind.encode(out));
    let request = |flags, opnum, stub: &[u8]| {
        Pdu::encode(Kind::REQUEST, flags, 2, |out| {
            Request { context: 0, opnum, stub }.encode(out);
        })
    };
    let whole = request(both, 15, &[1; 40]);
    let halves = [request(first, 9000, &[1; 16]), request(last, 9000, &[2; 16])].concat();
    vec![
        ("bind".into(), [&[255], &*bind].concat()),
        ("call".into(), [&[4], &*bind, &*whole].concat()),
        ("fragments".into(), [&[1], &*bind, &*halves].concat()),
    ]
}

/// NDR: pairs of an operation and what is read by it. Text and SIDs that are read are written and
/// read as the same.
pub fn ndr(bytes: &[u8]) {
    read_as(bytes, Transfer::Ndr);
}

/// The same in NDR64.
pub fn ndr64(bytes: &[u8]) {
    read_as(bytes, Transfer::Ndr64);
}

fn read_as(bytes: &[u8], transfer: Transfer) {
    let Some((steps, stub)) = bytes.split_at_checked(8) else { return };
    let mut reader = Reader::of(stub, transfer);
    for step in steps {
        let went = match step % 11 {
            0 => reader.u8("u8").map(drop),
            1 => reader.u16("u16").map(drop),
            2 => reader.u32("u32").map(drop),
            3 => reader.u64("u64").map(drop),
            4 => reader.bytes(usize::from(*step), "bytes").map(drop),
            5 => reader.pointer("pointer").map(drop),
            6 => reader.count(usize::from(step / 11), "count").map(|count| {
                assert!(count * usize::from(step / 11) <= stub.len(), "{count} of them");
            }),
            7 => reader.string("string").map(|text| same_text(&text, transfer)),
            8 => {
                let text = reader.optional_string("string");
                text.map(|text| same_text(&text.unwrap_or_default(), transfer))
            }
            9 => reader.sid("sid").map(|sid| same_sid(&sid, transfer)),
            _ => reader.handle().map(drop),
        };
        if went.is_err() {
            return;
        }
    }
}

fn same_text(text: &str, transfer: Transfer) {
    let mut writer = Writer::of(transfer);
    writer.string(text);
    let written = writer.finish();
    assert_eq!(Reader::of(&written, transfer).string("string").as_deref(), Ok(text));
}

fn same_sid(sid: &Sid, transfer: Transfer) {
    let mut writer = Writer::of(transfer);
    writer.sid(sid);
    let written = writer.finish();
    assert_eq!(Reader::of(&written, transfer).sid("sid").as_ref(), Ok(sid));
}

/// Text, a SID and numbers.
pub fn seeds_ndr() -> Vec<(String, Vec<u8>)> {
    seeds_of(Transfer::Ndr)
}

/// The same in NDR64.
pub fn seeds_ndr64() -> Vec<(String, Vec<u8>)> {
    seeds_of(Transfer::Ndr64)
}

fn seeds_of(transfer: Transfer) -> Vec<(String, Vec<u8>)> {
    let written = |steps: [u8; 8], put: &dyn Fn(&mut Writer)| {
        let mut writer = Writer::of(transfer);
        put(&mut writer);
        [&steps[..], &writer.finish()].concat()
    };
    let text = written([7, 2, 0, 1, 2, 3, 0, 0], &|writer| {
        writer.string("\\\\server").u32(5).u8(1).u16(2).u32(3).bytes(&[0; 12]);
    });
    let sid = written([5, 9, 10, 0, 0, 0, 0, 0], &|writer| {
        writer.pointer(true).sid(&Sid::administrators()).bytes(&[1; 40]);
    });
    vec![("text".into(), text), ("sid".into(), sid)]
}

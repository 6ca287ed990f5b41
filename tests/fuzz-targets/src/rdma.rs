//! SMB Direct: the frames that begin an iWARP connection, its stream, and MS-SMBD's messages.

use std::{
    io::IoSlice,
    time::{Duration, Instant},
};

use ::rdma::{
    Memory, Parameters, Part,
    iwarp::{Agreement, Frame, Framing, Kind, Opcode, Protocol, Segment, StartupFrame},
    provider::{Completion, Message},
    smbd::{Data, Effect, Engine, NegotiateRequest, NegotiateResponse, VERSION},
};
use bytes::Bytes;

/// A frame that begins a connection, as a request and as a reply. What is read is written and read as
/// the same; its length is known before it is there whole.
pub fn mpa(bytes: &[u8]) {
    for kind in [Kind::Request, Kind::Reply] {
        let Ok(Some(len)) = StartupFrame::length(bytes, kind) else { continue };
        let Some(whole) = bytes.get(..len) else { continue };
        if let Ok(frame) = StartupFrame::parse(whole, kind) {
            let again = frame.encode();
            assert_eq!(StartupFrame::length(&again, kind), Ok(Some(again.len())));
            assert_eq!(StartupFrame::parse(&again, kind), Ok(frame));
        }
    }
}

/// Frames of siw, of a client without enhancements, and a reply.
pub fn seeds_mpa() -> Vec<(String, Vec<u8>)> {
    let frame = |key: &[u8; 16], flags: u8, revision: u8, private: &[u8]| {
        let length = u16::try_from(private.len()).unwrap_or(0).to_be_bytes();
        [&key[..], &[flags, revision], &length, private].concat()
    };
    let (request, reply) = (::rdma::iwarp::KEY_REQUEST, ::rdma::iwarp::KEY_REPLY);
    vec![
        ("siw".into(), frame(request, 0x10, 2, &[0, 32, 0, 32, 0, 0, 0, 32, 0, 0, 0, 1])),
        ("first-revision".into(), frame(request, 0x40, 1, &[0, 0, 0, 8, 0, 0, 0, 8])),
        ("two-peers".into(), frame(reply, 0x10, 2, &[0x80, 16, 0x40, 16])),
        ("refused".into(), frame(reply, 0x20, 2, &[])),
    ]
}

const POISON: u8 = 0xa5;

/// A stream of FPDUs, with CRCs by the first byte, to an end that has granted some memory and waits
/// for some messages. Memory outside of what was granted stays as it was, no message is longer than
/// its receive, there are no more than were posted, and nothing comes after the end.
pub fn rdmap(bytes: &[u8]) {
    let Some((first, stream)) = bytes.split_first() else { return };
    let crc = first & 1 != 0;
    let (incoming_reads, outgoing_reads) = (4, 4);
    let active = first & 2 != 0;
    let agreed =
        Agreement { crc, frame: 1448, incoming_reads, outgoing_reads, active, ready: None };
    let mut end = Protocol::new(agreed);
    let grant = Memory::Writable(vec![POISON; 192], 64..128);
    let Ok(part) = end.register(grant) else { return };
    let readable = end.register(Memory::Readable(Bytes::from_static(&[3; 64])));
    let known = |it: Result<Part, Memory>| it.map(|part| part.token).unwrap_or_default();
    let tokens = [part.token, known(readable)];
    for _ in 0..3 {
        assert!(end.post_receive(100).is_ok());
    }
    let (mut received, poisoned) = (0, stream.contains(&POISON));
    for chunk in chunks(stream, first >> 2) {
        end.feed(&named(chunk, tokens, crc));
        let _ = drained(&mut end);
        while let Some(done) = end.completion() {
            if let Completion::Received { bytes, .. } = done {
                assert!(bytes.len() <= 100 && (poisoned || !bytes.contains(&POISON)));
                received += 1;
            }
        }
        if end.lost().is_some() {
            assert!(end.post_receive(1).is_err());
        }
    }
    assert!(received <= 3);
    let buffer = end.deregister(part.token).map(Memory::into_vec).unwrap_or_default();
    assert!(buffer[..64].iter().chain(&buffer[128..]).all(|byte| *byte == POISON));
}

/// The stream in pieces, whose length a few bits choose.
fn chunks(stream: &[u8], bits: u8) -> impl Iterator<Item = &[u8]> {
    stream.chunks(1 << (3 + usize::from(bits & 7)))
}

/// The piece with the token that it means, if it is a whole tagged frame that names one of the first
/// two: a fuzzer cannot guess the real ones.
fn named(chunk: &[u8], tokens: [u32; 2], crc: bool) -> Vec<u8> {
    let mut chunk = chunk.to_vec();
    let framing = Framing { crc: false };
    let Frame::Whole { ulpdu, frame } = framing.first(&chunk) else { return chunk };
    let tagged = Segment::parse(&chunk[2..2 + ulpdu])
        .is_ok_and(|segment| matches!(segment.opcode, Opcode::Write | Opcode::ReadResponse));
    if !tagged || ulpdu < 6 {
        return chunk;
    }
    if let Some(token) = tokens.get(usize::from(chunk[7])) {
        chunk[4..8].copy_from_slice(&token.to_be_bytes());
        if crc {
            let (trailer, len) = Framing { crc }.trailer(&chunk[..2 + ulpdu], &[]);
            chunk[frame - len..frame].copy_from_slice(&trailer[..len]);
        }
    }
    chunk
}

/// All that an end has to say.
fn drained(end: &mut Protocol) -> Vec<u8> {
    let mut all = Vec::new();
    loop {
        let mut slices = [IoSlice::new(&[]); 8];
        let used = end.slices(&mut slices);
        let before = all.len();
        slices[..used].iter().for_each(|slice| all.extend_from_slice(slice));
        let len = all.len() - before;
        if len == 0 {
            return all;
        }
        end.written(len);
    }
}

/// What an end of ours says: messages, a write, a read and the answer to one; and a Terminate.
pub fn seeds_rdmap() -> Vec<(String, Vec<u8>)> {
    let end = |active, crc| {
        let (incoming_reads, outgoing_reads) = (4, 4);
        let frame = 1448;
        Protocol::new(Agreement { crc, frame, incoming_reads, outgoing_reads, active, ready: None })
    };
    let mut seeds = Vec::new();
    for (name, crc) in [("plain", 0u8), ("crc", 1)] {
        let mut client = end(true, crc == 1);
        let message = |id, invalidate| Message {
            id,
            head: b"head".to_vec(),
            body: Bytes::from_static(b"and body"),
            invalidate,
        };
        let part = Part { offset: 0, token: 0, length: 20 };
        let posted = [
            client.post_send(message(1, None)),
            client.post_write(2, vec![part], Bytes::from_static(&[7; 20])),
            client.post_read(3, &[part], vec![0; 20]),
            client.post_send(message(4, Some(5))),
        ];
        assert!(posted.iter().all(Result::is_ok));
        seeds.push((format!("said-{name}"), [&[0xfc | crc], &drained(&mut client)[..]].concat()));
        let mut server = end(false, crc == 1);
        let mut other = end(true, crc == 1);
        assert!(other.post_send(message(1, None)).is_ok());
        server.feed(&drained(&mut other));
        seeds.push((format!("terminate-{name}"), [&[crc], &drained(&mut server)[..]].concat()));
    }
    seeds
}

/// A conversation in MS-SMBD: each message behind its length of two bytes, to an end that was connected
/// to, or that has connected by the first byte. Credits, receives and memory stay within their bounds,
/// and nothing comes after the end.
pub fn smbd(bytes: &[u8]) {
    let Some((first, mut rest)) = bytes.split_first() else { return };
    let mut now = Instant::now();
    let local = Parameters {
        receive_credits: 8,
        send_credits: 8,
        most_held: 10_000,
        max_fragmented_size: 131_072,
        ..Parameters::passive()
    };
    let mut engine = match first & 1 {
        0 => Engine::passive(local, now),
        _ => Engine::active(local, now),
    };
    let (mut receives, mut ended) = (0usize, false);
    loop {
        while let Some(effect) = engine.next() {
            assert!(!ended, "{effect:?} after the end");
            match effect {
                Effect::PostReceive(len) => {
                    receives += 1;
                    assert!(len <= 8192 && receives <= 9);
                }
                Effect::Send { head, body, .. } => {
                    assert!(head.len() + body.len() <= 8136);
                    engine.sent();
                }
                Effect::Deliver(upper) => {
                    let len = upper.bytes.len() - upper.start;
                    assert!(len <= 131_072);
                    if first & 2 != 0 {
                        engine.taken(len);
                    }
                }
                Effect::End(_) => ended = true,
                Effect::Established(agreed) => assert!(agreed.max_receive_size >= 128),
            }
        }
        // What waits to be sent lets the peer send a message more for each: that is not bounded here.
        assert!(first & 4 != 0 || engine.held() <= 10_000 + 10 * 8192 + 131_072);
        let Some((length, more)) = rest.split_first_chunk::<2>() else { break };
        let length = usize::from(u16::from_le_bytes(*length));
        if length == usize::from(u16::MAX) {
            now += Duration::from_secs(60);
            engine.tick(now);
            if first & 4 != 0 {
                let _ = engine.send(Bytes::from_static(&[1; 9000]), Some(7));
            }
            rest = more;
            continue;
        }
        let (message, more) = more.split_at(length.min(more.len()).min(8192));
        rest = more;
        // A provider would not let a message in without a receive.
        if receives > 0 {
            receives -= 1;
            engine.received(message.to_vec(), None, now);
        }
    }
}

/// A client's negotiation with messages behind it, and a server's.
pub fn seeds_smbd() -> Vec<(String, Vec<u8>)> {
    let request = NegotiateRequest {
        min_version: VERSION,
        max_version: VERSION,
        credits_requested: 10,
        preferred_send_size: 1024,
        max_receive_size: 1024,
        max_fragmented_size: 131_072,
    };
    let response = NegotiateResponse {
        min_version: VERSION,
        max_version: VERSION,
        negotiated_version: VERSION,
        credits_requested: 10,
        credits_granted: 10,
        status: 0,
        max_read_write_size: 1 << 20,
        preferred_send_size: 1024,
        max_receive_size: 1024,
        max_fragmented_size: 131_072,
    };
    let data = |granted, flags, remaining, body: &[u8]| {
        let length = u32::try_from(body.len()).unwrap_or(0);
        let offset = if body.is_empty() { 0 } else { 24 };
        let (credits_requested, credits_granted) = (10, granted);
        let head = Data { credits_requested, credits_granted, flags, remaining, offset, length };
        [&head.encode()[..], body].concat()
    };
    let of = |first: u8, messages: &[Vec<u8>]| {
        let mut all = vec![first];
        for message in messages {
            all.extend(u16::try_from(message.len()).unwrap_or(0).to_le_bytes());
            all.extend(message);
        }
        all
    };
    let talk = [
        data(10, 0, 0, b"one message"),
        data(1, 0, 20, &[1; 100]),
        data(0, 1, 0, b""),
        data(1, 0, 0, &[2; 20]),
    ];
    let mut late = of(6, &[request.encode(), data(3, 0, 0, b"x")]);
    late.extend([0xff; 6]);
    vec![
        ("client".into(), of(2, &[&[request.encode()][..], &talk].concat())),
        ("server".into(), of(3, &[&[response.encode()][..], &talk].concat())),
        ("nobody-takes".into(), of(0, &[&[request.encode()][..], &talk].concat())),
        ("silence".into(), late),
    ]
}

//! Two ends of iWARP without a socket, and ends whose peers send what they like.

use std::io::IoSlice;

use bytes::Bytes;
use proptest::prelude::*;

use super::{
    framing::{Frame, Framing},
    protocol::{Agreement, Protocol},
    segment::{Opcode, Place, ReadRequest, Segment},
    startup::ReadyToReceive,
    terminate::Terminate,
};
use crate::{
    memory::{Memory, Part, Refusal},
    provider::{Completion, Lost, Message},
};

fn agreement(active: bool, crc: bool) -> Agreement {
    Agreement { crc, frame: 1448, incoming_reads: 4, outgoing_reads: 4, active, ready: None }
}

fn pair(crc: bool) -> (Protocol, Protocol) {
    (Protocol::new(agreement(true, crc)), Protocol::new(agreement(false, crc)))
}

/// All that an end has to say now.
fn output(end: &mut Protocol) -> Vec<u8> {
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

/// Carries everything both ways until nobody has anything to say.
fn carry(first: &mut Protocol, second: &mut Protocol) {
    loop {
        let (up, down) = (output(first), output(second));
        second.feed(&up);
        first.feed(&down);
        if up.is_empty() && down.is_empty() {
            return;
        }
    }
}

fn completions(end: &mut Protocol) -> Vec<Completion> {
    std::iter::from_fn(|| end.completion()).collect()
}

fn message(id: u64, head: &[u8], body: &[u8], invalidate: Option<u32>) -> Message {
    Message { id, head: head.to_vec(), body: Bytes::copy_from_slice(body), invalidate }
}

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 + at / 251) as u8).collect()
}

/// A frame of a segment that no end of ours would make.
fn frame(crc: bool, opcode: Opcode, last: bool, place: Place, data: &[u8]) -> Vec<u8> {
    let mut ulpdu = Vec::new();
    Segment { last, opcode, place, data: &[] }.encode_head(&mut ulpdu);
    ulpdu.extend(data);
    framed(crc, &ulpdu)
}

fn framed(crc: bool, ulpdu: &[u8]) -> Vec<u8> {
    let head = [&u16::try_from(ulpdu.len()).unwrap().to_be_bytes(), ulpdu].concat();
    let (trailer, len) = Framing { crc }.trailer(&head, &[]);
    [&head[..], &trailer[..len]].concat()
}

fn untagged(queue: u32, number: u32, offset: u32) -> Place {
    Place::Untagged { token: 0, queue, number, offset }
}

fn send_frame(number: u32, offset: u32, last: bool, data: &[u8]) -> Vec<u8> {
    frame(false, Opcode::Send, last, untagged(0, number, offset), data)
}

/// The Terminate that an end has said last.
fn terminated(end: &mut Protocol) -> Option<Terminate> {
    let all = output(end);
    let (mut at, mut found) = (0, None);
    while let Frame::Whole { ulpdu, frame } = (Framing { crc: false }).first(&all[at..]) {
        let segment = Segment::parse(&all[at + 2..at + 2 + ulpdu]).unwrap();
        if segment.opcode == Opcode::Terminate {
            found = Terminate::parse(segment.data);
        }
        at += frame;
    }
    assert_eq!(at, all.len());
    found
}

#[test]
fn messages_reads_and_writes_of_all_lengths_with_and_without_crc() {
    for crc in [false, true] {
        for len in [0, 1, 3, 1000, 1424, 1425, 2848, 5000, 70_000, 1 << 20] {
            let (mut client, mut server) = pair(crc);
            let data = bytes(len);
            server.post_receive(len + 24).unwrap();
            client.post_send(message(1, &[9; 24], &data, None)).unwrap();
            carry(&mut client, &mut server);
            let whole = [&[9; 24][..], &data].concat();
            let received = Completion::Received { bytes: whole, invalidated: None };
            assert_eq!(completions(&mut server), [received]);
            assert_eq!(completions(&mut client), [Completion::Sent(1)]);
            // The server reads what the client grants, and writes to what it grants.
            let source = client.register(Memory::Readable(data.clone().into())).unwrap();
            let sink = client.register(Memory::writable(vec![0; len])).unwrap();
            server.post_read(2, &[source], vec![0; len]).unwrap();
            server.post_write(3, vec![sink], data.clone().into()).unwrap();
            carry(&mut client, &mut server);
            let done = completions(&mut server);
            assert!(done.contains(&Completion::Read(2, data.clone())), "{len}");
            assert!(done.contains(&Completion::Written(3)) && done.len() == 2);
            assert_eq!(client.deregister(sink.token).unwrap().into_vec(), data);
            assert!(client.lost().is_none() && server.lost().is_none());
        }
    }
}

#[test]
fn several_parts_are_read_and_written_one_after_the_other() {
    let (mut client, mut server) = pair(false);
    client.post_send(message(1, b"hello", b"", None)).unwrap();
    server.post_receive(10).unwrap();
    let data = bytes(10_000);
    let parts: Vec<Part> = (0..10)
        .map(|at| {
            let part = data[at * 1000..(at + 1) * 1000].to_vec();
            client.register(Memory::Readable(part.into())).unwrap()
        })
        .collect();
    let sinks: Vec<Part> =
        (0..10).map(|_| client.register(Memory::writable(vec![0; 1000])).unwrap()).collect();
    // More parts than reads may be under way.
    server.post_read(5, &parts, vec![0; 10_000]).unwrap();
    server.post_read(6, &parts[3..4], vec![0; 1000]).unwrap();
    server.post_write(7, sinks.clone(), data.clone().into()).unwrap();
    carry(&mut client, &mut server);
    let done = completions(&mut server);
    assert!(done.contains(&Completion::Read(5, data.clone())));
    assert!(done.contains(&Completion::Read(6, data[3000..4000].to_vec())));
    let got: Vec<u8> =
        sinks.iter().flat_map(|sink| client.deregister(sink.token).unwrap().into_vec()).collect();
    assert_eq!(got, data);
    let wrong = server.post_write(8, sinks, Bytes::from_static(b"short"));
    assert_eq!(wrong, Err(Lost::Access(Refusal::Bounds)));
}

#[test]
fn a_message_ends_the_right_to_memory_as_it_comes() {
    let (mut client, mut server) = pair(true);
    let part = client.register(Memory::writable(vec![0; 100])).unwrap();
    client.post_receive(64).unwrap();
    server.post_receive(64).unwrap();
    client.post_send(message(1, b"first", b"", None)).unwrap();
    carry(&mut client, &mut server);
    server.post_write(2, vec![part], vec![1; 100].into()).unwrap();
    server.post_send(message(3, b"done", b"", Some(part.token))).unwrap();
    carry(&mut client, &mut server);
    let invalidated = Some(part.token);
    let done = completions(&mut client);
    assert!(done.contains(&Completion::Received { bytes: b"done".to_vec(), invalidated }));
    // What is written after that finds no memory, and ends the connection for both.
    server.post_write(4, vec![part], vec![2; 100].into()).unwrap();
    carry(&mut client, &mut server);
    assert_eq!(client.lost(), Some(&Lost::Access(Refusal::Token)));
    assert!(matches!(server.lost(), Some(Lost::Terminated(_))));
    assert_eq!(client.deregister(part.token).unwrap().into_vec(), [1; 100]);
    assert!(client.post_receive(1).is_err() && client.register(Memory::writable(vec![0])).is_err());
}

#[test]
fn whoever_was_connected_to_says_nothing_first() {
    let (mut client, mut server) = pair(false);
    client.post_receive(10).unwrap();
    server.post_send(message(1, b"hello", b"", None)).unwrap();
    assert!(!server.has_output() && output(&mut server).is_empty());
    server.post_receive(10).unwrap();
    client.post_send(message(1, b"hi", b"", None)).unwrap();
    carry(&mut client, &mut server);
    assert!(completions(&mut client).iter().any(|it| matches!(it, Completion::Received { .. })));
}

#[test]
fn a_frame_without_data_makes_a_connection_of_two_peers_ready() {
    for ready in [ReadyToReceive::Empty, ReadyToReceive::Write, ReadyToReceive::Read] {
        let of = |active| Agreement { ready: Some(ready), ..agreement(active, true) };
        let (mut client, mut server) = (Protocol::new(of(true)), Protocol::new(of(false)));
        client.post_receive(10).unwrap();
        server.post_send(message(1, b"hello", b"", None)).unwrap();
        assert!(!server.has_output());
        carry(&mut client, &mut server);
        assert!(client.lost().is_none() && server.lost().is_none(), "{ready:?}");
        let received = Completion::Received { bytes: b"hello".to_vec(), invalidated: None };
        assert_eq!(completions(&mut client), [received], "{ready:?}");
        assert_eq!(completions(&mut server), [Completion::Sent(1)]);
    }
}

#[test]
fn what_breaks_a_rule_is_told_why() {
    let tagged = |token, offset| Place::Tagged { token, offset };
    let read = ReadRequest { sink: 1, sink_offset: 0, length: 5, source: 2, source_offset: 0 };
    let cases: Vec<(Vec<u8>, Terminate)> = vec![
        (send_frame(1, 0, true, &[0; 101]), Terminate::TOO_LONG),
        (send_frame(2, 0, true, b"x"), Terminate::NUMBER),
        (send_frame(1, 1, true, b"x"), Terminate::OFFSET),
        (frame(false, Opcode::Write, true, untagged(0, 1, 0), b""), Terminate::OPCODE),
        (frame(false, Opcode::Send, true, tagged(1, 0), b"x"), Terminate::OPCODE),
        (frame(false, Opcode::Send, true, untagged(7, 1, 0), b"x"), Terminate::QUEUE),
        (frame(false, Opcode::Other(12), true, untagged(0, 1, 0), b"x"), Terminate::OPCODE),
        (
            frame(false, Opcode::SendInvalidate, true, untagged(0, 1, 0), b"x"),
            Terminate::CANNOT_INVALIDATE,
        ),
        (
            frame(false, Opcode::Write, true, tagged(5, 0), b"x"),
            Terminate::refused(Refusal::Token, false),
        ),
        (
            frame(false, Opcode::ReadResponse, true, tagged(5, 0), b"x"),
            Terminate::refused(Refusal::Token, false),
        ),
        (
            frame(false, Opcode::ReadRequest, true, untagged(1, 1, 0), &read.encode()),
            Terminate::refused(Refusal::Token, true),
        ),
        (frame(false, Opcode::ReadRequest, true, untagged(1, 1, 0), b"short"), Terminate::STREAM),
        (
            frame(false, Opcode::ReadRequest, true, untagged(1, 2, 0), &read.encode()),
            Terminate::NUMBER,
        ),
        (framed(false, b""), Terminate::STREAM),
        (framed(false, &[0x42, 0x43]), Terminate { layer: 1, kind: 2, code: 6 }),
        (framed(false, &[0x41, 0x03]), Terminate::RDMAP_VERSION),
    ];
    for (bytes, why) in cases {
        let mut end = Protocol::new(agreement(false, false));
        end.post_receive(100).unwrap();
        end.feed(&bytes);
        assert!(end.lost().is_some(), "{why}");
        assert_eq!(terminated(&mut end), Some(why));
        // What comes later is not looked at.
        end.feed(&send_frame(1, 0, true, b"x"));
        assert!(completions(&mut end).is_empty());
    }
    let mut end = Protocol::new(agreement(false, false));
    end.feed(&send_frame(1, 0, true, b"x"));
    assert_eq!(terminated(&mut end), Some(Terminate::NO_BUFFER));
    let mut end = Protocol::new(agreement(false, true));
    let mut harmed = frame(true, Opcode::Send, true, untagged(0, 1, 0), b"abc");
    *harmed.last_mut().unwrap() ^= 1;
    end.feed(&harmed);
    assert!(matches!(end.lost(), Some(Lost::Protocol(_))));
}

#[test]
fn more_reads_than_were_agreed_on_end_the_connection() {
    let (mut client, mut server) = pair(false);
    let source = client.register(Memory::Readable(bytes(600_000).into())).unwrap();
    server.post_receive(10).unwrap();
    client.post_send(message(1, b"hi", b"", None)).unwrap();
    server.feed(&output(&mut client));
    // Five, where four may be under way; the client has answered none of them yet.
    for _ in 0..5 {
        server.push_request(ReadRequest {
            sink: 9,
            sink_offset: 0,
            length: 600_000,
            source: source.token,
            source_offset: source.offset,
        });
    }
    client.feed(&output(&mut server));
    assert!(matches!(client.lost(), Some(Lost::Protocol(_))));
}

#[test]
fn a_terminate_is_understood_at_every_point() {
    let why = Terminate { layer: 0, kind: 2, code: 7 };
    let terminate = frame(false, Opcode::Terminate, true, untagged(2, 1, 0), &why.encode());
    let data = bytes(5000);
    for point in 0..6 {
        let (mut client, mut server) = pair(false);
        if point > 0 {
            client.post_receive(8192).unwrap();
        }
        if point > 1 {
            client.post_send(message(1, b"hi", &data, None)).unwrap();
        }
        if point > 2 {
            server.post_receive(8192).unwrap();
            carry(&mut client, &mut server);
        }
        if point > 3 {
            // A message of which the first part has come.
            client.feed(&send_frame(1, 0, false, b"begun"));
        }
        if point > 4 {
            client.post_read(3, &[Part { offset: 0, token: 3, length: 9 }], vec![0; 9]).unwrap();
        }
        client.feed(&terminate);
        assert_eq!(client.lost(), Some(&Lost::Terminated(why.to_string())), "at {point}");
        assert!(client.post_send(message(2, b"x", b"", None)).is_err());
    }
}

/// What a peer may do that knows what it was granted, or nearly.
#[derive(Debug, Clone)]
enum Deed {
    Write { which: usize, distance: i64, len: usize },
    Respond { which: usize, distance: i64, len: usize, last: bool },
    Request { which: usize, distance: i64, len: usize },
    Send { len: usize, last: bool },
    Any(Vec<u8>),
}

fn deeds() -> impl Strategy<Value = Deed> {
    let near = || prop_oneof![-70i64..140, any::<i64>()];
    prop_oneof![
        (0usize..5, near(), 0usize..90).prop_map(|(which, distance, len)| Deed::Write {
            which,
            distance,
            len
        }),
        (0usize..5, near(), 0usize..90, any::<bool>())
            .prop_map(|(which, distance, len, last)| Deed::Respond { which, distance, len, last }),
        (0usize..5, near(), 0usize..90).prop_map(|(which, distance, len)| Deed::Request {
            which,
            distance,
            len
        }),
        (0usize..90, any::<bool>()).prop_map(|(len, last)| Deed::Send { len, last }),
        prop::collection::vec(any::<u8>(), 0..40).prop_map(Deed::Any),
    ]
}

const POISON: u8 = 0xa5;

/// What answers to reads show of memory.
fn answered(all: &[u8]) -> Vec<u8> {
    let (mut at, mut found) = (0, Vec::new());
    while let Frame::Whole { ulpdu, frame } = (Framing { crc: false }).first(&all[at..]) {
        let segment = Segment::parse(&all[at + 2..at + 2 + ulpdu]).unwrap();
        if segment.opcode == Opcode::ReadResponse {
            found.extend(segment.data);
        }
        at += frame;
    }
    found
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    /// Memory that no request named is neither read nor written, whatever the peer sends; what is
    /// refused ends the connection, and nothing is taken after that.
    #[test]
    fn a_poisoned_pool_stays_poisoned(deeds in prop::collection::vec(deeds(), 0..12)) {
        let mut end = Protocol::new(agreement(false, false));
        // Windows of 64 bytes in the middle of buffers, to be written; one that may be read.
        let parts: Vec<Part> = (0..3)
            .map(|_| end.register(Memory::Writable(vec![POISON; 192], 64..128)).unwrap())
            .collect();
        let readable = end.register(Memory::Readable(vec![3; 64].into())).unwrap();
        (0..4).for_each(|_| end.post_receive(64).unwrap());
        end.post_read(1, &[Part { offset: 0, token: 1, length: 64 }], vec![POISON; 64]).unwrap();
        let (mut number, mut requests, mut said) = (1, 1, 0);
        for deed in &deeds {
            let target = |which: usize, distance: i64| {
                let part = parts.get(which).copied().unwrap_or(if which == 3 { readable } else {
                    Part { token: 77, offset: 0, length: 0 }
                });
                (part.token, part.offset.wrapping_add_signed(distance))
            };
            let bytes = match deed {
                Deed::Write { which, distance, len } => {
                    let (token, offset) = target(*which, *distance);
                    frame(false, Opcode::Write, true, Place::Tagged { token, offset }, &vec![1; *len])
                }
                Deed::Respond { which, distance, len, last } => {
                    let (token, offset) = target(*which, *distance);
                    let place = Place::Tagged { token, offset };
                    frame(false, Opcode::ReadResponse, *last, place, &vec![2; *len])
                }
                Deed::Request { which, distance, len } => {
                    let (source, source_offset) = target(*which, *distance);
                    let length = u32::try_from(*len).unwrap();
                    let request = ReadRequest { sink: 0, sink_offset: 0, length, source, source_offset };
                    requests += 1;
                    frame(false, Opcode::ReadRequest, true, untagged(1, requests - 1, 0), &request.encode())
                }
                Deed::Send { len, last } => {
                    let bytes = send_frame(number, said, *last, &vec![4; *len]);
                    said = if *last { 0 } else { said + u32::try_from(*len).unwrap() };
                    number += u32::from(*last);
                    bytes
                }
                Deed::Any(ulpdu) => framed(false, ulpdu),
            };
            end.feed(&bytes);
            let answers = answered(&output(&mut end));
            prop_assert!(answers.iter().all(|byte| *byte == 3));
            for done in completions(&mut end) {
                match done {
                    // The read was never answered with its own tag, which nobody can guess.
                    Completion::Read(..) => prop_assert!(false, "answered by nobody"),
                    Completion::Received { bytes, .. } => prop_assert!(!bytes.contains(&POISON)),
                    _ => {}
                }
            }
        }
        for part in parts {
            let buffer = end.deregister(part.token).unwrap().into_vec();
            prop_assert!(buffer[..64].iter().chain(&buffer[128..]).all(|byte| *byte == POISON));
            prop_assert!(buffer[64..128].iter().all(|byte| *byte == POISON || *byte == 1));
        }
    }

    /// However the stream is cut, the same comes out of it.
    #[test]
    fn a_stream_may_be_cut_anywhere(crc: bool, lengths in prop::collection::vec(0usize..4000, 1..6),
                                    cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12)) {
        let (mut client, mut server) = pair(crc);
        for (id, len) in lengths.iter().enumerate() {
            server.post_receive(4096).unwrap();
            client.post_send(message(id as u64, &[1; 24], &bytes(*len), None)).unwrap();
        }
        let all = output(&mut client);
        let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(all.len())).collect();
        at.extend([0, all.len()]);
        at.sort_unstable();
        at.windows(2).for_each(|cut| server.feed(&all[cut[0]..cut[1]]));
        let got: Vec<_> = completions(&mut server);
        let want: Vec<_> = lengths.iter().map(|len| Completion::Received {
            bytes: [&[1; 24][..], &bytes(*len)].concat(), invalidated: None }).collect();
        prop_assert_eq!(got, want);
    }
}

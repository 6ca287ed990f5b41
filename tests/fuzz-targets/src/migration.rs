//! The stream of a migration: frames, messages, batches of pages.
//!
//! The first byte: 1 mends the checksums of all frames, as an attacker would. A frame that is read is
//! written as it came; a message that is read is written and read as the same; the data of a batch are
//! those of its runs.

use std::io::Cursor;

use hyperv_host::migrate::wire::{
    Batch, Kind, Message, PREAMBLE, parse_pages, read_frame, send, write_frame,
};

const ALL: [Kind; 4] = [Kind::Message, Kind::State, Kind::Pages, Kind::Sync];
const HEADER: usize = 12;
const PAGE: usize = 4096;

/// A connection's bytes.
pub fn run(bytes: &[u8]) {
    let Some((mend, bytes)) = bytes.split_first() else { return };
    let mut bytes = bytes.to_vec();
    if mend & 1 == 1 {
        checksums(&mut bytes);
    }
    let mut stream = Cursor::new(&*bytes);
    let mut body = Vec::new();
    loop {
        let from = stream.position() as usize;
        let Ok(kind) = read_frame(&mut stream, &ALL, &mut body) else { return };
        let mut written = Vec::new();
        write_frame(&mut written, kind, &body).expect("a vector takes all");
        assert_eq!(written, bytes[from..stream.position() as usize]);
        match kind {
            Kind::Message => {
                if let Ok(message) = serde_message(&body) {
                    let mut sent = Vec::new();
                    send(&mut sent, &message).expect("a vector takes all");
                    let again = serde_message(&sent[HEADER..]).expect("what was written");
                    assert_eq!(again, message);
                }
            }
            Kind::Pages => {
                let mut seen = 0;
                let _ = parse_pages(&body, |run, data| {
                    let len = if run.zero { 0 } else { run.pages as usize * PAGE };
                    assert_eq!(data.len(), len);
                    seen += len;
                    Ok(())
                });
                assert!(seen <= body.len());
            }
            Kind::State | Kind::Sync => {}
        }
    }
}

/// A message as the body of a frame.
fn serde_message(body: &[u8]) -> Result<Message, ()> {
    let mut frame = Vec::new();
    write_frame(&mut frame, Kind::Message, body).map_err(drop)?;
    hyperv_host::migrate::wire::receive(&mut Cursor::new(&frame)).map_err(drop)
}

fn checksums(mut bytes: &mut [u8]) {
    while let Some((header, rest)) = bytes.split_first_chunk_mut::<HEADER>() {
        let len = u32::from_le_bytes([header[4], header[5], header[6], header[7]]) as usize;
        let Some((body, after)) = rest.split_at_mut_checked(len) else { return };
        header[8..].copy_from_slice(&crc32c::crc32c(body).to_le_bytes());
        bytes = after;
    }
}

/// Messages, a batch of pages, a state and the end of a round.
pub fn seeds() -> Vec<(String, Vec<u8>)> {
    let frame = |put: &dyn Fn(&mut Vec<u8>)| {
        let mut out = vec![1];
        put(&mut out);
        out
    };
    let message = |message: &Message| frame(&|out| send(out, message).expect("a vector takes all"));
    let mut batch = Batch::default();
    batch.push(0x1000, &[1; PAGE]);
    batch.push(0x2000, &[0; PAGE]);
    batch.push(0x9000, &[0; PAGE]);
    let mut pages = vec![1];
    batch.write(&mut pages).expect("a vector takes all");
    vec![
        ("ready".into(), message(&Message::Ready)),
        ("alive".into(), message(&Message::Alive { round: 3 })),
        ("refused".into(), message(&Message::Refused { why: "no room".into() })),
        ("joined".into(), message(&Message::Joined { now: Some(7) })),
        ("pages".into(), pages),
        ("sync".into(), frame(&|out| write_frame(out, Kind::Sync, &[1, 0, 0, 0]).expect("taken"))),
        ("state".into(), frame(&|out| write_frame(out, Kind::State, b"{}").expect("taken"))),
        ("preamble".into(), [&[0], &PREAMBLE[..]].concat()),
    ]
}

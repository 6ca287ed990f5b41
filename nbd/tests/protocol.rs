//! A client of its own, byte by byte, against the server over a pipe in memory.

use std::{sync::Arc, time::Duration};

use block_io::{Disk, File, RawDisk, testing::MemFile};
use bytes::{Buf, BufMut, BytesMut};
use nbd::{
    Export,
    wire::{self, ALLOCATION, Request, answer, chunk, command, export, flag, option},
};
use proptest::prelude::*;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    task::JoinHandle,
};

const SIZE: u64 = 1 << 20;

async fn disk() -> Arc<dyn Disk> {
    let file = Arc::new(MemFile::new());
    file.set_len(SIZE).await.unwrap();
    Arc::new(RawDisk::open(file, 512).await.unwrap())
}

struct Client {
    stream: DuplexStream,
    server: JoinHandle<Result<(), nbd::Error>>,
    cookie: u64,
}

impl Client {
    /// Connects and greets.
    async fn new(read_only: bool) -> Self {
        let (mut stream, theirs) = tokio::io::duplex(4096);
        let exports = vec![Export::new("disk", disk().await, read_only)];
        let server = tokio::spawn(async move { nbd::serve(theirs, &exports).await });
        assert_eq!(stream.read_u64().await.unwrap(), wire::INIT);
        assert_eq!(stream.read_u64().await.unwrap(), wire::OPTION);
        assert_eq!(stream.read_u16().await.unwrap(), 3);
        stream.write_u32(3).await.unwrap();
        Self { stream, server, cookie: 0 }
    }

    async fn say(&mut self, code: u32, data: &[u8]) {
        let mut out = BytesMut::new();
        out.put_u64(wire::OPTION);
        out.put_u32(code);
        out.put_u32(data.len() as u32);
        out.put_slice(data);
        self.stream.write_all(&out).await.unwrap();
    }

    /// An option and the answers to it, up to the last.
    async fn option(&mut self, code: u32, data: &[u8]) -> Vec<(u32, Vec<u8>)> {
        self.say(code, data).await;
        let mut answers = Vec::new();
        loop {
            assert_eq!(self.stream.read_u64().await.unwrap(), wire::OPTION_REPLY);
            assert_eq!(self.stream.read_u32().await.unwrap(), code);
            let kind = self.stream.read_u32().await.unwrap();
            let mut data = vec![0; self.stream.read_u32().await.unwrap() as usize];
            self.stream.read_exact(&mut data).await.unwrap();
            answers.push((kind, data));
            if kind == answer::ACK || kind >= 1 << 31 {
                return answers;
            }
        }
    }

    async fn go(&mut self) -> u16 {
        let answers = self.option(option::GO, b"\0\0\0\x04disk\0\0").await;
        assert_eq!(answers.last().unwrap().0, answer::ACK);
        let (_, mut facts) = (0, &answers[0].1[..]);
        assert_eq!((facts.get_u16(), facts.get_u64()), (0, SIZE));
        facts.get_u16()
    }

    async fn send(&mut self, command: u16, flags: u16, offset: u64, length: u32, data: &[u8]) {
        self.cookie += 1;
        let request = Request { flags, command, cookie: self.cookie, offset, length };
        self.stream.write_all(&request.to_bytes()).await.unwrap();
        self.stream.write_all(data).await.unwrap();
    }

    /// The error of the simple reply to the last request.
    async fn simple(&mut self) -> u32 {
        assert_eq!(self.stream.read_u32().await.unwrap(), wire::SIMPLE_REPLY);
        let error = self.stream.read_u32().await.unwrap();
        assert_eq!(self.stream.read_u64().await.unwrap(), self.cookie);
        error
    }

    /// The chunks of the structured reply to the last request: kind and content.
    async fn chunks(&mut self) -> Vec<(u16, Vec<u8>)> {
        let mut chunks = Vec::new();
        loop {
            assert_eq!(self.stream.read_u32().await.unwrap(), wire::CHUNK);
            let flags = self.stream.read_u16().await.unwrap();
            let kind = self.stream.read_u16().await.unwrap();
            assert_eq!(self.stream.read_u64().await.unwrap(), self.cookie);
            let mut data = vec![0; self.stream.read_u32().await.unwrap() as usize];
            self.stream.read_exact(&mut data).await.unwrap();
            chunks.push((kind, data));
            if flags & chunk::DONE != 0 {
                return chunks;
            }
        }
    }
}

#[tokio::test]
async fn what_is_written_is_read_and_the_end_is_orderly() {
    let mut client = Client::new(false).await;
    let flags = client.go().await;
    assert_eq!(flags & (export::READ_ONLY | export::SEND_DF), 0);
    // Not whole sectors.
    client.send(command::WRITE, flag::FUA, 1000, 6, b"sector").await;
    assert_eq!(client.simple().await, 0);
    client.send(command::READ, 0, 998, 10, &[]).await;
    assert_eq!(client.simple().await, 0);
    let mut got = [0; 10];
    client.stream.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"\0\0sector\0\0");
    client.send(command::WRITE_ZEROES, 0, 1001, 1024, &[]).await;
    assert_eq!(client.simple().await, 0);
    for (command, flags, offset, length, error) in [
        (command::READ, 0, SIZE - 1, 2, 22),
        (command::TRIM, 0, SIZE - 1, 2, 28),
        (command::WRITE_ZEROES, 0, u64::MAX, 2, 28),
        (command::READ, flag::NO_HOLE, 0, 1, 22),
        (command::BLOCK_STATUS, 0, 0, 1, 22),
        (99, 0, 0, 0, 22),
        (command::FLUSH, 0, 0, 0, 0),
        (command::CACHE, 0, 0, 512, 0),
    ] {
        client.send(command, flags, offset, length, &[]).await;
        assert_eq!(client.simple().await, error, "{command} {offset} {length}");
    }
    client.send(command::READ, 0, 1000, 6, &[]).await;
    client.send(command::DISC, 0, 0, 0, &[]).await;
    // What was asked before the end is still answered.
    let mut rest = Vec::new();
    client.stream.read_to_end(&mut rest).await.unwrap();
    assert_eq!(&rest[16..], b"s\0\0\0\0\0");
    client.server.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_read_only_export_stays_as_it_is() {
    let mut client = Client::new(true).await;
    assert_ne!(client.go().await & export::READ_ONLY, 0);
    client.send(command::WRITE, 0, 0, 4, b"data").await;
    assert_eq!(client.simple().await, 1);
    client.send(command::TRIM, 0, 0, 512, &[]).await;
    assert_eq!(client.simple().await, 1);
}

#[tokio::test]
async fn holes_are_told_as_holes() {
    let mut client = Client::new(false).await;
    assert_eq!(client.option(option::STRUCTURED_REPLY, &[]).await, [(answer::ACK, vec![])]);
    let mut query = BytesMut::from(&b"\0\0\0\x04disk\0\0\0\x01"[..]);
    query.put_u32(ALLOCATION.len() as u32);
    query.put_slice(ALLOCATION.as_bytes());
    let answers = client.option(option::SET_META_CONTEXT, &query).await;
    assert_eq!(answers[0].0, answer::META_CONTEXT);
    client.go().await;
    client.send(command::WRITE, 0, 512 << 10, 4096, &[7; 4096]).await;
    assert_eq!(client.simple().await, 0);
    client.send(command::BLOCK_STATUS, 0, 0, SIZE as u32, &[]).await;
    let chunks = client.chunks().await;
    let [(chunk::BLOCK_STATUS, extents)] = &chunks[..] else { panic!("{chunks:?}") };
    let mut extents = &extents[4..];
    let (mut at, mut data) = (0, Vec::new());
    while !extents.is_empty() {
        let (len, state) = (extents.get_u32(), extents.get_u32());
        if state == 0 {
            data.push((at, len));
        }
        at += len;
    }
    assert_eq!((at, &data[..]), (SIZE as u32, &[(512 << 10, 4096)][..]));
    // The read of all of it has the same holes and, beside them, the data.
    client.send(command::READ, 0, 0, SIZE as u32, &[]).await;
    let chunks = client.chunks().await;
    let kinds: Vec<u16> = chunks.iter().map(|chunk| chunk.0).collect();
    assert_eq!(kinds, [chunk::OFFSET_HOLE, chunk::OFFSET_DATA, chunk::OFFSET_HOLE]);
    assert_eq!(chunks[1].1[8..], [7; 4096]);
    client.send(command::READ, flag::DF, 0, SIZE as u32, &[]).await;
    assert_eq!(client.chunks().await.len(), 1);
    client.send(command::READ, 0, SIZE, 512, &[]).await;
    assert_eq!(client.chunks().await, [(chunk::ERROR, vec![0, 0, 0, 22, 0, 0])]);
}

#[tokio::test]
async fn options_are_answered_or_refused() {
    let mut client = Client::new(false).await;
    let list = client.option(option::LIST, &[]).await;
    assert_eq!(list, [(answer::SERVER, b"\0\0\0\x04disk".to_vec()), (answer::ACK, vec![])]);
    for (code, data, error) in [
        (option::LIST, &b"x"[..], answer::ERR_INVALID),
        (5, b"", answer::ERR_UNSUP),
        (option::INFO, b"\0\0\0\x05other\0\0", answer::ERR_UNKNOWN),
        (option::INFO, b"\0\0\0\x09disk\0\0", answer::ERR_INVALID),
        (option::GO, b"\0\0\0\x04disk\0\x01", answer::ERR_INVALID),
        (option::SET_META_CONTEXT, b"\0\0\0\x04disk\0\0\0\0", answer::ERR_INVALID),
        (option::LIST_META_CONTEXT, b"\0\0\0\x04disk\xff\xff\xff\xff", answer::ERR_INVALID),
    ] {
        assert_eq!(client.option(code, data).await.last().unwrap().0, error, "{code} {data:?}");
    }
    let known = client.option(option::LIST_META_CONTEXT, b"\0\0\0\x04disk\0\0\0\0").await;
    assert_eq!(known[0], (answer::META_CONTEXT, b"\0\0\0\0base:allocation".to_vec()));
    assert_eq!(client.option(option::ABORT, &[]).await, [(answer::ACK, vec![])]);
    client.server.await.unwrap().unwrap();
}

#[tokio::test]
async fn the_old_way_to_choose_an_export_works() {
    let mut client = Client::new(false).await;
    client.say(option::EXPORT_NAME, b"disk").await;
    assert_eq!(client.stream.read_u64().await.unwrap(), SIZE);
    client.stream.read_u16().await.unwrap();
    client.send(command::FLUSH, 0, 0, 0, &[]).await;
    assert_eq!(client.simple().await, 0);
    let mut other = Client::new(false).await;
    other.say(option::EXPORT_NAME, b"nothing").await;
    assert!(matches!(other.server.await.unwrap(), Err(nbd::Error::Protocol(_))));
}

#[tokio::test]
async fn a_write_without_end_is_not_taken() {
    let mut client = Client::new(false).await;
    client.go().await;
    client.send(command::WRITE, 0, 0, u32::MAX, &[]).await;
    assert!(matches!(client.server.await.unwrap(), Err(nbd::Error::Protocol(_))));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever comes, at whatever stage, the server comes to an end when the client has.
    #[test]
    fn noise_ends_a_connection(
        noise in prop::collection::vec(any::<u8>(), 0..300), stage in 0..3,
        code in 0u32..12, flags in 0u16..32, kind in 0u16..10, offset in 0..SIZE,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut client = Client::new(false).await;
            if stage == 1 {
                client.say(code, &noise).await;
            }
            if stage == 2 {
                client.go().await;
                client.send(kind, flags, offset, noise.len() as u32, &noise).await;
            }
            let _ = client.stream.write_all(&noise).await;
            client.stream.shutdown().await.unwrap();
            let Client { mut stream, server, .. } = client;
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest).await;
            let ended = tokio::time::timeout(Duration::from_secs(30), server).await;
            ended.expect("the server ends").expect("without a panic")
        }).ok();
    }
}

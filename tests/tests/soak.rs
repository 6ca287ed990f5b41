//! Honest and hostile clients at once, for `BULKHEAD_SOAK_SECONDS` (20 without it; `make soak`
//! takes ten minutes): no data is lost, the memory is stable, nothing is logged.

use std::{
    env, fs,
    io::{Read, Write},
    net::TcpStream,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use block_io::File;
use bulkhead_tests::smbd::{PASSWORD, Smbd, USER};
use smb_client::{Client, ConnectOptions, Create, Login, OpenOptions, raw::RawConnection};
use smb_protocol::{
    Command,
    msg::{create, ioctl, lock, notify, query_directory, query_info, read, set_info, write},
};

const BLOCK: usize = 16 << 10;
const BLOCKS: u64 = 64;
/// What the process may have more at the end than when every kind of client had been there.
const ROOM: u64 = 48 << 10;

/// Numbers that follow from a seed alone.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn bytes(&mut self, len: u64) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }
}

fn options(port: u16) -> ConnectOptions {
    ConnectOptions::new("127.0.0.1", port, Login::new(USER, PASSWORD))
}

/// Resident memory in KiB; `None` when the process is gone.
fn memory(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// Content of a block, in no other block and version.
fn content(client: u64, block: u64, version: u64) -> Vec<u8> {
    if version == 0 {
        return vec![0; BLOCK];
    }
    let mut random = Random(client << 48 | block << 32 | version);
    (0..BLOCK / 8).flat_map(|_| random.next().to_le_bytes()).collect()
}

/// Writes, flushes, reads back, lists and reconnects; gives the version of each block.
async fn honest(port: u16, client: u64, stop: &AtomicBool, done: &AtomicU64) -> Vec<u64> {
    let mut random = Random(0x5eed + client);
    let mut versions = vec![0; BLOCKS as usize];
    let name = format!("honest{client}");
    let mut back = vec![0; BLOCK];
    let mut create = Create::New;
    while !stop.load(Ordering::Relaxed) {
        let session = Client::connect(options(port)).await.unwrap();
        let tree = session.tree(["vms", "sealed"][client as usize % 2]).await.unwrap();
        let file = tree.open(&name, OpenOptions::create(create)).await.unwrap();
        if create == Create::New {
            file.set_length(BLOCKS * BLOCK as u64).await.unwrap();
            create = Create::Open;
        }
        for _ in 0..200 {
            let block = random.below(BLOCKS);
            let version = &mut versions[block as usize];
            if random.below(2) == 0 {
                *version += 1;
                let data = content(client, block, *version);
                file.write(block * BLOCK as u64, &data).await.unwrap();
            } else {
                assert_eq!(file.read(block * BLOCK as u64, &mut back).await.unwrap(), BLOCK);
                assert!(back == content(client, block, *version), "{name}: block {block}");
            }
            if random.below(50) == 0 {
                file.sync().await.unwrap();
            }
            done.fetch_add(1, Ordering::Relaxed);
        }
        // An open that is not closed would be kept for its client to come back.
        file.close().await.unwrap();
        let names = tree.read_dir("").await.unwrap();
        assert!(names.iter().any(|entry| entry.name == name));
    }
    versions
}

/// Logged in, and sending requests that are damaged somewhere.
fn damaged(port: u16, seed: u64, stop: &AtomicBool, done: &AtomicU64) {
    let mut random = Random(seed);
    while !stop.load(Ordering::Relaxed) {
        let file = format!("damaged{}", random.below(4));
        let Ok(mut raw) = RawConnection::connect(&options(port), "vms", &file, true) else {
            continue;
        };
        raw.stream().set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        for _ in 0..100 {
            let id = raw.file_id();
            let (a, b) = (random.next(), random.below(1 << 20));
            let data = random.bytes(b % 300);
            let (command, mut body) = (random.below(19), Vec::new());
            let out = &mut body;
            match command {
                5 => create::Request { name: file.clone(), ..Default::default() }.encode(out),
                8 => {
                    read::Request { length: a as u32, offset: b, file_id: id, ..Default::default() }
                        .encode(out)
                }
                9 => write::Request { offset: b, file_id: id, data: &data, ..Default::default() }
                    .encode(out),
                10 => lock::Request {
                    sequence: 0,
                    file_id: id,
                    locks: vec![lock::Element {
                        offset: b,
                        length: a % 100,
                        flags: lock::LockFlags(1 << (a % 5)),
                    }],
                }
                .encode(out),
                11 => {
                    ioctl::Request { file_id: id, input: &data, ..Default::default() }.encode(out)
                }
                14 => query_directory::Request { file_id: id, ..Default::default() }.encode(out),
                15 => notify::Request { flags: 0, output_len: b as u32, file_id: id, filter: 1 }
                    .encode(out),
                16 => query_info::Request { file_id: id, input: &data, ..Default::default() }
                    .encode(out),
                17 => set_info::Request { file_id: id, input: &data, ..Default::default() }
                    .encode(out),
                _ => out.extend_from_slice(&data),
            }
            for _ in 0..random.below(4) {
                if !body.is_empty() {
                    let at = random.below(body.len() as u64) as usize;
                    body[at] = random.next() as u8;
                }
            }
            // Ends of sessions and trees would only make the rest dull.
            let command = if matches!(command, 0..=2 | 4) { 13 } else { command };
            raw.queue_request(Command(command as u16), |out| out.extend_from_slice(&body));
            if !raw.can_queue(1) || random.below(8) == 0 {
                // What waits for ever is not waited for.
                if raw.send().is_err() || raw.receive_all(|_, _| {}).is_err() {
                    break;
                }
            }
            done.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Logged in, asking for much and reading none of it.
fn greedy(port: u16, stop: &AtomicBool, done: &AtomicU64) {
    while !stop.load(Ordering::Relaxed) {
        let Ok(mut raw) = RawConnection::connect(&options(port), "vms", "big", false) else {
            continue;
        };
        let mut asked = 0;
        while raw.can_queue(1 << 20) && asked < 16 {
            raw.queue_read(asked << 20, 1 << 20);
            asked += 1;
        }
        raw.stream().set_write_timeout(Some(Duration::from_millis(100))).unwrap();
        let _ = raw.send();
        // Reads a little, so that the server is in the middle of it when this goes away.
        let mut some = [0; 1000];
        let _ = raw.stream().read(&mut some);
        done.fetch_add(1, Ordering::Relaxed);
    }
}

/// Nobody, sending noise, half of something, or nothing.
fn stranger(port: u16, stop: &AtomicBool, done: &AtomicU64) {
    let mut random = Random(0xbad);
    while !stop.load(Ordering::Relaxed) {
        let held: Vec<_> = (0..20)
            .filter_map(|_| {
                let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
                let len = random.below(2000);
                let mut noise = random.bytes(len);
                if random.below(2) == 0 && noise.len() > 8 {
                    let at = [0, 0, 4, 0, 0xfe, b'S', b'M', b'B'];
                    noise[..8].copy_from_slice(&at);
                }
                let _ = stream.write_all(&noise);
                Some(stream)
            })
            .collect();
        drop(held);
        done.fetch_add(20, Ordering::Relaxed);
    }
}

#[test]
fn honest_and_hostile_clients_together() {
    let seconds = env::var("BULKHEAD_SOAK_SECONDS").ok().and_then(|text| text.parse().ok());
    let length = Duration::from_secs(seconds.unwrap_or(20));
    let mut server = Smbd::start("", "[limits]\nauthentication_seconds = 2\nwrite_seconds = 2\n");
    let (port, pid) = (server.port(), server.pid());
    fs::write(server.files().join("big"), vec![0x42; 16 << 20]).unwrap();
    let stop = AtomicBool::new(false);
    let counts: [AtomicU64; 4] = Default::default();
    let mut warm = 0;
    let mut last = 0;
    let versions: Vec<Vec<u64>> = thread::scope(|scope| {
        let honest: Vec<_> = (0..3)
            .map(|client| {
                let (stop, done) = (&stop, &counts[0]);
                scope.spawn(move || {
                    let runtime =
                        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                    runtime.block_on(honest(port, client, stop, done))
                })
            })
            .collect();
        for seed in 1..3 {
            let (stop, done) = (&stop, &counts[1]);
            scope.spawn(move || damaged(port, seed, stop, done));
        }
        scope.spawn(|| greedy(port, &stop, &counts[2]));
        scope.spawn(|| stranger(port, &stop, &counts[3]));
        let since = Instant::now();
        while since.elapsed() < length && !honest.iter().any(|one| one.is_finished()) {
            thread::sleep(Duration::from_millis(100));
            let Some(now) = memory(pid) else { break };
            if since.elapsed() < length / 4 {
                warm = warm.max(now);
            } else if since.elapsed() > length / 4 * 3 {
                last = last.max(now);
            }
        }
        stop.store(true, Ordering::Relaxed);
        honest.into_iter().map(|one| one.join().expect("an honest client was harmed")).collect()
    });
    let [honest, damaged, greedy, strangers] = counts.map(AtomicU64::into_inner);
    println!(
        "{} s: {honest} honest requests, {damaged} damaged, {greedy} unread, {strangers} \
         strangers; {warm} KiB at first, {last} at last",
        length.as_secs()
    );
    assert!(honest > 0 && damaged > 0 && greedy > 0 && strangers > 0);
    assert!(last < warm + ROOM, "memory grew from {warm} to {last} KiB");
    for (client, versions) in versions.iter().enumerate() {
        let all = fs::read(server.files().join(format!("honest{client}"))).unwrap();
        assert_eq!(all.len(), BLOCKS as usize * BLOCK);
        for (block, version) in versions.iter().enumerate() {
            let want = content(client as u64, block as u64, *version);
            assert!(all[block * BLOCK..][..BLOCK] == want, "client {client}: block {block}");
        }
    }
    assert!(server.alive());
}

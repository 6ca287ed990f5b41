//! Large writes without signature, whose data reach their file while they come: the file is what
//! was written, and what is refused or cut off is refused or cut off cleanly.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    os::unix::fs::FileExt,
    sync::Arc,
    time::Duration,
};

use block_io::File;
use bulkhead_tests::{
    smbd::{PASSWORD, Smbd, USER},
    volume::{Kind, Volume},
};
use smb_client::{Client, ConnectOptions, Create, Login, OpenOptions, RemoteFile, Signing};
use smb_protocol::NtStatus;

const MIB: usize = 1 << 20;

/// Takes writes that are not signed.
fn server(rest: &str) -> Smbd {
    Smbd::start("signing = \"enabled\"\nencryption = \"offered\"", rest)
}

fn options(port: u16) -> ConnectOptions {
    ConnectOptions {
        reconnect_timeout: Duration::ZERO,
        signing: Signing::IfRequired,
        ..ConnectOptions::new("127.0.0.1", port, Login::new(USER, PASSWORD))
    }
}

async fn open(port: u16, share: &str, name: &str) -> RemoteFile {
    let client = Client::connect(options(port)).await.unwrap();
    let tree = client.tree(share).await.unwrap();
    tree.open(name, OpenOptions::create(Create::OpenOrNew)).await.unwrap()
}

/// Bytes that no other seed gives.
fn content(seed: u64, len: usize) -> Vec<u8> {
    let word = |at: u64| (seed << 40 | at).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
    let mut bytes: Vec<u8> = (0..len.div_ceil(8) as u64).flat_map(word).collect();
    bytes.truncate(len);
    bytes
}

/// Forwards one connection in parts of `part` bytes, and ends it after `last` bytes from the client.
fn in_parts(server: u16, part: usize, last: usize) -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let (mut client, _) = listener.accept().unwrap();
        let mut server = TcpStream::connect(("127.0.0.1", server)).unwrap();
        server.set_nodelay(true).unwrap();
        let (mut from, mut to) = (server.try_clone().unwrap(), client.try_clone().unwrap());
        let back = std::thread::spawn(move || std::io::copy(&mut from, &mut to));
        let mut buffer = vec![0; part];
        let mut sent = 0;
        while sent < last {
            let most = part.min(last - sent);
            match client.read(&mut buffer[..most]) {
                Ok(0) | Err(_) => break,
                Ok(got) if server.write_all(&buffer[..got]).is_err() => break,
                Ok(got) => sent += got,
            }
        }
        let _ = server.shutdown(std::net::Shutdown::Both);
        let _ = client.shutdown(std::net::Shutdown::Both);
        let _ = back.join();
    });
    port
}

/// Writes at once, at offsets and of lengths that fit no page and overlap none of the others, over
/// what was there before; small writes go between.
async fn write_everywhere(file: Arc<RemoteFile>, model: &mut [u8]) {
    let mut writes = tokio::task::JoinSet::new();
    let mut offset = 5usize;
    for seed in 1.. {
        let len = [3 * MIB + 17, MIB, 100, 700_001, 4096, 2 * MIB, MIB - 4095][seed % 7];
        if offset + len > model.len() {
            break;
        }
        let data = content(seed as u64, len);
        model[offset..offset + len].copy_from_slice(&data);
        let file = file.clone();
        writes.spawn(async move { file.write(offset as u64, &data).await });
        offset += len + [0, 4096, 11][seed % 3];
    }
    while let Some(written) = writes.join_next().await {
        written.unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_is_in_the_file() {
    let server = server("");
    for (number, part) in [usize::MAX >> 1, 300_000, 50_021, 4096].into_iter().enumerate() {
        let port = match part {
            0..MIB => in_parts(server.port(), part, usize::MAX),
            _ => server.port(),
        };
        let name = format!("file{number}");
        let file = Arc::new(open(port, "vms", &name).await);
        let mut model = content(99, 24 * MIB);
        fs::write(server.files().join(&name), &model).unwrap();
        write_everywhere(file.clone(), &mut model).await;
        assert!(fs::read(server.files().join(&name)).unwrap() == model, "parts of {part}");
        let mut back = vec![0; MIB];
        assert_eq!(file.read(7 * MIB as u64 + 3, &mut back).await.unwrap(), MIB);
        assert!(back == model[7 * MIB + 3..8 * MIB + 3]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fills_up_within_a_write_is_named_and_loses_nothing() {
    let Some(volume) = Volume::mount_in(&std::env::temp_dir(), Kind::Ext4, 16 << 20) else {
        return;
    };
    let path = volume.path().display().to_string();
    let share = format!("[[share]]\nname = \"other\"\npath = \"{path}\"\nusers = [\"{USER}\"]\n");
    let mut server = server(&share);
    let file = open(server.port(), "other", "disk").await;
    let mut taken = 0;
    let status = loop {
        assert!(taken < 64, "the disk never fills");
        match file.write(taken * MIB as u64, &content(taken, MIB)).await {
            Ok(()) => taken += 1,
            Err(error) => break error.nt_status(),
        }
    };
    assert_eq!(status, Some(NtStatus::DISK_FULL));
    assert!(taken > 4, "only {taken} MiB fit");
    file.sync().await.unwrap();
    let mut back = vec![0; MIB];
    for number in 0..taken {
        assert_eq!(file.read(number * MIB as u64, &mut back).await.unwrap(), MIB);
        assert!(back == content(number, MIB), "MiB {number} is lost");
    }
    // The connection goes on, and so does the file once there is room.
    file.set_len(2 * MIB as u64).await.unwrap();
    file.write(MIB as u64, &content(77, 3 * MIB)).await.unwrap();
    let whole = fs::read(volume.path().join("disk")).unwrap();
    assert!(whole == [content(0, MIB), content(77, 3 * MIB)].concat());
    assert!(server.alive());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_is_cut_off_changes_nothing_else() {
    let mut server = server("");
    let name = server.files().join("disk");
    for (round, last) in [MIB + 60_000, 2 * MIB + 3, 3 * MIB + 500_001].into_iter().enumerate() {
        let before = content(50 + round as u64, 8 * MIB);
        fs::write(&name, &before).unwrap();
        let file = open(in_parts(server.port(), 100_000, last), "vms", "disk").await;
        let data = content(60 + round as u64, 4 * MIB);
        file.write(MIB as u64, &data).await.unwrap_err();
        drop(file);
        // Another connection has the file to itself afterwards.
        let after = open(server.port(), "vms", "disk").await;
        after.write(7 * MIB as u64, &before[..MIB]).await.unwrap();
        let disk = fs::File::open(&name).unwrap();
        let mut part = vec![0; MIB];
        disk.read_exact_at(&mut part, 0).unwrap();
        assert!(part == before[..MIB]);
        for at in 1..5 {
            disk.read_exact_at(&mut part, (at * MIB) as u64).unwrap();
            let is_one = |(at, byte): (usize, &u8)| *byte == data[at - MIB] || *byte == before[at];
            assert!(part.iter().enumerate().map(|(i, b)| (at * MIB + i, b)).all(is_one));
        }
        for at in 5..7 {
            disk.read_exact_at(&mut part, (at * MIB) as u64).unwrap();
            assert!(part == before[at * MIB..(at + 1) * MIB]);
        }
    }
    assert!(server.alive());
}

//! Clients that mean harm: the server stays up, keeps its memory, and serves the honest ones.

use std::{
    fs,
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    time::Duration,
};

use bulkhead_tests::smbd::{PASSWORD, Smbd, USER};
use smb_client::{Client, ConnectOptions, Create, Login, OpenOptions};
use smb_protocol::{
    Command, Dialect, Header,
    header::frame_prefix,
    msg::negotiate::{Request, SecurityMode},
};

fn connect(server: &Smbd) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", server.port())).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream
}

fn options(server: &Smbd) -> ConnectOptions {
    ConnectOptions::new("127.0.0.1", server.port(), Login::new(USER, PASSWORD))
}

/// Resident memory in KiB.
fn memory(server: &Smbd) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// An honest client writes and reads back.
async fn honest(server: &Smbd, name: &str) {
    let session = Client::connect(options(server)).await.unwrap();
    let tree = session.tree("vms").await.unwrap();
    let file = tree.open(name, OpenOptions::create(Create::Replace)).await.unwrap();
    let data: Vec<u8> = (0..200_000u32).map(|i| (i % 251) as u8).collect();
    file.write(4096, &data).await.unwrap();
    file.sync().await.unwrap();
    let mut back = vec![0; data.len()];
    assert_eq!(file.read(4096, &mut back).await.unwrap(), data.len());
    assert!(back == data);
}

fn negotiate() -> Vec<u8> {
    let mut message =
        Header { command: Command::NEGOTIATE, credits: 1, ..Header::default() }.to_bytes().to_vec();
    Request {
        dialects: vec![Dialect::SMB_2_1],
        security_mode: SecurityMode::SIGNING_ENABLED,
        ..Request::default()
    }
    .encode(&mut message);
    let mut frame = frame_prefix(message.len()).unwrap().to_vec();
    frame.extend_from_slice(&message);
    frame
}

/// The server ends the connection, with or without an answer before.
fn is_dropped(mut stream: TcpStream) {
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_frames_cost_one_connection_each() {
    let mut server = Smbd::start("", "");
    let frames: [&[u8]; 6] = [
        &[0, 0xff, 0xff, 0xff],
        &[0x81, 0, 0, 44],
        &[0, 0, 0, 4, 1, 2, 3, 4],
        &[0, 0, 0, 5, 0xfd, b'S', b'M', b'B', 0],
        &[0, 0, 0, 0],
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    ];
    for frame in frames {
        let mut stream = connect(&server);
        stream.write_all(frame).unwrap();
        is_dropped(stream);
        // The same behind a proper beginning.
        let mut stream = connect(&server);
        stream.write_all(&negotiate()).unwrap();
        stream.write_all(frame).unwrap();
        is_dropped(stream);
    }
    honest(&server, "after").await;
    assert!(server.alive());
}

#[tokio::test(flavor = "multi_thread")]
async fn half_open_connections_are_dropped_in_time() {
    let server = Smbd::start("", "[limits]\nauthentication_seconds = 1\n");
    let mut silent = Vec::new();
    for round in 0..60 {
        let mut stream = connect(&server);
        match round % 3 {
            0 => {}
            1 => stream.write_all(&[0, 0]).unwrap(),
            _ => stream.write_all(&negotiate()).unwrap(),
        }
        if round % 2 == 0 {
            let _ = stream.shutdown(Shutdown::Write);
        }
        silent.push(stream);
    }
    honest(&server, "meanwhile").await;
    silent.into_iter().for_each(is_dropped);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_idle_sessions_cost_little() {
    let mut server = Smbd::start("encryption = \"offered\"", "");
    honest(&server, "before").await;
    let before = memory(&server);
    let mut sessions = Vec::new();
    for _ in 0..1000 {
        sessions.push(Client::connect(options(&server)).await.unwrap());
    }
    let each = (memory(&server).saturating_sub(before)) / 1000;
    assert!(each <= 64, "an idle session costs {each} KiB");
    honest(&server, "meanwhile").await;
    drop(sessions);
    assert!(server.alive());
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_beyond_the_limit_are_turned_away() {
    let server = Smbd::start("", "[limits]\nconnections = 3\nconnections_per_address = 3\n");
    // The connection that found the server up may still be counted; then one is turned away.
    let mut held = Vec::new();
    while held.len() < 3 {
        let mut stream = connect(&server);
        let mut answer = [0; 4];
        if stream.write_all(&negotiate()).and_then(|()| stream.read_exact(&mut answer)).is_ok() {
            held.push(stream);
        }
    }
    is_dropped(connect(&server));
}

/// Many large reads are asked for and no answer is read.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_pins_little_memory() {
    let server = Smbd::start("", "[limits]\nwrite_seconds = 2\n");
    let session = Client::connect(options(&server)).await.unwrap();
    let tree = session.tree("vms").await.unwrap();
    let file = tree.open("big", OpenOptions::create(Create::Replace)).await.unwrap();
    file.set_length(256 << 20).await.unwrap();
    let before = memory(&server);
    // An SMB 2 client of this test's own would have to log in; echo requests before a login
    // fill the server's output just as well.
    let mut stream = connect(&server);
    stream.set_write_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.write_all(&negotiate()).unwrap();
    let mut id = 1u64;
    let gone = loop {
        let header = Header {
            command: Command::ECHO,
            credits: 1,
            message_id: smb_protocol::MessageId(id),
            ..Header::default()
        };
        let mut message = header.to_bytes().to_vec();
        smb_protocol::msg::simple::Empty.encode(&mut message);
        let mut frame = frame_prefix(message.len()).unwrap().to_vec();
        frame.extend_from_slice(&message);
        if let Err(error) = stream.write_all(&frame) {
            break error;
        }
        id += 1;
        assert!(id < 50_000_000, "the server never pushes back");
    };
    assert_ne!(gone.kind(), std::io::ErrorKind::WouldBlock, "not dropped in time");
    let grown = memory(&server).saturating_sub(before);
    assert!(grown < 32 << 10, "grew by {grown} KiB");
    drop(file);
    honest(&server, "after").await;
}

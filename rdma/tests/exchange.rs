//! Whole connections of SMB Direct over both providers, and the faults that others had.

use std::{
    io::{Read, Write},
    net::SocketAddr,
    time::Duration,
};

use bytes::Bytes;
use rdma::{
    Connection, Lost, Memory, Parameters,
    in_process::Fabric,
    iwarp::{Iwarp, Options, ReadyToReceive},
    provider::Provider,
};
use tokio::task::JoinSet;

fn any() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

/// The providers, by name: each way to begin an iWARP connection, and the one without a network.
fn providers() -> Vec<(&'static str, Box<dyn Provider>)> {
    let iwarp = |options| Box::new(Iwarp { options }) as Box<dyn Provider>;
    let plain = Options::default;
    vec![
        ("in process", Box::new(Fabric::default())),
        ("iwarp", iwarp(plain())),
        ("iwarp with crc", iwarp(Options { crc: true, ..plain() })),
        ("iwarp with short frames", iwarp(Options { frame: Some(700), ..plain() })),
        ("iwarp of revision 1", iwarp(Options { revision: 1, ..plain() })),
        (
            "iwarp of two peers",
            iwarp(Options { peer_to_peer: Some(ReadyToReceive::Read), ..plain() }),
        ),
    ]
}

/// Both ends of a connection, with what each would like.
async fn connected(
    provider: &dyn Provider,
    client: Parameters,
    server: Parameters,
) -> (Connection, Connection) {
    let listener = provider.listen(any()).await.unwrap();
    let to = listener.local().unwrap();
    let (dialled, accepted) = tokio::join!(provider.connect(to), listener.accept());
    let (active, passive) = tokio::join!(
        Connection::active(dialled.unwrap(), client),
        Connection::passive(accepted.unwrap(), server)
    );
    (active.unwrap(), passive.unwrap())
}

fn few(credits: u16) -> Parameters {
    Parameters { receive_credits: credits, send_credits: credits, ..Parameters::passive() }
}

fn content(len: usize, salt: usize) -> Bytes {
    (0..len).map(|at| (at * 31 + at / 255 + salt * 17) as u8).collect()
}

async fn received(from: &mut Connection) -> Vec<u8> {
    let upper = from.receive().await.expect("the connection has ended");
    upper.bytes[upper.start..].to_vec()
}

#[tokio::test]
async fn sixty_four_mebibytes_there_and_back() {
    const MIB: usize = 1 << 20;
    for (name, provider) in providers() {
        let (mut client, server) =
            connected(&*provider, Parameters::active(), Parameters::passive()).await;
        // An iWARP connection is the client's to begin.
        client.handle().send(Bytes::from_static(b"begin"), None).await.unwrap();
        // The server reads a buffer of the client and writes it to another, 64 times 1 MiB, eight at
        // a time; a message takes the right to the second one back.
        let (mut running, mut sinks) = (JoinSet::new(), Vec::new());
        for number in 0..64 {
            let (ours, theirs) = (client.handle(), server.handle().clone());
            let data = content(MIB, number);
            let source = ours.register(Memory::Readable(data.clone())).await.unwrap();
            let sink = ours.register(Memory::writable(vec![0; MIB])).await.unwrap();
            sinks.push((sink.token, source.token, data));
            running.spawn(async move {
                let got = theirs.read(&[source], MIB).await.unwrap();
                theirs.write(&[sink], got.into()).await.unwrap();
                theirs.send(Bytes::from_static(b"written"), Some(sink.token)).await.unwrap();
            });
            if running.len() == 8 {
                running.join_next().await.unwrap().unwrap();
                told(&mut client, &mut sinks, name).await;
            }
        }
        while !sinks.is_empty() {
            told(&mut client, &mut sinks, name).await;
        }
    }
}

/// A message has ended a right of the server's: its buffer holds what the server had read.
async fn told(client: &mut Connection, sinks: &mut Vec<(u32, u32, Bytes)>, name: &str) {
    let upper = client.receive().await.expect("the connection has ended");
    let token = upper.invalidated.expect("a message without a token");
    let at = sinks.iter().position(|(sink, ..)| *sink == token).expect("an unknown token");
    let (sink, source, data) = sinks.swap_remove(at);
    let buffer = client.handle().deregister(sink).await.unwrap().into_vec();
    assert!(buffer == data, "{name}");
    assert_eq!(client.handle().deregister(source).await, Some(Memory::Readable(data)));
}

/// Sends all of these from several tasks and checks that they come whole, each task's in order.
async fn converse(name: &str, client: Connection, server: Connection, lengths: &[usize]) {
    const POSTERS: usize = 2;
    let mut running = JoinSet::new();
    for (end, other) in [(client.handle(), 0), (server.handle(), 1)] {
        for poster in 0..POSTERS {
            let (handle, lengths) = (end.clone(), lengths.to_vec());
            running.spawn(async move {
                for (number, len) in lengths.into_iter().enumerate() {
                    let mut message = vec![poster as u8, number as u8];
                    message.extend(content(len, poster + number + other));
                    handle.send(message.into(), None).await.unwrap();
                }
            });
        }
    }
    let (name, all) = (name.to_owned(), POSTERS * lengths.len());
    let mut ends = [client, server];
    let [first, second] = &mut ends;
    let check = async |end: &mut Connection, other: usize| {
        let mut next = [0; POSTERS];
        for _ in 0..all {
            let got = received(end).await;
            let (poster, number) = (usize::from(got[0]), usize::from(got[1]));
            assert_eq!(number, next[poster], "{name}");
            next[poster] += 1;
            let want = content(lengths[number], poster + number + other);
            assert!(got[2..] == want, "{name}: message {number} of {}", want.len());
        }
    };
    tokio::join!(check(first, 1), check(second, 0));
    while let Some(done) = running.join_next().await {
        done.unwrap();
    }
}

#[tokio::test]
async fn two_posters_never_use_the_same_credit() {
    // Linux' client once counted credits with two threads between reading and taking them: a message
    // too many ended the connection. An end here ends it as well, when one comes.
    for (name, provider) in providers() {
        for credits in [1, 2, 3, 7] {
            let (client, server) = connected(&*provider, few(credits), few(credits)).await;
            client.handle().send(Bytes::from_static(b"\0\0"), None).await.unwrap();
            let mut server = server;
            received(&mut server).await;
            converse(name, client, server, &[1; 100]).await;
        }
    }
}

#[tokio::test]
async fn the_last_credit_locks_nobody_out() {
    // Both ends send all at once what needs many times the credits there are.
    for (name, provider) in providers() {
        for (ours, theirs) in [(1, 1), (2, 1), (1, 16), (3, 2)] {
            let (client, server) = connected(&*provider, few(ours), few(theirs)).await;
            converse(name, client, server, &[100_000; 6]).await;
        }
    }
}

#[tokio::test]
async fn fragments_that_end_on_a_boundary_come_whole() {
    for (name, provider) in providers() {
        let parameters = || Parameters { max_send_size: 1024, ..Parameters::passive() };
        let (client, server) = connected(&*provider, parameters(), parameters()).await;
        // 1000 bytes of data are in each message; two are the test's own.
        let most = (1 << 20) + (128 << 10) - 2;
        let lengths = [998, 999, 1998, 1999, 2998, 50_998, 50_997, 1_047_998, most];
        converse(name, client, server, &lengths).await;
    }
}

#[tokio::test]
async fn after_the_end_everything_is_refused_and_nothing_is_touched() {
    for (name, provider) in providers() {
        let (client, mut server) =
            connected(&*provider, Parameters::active(), Parameters::passive()).await;
        client.handle().send(Bytes::from_static(b"begin"), None).await.unwrap();
        received(&mut server).await;
        let (ours, theirs) = (client.handle().clone(), server.handle().clone());
        let part = ours.register(Memory::writable(vec![7; 100])).await.unwrap();
        ours.disconnect();
        assert_eq!(ours.ended().await, Lost::GivenUp, "{name}");
        assert!(ours.send(Bytes::from_static(b"late"), None).await.is_err());
        assert!(ours.register(Memory::writable(vec![0; 10])).await.is_err());
        assert!(server.receive().await.is_none());
        assert!(theirs.lost().is_some(), "{name}");
        assert!(theirs.write(&[part], vec![1; 100].into()).await.is_err());
        assert!(theirs.read(&[part], 100).await.is_err());
        assert!(theirs.send(Bytes::from_static(b"late"), Some(part.token)).await.is_err());
    }
}

#[tokio::test]
async fn a_port_that_speaks_something_else_is_noticed_at_once() {
    // SMB over TCP, dialled at the port of SMB Direct.
    let iwarp = Iwarp::default();
    let listener = iwarp.listen(any()).await.unwrap();
    let to = listener.local().unwrap();
    let client = std::thread::spawn(move || {
        let mut stream = std::net::TcpStream::connect(to).unwrap();
        stream.write_all(&[0, 0, 0, 0x44, 0xfe, b'S', b'M', b'B']).unwrap();
        let mut rest = Vec::new();
        // The end, or a reset, and no word.
        let _ = stream.read_to_end(&mut rest);
        assert!(rest.is_empty());
    });
    let error = listener.accept().await.unwrap_err();
    assert!(error.to_string().contains("port of SMB Direct"), "{error}");
    client.join().unwrap();
    // The other way round: something answers that is no iWARP.
    let other = std::net::TcpListener::bind(any()).unwrap();
    let to = other.local_addr().unwrap();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = other.accept().unwrap();
        stream.write_all(b"SSH-2.0-x\r\n").unwrap();
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
    });
    let error = iwarp.connect(to).await.unwrap_err();
    assert!(error.to_string().contains("port of SMB Direct"), "{error}");
    server.join().unwrap();
}

#[tokio::test]
async fn memory_that_was_not_granted_ends_the_connection_and_not_its_peer() {
    for (name, provider) in providers() {
        let (client, mut server) =
            connected(&*provider, Parameters::active(), Parameters::passive()).await;
        client.handle().send(Bytes::from_static(b"begin"), None).await.unwrap();
        received(&mut server).await;
        let (ours, theirs) = (client.handle(), server.handle());
        let part = ours.register(Memory::writable(vec![7; 100])).await.unwrap();
        let beyond = rdma::Part { length: 101, ..part };
        let written = theirs.write(&[beyond], vec![1; 101].into()).await;
        // The write may have left before the answer came; the connection is over for both.
        drop(written);
        assert!(matches!(ours.ended().await, Lost::Access(_)), "{name}");
        assert!(
            matches!(theirs.ended().await, Lost::Terminated(_) | Lost::Ended | Lost::Network(_)),
            "{name}"
        );
        // The next connection is made as if nothing had been.
        let (client, mut server) =
            connected(&*provider, Parameters::active(), Parameters::passive()).await;
        client.handle().send(Bytes::from_static(b"again"), None).await.unwrap();
        assert_eq!(received(&mut server).await, b"again");
    }
}

#[tokio::test]
async fn a_peer_that_says_nothing_is_given_up() {
    for (name, provider) in providers() {
        let listener = provider.listen(any()).await.unwrap();
        let to = listener.local().unwrap();
        let (dialled, accepted) = tokio::join!(provider.connect(to), listener.accept());
        let _silent = dialled.unwrap();
        let negotiation = Duration::from_millis(50);
        let parameters = Parameters { negotiation, ..Parameters::passive() };
        let error = Connection::passive(accepted.unwrap(), parameters).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::TimedOut, "{name}");
    }
}

#[tokio::test]
async fn messages_that_nobody_takes_are_bounded() {
    for (name, provider) in providers() {
        let narrow = Parameters { most_held: 64 << 10, ..Parameters::passive() };
        let (client, mut server) = connected(&*provider, Parameters::active(), narrow).await;
        let handle = client.handle().clone();
        let sent = tokio::spawn(async move {
            for number in 0..200 {
                handle.send(content(60_000, number), None).await.unwrap();
            }
        });
        // 12 MB are sent; what comes of them before anything is taken is bounded by the credits that
        // were given before there was too much.
        while server.held() < 64 << 10 {
            tokio::task::yield_now().await;
        }
        assert!(server.held() < (64 << 10) + 256 * 8192 + 60_000, "{name}: {}", server.held());
        for number in 0..200 {
            assert!(received(&mut server).await == content(60_000, number), "{name}");
        }
        sent.await.unwrap();
    }
}

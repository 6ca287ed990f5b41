//! What happens to files when connections and servers are lost.

mod common;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use block_io::File;
use common::{Samba, pattern};
use smb_client::{Client, ConnectOptions, Create, Encryption, Error, OpenOptions, Signing};
use smb_protocol::Dialect;
use test_support::proxy::Proxy;

async fn setup(samba: &Samba) -> (Proxy, ConnectOptions) {
    let server = SocketAddr::from(([127, 0, 0, 1], samba.port()));
    let proxy = Proxy::start(server);
    let options = ConnectOptions {
        port: proxy.port(),
        reconnect_timeout: Duration::from_secs(20),
        ..common::options(samba)
    };
    (proxy, options)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_connection_is_restored_and_what_was_in_flight_is_sent_again() {
    // A write that Samba finishes in another thread after it has put a durable open aside makes
    // it disown that open, so writes are to be done at once.
    let Some(samba) = common::start("aio write size = 0\naio read size = 0\n") else { return };
    for dialect in [Dialect::SMB_2_1, Dialect::SMB_3_0, Dialect::SMB_3_1_1] {
        let (proxy, options) = setup(&samba).await;
        let encryption = if dialect == Dialect::SMB_3_1_1 {
            Encryption::Required
        } else {
            Encryption::IfRequired
        };
        let options = ConnectOptions { dialects: (dialect, dialect), encryption, ..options };
        let session = Client::connect(options).await.unwrap();
        let tree = session.tree("vms").await.unwrap();
        let file = Arc::new(tree.open("disk", OpenOptions::create(Create::Replace)).await.unwrap());
        assert!(file.is_durable(), "{dialect:?}");
        file.write_at(0, &pattern(0, 1 << 20)).await.unwrap();
        // Unflushed and acknowledged: the durable open keeps them.
        for round in 1..6u64 {
            let tasks: Vec<_> = (0..16u64)
                .map(|i| {
                    let file = Arc::clone(&file);
                    let at = (round * 16 + i) * 100_000;
                    tokio::spawn(async move { file.write_at(at, &pattern(at, 100_000)).await })
                })
                .collect();
            tokio::task::yield_now().await;
            proxy.cut();
            for task in tasks {
                task.await.unwrap().unwrap();
            }
            let at = round * 1_600_000;
            let mut back = vec![0; 1_600_000];
            assert_eq!(file.read_at(at, &mut back).await.unwrap(), back.len());
            assert!(back == pattern(at, back.len()), "data differ after cut {round}");
        }
        file.flush().await.unwrap();
        assert!(proxy.accepted() >= 2, "no connection was made anew");
        file.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_session_notices_and_comes_back_by_itself() {
    let Some(samba) = common::start("") else { return };
    let (proxy, options) = setup(&samba).await;
    let session = Client::connect(options).await.unwrap();
    let tree = session.tree("vms").await.unwrap();
    let file = tree.open("disk", OpenOptions::create(Create::New)).await.unwrap();
    file.write_at(0, b"kept").await.unwrap();
    tokio::task::block_in_place(|| proxy.wait_for_attempt());
    proxy.set_down(true);
    proxy.cut();
    // Several refused attempts, none of them asked for by an operation.
    for _ in 0..3 {
        tokio::task::block_in_place(|| proxy.wait_for_attempt());
    }
    proxy.set_down(false);
    let mut back = [0; 4];
    assert_eq!(file.read_at(0, &mut back).await.unwrap(), 4);
    assert_eq!(&back, b"kept");
    file.flush().await.unwrap();
}

#[tokio::test]
async fn when_the_server_stays_away_the_error_says_so() {
    let Some(samba) = common::start("") else { return };
    let (proxy, options) = setup(&samba).await;
    let options = ConnectOptions { reconnect_timeout: Duration::from_millis(600), ..options };
    let session = Client::connect(options).await.unwrap();
    let tree = session.tree("vms").await.unwrap();
    let file = tree.open("disk", OpenOptions::create(Create::New)).await.unwrap();
    proxy.set_down(true);
    proxy.cut();
    let error = file.write_at(0, b"x").await.unwrap_err();
    assert!(matches!(&error, block_io::Error::Disconnected(_)), "{error}");
    let error = tree.stat("disk").await.unwrap_err();
    assert!(matches!(&error, Error::Disconnected(_)), "{error}");
}

#[tokio::test]
async fn writes_that_a_server_lost_unflushed_are_reported() {
    let Some(mut samba) = common::start("durable handles = no\n") else { return };
    let options =
        ConnectOptions { reconnect_timeout: Duration::from_secs(20), ..common::options(&samba) };
    let session = Client::connect(options).await.unwrap();
    let tree = session.tree("vms").await.unwrap();
    let dirty = tree.open("dirty", OpenOptions::create(Create::New)).await.unwrap();
    assert!(!dirty.is_durable());
    let clean = tree.open("clean", OpenOptions::create(Create::New)).await.unwrap();
    let again = OpenOptions { reopen: true, ..OpenOptions::create(Create::New) };
    let again = tree.open("again", again).await.unwrap();
    let reader = tree.open("clean", OpenOptions::read()).await.unwrap();
    let through =
        OpenOptions { write_through: true, reopen: true, ..OpenOptions::create(Create::New) };
    let through = tree.open("through", through).await.unwrap();
    for file in [&dirty, &clean, &again, &through] {
        file.write(0, b"first").await.unwrap();
    }
    clean.sync().await.unwrap();
    again.sync().await.unwrap();
    dirty.sync().await.unwrap();
    dirty.write(5, b" second").await.unwrap();

    samba.restart();
    let error = dirty.write(0, b"third").await.unwrap_err();
    assert!(matches!(&error, Error::WritesLost { path, .. } if path == "dirty"), "{error}");
    let error = dirty.sync().await.unwrap_err();
    assert!(matches!(&error, Error::WritesLost { .. }), "a flush must not succeed: {error}");
    let error = clean.sync().await.unwrap_err();
    assert!(matches!(&error, Error::HandleLost { path, .. } if path == "clean"), "{error}");
    let mut back = [0; 5];
    for file in [&again, &reader, &through] {
        assert_eq!(file.read(0, &mut back).await.unwrap(), 5);
        assert_eq!(&back, b"first");
    }
    again.write(0, b"FIRST").await.unwrap();
    again.sync().await.unwrap();
}

#[tokio::test]
async fn a_session_can_be_told_to_change_its_connection() {
    let Some(samba) = common::start("") else { return };
    let options = ConnectOptions { signing: Signing::IfRequired, ..common::options(&samba) };
    let session = Client::connect(options).await.unwrap();
    let tree = session.tree("vms").await.unwrap();
    let file = tree.open("disk", OpenOptions::create(Create::New)).await.unwrap();
    file.write_at(0, b"12345").await.unwrap();
    session.reset().await.unwrap();
    file.write_at(5, b"678").await.unwrap();
    file.flush().await.unwrap();
    assert_eq!(std::fs::read(samba.files().join("disk")).unwrap(), b"12345678");
}

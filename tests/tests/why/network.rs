//! Networks and other clients: what is lost or slow on the way, and who takes from whom.

use block_io::File;
use bulkhead_tests::{
    paths::{End, Path, Paths},
    proxy::Proxy,
    smbd::{PASSWORD, PASSWORD2, Smbd, USER, USER2},
};
use smb_client::{Client, ConnectOptions, Create, Login, OpenOptions, Session, Share};
use tokio::runtime::{Builder, Runtime};

use super::{options, read, until};

fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// Waits until a session has as many channels.
async fn have(session: &Session, count: usize) {
    while session.channels().await.unwrap().len() != count {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

#[test]
fn a_lost_channel_is_named() {
    let server = Smbd::start("", "");
    let proxy = Proxy::start(server.address());
    let runtime = runtime();
    let options = ConnectOptions {
        max_channels: 2,
        channels_per_interface: 2,
        ..ConnectOptions::new("127.0.0.1", proxy.port(), Login::new(USER, PASSWORD))
    };
    let (session, file) = runtime.block_on(async {
        let session = Client::connect(options).await.unwrap();
        let tree = session.tree("vms").await.unwrap();
        let file = tree.open("disk", OpenOptions::create(Create::New)).await.unwrap();
        have(&session, 2).await;
        (session, file)
    });
    let load = || {
        runtime.block_on(async {
            for block in 0..50u64 {
                file.write(block * 4096, &[5; 4096]).await.unwrap();
            }
        });
    };
    load();
    proxy.set_down(true);
    proxy.cut_one(1);
    runtime.block_on(have(&session, 1));
    let report = until(&server, "vms/disk", "lost-channel", load);
    assert!(report["sentence"].as_str().unwrap().contains("1 of the 2"), "{report:#}");
}

/// The path carries less than the client asks for, so each segment waits for those before it.
#[test]
fn a_slow_wire_is_named() {
    let Some(paths) = Paths::new() else { return };
    let port = 4450;
    let server =
        Smbd::start_within(&paths.namespace(End::Server), paths.server(Path::A, port), "", "");
    paths.enter();
    std::fs::write(server.files().join("disk"), vec![7; super::SIZE]).unwrap();
    let host = Path::A.address(End::Server).to_string();
    let options = ConnectOptions::new(&host, port, Login::new(USER, PASSWORD));
    let mut connection =
        smb_client::raw::RawConnection::connect(&options, "vms", "disk", true).unwrap();
    paths.slow(Path::A, 8);
    until(&server, "vms", "slow-wire", || read(&mut connection, (8, 16), 4096));
}

/// Two clients that open one file again and again, each with an oplock that the other breaks.
#[test]
fn clients_that_take_from_each_other_what_they_cache_are_named() {
    let server = Smbd::start("", "");
    let runtime = runtime();
    let shared = OpenOptions { share: Share::ReadWrite, ..OpenOptions::create(Create::OpenOrNew) };
    let other = Login::new(USER2, PASSWORD2);
    let other = ConnectOptions::new("127.0.0.1", server.port(), other);
    let trees: Vec<_> = [options(&server), other]
        .into_iter()
        .map(|options| {
            runtime.block_on(async {
                let session = Client::connect(options).await.unwrap();
                (session.tree("vms").await.unwrap(), session)
            })
        })
        .collect();
    let open = |index: usize| {
        let (tree, options) = (&trees[index].0, shared);
        async move { tree.open("disk", options).await.unwrap() }
    };
    until(&server, "vms", "lease-contention", || {
        runtime.block_on(async {
            for _ in 0..100 {
                // The second takes from the first what it may cache; without any open it is free again.
                let (first, second) = (open(0).await, open(1).await);
                first.close().await.unwrap();
                second.close().await.unwrap();
            }
        });
    });
}

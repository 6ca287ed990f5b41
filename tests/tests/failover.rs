//! Connections that break at every point of the protocol while a client works on a continuously
//! available share: it sees a pause, nothing is lost and nothing is done twice.

use std::{sync::atomic::Ordering, time::Duration};

use block_io::File;
use bulkhead_tests::{
    proxy::{Fate, Proxy, Way},
    smbd::{PASSWORD, Smbd, USER},
};
use smb_client::{Client, ConnectOptions, Create, Instance, Login, OpenOptions};
use smb_protocol::{Command, NtStatus};

const SHARE: &str = "[[share]]\nname = \"ca\"\npath = \"files\"\nusers = [\"admin\"]\n\
                     continuously_available = true";

fn options(proxy: &Proxy) -> ConnectOptions {
    ConnectOptions {
        keep_alive: Duration::from_secs(1),
        connect_timeout: Duration::from_secs(3),
        request_timeout: Duration::from_secs(3600),
        reconnect_timeout: Duration::from_secs(60),
        ..ConnectOptions::new("127.0.0.1", proxy.port(), Login::new(USER, PASSWORD))
    }
}

/// Makes a file, writes, cuts, zeroes and reads it, closes it; it must not be there before.
async fn work(proxy: &Proxy, name: &str) {
    let session = Client::connect(options(proxy)).await.unwrap();
    let tree = session.tree("ca").await.unwrap();
    let file = tree.open(name, OpenOptions::create(Create::New)).await.unwrap();
    assert!(file.is_durable());
    for n in 0..4u64 {
        file.write_at(n * 4096, &[n as u8 + 1; 4096]).await.unwrap();
    }
    file.flush().await.unwrap();
    file.set_len(5 * 4096).await.unwrap();
    file.punch_hole(4096..8192).await.unwrap();
    let mut found = vec![0xff; 5 * 4096];
    assert_eq!(file.read_at(0, &mut found).await.unwrap(), found.len());
    for (n, block) in found.chunks(4096).enumerate() {
        let wanted = [1, 0, 3, 4, 0][n];
        assert!(block.iter().all(|byte| *byte == wanted), "block {n}");
    }
    File::close(&file).await.unwrap();
}

async fn broken(fate: Fate, commands: &[Command]) {
    let mut server = Smbd::start("encryption = \"offered\"", SHARE);
    let proxy = Proxy::start(server.address());
    let mut round = 0;
    for way in [Way::Request, Way::Answer] {
        for command in commands {
            for nth in 0..2 {
                let name = format!("disk{round}");
                let before = proxy.accepted();
                let struck = proxy.once(way, command.0, nth, fate);
                work(&proxy, &name).await;
                let struck = struck.load(Ordering::SeqCst);
                assert!(struck || nth > 0, "{way:?} {command:?} {nth}: the workload has none");
                let lost = struck && fate == Fate::Cut;
                assert!(!lost || proxy.accepted() > before + 1, "{command:?}: no new connection");
                let len = std::fs::metadata(server.files().join(&name)).unwrap().len();
                assert_eq!(len, 5 * 4096);
                round += 1;
            }
        }
    }
    // Whatever was made twice or not closed would still be there.
    let opens = server.admin(&["server", "--json", "opens"]);
    assert_eq!(String::from_utf8_lossy(&opens.stdout).trim(), "[]");
    assert!(server.alive());
}

const FILES: [Command; 7] = [
    Command::CREATE,
    Command::WRITE,
    Command::FLUSH,
    Command::SET_INFO,
    Command::IOCTL,
    Command::READ,
    Command::CLOSE,
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_cut_at_any_request_or_answer_costs_nothing_but_time() {
    broken(Fate::Cut, &FILES).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_closed_one_way_costs_nothing_but_time() {
    broken(Fate::HalfClose, &FILES).await;
}

/// A host that died and starts its VM again meets what it had open itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_whose_client_died_is_had_when_its_time_is_over() {
    let server = Smbd::start("encryption = \"offered\"", SHARE);
    let proxy = Proxy::start(server.address());
    let dies = ConnectOptions { reconnect_timeout: Duration::from_secs(12), ..options(&proxy) };
    let session = Client::connect(dies).await.unwrap();
    let tree = session.tree("ca").await.unwrap();
    let lost = tree.open("disk", OpenOptions::create(Create::New)).await.unwrap();
    lost.write_at(0, b"kept").await.unwrap();
    proxy.rule(|_, _| Fate::Cut);
    proxy.cut();
    // It keeps its handle, so the server itself waits for it, however hasty the next one is.
    let direct = ConnectOptions {
        reconnect_timeout: Duration::ZERO,
        ..ConnectOptions::new("127.0.0.1", server.port(), Login::new(USER, PASSWORD))
    };
    let tree = Client::connect(direct).await.unwrap().tree("ca").await.unwrap();
    let file = tree.open("disk", OpenOptions::write()).await.unwrap();
    let mut found = [0; 4];
    assert_eq!(file.read_at(0, &mut found).await.unwrap(), 4);
    assert_eq!(&found, b"kept");
}

/// A VM that is started again, here or elsewhere, does not wait for its run before, even over the
/// death of the server; and that one has nothing any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_later_instance_takes_the_file_and_an_earlier_one_never_gets_it() {
    let mut server = Smbd::start("encryption = \"offered\"", SHARE);
    let login = ConnectOptions::new("127.0.0.1", server.port(), Login::new(USER, PASSWORD));
    let open = async |version: u64, id: u8| {
        // Whoever is not let in says so at once.
        let hasty = ConnectOptions { reconnect_timeout: Duration::ZERO, ..login.clone() };
        let tree = Client::connect(hasty).await.unwrap().tree("ca").await.unwrap();
        let instance = Some(Instance { id: [id; 16], version });
        let options = OpenOptions { instance, ..OpenOptions::create(Create::OpenOrNew) };
        tree.open("disk", options).await
    };
    let first = open(10, 1).await.unwrap();
    first.write_at(0, b"first").await.unwrap();
    // Another VM has no right to it.
    let status = open(99, 2).await.unwrap_err().nt_status();
    assert_eq!(status, Some(NtStatus::SHARING_VIOLATION));
    for earlier in [9, 10] {
        let status = open(earlier, 1).await.unwrap_err().nt_status();
        assert_eq!(status, Some(NtStatus::FILE_FORCED_CLOSED), "{earlier}");
    }
    first.write_at(0, b"FIRST").await.unwrap();
    let second = open(11, 1).await.unwrap();
    assert!(first.write_at(0, b"late!").await.is_err());
    let mut found = [0; 5];
    assert_eq!(second.read_at(0, &mut found).await.unwrap(), 5);
    assert_eq!(&found, b"FIRST");
    // What the server remembers of the second over its own death keeps nobody waiting.
    server.kill_and_restart();
    let status = open(11, 1).await.unwrap_err().nt_status();
    assert_eq!(status, Some(NtStatus::FILE_FORCED_CLOSED));
    let third = open(12, 1).await.unwrap();
    assert!(second.write_at(0, b"late!").await.is_err());
    assert_eq!(third.read_at(0, &mut found).await.unwrap(), 5);
    assert_eq!(&found, b"FIRST");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_falls_silent_is_noticed() {
    let server = Smbd::start("encryption = \"offered\"", SHARE);
    let proxy = Proxy::start(server.address());
    for (round, (way, command)) in [
        (Way::Answer, Command::WRITE),
        (Way::Request, Command::FLUSH),
        (Way::Answer, Command::CREATE),
    ]
    .into_iter()
    .enumerate()
    {
        let struck = proxy.once(way, command.0, 0, Fate::BlackHole);
        // Not by the time that a request may take, which is an hour here.
        let name = format!("disk{round}");
        let done = tokio::time::timeout(Duration::from_secs(120), work(&proxy, &name)).await;
        assert!(done.is_ok(), "{way:?} {command:?}: nobody noticed");
        assert!(struck.load(Ordering::SeqCst));
    }
}

//! Sessions with several connections: all are used, any may be lost at any time, nothing is lost
//! or done twice.

use std::{sync::Arc, time::Duration};

use block_io::File;
use bulkhead_tests::{
    ledger::{Ledger, Load},
    proxy::{Fate, Proxy, Way},
    smbd::{PASSWORD, Smbd, USER},
};
use smb_client::{
    Client, ConnectOptions, Create, Encryption, Login, OpenOptions, RemoteFile, Session,
};
use smb_protocol::{
    Command, Dialect,
    crypto::{Cipher, SigningAlgorithm},
};

const SHARE: &str = "[[share]]\nname = \"ca\"\npath = \"files\"\nusers = [\"admin\"]\n\
                     continuously_available = true";
const LOAD: Load = Load { depth: 16, blocks: 16, block: 4096, seed: 7 };

fn options(port: u16, channels: u16) -> ConnectOptions {
    ConnectOptions {
        max_channels: channels,
        channels_per_interface: channels,
        keep_alive: Duration::from_secs(1),
        connect_timeout: Duration::from_secs(3),
        request_timeout: Duration::from_secs(3600),
        ..ConnectOptions::new("127.0.0.1", port, Login::new(USER, PASSWORD))
    }
}

/// Waits until a session has as many channels.
async fn have(session: &Session, count: usize) {
    let enough = async {
        while session.channels().await.unwrap().len() != count {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let done = tokio::time::timeout(Duration::from_secs(60), enough).await;
    let now = session.channels().await.unwrap().len();
    assert!(done.is_ok(), "{now} channels and not {count}");
}

async fn open(options: ConnectOptions, share: &str) -> (Session, Arc<RemoteFile>) {
    let count = usize::from(options.max_channels);
    let session = Client::connect(options).await.unwrap();
    let tree = session.tree(share).await.unwrap();
    let file = tree.open("disk", OpenOptions::create(Create::New)).await.unwrap();
    have(&session, count).await;
    (session, Arc::new(file))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn channels_are_bound_with_every_dialect_signature_and_cipher() {
    let server = Smbd::start("encryption = \"offered\"", "");
    let v3 = Dialect::SMB_3_1_1;
    let plain = Encryption::IfRequired;
    let mut kinds =
        vec![(Dialect::SMB_3_0, plain, None, None), (Dialect::SMB_3_0_2, plain, None, None)];
    kinds.push((Dialect::SMB_3_0, Encryption::Required, None, None));
    for algorithm in [SigningAlgorithm::AesCmac, SigningAlgorithm::HmacSha256] {
        kinds.push((v3, plain, Some(algorithm), None));
    }
    for cipher in [Cipher::Aes128Gcm, Cipher::Aes256Gcm, Cipher::Aes128Ccm, Cipher::Aes256Ccm] {
        kinds.push((v3, Encryption::Required, None, Some(cipher)));
    }
    for (dialect, encryption, algorithm, cipher) in kinds {
        let mut options = ConnectOptions {
            dialects: (dialect, dialect),
            encryption,
            ..options(server.port(), 3)
        };
        if let Some(algorithm) = algorithm {
            options.signing_algorithms = vec![algorithm];
        }
        if let Some(cipher) = cipher {
            options.ciphers = vec![cipher];
        }
        let (session, file) = open(options, "vms").await;
        let ledger = Ledger::start(&file, LOAD);
        ledger.go_on(500).await;
        ledger.end().await.unwrap();
        // A large request is spread over the channels in parts.
        let large: Vec<u8> = (0..9_000_000u32).map(|at| (at / 13) as u8).collect();
        file.write(77, &large).await.unwrap();
        let mut back = vec![0; large.len() + 5];
        assert_eq!(file.read(77, &mut back).await.unwrap(), large.len());
        assert!(back[..large.len()] == large, "{dialect:?} {cipher:?}");
        file.close().await.unwrap();
        session.tree("vms").await.unwrap().delete("disk").await.unwrap();
    }
}

/// A share that demands encryption gets it on all channels.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sealed_share_is_sealed_on_every_channel() {
    let server = Smbd::start("encryption = \"offered\"", "");
    let (_session, file) = open(options(server.port(), 4), "sealed").await;
    let ledger = Ledger::start(&file, LOAD);
    ledger.go_on(500).await;
    ledger.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_channel_may_be_cut_at_any_time() {
    let server = Smbd::start("encryption = \"offered\"", SHARE);
    let proxy = Proxy::start(server.address());
    let (session, file) = open(options(proxy.port(), 4), "ca").await;
    let ledger = Ledger::start(&file, LOAD);
    for round in 0..12 {
        ledger.go_on(100).await;
        // The newest ones, the oldest of them first.
        let newest = proxy.accepted();
        proxy.cut_one(newest - 4 + round % 4);
        ledger.go_on(20).await;
        have(&session, 4).await;
    }
    println!("longest pause over 12 cuts: {:?}", ledger.longest_pause());
    ledger.end().await.unwrap();
    file.close().await.unwrap();
    let opens = server.admin(&["server", "--json", "opens"]);
    assert_eq!(String::from_utf8_lossy(&opens.stdout).trim(), "[]");
}

/// All at once: then it is as with one, and the channels come back too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_all_channels_are_cut_the_session_is_made_anew_with_all() {
    let server = Smbd::start("encryption = \"offered\"", SHARE);
    let proxy = Proxy::start(server.address());
    let (session, file) = open(options(proxy.port(), 3), "ca").await;
    let ledger = Ledger::start(&file, LOAD);
    for _ in 0..5 {
        ledger.go_on(100).await;
        proxy.cut();
        ledger.go_on(20).await;
        have(&session, 3).await;
    }
    ledger.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_channel_that_falls_silent_is_replaced_and_nothing_of_it_comes_late() {
    let server = Smbd::start("encryption = \"offered\"", SHARE);
    let proxy = Proxy::start(server.address());
    let (session, file) = open(options(proxy.port(), 3), "ca").await;
    // Large enough that the server's answers to a silent client fill its socket.
    let ledger = Ledger::start(&file, Load { block: 64 << 10, blocks: 4, ..LOAD });
    for way in [Way::Answer, Way::Request] {
        ledger.go_on(50).await;
        let before = proxy.accepted();
        let silent = before - 2;
        proxy.rule_of_each(move |number, its, _| match (number, its) {
            (n, its) if n == silent && its == way => Fate::BlackHole,
            _ => Fate::Pass,
        });
        let replaced = async {
            while proxy.accepted() == before {
                ledger.go_on(1).await;
            }
        };
        let replaced = tokio::time::timeout(Duration::from_secs(120), replaced).await;
        assert!(replaced.is_ok(), "nobody noticed");
        have(&session, 3).await;
        ledger.go_on(50).await;
        println!("{way:?}: longest pause {:?}", ledger.longest_pause());
    }
    ledger.end().await.unwrap();
}

/// Requests of one channel arrive after later ones of another, also those of a channel that was
/// given up: the server must refuse these.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_arrives_out_of_order_over_channels_is_sorted_out() {
    let server = Smbd::start("encryption = \"offered\"", SHARE);
    let proxy = Proxy::start(server.address());
    let (session, file) = open(options(proxy.port(), 4), "ca").await;
    proxy.rule_of_each(|number, way, _| match (number % 3, way) {
        (0, Way::Request) => Fate::Delay(Duration::from_millis(3)),
        (1, Way::Answer) => Fate::Delay(Duration::from_millis(2)),
        _ => Fate::Pass,
    });
    let ledger = Ledger::start(&file, LOAD);
    for round in 0..8 {
        ledger.go_on(60).await;
        let newest = proxy.accepted();
        proxy.cut_one(newest - 1 - round % 4);
        have(&session, 4).await;
    }
    ledger.end().await.unwrap();
}

/// Every request and every answer of every kind, lost with its channel while others go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_channel_cut_at_any_request_or_answer_costs_nothing() {
    let server = Smbd::start("encryption = \"offered\"", SHARE);
    let proxy = Proxy::start(server.address());
    let session = Client::connect(options(proxy.port(), 3)).await.unwrap();
    let tree = session.tree("ca").await.unwrap();
    have(&session, 3).await;
    let mut round = 0;
    for way in [Way::Request, Way::Answer] {
        for command in [
            Command::CREATE,
            Command::WRITE,
            Command::FLUSH,
            Command::SET_INFO,
            Command::IOCTL,
            Command::READ,
            Command::CLOSE,
        ] {
            let name = format!("disk{round}");
            round += 1;
            let struck = proxy.once(way, command.0, 0, Fate::Cut);
            let file = tree.open(&name, OpenOptions::create(Create::New)).await.unwrap();
            file.write_at(0, &[1; 4096]).await.unwrap();
            file.write_at(4096, &[2; 4096]).await.unwrap();
            file.flush().await.unwrap();
            file.set_len(3 * 4096).await.unwrap();
            file.punch_hole(4096..8192).await.unwrap();
            let mut found = vec![0xff; 3 * 4096];
            assert_eq!(file.read_at(0, &mut found).await.unwrap(), found.len());
            assert!(found.iter().enumerate().all(|(at, b)| *b == u8::from(at < 4096)), "{way:?}");
            File::close(&file).await.unwrap();
            assert!(struck.load(std::sync::atomic::Ordering::SeqCst), "{way:?} {command:?}");
            have(&session, 3).await;
        }
    }
    let opens = server.admin(&["server", "--json", "opens"]);
    assert_eq!(String::from_utf8_lossy(&opens.stdout).trim(), "[]");
}

/// Names are looked up and changed as if nothing had happened, whatever is lost with its channel.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_are_changed_once_whatever_is_cut() {
    let server = Smbd::start("encryption = \"offered\"", SHARE);
    let proxy = Proxy::start(server.address());
    let session = Client::connect(options(proxy.port(), 3)).await.unwrap();
    let tree = session.tree("ca").await.unwrap();
    have(&session, 3).await;
    // What keeps its open over all of it.
    let kept = tree.open("kept", OpenOptions::create(Create::New)).await.unwrap();
    // Of several messages that begin alike, each in its turn: the look at the file, the change.
    let cuts = [Way::Request, Way::Answer].into_iter().flat_map(|way| {
        [(Command::CREATE, 0), (Command::CREATE, 1), (Command::QUERY_DIRECTORY, 0)]
            .map(|(command, nth)| (way, command, nth))
    });
    for (round, (way, command, nth)) in cuts.enumerate() {
        let (old, new) = (format!("old{round}"), format!("new{round}"));
        let cut = async || {
            have(&session, 3).await;
            proxy.once(way, command.0, nth, Fate::Cut)
        };
        let was = |struck: &std::sync::atomic::AtomicBool| {
            struck.load(std::sync::atomic::Ordering::SeqCst)
        };
        let lists = command == Command::QUERY_DIRECTORY;
        // A directory is made, and a file looked at, with one message; a name is changed with two.
        let struck = cut().await;
        tree.mkdir(&old).await.unwrap();
        assert!(tree.exists(&old).await.unwrap() && !tree.exists(&new).await.unwrap());
        assert_eq!(was(&struck), !lists, "{way:?} {command:?} {nth}");
        let struck = cut().await;
        tree.rename(&old, &new, false).await.unwrap();
        assert_eq!(was(&struck), !lists, "{way:?} {command:?} {nth}");
        assert!(tree.exists(&new).await.unwrap() && !tree.exists(&old).await.unwrap());
        let struck = cut().await;
        let names: Vec<_> = tree.read_dir("").await.unwrap().into_iter().map(|e| e.name).collect();
        assert!(names.len() == 2 && names.contains(&new), "{names:?}");
        assert_eq!(was(&struck), nth == 0, "{way:?} {command:?} {nth}");
        let struck = cut().await;
        tree.delete(&new).await.unwrap();
        assert!(!tree.exists(&new).await.unwrap());
        assert_eq!(was(&struck), !lists, "{way:?} {command:?} {nth}");
    }
    kept.write_at(0, &[1; 512]).await.unwrap();
    File::close(&kept).await.unwrap();
    // Neither is an open left behind.
    let opens = server.admin(&["server", "--json", "opens"]);
    assert_eq!(String::from_utf8_lossy(&opens.stdout).trim(), "[]");
}

//! The client against Samba: every dialect, signature and cipher, and everything a file can do.

mod common;

use std::time::Duration;

use block_io::File;
use common::{PASSWORD, USER, pattern};
use smb_client::{
    Client, ConnectOptions, Create, Encryption, Error, Login, OpenOptions, Session, Share, Signing,
};
use smb_protocol::{
    Dialect, NtStatus,
    crypto::{Cipher, SigningAlgorithm},
};

/// Writes, reads back, grows, cuts, flushes and deletes one file.
async fn exercise(session: &Session, share: &str, name: &str) {
    let tree = session.tree(share).await.unwrap();
    let file = tree.open(name, OpenOptions::create(Create::New)).await.unwrap();
    let data = pattern(0, 3_000_001);
    file.write_at(0, &data).await.unwrap();
    let at = 2_999_000;
    file.write_at(at, &pattern(at, 5000)).await.unwrap();
    file.flush().await.unwrap();
    assert_eq!(file.len().await.unwrap(), at + 5000);
    let mut back = vec![0; 3_500_000];
    assert_eq!(file.read_at(0, &mut back).await.unwrap(), 3_004_000);
    assert!(back[..3_004_000] == pattern(0, 3_004_000), "data differ");
    assert_eq!(file.read_at(9_000_000, &mut back).await.unwrap(), 0);
    file.set_len(100).await.unwrap();
    assert_eq!(file.read_at(50, &mut back).await.unwrap(), 50);
    assert!(back[..50] == data[50..100]);
    file.close().await.unwrap();
    assert!(matches!(file.read_at(0, &mut back).await, Err(block_io::Error::Io { .. })));
    assert_eq!(tree.stat(name).await.unwrap().len, 100);
    tree.delete(name).await.unwrap();
    assert!(!tree.exists(name).await.unwrap());
}

#[tokio::test]
async fn every_dialect_signed_and_unsigned() {
    let Some(samba) = common::start("") else { return };
    let dialects = [Dialect::SMB_2_1, Dialect::SMB_3_0, Dialect::SMB_3_0_2, Dialect::SMB_3_1_1];
    for dialect in dialects {
        for signing in [Signing::Required, Signing::IfRequired] {
            let options =
                ConnectOptions { dialects: (dialect, dialect), signing, ..common::options(&samba) };
            let session = Client::connect(options).await.unwrap();
            assert_eq!(session.dialect().await.unwrap(), dialect);
            session.echo().await.unwrap();
            exercise(&session, "vms", "a.bin").await;
        }
    }
}

#[tokio::test]
async fn every_signing_algorithm() {
    let Some(samba) = common::start("") else { return };
    for algorithm in
        [SigningAlgorithm::AesGmac, SigningAlgorithm::AesCmac, SigningAlgorithm::HmacSha256]
    {
        let options =
            ConnectOptions { signing_algorithms: vec![algorithm], ..common::options(&samba) };
        let session = Client::connect(options).await.unwrap();
        exercise(&session, "vms", "a.bin").await;
    }
    let options = ConnectOptions { signing_algorithms: Vec::new(), ..common::options(&samba) };
    exercise(&Client::connect(options).await.unwrap(), "vms", "a.bin").await;
}

#[tokio::test]
async fn every_cipher() {
    let Some(samba) = common::start("") else { return };
    for cipher in [Cipher::Aes128Gcm, Cipher::Aes128Ccm, Cipher::Aes256Gcm, Cipher::Aes256Ccm] {
        let options = ConnectOptions {
            ciphers: vec![cipher],
            encryption: Encryption::Required,
            ..common::options(&samba)
        };
        let session = Client::connect(options).await.unwrap();
        assert!(session.is_encrypted().await.unwrap());
        exercise(&session, "vms", "a.bin").await;
    }
    for dialect in [Dialect::SMB_3_0, Dialect::SMB_3_0_2] {
        let options = ConnectOptions {
            dialects: (dialect, dialect),
            encryption: Encryption::Required,
            ..common::options(&samba)
        };
        exercise(&Client::connect(options).await.unwrap(), "vms", "a.bin").await;
    }
    let options = ConnectOptions {
        dialects: (Dialect::SMB_2_1, Dialect::SMB_2_1),
        encryption: Encryption::Required,
        ..common::options(&samba)
    };
    assert!(matches!(Client::connect(options).await, Err(Error::NotOffered("encryption"))));
}

#[tokio::test]
async fn a_share_that_demands_encryption_gets_it() {
    let Some(samba) = common::start("") else { return };
    let session = Client::connect(common::options(&samba)).await.unwrap();
    assert!(!session.is_encrypted().await.unwrap());
    exercise(&session, "vms", "a.bin").await;
    exercise(&session, "sealed", "b.bin").await;
    assert!(session.is_encrypted().await.unwrap());
    exercise(&session, "vms", "a.bin").await;
}

#[tokio::test]
async fn wrong_passwords_users_and_shares_are_named() {
    let Some(samba) = common::start("") else { return };
    for login in [Login::new(USER, "falsch"), Login::new("nobody-here", PASSWORD)] {
        let options = ConnectOptions { login, ..common::options(&samba) };
        let error = Client::connect(options).await.unwrap_err();
        assert!(matches!(&error, Error::Logon { status: NtStatus::LOGON_FAILURE, .. }), "{error}");
    }
    let session = Client::connect(common::options(&samba)).await.unwrap();
    let error = session.tree("nowhere").await.unwrap_err();
    assert_eq!(error.to_string(), "connect to share \"nowhere\": STATUS_BAD_NETWORK_NAME");
    session.tree("IPC$").await.unwrap();
    let tree = session.tree("vms").await.unwrap();
    let error = tree.open("a/../b", OpenOptions::read()).await.unwrap_err();
    assert!(matches!(error, Error::Path(_)));
    let error = tree.open("missing", OpenOptions::read()).await.unwrap_err();
    assert_eq!(error.nt_status(), Some(NtStatus::OBJECT_NAME_NOT_FOUND));
}

#[tokio::test]
async fn directories() {
    let Some(samba) = common::start("") else { return };
    let session = Client::connect(common::options(&samba)).await.unwrap();
    let tree = session.tree("vms").await.unwrap();
    tree.mkdir("dir").await.unwrap();
    let error = tree.mkdir("dir").await.unwrap_err();
    assert_eq!(error.nt_status(), Some(NtStatus::OBJECT_NAME_COLLISION));
    let mut names: Vec<_> = (0..1200).map(|i| format!("file with a long name é {i:04}")).collect();
    for name in &names {
        std::fs::write(samba.files().join("dir").join(name), name).unwrap();
    }
    let mut found = tree.read_dir("dir").await.unwrap();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    assert_eq!(found.iter().map(|e| &e.name).collect::<Vec<_>>(), names.iter().collect::<Vec<_>>());
    assert!(found.iter().all(|e| e.metadata.len == 29 && !e.metadata.is_dir()));
    assert!(tree.read_dir("").await.unwrap()[0].metadata.is_dir());
    let one = names.remove(7);
    tree.rename(&format!("dir/{one}"), "dir/x", false).await.unwrap();
    let error = tree.rename("dir/x", &format!("dir/{}", names[0]), false).await.unwrap_err();
    assert_eq!(error.nt_status(), Some(NtStatus::OBJECT_NAME_COLLISION));
    tree.rename("dir/x", &format!("dir/{}", names[0]), true).await.unwrap();
    assert_eq!(std::fs::read_to_string(samba.files().join("dir").join(&names[0])).unwrap(), one);
    let error = tree.delete("dir").await.unwrap_err();
    assert_eq!(error.nt_status(), Some(NtStatus::DIRECTORY_NOT_EMPTY));
}

#[tokio::test]
async fn holes_and_ranges() {
    let Some(samba) = common::start("") else { return };
    let session = Client::connect(common::options(&samba)).await.unwrap();
    let tree = session.tree("vms").await.unwrap();
    let file = tree.open("a.raw", OpenOptions::create(Create::New)).await.unwrap();
    let mib = 1u64 << 20;
    file.set_len(64 * mib).await.unwrap();
    file.write_at(8 * mib, &pattern(0, 4 << 20)).await.unwrap();
    file.flush().await.unwrap();
    file.punch_hole(9 * mib..10 * mib).await.unwrap();
    file.punch_hole(70 * mib..71 * mib).await.unwrap();
    assert_eq!(file.len().await.unwrap(), 64 * mib);
    let mut back = vec![1; 1 << 20];
    assert_eq!(file.read_at(9 * mib, &mut back).await.unwrap(), 1 << 20);
    assert!(back.iter().all(|b| *b == 0));
    let ranges = file.allocated_ranges(0..64 * mib).await.unwrap();
    let may_hold = |at: u64| ranges.iter().any(|range| range.contains(&at));
    assert!(may_hold(8 * mib) && may_hold(12 * mib - 1) && may_hold(10 * mib));
    assert!(!may_hold(9 * mib) && !may_hold(0) && !may_hold(60 * mib), "{ranges:?}");
    assert!(ranges.windows(2).all(|pair| pair[0].end < pair[1].start));
}

#[tokio::test]
async fn one_writer_at_a_time() {
    let Some(samba) = common::start("") else { return };
    let first = Client::connect(common::options(&samba)).await.unwrap().tree("vms").await.unwrap();
    let second = Client::connect(common::options(&samba)).await.unwrap().tree("vms").await.unwrap();
    let file = first.open("disk", OpenOptions::create(Create::New)).await.unwrap();
    file.write_at(0, b"first").await.unwrap();
    let error = second.open("disk", OpenOptions::write()).await.unwrap_err();
    assert_eq!(error.nt_status(), Some(NtStatus::SHARING_VIOLATION));
    assert!(matches!(block_io::Error::from(error), block_io::Error::Busy(_)));
    let reader = second.open("disk", OpenOptions::read()).await.unwrap();
    let mut back = [0; 5];
    reader.read_at(0, &mut back).await.unwrap();
    assert_eq!(&back, b"first");
    assert!(matches!(reader.write_at(0, b"x").await, Err(block_io::Error::ReadOnly)));
    drop(reader);
    file.close().await.unwrap();
    let owner = OpenOptions { share: Share::None, ..OpenOptions::write() };
    let file = second.open("disk", owner).await.unwrap();
    let error = first.open("disk", OpenOptions::read()).await.unwrap_err();
    assert_eq!(error.nt_status(), Some(NtStatus::SHARING_VIOLATION));
    drop(file);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_requests_in_flight() {
    let Some(samba) = common::start("") else { return };
    let options = ConnectOptions { encryption: Encryption::Required, ..common::options(&samba) };
    let tree = Client::connect(options).await.unwrap().tree("vms").await.unwrap();
    let file = tree.open("disk", OpenOptions::create(Create::New)).await.unwrap();
    let file = std::sync::Arc::new(file);
    file.set_len(64 << 20).await.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..64u64 {
        let file = std::sync::Arc::clone(&file);
        tasks.spawn(async move {
            for round in 0..20u64 {
                let at = ((task * 20 + round) * 48 * 1024) % (60 << 20);
                let len = if round % 7 == 0 { 300_000 } else { 4096 };
                file.write_at(at, &pattern(at, len)).await.unwrap();
                let mut back = vec![0; len];
                assert_eq!(file.read_at(at, &mut back).await.unwrap(), len);
                assert!(back == pattern(at, len), "data differ at {at}");
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    file.flush().await.unwrap();
}

/// A durable open that nobody closed would keep others out for a minute.
#[tokio::test]
async fn a_dropped_file_is_soon_free_for_others() {
    let Some(samba) = common::start("") else { return };
    for drop_file_first in [true, false] {
        let session = Client::connect(common::options(&samba)).await.unwrap();
        let tree = session.tree("vms").await.unwrap();
        let owner = OpenOptions { share: Share::None, ..OpenOptions::create(Create::OpenOrNew) };
        let file = tree.open("disk", owner).await.unwrap();
        file.write_at(0, b"x").await.unwrap();
        if drop_file_first {
            drop(file);
            drop((session, tree));
        } else {
            drop((session, tree));
            drop(file);
        }
        let other =
            Client::connect(common::options(&samba)).await.unwrap().tree("vms").await.unwrap();
        let opened = tokio::time::timeout(Duration::from_secs(20), async {
            while other.open("disk", owner).await.is_err() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        opened.await.expect("the file stays in use");
    }
}

/// Samba agrees to reserve space for a file as long as it is, and does nothing.
#[tokio::test]
async fn space_that_was_not_reserved_is_not_claimed() {
    let Some(samba) = common::start("") else { return };
    let session = Client::connect(common::options(&samba)).await.unwrap();
    let tree = session.tree("vms").await.unwrap();
    let file = tree.open("fixed", OpenOptions::create(Create::New)).await.unwrap();
    file.set_len(8 << 20).await.unwrap();
    file.write_at(100, b"kept").await.unwrap();
    for range in [1 << 20..8 << 20, 0..1 << 20] {
        let answer = file.allocate(range).await;
        assert!(matches!(answer, Err(block_io::Error::Unsupported(_))), "{answer:?}");
    }
    assert_eq!(file.len().await.unwrap(), 8 << 20);
    let mut back = [0; 4];
    file.read_at(100, &mut back).await.unwrap();
    assert_eq!(&back, b"kept");
}

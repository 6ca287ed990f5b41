//! Our client against our server: every dialect, signature and cipher, and a lost server.

use std::{path::Path, sync::Arc, time::Duration};

use block_io::File;
use smb_client::{
    Client, ConnectOptions, Create, Encryption, Error, Login, OpenOptions, Session, Signing,
};
use smb_protocol::{
    Dialect, NtStatus,
    crypto::{Cipher, SigningAlgorithm},
};
use smbd::{Running, Server, config::Config};
use test_support::pattern;

const PASSWORD: &str = "ge heim-42";

struct Host {
    directory: tempfile::TempDir,
    port: u16,
    running: Option<Running>,
    server_options: &'static str,
}

impl Host {
    fn start(server_options: &'static str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("share")).unwrap();
        let mut host = Self { directory, port: 0, running: None, server_options };
        host.up();
        host
    }

    fn up(&mut self) {
        let d = self.directory.path().display();
        let text = format!(
            "[server]\nlisten = [\"127.0.0.1:{}\"]\nstate_dir = \"{d}/state\"\n{}\n\
             [[user]]\nname = \"admin\"\npassword = \"{PASSWORD}\"\n\
             [[share]]\nname = \"vms\"\npath = \"{d}/share\"\nusers = [\"admin\"]\n\
             [[share]]\nname = \"sealed\"\npath = \"{d}/share\"\nusers = [\"admin\"]\n\
             encryption = \"required\"\n",
            self.port, self.server_options
        );
        let config = Config::parse(&text, Path::new("smbd.toml")).unwrap();
        let running = smbd::start(Arc::new(Server::new(config).unwrap())).unwrap();
        self.port = running.addresses()[0].port();
        self.running = Some(running);
    }

    async fn down(&mut self) {
        self.running.take().unwrap().drain().await;
    }

    fn options(&self) -> ConnectOptions {
        ConnectOptions {
            reconnect_timeout: Duration::from_secs(20),
            ..ConnectOptions::new("127.0.0.1", self.port, Login::new("admin", PASSWORD))
        }
    }
}

/// Writes, reads back, grows, cuts, flushes and deletes one file.
async fn exercise(session: &Session, share: &str) {
    let tree = session.tree(share).await.unwrap();
    let file = tree.open("a.bin", OpenOptions::create(Create::New)).await.unwrap();
    file.write_at(0, &pattern(0, 3_000_001)).await.unwrap();
    let at = 2_999_000;
    file.write_at(at, &pattern(at, 5000)).await.unwrap();
    file.flush().await.unwrap();
    assert_eq!(file.len().await.unwrap(), at + 5000);
    let mut back = vec![0; 3_500_000];
    assert_eq!(file.read_at(0, &mut back).await.unwrap(), 3_004_000);
    assert!(back[..3_004_000] == pattern(0, 3_004_000), "data differ");
    file.set_len(8 << 20).await.unwrap();
    file.punch_hole(1 << 20..2 << 20).await.unwrap();
    assert_eq!(file.read_at(1 << 20, &mut back[..1 << 20]).await.unwrap(), 1 << 20);
    assert!(back[..1 << 20].iter().all(|b| *b == 0));
    let ranges = file.allocated_ranges(0..8 << 20).await.unwrap();
    let may_hold = |at: u64| ranges.iter().any(|range| range.contains(&at));
    assert!(may_hold(0) && may_hold(3_003_999) && !may_hold(7 << 20), "{ranges:?}");
    file.allocate(0..8 << 20).await.unwrap();
    assert_eq!(tree.stat("a.bin").await.unwrap().allocated, 8 << 20);
    file.set_len(100).await.unwrap();
    assert_eq!(file.read_at(50, &mut back).await.unwrap(), 50);
    file.close().await.unwrap();
    assert_eq!(tree.stat("a.bin").await.unwrap().len, 100);
    tree.rename("a.bin", "b.bin", false).await.unwrap();
    let names: Vec<_> = tree.read_dir("").await.unwrap().into_iter().map(|e| e.name).collect();
    assert_eq!(names, ["b.bin"]);
    tree.delete("b.bin").await.unwrap();
    assert!(!tree.exists("b.bin").await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_dialect_signature_and_cipher() {
    let host = Host::start("signing = \"enabled\"");
    for dialect in [Dialect::SMB_2_1, Dialect::SMB_3_0, Dialect::SMB_3_0_2, Dialect::SMB_3_1_1] {
        for signing in [Signing::Required, Signing::IfRequired] {
            let dialects = (dialect, dialect);
            let options = ConnectOptions { dialects, signing, ..host.options() };
            let session = Client::connect(options).await.unwrap();
            assert_eq!(session.dialect().await.unwrap(), dialect);
            session.echo().await.unwrap();
            exercise(&session, "vms").await;
        }
        if dialect.is_smb3() {
            let options = ConnectOptions {
                dialects: (dialect, dialect),
                encryption: Encryption::Required,
                ..host.options()
            };
            exercise(&Client::connect(options).await.unwrap(), "vms").await;
        }
    }
    for cipher in [Cipher::Aes128Gcm, Cipher::Aes128Ccm, Cipher::Aes256Gcm, Cipher::Aes256Ccm] {
        let options = ConnectOptions {
            ciphers: vec![cipher],
            encryption: Encryption::Required,
            ..host.options()
        };
        exercise(&Client::connect(options).await.unwrap(), "vms").await;
    }
    for algorithm in
        [SigningAlgorithm::AesGmac, SigningAlgorithm::AesCmac, SigningAlgorithm::HmacSha256]
    {
        let options = ConnectOptions { signing_algorithms: vec![algorithm], ..host.options() };
        exercise(&Client::connect(options).await.unwrap(), "vms").await;
    }
}

/// Without signatures the server puts the data of large writes into the file as they come.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_unsigned_writes_land_where_they_belong() {
    const LEN: usize = 24 << 20;
    let host = Host::start("signing = \"enabled\"");
    let options = ConnectOptions { signing: Signing::IfRequired, ..host.options() };
    let tree = Client::connect(options).await.unwrap().tree("vms").await.unwrap();
    let file = tree.open("large", OpenOptions::create(Create::New)).await.unwrap();
    let mut model = vec![0; LEN];
    let (mut random, data) = (7u64, pattern(1, LEN));
    for turn in 0..12 {
        // Of each quarter a part, so that writes at one time do not meet.
        let parts = [0, 1, 2, 3].map(|quarter: usize| {
            random = random.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23) + turn;
            let start = quarter * LEN / 4 + random as usize % (LEN / 8);
            let len = 1 + (random >> 32) as usize % (LEN / 8);
            let from = (random >> 20) as usize % (LEN / 2);
            model[start..start + len].copy_from_slice(&data[from..from + len]);
            (start as u64, &data[from..from + len])
        });
        let [a, b, c, d] = parts.map(|(start, part)| file.write_at(start, part));
        tokio::try_join!(a, b, c, d).unwrap();
    }
    file.close().await.unwrap();
    let mut stored = std::fs::read(host.directory.path().join("share/large")).unwrap();
    assert!(stored.len() <= LEN);
    stored.resize(LEN, 0);
    assert!(stored == model, "the file differs from the model");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_share_that_demands_encryption_gets_it() {
    let host = Host::start("encryption = \"off\"");
    let session = Client::connect(host.options()).await.unwrap();
    assert!(!session.is_encrypted().await.unwrap());
    exercise(&session, "sealed").await;
    assert!(session.is_encrypted().await.unwrap());
    let options = ConnectOptions { ciphers: Vec::new(), ..host.options() };
    let session = Client::connect(options).await.unwrap();
    session.tree("vms").await.unwrap();
    assert!(session.tree("sealed").await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_are_named() {
    let host = Host::start("");
    let login = Login::new("admin", "falsch");
    let error = Client::connect(ConnectOptions { login, ..host.options() }).await.unwrap_err();
    assert!(matches!(error, Error::Logon { status: NtStatus::LOGON_FAILURE, .. }), "{error}");
    let session = Client::connect(host.options()).await.unwrap();
    let error = session.tree("nowhere").await.unwrap_err();
    assert_eq!(error.nt_status(), Some(NtStatus::BAD_NETWORK_NAME));
    let tree = session.tree("vms").await.unwrap();
    let file = tree.open("disk", OpenOptions::create(Create::New)).await.unwrap();
    let other = Client::connect(host.options()).await.unwrap().tree("vms").await.unwrap();
    let error = other.open("disk", OpenOptions::write()).await.unwrap_err();
    assert_eq!(error.nt_status(), Some(NtStatus::SHARING_VIOLATION));
    file.close().await.unwrap();
    other.open("disk", OpenOptions::write()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_server_does_not_lose_writes_silently() {
    let mut host = Host::start("");
    let session = Client::connect(host.options()).await.unwrap();
    let tree = session.tree("vms").await.unwrap();
    let again = OpenOptions { reopen: true, ..OpenOptions::create(Create::New) };
    let clean = tree.open("clean", again).await.unwrap();
    let dirty = tree.open("dirty", again).await.unwrap();
    clean.write(0, b"first").await.unwrap();
    clean.sync().await.unwrap();
    dirty.write(0, b"first").await.unwrap();
    host.down().await;
    let read = tokio::spawn(async move {
        let mut back = [0; 5];
        (clean.read(0, &mut back).await.map(|_| back), clean)
    });
    host.up();
    let (back, clean) = read.await.unwrap();
    assert_eq!(&back.unwrap(), b"first");
    clean.write(0, b"FIRST").await.unwrap();
    clean.sync().await.unwrap();
    // An open that survived keeps its writes; one that did not must say so.
    match dirty.sync().await {
        Ok(()) => {
            let mut back = [0; 5];
            dirty.read(0, &mut back).await.unwrap();
            assert_eq!(&back, b"first");
        }
        Err(error) => assert!(matches!(error, Error::WritesLost { .. }), "{error}"),
    }
}

/// Someone on the path, who leaves of the dialects that a client offers one old one.
fn downgrading(to: u16, dialect: Dialect) -> u16 {
    use std::{
        io::{Read, Write},
        net::{TcpListener, TcpStream},
        thread,
    };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        while let Ok((mut client, _)) = listener.accept() {
            let mut server = TcpStream::connect(("127.0.0.1", to)).unwrap();
            let mut frame = [0; 4];
            if client.read_exact(&mut frame).is_err() {
                continue;
            }
            let mut message = vec![0; u32::from_be_bytes(frame) as usize];
            client.read_exact(&mut message).unwrap();
            // NEGOTIATE (MS-SMB2 2.2.3): one dialect, and no contexts, behind 64 bytes of header.
            message[66..68].copy_from_slice(&1u16.to_le_bytes());
            message[92..100].fill(0);
            message.truncate(100);
            message.extend_from_slice(&dialect.0.to_le_bytes());
            server.write_all(&(message.len() as u32).to_be_bytes()).unwrap();
            server.write_all(&message).unwrap();
            let (mut up, mut down) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            thread::spawn(move || std::io::copy(&mut up, &mut server));
            thread::spawn(move || std::io::copy(&mut down, &mut client));
        }
    });
    port
}

/// A client notices that it was led to an older dialect before it opens a file, whichever that is
/// and whether or not it signs all it sends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_downgrade_is_noticed_before_a_file_is_opened() {
    let host = Host::start("signing = \"enabled\"");
    for dialect in [Dialect::SMB_2_1, Dialect::SMB_3_0, Dialect::SMB_3_0_2] {
        let port = downgrading(host.options().port, dialect);
        for signing in [Signing::Required, Signing::IfRequired] {
            let options = ConnectOptions {
                port,
                signing,
                reconnect_timeout: Duration::ZERO,
                ..host.options()
            };
            let session = Client::connect(options).await.unwrap();
            let tree = session.tree("vms").await;
            assert!(tree.is_err(), "{dialect:?}, {signing:?}: nothing was noticed");
        }
        // Who offers no newer one is not led anywhere.
        let dialects = (dialect, dialect);
        let session = Client::connect(ConnectOptions { dialects, ..host.options() }).await.unwrap();
        session.tree("vms").await.unwrap();
    }
    // Who must encrypt does not even begin with a dialect that cannot.
    let port = downgrading(host.options().port, Dialect::SMB_2_1);
    let encryption = Encryption::Required;
    let error = Client::connect(ConnectOptions { port, encryption, ..host.options() }).await;
    assert!(matches!(error, Err(Error::NotOffered("encryption"))));
}

/// A server that sees that a negotiation was changed ends the connection (MS-SMB2 3.3.5.15.12), as one
/// does that is killed: the client tries again, but not for ever, and says what it looks like.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_is_led_to_an_older_dialect_each_time_says_so() {
    let host = Host::start("signing = \"enabled\"");
    let port = downgrading(host.options().port, Dialect::SMB_2_1);
    let session = Client::connect(ConnectOptions { port, ..host.options() }).await.unwrap();
    let error = session.tree("vms").await.unwrap_err();
    assert!(matches!(error, Error::Unconfirmed), "{error}");
}

//! The engine over a real etcd whose members are killed and frozen, and whose answers are lost.

use std::{
    fs,
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use state_store::{
    Batch, Expect, Opened, Revision, Store, StoreError,
    etcd::{CallError, Client, EtcdStore, Guard, KeyWatchEvent, Settings, TlsFiles, wire},
};
use test_support::{
    etcd::Etcd,
    process::{foreign, run},
};

const LIMIT: Duration = Duration::from_secs(60);

fn settings(endpoints: Vec<String>) -> Settings {
    Settings { endpoints, tls: None, login: None, attempt: Duration::from_millis(500) }
}

async fn open(settings: &Settings, name: &str, node: u16, patience: Duration) -> Opened {
    let client = Client::new(settings).unwrap();
    EtcdStore::open(client, name, (node, false), None, patience).await.unwrap()
}

/// Counts a record up, each time on the condition that it is as it was left.
async fn count(store: &dyn Store, upto: u64) {
    let mut at = None;
    for n in 1..=upto {
        let expect = at.map_or(Expect::Absent, Expect::At);
        let batch = Batch::new().when(b"n".to_vec(), expect).put(b"n".to_vec(), vec![n as u8]);
        // A batch that was carried out twice, or not at all, is a conflict here or there.
        let batch = batch.put(n.to_be_bytes().to_vec(), vec![]);
        at = Some(store.commit(batch).await.unwrap());
    }
    let all = store.list(b"\0").await.unwrap();
    assert_eq!(all.entries.len() as u64, upto);
    assert!(all.entries.windows(2).all(|two| two[0].1.revision < two[1].1.revision));
}

/// Cuts every connection through it after so many pieces of answers, the last of which is lost.
struct Cutter {
    address: SocketAddr,
    cuts: Arc<AtomicU64>,
}

impl Cutter {
    fn start(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let cuts = Arc::new(AtomicU64::new(0));
        let counted = cuts.clone();
        thread::spawn(move || {
            for (n, client) in listener.incoming().map_while(Result::ok).enumerate() {
                let Ok(server) = TcpStream::connect(to) else { return };
                let (mut from, mut into) =
                    (client.try_clone().unwrap(), server.try_clone().unwrap());
                thread::spawn(move || {
                    let _ = std::io::copy(&mut from, &mut into);
                    let _ = into.shutdown(Shutdown::Both);
                });
                let counted = counted.clone();
                thread::spawn(move || {
                    let (mut server, mut client) = (server, client);
                    // The first connection reads and fences, so it has more time.
                    let most = if n == 0 { 40 } else { 6 + n % 7 };
                    let mut buffer = vec![0; 64 << 10];
                    for _ in 0..most {
                        match server.read(&mut buffer) {
                            Ok(len) if len > 0 && client.write_all(&buffer[..len]).is_ok() => {}
                            _ => break,
                        }
                    }
                    let _ = server.read(&mut buffer);
                    counted.fetch_add(1, Ordering::SeqCst);
                    let _ = client.shutdown(Shutdown::Both);
                    let _ = server.shutdown(Shutdown::Both);
                });
            }
        });
        Self { address, cuts }
    }
}

fn address(endpoint: &str) -> SocketAddr {
    endpoint.split_once("//").unwrap().1.parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_whose_answer_is_lost_is_carried_out_once() {
    let Some(etcd) = Etcd::start(1) else { return };
    let cutter = Cutter::start(address(&etcd.endpoint(0)));
    let settings = settings(vec![format!("http://{}", cutter.address)]);
    let Opened { store, .. } = open(&settings, "cut", 1, LIMIT).await;
    tokio::time::timeout(LIMIT, count(&*store, 200)).await.expect("it goes on");
    assert!(cutter.cuts.load(Ordering::SeqCst) > 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_and_a_frozen_leader_cost_a_pause() {
    let Some(mut etcd) = Etcd::start(3) else { return };
    let settings = settings(etcd.endpoints());
    let Opened { store, .. } = open(&settings, "s", 1, LIMIT).await;
    let mut watch = store.watch(b"k", Revision(0)).await.unwrap();
    let put = |n: u8| Batch::new().put(vec![b'k', n], vec![n]);
    store.commit(put(0)).await.unwrap();
    let leader = etcd.wait_for_leader();
    etcd.kill(leader);
    store.commit(put(1)).await.unwrap();
    etcd.restart(leader);
    store.commit(put(2)).await.unwrap();
    let leader = etcd.wait_for_leader();
    etcd.freeze(leader, true);
    store.commit(put(3)).await.unwrap();
    etcd.freeze(leader, false);
    store.commit(put(4)).await.unwrap();
    assert_eq!(store.list(b"k").await.unwrap().entries.len(), 5);
    for n in 0..5u8 {
        let event = tokio::time::timeout(LIMIT, watch.next()).await.expect("it goes on").unwrap();
        assert_eq!(event.changes[0].0, [b'k', n]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_has_waited_long_enough_costs_others_nothing() {
    let Some(etcd) = Etcd::start(1) else { return };
    let settings = Settings { attempt: Duration::from_secs(1), ..settings(etcd.endpoints()) };
    let client = Client::new(&settings).unwrap();
    let put = wire::PutRequest { key: b"k".to_vec(), value: b"v".to_vec(), lease: 0 };
    let put = wire::TxnRequest {
        compare: Vec::new(),
        success: vec![wire::RequestOp { request: Some(wire::Op::Put(put)) }],
        failure: Vec::new(),
    };
    let first = client.txn(&put).await.unwrap().header.unwrap().revision;
    let mut watch = client.watch(b"k", first);
    etcd.freeze(0, true);
    let thaw = async {
        // A read has one attempt, and what a majority makes durable has several.
        let read = client.get(b"k").await;
        etcd.freeze(0, false);
        read
    };
    let (written, read) = tokio::join!(client.txn(&put), thaw);
    assert!(matches!(read, Err(CallError::Lost(_))), "{read:?}");
    let revision = written.expect("the member has only stood still").header.unwrap().revision;
    let event = tokio::time::timeout(LIMIT, watch.next()).await.expect("it goes on").unwrap();
    assert!(matches!(event, KeyWatchEvent::Changed { revision: at, .. } if at == revision));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_quorum_nothing_is_known_and_what_was_given_keeps_its_place() {
    let Some(mut etcd) = Etcd::start(3) else { return };
    let settings = settings(etcd.endpoints());
    let Opened { store, .. } = open(&settings, "s", 1, Duration::from_secs(2)).await;
    store.commit(Batch::new().put(b"a".to_vec(), vec![])).await.unwrap();
    etcd.kill(0);
    etcd.kill(1);
    let first = store.commit(Batch::new().put(b"b".to_vec(), vec![1]));
    let second =
        store.commit(Batch::new().when(b"b".to_vec(), Expect::Absent).put(b"c".to_vec(), vec![]));
    let last = Batch::new().put(b"b".to_vec(), vec![2]).put(b"d".to_vec(), vec![]);
    let last = store.commit(last);
    for commit in [first, second, last] {
        assert!(matches!(commit.await, Err(StoreError::Unavailable(_))));
    }
    assert!(matches!(store.read(b"a").await, Err(StoreError::Unavailable(_))));
    assert!(matches!(store.list(b"").await, Err(StoreError::Unavailable(_))));
    etcd.restart(0);
    etcd.wait_for_leader();
    // Behind what nobody waits for any more.
    let end = loop {
        match store.commit(Batch::new().put(b"end".to_vec(), vec![])).await {
            Ok(revision) => break revision,
            Err(StoreError::Unavailable(_)) => {}
            Err(error) => panic!("{error}"),
        }
    };
    assert_eq!(store.read(b"b").await.unwrap().unwrap().value, [2]);
    assert!(store.read(b"c").await.unwrap().is_none());
    assert!(store.read(b"d").await.unwrap().unwrap().revision <= end);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_opens_a_store_alone_or_takes_its_guard_has_it_alone() {
    let Some(etcd) = Etcd::start(1) else { return };
    let settings = settings(etcd.endpoints());
    let client = Client::new(&settings).unwrap();
    let own = |name: &'static [u8]| async {
        let put = wire::PutRequest { key: b"role".to_vec(), value: name.to_vec(), lease: 0 };
        let success = vec![wire::RequestOp { request: Some(wire::Op::Put(put)) }];
        let request = wire::TxnRequest { success, ..wire::TxnRequest::default() };
        client.txn(&request).await.unwrap().header.unwrap().revision
    };
    let open = |node: u16, revision: i64| {
        let guard = Some(Guard { key: b"role".to_vec(), revision });
        EtcdStore::open(client.clone(), "s", (node, true), guard, LIMIT)
    };
    let first = own(b"first").await;
    let one = open(1, first).await.unwrap().store;
    one.commit(Batch::new().put(b"k".to_vec(), b"1".to_vec())).await.unwrap();
    let second = own(b"second").await;
    // Before the second has even opened it.
    let late = one.commit(Batch::new().put(b"k".to_vec(), b"late".to_vec())).await;
    assert!(matches!(late, Err(StoreError::Fenced { .. })), "{late:?}");
    let late = open(1, first).await.unwrap_err();
    assert!(matches!(late, StoreError::Fenced { .. }), "{late:?}");
    let two = open(2, second).await.unwrap();
    assert_eq!(two.records[&b"k"[..]], b"1");
    let back = EtcdStore::open(client.clone(), "s", (3, true), None, LIMIT).await.unwrap();
    let late = two.store.commit(Batch::new().put(b"k".to_vec(), b"2".to_vec())).await;
    assert!(matches!(late, Err(StoreError::Fenced { .. })), "{late:?}");
    back.store.commit(Batch::new().put(b"k".to_vec(), b"3".to_vec())).await.unwrap();
    // What another program has put there is noticed.
    let put = wire::PutRequest { key: b"s/r/x".to_vec(), value: b"x".to_vec(), lease: 0 };
    let success = vec![wire::RequestOp { request: Some(wire::Op::Put(put)) }];
    client.txn(&wire::TxnRequest { success, ..wire::TxnRequest::default() }).await.unwrap();
    assert!(matches!(back.store.list(b"").await, Err(StoreError::Foreign(_))));
}

fn etcdctl(etcd: &Etcd, words: &[&str]) {
    let program = foreign("etcdctl").expect("it comes with etcd-client");
    let mut command = Command::new(program);
    command.env("ETCDCTL_API", "3").arg("--endpoints").arg(etcd.endpoint(0)).args(words);
    let output = run(&mut command, LIMIT);
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_that_asks_who_we_are_is_told_and_what_it_compacted_is_noticed() {
    if foreign("etcdctl").is_none() {
        return;
    }
    // Tokens that are old after a second.
    let simple = ["--auth-token-ttl=1".to_owned()];
    let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let Some(etcd) = Etcd::start_with(1, loopback, "http", &simple) else { return };
    let plain = settings(etcd.endpoints());
    let Opened { store, .. } = open(&plain, "/b/s", 1, LIMIT).await;
    let first = store.commit(Batch::new().put(b"k".to_vec(), vec![1])).await.unwrap();
    let last = store.commit(Batch::new().put(b"k".to_vec(), vec![2])).await.unwrap();
    etcdctl(&etcd, &["compact", &last.0.to_string()]);
    let watch = store.watch(b"", Revision(first.0 - 1)).await;
    assert!(matches!(watch, Err(StoreError::Compacted(_))), "{watch:?}");
    store.watch(b"", last).await.unwrap();
    for words in [
        &["user", "add", "root:pw"][..],
        &["user", "grant-role", "root", "root"],
        &["user", "add", "smbd:secret"],
        &["role", "add", "files"],
        &["role", "grant-permission", "files", "readwrite", "/b/", "/b0"],
        &["user", "grant-role", "smbd", "files"],
        &["auth", "enable"],
    ] {
        etcdctl(&etcd, words);
    }
    let nobody = store.commit(Batch::new().put(b"k".to_vec(), vec![3])).await;
    assert!(matches!(nobody, Err(StoreError::Unavailable(_))), "{nobody:?}");
    let login = |password: &str| Settings {
        login: Some(("smbd".to_owned(), password.to_owned().into())),
        ..plain.clone()
    };
    let wrong = Client::new(&login("wrong")).unwrap();
    assert!(matches!(wrong.get(b"/b/x").await, Err(CallError::Refused { .. })));
    let Opened { store, .. } = open(&login("secret"), "/b/s", 1, LIMIT).await;
    for n in 0..4 {
        store.commit(Batch::new().put(b"k".to_vec(), vec![n])).await.unwrap();
        // Longer than a token lives.
        tokio::time::sleep(Duration::from_millis(700)).await;
    }
    let elsewhere = Client::new(&login("secret")).unwrap().get(b"/other").await;
    assert!(matches!(elsewhere, Err(CallError::Refused { .. })), "{elsewhere:?}");
}

/// An authority, and a certificate of it with its key, in a folder.
fn certificates(folder: &Path) {
    let authority = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca = params.self_signed(&authority).unwrap();
    let issuer = rcgen::Issuer::new(params, authority);
    let key = rcgen::KeyPair::generate().unwrap();
    let names = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
    let mut params = rcgen::CertificateParams::new(names).unwrap();
    params.extended_key_usages = vec![
        rcgen::ExtendedKeyUsagePurpose::ServerAuth,
        rcgen::ExtendedKeyUsagePurpose::ClientAuth,
    ];
    let certificate = params.signed_by(&key, &issuer).unwrap();
    fs::write(folder.join("ca.pem"), ca.pem()).unwrap();
    fs::write(folder.join("own.pem"), certificate.pem()).unwrap();
    fs::write(folder.join("own-key.pem"), key.serialize_pem()).unwrap();
    fs::set_permissions(folder.join("own-key.pem"), fs::Permissions::from_mode(0o600)).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_is_trusted_by_its_authority_and_trusts_us_by_our_certificate() {
    let (folder, strange) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    certificates(folder.path());
    certificates(strange.path());
    let file = |name: &str| folder.path().join(name).display().to_string();
    let arguments = [
        "--client-cert-auth".to_owned(),
        format!("--trusted-ca-file={}", file("ca.pem")),
        format!("--cert-file={}", file("own.pem")),
        format!("--key-file={}", file("own-key.pem")),
    ];
    let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let Some(etcd) = Etcd::start_with(1, loopback, "https", &arguments) else { return };
    let tls = |ca: &Path, own: Option<&Path>| Settings {
        tls: Some(TlsFiles {
            ca: ca.join("ca.pem"),
            own: own.map(|own| (own.join("own.pem"), own.join("own-key.pem"))),
        }),
        ..settings(etcd.endpoints())
    };
    let ours = folder.path();
    let Opened { store, .. } = open(&tls(ours, Some(ours)), "s", 1, LIMIT).await;
    store.commit(Batch::new().put(b"k".to_vec(), vec![1])).await.unwrap();
    for wrong in [tls(ours, None), tls(ours, Some(strange.path())), tls(strange.path(), Some(ours))]
    {
        let client = Client::new(&wrong).unwrap();
        assert!(matches!(client.get(b"k").await, Err(CallError::Lost(_))));
    }
    let missing = Settings { tls: None, ..settings(etcd.endpoints()) };
    assert!(Client::new(&missing).unwrap_err().contains("authorities"));
    let none = Client::new(&tls(&ours.join("none"), None)).unwrap_err();
    assert!(none.contains("none/ca.pem"), "{none}");
}

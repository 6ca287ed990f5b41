//! SMB Direct between our client and our server over iWARP on the loopback, and peers that keep no rule.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    sync::Arc,
};

use metric_catalogue::Page;
use rdma::{
    Connection as Direct, Lost, Parameters,
    iwarp::{self, Iwarp, Options},
    provider::{Endpoint, Message, Provider},
};
use smb_client::{
    Client, ConnectOptions, Create, Encryption, Login, OpenOptions, Session, Signing,
};
use smb_protocol::Dialect;
use smb_server::{meters, transport::Carrier};
use smbd::{Running, Server, config::Config};

const PASSWORD: &str = "ge heim-42";
const MIB: usize = 1 << 20;

/// A server with one share, on TCP and on SMB Direct.
struct Host {
    directory: tempfile::TempDir,
    running: Running,
}

impl Host {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let d = directory.path().display();
        std::fs::create_dir(directory.path().join("files")).unwrap();
        let text = format!(
            "[server]\nlisten = [\"127.0.0.1:0\"]\nrdma_listen = [\"127.0.0.1:0\"]\n\
             state_dir = \"{d}/state\"\nsigning = \"enabled\"\nencryption = \"offered\"\n\
             [[user]]\nname = \"admin\"\npassword = \"{PASSWORD}\"\n\
             [[share]]\nname = \"files\"\npath = \"{d}/files\"\nusers = [\"admin\"]\n"
        );
        let config = Config::parse(&text, Path::new("smbd.toml")).unwrap();
        let running = smbd::start(Arc::new(Server::new(config).unwrap())).unwrap();
        Self { directory, running }
    }

    fn direct(&self) -> SocketAddr {
        self.running.rdma_addresses()[0]
    }

    fn options(&self, iwarp: Options) -> ConnectOptions {
        let login = Login::new("admin", PASSWORD);
        let network = smb_client::Direct::over(Arc::new(Iwarp { options: iwarp }));
        ConnectOptions {
            signing: Signing::IfRequired,
            network: Some(Arc::new(network)),
            ..ConnectOptions::new("127.0.0.1", self.direct().port(), login)
        }
    }

    async fn over_tcp(&self) -> Session {
        let port = self.running.addresses()[0].port();
        let options = ConnectOptions::new("127.0.0.1", port, Login::new("admin", PASSWORD));
        Client::connect(options).await.unwrap()
    }

    /// Bytes of messages that the server has received and sent.
    fn messages(&self) -> (u64, u64) {
        let mut page = Page::default();
        meters::show(self.running.server(), &mut page);
        let text = page.text();
        let number = |name: &str| {
            let line = text.lines().find(|line| line.starts_with(&format!("{name} ")));
            line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).expect(name)
        };
        (number("bulkhead_smbd_received_bytes_total"), number("bulkhead_smbd_sent_bytes_total"))
    }

    fn carriers(&self) -> Vec<Carrier> {
        let sessions = self.running.server().sessions.all();
        let mut all = Vec::new();
        sessions.iter().for_each(|it| all.extend(it.channels().iter().map(|at| at.carrier)));
        all
    }
}

fn content(len: usize) -> Vec<u8> {
    (0..len).map(|at| ((at * 31) >> 4) as u8 ^ (at >> 16) as u8).collect()
}

/// Writes and reads 64 MiB, which must be the same.
async fn there_and_back(host: &Host, options: ConnectOptions) {
    let session = Client::connect(options).await.unwrap();
    assert_eq!(host.carriers(), [Carrier::Rdma]);
    let tree = session.tree("files").await.unwrap();
    let file = tree.open("f", OpenOptions::create(Create::OpenOrNew)).await.unwrap();
    let data = content(64 * MIB);
    file.write(0, &data).await.unwrap();
    file.sync().await.unwrap();
    let mut again = vec![0; data.len()];
    assert_eq!(file.read(0, &mut again).await.unwrap(), data.len());
    assert!(again == data);
    assert!(std::fs::read(host.directory.path().join("files/f")).unwrap() == data);
    // Beyond the end, and across it.
    assert_eq!(file.read(data.len() as u64, &mut again[..9000]).await.unwrap(), 0);
    assert_eq!(file.read(data.len() as u64 - 5000, &mut again[..9000]).await.unwrap(), 5000);
    block_io::File::close(&file).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_go_by_rdma_in_the_clear_or_encrypted_and_in_messages_where_these_are_signed() {
    let plain = Options::default;
    for (iwarp, encryption) in [
        (plain(), Encryption::IfRequired),
        (Options { crc: true, ..plain() }, Encryption::IfRequired),
        (Options { frame: Some(1400), revision: 1, ..plain() }, Encryption::IfRequired),
        (plain(), Encryption::Required),
    ] {
        let host = Host::start();
        let options = ConnectOptions { encryption, ..host.options(iwarp.clone()) };
        there_and_back(&host, options).await;
        let (received, sent) = host.messages();
        assert!(received < MIB as u64 && sent < MIB as u64, "{received} and {sent} in messages");
        host.running.drain().await;
    }
    // Signed; and encrypted by a dialect that has no transform of data by RDMA.
    let old = (Dialect::SMB_3_0_2, Dialect::SMB_3_0_2);
    let new = (Dialect::SMB_3_1_1, Dialect::SMB_3_1_1);
    for (dialects, encryption) in [(new, Encryption::IfRequired), (old, Encryption::Required)] {
        let host = Host::start();
        let signing = Signing::Required;
        let options = ConnectOptions { signing, encryption, dialects, ..host.options(plain()) };
        there_and_back(&host, options).await;
        let (received, sent) = host.messages();
        let all = 64 * MIB as u64;
        assert!(received > all && sent > all, "{received} and {sent} in messages");
        host.running.drain().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_server_tells_where_smb_direct_is_and_which_channel_has_it() {
    let host = Host::start();
    let direct = Client::connect(host.options(Options::default())).await.unwrap();
    let tcp = host.over_tcp().await;
    direct.echo().await.unwrap();
    tcp.echo().await.unwrap();
    let mut carriers: Vec<&str> = host.carriers().iter().map(|carrier| carrier.name()).collect();
    carriers.sort_unstable();
    assert_eq!(carriers, ["rdma", "tcp"]);
    drop((direct, tcp));
    host.running.drain().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_connection_is_made_anew_and_what_was_under_way_goes_on() {
    let host = Host::start();
    let session = Client::connect(host.options(Options::default())).await.unwrap();
    let tree = session.tree("files").await.unwrap();
    let file = tree.open("f", OpenOptions::create(Create::New)).await.unwrap();
    let data = content(8 * MIB);
    for round in 0..4 {
        let at = round * data.len() as u64;
        let (written, lost) = tokio::join!(file.write(at, &data), session.reset());
        written.unwrap();
        lost.unwrap();
        let mut again = vec![0; data.len()];
        assert_eq!(file.read(at, &mut again).await.unwrap(), data.len());
        assert!(again == data, "round {round}");
    }
    drop((file, tree, session));
    host.running.drain().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_smb_direct_is_not_there_a_client_goes_on_by_tcp_and_comes_back_with_the_next_connection()
 {
    let host = Host::start();
    // A port where nobody is: it was bound a moment ago, and nobody listens.
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = nobody.local_addr().unwrap().port();
    drop(nobody);
    for (port, carrier) in [(port, Carrier::Tcp), (host.direct().port(), Carrier::Rdma)] {
        let network = smb_client::Direct::iwarp().at_port_or_tcp(port);
        let options = ConnectOptions {
            network: Some(Arc::new(network)),
            port: host.running.addresses()[0].port(),
            ..host.options(Options::default())
        };
        let session = Client::connect(options).await.unwrap();
        session.echo().await.unwrap();
        assert!(host.carriers().contains(&carrier));
    }
    host.running.drain().await;
}

/// A connection of SMB Direct that nobody has said anything on.
async fn stranger(host: &Host) -> Box<dyn Endpoint> {
    Iwarp::default().connect(host.direct()).await.unwrap()
}

/// What becomes of a connection on which this was sent behind nothing: the reason why it ended.
async fn end_of(mut endpoint: Box<dyn Endpoint>, messages: Vec<Vec<u8>>) -> Lost {
    for id in 0..messages.len() + 8 {
        endpoint.post_receive(8192).unwrap();
        if let Some(head) = messages.get(id) {
            let (id, head) = (id as u64, head.clone());
            let body = bytes::Bytes::new();
            endpoint.post_send(Message { id, head, body, invalidate: None }).unwrap();
        }
    }
    loop {
        match std::future::poll_fn(|context| endpoint.poll(context)).await {
            Ok(_) => {}
            Err(lost) => return lost,
        }
    }
}

fn over(lost: &Lost) -> bool {
    matches!(lost, Lost::Ended | Lost::Terminated(_) | Lost::Network(_))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peers_that_keep_no_rule_are_sent_away_and_others_do_not_notice() {
    let host = Host::start();
    let tcp = host.over_tcp().await;
    let tree = tcp.tree("files").await.unwrap();
    let file = tree.open("other", OpenOptions::create(Create::New)).await.unwrap();
    let negotiate = || {
        rdma::smbd::NegotiateRequest {
            min_version: 0x100,
            max_version: 0x100,
            credits_requested: 10,
            preferred_send_size: 1024,
            max_receive_size: 1024,
            max_fragmented_size: 131_072,
        }
        .encode()
    };
    let data = |granted: u16, length: u32, remaining: u32| {
        let (offset, credits_requested, flags) = (if length > 0 { 24 } else { 0 }, 10, 0);
        let credits_granted = granted;
        let head = rdma::smbd::Data {
            credits_requested,
            credits_granted,
            flags,
            remaining,
            offset,
            length,
        };
        let mut bytes = head.encode();
        bytes.resize(bytes.len() + length as usize, 7);
        bytes
    };
    let cases: Vec<(&str, Vec<Vec<u8>>)> = vec![
        ("no negotiation", vec![b"\xfeSMB and more than twenty bytes".to_vec()]),
        ("a short one", vec![vec![0; 19]]),
        ("another version", vec![[&[2, 2, 2, 2], &negotiate()[4..]].concat()]),
        ("too many messages", [vec![negotiate()], vec![data(0, 900, 3000); 40]].concat()),
        ("a message that is too long", vec![negotiate(), data(1, 1001, 0)]),
        ("fragments beyond what was agreed on", vec![negotiate(), data(9, 500, u32::MAX)]),
        ("fragments that do not fit", vec![negotiate(), data(9, 500, 500), data(1, 100, 100)]),
        ("no SMB", vec![negotiate(), data(9, 500, 0)]),
    ];
    for (name, messages) in cases {
        let lost = end_of(stranger(&host).await, messages).await;
        assert!(over(&lost), "{name}: {lost}");
        file.write(0, name.as_bytes()).await.unwrap();
    }
    // SMB over TCP at the port of SMB Direct, and iWARP that stops at any byte.
    for sent in [&b"\0\0\0\x44\xfeSMB"[..], b"GET / HTTP/1.1\r\n\r\n"] {
        let (to, sent) = (host.direct(), sent.to_vec());
        tokio::task::spawn_blocking(move || {
            let mut stream = TcpStream::connect(to).unwrap();
            stream.write_all(&sent).unwrap();
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest);
            assert!(rest.is_empty());
        })
        .await
        .unwrap();
    }
    let request = [&iwarp::KEY_REQUEST[..], &[0, 2, 0, 0]].concat();
    for cut in 0..=request.len() {
        let mut stream = TcpStream::connect(host.direct()).unwrap();
        stream.write_all(&request[..cut]).unwrap();
    }
    // Markers are refused politely: an answer says so.
    let marked = [&iwarp::KEY_REQUEST[..], &[0x80, 2, 0, 0]].concat();
    let to = host.direct();
    let answer = tokio::task::spawn_blocking(move || {
        let mut stream = TcpStream::connect(to).unwrap();
        stream.write_all(&marked).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        answer
    });
    let answer = answer.await.unwrap();
    let answer = iwarp::StartupFrame::parse(&answer, iwarp::Kind::Reply).unwrap();
    assert!(answer.rejected && !answer.markers);
    // After all that a client is served there, and the other one never lost its connection.
    let session = Client::connect(host.options(Options::default())).await.unwrap();
    session.echo().await.unwrap();
    let mut read = [0; 6];
    file.read(0, &mut read).await.unwrap();
    assert_eq!(&read, b"no SMB");
    drop((session, file, tree, tcp));
    host.running.drain().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_takes_no_answers_is_sent_away_by_its_time() {
    // It negotiates SMB Direct, gives no credits, and never gets an answer; the server's limit for who
    // has not logged in ends it.
    let directory = tempfile::tempdir().unwrap();
    let d = directory.path().display();
    let text = format!(
        "[server]\nlisten = [\"127.0.0.1:0\"]\nrdma_listen = [\"127.0.0.1:0\"]\n\
         state_dir = \"{d}/state\"\n[limits]\nauthentication_seconds = 1\n"
    );
    let config = Config::parse(&text, Path::new("smbd.toml")).unwrap();
    let running = smbd::start(Arc::new(Server::new(config).unwrap())).unwrap();
    let endpoint = Iwarp::default().connect(running.rdma_addresses()[0]).await.unwrap();
    let mut silent = Direct::active(endpoint, Parameters::active()).await.unwrap();
    assert!(silent.receive().await.is_none());
    assert!(over(&silent.handle().ended().await));
    running.drain().await;
}

//! A connection of SMB Direct without a network: the real client over the provider in process.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use block_io::File;
use bytes::Bytes;
use rdma::{
    Connection, Memory, Parameters, Part,
    in_process::Fabric,
    provider::{Completion, Endpoint, Listener, Lost, Message, Provider},
};
use smb_client::{ConnectOptions, Create, Direct, Encryption, Login, OpenOptions, Signing};
use tokio::sync::watch;

use crate::{
    Server,
    census::{Census, Room},
    config::Config,
    transport::Rdma,
};

/// An endpoint that counts the messages by which a right to the peer's memory ends.
#[derive(Debug)]
struct Counting {
    endpoint: Box<dyn Endpoint>,
    counts: Arc<Counts>,
}

/// Reads and writes of clients' memory, and messages by which a right to it ends.
#[derive(Debug, Default)]
struct Counts {
    transfers: AtomicUsize,
    invalidations: AtomicUsize,
}

impl Endpoint for Counting {
    fn peer(&self) -> SocketAddr {
        self.endpoint.peer()
    }

    fn local(&self) -> SocketAddr {
        self.endpoint.local()
    }

    fn unacknowledged(&self) -> Box<dyn Fn() -> u64 + Send + Sync> {
        self.endpoint.unacknowledged()
    }

    fn register(&mut self, memory: Memory) -> Result<Part, Memory> {
        self.endpoint.register(memory)
    }

    fn deregister(&mut self, token: u32) -> Option<Memory> {
        self.endpoint.deregister(token)
    }

    fn post_receive(&mut self, len: usize) -> Result<(), Lost> {
        self.endpoint.post_receive(len)
    }

    fn post_send(&mut self, message: Message) -> Result<(), Lost> {
        if message.invalidate.is_some() {
            self.counts.invalidations.fetch_add(1, Ordering::Relaxed);
        }
        self.endpoint.post_send(message)
    }

    fn post_read(&mut self, id: u64, from: Vec<Part>, buffer: Vec<u8>) -> Result<(), Lost> {
        self.counts.transfers.fetch_add(1, Ordering::Relaxed);
        self.endpoint.post_read(id, from, buffer)
    }

    fn post_write(&mut self, id: u64, to: Vec<Part>, data: Bytes) -> Result<(), Lost> {
        self.counts.transfers.fetch_add(1, Ordering::Relaxed);
        self.endpoint.post_write(id, to, data)
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<Completion, Lost>> {
        self.endpoint.poll(context)
    }

    fn disconnect(&mut self) {
        self.endpoint.disconnect();
    }

    fn abort(&mut self) {
        self.endpoint.abort();
    }
}

/// Serves everybody who comes to a listener, and counts the rights to clients' memory that end with answers.
async fn serve(
    listener: Box<dyn Listener>,
    server: Arc<Server>,
    stopped: watch::Receiver<bool>,
    counts: Arc<Counts>,
) {
    let census: Arc<Census> = Arc::default();
    while let Ok(endpoint) = listener.accept().await {
        let room = Room { all: 100, each: 100, strangers: 100 };
        let counted = census.enter(endpoint.peer().ip(), room).await.expect("there is room");
        let endpoint = Box::new(Counting { endpoint, counts: counts.clone() });
        let (server, stopped) = (server.clone(), stopped.clone());
        tokio::spawn(async move {
            let connection = Connection::passive(endpoint, Parameters::passive()).await.unwrap();
            server.connections.fetch_add(1, Ordering::Relaxed);
            let done =
                super::super::run(Rdma::new(connection), server.clone(), stopped, &counted).await;
            server.connections.fetch_sub(1, Ordering::Relaxed);
            done.expect("a client that keeps the rules");
        });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_over_rdma_is_served_as_one_over_tcp() {
    for (settings, signing, encryption) in [
        ("encryption='off'", Signing::IfRequired, Encryption::IfRequired),
        ("encryption='off'\nmax_dialect='3.0'", Signing::IfRequired, Encryption::IfRequired),
        ("encryption='off'\nmax_dialect='2.1'", Signing::IfRequired, Encryption::IfRequired),
        ("encryption='off'", Signing::Required, Encryption::IfRequired),
        ("encryption='required'", Signing::Required, Encryption::Required),
    ] {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("files")).unwrap();
        let text = format!(
            "[server]\nlisten=['127.0.0.1:0']\nstate_dir='{}'\nsigning='enabled'\n{settings}\n\
             [[user]]\nname='u'\npassword='p'\n\
             [[share]]\nname='s'\npath='files'\nusers=['u']\n",
            folder.path().join("state").display()
        );
        let config = Config::parse(&text, &folder.path().join("c")).unwrap();
        let server = Arc::new(Server::new(config).unwrap());
        let (stop, stopped) = watch::channel(false);
        let counted = Arc::<Counts>::default();
        let fabric = Fabric::default();
        let listener = fabric.listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let port = listener.local().unwrap().port();
        let serving = tokio::spawn(serve(listener, server.clone(), stopped, counted.clone()));
        let mut options = ConnectOptions::new("127.0.0.1", port, Login::new("u", "p"));
        (options.signing, options.encryption) = (signing, encryption);
        options.network = Some(Arc::new(Direct::over(Arc::new(fabric))));
        let session = smb_client::Client::connect(options).await.unwrap();
        let tree = session.tree("s").await.unwrap();
        let file = tree.open("f", OpenOptions::create(Create::New)).await.unwrap();
        let data: Vec<u8> = (0..3u32 << 20).map(|at| ((at * 31) >> 4) as u8).collect();
        file.write_at(8192, &data).await.unwrap();
        file.flush().await.unwrap();
        let mut again = vec![0; data.len()];
        let mut at = 0;
        while at < again.len() {
            at += file.read_at(8192 + at as u64, &mut again[at..]).await.unwrap();
        }
        assert!(again == data, "{settings}");
        assert_eq!(std::fs::read(folder.path().join("files/f")).unwrap()[8192..], data);
        // SMB 2, and who signs, has the data in messages; 3.0 ends no right; all others do with each answer.
        let [transfers, ended] =
            [&counted.transfers, &counted.invalidations].map(|count| count.load(Ordering::Relaxed));
        let by_rdma = !settings.contains("'2.1'")
            && (signing != Signing::Required || encryption == Encryption::Required);
        let invalidates = by_rdma && !settings.contains("'3.0'");
        let text = format!("{settings} {signing:?}: {transfers} transfers, {ended} invalidations");
        assert_eq!((transfers > 0, ended > 0), (by_rdma, invalidates), "{text}");
        drop((file, tree, session));
        // Nobody is served any more.
        drop(stop);
        serving.abort();
    }
}

//! A connection of SMB Direct without a network: the real client over the provider in process.

use std::sync::{Arc, atomic::Ordering};

use block_io::File;
use rdma::{
    Connection, Parameters,
    in_process::Fabric,
    provider::{Listener, Provider},
};
use smb_client::{ConnectOptions, Create, Direct, Encryption, Login, OpenOptions, Signing};
use tokio::sync::watch;

use crate::{
    Server,
    census::{Census, Room},
    config::Config,
    transport::Rdma,
};

/// Serves everybody who comes to a listener.
async fn serve(listener: Box<dyn Listener>, server: Arc<Server>, stopped: watch::Receiver<bool>) {
    let census: Arc<Census> = Arc::default();
    while let Ok(endpoint) = listener.accept().await {
        let room = Room { all: 100, each: 100, strangers: 100 };
        let counted = census.enter(endpoint.peer().ip(), room).await.expect("there is room");
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
        let fabric = Fabric::default();
        let listener = fabric.listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let port = listener.local().unwrap().port();
        let serving = tokio::spawn(serve(listener, server.clone(), stopped));
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
        drop((file, tree, session));
        // Nobody is served any more.
        drop(stop);
        serving.abort();
    }
}

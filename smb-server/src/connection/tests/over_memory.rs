//! A connection whose transport is no socket: the real client over a pipe in memory.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
};

use block_io::File;
use smb_client::{ConnectOptions, Create, Dialled, Login, Network, OpenOptions};
use tokio::sync::watch;

use crate::{
    Server,
    census::{Census, Room},
    config::Config,
    transport::memory::{ClientEnd, Pipe, ServerEnd},
};

/// A server that is dialled by a call.
#[derive(Debug)]
struct Near {
    server: Arc<Server>,
    census: Arc<Census>,
    stopped: watch::Receiver<bool>,
}

impl Network for Near {
    fn connect<'a>(
        &'a self,
        _: &'a str,
        _: u16,
    ) -> Pin<Box<dyn Future<Output = io::Result<Dialled>> + Send + 'a>> {
        Box::pin(async move {
            let (client, local) = ([192, 0, 2, 2].into(), [192, 0, 2, 1].into());
            let pipe = Pipe::new(1 << 20);
            let end = ServerEnd::new(pipe.clone(), (client, 40_000).into(), (local, 445).into());
            let room = Room { all: 100, each: 100, strangers: 100 };
            let counted = self.census.enter(client, room).await.expect("there is room");
            let (server, stopped) = (self.server.clone(), self.stopped.clone());
            tokio::spawn(async move {
                server.connections.fetch_add(1, Ordering::Relaxed);
                let done =
                    super::super::run(end.flowing(), server.clone(), stopped, &counted).await;
                server.connections.fetch_sub(1, Ordering::Relaxed);
                done.expect("a client that keeps the rules");
            });
            let stream = Box::new(ClientEnd::new(pipe));
            Ok(Dialled { stream, local: client, server: local, direct: None })
        })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_over_a_pipe_is_served_as_one_over_tcp() {
    for settings in ["encryption='off'", "encryption='required'"] {
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
        let census = Arc::default();
        let near = Near { server: server.clone(), census, stopped };
        let mut options = ConnectOptions::new("server", 445, Login::new("u", "p"));
        options.network = Some(Arc::new(near));
        let session = smb_client::Client::connect(options).await.unwrap();
        let tree = session.tree("s").await.unwrap();
        let file = tree.open("f", OpenOptions::create(Create::New)).await.unwrap();
        // Large enough that its data are placed while they come.
        let data: Vec<u8> = (0..3u32 << 20).map(|at| ((at * 31) >> 4) as u8).collect();
        file.write_at(8192, &data).await.unwrap();
        file.flush().await.unwrap();
        let mut again = vec![0; data.len()];
        let mut at = 0;
        while at < again.len() {
            at += file.read_at(8192 + at as u64, &mut again[at..]).await.unwrap();
        }
        assert!(again == data);
        assert_eq!(std::fs::read(folder.path().join("files/f")).unwrap()[8192..], data);
        drop((file, tree, session));
        // Nobody is served any more.
        drop(stop);
    }
}

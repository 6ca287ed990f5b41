//! SMB Direct for clients that have TCP only: each of their connections goes on to a server by RDMA.
//!
//! ```text
//!  client ◄── TCP: frames ──► Bridge ◄── iWARP, MS-SMBD: messages ──► server
//! ```
//!
//! Nothing in a message is looked at or changed, so data go in messages and none by RDMA itself: what is
//! tried is the server behind a transport of messages, their fragments and their credits.

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use rdma::{Connection, Parameters, iwarp::Iwarp, provider::Provider};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    runtime::Runtime,
};

use crate::torture::Served;

/// A bridge that runs as long as this lives.
#[derive(Debug)]
pub struct Bridge {
    address: SocketAddr,
    _runtime: Runtime,
}

impl Bridge {
    /// A bridge from `at`, where it listens, to a server that listens for RDMA.
    ///
    /// # Errors
    /// What the system says.
    pub fn start(at: SocketAddr, server: SocketAddr) -> io::Result<Self> {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let listener = runtime.block_on(TcpListener::bind(at))?;
        let address = listener.local_addr()?;
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                // However it ends, both ends see that it has.
                tokio::spawn(async move {
                    let _ = carry(stream, server).await;
                });
            }
        });
        Ok(Self { address, _runtime: runtime })
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// Carries the frames of one connection until either end has ended.
async fn carry(mut stream: TcpStream, server: SocketAddr) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let endpoint = Iwarp::default().connect(server).await?;
    let mut connection = Connection::active(endpoint, Parameters::active()).await?;
    let handle = connection.handle().clone();
    let (mut from, mut to) = stream.split();
    let upwards = async {
        loop {
            // Direct TCP transport (MS-SMB2 2.1): a zero byte, then the length in 24 bits.
            let length = from.read_u32().await?;
            let mut message = vec![0; (length & 0x00ff_ffff) as usize];
            from.read_exact(&mut message).await?;
            handle.send(Bytes::from(message), None).await?;
        }
    };
    let downwards = async {
        while let Some(message) = connection.receive().await {
            let message = &message.bytes[message.start..];
            let length = u32::try_from(message.len()).map_err(io::Error::other)?;
            to.write_all(&[&length.to_be_bytes(), message].concat()).await?;
        }
        Ok::<(), io::Error>(())
    };
    tokio::select! {
        ended = upwards => ended,
        ended = downwards => ended,
    }
}

/// A server as clients of a bridge to it see it.
pub struct Bridged<'a> {
    /// The server.
    pub server: &'a dyn Served,
    /// Where clients connect to the bridge.
    pub at: SocketAddr,
}

impl Served for Bridged<'_> {
    fn address(&self) -> SocketAddr {
        self.at
    }

    fn scratch(&self) -> &Path {
        self.server.scratch()
    }

    fn files(&self) -> PathBuf {
        self.server.files()
    }

    fn snapshot(&self) -> Option<String> {
        self.server.snapshot()
    }
}

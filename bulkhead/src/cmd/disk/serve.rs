//! `bulkhead disk serve`: an image as a network block device, until a signal or the last client.

use std::{
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, bail};
use nbd::Export;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    signal::unix::{SignalKind, signal},
    sync::Semaphore,
    task::JoinSet,
};
use vhd::Format;

use super::named;
use crate::storage::{self, Claim};

/// Arguments of `bulkhead disk serve`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The image.
    file: String,
    /// The format; by default as the ending of FILE says. QCOW2 and VMDK are served read-only.
    #[arg(long)]
    format: Option<Format>,
    /// Unix socket to make, for this user alone.
    #[arg(long, value_name = "PATH", required_unless_present = "listen")]
    socket: Option<PathBuf>,
    /// Address to listen on instead. The protocol has no passwords: whoever reaches it has the disk.
    #[arg(long, value_name = "ADDRESS:PORT", conflicts_with = "socket")]
    listen: Option<SocketAddr>,
    /// Name of the export; clients that name none get it too.
    #[arg(long, default_value = "")]
    export: String,
    /// Refuse writes; others may read the image meanwhile, and nobody writes it.
    #[arg(long)]
    read_only: bool,
    /// End when the last client has gone.
    #[arg(long)]
    until_idle: bool,
    /// Clients at a time.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..))]
    clients: u16,
}

/// A bound socket.
enum Listener {
    Unix(UnixListener, Socket),
    Tcp(TcpListener),
}

/// The name of a Unix socket, removed with this.
struct Socket(PathBuf);

impl Drop for Socket {
    fn drop(&mut self) {
        // Whoever removed it before has done our work.
        let _ = std::fs::remove_file(&self.0);
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

impl Listener {
    async fn bind(args: &Args) -> anyhow::Result<Self> {
        if let Some(address) = args.listen {
            let bound = TcpListener::bind(address).await;
            return Ok(Self::Tcp(bound.with_context(|| format!("cannot listen on {address}"))?));
        }
        let Some(path) = &args.socket else {
            bail!("name a --socket or an address to --listen on")
        };
        bind_unix(path).with_context(|| format!("cannot listen on {}", path.display()))
    }

    /// How clients name it.
    fn url(&self, export: &str) -> anyhow::Result<String> {
        Ok(match self {
            Self::Unix(_, socket) => format!("nbd+unix:///{export}?socket={}", socket.0.display()),
            Self::Tcp(listener) => format!("nbd://{}/{export}", listener.local_addr()?),
        })
    }

    async fn accept(&self) -> std::io::Result<Box<dyn Stream>> {
        Ok(match self {
            Self::Unix(listener, _) => Box::new(listener.accept().await?.0),
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Box::new(stream)
            }
        })
    }
}

/// Makes a socket that only this user can connect to: it is reachable under its name when it has
/// its mode already.
fn bind_unix(path: &Path) -> anyhow::Result<Listener> {
    if path.exists() {
        bail!("there is something already");
    }
    let name = path.file_name().context("it names no file")?.to_string_lossy().into_owned();
    let hidden = path.with_file_name(format!(".{name}.{}", std::process::id()));
    let listener = UnixListener::bind(&hidden)?;
    let ready = || {
        std::fs::set_permissions(&hidden, std::fs::Permissions::from_mode(0o600))?;
        std::fs::rename(&hidden, path)
    };
    match ready() {
        Ok(()) => Ok(Listener::Unix(listener, Socket(path.to_owned()))),
        Err(error) => {
            let _ = std::fs::remove_file(&hidden);
            Err(error.into())
        }
    }
}

pub async fn run(args: Args) -> anyhow::Result<()> {
    let format = named(args.format, &args.file)?;
    let mode = if args.read_only { Claim::Still } else { Claim::Write };
    let disk = storage::open_disk(&args.file, format, mode).await?;
    let served = serve(&args, Export::new(args.export.clone(), disk.clone(), args.read_only)).await;
    let closed = disk.close().await.with_context(|| format!("cannot close {}", args.file));
    served.and(closed)
}

/// Serves until a signal comes, or the last client goes if that is wanted.
async fn serve(args: &Args, export: Export) -> anyhow::Result<()> {
    let mut stops = [signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?];
    let [interrupt, terminate] = &mut stops;
    let listener = Listener::bind(args).await?;
    say!("{}: {}", args.file, listener.url(&args.export)?);
    let exports: Arc<[Export]> = Arc::new([export]);
    let room = Arc::new(Semaphore::new(args.clients.into()));
    let mut clients = JoinSet::new();
    loop {
        tokio::select! {
            stream = listener.accept() => match (stream, room.clone().try_acquire_owned()) {
                (Ok(stream), Ok(place)) => {
                    let exports = exports.clone();
                    clients.spawn(async move {
                        let _place = place;
                        nbd::serve(stream, &exports).await
                    });
                }
                // One too many: it is hung up on.
                (Ok(_), Err(_)) => {}
                (Err(error), _) => return Err(error).context("cannot accept a client"),
            },
            Some(ended) = clients.join_next() => {
                if let Err(error) = ended.context("a client's task failed")? {
                    eprintln!("bulkhead: a client: {error}");
                }
                if args.until_idle && clients.is_empty() {
                    return Ok(());
                }
            }
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
        }
    }
    // Requests under way are cut short; nothing they had acknowledged is lost.
    clients.shutdown().await;
    Ok(())
}

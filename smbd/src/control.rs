//! The ways to control the server: its admin socket, and the interface over HTTP.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use http_api::{Api, ApiConfig, Audit, Pages};
use tokio::{net::UnixListener, task::JoinSet};

use crate::{
    admin::{self, Verbs},
    scrape::Sources,
};

/// The interface over HTTP, once there is one: a reload tells it of the new configuration.
pub type Interface = Arc<OnceLock<Arc<Api<Verbs>>>>;

/// The local sockets, which nobody serves yet.
pub struct Sockets {
    admin: UnixListener,
    api: UnixListener,
}

impl Sockets {
    /// Binds them in the state folder. Must run inside a tokio runtime.
    ///
    /// # Errors
    /// What the system says, or that another server uses the folder.
    pub fn bind(state_dir: &Path) -> io::Result<Self> {
        admin::is_free(state_dir)?;
        // First: who waits for the socket of administrators finds this one as well.
        let api = http_api::bind(state_dir, http_api::SOCKET)?;
        Ok(Self { admin: admin::bind(state_dir)?, api })
    }
}

/// What serves the sockets, until it ends.
pub struct Control {
    state_dir: PathBuf,
    serving: JoinSet<()>,
}

impl Control {
    /// Serves the local sockets, and the interface at ports that are bound.
    ///
    /// # Errors
    /// If the tokens that were given cannot be read, or the runtime does not take a socket.
    pub fn start(
        sockets: Sockets,
        bound: Vec<std::net::TcpListener>,
        config: ApiConfig,
        verbs: Verbs,
        interface: &Interface,
    ) -> io::Result<Self> {
        let state_dir = verbs.server.current().config.state_dir.clone();
        let (audit, verbs) = (verbs.audit.clone(), Arc::new(verbs));
        let pages = Pages::new(console::FILES);
        let api = Api::new(config, &state_dir, audit, verbs.clone(), pages)?;
        let mut serving = api.serve(sockets.api, bound)?;
        serving.spawn(admin::serve(verbs, sockets.admin));
        // It is set once.
        let _ = interface.set(api);
        Ok(Self { state_dir, serving })
    }

    /// Ends it; whoever comes next makes sockets of its own.
    pub fn end(self) {
        for name in [server_api::SOCKET, http_api::SOCKET] {
            let _ = fs::remove_file(self.state_dir.join(name));
        }
        drop(self.serving);
    }
}

/// What administrators may ask of a server with this around it.
pub fn verbs(
    server: Arc<crate::Server>,
    program: admin::Program,
    sources: Arc<Sources>,
    config: &ApiConfig,
) -> Verbs {
    let state_dir = server.current().config.state_dir.clone();
    let audit = Arc::new(Audit::new(&state_dir, config.audit_bytes, config.audit_files));
    // What is taken now is there when the disk is full.
    if let Err(error) = audit.make_room() {
        tracing::warn!(%error, "no change can be made");
    }
    Verbs { server, program, sources, audit }
}

//! What the host may be asked, whichever way: over the control socket or by calls of HTTP (`http-api`). Both
//! lead to [`Verbs`], which writes every change down.

use std::{
    future::Future,
    io,
    net::TcpListener,
    path::Path,
    pin::Pin,
    sync::{Arc, mpsc},
    time::Duration,
};

use anyhow::{Context, ensure};
use host_api::{Call, MoveProgress, Reply, Request, VmHost, VmName};
use http_api::{Api, ApiConfig, Audit, Backend, Caller, Pages};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use vmm::platform::error::chain;

use crate::{
    config::Config,
    host::{Host, HostError},
    metrics, migrate,
};

/// How long a guest has to stop if nobody says otherwise, in seconds.
const STOP_LIMIT: u32 = 60;
/// Calls that are carried out at a time; a move is one for as long as it lasts.
const CALLS_AT_A_TIME: usize = 64;

/// What may be asked of a host.
pub struct Verbs {
    host: Arc<Host>,
    audit: Arc<Audit>,
}

impl Verbs {
    /// Those of a host, whose changes are written to its state folder.
    pub fn new(host: Arc<Host>, config: &ApiConfig) -> Self {
        let folder = &host.config.host.state_dir;
        let audit = Arc::new(Audit::new(folder, config.audit_bytes, config.audit_files));
        // What is taken now is there when the disk is full.
        if let Err(error) = audit.make_room() {
            tracing::warn!(%error, "no change can be made");
        }
        Self { host, audit }
    }

    /// The host that is asked.
    pub fn host(&self) -> &Arc<Host> {
        &self.host
    }

    /// Carries out a request, and writes it down if it is a change. A move tells how far it is.
    ///
    /// # Errors
    /// Why not, in a line for a person.
    pub fn carry_out(
        &self,
        caller: &Caller,
        request: Request,
        progress: impl FnMut(MoveProgress),
    ) -> Result<Reply, String> {
        let looks = matches!(request, Request::Check { .. })
            || Call::of::<VmHost>(&request).is_some_and(|call| !call.changes());
        let about = subject(&request).cloned();
        let written = serde_json::to_value(&request).unwrap_or_default();
        let change = || {
            let done = carry_out(&self.host, request, progress);
            done.map_err(|error| chain(&error))
        };
        if looks {
            return change();
        }
        let state = || about.as_ref().map_or(Value::Null, |name| self.state(name));
        self.audit.write_down(caller, written, state, change)
    }

    /// A VM as it is; nothing if there is none of that name.
    fn state(&self, name: &VmName) -> Value {
        let Ok(managed) = self.host.find(name) else { return Value::Null };
        json!({ "state": managed.state(), "definition": *managed.definition() })
    }
}

/// The VM that a request is about.
fn subject(request: &Request) -> Option<&VmName> {
    match request {
        Request::Create { definition } | Request::Check { definition, .. } => {
            Some(&definition.name)
        }
        Request::Edit { definition, .. } => Some(&definition.name),
        Request::Rename { name, .. }
        | Request::Start { name }
        | Request::Stop { name, .. }
        | Request::Resume { name }
        | Request::Memory { name, .. }
        | Request::Show { name }
        | Request::Console { name, .. }
        | Request::Move { name, .. }
        | Request::CancelMove { name }
        | Request::Quiesce { name, .. }
        | Request::Delete { name }
        | Request::Resolve { name, .. } => Some(name),
        Request::List | Request::Why | Request::WhyOf { .. } | Request::Thaw => None,
    }
}

fn carry_out(
    host: &Arc<Host>,
    request: Request,
    mut progress: impl FnMut(MoveProgress),
) -> Result<Reply, HostError> {
    match request {
        Request::Create { definition } => host.create(definition)?,
        Request::Check { definition, new } => host.check(&definition, &new)?,
        Request::Edit { was, definition } => host.edit(&was, *definition)?,
        Request::Rename { name, to } => host.rename(&name, &to)?,
        Request::Start { name } => host.start(&name)?,
        Request::Stop { name, force, timeout_s } => {
            let limit = Duration::from_secs(u64::from(timeout_s.unwrap_or(STOP_LIMIT)));
            host.stop(&name, force, limit)?;
        }
        Request::Resume { name } => host.resume(&name)?,
        Request::Memory { name, mib } => host.set_memory(&name, mib)?,
        Request::List => return Ok(Reply::List { vms: host.list() }),
        Request::Show { name } => return Ok(Reply::Show { vm: Box::new(host.show(&name)?) }),
        Request::Why => return Ok(Reply::Why { reports: host.why(None)? }),
        Request::WhyOf { what } => return Ok(Reply::Why { reports: host.why(Some(&what))? }),
        Request::Move { name, options } => {
            let moved = migrate::source::move_vm(host, &name, options, &mut progress)?;
            return Ok(Reply::Moved { statistics: Box::new(moved) });
        }
        Request::CancelMove { name } => host.cancel_move(&name)?,
        Request::Delete { name } => host.delete(&name)?,
        Request::Resolve { name, run } => host.resolve(&name, run)?,
        Request::Thaw => return Err(HostError::NotQuiet),
        // They are their connection's (`control`).
        Request::Console { .. } | Request::Quiesce { .. } => {}
    }
    Ok(Reply::Ok)
}

impl Backend for Verbs {
    type Interface = VmHost;

    fn carry_out(&self, caller: &Caller, request: Request) -> Result<Reply, String> {
        Self::carry_out(self, caller, request, |_| {})
    }

    fn metrics(&self) -> Pin<Box<dyn Future<Output = String> + Send + '_>> {
        // A machine that does not answer is waited for.
        let host = self.host.clone();
        let page = tokio::task::spawn_blocking(move || metrics::page(&host));
        Box::pin(async { page.await.unwrap_or_default() })
    }
}

/// What `[api]` of a configuration says.
///
/// # Errors
/// What is wrong with it.
pub fn config(config: &Config, path: &Path) -> anyhow::Result<ApiConfig> {
    let api =
        ApiConfig::of(config.api.clone(), path).with_context(|| path.display().to_string())?;
    ensure!(
        api.folders.is_empty(),
        "{}: api.folders is for a file server, where it says what may be declared",
        path.display()
    );
    Ok(api)
}

/// The interface over HTTP, as long as it is served.
pub struct Interface {
    api: Arc<Api<Verbs>>,
    _runtime: tokio::runtime::Runtime,
}

impl Interface {
    /// Takes users, the certificate and limits of a new configuration; addresses need a restart.
    pub fn reload(&self, config: ApiConfig) {
        self.api.reload(config);
    }
}

/// Serves `api.sock` in the state folder, and the addresses of the configuration, on threads of its own: what
/// is asked for keeps no disk waiting.
///
/// # Errors
/// What the system says of sockets and threads.
pub fn serve(verbs: &Arc<Verbs>, config: ApiConfig) -> anyhow::Result<Interface> {
    let bound = config.listen.iter().map(|address| {
        let listener = TcpListener::bind(address)
            .with_context(|| format!("api.listen: cannot listen at {address}"))?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    });
    let bound = bound.collect::<anyhow::Result<Vec<_>>>()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .max_blocking_threads(CALLS_AT_A_TIME)
        .thread_name("api")
        .enable_all()
        .build()
        .context("cannot start the threads of the control interface")?;
    let state_dir = verbs.host.config.host.state_dir.clone();
    let (audit, backend) = (verbs.audit.clone(), verbs.clone());
    let api = Api::new(config, &state_dir, audit, backend, Pages::new(console::FILES))
        .context("cannot use the tokens of the control interface")?;
    let (told, heard) = mpsc::channel::<io::Result<()>>();
    let serving = api.clone();
    runtime.spawn(async move {
        let began = begin(&serving, &state_dir, bound);
        let (result, listeners) = match began {
            Ok(listeners) => (Ok(()), Some(listeners)),
            Err(error) => (Err(error), None),
        };
        let _ = told.send(result);
        if let Some(mut listeners) = listeners {
            while listeners.join_next().await.is_some() {}
        }
    });
    heard.recv().context("the control interface did not start")?.with_context(|| {
        format!(
            "cannot listen at {}/{}",
            verbs.host.config.host.state_dir.display(),
            http_api::SOCKET
        )
    })?;
    Ok(Interface { api, _runtime: runtime })
}

fn begin(
    api: &Arc<Api<Verbs>>,
    state_dir: &Path,
    bound: Vec<TcpListener>,
) -> io::Result<JoinSet<()>> {
    api.serve(http_api::bind(state_dir, http_api::SOCKET)?, bound)
}

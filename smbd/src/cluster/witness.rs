//! The witness service of a node: a process of its own beside those of the roles, since it is to tell
//! clients when a role is not served.
//!
//! ```text
//!  node ─► `smbd --witness` (supervised) ◄─ etcd: who is there, who serves what
//!              ▲ registrations, AsyncNotify
//!              └── clients of roles that other nodes serve
//! ```

use std::{ffi::OsString, sync::Arc, time::Duration};

use cluster::{config::Config as ClusterConfig, record::Reach, view::View, watch::follow};
use state_store::etcd::Client;
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::sleep,
};

use super::Node;
use crate::{
    Bound,
    parts::Parts,
    supervise::{self, Plan, Stop},
    witness::config::WitnessConfig,
};

/// How long until what could not be started is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// The cluster as a witness sees it.
#[derive(Debug)]
pub struct Feed {
    /// The cluster, as it was configured when the process was started.
    pub cluster: ClusterConfig,
    client: Arc<Client>,
}

impl Feed {
    /// To be done while the process may read what belongs to etcd.
    ///
    /// # Errors
    /// If files of etcd cannot be used.
    pub fn new(cluster: ClusterConfig) -> anyhow::Result<Self> {
        let client = Client::new(&cluster.etcd).map_err(anyhow::Error::msg)?;
        Ok(Self { cluster, client })
    }

    /// The ports of etcd.
    pub fn ports(&self) -> Vec<u16> {
        Client::ports(&self.cluster.etcd)
    }

    /// Follows the cluster. Must run inside a tokio runtime.
    pub fn follow(&self) -> watch::Receiver<Option<View>> {
        follow(self.client.clone(), self.cluster.keys())
    }
}

/// What the witness service's process has of a configuration: users, and no share.
///
/// # Errors
/// A text: the configuration has no such service.
pub(crate) fn of_node(mut parts: Parts) -> Result<Parts, String> {
    if parts.witness.is_none() {
        return Err("the configuration has no [witness]".to_owned());
    }
    let config = &mut parts.config;
    config.state_dir = config.state_dir.join("witness");
    config.listen.clear();
    config.rdma_listen.clear();
    config.metrics = None;
    config.shares.clear();
    config.namespaces.clear();
    let (iscsi, cluster) = (Default::default(), None);
    Ok(Parts { iscsi, cluster, ..parts })
}

/// How clients reach a node whose witness service is configured like this.
pub(super) fn reach(config: &WitnessConfig) -> Option<Reach> {
    let own = config.nodes.first()?;
    Some(Reach { name: own.name.clone(), addresses: own.addresses.clone() })
}

/// The service of a node that runs.
#[derive(Debug)]
pub(super) struct Running {
    stop: mpsc::UnboundedSender<Stop>,
    task: JoinHandle<()>,
}

impl Running {
    /// Starts the service, again and again until it can be had: a run of this node that was killed may
    /// have its ports a moment longer. The roles are served without it meanwhile.
    ///
    /// # Errors
    /// A text: the configuration has no such service.
    pub(super) fn start(node: &Node, parts: Parts) -> Result<Self, String> {
        let parts = of_node(parts)?;
        let arguments: Vec<OsString> =
            vec!["--config".into(), node.file.clone().into(), "--witness".into()];
        let (program, patience) = (node.program.clone(), node.watchdog);
        let (stop, mut stops) = mpsc::unbounded_channel();
        let task = tokio::spawn(async move {
            let mut told = false;
            loop {
                let plan = Plan {
                    program: program.clone(),
                    arguments: arguments.clone(),
                    again: Vec::new(),
                    patience,
                };
                let served = async {
                    let bound = Bound::with(&parts.config, parts.beside(), Vec::new())?;
                    supervise::run(plan, bound, |_| {}, &mut stops).await
                };
                let Err(error) = served.await else { return };
                if !std::mem::replace(&mut told, true) {
                    tracing::error!("the witness service tells nobody of other nodes: {error:#}");
                }
                tokio::select! {
                    _ = stops.recv() => return,
                    () = sleep(AGAIN) => {}
                }
            }
        });
        Ok(Self { stop, task })
    }

    /// Ends it, when the node's roles are elsewhere and clients know where.
    pub(super) async fn stop(self) {
        // Who does not hear has ended.
        let _ = self.stop.send(Stop::Orderly);
        let _ = self.task.await;
    }
}

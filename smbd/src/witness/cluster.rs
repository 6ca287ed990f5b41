//! The cluster as the configuration and the administrator have it: the nodes and addresses of
//! `[witness]`, the states that `bulkhead witness state` sets.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use smb_server::{Server, config::ClusterShare};
use witness::{Cluster, NodeState, View, view::ShareView};

use super::config::WitnessConfig;

/// What of the cluster the configuration says, and how nodes are said to be.
pub struct Configured {
    server: Arc<Server>,
    inner: Mutex<Inner>,
}

struct Inner {
    config: WitnessConfig,
    /// By the folded name of the node.
    states: BTreeMap<String, NodeState>,
}

impl Configured {
    pub(super) fn new(server: Arc<Server>, config: WitnessConfig) -> Self {
        Self { server, inner: Mutex::new(Inner { config, states: BTreeMap::new() }) }
    }

    fn inner(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes another configuration; what is known of nodes that stay is kept.
    pub(super) fn configure(&self, config: WitnessConfig) {
        let mut inner = self.inner();
        let stays =
            |name: &String| config.nodes.iter().any(|node| node.name.to_uppercase() == *name);
        inner.states.retain(|name, _| stays(name));
        inner.config = config;
    }

    /// Says how a node is.
    ///
    /// # Errors
    /// There is no such node.
    pub(super) fn set_state(&self, node: &str, state: NodeState) -> Result<(), String> {
        let mut inner = self.inner();
        let found = inner.config.nodes.iter().find(|own| own.name.eq_ignore_ascii_case(node));
        let name = found.ok_or_else(|| format!("there is no node {node}"))?.name.to_uppercase();
        inner.states.insert(name, state);
        Ok(())
    }
}

impl Cluster for Configured {
    fn view(&self) -> View {
        let inner = self.inner();
        let mut nodes = inner.config.nodes.clone();
        for node in &mut nodes {
            if let Some(state) = inner.states.get(&node.name.to_uppercase()) {
                node.state = *state;
            }
        }
        let current = self.server.current();
        let share = |share: &Arc<smb_server::config::Share>| ShareView {
            name: share.name.clone(),
            scale_out: share.cluster == Some(ClusterShare::ScaleOut),
        };
        let names = match &inner.config.cluster_names[..] {
            [] => vec![current.config.name.clone()],
            names => names.to_vec(),
        };
        View { nodes, own: 0, names, shares: current.config.shares.values().map(share).collect() }
    }
}

//! The cluster as a witness service sees it: as the configuration and the administrator have it (the nodes
//! and addresses of `[witness]`, the states that `bulkhead witness state` sets), or as the nodes of
//! `[cluster]` have it in etcd.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use cluster::{config::Config as ClusterConfig, record::Reach};
use smb_server::{Server, config::ClusterShare};
use tokio::sync::watch;
use witness::{Cluster, Floating, Node, NodeState, View, view::ShareView};

use super::config::WitnessConfig;
use crate::cluster::witness::Feed;

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

    fn inner(&self) -> MutexGuard<'_, Inner> {
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
        let shares = current.config.shares.values().map(share).collect();
        View { nodes, own: 0, names, shares, floating: Vec::new() }
    }
}

/// What of the cluster its nodes say in etcd.
pub struct Followed {
    /// This node, and what clients call the cluster.
    config: Mutex<WitnessConfig>,
    server_name: String,
    cluster: ClusterConfig,
    seen: watch::Receiver<Option<cluster::view::View>>,
    /// How clients reach nodes, also those that are lost.
    known: Mutex<BTreeMap<u16, Reach>>,
}

impl Followed {
    pub(super) fn new(server_name: String, config: WitnessConfig, feed: &Feed) -> Self {
        Self {
            config: Mutex::new(config),
            server_name,
            cluster: feed.cluster.clone(),
            seen: feed.follow(),
            known: Mutex::default(),
        }
    }

    /// Changes when something has changed in the cluster.
    pub(super) fn changes(&self) -> watch::Receiver<Option<cluster::view::View>> {
        self.seen.clone()
    }

    fn config(&self) -> MutexGuard<'_, WitnessConfig> {
        self.config.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes another configuration.
    pub(super) fn configure(&self, config: WitnessConfig) {
        *self.config() = config;
    }

    /// The nodes: this one first, then the others that are of the cluster and have ever said how they are
    /// reached, whether they are there now or not.
    fn nodes(&self, seen: Option<&cluster::view::View>) -> Vec<Node> {
        let mut nodes: Vec<Node> = self.config().nodes.iter().take(1).cloned().collect();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(seen) = seen else { return nodes };
        for (number, member) in &seen.members {
            match &member.record.reach {
                Some(reach) => drop(known.insert(*number, reach.clone())),
                None => drop(known.remove(number)),
            }
        }
        known.retain(|number, _| seen.nodes.contains_key(number) && *number != self.cluster.node);
        nodes.extend(known.iter().map(|(number, reach)| Node {
            name: reach.name.clone(),
            addresses: reach.addresses.clone(),
            state: match seen.members.contains_key(number) {
                true => NodeState::Up,
                false => NodeState::Down,
            },
        }));
        nodes
    }

    /// The addresses of roles. One at which several roles are served is there when all of them are.
    fn floating(&self, seen: Option<&cluster::view::View>) -> Vec<Floating> {
        let mut all: BTreeMap<IpAddr, Option<String>> = BTreeMap::new();
        for (name, role) in &self.cluster.roles {
            // Not by the name that it tells clients: who serves may tell none.
            let node = seen.and_then(|seen| seen.server(name)).map(|node| node.to_string());
            for address in role.addresses().into_iter().filter(|it| !it.is_unspecified()) {
                let found = all.entry(address).or_insert_with(|| node.clone());
                if *found != node {
                    *found = None;
                }
            }
        }
        all.into_iter().map(|(address, node)| Floating { address, node }).collect()
    }
}

impl Cluster for Followed {
    fn view(&self) -> View {
        let seen = self.seen.borrow().clone();
        let roles = self.cluster.roles.values();
        let mut names = self.config().cluster_names.clone();
        if names.is_empty() {
            names.push(self.server_name.clone());
            names.extend(roles.clone().filter_map(|role| role.server_name.clone()));
        }
        let share = |name: &String| ShareView { name: name.clone(), scale_out: false };
        View {
            nodes: self.nodes(seen.as_ref()),
            own: 0,
            names,
            shares: roles.flat_map(|role| &role.shares).map(share).collect(),
            floating: self.floating(seen.as_ref()),
        }
    }
}

/// Where a service has its view from.
pub(super) enum Source {
    Configured(Box<Configured>),
    Followed(Box<Followed>),
}

impl Cluster for Source {
    fn view(&self) -> View {
        match self {
            Self::Configured(configured) => configured.view(),
            Self::Followed(followed) => followed.view(),
        }
    }
}

impl Source {
    pub(super) fn configure(&self, config: WitnessConfig) {
        match self {
            Self::Configured(configured) => configured.configure(config),
            Self::Followed(followed) => followed.configure(config),
        }
    }

    /// Says how a node is.
    ///
    /// # Errors
    /// There is no such node, or the nodes say it themselves.
    pub(super) fn set_state(&self, node: &str, state: NodeState) -> Result<(), String> {
        match self {
            Self::Configured(configured) => configured.set_state(node, state),
            Self::Followed(_) => Err("how its nodes are the cluster says itself; see \
                                      `bulkhead cluster drain` and `pause`"
                .to_owned()),
        }
    }
}

#[cfg(test)]
mod tests;

//! What a cluster looks like to the witness service: nodes, where they are reached, how they are.

use std::net::IpAddr;

/// How a node is (MS-SWN 2.2.2.5, `State`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NodeState {
    /// Nobody knows.
    #[default]
    Unknown,
    /// It serves clients.
    Up,
    /// It does not.
    Down,
}

impl NodeState {
    /// The number of interface states and of resource changes.
    pub const fn number(self) -> u16 {
        match self {
            Self::Unknown => 0,
            Self::Up => 1,
            Self::Down => 0xff,
        }
    }

    /// The state of a number; [`NodeState::Unknown`] for those that there are not.
    pub const fn of(number: u32) -> Self {
        match number {
            1 => Self::Up,
            0xff => Self::Down,
            _ => Self::Unknown,
        }
    }
}

impl std::fmt::Display for NodeState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Unknown => "unknown",
            Self::Up => "up",
            Self::Down => "down",
        })
    }
}

/// A node of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its name, which is the name of its interface group: 1 to 15 characters.
    pub name: String,
    /// Where clients reach it.
    pub addresses: Vec<IpAddr>,
    /// How it is.
    pub state: NodeState,
}

/// A share that clients may ask about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShareView {
    /// Its name.
    pub name: String,
    /// Every node serves it (`STYPE_CLUSTER_SOFS`, MS-SRVS 2.2.2.4).
    pub scale_out: bool,
}

/// An address that goes from node to node with what is served there. It is no interface of a node
/// (MS-SWN 3.1.1.2), and clients register with it as the address that they use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Floating {
    /// The address.
    pub address: IpAddr,
    /// The name of the node that serves it; nobody does at the moment if there is none.
    pub node: Option<String>,
}

/// What a cluster looks like at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct View {
    /// All nodes.
    pub nodes: Vec<Node>,
    /// Which of them this is.
    pub own: usize,
    /// Names by which clients reach the cluster (`ServerGlobalName`).
    pub names: Vec<String>,
    /// The shares.
    pub shares: Vec<ShareView>,
    /// Addresses that go from node to node, each once.
    pub floating: Vec<Floating>,
}

impl View {
    /// The node that has an address.
    pub fn at(&self, address: IpAddr) -> Option<&Node> {
        self.nodes.iter().find(|node| node.addresses.contains(&address))
    }

    /// The node of a name.
    pub fn named(&self, name: &str) -> Option<&Node> {
        self.nodes.iter().find(|node| same(&node.name, name))
    }

    /// The addresses that a destination names: a node, or one of its addresses. Each with whether its
    /// node is up.
    pub fn addresses_of(&self, destination: &str) -> Vec<(IpAddr, NodeState)> {
        if let Some(node) = self.named(destination) {
            return node.addresses.iter().map(|address| (*address, node.state)).collect();
        }
        let address = destination.parse().ok();
        let node = address.and_then(|address| self.at(address));
        address.into_iter().zip(node.map(|node| node.state)).collect()
    }

    /// Whether the cluster is known by a name.
    pub fn answers_to(&self, name: &str) -> bool {
        let name = name.trim_start_matches('\\');
        self.names.iter().any(|own| same(own, name))
    }

    /// The node that serves a floating address.
    pub fn holder(&self, address: IpAddr) -> Option<&str> {
        self.floating.iter().find(|it| it.address == address)?.node.as_deref()
    }

    /// The share of a name.
    pub fn share(&self, name: &str) -> Option<&ShareView> {
        self.shares.iter().find(|share| same(&share.name, name))
    }
}

/// Whether two names are the same, as names of computers and shares are compared.
pub(crate) fn same(a: &str, b: &str) -> bool {
    smb_protocol::name::same_name(a, b)
}

/// Where a view comes from: the cluster, or the configuration of a server that is in none.
pub trait Cluster: Send + Sync {
    /// What it looks like now.
    fn view(&self) -> View;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_destination_is_a_node_or_one_of_its_addresses() {
        let node = |name: &str, last: u8, state| Node {
            name: name.into(),
            addresses: vec![[192, 0, 2, last].into(), "2001:db8::1".parse().unwrap()],
            state,
        };
        let view = View {
            nodes: vec![node("A", 1, NodeState::Up), node("B", 2, NodeState::Down)],
            names: vec!["files".into()],
            ..View::default()
        };
        assert_eq!(view.addresses_of("b").len(), 2);
        let one: IpAddr = [192, 0, 2, 2].into();
        assert_eq!(view.addresses_of("192.0.2.2"), [(one, NodeState::Down)]);
        assert!(view.addresses_of("192.0.2.3").is_empty() && view.addresses_of("c").is_empty());
        assert!(view.answers_to("FILES") && view.answers_to("\\\\files") && !view.answers_to("a"));
    }
}

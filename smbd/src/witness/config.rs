//! `[witness]` of the configuration: where the service listens, who is in the cluster, what clients may
//! take.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    time::Duration,
};

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Deserialize;
use smb_server::config::{ConfigError, Size};
use witness::{Limits, Node, NodeState};
use zeroize::Zeroizing;

/// Longest parameters of a call that can be configured.
const MOST_CALL: u64 = 1 << 20;

/// The part of the file that is about the witness service.
#[derive(Debug, Default, Deserialize, JsonSchema)]
struct File {
    witness: Option<Section>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Section {
    listen: Vec<SocketAddr>,
    #[serde(default)]
    endpoint_mapper: Vec<SocketAddr>,
    name: String,
    #[serde(default)]
    cluster_names: Vec<String>,
    addresses: Vec<IpAddr>,
    #[serde(default)]
    node: Vec<NodeSection>,
    #[serde(default)]
    limits: LimitsSection,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct NodeSection {
    name: String,
    addresses: Vec<IpAddr>,
}

/// `[witness.limits]`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct LimitsSection {
    connections: usize,
    connections_per_address: usize,
    unauthenticated_connections: usize,
    logon_seconds: u64,
    idle_seconds: u64,
    write_seconds: u64,
    call_bytes: Size,
    pending_calls: usize,
    registrations: usize,
    registrations_per_user: usize,
    waiting: usize,
    unused_seconds: u64,
    keep_alive_seconds: u64,
}

impl Default for LimitsSection {
    fn default() -> Self {
        let engine = Limits::default();
        Self {
            connections: 4096,
            connections_per_address: 256,
            unauthenticated_connections: 256,
            logon_seconds: 10,
            idle_seconds: 120,
            write_seconds: 10,
            call_bytes: Size(64 << 10),
            pending_calls: 16,
            registrations: engine.registrations,
            registrations_per_user: engine.registrations_per_user,
            waiting: engine.waiting,
            unused_seconds: engine.unused.as_secs(),
            keep_alive_seconds: engine.keep_alive.as_secs(),
        }
    }
}

/// What connections may take, before anything is asked on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    /// Connections at a time.
    pub connections: usize,
    /// Connections from one address.
    pub connections_per_address: usize,
    /// Connections of clients that have not proved who they are.
    pub unauthenticated: usize,
    /// How long a client has for that, and for a message that it has begun.
    pub logon: Duration,
    /// How long a client may ask for nothing and wait for nothing.
    pub idle: Duration,
    /// How long a client may leave an answer unread.
    pub write: Duration,
    /// Longest parameters of a call in bytes.
    pub call: usize,
    /// Calls of a connection that are not answered yet.
    pub pending_calls: usize,
}

/// The witness service as it is configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WitnessConfig {
    /// Where it listens.
    pub listen: Vec<SocketAddr>,
    /// Where the endpoint mapper listens that tells its port.
    pub endpoint_mapper: Vec<SocketAddr>,
    /// Names by which clients reach the cluster; the server's own if there is none.
    pub cluster_names: Vec<String>,
    /// The nodes, this one first. How the others are nobody knows at first.
    pub nodes: Vec<Node>,
    /// What clients may take.
    pub limits: Limits,
    /// What connections may take.
    pub access: Access,
}

/// The schema of what the file says of the witness service.
pub fn schema(generator: &mut SchemaGenerator) -> Schema {
    File::json_schema(generator)
}

impl WitnessConfig {
    /// Reads a file; `None` if it says nothing of the service, which is not started then.
    ///
    /// # Errors
    /// [`ConfigError`] says what cannot be.
    pub fn load(path: &Path) -> Result<Option<Self>, ConfigError> {
        let read = |source| ConfigError::Read { path: path.to_owned(), source };
        let text = Zeroizing::new(std::fs::read_to_string(path).map_err(read)?);
        Self::parse(&text, path)
    }

    /// Checks the text of a file; `path` is for messages.
    ///
    /// # Errors
    /// [`ConfigError`] says what cannot be.
    pub fn parse(text: &str, path: &Path) -> Result<Option<Self>, ConfigError> {
        let file: File = toml::from_str(text).map_err(|error| ConfigError::Syntax {
            path: path.to_owned(),
            message: smb_server::config::syntax_message(text, &error),
        })?;
        let Some(section) = file.witness else { return Ok(None) };
        let bad = |key: &str, message: String| ConfigError::Value {
            path: path.to_owned(),
            key: key.to_owned(),
            message,
        };
        if section.listen.is_empty() {
            let text = "give at least one address, \"0.0.0.0:49152\"";
            return Err(bad("witness.listen", text.to_owned()));
        }
        let own = NodeSection { name: section.name, addresses: section.addresses };
        let mut nodes: Vec<Node> = Vec::new();
        for (at, node) in std::iter::once(own).chain(section.node).enumerate() {
            let key = if at == 0 { "witness" } else { "witness.node" };
            let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
            if !(1..=15).contains(&node.name.len()) || !node.name.chars().all(plain) {
                let text =
                    format!("{:?} is no name of 1 to 15 letters, digits, - and _", node.name);
                return Err(bad(&format!("{key}.name"), text));
            }
            if node.addresses.is_empty() {
                let text = format!("node {:?}: give at least one address", node.name);
                return Err(bad(&format!("{key}.addresses"), text));
            }
            let twice = |other: &Node| other.name.eq_ignore_ascii_case(&node.name);
            if nodes.iter().any(twice) {
                return Err(bad(&format!("{key}.name"), format!("{:?} is there twice", node.name)));
            }
            let taken =
                |address: &&IpAddr| nodes.iter().any(|other| other.addresses.contains(address));
            if let Some(address) = node.addresses.iter().find(taken) {
                let text = format!("{address} is an address of two nodes");
                return Err(bad(&format!("{key}.addresses"), text));
            }
            let state = if at == 0 { NodeState::Up } else { NodeState::Unknown };
            nodes.push(Node { name: node.name, addresses: node.addresses, state });
        }
        let limits = section.limits;
        if !(4096..=MOST_CALL).contains(&limits.call_bytes.0) {
            let text = "between 4KiB and 1MiB".to_owned();
            return Err(bad("witness.limits.call_bytes", text));
        }
        if [limits.connections, limits.pending_calls, limits.registrations].contains(&0) {
            let text = "connections, pending_calls and registrations are at least 1".to_owned();
            return Err(bad("witness.limits", text));
        }
        let (listen, endpoint_mapper) = (section.listen, section.endpoint_mapper);
        let cluster_names = section.cluster_names;
        let (limits, access) = limits.split();
        Ok(Some(Self { listen, endpoint_mapper, cluster_names, nodes, limits, access }))
    }
}

impl LimitsSection {
    /// What the engine keeps to, and what connections do.
    fn split(&self) -> (Limits, Access) {
        let limits = Limits {
            registrations: self.registrations,
            registrations_per_user: self.registrations_per_user,
            waiting: self.waiting,
            unused: Duration::from_secs(self.unused_seconds),
            keep_alive: Duration::from_secs(self.keep_alive_seconds),
        };
        let access = Access {
            connections: self.connections,
            connections_per_address: self.connections_per_address,
            unauthenticated: self.unauthenticated_connections.min(self.connections),
            logon: Duration::from_secs(self.logon_seconds),
            idle: Duration::from_secs(self.idle_seconds),
            write: Duration::from_secs(self.write_seconds),
            call: usize::try_from(self.call_bytes.0).unwrap_or(64 << 10),
            pending_calls: self.pending_calls,
        };
        (limits, access)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Option<WitnessConfig>, String> {
        WitnessConfig::parse(text, Path::new("smbd.toml")).map_err(|error| error.to_string())
    }

    const OWN: &str = "[witness]\nlisten=['0.0.0.0:49152']\nname='one'\naddresses=['192.0.2.1']\n";

    #[test]
    fn without_its_table_there_is_no_service() {
        assert_eq!(parse("[server]\nname='x'\n"), Ok(None));
        let config = parse(OWN).unwrap().unwrap();
        assert_eq!(config.nodes.len(), 1);
        assert_eq!(config.nodes[0].state, NodeState::Up);
        assert!(config.endpoint_mapper.is_empty());
        assert_eq!(config.limits, Limits::default());
    }

    #[test]
    fn other_nodes_are_unknown_until_somebody_says_how_they_are() {
        let more =
            format!("{OWN}[[witness.node]]\nname='two'\naddresses=['192.0.2.2','2001:db8::2']\n");
        let config = parse(&more).unwrap().unwrap();
        assert_eq!(config.nodes[1].state, NodeState::Unknown);
        assert_eq!(config.nodes[1].addresses.len(), 2);
    }

    #[test]
    fn what_cannot_be_is_named() {
        for (text, right) in [
            (
                "[witness]\nlisten=[]\nname='a'\naddresses=['1.2.3.4']\n".to_owned(),
                "witness.listen",
            ),
            (OWN.replace("'one'", "'a name with blanks'"), "witness.name"),
            (OWN.replace("['192.0.2.1']", "[]"), "witness.addresses"),
            (format!("{OWN}[[witness.node]]\nname='ONE'\naddresses=['192.0.2.2']\n"), "twice"),
            (format!("{OWN}[[witness.node]]\nname='b'\naddresses=['192.0.2.1']\n"), "two nodes"),
            (format!("{OWN}[witness.limits]\ncall_bytes='1KiB'\n"), "call_bytes"),
            (format!("{OWN}[witness.limits]\npending_calls=0\n"), "at least 1"),
            (format!("{OWN}colour='red'\n"), "line 5"),
        ] {
            let error = parse(&text).unwrap_err();
            assert!(error.contains(right), "{error}");
        }
    }
}

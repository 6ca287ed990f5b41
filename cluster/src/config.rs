//! `[cluster]` of the configuration file: unknown keys are errors, every value is checked before use.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Deserialize;
use state_store::etcd::{Client, Settings as Etcd, TlsFiles};
use zeroize::Zeroizing;

use crate::{
    engine::{Fence, Settings, Timing},
    record::Keys,
};

/// Bounds of a lease in seconds: etcd gives none that is shorter than one and a half elections.
const LEASE: std::ops::RangeInclusive<u64> = 2..=60;
/// Shortest silence in milliseconds: a leader of etcd is not found much faster.
const SILENCE: u64 = 400;
/// Longest time that locks of a lost node are waited for: a persistent handle lives no longer.
const MOST_LOCKS: u64 = 300;

/// A configuration that cannot be used; the text says where and what to do.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {key}: {message}", path = path.display())]
pub struct ConfigError {
    path: PathBuf,
    key: String,
    message: String,
}

/// The part of the file that is about the cluster; the rest is the file server's.
#[derive(Deserialize, JsonSchema)]
struct File {
    cluster: Option<Section>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Section {
    name: String,
    node: u16,
    node_name: Option<String>,
    endpoints: Vec<String>,
    ca_file: Option<PathBuf>,
    cert_file: Option<PathBuf>,
    key_file: Option<PathBuf>,
    user: Option<String>,
    password_file: Option<PathBuf>,
    #[serde(default = "default_lease")]
    lease_seconds: u64,
    silence_milliseconds: Option<u64>,
    fence: FenceName,
    #[serde(default)]
    fence_agent: Vec<AgentSection>,
    #[serde(default)]
    role: Vec<RoleSection>,
}

fn default_lease() -> u64 {
    3
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum FenceName {
    Gate,
    Agent,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct AgentSection {
    node: u16,
    command: Vec<String>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct RoleSection {
    name: String,
    #[serde(default)]
    shares: Vec<String>,
    #[serde(default)]
    targets: Vec<String>,
    server_name: Option<String>,
    #[serde(default)]
    listen: Vec<SocketAddr>,
    #[serde(default)]
    iscsi_listen: Vec<SocketAddr>,
    addresses: Option<Unmanaged>,
    interface: Option<String>,
    prefix: Option<u8>,
    #[serde(default)]
    mounts: Vec<PathBuf>,
    #[serde(default)]
    prefer: Vec<u16>,
    #[serde(default = "default_locks")]
    locks_seconds: u64,
    metrics: Option<SocketAddr>,
}

/// More than GlusterFS (42 s) and CephFS (60 s) take until they count a client as gone.
fn default_locks() -> u64 {
    65
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Unmanaged {
    None,
}

/// Addresses that go where their role goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Floating {
    /// The interface that has them while the role is here.
    pub interface: String,
    /// Bits of their network.
    pub prefix: u8,
}

/// What is served together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Role {
    /// Its shares, as the configuration names them.
    pub shares: Vec<String>,
    /// The names of its iSCSI targets.
    pub targets: Vec<String>,
    /// The server's name in this role, if it is not the one of `[server]`.
    pub server_name: Option<String>,
    /// Addresses with ports where its shares are served.
    pub listen: Vec<SocketAddr>,
    /// Addresses with ports where its targets are.
    pub iscsi_listen: Vec<SocketAddr>,
    /// How these addresses come to a node; `None` if they are there already, or somebody else sees to
    /// it.
    pub floating: Option<Floating>,
    /// Folders that must be mount points before it is served.
    pub mounts: Vec<PathBuf>,
    /// Nodes that it goes to first.
    pub prefer: Vec<u16>,
    /// How long the file system may hold the locks of a node that was lost.
    pub locks: Duration,
    /// Where its metrics are found.
    pub metrics: Option<SocketAddr>,
}

impl Role {
    /// The addresses of clients, each once.
    pub fn addresses(&self) -> Vec<IpAddr> {
        let all = self.listen.iter().chain(&self.iscsi_listen);
        let mut all: Vec<_> = all.map(SocketAddr::ip).collect();
        all.sort_unstable();
        all.dedup();
        all
    }
}

/// The table `[cluster]` with all that it has, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// The cluster's name.
    pub name: String,
    /// This node's number.
    pub node: u16,
    /// This node's name.
    pub node_name: String,
    /// Where etcd is.
    pub etcd: Etcd,
    /// How fast it is.
    pub timing: Timing,
    /// What makes sure that a dead node is dead.
    pub fence: Fence,
    /// The command that ends a node, with its arguments.
    pub agents: BTreeMap<u16, Vec<String>>,
    /// What is served, by name.
    pub roles: BTreeMap<String, Role>,
}

/// Whether a text can be a name: it is part of keys and of paths.
fn is_name(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    (1..=32).contains(&text.len()) && text.chars().all(plain)
}

struct Check<'a>(&'a Path);

impl Check<'_> {
    fn bad(&self, key: impl Into<String>, message: impl Into<String>) -> ConfigError {
        ConfigError { path: self.0.to_owned(), key: key.into(), message: message.into() }
    }

    fn relative(&self, path: &Path) -> PathBuf {
        self.0.parent().unwrap_or(Path::new("")).join(path)
    }

    /// A file that nobody else may read.
    fn secret(&self, key: &str, path: &Path) -> Result<PathBuf, ConfigError> {
        let path = self.relative(path);
        let found = std::fs::metadata(&path);
        let found = found.map_err(|error| self.bad(key, format!("{}: {error}", path.display())))?;
        if found.mode() & 0o077 != 0 {
            let message = format!("{0}: others may read it; chmod 600 {0}", path.display());
            return Err(self.bad(key, message));
        }
        Ok(path)
    }

    fn etcd(&self, section: &Section, timing: Timing) -> Result<Etcd, ConfigError> {
        let own = match (&section.cert_file, &section.key_file) {
            (Some(certificate), Some(key)) => {
                Some((self.relative(certificate), self.secret("cluster.key_file", key)?))
            }
            (None, None) => None,
            _ => return Err(self.bad("cluster.cert_file", "goes with cluster.key_file")),
        };
        let tls = match &section.ca_file {
            Some(ca) => Some(TlsFiles { ca: self.relative(ca), own }),
            None if own.is_some() => {
                return Err(self.bad("cluster.cert_file", "goes with cluster.ca_file"));
            }
            None => None,
        };
        let login = match (&section.user, &section.password_file) {
            (Some(user), Some(file)) => {
                let file = self.secret("cluster.password_file", file)?;
                let text = std::fs::read_to_string(&file).map_err(|error| {
                    self.bad("cluster.password_file", format!("{}: {error}", file.display()))
                })?;
                let text = Zeroizing::new(text);
                Some((user.clone(), Zeroizing::new(text.trim_end_matches('\n').to_owned())))
            }
            (None, None) => None,
            _ => return Err(self.bad("cluster.user", "goes with cluster.password_file")),
        };
        let attempt = timing.lease / 6;
        let etcd = Etcd { endpoints: section.endpoints.clone(), tls, login, attempt };
        // Whatever is wrong with the files is told now.
        Client::new(&etcd).map_err(|why| self.bad("cluster.endpoints", why))?;
        Ok(etcd)
    }

    fn role(&self, role: &RoleSection) -> Result<Role, ConfigError> {
        let key = format!("cluster.role {:?}", role.name);
        if !is_name(&role.name) {
            return Err(self.bad(key, "name: 1 to 32 letters, digits, hyphens and underscores"));
        }
        if role.shares.is_empty() && role.targets.is_empty() {
            return Err(self.bad(key, "give at least one share, or one target"));
        }
        for (what, named, at, listen) in [
            ("shares", &role.shares, "listen", &role.listen),
            ("targets", &role.targets, "iscsi_listen", &role.iscsi_listen),
        ] {
            if named.is_empty() != listen.is_empty() {
                let message = format!("{what} are served at the addresses of {at}: give both");
                return Err(self.bad(key, message));
            }
        }
        if role.locks_seconds > MOST_LOCKS {
            return Err(self.bad(key, format!("locks_seconds: {MOST_LOCKS} at most")));
        }
        let floating = match (&role.interface, role.prefix, role.addresses) {
            (Some(interface), Some(prefix), None) => {
                let plain = |c: char| c.is_ascii_graphic() && c != '/';
                let fits = |at: &SocketAddr| {
                    let most = if at.is_ipv4() { 32 } else { 128 };
                    prefix <= most && !at.ip().is_unspecified()
                };
                if !role.listen.iter().chain(&role.iscsi_listen).all(fits) {
                    return Err(self.bad(key, "listen: addresses that fit interface and prefix"));
                }
                if interface.is_empty() || interface.len() > 15 || !interface.chars().all(plain) {
                    return Err(self.bad(key, "interface: no name of an interface"));
                }
                Some(Floating { interface: interface.clone(), prefix })
            }
            (None, None, Some(Unmanaged::None)) => None,
            _ => {
                let message = "give interface and prefix, so that the addresses of listen go where \
                               the role goes; or addresses = \"none\" if something else sees to it";
                return Err(self.bad(key, message));
            }
        };
        Ok(Role {
            shares: role.shares.clone(),
            targets: role.targets.clone(),
            server_name: role.server_name.clone(),
            listen: role.listen.clone(),
            iscsi_listen: role.iscsi_listen.clone(),
            floating,
            mounts: role.mounts.iter().map(|path| self.relative(path)).collect(),
            prefer: role.prefer.clone(),
            locks: Duration::from_secs(role.locks_seconds),
            metrics: role.metrics,
        })
    }
}

/// The schema of what the file says of the cluster.
pub fn schema(generator: &mut SchemaGenerator) -> Schema {
    File::json_schema(generator)
}

impl Config {
    /// Reads and checks `[cluster]` of a file; `None` if it has none.
    ///
    /// # Errors
    /// [`ConfigError`]
    pub fn load(path: &Path) -> Result<Option<Self>, ConfigError> {
        let check = Check(path);
        let text = std::fs::read_to_string(path);
        let text = text.map_err(|error| check.bad("cluster", error.to_string()))?;
        Self::parse(&Zeroizing::new(text), path)
    }

    /// Checks the text of a file; `path` is for messages and relative paths.
    ///
    /// # Errors
    /// [`ConfigError`]
    pub fn parse(text: &str, path: &Path) -> Result<Option<Self>, ConfigError> {
        let check = Check(path);
        let file: File =
            toml::from_str(text).map_err(|error| check.bad("cluster", error.message()))?;
        let Some(section) = file.cluster else { return Ok(None) };
        if !is_name(&section.name) {
            let message = "1 to 32 letters, digits, hyphens and underscores";
            return Err(check.bad("cluster.name", message));
        }
        if section.node == 0 {
            return Err(check.bad("cluster.node", "a number from 1 on, another one on each node"));
        }
        if !LEASE.contains(&section.lease_seconds) {
            return Err(check.bad("cluster.lease_seconds", "between 2 and 60"));
        }
        let mut timing = Timing::of_lease(section.lease_seconds);
        if let Some(silence) = section.silence_milliseconds {
            if !(SILENCE..section.lease_seconds * 1000).contains(&silence) {
                let message = "at least 400, and less than lease_seconds";
                return Err(check.bad("cluster.silence_milliseconds", message));
            }
            timing.silence = Some(Duration::from_millis(silence));
        }
        let mut agents = BTreeMap::new();
        for agent in &section.fence_agent {
            let key = format!("cluster.fence_agent of node {}", agent.node);
            if agent.command.first().is_none_or(|program| !program.starts_with('/')) {
                return Err(check.bad(key, "command: a program by its whole path, then arguments"));
            }
            if agents.insert(agent.node, agent.command.clone()).is_some() {
                return Err(check.bad(key, "defined twice"));
            }
        }
        let fence = match section.fence {
            FenceName::Gate => Fence::Gate,
            FenceName::Agent if agents.is_empty() => {
                let message = "\"agent\" needs a [[cluster.fence_agent]] for every other node";
                return Err(check.bad("cluster.fence", message));
            }
            FenceName::Agent => Fence::Agent,
        };
        let (mut roles, mut taken, mut addresses) =
            (BTreeMap::new(), BTreeSet::new(), BTreeSet::new());
        let mut targets = BTreeSet::new();
        for role in &section.role {
            let checked = check.role(role)?;
            let key = format!("cluster.role {:?}", role.name);
            for share in &checked.shares {
                if !taken.insert(share.to_lowercase()) {
                    return Err(check.bad(key, format!("share {share:?} is in two roles")));
                }
            }
            for target in &checked.targets {
                if !targets.insert(target.clone()) {
                    return Err(check.bad(key, format!("target {target:?} is in two roles")));
                }
            }
            for address in checked.listen.iter().chain(&checked.iscsi_listen) {
                if !addresses.insert(*address) {
                    return Err(check.bad(key, format!("{address} is in two roles")));
                }
            }
            if roles.insert(role.name.clone(), checked).is_some() {
                return Err(check.bad(key, "defined twice"));
            }
        }
        let etcd = check.etcd(&section, timing)?;
        let node_name = section.node_name.unwrap_or_else(host_name);
        let Section { name, node, .. } = section;
        Ok(Some(Self { name, node, node_name, etcd, timing, fence, agents, roles }))
    }

    /// The keys of the cluster.
    pub fn keys(&self) -> Keys {
        Keys::new(&self.name)
    }

    /// What the engine needs to know.
    pub fn settings(&self, version: &str) -> Settings {
        let roles = self.roles.iter();
        Settings {
            node: self.node,
            name: self.node_name.clone(),
            version: version.to_owned(),
            roles: roles.map(|(name, role)| (name.clone(), role.prefer.clone())).collect(),
            timing: self.timing,
            fence: self.fence,
            keys: self.keys(),
            reach: None,
        }
    }
}

fn host_name() -> String {
    let name = rustix::system::uname();
    name.nodename().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    const HEAD: &str = "[server]\nlisten = []\n[cluster]\nname = \"c\"\nnode = 2\nfence = \"gate\"\n\
                        endpoints = [\"http://127.0.0.1:2379\"]\n";
    const ROLE: &str =
        "[[cluster.role]]\nname = \"r\"\nshares = [\"s\"]\nlisten = [\"10.0.0.1:445\"]\n";

    fn parse(text: &str) -> Result<Config, String> {
        let parsed = Config::parse(text, Path::new("/tmp/smbd.toml"));
        parsed.map(Option::unwrap).map_err(|error| error.to_string())
    }

    #[test]
    fn a_file_without_the_table_has_no_cluster() {
        assert!(Config::parse("[server]\n", Path::new("x")).unwrap().is_none());
    }

    #[test]
    fn a_cluster_is_read_with_its_defaults() {
        let text = format!("{HEAD}{ROLE}interface = \"eth0\"\nprefix = 24\nmounts = [\"vms\"]\n");
        let config = parse(&text).unwrap();
        let role = &config.roles["r"];
        assert_eq!((config.node, config.timing), (2, Timing::of_lease(3)));
        assert_eq!(role.floating, Some(Floating { interface: "eth0".into(), prefix: 24 }));
        assert_eq!(role.mounts, [Path::new("/tmp/vms")]);
        assert_eq!(role.locks, Duration::from_secs(65));
        assert!(config.timing.beat * 4 < config.timing.lease - config.timing.margin);
    }

    #[test]
    fn contradictions_are_refused() {
        let none = "addresses = \"none\"\n";
        for (text, want) in [
            (HEAD.replace("node = 2", "node = 0"), "cluster.node"),
            (HEAD.replace("\"c\"", "\"a/b\""), "cluster.name"),
            (HEAD.replace("\"gate\"", "\"none\""), "unknown variant"),
            (HEAD.replace("\"gate\"", "\"agent\""), "needs a [[cluster.fence_agent]]"),
            (HEAD.replace("http://127.0.0.1:2379", "127.0.0.1"), "is not https://host:port"),
            (HEAD.replace("http:", "https:"), "certificates of authorities"),
            (format!("{HEAD}lease_seconds = 1\n"), "between 2 and 60"),
            (format!("{HEAD}colour = 1\n"), "unknown field"),
            (format!("{HEAD}user = \"u\"\n"), "goes with cluster.password_file"),
            (format!("{HEAD}cert_file = \"c\"\n"), "goes with cluster.key_file"),
            (format!("{HEAD}{ROLE}"), "give interface and prefix"),
            (format!("{HEAD}{ROLE}interface = \"e\"\nprefix = 33\n"), "fit interface and prefix"),
            (format!("{HEAD}{ROLE}{none}{ROLE}{none}"), "is in two roles"),
            (format!("{HEAD}{ROLE}{none}targets = [\"t\"]\n"), "of iscsi_listen: give both"),
            (format!("{HEAD}{ROLE}{none}iscsi_listen = [\"10.0.0.1:3260\"]\n"), "give both"),
            (format!("{HEAD}{ROLE}{none}locks_seconds = 301\n"), "300 at most"),
            (format!("{HEAD}[[cluster.role]]\nname = \"r\"\n{none}"), "or one target"),
            (
                format!("{HEAD}[[cluster.fence_agent]]\nnode = 1\ncommand = [\"fence\"]\n"),
                "by its whole path",
            ),
        ] {
            let error = parse(&text).unwrap_err();
            assert!(error.contains(want), "{text}: {error}");
        }
        parse(&format!("{HEAD}{ROLE}{none}")).unwrap();
    }

    #[test]
    fn a_password_that_others_can_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let secret = folder.path().join("pw");
        fs::write(&secret, "hunter2\n").unwrap();
        let text = format!("{HEAD}user = \"u\"\npassword_file = \"pw\"\n");
        let parse = || Config::parse(&text, &folder.path().join("smbd.toml"));
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(parse().unwrap_err().to_string().contains("chmod 600"));
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
        let (user, password) = parse().unwrap().unwrap().etcd.login.unwrap();
        assert_eq!((user.as_str(), password.as_str()), ("u", "hunter2"));
    }
}

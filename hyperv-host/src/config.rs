//! The daemon's configuration file.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// Path of the file that the error is about.
        path: PathBuf,
        /// The cause, as the layer below tells it.
        #[source]
        source: std::io::Error,
    },
    /// The file says something that is not understood.
    #[error("{path}: {source}")]
    Parse {
        /// Path of the file that the error is about.
        path: PathBuf,
        /// What and in which line.
        source: Box<toml::de::Error>,
    },
    /// Other hosts would be told an address that is no host's.
    #[error(
        "{path}: migration.listen is {listen}, which is every address of this host; migration.advertise \
         must say where other hosts can ask it about a move"
    )]
    Nowhere {
        /// Path of the file that the error is about.
        path: PathBuf,
        /// Where it listens.
        listen: SocketAddr,
    },
    /// A value is outside what is possible.
    #[error("{path}: {key} must be {least} to {most}")]
    Range {
        /// Path of the file that the error is about.
        path: PathBuf,
        /// The key of the configuration, with its table.
        key: &'static str,
        /// Smallest value that is possible.
        least: u64,
        /// Largest value that is possible.
        most: u64,
    },
}

/// `[host]`: the state folder, the control socket and threads.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HostConfig {
    /// Where VM files and durable records are.
    pub state_dir: PathBuf,
    /// The control socket.
    #[serde(default = "default_socket")]
    pub control_socket: PathBuf,
    /// Threads for the disks' I/O.
    #[serde(default = "two")]
    pub io_threads: usize,
    /// How long guests have to power off when the daemon is stopped, in seconds.
    #[serde(default = "default_timeout")]
    pub shutdown_s: u32,
    /// Whether each VM that is started here has a process of its own, which outlives the daemon. Such a
    /// VM is not moved to another host while it runs.
    #[serde(default)]
    pub workers: bool,
}

/// `[migration]`: where other hosts connect, and how moves go.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MigrationConfig {
    /// Where other hosts connect to; port 0 takes any free one.
    pub listen: SocketAddr,
    /// The address that other hosts are told, if not the one listened on.
    #[serde(default)]
    pub advertise: Option<String>,
    /// Certificate of the authority that all hosts have theirs from.
    pub ca: PathBuf,
    /// File with this host's certificate.
    pub certificate: PathBuf,
    /// File with the private key of the certificate.
    pub key: PathBuf,
    /// Names of hosts that may be peers; any with a certificate of the authority if empty.
    #[serde(default)]
    pub peers: Vec<String>,
    /// Longest pause of a guest to aim for.
    #[serde(default = "default_downtime")]
    pub downtime_ms: u32,
    /// Connections that carry memory.
    #[serde(default = "two_streams")]
    pub streams: u32,
    /// Most rounds before the guest is paused, or the move is given up.
    #[serde(default = "default_rounds")]
    pub max_rounds: u32,
    /// Longest pause that a guest may have where it writes faster than its memory is sent; a move that
    /// would need more is given up.
    #[serde(default = "default_longest_downtime")]
    pub longest_downtime_ms: u32,
    /// A peer that is silent for so long counts as lost.
    #[serde(default = "default_timeout")]
    pub timeout_s: u32,
    /// VMs that may be on their way in at a time.
    #[serde(default = "default_moves")]
    pub max_incoming: usize,
    /// VMs that may be on their way out at a time.
    #[serde(default = "default_moves")]
    pub max_outgoing: usize,
}

/// `[network]`: where VMs' network cards may be plugged in.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct NetworkConfig {
    /// Bridges. Without them the host's own VMs may use any, and none with a card comes from another
    /// host.
    pub bridges: Option<Vec<String>>,
}

/// Whether what goes to and comes from a server must be encrypted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Encrypted {
    /// Always: a server that does not encrypt is refused.
    #[default]
    Required,
    /// Where the server demands it.
    IfRequired,
}

/// Whether what goes to and comes from a server is compressed on its way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Compressed {
    /// Never.
    #[default]
    Never,
    /// Where the share asks for it.
    IfAsked,
    /// With every server that can.
    Always,
}

/// What guests see of storage that is away.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum StorageLoss {
    /// Nothing: they are paused until it is back.
    #[default]
    Pause,
    /// Errors, once the host has tried for `reconnect_s`.
    Report,
}

/// `[[storage.server]]`: who this host is to a file server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ServerConfig {
    /// `host` or `host:port`, as the disks' locations name it.
    pub host: String,
    /// A credentials file (`username=`, `password=`, `domain=`) for this server alone.
    #[serde(default)]
    pub credentials: Option<PathBuf>,
    /// Encryption with this server, if not `storage.encryption`.
    #[serde(default)]
    pub encryption: Option<Encrypted>,
    /// Compression with this server, if not `storage.compression`.
    #[serde(default)]
    pub compression: Option<Compressed>,
    /// Whether this server is reached by SMB Direct.
    #[serde(default)]
    pub rdma: Direct,
}

/// `rdma` of a server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Direct {
    /// By TCP alone.
    #[default]
    Never,
    /// At port 5445 where the server is there, else by TCP.
    IfPossible,
    /// By SMB Direct alone, at port 5445 if the server's locations name none.
    Always,
}

/// `[boot]`: what VMs may be started from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BootConfig {
    /// Folders that kernels and initial RAM disks are taken from, with all below them. Without them
    /// the host's own VMs may have theirs anywhere, and none comes from another host.
    pub folders: Option<Vec<PathBuf>>,
}

/// `[storage]`: where disks may be, and how shares with disks are used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct StorageConfig {
    /// Folders, shares (`smb://host[:port]/share[/folder]`) and block devices. A VM of this host or
    /// of another that sends it may have its disks there, and nowhere else. Without them the host's
    /// own VMs may have theirs anywhere, and none with disks comes from another host.
    pub locations: Option<Vec<String>>,
    /// Encryption with all servers.
    pub encryption: Encrypted,
    /// Compression with all servers.
    pub compression: Compressed,
    /// What is said of single servers.
    #[serde(rename = "server")]
    pub servers: Vec<ServerConfig>,
    /// Within how long a connection that fell silent is noticed and done without.
    pub keep_alive_ms: u32,
    /// What guests see of storage that is away.
    pub on_storage_loss: StorageLoss,
    /// How long a disk may be silent before its VM is paused.
    pub pause_after_s: u32,
    /// How long a server that is away is tried when disks are opened and closed, and, where errors are
    /// reported, before a guest sees one.
    pub reconnect_s: u32,
    /// Connections to a server at most.
    pub channels: u16,
}

impl Default for StorageConfig {
    fn default() -> Self {
        Self {
            locations: None,
            encryption: Encrypted::default(),
            compression: Compressed::default(),
            servers: Vec::new(),
            keep_alive_ms: 2000,
            on_storage_loss: StorageLoss::default(),
            pause_after_s: 5,
            reconnect_s: 60,
            channels: 4,
        }
    }
}

/// `[limits]`: what clients and VMs may take of the host.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Control connections at a time.
    pub control_connections: usize,
    /// VMs defined at a time.
    pub vms: usize,
    /// Memory of all running VMs together, in MiB; 0 for no limit.
    pub memory_mib: u64,
    /// VMs may have more memory than the host has free when they start.
    pub overcommit: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self { control_connections: 64, vms: 1024, memory_mib: 0, overcommit: false }
    }
}

/// A configuration file, checked.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The table `[host]`.
    pub host: HostConfig,
    /// `[migration]`; without it VMs cannot be moved.
    #[serde(default)]
    pub migration: Option<MigrationConfig>,
    /// The table `[storage]`.
    #[serde(default)]
    pub storage: StorageConfig,
    /// The table `[boot]`.
    #[serde(default)]
    pub boot: BootConfig,
    /// The table `[network]`.
    #[serde(default)]
    pub network: NetworkConfig,
    /// The table `[limits]`.
    #[serde(default)]
    pub limits: Limits,
    /// `[api]`: the control interface over HTTP. Without it there is its local socket alone.
    #[serde(default)]
    pub api: http_api::ApiTable,
}

fn default_socket() -> PathBuf {
    host_api::DEFAULT_SOCKET.into()
}

fn two() -> usize {
    2
}

fn two_streams() -> u32 {
    2
}

fn default_downtime() -> u32 {
    30
}

fn default_longest_downtime() -> u32 {
    2000
}

fn default_rounds() -> u32 {
    30
}

fn default_timeout() -> u32 {
    20
}

fn default_moves() -> usize {
    2
}

impl Config {
    /// Reads and checks a configuration file.
    ///
    /// # Errors
    /// [`ConfigError`], which names the file and the line or key.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(&text, path)
    }

    /// Checks the text of a configuration file; `path` is for messages and relative paths, which are
    /// taken from its folder.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let mut config: Self = toml::from_str(text).map_err(|source| ConfigError::Parse {
            path: path.to_owned(),
            source: source.into(),
        })?;
        let range = |key, value: u64, least, most| {
            if (least..=most).contains(&value) {
                Ok(())
            } else {
                Err(ConfigError::Range { path: path.to_owned(), key, least, most })
            }
        };
        range("host.io_threads", config.host.io_threads as u64, 1, 256)?;
        range("host.shutdown_s", config.host.shutdown_s.into(), 1, 3600)?;
        range("limits.control_connections", config.limits.control_connections as u64, 1, 65_536)?;
        let storage = &config.storage;
        range("storage.keep_alive_ms", storage.keep_alive_ms.into(), 200, 60_000)?;
        range("storage.pause_after_s", storage.pause_after_s.into(), 1, 600)?;
        range("storage.reconnect_s", storage.reconnect_s.into(), 1, 3600)?;
        range("storage.channels", storage.channels.into(), 1, 32)?;
        if let Some(migration) = &config.migration {
            range("migration.streams", u64::from(migration.streams), 1, 16)?;
            range("migration.downtime_ms", u64::from(migration.downtime_ms), 1, 60_000)?;
            let longest = u64::from(migration.longest_downtime_ms);
            range("migration.longest_downtime_ms", longest, 1, 600_000)?;
            range("migration.max_rounds", u64::from(migration.max_rounds), 1, 1000)?;
            range("migration.timeout_s", u64::from(migration.timeout_s), 1, 3600)?;
        }
        if let Some(migration) = &config.migration
            && migration.listen.ip().is_unspecified()
            && migration.advertise.is_none()
        {
            return Err(ConfigError::Nowhere { path: path.to_owned(), listen: migration.listen });
        }
        if let Some(folder) = path.parent() {
            config.paths().for_each(|path| *path = folder.join(&*path));
        }
        Ok(config)
    }

    /// The paths that are taken from the folder of the file. Locations of disks and folders of kernels
    /// are not: these must be absolute ([`crate::allowed::Allowed::of`]).
    fn paths(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        let host = [&mut self.host.state_dir, &mut self.host.control_socket];
        let identity = self.migration.iter_mut().flat_map(|migration| {
            [&mut migration.ca, &mut migration.certificate, &mut migration.key]
        });
        let servers = self.storage.servers.iter_mut();
        let credentials = servers.filter_map(|server| server.credentials.as_mut());
        host.into_iter().chain(identity).chain(credentials)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "[host]\nstate_dir = '/s'\n[migration]\nlisten = '127.0.0.1:0'\n\
                        ca = 'a'\ncertificate = 'b'\nkey = 'c'\n";

    #[test]
    fn defaults_are_filled_in_and_mistakes_are_named() {
        let config = Config::parse(TEXT, Path::new("x")).unwrap();
        assert_eq!(config.migration.unwrap().downtime_ms, 30);
        let error = Config::parse(&TEXT.replace("ca =", "caa ="), Path::new("x")).unwrap_err();
        assert!(
            error.to_string().contains("line 5") && error.to_string().contains("caa"),
            "{error}"
        );
        let anywhere = TEXT.replace("127.0.0.1:0", "0.0.0.0:7443");
        let error = Config::parse(&anywhere, Path::new("x")).unwrap_err().to_string();
        assert!(error.contains("advertise") && error.contains("0.0.0.0:7443"), "{error}");
        Config::parse(&format!("{anywhere}advertise = 'a:1'\n"), Path::new("x")).unwrap();
        let error = Config::parse(&format!("{TEXT}streams = 99\n"), Path::new("x")).unwrap_err();
        assert!(error.to_string().contains("migration.streams"), "{error}");
        for (bad, key) in [("keep_alive_ms = 100", "keep_alive_ms"), ("channels = 0", "channels")] {
            let text = format!("{TEXT}[storage]\n{bad}\n");
            let error = Config::parse(&text, Path::new("x")).unwrap_err().to_string();
            assert!(error.contains(key) && error.contains("must be"), "{error}");
        }
    }

    #[test]
    fn the_shipped_configuration_is_valid() {
        let text = include_str!("../../conf/hyperv-host.toml");
        Config::parse(text, Path::new("conf/hyperv-host.toml")).unwrap();
        let vm = include_str!("../../conf/vm.toml");
        host_api::VmDefinition::from_toml(vm).unwrap();
    }

    /// A block with a `[host]` is a configuration, any other a VM file.
    #[test]
    fn what_the_documents_show_is_valid() {
        for document in [include_str!("../README.md"), include_str!("../../README.md")] {
            for block in document.split("```toml\n").skip(1) {
                let block = block.split("```").next().unwrap();
                if block.contains("[host]") {
                    Config::parse(block, Path::new("README.md")).unwrap();
                } else {
                    host_api::VmDefinition::from_toml(block).unwrap();
                }
            }
        }
    }
}

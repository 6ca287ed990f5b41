//! The configuration file: TOML, unknown keys are errors, every value is checked before use.

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashSet},
    fmt,
    net::{IpAddr, SocketAddr},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    str::FromStr,
};

use serde::Deserialize;
use smb_protocol::{
    Dialect,
    ntlm::{NtHash, users},
};
use zeroize::Zeroizing;

use crate::{accounts, dfs::Namespace, network::Network};

mod dfs;
mod interface;
mod kerberos;

pub use interface::{Interface, Interfaces};
pub use kerberos::Kerberos;

/// A configuration that cannot be used; the text says where and what to do.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not TOML, an unknown key, or a value of the wrong type.
    #[error("{path}: {message}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// What and where.
        message: String,
    },
    /// A value that cannot be.
    #[error("{path}: {key}: {message}")]
    Value {
        /// The file.
        path: PathBuf,
        /// The key, with its table.
        key: String,
        /// What is wrong and what to do.
        message: String,
    },
}

/// A size in bytes, written as a number or as text with a unit: `"8MiB"`, `"512K"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "SizeText")]
pub struct Size(pub u64);

#[derive(Deserialize)]
#[serde(untagged)]
enum SizeText {
    Number(u64),
    Text(String),
}

impl TryFrom<SizeText> for Size {
    type Error = String;

    fn try_from(value: SizeText) -> Result<Self, String> {
        match value {
            SizeText::Number(n) => Ok(Size(n)),
            SizeText::Text(text) => text.parse(),
        }
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let shift = match unit.trim().to_ascii_lowercase().as_str() {
            "" | "b" => 0,
            "k" | "kib" => 10,
            "m" | "mib" => 20,
            "g" | "gib" => 30,
            "t" | "tib" => 40,
            _ => return Err(format!("{text:?} is no size; write for example \"8MiB\"")),
        };
        number
            .parse::<u64>()
            .ok()
            .and_then(|n| n.checked_mul(1 << shift))
            .map(Size)
            .ok_or_else(|| format!("{text:?} is no size; write for example \"8MiB\""))
    }
}

/// Whether messages must be signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Signing {
    /// Every session signs or encrypts.
    #[default]
    Required,
    /// A session signs if the client wants it.
    Enabled,
}

/// Whether messages are encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Encryption {
    /// Not even offered.
    Off,
    /// Offered; the client decides.
    Offered,
    /// Clients that can are told to encrypt.
    #[default]
    Desired,
    /// Who does not encrypt is refused.
    Required,
}

/// Dialects by the names administrators write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
enum DialectName {
    #[serde(rename = "2.0.2")]
    V2_0_2,
    #[serde(rename = "2.1")]
    V2_1,
    #[serde(rename = "3.0")]
    V3_0,
    #[serde(rename = "3.0.2")]
    V3_0_2,
    #[serde(rename = "3.1.1")]
    V3_1_1,
}

impl DialectName {
    fn dialect(self) -> Dialect {
        match self {
            Self::V2_0_2 => Dialect::SMB_2_0_2,
            Self::V2_1 => Dialect::SMB_2_1,
            Self::V3_0 => Dialect::SMB_3_0,
            Self::V3_0_2 => Dialect::SMB_3_0_2,
            Self::V3_1_1 => Dialect::SMB_3_1_1,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    server: ServerSection,
    #[serde(default)]
    limits: Limits,
    kerberos: Option<kerberos::Section>,
    #[serde(default)]
    interface: Vec<interface::Section>,
    #[serde(default)]
    user: Vec<UserSection>,
    #[serde(default)]
    share: Vec<ShareSection>,
    #[serde(default)]
    dfs: Vec<dfs::Section>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ServerSection {
    listen: Vec<SocketAddr>,
    #[serde(default = "default_name")]
    name: String,
    state_dir: PathBuf,
    #[serde(default)]
    signing: Signing,
    #[serde(default)]
    encryption: Encryption,
    users_file: Option<PathBuf>,
    min_dialect: Option<DialectName>,
    metrics: Option<SocketAddr>,
    user: Option<String>,
    #[serde(default = "yes")]
    sandbox: bool,
    max_dialect: Option<DialectName>,
    #[serde(default = "default_io_size")]
    max_io_size: Size,
    #[serde(default)]
    io_engine: IoEngine,
    threads: Option<usize>,
    congestion_control: Option<String>,
    #[serde(default = "yes")]
    multichannel: bool,
    #[serde(default)]
    test_controls: bool,
    #[serde(default)]
    comment: String,
    #[serde(default)]
    admin_users: Vec<String>,
}

fn yes() -> bool {
    true
}

fn default_name() -> String {
    "BULKHEAD".to_owned()
}

fn default_io_size() -> Size {
    Size(8 << 20)
}

/// What does file I/O that may wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IoEngine {
    /// io_uring where the kernel has it.
    #[default]
    Auto,
    /// io_uring or nothing.
    Uring,
    /// A pool of threads.
    Threads,
}

impl From<IoEngine> for block_io::Engine {
    fn from(engine: IoEngine) -> Self {
        match engine {
            IoEngine::Auto => Self::Auto,
            IoEngine::Uring => Self::Uring,
            IoEngine::Threads => Self::Threads,
        }
    }
}

/// What sparse files of a share are to clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sparse {
    /// Disks of virtual machines: hosts are told that they can rely on them (MS-HVRS, C0009).
    #[default]
    Vm,
    /// Files like others.
    General,
}

/// Everything a peer can make grow.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Connections at a time.
    pub connections: usize,
    /// Connections from one address at a time.
    pub connections_per_address: usize,
    /// Sessions of one connection.
    pub sessions_per_connection: usize,
    /// Trees of one session.
    pub trees_per_session: usize,
    /// Opens of one session.
    pub opens_per_session: usize,
    /// Opens of the whole server.
    pub opens: usize,
    /// Durable and resilient opens that are kept for clients that are away.
    pub kept_opens: usize,
    /// Byte-range locks of the whole server.
    pub locks: usize,
    /// Credits a connection may hold: requests in flight.
    pub credits: u16,
    /// Requests of one connection that wait for storage or an event.
    pub pending_requests: usize,
    /// Memory of one connection for pending requests.
    pub pending_bytes: Size,
    /// Seconds a connection has to authenticate.
    pub authentication_seconds: u64,
    /// Seconds a client may leave answers unread.
    pub write_seconds: u64,
    /// Length that a write may give a file. NTFS ends at 16 TiB less 64 KiB, and clients know.
    pub file_size: Size,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 4096,
            connections_per_address: 2048,
            sessions_per_connection: 64,
            trees_per_session: 256,
            opens_per_session: 16_384,
            opens: 262_144,
            kept_opens: 65_536,
            locks: 1_048_576,
            credits: 8192,
            pending_requests: 1024,
            pending_bytes: Size(64 << 20),
            authentication_seconds: 20,
            write_seconds: 60,
            file_size: Size(0xfff_ffff_0000),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UserSection {
    name: String,
    password: Option<Zeroizing<String>>,
    nt_hash: Option<Zeroizing<String>>,
    password_file: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ShareSection {
    name: String,
    path: PathBuf,
    #[serde(default)]
    users: Vec<String>,
    encryption: Option<Encryption>,
    #[serde(default)]
    read_only: bool,
    #[serde(default)]
    access_based_enumeration: bool,
    #[serde(default)]
    comment: String,
    #[serde(default = "yes")]
    browseable: bool,
    #[serde(default)]
    hosts_allow: Vec<Network>,
    #[serde(default)]
    hosts_deny: Vec<Network>,
    max_connections: Option<usize>,
    max_opens: Option<usize>,
    #[serde(default)]
    force_level2_oplocks: bool,
    #[serde(default)]
    continuously_available: bool,
    #[serde(default)]
    sparse: Sparse,
    group: Option<String>,
}

/// A share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    /// Name, unique without regard to case.
    pub name: String,
    /// Folder it shows.
    pub path: PathBuf,
    /// Users who may use it, folded; nobody else may.
    pub users: HashSet<String>,
    /// Whether it must be encrypted.
    pub encryption: Option<Encryption>,
    /// Nothing in it may be changed.
    pub read_only: bool,
    /// Listings leave out what the user cannot read.
    pub access_based_enumeration: bool,
    /// Shown in listings.
    pub comment: String,
    /// Shown in listings at all.
    pub browseable: bool,
    /// From where it may be used; anywhere if empty.
    pub hosts_allow: Vec<Network>,
    /// From where it may not, whatever `hosts_allow` says.
    pub hosts_deny: Vec<Network>,
    /// Trees that may be connected to it at a time.
    pub max_connections: Option<usize>,
    /// Opens in it at a time.
    pub max_opens: Option<usize>,
    /// No client may cache writes (MS-SMB2 3.3.1.6, `Share.ForceLevel2Oplock`).
    pub force_level2_oplocks: bool,
    /// What its files are.
    pub sparse: Sparse,
    /// Opens may outlive the server (MS-SMB2 3.3.1.6, `Share.IsCA`).
    pub continuously_available: bool,
    /// Group of the system that files made in it get.
    pub group: Option<u32>,
}

impl Share {
    /// Whether a client at an address may use it.
    pub fn admits(&self, address: IpAddr) -> bool {
        let listed = |list: &[Network]| list.iter().any(|network| network.holds(address));
        !listed(&self.hosts_deny) && (self.hosts_allow.is_empty() || listed(&self.hosts_allow))
    }
}

/// A configuration that was checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// Addresses to listen on.
    pub listen: Vec<SocketAddr>,
    /// NetBIOS-style name of the server.
    pub name: String,
    /// Where the server keeps its state.
    pub state_dir: PathBuf,
    /// Where Prometheus finds its metrics.
    pub metrics: Option<SocketAddr>,
    /// Signing policy.
    pub signing: Signing,
    /// Encryption policy.
    pub encryption: Encryption,
    /// Lowest dialect.
    pub min_dialect: Dialect,
    /// Highest dialect.
    pub max_dialect: Dialect,
    /// Largest read, write and transaction in bytes.
    pub max_io_size: u32,
    /// What does file I/O that may wait.
    pub io_engine: IoEngine,
    /// Worker threads; `None` is one per CPU.
    pub threads: Option<usize>,
    /// How TCP reacts to a full network; `None` is CUBIC where the system has it.
    pub congestion_control: Option<String>,
    /// Sessions may use several connections.
    pub multichannel: bool,
    /// What clients are told of interfaces, where it is not what the system says.
    pub interfaces: Interfaces,
    /// Clients may use the private controls of Samba's test suite.
    pub test_controls: bool,
    /// Limits.
    pub limits: Limits,
    /// Shown beside the name in listings.
    pub comment: String,
    /// Kerberos, if it is spoken.
    pub kerberos: Option<Kerberos>,
    /// Hashes of users who have one, by folded name.
    pub users: BTreeMap<String, NtHash>,
    /// All users as they are written, by folded name.
    pub user_names: BTreeMap<String, String>,
    /// Users who administer the server, folded.
    pub admin_users: HashSet<String>,
    /// Shares by folded name.
    pub shares: BTreeMap<String, Share>,
    /// Parts of shares that are served elsewhere, by folded share name.
    pub namespaces: BTreeMap<String, Namespace>,
    /// Files with secrets that it was read from, beside its own.
    pub secrets: Vec<PathBuf>,
    /// User of the system that the server becomes once its ports are bound.
    pub user: Option<String>,
    /// The server confines itself to its folders and to the system calls it needs.
    pub sandbox: bool,
}

impl Config {
    /// Reads and checks a file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = read_text(path)?;
        Self::parse(&text, path)
    }

    /// Checks the text of a file; `path` is for messages and relative paths.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let file: File = toml::from_str(text).map_err(|error| ConfigError::Syntax {
            path: path.to_owned(),
            message: syntax_message(text, &error),
        })?;
        let check = Check { path, secrets: RefCell::default() };
        let ServerSection { name, listen, .. } = &file.server;
        if listen.is_empty() {
            return Err(check.bad("server.listen", "give at least one address, \"0.0.0.0:445\""));
        }
        let ok_name = |c: char| c.is_ascii_alphanumeric() || c == '-';
        if name.is_empty() || name.len() > 15 || !name.chars().all(ok_name) {
            return Err(check.bad("server.name", "1 to 15 letters, digits and hyphens"));
        }
        let max_io = file.server.max_io_size.0;
        if !(65_536..=8 << 20).contains(&max_io) {
            return Err(check.bad("server.max_io_size", "between 64KiB and 8MiB"));
        }
        if !(16..=8192).contains(&file.limits.credits) {
            return Err(check.bad("limits.credits", "between 16 and 8192"));
        }
        if file.server.threads == Some(0) {
            return Err(check.bad("server.threads", "at least 1"));
        }
        let min = file.server.min_dialect.unwrap_or(DialectName::V2_0_2).dialect();
        let max = file.server.max_dialect.unwrap_or(DialectName::V3_1_1).dialect();
        if min > max {
            return Err(check.bad("server.min_dialect", "must not be above max_dialect"));
        }
        let (users, user_names) = check.users(&file)?;
        let admin_users =
            check.known(&file.server.admin_users, &user_names, "server.admin_users")?;
        let shares = check.shares(&file, &user_names)?;
        let namespaces = check.namespaces(&file.dfs, &shares)?;
        let section = file.kerberos.as_ref();
        let kerberos = section.map(|section| check.kerberos(section, &user_names)).transpose()?;
        Ok(Self {
            listen: file.server.listen,
            name: file.server.name,
            state_dir: file.server.state_dir,
            metrics: file.server.metrics,
            secrets: check.secrets.take(),
            user: file.server.user,
            sandbox: file.server.sandbox,
            signing: file.server.signing,
            encryption: file.server.encryption,
            min_dialect: min,
            max_dialect: max,
            max_io_size: u32::try_from(max_io).unwrap_or(8 << 20),
            io_engine: file.server.io_engine,
            threads: file.server.threads,
            congestion_control: file.server.congestion_control,
            multichannel: file.server.multichannel,
            interfaces: check.interfaces(&file.interface)?,
            test_controls: file.server.test_controls,
            comment: file.server.comment,
            limits: file.limits,
            kerberos,
            users,
            user_names,
            admin_users,
            shares,
            namespaces,
        })
    }

    /// Whether encryption is offered to clients at all.
    pub fn offers_encryption(&self) -> bool {
        self.encryption != Encryption::Off
            || self.shares.values().any(|s| s.encryption == Some(Encryption::Required))
    }
}

/// Where and what, without repeating the line: it may hold a secret.
fn syntax_message(text: &str, error: &toml::de::Error) -> String {
    let at = error.span().map_or(0, |span| span.start).min(text.len());
    let before = &text.as_bytes()[..at];
    let line = before.iter().filter(|b| **b == b'\n').count() + 1;
    let column = before.iter().rev().take_while(|b| **b != b'\n').count() + 1;
    format!("line {line}, column {column}: {}", error.message())
}

fn read_text(path: &Path) -> Result<Zeroizing<String>, ConfigError> {
    std::fs::read_to_string(path)
        .map(Zeroizing::new)
        .map_err(|source| ConfigError::Read { path: path.to_owned(), source })
}

struct Check<'a> {
    path: &'a Path,
    /// Files with secrets that were read.
    secrets: RefCell<Vec<PathBuf>>,
}

impl Check<'_> {
    fn bad(&self, key: &str, message: impl fmt::Display) -> ConfigError {
        ConfigError::Value {
            path: self.path.to_owned(),
            key: key.to_owned(),
            message: message.to_string(),
        }
    }

    /// Reads a secret that only its owner may read.
    fn secret_file(&self, key: &str, path: &Path) -> Result<Zeroizing<String>, ConfigError> {
        read_text(&self.secret_path(key, path)?)
    }

    /// The path of a secret, which only its owner may read.
    fn secret_path(&self, key: &str, path: &Path) -> Result<PathBuf, ConfigError> {
        let path = &self.relative(path);
        let meta = std::fs::metadata(path)
            .map_err(|source| ConfigError::Read { path: path.clone(), source })?;
        if meta.permissions().mode() & 0o077 != 0 {
            let message = format!(
                "{} can be read by others (mode {:03o}); run: chmod 600 {}",
                path.display(),
                meta.mode() & 0o777,
                path.display()
            );
            return Err(self.bad(key, message));
        }
        self.secrets.borrow_mut().push(path.clone());
        Ok(path.clone())
    }

    /// The number of a group of the system, by number or by its name in /etc/group.
    fn group(&self, key: &str, group: &str) -> Result<u32, ConfigError> {
        if let Ok(number) = group.parse() {
            return Ok(number);
        }
        let text = std::fs::read_to_string("/etc/group").unwrap_or_default();
        let found = text.lines().find_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            (name == group).then(|| fields.nth(1)?.parse().ok())?
        });
        found.ok_or_else(|| self.bad(key, format!("group: the system has no group {group:?}")))
    }

    /// Paths are taken from the folder of the configuration file.
    fn relative(&self, path: &Path) -> PathBuf {
        self.path.parent().map_or_else(|| path.to_owned(), |folder| folder.join(path))
    }

    /// Hashes and written names by folded name.
    #[expect(clippy::type_complexity, reason = "two maps with the same keys")]
    fn users(
        &self,
        file: &File,
    ) -> Result<(BTreeMap<String, NtHash>, BTreeMap<String, String>), ConfigError> {
        let mut all = BTreeMap::new();
        let mut names = BTreeMap::new();
        for user in &file.user {
            let key = format!("user {:?}", user.name);
            if !users::is_user_name(&user.name) {
                return Err(self.bad(&key, "not a user name"));
            }
            let hash = match (&user.password, &user.nt_hash, &user.password_file) {
                (Some(password), None, None) => {
                    if password.is_empty() {
                        return Err(self.bad(&key, "the password is empty"));
                    }
                    NtHash::of_password(password)
                }
                (None, Some(hash), None) => hash
                    .parse()
                    .map_err(|e: smb_protocol::ntlm::ParseHashError| self.bad(&key, e))?,
                (None, None, Some(path)) => {
                    let text = self.secret_file(&key, path)?;
                    let line = text.lines().next().unwrap_or("");
                    if line.is_empty() {
                        return Err(self.bad(&key, "the password file is empty"));
                    }
                    NtHash::of_password(line)
                }
                // Such a user can come with a ticket only.
                (None, None, None) if file.kerberos.is_some() => {
                    if names.insert(users::fold(&user.name), user.name.clone()).is_some() {
                        return Err(self.bad(&key, "defined twice"));
                    }
                    continue;
                }
                _ => {
                    return Err(
                        self.bad(&key, "give exactly one of password, nt_hash, password_file")
                    );
                }
            };
            all.insert(users::fold(&user.name), hash);
            if names.insert(users::fold(&user.name), user.name.clone()).is_some() {
                return Err(self.bad(&key, "defined twice"));
            }
        }
        if let Some(path) = &file.server.users_file {
            let text = self.secret_file("server.users_file", path)?;
            let list = users::parse(&text)
                .map_err(|e| self.bad("server.users_file", format!("{}: {e}", path.display())))?;
            for user in list {
                all.insert(users::fold(&user.name), user.hash);
                if names.insert(users::fold(&user.name), user.name.clone()).is_some() {
                    return Err(self.bad(&format!("user {:?}", user.name), "defined twice"));
                }
            }
        }
        let mut numbers = BTreeMap::new();
        for (folded, name) in &names {
            if let Some(other) = numbers.insert(accounts::rid(folded), name) {
                let key = format!("user {name:?}");
                return Err(self.bad(&key, format!("has the number of {other:?}; rename one")));
            }
        }
        Ok((all, names))
    }

    /// The folded names of users, who must be defined.
    fn known(
        &self,
        names: &[String],
        users: &BTreeMap<String, String>,
        key: &str,
    ) -> Result<HashSet<String>, ConfigError> {
        let mut known = HashSet::new();
        for name in names {
            let folded = users::fold(name);
            if !users.contains_key(&folded) {
                return Err(self.bad(key, format!("{name:?} is not defined")));
            }
            known.insert(folded);
        }
        Ok(known)
    }

    fn shares(
        &self,
        file: &File,
        users: &BTreeMap<String, String>,
    ) -> Result<BTreeMap<String, Share>, ConfigError> {
        let mut all = BTreeMap::new();
        for share in &file.share {
            let key = format!("share {:?}", share.name);
            let plain = |c: char| !c.is_control() && !"\"\\/[]:|<>+=;,*?".contains(c);
            let len = share.name.chars().count();
            if !(1..=80).contains(&len) || !share.name.chars().all(plain) {
                return Err(self.bad(&key, "not a share name"));
            }
            let folded = users::fold(&share.name);
            if folded == "IPC$" {
                return Err(self.bad(&key, "IPC$ is the server's own"));
            }
            let path = self.relative(&share.path);
            if !path.is_dir() {
                let message = format!("path {}: no such folder; create it", path.display());
                return Err(self.bad(&key, message));
            }
            let allowed = self.known(&share.users, users, &format!("{key}: users"))?;
            let share = Share {
                name: share.name.clone(),
                path,
                users: allowed,
                encryption: share.encryption,
                read_only: share.read_only,
                access_based_enumeration: share.access_based_enumeration,
                comment: share.comment.clone(),
                browseable: share.browseable,
                hosts_allow: share.hosts_allow.clone(),
                hosts_deny: share.hosts_deny.clone(),
                max_connections: share.max_connections,
                max_opens: share.max_opens,
                force_level2_oplocks: share.force_level2_oplocks,
                sparse: share.sparse,
                continuously_available: share.continuously_available,
                group: share.group.as_deref().map(|group| self.group(&key, group)).transpose()?,
            };
            if all.insert(folded, share).is_some() {
                return Err(self.bad(&key, "defined twice"));
            }
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(text, Path::new("/tmp/smbd.toml")).map_err(|e| e.to_string())
    }

    const HEAD: &str = "[server]\nlisten = [\"127.0.0.1:0\"]\nstate_dir = \"/tmp/x\"\n";

    #[test]
    fn defaults_are_the_safe_ones() {
        let config = parse(HEAD).unwrap();
        assert_eq!(config.signing, Signing::Required);
        assert_eq!(config.encryption, Encryption::Desired);
        assert_eq!(config.max_io_size, 8 << 20);
    }

    #[test]
    fn unknown_keys_name_their_line_and_hide_values() {
        let error = parse(&format!("{HEAD}pasword = \"secret\"\n")).unwrap_err();
        assert!(error.contains("line 4") && error.contains("pasword"), "{error}");
        assert!(!error.contains("secret"), "{error}");
    }

    #[test]
    fn contradictions_are_refused() {
        for (text, want) in [
            ("[[share]]\nname='a'\npath='/nowhere'\n", "no such folder"),
            ("[[share]]\nname='a'\npath='/tmp'\nusers=['bob']\n", "\"bob\" is not defined"),
            ("[[share]]\nname='IPC$'\npath='/tmp'\n", "the server's own"),
            ("[[user]]\nname='a'\n", "exactly one of"),
            ("[[user]]\nname='a'\npassword=''\n", "empty"),
            ("[[user]]\nname='a'\npassword='x'\n[[user]]\nname='A'\npassword='y'\n", "twice"),
            ("[limits]\ncredits = 1\n", "between 16"),
            ("[[share]]\nname='a'\npath='/tmp'\nhosts_allow=['1.2.3']\n", "no address"),
            ("[[share]]\nname='a'\npath='/tmp'\ngroup='no such'\n", "has no group"),
        ] {
            let error = parse(&format!("{HEAD}{text}")).unwrap_err();
            assert!(error.contains(want), "{text}: {error}");
        }
    }

    #[test]
    fn shares_admit_by_address() {
        let text = "[[share]]\nname='a'\npath='/tmp'\nhosts_allow=['192.0.2.0/24', '::1']\n\
                    hosts_deny=['192.0.2.66']\ngroup='12'\n";
        let config = parse(&format!("{HEAD}{text}")).unwrap();
        let share = &config.shares["A"];
        let admits = |address: &str| share.admits(address.parse().unwrap());
        assert!(admits("192.0.2.1") && admits("::1"));
        assert!(!admits("192.0.2.66") && !admits("127.0.0.1"));
        assert_eq!(share.group, Some(12));
    }

    #[test]
    fn secrets_that_others_can_read_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let secret = dir.path().join("pw");
        std::fs::write(&secret, "hunter2\n").unwrap();
        std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o644)).unwrap();
        let text = format!("{HEAD}[[user]]\nname='a'\npassword_file='pw'\n");
        let at = dir.path().join("smbd.toml");
        let error = Config::parse(&text, &at).unwrap_err().to_string();
        assert!(error.contains("chmod 600"), "{error}");
        std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).unwrap();
        let config = Config::parse(&text, &at).unwrap();
        assert_eq!(config.users["A"], NtHash::of_password("hunter2"));
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_answered(text in "\\PC{0,200}") {
            let _ = parse(&text);
            let _ = text.parse::<Size>();
        }
    }
}

//! `[iscsi]` and `[[target]]` of the configuration: portals, targets, who may log in, LUNs.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    num::NonZeroU64,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use disk_source::Named;
use iscsi::{
    chap::{Account, Algorithm, ChapSettings},
    config::{Admission, Discovery, Redirection, TargetConfig},
    negotiate::{DigestWish, Wishes},
};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Deserialize;
use smb_protocol::ntlm::users;
use smb_server::config::{ConfigError, Network, Size};
use vhd::Format;
use zeroize::Zeroizing;

/// Highest number of a LUN.
const HIGHEST_LUN: u16 = 0x3fff;

/// The part of the file that is about iSCSI; the rest is the file server's.
#[derive(Debug, Default, Deserialize, JsonSchema)]
struct File {
    iscsi: Option<Section>,
    #[serde(default)]
    target: Vec<TargetSection>,
    /// Each role has portals of its own.
    #[schemars(skip)]
    cluster: Option<serde::de::IgnoredAny>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Section {
    #[serde(default)]
    listen: Vec<SocketAddr>,
    discovery_chap: Option<Secret>,
    #[serde(default)]
    isns: Vec<String>,
    isns_entity: Option<String>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct TargetSection {
    name: String,
    alias: Option<String>,
    #[serde(default)]
    authentication: Authentication,
    #[serde(default)]
    chap: Vec<Secret>,
    mutual_chap: Option<Secret>,
    #[serde(default)]
    initiators: Vec<String>,
    #[serde(default)]
    hosts_allow: Vec<Network>,
    #[serde(default)]
    header_digest: Digest,
    #[serde(default)]
    data_digest: Digest,
    offload_user: Option<String>,
    redirect: Option<Redirect>,
    #[serde(default)]
    lun: Vec<LunSection>,
}

/// Where a target went.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Redirect {
    address: String,
    #[serde(default)]
    permanent: bool,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Authentication {
    #[default]
    Chap,
    None,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Digest {
    #[default]
    Offered,
    Required,
    Off,
}

impl From<Digest> for DigestWish {
    fn from(digest: Digest) -> Self {
        match digest {
            Digest::Offered => Self::Allowed,
            Digest::Required => Self::Required,
            Digest::Off => Self::Never,
        }
    }
}

/// A user and a secret, which is here or in a file of its own.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Secret {
    user: String,
    #[schemars(with = "Option<String>")]
    secret: Option<Zeroizing<String>>,
    secret_file: Option<PathBuf>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct LunSection {
    number: u16,
    path: PathBuf,
    format: Option<String>,
    sector: Option<u32>,
    #[serde(default)]
    read_only: bool,
    thin: Option<bool>,
    #[serde(default = "yes")]
    write_cache: bool,
    id: Option<String>,
    product: Option<String>,
    physical_sector: Option<u32>,
    #[serde(default)]
    removable: bool,
    #[serde(default)]
    atomic_sectors: u32,
    sanitize_rate: Option<Size>,
    max_iops: Option<NonZeroU64>,
    max_bandwidth: Option<Size>,
    warn_below: Option<Size>,
    #[serde(default)]
    initiators: Vec<String>,
}

fn yes() -> bool {
    true
}

/// What is served by iSCSI.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IscsiConfig {
    /// Portals, all of one portal group; none: nothing is served.
    pub listen: Vec<SocketAddr>,
    /// How those are met who ask which targets there are.
    pub discovery_chap: Option<ChapSettings>,
    /// Name servers that the targets are registered with, as `host:port` (RFC 4171).
    pub isns: Vec<String>,
    /// What this server is called there, if not by its host name.
    pub isns_entity: Option<String>,
    /// The targets.
    pub targets: Vec<Target>,
    /// Files with secrets that were read.
    pub secrets: Vec<PathBuf>,
    /// How long the file system may hold the locks of a node that was lost, where targets go over from
    /// one: so long nobody is served whose LUN cannot be had.
    pub locks: Duration,
}

/// A target with its LUNs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// What initiators meet.
    pub config: TargetConfig,
    /// The user of shares who may use its tokens of offloaded transfers, and whose tokens its
    /// initiators may use.
    pub offload_user: Option<String>,
    /// Its LUNs.
    pub luns: Vec<Lun>,
}

/// A LUN: an image or a block device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lun {
    /// Its number.
    pub number: u16,
    /// The image or device.
    pub path: PathBuf,
    /// Its format.
    pub format: Named,
    /// Bytes of a logical sector of a raw image; 512 or 4096.
    pub sector: u32,
    /// Writes are refused.
    pub read_only: bool,
    /// UNMAP gives space back; if not said, where the image can.
    pub thin: Option<bool>,
    /// Writes are done before they are durable, until the initiator asks for that.
    pub write_cache: bool,
    /// The identity, if it is not to be the image's own, or made of the target's name and the number.
    pub id: Option<[u8; 16]>,
    /// What it is called, up to 16 characters.
    pub product: Option<String>,
    /// Bytes of a physical sector, if not what the image says.
    pub physical_sector: Option<u32>,
    /// The medium can be ejected.
    pub removable: bool,
    /// Sectors of which the storage below promises that a loss of power leaves all or none of a
    /// write.
    pub atomic_sectors: u32,
    /// Bytes in a second that SANITIZE writes at most.
    pub sanitize_rate: Option<u64>,
    /// How much initiators may do with it in a second, all together.
    pub limits: scsi::Limits,
    /// Initiators are warned when less than these bytes can still be written; 0: never.
    pub warn_below: u64,
    /// Initiators that see it; all of the target's if there is none.
    pub initiators: Vec<String>,
}

/// The schema of what the file says of iSCSI.
pub fn schema(generator: &mut SchemaGenerator) -> Schema {
    File::json_schema(generator)
}

impl IscsiConfig {
    /// Reads a file.
    ///
    /// # Errors
    /// [`ConfigError`] says what cannot be.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let read = |source| ConfigError::Read { path: path.to_owned(), source };
        let text = Zeroizing::new(std::fs::read_to_string(path).map_err(read)?);
        Self::parse(&text, path)
    }

    /// Checks the text of a file; `path` is for messages and relative paths.
    ///
    /// # Errors
    /// [`ConfigError`] says what cannot be.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let file: File = toml::from_str(text).map_err(|error| ConfigError::Syntax {
            path: path.to_owned(),
            message: smb_server::config::syntax_message(text, &error),
        })?;
        let mut check = Check { path, secrets: Vec::new() };
        let clustered = file.cluster.is_some();
        if file.iscsi.is_none()
            && !clustered
            && let Some(target) = file.target.first()
        {
            let message = "a target needs [iscsi] listen = [\"address:3260\"]";
            return Err(check.bad(&target.name, message));
        }
        let given = file.iscsi.is_some();
        let section = file.iscsi.unwrap_or_default();
        if given && section.listen.is_empty() && !clustered {
            return Err(check.bad("iscsi.listen", "give at least one address, \"0.0.0.0:3260\""));
        }
        let discovery = section.discovery_chap.iter().collect::<Vec<_>>();
        let discovery_chap = check.chap("iscsi.discovery_chap", &discovery, None)?;
        let isns = section.isns.iter().map(|server| check.name_server(server));
        let isns = isns.collect::<Result<Vec<_>, _>>()?;
        let mut targets: Vec<Target> = Vec::new();
        for section in &file.target {
            let target = check.target(section)?;
            if targets.iter().any(|other| other.config.name == target.config.name) {
                return Err(check.bad(&format!("target {:?}", section.name), "defined twice"));
            }
            targets.push(target);
        }
        Ok(Self {
            listen: section.listen,
            discovery_chap,
            isns,
            isns_entity: section.isns_entity,
            targets,
            secrets: check.secrets,
            locks: Duration::ZERO,
        })
    }

    /// How discovery sessions are met.
    pub fn discovery(&self) -> Discovery {
        Discovery { chap: self.discovery_chap.clone(), wishes: Wishes::default() }
    }

    /// The images and devices that are served.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.targets.iter().flat_map(|target| &target.luns).map(|lun| &*lun.path)
    }
}

struct Check<'a> {
    path: &'a Path,
    secrets: Vec<PathBuf>,
}

impl Check<'_> {
    fn bad(&self, key: &str, message: impl ToString) -> ConfigError {
        let (path, key) = (self.path.to_owned(), key.to_owned());
        ConfigError::Value { path, key, message: message.to_string() }
    }

    /// A path of the configuration: relative ones are beside it.
    fn relative(&self, path: &Path) -> PathBuf {
        self.path.parent().map_or_else(|| path.to_owned(), |folder| folder.join(path))
    }

    fn only_owner_reads(&self, key: &str, path: &Path) -> Result<(), ConfigError> {
        let read = |source| ConfigError::Read { path: path.to_owned(), source };
        let mode = std::fs::metadata(path).map_err(read)?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            let path = path.display();
            let text =
                format!("{path} can be read by others (mode {mode:03o}); run: chmod 600 {path}");
            return Err(self.bad(key, text));
        }
        Ok(())
    }

    fn account(&mut self, key: &str, given: &Secret) -> Result<Account, ConfigError> {
        let secret = match (&given.secret, &given.secret_file) {
            (Some(secret), None) => {
                self.only_owner_reads(key, self.path)?;
                secret.clone()
            }
            (None, Some(file)) => {
                let file = self.relative(file);
                self.only_owner_reads(key, &file)?;
                let read = |source| ConfigError::Read { path: file.clone(), source };
                let text = Zeroizing::new(std::fs::read_to_string(&file).map_err(read)?);
                self.secrets.push(file.clone());
                Zeroizing::new(text.trim_end_matches(['\n', '\r']).to_owned())
            }
            _ => return Err(self.bad(key, "give either secret or secret_file")),
        };
        Account::new(&given.user, secret.as_bytes()).map_err(|error| self.bad(key, error))
    }

    fn chap(
        &mut self,
        key: &str,
        accounts: &[&Secret],
        own: Option<&Secret>,
    ) -> Result<Option<ChapSettings>, ConfigError> {
        if accounts.is_empty() {
            return match own {
                None => Ok(None),
                Some(_) => Err(self.bad(key, "mutual_chap needs chap")),
            };
        }
        let accounts = accounts.iter().map(|given| self.account(key, given));
        let accounts = accounts.collect::<Result<Vec<_>, _>>()?;
        let own = own.map(|given| self.account(key, given)).transpose()?;
        let settings = ChapSettings::new(accounts, own, Algorithm::ALL.to_vec());
        settings.map(Some).map_err(|error| self.bad(key, error))
    }

    fn target(&mut self, section: &TargetSection) -> Result<Target, ConfigError> {
        let key = format!("target {:?}", section.name);
        let accounts = section.chap.iter().collect::<Vec<_>>();
        let chap = self.chap(&key, &accounts, section.mutual_chap.as_ref())?;
        match (section.authentication, &chap) {
            // Nobody logs in where everybody is sent elsewhere.
            (Authentication::Chap, None) if section.redirect.is_none() => {
                let text = "give chap = [{ user = …, secret_file = … }], or \
                            authentication = \"none\" where everybody may log in";
                return Err(self.bad(&key, text));
            }
            (Authentication::None, Some(_)) => {
                return Err(self.bad(&key, "authentication = \"none\" and chap exclude each other"));
            }
            _ => {}
        }
        let networks =
            section.hosts_allow.iter().map(|net| (net.address(), net.prefix())).collect::<Vec<_>>();
        let admission = |name| Admission { name, networks: networks.clone() };
        let admitted = match section.initiators.is_empty() {
            true => vec![admission(None)],
            false => section.initiators.iter().cloned().map(Some).map(admission).collect(),
        };
        let wishes = Wishes {
            header_digest: section.header_digest.into(),
            data_digest: section.data_digest.into(),
            ..Wishes::default()
        };
        let alias = section.alias.clone();
        let redirection = section.redirect.as_ref().map(|it| self.redirection(&key, it));
        let redirection = redirection.transpose()?;
        if redirection.is_some() && !section.lun.is_empty() {
            let text =
                "redirect and lun exclude each other: the LUNs are where initiators are sent";
            return Err(self.bad(&key, text));
        }
        let open = TargetConfig::open(&section.name);
        let config = TargetConfig { alias, admitted, chap, wishes, redirection, ..open };
        config.check().map_err(|error| self.bad(&key, error))?;
        let mut numbers = BTreeSet::new();
        let mut luns = Vec::new();
        for section in &section.lun {
            if !numbers.insert(section.number) {
                return Err(self.bad(&key, format!("lun {} is defined twice", section.number)));
            }
            luns.push(self.lun(&key, section)?);
        }
        let offload_user = section.offload_user.clone();
        if offload_user.as_deref().is_some_and(|name| !users::is_user_name(name)) {
            return Err(self.bad(&key, "offload_user is the name of a user of shares"));
        }
        Ok(Target { config, offload_user, luns })
    }

    /// `host` or `host:port` of an iSNS server; gives it with its port.
    fn name_server(&self, given: &str) -> Result<String, ConfigError> {
        let default = format!("{given}:{}", iscsi::isns::PORT);
        let all = [given.to_owned(), default].into_iter().find(|it| is_host_and_port(it));
        all.ok_or_else(|| {
            self.bad("iscsi.isns", format!("{given:?} is no \"host\" and no \"host:port\""))
        })
    }

    /// `address:port` or `name:port`, as TargetAddress has it (RFC 7143 13.8).
    fn redirection(&self, key: &str, given: &Redirect) -> Result<Redirection, ConfigError> {
        if !is_host_and_port(&given.address) {
            return Err(
                self.bad(key, "redirect.address is \"host:port\", as in \"192.0.2.7:3260\"")
            );
        }
        Ok(Redirection { permanent: given.permanent, address: given.address.clone() })
    }

    fn lun(&self, key: &str, section: &LunSection) -> Result<Lun, ConfigError> {
        let key = format!("{key}, lun {}", section.number);
        if section.number > HIGHEST_LUN {
            return Err(self.bad(&key, format!("numbers go up to {HIGHEST_LUN}")));
        }
        let path = self.relative(&section.path);
        let format = match &section.format {
            Some(name) => {
                let format = name.parse::<Format>().map_err(|error| self.bad(&key, error))?;
                Named { format, asked: true }
            }
            // A block device has no ending.
            None => Named { format: Format::from_path(&path).unwrap_or(Format::Raw), asked: false },
        };
        let sector = section.sector.unwrap_or(512);
        if !matches!(sector, 512 | 4096) {
            return Err(self.bad(&key, "sector is 512 or 4096"));
        }
        if section.sector.is_some() && format.format != Format::Raw {
            return Err(self.bad(&key, "sector is for raw images; this one has its own"));
        }
        let writable = matches!(format.format, Format::Raw | Format::Vhdx | Format::Vhd);
        if !writable && !section.read_only {
            return Err(self.bad(&key, "images of this format are read only: read_only = true"));
        }
        if let Some(name) = &section.product
            && (name.is_empty() || name.len() > 16 || !name.chars().all(|c| matches!(c, ' '..='~')))
        {
            return Err(self.bad(&key, "product is 1 to 16 printable ASCII characters"));
        }
        if let Some(size) = section.physical_sector
            && !matches!(size, 512 | 4096)
        {
            return Err(self.bad(&key, "physical_sector is 512 or 4096"));
        }
        if section.max_bandwidth.as_ref().is_some_and(|most| most.0 == 0) {
            return Err(
                self.bad(&key, "max_bandwidth is more than nothing; leave it out for no limit")
            );
        }
        let limits = scsi::Limits {
            commands: section.max_iops.map(NonZeroU64::get),
            bytes: section.max_bandwidth.as_ref().map(|most| most.0),
        };
        let id = section.id.as_deref().map(identity).transpose();
        Ok(Lun {
            number: section.number,
            path,
            format,
            sector,
            read_only: section.read_only,
            thin: section.thin,
            write_cache: section.write_cache,
            id: id.map_err(|()| self.bad(&key, "id is a UUID: 32 hexadecimal digits"))?,
            product: section.product.clone(),
            physical_sector: section.physical_sector,
            removable: section.removable,
            atomic_sectors: section.atomic_sectors,
            sanitize_rate: section.sanitize_rate.as_ref().map(|rate| rate.0),
            limits,
            warn_below: section.warn_below.as_ref().map_or(0, |least| least.0),
            initiators: section.initiators.clone(),
        })
    }
}

fn is_host_and_port(address: &str) -> bool {
    address.rsplit_once(':').is_some_and(|(host, port)| {
        let six = host.starts_with('[') && host.ends_with(']');
        let odd = |c: char| c.is_whitespace() || c.is_control() || c == ',' || c == '/';
        let host_is = !host.is_empty() && !host.contains(odd) && (six || !host.contains(':'));
        host_is && port.parse::<u16>().is_ok_and(|port| port != 0)
    })
}

/// The bytes of a UUID in its usual form, with hyphens or without.
pub(super) fn identity(text: &str) -> Result<[u8; 16], ()> {
    let digits: String = text.chars().filter(|c| *c != '-').collect();
    if digits.len() != 32 || !digits.is_ascii() {
        return Err(());
    }
    u128::from_str_radix(&digits, 16).map(u128::to_be_bytes).map_err(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "[iscsi]\nlisten = [\"127.0.0.1:3260\"]\n";
    const NAME: &str = "[[target]]\nname = \"iqn.2024-01.example:disk\"\n";
    const OPEN: &str = "authentication = \"none\"\n";
    const LUN: &str = "[[target.lun]]\nnumber = 0\npath = \"a.raw\"\n";

    /// A folder with a configuration and files of secrets, each with its mode.
    fn folder(secret: &str, modes: [u32; 2]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text, mode) in [("smbd.toml", "", modes[0]), ("secret", secret, modes[1])] {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        }
        folder
    }

    fn parse(folder: &tempfile::TempDir, text: &str) -> Result<IscsiConfig, String> {
        IscsiConfig::parse(text, &folder.path().join("smbd.toml")).map_err(|e| e.to_string())
    }

    #[test]
    fn what_cannot_be_is_named_with_what_to_do() {
        let folder = folder("a-secret-long-enough", [0o600, 0o600]);
        let chap = "chap = [{ user = \"alice\", secret_file = \"secret\" }]\n";
        let two = format!("{HEAD}{NAME}{OPEN}{NAME}{OPEN}");
        let table = [
            (format!("{NAME}{OPEN}"), "a target needs [iscsi]"),
            ("[iscsi]\nlisten = []\n".to_owned(), "at least one address"),
            ("[iscsi]\nlisten = [\"somewhere\"]\n".to_owned(), "invalid socket address"),
            (two, "defined twice"),
            (format!("{HEAD}isns = [\"a b\"]\n"), "no \"host\" and no \"host:port\""),
            (format!("{HEAD}isns = [\"fd00::1\"]\n"), "no \"host\" and no \"host:port\""),
            (format!("{HEAD}colour = 1\n"), "colour"),
            (format!("{HEAD}{NAME}{OPEN}colour = 1\n"), "colour"),
            (format!("{HEAD}{NAME}{OPEN}{LUN}colour = 1\n"), "colour"),
            (format!("{HEAD}{NAME}"), "authentication = \"none\" where everybody may log in"),
            (format!("{HEAD}{NAME}{OPEN}{chap}"), "exclude each other"),
            (
                format!("{HEAD}{NAME}mutual_chap = {{ user = \"a\", secret_file = \"secret\" }}\n"),
                "mutual_chap needs chap",
            ),
            (format!("{HEAD}{NAME}chap = [{{ user = \"a\" }}]\n"), "either secret or secret_file"),
            (format!("{HEAD}{NAME}chap = [{{ user = \"a\", secret_file = \"gone\" }}]\n"), "gone"),
            (format!("{HEAD}{NAME}{OPEN}{LUN}{LUN}"), "lun 0 is defined twice"),
            (format!("{HEAD}{NAME}redirect = {{ address = \"nowhere\" }}\n"), "host:port"),
            (format!("{HEAD}{NAME}redirect = {{ address = \"fd00::1:3260\" }}\n"), "host:port"),
            (
                format!("{HEAD}{NAME}redirect = {{ address = \"h:1\" }}\n{LUN}"),
                "exclude each other",
            ),
            (format!("{HEAD}[[target]]\nname = \"disk\"\n{OPEN}"), "no iSCSI name"),
            (format!("{HEAD}{NAME}{OPEN}initiators = [\"me\"]\n"), "no iSCSI name"),
            (format!("{HEAD}{NAME}{OPEN}{LUN}sector = 520\n"), "sector is 512 or 4096"),
            (format!("{HEAD}{NAME}{OPEN}{LUN}physical_sector = 1\n"), "512 or 4096"),
            (format!("{HEAD}{NAME}{OPEN}{LUN}max_iops = 0\n"), "nonzero"),
            (format!("{HEAD}{NAME}{OPEN}{LUN}max_bandwidth = \"0\"\n"), "leave it out"),
            (format!("{HEAD}{NAME}{OPEN}{LUN}id = \"x\"\n"), "id is a UUID"),
            (format!("{HEAD}{NAME}{OPEN}{LUN}product = \"\"\n"), "product is 1 to 16"),
            (
                format!("{HEAD}{NAME}{OPEN}[[target.lun]]\nnumber = 16384\npath = \"a\"\n"),
                "numbers go up to 16383",
            ),
            (
                format!("{HEAD}{NAME}{OPEN}[[target.lun]]\nnumber = 0\npath = \"a.qcow2\"\n"),
                "read_only = true",
            ),
            (
                format!(
                    "{HEAD}{NAME}{OPEN}[[target.lun]]\nnumber = 0\npath = \"a.vhdx\"\nsector = 512\n"
                ),
                "sector is for raw images",
            ),
        ];
        for (text, wanted) in table {
            let error = parse(&folder, &text).expect_err(&text);
            assert!(error.contains(wanted), "{text}: {error}");
            assert!(!error.contains("long-enough"), "a secret is told: {error}");
        }
    }

    #[test]
    fn a_secret_is_long_and_its_owners_alone() {
        let file = format!("{HEAD}{NAME}chap = [{{ user = \"a\", secret_file = \"secret\" }}]\n");
        let inline =
            format!("{HEAD}{NAME}chap = [{{ user = \"a\", secret = \"twelve-bytes\" }}]\n");
        for (secret, modes, text, wanted) in [
            ("twelve-bytes", [0o600, 0o640], &file, Some("chmod 600")),
            ("twelve-bytes", [0o644, 0o600], &inline, Some("chmod 600")),
            ("short", [0o600, 0o600], &file, Some("12")),
            ("twelve-bytes\n", [0o644, 0o600], &file, None),
            ("", [0o600, 0o600], &inline, None),
        ] {
            let folder = folder(secret, modes);
            match (parse(&folder, text), wanted) {
                (Ok(config), None) => assert!(config.targets[0].config.chap.is_some()),
                (Err(error), Some(wanted)) => assert!(error.contains(wanted), "{error}"),
                (other, _) => panic!("{text} {modes:?}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_name_server_has_the_port_of_its_protocol_if_no_other() {
        let folder = folder("", [0o600, 0o600]);
        let servers = "isns = [\"names\", \"192.0.2.1:3300\", \"[fd00::1]\"]\n";
        let config = parse(&folder, &format!("{HEAD}{servers}")).unwrap();
        assert_eq!(config.isns, ["names:3205", "192.0.2.1:3300", "[fd00::1]:3205"]);
    }

    #[test]
    fn what_is_not_said_is_as_documented() {
        let folder = folder("", [0o600, 0o600]);
        let config = parse(&folder, &format!("{HEAD}{NAME}{OPEN}{LUN}")).unwrap();
        let lun = &config.targets[0].luns[0];
        assert_eq!(lun.path, folder.path().join("a.raw"), "paths are taken from the file's folder");
        assert_eq!((lun.sector, lun.read_only, lun.thin), (512, false, None));
        assert!(lun.write_cache && !lun.removable && lun.atomic_sectors == 0);
        assert_eq!(parse(&folder, "").unwrap(), IscsiConfig::default());
    }
}

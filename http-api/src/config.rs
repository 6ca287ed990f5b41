//! `[api]` of the server's configuration.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    version::TLS13,
};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Deserialize;
use zeroize::Zeroizing;

use crate::{files, users::Users};

/// A configuration that cannot be used; the text says where and what to do.
#[derive(Debug, thiserror::Error)]
#[error("{key}: {why}")]
pub struct ConfigError {
    /// The key, with its table.
    key: String,
    why: String,
}

/// A key below `[api]`, or the table itself.
fn bad(key: &str, why: impl ToString) -> ConfigError {
    let key = if key.is_empty() { "api".to_owned() } else { format!("api.{key}") };
    ConfigError { key, why: why.to_string() }
}

/// The longest that a token may be good, in hours: a year.
pub(crate) const MOST_HOURS: u32 = 24 * 366;

#[derive(Deserialize, JsonSchema)]
struct File {
    api: Option<ApiTable>,
}

/// The table `[api]` as it is written.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ApiTable {
    listen: Vec<SocketAddr>,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
    users_file: Option<PathBuf>,
    token_hours: u32,
    connections: usize,
    connections_per_address: usize,
    audit_megabytes: u32,
    audit_files: u32,
    folders: Vec<PathBuf>,
}

impl Default for ApiTable {
    fn default() -> Self {
        Self {
            listen: Vec::new(),
            certificate: None,
            key: None,
            users_file: None,
            token_hours: MOST_HOURS,
            connections: 128,
            connections_per_address: 32,
            audit_megabytes: 16,
            audit_files: 8,
            folders: Vec::new(),
        }
    }
}

/// A configuration that was checked, with what its files hold.
#[derive(Debug, Clone)]
pub struct ApiConfig {
    /// Addresses to listen on, with TLS.
    pub listen: Vec<SocketAddr>,
    /// What TLS needs; there if there is an address.
    pub(crate) tls: Option<Arc<ServerConfig>>,
    /// Who may log in.
    pub(crate) users: Users,
    /// The longest that a token may be good, in hours.
    pub(crate) token_hours: u32,
    /// Connections at a time, and from one address.
    pub(crate) connections: (usize, usize),
    /// When a file of the log of changes is full, in bytes.
    pub audit_bytes: u64,
    /// Full files of it that are kept.
    pub audit_files: u32,
    /// Folders in which shares and images may be declared.
    pub folders: Vec<PathBuf>,
    /// Folders of the files that are read again at a reload: who replaces a file gives it another inode,
    /// so the right to read it must be the folder's.
    pub secrets: Vec<PathBuf>,
}

/// The schema of what the file says of the control interface.
pub fn schema(generator: &mut SchemaGenerator) -> Schema {
    File::json_schema(generator)
}

impl ApiConfig {
    /// Reads the file with the configuration of the server, and what its `[api]` names.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|error| bad("", error))?;
        Self::parse(&text, path)
    }

    /// Takes the text of a file; `path` is for relative paths.
    ///
    /// # Errors
    /// As for [`ApiConfig::load`].
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let file: File = toml::from_str(text).map_err(|error| {
            let before = error.span().and_then(|span| text.get(..span.start));
            let line = before.unwrap_or_default().lines().count().max(1);
            bad("", format!("line {line}: {}", error.message()))
        })?;
        Self::of(file.api.unwrap_or_default(), path)
    }

    /// Takes the table of a file at `path`, to which relative paths in it are relative.
    ///
    /// # Errors
    /// As for [`ApiConfig::load`].
    pub fn of(section: ApiTable, path: &Path) -> Result<Self, ConfigError> {
        let folder = path.parent().unwrap_or(Path::new("."));
        let place = |path: &PathBuf| folder.join(path);
        let mut secrets = Vec::new();
        let users = match section.users_file.as_ref().map(place) {
            Some(path) => {
                secrets.extend(path.parent().map(Path::to_owned));
                Users::load(&path).map_err(|error| bad("users_file", error))?
            }
            None => Users::none().map_err(|error| bad("", error))?,
        };
        if !section.listen.is_empty() && section.users_file.is_none() {
            return Err(bad("listen", "needs api.users_file: nobody could log in"));
        }
        let tls = match (&section.certificate, &section.key) {
            (Some(certificate), Some(key)) => {
                let paths = (place(certificate), place(key));
                let tls = tls(&paths.0, &paths.1)?;
                secrets.extend(
                    [&paths.0, &paths.1].map(|path| path.parent().unwrap_or(&paths.0).to_owned()),
                );
                Some(Arc::new(tls))
            }
            (None, None) if section.listen.is_empty() => None,
            _ => return Err(bad("listen", "needs api.certificate and api.key")),
        };
        if !(1..=MOST_HOURS).contains(&section.token_hours) {
            return Err(bad("token_hours", format!("between 1 and {MOST_HOURS}")));
        }
        let connections = (section.connections, section.connections_per_address);
        if connections.0 == 0 || connections.1 == 0 {
            return Err(bad("connections", "at least 1, and so api.connections_per_address"));
        }
        if section.audit_megabytes == 0 || section.audit_files > 1000 {
            return Err(bad("audit_megabytes", "at least 1, and api.audit_files at most 1000"));
        }
        Ok(Self {
            listen: section.listen,
            tls,
            users,
            token_hours: section.token_hours,
            connections,
            audit_bytes: u64::from(section.audit_megabytes) << 20,
            audit_files: section.audit_files,
            folders: section.folders.iter().map(place).collect(),
            secrets,
        })
    }
}

/// TLS 1.3 with a certificate and its key, which nobody else may read.
fn tls(certificate: &Path, key: &Path) -> Result<ServerConfig, ConfigError> {
    let shown = |path: &Path, why: &dyn std::fmt::Display| format!("{}: {why}", path.display());
    let chain = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| bad("certificate", shown(certificate, &error)))?;
    let text = files::read_private(key).map_err(|why| bad("key", shown(key, &why)))?;
    let text = Zeroizing::new(text);
    let secret = PrivateKeyDer::from_pem_slice(text.as_bytes())
        .map_err(|error| bad("key", shown(key, &error)))?;
    ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&TLS13])
        .map(|builder| builder.with_no_client_auth())
        .and_then(|builder| builder.with_single_cert(chain, secret))
        .map_err(|error| bad("certificate", shown(certificate, &error)))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use control_socket::Role;

    use super::*;
    use crate::users::User;

    fn parse(folder: &Path, text: &str) -> Result<ApiConfig, String> {
        ApiConfig::parse(text, &folder.join("smbd.toml")).map_err(|error| error.to_string())
    }

    fn private(path: &Path, text: &str) {
        files::replace_private(path, text).unwrap();
    }

    #[test]
    fn without_a_section_there_is_the_local_socket_alone() {
        let config = parse(Path::new("/"), "[server]\nlisten = []\n").unwrap();
        assert!(config.listen.is_empty() && config.tls.is_none() && config.secrets.is_empty());
    }

    #[test]
    fn what_is_served_to_others_needs_users_a_certificate_and_a_key_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        fs::write(folder.join("api.pem"), made.cert.pem()).unwrap();
        private(&folder.join("api-key.pem"), &made.signing_key.serialize_pem());
        let mut users = Users::none().unwrap();
        users.put(User::new("alice", Role::Viewer, "x").unwrap());
        users.save(&folder.join("api-users.toml")).unwrap();
        let whole = "[api]\nlisten = [\"127.0.0.1:0\"]\ncertificate = \"api.pem\"\nkey = \
                     \"api-key.pem\"\nusers_file = \"api-users.toml\"\n";
        let config = parse(folder, whole).unwrap();
        assert_eq!(config.users.role("alice"), Some(Role::Viewer));
        assert!(config.tls.is_some() && config.secrets.iter().all(|place| place == folder));
        for (missing, want) in [
            ("users_file", "api.users_file"),
            ("certificate", "api.certificate and api.key"),
            ("key", "api.certificate and api.key"),
        ] {
            let lines = whole.lines().filter(|line| !line.starts_with(missing));
            let error = parse(folder, &lines.collect::<Vec<_>>().join("\n")).unwrap_err();
            assert!(error.contains(want), "{missing}: {error}");
        }
        for (more, want) in [
            ("token_hours = 0", "api.token_hours"),
            ("connections = 0", "api.connections"),
            ("audit_megabytes = 0", "api.audit_megabytes"),
            ("pasword = 'secret'", "unknown field `pasword`"),
        ] {
            let error = parse(folder, &format!("{whole}{more}\n")).unwrap_err();
            assert!(error.contains(want) && !error.contains("secret"), "{more}: {error}");
        }
        let key = folder.join("api-key.pem");
        fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
        let error = parse(folder, whole).unwrap_err();
        assert!(error.contains("api.key") && error.contains("chmod 600"), "{error}");
    }
}

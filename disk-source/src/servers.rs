//! Who a program is to a file server, and how it connects.

use std::{fmt::Debug, path::PathBuf, time::Duration};

use smb_client::{Compress, ConnectOptions, CredentialsError, Encryption, Login, Rdma, SmbUrl};

use crate::{ChapLogin, Error, IscsiTimes, IscsiUrl, Result, portal};

/// Says how a server is connected to.
pub trait Servers: Debug + Send + Sync {
    /// The options for the server of `url`, login included.
    ///
    /// # Errors
    /// [`Error::Login`] if there is no login for it.
    fn connect_options(&self, url: &SmbUrl) -> Result<ConnectOptions>;

    /// By what the target of `url` and this program prove who they are: the environment says it.
    ///
    /// # Errors
    /// [`Error::Login`] if what is there cannot be used.
    fn chap_login(&self, url: &IscsiUrl) -> Result<ChapLogin> {
        ChapLogin::from_env(url.user.as_deref()).map_err(|error| Error::Login(error.into()))
    }

    /// How patient this program is with targets.
    fn iscsi_times(&self) -> IscsiTimes {
        IscsiTimes::default()
    }
}

/// What is configured for one server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// `host` or `host:port`, as locations name it.
    pub host: String,
    /// Its credentials file; without one the environment has the login.
    pub credentials: Option<PathBuf>,
    /// Encryption with it, if not that of [`Configured::encryption`].
    pub encryption: Option<Encryption>,
    /// Compression with it, if not that of [`Configured::compression`].
    pub compression: Option<Compress>,
    /// Whether it is reached by SMB Direct.
    pub rdma: Rdma,
}

/// Servers as a configuration describes them.
#[derive(Debug, Clone)]
pub struct Configured {
    /// Encryption with all servers.
    pub encryption: Encryption,
    /// Compression with all servers.
    pub compression: Compress,
    /// What is said of single servers.
    pub servers: Vec<Server>,
    /// Within how long a silent connection is noticed.
    pub keep_alive: Duration,
    /// How long a server that is away is waited for before requests fail.
    pub reconnect_timeout: Duration,
    /// Connections to a server at most.
    pub max_channels: u16,
}

impl Configured {
    /// What is said of the server of an address.
    fn server(&self, url: &SmbUrl) -> Option<&Server> {
        self.servers.iter().find(|server| {
            let said = format!("smb://{}/x", server.host).parse::<SmbUrl>();
            said.is_ok_and(|said| {
                said.host.eq_ignore_ascii_case(&url.host) && said.port == url.port
            })
        })
    }

    /// The login for the server of an address: from its credentials file, else the one login in the
    /// environment.
    ///
    /// # Errors
    /// If there is none, or its file cannot be used.
    pub fn login(&self, url: &SmbUrl) -> std::result::Result<Login, CredentialsError> {
        match self.server(url).and_then(|server| server.credentials.as_deref()) {
            Some(file) => Login::from_file(file, url.user.as_deref()),
            None => Login::from_env(url.user.as_deref()),
        }
    }
}

impl Servers for Configured {
    fn connect_options(&self, url: &SmbUrl) -> Result<ConnectOptions> {
        let login = self.login(url).map_err(|error| Error::Login(error.into()))?;
        let server = self.server(url);
        let encryption = server.and_then(|server| server.encryption);
        let compression = server.and_then(|server| server.compression);
        let options = ConnectOptions {
            max_channels: self.max_channels,
            keep_alive: self.keep_alive,
            reconnect_timeout: self.reconnect_timeout,
            encryption: encryption.unwrap_or(self.encryption),
            compress: compression.unwrap_or(self.compression),
            ..ConnectOptions::for_url(url, login)
        };
        Ok(options.by(server.map(|server| server.rdma).unwrap_or_default()))
    }

    fn chap_login(&self, url: &IscsiUrl) -> Result<ChapLogin> {
        let first = url.portals.first();
        let server = self.servers.iter().find(|it| portal(&it.host).ok().as_ref() == first);
        match server.and_then(|server| server.credentials.as_deref()) {
            Some(file) => ChapLogin::from_file(file, url.user.as_deref()),
            None => ChapLogin::from_env(url.user.as_deref()),
        }
        .map_err(|error| Error::Login(error.into()))
    }

    fn iscsi_times(&self) -> IscsiTimes {
        IscsiTimes { reconnect: self.reconnect_timeout, keep_alive: self.keep_alive }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn each_server_has_its_own_login_and_rule() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("credentials");
        std::fs::write(&file, "username=carol\npassword=p\n").unwrap();
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
        let configured = Configured {
            encryption: Encryption::Required,
            compression: Compress::Never,
            servers: vec![Server {
                host: "Files.example:1445".into(),
                credentials: Some(file),
                encryption: Some(Encryption::IfRequired),
                compression: Some(Compress::Always),
                rdma: Rdma::Never,
            }],
            keep_alive: Duration::from_secs(1),
            reconnect_timeout: Duration::from_secs(2),
            max_channels: 3,
        };
        let url = "smb://files.EXAMPLE:1445/s/a".parse::<SmbUrl>().unwrap();
        let options = configured.connect_options(&url).unwrap();
        assert_eq!(options.login.user(), "carol");
        assert_eq!((options.encryption, options.max_channels), (Encryption::IfRequired, 3));
        assert_eq!(options.compress, Compress::Always);
        let other = "smb://files.example/s/a".parse::<SmbUrl>().unwrap();
        assert!(configured.server(&other).is_none() && options.network.is_none());
    }

    #[test]
    fn a_server_of_smb_direct_has_its_port_unless_another_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, "username=carol\npassword=p\n").unwrap();
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
        let server = |host: &str, rdma| Server {
            host: host.into(),
            credentials: Some(file.path().to_owned()),
            encryption: None,
            compression: None,
            rdma,
        };
        let configured = Configured {
            encryption: Encryption::IfRequired,
            compression: Compress::Never,
            servers: vec![
                server("a", Rdma::Always),
                server("b:15445", Rdma::Always),
                server("c", Rdma::IfPossible),
            ],
            keep_alive: Duration::from_secs(1),
            reconnect_timeout: Duration::from_secs(2),
            max_channels: 1,
        };
        let all = [("smb://a/s", 5445), ("smb://b:15445/s", 15445), ("smb://c/s", 445)];
        for (url, port) in all {
            let options = configured.connect_options(&url.parse().unwrap()).unwrap();
            let network = options.network.unwrap();
            assert_eq!((options.port, network.or_tcp()), (port, port == 445));
        }
    }
}

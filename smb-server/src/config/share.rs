//! `[[share]]`.

use std::{
    collections::{BTreeMap, HashSet},
    io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use schemars::JsonSchema;
use serde::Deserialize;
use smb_protocol::{msg::create::Access, ntlm::users};
use volume::fs::permit::READ_ONLY;

use super::{Check, ClusterShare, ConfigError, Encryption, File, ShareCompression, Sparse, yes};
use crate::config::{network::Network, values::Compression};

impl Share {
    /// Access that opens of it can have at most.
    pub fn maximal_access(&self) -> Access {
        if self.read_only { READ_ONLY } else { Access::ALL }
    }
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Section {
    name: String,
    path: PathBuf,
    #[serde(default)]
    users: Vec<String>,
    encryption: Option<Encryption>,
    #[serde(default)]
    compression: ShareCompression,
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
    cluster: Option<ClusterShare>,
    #[serde(default)]
    sparse: Sparse,
    group: Option<String>,
}

/// A share as it is configured.
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
    /// Whether its data are compressed on their way.
    pub compression: ShareCompression,
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
    /// What kind of share of a cluster it is, if it is one (MS-SMB2 3.3.1.6, `Share.Type`).
    pub cluster: Option<ClusterShare>,
    /// Group of the system that files made in it get.
    pub group: Option<u32>,
}

impl Share {
    /// What named pipes are opened on, `IPC$`.
    pub fn pipes() -> Self {
        Self {
            name: "IPC$".into(),
            path: PathBuf::new(),
            users: HashSet::new(),
            encryption: None,
            compression: ShareCompression::Off,
            read_only: true,
            access_based_enumeration: false,
            comment: String::new(),
            browseable: true,
            hosts_allow: Vec::new(),
            hosts_deny: Vec::new(),
            max_connections: None,
            max_opens: None,
            force_level2_oplocks: true,
            sparse: Sparse::default(),
            continuously_available: false,
            cluster: None,
            group: None,
        }
    }

    /// Whether a client at an address may use it.
    pub fn admits(&self, address: IpAddr) -> bool {
        let listed = |list: &[Network]| list.iter().any(|network| network.holds(address));
        !listed(&self.hosts_deny) && (self.hosts_allow.is_empty() || listed(&self.hosts_allow))
    }

    /// Whether unencrypted requests are refused.
    pub fn must_encrypt(&self) -> bool {
        self.encryption == Some(Encryption::Required)
    }
}

impl Check<'_> {
    pub(super) fn shares(
        &self,
        file: &File,
        users: &BTreeMap<String, String>,
    ) -> Result<BTreeMap<String, Arc<Share>>, ConfigError> {
        let mut all = BTreeMap::new();
        for share in &file.share {
            let key = format!("share {:?}", share.name);
            let plain = |c: char| !c.is_control() && !"\"\\/[]:|<>+=;,*?".contains(c);
            let len = share.name.chars().count();
            if !(1..=80).contains(&len) || !share.name.chars().all(plain) {
                return Err(self.bad(&key, "not a share name"));
            }
            // Addresses take these for a folder and the one above, however they are encoded (RFC 3986 5.2.4).
            if [".", ".."].contains(&&*share.name) {
                return Err(
                    self.bad(&key, "not a share name: a folder has that name in every address")
                );
            }
            let folded = users::fold(&share.name);
            if folded == "IPC$" {
                return Err(self.bad(&key, "IPC$ is the server's own"));
            }
            let path = self.relative(&share.path);
            if let Some(why) = no_folder(&path) {
                return Err(self.bad(&key, format!("path {}: {why}", path.display())));
            }
            let off = file.server.compression == Compression::Off;
            if share.compression == ShareCompression::Force && off {
                let message = "compression = \"force\" needs compression = \"on\" in [server]";
                return Err(self.bad(&key, message));
            }
            let allowed = self.known(&share.users, users, &format!("{key}: users"))?;
            let share = Share {
                name: share.name.clone(),
                path,
                users: allowed,
                encryption: share.encryption,
                compression: share.compression,
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
                cluster: share.cluster,
                group: share.group.as_deref().map(|group| self.group(&key, group)).transpose()?,
            };
            if all.insert(folded, Arc::new(share)).is_some() {
                return Err(self.bad(&key, "defined twice"));
            }
        }
        Ok(all)
    }
}

/// Why a path is no folder that can be shared.
fn no_folder(path: &Path) -> Option<String> {
    match std::fs::metadata(path) {
        Ok(about) if about.is_dir() => None,
        Ok(_) => Some("not a folder".to_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Some("no such folder; create it".to_owned())
        }
        // A file system that is mounted there and does not answer is one of them.
        Err(error) => Some(error.to_string()),
    }
}

//! What all connections share.

use std::{
    collections::BTreeMap,
    fs, io,
    sync::{Arc, PoisonError, RwLock, atomic::AtomicUsize},
    time::Instant,
};

use smb_protocol::{kerberos, ntlm::ServerInfo, security::Sid};
use volume::{
    clock::now,
    fs::{
        sweep::{self, Swept},
        volume::Volume,
    },
    offload_tokens::Tokens,
    open::table::OpenFileTable,
    quoted::Rate,
};

use crate::{
    breaks::clients::Clients, config::Config, ids::Ids, logons::Logons, meters::Meters,
    rpc::accounts, session::Sessions,
};

/// What all connections share.
#[derive(Debug)]
pub struct Server {
    /// The numbers by which clients know it, its sessions and its opens.
    pub ids: Ids,
    /// What NTLM tells clients.
    pub ntlm: Arc<ServerInfo>,
    /// All sessions.
    pub sessions: Sessions,
    /// Connections of clients that have logged in.
    pub clients: Arc<Clients>,
    /// All files that are open.
    pub open_files: Arc<OpenFileTable>,
    /// Tokens of offloaded transfers.
    pub tokens: Arc<Tokens>,
    /// What connections count.
    pub meters: Meters,
    /// Bytes that clients have sent who have not logged in, beyond what is free.
    pub unauthenticated_bytes: AtomicUsize,
    /// Lines of the log that clients cause who have not logged in.
    pub strangers: Rate,
    /// Logons that have failed.
    pub logons: Logons,
    /// Its state folder is new: there was none before it.
    pub is_first: bool,
    /// When it started.
    pub started: Instant,
    /// Number of connections.
    pub connections: AtomicUsize,
    current: RwLock<Arc<Current>>,
}

/// Configuration with the folders of its shares; replaced as a whole by a reload.
#[derive(Debug)]
pub struct Current {
    /// The configuration.
    pub config: Config,
    /// Folders by folded share name.
    pub volumes: BTreeMap<String, Arc<Volume>>,
    /// Takes tickets, if Kerberos is spoken.
    pub kerberos: Option<Arc<kerberos::Service>>,
}

impl Current {
    /// Tickets shown from `since` on are remembered; those before are refused.
    fn new(config: Config, old: Option<&Current>, since: u64) -> io::Result<Self> {
        let mut volumes = BTreeMap::new();
        for (key, share) in &config.shares {
            let kept = old.and_then(|old| {
                let was = old.config.shares.get(key)?;
                let same = (&was.path, was.group) == (&share.path, share.group);
                old.volumes.get(key).filter(|_| same).cloned()
            });
            let volume = match kept {
                Some(volume) => volume,
                None => {
                    let opened = Volume::open(&share.path).map_err(|e| {
                        io::Error::new(e.kind(), format!("share {}: {e}", share.name))
                    })?;
                    Arc::new(opened.with_group(share.group))
                }
            };
            volumes.insert(key.clone(), volume);
        }
        let all: Vec<_> = volumes.values().cloned().collect();
        for volume in &all {
            volume.know(&all)?;
        }
        for (key, volume) in &volumes {
            let links = config.namespaces.get(key).map(|namespace| namespace.links.iter());
            let places = links.into_iter().flatten().map(|link| link.parts.clone());
            volume.is_served_elsewhere(places.collect());
        }
        let before = old.and_then(|old| old.kerberos.clone());
        let kerberos = config.kerberos.as_ref().map(|kerberos| {
            let keytab = kerberos.keytab.clone();
            Arc::new(match before {
                Some(before) => before.with_keys(keytab),
                None => kerberos::Service::new(keytab, since),
            })
        });
        Ok(Self { config, volumes, kerberos })
    }
}

/// Says what there may be, of all users and of one.
fn limit(open_files: &OpenFileTable, limits: &crate::config::Limits) {
    open_files.limit(limits.locks, limits.kept_opens);
    open_files.users.limit(limits.of_one_user());
}

impl Server {
    /// Prepares a server: its state folder, its identity, the folders of its shares.
    pub fn new(config: Config) -> io::Result<Self> {
        fs::create_dir_all(&config.state_dir)?;
        let is_first = !Ids::exist(&config.state_dir);
        let ids = Ids::open(&config.state_dir)?;
        // No ticket was shown to a server that there was not.
        let since = if is_first { 0 } else { now() };
        let ntlm = Arc::new(ServerInfo::standalone(&config.name));
        let clients = Arc::<Clients>::default();
        let open_files = Arc::new(OpenFileTable::new(clients.clone()));
        limit(&open_files, &config.limits);
        Ok(Self {
            ids,
            ntlm,
            sessions: Sessions::default(),
            clients,
            open_files,
            tokens: Arc::default(),
            meters: Meters::default(),
            unauthenticated_bytes: AtomicUsize::new(0),
            strangers: Rate::default(),
            logons: Logons::default(),
            is_first,
            started: Instant::now(),
            connections: AtomicUsize::new(0),
            current: RwLock::new(Arc::new(Current::new(config, None, since)?)),
        })
    }

    /// Configuration as it is now.
    pub fn current(&self) -> Arc<Current> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes users, shares, policies and limits of a new configuration; sessions and trees that
    /// are there stay. Listening addresses and the state folder need a restart.
    pub fn reload(&self, config: Config) -> io::Result<()> {
        let old = self.current();
        let new = Arc::new(Current::new(config, Some(&old), now())?);
        limit(&self.open_files, &new.config.limits);
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = new;
        self.recover()
    }

    /// Looks for named streams whose file was removed while the server did not see it; to be done
    /// once, when the server starts, on a thread of its own.
    pub fn sweep_streams(&self) {
        let all: Vec<_> = self.current().volumes.values().cloned().collect();
        let mut done = Vec::new();
        for volume in &all {
            let swept = rustix::fs::fstat(volume.root()).and_then(|stat| {
                if done.contains(&stat.st_dev) {
                    return Ok(Swept::All(0));
                }
                done.push(stat.st_dev);
                sweep::sweep(volume.homes(&all)?)
            });
            match swept {
                Ok(Swept::All(0)) => {}
                Ok(Swept::Incomplete) => tracing::warn!(
                    "not every file of the shares could be seen; streams of files that are gone stay"
                ),
                Ok(Swept::All(count)) => {
                    tracing::info!(count, "removed streams of files that are gone")
                }
                Err(error) => tracing::info!(%error, "streams of files that are gone may remain"),
            }
        }
    }

    /// The SID of the server, made of its identity.
    pub fn machine_sid(&self) -> Sid {
        let identity = self.ids.identity();
        let word = |at: usize| {
            u32::from_le_bytes([identity[at], identity[at + 1], identity[at + 2], identity[at + 3]])
        };
        Sid::new(5, &[21, word(0), word(4), word(8)])
    }

    /// The SID of a user: below the server's, numbered by the folded name.
    pub fn user_sid(&self, user: &str) -> Sid {
        self.machine_sid().below(accounts::rid(user))
    }
}

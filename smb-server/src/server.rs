//! What all connections share.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Instant,
};

use smb_protocol::{SessionId, kerberos, ntlm::ServerInfo, security::Sid};
use volume::{
    clock::{now, random},
    fs::{
        sweep::{self, Swept},
        volume::Volume,
    },
    offload_tokens::Tokens,
    open::table::OpenFileTable,
    quoted::Rate,
};

use crate::{
    breaks::clients::Clients,
    config::Config,
    logons::Logons,
    meters::Meters,
    rpc::accounts,
    session::{ConnectionId, Sessions},
};

/// What all connections share.
#[derive(Debug)]
pub struct Server {
    /// Identity that clients remember; kept in the state folder.
    pub guid: [u8; 16],
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
    next_session: AtomicU64,
    next_open: AtomicU64,
    next_connection: AtomicU64,
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
        let identity_at = config.state_dir.join("server-guid");
        let is_first = !identity_at.exists();
        let guid = identity(&identity_at)?;
        // No ticket was shown to a server that there was not.
        let since = if is_first { 0 } else { now() };
        let ntlm = Arc::new(ServerInfo::standalone(&config.name));
        // Names of sessions and opens start at a random place, so that one from before a restart
        // does not fit by chance.
        let seed = u64::from_le_bytes(random()?);
        let run = run_number(&config.state_dir.join("session-ids"))?;
        let clients = Arc::<Clients>::default();
        let open_files = Arc::new(OpenFileTable::new(clients.clone()));
        limit(&open_files, &config.limits);
        Ok(Self {
            guid,
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
            // A client names its last session when it comes back, and must not mean one that
            // another has got from the next server (MS-SMB2 3.3.5.5.3). They fit 32 bits, as those
            // of other servers do: smbtorture's session-id takes a longer one for one it made up.
            next_session: AtomicU64::new(u64::from(run) << 16 | 1),
            next_open: AtomicU64::new((seed >> 16 & 0xffff_ffff_0000) | 1),
            next_connection: AtomicU64::new(1),
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

    /// A name for a new session.
    pub fn new_session_id(&self) -> SessionId {
        SessionId(self.next_session.fetch_add(1, Ordering::Relaxed))
    }

    /// A name for a new connection.
    pub fn new_connection_id(&self) -> ConnectionId {
        ConnectionId(self.next_connection.fetch_add(1, Ordering::Relaxed))
    }

    /// The SID of the server, made of its identity.
    pub fn machine_sid(&self) -> Sid {
        let word = |at: usize| {
            u32::from_le_bytes([
                self.guid[at],
                self.guid[at + 1],
                self.guid[at + 2],
                self.guid[at + 3],
            ])
        };
        Sid::new(5, &[21, word(0), word(4), word(8)])
    }

    /// The SID of a user: below the server's, numbered by the folded name.
    pub fn user_sid(&self, user: &str) -> Sid {
        self.machine_sid().below(accounts::rid(user))
    }

    /// No new open is named like that one, nor like any before it.
    pub fn skip_open_ids(&self, id: u64) {
        self.next_open.fetch_max(id.saturating_add(1), Ordering::Relaxed);
    }

    /// A name for a new open.
    pub fn new_open_id(&self) -> u64 {
        self.next_open.fetch_add(1, Ordering::Relaxed)
    }
}

/// The upper half of this run's session ids: none that a run shortly before had, or a client that
/// comes back and names its session of then would end another's. The file at `path` remembers them; it
/// is not made durable, so after a power cut the number may be the last run's again, by chance.
fn run_number(path: &Path) -> io::Result<u16> {
    /// Runs that are remembered.
    const RUNS: usize = 64;
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error),
    };
    let mut runs: Vec<u16> =
        bytes.chunks_exact(2).map(|run| u16::from_le_bytes([run[0], run[1]])).collect();
    let run = loop {
        let run = u16::from_le_bytes(random()?);
        if !runs.contains(&run) {
            break run;
        }
    };
    runs.push(run);
    let kept = &runs[runs.len().saturating_sub(RUNS)..];
    let fresh = path.with_extension("new");
    fs::write(&fresh, kept.iter().flat_map(|run| run.to_le_bytes()).collect::<Vec<_>>())?;
    fs::rename(&fresh, path)?;
    Ok(run)
}

/// Reads the identity of the server, making it the first time.
fn identity(path: &Path) -> io::Result<[u8; 16]> {
    match fs::read(path) {
        Ok(bytes) => bytes.try_into().map_err(|_| {
            let text = format!("{}: not 16 bytes; remove it to get a new identity", path.display());
            io::Error::new(io::ErrorKind::InvalidData, text)
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let guid = random()?;
            let fresh = path.with_extension("new");
            let mut file = fs::OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&fresh)?;
            file.write_all(&guid)?;
            file.sync_all()?;
            fs::rename(&fresh, path)?;
            Ok(guid)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// A damaged or foreign file is no reason not to start.
    #[test]
    fn no_run_has_the_session_ids_of_the_runs_before() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("session-ids");
        let even: Vec<u8> = (0..=u16::MAX).step_by(2).flat_map(u16::to_le_bytes).collect();
        for _ in 0..20 {
            fs::write(&path, &even).unwrap();
            assert!(run_number(&path).unwrap() % 2 == 1);
            assert_eq!(fs::metadata(&path).unwrap().len(), 128);
        }
        // What is in the file is no reason not to start.
        fs::write(&path, [7; 3]).unwrap();
        let mut seen = HashSet::new();
        assert!((0..60).all(|_| seen.insert(run_number(&path).unwrap())));
    }
}

//! Opening files and disks by their locations.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use block_io::{Disk, File, LocalFile};
use iscsi::initiator::IscsiDisk;
use smb_client::{Client, Instance, SmbUrl, Tree};
use vhd::{Format, chain, tracking};

use crate::{
    Claim, Error, IscsiUrl, Location, ParentRule, Parents, Result, Servers, lun,
    lun_file::LunFile,
    lun_owner::{Registered, Waiting},
};

/// A format, and whether it was named or is what a location's ending says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Named {
    /// How the bytes of the file are arranged.
    pub format: Format,
    /// Whether somebody named it. If not, a file that is raw by its ending must not bear the mark of
    /// another format.
    pub asked: bool,
}

impl Named {
    /// Checks a file whose format nobody named.
    ///
    /// # Errors
    /// [`Error::NotRaw`] for a file that is raw by its ending alone and bears another format's mark.
    pub async fn check(self, file: &dyn File, location: &str) -> Result<()> {
        if self.asked {
            return Ok(());
        }
        vhd::probe::check(file, location, self.format).await.map_err(Error::NotRaw)
    }
}

impl From<Format> for Named {
    /// A format that does not depend on an ending.
    fn from(format: Format) -> Self {
        Self { format, asked: true }
    }
}

/// What becomes of a disk whose change tracking is damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Damaged {
    /// It is not opened.
    Refuse,
    /// It is opened, with a warning, and no track is kept. That is safe: the first write changes the
    /// image's content id, which no longer is that of the tracking file.
    Ignore,
}

/// The format that a location names by its ending; a logical unit has none, and is raw.
pub fn format_of(location: &str) -> Option<Format> {
    if is_lun(location) { Some(Format::Raw) } else { Format::from_path(location) }
}

/// Whether a location is meant to name a logical unit of an iSCSI target.
pub fn is_lun(location: &str) -> bool {
    IscsiUrl::looks_like(location)
}

/// Where the changes of the image at `location` are tracked, if they are.
pub fn tracking_of(location: &str) -> String {
    format!("{location}{}", tracking::ENDING)
}

/// A connected share.
#[derive(Clone)]
pub(crate) struct Share {
    url: SmbUrl,
    tree: Tree,
}

impl fmt::Debug for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Share({})", self.url)
    }
}

impl Share {
    /// Whether an address is on this share, by this user.
    pub(crate) fn has(&self, url: &SmbUrl) -> bool {
        let ours = &self.url;
        let same = str::eq_ignore_ascii_case;
        same(&ours.host, &url.host)
            && same(&ours.share, &url.share)
            && (ours.port, &ours.user) == (url.port, &url.user)
    }

    pub(crate) async fn open(
        &self,
        path: &str,
        claim: Claim,
        instance: Option<Instance>,
    ) -> Result<Arc<dyn File>> {
        Ok(Arc::new(self.tree.open(path, claim.remote(instance)).await?))
    }
}

/// The place of a file: the file itself and what is beside it.
#[derive(Debug)]
enum Place {
    Local(String),
    Share(Share),
    Lun(IscsiUrl),
}

/// How a program opens disks.
#[derive(Debug, Clone)]
pub struct Source {
    servers: Arc<dyn Servers>,
    rule: Arc<ParentRule>,
    patience: Duration,
    damaged: Damaged,
}

impl Source {
    /// A source that logs on as `servers` says and opens what `rule` lets images name. It waits for
    /// no file that is in use, and refuses disks whose change tracking is damaged.
    pub fn new(servers: Arc<dyn Servers>, rule: ParentRule) -> Self {
        let rule = Arc::new(rule);
        Self { servers, rule, patience: Duration::ZERO, damaged: Damaged::Refuse }
    }

    /// Waits up to `patience` for a local file that is in use: a program that was killed lets go of
    /// what it had open a moment after it is gone.
    #[must_use]
    pub fn waiting(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// Does this with disks whose change tracking is damaged.
    #[must_use]
    pub fn with_damaged_tracking(self, damaged: Damaged) -> Self {
        Self { damaged, ..self }
    }

    pub(crate) fn rule(&self) -> &ParentRule {
        &self.rule
    }

    pub(crate) fn patience(&self) -> Duration {
        self.patience
    }

    /// The files that the image at `location` may name.
    pub fn parents(&self, location: &str) -> Parents {
        Parents::new(self, location, None)
    }

    /// Opens the file at `location`. The session with its server lives as long as the file is open.
    ///
    /// # Errors
    /// [`Error`]: what is wrong with the location, and what the server or the file system says.
    pub async fn open(&self, location: &str, claim: Claim) -> Result<Arc<dyn File>> {
        self.place(location).await?.open(self, "", claim, None).await
    }

    /// Removes the file at `location`, which nobody has open.
    ///
    /// # Errors
    /// [`Error`]: what is wrong with the location, and what the server or the file system says. A logical
    /// unit is no file.
    pub async fn remove(&self, location: &str) -> Result<()> {
        match self.place(location).await? {
            Place::Local(path) => {
                let at = |error| block_io::Error::io(format!("cannot remove {path}"), error);
                Ok(tokio::fs::remove_file(&path).await.map_err(at)?)
            }
            Place::Share(share) => Ok(share.tree.delete(&share.url.path).await?),
            Place::Lun(_) => {
                let kind = std::io::ErrorKind::Unsupported;
                Err(block_io::Error::io(format!("cannot remove {location}"), kind.into()).into())
            }
        }
    }

    /// Opens the disk in the image at `location`, as [`Prepared::open`] does.
    ///
    /// # Errors
    /// Those of [`Source::open`] and [`Prepared::open`].
    pub async fn open_disk(
        &self,
        location: &str,
        format: impl Into<Named>,
        claim: Claim,
    ) -> Result<Arc<dyn Disk>> {
        let place = self.place(location).await?;
        self.prepared(location, format.into(), claim, place, None).open(None).await
    }

    /// Checks that a disk's file is there, without opening it; for a share this sets up the session
    /// that [`Prepared::open`] uses, and at a logical unit a writer that is an `instance` is
    /// registered, so that it takes the unit over without a gap.
    ///
    /// # Errors
    /// [`Error`]: what is wrong with the location, and what the server or the file system says.
    pub async fn prepare(
        &self,
        location: &str,
        format: impl Into<Named>,
        claim: Claim,
        instance: Option<Instance>,
    ) -> Result<Prepared> {
        let place = self.place(location).await?;
        let mut waiting = None;
        match &place {
            Place::Local(path) => {
                let at = |error| block_io::Error::io(format!("cannot look at {path}"), error);
                tokio::fs::metadata(path).await.map_err(at)?;
            }
            Place::Share(share) => {
                share.tree.stat(&share.url.path).await?;
            }
            Place::Lun(url) => match instance.filter(|_| claim == Claim::Write) {
                Some(run) => {
                    let registered = Registered::new(url, &*self.servers, run).await?;
                    waiting = Some(Waiting::new(registered));
                }
                None => lun::open(url, Claim::Look, &*self.servers).await?.close().await?,
            },
        }
        Ok(self.prepared(location, format.into(), claim, place, waiting))
    }

    fn prepared(
        &self,
        location: &str,
        format: Named,
        claim: Claim,
        place: Place,
        waiting: Option<Waiting>,
    ) -> Prepared {
        let (source, location) = (self.clone(), location.to_owned());
        Prepared { source, location, format, claim, place, waiting }
    }

    /// The place that a location names, with a session if it is on a share.
    async fn place(&self, location: &str) -> Result<Place> {
        let url = match Location::of_file(location)? {
            Location::Local(_) => return Ok(Place::Local(location.to_owned())),
            Location::Lun(url) => return Ok(Place::Lun(url)),
            Location::Share(url) => url,
        };
        let session = Client::connect(self.servers.connect_options(&url)?).await?;
        let tree = session.tree(&url.share).await?;
        Ok(Place::Share(Share { url, tree }))
    }
}

impl Place {
    /// Opens the file, or the one beside it whose name has this ending.
    async fn open(
        &self,
        source: &Source,
        ending: &str,
        claim: Claim,
        instance: Option<Instance>,
    ) -> Result<Arc<dyn File>> {
        match self {
            Self::Local(path) => {
                let path = format!("{path}{ending}");
                let open = || LocalFile::open(&path, &claim.local());
                Ok(Arc::new(patiently(source.patience, open).await?))
            }
            Self::Share(share) => {
                share.open(&format!("{}{ending}", share.url.path), claim, instance).await
            }
            Self::Lun(url) => {
                Ok(Arc::new(LunFile::new(lun::open(url, claim, &*source.servers).await?)))
            }
        }
    }

    /// Whether there is a file beside it whose name has this ending.
    async fn has(&self, ending: &str) -> Result<bool> {
        match self {
            Self::Local(path) => {
                let path = format!("{path}{ending}");
                let at = |error| block_io::Error::io(format!("cannot look for {path}"), error);
                Ok(tokio::fs::try_exists(&path).await.map_err(at)?)
            }
            Self::Share(share) => {
                Ok(share.tree.exists(&format!("{}{ending}", share.url.path)).await?)
            }
            // Nothing is beside a logical unit.
            Self::Lun(_) => Ok(false),
        }
    }
}

/// A disk that can be opened quickly: its place is known to be reachable.
#[derive(Debug)]
pub struct Prepared {
    source: Source,
    location: String,
    format: Named,
    claim: Claim,
    place: Place,
    /// The registration of a writer at a logical unit.
    waiting: Option<Waiting>,
}

impl Prepared {
    /// Where the disk is.
    pub fn location(&self) -> &str {
        &self.location
    }

    /// Opens the disk with its parents, which are only read. What is written to a VHDX whose changes
    /// are tracked is tracked too. On a share, and at a logical unit, a writer is `instance`: it takes
    /// the disk from an earlier instance of the same application, which cannot write to it any more.
    ///
    /// # Errors
    /// [`block_io::Error::Busy`] in [`Error::Storage`] or [`Error::Server`] while another has it, and
    /// whatever else the storage or the image says.
    pub async fn open(&self, instance: Option<Instance>) -> Result<Arc<dyn Disk>> {
        let location = &self.location;
        let file: Arc<dyn File> = match &self.place {
            Place::Lun(url) => {
                let disk = self.unit(url, instance).await?;
                let file = Arc::new(LunFile::new(disk.clone()));
                if self.format.format == Format::Raw {
                    self.format.check(&*file, location).await?;
                    return Ok(disk);
                }
                file
            }
            place => place.open(&self.source, "", self.claim, instance).await?,
        };
        self.format.check(&*file, location).await?;
        let share = match &self.place {
            Place::Local(_) | Place::Lun(_) => None,
            Place::Share(share) => Some(share.clone()),
        };
        let parents = Parents::new(&self.source, location, share);
        let format = self.format.format;
        let disk = chain::open_disk(file.clone(), location, format, &parents).await;
        let disk = disk.map_err(Error::Image)?;
        if self.claim != Claim::Write || format != Format::Vhdx {
            return Ok(disk);
        }
        let tracked = self.tracked(disk.clone(), file, instance).await;
        if tracked.is_err() {
            // The failure that matters is the one that is returned.
            let _ = disk.close().await;
        }
        tracked
    }

    /// The unit, which a writer that is an instance takes over.
    async fn unit(&self, url: &IscsiUrl, instance: Option<Instance>) -> Result<Arc<IscsiDisk>> {
        let servers = &*self.source.servers;
        let Some(run) = instance.filter(|_| self.claim == Claim::Write) else {
            return lun::open(url, self.claim, servers).await;
        };
        let waited = match &self.waiting {
            Some(waiting) => waiting.take(run).await,
            None => None,
        };
        match waited {
            Some(registered) => registered.own(url).await,
            None => Registered::new(url, servers, run).await?.own(url).await,
        }
    }

    /// The disk; if its changes are tracked, those made through it are.
    async fn tracked(
        &self,
        disk: Arc<dyn Disk>,
        file: Arc<dyn File>,
        instance: Option<Instance>,
    ) -> Result<Arc<dyn Disk>> {
        if !self.place.has(tracking::ENDING).await? {
            return Ok(disk);
        }
        let beside = self.place.open(&self.source, tracking::ENDING, self.claim, instance).await?;
        let location = tracking_of(&self.location);
        match tracking::attach(disk.clone(), file, beside).await {
            Err(vhd::Error::Damaged(damage)) if self.source.damaged == Damaged::Ignore => {
                tracing::warn!(%location, %damage, "no track is kept of a disk's changes");
                Ok(disk)
            }
            Err(source) => Err(Error::Tracking { location, source }),
            Ok(disk) => Ok(disk),
        }
    }
}

/// Opens, and while it is busy again for up to `patience`.
pub(crate) async fn patiently<T>(
    patience: Duration,
    open: impl Fn() -> block_io::Result<T>,
) -> block_io::Result<T> {
    let since = Instant::now();
    loop {
        match open() {
            Err(block_io::Error::Busy(_)) if since.elapsed() < patience => {
                tokio::time::sleep(patience / 50).await;
            }
            other => return other,
        }
    }
}

//! The folder of a share: how a name leads to a file.
//!
//! Every path is resolved by the kernel below the share's folder; nothing leaves it, neither by
//! `..` nor by a symbolic link. A file is reached by descriptor from then on, never by path.
//!
//! A symbolic link of the host, which only somebody on this machine can make, is to clients what it
//! leads to. It leads nowhere they could not go by a name: not out of the share, not into what is the
//! server's own, not to what another server serves. The symbolic links of clients are reparse points
//! ([`crate::fs::reparse`]), and never followed here.

use std::{
    ffi::{OsStr, OsString},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    sync::{
        Arc, OnceLock, PoisonError, RwLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use rustix::{
    fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Stat},
    io::Errno,
};
use smb_protocol::{NtStatus, name::same_name};

use super::{
    descriptor::place_of,
    file_key,
    identity::Identity,
    names,
    path::{self, PRIVATE, RelPath},
    reparse::{self, Lost, Met},
    short,
    snapshots::Snapshots,
    space,
    streams::StreamStore,
    tunnel,
};
use crate::{status::of_errno, work::aside};

/// The folder of a share.
#[derive(Debug)]
pub struct Volume {
    root: OwnedFd,
    /// Where the root was when it was opened.
    base: RelPath,
    shares_blocks: OnceLock<bool>,
    identity: OnceLock<Identity>,
    pub(crate) snapshots: Snapshots,
    /// It is a snapshot of another.
    pub(crate) past: bool,
    /// Opens in it.
    opens: AtomicUsize,
    /// Group of the system that what is made here gets.
    pub(crate) group: Option<Gid>,
    pub(crate) streams: RwLock<Arc<StreamStore>>,
    pub(crate) tunnel: tunnel::Tunnel,
    pub(crate) names: names::Names,
    /// Parts of it that are served elsewhere; the same in its snapshots.
    pub(crate) elsewhere: Elsewhere,
}

/// Places in a share, each as its parts.
pub(crate) type Elsewhere = Arc<RwLock<Vec<Vec<String>>>>;

/// Where a name leads.
#[derive(Debug)]
pub enum Found {
    /// To something; the path has the case that the disk has.
    Here {
        /// Opened without access to its content.
        fd: OwnedFd,
        /// What it is.
        stat: Stat,
        /// Its name as the disk has it.
        path: RelPath,
    },
    /// To nothing, but the folder it would be in is there.
    Missing {
        /// The folder, opened for listing.
        folder: OwnedFd,
        /// The name with the folder's part as the disk has it.
        path: RelPath,
    },
}

/// Through links of the host as well.
const FOLLOW: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_MAGICLINKS);
/// As a name is written.
const PLAIN: ResolveFlags = FOLLOW.union(ResolveFlags::NO_SYMLINKS);

impl Volume {
    /// Opens a share's folder.
    pub fn open(path: &Path) -> std::io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(path, flags, Mode::empty())?;
        let volume = Self::from_root(root, false)?;
        match volume.openat(OsStr::new("."), flags, Mode::empty()) {
            Err(Errno::NOSYS) => Err(std::io::Error::other(
                "the system refuses openat2, by which paths are kept below it: Linux 5.6 or later \
                 is needed, and no filter that refuses it (RestrictSUIDSGID of systemd does)",
            )),
            // Whoever may not look into it now may later.
            _ => Ok(volume),
        }
    }

    pub(crate) fn from_root(root: OwnedFd, past: bool) -> Result<Self, Errno> {
        let home = rustix::io::fcntl_dupfd_cloexec(&root, 0)?;
        let streams = RwLock::new(Arc::new(StreamStore::new(vec![home])));
        let (shares_blocks, identity) = (OnceLock::new(), OnceLock::new());
        let snapshots = Snapshots::default();
        let base = RelPath::from_system(&place_of(root.as_fd())?);
        let tunnel = tunnel::Tunnel::default();
        let names = names::Names::default();
        let (opens, group) = (AtomicUsize::new(0), None);
        Ok(Self {
            root,
            base,
            streams,
            shares_blocks,
            identity,
            snapshots,
            past,
            opens,
            group,
            tunnel,
            names,
            elsewhere: Elsewhere::default(),
        })
    }

    /// Says which parts of the share are served elsewhere: no link of the host leads there.
    pub fn is_served_elsewhere(&self, places: Vec<Vec<String>>) {
        *self.elsewhere.write().unwrap_or_else(PoisonError::into_inner) = places;
    }

    /// What is made here gets this group of the system.
    pub fn with_group(self, group: Option<u32>) -> Self {
        Self { group: group.map(Gid::from_raw), ..self }
    }

    /// Number of opens on this volume.
    pub fn open_count(&self) -> usize {
        self.opens.load(Ordering::Relaxed)
    }

    /// Counts an open that was made.
    pub fn entered(&self) {
        self.opens.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts an open out.
    pub fn left(&self) {
        self.opens.fetch_sub(1, Ordering::Relaxed);
    }

    /// Whether it is a snapshot, in which nothing changes any more.
    pub fn is_snapshot(&self) -> bool {
        self.past
    }

    /// Whether files on it can share blocks.
    pub fn shares_blocks(&self) -> bool {
        *self.shares_blocks.get_or_init(|| space::can_share(self.root()))
    }

    fn known_by(&self) -> Identity {
        *self.identity.get_or_init(|| Identity::of(self.root()))
    }

    /// The number that tells this volume from others (`VolumeSerialNumber`, MS-FSA 2.1.1.1).
    pub fn serial(&self) -> u32 {
        self.known_by().serial()
    }

    /// What the volume is known by (`VolumeId`, MS-FSA 2.1.1.1).
    pub fn identity(&self) -> [u8; 16] {
        self.known_by().bytes()
    }

    /// Says which other shares there are: on one file system a file's named streams are the same
    /// through all of them.
    pub fn know(&self, others: &[Arc<Self>]) -> Result<(), Errno> {
        let homes = self.homes(others)?;
        *self.streams.write().unwrap_or_else(PoisonError::into_inner) =
            Arc::new(StreamStore::new(homes));
        Ok(())
    }

    /// The roots of the shares on this file system, those around this one first, the outermost
    /// before all.
    pub fn homes(&self, others: &[Arc<Self>]) -> Result<Vec<OwnedFd>, Errno> {
        let device = rustix::fs::fstat(&self.root)?.st_dev;
        let mine = place_of(self.root())?;
        let mut homes = Vec::new();
        for other in others.iter().map(AsRef::as_ref) {
            if rustix::fs::fstat(&other.root)?.st_dev == device {
                let place = place_of(other.root())?;
                homes.push((!mine.starts_with(&place), place, other));
            }
        }
        homes.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
        homes.dedup_by(|a, b| a.1 == b.1);
        homes.iter().map(|home| rustix::io::fcntl_dupfd_cloexec(&home.2.root, 0)).collect()
    }

    /// The named streams of the files here.
    pub fn streams(&self) -> Arc<StreamStore> {
        self.streams.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A path in this share as one from the root of the system, which is the same through every
    /// share.
    pub fn system(&self, path: &RelPath) -> RelPath {
        self.base.join(path)
    }

    /// A path from the root of the system as one in this share; `None` if it is not in it.
    pub fn own(&self, system: &RelPath) -> Option<RelPath> {
        system.below(&self.base)
    }

    /// The path from the share's root to what `fd` names, as it is now, whoever moved it; the
    /// root's for what is not below it any more.
    pub fn path_of(&self, fd: BorrowedFd<'_>) -> Result<RelPath, Errno> {
        let (root, place) = (place_of(self.root())?, place_of(fd)?);
        Ok(RelPath::from_system(place.strip_prefix(root).unwrap_or(Path::new(""))))
    }

    /// Why something could not come to a place where it was to be looked up before: a folder on the way
    /// may have become a reparse point since, which whoever comes now is told of.
    pub fn refusal(&self, wanted: &RelPath, error: Errno) -> NtStatus {
        let now = (error == Errno::LOOP).then(|| self.find(wanted)).and_then(Result::err);
        now.map_or_else(|| of_errno(error), NtStatus::from)
    }

    /// The folder that the share is.
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    fn openat(&self, path: &OsStr, flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
        let path = if path.is_empty() { OsStr::new(".") } else { path };
        let open = |resolve| loop {
            match rustix::fs::openat2(&self.root, path, flags | OFlags::CLOEXEC, mode, resolve) {
                // The kernel saw a rename while it resolved the path.
                Err(Errno::AGAIN | Errno::INTR) => {}
                other => return other,
            }
        };
        match open(PLAIN) {
            Err(Errno::LOOP) => {
                let fd = open(FOLLOW)?;
                if self.hides(fd.as_fd())? { Err(Errno::ACCESS) } else { Ok(fd) }
            }
            other => other,
        }
    }

    /// Whether no name leads to what a link of the host led to.
    fn hides(&self, fd: BorrowedFd<'_>) -> Result<bool, Errno> {
        let (root, place) = (place_of(self.root())?, place_of(fd)?);
        let Ok(below) = place.strip_prefix(root) else { return Ok(true) };
        let path = RelPath::from_system(below);
        Ok(path.parts().iter().any(|part| part.eq_ignore_ascii_case(PRIVATE))
            || self.leads_elsewhere(&path))
    }

    fn leads_elsewhere(&self, path: &RelPath) -> bool {
        let elsewhere = self.elsewhere.read().unwrap_or_else(PoisonError::into_inner);
        elsewhere.iter().any(|place| short::leads_to(place, path.parts()))
    }

    /// Fails for a name in a folder that was reached through a link of the host, if what it means is
    /// served elsewhere. Where nothing is, that costs nothing.
    fn serves(&self, folder: &OwnedFd, name: &str) -> Result<(), NtStatus> {
        if self.elsewhere.read().unwrap_or_else(PoisonError::into_inner).is_empty() {
            return Ok(());
        }
        let path = self.path_of(folder.as_fd()).map_err(of_errno)?.child(name);
        if self.leads_elsewhere(&path) { Err(NtStatus::ACCESS_DENIED) } else { Ok(()) }
    }

    fn look(&self, path: &RelPath) -> Result<(OwnedFd, Stat), Errno> {
        let fd = self.openat(&path.to_os(), OFlags::PATH, Mode::empty())?;
        let stat = rustix::fs::fstat(&fd)?;
        Ok((fd, stat))
    }

    /// What a link of the host leads to that has this name in a folder, opened without access to its
    /// content.
    pub(crate) fn behind_link(&self, folder: BorrowedFd<'_>, name: &str) -> Result<OwnedFd, Errno> {
        let path = self.path_of(folder)?.child(name);
        self.openat(&path.to_os(), OFlags::PATH, Mode::empty())
    }

    /// What `path` names, as it is written.
    pub fn stat_of(&self, path: &RelPath) -> Result<Stat, Errno> {
        Ok(self.look(path)?.1)
    }

    /// Follows a name, first with its own case, then with Windows' rules; a reparse point is not
    /// passed, but may be what the name leads to.
    ///
    /// # Errors
    /// `OBJECT_PATH_NOT_FOUND` where a folder is missing, a reparse point on the way, and what the file
    /// system says.
    pub fn find(&self, wanted: &RelPath) -> Result<Found, Lost> {
        match self.look(wanted) {
            Ok((fd, stat)) => return Ok(Found::Here { fd, stat, path: wanted.clone() }),
            Err(Errno::NOENT | Errno::NOTDIR) => {}
            Err(error) => return Err(of_errno(error).into()),
        }
        let (above, name) = wanted.split().ok_or(NtStatus::OBJECT_PATH_NOT_FOUND)?;
        let (folder, above) = match self.open_folder(&above) {
            Ok(folder) => {
                self.pass(folder.as_fd(), above.parts().len())?;
                (folder, above)
            }
            Err(Errno::NOENT | Errno::NOTDIR) => self.find_folder(&above)?,
            Err(error) => return Err(of_folder(error).into()),
        };
        let real = self.fold(&folder, name)?;
        self.serves(&folder, real.as_deref().unwrap_or(name))?;
        let Some(real) = real else {
            return Ok(Found::Missing { folder, path: above.child(name) });
        };
        let path = above.child(&real);
        match self.look(&path) {
            Ok((fd, stat)) => Ok(Found::Here { fd, stat, path }),
            // A link of the host that leads nowhere has the name: neither can the name be given to
            // another, nor is there anything to open.
            Err(Errno::NOENT) if is_link(folder.as_fd(), &real) => {
                Err(NtStatus::ACCESS_DENIED.into())
            }
            Err(Errno::NOENT) => Ok(Found::Missing { folder, path }),
            Err(error) => Err(of_errno(error).into()),
        }
    }

    /// Follows the name of a folder part by part.
    fn find_folder(&self, wanted: &RelPath) -> Result<(OwnedFd, RelPath), Lost> {
        /// More folders than that, one in the other, are not followed on a thread that serves.
        const DEEP: usize = 16;
        let parts = wanted.parts();
        let mut at = (self.open_folder(&RelPath::root()).map_err(of_folder)?, RelPath::root());
        let (first, rest) = parts.split_at(parts.len().min(DEEP));
        for part in first {
            at = self.enter(at, part)?;
        }
        if rest.is_empty() {
            return Ok(at);
        }
        aside(|| rest.iter().try_fold(at, |at, part| self.enter(at, part)))
    }

    /// Follows one part of a name from a folder.
    fn enter(
        &self,
        (folder, above): (OwnedFd, RelPath),
        part: &str,
    ) -> Result<(OwnedFd, RelPath), Lost> {
        let depth = above.parts().len() + 1;
        let open = |name: &str| {
            // From the folder itself, whose depth does not matter then.
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            match rustix::fs::openat2(&folder, name, flags, Mode::empty(), PLAIN) {
                // A link of the host may lead to another folder of the share.
                Err(Errno::LOOP | Errno::XDEV | Errno::AGAIN) => {
                    self.open_folder(&above.child(name))
                }
                other => other,
            }
        };
        let (name, opened) = match open(part) {
            Err(Errno::NOENT) => {
                let real = self.fold(&folder, part)?.ok_or(NtStatus::OBJECT_PATH_NOT_FOUND)?;
                let opened = open(&real);
                (real, opened)
            }
            other => (part.to_owned(), other),
        };
        let next = match opened {
            Err(Errno::NOTDIR) => {
                // A file is no folder; one that is a link is what is to be told.
                let flags = OFlags::PATH | OFlags::CLOEXEC;
                let file = rustix::fs::openat2(&folder, &*name, flags, Mode::empty(), PLAIN);
                file.map_err(of_folder)
                    .map_err(Lost::from)
                    .and_then(|f| self.pass(f.as_fd(), depth))?;
                return Err(NtStatus::OBJECT_PATH_NOT_FOUND.into());
            }
            other => other.map_err(of_folder)?,
        };
        self.pass(next.as_fd(), depth)?;
        self.serves(&folder, &name)?;
        Ok((next, above.child(&name)))
    }

    /// Fails for a reparse point on the way, which is the part of the name at `depth`; the share's
    /// folder itself is none to clients.
    fn pass(&self, fd: BorrowedFd<'_>, depth: usize) -> Result<(), Lost> {
        if depth == 0 {
            return Ok(());
        }
        match reparse::of(self, fd).map_err(of_errno)? {
            Some(point) if !point.tag().may_have_children() => {
                Err(Lost::Reparse(Box::new(Met { point, depth })))
            }
            _ => Ok(()),
        }
    }

    /// Opens a folder for listing.
    fn open_folder(&self, path: &RelPath) -> Result<OwnedFd, Errno> {
        self.openat(&path.to_os(), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())
    }

    /// Opens a folder in another, without access to its content.
    pub(crate) fn step(&self, folder: BorrowedFd<'_>, name: &str) -> Result<OwnedFd, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::openat2(folder, name, flags, Mode::empty(), FOLLOW)
    }

    /// The name in `folder` that Windows holds for the same as `part`.
    fn fold(&self, folder: &OwnedFd, part: &str) -> Result<Option<String>, NtStatus> {
        /// So many names are looked at on a thread that serves.
        const FEW: usize = 256;
        let by_short = part.contains('~') && short::is_short(part);
        let stat = rustix::fs::fstat(folder).map_err(of_errno)?;
        if !by_short && self.names.lacks(&stat, part) {
            return Ok(None);
        }
        let mut reading = names::Names::read(&stat);
        let mut entries = Dir::read_from(folder).map_err(of_errno)?;
        let mut short_for = Vec::new();
        let mut look = |most: usize| -> Result<Looked, NtStatus> {
            for _ in 0..most {
                let Some(entry) = entries.next() else { return Ok(Looked::At(None)) };
                let entry = entry.map_err(of_errno)?;
                let Ok(text) = entry.file_name().to_str() else { continue };
                if same_name(text, part) {
                    return Ok(Looked::At(Some(text.to_owned())));
                }
                self.names.saw(&mut reading, text);
                if by_short
                    && path::valid_part(text)
                    && short::short_name(text).is_some_and(|short| same_name(&short, part))
                {
                    short_for.push(text.to_owned());
                }
            }
            Ok(Looked::NotYet)
        };
        let mut looked = look(FEW)?;
        if matches!(looked, Looked::NotYet) {
            looked = aside(|| look(usize::MAX))?;
        }
        if let Looked::At(Some(found)) = looked {
            return Ok(Some(found));
        }
        self.names.done(reading);
        // A short name that could mean two files means none.
        Ok(short_for.pop().filter(|_| short_for.is_empty()))
    }

    pub(crate) fn parent(&self, path: &RelPath) -> Result<(OwnedFd, OsString), Errno> {
        let (parent, name) = path.split().ok_or(Errno::BUSY)?;
        let fd = self.openat(&parent.to_os(), OFlags::PATH | OFlags::DIRECTORY, Mode::empty())?;
        Ok((fd, OsString::from(name)))
    }

    /// The name that a new file really gets: one that is made by the short name of a file that has
    /// just gone gets that one's long name.
    pub fn tunnelled(&self, folder: BorrowedFd<'_>, path: RelPath) -> RelPath {
        let long = path.split().filter(|(_, name)| name.contains('~')).and_then(|(above, name)| {
            let folder = rustix::fs::fstat(folder).ok()?;
            let long = self.tunnel.comes_back(file_key::key(&folder), name, Instant::now())?;
            Some(above.child(&long))
        });
        match long {
            Some(long) if matches!(self.look(&long), Err(Errno::NOENT)) => long,
            _ => path,
        }
    }

    /// The folder that `path` is in, opened without access to its content.
    pub fn folder_of(&self, path: &RelPath) -> Result<OwnedFd, Errno> {
        let folder = path.split().map_or_else(RelPath::root, |(folder, _)| folder);
        self.openat(&folder.to_os(), OFlags::PATH | OFlags::DIRECTORY, Mode::empty())
    }

    /// Makes the names in the folder of `path` durable.
    pub fn sync_folder(&self, path: &RelPath) -> Result<(), Errno> {
        let parent = path.split().map_or_else(RelPath::root, |(parent, _)| parent);
        let fd = self.openat(&parent.to_os(), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?;
        rustix::fs::fsync(&fd)
    }
}

/// What a look at some of a folder's names came to.
enum Looked {
    /// All, or up to the one that was looked for.
    At(Option<String>),
    /// There are more.
    NotYet,
}

/// The status of a folder on the way to a file that cannot be opened.
fn of_folder(error: Errno) -> NtStatus {
    match error {
        Errno::NOENT | Errno::NOTDIR => NtStatus::OBJECT_PATH_NOT_FOUND,
        other => of_errno(other),
    }
}

/// Whether a name in a folder is a symbolic link of the host.
fn is_link(folder: BorrowedFd<'_>, name: &str) -> bool {
    rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)
        .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Symlink)
}

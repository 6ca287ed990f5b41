//! Opens of a server that has ended, made again before the first client is served
//! (MS-SMB2 3.3.5.9.12): persistent ones however it ended, durable and resilient ones if it had
//! the time to hand them over.
//!
//! ```text
//!  state store ─► each open: its share, its user, its file ─► joins the file as it had it     
//!                     │  not what it was: forgotten               │
//!                     ▼                                           ▼
//!                  its client is told so when it comes     kept for its client, with the rest of
//!                                                          its time
//! ```
//!
//! The locks of a node of a cluster that was lost end when the file system has noticed that. Until then
//! its opens are kept without their files' locks, and nobody has them; everybody else is served.
//!
//! A file is known by its place and its identity: one that was put there in place of another is
//! not the file that was open, and the open is gone.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    panic,
    sync::{Arc, Mutex, Weak, atomic::Ordering},
    thread,
    time::{Duration, Instant},
};

use block_io::{Engine, LocalFile, image_lock};
use rustix::fs::{FileType, Stat};
use smb_protocol::{
    FileId,
    msg::create::{Access, CreateOptions, ShareAccess},
};
use state_store::Opened;

use crate::{
    fs::{
        path::{self, RelPath, StreamName},
        streams,
        volume::{Found, Volume},
    },
    open::{
        CreateInfo, LOCK_SEQUENCES, Open, Parts, StreamOpen,
        create::content_again,
        persistent,
        record::{self, OpenRecord, Promise, Remembered, StreamRecord},
        table::OpenFileTable,
    },
    quoted::Quoted,
    sharing::{
        caching::{GrantOwner, LeaseId},
        file::{OpenFile, Opener},
        locks::Range,
        modes::beside,
    },
    users::ClientId,
};

/// How long all recovery waits for who has files that were open. The server before, which was killed
/// or has just let go of the store, has them a moment longer.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long all recovery on another node waits for files that are not there: a shared file system that
/// has just lost a part shows less than it has (GlusterFS: `ENOENT`) until it has found itself again.
const FILES: Duration = Duration::from_secs(5);
/// How long a client has to take up an open after its file could be claimed.
const GRACE: Duration = Duration::from_secs(10);
/// As many opens are not worth a thread.
const FEW: usize = 64;
/// How long between two looks.
const PAUSE: Duration = Duration::from_millis(5);
/// The same while clients are served meanwhile.
const LONG_PAUSE: Duration = Duration::from_millis(100);

/// Where those are who may still have files that were open, though they are gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Before {
    /// On this machine, which knows at once that a program has ended: nobody is served before.
    Here,
    /// On another. The file system may show less than it has.
    Elsewhere {
        /// The locks of that node are kept for so long. Others are served meanwhile; who takes up such an
        /// open waits.
        locks: Duration,
        /// Nothing is recovered without all files: another node may see them. Else opens whose files are
        /// not there are gone.
        whole: bool,
    },
}

/// Files of opens are not there, and nothing was recovered.
#[derive(Debug, thiserror::Error)]
#[error(
    "{count} files with persistent opens are not there, {first} among them: the file system is not whole \
     on this node, or somebody has removed them"
)]
pub struct NotWhole {
    count: usize,
    first: String,
}

/// Why an open is not made again.
#[derive(Debug, thiserror::Error)]
pub enum Gone {
    /// Its share has gone or makes no such promise any more.
    #[error("its share is not there, or not continuously available")]
    Share,
    /// Its user was shut out.
    #[error("its user may not use the share any more")]
    User,
    /// Nothing is where its file was.
    #[error("its file is not there")]
    Missing,
    /// Another file is there now.
    #[error("its file was replaced by another")]
    Replaced,
    /// Another open does not go together with it.
    #[error("others have its file open")]
    Taken,
    /// Another program has the file, with its name.
    #[error("its file is {0}")]
    InUse(String),
    /// What the system says.
    #[error("its file cannot be opened: {0}")]
    System(#[from] rustix::io::Errno),
}

/// The share of an open, as it is configured now.
#[derive(Debug)]
pub struct ShareNow {
    /// Its folder.
    pub volume: Arc<Volume>,
    /// What it grants at most.
    pub ceiling: Access,
    /// Opens on it may outlive the server.
    pub continuously_available: bool,
}

/// Finds the share of an open, if its user may still use it. Several threads ask.
pub type Shares<'a> = &'a (dyn Fn(&OpenRecord) -> Result<ShareNow, Gone> + Sync);

impl OpenFileTable {
    /// Makes the opens again that a store holds, and remembers others there.
    ///
    /// # Errors
    /// [`NotWhole`], where `before` asks for all files. The process is to end.
    pub fn recover(
        self: &Arc<Self>,
        opened: Opened,
        engine: Engine,
        shares: Shares<'_>,
        before: Before,
    ) -> Result<(), NotWhole> {
        let stable = &self.persistent_opens;
        let Opened { store, records, .. } = opened;
        stable.begin(store);
        let (opens, bad) = record::opens(&records);
        for (id, why) in bad {
            tracing::error!(id, %why, "a persistent open is lost");
            stable.queue(record::forget(id));
        }
        let (mut back, mut late) = (Vec::new(), Vec::new());
        let made = self.make_all_again(shares, engine, opens, before);
        if matches!(before, Before::Elsewhere { whole: true, .. }) {
            let missing = made.iter().filter(|(made, _)| is_missing(made));
            let mut names = missing.map(|(_, remembered)| &remembered.open.name);
            if let Some(first) = names.next() {
                let why = NotWhole { first: Quoted(first).to_string(), count: 1 + names.count() };
                // What was made again is the next one's: closed, it would be forgotten, and deleted if
                // that was asked for.
                stable.kill();
                return Err(why);
            }
        }
        for (open, remembered) in made {
            let id = remembered.open.id;
            match open {
                Ok(Again { open, claimed }) => {
                    if !claimed {
                        self.disconnected.set_late(id, true);
                        late.push((id, Arc::downgrade(&open)));
                    }
                    back.push((open, remembered));
                }
                Err(why @ Gone::InUse(_)) => {
                    let OpenRecord { name, share, .. } = &remembered.open;
                    lost(&why, name, share);
                    stable.queue(record::forget(id));
                }
                Err(why) => {
                    let OpenRecord { name, share, .. } = &remembered.open;
                    let name = Quoted(name);
                    tracing::info!(%why, %name, share, "an open is not made again");
                    stable.queue(record::forget(id));
                }
            }
        }
        // Once all have joined: what one may cache or has locked hinders none of the others.
        let count = back.len();
        for (open, remembered) in back {
            restore(&open, &remembered);
            if remembered.next.is_some() {
                // Whatever it is called now, it is not about to be called otherwise.
                drop(open.remember_anew(true));
            }
            let timeout = Duration::from_millis(remembered.open.timeout.into());
            if !open.is_in_store() {
                // Handed over once; only an orderly end hands it over again.
                stable.queue(record::forget(open.id.persistent));
            } else if remembered.away.is_none() {
                open.note_away(true);
            }
            let mut left = persistent::remaining(timeout, remembered.away);
            if let Before::Elsewhere { locks, .. } = before
                && self.disconnected.is_late(open.id.persistent)
            {
                left = left.max(locks + GRACE);
            }
            self.disconnected.keep(open, left);
        }
        if count > 0 {
            tracing::info!(count, "opens wait for their clients");
        }
        if let Before::Elsewhere { locks, .. } = before
            && !late.is_empty()
        {
            tracing::info!(count = late.len(), "opens wait for locks of a node that is gone");
            self.claim_later(late, Instant::now() + locks);
        }
        Ok(())
    }

    /// Claims the files of opens as the file system lets go of them, on a thread of its own; those that
    /// are not had in time are lost.
    fn claim_later(self: &Arc<Self>, mut late: Vec<(u64, Weak<Open>)>, until: Instant) {
        let table = Arc::downgrade(self);
        let work = move || {
            while let Some(table) = table.upgrade().filter(|it| !it.persistent_opens.is_frozen()) {
                let over = Instant::now() >= until;
                late.retain(|(id, open)| match open.upgrade() {
                    Some(open) => !table.claimed(&open, over),
                    None => {
                        table.disconnected.set_late(*id, false);
                        false
                    }
                });
                drop(table);
                if late.is_empty() {
                    return;
                }
                thread::sleep(LONG_PAUSE);
            }
        };
        if let Err(error) = thread::Builder::new().name("images".to_owned()).spawn(work) {
            tracing::error!(%error, "opens whose files are locked stay as they are");
        }
    }

    /// Whether nothing more is to be done for an open whose file was not had: it is ours now, or, when
    /// time is `over`, lost.
    fn claimed(&self, open: &Arc<Open>, over: bool) -> bool {
        let id = open.id.persistent;
        let Some(data) = &open.data else { return true };
        if open.file.claim(id, data, false).is_err() {
            if !over {
                return false;
            }
            let origin = &open.origin;
            lost(&Gone::InUse(image_lock::who(data.as_fd())), &origin.name, &origin.share);
            // It is closed, and forgotten with that; the file is another's.
            open.delete_on_close.store(false, Ordering::Release);
            drop(self.disconnected.take(id));
        }
        self.disconnected.set_late(id, false);
        true
    }

    /// Ends in an orderly way, when nobody is served any more: what clients who are away were
    /// promised is handed over to the server that comes next.
    /// `store` opens the state store, if it is not open yet.
    pub async fn hand_off(&self, store: impl FnOnce() -> Option<Opened>) {
        let stable = &self.persistent_opens;
        let kept = self.disconnected.all();
        if !stable.is_there()
            && !kept.is_empty()
            && let Some(opened) = store()
        {
            stable.begin(opened.store);
        }
        for open in kept {
            match open.hand_off() {
                Some(batch) => stable.queue(batch),
                None if open.is_in_store() => {}
                // It is closed now, while its file can still be deleted if it was to be.
                None => drop(self.disconnected.take(open.id.persistent)),
            }
        }
        stable.freeze().await;
        self.disconnected.clear();
        // Opens of clients who are still there are handed over, too, and are not closed here.
        self.claim_nothing();
    }

    /// Makes opens again, on all processors: nobody is served until the last is there. None hinders
    /// another, since all were there together. Their order stays.
    fn make_all_again(
        self: &Arc<Self>,
        shares: Shares<'_>,
        engine: Engine,
        opens: Vec<Remembered>,
        before: Before,
    ) -> Vec<(Result<Again, Gone>, Remembered)> {
        let patience = (before == Before::Here).then(|| Instant::now() + PATIENCE);
        let make = |remembered: &Remembered| self.make_again(shares, engine, remembered, patience);
        let threads = thread::available_parallelism().map_or(1, usize::from);
        let part = opens.len().div_ceil(threads).max(FEW);
        let mut made: Vec<_> = thread::scope(|scope| {
            let work = |part| scope.spawn(move || <[_]>::iter(part).map(make).collect::<Vec<_>>());
            let workers: Vec<_> = opens.chunks(part).map(work).collect();
            let ended = workers.into_iter().map(thread::ScopedJoinHandle::join);
            // A fault of one is a fault of all, as it would be on this thread.
            ended.flat_map(|made| made.unwrap_or_else(|e| panic::resume_unwind(e))).collect()
        });
        if let Before::Elsewhere { locks, .. } = before {
            wait_for_files(&mut made, |at| make(&opens[at]), FILES.min(locks));
        }
        made.into_iter().zip(opens).collect()
    }

    fn make_again(
        self: &Arc<Self>,
        shares: Shares<'_>,
        engine: Engine,
        Remembered { open: record, next, .. }: &Remembered,
        patience: Option<Instant>,
    ) -> Result<Again, Gone> {
        let share = shares(record)?;
        let access = Access(record.access);
        let kept = record.promise != Promise::Persistent || share.continuously_available;
        if !kept || access.any(Access::ALL.without(share.ceiling)) {
            return Err(Gone::Share);
        }
        let volume = share.volume;
        let (fd, stat, path) = match find(&volume, record, &record.path) {
            Ok(found) => found,
            // It was being renamed when the server ended.
            Err(why) => match next {
                Some(next) => find(&volume, record, &next.path)?,
                None => return Err(why),
            },
        };
        let kind = FileType::from_raw_mode(stat.st_mode);
        let directory = kind == FileType::Directory;
        let user = self.users.get(&record.user);
        let client = ClientId { guid: record.client, user: user.id };
        let lease = |key| LeaseId { client, key };
        let by = Opener {
            id: record.id,
            access,
            share: ShareAccess(record.share_access),
            lease: record.lease.map(lease),
            overwrites: Access::NONE,
            smb3: true,
            anew: None,
        };
        let system = volume.system(&path);
        let mut claimed = true;
        let (file, data, stream) = match &record.stream {
            Some(stream) => {
                let (stream_fd, stream_stat, name) = find_stream(&volume, fd.as_fd(), stream)?;
                let data = content_again(&stream_fd, access, &record.name, engine)?;
                let base = self.join(&stat, &system, beside(&by));
                let base = base.map_err(|_| Gone::Taken)?;
                let joined = self.join(&stream_stat, &RelPath::root(), by);
                let file = joined.map_err(|_| {
                    self.leave(&base, record.id, |_| {});
                    Gone::Taken
                })?;
                let name = Mutex::new(name);
                (file, data, Some(StreamOpen { name, file: stream_fd, base }))
            }
            None => {
                let data = match directory {
                    true => None,
                    false => content_again(&fd, access, &record.name, engine)?,
                };
                let joined = self.join(&stat, &system, by);
                let file = joined.map_err(|_| Gone::Taken)?;
                if let Some(data) = &data {
                    match claim_again(&file, record.id, data, patience) {
                        Ok(now) => claimed = now,
                        Err(gone) => {
                            self.leave(&file, record.id, |_| {});
                            return Err(gone);
                        }
                    }
                }
                (file, data, None)
            }
        };
        let mut open = Open::new(Parts {
            id: FileId { persistent: record.id, volatile: record.volatile },
            access,
            ceiling: share.ceiling,
            options: CreateOptions(record.options),
            file,
            data,
            handle: fd,
            stream,
            directory,
            volume,
            open_files: self.clone(),
            lease: record.lease.map(lease),
            origin: CreateInfo {
                client,
                user: user.clone(),
                share: record.share.clone(),
                name: record.name.clone(),
                create_guid: record.create_guid,
                app_instance: record.app_instance,
                app_version: record.app_version,
                parent_lease: record.parent_lease,
                action: record.action,
                desired_access: Access(record.desired_access),
                share_access: ShareAccess(record.share_access),
            },
        });
        open.counted = Some(user.opens.count(1));
        open.delete_on_close.store(record.delete_on_close, Ordering::Release);
        open.replayable.store(true, Ordering::Release);
        let timeout = Duration::from_millis(record.timeout.into());
        open.remembered_again(record.promise, timeout, share.continuously_available);
        let open = Arc::new(open);
        self.add_open(&open);
        Ok(Again { open, claimed })
    }
}

/// Whether an open is gone because the file system does not show its file.
fn is_missing(made: &Result<Again, Gone>) -> bool {
    matches!(made, Err(Gone::Missing | Gone::System(_)))
}

/// Makes those opens again whose files were not there or not to be had, until they are or the time is
/// over.
fn wait_for_files(
    made: &mut [Result<Again, Gone>],
    again: impl Fn(usize) -> Result<Again, Gone>,
    patience: Duration,
) {
    let until = Instant::now() + patience;
    let mut told = false;
    loop {
        let count = made.iter().filter(|made| is_missing(made)).count();
        if count == 0 || Instant::now() >= until {
            return;
        }
        if !told {
            tracing::info!(count, "files of opens are not there yet; is the file system whole?");
            told = true;
        }
        thread::sleep(LONG_PAUSE);
        for (at, made) in made.iter_mut().enumerate().filter(|(_, made)| is_missing(made)) {
            *made = again(at);
        }
    }
}

/// An open that was made again.
struct Again {
    open: Arc<Open>,
    /// Its file is ours; else another node may still have it.
    claimed: bool,
}

/// Says that an open is not made again because its file is not to be had.
fn lost(why: &Gone, name: &str, share: &str) {
    tracing::error!(%why, name, share, "an open is lost to another program");
}

/// Claims the file of an open again, before any other program does (see `docs/administration.md`).
/// Without `patience` there is time for that later; whether it was claimed.
fn claim_again(
    file: &OpenFile,
    open: u64,
    data: &Arc<LocalFile>,
    patience: Option<Instant>,
) -> Result<bool, Gone> {
    while file.claim(open, data, false).is_err() {
        match patience {
            None => return Ok(false),
            Some(patience) if Instant::now() >= patience => {
                return Err(Gone::InUse(image_lock::who(data.as_fd())));
            }
            Some(_) => thread::sleep(PAUSE),
        }
    }
    Ok(true)
}

/// The file that was open, if it is called `path`, parted by `/`.
fn find(
    volume: &Volume,
    record: &OpenRecord,
    path: &str,
) -> Result<(OwnedFd, Stat, RelPath), Gone> {
    let path = path
        .split('/')
        .try_fold(RelPath::root(), |path, part| path::valid_part(part).then(|| path.child(part)));
    let Ok(Found::Here { fd, stat, path }) = volume.find(&path.ok_or(Gone::Missing)?) else {
        return Err(Gone::Missing);
    };
    let kind = FileType::from_raw_mode(stat.st_mode);
    let fits = matches!(kind, FileType::Directory | FileType::RegularFile);
    if !fits || persistent::identity(fd.as_fd())? != record.file {
        return Err(Gone::Replaced);
    }
    Ok((fd, stat, path))
}

/// The stream that was open, its name as it is now.
fn find_stream(
    volume: &Volume,
    base: BorrowedFd<'_>,
    record: &StreamRecord,
) -> Result<(OwnedFd, Stat, StreamName), Gone> {
    let store = volume.streams();
    let called = |name: &str| -> Result<_, Gone> {
        let name = StreamName::new(name).ok_or(Gone::Missing)?;
        let (file, stat) = store.find(base, &name)?.ok_or(Gone::Missing)?;
        if persistent::identity(file.as_fd())? != record.file {
            return Err(Gone::Replaced);
        }
        let name = streams::name_of(file.as_fd()).unwrap_or(name);
        Ok((file, stat, name))
    };
    called(&record.name).or_else(|why| {
        // It was being renamed when the server ended; its file has it still.
        let names = store.list(base)?;
        names.iter().find_map(|entry| called(&entry.name).ok()).ok_or(why)
    })
}

/// Gives an open back its locks, what its client may cache, and that its file is to be deleted.
fn restore(open: &Arc<Open>, remembered: &Remembered) {
    let id = open.opener_id();
    for lock in &remembered.locks.locks {
        let range = Range::new(lock.offset, lock.length);
        if !range.is_some_and(|range| open.lock_again(range, lock.exclusive)) {
            tracing::error!(id, ?lock, "a lock of a persistent open is lost");
        }
    }
    if let Some(sequences) = remembered.locks.sequences {
        const _: () = assert!(LOCK_SEQUENCES == 64);
        open.state().lock_sequences = Some(Box::new(sequences));
    }
    let holder = open.lease.map_or(GrantOwner::Open(id), GrantOwner::Lease);
    open.table().remembered_again(open, holder, remembered.caching);
    if remembered.open.delete_pending {
        open.set_delete_pending(true);
    }
}

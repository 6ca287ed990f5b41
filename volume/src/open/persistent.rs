//! What outlives the server: persistent opens in the state store (MS-SMB2 3.3.5.9.10, 3.3.5.9.12).
//!
//! ```text
//!  CREATE ─► remember ──┐
//!  LOCK ─► note_locks ──┼─► state-store ─► the answer, once it is durable
//!  CLOSE ─► forget ─────┘
//!  breaks, clients that leave and come back ─► state-store, in the order in which they happened
//! ```
//!
//! Reads and writes never come here. A record that nobody waits for is in its place in the order
//! all the same: whatever is durable later finds it durable.

use std::{
    os::fd::{AsFd, BorrowedFd},
    sync::{
        Arc, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use rustix::{
    fs::{AtFlags, OFlags, StatxFlags},
    io::Errno,
};
use smb_protocol::NtStatus;
use state_store::{Batch, Commit, Store, StoreError};

use crate::{
    budget::{Budget, Held},
    fs::path::RelPath,
    open::{
        Durability, Open, StreamOpen,
        record::{
            self, AwayRecord, FileIdentity, Kind, Lock, LocksRecord, NextRecord, OpenRecord,
            Promise, StreamRecord,
        },
    },
    sharing::{caching::CachingRecord, next_name::Step},
    status::of_errno,
    users::User,
};

/// Time that a client has at least to come back to a server that was started again.
const GRACE: Duration = Duration::from_secs(10);

/// The store, once there is one, and how many opens are in it.
#[derive(Debug, Default)]
pub struct PersistentOpens {
    store: OnceLock<Arc<dyn Store>>,
    places: Arc<Budget>,
    frozen: AtomicBool,
}

/// The place of an open in the store, as long as it is there: one of its user's, one of all.
#[derive(Debug)]
pub struct StoredPlace {
    _of_user: Held,
    _of_all: Held,
}

impl PersistentOpens {
    /// From now on opens are remembered there.
    pub fn begin(&self, store: Arc<dyn Store>) {
        let _ = self.store.set(store);
    }

    /// Whether opens can be remembered.
    pub fn is_there(&self) -> bool {
        self.store.get().is_some()
    }

    /// Says how many opens are remembered at most.
    pub fn limit(&self, most: usize) {
        self.places.limit(most);
    }

    /// Opens that are remembered.
    pub fn held(&self) -> usize {
        self.places.held()
    }

    /// How often the store was made durable.
    pub fn commits(&self) -> u64 {
        self.store.get().map_or(0, |store| store.commits())
    }

    /// Puts changes in their place now; resolves when they are durable.
    pub fn commit(&self, batch: Batch) -> Commit {
        match self.store.get() {
            Some(store) if !self.is_frozen() => store.commit(batch),
            _ => Commit::ready(Err(StoreError::Closed)),
        }
    }

    /// Puts changes in their place that need not be made together: as many as there are, where a store
    /// takes only some at a time. Resolves when all are durable.
    pub fn commit_each(&self, batch: Batch) -> Commit {
        let most = self.store.get().map_or(usize::MAX, |store| store.most_changes());
        let mut parts = batch.in_parts(most).into_iter().map(|part| self.commit(part));
        let first = parts.next();
        // All have their places now, whether the result is waited for or not.
        let rest: Vec<Commit> = parts.collect();
        match first {
            Some(first) if rest.is_empty() => first,
            first => Commit::new(async move {
                let mut last = Err(StoreError::Closed);
                for part in first.into_iter().chain(rest) {
                    last = Ok(part.await?);
                }
                last
            }),
        }
    }

    /// Changes that nobody waits for.
    pub fn queue(&self, batch: Batch) {
        if let Some(store) = self.store.get().filter(|_| !self.is_frozen()) {
            drop(store.commit(batch));
        }
    }

    /// What opens cache has changed: by open, `None` for nothing. Nobody waits for it.
    pub fn note_caching(&self, changed: Vec<(u64, Option<CachingRecord>)>) {
        if changed.is_empty() {
            return;
        }
        drop(self.commit_each(changed.into_iter().fold(Batch::new(), |batch, (open, caching)| {
            let key = record::key(Kind::Caching, open);
            match caching {
                Some(caching) => batch.put(key, caching.to_bytes()),
                None => batch.delete(key),
            }
        })));
    }

    /// The server ends, and what it remembers stays: opens that go away now are not closed.
    pub async fn freeze(&self) {
        let Some(store) = self.store.get() else { return };
        // What was queued before is durable when this is.
        let _ = store.commit(Batch::new().delete(b"end".to_vec())).await;
        self.frozen.store(true, Ordering::Release);
    }

    /// The server ends as if it were killed: from now on opens that go are not closed, and the store has
    /// them for the next one.
    pub fn kill(&self) {
        self.frozen.store(true, Ordering::Release);
    }

    /// Whether the server has ended.
    pub fn is_frozen(&self) -> bool {
        self.frozen.load(Ordering::Acquire)
    }

    /// A place for an open of a user, if they and the server have one.
    fn take_place(&self, user: &User) -> Option<StoredPlace> {
        Some(StoredPlace { _of_user: user.kept.take(1)?, _of_all: self.places.take(1)? })
    }

    /// The place that an open of a user was given by a server that has ended.
    fn count_place(&self, user: &User) -> StoredPlace {
        StoredPlace { _of_user: user.kept.count(1), _of_all: self.places.count(1) }
    }
}

/// NTSTATUS of a store's error.
pub fn of_store(error: &StoreError) -> NtStatus {
    match error {
        StoreError::Full => NtStatus::DISK_FULL,
        StoreError::TooLong(_) => NtStatus::INSUFFICIENT_RESOURCES,
        _ => NtStatus::UNEXPECTED_IO_ERROR,
    }
}

/// Which file a descriptor names, so that it is known again after a restart.
pub fn identity(fd: BorrowedFd<'_>) -> Result<FileIdentity, Errno> {
    let wanted = StatxFlags::INO | StatxFlags::BTIME;
    let stat = rustix::fs::statx(fd, "", AtFlags::EMPTY_PATH, wanted)?;
    let born = match StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::BTIME) {
        true => (stat.stx_btime.tv_sec, stat.stx_btime.tv_nsec),
        false => (0, 0),
    };
    Ok(FileIdentity { inode: stat.stx_ino, born })
}

/// Milliseconds since 1970.
fn clock() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// How long a client that is away since then is still waited for. What the server was away itself
/// does not take all of it.
pub fn remaining(timeout: Duration, away: Option<AwayRecord>) -> Duration {
    let gone = away.map_or(0, |away| clock().saturating_sub(away.since));
    timeout.saturating_sub(Duration::from_millis(gone)).max(GRACE.min(timeout))
}

impl Open {
    /// Those that have its file open, or a stream of it, and are in the state store: each has the
    /// file's name there.
    fn named_alike(&self) -> Vec<Arc<Open>> {
        let known = |id| self.table().open(id).filter(|open| open.is_in_store());
        self.file.openers().into_iter().filter_map(known).collect()
    }

    /// Says that its file is about to be called `to`, to the state store, if that has opens of it.
    /// The file may be renamed when that is [`Step::Ready`], and its new name is noted before the
    /// result goes; `None` if there is nothing to wait for.
    ///
    /// # Errors
    /// That of the state store. Then the file keeps its name.
    pub fn announce_name(&self, to: &RelPath) -> Result<Option<Step>, NtStatus> {
        let mut opens: Vec<u64> =
            self.named_alike().iter().map(|open| open.id.persistent).collect();
        if opens.is_empty() {
            return Ok(None);
        }
        opens.sort_unstable();
        let step = self.file.next_name.ask(to, &opens)?;
        if let Step::Begin(_) = step {
            let next = NextRecord { path: to.parts().join("/") }.to_bytes();
            let put =
                |batch: Batch, id: &u64| batch.put(record::key(Kind::Next, *id), next.clone());
            // One that has the note and keeps its name is found by its name.
            let batch = opens.iter().fold(Batch::new(), put);
            let commit = self.table().persistent_opens.commit_each(batch);
            let name = self.file.next_name.clone();
            tokio::spawn(async move {
                name.known(commit.await.map(drop).map_err(|error| of_store(&error)));
            });
        }
        Ok(Some(step))
    }

    /// Notes what has changed of its file or stream for all that have it open: its name, and whether
    /// it is to be deleted.
    pub fn note_file(&self) -> Vec<Commit> {
        self.named_alike().iter().filter_map(|open| open.remember_anew(false)).collect()
    }

    /// Notes the name that was announced, which its file has now.
    pub fn note_renamed(&self) -> Vec<Commit> {
        self.named_alike().iter().filter_map(|open| open.remember_anew(true)).collect()
    }

    /// Whether it outlives the server, however that ends: it is in the store.
    pub fn is_in_store(&self) -> bool {
        self.state().promised.is_some()
    }

    /// Nothing else is noted of it meanwhile: what is read of it now is in its place in the store
    /// before what is read later.
    fn noting(&self) -> MutexGuard<'_, ()> {
        self.noting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether something is being noted of it.
    #[cfg(any(test, feature = "testing"))]
    pub fn is_being_noted(&self) -> bool {
        self.noting.try_lock().is_err()
    }

    /// What is remembered of it.
    fn record(&self, timeout: Duration) -> Result<OpenRecord, NtStatus> {
        let origin = &self.origin;
        let path = self.path()?;
        Ok(OpenRecord {
            id: self.id.persistent,
            volatile: self.id.volatile,
            create_guid: origin.create_guid,
            client: origin.client.guid,
            user: origin.user.name.clone(),
            share: origin.share.clone(),
            name: origin.name.clone(),
            path: path.parts().join("/"),
            file: identity(self.handle()).map_err(of_errno)?,
            access: self.access.0,
            desired_access: origin.desired_access.0,
            share_access: origin.share_access.0,
            options: self.options.0,
            action: origin.action,
            timeout: u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX),
            promise: match self.state().durability {
                Durability::Resilient(_) => Promise::Resilient,
                Durability::Durable(_) | Durability::None => Promise::Durable,
                Durability::Persistent(_) => Promise::Persistent,
            },
            delete_on_close: self.delete_on_close.load(Ordering::Acquire),
            delete_pending: self.delete_pending(),
            lease: self.lease.map(|lease| lease.key),
            parent_lease: origin.parent_lease,
            app_instance: origin.app_instance,
            app_version: origin.app_version,
            stream: self.stream.as_ref().map(|stream| self.stream_record(stream)).transpose()?,
        })
    }

    fn stream_record(&self, stream: &StreamOpen) -> Result<StreamRecord, NtStatus> {
        let name = stream.name.lock().unwrap_or_else(PoisonError::into_inner);
        let file = identity(stream.file.as_fd()).map_err(of_errno)?;
        Ok(StreamRecord { name: name.as_str().to_owned(), file })
    }

    /// Keeps a promise beyond the end of the server; the result resolves when that is durable.
    /// `None`, and nothing is promised, if as many as there may be are.
    pub fn remember(&self, promised: Durability) -> Result<Option<Commit>, NtStatus> {
        let stable = &self.table().persistent_opens;
        let Some(timeout) = promised.timeout() else { return Ok(None) };
        let _noting = self.noting();
        let known = self.is_in_store();
        if !known {
            let place = stable.is_there().then(|| stable.take_place(&self.origin.user)).flatten();
            let Some(place) = place else { return Ok(None) };
            self.state().promised = Some(place);
        }
        self.state().durability = promised;
        let record = self.record(timeout)?;
        let mut batch = Batch::new().put(record::key(Kind::Open, record.id), record.to_bytes());
        if known {
            return Ok(Some(stable.commit(batch)));
        }
        let locks = self.locks_record();
        if locks != LocksRecord::default() {
            batch = batch.put(record::key(Kind::Locks, record.id), locks.to_bytes());
        }
        let persistent = matches!(promised, Durability::Persistent(_));
        let id = self.opener_id();
        Ok(Some(self.file.remember(id, persistent, |caching| {
            stable.commit(match caching {
                Some(caching) => batch.put(record::key(Kind::Caching, id), caching.to_bytes()),
                None => batch,
            })
        })))
    }

    /// Is kept for `timeout` from when its client is away, whatever it caches; on a continuously
    /// available share beyond the end of the server, too, from when the result has resolved. If the
    /// store has no room it is kept as long as this server runs.
    pub fn make_resilient(
        self: &Arc<Self>,
        timeout: Duration,
        continuous: bool,
    ) -> Option<impl Future<Output = ()> + Send + use<>> {
        let mut state = self.state();
        let before = state.durability;
        let resilient = match before {
            // What it was promised beside the time stays (MS-SMB2 3.3.5.15.9, 3.3.7.1).
            Durability::Persistent(_) => Durability::Persistent(timeout),
            Durability::None | Durability::Durable(_) | Durability::Resilient(_) => {
                Durability::Resilient(timeout)
            }
        };
        state.durability = resilient;
        drop(state);
        let known = self.is_in_store();
        if !continuous || known && before == resilient {
            return None;
        }
        let remembered = self.remember(resilient).transpose()?;
        let open = self.clone();
        Some(async move {
            let kept = async { remembered?.await.map_err(|error| of_store(&error)) };
            if let Err(status) = kept.await {
                tracing::debug!(%status, "a resilient open will not outlive the server");
                if !known {
                    open.file.forget(open.opener_id());
                    drop(open.forget());
                }
            }
        })
    }

    /// It was promised by a server that has ended, on a share that is continuously available now
    /// or is not.
    pub fn remembered_again(&self, promise: Promise, timeout: Duration, continuous: bool) {
        self.state().durability = match promise {
            Promise::Durable => Durability::Durable(timeout),
            Promise::Resilient => Durability::Resilient(timeout),
            Promise::Persistent => Durability::Persistent(timeout),
        };
        if continuous && promise != Promise::Durable {
            let place = self.table().persistent_opens.count_place(&self.origin.user);
            self.state().promised = Some(place);
        }
    }

    /// What the next server must know of it to have it, though it is not persistent; `None` if it
    /// cannot be handed over.
    pub fn hand_off(&self) -> Option<Batch> {
        let timeout = self.preserve_time()?;
        if self.is_in_store() || self.directory {
            return None;
        }
        let record = self.record(timeout).ok()?;
        let key = |kind| record::key(kind, record.id);
        let away = AwayRecord { since: clock() };
        let batch = Batch::new()
            .put(key(Kind::Open), record.to_bytes())
            .put(key(Kind::Locks), self.locks_record().to_bytes())
            .put(key(Kind::Away), away.to_bytes());
        Some(match self.file.caching_record(self.opener_id()) {
            Some(caching) => batch.put(key(Kind::Caching), caching.to_bytes()),
            None => batch,
        })
    }

    /// Notes its name and whether its file is to be deleted, as they are now; if it was `renamed`,
    /// that it is not about to be called otherwise any more.
    pub fn remember_anew(&self, renamed: bool) -> Option<Commit> {
        if !self.is_in_store() {
            return None;
        }
        let timeout = self.state().durability.timeout()?;
        let _noting = self.noting();
        let record = self.record(timeout).ok()?;
        let batch = Batch::new().put(record::key(Kind::Open, record.id), record.to_bytes());
        let batch = if renamed { batch.delete(record::key(Kind::Next, record.id)) } else { batch };
        Some(self.table().persistent_opens.commit(batch))
    }

    /// Makes the file durable with its length, its attributes and its name. It may wait.
    pub fn sync_all(&self) -> Result<(), NtStatus> {
        let sync = || -> Result<(), Errno> {
            match &self.data {
                Some(_) => self.flush_by(|fd| rustix::fs::fsync(fd))?,
                None => rustix::fs::fsync(crate::fs::descriptor::reopen(
                    self.holder(),
                    OFlags::RDONLY,
                )?)?,
            }
            if self.stream.is_some() {
                // The file says which streams are its own.
                rustix::fs::fsync(crate::fs::descriptor::reopen(&self.handle, OFlags::RDONLY)?)?;
                self.volume().streams().sync(self.handle())?;
            }
            Ok(())
        };
        sync().map_err(of_errno)?;
        // One that has no name has none to keep.
        match self.path() {
            Err(NtStatus::OBJECT_NAME_NOT_FOUND) => Ok(()),
            path => self.volume().sync_folder(&path?).map_err(of_errno),
        }
    }

    /// Notes its locks; `None` if it does not outlive the server.
    pub fn note_locks(&self) -> Option<Commit> {
        if !self.is_in_store() {
            return None;
        }
        let _noting = self.noting();
        let key = record::key(Kind::Locks, self.id.persistent);
        let record = self.locks_record();
        Some(self.table().persistent_opens.commit(Batch::new().put(key, record.to_bytes())))
    }

    fn locks_record(&self) -> LocksRecord {
        let sequences = self.state().lock_sequences.as_deref().copied();
        let locks = self.file.locks_of(self.opener_id()).into_iter();
        let locks = locks
            .map(|(range, exclusive)| Lock {
                offset: range.offset,
                length: range.length,
                exclusive,
            })
            .collect();
        LocksRecord { locks, sequences }
    }

    /// Its client is away from now on, or is back.
    pub fn note_away(&self, away: bool) {
        if !self.is_in_store() {
            return;
        }
        let key = record::key(Kind::Away, self.id.persistent);
        let batch = match away {
            true => Batch::new().put(key, AwayRecord { since: clock() }.to_bytes()),
            false => Batch::new().delete(key),
        };
        self.table().persistent_opens.queue(batch);
    }

    /// Forgets it, if it was to outlive the server: it is closed. The result resolves when it is
    /// forgotten for good.
    pub(crate) fn forget(&self) -> Option<Commit> {
        // Of two who close it one finds it there.
        drop(self.state().promised.take()?);
        Some(self.table().persistent_opens.commit(record::forget(self.id.persistent)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_that_was_away_has_the_rest_of_its_time_but_some() {
        let minute = Duration::from_secs(60);
        let away = |ago: u64| Some(AwayRecord { since: clock() - ago * 1000 });
        assert_eq!(remaining(minute, None), minute);
        let rest = remaining(minute, away(20));
        assert!(rest <= Duration::from_secs(40) && rest > Duration::from_secs(30), "{rest:?}");
        assert_eq!(remaining(minute, away(3600)), GRACE);
        assert_eq!(remaining(Duration::from_secs(3), away(3600)), Duration::from_secs(3));
        // A clock that was set back gives nobody more.
        assert_eq!(remaining(minute, Some(AwayRecord { since: u64::MAX })), minute);
    }
}

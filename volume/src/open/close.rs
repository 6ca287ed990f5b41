//! Closing an open (MS-FSA 2.1.5.5).
//!
//! ```text
//!  CLOSE, LOGOFF, a lost connection ─► let go ─► the last reference ─► close
//!  a request that is being carried out ──────────────┘
//!
//!  close: mark for deletion ► out of the tables ► times ► leave the file, which may remove it
//!         ► tell watchers ► forget the promise
//! ```
//!
//! Requests under way hold a reference, so nothing is closed under their hands: the last of them
//! closes what CLOSE has let go of.

use std::sync::{Arc, PoisonError, atomic::Ordering};

use smb_protocol::{
    NtStatus,
    msg::notify::{Action, ChangeFilter},
};
use state_store::Commit;
use tokio::sync::oneshot;

use super::{Open, StreamOpen};
use crate::{
    fs::{descriptor::close_removed, listing, path::RelPath},
    quoted::Quoted,
    sharing::{caching::BreakReason, links::Link, watches::Change},
    status::of_errno,
};

/// What became of an open that was closed.
#[derive(Debug)]
pub struct Ended {
    /// Resolves when the state store has forgotten it, if that knew it.
    pub forgotten: Option<Commit>,
    /// Why its file is there though it was to be deleted.
    pub failed: Option<NtStatus>,
}

/// What became of its file's name.
#[derive(Debug, Default)]
struct Removal {
    /// The name that is gone.
    removed: Option<RelPath>,
    /// The stream is gone.
    stream: bool,
    /// The key of the lease on its folder of whoever knows that, because they said so themselves.
    by: Option<[u8; 16]>,
    /// Why it is not gone though it was to be.
    failed: Option<NtStatus>,
}

impl Removal {
    fn note(&mut self, result: Result<Option<RelPath>, NtStatus>) {
        match result {
            Ok(gone) => self.removed = gone,
            Err(status) => self.failed = Some(status),
        }
    }
}

impl Open {
    /// Lets go of it; what became of it if that closed it, and nothing if a request still has it,
    /// with whose end it is closed.
    pub fn let_go(self: Arc<Self>) -> Option<Ended> {
        let (tell, mut told) = oneshot::channel();
        *self.closer.lock().unwrap_or_else(PoisonError::into_inner) = Some(tell);
        drop(self);
        told.try_recv().ok()
    }

    /// Closes it, whoever has it.
    pub fn close_for_good(&self) {
        match self.client() {
            Some(client) => client.close_open(self.id),
            None => drop(self.open_files.disconnected.take(self.id.persistent)),
        }
    }

    /// Removes the stream, and says whether it was still there: it may have gone with its file, which goes before
    /// those who have a stream of it open where it is deleted by POSIX' rules or replaced.
    fn remove_stream(&self, stream: &StreamOpen) -> Result<bool, NtStatus> {
        let name = stream.name.lock().unwrap_or_else(PoisonError::into_inner);
        let removed = self.volume.permit(self.ceiling).and_then(|_| {
            rustix::fs::fstat(&stream.file)
                .and_then(|stat| self.volume.streams().remove(self.handle(), &name, &stat))
                .map_err(of_errno)
        });
        if removed == Err(NtStatus::OBJECT_NAME_NOT_FOUND) {
            return Ok(false);
        }
        if let Err(status) = removed {
            let (file, stream) = (Quoted(&self.origin.name), Quoted(name.as_str()));
            tracing::warn!(%file, %stream, %status, "a stream that was to be deleted stays");
        }
        removed.map(|()| true)
    }

    /// Takes the name of the file away, and says which, if it was still there.
    fn remove_file(&self, opened: &RelPath) -> Result<Option<RelPath>, NtStatus> {
        let opened = self.volume.own(opened);
        let path = match (self.volume.path_of(self.handle()), &opened) {
            (Ok(path), _) => path,
            (Err(_), Some(opened)) => opened.clone(),
            (Err(error), None) => return Err(of_errno(error)),
        };
        let removed = self.volume.permit(self.ceiling).and_then(|permit| {
            permit.remove_open(self.handle(), opened.as_ref()).map_err(of_errno)
        });
        if let Err(status) = removed {
            if status == NtStatus::OBJECT_NAME_NOT_FOUND {
                // Somebody else has taken the name away: there is nothing left to delete.
                return Ok(None);
            }
            let file = Quoted(&self.origin.name);
            tracing::warn!(%file, %status, "a file that was to be deleted on close stays");
            return Err(status);
        }
        Ok(Some(path))
    }

    /// Gives what may be the last descriptors of removed files to [`close_removed`].
    fn close_aside(&mut self) {
        // What takes their place names the share's folder, and nobody looks at it any more.
        let stand_in = || rustix::io::fcntl_dupfd_cloexec(self.volume.root(), 0);
        if let Some(stream) = &mut self.stream
            && let Ok(root) = stand_in()
        {
            close_removed(std::mem::replace(&mut stream.file, root));
        }
        if let Ok(root) = stand_in() {
            close_removed(std::mem::replace(&mut self.handle, root));
        }
        if let Some(data) = self.data.take() {
            close_removed(data);
        }
    }

    /// Ends it, as the last who has it lets go.
    fn close(&mut self) -> Ended {
        if self.is_in_store() {
            self.file.forget(self.opener_id());
        }
        self.volume().left();
        self.mark_for_deletion();
        self.table().forget(self);
        self.leave_times();
        let folder = self.directory || self.is_of_folder();
        let Removal { removed, stream, by, failed } = self.leave_file();
        if stream && removed.is_none() {
            self.tell(Action::REMOVED_STREAM, ChangeFilter::STREAM_NAME);
        }
        if removed.is_some() || self.stream.is_some() {
            self.close_aside();
        }
        self.tell_closed(removed, folder, by);
        // Last, so that a file that was to be deleted is, whenever the server ends.
        Ended { forgotten: self.forget(), failed }
    }

    /// With `FILE_DELETE_ON_CLOSE`: the file goes with the last who has it open.
    fn mark_for_deletion(&self) {
        if !self.delete_on_close.load(Ordering::Acquire) {
            return;
        }
        // A folder that is not empty stays, and nobody hears of it (MS-FSA 2.1.5.5).
        if self.directory && !listing::is_empty(self.folder()).unwrap_or(false) {
            return;
        }
        let _ = self.break_conflicting(BreakReason::Delete);
        self.set_delete_pending(true);
        if self.directory {
            self.table().watches.gone(self.file.key());
        }
    }

    /// Leaves the file, and the one that its stream belongs to. What was to be deleted is, if nobody
    /// else has it open, before anyone can open it again.
    fn leave_file(&self) -> Removal {
        let id = self.opener_id();
        let mut removal = Removal::default();
        if self.stream.is_none()
            && self.posix_delete.load(Ordering::Acquire)
            && self.file.delete_pending(id)
            && let Some(path) = self.file.path(id)
        {
            removal.by = self.origin.parent_lease;
            removal.note(self.remove_file(&path));
            if removal.removed.is_some() {
                self.file.name_is_gone(id);
            }
        }
        let remove = |link: &Link| {
            // Two who know the folder by different leases have not told each other.
            removal.by = link.deleter.filter(|by| self.origin.parent_lease == Some(*by));
            removal.note(self.remove_file(&link.path));
        };
        match &self.stream {
            None => self.table().leave(&self.file, id, remove),
            Some(stream) => {
                let mut taken = Ok(false);
                self.table().leave(&self.file, id, |_| taken = self.remove_stream(stream));
                self.table().leave(&stream.base, id, remove);
                removal.stream = taken == Ok(true);
                removal.failed = removal.failed.or(taken.err());
            }
        }
        removal
    }

    /// Tells those who watch its folder, or cache what is in it.
    fn tell_closed(&self, removed: Option<RelPath>, folder: bool, by: Option<[u8; 16]>) {
        match removed {
            Some(path) => {
                let filter = if folder { ChangeFilter::DIR_NAME } else { ChangeFilter::FILE_NAME };
                let volume = &**self.volume();
                let (path, action) = (&path, Action::REMOVED);
                let (stream, unless) = (None, ChangeFilter::NONE);
                self.table().changed(&Change { volume, path, stream, action, filter, unless, by });
            }
            // Sizes and times that a listing shows are others now.
            None if self.written.load(Ordering::Relaxed) && self.table().any_folder_cached() => {
                if let Ok(path) = self.path() {
                    self.tell_at(&path, Action::MODIFIED, ChangeFilter::NONE);
                }
            }
            None => {}
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if self.table().persistent_opens.is_frozen() {
            // It is not closed: the server that comes next has it.
            return;
        }
        let ended = self.close();
        let teller = self.closer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(teller) = teller {
            let _ = teller.send(ended);
        }
    }
}

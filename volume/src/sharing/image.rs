//! What the openers of one file claim of it together, against every other program of the machine.
//!
//! ```text
//!  opens of a file ── share modes (sharing.rs) ──► who may join
//!        └── the most that one of them claims ──► one lock (block_io::image_lock) ──► QEMU, bulkhead …
//! ```
//!
//! Clients are kept apart by their share modes, so all opens of a file have one lock together. It stays
//! where it was taken, in the content of one of them, as long as anyone needs it.

use std::{
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use block_io::{
    Claim, LocalFile,
    image_lock::{self, Refusal},
};
use smb_protocol::{
    NtStatus,
    msg::create::{Access, ShareAccess},
};

use crate::sharing::{
    file::{OpenFile, State, lock},
    modes::{READS, WRITES},
};

/// The lock of a file's openers.
#[derive(Debug)]
pub(crate) struct Held {
    file: Arc<LocalFile>,
    claim: Claim,
}

/// What an opener claims: one that writes, or may, is a writer; one that reads and lets nobody write
/// needs the file as it is.
pub(crate) fn claim_of(access: Access, share: ShareAccess) -> Option<Claim> {
    if access.any(WRITES) {
        return Some(Claim::Writer);
    }
    (access.any(READS) && !share.has(ShareAccess::WRITE)).then_some(Claim::Still)
}

impl OpenFile {
    /// Claims the file for an opener that has joined; `file` is its content, and `cuts` says that it is
    /// about to throw away what is in it, which a writer does.
    ///
    /// # Errors
    /// [`NtStatus::SHARING_VIOLATION`] if another program uses it in a way that does not go together
    /// with this.
    pub fn claim(&self, open: u64, file: &Arc<LocalFile>, cuts: bool) -> Result<(), NtStatus> {
        let mut state = lock(&self.state);
        let opener = state.users.get(open);
        let own = opener.and_then(|user| claim_of(user.access, user.share));
        let Some(wanted) = cuts.then_some(Claim::Writer).max(own) else {
            return Ok(());
        };
        let (held, at) = match &state.image {
            Some(image) if image.claim >= wanted => return Ok(()),
            Some(image) => (Some(image.claim), image.file.clone()),
            None => (None, file.clone()),
        };
        match image_lock::claim(at.as_fd(), held, wanted) {
            Ok(()) => {
                state.image = Some(Held { file: at, claim: wanted });
                Ok(())
            }
            Err(Refusal::InUse) => Err(NtStatus::SHARING_VIOLATION),
            Err(error) => {
                // Clients are served all the same: what is shared is not all images. Once is enough
                // for the log.
                static TOLD: AtomicBool = AtomicBool::new(false);
                if !TOLD.swap(true, Ordering::Relaxed) {
                    tracing::error!(
                        %error,
                        "files of a share cannot be locked: nothing keeps other programs of this machine \
                         from images that clients use"
                    );
                }
                Ok(())
            }
        }
    }
}

impl State {
    /// Gives up what the openers claim, though they stay.
    pub(crate) fn claim_nothing(&mut self) {
        if let Some(image) = self.image.take() {
            image_lock::release(image.file.as_fd());
        }
    }

    /// Gives up what none of the openers claims any more.
    pub(crate) fn claim_less(&mut self) {
        let Some(image) = &mut self.image else { return };
        let left = self.users.claim();
        if left >= Some(image.claim) {
            return;
        }
        image_lock::settle(image.file.as_fd(), left);
        match left {
            Some(left) => image.claim = left,
            None => self.image = None,
        }
    }
}

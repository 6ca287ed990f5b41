//! A name comes into a folder, or the folder becomes a reparse point, but never both: below one nothing
//! is found (MS-FSA 2.1.5.10.37 asks that the folder is empty).
//!
//! ```text
//!  name:   [ is the folder a reparse point? ► the name is there ]      shared
//!  folder: it is marked ► [ those who saw no mark are through ] ► is it empty?
//! ```
//!
//! Whoever comes later than the mark sees it, and whom the mark came too late for is seen as what makes the
//! folder not empty. Nothing slow is done while others are kept off.

use std::{
    os::fd::BorrowedFd,
    sync::{
        PoisonError, RwLock, RwLockReadGuard,
        atomic::{AtomicBool, Ordering},
    },
};

use rustix::io::Errno;
use smb_protocol::fscc::reparse::ReparseTag;

use crate::fs::{attributes, file_key, reparse, shards::Shards, volume::Volume};

static FOLDERS: Shards<RwLock<()>> = Shards::new();
/// Whether any folder became a reparse point while this process runs. One that was one before is met
/// on the way to the name.
static EVER: AtomicBool = AtomicBool::new(false);

/// Held until a name is in its folder.
pub(super) struct Entering(#[expect(dead_code, reason = "held")] RwLockReadGuard<'static, ()>);

fn shard(folder: BorrowedFd<'_>) -> Result<&'static RwLock<()>, Errno> {
    Ok(FOLDERS.of(&rustix::fs::fstat(folder)?))
}

/// Lets a name come into a folder of a volume.
///
/// # Errors
/// `LOOP` if the folder has become a reparse point that names do not lead through; what the file system
/// says.
pub(super) fn begin(volume: &Volume, folder: BorrowedFd<'_>) -> Result<Entering, Errno> {
    let guard = shard(folder)?.read().unwrap_or_else(PoisonError::into_inner);
    if EVER.load(Ordering::SeqCst) && attributes::is_marked_reparse(folder) {
        let tag = ReparseTag(reparse::tag_of(folder));
        if tag.0 != 0 && !tag.may_have_children() && !is_root(volume, folder)? {
            return Err(Errno::LOOP);
        }
    }
    Ok(Entering(guard))
}

/// Whether a folder is the volume's own, which is no reparse point to its clients, whatever those of a
/// share around it have made of it.
fn is_root(volume: &Volume, folder: BorrowedFd<'_>) -> Result<bool, Errno> {
    let key = |fd| rustix::fs::fstat(fd).map(|stat| file_key::key(&stat));
    Ok(key(volume.root())? == key(folder)?)
}

/// From now on whoever lets a name come in looks at the folder first.
pub(super) fn announce() {
    EVER.store(true, Ordering::SeqCst);
}

/// Waits for those who did not see that a folder is marked: their names are there then.
///
/// # Errors
/// What the file system says.
pub(super) fn settle(folder: BorrowedFd<'_>) -> Result<(), Errno> {
    drop(shard(folder)?.write().unwrap_or_else(PoisonError::into_inner));
    Ok(())
}

//! Which file of this machine a name or descriptor leads to.

use rustix::fs::Stat;

/// Identity of a file on this machine: device and inode.
pub type FileKey = (u64, u64);

/// The identity of the file that `stat` describes.
pub fn key(stat: &Stat) -> FileKey {
    (stat.st_dev, stat.st_ino)
}

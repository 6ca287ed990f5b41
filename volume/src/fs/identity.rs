//! By what a volume is known: 16 bytes and a serial number (MS-FSA 2.1.1.1, `VolumeId` and
//! `VolumeSerialNumber`), the same for all shares of one file system, whose file numbers are those of
//! one space, and the same after a restart where the file system has an identity of its own.

use std::os::fd::BorrowedFd;

use rustix::{fs::OFlags, io::Errno};

use crate::fs::descriptor::reopen;

/// What a volume is known by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity([u8; 16]);

impl Identity {
    /// That of the file system that `root` is on.
    pub(crate) fn of(root: BorrowedFd<'_>) -> Self {
        /// On Btrfs each subvolume has file numbers of its own, and what it adds to the identity.
        const BTRFS: i64 = 0x9123_683e;
        let kind = rustix::fs::fstatfs(root).map(|stat| stat.f_type).unwrap_or_default();
        let system = rustix::fs::fstatvfs(root).map(|stat| stat.f_fsid).unwrap_or_default();
        let device = || rustix::fs::fstat(root).map(|stat| stat.st_dev).unwrap_or_default();
        let mut id = match uuid(root) {
            Ok(uuid) if kind != BTRFS => return Self(uuid),
            Ok(uuid) => uuid,
            Err(_) => [0; 16],
        };
        let more = if system == 0 { device() } else { system };
        for (byte, more) in id.iter_mut().zip(more.to_le_bytes()) {
            *byte ^= more;
        }
        Self(id)
    }

    pub(crate) fn bytes(self) -> [u8; 16] {
        self.0
    }

    /// A number that follows from it, and is not 0.
    pub(crate) fn serial(self) -> u32 {
        // FNV-1a.
        let hash = self
            .0
            .iter()
            .fold(0x811c_9dc5u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
        hash.max(1)
    }
}

/// The identity that a file system was made with; systems before Linux 6.9 do not tell.
#[expect(unsafe_code, reason = "FS_IOC_GETFSUUID has no safe wrapper")]
fn uuid(root: BorrowedFd<'_>) -> Result<[u8; 16], Errno> {
    use rustix::ioctl::{Getter, ioctl, opcode};

    /// `struct fsuuid2` (linux/fs.h).
    #[repr(C)]
    struct Uuid {
        len: u8,
        uuid: [u8; 16],
    }
    const FS_IOC_GETFSUUID: rustix::ioctl::Opcode = opcode::read::<Uuid>(0x15, 0);
    let folder = reopen(root, OFlags::RDONLY | OFlags::DIRECTORY)?;
    // SAFETY: FS_IOC_GETFSUUID fills one `fsuuid2`, which `Uuid` lays out field by field, all of
    // whose bytes may have any value.
    let found = unsafe { ioctl(folder, Getter::<FS_IOC_GETFSUUID, Uuid>::new()) }?;
    if usize::from(found.len) == found.uuid.len() && found.uuid != [0; 16] {
        Ok(found.uuid)
    } else {
        Err(Errno::NOTTY)
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn all_folders_of_a_file_system_have_one_identity() {
        let root = tempfile::tempdir().unwrap();
        let below = root.path().join("below");
        std::fs::create_dir(&below).unwrap();
        let [root, below] = [root.path(), &below].map(|path| std::fs::File::open(path).unwrap());
        let id = Identity::of(root.as_fd());
        assert_eq!(id, Identity::of(below.as_fd()));
        assert_ne!((id.bytes(), id.serial()), ([0; 16], 0));
    }
}

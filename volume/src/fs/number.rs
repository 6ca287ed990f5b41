//! The number by which clients know a file (`FileId64`, MS-FSA 2.1.1.3; MS-FSCC 2.1.9).
//!
//! ```text
//!  63       48 47                          0
//!   sequence    inode
//! ```
//!
//! Laid out as NTFS lays out its own (MS-FSA 2.1.5.1.1, note 48): what holds an inode after another has a
//! sequence of its own, so the number of a deleted file is not that of the next. The sequence comes from
//! the generation that the file system keeps with an inode, which a file handle tells (ext4, XFS,
//! F2FS). It is 0 where there is none to tell, as on Btrfs, which gives no inode number twice.

use std::{
    ffi::c_int,
    os::fd::{AsRawFd, BorrowedFd},
};

/// Bits of the inode.
const INODE: u32 = 48;
/// What `struct file_handle` (linux/fcntl.h) may hold at most: `MAX_HANDLE_SZ`.
const MAX_HANDLE: usize = 128;

/// What the system calls a file among those of its file system. Nothing can be opened by it here: the
/// server has given that system call up.
struct Handle {
    kind: c_int,
    content: [u8; MAX_HANDLE],
    len: usize,
}

impl Handle {
    /// That of a file, if its file system has handles.
    #[expect(unsafe_code, reason = "name_to_handle_at has no safe wrapper")]
    fn of(fd: BorrowedFd<'_>) -> Option<Self> {
        /// `struct file_handle` (linux/fcntl.h) with room for any handle.
        #[repr(C)]
        struct Raw {
            bytes: u32,
            kind: c_int,
            content: [u8; MAX_HANDLE],
        }
        let mut raw = Raw { bytes: MAX_HANDLE as u32, kind: 0, content: [0; MAX_HANDLE] };
        let mut mount = 0;
        // SAFETY: the path is a string that ends; `Raw` begins as `file_handle` does and has the bytes
        // behind it that it says, which is all that the system fills; the descriptor is borrowed.
        let done = unsafe {
            libc::name_to_handle_at(
                fd.as_raw_fd(),
                c"".as_ptr(),
                (&raw mut raw).cast(),
                &raw mut mount,
                libc::AT_EMPTY_PATH,
            )
        };
        let len = usize::try_from(raw.bytes).ok()?;
        (done == 0).then_some(Self { kind: raw.kind, content: raw.content, len })
    }
}

/// The number of the file that `fd` names, whose inode this is. The same for every name, every open
/// and every server; an inode that leaves no room for a sequence is the number itself.
pub fn number(fd: BorrowedFd<'_>, inode: u64) -> u64 {
    if inode >> INODE != 0 {
        return inode;
    }
    let handle = Handle::of(fd);
    let generation = handle.and_then(|it| generation(it.kind, it.content.get(..it.len)?, inode));
    inode | u64::from(generation.map_or(0, sequence)) << INODE
}

/// What is left of a generation in 16 bits: both that it counts up and that it is random shows there.
fn sequence(generation: u32) -> u16 {
    (generation ^ (generation >> 16)) as u16
}

/// The generation that a handle of this inode tells, by the two layouts that hold one.
///
/// Others use these types for what is not the inode (FUSE its node), so the inode must be there.
fn generation(kind: c_int, content: &[u8], inode: u64) -> Option<u32> {
    /// An inode and a generation of 32 bits: `FILEID_INO32_GEN` (linux/exportfs.h).
    const SMALL: c_int = 1;
    /// The same with an inode of 64 bits: that of XFS, `XFS_FILEID_TYPE_64FLAG | FILEID_INO32_GEN`.
    const LARGE: c_int = 0x81;
    let (of, generation) = match (kind, content.len()) {
        (SMALL, 8) => {
            let (inode, generation) = content.split_first_chunk()?;
            (u32::from_ne_bytes(*inode).into(), generation)
        }
        (LARGE, 12) => {
            let (inode, generation) = content.split_first_chunk()?;
            (u64::from_ne_bytes(*inode), generation)
        }
        _ => return None,
    };
    (of == inode).then_some(u32::from_ne_bytes(*generation.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::fd::AsFd, os::unix::fs::MetadataExt};

    use rustix::fs::{Mode, OFlags};

    use super::*;

    fn of(file: &File) -> u64 {
        number(file.as_fd(), file.metadata().unwrap().ino())
    }

    #[test]
    fn every_name_and_every_open_of_a_file_tells_one_number() {
        let root = tempfile::tempdir().unwrap();
        let [first, second] = ["first", "second"].map(|name| root.path().join(name));
        let file = File::create(&first).unwrap();
        let wanted = of(&file);
        assert_eq!(wanted & ((1 << INODE) - 1), file.metadata().unwrap().ino());
        std::fs::hard_link(&first, &second).unwrap();
        std::fs::write(&first, "content").unwrap();
        std::fs::remove_file(&first).unwrap();
        let path = rustix::fs::open(&second, OFlags::PATH, Mode::empty()).unwrap();
        assert_eq!(number(path.as_fd(), wanted & ((1 << INODE) - 1)), wanted);
        assert_eq!(of(&file), wanted);
    }

    #[test]
    fn the_next_file_of_an_inode_has_another_number() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("file");
        let mut seen = std::collections::BTreeSet::new();
        // Whether or not the file system gives the inode away again, no number comes back, but for the one
        // in 65536 that 16 bits leave.
        let again = (0..32).filter(|_| {
            let number = of(&File::create(&path).unwrap());
            std::fs::remove_file(&path).unwrap();
            !seen.insert(number)
        });
        assert!(again.count() <= 1);
    }

    #[test]
    fn a_handle_tells_the_generation_only_where_it_holds_the_inode() {
        let small = [7u32, 0xABCD].map(u32::to_ne_bytes).concat();
        assert_eq!(generation(1, &small, 7), Some(0xABCD));
        assert_eq!(generation(1, &small, 8), None);
        let large = [&(1u64 << 40).to_ne_bytes()[..], &3u32.to_ne_bytes()].concat();
        assert_eq!(generation(0x81, &large, 1 << 40), Some(3));
        // FUSE: the node of 64 bits, upper half first, then its generation.
        let fuse = [0u32, 7, 3].map(u32::to_ne_bytes).concat();
        assert_eq!(generation(0x81, &fuse, 7), None);
        for (kind, len) in [(1, 7), (1, 12), (0x81, 11), (0x4D, 20), (0, 0)] {
            assert_eq!(generation(kind, &vec![0; len], 0), None, "{kind} {len}");
        }
    }

    #[test]
    fn generations_that_differ_a_little_or_anywhere_differ_as_sequences() {
        assert_ne!(sequence(5), sequence(6));
        assert_ne!(sequence(1 << 20), sequence(2 << 20));
    }
}

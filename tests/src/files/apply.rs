//! Carries one operation out on one folder.

use std::{
    ffi::CString,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{
        AtFlags, CWD, FallocateFlags, FlockOperation, RenameFlags, SeekFrom, StatxFlags, Timespec,
        Timestamps, XattrFlags,
    },
    io::Errno,
};

use super::{op::Op, random::bytes};

/// What an operation came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It was done.
    Done,
    /// It was done, and gave these bytes.
    Bytes(Vec<u8>),
    /// It was done, and gave this text.
    Text(String),
    /// Holes were found at these ranges; they must be zeros.
    Holes(Vec<(u64, u64)>),
    /// It failed.
    Failed(Errno),
    /// The file system cannot do it.
    Cannot(Errno),
}

/// One of the two folders and what is kept open in it.
#[derive(Debug)]
pub struct Side {
    /// The folder.
    pub root: PathBuf,
    /// Files kept open.
    pub held: Vec<File>,
}

impl Side {
    /// A folder with nothing open.
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_path_buf(), held: Vec::new() }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    fn open(&self, name: &str) -> io::Result<File> {
        OpenOptions::new().read(true).write(true).custom_flags(libc_nofollow()).open(self.at(name))
    }

    /// Device and number of what has this name.
    pub fn identity(&self, name: &str) -> Option<(u64, u64)> {
        let found = fs::symlink_metadata(self.at(name)).ok()?;
        Some((found.dev(), found.ino()))
    }

    /// Whether a file is kept open under any name.
    pub fn holds(&self, identity: (u64, u64)) -> bool {
        let same = |f: &File| f.metadata().is_ok_and(|m| (m.dev(), m.ino()) == identity);
        self.held.iter().any(same)
    }

    /// Carries an operation out.
    pub fn apply(&mut self, op: &Op) -> Outcome {
        match self.perform(op) {
            Ok(outcome) => outcome,
            Err(error) => {
                let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
                if matches!(errno, Errno::OPNOTSUPP | Errno::NOSYS | Errno::NOTTY | Errno::XDEV) {
                    Outcome::Cannot(errno)
                } else {
                    Outcome::Failed(errno)
                }
            }
        }
    }

    /// Linux refuses to link a file of which its own count of names is 0. Its SMB client counts itself
    /// while it may cache a file, from a guess of one where a listing met the file first.
    fn link(&self, from: &str, to: &str) -> io::Result<Outcome> {
        let Err(error) = fs::hard_link(self.at(from), self.at(to)) else {
            return Ok(Outcome::Done);
        };
        let (flags, mask) = (AtFlags::STATX_DONT_SYNC, StatxFlags::NLINK);
        let known = rustix::fs::statx(CWD, self.at(from), flags, mask);
        match known {
            Ok(known) if error.kind() == io::ErrorKind::NotFound && known.stx_nlink == 0 => {
                Ok(Outcome::Cannot(Errno::NOENT))
            }
            _ => Err(error),
        }
    }

    fn perform(&mut self, op: &Op) -> io::Result<Outcome> {
        match op {
            Op::Create { name } => {
                OpenOptions::new().write(true).create_new(true).open(self.at(name))?;
            }
            Op::Write { name, at, len, truncate, seed } => {
                let mut options = OpenOptions::new();
                options.write(true).create(true).truncate(*truncate);
                let file = options.custom_flags(libc_nofollow()).open(self.at(name))?;
                file.write_all_at(&bytes(*seed, *len), *at)?;
                if *truncate {
                    // On SMB they may end with what is overwritten (MS-FSA 2.1.5.1.2.1).
                    remove_attributes(&self.at(name))?;
                }
            }
            Op::Append { name, lens, seed } => {
                let mut options = OpenOptions::new();
                options.append(true).custom_flags(libc_nofollow());
                let mut file = options.open(self.at(name))?;
                for (i, len) in lens.iter().enumerate() {
                    file.write_all(&bytes(seed.wrapping_add(i as u64), *len))?;
                }
            }
            Op::Truncate { name, len } => self.open(name)?.set_len(*len)?,
            Op::Read { name, at, len } => return read(&self.open(name)?, *at, *len),
            Op::Map { name, at, len, seed } => {
                map::store(&self.open(name)?, *at, &bytes(*seed, *len))?;
            }
            Op::Punch { name, at, len } => {
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                rustix::fs::fallocate(self.open(name)?, flags, *at, *len)?;
            }
            Op::Zero { name, at, len, keep_size } => {
                let flags = FallocateFlags::ZERO_RANGE | keep(*keep_size);
                rustix::fs::fallocate(self.open(name)?, flags, *at, *len)?;
            }
            Op::Allocate { name, at, len, keep_size } => {
                rustix::fs::fallocate(self.open(name)?, keep(*keep_size), *at, *len)?;
            }
            Op::Collapse { name, at, len } => {
                rustix::fs::fallocate(self.open(name)?, FallocateFlags::COLLAPSE_RANGE, *at, *len)?;
            }
            Op::Insert { name, at, len } => {
                rustix::fs::fallocate(self.open(name)?, FallocateFlags::INSERT_RANGE, *at, *len)?;
            }
            Op::Copy { from, to, at, to_at, len } => return self.copy(from, to, *at, *to_at, *len),
            Op::Holes { name } => return holes(&self.open(name)?),
            Op::Rename { from, to, replace } => {
                let flags = if *replace { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
                rustix::fs::renameat_with(CWD, self.at(from), CWD, self.at(to), flags)?;
            }
            Op::Link { from, to } => return self.link(from, to),
            Op::Symlink { name, target } => std::os::unix::fs::symlink(target, self.at(name))?,
            Op::ReadLink { name } => {
                let target = fs::read_link(self.at(name))?;
                return Ok(Outcome::Text(target.display().to_string()));
            }
            Op::Unlink { name } => fs::remove_file(self.at(name))?,
            Op::Mkdir { name } => fs::create_dir(self.at(name))?,
            Op::Rmdir { name } => fs::remove_dir(self.at(name))?,
            Op::List { name } => {
                let mut names = Vec::new();
                for entry in fs::read_dir(self.at(name))? {
                    names.push(entry?.file_name().to_string_lossy().into_owned());
                }
                names.sort();
                return Ok(Outcome::Text(names.join("\n")));
            }
            Op::Stat { name } => return stat(&self.at(name)),
            Op::ReadOnly { name } => {
                let path = self.at(name);
                if !fs::symlink_metadata(&path)?.is_file() {
                    return Ok(Outcome::Done);
                }
                let writable = |mode| -> io::Result<bool> {
                    fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
                    // A client asks the server again only when its cache is old, or when told to.
                    let flags = AtFlags::STATX_FORCE_SYNC;
                    let found = rustix::fs::statx(CWD, &path, flags, StatxFlags::BASIC_STATS)?;
                    Ok(found.stx_mode & 0o200 != 0)
                };
                let (shut, open) = (!writable(0o444)?, writable(0o644)?);
                return Ok(Outcome::Text(format!("shut {shut} open {open}")));
            }
            Op::Times { name, seconds, nanoseconds } => {
                let time = Timespec { tv_sec: *seconds, tv_nsec: *nanoseconds };
                let times = Timestamps { last_access: time, last_modification: time };
                let flags = AtFlags::SYMLINK_NOFOLLOW;
                rustix::fs::utimensat(CWD, self.at(name), &times, flags)?;
                let found = fs::symlink_metadata(self.at(name))?;
                return Ok(Outcome::Text(format!("{} {}", found.mtime(), found.mtime_nsec())));
            }
            _ => return self.perform_on_attributes_and_held(op),
        }
        Ok(Outcome::Done)
    }

    /// The operations on extended attributes, locks and files that are kept open.
    fn perform_on_attributes_and_held(&mut self, op: &Op) -> io::Result<Outcome> {
        match op {
            Op::SetAttribute { name, attribute, len, seed } => {
                let value = bytes(*seed, *len);
                let flags = XattrFlags::empty();
                rustix::fs::lsetxattr(self.at(name), attribute.as_str(), &value, flags)?;
            }
            Op::GetAttribute { name, attribute } => {
                let mut value = vec![0; 4096];
                let path = self.at(name);
                let len = rustix::fs::lgetxattr(path, attribute.as_str(), &mut value[..])?;
                value.truncate(len);
                return Ok(Outcome::Bytes(value));
            }
            Op::RemoveAttribute { name, attribute } => {
                rustix::fs::lremovexattr(self.at(name), attribute.as_str())?;
            }
            Op::ListAttributes { name } => return attributes(&self.at(name)),
            Op::Lock { name, at, len, seed } => {
                let file = self.open(name)?;
                rustix::fs::fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive)?;
                file.write_all_at(&bytes(*seed, *len), *at)?;
                let seen = read(&file, *at, *len)?;
                rustix::fs::fcntl_lock(&file, FlockOperation::NonBlockingUnlock)?;
                return Ok(seen);
            }
            Op::Hold { name } => {
                let file = self.open(name)?;
                self.held.push(file);
            }
            Op::HeldWrite { which, at, len, seed } => {
                self.held(*which)?.write_all_at(&bytes(*seed, *len), *at)?;
            }
            Op::HeldRead { which, at, len } => return read(self.held(*which)?, *at, *len),
            Op::HeldTruncate { which, len } => self.held(*which)?.set_len(*len)?,
            Op::HeldSync { which } => self.held(*which)?.sync_all()?,
            Op::Release { which } => {
                if *which < self.held.len() {
                    let file = self.held.swap_remove(*which);
                    // What a close would have to say is said here.
                    file.sync_all()?;
                }
            }
            _ => unreachable!("{op:?} is carried out by `perform`"),
        }
        Ok(Outcome::Done)
    }

    fn held(&self, which: usize) -> io::Result<&File> {
        self.held.get(which).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
    }

    fn copy(&self, from: &str, to: &str, at: u64, to_at: u64, len: usize) -> io::Result<Outcome> {
        let (source, target) = (self.open(from)?, self.open(to)?);
        let (mut at, mut to_at, mut left) = (at, to_at, len);
        while left > 0 {
            let n = rustix::fs::copy_file_range(
                &source,
                Some(&mut at),
                &target,
                Some(&mut to_at),
                left,
            )?;
            if n == 0 {
                break;
            }
            left -= n;
        }
        Ok(Outcome::Text(format!("{} copied", len - left)))
    }
}

fn keep(size: bool) -> FallocateFlags {
    if size { FallocateFlags::KEEP_SIZE } else { FallocateFlags::empty() }
}

/// `O_NOFOLLOW`: links are looked at, not followed.
fn libc_nofollow() -> i32 {
    rustix::fs::OFlags::NOFOLLOW.bits().cast_signed()
}

fn read(file: &File, at: u64, len: usize) -> io::Result<Outcome> {
    let mut out = vec![0; len];
    let mut done = 0;
    while done < len {
        match file.read_at(&mut out[done..], at + done as u64)? {
            0 => break,
            n => done += n,
        }
    }
    out.truncate(done);
    Ok(Outcome::Bytes(out))
}

fn stat(path: &Path) -> io::Result<Outcome> {
    let found = fs::symlink_metadata(path)?;
    let kind = found.file_type();
    Ok(Outcome::Text(if kind.is_file() {
        format!("file of {} bytes", found.len())
    } else if kind.is_dir() {
        "folder".to_owned()
    } else {
        "link".to_owned()
    }))
}

fn remove_attributes(path: &Path) -> io::Result<()> {
    for name in names_of_attributes(path)? {
        match rustix::fs::lremovexattr(path, name.as_str()) {
            Ok(()) | Err(Errno::NODATA) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Names of the extended attributes that a user set.
pub fn attributes(path: &Path) -> io::Result<Outcome> {
    Ok(Outcome::Text(names_of_attributes(path)?.join("\n")))
}

fn names_of_attributes(path: &Path) -> io::Result<Vec<String>> {
    let mut list = vec![0; 8192];
    let len = rustix::fs::llistxattr(path, &mut list[..])?;
    list.truncate(len);
    let mut names: Vec<_> = list
        .split(|b| *b == 0)
        .filter_map(|name| CString::new(name).ok()?.into_string().ok())
        .filter(|name| name.starts_with("user."))
        .collect();
    names.sort();
    Ok(names)
}

/// The ranges that the file system calls holes.
fn holes(file: &File) -> io::Result<Outcome> {
    let size = file.metadata()?.len();
    let (mut found, mut at) = (Vec::new(), 0);
    while at < size {
        let data = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(data) => data.min(size),
            Err(Errno::NXIO) => size,
            Err(error) => return Err(error.into()),
        };
        if data > at {
            found.push((at, data));
        }
        if data >= size {
            break;
        }
        at = rustix::fs::seek(file, SeekFrom::Hole(data))?;
    }
    Ok(Outcome::Holes(found))
}

/// Shared mappings.
#[expect(unsafe_code, reason = "a mapping is memory that the kernel hands out by address")]
mod map {
    use std::{fs::File, io, ptr, slice};

    use rustix::mm::{MapFlags, MsyncFlags, ProtFlags, mmap, msync, munmap};

    /// Stores bytes at `at` through a shared mapping; the file reaches as far.
    pub fn store(file: &File, at: u64, data: &[u8]) -> io::Result<()> {
        if file.metadata()?.len() < at + data.len() as u64 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let from = at & !0xfff;
        let skip = (at - from) as usize;
        let len = skip + data.len();
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: no address is asked for, so nothing that exists is replaced.
        let start =
            unsafe { mmap(ptr::null_mut(), len, protection, MapFlags::SHARED, file, from) }?;
        // SAFETY: the mapping is `len` bytes long, writable, ours alone until it is unmapped, and
        // the file reaches behind its last byte.
        let memory = unsafe { slice::from_raw_parts_mut(start.cast::<u8>(), len) };
        memory[skip..].copy_from_slice(data);
        // SAFETY: the range was mapped above; the slice is not used any more.
        let synced = unsafe { msync(start, len, MsyncFlags::SYNC) };
        // SAFETY: as above, and nothing refers to it from here on.
        unsafe { munmap(start, len) }?;
        Ok(synced?)
    }
}

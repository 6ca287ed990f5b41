//! Who may use an image at the same time as whom: one rule for every program, QEMU's among them.
//!
//! ```text
//!  byte 100 + n   held: "I use permission n"            n   0 read consistently
//!  byte 200 + n   held: "I do not share permission n"       1 write
//!                                                           2 write what changes nothing a reader sees
//!  claim: take own bytes, then look for others' ──► none: it holds until the descriptor is closed
//!                                               └► one: own bytes are given back, "in use"     3 resize
//! ```
//!
//! The bytes are those of QEMU's `block/file-posix.c`. They are locked by open file description
//! (`F_OFD_SETLK`), so two openers in one process exclude each other too, and the system gives them back
//! when a program dies. All locks are shared ones: who uses a permission and who does not share it is a
//! matter of looking, so many readers need no order among them. Two that come at the same moment may
//! see each other and both give way; they try again.
//!
//! A write-only descriptor cannot have shared locks. Its exclusive ones are of bytes that nobody may
//! have beside a writer, so they say the same.
#![expect(
    unsafe_code,
    reason = "record locks of open file descriptions, which rustix does not have"
)]

use std::{
    fmt,
    fs::{self, File, Metadata},
    io,
    os::{
        fd::{AsRawFd, BorrowedFd, RawFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
};

use rustix::fs::OFlags;

/// First byte of "I use".
const USED: i64 = 100;
/// First byte of "I do not share".
const UNSHARED: i64 = 200;
/// The first and last byte that any of this is about.
const ALL: Bytes = Bytes { first: USED, count: UNSHARED + 4 - USED };

/// Permissions of QEMU's block layer.
const READ: i64 = 0;
const WRITE: i64 = 1;
const LAST: i64 = 3;

/// Bytes from `first` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Bytes {
    first: i64,
    count: i64,
}

/// The bytes of some permissions.
const fn of(base: i64, from: i64, to: i64) -> Bytes {
    Bytes { first: base + from, count: to - from + 1 }
}

/// What an opener does with an image, and what it suffers others to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Claim {
    /// Reads it, and needs it as it is: nobody writes it meanwhile. There may be many.
    Still,
    /// Writes it, alone. Those who look at it without a claim are not its care.
    Writer,
}

impl Claim {
    /// What is held for it.
    fn takes(self) -> &'static [Bytes] {
        // Writing includes what changes nothing: a reader that needs the file still cannot have
        // that either, since the file's bytes move.
        const STILL: &[Bytes] = &[of(USED, READ, READ), of(UNSHARED, WRITE, LAST)];
        const WRITER: &[Bytes] = &[of(USED, READ, LAST), of(UNSHARED, WRITE, LAST)];
        match self {
            Self::Still => STILL,
            Self::Writer => WRITER,
        }
    }

    /// What nobody else may hold.
    fn excludes(self) -> &'static [Bytes] {
        const STILL: &[Bytes] = &[of(USED, WRITE, LAST), of(UNSHARED, READ, READ)];
        const WRITER: &[Bytes] = &[of(USED, WRITE, LAST), of(UNSHARED, READ, LAST)];
        match self {
            Self::Still => STILL,
            Self::Writer => WRITER,
        }
    }
}

/// Why an image cannot be claimed.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// Another has a claim that does not go together with this one.
    #[error("in use")]
    InUse,
    /// The file system, or this descriptor, has no record locks: nothing would keep two writers apart.
    #[error("its file system has no record locks (fcntl)")]
    NoLocks,
    /// What the system says.
    #[error("locking failed")]
    System(#[source] io::Error),
}

impl Refusal {
    fn of(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::EAGAIN | libc::EACCES) => Self::InUse,
            Some(libc::ENOLCK | libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL | libc::EBADF) => {
                Self::NoLocks
            }
            _ => Self::System(error),
        }
    }
}

/// Claims the file behind a descriptor until the last copy of the descriptor is closed, or
/// [`release`]. `held` is what this descriptor claims already; a refusal leaves that.
///
/// # Errors
/// [`Refusal::InUse`] if another's claim does not go together with it.
pub fn claim(fd: BorrowedFd<'_>, held: Option<Claim>, wanted: Claim) -> Result<(), Refusal> {
    if held >= Some(wanted) {
        return Ok(());
    }
    let outcome = take(fd, wanted);
    if outcome.is_err() {
        settle(fd, held);
    }
    outcome
}

fn is_write_only(fd: BorrowedFd<'_>) -> bool {
    rustix::fs::fcntl_getfl(fd).is_ok_and(|mode| mode & OFlags::ACCMODE == OFlags::WRONLY)
}

fn take(fd: BorrowedFd<'_>, wanted: Claim) -> Result<(), Refusal> {
    for bytes in wanted.takes() {
        match set(fd, libc::F_RDLCK, *bytes) {
            Ok(()) => {}
            // What cannot be read has no shared locks. Only then is it asked how it was opened.
            Err(error) if error.raw_os_error() == Some(libc::EBADF) && is_write_only(fd) => {
                return take_write_only(fd);
            }
            Err(error) => return Err(Refusal::of(error)),
        }
    }
    free(fd, wanted)
}

/// Whether nobody else holds what a claim excludes.
fn free(fd: BorrowedFd<'_>, wanted: Claim) -> Result<(), Refusal> {
    // Most files have no other claim at all, which one look tells.
    if !is_held(fd, ALL).map_err(Refusal::of)? {
        return Ok(());
    }
    for bytes in wanted.excludes() {
        if is_held(fd, *bytes).map_err(Refusal::of)? {
            return Err(Refusal::InUse);
        }
    }
    Ok(())
}

fn take_write_only(fd: BorrowedFd<'_>) -> Result<(), Refusal> {
    for base in [USED, UNSHARED] {
        set(fd, libc::F_WRLCK, of(base, WRITE, LAST)).map_err(Refusal::of)?;
    }
    free(fd, Claim::Writer)
}

/// Brings what a descriptor claims down to `left`.
pub fn settle(fd: BorrowedFd<'_>, left: Option<Claim>) {
    let bytes = match left {
        None => ALL,
        // What a write-only descriptor has excludes readers, too, and cannot become less.
        Some(Claim::Still) if is_write_only(fd) => return,
        Some(Claim::Still) => of(USED, WRITE, LAST),
        Some(Claim::Writer) => return,
    };
    // Giving back fails for nothing that is held: what is no lock is not there either.
    let _ = set(fd, libc::F_UNLCK, bytes);
}

/// Gives up what a descriptor claims, before it is closed.
pub fn release(fd: BorrowedFd<'_>) {
    settle(fd, None);
}

fn record(kind: libc::c_int, bytes: Bytes) -> libc::flock {
    // SAFETY: a structure of numbers, for which zeros are values.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    // The constants are small; the field is narrower on some systems.
    lock.l_type = kind as _;
    lock.l_whence = libc::SEEK_SET as _;
    lock.l_start = bytes.first;
    lock.l_len = bytes.count;
    lock
}

fn set(fd: BorrowedFd<'_>, kind: libc::c_int, bytes: Bytes) -> io::Result<()> {
    let lock = record(kind, bytes);
    loop {
        // SAFETY: the descriptor is open as long as it is borrowed, and the kernel reads the record
        // before it returns.
        if unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) } == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Whether another open file description has a lock of any of these bytes.
fn is_held(fd: BorrowedFd<'_>, bytes: Bytes) -> io::Result<bool> {
    let mut lock = record(libc::F_WRLCK, bytes);
    // SAFETY: as above; the kernel writes the record before it returns.
    if unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_OFD_GETLK, &raw mut lock) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(i32::from(lock.l_type) != libc::F_UNLCK)
}

/// A program that has a claim on an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// What the system calls the program.
    pub name: String,
    /// Its process.
    pub pid: u32,
    /// It writes the image.
    pub writes: bool,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let does = if self.writes { "writes" } else { "reads" };
        write!(f, "{} (pid {}), which {does} it", self.name, self.pid)
    }
}

/// Programs that are named at most.
const NAMED: usize = 4;

/// The programs that claim a file, as far as this user may see them, `but` for one descriptor of this
/// process. Looks through all processes: for messages.
pub fn holders(file: &Metadata, but: Option<BorrowedFd<'_>>) -> Vec<Holder> {
    let own = std::process::id();
    let but = but.map(|fd| fd.as_raw_fd());
    let mut found = Vec::new();
    let mut processes = numbered(Path::new("/proc"));
    if !processes.iter().any(|(_, pid)| *pid == own) {
        // A confined process may not list the others, but knows what it has itself.
        processes.push((PathBuf::from("/proc/self"), own));
    }
    for process in processes {
        let pid = process.1;
        let mut claims = false;
        let mut writes = false;
        for (path, fd) in numbered(&process.0.join("fd")) {
            if pid == own && but == RawFd::try_from(fd).ok() {
                continue;
            }
            let told = process.0.join("fdinfo").join(fd.to_string());
            let told = fs::read_to_string(told).unwrap_or_default();
            let locks = || told.lines().filter_map(locked);
            let same = || {
                fs::metadata(&path)
                    .is_ok_and(|other| (other.dev(), other.ino()) == (file.dev(), file.ino()))
            };
            // Only files that have such a lock are looked at: others may be on storage that is away.
            if locks().any(|bytes| overlap(bytes, ALL)) && same() {
                claims = true;
                writes |= locks().any(|bytes| overlap(bytes, of(USED, WRITE, WRITE)));
            }
        }
        if claims {
            let name = fs::read_to_string(process.0.join("comm")).unwrap_or_default();
            // A program chooses its name itself.
            let name = name.trim_end().chars().map(|c| if c.is_control() { '?' } else { c });
            found.push(Holder { name: name.collect(), pid, writes });
            if found.len() == NAMED {
                break;
            }
        }
    }
    found
}

/// What a folder holds whose name is a number.
fn numbered(folder: &Path) -> Vec<(PathBuf, u32)> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let number = |entry: fs::DirEntry| {
        let number = entry.file_name().to_str()?.parse().ok()?;
        Some((entry.path(), number))
    };
    entries.flatten().filter_map(number).collect()
}

/// The bytes of one record lock as `/proc/PID/fdinfo` tells it:
/// `lock: 1: OFDLCK ADVISORY READ -1 fe:00:1001 100 101`.
fn locked(line: &str) -> Option<Bytes> {
    let mut words = line.strip_prefix("lock:")?.split_whitespace();
    let kind = words.nth(1)?;
    if kind != "OFDLCK" && kind != "POSIX" {
        return None;
    }
    let first: i64 = words.nth(4)?.parse().ok()?;
    // "EOF" is as far as a file may be.
    let last: i64 = words.next()?.parse().unwrap_or(i64::MAX - 1);
    Some(Bytes { first, count: last.checked_sub(first)?.checked_add(1)? })
}

fn overlap(a: Bytes, b: Bytes) -> bool {
    a.first < b.first.saturating_add(b.count) && b.first < a.first.saturating_add(a.count)
}

/// Who has a file that could not be claimed: for a message that begins with the file's name.
pub fn who(fd: BorrowedFd<'_>) -> String {
    let about = fd.try_clone_to_owned().and_then(|copy| File::from(copy).metadata());
    let found = about.map(|about| holders(&about, Some(fd))).unwrap_or_default();
    if found.is_empty() {
        return "in use by a program that this user may not see (root does: lslocks, or this again)"
            .to_owned();
    }
    let named: Vec<_> = found.iter().map(Holder::to_string).collect();
    format!("in use by {}", named.join(", and "))
}

#[cfg(test)]
mod tests;

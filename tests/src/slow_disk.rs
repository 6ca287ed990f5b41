//! A block device that is as slow as a test says, with ext4 on it, made for one test and gone with it.
//!
//! ```text
//!  ext4 ─► loop device ─► one file of FUSE ─► this process, which waits ─► a sparse file
//! ```
//!
//! Needs root, `/dev/fuse` and `mount`. The loop device asks for one thing after the other, so it is a
//! disk with one arm: what comes meanwhile stands in the kernel's queue of that disk.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    os::{fd::AsRawFd, unix::fs::FileExt},
    path::PathBuf,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use tempfile::TempDir;

use crate::process::{foreign, run};

const LIMIT: Duration = Duration::from_secs(60);
/// Most bytes of one write, which the kernel is told.
const MOST: usize = 128 << 10;
/// Length of the header of a request, of the header of an answer, of what a WRITE says before its data
/// (`struct fuse_in_header`, `fuse_out_header`, `fuse_write_in` of linux/fuse.h).
const HEAD: usize = 40;
const ANSWER: usize = 16;
const WRITE: usize = 40;

/// Opcodes of linux/fuse.h.
mod op {
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const RELEASE: u32 = 18;
    pub const FSYNC: u32 = 20;
    pub const FLUSH: u32 = 25;
    pub const INIT: u32 = 26;
    pub const INTERRUPT: u32 = 36;
    pub const BATCH_FORGET: u32 = 42;
}

/// What a disk takes for its work, in microseconds. It may be changed at any time.
#[derive(Debug, Default)]
pub struct Slowness {
    /// For each read.
    pub read: AtomicU64,
    /// For each write.
    pub write: AtomicU64,
    /// For making durable.
    pub sync: AtomicU64,
    /// For the way of the arm, more for a read or write that does not begin where the last one ended.
    pub seek: AtomicU64,
}

/// A mounted file system on a slow disk; unmounted and removed when dropped. Servers that use it are to be
/// gone before.
#[derive(Debug)]
pub struct SlowDisk {
    folder: TempDir,
    mounted: bool,
    /// How slow it is: not at all, at first.
    pub slowness: Arc<Slowness>,
}

/// The one file.
struct Served {
    fuse: File,
    content: File,
    len: u64,
    slowness: Arc<Slowness>,
    /// Where the arm is.
    at: u64,
}

fn number32(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).map_or(0, |it| u32::from_ne_bytes(it.try_into().unwrap_or_default()))
}

fn number64(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).map_or(0, |it| u64::from_ne_bytes(it.try_into().unwrap_or_default()))
}

fn pause(micros: u64) {
    if micros > 0 {
        thread::sleep(Duration::from_micros(micros));
    }
}

impl Served {
    /// Serves until it is unmounted.
    fn run(mut self) {
        let mut buffer = vec![0; MOST + 4096];
        loop {
            let len = match self.fuse.read(&mut buffer) {
                Ok(len) => len,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return,
            };
            let request = &buffer[..len];
            let opcode = number32(request, 4);
            if [op::FORGET, op::BATCH_FORGET, op::INTERRUPT].contains(&opcode) {
                continue;
            }
            let (error, body) = match self.answer(opcode, &request[HEAD..]) {
                Ok(body) => (0, body),
                Err(errno) => (-errno.raw_os_error(), Vec::new()),
            };
            let mut out = Vec::with_capacity(ANSWER + body.len());
            out.extend(u32::try_from(ANSWER + body.len()).unwrap_or(u32::MAX).to_ne_bytes());
            out.extend(error.to_ne_bytes());
            out.extend(&request[8..16]);
            out.extend(body);
            // Who asked may be gone.
            let _ = self.fuse.write(&out);
        }
    }

    /// Waits as long as the disk takes for `len` bytes at `offset`.
    fn turn(&mut self, each: u64, offset: u64, len: u64) {
        let seek = if offset == self.at { 0 } else { self.slowness.seek.load(Ordering::Relaxed) };
        self.at = offset + len;
        pause(each + seek);
    }

    fn answer(&mut self, opcode: u32, body: &[u8]) -> Result<Vec<u8>, rustix::io::Errno> {
        match opcode {
            op::INIT => {
                let mut out = Vec::new();
                // Version 7.31, no read-ahead; flags: pages are counted (1 << 22), writes may be big (1 << 5).
                [7u32, 31, 0, 1 << 22 | 1 << 5].iter().for_each(|it| out.extend(it.to_ne_bytes()));
                // Requests in the background, and when there are too many of them.
                [64u16, 48].iter().for_each(|it| out.extend(it.to_ne_bytes()));
                [MOST as u32, 1].iter().for_each(|it| out.extend(it.to_ne_bytes()));
                out.extend(((MOST / 4096) as u16).to_ne_bytes());
                out.resize(64, 0);
                Ok(out)
            }
            op::GETATTR | op::SETATTR => Ok(self.attributes()),
            op::OPEN => {
                let mut out = vec![0; 16];
                // FOPEN_DIRECT_IO: nothing of it is cached.
                out[8] = 1;
                Ok(out)
            }
            op::READ => {
                let (offset, len) = (number64(body, 8), number32(body, 16));
                let len = u64::from(len).min(self.len.saturating_sub(offset));
                self.turn(self.slowness.read.load(Ordering::Relaxed), offset, len);
                let mut data = vec![0; len as usize];
                self.content.read_exact_at(&mut data, offset).map_err(|_| rustix::io::Errno::IO)?;
                Ok(data)
            }
            op::WRITE => {
                let (offset, data) = (number64(body, 8), &body[WRITE..]);
                self.turn(self.slowness.write.load(Ordering::Relaxed), offset, data.len() as u64);
                self.content.write_all_at(data, offset).map_err(|_| rustix::io::Errno::IO)?;
                let mut out = vec![0; 8];
                out[..4].copy_from_slice(&(data.len() as u32).to_ne_bytes());
                Ok(out)
            }
            op::FSYNC => {
                pause(self.slowness.sync.load(Ordering::Relaxed));
                Ok(Vec::new())
            }
            op::RELEASE | op::FLUSH => Ok(Vec::new()),
            _ => Err(rustix::io::Errno::NOSYS),
        }
    }

    /// `struct fuse_attr_out`.
    fn attributes(&self) -> Vec<u8> {
        let mut out = vec![0; 16];
        [1, self.len, self.len / 512, 0, 0, 0].iter().for_each(|it| out.extend(it.to_ne_bytes()));
        // Nanoseconds of three times, then mode (a file of its owner), links, owner, group, device, block.
        let rest = [0, 0, 0, 0o100_600, 1, 0, 0, 0, 4096, 0u32];
        rest.iter().for_each(|it| out.extend(it.to_ne_bytes()));
        out
    }
}

impl SlowDisk {
    /// Makes one of `len` bytes, of which only what is used takes space, and mounts it. `None`, with a line
    /// that says why, if we are not root or the kernel's driver or a program is missing.
    pub fn mount(len: u64) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            test_support::skip(test_support::Need::Root.because("mounting a slow disk needs root"));
            return None;
        }
        let (mkfs, mount_tool) = (foreign("mkfs.ext4")?, foreign("mount")?);
        let fuse = File::options().read(true).write(true).open("/dev/fuse");
        let Ok(fuse) = fuse else {
            test_support::skip(test_support::Need::Kernel.because("there is no /dev/fuse"));
            return None;
        };
        let folder = tempfile::Builder::new().prefix("slow").tempdir().ok()?;
        let path = |name: &str| folder.path().join(name);
        let content = File::options().read(true).write(true).create_new(true).open(path("content"));
        let content = content.ok()?;
        content.set_len(len).ok()?;
        let quick = "lazy_itable_init=0,nodiscard";
        // Without a journal what is made durable is what was asked for, and nothing else.
        let args = ["-q", "-m", "0", "-O", "^has_journal", "-E", quick];
        let made = run(Command::new(mkfs).args(args).arg(path("content")), LIMIT);
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        File::create_new(path("disk")).ok()?;
        fs::create_dir(path("mount")).ok()?;
        let slowness = Arc::new(Slowness::default());
        let mut disk = Self { folder, mounted: false, slowness: slowness.clone() };
        let data = format!("fd={},rootmode=100600,user_id=0,group_id=0", fuse.as_raw_fd());
        let data = std::ffi::CString::new(data).ok()?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        if let Err(error) = mount("slow", disk.path("disk"), "fuse", flags, Some(data.as_c_str())) {
            let why = format_args!("FUSE cannot be mounted here: {error}");
            test_support::skip(test_support::Need::Kernel.because(why));
            return None;
        }
        let served = Served { fuse, content, len, slowness, at: 0 };
        thread::spawn(move || served.run());
        let args = ["-t", "ext4", "-o", "loop"];
        let made = Command::new(mount_tool)
            .args(args)
            .args([disk.path("disk"), disk.path("mount")])
            .output()
            .ok()?;
        if !made.status.success() {
            let why = String::from_utf8_lossy(&made.stderr).trim().to_owned();
            test_support::skip(test_support::Need::Kernel.because(why));
            return None;
        }
        disk.mounted = true;
        Some(disk)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Where its file system is mounted.
    pub fn folder(&self) -> PathBuf {
        self.path("mount")
    }
}

impl Drop for SlowDisk {
    fn drop(&mut self) {
        let slow = &self.slowness;
        for all in [&slow.read, &slow.write, &slow.sync, &slow.seek] {
            all.store(0, Ordering::Relaxed);
        }
        if self.mounted {
            let _ = unmount(self.folder(), UnmountFlags::DETACH);
        }
        let _ = unmount(self.path("disk"), UnmountFlags::DETACH);
    }
}

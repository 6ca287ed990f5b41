//! A file system whose files can share blocks, made for one test and gone with it.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use tempfile::TempDir;

use crate::process::{foreign, run};

const LIMIT: Duration = Duration::from_secs(60);

/// What the file system is made with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// XFS, whose files share blocks.
    Xfs,
    /// Btrfs, whose files share blocks and whose folders have snapshots.
    Btrfs,
    /// Ext4, which is small enough to be filled.
    Ext4,
}

/// A mounted image; unmounted and removed when dropped.
#[derive(Debug)]
pub struct Volume {
    folder: TempDir,
}

impl Volume {
    /// Makes and mounts one of 512 MiB, of which only what is used takes space. `None`, with a
    /// line that says why, if we are not root or the tool or the kernel's driver is missing.
    pub fn mount(kind: Kind) -> Option<Self> {
        Self::mount_in(&std::env::temp_dir(), kind, 512 << 20)
    }

    /// The same with `len` bytes, its image in a folder below `base`.
    pub fn mount_in(base: &Path, kind: Kind, len: u64) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            test_support::skip(test_support::Need::Root.because("mounting an image needs root"));
            return None;
        }
        let (tool, args): (_, &[&str]) = match kind {
            Kind::Xfs => ("mkfs.xfs", &["-q", "-m", "reflink=1"]),
            Kind::Btrfs => ("mkfs.btrfs", &["-q"]),
            // Without a journal a device that fails does not make the whole of it read-only.
            Kind::Ext4 => ("mkfs.ext4", &["-q", "-m", "0", "-O", "^has_journal"]),
        };
        let tool = foreign(tool)?;
        let folder = tempfile::Builder::new().prefix("volume").tempdir_in(base).ok()?;
        let image = folder.path().join("image");
        File::create(&image).ok()?.set_len(len).ok()?;
        fs::create_dir(folder.path().join("mount")).ok()?;
        let made = run(Command::new(tool).args(args).arg(&image), LIMIT);
        let volume = Self { folder };
        let mounted = made.status.success().then(|| {
            run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(volume.path()), LIMIT)
        });
        match mounted {
            Some(output) if output.status.success() => Some(volume),
            _ => {
                test_support::skip(format_args!("{kind:?} cannot be made and mounted here"));
                None
            }
        }
    }

    /// The file behind it.
    pub fn image(&self) -> PathBuf {
        self.folder.path().join("image")
    }

    /// Where it is mounted.
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("mount")
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        let output = run(Command::new("umount").arg("-l").arg(self.path()), LIMIT);
        if !output.status.success() && !std::thread::panicking() {
            eprintln!("{}", String::from_utf8_lossy(&output.stderr));
        }
    }
}

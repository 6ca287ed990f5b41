//! Where a store's file is: a folder of the system. A trait, so that tests have one that crashes
//! and fills up.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};

/// A file that is written in place and replaced as a whole.
pub trait Medium: Send {
    /// All of the file; `None` if there is none.
    fn read(&mut self) -> io::Result<Option<Vec<u8>>>;

    /// Writes where the file has bytes already.
    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Makes what was written durable.
    fn sync(&mut self) -> io::Result<()>;

    /// Puts a new file of `len` bytes in the place of the old one, durably: `bytes`, then zeros.
    /// After a crash there is one of them, whole.
    fn replace(&mut self, bytes: &[u8], len: u64) -> io::Result<()>;
}

/// A file in a folder, with a lock beside it.
#[derive(Debug)]
pub struct Folder {
    folder: PathBuf,
    name: &'static str,
    file: Option<File>,
    /// Held as long as the folder is.
    _lock: File,
}

impl Folder {
    /// Takes the lock; `None` if another process has it and keeps it.
    pub fn lock(folder: &Path, name: &'static str) -> io::Result<Option<Self>> {
        fs::create_dir_all(folder)?;
        let lock = Self::private().open(folder.join(format!("{name}.lock")))?;
        /// A process that ends closes its files one after the other: one that has let go of
        /// others may have this for a moment longer.
        const PATIENCE: Duration = Duration::from_secs(3);
        let since = Instant::now();
        loop {
            match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(Errno::WOULDBLOCK) if since.elapsed() < PATIENCE => {
                    thread::sleep(Duration::from_millis(2));
                }
                Err(Errno::WOULDBLOCK) => return Ok(None),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Some(Self { folder: folder.to_owned(), name, file: None, _lock: lock }))
    }

    fn private() -> fs::OpenOptions {
        let mut options = fs::OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        options
    }

    /// The path of the store's file.
    pub fn path(&self) -> PathBuf {
        self.folder.join(self.name)
    }

    fn file(&self) -> io::Result<&File> {
        self.file.as_ref().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Medium for Folder {
    fn read(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut file = match fs::OpenOptions::new().read(true).write(true).open(self.path()) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let len = file.metadata()?.len();
        if len > crate::log::MOST {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        self.file = Some(file);
        Ok(Some(bytes))
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file()?.write_all_at(bytes, offset)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file()?.sync_data()
    }

    fn replace(&mut self, bytes: &[u8], len: u64) -> io::Result<()> {
        static ZEROS: [u8; 1 << 16] = [0; 1 << 16];
        let new = self.folder.join(format!("{}.new", self.name));
        let write = || -> io::Result<File> {
            let mut file = Self::private().truncate(true).open(&new)?;
            file.write_all(bytes)?;
            // Written, not only reserved: a commit then changes nothing but these blocks.
            let mut left = len.saturating_sub(bytes.len() as u64);
            while left > 0 {
                let part = left.min(ZEROS.len() as u64);
                file.write_all(&ZEROS[..part as usize])?;
                left -= part;
            }
            file.sync_all()?;
            fs::rename(&new, self.path())?;
            Ok(file)
        };
        match write() {
            Ok(file) => self.file = Some(file),
            Err(error) => {
                let _ = fs::remove_file(&new);
                return Err(error);
            }
        }
        File::open(&self.folder)?.sync_all()
    }
}

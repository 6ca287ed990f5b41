//! Files that outlive their host: written to a temporary file, synced, renamed, and the folder synced.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use serde::{Serialize, de::DeserializeOwned};

/// An error that says which file is not understood, and why.
pub(super) fn damaged(path: &Path, error: &dyn std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{}: {error}", path.display()))
}

/// Reads a file of JSON; none if it is not there.
pub(super) fn read_json<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    match fs::read(path) {
        Ok(bytes) => {
            serde_json::from_slice(&bytes).map(Some).map_err(|error| damaged(path, &error))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes a file of JSON, durably.
pub(super) fn write_json<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    write_durably(path, &serde_json::to_vec(value)?)
}

/// What the name of a file that is being written has in it.
const UNFINISHED: &str = ".new-";

/// Writes a file so that it is there after a loss of power, whole, or as it was before.
pub(super) fn write_durably(path: &Path, bytes: &[u8]) -> io::Result<()> {
    // Two writers of one file must not write into one temporary file.
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!("{UNFINISHED}{}-{number}", std::process::id()));
    let temporary = PathBuf::from(temporary);
    let write = || {
        let mut file = File::options().write(true).create_new(true).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_data()?;
        fs::rename(&temporary, path)
    };
    if let Err(error) = write() {
        // Best effort: what stays is cleared away at the next start.
        let _ = fs::remove_file(&temporary);
        return Err(error);
    }
    path.parent().map_or(Ok(()), sync)
}

/// Opens a file for its next user, as a copy of its own: who had it open before writes to what is nobody's
/// any more. It is `first`, durably, if there is none. One of more than `most` bytes is opened as it is, for
/// its user to refuse.
///
/// # Errors
/// What the file system says, with the path; that it is a link, or no file.
pub(super) fn own_copy(path: &Path, first: &[u8], most: u64) -> io::Result<File> {
    let told =
        |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    let open = || {
        let flags = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
        File::options().read(true).write(true).custom_flags(flags).open(path)
    };
    let content = match open() {
        Ok(file) if !file.metadata().map_err(told)?.is_file() => {
            return Err(told(io::Error::new(io::ErrorKind::InvalidInput, "it is no file")));
        }
        Ok(file) => {
            let mut content = Vec::new();
            file.take(most + 1).read_to_end(&mut content).map_err(told)?;
            content
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => first.to_vec(),
        Err(error) => return Err(told(error)),
    };
    if content.len() as u64 <= most {
        write_durably(path, &content).map_err(told)?;
    }
    open().map_err(told)
}

/// Clears away files whose writing was cut short. Only before anything is written.
pub(super) fn clear_unfinished(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().contains(UNFINISHED) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Makes durable which files a folder has.
pub(super) fn sync(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_file_is_named_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (path, other) = (dir.path().join("it"), dir.path().join("other"));
        fs::write(&other, "somebody's").unwrap();
        let refused = || own_copy(&path, b"first", 9).unwrap_err().to_string();
        std::os::unix::fs::symlink(&other, &path).unwrap();
        assert!(refused().contains(&path.display().to_string()));
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(refused().contains(&path.display().to_string()));
        fs::remove_dir(&path).unwrap();
        fs::write(&path, "more than there is").unwrap();
        let mut got = String::new();
        own_copy(&path, b"first", 9).unwrap().read_to_string(&mut got).unwrap();
        assert_eq!(got, "more than there is");
        assert_eq!(fs::read(other).unwrap(), b"somebody's");
    }
}

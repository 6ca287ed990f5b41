//! Files that are the server's alone.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::Path,
};

/// Longest file that is read, in bytes.
const LONGEST: u64 = 4 << 20;

/// Reads a text that nobody but its owner may read or write.
///
/// # Errors
/// What the system says, or what to do about the mode.
pub(crate) fn read_private(path: &Path) -> Result<String, String> {
    let file = File::open(path).map_err(|error| error.to_string())?;
    let mode = file.metadata().map_err(|error| error.to_string())?.mode();
    if mode & 0o077 != 0 {
        return Err(format!("others can reach it (mode {:o}): chmod 600", mode & 0o777));
    }
    let mut text = String::new();
    file.take(LONGEST).read_to_string(&mut text).map_err(|error| error.to_string())?;
    Ok(text)
}

/// Puts a text in the place of a file, for its owner alone; a reader sees the old one or the new one,
/// and so does who comes after a loss of power.
///
/// # Errors
/// What the system says; then the old one is there.
pub fn replace_private(path: &Path, text: &str) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    let _ = fs::remove_file(&new);
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
    };
    write().inspect_err(|_| drop(fs::remove_file(&new)))
}

//! What all checks of values use: errors that name the key, secrets, paths, groups.

use std::{
    cell::RefCell,
    fmt,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use smb_protocol::compression::CompressionAlgorithm;
use zeroize::Zeroizing;

use super::{ConfigError, ServerSection, values::Compression};

/// The text of a file, which may hold secrets.
pub(super) fn read_text(path: &Path) -> Result<Zeroizing<String>, ConfigError> {
    std::fs::read_to_string(path)
        .map(Zeroizing::new)
        .map_err(|source| ConfigError::Read { path: path.to_owned(), source })
}

/// A file that is being checked.
pub(super) struct Check<'a> {
    path: &'a Path,
    /// Files with secrets that were read.
    secrets: RefCell<Vec<PathBuf>>,
}

impl<'a> Check<'a> {
    /// Of the file at `path`.
    pub(super) fn new(path: &'a Path) -> Self {
        Self { path, secrets: RefCell::default() }
    }

    /// Files with secrets that were read.
    pub(super) fn secrets(&self) -> Vec<PathBuf> {
        self.secrets.take()
    }

    /// A value that cannot be.
    pub(super) fn bad(&self, key: &str, message: impl fmt::Display) -> ConfigError {
        ConfigError::Value {
            path: self.path.to_owned(),
            key: key.to_owned(),
            message: message.to_string(),
        }
    }

    /// Reads a secret that only its owner may read.
    pub(super) fn secret_file(
        &self,
        key: &str,
        path: &Path,
    ) -> Result<Zeroizing<String>, ConfigError> {
        read_text(&self.secret_path(key, path)?)
    }

    /// The path of a secret, which only its owner may read.
    pub(super) fn secret_path(&self, key: &str, path: &Path) -> Result<PathBuf, ConfigError> {
        let path = &self.relative(path);
        let meta = std::fs::metadata(path)
            .map_err(|source| ConfigError::Read { path: path.clone(), source })?;
        if meta.permissions().mode() & 0o077 != 0 {
            let message = format!(
                "{} can be read by others (mode {:03o}); run: chmod 600 {}",
                path.display(),
                meta.mode() & 0o777,
                path.display()
            );
            return Err(self.bad(key, message));
        }
        self.secrets.borrow_mut().push(path.clone());
        Ok(path.clone())
    }

    /// The compression algorithms that are offered, in the order of preference.
    pub(super) fn compression(
        &self,
        server: &ServerSection,
    ) -> Result<Vec<CompressionAlgorithm>, ConfigError> {
        let named = server.compression_algorithms.as_ref();
        let list: Vec<_> = match (server.compression, named) {
            (Compression::Off, _) => Vec::new(),
            (Compression::On, None) => CompressionAlgorithm::ALL.to_vec(),
            (Compression::On, Some(names)) => names.iter().map(|n| n.algorithm()).collect(),
        };
        let twice = list.iter().enumerate().any(|(at, one)| list[..at].contains(one));
        if twice || server.compression == Compression::On && list.is_empty() {
            let message = "each at most once, and at least one; or compression = \"off\"";
            return Err(self.bad("server.compression_algorithms", message));
        }
        Ok(list)
    }

    /// The number of a group of the system, by number or by its name in /etc/group.
    pub(super) fn group(&self, key: &str, group: &str) -> Result<u32, ConfigError> {
        if let Ok(number) = group.parse() {
            return Ok(number);
        }
        let text = std::fs::read_to_string("/etc/group").unwrap_or_default();
        let found = text.lines().find_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            (name == group).then(|| fields.nth(1)?.parse().ok())?
        });
        found.ok_or_else(|| self.bad(key, format!("group: the system has no group {group:?}")))
    }

    /// Paths are taken from the folder of the configuration file.
    pub(super) fn relative(&self, path: &Path) -> PathBuf {
        self.path.parent().map_or_else(|| path.to_owned(), |folder| folder.join(path))
    }
}

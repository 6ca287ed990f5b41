//! Where a user's name and password come from.
//!
//! In this order: what the program gives, `BULKHEAD_SMB_PASSWORD`, the file that
//! `BULKHEAD_SMB_CREDENTIALS` names. The file has lines `username=`, `password=`, `domain=` as
//! mount.cifs reads them, and must be readable by its owner only. Nothing of it is ever logged.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use smb_protocol::ntlm::{Credentials, NtHash};
use zeroize::Zeroizing;

/// Environment variable with the password.
pub const PASSWORD_VARIABLE: &str = "BULKHEAD_SMB_PASSWORD";
/// Environment variable with the path of a credentials file.
pub const FILE_VARIABLE: &str = "BULKHEAD_SMB_CREDENTIALS";
/// Largest credentials file that is read.
const MAX_FILE: u64 = 64 * 1024;

/// Why there are no credentials.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum CredentialsError {
    /// The file cannot be read.
    #[error("cannot read credentials file {path}")]
    File {
        /// Path of the file that the error is about.
        path: PathBuf,
        /// The cause, as the layer below tells it.
        #[source]
        source: Arc<io::Error>,
    },
    /// Others could read the file.
    #[error("credentials file {path} has mode {mode:03o}; it must be 600 or less")]
    Mode {
        /// Path of the file that the error is about.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A line is not understood.
    #[error("credentials file {path}, line {line}: not username=, password= or domain=")]
    Line {
        /// Path of the file that the error is about.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
    },
    /// The file is for somebody else.
    #[error("credentials file {path} is for user {theirs:?}, and the address names {asked:?}")]
    OtherUser {
        /// Path of the file that the error is about.
        path: PathBuf,
        /// Whom the file names.
        theirs: String,
        /// Whom the address names.
        asked: String,
    },
    /// Nobody said who logs on.
    #[error("no user name given")]
    NoUser,
    /// Nobody said the password.
    #[error("no password given: set {PASSWORD_VARIABLE} or {FILE_VARIABLE}")]
    NoPassword,
}

/// A user name, perhaps with a domain, and the hash of a password.
#[derive(Clone, Debug)]
pub struct Login(pub(crate) Credentials);

impl Login {
    /// A user with a password. `user` may be `DOMAIN\user` or `DOMAIN;user`.
    #[must_use]
    pub fn new(user: &str, password: &str) -> Self {
        Self::with_hash(user, NtHash::of_password(password))
    }

    /// A user with the hash of a password.
    #[must_use]
    pub fn with_hash(user: &str, hash: NtHash) -> Self {
        let (domain, user) = user.split_once(['\\', ';']).unwrap_or(("", user));
        Self(Credentials { user: user.to_owned(), domain: domain.to_owned(), hash })
    }

    /// Takes the password (and, if `user` is `None`, the name) from the environment or the file
    /// it names.
    ///
    /// # Errors
    /// [`CredentialsError`] without a name or a password, and for a file that cannot be used.
    pub fn from_env(user: Option<&str>) -> Result<Self, CredentialsError> {
        let password = std::env::var(PASSWORD_VARIABLE).ok().map(Zeroizing::new);
        let file = std::env::var_os(FILE_VARIABLE).map(PathBuf::from);
        Self::from_sources(user, password, file.as_deref())
    }

    /// Takes name and password from a credentials file. `user`, if an address names one, must be the
    /// file's.
    ///
    /// # Errors
    /// [`CredentialsError`] if the file cannot be read, others may read it, it lacks something or names another user.
    pub fn from_file(path: &Path, user: Option<&str>) -> Result<Self, CredentialsError> {
        let login = Self::from_sources(None, None, Some(path))?;
        match user.map(|user| Self::with_hash(user, login.0.hash.clone())) {
            Some(asked) if asked.0.user != login.0.user || asked.0.domain != login.0.domain => {
                let name = |login: &Self| match login.0.domain.as_str() {
                    "" => login.0.user.clone(),
                    domain => format!("{domain}\\{}", login.0.user),
                };
                let (theirs, asked) = (name(&login), name(&asked));
                Err(CredentialsError::OtherUser { path: path.to_owned(), theirs, asked })
            }
            _ => Ok(login),
        }
    }

    fn from_sources(
        user: Option<&str>,
        password: Option<Zeroizing<String>>,
        file: Option<&Path>,
    ) -> Result<Self, CredentialsError> {
        let given = match file {
            Some(path) => read_file(path)?,
            None => Lines::default(),
        };
        let from_file = given.user.map(|user| match given.domain {
            Some(domain) => format!("{domain}\\{user}"),
            None => user,
        });
        let user = user.map(str::to_owned).or(from_file).ok_or(CredentialsError::NoUser)?;
        let password = password.or(given.password).ok_or(CredentialsError::NoPassword)?;
        Ok(Self::new(&user, &password))
    }

    /// The user's name, without domain.
    #[must_use]
    pub fn user(&self) -> &str {
        &self.0.user
    }
}

#[derive(Default)]
struct Lines {
    user: Option<String>,
    password: Option<Zeroizing<String>>,
    domain: Option<String>,
}

fn read_file(path: &Path) -> Result<Lines, CredentialsError> {
    let fail = |source| CredentialsError::File { path: path.to_owned(), source: Arc::new(source) };
    let file = File::open(path).map_err(fail)?;
    let mode = file.metadata().map_err(fail)?.mode() & 0o777;
    if mode & 0o177 != 0 {
        return Err(CredentialsError::Mode { path: path.to_owned(), mode });
    }
    let mut text = Zeroizing::new(String::new());
    file.take(MAX_FILE).read_to_string(&mut text).map_err(fail)?;
    parse_lines(&text).map_err(|line| CredentialsError::Line { path: path.to_owned(), line })
}

/// Reads the lines; the error is the number of the first bad one.
fn parse_lines(text: &str) -> Result<Lines, usize> {
    let mut lines = Lines::default();
    for (number, line) in (1..).zip(text.lines()) {
        if line.trim().is_empty() || line.trim_start().starts_with('#') {
            continue;
        }
        let (key, value) = line.split_once('=').ok_or(number)?;
        match key.trim() {
            "username" | "user" => lines.user = Some(value.trim().to_owned()),
            "domain" => lines.domain = Some(value.trim().to_owned()),
            // Blanks may be part of a password.
            "password" => lines.password = Some(Zeroizing::new(value.to_owned())),
            _ => return Err(number),
        }
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use std::{io::Write, os::unix::fs::PermissionsExt};

    use super::*;

    fn file(text: &str, mode: u32) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file.as_file().set_permissions(PermissionsExt::from_mode(mode)).unwrap();
        file
    }

    #[test]
    fn file_gives_name_domain_and_password() {
        let file = file("# who\nusername=admin\ndomain = DOM\npassword= ge=heim\n", 0o600);
        let login = Login::from_sources(None, None, Some(file.path())).unwrap();
        assert_eq!((&*login.0.user, &*login.0.domain), ("admin", "DOM"));
        assert_eq!(login.0.hash, NtHash::of_password(" ge=heim"));
        let explicit = Zeroizing::new("other".to_owned());
        let login = Login::from_sources(Some("bob"), Some(explicit), Some(file.path())).unwrap();
        assert_eq!((&*login.0.user, &*login.0.domain), ("bob", ""));
        assert_eq!(login.0.hash, NtHash::of_password("other"));
    }

    #[test]
    fn a_file_others_can_read_is_refused() {
        let open = file("username=a\npassword=geheim\n", 0o640);
        let error = Login::from_sources(None, None, Some(open.path())).unwrap_err();
        assert!(matches!(error, CredentialsError::Mode { mode: 0o640, .. }));
        let bad = file("username=a\ngeheim\n", 0o400);
        let error = Login::from_sources(None, None, Some(bad.path())).unwrap_err();
        assert!(error.to_string().ends_with("line 2: not username=, password= or domain="));
        assert!(!format!("{error:?}").contains("geheim"));
    }

    #[test]
    fn a_file_is_for_the_user_that_it_names() {
        let file = file("username=web\npassword=geheim\n", 0o600);
        for user in [None, Some("web")] {
            assert_eq!(Login::from_file(file.path(), user).unwrap().user(), "web");
        }
        for user in ["admin", "DOM\\web"] {
            let error = Login::from_file(file.path(), Some(user)).unwrap_err().to_string();
            assert!(error.contains("\"web\"") && !error.contains("geheim"), "{error}");
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        let error = Login::from_sources(None, None, None).unwrap_err();
        assert!(matches!(error, CredentialsError::NoUser));
        let error = Login::from_sources(Some("a"), None, None).unwrap_err();
        assert!(matches!(error, CredentialsError::NoPassword));
        assert!(!format!("{:?}", Login::new("a", "geheim")).contains("geheim"));
    }
}

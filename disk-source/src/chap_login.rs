//! By what an initiator and a target prove who they are: the environment, or a credentials file.
//!
//! `BULKHEAD_CHAP_USER`, `BULKHEAD_CHAP_SECRET` for this initiator, `BULKHEAD_CHAP_TARGET_USER`,
//! `BULKHEAD_CHAP_TARGET_SECRET` for a target that has to prove itself too; or the file that
//! `BULKHEAD_CHAP_CREDENTIALS` names, with lines `username=`, `password=`, `target_username=` and
//! `target_password=`, which only its owner may read. Nothing of it is ever logged.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use iscsi::chap::{Account, SettingsError};
use zeroize::Zeroizing;

/// The name under which this initiator proves who it is.
const USER: &str = "BULKHEAD_CHAP_USER";
/// Its secret.
const SECRET: &str = "BULKHEAD_CHAP_SECRET";
/// The name under which a target has to prove itself.
const TARGET_USER: &str = "BULKHEAD_CHAP_TARGET_USER";
/// Its secret.
const TARGET_SECRET: &str = "BULKHEAD_CHAP_TARGET_SECRET";
/// A credentials file.
const FILE: &str = "BULKHEAD_CHAP_CREDENTIALS";
/// Largest credentials file that is read, in bytes.
const MAX_FILE: u64 = 64 << 10;

/// Why there is no login.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChapLoginError {
    /// The file cannot be read.
    #[error("cannot read credentials file {path}")]
    File {
        /// Its path.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Others could read the file.
    #[error("credentials file {path} has mode {mode:03o}; it must be 600 or less")]
    Mode {
        /// Its path.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A line is not understood.
    #[error(
        "credentials file {path}, line {line}: not username=, password=, target_username= or target_password="
    )]
    Line {
        /// Its path.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
    },
    /// There is a name without a secret.
    #[error("no secret for {0}: set {SECRET} or {FILE}")]
    NoSecret(String),
    /// There is a secret without a name.
    #[error("a secret without a name: set {USER}, or name the user in the address")]
    NoUser,
    /// The address names somebody else.
    #[error("the login is of {theirs:?}, and the address names {asked:?}")]
    OtherUser {
        /// Whose secret it is.
        theirs: String,
        /// Whom the address names.
        asked: String,
    },
    /// A target's secret without its name, or the other way round.
    #[error("a target that proves itself has both a name and a secret, and this initiator too")]
    Mutual,
    /// A secret is too weak.
    #[error(transparent)]
    Weak(#[from] SettingsError),
}

/// By what the two sides prove who they are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ChapLogin {
    /// This initiator.
    pub ours: Option<Account>,
    /// The target.
    pub theirs: Option<Account>,
}

#[derive(Default)]
struct Words {
    user: Option<String>,
    secret: Option<Zeroizing<String>>,
    target_user: Option<String>,
    target_secret: Option<Zeroizing<String>>,
}

impl ChapLogin {
    /// The login that the environment, or the file that it names, has for a user that an address names.
    ///
    /// # Errors
    /// [`ChapLoginError`].
    pub fn from_env(user: Option<&str>) -> Result<Self, ChapLoginError> {
        let word = |name| std::env::var(name).ok().filter(|text| !text.is_empty());
        let mut words = Words::default();
        if let Some(path) = std::env::var_os(FILE) {
            words = read(Path::new(&path))?;
        }
        let secret = |name| word(name).map(Zeroizing::new);
        words.user = word(USER).or(words.user);
        words.secret = secret(SECRET).or(words.secret);
        words.target_user = word(TARGET_USER).or(words.target_user);
        words.target_secret = secret(TARGET_SECRET).or(words.target_secret);
        words.login(user)
    }

    /// The login of a credentials file for a user that an address names.
    ///
    /// # Errors
    /// [`ChapLoginError`].
    pub fn from_file(path: &Path, user: Option<&str>) -> Result<Self, ChapLoginError> {
        read(path)?.login(user)
    }
}

impl Words {
    fn login(self, asked: Option<&str>) -> Result<ChapLogin, ChapLoginError> {
        let user = match (self.user, asked) {
            (Some(theirs), Some(asked)) if theirs != asked => {
                return Err(ChapLoginError::OtherUser { theirs, asked: asked.to_owned() });
            }
            (user, asked) => user.or(asked.map(str::to_owned)),
        };
        let ours = match (user, self.secret) {
            (Some(user), Some(secret)) => Some(Account::new(user, secret.as_bytes())?),
            (Some(user), None) => return Err(ChapLoginError::NoSecret(user)),
            (None, Some(_)) => return Err(ChapLoginError::NoUser),
            (None, None) => None,
        };
        let theirs = match (self.target_user, self.target_secret) {
            (Some(user), Some(secret)) if ours.is_some() => {
                Some(Account::new(user, secret.as_bytes())?)
            }
            (None, None) => None,
            _ => return Err(ChapLoginError::Mutual),
        };
        Ok(ChapLogin { ours, theirs })
    }
}

fn read(path: &Path) -> Result<Words, ChapLoginError> {
    let failed = |source| ChapLoginError::File { path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    let mode = file.metadata().map_err(failed)?.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(ChapLoginError::Mode { path: path.to_owned(), mode });
    }
    let mut text = Zeroizing::new(String::new());
    file.take(MAX_FILE).read_to_string(&mut text).map_err(failed)?;
    let mut words = Words::default();
    for (n, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        match line.split_once('=') {
            Some(("username", value)) => words.user = Some(value.to_owned()),
            Some(("password", value)) => words.secret = Some(Zeroizing::new(value.to_owned())),
            Some(("target_username", value)) => words.target_user = Some(value.to_owned()),
            Some(("target_password", value)) => {
                words.target_secret = Some(Zeroizing::new(value.to_owned()));
            }
            _ => return Err(ChapLoginError::Line { path: path.to_owned(), line: n + 1 }),
        }
    }
    Ok(words)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_file_has_both_logins_and_only_its_owner_reads_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("chap");
        let text = "# of the store\nusername=carol\npassword=a secret=of carol\n\
                    target_username=store\ntarget_password=the store's own\n";
        std::fs::write(&path, text).unwrap();
        let mode = |mode| std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        mode(0o644);
        let error = ChapLogin::from_file(&path, None).unwrap_err();
        assert!(matches!(error, ChapLoginError::Mode { mode: 0o644, .. }));
        mode(0o600);
        let login = ChapLogin::from_file(&path, Some("carol")).unwrap();
        assert_eq!(login.ours, Some(Account::new("carol", b"a secret=of carol").unwrap()));
        assert_eq!(login.theirs, Some(Account::new("store", b"the store's own").unwrap()));
        let error = ChapLogin::from_file(&path, Some("bob")).unwrap_err();
        assert!(matches!(error, ChapLoginError::OtherUser { .. }));
        for (text, right) in [
            ("username=carol\n", "no secret for carol"),
            ("password=a secret of x\n", "without a name"),
            ("target_username=t\n", "both a name"),
            ("username=carol\npassword=short\n", "12"),
            ("user=carol\n", "line 1"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = ChapLogin::from_file(&path, None).unwrap_err().to_string();
            assert!(error.contains(right), "{error}");
            assert!(!error.contains("a secret of x") && !error.contains("short;"), "{error}");
        }
        std::fs::write(&path, "").unwrap();
        assert_eq!(ChapLogin::from_file(&path, None).unwrap(), ChapLogin::default());
    }
}

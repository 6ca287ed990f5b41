//! Users of the interface: a file with their names, roles and hashes of their passwords.
//!
//! ```toml
//! [[user]]
//! name = "alice"
//! role = "operator"
//! password_hash = "$argon2id$v=19$m=19456,t=2,p=1$…"
//! ```

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use argon2::{
    Argon2,
    password_hash::{PasswordHash, PasswordHasher, PasswordVerifier, SaltString},
};
use control_socket::Role;
use serde::{Deserialize, Serialize};

use crate::files;

/// Longest password in bytes.
const LONGEST_PASSWORD: usize = 1024;

/// Most memory that one hash may take, in KiB: the file is an administrator's, but may be a wrong one.
const MOST_MEMORY: u32 = 256 << 10;

/// Most rounds of one hash.
const MOST_ROUNDS: u32 = 64;

/// A file of users that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum UsersError {
    /// The file cannot be read or written.
    #[error("{path}: {why}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why, with what to do.
        why: String,
    },
    /// A user of the file, or who is to be one, cannot be.
    #[error("user {name:?}: {why}")]
    User {
        /// Their name, as it was given.
        name: String,
        /// Why not.
        why: String,
    },
}

/// A user of the control interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct User {
    /// The name, 1 to 64 letters, digits and `.`, `_`, `-`, `@`.
    pub name: String,
    /// What they may do.
    pub role: Role,
    /// The hash of their password, as a PHC string.
    password_hash: String,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    user: Vec<User>,
}

/// All users of the control interface.
#[derive(Debug, Clone)]
pub struct Users {
    all: BTreeMap<String, User>,
    /// Verified where there is no such user, so that this takes as long.
    nobody: String,
}

fn refused(name: &str, why: impl ToString) -> UsersError {
    UsersError::User { name: name.to_owned(), why: why.to_string() }
}

/// Whether a hash is one that can be verified, and is not made to take all memory.
fn check_hash(text: &str) -> Result<(), String> {
    let hash = PasswordHash::new(text).map_err(|_| "its password_hash is no PHC string")?;
    if hash.algorithm.as_str() != "argon2id" || hash.hash.is_none() || hash.salt.is_none() {
        return Err("its password_hash is not of argon2id".to_owned());
    }
    let params = argon2::Params::try_from(&hash).map_err(|error| error.to_string())?;
    if params.m_cost() > MOST_MEMORY || params.t_cost() > MOST_ROUNDS {
        return Err("its password_hash asks for too much memory or time".to_owned());
    }
    Ok(())
}

fn hash(password: &str) -> Result<String, String> {
    let mut salt = [0; 16];
    aws_lc_rs::rand::fill(&mut salt).map_err(|_| "the system has no random numbers")?;
    let salt = SaltString::encode_b64(&salt).map_err(|error| error.to_string())?;
    let hash = Argon2::default().hash_password(password.as_bytes(), &salt);
    hash.map(|hash| hash.to_string()).map_err(|error| error.to_string())
}

impl User {
    /// A user with a password.
    ///
    /// # Errors
    /// If the name or the password cannot be one.
    pub fn new(name: &str, role: Role, password: &str) -> Result<Self, UsersError> {
        let user = |password_hash| Self { name: name.to_owned(), role, password_hash };
        if password.is_empty() || password.len() > LONGEST_PASSWORD {
            let why = format!("a password has 1 to {LONGEST_PASSWORD} bytes");
            return Err(refused(name, why));
        }
        let user = user(hash(password).map_err(|why| refused(name, why))?);
        user.check()?;
        Ok(user)
    }

    fn check(&self) -> Result<(), UsersError> {
        let legal = |c: char| c.is_ascii_alphanumeric() || "._-@".contains(c);
        let length = (1..=64).contains(&self.name.len());
        if !length || !self.name.chars().all(legal) {
            let why = "a name has 1 to 64 letters, digits and any of . _ - @";
            return Err(refused(&self.name, why));
        }
        check_hash(&self.password_hash).map_err(|why| refused(&self.name, why))
    }
}

impl Users {
    /// Nobody.
    ///
    /// # Errors
    /// If the system has no random numbers.
    pub fn none() -> Result<Self, UsersError> {
        let nobody = hash("nobody").map_err(|why| refused("", why))?;
        Ok(Self { all: BTreeMap::new(), nobody })
    }

    /// Reads a file, which only its owner may read.
    ///
    /// # Errors
    /// If it cannot be read, is readable by others, or says what cannot be.
    pub fn load(path: &Path) -> Result<Self, UsersError> {
        let bad = |why| UsersError::File { path: path.to_owned(), why };
        Self::parse(&files::read_private(path).map_err(bad)?).map_err(|error| match error {
            UsersError::File { why, .. } => bad(why),
            other => other,
        })
    }

    /// Takes the text of a file.
    ///
    /// # Errors
    /// As for [`Users::load`]. The message repeats nothing of the text but names.
    pub fn parse(text: &str) -> Result<Self, UsersError> {
        let file: File = toml::from_str(text).map_err(|error| {
            let before = error.span().and_then(|span| text.get(..span.start));
            let line = before.unwrap_or_default().lines().count().max(1);
            let why = format!("line {line}: {}", error.message());
            UsersError::File { path: PathBuf::new(), why }
        })?;
        let mut users = Self::none()?;
        for user in file.user {
            user.check()?;
            let name = user.name.clone();
            if users.all.insert(name.clone(), user).is_some() {
                return Err(refused(&name, "is there twice"));
            }
        }
        Ok(users)
    }

    /// Puts the users in the place of a file, for its owner alone.
    ///
    /// # Errors
    /// What the system says.
    pub fn save(&self, path: &Path) -> Result<(), UsersError> {
        let bad = |why| UsersError::File { path: path.to_owned(), why };
        let file = File { user: self.all.values().cloned().collect() };
        let text = toml::to_string(&file).map_err(|error| bad(error.to_string()))?;
        files::replace_private(path, &text).map_err(|error| bad(error.to_string()))
    }

    /// All users, by name.
    pub fn all(&self) -> impl Iterator<Item = &User> {
        self.all.values()
    }

    /// Adds a user, or puts one in the place of another of that name; says which.
    pub fn put(&mut self, user: User) -> Option<User> {
        self.all.insert(user.name.clone(), user)
    }

    /// Takes a user away.
    pub fn remove(&mut self, name: &str) -> Option<User> {
        self.all.remove(name)
    }

    /// What a user may do, if there is one of that name.
    pub fn role(&self, name: &str) -> Option<Role> {
        self.all.get(name).map(|user| user.role)
    }

    /// Whether that is the password of the user of that name. Takes tens of milliseconds, as long for a
    /// name that nobody has, and is compared in constant time.
    pub fn verify(&self, name: &str, password: &str) -> bool {
        let user = self.all.get(name);
        let hash = user.map_or(&self.nobody, |user| &user.password_hash);
        let password = if password.len() > LONGEST_PASSWORD { "" } else { password };
        let right = PasswordHash::new(hash).is_ok_and(|hash| {
            Argon2::default().verify_password(password.as_bytes(), &hash).is_ok()
        });
        right && user.is_some()
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    #[test]
    fn users_are_kept_with_hashes_and_known_by_their_passwords() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("users.toml");
        let mut users = Users::none().unwrap();
        users.put(User::new("alice", Role::Operator, "correct horse").unwrap());
        users.put(User::new("bob", Role::Viewer, "staple").unwrap());
        users.save(&path).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains("$argon2id$") && !text.contains("horse"), "{text}");
        let again = Users::load(&path).unwrap();
        assert!(again.all().eq(users.all()));
        assert_eq!(again.role("alice"), Some(Role::Operator));
        assert!(again.verify("alice", "correct horse") && again.verify("bob", "staple"));
        for (name, password) in [
            ("alice", "staple"),
            ("alice", ""),
            ("Alice", "correct horse"),
            ("nobody", "nobody"),
            ("", ""),
        ] {
            assert!(!again.verify(name, password), "{name} {password}");
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let error = Users::load(&path).unwrap_err().to_string();
        assert!(error.contains("chmod 600"), "{error}");
    }

    #[test]
    fn what_cannot_be_a_user_is_refused() {
        for name in ["", "a b", "a\n", "ü", "a\u{202e}", &"x".repeat(65)] {
            assert!(User::new(name, Role::Viewer, "x").is_err(), "{name:?}");
        }
        assert!(User::new("a", Role::Viewer, "").is_err());
        assert!(User::new("a", Role::Viewer, &"x".repeat(1025)).is_err());
        let good = User::new("a", Role::Viewer, "x").unwrap().password_hash;
        let file = |role: &str, hash: &str| {
            format!("[[user]]\nname = \"a\"\nrole = \"{role}\"\npassword_hash = \"{hash}\"\n")
        };
        Users::parse(&file("viewer", &good)).unwrap();
        for text in [
            file("root", &good),
            file("viewer", "x"),
            file("viewer", &good.replace("argon2id", "argon2i")),
            file("viewer", &good.replace("m=19456", "m=4194304")),
            file("viewer", &good.replace("t=2", "t=4000")),
            file("viewer", good.rsplit_once('$').unwrap().0),
            file("viewer", &good).repeat(2),
            format!("{}x = 1\n", file("viewer", &good)),
            "[[user]]\nname = \"secret".to_owned(),
        ] {
            let error = Users::parse(&text).unwrap_err().to_string();
            assert!(!error.contains(&good[31..]), "{error}");
        }
    }
}

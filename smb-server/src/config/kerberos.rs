//! The `[kerberos]` table: keys of this server, and which principal is which user.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use schemars::JsonSchema;
use serde::Deserialize;
use smb_protocol::{
    kerberos::{keytab::Keytab, message::Principal},
    ntlm::users,
};

use super::{Check, ConfigError};

/// The table as it is written.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Section {
    keytab: PathBuf,
    realm: Option<String>,
    #[serde(default)]
    users: BTreeMap<String, String>,
}

/// Kerberos as it was configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kerberos {
    /// Keys of this server.
    pub keytab: Keytab,
    /// Principals of this realm are users of the same name.
    pub realm: String,
    /// Users, folded, of other principals, `name@REALM`.
    pub users: BTreeMap<String, String>,
}

impl Kerberos {
    /// The user, folded, that a principal stands for; it need not be defined.
    pub fn user_of(&self, client: &Principal) -> Option<String> {
        if let Some(user) = self.users.get(&client.to_string()) {
            return Some(user.clone());
        }
        // Services and hosts (`name/instance`) are no users.
        let may = client.realm == self.realm && !client.name.contains('/');
        (may && folds_to_itself(&client.name)).then(|| users::fold(&client.name))
    }
}

/// Whether a name differs from what it is folded to by case alone. To whoever gives out principals
/// `admın` and `admin` are two; who is to be a user under such a name is written into the table.
fn folds_to_itself(name: &str) -> bool {
    let lower = |c: char| c.to_lowercase().collect::<String>();
    name.chars().all(|c| c.to_uppercase().map(lower).collect::<String>() == lower(c))
}

impl Check<'_> {
    /// Reads and checks the table; `known` are the users that are defined, folded.
    pub(super) fn kerberos(
        &self,
        section: &Section,
        known: &BTreeMap<String, String>,
    ) -> Result<Kerberos, ConfigError> {
        let key = "kerberos.keytab";
        let path = self.secret_path(key, Path::new(&section.keytab))?;
        let bytes = std::fs::read(&path)
            .map(zeroize::Zeroizing::new)
            .map_err(|source| ConfigError::Read { path: path.clone(), source })?;
        let keytab = Keytab::parse(&bytes)
            .map_err(|error| self.bad(key, format!("{}: {error}", path.display())))?;
        let Some(first) = keytab.entries.first() else {
            let text = "has no key of an encryption type that is spoken (aes128 and aes256)";
            return Err(self.bad(key, format!("{} {text}", path.display())));
        };
        let realm = section.realm.clone().unwrap_or_else(|| first.realm.clone());
        let mut users = BTreeMap::new();
        for (principal, user) in &section.users {
            let folded = users::fold(user);
            let key = format!("kerberos.users.{principal:?}");
            if !known.contains_key(&folded) {
                return Err(self.bad(&key, format!("{user:?} is not defined")));
            }
            if !principal.contains('@') {
                return Err(self.bad(&key, "write the principal with its realm: name@REALM"));
            }
            users.insert(principal.clone(), folded);
        }
        Ok(Kerberos { keytab, realm, users })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use smb_protocol::kerberos::{
        crypto::{Etype, Key},
        keytab::Entry,
    };

    use super::*;
    use crate::config::Config;

    #[test]
    fn principals_are_users_of_the_realm_or_as_mapped() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keytab");
        let key = Key::new(Etype::Aes128Sha256, &[1; 16]).unwrap();
        let (name, realm) = ("cifs/files".to_owned(), "HOME".to_owned());
        let keytab = Keytab { entries: vec![Entry { name, realm, version: 1, key }] };
        std::fs::write(&path, keytab.encode()).unwrap();
        let text = "[server]\nlisten=['127.0.0.1:0']\nstate_dir='x'\n\
                    [kerberos]\nkeytab='keytab'\n[kerberos.users]\n'bob@AWAY'='Robert'\n\
                    [[user]]\nname='alice'\n[[user]]\nname='Robert'\npassword='p'\n";
        let parse = |text: &str| {
            Config::parse(text, &folder.path().join("c")).map_err(|error| error.to_string())
        };
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(parse(text).unwrap_err().contains("chmod 600"));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        let config = parse(text).unwrap();
        // Who has no password has no hash that anything could match.
        assert!(!config.users.contains_key("ALICE") && config.user_names.contains_key("ALICE"));
        let kerberos = config.kerberos.unwrap();
        let user = |name: &str, realm: &str| {
            kerberos.user_of(&Principal { name: name.into(), realm: realm.into() })
        };
        assert_eq!(user("alice", "HOME").as_deref(), Some("ALICE"));
        assert_eq!(user("bob", "AWAY").as_deref(), Some("ROBERT"));
        assert_eq!(user("alice", "AWAY"), None);
        // Others than the user to who gives out principals.
        for name in ["al\u{131}ce", "\u{17f}am", "stra\u{df}e", "o\u{fb01}", "\u{b5}"] {
            assert_eq!(user(name, "HOME"), None, "{name}");
        }
        assert_eq!(user("Müller", "HOME").as_deref(), Some("MÜLLER"));
        assert_eq!(user("host/alice", "HOME"), None);
        let wrong = text.replace("'Robert'\n\n", "").replace("'bob@AWAY'='Robert'", "'b@A'='nn'");
        assert!(parse(&wrong).unwrap_err().contains("\"nn\" is not defined"));
        let plain = text.replace("[kerberos]\nkeytab='keytab'\n[kerberos.users]\n", "");
        assert!(
            parse(&plain.replace("'bob@AWAY'='Robert'\n", "")).unwrap_err().contains("exactly")
        );
        std::fs::write(&path, [5, 2]).unwrap();
        assert!(parse(text).unwrap_err().contains("no key"));
    }
}

//! `[[user]]` and the users file.

use std::{
    collections::{BTreeMap, HashSet},
    path::PathBuf,
};

use schemars::JsonSchema;
use serde::Deserialize;
use smb_protocol::ntlm::{NtHash, users};
use zeroize::Zeroizing;

use super::{Check, ConfigError, File};
use crate::rpc::accounts;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Section {
    pub(super) name: String,
    #[schemars(with = "Option<String>")]
    password: Option<Zeroizing<String>>,
    #[schemars(with = "Option<String>")]
    nt_hash: Option<Zeroizing<String>>,
    password_file: Option<PathBuf>,
}

impl Check<'_> {
    /// Hashes and written names by folded name.
    #[expect(clippy::type_complexity, reason = "two maps with the same keys")]
    pub(super) fn users(
        &self,
        file: &File,
    ) -> Result<(BTreeMap<String, NtHash>, BTreeMap<String, String>), ConfigError> {
        let mut all = BTreeMap::new();
        let mut names = BTreeMap::new();
        for user in &file.user {
            let key = format!("user {:?}", user.name);
            if !users::is_user_name(&user.name) {
                return Err(self.bad(&key, "not a user name"));
            }
            let hash = match (&user.password, &user.nt_hash, &user.password_file) {
                (Some(password), None, None) => {
                    if password.is_empty() {
                        return Err(self.bad(&key, "the password is empty"));
                    }
                    NtHash::of_password(password)
                }
                (None, Some(hash), None) => hash
                    .parse()
                    .map_err(|e: smb_protocol::ntlm::ParseHashError| self.bad(&key, e))?,
                (None, None, Some(path)) => {
                    let text = self.secret_file(&key, path)?;
                    let line = text.lines().next().unwrap_or("");
                    if line.is_empty() {
                        return Err(self.bad(&key, "the password file is empty"));
                    }
                    NtHash::of_password(line)
                }
                // Such a user can come with a ticket only.
                (None, None, None) if file.kerberos.is_some() => {
                    if names.insert(users::fold(&user.name), user.name.clone()).is_some() {
                        return Err(self.bad(&key, "defined twice"));
                    }
                    continue;
                }
                _ => {
                    return Err(
                        self.bad(&key, "give exactly one of password, nt_hash, password_file")
                    );
                }
            };
            all.insert(users::fold(&user.name), hash);
            if names.insert(users::fold(&user.name), user.name.clone()).is_some() {
                return Err(self.bad(&key, "defined twice"));
            }
        }
        if let Some(path) = &file.server.users_file {
            let text = self.secret_file("server.users_file", path)?;
            let list = users::parse(&text)
                .map_err(|e| self.bad("server.users_file", format!("{}: {e}", path.display())))?;
            for user in list {
                all.insert(users::fold(&user.name), user.hash);
                if names.insert(users::fold(&user.name), user.name.clone()).is_some() {
                    return Err(self.bad(&format!("user {:?}", user.name), "defined twice"));
                }
            }
        }
        let mut numbers = BTreeMap::new();
        for (folded, name) in &names {
            if let Some(other) = numbers.insert(accounts::rid(folded), name) {
                let key = format!("user {name:?}");
                return Err(self.bad(&key, format!("has the number of {other:?}; rename one")));
            }
        }
        Ok((all, names))
    }

    /// The folded names of users, who must be defined.
    pub(super) fn known(
        &self,
        names: &[String],
        users: &BTreeMap<String, String>,
        key: &str,
    ) -> Result<HashSet<String>, ConfigError> {
        let mut known = HashSet::new();
        for name in names {
            let folded = users::fold(name);
            if !users.contains_key(&folded) {
                return Err(self.bad(key, format!("{name:?} is not defined")));
            }
            known.insert(folded);
        }
        Ok(known)
    }
}

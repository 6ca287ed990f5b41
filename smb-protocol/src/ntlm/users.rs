//! The text of a users file: names and NT hashes in TOML.
//!
//! ```toml
//! [[user]]
//! name = "admin"
//! nt_hash = "a4f49c406510bdcab6824ee7c30fd852"
//! ```
//!
//! Reading and writing the file, with mode 0600, is the caller's.

use std::collections::HashSet;

use serde::Deserialize;
use zeroize::Zeroizing;

use super::{NtHash, compute::upper};

/// One user of a users file.
#[derive(Clone, Debug)]
pub struct User {
    /// Name; unique without regard to case.
    pub name: String,
    /// Hash of the password.
    pub hash: NtHash,
}

/// Why a users file is not accepted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UsersError {
    /// Not TOML of the expected form; says where, without repeating a value.
    #[error("line {line}: {message}")]
    Syntax {
        /// Line, from 1.
        line: usize,
        /// What is wrong.
        message: String,
    },
    /// A name that cannot be logged on with.
    #[error("{0:?} is not a user name")]
    Name(String),
    /// A name twice.
    #[error("user {0:?} is defined twice")]
    Twice(String),
    /// A hash that is none.
    #[error("user {0:?}: an NT hash is 32 hexadecimal digits")]
    Hash(String),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    #[serde(default)]
    user: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    nt_hash: Zeroizing<String>,
}

/// Whether a name can be a user's: 1 to 104 characters, none of `" / \ [ ] : ; | = , + * ? < >`,
/// no control characters.
#[must_use]
pub fn is_user_name(name: &str) -> bool {
    (1..=104).contains(&name.chars().count())
        && !name.chars().any(|c| c.is_control() || "\"/\\[]:;|=,+*?<>".contains(c))
}

/// Names as they are compared.
#[must_use]
pub fn fold(name: &str) -> String {
    upper(name)
}

/// Reads the text of a users file.
///
/// # Errors
/// The text is not TOML of the expected form, or a name or hash is none, or a name is there twice.
pub fn parse(text: &str) -> Result<Vec<User>, UsersError> {
    let document: Document = toml::from_str(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start);
        let line = text.as_bytes()[..at.min(text.len())].iter().filter(|b| **b == b'\n').count();
        UsersError::Syntax { line: line + 1, message: error.message().to_owned() }
    })?;
    let mut seen = HashSet::new();
    let mut users = Vec::with_capacity(document.user.len());
    for Entry { name, nt_hash } in document.user {
        if !is_user_name(&name) {
            return Err(UsersError::Name(name));
        }
        if !seen.insert(fold(&name)) {
            return Err(UsersError::Twice(name));
        }
        let Ok(hash) = nt_hash.parse() else { return Err(UsersError::Hash(name)) };
        users.push(User { name, hash });
    }
    Ok(users)
}

/// Writes the text of a users file; [`parse`] reads it back.
#[must_use]
pub fn encode(users: &[User]) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::from(
        "# Users of the file server. An NT hash is as good as the password: keep this file secret.\n",
    ));
    for user in users {
        text.push_str("\n[[user]]\nname = ");
        text.push_str(&toml::Value::from(&*user.name).to_string());
        text.push_str("\nnt_hash = \"");
        text.push_str(&user.hash.to_hex());
        text.push_str("\"\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn errors_say_where_and_hide_hashes() {
        let secret = "a4f49c406510bdcab6824ee7c30fd85";
        let text = format!("[[user]]\nname = \"a\"\nnt_hash = \"{secret}\"\n");
        let error = parse(&text).unwrap_err().to_string();
        assert_eq!(error, "user \"a\": an NT hash is 32 hexadecimal digits");
        let error = parse("[[user]]\nname = \"a\"\nhash = \"x\"\n").unwrap_err().to_string();
        assert!(error.starts_with("line 3: unknown field `hash`"), "{error}");
        let two = "[[user]]\nname='a'\nnt_hash='00000000000000000000000000000000'\n";
        let error = parse(&format!("{two}{}", two.replace("'a'", "'A'"))).unwrap_err();
        assert!(matches!(error, UsersError::Twice(name) if name == "A"));
        for name in ["", "a/b", "a\\b", "tab\t"] {
            assert!(!is_user_name(name), "{name:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn round_trips(names in prop::collection::vec("[\\PC&&[^\"/\\\\\\[\\]:;|=,+*?<>]]{1,12}", 0..5)) {
            let mut seen = HashSet::new();
            let users: Vec<User> = names
                .into_iter()
                .filter(|name| is_user_name(name) && seen.insert(fold(name)))
                .map(|name| User { hash: NtHash::of_password(&name), name })
                .collect();
            let back = parse(&encode(&users)).unwrap();
            prop_assert_eq!(back.len(), users.len());
            for (a, b) in back.iter().zip(&users) {
                prop_assert_eq!(&a.name, &b.name);
                prop_assert_eq!(&a.hash, &b.hash);
            }
        }

        #[test]
        fn parsing_is_total(text in "\\PC{0,200}") {
            let _ = parse(&text).map_err(|error| error.to_string());
        }
    }
}

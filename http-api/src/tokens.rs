//! Tokens: what somebody shows instead of a password, for a time. Only their hashes are kept.
//!
//! A token has 32 bytes of random numbers, so a plain hash of them is enough: there is nothing to
//! guess. The number before them says which it is, so none is searched for by its secret.

use std::{
    collections::BTreeMap,
    fmt::Write,
    io,
    path::{Path, PathBuf},
};

use aws_lc_rs::{constant_time::verify_slices_are_equal, digest};
use control_socket::Role;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::files;

/// What a token begins with, so that one that was lost is known for what it is.
const BEGINS: &str = "bhk1";

/// Bytes of the secret.
const SECRET: usize = 32;

/// Tokens that there may be.
const MOST: usize = 4096;

/// Tokens of one user that were made on purpose, and as many of log-ins.
const MOST_OF_ONE: usize = 64;

/// How long a token is remembered after its time, in seconds: who shows it then has guessed nothing.
const REMEMBERED: u64 = 7 * 24 * 3600;

/// A token as it is kept. Times are seconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Token {
    /// Its number.
    pub(crate) id: u64,
    /// Whose it is.
    pub(crate) user: String,
    /// What it is good for at most.
    pub(crate) role: Role,
    /// Since when.
    pub(crate) created: u64,
    /// Until when.
    pub(crate) expires: u64,
    /// What it is for, in its maker's words.
    pub(crate) note: String,
    /// It came of a log-in: the next one may take its place.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) log_in: bool,
    /// SHA-256 of the secret, in hexadecimal.
    hash: String,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    /// The next number.
    next: u64,
    tokens: Vec<Token>,
}

/// All tokens, and the file that has them.
#[derive(Debug)]
pub(crate) struct Tokens {
    path: PathBuf,
    next: u64,
    all: BTreeMap<u64, Token>,
}

/// Why there is no new token.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TokenError {
    /// There are too many.
    #[error("there are too many tokens: revoke some")]
    TooMany,
    /// It could not be kept.
    #[error("the token cannot be kept")]
    Io(#[from] io::Error),
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn hash(secret: &str) -> String {
    hex(digest::digest(&digest::SHA256, secret.as_bytes()).as_ref())
}

/// The number and the secret of a text that could be a token.
fn parts(text: &str) -> Option<(u64, &str)> {
    let (id, secret) = text.strip_prefix(BEGINS)?.strip_prefix('_')?.split_once('_')?;
    let digits = |text: &str| text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let fits = (1..=16).contains(&id.len()) && secret.len() == SECRET * 2;
    (fits && digits(id) && digits(secret)).then_some(())?;
    Some((u64::from_str_radix(id, 16).ok()?, secret))
}

impl Tokens {
    /// Reads a file; without one there are none.
    ///
    /// # Errors
    /// If it cannot be read, or is not what was written.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let file = match files::read_private(path) {
            Ok(text) => serde_json::from_str::<File>(&text).map_err(|error| {
                io::Error::other(format!("{}: line {} is damaged", path.display(), error.line()))
            })?,
            Err(_) if !path.exists() => File::default(),
            Err(why) => return Err(io::Error::other(format!("{}: {why}", path.display()))),
        };
        let all = file.tokens.into_iter().map(|token| (token.id, token)).collect();
        Ok(Self { path: path.to_owned(), next: file.next.max(1), all })
    }

    fn save(&self) -> io::Result<()> {
        let file = File { next: self.next, tokens: self.all.values().cloned().collect() };
        let text = serde_json::to_string(&file).map_err(io::Error::other)?;
        files::replace_private(&self.path, &text)
    }

    /// Makes a token, which is durable with the answer; those that have expired go in time. The text is
    /// nowhere but in the answer. That of a log-in takes the place of the user's oldest one of a log-in, if
    /// there are too many; no other token goes for it.
    ///
    /// # Errors
    /// If there are too many, or it cannot be kept.
    pub(crate) fn make(
        &mut self,
        (user, role): (&str, Role),
        (now, expires): (u64, u64),
        (note, log_in): (&str, bool),
    ) -> Result<(Token, Zeroizing<String>), TokenError> {
        self.forget(now);
        let own = |token: &&Token| token.user == user && token.log_in == log_in;
        let count = self.all(now).filter(own).count();
        let full = self.all(now).count() >= MOST || count >= MOST_OF_ONE;
        let oldest = self.all(now).filter(own).min_by_key(|token| token.id);
        let replaced = match oldest {
            _ if !full => None,
            Some(oldest) if log_in => Some(oldest.id),
            _ => return Err(TokenError::TooMany),
        };
        let mut secret = Zeroizing::new([0; SECRET]);
        aws_lc_rs::rand::fill(&mut *secret)
            .map_err(|_| io::Error::other("the system has no random numbers"))?;
        let secret = Zeroizing::new(hex(&*secret));
        let id = self.next;
        let (user, note, hash) = (user.to_owned(), note.to_owned(), hash(&secret));
        let token = Token { id, user, role, created: now, expires, note, log_in, hash };
        self.next += 1;
        let replaced = replaced.and_then(|id| self.all.remove(&id));
        self.all.insert(id, token.clone());
        if let Err(error) = self.save() {
            self.all.remove(&id);
            self.all.extend(replaced.map(|token| (token.id, token)));
            return Err(error.into());
        }
        Ok((token, Zeroizing::new(format!("{BEGINS}_{id:x}_{}", *secret))))
    }

    /// Forgets tokens some time after they were good, and the oldest of them where these are many.
    fn forget(&mut self, now: u64) {
        self.all.retain(|_, token| token.expires + REMEMBERED > now);
        while self.all.len() >= 2 * MOST {
            let old = self.all.values().filter(|token| token.expires <= now);
            let Some(id) = old.map(|token| token.id).min() else { return };
            self.all.remove(&id);
        }
    }

    /// The token that a text is, whether it is good now or was.
    fn find(&self, text: &str) -> Option<&Token> {
        let (id, secret) = parts(text)?;
        let token = self.all.get(&id)?;
        let equal = verify_slices_are_equal(hash(secret).as_bytes(), token.hash.as_bytes());
        equal.is_ok().then_some(token)
    }

    /// The token that a text is, if it is good now.
    pub(crate) fn check(&self, text: &str, now: u64) -> Option<&Token> {
        self.find(text).filter(|token| token.expires > now)
    }

    /// Whether a text is a token whose time is over.
    pub(crate) fn has_expired(&self, text: &str, now: u64) -> bool {
        self.find(text).is_some_and(|token| token.expires <= now)
    }

    /// A token by its number, if it is good now.
    pub(crate) fn get(&self, id: u64, now: u64) -> Option<&Token> {
        self.all.get(&id).filter(|token| token.expires > now)
    }

    /// All that are good now.
    pub(crate) fn all(&self, now: u64) -> impl Iterator<Item = &Token> {
        self.all.values().filter(move |token| token.expires > now)
    }

    /// Takes a token away, also from who has just shown it.
    ///
    /// # Errors
    /// If that cannot be kept; then it is good as before.
    pub(crate) fn revoke(&mut self, id: u64) -> io::Result<Option<Token>> {
        let Some(token) = self.all.remove(&id) else { return Ok(None) };
        if let Err(error) = self.save() {
            self.all.insert(id, token);
            return Err(error);
        }
        Ok(Some(token))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;

    fn tokens(folder: &Path) -> Tokens {
        Tokens::open(&folder.join("tokens")).unwrap()
    }

    #[test]
    fn a_token_is_good_until_it_expires_or_is_revoked() {
        let folder = tempfile::tempdir().unwrap();
        let mut all = tokens(folder.path());
        let (token, text) =
            all.make(("alice", Role::Operator), (100, 200), ("for cron", false)).unwrap();
        assert_eq!(all.check(&text, 199), Some(&token));
        assert_eq!(all.check(&text, 200), None);
        let mut again = tokens(folder.path());
        assert_eq!(again.check(&text, 150), Some(&token), "it outlives the server");
        let kept = fs::read_to_string(folder.path().join("tokens")).unwrap();
        assert!(!kept.contains(text.rsplit('_').next().unwrap()), "only its hash is kept");
        let (other, _) = again.make(("bob", Role::Viewer), (150, 300), ("", false)).unwrap();
        assert_ne!(other.id, token.id);
        assert_eq!(again.revoke(token.id).unwrap(), Some(token.clone()));
        assert_eq!(again.revoke(token.id).unwrap(), None);
        assert_eq!(again.check(&text, 150), None);
        assert_eq!(tokens(folder.path()).all(150).count(), 1);
        let (third, _) = again.make(("bob", Role::Viewer), (400, 500), ("", false)).unwrap();
        assert!(third.id > other.id, "no number is given twice");
        assert_eq!(again.all(400).count(), 1, "what expired is gone");
    }

    #[test]
    fn one_user_has_so_many_tokens_and_no_more() {
        let folder = tempfile::tempdir().unwrap();
        let mut all = tokens(folder.path());
        for _ in 0..MOST_OF_ONE {
            all.make(("alice", Role::Viewer), (0, 10), ("", false)).unwrap();
        }
        assert!(all.make(("alice", Role::Viewer), (0, 10), ("", false)).is_err());
        all.make(("bob", Role::Viewer), (0, 10), ("", false)).unwrap();
        all.make(("alice", Role::Viewer), (10, 20), ("", false)).unwrap();
    }

    #[test]
    fn a_log_in_takes_the_place_of_the_oldest_log_in_and_of_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let mut all = tokens(folder.path());
        let mut make = |note, log_in| all.make(("alice", Role::Viewer), (0, 10), (note, log_in));
        let (program, _) = make("log-in", false).unwrap();
        let first: Vec<_> = (0..MOST_OF_ONE).map(|_| make("log-in", true).unwrap().0.id).collect();
        let (last, _) = make("log-in", true).unwrap();
        assert!((1..MOST_OF_ONE).all(|_| make("", false).is_ok()), "log-ins take no other's room");
        assert!(make("", false).is_err());
        make("", true).unwrap();
        let left: Vec<_> = tokens(folder.path()).all(5).map(|token| token.id).collect();
        assert!(left.contains(&program.id) && left.contains(&last.id));
        assert!(!left.contains(&first[0]) && !left.contains(&first[1]) && left.contains(&first[2]));
    }

    #[test]
    fn a_token_whose_time_is_over_is_still_known_for_a_while() {
        let folder = tempfile::tempdir().unwrap();
        let mut all = tokens(folder.path());
        let (_, text) = all.make(("alice", Role::Viewer), (0, 10), ("", false)).unwrap();
        assert!(!all.has_expired(&text, 9) && all.has_expired(&text, 10));
        let other = text.replace(&text[text.len() - 4..], "0000");
        assert!(!all.has_expired(&other, 10) && !all.has_expired("", 10));
        all.make(("bob", Role::Viewer), (10, 20), ("", false)).unwrap();
        assert!(tokens(folder.path()).has_expired(&text, 10), "it outlives the server, too");
        let late = 11 + REMEMBERED;
        all.make(("bob", Role::Viewer), (late, late + 1), ("", false)).unwrap();
        assert!(!all.has_expired(&text, late));
    }

    #[test]
    fn a_damaged_file_is_not_taken_for_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens");
        files::replace_private(&path, "{\"next\":1,").unwrap();
        assert!(Tokens::open(&path).unwrap_err().to_string().contains("damaged"));
    }

    proptest! {
        #[test]
        fn no_other_text_is_a_token(place in 0usize..80, byte in any::<char>(), any in "\\PC{0,90}") {
            let folder = tempfile::tempdir().unwrap();
            let mut all = tokens(folder.path());
            let (_, text) = all.make(("a", Role::Viewer), (0, 10), ("", false)).unwrap();
            let mut other: Vec<char> = text.chars().collect();
            let place = place % other.len();
            other[place] = byte;
            let other: String = other.into_iter().collect();
            prop_assert_eq!(all.check(&other, 5).is_some(), other == *text);
            prop_assert!(all.check(&any, 5).is_none());
        }
    }
}

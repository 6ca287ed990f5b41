//! CHAP as iSCSI uses it (RFC 7143 12.1.3, RFC 1994).
//!
//! ```text
//!   CHAP_A=list ─► choose ─► CHAP_A, CHAP_I, CHAP_C ─► CHAP_N, CHAP_R ─► verified
//!                                                  (and CHAP_I, CHAP_C: mutual, answered)
//! ```

use std::fmt;

use aws_lc_rs::{constant_time::verify_slices_are_equal, digest, rand};
use md5::{Digest, Md5};
use zeroize::Zeroizing;

use crate::text::{Pair, number};

/// A secret has 96 bits at least (RFC 7143 9.2.1).
pub const SECRET_MINIMUM: usize = 12;
/// The longest challenge that is taken, in bytes (RFC 7143 12.1.3).
pub(crate) const CHALLENGE_LIMIT: usize = 1024;
/// Bytes of a challenge of the target: as many as the longest hash.
const CHALLENGE: usize = 32;

/// How a response is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Algorithm {
    /// MD5, which all initiators have.
    Md5 = 5,
    /// SHA-1.
    Sha1 = 6,
    /// SHA-256.
    Sha256 = 7,
    /// SHA3-256.
    Sha3 = 8,
}

impl Algorithm {
    /// All that are known.
    pub const ALL: [Self; 4] = [Self::Md5, Self::Sha1, Self::Sha256, Self::Sha3];

    pub(crate) fn hash(self, id: u8, secret: &[u8], challenge: &[u8]) -> Vec<u8> {
        let algorithm = match self {
            Self::Md5 => {
                let mut hash = Md5::new();
                hash.update([id]);
                hash.update(secret);
                hash.update(challenge);
                return hash.finalize().to_vec();
            }
            Self::Sha1 => &digest::SHA1_FOR_LEGACY_USE_ONLY,
            Self::Sha256 => &digest::SHA256,
            Self::Sha3 => &digest::SHA3_256,
        };
        let mut hash = digest::Context::new(algorithm);
        hash.update(&[id]);
        hash.update(secret);
        hash.update(challenge);
        hash.finish().as_ref().to_vec()
    }
}

/// A name and a secret, which is wiped and never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Account {
    /// CHAP_N.
    pub name: String,
    pub(crate) secret: Zeroizing<Vec<u8>>,
}

impl fmt::Debug for Account {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Account").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Why settings of CHAP are not good enough.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// A secret is too short to withstand guessing.
    #[error("the secret of {name} has {length} bytes; {SECRET_MINIMUM} are the least")]
    Short {
        /// Whose it is.
        name: String,
        /// Its bytes.
        length: usize,
    },
    /// The target would prove itself with the secret of an initiator.
    #[error("the target's secret is also that of {0}")]
    Shared(String),
    /// Nobody could log in.
    #[error("CHAP with no accounts or no algorithms")]
    Nobody,
}

impl Account {
    /// An account.
    ///
    /// # Errors
    /// [`SettingsError::Short`].
    pub fn new(name: impl Into<String>, secret: &[u8]) -> Result<Self, SettingsError> {
        let name = name.into();
        if secret.len() < SECRET_MINIMUM {
            return Err(SettingsError::Short { name, length: secret.len() });
        }
        Ok(Self { name, secret: Zeroizing::new(secret.to_vec()) })
    }

    /// CHAP_R to a challenge with an identifier (RFC 1994 4.1).
    #[must_use]
    pub fn response(&self, algorithm: Algorithm, id: u8, challenge: &[u8]) -> Vec<u8> {
        algorithm.hash(id, &self.secret, challenge)
    }
}

/// Who may log in, and how the target proves itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChapSettings {
    initiators: Vec<Account>,
    target: Option<Account>,
    algorithms: Vec<Algorithm>,
}

impl ChapSettings {
    /// Settings; with `target` initiators may ask the target to prove itself.
    ///
    /// # Errors
    /// [`SettingsError`] if nobody could log in, or the target's secret is also an initiator's: its
    /// answer could then be given back to it.
    pub fn new(
        initiators: Vec<Account>,
        target: Option<Account>,
        algorithms: Vec<Algorithm>,
    ) -> Result<Self, SettingsError> {
        if initiators.is_empty() || algorithms.is_empty() {
            return Err(SettingsError::Nobody);
        }
        let ours = target.as_ref().map(|account| &account.secret);
        if let Some(same) = initiators.iter().find(|account| Some(&account.secret) == ours) {
            return Err(SettingsError::Shared(same.name.clone()));
        }
        Ok(Self { initiators, target, algorithms })
    }
}

/// Why an initiator is not who it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChapError {
    /// A key of this step is not there.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A key of this step has a value that it cannot have.
    #[error("{0} is not valid")]
    Invalid(&'static str),
    /// No algorithm is known to both.
    #[error("no algorithm in common")]
    Algorithm,
    /// Name or response are wrong; nobody learns which.
    #[error("wrong name or response")]
    Wrong,
    /// The initiator's challenge is the target's own.
    #[error("the challenge was reflected")]
    Reflected,
    /// The initiator wants proof that this target does not have.
    #[error("this target does not prove itself")]
    NotMutual,
    /// There is no randomness.
    #[error("no random numbers")]
    Random,
}

#[derive(Debug, Clone)]
enum State {
    Start,
    Challenged { algorithm: Algorithm, id: u8, challenge: [u8; CHALLENGE] },
    Done,
}

/// One login's CHAP, on the target's side.
#[derive(Debug, Clone)]
pub struct Chap {
    settings: ChapSettings,
    state: State,
}

impl Chap {
    /// One that has not begun.
    #[must_use]
    pub fn new(settings: ChapSettings) -> Self {
        Self { settings, state: State::Start }
    }

    /// Whether the initiator proved who it is.
    #[must_use]
    pub fn is_done(&self) -> bool {
        matches!(self.state, State::Done)
    }

    /// Takes the keys of one request and gives those of the response.
    ///
    /// # Errors
    /// [`ChapError`]; the login fails with it.
    pub fn step(&mut self, pairs: &[Pair]) -> Result<Vec<Pair>, ChapError> {
        match self.state.clone() {
            State::Start => self.challenge(pairs),
            State::Challenged { algorithm, id, challenge } => {
                let answer = self.verify(pairs, algorithm, id, &challenge)?;
                self.state = State::Done;
                Ok(answer)
            }
            State::Done => Ok(Vec::new()),
        }
    }

    fn challenge(&mut self, pairs: &[Pair]) -> Result<Vec<Pair>, ChapError> {
        let offers = value(pairs, "CHAP_A")?;
        let known = |offer: &str| {
            let code = number(offer)?;
            self.settings.algorithms.iter().copied().find(|it| u64::from(*it as u8) == code)
        };
        let algorithm = offers.split(',').find_map(known).ok_or(ChapError::Algorithm)?;
        let mut id = [0];
        let mut challenge = [0; CHALLENGE];
        rand::fill(&mut id).map_err(|_| ChapError::Random)?;
        rand::fill(&mut challenge).map_err(|_| ChapError::Random)?;
        self.state = State::Challenged { algorithm, id: id[0], challenge };
        Ok(vec![
            pair("CHAP_A", (algorithm as u8).to_string()),
            pair("CHAP_I", id[0].to_string()),
            pair("CHAP_C", hexadecimal(&challenge)),
        ])
    }

    fn verify(
        &self,
        pairs: &[Pair],
        algorithm: Algorithm,
        id: u8,
        challenge: &[u8],
    ) -> Result<Vec<Pair>, ChapError> {
        let name = value(pairs, "CHAP_N")?;
        let response = binary(value(pairs, "CHAP_R")?, 64).ok_or(ChapError::Invalid("CHAP_R"))?;
        let account = self.settings.initiators.iter().find(|account| account.name == name);
        // Who is not known costs the same as whose response is wrong.
        let secret = account.map_or(&b"no such account"[..], |account| &account.secret);
        let right = algorithm.hash(id, secret, challenge);
        let equal = verify_slices_are_equal(&right, &response).is_ok();
        if !equal || account.is_none() {
            return Err(ChapError::Wrong);
        }
        if !pairs.iter().any(|(key, _)| key == "CHAP_I" || key == "CHAP_C") {
            return Ok(Vec::new());
        }
        let theirs = number(value(pairs, "CHAP_I")?).and_then(|n| u8::try_from(n).ok());
        let theirs = theirs.ok_or(ChapError::Invalid("CHAP_I"))?;
        let their_challenge = binary(value(pairs, "CHAP_C")?, CHALLENGE_LIMIT)
            .filter(|bytes| !bytes.is_empty())
            .ok_or(ChapError::Invalid("CHAP_C"))?;
        if their_challenge == challenge {
            return Err(ChapError::Reflected);
        }
        let ours = self.settings.target.as_ref().ok_or(ChapError::NotMutual)?;
        let response = algorithm.hash(theirs, &ours.secret, &their_challenge);
        Ok(vec![pair("CHAP_N", ours.name.clone()), pair("CHAP_R", hexadecimal(&response))])
    }
}

fn pair(key: &str, value: String) -> Pair {
    (key.to_owned(), value)
}

pub(crate) fn value<'a>(pairs: &'a [Pair], key: &'static str) -> Result<&'a str, ChapError> {
    pairs
        .iter()
        .find_map(|(name, value)| (name == key).then_some(value.as_str()))
        .ok_or(ChapError::Missing(key))
}

/// `0x` and two digits for each byte.
#[must_use]
pub fn hexadecimal(bytes: &[u8]) -> String {
    use fmt::Write;
    let mut out = String::from("0x");
    for byte in bytes {
        let _ = write!(out, "{byte:02x}");
    }
    out
}

/// A binary value in hexadecimal or Base64 digits of at most `limit` bytes (RFC 7143 6.1).
#[must_use]
pub fn binary(text: &str, limit: usize) -> Option<Vec<u8>> {
    let (mark, digits) = (text.get(..2)?, text.get(2..)?.as_bytes());
    if digits.len() > limit * 2 + 4 {
        return None;
    }
    let bytes = match mark {
        "0x" | "0X" => from_hexadecimal(digits)?,
        "0b" | "0B" => from_base64(digits)?,
        _ => return None,
    };
    (bytes.len() <= limit).then_some(bytes)
}

fn from_hexadecimal(digits: &[u8]) -> Option<Vec<u8>> {
    let nibble = |digit: u8| char::from(digit).to_digit(16).and_then(|n| u8::try_from(n).ok());
    let (head, rest) = digits.split_at(digits.len() % 2);
    let mut out = head.iter().map(|digit| nibble(*digit)).collect::<Option<Vec<u8>>>()?;
    for two in rest.chunks_exact(2) {
        out.push(nibble(two[0])? << 4 | nibble(two[1])?);
    }
    Some(out)
}

fn from_base64(digits: &[u8]) -> Option<Vec<u8>> {
    let end = digits.iter().rposition(|digit| *digit != b'=').map_or(0, |at| at + 1);
    if digits.len() - end > 2 {
        return None;
    }
    let (mut out, mut bits, mut count) = (Vec::new(), 0u32, 0);
    for digit in &digits[..end] {
        let six = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(six);
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push((bits >> count) as u8);
            bits &= (1 << count) - 1;
        }
    }
    (bits == 0 && count < 6).then_some(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn settings(target: bool) -> ChapSettings {
        let initiator = Account::new("alice", b"a secret of alice").unwrap();
        let target = target.then(|| Account::new("target", b"another secret!").unwrap());
        ChapSettings::new(vec![initiator], target, Algorithm::ALL.to_vec()).unwrap()
    }

    fn pairs(list: &[(&str, &str)]) -> Vec<Pair> {
        list.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
    }

    fn challenged(chap: &mut Chap, offers: &str) -> (Algorithm, u8, Vec<u8>) {
        let answer = chap.step(&pairs(&[("CHAP_A", offers)])).unwrap();
        let code = number(value(&answer, "CHAP_A").unwrap()).unwrap();
        let algorithm = Algorithm::ALL.into_iter().find(|it| u64::from(*it as u8) == code).unwrap();
        let id = number(value(&answer, "CHAP_I").unwrap()).unwrap();
        let challenge = binary(value(&answer, "CHAP_C").unwrap(), 1024).unwrap();
        (algorithm, u8::try_from(id).unwrap(), challenge)
    }

    #[test]
    fn who_knows_the_secret_is_let_in_by_every_algorithm() {
        for offer in ["5", "6,5", "7,5", "9,8"] {
            let mut chap = Chap::new(settings(false));
            let (algorithm, id, challenge) = challenged(&mut chap, offer);
            let response = hexadecimal(&algorithm.hash(id, b"a secret of alice", &challenge));
            let answer = chap.step(&pairs(&[("CHAP_N", "alice"), ("CHAP_R", &response)]));
            assert_eq!(answer, Ok(Vec::new()));
            assert!(chap.is_done());
        }
    }

    #[test]
    fn the_hashes_are_those_of_others() {
        // printf '\x01secret secret\x02' | md5sum, sha1sum, sha256sum, openssl dgst -sha3-256
        let right = [
            (Algorithm::Md5, 16),
            (Algorithm::Sha1, 20),
            (Algorithm::Sha256, 32),
            (Algorithm::Sha3, 32),
        ];
        for (algorithm, length) in right {
            assert_eq!(algorithm.hash(1, b"secret secret", &[2]).len(), length);
        }
        let md5 = Algorithm::Md5.hash(b'a', b"b", b"c");
        assert_eq!(hexadecimal(&md5), "0x900150983cd24fb0d6963f7d28e17f72");
        let sha1 = Algorithm::Sha1.hash(b'a', b"b", b"c");
        assert_eq!(hexadecimal(&sha1), "0xa9993e364706816aba3e25717850c26c9cd0d89d");
        let sha3 = Algorithm::Sha3.hash(b'a', b"b", b"c");
        assert_eq!(
            hexadecimal(&sha3),
            "0x3a985da74fe225b2045c172d6bd390bd855f086e3e9d525b46bfe24511431532"
        );
    }

    #[test]
    fn who_does_not_is_not() {
        let cases = [
            ("alice", "the wrong secret"),
            ("mallory", "a secret of alice"),
            ("mallory", "no such account"),
        ];
        for (name, secret) in cases {
            let mut chap = Chap::new(settings(true));
            let (algorithm, id, challenge) = challenged(&mut chap, "7");
            let response = hexadecimal(&algorithm.hash(id, secret.as_bytes(), &challenge));
            let answer = chap.step(&pairs(&[("CHAP_N", name), ("CHAP_R", &response)]));
            assert_eq!(answer, Err(ChapError::Wrong), "{name}");
            assert!(!chap.is_done());
        }
    }

    #[test]
    fn a_response_is_good_for_one_challenge() {
        let mut first = Chap::new(settings(false));
        let (algorithm, id, challenge) = challenged(&mut first, "5");
        let response = hexadecimal(&algorithm.hash(id, b"a secret of alice", &challenge));
        let mut second = Chap::new(settings(false));
        challenged(&mut second, "5");
        let replayed = second.step(&pairs(&[("CHAP_N", "alice"), ("CHAP_R", &response)]));
        assert_eq!(replayed, Err(ChapError::Wrong));
    }

    #[test]
    fn the_target_proves_itself_and_never_answers_its_own_challenge() {
        let mut chap = Chap::new(settings(true));
        let (algorithm, id, challenge) = challenged(&mut chap, "7");
        let response = hexadecimal(&algorithm.hash(id, b"a secret of alice", &challenge));
        let answer = |theirs: &str| {
            let mut chap = chap.clone();
            chap.step(&pairs(&[
                ("CHAP_N", "alice"),
                ("CHAP_R", &response),
                ("CHAP_I", "0x11"),
                ("CHAP_C", theirs),
            ]))
        };
        let proof = answer("0bAQIDBA==").unwrap();
        let right = hexadecimal(&algorithm.hash(0x11, b"another secret!", &[1, 2, 3, 4]));
        assert_eq!(proof, pairs(&[("CHAP_N", "target"), ("CHAP_R", &right)]));
        assert_eq!(answer(&hexadecimal(&challenge)), Err(ChapError::Reflected));
        assert_eq!(answer("0x"), Err(ChapError::Invalid("CHAP_C")));
    }

    #[test]
    fn weak_settings_are_refused() {
        assert!(matches!(Account::new("a", b"eleven char"), Err(SettingsError::Short { .. })));
        let same = || Account::new("a", b"the same secret").unwrap();
        let shared = ChapSettings::new(vec![same()], Some(same()), Algorithm::ALL.to_vec());
        assert_eq!(shared, Err(SettingsError::Shared("a".to_owned())));
        assert!(!format!("{:?}", same()).contains("secret\""));
    }

    proptest! {
        #[test]
        fn binary_values_come_back(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            prop_assert_eq!(binary(&hexadecimal(&bytes), 100), Some(bytes));
        }

        #[test]
        fn any_text_is_a_binary_value_or_none(text in "\\PC{0,60}", mark in "0x|0b|") {
            if let Some(bytes) = binary(&format!("{mark}{text}"), 20) {
                prop_assert!(bytes.len() <= 20);
            }
        }

        #[test]
        fn any_keys_are_answered_or_refused(
            keys in prop::collection::vec(("CHAP_[AINRC]", "[0-9x,a-f]{0,20}"), 0..8),
        ) {
            let mut chap = Chap::new(settings(true));
            let _ = chap.step(&keys);
            let _ = chap.step(&keys);
            prop_assert!(!chap.is_done());
        }
    }
}

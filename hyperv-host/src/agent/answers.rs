//! What an agent sends, as lines, and what a line says. All of it is a guest's: of any length, at any
//! time, anything.
//!
//! An answer is an object of JSON in one line. A byte 0xff, which no text in UTF-8 has, comes before the
//! answer to `guest-sync-delimited`: whatever was begun before it is over.

use std::collections::VecDeque;

use serde::{Deserialize, de::DeserializeOwned};

/// Longest line that is taken, in bytes.
pub const LONGEST: usize = 64 << 10;
/// Longest text of a guest that is shown, in characters.
const SHOWN: usize = 200;
/// Ends whatever was begun before.
const SENTINEL: u8 = 0xff;

/// A line is longer than [`LONGEST`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooLong;

/// Lines out of bytes as they come.
#[derive(Debug, Default)]
pub struct Answers {
    pending: VecDeque<u8>,
    line: Vec<u8>,
    /// The rest of a line that is too long.
    skipping: bool,
}

impl Answers {
    /// Takes bytes as they came.
    pub fn push(&mut self, bytes: &[u8]) {
        self.pending.extend(bytes);
    }

    /// The next line that is not empty; none if more bytes are needed for one.
    pub fn next_line(&mut self) -> Option<Result<Vec<u8>, TooLong>> {
        while let Some(byte) = self.pending.pop_front() {
            match byte {
                SENTINEL => {
                    self.line.clear();
                    self.skipping = false;
                }
                b'\n' if self.skipping => {
                    self.skipping = false;
                    return Some(Err(TooLong));
                }
                b'\n' if self.line.is_empty() => {}
                b'\n' => return Some(Ok(std::mem::take(&mut self.line))),
                _ if self.skipping => {}
                _ if self.line.len() == LONGEST => {
                    self.line = Vec::new();
                    self.skipping = true;
                }
                byte => self.line.push(byte),
            }
        }
        None
    }

    /// Bytes that are kept.
    pub fn kept(&self) -> usize {
        self.pending.len() + self.line.len()
    }
}

/// Why a command was not carried out, as the agent says it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Refusal {
    /// Class of the error, such as `CommandNotFound`.
    #[serde(default)]
    pub class: String,
    /// The error for people.
    #[serde(default)]
    pub desc: String,
}

#[derive(Debug, Deserialize)]
struct Line<T> {
    #[serde(rename = "return")]
    value: Option<T>,
    error: Option<Refusal>,
}

/// What a line says: a value, or why there is none. None if it is not an answer of this kind.
pub fn parse<T: DeserializeOwned>(line: &[u8]) -> Option<Result<T, Refusal>> {
    let line: Line<T> = serde_json::from_slice(line).ok()?;
    match (line.value, line.error) {
        (Some(value), None) => Some(Ok(value)),
        (None, Some(refusal)) => Some(Err(refusal)),
        _ => None,
    }
}

/// Text of a guest as it may be shown: on one line, without what a terminal obeys, and not for ever.
pub fn shown(text: &str) -> String {
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    text.chars().take(SHOWN).map(plain).collect::<String>().trim().to_owned()
}

/// Answer that says nothing but that it was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Nothing {}

/// What `guest-info` is answered with.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Info {
    /// Version of the agent.
    pub version: String,
}

/// What `guest-get-osinfo` is answered with.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct OsInfo {
    /// Name and version for people.
    pub pretty_name: Option<String>,
    /// Name of the operating system alone.
    pub name: Option<String>,
    /// Release of the kernel.
    pub kernel_release: Option<String>,
}

/// One interface of the answer to `guest-network-get-interfaces`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Interface {
    /// Its name in the guest.
    pub name: String,
    /// Its address on the wire.
    pub hardware_address: Option<String>,
    /// Its addresses of IP.
    #[serde(default)]
    pub ip_addresses: Vec<Address>,
}

/// One address of an interface.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Address {
    /// The address as the guest writes it.
    pub ip_address: String,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lines(bytes: &[u8], step: usize) -> Vec<Result<Vec<u8>, TooLong>> {
        let mut answers = Answers::default();
        let mut all = Vec::new();
        for piece in bytes.chunks(step.max(1)) {
            answers.push(piece);
            while let Some(line) = answers.next_line() {
                all.push(line);
            }
            assert!(answers.kept() <= LONGEST + piece.len());
        }
        all
    }

    #[test]
    fn a_sentinel_ends_what_was_begun() {
        let got = lines(b"{\"return\": 1}\n{\"ret\xff{\"return\": 2}\n\n{}\n", 1);
        let wanted = [&b"{\"return\": 1}"[..], b"{\"return\": 2}", b"{}"];
        assert_eq!(got, wanted.map(|line| Ok(line.to_vec())));
    }

    #[test]
    fn a_line_without_end_is_not_kept() {
        let mut bytes = vec![b'x'; 10 * LONGEST];
        bytes.extend(b"\nnext\n");
        assert_eq!(lines(&bytes, 4096), [Err(TooLong), Ok(b"next".to_vec())]);
    }

    #[test]
    fn an_answer_is_a_value_or_an_error() {
        assert_eq!(parse::<u64>(b"{\"return\": 7, \"id\": [[]]}"), Some(Ok(7)));
        let refused = parse::<u64>(br#"{"error": {"class": "GenericError", "desc": "no"}}"#);
        assert_eq!(refused.unwrap().unwrap_err().desc, "no");
        for other in ["{}", "[]", "{\"return\": \"7\"}", "{\"return\": 7, \"error\": {}}", "x", ""]
        {
            assert_eq!(parse::<u64>(other.as_bytes()), None, "{other}");
        }
        assert_eq!(parse::<Nothing>(b"{\"return\": {\"x\": 1}}"), Some(Ok(Nothing {})));
        let deep = format!("{{\"x\": {}", "[".repeat(LONGEST - 10));
        assert_eq!(parse::<Nothing>(deep.as_bytes()), None);
    }

    #[test]
    fn a_guests_text_does_nothing_to_a_terminal() {
        assert_eq!(shown("Debian\u{1b}[2J\n12\u{9b}"), "Debian [2J 12");
        assert_eq!(shown(&"x".repeat(1000)).len(), SHOWN);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        /// How bytes come in pieces makes no difference.
        #[test]
        fn pieces_make_no_difference(
            bytes in prop::collection::vec(
                prop_oneof![Just(b'\n'), Just(0xff), any::<u8>()], 0..400),
            step in 1usize..50,
        ) {
            prop_assert_eq!(lines(&bytes, step), lines(&bytes, bytes.len()));
        }
    }
}

//! Texts of `key=value` pairs (RFC 7143 6.1), and texts in several PDUs (the C bit).

use nom::{
    Parser,
    bytes::complete::{tag, take_while1},
    combinator::verify,
};

use crate::pdu::{Parsed, WireError, field};

/// The longest key (RFC 7143 6.1).
const KEY_LIMIT: usize = 63;
/// The most pairs of one text.
const PAIRS_LIMIT: usize = 64;

/// Why a text is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// It goes on beyond what is kept for a text.
    #[error("a text of more than {0} bytes")]
    TooLong(usize),
    /// It has too many pairs.
    #[error("a text of more than {PAIRS_LIMIT} pairs")]
    TooMany,
    /// A pair is not well-formed.
    #[error("no text: {0}")]
    Malformed(WireError),
    /// A key stands there twice.
    #[error("key {0} comes twice")]
    Twice(String),
}

/// A key and its value.
pub type Pair = (String, String);

/// Reads a whole text.
///
/// # Errors
/// [`TextError`] for anything but distinct, well-formed pairs.
pub fn read(text: &[u8]) -> Result<Vec<Pair>, TextError> {
    let mut pairs: Vec<Pair> = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        // Some initiators pad a text with zeros and count them.
        if rest[0] == 0 {
            rest = &rest[1..];
            continue;
        }
        let (after, (key, value)) =
            pair(rest).map_err(|error| TextError::Malformed(crate::pdu::plain(error)))?;
        rest = after;
        if pairs.len() == PAIRS_LIMIT {
            return Err(TextError::TooMany);
        }
        if pairs.iter().any(|(known, _)| known == key) {
            return Err(TextError::Twice(key.to_owned()));
        }
        pairs.push((key.to_owned(), value.to_owned()));
    }
    Ok(pairs)
}

fn pair(input: &[u8]) -> Parsed<'_, (&str, &str)> {
    let is_key = |byte: u8| byte.is_ascii_alphanumeric() || b".-+@_#".contains(&byte);
    let (input, key) =
        field("key", verify(take_while1(is_key), |key: &[u8]| key.len() <= KEY_LIMIT))
            .parse(input)?;
    let (input, _) = field("=", tag(&b"="[..])).parse(input)?;
    let end = input.iter().position(|byte| *byte == 0);
    let (value, rest) = match end {
        Some(end) => (&input[..end], &input[end + 1..]),
        // The last zero may be left to the padding.
        None => (input, &input[input.len()..]),
    };
    let utf8 =
        |name, bytes| str::from_utf8(bytes).map_err(|_| nom::Err::Failure(WireError::Field(name)));
    Ok((rest, (utf8("key", key)?, utf8("value", value)?)))
}

/// Writes pairs as a text: each ends with a zero byte.
#[must_use]
pub fn write<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Vec<u8> {
    let mut out = Vec::new();
    for (key, value) in pairs {
        out.extend_from_slice(key.as_bytes());
        out.push(b'=');
        out.extend_from_slice(value.as_bytes());
        out.push(0);
    }
    out
}

/// Puts texts together that come in several PDUs.
#[derive(Debug, Clone)]
pub struct Assembler {
    limit: usize,
    kept: Vec<u8>,
}

impl Assembler {
    /// One that keeps `limit` bytes at most.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { limit, kept: Vec::new() }
    }

    /// Takes the text of one PDU; `more` is its C bit. Gives the pairs once there is no more.
    ///
    /// # Errors
    /// [`TextError::TooLong`] beyond the limit, and what [`read`] says.
    pub fn add(&mut self, text: &[u8], more: bool) -> Result<Option<Vec<Pair>>, TextError> {
        if self.kept.len() + text.len() > self.limit {
            self.kept = Vec::new();
            return Err(TextError::TooLong(self.limit));
        }
        self.kept.extend_from_slice(text);
        if more {
            return Ok(None);
        }
        read(&std::mem::take(&mut self.kept)).map(Some)
    }

    /// Whether a text is under way.
    #[must_use]
    pub fn is_open(&self) -> bool {
        !self.kept.is_empty()
    }
}

/// Hands out a long text in pieces that fit the peer's data segments.
#[derive(Debug, Clone, Default)]
pub struct Pieces {
    rest: std::collections::VecDeque<u8>,
}

impl Pieces {
    /// Of a whole text.
    #[must_use]
    pub fn new(text: Vec<u8>) -> Self {
        Self { rest: text.into() }
    }

    /// The next piece of `limit` bytes at most, and whether more follows.
    pub fn next(&mut self, limit: usize) -> (Vec<u8>, bool) {
        let length = self.rest.len().min(limit.max(1));
        let piece = self.rest.drain(..length).collect();
        (piece, !self.rest.is_empty())
    }

    /// Whether all was handed out.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }
}

/// A number in decimal or hexadecimal digits (RFC 7143 6.1).
#[must_use]
pub fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) if digits.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
            u64::from_str_radix(digits, 16).ok()
        }
        None if text.bytes().all(|byte| byte.is_ascii_digit()) => text.parse().ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn pairs_are_read_as_they_were_written(
            map in prop::collection::btree_map("[A-Za-z][A-Za-z0-9.]{0,40}", "[ -~]{0,80}", 0..40),
            cut in 1usize..60,
        ) {
            let text = write(map.iter().map(|(key, value)| (key.as_str(), value.as_str())));
            let mut pieces = Pieces::new(text.clone());
            let mut whole = Assembler::new(text.len());
            let found = loop {
                let (piece, more) = pieces.next(cut);
                if let Some(found) = whole.add(&piece, more).unwrap() {
                    break found;
                }
            };
            prop_assert!(found.into_iter().eq(map));
        }

        #[test]
        fn any_bytes_are_a_text_or_refused(text in prop::collection::vec(any::<u8>(), 0..2000)) {
            if let Ok(pairs) = read(&text) {
                prop_assert!(pairs.len() <= PAIRS_LIMIT);
            }
        }
    }

    #[test]
    fn what_is_no_text_is_refused() {
        assert!(matches!(read(b"a=1\0a=2\0"), Err(TextError::Twice(_))));
        assert!(matches!(read(b"novalue\0"), Err(TextError::Malformed(_))));
        assert!(matches!(read(b"=x\0"), Err(TextError::Malformed(_))));
        assert!(matches!(read(&[b'k'; 64]), Err(TextError::Malformed(_))));
        assert!(matches!(read(b"a=\xff\0"), Err(TextError::Malformed(_))));
        assert_eq!(read(b"a=1\0\0\0").unwrap().len(), 1);
        let many: String = (0..65).map(|n| format!("k{n}=v\0")).collect();
        assert_eq!(read(many.as_bytes()), Err(TextError::TooMany));
        let mut endless = Assembler::new(100);
        assert_eq!(endless.add(&[b'a'; 60], true), Ok(None));
        assert_eq!(endless.add(&[b'a'; 60], true), Err(TextError::TooLong(100)));
    }

    #[test]
    fn numbers_are_decimal_or_hexadecimal() {
        assert_eq!(number("0x1F"), Some(31));
        assert_eq!(number("262144"), Some(262_144));
        for wrong in ["", "-1", "+1", "0x+1", "1e3", "99999999999999999999999"] {
            assert_eq!(number(wrong), None, "{wrong}");
        }
    }
}

//! The little of DER (X.690) that SPNEGO and Kerberos need: definite, shortest lengths; one-byte tags.

use super::Error;

pub(crate) const OCTET_STRING: u8 = 0x04;
pub(crate) const OID: u8 = 0x06;
pub(crate) const ENUMERATED: u8 = 0x0a;
pub(crate) const GENERAL_STRING: u8 = 0x1b;
pub(crate) const SEQUENCE: u8 = 0x30;
pub(crate) const APPLICATION_0: u8 = 0x60;

/// Tag of `[n]` around another element.
pub(crate) const fn context(n: u8) -> u8 {
    0xa0 | n
}

/// Reads elements one after another.
#[derive(Clone, Copy)]
pub(crate) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn rest(&self) -> &'a [u8] {
        self.0
    }

    pub(crate) fn peek(&self) -> Option<u8> {
        self.0.first().copied()
    }

    /// The next element's tag and content.
    pub(crate) fn next(&mut self) -> Result<(u8, &'a [u8]), Error> {
        let short = Error::Malformed("element beyond the end");
        let (&tag, rest) = self.0.split_first().ok_or(short.clone())?;
        if tag & 0x1f == 0x1f {
            return Err(Error::Malformed("tag of several bytes"));
        }
        let (&first, mut rest) = rest.split_first().ok_or(short.clone())?;
        let len = if first < 0x80 {
            usize::from(first)
        } else {
            let count = usize::from(first & 0x7f);
            if !(1..=3).contains(&count) {
                return Err(Error::Malformed("length of an unusable form"));
            }
            let (digits, tail) = rest.split_at_checked(count).ok_or(short.clone())?;
            rest = tail;
            let len = digits.iter().fold(0, |len, digit| len << 8 | usize::from(*digit));
            if digits[0] == 0 || len < 0x80 {
                return Err(Error::Malformed("length is not the shortest"));
            }
            len
        };
        let (content, rest) = rest.split_at_checked(len).ok_or(short)?;
        self.0 = rest;
        Ok((tag, content))
    }

    /// The next element, which must have this tag.
    pub(crate) fn expect(&mut self, tag: u8) -> Result<&'a [u8], Error> {
        match self.next()? {
            (found, content) if found == tag => Ok(content),
            _ => Err(Error::Malformed("unexpected element")),
        }
    }

    /// The one element that `bytes` are.
    pub(crate) fn only(bytes: &'a [u8], tag: u8) -> Result<&'a [u8], Error> {
        let mut reader = Self::new(bytes);
        let content = reader.expect(tag)?;
        if reader.is_empty() { Ok(content) } else { Err(Error::Malformed("trailing bytes")) }
    }
}

/// One element with its content.
pub(crate) fn element(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    if content.len() < 0x80 {
        out.push(content.len() as u8);
    } else {
        let digits = content.len().to_be_bytes();
        let skip = digits.iter().take_while(|digit| **digit == 0).count();
        out.push(0x80 | (digits.len() - skip) as u8);
        out.extend_from_slice(&digits[skip..]);
    }
    out.extend_from_slice(content);
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lengths_must_be_definite_and_shortest() {
        for bytes in [&[4, 0x80, 0, 0][..], &[4, 0x81, 5, 1, 2, 3, 4, 5], &[4, 0x82, 0, 0x80]] {
            assert!(Reader::new(bytes).next().is_err(), "{bytes:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn elements_round_trip(tag in 0u8..0x1f, len in 0usize..70_000) {
            let content = vec![0x5a; len];
            let bytes = element(tag, &content);
            prop_assert_eq!(Reader::only(&bytes, tag).unwrap(), &content[..]);
            prop_assert!(Reader::only(&bytes[..bytes.len() - 1], tag).is_err());
        }

        /// What is read is what would be written: there is one encoding of everything.
        #[test]
        fn reading_is_total_and_strict(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut reader = Reader::new(&bytes);
            let mut back = Vec::new();
            while let Ok((tag, content)) = reader.next() {
                back.extend_from_slice(&element(tag, content));
            }
            prop_assert!(bytes.starts_with(&back));
        }
    }
}

//! The little of DER (X.690) that SPNEGO and Kerberos need: definite, shortest lengths; one-byte tags.

use nom::combinator::all_consuming;

use crate::{
    WireError,
    parse::{self, Input, Parsed, bytes, part, such, u8},
};

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

/// Reads the next element: its tag and content.
pub(crate) fn next(input: Input<'_>) -> Parsed<'_, (u8, Input<'_>)> {
    let (i, tag) = such(u8, "DER tag", |tag| tag & SEVERAL_BYTES != SEVERAL_BYTES)(input)?;
    let (i, len) = length(i)?;
    let (i, content) = part(len, "DER content")(i)?;
    Ok((i, (tag, content)))
}

/// In a tag: its number stands in the bytes behind it.
const SEVERAL_BYTES: u8 = 0x1f;
/// Most bytes of a length in its long form; tokens are far shorter than this allows.
const MAX_LENGTH_BYTES: u8 = 3;

/// Reads a length, which must be definite and of the shortest form (X.690 8.1.3, 10.1).
fn length(input: Input<'_>) -> Parsed<'_, usize> {
    const FIELD: &str = "DER length";
    const LONG: u8 = 0x80;
    let possible = |first| first < LONG || (LONG + 1..=LONG + MAX_LENGTH_BYTES).contains(&first);
    let (i, first) = such(u8, FIELD, possible)(input)?;
    if first < LONG {
        return Ok((i, first.into()));
    }
    let (i, digits) = bytes(usize::from(first - LONG), FIELD)(i)?;
    let len = digits.iter().fold(0, |len, digit| len << 8 | usize::from(*digit));
    if digits.first() == Some(&0) || len < usize::from(LONG) {
        return Err(input.impossible(FIELD, len as u64));
    }
    Ok((i, len))
}

/// Reads the next element, which must have this tag: its content.
pub(crate) fn tagged<'a>(tag: u8) -> impl Fn(Input<'a>) -> Parsed<'a, Input<'a>> {
    move |input| match next(input)? {
        (rest, (found, content)) if found == tag => Ok((rest, content)),
        (_, (other, _)) => Err(input.impossible("DER tag", other)),
    }
}

/// Reads the one element that an input is, which must have this tag: its content.
///
/// # Errors
/// It is not of this tag, or something follows it.
pub(crate) fn only(input: Input<'_>, tag: u8) -> Result<Input<'_>, WireError> {
    parse::run(input, all_consuming(tagged(tag)))
}

/// Reads elements up to the end of the input, `most` of them at most.
pub(crate) fn elements<'a>(most: usize) -> impl Fn(Input<'a>) -> Parsed<'a, Vec<(u8, Input<'a>)>> {
    move |mut input| {
        let mut list = Vec::new();
        while !input.is_empty() {
            if list.len() == most {
                return Err(input.impossible("DER elements", most as u64 + 1));
            }
            let (rest, element) = next(input)?;
            list.push(element);
            input = rest;
        }
        Ok((input, list))
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

    /// Reads elements one after another.
    struct Reader<'a>(Input<'a>);

    impl<'a> Reader<'a> {
        fn new(bytes: &'a [u8]) -> Self {
            Self(Input::new(bytes))
        }

        fn next(&mut self) -> Result<(u8, &'a [u8]), WireError> {
            parse::step(&mut self.0, next).map(|(tag, content)| (tag, content.bytes()))
        }

        fn only(bytes: &'a [u8], tag: u8) -> Result<&'a [u8], WireError> {
            only(Input::new(bytes), tag).map(Input::bytes)
        }
    }

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

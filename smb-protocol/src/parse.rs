//! The combinators that every parser of this crate is made of, on nom (complete input).
//!
//! ```text
//!  bytes ─► Input (bytes, and where they stand in the message)
//!             │  structure_size, u16, array, skip, …      fixed fields, one after another
//!             │  region, from                             what is named by offset (and length)
//!             │  counted, text                            what is named by a number of elements
//!             ▼
//!           value, or WireError with the field's name and its place
//! ```
//!
//! A parser made of these is total: a length is checked against the bytes at hand before anything
//! is taken or allocated by it.

use std::iter::{Copied, Enumerate};

use nom::{IResult, Needed, Parser, error::ErrorKind};

use crate::wire::WireError;

/// Bytes of a message that are not read yet, and where the first of them stands: its distance in
/// bytes from where the message's offsets count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Input<'a> {
    bytes: &'a [u8],
    at: usize,
}

/// What a parser makes of an input: the rest of it and a value, or what is wrong.
pub type Parsed<'a, T> = IResult<Input<'a>, T, WireError>;

/// An error that goes up through combinators.
pub type Failed = nom::Err<WireError>;

impl<'a> Input<'a> {
    /// Bytes of which the first is where offsets count from.
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// Bytes of which the first stands `at` bytes behind where offsets count from.
    pub const fn placed(bytes: &'a [u8], at: usize) -> Self {
        Self { bytes, at }
    }

    /// The bytes that are not read yet.
    pub const fn bytes(self) -> &'a [u8] {
        self.bytes
    }

    /// Where the first byte stands.
    pub const fn position(self) -> usize {
        self.at
    }

    /// How many bytes there are.
    pub const fn len(self) -> usize {
        self.bytes.len()
    }

    /// Whether all has been read.
    pub const fn is_empty(self) -> bool {
        self.bytes.is_empty()
    }

    /// The same bytes, with offsets that count from the first of them.
    pub const fn rebased(self) -> Self {
        Self::new(self.bytes)
    }

    /// The first `n` bytes and the rest; `None` if there are fewer.
    fn split(self, n: usize) -> Option<(Self, Self)> {
        let (taken, rest) = self.bytes.split_at_checked(n)?;
        Some((Self { bytes: taken, at: self.at }, Self { bytes: rest, at: self.at + n }))
    }

    /// `value`, found in `field` at the first of these bytes, cannot be there.
    pub fn impossible(self, field: &'static str, value: impl Into<u64>) -> Failed {
        nom::Err::Error(WireError::Impossible { field, at: self.at, value: value.into() })
    }

    fn short(self, field: &'static str, need: usize) -> Failed {
        let (at, have) = (self.at, self.bytes.len());
        nom::Err::Error(WireError::Short { field, at, need, have })
    }
}

impl<'a> nom::Input for Input<'a> {
    type Item = u8;
    type Iter = Copied<std::slice::Iter<'a, u8>>;
    type IterIndices = Enumerate<Self::Iter>;

    fn input_len(&self) -> usize {
        self.bytes.len()
    }

    fn take(&self, index: usize) -> Self {
        Self { bytes: &self.bytes[..index], at: self.at }
    }

    fn take_from(&self, index: usize) -> Self {
        Self { bytes: &self.bytes[index..], at: self.at + index }
    }

    fn take_split(&self, index: usize) -> (Self, Self) {
        (self.take_from(index), self.take(index))
    }

    fn position<P: Fn(u8) -> bool>(&self, predicate: P) -> Option<usize> {
        self.bytes.iter().position(|byte| predicate(*byte))
    }

    fn iter_elements(&self) -> Self::Iter {
        self.bytes.iter().copied()
    }

    fn iter_indices(&self) -> Self::IterIndices {
        self.iter_elements().enumerate()
    }

    fn slice_index(&self, count: usize) -> Result<usize, Needed> {
        match count.checked_sub(self.bytes.len()) {
            None | Some(0) => Ok(count),
            Some(missing) => Err(Needed::new(missing)),
        }
    }
}

/// What nom's own combinators find wrong: they know the place and no field.
impl nom::error::ParseError<Input<'_>> for WireError {
    fn from_error_kind(input: Input<'_>, _: ErrorKind) -> Self {
        let value = input.bytes.first().copied().unwrap_or_default().into();
        Self::Impossible { field: "structure", at: input.at, value }
    }

    fn append(_: Input<'_>, _: ErrorKind, other: Self) -> Self {
        other
    }
}

/// Runs a parser over an input; what it leaves unread is nobody's.
///
/// # Errors
/// What the parser finds wrong.
pub fn run<'a, T>(
    input: Input<'a>,
    mut parser: impl Parser<Input<'a>, Output = T, Error = WireError>,
) -> Result<T, WireError> {
    parser.parse(input).map(|(_, value)| value).map_err(|error| cause(input, error))
}

/// Runs a function that reads an input in several steps; what it leaves unread is nobody's.
///
/// # Errors
/// What the function finds wrong.
pub fn with<'a, T>(
    input: Input<'a>,
    parser: impl FnOnce(Input<'a>) -> Parsed<'a, T>,
) -> Result<T, WireError> {
    parser(input).map(|(_, value)| value).map_err(|error| cause(input, error))
}

/// Runs a parser and moves the input behind what it read; an error leaves the input as it is.
///
/// # Errors
/// What the parser finds wrong.
pub fn step<'a, T>(
    input: &mut Input<'a>,
    mut parser: impl Parser<Input<'a>, Output = T, Error = WireError>,
) -> Result<T, WireError> {
    let (rest, value) = parser.parse(*input).map_err(|error| cause(*input, error))?;
    *input = rest;
    Ok(value)
}

/// The error without nom's frame around it.
fn cause(input: Input<'_>, error: Failed) -> WireError {
    match error {
        nom::Err::Error(error) | nom::Err::Failure(error) => error,
        // Input is complete: no parser here asks for more.
        nom::Err::Incomplete(_) => {
            let (at, have) = (input.at, input.bytes.len());
            WireError::Short { field: "message", at, need: have.saturating_add(1), have }
        }
    }
}

/// The next `n` bytes, as an input that keeps its place.
pub fn part<'a>(n: usize, field: &'static str) -> impl Fn(Input<'a>) -> Parsed<'a, Input<'a>> {
    move |input| {
        let (taken, rest) = input.split(n).ok_or_else(|| input.short(field, n))?;
        Ok((rest, taken))
    }
}

/// The next `n` bytes.
pub fn bytes<'a>(n: usize, field: &'static str) -> impl Fn(Input<'a>) -> Parsed<'a, &'a [u8]> {
    move |input| {
        let (taken, rest) = input.split(n).ok_or_else(|| input.short(field, n))?;
        Ok((rest, taken.bytes))
    }
}

/// All that is left.
///
/// # Errors
/// None.
pub fn rest(input: Input<'_>) -> Parsed<'_, &[u8]> {
    let end = Input { bytes: &[], at: input.at + input.bytes.len() };
    Ok((end, input.bytes))
}

/// The next `N` bytes as an array.
pub fn array<'a, const N: usize>(field: &'static str) -> impl Fn(Input<'a>) -> Parsed<'a, [u8; N]> {
    move |input| match input.bytes.split_first_chunk::<N>() {
        Some((taken, rest)) => Ok((Input { bytes: rest, at: input.at + N }, *taken)),
        None => Err(input.short(field, N)),
    }
}

/// Passes over `n` bytes whose content does not matter.
pub fn skip<'a>(n: usize, field: &'static str) -> impl Fn(Input<'a>) -> Parsed<'a, ()> {
    move |input| {
        let (_, rest) = input.split(n).ok_or_else(|| input.short(field, n))?;
        Ok((rest, ()))
    }
}

/// Passes over bytes up to a multiple of `to` from where offsets count.
pub fn align<'a>(to: usize, field: &'static str) -> impl Fn(Input<'a>) -> Parsed<'a, ()> {
    move |input| skip(input.at.next_multiple_of(to) - input.at, field)(input)
}

macro_rules! numbers {
    ($($(#[$doc:meta])* $name:ident: $type:ty, $from:ident;)*) => {
        $($(#[$doc])*
        pub fn $name<'a>(field: &'static str) -> impl Fn(Input<'a>) -> Parsed<'a, $type> {
            move |input| {
                let (rest, digits) = array(field)(input)?;
                Ok((rest, <$type>::$from(digits)))
            }
        })*
    };
}

numbers! {
    /// A byte.
    u8: u8, from_le_bytes;
    /// A little-endian number of 16 bits.
    u16: u16, from_le_bytes;
    /// A little-endian number of 32 bits.
    u32: u32, from_le_bytes;
    /// A little-endian number of 64 bits.
    u64: u64, from_le_bytes;
    /// A little-endian number of 64 bits with a sign.
    i64: i64, from_le_bytes;
    /// A big-endian number of 16 bits.
    be_u16: u16, from_be_bytes;
    /// A big-endian number of 32 bits.
    be_u32: u32, from_be_bytes;
    /// A big-endian number of 32 bits with a sign.
    be_i32: i32, from_be_bytes;
}

/// An 8-bit number that is a length or an offset.
pub fn size8<'a>(field: &'static str) -> impl Fn(Input<'a>) -> Parsed<'a, usize> {
    move |input| u8(field)(input).map(|(rest, size)| (rest, size.into()))
}

/// A little-endian 16-bit number that is a length or an offset.
pub fn size16<'a>(field: &'static str) -> impl Fn(Input<'a>) -> Parsed<'a, usize> {
    move |input| u16(field)(input).map(|(rest, size)| (rest, size.into()))
}

/// A little-endian 32-bit number that is a length or an offset. One that no address can have is
/// impossible.
pub fn size32<'a>(field: &'static str) -> impl Fn(Input<'a>) -> Parsed<'a, usize> {
    move |input| {
        let (rest, size) = u32(field)(input)?;
        let size = usize::try_from(size).map_err(|_| input.impossible(field, size))?;
        Ok((rest, size))
    }
}

/// A number that must be such as `is` says.
pub fn such<'a, T, P>(
    number: impl Fn(&'static str) -> P,
    field: &'static str,
    is: impl Fn(T) -> bool,
) -> impl Fn(Input<'a>) -> Parsed<'a, T>
where
    T: Copy + Into<u64>,
    P: Fn(Input<'a>) -> Parsed<'a, T>,
{
    move |input| match number(field)(input)? {
        (rest, value) if is(value) => Ok((rest, value)),
        (_, value) => Err(input.impossible(field, value)),
    }
}

/// The `StructureSize` that opens most SMB 2 bodies.
pub fn structure_size<'a>(
    expected: u16,
    field: &'static str,
) -> impl Fn(Input<'a>) -> Parsed<'a, ()> {
    move |input| {
        let (rest, _) = such(u16, field, |size| size == expected)(input)?;
        Ok((rest, ()))
    }
}

/// Exactly `n` elements of at least `least` bytes each. That the input can hold so many is checked
/// before there is a list for them.
pub fn counted<'a, T>(
    n: usize,
    least: usize,
    field: &'static str,
    parser: impl Parser<Input<'a>, Output = T, Error = WireError>,
) -> impl FnMut(Input<'a>) -> Parsed<'a, Vec<T>> {
    let mut parser = parser;
    move |input| {
        if n > input.len() / least.max(1) {
            return Err(input.short(field, n.saturating_mul(least)));
        }
        let mut list = Vec::with_capacity(n);
        let mut left = input;
        for _ in 0..n {
            let (rest, element) = parser.parse(left)?;
            list.push(element);
            left = rest;
        }
        Ok((left, list))
    }
}

/// `n` little-endian numbers of 16 bits.
pub fn u16_list<'a>(
    n: usize,
    field: &'static str,
) -> impl FnMut(Input<'a>) -> Parsed<'a, Vec<u16>> {
    counted(n, 2, field, u16(field))
}

/// `n` bytes of UTF-16LE: an odd number of them and lone surrogates are refused.
pub fn text<'a>(n: usize, field: &'static str) -> impl Fn(Input<'a>) -> Parsed<'a, String> {
    move |input| {
        let (rest, taken) = part(n, field)(input)?;
        Ok((rest, utf16(taken, field)?))
    }
}

/// All of an input as UTF-16LE.
///
/// # Errors
/// An odd number of bytes, or a lone surrogate.
pub fn utf16(input: Input<'_>, field: &'static str) -> Result<String, Failed> {
    let wrong = |unit| nom::Err::Error(WireError::Text { field, at: input.at + unit * 2 });
    let (units, odd) = input.bytes.as_chunks::<2>();
    if !odd.is_empty() {
        return Err(wrong(units.len()));
    }
    let mut text = String::with_capacity(units.len());
    let mut unit = 0;
    for c in char::decode_utf16(units.iter().map(|unit| u16::from_le_bytes(*unit))) {
        let c = c.map_err(|_| wrong(unit))?;
        unit += c.len_utf16();
        text.push(c);
    }
    Ok(text)
}

/// The region of `len` bytes at `offset`, counted as the places in `whole` are. A region of no
/// bytes may have any offset: peers leave it 0.
///
/// # Errors
/// The region is not inside `whole`.
pub fn region<'a>(
    whole: Input<'a>,
    offset: usize,
    len: usize,
    field: &'static str,
) -> Result<Input<'a>, Failed> {
    if len == 0 {
        return Ok(Input { bytes: &[], at: offset });
    }
    let start = offset.checked_sub(whole.at);
    let bytes = start.and_then(|start| whole.bytes.get(start..start.checked_add(len)?));
    let bytes = bytes.ok_or_else(|| outside(whole, offset, len, field))?;
    Ok(Input { bytes, at: offset })
}

/// All of `whole` from `offset` on, which may be its end.
///
/// # Errors
/// The offset is not inside `whole`.
pub fn from<'a>(whole: Input<'a>, offset: usize, field: &'static str) -> Result<Input<'a>, Failed> {
    let bytes = offset.checked_sub(whole.at).and_then(|start| whole.bytes.get(start..));
    let bytes = bytes.ok_or_else(|| outside(whole, offset, 0, field))?;
    Ok(Input { bytes, at: offset })
}

fn outside(whole: Input<'_>, offset: usize, len: usize, field: &'static str) -> Failed {
    let have = whole.at + whole.bytes.len();
    nom::Err::Error(WireError::Outside { field, offset, len, have })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// A region is what arithmetic without limits says it is.
        #[test]
        fn regions_are_those_of_wide_numbers(
            message in prop::collection::vec(any::<u8>(), 0..40), at in 0usize..70,
            offset in prop_oneof![0usize..120, any::<usize>()],
            len in prop_oneof![0usize..60, any::<usize>()],
        ) {
            let whole = Input::placed(&message, at);
            let (start, end) = (offset as u128, offset as u128 + len as u128);
            let inside = start >= at as u128 && end <= (at + message.len()) as u128;
            match region(whole, offset, len, "x") {
                Ok(found) if len == 0 => prop_assert!(found.is_empty()),
                Ok(found) => {
                    prop_assert!(inside);
                    prop_assert_eq!(found.bytes(), &message[offset - at..offset - at + len]);
                    prop_assert_eq!(found.position(), offset);
                }
                Err(_) => prop_assert!(!inside && len != 0),
            }
            let behind = from(whole, offset, "x").ok().map(|found| found.len());
            let want = (offset >= at && offset - at <= message.len())
                .then(|| message.len() - (offset - at));
            prop_assert_eq!(behind, want);
        }

        /// Numbers come back, in both orders, and an error names the field and its place.
        #[test]
        fn numbers_are_read_where_they_stand(
            a: u8, b: u16, c: u32, d: i64, e: u16, f: i32, cut in 0usize..21, at in 0usize..9,
        ) {
            let mut message = vec![a];
            message.extend(b.to_le_bytes());
            message.extend(c.to_le_bytes());
            message.extend(d.to_le_bytes());
            message.extend(e.to_be_bytes());
            message.extend(f.to_be_bytes());
            let all = || (u8("a"), u16("b"), u32("c"), i64("d"), be_u16("e"), be_i32("f"));
            let whole = Input::placed(&message, at);
            prop_assert_eq!(run(whole, all()), Ok((a, b, c, d, e, f)));
            let fields = [("a", 0, 1), ("b", 1, 2), ("c", 3, 4), ("d", 7, 8), ("e", 15, 2), ("f", 17, 4)];
            let (field, place, need) =
                *fields.iter().rev().find(|(_, place, _)| *place <= cut).unwrap();
            let error = WireError::Short { field, at: at + place, need, have: cut - place };
            prop_assert_eq!(run(Input::placed(&message[..cut], at), all()), Err(error));
        }

        /// A number of elements is the peer's word: no list is made for what is not there.
        #[test]
        fn lists_are_as_long_as_they_say(
            message in prop::collection::vec(any::<u8>(), 0..60), n in prop_oneof![0usize..40, any::<usize>()],
        ) {
            let want = (n <= message.len() / 2).then(|| {
                message.chunks_exact(2).take(n).map(|b| u16::from_le_bytes([b[0], b[1]])).collect()
            });
            prop_assert_eq!(run(Input::new(&message), u16_list(n, "n")).ok(), want);
        }

        /// Text is what the standard library makes of it; an error points at the unit.
        #[test]
        fn text_is_strict(units in prop::collection::vec(prop_oneof![any::<u16>(), 0xd7fe..0xe002u16], 0..20), odd: bool) {
            let mut message: Vec<u8> = units.iter().flat_map(|unit| unit.to_le_bytes()).collect();
            if odd { message.push(b'x'); }
            let n = message.len();
            match (run(Input::new(&message), text(n, "t")), String::from_utf16(&units)) {
                (Ok(text), Ok(want)) => { prop_assert_eq!(text, want); prop_assert!(!odd); }
                (Err(WireError::Text { at, .. }), Err(_)) if !odd => {
                    let unit = units[at / 2];
                    prop_assert!((0xd800..0xe000).contains(&unit));
                }
                (Err(WireError::Text { at, .. }), _) => prop_assert!(odd && at == n - 1),
                other => prop_assert!(false, "{other:?}"),
            }
        }

        /// nom's own combinators work on it, and tell their place.
        #[test]
        fn combinators_of_nom_keep_the_place(message in prop::collection::vec(any::<u8>(), 1..30), at in 0usize..9) {
            let zeros = message.iter().take_while(|byte| **byte == 0).count();
            let parser = nom::bytes::complete::take_while::<_, _, WireError>(|byte| byte == 0);
            let (left, taken) = { let mut parser = parser; parser.parse(Input::placed(&message, at)) }.unwrap();
            prop_assert_eq!((taken.len(), left.position()), (zeros, at + zeros));
            let none = nom::combinator::fail::<_, (), WireError>().parse(left);
            let told = matches!(none, Err(nom::Err::Error(WireError::Impossible { at: place, .. })) if place == at + zeros);
            prop_assert!(told);
        }
    }
}

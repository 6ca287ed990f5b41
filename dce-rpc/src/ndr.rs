//! NDR, the 32-bit transfer syntax (C706 14), and NDR64 (MS-RPCE 2.2.5): numbers stand at multiples of
//! their length from the start of the stub; what pointers refer to stands behind the structure they
//! are in.
//!
//! ```text
//!  structure        ┌ number ┐┌ pointer ┐┌ pointer ┐┌ gap (NDR64) ┐
//!  behind it                                                       ┌ referent ┐┌ referent ┐
//! ```
//!
//! NDR64 has pointers and counts of 8 bytes, and fills a structure up to a multiple of what its widest
//! field is aligned to. One description of a structure serves both: see [`Reader::gap`].
//!
//! Only little-endian data is read, which is what every client of these interfaces sends.

use nom::{Parser, sequence::preceded};
use smb_protocol::{
    parse::{self, Input, Parsed},
    security::Sid,
    wire::{Put, Result, WireError, len32},
};

use crate::Transfer;

/// A number or structure that stands at a multiple of `to`.
fn aligned<'a, T>(
    to: usize,
    parser: impl Parser<Input<'a>, Output = T, Error = WireError>,
) -> impl Parser<Input<'a>, Output = T, Error = WireError> {
    preceded(parse::align(to, "ndr.Alignment"), parser)
}

fn u32<'a>(field: &'static str) -> impl Parser<Input<'a>, Output = u32, Error = WireError> {
    aligned(4, parse::u32(field))
}

/// What is as long as a pointer: a count, an offset, a referent.
fn wide<'a>(transfer: Transfer, field: &'static str) -> impl Fn(Input<'a>) -> Parsed<'a, u64> {
    move |input| match transfer {
        Transfer::Ndr => u32(field).map(u64::from).parse(input),
        Transfer::Ndr64 => aligned(8, parse::u64(field)).parse(input),
    }
}

/// A count of elements of `least` bytes each that the rest of the stub can hold.
fn count(
    transfer: Transfer,
    least: usize,
    field: &'static str,
) -> impl Fn(Input<'_>) -> Parsed<'_, usize> {
    move |input| {
        let (i, count) = wide(transfer, field)(input)?;
        match usize::try_from(count) {
            Ok(fits) if fits <= i.len() / least.max(1) => Ok((i, fits)),
            _ => Err(input.impossible(field, count)),
        }
    }
}

/// Maximum count, offset and actual count of a string, then its units up to the first zero.
fn string(transfer: Transfer, field: &'static str) -> impl Fn(Input<'_>) -> Parsed<'_, String> {
    move |input| {
        let (i, (most, offset, units)) =
            (wide(transfer, field), wide(transfer, field), count(transfer, 2, field))
                .parse(input)?;
        if offset != 0 || units as u64 > most {
            return Err(input.impossible(field, offset));
        }
        let (i, mut text) = parse::text(units * 2, field)(i)?;
        text.truncate(text.find('\0').unwrap_or(text.len()));
        Ok((i, text))
    }
}

/// A SID behind the count of its parts, which it repeats.
fn sid(transfer: Transfer, field: &'static str) -> impl Fn(Input<'_>) -> Parsed<'_, Sid> {
    move |input| {
        let (start, count) = wide(transfer, field)(input)?;
        let (i, sid) = Sid::read(start)?;
        let parts = (start.len() - i.len()).saturating_sub(8) / 4;
        if parts as u64 != count {
            return Err(input.impossible(field, count));
        }
        Ok((i, sid))
    }
}

/// Reads parameters from a stub, one after another. An error leaves it where it is.
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    left: Input<'a>,
    transfer: Transfer,
}

impl<'a> Reader<'a> {
    /// Starts at the first byte of a stub in NDR.
    pub fn new(stub: &'a [u8]) -> Self {
        Self::of(stub, Transfer::Ndr)
    }

    /// Starts at the first byte of a stub in either transfer syntax.
    pub fn of(stub: &'a [u8], transfer: Transfer) -> Self {
        Self { left: Input::new(stub), transfer }
    }

    fn take<T>(
        &mut self,
        parser: impl Parser<Input<'a>, Output = T, Error = WireError>,
    ) -> Result<T> {
        parse::step(&mut self.left, parser)
    }

    /// Skips to a multiple of `to` bytes from the start of the stub.
    ///
    /// # Errors
    /// The stub ends before it.
    pub fn align(&mut self, to: usize) -> Result<()> {
        self.take(parse::align(to, "ndr.Alignment"))
    }

    /// Skips what fills a structure whose widest field is aligned to `to`: nothing in NDR.
    ///
    /// # Errors
    /// The stub ends before it.
    pub fn gap(&mut self, to: usize) -> Result<()> {
        if self.transfer == Transfer::Ndr64 { self.align(to) } else { Ok(()) }
    }

    /// Skips to where a structure stands that has pointers or counts in it.
    ///
    /// # Errors
    /// The stub ends before it.
    pub fn align_wide(&mut self) -> Result<()> {
        self.align(self.transfer.wide())
    }

    /// Takes a byte, which may stand anywhere.
    ///
    /// # Errors
    /// The stub is at its end.
    pub fn u8(&mut self, field: &'static str) -> Result<u8> {
        self.take(parse::u8(field))
    }

    /// Takes a 16-bit number, which stands at a multiple of 2.
    ///
    /// # Errors
    /// The stub ends within it.
    pub fn u16(&mut self, field: &'static str) -> Result<u16> {
        self.take(aligned(2, parse::u16(field)))
    }

    /// Takes a 32-bit number, which stands at a multiple of 4.
    ///
    /// # Errors
    /// The stub ends within it.
    pub fn u32(&mut self, field: &'static str) -> Result<u32> {
        self.take(u32(field))
    }

    /// Takes a 64-bit number, which stands at a multiple of 8.
    ///
    /// # Errors
    /// The stub ends within it.
    pub fn u64(&mut self, field: &'static str) -> Result<u64> {
        self.take(aligned(8, parse::u64(field)))
    }

    /// Takes `n` bytes as they stand.
    ///
    /// # Errors
    /// The stub has fewer left.
    pub fn bytes(&mut self, n: usize, field: &'static str) -> Result<&'a [u8]> {
        self.take(parse::bytes(n, field))
    }

    /// Takes a pointer; whether it refers to anything.
    ///
    /// # Errors
    /// The stub ends within it.
    pub fn pointer(&mut self, field: &'static str) -> Result<bool> {
        self.take(wide(self.transfer, field).map(|id| id != 0))
    }

    /// Takes a count of elements, each at least `least` bytes long.
    ///
    /// # Errors
    /// The rest of the stub cannot hold so many, or the stub ends within the count.
    pub fn count(&mut self, least: usize, field: &'static str) -> Result<usize> {
        self.take(count(self.transfer, least, field))
    }

    /// Takes a conformant and varying array of 16-bit units: `[string] wchar_t`, without its
    /// terminating zero (C706 14.3.4.2).
    ///
    /// # Errors
    /// Its counts contradict each other or the length of the stub, or it is not UTF-16.
    pub fn string(&mut self, field: &'static str) -> Result<String> {
        self.take(string(self.transfer, field))
    }

    /// Takes a unique pointer to a string; `None` if it refers to nothing.
    ///
    /// # Errors
    /// As [`Self::string`].
    pub fn optional_string(&mut self, field: &'static str) -> Result<Option<String>> {
        if self.pointer(field)? { self.string(field).map(Some) } else { Ok(None) }
    }

    /// Takes the fixed part of an `RPC_UNICODE_STRING` (MS-DTYP 2.3.10): whether text follows.
    ///
    /// # Errors
    /// The stub ends within it.
    pub fn unicode_header(&mut self, field: &'static str) -> Result<bool> {
        let lengths = aligned(self.transfer.wide(), parse::skip(4, field));
        self.take(preceded(lengths, wide(self.transfer, field)).map(|id| id != 0))
    }

    /// Takes a SID with its conformant count (MS-DTYP 2.4.2.3).
    ///
    /// # Errors
    /// It is none, or has another number of parts than the count says.
    pub fn sid(&mut self, field: &'static str) -> Result<Sid> {
        self.take(sid(self.transfer, field))
    }

    /// Takes a context handle.
    ///
    /// # Errors
    /// The stub ends within it.
    pub fn handle(&mut self) -> Result<Handle> {
        self.take(aligned(4, parse::array("ndr.Handle").map(Handle)))
    }
}

/// A context handle (MS-RPCE 2.2.1.1): attributes and a UUID, all zero when there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Handle(pub [u8; 20]);

/// Writes results to a stub.
#[derive(Debug, Default)]
pub struct Writer {
    out: Vec<u8>,
    referents: u32,
    transfer: Transfer,
}

impl Writer {
    /// A stub in NDR with nothing in it.
    pub fn new() -> Self {
        Self::default()
    }

    /// A stub in either transfer syntax with nothing in it.
    pub fn of(transfer: Transfer) -> Self {
        Self { transfer, ..Self::default() }
    }

    /// The stub as it was written.
    pub fn finish(self) -> Vec<u8> {
        self.out
    }

    /// Length so far in bytes.
    pub fn len(&self) -> usize {
        self.out.len()
    }

    /// Whether nothing was written yet.
    pub fn is_empty(&self) -> bool {
        self.out.is_empty()
    }

    /// Fills up to a multiple of `to`.
    pub fn align(&mut self, to: usize) -> &mut Self {
        self.out.pad_to(0, to);
        self
    }

    /// Fills a structure up whose widest field is aligned to `to`: with nothing in NDR.
    pub fn gap(&mut self, to: usize) -> &mut Self {
        if self.transfer == Transfer::Ndr64 { self.align(to) } else { self }
    }

    /// Fills up to where a structure stands that has pointers or counts in it.
    pub fn align_wide(&mut self) -> &mut Self {
        self.align(self.transfer.wide())
    }

    /// Appends a count, an offset or a referent: what is as long as a pointer.
    pub fn wide(&mut self, v: u32) -> &mut Self {
        match self.transfer {
            Transfer::Ndr => self.u32(v),
            Transfer::Ndr64 => {
                self.align(8).out.put_u64(v.into());
                self
            }
        }
    }

    /// Appends a byte, which may stand anywhere.
    pub fn u8(&mut self, v: u8) -> &mut Self {
        self.out.put_u8(v);
        self
    }

    /// Appends a 16-bit number at a multiple of 2.
    pub fn u16(&mut self, v: u16) -> &mut Self {
        self.align(2).out.put_u16(v);
        self
    }

    /// Appends a 32-bit number at a multiple of 4.
    pub fn u32(&mut self, v: u32) -> &mut Self {
        self.align(4).out.put_u32(v);
        self
    }

    /// A 64-bit number as a structure of two 32-bit ones (`OLD_LARGE_INTEGER`).
    pub fn split_u64(&mut self, v: u64) -> &mut Self {
        self.align(4).out.put_u64(v);
        self
    }

    /// Bytes as they are.
    pub fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.out.put(bytes);
        self
    }

    /// A pointer; what it refers to is the caller's to write behind the structure.
    pub fn pointer(&mut self, some: bool) -> &mut Self {
        let id = if some {
            self.referents += 1;
            0x0002_0000 + self.referents * 4
        } else {
            0
        };
        self.wide(id)
    }

    /// `[string] wchar_t` with its terminating zero.
    pub fn string(&mut self, text: &str) -> &mut Self {
        let units: Vec<u16> = text.encode_utf16().chain([0]).collect();
        let count = len32(units.len());
        self.wide(count).wide(0).wide(count);
        units.iter().for_each(|unit| self.out.put_u16(*unit));
        self
    }

    /// The fixed part of an `RPC_UNICODE_STRING`.
    pub fn unicode_header(&mut self, text: &str) -> &mut Self {
        let bytes = u16::try_from(text.encode_utf16().count() * 2).unwrap_or(u16::MAX - 1);
        self.align_wide();
        self.u16(bytes).u16(bytes).pointer(true)
    }

    /// What an `RPC_UNICODE_STRING` refers to: no terminating zero.
    pub fn unicode_body(&mut self, text: &str) -> &mut Self {
        let most = usize::from(u16::MAX / 2);
        let units: Vec<u16> = text.encode_utf16().take(most).collect();
        let count = len32(units.len());
        self.wide(count).wide(0).wide(count);
        units.iter().for_each(|unit| self.out.put_u16(*unit));
        self
    }

    /// A SID with its conformant count.
    pub fn sid(&mut self, sid: &Sid) -> &mut Self {
        let mut bytes = Vec::new();
        sid.encode(&mut bytes);
        self.wide(len32(bytes.len().saturating_sub(8) / 4)).bytes(&bytes)
    }

    /// Appends a context handle at a multiple of 4.
    pub fn handle(&mut self, handle: &Handle) -> &mut Self {
        self.align(4).bytes(&handle.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The layout that C706 14.3.4.2 gives a string of three characters and its zero.
    #[test]
    fn a_string_has_three_counts() {
        let mut w = Writer::new();
        w.u8(1).string("abc");
        let stub = w.finish();
        assert_eq!(
            stub,
            [1, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, b'a', 0, b'b', 0, b'c', 0, 0, 0]
        );
    }

    /// MS-RPCE 2.2.5.3.3.2, 2.2.5.3.5: counts and pointers of 8 bytes at multiples of 8.
    #[test]
    fn ndr64_has_wide_counts_and_pointers_and_gaps() {
        let mut w = Writer::of(Transfer::Ndr64);
        w.u32(7).pointer(true).u16(3).gap(8).string("ab");
        let stub = w.finish();
        let mut want = vec![7, 0, 0, 0, 0, 0, 0, 0];
        want.extend([4, 0, 2, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]);
        for count in [3u64, 0, 3] {
            want.extend(count.to_le_bytes());
        }
        want.extend([b'a', 0, b'b', 0, 0, 0]);
        assert_eq!(stub, want);
        let mut r = Reader::of(&stub, Transfer::Ndr64);
        assert_eq!(r.u32("x"), Ok(7));
        assert_eq!(r.pointer("x"), Ok(true));
        assert_eq!(r.u16("x"), Ok(3));
        r.gap(8).unwrap();
        assert_eq!(r.string("x").as_deref(), Ok("ab"));
        // A count that only its upper half has is not taken for a small one.
        let mut wrong = want[24..].to_vec();
        wrong[20] = 1;
        assert!(Reader::of(&wrong, Transfer::Ndr64).string("x").is_err());
    }

    #[derive(Debug, Clone)]
    enum Item {
        Byte(u8),
        Word(u16),
        Long(u32),
        Text(String),
        Optional(Option<String>),
        Unicode(String),
        Sid(Vec<u32>),
        Handle([u8; 20]),
    }

    fn item() -> impl Strategy<Value = Item> {
        prop_oneof![
            any::<u8>().prop_map(Item::Byte),
            any::<u16>().prop_map(Item::Word),
            any::<u32>().prop_map(Item::Long),
            "[a-zA-Zäß€𝄞]{0,20}".prop_map(Item::Text),
            prop::option::of("[a-z]{0,20}").prop_map(Item::Optional),
            "[a-zA-Zäß€𝄞]{0,20}".prop_map(Item::Unicode),
            prop::collection::vec(any::<u32>(), 1..15).prop_map(Item::Sid),
            any::<[u8; 20]>().prop_map(Item::Handle),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        /// Whatever is written is read back the same.
        #[test]
        fn round_trip(items in prop::collection::vec(item(), 0..20), wide: bool) {
            let transfer = if wide { Transfer::Ndr64 } else { Transfer::Ndr };
            let mut w = Writer::of(transfer);
            for item in &items {
                match item {
                    Item::Byte(v) => { w.u8(*v); }
                    Item::Word(v) => { w.u16(*v); }
                    Item::Long(v) => { w.u32(*v); }
                    Item::Text(v) => { w.string(v); }
                    Item::Optional(v) => {
                        w.pointer(v.is_some());
                        if let Some(v) = v { w.string(v); }
                    }
                    Item::Unicode(v) => { w.unicode_header(v).unicode_body(v); }
                    Item::Sid(v) => { w.sid(&Sid::new(5, v)); }
                    Item::Handle(v) => { w.handle(&Handle(*v)); }
                }
            }
            let stub = w.finish();
            let mut r = Reader::of(&stub, transfer);
            for item in &items {
                match item {
                    Item::Byte(v) => prop_assert_eq!(r.u8("x").unwrap(), *v),
                    Item::Word(v) => prop_assert_eq!(r.u16("x").unwrap(), *v),
                    Item::Long(v) => prop_assert_eq!(r.u32("x").unwrap(), *v),
                    Item::Text(v) => prop_assert_eq!(&r.string("x").unwrap(), v),
                    Item::Optional(v) => prop_assert_eq!(&r.optional_string("x").unwrap(), v),
                    Item::Unicode(v) => {
                        prop_assert!(r.unicode_header("x").unwrap());
                        prop_assert_eq!(&r.string("x").unwrap(), v);
                    }
                    Item::Sid(v) => prop_assert_eq!(r.sid("x").unwrap(), Sid::new(5, v)),
                    Item::Handle(v) => prop_assert_eq!(r.handle().unwrap(), Handle(*v)),
                }
            }
            prop_assert!(r.u8("end").is_err());
        }

        /// Noise gives errors, never more than it holds.
        #[test]
        fn reading_is_total(noise in prop::collection::vec(any::<u8>(), 0..100), wide: bool) {
            let start = Reader::of(&noise, if wide { Transfer::Ndr64 } else { Transfer::Ndr });
            if let Ok(text) = start.clone().string("x") { prop_assert!(text.len() <= noise.len() * 3); }
            let _ = start.clone().sid("x");
            let _ = start.clone().handle();
            if let Ok(count) = start.clone().count(4, "x") { prop_assert!(count * 4 <= noise.len()); }
        }
    }
}

//! Plain LZ77 (MS-XCA 2.3, 2.4): literals and matches in the order of 32 flags before them. A match
//! goes back at most 8 KiB.

use crate::{
    Error,
    copy::Output,
    finder::{Finder, Part},
};

/// Farthest that a match goes back, in bytes.
const WINDOW: usize = 8192;
/// Length that a match has at least, which is not written.
const LEAST: usize = 3;
/// Lengths that three bits and four bits hold.
const IN_TOKEN: usize = 7;
const IN_NIBBLE: usize = 15;

/// Appends the compressed form of `input` if it takes at most `most` bytes.
pub fn compress(input: &[u8], out: &mut Vec<u8>, most: usize) -> bool {
    let start = out.len();
    let mut writer = Writer::begin(out, start.saturating_add(most));
    let show = |part: Part<'_>| match part {
        Part::Literals(bytes) => writer.literals(bytes),
        Part::Match { distance, len } => writer.repeat(distance, len),
    };
    let fits = Finder::new(input.len()).parts(input, 0..input.len(), (WINDOW, usize::MAX), show);
    writer.end();
    let fits = fits && out.len() - start <= most;
    if !fits {
        out.truncate(start);
    }
    fits
}

struct Writer<'a> {
    out: &'a mut Vec<u8>,
    /// Where the output must end.
    end: usize,
    /// Flags that are not written yet, and where they belong.
    flags: u32,
    count: u32,
    flags_at: usize,
    /// The byte whose upper half is free for the next length.
    half: Option<usize>,
}

impl<'a> Writer<'a> {
    fn begin(out: &'a mut Vec<u8>, end: usize) -> Self {
        let flags_at = out.len();
        out.extend_from_slice(&[0; 4]);
        Self { out, end, flags: 0, count: 0, flags_at, half: None }
    }

    /// Notes one flag; whether there may be room for more.
    fn flag(&mut self, flag: u32) -> bool {
        self.flags = self.flags << 1 | flag;
        self.count += 1;
        if self.count < 32 {
            return true;
        }
        self.put_flags();
        (self.flags, self.count, self.flags_at) = (0, 0, self.out.len());
        self.out.extend_from_slice(&[0; 4]);
        self.out.len() <= self.end
    }

    fn put_flags(&mut self) {
        self.out[self.flags_at..self.flags_at + 4].copy_from_slice(&self.flags.to_le_bytes());
    }

    fn literals(&mut self, mut bytes: &[u8]) -> bool {
        // As many at once as there are flags.
        while !bytes.is_empty() {
            let room = (31 - self.count) as usize;
            if let Some((some, rest)) = bytes.split_at_checked(room) {
                self.out.extend_from_slice(some);
                self.flags = self.flags.checked_shl(31 - self.count).unwrap_or(0);
                self.count = 31;
                let Some((last, rest)) = rest.split_first() else { break };
                self.out.push(*last);
                if !self.flag(0) {
                    return false;
                }
                bytes = rest;
            } else {
                self.out.extend_from_slice(bytes);
                self.flags <<= bytes.len();
                self.count += bytes.len() as u32;
                break;
            }
        }
        true
    }

    fn repeat(&mut self, distance: usize, len: usize) -> bool {
        let token = ((distance - 1) << 3) as u16;
        let len = len - LEAST;
        self.out.extend_from_slice(&(token | len.min(IN_TOKEN) as u16).to_le_bytes());
        if let Some(more) = len.checked_sub(IN_TOKEN) {
            let nibble = more.min(IN_NIBBLE) as u8;
            match self.half.take() {
                Some(at) => self.out[at] |= nibble << 4,
                None => {
                    self.half = Some(self.out.len());
                    self.out.push(nibble);
                }
            }
            if let Some(more) = more.checked_sub(IN_NIBBLE) {
                self.long(more, len);
            }
        }
        self.flag(1)
    }

    /// A length that three and four bits do not hold: what is left of it, or the whole.
    fn long(&mut self, more: usize, whole: usize) {
        if more < 255 {
            self.out.push(more as u8);
            return;
        }
        self.out.push(255);
        match u16::try_from(whole) {
            Ok(whole) => self.out.extend_from_slice(&whole.to_le_bytes()),
            Err(_) => {
                self.out.extend_from_slice(&[0; 2]);
                let whole = u32::try_from(whole).unwrap_or(u32::MAX);
                self.out.extend_from_slice(&whole.to_le_bytes());
            }
        }
    }

    /// Flags without an element are ones.
    fn end(&mut self) {
        let left = 32 - self.count;
        let ones = u32::MAX.checked_shr(self.count).unwrap_or(0);
        self.flags = self.flags.checked_shl(left).unwrap_or(0) | ones;
        self.put_flags();
    }
}

/// Fills `out` with what `input` is the compressed form of.
///
/// # Errors
/// The input is malformed, or what it holds is not as long as `out`.
pub fn decompress(input: &[u8], out: &mut [u8]) -> Result<(), Error> {
    let mut input = Input { bytes: input, at: 0, half: None };
    let mut out = Output::new(out);
    loop {
        if input.at == input.bytes.len() {
            return out.end();
        }
        let flags = u32::from_le_bytes(input.take("flags")?);
        if flags == 0 && input.bytes.len() - input.at >= 32 {
            out.literals(&input.bytes[input.at..input.at + 32])?;
            input.at += 32;
            continue;
        }
        for bit in (0..32).rev() {
            if flags >> bit & 1 == 0 {
                let [byte] = input.take("a literal")?;
                out.literal(byte)?;
            } else if input.at == input.bytes.len() {
                return out.end();
            } else {
                let (distance, len) = input.repeat()?;
                out.repeat(distance, len)?;
            }
        }
    }
}

struct Input<'a> {
    bytes: &'a [u8],
    at: usize,
    /// The byte whose upper half is the next length.
    half: Option<u8>,
}

impl Input<'_> {
    fn take<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], Error> {
        let truncated = Error::Truncated { at: self.bytes.len(), what };
        let taken = self.bytes[self.at..].first_chunk().ok_or(truncated)?;
        self.at += N;
        Ok(*taken)
    }

    /// Distance and length of a match.
    fn repeat(&mut self) -> Result<(usize, usize), Error> {
        let token = usize::from(u16::from_le_bytes(self.take("a match")?));
        let distance = (token >> 3) + 1;
        let mut len = token & IN_TOKEN;
        if len == IN_TOKEN {
            let nibble = match self.half.take() {
                Some(byte) => byte >> 4,
                None => {
                    let [byte] = self.take("a length")?;
                    self.half = Some(byte);
                    byte & 15
                }
            };
            len += usize::from(nibble);
            if usize::from(nibble) == IN_NIBBLE {
                len = self.long()?;
            }
        }
        Ok((distance, len + LEAST))
    }

    fn long(&mut self) -> Result<usize, Error> {
        let [more] = self.take("a length")?;
        if more < 255 {
            return Ok(IN_TOKEN + IN_NIBBLE + usize::from(more));
        }
        let whole = match u16::from_le_bytes(self.take("a length")?) {
            0 => u32::from_le_bytes(self.take("a length")?),
            short => short.into(),
        };
        if (whole as usize) < IN_TOKEN + IN_NIBBLE {
            return Err(Error::Impossible { what: "the length of a match", value: whole });
        }
        Ok(whole as usize)
    }
}

//! Extended attributes (MS-FSCC 2.4.16): lists of names and values.

use std::borrow::Borrow;

use nom::Parser;

use crate::{
    parse::{self, Input, Parsed, bytes, part, size8, size16, size32, skip, u8},
    wire::{Put, Result, WireError, len16, len32},
};

/// One extended attribute of a file: a name and bytes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ea {
    /// 0, or [`Ea::NEED`]: who does not understand it must leave the file alone.
    pub flags: u8,
    /// Name; compared without regard to case.
    pub name: String,
    /// Value; setting an empty one removes the attribute.
    pub value: Vec<u8>,
}

impl Ea {
    /// `FILE_NEED_EA`.
    pub const NEED: u8 = 0x80;

    /// Whether flags and name are such as can be.
    pub fn is_valid(&self) -> bool {
        self.flags & !Self::NEED == 0 && valid_name(&self.name)
    }

    /// Length of its entry, without padding.
    pub fn len(&self) -> usize {
        8 + self.name.len() + 1 + self.value.len()
    }

    /// Whether the value is empty.
    pub fn is_empty(&self) -> bool {
        self.value.is_empty()
    }
}

/// Whether an attribute can have this name: 1 to 254 ASCII characters, none of them reserved.
pub fn valid_name(name: &str) -> bool {
    let reserved = |c: char| !c.is_ascii() || (c as u32) < 0x20 || "\\/:*?\"<>|,+=[];".contains(c);
    (1..255).contains(&name.len()) && !name.contains(reserved)
}

fn text(len: usize, field: &'static str) -> impl Fn(Input<'_>) -> Parsed<'_, String> {
    move |input| {
        // What is not ASCII is refused by its user with the status for names.
        let (i, bytes) = part(len, field)(input)?;
        match std::str::from_utf8(bytes.bytes()) {
            Ok(text) => Ok((i, text.to_owned())),
            Err(error) => {
                let at = bytes.position() + error.valid_up_to();
                Err(nom::Err::Error(WireError::Text { field, at }))
            }
        }
    }
}

/// Entries, each of which says first how far behind its beginning the next one begins: not before
/// its end, and at a multiple of 4.
fn chain<'a, T>(
    data: &'a [u8],
    entry: impl Fn(Input<'a>) -> Parsed<'a, (usize, T)>,
) -> Result<Vec<T>> {
    const FIELD: &str = "ea.NextEntryOffset";
    parse::with(Input::new(data), |mut left| {
        let mut list = Vec::new();
        while !left.is_empty() {
            let (i, (next, one)) = entry(left)?;
            list.push(one);
            if next == 0 {
                break;
            }
            if next < left.len() - i.len() || !next.is_multiple_of(4) {
                return Err(left.impossible(FIELD, next as u64));
            }
            left = parse::from(left, left.position().saturating_add(next), FIELD)?;
        }
        Ok((left, list))
    })
}

fn attribute(input: Input<'_>) -> Parsed<'_, (usize, Ea)> {
    let (i, (next, flags, name_len, value_len)) = (
        size32("ea.NextEntryOffset"),
        u8("ea.Flags"),
        size8("ea.EaNameLength"),
        size16("ea.EaValueLength"),
    )
        .parse(input)?;
    let (i, (name, (), value)) =
        (text(name_len, "ea.EaName"), skip(1, "ea.EaName"), bytes(value_len, "ea.EaValue"))
            .parse(i)?;
    Ok((i, (next, Ea { flags, name, value: value.to_vec() })))
}

/// Reads `FileFullEaInformation` (2.4.16): all entries of the list.
///
/// # Errors
/// An entry ends before its value does, or the next one is not behind it or not in the data.
pub fn parse(data: &[u8]) -> Result<Vec<Ea>> {
    chain(data, attribute)
}

/// Appends as many entries of `FileFullEaInformation` as fit `room`; returns their number.
pub fn encode(
    list: impl Iterator<Item = impl Borrow<Ea>>,
    room: usize,
    out: &mut Vec<u8>,
) -> usize {
    let start = out.len();
    let (mut last, mut count) = (None, 0);
    for ea in list {
        let ea: &Ea = ea.borrow();
        let at = start + (out.len() - start).next_multiple_of(4);
        if at + ea.len() - start > room {
            break;
        }
        out.pad_to(start, 4);
        if let Some(last) = last {
            out.patch(last, &len32(at - last).to_le_bytes());
        }
        last = Some(at);
        count += 1;
        out.put_u32(0);
        out.put_u8(ea.flags);
        out.put_u8(u8::try_from(ea.name.len()).unwrap_or(u8::MAX));
        out.put_u16(len16(ea.value.len()));
        out.put(ea.name.as_bytes());
        out.put_u8(0);
        out.put(&ea.value);
    }
    count
}

/// Reads a list of names that are asked for, `FILE_GET_EA_INFORMATION` (2.4.16.1).
///
/// # Errors
/// An entry ends before its name does, or the next one is not behind it or not in the data.
pub fn parse_names(data: &[u8]) -> Result<Vec<String>> {
    chain(data, |input| {
        let (i, (next, len)) =
            (size32("get_ea.NextEntryOffset"), size8("get_ea.EaNameLength")).parse(input)?;
        let (i, name) = text(len, "get_ea.EaName")(i)?;
        Ok((i, (next, name)))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ea() -> impl Strategy<Value = Ea> {
        ("[A-Za-z0-9.]{1,20}", prop::collection::vec(any::<u8>(), 0..20), any::<bool>()).prop_map(
            |(name, value, need)| Ea { flags: if need { Ea::NEED } else { 0 }, name, value },
        )
    }

    proptest! {
        #[test]
        fn lists_round_trip_as_far_as_they_fit(list in prop::collection::vec(ea(), 0..8), room in 0usize..300) {
            let mut out = vec![1; 5];
            let count = encode(list.iter(), room, &mut out);
            prop_assert!(out.len() - 5 <= room);
            prop_assert_eq!(parse(&out[5..]).unwrap(), &list[..count]);
            // What did not fit would not have.
            if let Some(next) = list.get(count) {
                prop_assert!((out.len() - 5).next_multiple_of(4) + next.len() > room);
            }
        }

        /// Entries that would overlap are refused, so a list is never longer than what was sent.
        #[test]
        fn lists_take_no_more_than_was_sent(
            list in prop::collection::vec(ea(), 1..8), next in 0u32..40, len in any::<u16>(),
            at in any::<prop::sample::Index>(),
        ) {
            let mut data = Vec::new();
            encode(list.iter(), 4096, &mut data);
            let starts: Vec<usize> = list.iter().scan(0, |start, ea| {
                let this = *start;
                *start = (this + ea.len()).next_multiple_of(4);
                Some(this)
            }).collect();
            let start = starts[at.index(starts.len())];
            data[start..start + 4].copy_from_slice(&next.to_le_bytes());
            data[start + 6..start + 8].copy_from_slice(&len.to_le_bytes());
            if let Ok(list) = parse(&data) {
                prop_assert!(list.iter().map(Ea::len).sum::<usize>() <= data.len());
            }
        }

        #[test]
        fn parsing_is_total(data in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = parse(&data);
            let _ = parse_names(&data);
        }
    }

    #[test]
    fn names_that_are_asked_for() {
        let mut data = vec![12, 0, 0, 0, 3, b'A', b'B', b'C', 0, 0, 0, 0];
        data.extend_from_slice(&[0, 0, 0, 0, 1, b'd', 0]);
        assert_eq!(parse_names(&data).unwrap(), ["ABC", "d"]);
        assert!(valid_name("A.B") && !valid_name("A=B") && !valid_name("") && !valid_name("é"));
    }
}

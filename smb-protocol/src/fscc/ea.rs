//! Extended attributes (MS-FSCC 2.4.16): lists of names and values.

use crate::wire::{Put, Reader, Result, WireError, len16, len32};

/// One extended attribute.
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

fn text(bytes: &[u8], field: &'static str) -> Result<String> {
    // What is not ASCII is refused by its user with the status for names.
    std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| WireError::Text { field })
}

/// The entry behind the one that began `data`.
fn advance(data: &[u8], next: usize, least: usize) -> Result<Option<&[u8]>> {
    let fits = next >= least && next.is_multiple_of(4);
    match data.get(next..) {
        _ if next == 0 => Ok(None),
        Some(rest) if fits => Ok(Some(rest)),
        _ => Err(WireError::Value { field: "ea.NextEntryOffset", value: next as u64 }),
    }
}

/// Reads `FileFullEaInformation`.
pub fn parse(mut data: &[u8]) -> Result<Vec<Ea>> {
    let mut list = Vec::new();
    while !data.is_empty() {
        let mut r = Reader::new(data);
        let next = r.u32("ea.NextEntryOffset")? as usize;
        let flags = r.u8("ea.Flags")?;
        let name_len = usize::from(r.u8("ea.EaNameLength")?);
        let value_len = usize::from(r.u16("ea.EaValueLength")?);
        let name = text(r.bytes(name_len, "ea.EaName")?, "ea.EaName")?;
        r.skip(1, "ea.EaName")?;
        let value = r.bytes(value_len, "ea.EaValue")?.to_vec();
        list.push(Ea { flags, name, value });
        match advance(data, next, 9)? {
            Some(rest) => data = rest,
            None => break,
        }
    }
    Ok(list)
}

/// Appends as many entries of `FileFullEaInformation` as fit `room`; returns their number.
pub fn encode<'a>(list: impl Iterator<Item = &'a Ea>, room: usize, out: &mut Vec<u8>) -> usize {
    let start = out.len();
    let (mut last, mut count) = (None, 0);
    for ea in list {
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
pub fn parse_names(mut data: &[u8]) -> Result<Vec<String>> {
    let mut list = Vec::new();
    while !data.is_empty() {
        let mut r = Reader::new(data);
        let next = r.u32("get_ea.NextEntryOffset")? as usize;
        let len = usize::from(r.u8("get_ea.EaNameLength")?);
        list.push(text(r.bytes(len, "get_ea.EaName")?, "get_ea.EaName")?);
        match advance(data, next, 6)? {
            Some(rest) => data = rest,
            None => break,
        }
    }
    Ok(list)
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

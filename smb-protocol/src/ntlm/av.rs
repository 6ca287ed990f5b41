//! AV_PAIR lists: names, time and flags that travel with NTLM messages (MS-NLMP 2.2.2.1).

use nom::Parser;

use super::{Error, FileTime, compute::utf16};
use crate::parse::{self, Input, Parsed, bytes, size16, u16};

/// Kind of an attribute.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct AvId(pub u16);

impl AvId {
    /// End of the list.
    pub const EOL: Self = Self(0);
    /// NetBIOS name of the server.
    pub const NB_COMPUTER: Self = Self(1);
    /// NetBIOS name of the server's domain.
    pub const NB_DOMAIN: Self = Self(2);
    /// DNS name of the server.
    pub const DNS_COMPUTER: Self = Self(3);
    /// DNS name of the server's domain.
    pub const DNS_DOMAIN: Self = Self(4);
    /// 32 bits of flags, see [`FLAG_MIC`].
    pub const FLAGS: Self = Self(6);
    /// The server's time.
    pub const TIMESTAMP: Self = Self(7);
    /// Name of the service the client means to talk to.
    pub const TARGET_NAME: Self = Self(9);
    /// MD5 of the channel bindings; zeros when there are none.
    pub const CHANNEL_BINDINGS: Self = Self(10);
}

/// In [`AvId::FLAGS`]: AUTHENTICATE carries a message integrity code.
pub const FLAG_MIC: u32 = 2;

/// A well-formed attribute list, borrowed from a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AvList<'a>(&'a [u8]);

impl<'a> AvList<'a> {
    /// Checks that `bytes` are attributes up to an end mark. What follows the mark is ignored.
    ///
    /// # Errors
    /// The bytes end before there is an end mark, or it has a value.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Error> {
        let message = "attribute list";
        let mut left = Input::new(bytes);
        loop {
            let pair =
                parse::step(&mut left, pair).map_err(|error| Error::Wire { message, error })?;
            match pair {
                (AvId::EOL, []) => return Ok(Self(&bytes[..left.position()])),
                (AvId::EOL, _) => {
                    return Err(Error::Malformed { message, what: "end mark with a value" });
                }
                _ => {}
            }
        }
    }

    /// The attributes in order, without the end mark.
    pub fn iter(&self) -> impl Iterator<Item = (AvId, &'a [u8])> + use<'a> {
        let mut left = Input::new(self.0);
        std::iter::from_fn(move || {
            let (id, value) = parse::step(&mut left, pair).ok()?;
            (id != AvId::EOL).then_some((id, value))
        })
    }

    /// Value of the first attribute of a kind.
    #[must_use]
    pub fn get(&self, id: AvId) -> Option<&'a [u8]> {
        self.iter().find(|(other, _)| *other == id).map(|(_, value)| value)
    }

    /// The flags, 0 without the attribute or if it is not four bytes.
    #[must_use]
    pub fn flags(&self) -> u32 {
        self.get(AvId::FLAGS).and_then(|v| v.try_into().ok()).map_or(0, u32::from_le_bytes)
    }

    /// The server's time, if present and eight bytes.
    #[must_use]
    pub fn timestamp(&self) -> Option<FileTime> {
        self.get(AvId::TIMESTAMP).and_then(|v| v.try_into().ok()).map(u64::from_le_bytes)
    }
}

/// Reads one attribute: its kind and value.
fn pair(input: Input<'_>) -> Parsed<'_, (AvId, &[u8])> {
    let (i, (id, len)) = (u16("AvId").map(AvId), size16("AvLen")).parse(input)?;
    let (i, value) = bytes(len, "Value")(i)?;
    Ok((i, (id, value)))
}

/// Builds an attribute list.
#[derive(Clone, Debug, Default)]
pub struct AvBuilder(Vec<u8>);

impl AvBuilder {
    /// A list without attributes yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends an attribute; values are cut at 65,535 bytes.
    #[must_use]
    pub fn bytes(mut self, id: AvId, value: &[u8]) -> Self {
        let len = u16::try_from(value.len()).unwrap_or(u16::MAX);
        self.0.extend_from_slice(&id.0.to_le_bytes());
        self.0.extend_from_slice(&len.to_le_bytes());
        self.0.extend_from_slice(&value[..usize::from(len)]);
        self
    }

    /// Appends a name, unless it is empty.
    #[must_use]
    pub fn name(self, id: AvId, name: &str) -> Self {
        if name.is_empty() { self } else { self.bytes(id, &utf16(name)) }
    }

    /// Appends the end mark and gives the bytes.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 4]);
        self.0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn lists_round_trip(
            pairs in prop::collection::vec((1u16.., prop::collection::vec(any::<u8>(), 0..40)), 0..8),
            tail in prop::collection::vec(any::<u8>(), 0..9),
        ) {
            let built = pairs.iter().fold(AvBuilder::new(), |b, (id, v)| b.bytes(AvId(*id), v));
            let mut bytes = built.finish();
            let len = bytes.len();
            bytes.extend_from_slice(&tail);
            let list = AvList::parse(&bytes).unwrap();
            prop_assert_eq!(list.0.len(), len);
            let back: Vec<_> = list.iter().map(|(id, v)| (id.0, v.to_vec())).collect();
            prop_assert_eq!(back, pairs);
            for cut in 0..len {
                prop_assert!(AvList::parse(&bytes[..cut]).is_err());
            }
        }

        #[test]
        fn parsing_is_total(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(list) = AvList::parse(&bytes) {
                let total: usize = list.iter().map(|(_, v)| v.len() + 4).sum();
                prop_assert_eq!(total + 4, list.0.len());
            }
        }
    }
}

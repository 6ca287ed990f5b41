//! Keytab files as MIT Kerberos and ktutil write them (version 5.2): keys of services.
//!
//! ```text
//!  05 02  then records:  length │ components, realm, names │ type │ time │ version │ key │ version
//! ```
//!
//! Everything is big-endian. A negative length is a hole of that many bytes.

use nom::{Parser, combinator::opt};

use super::{
    Error,
    crypto::{Etype, Key},
};
use crate::{
    WireError,
    parse::{self, Input, Parsed, array, be_i32, be_u16, be_u32, bytes, counted, part, skip, u8},
};

/// The key of one service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Name without realm, components joined by `/`.
    pub name: String,
    /// Realm.
    pub realm: String,
    /// Version of the key.
    pub version: u32,
    /// The key.
    pub key: Key,
}

/// Keys of services. Keys of types that are not spoken are left out.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Keytab {
    /// The keys.
    pub entries: Vec<Entry>,
}

/// Reads a length of 16 bits and so many bytes of UTF-8.
fn text(input: Input<'_>) -> Parsed<'_, String> {
    const FIELD: &str = "keytab name";
    let (i, len) = be_u16(FIELD)(input)?;
    let (i, name) = part(len.into(), FIELD)(i)?;
    match std::str::from_utf8(name.bytes()) {
        Ok(text) => Ok((i, text.to_owned())),
        Err(error) => {
            let at = name.position() + error.valid_up_to();
            Err(nom::Err::Error(WireError::Text { field: FIELD, at }))
        }
    }
}

/// Reads a record: the key of a service, or a hole.
fn record(input: Input<'_>) -> Parsed<'_, Option<Record<'_>>> {
    let (i, len) = be_i32("keytab record length")(input)?;
    let (i, content) = part(len.unsigned_abs() as usize, "keytab record")(i)?;
    Ok((i, if len > 0 { Some(Record::read(content)?.1) } else { None }))
}

/// What a record holds.
struct Record<'a> {
    name: String,
    realm: String,
    version: u32,
    etype: u16,
    key: &'a [u8],
}

impl<'a> Record<'a> {
    fn read(input: Input<'a>) -> Parsed<'a, Self> {
        let (i, (components, realm)) = (be_u16("keytab components"), text).parse(input)?;
        let (i, parts) = counted(components.into(), 2, "keytab components", text).parse(i)?;
        let (i, (_, short, etype, len)) = (
            skip(8, "keytab name type and time"),
            u8("keytab key version"),
            be_u16("keytab key type"),
            be_u16("keytab key length"),
        )
            .parse(i)?;
        // Newer files repeat the version with 32 bits.
        let (i, (key, long)) =
            (bytes(len.into(), "keytab key"), opt(be_u32("keytab key version"))).parse(i)?;
        let version = long.filter(|long| *long != 0).unwrap_or(short.into());
        Ok((i, Self { name: parts.join("/"), realm, version, etype, key }))
    }
}

impl Keytab {
    /// Reads a file's content.
    ///
    /// # Errors
    /// It is of another version, a record ends within a field, a name is not UTF-8, or a key has another
    /// length than its type's.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let mut left = Input::new(bytes);
        if parse::step(&mut left, array("keytab version")) != Ok([5, 2]) {
            return Err(Error::Malformed("not a keytab of version 5.2"));
        }
        let mut entries = Vec::new();
        while !left.is_empty() {
            if let Some(record) = parse::step(&mut left, record)? {
                entries.extend(Self::entry(record)?);
            }
        }
        Ok(Self { entries })
    }

    fn entry(record: Record<'_>) -> Result<Option<Entry>, Error> {
        let Record { name, realm, version, etype, key } = record;
        let Ok(etype) = Etype::new(etype.into()) else { return Ok(None) };
        let key = Key::new(etype, key)?;
        Ok(Some(Entry { name, realm, version, key }))
    }

    /// The content of a file.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![5, 2];
        for entry in &self.entries {
            let mut record = Vec::new();
            let text = |out: &mut Vec<u8>, text: &str| {
                out.extend_from_slice(&(text.len() as u16).to_be_bytes());
                out.extend_from_slice(text.as_bytes());
            };
            let parts: Vec<_> = entry.name.split('/').collect();
            record.extend_from_slice(&(parts.len() as u16).to_be_bytes());
            text(&mut record, &entry.realm);
            parts.iter().for_each(|part| text(&mut record, part));
            record.extend_from_slice(&1u32.to_be_bytes());
            record.extend_from_slice(&0u32.to_be_bytes());
            record.push(entry.version as u8);
            record.extend_from_slice(&(entry.key.etype as u16).to_be_bytes());
            let key = entry.key.as_bytes();
            record.extend_from_slice(&(key.len() as u16).to_be_bytes());
            record.extend_from_slice(key);
            record.extend_from_slice(&entry.version.to_be_bytes());
            out.extend_from_slice(&(record.len() as u32).to_be_bytes());
            out.extend_from_slice(&record);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry() -> impl Strategy<Value = Entry> {
        ("[a-z]{1,8}(/[a-z.]{1,12})?", "[A-Z.]{1,12}", 1..5000u32, any::<[u8; 16]>()).prop_map(
            |(name, realm, version, key)| Entry {
                name,
                realm,
                version,
                key: Key::new(Etype::Aes128Sha256, &key).unwrap(),
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn round_trip_and_holes(
            entries in prop::collection::vec(entry(), 0..5), hole in 1..20usize,
            cut in any::<prop::sample::Index>(),
        ) {
            let keytab = Keytab { entries };
            let mut bytes = keytab.encode();
            prop_assert_eq!(&Keytab::parse(&bytes).unwrap(), &keytab);
            bytes.extend_from_slice(&(-(hole as i32)).to_be_bytes());
            bytes.resize(bytes.len() + hole, 0);
            prop_assert_eq!(&Keytab::parse(&bytes).unwrap(), &keytab);
            let _ = Keytab::parse(&bytes[..cut.index(bytes.len())]);
        }

        #[test]
        fn parsing_is_total(mut noise in prop::collection::vec(any::<u8>(), 0..100), real: bool) {
            if real && noise.len() > 6 {
                noise[..6].copy_from_slice(&[5, 2, 0, 0, 0, 40]);
            }
            let _ = Keytab::parse(&noise);
        }
    }
}

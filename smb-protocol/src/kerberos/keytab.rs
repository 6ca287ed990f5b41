//! Keytab files as MIT Kerberos and ktutil write them (version 5.2): keys of services.
//!
//! ```text
//!  05 02  then records:  length │ components, realm, names │ type │ time │ version │ key │ version
//! ```
//!
//! Everything is big-endian. A negative length is a hole of that many bytes.

use super::{
    Error,
    crypto::{Etype, Key},
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

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn bytes(&mut self, n: usize) -> Result<&'a [u8], Error> {
        let cut = self.0.split_at_checked(n);
        let (taken, rest) = cut.ok_or(Error::Malformed("the keytab ends within a record"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn u8(&mut self) -> Result<u8, Error> {
        Ok(self.bytes(1)?[0])
    }

    fn u16(&mut self) -> Result<u16, Error> {
        let b = self.bytes(2)?;
        Ok(u16::from_be_bytes([b[0], b[1]]))
    }

    fn u32(&mut self) -> Result<u32, Error> {
        let b = self.bytes(4)?;
        Ok(u32::from_be_bytes([b[0], b[1], b[2], b[3]]))
    }

    fn text(&mut self) -> Result<String, Error> {
        let len = self.u16()?.into();
        let text = std::str::from_utf8(self.bytes(len)?);
        text.map(str::to_owned).map_err(|_| Error::Malformed("a name that is not UTF-8"))
    }
}

impl Keytab {
    /// Reads a file's content.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let mut r = Reader(bytes);
        if r.bytes(2) != Ok(&[5, 2]) {
            return Err(Error::Malformed("not a keytab of version 5.2"));
        }
        let mut entries = Vec::new();
        while !r.0.is_empty() {
            let len = r.u32()?.cast_signed();
            let record = r.bytes(len.unsigned_abs() as usize)?;
            if len > 0
                && let Some(entry) = Self::entry(&mut Reader(record))?
            {
                entries.push(entry);
            }
        }
        Ok(Self { entries })
    }

    fn entry(r: &mut Reader<'_>) -> Result<Option<Entry>, Error> {
        let components = r.u16()?;
        let realm = r.text()?;
        let parts = (0..components).map(|_| r.text()).collect::<Result<Vec<_>, _>>()?;
        // Type of the name, time of the record.
        r.bytes(8)?;
        let short = r.u8()?;
        let etype = r.u16()?;
        let len = r.u16()?.into();
        let key = r.bytes(len)?;
        // Newer files repeat the version with 32 bits.
        let version = match r.u32() {
            Ok(long) if long != 0 => long,
            _ => short.into(),
        };
        let Ok(etype) = Etype::new(etype.into()) else { return Ok(None) };
        let key = Key::new(etype, key)?;
        Ok(Some(Entry { name: parts.join("/"), realm, version, key }))
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

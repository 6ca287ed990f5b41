//! The parent locator of a differencing image (MS-VHDX 2.6.2.6).

use crate::{
    Damage, Fault, Guid, Structure,
    bytes::{Fields, put},
    vhdx::metadata::PARENT_LOCATOR,
};

/// The one locator type MS-VHDX defines (2.6.2.6.3).
pub const VHDX_LOCATOR: Guid =
    Guid::from_fields(0xb04a_efb7, 0xd19e, 0x4a81, 0xb789_25b8_e944_5913);

/// Where the parent of a differencing image is and what identity it must have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParentLocator {
    /// What kind of parent it is.
    pub kind: Guid,
    /// Keys and values in the order of the file; keys are unique.
    pub entries: Vec<(String, String)>,
}

impl ParentLocator {
    /// The locator of a VHDX parent with the given DataWriteGuid (MS-VHDX 2.6.2.6.3). Paths are
    /// written with backslashes, as every reader of the format expects them.
    pub fn vhdx(data_write: Guid, relative_path: &str) -> Self {
        let mut path = relative_path.replace('/', "\\");
        if !path.starts_with("..\\") && !path.starts_with(".\\") {
            path.insert_str(0, ".\\");
        }
        let entries = vec![
            ("parent_linkage".to_owned(), format!("{{{data_write}}}")),
            ("relative_path".to_owned(), path),
        ];
        Self { kind: VHDX_LOCATOR, entries }
    }

    /// The same paths, with other identities that the parent may have.
    pub(crate) fn with_linkages(&self, first: Guid, second: Option<Guid>) -> Self {
        let mut entries = vec![("parent_linkage".to_owned(), format!("{{{first}}}"))];
        entries.extend(second.map(|id| ("parent_linkage2".to_owned(), format!("{{{id}}}"))));
        let paths = self.entries.iter().filter(|(key, _)| !key.starts_with("parent_linkage"));
        entries.extend(paths.cloned());
        Self { kind: self.kind, entries }
    }

    /// The identities that the parent may have (`parent_linkage`, `parent_linkage2`).
    pub fn linkages(&self) -> Vec<Guid> {
        let keys = ["parent_linkage", "parent_linkage2"];
        keys.into_iter().filter_map(|key| self.get(key)?.parse().ok()).collect()
    }

    /// Parses the item's bytes; `offset` is where they stand in the file, for errors.
    ///
    /// # Errors
    /// The [`Damage`]: an entry outside of the item, or text that is none.
    pub fn parse(buf: &[u8], offset: u64) -> Result<Self, Damage> {
        let fault = |at: usize, fault| {
            Damage::new(Structure::MetadataItem(PARENT_LOCATOR), offset + at as u64, fault)
        };
        if buf.len() < 20 {
            return Err(fault(0, Fault::Truncated));
        }
        let count = usize::from(buf.u16(18));
        if buf.len() < 20 + 12 * count {
            let (field, value, rule) = ("KeyValueCount", count as u64, "the item is too short");
            return Err(fault(18, Fault::Field { field, value, rule }));
        }
        let text = |at: usize, field, offset: u32, len: u16| -> Result<String, Damage> {
            let (start, len) = (offset as usize, usize::from(len));
            if start == 0 || len == 0 || !len.is_multiple_of(2) {
                let rule = "offset and length must be positive, the length even";
                return Err(fault(at, Fault::Field { field, value: len as u64, rule }));
            }
            let Some(bytes) = start.checked_add(len).and_then(|end| buf.get(start..end)) else {
                let rule = "must lie within the item";
                return Err(fault(at, Fault::Field { field, value: start as u64, rule }));
            };
            let units: Vec<u16> = (0..len).step_by(2).map(|i| bytes.u16(i)).collect();
            match String::from_utf16(&units) {
                Ok(text) if !text.contains('\0') => Ok(text),
                _ => Err(fault(at, Fault::Text(field))),
            }
        };
        let mut entries: Vec<(String, String)> = Vec::new();
        for i in 0..count {
            let at = 20 + 12 * i;
            let key = text(at, "key", buf.u32(at), buf.u16(at + 8))?;
            let value = text(at + 4, "value", buf.u32(at + 4), buf.u16(at + 10))?;
            if entries.len() >= 256 {
                let (field, value, rule) = ("KeyValueCount", count as u64, "more than 256 entries");
                return Err(fault(18, Fault::Field { field, value, rule }));
            }
            if entries.iter().any(|(other, _)| *other == key) {
                let (field, rule) = ("key", "must be unique");
                return Err(fault(at, Fault::Field { field, value: i as u64, rule }));
            }
            entries.push((key, value));
        }
        Ok(Self { kind: buf.guid(0), entries })
    }

    /// The metadata item as it is stored.
    pub fn encode(&self) -> Vec<u8> {
        let mut buf = vec![0; 20 + 12 * self.entries.len()];
        put(&mut buf, 0, &self.kind.to_bytes());
        put(&mut buf, 18, &(self.entries.len() as u16).to_le_bytes());
        for (i, (key, value)) in self.entries.iter().enumerate() {
            let at = 20 + 12 * i;
            for (text, offset_at, length_at) in [(key, at, at + 8), (value, at + 4, at + 10)] {
                let start = buf.len();
                buf.extend(text.encode_utf16().flat_map(u16::to_le_bytes));
                let length = (buf.len() - start) as u16;
                put(&mut buf, offset_at, &(start as u32).to_le_bytes());
                put(&mut buf, length_at, &length.to_le_bytes());
            }
        }
        buf
    }

    /// The value of `key`.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.entries.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// The best description of where the parent is: the first path there is, else its identity.
    pub fn place(&self) -> String {
        ["relative_path", "volume_path", "absolute_win32_path", "parent_linkage"]
            .into_iter()
            .find_map(|key| self.get(key))
            .map_or_else(|| format!("of kind {}", self.kind), str::to_owned)
    }
}

//! The text that says what a disk is made of (VMDK, "The Descriptor File").

use crate::{Damage, Error, Fault, Result, Structure};

/// Longest descriptor that is read.
pub const MAX: usize = 1 << 20;
/// Extents of a disk at most: 64 TiB in pieces of 2 GiB.
pub const MAX_EXTENTS: usize = 32_768;

/// What an extent holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Bytes as they are, from this one of the file on.
    Flat {
        /// First byte in the file.
        from: u64,
    },
    /// A sparse extent.
    Sparse,
    /// Nothing: zeros.
    Zero,
}

/// A part of the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extent {
    /// Bytes of the disk.
    pub size: u64,
    /// What it holds.
    pub kind: Kind,
    /// Its file, named from the descriptor's folder; empty for zeros.
    pub file: String,
}

/// What a descriptor says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Descriptor {
    /// `monolithicSparse` and so on.
    pub create_type: String,
    /// The identity of the content.
    pub content_id: Option<u32>,
    /// The identity of the parent's content; `None` for a disk without a parent.
    pub parent_id: Option<u32>,
    /// The extents in their order.
    pub extents: Vec<Extent>,
}

fn wrong(line: usize, rule: &'static str) -> Error {
    let fault = Fault::Line { line: line as u64 + 1, rule };
    Damage::new(Structure::Descriptor, 0, fault).into()
}

impl Descriptor {
    /// Reads a descriptor, to its end or the first zero byte.
    ///
    /// # Errors
    /// [`Error::Damaged`] naming the line; [`Error::Unsupported`] for extents of other kinds.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
        let text = String::from_utf8_lossy(&bytes[..end]);
        let text = text.trim_start_matches('\u{feff}');
        if !is_descriptor(text) {
            return Err(Damage::new(Structure::Descriptor, 0, Fault::Signature).into());
        }
        let mut found = Self::default();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let access = line.split_whitespace().next().unwrap_or_default();
            if ["RW", "RDONLY", "NOACCESS"].contains(&access) {
                if found.extents.len() >= MAX_EXTENTS {
                    return Err(wrong(number, "at most 32768 extents"));
                }
                found.extents.push(extent(number, line)?);
                continue;
            }
            let Some((key, value)) = line.split_once('=') else { continue };
            let value = value.trim().trim_matches('"');
            let id = || u32::from_str_radix(value, 16).map_err(|_| wrong(number, "a number"));
            match key.trim() {
                "CID" => found.content_id = Some(id()?),
                "parentCID" => found.parent_id = Some(id()?).filter(|id| *id != u32::MAX),
                "createType" => value.clone_into(&mut found.create_type),
                _ => {}
            }
        }
        Ok(found)
    }
}

/// Whether a text begins as a descriptor: with a comment that says so, in any of its spellings. A byte
/// order mark is another program's.
pub fn is_descriptor(text: &str) -> bool {
    let text = text.trim_start_matches('\u{feff}');
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let comment = lines.next().and_then(|line| line.strip_prefix('#')).unwrap_or_default();
    let letters = comment.chars().filter(|c| !c.is_whitespace()).take(DESCRIPTOR.len());
    letters.map(|c| c.to_ascii_lowercase()).eq(DESCRIPTOR.chars())
}

/// What a descriptor's first line says, without its spaces.
const DESCRIPTOR: &str = "diskdescriptorfile";

/// `RW 4192256 SPARSE "test-s001.vmdk"`, `RW 1048576 FLAT "test-f001.vmdk" 0`, `RW 63 ZERO`.
fn extent(number: usize, line: &str) -> Result<Extent> {
    let mut words = line.split_whitespace().skip(1);
    let sectors = words.next().and_then(|word| word.parse::<u64>().ok());
    let sectors = sectors.filter(|n| *n > 0 && *n < 1 << 54);
    let size = sectors.ok_or(wrong(number, "a number of sectors"))? * 512;
    let kind = words.next().ok_or(wrong(number, "a kind of extent"))?;
    if kind == "ZERO" {
        return Ok(Extent { size, kind: Kind::Zero, file: String::new() });
    }
    let mut quoted = line.splitn(3, '"').skip(1);
    let file = quoted.next().filter(|name| !name.is_empty());
    let file = file.ok_or(wrong(number, "a file's name in quotation marks"))?.to_owned();
    let kind = match kind {
        "SPARSE" => Kind::Sparse,
        "FLAT" | "VMFS" => {
            let rest = quoted.next().unwrap_or_default().split_whitespace().next().unwrap_or("0");
            let from = rest.parse::<u64>().ok().filter(|from| *from < 1 << 54);
            Kind::Flat { from: from.ok_or(wrong(number, "an offset in sectors"))? * 512 }
        }
        other => return Err(Error::Unsupported(format!("a VMDK extent of kind {other}"))),
    };
    Ok(Extent { size, kind, file })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TEXT: &str = "# Disk DescriptorFile\nversion=1\nCID=1a2b3c4d\nparentCID=ffffffff\n\
        createType=\"twoGbMaxExtentFlat\"\n\n# Extent description\n\
        RW 4194304 FLAT \"a disk-f001.vmdk\" 0\nRW 63 ZERO\nRDONLY 10 SPARSE \"b.vmdk\"\n\
        RW 8 FLAT \"c.vmdk\" 2\nddb.adapterType = \"ide\"\n";

    #[test]
    fn a_descriptor_is_read() {
        let found = Descriptor::parse(TEXT.as_bytes()).unwrap();
        assert_eq!(found.create_type, "twoGbMaxExtentFlat");
        assert_eq!((found.content_id, found.parent_id), (Some(0x1a2b_3c4d), None));
        let extent = |size, kind, file: &str| Extent { size, kind, file: file.into() };
        let wanted = [
            extent(2 << 30, Kind::Flat { from: 0 }, "a disk-f001.vmdk"),
            extent(63 * 512, Kind::Zero, ""),
            extent(5120, Kind::Sparse, "b.vmdk"),
            extent(4096, Kind::Flat { from: 1024 }, "c.vmdk"),
        ];
        assert_eq!(found.extents, wanted);
    }

    #[test]
    fn a_descriptor_is_known_in_every_spelling() {
        let rest = TEXT.strip_prefix("# Disk DescriptorFile").unwrap();
        let wanted = Descriptor::parse(TEXT.as_bytes()).unwrap();
        for first in [
            "# Disk Descriptor File",
            "#Disk DescriptorFile",
            "\u{feff}# Disk DescriptorFile",
            "\n  #  disk descriptorfile",
            "# Disk DescriptorFile made by x\r",
        ] {
            let text = format!("{first}{rest}");
            assert_eq!(Descriptor::parse(text.as_bytes()).unwrap(), wanted, "{first:?}");
        }
        for other in ["Disk DescriptorFile", "# Disk", "", "# A Disk DescriptorFile"] {
            assert!(Descriptor::parse(format!("{other}{rest}").as_bytes()).is_err(), "{other:?}");
        }
    }

    #[test]
    fn mistakes_are_named_by_line() {
        let with = |line: &str| {
            let text = format!("# Disk DescriptorFile\n{line}\n");
            Descriptor::parse(text.as_bytes()).unwrap_err().to_string()
        };
        assert!(with("RW x FLAT \"a\" 0").contains("line 2: a number of sectors"));
        assert!(with("RW 8 FLAT a 0").contains("line 2: a file's name"));
        assert!(with("RW 8 FLAT \"a\" -1").contains("line 2: an offset"));
        assert!(with("RW 8 VMFSSPARSE \"a\"").contains("not supported"));
        assert!(with("CID=xyz").contains("line 2: a number"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn noise_is_an_answer(at in 0..TEXT.len(), noise in any::<[u8; 3]>()) {
            let mut bytes = TEXT.as_bytes().to_vec();
            let end = (at + 3).min(bytes.len());
            bytes[at..end].copy_from_slice(&noise[..end - at]);
            if let Ok(found) = Descriptor::parse(&bytes) {
                prop_assert!(found.extents.iter().all(|extent| extent.size > 0));
            }
        }
    }
}

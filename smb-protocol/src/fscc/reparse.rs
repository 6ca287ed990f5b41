//! Reparse points (MS-FSCC 2.1.2): a tag that says who understands the data, and the data. Of these only
//! the names of symbolic links and mount points are looked at here; all other data are their owner's.

use nom::Parser;

use crate::{
    name, open_enum,
    parse::{self, Failed, Input, Parsed, array, region, rest, size16, skip, u32},
    wire::{Put, Result, WireError, len16},
};

open_enum! {
    /// Whose a reparse point is (MS-FSCC 2.1.2.1); tags without a name are kept as they are.
    ReparseTag: u32 {
        /// A folder at which another volume is seen.
        MOUNT_POINT = 0xa000_0003,
        /// A symbolic link, which the client follows.
        SYMLINK = 0xa000_000c,
        /// What a client of NFS makes that is no file.
        NFS = 0x8000_0014,
        /// A symbolic link of the Windows Subsystem for Linux.
        LX_SYMLINK = 0xa000_001d,
        /// A socket.
        AF_UNIX = 0x8000_0023,
        /// A named pipe of the Windows Subsystem for Linux.
        LX_FIFO = 0x8000_0024,
        /// A character device of it.
        LX_CHR = 0x8000_0025,
        /// A block device of it.
        LX_BLK = 0x8000_0026,
    }
}

impl ReparseTag {
    /// Whether Microsoft gave it out; others have a GUID beside them.
    pub fn is_microsoft(self) -> bool {
        self.0 >> 31 == 1
    }

    /// Whether no reparse point has it (`IO_REPARSE_TAG_RESERVED_ZERO`, `IO_REPARSE_TAG_RESERVED_ONE`).
    pub fn is_reserved(self) -> bool {
        self.0 <= 1
    }

    /// Whether a folder with it may hold something (the D bit).
    pub fn may_have_children(self) -> bool {
        self.0 & 0x1000_0000 != 0
    }

    /// Whether it is of the Windows Subsystem for Linux, which keeps mode, owner and device of its
    /// special files in extended attributes.
    pub fn is_of_wsl(self) -> bool {
        matches!(
            self,
            Self::LX_SYMLINK | Self::AF_UNIX | Self::LX_FIFO | Self::LX_CHR | Self::LX_BLK
        )
    }
}

/// Longest buffer, header included, in bytes (MS-FSA 2.1.5.10.37).
pub const MAX_LEN: usize = 16_384;
/// Bytes before the data of a tag of Microsoft's.
const HEADER: usize = 8;
/// Bytes before the data of any other tag.
const GUID_HEADER: usize = 24;

/// `REPARSE_DATA_BUFFER` or `REPARSE_GUID_DATA_BUFFER` (MS-FSCC 2.1.2.2, 2.1.2.3).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReparsePoint<'a> {
    /// Whose it is.
    pub tag: ReparseTag,
    /// Who gave out the tag, if Microsoft did not.
    pub guid: Option<[u8; 16]>,
    /// What its owner keeps there.
    pub data: &'a [u8],
}

impl<'a> ReparsePoint<'a> {
    /// Bytes that stand before the data.
    pub fn header_len(tag: ReparseTag) -> usize {
        if tag.is_microsoft() { HEADER } else { GUID_HEADER }
    }

    /// Reads a whole buffer, which ends where the data do.
    ///
    /// # Errors
    /// It is longer than [`MAX_LEN`], ends before or behind its data, has a reserved tag, or a GUID of
    /// zeros where one is needed.
    pub fn parse(buffer: &'a [u8]) -> Result<Self> {
        let point = Self::parse_header(buffer)?;
        if buffer.len() > MAX_LEN || point.tag.is_reserved() {
            let (field, value) = ("reparse.ReparseTag", u64::from(point.tag.0));
            return Err(WireError::Value { field, value });
        }
        Ok(point)
    }

    /// Reads a buffer as [`ReparsePoint::parse`] does, whatever its tag.
    fn parse_header(buffer: &'a [u8]) -> Result<Self> {
        parse::with(Input::new(buffer), |input| {
            let (i, (tag, len)) = header(input)?;
            let (i, guid) = match tag.is_microsoft() {
                true => (i, None),
                false => array("reparse.ReparseGuid").map(Some).parse(i)?,
            };
            if len != i.len() {
                return Err(input.impossible(LENGTH, len as u64));
            }
            if guid == Some([0; 16]) {
                return Err(input.impossible("reparse.ReparseGuid", 0u64));
            }
            let (i, data) = rest(i)?;
            Ok((i, Self { tag, guid, data }))
        })
    }

    /// Appends the whole buffer.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_u32(self.tag.0);
        out.put_u16(len16(self.data.len()));
        out.put_u16(0);
        if !self.tag.is_microsoft() {
            out.put(&self.guid.unwrap_or_default());
        }
        out.put(self.data);
    }
}

const LENGTH: &str = "reparse.ReparseDataLength";

/// The tag and the length of the data, with which every buffer begins.
fn header(input: Input<'_>) -> Parsed<'_, (ReparseTag, usize)> {
    let fields =
        (u32("reparse.ReparseTag").map(ReparseTag), size16(LENGTH), skip(2, "reparse.Reserved"));
    fields.map(|(tag, len, ())| (tag, len)).parse(input)
}

/// Which reparse point is to be taken away (MS-FSCC 2.3.5): a header without data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReparseRemoval {
    /// Its tag, which may be one that no reparse point has.
    pub tag: ReparseTag,
    /// Who gave out the tag, if Microsoft did not.
    pub guid: Option<[u8; 16]>,
}

impl ReparseRemoval {
    /// Reads the request; a tag of Microsoft's may stand in either header, another one only in that
    /// with a GUID.
    ///
    /// # Errors
    /// It is as long as neither header, claims data, or has no GUID where one is needed.
    pub fn parse(buffer: &[u8]) -> Result<Self> {
        parse::with(Input::new(buffer), |input| {
            let (i, (tag, len)) = header(input)?;
            if len != 0 || ![HEADER, GUID_HEADER].contains(&buffer.len()) {
                return Err(input.impossible(LENGTH, len as u64));
            }
            if tag.is_microsoft() || tag.is_reserved() {
                return Ok((i, Self { tag, guid: None }));
            }
            let (i, guid) = array("reparse.ReparseGuid")(i)?;
            if guid == [0; 16] {
                return Err(input.impossible("reparse.ReparseGuid", 0u64));
            }
            Ok((i, Self { tag, guid: Some(guid) }))
        })
    }

    /// Appends the whole request.
    pub fn encode(&self, out: &mut Vec<u8>) {
        ReparsePoint { tag: self.tag, guid: self.guid, data: &[] }.encode(out);
    }
}

/// The data of a symbolic link (MS-FSCC 2.1.2.4), and of a mount point but for the flags (2.1.2.5).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LinkNames {
    /// Where it leads, for who follows it.
    pub substitute: String,
    /// Where it leads, for a person.
    pub print: String,
    /// `SYMLINK_FLAG_RELATIVE`, or 0.
    pub flags: u32,
}

/// Reads the two names, which stand in the path buffer behind `flags`.
fn names<'a>(
    input: Input<'a>,
    flags: impl Fn(Input<'a>) -> Parsed<'a, u32>,
) -> Parsed<'a, LinkNames> {
    const SUBSTITUTE: &str = "link.SubstituteName";
    const PRINT: &str = "link.PrintName";
    let (i, (substitute_at, substitute_len, print_at, print_len, flags)) = (
        size16("link.SubstituteNameOffset"),
        size16("link.SubstituteNameLength"),
        size16("link.PrintNameOffset"),
        size16("link.PrintNameLength"),
        flags,
    )
        .parse(input)?;
    let text = |at: usize, len: usize, field| -> std::result::Result<String, Failed> {
        parse::utf16(region(i, i.position().saturating_add(at), len, field)?, field)
    };
    let substitute = text(substitute_at, substitute_len, SUBSTITUTE)?;
    let print = text(print_at, print_len, PRINT)?;
    let (i, _) = rest(i)?;
    Ok((i, LinkNames { substitute, print, flags }))
}

impl LinkNames {
    /// The name leads on from the folder that holds the link.
    pub const RELATIVE: u32 = 1;

    /// Reads the data of a symbolic link.
    ///
    /// # Errors
    /// They end within a field, a name is not in the path buffer, or is not UTF-16.
    pub fn parse_symlink(data: &[u8]) -> Result<Self> {
        parse::with(Input::new(data), |input| names(input, u32("link.Flags")))
    }

    /// Reads the data of a mount point.
    ///
    /// # Errors
    /// They end within a field, a name is not in the path buffer, or is not UTF-16.
    pub fn parse_mount_point(data: &[u8]) -> Result<Self> {
        parse::with(Input::new(data), |input| names(input, |i| Ok((i, 0))))
    }

    fn encode(&self, flags: Option<u32>, out: &mut Vec<u8>) {
        let (substitute, print) = (name::to_utf16(&self.substitute), name::to_utf16(&self.print));
        out.put_u16(0);
        out.put_u16(len16(substitute.len()));
        out.put_u16(len16(substitute.len()));
        out.put_u16(len16(print.len()));
        if let Some(flags) = flags {
            out.put_u32(flags);
        }
        out.put(&substitute);
        out.put(&print);
    }

    /// Appends the data of a symbolic link.
    pub fn encode_symlink(&self, out: &mut Vec<u8>) {
        self.encode(Some(self.flags), out);
    }

    /// Appends the data of a mount point.
    pub fn encode_mount_point(&self, out: &mut Vec<u8>) {
        self.encode(None, out);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn data(point: &ReparsePoint<'_>) -> Vec<u8> {
        let mut out = Vec::new();
        point.encode(&mut out);
        out
    }

    /// As drawn in MS-FSCC 2.1.2.2, 2.1.2.3 and 2.1.2.4.
    #[test]
    fn fields_stand_where_the_specification_draws_them() {
        let link = LinkNames { substitute: "..\\a".into(), print: "b".into(), flags: 1 };
        let mut names = Vec::new();
        link.encode_symlink(&mut names);
        assert_eq!(names, b"\0\0\x08\0\x08\0\x02\0\x01\0\0\0.\0.\0\\\0a\0b\0");
        let point = ReparsePoint { tag: ReparseTag::SYMLINK, guid: None, data: &names };
        let raw = data(&point);
        assert_eq!(raw[..8], [0x0c, 0, 0, 0xa0, 22, 0, 0, 0]);
        assert_eq!(ReparsePoint::parse(&raw).unwrap(), point);
        assert_eq!(LinkNames::parse_symlink(&names).unwrap(), link);
        let mut names = Vec::new();
        link.encode_mount_point(&mut names);
        assert_eq!(names[..8], *b"\0\0\x08\0\x08\0\x02\0");
        assert_eq!(LinkNames::parse_mount_point(&names).unwrap().substitute, "..\\a");
        let other = ReparsePoint { tag: ReparseTag(0x17), guid: Some([7; 16]), data: b"xyz" };
        let raw = data(&other);
        assert_eq!(raw[..8], [0x17, 0, 0, 0, 3, 0, 0, 0]);
        assert_eq!((&raw[8..24], &raw[24..]), (&[7; 16][..], &b"xyz"[..]));
    }

    /// As Linux' client writes a link: the name for a person comes first.
    #[test]
    fn names_may_stand_in_any_order() {
        let raw = b"\x02\0\x04\0\0\0\x02\0\0\0\0\0p\0s\0t\0";
        let link = LinkNames::parse_symlink(raw).unwrap();
        assert_eq!((link.substitute.as_str(), link.print.as_str()), ("st", "p"));
    }

    #[test]
    fn a_buffer_is_as_long_as_it_says_and_a_foreign_tag_has_an_owner() {
        let fifo = data(&ReparsePoint { tag: ReparseTag::LX_FIFO, guid: None, data: &[] });
        assert!(ReparsePoint::parse(&fifo).is_ok());
        assert!(ReparsePoint::parse(&[&fifo[..], &[0]].concat()).is_err());
        for tag in [0, 1, 0x17] {
            let tag = ReparseTag(tag);
            let whole = data(&ReparsePoint { tag, guid: Some([1; 16]), data: &[] });
            assert_eq!(ReparsePoint::parse(&whole).is_ok(), !tag.is_reserved(), "{tag:?}");
            assert!(ReparsePoint::parse(&whole[..8]).is_err(), "{tag:?}");
            let nobody = data(&ReparsePoint { tag, guid: None, data: &[] });
            assert!(ReparsePoint::parse(&nobody).is_err(), "{tag:?}");
        }
        let most = vec![0; MAX_LEN - 8];
        let point = |data| ReparsePoint { tag: ReparseTag::NFS, guid: None, data };
        assert!(ReparsePoint::parse(&data(&point(&most))).is_ok());
        let more = vec![0; MAX_LEN - 7];
        assert!(ReparsePoint::parse(&data(&point(&more))).is_err());
    }

    #[test]
    fn what_is_to_go_is_named_by_a_header_alone() {
        let removal = |bytes: &[u8]| ReparseRemoval::parse(bytes).ok().map(|r| (r.tag.0, r.guid));
        let microsoft = [3, 0, 0, 0xa0, 0, 0, 0, 0];
        assert_eq!(removal(&microsoft), Some((0xa000_0003, None)));
        let with_guid = [&microsoft[..], &[9; 16]].concat();
        assert_eq!(removal(&with_guid), Some((0xa000_0003, None)));
        assert_eq!(removal(&microsoft[..7]), None);
        assert_eq!(removal(&[&microsoft[..], &[0]].concat()), None);
        let foreign = [0x17, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(removal(&foreign), None);
        assert_eq!(removal(&[&foreign[..], &[0; 16]].concat()), None);
        let with_guid = [&foreign[..], &[9; 16]].concat();
        assert_eq!(removal(&with_guid), Some((0x17, Some([9; 16]))));
        let claims_data = [3, 0, 0, 0xa0, 1, 0, 0, 0];
        assert_eq!(removal(&claims_data), None);
        assert_eq!(removal(&[0; 8]), Some((0, None)));
    }

    proptest! {
        #[test]
        fn links_round_trip(
            substitute in "[a-zé\u{1f600}.\\\\]{0,40}",
            print in "[a-z:\\\\]{0,40}",
            flags: u32,
        ) {
            let link = LinkNames { substitute, print, flags };
            let (mut symlink, mut mount_point) = (Vec::new(), Vec::new());
            link.encode_symlink(&mut symlink);
            link.encode_mount_point(&mut mount_point);
            prop_assert_eq!(LinkNames::parse_symlink(&symlink).unwrap(), link.clone());
            let without = LinkNames { flags: 0, ..link };
            prop_assert_eq!(LinkNames::parse_mount_point(&mount_point).unwrap(), without);
        }

        /// Whatever is sent: an error, or what is written as it was read.
        #[test]
        fn reading_is_total(raw in prop::collection::vec(any::<u8>(), 0..60), tag: bool) {
            let mut raw = raw;
            if tag && raw.len() >= 8 {
                let data = (raw.len() - 8) as u16;
                raw[..4].copy_from_slice(&ReparseTag::NFS.0.to_le_bytes());
                raw[4..6].copy_from_slice(&data.to_le_bytes());
                raw[6..8].fill(0);
                prop_assert_eq!(&data_of(&raw), &raw);
            }
            let _ = ReparsePoint::parse(&raw);
            let _ = ReparseRemoval::parse(&raw);
            let _ = LinkNames::parse_symlink(&raw);
            let _ = LinkNames::parse_mount_point(&raw);
        }
    }

    fn data_of(raw: &[u8]) -> Vec<u8> {
        data(&ReparsePoint::parse(raw).unwrap())
    }
}

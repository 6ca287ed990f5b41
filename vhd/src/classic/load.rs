//! Reading an image with every check.

use std::{ops::Range, sync::Arc};

use block_io::File;

use super::{
    SECTOR,
    footer::{self, Footer, Kind},
    header::{self, Header},
    places::ParentPlaces,
};
use crate::{Damage, Fault, Guid, Result, Structure};

/// An entry of a block that is not in the file.
pub(super) const ABSENT: u32 = u32::MAX;

/// An image's structures, checked.
#[derive(Debug)]
pub(super) struct Loaded {
    pub footer: Footer,
    pub file_len: u64,
    /// The footer is one byte short, as of Virtual PC before 2004.
    pub short_footer: bool,
    /// The footer at the end is missing or wrong; the copy was taken.
    pub lost_footer: Option<Damage>,
    /// The copy at the front is wrong, or says something else than the footer.
    pub lost_copy: Option<Damage>,
    pub blocks: Option<Blocks>,
}

/// The block table of a dynamic or differencing image.
#[derive(Debug)]
pub(crate) struct Blocks {
    pub header: Header,
    /// Sector of each block's bitmap.
    pub table: Vec<u32>,
    /// Where the first byte is that nothing uses.
    pub end: u64,
    pub parent: ParentPlaces,
}

/// What an image is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Info {
    /// Fixed, dynamic or differencing.
    pub kind: Kind,
    /// Bytes of the disk.
    pub disk_size: u64,
    /// Bytes of the file.
    pub file_size: u64,
    /// Bytes per block; none in a fixed image.
    pub block_size: Option<u32>,
    /// Identity of the image.
    pub id: Guid,
    /// The program that made it.
    pub creator: String,
    /// When it was made: seconds since 2000.
    pub timestamp: u32,
    /// Blocks of the disk.
    pub blocks: u64,
    /// Blocks stored in the file, wholly or in part.
    pub allocated_blocks: u64,
    /// Identity of the parent of a differencing image, and where it is.
    pub parent: Option<(Guid, ParentPlaces)>,
    /// The footer at the end is missing; its copy was taken.
    pub lost_footer: bool,
}

/// Reads what an image is. Never writes.
///
/// # Errors
/// What is wrong with it, as for opening it.
pub async fn info(file: Arc<dyn File>) -> Result<Info> {
    let image = load(&*file).await?;
    let blocks = image.blocks.as_ref();
    let count = |b: &Blocks| b.table.iter().filter(|entry| **entry != ABSENT).count() as u64;
    let differs = image.footer.kind == Kind::Differencing;
    Ok(Info {
        kind: image.footer.kind,
        disk_size: image.footer.size,
        file_size: image.file_len,
        block_size: blocks.map(|b| b.header.block_size),
        id: image.footer.id,
        creator: String::from_utf8_lossy(&image.footer.creator)
            .trim_end_matches([' ', '\0'])
            .to_owned(),
        timestamp: image.footer.timestamp,
        blocks: blocks.map_or(0, |b| b.table.len() as u64),
        allocated_blocks: blocks.map_or(0, count),
        parent: blocks.filter(|_| differs).map(|b| (b.header.parent_id, b.parent.clone())),
        lost_footer: image.lost_footer.is_some(),
    })
}

/// Judges an image: what stops it from being opened, then what is not as it should be without
/// harm. Never writes.
///
/// # Errors
/// Only what the file says; damage is in the report.
pub async fn check(file: Arc<dyn File>) -> Result<crate::vhdx::Report> {
    let mut report = crate::vhdx::Report::default();
    let mut entries = Vec::new();
    let found = |damage, _| {
        entries.push(damage);
        Ok(())
    };
    match load_with(&*file, found).await {
        Ok(image) => {
            entries.into_iter().for_each(|damage| report.error(damage));
            let copies = image.lost_footer.into_iter().chain(image.lost_copy);
            copies.for_each(|damage| report.warn(damage));
            if let Some(blocks) = image.blocks {
                report.blocks = blocks.table.len() as u64;
                report.allocated_blocks =
                    blocks.table.iter().filter(|entry| **entry != ABSENT).count() as u64;
                let used = blocks.end + footer::LEN as u64;
                report.leaked = image.file_len.saturating_sub(used);
            }
        }
        Err(crate::Error::Damaged(damage)) => report.error(damage),
        Err(error) => return Err(error),
    }
    Ok(report)
}

async fn read(file: &dyn File, at: u64, len: usize) -> Result<Vec<u8>> {
    let mut buf = vec![0; len];
    let got = file.read_at(at, &mut buf).await?;
    buf.truncate(got);
    Ok(buf)
}

/// Times that an image is looked at that another makes longer meanwhile.
const ATTEMPTS: usize = 8;

pub(super) async fn load(file: &dyn File) -> Result<Loaded> {
    for _ in 1..ATTEMPTS {
        let len = file.len().await?;
        match load_with(file, |damage, _| Err(damage.into())).await {
            // Measured before, and its table read after, a block came to be.
            Err(crate::Error::Damaged(_)) if file.len().await? != len => {}
            other => return other,
        }
    }
    load_with(file, |damage, _| Err(damage.into())).await
}

/// As [`load`], but `wrong` hears of each wrong table entry, with the block, and whether it stops
/// there. Wrong entries are in the table as they stand in the file.
pub(super) async fn load_with(
    file: &dyn File,
    wrong: impl FnMut(Damage, u64) -> Result<()>,
) -> Result<Loaded> {
    let file_len = file.len().await?;
    let at_end = file_len.saturating_sub(footer::LEN as u64);
    let last = Footer::parse(&read(file, at_end, footer::LEN).await?, at_end);
    let old = match last {
        Ok(_) => None,
        Err(_) => old_footer(file, file_len).await?,
    };
    if let Some(footer) = old {
        let (lost_footer, lost_copy, blocks) = (None, None, None);
        return Ok(Loaded { footer, file_len, short_footer: true, lost_footer, lost_copy, blocks });
    }
    let short_footer = false;
    let (footer, lost_footer) = match last {
        Ok(footer) => (footer, None),
        Err(damage) => {
            // A fixed image has no copy, so what stands at the front of one is the disk's.
            match Footer::parse(&read(file, 0, footer::LEN).await?, 0) {
                Ok(copy) if copy.kind != Kind::Fixed => (copy, Some(damage)),
                _ => return Err(damage.into()),
            }
        }
    };
    let mut lost_copy = None;
    if footer.kind != Kind::Fixed && lost_footer.is_none() {
        lost_copy = match Footer::parse(&read(file, 0, footer::LEN).await?, 0) {
            Ok(copy) if copy == footer => None,
            Ok(_) => {
                let fault = Fault::NoValidCopy("it differs from the footer at the end".into());
                Some(Damage::new(Structure::Footer, 0, fault))
            }
            Err(damage) => Some(damage),
        };
    }
    if footer.kind == Kind::Fixed {
        if footer.size > at_end {
            let (field, value, rule) = ("CurrentSize", footer.size, "the file is shorter");
            let fault = Fault::Field { field, value, rule };
            return Err(Damage::new(Structure::Footer, at_end + 48, fault).into());
        }
        let blocks = None;
        return Ok(Loaded { footer, file_len, short_footer, lost_footer, lost_copy, blocks });
    }
    let limit = if lost_footer.is_some() { file_len } else { at_end };
    let blocks = Some(load_blocks(file, &footer, limit, wrong).await?);
    Ok(Loaded { footer, file_len, short_footer, lost_footer, lost_copy, blocks })
}

/// The footer of a fixed image that is one byte short.
async fn old_footer(file: &dyn File, file_len: u64) -> Result<Option<Footer>> {
    let Some(at) = file_len.checked_sub(footer::OLD_LEN as u64) else { return Ok(None) };
    let mut bytes = read(file, at, footer::OLD_LEN).await?;
    bytes.resize(footer::LEN, 0);
    let footer = Footer::parse(&bytes, at).ok();
    Ok(footer.filter(|footer| footer.kind == Kind::Fixed && footer.size <= at))
}

/// Reads header, table and the parent's places; everything lies before `limit`.
async fn load_blocks(
    file: &dyn File,
    footer: &Footer,
    limit: u64,
    wrong: impl FnMut(Damage, u64) -> Result<()>,
) -> Result<Blocks> {
    let at = footer.data_offset;
    let header = Header::parse(&read(file, at, header::LEN).await?, at)?;
    let wanted = footer.size.div_ceil(u64::from(header.block_size));
    if u64::from(header.entries) < wanted {
        let (field, value) = ("MaxTableEntries", u64::from(header.entries));
        let fault = Fault::Field { field, value, rule: "too few for the disk" };
        return Err(Damage::new(Structure::DynamicHeader, at + 28, fault).into());
    }
    let table_at = header.table_offset;
    let table_len = (u64::from(header.entries) * 4).next_multiple_of(SECTOR);
    if table_at.checked_add(table_len).is_none_or(|end| end > limit) {
        return Err(Damage::new(Structure::Bat, table_at, Fault::Truncated).into());
    }
    let bytes = read(file, table_at, (wanted * 4) as usize).await?;
    let table: Vec<u32> =
        bytes.as_chunks::<4>().0.iter().map(|raw| u32::from_be_bytes(*raw)).collect();
    if (table.len() as u64) < wanted {
        return Err(Damage::new(Structure::Bat, table_at, Fault::Truncated).into());
    }
    let mut taken: Vec<(Range<u64>, String)> = vec![
        (0..footer::LEN as u64, "the footer's copy".into()),
        (at..at + header::LEN as u64, "the header".into()),
        (table_at..table_at + table_len, "the block table".into()),
    ];
    let parent = parent_places(file, &header, limit, &mut taken).await?;
    let end = places(&header, &table, limit, taken, wrong)?;
    Ok(Blocks { header, table, end, parent })
}

/// Checks that nothing overlaps and all blocks lie before `limit`; returns where free space begins.
fn places(
    header: &Header,
    table: &[u32],
    limit: u64,
    taken: Vec<(Range<u64>, String)>,
    mut wrong: impl FnMut(Damage, u64) -> Result<()>,
) -> Result<u64> {
    let len = header.bitmap_len() + u64::from(header.block_size);
    let damage =
        |block: u64, fault| Damage::new(Structure::Bat, header.table_offset + 4 * block, fault);
    let mut all: Vec<(Range<u64>, Owner)> =
        taken.into_iter().map(|(range, name)| (range, Owner::Structure(name))).collect();
    for (index, entry) in table.iter().enumerate().filter(|(_, entry)| **entry != ABSENT) {
        let (block, start) = (index as u64, u64::from(*entry) * SECTOR);
        if start + len > limit {
            let rule = "past the end of the file";
            wrong(damage(block, Fault::EntryOffset { index: block, start, rule }), block)?;
            if start >= limit {
                continue;
            }
        }
        all.push((start..start + len, Owner::Block(block)));
    }
    all.sort_by_key(|(range, _)| range.start);
    // Of those before, the one that reaches farthest.
    let mut farthest: Option<&(Range<u64>, Owner)> = None;
    for item in &all {
        if let Some(before) = farthest
            && before.0.end > item.0.start
        {
            // A structure is never what is wrong.
            let (block, other) = match (&item.1, &before.1) {
                (Owner::Block(block), other) | (other, Owner::Block(block)) => (*block, other),
                (Owner::Structure(_), Owner::Structure(_)) => continue,
            };
            let range = if item.1 == Owner::Block(block) { &item.0 } else { &before.0 };
            let (start, other) = (range.start, other.to_string());
            wrong(damage(block, Fault::Overlap { start, len, other }), block)?;
        }
        if farthest.is_none_or(|before| before.0.end < item.0.end) {
            farthest = Some(item);
        }
    }
    Ok(farthest.map_or(0, |(range, _)| range.end).next_multiple_of(SECTOR))
}

/// Whose a part of the file is.
#[derive(Debug, PartialEq, Eq)]
enum Owner {
    Structure(String),
    Block(u64),
}

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Structure(name) => f.write_str(name),
            Self::Block(block) => write!(f, "block {block}"),
        }
    }
}

async fn parent_places(
    file: &dyn File,
    header: &Header,
    limit: u64,
    taken: &mut Vec<(Range<u64>, String)>,
) -> Result<ParentPlaces> {
    let mut found = ParentPlaces::default();
    for locator in &header.locators {
        let end = locator.offset.checked_add(u64::from(locator.length));
        if end.is_none_or(|end| end > limit) {
            let structure = Structure::DynamicHeader;
            return Err(Damage::new(structure, locator.offset, Fault::Truncated).into());
        }
        let end = locator.offset + u64::from(locator.length.max(1)).next_multiple_of(SECTOR);
        taken.push((locator.offset..end, "a parent locator".into()));
        let bytes = read(file, locator.offset, locator.length as usize).await?;
        found.add(locator.platform, &bytes);
    }
    found.name = Some(header.parent_name.clone()).filter(|name| !name.is_empty());
    Ok(found)
}

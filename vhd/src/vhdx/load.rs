//! Reading everything of an image but its table and payload, with every check of MS-VHDX 2.

use std::{ops::Range, sync::Arc};

use block_io::File;

use super::{
    HEADER_OFFSETS, MAX_FILE, MIB, REGION_TABLE_OFFSETS,
    bat::{BatLayout, ENTRY_SIZE},
    header::{self, FileIdentifier, HEADER_SIZE, Header, IDENTIFIER_SIZE},
    log::active_sequence,
    metadata::{self, Metadata},
    overlay::{Overlay, ReplayedFile},
    region::{self, Region, RegionTable},
};
use crate::{Damage, Error, Fault, Result, Structure};

/// Longest log that is replayed; it is read into memory whole. Others write 1 MiB.
pub const MAX_REPLAY: u32 = 64 << 20;

/// An image's structures, all valid.
#[derive(Debug)]
pub struct Loaded {
    /// The file as it reads after the replay of its log.
    pub view: Arc<dyn File>,
    /// Length of the file after replay.
    pub file_len: u64,
    /// Who made the file.
    pub identifier: FileIdentifier,
    /// The current header and its index, 0 or 1.
    pub header: (usize, Header),
    /// What the log changes, if it must be replayed.
    pub overlay: Option<Arc<Overlay>>,
    /// The region table that counts.
    pub regions: RegionTable,
    /// The block table's region.
    pub bat: Region,
    /// The known metadata.
    pub metadata: Metadata,
    /// Arithmetic of the block table.
    pub layout: BatLayout,
}

/// Reads up to `len` bytes; shorter at the end of the file.
pub(super) async fn read_up_to(file: &dyn File, at: u64, len: usize) -> Result<Vec<u8>> {
    let mut buf = vec![0; len];
    let got = file.read_at(at, &mut buf).await?;
    buf.truncate(got);
    Ok(buf)
}

/// Both headers, each valid or with what is wrong with it.
pub(super) async fn headers(file: &dyn File) -> Result<[std::result::Result<Header, Damage>; 2]> {
    let first = read_up_to(file, HEADER_OFFSETS[0], HEADER_SIZE).await?;
    let second = read_up_to(file, HEADER_OFFSETS[1], HEADER_SIZE).await?;
    Ok([Header::parse(1, &first), Header::parse(2, &second)])
}

/// Both region tables, each valid or with what is wrong with it.
pub(super) async fn region_tables(
    file: &dyn File,
) -> Result<[std::result::Result<RegionTable, Damage>; 2]> {
    let first = read_up_to(file, REGION_TABLE_OFFSETS[0], region::TABLE_SIZE).await?;
    let second = read_up_to(file, REGION_TABLE_OFFSETS[1], region::TABLE_SIZE).await?;
    Ok([RegionTable::parse(1, &first), RegionTable::parse(2, &second)])
}

/// The log's place in the file.
pub(super) fn log_range(header: &Header) -> Range<u64> {
    header.log_offset..header.log_offset + u64::from(header.log_length)
}

/// Finds out what replaying the log changes; `None` if there is nothing to replay.
async fn replay(file: &dyn File, header: &Header, file_len: u64) -> Result<Option<Overlay>> {
    let log = log_range(header);
    let fault = |fault| Damage::new(Structure::Log, log.start, fault);
    if log.end > file_len {
        return Err(fault(Fault::Truncated).into());
    }
    if header.log.is_zero() {
        return Ok(None);
    }
    if header.log_length > MAX_REPLAY {
        return Err(Error::Unsupported(format!(
            "replaying a log of {} bytes (at most {MAX_REPLAY})",
            header.log_length
        )));
    }
    let bytes = read_up_to(file, log.start, header.log_length as usize).await?;
    if bytes.len() != header.log_length as usize {
        return Err(fault(Fault::Truncated).into());
    }
    let entries = active_sequence(&bytes, header.log).ok_or(fault(Fault::NoLogSequence))?;
    if let Some(head) = entries.last()
        && file_len < head.flushed_file_offset
    {
        let (field, value) = ("FlushedFileOffset", head.flushed_file_offset);
        let rule = "the file has been cut shorter than this";
        return Err(fault(Fault::Field { field, value, rule }).into());
    }
    let overlay = Overlay::new(entries);
    // Neither the headers nor the log itself are changed through the log (MS-VHDX 2.3).
    for range in overlay.touched() {
        let hits = |other: &Range<u64>| range.start < other.end && other.start < range.end;
        if hits(&(0..REGION_TABLE_OFFSETS[0])) || hits(&log) {
            let (field, value) = ("FileOffset", range.start);
            let rule = "a log entry must not change the headers or the log";
            return Err(fault(Fault::Field { field, value, rule }).into());
        }
    }
    Ok(Some(overlay))
}

/// Reads and checks the structures. Differencing images load too: [`Metadata::has_parent`].
///
/// Someone may change the image meanwhile, as a merge does whose child is being opened. What was read
/// may then be of two moments, right or not; the headers tell, and it is read again.
pub async fn load(file: Arc<dyn File>) -> Result<Loaded> {
    const TRIES: usize = 10;
    let newest = async || -> Result<Option<u64>> {
        let [first, second] = headers(&*file).await?;
        Ok(header::current(&first, &second).ok().map(|(_, header)| header.sequence))
    };
    let mut before = newest().await?;
    for _ in 1..TRIES {
        let loaded = load_once(file.clone()).await;
        let after = newest().await?;
        if before == after {
            return loaded;
        }
        before = after;
    }
    load_once(file).await
}

async fn load_once(file: Arc<dyn File>) -> Result<Loaded> {
    let identifier = FileIdentifier::parse(&read_up_to(&*file, 0, IDENTIFIER_SIZE).await?)?;
    let [first, second] = headers(&*file).await?;
    let (index, current) = header::current(&first, &second)?;
    let file_len = file.len().await?;
    if file_len > MAX_FILE {
        return Err(Error::Unsupported(format!("a file of {file_len} bytes (at most {MAX_FILE})")));
    }
    let overlay = replay(&*file, &current, file_len).await?.map(Arc::new);
    let view: Arc<dyn File> = match &overlay {
        Some(overlay) => Arc::new(ReplayedFile::new(file, overlay.clone())),
        None => file,
    };
    let file_len = view.len().await?;

    let (number, regions) = match region_tables(&*view).await? {
        [Ok(first), _] => (1, first),
        [Err(_), Ok(second)] => (2, second),
        [Err(first), Err(second)] => {
            let fault = Fault::NoValidCopy(format!("{first}; {second}"));
            let structure = Structure::RegionTable(1);
            return Err(Damage::new(structure, REGION_TABLE_OFFSETS[0], fault).into());
        }
    };
    let (bat, metadata_region) = regions.known(number, log_range(&current))?;

    let base = metadata_region.offset;
    let head = read_up_to(&*view, base, metadata::TABLE_SIZE).await?;
    let table = metadata::Table::parse(&head, base, metadata_region.length)?;
    // At most six items are read; each is at most 1 MiB by the table's rules.
    let mut items = Vec::new();
    for id in [
        metadata::FILE_PARAMETERS,
        metadata::DISK_SIZE,
        metadata::DISK_ID,
        metadata::LOGICAL_SECTOR,
        metadata::PHYSICAL_SECTOR,
        metadata::PARENT_LOCATOR,
    ] {
        if let Some(entry) = table.find(id) {
            let at = base + u64::from(entry.offset);
            items.push((entry.offset, read_up_to(&*view, at, entry.length as usize).await?));
        }
    }
    let metadata = Metadata::from_items(&table, base, |entry| {
        items.iter().find(|(offset, _)| *offset == entry.offset).map(|(_, bytes)| bytes.as_slice())
    })?;

    let layout = BatLayout::new(&metadata);
    let needed = layout.entries * ENTRY_SIZE;
    let fault = |fault| Damage::new(Structure::Bat, bat.offset, fault);
    if u64::from(bat.length) < needed {
        let (field, value) = ("Length", u64::from(bat.length));
        let rule = "the region is too short for the disk's blocks";
        return Err(fault(Fault::Field { field, value, rule }).into());
    }
    if bat.offset + needed > file_len {
        return Err(fault(Fault::Truncated).into());
    }
    Ok(Loaded {
        view,
        file_len,
        identifier,
        header: (index, current),
        overlay,
        regions,
        bat,
        metadata,
        layout,
    })
}

impl Loaded {
    /// The places no block may be: header section, log, regions.
    pub fn fixed_places(&self) -> Vec<(String, Range<u64>)> {
        let mut places = vec![
            ("header section".to_owned(), 0..MIB),
            ("log".to_owned(), log_range(&self.header.1)),
        ];
        places.extend(
            self.regions.regions.iter().map(|r| (format!("region {}", r.id), r.offset..r.end())),
        );
        places
    }
}

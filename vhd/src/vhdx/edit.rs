//! Changing an image's structures while nobody has it open as a disk.
//!
//! ```text
//!  prepare   payload, new tables: in space that nothing names yet
//!  stage     the pages of 4 KiB that are to change, in memory
//!  commit    flush ─► one log entry of all staged pages ─► flush ─► pages in place
//!  finish    flush ─► the header names no log ─► space that nothing names any more is given back
//! ```
//!
//! A crash before the entry is durable leaves the image as it was, one after it the image changed:
//! what is staged together comes together.

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use block_io::File;

use super::{
    MIB, REGION_TABLE_OFFSETS,
    bat::{BatLayout, ENTRY_SIZE, RawEntry},
    commit::{Headers, LogWriter},
    header::Header,
    load::{Loaded, load, read_up_to},
    locator::ParentLocator,
    log::{self, Update},
    metadata::{self, Entry, PARENT_LOCATOR, Table},
    open::load_to_change,
    region::{BAT_REGION, RegionTable},
    scan::taken,
    space::SpaceMap,
    zero_range,
};
use crate::{Damage, Error, Fault, Guid, Result, Structure};

const PAGE: u64 = log::SECTOR as u64;
/// Bytes copied at once.
const STEP: u64 = 1 << 20;

/// An image being changed. Dropping it is like a crash of the program.
pub(crate) struct Editor {
    file: Arc<dyn File>,
    pub(crate) image: Loaded,
    headers: Headers,
    log: LogWriter,
    staged: BTreeMap<u64, Box<[u8; PAGE as usize]>>,
    begun: bool,
    capacity: usize,
}

impl Editor {
    /// Opens the image in `file`; a log left by a crash is replayed.
    pub(crate) async fn open(file: Arc<dyn File>) -> Result<Self> {
        if file.is_read_only() {
            return Err(block_io::Error::ReadOnly.into());
        }
        let image = load_to_change(&file).await?;
        let header = image.header.1;
        let log_len = u64::from(header.log_length);
        Ok(Self {
            file,
            headers: Headers::new(image.header),
            log: LogWriter::new(header.log_offset, log_len),
            image,
            staged: BTreeMap::new(),
            begun: false,
            // As in an open disk: the entry before stays whole.
            capacity: log::data_capacity(log_len / 2),
        })
    }

    pub(crate) fn file(&self) -> &Arc<dyn File> {
        &self.file
    }

    pub(crate) fn layout(&self) -> BatLayout {
        self.image.layout
    }

    /// Renews the identity of the file before its first change, and with `content` that of the
    /// content (MS-VHDX 2.2.2).
    pub(crate) async fn begin(&mut self, content: Option<Guid>) -> Result<()> {
        if !self.begun || content.is_some() {
            let change = |header: &mut Header| {
                header.file_write = Guid::random();
                header.data_write = content.unwrap_or(header.data_write);
            };
            self.headers.lock().await.update(&*self.file, change).await?;
            if let Some(content) = content {
                self.image.header.1.data_write = content;
            }
            self.begun = true;
        }
        Ok(())
    }

    /// Pages that can still be staged before a commit must come.
    pub(crate) fn room(&self) -> usize {
        self.capacity.saturating_sub(self.staged.len())
    }

    /// Changes bytes of a structure in memory; pages that stay the same are not staged.
    pub(crate) async fn stage(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        let mut done = 0;
        while done < bytes.len() {
            let place = at + done as u64;
            let (page, within) = (place / PAGE * PAGE, (place % PAGE) as usize);
            let n = (PAGE as usize - within).min(bytes.len() - done);
            let piece = &bytes[done..done + n];
            done += n;
            let staged = match self.staged.get_mut(&page) {
                Some(staged) => staged,
                None => {
                    let mut now = Box::new([0; PAGE as usize]);
                    let read = read_up_to(&*self.file, page, PAGE as usize).await?;
                    now[..read.len()].copy_from_slice(&read);
                    if now[within..within + n] == *piece {
                        continue;
                    }
                    self.staged.entry(page).or_insert(now)
                }
            };
            staged[within..within + n].copy_from_slice(piece);
        }
        Ok(())
    }

    /// Stages a table entry.
    pub(crate) async fn stage_entry(&mut self, index: u64, entry: RawEntry) -> Result<()> {
        self.stage(self.image.bat.offset + index * ENTRY_SIZE, &entry.0.to_le_bytes()).await
    }

    /// A table entry as it is in the file.
    pub(crate) async fn entry(&self, index: u64) -> Result<RawEntry> {
        let at = self.image.bat.offset + index * ENTRY_SIZE;
        let mut raw = [0; ENTRY_SIZE as usize];
        block_io::read_exact_at(&*self.file, at, &mut raw).await?;
        Ok(RawEntry(u64::from_le_bytes(raw)))
    }

    /// Makes all that is staged durable, together.
    pub(crate) async fn commit(&mut self, space: &SpaceMap) -> Result<()> {
        if self.staged.is_empty() {
            return Ok(());
        }
        if self.staged.len() > self.capacity {
            return Err(Error::Unsupported(format!(
                "a change of {} pages with a log of {} bytes (at most {} pages)",
                self.staged.len(),
                self.image.header.1.log_length,
                self.capacity
            )));
        }
        self.begin(None).await?;
        let staged = std::mem::take(&mut self.staged);
        let updates =
            staged.iter().map(|(at, data)| Update::Data { offset: *at, data: data.clone() });
        // What the pages expose, and the pages of the commit before.
        self.file.flush().await?;
        let (len, updates) = (self.file.len().await?, updates.collect());
        self.log.commit(&*self.file, &self.headers, updates, len, space.end()).await?;
        for (at, data) in &staged {
            self.file.write_at(*at, &data[..]).await?;
        }
        Ok(())
    }

    /// Ends the session: everything in its place and durable, no log.
    async fn settle(&mut self) -> Result<()> {
        self.file.flush().await?;
        if self.log.end() {
            self.headers.lock().await.update(&*self.file, |h| h.log = Guid::ZERO).await?;
        }
        Ok(())
    }

    /// Ends the session and gives the space back that nothing uses: cut off at the end, punched
    /// elsewhere. Returns the length of the file. It stays open.
    pub(crate) async fn finish(mut self) -> Result<u64> {
        self.settle().await?;
        self.image = load(self.file.clone()).await?;
        let space = self.space().await?;
        let end = self.cut(&space).await?;
        punch(&*self.file, space.free_runs(end)).await?;
        self.file.flush().await?;
        Ok(end)
    }

    /// Cuts off what nothing uses at the end; returns the length of the file.
    pub(crate) async fn cut(&mut self, space: &SpaceMap) -> Result<u64> {
        let (end, len) = (space.end(), self.file.len().await?);
        if end < len {
            self.file.set_len(end).await?;
        }
        self.image.file_len = len.min(end);
        Ok(self.image.file_len)
    }

    /// What is taken of the file; fails at the first contradiction.
    pub(crate) async fn space(&self) -> Result<SpaceMap> {
        taken(&self.image, |_, _| {}).await
    }

    /// Space for a structure: a hole, else past the end. Claimed, and zeros.
    pub(crate) async fn take_space(&mut self, space: &mut SpaceMap, len: u64) -> Result<u64> {
        let limit = self.image.file_len / MIB * MIB;
        let at = match space.claim_free(len, limit) {
            Some(at) => {
                zero_range(&*self.file, at..at + len).await?;
                return Ok(at);
            }
            // The last block may be longer than the file.
            None => space.end().max(self.image.file_len.next_multiple_of(MIB)),
        };
        self.file.set_len(at + len).await?;
        self.image.file_len = at + len;
        if !space.claim(at..at + len) {
            return Err(block_io::Error::Corrupt("space past the end is in use".into()).into());
        }
        Ok(at)
    }

    /// Copies the first `keep` entries of the table to a new region of `entries` entries and stages
    /// the change of place. What is between is zeros.
    pub(crate) async fn move_table(
        &mut self,
        space: &mut SpaceMap,
        keep: u64,
        entries: u64,
    ) -> Result<()> {
        let length = (entries * ENTRY_SIZE).next_multiple_of(MIB);
        let to = self.take_space(space, length).await?;
        self.move_table_to(to, length, keep).await
    }

    /// As [`Editor::move_table`], to a place that is claimed and zeros.
    pub(crate) async fn move_table_to(&mut self, to: u64, length: u64, keep: u64) -> Result<()> {
        let from = self.image.bat.offset;
        copy_range(&*self.file, from..from + keep * ENTRY_SIZE, to).await?;
        // At most 64 Mi entries of 8 bytes and their bitmap entries: under 1 GiB.
        self.move_region(BAT_REGION, to, length as u32).await
    }

    /// Stages another place of a region; what is to be there is there.
    pub(super) async fn move_region(&mut self, id: Guid, to: u64, length: u32) -> Result<()> {
        let mut regions = self.image.regions.clone();
        for region in regions.regions.iter_mut().filter(|region| region.id == id) {
            region.offset = to;
            region.length = length;
            if id == BAT_REGION {
                self.image.bat = *region;
            }
        }
        self.stage_regions(&regions).await?;
        self.image.regions = regions;
        Ok(())
    }

    /// Stages both region tables.
    pub(crate) async fn stage_regions(&mut self, regions: &RegionTable) -> Result<()> {
        let table = regions.encode();
        for at in REGION_TABLE_OFFSETS {
            self.stage(at, &table).await?;
        }
        Ok(())
    }

    /// The metadata region's offset and length, and its table.
    async fn metadata(&self) -> Result<(u64, u32, Table)> {
        let region = self.image.regions.find(super::region::METADATA_REGION);
        let Some(region) = region else {
            let fault = Fault::Missing("metadata region");
            let structure = Structure::RegionTable(1);
            return Err(Damage::new(structure, REGION_TABLE_OFFSETS[0], fault).into());
        };
        let bytes = read_up_to(&*self.file, region.offset, metadata::TABLE_SIZE).await?;
        let table = Table::parse(&bytes, region.offset, region.length)?;
        Ok((region.offset, region.length, table))
    }

    /// Stages the value of a metadata item that has this length already.
    pub(crate) async fn stage_item(&mut self, id: Guid, value: &[u8]) -> Result<()> {
        let (base, _, table) = self.metadata().await?;
        match table.find(id) {
            Some(entry) if entry.length as usize == value.len() => {
                self.stage(base + u64::from(entry.offset), value).await
            }
            _ => {
                let fault = Fault::Missing("item of this length");
                Err(Damage::new(Structure::MetadataItem(id), base, fault).into())
            }
        }
    }

    /// Stages another parent locator (MS-VHDX 2.6.2.6).
    pub(crate) async fn stage_locator(&mut self, locator: &ParentLocator) -> Result<()> {
        let (base, region_len, mut table) = self.metadata().await?;
        let value = locator.encode();
        let missing = || {
            let structure = Structure::MetadataItem(PARENT_LOCATOR);
            Error::from(Damage::new(structure, base, Fault::Missing("parent locator")))
        };
        let slot = table.entries.iter().position(|e| e.id == PARENT_LOCATOR && !e.is_user);
        let slot = slot.ok_or_else(missing)?;
        let old = table.entries[slot];
        let offset = if value.len() <= old.length as usize {
            old.offset
        } else {
            let others = table.entries.iter().filter(|e| e.id != PARENT_LOCATOR || e.is_user);
            gap(others, region_len, value.len()).ok_or_else(|| {
                Error::InvalidOptions("the parent locator does not fit the metadata region".into())
            })?
        };
        // A gap lies within the region, which is at most 4 GiB.
        table.entries[slot] = Entry { offset, length: value.len() as u32, ..old };
        let mut head = read_up_to(&*self.file, base, metadata::TABLE_SIZE).await?;
        let at = 32 + 32 * slot;
        head[at + 16..at + 20].copy_from_slice(&offset.to_le_bytes());
        head[at + 20..at + 24].copy_from_slice(&(value.len() as u32).to_le_bytes());
        self.stage(base, &head).await?;
        self.stage(base + u64::from(offset), &value).await?;
        self.image.metadata.parent = Some(locator.clone());
        Ok(())
    }
}

/// What a copy of an image with identities of its own is made of.
pub(crate) struct CloneParts {
    /// The image as it reads after the replay of its log.
    pub(crate) view: Arc<dyn File>,
    pub(crate) file_len: u64,
    /// The first 4 KiB, to be written last.
    pub(crate) identifier: Vec<u8>,
    /// Without a log, with new identities.
    pub(crate) header: Header,
    /// A region table.
    pub(crate) regions: Vec<u8>,
    /// Bytes of the metadata that are others in the copy, and where they are.
    pub(crate) changes: Vec<(u64, Vec<u8>)>,
}

/// Reads what a copy of the image in `file` is made of. Never writes.
pub(crate) async fn clone_parts(file: Arc<dyn File>) -> Result<CloneParts> {
    let image = load(file).await?;
    let mut identifier = image.identifier.encode();
    identifier.resize(PAGE as usize, 0);
    let mut changes = Vec::new();
    let region = image.regions.find(super::region::METADATA_REGION);
    if let Some(base) = region.map(|region| region.offset)
        && !image.metadata.has_parent
    {
        let bytes = read_up_to(&*image.view, base, metadata::TABLE_SIZE).await?;
        let length = region.map_or(0, |region| region.length);
        if let Some(item) = Table::parse(&bytes, base, length)?.find(metadata::DISK_ID) {
            changes.push((base + u64::from(item.offset), Guid::random().to_bytes().to_vec()));
        }
    }
    let header = Header {
        sequence: 0,
        file_write: Guid::random(),
        data_write: Guid::random(),
        log: Guid::ZERO,
        ..image.header.1
    };
    let regions = image.regions.encode();
    let (view, file_len) = (image.view, image.file_len);
    Ok(CloneParts { view, file_len, identifier, header, regions, changes })
}

/// The first gap of `len` bytes that no item is in, on a boundary of 4 KiB.
pub(super) fn gap<'a>(
    items: impl Iterator<Item = &'a Entry>,
    region_len: u32,
    len: usize,
) -> Option<u32> {
    let mut taken: Vec<Range<u64>> = items
        .filter(|item| item.length != 0)
        .map(|item| u64::from(item.offset)..u64::from(item.offset) + u64::from(item.length))
        .collect();
    taken.sort_unstable_by_key(|range| range.start);
    let mut at = metadata::TABLE_SIZE as u64;
    for range in taken {
        if at + len as u64 <= range.start {
            break;
        }
        at = at.max(range.end.next_multiple_of(PAGE));
    }
    (at + len as u64 <= u64::from(region_len)).then_some(at as u32)
}

/// Punches holes where the file can.
pub(crate) async fn punch(file: &dyn File, ranges: Vec<Range<u64>>) -> Result<u64> {
    let mut punched = 0;
    for range in ranges {
        let len = range.end - range.start;
        match file.punch_hole(range).await {
            Ok(()) => punched += len,
            Err(block_io::Error::Unsupported(_)) => return Ok(punched),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(punched)
}

/// Copies a range of the file to another place, which is zeros; holes stay holes. What lies past
/// the end of the file is not copied.
pub(crate) async fn copy_range(file: &dyn File, from: Range<u64>, to: u64) -> Result<()> {
    let mut buf = vec![0; STEP.min(from.end - from.start) as usize];
    for piece in file.allocated_ranges(from.clone()).await? {
        let mut at = piece.start.max(from.start);
        while at < piece.end {
            let n = (piece.end - at).min(buf.len() as u64) as usize;
            let got = file.read_at(at, &mut buf[..n]).await?;
            if got == 0 {
                break;
            }
            file.write_at(to + (at - from.start), &buf[..got]).await?;
            at += got as u64;
        }
    }
    Ok(())
}

//! Changing an image's structures while nobody has it open as a disk.
//!
//! There is no log, so every change is one sector, which is written whole or not at all, and what
//! it exposes is durable before: a footer, the first half of the header, one sector of the table.
//! The header's two halves do not change together; a new header is written beside the old one, and
//! the footers then name it.

use std::{ops::Range, sync::Arc};

use block_io::File;

use super::{
    SECTOR,
    footer::{self, Footer, Kind},
    header::{self, Header, Locator},
    load::{ABSENT, Blocks, Loaded, load},
    places::{ABSOLUTE, RELATIVE},
};
use crate::{Error, Guid, Result};

/// An image being changed. Dropping it is like a crash of the program.
pub(crate) struct Editor {
    file: Arc<dyn File>,
    pub(crate) footer: Footer,
    pub(crate) file_len: u64,
    /// None in a fixed image.
    blocks: Option<Blocks>,
}

impl Editor {
    /// Opens the image in `file` and sees that both footers are there.
    pub(crate) async fn open(file: Arc<dyn File>) -> Result<Self> {
        if file.is_read_only() {
            return Err(block_io::Error::ReadOnly.into());
        }
        let image = load(&*file).await?;
        Self::from_loaded(file, image).await
    }

    /// As [`Editor::open`], of an image whose table was judged by the caller.
    pub(super) async fn from_loaded(file: Arc<dyn File>, image: Loaded) -> Result<Self> {
        let Loaded { footer, file_len, blocks, short_footer, .. } = image;
        if short_footer {
            // Writing a whole one in its place would take the last byte of the disk.
            let what =
                "changing a VHD whose footer has 511 bytes (convert makes a new image of it)";
            return Err(Error::Unsupported(what.into()));
        }
        let mut editor = Self { file, footer, file_len, blocks };
        if editor.blocks.is_some() {
            if image.lost_copy.is_some() {
                editor.file.write_at(0, &editor.footer.encode()).await?;
                editor.file.flush().await?;
            }
            editor.cut().await?;
        }
        Ok(editor)
    }

    pub(crate) fn file(&self) -> &Arc<dyn File> {
        &self.file
    }

    /// Header, table and free space of an image that is not fixed.
    pub(crate) fn blocks(&self) -> Option<&Blocks> {
        self.blocks.as_ref()
    }

    pub(crate) fn blocks_mut(&mut self) -> Option<&mut Blocks> {
        self.blocks.as_mut()
    }

    /// Puts the footer behind the last thing that is used, and cuts the file off there.
    pub(crate) async fn cut(&mut self) -> Result<()> {
        let Some(blocks) = &self.blocks else { return Ok(()) };
        let end = blocks.end;
        if self.file_len != end + footer::LEN as u64 {
            self.file.write_at(end, &self.footer.encode()).await?;
            self.file.flush().await?;
            self.file.set_len(end + footer::LEN as u64).await?;
            self.file_len = end + footer::LEN as u64;
        }
        let at_end = Footer::parse(&self.sector(end).await?, end);
        if at_end.as_ref() != Ok(&self.footer) {
            self.file.write_at(end, &self.footer.encode()).await?;
        }
        Ok(self.file.flush().await?)
    }

    async fn sector(&self, at: u64) -> Result<[u8; SECTOR as usize]> {
        let mut sector = [0; SECTOR as usize];
        self.file.read_at(at, &mut sector).await?;
        Ok(sector)
    }

    /// Puts another footer in both places, one after the other. Durable on return.
    pub(crate) async fn set_footer(&mut self, footer: Footer) -> Result<()> {
        let at = match &self.blocks {
            Some(blocks) => blocks.end,
            None => self.file_len - footer::LEN as u64,
        };
        self.file.write_at(at, &footer.encode()).await?;
        self.file.flush().await?;
        if footer.kind != Kind::Fixed {
            self.file.write_at(0, &footer.encode()).await?;
            self.file.flush().await?;
        }
        self.footer = footer;
        Ok(())
    }

    /// Takes `len` bytes behind the last thing that is used; the footer is behind them then. They
    /// may hold anything.
    pub(crate) async fn extend(&mut self, len: u64) -> Result<u64> {
        let Some(blocks) = &mut self.blocks else { return Ok(self.file_len) };
        let at = blocks.end;
        let end = at + len.next_multiple_of(SECTOR);
        if end / SECTOR >= u64::from(ABSENT) {
            return Err(block_io::Error::NoSpace.into());
        }
        self.file.write_at(end, &self.footer.encode()).await?;
        blocks.end = end;
        self.file_len = end + footer::LEN as u64;
        Ok(at)
    }

    /// Names another table. What it says was made durable by the caller.
    pub(crate) async fn set_table(&mut self, offset: u64, entries: u32) -> Result<()> {
        let Some(blocks) = &mut self.blocks else { return Ok(()) };
        blocks.header.table_offset = offset;
        blocks.header.entries = entries;
        // Both, and the checksum, are in the first sector of the header.
        let first = &blocks.header.encode()[..SECTOR as usize];
        self.file.write_at(self.footer.data_offset, first).await?;
        Ok(self.file.flush().await?)
    }

    /// Writes the sectors of the table that hold these entries, as they are in memory. Durable on
    /// return; what they expose must be so before.
    pub(crate) async fn write_table(&self, entries: Range<usize>) -> Result<()> {
        let Some(blocks) = &self.blocks else { return Ok(()) };
        let (offset, table) = (blocks.header.table_offset, &blocks.table);
        let per_sector = SECTOR as usize / 4;
        let mut first = entries.start / per_sector * per_sector;
        let end = entries.end.next_multiple_of(per_sector);
        while first < end {
            let last = (first + 256 * per_sector).min(end);
            let entry = |i: usize| table.get(i).copied().unwrap_or(ABSENT).to_be_bytes();
            let bytes: Vec<u8> = (first..last).flat_map(entry).collect();
            self.file.write_at(offset + first as u64 * 4, &bytes).await?;
            first = last;
        }
        Ok(self.file.flush().await?)
    }

    /// Names another parent: a new header, and the paths, where nothing is yet.
    pub(crate) async fn set_parent(
        &mut self,
        id: Guid,
        timestamp: u32,
        relative_path: &str,
    ) -> Result<()> {
        let Some(blocks) = &self.blocks else {
            return Err(Error::InvalidOptions("a fixed image has no parent".into()));
        };
        let path = relative_path.replace('/', "\\");
        let header = Header {
            parent_id: id,
            parent_timestamp: timestamp,
            parent_name: path.rsplit('\\').next().unwrap_or_default().to_owned(),
            locators: Vec::new(),
            ..blocks.header.clone()
        };
        let dotted = path.starts_with("..\\") || path.starts_with(".\\");
        let relative = if dotted { path.clone() } else { format!(".\\{path}") };
        let mut paths = Vec::new();
        for (platform, path) in [(RELATIVE, relative), (ABSOLUTE, path)] {
            let bytes: Vec<u8> = path.encode_utf16().flat_map(u16::to_le_bytes).collect();
            if bytes.len() > 4096 {
                return Err(Error::InvalidOptions("the parent's path is too long".into()));
            }
            paths.push((platform, bytes));
        }
        self.put_header(header, paths).await
    }

    /// Writes a header with these paths where nothing is yet, and names it.
    async fn put_header(
        &mut self,
        mut header: Header,
        paths: Vec<([u8; 4], Vec<u8>)>,
    ) -> Result<()> {
        let room: usize = paths.iter().map(|(_, b)| b.len().next_multiple_of(512)).sum();
        let at = self.place((header::LEN + room) as u64).await?;
        let mut bytes = vec![0; header::LEN + room];
        let mut offset = header::LEN;
        header.locators.clear();
        for (platform, path) in paths {
            let space = path.len().next_multiple_of(512);
            bytes[offset..offset + path.len()].copy_from_slice(&path);
            // Paths are short: 64 KiB at most.
            let (space, length) = (space as u32, path.len() as u32);
            header.locators.push(Locator { platform, space, length, offset: at + offset as u64 });
            offset += space as usize;
        }
        bytes[..header::LEN].copy_from_slice(&header.encode());
        self.file.write_at(at, &bytes).await?;
        self.file.flush().await?;
        self.set_footer(Footer { data_offset: at, ..self.footer.clone() }).await?;
        if let Some(blocks) = &mut self.blocks {
            blocks.header = header;
        }
        Ok(())
    }

    /// Moves the header and the parent's paths into a gap before them, if there is one.
    pub(crate) async fn move_header_down(&mut self) -> Result<()> {
        let Some(blocks) = &self.blocks else { return Ok(()) };
        let header = blocks.header.clone();
        let mut paths = Vec::new();
        for locator in &header.locators {
            let mut bytes = vec![0; locator.length as usize];
            block_io::read_exact_at(&*self.file, locator.offset, &mut bytes).await?;
            paths.push((locator.platform, bytes));
        }
        let room: usize = paths.iter().map(|(_, b)| b.len().next_multiple_of(512)).sum();
        let last = header.locators.iter().map(|l| l.offset).max().unwrap_or_default();
        let last = last.max(self.footer.data_offset);
        match self.gap((header::LEN + room) as u64) {
            Some(at) if at < last => self.put_header(header, paths).await,
            _ => Ok(()),
        }
    }

    /// The first gap of `len` bytes, else room at the end.
    async fn place(&mut self, len: u64) -> Result<u64> {
        match self.gap(len) {
            Some(at) => Ok(at),
            None => self.extend(len).await,
        }
    }

    /// The first gap of `len` bytes between what is used.
    pub(crate) fn gap(&self, len: u64) -> Option<u64> {
        let mut at = footer::LEN as u64;
        for range in self.used() {
            if at + len <= range.start {
                return Some(at);
            }
            at = at.max(range.end.next_multiple_of(SECTOR));
        }
        None
    }

    /// What is used of the file but for the footer at the end, ascending.
    pub(crate) fn used(&self) -> Vec<Range<u64>> {
        let mut used: Vec<_> = std::iter::once(0..footer::LEN as u64).collect();
        if let Some(blocks) = &self.blocks {
            let header = &blocks.header;
            let at = self.footer.data_offset;
            used.push(at..at + header::LEN as u64);
            let table = (u64::from(header.entries) * 4).next_multiple_of(SECTOR);
            used.push(header.table_offset..header.table_offset + table);
            for locator in &header.locators {
                let len = u64::from(locator.length.max(1)).next_multiple_of(SECTOR);
                used.push(locator.offset..locator.offset + len);
            }
            let len = header.bitmap_len() + u64::from(header.block_size);
            let places = blocks.table.iter().filter(|entry| **entry != ABSENT);
            used.extend(places.map(|entry| {
                let at = u64::from(*entry) * SECTOR;
                at..at + len
            }));
        }
        used.sort_unstable_by_key(|range| range.start);
        used
    }

    /// Finds out anew where the free space at the end begins, and cuts the file off there.
    pub(crate) async fn finish(mut self) -> Result<u64> {
        let end = self.used().iter().map(|range| range.end).max().unwrap_or_default();
        if let Some(blocks) = &mut self.blocks {
            blocks.end = end.next_multiple_of(SECTOR);
        }
        self.cut().await?;
        Ok(self.file_len)
    }
}

/// What a copy of an image is made of: its footer, and where that is to stand.
pub(crate) struct CloneParts {
    pub(crate) footer: Footer,
    pub(crate) end: u64,
}

/// Reads what a copy of the image in `file` is made of. Never writes.
pub(crate) async fn clone_parts(file: &Arc<dyn File>) -> Result<CloneParts> {
    let image = load(&**file).await?;
    let end = image.blocks.map_or(image.footer.size, |blocks| blocks.end);
    Ok(CloneParts { footer: image.footer, end })
}

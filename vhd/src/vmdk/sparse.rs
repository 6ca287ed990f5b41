//! One sparse extent.

use std::{
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
};

use block_io::{Error, File, Result};
use miniz_oxide::inflate::decompress_slice_iter_to_slice;

use super::header::{Header, LENGTH, SECTOR};
use crate::{Damage, Fault, Structure, bytes::Fields, kept::Kept};

/// Bytes of grain tables kept in memory, but at least some tables.
const TABLES: usize = 16 << 20;
/// Inflated grains kept in memory.
const GRAINS: usize = 8;
/// Number and length before the compressed bytes of a grain.
const MARKER: u64 = 12;

/// An open sparse extent.
#[derive(Debug)]
pub(super) struct Sparse {
    file: Arc<dyn File>,
    file_len: u64,
    pub(super) header: Header,
    directory: Vec<u32>,
    tables: Mutex<Kept<Arc<[u32]>>>,
    grains: Mutex<Kept<Arc<[u8]>>>,
}

/// Where a grain is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Grain {
    Zero,
    At(u64),
}

/// Reads so many 32-bit numbers, which must be in the file.
async fn numbers(file: &dyn File, at: u64, count: u64) -> Result<Vec<u32>> {
    let mut bytes = vec![0; count as usize * 4];
    match block_io::read_exact_at(file, at, &mut bytes).await {
        Err(Error::OutOfRange { .. }) => {
            Err(Damage::new(Structure::GrainTable, at, Fault::Truncated).into())
        }
        Err(error) => Err(error),
        Ok(()) => Ok((0..count as usize).map(|i| bytes.u32(i * 4)).collect()),
    }
}

/// Reads the header, or, if that says so, the footer, which stands before the end-of-stream marker.
pub(super) async fn header(file: &dyn File) -> crate::Result<Header> {
    let mut bytes = vec![0; LENGTH];
    let got = file.read_at(0, &mut bytes).await?;
    let header = Header::parse(&bytes[..got])?;
    if header.directory.is_some() {
        return Ok(header);
    }
    let Some(at) = file.len().await?.checked_sub(2 * SECTOR) else {
        return Err(Damage::new(Structure::VmdkHeader, 0, Fault::Missing("footer")).into());
    };
    let got = file.read_at(at, &mut bytes).await?;
    let missing = || Damage::new(Structure::VmdkHeader, at, Fault::Missing("footer"));
    let footer = Header::parse(&bytes[..got]).map_err(|_| missing())?;
    if footer.directory.is_none() || footer.capacity != header.capacity {
        return Err(missing().into());
    }
    Ok(footer)
}

impl Sparse {
    pub(super) async fn open(file: Arc<dyn File>) -> crate::Result<Self> {
        let header = header(&*file).await?;
        let file_len = file.len().await?;
        let at = header.directory.unwrap_or_default();
        // At most 32 MiB, checked with the header.
        let directory = numbers(&*file, at, header.directory_entries()).await?;
        let most = (TABLES / (header.table_entries as usize * 4)).max(4);
        Ok(Self {
            file,
            file_len,
            header,
            directory,
            tables: Mutex::new(Kept::new(most)),
            grains: Mutex::new(Kept::new(GRAINS)),
        })
    }

    /// Where a grain table is in the file; 0 if it is not there.
    pub(super) fn table_place(&self, index: u64) -> u64 {
        u64::from(self.directory.get(index as usize).copied().unwrap_or(0)) * SECTOR
    }

    async fn table(&self, index: u64) -> Result<Option<Arc<[u32]>>> {
        let known = self.tables.lock().unwrap_or_else(PoisonError::into_inner).get(index);
        if known.is_some() {
            return Ok(known);
        }
        let at = self.table_place(index);
        if at == 0 {
            return Ok(None);
        }
        let entries = u64::from(self.header.table_entries);
        let found: Arc<[u32]> = numbers(&*self.file, at, entries).await?.into();
        let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        tables.put(index, found.clone());
        Ok(Some(found))
    }

    /// Where a grain is, and from where on all is as there: to the end of an absent table.
    pub(super) async fn grain(&self, number: u64) -> Result<(Grain, u64)> {
        let entries = u64::from(self.header.table_entries);
        let (index, within) = (number / entries, number % entries);
        let Some(table) = self.table(index).await? else {
            return Ok((Grain::Zero, (index + 1) * self.header.table_covers()));
        };
        let end = (number + 1) * self.header.grain;
        let entry = u64::from(table.get(within as usize).copied().unwrap_or(0));
        let at = match entry {
            0 => return Ok((Grain::Zero, end)),
            1 if self.header.zeroed_grains => return Ok((Grain::Zero, end)),
            entry => entry * SECTOR,
        };
        if at >= self.file_len {
            let place = u64::from(self.directory[index as usize]) * SECTOR + within * 4;
            let rule = "past the file's end";
            let fault = Fault::EntryOffset { index: within, start: at, rule };
            return Err(Damage::new(Structure::GrainTable, place, fault).into());
        }
        Ok((Grain::At(at), end))
    }

    /// A compressed grain, whole.
    async fn inflated(&self, number: u64, at: u64) -> Result<Arc<[u8]>> {
        let known = self.grains.lock().unwrap_or_else(PoisonError::into_inner).get(at);
        if let Some(known) = known {
            return Ok(known);
        }
        let wrong = |fault| Error::from(Damage::new(Structure::Cluster, at, fault));
        let mut marker = [0; MARKER as usize];
        if self.file.read_at(at, &mut marker).await? < marker.len() {
            return Err(wrong(Fault::Truncated));
        }
        let (sector, len) = (marker.u64(0), u64::from(marker.u32(8)));
        if sector != number * self.header.grain / SECTOR {
            let (field, rule) = ("lba", "the grain's own sector");
            return Err(wrong(Fault::Field { field, value: sector, rule }));
        }
        if len > 2 * self.header.grain {
            let (field, rule) = ("size", "at most two grains");
            return Err(wrong(Fault::Field { field, value: len, rule }));
        }
        let mut bytes = vec![0; len as usize];
        let got = self.file.read_at(at + MARKER, &mut bytes).await?;
        let mut out = vec![0; self.header.grain as usize];
        let input = std::iter::once(&bytes[..got]);
        // The last grain may be as short as the disk.
        let whole = self.header.grain.min(self.header.capacity - number * self.header.grain);
        match decompress_slice_iter_to_slice(&mut out, input, true, false) {
            Ok(n) if n as u64 >= whole => {}
            _ => return Err(wrong(Fault::Compressed)),
        }
        let found: Arc<[u8]> = out.into();
        let mut grains = self.grains.lock().unwrap_or_else(PoisonError::into_inner);
        grains.put(at, found.clone());
        Ok(found)
    }

    /// Fills `buf` from the extent.
    pub(super) async fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let end = offset + buf.len() as u64;
        let mut at = offset;
        while at < end {
            let number = at / self.header.grain;
            let (grain, until) = self.grain(number).await?;
            let until = until.min(end);
            let piece = &mut buf[(at - offset) as usize..(until - offset) as usize];
            let within = at % self.header.grain;
            match grain {
                Grain::Zero => piece.fill(0),
                Grain::At(place) if self.header.compressed => {
                    let grain = self.inflated(number, place).await?;
                    let from = within as usize;
                    piece.copy_from_slice(&grain[from..from + piece.len()]);
                }
                Grain::At(place) => {
                    // The last grain of the file may be cut.
                    let got = self.file.read_at(place + within, piece).await?;
                    piece[got..].fill(0);
                }
            }
            at = until;
        }
        Ok(())
    }

    /// The parts of a range that are stored.
    pub(super) async fn ranges(&self, range: Range<u64>) -> Result<Vec<Range<u64>>> {
        let mut found: Vec<Range<u64>> = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let (grain, until) = self.grain(at / self.header.grain).await?;
            let until = until.min(range.end);
            if grain != Grain::Zero {
                match found.last_mut() {
                    Some(last) if last.end == at => last.end = until,
                    _ => found.push(at..until),
                }
            }
            at = until;
        }
        Ok(found)
    }

    pub(super) async fn close(&self) -> Result<()> {
        self.file.close().await
    }
}

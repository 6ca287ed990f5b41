//! Writing an image, from its first cluster to its close.
//!
//! ```text
//!  | header | L1 table | clusters and L2 tables as they come ... | refcount blocks | their table |
//!
//!  write ──► L2 table in memory (the longest unused goes to its place) ──► cluster at the end
//!  close ──► tables, counts (every cluster once), flush, header, flush
//! ```
//!
//! The header comes last, so that what a crash leaves is no image.

use std::{
    collections::HashMap,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use block_io::{Disk, Error, File, Geometry, IoFuture, Result};
use tokio::sync::Mutex;

use super::{
    disk::table,
    entry::{COPIED, Cluster, l2_offset},
    header::{Compression, Header, MAX_L1},
};
use crate::Structure;

const SECTOR: u32 = 512;
/// Bytes of L2 tables kept in memory, but at least some tables.
const TABLES: u64 = 16 << 20;

/// The disk and the layout of an image that is to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CreateOptions {
    /// Bytes of the disk: whole sectors of 512 bytes.
    pub size: u64,
    /// Bytes of a cluster: a power of two from 512 to 2 MiB.
    pub cluster_size: u32,
}

impl CreateOptions {
    /// An image of a disk of `size` bytes with the usual clusters of 64 KiB.
    pub fn new(size: u64) -> Self {
        Self { size, cluster_size: 64 << 10 }
    }

    /// Whether an image can be made of these: to be asked before a file is made for it.
    ///
    /// # Errors
    /// [`crate::Error::InvalidOptions`] saying which value is wrong and what it may be.
    pub fn validate(&self) -> crate::Result<()> {
        self.header().map(drop)
    }

    fn header(&self) -> crate::Result<Header> {
        let invalid = |why: String| Err(crate::Error::InvalidOptions(why));
        let cluster_size = u64::from(self.cluster_size);
        if !cluster_size.is_power_of_two() || !(512..=2 << 20).contains(&cluster_size) {
            return invalid(format!("clusters of {cluster_size}: a power of two, 512 to 2 MiB"));
        }
        if self.size == 0 || !self.size.is_multiple_of(SECTOR.into()) {
            return invalid(format!("disk size {}: whole sectors, more than none", self.size));
        }
        let most = (MAX_L1 / 8).saturating_mul(cluster_size * (cluster_size / 8));
        if self.size > most {
            return invalid(format!("disk size {}: at most {most} in such clusters", self.size));
        }
        let mut header = Header {
            version: 3,
            cluster_size,
            size: self.size,
            l1_size: 0,
            l1_offset: cluster_size,
            refcount_offset: 0,
            refcount_clusters: 0,
            refcount_bits: 16,
            snapshots: 0,
            snapshots_offset: 0,
            incompatible: 0,
            compression: Compression::Deflate,
            backing: None,
            backing_format: None,
        };
        // At most 4 Mi, by the limit above.
        header.l1_size = header.l1_needed() as u32;
        Ok(header)
    }
}

/// An image that is being written; a [`Disk`] that is an image once it is closed.
#[derive(Debug)]
pub struct Writer {
    file: Arc<dyn File>,
    header: Header,
    state: Mutex<State>,
    closed: AtomicBool,
}

#[derive(Debug)]
struct State {
    l1: Vec<u64>,
    /// L2 tables in memory, with when they were last used.
    tables: HashMap<u64, (Vec<u64>, u64)>,
    clock: u64,
    /// Where the next cluster goes.
    end: u64,
}

impl Writer {
    /// Replaces the content of `file` by the beginning of an image.
    ///
    /// # Errors
    /// [`crate::Error::InvalidOptions`]; what the file says.
    pub async fn new(file: Arc<dyn File>, options: CreateOptions) -> crate::Result<Self> {
        let header = options.header()?;
        if file.len().await? > 0 {
            file.set_len(0).await?;
        }
        let l1_bytes = (u64::from(header.l1_size) * 8).next_multiple_of(header.cluster_size);
        let end = header.l1_offset + l1_bytes;
        file.set_len(end).await?;
        let l1 = vec![0; header.l1_size as usize];
        let state = Mutex::new(State { l1, tables: HashMap::new(), clock: 0, end });
        Ok(Self { file, header, state, closed: AtomicBool::new(false) })
    }

    fn usable(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) { Err(Error::Closed) } else { Ok(()) }
    }

    /// The clusters of a range: where each is, given a place if `allocate` says so.
    async fn places(
        &self,
        range: Range<u64>,
        allocate: bool,
    ) -> Result<Vec<(Range<u64>, Option<u64>)>> {
        let size = self.header.cluster_size;
        let mut state = self.state.lock().await;
        let mut places: Vec<(Range<u64>, Option<u64>)> = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let end = ((at / size + 1) * size).min(range.end);
            let place = self.place(&mut state, at / size, allocate).await?.map(|p| p + at % size);
            match places.last_mut() {
                Some((last, from)) if from.map(|from| from + (last.end - last.start)) == place => {
                    last.end = end;
                }
                _ => places.push((at..end, place)),
            }
            at = end;
        }
        Ok(places)
    }

    async fn place(&self, state: &mut State, number: u64, allocate: bool) -> Result<Option<u64>> {
        let (size, entries) = (self.header.cluster_size, self.header.l2_entries());
        let index = number / entries;
        if !state.tables.contains_key(&index) {
            let at = l2_offset(state.l1[index as usize]);
            if at == 0 && !allocate {
                return Ok(None);
            }
            self.make_room(state).await?;
            let table = if at == 0 {
                state.l1[index as usize] = state.end | COPIED;
                state.end += size;
                vec![0; entries as usize]
            } else {
                table(&*self.file, Structure::L2Table, at, entries).await?
            };
            state.tables.insert(index, (table, 0));
        }
        state.clock += 1;
        let Some((table, used)) = state.tables.get_mut(&index) else { return Ok(None) };
        *used = state.clock;
        let entry = &mut table[(number % entries) as usize];
        if *entry == 0 && allocate {
            *entry = state.end | COPIED;
            state.end += size;
        }
        Ok(match Cluster::parse(*entry, size) {
            Some(Cluster::Here(at)) => Some(at),
            _ => None,
        })
    }

    /// Puts the table that was not used for the longest time in its place, if there are many.
    async fn make_room(&self, state: &mut State) -> Result<()> {
        if state.tables.len() < (TABLES / self.header.cluster_size).max(4) as usize {
            return Ok(());
        }
        let oldest = state.tables.iter().min_by_key(|(_, (_, used))| *used).map(|(i, _)| *i);
        if let Some(index) = oldest
            && let Some((table, _)) = state.tables.get(&index)
        {
            self.put(l2_offset(state.l1[index as usize]), table).await?;
            state.tables.remove(&index);
        }
        Ok(())
    }

    async fn put(&self, at: u64, table: &[u64]) -> Result<()> {
        let bytes: Vec<u8> = table.iter().flat_map(|entry| entry.to_be_bytes()).collect();
        self.file.write_at(at, &bytes).await
    }

    async fn write(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.usable()?;
        self.geometry().check(offset, buf.len() as u64)?;
        for (range, place) in self.places(offset..offset + buf.len() as u64, true).await? {
            let part = &buf[(range.start - offset) as usize..(range.end - offset) as usize];
            if let Some(at) = place {
                self.file.write_at(at, part).await?;
            }
        }
        Ok(())
    }

    async fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.usable()?;
        self.geometry().check(offset, buf.len() as u64)?;
        for (range, place) in self.places(offset..offset + buf.len() as u64, false).await? {
            let part = &mut buf[(range.start - offset) as usize..(range.end - offset) as usize];
            // What was not written yet is behind the end of the file or a hole in it.
            let got = match place {
                Some(at) => self.file.read_at(at, part).await?,
                None => 0,
            };
            part[got..].fill(0);
        }
        Ok(())
    }

    async fn zero(&self, offset: u64, len: u64) -> Result<()> {
        self.usable()?;
        self.geometry().check(offset, len)?;
        for (range, place) in self.places(offset..offset + len, false).await? {
            if let Some(at) = place {
                let end = (at + (range.end - range.start)).min(self.file.len().await?);
                if at < end {
                    crate::vhdx::zero_range(&*self.file, at..end).await?;
                }
            }
        }
        Ok(())
    }

    async fn ranges(&self, range: Range<u64>) -> Result<Vec<Range<u64>>> {
        self.usable()?;
        let len = range.end.saturating_sub(range.start);
        Error::check_range(range.start, len, self.header.size)?;
        let places = self.places(range, false).await?;
        Ok(places.into_iter().filter(|(_, place)| place.is_some()).map(|(r, _)| r).collect())
    }

    /// Writes all that makes it an image.
    async fn finish(&self) -> Result<()> {
        if self.closed.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        let mut state = self.state.lock().await;
        for (index, (table, _)) in &state.tables {
            self.put(l2_offset(state.l1[*index as usize]), table).await?;
        }
        self.put(self.header.l1_offset, &state.l1).await?;
        let header = self.counts(&mut state).await?;
        self.file.set_len(state.end).await?;
        self.file.flush().await?;
        self.file.write_at(0, &header.encode()).await?;
        self.file.flush().await?;
        self.file.close().await
    }

    /// Writes a count of one for each cluster, those of the counts themselves included.
    async fn counts(&self, state: &mut State) -> Result<Header> {
        let size = self.header.cluster_size;
        let per_block = size * 8 / u64::from(self.header.refcount_bits);
        let used = state.end / size;
        // The blocks count themselves and their table, which may need another block.
        let (mut blocks, mut tables) = (0, 0);
        loop {
            let wanted = (used + blocks + tables).div_ceil(per_block);
            let wanted_tables = (wanted * 8).div_ceil(size).max(1);
            if (wanted, wanted_tables) == (blocks, tables) {
                break;
            }
            (blocks, tables) = (wanted, wanted_tables);
        }
        let total = used + blocks + tables;
        let first = state.end;
        let mut block = vec![0; size as usize];
        for index in 0..blocks {
            let counted = (total - index * per_block).min(per_block) as usize;
            block.fill(0);
            block[..counted * 2].as_chunks_mut::<2>().0.fill([0, 1]);
            self.file.write_at(first + index * size, &block).await?;
        }
        let offsets: Vec<u64> = (0..blocks).map(|index| first + index * size).collect();
        let table_at = first + blocks * size;
        self.put(table_at, &offsets).await?;
        state.end = total * size;
        Ok(Header {
            refcount_offset: table_at,
            refcount_clusters: tables as u32,
            ..self.header.clone()
        })
    }
}

impl Disk for Writer {
    fn geometry(&self) -> Geometry {
        Geometry {
            size: self.header.size,
            logical_sector: SECTOR,
            physical_sector: 4096,
            discard_granularity: 0,
        }
    }

    fn read_at<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> IoFuture<'a, ()> {
        Box::pin(self.read(offset, buf))
    }

    fn write_at<'a>(&'a self, offset: u64, buf: &'a [u8]) -> IoFuture<'a, ()> {
        Box::pin(self.write(offset, buf))
    }

    /// Makes the bytes durable; they are an image only after [`Disk::close`].
    fn flush(&self) -> IoFuture<'_, ()> {
        Box::pin(async {
            self.usable()?;
            self.file.flush().await
        })
    }

    fn discard(&self, offset: u64, len: u64) -> IoFuture<'_, ()> {
        Box::pin(async move { self.geometry().check(offset, len) })
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> IoFuture<'_, ()> {
        Box::pin(self.zero(offset, len))
    }

    fn allocated_ranges(&self, range: Range<u64>) -> IoFuture<'_, Vec<Range<u64>>> {
        Box::pin(self.ranges(range))
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn close(&self) -> IoFuture<'_, ()> {
        Box::pin(self.finish())
    }
}

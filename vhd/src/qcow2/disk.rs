//! The disk of an image, for reading.

use std::{
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
};

use block_io::{Disk, Error, File, Geometry, Result};

use super::{
    entry::{Cluster, l2_offset},
    header::{Header, MAX_HEADER},
    inflate::inflate,
};
use crate::{Damage, Fault, Structure, bytes::BigEndian, kept::Kept, parent};

/// Bytes of L2 tables kept in memory, but at least some tables.
const TABLES: u64 = 16 << 20;
/// Inflated clusters kept in memory: what a sequential reader comes back to.
const INFLATED: usize = 8;
const SECTOR: u32 = 512;

/// An open image; a read-only [`Disk`].
#[derive(Debug)]
pub struct Qcow2 {
    file: Arc<dyn File>,
    file_len: u64,
    header: Header,
    geometry: Geometry,
    l1: Vec<u64>,
    tables: Mutex<Kept<Arc<[u64]>>>,
    inflated: Mutex<Kept<Arc<[u8]>>>,
    parent: Option<Arc<dyn Disk>>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads the header of the image in `file`, with the file's length.
pub(super) async fn header(file: &dyn File) -> crate::Result<(Header, u64)> {
    let mut bytes = vec![0; MAX_HEADER];
    let got = file.read_at(0, &mut bytes).await?;
    Ok((Header::parse(&bytes[..got])?, file.len().await?))
}

/// Reads a table of `entries` numbers, which must be in the file.
pub(super) async fn table(
    file: &dyn File,
    structure: Structure,
    at: u64,
    entries: u64,
) -> Result<Vec<u64>> {
    let mut bytes = vec![0; entries as usize * 8];
    match block_io::read_exact_at(file, at, &mut bytes).await {
        Err(Error::OutOfRange { .. }) => Err(Damage::new(structure, at, Fault::Truncated).into()),
        Err(error) => Err(error),
        Ok(()) => Ok((0..entries as usize).map(|i| bytes.u64_be(i * 8)).collect()),
    }
}

impl Qcow2 {
    /// Opens the image in `file`. What it lacks is read from `parent`; the name that the image has
    /// for it is the caller's to follow ([`crate::chain`] does).
    ///
    /// # Errors
    /// [`crate::Error::Damaged`]; [`crate::Error::Unsupported`];
    /// [`crate::Error::Differencing`] if there is a backing file and no parent.
    pub async fn open(file: Arc<dyn File>, parent: Option<Arc<dyn Disk>>) -> crate::Result<Self> {
        let (header, file_len) = header(&*file).await?;
        if let (Some(backing), None) = (&header.backing, &parent) {
            return Err(crate::Error::Differencing { parent: backing.clone() });
        }
        let parent = parent.filter(|_| header.backing.is_some());
        if parent.as_ref().is_some_and(|parent| parent.geometry().logical_sector != SECTOR) {
            let why = "the backing file of a QCOW2 image has 512-byte sectors";
            return Err(crate::Error::InvalidOptions(why.into()));
        }
        // At most 32 MiB, checked with the header.
        let entries = header.l1_needed();
        let l1 = table(&*file, Structure::L1Table, header.l1_offset, entries).await?;
        let most = (TABLES / header.cluster_size).max(4) as usize;
        let geometry = Geometry {
            size: header.size.next_multiple_of(SECTOR.into()),
            logical_sector: SECTOR,
            physical_sector: 4096,
            discard_granularity: 0,
        };
        Ok(Self {
            file,
            file_len,
            header,
            geometry,
            l1,
            tables: Mutex::new(Kept::new(most)),
            inflated: Mutex::new(Kept::new(INFLATED)),
            parent,
        })
    }

    /// What the header says.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The L2 table of an L1 entry; `None` if there is none.
    async fn l2(&self, index: u64) -> Result<Option<Arc<[u64]>>> {
        let known = lock(&self.tables).get(index);
        if known.is_some() {
            return Ok(known);
        }
        let at = self.l1.get(index as usize).map_or(0, |raw| l2_offset(*raw));
        if at == 0 {
            return Ok(None);
        }
        let place = self.header.l1_offset + index * 8;
        if !at.is_multiple_of(self.header.cluster_size) {
            let fault = Fault::EntryOffset { index, start: at, rule: "not a cluster's place" };
            return Err(Damage::new(Structure::L1Table, place, fault).into());
        }
        let entries = self.header.l2_entries();
        let found: Arc<[u64]> = table(&*self.file, Structure::L2Table, at, entries).await?.into();
        lock(&self.tables).put(index, found.clone());
        Ok(Some(found))
    }

    /// Where a cluster of the disk is.
    async fn cluster(&self, number: u64) -> Result<Cluster> {
        let (entries, size) = (self.header.l2_entries(), self.header.cluster_size);
        let (index, within) = (number / entries, number % entries);
        let Some(table) = self.l2(index).await? else { return Ok(Cluster::Absent) };
        // A table has as many entries as `within` can be.
        let raw = table.get(within as usize).copied().unwrap_or(0);
        let cluster = Cluster::parse(raw, size);
        let start = cluster.and_then(|c| c.place(size)).map_or(0, |place| place.start);
        match cluster {
            Some(cluster) if start < self.file_len => Ok(cluster),
            _ => {
                let rule = if cluster.is_some() { "past the file's end" } else { "not aligned" };
                let start = if cluster.is_some() { start } else { raw };
                let table = l2_offset(self.l1[index as usize]);
                let fault = Fault::EntryOffset { index: within, start, rule };
                Err(Damage::new(Structure::L2Table, table + within * 8, fault).into())
            }
        }
    }

    /// A compressed cluster, whole.
    async fn inflated(&self, offset: u64, len: u64) -> Result<Arc<[u8]>> {
        let known = lock(&self.inflated).get(offset);
        if let Some(known) = known {
            return Ok(known);
        }
        // At most a cluster and a sector.
        let mut bytes = vec![0; len as usize];
        let got = self.file.read_at(offset, &mut bytes).await?;
        let mut out = vec![0; self.header.cluster_size as usize];
        if !inflate(self.header.compression, &bytes[..got], &mut out) {
            return Err(Damage::new(Structure::Cluster, offset, Fault::Compressed).into());
        }
        let found: Arc<[u8]> = out.into();
        lock(&self.inflated).put(offset, found.clone());
        Ok(found)
    }

    /// The clusters of a range, neighbours together: where in the range, and where they are.
    async fn runs(&self, range: Range<u64>) -> Result<Vec<(Range<u64>, Cluster)>> {
        let size = self.header.cluster_size;
        let mut runs: Vec<(Range<u64>, Cluster)> = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let number = at / size;
            // Where there is no table there are many clusters of nothing.
            let absent = self.l2(number / self.header.l2_entries()).await?.is_none();
            let span = if absent { size * self.header.l2_entries() } else { size };
            let end = ((at / span + 1) * span).min(range.end);
            let mut cluster = if absent { Cluster::Absent } else { self.cluster(number).await? };
            if let Cluster::Here(offset) = &mut cluster {
                *offset += at % size;
            }
            match runs.last_mut() {
                Some((last, kind)) if follows(last, *kind, cluster) => last.end = end,
                _ => runs.push((at..end, cluster)),
            }
            at = end;
        }
        Ok(runs)
    }

    async fn read(&self, offset: u64, mut buf: &mut [u8]) -> Result<()> {
        self.geometry.check(offset, buf.len() as u64)?;
        let end = offset + buf.len() as u64;
        for (range, cluster) in self.runs(offset..end).await? {
            let (piece, rest) = buf.split_at_mut((range.end - range.start) as usize);
            buf = rest;
            match cluster {
                Cluster::Absent => parent::read(self.parent.as_ref(), range.start, piece).await?,
                Cluster::Zero(_) => piece.fill(0),
                Cluster::Here(at) => {
                    // The last cluster of the file may be cut.
                    let got = self.file.read_at(at, piece).await?;
                    piece[got..].fill(0);
                }
                Cluster::Compressed { offset, len } => {
                    let cluster = self.inflated(offset, len).await?;
                    let from = (range.start % self.header.cluster_size) as usize;
                    piece.copy_from_slice(&cluster[from..from + piece.len()]);
                }
            }
        }
        Ok(())
    }

    async fn ranges(&self, range: Range<u64>) -> Result<Vec<Range<u64>>> {
        let len = range.end.saturating_sub(range.start);
        Error::check_range(range.start, len, self.geometry.size)?;
        let mut found: Vec<Range<u64>> = Vec::new();
        let mut add = |piece: Range<u64>| match found.last_mut() {
            Some(last) if last.end == piece.start => last.end = piece.end,
            _ => found.push(piece),
        };
        for (run, cluster) in self.runs(range).await? {
            match cluster {
                Cluster::Absent => {
                    parent::ranges(self.parent.as_ref(), run).await?.into_iter().for_each(&mut add);
                }
                Cluster::Zero(_) => {}
                Cluster::Here(_) | Cluster::Compressed { .. } => add(run),
            }
        }
        Ok(found)
    }
}

/// Whether a cluster goes on where the run before it ends.
fn follows(last: &Range<u64>, kind: Cluster, next: Cluster) -> bool {
    match (kind, next) {
        (Cluster::Absent, Cluster::Absent) | (Cluster::Zero(_), Cluster::Zero(_)) => true,
        (Cluster::Here(a), Cluster::Here(b)) => a + (last.end - last.start) == b,
        _ => false,
    }
}

impl Qcow2 {
    async fn close_files(&self) -> Result<()> {
        self.file.close().await
    }
}

crate::reading::read_only_disk!(Qcow2);

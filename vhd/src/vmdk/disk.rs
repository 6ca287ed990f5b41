//! Extents one after the other as a disk, and finding their files.

use std::{ops::Range, sync::Arc};

use block_io::{Error, File, Geometry, Result};

use super::{
    descriptor::{self, Descriptor, Kind},
    header::{self, MAGIC},
    sparse::{self, Sparse},
};
use crate::{
    Damage, Fault, Structure,
    chain::{Files, beside},
};

const SECTOR: u32 = 512;

/// An open VMDK; a read-only [`block_io::Disk`].
#[derive(Debug)]
pub struct Vmdk {
    geometry: Geometry,
    /// Where each part begins on the disk, ascending.
    parts: Vec<(u64, Part)>,
}

#[derive(Debug)]
enum Part {
    Zero,
    Flat { file: Arc<dyn File>, from: u64 },
    Sparse(Box<Sparse>),
}

/// What a VMDK is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Info {
    /// `monolithicSparse` and so on, as the descriptor says.
    pub create_type: String,
    /// Bytes of the disk.
    pub disk_size: u64,
    /// Bytes of the file; extents in other files do not count.
    pub file_size: u64,
    /// Bytes of a grain of a sparse extent in this file.
    pub grain: Option<u64>,
    /// Grains are compressed.
    pub compressed: bool,
    /// The identity of the content.
    pub content_id: Option<u32>,
    /// The identity of the parent's content, if it has one.
    pub parent_id: Option<u32>,
    /// Files of the extents, but this one.
    pub extents: Vec<String>,
}

/// Reads what the image in `file` is.
///
/// # Errors
/// [`Error::Damaged`](crate::Error::Damaged) for what is no such image; what the file says.
pub async fn info(file: Arc<dyn File>) -> crate::Result<Info> {
    let file_size = file.len().await?;
    let (descriptor, sparse) = describe(&*file).await?;
    let sum = |found: &Descriptor| found.extents.iter().map(|extent| extent.size).sum();
    let disk_size = sparse.map_or_else(|| sum(&descriptor), |header| header.capacity);
    let others = |found: Descriptor| -> Vec<String> {
        let files = found.extents.into_iter().map(|extent| extent.file);
        files.filter(|file| sparse.is_none() && !file.is_empty()).collect()
    };
    Ok(Info {
        disk_size,
        file_size,
        grain: sparse.map(|header| header.grain),
        compressed: sparse.is_some_and(|header| header.compressed),
        content_id: descriptor.content_id,
        parent_id: descriptor.parent_id,
        create_type: descriptor.create_type.clone(),
        extents: others(descriptor),
    })
}

/// The descriptor, and the header if the file is a sparse extent itself. An extent of a disk in
/// pieces has no descriptor of its own: it is taken for an empty one.
pub(super) async fn describe(
    file: &dyn File,
) -> crate::Result<(Descriptor, Option<super::header::Header>)> {
    let mut magic = [0; 8];
    file.read_at(0, &mut magic).await?;
    if let Some(name) = header::foreign(&magic) {
        return Err(crate::Error::Unsupported(format!(
            "{name}; convert it with the tools of its maker"
        )));
    }
    if !magic.starts_with(&MAGIC) {
        let mut bytes = vec![0; descriptor::MAX];
        let got = file.read_at(0, &mut bytes).await?;
        return Ok((Descriptor::parse(&bytes[..got])?, None));
    }
    let header = sparse::header(file).await?;
    let (at, len) = header.descriptor;
    if at == 0 || len == 0 {
        return Ok((Descriptor::default(), Some(header)));
    }
    let mut bytes = vec![0; len.min(descriptor::MAX as u64) as usize];
    let got = file.read_at(at, &mut bytes).await?;
    Ok((Descriptor::parse(&bytes[..got])?, Some(header)))
}

impl Vmdk {
    /// Opens the image in `file`, if that is all of it.
    ///
    /// # Errors
    /// [`crate::Error::Unsupported`] for one that has extents in other files ([`Vmdk::open_at`]) or
    /// a parent; [`crate::Error::Damaged`].
    pub async fn open(file: Arc<dyn File>) -> crate::Result<Self> {
        let (descriptor, sparse) = describe(&*file).await?;
        alone(&descriptor)?;
        if sparse.is_none() {
            let what = "a VMDK whose extents are other files, without its location";
            return Err(crate::Error::Unsupported(what.into()));
        }
        Self::of_one(file).await
    }

    /// Opens the image in `file`, which is at `location`, with the extents beside it.
    ///
    /// # Errors
    /// As [`Vmdk::open`]; [`crate::Error::ParentMissing`] for an extent that is not there.
    pub async fn open_at(
        file: Arc<dyn File>,
        location: &str,
        files: &dyn Files,
    ) -> crate::Result<Self> {
        let (descriptor, sparse) = describe(&*file).await?;
        alone(&descriptor)?;
        if sparse.is_some() {
            return Self::of_one(file).await;
        }
        let mut parts = Vec::with_capacity(descriptor.extents.len());
        let mut at: u64 = 0;
        for extent in &descriptor.extents {
            let part = match extent.kind {
                Kind::Zero => Part::Zero,
                Kind::Flat { from } => {
                    let file = find(location, &extent.file, files).await?;
                    let len = file.len().await?;
                    if from.checked_add(extent.size).is_none_or(|end| end > len) {
                        let rule = "within the extent's file";
                        let fault =
                            Fault::EntryOffset { index: parts.len() as u64, start: from, rule };
                        return Err(Damage::new(Structure::Descriptor, 0, fault).into());
                    }
                    Part::Flat { file, from }
                }
                Kind::Sparse => {
                    let sparse = Sparse::open(find(location, &extent.file, files).await?).await?;
                    if sparse.header.capacity < extent.size {
                        let (field, value) = ("capacity", sparse.header.capacity);
                        let fault = Fault::Field { field, value, rule: "what the descriptor says" };
                        return Err(Damage::new(Structure::VmdkHeader, 12, fault).into());
                    }
                    Part::Sparse(Box::new(sparse))
                }
            };
            parts.push((at, part));
            // At most 32768 extents of less than 2^54 sectors each may still be too much.
            at = at.checked_add(extent.size).filter(|end| *end < 1 << 62).ok_or_else(|| {
                let fault = Fault::Field { field: "size", value: extent.size, rule: "below 2^62" };
                Damage::new(Structure::Descriptor, 0, fault)
            })?;
        }
        Ok(Self::new(at, parts))
    }

    async fn of_one(file: Arc<dyn File>) -> crate::Result<Self> {
        let sparse = Sparse::open(file).await?;
        Ok(Self::new(sparse.header.capacity, vec![(0, Part::Sparse(Box::new(sparse)))]))
    }

    fn new(size: u64, parts: Vec<(u64, Part)>) -> Self {
        let geometry = Geometry {
            size,
            logical_sector: SECTOR,
            physical_sector: 4096,
            discard_granularity: 0,
        };
        Self { geometry, parts }
    }

    /// The parts of a range: each with its first byte on the disk.
    fn within(&self, range: Range<u64>) -> impl Iterator<Item = (Range<u64>, u64, &Part)> {
        let first = self.parts.partition_point(|(start, _)| *start <= range.start).max(1) - 1;
        let rest = self.parts.get(first..).unwrap_or_default();
        rest.iter().enumerate().map_while(move |(i, (start, part))| {
            let next = rest.get(i + 1).map_or(self.geometry.size, |(next, _)| *next);
            let piece = range.start.max(*start)..range.end.min(next);
            (!piece.is_empty()).then_some((piece, *start, part))
        })
    }

    async fn read(&self, offset: u64, mut buf: &mut [u8]) -> Result<()> {
        self.geometry.check(offset, buf.len() as u64)?;
        for (range, start, part) in self.within(offset..offset + buf.len() as u64) {
            let (piece, rest) = buf.split_at_mut((range.end - range.start) as usize);
            buf = rest;
            let at = range.start - start;
            match part {
                Part::Zero => piece.fill(0),
                Part::Flat { file, from } => {
                    block_io::read_exact_at(&**file, from + at, piece).await?;
                }
                Part::Sparse(sparse) => sparse.read(at, piece).await?,
            }
        }
        Ok(())
    }

    async fn ranges(&self, range: Range<u64>) -> Result<Vec<Range<u64>>> {
        let len = range.end.saturating_sub(range.start);
        Error::check_range(range.start, len, self.geometry.size)?;
        let mut found = Vec::new();
        for (range, start, part) in self.within(range) {
            let (stored, base) = match part {
                Part::Zero => (Vec::new(), 0),
                Part::Flat { file, from } => {
                    let here = from + (range.start - start)..from + (range.end - start);
                    (file.allocated_ranges(here).await?, *from)
                }
                Part::Sparse(sparse) => {
                    (sparse.ranges(range.start - start..range.end - start).await?, 0)
                }
            };
            let moved = |piece: Range<u64>| piece.start - base + start..piece.end - base + start;
            found.extend(stored.into_iter().map(moved));
        }
        Ok(found)
    }
}

/// Refuses a disk that holds differences only.
fn alone(descriptor: &Descriptor) -> crate::Result<()> {
    match descriptor.parent_id {
        None => Ok(()),
        Some(id) => Err(crate::Error::Differencing { parent: format!("with the CID {id:08x}") }),
    }
}

/// Opens the file of an extent. It is beside the descriptor or below: whoever wrote the descriptor
/// does not choose any file of whoever opens it.
async fn find(location: &str, name: &str, files: &dyn Files) -> crate::Result<Arc<dyn File>> {
    let inside = !name.starts_with('/') && name.split(['/', '\\']).all(|part| part != "..");
    let Some(at) = beside(location, name).filter(|_| inside) else {
        let what = format!("an extent outside of the descriptor's folder: {name}");
        return Err(crate::Error::Unsupported(what));
    };
    files.open(&at).await.map_err(|source| match source {
        error @ (Error::Outside(_) | Error::Busy(_)) => error.into(),
        source => crate::Error::ParentMissing {
            parent: name.to_owned(),
            tried: vec![at.clone()],
            source: Some(source),
        },
    })
}

impl Vmdk {
    async fn close_files(&self) -> Result<()> {
        for (_, part) in &self.parts {
            match part {
                Part::Zero => {}
                Part::Flat { file, .. } => file.close().await?,
                Part::Sparse(sparse) => sparse.close().await?,
            }
        }
        Ok(())
    }
}

crate::reading::read_only_disk!(Vmdk);

//! Chains of images in memory, of either format, and random content for them.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use block_io::{
    Disk, File, IoFuture,
    testing::{MemFile, Rng},
};
use vhd::{
    Format,
    chain::{self, Files},
    classic, vhdx,
};

use super::MIB;

/// The smallest block of each format.
pub fn block(format: Format) -> u64 {
    if format == Format::Vhdx { MIB } else { MIB / 2 }
}

/// Files by name. Level 0 has no parent.
#[derive(Debug, Clone)]
pub struct Family {
    pub format: Format,
    pub files: Arc<Mutex<BTreeMap<String, Arc<dyn File>>>>,
}

impl Files for Family {
    fn open<'a>(&'a self, location: &'a str) -> IoFuture<'a, Arc<dyn File>> {
        Box::pin(async move {
            match self.files.lock().unwrap().get(location) {
                Some(file) => Ok(file.clone()),
                None => Err(block_io::Error::io("opening", std::io::ErrorKind::NotFound.into())),
            }
        })
    }
}

/// What to make.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    pub size: u64,
    pub block: u64,
    pub sector: u32,
    pub fixed: bool,
}

impl Family {
    pub fn new(format: Format) -> Self {
        Self { format, files: Arc::default() }
    }

    pub fn name(&self, level: usize) -> String {
        format!("level-{level}.{}", self.format)
    }

    pub fn file(&self, level: usize) -> Arc<dyn File> {
        self.files.lock().unwrap()[&self.name(level)].clone()
    }

    pub fn put(&self, level: usize, file: Arc<dyn File>) {
        self.files.lock().unwrap().insert(self.name(level), file);
    }

    /// Makes an image without a parent at level 0.
    pub async fn make(&self, shape: Shape) {
        let file = Arc::new(MemFile::new());
        if self.format == Format::Vhdx {
            let options = vhdx::CreateOptions {
                block_size: shape.block as u32,
                logical_sector: shape.sector,
                fixed: shape.fixed,
                ..vhdx::CreateOptions::new(shape.size)
            };
            vhdx::create(file.clone(), &options).await.unwrap();
        } else {
            let options = classic::CreateOptions {
                block_size: shape.block as u32,
                fixed: shape.fixed,
                ..classic::CreateOptions::new(shape.size)
            };
            classic::create(file.clone(), &options).await.unwrap();
        }
        self.put(0, file);
    }

    /// Makes an empty child of level `parent` at `level`.
    pub async fn grow(&self, parent: usize, level: usize, block: u64, size: Option<u64>) {
        let file = Arc::new(MemFile::new());
        let (below, name) = (self.file(parent), self.name(parent));
        if self.format == Format::Vhdx {
            let child = vhdx::CreateOptions::child(&vhdx::info(below).await.unwrap(), &name);
            let size = size.unwrap_or(child.size);
            let options = vhdx::CreateOptions { block_size: block as u32, size, ..child };
            vhdx::create(file.clone(), &options).await.unwrap();
        } else {
            let child = classic::CreateOptions::child(&classic::info(below).await.unwrap(), &name);
            let size = size.unwrap_or(child.size);
            let options = classic::CreateOptions { block_size: block as u32, size, ..child };
            classic::create(file.clone(), &options).await.unwrap();
        }
        self.put(level, file);
    }

    /// Opens a level with its parents, which are found and checked.
    pub async fn open(&self, level: usize) -> vhd::Result<Arc<dyn Disk>> {
        chain::open_disk(self.file(level), &self.name(level), self.format, self).await
    }

    /// As [`Family::open`], of files that refuse writes: those of `level` are copied.
    pub async fn read(&self, level: usize) -> vhd::Result<Vec<u8>> {
        let file = self.file(level);
        let disk: Arc<dyn Disk> = match self.format {
            Format::Vhdx => {
                let options = vhdx::OpenOptions::read_only();
                Arc::new(chain::open(file, &self.name(level), self, options).await?)
            }
            _ => chain::open_disk(file, &self.name(level), self.format, self).await?,
        };
        let mut bytes = vec![0xee; disk.geometry().size as usize];
        disk.read_at(0, &mut bytes).await?;
        Ok(bytes)
    }

    pub async fn check(&self, level: usize) -> vhdx::Report {
        match self.format {
            Format::Vhdx => vhdx::check(self.file(level)).await.unwrap(),
            _ => classic::check(self.file(level)).await.unwrap(),
        }
    }

    /// Writes, in some blocks, random bytes at a few places; now and then zeros.
    pub async fn fill(&self, level: usize, rng: &mut Rng, blocks: u64) {
        let disk = self.open(level).await.unwrap();
        let (size, sector) = (disk.geometry().size, u64::from(disk.geometry().logical_sector));
        let block = block(self.format);
        for _ in 0..blocks {
            let start = rng.below(size.div_ceil(block)) * block;
            let end = (start + block).min(size);
            match rng.below(8) {
                0 => disk.write_zeroes(start, end - start).await.unwrap(),
                1 => disk.discard(start, end - start).await.unwrap(),
                _ => {
                    for _ in 0..2 {
                        let at = start + rng.below((end - start) / sector) * sector;
                        let mut data = vec![0; (8192.min(end - at) / sector * sector) as usize];
                        rng.fill(&mut data);
                        disk.write_at(at, &data).await.unwrap();
                    }
                }
            }
        }
        // Ended in an orderly way, but the file is used on.
        disk.close().await.unwrap();
    }
}

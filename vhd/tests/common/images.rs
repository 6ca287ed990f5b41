//! Whole images of each format with the places of all their fields, for `hostile.rs`.

use std::sync::Arc;

use block_io::{
    Disk, File,
    testing::{MemFile, Rng},
};
use vhd::{Format, qcow2, vhdx};

use crate::{
    SECTOR,
    common::MIB,
    family::{Family, Shape, block},
};

/// A number in a structure.
#[derive(Debug, Clone, Copy)]
pub struct Field {
    pub at: usize,
    pub len: usize,
    pub big_endian: bool,
    /// A checksum says whether it was changed.
    pub summed: bool,
}

impl Field {
    pub fn get(&self, bytes: &[u8]) -> u64 {
        let part = &bytes[self.at..self.at + self.len];
        let add = |sum: u64, byte: &u8| sum << 8 | u64::from(*byte);
        if self.big_endian { part.iter().fold(0, add) } else { part.iter().rev().fold(0, add) }
    }

    pub fn put(&self, bytes: &mut [u8], value: u64) {
        for i in 0..self.len {
            let shift = 8 * if self.big_endian { self.len - 1 - i } else { i };
            bytes[self.at + i] = (value >> shift) as u8;
        }
    }
}

/// A whole image, its fields, and what it reads as.
pub struct Seed {
    pub format: Format,
    pub bytes: Vec<u8>,
    pub parent: Option<Vec<u8>>,
    pub fields: Vec<Field>,
    pub model: Vec<u8>,
}

pub fn fields(base: usize, big_endian: bool, summed: bool, list: &[(usize, usize)]) -> Vec<Field> {
    let field = |(at, len): &(usize, usize)| Field { at: base + at, len: *len, big_endian, summed };
    list.iter().map(field).collect()
}

/// Numbers of `len` bytes that follow each other.
pub fn table(base: usize, count: usize, len: usize, big_endian: bool) -> Vec<Field> {
    (0..count).map(|i| Field { at: base + i * len, len, big_endian, summed: false }).collect()
}

const FOOTER: [(usize, usize); 12] = [
    (0, 8),
    (8, 4),
    (12, 4),
    (16, 8),
    (24, 4),
    (40, 8),
    (48, 8),
    (56, 4),
    (60, 4),
    (64, 4),
    (68, 8),
    (84, 1),
];

pub fn be(bytes: &[u8], at: usize, len: usize) -> usize {
    Field { at, len, big_endian: true, summed: false }.get(bytes) as usize
}

pub async fn vhd_image(child: bool) -> Seed {
    let (family, mut parent) = (Family::new(Format::Vhd), None);
    let unit = block(Format::Vhd);
    family.make(Shape { size: 5 * unit - 1024, block: unit, sector: 512, fixed: false }).await;
    family.fill(0, &mut Rng::new(5), 6).await;
    let top = usize::from(child);
    if child {
        parent = Some(raw_bytes(&family.file(0)).await);
        family.grow(0, 1, unit, None).await;
        let disk = family.open(1).await.unwrap();
        disk.write_at(unit, &[0xc1; 8192]).await.unwrap();
        disk.write_at(3 * unit, &[0xc2; 8192]).await.unwrap();
        disk.close().await.unwrap();
    }
    let mut bytes = raw_bytes(&family.file(top)).await;
    let header = be(&bytes, 16, 8);
    let (at, count) = (be(&bytes, header + 16, 8), be(&bytes, header + 28, 4));
    if child {
        // As other programs leave it: some sectors of a block are the parent's.
        let bitmap = be(&bytes, at + 4, 4) * SECTOR;
        bytes[bitmap + 2..bitmap + 9].fill(0x35);
    }
    let end = bytes.len() - SECTOR;
    let mut all = fields(0, true, true, &FOOTER);
    all.extend(fields(end, true, true, &FOOTER));
    let list = [(0, 8), (8, 8), (16, 8), (24, 4), (28, 4), (32, 4), (36, 4), (40, 8), (64, 8)];
    all.extend(fields(header, true, true, &list));
    for locator in 0..3 {
        let base = header + 576 + 24 * locator;
        all.extend(fields(base, true, true, &[(0, 4), (4, 4), (8, 4), (16, 8)]));
    }
    all.extend(table(at, count, 4, true));
    Seed { format: Format::Vhd, model: Vec::new(), bytes, parent, fields: all }
}

pub async fn raw_bytes(file: &Arc<dyn File>) -> Vec<u8> {
    let mut bytes = vec![0; file.len().await.unwrap() as usize];
    file.read_at(0, &mut bytes).await.unwrap();
    bytes
}

/// A differencing VHDX with a block that is partly here.
pub async fn vhdx_child() -> Seed {
    let family = Family::new(Format::Vhdx);
    family.make(Shape { size: 5 * MIB, block: MIB, sector: 512, fixed: false }).await;
    family.fill(0, &mut Rng::new(9), 6).await;
    let parent = raw_bytes(&family.file(0)).await;
    family.grow(0, 1, MIB, None).await;
    let disk = family.open(1).await.unwrap();
    for at in [0, 2 * MIB, 4 * MIB] {
        disk.write_at(at, &[0xc3; 8192]).await.unwrap();
    }
    disk.close().await.unwrap();
    let mut bytes = raw_bytes(&family.file(1)).await;
    let (bat, ratio, end) = (3 << 20, 4096, bytes.len());
    bytes.resize(end + MIB as usize, 0);
    bytes[end..end + 200].fill(0x53);
    let bitmap = vhdx::bat::RawEntry::new(vhdx::bat::BlockState::FullyPresent, end as u64);
    bytes[bat + ratio * 8..][..8].copy_from_slice(&bitmap.0.to_le_bytes());
    bytes[bat] |= 7;
    let mut all = fields(0, false, false, &[(0, 8)]);
    for at in [64 << 10, 128 << 10] {
        let list = [(0, 4), (4, 4), (8, 8), (16, 8), (32, 8), (48, 8), (64, 2), (66, 2), (68, 4)];
        all.extend(fields(at, false, true, &list));
        all.extend(fields(at, false, true, &[(72, 8)]));
    }
    for at in [192 << 10, 256 << 10] {
        all.extend(fields(at, false, true, &[(0, 4), (4, 4), (8, 4), (12, 4)]));
        for entry in [16, 48] {
            let list = [(entry, 8), (entry + 16, 8), (entry + 24, 4), (entry + 28, 4)];
            all.extend(fields(at, false, true, &list));
        }
    }
    let metadata = 2 << 20;
    all.extend(fields(metadata, false, false, &[(0, 8), (8, 2), (10, 2)]));
    let count = usize::from(u16::from_le_bytes([bytes[metadata + 10], bytes[metadata + 11]]));
    for entry in 0..count {
        let base = metadata + 32 + 32 * entry;
        all.extend(fields(base, false, false, &[(0, 8), (16, 4), (20, 4), (24, 4)]));
        let item = Field { at: base + 16, len: 4, big_endian: false, summed: false }.get(&bytes);
        // The value; of the parent locator its head and first entries.
        let at = metadata + item as usize;
        all.extend(fields(at, false, false, &[(0, 4), (4, 4), (18, 2), (20, 4), (24, 4), (28, 4)]));
    }
    all.extend(table(bat, 6, 8, false));
    all.extend(table(bat + ratio * 8, 1, 8, false));
    Seed { format: Format::Vhdx, model: Vec::new(), bytes, parent: Some(parent), fields: all }
}

pub async fn qcow2_image() -> Seed {
    let file = Arc::new(MemFile::new());
    let options = qcow2::CreateOptions { cluster_size: 4096, ..qcow2::CreateOptions::new(3 * MIB) };
    let writer = qcow2::Writer::new(file.clone(), options).await.unwrap();
    let mut data = vec![0; 200 << 10];
    Rng::new(2).fill(&mut data);
    writer.write_at(8192, &data).await.unwrap();
    writer.write_at(2 * MIB + 4096, &data[..50 << 10]).await.unwrap();
    writer.close().await.unwrap();
    let bytes = file.to_bytes();
    let list = [
        (0, 4),
        (4, 4),
        (8, 8),
        (16, 4),
        (20, 4),
        (24, 8),
        (32, 4),
        (36, 4),
        (40, 8),
        (48, 8),
        (56, 4),
        (60, 4),
        (64, 8),
        (72, 8),
        (96, 4),
        (100, 4),
        (104, 1),
        (112, 4),
        (116, 4),
    ];
    let mut all = fields(0, true, false, &list);
    let (l1, l1_size, counts) = (be(&bytes, 40, 8), be(&bytes, 36, 4), be(&bytes, 48, 8));
    all.extend(table(l1, l1_size, 8, true));
    let l2 = be(&bytes, l1, 8) & 0x00ff_ffff_ffff_fe00;
    all.extend(table(l2, 40, 8, true));
    all.extend(table(counts, 2, 8, true));
    all.extend(table(be(&bytes, counts, 8), 60, 2, true));
    Seed { format: Format::Qcow2, model: Vec::new(), bytes, parent: None, fields: all }
}

/// A sparse VMDK as VMware's format notes lay it out: header, descriptor, directory, table, grains.
pub fn vmdk_image() -> Seed {
    const GRAIN: usize = 64 << 10;
    let mut bytes = vec![0; 64 << 10];
    let mut put = |at: usize, data: &[u8]| bytes[at..at + data.len()].copy_from_slice(data);
    put(0, b"KDMV");
    put(4, &1u32.to_le_bytes());
    put(8, &3u32.to_le_bytes());
    for (at, sectors) in
        [(12, 4096u64), (20, 128), (28, 1), (36, 20), (48, 21), (56, 26), (64, 128)]
    {
        put(at, &sectors.to_le_bytes());
    }
    put(44, &512u32.to_le_bytes());
    put(73, b"\n \r\n");
    let text = "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\n\
        createType=\"monolithicSparse\"\nRW 4096 SPARSE \"disk.vmdk\"\n";
    put(512, text.as_bytes());
    // One table covers 32 MiB, and the disk has 2.
    put(26 * 512, &27u32.to_le_bytes());
    for (grain, entry) in [(0, 128u32), (1, 256), (5, 384), (31, 512)] {
        put(27 * 512 + grain * 4, &entry.to_le_bytes());
    }
    let mut grains = vec![0; 4 * GRAIN];
    Rng::new(6).fill(&mut grains);
    bytes.extend(grains);
    let list = [
        (0, 4),
        (4, 4),
        (8, 4),
        (12, 8),
        (20, 8),
        (28, 8),
        (36, 8),
        (44, 4),
        (48, 8),
        (56, 8),
        (64, 8),
        (72, 1),
        (73, 4),
        (77, 2),
    ];
    let mut all = fields(0, false, false, &list);
    all.extend((0..text.len()).map(|i| Field {
        at: 512 + i,
        len: 1,
        big_endian: false,
        summed: false,
    }));
    all.extend(table(26 * 512, 1, 4, false));
    all.extend(table(27 * 512, 32, 4, false));
    Seed { format: Format::Vmdk, model: Vec::new(), bytes, parent: None, fields: all }
}

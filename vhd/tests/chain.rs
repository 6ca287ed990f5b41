//! Differencing images: parents are found and checked, sector bitmaps that others wrote are honoured.

mod common;

use std::{collections::HashMap, path::Path, sync::Arc};

use block_io::{
    Disk, File, IoFuture, LocalFile, LocalOptions,
    testing::{MemFile, Rng},
};
use common::{MIB, mem_image, open, read_all, small};
use vhd::{
    Damage, Error, Fault, Format, Guid,
    chain::{self, Files},
    ops,
    vhdx::{
        CreateOptions, Finding, OpenOptions, Vhdx,
        bat::{BlockState, RawEntry},
        check, create, info,
        locator::ParentLocator,
    },
};

/// Files in memory, by name.
#[derive(Debug, Default)]
struct Shelf(HashMap<String, Arc<MemFile>>);

impl Files for Shelf {
    fn open<'a>(&'a self, location: &'a str) -> IoFuture<'a, Arc<dyn File>> {
        Box::pin(async move {
            match self.0.get(location) {
                Some(file) => Ok(Arc::new(file.read_only_copy()) as Arc<dyn File>),
                None => Err(block_io::Error::io("opening", std::io::ErrorKind::NotFound.into())),
            }
        })
    }
}

impl Shelf {
    fn name(level: usize) -> String {
        format!("level-{level}.vhdx")
    }

    /// Puts a child on top of level `level - 1`.
    async fn grow(&mut self, level: usize, block_size: u64) {
        let parent = self.0[&Self::name(level - 1)].clone();
        let options = CreateOptions {
            block_size: block_size as u32,
            ..CreateOptions::child(&info(parent).await.unwrap(), &Self::name(level - 1))
        };
        self.0.insert(Self::name(level), mem_image(&options).await);
    }

    async fn open_level(&self, level: usize, read_only: bool) -> Vhdx {
        let name = Self::name(level);
        let options = OpenOptions { read_only, ..OpenOptions::default() };
        chain::open(self.0[&name].clone(), &name, self, options).await.unwrap()
    }
}

/// A parent of 8 MiB filled with 1, in a shelf.
async fn one_parent() -> Shelf {
    let mut shelf = Shelf::default();
    let file = mem_image(&small(8 * MIB, MIB)).await;
    let disk = open(file.clone()).await;
    disk.write_at(0, &vec![1; 8 << 20]).await.unwrap();
    disk.close().await.unwrap();
    shelf.0.insert(Shelf::name(0), file);
    shelf
}

#[tokio::test]
async fn a_write_over_a_new_block_between_neighbours_in_the_file_goes_where_it_belongs() {
    let mut shelf = one_parent().await;
    shelf.grow(1, MIB).await;
    let disk = shelf.open_level(1, false).await;
    // Blocks 2 and 4 get neighbouring places in the file; block 3 comes to be with the write.
    disk.write_at(2 * MIB, &[2; 512]).await.unwrap();
    disk.write_at(4 * MIB, &[4; 512]).await.unwrap();
    let mut data = vec![0; 3 << 20];
    Rng::new(1).fill(&mut data);
    disk.write_at(2 * MIB, &data).await.unwrap();
    let mut now = vec![0; data.len()];
    disk.read_at(2 * MIB, &mut now).await.unwrap();
    assert!(now == data);
    disk.read_at(5 * MIB, &mut now[..512]).await.unwrap();
    assert!(now[..512] == [1; 512], "past the write");
}

/// A child with a block that another program left partly present: three runs of sectors of block
/// 1 are 2, the rest of it is the parent's.
async fn partly_present() -> (Shelf, Vec<u8>) {
    let mut shelf = one_parent().await;
    shelf.grow(1, MIB).await;
    let file = shelf.0[&Shelf::name(1)].clone();
    let end = file.len().await.unwrap();
    // 8192 blocks of 1 MiB share a bitmap block, in which each has 256 bytes... of 8 sectors.
    let (bat, ratio) = (3 * MIB, 4096);
    let mut bits = vec![0u8; MIB as usize];
    let mut model = vec![1u8; 8 << 20];
    for sector in [0u64, 1, 2, 777, 778, 1000, 2047] {
        bits[(256 + sector / 8) as usize] |= 1 << (sector % 8);
        let at = MIB + sector * 512;
        file.write_at(end + at % MIB, &[2; 512]).await.unwrap();
        model[at as usize..at as usize + 512].fill(2);
    }
    file.write_at(end + MIB, &bits).await.unwrap();
    let entry = |state, offset| RawEntry::new(state, offset).0.to_le_bytes();
    file.write_at(bat + 8, &entry(BlockState::PartiallyPresent, end)).await.unwrap();
    file.write_at(bat + ratio * 8, &entry(BlockState::FullyPresent, end + MIB)).await.unwrap();
    (shelf, model)
}

#[tokio::test]
async fn sector_bitmaps_say_what_is_here_and_what_is_below() {
    let (shelf, mut model) = partly_present().await;
    let file = shelf.0[&Shelf::name(1)].clone();
    let report = vhd::vhdx::check(file.clone()).await.unwrap();
    assert!(report.is_clean(), "{report:#?}");
    assert_eq!(report.allocated_blocks, 1);
    let disk = shelf.open_level(1, true).await;
    assert!(read_all(&disk).await == model);
    let mut one = [0; 512];
    for sector in [2047u64, 2048, 2048 + 777, 2048 + 779] {
        disk.read_at(sector * 512, &mut one).await.unwrap();
        assert!(one == model[sector as usize * 512..][..512], "sector {sector}");
    }
    // Written to, it becomes whole.
    let disk = shelf.open_level(1, false).await;
    disk.write_at(MIB + 512, &[3; 1024]).await.unwrap();
    model[MIB as usize + 512..][..1024].fill(3);
    disk.write_zeroes(MIB + 8192, 512).await.unwrap();
    model[MIB as usize + 8192..][..512].fill(0);
    disk.close().await.unwrap();
    let disk = shelf.open_level(1, true).await;
    assert!(read_all(&disk).await == model);
}

#[tokio::test]
async fn a_partly_present_block_without_its_bitmap_is_an_error() {
    let (shelf, _) = partly_present().await;
    let file = shelf.0[&Shelf::name(1)].clone();
    file.write_at(3 * MIB + 4096 * 8, &[0; 8]).await.unwrap();
    let disk = shelf.open_level(1, true).await;
    let error = disk.read_at(MIB, &mut [0; 512]).await.unwrap_err();
    assert!(error.to_string().contains("entry 4096 has state 0"), "{error}");
    // The check names each such block; which sectors are here nobody knows, so a repair leaves it.
    let bytes = async || {
        let mut bytes = vec![0; file.len().await.unwrap() as usize];
        file.read_at(0, &mut bytes).await.unwrap();
        bytes
    };
    let no_bitmap = |report: &vhd::vhdx::Report| -> Vec<u64> {
        let faults = report.findings.iter().map(|finding| match finding {
            Finding::Error(Damage { fault: Fault::NoBitmap { index }, .. }) => *index,
            other => panic!("{other:?}"),
        });
        faults.collect()
    };
    let expected = no_bitmap(&check(file.clone()).await.unwrap());
    assert!(expected.contains(&1), "{expected:?}");
    let before = bytes().await;
    let done = ops::repair(file.clone(), Format::Vhdx).await.unwrap();
    assert_eq!((done.repairs.len(), no_bitmap(&done.report)), (0, expected));
    let error = disk.read_at(MIB, &mut [0; 512]).await.unwrap_err();
    assert!(error.to_string().contains("entry 4096 has state 0"), "{error}");
    // All is as it was, also what looks unused, where the bitmap is; the headers say that someone was there.
    assert!(
        before[MIB as usize..] == bytes().await[MIB as usize..],
        "the repair changed something"
    );
}

/// Blocks whose bitmap is lost can be saved by who finds it, so nothing is put where it may be.
#[tokio::test]
async fn what_looks_unused_is_kept_while_a_bitmap_is_missing() {
    let (shelf, _) = partly_present().await;
    let file = shelf.0[&Shelf::name(1)].clone();
    let mut entry = [0; 8];
    file.read_at(3 * MIB + 4096 * 8, &mut entry).await.unwrap();
    let bitmap = u64::from_le_bytes(entry) >> 20 << 20;
    let len = file.len().await.unwrap();
    assert!(bitmap >= 4 * MIB && bitmap < len, "{bitmap:#x} of {len:#x}");
    // Another one behind all that is used.
    let lost = len.next_multiple_of(MIB);
    file.write_at(lost, &[0xb1; 4096]).await.unwrap();
    file.set_len(lost + MIB).await.unwrap();
    let mut bits = vec![0; MIB as usize];
    file.read_at(bitmap, &mut bits).await.unwrap();
    file.write_at(3 * MIB + 4096 * 8, &[0; 8]).await.unwrap();

    let disk = shelf.open_level(1, false).await;
    for block in [0, 5, 7] {
        disk.write_at(block * MIB, &[9; 512]).await.unwrap();
    }
    disk.discard(5 * MIB, MIB).await.unwrap();
    disk.flush().await.unwrap();
    disk.write_at(6 * MIB, &[9; 512]).await.unwrap();
    disk.close().await.unwrap();
    ops::trim(file.clone(), Format::Vhdx, false, |_| {}).await.unwrap();
    let set = ops::Set { physical_sector: Some(512), disk_id: None };
    ops::set(file.clone(), Format::Vhdx, set).await.unwrap();

    let mut found = vec![0; MIB as usize];
    file.read_at(bitmap, &mut found).await.unwrap();
    assert!(found == bits, "the bitmap was written over");
    file.read_at(lost, &mut found[..4096]).await.unwrap();
    assert!(found[..4096] == [0xb1; 4096], "the end was cut off or written over");
    // With its name back all is there again.
    file.write_at(3 * MIB + 4096 * 8, &entry).await.unwrap();
    let disk = shelf.open_level(1, true).await;
    let mut sector = [0; 512];
    disk.read_at(MIB, &mut sector).await.unwrap();
    disk.read_at(6 * MIB, &mut sector).await.unwrap();
    assert_eq!(sector, [9; 512]);
}

#[tokio::test]
async fn a_parent_that_was_changed_or_is_gone_is_refused() {
    let mut shelf = one_parent().await;
    shelf.grow(1, MIB).await;
    let attempt = async |shelf: &Shelf| {
        let name = Shelf::name(1);
        chain::open(shelf.0[&name].clone(), &name, shelf, OpenOptions::read_only()).await
    };
    assert!(attempt(&shelf).await.is_ok());
    let parent = open(shelf.0[&Shelf::name(0)].clone()).await;
    parent.write_at(0, &[9; 512]).await.unwrap();
    parent.close().await.unwrap();
    let error = attempt(&shelf).await.unwrap_err();
    assert!(
        matches!(&error, Error::ParentChanged { parent, .. } if parent == "level-0.vhdx"),
        "{error}"
    );
    shelf.0.remove(&Shelf::name(0));
    let error = attempt(&shelf).await.unwrap_err();
    assert!(
        matches!(&error, Error::ParentMissing { tried, .. } if *tried == ["level-0.vhdx"]),
        "{error}"
    );
}

#[tokio::test]
async fn a_chain_that_bites_its_tail_is_refused() {
    let mut shelf = one_parent().await;
    let id = info(shelf.0[&Shelf::name(0)].clone()).await.unwrap();
    let itself = CreateOptions {
        parent: Some(ParentLocator::vhdx(Guid::ZERO, "itself.vhdx")),
        ..CreateOptions::child(&id, "")
    };
    let file = mem_image(&itself).await;
    let own = info(file.clone()).await.unwrap().data_write_id;
    // The locator's text has a fixed length, so it can be made to name the image itself.
    let text = |id: Guid| -> Vec<u8> {
        format!("{{{id}}}").encode_utf16().flat_map(u16::to_le_bytes).collect()
    };
    let bytes = file.to_bytes();
    let at = bytes.windows(76).position(|w| w == text(Guid::ZERO)).unwrap();
    file.write_at(at as u64, &text(own)).await.unwrap();
    shelf.0.insert("itself.vhdx".into(), file.clone());
    let error = chain::open(file, "itself.vhdx", &shelf, OpenOptions::read_only()).await;
    assert!(matches!(error, Err(Error::EndlessChain { .. })), "{error:?}");
}

#[tokio::test]
async fn another_sector_size_than_the_parents_is_refused() {
    let shelf = one_parent().await;
    let id = info(shelf.0[&Shelf::name(0)].clone()).await.unwrap();
    let options =
        CreateOptions { logical_sector: 4096, ..CreateOptions::child(&id, "level-0.vhdx") };
    let file = mem_image(&options).await;
    let error = chain::open(file, "x.vhdx", &shelf, OpenOptions::read_only()).await.unwrap_err();
    assert!(matches!(error, Error::InvalidOptions(_)), "{error}");
    let fixed = CreateOptions { fixed: true, ..CreateOptions::child(&id, "level-0.vhdx") };
    assert!(matches!(fixed.validate(), Err(Error::InvalidOptions(_))));
}

/// A child that is longer than its parent reads as zeros behind the parent's end.
#[tokio::test]
async fn a_longer_child_ends_with_zeros() {
    let shelf = one_parent().await;
    let id = info(shelf.0[&Shelf::name(0)].clone()).await.unwrap();
    let options =
        CreateOptions { size: 11 * MIB + 512, ..CreateOptions::child(&id, "level-0.vhdx") };
    let file = mem_image(&options).await;
    let disk = chain::open(file, "x.vhdx", &shelf, OpenOptions::default()).await.unwrap();
    let mut model = vec![1u8; 8 << 20];
    model.resize(options.size as usize, 0);
    assert!(read_all(&disk).await == model);
    disk.write_at(7 * MIB + 4096, &vec![5; 2 << 20]).await.unwrap();
    model[(7 << 20) + 4096..][..2 << 20].fill(5);
    assert!(read_all(&disk).await == model);
}

/// Local files by path.
struct Local;

impl Files for Local {
    fn open<'a>(&'a self, location: &'a str) -> IoFuture<'a, Arc<dyn File>> {
        Box::pin(async move {
            let file = LocalFile::open(location, &LocalOptions::read_only())?;
            Ok(Arc::new(file) as Arc<dyn File>)
        })
    }
}

/// libvhdi reads the same from chains written here, with bitmaps and without.
#[tokio::test]
async fn libvhdi_reads_the_same_from_a_chain() {
    let folder = tempfile::tempdir().unwrap();
    let path = |level: usize| folder.path().join(Shelf::name(level)).display().to_string();
    let mut rng = Rng::new(11);
    let size = 70 * MIB;
    for level in 0..3 {
        let file = common::local(path(level), LocalOptions::create_new());
        let options = if level == 0 {
            small(size, MIB)
        } else {
            let below = common::local(path(level - 1), LocalOptions::read_only());
            let below = info(below).await.unwrap();
            CreateOptions::child(&below, Path::new(&Shelf::name(level - 1)).to_str().unwrap())
        };
        create(file.clone(), &options).await.unwrap();
        let disk = chain::open(file, &path(level), &Local, OpenOptions::default()).await.unwrap();
        for _ in 0..12 {
            let mut data = vec![0; 512 * (1 + rng.below(4000)) as usize];
            rng.fill(&mut data);
            let at = rng.below(size - data.len() as u64) / 512 * 512;
            disk.write_at(at, &data).await.unwrap();
        }
        disk.write_zeroes((10 + 4 * level as u64) * MIB, 3 * MIB).await.unwrap();
        disk.close().await.unwrap();
    }
    let file = common::local(path(2), LocalOptions::read_only());
    let disk = chain::open(file, &path(2), &Local, OpenOptions::read_only()).await.unwrap();
    let raw = folder.path().join("raw");
    std::fs::write(&raw, read_all(&disk).await).unwrap();
    if let Some(sum) = common::libvhdi_sum(&[&path(2), &path(1), &path(0)]) {
        assert_eq!(sum, common::sha256(&raw));
    }
}

//! Promises of an open image, one test each.

mod common;

use std::sync::Arc;

use block_io::{Disk, Error as IoError, File, testing::MemFile};
use common::{MIB, assert_clean, mem_image, open, open_read_only, small};
use vhd::{
    Error, Fault, Guid,
    vhdx::{
        CreateOptions, Finding, MAX_DISK, OpenOptions, Vhdx,
        bat::{BlockState, RawEntry},
        check, create,
        header::Header,
        info,
        locator::{ParentLocator, VHDX_LOCATOR},
        metadata::{Entry, Metadata, Table},
        region::{Region, RegionTable},
    },
};

const BAT: u64 = 3 * MIB;
const METADATA: u64 = 2 * MIB;

fn get_header(file: &MemFile, number: u8) -> Header {
    let at = 65536 * usize::from(number);
    Header::parse(number, &file.to_bytes()[at..at + 4096]).unwrap()
}

/// Opens and expects failure.
async fn refused(file: Arc<dyn File>) -> Error {
    Vhdx::open(file, OpenOptions::default()).await.map(drop).unwrap_err()
}

#[tokio::test]
async fn a_flush_with_nothing_pending_is_one_flush_of_the_file() {
    let file = mem_image(&small(64 * MIB, MIB)).await;
    let disk = open(file.clone()).await;
    disk.write_at(0, &[1; 4096]).await.unwrap();
    disk.flush().await.unwrap();
    let before = file.flushes();
    disk.flush().await.unwrap();
    assert_eq!(file.flushes(), before + 1);
    // A block that is present is overwritten without metadata.
    let writes = file.writes();
    disk.write_at(8192, &[2; 4096]).await.unwrap();
    disk.flush().await.unwrap();
    assert_eq!((file.writes(), file.flushes()), (writes + 1, before + 2));
}

#[tokio::test]
async fn what_is_written_as_a_whole_lies_in_one_block() {
    let file = mem_image(&small(8 * MIB, MIB)).await;
    let disk = open(file.clone()).await;
    disk.write_whole(MIB - 65536, &[1; 65536]).await.unwrap();
    let writes = file.writes();
    disk.write_whole(MIB - 65536, &[2; 65536]).await.unwrap();
    assert_eq!(file.writes(), writes + 1);
    for at in [MIB - 512, 0] {
        let done = disk.write_whole(at, &vec![3; MIB as usize + 512]).await;
        assert!(matches!(done, Err(IoError::Unsupported(_))), "{done:?}");
    }
    let mut all = vec![9; 65536 + 512];
    disk.read_at(MIB - 65536, &mut all).await.unwrap();
    assert!(all[..65536].iter().all(|byte| *byte == 2) && all[65536..] == [0; 512]);
}

#[tokio::test]
async fn zeros_that_keep_space_leave_blocks_where_they_are() {
    let file = mem_image(&small(8 * MIB, MIB)).await;
    let disk = open(file.clone()).await;
    disk.write_at(0, &vec![1; 2 << 20]).await.unwrap();
    disk.flush().await.unwrap();
    disk.write_zeroes_kept(0, 3 * MIB - 512).await.unwrap();
    disk.flush().await.unwrap();
    let mut all = vec![9; 3 << 20];
    disk.read_at(0, &mut all).await.unwrap();
    assert!(all.iter().all(|byte| *byte == 0));
    // They are overwritten without metadata, and so have their places still.
    let writes = file.writes();
    disk.write_at(0, &[2; 4096]).await.unwrap();
    disk.write_at(MIB, &[2; 4096]).await.unwrap();
    disk.flush().await.unwrap();
    assert_eq!(file.writes(), writes + 2);
}

#[tokio::test]
async fn a_hundred_new_blocks_share_one_commit() {
    let file = mem_image(&small(400 * MIB, MIB)).await;
    let disk = open(file.clone()).await;
    disk.write_at(0, &[1; 512]).await.unwrap();
    disk.flush().await.unwrap();
    let (writes, flushes) = (file.writes(), file.flushes());
    for block in 1..101 {
        disk.write_at(block * MIB, &[1; 512]).await.unwrap();
    }
    disk.flush().await.unwrap();
    // Payload, one log entry, one table page.
    assert_eq!((file.writes(), file.flushes()), (writes + 102, flushes + 2));
}

#[tokio::test]
async fn looking_changes_nothing_and_a_change_renews_the_identifiers() {
    let file = mem_image(&small(64 * MIB, MIB)).await;
    let before = file.to_bytes();
    let disk = open(file.clone()).await;
    disk.read_at(0, &mut [0; 4096]).await.unwrap();
    disk.flush().await.unwrap();
    disk.close().await.unwrap();
    assert!(file.to_bytes() == before);

    let old = get_header(&file, 2);
    let disk = open(file.clone()).await;
    disk.write_at(0, &[1; 512]).await.unwrap();
    let (first, second) = (get_header(&file, 1), get_header(&file, 2));
    for new in [first, second] {
        assert_ne!(new.file_write, old.file_write);
        assert_ne!(new.data_write, old.data_write);
        assert!(new.log.is_zero() && new.sequence > old.sequence);
    }
    disk.flush().await.unwrap();
    assert!(!get_header(&file, 1).log.is_zero());
    disk.close().await.unwrap();
    let closed = get_header(&file, 1);
    assert!(closed.log.is_zero());
    assert_eq!(closed.data_write, first.data_write);
}

#[tokio::test]
async fn requests_outside_the_rules_fail_with_their_reason() {
    let file = mem_image(&small(64 * MIB, MIB)).await;
    let disk = open(file.clone()).await;
    assert!(matches!(disk.write_at(100, &[0; 512]).await, Err(IoError::Misaligned { .. })));
    assert!(matches!(disk.read_at(0, &mut [0; 100]).await, Err(IoError::Misaligned { .. })));
    assert!(matches!(disk.discard(64 * MIB, 512).await, Err(IoError::OutOfRange { .. })));
    assert!(matches!(
        disk.write_zeroes(u64::MAX - 511, 512).await,
        Err(IoError::OutOfRange { .. })
    ));
    disk.write_at(0, &[]).await.unwrap();
    disk.close().await.unwrap();
    disk.close().await.unwrap();
    assert!(matches!(disk.read_at(0, &mut [0; 512]).await, Err(IoError::Closed)));
    let disk = open_read_only(file.clone()).await;
    assert!(disk.is_read_only());
    assert!(matches!(disk.write_at(0, &[0; 512]).await, Err(IoError::ReadOnly)));
    assert!(matches!(disk.discard(0, MIB).await, Err(IoError::ReadOnly)));
    // A file that is read-only makes the image read-only.
    assert!(open(Arc::new(file.read_only_copy())).await.is_read_only());
}

#[tokio::test]
async fn more_table_pages_than_one_commit_takes() {
    // 600 pages of 512 entries each, of which few stay in memory.
    let file = mem_image(&small(600 * 512 * MIB, MIB)).await;
    let options = OpenOptions { table_cache: 32 << 10, ..OpenOptions::default() };
    let disk = Vhdx::open(file.clone(), options.clone()).await.unwrap();
    let block = |page: u64| (page * 511 + 7) * MIB;
    for page in 0..600 {
        disk.write_at(block(page), &[page as u8 | 1; 512]).await.unwrap();
    }
    let mut buf = [0; 512];
    for page in 0..600 {
        disk.read_at(block(page), &mut buf).await.unwrap();
        assert_eq!(buf, [page as u8 | 1; 512]);
    }
    // Everything at once: a discard of the whole disk.
    disk.discard(0, 600 * 512 * MIB).await.unwrap();
    disk.flush().await.unwrap();
    drop(disk);
    assert_eq!(assert_clean(file.clone()).await.allocated_blocks, 0);
    let disk = Vhdx::open(file, options).await.unwrap();
    disk.read_at(block(300), &mut buf).await.unwrap();
    assert_eq!(buf, [0; 512]);
}

#[tokio::test]
async fn the_largest_disk() {
    for (block_size, sector) in [(MIB, 512), (256 * MIB, 4096)] {
        let options = CreateOptions { logical_sector: sector, ..small(MAX_DISK, block_size) };
        let file = mem_image(&options).await;
        let disk = open(file.clone()).await;
        for at in [0, MAX_DISK / 2, MAX_DISK - 8192] {
            disk.write_at(at, &[7; 8192]).await.unwrap();
        }
        disk.close().await.unwrap();
        let disk = open_read_only(file).await;
        let mut buf = [0; 8192];
        disk.read_at(MAX_DISK - 8192, &mut buf).await.unwrap();
        assert_eq!(buf, [7; 8192]);
        assert_eq!(disk.geometry().size, MAX_DISK);
    }
    let too_large = create(Arc::new(MemFile::new()), &small(MAX_DISK + 512, MIB)).await;
    assert!(matches!(too_large, Err(Error::InvalidOptions(_))));
}

#[tokio::test]
async fn discarded_space_is_given_back_and_used_again() {
    let file = mem_image(&small(256 * MIB, MIB)).await;
    let disk = open(file.clone()).await;
    let data = vec![0xaa; MIB as usize];
    for round in 0..20 {
        for block in 0..24 {
            disk.write_at((round * 7 + block) * MIB, &data).await.unwrap();
        }
        disk.flush().await.unwrap();
        disk.discard(0, 256 * MIB).await.unwrap();
        let mut buf = vec![1; MIB as usize];
        disk.read_at(round * 7 * MIB, &mut buf).await.unwrap();
        assert!(buf.iter().all(|b| *b == 0));
        disk.flush().await.unwrap();
    }
    // Twenty rounds of 24 MiB fit where two would.
    assert!(file.len().await.unwrap() < 80 * MIB, "{}", file.len().await.unwrap());
    disk.close().await.unwrap();
    // Closing cuts what nothing uses; the log, the metadata and the table stay.
    assert_eq!(file.len().await.unwrap(), 4 * MIB);
    assert_clean(file).await;
}

#[tokio::test]
async fn a_fixed_image_keeps_its_blocks_and_its_metadata() {
    let file = mem_image(&CreateOptions { fixed: true, ..small(16 * MIB, 2 * MIB) }).await;
    assert_eq!(info(file.clone()).await.unwrap().allocated_blocks, 8);
    let disk = open(file.clone()).await;
    disk.write_at(0, &vec![5; 16 << 20]).await.unwrap();
    disk.discard(0, 16 * MIB).await.unwrap();
    disk.write_zeroes(4 * MIB, 4 * MIB).await.unwrap();
    disk.flush().await.unwrap();
    assert!(get_header(&file, 1).log.is_zero(), "no table change, no log");
    let mut buf = vec![1; 16 << 20];
    disk.read_at(0, &mut buf).await.unwrap();
    assert!(buf[..4 << 20].iter().chain(&buf[8 << 20..]).all(|b| *b == 5));
    assert!(buf[4 << 20..8 << 20].iter().all(|b| *b == 0));
    disk.close().await.unwrap();
    assert_eq!(assert_clean(file).await.allocated_blocks, 8);
}

#[tokio::test]
async fn one_bad_copy_of_what_is_doubled_is_survived_and_reported() {
    let good = mem_image(&small(64 * MIB, MIB)).await.to_bytes();
    for (at, name) in [
        (0x10000, "header 1"),
        (0x20000, "header 2"),
        (0x30000, "region table 1"),
        (0x40000, "region table 2"),
    ] {
        let mut bytes = good.clone();
        bytes[at + 20] ^= 1;
        let file = Arc::new(MemFile::from_bytes(&bytes));
        let report = check(file.clone()).await.unwrap();
        let [Finding::Warning(damage)] = &report.findings[..] else { panic!("{report:?}") };
        assert_eq!(damage.structure.to_string(), name);
        assert!(matches!(damage.fault, Fault::Checksum { .. }));
        let disk = open(file).await;
        disk.write_at(0, &[1; 512]).await.unwrap();
        disk.close().await.unwrap();
    }
    let mut bytes = good.clone();
    bytes[0x10000 + 20] ^= 1;
    bytes[0x20000 + 20] ^= 1;
    let error = refused(Arc::new(MemFile::from_bytes(&bytes))).await;
    assert!(
        matches!(&error, Error::Damaged(d) if matches!(d.fault, Fault::NoValidCopy(_))),
        "{error}"
    );
}

fn patched(good: &[u8], patches: &[(u64, Vec<u8>)]) -> Arc<MemFile> {
    let mut bytes = good.to_vec();
    for (at, patch) in patches {
        bytes[*at as usize..*at as usize + patch.len()].copy_from_slice(patch);
    }
    Arc::new(MemFile::from_bytes(&bytes))
}

#[tokio::test]
async fn damage_is_refused_with_its_place() {
    let good = {
        let file = mem_image(&small(64 * MIB, MIB)).await;
        let disk = open(file.clone()).await;
        disk.write_at(0, &[1; 512]).await.unwrap();
        disk.write_at(MIB, &[1; 512]).await.unwrap();
        disk.close().await.unwrap();
        file.to_bytes()
    };
    let entry = |value: u64| value.to_le_bytes().to_vec();
    let present = |offset| RawEntry::new(BlockState::FullyPresent, offset).0;
    let header = Header::parse(1, &good[0x10000..]).unwrap();
    let newer = |change: fn(&mut Header)| {
        let mut header = Header { sequence: header.sequence + 10, ..header };
        change(&mut header);
        header.encode()
    };
    type Test = (&'static str, Vec<(u64, Vec<u8>)>, &'static str);
    let cases: Vec<Test> = vec![
        ("another file", vec![(0, vec![0; 8])], "file identifier"),
        ("two blocks at one place", vec![(BAT + 8, entry(present(4 * MIB)))], "block table"),
        ("a block over the log", vec![(BAT + 8, entry(present(MIB)))], "block table"),
        ("a block in the header", vec![(BAT + 8, entry(present(0)))], "block table"),
        ("a block past the end", vec![(BAT + 8, entry(present(1 << 40)))], "block table"),
        ("a reserved state", vec![(BAT + 16, entry(4))], "block table"),
        ("a partial block", vec![(BAT + 16, entry(present(40 * MIB) | 1))], "block table"),
        ("reserved bits", vec![(BAT + 16, entry(0x100))], "block table"),
        ("no metadata", vec![(METADATA, vec![0; 8])], "metadata table"),
        (
            "a log to replay that is not there",
            vec![(0x10000, newer(|h| h.log = Guid::random()))],
            "log",
        ),
        ("a log over the table", vec![(0x10000, newer(|h| h.log_offset = BAT))], "region table"),
        ("a log past the end", vec![(0x10000, newer(|h| h.log_offset = 1 << 40))], "log"),
    ];
    for (what, patches, structure) in cases {
        let file = patched(&good, &patches);
        let Error::Damaged(damage) = refused(file.clone()).await else { panic!("{what}") };
        assert!(damage.structure.to_string().starts_with(structure), "{what}: {damage}");
        let report = check(file).await.unwrap();
        assert!(!report.is_clean(), "{what}: {report:?}");
    }
    let mut version = newer(|_| {});
    version[66] = 2;
    version[4..8].fill(0);
    let crc = crc32c(&version);
    version[4..8].copy_from_slice(&crc.to_le_bytes());
    let error = refused(patched(&good, &[(0x10000, version)])).await;
    assert!(
        matches!(&error, Error::Damaged(d) if matches!(d.fault, Fault::Version { .. })),
        "{error}"
    );
}

/// CRC-32C, bit by bit: another implementation than the one under test.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg())
        })
    })
}

#[tokio::test]
async fn what_is_required_and_unknown_is_refused_and_what_is_optional_is_kept() {
    let good = mem_image(&small(64 * MIB, MIB)).await.to_bytes();
    let regions = RegionTable::parse(1, &good[0x30000..]).unwrap().regions;
    let extra = |required| {
        let region = Region { id: Guid::random(), offset: 4 * MIB, length: MIB as u32, required };
        let table = RegionTable { regions: [&regions[..], &[region]].concat() }.encode();
        let mut bytes = good.clone();
        bytes.resize(6 << 20, 0x77);
        patched(&bytes, &[(0x30000, table.clone()), (0x40000, table)])
    };
    let error = refused(extra(true)).await;
    assert!(
        matches!(&error, Error::Damaged(d) if matches!(d.fault, Fault::UnknownRequired(_))),
        "{error}"
    );
    let file = extra(false);
    let disk = open(file.clone()).await;
    disk.write_at(0, &vec![1; 8 << 20]).await.unwrap();
    disk.close().await.unwrap();
    assert!(
        file.to_bytes()[4 << 20..5 << 20].iter().all(|b| *b == 0x77),
        "an unknown region was used"
    );

    let table = Table::parse(&good[METADATA as usize..], METADATA, MIB as u32).unwrap();
    let with = |is_required, is_user| {
        let entry = Entry {
            id: Guid::random(),
            offset: 0x20000,
            length: 10,
            is_user,
            is_virtual_disk: false,
            is_required,
        };
        let table = Table { entries: [&table.entries[..], &[entry]].concat() }.encode();
        patched(&good, &[(METADATA, table)])
    };
    for is_user in [false, true] {
        let error = refused(with(true, is_user)).await;
        assert!(
            matches!(&error, Error::Damaged(d) if matches!(d.fault, Fault::UnknownRequired(_)))
        );
        open(with(false, is_user)).await;
    }
}

#[tokio::test]
async fn a_differencing_image_is_refused_and_names_its_parent() {
    let good = mem_image(&small(64 * MIB, MIB)).await.to_bytes();
    let metadata = Metadata {
        block_size: MIB as u32,
        leave_allocated: false,
        has_parent: true,
        disk_size: 64 * MIB,
        disk_id: Guid::random(),
        logical_sector: 512,
        physical_sector: 4096,
        parent: Some(ParentLocator {
            kind: VHDX_LOCATOR,
            entries: vec![
                ("parent_linkage".into(), format!("{{{}}}", Guid::random())),
                ("relative_path".into(), r"..\base\größe.vhdx".into()),
            ],
        }),
    };
    let file = patched(&good, &[(METADATA, metadata.encode())]);
    let error = refused(file.clone()).await;
    assert!(
        matches!(&error, Error::Differencing { parent } if parent == r"..\base\größe.vhdx"),
        "{error}"
    );
    let info = info(file).await.unwrap();
    assert!(matches!(info.kind, vhd::vhdx::Kind::Differencing { .. }));
}

#[tokio::test]
async fn an_unmapped_block_that_keeps_its_place_reads_as_zeros_and_moves_when_written() {
    let file = mem_image(&small(64 * MIB, MIB)).await;
    let disk = open(file.clone()).await;
    disk.write_at(0, &vec![9; 2 << 20]).await.unwrap();
    disk.close().await.unwrap();
    let anchored = RawEntry::new(BlockState::Unmapped, 4 * MIB).0.to_le_bytes().to_vec();
    let file = patched(&file.to_bytes(), &[(BAT, anchored)]);
    let disk = open(file.clone()).await;
    let mut buf = vec![1; 2 << 20];
    disk.read_at(0, &mut buf).await.unwrap();
    assert!(buf[..1 << 20].iter().all(|b| *b == 0) && buf[1 << 20..].iter().all(|b| *b == 9));
    disk.write_at(4096, &[3; 512]).await.unwrap();
    disk.flush().await.unwrap();
    disk.read_at(0, &mut buf).await.unwrap();
    assert!(buf[..4096].iter().chain(&buf[8192..1 << 20]).all(|b| *b == 0));
    assert_eq!(buf[4096], 3);
    disk.close().await.unwrap();
    assert_clean(file).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_writers_flushers_and_checks_at_once() {
    let file = mem_image(&small(512 * MIB, MIB)).await;
    let disk = Arc::new(open(file.clone()).await);
    let tasks: Vec<_> = (0..16u64)
        .map(|task| {
            let disk = disk.clone();
            tokio::spawn(async move {
                for step in 0..60u64 {
                    // Blocks shared by all tasks, sectors of their own.
                    let at = (step * 37 % 500) * MIB + task * 8192;
                    disk.write_at(at, &[(task * 60 + step) as u8; 8192]).await.unwrap();
                    if step % 8 == task % 8 {
                        disk.flush().await.unwrap();
                    }
                    if step % 30 == 29 {
                        assert!(disk.check().await.unwrap().is_clean());
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    disk.close().await.unwrap();
    let report = assert_clean(file.clone()).await;
    assert_eq!((report.allocated_blocks, report.leaked), (60, 0));
    let disk = open_read_only(file).await;
    let mut buf = vec![0; 8192];
    for (task, step) in (0..16u64).flat_map(|task| (0..60u64).map(move |step| (task, step))) {
        disk.read_at((step * 37 % 500) * MIB + task * 8192, &mut buf).await.unwrap();
        assert!(buf.iter().all(|b| *b == (task * 60 + step) as u8));
    }
}

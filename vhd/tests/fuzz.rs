//! Hostile images: whatever the bytes, an answer comes, without panic, without much memory and
//! soon. And the structures' parsers and encoders are each other's inverse.

mod common;
#[path = "common/counting.rs"]
mod counting;

use std::sync::{Arc, Mutex, OnceLock};

use block_io::{Disk, File, testing::MemFile};
use common::{MIB, mem_image, open, small};
use proptest::{collection::vec, prelude::*};
use vhd::{
    Guid,
    vhdx::{
        OpenOptions, Vhdx, check,
        header::{FileIdentifier, Header},
        info,
        locator::ParentLocator,
        log::{LogEntry, Update, active_sequence},
        metadata::{Entry, Metadata, Table},
        region::{Region, RegionTable},
    },
};

/// One measurement at a time: the counter is the process's.
static MEASURING: Mutex<()> = Mutex::new(());

/// The image that is changed. One for all cases: memory that was not used before can be slow to come by.
static SCRATCH: Mutex<Vec<u8>> = Mutex::new(Vec::new());

/// A log of 64 MiB is the most that is read whole, and a file of 256 TiB has a map of 32 MiB.
const MEMORY: usize = 160 << 20;

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

/// Does all there is to do with an image, for what it is worth.
fn exercise(bytes: &[u8]) {
    let _one = MEASURING.lock().unwrap_or_else(|e| e.into_inner());
    let file = Arc::new(MemFile::with_holes(bytes));
    let before = counting::begin();
    run(async {
        let frozen: Arc<dyn File> = Arc::new(file.read_only_copy());
        let clean = check(frozen.clone()).await.is_ok_and(|report| report.is_clean());
        let described = info(frozen.clone()).await.is_ok();
        let opened = match Vhdx::open(frozen, OpenOptions::default()).await {
            Ok(disk) => {
                let size = disk.geometry().size;
                let sector = u64::from(disk.geometry().logical_sector);
                let mut buf = vec![0; 1 << 20];
                for at in
                    [0, size / 2 / sector * sector, size.saturating_sub(1 << 20) / sector * sector]
                {
                    let n = (size - at).min(1 << 20) as usize;
                    // A checked image has all its data in the file.
                    disk.read_at(at, &mut buf[..n]).await.unwrap();
                }
                let end = size.min(1 << 30);
                disk.allocated_ranges(0..end).await.unwrap();
                true
            }
            Err(_) => false,
        };
        // An image that opens is described and passes the check, and the other way round.
        assert_eq!(opened, clean);
        assert!(described || !opened);
        if let Ok(disk) = Vhdx::open(file.clone(), OpenOptions::default()).await {
            let sector = disk.geometry().logical_sector as usize;
            disk.write_at(0, &vec![7; sector]).await.unwrap();
            disk.write_zeroes(0, sector as u64).await.unwrap();
            disk.close().await.unwrap();
            let report = check(file).await.unwrap();
            assert!(report.is_clean(), "{report:?}");
        }
    });
    let peak = counting::peak_since(before);
    // The file itself, twice, is the test's.
    assert!(peak < MEMORY + 4 * bytes.len(), "{peak} bytes for an image of {}", bytes.len());
}

/// A small closed image and one with a log to replay.
fn seeds() -> &'static [Vec<u8>; 2] {
    static SEEDS: OnceLock<[Vec<u8>; 2]> = OnceLock::new();
    SEEDS.get_or_init(|| {
        run(async {
            let file = mem_image(&small(64 * MIB, MIB)).await;
            let disk = open(file.clone()).await;
            for block in [0, 5, 40] {
                disk.write_at(block * MIB, &[block as u8 + 1; 512]).await.unwrap();
                disk.flush().await.unwrap();
            }
            let dirty = file.to_bytes();
            disk.close().await.unwrap();
            [file.to_bytes(), dirty]
        })
    })
}

/// CRC-32C over `bytes[at..at + len]` put right at `at + 4`, as an attacker would.
fn put_right(bytes: &mut [u8], at: usize, len: usize) {
    bytes[at + 4..at + 8].fill(0);
    let crc = crc32c::crc32c(&bytes[at..at + len]);
    bytes[at + 4..at + 8].copy_from_slice(&crc.to_le_bytes());
}

/// A value that a field might be attacked with.
fn hostile() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        (0u32..64).prop_map(|bit| 1u64 << bit),
        (0u32..64).prop_map(|bit| (1u64 << bit) - 1),
        (0u64..80).prop_map(|mib| mib << 20),
        (0u64..80).prop_map(|mib| mib << 20 | 6),
        0u64..16,
    ]
}

/// Where fields are: the structures' beginnings.
fn places() -> impl Strategy<Value = usize> {
    prop_oneof![
        Just(0x10000usize),
        Just(0x20000),
        Just(0x30000),
        Just(0x40000),
        Just(1 << 20),
        Just(2 << 20),
        Just((2 << 20) + 0x10000),
        Just(3 << 20),
    ]
    .prop_flat_map(|base| {
        let span = if base == 1 << 20 { 0x6000 } else { 200 };
        (0usize..span).prop_map(move |at| base + at)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 800, failure_persistence: None, ..Default::default() })]

    #[test]
    fn mutated_images_are_refused_or_work(
        dirty in any::<bool>(),
        changes in vec((places(), hostile(), 0usize..9), 1..5),
        cut in proptest::option::weighted(0.1, 0usize..8 << 20),
        fix in any::<bool>(),
    ) {
        let mut bytes = SCRATCH.lock().unwrap_or_else(|e| e.into_inner());
        bytes.clone_from(&seeds()[usize::from(dirty)]);
        for (at, value, len) in changes {
            bytes[at..at + len.min(8)].copy_from_slice(&value.to_le_bytes()[..len.min(8)]);
        }
        if fix {
            for (at, len) in [(0x10000, 4096), (0x20000, 4096), (0x30000, 65536), (0x40000, 65536)] {
                put_right(&mut bytes, at, len);
            }
            for at in (1 << 20..2 << 20).step_by(4096) {
                let len = u32::from_le_bytes(bytes[at + 8..at + 12].try_into().unwrap()) as usize;
                if bytes[at..].starts_with(b"loge") && (4096..1 << 20).contains(&len) {
                    put_right(&mut bytes, at, len);
                }
            }
        }
        if let Some(len) = cut {
            bytes.truncate(len);
        }
        exercise(&bytes);
    }

    #[test]
    fn random_bytes_are_no_image(bytes in vec(any::<u8>(), 0..200_000), signed in any::<bool>()) {
        let mut bytes = bytes;
        if signed && bytes.len() > 8 {
            bytes[..8].copy_from_slice(b"vhdxfile");
        }
        exercise(&bytes);
    }

    #[test]
    fn parsers_take_any_bytes(bytes in vec(any::<u8>(), 0..70_000), number in 1u8..3) {
        let mut bytes = bytes;
        let _ = FileIdentifier::parse(&bytes);
        for (signature, at) in [(&b"head"[..], 0usize), (b"regi", 0), (b"metadata", 0)] {
            if bytes.len() > 65536 {
                bytes[at..at + signature.len()].copy_from_slice(signature);
                bytes[12..16].fill(0);
                if signature == b"head" {
                    bytes[66..68].copy_from_slice(&[1, 0]);
                    put_right(&mut bytes, 0, 4096);
                } else if signature == b"regi" {
                    bytes[9..12].fill(0);
                    put_right(&mut bytes, 0, 65536);
                }
            }
            // What parses says the same again when it is encoded.
            if let Ok(header) = Header::parse(number, &bytes) {
                prop_assert_eq!(Header::parse(number, &header.encode()), Ok(header));
            }
            if let Ok(table) = RegionTable::parse(number, &bytes) {
                prop_assert_eq!(RegionTable::parse(number, &table.encode()), Ok(table));
            }
            if let Ok(table) = Table::parse(&bytes, 0, 1 << 20) {
                prop_assert_eq!(Table::parse(&table.encode(), 0, 1 << 20), Ok(table));
            }
        }
        if let Ok(locator) = ParentLocator::parse(&bytes, 0) {
            prop_assert_eq!(ParentLocator::parse(&locator.encode(), 0), Ok(locator));
        }
    }

    #[test]
    fn headers_and_identifiers_come_back(
        sequence in any::<u64>(), ids in any::<[[u8; 16]; 3]>(), log in 1u64..1000,
        number in 1u8..3, creator in "[^\0]{0,60}",
    ) {
        let [file_write, data_write, guid] = ids.map(Guid::from_bytes);
        let header = Header {
            sequence, file_write, data_write, log: guid, log_version: 0,
            log_length: (log % 50 + 1) as u32 * MIB as u32, log_offset: log * MIB,
        };
        let bytes = header.encode();
        prop_assert_eq!(Header::parse(number, &bytes), Ok(header));
        for at in [9, 100, 4000] {
            let mut bad = bytes.clone();
            bad[at] ^= 0x10;
            prop_assert!(Header::parse(number, &bad).is_err());
        }
        let identifier = FileIdentifier { creator };
        prop_assert_eq!(FileIdentifier::parse(&identifier.encode()), Ok(identifier));
    }

    #[test]
    fn region_tables_come_back(regions in vec((any::<[u8; 16]>(), 1u32..50, 0u64..20, any::<bool>()), 0..40)) {
        let mut at = MIB;
        let mut table = RegionTable { regions: Vec::new() };
        for (id, mib, gap, required) in regions {
            at += gap * MIB;
            table.regions.push(Region {
                id: Guid::from_bytes(id), offset: at, length: mib << 20, required,
            });
            at += u64::from(mib) * MIB;
        }
        let bytes = table.encode();
        let parsed = RegionTable::parse(1, &bytes);
        prop_assert_eq!(parsed.as_ref(), Ok(&table));
        prop_assert_eq!(parsed.unwrap().encode(), bytes);
        if let Some(first) = table.regions.first().copied() {
            let twice = Region { id: Guid::random(), ..first };
            table.regions.push(twice);
            prop_assert!(RegionTable::parse(1, &table.encode()).is_err(), "an overlap passed");
        }
    }

    #[test]
    fn metadata_comes_back(
        shift in 0u32..9, fixed in any::<bool>(), sectors in 1u64..1 << 33, id in any::<[u8; 16]>(),
        big in any::<[bool; 2]>(), keys in proptest::collection::btree_map("[a-zäß]{1,12}", "\\PC{1,20}", 0..6),
        has_parent in any::<bool>(),
    ) {
        let sector = |big| if big { 4096u32 } else { 512 };
        let parent = ParentLocator { kind: Guid::random(), entries: keys.into_iter().collect() };
        let metadata = Metadata {
            block_size: 1 << (20 + shift),
            leave_allocated: fixed && !has_parent,
            has_parent,
            disk_size: sectors * 4096,
            disk_id: Guid::from_bytes(id),
            logical_sector: sector(big[0]),
            physical_sector: sector(big[1]),
            parent: has_parent.then_some(parent),
        };
        let bytes = metadata.encode();
        let table = Table::parse(&bytes, 0, 1 << 20).unwrap();
        let item = |e: &Entry| bytes.get(e.offset as usize..(e.offset + e.length) as usize);
        prop_assert_eq!(Metadata::from_items(&table, 0, item), Ok(metadata));
        prop_assert_eq!(&table.encode()[..], &bytes[..65536]);
    }

    #[test]
    fn log_entries_come_back_wherever_they_stand(
        updates in vec(prop_oneof![
            (0u64..1 << 30, any::<[u8; 16]>()).prop_map(|(at, seed)| {
                let mut data = Box::new([0; 4096]);
                data.iter_mut().zip(seed.iter().cycle()).for_each(|(d, s)| *d = *s);
                Update::Data { offset: at * 4096, data }
            }),
            (0u64..1 << 30, 0u64..100).prop_map(|(at, n)| Update::Zero { offset: at * 4096, length: n * 4096 }),
        ], 0..140),
        sequence in 1u64..u64::MAX - 1, at in 0usize..256, flip in any::<prop::sample::Index>(),
    ) {
        let guid = Guid::random();
        let mut log = vec![0u8; 1 << 20];
        let entry = LogEntry {
            sequence, tail: at as u32 * 4096, guid,
            flushed_file_offset: 5 * MIB, last_file_offset: 9 * MIB, updates,
        };
        let bytes = entry.encode();
        for (i, byte) in bytes.iter().enumerate() {
            let place = (at * 4096 + i) % log.len();
            log[place] = *byte;
        }
        prop_assert_eq!(LogEntry::parse(&log, at * 4096, guid), Some(entry.clone()));
        prop_assert_eq!(active_sequence(&log, guid), Some(vec![entry]));
        prop_assert_eq!(active_sequence(&log, Guid::random()), None);
        // Any flipped bit makes it no entry.
        let place = (at * 4096 + flip.index(bytes.len())) % log.len();
        log[place] ^= 4;
        prop_assert_eq!(active_sequence(&log, guid), None);
    }

    #[test]
    fn the_newest_whole_chain_is_active(
        lengths in vec(0usize..5, 1..20), start in 0usize..256, tail_back in 0usize..20,
        broken in proptest::option::of(0usize..20),
    ) {
        let guid = Guid::random();
        let mut log = vec![0u8; 1 << 20];
        let mut places = Vec::new();
        let mut at = start;
        for (i, n) in lengths.iter().enumerate() {
            places.push(at);
            let tail = places[i.saturating_sub(tail_back)];
            let data = |k: usize| Update::Data { offset: (i * 10 + k) as u64 * 4096, data: Box::new([k as u8; 4096]) };
            let entry = LogEntry {
                sequence: 100 + i as u64, tail: tail as u32 * 4096, guid,
                flushed_file_offset: 0, last_file_offset: 0, updates: (0..*n).map(data).collect(),
            };
            for (k, byte) in entry.encode().iter().enumerate() {
                let place = (at * 4096 + k) % (1 << 20);
                log[place] = *byte;
            }
            at = (at + 1 + n) % 256;
        }
        let broken = broken.filter(|b| *b < places.len());
        if let Some(b) = broken {
            log[places[b] * 4096 + 60] ^= 1;
        }
        // By the definition: the newest head whose tail is reached without a break.
        let expected = (0..places.len()).rev().find_map(|head| {
            let first = head.saturating_sub(tail_back);
            let whole = broken.is_none_or(|b| !(first..=head).contains(&b));
            // A chain ends only where the next entry is not valid.
            let ends = head + 1 == places.len() || broken == Some(head + 1);
            (whole && ends).then(|| (first as u64 + 100..=head as u64 + 100).collect::<Vec<_>>())
        });
        let found = active_sequence(&log, guid)
            .map(|entries| entries.iter().map(|e| e.sequence).collect::<Vec<_>>());
        prop_assert_eq!(found, expected);
    }
}

#[test]
fn the_seeds_are_what_they_should_be() {
    for bytes in seeds() {
        exercise(bytes);
        let file = Arc::new(MemFile::from_bytes(bytes));
        assert!(run(check(file)).unwrap().is_clean());
    }
    let dirty = Arc::new(MemFile::from_bytes(&seeds()[1]));
    assert!(run(info(dirty)).unwrap().log_pending);
}

#[test]
fn a_log_full_of_entry_heads_is_judged_in_linear_time() {
    // Each sector claims to begin an entry that spans the whole log: the work is still one look
    // at each sector and no checksum at all.
    let guid = Guid::random();
    let mut log = vec![0u8; 64 << 20];
    let head = LogEntry {
        sequence: 1,
        tail: 0,
        guid,
        flushed_file_offset: 0,
        last_file_offset: 0,
        updates: vec![],
    };
    let mut head = head.encode();
    head[8..12].copy_from_slice(&(64u32 << 20).to_le_bytes());
    head[24..28].copy_from_slice(&16383u32.to_le_bytes());
    for sector in log.chunks_mut(4096) {
        sector.copy_from_slice(&head);
    }
    assert_eq!(active_sequence(&log, guid), None);
}

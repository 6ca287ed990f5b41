//! Images whose fields were changed one by one, with the checksums put right again or not, or that were
//! cut: for VHD, differencing VHD and VHDX, QCOW2 and VMDK. `fuzz.rs` does the same to a VHDX as a whole.
//!
//! What is held against what comes out:
//!
//! ```text
//!  field changed, checksum left   an error, or the disk that it was
//!  any change                     a typed error; or each sector is one of the file's, of the parent's, or zeros
//!  the check finds nothing        the image opens, and all of it reads
//!  repaired                       what read before reads the same; no more errors than before
//!  memory                         a bound that does not depend on what the fields say
//! ```

mod common;
#[path = "common/counting.rs"]
mod counting;
#[path = "common/family.rs"]
mod family;
#[path = "common/images.rs"]
mod images;

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, OnceLock},
};

use block_io::{Disk, File, testing::MemFile};
use common::MIB;
use family::{Family, Shape, block};
use images::{Field, Seed, be, qcow2_image, vhd_image, vhdx_child, vmdk_image};
use proptest::prelude::*;
use vhd::{
    Damage, Error, Fault, Format, chain, classic, ops, qcow2,
    vhdx::{self, Finding},
    vmdk,
};

/// One measurement at a time: the counter is the process's.
static MEASURING: Mutex<()> = Mutex::new(());

/// The image that is changed. One for all cases: memory that was not used before can be slow to come by.
static SCRATCH: Mutex<Vec<u8>> = Mutex::new(Vec::new());

/// Beyond the test's own copies of the image: the largest tables that are believed in.
const MEMORY: usize = 96 << 20;
/// Bytes of a disk that are looked at, of one that says that it is larger.
const LOOK: u64 = 4 * MIB;
const SECTOR: usize = 512;

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

fn seeds() -> &'static [Seed] {
    static SEEDS: OnceLock<Vec<Seed>> = OnceLock::new();
    SEEDS.get_or_init(|| {
        run(async {
            let mut seeds = vec![
                vhd_image(false).await,
                vhd_image(true).await,
                vhdx_child().await,
                qcow2_image().await,
                vmdk_image(),
            ];
            for seed in &mut seeds {
                let found = look(seed, &seed.bytes).await;
                assert!(found.clean == Some(true), "{:?}", seed.format);
                let sectors = found.sectors.unwrap();
                seed.model = sectors.into_iter().flat_map(|sector| sector.unwrap()).collect();
            }
            seeds
        })
    })
}

/// What comes of an image.
struct Found {
    /// Whether the check was content; `None` if it could not be made.
    clean: Option<bool>,
    errors: u64,
    /// Why it did not open.
    refused: Option<Error>,
    /// The start of the disk by sectors, if it opened.
    sectors: Option<Vec<Option<[u8; SECTOR]>>>,
}

/// Errors are typed: nothing here fails but the image.
fn typed(error: &Error) {
    match error {
        Error::Damaged(damage) => assert!(damage.to_string().contains("at offset 0x"), "{damage}"),
        Error::Unsupported(_) | Error::InvalidOptions(_) | Error::Differencing { .. } => {}
        Error::Storage(error) => failed(error),
        other => panic!("{other}"),
    }
}

/// The same of a request to an open disk.
fn failed(error: &block_io::Error) {
    use block_io::Error::{Corrupt, Io, OutOfRange, Unsupported};
    match error {
        Corrupt(_) | OutOfRange { .. } | Unsupported(_) => {}
        Io { source, .. } if source.kind() == std::io::ErrorKind::Unsupported => {}
        other => panic!("{other}"),
    }
}

async fn open(seed: &Seed, file: Arc<dyn File>) -> vhd::Result<Arc<dyn Disk>> {
    let mut parent: Option<Arc<dyn Disk>> = None;
    if let Some(bytes) = &seed.parent {
        let file = Arc::new(MemFile::with_holes(bytes).read_only_copy());
        parent = Some(vhd::open_disk(file, seed.format).await.unwrap());
    }
    Ok(match seed.format {
        Format::Vhd => {
            let options = classic::OpenOptions { parent, read_only: true };
            Arc::new(classic::Vhd::open(file, options).await?)
        }
        Format::Vhdx => {
            let options = vhdx::OpenOptions { parent, ..vhdx::OpenOptions::read_only() };
            Arc::new(vhdx::Vhdx::open(file, options).await?)
        }
        Format::Qcow2 => Arc::new(qcow2::Qcow2::open(file, None).await?),
        _ => Arc::new(vmdk::Vmdk::open(file).await?),
    })
}

/// Does with an image all there is to do that does not change it.
async fn look(seed: &Seed, bytes: &[u8]) -> Found {
    let file: Arc<dyn File> = Arc::new(MemFile::with_holes(bytes).read_only_copy());
    let report = match seed.format {
        Format::Vhd => classic::check(file.clone()).await,
        Format::Vhdx => vhdx::check(file.clone()).await,
        Format::Qcow2 => qcow2::check(file.clone()).await,
        _ => vmdk::check(file.clone()).await,
    };
    let (clean, errors) = match report {
        Ok(report) => (Some(report.is_clean()), report.errors),
        Err(error) => {
            typed(&error);
            (None, 0)
        }
    };
    let mut found = Found { clean, errors, refused: None, sectors: None };
    let disk = match open(seed, file).await {
        Ok(disk) => disk,
        Err(error) => {
            typed(&error);
            return Found { refused: Some(error), ..found };
        }
    };
    let size = disk.geometry().size;
    let unit = (disk.geometry().logical_sector as usize).max(SECTOR);
    let mut sectors = Vec::new();
    let mut piece = vec![0; 64 << 10];
    let mut at = 0;
    let end = size.min(LOOK) / unit as u64 * unit as u64;
    while at < end {
        let n = (end - at).min(piece.len() as u64) as usize;
        piece.fill(0xee);
        match disk.read_at(at, &mut piece[..n]).await {
            Ok(()) => sectors.extend(piece[..n].as_chunks::<SECTOR>().0.iter().map(|s| Some(*s))),
            // By sectors, of which some may read.
            Err(error) => {
                failed(&error);
                for part in piece[..n].chunks_mut(unit) {
                    part.fill(0xee);
                    let read = disk.read_at(at + sectors_in(&sectors, at), part).await;
                    let whole = read.map_err(|error| failed(&error)).is_ok();
                    let each = part.as_chunks::<SECTOR>().0.iter();
                    sectors.extend(each.map(|sector| whole.then_some(*sector)));
                }
            }
        }
        at += n as u64;
    }
    if let Err(error) = disk.allocated_ranges(0..size.min(LOOK)).await {
        failed(&error);
    }
    if size > LOOK {
        let mut last = vec![0; unit];
        if let Err(error) =
            disk.read_at(size / unit as u64 * unit as u64 - unit as u64, &mut last).await
        {
            failed(&error);
        }
    }
    found.sectors = Some(sectors);
    found
}

/// How far behind `at` the sectors that were read reach.
fn sectors_in(sectors: &[Option<[u8; SECTOR]>], at: u64) -> u64 {
    (sectors.len() * SECTOR) as u64 - at
}

/// Puts all checksums right, as an attacker would.
fn mend(format: Format, bytes: &mut [u8]) {
    let ones = |bytes: &mut [u8], at: usize, len: usize, sum: usize| {
        let Some(part) = bytes.get_mut(at..at + len) else { return };
        part[sum..sum + 4].fill(0);
        let value = !part.iter().fold(0u32, |sum, byte| sum.wrapping_add(u32::from(*byte)));
        part[sum..sum + 4].copy_from_slice(&value.to_be_bytes());
    };
    let crc = |bytes: &mut [u8], at: usize, len: usize| {
        let Some(part) = bytes.get_mut(at..at + len) else { return };
        part[4..8].fill(0);
        let value = crc32c::crc32c(part);
        part[4..8].copy_from_slice(&value.to_le_bytes());
    };
    match format {
        Format::Vhd => {
            let end = bytes.len().saturating_sub(SECTOR) / SECTOR * SECTOR;
            ones(bytes, 0, 512, 64);
            ones(bytes, end, 512, 64);
            ones(bytes, 512, 1024, 36);
        }
        Format::Vhdx => {
            for (at, len) in [(64 << 10, 4096), (128 << 10, 4096)] {
                crc(bytes, at, len);
            }
            for at in [192 << 10, 256 << 10] {
                crc(bytes, at, 64 << 10);
            }
        }
        _ => {}
    }
}

/// Whether a checksum tells of the change in each structure that was changed. VHD's is a sum of
/// bytes, which does not see that two of them changed places.
fn told(seed: &Seed, bytes: &[u8]) -> bool {
    if seed.format != Format::Vhd {
        return true;
    }
    let mut right = bytes.to_vec();
    mend(seed.format, &mut right);
    let end = bytes.len() - SECTOR;
    let structures = [0..512, 512..1536, end..end + 512];
    let mut changed = structures.into_iter().filter(|s| seed.bytes[s.clone()] != bytes[s.clone()]);
    changed.all(|s| right[s.clone()] != bytes[s])
}

/// What a field is changed to.
#[derive(Debug, Clone)]
enum Value {
    Bits(u64),
    Flip(u32),
    Near(i64),
    /// The value of another field: what it says overlaps, or comes back to itself.
    Of(prop::sample::Index),
}

fn value() -> impl Strategy<Value = Value> {
    let bits = prop_oneof![
        (0u32..64).prop_map(|bit| 1u64 << bit),
        (0u32..64).prop_map(|bit| (1u64 << bit) - 1),
        Just(u64::MAX),
        any::<u64>(),
        0u64..2048,
    ];
    prop_oneof![
        3 => bits.prop_map(Value::Bits),
        3 => (0u32..64).prop_map(Value::Flip),
        1 => (-2i64..3).prop_map(Value::Near),
        2 => any::<prop::sample::Index>().prop_map(Value::Of),
    ]
}

/// All that is held of one changed image.
fn hold(seed: &Seed, bytes: &[u8], as_it_was: bool) -> Result<(), TestCaseError> {
    let _one = MEASURING.lock().unwrap_or_else(|e| e.into_inner());
    let before = counting::begin();
    let found = run(look(seed, bytes));
    let peak = counting::peak_since(before);
    let own = 2 * bytes.len() + 2 * seed.parent.as_ref().map_or(0, Vec::len) + 2 * LOOK as usize;
    prop_assert!(peak < MEMORY + own, "{} bytes for an image of {}", peak, bytes.len());
    // A table entry that says so of what it points to.
    let compressed = |field: &Field| field.len == 8 && field.get(bytes) >> 62 & 1 != 0;
    let in_file = |field: &&Field| field.at + field.len <= bytes.len();
    let inflates =
        seed.format == Format::Qcow2 && seed.fields.iter().filter(in_file).any(compressed);
    if found.clean == Some(true) {
        // Not damaged, but it needs what is not here: a file below, a feature.
        let whole =
            |error: &Error| matches!(error, Error::Differencing { .. } | Error::Unsupported(_));
        let refused = found.refused.as_ref().filter(|error| !whole(error));
        prop_assert!(refused.is_none(), "the check found nothing, but {}", refused.unwrap());
        // What is compressed is not inflated by the check of a QCOW2 image.
        let holes = found.sectors.as_ref().filter(|_| !inflates);
        let holes = holes.into_iter().flatten().filter(|sector| sector.is_none()).count();
        prop_assert_eq!(holes, 0, "the check found nothing, and sectors do not read");
    }
    let Some(sectors) = found.sectors else { return Ok(()) };
    if inflates {
        return Ok(());
    }
    if as_it_was {
        let expected = seed.model.as_chunks::<SECTOR>().0;
        prop_assert_eq!(sectors.len(), expected.len());
        let same = sectors.iter().zip(expected).all(|(a, b)| a.is_none_or(|a| a == *b));
        prop_assert!(same, "a change that a checksum tells of was believed");
    }
    // A file may end within a sector, and its rest is zeros.
    let mut last = [0; SECTOR];
    let rest = bytes.as_chunks::<SECTOR>().1;
    last[..rest.len()].copy_from_slice(rest);
    let parent = seed.parent.as_deref().unwrap_or_default();
    let parts = bytes.as_chunks::<SECTOR>().0.iter().chain(parent.as_chunks::<SECTOR>().0);
    let data = |sector: &&[u8; SECTOR]| **sector != [0; SECTOR];
    let known: HashSet<&[u8; SECTOR]> = parts.chain([&last]).filter(data).collect();
    let strange = sectors.iter().flatten().filter(data).position(|s| !known.contains(s));
    prop_assert_eq!(strange, None, "a sector that is nowhere in the files");

    if !matches!(seed.format, Format::Vhd | Format::Vhdx) {
        return Ok(());
    }
    let file = Arc::new(MemFile::with_holes(bytes));
    if run(ops::repair(file.clone(), seed.format)).is_err() {
        return Ok(());
    }
    let after = run(look(seed, &file.to_bytes()));
    prop_assert!(after.errors <= found.errors, "{} errors, then {}", found.errors, after.errors);
    let after = after.sectors;
    prop_assert!(after.is_some(), "it opened before it was repaired");
    let pairs = after.iter().flatten().zip(&sectors);
    let lost = pairs.into_iter().position(|(now, before)| before.is_some() && now != before);
    prop_assert_eq!(lost, None, "a sector reads as something else after the repair");
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..Default::default() })]

    #[test]
    fn a_changed_field_is_an_error_or_harmless(
        which in any::<prop::sample::Index>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), value()), 1..4),
        mended: bool,
        cut in prop::option::weighted(0.15, any::<prop::sample::Index>()),
    ) {
        let seed = which.get(seeds());
        let mut bytes = SCRATCH.lock().unwrap_or_else(|e| e.into_inner());
        bytes.clone_from(&seed.bytes);
        let mut all_summed = !mended && cut.is_none();
        for (field, value) in &changes {
            let field = field.get(&seed.fields);
            let now = match value {
                Value::Bits(bits) => *bits,
                Value::Flip(bit) => field.get(&bytes) ^ 1 << (bit % (8 * field.len as u32)),
                Value::Near(by) => field.get(&bytes).wrapping_add_signed(*by),
                Value::Of(other) => other.get(&seed.fields).get(&bytes),
            };
            field.put(&mut bytes, now);
            all_summed &= field.summed;
        }
        if let Some(cut) = cut {
            let len = bytes.len();
            bytes.truncate(cut.index(len));
        }
        if mended {
            mend(seed.format, &mut bytes);
        }
        let as_it_was = all_summed && told(seed, &bytes);
        hold(seed, &bytes, as_it_was).map_err(|error| {
            let field = |(field, value): &(prop::sample::Index, Value)| {
                (field.get(&seed.fields).at, value.clone())
            };
            let changes: Vec<_> = changes.iter().map(field).collect();
            TestCaseError::fail(format!("{:?}, {changes:x?}: {error}", seed.format))
        })?;
    }
}

/// Each field by itself, with the values that parsers trip over.
#[test]
fn every_field_at_its_limits() {
    for seed in seeds() {
        // The text of a descriptor and long tables are for the other test.
        let mut fields = seed.fields.clone();
        fields.retain(|field| field.len > 1);
        fields.truncate(70);
        for field in fields {
            for value in [0, u64::MAX, 1 << (8 * field.len - 1), seed.bytes.len() as u64 / 512] {
                let mut bytes = SCRATCH.lock().unwrap_or_else(|e| e.into_inner());
                bytes.clone_from(&seed.bytes);
                field.put(&mut bytes, value);
                mend(seed.format, &mut bytes);
                if let Err(error) = hold(seed, &bytes, false) {
                    panic!("{:?}, {field:?} is {value:#x}: {error}", seed.format);
                }
            }
        }
    }
}

/// Small files whose tables all name one table: each is walked once, and the others are told of.
#[test]
fn tables_that_are_named_often_are_walked_once() {
    run(async {
        let seed = vmdk_image();
        let mut bytes = seed.bytes;
        // A terabyte: 32768 tables of 512 grains, of which the file has one.
        bytes[12..20].copy_from_slice(&(1u64 << 31).to_le_bytes());
        let at = (bytes.len() / SECTOR) as u64;
        bytes[56..64].copy_from_slice(&at.to_le_bytes());
        bytes.extend(27u32.to_le_bytes().repeat(1 << 15));
        let report = vmdk::check(Arc::new(MemFile::with_holes(&bytes))).await.unwrap();
        assert_eq!((report.errors, report.allocated_blocks), ((1 << 15) - 1, 4));

        let mut bytes = qcow2_image().await.bytes;
        // 8 GiB: 4096 tables of 512 clusters, all of them the first.
        let l2 = bytes[be(&bytes, 40, 8)..][..8].to_vec();
        let at = bytes.len();
        bytes[24..32].copy_from_slice(&(8u64 << 30).to_be_bytes());
        bytes[36..40].copy_from_slice(&4096u32.to_be_bytes());
        bytes[40..48].copy_from_slice(&(at as u64).to_be_bytes());
        bytes.extend(l2.repeat(4096));
        let report = qcow2::check(Arc::new(MemFile::with_holes(&bytes))).await.unwrap();
        let overlaps = report.findings.iter().filter(|finding| {
            matches!(finding, Finding::Error(Damage { fault: Fault::Overlap { .. }, .. }))
        });
        assert_eq!((overlaps.count(), report.errors >= 4095), (1000, true), "{}", report.errors);
        assert!(report.allocated_blocks < 512);

        let mut bytes = qcow2_image().await.bytes;
        // Three snapshots whose tables are the active one.
        let table = bytes.len();
        let mut snapshot = bytes[40..48].to_vec();
        snapshot.extend(1u32.to_be_bytes());
        snapshot.resize(40, 0);
        bytes[60..64].copy_from_slice(&3u32.to_be_bytes());
        bytes[64..72].copy_from_slice(&(table as u64).to_be_bytes());
        bytes.extend(snapshot.repeat(3));
        let report = qcow2::check(Arc::new(MemFile::with_holes(&bytes))).await.unwrap();
        let overlaps = report.findings.iter().filter(|finding| {
            matches!(finding, Finding::Error(Damage { fault: Fault::Overlap { .. }, .. }))
        });
        assert_eq!(overlaps.count(), 3, "{:?}", report.findings);
    });
}

/// A chain whose images name each other ends.
#[test]
fn images_that_name_each_other_are_an_error() {
    for format in [Format::Vhdx, Format::Vhd] {
        run(async {
            let family = Family::new(format);
            let unit = block(format);
            family.make(Shape { size: 4 * unit, block: unit, sector: 512, fixed: false }).await;
            family.grow(0, 1, unit, None).await;
            family.grow(1, 2, unit, None).await;
            family.grow(2, 3, unit, None).await;
            // 2 says that 3 is below it.
            let (file, name) = (family.file(2), family.name(3));
            ops::relink(file, family.file(3), format, &name).await.unwrap();
            if format == Format::Vhdx {
                // And what 3 has below is 2 as it is now.
                let name = family.name(2);
                ops::relink(family.file(3), family.file(2), format, &name).await.unwrap();
            }
            let (file, name) = (family.file(3), family.name(3));
            let opened = chain::open_disk(file, &name, format, &family).await;
            assert!(matches!(opened, Err(Error::EndlessChain { .. })), "{format}: {opened:?}");
        });
    }
}

//! Repair against the image before it: what read reads the same, what was not damaged is what it
//! was, and a check finds nothing afterwards.

mod common;
#[path = "common/family.rs"]
mod family;

use std::sync::Arc;

use block_io::{
    File,
    testing::{CrashFile, MemFile, Rng, Survival},
};
use common::MIB;
use family::{Family, Shape, block};
use proptest::prelude::*;
use vhd::{
    Format,
    ops::{Action, repair},
    vhdx::bat::RawEntry,
};

const BLOCKS: u64 = 9;

/// Something wrong with an image.
#[derive(Debug, Clone)]
enum Hurt {
    /// One copy of what is doubled: a header or the copy of the footer.
    Copy(u8),
    /// One region table of a VHDX; nothing of a VHD.
    Regions(u8),
    /// An entry with other bits.
    Flip(u64, u64),
    /// An entry that points to where another's block is, or near.
    Same(u64, u64, u64),
    /// An entry that points far past the end.
    Far(u64),
    /// The end of the file is cut off: this many bytes.
    Cut(u64),
}

fn hurt() -> impl Strategy<Value = Hurt> {
    let index = 0..BLOCKS;
    prop_oneof![
        (0u8..2).prop_map(Hurt::Copy),
        (0u8..2).prop_map(Hurt::Regions),
        (index.clone(), 0u64..64).prop_map(|(i, bit)| Hurt::Flip(i, 1 << bit)),
        (index.clone(), 0..BLOCKS, 0u64..3).prop_map(|(i, j, near)| Hurt::Same(i, j, near)),
        index.prop_map(Hurt::Far),
        (0u64..3 * MIB).prop_map(Hurt::Cut),
    ]
}

/// Where the table of the images here is, and the size of an entry.
async fn table(family: &Family) -> (u64, u64) {
    match family.format {
        Format::Vhdx => (3 * MIB, 8),
        _ => {
            let mut at = [0; 8];
            family.file(1).read_at(512 + 16, &mut at).await.unwrap();
            (u64::from_be_bytes(at), 4)
        }
    }
}

async fn entry(file: &dyn File, at: u64, len: u64) -> u64 {
    let mut raw = [0; 8];
    file.read_at(at, &mut raw[..len as usize]).await.unwrap();
    if len == 8 {
        u64::from_le_bytes(raw)
    } else {
        u64::from(u32::from_be_bytes([raw[0], raw[1], raw[2], raw[3]]))
    }
}

async fn put_entry(file: &dyn File, at: u64, len: u64, value: u64) {
    let bytes =
        if len == 8 { value.to_le_bytes().to_vec() } else { (value as u32).to_be_bytes().to_vec() };
    file.write_at(at, &bytes).await.unwrap();
}

/// A child with some blocks, on a parent with others.
async fn base(format: Format, seed: u64) -> Family {
    let mut rng = Rng::new(seed);
    let family = Family::new(format);
    let size = BLOCKS * block(format) - 1024;
    family.make(Shape { size, block: block(format), sector: 512, fixed: false }).await;
    family.fill(0, &mut rng, 4).await;
    family.grow(0, 1, block(format), None).await;
    family.fill(1, &mut rng, 8).await;
    family
}

/// Does the damage; returns which blocks' entries or bytes it touched.
async fn damage(family: &Family, hurts: &[Hurt]) -> Vec<bool> {
    let (format, file) = (family.format, family.file(1));
    let (table, len) = table(family).await;
    let unit = block(format) + if format == Format::Vhd { 512 } else { 0 };
    let place = |value: u64| match format {
        Format::Vhdx => RawEntry(value).data(),
        _ => (value != 0xffff_ffff).then_some(value * 512),
    };
    let mut touched = vec![false; BLOCKS as usize];
    let (mut headers, mut regions) = (None, None);
    for hurt in hurts {
        match hurt {
            Hurt::Copy(which) if format == Format::Vhdx => {
                // One of the two stays.
                let which = *headers.get_or_insert(*which);
                file.write_at((64 << 10) << which, &[0xdd; 100]).await.unwrap();
            }
            Hurt::Copy(_) => file.write_at(0, &[0xdd; 100]).await.unwrap(),
            Hurt::Regions(which) if format == Format::Vhdx => {
                let which = *regions.get_or_insert(*which);
                let at = (192 << 10) + u64::from(which) * (64 << 10);
                file.write_at(at, &[0xdd; 100]).await.unwrap();
            }
            Hurt::Regions(_) => {}
            Hurt::Flip(i, bits) => {
                let at = table + i * len;
                let value = entry(&*file, at, len).await;
                put_entry(&*file, at, len, value ^ bits).await;
                touched[*i as usize] = true;
            }
            Hurt::Same(i, j, near) => {
                let at = table + i * len;
                let value = entry(&*file, table + j * len, len).await;
                if place(value).is_some() && i != j {
                    let step = if format == Format::Vhdx { near << 20 } else { near * 8 };
                    put_entry(&*file, at, len, value + step).await;
                    touched[*i as usize] = true;
                }
            }
            Hurt::Far(i) => {
                let value = if len == 8 { 0x1000 << 20 | 6 } else { 0x7fff_0000 };
                put_entry(&*file, table + i * len, len, value).await;
                touched[*i as usize] = true;
            }
            Hurt::Cut(bytes) => {
                let front = hurts.iter().any(|hurt| matches!(hurt, Hurt::Copy(_)));
                if format == Format::Vhd && front {
                    // Without either footer there is no image.
                    continue;
                }
                let now = file.len().await.unwrap();
                let least = if format == Format::Vhdx { 4 * MIB } else { table + 4096 };
                file.set_len(now.saturating_sub(*bytes).max(least)).await.unwrap();
            }
        }
    }
    let end = file.len().await.unwrap();
    let mut owners: Vec<(u64, usize)> = Vec::new();
    for i in 0..BLOCKS {
        let value = entry(&*file, table + i * len, len).await;
        if let Some(at) = place(value) {
            touched[i as usize] |= at + unit > end;
            owners.push((at, i as usize));
        }
    }
    touched
}

async fn blocks(family: &Family) -> Option<Vec<Vec<u8>>> {
    let bytes = family.read(1).await.ok()?;
    Some(bytes.chunks(block(family.format) as usize).map(<[u8]>::to_vec).collect())
}

async fn mends(format: Format, seed: u64, hurts: Vec<Hurt>) {
    let family = base(format, seed).await;
    let original = blocks(&family).await.unwrap();
    let touched = damage(&family, &hurts).await;
    let (table, len) = table(&family).await;
    for i in 0..BLOCKS {
        let state = entry(&*family.file(1), table + i * len, len).await & 7;
        if format == Format::Vhdx && state == 7 {
            // Partly present, with no bitmap that says which part: named when it is read, not
            // mended.
            return;
        }
    }
    let before = blocks(&family).await;
    let sick = !family.check(1).await.is_clean();
    let done = repair(family.file(1), format).await.unwrap();
    assert!(done.report.is_clean() && done.report.warnings == 0, "{done:#?}");
    assert!(!sick || !done.repairs.is_empty());
    let after = blocks(&family).await.unwrap();
    if let Some(before) = before {
        assert!(after == before, "what read reads otherwise: {done:#?}");
    }
    for (i, touched) in touched.iter().enumerate() {
        assert!(*touched || after[i] == original[i], "block {i} was not damaged: {done:#?}");
    }
    let again = repair(family.file(1), format).await.unwrap();
    assert!(again.repairs.is_empty(), "{again:#?}");
    assert!(blocks(&family).await.unwrap() == after);
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..Default::default() })]

    #[test]
    fn nothing_gets_worse(
        vhdx: bool, seed in 0u64..20, hurts in proptest::collection::vec(hurt(), 1..5),
    ) {
        run(mends(if vhdx { Format::Vhdx } else { Format::Vhd }, seed, hurts));
    }
}

#[test]
fn a_repair_that_was_cut_off_is_completed_by_the_next() {
    let hurts =
        [Hurt::Copy(1), Hurt::Regions(0), Hurt::Same(1, 2, 0), Hurt::Far(3), Hurt::Same(5, 6, 1)];
    for format in [Format::Vhdx, Format::Vhd] {
        let mut within = 0;
        for seed in 0..10 {
            run(async {
                let family = base(format, seed).await;
                damage(&family, &hurts).await;
                let copy = |family: &Family| family.file(1);
                let len = copy(&family).len().await.unwrap();
                let mut bytes = vec![0; len as usize];
                copy(&family).read_at(0, &mut bytes).await.unwrap();
                let sick = MemFile::from_bytes(&bytes);
                let whole = Arc::new(CrashFile::new(&sick, seed));
                family.put(1, whole.clone());
                let done = repair(whole.clone(), format).await.unwrap();
                assert!(done.report.is_clean(), "{done:#?}");
                let (expected, steps) = (blocks(&family).await.unwrap(), whole.operations());
                let mut rng = Rng::new(seed);
                for _ in 0..100 {
                    let file = Arc::new(CrashFile::new(&sick, rng.next_u64()));
                    file.fail_after(rng.below(steps));
                    within += u64::from(repair(file.clone(), format).await.is_err());
                    let left = Arc::new(file.crash(rng.next_u64(), Survival::Some));
                    family.put(1, left.clone());
                    let done = repair(left, format).await.unwrap();
                    assert!(done.report.is_clean() && done.report.warnings == 0, "{done:#?}");
                    assert!(blocks(&family).await.unwrap() == expected, "{format} seed {seed}");
                }
            });
        }
        assert!(within > 300, "{format}: {within}");
    }
}

#[test]
fn what_was_done_is_named() {
    run(async {
        let family = base(Format::Vhdx, 3).await;
        damage(&family, &[Hurt::Copy(0), Hurt::Regions(1), Hurt::Far(4)]).await;
        let done = repair(family.file(1), Format::Vhdx).await.unwrap();
        let named: Vec<(String, u64, Action)> = done
            .repairs
            .iter()
            .map(|r| (r.damage.structure.to_string(), r.damage.offset, r.action))
            .collect();
        let expected = [
            ("header 1".to_owned(), 64 << 10, Action::Rewritten),
            ("region table 2".to_owned(), 256 << 10, Action::Rewritten),
            ("block table".to_owned(), 3 * MIB + 32, Action::Emptied),
        ];
        assert_eq!(named, expected);
    });
}

#[test]
fn what_cannot_be_mended_is_told_and_left_alone() {
    run(async {
        let family = base(Format::Vhdx, 3).await;
        let file = family.file(1);
        // The metadata table's signature: nothing says what it was.
        file.write_at(2 * MIB, b"broken!!").await.unwrap();
        let len = file.len().await.unwrap();
        let mut before = vec![0; len as usize];
        file.read_at(0, &mut before).await.unwrap();
        let done = repair(file.clone(), Format::Vhdx).await.unwrap();
        assert_eq!((done.repairs.len(), done.report.errors), (0, 1));
        let mut after = vec![0; len as usize];
        file.read_at(0, &mut after).await.unwrap();
        assert!(before == after && file.len().await.unwrap() == len);
    });
}

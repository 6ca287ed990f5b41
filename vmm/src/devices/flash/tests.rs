use proptest::prelude::*;

use super::*;

const AT: u64 = 0xffc0_0000;

fn chip(content: &[u8]) -> Flash {
    Flash::new(Rom::new(None, 1, AT, content).unwrap()).unwrap()
}

fn read(chip: &mut Flash, offset: u64) -> u8 {
    let mut byte = [0];
    chip.read(offset, &mut byte);
    byte[0]
}

/// As OVMF's driver writes.
fn program(chip: &mut Flash, offset: u64, bytes: &[u8]) {
    for (at, byte) in (offset..).zip(bytes) {
        chip.write(at, &[PROGRAM]);
        chip.write(at, &[*byte]);
    }
    chip.write(offset, &[0xff]);
}

fn erase(chip: &mut Flash, offset: u64) {
    chip.write(offset, &[ERASE]);
    chip.write(offset, &[CONFIRM]);
}

#[test]
fn a_driver_that_looks_for_a_chip_finds_one() {
    let mut chip = chip(&[0x5a; 2 * BLOCK]);
    // What OVMF does before it keeps variables: neither memory nor a ROM answers so.
    chip.write(0, &[CLEAR_STATUS]);
    assert_eq!(read(&mut chip, 0), 0x5a);
    chip.write(0, &[READ_STATUS]);
    assert_eq!(read(&mut chip, 0), 0);
    chip.write(0, &[PROGRAM]);
    chip.write(0, &[0x5a]);
    chip.write(0, &[READ_STATUS]);
    assert_eq!(read(&mut chip, 0) & FAILED, 0);
    chip.write(0, &[0xff]);
    assert_eq!(read(&mut chip, 0), 0x5a);
}

#[test]
fn blocks_are_erased_whole_and_locks_do_nothing() {
    let mut chip = chip(&[0; 3 * BLOCK]);
    erase(&mut chip, BLOCK as u64 + 77);
    assert_eq!(read(&mut chip, 0), READY, "the status is read until the array is asked for");
    chip.write(0, &[0xff]);
    let content = chip.content();
    assert!(content[BLOCK..2 * BLOCK].iter().all(|byte| *byte == 0xff));
    assert!(content[..BLOCK].iter().chain(&content[2 * BLOCK..]).all(|byte| *byte == 0));
    chip.write(0, &[LOCK]);
    chip.write(0, &[1]);
    chip.write(0, &[0xff]);
    program(&mut chip, 5, b"x");
    assert_eq!(read(&mut chip, 5), b'x');
    // An erasure that is not confirmed.
    chip.write(0, &[ERASE]);
    chip.write(0, &[0xff]);
    assert_eq!(read(&mut chip, 0) & FAILED, FAILED);
    chip.write(0, &[CLEAR_STATUS]);
    assert_eq!(read(&mut chip, 5), b'x');
}

/// What was written is in the file when the driver has the array back, or the status.
#[test]
fn what_was_written_is_in_the_file_before_the_driver_goes_on() {
    let path = tempfile::NamedTempFile::new().unwrap();
    let open = || File::options().read(true).write(true).open(path.path()).unwrap();
    let mut first = chip(&[0xff; 2 * BLOCK]);
    first.keep(open()).unwrap();
    program(&mut first, 4090, b"over the edge");
    let there = std::fs::read(path.path()).unwrap();
    assert_eq!(&there[4090..4103], b"over the edge");
    assert_eq!(there, first.content());
    first.write(0, &[PROGRAM]);
    first.write(0, b"s");
    assert_eq!(std::fs::read(path.path()).unwrap()[0], 0xff);
    assert_eq!(read(&mut first, 0), READY);
    assert_eq!(std::fs::read(path.path()).unwrap()[0], b's');
    // The next machine has it all.
    let mut next = chip(&[0; 2 * BLOCK]);
    next.load(open()).unwrap();
    assert_eq!(next.content(), std::fs::read(path.path()).unwrap());
    let other = chip(&[0; BLOCK]).load(open()).unwrap_err().to_string();
    assert!(other.contains("8192") && other.contains("4096"), "{other}");
}

#[test]
fn variables_that_cannot_be_kept_are_a_failed_program() {
    let path = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(path.path(), [0xff; BLOCK]).unwrap();
    let mut chip = chip(&[0xff; BLOCK]);
    chip.load(File::open(path.path()).unwrap()).unwrap();
    program(&mut chip, 0, b"x");
    chip.write(0, &[READ_STATUS]);
    assert_eq!(read(&mut chip, 0) & FAILED, FAILED);
    // The next that works writes all of it.
    let good = File::options().read(true).write(true).open(path.path()).unwrap();
    chip.file = Some(good);
    chip.write(0, &[0xff]);
    assert_eq!(std::fs::read(path.path()).unwrap()[0], b'x');
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever is written to a chip: it reads as a model says, and another that is given what was
    /// saved, or what the file has, goes on as it would.
    #[test]
    fn a_chip_is_what_was_done_to_it(
        steps in prop::collection::vec((0u8..4, 0u64..3 * BLOCK as u64, any::<u8>()), 0..60),
        cut in 0usize..60,
    ) {
        let path = tempfile::NamedTempFile::new().unwrap();
        let open = || File::options().read(true).write(true).open(path.path()).unwrap();
        let mut model = vec![0xffu8; 3 * BLOCK];
        let mut it = chip(&model);
        it.keep(open()).unwrap();
        for (index, (kind, at, byte)) in steps.iter().enumerate() {
            if index == cut {
                let text = serde_json::to_string(&it.save()).unwrap();
                let mut other = chip(&[0; 3 * BLOCK]);
                other.restore(&serde_json::from_str(&text).unwrap()).unwrap();
                other.keep(open()).unwrap();
                it = other;
            }
            match kind {
                0 | 1 => {
                    program(&mut it, *at, &[*byte]);
                    model[*at as usize] = *byte;
                }
                2 => {
                    erase(&mut it, *at);
                    let first = *at as usize / BLOCK * BLOCK;
                    model[first..first + BLOCK].fill(0xff);
                }
                _ => {
                    it.write(*at, &[0xff]);
                    prop_assert_eq!(read(&mut it, *at), model[*at as usize]);
                }
            }
        }
        it.write(0, &[0xff]);
        prop_assert_eq!(&it.content(), &model);
        prop_assert_eq!(std::fs::read(path.path()).unwrap(), model);
    }

    /// A saved chip that is damaged on its way is an error and no panic.
    #[test]
    fn another_chip_is_refused(
        first in prop_oneof![0usize..4, any::<usize>()],
        len in 0usize..3,
        bytes in prop_oneof![Just(2 * BLOCK), any::<usize>()],
    ) {
        let run = vec![0; len * BLOCK];
        let text = serde_json::json!({
            "mode": "array", "status": 0, "bytes": bytes,
            "runs": [[first, crate::platform::hex::to_base_16(&run)]],
        });
        let saved: SavedFlash = serde_json::from_value(text).unwrap();
        let fits = bytes == 2 * BLOCK && first.saturating_add(len) <= 2;
        prop_assert_eq!(chip(&[0; 2 * BLOCK]).restore(&saved).is_ok(), fits);
    }
}

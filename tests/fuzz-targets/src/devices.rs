//! What a guest does to its balloon and to its watchdog.

use std::time::Duration;

use vm_memory::{Bytes, GuestAddress};
use vmm::{
    devices::{
        virtio::{
            Backend, SavedDevice,
            balloon::{
                Balloon,
                wire::{Statistics, ranges},
            },
        },
        watchdog::engine::{Engine, SavedEngine},
    },
    platform::memory::{GuestRam, PAGE, allocate, give_back},
};

/// Pages of the guest.
const PAGES: u64 = 64;
/// Most steps of one input.
const STEPS: usize = 2048;
/// Longest time that a watchdog's registers can say, and a little.
const LONGEST: Duration = Duration::from_secs(2200);

/// Steps of a kind, a length and as many bytes: lists of pages for the balloon, ranges that are reported,
/// statistics, writes to the configuration, wishes of the host and moves in between. The whole pages that
/// the guest names are given back, each of them and no other, and the balloon is never larger than memory.
pub fn balloon(bytes: &[u8]) {
    let ram = allocate(PAGES * PAGE).expect("a little memory");
    for page in 0..PAGES {
        ram.write_obj(page + 1, GuestAddress(page * PAGE)).expect("it is there");
    }
    let (mut balloon, mut kept) = (Balloon::new(PAGES * PAGE), [true; PAGES as usize]);
    let mut rest = bytes;
    for _ in 0..STEPS {
        let [kind, len, more @ ..] = rest else { break };
        let (data, after) = more.split_at(usize::from(*len).min(more.len()));
        rest = after;
        match kind % 6 {
            0 => ranges(data).into_iter().for_each(|range| give(&ram, &mut kept, range)),
            1 => {
                let [start, end] = [0, 8].map(|at| number(data, at));
                give(&ram, &mut kept, start..end);
            }
            2 => {
                let told = Statistics::parse(data);
                assert!(told.free.is_none() || data.len() >= 10);
            }
            3 => balloon.write_config(number(data, 8), &data[..data.len().min(8)]),
            4 => {
                balloon.set_target(number(data, 0));
            }
            _ => {
                let saved = balloon.save().expect("a balloon has a size");
                let text = serde_json::to_string(&saved).expect("JSON");
                let saved: SavedDevice = serde_json::from_str(&text).expect("what was saved");
                let there = Balloon::new(PAGES * PAGE);
                there.restore(&saved).expect("the state of a balloon");
                let size = |it: &Balloon| (it.config(), it.standing(Duration::ZERO).actual);
                assert_eq!(size(&there), size(&balloon), "it has changed on its way");
                balloon = there;
            }
        }
        let standing = balloon.standing(Duration::ZERO);
        assert!(standing.target.max(standing.actual) <= PAGES * PAGE);
    }
    for (page, kept) in (0..PAGES).zip(kept) {
        let content: u64 = ram.read_obj(GuestAddress(page * PAGE)).expect("it is there");
        assert_eq!(content, if kept { page + 1 } else { 0 }, "page {page}");
    }
}

/// The eight bytes at a place, as far as they are there.
fn number(data: &[u8], at: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.iter_mut().zip(data.iter().skip(at)).for_each(|(byte, value)| *byte = *value);
    u64::from_le_bytes(bytes)
}

fn give(ram: &GuestRam, kept: &mut [bool], range: std::ops::Range<u64>) {
    let mut whole = 0;
    for (page, kept) in (0..PAGES).zip(kept) {
        if range.start <= page * PAGE && (page + 1) * PAGE <= range.end {
            (*kept, whole) = (false, whole + PAGE);
        }
    }
    assert_eq!(give_back(ram, range.clone()), whole, "of {range:x?}");
}

/// Steps of fourteen bytes: what, where, how many of eight bytes, and how much later it is. Nothing runs
/// that is not enabled, nothing runs for longer than the registers can say, what has expired says so, what
/// is locked stays as it is, and it is the same where it is moved.
pub fn watchdog(bytes: &[u8]) {
    let (mut engine, mut now, mut locked) = (Engine::default(), Duration::ZERO, None);
    for step in bytes.as_chunks::<14>().0.iter().take(STEPS) {
        let [kind, offset, len, data @ .., low, high] = *step;
        let data: [u8; 9] = data;
        now += Duration::from_millis(u16::from_le_bytes([low, high]).into());
        match kind % 6 {
            0 => engine.configure(data[0]),
            1 => {
                let lock = engine.set_lock(data[0], now);
                assert!(locked.is_none_or(|before| before == lock), "it is locked");
                locked = locked.or((lock & 1 != 0).then_some(lock));
            }
            2 => {
                if engine.poll(now) {
                    assert!(engine.has_timed_out() && engine.is_enabled());
                }
                assert!(engine.left(now).is_none_or(|left| !left.is_zero()), "it has expired");
            }
            3 => {
                let text = serde_json::to_string(&engine.save(now)).expect("JSON");
                let saved: SavedEngine = serde_json::from_str(&text).expect("what was saved");
                let mut there = Engine::default();
                there.restore(&saved, Duration::ZERO);
                assert_eq!(there.left(Duration::ZERO), engine.left(now));
                (engine, now) = (there, Duration::ZERO);
            }
            4 => {
                engine.write(0xc, &[0x80, 0], now);
                engine.write(0xc, &[0x86, 0], now);
            }
            _ => engine.write(offset.into(), &data[..usize::from(len % 10)], now),
        }
        assert!(engine.is_enabled() || engine.left(now).is_none());
        assert!(engine.left(now).is_none_or(|left| left <= LONGEST));
        let _ = [engine.read(offset.into()), engine.read(0xd)];
    }
}

/// A balloon as Linux fills it, one that is moved, reports, and what lies.
pub fn seeds_balloon() -> Vec<(String, Vec<u8>)> {
    let step = |kind: u8, data: &[u8]| [&[kind, data.len() as u8], data].concat();
    let list =
        |pages: &[u32]| -> Vec<u8> { pages.iter().flat_map(|page| page.to_le_bytes()).collect() };
    let range = |from: u64, to: u64| [from.to_le_bytes(), to.to_le_bytes()].concat();
    let told = |tag: u16, value: u64| [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat();
    let size = |pages: u32| {
        let mut data = pages.to_le_bytes().to_vec();
        data.extend([0; 4]);
        data.extend(4u64.to_le_bytes());
        data
    };
    let statistics = [told(4, 1 << 20), told(5, 1 << 28), told(6, 1 << 27)].concat();
    let linux = [
        step(4, &(16 * PAGE).to_le_bytes()),
        step(0, &list(&[40, 39, 38, 37, 7, 6])),
        step(3, &size(16)),
        step(2, &statistics),
    ]
    .concat();
    let moved = [linux.clone(), step(5, &[]), step(0, &list(&[1, 2])), step(5, &[])].concat();
    let reports = [step(1, &range(8 * PAGE, 24 * PAGE)), step(1, &range(PAGE + 1, 3 * PAGE + 1))];
    let lies = [
        step(0, &list(&[u32::MAX, 64, 63, 63])),
        step(1, &range(u64::MAX - 1, u64::MAX)),
        step(1, &range(9, 2)),
        step(3, &[0xff; 16]),
        step(4, &[0xff; 8]),
        step(2, &[4, 0, 1]),
    ];
    [("linux", linux), ("moved", moved), ("reports", reports.concat()), ("lies", lies.concat())]
        .map(|(name, bytes)| (name.to_owned(), bytes))
        .into()
}

/// A watchdog as Linux sets it up and feeds it, one that is starved and moved, and a locked one.
pub fn seeds_watchdog() -> Vec<(String, Vec<u8>)> {
    let step = |kind: u8, offset: u8, value: u32, later: u16| {
        let mut step = vec![kind, offset, 4];
        step.extend(value.to_le_bytes());
        step.extend([0; 5]);
        step.extend(later.to_le_bytes());
        step
    };
    let put = |offset, value, later| [step(4, 0, 0, later), step(5, offset, value, 0)].concat();
    let set_up =
        [step(0, 0, 3, 0), put(0, 1 << 9, 0), put(4, 1 << 9, 0), step(1, 0, 2, 0)].concat();
    let fed = [set_up.clone(), put(0xc, 0x100, 800), put(0xc, 0x100, 800), step(2, 0, 0, 900)];
    let starved = [set_up.clone(), step(3, 0, 0, 500), step(2, 0, 0, 60_000), put(0xc, 0x300, 9)];
    let locked =
        [set_up, step(1, 0, 3, 1), step(1, 0, 0, 1), step(0, 0, 0x24, 1), step(3, 0, 0, 1)];
    [("fed", fed.concat()), ("starved", starved.concat()), ("locked", locked.concat())]
        .map(|(name, bytes)| (name.to_owned(), bytes))
        .into()
}

//! Replays the corpora of all fuzz targets, with a bound on memory.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

use fuzz_targets::TARGETS;

/// Counts the bytes in use.
struct Counting;

static IN_USE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

#[expect(unsafe_code, reason = "an allocator is unsafe to implement")]
// SAFETY: every call is the system allocator's own, which keeps the contract.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = IN_USE.fetch_add(layout.size(), Relaxed) + layout.size();
        PEAK.fetch_max(now, Relaxed);
        // SAFETY: the caller's layout, passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        IN_USE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: `ptr` came from `alloc` above with this layout.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// All inputs of a target's corpus.
fn corpus(name: &str) -> Vec<PathBuf> {
    let folder = project().join("tests/fuzz-corpus").join(name);
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{folder:?}: {error}"));
    let mut list: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    list.sort();
    list
}

/// One test, because the memory that is counted is the process's.
#[test]
fn every_input_of_the_corpora_keeps_the_promises() {
    for target in TARGETS {
        let inputs = corpus(target.name);
        assert!(!inputs.is_empty(), "{} has no corpus", target.name);
        // What is made once and kept.
        (target.run)(&fs::read(&inputs[0]).unwrap());
        for input in inputs {
            let bytes = fs::read(&input).unwrap();
            eprintln!("{}", input.display());
            let before = IN_USE.load(Relaxed);
            PEAK.store(before, Relaxed);
            (target.run)(&bytes);
            let peak = PEAK.load(Relaxed).saturating_sub(before);
            let most = target.memory + 16 * bytes.len();
            assert!(peak <= most, "{}: {peak} bytes, {most} at most", input.display());
        }
    }
}

/// The seeds are still what their names say: each begins a run that goes past the first refusal.
#[test]
fn every_seed_of_the_writers_keeps_the_promises() {
    for target in TARGETS {
        for (name, bytes) in (target.seeds)() {
            eprintln!("{} {name}", target.name);
            (target.run)(&bytes);
        }
    }
}

#[test]
fn every_target_has_its_program_and_every_program_its_target() {
    let folder = project().join("fuzz/fuzz_targets");
    let mut programs: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    programs.sort();
    let mut names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
    names.sort_unstable();
    assert_eq!(programs, names);
}

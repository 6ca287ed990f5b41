//! One operation, and choosing the next.

use std::collections::BTreeMap;

use super::random::Random;

/// What the soak may do beyond what every file system can.
#[derive(Debug, Clone, Copy)]
pub struct Abilities {
    /// Shared writable mappings that agree with reads and writes.
    pub maps: bool,
    /// Symbolic links.
    pub symlinks: bool,
    /// Locks of byte ranges.
    pub locks: bool,
    /// Reserving a range fills its holes with zeros, all of them.
    pub reserves: bool,
}

/// One operation on a folder; names are relative to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Makes a file that must not be there.
    Create { name: String },
    /// Writes at a place; makes the file if it is not there, empties it first if `truncate`.
    Write { name: String, at: u64, len: usize, truncate: bool, seed: u64 },
    /// Several writes with O_APPEND through one descriptor.
    Append { name: String, lens: Vec<usize>, seed: u64 },
    /// Sets the size.
    Truncate { name: String, len: u64 },
    /// Reads a range.
    Read { name: String, at: u64, len: usize },
    /// Stores into a shared mapping.
    Map { name: String, at: u64, len: usize, seed: u64 },
    /// Makes a hole.
    Punch { name: String, at: u64, len: u64 },
    /// Zeroes a range, within the size or beyond it.
    Zero { name: String, at: u64, len: u64, keep_size: bool },
    /// Reserves a range.
    Allocate { name: String, at: u64, len: u64, keep_size: bool },
    /// Takes a range of blocks out.
    Collapse { name: String, at: u64, len: u64 },
    /// Puts a range of zeros in.
    Insert { name: String, at: u64, len: u64 },
    /// Copies on the server.
    Copy { from: String, to: String, at: u64, to_at: u64, len: usize },
    /// Finds holes; nothing but zeros may be there.
    Holes { name: String },
    /// Renames a file or folder; fails if the new name is there and `replace` is not set.
    Rename { from: String, to: String, replace: bool },
    /// A second name for a file.
    Link { from: String, to: String },
    /// A symbolic link.
    Symlink { name: String, target: String },
    /// Where a symbolic link leads.
    ReadLink { name: String },
    /// Removes a file.
    Unlink { name: String },
    /// Makes a folder.
    Mkdir { name: String },
    /// Removes a folder.
    Rmdir { name: String },
    /// Lists a folder.
    List { name: String },
    /// Kind and size.
    Stat { name: String },
    /// Makes it read-only and writable again.
    ReadOnly { name: String },
    /// Sets the times of access and change.
    Times { name: String, seconds: i64, nanoseconds: i64 },
    /// Sets an extended attribute.
    SetAttribute { name: String, attribute: String, len: usize, seed: u64 },
    /// Reads one.
    GetAttribute { name: String, attribute: String },
    /// Removes one.
    RemoveAttribute { name: String, attribute: String },
    /// Names of all.
    ListAttributes { name: String },
    /// Locks the file, writes, reads, unlocks.
    Lock { name: String, at: u64, len: usize, seed: u64 },
    /// Opens a file and keeps it open.
    Hold { name: String },
    /// Writes to a file that is kept open.
    HeldWrite { which: usize, at: u64, len: usize, seed: u64 },
    /// Reads from one.
    HeldRead { which: usize, at: u64, len: usize },
    /// Sets its size.
    HeldTruncate { which: usize, len: u64 },
    /// Syncs it.
    HeldSync { which: usize },
    /// Closes it.
    Release { which: usize },
}

/// What there is to work on.
#[derive(Debug, Default)]
pub struct Present {
    /// Files and their sizes.
    pub files: BTreeMap<String, u64>,
    /// Folders but the top.
    pub folders: Vec<String>,
    /// Symbolic links.
    pub links: Vec<String>,
    /// How many files are kept open.
    pub held: usize,
}

const FOLDERS: [&str; 5] = ["a", "b", "a/c", "a folder", "b/ü"];
const FILES: [&str; 12] =
    ["f0", "f1", "f2", "f3", "f4", "f5", "a file.txt", "ümläut", "x:y", "star*", "q?", "λ.bin"];
const ATTRIBUTES: [&str; 3] = ["user.COLOUR", "user.SIZE", "user.A.B"];
/// Sizes stay below this.
const MOST: u64 = 3 << 20;
/// Files that are kept open at once.
const HELD: usize = 4;

impl Present {
    fn file(&self, random: &mut Random) -> String {
        // Now and then one that is not there.
        let some: Vec<_> = self.files.keys().collect();
        match random.pick(&some) {
            Some(name) if !random.one_in(24) => (*name).clone(),
            _ => self.any_name(random),
        }
    }

    fn any_name(&self, random: &mut Random) -> String {
        let name = random.pick(&FILES).copied().unwrap_or("f0");
        if random.one_in(30) {
            return format!("nowhere/{name}");
        }
        match random.pick(&self.folders) {
            Some(folder) if !random.one_in(3) => format!("{folder}/{name}"),
            _ => name.to_owned(),
        }
    }

    fn folder(&self, random: &mut Random) -> String {
        match random.pick(&self.folders) {
            Some(folder) if !random.one_in(8) => folder.clone(),
            _ => random.pick(&FOLDERS).copied().unwrap_or("a").to_owned(),
        }
    }

    fn entry(&self, random: &mut Random) -> String {
        if random.one_in(4) { self.folder(random) } else { self.file(random) }
    }

    fn size(&self, name: &str) -> u64 {
        self.files.get(name).copied().unwrap_or(0)
    }
}

fn length(random: &mut Random) -> usize {
    let most = match random.below(16) {
        0 => 1 << 20,
        1..=3 => 128 << 10,
        4..=8 => 16 << 10,
        _ => 600,
    };
    random.below(most) as usize + 1
}

/// A place in a file of `size`, seldom behind its end.
fn place(random: &mut Random, size: u64) -> u64 {
    let at = match random.below(8) {
        0 => size,
        1 => size + random.below(64 << 10),
        2 | 3 => random.below(size + 1) & !0xfff,
        _ => random.below(size + 1),
    };
    at.min(MOST)
}

/// The next operation.
pub fn choose(random: &mut Random, present: &Present, able: Abilities) -> Op {
    let seed = random.next();
    let held = random.below(present.held.max(1) as u64) as usize;
    let name = present.file(random);
    let size = present.size(&name);
    let at = place(random, size);
    let len = length(random);
    let attribute = random.pick(&ATTRIBUTES).copied().unwrap_or(ATTRIBUTES[0]).to_owned();
    let keep_size = random.one_in(2);
    match random.below(100) {
        0..=3 => Op::Create { name: present.any_name(random) },
        4..=17 => {
            let name = if random.one_in(3) { present.any_name(random) } else { name };
            Op::Write { name, at, len, truncate: random.one_in(10), seed }
        }
        18..=21 => {
            let lens = (0..=random.below(4)).map(|_| length(random)).collect();
            Op::Append { name, lens, seed }
        }
        22..=25 => Op::Truncate { name, len: at },
        26..=33 => Op::Read { name, at, len },
        34..=37 if able.maps && size > 0 => {
            let at = random.below(size);
            let len = len.min((size - at) as usize);
            Op::Map { name, at, len, seed }
        }
        38..=40 => Op::Punch { name, at, len: len as u64 },
        41..=43 => Op::Zero { name, at, len: len as u64, keep_size },
        44 | 45 if able.reserves => Op::Allocate { name, at, len: len as u64, keep_size },
        46 => Op::Collapse { name, at: at & !0xfff, len: (len as u64).next_multiple_of(4096) },
        47 if size < MOST => {
            Op::Insert { name, at: at & !0xfff, len: (len as u64).next_multiple_of(4096) }
        }
        48..=51 => {
            let to = present.file(random);
            let to_at = place(random, present.size(&to));
            Op::Copy { from: name, to, at, to_at, len }
        }
        52 | 53 => Op::Holes { name },
        54..=57 => {
            let to = if random.one_in(4) { present.file(random) } else { present.any_name(random) };
            Op::Rename { from: name, to, replace: !random.one_in(4) }
        }
        58 => {
            Op::Rename { from: present.folder(random), to: present.folder(random), replace: true }
        }
        59 | 60 => Op::Link { from: name, to: present.any_name(random) },
        61 if able.symlinks => Op::Symlink { name: present.any_name(random), target: name },
        62 if able.symlinks => match random.pick(&present.links) {
            Some(name) if random.one_in(3) => Op::Unlink { name: name.clone() },
            Some(name) => Op::ReadLink { name: name.clone() },
            None => Op::Stat { name },
        },
        63..=66 => Op::Unlink { name },
        67 | 68 => Op::Mkdir { name: random.pick(&FOLDERS).copied().unwrap_or("a").to_owned() },
        69 => Op::Rmdir { name: present.folder(random) },
        70 | 71 => Op::List { name: present.folder(random) },
        72..=74 => Op::Stat { name: present.entry(random) },
        75 => Op::ReadOnly { name },
        76 | 77 => Op::Times {
            name: present.entry(random),
            seconds: 1_000_000_000 + random.below(700_000_000).cast_signed(),
            // SMB counts in hundreds of nanoseconds.
            nanoseconds: random.below(10_000_000).cast_signed() * 100,
        },
        78 => Op::SetAttribute { name, attribute, len: len.min(900), seed },
        79 => Op::GetAttribute { name, attribute },
        80 => Op::RemoveAttribute { name, attribute },
        81 => Op::ListAttributes { name },
        82 | 83 if able.locks => Op::Lock { name, at, len: len.min(4096), seed },
        84 | 85 if present.held < HELD => Op::Hold { name },
        86..=90 if present.held > 0 => {
            Op::HeldWrite { which: held, at: random.below(300_000), len, seed }
        }
        91..=94 if present.held > 0 => Op::HeldRead { which: held, at: random.below(300_000), len },
        95 if present.held > 0 => Op::HeldTruncate { which: held, len: random.below(300_000) },
        96 if present.held > 0 => Op::HeldSync { which: held },
        97 | 98 if present.held > 0 => Op::Release { which: held },
        _ => Op::Read { name, at, len },
    }
}

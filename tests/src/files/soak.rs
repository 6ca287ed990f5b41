//! Many operations, one after another, on both folders.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt::Write,
    fs, io,
    os::unix::fs::FileExt,
    path::Path,
    time::{Duration, Instant},
};

use super::{
    apply::{Outcome, Side},
    compare::compare,
    op::{Op, Present, choose},
    random::Random,
};

pub use super::op::Abilities;

/// How long and what a soak does.
#[derive(Debug, Clone)]
pub struct Options {
    /// The same seed gives the same operations.
    pub seed: u64,
    /// At most so many operations.
    pub operations: u64,
    /// At most so long.
    pub time: Duration,
    /// The folders are compared after so many.
    pub compare_every: u64,
    /// What the tested file system can do.
    pub able: Abilities,
}

/// What a soak did.
#[derive(Debug, Default)]
pub struct Summary {
    /// Operations carried out.
    pub operations: u64,
    /// Comparisons of the whole folders.
    pub comparisons: u64,
    /// Per kind of operation: how often it was done, failed alike, could not be done.
    pub kinds: BTreeMap<String, [u64; 3]>,
}

impl Summary {
    fn count(&mut self, op: &Op, outcome: &Outcome) {
        let text = format!("{op:?}");
        let kind = text.split_whitespace().next().unwrap_or_default().to_owned();
        let counts = self.kinds.entry(kind).or_default();
        match outcome {
            Outcome::Failed(_) => counts[1] += 1,
            Outcome::Cannot(_) => counts[2] += 1,
            _ => counts[0] += 1,
        }
    }

    /// Kinds that the tested file system could never do.
    pub fn never(&self) -> Vec<&str> {
        let never = |c: &[u64; 3]| c[0] == 0 && c[2] > 0;
        self.kinds.iter().filter(|(_, c)| never(c)).map(|(kind, _)| kind.as_str()).collect()
    }
}

impl std::fmt::Display for Summary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} operations, {} comparisons:", self.operations, self.comparisons)?;
        for (kind, [done, failed, cannot]) in &self.kinds {
            write!(f, " {kind} {done}")?;
            if *failed > 0 {
                write!(f, "+{failed} refused")?;
            }
            if *cannot > 0 {
                write!(f, "+{cannot} not possible")?;
            }
            f.write_char(';')?;
        }
        Ok(())
    }
}

/// What is there, seen in the trusted folder.
fn present(root: &Path, held: usize) -> io::Result<Present> {
    fn walk(root: &Path, below: &str, found: &mut Present) -> io::Result<()> {
        let mut entries = Vec::new();
        for entry in fs::read_dir(root.join(below))? {
            entries.push(entry?.file_name().to_string_lossy().into_owned());
        }
        entries.sort();
        for entry in entries {
            let name = if below.is_empty() { entry } else { format!("{below}/{entry}") };
            let metadata = fs::symlink_metadata(root.join(&name))?;
            if metadata.is_dir() {
                walk(root, &name, found)?;
                found.folders.push(name);
            } else if metadata.is_file() {
                found.files.insert(name, metadata.len());
            } else {
                found.links.push(name);
            }
        }
        Ok(())
    }
    let mut found = Present { held, ..Present::default() };
    walk(root, "", &mut found)?;
    Ok(found)
}

/// Runs operations on both folders, which are empty, until the limits of `options`.
///
/// # Errors
/// A text that says what differed, after which operations, from which seed.
pub fn soak(tested: &Path, trusted: &Path, options: &Options) -> Result<Summary, String> {
    let (mut tested, mut trusted) = (Side::new(tested), Side::new(trusted));
    let mut random = Random::new(options.seed);
    let mut summary = Summary::default();
    let mut recent: VecDeque<String> = VecDeque::new();
    let since = Instant::now();
    let story = |summary: &Summary, recent: &VecDeque<String>, what: String| {
        let last: Vec<_> = recent.iter().cloned().collect();
        format!(
            "seed {}, operation {}: {what}\nthe last operations:\n{}",
            options.seed,
            summary.operations,
            last.join("\n")
        )
    };
    while summary.operations < options.operations && since.elapsed() < options.time {
        let there = present(&trusted.root, trusted.held.len()).map_err(|e| e.to_string())?;
        let op = choose(&mut random, &there, options.able);
        summary.operations += 1;
        if is_of_no_use(&trusted, &op) {
            continue;
        }
        let shown = format!("{op:?}");
        if recent.len() == 60 {
            recent.pop_front();
        }
        recent.push_back(format!("{} {shown}", summary.operations));
        let seen = tested.apply(&op);
        summary.count(&op, &seen);
        if !matches!(seen, Outcome::Cannot(_)) {
            let expected = trusted.apply(&op);
            if let Some(difference) = differ(&trusted, &op, &seen, &expected) {
                return Err(story(&summary, &recent, difference));
            }
        }
        if summary.operations % options.compare_every == 0 {
            summary.comparisons += 1;
            alike(&tested, &trusted).map_err(|what| story(&summary, &recent, what))?;
        }
    }
    for which in (0..trusted.held.len()).rev() {
        let op = Op::Release { which };
        let (seen, expected) = (tested.apply(&op), trusted.apply(&op));
        if seen != expected {
            return Err(story(&summary, &recent, format!("closing: {seen:?}")));
        }
    }
    summary.comparisons += 1;
    alike(&tested, &trusted).map_err(|what| story(&summary, &recent, what))?;
    Ok(summary)
}

fn alike(tested: &Side, trusted: &Side) -> Result<(), String> {
    match compare(&tested.root, &trusted.root) {
        Ok(differences) if differences.is_empty() => Ok(()),
        Ok(differences) => Err(format!("the folders differ:\n{}", differences.join("\n"))),
        Err(error) => Err(format!("the folders cannot be compared: {error}")),
    }
}

/// Whether SMB does an operation differently by its nature: above all it keeps the name of a file
/// that is open until it is closed, so what follows would differ.
fn is_of_no_use(side: &Side, op: &Op) -> bool {
    let is_held = |name: &str| side.identity(name).is_some_and(|id| side.holds(id));
    match op {
        Op::Unlink { name } => is_held(name),
        Op::Rename { from, to, .. } => {
            // A folder with an open file below it cannot be renamed either (MS-FSA 2.1.5.15.12).
            let below = |name: &str| !side.held.is_empty() && side.root.join(name).is_dir();
            // SMB renames no folder over another (MS-FSA 2.1.5.15.12).
            let folder = |name: &str| side.root.join(name).is_dir();
            is_held(to) || below(from) || below(to) || folder(from) && folder(to)
        }
        // Linux 6.1 keeps the last page of a file in its cache, zeroed, when it inserts before it and
        // the file does not end with the page: a capture shows that it never asks for it again.
        Op::Insert { name, .. } => {
            fs::metadata(side.root.join(name)).is_ok_and(|m| !m.len().is_multiple_of(4096))
        }
        // A lock is mandatory on SMB: a second open of the same file meets it.
        Op::Lock { name, .. } => is_held(name),
        _ => false,
    }
}

/// How two outcomes differ, if they do.
fn differ(trusted: &Side, op: &Op, seen: &Outcome, expected: &Outcome) -> Option<String> {
    if let (Op::Holes { name }, Outcome::Holes(holes)) = (op, seen) {
        return holes.iter().find_map(|&(from, to)| {
            let mut data = vec![0; (to - from) as usize];
            let file = fs::File::open(trusted.root.join(name)).ok()?;
            let read = file.read_exact_at(&mut data, from);
            let zeros = read.is_ok() && data.iter().all(|b| *b == 0);
            (!zeros).then(|| format!("{op:?}: there is data in the hole {from:#x}..{to:#x}"))
        });
    }
    if seen == expected {
        return None;
    }
    let shown = |outcome: &Outcome| match outcome {
        Outcome::Bytes(bytes) => {
            format!("{} bytes {:02x?}…", bytes.len(), &bytes[..bytes.len().min(16)])
        }
        other => format!("{other:?}"),
    };
    let mut text = format!("{op:?}: got {}, expected {}", shown(seen), shown(expected));
    if let (Outcome::Bytes(a), Outcome::Bytes(b)) = (seen, expected) {
        let first = a.iter().zip(b).position(|(a, b)| a != b);
        let _ = write!(text, ", the first difference at {first:?}");
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ABLE: Abilities = Abilities { maps: true, symlinks: true, locks: true, reserves: true };

    fn options(seed: u64) -> Options {
        Options {
            seed,
            operations: 1500,
            time: Duration::from_secs(600),
            compare_every: 100,
            able: ABLE,
        }
    }

    #[test]
    fn two_folders_of_one_file_system_stay_alike() {
        let folder = tempfile::tempdir().expect("a folder");
        for seed in 0..4 {
            let (a, b) =
                (folder.path().join(format!("a{seed}")), folder.path().join(format!("b{seed}")));
            fs::create_dir(&a).expect("a folder");
            fs::create_dir(&b).expect("a folder");
            let summary = soak(&a, &b, &options(seed)).unwrap_or_else(|text| panic!("{text}"));
            assert_eq!(summary.operations, 1500);
            assert!(summary.kinds.len() > 25, "{summary}");
        }
    }

    #[test]
    fn a_byte_a_name_or_a_link_that_differs_is_found() {
        let folder = tempfile::tempdir().expect("a folder");
        let sides = [folder.path().join("a"), folder.path().join("b")];
        for side in &sides {
            fs::create_dir(side).expect("a folder");
        }
        soak(&sides[0], &sides[1], &options(7)).unwrap_or_else(|text| panic!("{text}"));
        let big = |root: &Path| {
            let there = present(root, 0).expect("it can be read");
            there.files.into_iter().max_by_key(|(_, len)| *len).expect("there are files")
        };
        let (name, len) = big(&sides[0]);
        assert!(len > 0);
        let file = fs::File::options().read(true).write(true).open(sides[0].join(&name));
        let file = file.expect("it is ours");
        let mut byte = [0];
        file.read_exact_at(&mut byte, len - 1).expect("it is there");
        file.write_all_at(&[!byte[0]], len - 1).expect("it is ours");
        assert_eq!(compare(&sides[0], &sides[1]).expect("both can be read").len(), 1);
        file.write_all_at(&byte, len - 1).expect("it is ours");
        assert!(compare(&sides[0], &sides[1]).expect("both can be read").is_empty());
        fs::write(sides[0].join("one more"), "").expect("it is ours");
        let more = compare(&sides[0], &sides[1]).expect("both can be read");
        assert!(more[0].contains("should not be there"), "{more:?}");
        let less = compare(&sides[1], &sides[0]).expect("both can be read");
        assert!(less[0].contains("is missing"), "{less:?}");
    }
}

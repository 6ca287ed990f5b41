//! Whether two folders hold the same.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::Path,
};

use super::apply::attributes;

/// What there is at a name.
#[derive(Debug, PartialEq, Eq)]
enum Entry {
    Folder,
    File { len: u64, attributes: String },
    Link(String),
}

fn walk(root: &Path, below: &Path, found: &mut BTreeMap<String, Entry>) -> io::Result<()> {
    for entry in fs::read_dir(root.join(below))? {
        let entry = entry?;
        let name = below.join(entry.file_name());
        let path = entry.path();
        let metadata = fs::symlink_metadata(&path)?;
        let shown = name.display().to_string();
        let what = if metadata.is_dir() {
            walk(root, &name, found)?;
            Entry::Folder
        } else if metadata.is_file() {
            let attributes = attributes(&path).map(|names| format!("{names:?}"));
            Entry::File {
                len: metadata.len(),
                attributes: attributes.unwrap_or_else(|error| error.kind().to_string()),
            }
        } else {
            Entry::Link(fs::read_link(&path)?.display().to_string())
        };
        found.insert(shown, what);
    }
    Ok(())
}

/// The first byte at which two files differ.
fn first_difference(a: &Path, b: &Path) -> io::Result<Option<String>> {
    let (mut a, mut b) = (fs::File::open(a)?, fs::File::open(b)?);
    let (mut x, mut y) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    let mut at = 0;
    loop {
        let n = a.read(&mut x)?;
        if n == 0 {
            let more = b.read(&mut y)?;
            return Ok((more > 0).then(|| format!("the second is longer than {at}")));
        }
        if let Err(error) = b.read_exact(&mut y[..n]) {
            return Ok(Some(format!("the second ends within {at}+{n}: {error}")));
        }
        if x[..n] != y[..n] {
            let differ = |i: &usize| x[*i] != y[*i];
            let first = (0..n).find(differ).unwrap_or(0);
            let count = (0..n).filter(differ).count();
            return Ok(Some(format!(
                "at byte {:#x}, {count} bytes of this {n}: {:02x?} and {:02x?}",
                at + first,
                &x[first..n.min(first + 16)],
                &y[first..n.min(first + 16)]
            )));
        }
        at += n;
    }
}

/// What differs between two folders, one line each; empty if nothing does.
///
/// # Errors
/// What cannot be read in either.
pub fn compare(tested: &Path, trusted: &Path) -> io::Result<Vec<String>> {
    let mut sides = [BTreeMap::new(), BTreeMap::new()];
    for (side, root) in sides.iter_mut().zip([tested, trusted]) {
        walk(root, Path::new(""), side)?;
    }
    let [left, right] = sides;
    let mut differences = Vec::new();
    for (name, a) in &left {
        match right.get(name) {
            None => differences.push(format!("{name}: {a:?} should not be there")),
            Some(b) if a != b => differences.push(format!("{name}: {a:?} and {b:?}")),
            Some(Entry::File { .. }) => {
                let at = first_difference(&tested.join(name), &trusted.join(name))?;
                differences.extend(at.map(|at| format!("{name}: {at}")));
            }
            Some(_) => {}
        }
    }
    let missing = right.iter().filter(|(name, _)| !left.contains_key(*name));
    differences.extend(missing.map(|(name, b)| format!("{name}: {b:?} is missing")));
    Ok(differences)
}

/// Files whose numbers of names differ. A client that knows a file from a listing does not know
/// its links, so this is for a fresh mount, before anything is listed there.
///
/// # Errors
/// What cannot be read in either.
pub fn compare_links(tested: &Path, trusted: &Path) -> io::Result<Vec<String>> {
    let mut found = BTreeMap::new();
    walk(trusted, Path::new(""), &mut found)?;
    let mut differences = Vec::new();
    for (name, entry) in &found {
        if matches!(entry, Entry::File { .. }) {
            let links = |root: &Path| fs::symlink_metadata(root.join(name)).map(|m| m.nlink());
            let (a, b) = (links(tested)?, links(trusted)?);
            if a != b {
                differences.push(format!("{name}: {a} and {b} links"));
            }
        }
    }
    Ok(differences)
}

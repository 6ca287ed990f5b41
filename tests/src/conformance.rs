//! Which section of MS-SMB2 3.3.5 (what a server does with each message) is carried out where.
//!
//! Product code cites a section by its number in a comment: `MS-SMB2 3.3.5.9.4`, or the number alone
//! where the specification was named before. `tests/conformance/ms-smb2-3.3.5.tsv` has all sections
//! with their titles, and the reason for one that no code carries out. `cargo run -p bulkhead-tests
//! --bin conformance` writes what comes of both to `docs/conformance.md`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    fs, io,
    path::{Path, PathBuf},
};

/// Crates that speak SMB 2: no other specification that they cite has a section 3.3.5.
const CRATES: [&str; 4] = ["smb-protocol", "smb-server", "smbd", "volume"];
/// How the numbers of these sections begin.
const BEGIN: &str = "3.3.5.";

/// A section of the specification.
pub struct Section {
    /// Its number, from `3.3.5.1` on.
    pub number: String,
    /// Its title.
    pub title: String,
    /// Why no code carries it out; empty if it must be cited.
    pub reason: String,
}

/// The folder of the project.
pub fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The sections in the order of the specification.
///
/// # Errors
/// The list cannot be read.
pub fn sections() -> io::Result<Vec<Section>> {
    let list = fs::read_to_string(project().join("tests/conformance/ms-smb2-3.3.5.tsv"))?;
    let section = |line: &str| {
        let mut fields = line.split('\t').map(str::to_owned);
        let mut field = || fields.next().unwrap_or_default();
        Section { number: field(), title: field(), reason: field() }
    };
    Ok(list.lines().map(section).collect())
}

/// The sections that comments of a file's product code cite.
pub fn cited(text: &str) -> BTreeSet<String> {
    let end = text.find("#[cfg(test)]\nmod tests {").unwrap_or(text.len());
    let comments = text[..end].lines().filter_map(|line| line.find("//").map(|at| &line[at..]));
    comments.flat_map(numbers).collect()
}

/// The numbers of sections in a line.
fn numbers(line: &str) -> Vec<String> {
    let starts = line.match_indices(BEGIN).filter(|(at, _)| {
        let before = line[..*at].chars().next_back();
        !before.is_some_and(|c| c.is_ascii_digit() || c == '.')
    });
    let number = |(at, _): (usize, &str)| {
        let rest = &line[at..];
        let len = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        rest[..len].trim_end_matches('.').to_owned()
    };
    starts.map(number).filter(|number| number.len() >= BEGIN.len()).collect()
}

/// Every section that is cited, with the files that cite it, as paths in the project.
///
/// # Errors
/// A file cannot be read.
pub fn citations() -> io::Result<BTreeMap<String, BTreeSet<String>>> {
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut folders: Vec<PathBuf> =
        CRATES.iter().map(|name| project().join(name).join("src")).collect();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if path.is_dir() && !matches!(name, "tests" | "simulation") {
                folders.push(path);
            } else if name.ends_with(".rs") && name != "tests.rs" {
                let place = path.strip_prefix(project()).unwrap_or(&path).display().to_string();
                for number in cited(&fs::read_to_string(&path)?) {
                    found.entry(number).or_default().insert(place.clone());
                }
            }
        }
    }
    Ok(found)
}

/// The document: every section, where it is carried out, or why it is not.
///
/// # Errors
/// The list or a file cannot be read.
pub fn document() -> io::Result<String> {
    let (sections, citations) = (sections()?, citations()?);
    let open = sections.iter().filter(|section| !citations.contains_key(&section.number));
    let (left, none) =
        (open.clone().filter(|section| section.reason.is_empty()).count(), open.count());
    let mut out = String::from(
        "# Where MS-SMB2 3.3.5 is\n\n\
         What a server does with each message, by the sections of the specification. Made from the comments of the\n\
         code by `cargo run -p bulkhead-tests --bin conformance`; a test holds that it is up to date.\n\n",
    );
    let cited = sections.len() - none;
    _ = writeln!(
        out,
        "{} sections: {cited} are cited where they are carried out, {} are not carried out for a reason, {left} are open.\n",
        sections.len(),
        none - left
    );
    out.push_str("| section | title | where |\n| --- | --- | --- |\n");
    for Section { number, title, reason } in &sections {
        let places: Vec<String> = citations
            .get(number)
            .into_iter()
            .flatten()
            .map(|place| format!("[{place}](../{place})"))
            .collect();
        let place = match (places.is_empty(), reason.is_empty()) {
            (false, _) => places.join(", "),
            (true, false) => reason.clone(),
            (true, true) => "**open**".into(),
        };
        _ = writeln!(out, "| {number} | {title} | {place} |");
    }
    Ok(out)
}

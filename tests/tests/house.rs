//! How long files are and how much their documentation says. Clippy holds the length of functions
//! (`too_many_lines`: 100) and the number of their parameters (`too_many_arguments`: 7); the test of
//! these lints is that they are on.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Lines of a file of product code.
const LINES: usize = 650;

/// Most functions that may say why they are longer than a function should be.
const LONG_FUNCTIONS: usize = 2;

fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The files of all crates' product code: path in the project, and content.
fn product() -> Vec<(String, String)> {
    let mut folders: Vec<PathBuf> = fs::read_dir(project())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join("Cargo.toml").exists())
        .filter(|path| !["tests", "test-support", "fuzz"].iter().any(|name| path.ends_with(name)))
        .map(|path| path.join("src"))
        .collect();
    assert!(folders.len() > 15, "the crates are not where this test looks");
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if path.is_dir() && !["tests", "simulation", "testing"].contains(&name) {
                folders.push(path);
            } else if name.ends_with(".rs") && name != "tests.rs" {
                let place = path.strip_prefix(project()).unwrap().to_str().unwrap().to_owned();
                files.push((place, fs::read_to_string(&path).unwrap()));
            }
        }
    }
    files
}

/// A line that begins a public item whose documentation must say more than its name.
///
/// A constant is its value and the name that the specification gives it.
fn begins_item(line: &str) -> bool {
    let Some(rest) = line.trim_start().strip_prefix("pub ") else { return false };
    let kinds =
        ["fn ", "struct ", "enum ", "trait ", "type ", "mod ", "const fn ", "async fn ", "unsafe "];
    kinds.iter().any(|kind| rest.starts_with(kind))
}

/// Documentation of three words or fewer at public items: the line's number, and the words.
fn short_docs(text: &str) -> Vec<(usize, String)> {
    let end = text.find("#[cfg(test)]\nmod tests {").unwrap_or(text.len());
    let (mut found, mut doc) = (Vec::new(), Vec::new());
    for (number, line) in text[..end].lines().enumerate() {
        let line = line.trim_start();
        if let Some(words) = line.strip_prefix("///") {
            doc.extend(words.split_whitespace());
        } else if !line.starts_with("#[") {
            if begins_item(line) && (1..=3).contains(&doc.len()) {
                found.push((number + 1, doc.join(" ")));
            }
            doc.clear();
        }
    }
    found
}

#[test]
fn no_file_has_more_than_one_role_can_fill() {
    for (place, text) in product() {
        let lines = text.lines().count();
        assert!(lines <= LINES, "{place} has {lines} lines: split it by role ({LINES} at most)");
    }
}

#[test]
fn what_is_public_says_more_than_its_name() {
    let mut all = String::new();
    for (place, text) in product() {
        for (line, words) in short_docs(&text) {
            all += &format!("{place}:{line}: {words}\n");
        }
    }
    assert!(all.is_empty(), "documentation of three words or fewer:\n{all}");
}

#[test]
fn functions_are_measured() {
    let manifest = fs::read_to_string(project().join("Cargo.toml")).unwrap();
    assert!(manifest.contains("too_many_lines = \"warn\""));
    let makefile = fs::read_to_string(project().join("Makefile")).unwrap();
    assert!(makefile.contains("cargo clippy --workspace --all-targets -- -D warnings"));
    let long =
        product().iter().map(|(_, text)| text.matches("clippy::too_many_lines").count()).sum();
    assert!(LONG_FUNCTIONS >= long, "{long} functions have more than 100 lines");
}

#[test]
fn a_short_doc_would_be_seen() {
    let text = "/// Runs it.\n#[must_use]\npub fn run() {}\n/// A lease.\npub const LEASE: u8 = 1;\n\
                /// Its name.\nname: u8,\n/// Says four words now.\npub struct Four;\n/// One.\nfn one() {}\n\
                /// Makes one.\npub const fn one() {}\n#[cfg(test)]\nmod tests {\n/// X.\npub fn x() {}\n}\n";
    let seen = short_docs(text);
    assert_eq!(seen, [(3, "Runs it.".to_owned()), (13, "Makes one.".to_owned())]);
}

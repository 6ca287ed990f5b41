//! Writes `docs/conformance.md` and prints the sections that nothing cites and that have no reason.

use std::{fs, io};

use bulkhead_tests::conformance::{citations, document, project, sections};

fn main() -> io::Result<()> {
    let citations = citations()?;
    for section in sections()? {
        if section.reason.is_empty() && !citations.contains_key(&section.number) {
            println!("{} {}", section.number, section.title);
        }
    }
    fs::write(project().join("docs/conformance.md"), document()?)
}

//! Every section of MS-SMB2 3.3.5 is cited where it is carried out, or has the reason why it is not.

use std::fs;

use bulkhead_tests::conformance::{citations, cited, document, project, sections};

#[test]
fn the_document_is_what_the_code_says() {
    let written = fs::read_to_string(project().join("docs/conformance.md")).unwrap();
    assert!(
        written == document().unwrap(),
        "docs/conformance.md is not up to date; run: cargo run -p bulkhead-tests --bin conformance"
    );
}

#[test]
fn every_section_is_carried_out_or_has_a_reason() {
    let citations = citations().unwrap();
    for section in sections().unwrap() {
        let done = citations.contains_key(&section.number);
        assert!(done || !section.reason.is_empty(), "{} {}", section.number, section.title);
    }
}

#[test]
fn every_citation_is_of_a_section_that_there_is() {
    let sections = sections().unwrap();
    for (number, places) in citations().unwrap() {
        let known = sections.iter().any(|section| section.number == number);
        assert!(known, "{places:?}: there is no section {number}");
    }
}

#[test]
fn comments_cite_and_code_and_tests_do_not() {
    let text = "//! X (MS-SMB2 3.3.5.9.6 to 3.3.5.9.13).\nlet x = \"3.3.5.1\"; // 3.3.5.2.2.\n\
                // MS-RPCE 3.3.1.5.3, 13.3.5.4, 1.3.3.5.6\n#[cfg(test)]\nmod tests {\n// 3.3.5.8\n}\n";
    assert_eq!(Vec::from_iter(cited(text)), ["3.3.5.2.2", "3.3.5.9.13", "3.3.5.9.6"]);
}

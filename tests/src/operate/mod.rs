//! What administrators have of the catalogue of metrics: a document, alert rules with their tests, and
//! a board. The program `operate` writes the files; tests hold them to what is here.

mod board;
mod document;
mod rules;

use std::path::{Path, PathBuf};

/// Where the rules are, from the project's folder.
pub const RULES: &str = "conf/prometheus/bulkhead.rules.yml";

/// Where the tests of the rules are, for `promtool test rules`.
pub const RULE_TESTS: &str = "conf/prometheus/bulkhead.tests.yml";

/// All files: where they are, from the project's folder, and what is in them.
pub fn files() -> Vec<(PathBuf, String)> {
    [
        ("docs/metrics.md", document::text()),
        (RULES, rules::text()),
        (RULE_TESTS, rules::tests()),
        ("conf/grafana/bulkhead.json", board::text()),
    ]
    .map(|(path, text)| (Path::new(path).to_owned(), text))
    .into()
}

/// Where the schema of smbd's configuration is; `smbd --schema` prints it.
pub const SCHEMA: &str = "conf/smbd.schema.json";

/// The names of metrics in a text that is not a sentence: all words that begin as ours do.
pub fn names(text: &str) -> Vec<&str> {
    let of_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let words = text.split(|c: char| !of_name(c));
    words.filter(|word| word.starts_with("bulkhead_")).collect()
}

/// All expressions of the rules and of the board.
pub fn expressions() -> Vec<&'static str> {
    rules::expressions().chain(board::expressions()).collect()
}

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

/// A schema of a file that people write, with the command that prints it.
#[derive(Debug)]
pub struct Schema {
    /// Where it is in the project.
    pub path: &'static str,
    /// The program and its arguments.
    pub command: &'static [&'static str],
    /// An example of such a file in the project, which has all keys.
    pub example: &'static str,
}

/// Every schema in the project.
pub const SCHEMAS: [Schema; 3] = [
    Schema {
        path: "conf/smbd.schema.json",
        command: &["smbd", "--schema"],
        example: "conf/smbd.toml",
    },
    Schema {
        path: "conf/hyperv-host.schema.json",
        command: &["hyperv-host", "--schema", "host"],
        example: "conf/hyperv-host.toml",
    },
    Schema {
        path: "conf/vm.schema.json",
        command: &["hyperv-host", "--schema", "vm"],
        example: "conf/vm.toml",
    },
];

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

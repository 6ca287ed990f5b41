//! libiscsi's conformance suite, `iscsi-test-cu`: running it, and reading what it says.

use std::{ffi::OsString, path::Path, process::Command, time::Duration};

use crate::process::{foreign, run};

/// How a test of the suite ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It found what it wants.
    Passed,
    /// It did not.
    Failed,
    /// It did not look, for a reason that it tells.
    Skipped,
}

/// A test of the suite.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Case {
    /// `Suite.Test`.
    pub name: String,
    /// How it ended.
    pub verdict: Verdict,
    /// What it said meanwhile.
    pub text: String,
}

/// Where the suite is.
#[derive(Debug, Clone)]
pub struct Suite {
    /// The program, and what stands before it.
    words: Vec<OsString>,
}

impl Suite {
    /// The one of this system, if there is any.
    pub fn installed() -> Option<Self> {
        Some(Self { words: vec![foreign("iscsi-test-cu")?.into()] })
    }

    /// The one of a system in a folder, if that has it. It runs as root only.
    pub fn of_system(root: &Path) -> Option<Self> {
        let there = root.join("usr/bin/iscsi-test-cu").is_file();
        let words = ["chroot".into(), root.into(), "iscsi-test-cu".into()];
        there.then(|| Self { words: words.to_vec() })
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.words[0]);
        command.args(&self.words[1..]);
        command
    }

    /// The names of all tests, `Suite.Test`.
    pub fn tests(&self) -> Vec<String> {
        let output = run(self.command().args(["-l", "x"]), LIST_LIMIT);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let names = text.lines().filter_map(|line| line.trim().strip_prefix("ALL."));
        names.filter(|name| name.contains('.')).map(str::to_owned).collect()
    }

    /// Runs the tests of `pattern` (`FAMILY.SUITE.TEST`, as shells match names) against one logical
    /// unit at one or several addresses. Data are lost.
    ///
    /// # Errors
    /// The suite does not come to its end in `limit`, or says of itself other than was read here.
    pub fn attempt(
        &self,
        urls: &[&str],
        pattern: &str,
        limit: Duration,
    ) -> Result<Vec<Case>, String> {
        let mut command = Command::new("timeout");
        command.args(["--kill-after=5", &limit.as_secs().to_string()]).args(&self.words);
        command.args(["-f", "-v", "-d", "-S", "-t", pattern]).args(urls);
        let output = run(&mut command, limit + LIST_LIMIT);
        let text = [&output.stdout[..], &output.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        if output.status.code() == Some(TIMED_OUT) {
            return Err(format!("{NO_END} {limit:?}\n{text}"));
        }
        read(&text).map_err(|why| format!("{why}\n{text}"))
    }
}

/// What is said of a run that was ended.
pub const NO_END: &str = "it did not come to its end in";
/// timeout(1) ended the program.
const TIMED_OUT: i32 = 124;
const LIST_LIMIT: Duration = Duration::from_secs(20);

/// The names of all tests, `Suite.Test`; `None` if the suite is not installed.
pub fn all_tests() -> Option<Vec<String>> {
    Suite::installed().map(|suite| suite.tests())
}

/// As [`Suite::attempt`] by the suite of this system.
///
/// # Panics
/// Where that fails.
pub fn conform(urls: &[&str], pattern: &str, limit: Duration) -> Option<Vec<Case>> {
    let cases = Suite::installed()?.attempt(urls, pattern, limit);
    Some(cases.unwrap_or_else(|why| panic!("{why}")))
}

/// Reads what the suite printed. Its exit status tells nothing.
fn read(text: &str) -> Result<Vec<Case>, String> {
    let mut cases: Vec<Case> = Vec::new();
    let (mut suite, mut inside) = (String::new(), false);
    for line in text.lines() {
        if let Some((before, name)) = line.split_once("Suite: ") {
            end(&mut cases, inside, before);
            (suite, inside) = (name.trim().to_owned(), false);
        } else if let Some((before, rest)) = line.split_once("Test: ") {
            end(&mut cases, inside, before);
            let (name, said) = rest.split_once(" ...").unwrap_or((rest, ""));
            let name = format!("{suite}.{}", name.trim());
            cases.push(Case { name, verdict: Verdict::Passed, text: said.to_owned() });
            inside = true;
        } else if line.starts_with("Run Summary") {
            inside = false;
        } else {
            end(&mut cases, inside, line);
        }
    }
    for case in &mut cases {
        // The suite marks replies that it may yet be content with.
        let said = case.text.replace("[FAILED]", "");
        case.verdict = match () {
            () if said.contains("FAILED") => Verdict::Failed,
            () if said.contains("[SKIPPED]") => Verdict::Skipped,
            () if said.contains("passed") => Verdict::Passed,
            () => Verdict::Failed,
        };
    }
    let summary = text.lines().find_map(|line| line.trim().strip_prefix("tests "));
    let summary = summary.ok_or("the suite did not come to its summary")?;
    let counts: Vec<usize> =
        summary.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let failed = cases.iter().filter(|case| case.verdict == Verdict::Failed).count();
    match counts[..] {
        [total, ran, _, told, ..] if (total, ran, told) == (cases.len(), cases.len(), failed) => {
            Ok(cases)
        }
        _ => Err(format!("{} tests and {failed} failures are not {counts:?}", cases.len())),
    }
}

fn end(cases: &mut [Case], inside: bool, line: &str) {
    if let Some(case) = cases.last_mut()
        && inside
    {
        case.text.push('\n');
        case.text.push_str(line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "\nSuite: A\n  Test: One ...passed\n  Test: Two ...    [FAILED] odd\npassed\n  \
                        Test: Three ...    [SKIPPED] no medium\npassed\nSuite: B\n  Test: One ...\n    \
                        [FAILED] worse\nFAILED\n    1. x.c:1  - CU_FAIL\n\nRun Summary:\n";

    #[test]
    fn every_verdict_is_read_and_counted() {
        let text = format!("{SAID}               tests      4      4      3      1        0\n");
        let cases = read(&text).unwrap();
        let found: Vec<_> = cases.iter().map(|case| (&*case.name, case.verdict)).collect();
        use Verdict::{Failed, Passed, Skipped};
        let wanted =
            [("A.One", Passed), ("A.Two", Passed), ("A.Three", Skipped), ("B.One", Failed)];
        assert_eq!(found, wanted);
    }

    #[test]
    fn what_the_suite_counts_otherwise_is_no_result() {
        for summary in ["tests 4 4 4 0 0", "tests 5 5 4 1 0", "asserts 1 1 1 0"] {
            read(&format!("{SAID} {summary}\n")).unwrap_err();
        }
    }
}

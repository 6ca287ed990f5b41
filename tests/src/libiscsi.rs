//! libiscsi's conformance suite, `iscsi-test-cu`: running it, and reading what it says.

use std::{process::Command, time::Duration};

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

/// The names of all tests, `Suite.Test`; `None` if the suite is not installed.
pub fn all_tests() -> Option<Vec<String>> {
    let output = run(Command::new(foreign("iscsi-test-cu")?).args(["-l", "x"]), LIST_LIMIT);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let names = text.lines().filter_map(|line| line.trim().strip_prefix("ALL."));
    Some(names.filter(|name| name.contains('.')).map(str::to_owned).collect())
}

const LIST_LIMIT: Duration = Duration::from_secs(20);

/// Runs the tests of `pattern` (`FAMILY.SUITE.TEST`, as shells match names) against one logical unit
/// at one or several addresses. Data are lost.
///
/// # Panics
/// If the suite does not come to its end in `limit`, or says of itself other than was read here.
pub fn conform(urls: &[&str], pattern: &str, limit: Duration) -> Option<Vec<Case>> {
    let mut command = Command::new(foreign("iscsi-test-cu")?);
    command.args(["-f", "-v", "-d", "-S", "-t", pattern]).args(urls);
    let output = run(&mut command, limit);
    let text = [&output.stdout[..], &output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    Some(read(&text).unwrap_or_else(|why| panic!("{why}\n{text}")))
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

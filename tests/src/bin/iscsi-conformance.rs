//! A conformance suite for iSCSI targets, by the sections of RFC 7143, RFC 7144, SPC-4 and SBC-3.
//!
//! `iscsi-conformance [URL] [--list] [--only PATTERN]`. The URL is `iscsi://[user@]host[:port]/target/lun`;
//! secrets come from where the tools take them: `BULKHEAD_CHAP_SECRET`, `BULKHEAD_CHAP_CREDENTIALS`,
//! `BULKHEAD_CHAP_TARGET_USER` and `BULKHEAD_CHAP_TARGET_SECRET`. The data of the logical unit are lost.
//! Without a URL smbd and tgt are started and tried beside one another. Writes
//! `target/iscsi-conformance/*.json`; fails where a case fails, and without a URL where one fails on smbd.

use std::{env, fs, process::ExitCode};

use bulkhead_tests::iscsi_suite::{Case, Report, Stop, Subject, all, run, started};
use serde_json::json;

const FOLDER: &str = "target/iscsi-conformance";

struct Arguments {
    url: Option<String>,
    list: bool,
    only: Option<String>,
}

fn arguments() -> Result<Arguments, String> {
    let mut found = Arguments { url: None, list: false, only: None };
    let mut words = env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--list" => found.list = true,
            "--only" => found.only = Some(words.next().ok_or("--only needs a pattern")?),
            word if word.starts_with("iscsi://") => found.url = Some(word.to_owned()),
            "" => {}
            other => {
                let usage = "usage: iscsi-conformance [iscsi://host:port/target/lun] [--list] [--only PATTERN]";
                return Err(format!("{other} is not known\n{usage}"));
            }
        }
    }
    Ok(found)
}

/// Whether a name has a pattern in it; `*` stands for anything.
fn matches(name: &str, pattern: &str) -> bool {
    let mut rest = name;
    pattern.split('*').all(|part| match rest.find(part) {
        Some(at) => {
            rest = &rest[at + part.len()..];
            true
        }
        None => false,
    })
}

/// Tries all cases on one target.
fn one(name: &str, subject: &Subject, cases: &[Case], print: bool) -> Result<Vec<Report>, String> {
    if let Err(Stop::Failed(why) | Stop::Skipped(why)) = subject.prepare() {
        return Err(format!("{name}: the logical unit cannot be used: {why}"));
    }
    let mut reports = Vec::new();
    for case in cases {
        let report = run(case, subject);
        if print {
            println!("{}", report.line());
        }
        reports.push(report);
    }
    let rows: Vec<_> = reports.iter().map(Report::json).collect();
    let text = serde_json::to_vec_pretty(&json!({"target": name, "cases": rows}));
    let written = fs::create_dir_all(FOLDER)
        .and_then(|()| fs::write(format!("{FOLDER}/{name}.json"), text.unwrap_or_default()));
    written.map_err(|error| format!("{FOLDER}: {error}"))?;
    Ok(reports)
}

fn count(reports: &[Report], word: &str) -> usize {
    reports.iter().filter(|report| report.word() == word).count()
}

fn summary(name: &str, reports: &[Report]) {
    let of = |word| count(reports, word);
    let seconds = reports.iter().map(|it| it.milliseconds).sum::<u128>() as f64 / 1000.0;
    println!(
        "{name}: {} pass, {} fail, {} skip, {seconds:.1} s",
        of("pass"),
        of("fail"),
        of("skip")
    );
}

/// smbd and tgt beside one another.
fn both(cases: &[Case]) -> Result<bool, String> {
    let ours = one("smbd", &started::smbd(), cases, false)?;
    let theirs = match started::tgt() {
        Some(subject) => Some(one("tgt", &subject, cases, false)?),
        None => {
            println!("tgt is not here: smbd alone");
            None
        }
    };
    println!("{:<5} {:<5} case", "smbd", "tgt");
    for (at, report) in ours.iter().enumerate() {
        let other = theirs.as_ref().map(|all| &all[at]);
        println!("{:<5} {:<5} {}", report.word(), other.map_or("-", Report::word), report.name);
        for (who, it) in [("smbd", Some(report)), ("tgt", other)] {
            if let Some(it) = it.filter(|it| it.outcome.is_err()) {
                println!("{:>12} {who}: ({}) {}", "", it.section, it.why());
            }
        }
    }
    summary("smbd", &ours);
    if let Some(theirs) = &theirs {
        summary("tgt", theirs);
    }
    Ok(count(&ours, "fail") == 0)
}

fn suite() -> Result<bool, String> {
    let arguments = arguments()?;
    let wanted = |case: &Case| arguments.only.as_deref().is_none_or(|it| matches(&case.name, it));
    let cases: Vec<Case> = all().into_iter().filter(wanted).collect();
    if arguments.list {
        for case in &cases {
            println!("{:<72} {}", case.name, case.section);
        }
        return Ok(true);
    }
    if cases.is_empty() {
        return Err("no case has such a name (--list)".to_owned());
    }
    match &arguments.url {
        Some(url) => {
            let subject = Subject::by_url(url).map_err(|error| error.to_string())?;
            let reports = one("target", &subject, &cases, true)?;
            summary(url, &reports);
            Ok(count(&reports, "fail") == 0)
        }
        None => both(&cases),
    }
}

fn main() -> ExitCode {
    match suite() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(why) => {
            eprintln!("iscsi-conformance: {why}");
            ExitCode::FAILURE
        }
    }
}

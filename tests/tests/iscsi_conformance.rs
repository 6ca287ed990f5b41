//! The conformance suite for iSCSI targets, against smbd: no case fails, and each that is left out is
//! known. `make iscsi-conformance` runs it on any target.

use bulkhead_tests::iscsi_suite::{Report, all, run, started};

/// What smbd has not, by the name of the case and what the case says of it.
const SKIPPED: &[(&str, &str)] =
    &[("data/in-any-order-where-that-was-agreed-upon", "the target insists on order")];

#[test]
fn smbd_keeps_what_the_specifications_of_iscsi_promise() {
    let subject = started::smbd();
    assert_eq!(subject.prepare(), Ok(()));
    let reports: Vec<Report> = all().iter().map(|case| run(case, &subject)).collect();
    let wrong: Vec<String> = reports
        .iter()
        .filter(|report| match report.word() {
            "pass" => false,
            "skip" => !SKIPPED
                .iter()
                .any(|(name, why)| report.name == *name && report.why().contains(why)),
            _ => true,
        })
        .map(Report::line)
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let passed = reports.iter().filter(|report| report.word() == "pass").count();
    eprintln!("{passed} cases, {} left out for a reason that is known", reports.len() - passed);
}

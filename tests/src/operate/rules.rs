//! Alert rules for Prometheus, each with a case in which it fires and one in which it does not.

use std::fmt::Write;

/// A series and its values, as `promtool` writes them down.
type Series = (&'static str, &'static str);

/// A rule.
pub(super) struct Rule {
    /// Its name.
    pub(super) name: &'static str,
    /// When it fires.
    pub(super) expression: &'static str,
    /// How long that must be so.
    pub(super) hold: &'static str,
    /// `critical`: look now. `warning`: look today.
    pub(super) severity: &'static str,
    /// What is wrong.
    pub(super) summary: &'static str,
    /// What to do.
    pub(super) remedy: &'static str,
    /// Series with which it fires within half an hour, and the labels that the alert has then.
    fires: (&'static [Series], &'static [(&'static str, &'static str)]),
    /// Series with which it does not.
    quiet: &'static [Series],
}

pub(super) const RULES: &[Rule] = &[
    Rule {
        name: "BulkheadServerGone",
        expression: "absent(bulkhead_smbd_uptime_seconds)",
        hold: "2m",
        severity: "critical",
        summary: "No Bulkhead server answers",
        remedy: "look whether smbd runs (systemctl status bulkhead-smbd) and its page can be reached",
        fires: (&[("bulkhead_smbd_uptime_seconds{instance=\"a\"}", "0+60x5 stale")], &[]),
        quiet: &[("bulkhead_smbd_uptime_seconds{instance=\"a\"}", "0+60x40")],
    },
    Rule {
        name: "BulkheadServerStartedAnew",
        expression: "resets(bulkhead_smbd_uptime_seconds[15m]) > 0",
        hold: "0m",
        severity: "warning",
        summary: "The server at {{ $labels.instance }} was started anew",
        remedy: "read its log if nobody meant it: the supervisor says how the last one ended",
        fires: (
            &[(
                "bulkhead_smbd_uptime_seconds{instance=\"a\"}",
                "0+60x20 5 65 125 185 245 305 365 425 485 545",
            )],
            &[("instance", "a")],
        ),
        quiet: &[("bulkhead_smbd_uptime_seconds{instance=\"a\"}", "0+60x40")],
    },
    Rule {
        name: "BulkheadServerStartsAgainAndAgain",
        expression: "resets(bulkhead_smbd_uptime_seconds[15m]) > 2",
        hold: "0m",
        severity: "critical",
        summary: "The server at {{ $labels.instance }} was started more than twice in 15 minutes",
        remedy: "read its log: the supervisor says how each one ended",
        fires: (
            &[(
                "bulkhead_smbd_uptime_seconds{instance=\"a\"}",
                "0+60x20 5 65 5 65 5 65 125 185 245 305",
            )],
            &[("instance", "a")],
        ),
        quiet: &[(
            "bulkhead_smbd_uptime_seconds{instance=\"a\"}",
            "0+60x20 5 65 125 185 245 305 365 425 485 545",
        )],
    },
    Rule {
        name: "BulkheadReadsSlow",
        expression: "histogram_quantile(0.99, sum by (instance, share, le) \
                     (rate(bulkhead_smbd_share_seconds_bucket{kind=\"read\"}[5m]))) > 0.1",
        hold: "10m",
        severity: "warning",
        summary: "One read in a hundred of share {{ $labels.share }} takes longer than 100 ms",
        remedy: "look at the disks below the share, and at what else uses them",
        fires: (
            &[
                (
                    "bulkhead_smbd_share_seconds_bucket{instance=\"a\",share=\"vms\",kind=\"read\",le=\"0.065536\"}",
                    "0+10x40",
                ),
                (
                    "bulkhead_smbd_share_seconds_bucket{instance=\"a\",share=\"vms\",kind=\"read\",le=\"0.131072\"}",
                    "0+100x40",
                ),
                (
                    "bulkhead_smbd_share_seconds_bucket{instance=\"a\",share=\"vms\",kind=\"read\",le=\"+Inf\"}",
                    "0+100x40",
                ),
            ],
            &[("instance", "a"), ("share", "vms")],
        ),
        quiet: &[
            (
                "bulkhead_smbd_share_seconds_bucket{instance=\"a\",share=\"vms\",kind=\"read\",le=\"0.065536\"}",
                "0+100x40",
            ),
            (
                "bulkhead_smbd_share_seconds_bucket{instance=\"a\",share=\"vms\",kind=\"read\",le=\"+Inf\"}",
                "0+100x40",
            ),
        ],
    },
    Rule {
        name: "BulkheadWritesSlow",
        expression: "histogram_quantile(0.99, sum by (instance, share, le) \
                     (rate(bulkhead_smbd_share_seconds_bucket{kind=\"write\"}[5m]))) > 0.5",
        hold: "10m",
        severity: "warning",
        summary: "One write in a hundred of share {{ $labels.share }} takes longer than 500 ms",
        remedy: "look at the disks below the share: on a continuously available one each write waits for them",
        fires: (
            &[
                (
                    "bulkhead_smbd_share_seconds_bucket{instance=\"a\",share=\"vms\",kind=\"write\",le=\"0.524288\"}",
                    "0+10x40",
                ),
                (
                    "bulkhead_smbd_share_seconds_bucket{instance=\"a\",share=\"vms\",kind=\"write\",le=\"1.048576\"}",
                    "0+100x40",
                ),
                (
                    "bulkhead_smbd_share_seconds_bucket{instance=\"a\",share=\"vms\",kind=\"write\",le=\"+Inf\"}",
                    "0+100x40",
                ),
            ],
            &[("instance", "a"), ("share", "vms")],
        ),
        quiet: &[
            (
                "bulkhead_smbd_share_seconds_bucket{instance=\"a\",share=\"vms\",kind=\"write\",le=\"0.262144\"}",
                "0+100x40",
            ),
            (
                "bulkhead_smbd_share_seconds_bucket{instance=\"a\",share=\"vms\",kind=\"write\",le=\"+Inf\"}",
                "0+100x40",
            ),
        ],
    },
    Rule {
        name: "BulkheadLeasesGoBackAndForth",
        expression: "sum by (instance) (rate(bulkhead_smbd_breaks_total[5m])) > 50",
        hold: "10m",
        severity: "warning",
        summary: "Clients of {{ $labels.instance }} take what they cache from each other 50 times a second",
        remedy: "see with `bulkhead server opens` which files several clients use; disks of VMs have one user each",
        fires: (
            &[("bulkhead_smbd_breaks_total{instance=\"a\",kind=\"lease\"}", "0+6000x40")],
            &[("instance", "a")],
        ),
        quiet: &[("bulkhead_smbd_breaks_total{instance=\"a\",kind=\"lease\"}", "0+600x40")],
    },
    Rule {
        name: "BulkheadWrongSignatures",
        expression: "increase(bulkhead_smbd_signature_refusals_total[10m]) > 10",
        hold: "0m",
        severity: "critical",
        summary: "Requests with wrong signatures come to {{ $labels.instance }}",
        remedy: "somebody changes what is on the way, or a client is broken: the log names its address at level debug",
        fires: (
            &[("bulkhead_smbd_signature_refusals_total{instance=\"a\"}", "0+5x40")],
            &[("instance", "a")],
        ),
        quiet: &[("bulkhead_smbd_signature_refusals_total{instance=\"a\"}", "0x20 1x20")],
    },
    Rule {
        name: "BulkheadUnprotectedRequests",
        expression: "increase(bulkhead_smbd_protection_refusals_total[10m]) > 100",
        hold: "0m",
        severity: "warning",
        summary: "Clients of {{ $labels.instance }} do not sign or encrypt where they must",
        remedy: "see server.signing and server.encryption, and which clients cannot follow",
        fires: (
            &[("bulkhead_smbd_protection_refusals_total{instance=\"a\"}", "0+50x40")],
            &[("instance", "a")],
        ),
        quiet: &[("bulkhead_smbd_protection_refusals_total{instance=\"a\"}", "0+1x40")],
    },
    Rule {
        name: "BulkheadLunFails",
        expression: "increase(bulkhead_lun_failed_total[5m]) > 100",
        hold: "0m",
        severity: "warning",
        summary: "Commands to LUN {{ $labels.lun }} of {{ $labels.target }} fail",
        remedy: "look at the log, and at the storage below its image",
        fires: (
            &[("bulkhead_lun_failed_total{instance=\"a\",target=\"iqn.a\",lun=\"0\"}", "0+100x40")],
            &[("instance", "a"), ("target", "iqn.a"), ("lun", "0")],
        ),
        quiet: &[(
            "bulkhead_lun_failed_total{instance=\"a\",target=\"iqn.a\",lun=\"0\"}",
            "0+2x40",
        )],
    },
    Rule {
        name: "BulkheadLunAtItsLimit",
        expression: "rate(bulkhead_lun_delayed_total[5m]) > 10",
        hold: "15m",
        severity: "warning",
        summary: "Commands to LUN {{ $labels.lun }} of {{ $labels.target }} wait for its limit",
        remedy: "raise max_iops or max_bandwidth, or let its users have less",
        fires: (
            &[(
                "bulkhead_lun_delayed_total{instance=\"a\",target=\"iqn.a\",lun=\"0\"}",
                "0+1200x40",
            )],
            &[("instance", "a"), ("target", "iqn.a"), ("lun", "0")],
        ),
        quiet: &[(
            "bulkhead_lun_delayed_total{instance=\"a\",target=\"iqn.a\",lun=\"0\"}",
            "0+60x40",
        )],
    },
    Rule {
        name: "BulkheadLogInsFail",
        expression: "increase(bulkhead_api_failed_logins_total[10m]) > 20",
        hold: "0m",
        severity: "warning",
        summary: "Somebody shows wrong passwords or tokens to the control interface of {{ $labels.instance }}",
        remedy: "keep api.listen to a management network; the log of level debug has the addresses",
        fires: (
            &[("bulkhead_api_failed_logins_total{instance=\"a\"}", "0+10x40")],
            &[("instance", "a")],
        ),
        quiet: &[("bulkhead_api_failed_logins_total{instance=\"a\"}", "0+1x40")],
    },
    Rule {
        name: "BulkheadRoleLost",
        expression: "max by (role) (max_over_time(bulkhead_cluster_role[1h])) \
                     unless max by (role) (bulkhead_cluster_role)",
        hold: "1m",
        severity: "critical",
        summary: "No node serves role {{ $labels.role }}",
        remedy: "`bulkhead cluster status` says what keeps nodes from it",
        fires: (
            &[("bulkhead_cluster_role{instance=\"a\",role=\"vms\",node=\"n1\"}", "1x20 stale")],
            &[("role", "vms")],
        ),
        quiet: &[
            ("bulkhead_cluster_role{instance=\"a\",role=\"vms\",node=\"n1\"}", "1x20 stale"),
            ("bulkhead_cluster_role{instance=\"b\",role=\"vms\",node=\"n2\"}", "_x20 1x20"),
        ],
    },
    Rule {
        name: "BulkheadRoleTwice",
        expression: "count by (role) (bulkhead_cluster_role) > 1",
        hold: "2m",
        severity: "critical",
        summary: "Two servers say that they serve role {{ $labels.role }}",
        remedy: "look whether two clusters have one name for it; within one that cannot be",
        fires: (
            &[
                ("bulkhead_cluster_role{instance=\"a\",role=\"vms\",node=\"n1\"}", "1x40"),
                ("bulkhead_cluster_role{instance=\"b\",role=\"vms\",node=\"n2\"}", "1x40"),
            ],
            &[("role", "vms")],
        ),
        quiet: &[
            ("bulkhead_cluster_role{instance=\"a\",role=\"vms\",node=\"n1\"}", "1x40"),
            ("bulkhead_cluster_role{instance=\"b\",role=\"sql\",node=\"n2\"}", "1x40"),
        ],
    },
    Rule {
        name: "BulkheadVmTrouble",
        expression: "bulkhead_host_vms{state=~'paused-critical|fenced|in-doubt|failed'} > 0",
        hold: "1m",
        severity: "critical",
        summary: "VMs of {{ $labels.instance }} are {{ $labels.state }}",
        remedy: "bulkhead vm list says which and why; the storage's server first",
        fires: (
            &[("bulkhead_host_vms{instance=\"a\",state=\"paused-critical\"}", "0+0x5 1+0x30")],
            &[("instance", "a"), ("state", "paused-critical")],
        ),
        quiet: &[("bulkhead_host_vms{instance=\"a\",state=\"running\"}", "7+0x40")],
    },
    Rule {
        name: "BulkheadVmDiskErrors",
        expression: "increase(bulkhead_vm_disk_failed_total[5m]) > 0",
        hold: "1m",
        severity: "warning",
        summary: "Disk {{ $labels.disk }} of {{ $labels.vm }} gives its guest errors",
        remedy: "bulkhead vm show says where the disk is; look at its server and its log",
        fires: (
            &[("bulkhead_vm_disk_failed_total{instance=\"a\",vm=\"web\",disk=\"0\"}", "0+1x40")],
            &[("disk", "0"), ("instance", "a"), ("vm", "web")],
        ),
        quiet: &[("bulkhead_vm_disk_failed_total{instance=\"a\",vm=\"web\",disk=\"0\"}", "7+0x40")],
    },
    Rule {
        name: "BulkheadVmWatchdog",
        expression: "increase(bulkhead_vm_watchdog_expired_total[15m]) > 0",
        hold: "0m",
        severity: "warning",
        summary: "The watchdog of {{ $labels.vm }} has expired",
        remedy: "the guest did not feed it: look at its console (bulkhead vm console --replay)",
        fires: (
            &[("bulkhead_vm_watchdog_expired_total{instance=\"a\",vm=\"web\"}", "0+0x10 1+0x30")],
            &[("instance", "a"), ("vm", "web")],
        ),
        quiet: &[("bulkhead_vm_watchdog_expired_total{instance=\"a\",vm=\"web\"}", "3+0x40")],
    },
];

/// The expressions of all rules.
pub(super) fn expressions() -> impl Iterator<Item = &'static str> {
    RULES.iter().map(|rule| rule.expression)
}

/// A scalar of YAML in single quotes, in which nothing has a meaning but the quote itself.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

const HEAD: &str = "\
# Made of the catalogue of metrics and tests/src/operate/rules.rs by
#   cargo run -p bulkhead-tests --bin operate
# Copy what you want to change: this file is written again.
";

/// The rules, for `rule_files` of Prometheus.
pub(super) fn text() -> String {
    let mut text = format!("{HEAD}groups:\n  - name: bulkhead\n    rules:\n");
    for rule in RULES {
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "      - alert: {}\n        expr: {}\n        for: {}\n        labels:\n          severity: {}\n        \
             annotations:\n          summary: {}\n          remedy: {}",
            rule.name,
            quoted(rule.expression),
            rule.hold,
            rule.severity,
            quoted(rule.summary),
            quoted(rule.remedy)
        );
    }
    text
}

/// A text in which labels have their values.
fn filled(text: &str, labels: &[(&str, &str)]) -> String {
    labels.iter().fold(text.to_owned(), |text, (label, value)| {
        text.replace(&format!("{{{{ $labels.{label} }}}}"), value)
    })
}

/// The tests of the rules, for `promtool test rules`.
pub(super) fn tests() -> String {
    let mut text =
        format!("{HEAD}rule_files:\n  - bulkhead.rules.yml\nevaluation_interval: 1m\ntests:\n");
    for rule in RULES {
        let (series, labels) = rule.fires;
        let mut alert = format!("              severity: {}\n", rule.severity);
        for (label, value) in labels {
            let _ = writeln!(alert, "              {label}: {}", quoted(value));
        }
        let expected = format!(
            "          - exp_labels:\n{alert}            exp_annotations:\n              summary: {}\n              \
             remedy: {}\n",
            quoted(&filled(rule.summary, labels)),
            quoted(rule.remedy)
        );
        case(&mut text, rule, "fires", series, &expected);
        case(&mut text, rule, "is quiet", rule.quiet, "");
    }
    text
}

fn case(text: &mut String, rule: &Rule, what: &str, series: &[Series], expected: &str) {
    let _ = writeln!(text, "  - interval: 1m\n    name: {} {what}\n    input_series:", rule.name);
    for (series, values) in series {
        let _ = writeln!(
            text,
            "      - series: {}\n        values: {}",
            quoted(series),
            quoted(values)
        );
    }
    let _ = writeln!(
        text,
        "    alert_rule_test:\n      - eval_time: 25m\n        alertname: {}\n        exp_alerts:{}",
        rule.name,
        if expected.is_empty() { " []" } else { "" }
    );
    text.push_str(expected);
}

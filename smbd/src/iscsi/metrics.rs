//! What the metrics page says of targets and LUNs, in the text format of Prometheus.

use std::fmt::Write;

use iscsi::SessionInfo;
use scsi::{UnitInfo, Usage};

use super::TargetInfo;

/// A counter of a LUN: its name, what it counts, and more labels.
type Counter = (&'static str, &'static str, &'static str, fn(&Usage) -> u64);

const COUNTERS: [Counter; 7] = [
    ("lun_commands_total", "commands that a LUN carried out", "kind=\"read\"", |it| it.reads),
    ("lun_commands_total", "", "kind=\"write\"", |it| it.writes),
    ("lun_commands_total", "", "kind=\"other\"", |it| it.others),
    ("lun_failed_total", "commands that did not end with GOOD", "", |it| it.failed),
    ("lun_delayed_total", "commands that waited for a limit", "", |it| it.delayed),
    ("lun_bytes_total", "bytes to and from initiators", "kind=\"read\"", |it| it.bytes_read),
    ("lun_bytes_total", "", "kind=\"write\"", |it| it.bytes_written),
];

/// A value of a label (its escapes are the format's).
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// All lines; none without targets.
pub(super) fn text(targets: &[TargetInfo], sessions: &[SessionInfo]) -> String {
    let mut out = String::new();
    if targets.is_empty() {
        return out;
    }
    let head = |out: &mut String, name: &str, kind: &str, help: &str| {
        let _ = writeln!(out, "# HELP bulkhead_{name} {help}\n# TYPE bulkhead_{name} {kind}");
    };
    head(&mut out, "target_sessions", "gauge", "sessions of initiators with a target");
    for target in targets {
        let count = sessions.iter().filter(|it| it.target == target.name).count();
        let name = escaped(&target.name);
        let _ = writeln!(out, "bulkhead_target_sessions{{target=\"{name}\"}} {count}");
    }
    for (name, help, label, get) in COUNTERS {
        if !help.is_empty() {
            head(&mut out, name, "counter", help);
        }
        let more = if label.is_empty() { String::new() } else { format!(",{label}") };
        for target in targets {
            let of = escaped(&target.name);
            for (UnitInfo { number, usage, .. }, _) in &target.luns {
                let value = get(usage);
                let _ = writeln!(
                    out,
                    "bulkhead_{name}{{target=\"{of}\",lun=\"{number}\"{more}}} {value}"
                );
            }
        }
    }
    out
}

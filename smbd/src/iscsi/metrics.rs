//! What the metrics page says of targets and LUNs.

use iscsi::SessionInfo;
use metric_catalogue::{self as catalogue, Page};
use scsi::{UnitInfo, Usage};

use super::TargetInfo;

/// Puts all on a page; nothing without targets.
pub(super) fn show(targets: &[TargetInfo], sessions: &[SessionInfo], page: &mut Page) {
    for target in targets {
        let count = sessions.iter().filter(|it| it.target == target.name).count();
        page.gauge(&catalogue::TARGET_SESSIONS, &[&target.name], count);
        for (UnitInfo { number, usage, .. }, _) in &target.luns {
            lun((&target.name, &number.to_string()), usage, page);
        }
    }
}

fn lun((target, number): (&str, &str), usage: &Usage, page: &mut Page) {
    for (kind, count) in [("read", usage.reads), ("write", usage.writes), ("other", usage.others)] {
        page.counter(&catalogue::LUN_COMMANDS, &[target, number, kind], count);
    }
    for (kind, bytes) in [("read", usage.bytes_read), ("write", usage.bytes_written)] {
        page.counter(&catalogue::LUN_MOVED, &[target, number, kind], bytes);
    }
    page.counter(&catalogue::LUN_FAILED, &[target, number], usage.failed);
    page.counter(&catalogue::LUN_DELAYED, &[target, number], usage.delayed);
}

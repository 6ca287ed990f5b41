//! What is looked at in a machine by who watches over it, in the daemon or in a worker.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use host_api::{BalloonUsage, DiskUsage, MemoryUsage, WatchdogUsage};
use vmm::{
    Vm,
    devices::{
        virtio::{blk::Blk, times::DiskFigures},
        watchdog::Standing,
    },
    platform::bus::lock,
};

use super::protocol::{News, Usage};

/// How often a machine is looked at, beside when something is told of it.
pub const EVERY: Duration = Duration::from_millis(500);
/// How long a guest may take to tell how its memory is used.
const TELLS: Duration = Duration::from_millis(200);

/// Waits until there is something to look at, and looks. The machine is halted while its storage has
/// been away for `patience`, and while its watchdog has it paused.
pub fn news(vm: &Vm, mut seen: u64, patience: Duration) -> News {
    let end = vm.control().wait_news(&mut seen, EVERY);
    if end.is_some() {
        return News { seen, end, ..News::default() };
    }
    let trouble = vm.trouble(patience);
    let watchdog = standing(vm);
    // One that was not parked in time is kicked again.
    vm.halt(trouble.is_some() || watchdog.is_some_and(|standing| standing.paused));
    News { seen, end: None, panicked: vm.has_panicked(), trouble, watchdog }
}

/// How a machine's watchdog stands, if it has one.
fn standing(vm: &Vm) -> Option<Standing> {
    Some(lock(vm.watchdog()?).standing())
}

/// What `vm show` tells of a machine.
pub fn usage(vm: &Vm) -> Usage {
    let millis = |left: Duration| u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
    Usage {
        disks: vm.disks().iter().map(disk).collect(),
        pauses: vm.pauses(),
        memory: memory(vm),
        watchdog: standing(vm).map(|standing| WatchdogUsage {
            enabled: standing.enabled,
            left_ms: standing.left.map(millis),
            expired: standing.expired,
        }),
    }
}

/// How long its disks take, with where they are.
pub fn figures(vm: &Vm) -> Vec<(String, DiskFigures)> {
    let one =
        |(location, blk): &(String, Arc<Blk>)| (location.clone(), blk.counters.times.figures());
    vm.disks().iter().map(one).collect()
}

fn disk((location, blk): &(String, Arc<Blk>)) -> DiskUsage {
    let counters = &blk.counters;
    DiskUsage {
        location: location.clone(),
        size: blk.geometry().size,
        reads: counters.reads.load(Ordering::Relaxed),
        writes: counters.writes.load(Ordering::Relaxed),
        flushes: counters.flushes.load(Ordering::Relaxed),
        read_bytes: counters.read_bytes.load(Ordering::Relaxed),
        written_bytes: counters.written_bytes.load(Ordering::Relaxed),
        errors: counters.errors.load(Ordering::Relaxed),
        longest_us: counters.longest_us.load(Ordering::Relaxed),
        limited: blk.waited(),
        pauses: counters.pauses.load(Ordering::Relaxed),
        longest_pause_us: counters.longest_pause_us.load(Ordering::Relaxed),
    }
}

fn memory(vm: &Vm) -> MemoryUsage {
    let all = vm.definition().memory_mib << 20;
    let balloon = vm.balloon().map(|balloon| {
        let standing = balloon.standing(TELLS);
        let told = standing.statistics;
        BalloonUsage {
            wanted: all - standing.target.min(all),
            has: all - standing.actual.min(all),
            inflated: standing.inflated,
            reported: standing.reported,
            total: told.total,
            free: told.free,
            available: told.available,
            caches: told.disk_caches,
            swapped_out: told.swap_out,
        }
    });
    MemoryUsage { resident: vm.resident(), balloon }
}

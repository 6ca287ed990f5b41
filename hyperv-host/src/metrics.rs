//! The page of metrics: the VMs of the host, their memory and their disks. No guest is asked anything for it.

use host_api::{VmDetail, VmState};
use metric_catalogue::{self as catalogue, Page};

use crate::host::Host;

/// All states, so that each is there with a nought.
const STATES: [VmState; 9] = [
    VmState::Off,
    VmState::Running,
    VmState::PausedCritical,
    VmState::Fenced,
    VmState::Paused,
    VmState::MovingOut,
    VmState::MovingIn,
    VmState::InDoubt,
    VmState::Failed,
];

/// The page as things are now.
pub fn page(host: &Host) -> String {
    let mut page = Page::default();
    page.info(&catalogue::HOST_BUILD, &[env!("CARGO_PKG_VERSION")]);
    let details = host.details();
    for state in STATES {
        let count = details.iter().filter(|vm| vm.summary.state == state).count();
        page.gauge(&catalogue::VMS, &[state.as_str()], count);
    }
    details.iter().for_each(|vm| show(vm, &mut page));
    for ((vm, disk), (_, figures)) in host.disk_figures() {
        let parts = [
            ("whole", &figures.whole),
            ("read", &figures.read),
            ("write", &figures.write),
            ("sync", &figures.flush),
        ];
        for (part, times) in parts {
            let labels = [vm.as_str(), &disk.to_string(), part];
            let sum = times.nanos as f64 / 1e9;
            page.histogram(&catalogue::VM_DISK_TIME, &labels, sum, &times.coarse());
        }
    }
    page.text()
}

fn show(vm: &VmDetail, page: &mut Page) {
    let name = vm.summary.name.as_str();
    for (number, disk) in vm.disks.iter().enumerate() {
        let number = number.to_string();
        let of = [name, &number];
        let kinds = [("read", disk.reads), ("write", disk.writes), ("sync", disk.flushes)];
        for (kind, count) in kinds {
            page.counter(&catalogue::VM_DISK_OPERATIONS, &[name, &number, kind], count);
        }
        for (kind, bytes) in [("read", disk.read_bytes), ("write", disk.written_bytes)] {
            page.counter(&catalogue::VM_DISK_MOVED, &[name, &number, kind], bytes);
        }
        page.counter(&catalogue::VM_DISK_FAILED, &of, disk.errors);
        page.counter(&catalogue::VM_DISK_DELAYED, &of, disk.limited);
        page.counter(&catalogue::VM_DISK_PAUSES, &of, disk.pauses);
    }
    if let Some(memory) = &vm.memory {
        page.gauge(&catalogue::VM_RESIDENT, &[name], memory.resident);
        if let Some(balloon) = &memory.balloon {
            page.gauge(&catalogue::VM_MEMORY, &[name], balloon.has);
        }
        page.counter(&catalogue::VM_PAUSES, &[name], vm.pauses);
    }
    if let Some(watchdog) = &vm.watchdog {
        page.counter(&catalogue::VM_WATCHDOG, &[name], watchdog.expired);
    }
    if let Some(moved) = &vm.last_move {
        let seconds = moved.downtime_ms / 1e3;
        page.gauge(&catalogue::VM_MOVE_DOWNTIME, &[name, &moved.direction], seconds);
    }
}

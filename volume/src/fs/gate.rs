//! The gate that closes by itself, where a node of a cluster serves volumes that others take over.
//!
//! A node may change a volume for as long as nobody counts it dead. Until when that is, it is told again
//! and again, by the clock that goes on while the machine is suspended; when nobody tells it any more,
//! the time passes and the gate is closed, whatever else the process believes. It is looked at before
//! every change (`permit.rs`).
//!
//! The gate is the process's, because the others count a process dead and not a volume of it. It never
//! opens again: whoever comes late ends the process, and nobody is answered, since a client that hears
//! nothing repeats its request elsewhere, and one that hears an error gives up.
//!
//! A process can be stopped between its look at the gate and the system call behind it. So whoever runs
//! a node has the kernel kill it at the same moment (`smbd/src/cluster/page.rs`), stopped or not.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use rustix::{
    process::{Signal, getpid, kill_process},
    time::{ClockId, clock_gettime},
};

/// A gate that nobody closes.
const NEVER: u64 = u64::MAX;

/// Nanoseconds of `CLOCK_BOOTTIME`.
static CLOSES: AtomicU64 = AtomicU64::new(NEVER);

/// The clock that the gate goes by: since the machine was started, with the time that it was suspended.
pub fn clock() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(now.tv_nsec).unwrap_or(0))
}

/// From now on changes may be made until then, by [`clock`].
pub fn closes_at(until: Duration) {
    let nanos = u64::try_from(until.as_nanos()).unwrap_or(NEVER);
    CLOSES.store(nanos, Ordering::Release);
}

/// Whether changes may be made now.
#[inline]
pub fn is_open() -> bool {
    let closes = CLOSES.load(Ordering::Acquire);
    closes == NEVER || clock().as_nanos() < u128::from(closes)
}

/// Passes the gate, or ends the process: to be called before every change of what others take over.
#[inline]
pub fn pass() {
    if !is_open() {
        end();
    }
}

/// Ends the process at once: others have what it served.
#[cold]
fn end() -> ! {
    let _ = kill_process(getpid(), Signal::KILL);
    std::process::abort()
}

#[cfg(test)]
mod tests {
    use std::{env, os::unix::process::ExitStatusExt, process::Command};

    use smb_protocol::msg::create::Access;

    use super::*;
    use crate::fs::volume::Volume;

    /// Says which of its times a process that is started by the test has.
    const CHILD: &str = "BULKHEAD_TEST_GATE";

    #[test]
    fn who_comes_to_a_closed_gate_ends() {
        let Some(late) = env::var_os(CHILD) else {
            for (late, signal) in [("0", None), ("1", Some(9))] {
                let ourselves = env::current_exe().unwrap();
                let mut child = Command::new(ourselves);
                let name = "fs::gate::tests::who_comes_to_a_closed_gate_ends";
                let ended = child.args(["--exact", name]).env(CHILD, late).output().unwrap();
                assert_eq!(ended.status.signal(), signal, "{ended:?}");
                assert_eq!(ended.status.success(), signal.is_none(), "{ended:?}");
            }
            return;
        };
        let folder = tempfile::tempdir().unwrap();
        let volume = Volume::open(folder.path()).unwrap();
        closes_at(clock() + Duration::from_secs(3600));
        volume.permit(Access::ALL).unwrap();
        if late == "1" {
            closes_at(clock());
            let _ = volume.permit(Access::ALL);
            unreachable!("the gate was passed");
        }
    }
}

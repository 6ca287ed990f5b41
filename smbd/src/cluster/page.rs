//! Until when a role may be served, told by the process that keeps the lease to the one that serves.
//!
//! ```text
//!  node: lease renewed ─► page (8 bytes of shared memory) ─► server: volume's gate
//!                                                              └──► a timer of the kernel: SIGKILL
//! ```
//!
//! The server looks at the page every few milliseconds. When the node does not write it any more,
//! because it has no lease, stands still or has ended, the time passes: no change goes through the
//! volume's gate, and the kernel kills the server, also one that was stopped and would go on later.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsRawFd, OwnedFd, RawFd},
        unix::fs::FileExt,
    },
    sync::Arc,
    time::Duration,
};

use rustix::fs::{MemfdFlags, memfd_create};
use volume::fs::gate;

/// How often the server looks.
const LOOK: Duration = Duration::from_millis(20);

/// The side that writes.
#[derive(Debug, Clone)]
pub struct Page(Arc<File>);

impl Page {
    /// A page of its own for one ownership of a role: what served an earlier one sees nothing of it.
    ///
    /// # Errors
    /// What the system says.
    pub fn new(until: Duration) -> io::Result<Self> {
        let page = Self(Arc::new(File::from(memfd_create("gate", MemfdFlags::empty())?)));
        page.set(until)?;
        Ok(page)
    }

    /// Changes may be made until then, by the gate's clock.
    ///
    /// # Errors
    /// What the system says.
    pub fn set(&self, until: Duration) -> io::Result<()> {
        let nanos = u64::try_from(until.as_nanos()).unwrap_or(u64::MAX);
        self.0.write_all_at(&nanos.to_ne_bytes(), 0)
    }

    /// Its number, by which every program that is started from here has it.
    pub fn number(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

fn read(page: &File) -> io::Result<Duration> {
    let mut nanos = [0; 8];
    page.read_exact_at(&mut nanos, 0)?;
    Ok(Duration::from_nanos(u64::from_ne_bytes(nanos)))
}

/// A timer of the kernel that kills this process.
struct Timer(libc::timer_t);

// SAFETY: a timer belongs to the process, and is a number to it.
#[expect(unsafe_code, reason = "the type of timers is a pointer that points to nothing")]
unsafe impl Send for Timer {}

impl Timer {
    #[expect(unsafe_code, reason = "no crate here has timers that send a signal")]
    fn new() -> io::Result<Self> {
        // SAFETY: all zeros is a value of this structure of numbers and a union of these.
        let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
        event.sigev_notify = libc::SIGEV_SIGNAL;
        event.sigev_signo = libc::SIGKILL;
        let mut timer = std::ptr::null_mut();
        // SAFETY: both point to values that live through the call.
        match unsafe { libc::timer_create(libc::CLOCK_BOOTTIME, &mut event, &mut timer) } {
            0 => Ok(Self(timer)),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Kills this process at that moment of `CLOCK_BOOTTIME`, and not at the one before.
    #[expect(unsafe_code, reason = "no crate here has timers that send a signal")]
    fn set(&self, at: Duration) -> io::Result<()> {
        let none = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // A time of nothing at all would stop the timer.
        let nanos = i64::from(at.subsec_nanos().max(1));
        let seconds = i64::try_from(at.as_secs()).unwrap_or(i64::MAX);
        let value = libc::timespec { tv_sec: seconds, tv_nsec: nanos };
        let when = libc::itimerspec { it_interval: none, it_value: value };
        // SAFETY: the timer is one of this process, and the time lives through the call.
        let set = unsafe {
            libc::timer_settime(self.0, libc::TIMER_ABSTIME, &when, std::ptr::null_mut())
        };
        if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

/// Has this process live as long as the page says, and closes its gate then. The timer is there when
/// this returns, and a thread that looks at the page.
///
/// # Errors
/// What the system says.
pub fn obey(page: OwnedFd) -> io::Result<()> {
    let page = File::from(page);
    let timer = Timer::new()?;
    let obeyed = |until: Duration| {
        timer.set(until)?;
        gate::closes_at(until);
        io::Result::Ok(())
    };
    let mut last = read(&page)?;
    obeyed(last)?;
    std::thread::Builder::new().name("gate".to_owned()).spawn(move || {
        let timer = timer;
        loop {
            std::thread::sleep(LOOK);
            let now = read(&page).unwrap_or(last);
            if now != last {
                last = now;
                // What cannot be set passes.
                if timer.set(now).is_ok() {
                    gate::closes_at(now);
                }
            }
        }
    })?;
    Ok(())
}

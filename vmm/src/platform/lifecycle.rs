//! How a machine's vCPUs are told to run, to park and to end, and why its guest ended.
//!
//! ```text
//!  Pause ◄── hold ── Run          any device, and who owns the machine
//!    │ ───── run ────► │
//!    └───── end ───────┴──► Stop, with the first reason that was given
//! ```
//!
//! Beside that a machine may be halted, whatever else is wanted of it: its storage is away. It runs
//! when that is over and it is to run.

use std::{
    sync::{
        Condvar, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use super::bus::lock;

/// What a guest did to end itself, or what ended it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum EndReason {
    /// The guest powered off.
    PowerOff,
    /// The guest asked for a reset.
    Reset,
    /// Its watchdog has expired and its definition has it reset.
    Watchdog,
    /// A vCPU could not deliver a fault (AMD APM 2 15.14.3): a machine resets then. Where it was.
    TripleFault(String),
    /// The host stopped it.
    Stopped,
    /// It could not go on.
    Failed(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Want {
    Pause,
    Run,
    Stop,
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub want: Want,
    /// Threads in their run loop. A thread counts itself, under the lock under which it saw
    /// that it may run.
    pub running: usize,
    pub end: Option<EndReason>,
    /// It does not run, whatever is wanted.
    pub halted: bool,
    /// How long it has run before `since`.
    ran: Duration,
    /// Since when it runs, if it does.
    since: Option<Instant>,
    /// How often somebody was told to look at the machine.
    news: u64,
}

impl Shared {
    /// Counts the time that it runs, after what is wanted of it may have changed.
    fn clock(&mut self) {
        match (self.want == Want::Run && !self.halted, self.since) {
            (true, None) => self.since = Some(Instant::now()),
            (false, Some(since)) => {
                self.ran += since.elapsed();
                self.since = None;
            }
            _ => {}
        }
    }
}

/// State shared by the vCPU threads of a VM and their owner.
#[derive(Debug)]
pub struct Control {
    pub(crate) shared: Mutex<Shared>,
    pub(crate) changed: Condvar,
    pub(crate) leave: AtomicBool,
    left: Notify,
}

impl Default for Control {
    /// Of a machine whose vCPUs are parked.
    fn default() -> Self {
        Self {
            shared: Mutex::new(Shared {
                want: Want::Pause,
                running: 0,
                end: None,
                halted: false,
                ran: Duration::ZERO,
                since: None,
                news: 0,
            }),
            changed: Condvar::new(),
            leave: AtomicBool::new(true),
            left: Notify::new(),
        }
    }
}

impl Control {
    /// Lets parked vCPUs run, unless the guest has ended.
    pub fn run(&self) {
        let mut shared = lock(&self.shared);
        if shared.want == Want::Pause {
            shared.want = Want::Run;
            shared.clock();
            if !shared.halted {
                self.leave.store(false, Ordering::Release);
                self.changed.notify_all();
            }
        }
    }

    /// Keeps vCPUs from running whatever else is wanted, or no longer; who halts them kicks them.
    /// Whether that is a change.
    pub fn halt(&self, halted: bool) -> bool {
        let mut shared = lock(&self.shared);
        let change = std::mem::replace(&mut shared.halted, halted) != halted;
        shared.clock();
        if halted {
            self.leave();
        } else if change && shared.want == Want::Run {
            self.leave.store(false, Ordering::Release);
            self.changed.notify_all();
        }
        change
    }

    /// How long the machine has run on this host: the time in which it was to run and was not halted.
    pub fn run_time(&self) -> Duration {
        let shared = lock(&self.shared);
        shared.ran + shared.since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Whether that time goes on now.
    pub fn is_running(&self) -> bool {
        lock(&self.shared).since.is_some()
    }

    /// Has who watches over the machine look at it.
    pub fn tell(&self) {
        lock(&self.shared).news += 1;
        self.changed.notify_all();
    }

    /// Waits until the guest ends, somebody has something to look at that is not `seen`, or `limit`.
    pub fn wait_news(&self, seen: &mut u64, limit: Duration) -> Option<EndReason> {
        let shared = lock(&self.shared);
        let nothing = |shared: &mut Shared| shared.end.is_none() && shared.news == *seen;
        let (shared, _) = self
            .changed
            .wait_timeout_while(shared, limit, nothing)
            .unwrap_or_else(|poison| poison.into_inner());
        *seen = shared.news;
        shared.end.clone()
    }

    /// Asks running vCPUs to park.
    pub fn hold(&self) {
        let mut shared = lock(&self.shared);
        if shared.want == Want::Run {
            shared.want = Want::Pause;
            shared.clock();
        }
        self.leave();
    }

    /// Done as soon as the vCPUs are asked to park or to end: a device that keeps one waiting lets
    /// go of it then.
    pub async fn leaving(&self) {
        loop {
            let left = self.left.notified();
            if self.leave.load(Ordering::Acquire) {
                return;
            }
            left.await;
        }
    }

    /// Done as soon as the machine is to end: who waits for its storage gives up then.
    pub async fn ending(&self) {
        loop {
            let left = self.left.notified();
            if lock(&self.shared).want == Want::Stop {
                return;
            }
            left.await;
        }
    }

    fn leave(&self) {
        self.leave.store(true, Ordering::Release);
        self.left.notify_waiters();
    }

    /// Records why the guest ended (the first reason counts) and makes every vCPU stop.
    pub fn end(&self, reason: EndReason) {
        let mut shared = lock(&self.shared);
        shared.end.get_or_insert(reason);
        shared.want = Want::Stop;
        shared.clock();
        self.leave();
        self.changed.notify_all();
    }

    /// Why the guest ended, if it did.
    pub fn ended(&self) -> Option<EndReason> {
        lock(&self.shared).end.clone()
    }

    /// Waits until the guest ends, at most `limit`.
    pub fn wait_end(&self, limit: Duration) -> Option<EndReason> {
        let deadline = Instant::now() + limit;
        let mut shared = lock(&self.shared);
        while shared.end.is_none() {
            let left = deadline.checked_duration_since(Instant::now())?;
            shared = self
                .changed
                .wait_timeout(shared, left)
                .unwrap_or_else(|poison| poison.into_inner())
                .0;
        }
        shared.end.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Between two looks at a clock time may pass or not: only what cannot be is asserted.
    #[test]
    fn time_is_counted_while_the_machine_runs_and_not_otherwise() {
        let control = Control::default();
        let stands = |control: &Control| {
            let then = control.run_time();
            std::thread::sleep(Duration::from_millis(2));
            control.run_time() == then
        };
        assert!(stands(&control) && control.run_time().is_zero());
        control.run();
        assert!(!stands(&control));
        control.hold();
        assert!(stands(&control));
        control.run();
        control.halt(true);
        assert!(stands(&control));
        // Held and let run while it is halted, it stays so.
        control.hold();
        control.run();
        assert!(stands(&control));
        control.halt(false);
        assert!(!stands(&control));
        control.end(EndReason::Stopped);
        assert!(stands(&control));
    }
}

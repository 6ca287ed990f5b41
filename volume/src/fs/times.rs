//! Times as Windows shows them while a file is open: what the system's own times cannot say.
//!
//! ```text
//!  write ──► Delayed: the old time for two seconds, then that of the first write even if others
//!            follow, until the writer flushes, sets times or the length, or closes
//!  set, -1 ► Held: the time that was set or stood, whatever the setter does, until it lets go
//!            (-2) or closes
//! ```
//!
//! MS-FSA 2.1.5.15.2 for what setting does; that write times are late is what clients of Windows
//! servers see and rely upon when they compare times across a write.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use smb_protocol::fscc::Times;

/// How long a write leaves the shown time alone.
const DELAY: Duration = Duration::from_secs(2);

/// What is shown instead of the times that the system keeps.
#[derive(Debug, Default)]
pub struct Shown {
    active: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    write: Option<Write>,
    change: Option<Held>,
}

/// A time that an open holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Held {
    time: u64,
    by: u64,
}

#[derive(Debug, Clone, Copy)]
enum Write {
    Held(Held),
    Delayed { before: u64, first: Option<u64>, due: Instant, by: u64 },
}

/// What a closing open leaves behind: times that the system must be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Remains {
    /// `LastWriteTime`.
    pub write: Option<u64>,
    /// `ChangeTime`.
    pub change: Option<u64>,
}

impl Shown {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self, state: &State) {
        let active = state.write.is_some() || state.change.is_some();
        self.active.store(active, Ordering::Release);
    }

    /// Puts what is shown in the place of what the system says.
    pub fn apply(&self, times: &mut Times) {
        if !self.active.load(Ordering::Acquire) {
            return;
        }
        let state = self.state();
        match state.write {
            Some(Write::Held(held)) => times.write = held.time,
            Some(Write::Delayed { before, due, .. }) if Instant::now() < due => {
                times.write = before;
            }
            Some(Write::Delayed { first: Some(first), .. }) => times.write = first,
            Some(Write::Delayed { first: None, .. }) | None => {}
        }
        if let Some(held) = state.change {
            times.change = held.time;
        }
    }

    /// Whether a write by `open` changes nothing here; asked at every write.
    pub fn knows_of_writes(&self, open: u64) -> bool {
        self.active.load(Ordering::Acquire)
            && match self.state().write {
                Some(Write::Held(held)) => held.by == open,
                Some(Write::Delayed { first, .. }) => first.is_some(),
                None => false,
            }
    }

    /// `open` is about to write to a file whose write time, for the system, is `before`.
    pub fn written(&self, open: u64, before: u64) {
        let mut state = self.state();
        let delayed = |before| {
            let due = Instant::now() + DELAY;
            Some(Write::Delayed { before, first: None, due, by: open })
        };
        match state.write {
            None => state.write = delayed(before),
            Some(Write::Held(held)) if held.by != open => state.write = delayed(held.time),
            Some(Write::Delayed { ref mut first, .. }) => {
                first.get_or_insert(before);
            }
            Some(Write::Held(_)) => {}
        }
        self.changed(&state);
    }

    /// A write that was delayed is shown from now on: flushed, or the length was set.
    pub fn settle(&self) {
        if !self.active.load(Ordering::Acquire) {
            return;
        }
        let mut state = self.state();
        if matches!(state.write, Some(Write::Delayed { .. })) {
            state.write = None;
        }
        self.changed(&state);
    }

    /// `open` is about to close: its writes are shown from now on. Whether any of them was hidden
    /// behind the first; NTFS dates those to the close.
    pub fn settle_close(&self, open: u64) -> bool {
        if !self.active.load(Ordering::Acquire) {
            return false;
        }
        let mut state = self.state();
        let mut hidden = false;
        if let Some(Write::Delayed { first, by, .. }) = state.write
            && by == open
        {
            hidden = first.is_some();
            state.write = None;
        }
        self.changed(&state);
        hidden
    }

    /// `open` holds the write time at `time`.
    pub fn hold_write(&self, open: u64, time: u64) {
        let mut state = self.state();
        state.write = Some(Write::Held(Held { time, by: open }));
        self.changed(&state);
    }

    /// `open` holds the change time at `time`.
    pub fn hold_change(&self, open: u64, time: u64) {
        let mut state = self.state();
        state.change = Some(Held { time, by: open });
        self.changed(&state);
    }

    /// `open` lets the write time go.
    pub fn release_write(&self, open: u64) {
        let mut state = self.state();
        if matches!(state.write, Some(Write::Held(held)) if held.by == open) {
            state.write = None;
        }
        self.changed(&state);
    }

    /// `open` lets the change time go.
    pub fn release_change(&self, open: u64) {
        let mut state = self.state();
        if state.change.is_some_and(|held| held.by == open) {
            state.change = None;
        }
        self.changed(&state);
    }

    /// `open` is closed; what it held is to be kept by the system.
    pub fn close(&self, open: u64) -> Remains {
        if !self.active.load(Ordering::Acquire) {
            return Remains::default();
        }
        let mut state = self.state();
        let mut remains = Remains::default();
        match state.write {
            Some(Write::Held(held)) if held.by == open => {
                remains.write = Some(held.time);
                state.write = None;
            }
            Some(Write::Delayed { by, .. }) if by == open => state.write = None,
            _ => {}
        }
        if let Some(held) = state.change.filter(|held| held.by == open) {
            remains.change = Some(held.time);
            state.change = None;
        }
        self.changed(&state);
        remains
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(shown: &Shown) -> (u64, u64) {
        let mut times = Times { write: 50, change: 60, ..Times::default() };
        shown.apply(&mut times);
        (times.write, times.change)
    }

    #[test]
    fn a_write_shows_late_and_a_flush_at_once() {
        let times = Shown::default();
        assert_eq!(shown(&times), (50, 60));
        times.written(1, 40);
        assert_eq!(shown(&times), (40, 60));
        times.settle();
        assert_eq!(shown(&times), (50, 60));
        times.written(1, 40);
        assert_eq!(times.close(2), Remains::default());
        assert_eq!(shown(&times), (40, 60));
        assert_eq!(times.close(1), Remains::default());
        assert_eq!(shown(&times), (50, 60));
    }

    #[test]
    fn what_is_held_stays_until_its_holder_goes() {
        let times = Shown::default();
        times.hold_write(1, 7);
        times.hold_change(1, 8);
        times.written(1, 7);
        times.settle();
        assert_eq!(shown(&times), (7, 8));
        times.release_change(2);
        assert_eq!(shown(&times), (7, 8));
        assert_eq!(times.close(1), Remains { write: Some(7), change: Some(8) });
        assert_eq!(shown(&times), (50, 60));
    }

    #[test]
    fn another_writer_ends_the_hold() {
        let times = Shown::default();
        times.hold_write(1, 7);
        times.written(2, 50);
        assert_eq!(shown(&times).0, 7);
        times.settle();
        assert_eq!(shown(&times).0, 50);
        assert_eq!(times.close(1), Remains::default());
    }
}

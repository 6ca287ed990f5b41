//! Times as Windows shows them while a file is open: what the system's own times cannot say.
//!
//! ```text
//!  set, -1 ► held: the time that was set or stood, whatever the setter does, until it lets go (-2)
//!            or closes
//!  a write by another ► shown at once; what the holder does then leaves that time alone
//!  a write to a stream ► dates the file that it belongs to, which the system does not see written
//! ```
//!
//! A write shows at once, as Windows has done it since 2022 (MS-FSA 2.1.4.17). MS-FSA 2.1.5.15.2 is
//! about what setting does.

use std::sync::{
    Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use smb_protocol::fscc::Times;

/// What is shown instead of the times that the system keeps.
#[derive(Debug, Default)]
pub struct Shown {
    active: AtomicBool,
    /// What a first write does to attributes is done.
    noted: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    write: Option<Held>,
    change: Option<Held>,
    access: Option<Held>,
    /// When a stream was last written, until the system knows.
    stream: Option<u64>,
}

/// A time that an open holds. Without `time` another has changed it since: it is the system's until
/// the holder changes the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Held {
    time: Option<u64>,
    by: u64,
}

/// One of the times that an open can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// `LastWriteTime`.
    Write,
    /// `ChangeTime`.
    Change,
    /// `LastAccessTime`.
    Access,
}

/// What a closing open leaves behind: times that the system must be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Remains {
    /// `LastWriteTime`.
    pub write: Option<u64>,
    /// `ChangeTime`.
    pub change: Option<u64>,
    /// `LastAccessTime`.
    pub access: Option<u64>,
}

impl State {
    fn held(&mut self, which: Which) -> &mut Option<Held> {
        match which {
            Which::Write => &mut self.write,
            Which::Change => &mut self.change,
            Which::Access => &mut self.access,
        }
    }

    /// What `open` held of a time, which it does not any more.
    fn let_go(&mut self, which: Which, open: u64) -> Option<u64> {
        let held = self.held(which).take_if(|held| held.by == open)?;
        held.time
    }
}

impl Shown {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self, state: &State) {
        let held = [state.write, state.change, state.access];
        let active = held.iter().any(Option::is_some) || state.stream.is_some();
        self.active.store(active, Ordering::Release);
    }

    /// Puts what is shown in the place of what the system says.
    pub fn apply(&self, times: &mut Times) {
        if !self.active.load(Ordering::Acquire) {
            return;
        }
        let state = self.state();
        if let Some(written) = state.stream {
            times.write = times.write.max(written);
            times.change = times.change.max(written);
            times.access = times.access.max(written);
        }
        for (held, time) in [
            (state.write, &mut times.write),
            (state.change, &mut times.change),
            (state.access, &mut times.access),
        ] {
            if let Some(held) = held.and_then(|held| held.time) {
                *time = held;
            }
        }
    }

    /// Whether a write by `open` changes nothing here and nothing of the file's attributes; asked at
    /// every write to a file itself.
    pub fn knows_of_writes(&self, open: u64) -> bool {
        self.noted.load(Ordering::Acquire)
            && (!self.active.load(Ordering::Acquire)
                || self.state().write.is_none_or(|held| (held.by == open) == held.time.is_some()))
    }

    /// `open` is about to write to a file whose write time, for the system, is `before`.
    pub fn written(&self, open: u64, before: u64) {
        self.noted.store(true, Ordering::Release);
        if !self.active.load(Ordering::Acquire) {
            return;
        }
        if let Some(held) = &mut self.state().write {
            held.time = match held.time {
                _ if held.by != open => None,
                None => Some(before),
                held => held,
            };
        }
    }

    /// `open` writes to a stream of the file at `now`.
    pub fn stream_written(&self, open: u64, now: u64) {
        let mut state = self.state();
        match &mut state.write {
            Some(held) if held.by == open => return,
            Some(held) => held.time = None,
            None => {}
        }
        state.stream = Some(now);
        self.changed(&state);
    }

    /// Attributes or times are set: a write that follows is the first again.
    pub fn forget_writes(&self) {
        self.noted.store(false, Ordering::Release);
    }

    /// Whether `open` holds a time.
    pub fn holds(&self, open: u64, which: Which) -> bool {
        self.active.load(Ordering::Acquire)
            && self.state().held(which).is_some_and(|held| held.by == open)
    }

    /// `open` holds a time at `time`.
    pub fn hold(&self, open: u64, which: Which, time: u64) {
        let mut state = self.state();
        *state.held(which) = Some(Held { time: Some(time), by: open });
        if which == Which::Write {
            state.stream = None;
        }
        self.changed(&state);
    }

    /// `open` lets a time go.
    pub fn release(&self, open: u64, which: Which) {
        let mut state = self.state();
        state.let_go(which, open);
        self.changed(&state);
    }

    /// `open` is closed; what it held is to be kept by the system, and when streams were written.
    pub fn close(&self, open: u64) -> Remains {
        if !self.active.load(Ordering::Acquire) {
            return Remains::default();
        }
        let mut state = self.state();
        let stream = state.stream.take();
        let remains = Remains {
            write: state.let_go(Which::Write, open).or(stream),
            change: state.let_go(Which::Change, open),
            access: state.let_go(Which::Access, open),
        };
        self.changed(&state);
        remains
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(shown: &Shown) -> (u64, u64, u64) {
        let mut times = Times { write: 50, change: 60, access: 70, ..Times::default() };
        shown.apply(&mut times);
        (times.write, times.change, times.access)
    }

    #[test]
    fn a_write_shows_at_once() {
        let times = Shown::default();
        assert!(!times.knows_of_writes(1));
        times.written(1, 40);
        assert!(times.knows_of_writes(1) && times.knows_of_writes(2));
        assert_eq!(shown(&times), (50, 60, 70));
        assert_eq!(times.close(1), Remains::default());
        times.forget_writes();
        assert!(!times.knows_of_writes(2));
    }

    #[test]
    fn what_is_held_stays_until_its_holder_goes() {
        let times = Shown::default();
        times.hold(1, Which::Write, 7);
        times.hold(1, Which::Change, 8);
        times.hold(1, Which::Access, 9);
        times.written(1, 7);
        times.stream_written(1, 100);
        assert_eq!(shown(&times), (7, 8, 9));
        times.release(2, Which::Change);
        times.release(1, Which::Access);
        assert_eq!(shown(&times), (7, 8, 70));
        let remains = Remains { write: Some(7), change: Some(8), access: None };
        assert_eq!(times.close(1), remains);
        assert_eq!(shown(&times), (50, 60, 70));
    }

    #[test]
    fn another_writer_is_shown_and_the_holder_leaves_its_time_alone() {
        let times = Shown::default();
        times.hold(1, Which::Write, 7);
        times.written(1, 7);
        assert!(times.knows_of_writes(1) && !times.knows_of_writes(2));
        times.written(2, 50);
        assert_eq!(shown(&times).0, 50);
        assert!(times.knows_of_writes(2) && !times.knows_of_writes(1));
        times.written(1, 45);
        assert_eq!(shown(&times).0, 45);
        times.written(1, 46);
        assert_eq!(shown(&times).0, 45);
        times.written(2, 47);
        assert_eq!(shown(&times).0, 50);
        assert_eq!(times.close(1), Remains::default());
    }

    #[test]
    fn what_is_written_to_a_stream_dates_its_file() {
        let times = Shown::default();
        times.stream_written(1, 100);
        assert_eq!(shown(&times), (100, 100, 100));
        times.stream_written(1, 110);
        assert_eq!(shown(&times).0, 110);
        assert_eq!(times.close(2), Remains { write: Some(110), ..Remains::default() });
        assert_eq!(shown(&times), (50, 60, 70));
        times.stream_written(1, 120);
        times.hold(2, Which::Write, 5);
        assert_eq!(shown(&times).0, 5);
    }
}

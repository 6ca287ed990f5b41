//! Thirty days of the server's main figures, in one file of fixed size in its state folder.
//!
//! ```text
//!  meters ─► a look every 10 s ─► Recorder ─┬─► the hour: each look
//!                                           ├─► the day: what came in a minute      ─► file.rs
//!                                           └─► the month: what came in 15 minutes
//! ```
//!
//! How long something took is measured by the clock that nobody sets; the other one is only for the time
//! that stands beside it.

mod file;

use std::{
    path::Path,
    sync::{Mutex, PoisonError},
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use server_api::{HistoryPoint, Span};
use smb_server::meters::Summary;

pub use self::file::{HistoryFile, RINGS, Ring, SIZE};

/// Name of the file in the state folder.
pub const NAME: &str = "history";

/// What is written down of one moment; counters go up as long as the server lives.
#[derive(Debug, Clone, Default)]
pub struct Look {
    /// What connections of SMB clients have done.
    pub smb: Summary,
    /// Commands of LUNs that read, wrote, and others.
    pub commands: [u64; 3],
    /// Bytes from initiators, and to them.
    pub bytes: [u64; 2],
    /// Commands that failed.
    pub failed: u64,
    /// Sessions of clients and initiators now.
    pub sessions: u64,
    /// Opens now.
    pub opens: u64,
    /// Seconds of processor time that were used.
    pub used: f64,
}

/// Keeps the history of one server.
#[derive(Debug)]
pub struct History {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    file: HistoryFile,
    /// When each ring had its last record, by both clocks that time goes on with, and how things were.
    begun: [(Instant, Look); RINGS.len()],
    /// A record could not be written; it was said.
    failed: bool,
}

fn since(new: u64, old: u64) -> u64 {
    new.saturating_sub(old)
}

/// What happened between two looks, `seconds` apart; `time` is the end in seconds since 1970.
fn between(before: &Look, now: &Look, seconds: f64, time: u64) -> HistoryPoint {
    let of = |index: usize| since(now.commands[index], before.commands[index]);
    let (new, old) = (&now.smb, &before.smb);
    let (reads, writes) = (since(new.reads, old.reads), since(new.writes, old.writes));
    let others = since(new.answers, old.answers).saturating_sub(reads + writes);
    HistoryPoint {
        time,
        seconds: seconds.round() as u64,
        reads: reads + of(0),
        writes: writes + of(1),
        others: others + of(2),
        received: since(new.received, old.received) + since(now.bytes[0], before.bytes[0]),
        sent: since(new.sent, old.sent) + since(now.bytes[1], before.bytes[1]),
        errors: since(new.errors, old.errors) + since(now.failed, before.failed),
        p50_us: new.quantile_since(old, 0.5).unwrap_or(0),
        p99_us: new.quantile_since(old, 0.99).unwrap_or(0),
        sessions: now.sessions,
        opens: now.opens,
        cpu_permille: ((now.used - before.used).max(0.0) * 1000.0 / seconds.max(0.001)).round()
            as u64,
    }
}

/// Seconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

impl History {
    /// Goes on with the history in a state folder, or begins it.
    ///
    /// # Errors
    /// What the system says.
    pub fn open(state_dir: &Path, look: &Look) -> std::io::Result<Self> {
        let file = HistoryFile::open(&state_dir.join(NAME))?;
        let begun = std::array::from_fn(|_| (Instant::now(), look.clone()));
        Ok(Self { state: Mutex::new(State { file, begun, failed: false }) })
    }

    /// Writes down what happened since the last look, where it is time to.
    pub fn note(&self, look: &Look) {
        self.note_at(look, Instant::now(), now(), false);
    }

    /// Writes down what there is of records that are not complete, as at the end of the server.
    pub fn close(&self, look: &Look) {
        self.note_at(look, Instant::now(), now(), true);
    }

    fn note_at(&self, look: &Look, at: Instant, time: u64, all: bool) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        for (ring, Ring { step, .. }) in RINGS.into_iter().enumerate() {
            let (begun, before) = &state.begun[ring];
            let seconds = at.saturating_duration_since(*begun).as_secs_f64();
            // Looks are a little early or late.
            let due = seconds >= step as f64 - 2.0 || all && seconds >= 1.0;
            if !due {
                continue;
            }
            let point = between(before, look, seconds, time);
            state.begun[ring] = (at, look.clone());
            match state.file.put(ring, point) {
                Ok(()) => state.failed = false,
                Err(error) if !state.failed => {
                    tracing::warn!(%error, "the history cannot be written");
                    state.failed = true;
                }
                Err(_) => {}
            }
        }
    }

    /// The records of a span up to now, and the seconds that each is about.
    pub fn points(&self, span: Span) -> (u64, Vec<HistoryPoint>) {
        let ring = match span {
            Span::Hour => 0,
            Span::Day => 1,
            Span::Month => 2,
        };
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        (RINGS[ring].step, state.file.points(ring, now()))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn look(n: u64) -> Look {
        Look { commands: [n, 2 * n, 0], bytes: [n, n], used: n as f64 / 100.0, ..Look::default() }
    }

    #[test]
    fn each_ring_has_a_record_when_it_is_time_and_the_rest_at_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let history = History::open(folder.path(), &look(0)).unwrap();
        let start = Instant::now();
        let at = |tens: u64| start + Duration::from_secs(10 * tens);
        for tens in 1..=95 {
            history.note_at(&look(tens * 100), at(tens), 1_000_000 + tens * 10, false);
        }
        let count = |ring| {
            let state = history.state.lock().unwrap();
            state.file.points(ring, 1_001_000).len()
        };
        assert_eq!((count(0), count(1), count(2)), (95, 15, 1));
        history.note_at(&look(9600), at(95) + Duration::from_secs(5), 1_000_955, true);
        assert_eq!((count(0), count(1), count(2)), (96, 16, 2));
        let state = history.state.lock().unwrap();
        let points = state.file.points(1, 1_001_000);
        assert_eq!((points[0].reads, points[0].writes, points[0].seconds), (600, 1200, 60));
        assert_eq!(points[0].cpu_permille, 100);
        let all: u64 = points.iter().map(|it| it.reads).sum();
        assert_eq!(all, 9600, "nothing is counted twice or left out");
    }

    #[test]
    fn a_clock_that_is_set_changes_no_length() {
        let folder = tempfile::tempdir().unwrap();
        let history = History::open(folder.path(), &look(0)).unwrap();
        let start = Instant::now();
        for (tens, time) in [(1, 1000), (2, 90_000_000), (3, 1030)] {
            history.note_at(&look(tens), start + Duration::from_secs(10 * tens), time, false);
        }
        let state = history.state.lock().unwrap();
        let points = state.file.points(0, 2000);
        assert_eq!(
            points.iter().map(|it| (it.time, it.seconds)).collect::<Vec<_>>(),
            [(1000, 10), (1030, 10)]
        );
    }
}

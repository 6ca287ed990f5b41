//! The memory side of the source: rounds of pages over several connections.
//!
//! ```text
//!  all pages ─► round 0 ─► dirty ─► round 1 ─► dirty ─► … ─► few enough for the downtime limit,
//!                                                            or the round cap ─► last round
//! ```
//!
//! A page always travels on the same connection (by its place in the bitmap), so versions of it
//! arrive in order. If rounds do not shrink, the vCPUs are held back more and more.

use std::{
    io::Write,
    sync::{
        Condvar, Mutex,
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use host_api::MoveRound;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};
use vmm::{
    Vm,
    platform::{
        bus::lock,
        dirty::PageSet,
        memory::{GuestRam, PAGE},
    },
};

use super::wire::{Batch, Kind, WireError, read_frame, write_frame};
use crate::tls::Stream;

/// Period of holding vCPUs back.
const PERIOD: Duration = Duration::from_millis(10);
/// Steps of holding back, in percent of the period.
const STEPS: [u32; 6] = [0, 30, 60, 80, 90, 97];

#[derive(Debug, Default, Clone, Copy)]
struct Sent {
    zero: u64,
    bytes: u64,
}

fn send_share(
    stream: &mut Stream,
    ram: &GuestRam,
    set: &PageSet,
    share: usize,
    shares: usize,
    round: u32,
    done: &AtomicU32,
) -> Result<Sent, WireError> {
    let mut batch = Batch::default();
    let mut sent = Sent::default();
    let mut page = [0; PAGE as usize];
    let mut flush = |batch: &mut Batch, stream: &mut Stream| -> Result<(), WireError> {
        if !batch.is_empty() {
            sent.zero += batch.zero_pages();
            sent.bytes += batch.write(stream)?;
        }
        Ok(())
    };
    for (region, words) in ram.iter().zip(&set.words) {
        let start = region.start_addr().0;
        let mine = words.iter().enumerate().skip(share).step_by(shares);
        for (index, word) in mine.filter(|(_, word)| **word != 0) {
            let mut bits = *word;
            while bits != 0 {
                let bit = u64::from(bits.trailing_zeros());
                bits &= bits - 1;
                let address = start + (index as u64 * 64 + bit) * PAGE;
                if ram.read_slice(&mut page, GuestAddress(address)).is_err() {
                    return Err(WireError::Pages("an address outside of memory"));
                }
                if batch.is_full() {
                    flush(&mut batch, stream)?;
                }
                batch.push(address, &page);
            }
            done.fetch_add(word.count_ones(), Ordering::Relaxed);
        }
    }
    flush(&mut batch, stream)?;
    write_frame(stream, Kind::Sync, &round.to_le_bytes())?;
    stream.flush()?;
    let mut body = Vec::new();
    read_frame(stream, &[Kind::Sync], &mut body)?;
    if body != round.to_le_bytes() {
        return Err(WireError::Pages("a wrong round"));
    }
    Ok(sent)
}

/// Sends the pages in `set` and returns when they are all in the target's memory. `tick` is
/// called now and then with the pages sent so far.
///
/// # Errors
/// Of the first connection that failed.
pub fn send_round(
    streams: &mut [Stream],
    ram: &GuestRam,
    set: &PageSet,
    round: u32,
    mut tick: impl FnMut(u64) -> Result<(), WireError>,
) -> Result<MoveRound, WireError> {
    const TICK: Duration = Duration::from_millis(200);
    let begin = Instant::now();
    let shares = streams.len();
    let done = AtomicU32::new(0);
    let total = std::thread::scope(|scope| {
        let (tell, told) = mpsc::channel();
        for (share, stream) in streams.iter_mut().enumerate() {
            let (tell, done) = (tell.clone(), &done);
            scope.spawn(move || {
                let result = send_share(stream, ram, set, share, shares, round, done);
                if result.is_err() {
                    // The others must not wait for a target that has given up.
                    let _ = stream.socket().shutdown(std::net::Shutdown::Both);
                }
                let _ = tell.send(result);
            });
        }
        drop(tell);
        let mut total = Sent::default();
        let mut failed = None;
        loop {
            match told.recv_timeout(TICK) {
                Ok(Ok(sent)) => {
                    total.zero += sent.zero;
                    total.bytes += sent.bytes;
                }
                Ok(Err(error)) => failed = failed.or(Some(error)),
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    if let Err(error) = tick(u64::from(done.load(Ordering::Relaxed))) {
                        failed = failed.or(Some(error));
                    }
                }
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    return failed.map_or(Ok(total), Err);
                }
            }
        }
    })?;
    Ok(MoveRound {
        number: round,
        pages: set.count(),
        zero_pages: total.zero,
        bytes: total.bytes,
        micros: u64::try_from(begin.elapsed().as_micros()).unwrap_or(u64::MAX),
    })
}

/// What comes after a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Another, with the guest running.
    Round,
    /// The last, with the guest paused.
    Last,
    /// Nothing: the guest would be paused for so long.
    GiveUp(Duration),
}

/// Decides from the rounds so far whether another one is worth while.
#[derive(Debug)]
pub struct Pace {
    /// Time for which the guest is to be paused.
    limit: Duration,
    /// Longest time for which it may be.
    longest: Duration,
    max_rounds: u32,
    /// Pages per second with data, over the rounds so far.
    rate: f64,
    previous: u64,
}

/// Time of the hand-over that does not depend on the number of pages.
const FIXED: Duration = Duration::from_millis(8);

impl Pace {
    /// For a pause to aim for, the longest that may be, and a cap of rounds.
    pub fn new(limit: Duration, longest: Duration, max_rounds: u32) -> Self {
        Self { limit, longest, max_rounds, rate: 0.0, previous: u64::MAX }
    }

    /// Learns from a round.
    pub fn learn(&mut self, round: &MoveRound) {
        let data = round.pages - round.zero_pages;
        // Too few pages tell of the overhead, not of the rate.
        if data >= 256 && round.micros > 0 {
            let rate = data as f64 * 1e6 / round.micros as f64;
            self.rate = if self.rate == 0.0 { rate } else { (self.rate + rate) / 2.0 };
        }
    }

    /// What comes after `round` rounds with `dirty` pages left.
    pub fn next(&self, round: u32, dirty: u64) -> Next {
        // Without a rate there were few pages, or zeros.
        if self.rate == 0.0 && (dirty <= 256 || round >= self.max_rounds) {
            return Next::Last;
        }
        let seconds = dirty as f64 / self.rate + FIXED.as_secs_f64();
        let pause = Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
        if pause <= self.limit {
            Next::Last
        } else if round < self.max_rounds {
            Next::Round
        } else if pause <= self.longest {
            Next::Last
        } else {
            Next::GiveUp(pause)
        }
    }

    /// Whether the guest must be held back: the last round did not help enough.
    pub fn is_losing(&mut self, dirty: u64) -> bool {
        let losing = dirty > self.previous / 10 * 7;
        self.previous = dirty;
        losing
    }
}

/// Holds a machine's vCPUs back while it exists.
#[derive(Debug, Default)]
pub struct Brake {
    /// Place in [`STEPS`], and whether it has ended.
    state: Mutex<(usize, bool)>,
    changed: Condvar,
}

impl Brake {
    /// Holds the guest's writes back harder than before.
    pub fn harder(&self) {
        let mut state = lock(&self.state);
        state.0 = (state.0 + 1).min(STEPS.len() - 1);
        self.changed.notify_all();
    }

    /// Lets go for good.
    pub fn end(&self) {
        lock(&self.state).1 = true;
        self.changed.notify_all();
    }

    /// Waits for `time`, or for the end; the step, or `None` at the end.
    fn wait(&self, time: Duration) -> Option<usize> {
        let state = lock(&self.state);
        let state = self
            .changed
            .wait_timeout_while(state, time, |state| !state.1)
            .unwrap_or_else(|poison| poison.into_inner())
            .0;
        (!state.1).then_some(state.0)
    }

    /// The work of the thread that does it; returns after [`Brake::end`].
    pub fn run(&self, vm: &Vm) {
        let mut step = 0;
        loop {
            let held = PERIOD * STEPS[step] / 100;
            if !held.is_zero() {
                vm.hold_vcpus(true);
                let ended = self.wait(held).is_none();
                vm.hold_vcpus(false);
                if ended {
                    return;
                }
            }
            match self.wait(PERIOD - held) {
                Some(next) => step = next,
                None => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_round_is_the_one_that_fits_or_the_cap_if_that_is_short_enough() {
        let millis = Duration::from_millis;
        let mut pace = Pace::new(millis(30), millis(200), 5);
        assert_eq!(pace.next(0, 100), Next::Last);
        assert_eq!(pace.next(0, 10_000), Next::Round);
        let round = MoveRound { pages: 100_000, micros: 1_000_000, ..MoveRound::default() };
        pace.learn(&round);
        assert_eq!(pace.next(1, 2_000), Next::Last);
        assert_eq!(pace.next(1, 3_000), Next::Round);
        assert_eq!(pace.next(5, 10_000), Next::Last);
        // A guest that writes faster than memory is sent is not paused for as long as that takes.
        assert_eq!(pace.next(5, 100_000), Next::GiveUp(millis(1008)));
        assert!(matches!(pace.next(5, u64::MAX), Next::GiveUp(_)));
        // Rounds of few or of zero pages do not change what is known of the rate.
        pace.learn(&MoveRound { pages: 9_000, zero_pages: 8_999, micros: 1, ..round });
        assert_eq!(pace.next(1, 3_000), Next::Round);
        assert!(!pace.is_losing(1000));
        assert!(!pace.is_losing(500));
        assert!(pace.is_losing(450));
    }
}

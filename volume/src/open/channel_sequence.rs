//! Which of a client's requests on an open are older than a lost channel (MS-SMB2 3.3.5.2.10).
//!
//! A client that loses a channel counts its `ChannelSequence` up and repeats there what it does
//! not know the outcome of. A request with the old number must not be carried out after that, and
//! a repeated one not while its first copy may still be in progress.

use std::sync::atomic::{AtomicU64, Ordering};

/// The sequence of an open: number (16 bits), requests in progress with it and with older ones
/// (24 bits each).
#[derive(Debug, Default)]
pub struct ChannelSequence(AtomicU64);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct State {
    number: u16,
    current: u32,
    before: u32,
}

const COUNT: u64 = 0xff_ffff;

impl State {
    fn of(bits: u64) -> Self {
        let count = |shift: u32| (bits >> shift & COUNT) as u32;
        Self { number: bits as u16, current: count(16), before: count(40) }
    }

    fn bits(self) -> u64 {
        let count = |value: u32| u64::from(value).min(COUNT);
        u64::from(self.number) | count(self.current) << 16 | count(self.before) << 40
    }

    /// Begins a request; what becomes of the state, and whether it may change anything.
    fn begin(mut self, number: u16, replay: bool) -> (Self, bool) {
        let ahead = number.wrapping_sub(self.number);
        if ahead > 0x7fff {
            return (self, false);
        }
        if ahead > 0 {
            self.before += self.current;
            self.current = 0;
            self.number = number;
        }
        if replay && self.before > 0 {
            return (self, false);
        }
        self.current += 1;
        (self, true)
    }

    fn end(mut self, number: u16) -> Self {
        if number == self.number {
            self.current = self.current.saturating_sub(1);
        } else {
            self.before = self.before.saturating_sub(1);
        }
        self
    }
}

impl ChannelSequence {
    /// The number that an open begins with.
    pub fn start(&self, number: u16) {
        let state = State { number, current: 0, before: 0 };
        self.0.store(state.bits(), Ordering::Release);
    }

    /// Begins a request; `false` if it must not change anything. One that was begun is to be
    /// ended with the same number.
    pub fn begin(&self, number: u16, replay: bool) -> bool {
        let mut begun = false;
        let step = |bits| {
            let (next, may) = State::of(bits).begin(number, replay);
            begun = may;
            Some(next.bits())
        };
        let _ = self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, step);
        begun
    }

    /// Ends a request that came with this number.
    pub fn end(&self, number: u16) {
        let step = |bits| Some(State::of(bits).end(number).bits());
        let _ = self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, step);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_requests_and_early_repetitions_are_refused() {
        let sequence = ChannelSequence::default();
        sequence.start(7);
        assert!(sequence.begin(7, false));
        // The channel is lost; what was on it is repeated while it still runs.
        assert!(!sequence.begin(8, true));
        assert!(sequence.begin(8, false), "new requests are not held up");
        assert!(!sequence.begin(7, false), "too late");
        sequence.end(7);
        assert!(sequence.begin(8, true));
        sequence.end(8);
        sequence.end(8);
        assert_eq!(
            State::of(sequence.0.load(Ordering::Relaxed)),
            State { number: 8, current: 0, before: 0 }
        );
    }

    #[test]
    fn numbers_go_round() {
        let sequence = ChannelSequence::default();
        sequence.start(0xffff);
        assert!(sequence.begin(0, false));
        assert!(!sequence.begin(0xffff, false));
        assert!(sequence.begin(0x7fff, false));
        assert!(!sequence.begin(0, false));
    }
}

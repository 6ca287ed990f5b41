//! Whether a connection looks out for its next request for a moment before it sleeps.
//!
//! A client that waits for answers has its next request on the way some ten microseconds after
//! one, while putting a CPU to sleep and waking it takes longer than that, and the client's CPU
//! pays for the waking. So the connection of a client that came back soon looks out, and sleeps
//! at once twice as often after each time that was in vain.
//!
//! ```text
//!  answered ─► window ─► Some(time): look out ─► hit
//!                 │                        └───► missed ─┐
//!                 └────► None ─────────────────► sleep ◄─┘ ─► slept
//! ```

use std::time::Duration;

/// A sleep that was no longer than so many windows would have been shorter had it been none.
const SHORT: u32 = 2;
/// At most 2 to this power sleeps pass before looking out is tried again.
const MOST_DOUBLINGS: u32 = 10;

/// What a connection has learnt of its client.
#[derive(Debug)]
pub struct BusyPoll {
    most: Duration,
    soon: bool,
    misses: u32,
    /// Sleeps to let pass before it is tried again.
    pass: u32,
}

impl BusyPoll {
    /// Looks out for `most` at a time; never if that is zero.
    pub fn new(most: Duration) -> Self {
        Self { most, soon: false, misses: 0, pass: 0 }
    }

    /// How long to look out now that requests were answered; `None` to sleep at once.
    pub fn window(&mut self) -> Option<Duration> {
        if self.most.is_zero() || !self.soon {
            return None;
        }
        if self.pass > 0 {
            self.pass -= 1;
            return None;
        }
        Some(self.most)
    }

    /// A request came while it looked out.
    pub fn hit(&mut self) {
        self.misses = 0;
    }

    /// No request came within the window.
    pub fn missed(&mut self) {
        self.misses = (self.misses + 1).min(MOST_DOUBLINGS);
        self.pass = 1 << self.misses;
    }

    /// From the last answer to the next request it took `time`, a sleep included.
    pub fn slept(&mut self, time: Duration) {
        self.soon = time <= self.most * SHORT;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: Duration = Duration::from_micros(50);

    fn after_short_sleep() -> BusyPoll {
        let mut busy_poll = BusyPoll::new(MOST);
        busy_poll.slept(Duration::from_micros(60));
        busy_poll
    }

    #[test]
    fn only_a_client_that_comes_back_soon_is_looked_out_for() {
        let mut busy_poll = BusyPoll::new(MOST);
        assert_eq!(busy_poll.window(), None);
        busy_poll.slept(Duration::from_micros(101));
        assert_eq!(busy_poll.window(), None);
        busy_poll.slept(Duration::from_micros(100));
        assert_eq!(busy_poll.window(), Some(MOST));
    }

    #[test]
    fn what_is_in_vain_becomes_rare_and_a_hit_makes_it_common_again() {
        let mut busy_poll = after_short_sleep();
        let mut tries = 0;
        for _ in 0..10_000 {
            if busy_poll.window().is_some() {
                tries += 1;
                busy_poll.missed();
            }
        }
        // 2 + 4 + … + 1024 sleeps between the first ten, then 1024 between each.
        assert!((11..=20).contains(&tries), "{tries}");
        while busy_poll.window().is_none() {}
        busy_poll.hit();
        assert_eq!(busy_poll.window(), Some(MOST));
        busy_poll.missed();
        assert_eq!((busy_poll.window(), busy_poll.window()), (None, None));
        assert_eq!(busy_poll.window(), Some(MOST));
    }

    #[test]
    fn no_window_is_never() {
        let mut busy_poll = BusyPoll::new(Duration::ZERO);
        busy_poll.slept(Duration::ZERO);
        assert_eq!(busy_poll.window(), None);
    }
}

//! Whether a connection looks out for its next request for a moment before it sleeps.
//!
//! A client that waits for answers has its next request on the way soon after one, while putting a
//! CPU to sleep and waking it takes longer than that, and the client's CPU pays for the waking. A
//! client that has more outstanding sends on meanwhile, and looking out for it only costs. Which is
//! which depends on the machine and the network as well, so the connection measures it: how long it
//! takes for each answered message when it looks out, and when it sleeps at once.
//!
//! ```text
//!                  ┌─── no profit ◄──┐
//!                  ▼                 │
//!  Asleep (so many rounds) ──► Measuring (by turns) ◄── Looking (so many rounds)
//!                  ▲                 │                      ▲          │
//!                  │                 └───► profit ──────────┘          │
//!                  └───────────── looked in vain ◄─────────────────────┘
//! ```
//!
//! An answer that is found again stands for twice as many rounds.

use std::time::{Duration, Instant};

/// Rests of a connection in a round.
const ROUND: u32 = 64;
/// Rests of one kind before it is the other's turn, while both are measured.
const TURN: u32 = 16;
/// Rests that are measured: as many of each kind, by turns, so that both see the same weather.
const MEASURED: u32 = 12 * TURN;
/// A client that stays away for so many windows is at other work: what was measured tells nothing.
const AWAY: u32 = 4;
/// Looking out pays if a message takes at most so many tenths of the time.
const PAYS: u32 = 8;
/// At most 2 to this power rounds pass before it is measured again.
const MOST_DOUBLINGS: u32 = 8;

#[derive(Clone, Copy, Debug)]
enum State {
    /// Sleeps at once, for so many more rests.
    Asleep(u32),
    /// Looks out, for so many more rests.
    Looking(u32),
    /// Does both by turns.
    Measuring(Measured),
}

#[derive(Clone, Copy, Debug, Default)]
struct Measured {
    rests: u32,
    looking: Cost,
    asleep: Cost,
}

#[derive(Clone, Copy, Debug, Default)]
struct Cost {
    time: Duration,
    messages: u32,
}

impl Cost {
    fn add(&mut self, time: Duration, messages: u32) {
        self.time += time;
        self.messages += messages;
    }

    fn each(self) -> Duration {
        self.time / self.messages.max(1)
    }
}

impl Measured {
    fn looks(self) -> bool {
        !(self.rests / TURN).is_multiple_of(2)
    }
}

/// What a connection has learnt of its client.
#[derive(Debug)]
pub struct BusyPoll {
    most: Duration,
    state: State,
    /// The present answer, and how often in a row it was found.
    pays: bool,
    sure: u32,
    /// When the connection last came to rest.
    last: Option<Instant>,
    /// Windows in which nothing came, since the last round.
    in_vain: u32,
}

impl BusyPoll {
    /// Looks out for `most` at a time; never if that is zero.
    pub fn new(most: Duration) -> Self {
        let state = State::Asleep(ROUND);
        Self { most, state, pays: false, sure: 0, last: None, in_vain: 0 }
    }

    /// The connection comes to rest at `now`, with so many messages answered since it last did: how
    /// long to look out, `None` to sleep at once.
    pub fn rest(&mut self, now: Instant, answered: u32) -> Option<Duration> {
        if self.most.is_zero() {
            return None;
        }
        let time = self.last.map(|last| now.duration_since(last));
        self.last = Some(now);
        // After a pause the next request is not soon to come.
        let time = time.filter(|time| *time <= self.most * AWAY)?;
        self.state = match self.state {
            State::Asleep(0) | State::Looking(0) => State::Measuring(Measured::default()),
            State::Asleep(rests) => State::Asleep(rests - 1),
            State::Looking(rests) if rests.is_multiple_of(ROUND) => {
                match std::mem::take(&mut self.in_vain) > ROUND / 4 {
                    true => self.found(false),
                    false => State::Looking(rests - 1),
                }
            }
            State::Looking(rests) => State::Looking(rests - 1),
            State::Measuring(mut measured) => {
                let cost = match measured.looks() {
                    true => &mut measured.looking,
                    false => &mut measured.asleep,
                };
                cost.add(time, answered);
                measured.rests += 1;
                let looking = measured.looking.each();
                let in_vain = self.in_vain > MEASURED / 8;
                match measured.rests == MEASURED {
                    true => self.found(looking * 10 <= measured.asleep.each() * PAYS && !in_vain),
                    false => State::Measuring(measured),
                }
            }
        };
        let looks = match self.state {
            State::Asleep(_) => false,
            State::Looking(_) => true,
            State::Measuring(measured) => measured.looks(),
        };
        looks.then_some(self.most)
    }

    /// No request came within the window.
    pub fn missed(&mut self) {
        self.in_vain += 1;
    }

    /// Looking out pays or does not: how it goes on.
    fn found(&mut self, pays: bool) -> State {
        self.sure = if self.pays == pays { (self.sure + 1).min(MOST_DOUBLINGS) } else { 1 };
        (self.pays, self.in_vain) = (pays, 0);
        let rests = ROUND << self.sure;
        if pays { State::Looking(rests) } else { State::Asleep(rests) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: Duration = Duration::from_micros(200);

    /// A client whose requests take so long, each, when it is looked out for and when not.
    struct Client {
        busy_poll: BusyPoll,
        now: Instant,
        looked: u32,
    }

    impl Client {
        fn new(most: Duration) -> Self {
            let now = Instant::now();
            Self { busy_poll: BusyPoll::new(most), now, looked: 0 }
        }

        fn rest(&mut self, looking: u64, asleep: u64) {
            let window = self.busy_poll.rest(self.now, 1);
            let time = Duration::from_micros(if window.is_some() { looking } else { asleep });
            if let Some(window) = window {
                self.looked += 1;
                if window < time {
                    self.busy_poll.missed();
                }
            }
            self.now += time;
        }

        /// Of a thousand rests after many, so many look out.
        fn comes_to_look(&mut self, looking: u64, asleep: u64) -> u32 {
            (0..100_000).for_each(|_| self.rest(looking, asleep));
            self.looked = 0;
            (0..100_000).for_each(|_| self.rest(looking, asleep));
            self.looked / 100
        }
    }

    #[test]
    fn a_client_that_waits_for_answers_is_looked_out_for() {
        let mut client = Client::new(MOST);
        let looked = client.comes_to_look(60, 140);
        assert!((970..1000).contains(&looked), "{looked}");
        // It takes to more outstanding requests, and back.
        let looked = client.comes_to_look(15, 15);
        assert!((1..30).contains(&looked), "{looked}");
        assert!(client.comes_to_look(60, 140) > 970);
    }

    #[test]
    fn nobody_is_looked_out_for_in_vain() {
        let looked = Client::new(MOST).comes_to_look(300, 400);
        assert!((1..30).contains(&looked), "{looked}");
        // One that comes back after a second is not even tried.
        assert_eq!(Client::new(MOST).comes_to_look(1_000_000, 1_000_000), 0);
    }

    #[test]
    fn a_pause_ends_no_habit_and_spoils_no_measure() {
        let mut client = Client::new(MOST);
        client.comes_to_look(60, 140);
        for _ in 0..1000 {
            (0..100).for_each(|_| client.rest(60, 140));
            client.now += Duration::from_secs(1);
        }
        assert!(client.comes_to_look(60, 140) > 970);
    }

    #[test]
    fn no_window_is_never() {
        assert_eq!(Client::new(Duration::ZERO).comes_to_look(0, 1000), 0);
    }
}

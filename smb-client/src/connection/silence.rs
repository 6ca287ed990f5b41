//! When a silent connection is asked for a sign of life, and when it is given up.

use std::time::Duration;

/// How long nothing was heard on a connection, and what that means.
#[derive(Debug, Clone, Copy)]
pub struct Silence {
    /// When it is to be over, at the latest.
    pub keep_alive: Duration,
    /// How long it has lasted.
    pub silent: Duration,
    /// How long ago the server was asked for a sign of life, if it has not answered.
    pub asked: Option<Duration>,
}

impl Silence {
    /// Time between two looks when it comes to it.
    fn tick(self) -> Duration {
        (self.keep_alive / 40).clamp(Duration::from_millis(10), Duration::from_millis(50))
    }

    /// Whether the server is to be asked.
    pub fn is_to_be_broken(self) -> bool {
        self.silent > self.keep_alive / 2 && self.asked.is_none()
    }

    /// It was asked and has not answered yet.
    pub fn is_suspect(self) -> bool {
        self.silent > self.keep_alive / 4 * 3 && self.asked.is_some()
    }

    /// It had its time to answer: half of the time but for the looks.
    pub fn is_death(self) -> bool {
        let looks = self.tick() * 2;
        self.silent + looks >= self.keep_alive
            && self.asked.is_some_and(|ago| ago + looks * 2 >= self.keep_alive / 2)
    }

    /// When it may mean something else.
    pub fn next_look(self) -> Duration {
        let steps = [
            self.keep_alive / 2,
            self.keep_alive / 4 * 3,
            self.keep_alive.saturating_sub(self.tick() * 2),
        ];
        let next = steps.iter().find_map(|step| step.checked_sub(self.silent));
        next.unwrap_or_default().max(self.tick())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks at a connection as `tend` does whose server falls silent at once, and is `late` each
    /// time: when the server was asked, and when the connection was given up.
    fn silence(keep_alive: Duration, late: Duration) -> (Duration, Duration) {
        let (mut silent, mut asked_at, mut doubted) = (Duration::ZERO, None, false);
        loop {
            let asked = asked_at.map(|at| silent - at);
            let silence = Silence { keep_alive, silent, asked };
            if silence.is_to_be_broken() {
                asked_at = Some(silent);
            }
            if silence.is_death() && doubted {
                return (asked_at.unwrap(), silent);
            }
            doubted = silence.is_death();
            silent += silence.next_look() + late;
        }
    }

    #[test]
    fn a_silent_connection_is_given_up_within_the_time() {
        let ms = Duration::from_millis;
        for keep_alive in [ms(200), ms(1000), ms(2000), ms(10_000)] {
            let (asked, ended) = silence(keep_alive, ms(1));
            assert!(asked >= keep_alive / 2 && asked <= keep_alive * 3 / 5, "{asked:?}");
            assert!(ended >= keep_alive * 4 / 5 && ended <= keep_alive, "{keep_alive:?} {ended:?}");
        }
    }

    /// Whatever this process did meanwhile: the server has had nearly half of the time to answer.
    #[test]
    fn a_process_that_slept_asks_first() {
        let ms = Duration::from_millis;
        for late in [ms(100), ms(900), ms(5000)] {
            let (asked, ended) = silence(ms(2000), late);
            assert!(ended - asked >= ms(800), "{late:?}: {asked:?} {ended:?}");
        }
        let slept = Silence { keep_alive: ms(2000), silent: ms(60_000), asked: None };
        assert!(slept.is_to_be_broken() && !slept.is_death() && !slept.is_suspect());
    }
}

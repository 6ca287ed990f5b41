//! The host's clock, by which a guest that comes back is told how long it was away.

use std::time::{SystemTime, UNIX_EPOCH};

/// Longest absence that is believed, in nanoseconds.
const BELIEVABLE: u64 = 600_000_000_000;

/// This host's time in nanoseconds since 1970.
pub fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// Nanoseconds that a guest has been away that was saved when this host's clock showed `read_at`;
/// nothing if the clock makes no sense of it.
pub fn time_away(read_at: u64) -> u64 {
    between(read_at, now())
}

fn between(read_at: u64, now: u64) -> u64 {
    now.checked_sub(read_at).filter(|away| *away < BELIEVABLE).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_absence_that_can_be_is_believed() {
        assert_eq!(between(1000, 1500), 500);
        assert_eq!(between(1500, 1000), 0, "the clock was set back");
        assert_eq!(between(0, now()), 0, "nobody said when");
        assert_eq!(between(7, 7 + BELIEVABLE), 0);
    }
}

//! Send credits and receive credits of one connection (MS-SMBD 3.1.5.9).
//!
//! ```text
//!  receives posted ──► granted with the next message ──► the peer sends ──► one fewer
//!  the peer's grants ──► we send ──► one fewer; the last one only with a grant of ours
//! ```
//!
//! The last credit is kept for a message that gives credits: if both ends have used theirs up, neither
//! could tell the other of new ones. Credits are told of with messages that go anyway; a message for
//! nothing else is sent only when the peer has fewer than half of what it asked for, else two idle
//! ends would thank each other for ever. For the same reason nobody has fewer than [`FEWEST`].

/// Receives that a peer has at least, even if it asks for one: with a single one each grant would use
/// up what the next grant needs.
const FEWEST: u32 = 2;

/// The credits of both directions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Credits {
    /// `Connection.SendCredits`: messages that we may send.
    pub send: u32,
    /// `Connection.ReceiveCredits`: receives that are posted, of which the peer knows or is told next.
    pub receive: u32,
    /// `Connection.ReceiveCreditTarget`: what the peer would like.
    pub target: u32,
    /// `Connection.ReceiveCreditMax`: what it may have.
    pub max: u32,
    /// Receives that are posted and of which the peer has not been told.
    pub untold: u16,
}

impl Credits {
    /// Before negotiation nobody has any.
    pub fn new(max: u16) -> Self {
        Self { send: 0, receive: 0, target: 0, max: u32::from(max).max(FEWEST), untold: 0 }
    }

    /// Adds receives where the peer should have more: how many are to be posted. `waits` says that a
    /// message waits to be sent, `full` that the peer is to be given no more than it must.
    pub fn manage(&mut self, waits: bool, full: bool) -> u16 {
        let target = self.target.max(FEWEST).min(self.max);
        let must = self.receive == 0 || self.send == 1 && waits;
        let mut new = match full {
            true => 0,
            false => target.saturating_sub(self.receive),
        };
        if must && new == 0 && self.receive <= self.max {
            new = 1;
        }
        // Never more than the maximum and one, which 16 bits hold with what is untold.
        let new = u16::try_from(new).unwrap_or(u16::MAX).min(u16::MAX - self.untold);
        self.receive += u32::from(new);
        self.untold += new;
        new
    }

    /// Whether the peer has so few that it is told of more at once.
    pub fn is_low(&self) -> bool {
        let target = self.target.max(FEWEST).min(self.max);
        self.receive < target.div_ceil(2).max(1)
    }

    /// Whether a message may go now, with what is untold.
    pub fn may_send(&self) -> bool {
        self.send > 1 || self.send == 1 && self.untold > 0
    }

    /// A message goes: what it grants.
    pub fn sent(&mut self) -> u16 {
        self.send -= 1;
        std::mem::take(&mut self.untold)
    }

    /// A message has come, which asks for `requested` and grants `granted`; `false` if the peer had no
    /// credit for it.
    pub fn received(&mut self, requested: u16, granted: u16) -> bool {
        let Some(left) = self.receive.checked_sub(1) else { return false };
        self.receive = left;
        self.target = requested.into();
        // Who grants more than anyone could use has granted enough.
        self.send = (self.send + u32::from(granted)).min(u16::MAX.into());
        // One of those it did not know of yet cannot have been used: it knew of fewer then.
        u32::from(self.untold) <= self.receive
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credits(send: u32, receive: u32, target: u32) -> Credits {
        Credits { send, receive, target, max: 10, untold: 0 }
    }

    #[test]
    fn the_last_credit_goes_only_with_a_grant() {
        let mut last = credits(1, 10, 10);
        assert!(!last.may_send());
        assert_eq!(last.manage(false, false), 0, "nothing waits");
        assert_eq!(last.manage(true, false), 1, "one more than the target");
        assert!(last.may_send());
        assert_eq!((last.sent(), last.send, last.receive), (1, 0, 11));
        // It does not go beyond that, whatever happens.
        last.send = 1;
        assert_eq!(last.manage(true, false), 0);
        assert!(!last.may_send());
    }

    #[test]
    fn a_peer_gets_what_it_asks_for_and_no_more_than_it_may_have() {
        assert_eq!(credits(5, 3, 8).manage(false, false), 5);
        assert_eq!(credits(5, 3, 800).manage(false, false), 7);
        assert_eq!(credits(5, 3, 8).manage(false, true), 0);
        assert_eq!(credits(5, 0, 8).manage(false, true), 1);
        assert_eq!(credits(5, 9, 8).manage(false, false), 0);
    }

    #[test]
    fn a_message_without_a_credit_is_seen() {
        assert!(!credits(1, 0, 1).received(1, 1));
        let mut some = credits(1, 2, 1);
        assert!(some.received(5, 7));
        assert_eq!((some.receive, some.target, some.send), (1, 5, 8));
        // Two receives are posted, and the peer knows of one.
        let mut untold = Credits { untold: 1, ..credits(1, 2, 1) };
        assert!(untold.received(1, 0));
        assert!(!untold.received(1, 0));
    }

    #[test]
    fn two_idle_ends_fall_silent() {
        // What a message without data takes from a peer that had all it asked for is not given back
        // by another.
        for target in 2..=10 {
            let mut idle = credits(5, target, target);
            assert!(idle.received(10, 5) && !Credits { target, ..idle }.is_low());
        }
    }
}

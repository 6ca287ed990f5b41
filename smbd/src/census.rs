//! Who is connected from where, and who must go when there is no room for another.
//!
//! ```text
//!  accept ─► enter ─► room? ── yes ─► a stranger, until it has authenticated ─► known
//!                       └─ no ──► a stranger goes: the oldest of those places that have most
//! ```
//!
//! Strangers may fill the places for strangers, and no others. One of them more makes the oldest
//! go of the network that has most of them, so whoever fills the places pushes itself out, and a
//! newcomer from elsewhere always has its turn. Networks are single addresses of IPv4 and /64s of
//! IPv6, which is what one subscriber has.

use std::{
    collections::{HashMap, VecDeque},
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

/// What counts as one place.
pub type Place = IpAddr;

/// The network that an address counts for.
pub fn place(address: IpAddr) -> Place {
    match address.to_canonical() {
        IpAddr::V6(six) => {
            let [a, b, c, d, ..] = six.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        four => four,
    }
}

/// How many may be connected.
#[derive(Debug, Clone, Copy)]
pub struct Room {
    /// Connections of all places.
    pub all: usize,
    /// Connections of one place.
    pub each: usize,
    /// Connections of all places that have not authenticated.
    pub strangers: usize,
}

#[derive(Debug, Default)]
struct Counts {
    all: HashMap<Place, usize>,
    total: usize,
    /// Those that have not authenticated, the oldest first.
    strangers: HashMap<Place, VecDeque<(u64, Arc<Notify>)>>,
    unknown: usize,
    next: u64,
}

/// Connections by place.
#[derive(Debug, Default)]
pub struct Census {
    counts: Mutex<Counts>,
}

/// A connection that is counted as long as this lives.
#[derive(Debug)]
pub struct Counted {
    census: Arc<Census>,
    place: Place,
    id: u64,
    leave: Arc<Notify>,
}

impl Counts {
    /// Takes a stranger out of the list; `false` if it is none any more.
    fn forget(&mut self, place: Place, id: u64) -> bool {
        let Some(here) = self.strangers.get_mut(&place) else { return false };
        let Some(at) = here.iter().position(|(other, _)| *other == id) else { return false };
        here.remove(at);
        if here.is_empty() {
            self.strangers.remove(&place);
        }
        self.unknown -= 1;
        true
    }

    /// Tells the oldest stranger of a place to go; it is counted until it has gone.
    fn send_away(&mut self, place: Place) -> bool {
        let Some((id, leave)) = self.strangers.get(&place).and_then(|all| all.front()).cloned()
        else {
            return false;
        };
        leave.notify_one();
        self.forget(place, id)
    }

    /// The place that has most strangers.
    fn fullest(&self) -> Option<Place> {
        self.strangers.iter().max_by_key(|(_, all)| all.len()).map(|(place, _)| *place)
    }
}

impl Census {
    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a connection in, for which a stranger may have to go; `None` if there is no room and
    /// no stranger.
    pub fn enter(self: &Arc<Self>, address: IpAddr, room: Room) -> Option<Counted> {
        let place = place(address);
        let mut counts = self.lock();
        let here = counts.all.get(&place).copied().unwrap_or(0);
        if here >= room.each && !counts.send_away(place) {
            return None;
        }
        if counts.total >= room.all || counts.unknown >= room.strangers {
            // Those that were told to go are still counted in all, for a moment.
            let fullest = counts.fullest();
            let gone = fullest.is_some_and(|place| counts.send_away(place));
            if !gone && counts.total >= room.all {
                return None;
            }
        }
        counts.next += 1;
        let (id, leave) = (counts.next, Arc::new(Notify::new()));
        *counts.all.entry(place).or_default() += 1;
        counts.total += 1;
        counts.unknown += 1;
        counts.strangers.entry(place).or_default().push_back((id, leave.clone()));
        Some(Counted { census: self.clone(), place, id, leave })
    }

    /// Connections that have not authenticated.
    #[cfg(test)]
    fn unknown(&self) -> usize {
        self.lock().unknown
    }
}

impl Counted {
    /// Ends when this connection is to make room for another.
    pub async fn told_to_go(&self) {
        self.leave.notified().await;
    }

    /// It has authenticated: it is not sent away any more.
    pub fn known(&self) {
        self.census.lock().forget(self.place, self.id);
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut counts = self.census.lock();
        counts.forget(self.place, self.id);
        counts.total -= 1;
        if let Some(count) = counts.all.get_mut(&self.place) {
            *count -= 1;
            if *count == 0 {
                counts.all.remove(&self.place);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    const ROOM: Room = Room { all: 40, each: 20, strangers: 30 };

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn goes(counted: &Counted) -> bool {
        counted.told_to_go().now_or_never().is_some()
    }

    #[test]
    fn strangers_that_fill_the_server_push_each_other_out_and_nobody_else() {
        let census = Arc::new(Census::default());
        let known = census.enter(address("10.0.0.9"), ROOM).unwrap();
        known.known();
        let mut held = Vec::new();
        for round in 0..200 {
            let from = address(if round % 2 == 0 { "10.0.0.1" } else { "10.0.0.2" });
            if let Some(counted) = census.enter(from, ROOM) {
                held.push(counted);
            }
            held.retain(|counted| !goes(counted));
            assert!(census.unknown() <= ROOM.strangers);
        }
        assert_eq!(held.len(), ROOM.strangers);
        // Somebody else comes in, and may stay.
        let alice = census.enter(address("10.0.0.3"), ROOM).expect("there is room for her");
        held.retain(|counted| !goes(counted));
        assert_eq!(held.len(), ROOM.strangers - 1);
        alice.known();
        for _ in 0..100 {
            held.extend(census.enter(address("10.0.0.1"), ROOM));
            held.retain(|counted| !goes(counted));
        }
        assert!(!goes(&alice) && !goes(&known));
        drop((held, alice, known));
        assert_eq!((census.unknown(), census.lock().total), (0, 0));
    }

    #[test]
    fn those_who_are_known_are_not_sent_away() {
        let census = Arc::new(Census::default());
        let mut held = Vec::new();
        for n in 0..ROOM.all {
            let counted = census.enter(address(&format!("10.0.0.{}", n / 20)), ROOM).unwrap();
            counted.known();
            held.push(counted);
        }
        assert!(census.enter(address("10.0.0.9"), ROOM).is_none());
        assert!(held.iter().all(|counted| !goes(counted)));
    }

    #[test]
    fn a_network_of_ipv6_is_one_place() {
        let other = "2001:db8:0:1:ffff:1:2:3";
        assert_eq!(place(address("2001:db8:0:1::1")), place(address(other)));
        assert_ne!(place(address("2001:db8:0:1::1")), place(address("2001:db8:0:2::1")));
        assert_eq!(place(address("::ffff:10.0.0.1")), place(address("10.0.0.1")));
    }
}

//! Who is connected from where, and who must go when there is no room for another.
//!
//! ```text
//!  accept ─► enter ─► room? ── yes ─► a stranger, until it has authenticated ─► known
//!                       └─ no ──► a stranger goes: the oldest of those places that have most
//! ```
//!
//! Strangers may fill the places for strangers, and no others. One of them more makes the oldest
//! go of the network that has most of them, so whoever fills the places pushes itself out, and a
//! newcomer from elsewhere always has its turn. Of one network those go first that have negotiated
//! nothing: to be in somebody's way there costs more than to connect. Networks are single addresses of IPv4 and /64s of
//! IPv6, which is what one subscriber has.
//!
//! Who was told to go has given its place up, although it takes a moment to leave. Few may be on
//! their way out at once: the next is let in when some have gone.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
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

/// Most connections that are told to go and have not gone.
const LEAVING: usize = 64;

/// How long the door stays shut at most until some of those have gone.
const PATIENCE: Duration = Duration::from_secs(1);

/// How often others have their turn before a stranger is told to go.
const TURNS: usize = 2;

/// Connections from one place.
#[derive(Debug, Default)]
struct Here {
    /// Those that may stay.
    stay: usize,
    /// Those of them that have not authenticated, the oldest first: who has negotiated nothing, and
    /// who has.
    strangers: [VecDeque<(u64, Arc<Notify>)>; 2],
}

impl Here {
    fn strangers(&self) -> usize {
        self.strangers.iter().map(VecDeque::len).sum()
    }

    /// Takes a stranger out of the lists.
    fn take(&mut self, id: u64) -> Option<(u64, Arc<Notify>)> {
        self.strangers.iter_mut().find_map(|list| {
            let at = list.iter().position(|(other, _)| *other == id)?;
            list.remove(at)
        })
    }
}

#[derive(Debug, Default)]
struct Counts {
    places: HashMap<Place, Here>,
    /// Sums over all places.
    stay: usize,
    strangers: usize,
    /// Those that were told to go and have not gone.
    leaving: HashSet<u64>,
    next: u64,
}

/// Counts connections by the network that they come from.
#[derive(Debug, Default)]
pub struct Census {
    counts: Mutex<Counts>,
    /// One that was told to go has gone.
    gone: Notify,
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
        let taken = self.places.get_mut(&place).and_then(|here| here.take(id)).is_some();
        self.strangers -= usize::from(taken);
        taken
    }

    /// Gives up a place.
    fn free(&mut self, place: Place) {
        self.stay -= 1;
        if let Some(here) = self.places.get_mut(&place) {
            here.stay -= 1;
            if here.stay == 0 {
                self.places.remove(&place);
            }
        }
    }

    /// Tells the oldest stranger of a place to go; `false` if there is none.
    fn send_away(&mut self, place: Place) -> bool {
        let first = |here: &mut Here| here.strangers.iter_mut().find_map(VecDeque::pop_front);
        let Some((id, leave)) = self.places.get_mut(&place).and_then(first) else { return false };
        self.strangers -= 1;
        self.free(place);
        self.leaving.insert(id);
        leave.notify_one();
        true
    }

    /// The place that has most strangers.
    fn fullest(&self) -> Option<Place> {
        self.places.iter().max_by_key(|(_, here)| here.strangers()).map(|(place, _)| *place)
    }
}

impl Census {
    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a connection in, for which a stranger may have to go; `None` if there is no room and
    /// no stranger, or if those that were told to go do not.
    pub async fn enter(self: &Arc<Self>, address: IpAddr, room: Room) -> Option<Counted> {
        // Whose client is gone already leaves by itself when it has its turn.
        for _ in 0..TURNS {
            if self.has_room(address, room) {
                break;
            }
            tokio::task::yield_now().await;
        }
        let settled = async {
            let mut gone = std::pin::pin!(self.gone.notified());
            loop {
                // Who leaves between the look and the wait is noticed.
                gone.as_mut().enable();
                if self.lock().leaving.len() < LEAVING {
                    return;
                }
                gone.as_mut().await;
                gone.set(self.gone.notified());
            }
        };
        tokio::time::timeout(PATIENCE, settled).await.ok()?;
        self.admit(address, room)
    }

    fn has_room(&self, address: IpAddr, room: Room) -> bool {
        let counts = self.lock();
        let here = counts.places.get(&place(address)).map_or(0, |here| here.stay);
        here < room.each && counts.stay < room.all && counts.strangers < room.strangers
    }

    fn admit(self: &Arc<Self>, address: IpAddr, room: Room) -> Option<Counted> {
        let place = place(address);
        let mut counts = self.lock();
        let here = counts.places.get(&place).map_or(0, |here| here.stay);
        if here >= room.each && !counts.send_away(place) {
            return None;
        }
        if counts.stay >= room.all || counts.strangers >= room.strangers {
            let fullest = counts.fullest();
            let gone = fullest.is_some_and(|place| counts.send_away(place));
            if !gone && counts.stay >= room.all {
                return None;
            }
        }
        counts.next += 1;
        let (id, leave) = (counts.next, Arc::new(Notify::new()));
        counts.stay += 1;
        counts.strangers += 1;
        let here = counts.places.entry(place).or_default();
        here.stay += 1;
        here.strangers[0].push_back((id, leave.clone()));
        Some(Counted { census: self.clone(), place, id, leave })
    }

    /// Connections that have not authenticated.
    #[cfg(test)]
    fn unknown(&self) -> usize {
        self.lock().strangers
    }
}

impl Counted {
    /// Ends when this connection is to make room for another.
    pub async fn told_to_go(&self) {
        self.leave.notified().await;
    }

    /// It has negotiated: of its place it is sent away after those that have not.
    pub fn negotiated(&self) {
        if let Some(here) = self.census.lock().places.get_mut(&self.place)
            && let Some(stranger) = here.take(self.id)
        {
            here.strangers[1].push_back(stranger);
        }
    }

    /// It has authenticated: it is not sent away any more. `false` if it was told to go before.
    pub fn known(&self) -> bool {
        self.census.lock().forget(self.place, self.id)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut counts = self.census.lock();
        counts.forget(self.place, self.id);
        if counts.leaving.remove(&self.id) {
            drop(counts);
            self.census.gone.notify_one();
        } else {
            counts.free(self.place);
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
        let known = census.admit(address("10.0.0.9"), ROOM).unwrap();
        known.known();
        let mut held = Vec::new();
        for round in 0..200 {
            let from = address(if round % 2 == 0 { "10.0.0.1" } else { "10.0.0.2" });
            if let Some(counted) = census.admit(from, ROOM) {
                held.push(counted);
            }
            held.retain(|counted| !goes(counted));
            assert!(census.unknown() <= ROOM.strangers);
        }
        assert_eq!(held.len(), ROOM.strangers);
        // Somebody else comes in, and may stay.
        let alice = census.admit(address("10.0.0.3"), ROOM).expect("there is room for her");
        held.retain(|counted| !goes(counted));
        assert_eq!(held.len(), ROOM.strangers - 1);
        alice.known();
        for _ in 0..100 {
            held.extend(census.admit(address("10.0.0.1"), ROOM));
            held.retain(|counted| !goes(counted));
        }
        assert!(!goes(&alice) && !goes(&known));
        drop((held, alice, known));
        let counts = census.lock();
        assert_eq!((counts.strangers, counts.stay, counts.leaving.len()), (0, 0, 0));
    }

    /// A burst that comes before any of those who were told to go has gone takes nobody's place.
    #[tokio::test(start_paused = true)]
    async fn a_burst_waits_until_those_who_were_told_to_go_have_gone() {
        let census = Arc::new(Census::default());
        let from = address("10.0.0.1");
        let mut held = Vec::new();
        for _ in 0..ROOM.each + LEAVING {
            held.push(census.enter(from, ROOM).await.expect("the oldest makes room"));
        }
        assert_eq!(census.unknown(), ROOM.each);
        assert!(census.enter(from, ROOM).await.is_none(), "as many are leaving as may");
        let next = {
            let census = census.clone();
            tokio::spawn(async move { census.enter(from, ROOM).await })
        };
        tokio::task::yield_now().await;
        held.retain(|counted| !goes(counted));
        assert_eq!(held.len(), ROOM.each);
        assert!(next.await.unwrap().is_some());
    }

    /// Who only connects is in the way of others who do, and of nobody who has begun to log in.
    #[test]
    fn those_who_negotiated_go_last() {
        let census = Arc::new(Census::default());
        let from = address("10.0.0.1");
        let alice = census.admit(from, ROOM).unwrap();
        alice.negotiated();
        let mut held = Vec::new();
        for _ in 0..200 {
            held.extend(census.admit(from, ROOM));
            held.retain(|counted| !goes(counted));
        }
        assert!(!goes(&alice) && alice.known());
        // Among those who have, the oldest goes.
        let second = census.admit(from, ROOM).unwrap();
        second.negotiated();
        for _ in 0..ROOM.each {
            let next = census.admit(from, ROOM).unwrap();
            next.negotiated();
            held.push(next);
        }
        assert!(goes(&second));
    }

    #[test]
    fn those_who_are_known_are_not_sent_away() {
        let census = Arc::new(Census::default());
        let mut held = Vec::new();
        for n in 0..ROOM.all {
            let counted = census.admit(address(&format!("10.0.0.{}", n / 20)), ROOM).unwrap();
            counted.known();
            held.push(counted);
        }
        assert!(census.admit(address("10.0.0.9"), ROOM).is_none());
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

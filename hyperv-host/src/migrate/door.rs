//! Who may be at the migration port: hosts that have shown a certificate, and strangers, which are
//! all others. Strangers have few places, which they take from each other: one more makes the oldest
//! go of the address that has most of them. So a host always finds a place for the moment that its
//! handshake takes, whoever else is at the door.

use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
    sync::{Arc, Mutex},
};

use vmm::platform::bus::lock;

use crate::tls::Cutter;

/// Connections of strangers at a time.
const STRANGERS: usize = 64;
/// Connections of hosts at a time.
const HOSTS: usize = 128;

#[derive(Debug, Default)]
struct Places {
    strangers: HashMap<IpAddr, VecDeque<(u64, Cutter)>>,
    /// Strangers' connections that have not ended, with those that were cut.
    unknown: usize,
    hosts: usize,
    next: u64,
}

/// The places at the port.
#[derive(Debug, Default)]
pub struct Door(Mutex<Places>);

/// A place, as long as this lives.
#[derive(Debug)]
pub struct Place {
    door: Arc<Door>,
    address: IpAddr,
    id: u64,
    known: bool,
}

impl Places {
    fn waiting(&self) -> usize {
        self.strangers.values().map(VecDeque::len).sum()
    }

    /// Takes a stranger off the list; `false` if it was cut.
    fn forget(&mut self, address: IpAddr, id: u64) -> bool {
        let Some(here) = self.strangers.get_mut(&address) else { return false };
        let before = here.len();
        here.retain(|(other, _)| *other != id);
        let found = here.len() < before;
        if here.is_empty() {
            self.strangers.remove(&address);
        }
        found
    }
}

impl Door {
    /// A stranger's place, for which another may have to go; `None` if those who had to have not
    /// gone yet.
    pub fn enter(self: &Arc<Self>, address: IpAddr, cutter: Cutter) -> Option<Place> {
        let mut places = lock(&self.0);
        // A connection that is cut ends as soon as its thread runs.
        if places.unknown >= 2 * STRANGERS {
            return None;
        }
        if places.waiting() >= STRANGERS
            && let Some(most) = places.strangers.values_mut().max_by_key(|all| all.len())
            && let Some((_, oldest)) = most.pop_front()
        {
            oldest.cut();
        }
        places.next += 1;
        let id = places.next;
        places.strangers.entry(address).or_default().push_back((id, cutter));
        places.unknown += 1;
        Some(Place { door: self.clone(), address, id, known: false })
    }
}

impl Place {
    /// It is a host's; `false` if it was cut meanwhile, or as many hosts are here as may.
    pub fn known(&mut self) -> bool {
        let mut places = lock(&self.door.0);
        if places.hosts >= HOSTS || !places.forget(self.address, self.id) {
            return false;
        }
        places.unknown -= 1;
        places.hosts += 1;
        self.known = true;
        true
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut places = lock(&self.door.0);
        if self.known {
            places.hosts -= 1;
        } else {
            places.forget(self.address, self.id);
            places.unknown -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::Read,
        net::{Ipv4Addr, TcpListener, TcpStream},
    };

    use super::*;

    fn pair() -> (TcpStream, Cutter) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let there = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (there, Cutter::of(&listener.accept().unwrap().0).unwrap())
    }

    fn is_cut(stream: &TcpStream) -> bool {
        stream.set_nonblocking(true).unwrap();
        matches!((&*stream).read(&mut [0]), Ok(0))
    }

    #[test]
    fn strangers_take_places_from_who_has_most() {
        let door = Arc::new(Door::default());
        let (many, few) = (IpAddr::from(Ipv4Addr::new(10, 0, 0, 1)), Ipv4Addr::new(10, 0, 0, 2));
        let mut held = Vec::new();
        let mut enter = |address| {
            let (there, cutter) = pair();
            // What was cut ends.
            held.retain(|(there, _)| !is_cut(there));
            let place = door.enter(address, cutter);
            let entered = place.is_some();
            held.extend(place.map(|place| (there, place)));
            (entered, held.len())
        };
        assert_eq!(enter(few.into()), (true, 1));
        for _ in 0..STRANGERS + 100 {
            assert!(enter(many).0);
        }
        let first = &mut held[0];
        assert!(!is_cut(&first.0) && first.1.address == few);
        assert!(first.1.known());
        assert!(held.len() <= STRANGERS + 2, "{}", held.len());
        drop(held);
        let places = lock(&door.0);
        assert_eq!((places.unknown, places.hosts, places.waiting()), (0, 0, 0));
    }

    #[test]
    fn who_was_cut_is_no_host() {
        let door = Arc::new(Door::default());
        let address = IpAddr::from(Ipv4Addr::LOCALHOST);
        let mut places: Vec<Place> =
            (0..=STRANGERS).map(|_| door.enter(address, pair().1).unwrap()).collect();
        assert!(!places[0].known() && places[1].known());
    }
}

//! To which of a server's addresses a session should have how many channels.

use std::net::IpAddr;

use smb_protocol::fscc::fsctl::{InterfaceCapability, NetworkInterface};

/// Channels to an interface that spreads connections over queues.
const SPREAD: u16 = 4;
/// A path counts as so much slower than the fastest at most.
const SLOWEST: u64 = 10_000;

/// One address and what is wanted there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Target {
    pub address: IpAddr,
    /// Channels wanted to this address.
    pub count: usize,
    /// How much slower it is than the fastest of the server's, at least 1.
    pub weight: u32,
}

/// What bounds a plan.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Channels of the session.
    pub most: usize,
    /// Channels to one interface; 0 for what it offers.
    pub per_interface: u16,
}

/// Spreads a session's channels over the interfaces that a server has told (MS-SMB2 3.2.5.14.11):
/// one to each, fastest first, then more to those that take more. Of an interface with several
/// addresses one is used: that which was `dialled`, else one of its family. Addresses for which
/// `usable` is false are left out. What was dialled counts as an interface of its own when the
/// server does not tell it, as behind a translation of addresses.
pub(super) fn targets(
    offers: &[NetworkInterface],
    dialled: IpAddr,
    bounds: Bounds,
    usable: impl Fn(IpAddr) -> bool,
) -> Vec<Target> {
    let top = offers.iter().map(|offer| offer.link_speed).max().unwrap_or(0).max(1);
    let rank = |ip: IpAddr| (ip != dialled, ip.is_ipv4() != dialled.is_ipv4());
    let mut found: Vec<(NetworkInterface, u16)> = Vec::new();
    for offer in offers.iter().filter(|offer| usable(offer.address)) {
        let room = match bounds.per_interface {
            0 if offer.capability.has(InterfaceCapability::RSS) => SPREAD,
            0 => 1,
            more => more,
        };
        if found.iter().any(|(known, _)| known.address == offer.address) {
            continue;
        }
        match found.iter_mut().find(|(known, _)| known.index == offer.index) {
            Some((known, _)) if rank(offer.address) < rank(known.address) => *known = *offer,
            Some(_) => {}
            None => found.push((*offer, room)),
        }
    }
    if usable(dialled) && offers.iter().all(|offer| offer.address != dialled) {
        let dialled = NetworkInterface {
            index: 0,
            capability: InterfaceCapability::NONE,
            link_speed: top,
            address: dialled,
        };
        found.push((dialled, bounds.per_interface.max(1)));
    }
    // Of equals the one that was dialled, and otherwise as the server lists them.
    found.sort_by_key(|(offer, _)| (std::cmp::Reverse(offer.link_speed), rank(offer.address)));
    let weight = |speed: u64| u32::try_from((top / speed.max(1)).clamp(1, SLOWEST)).unwrap_or(1);
    let mut targets: Vec<Target> = found
        .iter()
        .map(|(offer, _)| Target {
            address: offer.address,
            count: 0,
            weight: weight(offer.link_speed),
        })
        .collect();
    let mut left = bounds.most;
    let rounds = found.iter().map(|(_, room)| *room).max().unwrap_or(0);
    for round in 0..rounds {
        for (target, (_, room)) in targets.iter_mut().zip(&found) {
            if round < *room && left > 0 {
                target.count += 1;
                left -= 1;
            }
        }
    }
    targets.retain(|target| target.count > 0);
    targets
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn offer(index: u32, address: &str, gigabits: u64, rss: bool) -> NetworkInterface {
        NetworkInterface {
            index,
            capability: if rss { InterfaceCapability::RSS } else { InterfaceCapability::NONE },
            link_speed: gigabits * 1_000_000_000,
            address: address.parse().unwrap(),
        }
    }

    fn plan(
        offers: &[NetworkInterface],
        most: usize,
        per_interface: u16,
    ) -> Vec<(String, usize, u32)> {
        let bounds = Bounds { most, per_interface };
        let targets = targets(offers, "192.0.2.1".parse().unwrap(), bounds, |_| true);
        targets.iter().map(|t| (t.address.to_string(), t.count, t.weight)).collect()
    }

    fn is(address: &str, count: usize, weight: u32) -> (String, usize, u32) {
        (address.to_owned(), count, weight)
    }

    #[test]
    fn channels_go_to_every_interface_first_and_to_fast_ones_most() {
        let (one, two) = (offer(1, "192.0.2.1", 10, false), offer(2, "198.51.100.1", 10, false));
        assert_eq!(plan(&[two, one], 4, 0), [is("192.0.2.1", 1, 1), is("198.51.100.1", 1, 1)]);
        assert_eq!(plan(&[two, one], 1, 0), [is("192.0.2.1", 1, 1)]);
        assert_eq!(plan(&[one, two], 8, 3), [is("192.0.2.1", 3, 1), is("198.51.100.1", 3, 1)]);
        let (slow, fast) = (offer(1, "192.0.2.1", 1, false), offer(2, "198.51.100.1", 100, true));
        assert_eq!(plan(&[slow, fast], 4, 0), [is("198.51.100.1", 3, 1), is("192.0.2.1", 1, 100)]);
        assert_eq!(plan(&[slow, fast], 8, 0), [is("198.51.100.1", 4, 1), is("192.0.2.1", 1, 100)]);
    }

    #[test]
    fn an_interface_is_used_by_one_of_its_addresses() {
        let offers = [
            offer(1, "2001:db8::1", 10, false),
            offer(1, "192.0.2.9", 10, false),
            offer(1, "192.0.2.1", 10, false),
            offer(2, "2001:db8::2", 10, false),
            offer(2, "198.51.100.1", 10, false),
        ];
        assert_eq!(plan(&offers, 9, 0), [is("192.0.2.1", 1, 1), is("198.51.100.1", 1, 1)]);
    }

    #[test]
    fn what_was_dialled_counts_though_the_server_does_not_know_it() {
        let offers = [offer(3, "10.0.0.1", 10, false)];
        assert_eq!(plan(&offers, 9, 0), [is("192.0.2.1", 1, 1), is("10.0.0.1", 1, 1)]);
        assert_eq!(plan(&[], 9, 2), [is("192.0.2.1", 2, 1)]);
    }

    prop_compose! {
        fn any_offer()(
            index in 0..6u32, speed in any::<u64>(), rss in any::<bool>(), ip in 0..9u8,
        ) -> NetworkInterface {
            let mut offer = offer(index, "192.0.2.1", 1, rss);
            offer.address = IpAddr::from([192, 0, 2, ip]);
            offer.link_speed = speed;
            offer
        }
    }

    proptest! {
        /// Whatever a server tells: bounds are kept, no address twice, none that cannot be used,
        /// and no interface has a second channel while one has none.
        #[test]
        fn plans_keep_their_bounds(
            offers in prop::collection::vec(any_offer(), 0..12),
            most in 0..20usize,
            per_interface in 0..5u16,
            refused in 0..9u8,
        ) {
            let refused = IpAddr::from([192, 0, 2, refused]);
            let dialled = "192.0.2.1".parse().unwrap();
            let bounds = Bounds { most, per_interface };
            let found = targets(&offers, dialled, bounds, |ip| ip != refused);
            prop_assert!(found.iter().map(|t| t.count).sum::<usize>() <= most);
            let per = if per_interface == 0 { usize::from(SPREAD) } else { per_interface.into() };
            for (at, target) in found.iter().enumerate() {
                prop_assert!(target.address != refused && (1..=per).contains(&target.count));
                prop_assert!(target.weight >= 1);
                prop_assert!(found[..at].iter().all(|t| t.address != target.address));
            }
            if found.iter().any(|t| t.count > 1) {
                let all = Bounds { most: 1000, ..bounds };
                prop_assert_eq!(found.len(), targets(&offers, dialled, all, |ip| ip != refused).len());
            }
        }
    }
}

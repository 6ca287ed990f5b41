//! Delays after failed log-ins: who fails is not heard for a while, longer each time. Nothing is kept
//! waiting for that; the answer says when to come back.

use std::{
    collections::HashMap,
    hash::Hash,
    net::{IpAddr, Ipv6Addr},
    time::{Duration, Instant},
};

/// Failures that cost nothing: a person mistypes.
const FREE: u32 = 3;

/// The first delay.
const FIRST: Duration = Duration::from_millis(500);

/// The longest delay of an address.
const LONGEST: Duration = Duration::from_secs(120);

/// The longest delay of a user: shorter, for strangers can cause it.
const LONGEST_OF_USER: Duration = Duration::from_secs(8);

/// After so long without a failure all is forgotten.
const FORGOTTEN: Duration = Duration::from_secs(15 * 60);

/// Addresses and users that are remembered.
const MOST: usize = 8192;

#[derive(Debug, Clone, Copy)]
struct Failures {
    count: u32,
    last: Instant,
}

impl Failures {
    /// Until when nothing is heard.
    fn until(self, longest: Duration) -> Instant {
        let Some(step) = self.count.checked_sub(FREE + 1) else { return self.last };
        self.last + FIRST.saturating_mul(1 << step.min(16)).min(longest)
    }
}

/// Who has failed lately.
#[derive(Debug, Default)]
pub(crate) struct Patience {
    addresses: HashMap<IpAddr, Failures>,
    users: HashMap<String, Failures>,
    /// All failures since the start.
    count: u64,
}

/// The network of one client: what one has of IPv6 is a /64.
pub(crate) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)))
        }
        other => other,
    }
}

fn note<K: Eq + Hash + Clone>(all: &mut HashMap<K, Failures>, key: K, now: Instant) {
    if all.len() >= MOST && !all.contains_key(&key) {
        all.retain(|_, failures| now.duration_since(failures.last) < FORGOTTEN);
        // Still full: who failed longest ago is forgotten.
        let oldest = all.iter().min_by_key(|(_, failures)| failures.last);
        if all.len() >= MOST
            && let Some(oldest) = oldest.map(|(key, _)| key.clone())
        {
            all.remove(&oldest);
        }
    }
    let failures = all.entry(key).or_insert(Failures { count: 0, last: now });
    if now.duration_since(failures.last) >= FORGOTTEN {
        failures.count = 0;
    }
    *failures = Failures { count: failures.count.saturating_add(1), last: now };
}

impl Patience {
    /// How long it is until somebody at an address, as this user, is heard; `None` if that is now.
    pub(crate) fn delay(
        &self,
        address: Option<IpAddr>,
        user: Option<&str>,
        now: Instant,
    ) -> Option<Duration> {
        let address = address.and_then(|address| self.addresses.get(&network(address)));
        let user = user.and_then(|user| self.users.get(user));
        let until =
            address.map(|it| it.until(LONGEST)).max(user.map(|it| it.until(LONGEST_OF_USER)));
        until.and_then(|until| until.checked_duration_since(now)).filter(|left| !left.is_zero())
    }

    /// Failures since the start.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// Somebody failed.
    pub(crate) fn failed(&mut self, address: Option<IpAddr>, user: Option<&str>, now: Instant) {
        self.count += 1;
        if let Some(address) = address {
            note(&mut self.addresses, network(address), now);
        }
        if let Some(user) = user {
            note(&mut self.users, user.to_owned(), now);
        }
    }

    /// A user has shown the right password. The address stays known: it may be many people's.
    pub(crate) fn succeeded(&mut self, user: &str) {
        self.users.remove(user);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_in_that_fails_a_thousand_times_gets_slower() {
        let (mut patience, mut now) = (Patience::default(), Instant::now());
        let start = now;
        let address = Some("192.0.2.1".parse().unwrap());
        let mut delays = Vec::new();
        for _ in 0..1000 {
            let delay = patience.delay(address, Some("alice"), now).unwrap_or_default();
            delays.push(delay);
            now += delay;
            patience.failed(address, Some("alice"), now);
        }
        assert_eq!(delays[..4], [Duration::ZERO; 4], "a person may mistype");
        assert!(delays.is_sorted() && delays[999] == LONGEST);
        assert!(now - start > Duration::from_secs(100_000), "a thousand guesses take a day");
    }

    #[test]
    fn a_user_is_not_locked_out_by_strangers_for_long() {
        let (mut patience, now) = (Patience::default(), Instant::now());
        let at = |n: u8| Some(IpAddr::from([192, 0, 2, n]));
        (0..200).for_each(|n| patience.failed(at(n), Some("alice"), now));
        assert_eq!(patience.delay(at(250), Some("alice"), now), Some(LONGEST_OF_USER));
        assert_eq!(patience.delay(at(250), Some("bob"), now), None);
        patience.succeeded("alice");
        assert_eq!(patience.delay(at(250), Some("alice"), now), None);
        assert_eq!(patience.delay(at(1), None, now + FORGOTTEN), None);
    }

    #[test]
    fn a_network_of_ipv6_is_one_and_memory_is_bounded() {
        let (mut patience, now) = (Patience::default(), Instant::now());
        for n in 0..20_000u128 {
            let address = IpAddr::V6(Ipv6Addr::from_bits((0x2001_0db8 << 96) + n));
            patience.failed(Some(address), Some(&n.to_string()), now);
        }
        assert_eq!(patience.addresses.len(), 1);
        assert_eq!(patience.users.len(), MOST);
        let mapped: IpAddr = "::ffff:192.0.2.1".parse().unwrap();
        assert_eq!(network(mapped), "192.0.2.1".parse::<IpAddr>().unwrap());
    }
}

//! Failed logons are slow: of one address, and of one user wherever they come from.
//!
//! ```text
//!  failure ─► address: one each STEP, BURST at once   ─┐
//!         └─► user: one each USER_STEP, USER_BURST    ─┴► the refusal goes out that much later
//!  attempt ─► more than BACKLOG of the address behind? the password is not looked at
//! ```
//!
//! A right password is never delayed by what others do elsewhere: a user whose name is guessed at
//! from a thousand addresses logs on at once from another. At an address that is far behind only users
//! get in who did so before from there. Time is given, so there is no clock here, and nobody waits
//! here: who asks is told how long.

use std::{
    collections::HashMap,
    hash::Hash,
    net::{IpAddr, Ipv6Addr},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// Failures of an address before any is delayed.
const BURST: u32 = 16;
/// The same of a user, of all addresses together, and how far apart the others are then.
const USER_BURST: u32 = 64;
const USER_STEP: Duration = Duration::from_millis(100);
/// Most that a refusal is delayed for the user's sake.
const USER_MOST: Duration = Duration::from_secs(5);
/// How far an address may be behind before its passwords are not looked at any more.
const BACKLOG: Duration = Duration::from_secs(8);
/// Addresses, users, and users at their addresses that are remembered. What finds no room shares
/// one place with all others of its kind.
const REMEMBERED: usize = 16_384;
/// How long a user is known at an address after a logon.
const KNOWN: Duration = Duration::from_secs(24 * 3600);

/// A network of one client: an address of IPv4, or the 64 bits of IPv6 that a site hands out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Network(IpAddr);

impl From<IpAddr> for Network {
    fn from(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V6(address) => {
                let site = u128::from(address) & !u128::from(u64::MAX);
                IpAddr::V6(Ipv6Addr::from(site))
            }
            four => four,
        })
    }
}

/// What is remembered under a name until a time.
#[derive(Debug)]
struct Until<K> {
    times: HashMap<K, Instant>,
    /// For all that have no place of their own.
    others: Option<Instant>,
    swept: Option<Instant>,
}

impl<K> Default for Until<K> {
    fn default() -> Self {
        Self { times: HashMap::new(), others: None, swept: None }
    }
}

impl<K: Hash + Eq> Until<K> {
    fn get(&self, key: &K) -> Option<Instant> {
        self.times.get(key).copied().or_else(|| self.others.filter(|_| self.is_full()))
    }

    fn is_full(&self) -> bool {
        self.times.len() >= REMEMBERED
    }

    fn set(&mut self, key: K, until: Instant, now: Instant) {
        if self.is_full() && !self.times.contains_key(&key) {
            // Looking through all of them takes long enough not to be done for every stranger.
            if self.swept.is_none_or(|swept| now >= swept + Duration::from_secs(1)) {
                self.swept = Some(now);
                self.times.retain(|_, until| *until > now);
            }
            if self.is_full() {
                self.others = self.others.max(Some(until));
                return;
            }
        }
        self.times.insert(key, until);
    }
}

#[derive(Debug, Default)]
struct Memory {
    /// When the failures of an address would be over, one each step.
    addresses: Until<Network>,
    users: Until<String>,
    known: Until<(Network, String)>,
}

/// Failed logons of the server.
#[derive(Debug, Default)]
pub struct Logons(Mutex<Memory>);

impl Logons {
    /// Whether the password that somebody at an address gives for a user is looked at.
    pub fn may_try(&self, from: Network, user: &str, step: Duration, now: Instant) -> bool {
        let memory = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let behind = behind(memory.addresses.get(&from), now, step, BURST);
        let known = || memory.known.times.get(&(from, user.to_owned()));
        behind <= BACKLOG || known().is_some_and(|until| *until > now)
    }

    /// A logon has failed, of a user if it came so far; how long its refusal is to wait.
    pub fn failed(
        &self,
        from: Network,
        user: Option<&str>,
        step: Duration,
        now: Instant,
    ) -> Duration {
        let mut memory = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let over = memory.addresses.get(&from).unwrap_or(now).max(now) + step;
        // More is of no use: nothing is looked at beyond.
        let over = over.min(now + BACKLOG + step * (BURST + 1));
        memory.addresses.set(from, over, now);
        let mut wait = behind(Some(over), now, step, BURST);
        if let Some(user) = user {
            let over = memory.users.get(&user.to_owned()).unwrap_or(now).max(now) + USER_STEP;
            let over = over.min(now + USER_MOST + USER_STEP * USER_BURST);
            memory.users.set(user.to_owned(), over, now);
            wait = wait.max(behind(Some(over), now, USER_STEP, USER_BURST));
            // Whoever fails is not known there for it any more.
            memory.known.times.remove(&(from, user.to_owned()));
        }
        wait
    }

    /// A user has logged on.
    pub fn succeeded(&self, from: Network, user: &str, now: Instant) {
        let mut memory = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        memory.known.set((from, user.to_owned()), now + KNOWN, now);
    }
}

/// How far behind somebody is of whom `burst` failures are free.
fn behind(over: Option<Instant>, now: Instant, step: Duration, burst: u32) -> Duration {
    let over = over.map_or(Duration::ZERO, |over| over.saturating_duration_since(now));
    over.saturating_sub(step * burst)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Duration = Duration::from_millis(500);

    fn network(text: &str) -> Network {
        text.parse::<IpAddr>().unwrap().into()
    }

    /// A guesser with as many connections as it likes: as soon as one is let through, the next.
    #[test]
    fn ten_thousand_wrong_passwords_take_longer_than_an_hour() {
        let (logons, begin) = (Logons::default(), Instant::now());
        let from = network("192.0.2.1");
        let (mut now, mut tried, mut dropped) = (begin, 0, 0u32);
        while tried < 10_000 {
            if logons.may_try(from, "ADMIN", STEP, now) {
                tried += 1;
                assert!(logons.failed(from, Some("ADMIN"), STEP, now) <= BACKLOG + STEP * 2);
            } else {
                dropped += 1;
                now += Duration::from_millis(50);
            }
        }
        assert!(now - begin > Duration::from_secs(3600), "{:?}", now - begin);
        assert!(dropped > 0);
        // The user gets in elsewhere, at once.
        assert!(logons.may_try(network("192.0.2.2"), "ADMIN", STEP, now));
        // And here after a while.
        assert!(!logons.may_try(from, "OTHER", STEP, now));
        assert!(logons.may_try(from, "OTHER", STEP, now + Duration::from_secs(60)));
    }

    #[test]
    fn who_was_there_before_gets_in_beside_a_guesser() {
        let (logons, now) = (Logons::default(), Instant::now());
        let from = network("192.0.2.1");
        logons.succeeded(from, "HONEST", now);
        while logons.may_try(from, "ADMIN", STEP, now) {
            logons.failed(from, Some("ADMIN"), STEP, now);
        }
        assert!(logons.may_try(from, "HONEST", STEP, now));
        // One guess at that user, and no more.
        logons.failed(from, Some("HONEST"), STEP, now);
        assert!(!logons.may_try(from, "HONEST", STEP, now));
    }

    #[test]
    fn the_first_failures_are_answered_at_once_and_the_next_ever_later() {
        let (logons, now) = (Logons::default(), Instant::now());
        let from = network("192.0.2.1");
        let mut waits = (0..20).map(|_| logons.failed(from, None, STEP, now));
        assert!(waits.by_ref().take(BURST as usize).all(|wait| wait.is_zero()));
        assert_eq!(waits.collect::<Vec<_>>(), [STEP, STEP * 2, STEP * 3, STEP * 4]);
    }

    #[test]
    fn a_user_who_is_guessed_at_from_everywhere_is_slow_for_the_guessers_alone() {
        let (logons, now) = (Logons::default(), Instant::now());
        let mut last = Duration::ZERO;
        for n in 0..1000u32 {
            let from = IpAddr::V4((0x0a00_0000 + n).into()).into();
            last = logons.failed(from, Some("ADMIN"), STEP, now);
        }
        assert_eq!(last, USER_MOST);
        let elsewhere = network("192.0.2.9");
        assert!(logons.may_try(elsewhere, "ADMIN", STEP, now));
        assert!(logons.failed(elsewhere, Some("OTHER"), STEP, now).is_zero());
    }

    #[test]
    fn addresses_of_one_site_are_one() {
        assert_eq!(network("2001:db8::1"), network("2001:db8::ffff:1:2:3"));
        assert_ne!(network("2001:db8::1"), network("2001:db8:0:1::1"));
        assert_eq!(network("::ffff:192.0.2.1"), network("192.0.2.1"));
        assert_ne!(network("192.0.2.1"), network("192.0.2.2"));
    }

    #[test]
    fn memory_is_bounded_and_no_refuge() {
        let (logons, now) = (Logons::default(), Instant::now());
        for n in 0..3 * REMEMBERED as u32 {
            let from = IpAddr::V4((0x0a00_0000 + n).into()).into();
            logons.failed(from, Some(&n.to_string()), STEP, now);
            logons.succeeded(from, &n.to_string(), now);
        }
        let memory = logons.0.lock().unwrap();
        let held =
            [memory.addresses.times.len(), memory.users.times.len(), memory.known.times.len()];
        assert_eq!(held, [REMEMBERED; 3]);
        drop(memory);
        // Who came too late shares one place.
        assert!(!logons.may_try(network("198.51.100.1"), "X", STEP, now));
        let later = now + Duration::from_secs(120);
        assert!(logons.may_try(network("198.51.100.1"), "X", STEP, later));
        logons.failed(network("198.51.100.1"), None, STEP, later);
        assert_eq!(logons.0.lock().unwrap().addresses.times.len(), 1);
    }
}

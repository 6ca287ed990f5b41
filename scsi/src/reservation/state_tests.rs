use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn who(n: usize) -> Who {
    Who { initiator: format!("iqn.2020-01.example:{n},i,0x00").into(), port: 1 }
}

/// Reservations as four numbers and a holder: written from the tables of the standard, by keys of
/// nexuses instead of lists.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Model {
    keys: BTreeMap<usize, u64>,
    held: Option<(Kind, usize)>,
    generation: u32,
}

impl Model {
    fn holds(&self, n: usize) -> bool {
        self.held.is_some_and(|(kind, holder)| {
            if kind.all_registrants() { self.keys.contains_key(&n) } else { holder == n }
        })
    }

    /// Whether the request ends well.
    fn apply(&mut self, n: usize, request: &Request) -> bool {
        let own = self.keys.get(&n).copied();
        match request {
            Request::Register { key, new, ignore, .. } => {
                if !ignore && own.unwrap_or(0) != *key {
                    return false;
                }
                match (own, new) {
                    (None, 0) => return true,
                    (Some(_), 0) => self.remove(n),
                    _ => {
                        self.keys.insert(n, *new);
                    }
                }
                self.generation += 1;
                true
            }
            Request::Reserve { key, kind } => {
                if own != Some(*key) {
                    return false;
                }
                match self.held {
                    None => self.held = Some((*kind, n)),
                    Some((current, _)) => return current == *kind && self.holds(n),
                }
                true
            }
            Request::Release { key, kind } => {
                if own != Some(*key) {
                    return false;
                }
                if self.holds(n) {
                    if self.held.is_some_and(|(current, _)| current as u8 != *kind) {
                        return false;
                    }
                    self.held = None;
                }
                true
            }
            Request::Clear { key } => {
                if own != Some(*key) {
                    return false;
                }
                *self = Self { generation: self.generation + 1, ..Self::default() };
                true
            }
            Request::Preempt { key, victim, kind, .. } => {
                own == Some(*key) && self.preempt(n, *victim, *kind)
            }
            Request::Move { key, new, unregister, to, .. } => {
                let to = (0..4).find(|m| who(*m) == *to).expect("one of four");
                let single = self.held.is_some_and(|(kind, _)| !kind.all_registrants());
                if own != Some(*key) || *new == 0 || to == n || !single || !self.holds(n) {
                    return false;
                }
                self.keys.insert(to, *new);
                self.held = self.held.map(|(kind, _)| (kind, to));
                if *unregister {
                    self.keys.remove(&n);
                }
                self.generation += 1;
                true
            }
        }
    }

    fn remove(&mut self, n: usize) {
        let held = self.holds(n);
        self.keys.remove(&n);
        if held
            && self.held.is_some_and(|(kind, _)| !kind.all_registrants() || self.keys.is_empty())
        {
            self.held = None;
        }
    }

    fn preempt(&mut self, n: usize, victim: u64, kind: Option<Kind>) -> bool {
        match self.held {
            Some((current, _)) if current.all_registrants() && victim == 0 => {
                let Some(kind) = kind else { return false };
                self.keys.retain(|m, _| *m == n);
                self.held = Some((kind, n));
            }
            Some((current, holder))
                if !current.all_registrants() && victim != 0 && self.keys[&holder] == victim =>
            {
                let Some(kind) = kind else { return false };
                self.keys.retain(|m, key| *m == n || *key != victim);
                self.held = Some((kind, n));
            }
            _ => {
                if victim == 0 || !self.keys.values().any(|key| *key == victim) {
                    return false;
                }
                self.keys.retain(|_, key| *key != victim);
                if self.keys.is_empty() {
                    self.held = None;
                }
            }
        }
        self.generation += 1;
        true
    }

    fn allows(&self, n: usize, access: Access) -> bool {
        use Kind as K;
        let Some((kind, _)) = self.held else { return true };
        let registered = self.keys.contains_key(&n);
        self.holds(n)
            || match (kind, access) {
                (_, Access::Free) => true,
                (K::WriteExclusive, Access::Read) => true,
                (K::WriteExclusive | K::ExclusiveAccess, _) => false,
                (K::WriteExclusiveRegistrants | K::WriteExclusiveAll, Access::Read) => true,
                _ => registered,
            }
    }
}

fn request() -> impl Strategy<Value = Request> {
    let key = || 0..4u64;
    let kind = || proptest::sample::select(Kind::ALL.to_vec());
    prop_oneof![
        4 => (key(), key(), any::<bool>(), any::<bool>()).prop_map(|(key, new, ignore, persist)| {
            Request::Register { key, new, ignore, persist, others: Vec::new() }
        }),
        4 => (key(), kind()).prop_map(|(key, kind)| Request::Reserve { key, kind }),
        2 => (key(), kind()).prop_map(|(key, kind)| Request::Release { key, kind: kind as u8 }),
        1 => key().prop_map(|key| Request::Clear { key }),
        4 => (key(), key(), proptest::option::weighted(0.9, kind()), any::<bool>()).prop_map(
            |(key, victim, kind, abort)| Request::Preempt { key, victim, kind, abort }
        ),
        2 => (key(), key(), any::<bool>(), 0..4usize).prop_map(|(key, new, unregister, to)| {
            Request::Move { key, new, unregister, persist: false, to: who(to) }
        }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn four_nexuses_see_what_the_tables_of_the_standard_say(
        steps in proptest::collection::vec((0..4usize, request()), 1..60)
    ) {
        let (mut state, mut model) = (State::default(), Model::default());
        for (n, request) in steps {
            let before = state.clone();
            let done = state.apply(&who(n), &request);
            prop_assert_eq!(done.is_ok(), model.apply(n, &request), "{:?} of {}", request, n);
            if let Ok(effects) = &done {
                prop_assert!(effects.tell.iter().all(|(it, _)| *it != who(n)), "told itself");
            } else {
                prop_assert_eq!(&state, &before);
            }
            prop_assert_eq!(state.generation, model.generation);
            prop_assert_eq!(state.registrations.len(), model.keys.len());
            for n in 0..4 {
                prop_assert_eq!(state.key_of(&who(n)), model.keys.get(&n).copied());
                prop_assert_eq!(state.holds(&who(n)), model.holds(n));
                for access in [Access::Free, Access::Read, Access::Write] {
                    prop_assert_eq!(
                        state.allows(&who(n), access),
                        model.allows(n, access),
                        "{:?} of {}", access, n
                    );
                }
            }
        }
    }
}

#[test]
fn registrations_have_a_bound() {
    let mut state = State::default();
    let register =
        Request::Register { key: 0, new: 1, ignore: true, persist: false, others: Vec::new() };
    for n in 0..MAX_REGISTRATIONS {
        state.apply(&who(n), &register).expect("room");
    }
    let full = Refusal::illegal(asc::REGISTRATION_RESOURCES);
    assert_eq!(state.apply(&who(MAX_REGISTRATIONS), &register), Err(full));
}

#[test]
fn the_end_of_a_reservation_is_told_to_registrants_it_served() {
    let mut state = State::default();
    for n in 0..3 {
        let new = n as u64 + 1;
        let register =
            Request::Register { key: 0, new, ignore: false, persist: false, others: Vec::new() };
        state.apply(&who(n), &register).expect("registered");
    }
    let kind = Kind::WriteExclusiveRegistrants;
    state.apply(&who(0), &Request::Reserve { key: 1, kind }).expect("reserved");
    let preempt =
        Request::Preempt { key: 2, victim: 1, kind: Some(Kind::ExclusiveAccess), abort: true };
    let effects = state.apply(&who(1), &preempt).expect("taken over");
    assert!(effects.fence);
    assert_eq!(
        effects.tell,
        [(who(0), asc::REGISTRATIONS_PREEMPTED), (who(2), asc::RESERVATIONS_RELEASED)]
    );
}

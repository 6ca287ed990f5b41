//! What is granted, broken and acknowledged, in examples and in any order.

use proptest::prelude::*;

use super::*;
use crate::users::Users;

const RWH: LeaseState = LeaseState(7);
const RH: LeaseState = LeaseState(3);

fn lease(client: u8) -> LeaseId {
    let user = Users::default().get("U").id;
    let client = ClientId { guid: [client; 16], user };
    LeaseId { client, key: [1; 16] }
}

fn want(client: u8, state: LeaseState) -> CachingRequest {
    CachingRequest::Lease { id: lease(client), state, v2: Some((None, 0)) }
}

fn break_all(caching: &mut Caching, cause: BreakReason, open: u64) -> (Vec<Break>, bool) {
    let mut breaks = Vec::new();
    let wait = caching.break_for(cause, (open, None), |_, _| true, Instant::now(), &mut breaks);
    (breaks, wait.is_some())
}

#[test]
fn an_open_takes_write_caching_and_waits_for_it() {
    let mut caching = Caching::default();
    assert_eq!(caching.acquire(1, want(1, RWH), false, false, false), RWH);
    let (breaks, waits) = break_all(&mut caching, BreakReason::Open, 2);
    assert!(waits && breaks.len() == 1 && breaks[0].acknowledge);
    assert_eq!((breaks[0].from, breaks[0].to, breaks[0].epoch), (RWH, RH, 2));
    let (breaks, waits) = break_all(&mut caching, BreakReason::Open, 3);
    assert!(waits && breaks.is_empty(), "it was told once");
    assert_eq!(caching.acknowledge(GrantOwner::Lease(lease(1)), RWH), Err(AckError::TooMuch));
    assert!(caching.awaits(GrantOwner::Lease(lease(1)), RH));
    assert_eq!(caching.acknowledge(GrantOwner::Lease(lease(1)), RH), Ok(RH));
    assert!(!caching.awaits(GrantOwner::Lease(lease(1)), RH));
    assert_eq!(caching.acknowledge(GrantOwner::Lease(lease(1)), RH), Err(AckError::NotBreaking));
    assert!(!break_all(&mut caching, BreakReason::Open, 2).1);
    assert_eq!(caching.acquire(2, want(2, RWH), false, true, false), RH);
}

#[test]
fn who_is_away_is_told_later_and_keeps_what_it_has_until_then() {
    let mut caching = Caching::default();
    caching.acquire(1, want(1, RWH), false, false, false);
    let now = Instant::now();
    assert!(break_all(&mut caching, BreakReason::Open, 2).1);
    for _ in 0..2 {
        caching.tell_later(1, now);
    }
    let view = caching.lease(1).unwrap();
    assert_eq!((view.state, view.breaking, view.v2), (RWH, false, Some((None, 1))));
    // Nobody has seen what it has not written back: the next server asks again.
    assert_eq!(caching.held(1).unwrap(), CachingRecord { state: 7, v2: Some((None, 1)) });
    let mut breaks = Vec::new();
    let later = now + BREAK_TIME * 2;
    let who = (3, None);
    assert!(caching.break_for(BreakReason::Open, who, |_, _| true, later, &mut breaks).is_some());
    assert!(breaks.is_empty());
    let due = caching.tell_now(1, later).unwrap();
    assert_eq!((due.from, due.to, due.epoch, due.acknowledge), (RWH, RH, 2, true));
    assert!(caching.tell_now(1, later).is_none(), "it was told");
    assert_eq!(caching.acknowledge(GrantOwner::Lease(lease(1)), RH), Ok(RH));
    // What others did not wait for is remembered as done.
    assert!(!break_all(&mut caching, BreakReason::Overwrite, 2).1);
    caching.tell_later(1, now);
    assert_eq!(caching.held(1).unwrap(), CachingRecord { state: 0, v2: Some((None, 3)) });
}

#[test]
fn numbers_of_a_lease_go_on_from_the_later_of_both() {
    for (state, asked, epoch) in [
        (R, 100, 101),
        (RWH.without(H), 100, 100),
        (R, 1, 1),
        (R, 0, 1),
        (RH, 100, 1),
        (R, 0x9000, 1),
    ] {
        let mut caching = Caching::default();
        caching.acquire(1, want(1, state), false, false, false);
        caching.take_epoch(1, asked);
        assert_eq!(caching.lease(1).unwrap().v2, Some((None, epoch)), "{state:?} {asked}");
    }
}

#[test]
fn who_does_not_answer_loses_everything() {
    let mut caching = Caching::default();
    caching.acquire(1, CachingRequest::Oplock(OplockLevel::BATCH), false, false, false);
    let now = Instant::now();
    let mut breaks = Vec::new();
    let who = (2, None);
    let until = caching.break_for(BreakReason::Open, who, |_, _| true, now, &mut breaks).unwrap();
    assert_eq!(caching.break_for(BreakReason::Open, who, |_, _| true, until, &mut breaks), None);
    assert_eq!(caching.state(1), (NOTHING, false));
    assert!(caching.is_empty());
}

#[test]
fn more_that_is_asked_meanwhile_follows_in_steps() {
    let mut caching = Caching::default();
    caching.acquire(1, want(1, RWH), false, false, false);
    let holder = GrantOwner::Lease(lease(1));
    assert!(break_all(&mut caching, BreakReason::Open, 2).1);
    assert!(break_all(&mut caching, BreakReason::Overwrite, 3).1);
    let mut told = Vec::new();
    let mut state = RH;
    while caching.acknowledge(holder, state).is_ok() {
        let Some(due) = caching.next_break(holder, Instant::now()) else { break };
        told.push((due.from, due.to, due.acknowledge));
        state = due.to;
    }
    assert_eq!(told, [(RH, R, true), (R, NOTHING, false)]);
}

#[test]
fn a_write_takes_level_ii_from_its_own_open_too() {
    let mut caching = Caching::default();
    let two = CachingRequest::Oplock(OplockLevel::II);
    assert_eq!(caching.acquire(1, two, false, false, false), R);
    assert_eq!(caching.acquire(2, two, false, true, false), R);
    let (breaks, waits) = break_all(&mut caching, BreakReason::Change, 1);
    assert!(!waits && breaks.len() == 2 && breaks.iter().all(|b| !b.acknowledge));
    assert!(caching.is_empty());
}

#[derive(Debug, Clone)]
enum Step {
    Acquire(u8, u32),
    Oplock(u8),
    Break(u8, u64),
    Acknowledge(u8),
    Leave(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0u8..3, 0u32..8).prop_map(|(client, state)| Step::Acquire(client, state)),
        (0u8..3).prop_map(Step::Oplock),
        (0u8..7, 0u64..8).prop_map(|(cause, open)| Step::Break(cause, open)),
        (0u8..8).prop_map(Step::Acknowledge),
        (0u64..12).prop_map(Step::Leave),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    /// Whoever may cache writes is alone, and what is broken gets less, never more.
    #[test]
    fn writers_are_alone(steps in prop::collection::vec(step(), 1..60)) {
        let mut caching = Caching::default();
        let mut next = 100;
        for step in steps {
            let before: Vec<_> = caching.holds.iter().map(|h| (h.holder, h.state)).collect();
            match step {
                Step::Acquire(client, state) => {
                    next += 1;
                    let others = caching.holds.iter()
                        .any(|h| h.holder != GrantOwner::Lease(lease(client)));
                    caching.acquire(next, want(client, LeaseState(state)), false, others, false);
                }
                Step::Oplock(level) => {
                    next += 1;
                    let level = [OplockLevel::II, OplockLevel::EXCLUSIVE, OplockLevel::BATCH]
                        [usize::from(level)];
                    let others = !caching.is_empty();
                    caching.acquire(next, CachingRequest::Oplock(level), false, others, false);
                }
                Step::Break(cause, open) => {
                    let cause = [BreakReason::Open, BreakReason::Overwrite, BreakReason::Sharing, BreakReason::Change,
                        BreakReason::Rename, BreakReason::Delete, BreakReason::Security][usize::from(cause)];
                    let (breaks, _) = break_all(&mut caching, cause, open);
                    for due in breaks {
                        prop_assert!(due.to.without(due.from) == NOTHING && due.to != due.from);
                    }
                    for (holder, state) in before {
                        let now = caching.holds.iter().find(|h| h.holder == holder);
                        let now = now.map_or(NOTHING, |h| h.state);
                        prop_assert_eq!(now.without(state), NOTHING);
                    }
                }
                Step::Acknowledge(which) => {
                    let hold = caching.holds.get(usize::from(which));
                    let due = hold.and_then(|h| Some((h.holder, h.breaking.as_ref()?.to)));
                    if let Some((holder, to)) = due {
                        prop_assert_eq!(caching.acknowledge(holder, to), Ok(to));
                        caching.next_break(holder, Instant::now());
                    }
                }
                Step::Leave(which) => {
                    caching.leave(101 + which);
                }
            }
            let writers = caching.holds.iter().filter(|h| h.state.any(W)).count();
            let holders = caching.holds.iter().filter(|h| h.state != NOTHING).count();
            prop_assert!(writers == 0 || holders == 1, "{:?}", caching);
        }
    }
}

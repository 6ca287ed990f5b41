//! Thousands of histories of one move between two hosts. A seed makes each: which messages are lost or
//! late, how long a sync takes and whether it fails, when either host loses power and how long it is
//! away, how far its clock is off, whether the disks can be opened. At no moment does the guest run
//! on both, or do the records of neither have it; and when the trouble is over it runs on one, of
//! which the other knows nothing, and nothing is left of the move.

mod world;

use super::rules::{Rule, break_one};
use world::World;

/// Histories that are played by default; `BULKHEAD_MOVE_HISTORIES` asks for another number.
const HISTORIES: u64 = 10_000;

fn play(seed: u64) -> Result<bool, String> {
    World::new(seed).play().map_err(|what| format!("BULKHEAD_SEED={seed}: {what}"))
}

/// Plays a history that must go well; whether the guest has moved.
fn history(seed: u64) -> bool {
    play(seed).unwrap_or_else(|what| panic!("{what}"))
}

fn asked(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().and_then(|text| text.parse().ok())
}

#[test]
fn exactly_one_host_runs_the_guest_whatever_breaks() {
    if let Some(seed) = asked("BULKHEAD_SEED") {
        history(seed);
        return;
    }
    let count = asked("BULKHEAD_MOVE_HISTORIES").unwrap_or(HISTORIES);
    let moved: u64 = (0..count).map(|seed| u64::from(history(seed))).sum();
    // Trouble that lets no move through, or leaves each alone, shows nothing.
    assert!(moved > count / 5 && moved < count * 4 / 5, "{moved} of {count} moved");
}

/// A simulation that does not notice is none.
#[test]
fn each_rule_is_needed() {
    for rule in [
        Rule::RecordFirst,
        Rule::GivenByRecord,
        Rule::NoWayBack,
        Rule::DeleteFirst,
        Rule::VerdictFirst,
        Rule::NeverByItself,
        Rule::RefuseFirst,
        Rule::SettleFirst,
        Rule::ForgetLast,
        Rule::ForgetByTheSource,
        Rule::RecoverByVerdict,
        Rule::LaterRun,
    ] {
        break_one(Some(rule));
        let found = (0..HISTORIES).find(|seed| play(*seed).is_err());
        break_one(None);
        assert!(found.is_some(), "nobody notices that {rule:?} is broken");
    }
}

//! Thousands of histories of several nodes over a model of etcd. A seed makes each: which messages
//! are lost, late or doubled, which node is cut off, frozen, killed or drained, how its clock runs,
//! when etcd has no leader and when it has two. At every moment at most one node may change what a
//! role serves, and none that served it before another took it over.

mod etcd;
mod world;

use crate::{
    engine::Fence,
    rules::{Rule, break_one},
};
use world::{Trouble, World};

fn histories() -> u64 {
    let asked = std::env::var("BULKHEAD_CLUSTER_HISTORIES").ok();
    asked.and_then(|count| count.parse().ok()).unwrap_or(400)
}

/// Plays a history; what is wrong with it.
fn play(seed: u64, fence: Fence, trouble: Trouble) -> Result<(), String> {
    World::new(seed, fence, trouble).play().map_err(|what| format!("seed {seed}: {what}"))
}

fn all(fence: Fence, trouble: Trouble) {
    for seed in 0..histories() {
        play(seed, fence, trouble).unwrap();
    }
}

#[test]
fn two_nodes_never_serve_a_role_at_once() {
    all(Fence::Gate, Trouble::Usual);
}

#[test]
fn nor_when_silence_counts_before_the_lease_is_over() {
    all(Fence::Gate, Trouble::Silence);
}

#[test]
fn nor_when_a_leader_answers_who_is_none_any_more() {
    all(Fence::Gate, Trouble::TwoLeaders);
}

#[test]
fn nor_with_agents_when_a_node_stands_still_with_its_clock() {
    all(Fence::Agent, Trouble::StoppedClocks);
}

/// A simulation that does not notice is none.
#[test]
fn each_rule_is_needed() {
    for (rule, fence, trouble) in [
        (Rule::FromAsking, Fence::Gate, Trouble::Usual),
        (Rule::Margin, Fence::Gate, Trouble::Usual),
        (Rule::SameTerm, Fence::Gate, Trouble::TwoLeaders),
        (Rule::StopWhenIsolated, Fence::Gate, Trouble::Usual),
        (Rule::StopFirst, Fence::Gate, Trouble::Usual),
        (Rule::OnlyTheDead, Fence::Gate, Trouble::Usual),
        (Rule::AsItWas, Fence::Gate, Trouble::Usual),
        (Rule::FromAsking, Fence::Gate, Trouble::Silence),
        (Rule::Margin, Fence::Gate, Trouble::Silence),
        (Rule::StillSilent, Fence::Gate, Trouble::Silence),
        (Rule::FenceFirst, Fence::Agent, Trouble::StoppedClocks),
    ] {
        break_one(Some(rule));
        let found = (0..20_000).find(|seed| play(*seed, fence, trouble).is_err());
        break_one(None);
        assert!(found.is_some(), "nobody notices that {rule:?} is broken");
    }
}

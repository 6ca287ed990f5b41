//! Faults by a seed, one after the other and two at once, while clients write: no error, nothing lost.
//!
//! `BULKHEAD_CLUSTER_FAULTS` says how many, `BULKHEAD_CLUSTER_SEED` which; what clients waited at each is
//! written as JSON to the file of `BULKHEAD_CLUSTER_JSON`.

use std::{collections::BTreeMap, env, fs, time::Duration};

use bulkhead_tests::cluster::{
    Nodes, Setup,
    faults::Fault,
    network::in_a_network_of_its_own,
    writer::{Writer, options},
};

/// So many faults when nobody says how many.
const FAULTS: u64 = 12;
/// One costs ten seconds at most, with all that is mended after it.
const LIMIT: Duration = Duration::from_secs(20);

fn number(name: &str, default: u64) -> u64 {
    env::var(name).ok().map_or(default, |text| text.parse().expect("a number"))
}

/// Xorshift: the same faults for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, most: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % most
    }

    fn fault(&mut self) -> Fault {
        Fault::ALL[self.below(Fault::ALL.len() as u64) as usize]
    }
}

#[test]
fn nothing_is_lost_by_faults_one_after_the_other_and_two_at_once() {
    let name = "nothing_is_lost_by_faults_one_after_the_other_and_two_at_once";
    let (faults, seed) =
        (number("BULKHEAD_CLUSTER_FAULTS", FAULTS), number("BULKHEAD_CLUSTER_SEED", 2027));
    if !in_a_network_of_its_own(name, LIMIT * u32::try_from(faults + 6).expect("not so many")) {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let pauses = runtime.block_on(soak(faults, seed));
    println!("seed {seed}: {pauses:?}");
    if let Some(path) = env::var_os("BULKHEAD_CLUSTER_JSON") {
        let json = serde_json::json!({ "seed": seed, "faults": faults, "pauses_ms": pauses });
        fs::write(path, format!("{json:#}\n")).unwrap();
    }
}

async fn soak(faults: u64, seed: u64) -> BTreeMap<&'static str, Vec<u64>> {
    let fence = "fence = \"gate\"\nsilence_milliseconds = 1000".to_owned();
    let setup = Setup { nodes: 3, members: 3, networks: true, fence, ..Setup::default() };
    let mut nodes = Nodes::start(&setup).unwrap();
    nodes.wait_until_served(0);
    nodes.wait_for_members(3);
    let writer = Writer::start(options(&nodes), "disk").await;
    writer.goes_on().await;
    let mut random = Random(seed | 1);
    let mut pauses: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
    for n in 0..faults {
        let fault = random.fault();
        writer.longest_pause();
        let broken = nodes.suffer(fault);
        // Etcd loses its leader at the same time, now and then.
        let leader = !fault.is_of_etcd() && random.below(4) == 0;
        let leader = leader.then(|| nodes.etcd.wait_for_leader());
        if let Some(leader) = leader {
            nodes.etcd.kill(leader);
        }
        println!(
            "{n}: {fault}{}",
            if leader.is_some() { ", and etcd's leader is killed" } else { "" }
        );
        nodes.wait_over(&broken);
        writer.goes_on().await;
        let pause = u64::try_from(writer.longest_pause().as_millis()).unwrap();
        let kind = if leader.is_some() { "two-at-once" } else { fault.name() };
        pauses.entry(kind).or_default().push(pause);
        if let Some(leader) = leader {
            nodes.etcd.restart(leader);
            nodes.etcd.wait_for_leader();
        }
        nodes.mend(broken);
        writer.goes_on().await;
    }
    assert!(writer.end(&nodes.files()).await > 0);
    pauses.values_mut().for_each(|pauses| pauses.sort_unstable());
    pauses
}

//! Clients, servers and the network between them in one thread, in any order that a seed makes:
//! frames wait, connections are lost while some of what was sent is still on its way, servers are
//! killed and started again. What comes out is held against a model of the files.
//!
//! ```text
//!  client ─► queue ─► server's exchange ─► I/O under way ─► queue ─► client
//!     ▲        └────────────── each arrow is a step; the seed chooses which is next ──┘
//!     └── loses a connection: repeats on another with the next channel sequence, or logs on
//!         again and takes its opens up
//! ```
//!
//! The model: a file is its client's alone from its CREATE to its CLOSE; a block has the value of
//! its last acknowledged write; a lock is there from its answer to that of its release; a lease is
//! what it was when its open is taken up again; a file that is to be deleted on close is deleted
//! then, and not another that has got its name; nothing of an encrypted session is seen on the network
//! in the clear, and no nonce twice ([`watch`]). The server is the real one on real files. The
//! clients are of this test: they keep the rules of MS-SMB2 3.2. Each rule can be broken
//! ([`rules`]) to see that the model notices.
//!
//! `BULKHEAD_SEED=n` runs that history alone and tells its steps.

mod client;
mod frames;
mod real;
mod rules;
mod store;
mod watch;
mod world;

use self::{
    rules::Broken,
    world::{House, World},
};

/// What a step comes to: nothing, or what is not as the model says.
type Checked = Result<(), String>;

/// SplitMix64.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % sides as u64) as usize
    }
}

/// Runs one history.
fn history(house: &House, seed: u64, broken: Broken, tell: bool) -> Checked {
    let mut world = World::new(house, seed, broken, tell);
    let result = world.run();
    world.server.open_files.persistent_opens.kill();
    // A process that ends lets go of all that it has locked.
    world.server.open_files.claim_nothing();
    let _inside = house.runtime.enter();
    world.wires.clear();
    world.server.open_files.disconnected.clear();
    for client in &world.clients {
        let name = client.name.split(':').next().unwrap_or_default();
        let _ = std::fs::remove_file(house.file(name));
    }
    result
}

fn histories(seeds: std::ops::Range<u64>) {
    let house = House::new();
    if let Some(seed) = std::env::var("BULKHEAD_SEED").ok().and_then(|seed| seed.parse().ok()) {
        if let Err(why) = history(&house, seed, Broken::Nothing, true) {
            panic!("seed {seed}: {why}");
        }
        return;
    }
    for seed in seeds {
        if let Err(why) = history(&house, seed, Broken::Nothing, false) {
            panic!("BULKHEAD_SEED={seed}: {why}");
        }
    }
}

#[test]
fn histories_are_as_the_model_says_1() {
    histories(0..2500);
}

#[test]
fn histories_are_as_the_model_says_2() {
    histories(2500..5000);
}

#[test]
fn histories_are_as_the_model_says_3() {
    histories(5000..7500);
}

#[test]
fn histories_are_as_the_model_says_4() {
    histories(7500..10_000);
}

//! The same with the real client: `smb-client` with its channels, keep-alives, persistent handles
//! and replay, over pipes instead of sockets, against the real server.
//!
//! ```text
//!  program ─► smb-client ─► pipe ══ bytes on their way ══► Transport ─► exchange ─► I/O under way
//!     │          ▲ its own runtime, whose clock moves only   ▲          │
//!     ▼          │ when the seed says so                     └── each arrow is a step ──┘
//!   model        └── cut after any byte, deaf or mute, a server killed and started again
//! ```
//!
//! The clients run in a runtime of one thread with a clock that stands still; it goes on for as
//! long as a step says, and all that the clients can do until then they do, in an order that is
//! always the same; programs are slow now and then to see what has come. The server works between
//! such steps, outside of that runtime: what it has given to its blocking threads is waited for
//! one by one, in the order of the dice, so these threads change neither time nor order. With the
//! power of its machine goes what was not made durable, block by block ([`volume::faults`]).
//!
//! The model is that of one register for each block ([`model`]): reads may overlap with a write, and
//! what is read must be explained by some order of them. A folder of each client is made, renamed
//! and deleted, each of it once. On a continuously available share no request may fail, and what was
//! acknowledged is on the disk whatever happens. On another
//! an open may be lost with the server, and with the power what was not flushed: what the client
//! then says must be so.
//!
//! `BULKHEAD_SEED=n` runs that history alone and tells its steps, `n..m` runs these.

mod client;
mod model;
mod network;
mod world;

use self::world::World;
use super::{Broken, Checked, world::House};

/// Runs one history; gives what came of it and a digest of all that happened.
pub(super) fn history(house: &House, seed: u64, broken: Broken, tell: bool) -> (Checked, u64) {
    let mut world = World::new(house, seed, broken, tell);
    let result = world.run(broken);
    let trace = world.trace;
    world.clean();
    (result, trace)
}

fn histories(seeds: std::ops::Range<u64>) {
    let house = House::new();
    if let Ok(asked) = std::env::var("BULKHEAD_SEED") {
        let (first, last) = asked.split_once("..").unwrap_or((&asked, ""));
        let first: u64 = first.parse().expect("a number, or two with .. between");
        let seeds = first..last.parse().unwrap_or(first + 1);
        let tell = last.is_empty();
        for seed in seeds {
            if let (Err(why), _) = history(&house, seed, Broken::Nothing, tell) {
                panic!("seed {seed}: {why}");
            }
        }
        return;
    }
    for seed in seeds {
        if let (Err(why), _) = history(&house, seed, Broken::Nothing, false) {
            panic!("BULKHEAD_SEED={seed}: {why}");
        }
    }
}

#[test]
fn histories_of_the_real_client_are_as_the_model_says() {
    histories(0..5000);
}

/// A seed is a history: the same one each time.
#[test]
fn a_history_can_be_repeated() {
    let house = House::new();
    for seed in 0..20 {
        let first = history(&house, seed, Broken::Nothing, false).1;
        assert_eq!(first, history(&house, seed, Broken::Nothing, false).1, "seed {seed}");
    }
}

//! Verdicts that nobody has asked to be forgotten: a host was killed, or a connection was lost, before
//! the last word of a move. The host that has them asks the sources.
//!
//! ```text
//!  Query ──► source:  never            nothing there speaks of the move: the verdict goes
//!                     given, waiting   it is still to ask for it: later
//!                     no answer        later
//! ```

use std::{collections::HashSet, io, sync::Arc, time::Duration};

use vmm::platform::error::chain;

use super::arrive::{ask_source, forget_verdict};
use crate::{handover::Standing, host::Host};

/// The first pause between two times that sources are asked; each is twice the one before, up to
/// [`LONGEST`].
const FIRST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(300);

/// Clears away what is left over, for ever: what was there when the host began, and then whenever
/// something may have been left.
pub fn clear(host: &Arc<Host>) {
    let mut pause = FIRST;
    while !host.is_shutting_down() {
        let left = pass(host).unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot look for moves that are over");
            true
        });
        if host.leftover.wait(left.then_some(pause)) {
            pause = FIRST;
        } else {
            pause = (pause * 2).min(LONGEST);
        }
    }
}

/// Asks the source of each verdict once; whether some are left.
fn pass(host: &Arc<Host>) -> io::Result<bool> {
    let mut silent = HashSet::new();
    let mut left = false;
    for (id, source) in host.store.verdicts()? {
        // One that is under way ends with its own last word.
        if host.arrivals.get(&id).is_some() || silent.contains(&source) {
            left = true;
            continue;
        }
        match ask_source(host, &source, &id) {
            Ok(Standing::Never) => {
                if let Err(error) = forget_verdict(host, &id) {
                    tracing::warn!(id = id.as_str(), error = chain(&error), "a verdict is left");
                    left = true;
                    continue;
                }
                tracing::info!(id = id.as_str(), source, "a move is over for its source, too");
            }
            Ok(Standing::Given | Standing::Waiting) => left = true,
            Err(error) => {
                tracing::debug!(source, error = chain(&error), "asking a source of moves");
                silent.insert(source);
                left = true;
            }
        }
    }
    Ok(left)
}

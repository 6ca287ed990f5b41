//! File systems of a guest that stand still for a moment, and never longer: whoever has them frozen
//! thaws them by letting go of a value, on every way out.

use std::{
    sync::{Arc, atomic::Ordering},
    thread,
    time::Duration,
};

use serde_json::json;
use vmm::devices::port::PortError;

use super::{Agent, AgentError, FREEZE};

/// How long an agent has to thaw file systems that it froze.
const THAW: Duration = Duration::from_secs(10);
/// Pauses between attempts to thaw what did not thaw at once.
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(30);

/// File systems that are frozen until this is dropped.
#[derive(Debug)]
#[must_use = "the file systems thaw when it is dropped"]
pub struct Frozen {
    agent: Arc<Agent>,
    /// How many file systems are frozen.
    pub count: u64,
}

impl Agent {
    /// Freezes all file systems of the guest: what programs have written is on its disks, and nothing is
    /// written until they thaw.
    ///
    /// # Errors
    /// [`AgentError`] if they are not all frozen. Those that may be are thawed again.
    pub fn freeze(self: &Arc<Self>) -> Result<Frozen, AgentError> {
        // Nobody hears the question, so nothing comes of it.
        if !self.is_there() {
            return Err(PortError::Closed.into());
        }
        if self.frozen.swap(true, Ordering::AcqRel) {
            return Err(AgentError::Busy);
        }
        // From here on it thaws, whatever happens: an answer that is late or wrong, or lost with a
        // panic, says nothing about what the agent did.
        let mut frozen = Frozen { agent: self.clone(), count: 0 };
        frozen.count = self.ask("guest-fsfreeze-freeze", json!({}), FREEZE)?;
        let state: String = self.ask("guest-fsfreeze-status", json!({}), super::SOON)?;
        if state != "frozen" {
            let why = "it says that nothing is frozen".to_owned();
            return Err(AgentError::Refused { command: "guest-fsfreeze-freeze", why });
        }
        Ok(frozen)
    }

    /// Thaws what an earlier daemon has frozen and did not come to thaw.
    pub fn thaw_what_was_left(self: &Arc<Self>) {
        if !self.is_there() {
            return;
        }
        let state = self.ask::<String>("guest-fsfreeze-status", json!({}), super::SOON);
        if state.is_ok_and(|state| state == "frozen") && !self.frozen.swap(true, Ordering::AcqRel) {
            tracing::warn!("file systems that an earlier daemon has frozen are thawed");
            drop(Frozen { agent: self.clone(), count: 0 });
        }
    }

    /// Thaws what is frozen. It is done when the agent says so in its answer or when it is asked.
    fn thaw(&self) -> Result<(), AgentError> {
        let thawed = self.ask::<u64>("guest-fsfreeze-thaw", json!({}), THAW).map(drop);
        let thawed = thawed.or_else(|error| {
            let state = self.ask::<String>("guest-fsfreeze-status", json!({}), super::SOON);
            if state.is_ok_and(|state| state == "thawed") { Ok(()) } else { Err(error) }
        });
        if thawed.is_ok() {
            self.frozen.store(false, Ordering::Release);
        }
        thawed
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let Err(error) = self.agent.thaw() else { return };
        tracing::error!(%error, "a guest's file systems are not thawed yet, it is tried again");
        let agent = self.agent.clone();
        let again = thread::Builder::new().name("thaw".into()).spawn(move || {
            let mut pause = SHORTEST;
            // An agent that is gone may be started again; a machine that is gone has nothing frozen.
            while !agent.port.has_ended() {
                thread::sleep(pause);
                pause = (pause * 2).min(LONGEST);
                if agent.thaw().is_ok() {
                    tracing::info!("a guest's file systems are thawed");
                    return;
                }
            }
        });
        if let Err(error) = again {
            tracing::error!(%error, "a guest's file systems may stay frozen");
        }
    }
}

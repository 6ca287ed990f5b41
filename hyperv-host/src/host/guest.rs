//! What a host does by the agents of its guests: it asks what they are, has them power off, holds their
//! file systems still, and sets their clocks right.

use std::{
    net::IpAddr,
    sync::{Arc, MutexGuard},
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use host_api::{AgentState, Consistency, GuestAgent, GuestInterface, VmName, VmState};
use vmm::devices::port::PortError;

use super::{Host, HostError, machine::Managed, spawn};
use crate::{
    agent::{
        Agent, AgentError, Frozen,
        answers::{Interface, shown},
    },
    worker::machine::Machine,
};

/// A guest's clock may be so far from its host's.
const TOLERANCE: Duration = Duration::from_secs(1);
/// Pauses between attempts to look at a guest's clock.
const CLOCK_PAUSES: [Duration; 4] = [
    Duration::from_secs(2),
    Duration::from_secs(5),
    Duration::from_secs(15),
    Duration::from_secs(30),
];
/// Most interfaces of a guest that are told of, and most addresses of each.
const INTERFACES: usize = 64;
const ADDRESSES: usize = 32;

/// A VM that is held quiet, until this is dropped.
#[derive(Debug)]
pub struct Quiet<'a> {
    // First, so that it thaws before anything else may be done with the VM.
    frozen: Result<Frozen, String>,
    _operation: MutexGuard<'a, ()>,
}

impl Quiet<'_> {
    /// What a copy of its disks is worth that is made now, and why it is not worth more.
    pub fn consistency(&self) -> (Consistency, Option<String>) {
        match &self.frozen {
            Ok(_) => (Consistency::Application, None),
            Err(why) => (Consistency::Crash, Some(why.clone())),
        }
    }
}

impl Managed {
    /// Holds a running VM quiet: its guest's file systems are frozen if its agent can do that. It is not
    /// moved, and nothing else is done with it, as long as the result lives.
    ///
    /// # Errors
    /// [`HostError::State`] if it does not run, [`HostError::Busy`]. A guest that does not freeze is no
    /// error: the result says what it is worth.
    pub fn quiesce(&self) -> Result<Quiet<'_>, HostError> {
        let operation = self.try_operate()?;
        let state = self.state();
        if state != VmState::Running {
            return Err(HostError::State { name: self.name().clone(), state });
        }
        let frozen = match self.agent() {
            Some(agent) => agent.freeze().map_err(|error| error.to_string()),
            None => Err("the VM has no machine".to_owned()),
        };
        match &frozen {
            Ok(frozen) => tracing::info!(vm = %self.name(), count = frozen.count, "frozen"),
            Err(why) => tracing::warn!(vm = %self.name(), why, "not frozen"),
        }
        Ok(Quiet { frozen, _operation: operation })
    }
}

impl Host {
    /// Asks a guest to power off: by its agent, or else by the power button.
    pub(super) fn ask_to_stop(&self, name: &VmName, agent: Option<&Agent>, vm: &Machine) {
        let by_agent = agent.filter(|agent| agent.is_there() && !agent.is_frozen());
        match by_agent.map(Agent::shut_down) {
            Some(Ok(())) => {}
            Some(Err(error)) => {
                tracing::info!(vm = %name, %error, "the power button is pressed instead");
                vm.press_power_button();
            }
            None => vm.press_power_button(),
        }
    }

    /// Sets a guest's clock right that stood still, or has come from another host, in the background.
    pub(crate) fn correct_clock(&self, managed: &Arc<Managed>) {
        let Some(agent) = managed.agent().filter(|agent| agent.is_there()) else { return };
        let name = managed.name().clone();
        spawn(format!("{name}/clock"), move || {
            // A guest that has just come, or woken up, has other things to do.
            let mut pauses = CLOCK_PAUSES.iter();
            loop {
                let error = match correct_clock(&agent) {
                    Ok(None) => return,
                    Ok(Some(ahead)) => {
                        tracing::info!(vm = %name, ahead, "the guest's clock is set, seconds");
                        return;
                    }
                    Err(error) => error,
                };
                match pauses.next() {
                    Some(pause) if agent.is_there() => thread::sleep(*pause),
                    _ => {
                        tracing::info!(vm = %name, %error, "the guest's clock is not looked at");
                        return;
                    }
                }
            }
        });
    }
}

/// Sets a guest's clock if it is wrong; how many seconds it was ahead of the host's.
fn correct_clock(agent: &Agent) -> Result<Option<i64>, AgentError> {
    let now = || {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
    };
    let ahead = agent.time()?.saturating_sub(now());
    if u128::from(ahead.unsigned_abs()) <= TOLERANCE.as_nanos() {
        return Ok(None);
    }
    agent.set_time(now())?;
    Ok(Some(ahead / 1_000_000_000))
}

/// What the agent of a guest tells, if there is one.
pub(super) fn look(agent: &Agent) -> Option<GuestAgent> {
    if agent.is_frozen() {
        return Some(GuestAgent { state: AgentState::Frozen, ..GuestAgent::default() });
    }
    if !agent.is_there() {
        return None;
    }
    let info = match agent.info() {
        Ok(info) => info,
        Err(AgentError::Port(PortError::Closed)) => return None,
        Err(error) => {
            let busy = error == AgentError::Busy;
            let state = if busy { AgentState::Busy } else { AgentState::Silent };
            let reason = Some(error.to_string());
            return Some(GuestAgent { state, reason, ..GuestAgent::default() });
        }
    };
    // One that does not tell this, or no longer, has told the rest.
    let os = agent.os().unwrap_or_default();
    let interfaces = agent.interfaces().unwrap_or_default();
    Some(GuestAgent {
        state: AgentState::Running,
        reason: None,
        version: Some(shown(&info.version)),
        os: os.pretty_name.or(os.name).as_deref().map(shown),
        kernel: os.kernel_release.as_deref().map(shown),
        interfaces: interfaces.into_iter().filter_map(interface).take(INTERFACES).collect(),
    })
}

/// An interface as it is told of; addresses that are none are left out.
fn interface(found: Interface) -> Option<GuestInterface> {
    let addresses = found.ip_addresses.iter().take(ADDRESSES);
    let addresses: Vec<IpAddr> =
        addresses.filter_map(|address| address.ip_address.parse().ok()).collect();
    if addresses.first().is_some_and(IpAddr::is_loopback) {
        return None;
    }
    Some(GuestInterface {
        name: shown(&found.name),
        mac: found.hardware_address.as_deref().map(shown),
        addresses: addresses.iter().map(IpAddr::to_string).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::answers::Address;

    #[test]
    fn what_is_no_address_is_not_told() {
        let with = |texts: &[&str]| Interface {
            name: "eth0\n".to_owned(),
            hardware_address: None,
            ip_addresses: texts
                .iter()
                .map(|text| Address { ip_address: (*text).to_owned() })
                .collect(),
        };
        let told = interface(with(&["10.0.0.1", "\u{1b}[2J", "fe80::1"])).unwrap();
        assert_eq!(told.name, "eth0");
        assert_eq!(told.addresses, ["10.0.0.1", "fe80::1"]);
        assert_eq!(interface(with(&["127.0.0.1"])), None);
        assert!(interface(with(&["::2"; 1000])).unwrap().addresses.len() <= ADDRESSES);
    }
}

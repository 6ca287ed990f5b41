//! VMs whose guests did not reset their watchdog in time: what their definition says is done by the
//! machine, and their host tells of it.

use std::time::Duration;

use host_api::{VmName, VmState};
use vmm::devices::watchdog::Standing;

use super::{Host, HostError, machine::Managed};
use crate::worker::machine::Machine;

/// How long a machine may take to run on.
const LIMIT: Duration = Duration::from_secs(5);

impl Host {
    /// Has what can be looked at say how a machine's watchdog stands, and tells of it if it has expired since
    /// the last look.
    pub(super) fn tell_of_watchdog(&self, managed: &Managed, vm: &Machine, standing: Standing) {
        let told = managed.update(|inner| {
            if !inner.has(vm) {
                return false;
            }
            inner.stands = standing.paused;
            let new = standing.expired > inner.expired;
            inner.expired = standing.expired;
            if new {
                let what = if standing.paused {
                    "the guest is paused; `vm resume` has it run on, `vm stop --force` ends it"
                } else {
                    "the guest goes on"
                };
                inner.reason = Some(format!("its watchdog has expired: {what}"));
            }
            new
        });
        let times = standing.expired;
        // A guest that has it expire again and again is not to fill the log.
        if told && (standing.paused || times.is_power_of_two()) {
            tracing::error!(vm = %managed.name(), times, paused = standing.paused, "its watchdog has expired");
        }
    }

    /// Has a VM run on that is paused because its watchdog has expired.
    ///
    /// # Errors
    /// [`HostError::State`] if it is not, [`HostError::Busy`].
    pub fn resume(&self, name: &VmName) -> Result<(), HostError> {
        let managed = self.find(name)?;
        let _operation = managed.try_operate()?;
        let state = managed.state();
        let (VmState::Paused, Some(vm)) = (state, managed.machine()) else {
            return Err(HostError::State { name: name.clone(), state });
        };
        tracing::info!(vm = %name, "let run on by the operator");
        managed.update(|inner| inner.reason = None);
        vm.release_watchdog()?;
        if managed.wait(LIMIT, |inner| !inner.stands) {
            self.correct_clock(&managed);
            return Ok(());
        }
        Err(HostError::Busy(name.clone()))
    }
}

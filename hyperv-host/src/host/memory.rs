//! The limit on the memory of all machines of a host.

use host_api::VmState;

use super::{Host, HostError};
use vmm::platform::bus::lock;

/// Memory that is kept for a machine until it counts by itself, or does not come to be.
#[derive(Debug)]
pub struct Reserved<'a> {
    host: &'a Host,
    mib: u64,
}

impl Host {
    /// Keeps `mib` of memory for a machine that is about to be made. Machines that are made at the
    /// same time, as after a start of the host, do not pass the limit together.
    ///
    /// # Errors
    /// [`HostError::Limit`].
    pub fn reserve_memory(&self, mib: u64) -> Result<Reserved<'_>, HostError> {
        let limit = self.config.limits.memory_mib;
        let mut reserved = lock(&self.reserved_mib);
        if limit != 0 && self.memory_in_use() + *reserved + mib > limit {
            return Err(HostError::Limit("memory_mib"));
        }
        *reserved += mib;
        Ok(Reserved { host: self, mib })
    }

    /// Memory of all machines in MiB.
    fn memory_in_use(&self) -> u64 {
        let vms = lock(&self.vms);
        vms.values()
            .filter(|managed| !matches!(managed.state(), VmState::Off | VmState::Failed))
            .map(|managed| managed.definition.memory_mib)
            .sum()
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        *lock(&self.host.reserved_mib) -= self.mib;
    }
}

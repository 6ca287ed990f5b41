//! The memory of machines: the limit on all of a host, and what a balloon leaves a guest with.

use host_api::{VmName, VmState};
use vmm::platform::bus::lock;

use super::{Host, HostError};

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
        // What others are about to take is not taken yet.
        if !self.config.limits.overcommit
            && let Some(free) = free_mib().or_else(|| self.unused_mib())
            && *reserved + mib > free
        {
            return Err(HostError::NoMemory { mib, free: free.saturating_sub(*reserved) });
        }
        *reserved += mib;
        Ok(Reserved { host: self, mib })
    }

    /// Has the guest of a running VM go along with so many MiB, which it does by and by.
    ///
    /// # Errors
    /// [`HostError::NoBalloon`], [`HostError::Memory`], [`HostError::State`], [`HostError::Busy`].
    pub fn set_memory(&self, name: &VmName, mib: u64) -> Result<(), HostError> {
        let managed = self.find(name)?;
        let _operation = managed.try_operate()?;
        let state = managed.state();
        let (VmState::Running, Some(vm)) = (state, managed.machine()) else {
            return Err(HostError::State { name: name.clone(), state });
        };
        if vm.definition().minimum_mib.is_none() {
            return Err(HostError::NoBalloon(name.clone()));
        }
        // The minimum may have been changed since it started.
        let least = managed.definition().minimum_mib.or(vm.definition().minimum_mib).unwrap_or(0);
        let most = vm.definition().memory_mib;
        if !(least..=most).contains(&mib) {
            return Err(HostError::Memory { name: name.clone(), mib, least, most });
        }
        tracing::info!(vm = %name, mib, "its guest is to go along with so much memory");
        vm.want_memory(mib << 20)?;
        Ok(())
    }

    /// MiB of the host's memory that no machine has, where nobody says what is free (a service may not see
    /// `/proc/meminfo`).
    fn unused_mib(&self) -> Option<u64> {
        let info = rustix::system::sysinfo();
        let total = info.totalram.checked_mul(info.mem_unit.into())? >> 20;
        Some(total.saturating_sub(self.memory_in_use()))
    }

    /// Memory of all machines in MiB.
    fn memory_in_use(&self) -> u64 {
        let vms = lock(&self.vms);
        vms.values()
            .filter(|managed| !matches!(managed.state(), VmState::Off | VmState::Failed))
            .map(|managed| match managed.machine() {
                Some(vm) => vm.definition().memory_mib,
                None => managed.definition().memory_mib,
            })
            .sum()
    }
}

/// MiB of memory that can be had without swapping, as the kernel estimates it (proc(5), `MemAvailable`);
/// `None` where it does not.
fn free_mib() -> Option<u64> {
    available(&std::fs::read_to_string("/proc/meminfo").ok()?)
}

fn available(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib >> 10)
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        *lock(&self.host.reserved_mib) -= self.mib;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_says_of_memory_is_understood() {
        let text = "MemTotal:       65536000 kB\nMemAvailable:   10485760 kB\nBuffers: 1 kB\n";
        assert_eq!(available(text), Some(10240));
        assert_eq!(available("MemTotal: 1 kB\n"), None);
        assert_eq!(available("MemAvailable: many\n"), None);
        assert!(free_mib().is_some_and(|mib| mib > 0));
    }
}

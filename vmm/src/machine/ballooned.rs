//! How much of its memory a machine has the host's, and how much its balloon keeps from it.

use super::Vm;
use crate::{
    devices::virtio::balloon::Balloon,
    platform::{bus::lock, memory},
};

impl Vm {
    /// Its balloon, if its definition has one.
    pub fn balloon(&self) -> Option<&Balloon> {
        self.balloon.as_deref()
    }

    /// Wants the guest to go along with so many bytes of its memory, which it does by and by, if it has a
    /// balloon and a driver for it.
    pub fn want_memory(&self, bytes: u64) {
        let all = self.definition.memory_mib << 20;
        // Its function is the last one.
        if let (Some(balloon), Some(function)) = (&self.balloon, self.virtio.last())
            && balloon.set_target(all.saturating_sub(bytes))
        {
            lock(function).config_changed();
        }
    }

    /// Bytes of the host's memory that the guest's takes.
    pub fn resident(&self) -> u64 {
        memory::resident(&self.ram)
    }
}

//! One command on its way through a logical unit.

use std::sync::Arc;

use bytes::Bytes;

use crate::{Nexus, cdb::Access, refusal::Done, reservation::Who, target::Target, unit::Unit};

/// A command with all that its handlers need.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Call<'a> {
    pub target: &'a Arc<Target>,
    pub unit: &'a Arc<Unit>,
    pub nexus: &'a Nexus,
    pub data_out: &'a Bytes,
}

impl Who {
    /// The ports of a nexus.
    pub(crate) fn of(nexus: &Nexus) -> Self {
        Self { initiator: Arc::clone(&nexus.initiator), port: nexus.port }
    }
}

impl Call<'_> {
    /// As much of a parameter list of `length` bytes as came.
    pub(crate) fn list(&self, length: u32) -> &[u8] {
        &self.data_out[..self.data_out.len().min(length as usize)]
    }

    /// What a reservation said when the command came still holds: a command that waited must not
    /// land after PREEMPT AND ABORT answered that it will not.
    ///
    /// # Errors
    /// RESERVATION CONFLICT.
    pub(crate) fn still_allowed(&self, access: Access) -> Done {
        self.unit.reservations.check(self.nexus, access)
    }
}

//! Context handles of a pipe: what a client opened in lsarpc and samr.

use std::collections::BTreeMap;

use dce_rpc::{FaultStatus, ndr::Handle};

/// Handles of one pipe at a time.
const MOST: usize = 256;

/// What a handle stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Object {
    /// The policy (lsarpc).
    Policy,
    /// The accounts of the server (samr).
    Accounts,
    /// The server's own domain (samr).
    Machine,
    /// The domain of what is built in (samr).
    Builtin,
    /// A user by number (samr).
    User(u32),
}

/// The handles that are open.
#[derive(Debug, Default)]
pub struct Handles {
    open: BTreeMap<u64, Object>,
    next: u64,
}

impl Handles {
    /// Gives an object a context handle.
    pub fn add(&mut self, object: Object) -> Result<Handle, FaultStatus> {
        if self.open.len() >= MOST {
            return Err(FaultStatus::OUT_OF_MEMORY);
        }
        self.next += 1;
        self.open.insert(self.next, object);
        let mut bytes = [0; 20];
        bytes[4..12].copy_from_slice(&self.next.to_le_bytes());
        bytes[12..].copy_from_slice(b"bulkhead");
        Ok(Handle(bytes))
    }

    fn key(handle: &Handle) -> u64 {
        let mut number = [0; 8];
        number.copy_from_slice(&handle.0[4..12]);
        u64::from_le_bytes(number)
    }

    /// What one stands for.
    pub fn get(&self, handle: &Handle) -> Result<&Object, FaultStatus> {
        self.open.get(&Self::key(handle)).ok_or(FaultStatus::CONTEXT_MISMATCH)
    }

    /// Closes a handle; its object is gone.
    pub fn close(&mut self, handle: &Handle) -> Result<(), FaultStatus> {
        self.open.remove(&Self::key(handle)).map(|_| ()).ok_or(FaultStatus::CONTEXT_MISMATCH)
    }
}

//! Byte-range locks of an open, which count for its user.

use std::sync::PoisonError;

use smb_protocol::NtStatus;

use super::Open;
use crate::sharing::locks::Range;

impl Open {
    /// Takes a byte-range lock if nothing forbids it; whether it was taken.
    ///
    /// # Errors
    /// `INSUFFICIENT_RESOURCES` where the file, the user or the server has too many.
    pub fn lock_range(&self, range: Range, exclusive: bool) -> Result<bool, NtStatus> {
        let mut counted = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        let held = counted.amount();
        if !counted.resize(held + 1) {
            return Err(NtStatus::INSUFFICIENT_RESOURCES);
        }
        let taken = self.file.lock_range(self.opener_id(), range, exclusive);
        if taken != Ok(true) {
            counted.resize(held);
        }
        taken
    }

    /// Takes a lock that was granted by a server that has ended; whether it was to be had.
    pub(super) fn lock_again(&self, range: Range, exclusive: bool) -> bool {
        let taken = self.file.lock_range(self.opener_id(), range, exclusive) == Ok(true);
        if taken {
            let mut counted = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
            counted.add(1);
        }
        taken
    }

    /// Releases a lock; whether there was one.
    pub fn unlock_range(&self, range: Range) -> bool {
        let mut counted = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        let released = self.file.unlock_range(self.opener_id(), range);
        if released {
            let held = counted.amount();
            counted.resize(held.saturating_sub(1));
        }
        released
    }
}

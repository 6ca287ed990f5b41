//! The one way on which the content of a file becomes durable.

use std::{future::Future, os::fd::BorrowedFd, sync::Arc};

use block_io::File;
use rustix::{fd::AsFd, io::Errno};
use smb_protocol::NtStatus;

use crate::{open::Open, status::of_storage};

impl Open {
    /// Makes durable what was written to its file before this call; several that do so together
    /// share the work. It must be a file that was opened for its content, else nothing is done.
    pub fn make_durable(
        self: &Arc<Self>,
    ) -> impl Future<Output = Result<(), NtStatus>> + Send + use<> {
        let open = self.clone();
        #[cfg(any(test, feature = "testing"))]
        let noted = open.begin_hardening();
        async move {
            let Some(data) = &open.data else { return Ok(()) };
            #[cfg(any(test, feature = "testing"))]
            if !open.hardens() {
                return Ok(());
            }
            data.flush().await.map_err(|error| of_storage(&error))?;
            #[cfg(any(test, feature = "testing"))]
            noted.into_iter().for_each(crate::faults::Hardening::done);
            Ok(())
        }
    }

    /// The same at once, on a thread that may wait, by the call that is given.
    pub fn flush_by(
        &self,
        sync: impl Fn(BorrowedFd<'_>) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        let Some(data) = &self.data else { return Ok(()) };
        #[cfg(any(test, feature = "testing"))]
        if !self.hardens() {
            return Ok(());
        }
        #[cfg(any(test, feature = "testing"))]
        let noted = self.begin_hardening();
        sync(data.as_fd())?;
        #[cfg(any(test, feature = "testing"))]
        noted.into_iter().for_each(crate::faults::Hardening::done);
        Ok(())
    }
}

#[cfg(any(test, feature = "testing"))]
impl Open {
    fn begin_hardening(&self) -> Option<crate::faults::Hardening> {
        self.table().faults.make_durable(self.data.as_ref()?.as_fd())
    }

    /// Whether the rule is kept by which its file is made durable.
    fn hardens(&self) -> bool {
        use crate::faults::Rule;
        let rule = if self.write_through() { Rule::WriteThrough } else { Rule::Flush };
        self.table().faults.keeps(rule)
    }
}

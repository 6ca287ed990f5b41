//! What becomes of a folder is told to those who watch it or have a lease on it.

use std::os::fd::AsFd;

use crate::{
    fs::file_key::key,
    open::table::OpenFileTable,
    sharing::{
        caching::{BreakReason, GrantOwner},
        watches::Change,
    },
};

impl OpenFileTable {
    /// Whether a change must be told to anyone.
    pub fn is_watched(&self) -> bool {
        self.watches.any()
    }

    /// Something in a folder has changed: leases on the folder are broken, those who watch it or
    /// a folder above it are told.
    pub fn changed(&self, change: &Change<'_>) {
        if !self.watches.any() && !self.any_folder_cached() {
            return;
        }
        let Some((folder, name)) = change.path.split() else { return };
        let Ok(stat) =
            change.volume.folder_of(change.path).and_then(|f| rustix::fs::fstat(f.as_fd()))
        else {
            return;
        };
        if let Some(file) = self.get(&stat) {
            // Nobody is waited for: the change has been made.
            // A key alone says whose a lease is, as Windows has it (MS-FSA 2.1.4.12.2, note 211 of
            // MS-SMB2): who knows it could have had the lease.
            let knows = |holder: &GrantOwner, _: &[u64]| match holder {
                GrantOwner::Lease(lease) => change.by != Some(lease.key),
                GrantOwner::Open(_) => true,
            };
            let _ = self.break_where(&file, BreakReason::Change, (0, None), knows);
        }
        if !self.watches.any() {
            return;
        }
        let mut name = name.to_owned();
        if let Some(stream) = change.stream {
            name = format!("{name}:{stream}");
        }
        self.watches.tell(key(&stat), false, &name, change);
        if !self.watches.any_tree(change.filter) {
            return;
        }
        // From the root down, each folder from the one above it: as long as the path, not its square.
        let mut above = Vec::new();
        let Ok(mut at) = rustix::io::fcntl_dupfd_cloexec(change.volume.root(), 0) else { return };
        for part in folder.parts() {
            let Ok(stat) = rustix::fs::fstat(&at) else { return };
            above.push((key(&stat), part));
            let Ok(next) = change.volume.step(at.as_fd(), part) else { return };
            at = next;
        }
        for (key, part) in above.into_iter().rev() {
            name.insert(0, '\\');
            name.insert_str(0, part);
            self.watches.tell(key, true, &name, change);
        }
    }
}

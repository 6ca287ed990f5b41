//! Opening previous versions: the time in a TWrp context (MS-SMB2 3.3.5.9.4) or in an `@GMT`
//! element of the path, and the share as it was then, which nobody changes.

use std::sync::Arc;

use smb_protocol::{
    NtStatus,
    fscc::snapshots::SnapshotTime,
    msg::{
        context::{self, names},
        create::Request,
    },
};
use volume::{fs::volume::Volume, status::of_errno};

use crate::session::Tree;

/// The name without the element that names a time, and the time that is asked for.
///
/// # Errors
/// INVALID_PARAMETER for a malformed context; OBJECT_NAME_NOT_FOUND for a time that can have no
/// snapshot.
pub fn moment(request: &Request<'_>) -> Result<(String, Option<SnapshotTime>), NtStatus> {
    let mut time = None;
    let parts = request.name.split('\\').filter(|part| match part.parse() {
        Ok(found) => {
            time = Some(found);
            false
        }
        Err(_) => true,
    });
    let name = parts.collect::<Vec<_>>().join("\\");
    if let Some(data) = context::find(&request.contexts, names::TWRP) {
        let stamp = data.first_chunk::<8>().ok_or(NtStatus::INVALID_PARAMETER)?;
        let found = SnapshotTime::from_filetime(u64::from_le_bytes(*stamp));
        time = Some(found.ok_or(NtStatus::OBJECT_NAME_NOT_FOUND)?);
    }
    Ok((name, time))
}

/// The tree as it was at a time.
///
/// # Errors
/// OBJECT_NAME_NOT_FOUND if no snapshot was taken then.
pub fn at(tree: &Tree, volume: &Volume, time: SnapshotTime) -> Result<Arc<Tree>, NtStatus> {
    let then = volume.snapshot(time).map_err(of_errno)?.ok_or(NtStatus::OBJECT_NAME_NOT_FOUND)?;
    Ok(Arc::new(Tree { volume: Some(then), ..tree.clone() }))
}

//! The list of previous versions (MS-SMB2 3.3.5.15.1).

use smb_protocol::{NtStatus, fscc::snapshots::encode_list};
use volume::{fs::volume::Found, status::of_errno};

use super::{Call, Ctx, Handled};

/// Least output that the list needs.
const LEAST: usize = 16;

/// Lists the snapshots that hold what is open.
pub fn enumerate(ctx: &Ctx<'_>, call: Call<'_>) -> Handled {
    let room = call.room();
    if room < LEAST {
        return Err(NtStatus::INVALID_PARAMETER.into());
    }
    let volume = ctx.tree()?.volume.clone().ok_or(NtStatus::INVALID_DEVICE_REQUEST)?;
    call.later(room.min(64 << 10), false, move |open| {
        let path = open.path()?;
        let mut times = volume.snapshots().map_err(of_errno)?;
        times.retain(|time| match volume.snapshot(*time) {
            Ok(Some(then)) => path.is_root() || matches!(then.find(&path), Ok(Found::Here { .. })),
            _ => false,
        });
        let mut output = Vec::new();
        encode_list(&times, room, &mut output);
        // An empty list still has the terminator of its array.
        output.resize(output.len().max(LEAST), 0);
        Ok((NtStatus::SUCCESS, output))
    })
}

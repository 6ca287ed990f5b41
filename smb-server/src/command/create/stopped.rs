//! What a CREATE is told whose name leads to or through a reparse point (MS-SMB2 2.2.2.2.1, 3.3.5.9).
//! Nothing here follows one: a client that understands the link asks again with another name.

use smb_protocol::{
    NtStatus,
    fscc::snapshots::SnapshotTime,
    msg::{create::Request, error::SymbolicLink},
};
use volume::fs::{path::behind, reparse::Met};

use crate::{command::Failure, dfs};

/// The refusal; `body` is that of the request, with the name as it was sent, `whole` if that begins
/// with the server's.
pub fn answer(body: &[u8], whole: bool, met: &Met) -> Failure {
    let status = met.status();
    if status != NtStatus::STOPPED_ON_SYMLINK {
        return status.into();
    }
    let name = match Request::parse(body) {
        Ok(request) => request.name,
        Err(error) => return error.into(),
    };
    let name = if whole { dfs::in_share(&name).unwrap_or_default() } else { &name };
    // A moment of the past is no part of the path.
    let left = behind(name, met.depth, |part| part.parse::<SnapshotTime>().is_err());
    let units = left.encode_utf16().count();
    let mut data = Vec::new();
    SymbolicLink {
        unparsed_path_len: u16::try_from(units * 2).unwrap_or(u16::MAX),
        link: met.point.data(),
    }
    .encode(&mut data);
    Failure::Data(status, data)
}

//! What an open's file is called, as it is now.

use std::sync::PoisonError;

use rustix::io::Errno;
use smb_protocol::NtStatus;

use super::Open;
use crate::{
    fs::{
        file_key,
        path::{RelPath, StreamName},
    },
    status::of_errno,
};

impl Open {
    /// Where the file is in its share, as it is now. A file of several names may have lost the one
    /// that its descriptor came by: then it is the one that the opener is known by, for which the file
    /// is locked.
    pub fn path(&self) -> Result<RelPath, NtStatus> {
        match self.volume.path_of(self.handle()) {
            Err(Errno::NOENT) => self.other_name().ok_or(NtStatus::OBJECT_NAME_NOT_FOUND),
            other => other.map_err(of_errno),
        }
    }

    /// The path that the opener is known by, if the file is there.
    fn other_name(&self) -> Option<RelPath> {
        let path = self.known_path()?;
        let named = self.volume.stat_of(&path).ok()?;
        let own = rustix::fs::fstat(self.handle()).ok()?;
        (file_key::key(&named) == file_key::key(&own)).then_some(path)
    }

    pub(super) fn known_path(&self) -> Option<RelPath> {
        self.volume.own(&self.base_file().path(self.opener_id())?)
    }

    /// Where the file is or, if it has no name any more, was: for what is only shown.
    pub fn last_path(&self) -> Result<RelPath, NtStatus> {
        self.path().or_else(|status| self.known_path().ok_or(status))
    }

    /// The name from the root of the share, with the stream's if it is one: `\a\b:stream:$DATA`.
    pub fn full_name(&self) -> Result<String, NtStatus> {
        let mut name = self.last_path()?.to_windows();
        if let Some(stream) = self.stream_name() {
            name = format!("{name}:{}:$DATA", stream.as_str());
        }
        Ok(name)
    }

    /// The stream's name, if it is one.
    pub fn stream_name(&self) -> Option<StreamName> {
        let stream = self.stream.as_ref()?;
        Some(stream.name.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

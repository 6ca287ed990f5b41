//! One open of one file or folder, as a CREATE made it.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use block_io::LocalFile;
use smb_protocol::{
    FileId, NtStatus,
    msg::create::{Access, CreateOptions},
    security::Sid,
};
use tokio::sync::Notify;

use super::{
    RelPath, StreamName, Volume,
    attributes::{self, Facts},
    listing::Listing,
    node::{Node, Nodes},
    security,
};
use crate::status::of_errno;

/// What an open of a named stream has beside one of a file.
#[derive(Debug)]
pub struct StreamOpen {
    /// The stream's name.
    pub name: Mutex<StreamName>,
    /// The file that holds its content, opened without access to it.
    pub file: OwnedFd,
    /// The file that the stream belongs to, joined as the open is to its own node.
    pub base: Arc<Node>,
}

/// One open of one file, folder or named stream.
#[derive(Debug)]
pub struct Open {
    /// How the client names it.
    pub id: FileId,
    /// Access granted.
    pub access: Access,
    /// Options of the create.
    pub options: CreateOptions,
    /// The file with its other openers.
    pub node: Arc<Node>,
    /// The content, when it is a file that was opened for its content.
    pub data: Option<Arc<LocalFile>>,
    /// Names the file; for a stream the file it belongs to.
    pub(super) handle: OwnedFd,
    /// The stream, if it is a named one; `node` and `data` are the stream's own then.
    pub stream: Option<StreamOpen>,
    /// Is a folder.
    pub directory: bool,
    /// Delete the file when this open is closed.
    pub delete_on_close: AtomicBool,
    /// A listing under way.
    pub listing: Mutex<Option<Listing>>,
    /// Behind the last byte read or written; kept because clients ask for it.
    pub position: AtomicU64,
    /// The file was at least this long when this open last looked; it may have been cut since.
    pub known_end: AtomicU64,
    /// Wakes what waits on this open when it is closed.
    pub closed: Arc<Notify>,
    volume: Arc<Volume>,
    nodes: Arc<Nodes>,
}

/// What an [`Open`] is made of.
pub struct Parts {
    /// How the client names it.
    pub id: FileId,
    /// Access granted.
    pub access: Access,
    /// Options of the create.
    pub options: CreateOptions,
    /// The file with its other openers; joined as `id.volatile`.
    pub node: Arc<Node>,
    /// The content.
    pub data: Option<Arc<LocalFile>>,
    /// Names the file.
    pub handle: OwnedFd,
    /// The named stream.
    pub stream: Option<StreamOpen>,
    /// Is a folder.
    pub directory: bool,
    /// Where it is.
    pub volume: Arc<Volume>,
    /// Where `node` is kept.
    pub nodes: Arc<Nodes>,
}

impl Open {
    /// Puts an open together.
    pub fn new(parts: Parts) -> Self {
        let Parts { id, access, options, node, data, handle, stream, directory, volume, nodes } =
            parts;
        Self {
            id,
            access,
            options,
            node,
            data,
            handle,
            stream,
            directory,
            delete_on_close: AtomicBool::new(options.has(CreateOptions::DELETE_ON_CLOSE)),
            listing: Mutex::new(None),
            position: AtomicU64::new(0),
            known_end: AtomicU64::new(0),
            closed: Arc::default(),
            volume,
            nodes,
        }
    }

    /// Names the file for calls that need no content.
    pub fn handle(&self) -> BorrowedFd<'_> {
        self.handle.as_fd()
    }

    /// The handle of a folder, for listings.
    pub fn folder(&self) -> &OwnedFd {
        &self.handle
    }

    /// Where it is.
    pub fn volume(&self) -> &Arc<Volume> {
        &self.volume
    }

    /// Where files that are open are known.
    pub fn nodes(&self) -> &Arc<Nodes> {
        &self.nodes
    }

    /// What the file is now; a stream has its own sizes.
    pub fn facts(&self) -> Result<Facts, NtStatus> {
        let mut facts = attributes::facts(self.handle()).map_err(of_errno)?;
        if let Some(stream) = &self.stream {
            let stat = rustix::fs::fstat(&stream.file).map_err(of_errno)?;
            facts.end_of_file = u64::try_from(stat.st_size).unwrap_or(0);
            facts.allocation_size = u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
            facts.directory = false;
        }
        Ok(facts)
    }

    /// Where the file is in its share, as it is now.
    pub fn path(&self) -> Result<RelPath, NtStatus> {
        self.volume.path_of(self.handle()).map_err(of_errno)
    }

    /// Every right that a token has in the file.
    pub fn rights(&self, sids: &[Sid]) -> Result<Access, NtStatus> {
        let folder = self.volume.folder_of(&self.path()?).map_err(of_errno)?;
        security::access_in(self.handle(), folder.as_fd(), sids).map_err(of_errno)
    }

    /// The name from the root of the share, with the stream's if it is one: `\a\b:stream:$DATA`.
    pub fn full_name(&self) -> Result<String, NtStatus> {
        let mut name = self.path()?.to_windows();
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

    /// The node of the file: that of the file a stream belongs to.
    pub fn base_node(&self) -> &Arc<Node> {
        self.stream.as_ref().map_or(&self.node, |stream| &stream.base)
    }

    fn remove_stream(&self, stream: &StreamOpen) {
        let name = stream.name.lock().unwrap_or_else(PoisonError::into_inner);
        let removed = rustix::fs::fstat(&stream.file)
            .and_then(|stat| self.volume.streams().remove(self.handle(), &name, &stat));
        if let Err(error) = removed {
            tracing::debug!(name = name.as_str(), %error, "could not delete a stream on close");
        }
    }

    fn remove_file(&self, opened: &RelPath) {
        if let Err(error) = self.volume.remove_open(self.handle(), opened) {
            tracing::debug!(%error, "could not delete on close");
        }
    }

    /// Fails unless any of the rights in `any` was granted.
    pub fn need(&self, any: Access) -> Result<(), NtStatus> {
        if self.access.any(any) { Ok(()) } else { Err(NtStatus::ACCESS_DENIED) }
    }

    /// The content, if this is a file opened with one of the rights in `any`.
    pub fn content(&self, any: Access) -> Result<&Arc<LocalFile>, NtStatus> {
        if self.directory {
            return Err(NtStatus::INVALID_DEVICE_REQUEST);
        }
        self.need(any)?;
        self.data.as_ref().ok_or(NtStatus::ACCESS_DENIED)
    }

    /// Whether each write must be durable before its answer.
    pub fn write_through(&self) -> bool {
        self.options.has(CreateOptions::WRITE_THROUGH)
    }
}

impl Drop for Open {
    /// Closing is dropping the last reference: requests in flight hold one.
    fn drop(&mut self) {
        if self.delete_on_close.load(Ordering::Acquire) {
            self.node.set_delete_pending(true);
        }
        match &self.stream {
            None => self.nodes.leave(&self.node, self.id.volatile, |path| self.remove_file(path)),
            Some(stream) => {
                self.nodes.leave(&self.node, self.id.volatile, |_| self.remove_stream(stream));
                self.nodes.leave(&stream.base, self.id.volatile, |path| self.remove_file(path));
            }
        }
    }
}

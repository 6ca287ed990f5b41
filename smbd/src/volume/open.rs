//! One open of one file or folder, as a CREATE made it.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use block_io::LocalFile;
use smb_protocol::{
    FileId, NtStatus,
    msg::create::{Access, CreateOptions},
};
use tokio::sync::Notify;

use super::{
    Volume,
    attributes::{self, Facts},
    listing::Listing,
    node::{Node, Nodes},
};
use crate::status::of_errno;

/// One open of one file or folder.
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
    /// Names the file when `data` does not.
    pub(super) handle: OwnedFd,
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
        let Parts { id, access, options, node, data, handle, directory, volume, nodes } = parts;
        Self {
            id,
            access,
            options,
            node,
            data,
            handle,
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

    /// What the file is now.
    pub fn facts(&self) -> Result<Facts, NtStatus> {
        attributes::facts(self.handle()).map_err(of_errno)
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
        let stat = rustix::fs::fstat(&self.handle);
        self.nodes.leave(&self.node, self.id.volatile, |path| {
            let removed = stat.and_then(|stat| self.volume.remove(path, &stat));
            if let Err(error) = removed {
                tracing::warn!(path = path.to_windows(), %error, "could not delete on close");
            }
        });
    }
}

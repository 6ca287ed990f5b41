//! READ and WRITE whose data are in the client's memory instead of their messages (MS-SMB2 3.3.5.12,
//! 3.3.5.13; MS-SMBD 3.1.4).
//!
//! ```text
//!  READ:  file ─► buffer ─► RemoteMemory::write ─► an answer that says how much there is
//!  WRITE: RemoteMemory::read ─► buffer ─► file ─► the answer
//!                      Channel RDMA_V1_INVALIDATE: the answer takes the token back
//! ```

use std::sync::Arc;

use smb_protocol::{
    Dialect, MessageId, NtStatus,
    msg::rdma::{BufferDescriptor, CHANNEL_NONE, CHANNEL_RDMA_V1, CHANNEL_RDMA_V1_INVALIDATE},
};

use super::Ctx;
use crate::transport::RemoteMemory;

/// Memory of the client that a request names.
#[derive(Debug)]
pub struct Remote {
    memory: Arc<dyn RemoteMemory>,
    buffers: Vec<BufferDescriptor>,
    request: MessageId,
    invalidates: bool,
}

impl Remote {
    /// The memory that a request with this `Channel` field names; `None` if its data are in the
    /// message. `used` says whether the other fields are as they must be then.
    ///
    /// # Errors
    /// INVALID_PARAMETER where the dialect knows no such channel, the connection's transport has no
    /// remote memory, the fields do not say the same, or the descriptors are malformed.
    pub fn of(
        ctx: &Ctx<'_>,
        channel: u32,
        used: bool,
        descriptors: &[u8],
    ) -> Result<Option<Self>, NtStatus> {
        // SMB 2 has no such field: a server does not look at it (2.2.19, 2.2.21).
        if channel == CHANNEL_NONE || !ctx.dialect().is_smb3() {
            return Ok(None);
        }
        let known = match channel {
            CHANNEL_RDMA_V1 => true,
            CHANNEL_RDMA_V1_INVALIDATE => ctx.dialect() != Dialect::SMB_3_0,
            _ => false,
        };
        let memory = ctx.ex.remote_memory.as_ref().filter(|_| known && used);
        let memory = memory.ok_or(NtStatus::INVALID_PARAMETER)?.clone();
        let buffers =
            BufferDescriptor::parse_array(descriptors).map_err(|_| NtStatus::INVALID_PARAMETER)?;
        if buffers.is_empty() {
            return Err(NtStatus::INVALID_PARAMETER);
        }
        let invalidates = channel == CHANNEL_RDMA_V1_INVALIDATE;
        Ok(Some(Self { memory, buffers, request: ctx.header.message_id, invalidates }))
    }

    /// Bytes that it has.
    pub fn len(&self) -> u64 {
        self.buffers.iter().map(|buffer| u64::from(buffer.length)).sum()
    }

    /// Whether its first buffer has no bytes.
    pub fn begins_empty(&self) -> bool {
        self.buffers.first().is_none_or(|buffer| buffer.length == 0)
    }

    /// Puts `data` there.
    ///
    /// # Errors
    /// BUFFER_TOO_SMALL if there is no room for them, else that the transport has failed.
    pub async fn put(&self, data: Vec<u8>) -> Result<(), NtStatus> {
        if data.len() as u64 > self.len() {
            return Err(NtStatus::BUFFER_TOO_SMALL);
        }
        self.memory.write(&self.buffers, data).await.map_err(failed)?;
        self.end();
        Ok(())
    }

    /// Gets the first `len` bytes from there.
    ///
    /// # Errors
    /// That the transport has failed.
    pub async fn get(&self, len: usize) -> Result<Vec<u8>, NtStatus> {
        let data = self.memory.read(&self.buffers, len).await.map_err(failed)?;
        self.end();
        if data.len() == len { Ok(data) } else { Err(NtStatus::CONNECTION_DISCONNECTED) }
    }

    /// The memory is not needed any more.
    fn end(&self) {
        if let Some(first) = self.buffers.first().filter(|_| self.invalidates) {
            self.memory.invalidate(self.request, first.token);
        }
    }
}

/// A transfer that fails ends its connection (MS-SMBD 3.1.4.5): nobody reads this answer.
fn failed(error: std::io::Error) -> NtStatus {
    tracing::debug!(%error, "the client's memory cannot be accessed");
    NtStatus::CONNECTION_DISCONNECTED
}

//! READ and WRITE whose data are in the client's memory instead of their messages (MS-SMB2 3.3.5.12,
//! 3.3.5.13; MS-SMBD 3.1.4).
//!
//! ```text
//!  READ:  file ─► buffer ─► (sealed) ─► RemoteMemory::write ─► an answer that says how much there is
//!  WRITE: RemoteMemory::read ─► (opened) ─► buffer ─► file ─► the answer
//!                      Channel RDMA_V1_INVALIDATE: the answer takes the token back, whatever it says
//! ```
//! Nothing protects what goes from memory to memory but a transform (2.2.43): data whose messages are
//! encrypted go so with one only, and where a session must sign they do not go so.

use std::sync::Arc;

use smb_protocol::{
    Dialect, NtStatus,
    msg::{
        rdma::{
            BufferDescriptor, CHANNEL_NONE, CHANNEL_RDMA_TRANSFORM, CHANNEL_RDMA_V1,
            CHANNEL_RDMA_V1_INVALIDATE, Transform,
        },
        read::Response,
    },
    wire::len32,
};

use super::Ctx;
use crate::{session::Sealing, transport::RemoteMemory};

/// Memory of the client that a request names.
#[derive(Debug)]
pub struct Remote {
    memory: Arc<dyn RemoteMemory>,
    buffers: Vec<BufferDescriptor>,
    /// The keys of what is there, if it is encrypted.
    sealing: Option<Arc<Sealing>>,
    /// How what is there was encrypted: nonce and signature.
    sealed: Option<(Vec<u8>, [u8; 16])>,
}

impl Remote {
    /// The memory that a request with this `Channel` field names; `None` if its data are in the
    /// message. `used` says whether the other fields are as they must be then.
    ///
    /// # Errors
    /// INVALID_PARAMETER where the dialect knows no such channel, the connection's transport has no
    /// remote memory, the fields do not say the same, the descriptors are malformed, or the data would
    /// go without the protection that their messages have.
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
        let seals = ctx.ex.negotiated.as_ref().is_some_and(|negotiated| negotiated.seals_remote);
        let session = ctx.session()?;
        let sealing = session.sealing.clone().filter(|_| ctx.sealed && seals);
        if sealing.is_none() && (ctx.sealed || session.must_sign) {
            return Err(NtStatus::INVALID_PARAMETER);
        }
        let buffers =
            BufferDescriptor::parse_array(descriptors).map_err(|_| NtStatus::INVALID_PARAMETER)?;
        if buffers.is_empty() {
            return Err(NtStatus::INVALID_PARAMETER);
        }
        Ok(Some(Self { memory, buffers, sealing, sealed: None }))
    }

    /// The memory that a WRITE names, whose data may be encrypted there (3.3.5.13).
    ///
    /// # Errors
    /// Those of [`Remote::of`]; INVALID_PARAMETER for data that are encrypted where that was not agreed
    /// on or the request is not, and for data that are not where it is.
    pub fn of_write(
        ctx: &Ctx<'_>,
        channel: u32,
        used: bool,
        info: &[u8],
    ) -> Result<Option<Self>, NtStatus> {
        if channel != CHANNEL_RDMA_TRANSFORM {
            let plain = Self::of(ctx, channel, used, info)?;
            // What comes in the clear is not taken for what an encrypted request has.
            return match plain {
                Some(Self { sealing: Some(_), .. }) => Err(NtStatus::INVALID_PARAMETER),
                other => Ok(other),
            };
        }
        let transform = Transform::parse(info).map_err(|_| NtStatus::INVALID_PARAMETER)?;
        let remote = Self::of(ctx, transform.channel, used, transform.descriptors)?;
        let mut remote = remote.filter(|remote| remote.sealing.is_some());
        if let Some(remote) = &mut remote {
            remote.sealed = Some((transform.nonce.to_vec(), transform.signature));
        }
        remote.map(Some).ok_or(NtStatus::INVALID_PARAMETER)
    }

    /// Bytes that it has.
    pub fn len(&self) -> u64 {
        self.buffers.iter().map(|buffer| u64::from(buffer.length)).sum()
    }

    /// Whether its first buffer has no bytes.
    pub fn begins_empty(&self) -> bool {
        self.buffers.first().is_none_or(|buffer| buffer.length == 0)
    }

    /// Puts `data` there, encrypted where the request is: the body of the READ's answer.
    ///
    /// # Errors
    /// BUFFER_TOO_SMALL if there is no room for them, else that the transport has failed.
    pub async fn put(&self, mut data: Vec<u8>) -> Result<Vec<u8>, NtStatus> {
        if data.len() as u64 > self.len() {
            return Err(NtStatus::BUFFER_TOO_SMALL);
        }
        let count = len32(data.len());
        let mut body = Response::prefix(0, count).to_vec();
        if let Some(sealing) = &self.sealing {
            let sealed = sealing.seals.seal_apart(&mut data);
            let (nonce, signature) = sealed.map_err(|_| NtStatus::INTERNAL_ERROR)?;
            let (channel, descriptors) = (CHANNEL_NONE, &[][..]);
            let mut transform = Vec::new();
            Transform { channel, nonce: &nonce, signature, descriptors }.encode(&mut transform);
            body = Response::transform_prefix(len32(transform.len()), count).to_vec();
            body.extend(transform);
        }
        self.memory.write(&self.buffers, data).await.map_err(failed)?;
        Ok(body)
    }

    /// Gets the first `len` bytes from there, decrypted if they are encrypted.
    ///
    /// # Errors
    /// That the transport has failed, or INVALID_SIGNATURE for data that are not what the client
    /// encrypted.
    pub async fn get(&self, len: usize) -> Result<Vec<u8>, NtStatus> {
        let mut data = self.memory.read(&self.buffers, len).await.map_err(failed)?;
        if data.len() != len {
            return Err(NtStatus::CONNECTION_DISCONNECTED);
        }
        if let Some((nonce, signature)) = &self.sealed {
            let opened =
                self.sealing.as_ref().map(|it| it.opens.open_apart(nonce, signature, &mut data));
            opened.and_then(Result::ok).ok_or(NtStatus::INVALID_SIGNATURE)?;
        }
        Ok(data)
    }
}

/// Has the answer to a request take back the client's memory that it names, if it asks for that: also one
/// that refuses (3.2.4.6, 3.3.5.12: "when responding"). A client that does not get it back names it
/// anew as it is, which its card takes for a fault.
pub fn taken_back_by_the_answer(ctx: &Ctx<'_>, channel: u32, info: &[u8]) {
    let (channel, info) = match channel {
        CHANNEL_RDMA_TRANSFORM => match Transform::parse(info) {
            Ok(transform) => (transform.channel, transform.descriptors),
            Err(_) => return,
        },
        channel => (channel, info),
    };
    let asked = channel == CHANNEL_RDMA_V1_INVALIDATE && ctx.dialect() != Dialect::SMB_3_0;
    let first = info.first_chunk::<{ BufferDescriptor::LEN }>();
    let Some((memory, first)) = ctx.ex.remote_memory.as_ref().filter(|_| asked).zip(first) else {
        return;
    };
    if let Ok([first]) = BufferDescriptor::parse_array(first).as_deref() {
        memory.invalidate(ctx.header.message_id, first.token);
    }
}

/// A transfer that fails ends its connection (MS-SMBD 3.1.4.5): nobody reads this answer.
fn failed(error: std::io::Error) -> NtStatus {
    tracing::debug!(%error, "the client's memory cannot be accessed");
    NtStatus::CONNECTION_DISCONNECTED
}

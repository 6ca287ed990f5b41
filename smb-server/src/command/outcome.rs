//! How a request ends: what handlers return.

use std::{future::Future, pin::Pin};

use smb_protocol::{NtStatus, wire::WireError};
use tokio::sync::oneshot;
use volume::{
    sharing::file::{Refused, Wake},
    status::{of_errno, of_storage},
};

/// What a handler made of its request.
pub type Handled = Result<Outcome, Failure>;

/// The status and the body of a response that comes later. A failure without body is answered with
/// an ERROR response.
pub type Response = Pin<Box<dyn Future<Output = (NtStatus, Vec<u8>)> + Send>>;

/// A request that did not fail here and now.
pub enum Outcome {
    /// The body of the response is in the output; this is its status.
    Done(NtStatus),
    /// The response comes later.
    Deferred(Deferred),
}

impl Outcome {
    /// The body of the response is in the output, and all is well.
    pub const SUCCESS: Self = Self::Done(NtStatus::SUCCESS);
}

impl From<Deferred> for Outcome {
    fn from(deferred: Deferred) -> Self {
        Self::Deferred(deferred)
    }
}

/// A response that comes later.
pub struct Deferred {
    /// Gives it.
    pub response: Response,
    /// Ends the wait at the client's wish (MS-SMB2 3.3.5.16).
    pub cancel: Option<oneshot::Sender<()>>,
    /// The client is told that its request is pending.
    pub interim: bool,
    /// Bytes of memory that it holds meanwhile.
    pub bytes: usize,
    /// It waits for storage, which ends by itself; otherwise for an event that may never come.
    pub storage: bool,
}

impl Deferred {
    /// Waits for storage and holds `bytes` of memory meanwhile.
    pub fn storage(
        bytes: usize,
        body: impl Future<Output = Result<Vec<u8>, NtStatus>> + Send + 'static,
    ) -> Self {
        let response = response(async { body.await.map(|body| (NtStatus::SUCCESS, body)) });
        Self { response, cancel: None, interim: false, bytes, storage: true }
    }

    /// Waits for an event, and ends when `cancel` is used. The client is told that it waits. The
    /// status of a response with a body is none of a failure.
    pub fn event(
        bytes: usize,
        cancel: oneshot::Sender<()>,
        body: impl Future<Output = Result<(NtStatus, Vec<u8>), NtStatus>> + Send + 'static,
    ) -> Self {
        let cancel = Some(cancel);
        Self { response: response(body), cancel, interim: true, bytes, storage: false }
    }

    /// A refusal that is held back for some time.
    pub fn refusal(why: impl Future<Output = NtStatus> + Send + 'static) -> Self {
        let response = Box::pin(async move { (why.await, Vec::new()) });
        Self { response, cancel: None, interim: false, bytes: 0, storage: false }
    }
}

fn response(
    body: impl Future<Output = Result<(NtStatus, Vec<u8>), NtStatus>> + Send + 'static,
) -> Response {
    Box::pin(async move { body.await.unwrap_or_else(|status| (status, Vec::new())) })
}

/// Why a request has no response with success.
pub enum Failure {
    /// It is refused with this status.
    Status(NtStatus),
    /// It is refused with this status and error data.
    Data(NtStatus, Vec<u8>),
    /// Others must give up something first; then it is carried out again, with all its checks.
    Busy(Wake),
    /// The connection must end.
    Disconnect(&'static str),
}

impl From<NtStatus> for Failure {
    fn from(status: NtStatus) -> Self {
        Self::Status(status)
    }
}

impl From<Refused> for Failure {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Status(status) => Self::Status(status),
            Refused::Wait(wake) => Self::Busy(wake),
            Refused::Reparse(met) => Self::Status(met.status()),
        }
    }
}

impl From<WireError> for Failure {
    fn from(error: WireError) -> Self {
        tracing::debug!(%error, "malformed request");
        Self::Status(NtStatus::INVALID_PARAMETER)
    }
}

impl From<rustix::io::Errno> for Failure {
    fn from(error: rustix::io::Errno) -> Self {
        Self::Status(of_errno(error))
    }
}

impl From<block_io::Error> for Failure {
    fn from(error: block_io::Error) -> Self {
        Self::Status(of_storage(&error))
    }
}

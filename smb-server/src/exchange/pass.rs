//! One pass over the requests of a frame: what goes from one to the next, and the response under
//! construction.

use std::sync::Arc;

use smb_protocol::{
    Command, FileId, Header, HeaderFlags, MessageId, NtStatus, SessionId, crypto::SigningKey,
    msg::error,
};
use volume::{
    open::{InProgress, creates::Creating, in_the_way::Asked},
    sharing::file::Wake,
};

use super::{
    Frame, WaitingFuture,
    answer::{Answer, Packing, Place, Protection},
    waiting::Suspended,
};
use crate::{
    command::{Deferred, session_setup::BindingRequest},
    dropped::Dropped,
    meters::timer::PathTimer,
    session::{Channel, Tree},
};

/// State that goes from one request of a compound to the next related one
/// (MS-SMB2 3.3.5.2.7, 3.3.5.2.7.2).
#[derive(Default, Clone)]
pub(super) struct Chain {
    pub(super) session_id: SessionId,
    pub(super) tree: u64,
    pub(super) file: Option<Result<FileId, NtStatus>>,
    /// How the request before ended, if it failed before it had a session or tree.
    pub(super) failed: Option<NtStatus>,
}

/// A request whose place, credits and protection were checked.
pub(super) struct Accepted {
    pub(super) header: Header,
    pub(super) channel: Option<Arc<Channel>>,
    /// Boxed, as what only few requests have: a request is moved as it is accepted.
    pub(super) binding: Option<Box<BindingRequest>>,
    pub(super) credits: u16,
    /// `AsyncId`, once it was answered with PENDING.
    pub(super) async_id: Option<u64>,
    /// A CREATE that its client may repeat while it waits.
    pub(super) creating: Option<Box<Creating>>,
    /// Whom it asked to get out of its way before it waited.
    pub(super) asked: Asked,
    /// Bytes of a WRITE's data that are in the file already.
    pub(super) placed: usize,
}

/// A request as it stands in its frame: the first `len` bytes of `rest`, which goes to the frame's
/// end.
#[derive(Clone, Copy)]
pub(super) struct Message<'m> {
    pub(super) rest: &'m [u8],
    pub(super) len: usize,
    pub(super) place: Place,
}

impl Message<'_> {
    /// Whether it has its frame to itself.
    pub(super) fn is_alone(&self) -> bool {
        self.place.first && self.place.last
    }

    /// Its own bytes.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.rest[..self.len]
    }
}

/// A request that has no response yet.
pub(super) struct Unfinished {
    /// The request.
    pub(super) accepted: Accepted,
    pub(super) handed: Handed,
    pub(super) waits: Waits,
}

/// What a request waits for.
pub(super) enum Waits {
    /// Its response, which comes later.
    Deferred(Deferred),
    /// Others, who must give something up first.
    Busy(Wake),
}

/// What a handler left of a request.
pub(super) struct Handed {
    /// The header of the response, but for its status.
    pub(super) response: Header,
    /// Where the response's body begins in the output.
    pub(super) body_at: usize,
    /// Signs the response.
    pub(super) signs: Option<Arc<SigningKey>>,
    /// Compresses the response, if the client wants that.
    pub(super) compress: Option<Packing>,
    /// The tree that it used.
    pub(super) tree: Option<Arc<Tree>>,
    /// The file that the next related request means.
    pub(super) file: Option<FileId>,
    /// Its open knows that it is in progress.
    pub(super) in_progress: Option<InProgress>,
    /// When it was taken up, if it is timed.
    pub(super) since: Option<std::time::Instant>,
    /// Who times it along its way.
    pub(super) path: PathTimer,
}

/// One pass over the requests of a frame.
pub(super) struct Pass<'a> {
    /// How the frame was protected, and its responses are.
    pub(super) protection: Protection,
    /// The responses.
    pub(super) answer: Answer<'a>,
    pub(super) chain: Chain,
    /// Requests that are answered later.
    pub(super) waits: Vec<WaitingFuture>,
    /// The next request is the first of its frame.
    pub(super) first: bool,
    /// Requests whose CANCEL came before them: they stood behind one that waited.
    pub(super) cancelled: Vec<MessageId>,
}

impl<'a> Pass<'a> {
    /// Begins with the first request of a frame.
    pub(super) fn begin(out: &'a mut Vec<u8>, protection: Protection) -> Self {
        let answer = Answer::begin(out, &protection);
        Self {
            protection,
            answer,
            chain: Chain::default(),
            waits: Vec::new(),
            first: true,
            cancelled: Vec::new(),
        }
    }

    /// Finishes the responses.
    pub(super) fn end(self) -> Result<Frame, Dropped> {
        self.answer.end()?;
        Ok(if self.waits.is_empty() { Frame::Answered } else { Frame::Waits(self.waits) })
    }

    /// Answers a request with an ERROR response.
    pub(super) fn refuse(
        &mut self,
        header: &Header,
        (status, credits): (NtStatus, u16),
        signs: Option<&Arc<SigningKey>>,
    ) -> Result<(), Dropped> {
        Ok(self.answer.failure(header, status, credits, signs)?)
    }

    /// Answers a request that waited and is not carried out after all.
    pub(super) fn give_up(&mut self, accepted: &Accepted, status: NtStatus) -> Result<(), Dropped> {
        let mut header = accepted.header;
        if let Some(id) = accepted.async_id {
            header.flags |= HeaderFlags::ASYNC;
            header.async_or_tree = id;
        }
        // Without its file a CLOSE behind it would close nothing.
        if header.command == Command::CREATE {
            self.chain.file = Some(Err(status));
        }
        let signed = header.flags.has(HeaderFlags::SIGNED);
        let signs = accepted.channel.as_ref().filter(|_| signed).map(|c| c.signing.clone());
        self.refuse(&header, (status, accepted.credits), signs.as_ref())
    }

    /// Completes a response with a body in the output, or with none but `error`.
    pub(super) fn respond(
        &mut self,
        handed: &mut Handed,
        place: Place,
        status: NtStatus,
        error: Option<error::Response<'_>>,
    ) -> Result<(), Dropped> {
        if let Some(error) = error {
            debug_assert!(!status.is_success(), "an ERROR response of {status} (MS-SMB2 3.3.4.4)");
            self.answer.reset(handed.body_at);
            error.encode(self.answer.out);
        }
        self.answer.compress = self.answer.compress.or(handed.compress);
        handed.response.status = status;
        Ok(self.answer.close(handed.response, handed.body_at, handed.signs.as_ref(), place)?)
    }

    /// What stands from `message` to the end of the frame, to be carried out again. Its credits are
    /// granted when the client is told that it waits, or with its answer.
    pub(super) fn suspend(&self, message: Message<'_>, accepted: Accepted) -> Suspended {
        Suspended {
            bytes: message.rest.to_vec(),
            accepted: Accepted { binding: None, ..accepted },
            chain: self.chain.clone(),
            first: message.place.first,
            behind: Vec::new(),
            cancelled: self.cancelled.clone(),
            held: None,
        }
    }
}

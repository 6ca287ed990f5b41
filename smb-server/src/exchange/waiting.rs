//! Requests that wait: for storage, for an event, or for another client; the last are put aside
//! with what stands behind them in their compound and carried out again.

use std::{future::Future, pin::Pin, sync::Arc, time::Instant};

use futures_util::stream::{FuturesUnordered, StreamExt};
use smb_protocol::{
    Header, HeaderFlags, NtStatus, SessionId,
    crypto::{Role, SigningKey},
    msg::error,
};
use tokio::sync::{Notify, oneshot};
use volume::{budget::Held, open::InProgress, sharing::file::Wake, work::Turn};

use super::{
    Accepted, Chain, Exchange, Flow, WaitingFuture,
    answer::{Answer, Place, Protection, interim},
    split,
};
use crate::{
    command::{Ends, Fail, Handled, Later},
    connection::Dropped,
    session::Channel,
};

/// The end of something that waited.
pub struct Completion {
    key: u64,
    outcome: Outcome,
}

pub(super) enum Outcome {
    /// The body of the answer, or why there is none.
    Answer(Result<Vec<u8>, NtStatus>),
    /// Status and body of the answer; a failure without body is answered as an error.
    Ended(NtStatus, Vec<u8>),
    /// The request is to be carried out again.
    Again,
}

/// A request that is to wait for its answer.
pub(super) struct Wait {
    future: Pin<Box<dyn Future<Output = Outcome> + Send>>,
    cancel: Option<oneshot::Sender<()>>,
    interim: bool,
    bytes: usize,
    io: bool,
    /// When it was taken up, if it is timed.
    since: Option<Instant>,
    /// What it takes of its user's budget.
    held: Option<Held>,
}

impl Wait {
    /// It takes that of its user's budget.
    pub(super) fn holds(self, held: Option<Held>) -> Self {
        Self { held, ..self }
    }

    /// It was taken up then, if it is timed.
    pub(super) fn since(self, since: Option<Instant>) -> Self {
        Self { since, ..self }
    }
}

impl From<Later> for Wait {
    fn from(later: Later) -> Self {
        let Later { future, cancel, interim, bytes, io } = later;
        let future = Box::pin(async move { Outcome::Answer(future.await) });
        Self { future, cancel, interim, bytes, io, since: None, held: None }
    }
}

impl From<Ends> for Wait {
    fn from(ends: Ends) -> Self {
        let Ends { future, interim, bytes } = ends;
        let future = Box::pin(async move {
            let (status, body) = future.await;
            Outcome::Ended(status, body)
        });
        Self { future, cancel: None, interim, bytes, io: true, since: None, held: None }
    }
}

/// Waits in place for something that ends by itself.
pub(super) fn awaited<T>(future: Pin<Box<dyn Future<Output = T> + Send>>) -> T {
    let runtime = tokio::runtime::Handle::current();
    tokio::task::block_in_place(|| runtime.block_on(future))
}

/// Memory of a request that waits beside what it says it holds: what is remembered of it, its
/// future, the timer or the place among those to be woken.
const ONE: usize = 1024;

/// Too much waits already.
pub(super) struct Full;

/// What is remembered of a request that waits.
pub(super) struct Pending {
    /// The header of its answer.
    header: Header,
    protection: Protection,
    cancel: Option<oneshot::Sender<()>>,
    bytes: usize,
    io: bool,
    since: Option<Instant>,
    /// What it takes of its user's budget as long as it waits.
    held: Option<Held>,
    rest: Rest,
}

/// How a request that waits goes on.
pub(super) enum Rest {
    /// Its answer is signed with this key.
    Answer(Option<Arc<SigningKey>>),
    /// It is carried out again, and what stands behind it in its compound after it.
    Again(Box<Suspended>),
}

/// A compound from a request on that could not be carried out yet.
pub(super) struct Suspended {
    pub(super) bytes: Vec<u8>,
    pub(super) accepted: Accepted,
    pub(super) chain: Chain,
    pub(super) first: bool,
    /// What it waits for, and until when.
    pub(super) again: (Arc<Notify>, Instant),
}

impl Suspended {
    /// The connection is lost. Until what a CREATE waited for has happened, its repetition on
    /// another channel is told that it is in progress.
    fn outlive(self) {
        let Some(creating) = self.accepted.creating else { return };
        let (again, until) = self.again;
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                let _ = tokio::time::timeout_at(until.into(), again.notified()).await;
                drop(creating);
            });
        }
    }
}

impl Exchange {
    /// What a request that is to wait takes of its user's budget. Fails if too much waits already,
    /// on this connection or of this user. `behind` are the bytes from it to the end of its compound.
    pub(super) fn room_to_wait(
        &self,
        result: &Handled,
        behind: usize,
        channel: Option<&Channel>,
    ) -> Result<Option<Held>, Full> {
        let bytes = match result {
            Err(Fail::Later(later)) => later.bytes,
            Err(Fail::Ends(ends)) => ends.bytes,
            Err(Fail::Wait(_)) => behind,
            _ => return Ok(None),
        };
        if self.pending.len() >= self.limits.pending_requests
            || self.pending_bytes + bytes > self.limits.pending_bytes.0 as usize
        {
            return Err(Full);
        }
        // Who is still logging on has no budget; how many wait then is limited with the connections.
        let Some(channel) = channel else { return Ok(None) };
        channel.session.user.bytes.take(ONE + bytes).map(Some).ok_or(Full)
    }

    /// Puts a compound aside from a request on that must wait for others.
    #[expect(clippy::too_many_arguments, reason = "the state of one pass over a frame")]
    pub(super) fn suspend(
        &mut self,
        (wake, held): (Wake, Option<Held>),
        mut suspended: Suspended,
        mut response: Header,
        body_at: usize,
        protection: &Protection,
        answer: &mut Answer<'_>,
        waits: &mut Vec<WaitingFuture>,
    ) -> Result<(), Dropped> {
        if let Some(signing) = self.signer(&suspended.accepted.header) {
            signing.keep(response.message_id.0)?;
        }
        let key = match suspended.accepted.async_id {
            Some(key) => {
                answer.abandon(body_at);
                key
            }
            None => {
                let key = self.new_key();
                interim(&mut response, key, body_at, answer)?;
                suspended.accepted.async_id = Some(key);
                key
            }
        };
        let (cancel, cancelled) = oneshot::channel();
        let bytes = suspended.bytes.len();
        self.pending_bytes += bytes;
        self.meter.waits();
        let pending = Pending {
            header: response,
            protection: protection.clone(),
            cancel: Some(cancel),
            bytes,
            io: false,
            since: None,
            held,
            rest: Rest::Again(Box::new(suspended)),
        };
        self.pending.insert(key, pending);
        waits.push(Box::pin(async move {
            let outcome = tokio::select! {
                () = wake.changed => Outcome::Again,
                () = tokio::time::sleep_until(wake.until.into()) => Outcome::Again,
                Ok(()) = cancelled => Outcome::Answer(Err(NtStatus::CANCELLED)),
            };
            Completion { key, outcome }
        }));
        Ok(())
    }

    pub(super) fn new_key(&mut self) -> u64 {
        let key = self.next_key;
        self.next_key += 1;
        key
    }

    #[expect(clippy::too_many_arguments, reason = "the state of one pass over a frame")]
    pub(super) fn wait(
        &mut self,
        wait: Wait,
        in_progress: Option<InProgress>,
        mut response: Header,
        body_at: usize,
        protection: &Protection,
        signs: Option<Arc<SigningKey>>,
        answer: &mut Answer<'_>,
        waits: &mut Vec<WaitingFuture>,
    ) -> Result<(), Dropped> {
        if let Some(signing) = &signs {
            signing.keep(response.message_id.0)?;
        }
        let Wait { future, cancel, interim: tells, bytes, io, since, held } = wait;
        let asynchronous = response.flags.has(HeaderFlags::ASYNC);
        let key = if asynchronous { response.async_or_tree } else { self.new_key() };
        if tells && !asynchronous {
            interim(&mut response, key, body_at, answer)?;
        } else {
            answer.abandon(body_at);
        }
        self.pending_bytes += bytes;
        let protection = protection.clone();
        let rest = Rest::Answer(signs);
        self.meter.waits();
        let pending =
            Pending { header: response, protection, cancel, bytes, io, since, held, rest };
        self.pending.insert(key, pending);
        waits.push(Box::pin(async move {
            let outcome = future.await;
            drop(in_progress);
            Completion { key, outcome }
        }));
        Ok(())
    }

    /// Answers a request that has waited, or carries it out again with what stands behind it, as
    /// [`Exchange::receive_rest`] does.
    pub async fn complete(
        &mut self,
        completion: Completion,
        out: &mut Vec<u8>,
        turn: &mut Turn,
    ) -> Result<Vec<WaitingFuture>, Dropped> {
        let mut waits = Vec::new();
        let Some(pending) = self.pending.remove(&completion.key) else { return Ok(waits) };
        self.pending_bytes -= pending.bytes;
        drop(pending.held);
        let protection = pending.protection;
        let mut answer = Answer::begin(out, &protection);
        let mut header = pending.header;
        match (pending.rest, completion.outcome) {
            (Rest::Answer(signs), outcome) => {
                let (status, body) = match outcome {
                    Outcome::Ended(status, body) => (status, body),
                    Outcome::Answer(Ok(body)) => (NtStatus::SUCCESS, body),
                    Outcome::Answer(Err(status)) => (status, Vec::new()),
                    // Only what was put aside is carried out again.
                    Outcome::Again => (NtStatus::INTERNAL_ERROR, Vec::new()),
                };
                let body_at = answer.open(&header);
                header.status = status;
                if body.is_empty() {
                    error::Response::default().encode(answer.out);
                } else {
                    answer.out.extend_from_slice(&body);
                }
                let place = Place { first: true, last: true };
                answer.close(header, body_at, signs.as_ref(), place)?;
                self.meter.answered(header.command, status);
                self.meter.timed(header.command, pending.since);
            }
            (Rest::Again(suspended), outcome) => {
                let failed = match outcome {
                    Outcome::Answer(Err(status)) => Some(status),
                    _ => None,
                };
                self.resume(*suspended, failed, &protection, &mut answer, &mut waits, turn).await?;
            }
        }
        answer.end()?;
        Ok(waits)
    }

    /// Goes on with a compound where it was put aside.
    async fn resume(
        &mut self,
        suspended: Suspended,
        failed: Option<NtStatus>,
        protection: &Protection,
        answer: &mut Answer<'_>,
        waits: &mut Vec<WaitingFuture>,
        turn: &mut Turn,
    ) -> Result<(), Dropped> {
        let Suspended { mut bytes, accepted, mut chain, mut first, .. } = suspended;
        let mut rest = &mut bytes[..];
        let mut next = Some(accepted);
        while !rest.is_empty() {
            let (header, len) = split(rest)?;
            let place = Place { first, last: len == rest.len() };
            let resumed = next.is_some();
            let accepted = match next.take() {
                Some(accepted) => Some(accepted),
                None => {
                    self.accept(header, &mut rest[..len], place, protection, &mut chain, answer)?
                }
            };
            match (accepted, failed) {
                (Some(accepted), Some(status)) if resumed => {
                    let mut header = accepted.header;
                    header.flags |= HeaderFlags::ASYNC;
                    header.async_or_tree = accepted.async_id.unwrap_or_default();
                    chain.file = Some(Err(status));
                    let signed = header.flags.has(HeaderFlags::SIGNED);
                    let signs = accepted.channel.filter(|_| signed).map(|c| c.signing.clone());
                    answer.failure(&header, status, 0, signs.as_ref())?;
                }
                (Some(accepted), _) => {
                    let flow = self
                        .one(accepted, rest, len, place, protection, &mut chain, answer, waits)?;
                    if flow == Flow::Suspended {
                        break;
                    }
                }
                (None, _) => {}
            }
            first = false;
            rest = &mut rest[len..];
            if !rest.is_empty() {
                turn.pass().await;
            }
        }
        Ok(())
    }

    /// Gives up a request that waits for an event (MS-SMB2 3.3.5.16); one that is being carried
    /// out ends by itself. It is protected as requests of the session must be whose request it
    /// gives up, else it is ignored: there is no answer that could refuse it.
    pub(super) fn cancel(&mut self, header: &Header, message: &mut [u8], protection: &Protection) {
        let found = if header.flags.has(HeaderFlags::ASYNC) {
            Some(header.async_or_tree)
        } else {
            let mine = |p: &Pending| p.header.message_id == header.message_id;
            self.pending.iter().find(|(_, p)| mine(p)).map(|(key, _)| *key)
        };
        let Some(key) = found else { return };
        let Some(pending) = self.pending.get(&key) else { return };
        if !self.may_cancel(header, message, protection, pending) {
            tracing::debug!(peer = %self.peer, "a CANCEL that is not protected as it must be");
            self.meter.unprotected();
            return;
        }
        let cancel = self.pending.get_mut(&key).and_then(|pending| pending.cancel.take());
        if let Some(cancel) = cancel {
            let _ = cancel.send(());
        }
    }

    /// Whether a CANCEL has the protection that its target's session demands. A signature is
    /// verified whoever demands it (3.3.5.2.4, 3.3.5.2.9); the session may be left out of a CANCEL
    /// without.
    fn may_cancel(
        &self,
        header: &Header,
        message: &mut [u8],
        protection: &Protection,
        target: &Pending,
    ) -> bool {
        let of = target.header.session_id;
        if let Protection::Sealed(sealed) = protection {
            return sealed.session.id == of;
        }
        if matches!(target.protection, Protection::Sealed(_)) {
            return false;
        }
        let named = header.session_id;
        let signed = header.flags.has(HeaderFlags::SIGNED);
        if (signed || named != SessionId(0)) && named != of {
            return false;
        }
        let Some(channel) = self.sessions.get(&of) else { return false };
        match signed {
            true => channel.signing.verify(message, Role::Client),
            false => !channel.session.must_sign && !channel.session.must_encrypt,
        }
    }

    /// The next completion of I/O that was begun; `None` when only waits for events are left.
    pub async fn finish_io(
        &self,
        waiting: &mut FuturesUnordered<WaitingFuture>,
    ) -> Option<Completion> {
        if self.waits_for_storage() { waiting.next().await } else { None }
    }

    /// Whether any request waits for what ends by itself.
    pub(super) fn waits_for_storage(&self) -> bool {
        self.pending.values().any(|pending| pending.io)
    }

    /// The connection is lost, and with it whoever waits for these.
    pub(super) fn drop_pending(&mut self) {
        for (_, pending) in self.pending.drain() {
            if let Rest::Again(suspended) = pending.rest {
                suspended.outlive();
            }
        }
    }
}

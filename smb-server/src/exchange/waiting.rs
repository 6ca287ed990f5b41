//! Requests that wait: for storage, for an event, or for another client; the last are put aside
//! with what stands behind them in their compound and carried out again.

use std::{
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::stream::{FuturesUnordered, StreamExt};
use smb_protocol::{
    Command, Header, HeaderFlags, MessageId, NtStatus, SessionId,
    crypto::{Role, SigningKey},
    msg::error,
};
use tokio::sync::{Notify, futures::OwnedNotified, oneshot};
use volume::{budget::Held, sharing::file::Wake, work::Turn};

use super::{
    Exchange, Frame, Taken, WaitingFuture,
    answer::{HeldAnswers, Packing, Place, Protection, interim},
    credits::CreditWindow,
    pass::{Accepted, Chain, Handed, Message, Pass},
    requests::messages,
};
use crate::{
    command::Deferred,
    dropped::Dropped,
    meters::{
        Answered, ShareMeter,
        path::Phase,
        timer::PathTimer,
        waits::{Wait, WaitInfo},
    },
    session::{Channel, ConnectionId, Tree},
};

/// The end of something that waited.
pub struct Completion {
    key: u64,
    end: End,
}

enum End {
    /// Status and body of the response; a failure without body is answered as an error.
    Response(NtStatus, Vec<u8>),
    /// The request is to be carried out again.
    Again,
    /// The client is to be told that its request waits, which it goes on to do.
    Untold(Waiting),
}

/// How long a request waits for other clients before its own is told: they are told before it, and one
/// that is quick spares it the message.
const UNTOLD: Duration = Duration::from_millis(1);

/// What a request that was put aside waits for.
struct Waiting {
    changed: Pin<Box<OwnedNotified>>,
    until: Instant,
    cancelled: oneshot::Receiver<()>,
}

impl Waiting {
    /// Waits; up to the moment when its client is to be told so, unless that is `told`.
    async fn end(mut self, told: bool) -> End {
        let Self { changed, until, cancelled } = &mut self;
        let ended = tokio::select! {
            () = changed => Some(End::Again),
            () = tokio::time::sleep_until((*until).into()) => Some(End::Again),
            Ok(()) = cancelled => Some(End::Response(NtStatus::CANCELLED, Vec::new())),
            () = tokio::time::sleep(UNTOLD), if !told => None,
        };
        ended.unwrap_or(End::Untold(self))
    }
}

/// Memory of a request that waits beside what it says it holds: what is remembered of it, its
/// future, the timer or the place among those to be woken. Measured are 1,260 to 1,490 bytes
/// (`hostile::a_request_that_waits_costs_no_more_than_it_is_charged`).
const ONE: usize = 2048;

/// Too much waits already.
pub(super) struct Full;

/// What is remembered of a request that waits.
pub(super) struct Pending {
    /// The header of its answer.
    header: Header,
    protection: Protection,
    cancel: Option<oneshot::Sender<()>>,
    bytes: usize,
    /// It waits for what ends by itself.
    storage: bool,
    /// When it was taken up, if it is timed, and the share that it is about.
    counted: (Option<Instant>, Option<Arc<ShareMeter>>),
    /// What it takes of its user's budget as long as it waits.
    held: Option<Held>,
    /// It waits for other clients, which is timed.
    _wait: Option<Wait>,
    /// Who times its answer.
    timer: PathTimer,
    rest: Rest,
}

/// How a request that waits goes on.
pub(super) enum Rest {
    /// Its answer is signed with this key, and compressed.
    Answer(Option<Arc<SigningKey>>, Option<Packing>),
    /// It is carried out again, and what stands behind it in its compound after it. It waits for
    /// this, until then.
    Again(Box<Suspended>, Arc<Notify>, Instant),
}

/// A compound from a request on that could not be carried out yet.
pub(super) struct Suspended {
    pub(super) bytes: Vec<u8>,
    pub(super) accepted: Accepted,
    pub(super) chain: Chain,
    pub(super) first: bool,
    /// The requests behind its first that may still be cancelled, each with its session, by their ids.
    pub(super) behind: Vec<(MessageId, SessionId)>,
    /// Requests of it that are to wait for nothing.
    pub(super) cancelled: Vec<MessageId>,
    /// What was answered before it in its frame and is sent with it.
    pub(super) held: Option<HeldAnswers>,
}

/// Whether a client is not told that its request waits. As Windows does it, a change of information
/// waits without a word, and what stands in its compound is answered with it (MS-SMB2 3.3.4.2: what
/// it waits for has an end).
pub(super) fn is_quiet(accepted: &Accepted) -> bool {
    accepted.header.command == Command::SET_INFO && accepted.async_id.is_none()
}

impl Suspended {
    /// Looks through the requests behind its first, but for those with an id that they cannot have; a
    /// related one is of the session of the one before it (MS-SMB2 3.3.5.2.7.2).
    fn note_behind(&mut self, window: &CreditWindow) {
        let mut session = self.accepted.header.session_id;
        let of = |header: Header| {
            if !header.flags.has(HeaderFlags::RELATED) {
                session = header.session_id;
            }
            let open = window.holds(header.message_id);
            open.then_some((header.message_id, session))
        };
        let mut behind: Vec<_> = messages(&self.bytes).skip(1).filter_map(of).collect();
        behind.sort_unstable();
        behind.dedup_by_key(|(id, _)| *id);
        self.cancelled.sort_unstable();
        behind.retain(|(id, _)| self.cancelled.binary_search(id).is_err());
        self.behind = behind;
    }

    /// The session of a request behind its first that has an id and was not cancelled yet.
    fn member(&self, id: MessageId) -> Option<SessionId> {
        let at = self.behind.binary_search_by_key(&id, |(id, _)| *id).ok()?;
        Some(self.behind[at].1)
    }

    /// Remembers that a request behind its first is to wait for nothing.
    fn cancel(&mut self, id: MessageId) {
        self.behind.retain(|(other, _)| *other != id);
        self.cancelled.push(id);
    }

    /// The connection is lost. Until what a CREATE waited for has happened, its repetition on
    /// another channel is told that it is in progress. Without another channel its session ends, and
    /// with it what was asked.
    fn outlive(self, lost: ConnectionId, again: Arc<Notify>, until: Instant) {
        let Some(creating) = self.accepted.creating else { return };
        let channels = self.accepted.channel.iter().flat_map(|it| it.session.channels());
        if !channels.into_iter().any(|channel| channel.connection != lost) {
            return;
        }
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                let _ = tokio::time::timeout_at(until.into(), again.notified()).await;
                drop(creating);
            });
        }
    }
}

/// How a request that is about to wait is cancelled. One whose CANCEL came before it is so at once.
fn given_up_before(
    pass: &Pass<'_>,
    response: &Header,
    cancel: Option<oneshot::Sender<()>>,
) -> Option<oneshot::Sender<()>> {
    if !pass.cancelled.contains(&response.message_id) {
        return cancel;
    }
    // What nobody waits for any more is not cancelled.
    let _ = cancel?.send(());
    None
}

impl Exchange {
    /// What a request that is to wait takes of its user's budget. Fails if too much waits already,
    /// on this connection or of this user: what waits for an event is counted (MS-SMB2 3.3.4.2).
    /// `bytes` is what it holds meanwhile.
    pub(super) fn room_to_wait(
        &self,
        bytes: usize,
        storage: bool,
        channel: Option<&Channel>,
    ) -> Result<Option<Held>, Full> {
        // What storage keeps waiting ends by itself, and its number is that of credits.
        let most = self.limits.pending_requests;
        let events = || self.pending.values().filter(|pending| !pending.storage).count();
        if !storage && self.pending.len() >= most && events() >= most
            || self.pending_bytes + bytes > self.limits.pending_bytes.0 as usize
        {
            return Err(Full);
        }
        // Who is still logging on has no budget; how many wait then is limited with the connections.
        let Some(channel) = channel else { return Ok(None) };
        channel.session.user.bytes.take(ONE + bytes).map(Some).ok_or(Full)
    }

    /// Puts a compound aside from a request on that must wait for others.
    pub(super) fn suspend(
        &mut self,
        (wake, held): (Wake, Option<Held>),
        message: Message<'_>,
        (accepted, handed): (Accepted, Handed),
        pass: &mut Pass<'_>,
    ) -> Result<(), Dropped> {
        let (response, body_at) = (handed.response, handed.body_at);
        pass.answer.reset(body_at);
        let quiet = is_quiet(&accepted);
        let unsent = pass.answer.unsent(body_at);
        if let Some(file) = handed.file {
            // Should it be given up, what is related to it is about its file.
            pass.chain.file = Some(Ok(file));
        }
        let told = quiet || accepted.async_id.is_some();
        let mut suspended = pass.suspend(message, accepted);
        suspended.note_behind(&self.window);
        if let Some(signing) = self.signer(&suspended.accepted.header) {
            signing.keep(response.message_id.0)?;
        }
        let key = match suspended.accepted.async_id {
            _ if quiet => {
                suspended.held = Some(pass.answer.hold(body_at)?);
                self.new_key()
            }
            Some(key) => {
                pass.answer.abandon(body_at);
                key
            }
            None => {
                // What was answered before it in its compound does not wait with it.
                let body_at = pass.answer.apart(&response, body_at)?;
                pass.answer.abandon(body_at);
                self.new_key()
            }
        };
        let (cancel, cancelled) = oneshot::channel();
        let cancel = given_up_before(pass, &response, Some(cancel));
        let bytes = suspended.bytes.len() + if quiet { unsent } else { 0 };
        let bytes = bytes + suspended.behind.len() * size_of::<(MessageId, SessionId)>();
        let wait = self.wait_for_others(&wake, handed.tree.as_deref());
        let rest = Rest::Again(Box::new(suspended), wake.again.clone(), wake.until);
        self.remember(
            key,
            Pending {
                header: response,
                protection: pass.protection.clone(),
                cancel,
                bytes,
                storage: false,
                counted: (None, None),
                held,
                _wait: wait,
                timer: PathTimer::default(),
                rest,
            },
        );
        let waiting = Waiting { changed: Box::pin(wake.changed), until: wake.until, cancelled };
        pass.waits.push(Box::pin(async move { Completion { key, end: waiting.end(told).await } }));
        Ok(())
    }

    /// Has a request wait for its response; gives the header of that as it is now.
    pub(super) fn wait(
        &mut self,
        deferred: Deferred,
        held: Option<Held>,
        handed: Handed,
        pass: &mut Pass<'_>,
    ) -> Result<Header, Dropped> {
        let Handed {
            response: mut header,
            body_at,
            signs,
            compress,
            in_progress,
            since,
            tree,
            path,
            ..
        } = handed;
        let counted = (since, tree.and_then(|tree| tree.meter.clone()));
        pass.answer.reset(body_at);
        if let Some(signing) = &signs {
            signing.keep(header.message_id.0)?;
        }
        let Deferred { response, cancel, interim: tells, bytes, storage } = deferred;
        let asynchronous = header.flags.has(HeaderFlags::ASYNC);
        let key = if asynchronous { header.async_or_tree } else { self.new_key() };
        if tells && !asynchronous {
            interim(&mut header, key, body_at, &mut pass.answer)?;
        } else {
            pass.answer.abandon(body_at);
        }
        let protection = pass.protection.clone();
        let rest = Rest::Answer(signs, compress);
        let cancel = given_up_before(pass, &header, cancel);
        self.remember(
            key,
            Pending {
                header,
                protection,
                cancel,
                bytes,
                storage,
                counted,
                held,
                _wait: None,
                timer: path,
                rest,
            },
        );
        pass.waits.push(Box::pin(async move {
            let (status, body) = response.await;
            drop(in_progress);
            Completion { key, end: End::Response(status, body) }
        }));
        Ok(header)
    }

    /// Begins to time the wait of a request for other clients.
    fn wait_for_others(&self, wake: &Wake, tree: Option<&Tree>) -> Option<Wait> {
        let tree = tree?;
        let meters = &self.server.meters;
        let info = WaitInfo {
            phase: Phase::Break,
            share: tree.name.clone(),
            file: wake.file,
            range: None,
            since: Instant::now(),
        };
        let file = wake.file.and_then(|file| meters.files.known(file));
        Some(meters.waits.begin(info, tree.meter.clone(), file))
    }

    /// Requests that wait for storage.
    pub(super) fn storage_pending(&self) -> u64 {
        self.pending_storage
    }

    fn remember(&mut self, key: u64, pending: Pending) {
        self.pending_storage += u64::from(pending.storage);
        self.pending_bytes += pending.bytes;
        self.meter.waits();
        self.pending.insert(key, pending);
    }

    fn new_key(&mut self) -> u64 {
        let key = self.next_key;
        self.next_key += 1;
        key
    }

    /// Tells a client that its request waits (MS-SMB2 3.3.4.2), and has it wait on.
    fn tell_waiting(
        &mut self,
        key: u64,
        waiting: Waiting,
        out: &mut Vec<u8>,
    ) -> Result<Frame, Dropped> {
        let Some(Pending { header, protection, rest: Rest::Again(suspended, ..), .. }) =
            self.pending.get_mut(&key)
        else {
            return Ok(Frame::Answered);
        };
        let mut pass = Pass::begin(out, protection.clone());
        let body_at = pass.answer.open(header);
        interim(header, key, body_at, &mut pass.answer)?;
        // Its credits are granted now, and not with its answer.
        (suspended.accepted.async_id, suspended.accepted.credits) = (Some(key), 0);
        pass.waits.push(Box::pin(async move { Completion { key, end: waiting.end(true).await } }));
        pass.end()
    }

    /// Answers a request that has waited, or carries it out again with what stands behind it.
    pub fn complete<'a>(
        &'a mut self,
        completion: Completion,
        out: &'a mut Vec<u8>,
        turn: &'a mut Turn,
    ) -> Taken<'a> {
        let Completion { key, end } = completion;
        self.taking = None;
        let end = match end {
            End::Untold(waiting) => return Taken::Done(self.tell_waiting(key, waiting, out)),
            end => end,
        };
        let Some(pending) = self.pending.remove(&key) else {
            return Taken::Done(Ok(Frame::Answered));
        };
        self.pending_bytes -= pending.bytes;
        self.pending_storage -= u64::from(pending.storage);
        drop(pending.held);
        let Pending { header, protection, counted, timer, rest, .. } = pending;
        let suspended = match rest {
            Rest::Answer(signs, compress) => {
                let mut pass = Pass::begin(out, protection);
                pass.answer.compress = compress;
                pass.answer.memory.clone_from(&self.remote_memory);
                self.timer = timer;
                let done = self.respond((header, counted), signs, end, pass);
                return Taken::Done(done);
            }
            Rest::Again(suspended, ..) => *suspended,
        };
        Taken::Compound(Box::pin(async move {
            let given_up = match end {
                End::Response(status, _) => Some(status),
                End::Again | End::Untold(_) => None,
            };
            let Suspended { mut bytes, accepted, chain, first, cancelled, held, .. } = suspended;
            let mut pass = Pass::begin(out, protection);
            pass.answer.memory.clone_from(&self.remote_memory);
            if let Some(held) = held {
                pass.answer.put_back(held);
            }
            (pass.chain, pass.first, pass.cancelled) = (chain, first, cancelled);
            self.requests(&mut bytes, Some((accepted, given_up)), &mut pass, turn).await?;
            pass.end()
        }))
    }

    /// Sends the response that a request has waited for.
    fn respond(
        &mut self,
        (mut header, (since, share)): (Header, (Option<Instant>, Option<Arc<ShareMeter>>)),
        signs: Option<Arc<SigningKey>>,
        end: End,
        mut pass: Pass<'_>,
    ) -> Result<Frame, Dropped> {
        let (status, body) = match end {
            End::Response(status, body) => (status, body),
            // Only what was put aside is carried out again.
            End::Again | End::Untold(_) => (NtStatus::INTERNAL_ERROR, Vec::new()),
        };
        let answer = &mut pass.answer;
        let body_at = answer.open(&header);
        header.status = status;
        if body.is_empty() {
            debug_assert!(!status.is_success(), "an ERROR response of {status} (MS-SMB2 3.3.4.4)");
            error::Response::default().encode(answer.out);
        } else {
            answer.out.extend_from_slice(&body);
        }
        let place = Place { first: true, last: true };
        answer.close(header, body_at, signs.as_ref(), place)?;
        let counted = Answered::new(header.command, status, &body).since(since);
        self.meter.answered(counted, share.as_deref());
        self.end_pass(pass)
    }

    /// Gives up a request that waits for an event (MS-SMB2 3.3.5.16); one that is being carried
    /// out ends by itself. One behind a request of its compound that waits is given up when it would
    /// wait itself. It is protected as requests of the session must be whose request it gives up, else
    /// it is ignored: there is no answer that could refuse it.
    pub(super) fn cancel(&mut self, header: &Header, message: &mut [u8], protection: &Protection) {
        let Some((key, member)) = self.cancelled_by(header) else { return };
        let Some(pending) = self.pending.get(&key) else { return };
        let session = member.unwrap_or(pending.header.session_id);
        let sealed = matches!(pending.protection, Protection::Sealed(_));
        if !self.may_cancel(header, message, protection, (session, sealed)) {
            tracing::debug!(peer = %self.peer, "a CANCEL that is not protected as it must be");
            self.meter.unprotected();
            return;
        }
        let Some(pending) = self.pending.get_mut(&key) else { return };
        match (member, &mut pending.rest) {
            (Some(_), Rest::Again(suspended, ..)) => suspended.cancel(header.message_id),
            _ => {
                if let Some(cancel) = pending.cancel.take() {
                    let _ = cancel.send(());
                }
            }
        }
    }

    /// Which request that waits a CANCEL means, or behind which the one stands that it means, with
    /// the session of that.
    fn cancelled_by(&self, header: &Header) -> Option<(u64, Option<SessionId>)> {
        if header.flags.has(HeaderFlags::ASYNC) {
            return Some((header.async_or_tree, None));
        }
        let wanted = header.message_id;
        self.pending.iter().find_map(|(&key, pending)| match &pending.rest {
            _ if pending.header.message_id == wanted => Some((key, None)),
            Rest::Again(suspended, ..) => suspended.member(wanted).map(|it| (key, Some(it))),
            Rest::Answer(..) => None,
        })
    }

    /// Whether a CANCEL has the protection that its target's session demands; the target came in that
    /// session, `sealed` or not. A signature is verified whoever demands it (3.3.5.2.4, 3.3.5.2.9); the
    /// session may be left out of a CANCEL without.
    fn may_cancel(
        &self,
        header: &Header,
        message: &mut [u8],
        protection: &Protection,
        (of, target_sealed): (SessionId, bool),
    ) -> bool {
        if let Protection::Sealed(sealed) = protection {
            return sealed.session.id == of;
        }
        if target_sealed {
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
        self.pending.values().any(|pending| pending.storage)
    }

    /// The connection is lost, and with it whoever waits for these.
    pub(super) fn drop_pending(&mut self) {
        self.pending_storage = 0;
        for (_, pending) in self.pending.drain() {
            if let Rest::Again(suspended, again, until) = pending.rest {
                suspended.outlive(self.id, again, until);
            }
        }
    }
}

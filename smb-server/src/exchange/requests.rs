//! The requests of a frame, one after the other: accept (place, credits, protection), hand to the
//! handler, answer, or have it wait.

use std::time::Instant;

use smb_protocol::{
    Command, Dialect, FileId, Header, HeaderFlags, NtStatus, compression::WORTHWHILE,
    header::HEADER_LEN, msg::error,
};
use volume::{open::in_the_way::Asked, work::Turn};

use super::{
    Exchange, Frame,
    admission::Admitted,
    answer::{Place, Protection},
    pass::{Accepted, Chain, Handed, Message, Pass, Unfinished, Waits},
    waiting::is_quiet,
};
use crate::{
    command::{self, Ctx, Failure, Outcome, negotiate::Negotiated},
    dropped::Dropped,
    meters::{Answered, path::Phase, timer::PathTimer},
    session::Tree,
};

/// Whether the next request of a frame can be carried out.
#[derive(PartialEq, Eq)]
enum Flow {
    On,
    Suspended,
}

impl Exchange {
    /// Answers a message that stands alone.
    pub(super) fn alone(
        &mut self,
        message: &mut [u8],
        protection: Protection,
        out: &mut Vec<u8>,
    ) -> Result<Frame, Dropped> {
        let mut pass = self.pass(protection, out);
        let (header, len) = split(message)?;
        let place = Place { first: true, last: true };
        if let Some(accepted) = self.accept(header, message, place, &mut pass)? {
            let message = Message { rest: message, len, place };
            if let Some(unfinished) = self.hand(accepted, message, &mut pass)? {
                self.put_off(unfinished, message, &mut pass)?;
            }
        }
        self.end_pass(pass)
    }

    /// Finishes the responses, and times that if the last request was timed.
    pub(super) fn end_pass(&mut self, pass: Pass<'_>) -> Result<Frame, Dropped> {
        if !self.timer.counts() {
            return pass.end();
        }
        let timer = std::mem::take(&mut self.timer);
        let protects = pass.answer.protects();
        let begun = Instant::now();
        let done = pass.end();
        let now = Instant::now();
        if protects {
            timer.note(Phase::Crypto, now - begun);
        }
        self.meter.answer_stands(timer, now);
        done
    }

    /// Answers the messages of a compound.
    pub(super) async fn compound(
        &mut self,
        message: &mut [u8],
        protection: Protection,
        out: &mut Vec<u8>,
        turn: &mut Turn,
    ) -> Result<Frame, Dropped> {
        let mut pass = self.pass(protection, out);
        self.requests(message, None, &mut pass, turn).await?;
        self.end_pass(pass)
    }

    fn pass<'a>(&self, protection: Protection, out: &'a mut Vec<u8>) -> Pass<'a> {
        let mut pass = Pass::begin(out, protection);
        pass.answer.memory.clone_from(&self.remote_memory);
        #[cfg(test)]
        {
            pass.answer.leaks =
                !self.server.open_files.faults.keeps(volume::faults::Rule::TakenBack);
        }
        pass
    }

    /// Carries out the requests of a frame in turn, up to one that must wait for others. The first
    /// may have been suspended: it was accepted before, and is given up with a status if there is
    /// one.
    pub(super) async fn requests(
        &mut self,
        mut rest: &mut [u8],
        mut resumed: Option<(Accepted, Option<NtStatus>)>,
        pass: &mut Pass<'_>,
        turn: &mut Turn,
    ) -> Result<(), Dropped> {
        while !rest.is_empty() {
            let (header, len) = split(rest)?;
            let place = Place { first: pass.first, last: len == rest.len() };
            let accepted = match resumed.take() {
                None => self.accept(header, &mut rest[..len], place, pass)?,
                Some((accepted, None)) => Some(accepted),
                Some((accepted, Some(status))) => {
                    pass.give_up(&accepted, status)?;
                    None
                }
            };
            let message = Message { rest, len, place };
            if let Some(accepted) = accepted
                && let Some(unfinished) = self.hand(accepted, message, pass)?
                && let Some(unfinished) = self.in_compound(unfinished, message, pass).await?
                && self.put_off(unfinished, message, pass)? == Flow::Suspended
            {
                break;
            }
            pass.first = false;
            rest = &mut rest[len..];
            if !rest.is_empty() {
                turn.pass().await;
            }
        }
        Ok(())
    }

    /// In a compound storage is waited for: what follows must see the effect, and what comes before
    /// is signed with the place of this response. Gives back what is not answered so.
    async fn in_compound(
        &mut self,
        mut unfinished: Box<Unfinished>,
        message: Message<'_>,
        pass: &mut Pass<'_>,
    ) -> Result<Option<Box<Unfinished>>, Dropped> {
        if message.is_alone() {
            return Ok(Some(unfinished));
        }
        let Waits::Deferred(deferred) = &mut unfinished.waits else { return Ok(Some(unfinished)) };
        let (status, error) = if deferred.storage {
            let (status, body) = deferred.response.as_mut().await;
            pass.answer.out.extend_from_slice(&body);
            (status, body.is_empty())
        } else if message.place.last {
            return Ok(Some(unfinished));
        } else {
            // A wait for an event can only stand at the end (MS-SMB2 3.3.4.2).
            (NtStatus::INTERNAL_ERROR, true)
        };
        let Unfinished { handed, .. } = *unfinished;
        let error = error.then(error::Response::default);
        self.answer(handed, status, error, message.place, pass)?;
        Ok(None)
    }

    /// Checks a request's place, credits and protection. What it can refuse it answers.
    fn accept(
        &mut self,
        mut header: Header,
        message: &mut [u8],
        place: Place,
        pass: &mut Pass<'_>,
    ) -> Result<Option<Accepted>, Dropped> {
        // MS-SMB2 3.3.5.2.2.
        if self.negotiated.is_none() && header.command != Command::NEGOTIATE {
            return Err(Dropped::Protocol("a request before NEGOTIATE"));
        }
        let related = header.flags.has(HeaderFlags::RELATED);
        if let Protection::Sealed(sealed) = &pass.protection {
            // What is inside names the session that it is sealed for (3.3.5.2.1.1).
            if !related && header.session_id != sealed.session.id {
                return Err(Dropped::Protocol("encrypted for one session, and names another"));
            }
        }
        if header.command == Command::CANCEL {
            if !(place.first && place.last) {
                // It has no answer that could stand in the answer to a compound.
                return Err(Dropped::Protocol("CANCEL in a compound"));
            }
            self.cancel(&header, message, &pass.protection);
            return Ok(None);
        }
        let multi = self.negotiated.as_ref().is_none_or(Negotiated::large_mtu);
        let charge = if multi { header.credit_charge.max(1) } else { 1 };
        if !self.window.consume(header.message_id, charge) {
            return Err(Dropped::Protocol("a message id that was not granted"));
        }
        if self.batch.requests == 0 {
            self.batch.before = self.storage_pending();
        }
        self.batch.requests += 1;
        self.batch.credits += u64::from(charge);
        let credits = self.grant(&header);
        if related && place.first {
            let signer = self.signer(&header);
            pass.refuse(&header, (NtStatus::INVALID_PARAMETER, credits), signer.as_ref())?;
            pass.chain.failed = Some(NtStatus::INVALID_PARAMETER);
            return Ok(None);
        }
        if related {
            header.session_id = pass.chain.session_id;
            header.async_or_tree = pass.chain.tree;
        } else {
            pass.chain = Chain {
                session_id: header.session_id,
                tree: header.async_or_tree,
                ..Chain::default()
            };
        }
        if related && let Some(status) = pass.chain.failed {
            let signer = self.signer(&header);
            pass.refuse(&header, (status, credits), signer.as_ref())?;
            return Ok(None);
        }
        let Admitted { channel, binding } = match self.admit(&header, message, &pass.protection) {
            Ok(admitted) => admitted,
            Err(status) => {
                // What is related to a request without session has none either; one whose time is
                // over is still a session (3.3.5.2.7.2).
                pass.chain.failed = Some(match status {
                    NtStatus::NETWORK_SESSION_EXPIRED => status,
                    _ => NtStatus::INVALID_PARAMETER,
                });
                let signer = self.refusal_signer(&header, message);
                self.meter.answered(Answered::new(header.command, status, &[]), None);
                pass.refuse(&header, (status, credits), signer.as_ref())?;
                return Ok(None);
            }
        };
        let placed = std::mem::take(&mut self.placed);
        Ok(Some(Accepted {
            header,
            channel,
            binding,
            credits,
            async_id: None,
            creating: None,
            asked: Asked::default(),
            placed,
        }))
    }

    /// Hands a request to its handler, and answers it if that has all. What is not finished is
    /// given back, in a box: the usual request is moved nowhere.
    fn hand(
        &mut self,
        mut accepted: Accepted,
        message: Message<'_>,
        pass: &mut Pass<'_>,
    ) -> Result<Option<Box<Unfinished>>, Dropped> {
        let header = accepted.header;
        if !pass.answer.has_room(self.max_message) {
            // One frame cannot carry more; the client may ask again in another.
            let refusal = (NtStatus::INSUFFICIENT_RESOURCES, accepted.credits);
            let signer = self.signer(&header);
            pass.refuse(&header, refusal, signer.as_ref())?;
            if header.command == Command::CREATE {
                // What is related to it is not about the file before (3.3.5.2.7.2).
                pass.chain.file = Some(Err(refusal.0));
            }
            return Ok(None);
        }
        let since = self.meter.taken();
        let related = header.flags.has(HeaderFlags::RELATED);
        let session = accepted.channel.as_ref().map(|channel| channel.session.clone());
        let mut ctx = Ctx {
            binding: accepted.binding.take().map(|binding| *binding),
            sealed: matches!(pass.protection, Protection::Sealed(_)),
            related_file: if related { pass.chain.file } else { None },
            creating: accepted.creating.take().map(|creating| *creating),
            asked: std::mem::take(&mut accepted.asked),
            placed: accepted.placed,
            timed: since.is_some(),
            compress_reply: self.came_compressed.then_some(WORTHWHILE),
            ..Ctx::new(self, header, session)
        };
        let body_at = pass.answer.open(&header);
        let result = command::dispatch(&mut ctx, message.bytes(), pass.answer.out);
        let Ctx { header: mut response, tree, file, signer, creating, asked, in_progress, .. } =
            ctx;
        let path = std::mem::take(&mut ctx.path);
        let compress = ctx.compress_reply.and_then(|least| self.compresses(tree.as_deref(), least));
        let channel = accepted.channel.as_ref();
        let signed = header.flags.has(HeaderFlags::SIGNED);
        if let Some(since) = since {
            self.time_begin(&path, since, signed, pass);
        }
        let signs = signer.or_else(|| channel.filter(|_| signed).map(|c| c.signing.clone()));
        if header.command == Command::SESSION_SETUP
            && matches!(result, Ok(Outcome::Done(NtStatus::SUCCESS)))
        {
            // Who is known now is granted as much as anybody (3.3.1.2).
            let more = header.credits.saturating_sub(accepted.credits);
            accepted.credits += self.window.grant(more);
        }
        response.credits = accepted.credits;
        if let Some(id) = accepted.async_id {
            response.flags |= HeaderFlags::ASYNC;
            response.async_or_tree = id;
        }
        let handed =
            Handed { response, body_at, signs, compress, tree, file, in_progress, since, path };
        let place = message.place;
        let waits = match result {
            Ok(Outcome::Deferred(deferred)) => Waits::Deferred(deferred),
            Err(Failure::Busy(wake)) => Waits::Busy(wake),
            Err(Failure::Disconnect(why)) => return Err(Dropped::Protocol(why)),
            Ok(Outcome::Done(status)) => {
                self.answer(handed, status, None, place, pass)?;
                return Ok(None);
            }
            Err(Failure::Status(status)) => {
                self.answer(handed, status, Some(error::Response::default()), place, pass)?;
                return Ok(None);
            }
            Err(Failure::Data(status, data)) => {
                // MS-SMB2 2.2.2.1.
                let newest =
                    self.negotiated.as_ref().is_some_and(|n| n.dialect == Dialect::SMB_3_1_1);
                let wrapped = if newest { error::in_context(&data) } else { data };
                let context_count = u8::from(newest && !wrapped.is_empty());
                let error = error::Response { context_count, data: &wrapped };
                self.answer(handed, status, Some(error), place, pass)?;
                return Ok(None);
            }
        };
        accepted.creating = creating.map(Box::new);
        accepted.asked = asked;
        Ok(Some(Box::new(Unfinished { accepted, handed, waits })))
    }

    /// Times what was before a request was handed over at `since`.
    fn time_begin(&mut self, path: &PathTimer, since: Instant, signed: bool, pass: &Pass<'_>) {
        let Some((arrived, begun)) = self.taking.take() else { return };
        path.note(Phase::Queue, begun.saturating_duration_since(arrived));
        if signed || matches!(pass.protection, Protection::Sealed(_)) {
            path.note(Phase::Crypto, since.saturating_duration_since(begun));
        }
    }

    /// Answers a request whose handler is done with it: the body is in the output, or there is none
    /// but `error`.
    fn answer(
        &mut self,
        mut handed: Handed,
        status: NtStatus,
        error: Option<error::Response<'_>>,
        place: Place,
        pass: &mut Pass<'_>,
    ) -> Result<(), Dropped> {
        let answered = error.is_none();
        let body = pass.answer.out.get(handed.body_at..).filter(|_| answered).unwrap_or_default();
        let counted = Answered::new(handed.response.command, status, body).since(handed.since);
        pass.respond(&mut handed, place, status, error)?;
        if answered && command::is_hashed(&handed.response) {
            command::after_answer(self, &handed.response, pass.answer.settle()?);
        }
        let share = handed.tree.as_deref().and_then(|tree| tree.meter.as_deref());
        self.meter.answered(counted, share);
        if handed.path.counts() {
            self.timer = std::mem::take(&mut handed.path);
        }
        inherit(&mut pass.chain, &handed.response, handed.tree.as_deref(), handed.file);
        Ok(())
    }

    /// Has a request wait, if there is room for one more that does.
    fn put_off(
        &mut self,
        unfinished: Box<Unfinished>,
        message: Message<'_>,
        pass: &mut Pass<'_>,
    ) -> Result<Flow, Dropped> {
        let Unfinished { accepted, handed, waits } = *unfinished;
        let bytes = match &waits {
            Waits::Deferred(deferred) => deferred.bytes,
            Waits::Busy(_) if is_quiet(&accepted) => {
                message.rest.len() + pass.answer.unsent(handed.body_at)
            }
            Waits::Busy(_) => message.rest.len(),
        };
        let storage = matches!(&waits, Waits::Deferred(deferred) if deferred.storage);
        let channel = accepted.channel.as_deref();
        let Ok(held) = self.room_to_wait(bytes, storage, channel) else {
            let full = NtStatus::INSUFFICIENT_RESOURCES;
            self.answer(handed, full, Some(error::Response::default()), message.place, pass)?;
            return Ok(Flow::On);
        };
        match waits {
            Waits::Deferred(deferred) => {
                let (tree, file) = (handed.tree.clone(), handed.file);
                let response = self.wait(deferred, held, handed, pass)?;
                inherit(&mut pass.chain, &response, tree.as_deref(), file);
                Ok(Flow::On)
            }
            Waits::Busy(wake) => {
                self.suspend((wake, held), message, (accepted, handed), pass)?;
                Ok(Flow::Suspended)
            }
        }
    }

    /// Credits for the answer to a request: what it asks for, at least what it used.
    fn grant(&mut self, header: &Header) -> u16 {
        let authenticated = self.authenticated();
        let wanted = header.credits.max(header.credit_charge).max(1);
        // Until someone is authenticated a few are enough.
        let wanted = if authenticated { wanted } else { wanted.min(64) };
        let granted = self.window.grant(wanted);
        self.meter.credits(self.window.held());
        granted
    }
}

/// Notes what the next related request inherits of one that was answered so (3.3.5.2.7.2).
fn inherit(chain: &mut Chain, response: &Header, tree: Option<&Tree>, file: Option<FileId>) {
    chain.session_id = response.session_id;
    if let Some(tree) = tree {
        chain.tree = u64::from(tree.id.0) << 32;
    } else if response.command == Command::TREE_CONNECT {
        chain.tree = response.async_or_tree;
    }
    if response.command == Command::CREATE && response.status.is_error() {
        chain.file = Some(Err(response.status));
    } else if let Some(file) = file {
        chain.file = Some(Ok(file));
    }
}

/// Whether others stand behind a message in its frame.
pub(super) fn is_compound(message: &[u8]) -> bool {
    let next = message.get(Header::NEXT_COMMAND_AT..Header::NEXT_COMMAND_AT + 4);
    next.is_some_and(|next| next != [0; 4])
}

/// The headers of the messages of a compound, up to one that cannot be read.
pub(super) fn messages(mut rest: &[u8]) -> impl Iterator<Item = Header> + '_ {
    std::iter::from_fn(move || {
        let (header, len) = split(rest).ok()?;
        rest = &rest[len..];
        Some(header)
    })
}

/// The header of the first message and its length with what pads it (MS-SMB2 3.3.5.2.7.1).
fn split(rest: &[u8]) -> Result<(Header, usize), Dropped> {
    let header = Header::parse(rest).map_err(|_| Dropped::Protocol("malformed header"))?;
    if header.is_response() {
        return Err(Dropped::Protocol("a response from a client"));
    }
    // 3.3.5.2.6.
    if !header.command.is_known() {
        return Err(Dropped::Protocol("a command that there is not"));
    }
    let next = header.next_command as usize;
    let len = if next == 0 { rest.len() } else { next };
    if len < HEADER_LEN || len > rest.len() || (next != 0 && !next.is_multiple_of(8)) {
        return Err(Dropped::Protocol("malformed compound"));
    }
    Ok((header, len))
}

//! The tasks of a connection: sending, receiving, looking after it.

use std::{
    sync::{Arc, Weak, atomic::Ordering},
    time::Duration,
};

use block_io::LowWater;
use bytes::{Buf, BytesMut};
use smb_protocol::{
    Command, Header, HeaderFlags, MessageId, NtStatus, TreeId, compression,
    header::{FRAME_LEN, HEADER_LEN, frame_len},
    msg::oplock::{LeaseAck, Message, OplockBreak, OplockLevel},
};
use tokio::time::Instant;

use super::{Connection, Pending, Response, lock, silence::Silence};
use crate::{
    Error, Result,
    compress::messages,
    crypt::{Crypt, split_compound},
    handshake::Limits,
};

/// Room beyond the largest payload in a frame: headers and padding.
const OVERHEAD: usize = 64 * 1024;
/// Longest payload that is believed in, whatever the server announces.
const MOST: u32 = 16 << 20;
/// What is read from the socket at once at least.
const READ_AHEAD: usize = 256 * 1024;

impl Connection {
    /// Sends what is queued until the connection is given up.
    pub(super) async fn write_loop(self: Arc<Self>) {
        let mut batch = Vec::new();
        loop {
            batch.clear();
            let work = {
                let mut shared = lock(&self.shared);
                if shared.closed.is_some() {
                    return;
                }
                // A caller that is sending wakes this task when it is done and there is more.
                if shared.sending || shared.is_idle() {
                    None
                } else {
                    shared.sending = true;
                    std::mem::swap(&mut batch, &mut shared.small);
                    Some((std::mem::take(&mut shared.begun), std::mem::take(&mut shared.large)))
                }
            };
            let Some((begun, large)) = work else {
                self.wake_writer.notified().await;
                continue;
            };
            let closed = self.wait_closed();
            let send = async {
                self.wire.send(&begun).await?;
                self.wire.send(&batch).await?;
                for request in &large {
                    self.wire.send(request).await?;
                }
                std::io::Result::Ok(())
            };
            tokio::select! {
                biased;
                result = send => match result {
                    Ok(()) => lock(&self.shared).sending = false,
                    Err(error) => self.close(Error::disconnected(error.to_string())),
                },
                () = closed => {}
            }
        }
    }

    /// Receives until the connection is given up.
    pub(super) async fn read_loop(self: Arc<Self>) {
        let closed = self.wait_closed();
        let reason = tokio::select! {
            biased;
            reason = self.receive() => reason,
            () = closed => return,
        };
        tracing::debug!(%reason, "connection ended");
        self.close(reason);
    }

    /// Receives until there is a reason to stop.
    async fn receive(self: &Arc<Self>) -> Error {
        let largest = self.limits.max_read.max(self.limits.max_transact) as usize;
        let longest = largest.min(MOST as usize) + OVERHEAD;
        let mut buffer = BytesMut::with_capacity(READ_AHEAD);
        let mut low_water = LowWater::default();
        loop {
            let missing = match self.take_frames(&mut buffer, longest) {
                Ok(missing) => missing,
                Err(error) => return error,
            };
            buffer.reserve(missing.max(READ_AHEAD / 4));
            match self.wire.receive(&mut buffer, missing, &mut low_water).await {
                Ok(0) => return Error::disconnected("the server closed it"),
                Ok(_) => {
                    let heard = self.started.elapsed().as_millis();
                    self.last_heard
                        .store(u64::try_from(heard).unwrap_or(u64::MAX), Ordering::Relaxed);
                }
                Err(error) => return Error::disconnected(error.to_string()),
            }
        }
    }

    /// Handles all complete frames and gives the number of bytes missing from the next.
    fn take_frames(self: &Arc<Self>, buffer: &mut BytesMut, longest: usize) -> Result<usize> {
        while let Some(prefix) = buffer.first_chunk::<FRAME_LEN>() {
            let len = frame_len(*prefix)?;
            if !(compression::HEADER_LEN..=longest).contains(&len) {
                return Err(Error::Protocol(format!("a message of {len} bytes")));
            }
            let Some(missing) = (FRAME_LEN + len).checked_sub(buffer.len()).filter(|n| *n > 0)
            else {
                buffer.advance(FRAME_LEN);
                let frame = buffer.split_to(len);
                self.take_frame(frame)?;
                continue;
            };
            return Ok(missing);
        }
        Ok(FRAME_LEN)
    }

    fn take_frame(self: &Arc<Self>, mut frame: BytesMut) -> Result<()> {
        let (plain, sealed) = Crypt::open(Some(&self.crypt), &mut frame)?;
        frame.advance(plain.start);
        let Limits { max_read, max_write, max_transact, .. } = self.limits;
        let largest = max_read.max(max_write).max(max_transact).min(MOST) as usize;
        let mut frame = messages(self.crypt.compression.as_ref(), frame, largest)?;
        while !frame.is_empty() {
            let (header, len) = split_compound(&frame)?;
            let message = frame.split_to(len);
            self.take_message(header, message, sealed)?;
        }
        Ok(())
    }

    fn take_message(
        self: &Arc<Self>,
        header: Header,
        mut message: BytesMut,
        sealed: bool,
    ) -> Result<()> {
        if !header.is_response() {
            return Err(Error::Protocol("a request from the server".into()));
        }
        if header.message_id == MessageId::UNSOLICITED {
            return self.take_break(&header, &message[HEADER_LEN..]);
        }
        let unasked = || Error::Protocol(format!("an answer to nothing: {:?}", header.command));
        let mut shared = lock(&self.shared);
        let pending = shared.pending.get_mut(&header.message_id.0).ok_or_else(unasked)?;
        let guard = pending.guard;
        let interim = header.status == NtStatus::PENDING && header.flags.has(HeaderFlags::ASYNC);
        if interim {
            Crypt::check(Some(&self.crypt), &mut message, &header, sealed, guard)?;
            if pending.async_id.replace(header.async_or_tree).is_some() {
                return Err(Error::Protocol("a request is announced as pending twice".into()));
            }
            let abandoned = pending.reply.is_closed();
            drop(shared);
            self.grant(0, header.credits);
            if abandoned {
                self.abandon(header.message_id.0);
            }
            return Ok(());
        }
        let Some(pending) = shared.pending.remove(&header.message_id.0) else {
            return Err(unasked());
        };
        shared.load = shared.load.saturating_sub(pending.cost.bytes.into());
        self.load.store(shared.load, Ordering::Relaxed);
        drop(shared);
        Crypt::check(Some(&self.crypt), &mut message, &header, sealed, guard)?;
        self.grant(pending.cost.charge, header.credits);
        message.advance(HEADER_LEN);
        // An error means that nobody waits any more.
        let _ = pending.reply.send(Ok(Response { header, body: message.freeze() }));
        Ok(())
    }

    /// Books the credits that a response spent and granted.
    fn grant(&self, spent: u16, granted: u16) {
        let (spent, granted) = (u32::from(spent), u32::from(granted));
        let total = self.total_credits.load(Ordering::Relaxed);
        // A server cannot make the client hold more than it could ever use.
        const MOST: u32 = 65536;
        let granted = granted.min((MOST + spent).saturating_sub(total));
        let several = total + granted > spent + 1;
        let _ = self.total_credits.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |total| {
            Some((total + granted).saturating_sub(spent))
        });
        let granted = if several { self.keep_echo_credit(granted) } else { granted };
        self.credits.add_permits(granted as usize);
    }

    /// Answers a break: nothing is cached here, so what is broken is given up at once.
    fn take_break(self: &Arc<Self>, header: &Header, body: &[u8]) -> Result<()> {
        if header.command != Command::OPLOCK_BREAK {
            return Err(Error::Protocol(format!("{:?} without being asked", header.command)));
        }
        match Message::parse(body)? {
            Message::Oplock(broken) => {
                let Some(tree) = self.group.tree_of(broken.file_id) else {
                    return Ok(());
                };
                let level = match broken.level {
                    OplockLevel::II => OplockLevel::II,
                    _ => OplockLevel::NONE,
                };
                let answer = OplockBreak { level, file_id: broken.file_id };
                self.answer_break(tree, move |out| answer.encode(out));
            }
            Message::LeaseBreak(broken) => {
                const ACK_REQUIRED: u32 = 1;
                if broken.flags & ACK_REQUIRED != 0 {
                    let tree = self.group.any_tree();
                    let answer = LeaseAck { key: broken.key, state: broken.new };
                    self.answer_break(tree, move |out| answer.encode(out));
                }
            }
            Message::LeaseAck(_) => {
                return Err(Error::Protocol("an acknowledgement without being asked".into()));
            }
        }
        Ok(())
    }

    fn answer_break(
        self: &Arc<Self>,
        tree: TreeId,
        encode: impl Fn(&mut Vec<u8>) + Send + Sync + 'static,
    ) {
        let mut connection = Arc::clone(self);
        tokio::spawn(async move {
            // A refusal means that the open is gone, and its oplock with it. What a channel took
            // with it is said again on another.
            while connection.call(Command::OPLOCK_BREAK, tree, &encode).await.is_err() {
                let Some(next) = connection.group.any() else { return };
                connection = next;
            }
        });
    }

    /// Gives the connection up when an answer is overdue or it has been silent for long, and asks
    /// for a sign of life before.
    pub(super) async fn tend(connection: Weak<Self>) {
        let mut doubted = false;
        loop {
            let Some(this) = connection.upgrade() else { return };
            let closed = this.wait_closed();
            let now = Instant::now();
            let (overdue, asked) = {
                let shared = lock(&this.shared);
                let ago = |p: &Pending| now.duration_since(p.sent);
                let late = shared.pending.values().find(|p| ago(p) > p.patience);
                let echo = shared.pending.values().find(|p| p.what == ECHO);
                (late.map(|p| (p.what, p.patience)), echo.map(ago))
            };
            if let Some((what, after)) = overdue {
                this.close(Error::Timeout { what, after });
                return;
            }
            let heard = Duration::from_millis(this.last_heard.load(Ordering::Relaxed));
            let silent = this.started.elapsed().saturating_sub(heard);
            let silence = Silence { keep_alive: this.keep_alive, silent, asked };
            if silence.is_to_be_broken() {
                this.echo();
            }
            // Other channels are better.
            this.suspect.store(silence.is_suspect(), Ordering::Relaxed);
            // What came while this process did not run is heard before the second look.
            if silence.is_death() && doubted {
                this.close(Error::Timeout { what: ECHO, after: this.keep_alive });
                return;
            }
            doubted = silence.is_death();
            let period =
                silence.next_look().min(this.request_timeout / 4).max(Duration::from_millis(10));
            drop(this);
            tokio::select! {
                biased;
                () = tokio::time::sleep(period) => {}
                () = closed => return,
            }
        }
    }
}

/// Name of the question for a sign of life.
const ECHO: &str = "ECHO";

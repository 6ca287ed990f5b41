//! The answer to one frame, under construction at the end of the output: headers, padding,
//! signatures, sealing (MS-SMB2 3.3.4.1).
//!
//! ```text
//!  output │ frames that are finished │ prefix, (transform header), messages …
//!                                    ▲ mark                                  ▲ handlers
//!   finish: sign the last message, compress the messages, seal the frame, write its prefix; the mark
//!           goes behind it
//!   drop:   the output ends at the mark again
//! ```
//!
//! So whatever becomes of a request, the output holds finished frames and nothing else once nobody
//! is at work on an answer.

use std::sync::Arc;

use smb_protocol::{
    Command, Header, HeaderFlags, MessageId, NtStatus,
    compression::Compression,
    crypto::{NonceError, Role, SigningKey, TransformHeader},
    header::{FRAME_LEN, HEADER_LEN, frame_prefix},
    msg::error,
};

use volume::work::aside;

use crate::{
    dropped::Dropped,
    session::{Sealing, Session},
    transport::{RemoteMemory, give_buffer, take_buffer},
};

/// How the answers to one frame are protected.
#[derive(Clone)]
pub(super) enum Protection {
    Plain,
    Sealed(Sealed),
}

/// A session with the keys that seal its messages: who has one can seal.
#[derive(Clone)]
pub(super) struct Sealed {
    pub(super) session: Arc<Session>,
    keys: Arc<Sealing>,
}

impl Sealed {
    /// Fails for a session that cannot be encrypted.
    pub(super) fn of(session: &Arc<Session>) -> Option<Self> {
        let keys = session.sealing.clone()?;
        Some(Self { session: session.clone(), keys })
    }

    /// Decrypts a message of this session.
    pub(super) fn open<'m>(&self, message: &'m mut [u8]) -> Result<&'m mut [u8], Dropped> {
        let opened = self.keys.opens.open(message);
        opened.map_err(|_| Dropped::Protocol("a message does not decrypt"))
    }
}

/// How a frame is compressed.
#[derive(Clone, Copy)]
pub(super) struct Packing {
    pub(super) by: Compression,
    /// What is compressed of it has so many bytes at least.
    pub(super) least: usize,
}

/// Answers of a frame that is not finished, without what stands before them.
pub(super) struct HeldAnswers {
    messages: Vec<u8>,
    /// Where the last of them begins.
    last: usize,
    /// The key that is going to sign that.
    signer: Option<Arc<SigningKey>>,
    settled: bool,
}

/// Where a message stands in its frame.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) first: bool,
    pub(super) last: bool,
}

/// The answer to one frame, under construction at the end of the output. What is not finished when
/// it is dropped is taken back.
pub(super) struct Answer<'a> {
    pub(super) out: &'a mut Vec<u8>,
    /// The mark: where the frame prefix stands; all before it is finished.
    frame: usize,
    /// Where the first message stands.
    messages: usize,
    /// Where the last closed message stands.
    last: usize,
    /// The key that is going to sign it. What stands in its header may change until then, and a
    /// key signs a message once.
    signer: Option<Arc<SigningKey>>,
    /// It was hashed as it is and cannot be changed any more.
    settled: bool,
    sealed: Option<Sealed>,
    /// The frame is compressed, if that pays.
    pub(super) compress: Option<Packing>,
    /// The client's memory, which some answers take back.
    pub(super) memory: Option<Arc<dyn RemoteMemory>>,
    /// What is not finished stays: the rule is broken.
    #[cfg(test)]
    pub(super) leaks: bool,
}

impl<'a> Answer<'a> {
    pub(super) fn begin(out: &'a mut Vec<u8>, protection: &Protection) -> Self {
        let sealed = match protection {
            Protection::Plain => None,
            Protection::Sealed(sealed) => Some(sealed.clone()),
        };
        let mut answer = Self {
            out,
            frame: 0,
            messages: 0,
            last: 0,
            signer: None,
            settled: false,
            sealed,
            compress: None,
            memory: None,
            #[cfg(test)]
            leaks: false,
        };
        answer.begin_frame();
        answer
    }

    fn begin_frame(&mut self) {
        self.frame = self.out.len();
        self.out.extend_from_slice(&[0; FRAME_LEN]);
        if self.sealed.is_some() {
            self.out.extend_from_slice(&[0; TransformHeader::LEN]);
        }
        self.messages = self.out.len();
        self.last = self.messages;
        self.signer = None;
        self.settled = false;
    }

    /// Whether an answer with `payload` bytes still fits the frame, whose length has 24 bits.
    pub(super) fn has_room(&self, payload: usize) -> bool {
        const OVERHEAD: usize = 64 << 10;
        self.out.len() - self.frame + payload + OVERHEAD < 1 << 24
    }

    /// Makes room for the header of a message; returns where its body begins.
    pub(super) fn open(&mut self, header: &Header) -> usize {
        self.out.extend_from_slice(&header.to_bytes());
        self.out.len()
    }

    /// Drops what was written behind the header.
    pub(super) fn reset(&mut self, body_at: usize) {
        self.out.truncate(body_at);
    }

    /// Drops a message that is not answered now.
    pub(super) fn abandon(&mut self, body_at: usize) {
        self.out.truncate(body_at - HEADER_LEN);
    }

    /// Completes a message but for its signature: header and padding. The message before it is
    /// signed now.
    pub(super) fn close(
        &mut self,
        mut header: Header,
        body_at: usize,
        signer: Option<&Arc<SigningKey>>,
        place: Place,
    ) -> Result<(), NonceError> {
        let start = body_at - HEADER_LEN;
        self.sign_last(start)?;
        header.flags =
            HeaderFlags::RESPONSE.or(header.flags.and(HeaderFlags::ASYNC.or(HeaderFlags::RELATED)));
        header.next_command = 0;
        header.signature = [0; 16];
        if !(place.first && place.last) {
            let over = (self.out.len() - start) % 8;
            if over != 0 {
                self.out.resize(self.out.len() + 8 - over, 0);
            }
        }
        if !place.last {
            // Signed as it will be: the next message begins here.
            header.next_command = (self.out.len() - start) as u32;
        }
        self.out[start..body_at].copy_from_slice(&header.to_bytes());
        // MS-SMB2 3.3.4.1.1 signs nothing that is sealed. What ends a logon is signed all the same, as
        // Windows does it: Samba's client, which logs on again before its ticket ends, takes no other.
        let ends_logon =
            header.command == Command::SESSION_SETUP && header.status == NtStatus::SUCCESS;
        self.signer = signer.filter(|_| self.sealed.is_none() || ends_logon).cloned();
        self.settled = false;
        self.last = start;
        Ok(())
    }

    /// Signs the message that was closed last, which ends at `end`, if it is to be.
    fn sign_last(&mut self, end: usize) -> Result<(), NonceError> {
        match self.signer.take() {
            Some(key) => key.sign(&mut self.out[self.last..end], Role::Server),
            None => Ok(()),
        }
    }

    /// Puts a message that was opened, and of which nothing but the header is there, into a frame
    /// of its own; what was answered before it goes out in the frame before. Linux' client drops
    /// the whole of an encrypted frame of which the last message says PENDING.
    pub(super) fn apart(&mut self, header: &Header, body_at: usize) -> Result<usize, Dropped> {
        if body_at - HEADER_LEN == self.messages {
            return Ok(body_at);
        }
        if self.settled {
            return Err(Dropped::Protocol("a logon in one message with what waits"));
        }
        self.abandon(body_at);
        let next = self.last + Header::NEXT_COMMAND_AT;
        self.out[next..next + 4].fill(0);
        self.finish()?;
        self.begin_frame();
        Ok(self.open(header))
    }

    /// Bytes of answers before the message that was opened last, whose frame is not finished.
    pub(super) fn unsent(&self, body_at: usize) -> usize {
        body_at - HEADER_LEN - self.messages
    }

    /// Takes what was answered in the frame out of the output, to be put back when the message that
    /// was opened last is answered as well.
    ///
    /// # Errors
    /// The nonce of the message that is not signed yet cannot be kept.
    pub(super) fn hold(&mut self, body_at: usize) -> Result<HeldAnswers, NonceError> {
        self.abandon(body_at);
        if let Some(key) = &self.signer {
            let header = Header::parse(&self.out[self.last..]);
            key.keep(header.expect("it was written here").message_id.0)?;
        }
        let messages = self.out.split_off(self.messages);
        let last = self.last - self.messages;
        self.last = self.messages;
        Ok(HeldAnswers { messages, last, signer: self.signer.take(), settled: self.settled })
    }

    /// Begins a frame with what was taken out of another.
    pub(super) fn put_back(&mut self, held: HeldAnswers) {
        self.out.extend_from_slice(&held.messages);
        self.last = self.messages + held.last;
        self.signer = held.signer;
        self.settled = held.settled;
    }

    /// Answers a request that was refused before it was dispatched.
    pub(super) fn failure(
        &mut self,
        header: &Header,
        status: NtStatus,
        credits: u16,
        signer: Option<&Arc<SigningKey>>,
    ) -> Result<(), NonceError> {
        let mut response = *header;
        let last = header.next_command == 0;
        response.status = status;
        response.credits = credits;
        let first = self.out.len() == self.messages;
        let body_at = self.open(header);
        error::Response::default().encode(self.out);
        self.close(response, body_at, signer, Place { first, last })
    }

    /// The bytes of the message that was closed last, signed now and for good.
    pub(super) fn settle(&mut self) -> Result<&[u8], NonceError> {
        self.sign_last(self.out.len())?;
        self.settled = true;
        Ok(&self.out[self.last..])
    }

    /// Whether the end of the frame signs or seals, and does nothing else that takes its time.
    pub(super) fn protects(&self) -> bool {
        (self.signer.is_some() || self.sealed.is_some()) && self.compress.is_none()
    }

    /// Completes the frame and gives it up to be sent; nothing remains of an empty one.
    pub(super) fn end(mut self) -> Result<(), NonceError> {
        self.finish()
    }

    /// The requests that the frame answers for good.
    fn answered(&self) -> Vec<MessageId> {
        let (mut all, mut messages) = (Vec::new(), &self.out[self.messages..]);
        while let Ok(header) = Header::parse(messages) {
            if header.status != NtStatus::PENDING {
                all.push(header.message_id);
            }
            match messages.get(header.next_command as usize..) {
                Some(next) if header.next_command > 0 => messages = next,
                _ => break,
            }
        }
        all
    }

    /// The one place where bytes become part of what is sent: signed, sealed, with their prefix.
    fn finish(&mut self) -> Result<(), NonceError> {
        if self.out.len() == self.messages {
            self.out.truncate(self.frame);
            return Ok(());
        }
        self.sign_last(self.out.len())?;
        let sealed = self.sealed.clone();
        let answered = sealed.as_ref().and(self.memory.as_ref()).map(|_| self.answered());
        if let Some(packing) = self.compress.take() {
            self.pack(packing);
        }
        let payload = self.frame + FRAME_LEN;
        if let Some(Sealed { session, keys }) = sealed {
            keys.seals.seal(session.id.0, &mut self.out[payload..])?;
        }
        if let (Some(memory), Some(answered)) = (&self.memory, answered)
            && let Some(signature) = self.out[payload..][TransformHeader::SIGNATURE].first_chunk()
        {
            memory.hidden(&answered, *signature);
        }
        let len = self.out.len() - payload;
        let prefix = frame_prefix(len).expect("every message was begun with room for the largest");
        self.out[self.frame..payload].copy_from_slice(&prefix);
        self.frame = self.out.len();
        Ok(())
    }
}

/// Bytes at the beginning of a frame that are not compressed: the header of a READ's answer, which says
/// whose it is, and the fixed part of its body.
const LEAD: usize = HEADER_LEN + 16;
/// What takes less than a millisecond is compressed where it is.
const INLINE: usize = 64 << 10;

impl Answer<'_> {
    /// Compresses the messages of the frame, if that pays (MS-SMB2 3.3.4.1.5): signed they are, sealed
    /// they will be.
    fn pack(&mut self, Packing { by, least }: Packing) {
        let messages = &self.out[self.messages..];
        if messages.len() < LEAD + least {
            return;
        }
        let mut packed = take_buffer();
        let mut pack = || by.compress(messages, LEAD, &mut packed);
        if if messages.len() > INLINE { aside(pack) } else { pack() } {
            self.out.truncate(self.messages);
            self.out.extend_from_slice(&packed);
        }
        give_buffer(packed);
    }
}

impl Drop for Answer<'_> {
    fn drop(&mut self) {
        #[cfg(test)]
        if self.leaks {
            return;
        }
        self.out.truncate(self.frame);
    }
}

/// Tells the client that its request waits (MS-SMB2 3.3.4.2).
pub(super) fn interim(
    response: &mut Header,
    key: u64,
    body_at: usize,
    answer: &mut Answer<'_>,
) -> Result<(), Dropped> {
    let body_at = answer.apart(response, body_at)?;
    response.flags |= HeaderFlags::ASYNC;
    response.async_or_tree = key;
    response.status = NtStatus::PENDING;
    error::Response::default().encode(answer.out);
    // Not signed: the final answer has the same message id, and with it the same nonce. It is
    // the last of its frame: what stands behind it is answered later.
    answer.close(*response, body_at, None, Place { first: false, last: true })?;
    response.credits = 0;
    Ok(())
}

/// A header for an answer to a message that is not SMB 2.
pub fn plain_header(command: Command) -> Header {
    Header { command, message_id: MessageId(0), credits: 1, ..Header::default() }
}

/// Writes one unprotected message in a frame of its own.
pub fn plain_frame(header: Header, out: &mut Vec<u8>, body: impl FnOnce(&mut Vec<u8>)) {
    const PLAIN: &str = "what is neither signed nor sealed needs no nonce";
    let mut answer = Answer::begin(out, &Protection::Plain);
    let body_at = answer.open(&header);
    body(answer.out);
    answer.close(header, body_at, None, Place { first: true, last: true }).expect(PLAIN);
    answer.end().expect(PLAIN);
}

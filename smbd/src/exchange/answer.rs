//! The answer to one frame, under construction at the end of the output: headers, padding,
//! signatures, sealing (MS-SMB2 3.3.4.1).

use std::sync::Arc;

use smb_protocol::{
    Command, Header, HeaderFlags, MessageId, NtStatus,
    crypto::{Role, SigningKey, TransformHeader},
    header::{FRAME_LEN, HEADER_LEN, frame_prefix},
    msg::error,
};

use crate::session::Session;

/// How the answers to one frame are protected.
#[derive(Clone)]
pub(super) enum Protection {
    Plain,
    Sealed(Arc<Session>),
}

/// Where a message stands in its frame.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) first: bool,
    pub(super) last: bool,
}

/// The answer to one frame, under construction at the end of the output.
pub(super) struct Answer<'a> {
    pub(super) out: &'a mut Vec<u8>,
    /// Where the frame prefix stands.
    pub(super) frame: usize,
    /// Where the first message stands.
    pub(super) messages: usize,
    /// Where the last closed message stands.
    pub(super) last: usize,
    /// The key that signed it.
    signer: Option<Arc<SigningKey>>,
    pub(super) sealed: Option<Arc<Session>>,
}

impl<'a> Answer<'a> {
    pub(super) fn begin(out: &'a mut Vec<u8>, protection: &Protection) -> Self {
        let sealed = match protection {
            Protection::Plain => None,
            Protection::Sealed(session) => Some(session.clone()),
        };
        let mut answer = Self { out, frame: 0, messages: 0, last: 0, signer: None, sealed };
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

    /// Completes a message: header, padding, signature.
    pub(super) fn close(
        &mut self,
        mut header: Header,
        body_at: usize,
        signer: Option<&Arc<SigningKey>>,
        place: Place,
    ) {
        let start = body_at - HEADER_LEN;
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
        if let Some(signing) = signer
            && self.sealed.is_none()
        {
            signing.sign(&mut self.out[start..], Role::Server);
            self.signer = Some(signing.clone());
        } else {
            self.signer = None;
        }
        self.last = start;
    }

    /// Puts a message that was opened, and of which nothing but the header is there, into a frame
    /// of its own; what was answered before it goes out in the frame before. Linux' client drops
    /// the whole of an encrypted frame of which the last message says PENDING.
    pub(super) fn apart(&mut self, header: &Header, body_at: usize) -> usize {
        if body_at - HEADER_LEN == self.messages {
            return body_at;
        }
        self.abandon(body_at);
        let next = self.last + Header::NEXT_COMMAND_AT;
        self.out[next..next + 4].fill(0);
        if let Some(signing) = self.signer.take() {
            signing.sign(&mut self.out[self.last..], Role::Server);
        }
        self.finish();
        self.begin_frame();
        self.open(header)
    }

    /// Answers a request that was refused before it was dispatched.
    pub(super) fn failure(
        &mut self,
        header: &Header,
        status: NtStatus,
        credits: u16,
        signer: Option<&Arc<SigningKey>>,
    ) {
        let mut response = *header;
        let last = header.next_command == 0;
        response.status = status;
        response.credits = credits;
        let first = self.out.len() == self.messages;
        let body_at = self.open(header);
        error::Response::default().encode(self.out);
        self.close(response, body_at, signer, Place { first, last });
    }

    /// The bytes of the message that was closed last.
    pub(super) fn last_message(&self) -> &[u8] {
        &self.out[self.last..]
    }

    /// Completes the frame: seals it, writes its prefix; nothing remains of an empty one.
    pub(super) fn end(mut self) {
        self.finish();
    }

    fn finish(&mut self) {
        if self.out.len() == self.messages {
            self.out.truncate(self.frame);
            return;
        }
        let payload = self.frame + FRAME_LEN;
        if let Some(session) = &self.sealed
            && let Some((sealing, _)) = &session.sealing
        {
            sealing.seal(session.id.0, &mut self.out[payload..]);
        }
        let len = self.out.len() - payload;
        let prefix = frame_prefix(len).expect("every message was begun with room for the largest");
        self.out[self.frame..payload].copy_from_slice(&prefix);
    }
}

/// Tells the client that its request waits (MS-SMB2 3.3.4.2).
pub(super) fn interim(response: &mut Header, key: u64, body_at: usize, answer: &mut Answer<'_>) {
    let body_at = answer.apart(response, body_at);
    response.flags |= HeaderFlags::ASYNC;
    response.async_or_tree = key;
    response.status = NtStatus::PENDING;
    error::Response::default().encode(answer.out);
    // Not signed: the final answer has the same message id, and with it the same nonce. It is
    // the last of its frame: what stands behind it is answered later.
    answer.close(*response, body_at, None, Place { first: false, last: true });
    response.credits = 0;
}

/// A header for an answer to a message that is not SMB 2.
pub fn plain_header(command: Command) -> Header {
    Header { command, message_id: MessageId(0), credits: 1, ..Header::default() }
}

/// Writes one unprotected message in a frame of its own and returns where the message stands.
pub fn plain_frame(header: Header, out: &mut Vec<u8>, body: impl FnOnce(&mut Vec<u8>)) -> usize {
    let mut answer = Answer::begin(out, &Protection::Plain);
    let body_at = answer.open(&header);
    body(answer.out);
    answer.close(header, body_at, None, Place { first: true, last: true });
    let start = answer.last;
    answer.end();
    start
}

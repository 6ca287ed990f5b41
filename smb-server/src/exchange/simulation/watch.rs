//! Who listens on the network: what is sent in the clear, and under which nonces the rest.

use std::collections::HashSet;

use smb_protocol::{
    Command, Header, HeaderFlags, MessageId, SessionId,
    compression::{Compression, CompressionAlgorithm, Packed},
    crypto::{Role, TransformHeader},
    header::{FRAME_LEN, frame_len},
};

use super::Checked;

/// What was seen.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// Sessions whose client has encrypted something.
    sealed: HashSet<SessionId>,
    /// Nonces of sealed messages, with whose key.
    seals: HashSet<(SessionId, Role, [u8; 16])>,
    /// Message ids, and whether it is a CANCEL, of what was signed with AES-GMAC.
    tags: HashSet<(SessionId, Role, MessageId, bool)>,
}

impl Watch {
    /// Looks at a frame of one side, without its prefix; `gmac` says that signatures have nonces.
    pub(super) fn frame(&mut self, frame: &[u8], sender: Role, gmac: bool) -> Checked {
        if TransformHeader::starts(frame) {
            let header = TransformHeader::parse(frame).map_err(|e| e.to_string())?;
            let session = SessionId(header.session_id);
            if sender == Role::Client {
                self.sealed.insert(session);
            }
            return match self.seals.insert((session, sender, header.nonce)) {
                true => Ok(()),
                false => Err(format!("{sender:?} seals twice with one nonce in {session:?}")),
            };
        }
        if Packed::starts(frame) {
            // Whoever listens can decompress it.
            let all = CompressionAlgorithm::ALL;
            let agreed = Compression::agreed(&all, &all, true).expect("they are in common");
            let packed = Packed::parse(&agreed, frame, 8 << 20).map_err(|e| e.to_string())?;
            let mut whole = Vec::new();
            packed.unpack(&mut whole).map_err(|e| e.to_string())?;
            return self.frame(&whole, sender, gmac);
        }
        let mut rest = frame;
        loop {
            let header = Header::parse(rest)
                .map_err(|_| format!("{sender:?} sends what is no message: {rest:02x?}"))?;
            let hello = matches!(header.command, Command::NEGOTIATE | Command::SESSION_SETUP);
            if self.sealed.contains(&header.session_id) && !hello {
                let session = header.session_id;
                return Err(format!("{sender:?} sends of {session:?} in the clear: {header:?}"));
            }
            let cancels = header.command == Command::CANCEL;
            let tag = (header.session_id, sender, header.message_id, cancels);
            if gmac && header.flags.has(HeaderFlags::SIGNED) && !self.tags.insert(tag) {
                return Err(format!("{sender:?} signs twice with one nonce: {tag:?}"));
            }
            match header.next_command as usize {
                0 => return Ok(()),
                next => rest = rest.get(next..).ok_or("a compound without end")?,
            }
        }
    }

    /// Looks at what a server has sent, which is whole frames.
    pub(super) fn frames(&mut self, mut out: &[u8], gmac: bool) -> Checked {
        while !out.is_empty() {
            let prefix = out.first_chunk::<FRAME_LEN>().ok_or("half a frame is sent")?;
            let len = frame_len(*prefix).map_err(|e| e.to_string())?;
            let frame = out.get(FRAME_LEN..FRAME_LEN + len).ok_or("half a frame is sent")?;
            self.frame(frame, Role::Server, gmac)?;
            out = &out[FRAME_LEN + len..];
        }
        Ok(())
    }
}

//! Messages that come compressed (MS-SMB2 3.3.5.2.1.2).

use smb_protocol::compression::{Compression, Packed};
use volume::{
    budget::Held,
    work::{Turn, aside},
};

use super::{
    Exchange, Taken,
    answer::{Packing, Protection},
    requests,
};
use crate::{
    command::negotiate::Negotiated,
    config::ShareCompression,
    dropped::Dropped,
    session::Tree,
    transport::{give_buffer, take_buffer},
};

/// What takes less than a millisecond is decompressed where it is.
const INLINE: usize = 256 << 10;

/// A message that was decompressed, with what it takes of its user's budget meanwhile.
struct Unpacked {
    message: Vec<u8>,
    _held: Option<Held>,
}

impl Drop for Unpacked {
    fn drop(&mut self) {
        give_buffer(std::mem::take(&mut self.message));
    }
}

impl Exchange {
    /// How messages of this connection are compressed, if they are.
    pub fn compression(&self) -> Option<Compression> {
        self.negotiated.as_ref().and_then(|negotiated: &Negotiated| negotiated.compression)
    }

    /// How the answer to a request of this tree is compressed whose client wants that, if it has
    /// `least` bytes.
    pub(super) fn compresses(&self, tree: Option<&Tree>, least: usize) -> Option<Packing> {
        let off = tree.is_some_and(|tree| tree.share.compression == ShareCompression::Off);
        self.compression().filter(|_| !off).map(|by| Packing { by, least })
    }

    /// Takes a compressed message, which was decrypted if it was encrypted.
    pub(super) fn take_packed<'a>(
        &'a mut self,
        message: &[u8],
        protection: Protection,
        out: &'a mut Vec<u8>,
        turn: &'a mut Turn,
    ) -> Taken<'a> {
        let mut unpacked = match self.unpack(message) {
            Ok(unpacked) => unpacked,
            Err(dropped) => return Taken::Done(Err(dropped)),
        };
        self.came_compressed = true;
        if requests::is_compound(&unpacked.message) {
            return Taken::Compound(Box::pin(async move {
                let done = self.compound(&mut unpacked.message, protection, out, turn).await;
                self.came_compressed = false;
                done
            }));
        }
        let done = self.alone(&mut unpacked.message, protection, out);
        self.came_compressed = false;
        Taken::Done(done)
    }

    /// Decompresses a message. How long it will be is known, and allowed, before memory is spent. One that
    /// is longer than is allowed ends the connection (3.3.5.2.1.2), and what others hold at the moment
    /// makes that less: nothing can be answered to a message whose id is not known before it is
    /// decompressed.
    fn unpack(&self, message: &[u8]) -> Result<Unpacked, Dropped> {
        let agreed = self.compression();
        let agreed = agreed.ok_or(Dropped::Protocol("compressed, which was not agreed on"))?;
        let packed = Packed::parse(&agreed, message, self.max_message())?;
        let room = (self.limits.pending_bytes.0 as usize).saturating_sub(self.pending_bytes);
        let user = self.sessions.values().next().map(|channel| &channel.session.user);
        let held = user.map(|user| user.bytes.take(packed.len()));
        if packed.len() > room || matches!(held, Some(None)) {
            return Err(Dropped::NoRoom(packed.len()));
        }
        let mut unpacked = Unpacked { message: take_buffer(), _held: held.flatten() };
        let bytes = &mut unpacked.message;
        let mut unpack = || packed.unpack(bytes);
        if packed.len() > INLINE { aside(unpack) } else { unpack() }?;
        Ok(unpacked)
    }
}

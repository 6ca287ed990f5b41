//! Signing and sealing messages after a logon, the AES tokens of RFC 4121 4.2.6 with the body of the
//! message in its place (MS-KILE 3.4.5.4 to 3.4.5.7).
//!
//! ```text
//!  signed   header ‖ checksum(message ‖ header)
//!  sealed   header ‖ E(filler ‖ header') ‖ checksum ‖ E(confounder)      and E(body) in the message
//!           the text that is encrypted: confounder ‖ body ‖ filler ‖ header', with RRC 0 in header'
//! ```

use std::ops::Range;

use super::crypto::Key;
use crate::{
    crypto::constant_time_eq,
    gss::{Error, Side},
};

/// Length of a token's header (RFC 4121 4.2.6).
const HEADER_LEN: usize = 16;
/// Extra count: a block, as MS-KILE 3.4.5.4.1 asks for with AES.
const FILLER_LEN: usize = 16;
/// `TOK_ID` of a token of GSS_GetMIC and of GSS_Wrap.
const TOKEN_MIC: [u8; 2] = [4, 4];
const TOKEN_WRAP: [u8; 2] = [5, 4];
/// `Sealed` of the flags.
const SEALED: u8 = 2;

/// A context's key and the numbers of the next messages.
#[derive(Debug, Clone)]
pub struct Numbered {
    pub(super) key: Key,
    /// Of what the client sends.
    pub(super) initiator: u64,
    /// Of what the server sends.
    pub(super) acceptor: u64,
}

impl Numbered {
    /// Begins to protect messages as one of the sides.
    #[must_use]
    pub fn messages(&self, side: Side) -> Messages {
        let (send, receive) = match side {
            Side::Initiator => (self.initiator, self.acceptor),
            Side::Acceptor => (self.acceptor, self.initiator),
        };
        Messages { key: self.key.clone(), side, send, receive }
    }
}

/// The messages of both sides.
#[derive(Debug)]
pub struct Messages {
    key: Key,
    side: Side,
    send: u64,
    receive: u64,
}

impl Side {
    fn other(self) -> Self {
        match self {
            Self::Initiator => Self::Acceptor,
            Self::Acceptor => Self::Initiator,
        }
    }

    pub(super) fn flag(self) -> u8 {
        u8::from(self == Self::Acceptor)
    }

    /// Key usage numbers of signing and of sealing (RFC 4121 2).
    pub(super) fn usage(self, seal: bool) -> u32 {
        match (self, seal) {
            (Self::Acceptor, true) => 22,
            (Self::Acceptor, false) => 23,
            (Self::Initiator, true) => 24,
            (Self::Initiator, false) => 25,
        }
    }
}

/// The three parts of a message around its body.
fn split(message: &mut [u8], body: Range<usize>) -> (&[u8], &mut [u8], &[u8]) {
    let (message, behind) = message.split_at_mut(body.end);
    let (before, body) = message.split_at_mut(body.start);
    (before, body, behind)
}

impl Messages {
    /// The header of a signature (RFC 4121 4.2.6.1).
    fn mic_header(sender: Side, number: u64) -> [u8; HEADER_LEN] {
        let mut header = [0xff; HEADER_LEN];
        header[..2].copy_from_slice(&TOKEN_MIC);
        header[2] = sender.flag();
        header[8..].copy_from_slice(&number.to_be_bytes());
        header
    }

    /// The header of a sealed message (RFC 4121 4.2.6.2).
    fn wrap_header(sender: Side, number: u64, filler: u16, rotated: u16) -> [u8; HEADER_LEN] {
        let mut header = [0xff; HEADER_LEN];
        header[..2].copy_from_slice(&TOKEN_WRAP);
        header[2] = sender.flag() | SEALED;
        header[4..6].copy_from_slice(&filler.to_be_bytes());
        header[6..8].copy_from_slice(&rotated.to_be_bytes());
        header[8..].copy_from_slice(&number.to_be_bytes());
        header
    }

    fn sum_len(&self) -> usize {
        self.key.etype.mac_len()
    }

    /// RRC: what is rotated beside the filler, a header and the checksum.
    fn rotated(&self) -> u16 {
        (HEADER_LEN + self.sum_len()) as u16
    }

    /// Length of a signature in bytes.
    pub fn signature_len(&self, seal: bool) -> usize {
        let block = if seal { FILLER_LEN + 2 * HEADER_LEN } else { 0 };
        HEADER_LEN + block + self.sum_len()
    }

    /// Signs a message and seals its body.
    pub fn protect(&mut self, message: &mut [u8], body: Range<usize>, seal: bool) -> Vec<u8> {
        let (usage, number) = (self.side.usage(seal), self.send);
        self.send = self.send.wrapping_add(1);
        if !seal {
            let header = Self::mic_header(self.side, number);
            return [&header[..], &self.key.checksum(usage, &[message, &header])].concat();
        }
        let filler = FILLER_LEN as u16;
        let plain = Self::wrap_header(self.side, number, filler, 0);
        let trailer = [&[0xff; FILLER_LEN][..], &plain].concat();
        let (first, trailer, sum) = self.key.seal_between(usage, split(message, body), &trailer);
        let header = Self::wrap_header(self.side, number, filler, self.rotated());
        [&header[..], &trailer, &sum, &first].concat()
    }

    /// Opens the body of a message and checks its signature.
    ///
    /// # Errors
    /// [`Error`] says what is wrong with it.
    pub fn open(
        &mut self,
        message: &mut [u8],
        body: Range<usize>,
        seal: bool,
        signature: &[u8],
    ) -> Result<(), Error> {
        let sender = self.side.other();
        let usage = sender.usage(seal);
        let (header, rest) = signature.split_first_chunk::<HEADER_LEN>().ok_or(Error::Malformed)?;
        let number = self.receive;
        if !seal {
            self.fits(header, &Self::mic_header(sender, number))?;
            self.receive = self.receive.wrapping_add(1);
            let sum = self.key.checksum(usage, &[message, header]);
            return if constant_time_eq(&sum, rest) { Ok(()) } else { Err(Error::Forged) };
        }
        let filler = u16::from_be_bytes([header[4], header[5]]);
        self.fits(header, &Self::wrap_header(sender, number, filler, self.rotated()))?;
        self.receive = self.receive.wrapping_add(1);
        let trailer_len = usize::from(filler) + HEADER_LEN;
        let (trailer, rest) = rest.split_at_checked(trailer_len).ok_or(Error::Malformed)?;
        let (sum, first) = rest.split_at_checked(self.sum_len()).ok_or(Error::Malformed)?;
        let opened = self.key.open_between(usage, split(message, body), (first, trailer, sum));
        let trailer = opened.map_err(|_| Error::Forged)?;
        let plain = Self::wrap_header(sender, number, filler, 0);
        if trailer[usize::from(filler)..] == plain { Ok(()) } else { Err(Error::Forged) }
    }

    /// Whether a header is the one that is due.
    fn fits(&self, header: &[u8; HEADER_LEN], due: &[u8; HEADER_LEN]) -> Result<(), Error> {
        match (header[..8] == due[..8], header[8..] == due[8..]) {
            (true, true) => Ok(()),
            (true, false) => Err(Error::Sequence),
            (false, _) => Err(Error::Malformed),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{gss::Protection, kerberos::crypto::Etype};

    const ALL: [Etype; 4] =
        [Etype::Aes128Sha1, Etype::Aes256Sha1, Etype::Aes128Sha256, Etype::Aes256Sha384];

    fn protection(etype: Etype) -> Protection {
        let key = Key::new(etype, &[7; 32][..etype.key_len()]).unwrap();
        Protection::Kerberos(Numbered { key, initiator: 77, acceptor: u64::from(u32::MAX) })
    }

    /// The lengths that Windows and Heimdal have for AES with SHA-1: 28 and 76 bytes.
    #[test]
    fn signatures_have_the_known_lengths() {
        let context = protection(Etype::Aes256Sha1).begin(Side::Acceptor);
        assert_eq!((context.signature_len(false), context.signature_len(true)), (28, 76));
    }

    /// RFC 4121 4.2.6: identifiers, flags, EC and RRC at their places.
    #[test]
    fn headers_are_those_of_the_rfc() {
        let mut context = protection(Etype::Aes128Sha1).begin(Side::Acceptor);
        let sealed = context.protect(&mut [1; 32], 0..32, true);
        let number = u32::MAX.to_be_bytes();
        assert_eq!(sealed[..8], [5, 4, 3, 0xff, 0, 16, 0, 28]);
        assert_eq!(sealed[8..16], [&[0; 4][..], &number].concat());
        let signed = context.protect(&mut [1; 32], 0..32, false);
        assert_eq!(signed[..8], [4, 4, 1, 0xff, 0xff, 0xff, 0xff, 0xff]);
        assert_eq!(signed[8..16], (u64::from(u32::MAX) + 1).to_be_bytes());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn messages_are_opened_in_their_order_and_changed_ones_are_not(
            which in 0..4usize,
            texts in prop::collection::vec((prop::collection::vec(any::<u8>(), 8..80), any::<bool>()), 1..5),
            bit in any::<prop::sample::Index>(), seal: bool, skip: bool,
        ) {
            let protection = protection(ALL[which]);
            let (mut client, mut server) =
                (protection.begin(Side::Initiator), protection.begin(Side::Acceptor));
            for (text, seal) in &texts {
                let mut message = text.clone();
                let body = 3..text.len() - 2;
                let signature = server.protect(&mut message, body.clone(), *seal);
                prop_assert_eq!(signature.len(), server.signature_len(*seal));
                prop_assert_eq!(&message[..3], &text[..3]);
                client.open(&mut message, body, *seal, &signature).unwrap();
                prop_assert_eq!(&message, text);
            }
            let mut message = texts[0].0.clone();
            let body = 3..message.len() - 2;
            if skip {
                server.protect(&mut message.clone(), body.clone(), seal);
            }
            let mut signature = server.protect(&mut message, body.clone(), seal);
            let bit = bit.index((message.len() + signature.len()) * 8);
            let place = bit / 8;
            match place.checked_sub(message.len()) {
                None => message[place] ^= 1 << (bit % 8),
                Some(place) => signature[place] ^= 1 << (bit % 8),
            }
            prop_assert!(client.open(&mut message, body, seal, &signature).is_err());
        }

        #[test]
        fn noise_is_refused(noise in prop::collection::vec(any::<u8>(), 0..120), seal: bool, real: bool) {
            let mut context = protection(Etype::Aes128Sha256).begin(Side::Initiator);
            let mut noise = noise;
            if real && noise.len() >= 16 {
                let mut server = protection(Etype::Aes128Sha256).begin(Side::Acceptor);
                let signature = server.protect(&mut [0; 40], 0..40, seal);
                noise[..16].copy_from_slice(&signature[..16]);
            }
            prop_assert!(context.open(&mut [0; 40], 4..36, seal, &noise).is_err());
        }
    }
}

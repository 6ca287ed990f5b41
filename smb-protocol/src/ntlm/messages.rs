//! Signing and sealing messages after an NTLM logon (MS-NLMP 3.4.3, 3.4.4.2, 3.4.6 to 3.4.9).

use std::{fmt, ops::Range};

use rc4::{KeyInit, Rc4, StreamCipher};
use zeroize::Zeroizing;

use super::compute;
use crate::{crypto::constant_time_eq, gss::Error};

/// One side's messages: its keys, where its key stream stands, and the next number.
struct Stream {
    sign: Zeroizing<[u8; 16]>,
    cipher: Rc4,
    next: u32,
}

/// The messages of both sides, with extended session security.
pub struct Messages {
    ours: Stream,
    theirs: Stream,
    key_exchange: bool,
    seals: bool,
}

/// The signing and the sealing key of one side.
pub(super) type SideKeys<'a> = (&'a [u8; 16], &'a [u8; 16]);

impl Stream {
    fn new((sign, seal): SideKeys<'_>, next: u32) -> Self {
        let cipher = Rc4::new_from_slice(seal).expect("RC4 takes keys of 1 to 256 bytes");
        Self { sign: Zeroizing::new(*sign), cipher, next }
    }

    /// The signature of the next message, whose body was sealed before (MS-NLMP 3.4.4.2).
    fn signature(&mut self, code: [u8; 16], key_exchange: bool) -> [u8; 16] {
        let mut signature = [0; 16];
        signature[0] = 1;
        signature[4..12].copy_from_slice(&code[..8]);
        if key_exchange {
            self.cipher.apply_keystream(&mut signature[4..12]);
        }
        signature[12..].copy_from_slice(&self.next.to_le_bytes());
        self.next = self.next.wrapping_add(1);
        signature
    }

    fn code(&self, message: &[u8]) -> [u8; 16] {
        compute::hmac_md5(&*self.sign, &[&self.next.to_le_bytes(), message])
    }
}

impl Messages {
    /// Length of NTLMSSP_MESSAGE_SIGNATURE (MS-NLMP 2.2.2.9).
    pub const SIGNATURE_LEN: usize = 16;

    pub(super) fn new(
        ours: SideKeys<'_>,
        theirs: SideKeys<'_>,
        signed: u32,
        (key_exchange, seals): (bool, bool),
    ) -> Self {
        let (ours, theirs) = (Stream::new(ours, signed), Stream::new(theirs, signed));
        Self { ours, theirs, key_exchange, seals }
    }

    /// Whether sealing was negotiated.
    pub fn can_seal(&self) -> bool {
        self.seals
    }

    /// Signs a message and seals its body.
    pub fn protect(&mut self, message: &mut [u8], body: Range<usize>, seal: bool) -> [u8; 16] {
        let code = self.ours.code(message);
        if seal {
            self.ours.cipher.apply_keystream(&mut message[body]);
        }
        self.ours.signature(code, self.key_exchange)
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
        let signature: &[u8; 16] = signature.try_into().map_err(|_| Error::Malformed)?;
        if signature[..4] != [1, 0, 0, 0] {
            return Err(Error::Malformed);
        }
        if signature[12..] != self.theirs.next.to_le_bytes() {
            return Err(Error::Sequence);
        }
        if seal {
            self.theirs.cipher.apply_keystream(&mut message[body]);
        }
        let code = self.theirs.code(message);
        let want = self.theirs.signature(code, self.key_exchange);
        if constant_time_eq(&want, signature) { Ok(()) } else { Err(Error::Forged) }
    }
}

impl fmt::Debug for Messages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (ours, theirs) = (self.ours.next, self.theirs.next);
        f.debug_struct("Messages").field("ours", &ours).field("theirs", &theirs).finish()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::{
        crypto::testing::hex,
        gss::{Protection, Side},
        ntlm::{Flags, SessionSecurity, compute},
    };

    fn security(more: u32) -> SessionSecurity {
        let base = Flags::SIGN.0 | Flags::EXTENDED_SECURITY.0 | Flags::KEY_128.0;
        SessionSecurity::new(&[0x55; 16], Flags(base | more)).unwrap()
    }

    /// MS-NLMP 4.2.4.4: GSS_WrapEx of `Plaintext`.
    #[test]
    fn sealed_as_in_the_specification() {
        let security = security(Flags::KEY_EXCHANGE.0 | Flags::SEAL.0);
        let mut client = Protection::Ntlm(security, 0).begin(Side::Initiator);
        let mut text = compute::utf16("Plaintext");
        let signature = client.protect(&mut text, 0..18, true);
        assert_eq!(text, hex("54e50165bf1936dc996020c1811b0f06fb5f"));
        assert_eq!(signature, hex("010000007fb38ec5c55d497600000000"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn messages_are_opened_in_their_order_and_changed_ones_are_not(
            texts in prop::collection::vec((prop::collection::vec(any::<u8>(), 8..60), any::<bool>()), 1..6),
            exchange: bool, signed in 0..2u32, bit in any::<prop::sample::Index>(), skip: bool,
        ) {
            let more = if exchange { Flags::KEY_EXCHANGE.0 } else { 0 };
            let protection = Protection::Ntlm(security(more | Flags::SEAL.0), signed);
            let (mut client, mut server) =
                (protection.begin(Side::Initiator), protection.begin(Side::Acceptor));
            for (text, seal) in &texts {
                let mut message = text.clone();
                let body = 3..text.len() - 2;
                let signature = client.protect(&mut message, body.clone(), *seal);
                prop_assert_eq!(&message[..3], &text[..3]);
                server.open(&mut message, body, *seal, &signature).unwrap();
                prop_assert_eq!(&message, text);
            }
            let (text, seal) = &texts[0];
            let mut message = text.clone();
            if skip {
                client.protect(&mut message.clone(), 0..1, *seal);
            }
            let body = 3..text.len() - 2;
            let mut signature = client.protect(&mut message, body.clone(), *seal);
            let bit = bit.index((message.len() + 16) * 8);
            let place = bit / 8;
            match place.checked_sub(message.len()) {
                None => message[place] ^= 1 << (bit % 8),
                Some(place) => signature[place] ^= 1 << (bit % 8),
            }
            prop_assert!(server.open(&mut message, body, *seal, &signature).is_err());
        }
    }

    #[test]
    fn what_was_not_negotiated_is_known() {
        let begin = |flags| Protection::Ntlm(security(flags), 0).begin(Side::Acceptor).can_seal();
        assert!(begin(Flags::SEAL.0) && !begin(0));
    }
}

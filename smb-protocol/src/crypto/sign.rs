//! Message signatures (MS-SMB2 3.1.4.1).

use std::fmt;

use aws_lc_rs::{
    aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey},
    cmac, hmac,
};

use zeroize::Zeroizing;

use super::{
    constant_time_eq,
    once::{NonceError, Once},
};

/// Length of the SMB2 header that every signed message starts with.
const HEADER_LEN: usize = 64;
const COMMAND: usize = 12;
const FLAGS: usize = 16;
const MESSAGE_ID: usize = 24;
const SIGNATURE: std::ops::Range<usize> = 48..64;
const FLAG_SIGNED: u8 = 0x08;
const COMMAND_CANCEL: u16 = 0x000c;

/// How messages are signed (MS-SMB2 2.2.3.1.7).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum SigningAlgorithm {
    /// Dialects 2.0.2 and 2.1.
    HmacSha256,
    /// Dialects 3.0 and 3.0.2, and 3.1.1 without a negotiated algorithm.
    AesCmac,
    /// Dialect 3.1.1 when both sides offer it.
    AesGmac,
}

impl SigningAlgorithm {
    /// The identifier in SMB2_SIGNING_CAPABILITIES.
    #[must_use]
    pub fn wire_id(self) -> u16 {
        match self {
            Self::HmacSha256 => 0,
            Self::AesCmac => 1,
            Self::AesGmac => 2,
        }
    }

    /// The algorithm of an identifier in SMB2_SIGNING_CAPABILITIES, if it is known.
    #[must_use]
    pub fn from_wire_id(id: u16) -> Option<Self> {
        match id {
            0 => Some(Self::HmacSha256),
            1 => Some(Self::AesCmac),
            2 => Some(Self::AesGmac),
            _ => None,
        }
    }
}

/// Who sent a message; part of the AES-GMAC nonce, so that a message cannot be reflected.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Role {
    /// The message is a request.
    Client,
    /// The message is a response or notification.
    Server,
}

enum Key {
    Hmac(Box<hmac::Key>),
    Cmac(cmac::Key),
    Gmac(Box<Gmac>),
}

/// An AES-GMAC key with the nonces that it has used.
///
/// Two signatures under one nonce give the authentication key away (NIST SP 800-38D 8.3), and with
/// it every signature of the session. The nonce is made of what the message says of itself, so the
/// key is what sees to it that there is no second one.
struct Gmac {
    key: LessSafeKey,
    /// What it was made of, for [`SigningKey::of_connection`].
    bytes: Zeroizing<[u8; 16]>,
    /// By the bits of the nonce beside the message id: sender, and whether it is a CANCEL.
    used: [Once; 4],
}

/// A session's or channel's key for signing and verifying. Shareable between threads.
///
/// With AES-GMAC it signs one message of each id, sender and kind in its life; one `SigningKey` is
/// made of the same bytes, whatever the number of connections that use it.
pub struct SigningKey(Key);

impl SigningKey {
    /// Prepares a key: `Session.SigningKey` for 3.x ([`super::kdf::signing_key`]), the session
    /// key itself for 2.x.
    #[must_use]
    pub fn new(algorithm: SigningAlgorithm, key: &[u8; 16]) -> Self {
        const PROOF: &str = "a 16-byte key fits AES-128";
        Self(match algorithm {
            SigningAlgorithm::HmacSha256 => {
                Key::Hmac(Box::new(hmac::Key::new(hmac::HMAC_SHA256, key)))
            }
            SigningAlgorithm::AesCmac => {
                Key::Cmac(cmac::Key::new(cmac::AES_128, key).expect(PROOF))
            }
            SigningAlgorithm::AesGmac => {
                let bytes = Zeroizing::new(*key);
                let key = UnboundKey::new(&AES_128_GCM, key).expect(PROOF);
                let key = LessSafeKey::new(key);
                Key::Gmac(Box::new(Gmac { key, bytes, used: Default::default() }))
            }
        })
    }

    /// The algorithm the key is for.
    #[must_use]
    pub fn algorithm(&self) -> SigningAlgorithm {
        match self.0 {
            Key::Hmac(_) => SigningAlgorithm::HmacSha256,
            Key::Cmac(_) => SigningAlgorithm::AesCmac,
            Key::Gmac(_) => SigningAlgorithm::AesGmac,
        }
    }

    /// Whether a message's id is a nonce of this key, which must sign each id once.
    #[must_use]
    pub fn has_nonces(&self) -> bool {
        matches!(self.0, Key::Gmac(_))
    }

    /// An AES-GMAC key as a connection uses it that agreed on `algorithm`, which is what messages of
    /// that connection are signed with (MS-SMB2 3.1.4.1): without nonces. `None` for other keys, which
    /// sign for every connection as they are, and for AES-GMAC, of which there may be no second key.
    #[must_use]
    pub fn of_connection(&self, algorithm: SigningAlgorithm) -> Option<Self> {
        match &self.0 {
            Key::Gmac(gmac) if algorithm != SigningAlgorithm::AesGmac => {
                Some(Self::new(algorithm, &gmac.bytes))
            }
            _ => None,
        }
    }

    /// Signs a message in place: sets SMB2_FLAGS_SIGNED and the signature field.
    ///
    /// `message` runs from its SMB2 header to its end, in a compound to the end of its padding;
    /// everything else in it must be final. A message whose nonce was used already is left as it
    /// is, and must not be sent as if it were signed.
    ///
    /// # Errors
    /// The message's nonce was used for another one; only keys for AES-GMAC have nonces.
    ///
    /// # Panics
    /// If `message` is shorter than the SMB2 header, which no encoder produces.
    pub fn sign(&self, message: &mut [u8], sender: Role) -> Result<(), NonceError> {
        assert!(message.len() >= HEADER_LEN, "a message starts with its 64-byte header");
        if let Key::Gmac(gmac) = &self.0 {
            let nonce = gmac_nonce(message, sender);
            gmac.used(nonce[8]).take(message_id(&nonce))?;
        }
        message[FLAGS] |= FLAG_SIGNED;
        message[SIGNATURE].fill(0);
        let signature = self.compute(message, sender);
        message[SIGNATURE].copy_from_slice(&signature);
        Ok(())
    }

    /// Says that the answer to message `id` is going to be signed later, after any number of
    /// others: a key with nonces to be used once forgets which of the old ones are free.
    ///
    /// # Errors
    /// The nonce was used already, or more answers are waited for than a key remembers.
    pub fn keep(&self, id: u64) -> Result<(), NonceError> {
        match &self.0 {
            Key::Gmac(gmac) => gmac.used(NONCE_SERVER).keep(id),
            _ => Ok(()),
        }
    }

    /// Whether the signature of a received message is right; compares in constant time.
    ///
    /// The signature field is zeroed while the message is processed and then restored, so
    /// nothing is copied. Whether the message claims to be signed is the caller's to check. A
    /// message shorter than its header is never right.
    #[must_use]
    pub fn verify(&self, message: &mut [u8], sender: Role) -> bool {
        let Some(field) = message.get_mut(SIGNATURE) else { return false };
        let mut claimed = [0; 16];
        claimed.copy_from_slice(field);
        field.fill(0);
        let right = self.compute(message, sender);
        message[SIGNATURE].copy_from_slice(&claimed);
        constant_time_eq(&right, &claimed)
    }

    /// The signature of a message whose signature field is zero.
    fn compute(&self, message: &[u8], sender: Role) -> [u8; 16] {
        let mut signature = [0; 16];
        match &self.0 {
            Key::Hmac(key) => {
                signature.copy_from_slice(&hmac::sign(key, message).as_ref()[..16]);
            }
            Key::Cmac(key) => {
                cmac::sign_to_buffer(key, message, &mut signature)
                    .expect("the buffer is as long as an AES-CMAC tag");
            }
            Key::Gmac(gmac) => {
                let nonce = Nonce::assume_unique_for_key(gmac_nonce(message, sender));
                let tag = gmac
                    .key
                    .seal_in_place_separate_tag(nonce, Aad::from(message), &mut [])
                    .expect("a message is far below the limits of AES-GCM");
                signature.copy_from_slice(tag.as_ref());
            }
        }
        signature
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({:?})", self.algorithm())
    }
}

impl Gmac {
    fn used(&self, bits: u8) -> &Once {
        &self.used[usize::from(bits & 3)]
    }
}

/// The message id in a nonce.
fn message_id(nonce: &[u8; 12]) -> u64 {
    u64::from_le_bytes(*nonce.first_chunk().expect("8 bytes are within 12"))
}

/// The bits of the nonce of a server's message other than CANCEL.
const NONCE_SERVER: u8 = 1;

/// MessageId, then a word with bit 0 for a server's message and bit 1 for CANCEL.
///
/// A CANCEL carries the MessageId of the request it cancels, which is why it has its own bit.
fn gmac_nonce(message: &[u8], sender: Role) -> [u8; 12] {
    let mut nonce = [0; 12];
    nonce[..8].copy_from_slice(&message[MESSAGE_ID..MESSAGE_ID + 8]);
    nonce[8] |= if sender == Role::Server { NONCE_SERVER } else { 0 };
    let command = u16::from_le_bytes([message[COMMAND], message[COMMAND + 1]]);
    nonce[8] |= u8::from(command == COMMAND_CANCEL) << 1;
    nonce
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::crypto::testing::hex;

    const ALL: [SigningAlgorithm; 3] =
        [SigningAlgorithm::HmacSha256, SigningAlgorithm::AesCmac, SigningAlgorithm::AesGmac];

    fn cmac_of(message: &str) -> Vec<u8> {
        let key: [u8; 16] = hex("2b7e151628aed2a6abf7158809cf4f3c").try_into().unwrap();
        let key = SigningKey::new(SigningAlgorithm::AesCmac, &key);
        key.compute(&hex(message), Role::Client).to_vec()
    }

    /// RFC 4493 section 4.
    #[test]
    fn cmac_vectors_of_rfc_4493() {
        assert_eq!(cmac_of(""), hex("bb1d6929e95937287fa37d129b756746"));
        assert_eq!(
            cmac_of("6bc1bee22e409f96e93d7e117393172a"),
            hex("070a16b46b4d4144f79bdd9dd04a287c")
        );
        assert_eq!(
            cmac_of(
                "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e5130c81c46a35ce411"
            ),
            hex("dfa66747de9ae63030ca32611497c827")
        );
    }

    /// An AES-GCM tag over additional data alone, from the definition in SP800-38D: GHASH by
    /// schoolbook multiplication in GF(2^128), and AES from another implementation.
    fn reference_gmac(key: &[u8; 16], nonce: &[u8; 12], data: &[u8]) -> [u8; 16] {
        use aes::cipher::{BlockCipherEncrypt, KeyInit};
        let cipher = aes::Aes128::new(&(*key).into());
        let mut h = aes::Block::from([0; 16]);
        cipher.encrypt_block(&mut h);
        let h = u128::from_be_bytes(h.into());
        let multiply = |x: u128| {
            let (mut z, mut v) = (0u128, h);
            for bit in (0..128).rev() {
                if x >> bit & 1 == 1 {
                    z ^= v;
                }
                v = if v & 1 == 1 { v >> 1 ^ 0xe1 << 120 } else { v >> 1 };
            }
            z
        };
        let mut y = 0u128;
        for chunk in data.chunks(16) {
            let mut block = [0; 16];
            block[..chunk.len()].copy_from_slice(chunk);
            y = multiply(y ^ u128::from_be_bytes(block));
        }
        y = multiply(y ^ (data.len() as u128 * 8) << 64);
        let mut counter = [0; 16];
        counter[..12].copy_from_slice(nonce);
        counter[15] = 1;
        let mut mask = aes::Block::from(counter);
        cipher.encrypt_block(&mut mask);
        (y ^ u128::from_be_bytes(mask.into())).to_be_bytes()
    }

    #[test]
    fn hmac_signature_is_the_first_half_of_hmac_sha256() {
        let key = SigningKey::new(SigningAlgorithm::HmacSha256, &[0x0b; 16]);
        let mut message = vec![0x42; 100];
        key.sign(&mut message, Role::Client).unwrap();
        let signature = message[48..64].to_vec();
        message[48..64].fill(0);
        assert_eq!(message[16] & 8, 8);
        let full = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &[0x0b; 16]), &message);
        assert_eq!(signature, full.as_ref()[..16]);
    }

    #[test]
    fn gmac_tells_sender_and_cancel_apart() {
        let key = SigningKey::new(SigningAlgorithm::AesGmac, &[1; 16]);
        let mut message = vec![0; 64];
        message[24..32].copy_from_slice(&0x0102_0304_0506_0708u64.to_le_bytes());
        assert_eq!(gmac_nonce(&message, Role::Client), [8, 7, 6, 5, 4, 3, 2, 1, 0, 0, 0, 0]);
        assert_eq!(gmac_nonce(&message, Role::Server), [8, 7, 6, 5, 4, 3, 2, 1, 1, 0, 0, 0]);
        message[12] = 0x0c;
        assert_eq!(gmac_nonce(&message, Role::Client), [8, 7, 6, 5, 4, 3, 2, 1, 2, 0, 0, 0]);
        key.sign(&mut message, Role::Client).unwrap();
        assert!(key.verify(&mut message, Role::Client));
        assert!(!key.verify(&mut message, Role::Server));
    }

    fn message_of(id: u64, command: u8) -> Vec<u8> {
        let mut message = vec![0; 64];
        message[24..32].copy_from_slice(&id.to_le_bytes());
        message[12] = command;
        message
    }

    /// NIST SP 800-38D 8.3: no two messages under one nonce, whichever connections they are of.
    #[test]
    fn gmac_signs_each_message_id_once_for_each_sender_and_for_cancel() {
        let key = SigningKey::new(SigningAlgorithm::AesGmac, &[1; 16]);
        for (sender, command) in
            [(Role::Client, 0), (Role::Server, 0), (Role::Client, 0x0c), (Role::Server, 0x0c)]
        {
            let mut message = message_of(7, command);
            assert_eq!(key.sign(&mut message, sender), Ok(()));
            let mut second = message_of(7, command);
            second[63] = 1;
            second[62] = 2;
            let before = second.clone();
            assert_eq!(key.sign(&mut second, sender), Err(NonceError::Repeated(7)));
            assert_eq!(second, before, "nothing of a signature is given");
            assert_eq!(key.sign(&mut message_of(8, command), sender), Ok(()));
        }
    }

    #[test]
    fn algorithms_without_nonce_sign_as_often_as_they_are_asked() {
        for algorithm in [SigningAlgorithm::AesCmac, SigningAlgorithm::HmacSha256] {
            let key = SigningKey::new(algorithm, &[1; 16]);
            for _ in 0..3 {
                assert_eq!(key.sign(&mut message_of(7, 0), Role::Server), Ok(()));
                assert_eq!(key.keep(7), Ok(()));
            }
        }
    }

    #[test]
    fn only_gmac_has_another_key_for_a_connection_of_another_algorithm() {
        use SigningAlgorithm::{AesCmac, AesGmac, HmacSha256};
        let gmac = SigningKey::new(AesGmac, &[7; 16]);
        for algorithm in [AesCmac, HmacSha256] {
            let mut message = message_of(1, 1);
            gmac.of_connection(algorithm).unwrap().sign(&mut message, Role::Server).unwrap();
            assert!(SigningKey::new(algorithm, &[7; 16]).verify(&mut message, Role::Server));
            let other = SigningKey::new(algorithm, &[7; 16]);
            assert!(ALL.iter().all(|&it| other.of_connection(it).is_none()));
        }
        assert!(gmac.of_connection(AesGmac).is_none());
    }

    #[test]
    fn short_messages_are_never_right() {
        for algorithm in ALL {
            let key = SigningKey::new(algorithm, &[3; 16]);
            for len in 0..HEADER_LEN {
                assert!(!key.verify(&mut vec![0; len], Role::Client));
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn gmac_agrees_with_the_definition(
            key: [u8; 16],
            mut message in prop::collection::vec(any::<u8>(), 64..300),
        ) {
            message[48..64].fill(0);
            let nonce = gmac_nonce(&message, Role::Server);
            let want = reference_gmac(&key, &nonce, &message);
            let key = SigningKey::new(SigningAlgorithm::AesGmac, &key);
            prop_assert_eq!(key.compute(&message, Role::Server), want);
        }

        #[test]
        fn any_changed_bit_is_noticed(
            key: [u8; 16],
            mut message in prop::collection::vec(any::<u8>(), 64..300),
            bit in any::<prop::sample::Index>(),
            which in 0..3usize,
        ) {
            let key = SigningKey::new(ALL[which], &key);
            key.sign(&mut message, Role::Client).unwrap();
            let signed = message.clone();
            prop_assert!(key.verify(&mut message, Role::Client));
            prop_assert_eq!(&message, &signed, "verifying restores the message");
            let bit = bit.index(message.len() * 8);
            message[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(!key.verify(&mut message, Role::Client));
        }
    }
}

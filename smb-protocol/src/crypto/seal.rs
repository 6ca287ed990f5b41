//! Message encryption: SMB2 TRANSFORM_HEADER, AES-CCM and AES-GCM (MS-SMB2 2.2.41, 3.1.4.3).

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering},
};

use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

use super::{SecretKey, ccm::CcmKey, once::NonceError, random};

/// How messages are encrypted (MS-SMB2 2.2.3.1.2).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Cipher {
    /// The only cipher of 3.0 and 3.0.2.
    Aes128Ccm,
    /// Preferred for speed.
    Aes128Gcm,
    /// 256-bit keys.
    Aes256Ccm,
    /// 256-bit keys.
    Aes256Gcm,
}

impl Cipher {
    /// The identifier in SMB2_ENCRYPTION_CAPABILITIES.
    #[must_use]
    pub fn wire_id(self) -> u16 {
        match self {
            Self::Aes128Ccm => 1,
            Self::Aes128Gcm => 2,
            Self::Aes256Ccm => 3,
            Self::Aes256Gcm => 4,
        }
    }

    /// The cipher of an identifier in SMB2_ENCRYPTION_CAPABILITIES, if it is known.
    #[must_use]
    pub fn from_wire_id(id: u16) -> Option<Self> {
        match id {
            1 => Some(Self::Aes128Ccm),
            2 => Some(Self::Aes128Gcm),
            3 => Some(Self::Aes256Ccm),
            4 => Some(Self::Aes256Gcm),
            _ => None,
        }
    }

    /// Key length in bytes: 16 or 32.
    #[must_use]
    pub fn key_len(self) -> usize {
        match self {
            Self::Aes128Ccm | Self::Aes128Gcm => 16,
            Self::Aes256Ccm | Self::Aes256Gcm => 32,
        }
    }

    fn nonce_len(self) -> usize {
        match self {
            Self::Aes128Ccm | Self::Aes256Ccm => 11,
            Self::Aes128Gcm | Self::Aes256Gcm => 12,
        }
    }
}

/// Why a message could not be decrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SealError {
    /// Not even a transform header.
    #[error("encrypted message of {0} bytes is shorter than its header")]
    Truncated(usize),
    /// The first four bytes are not `FD 'S' 'M' 'B'`.
    #[error("not an encrypted message")]
    ProtocolId,
    /// The flags, or the algorithm of 3.0, are not "encrypted".
    #[error("transform header has flags {0:#06x}, not 0x0001")]
    Flags(u16),
    /// OriginalMessageSize differs from what follows the header.
    #[error("transform header announces {announced} bytes and {present} follow")]
    Size {
        /// OriginalMessageSize.
        announced: u32,
        /// Bytes after the header.
        present: usize,
    },
    /// The message is not what the holder of the key sent.
    #[error("message does not decrypt")]
    Forged,
}

/// SMB2 TRANSFORM_HEADER, which stands before every encrypted message (MS-SMB2 2.2.41).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TransformHeader {
    /// Authentication tag.
    pub signature: [u8; 16],
    /// Nonce; 11 bytes are used by CCM, 12 by GCM.
    pub nonce: [u8; 16],
    /// Length of the encrypted message in bytes.
    pub original_message_size: u32,
    /// 1: encrypted.
    pub flags: u16,
    /// Session whose keys are used.
    pub session_id: u64,
}

impl TransformHeader {
    /// Length on the wire in bytes.
    pub const LEN: usize = 52;
    /// ProtocolId: `FD 'S' 'M' 'B'`.
    pub const PROTOCOL_ID: [u8; 4] = [0xfd, b'S', b'M', b'B'];
    /// Where the signature stands in a message.
    pub const SIGNATURE: std::ops::Range<usize> = 4..20;
    const FLAG_ENCRYPTED: u16 = 1;
    const AAD: std::ops::Range<usize> = 20..Self::LEN;

    /// Whether a message is an encrypted one.
    #[must_use]
    pub fn starts(message: &[u8]) -> bool {
        message.starts_with(&Self::PROTOCOL_ID)
    }

    /// Reads the header of `message` and checks it against the message's length, so that the
    /// session can be looked up before anything is decrypted.
    ///
    /// # Errors
    /// The message is shorter than the header, no encrypted one, or of another length than it says.
    pub fn parse(message: &[u8]) -> Result<Self, SealError> {
        let Some((header, rest)) = message.split_first_chunk::<{ Self::LEN }>() else {
            return Err(SealError::Truncated(message.len()));
        };
        if header[..4] != Self::PROTOCOL_ID {
            return Err(SealError::ProtocolId);
        }
        let array = |range: std::ops::Range<usize>| {
            let mut bytes = [0; 16];
            bytes[..range.len()].copy_from_slice(&header[range]);
            bytes
        };
        let number = |range| u128::from_le_bytes(array(range));
        let header = Self {
            signature: array(4..20),
            nonce: array(20..36),
            original_message_size: number(36..40) as u32,
            flags: number(42..44) as u16,
            session_id: number(44..52) as u64,
        };
        if header.flags != Self::FLAG_ENCRYPTED {
            return Err(SealError::Flags(header.flags));
        }
        if header.original_message_size as usize != rest.len() {
            return Err(SealError::Size {
                announced: header.original_message_size,
                present: rest.len(),
            });
        }
        Ok(header)
    }

    /// The header's bytes; the reserved field is zero.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut out = [0; Self::LEN];
        out[..4].copy_from_slice(&Self::PROTOCOL_ID);
        out[4..20].copy_from_slice(&self.signature);
        out[20..36].copy_from_slice(&self.nonce);
        out[36..40].copy_from_slice(&self.original_message_size.to_le_bytes());
        out[42..44].copy_from_slice(&self.flags.to_le_bytes());
        out[44..52].copy_from_slice(&self.session_id.to_le_bytes());
        out
    }
}

enum Key {
    Ccm(CcmKey),
    Gcm(Box<LessSafeKey>),
}

impl Key {
    fn new(cipher: Cipher, key: &SecretKey) -> Self {
        const PROOF: &str = "keys derived for a cipher have its key length";
        assert_eq!(key.as_bytes().len(), cipher.key_len(), "{PROOF}");
        let algorithm = match cipher {
            Cipher::Aes128Ccm | Cipher::Aes256Ccm => return Self::Ccm(CcmKey::new(key)),
            Cipher::Aes128Gcm => &AES_128_GCM,
            Cipher::Aes256Gcm => &AES_256_GCM,
        };
        let key = UnboundKey::new(algorithm, key.as_bytes()).expect(PROOF);
        Self::Gcm(Box::new(LessSafeKey::new(key)))
    }

    fn seal(&self, nonce: &[u8; 16], aad: &[u8], payload: &mut [u8]) -> [u8; 16] {
        match self {
            Self::Ccm(key) => key.seal(ccm_nonce(nonce), aad, payload),
            Self::Gcm(key) => {
                let tag = key
                    .seal_in_place_separate_tag(gcm_nonce(nonce), Aad::from(aad), payload)
                    .expect("a message is far below the limits of AES-GCM");
                let mut signature = [0; 16];
                signature.copy_from_slice(tag.as_ref());
                signature
            }
        }
    }

    fn open(&self, nonce: &[u8; 16], aad: &[u8], tag: &[u8; 16], payload: &mut [u8]) -> bool {
        match self {
            Self::Ccm(key) => key.open(ccm_nonce(nonce), aad, tag, payload),
            Self::Gcm(key) => key
                .open_in_place_separate_tag(gcm_nonce(nonce), Aad::from(aad), tag, payload)
                .is_ok(),
        }
    }
}

fn ccm_nonce(nonce: &[u8; 16]) -> &[u8; 11] {
    nonce.first_chunk().expect("11 bytes are within 16")
}

fn gcm_nonce(nonce: &[u8; 16]) -> Nonce {
    Nonce::assume_unique_for_key(*nonce.first_chunk().expect("12 bytes are within 16"))
}

/// A session's key for encrypting what one side sends. Shareable between threads.
///
/// A nonce is an eight-byte counter that starts at a random value, followed by bytes drawn once
/// for the key; so no nonce repeats within 2^64 messages of one `SealingKey`, and it seals no more
/// than [`SealingKey::MOST`]. All channels of a session encrypt with the same key and must share one
/// `SealingKey`: two made of the same bytes might use the same nonce, so it takes the bytes away.
pub struct SealingKey {
    key: Key,
    cipher: Cipher,
    start: u64,
    sealed: AtomicU64,
    tail: [u8; 4],
    #[cfg(feature = "testing")]
    repeats: std::sync::atomic::AtomicBool,
}

impl SealingKey {
    /// Prepares a key of [`super::kdf::cipher_keys`].
    ///
    /// # Panics
    /// If the key is not [`Cipher::key_len`] bytes long.
    #[must_use]
    #[expect(clippy::needless_pass_by_value, reason = "nobody makes a second one of the bytes")]
    pub fn new(cipher: Cipher, key: SecretKey) -> Self {
        Self {
            key: Key::new(cipher, &key),
            cipher,
            start: u64::from_le_bytes(random()),
            sealed: AtomicU64::new(0),
            tail: random(),
            #[cfg(feature = "testing")]
            repeats: false.into(),
        }
    }

    /// Messages that one key seals at most: far below what would bring a nonce back, and more than
    /// any session sends.
    pub const MOST: u64 = 1 << 48;

    /// From now on every message has the same nonce, for a test that is to notice.
    #[cfg(feature = "testing")]
    pub fn repeat_nonces(&self) {
        self.repeats.store(true, Ordering::Relaxed);
    }

    /// The cipher the key is for.
    #[must_use]
    pub fn cipher(&self) -> Cipher {
        self.cipher
    }

    /// Encrypts in place. `buffer` is [`TransformHeader::LEN`] bytes of room, which become the
    /// header, and then the message (or compound of messages), which is left as it is if the key
    /// has no nonce left, and must not be sent then.
    ///
    /// # Errors
    /// [`NonceError::Exhausted`]: the key has no nonce left.
    ///
    /// # Panics
    /// If there is no room for the header, or the message is 4 GiB or longer.
    pub fn seal(&self, session_id: u64, buffer: &mut [u8]) -> Result<(), NonceError> {
        let (room, payload) = buffer
            .split_first_chunk_mut::<{ TransformHeader::LEN }>()
            .expect("the caller leaves room for the header");
        let header = TransformHeader {
            signature: [0; 16],
            nonce: self.next_nonce()?,
            original_message_size: u32::try_from(payload.len())
                .expect("the transport carries messages below 16 MiB"),
            flags: TransformHeader::FLAG_ENCRYPTED,
            session_id,
        };
        *room = header.encode();
        let signature = self.key.seal(&header.nonce, &room[TransformHeader::AAD], payload);
        room[4..20].copy_from_slice(&signature);
        Ok(())
    }

    /// Encrypts data in place that go beside the message that tells of them (MS-SMB2 2.2.43.1): the nonce,
    /// as long as the cipher has it, and the signature. Nothing is signed with them.
    ///
    /// # Errors
    /// [`NonceError::Exhausted`]: the key has no nonce left; the data are as they were.
    pub fn seal_apart(&self, data: &mut [u8]) -> Result<(Vec<u8>, [u8; 16]), NonceError> {
        let nonce = self.next_nonce()?;
        let signature = self.key.seal(&nonce, &[], data);
        Ok((nonce[..self.cipher.nonce_len()].to_vec(), signature))
    }

    fn next_nonce(&self) -> Result<[u8; 16], NonceError> {
        let count = self.sealed.fetch_add(1, Ordering::Relaxed);
        if count >= Self::MOST {
            // The count stays where no further call can bring it round.
            self.sealed.store(Self::MOST, Ordering::Relaxed);
            return Err(NonceError::Exhausted);
        }
        #[cfg(feature = "testing")]
        let count = if self.repeats.load(Ordering::Relaxed) { 0 } else { count };
        let mut nonce = [0; 16];
        nonce[..8].copy_from_slice(&self.start.wrapping_add(count).to_le_bytes());
        let end = self.cipher.nonce_len();
        nonce[8..end].copy_from_slice(&self.tail[..end - 8]);
        Ok(nonce)
    }
}

impl fmt::Debug for SealingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SealingKey({:?})", self.cipher)
    }
}

/// A session's key for decrypting what the other side sent. Shareable between threads.
pub struct OpeningKey {
    key: Key,
    cipher: Cipher,
}

impl OpeningKey {
    /// Prepares a key of [`super::kdf::cipher_keys`].
    ///
    /// # Panics
    /// If the key is not [`Cipher::key_len`] bytes long.
    #[must_use]
    pub fn new(cipher: Cipher, key: &SecretKey) -> Self {
        Self { key: Key::new(cipher, key), cipher }
    }

    /// The cipher the key is for.
    #[must_use]
    pub fn cipher(&self) -> Cipher {
        self.cipher
    }

    /// Decrypts in place what [`SealingKey::seal_apart`] of the other side made.
    ///
    /// After an error the content of `data` is of no use.
    ///
    /// # Errors
    /// [`SealError::Forged`]: the nonce is not as long as the cipher has it, or the data are not what the
    /// other side sealed.
    pub fn open_apart(
        &self,
        nonce: &[u8],
        signature: &[u8; 16],
        data: &mut [u8],
    ) -> Result<(), SealError> {
        if nonce.len() != self.cipher.nonce_len() {
            return Err(SealError::Forged);
        }
        let mut whole = [0; 16];
        whole[..nonce.len()].copy_from_slice(nonce);
        match self.key.open(&whole, &[], signature, data) {
            true => Ok(()),
            false => Err(SealError::Forged),
        }
    }

    /// Decrypts in place what [`SealingKey::seal`] of the other side made and returns the part
    /// of `buffer` behind the header: the message, or compound of messages.
    ///
    /// After an error the content of `buffer` is of no use.
    ///
    /// # Errors
    /// As [`TransformHeader::parse`]; or [`SealError::Forged`]: the message is not what the other side sealed.
    pub fn open<'b>(&self, buffer: &'b mut [u8]) -> Result<&'b mut [u8], SealError> {
        let header = TransformHeader::parse(buffer)?;
        let (room, payload) = buffer.split_at_mut(TransformHeader::LEN);
        let aad = &room[TransformHeader::AAD];
        if self.key.open(&header.nonce, aad, &header.signature, payload) {
            Ok(payload)
        } else {
            Err(SealError::Forged)
        }
    }
}

impl fmt::Debug for OpeningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OpeningKey({:?})", self.cipher)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;
    use crate::crypto::testing::hex;

    const ALL: [Cipher; 4] =
        [Cipher::Aes128Ccm, Cipher::Aes128Gcm, Cipher::Aes256Ccm, Cipher::Aes256Gcm];

    fn sample_key(cipher: Cipher) -> SecretKey {
        SecretKey::new(&[0x5a; 32][..cipher.key_len()]).unwrap()
    }

    proptest! {
        /// Data apart from their message come back by their nonce and signature, and by no others.
        #[test]
        fn data_apart_come_back(data in prop::collection::vec(any::<u8>(), 0..200), bit: u8,
                                which in 0usize..4) {
            for cipher in ALL {
                let key = SealingKey::new(cipher, sample_key(cipher));
                let opens = OpeningKey::new(cipher, &sample_key(cipher));
                let mut sealed = data.clone();
                let (nonce, signature) = key.seal_apart(&mut sealed).unwrap();
                prop_assert_eq!(nonce.len(), cipher.nonce_len());
                let mut opened = sealed.clone();
                prop_assert_eq!(opens.open_apart(&nonce, &signature, &mut opened), Ok(()));
                prop_assert_eq!(&opened, &data);
                let (mut nonce, mut signature) = (nonce, signature);
                match which {
                    0 => nonce[0] ^= 1,
                    1 => signature[usize::from(bit) / 16] ^= 1 << (bit % 8),
                    2 => nonce.push(0),
                    _ if sealed.is_empty() => nonce.clear(),
                    _ => sealed[0] ^= 1 << (bit % 8),
                }
                let refused = opens.open_apart(&nonce, &signature, &mut sealed);
                prop_assert_eq!(refused, Err(SealError::Forged));
            }
        }
    }

    /// AES-GCM test case 4 of the algorithm's submission to NIST (McGrew and Viega), the source
    /// of SP800-38D's validation.
    #[test]
    fn gcm_test_case_4() {
        let key = SecretKey::new(&hex("feffe9928665731c6d6a8f9467308308")).unwrap();
        let key = Key::new(Cipher::Aes128Gcm, &key);
        let mut nonce = [0; 16];
        nonce[..12].copy_from_slice(&hex("cafebabefacedbaddecaf888"));
        let aad = hex("feedfacedeadbeeffeedfacedeadbeefabaddad2");
        let mut text = hex("d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72\
             1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39");
        let tag = key.seal(&nonce, &aad, &mut text);
        assert_eq!(
            text,
            hex("42831ec2217774244b7221b784d0d49ce3aa212f2c02a4e035c17e2329aca12e\
                 21d514b25466931c7d8f6a5aac84aa051ba30b396a0aac973d58e091")
        );
        assert_eq!(tag[..], hex("5bc94fbc3221a5db94fae95ae7121a47"));
    }

    #[test]
    fn nonces_do_not_repeat_and_have_zero_tails() {
        for cipher in ALL {
            let key = SealingKey::new(cipher, sample_key(cipher));
            let mut seen = HashSet::new();
            for _ in 0..1000 {
                let nonce = key.next_nonce().unwrap();
                assert!(nonce[cipher.nonce_len()..].iter().all(|b| *b == 0));
                assert!(seen.insert(nonce));
            }
        }
    }

    #[test]
    fn a_key_that_has_sealed_all_it_may_seals_nothing_more() {
        let key = SealingKey::new(Cipher::Aes128Gcm, sample_key(Cipher::Aes128Gcm));
        key.sealed.store(SealingKey::MOST - 1, Ordering::Relaxed);
        let mut last = vec![7; TransformHeader::LEN + 8];
        key.seal(1, &mut last).unwrap();
        for _ in 0..3 {
            let mut more = vec![7; TransformHeader::LEN + 8];
            assert_eq!(key.seal(1, &mut more), Err(NonceError::Exhausted));
            assert!(more.iter().all(|byte| *byte == 7));
        }
    }

    #[test]
    fn header_rejects_what_it_is_not() {
        let header = TransformHeader {
            signature: [1; 16],
            nonce: [2; 16],
            original_message_size: 0,
            flags: 1,
            session_id: 77,
        };
        let bytes = header.encode();
        assert_eq!(TransformHeader::parse(&bytes), Ok(header));
        assert_eq!(TransformHeader::parse(&bytes[..51]), Err(SealError::Truncated(51)));
        let mut longer = bytes.to_vec();
        longer.push(0);
        let error = SealError::Size { announced: 0, present: 1 };
        assert_eq!(TransformHeader::parse(&longer), Err(error));
        let mut flags = bytes;
        flags[42] = 2;
        assert_eq!(TransformHeader::parse(&flags), Err(SealError::Flags(2)));
        let mut plain = bytes;
        plain[0] = 0xfe;
        assert_eq!(TransformHeader::parse(&plain), Err(SealError::ProtocolId));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn opens_what_was_sealed_and_nothing_else(
            payload in prop::collection::vec(any::<u8>(), 0..500),
            session: u64,
            bit in any::<prop::sample::Index>(),
            which in 0..4usize,
        ) {
            let cipher = ALL[which];
            let sealing = SealingKey::new(cipher, sample_key(cipher));
            let opening = OpeningKey::new(cipher, &sample_key(cipher));
            let mut buffer = vec![0; TransformHeader::LEN];
            buffer.extend_from_slice(&payload);
            sealing.seal(session, &mut buffer).unwrap();
            prop_assert_eq!(TransformHeader::parse(&buffer).unwrap().session_id, session);
            let mut changed = buffer.clone();
            prop_assert_eq!(&*opening.open(&mut buffer).unwrap(), &payload[..]);
            let bit = bit.index(changed.len() * 8);
            changed[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(opening.open(&mut changed).is_err());
        }

        #[test]
        fn parsing_is_total(bytes in prop::collection::vec(any::<u8>(), 0..120)) {
            if let Ok(header) = TransformHeader::parse(&bytes) {
                prop_assert_eq!(header.original_message_size as usize, bytes.len() - 52);
            }
        }
    }
}

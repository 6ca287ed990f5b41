//! AES-CCM with the sizes of SMB: nonces of 11 bytes, tags of 16 (RFC 3610, MS-SMB2 3.1.4.3).
//!
//! ```text
//!  B0 │ length of AAD, AAD, zeros │ payload, zeros ──► CBC-MAC ──► T ─┐
//!  A0 ──► AES-CTR ──► S0, then key stream over the payload     S0 ────⊕──► tag
//! ```
//!
//! Built from the CBC and CTR modes of the same library that does all other bulk encryption: its
//! CBC is several times as fast as a generic CCM, and CBC-MAC is what bounds the whole.

use std::fmt;

use aws_lc_rs::{
    cipher::{AES_128, AES_256, EncryptionContext, StreamingEncryptingKey, UnboundCipherKey},
    iv::FixedLength,
};

use super::{SecretKey, constant_time_eq};

const BLOCK: usize = 16;
/// Bytes that go through CBC and CTR at a time, so that they stay in the first-level cache.
const CHUNK: usize = 4096;
/// What the library's calls are proven to fit by.
const PROOF: &str = "keys have the length of their cipher and buffers have a block to spare";

/// A key for AES-CCM.
pub(super) struct CcmKey(SecretKey);

/// One message on its way through both modes.
struct Run {
    mac: StreamingEncryptingKey,
    stream: StreamingEncryptingKey,
    /// The last block of CBC so far.
    state: [u8; BLOCK],
    s0: [u8; BLOCK],
    scratch: [u8; CHUNK + BLOCK],
}

impl CcmKey {
    /// Takes a key of 16 or 32 bytes.
    ///
    /// # Panics
    /// If it has another length.
    pub(super) fn new(key: &SecretKey) -> Self {
        assert!(matches!(key.as_bytes().len(), 16 | 32), "{PROOF}");
        Self(key.clone())
    }

    fn cipher(&self) -> UnboundCipherKey {
        let key = self.0.as_bytes();
        let algorithm = if key.len() == 16 { &AES_128 } else { &AES_256 };
        UnboundCipherKey::new(algorithm, key).expect(PROOF)
    }

    fn start(&self, nonce: &[u8; 11], aad: &[u8], payload_len: usize) -> Run {
        let with_nonce = |flags: u8, number: u32| {
            let mut block = [0; BLOCK];
            block[0] = flags;
            block[1..12].copy_from_slice(nonce);
            block[12..].copy_from_slice(&number.to_be_bytes());
            block
        };
        // RFC 3610 2.2: a length field of 4 bytes, a tag of 16, and additional data.
        const FLAGS: u8 = 0x40 | (((16 - 2) / 2) << 3) | (4 - 1);
        let len = u32::try_from(payload_len).expect("messages are below 16 MiB");
        let counter = EncryptionContext::Iv128(FixedLength::from(with_nonce(4 - 1, 0)));
        let zero = EncryptionContext::Iv128(FixedLength::from([0; BLOCK]));
        let mut run = Run {
            mac: StreamingEncryptingKey::less_safe_cbc_pkcs7(self.cipher(), zero).expect(PROOF),
            stream: StreamingEncryptingKey::less_safe_ctr(self.cipher(), counter).expect(PROOF),
            state: [0; BLOCK],
            s0: [0; BLOCK],
            scratch: [0; CHUNK + BLOCK],
        };
        let mut s0 = [0; BLOCK];
        run.apply(&mut s0);
        run.s0 = s0;
        run.absorb(&with_nonce(FLAGS, len));
        // Transform headers have 32 bytes of additional data, far below the 65,279 of this form.
        let mut head = Vec::with_capacity(aad.len() + BLOCK + 2);
        head.extend_from_slice(&u16::try_from(aad.len()).expect("32 bytes").to_be_bytes());
        head.extend_from_slice(aad);
        run.absorb(&head);
        run
    }

    /// Encrypts in place and gives the tag.
    pub(super) fn seal(&self, nonce: &[u8; 11], aad: &[u8], payload: &mut [u8]) -> [u8; 16] {
        let mut run = self.start(nonce, aad, payload.len());
        for chunk in payload.chunks_mut(CHUNK) {
            run.absorb(chunk);
            run.apply(chunk);
        }
        run.tag()
    }

    /// Decrypts in place and says whether the tag is right; if not, the payload is of no use.
    pub(super) fn open(
        &self,
        nonce: &[u8; 11],
        aad: &[u8],
        tag: &[u8; 16],
        payload: &mut [u8],
    ) -> bool {
        let mut run = self.start(nonce, aad, payload.len());
        for chunk in payload.chunks_mut(CHUNK) {
            run.apply(chunk);
            run.absorb(chunk);
        }
        constant_time_eq(&run.tag(), tag)
    }
}

impl Run {
    /// Takes at most a chunk into the MAC, filled up with zeros to whole blocks.
    fn absorb(&mut self, bytes: &[u8]) {
        let (whole, rest) = bytes.split_at(bytes.len() - bytes.len() % BLOCK);
        for part in [whole, rest] {
            if part.is_empty() {
                continue;
            }
            let mut padded = [0; BLOCK];
            let part = if part.len() < BLOCK {
                padded[..part.len()].copy_from_slice(part);
                &padded[..]
            } else {
                part
            };
            let out = self.mac.update(part, &mut self.scratch).expect(PROOF);
            let out = out.written();
            self.state.copy_from_slice(&out[out.len() - BLOCK..]);
        }
    }

    /// Applies the key stream to at most a chunk.
    fn apply(&mut self, bytes: &mut [u8]) {
        let out = self.stream.update(bytes, &mut self.scratch).expect(PROOF);
        bytes.copy_from_slice(out.written());
    }

    fn tag(&self) -> [u8; 16] {
        let mut tag = self.state;
        tag.iter_mut().zip(&self.s0).for_each(|(tag, s0)| *tag ^= s0);
        tag
    }
}

impl fmt::Debug for CcmKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CcmKey(..)")
    }
}

#[cfg(test)]
mod tests {
    use ::ccm::{
        Ccm,
        aead::{AeadInOut, KeyInit},
        consts::{U11, U16},
    };
    use proptest::prelude::*;

    use super::*;

    type Reference128 = Ccm<aes::Aes128, U16, U11>;
    type Reference256 = Ccm<aes::Aes256, U16, U11>;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        /// Agrees with another implementation for payloads of any length around chunks.
        #[test]
        fn agrees_with_another_implementation(
            key: [u8; 32],
            long: bool,
            nonce: [u8; 11],
            aad in prop::collection::vec(any::<u8>(), 1..60),
            len in prop_oneof![0..70usize, 4000..4200usize, 8190..8200usize],
        ) {
            let plain: Vec<u8> = (0..len).map(|i| (i * 7) as u8).collect();
            let mut want = plain.clone();
            let want_tag: [u8; 16] = if long {
                let reference = Reference256::new_from_slice(&key).unwrap();
                let in_out = want[..].as_mut().into();
                reference.encrypt_inout_detached(&nonce.into(), &aad, in_out).unwrap().into()
            } else {
                let reference = Reference128::new_from_slice(&key[..16]).unwrap();
                let in_out = want[..].as_mut().into();
                reference.encrypt_inout_detached(&nonce.into(), &aad, in_out).unwrap().into()
            };
            let key = CcmKey::new(&SecretKey::new(&key[..if long { 32 } else { 16 }]).unwrap());
            let mut ours = plain.clone();
            let tag = key.seal(&nonce, &aad, &mut ours);
            prop_assert_eq!(&ours, &want);
            prop_assert_eq!(tag, want_tag);
            prop_assert!(key.open(&nonce, &aad, &tag, &mut ours));
            prop_assert_eq!(ours, plain);
        }
    }
}

//! Encryption types: AES with ciphertext stealing and SHA-1 (RFC 3961, RFC 3962) or SHA-2
//! (RFC 8009).
//!
//! ```text
//!  17, 18   AES-CTS(Ke, confounder ‖ plain) ‖ HMAC-SHA1-96(Ki, confounder ‖ plain)
//!  19, 20   C = AES-CTS(Ke, confounder ‖ plain);  C ‖ HMAC-SHA2(Ki, 0¹²⁸ ‖ C)
//! ```

use aws_lc_rs::{
    cipher::{
        AES_128, AES_256, DecryptingKey, DecryptionContext, EncryptingKey, EncryptionContext,
        UnboundCipherKey,
    },
    hmac,
    iv::FixedLength,
};
use zeroize::{Zeroize, Zeroizing};

use super::Error;
use crate::crypto::{constant_time_eq, random};

const BLOCK: usize = 16;

/// How keys are used and data are protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Etype {
    /// aes128-cts-hmac-sha1-96.
    Aes128Sha1 = 17,
    /// aes256-cts-hmac-sha1-96.
    Aes256Sha1 = 18,
    /// aes128-cts-hmac-sha256-128.
    Aes128Sha256 = 19,
    /// aes256-cts-hmac-sha384-192.
    Aes256Sha384 = 20,
}

impl Etype {
    /// The type of a number, if it is spoken.
    ///
    /// # Errors
    /// [`Error::Encryption`]: it is not spoken.
    pub fn new(number: i32) -> Result<Self, Error> {
        Ok(match number {
            17 => Self::Aes128Sha1,
            18 => Self::Aes256Sha1,
            19 => Self::Aes128Sha256,
            20 => Self::Aes256Sha384,
            other => return Err(Error::Encryption(other)),
        })
    }

    /// Length of a key in bytes.
    pub fn key_len(self) -> usize {
        match self {
            Self::Aes128Sha1 | Self::Aes128Sha256 => 16,
            Self::Aes256Sha1 | Self::Aes256Sha384 => 32,
        }
    }

    /// Length of a checksum in bytes.
    pub fn mac_len(self) -> usize {
        match self {
            Self::Aes128Sha1 | Self::Aes256Sha1 => 12,
            Self::Aes128Sha256 => 16,
            Self::Aes256Sha384 => 24,
        }
    }

    fn old(self) -> bool {
        self.mac_len() == 12
    }

    fn hmac(self) -> hmac::Algorithm {
        match self {
            Self::Aes128Sha1 | Self::Aes256Sha1 => hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY,
            Self::Aes128Sha256 => hmac::HMAC_SHA256,
            Self::Aes256Sha384 => hmac::HMAC_SHA384,
        }
    }
}

/// A protocol key. Wiped on drop, never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Key {
    /// What it is for.
    pub etype: Etype,
    bytes: Zeroizing<Vec<u8>>,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Key({:?})", self.etype)
    }
}

/// What a derived key is for: the last byte of its constant.
#[derive(Clone, Copy)]
enum Purpose {
    Checksum = 0x99,
    Encryption = 0xaa,
    Integrity = 0x55,
}

impl Key {
    /// Takes key bytes, which must have the type's length.
    ///
    /// # Errors
    /// The bytes are fewer or more than a key of the type has.
    pub fn new(etype: Etype, bytes: &[u8]) -> Result<Self, Error> {
        if bytes.len() != etype.key_len() {
            return Err(Error::Malformed("a key of another length than its type's"));
        }
        Ok(Self { etype, bytes: Zeroizing::new(bytes.to_vec()) })
    }

    /// The key bytes, as many as the type says.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn derive(&self, usage: u32, purpose: Purpose) -> Zeroizing<Vec<u8>> {
        let mut constant = usage.to_be_bytes().to_vec();
        constant.push(purpose as u8);
        if self.etype.old() {
            // RFC 3961 5.1: encrypt the folded constant again and again.
            let mut block = n_fold(&constant);
            let mut out = Zeroizing::new(Vec::new());
            while out.len() < self.etype.key_len() {
                cbc_encrypt(&self.bytes, &mut block);
                out.extend_from_slice(&block);
            }
            block.zeroize();
            return out;
        }
        // RFC 8009 3: integrity keys of type 20 have 192 bits.
        let len = match purpose {
            Purpose::Encryption => self.etype.key_len(),
            _ => self.etype.mac_len(),
        };
        let key = hmac::Key::new(self.etype.hmac(), &self.bytes);
        let mut prf = hmac::Context::with_key(&key);
        prf.update(&1u32.to_be_bytes());
        prf.update(&constant);
        prf.update(&[0]);
        prf.update(&((len * 8) as u32).to_be_bytes());
        Zeroizing::new(prf.sign().as_ref()[..len].to_vec())
    }

    fn mac(&self, key: &[u8], parts: &[&[u8]]) -> Vec<u8> {
        let key = hmac::Key::new(self.etype.hmac(), key);
        let mut context = hmac::Context::with_key(&key);
        parts.iter().for_each(|part| context.update(part));
        context.sign().as_ref()[..self.etype.mac_len()].to_vec()
    }

    /// Encrypts for a key usage number (RFC 4120 7.5.1).
    pub fn encrypt(&self, usage: u32, plain: &[u8]) -> Vec<u8> {
        self.encrypt_with(usage, plain, random())
    }

    fn encrypt_with(&self, usage: u32, plain: &[u8], confounder: [u8; BLOCK]) -> Vec<u8> {
        let integrity = self.derive(usage, Purpose::Integrity);
        let mut text = confounder.to_vec();
        text.extend_from_slice(plain);
        let before = self.etype.old().then(|| self.mac(&integrity, &[&text]));
        cts_encrypt(&self.derive(usage, Purpose::Encryption), &mut text);
        let mac = before.unwrap_or_else(|| self.mac(&integrity, &[&[0; BLOCK], &text]));
        text.extend_from_slice(&mac);
        text
    }

    /// Decrypts; `what` is named in the error.
    ///
    /// # Errors
    /// [`Error::Forged`]: it was encrypted with another key or for another use, or was changed.
    pub fn decrypt(
        &self,
        usage: u32,
        cipher: &[u8],
        what: &'static str,
    ) -> Result<Zeroizing<Vec<u8>>, Error> {
        let at = cipher.len().checked_sub(self.etype.mac_len()).filter(|at| *at >= BLOCK);
        let (text, mac) = cipher.split_at(at.ok_or(Error::Forged(what))?);
        let integrity = self.derive(usage, Purpose::Integrity);
        let mut plain = Zeroizing::new(text.to_vec());
        cts_decrypt(&self.derive(usage, Purpose::Encryption), &mut plain);
        let want = match self.etype.old() {
            true => self.mac(&integrity, &[&plain]),
            false => self.mac(&integrity, &[&[0; BLOCK], text]),
        };
        if !constant_time_eq(&want, mac) {
            return Err(Error::Forged(what));
        }
        plain.drain(..BLOCK);
        Ok(plain)
    }

    /// Encrypts `body` in place with a random block before it and `trailer` behind it; the checksum
    /// covers `before` and `behind` too, which stay as they are (MS-KILE 3.4.5.4.1). Gives the encrypted
    /// block, the encrypted trailer, which must have a block at least, and the checksum.
    pub(super) fn seal_between(
        &self,
        usage: u32,
        (before, body, behind): (&[u8], &mut [u8], &[u8]),
        trailer: &[u8],
    ) -> ([u8; BLOCK], Vec<u8>, Vec<u8>) {
        let confounder: [u8; BLOCK] = random();
        let integrity = self.derive(usage, Purpose::Integrity);
        let plain = [&confounder[..], before, body, behind, trailer];
        let sum = self.etype.old().then(|| self.mac(&integrity, &plain));
        let mut text = [&confounder[..], body, trailer].concat();
        cts_encrypt(&self.derive(usage, Purpose::Encryption), &mut text);
        let mut first = [0; BLOCK];
        first.copy_from_slice(&text[..BLOCK]);
        body.copy_from_slice(&text[BLOCK..BLOCK + body.len()]);
        let trailer = text.split_off(BLOCK + body.len());
        let sum = sum.unwrap_or_else(|| {
            self.mac(&integrity, &[&[0; BLOCK], &first, before, body, behind, &trailer])
        });
        (first, trailer, sum)
    }

    /// Decrypts what [`Self::seal_between`] made, `body` in place; gives the trailer.
    pub(super) fn open_between(
        &self,
        usage: u32,
        (before, body, behind): (&[u8], &mut [u8], &[u8]),
        (first, trailer, sum): (&[u8], &[u8], &[u8]),
    ) -> Result<Vec<u8>, Error> {
        const WHAT: &str = "a message";
        if first.len() != BLOCK || trailer.len() < BLOCK {
            return Err(Error::Forged(WHAT));
        }
        let integrity = self.derive(usage, Purpose::Integrity);
        let right = |parts: &[&[u8]]| constant_time_eq(&self.mac(&integrity, parts), sum);
        if !self.etype.old() && !right(&[&[0; BLOCK], first, before, body, behind, trailer]) {
            return Err(Error::Forged(WHAT));
        }
        let mut text = Zeroizing::new([first, body, trailer].concat());
        cts_decrypt(&self.derive(usage, Purpose::Encryption), &mut text);
        let (first, rest) = text.split_at(BLOCK);
        let (plain, trailer) = rest.split_at(body.len());
        if self.etype.old() && !right(&[first, before, plain, behind, trailer]) {
            return Err(Error::Forged(WHAT));
        }
        body.copy_from_slice(plain);
        Ok(trailer.to_vec())
    }

    /// The checksum of a text for a key usage number.
    pub fn checksum(&self, usage: u32, parts: &[&[u8]]) -> Vec<u8> {
        self.mac(&self.derive(usage, Purpose::Checksum), parts)
    }
}

/// Stretches or folds a text to 128 bits (RFC 3961 5.1): copies of it, each rotated 13 bits
/// further to the right, added with end-around carry.
fn n_fold(text: &[u8]) -> [u8; BLOCK] {
    let (bits, size) = (text.len() * 8, BLOCK);
    let total = lcm(text.len(), size);
    let mut sum = [0u32; BLOCK];
    for at in 0..total {
        let copy = at / text.len();
        let mut byte = 0u8;
        for bit in 0..8 {
            let place = (at % text.len()) * 8 + bit;
            let from = (place + bits - (13 * copy) % bits) % bits;
            byte = byte << 1 | (text[from / 8] >> (7 - from % 8) & 1);
        }
        sum[at % size] += u32::from(byte);
    }
    // Carries go to the left, those of the first byte to the last.
    loop {
        let mut carried = [0u32; BLOCK];
        for (at, value) in sum.iter().enumerate() {
            carried[at] += value & 0xff;
            carried[(at + size - 1) % size] += value >> 8;
        }
        let done = carried.iter().all(|value| *value < 0x100);
        sum = carried;
        if done {
            return sum.map(|value| value as u8);
        }
    }
}

fn lcm(a: usize, b: usize) -> usize {
    let (mut x, mut y) = (a, b);
    while y != 0 {
        (x, y) = (y, x % y);
    }
    a / x * b
}

const PROOF: &str = "AES takes keys of 16 and 32 bytes and whole blocks";

fn unbound(key: &[u8]) -> UnboundCipherKey {
    let algorithm = if key.len() == 16 { &AES_128 } else { &AES_256 };
    UnboundCipherKey::new(algorithm, key).expect(PROOF)
}

/// CBC over whole blocks, from zeros.
fn cbc_encrypt(key: &[u8], blocks: &mut [u8]) {
    let context = EncryptionContext::Iv128(FixedLength::from([0; BLOCK]));
    let key = EncryptingKey::cbc(unbound(key)).expect(PROOF);
    key.less_safe_encrypt(blocks, context).expect(PROOF);
}

fn cbc_decrypt(key: &[u8], blocks: &mut [u8]) {
    let context = DecryptionContext::Iv128(FixedLength::from([0; BLOCK]));
    let key = DecryptingKey::cbc(unbound(key)).expect(PROOF);
    key.decrypt(blocks, context).expect(PROOF);
}

/// CBC with ciphertext stealing (RFC 3962 5): the last two blocks change places, and what is then
/// last is cut to the length of the text, which is at least one block.
fn cts_encrypt(key: &[u8], text: &mut Vec<u8>) {
    let len = text.len();
    text.resize(len.next_multiple_of(BLOCK), 0);
    cbc_encrypt(key, text);
    if len > BLOCK {
        let at = text.len() - 2 * BLOCK;
        let (last, before) = text[at..].split_at_mut(BLOCK);
        last.swap_with_slice(before);
    }
    text.truncate(len);
}

/// The reverse of it.
fn cts_decrypt(key: &[u8], text: &mut [u8]) {
    if text.len() <= BLOCK {
        return cbc_decrypt(key, text);
    }
    // Where the block that was encrypted last stands, and the cut one behind it.
    let at = (text.len() - 1) / BLOCK * BLOCK - BLOCK;
    let mut whole = [0; BLOCK];
    whole.copy_from_slice(&text[at..at + BLOCK]);
    cbc_decrypt(key, &mut whole);
    let mut before = whole;
    let cut = &mut text[at + BLOCK..];
    before[..cut.len()].copy_from_slice(cut);
    for (byte, mask) in cut.iter_mut().zip(&whole) {
        *byte ^= mask;
    }
    text[at..at + BLOCK].copy_from_slice(&before);
    cbc_decrypt(key, &mut text[..at + BLOCK]);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::crypto::testing::hex;

    const ALL: [Etype; 4] =
        [Etype::Aes128Sha1, Etype::Aes256Sha1, Etype::Aes128Sha256, Etype::Aes256Sha384];

    /// RFC 3961 A.1.
    #[test]
    fn folding_as_in_the_rfc() {
        assert_eq!(n_fold(b"kerberos").to_vec(), hex("6b65726265726f737b9b5b2b93132b93"));
    }

    /// RFC 3962 B: the first text of more than one block, and one of nearly two.
    #[test]
    fn stealing_as_in_the_rfc() {
        let key = b"chicken teriyaki";
        for (plain, cipher) in [
            (&b"I would like the "[..], "c6353568f2bf8cb4d8a580362da7ff7f97"),
            (
                b"I would like the General Gau's ",
                "fc00783e0efdb2c1d445d4c8eff7ed2297687268d6ecccc0c07b25e25ecfe5",
            ),
            (
                b"I would like the General Gau's C",
                "39312523a78662d5be7fcbcc98ebf5a897687268d6ecccc0c07b25e25ecfe584",
            ),
        ] {
            let mut text = plain.to_vec();
            cts_encrypt(key, &mut text);
            assert_eq!(text, hex(cipher));
            cts_decrypt(key, &mut text);
            assert_eq!(text, plain);
        }
    }

    /// RFC 8009 A.
    #[test]
    fn sha2_keys_and_text_as_in_the_rfc() {
        let key = Key::new(Etype::Aes128Sha256, &hex("3705d96080c17728a0e800eab6e0d23c")).unwrap();
        let derived = |purpose| key.derive(2, purpose).to_vec();
        assert_eq!(derived(Purpose::Checksum), hex("b31a018a48f54776f403e9a396325dc3"));
        assert_eq!(derived(Purpose::Encryption), hex("9b197dd1e8c5609d6e67c3e37c62c72e"));
        assert_eq!(derived(Purpose::Integrity), hex("9fda0e56ab2d85e1569a688696c26a6c"));
        let confounder = hex("7e5895eaf2672435bad817f545a37148").try_into().unwrap();
        assert_eq!(
            key.encrypt_with(2, &[], confounder),
            hex("ef85fb890bb8472f4dab20394dca781dad877eda39d50c870c0d5a0a8e48c718")
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn what_is_encrypted_decrypts_and_any_changed_bit_is_noticed(
            which in 0..4usize, key: [u8; 32], usage in 0..30u32,
            plain in prop::collection::vec(any::<u8>(), 0..100), bit in any::<prop::sample::Index>(),
        ) {
            let etype = ALL[which];
            let key = Key::new(etype, &key[..etype.key_len()]).unwrap();
            let mut cipher = key.encrypt(usage, &plain);
            prop_assert_eq!(cipher.len(), BLOCK + plain.len() + etype.mac_len());
            prop_assert_eq!(&*key.decrypt(usage, &cipher, "x").unwrap(), &plain);
            prop_assert!(key.decrypt(usage + 1, &cipher, "x").is_err());
            let bit = bit.index(cipher.len() * 8);
            cipher[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(key.decrypt(usage, &cipher, "x"), Err(Error::Forged("x")));
        }

        #[test]
        fn noise_does_not_decrypt(which in 0..4usize, noise in prop::collection::vec(any::<u8>(), 0..80)) {
            let etype = ALL[which];
            let key = Key::new(etype, &[7; 32][..etype.key_len()]).unwrap();
            prop_assert!(key.decrypt(2, &noise, "x").is_err());
        }
    }
}

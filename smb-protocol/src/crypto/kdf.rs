//! Key derivation: SP800-108 in counter mode with HMAC-SHA256 and the labels of SMB 3.x
//! (MS-SMB2 3.1.4.2, 3.2.5.3.1, 3.3.5.5.3).

use aws_lc_rs::hmac;
use zeroize::Zeroize;

use super::{Cipher, PreauthHash, SecretKey};

/// What the derived keys are bound to; it selects labels and contexts.
#[derive(Clone, Copy, Debug)]
pub enum Binding<'a> {
    /// Dialects 3.0 and 3.0.2: fixed context strings.
    Smb30,
    /// Dialect 3.1.1: the session's pre-authentication hash is the context.
    Smb311(&'a PreauthHash),
}

/// The keys of both directions of an encrypted session.
#[derive(Clone, Debug)]
pub struct CipherKeys {
    /// Encrypts requests: the client's encryption key, the server's decryption key.
    pub client_to_server: SecretKey,
    /// Encrypts responses: the server's encryption key, the client's decryption key.
    pub server_to_client: SecretKey,
}

/// SP800-108 section 5.1 with r = 32, PRF HMAC-SHA256 and L = 8 × `out.len()`.
///
/// `label` and `context` are taken as they are; SMB's strings include their terminating zero.
pub fn derive(key: &[u8], label: &[u8], context: &[u8], out: &mut [u8]) {
    let key = hmac::Key::new(hmac::HMAC_SHA256, key);
    let bits = u32::try_from(out.len() * 8).expect("derived keys are a few bytes long");
    for (i, block) in (1u32..).zip(out.chunks_mut(32)) {
        let mut prf = hmac::Context::with_key(&key);
        prf.update(&i.to_be_bytes());
        prf.update(label);
        prf.update(&[0]);
        prf.update(context);
        prf.update(&bits.to_be_bytes());
        block.copy_from_slice(&prf.sign().as_ref()[..block.len()]);
    }
}

fn derive_secret(key: &[u8], label: &[u8], context: &[u8], len: usize) -> SecretKey {
    let mut bytes = [0; SecretKey::MAX_LEN];
    derive(key, label, context, &mut bytes[..len]);
    let secret = SecretKey::new(&bytes[..len]).expect("callers ask for 16 or 32 bytes");
    bytes.zeroize();
    secret
}

fn pick<'a>(
    binding: Binding<'a>,
    new_label: &'static [u8],
    old: (&'static [u8], &'static [u8]),
) -> (&'static [u8], &'a [u8]) {
    match binding {
        Binding::Smb30 => old,
        Binding::Smb311(hash) => (new_label, hash.as_bytes()),
    }
}

/// `Session.SigningKey` or `Channel.SigningKey`: 16 bytes from the 16-byte session key.
#[must_use]
pub fn signing_key(session_key: &[u8; 16], binding: Binding<'_>) -> SecretKey {
    let (label, context) = pick(binding, b"SMBSigningKey\0", (b"SMB2AESCMAC\0", b"SmbSign\0"));
    derive_secret(session_key, label, context, 16)
}

/// `Session.ApplicationKey`: 16 bytes from the 16-byte session key.
#[must_use]
pub fn application_key(session_key: &[u8; 16], binding: Binding<'_>) -> SecretKey {
    let (label, context) = pick(binding, b"SMBAppKey\0", (b"SMB2APP\0", b"SmbRpc\0"));
    derive_secret(session_key, label, context, 16)
}

/// The session's encryption and decryption keys, as long as `cipher` wants them.
///
/// `full_session_key` is what authentication gave; ciphers with 128-bit keys use 16 bytes of it,
/// padded with zeros if it is shorter.
#[must_use]
pub fn cipher_keys(
    full_session_key: &SecretKey,
    cipher: Cipher,
    binding: Binding<'_>,
) -> CipherKeys {
    let mut short = full_session_key.first_16();
    let key: &[u8] = if cipher.key_len() == 32 { full_session_key.as_bytes() } else { &short };
    let (label, context) = pick(binding, b"SMBC2SCipherKey\0", (b"SMB2AESCCM\0", b"ServerIn \0"));
    let client_to_server = derive_secret(key, label, context, cipher.key_len());
    let (label, context) = pick(binding, b"SMBS2CCipherKey\0", (b"SMB2AESCCM\0", b"ServerOut\0"));
    let server_to_client = derive_secret(key, label, context, cipher.key_len());
    short.zeroize();
    CipherKeys { client_to_server, server_to_client }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::testing::hex;

    /// The key schedule printed for dialect 3.0 in Microsoft's "SMB 2 and SMB 3 security in
    /// Windows 10: the anatomy of signing and cryptographic keys".
    #[test]
    fn dialect_3_0_keys_from_the_published_example() {
        let session: [u8; 16] = hex("7CD451825D0450D235424E44BA6E78CC").try_into().unwrap();
        let signing = signing_key(&session, Binding::Smb30);
        assert_eq!(signing.as_bytes(), hex("0B7E9C5CAC36C0F6EA9AB275298CEDCE"));
        let keys = cipher_keys(&session.into(), Cipher::Aes128Ccm, Binding::Smb30);
        assert_eq!(keys.client_to_server.as_bytes(), hex("FAD27796665B313EBB578F388632B4F7"));
        assert_eq!(keys.server_to_client.as_bytes(), hex("B0F0427F7CEB416D1D9DCC0CD4F99447"));
    }

    /// The same source's schedule for dialect 3.1.1.
    #[test]
    fn dialect_3_1_1_keys_from_the_published_example() {
        let session: [u8; 16] = hex("270E1BA896585EEB7AF3472D3B4C75A7").try_into().unwrap();
        let hash: [u8; 64] =
            hex("0DD13628CC3ED218EF9DF9772D436D0887AB9814BFAE63A80AA845F36909DB79\
             28622DDDAD522D9751640A459762C5A9D6BB084CBB3CE6BDADEF5D5BCE3C6C01")
            .try_into()
            .unwrap();
        let hash = PreauthHash::from(hash);
        let signing = signing_key(&session, Binding::Smb311(&hash));
        assert_eq!(signing.as_bytes(), hex("73FE7A9A77BEF0BDE49C650D8CCB5F76"));
    }

    #[test]
    fn long_outputs_continue_with_the_next_counter() {
        let mut long = [0; 48];
        derive(b"key", b"label\0", b"context\0", &mut long);
        let key = hmac::Key::new(hmac::HMAC_SHA256, b"key");
        let second = hmac::sign(&key, b"\x00\x00\x00\x02label\0\0context\0\x00\x00\x01\x80");
        assert_eq!(long[32..], second.as_ref()[..16]);
    }

    #[test]
    fn directions_and_lengths_differ() {
        let full = SecretKey::from([9; 16]);
        let hash = PreauthHash::new();
        let keys = cipher_keys(&full, Cipher::Aes256Gcm, Binding::Smb311(&hash));
        assert_eq!(keys.client_to_server.as_bytes().len(), 32);
        assert_ne!(keys.client_to_server.as_bytes(), keys.server_to_client.as_bytes());
        let app = application_key(&[9; 16], Binding::Smb30);
        assert_ne!(app.as_bytes(), signing_key(&[9; 16], Binding::Smb30).as_bytes());
    }
}

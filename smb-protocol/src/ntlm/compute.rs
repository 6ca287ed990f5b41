//! The formulas of NTLMv2 (MS-NLMP 3.3.2, 3.4.5).

use hmac::{Hmac, KeyInit, Mac};
use md5::{Digest, Md5};
use rc4::{Rc4, StreamCipher};
use zeroize::Zeroize;

use super::{Flags, NtHash};
use crate::name;

/// Which side a signing or sealing key belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// Keys of what the client sends.
    Client,
    /// Keys of what the server sends.
    Server,
}

/// HMAC-MD5 over the concatenation of `parts`.
#[must_use]
pub fn hmac_md5(key: &[u8], parts: &[&[u8]]) -> [u8; 16] {
    let mut mac = Hmac::<Md5>::new_from_slice(key).expect("HMAC takes keys of any length");
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

/// RC4 from the start of the key stream.
pub fn rc4(key: &[u8; 16], data: &mut [u8]) {
    use rc4::KeyInit;
    let mut cipher = Rc4::new_from_slice(key).expect("RC4 takes keys of 1 to 256 bytes");
    cipher.apply_keystream(data);
}

/// Text as little-endian UTF-16, as names and passwords enter the formulas.
#[must_use]
pub fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

/// The name as it enters NTOWFv2 (MS-NLMP 3.3.2), and as names are compared.
#[must_use]
pub fn upper(text: &str) -> String {
    name::fold(text)
}

/// NTOWFv2: the key of the response, of one user in one domain. The domain keeps its case.
#[must_use]
pub fn response_key(hash: &NtHash, user: &str, domain: &str) -> [u8; 16] {
    hmac_md5(hash.as_bytes(), &[&utf16(&upper(user)), &utf16(domain)])
}

/// NTProofStr: proves knowledge of the response key for a server challenge and a client's
/// NTLMv2_CLIENT_CHALLENGE (`temp`).
#[must_use]
pub fn nt_proof(response_key: &[u8; 16], server_challenge: &[u8; 8], temp: &[u8]) -> [u8; 16] {
    hmac_md5(response_key, &[server_challenge, temp])
}

/// SessionBaseKey, which for NTLMv2 is also the KeyExchangeKey.
#[must_use]
pub fn session_base_key(response_key: &[u8; 16], nt_proof: &[u8; 16]) -> [u8; 16] {
    hmac_md5(response_key, &[nt_proof])
}

/// LMv2 response, sent only to servers that give no time.
#[must_use]
pub fn lm_v2(
    response_key: &[u8; 16],
    server_challenge: &[u8; 8],
    client_challenge: &[u8; 8],
) -> [u8; 24] {
    let mut out = [0; 24];
    out[..16].copy_from_slice(&hmac_md5(response_key, &[server_challenge, client_challenge]));
    out[16..].copy_from_slice(client_challenge);
    out
}

fn magic_key(key: &[u8], magic: &[u8]) -> [u8; 16] {
    Md5::new().chain_update(key).chain_update(magic).finalize().into()
}

/// SIGNKEY with extended session security.
#[must_use]
pub fn sign_key(exported: &[u8; 16], side: Side) -> [u8; 16] {
    magic_key(
        exported,
        match side {
            Side::Client => b"session key to client-to-server signing key magic constant\0",
            Side::Server => b"session key to server-to-client signing key magic constant\0",
        },
    )
}

/// SEALKEY with extended session security.
#[must_use]
pub fn seal_key(exported: &[u8; 16], flags: Flags, side: Side) -> [u8; 16] {
    let strength = if flags.contains(Flags::KEY_128) {
        16
    } else if flags.contains(Flags::KEY_56) {
        7
    } else {
        5
    };
    magic_key(
        &exported[..strength],
        match side {
            Side::Client => b"session key to client-to-server sealing key magic constant\0",
            Side::Server => b"session key to server-to-client sealing key magic constant\0",
        },
    )
}

/// The MIC of AUTHENTICATE over the three messages, the last with zeros as its MIC.
#[must_use]
pub fn mic(
    exported: &[u8; 16],
    negotiate: &[u8],
    challenge: &[u8],
    authenticate: &[u8],
) -> [u8; 16] {
    hmac_md5(exported, &[negotiate, challenge, authenticate])
}

/// Decrypts (or encrypts) the random session key with the key exchange key.
#[must_use]
pub fn exchange_key(key_exchange_key: &[u8; 16], mut key: [u8; 16]) -> [u8; 16] {
    rc4(key_exchange_key, &mut key);
    let out = key;
    key.zeroize();
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::testing::hex;

    /// The values of MS-NLMP 4.2.4.
    #[test]
    fn values_of_the_specification() {
        let key = response_key(&NtHash::of_password("Password"), "User", "Domain");
        assert_eq!(key[..], hex("0c868a403bfd7a93a3001ef22ef02e3f"));
        let server: [u8; 8] = hex("0123456789abcdef").try_into().unwrap();
        let temp = hex("01010000000000000000000000000000aaaaaaaaaaaaaaaa00000000\
             02000c0044006f006d00610069006e0001000c005300650072007600650072000000000000000000");
        let proof = nt_proof(&key, &server, &temp);
        assert_eq!(proof[..], hex("68cd0ab851e51c96aabc927bebef6a1c"));
        let base = session_base_key(&key, &proof);
        assert_eq!(base[..], hex("8de40ccadbc14a82f15cb0ad0de95ca3"));
        let lm = lm_v2(&key, &server, &[0xaa; 8]);
        assert_eq!(lm[..], hex("86c35097ac9cec102554764a57cccc19aaaaaaaaaaaaaaaa"));
        let sent = exchange_key(&base, [0x55; 16]);
        assert_eq!(sent[..], hex("c5dad2544fc9799094ce1ce90bc9d03e"));
        assert_eq!(
            sign_key(&[0x55; 16], Side::Client)[..],
            hex("4788dc861b4782f35d43fd98fe1a2d39")
        );
        let seal = seal_key(&[0x55; 16], Flags::KEY_128, Side::Client);
        assert_eq!(seal[..], hex("59f600973cc4960a25480a7c196e4c58"));
    }

    #[test]
    fn upper_case_keeps_what_grows() {
        assert_eq!(upper("straße ümlaut"), "STRAßE ÜMLAUT");
    }
}

//! Keys after an NTLM logon, and the message integrity that SPNEGO uses (MS-NLMP 3.4.4.2).

use std::fmt;

use zeroize::Zeroize;

use super::{
    Flags, Messages,
    compute::{self, Side},
};
use crate::{crypto::constant_time_eq, gss};

/// The signing and sealing keys of both sides.
///
/// SPNEGO signs exactly one message each way, with sequence number 0 and an RC4 state that is
/// put back afterwards (MS-SPNG 3.2.5.1), so nothing here changes with use. What comes after that is
/// for [`Messages`].
#[derive(Clone)]
pub struct SessionSecurity {
    client: Keys,
    server: Keys,
    key_exchange: bool,
    seals: bool,
}

#[derive(Clone)]
struct Keys {
    sign: [u8; 16],
    seal: [u8; 16],
}

impl Drop for Keys {
    fn drop(&mut self) {
        self.sign.zeroize();
        self.seal.zeroize();
    }
}

impl SessionSecurity {
    /// Derives the keys; `None` when signing was not negotiated.
    #[must_use]
    pub fn new(exported: &[u8; 16], flags: Flags) -> Option<Self> {
        if !flags.contains(Flags::SIGN) || !flags.contains(Flags::EXTENDED_SECURITY) {
            return None;
        }
        let keys = |side| Keys {
            sign: compute::sign_key(exported, side),
            seal: compute::seal_key(exported, flags, side),
        };
        Some(Self {
            client: keys(Side::Client),
            server: keys(Side::Server),
            key_exchange: flags.contains(Flags::KEY_EXCHANGE),
            seals: flags.contains(Flags::SEAL),
        })
    }

    /// Begins to protect messages as one of the sides, each of which has signed so many already. The
    /// key streams begin anew whatever was signed (MS-SPNG 3.2.5.1).
    #[must_use]
    pub fn messages(&self, side: gss::Side, signed: u32) -> Messages {
        let (client, server) =
            ((&self.client.sign, &self.client.seal), (&self.server.sign, &self.server.seal));
        let (ours, theirs) = match side {
            gss::Side::Initiator => (client, server),
            gss::Side::Acceptor => (server, client),
        };
        Messages::new(ours, theirs, signed, (self.key_exchange, self.seals))
    }

    /// NTLMSSP_MESSAGE_SIGNATURE over the first message of `side`.
    #[must_use]
    pub fn first_signature(&self, side: Side, message: &[u8]) -> [u8; 16] {
        let keys = match side {
            Side::Client => &self.client,
            Side::Server => &self.server,
        };
        let mut checksum = [0; 8];
        let full = compute::hmac_md5(&keys.sign, &[&[0; 4], message]);
        checksum.copy_from_slice(&full[..8]);
        if self.key_exchange {
            compute::rc4(&keys.seal, &mut checksum);
        }
        let mut signature = [0; 16];
        signature[0] = 1;
        signature[4..12].copy_from_slice(&checksum);
        signature
    }

    /// Whether `signature` is right for the first message of `side`.
    #[must_use]
    pub fn verify_first(&self, side: Side, message: &[u8], signature: &[u8]) -> bool {
        constant_time_eq(&self.first_signature(side, message), signature)
    }
}

impl fmt::Debug for SessionSecurity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SessionSecurity(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::testing::hex;

    const FLAGS: Flags = Flags(
        Flags::SIGN.0 | Flags::EXTENDED_SECURITY.0 | Flags::KEY_128.0 | Flags::KEY_EXCHANGE.0,
    );

    /// The checksum of MS-NLMP 4.2.4.4, which there is encrypted behind 18 bytes of payload.
    #[test]
    fn checksum_of_the_specification() {
        let mut flags = FLAGS;
        flags.0 &= !Flags::KEY_EXCHANGE.0;
        let security = SessionSecurity::new(&[0x55; 16], flags).unwrap();
        let text = compute::utf16("Plaintext");
        let signature = security.first_signature(Side::Client, &text);
        assert_eq!(signature[..], hex("01000000 70352851f2564309 00000000"));

        let security = SessionSecurity::new(&[0x55; 16], FLAGS).unwrap();
        let mut stream = [0; 26];
        compute::rc4(&compute::seal_key(&[0x55; 16], FLAGS, Side::Client), &mut stream);
        let sealed: Vec<u8> =
            hex("70352851f2564309").iter().zip(&stream[18..]).map(|(a, b)| a ^ b).collect();
        assert_eq!(sealed, hex("7fb38ec5c55d4976"));
        let here: Vec<u8> =
            hex("70352851f2564309").iter().zip(&stream).map(|(a, b)| a ^ b).collect();
        assert_eq!(security.first_signature(Side::Client, &text)[4..12], here);
    }

    #[test]
    fn sides_and_messages_differ() {
        let security = SessionSecurity::new(&[7; 16], FLAGS).unwrap();
        let signature = security.first_signature(Side::Client, b"list");
        assert!(security.verify_first(Side::Client, b"list", &signature));
        assert!(!security.verify_first(Side::Server, b"list", &signature));
        assert!(!security.verify_first(Side::Client, b"List", &signature));
        assert!(!security.verify_first(Side::Client, b"list", &signature[..15]));
        assert!(SessionSecurity::new(&[7; 16], Flags::EXTENDED_SECURITY).is_none());
    }
}

//! The client's side of a logon (MS-NLMP 3.1.5.1).

use zeroize::Zeroizing;

use super::{
    Error, FileTime, Flags, NtHash, SessionSecurity,
    av::{AvBuilder, AvId, AvList, FLAG_MIC},
    compute,
    message::{Authenticate, Challenge, Negotiate},
};
use crate::crypto::{SecretKey, random};

/// Who logs on: name, domain and what is known of the password.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// Name of the user.
    pub user: String,
    /// Domain of the user; empty for a user of the server.
    pub domain: String,
    /// Hash of the user's password.
    pub hash: NtHash,
}

/// What a client's logon gives; it is valid only if the server accepts it.
#[derive(Clone, Debug)]
pub struct Established {
    /// ExportedSessionKey, 16 bytes.
    pub session_key: SecretKey,
    /// Signing for SPNEGO, if negotiated.
    pub security: Option<SessionSecurity>,
}

/// One logon of a client: [`Client::negotiate`], then [`Client::authenticate`].
#[derive(Debug)]
pub struct Client {
    credentials: Credentials,
    workstation: String,
    target: String,
    negotiate: Option<Vec<u8>>,
}

/// Random values of a logon, apart so that the specification's examples can be computed.
struct Nonces {
    challenge: [u8; 8],
    session_key: Zeroizing<[u8; 16]>,
}

impl Client {
    const OFFERED: Flags = Flags(
        Flags::UNICODE.0
            | Flags::REQUEST_TARGET.0
            | Flags::SIGN.0
            | Flags::SEAL.0
            | Flags::NTLM.0
            | Flags::ALWAYS_SIGN.0
            | Flags::EXTENDED_SECURITY.0
            | Flags::TARGET_INFO.0
            | Flags::VERSION.0
            | Flags::KEY_128.0
            | Flags::KEY_EXCHANGE.0
            | Flags::KEY_56.0,
    );

    /// Prepares a logon from `workstation` (may be empty) to the service `target`, such as
    /// `cifs/server`.
    #[must_use]
    pub fn new(credentials: Credentials, workstation: &str, target: &str) -> Self {
        Self {
            credentials,
            workstation: workstation.to_owned(),
            target: target.to_owned(),
            negotiate: None,
        }
    }

    /// The first message, NEGOTIATE, with what this side can do.
    pub fn negotiate(&mut self) -> Vec<u8> {
        let bytes = Negotiate { flags: Self::OFFERED }.encode();
        self.negotiate = Some(bytes.clone());
        bytes
    }

    /// Answers the server's CHALLENGE with AUTHENTICATE. `now` is used when the server tells no
    /// time.
    ///
    /// # Errors
    /// The challenge is malformed or out of order, or the server does not offer what NTLMv2 needs.
    pub fn authenticate(
        &mut self,
        challenge: &[u8],
        now: FileTime,
    ) -> Result<(Vec<u8>, Established), Error> {
        let nonces = Nonces { challenge: random(), session_key: Zeroizing::new(random()) };
        self.authenticate_with(challenge, now, &nonces)
    }

    fn authenticate_with(
        &mut self,
        challenge_bytes: &[u8],
        now: FileTime,
        nonces: &Nonces,
    ) -> Result<(Vec<u8>, Established), Error> {
        let negotiate = self.negotiate.take().ok_or(Error::OutOfOrder)?;
        let challenge = Challenge::parse(challenge_bytes)?;
        let flags = challenge.flags.intersection(Self::OFFERED);
        for (flag, name) in [
            (Flags::TARGET_INFO, "target information"),
            (Flags::EXTENDED_SECURITY, "extended session security"),
            (Flags::KEY_128, "128-bit keys"),
        ] {
            if !flags.contains(flag) {
                return Err(Error::Unsupported(name));
            }
        }
        let info = AvList::parse(&challenge.target_info)?;
        let temp = self.client_challenge(info, now, &nonces.challenge);

        let Credentials { user, domain, hash } = &self.credentials;
        let key = Zeroizing::new(compute::response_key(hash, user, domain));
        let proof = compute::nt_proof(&key, &challenge.server_challenge, &temp);
        let base = Zeroizing::new(compute::session_base_key(&key, &proof));
        let lm_response = match info.timestamp() {
            Some(_) => vec![0; 24],
            None => compute::lm_v2(&key, &challenge.server_challenge, &nonces.challenge).to_vec(),
        };
        let exchange = flags.contains(Flags::KEY_EXCHANGE)
            && (flags.contains(Flags::SIGN) || flags.contains(Flags::SEAL));
        let exported = if exchange { nonces.session_key.clone() } else { base.clone() };
        let encrypted_key =
            if exchange { compute::exchange_key(&base, *exported).to_vec() } else { Vec::new() };

        let mut message = Authenticate {
            flags,
            lm_response,
            nt_response: [&proof[..], &temp].concat(),
            domain: domain.clone(),
            user: user.clone(),
            workstation: self.workstation.clone(),
            encrypted_key,
            mic: Some([0; 16]),
        };
        let unsigned = message.encode();
        message.mic = Some(compute::mic(&exported, &negotiate, challenge_bytes, &unsigned));
        let established = Established {
            session_key: SecretKey::from(*exported),
            security: SessionSecurity::new(&exported, flags),
        };
        Ok((message.encode(), established))
    }

    /// NTLMv2_CLIENT_CHALLENGE and the four zero bytes behind it: the server's attributes with
    /// the client's added (MS-NLMP 2.2.2.7, 3.1.5.1.2).
    fn client_challenge(&self, info: AvList<'_>, now: FileTime, nonce: &[u8; 8]) -> Vec<u8> {
        let own = [AvId::FLAGS, AvId::TARGET_NAME, AvId::CHANNEL_BINDINGS];
        let mut pairs = AvBuilder::new();
        for (id, value) in info.iter().filter(|(id, _)| !own.contains(id)) {
            pairs = pairs.bytes(id, value);
        }
        let pairs = pairs
            .bytes(AvId::FLAGS, &(info.flags() | FLAG_MIC).to_le_bytes())
            .bytes(AvId::CHANNEL_BINDINGS, &[0; 16])
            .bytes(AvId::TARGET_NAME, &compute::utf16(&self.target))
            .finish();
        let time = info.timestamp().unwrap_or(now);
        let mut temp = vec![1, 1, 0, 0, 0, 0, 0, 0];
        temp.extend_from_slice(&time.to_le_bytes());
        temp.extend_from_slice(nonce);
        temp.extend_from_slice(&[0; 4]);
        temp.extend_from_slice(&pairs);
        temp.extend_from_slice(&[0; 4]);
        temp
    }
}

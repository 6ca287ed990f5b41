//! The server's side of a logon (MS-NLMP 3.2.5.1).

use std::sync::Arc;

use zeroize::Zeroizing;

use super::{
    Error, FileTime, Flags, NtHash, SessionSecurity,
    av::{AvBuilder, AvId, AvList, FLAG_MIC},
    compute,
    message::{Authenticate, Challenge, Negotiate},
};
use crate::crypto::{SecretKey, constant_time_eq, random};

/// How a server names itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerInfo {
    /// NetBIOS name, upper case, at most 15 characters.
    pub netbios_name: String,
    /// NetBIOS name of the domain; a stand-alone server gives its own name.
    pub netbios_domain: String,
    /// DNS name, may be empty.
    pub dns_name: String,
    /// DNS name of the domain, may be empty.
    pub dns_domain: String,
}

impl ServerInfo {
    /// The names of a stand-alone server, which is its own domain.
    #[must_use]
    pub fn standalone(name: &str) -> Self {
        Self {
            netbios_name: name.to_uppercase(),
            netbios_domain: name.to_uppercase(),
            dns_name: name.to_lowercase(),
            dns_domain: String::new(),
        }
    }
}

/// A user who proved to know the password.
#[derive(Clone, Debug)]
pub struct Authenticated {
    /// User name as the client sent it.
    pub user: String,
    /// Domain as the client sent it.
    pub domain: String,
    /// Client computer as the client sent it; not proven.
    pub workstation: String,
    /// ExportedSessionKey, 16 bytes.
    pub session_key: SecretKey,
    /// Signing for SPNEGO, if negotiated.
    pub security: Option<SessionSecurity>,
    /// Whether the three messages were protected by a message integrity code.
    pub mic_present: bool,
}

/// One logon at a server: [`Server::challenge`], then [`Server::authenticate`].
#[derive(Debug)]
pub struct Server {
    info: Arc<ServerInfo>,
    exchange: Option<Exchange>,
}

#[derive(Debug)]
struct Exchange {
    negotiate: Vec<u8>,
    challenge: Vec<u8>,
    server_challenge: [u8; 8],
    flags: Flags,
}

/// Longest NEGOTIATE that is kept until AUTHENTICATE comes.
const MAX_NEGOTIATE: usize = 1024;

impl Server {
    /// What is granted when the client asks for it.
    const SUPPORTED: Flags = Flags(
        Flags::UNICODE.0
            | Flags::SIGN.0
            | Flags::SEAL.0
            | Flags::EXTENDED_SECURITY.0
            | Flags::VERSION.0
            | Flags::KEY_128.0
            | Flags::KEY_EXCHANGE.0
            | Flags::KEY_56.0,
    );
    /// What is always set in CHALLENGE.
    const ALWAYS: Flags = Flags(
        Flags::REQUEST_TARGET.0
            | Flags::NTLM.0
            | Flags::ALWAYS_SIGN.0
            | Flags::TARGET_TYPE_SERVER.0
            | Flags::TARGET_INFO.0,
    );

    /// Prepares one logon at a server of these names.
    #[must_use]
    pub fn new(info: Arc<ServerInfo>) -> Self {
        Self { info, exchange: None }
    }

    /// Answers NEGOTIATE with CHALLENGE. `now` is told to the client, which then answers with a
    /// message integrity code.
    ///
    /// # Errors
    /// The message is malformed or longer than 1024 bytes, or the client does not offer what NTLMv2
    /// needs.
    pub fn challenge(&mut self, negotiate: &[u8], now: FileTime) -> Result<Vec<u8>, Error> {
        if negotiate.len() > MAX_NEGOTIATE {
            return Err(Error::Malformed { message: "NEGOTIATE", what: "longer than 1024 bytes" });
        }
        let asked = Negotiate::parse(negotiate)?.flags;
        let mut flags = asked.intersection(Self::SUPPORTED).union(Self::ALWAYS);
        if !flags.contains(Flags::UNICODE) {
            // MS-NLMP 2.2.2.5: Unicode where it is known, else the OEM character set.
            flags = flags.union(Flags::OEM);
        }
        let info = &*self.info;
        let target_info = AvBuilder::new()
            .name(AvId::NB_DOMAIN, &info.netbios_domain)
            .name(AvId::NB_COMPUTER, &info.netbios_name)
            .name(AvId::DNS_DOMAIN, &info.dns_domain)
            .name(AvId::DNS_COMPUTER, &info.dns_name)
            .bytes(AvId::TIMESTAMP, &now.to_le_bytes())
            .finish();
        let server_challenge = random();
        let challenge = Challenge {
            flags,
            server_challenge,
            target_name: info.netbios_name.clone(),
            target_info,
        }
        .encode();
        self.exchange = Some(Exchange {
            negotiate: negotiate.to_vec(),
            challenge: challenge.clone(),
            server_challenge,
            flags,
        });
        Ok(challenge)
    }

    /// Checks AUTHENTICATE against the hash that `lookup(user, domain)` gives. User names are to
    /// be compared without regard to case.
    ///
    /// An unknown user costs the same computation as a wrong password and gives the same error.
    /// Each challenge can be answered once.
    ///
    /// # Errors
    /// The message is malformed or out of order, names nobody, has a response of an older version, or a
    /// wrong integrity code; or [`Error::LogonFailure`]: name and password are not those of a user.
    pub fn authenticate(
        &mut self,
        bytes: &[u8],
        lookup: impl FnOnce(&str, &str) -> Option<NtHash>,
    ) -> Result<Authenticated, Error> {
        let exchange = self.exchange.take().ok_or(Error::OutOfOrder)?;
        let message = Authenticate::parse(bytes)?;
        if message.user.is_empty() {
            return Err(Error::Anonymous);
        }
        let Some((proof, temp)) = message.nt_response.split_first_chunk::<16>() else {
            return Err(Error::WeakResponse);
        };
        const FIXED: usize = 28;
        if message.nt_response.len() <= 24 || temp.len() < FIXED || temp[..2] != [1, 1] {
            return Err(Error::WeakResponse);
        }
        let attributes = AvList::parse(&temp[FIXED..])?;

        let known = lookup(&message.user, &message.domain);
        let hash = known.clone().unwrap_or_else(|| NtHash::from_bytes(random()));
        let key = [&*message.domain, ""].into_iter().find_map(|domain| {
            let key = Zeroizing::new(compute::response_key(&hash, &message.user, domain));
            let want = compute::nt_proof(&key, &exchange.server_challenge, temp);
            constant_time_eq(&want, proof).then_some(key)
        });
        let (Some(key), Some(_)) = (key, known) else {
            return Err(Error::LogonFailure);
        };

        // The client's choice counts, out of what was granted.
        let flags = message.flags.intersection(exchange.flags);
        if !flags.contains(Flags::EXTENDED_SECURITY) {
            return Err(Error::Unsupported("extended session security"));
        }
        let base = Zeroizing::new(compute::session_base_key(&key, proof));
        let exported = if flags.contains(Flags::KEY_EXCHANGE)
            && (flags.contains(Flags::SIGN) || flags.contains(Flags::SEAL))
        {
            let sent = message.encrypted_key.as_slice().try_into().map_err(|_| {
                Error::Malformed { message: "AUTHENTICATE", what: "session key is not 16 bytes" }
            })?;
            Zeroizing::new(compute::exchange_key(&base, sent))
        } else {
            base
        };

        let mic_present = attributes.flags() & FLAG_MIC != 0;
        if mic_present {
            let claimed = message.mic.ok_or(Error::Mic)?;
            let mut unsigned = bytes.to_vec();
            unsigned[Authenticate::MIC].fill(0);
            let want = compute::mic(&exported, &exchange.negotiate, &exchange.challenge, &unsigned);
            if !constant_time_eq(&want, &claimed) {
                return Err(Error::Mic);
            }
        }
        Ok(Authenticated {
            user: message.user,
            domain: message.domain,
            workstation: message.workstation,
            session_key: SecretKey::from(*exported),
            security: SessionSecurity::new(&exported, flags),
            mic_present,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ntlm::{Client, Credentials, compute::Side};

    const NOW: FileTime = 133_000_000_000_000_000;

    fn client(user: &str, domain: &str, password: &str) -> Client {
        let hash = NtHash::of_password(password);
        let credentials = Credentials { user: user.to_owned(), domain: domain.to_owned(), hash };
        Client::new(credentials, "WS", "cifs/server")
    }

    fn lookup(user: &str, _: &str) -> Option<NtHash> {
        user.eq_ignore_ascii_case("admin").then(|| NtHash::of_password("geheim"))
    }

    fn server() -> Server {
        Server::new(Arc::new(ServerInfo::standalone("bulkhead")))
    }

    #[test]
    fn logon_gives_both_sides_the_same_keys() {
        let (mut client, mut server) = (client("Admin", "DOM", "geheim"), server());
        let challenge = server.challenge(&client.negotiate(), NOW).unwrap();
        let (message, ours) = client.authenticate(&challenge, 0).unwrap();
        let theirs = server.authenticate(&message, lookup).unwrap();
        assert_eq!(ours.session_key.as_bytes(), theirs.session_key.as_bytes());
        assert!(theirs.mic_present);
        assert_eq!((&*theirs.user, &*theirs.domain, &*theirs.workstation), ("Admin", "DOM", "WS"));
        let signature = ours.security.unwrap().first_signature(Side::Client, b"x");
        assert!(theirs.security.unwrap().verify_first(Side::Client, b"x", &signature));
        assert_eq!(server.authenticate(&message, lookup).unwrap_err(), Error::OutOfOrder);
    }

    #[test]
    fn wrong_password_and_unknown_user_look_the_same() {
        for (user, password) in [("admin", "Geheim"), ("nobody", "geheim"), ("guest", "")] {
            let (mut client, mut server) = (client(user, "", password), server());
            let challenge = server.challenge(&client.negotiate(), NOW).unwrap();
            let (message, _) = client.authenticate(&challenge, 0).unwrap();
            assert_eq!(server.authenticate(&message, lookup).unwrap_err(), Error::LogonFailure);
        }
    }

    #[test]
    fn a_client_that_computes_without_its_domain_is_let_in() {
        let (mut client, mut server) = (client("admin", "", "geheim"), server());
        let challenge = server.challenge(&client.negotiate(), NOW).unwrap();
        let (message, _) = client.authenticate(&challenge, 0).unwrap();
        let mut message = Authenticate::parse(&message).unwrap();
        message.domain = "ELSEWHERE".into();
        let error = server.authenticate(&message.encode(), lookup).unwrap_err();
        assert_eq!(error, Error::Mic, "the response was right, the changed message is not");
    }

    /// MS-NLMP 2.2.2.5: only who knows no character set at all is refused.
    #[test]
    fn a_client_without_unicode_logs_on_with_a_name_in_the_oem_character_set() {
        let hash = || NtHash::of_password("geheim");
        let mut server = server();
        let asked = Flags(0x0008_8206);
        let negotiate = Negotiate { flags: asked }.encode();
        let challenge = server.challenge(&negotiate, NOW).unwrap();
        let flags = Flags(u32::from_le_bytes(challenge[20..24].try_into().unwrap()));
        assert!(flags.contains(Flags::OEM) && !flags.contains(Flags::UNICODE));
        let name_at = 56..56 + "BULKHEAD".len();
        assert_eq!(&challenge[name_at], b"BULKHEAD");
        let mut temp = vec![1, 1, 0, 0, 0, 0, 0, 0];
        temp.extend_from_slice(&NOW.to_le_bytes());
        temp.extend_from_slice(&[7; 8]);
        temp.extend_from_slice(&[0; 8]);
        let key = compute::response_key(&hash(), "müller", "DOM");
        let nonce = challenge[24..32].try_into().unwrap();
        let mut response = compute::nt_proof(&key, nonce, &temp).to_vec();
        response.extend_from_slice(&temp);
        let message = Authenticate {
            flags: asked,
            lm_response: vec![0; 24],
            nt_response: response,
            domain: "DOM".into(),
            user: "müller".into(),
            workstation: "W".into(),
            encrypted_key: Vec::new(),
            mic: None,
        };
        let bytes = message.encode();
        assert!(bytes.windows(6).any(|name| name == b"m\x81ller"), "one byte a character");
        let done = server.authenticate(&bytes, |user, _| (user == "müller").then(hash)).unwrap();
        assert_eq!((&*done.user, &*done.domain), ("müller", "DOM"));
        let neither = Negotiate { flags: Flags(0x0008_8204) }.encode();
        let refused = server.challenge(&neither, NOW).unwrap_err();
        assert!(matches!(refused, Error::Malformed { message: "NEGOTIATE", .. }), "{refused}");
    }

    #[test]
    fn anonymous_and_weak_responses_are_refused() {
        let empty = Authenticate {
            flags: Flags::UNICODE,
            lm_response: vec![0],
            nt_response: Vec::new(),
            domain: String::new(),
            user: String::new(),
            workstation: String::new(),
            encrypted_key: Vec::new(),
            mic: None,
        };
        let weak = Authenticate { user: "admin".into(), nt_response: vec![7; 24], ..empty.clone() };
        for (message, error) in [(empty, Error::Anonymous), (weak, Error::WeakResponse)] {
            let mut server = server();
            server.challenge(&client("a", "", "").negotiate(), NOW).unwrap();
            assert_eq!(server.authenticate(&message.encode(), lookup).unwrap_err(), error);
        }
    }

    #[test]
    fn tampering_with_any_message_is_noticed() {
        let (mut client, mut server) = (client("admin", "", "geheim"), server());
        let mut negotiate = client.negotiate();
        negotiate[15] ^= 0x20;
        let challenge = server.challenge(&negotiate, NOW).unwrap();
        // The client would notice that 128-bit keys are gone; pretend that was put back.
        let mut for_client = challenge.clone();
        for_client[23] |= 0x20;
        let (message, _) = client.authenticate(&for_client, 0).unwrap();
        assert_eq!(server.authenticate(&message, lookup).unwrap_err(), Error::Mic);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn no_changed_authenticate_is_accepted(
            index in any::<prop::sample::Index>(), bit in 0..8u8,
        ) {
            let (mut client, mut server) = (client("admin", "", "geheim"), server());
            let challenge = server.challenge(&client.negotiate(), NOW).unwrap();
            let (mut message, _) = client.authenticate(&challenge, 0).unwrap();
            let index = index.index(message.len());
            message[index] ^= 1 << bit;
            prop_assert!(server.authenticate(&message, lookup).is_err());
        }

        #[test]
        fn any_bytes_give_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut server = server();
            prop_assert!(server.challenge(&bytes, NOW).is_err());
            server.challenge(&client("a", "", "").negotiate(), NOW).unwrap();
            prop_assert!(server.authenticate(&bytes, lookup).is_err());
        }
    }
}

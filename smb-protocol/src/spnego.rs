//! SPNEGO: choosing the authentication mechanism (RFC 4178, MS-SPNG).
//!
//! ```text
//!  server ── NegTokenInit2 (hint: NTLM) ─────────────► client        negotiate response
//!  client ── NegTokenInit [mechs, NTLM NEGOTIATE] ───► server        session setup 1
//!  server ── NegTokenResp incomplete [CHALLENGE] ────► client
//!  client ── NegTokenResp [AUTHENTICATE, MIC] ───────► server        session setup 2
//!  server ── NegTokenResp completed [MIC] ───────────► client
//! ```
//!
//! [`Acceptor`] and [`Initiator`] are the two sides, without I/O. Bare NTLM and Kerberos tokens,
//! as some clients send them, are accepted too. The server speaks Kerberos, in two messages, when
//! it has keys, and NTLM; the client speaks NTLM.

mod acceptor;
pub(crate) mod der;
mod initiator;
pub mod token;

pub use acceptor::{Acceptor, Completed, Identity, Step, Ticket};
pub use initiator::Initiator;

use crate::{WireError, kerberos, ntlm};

/// Why a token was refused or authentication failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A token lacks what it must have, or has more than is taken.
    #[error("malformed SPNEGO token: {0}")]
    Malformed(&'static str),
    /// A token is not DER, or its elements are others than its type has.
    #[error("malformed SPNEGO token: {0}")]
    Der(#[from] WireError),
    /// The two sides have no mechanism in common.
    #[error("no common authentication mechanism")]
    NoMechanism,
    /// A token came out of order.
    #[error("SPNEGO token out of order")]
    OutOfOrder,
    /// The list of mechanisms was changed on its way, or its protection is missing.
    #[error("mechanism list is not protected")]
    MechListMic,
    /// The server rejected the logon.
    #[error("server rejected the authentication")]
    Rejected,
    /// The mechanism failed.
    #[error(transparent)]
    Ntlm(#[from] ntlm::Error),
    /// Kerberos failed.
    #[error(transparent)]
    Kerberos(#[from] kerberos::Error),
}

impl Error {
    /// Whether the token itself was at fault (STATUS_INVALID_PARAMETER) and not the logon
    /// (STATUS_LOGON_FAILURE).
    #[must_use]
    pub fn is_malformed(&self) -> bool {
        matches!(
            self,
            Self::Malformed(_)
                | Self::Der(_)
                | Self::OutOfOrder
                | Self::Ntlm(
                    ntlm::Error::Malformed { .. }
                        | ntlm::Error::Wire { .. }
                        | ntlm::Error::OutOfOrder
                )
        ) || matches!(self, Self::Kerberos(error) if error.is_malformed())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::{token::*, *};
    use crate::{
        kerberos::service_tests,
        ntlm::{Client, Credentials, NtHash, ServerInfo},
    };

    fn credentials(password: &str) -> Credentials {
        let hash = NtHash::of_password(password);
        Credentials { user: "admin".into(), domain: "DOM".into(), hash }
    }

    fn lookup(user: &str, _: &str) -> Option<NtHash> {
        (user == "admin").then(|| NtHash::of_password("geheim"))
    }

    fn acceptor() -> Acceptor {
        Acceptor::new(Arc::new(ServerInfo::standalone("bulkhead")), None)
    }

    fn initiator(password: &str) -> Initiator {
        Initiator::new(credentials(password), "WS", "cifs/bulkhead")
    }

    fn cont(step: Step) -> Vec<u8> {
        match step {
            Step::Continue(token) => token,
            Step::Done(_) => panic!("done too early"),
        }
    }

    #[test]
    fn both_sides_agree() {
        let (mut client, mut server) = (initiator("geheim"), acceptor());
        let first = client.first(&Acceptor::hint(false)).unwrap();
        let second = cont(server.step(&first, 1, lookup).unwrap());
        let third = client.second(&second, 1).unwrap();
        let Step::Done(done) = server.step(&third, 1, lookup).unwrap() else { panic!("not done") };
        assert_eq!(done.identity.user, "admin");
        client.last(&done.token).unwrap();
        assert_eq!(client.session_key().unwrap().as_bytes(), done.session_key.as_bytes());
    }

    #[test]
    fn bare_ntlm_is_accepted() {
        let (mut client, mut server) =
            (Client::new(credentials("geheim"), "", "cifs/x"), acceptor());
        let second = cont(server.step(&client.negotiate(), 1, lookup).unwrap());
        let (third, ours) = client.authenticate(&second, 1).unwrap();
        let Step::Done(done) = server.step(&third, 1, lookup).unwrap() else { panic!("not done") };
        assert!(done.token.is_empty());
        assert_eq!(ours.session_key.as_bytes(), done.session_key.as_bytes());
    }

    #[test]
    fn a_client_that_prefers_kerberos_falls_back_with_a_protected_list() {
        let (mut client, mut server) =
            (Client::new(credentials("geheim"), "", "cifs/x"), acceptor());
        let list = mech_list(&[KERBEROS, NTLM]);
        let first = InitToken { mech_list: &list, mech_token: Some(b"a ticket"), mic: None };
        let reply = cont(server.step(&first.encode(), 1, lookup).unwrap());
        let reply = RespToken::parse(&reply).unwrap();
        assert_eq!(reply.state, Some(State::RequestMic));
        assert_eq!((reply.mech, reply.token), (Some(NTLM), None));
        let negotiate = client.negotiate();
        let token = RespToken { token: Some(&negotiate), ..RespToken::default() };
        let reply = cont(server.step(&token.encode(), 1, lookup).unwrap());
        let challenge = RespToken::parse(&reply).unwrap().token.unwrap().to_vec();
        let (message, ours) = client.authenticate(&challenge, 1).unwrap();
        let security = ours.security.unwrap();
        let mic = security.first_signature(ntlm::compute::Side::Client, &list);
        let token = RespToken { token: Some(&message), mic: Some(&mic), ..RespToken::default() };
        let Step::Done(done) = server.step(&token.encode(), 1, lookup).unwrap() else {
            panic!("not done")
        };
        let last = RespToken::parse(&done.token).unwrap();
        assert_eq!(last.state, Some(State::Completed));
        assert!(security.verify_first(ntlm::compute::Side::Server, &list, last.mic.unwrap()));
    }

    fn with_kerberos() -> Acceptor {
        let service = Arc::new(service_tests::service());
        Acceptor::new(Arc::new(ServerInfo::standalone("bulkhead")), Some(service))
    }

    #[test]
    fn a_ticket_is_enough_where_kerberos_is_preferred() {
        let request = service_tests::Client::new().token();
        let now = service_tests::at(service_tests::NOW);
        for mech in [KERBEROS, MS_KERBEROS] {
            let list = mech_list(&[mech, NTLM]);
            let init = InitToken { mech_list: &list, mech_token: Some(&request), mic: None };
            let Step::Done(done) = with_kerberos().step(&init.encode(), now, lookup).unwrap()
            else {
                panic!("not done")
            };
            let reply = RespToken::parse(&done.token).unwrap();
            assert_eq!((reply.state, reply.mech), (Some(State::Completed), Some(mech)));
            assert!(reply.token.is_some());
            let ticket = done.ticket.unwrap();
            assert_eq!(ticket.client.to_string(), "alice@EXAMPLE");
            assert_eq!(ticket.expires, service_tests::at(service_tests::NOW + 1000));
        }
        // Without a frame of SPNEGO.
        assert!(matches!(with_kerberos().step(&request, now, lookup), Ok(Step::Done(_))));
        // Who has no ticket is served as before.
        let (mut client, mut server) = (initiator("geheim"), with_kerberos());
        let second = cont(server.step(&client.first(&[]).unwrap(), now, lookup).unwrap());
        let third = client.second(&second, now).unwrap();
        assert!(matches!(server.step(&third, now, lookup), Ok(Step::Done(_))));
    }

    #[test]
    fn kerberos_that_was_not_preferred_needs_a_signed_list() {
        const UNKNOWN: &[u8] = &[0x2a, 3, 4];
        let client = service_tests::Client::new();
        let key = client.proof.subkey.clone().unwrap();
        let now = service_tests::at(service_tests::NOW);
        let list = mech_list(&[UNKNOWN, KERBEROS]);
        let first = InitToken { mech_list: &list, mech_token: None, mic: None }.encode();
        for right in [true, false] {
            let mut server = with_kerberos();
            let reply = cont(server.step(&first, now, lookup).unwrap());
            let reply = RespToken::parse(&reply).unwrap();
            assert_eq!((reply.state, reply.mech), (Some(State::RequestMic), Some(KERBEROS)));
            let request = client.token();
            let second = RespToken { token: Some(&request), ..RespToken::default() };
            let reply = cont(server.step(&second.encode(), now, lookup).unwrap());
            assert!(RespToken::parse(&reply).unwrap().token.is_some());
            let text: &[u8] = if right { &list } else { b"another list" };
            let mic = kerberos::gss::mic(&key, crate::gss::Side::Initiator, 77, text);
            let third = RespToken { mic: Some(&mic), ..RespToken::default() };
            match server.step(&third.encode(), now, lookup) {
                Ok(Step::Done(done)) => {
                    assert!(right);
                    let last = RespToken::parse(&done.token).unwrap();
                    let side = crate::gss::Side::Acceptor;
                    assert!(kerberos::gss::verify_mic(&key, side, &list, last.mic.unwrap()));
                }
                other => assert!(!right && matches!(other, Err(Error::MechListMic))),
            }
        }
    }

    #[test]
    fn a_missing_or_wrong_list_mic_is_refused() {
        for wrong in [None, Some([1u8; 16])] {
            let (mut client, mut server) = (initiator("geheim"), acceptor());
            let first = client.first(&[]).unwrap();
            let second = cont(server.step(&first, 1, lookup).unwrap());
            let third = client.second(&second, 1).unwrap();
            let mut token = RespToken::parse(&third).unwrap();
            token.mic = wrong.as_ref().map(|mic| &mic[..]);
            let error = server.step(&token.encode(), 1, lookup).unwrap_err();
            assert_eq!(error, Error::MechListMic);
        }
    }

    #[test]
    fn a_wrong_password_fails_and_ends_the_exchange() {
        let (mut client, mut server) = (initiator("falsch"), acceptor());
        let first = client.first(&Acceptor::hint(false)).unwrap();
        let second = cont(server.step(&first, 1, lookup).unwrap());
        let third = client.second(&second, 1).unwrap();
        let error = server.step(&third, 1, lookup).unwrap_err();
        assert_eq!(error, Error::Ntlm(ntlm::Error::LogonFailure));
        assert!(!error.is_malformed());
        assert_eq!(server.step(&third, 1, lookup).unwrap_err(), Error::OutOfOrder);
    }

    #[test]
    fn no_common_mechanism_is_said_so() {
        let list = mech_list(&[KERBEROS]);
        let token = InitToken { mech_list: &list, mech_token: None, mic: None };
        assert_eq!(acceptor().step(&token.encode(), 1, lookup).unwrap_err(), Error::NoMechanism);
        let hint = token.encode_hint();
        assert_eq!(initiator("x").first(&hint).unwrap_err(), Error::NoMechanism);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        /// No change of a client's last token gets in unnoticed, and nothing panics.
        #[test]
        fn changed_tokens_do_not_log_on_as_another(
            index in any::<prop::sample::Index>(), value: u8, cut in any::<prop::sample::Index>(),
        ) {
            let (mut client, mut server) = (initiator("geheim"), acceptor());
            let first = client.first(&[]).unwrap();
            let second = cont(server.step(&first, 1, lookup).unwrap());
            let mut third = client.second(&second, 1).unwrap();
            let index = index.index(third.len());
            third[index] = value;
            let cut = cut.index(third.len()) + 1;
            if let Ok(Step::Done(done)) = server.step(&third[..cut], 1, lookup) {
                prop_assert_eq!(done.session_key.as_bytes(), client.session_key().unwrap().as_bytes());
                prop_assert_eq!(done.identity.user, "admin");
            }
        }

        #[test]
        fn changed_first_tokens_never_log_on(
            index in any::<prop::sample::Index>(), value: u8, cut in any::<prop::sample::Index>(),
        ) {
            let mut first = initiator("geheim").first(&[]).unwrap();
            let index = index.index(first.len());
            first[index] = value;
            let cut = cut.index(first.len()) + 1;
            prop_assert!(!matches!(acceptor().step(&first[..cut], 1, lookup), Ok(Step::Done(_))));
            let _ = initiator("x").first(&first[..cut]);
        }
    }
}

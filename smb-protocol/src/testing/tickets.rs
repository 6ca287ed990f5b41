//! A Kerberos service whose keys are known, so that what is within the encryption can be anything.

use crate::{
    fscc::filetime_from_unix,
    kerberos::{
        Service,
        crypto::{Etype, Key},
        gss,
        keytab::{Entry, Keytab},
        message::{
            Authenticator, Principal, TicketPart,
            testing::{put_ap_req_of, put_authenticator, put_ticket_part},
        },
    },
    ntlm::FileTime,
};

const NOW: i64 = 1_800_000_000;
const MUTUAL_OPTION: u32 = 0x2000_0000;

/// A service `cifs/server` of the realm `EXAMPLE`, and clients that have its key.
pub struct Tickets {
    service: Key,
    session: Key,
}

impl Default for Tickets {
    fn default() -> Self {
        Self { service: key(1), session: key(2) }
    }
}

fn key(byte: u8) -> Key {
    let (etype, len) = (Etype::Aes256Sha1, Etype::Aes256Sha1.key_len());
    Key::new(etype, &vec![byte; len]).expect("a key of its type's length")
}

fn principal(name: &str) -> Principal {
    Principal { name: name.into(), realm: "EXAMPLE".into() }
}

impl Tickets {
    /// The time at which its tickets are valid.
    pub fn now(&self) -> FileTime {
        filetime_from_unix(NOW, 0)
    }

    /// The service, with no memory of earlier clients.
    pub fn service(&self) -> Service {
        let entry =
            Entry { name: "cifs/server".into(), realm: "EXAMPLE".into(), version: 1, key: key(1) };
        Service::new(Keytab { entries: vec![entry] }, filetime_from_unix(NOW - 1000, 0))
    }

    /// The encrypted part of a ticket (RFC 4120 5.3), in the clear.
    pub fn ticket(&self) -> Vec<u8> {
        put_ticket_part(&TicketPart {
            invalid: false,
            key: key(2),
            client: principal("alice"),
            start: NOW - 100,
            end: NOW + 1000,
        })
    }

    /// A client's authenticator (RFC 4120 5.5.1), in the clear.
    pub fn authenticator(&self) -> Vec<u8> {
        let mut checksum = vec![0; 24];
        (checksum[0], checksum[20]) = (16, 2);
        put_authenticator(&Authenticator {
            client: principal("alice"),
            checksum: Some((gss::CHECKSUM_TYPE, checksum)),
            time: (NOW, 123_456),
            subkey: Some(key(3)),
            sequence: 77,
        })
    }

    /// The GSS token of an AP-REQ with these two in it, encrypted as they should be.
    pub fn token(&self, ticket: &[u8], authenticator: &[u8]) -> Vec<u8> {
        let request = put_ap_req_of(
            &principal("cifs/server"),
            (&self.service, ticket),
            (&self.session, authenticator),
            MUTUAL_OPTION,
        );
        gss::request_token(&request)
    }
}

//! The server: which tickets it takes, and what it remembers.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    hash::{BuildHasher, RandomState},
    sync::{Arc, Mutex, PoisonError},
};

use aws_lc_rs::digest;

use super::{
    Error, Numbered,
    crypto::{Etype, Key},
    gss,
    keytab::Keytab,
    message::{ApRep, ApReq, Authenticator, Principal, TicketPart, ap_rep, client_time},
};
use crate::{
    crypto::{SecretKey, random},
    fscc::{filetime_from_unix, filetime_to_unix},
    gss::Side,
    ntlm::FileTime,
};

/// What clocks may differ by, in seconds (RFC 4120 8.2).
const SKEW: i64 = 300;
/// Authenticators that are remembered at a time, and of one client.
const REMEMBERED: usize = 100_000;
const REMEMBERED_OF_ONE: usize = 2_000;

/// A client that was let in.
#[derive(Debug, Clone)]
pub struct Established {
    /// Token to send back; empty when the client did not ask for one.
    pub token: Vec<u8>,
    /// The client.
    pub client: Principal,
    /// When its ticket ends.
    pub expires: FileTime,
    key: Key,
    /// Number of our first message.
    sequence: u32,
    /// Number of the client's first message.
    theirs: u32,
}

/// What came of a client's request.
#[derive(Debug)]
pub enum Accepted {
    /// The client is known.
    Done(Established),
    /// It asks for authentication in three parts, and sends the last after our token.
    Third(ThirdLeg),
}

/// A client that is yet to answer our AP-REP (MS-KILE 3.4.5.1).
#[derive(Debug)]
pub struct ThirdLeg {
    done: Established,
    session: Key,
    time: (i64, i64),
}

impl ThirdLeg {
    /// The token to send: an AP-REP without a frame.
    pub fn token(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.done.token)
    }

    /// Takes the client's AP-REP, which repeats its own time and our number (RFC 4120 3.2.5).
    ///
    /// # Errors
    /// It is no AP-REP, is of another key, or answers something else.
    pub fn finish(self, token: &[u8]) -> Result<Established, Error> {
        let reply = ApRep::parse(token, &self.session)?;
        if reply.time != self.time || reply.sequence != Some(self.done.sequence) {
            return Err(Error::Forged("the client's AP-REP"));
        }
        Ok(self.done)
    }
}

impl Established {
    /// The session key, for SMB to derive its own from (MS-SMB2 3.3.5.5.3): 16 or 32 bytes.
    ///
    /// # Panics
    /// Never: keys of every encryption type fit.
    pub fn session_key(&self) -> SecretKey {
        SecretKey::new(self.key.as_bytes()).expect("keys of all types have 16 or 32 bytes")
    }

    /// What messages are protected with, each side having signed so many.
    pub fn numbered(&self, signed: u32) -> Numbered {
        let next = |first: u32| u64::from(first) + u64::from(signed);
        Numbered {
            key: self.key.clone(),
            initiator: next(self.theirs),
            acceptor: next(self.sequence),
        }
    }

    /// Our integrity code for a text.
    pub fn mic(&self, text: &[u8]) -> Vec<u8> {
        gss::mic(&self.key, Side::Acceptor, self.sequence.into(), text)
    }

    /// Whether the client's integrity code is right.
    pub fn verify_mic(&self, text: &[u8], mic: &[u8]) -> bool {
        gss::verify_mic(&self.key, Side::Initiator, text, mic)
    }
}

/// Authenticators that were used, as long as they could be used again.
///
/// What a server before this one has seen is not known, so whatever may have been shown to it is
/// refused (RFC 4120 3.2.3): all that was made before this one began. A client makes a new
/// authenticator for each attempt, so it is let in at the next.
#[derive(Debug)]
struct Seen {
    /// When the memory begins: seconds and microseconds, as authenticators have them.
    since: (i64, i64),
    known: HashSet<[u8; 32]>,
    order: VecDeque<(i64, [u8; 32], u64)>,
    /// How many are remembered of each client, by a hash of its name with a key of this memory.
    of_client: HashMap<u64, usize>,
    names: RandomState,
}

impl Seen {
    fn new(since: (i64, i64)) -> Self {
        Self {
            since,
            known: HashSet::new(),
            order: VecDeque::new(),
            of_client: HashMap::new(),
            names: RandomState::new(),
        }
    }

    /// Notes the authenticator that `client` made at `made`.
    fn note(
        &mut self,
        now: i64,
        made: (i64, i64),
        client: &Principal,
        digest: [u8; 32],
    ) -> Result<(), Error> {
        if made < self.since {
            return Err(Error::BeforeStart);
        }
        // One may be used from its time less the skew to its time plus the skew.
        while let Some((since, old, client)) = self.order.front()
            && *since + 2 * SKEW < now
        {
            self.known.remove(old);
            if let Some(count) = self.of_client.get_mut(client) {
                *count -= 1;
                if *count == 0 {
                    self.of_client.remove(client);
                }
            }
            self.order.pop_front();
        }
        let client = self.names.hash_one((&client.name, &client.realm));
        if self.known.contains(&digest) {
            return Err(Error::Replay);
        }
        let mine = self.of_client.get(&client).copied().unwrap_or(0);
        if self.order.len() >= REMEMBERED || mine >= REMEMBERED_OF_ONE {
            return Err(Error::Busy);
        }
        self.known.insert(digest);
        self.of_client.insert(client, mine + 1);
        self.order.push_back((now, digest, client));
        Ok(())
    }
}

/// The server's keys and memory; one for all connections.
#[derive(Debug)]
pub struct Service {
    keytab: Keytab,
    seen: Arc<Mutex<Seen>>,
}

impl Service {
    /// A server with these keys that begins at the time `now`.
    pub fn new(keytab: Keytab, now: FileTime) -> Self {
        let (seconds, nanoseconds) = filetime_to_unix(now);
        let since = (seconds, i64::from(nanoseconds / 1000));
        Self { keytab, seen: Arc::new(Mutex::new(Seen::new(since))) }
    }

    /// The server takes requests from now on: what was made before may have been shown to the one
    /// that served until then.
    pub fn begin(&self, now: FileTime) {
        let (seconds, nanoseconds) = filetime_to_unix(now);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.since = seen.since.max((seconds, i64::from(nanoseconds / 1000)));
    }

    /// The same server with other keys: it remembers what it has seen.
    #[must_use]
    pub fn with_keys(&self, keytab: Keytab) -> Self {
        Self { keytab, seen: self.seen.clone() }
    }

    /// Takes a client's initial GSS token at the time `now` (RFC 4120 3.2.3).
    ///
    /// # Errors
    /// The token is malformed, there is no key for its ticket or it does not decrypt, its time or the
    /// client's clock is wrong, it was used before, or the client wants what is not done here.
    pub fn accept(&self, token: &[u8], now: FileTime) -> Result<Established, Error> {
        gss::initial_token(token)?;
        match self.accept_any(token, now)? {
            Accepted::Done(done) => Ok(done),
            Accepted::Third(_) => Err(Error::Unsupported("an authentication in three parts")),
        }
    }

    /// The same with the authentication in three parts that RPC has (MS-KILE 3.4.5.1).
    ///
    /// # Errors
    /// As [`Self::accept`].
    pub fn accept_any(&self, token: &[u8], now: FileTime) -> Result<Accepted, Error> {
        let (now, _) = filetime_to_unix(now);
        let request = ApReq::parse(gss::request(token)?)?;
        if request.use_session_key {
            return Err(Error::Unsupported("user-to-user authentication"));
        }
        let key = self.key_for(&request)?;
        let part = key.decrypt(TicketPart::USAGE, request.ticket.cipher, "the ticket")?;
        let ticket = TicketPart::parse(&part)?;
        let sealed = &request.authenticator;
        if sealed.etype != ticket.key.etype as i32 {
            return Err(Error::Malformed("an authenticator under another key than the ticket's"));
        }
        let plain = ticket.key.decrypt(Authenticator::USAGE, sealed.cipher, "the authenticator")?;
        let proof = Authenticator::parse(&plain)?;
        if proof.client != ticket.client {
            return Err(Error::Mismatch);
        }
        let off = proof.time.0.abs_diff(now);
        if off > SKEW.unsigned_abs() {
            return Err(Error::Skew(off));
        }
        if ticket.invalid || ticket.start > now + SKEW || ticket.end < now {
            return Err(Error::TicketTime);
        }
        const MUTUAL: u32 = 2;
        const DCE_STYLE: u32 = 0x1000;
        let flags = gss::checksum_flags(proof.checksum.as_ref())?;
        let mut digest = [0; 32];
        digest.copy_from_slice(digest::digest(&digest::SHA256, sealed.cipher).as_ref());
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.note(now, proof.time, &proof.client, digest)?;
        drop(seen);
        let sequence = u32::from_be_bytes(random()) >> 2;
        let third = flags & DCE_STYLE != 0;
        let reply = || Ok::<_, Error>(ap_rep(&ticket.key, &client_time(&plain)?, sequence));
        let token = match request.mutual || flags & MUTUAL != 0 {
            _ if third => reply()?,
            true => gss::reply_token(&reply()?),
            false => Vec::new(),
        };
        let done = Established {
            sequence: if token.is_empty() { 0 } else { sequence },
            token,
            client: proof.client,
            expires: filetime_from_unix(ticket.end, 0),
            // The client's choice, or the ticket's key (RFC 4121 2).
            key: proof.subkey.unwrap_or_else(|| ticket.key.clone()),
            theirs: proof.sequence,
        };
        Ok(match third {
            true => Accepted::Third(ThirdLeg { done, session: ticket.key, time: proof.time }),
            false => Accepted::Done(done),
        })
    }

    /// The key of the service that a ticket is for.
    fn key_for(&self, request: &ApReq<'_>) -> Result<&Key, Error> {
        let (service, ticket) = (&request.service, &request.ticket);
        let etype = Etype::new(ticket.etype)?;
        let fits = self.keytab.entries.iter().filter(|entry| {
            // Hosts are written in any case; realms are not.
            entry.name.eq_ignore_ascii_case(&service.name)
                && entry.realm == service.realm
                && entry.key.etype == etype
                && ticket.version.is_none_or(|version| version == entry.version)
        });
        fits.max_by_key(|entry| entry.version).map(|entry| &entry.key).ok_or(Error::NoKey {
            principal: service.to_string(),
            version: ticket.version,
            etype: ticket.etype,
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::kerberos::{
        keytab::Entry,
        message::{ApRep, testing::put_ap_req},
    };

    pub const NOW: i64 = 1_800_000_000;
    const MUTUAL_OPTION: u32 = 0x2000_0000;

    pub fn key(byte: u8) -> Key {
        Key::new(Etype::Aes256Sha1, &[byte; 32]).unwrap()
    }

    pub fn service() -> Service {
        let entry = |version, byte| Entry {
            name: "cifs/files.example".into(),
            realm: "EXAMPLE".into(),
            version,
            key: key(byte),
        };
        Service::new(Keytab { entries: vec![entry(1, 9), entry(2, 1)] }, at(NOW - 1000))
    }

    pub fn at(seconds: i64) -> FileTime {
        filetime_from_unix(seconds, 0)
    }

    /// A request that is right, to be spoiled.
    pub struct Client {
        pub to: Principal,
        pub with: Key,
        pub ticket: TicketPart,
        pub proof: Authenticator,
        pub options: u32,
    }

    impl Client {
        pub fn new() -> Self {
            let principal = |name: &str| Principal { name: name.into(), realm: "EXAMPLE".into() };
            let mut checksum = vec![0; 24];
            checksum[0] = 16;
            checksum[20] = 2;
            Self {
                to: principal("cifs/FILES.example"),
                with: key(1),
                ticket: TicketPart {
                    invalid: false,
                    key: key(2),
                    client: principal("alice"),
                    start: NOW - 100,
                    end: NOW + 1000,
                },
                proof: Authenticator {
                    client: principal("alice"),
                    checksum: Some((gss::CHECKSUM_TYPE, checksum)),
                    time: (NOW, 123_456),
                    subkey: Some(key(3)),
                    sequence: 77,
                },
                options: MUTUAL_OPTION,
            }
        }

        pub fn token(&self) -> Vec<u8> {
            let request = put_ap_req(&self.to, &self.with, &self.ticket, &self.proof, self.options);
            gss::request_token(&request)
        }
    }

    #[test]
    fn a_right_request_is_answered() {
        let client = Client::new();
        let done = service().accept(&client.token(), at(NOW)).unwrap();
        assert_eq!(done.client.to_string(), "alice@EXAMPLE");
        assert_eq!(done.expires, at(NOW + 1000));
        assert_eq!(done.session_key().as_bytes(), key(3).as_bytes());
        // The reply proves that the server knows the ticket's key.
        let body = gss::reply_body(&done.token);
        let reply = ApRep { time: (NOW, 123_456), sequence: Some(done.sequence) };
        assert_eq!(ApRep::parse(body, &key(2)), Ok(reply));
        let mic = gss::mic(&key(3), Side::Initiator, 77, b"list");
        assert!(done.verify_mic(b"list", &mic) && !done.verify_mic(b"lost", &mic));
        assert!(gss::verify_mic(&key(3), Side::Acceptor, b"list", &done.mic(b"list")));
    }

    /// MS-KILE 3.4.5.1: no frames, and a third part that only who has the ticket's key can make.
    #[test]
    fn an_authentication_in_three_parts_ends_with_the_clients_reply() {
        let mut client = Client::new();
        let checksum = &mut client.proof.checksum.as_mut().unwrap().1;
        checksum[21] = 0x10;
        let framed = client.token();
        assert!(matches!(service().accept(&framed, at(NOW)), Err(Error::Unsupported(_))));
        let raw = gss::initial_token(&framed).unwrap().to_vec();
        let begin = || match service().accept_any(&raw, at(NOW)).unwrap() {
            Accepted::Third(mut third) => {
                let reply = ApRep::parse(&third.token(), &key(2)).unwrap();
                assert_eq!(reply.time, (NOW, 123_456));
                (third, reply.sequence.unwrap())
            }
            Accepted::Done(_) => panic!("let in after one part"),
        };
        let time =
            client_time(&crate::kerberos::message::testing::put_authenticator(&client.proof));
        let time = time.unwrap();
        let (third, sequence) = begin();
        let done = third.finish(&ap_rep(&key(2), &time, sequence)).unwrap();
        assert_eq!(done.session_key().as_bytes(), key(3).as_bytes());
        let numbered = done.numbered(0);
        assert_eq!((numbered.initiator, numbered.acceptor), (77, sequence.into()));
        for (with, off) in [(key(3), 0), (key(2), 1)] {
            let (third, sequence) = begin();
            assert!(third.finish(&ap_rep(&with, &time, sequence + off)).is_err());
        }
    }

    #[test]
    fn what_is_wrong_is_refused_by_name() {
        let refused = |spoil: fn(&mut Client)| {
            let mut client = Client::new();
            spoil(&mut client);
            service().accept(&client.token(), at(NOW)).unwrap_err()
        };
        assert_eq!(refused(|c| c.with = key(8)), Error::Forged("the ticket"));
        assert_eq!(refused(|c| c.ticket.end = NOW - 1), Error::TicketTime);
        assert_eq!(refused(|c| c.ticket.start = NOW + 301), Error::TicketTime);
        assert_eq!(refused(|c| c.ticket.invalid = true), Error::TicketTime);
        assert_eq!(refused(|c| c.proof.time.0 = NOW - 301), Error::Skew(301));
        assert_eq!(refused(|c| c.proof.time.0 = NOW + 301), Error::Skew(301));
        assert_eq!(refused(|c| c.proof.client.name = "bob".into()), Error::Mismatch);
        assert!(matches!(refused(|c| c.to.name = "host/x".into()), Error::NoKey { .. }));
        assert!(matches!(refused(|c| c.to.realm = "OTHER".into()), Error::NoKey { .. }));
        assert!(matches!(refused(|c| c.options = 0x4000_0000), Error::Unsupported(_)));
        assert!(matches!(refused(|c| c.proof.checksum = None), Error::Malformed(_)));
    }

    #[test]
    fn a_request_works_once() {
        let (service, client) = (service(), Client::new());
        let token = client.token();
        assert!(service.accept(&token, at(NOW)).is_ok());
        assert_eq!(service.accept(&token, at(NOW + 10)).unwrap_err(), Error::Replay);
        // The same ticket with another proof is another request.
        assert!(service.accept(&client.token(), at(NOW + 10)).is_ok());
    }

    #[test]
    fn memory_is_bounded_and_forgets_what_cannot_come_again() {
        let mut seen = Seen::new((0, 0));
        let who = |n: usize| Principal { name: format!("c{}", n / 1000), realm: "R".into() };
        let digest = |n: usize| {
            let mut digest = [0; 32];
            digest[..8].copy_from_slice(&n.to_le_bytes());
            digest
        };
        for n in 0..REMEMBERED {
            seen.note(NOW, (NOW, 0), &who(n), digest(n)).unwrap();
        }
        assert_eq!(seen.note(NOW, (NOW, 0), &who(1 << 30), digest(REMEMBERED)), Err(Error::Busy));
        assert_eq!(seen.note(NOW, (NOW, 0), &who(5), digest(5)), Err(Error::Replay));
        let later = NOW + 2 * SKEW + 1;
        assert_eq!(seen.note(later, (later, 0), &who(1 << 30), digest(REMEMBERED)), Ok(()));
        assert_eq!((seen.order.len(), seen.of_client.len()), (1, 1));
    }

    #[test]
    fn one_client_does_not_take_the_memory_from_the_others() {
        let mut seen = Seen::new((0, 0));
        let who = |name: &str| Principal { name: name.into(), realm: "R".into() };
        let mut digest = [0u8; 32];
        let mut next = || {
            digest[0] = digest[0].wrapping_add(1);
            if digest[0] == 0 {
                digest[1] = digest[1].wrapping_add(1);
            }
            digest
        };
        for _ in 0..REMEMBERED_OF_ONE {
            seen.note(NOW, (NOW, 0), &who("greedy"), next()).unwrap();
        }
        assert_eq!(seen.note(NOW, (NOW, 0), &who("greedy"), next()), Err(Error::Busy));
        assert_eq!(seen.note(NOW, (NOW, 0), &who("honest"), next()), Ok(()));
    }

    /// RFC 4120 3.2.3: who does not know what was used refuses what may have been.
    #[test]
    fn what_may_have_been_shown_to_the_server_before_is_refused() {
        let old = Client::new();
        let service = Service::new(service().keytab, at(NOW + 10));
        assert_eq!(service.accept(&old.token(), at(NOW + 11)).unwrap_err(), Error::BeforeStart);
        let mut new = Client::new();
        new.proof.time.0 = NOW + 11;
        assert!(service.accept(&new.token(), at(NOW + 11)).is_ok());
        new.proof.time = (NOW + 10, 0);
        assert!(service.accept(&new.token(), at(NOW + 11)).is_ok());
        new.proof.time = (NOW + 9, 999_999);
        assert_eq!(service.accept(&new.token(), at(NOW + 11)).unwrap_err(), Error::BeforeStart);
    }
}

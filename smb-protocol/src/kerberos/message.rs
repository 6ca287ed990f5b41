//! The messages of an application exchange (RFC 4120 5.5) with the ticket in them (5.3).

use zeroize::Zeroizing;

use super::{
    Error,
    crypto::{Etype, Key},
};
use crate::{
    parse::{self, Input},
    spnego::der::{self, GENERAL_STRING, OCTET_STRING, SEQUENCE, context, element, elements, only},
};

const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const GENERALIZED_TIME: u8 = 0x18;
/// Most components of a name.
const MAX_COMPONENTS: usize = 16;
/// Most fields of a sequence; the longest one, the ticket's, has eleven.
const MAX_FIELDS: usize = 32;

/// Tag of an application's element.
const fn application(n: u8) -> u8 {
    der::APPLICATION_0 | n
}

const TICKET: u8 = application(1);
const AUTHENTICATOR: u8 = application(2);
const TICKET_PART: u8 = application(3);
const AP_REQ: u8 = application(14);
const AP_REP: u8 = application(15);
const AP_REP_PART: u8 = application(27);

/// The numbered fields of a sequence: `[n]`, each with one element in it.
struct Fields<'a>(Vec<(u8, Input<'a>)>);

impl<'a> Fields<'a> {
    /// Of a sequence in an application's element, the one that `input` is.
    fn framed(input: Input<'a>, tag: u8) -> Result<Self, Error> {
        Self::of(only(input, tag)?)
    }

    fn of(sequence: Input<'a>) -> Result<Self, Error> {
        let fields = only(sequence, SEQUENCE)?;
        Ok(Self(parse::run(fields, elements(MAX_FIELDS))?))
    }

    fn optional(&self, n: u8) -> Option<Input<'a>> {
        self.0.iter().find(|(tag, _)| *tag == context(n)).map(|(_, content)| *content)
    }

    fn get(&self, n: u8) -> Result<Input<'a>, Error> {
        self.optional(n).ok_or(Error::Malformed("a field is missing"))
    }

    fn element(&self, n: u8, tag: u8) -> Result<&'a [u8], Error> {
        Ok(only(self.get(n)?, tag)?.bytes())
    }

    fn integer(&self, n: u8) -> Result<i64, Error> {
        integer(self.get(n)?)
    }

    fn text(&self, n: u8) -> Result<String, Error> {
        text(self.element(n, GENERAL_STRING)?)
    }

    fn time(&self, n: u8) -> Result<i64, Error> {
        parse_time(self.element(n, GENERALIZED_TIME)?)
    }

    /// The first 32 bits of a bit string.
    fn bits(&self, n: u8) -> Result<u32, Error> {
        let content = self.element(n, BIT_STRING)?;
        let mut bits = [0; 4];
        let bytes = content.get(1..).ok_or(Error::Malformed("an empty bit string"))?;
        bits.iter_mut().zip(bytes).for_each(|(bit, byte)| *bit = *byte);
        Ok(u32::from_be_bytes(bits))
    }

    fn version(&self, n: u8) -> Result<(), Error> {
        match self.integer(n)? {
            5 => Ok(()),
            _ => Err(Error::Malformed("not version 5")),
        }
    }
}

fn integer(input: Input<'_>) -> Result<i64, Error> {
    let content = only(input, INTEGER)?.bytes();
    if content.is_empty() || content.len() > 8 {
        return Err(Error::Malformed("a number that is too long"));
    }
    let start = if content[0] & 0x80 == 0 { 0 } else { -1 };
    Ok(content.iter().fold(start, |value: i64, byte| value << 8 | i64::from(*byte)))
}

fn put_integer(value: i64) -> Vec<u8> {
    let bytes = value.to_be_bytes();
    let redundant = |at: usize| {
        let next = bytes[at + 1] & 0x80 != 0;
        bytes[at] == 0 && !next || bytes[at] == 0xff && next
    };
    let skip = (0..7).take_while(|at| redundant(*at)).count();
    element(INTEGER, &bytes[skip..])
}

fn text(bytes: &[u8]) -> Result<String, Error> {
    let text = std::str::from_utf8(bytes).map(str::to_owned);
    text.map_err(|_| Error::Malformed("a name that is not UTF-8"))
}

/// Days of a date since 1970-01-01 (proleptic Gregorian calendar).
fn days(year: i64, month: i64, day: i64) -> i64 {
    // Years begin in March, so that the day that comes and goes is the last.
    let year = if month <= 2 { year - 1 } else { year };
    let (era, month) = (year.div_euclid(400), (month + 9) % 12);
    let of_era = year.rem_euclid(400);
    let of_year = (153 * month + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// Seconds since 1970 of `YYYYMMDDHHMMSSZ`.
fn parse_time(bytes: &[u8]) -> Result<i64, Error> {
    const WRONG: Error = Error::Malformed("not a time");
    let digits = bytes.strip_suffix(b"Z").filter(|digits| digits.len() == 14).ok_or(WRONG)?;
    let number = |range: std::ops::Range<usize>| {
        digits[range].iter().try_fold(0i64, |value, digit| match digit {
            b'0'..=b'9' => Ok(value * 10 + i64::from(digit - b'0')),
            _ => Err(WRONG),
        })
    };
    let (year, month, day) = (number(0..4)?, number(4..6)?, number(6..8)?);
    let (hour, minute, second) = (number(8..10)?, number(10..12)?, number(12..14)?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || hour > 23 || minute > 59 {
        return Err(WRONG);
    }
    Ok(days(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second)
}

/// A name with its realm, as it is written: `name/instance@REALM`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// Components joined by `/`.
    pub name: String,
    /// Realm.
    pub realm: String,
}

impl std::fmt::Display for Principal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}@{}", self.name, self.realm)
    }
}

fn principal(name: Input<'_>, realm: String) -> Result<Principal, Error> {
    let fields = Fields::of(name)?;
    let parts = only(fields.get(1)?, SEQUENCE)?;
    let parts = parse::run(parts, elements(MAX_COMPONENTS))?;
    let parts = parts.into_iter().map(|(tag, content)| match tag {
        GENERAL_STRING => text(content.bytes()),
        _ => Err(Error::Malformed("a name whose components are no strings")),
    });
    let parts = parts.collect::<Result<Vec<_>, _>>()?;
    if parts.is_empty() || parts.iter().any(|part| part.is_empty() || part.contains(['/', '@'])) {
        return Err(Error::Malformed("a name that cannot be written"));
    }
    Ok(Principal { name: parts.join("/"), realm })
}

/// `EncryptedData` (RFC 4120 5.2.9): a text that only who has the key can read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encrypted<'a> {
    /// How.
    pub etype: i32,
    /// Version of the key.
    pub version: Option<u32>,
    /// The text.
    pub cipher: &'a [u8],
}

fn encrypted(input: Input<'_>) -> Result<Encrypted<'_>, Error> {
    let fields = Fields::of(input)?;
    let version = fields.optional(1).map(integer).transpose()?;
    let etype = i32::try_from(fields.integer(0)?);
    Ok(Encrypted {
        etype: etype.map_err(|_| Error::Malformed("an encryption type that is none"))?,
        // Some write it signed.
        version: version.map(|version| version as u32),
        cipher: fields.element(2, OCTET_STRING)?,
    })
}

fn put_encrypted(key: &Key, usage: u32, plain: &[u8]) -> Vec<u8> {
    let mut fields = element(context(0), &put_integer(key.etype as i64));
    fields.extend(element(context(2), &element(OCTET_STRING, &key.encrypt(usage, plain))));
    element(SEQUENCE, &fields)
}

fn key(input: Input<'_>) -> Result<Key, Error> {
    let fields = Fields::of(input)?;
    let number = i32::try_from(fields.integer(0)?);
    let etype = number.map_err(|_| Error::Malformed("a key type that is none"))?;
    Key::new(Etype::new(etype)?, fields.element(1, OCTET_STRING)?)
}

/// AP-REQ: a ticket and the proof that the client may use it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApReq<'a> {
    /// The client wants an AP-REP.
    pub mutual: bool,
    /// The ticket is encrypted with a session key.
    pub use_session_key: bool,
    /// The service that the ticket is for.
    pub service: Principal,
    /// The ticket.
    pub ticket: Encrypted<'a>,
    /// The authenticator.
    pub authenticator: Encrypted<'a>,
}

impl<'a> ApReq<'a> {
    /// Reads an AP-REQ without its GSS-API frame.
    ///
    /// # Errors
    /// It is not DER, or no AP-REQ with a ticket of version 5.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Error> {
        const USE_SESSION_KEY: u32 = 0x4000_0000;
        const MUTUAL_REQUIRED: u32 = 0x2000_0000;
        let fields = Fields::framed(Input::new(bytes), AP_REQ)?;
        fields.version(0)?;
        if fields.integer(1)? != 14 {
            return Err(Error::Malformed("not an AP-REQ"));
        }
        let options = fields.bits(2)?;
        let ticket = Fields::framed(fields.get(3)?, TICKET)?;
        ticket.version(0)?;
        Ok(Self {
            mutual: options & MUTUAL_REQUIRED != 0,
            use_session_key: options & USE_SESSION_KEY != 0,
            service: principal(ticket.get(2)?, ticket.text(1)?)?,
            ticket: encrypted(ticket.get(3)?)?,
            authenticator: encrypted(fields.get(4)?)?,
        })
    }
}

/// What a ticket says. Times are seconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TicketPart {
    /// It must be validated before it is used.
    pub invalid: bool,
    /// Key for what client and service say to each other.
    pub key: Key,
    /// The client.
    pub client: Principal,
    /// Begin.
    pub start: i64,
    /// End.
    pub end: i64,
}

impl TicketPart {
    /// Key usage number.
    pub const USAGE: u32 = 2;

    /// Reads the decrypted part.
    ///
    /// # Errors
    /// It is not DER or lacks a field, or its key is of a type that is not spoken.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        const INVALID: u32 = 0x0100_0000;
        let fields = Fields::framed(Input::new(bytes), TICKET_PART)?;
        let start = if fields.optional(6).is_some() { fields.time(6)? } else { fields.time(5)? };
        Ok(Self {
            invalid: fields.bits(0)? & INVALID != 0,
            key: key(fields.get(1)?)?,
            client: principal(fields.get(3)?, fields.text(2)?)?,
            start,
            end: fields.time(7)?,
        })
    }
}

/// The proof that a client knows the session key now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authenticator {
    /// The client.
    pub client: Principal,
    /// Checksum type and checksum.
    pub checksum: Option<(i64, Vec<u8>)>,
    /// The client's time: seconds since 1970 and microseconds.
    pub time: (i64, i64),
    /// Key that the client wants to use.
    pub subkey: Option<Key>,
    /// Number of the client's first message.
    pub sequence: u32,
}

impl Authenticator {
    /// Key usage number.
    pub const USAGE: u32 = 11;

    /// Reads the decrypted message.
    ///
    /// # Errors
    /// It is not DER or lacks a field, or its key is of a type that is not spoken.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let fields = Fields::framed(Input::new(bytes), AUTHENTICATOR)?;
        fields.version(0)?;
        let checksum = fields.optional(3).map(|checksum| {
            let fields = Fields::of(checksum)?;
            Ok::<_, Error>((fields.integer(0)?, fields.element(1, OCTET_STRING)?.to_vec()))
        });
        Ok(Self {
            client: principal(fields.get(2)?, fields.text(1)?)?,
            checksum: checksum.transpose()?,
            time: (fields.time(5)?, fields.integer(4)?),
            subkey: fields.optional(6).map(key).transpose()?,
            sequence: fields.optional(7).map(integer).transpose()?.unwrap_or(0) as u32,
        })
    }
}

/// AP-REP (RFC 4120 5.5.2): repeats the client's time, which only who has the ticket's key can.
/// `sequence` is the number of our first message.
pub fn ap_rep(session: &Key, time: &[u8], sequence: u32) -> Vec<u8> {
    const USAGE: u32 = 12;
    let mut part = time.to_vec();
    part.extend(element(context(3), &put_integer(sequence.into())));
    let part = Zeroizing::new(element(AP_REP_PART, &element(SEQUENCE, &part)));
    let mut fields = element(context(0), &put_integer(5));
    fields.extend(element(context(1), &put_integer(15)));
    fields.extend(element(context(2), &put_encrypted(session, USAGE, &part)));
    element(AP_REP, &element(SEQUENCE, &fields))
}

/// The client's time as an AP-REP repeats it: `ctime [0]`, `cusec [1]`.
///
/// # Errors
/// It is not DER, or has no time.
pub fn client_time(authenticator: &[u8]) -> Result<Vec<u8>, Error> {
    let fields = Fields::framed(Input::new(authenticator), AUTHENTICATOR)?;
    let mut out = element(context(0), fields.get(5)?.bytes());
    out.extend(element(context(1), fields.get(4)?.bytes()));
    Ok(out)
}

/// What an AP-REP proves (RFC 4120 5.5.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ApRep {
    /// The time of the authenticator that it answers: seconds since 1970 and microseconds.
    pub time: (i64, i64),
    /// Number of a first message, if it has one.
    pub sequence: Option<u32>,
}

impl ApRep {
    /// Reads a message that is encrypted with the ticket's session key.
    ///
    /// # Errors
    /// It is not DER or no AP-REP, lacks a field, or is of another key.
    pub fn parse(bytes: &[u8], session: &Key) -> Result<Self, Error> {
        const USAGE: u32 = 12;
        let fields = Fields::framed(Input::new(bytes), AP_REP)?;
        fields.version(0)?;
        let sealed = encrypted(fields.get(2)?)?;
        if sealed.etype != session.etype as i32 {
            return Err(Error::Malformed("an AP-REP under another key than the ticket's"));
        }
        let part = session.decrypt(USAGE, sealed.cipher, "the AP-REP")?;
        let fields = Fields::framed(Input::new(&part), AP_REP_PART)?;
        let sequence = fields.optional(3).map(integer).transpose()?;
        let time = (fields.time(0)?, fields.integer(1)?);
        // Some write it signed.
        Ok(Self { time, sequence: sequence.map(|number| number as u32) })
    }
}

/// Writers for the other side, whose messages the tests need.
#[cfg(any(test, feature = "testing"))]
pub(crate) mod testing {
    use super::*;

    pub fn put_time(seconds: i64) -> Vec<u8> {
        let (day, rest) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
        let year = (1970..).find(|year| days(year + 1, 1, 1) > day).unwrap();
        let month = (1..=12).rev().find(|month| days(year, *month, 1) <= day).unwrap();
        let text = format!(
            "{year:04}{month:02}{:02}{:02}{:02}{:02}Z",
            day - days(year, month, 1) + 1,
            rest / 3600,
            rest / 60 % 60,
            rest % 60
        );
        element(GENERALIZED_TIME, text.as_bytes())
    }

    fn string(text: &str) -> Vec<u8> {
        element(GENERAL_STRING, text.as_bytes())
    }

    fn name(text: &str) -> Vec<u8> {
        let parts: Vec<u8> = text.split('/').flat_map(string).collect();
        let mut fields = element(context(0), &put_integer(1));
        fields.extend(element(context(1), &element(SEQUENCE, &parts)));
        element(SEQUENCE, &fields)
    }

    fn put_key(key: &Key) -> Vec<u8> {
        let mut fields = element(context(0), &put_integer(key.etype as i64));
        fields.extend(element(context(1), &element(OCTET_STRING, key.as_bytes())));
        element(SEQUENCE, &fields)
    }

    fn bits(value: u32) -> Vec<u8> {
        let mut content = vec![0];
        content.extend(value.to_be_bytes());
        element(BIT_STRING, &content)
    }

    fn fields(list: &[(u8, Vec<u8>)]) -> Vec<u8> {
        let content: Vec<u8> =
            list.iter().flat_map(|(n, content)| element(context(*n), content)).collect();
        element(SEQUENCE, &content)
    }

    pub fn put_ticket_part(part: &TicketPart) -> Vec<u8> {
        let transited = fields(&[(0, put_integer(1)), (1, element(OCTET_STRING, &[]))]);
        element(
            TICKET_PART,
            &fields(&[
                (0, bits(if part.invalid { 0x0100_0000 } else { 0 })),
                (1, put_key(&part.key)),
                (2, string(&part.client.realm)),
                (3, name(&part.client.name)),
                (4, transited),
                (5, put_time(part.start)),
                (7, put_time(part.end)),
            ]),
        )
    }

    pub fn put_authenticator(a: &Authenticator) -> Vec<u8> {
        let mut list =
            vec![(0, put_integer(5)), (1, string(&a.client.realm)), (2, name(&a.client.name))];
        if let Some((kind, sum)) = &a.checksum {
            list.push((3, fields(&[(0, put_integer(*kind)), (1, element(OCTET_STRING, sum))])));
        }
        list.push((4, put_integer(a.time.1)));
        list.push((5, put_time(a.time.0)));
        if let Some(key) = &a.subkey {
            list.push((6, put_key(key)));
        }
        list.push((7, put_integer(a.sequence.into())));
        element(AUTHENTICATOR, &fields(&list))
    }

    #[cfg(test)]
    pub fn put_ap_req(
        service: &Principal,
        service_key: &Key,
        part: &TicketPart,
        authenticator: &Authenticator,
        options: u32,
    ) -> Vec<u8> {
        let (ticket, proof) = (put_ticket_part(part), put_authenticator(authenticator));
        put_ap_req_of(service, (service_key, &ticket), (&part.key, &proof), options)
    }

    /// An AP-REQ whose encrypted parts are these, each with its key.
    pub fn put_ap_req_of(
        service: &Principal,
        (service_key, ticket): (&Key, &[u8]),
        (session_key, authenticator): (&Key, &[u8]),
        options: u32,
    ) -> Vec<u8> {
        let ticket = put_encrypted(service_key, TicketPart::USAGE, ticket);
        let proof = put_encrypted(session_key, Authenticator::USAGE, authenticator);
        let ticket = element(
            TICKET,
            &fields(&[
                (0, put_integer(5)),
                (1, string(&service.realm)),
                (2, name(&service.name)),
                (3, ticket),
            ]),
        );
        element(
            AP_REQ,
            &fields(&[
                (0, put_integer(5)),
                (1, put_integer(14)),
                (2, bits(options)),
                (3, ticket),
                (4, proof),
            ]),
        )
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{testing::*, *};

    fn some_key() -> impl Strategy<Value = Key> {
        any::<[u8; 32]>().prop_map(|bytes| Key::new(Etype::Aes256Sha1, &bytes).unwrap())
    }

    fn someone() -> impl Strategy<Value = Principal> {
        ("[a-z]{1,9}(/[a-z.]{1,9})?", "[A-Z.]{1,9}")
            .prop_map(|(name, realm)| Principal { name, realm })
    }

    #[test]
    fn times_are_seconds() {
        assert_eq!(parse_time(b"19700101000000Z"), Ok(0));
        assert_eq!(parse_time(b"20000229235959Z"), Ok(951_868_799));
        assert_eq!(parse_time(b"20260101000000Z"), Ok(1_767_225_600));
        for wrong in [&b"20260101000000"[..], b"20261301000000Z", b"2026010100000Z", b"x"] {
            assert!(parse_time(wrong).is_err());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn numbers_and_times_round_trip(value: i64, seconds in 0i64..200_000_000_000) {
            prop_assert_eq!(integer(Input::new(&put_integer(value))), Ok(value));
            let text = put_time(seconds);
            prop_assert_eq!(parse_time(&text[2..]), Ok(seconds));
        }

        #[test]
        fn messages_round_trip(
            service in someone(), client in someone(), service_key in some_key(), key in some_key(),
            subkey in prop::option::of(some_key()), start in 0i64..4_000_000_000, micros in 0i64..1_000_000,
            sequence: u32, invalid: bool, checksum in prop::option::of((any::<i32>(), prop::collection::vec(any::<u8>(), 0..30))),
            options: u32,
        ) {
            let part = TicketPart { invalid, key: key.clone(), client: client.clone(), start, end: start + 9 };
            prop_assert_eq!(TicketPart::parse(&put_ticket_part(&part)), Ok(part.clone()));
            let checksum = checksum.map(|(kind, sum)| (kind.into(), sum));
            let proof = Authenticator { client, checksum, time: (start, micros), subkey, sequence };
            prop_assert_eq!(Authenticator::parse(&put_authenticator(&proof)), Ok(proof.clone()));
            let bytes = put_ap_req(&service, &service_key, &part, &proof, options);
            let request = ApReq::parse(&bytes).unwrap();
            prop_assert_eq!(&request.service, &service);
            prop_assert_eq!(request.mutual, options & 0x2000_0000 != 0);
            let plain = service_key.decrypt(2, request.ticket.cipher, "").unwrap();
            prop_assert_eq!(TicketPart::parse(&plain), Ok(part));
            let time = client_time(&put_authenticator(&proof)).unwrap();
            let reply = ApRep { time: proof.time, sequence: Some(sequence) };
            prop_assert_eq!(ApRep::parse(&ap_rep(&key, &time, sequence), &key), Ok(reply));
        }

        #[test]
        fn parsing_is_total(
            noise in prop::collection::vec(any::<u8>(), 0..200), at in any::<prop::sample::Index>(), value: u8,
        ) {
            let _ = ApReq::parse(&noise);
            let _ = TicketPart::parse(&noise);
            let _ = Authenticator::parse(&noise);
            let _ = client_time(&noise);
            let _ = ApRep::parse(&noise, &Key::new(Etype::Aes128Sha1, &[1; 16]).unwrap());
            let key = Key::new(Etype::Aes128Sha1, &[1; 16]).unwrap();
            let client = Principal { name: "a".into(), realm: "B".into() };
            let part = TicketPart { invalid: false, key: key.clone(), client: client.clone(), start: 0, end: 1 };
            let mut bytes = put_ticket_part(&part);
            let at = at.index(bytes.len());
            bytes[at] = value;
            let _ = TicketPart::parse(&bytes);
        }
    }
}

//! Kerberos as a GSS-API mechanism (RFC 4121): the frame of its tokens, the checksum of an
//! authenticator, and message integrity codes.

use super::{Error, crypto::Key};
use crate::{
    crypto::constant_time_eq,
    gss::Side,
    parse::{self, Input, array, rest, skip, u32},
    spnego::{
        der::{self, element, only, tagged},
        token,
    },
};

/// `TOK_ID` of an AP-REQ, AP-REP.
const TOKEN_AP_REQ: [u8; 2] = [1, 0];
const TOKEN_AP_REP: [u8; 2] = [2, 0];

/// The AP-REQ in a framed initial token.
///
/// # Errors
/// The frame is not DER, of another mechanism, or around another message.
pub fn initial_token(bytes: &[u8]) -> Result<&[u8], Error> {
    const WRONG: Error = Error::Malformed("not an initial Kerberos token");
    let frame = only(Input::new(bytes), der::APPLICATION_0)?;
    let (mechanism, kind, request) = parse::run(frame, (tagged(der::OID), array("TOK_ID"), rest))?;
    let kerberos = [token::KERBEROS, token::MS_KERBEROS].contains(&mechanism.bytes());
    if kerberos && kind == TOKEN_AP_REQ { Ok(request) } else { Err(WRONG) }
}

/// The GSS-API frame of the mechanism Kerberos around an AP-REP.
pub fn reply_token(ap_rep: &[u8]) -> Vec<u8> {
    let mut content = element(der::OID, token::KERBEROS);
    content.extend_from_slice(&TOKEN_AP_REP);
    content.extend_from_slice(ap_rep);
    element(der::APPLICATION_0, &content)
}

/// Whether bytes begin as an AP-REQ without a frame does.
pub fn is_request(bytes: &[u8]) -> bool {
    const AP_REQ: u8 = der::APPLICATION_0 | 14;
    bytes.first() == Some(&AP_REQ)
}

/// The AP-REQ in an initial token: framed, or as it is in the style of DCE (MS-KILE 3.4.5.1).
///
/// # Errors
/// As [`initial_token`].
pub fn request(bytes: &[u8]) -> Result<&[u8], Error> {
    match bytes.first() {
        Some(&der::APPLICATION_0) => initial_token(bytes),
        _ => Ok(bytes),
    }
}

/// Takes the frame off a reply.
#[cfg(test)]
pub(crate) fn reply_body(bytes: &[u8]) -> &[u8] {
    let frame = only(Input::new(bytes), der::APPLICATION_0).unwrap();
    let (_, body) = parse::run(frame, (tagged(der::OID), rest)).unwrap();
    body.strip_prefix(&TOKEN_AP_REP).unwrap()
}

/// The GSS-API frame of the mechanism Kerberos around an AP-REQ.
pub fn request_token(ap_req: &[u8]) -> Vec<u8> {
    let mut content = element(der::OID, token::KERBEROS);
    content.extend_from_slice(&TOKEN_AP_REQ);
    content.extend_from_slice(ap_req);
    element(der::APPLICATION_0, &content)
}

/// Type of the checksum that carries what GSS-API needs (RFC 4121 4.1.1).
pub const CHECKSUM_TYPE: i64 = 0x8003;

/// `GSS_C_MUTUAL_FLAG` and others out of an authenticator's checksum. Channel bindings are not
/// looked at: this side has none.
///
/// # Errors
/// There is no checksum, it is of another type, or shorter than its fixed fields.
pub fn checksum_flags(checksum: Option<&(i64, Vec<u8>)>) -> Result<u32, Error> {
    const WRONG: Error = Error::Malformed("an authenticator without the checksum of GSS-API");
    const BINDINGS_LEN: u32 = 16;
    let (kind, sum) = checksum.ok_or(WRONG)?;
    // What is delegated may follow.
    let fields = (u32("Lgth"), array::<{ BINDINGS_LEN as usize }>("Bnd"), u32("Flags"));
    let (len, _, flags) = parse::run(Input::new(sum), fields)?;
    if *kind == CHECKSUM_TYPE && len == BINDINGS_LEN { Ok(flags) } else { Err(WRONG) }
}

/// The integrity code of a text (RFC 4121 4.2.6.1).
pub fn mic(key: &Key, side: Side, sequence: u64, text: &[u8]) -> Vec<u8> {
    let mut token = vec![4, 4, side.flag(), 0xff, 0xff, 0xff, 0xff, 0xff];
    token.extend_from_slice(&sequence.to_be_bytes());
    let sum = key.checksum(side.usage(false), &[text, &token]);
    token.extend_from_slice(&sum);
    token
}

/// Whether an integrity code is right.
pub fn verify_mic(key: &Key, side: Side, text: &[u8], token: &[u8]) -> bool {
    let fields = (array("TOK_ID"), array("Flags"), array("Filler"), skip(8, "SND_SEQ"), rest);
    let Ok((id, flags, filler, (), sum)) = parse::run(Input::new(token), fields) else {
        return false;
    };
    let (header, _) = token.split_at(token.len() - sum.len());
    id == [4, 4]
        && flags == [side.flag()]
        && filler == [0xff; 5]
        && constant_time_eq(&key.checksum(side.usage(false), &[text, header]), sum)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::kerberos::crypto::Etype;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn codes_hold_for_one_text_and_one_side(
            key: [u8; 16], text in prop::collection::vec(any::<u8>(), 0..60), sequence: u64,
            bit in any::<prop::sample::Index>(), noise in prop::collection::vec(any::<u8>(), 0..40),
        ) {
            let key = Key::new(Etype::Aes128Sha1, &key).unwrap();
            let mut code = mic(&key, Side::Initiator, sequence, &text);
            prop_assert!(verify_mic(&key, Side::Initiator, &text, &code));
            prop_assert!(!verify_mic(&key, Side::Acceptor, &text, &code));
            prop_assert!(!verify_mic(&key, Side::Initiator, &[&text[..], &[0]].concat(), &code));
            prop_assert!(!verify_mic(&key, Side::Initiator, &text, &noise));
            let bit = bit.index(code.len() * 8);
            code[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(!verify_mic(&key, Side::Initiator, &text, &code));
        }

        #[test]
        fn tokens_round_trip(request in prop::collection::vec(any::<u8>(), 0..300)) {
            let token = request_token(&request);
            prop_assert_eq!(initial_token(&token), Ok(&request[..]));
            prop_assert!(initial_token(&reply_token(&request)).is_err());
            let _ = initial_token(&request);
        }
    }
}

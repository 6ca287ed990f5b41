//! Kerberos as a GSS-API mechanism (RFC 4121): the frame of its tokens, the checksum of an
//! authenticator, and message integrity codes.

use super::{Error, crypto::Key};
use crate::{
    crypto::constant_time_eq,
    spnego::{
        der::{self, Reader, element},
        token,
    },
};

/// `TOK_ID` of an AP-REQ, AP-REP.
const TOKEN_AP_REQ: [u8; 2] = [1, 0];
const TOKEN_AP_REP: [u8; 2] = [2, 0];

/// The AP-REQ in a framed initial token.
pub fn initial_token(bytes: &[u8]) -> Result<&[u8], Error> {
    const WRONG: Error = Error::Malformed("not an initial Kerberos token");
    let mut r = Reader::new(Reader::only(bytes, der::APPLICATION_0).map_err(|_| WRONG)?);
    let mechanism = r.expect(der::OID).map_err(|_| WRONG)?;
    if mechanism != token::KERBEROS && mechanism != token::MS_KERBEROS {
        return Err(WRONG);
    }
    r.rest().strip_prefix(&TOKEN_AP_REQ).ok_or(WRONG)
}

/// Frames an AP-REP.
pub fn reply_token(ap_rep: &[u8]) -> Vec<u8> {
    let mut content = element(der::OID, token::KERBEROS);
    content.extend_from_slice(&TOKEN_AP_REP);
    content.extend_from_slice(ap_rep);
    element(der::APPLICATION_0, &content)
}

/// Takes the frame off a reply.
#[cfg(test)]
pub(crate) fn reply_body(bytes: &[u8]) -> &[u8] {
    let mut r = Reader::new(Reader::only(bytes, der::APPLICATION_0).unwrap());
    r.expect(der::OID).unwrap();
    r.rest().strip_prefix(&TOKEN_AP_REP).unwrap()
}

/// Frames an AP-REQ.
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
pub fn checksum_flags(checksum: Option<&(i64, Vec<u8>)>) -> Result<u32, Error> {
    const WRONG: Error = Error::Malformed("an authenticator without the checksum of GSS-API");
    let (kind, sum) = checksum.ok_or(WRONG)?;
    // Length of the bindings, bindings, flags; what is delegated may follow.
    match sum.first_chunk::<24>() {
        Some(fixed) if *kind == CHECKSUM_TYPE && fixed[..4] == [16, 0, 0, 0] => {
            Ok(u32::from_le_bytes([fixed[20], fixed[21], fixed[22], fixed[23]]))
        }
        _ => Err(WRONG),
    }
}

/// Who signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The client.
    Initiator,
    /// The server.
    Acceptor,
}

impl Side {
    fn usage(self) -> u32 {
        match self {
            Self::Initiator => 25,
            Self::Acceptor => 23,
        }
    }

    fn flags(self) -> u8 {
        u8::from(self == Self::Acceptor)
    }
}

const MIC_HEADER: usize = 16;

/// The integrity code of a text (RFC 4121 4.2.6.1).
pub fn mic(key: &Key, side: Side, sequence: u64, text: &[u8]) -> Vec<u8> {
    let mut token = vec![4, 4, side.flags(), 0xff, 0xff, 0xff, 0xff, 0xff];
    token.extend_from_slice(&sequence.to_be_bytes());
    let sum = key.checksum(side.usage(), &[text, &token]);
    token.extend_from_slice(&sum);
    token
}

/// Whether an integrity code is right.
pub fn verify_mic(key: &Key, side: Side, text: &[u8], token: &[u8]) -> bool {
    let Some((header, sum)) = token.split_at_checked(MIC_HEADER) else { return false };
    header[..2] == [4, 4]
        && header[2] == side.flags()
        && header[3..8] == [0xff; 5]
        && constant_time_eq(&key.checksum(side.usage(), &[text, header]), sum)
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

//! NegTokenInit, NegTokenInit2 and NegTokenResp (RFC 4178 4.2, MS-SPNG 2.2.1).

use super::{
    Error,
    der::{self, context, element, elements, only, tagged},
};
use crate::parse::{self, Input};

/// Content of an object identifier: 1.3.6.1.5.5.2, SPNEGO itself.
pub const SPNEGO: &[u8] = &[0x2b, 6, 1, 5, 5, 2];
/// Content of an object identifier: 1.3.6.1.4.1.311.2.2.10, NTLM.
pub const NTLM: &[u8] = &[0x2b, 6, 1, 4, 1, 0x82, 0x37, 2, 2, 0x0a];
/// Content of an object identifier: 1.2.840.113554.1.2.2, Kerberos.
pub const KERBEROS: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x12, 1, 2, 2];
/// Content of an object identifier: 1.2.840.48018.1.2.2, what Windows calls Kerberos.
pub const MS_KERBEROS: &[u8] = &[0x2a, 0x86, 0x48, 0x82, 0xf7, 0x12, 1, 2, 2];

/// Most mechanisms that are looked at in a list.
const MAX_MECHS: usize = 32;
/// Most fields of a token; none has more than five.
const MAX_FIELDS: usize = 16;

/// The encoded MechTypeList of some mechanisms: what a mechListMIC signs.
#[must_use]
pub fn mech_list(mechs: &[&[u8]]) -> Vec<u8> {
    let content: Vec<u8> = mechs.iter().flat_map(|oid| element(der::OID, oid)).collect();
    element(der::SEQUENCE, &content)
}

/// The identifiers in an encoded MechTypeList.
///
/// # Errors
/// It is no sequence of object identifiers, or of more than 32.
pub fn parse_mech_list(list: &[u8]) -> Result<Vec<&[u8]>, Error> {
    let list = only(Input::new(list), der::SEQUENCE)?;
    let mechs = parse::run(list, elements(MAX_MECHS))?;
    let mechs = mechs.into_iter().map(|(tag, content)| match tag {
        der::OID => Ok(content.bytes()),
        _ => Err(Error::Malformed("a mechanism that is no object identifier")),
    });
    mechs.collect()
}

/// NegTokenInit or NegTokenInit2, with its GSS-API frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InitToken<'a> {
    /// The encoded MechTypeList, as it was sent.
    pub mech_list: &'a [u8],
    /// First token of the first mechanism in the list.
    pub mech_token: Option<&'a [u8]>,
    /// mechListMIC.
    pub mic: Option<&'a [u8]>,
}

impl<'a> InitToken<'a> {
    /// Whether bytes look like a framed initial token.
    #[must_use]
    pub fn starts(bytes: &[u8]) -> bool {
        bytes.first() == Some(&der::APPLICATION_0)
    }

    /// Reads a token; hints and requested flags are ignored.
    ///
    /// # Errors
    /// It is not DER, not SPNEGO, or has no list of mechanisms.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Error> {
        let frame = only(Input::new(bytes), der::APPLICATION_0)?;
        let (oid, body) = parse::run(frame, (tagged(der::OID), tagged(context(0))))?;
        if oid.bytes() != SPNEGO {
            return Err(Error::Malformed("not SPNEGO"));
        }
        let fields = parse::run(body, tagged(der::SEQUENCE))?;
        let mut token = Self { mech_list: &[], mech_token: None, mic: None };
        for (tag, content) in parse::run(fields, elements(MAX_FIELDS))? {
            if tag == context(0) {
                parse_mech_list(content.bytes())?;
                token.mech_list = content.bytes();
            } else if tag == context(2) {
                token.mech_token = Some(only(content, der::OCTET_STRING)?.bytes());
            } else if (tag == context(3) || tag == context(4))
                && content.bytes().first() == Some(&der::OCTET_STRING)
            {
                // [3] is the MIC of RFC 4178, but hints in a NegTokenInit2, whose MIC is [4].
                token.mic = Some(only(content, der::OCTET_STRING)?.bytes());
            }
        }
        if token.mech_list.is_empty() {
            return Err(Error::Malformed("no mechanism list"));
        }
        Ok(token)
    }

    /// The client's NegTokenInit in its GSS-API frame.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut fields = element(context(0), self.mech_list);
        if let Some(token) = self.mech_token {
            fields.extend(element(context(2), &element(der::OCTET_STRING, token)));
        }
        if let Some(mic) = self.mic {
            fields.extend(element(context(3), &element(der::OCTET_STRING, mic)));
        }
        Self::frame(&fields)
    }

    /// The server's NegTokenInit2 with the customary hint (MS-SPNG 3.2.5.2).
    #[must_use]
    pub fn encode_hint(&self) -> Vec<u8> {
        let name = element(der::GENERAL_STRING, b"not_defined_in_RFC4178@please_ignore");
        let hints = element(der::SEQUENCE, &element(context(0), &name));
        let mut fields = element(context(0), self.mech_list);
        fields.extend(element(context(3), &hints));
        Self::frame(&fields)
    }

    fn frame(fields: &[u8]) -> Vec<u8> {
        let mut content = element(der::OID, SPNEGO);
        content.extend(element(context(0), &element(der::SEQUENCE, fields)));
        element(der::APPLICATION_0, &content)
    }
}

/// negState of a NegTokenResp.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// accept-completed.
    Completed,
    /// accept-incomplete.
    Incomplete,
    /// reject.
    Reject,
    /// request-mic.
    RequestMic,
}

/// NegTokenResp (RFC 4178 4.2.2): every token but the first.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RespToken<'a> {
    /// negState.
    pub state: Option<State>,
    /// supportedMech: content of the identifier.
    pub mech: Option<&'a [u8]>,
    /// responseToken.
    pub token: Option<&'a [u8]>,
    /// mechListMIC.
    pub mic: Option<&'a [u8]>,
}

impl<'a> RespToken<'a> {
    /// Reads a token; fields of unknown numbers are ignored.
    ///
    /// # Errors
    /// It is not DER, no NegTokenResp, or in a state that there is not.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Error> {
        let body = only(only(Input::new(bytes), context(1))?, der::SEQUENCE)?;
        let mut token = Self::default();
        for (tag, content) in parse::run(body, elements(MAX_FIELDS))? {
            if tag == context(0) {
                token.state = Some(match only(content, der::ENUMERATED)?.bytes() {
                    [0] => State::Completed,
                    [1] => State::Incomplete,
                    [2] => State::Reject,
                    [3] => State::RequestMic,
                    _ => return Err(Error::Malformed("unknown negotiation state")),
                });
            } else if tag == context(1) {
                token.mech = Some(only(content, der::OID)?.bytes());
            } else if tag == context(2) {
                token.token = Some(only(content, der::OCTET_STRING)?.bytes());
            } else if tag == context(3) {
                token.mic = Some(only(content, der::OCTET_STRING)?.bytes());
            }
        }
        Ok(token)
    }

    /// The token's bytes: the fields that are there.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut fields = Vec::new();
        if let Some(state) = self.state {
            let value = match state {
                State::Completed => 0,
                State::Incomplete => 1,
                State::Reject => 2,
                State::RequestMic => 3,
            };
            fields.extend(element(context(0), &element(der::ENUMERATED, &[value])));
        }
        if let Some(mech) = self.mech {
            fields.extend(element(context(1), &element(der::OID, mech)));
        }
        if let Some(token) = self.token {
            fields.extend(element(context(2), &element(der::OCTET_STRING, token)));
        }
        if let Some(mic) = self.mic {
            fields.extend(element(context(3), &element(der::OCTET_STRING, mic)));
        }
        element(context(1), &element(der::SEQUENCE, &fields))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::crypto::testing::hex;

    /// The NegTokenInit2 that servers without Kerberos send, and the frame of MS-SPNG 4.
    #[test]
    fn hint_has_the_usual_bytes() {
        let list = mech_list(&[NTLM]);
        let hint = InitToken { mech_list: &list, mech_token: None, mic: None }.encode_hint();
        assert_eq!(
            hint,
            hex("604806062b0601050502a03e303ca00e300c060a2b06010401823702020a\
                 a32a3028a0261b246e6f745f646566696e65645f696e5f5246433431373840\
                 706c656173655f69676e6f7265")
        );
        let back = InitToken::parse(&hint).unwrap();
        assert_eq!(parse_mech_list(back.mech_list).unwrap(), [NTLM]);
        assert_eq!(back.mic, None, "hints are no MIC");
    }

    /// The beginning and end of the token printed in MS-SPNG 4, its 254-byte optimistic token
    /// replaced by zeros.
    #[test]
    fn token_of_the_specification() {
        let mut bytes =
            hex("6082015d06062b0601050502a08201513082014da01a3018060a2b06010401823702021e\
             060a2b06010401823702020aa28201010481fe");
        bytes.extend_from_slice(&[0; 254]);
        bytes.extend(hex("a32a3028a0261b246e6f745f646566696e65645f696e5f5246433431373840\
             706c656173655f69676e6f7265"));
        let token = InitToken::parse(&bytes).unwrap();
        let mechs = parse_mech_list(token.mech_list).unwrap();
        assert_eq!(mechs[1], NTLM);
        assert_eq!(token.mech_token, Some(&[0; 254][..]));
        assert_eq!(token.mic, None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn responses_round_trip(
            state in prop::option::of(0..4usize),
            token: Option<Vec<u8>>,
            mic: Option<[u8; 16]>,
        ) {
            let states =
                [State::Completed, State::Incomplete, State::Reject, State::RequestMic];
            let response = RespToken {
                state: state.map(|i| states[i]),
                mech: Some(NTLM),
                token: token.as_deref(),
                mic: mic.as_ref().map(|mic| &mic[..]),
            };
            let bytes = response.encode();
            prop_assert_eq!(RespToken::parse(&bytes), Ok(response));
            let list = mech_list(&[KERBEROS, NTLM]);
            let init = InitToken { mech_list: &list, mech_token: token.as_deref(), mic: response.mic };
            let bytes = init.encode();
            prop_assert_eq!(InitToken::parse(&bytes), Ok(init));
        }

        #[test]
        fn parsing_is_total(mut bytes in prop::collection::vec(any::<u8>(), 0..120), frame: bool) {
            if frame {
                bytes = element(context(1), &element(der::SEQUENCE, &bytes));
            }
            if let Ok(token) = RespToken::parse(&bytes) {
                prop_assert!(token.token.is_none_or(|t| t.len() <= bytes.len()));
            }
            let _ = InitToken::parse(&bytes);
            let _ = parse_mech_list(&bytes);
        }
    }
}

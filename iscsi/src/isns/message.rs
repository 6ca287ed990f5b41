//! Messages of iSNS (RFC 4171 5): PDUs with a header of twelve bytes, and attributes as tag, length
//! and value.

use nom::{
    Parser,
    bytes::complete::take,
    combinator::verify,
    number::complete::{be_u16, be_u32},
};

use crate::pdu::{Parsed, WireError, field, plain};

/// Bytes of a PDU's header.
pub(super) const HEADER: usize = 12;
/// The longest message that is put together of PDUs, in bytes.
pub(super) const LIMIT: usize = 4 << 20;
/// The version of the protocol.
const VERSION: u16 = 1;
/// The most bytes of a PDU behind its header; a multiple of four.
const MOST: usize = 0xfffc;

/// Bits of a header's flags (RFC 4171 5.1.4).
pub mod flag {
    /// The sender is a client.
    pub const CLIENT: u16 = 0x8000;
    /// The sender is a server.
    pub const SERVER: u16 = 0x4000;
    /// DevAttrReg: what was registered for the entity before is replaced.
    pub const REPLACE: u16 = 0x1000;
    pub(crate) const LAST: u16 = 0x0800;
    pub(crate) const FIRST: u16 = 0x0400;
}

/// Functions (RFC 4171 5.6).
pub mod function {
    /// Device Attribute Registration.
    pub const REGISTER: u16 = 0x0001;
    /// Device Attribute Query.
    pub const QUERY: u16 = 0x0002;
    /// Device Deregister.
    pub const DEREGISTER: u16 = 0x0004;
    /// A response has this beside its request's function.
    pub const RESPONSE: u16 = 0x8000;
}

/// Tags of attributes (RFC 4171 6.1).
pub mod tag {
    /// Parts a message's key from its operating attributes.
    pub const DELIMITER: u32 = 0;
    /// Entity Identifier.
    pub const ENTITY: u32 = 1;
    /// Entity Protocol: 2 is iSCSI.
    pub const PROTOCOL: u32 = 2;
    /// Registration Period, in seconds.
    pub const PERIOD: u32 = 6;
    /// Portal IP Address, 16 bytes.
    pub const PORTAL_ADDRESS: u32 = 16;
    /// Portal TCP/UDP Port.
    pub const PORTAL_PORT: u32 = 17;
    /// iSCSI Name.
    pub const NAME: u32 = 32;
    /// iSCSI Node Type.
    pub const NODE_TYPE: u32 = 33;
    /// iSCSI Alias.
    pub const ALIAS: u32 = 34;
    /// PG iSCSI Name: the node of a portal group.
    pub const GROUP_NAME: u32 = 48;
    /// PG Portal IP Address.
    pub const GROUP_ADDRESS: u32 = 49;
    /// PG Portal TCP/UDP Port.
    pub const GROUP_PORT: u32 = 50;
    /// PG Tag.
    pub const GROUP_TAG: u32 = 51;
}

/// Node types (RFC 4171 6.4.2).
pub mod node_type {
    /// It serves logical units.
    pub const TARGET: u32 = 1;
    /// It uses them.
    pub const INITIATOR: u32 = 2;
}

/// A value with its tag; padding of the value is taken away where the tag says that it is text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attribute {
    /// What it says, of [`tag`].
    pub tag: u32,
    /// Its bytes.
    pub value: Vec<u8>,
}

impl Attribute {
    /// One without a value: a delimiter, or what a query asks for.
    #[must_use]
    pub fn empty(tag: u32) -> Self {
        Self { tag, value: Vec::new() }
    }

    /// A number of four bytes.
    #[must_use]
    pub fn number(tag: u32, value: u32) -> Self {
        Self { tag, value: value.to_be_bytes().into() }
    }

    /// A text: ends with a zero byte and fills four bytes (RFC 4171 6.1).
    #[must_use]
    pub fn text(tag: u32, text: &str) -> Self {
        let mut value = text.as_bytes().to_vec();
        value.resize((value.len() + 1).next_multiple_of(4), 0);
        Self { tag, value }
    }

    /// What is before the first zero byte, if it is UTF-8.
    #[must_use]
    pub fn as_text(&self) -> Option<&str> {
        str::from_utf8(self.value.split(|byte| *byte == 0).next()?).ok()
    }

    /// The number, if it has four bytes.
    #[must_use]
    pub fn as_number(&self) -> Option<u32> {
        Some(u32::from_be_bytes(self.value.as_slice().try_into().ok()?))
    }
}

/// A PDU: a message or a part of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pdu<'a> {
    /// Of [`function`].
    pub function: u16,
    /// Of [`flag`].
    pub flags: u16,
    /// Of the request and its response.
    pub transaction: u16,
    /// Counts the PDUs of a message from 0.
    pub sequence: u16,
    /// What is behind the header.
    pub payload: &'a [u8],
}

/// Bytes that the PDU has behind the header that `header` begins with.
///
/// # Errors
/// [`WireError`]: that is no header of this protocol.
pub fn payload_length(header: &[u8]) -> Result<usize, WireError> {
    let (_, (_, length)) = begin(header).map_err(plain)?;
    Ok(usize::from(length))
}

fn begin(input: &[u8]) -> Parsed<'_, (u16, u16)> {
    let (input, _) =
        field("version", verify(be_u16, |version| *version == VERSION)).parse(input)?;
    let (input, function) = field("function", be_u16).parse(input)?;
    let aligned = verify(be_u16, |length: &u16| length.is_multiple_of(4));
    let (input, length) = field("PDU length", aligned).parse(input)?;
    Ok((input, (function, length)))
}

/// Reads a PDU; gives what is behind it.
///
/// # Errors
/// [`WireError`] names the field that cannot be.
pub fn read_pdu(input: &[u8]) -> Result<(&[u8], Pdu<'_>), WireError> {
    let parse = |input| {
        let (input, (function, length)) = begin(input)?;
        let (input, flags) = field("flags", be_u16).parse(input)?;
        let (input, transaction) = field("transaction", be_u16).parse(input)?;
        let (input, sequence) = field("sequence", be_u16).parse(input)?;
        let (input, payload) = field("payload", take(usize::from(length))).parse(input)?;
        Ok((input, Pdu { function, flags, transaction, sequence, payload }))
    };
    parse(input).map_err(plain)
}

/// Writes attributes one behind the other.
#[must_use]
pub fn write_attributes(attributes: &[Attribute]) -> Vec<u8> {
    let mut payload = Vec::new();
    for attribute in attributes {
        let length = attribute.value.len().next_multiple_of(4);
        payload.extend(attribute.tag.to_be_bytes());
        payload.extend(u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
        payload.extend(&attribute.value);
        payload.resize(payload.len() + length - attribute.value.len(), 0);
    }
    payload
}

/// Writes a message of a client as PDUs.
#[must_use]
pub fn write(function: u16, flags: u16, transaction: u16, attributes: &[Attribute]) -> Vec<u8> {
    let payload = write_attributes(attributes);
    let mut out = Vec::with_capacity(payload.len() + HEADER);
    let parts = payload.chunks(MOST).collect::<Vec<_>>();
    for (n, part) in parts.iter().enumerate() {
        let first = if n == 0 { flag::FIRST } else { 0 };
        let last = if n + 1 == parts.len() { flag::LAST } else { 0 };
        let (length, sequence) = (part.len() as u16, n as u16);
        for word in [VERSION, function, length, flags | first | last, transaction, sequence] {
            out.extend(word.to_be_bytes());
        }
        out.extend_from_slice(part);
    }
    out
}

/// Reads the status and the attributes of a response.
///
/// # Errors
/// [`WireError`] names the field that cannot be.
pub fn read_response(payload: &[u8]) -> Result<(u32, Vec<Attribute>), WireError> {
    let (input, status) = field("status", be_u32).parse(payload).map_err(plain)?;
    Ok((status, read_attributes(input)?))
}

/// Reads attributes to the end.
///
/// # Errors
/// [`WireError`] names the field that cannot be.
pub fn read_attributes(mut input: &[u8]) -> Result<Vec<Attribute>, WireError> {
    let attribute = |input| {
        let (input, tag) = field("attribute tag", be_u32).parse(input)?;
        let aligned = verify(be_u32, |length: &u32| length.is_multiple_of(4));
        let (input, length) = field("attribute length", aligned).parse(input)?;
        let (input, value) = field("attribute value", take(length as usize)).parse(input)?;
        Ok((input, Attribute { tag, value: value.to_vec() }))
    };
    let mut attributes = Vec::new();
    while !input.is_empty() {
        let (rest, it) = attribute(input).map_err(plain)?;
        input = rest;
        attributes.push(it);
    }
    Ok(attributes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn messages_come_back(
            values in prop::collection::vec((any::<u32>(), prop::collection::vec(any::<u8>(), 0..40)), 0..20),
            long in 0usize..70_000,
            transaction: u16,
        ) {
            let mut attributes: Vec<_> = values
                .into_iter()
                .map(|(tag, mut value)| {
                    value.resize(value.len().next_multiple_of(4), 0);
                    Attribute { tag, value }
                })
                .collect();
            attributes.push(Attribute { tag: 7, value: vec![7; long.next_multiple_of(4)] });
            let bytes = write(function::QUERY, flag::CLIENT, transaction, &attributes);
            let (mut rest, mut payload, mut sequence) = (&bytes[..], Vec::new(), 0);
            while !rest.is_empty() {
                let length = payload_length(rest).unwrap();
                let (after, pdu) = read_pdu(rest).unwrap();
                prop_assert_eq!(pdu.payload.len(), length);
                prop_assert_eq!((pdu.sequence, pdu.transaction), (sequence, transaction));
                prop_assert_eq!(pdu.flags & flag::FIRST != 0, sequence == 0);
                prop_assert_eq!(pdu.flags & flag::LAST != 0, after.is_empty());
                payload.extend_from_slice(pdu.payload);
                (rest, sequence) = (after, sequence + 1);
            }
            prop_assert_eq!(read_attributes(&payload).unwrap(), attributes);
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = read_pdu(&bytes);
            if let Ok((_, attributes)) = read_response(&bytes) {
                let length: usize = attributes.iter().map(|it| it.value.len() + 8).sum();
                prop_assert_eq!(length + 4, bytes.len(), "every byte is in an attribute");
            }
        }
    }

    #[test]
    fn texts_end_with_a_zero_byte_and_fill_four() {
        for (text, length) in [("", 4), ("abc", 4), ("abcd", 8)] {
            let attribute = Attribute::text(tag::NAME, text);
            assert_eq!((attribute.value.len(), attribute.as_text()), (length, Some(text)));
        }
    }
}

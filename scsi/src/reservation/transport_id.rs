//! TransportIDs of iSCSI (SPC-4 7.6.4.6): the names of initiators in parameter lists.

/// iSCSI in PROTOCOL IDENTIFIER.
const ISCSI: u8 = 0x05;
/// FORMAT CODE 01b: the name of a port, with an ISID.
const PORT: u8 = 0x40;
const SEPARATOR: &str = ",i,0x";
/// Longest ADDITIONAL LENGTH: a name of 223 bytes, separator, ISID, end, padding (RFC 7143 4.2.7).
const MAX_NAME: usize = 256;

/// What a TransportID names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TransportId {
    pub name: String,
    /// An initiator with all its ports.
    pub device: bool,
}

/// The TransportID of an initiator port or, without an ISID, of an initiator.
pub(super) fn encode(initiator: &str) -> Vec<u8> {
    let port = initiator.contains(SEPARATOR);
    let text = &initiator.as_bytes()[..initiator.len().min(MAX_NAME)];
    // Null-terminated, in a multiple of four bytes, at least 20.
    let length = (text.len() + 1).next_multiple_of(4).max(20);
    let mut out = vec![ISCSI | if port { PORT } else { 0 }, 0];
    out.extend((length as u16).to_be_bytes());
    out.extend_from_slice(text);
    out.resize(4 + length, 0);
    out
}

/// The first TransportID and how long it is; `None` if there is none.
pub(super) fn decode(bytes: &[u8]) -> Option<(TransportId, usize)> {
    let (head, rest) = bytes.split_first_chunk::<4>()?;
    let length = usize::from(u16::from_be_bytes([head[2], head[3]]));
    let format = head[0] & 0xc0;
    if head[0] & 0x3f != ISCSI || head[1] != 0 || !matches!(format, 0 | PORT) {
        return None;
    }
    if length > MAX_NAME || !length.is_multiple_of(4) {
        return None;
    }
    let field = rest.get(..length)?;
    let end = field.iter().position(|byte| *byte == 0)?;
    let name = std::str::from_utf8(&field[..end]).ok()?;
    let device = !name.contains(SEPARATOR);
    if name.is_empty() || device != (format == 0) {
        return None;
    }
    // iSCSI names are compared in lower case (RFC 3722); so are the digits of an ISID.
    Some((TransportId { name: name.to_ascii_lowercase(), device }, 4 + length))
}

/// The initiator's name without the ISID.
pub(crate) fn device_name(initiator: &str) -> &str {
    initiator.split(SEPARATOR).next().unwrap_or(initiator)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_keeps_its_isid_and_an_initiator_has_none() {
        let port = "iqn.2020-01.example:host,i,0x80123456789a";
        let bytes = encode(port);
        assert_eq!(bytes[0], 0x45);
        assert_eq!(bytes.len() % 4, 0);
        let (id, length) = decode(&bytes).expect("what was written");
        assert_eq!((id.name.as_str(), id.device, length), (port, false, bytes.len()));
        assert_eq!(device_name(port), "iqn.2020-01.example:host");
        let bytes = encode("iqn.2020-01.example:host");
        assert!(decode(&bytes).expect("what was written").0.device);
        for end in 0..bytes.len() {
            assert_eq!(decode(&bytes[..end]), None);
        }
    }
}

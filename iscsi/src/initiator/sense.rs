//! Sense data as an initiator reads them (SPC-4 4.5).

use std::fmt;

/// What of sense data counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SenseData {
    /// SENSE KEY.
    pub key: u8,
    /// ADDITIONAL SENSE CODE and its qualifier, the code in the high byte.
    pub code: u16,
    /// INFORMATION, where it is valid.
    pub information: Option<u64>,
}

/// Keys that are told apart (SPC-4 4.5.6).
pub(super) mod key {
    pub const NOT_READY: u8 = 0x2;
    pub const ILLEGAL_REQUEST: u8 = 0x5;
    pub const UNIT_ATTENTION: u8 = 0x6;
    pub const DATA_PROTECT: u8 = 0x7;
    pub const ABORTED_COMMAND: u8 = 0xb;
    pub const MISCOMPARE: u8 = 0xe;
}

/// Codes that are told apart (SPC-4 annex F.2).
pub(super) mod code {
    pub const BECOMING_READY: u16 = 0x0401;
    pub const TRANSITIONING: u16 = 0x040a;
    pub const STANDBY: u16 = 0x040b;
    pub const UNAVAILABLE: u16 = 0x040c;
    pub const OPERATION_CODE: u16 = 0x2000;
    pub const LBA_OUT_OF_RANGE: u16 = 0x2100;
    pub const UNIT_NOT_SUPPORTED: u16 = 0x2500;
    pub const NO_SPACE: u16 = 0x2707;
    pub const ACCESS_CHANGED: u16 = 0x2a06;
    pub const RESERVATIONS_PREEMPTED: u16 = 0x2a03;
    pub const REGISTRATIONS_PREEMPTED: u16 = 0x2a05;
    pub const CAPACITY_CHANGED: u16 = 0x2a09;
}

impl SenseData {
    /// Reads either format; `None` for anything else.
    #[must_use]
    pub fn read(bytes: &[u8]) -> Option<Self> {
        match bytes.first()? & 0x7f {
            0x70 | 0x71 => {
                let key = bytes.get(2)? & 0x0f;
                let code = bytes.get(12..14).map_or(0, |two| u16::from_be_bytes([two[0], two[1]]));
                let valid = bytes[0] & 0x80 != 0;
                let information = bytes.get(3..7).and_then(|four| four.first_chunk::<4>());
                let information = information.map(|four| u64::from(u32::from_be_bytes(*four)));
                Some(Self { key, code, information: information.filter(|_| valid) })
            }
            0x72 | 0x73 => {
                let key = bytes.get(1)? & 0x0f;
                let code = u16::from_be_bytes([*bytes.get(2)?, *bytes.get(3)?]);
                Some(Self { key, code, information: information(bytes.get(8..)?) })
            }
            _ => None,
        }
    }

    /// Whether the command, or a field of it, is none that this unit knows.
    #[must_use]
    pub fn is_illegal(&self) -> bool {
        self.key == key::ILLEGAL_REQUEST
    }

    /// Whether a thin unit has no more room.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.key == key::DATA_PROTECT && self.code == code::NO_SPACE
    }

    /// Whether the unit may not be written.
    #[must_use]
    pub fn is_protected(&self) -> bool {
        self.key == key::DATA_PROTECT && self.code != code::NO_SPACE
    }
}

/// INFORMATION of the descriptors that follow a header (SPC-4 4.5.2.2).
fn information(mut descriptors: &[u8]) -> Option<u64> {
    while let [kind, length, rest @ ..] = descriptors {
        let body = rest.get(..usize::from(*length))?;
        if *kind == 0 && body.first().is_some_and(|flags| flags & 0x80 != 0) {
            return body.get(2..10)?.first_chunk().map(|eight| u64::from_be_bytes(*eight));
        }
        descriptors = &rest[usize::from(*length)..];
    }
    None
}

impl fmt::Display for SenseData {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMES: [&str; 16] = [
            "no sense",
            "recovered error",
            "not ready",
            "medium error",
            "hardware error",
            "illegal request",
            "unit attention",
            "data protect",
            "blank check",
            "vendor specific",
            "copy aborted",
            "aborted command",
            "reserved",
            "volume overflow",
            "miscompare",
            "completed",
        ];
        let name = NAMES[usize::from(self.key & 0x0f)];
        let [code, qualifier] = self.code.to_be_bytes();
        write!(out, "{name} ({code:02x}/{qualifier:02x})")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use scsi::{Sense, SenseKey};

    use super::*;

    #[test]
    fn both_formats_say_the_same() {
        for information in [None, Some(7)] {
            let sense = Sense { information, ..Sense::new(SenseKey::Miscompare, 0x1d00) };
            let right = SenseData { key: key::MISCOMPARE, code: 0x1d00, information };
            assert_eq!(SenseData::read(&sense.fixed()), Some(right));
            assert_eq!(SenseData::read(&sense.descriptor()), Some(right));
        }
        assert_eq!(right_name(), "unit attention (29/00)");
    }

    fn right_name() -> String {
        SenseData { key: 6, code: 0x2900, information: None }.to_string()
    }

    proptest! {
        #[test]
        fn any_bytes_are_sense_or_none(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = SenseData::read(&bytes);
        }
    }
}

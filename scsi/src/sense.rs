//! Sense data (SPC-4 4.5).

/// What kind of thing went wrong (SPC-4 4.5.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum SenseKey {
    /// Nothing.
    NoSense = 0x0,
    /// It was put right.
    RecoveredError = 0x1,
    /// The logical unit cannot be reached.
    NotReady = 0x2,
    /// The medium failed.
    MediumError = 0x3,
    /// The hardware failed.
    HardwareError = 0x4,
    /// The command was wrong.
    IllegalRequest = 0x5,
    /// Something happened that the initiator has to know before it goes on.
    UnitAttention = 0x6,
    /// The medium may not be written.
    DataProtect = 0x7,
    /// A copy of EXTENDED COPY failed.
    CopyAborted = 0xa,
    /// The command was aborted; the initiator may repeat it.
    AbortedCommand = 0xb,
    /// A comparison failed.
    Miscompare = 0xe,
}

/// Sense data, before they are laid out as fixed or descriptor format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sense {
    /// Its kind.
    pub key: SenseKey,
    /// ADDITIONAL SENSE CODE and its qualifier, the code in the high byte.
    pub code: u16,
    /// INFORMATION: an address of a block or a residual, as the command defines it.
    pub information: Option<u64>,
    /// SENSE-KEY SPECIFIC, three bytes with the SKSV bit set; for ILLEGAL REQUEST the field at fault.
    pub specific: Option<[u8; 3]>,
}

impl Sense {
    /// Sense data of a kind and a code, with nothing else said.
    #[must_use]
    pub const fn new(key: SenseKey, code: u16) -> Self {
        Self { key, code, information: None, specific: None }
    }

    /// The fixed format: 18 bytes (SPC-4 4.5.3).
    #[must_use]
    pub fn fixed(&self) -> [u8; 18] {
        let mut out = [0; 18];
        out[0] = 0x70;
        out[2] = self.key as u8;
        out[7] = 10;
        if let Some(information) = self.information.and_then(|n| u32::try_from(n).ok()) {
            out[0] |= 0x80;
            out[3..7].copy_from_slice(&information.to_be_bytes());
        }
        out[12..14].copy_from_slice(&self.code.to_be_bytes());
        if let Some(specific) = self.specific {
            out[15..18].copy_from_slice(&specific);
        }
        out
    }

    /// The descriptor format: 8 bytes, and descriptors of what there is to say (SPC-4 4.5.2).
    #[must_use]
    pub fn descriptor(&self) -> Vec<u8> {
        let code = self.code.to_be_bytes();
        let mut out = vec![0x72, self.key as u8, code[0], code[1], 0, 0, 0, 0];
        if let Some(information) = self.information {
            out.extend([0x00, 0x0a, 0x80, 0x00]);
            out.extend(information.to_be_bytes());
        }
        if let Some([first, second, third]) = self.specific {
            out.extend([0x02, 0x06, 0, 0, first, second, third, 0]);
        }
        out[7] = (out.len() - 8) as u8;
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fixed_sense_says_what_where_and_how_much() {
        let sense = Sense {
            information: Some(0x0102_0304),
            specific: Some([0xc0, 0, 2]),
            ..Sense::new(SenseKey::IllegalRequest, 0x2400)
        };
        let bytes = sense.fixed();
        assert_eq!(bytes[..8], [0xf0, 0, 5, 1, 2, 3, 4, 10]);
        assert_eq!(bytes[12..], [0x24, 0, 0, 0xc0, 0, 2]);
        // What four bytes cannot hold is left out rather than cut.
        let far = Sense { information: Some(1 << 40), ..sense };
        assert_eq!(far.fixed()[0], 0x70);
    }

    #[test]
    fn descriptor_sense_has_a_descriptor_for_each_thing_said() {
        let bare = Sense::new(SenseKey::UnitAttention, 0x2900);
        assert_eq!(bare.descriptor(), [0x72, 6, 0x29, 0, 0, 0, 0, 0]);
        let full = Sense {
            information: Some(1 << 40),
            specific: Some([0xcf, 0, 1]),
            ..Sense::new(SenseKey::IllegalRequest, 0x2400)
        };
        let bytes = full.descriptor();
        assert_eq!(bytes[7], 20);
        assert_eq!(bytes[8..20], [0, 0x0a, 0x80, 0, 0, 0, 1, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[20..], [2, 6, 0, 0, 0xcf, 0, 1, 0]);
    }
}

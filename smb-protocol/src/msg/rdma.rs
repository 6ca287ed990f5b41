//! What READ and WRITE say of the client's memory (MS-SMB2 2.2.19, 2.2.21; MS-SMBD 2.2.3.1).

use nom::Parser;

use crate::{
    parse::{self, Input, u32, u64},
    wire::{Put, Result},
};

/// `SMB2_CHANNEL_NONE`: the data are in the message.
pub const CHANNEL_NONE: u32 = 0;
/// `SMB2_CHANNEL_RDMA_V1`: the data are where buffer descriptors say (3.0 and later).
pub const CHANNEL_RDMA_V1: u32 = 1;
/// `SMB2_CHANNEL_RDMA_V1_INVALIDATE`: likewise, and the answer takes the first descriptor's token
/// back (3.0.2 and later).
pub const CHANNEL_RDMA_V1_INVALIDATE: u32 = 2;

/// A part of the client's memory: `SMB_DIRECT_BUFFER_DESCRIPTOR_V1` (MS-SMBD 2.2.3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BufferDescriptor {
    /// Where its first byte is, in bytes, as the client's network card counts.
    pub offset: u64,
    /// The steering tag that names it to the client's network card.
    pub token: u32,
    /// How many bytes it has.
    pub length: u32,
}

impl BufferDescriptor {
    /// Bytes of one.
    pub const LEN: usize = 16;

    /// Reads an array of descriptors that fills `bytes`.
    ///
    /// # Errors
    /// The last one is cut short.
    pub fn parse_array(bytes: &[u8]) -> Result<Vec<Self>> {
        parse::with(Input::new(bytes), |mut input| {
            let mut all = Vec::with_capacity(bytes.len() / Self::LEN);
            while !input.is_empty() {
                let (rest, (offset, token, length)) =
                    (u64("descriptor.Offset"), u32("descriptor.Token"), u32("descriptor.Length"))
                        .parse(input)?;
                all.push(Self { offset, token, length });
                input = rest;
            }
            Ok((input, all))
        })
    }

    /// Appends it to an array.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_u64(self.offset);
        out.put_u32(self.token);
        out.put_u32(self.length);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_descriptor_of_the_specification_and_one_that_is_cut_short() {
        // MS-SMBD 4.2 and 4.3 describe one buffer of 1 MiB; the offset and the token are a card's.
        let bytes = [
            0x00, 0x10, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x78, 0x56, 0x34, 0x12, 0x00, 0x00,
            0x10, 0x00,
        ];
        let one = BufferDescriptor { offset: 0x1000, token: 0x1234_5678, length: 1 << 20 };
        assert_eq!(BufferDescriptor::parse_array(&bytes).unwrap(), [one]);
        assert_eq!(BufferDescriptor::parse_array(&bytes.repeat(3)).unwrap(), [one; 3]);
        assert_eq!(BufferDescriptor::parse_array(&[]).unwrap(), []);
        let mut again = Vec::new();
        one.encode(&mut again);
        assert_eq!(again, bytes);
        for cut in 1..bytes.len() {
            assert!(BufferDescriptor::parse_array(&bytes.repeat(2)[..16 + cut]).is_err());
        }
    }
}

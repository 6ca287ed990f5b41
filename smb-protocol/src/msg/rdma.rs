//! What READ and WRITE say of the client's memory (MS-SMB2 2.2.19, 2.2.21; MS-SMBD 2.2.3.1).

use nom::Parser;

use crate::{
    parse::{self, Input, array, bytes as bytes_of, region, size16, skip, such, u16, u32, u64},
    wire::{Put, Result, len16},
};

/// `SMB2_CHANNEL_NONE`: the data are in the message.
pub const CHANNEL_NONE: u32 = 0;
/// `SMB2_CHANNEL_RDMA_V1`: the data are where buffer descriptors say (3.0 and later).
pub const CHANNEL_RDMA_V1: u32 = 1;
/// `SMB2_CHANNEL_RDMA_V1_INVALIDATE`: likewise, and the answer takes the first descriptor's token
/// back (3.0.2 and later).
pub const CHANNEL_RDMA_V1_INVALIDATE: u32 = 2;

/// `SMB2_CHANNEL_RDMA_TRANSFORM`: of a WRITE, what stands there is a [`Transform`] (3.1.1).
pub const CHANNEL_RDMA_TRANSFORM: u32 = 3;

/// `SMB2_RDMA_TRANSFORM_NONE`: no transform is common.
pub const TRANSFORM_NONE: u16 = 0;
/// `SMB2_RDMA_TRANSFORM_ENCRYPTION`, and the type of a transform that encrypts.
pub const TRANSFORM_ENCRYPTION: u16 = 1;

/// Says how data that go by RDMA are encrypted: `SMB2_RDMA_TRANSFORM` with one
/// `SMB2_RDMA_CRYPTO_TRANSFORM` (MS-SMB2 2.2.43).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transform<'a> {
    /// How the descriptors behind it are meant; [`CHANNEL_NONE`] without any.
    pub channel: u32,
    /// The nonce, as long as the cipher has it.
    pub nonce: &'a [u8],
    /// The signature of the encrypted data.
    pub signature: [u8; 16],
    /// Buffer descriptors.
    pub descriptors: &'a [u8],
}

impl<'a> Transform<'a> {
    /// Bytes of a signature.
    const SIGNATURE: usize = 16;
    /// Bytes before the signature: both structures' fixed parts.
    const HEAD: usize = 16 + 8;

    /// Reads one that fills `bytes`.
    ///
    /// # Errors
    /// It is cut short, has none or more than one transform, one of another type than encryption, or
    /// descriptors at another place than behind it.
    pub fn parse(bytes: &'a [u8]) -> Result<Self> {
        parse::with(Input::new(bytes), |input| {
            let (i, (offset, length, channel, _, ())) = (
                size16("transform.RdmaDescriptorOffset"),
                size16("transform.RdmaDescriptorLength"),
                u32("transform.Channel"),
                such(u16, "transform.TransformCount", |count| count == 1),
                skip(6, "transform.Reserved"),
            )
                .parse(input)?;
            let (i, (_, _, nonce_len, ())) = (
                such(u16, "transform.TransformType", |kind| kind == TRANSFORM_ENCRYPTION),
                such(u16, "transform.SignatureLength", |len| len == 16),
                size16("transform.NonceLength"),
                skip(2, "transform.Reserved"),
            )
                .parse(i)?;
            let (i, signature) = array("transform.Signature")(i)?;
            let (_, nonce) = bytes_of(nonce_len, "transform.Nonce")(i)?;
            let descriptors = match channel {
                CHANNEL_NONE => &[],
                _ if offset != Self::len(nonce_len) => {
                    return Err(input.impossible("transform.RdmaDescriptorOffset", offset as u64));
                }
                _ => region(input, offset, length, "transform.RdmaDescriptors")?.bytes(),
            };
            Ok((i, Self { channel, nonce, signature, descriptors }))
        })
    }

    /// Bytes of both structures with padding, with a nonce of so many bytes.
    const fn len(nonce: usize) -> usize {
        (Self::HEAD + Self::SIGNATURE + nonce).next_multiple_of(8)
    }

    /// Appends both structures and the descriptors.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        let none = self.channel == CHANNEL_NONE;
        let len = Self::len(self.nonce.len());
        out.put_u16(if none { 0 } else { len16(len) });
        out.put_u16(if none { 0 } else { len16(self.descriptors.len()) });
        out.put_u32(self.channel);
        out.put_u16(1);
        out.put_u16(0);
        out.put_u32(0);
        out.put_u16(TRANSFORM_ENCRYPTION);
        out.put_u16(len16(Self::SIGNATURE));
        out.put_u16(len16(self.nonce.len()));
        out.put_u16(0);
        out.put(&self.signature);
        out.put(self.nonce);
        out.resize(start + len, 0);
        if !none {
            out.put(self.descriptors);
        }
    }
}

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
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// What is written is read again, and no harm to it is taken for something else.
        #[test]
        fn transforms_come_back(nonce in prop::collection::vec(any::<u8>(), 11..=12), channel in 0u32..3,
                                signature: [u8; 16], count in 1usize..4, cut in any::<prop::sample::Index>()) {
            let list = vec![7; if channel == 0 { 0 } else { BufferDescriptor::LEN * count }];
            let transform = Transform { channel, nonce: &nonce, signature, descriptors: &list };
            let mut bytes = Vec::new();
            transform.encode(&mut bytes);
            // 16 and 24 bytes of structures, the nonce, and padding to a multiple of 8.
            prop_assert_eq!(bytes.len(), 56 + list.len());
            prop_assert_eq!(Transform::parse(&bytes), Ok(transform));
            let cut = cut.index(40 + nonce.len());
            prop_assert!(Transform::parse(&bytes[..cut]).is_err());
            for (at, wrong) in [(8, 0), (8, 2), (16, 2), (18, 15), (18, 17)] {
                let mut harmed = bytes.clone();
                harmed[at] = wrong;
                prop_assert!(Transform::parse(&harmed).is_err(), "byte {}", at);
            }
        }
    }

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

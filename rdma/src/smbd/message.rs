//! The three messages of MS-SMBD 2.2.

use nom::{
    IResult, Parser,
    number::complete::{le_u16, le_u32},
};

/// The only version there is (MS-SMBD 1.7).
pub const VERSION: u16 = 0x0100;
/// `SMB_DIRECT_RESPONSE_REQUESTED`: the receiver is to say something soon.
pub const RESPONSE_REQUESTED: u16 = 0x0001;
/// `STATUS_NOT_SUPPORTED` (MS-ERREF 2.3): no version is common.
pub const STATUS_NOT_SUPPORTED: u32 = 0xc000_00bb;

/// Where the data of a message begin that have been sent from here.
pub const DATA_OFFSET: usize = 24;

/// A message that its receiver must not go on with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// It ends inside its fixed part.
    #[error("a message of {0} bytes is cut short")]
    Short(usize),
    /// A field has a value that cannot be there.
    #[error("{0} cannot be {1}")]
    Field(&'static str, u64),
}

fn whole<'a, T>(
    bytes: &'a [u8],
    mut parser: impl Parser<&'a [u8], Output = T, Error = nom::error::Error<&'a [u8]>>,
) -> Result<T, Malformed> {
    let parsed: IResult<&'a [u8], T> = parser.parse(bytes);
    parsed.map(|(_, value)| value).map_err(|_| Malformed::Short(bytes.len()))
}

/// The first message of whoever connected (MS-SMBD 2.2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NegotiateRequest {
    /// The oldest version that the sender knows.
    pub min_version: u16,
    /// The newest version that the sender knows.
    pub max_version: u16,
    /// Credits that it would like.
    pub credits_requested: u16,
    /// The longest message that it would like to send, in bytes.
    pub preferred_send_size: u32,
    /// The longest message that it receives, in bytes.
    pub max_receive_size: u32,
    /// Most bytes of fragments that it puts together.
    pub max_fragmented_size: u32,
}

impl NegotiateRequest {
    /// Reads one; bytes behind it are nobody's.
    ///
    /// # Errors
    /// It is shorter than 20 bytes.
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let fields = (le_u16, le_u16, le_u16, le_u16, le_u32, le_u32, le_u32);
        let (min_version, max_version, _, credits_requested, preferred, receive, fragmented) =
            whole(bytes, fields)?;
        Ok(Self {
            min_version,
            max_version,
            credits_requested,
            preferred_send_size: preferred,
            max_receive_size: receive,
            max_fragmented_size: fragmented,
        })
    }

    /// Its bytes on the wire.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(20);
        for field in [self.min_version, self.max_version, 0, self.credits_requested] {
            out.extend(field.to_le_bytes());
        }
        for field in [self.preferred_send_size, self.max_receive_size, self.max_fragmented_size] {
            out.extend(field.to_le_bytes());
        }
        out
    }
}

/// What it is answered with (MS-SMBD 2.2.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NegotiateResponse {
    /// The oldest version that the sender knows.
    pub min_version: u16,
    /// The newest version that the sender knows.
    pub max_version: u16,
    /// The version of this connection.
    pub negotiated_version: u16,
    /// Credits that the sender would like.
    pub credits_requested: u16,
    /// Credits that the receiver has.
    pub credits_granted: u16,
    /// An NTSTATUS: 0 if the connection is made.
    pub status: u32,
    /// Most bytes that the sender moves by RDMA for one request.
    pub max_read_write_size: u32,
    /// The longest message that it sends, in bytes.
    pub preferred_send_size: u32,
    /// The longest message that it receives, in bytes.
    pub max_receive_size: u32,
    /// Most bytes of fragments that it puts together.
    pub max_fragmented_size: u32,
}

impl NegotiateResponse {
    /// Reads one; bytes behind it are nobody's.
    ///
    /// # Errors
    /// It is shorter than 32 bytes.
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let head = (le_u16, le_u16, le_u16, le_u16, le_u16, le_u16);
        let sizes = (le_u32, le_u32, le_u32, le_u32, le_u32);
        let ((min, max, version, _, requested, granted), (status, rw, preferred, receive, all)) =
            whole(bytes, (head, sizes))?;
        Ok(Self {
            min_version: min,
            max_version: max,
            negotiated_version: version,
            credits_requested: requested,
            credits_granted: granted,
            status,
            max_read_write_size: rw,
            preferred_send_size: preferred,
            max_receive_size: receive,
            max_fragmented_size: all,
        })
    }

    /// Its bytes on the wire.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(32);
        let (version, granted) = (self.negotiated_version, self.credits_granted);
        let head =
            [self.min_version, self.max_version, version, 0, self.credits_requested, granted];
        head.iter().for_each(|field| out.extend(field.to_le_bytes()));
        let sizes = [self.status, self.max_read_write_size, self.preferred_send_size];
        let sizes = sizes.into_iter().chain([self.max_receive_size, self.max_fragmented_size]);
        sizes.for_each(|field| out.extend(field.to_le_bytes()));
        out
    }
}

/// The head of a Data Transfer message (MS-SMBD 2.2.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Data {
    /// All credits that the sender would like to have.
    pub credits_requested: u16,
    /// Credits that the receiver has now beyond those it had.
    pub credits_granted: u16,
    /// [`RESPONSE_REQUESTED`] or nothing.
    pub flags: u16,
    /// Bytes of the upper layer's message that come in later messages.
    pub remaining: u32,
    /// Where the data begin in the message; 0 if there are none.
    pub offset: u32,
    /// Bytes of data in this message.
    pub length: u32,
}

impl Data {
    /// Bytes of its fixed part.
    pub const LEN: usize = 20;

    /// Reads one and checks what 3.1.5.8 says, but for what depends on the connection.
    ///
    /// # Errors
    /// It is shorter than 20 bytes, asks for no credits, or its data are not inside it, not aligned,
    /// or in its fixed part; or it carries nothing of a message and says that more is to come.
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let fields = (le_u16, le_u16, le_u16, le_u16, le_u32, le_u32, le_u32);
        let (credits_requested, credits_granted, flags, _, remaining, offset, length) =
            whole(bytes, fields)?;
        if credits_requested == 0 {
            return Err(Malformed::Field("CreditsRequested", 0));
        }
        let end = u64::from(offset) + u64::from(length);
        let overlaps = length > 0 && (offset as usize) < Self::LEN;
        if !offset.is_multiple_of(8) || overlaps {
            return Err(Malformed::Field("DataOffset", offset.into()));
        }
        if end > bytes.len() as u64 {
            return Err(Malformed::Field("DataLength", length.into()));
        }
        if length == 0 && remaining > 0 {
            return Err(Malformed::Field("RemainingDataLength", remaining.into()));
        }
        Ok(Self { credits_requested, credits_granted, flags, remaining, offset, length })
    }

    /// Its bytes on the wire up to the data, with the padding before them if there are any.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(DATA_OFFSET);
        for field in [self.credits_requested, self.credits_granted, self.flags, 0] {
            out.extend(field.to_le_bytes());
        }
        for field in [self.remaining, self.offset, self.length] {
            out.extend(field.to_le_bytes());
        }
        if self.length > 0 {
            out.resize(DATA_OFFSET, 0);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_exchange_of_the_specification() {
        // MS-SMBD 4.1.
        let request =
            [0x00, 0x01, 0x00, 0x01, 0, 0, 0x0a, 0, 0x00, 0x04, 0, 0, 0x00, 0x04, 0, 0, 0, 0, 2, 0];
        let value = NegotiateRequest {
            min_version: VERSION,
            max_version: VERSION,
            credits_requested: 10,
            preferred_send_size: 1024,
            max_receive_size: 1024,
            max_fragmented_size: 131_072,
        };
        assert_eq!(NegotiateRequest::parse(&request), Ok(value));
        assert_eq!(value.encode(), request);
        let response = [
            0x00, 0x01, 0x00, 0x01, 0x00, 0x01, 0, 0, 0x0a, 0, 0x0a, 0, 0, 0, 0, 0, 0, 0, 0x10, 0,
            0x00, 0x04, 0, 0, 0x00, 0x04, 0, 0, 0, 0, 2, 0,
        ];
        let value = NegotiateResponse {
            min_version: VERSION,
            max_version: VERSION,
            negotiated_version: VERSION,
            credits_requested: 10,
            credits_granted: 10,
            status: 0,
            max_read_write_size: 1 << 20,
            preferred_send_size: 1024,
            max_receive_size: 1024,
            max_fragmented_size: 131_072,
        };
        assert_eq!(NegotiateResponse::parse(&response), Ok(value));
        assert_eq!(value.encode(), response);
        for cut in 0..response.len() {
            assert_eq!(NegotiateResponse::parse(&response[..cut]), Err(Malformed::Short(cut)));
        }
        // MS-SMBD 4.2: 500 bytes of data, and one credit for the one that was used.
        let mut data = vec![
            0x0a, 0, 0x01, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x18, 0, 0, 0, 0xf4, 0x01, 0, 0, 0, 0, 0, 0,
        ];
        let value = Data {
            credits_requested: 10,
            credits_granted: 1,
            flags: 0,
            remaining: 0,
            offset: 24,
            length: 500,
        };
        assert_eq!(value.encode(), data);
        data.resize(524, 7);
        assert_eq!(Data::parse(&data), Ok(value));
        assert_eq!(Data::parse(&data[..523]), Err(Malformed::Field("DataLength", 500)));
    }

    proptest! {
        /// What is written is read again, and what is wrong is found by whoever reads it.
        #[test]
        fn data_messages_come_back(requested: u16, granted: u16, flags: u16, remaining: u32,
                                   offset in 0u32..64, length in 0u32..64, room in 0usize..128) {
            let value = Data { credits_requested: requested, credits_granted: granted, flags,
                               remaining, offset, length };
            let mut bytes = value.encode();
            bytes.resize(room.max(Data::LEN), 0);
            let good = requested > 0 && offset % 8 == 0 && (length == 0 || offset >= 20)
                && (offset + length) as usize <= bytes.len() && (length > 0 || remaining == 0);
            prop_assert_eq!(Data::parse(&bytes).ok(), good.then_some(value));
        }
    }
}

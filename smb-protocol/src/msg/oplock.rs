//! OPLOCK_BREAK: notification, acknowledgement and response of oplocks have one shape
//! (MS-SMB2 2.2.23.1, 2.2.24.1, 2.2.25.1), those of leases others (2.2.23.2, 2.2.24.2, 2.2.25.2).

use nom::Parser;

use crate::{
    header::{body, file_id},
    ids::FileId,
    open_enum,
    parse::{self, Input, Parsed, array, skip, u8, u16, u32},
    wire::{Put, Result},
};

open_enum! {
    /// `OplockLevel`.
    OplockLevel: u8 {
        /// No caching.
        NONE = 0,
        /// Read caching, shared.
        II = 1,
        /// Read and write caching.
        EXCLUSIVE = 8,
        /// Exclusive and handle caching.
        BATCH = 9,
        /// A lease is asked for in a create context.
        LEASE = 0xff,
    }
}

/// Oplock break of an open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OplockBreak {
    /// The level to go down to, or gone down to.
    pub level: OplockLevel,
    /// The open.
    pub file_id: FileId,
}

impl OplockBreak {
    /// Appends the body of an oplock break to a message that ends with its header.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_u16(24);
        out.put_u8(self.level.0);
        out.put_zeros(5);
        out.put(&self.file_id.to_bytes());
    }
}

/// Lease break acknowledgement and its response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LeaseAck {
    /// The lease.
    pub key: [u8; 16],
    /// The state gone down to.
    pub state: u32,
}

impl LeaseAck {
    /// Appends the body of an acknowledgement to a message that ends with its header.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_u16(36);
        out.put_zeros(6);
        out.put(&self.key);
        out.put_u32(self.state);
        out.put_u64(0);
    }
}

/// Lease break notification: the server takes back what a client may cache (MS-SMB2 2.2.23.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LeaseBreak {
    /// Epoch of leases v2.
    pub epoch: u16,
    /// 1 when an acknowledgement is awaited.
    pub flags: u32,
    /// The lease.
    pub key: [u8; 16],
    /// State until now.
    pub current: u32,
    /// State to go down to.
    pub new: u32,
}

impl LeaseBreak {
    /// Appends the body of a notification to a message that ends with its header.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_u16(44);
        out.put_u16(self.epoch);
        out.put_u32(self.flags);
        out.put(&self.key);
        out.put_u32(self.current);
        out.put_u32(self.new);
        out.put_zeros(12);
    }
}

fn oplock_break(input: Input<'_>) -> Parsed<'_, OplockBreak> {
    (
        u8("oplock_break.OplockLevel").map(OplockLevel),
        skip(5, "oplock_break.Reserved"),
        file_id("oplock_break.FileId"),
    )
        .map(|(level, (), file_id)| OplockBreak { level, file_id })
        .parse(input)
}

fn lease_ack(input: Input<'_>) -> Parsed<'_, LeaseAck> {
    (skip(6, "lease_break.Reserved"), array("lease_break.LeaseKey"), u32("lease_break.LeaseState"))
        .map(|((), key, state)| LeaseAck { key, state })
        .parse(input)
}

fn lease_break(input: Input<'_>) -> Parsed<'_, LeaseBreak> {
    (
        u16("lease_break.NewEpoch"),
        u32("lease_break.Flags"),
        array("lease_break.LeaseKey"),
        u32("lease_break.CurrentLeaseState"),
        u32("lease_break.NewLeaseState"),
    )
        .map(|(epoch, flags, key, current, new)| LeaseBreak { epoch, flags, key, current, new })
        .parse(input)
}

/// A body of command OPLOCK_BREAK, told apart by its structure size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message {
    /// Oplock notification, acknowledgement or response.
    Oplock(OplockBreak),
    /// Lease acknowledgement or response.
    LeaseAck(LeaseAck),
    /// Lease notification.
    LeaseBreak(LeaseBreak),
}

impl Message {
    /// Appends the body, whichever it is, to a message that ends with its header.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Message::Oplock(message) => message.encode(out),
            Message::LeaseAck(message) => message.encode(out),
            Message::LeaseBreak(message) => message.encode(out),
        }
    }

    /// Reads the body of any of the three, which starts behind the message's header.
    ///
    /// # Errors
    /// The body ends within a field, or is of a structure that no such message has.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        parse::with(body(bytes), |input| match u16("oplock_break.StructureSize")(input)? {
            (i, 24) => oplock_break.map(Message::Oplock).parse(i),
            (i, 36) => lease_ack.map(Message::LeaseAck).parse(i),
            (i, 44) => lease_break.map(Message::LeaseBreak).parse(i),
            (_, other) => Err(input.impossible("oplock_break.StructureSize", other)),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message() -> impl Strategy<Value = Message> {
        prop_oneof![
            (any::<u8>(), any::<[u64; 2]>()).prop_map(|(level, id)| {
                let file_id = FileId { persistent: id[0], volatile: id[1] };
                Message::Oplock(OplockBreak { level: OplockLevel(level), file_id })
            }),
            (any::<[u8; 16]>(), any::<u32>())
                .prop_map(|(key, state)| Message::LeaseAck(LeaseAck { key, state })),
            (any::<u16>(), any::<u32>(), any::<[u8; 16]>(), any::<[u32; 2]>()).prop_map(
                |(epoch, flags, key, [current, new])| {
                    Message::LeaseBreak(LeaseBreak { epoch, flags, key, current, new })
                }
            ),
        ]
    }

    proptest! {
        /// The shapes differ in their structure size, which is the length on the wire.
        #[test]
        fn messages_round_trip(message in message()) {
            let mut body = Vec::new();
            message.encode(&mut body);
            prop_assert_eq!(body.len(), usize::from(u16::from_le_bytes([body[0], body[1]])));
            prop_assert_eq!(Message::parse(&body).unwrap(), message);
        }

        #[test]
        fn parsing_is_total(
            mut body in prop::collection::vec(any::<u8>(), 0..60),
            size in prop::sample::select(vec![24u8, 36, 44, 25]),
        ) {
            if let [first, second, ..] = &mut body[..] {
                (*first, *second) = (size, 0);
            }
            if let Ok(message) = Message::parse(&body) {
                prop_assert_ne!(size, 25);
                let mut again = Vec::new();
                message.encode(&mut again);
                prop_assert_eq!(Message::parse(&again).unwrap(), message);
            }
        }
    }
}

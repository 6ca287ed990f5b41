//! The 64-byte header of every SMB 2 message (MS-SMB2 2.2.1) and the frame around it (2.1).

use crate::{
    FileId, MessageId, NtStatus, SessionId, TreeId, flag_set, open_enum,
    parse::{Input, Parsed, array},
    wire::{Put, Result, WireError},
};

/// Length of the header in bytes.
pub const HEADER_LEN: usize = 64;
/// Length of the direct-TCP frame prefix: a zero byte and a 24-bit big-endian length.
pub const FRAME_LEN: usize = 4;
/// `ProtocolId` of a plain SMB 2 message.
pub const PROTOCOL_SMB2: [u8; 4] = [0xfe, b'S', b'M', b'B'];
/// `ProtocolId` of an SMB 1 message.
pub const PROTOCOL_SMB1: [u8; 4] = [0xff, b'S', b'M', b'B'];
/// `ProtocolId` of an encrypted message (MS-SMB2 2.2.41).
pub const PROTOCOL_TRANSFORM: [u8; 4] = [0xfd, b'S', b'M', b'B'];
/// `ProtocolId` of a compressed message (MS-SMB2 2.2.42).
pub const PROTOCOL_COMPRESSED: [u8; 4] = [0xfc, b'S', b'M', b'B'];

open_enum! {
    /// `Command` (MS-SMB2 2.2.1).
    Command: u16 {
        /// Agree on a dialect.
        NEGOTIATE = 0,
        /// Authenticate.
        SESSION_SETUP = 1,
        /// End a session.
        LOGOFF = 2,
        /// Connect to a share.
        TREE_CONNECT = 3,
        /// Leave a share.
        TREE_DISCONNECT = 4,
        /// Open or create.
        CREATE = 5,
        /// Close an open.
        CLOSE = 6,
        /// Make writes durable.
        FLUSH = 7,
        /// Read from an open.
        READ = 8,
        /// Write to an open.
        WRITE = 9,
        /// Lock and unlock byte ranges.
        LOCK = 10,
        /// File-system and device controls.
        IOCTL = 11,
        /// Abandon a request.
        CANCEL = 12,
        /// Keep-alive.
        ECHO = 13,
        /// List a directory.
        QUERY_DIRECTORY = 14,
        /// Wait for a change in a directory.
        CHANGE_NOTIFY = 15,
        /// Ask for information.
        QUERY_INFO = 16,
        /// Change information.
        SET_INFO = 17,
        /// Oplock and lease breaks.
        OPLOCK_BREAK = 18,
    }
}

flag_set! {
    /// `Flags` (MS-SMB2 2.2.1).
    HeaderFlags: u32 {
        /// The message is a response.
        RESPONSE = 0x1,
        /// The header carries an `AsyncId` in place of reserved and `TreeId`.
        ASYNC = 0x2,
        /// The request belongs to the one before it in the compound.
        RELATED = 0x4,
        /// The message is signed.
        SIGNED = 0x8,
        /// Priority bits of 3.1.1.
        PRIORITY_MASK = 0x70,
        /// DFS path.
        DFS = 0x1000_0000,
        /// The request is a replay of an earlier one.
        REPLAY = 0x2000_0000,
    }
}

open_enum! {
    /// Dialect revision (MS-SMB2 2.2.3).
    Dialect: u16 {
        /// SMB 2.0.2.
        SMB_2_0_2 = 0x0202,
        /// SMB 2.1.
        SMB_2_1 = 0x0210,
        /// Multi-protocol answer to an SMB 1 negotiate: "send an SMB 2 negotiate".
        WILDCARD = 0x02ff,
        /// SMB 3.0.
        SMB_3_0 = 0x0300,
        /// SMB 3.0.2.
        SMB_3_0_2 = 0x0302,
        /// SMB 3.1.1.
        SMB_3_1_1 = 0x0311,
    }
}

impl Command {
    /// Whether there is such a command.
    pub fn is_known(self) -> bool {
        self <= Self::OPLOCK_BREAK
    }
}

impl Dialect {
    /// Whether this is any 3.x dialect.
    pub fn is_smb3(self) -> bool {
        (0x0300..=0x0311).contains(&self.0)
    }
}

/// The header of one message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Header {
    /// How many credits the request consumes.
    pub credit_charge: u16,
    /// In responses the status; in 3.x requests the low 16 bits are the `ChannelSequence`.
    pub status: NtStatus,
    /// What the message is about.
    pub command: Command,
    /// Credits asked for (request) or granted (response).
    pub credits: u16,
    /// Flags.
    pub flags: HeaderFlags,
    /// Distance to the next message of the compound, 0 in the last.
    pub next_command: u32,
    /// Sequence number.
    pub message_id: MessageId,
    /// `AsyncId` when [`HeaderFlags::ASYNC`] is set, else reserved (low half) and tree (high).
    pub async_or_tree: u64,
    /// Session.
    pub session_id: SessionId,
    /// Signature, zeros when not signed.
    pub signature: [u8; 16],
}

impl Header {
    /// Where NextCommand stands, for those who take a message out of a compound.
    pub const NEXT_COMMAND_AT: usize = 20;

    /// Reads a header, checking protocol id and structure size.
    ///
    /// # Errors
    /// The bytes are fewer than a header has, or are not those of a plain SMB 2 message.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        // Not by combinators: every message passes here, and fixed places take less time.
        let Some(bytes) = bytes.first_chunk::<HEADER_LEN>() else {
            let (need, have) = (HEADER_LEN, bytes.len());
            return Err(WireError::Short { field: "header", at: 0, need, have });
        };
        let protocol: [u8; 4] = field(bytes, 0);
        if protocol != PROTOCOL_SMB2 {
            let value = u32::from_le_bytes(protocol).into();
            return Err(WireError::Impossible { field: "header.ProtocolId", at: 0, value });
        }
        let size = u16::from_le_bytes(field(bytes, 4));
        if usize::from(size) != HEADER_LEN {
            let value = size.into();
            return Err(WireError::Impossible { field: "header.StructureSize", at: 4, value });
        }
        Ok(Self {
            credit_charge: u16::from_le_bytes(field(bytes, 6)),
            status: NtStatus(u32::from_le_bytes(field(bytes, 8))),
            command: Command(u16::from_le_bytes(field(bytes, 12))),
            credits: u16::from_le_bytes(field(bytes, 14)),
            flags: HeaderFlags(u32::from_le_bytes(field(bytes, 16))),
            next_command: u32::from_le_bytes(field(bytes, Self::NEXT_COMMAND_AT)),
            message_id: MessageId(u64::from_le_bytes(field(bytes, 24))),
            async_or_tree: u64::from_le_bytes(field(bytes, 32)),
            session_id: SessionId(u64::from_le_bytes(field(bytes, 40))),
            signature: field(bytes, 48),
        })
    }

    /// The 64 bytes on the wire.
    pub fn to_bytes(&self) -> [u8; HEADER_LEN] {
        let mut b = [0; HEADER_LEN];
        b[0..4].copy_from_slice(&PROTOCOL_SMB2);
        b[4..6].copy_from_slice(&64u16.to_le_bytes());
        b[6..8].copy_from_slice(&self.credit_charge.to_le_bytes());
        b[8..12].copy_from_slice(&self.status.0.to_le_bytes());
        b[12..14].copy_from_slice(&self.command.0.to_le_bytes());
        b[14..16].copy_from_slice(&self.credits.to_le_bytes());
        b[16..20].copy_from_slice(&self.flags.0.to_le_bytes());
        b[Self::NEXT_COMMAND_AT..24].copy_from_slice(&self.next_command.to_le_bytes());
        b[24..32].copy_from_slice(&self.message_id.0.to_le_bytes());
        b[32..40].copy_from_slice(&self.async_or_tree.to_le_bytes());
        b[40..48].copy_from_slice(&self.session_id.0.to_le_bytes());
        b[48..64].copy_from_slice(&self.signature);
        b
    }

    /// Appends the 64 bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put(&self.to_bytes());
    }

    /// The tree of a synchronous message.
    pub fn tree_id(&self) -> TreeId {
        TreeId((self.async_or_tree >> 32) as u32)
    }

    /// Names the tree of a synchronous message.
    pub fn set_tree_id(&mut self, tree: TreeId) {
        self.async_or_tree = u64::from(tree.0) << 32;
    }

    /// Whether the message is a response.
    pub fn is_response(&self) -> bool {
        self.flags.has(HeaderFlags::RESPONSE)
    }

    /// `ChannelSequence` of a 3.x request (MS-SMB2 2.2.1.2).
    pub fn channel_sequence(&self) -> u16 {
        self.status.0 as u16
    }
}

/// The frame prefix for a message of `len` bytes; `None` if it does not fit 24 bits.
pub fn frame_prefix(len: usize) -> Option<[u8; FRAME_LEN]> {
    let len = u32::try_from(len).ok().filter(|len| *len < 1 << 24)?;
    Some(len.to_be_bytes())
}

/// Length of the message that a frame prefix announces. The first byte must be 0 (a session
/// message).
///
/// # Errors
/// The first byte is another: the NetBIOS session service has such frames, SMB 2 has not.
pub fn frame_len(prefix: [u8; FRAME_LEN]) -> Result<usize> {
    match prefix[0] {
        0 => Ok(u32::from_be_bytes(prefix) as usize),
        other => Err(WireError::Impossible { field: "frame type", at: 0, value: other.into() }),
    }
}

/// The `N` bytes at a place of a header.
fn field<const N: usize>(header: &[u8; HEADER_LEN], at: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&header[at..at + N]);
    field
}

/// A message's body as parsers take it: its offsets count from the header in front of it.
pub(crate) fn body(bytes: &[u8]) -> Input<'_> {
    Input::placed(bytes, HEADER_LEN)
}

/// Reads a file id field.
pub(crate) fn file_id<'a>(field: &'static str) -> impl Fn(Input<'a>) -> Parsed<'a, FileId> {
    move |input| array(field)(input).map(|(rest, bytes)| (rest, FileId::from_bytes(bytes)))
}

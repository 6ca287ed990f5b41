//! What the parsers that every request passes cost beside a cursor that reads field by field:
//! `cargo bench -p smb-protocol --bench hot_parsers`. Both read the same messages in turns; the best
//! of many rounds counts, so that other work of the machine does not.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use smb_protocol::{
    FileId, Header,
    msg::{read, write},
};

/// The cursor: the same fields, checks and errors without combinators.
mod cursor {
    use smb_protocol::{
        Command, FileId, Header, HeaderFlags, MessageId, NtStatus, SessionId,
        header::{HEADER_LEN, PROTOCOL_SMB2},
        msg::{read, write},
        wire::{Result, WireError},
    };

    struct Reader<'a> {
        all: &'a [u8],
        at: usize,
    }

    impl<'a> Reader<'a> {
        fn bytes(&mut self, n: usize, field: &'static str) -> Result<&'a [u8]> {
            let rest = &self.all[self.at..];
            match rest.get(..n) {
                Some(taken) => {
                    self.at += n;
                    Ok(taken)
                }
                None => Err(WireError::Short { field, at: self.at, need: n, have: rest.len() }),
            }
        }

        fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N]> {
            let mut array = [0; N];
            array.copy_from_slice(self.bytes(N, field)?);
            Ok(array)
        }

        fn u8(&mut self, field: &'static str) -> Result<u8> {
            Ok(self.array::<1>(field)?[0])
        }

        fn u16(&mut self, field: &'static str) -> Result<u16> {
            Ok(u16::from_le_bytes(self.array(field)?))
        }

        fn u32(&mut self, field: &'static str) -> Result<u32> {
            Ok(u32::from_le_bytes(self.array(field)?))
        }

        fn u64(&mut self, field: &'static str) -> Result<u64> {
            Ok(u64::from_le_bytes(self.array(field)?))
        }

        fn structure_size(&mut self, expected: u16, field: &'static str) -> Result<()> {
            match self.u16(field)? {
                size if size == expected => Ok(()),
                other => Err(WireError::Value { field, value: other.into() }),
            }
        }

        fn region(&self, offset: usize, len: usize, field: &'static str) -> Result<&'a [u8]> {
            if len == 0 {
                return Ok(&[]);
            }
            let start = offset.checked_sub(HEADER_LEN);
            let bytes = start.and_then(|start| self.all.get(start..start.checked_add(len)?));
            bytes.ok_or(WireError::Outside { field, offset, len, have: self.all.len() })
        }
    }

    #[inline(never)]
    pub fn header(bytes: &[u8]) -> Result<Header> {
        let mut r = Reader { all: bytes, at: 0 };
        let protocol: [u8; 4] = r.array("header.ProtocolId")?;
        if protocol != PROTOCOL_SMB2 {
            let value = u32::from_le_bytes(protocol).into();
            return Err(WireError::Value { field: "header.ProtocolId", value });
        }
        r.structure_size(64, "header.StructureSize")?;
        Ok(Header {
            credit_charge: r.u16("header.CreditCharge")?,
            status: NtStatus(r.u32("header.Status")?),
            command: Command(r.u16("header.Command")?),
            credits: r.u16("header.Credit")?,
            flags: HeaderFlags(r.u32("header.Flags")?),
            next_command: r.u32("header.NextCommand")?,
            message_id: MessageId(r.u64("header.MessageId")?),
            async_or_tree: r.u64("header.TreeId")?,
            session_id: SessionId(r.u64("header.SessionId")?),
            signature: r.array("header.Signature")?,
        })
    }

    #[inline(never)]
    pub fn read(body: &[u8]) -> Result<read::Request<'_>> {
        let mut r = Reader { all: body, at: 0 };
        r.structure_size(49, "read.StructureSize")?;
        let padding = r.u8("read.Padding")?;
        let flags = r.u8("read.Flags")?;
        let length = r.u32("read.Length")?;
        let offset = r.u64("read.Offset")?;
        let file_id = FileId::from_bytes(r.array("read.FileId")?);
        let minimum_count = r.u32("read.MinimumCount")?;
        let channel = r.u32("read.Channel")?;
        let remaining = r.u32("read.RemainingBytes")?;
        let info_offset = r.u16("read.ReadChannelInfoOffset")?.into();
        let info_len = r.u16("read.ReadChannelInfoLength")?.into();
        let channel_info = r.region(info_offset, info_len, "read.Buffer")?;
        Ok(read::Request {
            padding,
            flags,
            length,
            offset,
            file_id,
            minimum_count,
            channel,
            remaining,
            channel_info,
        })
    }

    #[inline(never)]
    pub fn write(body: &[u8]) -> Result<write::Request<'_>> {
        let mut r = Reader { all: body, at: 0 };
        r.structure_size(49, "write.StructureSize")?;
        let data_offset = r.u16("write.DataOffset")?.into();
        let length = r.u32("write.Length")?;
        let offset = r.u64("write.Offset")?;
        let file_id = FileId::from_bytes(r.array("write.FileId")?);
        let channel = r.u32("write.Channel")?;
        let remaining = r.u32("write.RemainingBytes")?;
        let info_offset = r.u16("write.WriteChannelInfoOffset")?.into();
        let info_len = r.u16("write.WriteChannelInfoLength")?.into();
        let flags = r.u32("write.Flags")?;
        let channel_info = r.region(info_offset, info_len, "write.ChannelInfo")?;
        let data = r.region(data_offset, length as usize, "write.Buffer")?;
        Ok(write::Request {
            offset,
            file_id,
            channel,
            remaining,
            flags,
            length,
            data,
            channel_info,
        })
    }
}

/// What the crate does, behind a call as the cursor is.
mod own {
    use super::{Header, read, write};
    use smb_protocol::wire::Result;

    #[inline(never)]
    pub fn header(bytes: &[u8]) -> Result<Header> {
        Header::parse(bytes)
    }

    #[inline(never)]
    pub fn read(body: &[u8]) -> Result<read::Request<'_>> {
        read::Request::parse(body)
    }

    #[inline(never)]
    pub fn write(body: &[u8]) -> Result<write::Request<'_>> {
        write::Request::parse(body)
    }
}

/// The header as combinators would read it.
mod combinators {
    use nom::Parser;
    use smb_protocol::{
        Command, Header, HeaderFlags, MessageId, NtStatus, SessionId,
        header::PROTOCOL_SMB2,
        parse::{self, Input, Parsed, array, structure_size, u16, u32, u64},
        wire::Result,
    };

    /// Reads the `ProtocolId` of a plain message.
    fn protocol(input: Input<'_>) -> Parsed<'_, ()> {
        const FIELD: &str = "header.ProtocolId";
        match array(FIELD)(input)? {
            (rest, PROTOCOL_SMB2) => Ok((rest, ())),
            (_, other) => Err(input.impossible(FIELD, u32::from_le_bytes(other))),
        }
    }

    #[inline(never)]
    pub fn header(bytes: &[u8]) -> Result<Header> {
        let fields = (
            protocol,
            structure_size(64, "header.StructureSize"),
            u16("header.CreditCharge"),
            u32("header.Status"),
            u16("header.Command"),
            u16("header.Credit"),
            u32("header.Flags"),
            u32("header.NextCommand"),
            u64("header.MessageId"),
            u64("header.TreeId"),
            u64("header.SessionId"),
            array("header.Signature"),
        );
        let header = fields.map(
            |(
                _,
                _,
                charge,
                status,
                command,
                credits,
                flags,
                next,
                message,
                tree,
                session,
                signature,
            )| {
                Header {
                    credit_charge: charge,
                    status: NtStatus(status),
                    command: Command(command),
                    credits,
                    flags: HeaderFlags(flags),
                    next_command: next,
                    message_id: MessageId(message),
                    async_or_tree: tree,
                    session_id: SessionId(session),
                    signature,
                }
            },
        );
        parse::run(Input::new(bytes), header)
    }
}

const ROUNDS: usize = 400;
const MESSAGES: u32 = 20_000;

fn round<'a, T>(message: &'a [u8], parser: fn(&'a [u8]) -> T) -> Duration {
    let start = Instant::now();
    for _ in 0..MESSAGES {
        black_box(parser(black_box(message)));
    }
    start.elapsed()
}

fn compare<'a, T>(name: &str, message: &'a [u8], old: fn(&'a [u8]) -> T, new: fn(&'a [u8]) -> T) {
    let (mut before, mut now) = (Duration::MAX, Duration::MAX);
    for _ in 0..ROUNDS {
        before = before.min(round(message, old));
        now = now.min(round(message, new));
    }
    let each = |time: Duration| time.as_secs_f64() * 1e9 / f64::from(MESSAGES);
    let (before, now) = (each(before), each(now));
    let more = (now / before - 1.0) * 100.0;
    println!("{name:32} cursor {before:6.2} ns, this {now:6.2} ns, {more:+5.1} %");
}

fn main() {
    let file_id = FileId { persistent: 7, volatile: 9 };
    let header = Header { credit_charge: 1, ..Header::default() }.to_bytes();
    compare("header, by combinators", &header, cursor::header, combinators::header);
    compare("header, as it is read", &header, cursor::header, own::header);
    let mut body = Vec::new();
    read::Request { length: 65_536, offset: 1 << 20, file_id, ..Default::default() }
        .encode(&mut body);
    compare("READ", &body, cursor::read, own::read);
    let data = vec![7; 65_536];
    let mut body = Vec::new();
    write::Request { offset: 1 << 20, file_id, data: &data, ..Default::default() }
        .encode(&mut body);
    compare("WRITE", &body, cursor::write, own::write);
}

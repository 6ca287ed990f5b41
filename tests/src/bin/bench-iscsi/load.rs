//! An initiator that keeps a number of commands under way on one connection, and sends together what
//! falls due together, as kernels do.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use bytes::BytesMut;
use iscsi::{
    pdu::{
        DataOut, Digests, Framer, LoginRequest, NO_TAG, NopOut, Pdu, RequestNumbers, ScsiCommand,
        frame,
    },
    text,
};

use crate::Outcome;

/// Bytes of a logical block.
const BLOCK: u32 = 512;

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    Read,
    Write,
}

/// A load of one session.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    pub lun: u8,
    pub access: Access,
    /// Bytes of a command.
    pub bytes: u32,
    /// Commands under way.
    pub depth: u32,
    /// Anywhere, or one after the other.
    pub random: bool,
    /// Digests of headers and data.
    pub digests: bool,
    /// Bytes of the disk.
    pub size: u64,
    pub time: Duration,
}

/// A session.
pub struct Session {
    stream: TcpStream,
    framer: Framer,
    input: BytesMut,
    /// What one call receives at most.
    room: Vec<u8>,
    output: Vec<u8>,
    cmd_sn: u32,
    exp_stat_sn: u32,
    max_cmd_sn: u32,
    /// Bytes of a write that go with the command.
    immediate: u32,
    /// Bytes of a data segment that the target takes.
    segment: u32,
    place: u64,
}

impl Session {
    /// Logs in to a target.
    pub fn log_in(at: SocketAddr, target: &str, number: u8, digests: bool) -> Outcome<Self> {
        let mut stream = TcpStream::connect(at)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        let digest = if digests { "CRC32C" } else { "None" };
        let pairs = [
            ("InitiatorName", "iqn.2024-01.example:bench"),
            ("TargetName", target),
            ("SessionType", "Normal"),
            ("HeaderDigest", digest),
            ("DataDigest", digest),
            ("InitialR2T", "No"),
            ("ImmediateData", "Yes"),
            ("MaxRecvDataSegmentLength", "262144"),
            ("MaxBurstLength", "1048576"),
            ("FirstBurstLength", "262144"),
            ("MaxOutstandingR2T", "1"),
        ];
        let request = LoginRequest {
            sn: RequestNumbers { immediate: true, cmd_sn: 1, exp_stat_sn: 0 },
            transit: true,
            more: false,
            current: 1,
            next: 3,
            version_max: 0,
            version_min: 0,
            isid: [0x80, 0, 0, 0, 1, number],
            tsih: 0,
            itt: 0,
            cid: 0,
        };
        let plain = Digests::default();
        let login = Pdu::LoginRequest(request).write();
        stream.write_all(&frame::write(login, &[], &text::write(pairs), plain))?;
        let framer = Framer { digests: plain, max_data: 1 << 24, max_ahs_words: 0 };
        let mut session = Self {
            stream,
            framer,
            input: BytesMut::new(),
            room: vec![0; 256 << 10],
            output: Vec::new(),
            cmd_sn: 1,
            exp_stat_sn: 0,
            max_cmd_sn: 1,
            immediate: 0,
            segment: 8192,
            place: 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(u64::from(number) + 1),
        };
        let (mut pdu, data) = session.wait()?;
        let answer = text::read(&data)?;
        let value = |key: &str| answer.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str());
        let Pdu::LoginResponse(response) = &pdu else { return Err("no login response".into()) };
        if response.status != 0 || !response.transit {
            return Err(format!("the login ended in {:#x}", response.status).into());
        }
        if (value("HeaderDigest"), value("DataDigest")) != (Some(digest), Some(digest)) && digests {
            return Err("the target has no digests".into());
        }
        session.framer.digests = Digests { header: digests, data: digests };
        let number =
            |key: &str, default: u32| value(key).and_then(|v| v.parse().ok()).unwrap_or(default);
        session.segment = number("MaxRecvDataSegmentLength", 8192);
        let first = number("FirstBurstLength", 65_536);
        session.immediate = match value("ImmediateData") {
            Some("No") => 0,
            _ => session.segment.min(first),
        };
        session.take_numbers(&mut pdu);
        session.cmd_sn = first_cmd_sn(&mut pdu);
        Ok(session)
    }

    fn take_numbers(&mut self, pdu: &mut Pdu) {
        let advances = match pdu {
            Pdu::DataIn(data) => data.status.is_some(),
            Pdu::R2t(_) => false,
            Pdu::NopIn(nop) => nop.itt != NO_TAG,
            _ => true,
        };
        if let Some(sn) = pdu.numbers() {
            if advances {
                self.exp_stat_sn = sn.stat_sn.wrapping_add(1);
            }
            self.max_cmd_sn = sn.max_cmd_sn;
        }
    }

    fn buffered(&mut self) -> Outcome<Option<(Pdu, bytes::Bytes)>> {
        let Some(frame) = self.framer.next(&mut self.input)? else { return Ok(None) };
        if !frame.intact {
            return Err("data do not match their digest".into());
        }
        Ok(Some((Pdu::read(&frame.basic)?, frame.data)))
    }

    fn fill(&mut self) -> Outcome<()> {
        let read = self.stream.read(&mut self.room)?;
        self.input.extend_from_slice(&self.room[..read]);
        if read == 0 { Err("the target closed the connection".into()) } else { Ok(()) }
    }

    fn wait(&mut self) -> Outcome<(Pdu, bytes::Bytes)> {
        loop {
            if let Some(found) = self.buffered()? {
                return Ok(found);
            }
            self.fill()?;
        }
    }

    fn command(&mut self, load: &Load, itt: u32, data: &[u8]) {
        let count = load.size / u64::from(load.bytes);
        let index = if load.random {
            self.place ^= self.place << 13;
            self.place ^= self.place >> 7;
            self.place ^= self.place << 17;
            self.place % count
        } else {
            self.place = self.place.wrapping_add(1);
            self.place % count
        };
        let block = (index * u64::from(load.bytes) / u64::from(BLOCK)) as u32;
        let mut cdb = [0; 16];
        cdb[0] = if load.access == Access::Write { 0x2a } else { 0x28 };
        cdb[2..6].copy_from_slice(&block.to_be_bytes());
        cdb[7..9].copy_from_slice(&((load.bytes / BLOCK) as u16).to_be_bytes());
        let write = load.access == Access::Write;
        let command = ScsiCommand {
            sn: RequestNumbers {
                immediate: false,
                cmd_sn: self.cmd_sn,
                exp_stat_sn: self.exp_stat_sn,
            },
            last: true,
            read: !write,
            write,
            attribute: 1,
            priority: 0,
            lun: [0, load.lun, 0, 0, 0, 0, 0, 0],
            itt,
            expected: load.bytes,
            cdb,
        };
        self.cmd_sn = self.cmd_sn.wrapping_add(1);
        let with = if write { &data[..self.immediate.min(load.bytes) as usize] } else { &[] };
        let pdu = Pdu::ScsiCommand(command).write();
        self.output.extend_from_slice(&frame::write(pdu, &[], with, self.framer.digests));
    }

    /// Commands that were done in all, and those of the time that counts: it begins when the target is
    /// warm.
    pub fn run(&mut self, load: &Load) -> Outcome<(u64, u64)> {
        let data = vec![0x5a; load.bytes as usize];
        let warm = Instant::now() + Duration::from_millis(300);
        let end = warm + load.time;
        let (mut all, mut done, mut under_way) = (0, 0, 0);
        let mut free = (1..=load.depth).collect::<Vec<_>>();
        loop {
            let now = Instant::now();
            while now < end
                && self.max_cmd_sn.wrapping_sub(self.cmd_sn).cast_signed() >= 0
                && let Some(itt) = free.pop()
            {
                self.command(load, itt, &data);
                under_way += 1;
            }
            if under_way == 0 {
                return Ok((all, done));
            }
            if !self.output.is_empty() {
                self.stream.write_all(&self.output)?;
                self.output.clear();
            }
            self.fill()?;
            while let Some((mut pdu, _)) = self.buffered()? {
                self.take_numbers(&mut pdu);
                let (itt, status) = match pdu {
                    Pdu::DataIn(it) => match it.status {
                        Some(status) => (it.itt, status),
                        None => continue,
                    },
                    Pdu::ScsiResponse(it) => (it.itt, it.status),
                    Pdu::R2t(ask) => {
                        self.give(&ask, &data);
                        continue;
                    }
                    Pdu::NopIn(nop) => {
                        self.pong(&nop);
                        continue;
                    }
                    other => return Err(format!("{other:?}").into()),
                };
                // A unit attention that waited is told to the first commands.
                if status != 0 && now >= warm {
                    return Err(format!("a command ended in status {status:#x}").into());
                }
                all += 1;
                done += u64::from(now >= warm && now < end);
                free.push(itt);
                under_way -= 1;
            }
        }
    }

    fn give(&mut self, ask: &iscsi::pdu::R2t, data: &[u8]) {
        let start = ask.offset as usize;
        let all = &data[start..start + ask.length as usize];
        let count = all.len().div_ceil(self.segment as usize);
        for (n, part) in all.chunks(self.segment as usize).enumerate() {
            let pdu = DataOut {
                last: n + 1 == count,
                lun: ask.lun,
                itt: ask.itt,
                ttt: ask.ttt,
                exp_stat_sn: self.exp_stat_sn,
                data_sn: n as u32,
                offset: ask.offset + n as u32 * self.segment,
            };
            let bytes = frame::write(Pdu::DataOut(pdu).write(), &[], part, self.framer.digests);
            self.output.extend_from_slice(&bytes);
        }
    }

    fn pong(&mut self, nop: &iscsi::pdu::NopIn) {
        if nop.ttt == NO_TAG {
            return;
        }
        let sn =
            RequestNumbers { immediate: true, cmd_sn: self.cmd_sn, exp_stat_sn: self.exp_stat_sn };
        let pong = Pdu::NopOut(NopOut { sn, lun: nop.lun, itt: NO_TAG, ttt: nop.ttt });
        self.output.extend_from_slice(&frame::write(pong.write(), &[], &[], self.framer.digests));
    }
}

fn first_cmd_sn(pdu: &mut Pdu) -> u32 {
    pdu.numbers().map_or(1, |sn| sn.exp_cmd_sn)
}

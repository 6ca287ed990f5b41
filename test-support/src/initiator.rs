//! A raw iSCSI initiator: it says what a test wants, right or wrong, and panics where the target does
//! not do what the test has a right to.

use std::{net::SocketAddr, time::Duration};

use bytes::{Bytes, BytesMut};
use iscsi::{
    pdu::{
        DataOut, Digests, Framer, LoginRequest, LoginResponse, LogoutRequest, NO_TAG, NopOut, Pdu,
        RequestNumbers, ScsiCommand, TaskRequest, frame,
    },
    text,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// The target of tests that do not name another.
pub const TARGET: &str = "iqn.2024-01.example:disk";
/// What a test waits for comes, or never will.
const PATIENCE: Duration = Duration::from_secs(30);

/// A connection to a target.
#[derive(Debug)]
pub struct Client {
    /// Its socket.
    pub stream: TcpStream,
    framer: Framer,
    input: BytesMut,
    /// CmdSN of the next command; connections of one session are told each other's.
    pub cmd_sn: u32,
    /// ExpStatSN.
    pub exp_stat_sn: u32,
    /// What the target answered to the keys of the login.
    pub agreed: Vec<(String, String)>,
    next_tag: u32,
}

/// Who logs in, and where.
#[derive(Debug, Clone, Copy)]
pub struct Who<'a> {
    /// InitiatorName.
    pub initiator: &'a str,
    /// TargetName.
    pub target: &'a str,
    /// The last byte of the ISID.
    pub isid: u8,
    /// 0 for a new session.
    pub tsih: u16,
    /// The connection's identifier in its session.
    pub cid: u16,
    /// Further keys.
    pub keys: &'a [(&'a str, &'a str)],
}

impl Default for Who<'_> {
    fn default() -> Self {
        Self { initiator: "iqn.me", target: TARGET, isid: 1, tsih: 0, cid: 0, keys: &[] }
    }
}

/// How a SCSI command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The SCSI status.
    pub status: u8,
    /// The sense data, without their length; empty if there are none.
    pub sense: Vec<u8>,
    /// The data-in.
    pub data: Vec<u8>,
}

impl Answer {
    /// Sense key, additional sense code and its qualifier, of fixed or descriptor format.
    pub fn sense_code(&self) -> Option<(u8, u8, u8)> {
        let s = &self.sense;
        match s.first()? & 0x7f {
            0x70 | 0x71 if s.len() >= 14 => Some((s[2] & 15, s[12], s[13])),
            0x72 | 0x73 if s.len() >= 4 => Some((s[1] & 15, s[2], s[3])),
            _ => None,
        }
    }
}

/// What a command moves.
#[derive(Debug, Clone, Copy)]
pub enum Moves<'a> {
    /// No data.
    Nothing,
    /// So many bytes to the initiator.
    In(u32),
    /// These bytes to the target.
    Out(&'a [u8]),
}

impl Client {
    /// Connects, and says nothing yet.
    pub async fn connect(at: SocketAddr) -> Self {
        let stream = TcpStream::connect(at).await.unwrap();
        let framer = Framer { digests: Digests::default(), max_data: 1 << 24, max_ahs_words: 0 };
        Self {
            stream,
            framer,
            input: BytesMut::new(),
            cmd_sn: 1,
            exp_stat_sn: 0,
            agreed: Vec::new(),
            next_tag: 0x1000,
        }
    }

    /// Logs in with one request.
    pub async fn log_in(at: SocketAddr, who: Who<'_>) -> (Self, LoginResponse) {
        let mut it = Self::connect(at).await;
        let response = it.ask_in(who).await;
        (it, response)
    }

    /// Sends one login request and takes its answer.
    pub async fn ask_in(&mut self, who: Who<'_>) -> LoginResponse {
        let request = LoginRequest {
            sn: RequestNumbers { immediate: true, cmd_sn: self.cmd_sn, exp_stat_sn: 0 },
            transit: true,
            more: false,
            current: 1,
            next: 3,
            version_max: 0,
            version_min: 0,
            isid: [0x80, 0, 0, 0, 0, who.isid],
            tsih: who.tsih,
            itt: 0,
            cid: who.cid,
        };
        let mut pairs = vec![("InitiatorName", who.initiator), ("TargetName", who.target)];
        pairs.extend_from_slice(who.keys);
        self.send(Pdu::LoginRequest(request), &text::write(pairs)).await;
        let (pdu, data) = self.next().await.expect("a response");
        let Pdu::LoginResponse(response) = pdu else { panic!("{pdu:?}") };
        let pairs = text::read(&data).unwrap();
        let agreed = |key: &str| pairs.iter().any(|(k, value)| k == key && value == "CRC32C");
        self.framer.digests =
            Digests { header: agreed("HeaderDigest"), data: agreed("DataDigest") };
        self.agreed = pairs;
        self.cmd_sn = response.sn.exp_cmd_sn;
        response
    }

    /// Sends a PDU.
    pub async fn send(&mut self, pdu: Pdu, data: &[u8]) {
        let bytes = frame::write(pdu.write(), &[], data, self.framer.digests);
        self.stream.write_all(&bytes).await.unwrap();
    }

    /// Sends to a target that may have closed the connection.
    pub async fn try_send(&mut self, pdu: Pdu, data: &[u8]) {
        let bytes = frame::write(pdu.write(), &[], data, self.framer.digests);
        let _ = self.stream.write_all(&bytes).await;
    }

    /// Asks for a task management function of a target that may have closed the connection.
    pub async fn try_function(&mut self, function: u8, unit: u8, itt: u32) {
        let request = TaskRequest {
            sn: self.at_once(),
            function,
            lun: [0, unit, 0, 0, 0, 0, 0, 0],
            itt,
            referenced: NO_TAG,
            ref_cmd_sn: 0,
            exp_data_sn: 0,
        };
        self.try_send(Pdu::TaskRequest(request), &[]).await;
    }

    /// The next PDU; `None` once the target closed the connection.
    pub async fn next(&mut self) -> Option<(Pdu, Bytes)> {
        loop {
            if let Some(frame) = self.framer.next(&mut self.input).unwrap() {
                assert!(frame.intact);
                let mut pdu = Pdu::read(&frame.basic).unwrap();
                let advances = match &pdu {
                    Pdu::DataIn(data) => data.status.is_some(),
                    Pdu::R2t(_) => false,
                    Pdu::NopIn(nop) => nop.itt != NO_TAG,
                    _ => true,
                };
                if advances && let Some(sn) = pdu.numbers() {
                    self.exp_stat_sn = sn.stat_sn.wrapping_add(1);
                }
                return Some((pdu, frame.data));
            }
            let read = self.stream.read_buf(&mut self.input);
            match tokio::time::timeout(PATIENCE, read).await.expect("the target is silent") {
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }

    /// The numbers of the next command.
    pub fn numbers(&mut self) -> RequestNumbers {
        self.cmd_sn = self.cmd_sn.wrapping_add(1);
        let cmd_sn = self.cmd_sn.wrapping_sub(1);
        RequestNumbers { immediate: false, cmd_sn, exp_stat_sn: self.exp_stat_sn }
    }

    /// The numbers of an immediate command.
    pub fn at_once(&self) -> RequestNumbers {
        RequestNumbers { immediate: true, cmd_sn: self.cmd_sn, exp_stat_sn: self.exp_stat_sn }
    }

    /// READ(10) or WRITE(10).
    pub fn transfer(
        &mut self,
        write: bool,
        unit: u8,
        itt: u32,
        block: u8,
        count: u16,
    ) -> ScsiCommand {
        let mut cdb = [0; 16];
        cdb[0] = if write { 0x2a } else { 0x28 };
        cdb[5] = block;
        cdb[7..9].copy_from_slice(&count.to_be_bytes());
        ScsiCommand {
            sn: self.numbers(),
            last: true,
            read: !write,
            write,
            attribute: 1,
            priority: 0,
            lun: [0, unit, 0, 0, 0, 0, 0, 0],
            itt,
            expected: u32::from(count) * 512,
            cdb,
        }
    }

    /// Sends READ(10).
    pub async fn read(&mut self, unit: u8, itt: u32, block: u8, count: u16) {
        let command = self.transfer(false, unit, itt, block, count);
        self.send(Pdu::ScsiCommand(command), &[]).await;
    }

    /// Sends WRITE(10) with all its data.
    pub async fn write(&mut self, unit: u8, itt: u32, block: u8, data: &[u8]) {
        let count = u16::try_from(data.len() / 512).unwrap();
        let command = self.transfer(true, unit, itt, block, count);
        self.send(Pdu::ScsiCommand(command), data).await;
    }

    /// Asks for a task management function.
    pub async fn function(&mut self, function: u8, unit: u8, itt: u32, referenced: u32) {
        let request = TaskRequest {
            sn: self.at_once(),
            function,
            lun: [0, unit, 0, 0, 0, 0, 0, 0],
            itt,
            referenced,
            ref_cmd_sn: 0,
            exp_data_sn: 0,
        };
        self.send(Pdu::TaskRequest(request), &[]).await;
    }

    /// Sends a NOP-Out that wants an answer.
    pub async fn ping(&mut self, itt: u32) {
        let nop = NopOut { sn: self.at_once(), lun: [0; 8], itt, ttt: NO_TAG };
        self.send(Pdu::NopOut(nop), b"ping").await;
    }

    /// Logs out; gives the response.
    pub async fn log_out(&mut self, reason: u8, cid: u16) -> u8 {
        let request = LogoutRequest { sn: self.at_once(), reason, itt: 0x77, cid };
        self.send(Pdu::LogoutRequest(request), &[]).await;
        loop {
            if let (Pdu::LogoutResponse(it), _) = self.next().await.expect("a response") {
                return it.response;
            }
        }
    }

    /// Answers R2T from `data` until the task ends; gives its data-in and status.
    pub async fn until_done(&mut self, itt: u32, data: &[u8]) -> (Vec<u8>, u8) {
        let mut found = Vec::new();
        loop {
            match self.next().await.expect("the connection ended") {
                (Pdu::R2t(ask), _) if ask.itt == itt => {
                    let pdu = DataOut {
                        last: true,
                        lun: ask.lun,
                        itt,
                        ttt: ask.ttt,
                        exp_stat_sn: self.exp_stat_sn,
                        data_sn: 0,
                        offset: ask.offset,
                    };
                    let start = ask.offset as usize;
                    let part = &data[start..start + ask.length as usize];
                    self.send(Pdu::DataOut(pdu), part).await;
                }
                (Pdu::DataIn(it), part) if it.itt == itt => {
                    assert_eq!(it.offset as usize, found.len());
                    found.extend_from_slice(&part);
                    if let Some(status) = it.status {
                        return (found, status);
                    }
                }
                (Pdu::ScsiResponse(it), _) if it.itt == itt => return (found, it.status),
                other => panic!("{other:?}"),
            }
        }
    }

    /// The value of a key of the login's answer.
    pub fn key(&self, key: &str) -> Option<&str> {
        self.agreed.iter().find(|(name, _)| name == key).map(|(_, value)| &**value)
    }

    /// A task tag that was not used before.
    pub fn tag(&mut self) -> u32 {
        self.next_tag += 1;
        self.next_tag
    }

    /// The PDU of a SCSI command, all whose data are sent with it or asked for.
    pub fn command(&mut self, unit: u8, cdb: &[u8], moves: Moves<'_>) -> ScsiCommand {
        let mut whole = [0; 16];
        whole[..cdb.len()].copy_from_slice(cdb);
        let expected = match moves {
            Moves::Nothing => 0,
            Moves::In(length) => length,
            Moves::Out(data) => u32::try_from(data.len()).expect("tests send little"),
        };
        ScsiCommand {
            sn: self.numbers(),
            last: true,
            read: matches!(moves, Moves::In(_)),
            write: matches!(moves, Moves::Out(_)),
            attribute: 1,
            priority: 0,
            lun: [0, unit, 0, 0, 0, 0, 0, 0],
            itt: self.tag(),
            expected,
            cdb: whole,
        }
    }

    /// Does a SCSI command to its end. No data go before the target asks for them.
    pub async fn scsi(&mut self, unit: u8, cdb: &[u8], moves: Moves<'_>) -> Answer {
        let command = self.command(unit, cdb, moves);
        self.send(Pdu::ScsiCommand(command), &[]).await;
        let data = if let Moves::Out(data) = moves { data } else { &[] };
        self.answer(command.itt, data).await
    }

    /// As [`Self::scsi`], after the unit attentions that wait were told.
    pub async fn scsi_quiet(&mut self, unit: u8, cdb: &[u8], moves: Moves<'_>) -> Answer {
        for _ in 0..16 {
            let answer = self.scsi(unit, cdb, moves).await;
            if answer.sense_code().is_none_or(|(key, ..)| key != 6) {
                return answer;
            }
        }
        panic!("unit attentions come to no end");
    }

    /// Waits for a command's end, and meanwhile gives the target of `data` what it asks for.
    pub async fn answer(&mut self, itt: u32, data: &[u8]) -> Answer {
        self.answer_or_end(itt, data).await.expect("the connection ended")
    }

    /// As [`Self::answer`]; `None` when the connection ends before.
    pub async fn answer_or_end(&mut self, itt: u32, data: &[u8]) -> Option<Answer> {
        let mut found = Vec::new();
        loop {
            match self.next().await? {
                (Pdu::R2t(ask), _) if ask.itt == itt => self.give(&ask, data).await,
                (Pdu::DataIn(it), part) if it.itt == itt => {
                    assert_eq!(it.offset as usize, found.len(), "data come in order");
                    found.extend_from_slice(&part);
                    if let Some(status) = it.status {
                        return Some(Answer { status, sense: Vec::new(), data: found });
                    }
                }
                (Pdu::ScsiResponse(it), segment) if it.itt == itt => {
                    let sense = segment.get(2..).unwrap_or_default().to_vec();
                    return Some(Answer { status: it.status, sense, data: found });
                }
                (Pdu::NopIn(nop), _) if nop.itt == NO_TAG => self.pong(&nop).await,
                other => panic!("{other:?} where an answer to {itt:#x} is due"),
            }
        }
    }

    /// Answers a NOP-In of the target.
    pub async fn pong(&mut self, nop: &iscsi::pdu::NopIn) {
        let pong = NopOut { sn: self.at_once(), lun: nop.lun, itt: NO_TAG, ttt: nop.ttt };
        self.send(Pdu::NopOut(pong), &[]).await;
    }

    async fn give(&mut self, ask: &iscsi::pdu::R2t, data: &[u8]) {
        /// What every target takes in one PDU (RFC 7143 13.12).
        const SEGMENT: usize = 8192;
        let start = ask.offset as usize;
        let all = &data[start..start + ask.length as usize];
        let count = all.len().div_ceil(SEGMENT);
        for (n, part) in all.chunks(SEGMENT).enumerate() {
            let pdu = DataOut {
                last: n + 1 == count,
                lun: ask.lun,
                itt: ask.itt,
                ttt: ask.ttt,
                exp_stat_sn: self.exp_stat_sn,
                data_sn: u32::try_from(n).expect("a burst has few parts"),
                offset: ask.offset + u32::try_from(n * SEGMENT).expect("a burst is short"),
            };
            self.try_send(Pdu::DataOut(pdu), part).await;
        }
    }
}

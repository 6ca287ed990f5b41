//! A connection in the full feature phase: commands, their data, functions, logouts.

use std::ops::{Deref, DerefMut};

use bytes::Bytes;
use iscsi::pdu::{
    DataOut, LogoutRequest, NO_TAG, NopOut, Pdu, R2t, Reject, RequestNumbers, Residual,
    ScsiCommand, ScsiResponse, TaskRequest,
};

use super::{Outcome, check, fail, login::Pairs, same, wire::Wire};

/// A connection of a session.
#[derive(Debug)]
pub(super) struct Conn {
    pub wire: Wire,
    /// CmdSN of the next command; connections of one session are told each other's.
    pub cmd_sn: u32,
    pub isid: [u8; 6],
    pub tsih: u16,
    pub cid: u16,
    /// What the target said in the last step of the login.
    pub agreed: Pairs,
    pub lun: [u8; 8],
    /// Bytes of a block.
    pub block: usize,
    pub(super) tag: u32,
}

impl Deref for Conn {
    type Target = Wire;
    fn deref(&self) -> &Wire {
        &self.wire
    }
}

impl DerefMut for Conn {
    fn deref_mut(&mut self) -> &mut Wire {
        &mut self.wire
    }
}

/// What a command moves.
#[derive(Debug, Clone, Copy)]
pub(super) enum Moves<'a> {
    Nothing,
    In(u32),
    Out(&'a [u8]),
}

/// How a command ended.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    pub status: u8,
    pub sense: Vec<u8>,
    pub data: Vec<u8>,
    pub residual: Residual,
    /// The response itself, if the status did not come with the data.
    pub response: Option<ScsiResponse>,
    /// How many Data-In came.
    pub parts: u32,
    /// Length and offset of each R2T.
    pub asked: Vec<(u32, u32)>,
}

impl Answer {
    /// Sense key and additional sense code.
    pub fn code(&self) -> Option<(u8, u16)> {
        let s = &self.sense;
        match s.first()? & 0x7f {
            0x70 | 0x71 if s.len() >= 14 => Some((s[2] & 15, u16::from_be_bytes([s[12], s[13]]))),
            0x72 | 0x73 if s.len() >= 4 => Some((s[1] & 15, u16::from_be_bytes([s[2], s[3]]))),
            _ => None,
        }
    }

    pub fn good(&self) -> Outcome {
        let code = self.code();
        check(self.status == 0, format!("status {:#04x}, sense {code:x?}", self.status))
    }

    pub fn sense_is(&self, key: u8, code: u16) -> Outcome {
        same("the sense", self.code(), Some((key, code)))
    }
}

/// TEST UNIT READY.
pub(super) const READY: [u8; 6] = [0; 6];

/// A CDB of ten bytes with an address and a count of blocks.
pub(super) fn ten(code: u8, block: u32, count: u16) -> [u8; 10] {
    let ([a, b, c, d], [e, f]) = (block.to_be_bytes(), count.to_be_bytes());
    [code, 0, a, b, c, d, 0, e, f, 0]
}

/// Bytes that tell where they belong.
pub(super) fn pattern(length: usize, seed: u32) -> Vec<u8> {
    let byte = |at: usize| {
        (at as u32 / 4).wrapping_mul(2_654_435_761).wrapping_add(seed).to_le_bytes()[at % 4]
    };
    (0..length).map(byte).collect()
}

impl Conn {
    pub fn tag(&mut self) -> u32 {
        self.tag += 1;
        self.tag
    }

    /// The numbers of the next command.
    pub fn numbers(&mut self) -> RequestNumbers {
        let cmd_sn = self.cmd_sn;
        self.cmd_sn = cmd_sn.wrapping_add(1);
        RequestNumbers { immediate: false, cmd_sn, exp_stat_sn: self.exp_stat_sn() }
    }

    /// The numbers of an immediate command.
    pub fn at_once(&self) -> RequestNumbers {
        RequestNumbers { immediate: true, cmd_sn: self.cmd_sn, exp_stat_sn: self.exp_stat_sn() }
    }

    pub fn command(&mut self, cdb: &[u8], moves: Moves<'_>) -> ScsiCommand {
        let mut whole = [0; 16];
        whole[..cdb.len()].copy_from_slice(cdb);
        let (sn, itt) = (self.numbers(), self.tag());
        let expected = match moves {
            Moves::Nothing => 0,
            Moves::In(length) => length,
            Moves::Out(data) => data.len() as u32,
        };
        ScsiCommand {
            sn,
            last: true,
            read: matches!(moves, Moves::In(_)),
            write: matches!(moves, Moves::Out(_)),
            attribute: 1,
            priority: 0,
            lun: self.lun,
            itt,
            expected,
            cdb: whole,
        }
    }

    pub fn begin(&mut self, cdb: &[u8], moves: Moves<'_>) -> u32 {
        let command = self.command(cdb, moves);
        self.send(Pdu::ScsiCommand(command), &[]);
        command.itt
    }

    /// Begins a write that waits for its data, and takes the R2T.
    pub fn begin_write(&mut self, block: u32, count: u16) -> Outcome<(u32, R2t)> {
        let data = vec![0; usize::from(count) * self.block];
        let itt = self.begin(&ten(0x2a, block, count), Moves::Out(&data));
        Ok((itt, self.r2t(itt)?))
    }

    pub fn r2t(&mut self, itt: u32) -> Outcome<R2t> {
        match self.next()? {
            (Pdu::R2t(it), _) if it.itt == itt => Ok(it),
            (other, _) => fail(format!("{other:?} where an R2T is due (11.8)")),
        }
    }

    /// A command to its end; nothing goes before the target asks for it.
    pub fn scsi(&mut self, cdb: &[u8], moves: Moves<'_>) -> Outcome<Answer> {
        let itt = self.begin(cdb, moves);
        self.answer(itt, if let Moves::Out(data) = moves { data } else { &[] })
    }

    /// As [`Self::scsi`], after unit attentions were told.
    pub fn quiet(&mut self, cdb: &[u8], moves: Moves<'_>) -> Outcome<Answer> {
        for _ in 0..8 {
            let answer = self.scsi(cdb, moves)?;
            if answer.code().is_none_or(|(key, _)| key != 6) {
                return Ok(answer);
            }
        }
        fail("unit attentions come to no end")
    }

    /// Unit attentions are told, so that what follows meets none.
    pub fn settle(&mut self) -> Outcome {
        self.quiet(&READY, Moves::Nothing)?.good()
    }

    /// Waits for a command's end and gives what is asked for.
    pub fn answer(&mut self, itt: u32, data: &[u8]) -> Outcome<Answer> {
        let (mut found, mut next_sn, mut asked) = (Vec::new(), 0, Vec::new());
        loop {
            match self.next()? {
                (Pdu::R2t(ask), _) if ask.itt == itt => {
                    same("R2TSN (11.8.1)", ask.r2t_sn, asked.len() as u32)?;
                    asked.push((ask.offset, ask.length));
                    self.give(&ask, data)?;
                }
                (Pdu::DataIn(it), part) if it.itt == itt => {
                    same("DataSN (11.7.5)", it.data_sn, next_sn)?;
                    same("Buffer Offset (11.7.6)", it.offset as usize, found.len())?;
                    next_sn += 1;
                    found.extend_from_slice(&part);
                    if let Some(status) = it.status {
                        check(it.last, "S without F (11.7.3)")?;
                        let residual = it.residual;
                        let (sense, response) = (Vec::new(), None);
                        return Ok(Answer {
                            status,
                            sense,
                            data: found,
                            residual,
                            response,
                            parts: next_sn,
                            asked,
                        });
                    }
                }
                (Pdu::ScsiResponse(it), segment) if it.itt == itt => {
                    let sense = segment.get(2..).unwrap_or_default().to_vec();
                    let (status, residual) = (it.status, it.residual);
                    let response = Some(it);
                    return Ok(Answer {
                        status,
                        sense,
                        data: found,
                        residual,
                        response,
                        parts: next_sn,
                        asked,
                    });
                }
                (other, _) => return fail(format!("{other:?} where an answer to {itt:#x} is due")),
            }
        }
    }

    /// The Data-Out that an R2T asks for, in segments that every target takes.
    pub fn give(&mut self, ask: &R2t, data: &[u8]) -> Outcome {
        const SEGMENT: usize = 8192;
        let start = ask.offset as usize;
        let Some(all) = data.get(start..start + ask.length as usize) else {
            return fail(format!("an R2T for more than there is: {ask:?} (11.8.2)"));
        };
        let count = all.len().div_ceil(SEGMENT);
        for (n, part) in all.chunks(SEGMENT).enumerate() {
            let offset = ask.offset + (n * SEGMENT) as u32;
            let pdu = self.data_out(ask.itt, ask.ttt, n as u32, offset, n + 1 == count);
            self.send(Pdu::DataOut(pdu), part);
        }
        Ok(())
    }

    pub fn data_out(&self, itt: u32, ttt: u32, data_sn: u32, offset: u32, last: bool) -> DataOut {
        let lun = if ttt == NO_TAG { [0; 8] } else { self.lun };
        DataOut { last, lun, itt, ttt, exp_stat_sn: self.exp_stat_sn(), data_sn, offset }
    }

    /// Everything that comes before the answer to a ping: what was to come is there then.
    pub fn until_pong(&mut self) -> Outcome<Vec<(Pdu, Bytes)>> {
        let itt = self.tag();
        let nop = NopOut { sn: self.at_once(), lun: [0; 8], itt, ttt: NO_TAG };
        self.send(Pdu::NopOut(nop), b"ping");
        let mut before = Vec::new();
        loop {
            match self.next()? {
                (Pdu::NopIn(nop), data) if nop.itt == itt => {
                    check(&data[..] == b"ping", "a NOP-In with other data (11.18)")?;
                    return Ok(before);
                }
                other => before.push(other),
            }
        }
    }

    /// Nothing more comes than the answer to a ping.
    pub fn nothing_came(&mut self, section: &str) -> Outcome {
        let came = self.until_pong()?;
        check(came.is_empty(), format!("{came:?} where nothing is due ({section})"))
    }

    /// A reject of this reason comes; the session goes on.
    pub fn rejected(&mut self, reasons: &[u8]) -> Outcome<Reject> {
        match self.next()? {
            (Pdu::Reject(it), data) => {
                check(data.len() >= 48, "a reject without the header that was wrong (11.17)")?;
                let reason = it.reason;
                check(
                    reasons.contains(&reason),
                    format!("reject reason {reason:#04x} where {reasons:x?} is due"),
                )?;
                Ok(it)
            }
            (other, _) => fail(format!("{other:?} where a reject is due (11.17)")),
        }
    }

    pub fn request(&mut self, function: u8, referenced: u32, ref_cmd_sn: u32) -> TaskRequest {
        let (sn, lun, itt) = (self.at_once(), self.lun, self.tag());
        TaskRequest { sn, function, lun, itt, referenced, ref_cmd_sn, exp_data_sn: 0 }
    }

    /// A task management function; its response, and what came before.
    pub fn function(&mut self, request: TaskRequest) -> Outcome<(u8, Vec<Pdu>)> {
        self.send(Pdu::TaskRequest(request), &[]);
        let mut before = Vec::new();
        loop {
            match self.next()? {
                (Pdu::TaskResponse(it), _) if it.itt == request.itt => {
                    return Ok((it.response, before));
                }
                (other, _) => before.push(other),
            }
        }
    }

    pub fn log_out(&mut self, reason: u8, cid: u16) -> Outcome<u8> {
        let request = LogoutRequest { sn: self.at_once(), reason, itt: self.tag(), cid };
        self.send(Pdu::LogoutRequest(request), &[]);
        loop {
            if let (Pdu::LogoutResponse(it), _) = self.next()? {
                same("Initiator Task Tag (11.15)", it.itt, request.itt)?;
                return Ok(it.response);
            }
        }
    }

    /// Writes blocks by R2T and says if it went well.
    pub fn write(&mut self, block: u32, data: &[u8]) -> Outcome<Answer> {
        let count = (data.len() / self.block) as u16;
        let answer = self.quiet(&ten(0x2a, block, count), Moves::Out(data))?;
        answer.good()?;
        Ok(answer)
    }

    /// Reads blocks.
    pub fn read(&mut self, block: u32, count: u16) -> Outcome<Vec<u8>> {
        let length = u32::from(count) * self.block as u32;
        let answer = self.quiet(&ten(0x28, block, count), Moves::In(length))?;
        answer.good()?;
        same("the length of the data", answer.data.len(), length as usize)?;
        Ok(answer.data)
    }

    /// The blocks hold these data.
    pub fn holds(&mut self, block: u32, data: &[u8]) -> Outcome {
        let found = self.read(block, (data.len() / self.block) as u16)?;
        let at = found.iter().zip(data).position(|(a, b)| a != b);
        check(at.is_none(), format!("other data than were written, from byte {at:?} on"))
    }

    pub fn value(&self, key: &str) -> Option<&str> {
        super::login::value(&self.agreed, key)
    }

    pub fn number(&self, key: &str, default: u32) -> u32 {
        self.value(key).and_then(|text| text.parse().ok()).unwrap_or(default)
    }
}

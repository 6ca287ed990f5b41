//! A connection that says what it is told to, and looks at every PDU that comes.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use iscsi::pdu::{Digests, Framer, NO_TAG, NopOut, Numbers, Pdu, RequestNumbers, frame};

use super::{Outcome, check, fail};

/// What a target has to say it says within this time.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// A look at a connection that may have nothing to say.
const LOOK: Duration = Duration::from_millis(5);
/// The longest data segment there is (RFC 7143 13.12).
const LONGEST: u32 = 0xff_ffff;

/// What was heard.
#[derive(Debug)]
pub(super) enum Heard {
    /// A PDU and its data segment.
    Pdu(Pdu, Bytes),
    /// The target closed the connection.
    Closed,
}

/// A socket with what is between PDUs and bytes.
#[derive(Debug)]
pub(super) struct Wire {
    stream: TcpStream,
    input: BytesMut,
    /// What follows headers and data, both ways.
    pub digests: Digests,
    /// The StatSN that is due.
    pub stat_sn: Option<u32>,
    /// The StatSN that requests acknowledge up to, if not all that came.
    pub acknowledged: Option<u32>,
    /// ExpCmdSN and MaxCmdSN as they came last.
    pub numbers: Numbers,
    /// The longest data segment that the target was told to send.
    pub max_recv: u32,
    /// StatSN goes up by one; not so where PDUs are sent again.
    pub in_order: bool,
    /// NOP-In that ask for an answer get it.
    pub pong: bool,
}

impl Wire {
    pub fn open(at: SocketAddr) -> Outcome<Self> {
        let stream = TcpStream::connect_timeout(&at, PATIENCE)?;
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self {
            stream,
            input: BytesMut::new(),
            digests: Digests::default(),
            stat_sn: None,
            acknowledged: None,
            numbers: Numbers::default(),
            max_recv: 8192,
            in_order: true,
            pong: true,
        })
    }

    /// Sends bytes; a target that has closed the connection is found by what is heard.
    pub fn raw(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    pub fn send(&mut self, pdu: Pdu, data: &[u8]) {
        self.send_ahs(pdu, &[], data);
    }

    pub fn send_ahs(&mut self, pdu: Pdu, ahs: &[u8], data: &[u8]) {
        let bytes = frame::write(pdu.write(), ahs, data, self.digests);
        self.raw(&bytes);
    }

    /// Sends a PDU one of whose bits turned over on its way: in its header, or in its data.
    pub fn send_broken(&mut self, pdu: Pdu, data: &[u8], header: bool) {
        let mut bytes = frame::write(pdu.write(), &[], data, self.digests);
        let at = if header { 40 } else { bytes.len() - 5 };
        bytes[at] ^= 1;
        self.raw(&bytes);
    }

    /// The connection breaks: without a logout, without a word.
    pub fn cut(self) {
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    pub fn exp_stat_sn(&self) -> u32 {
        self.acknowledged.or(self.stat_sn).unwrap_or_default()
    }

    /// The next PDU, or the end of the connection.
    pub fn hear(&mut self) -> Outcome<Heard> {
        self.hear_within(PATIENCE)?.map_or_else(|| fail("the target is silent"), Ok)
    }

    /// What there is to hear now.
    pub fn look_in(&mut self) -> Outcome<Option<Heard>> {
        self.hear_within(LOOK)
    }

    fn hear_within(&mut self, patience: Duration) -> Outcome<Option<Heard>> {
        let until = Instant::now() + patience;
        let framer = Framer { digests: self.digests, max_data: LONGEST, max_ahs_words: 255 };
        loop {
            match framer.next(&mut self.input) {
                Ok(Some(it)) => {
                    check(it.intact, "a data segment does not match its digest")?;
                    let pdu = match Pdu::read(&it.basic) {
                        Ok(pdu) => pdu,
                        Err(error) => return fail(format!("a PDU that is none: {error}")),
                    };
                    self.look(pdu, &it.data)?;
                    if let (Pdu::NopIn(nop), true) = (&pdu, self.pong)
                        && nop.itt == NO_TAG
                    {
                        if nop.ttt != NO_TAG {
                            self.answer_ping(nop.lun, nop.ttt);
                        }
                        continue;
                    }
                    return Ok(Some(Heard::Pdu(pdu, it.data)));
                }
                Ok(None) => {}
                Err(error) => {
                    return fail(format!("what the target sends cannot be read: {error}"));
                }
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.stream.set_read_timeout(Some(left))?;
            let mut bytes = [0; 65536];
            match self.stream.read(&mut bytes) {
                Ok(0) => return Ok(Some(Heard::Closed)),
                Ok(count) => self.input.extend_from_slice(&bytes[..count]),
                Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock) => {}
                Err(error) if error.kind() == std::io::ErrorKind::TimedOut => {}
                Err(_) => return Ok(Some(Heard::Closed)),
            }
        }
    }

    fn answer_ping(&mut self, lun: [u8; 8], ttt: u32) {
        let (cmd_sn, exp_stat_sn) = (self.numbers.exp_cmd_sn, self.exp_stat_sn());
        let sn = RequestNumbers { immediate: true, cmd_sn, exp_stat_sn };
        self.send(Pdu::NopOut(NopOut { sn, lun, itt: NO_TAG, ttt }), &[]);
    }

    /// What holds of every PDU of a target: its numbers (RFC 7143 4.2.2), its length (13.12).
    fn look(&mut self, mut pdu: Pdu, data: &Bytes) -> Outcome {
        if data.len() > self.max_recv as usize {
            let (length, most) = (data.len(), self.max_recv);
            return fail(format!(
                "a data segment of {length} bytes where {most} are the most (13.12)"
            ));
        }
        let (has, advances) = match &pdu {
            Pdu::DataIn(it) => (it.status.is_some(), it.status.is_some()),
            Pdu::R2t(_) => (true, false),
            // Its numbers count for nothing where it refuses (RFC 7143 11.13).
            Pdu::LoginResponse(it) if it.status != 0 => (false, false),
            Pdu::NopIn(nop) => (true, nop.itt != NO_TAG),
            _ => (true, true),
        };
        let Some(numbers) = pdu.numbers().copied() else {
            return fail(format!("a target sends no {pdu:?}"));
        };
        if has {
            match self.stat_sn {
                Some(due) if self.in_order && numbers.stat_sn != due => {
                    let sn = numbers.stat_sn;
                    return fail(format!("StatSN {sn} where {due} is due (4.2.2.2): {pdu:?}"));
                }
                _ => {}
            }
            let repeated =
                self.stat_sn.is_some_and(|due| numbers.stat_sn.wrapping_sub(due) > 1 << 31);
            if !repeated {
                self.stat_sn = Some(numbers.stat_sn.wrapping_add(u32::from(advances)));
            }
        }
        let room = numbers.max_cmd_sn.wrapping_sub(numbers.exp_cmd_sn.wrapping_sub(1));
        let refuses = matches!(&pdu, Pdu::LoginResponse(it) if it.status != 0);
        if !refuses && room >= 1 << 31 {
            let (max, exp) = (numbers.max_cmd_sn, numbers.exp_cmd_sn);
            return fail(format!("MaxCmdSN {max} is below ExpCmdSN {exp} less one (4.2.2.1)"));
        }
        if numbers.exp_cmd_sn.wrapping_sub(self.numbers.exp_cmd_sn) < 1 << 31 {
            self.numbers = numbers;
        }
        Ok(())
    }

    pub fn next(&mut self) -> Outcome<(Pdu, Bytes)> {
        match self.hear()? {
            Heard::Pdu(pdu, data) => Ok((pdu, data)),
            Heard::Closed => fail("the target closed the connection"),
        }
    }

    /// The target closes the connection; what it said before.
    pub fn closes(&mut self) -> Outcome<Vec<Pdu>> {
        let mut said = Vec::new();
        loop {
            match self.hear() {
                Ok(Heard::Pdu(pdu, _)) => said.push(pdu),
                Ok(Heard::Closed) => return Ok(said),
                Err(_) if said.is_empty() => return fail("the connection stays open"),
                Err(_) => return fail(format!("the connection stays open: {said:?}")),
            }
        }
    }
}

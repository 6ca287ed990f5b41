//! The full feature phase, PDU by PDU.

mod commands;
mod functions;
mod hostile;
mod others;
mod recovery;
mod simulation;

use bytes::BytesMut;
use scsi::{Completion, Sense, SenseKey, Status};

use super::*;
use crate::pdu::{
    DataOut, Digests, Framer, NopOut, RequestNumbers, ScsiCommand, TaskRequest, frame,
};

/// Answers SendTargets with as many records as it holds.
pub struct Many(pub usize);

impl Announce for Many {
    fn targets(&self, _: &str, own: Option<&str>, which: SendTargets<'_>) -> Vec<Pair> {
        let count = if which == SendTargets::All { self.0 } else { 1 };
        (0..count)
            .map(|n| ("TargetName".to_owned(), own.map_or(format!("iqn.t{n}"), str::to_owned)))
            .collect()
    }
}

/// A session and what an initiator and a device see of it.
pub struct Rig {
    pub session: Session,
    pub runs: VecDeque<Run>,
    pub now: u64,
    cmd_sn: u32,
}

pub fn parameters(level: u8) -> SessionParameters {
    SessionParameters {
        error_recovery_level: level,
        max_connections: 4,
        initial_r2t: false,
        max_burst: 4096,
        first_burst: 2048,
        max_outstanding_r2t: 2,
        ..SessionParameters::default()
    }
}

impl Rig {
    pub fn new(level: u8) -> Self {
        Self::with(parameters(level), Limits { window: 8, ..Limits::default() })
    }

    pub fn with(parameters: SessionParameters, limits: Limits) -> Self {
        let setup = Setup {
            sets: Arc::default(),
            initiator: "iqn.initiator".to_owned(),
            target: Some("iqn.target".to_owned()),
            parameters,
            wishes: Wishes::default(),
            limits,
            resets: true,
            budget: Arc::new(Budget::new(1 << 20)),
            announce: Arc::new(Many(3)),
        };
        let mut session = Session::new(setup, 1);
        session.join(0, ConnectionParameters::default(), 100, 0);
        Self { session, runs: VecDeque::new(), now: 0, cmd_sn: 1 }
    }

    pub fn join(&mut self, cid: u16) -> u32 {
        self.session.join(cid, ConnectionParameters::default(), 500, self.now)
    }

    pub fn send(&mut self, link: u32, pdu: Pdu, data: &[u8]) {
        self.send_frame(link, pdu, &[], data, true);
    }

    pub fn send_frame(&mut self, link: u32, pdu: Pdu, ahs: &[u8], data: &[u8], intact: bool) {
        let bytes = frame::write(pdu.write(), ahs, data, Digests::default());
        let framer = Framer { digests: Digests::default(), max_data: 1 << 20, max_ahs_words: 67 };
        let mut frame = framer.next(&mut BytesMut::from(&bytes[..])).unwrap().unwrap();
        frame.intact = intact;
        self.session.receive(link, &frame, self.now);
    }

    /// Numbers of the next command.
    pub fn next(&mut self) -> RequestNumbers {
        self.cmd_sn += 1;
        RequestNumbers { immediate: false, cmd_sn: self.cmd_sn - 1, exp_stat_sn: 0 }
    }

    pub fn at_once(&self) -> RequestNumbers {
        RequestNumbers { immediate: true, cmd_sn: self.cmd_sn, exp_stat_sn: 0 }
    }

    pub fn read(&mut self, itt: u32, expected: u32) -> ScsiCommand {
        let mut cdb = [0; 16];
        cdb[0] = 0x28;
        ScsiCommand {
            sn: self.next(),
            last: true,
            read: true,
            write: false,
            attribute: 1,
            priority: 0,
            lun: [0; 8],
            itt,
            expected,
            cdb,
        }
    }

    pub fn write(&mut self, itt: u32, expected: u32, last: bool) -> ScsiCommand {
        let mut command = self.read(itt, expected);
        command.cdb[0] = 0x2a;
        ScsiCommand { read: false, write: true, last, ..command }
    }

    pub fn command(&mut self, link: u32, command: ScsiCommand, data: &[u8]) {
        self.send(link, Pdu::ScsiCommand(command), data);
    }

    pub fn function(&mut self, link: u32, itt: u32, function: u8, referenced: u32) {
        let sn = self.at_once();
        let request = TaskRequest {
            sn,
            function,
            lun: [0; 8],
            itt,
            referenced,
            ref_cmd_sn: 0,
            exp_data_sn: 0,
        };
        self.send(link, Pdu::TaskRequest(request), &[]);
    }

    pub fn data(
        &mut self,
        link: u32,
        itt: u32,
        ttt: u32,
        place: (u32, u32),
        last: bool,
        data: &[u8],
    ) {
        let (data_sn, offset) = place;
        let pdu = DataOut { last, lun: [0; 8], itt, ttt, exp_stat_sn: 0, data_sn, offset };
        self.send(link, Pdu::DataOut(pdu), data);
    }

    /// What a connection sent since.
    pub fn answers(&mut self, link: u32) -> Vec<(Pdu, Bytes)> {
        self.drain(link).0
    }

    pub fn drain(&mut self, link: u32) -> (Vec<(Pdu, Bytes)>, Option<Close>) {
        let mut output = Output::default();
        let close = self.session.take(link, &mut output, &mut self.runs);
        let mut bytes = BytesMut::from(&output.to_vec()[..]);
        let framer = Framer { digests: Digests::default(), max_data: 1 << 24, max_ahs_words: 0 };
        let mut found = Vec::new();
        while let Some(frame) = framer.next(&mut bytes).unwrap() {
            found.push((Pdu::read(&frame.basic).unwrap(), frame.data));
        }
        (found, close)
    }

    /// The tags of the commands that were given to the device since.
    pub fn begun(&mut self) -> Vec<u32> {
        for link in 0..self.session.next_link {
            let mut output = Output::default();
            // An output that is not empty is left where it is.
            output.push_bytes(&[0]);
            self.session.take(link, &mut output, &mut self.runs);
        }
        self.runs.append(&mut self.session.take_stray());
        self.runs.iter().map(|run| run.key.itt).collect()
    }

    /// The device ends a command well.
    pub fn finish(&mut self, itt: u32, data_in: Vec<u8>) {
        self.begun();
        let at = self.runs.iter().position(|run| run.key.itt == itt).expect("it was begun");
        let run = self.runs.remove(at).unwrap();
        let wanted = run.data_out.len() as u64;
        let completion = Completion { status: Status::Good, sense: None, data_out_wanted: wanted };
        self.session.complete(run.key, &completion, &[], data_in);
    }

    pub fn fail(&mut self, itt: u32, sense: Sense) {
        self.begun();
        let at = self.runs.iter().position(|run| run.key.itt == itt).expect("it was begun");
        let run = self.runs.remove(at).unwrap();
        let completion = Completion {
            status: Status::CheckCondition,
            sense: Some(sense),
            data_out_wanted: run.data_out.len() as u64,
        };
        self.session.complete(run.key, &completion, &sense.fixed(), Vec::new());
    }
}

/// The status that ended a task, and its sense code.
pub fn status_of(answers: &[(Pdu, Bytes)], itt: u32) -> Option<(u8, u16)> {
    answers.iter().find_map(|(pdu, data)| match pdu {
        Pdu::ScsiResponse(it) if it.itt == itt => {
            let code = data.get(14..16).map_or(0, |two| u16::from_be_bytes([two[0], two[1]]));
            Some((it.status, code))
        }
        Pdu::DataIn(it) if it.itt == itt => it.status.map(|status| (status, 0)),
        _ => None,
    })
}

pub fn rejected(answers: &[(Pdu, Bytes)]) -> Vec<u8> {
    let reason = |(pdu, _): &(Pdu, Bytes)| match pdu {
        Pdu::Reject(it) => Some(it.reason),
        _ => None,
    };
    answers.iter().filter_map(reason).collect()
}

pub fn outcomes(answers: &[(Pdu, Bytes)]) -> Vec<(u32, u8)> {
    let outcome = |(pdu, _): &(Pdu, Bytes)| match pdu {
        Pdu::TaskResponse(it) => Some((it.itt, it.response)),
        _ => None,
    };
    answers.iter().filter_map(outcome).collect()
}

pub fn asked(answers: &[(Pdu, Bytes)]) -> Vec<crate::pdu::R2t> {
    let r2t = |(pdu, _): &(Pdu, Bytes)| match pdu {
        Pdu::R2t(it) => Some(*it),
        _ => None,
    };
    answers.iter().filter_map(r2t).collect()
}

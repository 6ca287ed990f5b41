//! PDUs that are none, additional headers, residuals, reads in pieces (RFC 7143 11.2 to 11.4, 11.7,
//! 11.17).

use iscsi::pdu::{
    Basic, DataIn, Digests, NO_TAG, Pdu, Residual, ScsiCommand, ahs::Additional, frame, reason,
};

use super::{
    super::{
        Case, Outcome, Subject, check,
        conn::{Moves, READY, pattern, ten},
        fail, same,
        wire::Heard,
    },
    Named, named,
};

const UNMARKED: [u8; 3] = [reason::NOT_SUPPORTED, reason::PROTOCOL, reason::FIELD];

/// The cases that stand for themselves.
const NAMED: &[Named] = &[
    ("commands/reserved-attribute", "RFC 7143 11.3.1", |s| {
        let mut conn = s.session(&[])?;
        let command = conn.command(&READY, Moves::Nothing);
        let mut basic = Pdu::ScsiCommand(command).write();
        basic.flags |= 7;
        let bytes = frame::write(basic, &[], &[], Digests::default());
        conn.raw(&bytes);
        conn.rejected(&UNMARKED).map(drop)
    }),
    ("commands/login-in-the-full-feature-phase", "RFC 7143 6.3", |s| {
        let mut conn = s.session(&[])?;
        let mut login = s.negotiation()?;
        let request = login.request(true, 3);
        login.wire.pong = true;
        conn.send(Pdu::LoginRequest(request), b"InitiatorName=iqn.x\0");
        match conn.hear()? {
            Heard::Closed => Ok(()),
            Heard::Pdu(Pdu::Reject(_), _) => Ok(()),
            other => fail(format!("{other:?} where a reject is due")),
        }
    }),
    ("commands/a-reject-does-not-end-the-session", "RFC 7143 7.3", |s| {
        let mut conn = s.session(&[])?;
        let bytes = unknown(0x1f, &conn.at_once());
        conn.raw(&bytes);
        conn.rejected(&UNMARKED)?;
        conn.scsi(&READY, Moves::Nothing)?.good()
    }),
    ("commands/a-reject-holds-the-header", "RFC 7143 11.17", |s| {
        let mut conn = s.session(&[])?;
        let bytes = unknown(0x1f, &conn.at_once());
        conn.raw(&bytes);
        match conn.next()? {
            (Pdu::Reject(it), data) => {
                check(UNMARKED.contains(&it.reason), format!("reason {:#04x}", it.reason))?;
                check(data.len() >= 48 && data[..48] == bytes[..48], "another header comes back")
            }
            (other, _) => fail(format!("{other:?} where a reject is due")),
        }
    }),
    ("commands/no-F-and-no-W", "RFC 7143 11.3.1", |s| {
        let mut conn = s.session(&[])?;
        let command = ScsiCommand { last: false, ..conn.command(&READY, Moves::Nothing) };
        conn.send(Pdu::ScsiCommand(command), &[]);
        match conn.next()? {
            (Pdu::Reject(_), _) => Ok(()),
            (Pdu::ScsiResponse(it), _) if it.itt == command.itt => Ok(()),
            (other, _) => fail(format!("{other:?}")),
        }
    }),
    ("commands/data-with-a-read", "RFC 7143 11.3.1", |s| {
        let mut conn = s.session(&[])?;
        let command = conn.command(&ten(0x28, 0, 1), Moves::In(conn.block as u32));
        let data = vec![1; conn.block];
        conn.send(Pdu::ScsiCommand(command), &data);
        match conn.hear()? {
            Heard::Closed | Heard::Pdu(Pdu::Reject(_), _) => Ok(()),
            Heard::Pdu(Pdu::ScsiResponse(it), _) if it.status != 0 => Ok(()),
            other => fail(format!("{other:?} where the data are refused")),
        }
    }),
    ("commands/a-segment-longer-than-declared", "RFC 7143 13.12", |s| {
        let mut conn = s.session(&[])?;
        let most = conn.number("MaxRecvDataSegmentLength", 8192);
        let command = conn.command(&ten(0x2a, 0, 1), Moves::Out(&[]));
        let bytes = Pdu::ScsiCommand(command).write();
        let header = Basic { data_length: most + 4, ..bytes }.write();
        conn.raw(&header);
        conn.raw(&vec![0; most as usize + 4]);
        match conn.hear()? {
            Heard::Closed | Heard::Pdu(Pdu::Reject(_), _) => Ok(()),
            Heard::Pdu(Pdu::ScsiResponse(it), _) if it.status != 0 => Ok(()),
            other => fail(format!("{other:?} where the data are refused")),
        }
    }),
    ("commands/long-cdb", "RFC 7143 11.2.2.3", |s| long_cdb(s, 16)),
    ("commands/long-cdb-with-padding", "RFC 7143 11.2.2.3", |s| long_cdb(s, 13)),
    ("commands/header-segment-that-ends-beyond", "RFC 7143 11.2.2.1", |s| {
        additional(s, &[0x01, 0x00, 1, 0, 0, 0, 0, 0])
    }),
    ("commands/header-segment-of-no-known-type", "RFC 7143 11.2.2.1", |s| {
        additional(s, &[0, 5, 0x3f, 0, 1, 2, 3, 4])
    }),
    ("commands/bidirectional-is-answered", "RFC 7143 11.2.2.4", |s| {
        let mut conn = s.session(&[])?;
        let length = conn.block as u32;
        let mut command = conn.command(&ten(0x53, 0, 1), Moves::In(length));
        command.write = true;
        let ahs = Additional { read_length: Some(length), ..Additional::default() }.write();
        let data = vec![0; conn.block];
        conn.send_ahs(Pdu::ScsiCommand(command), &ahs, &[]);
        loop {
            match conn.next()? {
                (Pdu::R2t(ask), _) => conn.give(&ask, &data)?,
                (Pdu::DataIn(_), _) => {}
                (Pdu::ScsiResponse(it), _) => {
                    return check(it.status != 0 || it.response != 0, "it is done");
                }
                (Pdu::Reject(_), _) => return conn.nothing_came("11.17"),
                (other, _) => return fail(format!("{other:?}")),
            }
        }
    }),
    ("commands/unknown-operation-code", "SPC-4 4.2.5.1", |s| {
        let mut conn = s.session(&[])?;
        conn.scsi(&[0xff, 0, 0, 0, 0, 0], Moves::Nothing)?.sense_is(5, 0x2000)
    }),
    ("commands/no-logical-unit", "SAM-5 4.7.4", |s| {
        let mut conn = s.session(&[])?;
        conn.lun = [0, 0x77, 0, 0, 0, 0, 0, 0];
        conn.scsi(&READY, Moves::Nothing)?.sense_is(5, 0x2500)
    }),
    ("commands/inquiry-of-no-logical-unit", "SPC-4 6.6.2", |s| {
        let mut conn = s.session(&[])?;
        conn.lun = [0, 0x77, 0, 0, 0, 0, 0, 0];
        let answer = conn.scsi(&[0x12, 0, 0, 0, 96, 0], Moves::In(96))?;
        answer.good()?;
        same("peripheral qualifier and type", answer.data.first().copied(), Some(0x7f))
    }),
    ("commands/more-expected-than-there-is", "RFC 7143 11.4.5.2", |s| {
        let mut conn = s.session(&[])?;
        let length = conn.block as u32;
        let answer = conn.scsi(&ten(0x28, 0, 1), Moves::In(length * 3))?;
        answer.good()?;
        same("the length of the data", answer.data.len() as u32, length)?;
        same("the residual", answer.residual, Residual::Underflow(length * 2))
    }),
    ("commands/less-expected-than-there-is", "RFC 7143 11.4.5.2", |s| {
        let mut conn = s.session(&[])?;
        let length = conn.block as u32;
        let answer = conn.scsi(&ten(0x28, 0, 3), Moves::In(length))?;
        same("the length of the data", answer.data.len() as u32, length)?;
        same("the residual", answer.residual, Residual::Overflow(length * 2))
    }),
    ("commands/nothing-expected-of-a-read", "RFC 7143 11.4.5.2", |s| {
        let mut conn = s.session(&[])?;
        let length = conn.block as u32;
        let answer = conn.scsi(&ten(0x28, 0, 1), Moves::In(0))?;
        check(answer.data.is_empty(), "data come that nobody expects")?;
        same("the residual", answer.residual, Residual::Overflow(length))
    }),
    ("commands/inquiry-shorter-than-expected", "RFC 7143 11.4.5.2", |s| {
        let mut conn = s.session(&[])?;
        let answer = conn.scsi(&[0x12, 0, 0, 0, 36, 0], Moves::In(200))?;
        answer.good()?;
        same("the length of the data", answer.data.len(), 36)?;
        same("the residual", answer.residual, Residual::Underflow(164))
    }),
    ("commands/data-expected-of-a-command-without", "RFC 7143 11.4.5.2", |s| {
        let mut conn = s.session(&[])?;
        let answer = conn.scsi(&READY, Moves::In(512))?;
        answer.good()?;
        same("the residual", answer.residual, Residual::Underflow(512))
    }),
    ("commands/sense-comes-with-the-status", "RFC 7143 11.4.7.2", |s| {
        let mut conn = s.session(&[])?;
        let answer = conn.scsi(&ten(0x28, u32::MAX, 1), Moves::In(512))?;
        answer.sense_is(5, 0x2100)?;
        check(
            answer.residual == Residual::Underflow(512),
            format!("residual {:?}", answer.residual),
        )
    }),
    ("commands/ExpDataSN-counts-Data-In", "RFC 7143 11.4.8", |s| {
        // A residual keeps the status apart from the data.
        let mut conn = s.session(&[("MaxRecvDataSegmentLength", "512")])?;
        let length = 4 * conn.block as u32;
        let answer = conn.scsi(&ten(0x28, 0, 3), Moves::In(length))?;
        answer.good()?;
        match answer.response {
            Some(it) => same("ExpDataSN", it.exp_data_sn, answer.parts),
            None => Ok(()),
        }
    }),
    ("commands/ExpDataSN-is-0-without-Data-In", "RFC 7143 11.4.8", |s| {
        let mut conn = s.session(&[("InitialR2T", "Yes"), ("ImmediateData", "No")])?;
        let data = vec![0; conn.block];
        let answer = conn.scsi(&ten(0x2a, 0, 1), Moves::Out(&data))?;
        answer.good()?;
        match answer.response {
            Some(it) => same("ExpDataSN", it.exp_data_sn, 0),
            None => fail("there is no response"),
        }
    }),
    ("commands/reads-end-with-F-at-each-burst", "RFC 7143 11.7.1", bursts),
    ("commands/many-reads-at-once", "RFC 7143 4.2.2", |s| {
        let mut conn = s.session(&[])?;
        let data = pattern(8 * conn.block, 9);
        conn.write(40, &data)?;
        let length = conn.block as u32;
        let itts: Vec<u32> =
            (0..8).map(|n| conn.begin(&ten(0x28, 40 + n, 1), Moves::In(length))).collect();
        let mut found = vec![Vec::new(); 8];
        let mut done = 0;
        while done < 8 {
            let (pdu, part) = conn.next()?;
            let (itt, end) = match pdu {
                Pdu::DataIn(it) => (it.itt, it.status),
                Pdu::ScsiResponse(it) => (it.itt, Some(it.status)),
                other => return fail(format!("{other:?}")),
            };
            let Some(at) = itts.iter().position(|it| *it == itt) else {
                return fail(format!("an answer to {itt:#x}"));
            };
            if matches!(pdu, Pdu::DataIn(_)) {
                found[at].extend_from_slice(&part);
            }
            if let Some(status) = end {
                same("the status", status, 0)?;
                done += 1;
            }
        }
        check(found.concat() == data, "other data than were written")
    }),
];

pub(super) fn cases() -> Vec<Case> {
    let mut all = named(NAMED);
    for opcode in [0x07, 0x0f, 0x1c, 0x1f, 0x20, 0x21, 0x25, 0x31, 0x3f, 0x33] {
        let name = format!("commands/opcode-{opcode:02x}");
        all.push(Case::new(name, "RFC 7143 11.2.1.2", move |s| {
            let mut conn = s.session(&[])?;
            let bytes = unknown(opcode, &conn.at_once());
            conn.raw(&bytes);
            match conn.hear()? {
                Heard::Closed => Ok(()),
                Heard::Pdu(Pdu::Reject(it), _) => {
                    check(UNMARKED.contains(&it.reason), format!("reason {:#04x}", it.reason))?;
                    conn.nothing_came("11.17")
                }
                other => fail(format!("{other:?} where a reject is due")),
            }
        }));
    }
    for (segment, count) in
        [("512", 33), ("4096", 64), ("8192", 65), ("65536", 300), ("262144", 1024)]
    {
        let name = format!("commands/reads-in-segments-of-{segment}");
        all.push(Case::new(name, "RFC 7143 13.12", move |s| {
            let mut conn = s.session(&[("MaxRecvDataSegmentLength", segment)])?;
            let data = pattern(count * conn.block, 77);
            conn.write(100, &data)?;
            conn.holds(100, &data)
        }));
    }
    all
}

/// A PDU of any opcode, immediate.
fn unknown(opcode: u8, sn: &iscsi::pdu::RequestNumbers) -> Vec<u8> {
    let mut basic = Basic { opcode, immediate: true, flags: 0x80, itt: 0x99, ..Basic::default() };
    basic.words[0] = NO_TAG;
    basic.words[1] = sn.cmd_sn;
    basic.words[2] = sn.exp_stat_sn;
    frame::write(basic, &[], &[], Digests::default())
}

/// A command descriptor block with more behind the header: it is of an operation code that no target
/// has, and answered.
fn long_cdb(subject: &Subject, more: usize) -> Outcome {
    let mut conn = subject.session(&[])?;
    let command =
        conn.command(&[0x7f, 0, 0, 0, 0, 0, 0, more as u8 + 8, 0xff, 0xff], Moves::Nothing);
    let ahs = Additional { cdb: vec![0; more].into(), ..Additional::default() }.write();
    conn.send_ahs(Pdu::ScsiCommand(command), &ahs, &[]);
    match conn.next()? {
        (Pdu::ScsiResponse(it), _) if it.itt == command.itt => {
            check(it.status == 2, format!("status {:#04x}", it.status))?;
            conn.nothing_came("11.4")
        }
        (Pdu::Reject(_), _) => conn.nothing_came("11.17"),
        (other, _) => fail(format!("{other:?}")),
    }
}

fn additional(subject: &Subject, ahs: &[u8]) -> Outcome {
    let mut conn = subject.session(&[])?;
    let command = conn.command(&READY, Moves::Nothing);
    conn.send_ahs(Pdu::ScsiCommand(command), ahs, &[]);
    match conn.hear()? {
        Heard::Closed | Heard::Pdu(Pdu::Reject(_), _) => Ok(()),
        Heard::Pdu(Pdu::ScsiResponse(it), _) if it.status != 0 => Ok(()),
        other => fail(format!("{other:?} where the command is refused")),
    }
}

fn bursts(subject: &Subject) -> Outcome {
    let keys = [
        ("MaxBurstLength", "4096"),
        ("MaxRecvDataSegmentLength", "1024"),
        ("FirstBurstLength", "4096"),
    ];
    let mut conn = subject.session(&keys)?;
    let burst = conn.number("MaxBurstLength", 4096);
    let length = 16384_u32;
    let itt = conn.begin(&ten(0x28, 0, (length / conn.block as u32) as u16), Moves::In(length));
    let mut since = 0;
    let mut all = 0;
    while all < length {
        match conn.next()? {
            (Pdu::DataIn(DataIn { last, .. }), data) => {
                since += data.len() as u32;
                all += data.len() as u32;
                check(
                    since <= burst,
                    format!("{since} bytes without F where {burst} are the most"),
                )?;
                if last {
                    since = 0;
                }
            }
            (other, _) => return fail(format!("{other:?} where Data-In is due")),
        }
    }
    check(since == 0, "the last Data-In has no F")?;
    match conn.until_pong()?[..] {
        [] => Ok(()),
        [(Pdu::ScsiResponse(it), _)] if it.itt == itt => same("the status", it.status, 0),
        ref other => fail(format!("{other:?}")),
    }
}

//! Data-Out: immediate, unsolicited, asked for by R2T (RFC 7143 4.2.5.2, 11.7, 11.8, 13.10 to 13.19).

use iscsi::pdu::{NO_TAG, Pdu, R2t, Residual, ScsiCommand};

use super::{
    super::{
        Case, Outcome, Subject, check,
        conn::{Answer, Conn, Moves, READY, pattern, ten},
        fail, same, skip,
        wire::Heard,
    },
    Named, named,
};

/// The cases that stand for themselves.
const NAMED: &[Named] = &[
    ("data/R2T-of-all-data", "RFC 7143 11.8", |s| {
        let mut conn = s.session(&[("InitialR2T", "Yes"), ("ImmediateData", "No")])?;
        let data = pattern(64 * conn.block, 1);
        let answer = conn.write(0, &data)?;
        let all: u32 = answer.asked.iter().map(|(_, length)| length).sum();
        same("the length that is asked for", all as usize, data.len())?;
        conn.holds(0, &data)
    }),
    ("data/R2T-within-MaxBurstLength-and-in-order", "RFC 7143 13.13", |s| {
        let keys = [("InitialR2T", "Yes"), ("ImmediateData", "No"), ("MaxBurstLength", "4096")];
        let mut conn = s.session(&keys)?;
        let most = conn.number("MaxBurstLength", 4096);
        let data = pattern(32 * conn.block, 2);
        let answer = conn.write(0, &data)?;
        let mut next = 0;
        for (offset, length) in answer.asked {
            same("Buffer Offset", offset, next)?;
            check(length <= most, format!("{length} bytes at once where {most} are the most"))?;
            next += length;
        }
        conn.holds(0, &data)
    }),
    ("data/one-R2T-at-a-time", "RFC 7143 13.17", |s| outstanding(s, "1")),
    ("data/four-R2T-at-a-time", "RFC 7143 13.17", |s| outstanding(s, "4")),
    ("data/R2T-of-two-commands", "RFC 7143 11.8", |s| {
        let mut conn = s.session(&[("InitialR2T", "Yes"), ("ImmediateData", "No")])?;
        let (one, two) = (pattern(conn.block, 3), pattern(conn.block, 4));
        let (first, ask1) = conn.begin_write(10, 1)?;
        let (second, ask2) = conn.begin_write(11, 1)?;
        conn.give(&ask2, &two)?;
        conn.give(&ask1, &one)?;
        let mut ends = vec![first, second];
        while !ends.is_empty() {
            match conn.next()? {
                (Pdu::ScsiResponse(it), _) if ends.contains(&it.itt) => {
                    same("the status", it.status, 0)?;
                    ends.retain(|itt| *itt != it.itt);
                }
                (other, _) => return fail(format!("{other:?}")),
            }
        }
        conn.holds(10, &[one, two].concat())
    }),
    ("data/more-than-expected-is-wanted", "RFC 7143 11.4.5.2", |s| {
        let mut conn = s.session(&[("InitialR2T", "Yes"), ("ImmediateData", "No")])?;
        let data = pattern(conn.block, 5);
        let answer = conn.scsi(&ten(0x2a, 20, 3), Moves::Out(&data))?;
        same("the residual", answer.residual, Residual::Overflow(2 * data.len() as u32))
    }),
    ("data/less-than-expected-is-wanted", "RFC 7143 11.4.5.2", |s| {
        let mut conn = s.session(&[("InitialR2T", "Yes"), ("ImmediateData", "No")])?;
        let data = pattern(3 * conn.block, 6);
        let answer = conn.scsi(&ten(0x2a, 20, 1), Moves::Out(&data))?;
        answer.good()?;
        same("the residual", answer.residual, Residual::Underflow(2 * conn.block as u32))?;
        conn.holds(20, &data[..conn.block])
    }),
    ("data/Data-Out-for-no-task", "RFC 7143 11.7", |s| {
        let mut conn = s.session(&[])?;
        let pdu = conn.data_out(0x7777, 0x55, 0, 0, true);
        conn.send(Pdu::DataOut(pdu), &[1; 512]);
        match conn.until_pong()?[..] {
            [] | [(Pdu::Reject(_), _)] => conn.scsi(&READY, Moves::Nothing)?.good(),
            ref other => fail(format!("{other:?}")),
        }
    }),
    ("data/Data-Out-for-a-tag-that-nobody-gave", "RFC 7143 11.7.4", |s| {
        let mut conn = s.session(&[("InitialR2T", "Yes"), ("ImmediateData", "No")])?;
        let (itt, ask) = conn.begin_write(30, 1)?;
        let before = conn_block(&conn);
        let wrong = conn.data_out(itt, ask.ttt ^ 0x4000, 0, 0, true);
        conn.send(Pdu::DataOut(wrong), &before);
        refused_or_ignored(&mut conn, itt)
    }),
    ("data/shorter-than-asked-for", "RFC 7143 11.8.2", |s| {
        wrong(s, &|conn, ask| {
            let pdu = conn.data_out(ask.itt, ask.ttt, 0, ask.offset, true);
            conn.send(Pdu::DataOut(pdu), &vec![0; ask.length as usize - 4]);
        })
    }),
    ("data/longer-than-asked-for", "RFC 7143 11.8.2", |s| {
        wrong(s, &|conn, ask| {
            let pdu = conn.data_out(ask.itt, ask.ttt, 0, ask.offset, true);
            conn.send(Pdu::DataOut(pdu), &vec![0; ask.length as usize + 4]);
        })
    }),
    ("data/at-another-offset", "RFC 7143 13.18", |s| {
        wrong(s, &|conn, ask| {
            let pdu = conn.data_out(ask.itt, ask.ttt, 0, ask.offset + 4, true);
            conn.send(Pdu::DataOut(pdu), &vec![0; ask.length as usize]);
        })
    }),
    ("data/at-an-offset-beyond-the-command", "RFC 7143 11.7.6", |s| {
        wrong(s, &|conn, ask| {
            let pdu = conn.data_out(ask.itt, ask.ttt, 0, 0xffff_fff0, true);
            conn.send(Pdu::DataOut(pdu), &vec![0; ask.length as usize]);
        })
    }),
    ("data/DataSN-that-is-not-next", "RFC 7143 7.7", |s| {
        wrong(s, &|conn, ask| {
            let pdu = conn.data_out(ask.itt, ask.ttt, 3, ask.offset, true);
            conn.send(Pdu::DataOut(pdu), &vec![0; ask.length as usize]);
        })
    }),
    ("data/a-piece-is-missing", "RFC 7143 7.7", |s| {
        wrong(s, &|conn, ask| {
            let half = ask.length / 2;
            let pdu = conn.data_out(ask.itt, ask.ttt, 1, ask.offset + half, true);
            conn.send(Pdu::DataOut(pdu), &vec![0; half as usize]);
        })
    }),
    ("data/no-F-at-the-end", "RFC 7143 11.7.1", |s| {
        let mut conn = s.session(&[("InitialR2T", "Yes"), ("ImmediateData", "No")])?;
        let (itt, ask) = conn.begin_write(30, 1)?;
        let pdu = conn.data_out(itt, ask.ttt, 0, ask.offset, false);
        conn.send(Pdu::DataOut(pdu), &vec![0; ask.length as usize]);
        // Whether the target takes it or waits for F, it goes on.
        for (pdu, _) in conn.until_pong()? {
            match pdu {
                Pdu::ScsiResponse(_) | Pdu::Reject(_) => {}
                other => return fail(format!("{other:?}")),
            }
        }
        Ok(())
    }),
    ("data/a-write-of-nothing", "SBC-3 5.33", |s| {
        let mut conn = s.session(&[])?;
        conn.scsi(&ten(0x2a, 0, 0), Moves::Out(&[]))?.good()
    }),
    ("data/a-write-beyond-the-end", "SBC-3 4.5", |s| {
        let mut conn = s.session(&[("InitialR2T", "Yes"), ("ImmediateData", "No")])?;
        let data = vec![0; conn.block];
        conn.scsi(&ten(0x2a, u32::MAX, 1), Moves::Out(&data))?.sense_is(5, 0x2100)
    }),
    ("data/in-any-order-where-that-was-agreed-upon", "RFC 7143 13.18", |s| {
        let keys = [("InitialR2T", "Yes"), ("ImmediateData", "No"), ("DataPDUInOrder", "No")];
        let mut conn = s.session(&keys)?;
        if conn.value("DataPDUInOrder") != Some("No") {
            return skip("the target insists on order");
        }
        let data = pattern(2 * conn.block, 7);
        let (itt, ask) = conn.begin_write(30, 2)?;
        let half = conn.block;
        let late = conn.data_out(itt, ask.ttt, 0, half as u32, false);
        conn.send(Pdu::DataOut(late), &data[half..]);
        let early = conn.data_out(itt, ask.ttt, 1, 0, true);
        conn.send(Pdu::DataOut(early), &data[..half]);
        conn.answer(itt, &[])?.good()?;
        conn.holds(30, &data)
    }),
];

pub(super) fn cases() -> Vec<Case> {
    let mut all = named(NAMED);
    for (r2t, immediate) in [("Yes", "Yes"), ("Yes", "No"), ("No", "Yes"), ("No", "No")] {
        for (what, run) in WAYS {
            let name = format!("data/InitialR2T={r2t},ImmediateData={immediate}/{what}");
            all.push(Case::new(name, "RFC 7143 4.2.5.2", move |s| {
                let keys = [
                    ("InitialR2T", r2t),
                    ("ImmediateData", immediate),
                    ("FirstBurstLength", "8192"),
                ];
                let conn = s.session(&keys)?;
                let is = |key, wanted: &str| conn.value(key) == Some(wanted);
                if !is("InitialR2T", r2t) || !is("ImmediateData", immediate) {
                    return skip("the target agrees to other values");
                }
                run(conn, r2t == "No", immediate == "Yes")
            }));
        }
    }
    all
}

type Way = fn(Conn, bool, bool) -> Outcome;

/// What comes of itself; whether it may is what was agreed upon.
const WAYS: [(&str, Way); 6] = [
    ("immediate", |mut conn, _, may| {
        let data = pattern(4 * conn.block, 11);
        let command = conn.command(&ten(0x2a, 50, 4), Moves::Out(&data));
        let now = 2 * conn.block;
        conn.send(Pdu::ScsiCommand(command), &data[..now]);
        let answer = conn_end(&mut conn, command.itt, &data)?;
        agreed(&mut conn, answer, may, now, &data)
    }),
    ("all-immediate", |mut conn, _, may| {
        let data = pattern(2 * conn.block, 12);
        let command = conn.command(&ten(0x2a, 50, 2), Moves::Out(&data));
        conn.send(Pdu::ScsiCommand(command), &data);
        let answer = conn_end(&mut conn, command.itt, &data)?;
        agreed(&mut conn, answer, may, data.len(), &data)
    }),
    ("unsolicited", |mut conn, may, _| {
        let data = pattern(4 * conn.block, 13);
        let now = 2 * conn.block;
        let command =
            ScsiCommand { last: false, ..conn.command(&ten(0x2a, 50, 4), Moves::Out(&data)) };
        conn.send(Pdu::ScsiCommand(command), &[]);
        for (n, part) in data[..now].chunks(512).enumerate() {
            let last = (n + 1) * 512 == now;
            let pdu = conn.data_out(command.itt, NO_TAG, n as u32, n as u32 * 512, last);
            conn.send(Pdu::DataOut(pdu), part);
        }
        let answer = conn_end(&mut conn, command.itt, &data)?;
        agreed(&mut conn, answer, may, now, &data)
    }),
    ("immediate-and-unsolicited", |mut conn, r2t, immediate| {
        let data = pattern(6 * conn.block, 14);
        let (now, then) = (2 * conn.block, 4 * conn.block);
        let command =
            ScsiCommand { last: false, ..conn.command(&ten(0x2a, 50, 6), Moves::Out(&data)) };
        conn.send(Pdu::ScsiCommand(command), &data[..now]);
        let pdu = conn.data_out(command.itt, NO_TAG, 0, now as u32, true);
        conn.send(Pdu::DataOut(pdu), &data[now..then]);
        let answer = conn_end(&mut conn, command.itt, &data)?;
        agreed(&mut conn, answer, r2t && immediate, then, &data)
    }),
    ("beyond-FirstBurstLength", |mut conn, may, _| {
        let first = conn.number("FirstBurstLength", 8192) as usize;
        let blocks = 4 * first / conn.block;
        let data = pattern(4 * first, 15);
        let command = ScsiCommand {
            last: false,
            ..conn.command(&ten(0x2a, 50, blocks as u16), Moves::Out(&data))
        };
        conn.send(Pdu::ScsiCommand(command), &[]);
        for n in 0..2 {
            let pdu = conn.data_out(command.itt, NO_TAG, n, n * first as u32, n == 1);
            conn.send(Pdu::DataOut(pdu), &data[..first]);
        }
        let _ = may;
        let answer = conn_end(&mut conn, command.itt, &data)?;
        agreed(&mut conn, answer, false, 0, &data)
    }),
    ("nothing-of-itself", |mut conn, _, _| {
        let data = pattern(4 * conn.block, 16);
        let answer = conn.write(50, &data)?;
        let all: u32 = answer.asked.iter().map(|(_, length)| length).sum();
        same("the length that is asked for", all as usize, data.len())?;
        conn.holds(50, &data)
    }),
];

/// Data that came of themselves are taken where that was agreed upon, and else refused.
fn agreed(conn: &mut Conn, answer: Option<Answer>, may: bool, now: usize, data: &[u8]) -> Outcome {
    let Some(answer) = answer else {
        return check(!may, "the target refuses what was agreed upon");
    };
    if !may {
        return check(answer.status != 0, "the target takes what was not agreed upon");
    }
    answer.good()?;
    let rest: u32 = answer.asked.iter().map(|(_, length)| length).sum();
    same("the length that is asked for", rest as usize, data.len() - now)?;
    let at = 50;
    conn.holds(at, data)
}

/// The end of a write; `None` if it is rejected, or the connection ends.
fn conn_end(conn: &mut Conn, itt: u32, data: &[u8]) -> Outcome<Option<Answer>> {
    let mut asked = Vec::new();
    loop {
        match conn.hear()? {
            Heard::Closed | Heard::Pdu(Pdu::Reject(_), _) => return Ok(None),
            Heard::Pdu(Pdu::R2t(ask), _) if ask.itt == itt => {
                asked.push((ask.offset, ask.length));
                conn.give(&ask, data)?;
            }
            Heard::Pdu(Pdu::ScsiResponse(it), segment) if it.itt == itt => {
                let sense = segment.get(2..).unwrap_or_default().to_vec();
                let (status, residual, response) = (it.status, it.residual, Some(it));
                return Ok(Some(Answer {
                    status,
                    sense,
                    data: Vec::new(),
                    parts: 0,
                    residual,
                    response,
                    asked,
                }));
            }
            Heard::Pdu(other, _) => return fail(format!("{other:?} where the write's end is due")),
        }
    }
}

fn conn_block(conn: &Conn) -> Vec<u8> {
    pattern(conn.block, 21)
}

/// Data that are wrong end the command at ErrorRecoveryLevel 0: by a status, a reject or the
/// connection (RFC 7143 7.1.4, 7.7). They are never taken as if they were right.
fn wrong(subject: &Subject, lie: &dyn Fn(&mut Conn, &R2t)) -> Outcome {
    let keys = [("InitialR2T", "Yes"), ("ImmediateData", "No"), ("ErrorRecoveryLevel", "0")];
    let mut conn = subject.session(&keys)?;
    let (itt, ask) = conn.begin_write(30, 1)?;
    lie(&mut conn, &ask);
    refused_or_ignored(&mut conn, itt)
}

fn refused_or_ignored(conn: &mut Conn, itt: u32) -> Outcome {
    let tag = conn.tag();
    let nop = iscsi::pdu::NopOut { sn: conn.at_once(), lun: [0; 8], itt: tag, ttt: NO_TAG };
    conn.send(Pdu::NopOut(nop), &[]);
    loop {
        match conn.hear()? {
            Heard::Closed => return Ok(()),
            Heard::Pdu(Pdu::Reject(_), _) => {}
            Heard::Pdu(Pdu::ScsiResponse(it), _) if it.itt == itt => {
                check(
                    it.status != 0 || it.response != 0,
                    "the target takes it as if it were right",
                )?;
            }
            Heard::Pdu(Pdu::NopIn(nop), _) if nop.itt == tag => return Ok(()),
            Heard::Pdu(Pdu::R2t(ask), _) if ask.itt == itt => {}
            Heard::Pdu(other, _) => return fail(format!("{other:?}")),
        }
    }
}

fn outstanding(subject: &Subject, offer: &str) -> Outcome {
    let keys = [
        ("InitialR2T", "Yes"),
        ("ImmediateData", "No"),
        ("MaxBurstLength", "4096"),
        ("FirstBurstLength", "4096"),
        ("MaxOutstandingR2T", offer),
    ];
    let mut conn = subject.session(&keys)?;
    let most = conn.number("MaxOutstandingR2T", 1) as usize;
    let data = pattern(32768, 8);
    let itt = conn.begin(&ten(0x2a, 0, (32768 / conn.block) as u16), Moves::Out(&data));
    let mut open: Vec<R2t> = Vec::new();
    let mut given = 0;
    while given < data.len() {
        // All that are outstanding, before one of them is answered.
        for (pdu, _) in conn.until_pong()? {
            match pdu {
                Pdu::R2t(ask) if ask.itt == itt => open.push(ask),
                other => return fail(format!("{other:?} where an R2T is due")),
            }
        }
        check(!open.is_empty(), "no R2T is outstanding")?;
        check(
            open.len() <= most,
            format!("{} R2T are outstanding where {most} are the most", open.len()),
        )?;
        let ask = open.remove(0);
        same("Buffer Offset", ask.offset as usize, given)?;
        conn.give(&ask, &data)?;
        given += ask.length as usize;
    }
    let last = conn.until_pong()?;
    match last[..] {
        [(Pdu::ScsiResponse(it), _)] if it.itt == itt => same("the status", it.status, 0)?,
        // It may not be through yet.
        [] => match conn.next()? {
            (Pdu::ScsiResponse(it), _) if it.itt == itt => same("the status", it.status, 0)?,
            (other, _) => return fail(format!("{other:?}")),
        },
        ref other => return fail(format!("{other:?}")),
    }
    conn.holds(0, &data)
}

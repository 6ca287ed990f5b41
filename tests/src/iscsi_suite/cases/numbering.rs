//! CmdSN, ExpCmdSN, MaxCmdSN, task tags, immediate commands, pings (RFC 7143 4.2.2, 11.18).

use iscsi::pdu::{NO_TAG, NopOut, Pdu, ScsiCommand, reason};

use super::{
    super::{
        Case, Outcome, Subject, check,
        conn::{Conn, Moves, READY, ten},
        fail, same, skip,
    },
    Named, named,
};

/// The cases that stand for themselves.
const NAMED: &[Named] = &[
    ("numbering/ExpCmdSN-follows", "RFC 7143 4.2.2.1", |s| {
        let mut conn = s.session(&[])?;
        for _ in 0..5 {
            conn.scsi(&READY, Moves::Nothing)?.good()?;
            same("ExpCmdSN", conn.numbers.exp_cmd_sn, conn.cmd_sn)?;
        }
        Ok(())
    }),
    ("numbering/immediate-commands-take-no-number", "RFC 7143 4.2.2.1", |s| {
        let mut conn = s.session(&[])?;
        let before = conn.cmd_sn;
        let sn = conn.at_once();
        let command = ScsiCommand { sn, ..conn.command(&READY, Moves::Nothing) };
        conn.cmd_sn = before;
        conn.send(Pdu::ScsiCommand(command), &[]);
        conn.answer(command.itt, &[])?.good()?;
        same("ExpCmdSN", conn.numbers.exp_cmd_sn, before)
    }),
    ("numbering/CmdSN-wraps", "RFC 7143 4.2.2.1", |s| {
        let want = super::super::login::Want { cmd_sn: u32::MAX - 1, ..s.want() };
        let mut conn = s.enter(want)?;
        for _ in 0..6 {
            conn.quiet(&READY, Moves::Nothing)?.good()?;
        }
        check(conn.cmd_sn < 100, "the numbers did not wrap")
    }),
    ("numbering/a-hole-holds-what-is-behind-it", "RFC 7143 4.2.2.1", |s| {
        let mut conn = s.session(&[])?;
        let first = conn.command(&READY, Moves::Nothing);
        let second = conn.command(&READY, Moves::Nothing);
        conn.send(Pdu::ScsiCommand(second), &[]);
        conn.nothing_came("4.2.2.1")?;
        conn.send(Pdu::ScsiCommand(first), &[]);
        conn.answer(first.itt, &[])?.good()?;
        conn.answer(second.itt, &[])?.good()
    }),
    ("numbering/commands-in-reverse", "RFC 7143 4.2.2.1", |s| {
        let mut conn = s.session(&[])?;
        let room = window(&conn).min(16);
        let commands: Vec<_> = (0..room).map(|_| conn.command(&READY, Moves::Nothing)).collect();
        for command in commands.iter().rev() {
            conn.send(Pdu::ScsiCommand(*command), &[]);
        }
        for command in &commands {
            conn.answer(command.itt, &[])?.good()?;
        }
        Ok(())
    }),
    ("numbering/a-command-that-comes-twice-is-done-once", "RFC 7143 4.2.2.1", |s| {
        let mut conn = s.session(&[])?;
        let command = conn.command(&READY, Moves::Nothing);
        conn.send(Pdu::ScsiCommand(command), &[]);
        conn.answer(command.itt, &[])?.good()?;
        conn.send(Pdu::ScsiCommand(command), &[]);
        conn.nothing_came("4.2.2.1")
    }),
    ("numbering/a-number-below-the-window-is-not-there", "RFC 7143 4.2.2.1", |s| {
        let mut conn = s.session(&[])?;
        let mut command = conn.command(&READY, Moves::Nothing);
        conn.cmd_sn -= 1;
        command.sn.cmd_sn = command.sn.cmd_sn.wrapping_sub(3);
        conn.send(Pdu::ScsiCommand(command), &[]);
        conn.nothing_came("4.2.2.1")?;
        conn.scsi(&READY, Moves::Nothing)?.good()
    }),
    ("numbering/a-number-above-the-window-is-not-there", "RFC 7143 4.2.2.1", |s| {
        let mut conn = s.session(&[])?;
        let mut command = conn.command(&READY, Moves::Nothing);
        conn.cmd_sn -= 1;
        command.sn.cmd_sn = conn.numbers.max_cmd_sn.wrapping_add(1);
        conn.send(Pdu::ScsiCommand(command), &[]);
        conn.nothing_came("4.2.2.1")?;
        conn.scsi(&READY, Moves::Nothing)?.good()
    }),
    ("numbering/the-window-closes-and-opens", "RFC 7143 4.2.2.1", closes),
    ("numbering/immediate-commands-pass-a-closed-window", "RFC 7143 4.2.2.1", immediate),
    ("numbering/immediate-commands-without-end", "RFC 7143 11.17.1", |s| {
        // Each is taken or rejected; the session stands it.
        let mut conn = s.session(&[("InitialR2T", "Yes"), ("ImmediateData", "No")])?;
        for _ in 0..80 {
            let sn = conn.at_once();
            let data = vec![0; conn.block];
            let write = conn.command(&ten(0x2a, 0, 1), Moves::Out(&data));
            conn.cmd_sn = sn.cmd_sn;
            conn.send(Pdu::ScsiCommand(ScsiCommand { sn, ..write }), &[]);
            match conn.next()?.0 {
                Pdu::R2t(_) => {}
                Pdu::Reject(it) => {
                    same("the reason", it.reason, reason::IMMEDIATE)?;
                    break;
                }
                Pdu::ScsiResponse(it) if matches!(it.status, 0x08 | 0x28) => break,
                other => return fail(format!("{other:?}")),
            }
        }
        let request = conn.request(2, NO_TAG, 0);
        conn.send(Pdu::TaskRequest(request), &[]);
        loop {
            match conn.next()?.0 {
                Pdu::TaskResponse(it) => return same("ABORT TASK SET", it.response, 0),
                Pdu::R2t(_) => {}
                other => return fail(format!("{other:?}")),
            }
        }
    }),
    ("numbering/one-function-at-once-always-passes", "RFC 7143 4.2.2.1", |s| {
        let mut conn = s.session(&[])?;
        for _ in 0..3 {
            conn.begin_write(0, 1)?;
        }
        let request = conn.request(2, NO_TAG, 0);
        same("the response", conn.function(request)?.0, 0)
    }),
    ("numbering/a-tag-in-use", "RFC 7143 11.3.3", |s| {
        let mut conn = s.session(&[])?;
        let (itt, ask) = conn.begin_write(0, 1)?;
        let command = ScsiCommand { itt, ..conn.command(&READY, Moves::Nothing) };
        conn.send(Pdu::ScsiCommand(command), &[]);
        conn.rejected(&[reason::TASK_IN_PROGRESS, reason::FIELD, reason::PROTOCOL])?;
        let data = vec![0; conn.block];
        conn.give(&ask, &data)?;
        match conn.next()? {
            (Pdu::ScsiResponse(it), _) if it.itt == itt => same("the status", it.status, 0),
            (other, _) => fail(format!("{other:?} where the write's end is due")),
        }
    }),
    ("numbering/a-tag-again-once-it-is-free", "RFC 7143 11.2.1.8", |s| {
        let mut conn = s.session(&[])?;
        for _ in 0..3 {
            let command = ScsiCommand { itt: 0x42, ..conn.command(&READY, Moves::Nothing) };
            conn.send(Pdu::ScsiCommand(command), &[]);
            conn.answer(0x42, &[])?.good()?;
        }
        Ok(())
    }),
    ("numbering/the-tag-that-is-none", "RFC 7143 11.2.1.8", |s| {
        let mut conn = s.session(&[])?;
        let command = ScsiCommand { itt: NO_TAG, ..conn.command(&READY, Moves::Nothing) };
        conn.send(Pdu::ScsiCommand(command), &[]);
        conn.rejected(&[reason::PROTOCOL, reason::FIELD]).map(drop)
    }),
    ("numbering/ping", "RFC 7143 11.18", |s| s.session(&[])?.nothing_came("11.18")),
    ("numbering/ping-with-a-number", "RFC 7143 11.18", |s| {
        let mut conn = s.session(&[])?;
        let (sn, itt) = (conn.numbers(), conn.tag());
        conn.send(Pdu::NopOut(NopOut { sn, lun: [0; 8], itt, ttt: NO_TAG }), &[]);
        match conn.next()? {
            (Pdu::NopIn(it), data) => {
                same("Initiator Task Tag", it.itt, itt)?;
                same("Target Transfer Tag", it.ttt, NO_TAG)?;
                check(data.is_empty(), "data come back that did not go")?;
                same("ExpCmdSN", conn.numbers.exp_cmd_sn, conn.cmd_sn)
            }
            (other, _) => fail(format!("{other:?} where a NOP-In is due")),
        }
    }),
    ("numbering/ping-longer-than-what-is-taken", "RFC 7143 11.19", |s| {
        let mut conn = s.session(&[("MaxRecvDataSegmentLength", "512")])?;
        let (sn, itt) = (conn.at_once(), conn.tag());
        let data: Vec<u8> = (0..4000_u32).map(|n| n as u8).collect();
        conn.send(Pdu::NopOut(NopOut { sn, lun: [0; 8], itt, ttt: NO_TAG }), &data);
        match conn.next()? {
            (Pdu::NopIn(it), back) if it.itt == itt => {
                check(data.starts_with(&back), "other data come back (11.18)")
            }
            (other, _) => fail(format!("{other:?} where a NOP-In is due")),
        }
    }),
    ("numbering/a-ping-that-wants-no-answer", "RFC 7143 11.18", |s| {
        let mut conn = s.session(&[])?;
        let sn = conn.at_once();
        conn.send(Pdu::NopOut(NopOut { sn, lun: [0; 8], itt: NO_TAG, ttt: NO_TAG }), &[]);
        conn.nothing_came("11.18")
    }),
    ("numbering/a-logout-in-order-waits-for-its-turn", "RFC 7143 11.14", |s| {
        let mut conn = s.session(&[])?;
        let command = conn.command(&READY, Moves::Nothing);
        let (sn, itt, cid) = (conn.numbers(), conn.tag(), conn.cid);
        let logout = iscsi::pdu::LogoutRequest { sn, reason: 0, itt, cid };
        conn.send(Pdu::LogoutRequest(logout), &[]);
        conn.nothing_came("4.2.2.1")?;
        conn.send(Pdu::ScsiCommand(command), &[]);
        // The command may be aborted by the logout; the logout is answered.
        loop {
            if let (Pdu::LogoutResponse(it), _) = conn.next()? {
                return same("the response", it.response, 0);
            }
        }
    }),
];

pub(super) fn cases() -> Vec<Case> {
    named(NAMED)
}

/// Commands that the target takes now.
fn window(conn: &Conn) -> u32 {
    conn.numbers.max_cmd_sn.wrapping_sub(conn.numbers.exp_cmd_sn).wrapping_add(1)
}

/// Writes that wait for their data fill the window; `None` if it does not come to an end.
fn fill(conn: &mut Conn) -> Outcome<Option<Vec<u32>>> {
    let mut waiting = Vec::new();
    while window(conn) > 0 {
        if waiting.len() == 1024 {
            return Ok(None);
        }
        let data = vec![0; conn.block];
        let itt = conn.begin(&ten(0x2a, 0, 1), Moves::Out(&data));
        // Its R2T tells the window, where the target asks for data at once.
        match conn.until_pong()?.last() {
            Some((Pdu::R2t(_), _)) | None => waiting.push(itt),
            Some((other, _)) => return fail(format!("{other:?} where an R2T is due")),
        }
    }
    Ok(Some(waiting))
}

fn closes(subject: &Subject) -> Outcome {
    let mut conn = subject.session(&[("InitialR2T", "Yes"), ("ImmediateData", "No")])?;
    let Some(waiting) = fill(&mut conn)? else {
        return skip("more than 1024 commands find room");
    };
    let command = conn.command(&READY, Moves::Nothing);
    conn.cmd_sn -= 1;
    conn.send(Pdu::ScsiCommand(command), &[]);
    conn.nothing_came("4.2.2.1")?;
    check(!waiting.is_empty(), "the window is closed from the beginning")?;
    let request = conn.request(2, NO_TAG, 0);
    same("ABORT TASK SET", conn.function(request)?.0, 0)?;
    conn.until_pong()?;
    check(window(&conn) > 0, "the window stays closed")?;
    conn.quiet(&READY, Moves::Nothing)?.good()
}

fn immediate(subject: &Subject) -> Outcome {
    let mut conn = subject.session(&[("InitialR2T", "Yes"), ("ImmediateData", "No")])?;
    if fill(&mut conn)?.is_none() {
        return skip("more than 1024 commands find room");
    }
    let sn = conn.at_once();
    let command = ScsiCommand { sn, ..conn.command(&READY, Moves::Nothing) };
    conn.cmd_sn = sn.cmd_sn;
    conn.send(Pdu::ScsiCommand(command), &[]);
    conn.answer(command.itt, &[])?.good()?;
    let request = conn.request(2, NO_TAG, 0);
    same("ABORT TASK SET", conn.function(request)?.0, 0)
}

//! Task management (RFC 7143 11.5, 11.6; RFC 7144 4; SAM-5 7).

use iscsi::pdu::{NO_TAG, Pdu, TaskRequest, function, outcome};

use super::{
    super::{
        Case, Outcome, Subject, check,
        conn::{Conn, Moves, READY},
        fail,
        login::Want,
        same, skip,
        subject::OTHER,
    },
    Named, named,
};

/// The cases that stand for themselves.
const NAMED: &[Named] = &[
    ("functions/ABORT-TASK", "RFC 7143 11.5.1", |s| {
        let mut conn = s.session(&[])?;
        let sn = conn.cmd_sn;
        let (itt, _) = conn.begin_write(0, 1)?;
        let request = conn.request(function::ABORT_TASK, itt, sn);
        same("the response", conn.function(request)?, (outcome::COMPLETE, Vec::new()))?;
        conn.nothing_came("11.5.1")?;
        // The tag is free again.
        conn.scsi(&READY, Moves::Nothing)?.good()
    }),
    ("functions/ABORT-TASK-of-a-task-that-is-done", "RFC 7143 11.5.1", |s| {
        let mut conn = s.session(&[])?;
        let sn = conn.cmd_sn;
        let itt = conn.begin(&READY, Moves::Nothing);
        conn.answer(itt, &[])?.good()?;
        let request = conn.request(function::ABORT_TASK, itt, sn);
        same("the response", conn.function(request)?.0, outcome::NO_TASK)
    }),
    ("functions/ABORT-TASK-beyond-the-window", "RFC 7143 11.5.1", |s| {
        let mut conn = s.session(&[])?;
        let beyond = conn.numbers.max_cmd_sn.wrapping_add(5);
        let request = conn.request(function::ABORT_TASK, 0x9999, beyond);
        same("the response", conn.function(request)?.0, outcome::NO_TASK)?;
        conn.scsi(&READY, Moves::Nothing)?.good()
    }),
    ("functions/ABORT-TASK-of-a-command-that-has-not-come", "RFC 7143 11.5.1", |s| {
        let mut conn = s.session(&[])?;
        let missing = conn.command(&READY, Moves::Nothing);
        let after = conn.command(&READY, Moves::Nothing);
        conn.send(Pdu::ScsiCommand(after), &[]);
        let request = conn.request(function::ABORT_TASK, missing.itt, missing.sn.cmd_sn);
        let (response, before) = conn.function(request)?;
        same("the response", response, outcome::COMPLETE)?;
        // Its number is taken as if it had come, and what is behind goes on.
        let done =
            before.iter().any(|pdu| matches!(pdu, Pdu::ScsiResponse(it) if it.itt == after.itt));
        if !done {
            conn.answer(after.itt, &[])?.good()?;
        }
        conn.send(Pdu::ScsiCommand(missing), &[]);
        conn.nothing_came("11.5.1")?;
        same("ExpCmdSN", conn.numbers.exp_cmd_sn, conn.cmd_sn)
    }),
    ("functions/ABORT-TASK-of-a-command-that-waits-for-its-turn", "RFC 7143 11.5.1", |s| {
        let mut conn = s.session(&[])?;
        let hole = conn.command(&READY, Moves::Nothing);
        let waits = conn.command(&READY, Moves::Nothing);
        conn.send(Pdu::ScsiCommand(waits), &[]);
        let request = conn.request(function::ABORT_TASK, waits.itt, waits.sn.cmd_sn);
        same("the response", conn.function(request)?.0, outcome::COMPLETE)?;
        conn.send(Pdu::ScsiCommand(hole), &[]);
        conn.answer(hole.itt, &[])?.good()?;
        conn.nothing_came("11.5.1")
    }),
    ("functions/ABORT-TASK-SET", "RFC 7143 11.5.1", |s| {
        let mut conn = s.session(&[])?;
        for _ in 0..3 {
            conn.begin_write(0, 1)?;
        }
        let request = conn.request(function::ABORT_TASK_SET, NO_TAG, 0);
        same("the response", conn.function(request)?, (outcome::COMPLETE, Vec::new()))?;
        conn.nothing_came("11.5.1")?;
        conn.scsi(&READY, Moves::Nothing)?.good()
    }),
    ("functions/ABORT-TASK-SET-leaves-others-their-tasks", "SAM-5 7.3", |s| {
        let (mut me, mut you) = pair(s)?;
        me.begin_write(0, 1)?;
        let (itt, ask) = you.begin_write(1, 1)?;
        let request = me.request(function::ABORT_TASK_SET, NO_TAG, 0);
        same("the response", me.function(request)?.0, outcome::COMPLETE)?;
        let data = vec![0; you.block];
        you.give(&ask, &data)?;
        finished(&mut you, itt)
    }),
    ("functions/CLEAR-TASK-SET", "SAM-5 7.5", |s| {
        let (mut me, mut you) = pair(s)?;
        let (_, ask) = you.begin_write(1, 1)?;
        let request = me.request(function::CLEAR_TASK_SET, NO_TAG, 0);
        match me.function(request)?.0 {
            outcome::COMPLETE => {}
            outcome::NOT_SUPPORTED => return skip("the target has no CLEAR TASK SET"),
            other => return fail(format!("response {other}")),
        }
        let data = vec![0; you.block];
        you.give(&ask, &data)?;
        you.nothing_came("SAM-5 7.5")?;
        // COMMANDS CLEARED BY ANOTHER INITIATOR, once.
        you.scsi(&READY, Moves::Nothing)?.sense_is(6, 0x2f00)?;
        you.scsi(&READY, Moves::Nothing)?.good()
    }),
    ("functions/LOGICAL-UNIT-RESET", "SAM-5 7.7", |s| {
        let (mut me, mut you) = pair(s)?;
        me.begin_write(0, 1)?;
        you.begin_write(1, 1)?;
        let request = me.request(function::LUN_RESET, NO_TAG, 0);
        same("the response", me.function(request)?.0, outcome::COMPLETE)?;
        for conn in [&mut me, &mut you] {
            told(conn)?;
        }
        Ok(())
    }),
    ("functions/TARGET-WARM-RESET", "RFC 7143 11.5.1", |s| {
        let (mut me, mut you) = pair(s)?;
        you.begin_write(1, 1)?;
        let request = me.request(function::TARGET_WARM_RESET, NO_TAG, 0);
        match me.function(request)?.0 {
            outcome::COMPLETE => {}
            outcome::NOT_SUPPORTED | outcome::NOT_AUTHORIZED | outcome::REJECTED => {
                return me.scsi(&READY, Moves::Nothing)?.good();
            }
            other => return fail(format!("response {other}")),
        }
        for conn in [&mut me, &mut you] {
            told(conn)?;
        }
        Ok(())
    }),
    ("functions/TARGET-COLD-RESET", "RFC 7143 11.5.1", |s| {
        let (mut me, mut you) = pair(s)?;
        let request = me.request(function::TARGET_COLD_RESET, NO_TAG, 0);
        match me.function(request)?.0 {
            outcome::COMPLETE => {}
            outcome::NOT_SUPPORTED | outcome::NOT_AUTHORIZED | outcome::REJECTED => {
                return me.scsi(&READY, Moves::Nothing)?.good();
            }
            other => return fail(format!("response {other}")),
        }
        // All connections end.
        me.closes()?;
        you.closes().map(drop)
    }),
    ("functions/TASK-REASSIGN-without-recovery", "RFC 7143 11.6.1", |s| {
        let mut conn = s.session(&[("ErrorRecoveryLevel", "0")])?;
        let (itt, _) = conn.begin_write(0, 1)?;
        let request = conn.request(function::TASK_REASSIGN, itt, 0);
        let response = conn.function(request)?.0;
        let refused = [outcome::NO_REASSIGNMENT, outcome::NOT_SUPPORTED, outcome::STILL_ALLEGIANT];
        check(refused.contains(&response), format!("response {response}"))
    }),
    ("functions/no-logical-unit", "RFC 7143 11.6.1", |s| {
        let mut conn = s.session(&[])?;
        let request = conn.request(function::LUN_RESET, NO_TAG, 0);
        let request = TaskRequest { lun: [0, 0x77, 0, 0, 0, 0, 0, 0], ..request };
        same("the response", conn.function(request)?.0, outcome::NO_UNIT)
    }),
    ("functions/CLEAR-ACA", "RFC 7143 11.5.1", |s| {
        let mut conn = s.session(&[])?;
        let request = conn.request(function::CLEAR_ACA, NO_TAG, 0);
        let response = conn.function(request)?.0;
        let known = [outcome::COMPLETE, outcome::NOT_SUPPORTED, outcome::REJECTED];
        check(known.contains(&response), format!("response {response}"))
    }),
    ("functions/with-a-number-of-its-own", "RFC 7143 11.5.1", |s| {
        let mut conn = s.session(&[])?;
        let request = conn.request(function::ABORT_TASK_SET, NO_TAG, 0);
        let request = TaskRequest { sn: conn.numbers(), ..request };
        same("the response", conn.function(request)?.0, outcome::COMPLETE)?;
        same("ExpCmdSN", conn.numbers.exp_cmd_sn, conn.cmd_sn)
    }),
    ("functions/are-about-commands-before-them", "RFC 7143 4.2.3", |s| {
        let mut conn = s.session(&[])?;
        // A hole: the function waits for what it is about.
        let missing = conn.command(&READY, Moves::Nothing);
        let waits = conn.command(&READY, Moves::Nothing);
        conn.send(Pdu::ScsiCommand(waits), &[]);
        let request = conn.request(function::ABORT_TASK_SET, NO_TAG, 0);
        conn.send(Pdu::TaskRequest(request), &[]);
        conn.send(Pdu::ScsiCommand(missing), &[]);
        loop {
            match conn.next()?.0 {
                Pdu::TaskResponse(it) => {
                    same("the response", it.response, outcome::COMPLETE)?;
                    return conn.nothing_came("4.2.3");
                }
                Pdu::ScsiResponse(_) => {}
                other => return fail(format!("{other:?}")),
            }
        }
    }),
    ("functions/QUERY-TASK", "RFC 7144 4.2", |s| {
        let mut conn = level2(s)?;
        let sn = conn.cmd_sn;
        let (itt, _) = conn.begin_write(0, 1)?;
        let request = conn.request(function::QUERY_TASK, itt, sn);
        same("the response", conn.function(request)?.0, outcome::SUCCEEDED)?;
        let request = conn.request(function::QUERY_TASK, 0x9999, sn);
        same("the response", conn.function(request)?.0, outcome::COMPLETE)
    }),
    ("functions/QUERY-TASK-SET", "RFC 7144 4.2", |s| {
        let mut conn = level2(s)?;
        let request = conn.request(function::QUERY_TASK_SET, NO_TAG, 0);
        same("the response", conn.function(request)?.0, outcome::COMPLETE)?;
        conn.begin_write(0, 1)?;
        let request = conn.request(function::QUERY_TASK_SET, NO_TAG, 0);
        same("the response", conn.function(request)?.0, outcome::SUCCEEDED)
    }),
    ("functions/I_T-NEXUS-RESET", "RFC 7144 4.2", |s| {
        let mut conn = level2(s)?;
        conn.begin_write(0, 1)?;
        let request = conn.request(function::NEXUS_RESET, NO_TAG, 0);
        same("the response", conn.function(request)?.0, outcome::COMPLETE)?;
        let answer = conn.scsi(&READY, Moves::Nothing)?;
        same("the sense key", answer.code().map(|(key, _)| key), Some(6))?;
        conn.scsi(&READY, Moves::Nothing)?.good()
    }),
    ("functions/QUERY-ASYNCHRONOUS-EVENT", "RFC 7144 4.2", |s| {
        let mut conn = level2(s)?;
        let request = conn.request(function::QUERY_ASYNC_EVENT, NO_TAG, 0);
        same("the response", conn.function(request)?.0, outcome::COMPLETE)?;
        let (mut me, _) = (s.session(&[])?, ());
        let reset = me.request(function::LUN_RESET, NO_TAG, 0);
        same("the reset", me.function(reset)?.0, outcome::COMPLETE)?;
        let request = conn.request(function::QUERY_ASYNC_EVENT, NO_TAG, 0);
        same("the response once something waits", conn.function(request)?.0, outcome::SUCCEEDED)
    }),
    ("functions/new-ones-at-level-1", "RFC 7144 4.2", |s| {
        let mut conn = s.session(&[("iSCSIProtocolLevel", "1")])?;
        let request = conn.request(function::QUERY_TASK_SET, NO_TAG, 0);
        let response = conn.function(request)?.0;
        let refused = [outcome::NOT_SUPPORTED, outcome::REJECTED];
        check(refused.contains(&response), format!("response {response}"))
    }),
];

pub(super) fn cases() -> Vec<Case> {
    let mut all = named(NAMED);
    for code in [0, 13, 0x40, 0x7f] {
        all.push(Case::new(format!("functions/unknown-{code:02x}"), "RFC 7143 11.6.1", move |s| {
            let mut conn = s.session(&[])?;
            let request = conn.request(code, NO_TAG, 0);
            conn.send(Pdu::TaskRequest(request), &[]);
            match conn.next()?.0 {
                Pdu::TaskResponse(it) => {
                    let refused =
                        [outcome::NOT_SUPPORTED, outcome::REJECTED].contains(&it.response);
                    check(refused, format!("response {}", it.response))?;
                }
                Pdu::Reject(_) => {}
                other => return fail(format!("{other:?}")),
            }
            conn.scsi(&READY, Moves::Nothing)?.good()
        }));
    }
    all
}

/// Sessions of two initiators, whose commands meet no unit attention.
pub(super) fn pair(subject: &Subject) -> Outcome<(Conn, Conn)> {
    let me = subject.session(&[])?;
    let mut you = subject.enter(Want { initiator: OTHER, ..subject.want() })?;
    you.settle()?;
    Ok((me, you))
}

/// A reset is told once, and the tasks before it are gone.
fn told(conn: &mut Conn) -> Outcome {
    let answer = conn.scsi(&READY, Moves::Nothing)?;
    match answer.code() {
        Some((6, code)) if code >> 8 == 0x29 => {}
        other => return fail(format!("sense {other:x?} where a unit attention of a reset is due")),
    }
    conn.scsi(&READY, Moves::Nothing)?.good()?;
    conn.nothing_came("SAM-5 7.7")
}

pub(super) fn finished(conn: &mut Conn, itt: u32) -> Outcome {
    match conn.next()? {
        (Pdu::ScsiResponse(it), _) if it.itt == itt => same("the status", it.status, 0),
        (other, _) => fail(format!("{other:?} where the end of {itt:#x} is due")),
    }
}

pub(super) fn level2(subject: &Subject) -> Outcome<Conn> {
    let conn = subject.session(&[("iSCSIProtocolLevel", "2")])?;
    if conn.value("iSCSIProtocolLevel") == Some("2") {
        Ok(conn)
    } else {
        skip("iSCSIProtocolLevel is not 2")
    }
}

//! Several connections of a session, and what outlives one of them (RFC 7143 4.2.2, 7.1.4, 7.2.2).

use iscsi::pdu::{NO_TAG, NopOut, Pdu, TaskRequest, function, outcome};

use super::{
    super::{
        Case, Outcome, Subject, check,
        conn::{Conn, Moves, READY, pattern, ten},
        fail,
        login::{Login, Want},
        same, skip, soon,
        wire::Heard,
    },
    Named,
    functions::finished,
    named,
};

/// The cases that stand for themselves.
const NAMED: &[Named] = &[
    ("connections/commands-over-two", "RFC 7143 4.2.2.1", |s| {
        let (mut one, mut two) = pair(s, "0")?;
        for _ in 0..4 {
            one.scsi(&READY, Moves::Nothing)?.good()?;
            two.cmd_sn = one.cmd_sn;
            two.scsi(&READY, Moves::Nothing)?.good()?;
            one.cmd_sn = two.cmd_sn;
        }
        Ok(())
    }),
    ("connections/order-over-two", "RFC 7143 4.2.2.1", |s| {
        let (mut one, mut two) = pair(s, "0")?;
        let first = one.command(&READY, Moves::Nothing);
        two.cmd_sn = one.cmd_sn;
        let second = two.command(&READY, Moves::Nothing);
        two.send(Pdu::ScsiCommand(second), &[]);
        two.nothing_came("4.2.2.1")?;
        one.send(Pdu::ScsiCommand(first), &[]);
        one.answer(first.itt, &[])?.good()?;
        two.answer(second.itt, &[])?.good()
    }),
    ("connections/answers-come-where-the-command-came", "RFC 7143 4.2.1", |s| {
        let (mut one, mut two) = pair(s, "0")?;
        let data = pattern(4 * one.block, 61);
        one.write(80, &data)?;
        two.cmd_sn = one.cmd_sn;
        two.holds(80, &data)?;
        one.nothing_came("4.2.1")
    }),
    ("connections/StatSN-is-each-ones-own", "RFC 7143 4.2.2.2", |s| {
        let (mut one, mut two) = pair(s, "0")?;
        for _ in 0..5 {
            one.until_pong()?;
        }
        two.until_pong()?;
        one.until_pong().map(drop)
    }),
    ("connections/a-function-of-one-is-about-tasks-of-both", "RFC 7143 4.2.3", |s| {
        let (mut one, mut two) = pair(s, "0")?;
        one.begin_write(0, 1)?;
        two.cmd_sn = one.cmd_sn;
        let request = two.request(function::ABORT_TASK_SET, u32::MAX, 0);
        same("the response", two.function(request)?.0, outcome::COMPLETE)?;
        one.nothing_came("4.2.3")?;
        one.cmd_sn = two.cmd_sn;
        one.scsi(&READY, Moves::Nothing)?.good()
    }),
    ("connections/functions-are-fenced", "RFC 7143 4.2.2.3.3", |s| {
        let keys = [("MaxConnections", "2"), ("TaskReporting", "ResponseFence")];
        let one = s.session(&keys)?;
        if one.value("TaskReporting") != Some("ResponseFence") {
            return skip("TaskReporting is not ResponseFence");
        }
        let (mut one, mut two) = join(s, one)?;
        one.begin_write(0, 1)?;
        two.cmd_sn = one.cmd_sn;
        let request = two.request(function::ABORT_TASK_SET, u32::MAX, 0);
        two.send(Pdu::TaskRequest(request), &[]);
        acknowledged(&mut one, &mut two)
    }),
    ("connections/fast-aborts-are-told", "RFC 7143 4.2.3.4", |s| {
        let keys = [("MaxConnections", "2"), ("TaskReporting", "FastAbort")];
        let one = s.session(&keys)?;
        if one.value("TaskReporting") != Some("FastAbort") {
            return skip("TaskReporting is not FastAbort");
        }
        let (mut one, mut two) = join(s, one)?;
        one.begin_write(0, 1)?;
        two.cmd_sn = one.cmd_sn;
        let request = two.request(function::ABORT_TASK_SET, u32::MAX, 0);
        two.send(Pdu::TaskRequest(request), &[]);
        event5(&mut one)?;
        acknowledged(&mut one, &mut two)
    }),
    ("connections/fast-aborts-are-told-to-others", "RFC 7143 4.2.3.4", |s| {
        let mut one = s.session(&[("TaskReporting", "FastAbort")])?;
        if one.value("TaskReporting") != Some("FastAbort") {
            return skip("TaskReporting is not FastAbort");
        }
        let mut other = s.session(&[("TaskReporting", "RFC3720")])?;
        one.begin_write(0, 1)?;
        let request = other.request(function::LUN_RESET, u32::MAX, 0);
        same("the response", other.function(request)?.0, outcome::COMPLETE)?;
        event5(&mut one)
    }),
    ("connections/one-is-logged-out-by-the-other", "RFC 7143 11.14.1", |s| {
        let (mut one, mut two) = pair(s, "0")?;
        let cid = one.cid;
        same("the response", two.log_out(1, cid)?, 0)?;
        one.closes()?;
        two.scsi(&READY, Moves::Nothing)?.good()
    }),
    ("connections/the-session-outlives-a-logout-of-one", "RFC 7143 11.14.1", |s| {
        let (mut one, mut two) = pair(s, "0")?;
        let cid = one.cid;
        same("the response", one.log_out(1, cid)?, 0)?;
        one.closes()?;
        two.cmd_sn = one.cmd_sn;
        two.scsi(&READY, Moves::Nothing)?.good()
    }),
    ("connections/the-session-ends-with-one-at-level-0", "RFC 7143 7.1.5", |s| {
        let (one, mut two) = pair(s, "0")?;
        one.wire.cut();
        two.closes().map(drop)
    }),
    ("connections/others-are-told-of-one-that-is-dropped", "RFC 7143 11.9.1", |s| {
        let (mut one, mut two) = pair(s, "2")?;
        let cid = one.cid;
        one.raw(&[0xff; 256]);
        one.closes()?;
        match two.next()?.0 {
            Pdu::AsyncMessage(it) if it.event == 2 => same("Parameter1", it.parameters[0], cid),
            other => fail(format!("{other:?} where event 2 is due")),
        }
    }),
    ("connections/a-write-goes-on-elsewhere", "RFC 7143 7.2.2", |s| {
        let (mut one, mut two) = pair(s, "2")?;
        let data = pattern(2 * one.block, 62);
        let (itt, _) = one.begin_write(90, 2)?;
        two.cmd_sn = one.cmd_sn;
        let cid = one.cid;
        one.wire.cut();
        same("the logout for recovery", two.log_out(2, cid)?, 0)?;
        same("TASK REASSIGN", reassign(&mut two, itt, 0)?, outcome::COMPLETE)?;
        let ask = two.r2t(itt)?;
        two.give(&ask, &data)?;
        finished(&mut two, itt)?;
        two.holds(90, &data)
    }),
    ("connections/half-a-write-goes-on-elsewhere", "RFC 7143 7.2.2", |s| {
        let (mut one, mut two) = pair(s, "2")?;
        let data = pattern(4 * one.block, 63);
        let (itt, ask) = one.begin_write(90, 4)?;
        let half = 2 * one.block;
        let pdu = one.data_out(itt, ask.ttt, 0, 0, false);
        one.send(Pdu::DataOut(pdu), &data[..half]);
        one.until_pong()?;
        two.cmd_sn = one.cmd_sn;
        let cid = one.cid;
        one.wire.cut();
        same("the logout for recovery", two.log_out(2, cid)?, 0)?;
        same("TASK REASSIGN", reassign(&mut two, itt, 0)?, outcome::COMPLETE)?;
        loop {
            match two.next()?.0 {
                Pdu::R2t(ask) => two.give(&ask, &data)?,
                Pdu::ScsiResponse(it) => {
                    same("the status", it.status, 0)?;
                    return two.holds(90, &data);
                }
                other => return fail(format!("{other:?}")),
            }
        }
    }),
    ("connections/a-reads-answer-comes-elsewhere", "RFC 7143 7.2.2", |s| {
        let (mut one, mut two) = pair(s, "2")?;
        let data = pattern(8 * one.block, 64);
        one.write(90, &data)?;
        let length = data.len() as u32;
        // What comes is not acknowledged: nobody knows that it arrived.
        let itt = one.begin(&ten(0x28, 90, 8), Moves::In(length));
        two.cmd_sn = one.cmd_sn;
        one.answer(itt, &[])?;
        let cid = one.cid;
        one.wire.cut();
        same("the logout for recovery", two.log_out(2, cid)?, 0)?;
        same("TASK REASSIGN", reassign(&mut two, itt, 0)?, outcome::COMPLETE)?;
        let again = two.answer(itt, &[])?;
        again.good()?;
        check(again.data == data, "other data come again")
    }),
    ("connections/a-status-comes-elsewhere", "RFC 7143 7.2.2", |s| {
        let (mut one, mut two) = pair(s, "2")?;
        let itt = one.begin(&READY, Moves::Nothing);
        one.answer(itt, &[])?.good()?;
        two.cmd_sn = one.cmd_sn;
        let cid = one.cid;
        one.wire.cut();
        same("the logout for recovery", two.log_out(2, cid)?, 0)?;
        same("TASK REASSIGN", reassign(&mut two, itt, 0)?, outcome::COMPLETE)?;
        two.answer(itt, &[])?.good()
    }),
    ("connections/a-task-whose-connection-is-there", "RFC 7143 11.6.1", |s| {
        let (mut one, mut two) = pair(s, "2")?;
        let (itt, _) = one.begin_write(0, 1)?;
        two.cmd_sn = one.cmd_sn;
        same("TASK REASSIGN", reassign(&mut two, itt, 0)?, outcome::STILL_ALLEGIANT)
    }),
    ("connections/a-task-that-is-not", "RFC 7143 11.6.1", |s| {
        let (_one, mut two) = pair(s, "2")?;
        same("TASK REASSIGN", reassign(&mut two, 0x7777, 0)?, outcome::NO_TASK)
    }),
    ("connections/logout-without-recovery-ends-tasks", "RFC 7143 11.14.1", |s| {
        let (mut one, mut two) = pair(s, "2")?;
        let (itt, _) = one.begin_write(0, 1)?;
        two.cmd_sn = one.cmd_sn;
        let cid = one.cid;
        same("the logout", two.log_out(1, cid)?, 0)?;
        same("TASK REASSIGN", reassign(&mut two, itt, 0)?, outcome::NO_TASK)
    }),
    ("connections/another-of-the-same-number", "RFC 7143 6.3.4", |s| {
        let (mut one, two) = pair(s, "2")?;
        let (itt, _) = one.begin_write(90, 1)?;
        let want =
            Want { isid: one.isid, tsih: one.tsih, cid: one.cid, cmd_sn: one.cmd_sn, ..s.want() };
        let mut three = s.enter(want)?;
        one.closes()?;
        three.cmd_sn = one.cmd_sn;
        same("TASK REASSIGN", reassign(&mut three, itt, 0)?, outcome::COMPLETE)?;
        let ask = three.r2t(itt)?;
        let data = pattern(three.block, 65);
        three.give(&ask, &data)?;
        finished(&mut three, itt)?;
        three.holds(90, &data)?;
        drop(two);
        Ok(())
    }),
    ("connections/a-session-without-connections-is-resumed", "RFC 7143 7.2.2", |s| {
        let mut one = single(s, "20")?;
        let (itt, _) = one.begin_write(90, 1)?;
        let want = Want { isid: one.isid, tsih: one.tsih, cid: 2, cmd_sn: one.cmd_sn, ..s.want() };
        let (cid, cmd_sn, block) = (one.cid, one.cmd_sn, one.block);
        one.wire.cut();
        // There is room for it once the other is noticed to be gone.
        let mut two = soon(|| match Login::open(s, want.clone())?.finish()? {
            Ok(conn) => Ok(Some(conn)),
            Err(0x206) => Ok(None),
            Err(status) => fail(format!("the login is refused: {status:04x}")),
        })?;
        two.cmd_sn = cmd_sn;
        same("the logout for recovery", two.log_out(2, cid)?, 0)?;
        same("TASK REASSIGN", reassign(&mut two, itt, 0)?, outcome::COMPLETE)?;
        let ask = two.r2t(itt)?;
        let data = pattern(block, 66);
        two.give(&ask, &data)?;
        finished(&mut two, itt)?;
        two.holds(90, &data)
    }),
    ("connections/a-session-is-kept-no-longer-than-agreed", "RFC 7143 13.16", |s| {
        let one = single(s, "0")?;
        let wait = u64::from(one.number("DefaultTime2Wait", 2));
        if wait > 5 {
            return skip(format!("Time2Wait is {wait} s"));
        }
        let want = Want { isid: one.isid, tsih: one.tsih, cid: 2, ..s.want() };
        one.wire.cut();
        // Time2Wait and no more; the target's clock may be a little behind.
        std::thread::sleep(std::time::Duration::from_millis(wait * 1000 + 2500));
        match Login::open(s, want)?.finish()? {
            Err(0x20a) => Ok(()),
            Err(status) => fail(format!("status {status:04x} where 020a is due")),
            Ok(_) => fail("the session is there still"),
        }
    }),
];

pub(super) fn cases() -> Vec<Case> {
    named(NAMED)
}

/// A session that keeps its tasks without a connection.
fn single(subject: &Subject, retain: &str) -> Outcome<Conn> {
    let keys = [
        ("ErrorRecoveryLevel", "2"),
        ("DefaultTime2Wait", "0"),
        ("DefaultTime2Retain", retain),
        ("InitialR2T", "Yes"),
        ("ImmediateData", "No"),
    ];
    let conn = subject.session(&keys)?;
    if conn.value("ErrorRecoveryLevel") == Some("2") {
        Ok(conn)
    } else {
        skip("ErrorRecoveryLevel is not 2")
    }
}

/// Two connections of a session.
fn pair(subject: &Subject, level: &str) -> Outcome<(Conn, Conn)> {
    let keys = [
        ("MaxConnections", "2"),
        ("ErrorRecoveryLevel", level),
        ("InitialR2T", "Yes"),
        ("ImmediateData", "No"),
    ];
    let one = subject.session(&keys)?;
    if one.number("MaxConnections", 1) < 2 {
        return skip("MaxConnections is 1");
    }
    if one.value("ErrorRecoveryLevel") != Some(level) {
        return skip(format!("ErrorRecoveryLevel is not {level}"));
    }
    join(subject, one)
}

fn join(subject: &Subject, one: Conn) -> Outcome<(Conn, Conn)> {
    if one.number("MaxConnections", 1) < 2 {
        return skip("MaxConnections is 1");
    }
    let want =
        Want { isid: one.isid, tsih: one.tsih, cid: 2, cmd_sn: one.cmd_sn, ..subject.want() };
    let mut two = subject.enter(want)?;
    same("TSIH", two.tsih, one.tsih)?;
    two.cmd_sn = one.cmd_sn;
    two.tag = 0x8000;
    Ok((one, two))
}

fn reassign(conn: &mut Conn, itt: u32, exp_data_sn: u32) -> Outcome<u8> {
    let request = conn.request(function::TASK_REASSIGN, itt, 0);
    let request = TaskRequest { exp_data_sn, ..request };
    Ok(conn.function(request)?.0)
}

/// One connection acknowledges what came, and answers the target's pings, until the function of the
/// other is answered.
fn acknowledged(one: &mut Conn, two: &mut Conn) -> Outcome {
    let sn = one.at_once();
    one.send(Pdu::NopOut(NopOut { sn, lun: [0; 8], itt: NO_TAG, ttt: NO_TAG }), &[]);
    let response = soon(|| {
        match one.look_in()? {
            None => {}
            Some(other) => return fail(format!("{other:?} where nothing is due")),
        }
        match two.look_in()? {
            None => Ok(None),
            Some(Heard::Pdu(Pdu::TaskResponse(it), _)) => Ok(Some(it.response)),
            Some(other) => fail(format!("{other:?} where the function's response is due")),
        }
    })?;
    same("the response", response, outcome::COMPLETE)
}

/// Asynchronous event 5 comes, for the logical unit.
fn event5(conn: &mut Conn) -> Outcome {
    match conn.next()? {
        (Pdu::AsyncMessage(it), _) => same("event and LUN", (it.event, it.lun), (5, conn.lun)),
        (other, _) => fail(format!("{other:?} where event 5 is due")),
    }
}

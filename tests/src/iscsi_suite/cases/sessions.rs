//! Logouts, reinstatement, messages that nobody asked for (RFC 7143 6.3.4, 6.3.5, 11.9, 11.14).

use iscsi::pdu::{LogoutRequest, Pdu};

use super::{
    super::{
        Case, Outcome, Subject, check,
        conn::{Conn, Moves, READY, ten},
        fail,
        login::{Login, Want},
        same, skip, soon,
    },
    Named, named,
};

/// The cases that stand for themselves.
const NAMED: &[Named] = &[
    ("sessions/logout-of-the-session", "RFC 7143 11.14.1", |s| {
        let mut conn = s.session(&[])?;
        same("the response", conn.log_out(0, 0)?, 0)?;
        conn.closes()?;
        gone(s, &conn)
    }),
    ("sessions/logout-of-the-only-connection", "RFC 7143 11.14.1", |s| {
        let mut conn = s.session(&[])?;
        let cid = conn.cid;
        same("the response", conn.log_out(1, cid)?, 0)?;
        conn.closes()?;
        gone(s, &conn)
    }),
    ("sessions/logout-of-a-connection-that-is-not", "RFC 7143 11.15.1", |s| {
        let mut conn = s.session(&[])?;
        same("the response", conn.log_out(1, 0x77)?, 1)?;
        conn.scsi(&READY, Moves::Nothing)?.good()
    }),
    ("sessions/logout-for-recovery-at-level-0", "RFC 7143 11.15.1", |s| {
        let mut conn = s.session(&[("ErrorRecoveryLevel", "0")])?;
        let cid = conn.cid;
        same("the response", conn.log_out(2, cid)?, 2)?;
        conn.scsi(&READY, Moves::Nothing)?.good()
    }),
    ("sessions/logout-for-no-known-reason", "RFC 7143 11.14.1", |s| {
        let mut conn = s.session(&[])?;
        let (sn, itt, cid) = (conn.at_once(), conn.tag(), conn.cid);
        conn.send(Pdu::LogoutRequest(LogoutRequest { sn, reason: 9, itt, cid }), &[]);
        match conn.next()?.0 {
            Pdu::LogoutResponse(it) => check(it.response != 0, "it is done")?,
            Pdu::Reject(_) => {}
            other => return fail(format!("{other:?}")),
        }
        conn.scsi(&READY, Moves::Nothing)?.good()
    }),
    ("sessions/logout-ends-tasks", "RFC 7143 11.14", |s| {
        let mut conn = s.session(&[])?;
        let (itt, _) = conn.begin_write(0, 1)?;
        same("the response", conn.log_out(0, 0)?, 0)?;
        let said = conn.closes()?;
        let done = said.iter().any(|pdu| matches!(pdu, Pdu::ScsiResponse(it) if it.itt == itt));
        check(!done, "a task is answered after the logout (11.15)")
    }),
    ("sessions/nothing-comes-behind-a-logout", "RFC 7143 11.15", |s| {
        let mut conn = s.session(&[])?;
        let (sn, itt, cid) = (conn.at_once(), conn.tag(), conn.cid);
        conn.send(Pdu::LogoutRequest(LogoutRequest { sn, reason: 0, itt, cid }), &[]);
        conn.begin(&READY, Moves::Nothing);
        let said = conn.closes()?;
        check(matches!(said[..], [Pdu::LogoutResponse(_)]), format!("{said:?}"))
    }),
    ("sessions/reinstatement-ends-the-old-session", "RFC 7143 6.3.5", |s| {
        let mut old = s.session(&[])?;
        old.begin_write(0, 1)?;
        let mut new = s.enter(Want { isid: old.isid, ..s.want() })?;
        let said = old.closes()?;
        let done = said.iter().any(|pdu| matches!(pdu, Pdu::ScsiResponse(_)));
        check(!done, "a task of the old session is answered")?;
        new.settle()
    }),
    ("sessions/reinstatement-is-a-new-nexus", "SAM-5 5.14", |s| {
        let old = s.session(&[])?;
        let mut new = s.enter(Want { isid: old.isid, ..s.want() })?;
        let answer = new.scsi(&READY, Moves::Nothing)?;
        match answer.code() {
            Some((6, code)) if code >> 8 == 0x29 => Ok(()),
            other => fail(format!("sense {other:x?} where a unit attention is due")),
        }
    }),
    ("sessions/connection-reinstatement", "RFC 7143 6.3.4", |s| {
        let mut old = s.session(&[])?;
        let want =
            Want { isid: old.isid, tsih: old.tsih, cid: old.cid, cmd_sn: old.cmd_sn, ..s.want() };
        match Login::open(s, want)?.finish()? {
            Ok(mut new) => {
                old.closes()?;
                new.quiet(&READY, Moves::Nothing)?.good()
            }
            // Below level 2 the end of the connection may end the session first.
            Err(status) => check(status >> 8 == 2, format!("status {status:04x}")),
        }
    }),
    ("sessions/a-lost-session-is-forgotten", "RFC 7143 8.3.2", |s| {
        let mut conn = s.session(&[("ErrorRecoveryLevel", "0")])?;
        conn.begin_write(0, 1)?;
        let want = Want { isid: conn.isid, tsih: conn.tsih, cid: 2, ..s.want() };
        conn.wire.cut();
        // At level 0 there is nothing that could be recovered; the target may need a moment.
        soon(|| match Login::open(s, want.clone())?.finish()? {
            Err(0x20a) => Ok(Some(())),
            Err(_) => Ok(None),
            Ok(_) => fail("the session goes on"),
        })
    }),
    ("sessions/asked-to-end", "RFC 7143 11.9.1", |s| {
        let Some(started) = &s.started else {
            return skip("the suite did not start the target");
        };
        let mut conn = s.session(&[])?;
        if !started.disconnect_all() {
            return skip("the target cannot be asked to end a session");
        }
        let said = conn.closes()?;
        match said[..] {
            [Pdu::AsyncMessage(it)] => {
                check(matches!(it.event, 1..=3), format!("event {}", it.event))
            }
            ref other => fail(format!("{other:?} where an asynchronous message is due")),
        }
    }),
    ("sessions/reads-go-on-while-others-come-and-go", "RFC 7143 6.3", |s| {
        let mut conn = s.session(&[])?;
        for _ in 0..10 {
            let mut other = s.session(&[])?;
            let length = 8 * conn.block as u32;
            conn.scsi(&ten(0x28, 0, 8), Moves::In(length))?.good()?;
            same("the response", other.log_out(0, 0)?, 0)?;
        }
        Ok(())
    }),
];

pub(super) fn cases() -> Vec<Case> {
    named(NAMED)
}

/// The session is not there any more.
fn gone(subject: &Subject, conn: &Conn) -> Outcome {
    let want = Want { isid: conn.isid, tsih: conn.tsih, cid: 2, ..subject.want() };
    match Login::open(subject, want)?.finish()? {
        Err(status) => check(status >> 8 == 2, format!("status {status:04x}")),
        Ok(_) => fail("the session is there still"),
    }
}

//! SNACK, and what is asked for again (RFC 7143 7.1.4, 7.7, 11.16).

use iscsi::pdu::{DataIn, NO_TAG, Pdu, ScsiResponse, Snack, reason};

use super::{
    super::{
        Case, Outcome, Subject, check,
        conn::{Conn, Moves, READY, pattern, ten},
        fail, same, skip,
        wire::Heard,
    },
    Named, named,
};

const DATA: u8 = 0;
const STATUS: u8 = 1;
const ACKNOWLEDGE: u8 = 2;
const PIECES: u8 = 3;

/// The cases that stand for themselves.
const NAMED: &[Named] = &[
    ("recovery/SNACK-at-level-0", "RFC 7143 11.16", |s| {
        let mut conn = s.session(&[("ErrorRecoveryLevel", "0")])?;
        let itt = conn.begin(&READY, Moves::Nothing);
        conn.answer(itt, &[])?;
        let snack = snack(&conn, STATUS, NO_TAG, 0, 0);
        conn.send(Pdu::Snack(snack), &[]);
        match conn.hear()? {
            Heard::Closed | Heard::Pdu(Pdu::Reject(_), _) => Ok(()),
            other => fail(format!("{other:?} where a reject is due")),
        }
    }),
    ("recovery/status-again", "RFC 7143 11.16.3", |s| {
        let mut conn = level1(s)?;
        let first = kept(&mut conn, &READY, Moves::Nothing)?.1;
        let snack = snack(&conn, STATUS, NO_TAG, first.sn.stat_sn, 1);
        conn.send(Pdu::Snack(snack), &[]);
        let again = response(&mut conn)?;
        same(
            "the status",
            (again.itt, again.status, again.sn.stat_sn),
            (first.itt, first.status, first.sn.stat_sn),
        )
    }),
    ("recovery/all-statuses-again", "RFC 7143 11.16.3", |s| {
        let mut conn = level1(s)?;
        let mut itts = Vec::new();
        let from = conn.exp_stat_sn();
        for _ in 0..3 {
            itts.push(kept(&mut conn, &READY, Moves::Nothing)?.1.itt);
        }
        let snack = snack(&conn, STATUS, NO_TAG, from, 0);
        conn.send(Pdu::Snack(snack), &[]);
        for itt in itts {
            same("the task", response(&mut conn)?.itt, itt)?;
        }
        Ok(())
    }),
    ("recovery/status-that-was-acknowledged", "RFC 7143 11.16.3", |s| {
        let mut conn = level1(s)?;
        let first = kept(&mut conn, &READY, Moves::Nothing)?.1;
        conn.wire.acknowledged = None;
        conn.until_pong()?;
        let snack = snack(&conn, STATUS, NO_TAG, first.sn.stat_sn, 1);
        conn.send(Pdu::Snack(snack), &[]);
        rejected(&mut conn, &[reason::SNACK, reason::PROTOCOL])
    }),
    ("recovery/Data-In-again", "RFC 7143 11.16.1", |s| {
        let mut conn = level1(s)?;
        let (parts, end) = kept(&mut conn, &ten(0x28, 0, 16), Moves::In(16 * 512))?;
        check(parts.len() > 3, "the data came in too few pieces")?;
        let snack = snack(&conn, DATA, end.itt, 1, 2);
        conn.send(Pdu::Snack(snack), &[]);
        for part in &parts[1..3] {
            let again = data_in(&mut conn)?;
            same("the piece", (again.0.data_sn, again.0.offset), (part.0.data_sn, part.0.offset))?;
            check(again.1 == part.1, "other data come again")?;
        }
        conn.until_pong().map(drop)
    }),
    ("recovery/all-Data-In-again", "RFC 7143 11.16.1", |s| {
        let mut conn = level1(s)?;
        let (parts, end) = kept(&mut conn, &ten(0x28, 0, 16), Moves::In(16 * 512))?;
        let snack = snack(&conn, DATA, end.itt, 0, 0);
        conn.send(Pdu::Snack(snack), &[]);
        for part in &parts {
            same("the piece", data_in(&mut conn)?.0.data_sn, part.0.data_sn)?;
        }
        Ok(())
    }),
    ("recovery/Data-In-in-other-pieces", "RFC 7143 11.16.3", |s| {
        let mut conn = level1(s)?;
        let (parts, end) = kept(&mut conn, &ten(0x28, 0, 16), Moves::In(16 * 512))?;
        super::texts::text_of(&mut conn, &[("MaxRecvDataSegmentLength", "512")])?;
        let whole = parts.iter().flat_map(|(_, data)| data.clone()).collect::<Vec<u8>>();
        let snack = Snack { ttt: 0x5a5a, ..snack(&conn, PIECES, end.itt, 0, 0) };
        conn.send(Pdu::Snack(snack), &[]);
        conn.max_recv = 512;
        let mut again = Vec::new();
        while again.len() < whole.len() {
            let (pdu, data) = data_in(&mut conn)?;
            same("Buffer Offset", pdu.offset as usize, again.len())?;
            again.extend_from_slice(&data);
        }
        check(again == whole, "other data come again")?;
        let status = response(&mut conn)?;
        same("SNACK Tag (11.4.6)", status.snack_tag, 0x5a5a)?;
        same("ExpDataSN", status.exp_data_sn, 16)
    }),
    ("recovery/SNACK-for-no-task", "RFC 7143 11.16", |s| {
        let mut conn = level1(s)?;
        let snack = snack(&conn, DATA, 0x7777, 0, 1);
        conn.send(Pdu::Snack(snack), &[]);
        rejected(&mut conn, &[reason::SNACK, reason::PROTOCOL])
    }),
    ("recovery/SNACK-for-what-was-not-sent", "RFC 7143 11.16", |s| {
        let mut conn = level1(s)?;
        let (_, end) = kept(&mut conn, &ten(0x28, 0, 4), Moves::In(4 * 512))?;
        let snack = snack(&conn, DATA, end.itt, 100, 1);
        conn.send(Pdu::Snack(snack), &[]);
        rejected(&mut conn, &[reason::SNACK, reason::PROTOCOL])
    }),
    ("recovery/SNACK-of-a-reserved-type", "RFC 7143 11.16.1", |s| {
        let mut conn = level1(s)?;
        let snack = snack(&conn, 7, NO_TAG, 0, 0);
        conn.send(Pdu::Snack(snack), &[]);
        rejected(&mut conn, &[reason::SNACK, reason::PROTOCOL, reason::FIELD])
    }),
    ("recovery/acknowledgement-of-what-was-not-sent", "RFC 7143 11.16.1", |s| {
        let mut conn = level1(s)?;
        let snack = Snack { ttt: 0x1234, ..snack(&conn, ACKNOWLEDGE, NO_TAG, 9, 0) };
        conn.send(Pdu::Snack(snack), &[]);
        rejected(&mut conn, &[reason::DATA_ACK, reason::SNACK, reason::PROTOCOL])
    }),
    ("recovery/acknowledged-data-come-no-more", "RFC 7143 11.16.1", acknowledged),
    ("recovery/R2T-again", "RFC 7143 11.16.1", |s| {
        let mut conn = level1(s)?;
        let (itt, ask) = conn.begin_write(0, 1)?;
        let snack = snack(&conn, DATA, itt, ask.r2t_sn, 1);
        conn.send(Pdu::Snack(snack), &[]);
        let again = conn.r2t(itt)?;
        same(
            "the R2T",
            (again.r2t_sn, again.offset, again.length),
            (ask.r2t_sn, ask.offset, ask.length),
        )?;
        let data = vec![0; conn.block];
        conn.give(&again, &data)?;
        same("the status", response(&mut conn)?.status, 0)
    }),
    ("recovery/a-piece-of-Data-Out-is-missing", "RFC 7143 7.7", |s| {
        let mut conn = level1(s)?;
        let right = pattern(2 * conn.block, 51);
        let (itt, ask) = conn.begin_write(70, 2)?;
        let half = conn.block;
        let late = conn.data_out(itt, ask.ttt, 1, half as u32, true);
        conn.send(Pdu::DataOut(late), &right[half..]);
        loop {
            match conn.next()? {
                (Pdu::R2t(ask), _) => conn.give(&ask, &right)?,
                (Pdu::Reject(_), _) => {}
                (Pdu::ScsiResponse(it), _) => {
                    same("the status", it.status, 0)?;
                    conn.wire.in_order = true;
                    return conn.holds(70, &right);
                }
                (other, _) => return fail(format!("{other:?}")),
            }
        }
    }),
    ("recovery/a-lost-command-goes-again", "RFC 7143 7.2.1", |s| {
        let mut conn = level1(s)?;
        let lost = conn.command(&READY, Moves::Nothing);
        let after = conn.command(&READY, Moves::Nothing);
        conn.send(Pdu::ScsiCommand(after), &[]);
        conn.until_pong()?;
        conn.send(Pdu::ScsiCommand(lost), &[]);
        same("the first", response(&mut conn)?.itt, lost.itt)?;
        same("the second", response(&mut conn)?.itt, after.itt)
    }),
];

pub(super) fn cases() -> Vec<Case> {
    named(NAMED)
}

fn level1(subject: &Subject) -> Outcome<Conn> {
    let keys = [
        ("ErrorRecoveryLevel", "1"),
        ("InitialR2T", "Yes"),
        ("ImmediateData", "No"),
        ("MaxRecvDataSegmentLength", "1024"),
        ("MaxBurstLength", "4096"),
        ("FirstBurstLength", "4096"),
    ];
    let mut conn = subject.session(&keys)?;
    if conn.value("ErrorRecoveryLevel") != Some("1") {
        return skip("ErrorRecoveryLevel is not 1");
    }
    // What is sent from here on is not acknowledged, and may come again.
    conn.until_pong()?;
    let now = conn.exp_stat_sn();
    conn.wire.acknowledged = Some(now);
    conn.wire.in_order = false;
    Ok(conn)
}

fn snack(conn: &Conn, kind: u8, itt: u32, begin: u32, run: u32) -> Snack {
    let lun = if itt == NO_TAG { [0; 8] } else { conn.lun };
    Snack { kind, lun, itt, ttt: NO_TAG, exp_stat_sn: conn.exp_stat_sn(), begin, run }
}

type Part = (DataIn, Vec<u8>);

/// A command to its end, with all its Data-In.
fn kept(conn: &mut Conn, cdb: &[u8], moves: Moves<'_>) -> Outcome<(Vec<Part>, ScsiResponse)> {
    let itt = conn.begin(cdb, moves);
    let mut parts = Vec::new();
    loop {
        match conn.next()? {
            (Pdu::DataIn(it), data) if it.itt == itt => {
                parts.push((it, data.to_vec()));
                check(
                    it.status.is_none(),
                    "the status comes with the data, and cannot be asked for again",
                )?;
            }
            (Pdu::ScsiResponse(it), _) if it.itt == itt => {
                same("the status", it.status, 0)?;
                return Ok((parts, it));
            }
            (other, _) => return fail(format!("{other:?}")),
        }
    }
}

fn response(conn: &mut Conn) -> Outcome<ScsiResponse> {
    match conn.next()? {
        (Pdu::ScsiResponse(it), _) => Ok(it),
        (other, _) => fail(format!("{other:?} where a response is due")),
    }
}

fn data_in(conn: &mut Conn) -> Outcome<Part> {
    match conn.next()? {
        (Pdu::DataIn(it), data) => Ok((it, data.to_vec())),
        (other, _) => fail(format!("{other:?} where Data-In is due")),
    }
}

fn rejected(conn: &mut Conn, reasons: &[u8]) -> Outcome {
    conn.rejected(reasons)?;
    conn.until_pong().map(drop)
}

/// With A set the target wants to know what arrived; what did is not asked for again.
fn acknowledged(subject: &Subject) -> Outcome {
    let mut conn = level1(subject)?;
    let (parts, end) = kept(&mut conn, &ten(0x28, 0, 32), Moves::In(32 * 512))?;
    let Some((asked, _)) = parts.iter().find(|(it, _)| it.acknowledge) else {
        return skip("the target asks for no acknowledgement");
    };
    check(asked.ttt != NO_TAG, "A without a Target Transfer Tag (11.7.2)")?;
    let upto = asked.data_sn + 1;
    let ack =
        Snack { ttt: asked.ttt, lun: asked.lun, ..snack(&conn, ACKNOWLEDGE, NO_TAG, upto, 0) };
    conn.send(Pdu::Snack(ack), &[]);
    conn.until_pong()?;
    let again = snack(&conn, DATA, end.itt, 0, 1);
    conn.send(Pdu::Snack(again), &[]);
    rejected(&mut conn, &[reason::SNACK, reason::PROTOCOL])
}

//! Task attributes and the order within a task set (SAM-5 8.6, RFC 7143 11.3.1).
//!
//! A write that waits for its data is a task of its set; what may pass it and what may not shows
//! without a clock.

use iscsi::pdu::{Pdu, ScsiCommand};

use super::{
    super::{
        Case, Outcome, Subject, check,
        conn::{Conn, Moves, READY},
        fail, same, skip,
    },
    Named,
    functions::{finished, level2, pair},
    named,
};

const SIMPLE: u8 = 1;
const ORDERED: u8 = 2;
const HEAD_OF_QUEUE: u8 = 3;
const ACA: u8 = 4;

/// The cases that stand for themselves.
const NAMED: &[Named] = &[
    ("attributes/ORDERED-waits-for-what-is-before-it", "SAM-5 8.6.3", |s| {
        let mut conn = s.session(&[])?;
        let (write, ask) = conn.begin_write(0, 1)?;
        let ordered = begin(&mut conn, ORDERED);
        let simple = begin(&mut conn, SIMPLE);
        waits(&mut conn)?;
        let data = vec![0; conn.block];
        conn.give(&ask, &data)?;
        for itt in [write, ordered, simple] {
            finished(&mut conn, itt)?;
        }
        Ok(())
    }),
    ("attributes/SIMPLE-passes-SIMPLE", "SAM-5 8.6.2", |s| {
        let mut conn = s.session(&[])?;
        let (write, ask) = conn.begin_write(0, 1)?;
        let simple = begin(&mut conn, SIMPLE);
        finished(&mut conn, simple)?;
        let data = vec![0; conn.block];
        conn.give(&ask, &data)?;
        finished(&mut conn, write)
    }),
    ("attributes/HEAD-OF-QUEUE-passes-ORDERED", "SAM-5 8.6.4", |s| {
        let mut conn = s.session(&[])?;
        let (write, ask) = conn.begin_write(0, 1)?;
        let ordered = begin(&mut conn, ORDERED);
        let head = begin(&mut conn, HEAD_OF_QUEUE);
        finished(&mut conn, head)?;
        let data = vec![0; conn.block];
        conn.give(&ask, &data)?;
        finished(&mut conn, write)?;
        finished(&mut conn, ordered)
    }),
    ("attributes/an-aborted-task-holds-nobody", "SAM-5 8.6.3", |s| {
        let mut conn = s.session(&[])?;
        let sn = conn.cmd_sn;
        let (write, _) = conn.begin_write(0, 1)?;
        let ordered = begin(&mut conn, ORDERED);
        let request = conn.request(1, write, sn);
        let (response, before) = conn.function(request)?;
        same("the response", response, 0)?;
        if before.is_empty() { finished(&mut conn, ordered) } else { Ok(()) }
    }),
    ("attributes/ORDERED-waits-for-tasks-of-other-nexuses", "SAM-5 8.6.3", |s| {
        one_set(s)?;
        let (mut me, mut you) = pair(s)?;
        let (write, ask) = me.begin_write(0, 1)?;
        let ordered = begin(&mut you, ORDERED);
        waits(&mut you)?;
        let data = vec![0; me.block];
        me.give(&ask, &data)?;
        finished(&mut me, write)?;
        finished(&mut you, ordered)
    }),
    ("attributes/ORDERED-holds-tasks-of-other-nexuses", "SAM-5 8.6.3", |s| {
        one_set(s)?;
        let (mut me, mut you) = pair(s)?;
        let (write, ask) = me.begin_write(0, 1)?;
        let ordered = begin(&mut me, ORDERED);
        me.until_pong()?;
        let simple = begin(&mut you, SIMPLE);
        waits(&mut you)?;
        let head = begin(&mut you, HEAD_OF_QUEUE);
        finished(&mut you, head)?;
        let data = vec![0; me.block];
        me.give(&ask, &data)?;
        finished(&mut me, write)?;
        finished(&mut me, ordered)?;
        finished(&mut you, simple)
    }),
    ("attributes/a-nexus-that-is-gone-holds-nobody", "SAM-5 8.6.3", |s| {
        one_set(s)?;
        let (mut me, mut you) = pair(s)?;
        me.begin_write(0, 1)?;
        let ordered = begin(&mut you, ORDERED);
        waits(&mut you)?;
        me.wire.cut();
        finished(&mut you, ordered)
    }),
    ("attributes/other-logical-units-are-other-sets", "SAM-5 8.3", |s| {
        let mut conn = s.session(&[])?;
        let (write, ask) = conn.begin_write(0, 1)?;
        let ordered = begin(&mut conn, ORDERED);
        let there = conn.lun;
        conn.lun = [0, 0x77, 0, 0, 0, 0, 0, 0];
        let answer = conn.scsi(&READY, Moves::Nothing)?;
        answer.sense_is(5, 0x2500)?;
        conn.lun = there;
        let data = vec![0; conn.block];
        conn.give(&ask, &data)?;
        finished(&mut conn, write)?;
        finished(&mut conn, ordered)
    }),
    ("attributes/SIMPLE-tasks-begin-by-their-priorities", "RFC 7144 4.1, SAM-5 8.7", |s| {
        let mut conn = level2(s)?;
        let (write, ask) = conn.begin_write(0, 1)?;
        let ordered = begin(&mut conn, ORDERED);
        let [low, none, high] = [15, 0, 1].map(|priority| prior(&mut conn, priority));
        waits(&mut conn)?;
        let data = vec![0; conn.block];
        conn.give(&ask, &data)?;
        for itt in [write, ordered, high, none, low] {
            finished(&mut conn, itt)?;
        }
        Ok(())
    }),
    ("attributes/ACA-without-an-allegiance", "SAM-5 8.6.5", |s| {
        let mut conn = s.session(&[])?;
        let itt = begin(&mut conn, ACA);
        let answer = conn.answer(itt, &[])?;
        check(
            answer.status == 2,
            format!("status {:#04x} where the task is refused", answer.status),
        )
    }),
];

pub(super) fn cases() -> Vec<Case> {
    let mut all = named(NAMED);
    for (name, attribute) in [("untagged", 0), ("SIMPLE", 1), ("ORDERED", 2), ("HEAD-OF-QUEUE", 3)]
    {
        all.push(Case::new(format!("attributes/{name}"), "RFC 7143 11.3.1", move |s| {
            let mut conn = s.session(&[])?;
            let itts: Vec<u32> = (0..4).map(|_| begin(&mut conn, attribute)).collect();
            for itt in itts {
                conn.answer(itt, &[])?.good()?;
            }
            Ok(())
        }));
    }
    all
}

fn begin(conn: &mut Conn, attribute: u8) -> u32 {
    let command = ScsiCommand { attribute, ..conn.command(&READY, Moves::Nothing) };
    conn.send(Pdu::ScsiCommand(command), &[]);
    command.itt
}

/// A simple task of a priority.
fn prior(conn: &mut Conn, priority: u8) -> u32 {
    let command = conn.command(&READY, Moves::Nothing);
    let command = ScsiCommand { attribute: SIMPLE, priority, ..command };
    conn.send(Pdu::ScsiCommand(command), &[]);
    command.itt
}

/// Nothing is answered but a ping.
fn waits(conn: &mut Conn) -> Outcome {
    let came = conn.until_pong()?;
    check(came.is_empty(), format!("{came:?} where all wait"))
}

/// The control mode page says that all nexuses have one task set (TST 000b, SPC-4 7.5.8).
fn one_set(subject: &Subject) -> Outcome {
    let mut conn = subject.session(&[])?;
    let answer = conn.scsi(&[0x1a, 8, 0x0a, 0, 64, 0], Moves::In(64))?;
    if answer.status != 0 {
        return skip("there is no control mode page");
    }
    match answer.data.get(6) {
        Some(byte) if byte >> 5 == 0 => Ok(()),
        Some(_) => skip("each nexus has a task set of its own (TST)"),
        None => fail("the control mode page is too short"),
    }
}

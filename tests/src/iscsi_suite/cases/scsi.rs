//! What SCSI promises over sessions: reservations, unit attentions, offloaded copies (SPC-4, SBC-3).

use super::{
    super::{
        Case, Outcome, Subject, check,
        conn::{Answer, Conn, Moves, READY, pattern, ten},
        fail,
        login::Want,
        same, skip, soon,
        subject::OTHER,
    },
    Named,
    functions::pair,
    named,
};

const CONFLICT: u8 = 0x18;
const RESERVE: u8 = 1;
const CLEAR: u8 = 3;
const PREEMPT: u8 = 4;
const REGISTER_ANYWAY: u8 = 6;
const MINE: u64 = 0x1111_2222_3333_4444;
const YOURS: u64 = 0x5555_6666_7777_8888;

/// The cases that stand for themselves.
const NAMED: &[Named] = &[
    ("scsi/a-new-nexus-is-told-once", "SAM-5 5.14", |s| {
        let mut conn = s.log_in(&[])?;
        let first = conn.scsi(&READY, Moves::Nothing)?;
        check(
            first.code().is_some_and(|(key, code)| key == 6 && code >> 8 == 0x29),
            format!("sense {:x?}", first.code()),
        )?;
        conn.scsi(&READY, Moves::Nothing)?.good()
    }),
    ("scsi/INQUIRY-and-REPORT-LUNS-come-first", "SAM-5 5.14.1", |s| {
        let mut conn = s.log_in(&[])?;
        conn.scsi(&[0x12, 0, 0, 0, 96, 0], Moves::In(96))?.good()?;
        let answer = conn.scsi(&[0xa0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0], Moves::In(256))?;
        answer.good()?;
        let lun = conn.lun;
        check(
            answer.data[8..].chunks(8).any(|it| it == lun),
            "the logical unit is not in the list",
        )?;
        check(conn.scsi(&READY, Moves::Nothing)?.status == 2, "the unit attention is gone")
    }),
    ("scsi/a-mode-page-that-changes-is-told-to-others", "SPC-4 5.8", |s| {
        let (mut me, mut you) = pair(s)?;
        let page = me.scsi(&[0x1a, 8, 8, 0, 64, 0], Moves::In(64))?;
        if page.status != 0 || page.data.len() < 7 {
            return skip("there is no caching mode page");
        }
        let changeable = me.scsi(&[0x1a, 8, 0x48, 0, 64, 0], Moves::In(64))?;
        if changeable.data.get(6).is_none_or(|byte| byte & 4 == 0) {
            return skip("WCE cannot be changed");
        }
        for _ in 0..2 {
            let now = me.scsi(&[0x1a, 8, 8, 0, 64, 0], Moves::In(64))?.data;
            let mut list = now.clone();
            list[..4].fill(0);
            list[4] &= 0x3f;
            list[6] ^= 4;
            me.scsi(&[0x15, 0x10, 0, 0, list.len() as u8, 0], Moves::Out(&list))?.good()?;
            you.scsi(&READY, Moves::Nothing)?.sense_is(6, 0x2a01)?;
            you.scsi(&READY, Moves::Nothing)?.good()?;
            me.scsi(&READY, Moves::Nothing)?.good()?;
        }
        Ok(())
    }),
    ("scsi/RESERVE-6-is-of-one-nexus", "SPC-2 7.21", |s| {
        let (mut me, mut you) = pair(s)?;
        let reserved = me.scsi(&[0x16, 0, 0, 0, 0, 0], Moves::Nothing)?;
        if reserved.code() == Some((5, 0x2000)) {
            return skip("there is no RESERVE(6)");
        }
        reserved.good()?;
        same("another's status", you.scsi(&READY, Moves::Nothing)?.status, CONFLICT)?;
        me.scsi(&[0x17, 0, 0, 0, 0, 0], Moves::Nothing)?.good()?;
        you.scsi(&READY, Moves::Nothing)?.good()
    }),
    ("scsi/RESERVE-6-ends-with-the-session", "SPC-2 5.5.1", |s| {
        let (mut me, mut you) = pair(s)?;
        let reserved = me.scsi(&[0x16, 0, 0, 0, 0, 0], Moves::Nothing)?;
        if reserved.code() == Some((5, 0x2000)) {
            return skip("there is no RESERVE(6)");
        }
        same("another's status", you.scsi(&READY, Moves::Nothing)?.status, CONFLICT)?;
        same("the logout", me.log_out(0, 0)?, 0)?;
        me.closes()?;
        // The end of the session is not the end of its last answer.
        soon(|| Ok((you.quiet(&READY, Moves::Nothing)?.status == 0).then_some(())))
    }),
    ("scsi/persistent-reservation-over-nexuses", "SPC-4 5.13", |s| {
        with_registrations(s, |me, you| {
            reserve(me, RESERVE, 1, MINE, 0)?.good()?;
            let data = vec![1; you.block];
            same(
                "another's write",
                you.scsi(&ten(0x2a, 0, 1), Moves::Out(&data))?.status,
                CONFLICT,
            )?;
            let length = you.block as u32;
            you.scsi(&ten(0x28, 0, 1), Moves::In(length))?.good()?;
            me.write(0, &data).map(drop)
        })
    }),
    ("scsi/exclusive-access-over-nexuses", "SPC-4 5.13", |s| {
        with_registrations(s, |me, you| {
            reserve(me, RESERVE, 3, MINE, 0)?.good()?;
            let length = you.block as u32;
            same(
                "another's read",
                you.scsi(&ten(0x28, 0, 1), Moves::In(length))?.status,
                CONFLICT,
            )?;
            you.scsi(&[0x12, 0, 0, 0, 96, 0], Moves::In(96))?.good()
        })
    }),
    ("scsi/PREEMPT-is-told", "SPC-4 5.13.11", |s| {
        with_registrations(s, |me, you| {
            reserve(me, RESERVE, 1, MINE, 0)?.good()?;
            reserve(you, PREEMPT, 1, YOURS, MINE)?.good()?;
            let told = me.scsi(&READY, Moves::Nothing)?;
            check(
                matches!(told.code(), Some((6, 0x2a03 | 0x2a05))),
                format!("sense {:x?}", told.code()),
            )?;
            let data = vec![1; me.block];
            same(
                "the preempted's write",
                me.quiet(&ten(0x2a, 0, 1), Moves::Out(&data))?.status,
                CONFLICT,
            )
        })
    }),
    ("scsi/a-reservation-outlives-its-session", "SPC-4 5.13", |s| {
        let (mut me, mut you) = pair(s)?;
        cleared(&mut you)?;
        if register(&mut me, MINE, false)?.status != 0 {
            return skip("there are no persistent reservations");
        }
        reserve(&mut me, RESERVE, 1, MINE, 0)?.good()?;
        let isid = me.isid;
        me.log_out(0, 0)?;
        me.closes()?;
        let data = vec![1; you.block];
        same("another's write", you.quiet(&ten(0x2a, 0, 1), Moves::Out(&data))?.status, CONFLICT)?;
        let mut again = s.enter(Want { isid, ..s.want() })?;
        let went = again.write(0, &data).map(drop);
        reserve(&mut again, CLEAR, 0, MINE, 0)?.good()?;
        went
    }),
    ("scsi/APTPL-outlives-a-kill", "SPC-4 5.13.5", |s| {
        let Some(started) = &s.started else {
            return skip("the suite did not start the target");
        };
        let mut me = s.session(&[])?;
        cleared(&mut me)?;
        let registered = register(&mut me, MINE, true)?;
        if registered.status != 0 {
            return skip("the target keeps no reservations over a loss of power");
        }
        reserve(&mut me, RESERVE, 1, MINE, 0)?.good()?;
        let isid = me.isid;
        if !started.kill() {
            reserve(&mut me, CLEAR, 0, MINE, 0)?.good()?;
            return skip("what the target is told at its start is gone with its process");
        }
        let mut you = s.enter(Want { initiator: OTHER, ..s.want() })?;
        let data = vec![1; you.block];
        let status = you.quiet(&ten(0x2a, 0, 1), Moves::Out(&data))?.status;
        let mut again = s.enter(Want { isid, ..s.want() })?;
        reserve(&mut again, CLEAR, 0, MINE, 0)?.good()?;
        same("another's write", status, CONFLICT)
    }),
    ("scsi/COMPARE-AND-WRITE", "SBC-3 5.2", |s| {
        let mut conn = s.session(&[])?;
        let (old, new) = (pattern(conn.block, 71), pattern(conn.block, 72));
        conn.write(5, &old)?;
        let mut cdb = [0; 16];
        cdb[0] = 0x89;
        cdb[9] = 5;
        cdb[13] = 1;
        let answer = conn.scsi(&cdb, Moves::Out(&[&*old, &*new].concat()))?;
        if answer.code() == Some((5, 0x2000)) {
            return skip("there is no COMPARE AND WRITE");
        }
        answer.good()?;
        let again = conn.scsi(&cdb, Moves::Out(&[&*old, &*new].concat()))?;
        same("the sense of a comparison that fails", again.code(), Some((0xe, 0x1d00)))?;
        conn.holds(5, &new)
    }),
    ("scsi/token-is-written-elsewhere", "SBC-3 4.28", |s| {
        let mut conn = s.session(&[])?;
        let data = pattern(8 * conn.block, 73);
        conn.write(1000, &data)?;
        let token = token(&mut conn, 1000, 8)?;
        use_token(&mut conn, &token, 2000, 8)?.good()?;
        conn.holds(2000, &data)
    }),
    ("scsi/token-of-another-session", "SBC-3 4.28", |s| {
        let (mut me, mut you) = pair(s)?;
        let data = pattern(8 * me.block, 74);
        me.write(1000, &data)?;
        let token = token(&mut me, 1000, 8)?;
        use_token(&mut you, &token, 2100, 8)?.good()?;
        you.holds(2100, &data)
    }),
    ("scsi/token-that-is-none", "SBC-3 5.45", |s| {
        let mut conn = s.session(&[])?;
        let mut forged = token(&mut conn, 1000, 8)?;
        for byte in &mut forged[64..] {
            *byte ^= 0x5a;
        }
        let answer = use_token(&mut conn, &forged, 2000, 8)?;
        let known = answer.code().is_some_and(|(key, code)| key == 5 && code >> 8 == 0x23);
        check(known, format!("sense {:x?} where INVALID TOKEN OPERATION is due", answer.code()))
    }),
    ("scsi/token-of-data-that-changed", "SBC-3 4.28", |s| {
        let mut conn = s.session(&[])?;
        let data = pattern(8 * conn.block, 75);
        conn.write(1000, &data)?;
        let token = token(&mut conn, 1000, 8)?;
        let other = pattern(conn.block, 76);
        conn.write(1003, &other)?;
        let answer = use_token(&mut conn, &token, 2000, 8)?;
        if answer.status == 0 {
            // A copy that keeps the data as they were is as good.
            return conn.holds(2000, &data);
        }
        let known = answer.code().is_some_and(|(key, code)| key == 5 && code >> 8 == 0x23);
        check(known, format!("sense {:x?} where INVALID TOKEN OPERATION is due", answer.code()))
    }),
    ("scsi/token-of-zeros", "SBC-3 4.28", |s| {
        let mut conn = s.session(&[])?;
        token(&mut conn, 1000, 8)?;
        let data = pattern(8 * conn.block, 77);
        conn.write(2000, &data)?;
        let mut zero = vec![0; 512];
        zero[..4].copy_from_slice(&0xffff_0001_u32.to_be_bytes());
        zero[6..8].copy_from_slice(&0x01f8_u16.to_be_bytes());
        use_token(&mut conn, &zero, 2000, 8)?.good()?;
        let zeros = vec![0; data.len()];
        conn.holds(2000, &zeros)
    }),
    ("scsi/token-information-of-no-list", "SPC-4 6.28", |s| {
        let mut conn = s.session(&[])?;
        token(&mut conn, 1000, 8)?;
        let answer = information(&mut conn, 0x7777)?;
        check(answer.status == 2, format!("status {:#04x}", answer.status))
    }),
];

pub(super) fn cases() -> Vec<Case> {
    named(NAMED)
}

fn reserve(conn: &mut Conn, action: u8, kind: u8, key: u64, other: u64) -> Outcome<Answer> {
    let list = [key.to_be_bytes(), other.to_be_bytes(), [0; 8]].concat();
    conn.quiet(&[0x5f, action, kind, 0, 0, 0, 0, 0, 24, 0], Moves::Out(&list))
}

fn register(conn: &mut Conn, key: u64, aptpl: bool) -> Outcome<Answer> {
    let mut list = [[0; 8], key.to_be_bytes(), [0; 8]].concat();
    list[20] = u8::from(aptpl);
    conn.quiet(&[0x5f, REGISTER_ANYWAY, 0, 0, 0, 0, 0, 0, 24, 0], Moves::Out(&list))
}

/// Nothing of an earlier case is left.
fn cleared(conn: &mut Conn) -> Outcome {
    if register(conn, MINE, false)?.status == 0 {
        reserve(conn, CLEAR, 0, MINE, 0)?.good()?;
    }
    Ok(())
}

fn with_registrations(subject: &Subject, run: impl Fn(&mut Conn, &mut Conn) -> Outcome) -> Outcome {
    let (mut me, mut you) = pair(subject)?;
    cleared(&mut me)?;
    if register(&mut me, MINE, false)?.status != 0 {
        return skip("there are no persistent reservations");
    }
    register(&mut you, YOURS, false)?.good()?;
    let outcome = run(&mut me, &mut you);
    reserve(&mut you, CLEAR, 0, YOURS, 0)?;
    outcome
}

/// POPULATE TOKEN and RECEIVE ROD TOKEN INFORMATION.
fn token(conn: &mut Conn, lba: u64, blocks: u32) -> Outcome<Vec<u8>> {
    let mut list = vec![0; 32];
    list[0..2].copy_from_slice(&30_u16.to_be_bytes());
    list[14..16].copy_from_slice(&16_u16.to_be_bytes());
    list[16..24].copy_from_slice(&lba.to_be_bytes());
    list[24..28].copy_from_slice(&blocks.to_be_bytes());
    let mut cdb = [0; 16];
    (cdb[0], cdb[1]) = (0x83, 0x10);
    cdb[6..10].copy_from_slice(&0x55_u32.to_be_bytes());
    cdb[10..14].copy_from_slice(&32_u32.to_be_bytes());
    let answer = conn.quiet(&cdb, Moves::Out(&list))?;
    if matches!(answer.code(), Some((5, 0x2000 | 0x2400))) {
        return skip("there is no POPULATE TOKEN");
    }
    answer.good()?;
    let answer = information(conn, 0x55)?;
    answer.good()?;
    // The token stands behind its descriptor's length and type (SPC-4 6.28).
    let data = &answer.data;
    let sense = data.get(14).copied().unwrap_or_default() as usize;
    let at = 32 + sense;
    let Some(token) = data.get(at + 6..at + 6 + 512) else {
        return fail(format!("{} bytes of token information", data.len()));
    };
    Ok(token.to_vec())
}

fn information(conn: &mut Conn, list: u32) -> Outcome<Answer> {
    let mut cdb = [0; 16];
    (cdb[0], cdb[1]) = (0x84, 0x07);
    cdb[2..6].copy_from_slice(&list.to_be_bytes());
    cdb[10..14].copy_from_slice(&1024_u32.to_be_bytes());
    conn.quiet(&cdb, Moves::In(1024))
}

fn use_token(conn: &mut Conn, token: &[u8], lba: u64, blocks: u32) -> Outcome<Answer> {
    let mut list = vec![0; 552];
    list[0..2].copy_from_slice(&550_u16.to_be_bytes());
    list[16..528].copy_from_slice(token);
    list[534..536].copy_from_slice(&16_u16.to_be_bytes());
    list[536..544].copy_from_slice(&lba.to_be_bytes());
    list[544..548].copy_from_slice(&blocks.to_be_bytes());
    let mut cdb = [0; 16];
    (cdb[0], cdb[1]) = (0x83, 0x11);
    cdb[6..10].copy_from_slice(&0x56_u32.to_be_bytes());
    cdb[10..14].copy_from_slice(&552_u32.to_be_bytes());
    conn.quiet(&cdb, Moves::Out(&list))
}

//! Digests of headers and data, right and wrong, at each ErrorRecoveryLevel (RFC 7143 7.6, 13.1).

use iscsi::pdu::{NO_TAG, NopOut, Pdu, reason};

use super::super::{
    Case, Outcome, Subject, check,
    conn::{Conn, Moves, READY, pattern, ten},
    fail, same, skip,
    wire::Heard,
};

const CRC: &str = "CRC32C";

pub(super) fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for (header, data) in [("None", CRC), (CRC, "None"), (CRC, CRC)] {
        let name = format!("digests/HeaderDigest={header},DataDigest={data}");
        all.push(Case::new(name, "RFC 7143 13.1", move |s| {
            let keys = [("HeaderDigest", header), ("DataDigest", data), ("InitialR2T", "No")];
            let mut conn = s.session(&keys)?;
            if conn.value("HeaderDigest") != Some(header) || conn.value("DataDigest") != Some(data)
            {
                return skip("the target agrees to other digests");
            }
            // Lengths that are padded, too.
            for length in [1_u32, 2, 3, 36, 95] {
                conn.scsi(&[0x12, 0, 0, 0, length as u8, 0], Moves::In(length))?.good()?;
            }
            let bytes = pattern(40 * conn.block, 31);
            conn.write(0, &bytes)?;
            conn.holds(0, &bytes)
        }));
    }
    for level in ["0", "1", "2"] {
        for (what, section, run) in BROKEN {
            all.push(Case::new(format!("digests/level-{level}/{what}"), section, move |s| {
                let keys = [
                    ("HeaderDigest", CRC),
                    ("DataDigest", CRC),
                    ("ErrorRecoveryLevel", level),
                    ("InitialR2T", "Yes"),
                    ("ImmediateData", "Yes"),
                    ("DefaultTime2Retain", "0"),
                ];
                let conn = s.session(&keys)?;
                if conn.value("HeaderDigest") != Some(CRC) || conn.value("DataDigest") != Some(CRC)
                {
                    return skip("the target agrees to no digests");
                }
                if conn.value("ErrorRecoveryLevel") != Some(level) {
                    return skip(format!("ErrorRecoveryLevel is not {level}"));
                }
                run(s, conn, level != "0")
            }));
        }
    }
    all
}

type Run = fn(&Subject, Conn, bool) -> Outcome;

const BROKEN: [(&str, &str, Run); 7] = [
    ("header-of-a-command", "RFC 7143 7.6", |_, mut conn, _| {
        let command = conn.command(&READY, Moves::Nothing);
        conn.send_broken(Pdu::ScsiCommand(command), &[], true);
        gone(&mut conn)
    }),
    ("header-of-a-ping", "RFC 7143 7.6", |_, mut conn, _| {
        let (sn, itt) = (conn.at_once(), conn.tag());
        conn.send_broken(Pdu::NopOut(NopOut { sn, lun: [0; 8], itt, ttt: NO_TAG }), &[], true);
        gone(&mut conn)
    }),
    ("header-of-Data-Out", "RFC 7143 7.6", |_, mut conn, _| {
        let (itt, ask) = conn.begin_write(0, 1)?;
        let pdu = conn.data_out(itt, ask.ttt, 0, 0, true);
        let data = vec![0; conn.block];
        conn.send_broken(Pdu::DataOut(pdu), &data, true);
        gone(&mut conn)
    }),
    ("data-of-a-ping", "RFC 7143 7.6", |_, mut conn, _| {
        let (sn, itt) = (conn.at_once(), conn.tag());
        conn.send_broken(
            Pdu::NopOut(NopOut { sn, lun: [0; 8], itt, ttt: NO_TAG }),
            b"ping-ping",
            false,
        );
        refused(&mut conn, |conn| conn.nothing_came("7.6"))
    }),
    ("data-of-a-text", "RFC 7143 7.6", |_, mut conn, _| {
        let (sn, itt) = (conn.at_once(), conn.tag());
        let text =
            iscsi::pdu::TextRequest { sn, last: true, more: false, lun: [0; 8], itt, ttt: NO_TAG };
        conn.send_broken(Pdu::TextRequest(text), b"X-com.example.g=1\0", false);
        refused(&mut conn, |conn| conn.nothing_came("7.6"))
    }),
    ("immediate-data-of-a-command", "RFC 7143 7.6", |_, mut conn, _| {
        let right = pattern(conn.block, 41);
        let command = conn.command(&ten(0x2a, 60, 1), Moves::Out(&right));
        conn.send_broken(Pdu::ScsiCommand(command), &right, false);
        let itt = command.itt;
        refused(&mut conn, |conn| {
            // It is as if it had not come, and its number is due: it goes again as it was.
            match conn.until_pong()?[..] {
                [] => {
                    conn.send(Pdu::ScsiCommand(command), &right);
                    conn.answer(itt, &right)?.good()
                }
                [(Pdu::ScsiResponse(it), _)] => {
                    check(it.itt == itt && it.status != 0, format!("{it:?}"))
                }
                ref other => fail(format!("{other:?}")),
            }
        })
    }),
    ("data-of-Data-Out", "RFC 7143 7.6", |_, mut conn, recovers| {
        let right = pattern(2 * conn.block, 42);
        let (itt, ask) = conn.begin_write(60, 2)?;
        let half = conn.block;
        let first = conn.data_out(itt, ask.ttt, 0, 0, false);
        conn.send_broken(Pdu::DataOut(first), &right[..half], false);
        let second = conn.data_out(itt, ask.ttt, 1, half as u32, true);
        conn.send(Pdu::DataOut(second), &right[half..]);
        refused(&mut conn, |conn| {
            let mut asked_again = false;
            loop {
                match conn.hear()? {
                    Heard::Closed => {
                        return check(!recovers, "the connection ends where it could recover");
                    }
                    Heard::Pdu(Pdu::R2t(ask), _) => {
                        check(recovers, "an R2T for recovery at level 0")?;
                        asked_again = true;
                        conn.give(&ask, &right)?;
                    }
                    Heard::Pdu(Pdu::ScsiResponse(it), _) if it.itt == itt && it.status == 0 => {
                        check(asked_again, "wrong data are taken")?;
                        return conn.holds(60, &right);
                    }
                    Heard::Pdu(Pdu::ScsiResponse(it), _) if it.itt == itt => {
                        return check(
                            !recovers,
                            format!("the task ends where it could recover: {it:?}"),
                        );
                    }
                    Heard::Pdu(other, _) => return fail(format!("{other:?}")),
                }
            }
        })
    }),
];

/// The connection ends: nobody knows where the next PDU begins.
fn gone(conn: &mut Conn) -> Outcome {
    let said = conn.closes()?;
    let answered = said.iter().any(|pdu| matches!(pdu, Pdu::ScsiResponse(_) | Pdu::NopIn(_)));
    check(!answered, format!("{said:?} to what cannot be trusted"))
}

/// A reject for the digest, and the session goes on; or the connection ends.
fn refused(conn: &mut Conn, then: impl Fn(&mut Conn) -> Outcome) -> Outcome {
    match conn.hear()? {
        Heard::Closed => Ok(()),
        Heard::Pdu(Pdu::Reject(it), _) => {
            same("the reason", it.reason, reason::DATA_DIGEST)?;
            then(conn)
        }
        Heard::Pdu(Pdu::ScsiResponse(it), _) if it.status != 0 => Ok(()),
        other => fail(format!("{other:?} where a reject is due (7.6)")),
    }
}

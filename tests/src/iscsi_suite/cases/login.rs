//! The login's stages, its header, sessions and connections by it (RFC 7143 6.3, 11.12, 11.13).

use iscsi::pdu::{LoginRequest, NO_TAG, NopOut, Pdu, RequestNumbers, TaskRequest};

use super::{
    super::{
        Case, Outcome, Subject, check,
        conn::{Moves, READY},
        fail,
        login::{Login, Want, value},
        same, skip,
        subject::OTHER,
        wire::{Heard, Wire},
    },
    Named, named,
    texts::refused,
};

/// The cases that stand for themselves.
const NAMED: &[Named] = &[
    ("login/one-request", "RFC 7143 6.3", |s| s.log_in(&[]).map(drop)),
    ("login/security-stage-first", "RFC 7143 6.3", |s| {
        open_only(s, |s| {
            let mut login = staged(s, 0)?;
            login.go(true, 1, &[("AuthMethod", "None")])?;
            check(login.stage == 1, "T is missing (11.13.2)")?;
            let (response, agreed) = login.go(true, 3, &[])?;
            check(response.transit, "T is missing (11.13.2)")?;
            login.enter(response, agreed)?.settle()
        })
    }),
    ("login/from-security-to-the-full-feature-phase", "RFC 7143 6.3", |s| {
        open_only(s, |s| {
            let mut login = staged(s, 0)?;
            let (mut response, mut agreed) = login.go(true, 3, &[("AuthMethod", "None")])?;
            check(response.transit, "T is missing (11.13.2)")?;
            if login.stage == 1 {
                (response, agreed) = login.go(true, 3, &[])?;
            }
            login.enter(response, agreed)?.settle()
        })
    }),
    ("login/AuthMethod-by-a-list", "RFC 7143 12.1", |s| {
        open_only(s, |s| {
            let (_, pairs) = staged(s, 0)?.go(false, 0, &[("AuthMethod", "KRB5,None")])?;
            same("AuthMethod", value(&pairs, "AuthMethod"), Some("None"))
        })
    }),
    ("login/target-portal-group-tag-comes-first", "RFC 7143 13.9", |s| {
        let (_, pairs) = staged(s, u8::from(s.account.is_none()))?.go(false, 0, &[])?;
        check(
            value(&pairs, "TargetPortalGroupTag").is_some(),
            "there is none in the first response",
        )
    }),
    ("login/StatSN-goes-up-by-one", "RFC 7143 4.2.2.2", |s| {
        let mut login = s.negotiation()?;
        for _ in 0..5 {
            login.go(false, 0, &[])?;
        }
        login.go(true, 3, &[]).map(drop)
    }),
    ("login/names-in-capitals", "RFC 7143 4.2.7.1", |s| {
        let name = s.target.to_uppercase();
        let want = Want { target: Some(&name), ..s.want() };
        let mut login = Login::open(s, want)?;
        login.stage = u8::from(s.account.is_none());
        match login.ask(false, 0, &[])? {
            Some((response, _)) if response.status == 0 || response.status == 0x203 => Ok(()),
            other => fail(format!("{other:?}")),
        }
    }),
    ("login/no-InitiatorName", "RFC 7143 11.13.5", |s| lacks(s, "InitiatorName")),
    ("login/no-TargetName", "RFC 7143 11.13.5", |s| lacks(s, "TargetName")),
    ("login/no-SessionType-is-Normal", "RFC 7143 13.21", |s| {
        let mut login = Login::open(s, s.want())?;
        login.stage = u8::from(s.account.is_none());
        let pairs = login.introduction().into_iter().filter(|(key, _)| *key != "SessionType");
        let text = iscsi::text::write(pairs);
        match login.say(login.request(false, 0), &text)? {
            Some((response, _)) => same("the status", response.status, 0),
            None => fail("the connection ends"),
        }
    }),
    ("login/target-that-is-not", "RFC 7143 11.13.5", |s| {
        let want = Want { target: Some("iqn.2024-01.example:nowhere"), ..s.want() };
        match Login::open(s, want)?.ask(true, 3, &[])? {
            Some((response, _)) => same("the status", response.status, 0x203),
            None => fail("the connection ends without a status"),
        }
    }),
    ("login/SessionType-that-is-none", "RFC 7143 13.21", |s| {
        let mut login = Login::open(s, s.want())?;
        let text = iscsi::text::write([
            ("InitiatorName", "iqn.2024-01.example:me"),
            ("SessionType", "Festive"),
            ("TargetName", &s.target),
        ]);
        refused(login.say(login.request(true, 3), &text)?)
    }),
    ("login/TSIH-that-is-not", "RFC 7143 11.13.5", |s| {
        let want = Want { tsih: 0x7ead, ..s.want() };
        match Login::open(s, want)?.finish()? {
            Err(0x20a) => Ok(()),
            Err(status) => fail(format!("status {status:04x} where 020a is due")),
            Ok(_) => fail("the login goes through"),
        }
    }),
    ("login/TSIH-of-another-initiator", "RFC 7143 6.3.6", |s| {
        let first = s.log_in(&[])?;
        let want =
            Want { initiator: OTHER, isid: first.isid, tsih: first.tsih, cid: 2, ..s.want() };
        joins_not(s, want)
    }),
    ("login/TSIH-with-another-ISID", "RFC 7143 6.3.6", |s| {
        let first = s.log_in(&[])?;
        joins_not(s, Want { tsih: first.tsih, cid: 2, ..s.want() })
    }),
    ("login/another-ISID-is-another-session", "RFC 7143 6.3", |s| {
        let (mut one, mut two) = (s.session(&[])?, s.session(&[])?);
        check(one.tsih != two.tsih, "both have the same TSIH")?;
        one.scsi(&READY, Moves::Nothing)?.good()?;
        two.scsi(&READY, Moves::Nothing)?.good()
    }),
    ("login/ends-with-the-first-connection-that-breaks", "RFC 7143 6.3", |s| {
        let mut login = s.negotiation()?;
        login.go(false, 0, &[])?;
        let isid = login.want.isid;
        login.wire.cut();
        s.enter(Want { isid, ..s.want() })?.settle()
    }),
    ("login/another-PDU-before-a-login", "RFC 7143 6.3", |s| {
        let mut wire = Wire::open(s.at)?;
        wire.send(ping(), &[]);
        match wire.hear()? {
            Heard::Closed => Ok(()),
            Heard::Pdu(pdu, _) => fail(format!("{pdu:?} where the connection ends at once")),
        }
    }),
    ("login/another-PDU-during-a-login", "RFC 7143 6.3", |s| {
        let mut login = s.negotiation()?;
        login.go(false, 0, &[])?;
        login.wire.send(ping(), &[]);
        match login.wire.closes()?[..] {
            [Pdu::LoginResponse(it)] => same("the status", it.status, 0x20b),
            [] => Ok(()),
            ref other => fail(format!("{other:?}")),
        }
    }),
    ("login/function-during-a-login", "RFC 7143 6.3", |s| {
        let mut login = s.negotiation()?;
        login.go(false, 0, &[])?;
        let request = TaskRequest {
            sn: RequestNumbers { immediate: true, cmd_sn: 1, exp_stat_sn: 0 },
            function: 7,
            lun: [0; 8],
            itt: 9,
            referenced: NO_TAG,
            ref_cmd_sn: 0,
            exp_data_sn: 0,
        };
        login.wire.send(Pdu::TaskRequest(request), &[]);
        let said = login.wire.closes()?;
        let done = said.iter().any(|pdu| matches!(pdu, Pdu::TaskResponse(_)));
        check(!done, "a stranger resets the target")
    }),
    ("login/connection-ends-after-a-refusal", "RFC 7143 11.13.5", |s| {
        let want = Want { target: Some("iqn.2024-01.example:nowhere"), ..s.want() };
        let mut login = Login::open(s, want)?;
        login.ask(true, 3, &[])?;
        login.wire.closes().map(drop)
    }),
    ("login/more-connections-than-one", "RFC 7143 13.2", |s| {
        let first = s.log_in(&[("MaxConnections", "1")])?;
        let want = Want { isid: first.isid, tsih: first.tsih, cid: 2, ..s.want() };
        match Login::open(s, want)?.finish()? {
            Err(0x206) => Ok(()),
            Err(status) => check(status >> 8 == 2, format!("status {status:04x}")),
            Ok(_) => fail("a second connection joins"),
        }
    }),
    ("login/session-keys-in-another-connection", "RFC 7143 13", |s| {
        let first = s.log_in(&[("MaxConnections", "2")])?;
        if first.number("MaxConnections", 1) < 2 {
            return skip("MaxConnections is 1");
        }
        let want =
            Want { isid: first.isid, tsih: first.tsih, cid: 2, cmd_sn: first.cmd_sn, ..s.want() };
        let mut login = Login::open(s, want)?;
        login.authenticate()?;
        match login.ask(false, 0, &[("MaxBurstLength", "512"), ("ErrorRecoveryLevel", "2")])? {
            Some((response, pairs)) if response.status == 0 => {
                let answer = value(&pairs, "MaxBurstLength").unwrap_or("nothing");
                check(answer == "Reject" || answer == "Irrelevant", format!("{answer} is answered"))
            }
            other => refused(other),
        }
    }),
];

pub(super) fn cases() -> Vec<Case> {
    let mut all = named(NAMED);
    for (name, section, change) in HEADERS {
        all.push(Case::new(format!("login/{name}"), section, move |s| {
            let mut login = s.negotiation()?;
            login.go(false, 0, &[])?;
            let mut request = login.request(true, 3);
            change(&mut request);
            login.wire.send(Pdu::LoginRequest(request), &[]);
            match login.wire.hear()? {
                Heard::Closed => Ok(()),
                Heard::Pdu(Pdu::LoginResponse(it), _) if it.status >> 8 == 2 => Ok(()),
                Heard::Pdu(other, _) => fail(format!("{other:?} where the login ends")),
            }
        }));
    }
    for (name, change) in FIRST {
        all.push(Case::new(format!("login/first-request-{name}"), "RFC 7143 11.12", move |s| {
            let mut login = Login::open(s, s.want())?;
            let mut request = login.request(true, 3);
            change(&mut request);
            let text = iscsi::text::write(login.introduction());
            login.wire.send(Pdu::LoginRequest(request), &text);
            match login.wire.hear()? {
                Heard::Closed => Ok(()),
                Heard::Pdu(Pdu::LoginResponse(it), _) if it.status >> 8 == 2 => check(
                    name != "of-a-later-version" || it.status == 0x205,
                    format!("status {:04x}", it.status),
                ),
                Heard::Pdu(other, _) => fail(format!("{other:?} where the login ends")),
            }
        }));
    }
    all
}

type Change = fn(&mut LoginRequest);

/// What may not change, or come, in a later request.
const HEADERS: [(&str, &str, Change); 9] = [
    ("ISID-changes", "RFC 7143 11.12.5", |it| it.isid[5] ^= 1),
    ("TSIH-changes", "RFC 7143 11.12.6", |it| it.tsih = 99),
    ("CID-changes", "RFC 7143 11.12.7", |it| it.cid = 99),
    ("back-to-security", "RFC 7143 6.3", |it| (it.current, it.next) = (0, 1)),
    ("to-the-same-stage", "RFC 7143 11.12.3", |it| it.next = 1),
    ("to-an-earlier-stage", "RFC 7143 11.12.3", |it| it.next = 0),
    ("to-the-reserved-stage", "RFC 7143 11.12.3", |it| it.next = 2),
    ("in-the-reserved-stage", "RFC 7143 11.12.3", |it| it.current = 2),
    ("in-the-full-feature-phase", "RFC 7143 11.12.3", |it| it.current = 3),
];

/// What the first request may not be.
const FIRST: [(&str, Change); 5] = [
    ("of-a-later-version", |it| (it.version_min, it.version_max) = (1, 2)),
    ("in-the-reserved-stage", |it| it.current = 2),
    ("in-the-full-feature-phase", |it| it.current = 3),
    ("to-the-reserved-stage", |it| it.next = 2),
    ("to-an-earlier-stage", |it| it.next = 0),
];

fn ping() -> Pdu {
    let sn = RequestNumbers { immediate: true, cmd_sn: 1, exp_stat_sn: 0 };
    Pdu::NopOut(NopOut { sn, lun: [0; 8], itt: 3, ttt: NO_TAG })
}

fn staged(subject: &Subject, stage: u8) -> Outcome<Login<'_>> {
    let mut login = Login::open(subject, subject.want())?;
    login.stage = stage;
    Ok(login)
}

/// A case about targets that want no secret.
fn open_only(subject: &Subject, run: impl Fn(&Subject) -> Outcome) -> Outcome {
    match subject.account {
        Some(_) => skip("the target wants CHAP"),
        None => run(subject),
    }
}

/// Without a key that has to be there.
fn lacks(subject: &Subject, missing: &str) -> Outcome {
    let mut login = Login::open(subject, subject.want())?;
    let pairs = login.introduction().into_iter().filter(|(key, _)| *key != missing);
    let text = iscsi::text::write(pairs);
    match login.say(login.request(true, 3), &text)? {
        Some((response, _)) => same("the status", response.status, 0x207),
        None => fail("the connection ends without a status"),
    }
}

fn joins_not(subject: &Subject, want: Want<'_>) -> Outcome {
    match Login::open(subject, want)?.finish()? {
        Err(status) => check(status >> 8 == 2, format!("status {status:04x}")),
        Ok(_) => fail("it joins a session that is not its own"),
    }
}

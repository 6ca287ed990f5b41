//! Texts: their form, keys that come twice, in the wrong place, in several PDUs, or later
//! (RFC 7143 6.1, 6.2, 6.3, 6.4).

use iscsi::{
    pdu::{LoginRequest, LoginResponse, NO_TAG, Pdu, TextRequest, reason},
    text,
};

use super::{
    super::{
        Case, Outcome, Subject, check,
        conn::{Conn, Moves, pattern, ten},
        fail,
        login::{Login, Pairs, value},
        same, skip,
    },
    Named, named,
};

/// The cases that stand for themselves.
const NAMED: &[Named] = &[
    ("texts/unknown-key-is-not-understood", "RFC 7143 6.2", |s| understood(s, "NoSuchKey")),
    ("texts/unknown-private-key-is-not-understood", "RFC 7143 13.22", |s| {
        understood(s, "X-com.example.key")
    }),
    ("texts/key-of-63-bytes", "RFC 7143 6.1", |s| understood(s, &"k".repeat(63))),
    ("texts/value-of-255-bytes", "RFC 7143 6.1", |s| {
        let (_, pairs) = s.negotiation()?.go(false, 0, &[("X-com.example.a", &"v".repeat(255))])?;
        same("the answer", value(&pairs, "X-com.example.a"), Some("NotUnderstood"))
    }),
    ("texts/last-nul-missing", "RFC 7143 6.1", last_nul),
    ("texts/empty-text", "RFC 7143 6.2", |s| {
        let mut login = s.negotiation()?;
        login.go(false, 0, &[])?;
        login.go(false, 0, &[])?;
        login.go(true, 3, &[]).map(drop)
    }),
    ("texts/key-twice-in-one-text", "RFC 7143 6.3", |s| {
        ends(s, &[], b"MaxBurstLength=8192\0MaxBurstLength=8192\0")
    }),
    ("texts/key-twice-in-one-login", "RFC 7143 6.3", |s| {
        ends(s, &[("MaxBurstLength", "8192")], b"MaxBurstLength=8192\0")
    }),
    ("texts/declaration-twice-in-one-login", "RFC 7143 6.3", |s| {
        ends(s, &[("MaxRecvDataSegmentLength", "8192")], b"MaxRecvDataSegmentLength=16384\0")
    }),
    ("texts/answer-to-nothing-settles-nothing", "RFC 7143 6.2", |s| {
        let mut login = s.negotiation()?;
        let (_, pairs) = login.go(false, 0, &[("X-com.example.b", "NotUnderstood")])?;
        let answer = value(&pairs, "X-com.example.b");
        check(answer.is_none_or(|it| it == "NotUnderstood"), format!("{answer:?} is answered"))?;
        login.go(true, 3, &[]).map(drop)
    }),
    ("texts/key-split-over-two-pdus", "RFC 7143 6.2", split),
    ("texts/every-byte-in-a-pdu-of-its-own", "RFC 7143 6.2", crumbs),
    ("texts/C-and-T-exclude-each-other", "RFC 7143 11.12.1", |s| {
        let mut login = s.negotiation()?;
        let request = LoginRequest { more: true, ..login.request(true, 3) };
        refused(login.say(request, b"MaxBurstLength=81")?)
    }),
    ("texts/login-text-without-end", "RFC 7143 6.2", endless),
    ("texts/data-segment-beyond-8192-in-login", "RFC 7143 13.12", |s| {
        let mut login = Login::open(s, s.want())?;
        let request = login.request(true, 3);
        login.wire.send(Pdu::LoginRequest(request), &vec![b'x'; 8196]);
        refused(login.answer(&request)?)
    }),
    ("texts/AuthMethod-in-the-operational-stage", "RFC 7143 12.1", |s| {
        misplaced(s, "AuthMethod", "None")
    }),
    ("texts/CHAP-in-the-operational-stage", "RFC 7143 12.1.3", |s| misplaced(s, "CHAP_A", "5")),
    ("texts/TargetAddress-of-an-initiator", "RFC 7143 13.8", |s| {
        misplaced(s, "TargetAddress", "192.0.2.1:3260,1")
    }),
    ("texts/TargetPortalGroupTag-of-an-initiator", "RFC 7143 13.9", |s| {
        misplaced(s, "TargetPortalGroupTag", "1")
    }),
    ("texts/SendTargets-in-login", "RFC 7143 13.3", |s| misplaced(s, "SendTargets", "All")),
    ("texts/FirstBurstLength-that-means-nothing", "RFC 7143 13.14", |s| {
        let mut login = s.negotiation()?;
        let offers = [("InitialR2T", "Yes"), ("ImmediateData", "No"), ("FirstBurstLength", "4096")];
        let (_, pairs) = login.go(false, 0, &offers)?;
        let answer = value(&pairs, "FirstBurstLength").unwrap_or("nothing");
        let least = text::number(answer).is_some_and(|n| n <= 4096);
        check(answer == "Irrelevant" || least, format!("{answer} is answered"))
    }),
    ("texts/FirstBurstLength-is-within-MaxBurstLength", "RFC 7143 13.14", |s| {
        let mut login = s.negotiation()?;
        let offers =
            [("MaxBurstLength", "4096"), ("FirstBurstLength", "65536"), ("InitialR2T", "No")];
        let (_, pairs) = login.go(false, 0, &offers)?;
        let of = |key| value(&pairs, key).and_then(text::number).unwrap_or(u64::MAX);
        let (first, most) = (of("FirstBurstLength"), of("MaxBurstLength"));
        check(first <= most && most <= 4096, format!("{first} and {most} are answered"))
    }),
    ("texts/all-keys-at-once", "RFC 7143 6.2", all_at_once),
    ("texts/MaxRecvDataSegmentLength-in-the-full-feature-phase", "RFC 7143 6.4", later_length),
    ("texts/unknown-key-in-the-full-feature-phase", "RFC 7143 6.4", |s| {
        let mut conn = s.session(&[])?;
        let pairs = text_of(&mut conn, &[("X-com.example.c", "1")])?;
        same("the answer", value(&pairs, "X-com.example.c"), Some("NotUnderstood"))
    }),
    ("texts/several-pdus-in-the-full-feature-phase", "RFC 7143 11.10.2", pieces),
    ("texts/target-transfer-tag-that-nobody-gave", "RFC 7143 11.10.4", |s| {
        let mut conn = s.session(&[])?;
        let request = TextRequest { ttt: 0x1234, ..question(&mut conn, true) };
        conn.send(Pdu::TextRequest(request), b"X-com.example.d=1\0");
        conn.rejected(&[reason::LONG_OPERATION, reason::PROTOCOL, reason::FIELD])?;
        conn.nothing_came("11.17")
    }),
];

pub(super) fn cases() -> Vec<Case> {
    let mut all = named(NAMED);
    for (name, text) in BROKEN {
        all.push(Case::new(format!("texts/{name}"), "RFC 7143 6.1", move |s| ends(s, &[], text)));
    }
    for key in
        ["InitialR2T", "MaxBurstLength", "MaxConnections", "ErrorRecoveryLevel", "HeaderDigest"]
    {
        let name = format!("texts/{key}-in-the-full-feature-phase");
        all.push(Case::new(name, "RFC 7143 6.4", move |s| too_late(s, key)));
    }
    all
}

/// Texts that are none.
const BROKEN: [(&str, &[u8]); 6] = [
    ("pair-without-equals", b"MaxBurstLength\0"),
    ("pair-without-key", b"=8192\0"),
    ("space-in-a-key", b"Max Burst=8192\0"),
    ("control-character-in-a-key", b"Max\x01Burst=8192\0"),
    ("slash-in-a-key", b"Max/Burst=8192\0"),
    ("key-of-64-bytes", b"kkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkk=1\0"),
];

/// The login ends: by a status of the initiator's fault, or by the end of the connection.
pub(super) fn refused(answer: Option<(LoginResponse, Pairs)>) -> Outcome {
    match answer {
        None => Ok(()),
        Some((response, _)) => {
            let status = response.status;
            check(status >> 8 == 2, format!("status {status:04x} where the login ends"))
        }
    }
}

fn understood(subject: &Subject, key: &str) -> Outcome {
    let (_, pairs) = subject.negotiation()?.go(false, 0, &[(key, "1")])?;
    same("the answer", value(&pairs, key), Some("NotUnderstood"))
}

/// A text ends the login.
fn ends(subject: &Subject, before: &[(&str, &str)], text: &[u8]) -> Outcome {
    let mut login = subject.negotiation()?;
    login.go(false, 0, before)?;
    refused(login.say(login.request(false, 0), text)?)
}

/// A key that has no place here is not agreed upon.
fn misplaced(subject: &Subject, key: &str, offer: &str) -> Outcome {
    let mut login = subject.negotiation()?;
    login.go(false, 0, &[])?;
    match login.ask(false, 0, &[(key, offer)])? {
        Some((response, pairs)) if response.status == 0 => {
            let answer = value(&pairs, key).unwrap_or("nothing");
            let refused = ["Reject", "Irrelevant", "NotUnderstood"].contains(&answer);
            check(refused, format!("{answer} is answered"))
        }
        other => refused(other),
    }
}

fn last_nul(subject: &Subject) -> Outcome {
    let mut login = subject.negotiation()?;
    login.go(false, 0, &[])?;
    match login.say(login.request(false, 0), b"MaxBurstLength=8192")? {
        Some((response, pairs)) if response.status == 0 => {
            let n = value(&pairs, "MaxBurstLength").and_then(text::number);
            check(n.is_some_and(|n| n <= 8192), format!("{pairs:?} is answered"))
        }
        other => refused(other),
    }
}

fn split(subject: &Subject) -> Outcome {
    let mut login = subject.negotiation()?;
    login.go(false, 0, &[])?;
    let request = LoginRequest { more: true, ..login.request(false, 0) };
    match login.say(request, b"MaxBurstLen")? {
        Some((response, pairs)) if response.status == 0 => {
            check(pairs.is_empty(), "an answer before the text is whole (6.2)")?;
            check(!response.more, "C in an answer without text (11.13.1)")?;
        }
        _ => return fail("the login ends"),
    }
    let answer = login.say(login.request(false, 0), b"gth=8192\0")?;
    let Some((_, pairs)) = answer.filter(|(it, _)| it.status == 0) else {
        return fail("the login ends");
    };
    let n = value(&pairs, "MaxBurstLength").and_then(text::number);
    check(n.is_some_and(|n| n <= 8192), format!("{pairs:?} is answered"))
}

fn crumbs(subject: &Subject) -> Outcome {
    let mut login = subject.negotiation()?;
    login.go(false, 0, &[])?;
    let text = b"FirstBurstLength=4\0";
    let last = text.len() - 1;
    for byte in &text[..last] {
        let request = LoginRequest { more: true, ..login.request(false, 0) };
        match login.say(request, &[*byte])? {
            Some((response, _)) if response.status == 0 => {}
            _ => return fail("the login ends"),
        }
    }
    let answer = login.say(login.request(false, 0), &text[last..])?;
    // A value that cannot be, but the text is one.
    match answer {
        Some((response, pairs)) if response.status == 0 => {
            check(value(&pairs, "FirstBurstLength").is_some(), "the key is not answered")
        }
        other => refused(other),
    }
}

/// A target keeps a bounded text of a stranger.
fn endless(subject: &Subject) -> Outcome {
    let mut login = subject.negotiation()?;
    login.go(false, 0, &[])?;
    for _ in 0..2000 {
        let request = LoginRequest { more: true, ..login.request(false, 0) };
        match login.say(request, &[b'x'; 4096])? {
            Some((response, _)) if response.status == 0 => {}
            other => return refused(other),
        }
    }
    fail("eight million bytes are taken of a stranger")
}

fn all_at_once(subject: &Subject) -> Outcome {
    let offers = [
        ("HeaderDigest", "None"),
        ("DataDigest", "None"),
        ("MaxConnections", "1"),
        ("InitialR2T", "Yes"),
        ("ImmediateData", "Yes"),
        ("MaxRecvDataSegmentLength", "65536"),
        ("MaxBurstLength", "262144"),
        ("FirstBurstLength", "65536"),
        ("DefaultTime2Wait", "2"),
        ("DefaultTime2Retain", "0"),
        ("MaxOutstandingR2T", "1"),
        ("DataPDUInOrder", "Yes"),
        ("DataSequenceInOrder", "Yes"),
        ("ErrorRecoveryLevel", "0"),
        ("X-com.example.e", "1"),
        ("InitiatorAlias", "conformance"),
    ];
    let (_, pairs) = subject.negotiation()?.go(false, 0, &offers)?;
    for (key, _) in
        offers.iter().filter(|(key, _)| !key.ends_with("Alias") && !key.ends_with("SegmentLength"))
    {
        check(value(&pairs, key).is_some(), format!("{key} is not answered"))?;
    }
    Ok(())
}

fn question(conn: &mut Conn, last: bool) -> TextRequest {
    let (sn, itt) = (conn.numbers(), conn.tag());
    TextRequest { sn, last, more: false, lun: [0; 8], itt, ttt: NO_TAG }
}

/// A text exchange to its end.
pub(super) fn text_of(conn: &mut Conn, pairs: &[(&str, &str)]) -> Outcome<Pairs> {
    let mut request = question(conn, true);
    conn.send(Pdu::TextRequest(request), &text::write(pairs.iter().copied()));
    let mut whole = Vec::new();
    for _ in 0..1000 {
        let (response, data) = match conn.next()? {
            (Pdu::TextResponse(it), data) => (it, data),
            (other, _) => return fail(format!("{other:?} where a text response is due (11.11)")),
        };
        same("Initiator Task Tag (11.11.3)", response.itt, request.itt)?;
        whole.extend_from_slice(&data);
        if response.last {
            check(!response.more, "F and C together (11.11.2)")?;
            same("Target Transfer Tag with F (11.11.4)", response.ttt, NO_TAG)?;
            return text::read(&whole)
                .map_err(|error| super::super::Stop::Failed(error.to_string()));
        }
        check(response.ttt != NO_TAG, "no Target Transfer Tag without F (11.11.4)")?;
        let itt = request.itt;
        request = TextRequest { itt, ttt: response.ttt, lun: response.lun, ..question(conn, true) };
        conn.send(Pdu::TextRequest(request), &[]);
    }
    fail("a text without end")
}

fn later_length(subject: &Subject) -> Outcome {
    let mut conn = subject.session(&[("MaxRecvDataSegmentLength", "65536")])?;
    let data = pattern(16 * conn.block, 3);
    conn.write(0, &data)?;
    let pairs = text_of(&mut conn, &[("MaxRecvDataSegmentLength", "512")])?;
    if let Some(answer) = value(&pairs, "MaxRecvDataSegmentLength") {
        let own = text::number(answer).is_some_and(|n| (512..=0xff_ffff).contains(&n));
        check(own, format!("{answer} is answered"))?;
    }
    conn.max_recv = 512;
    conn.holds(0, &data)
}

fn pieces(subject: &Subject) -> Outcome {
    let mut conn = subject.session(&[])?;
    let request = TextRequest { more: true, ..question(&mut conn, false) };
    conn.send(Pdu::TextRequest(request), b"X-com.exam");
    let ttt = match conn.next()? {
        (Pdu::TextResponse(it), data) => {
            check(data.is_empty() && !it.last, "an answer before the text is whole (11.10.2)")?;
            it.ttt
        }
        (other, _) => return fail(format!("{other:?} where a text response is due")),
    };
    check(ttt != NO_TAG, "no Target Transfer Tag without F (11.11.4)")?;
    let rest = TextRequest { itt: request.itt, ttt, ..question(&mut conn, true) };
    conn.send(Pdu::TextRequest(rest), b"ple.f=1\0");
    match conn.next()? {
        (Pdu::TextResponse(it), data) if it.last => {
            same("the answer", &data[..], &b"X-com.example.f=NotUnderstood\0"[..])
        }
        (other, _) => fail(format!("{other:?} where the last text response is due")),
    }
}

/// A key that is for logins is not agreed upon later, and changes nothing.
fn too_late(subject: &Subject, key: &str) -> Outcome {
    let mut conn = subject.session(&[])?;
    let offer = match key {
        "InitialR2T" => "No",
        "HeaderDigest" => "CRC32C",
        "MaxBurstLength" => "512",
        _ => "1",
    };
    let request = question(&mut conn, true);
    conn.send(Pdu::TextRequest(request), &text::write([(key, offer)]));
    match conn.next()? {
        (Pdu::Reject(_), _) => {}
        (Pdu::TextResponse(_), data) => {
            let Ok(pairs) = text::read(&data) else { return skip("no text is answered") };
            let answer = value(&pairs, key).unwrap_or("nothing");
            check(
                ["Reject", "Irrelevant", "NotUnderstood"].contains(&answer),
                format!("{answer} is answered"),
            )?;
        }
        (other, _) => return fail(format!("{other:?} where an answer is due")),
    }
    let length = 4 * conn.block as u32;
    conn.scsi(&ten(0x28, 0, 4), Moves::In(length))?.good()
}

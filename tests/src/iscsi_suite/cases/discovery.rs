//! Discovery sessions and SendTargets (RFC 7143 4.3, 13.3, appendix C).

use iscsi::pdu::{Pdu, reason};

use super::{
    super::{
        Case, Outcome, Subject, check,
        conn::{Conn, Moves, READY},
        fail,
        login::{Login, Want, value},
        same, skip,
    },
    Named, named,
};

/// The cases that stand for themselves.
const NAMED: &[Named] = &[
    ("discovery/all-targets", "RFC 7143 appendix C", |s| {
        let mut conn = discovery(s)?;
        let pairs = text_of_all(&mut conn, "All")?;
        let at = pairs.iter().position(|(key, value)| key == "TargetName" && *value == s.target);
        let Some(at) = at else { return fail(format!("the target is not among {pairs:?}")) };
        let addresses = pairs[at + 1..].iter().take_while(|(key, _)| key == "TargetAddress");
        let addresses: Vec<_> = addresses.map(|(_, value)| value.clone()).collect();
        check(!addresses.is_empty(), "the target has no TargetAddress")?;
        for address in addresses {
            let tag = address.rsplit_once(',').and_then(|(_, tag)| tag.parse::<u16>().ok());
            check(tag.is_some(), format!("{address} has no portal group tag (13.8)"))?;
        }
        Ok(())
    }),
    ("discovery/one-target", "RFC 7143 appendix C", |s| {
        let mut conn = discovery(s)?;
        let pairs = text_of_all(&mut conn, &s.target)?;
        let names = pairs.iter().filter(|(key, _)| key == "TargetName");
        same("the names", names.map(|(_, name)| &**name).collect::<Vec<_>>(), vec![&*s.target])
    }),
    ("discovery/a-target-that-is-not", "RFC 7143 appendix C", |s| {
        let mut conn = discovery(s)?;
        let pairs = text_of_all(&mut conn, "iqn.2024-01.example:nowhere")?;
        check(!pairs.iter().any(|(key, _)| key == "TargetName"), format!("{pairs:?}"))
    }),
    ("discovery/own-target-in-a-normal-session", "RFC 7143 appendix C", |s| {
        let mut conn = s.session(&[])?;
        let pairs = text_of_all(&mut conn, "")?;
        let names = pairs.iter().filter(|(key, _)| key == "TargetName");
        same("the names", names.map(|(_, name)| &**name).collect::<Vec<_>>(), vec![&*s.target])
    }),
    ("discovery/no-other-target-in-a-normal-session", "RFC 7143 appendix C", |s| {
        let Some(chap) = s.chap.as_ref().filter(|chap| chap.target != s.target) else {
            return skip("no other target is known");
        };
        let mut conn = s.session(&[])?;
        for which in ["All", &chap.target] {
            match asked(&mut conn, which)? {
                None => {}
                Some(pairs) => {
                    let other = pairs.iter().any(|(_, value)| *value == chap.target);
                    check(!other, format!("{which} tells of another target: {pairs:?}"))?;
                }
            }
        }
        Ok(())
    }),
    ("discovery/no-command", "RFC 7143 4.3", |s| {
        let mut conn = discovery(s)?;
        conn.begin(&READY, Moves::Nothing);
        refused(&mut conn)
    }),
    ("discovery/no-task-management", "RFC 7143 4.3", |s| {
        let mut conn = discovery(s)?;
        let request = conn.request(5, 0xffff_ffff, 0);
        conn.send(Pdu::TaskRequest(request), &[]);
        refused(&mut conn)
    }),
    ("discovery/logout", "RFC 7143 4.3", |s| {
        let mut conn = discovery(s)?;
        same("the response", conn.log_out(0, 0)?, 0)?;
        conn.closes().map(drop)
    }),
    ("discovery/keys-of-normal-sessions-mean-nothing", "RFC 7143 13", |s| {
        let mut login = Login::open(s, Want { target: None, ..s.want() })?;
        login.authenticate()?;
        let offers = [("MaxConnections", "2"), ("InitialR2T", "No"), ("MaxBurstLength", "8192")];
        let (_, pairs) = login.go(false, 0, &offers)?;
        for (key, _) in offers {
            check(value(&pairs, key).is_some(), format!("{key} is not answered"))?;
        }
        login.go(true, 3, &[]).map(drop)
    }),
    ("discovery/no-second-connection", "RFC 7143 4.3", |s| {
        let first = discovery(s)?;
        let want = Want { isid: first.isid, tsih: first.tsih, cid: 2, target: None, ..s.want() };
        match Login::open(s, want)?.finish()? {
            Err(status) => check(status >> 8 == 2, format!("status {status:04x}")),
            Ok(_) => fail("a second connection joins"),
        }
    }),
    ("discovery/segments-of-512-bytes", "RFC 7143 11.11.2", |s| {
        let keys = vec![("MaxRecvDataSegmentLength", "512")];
        let mut conn = s.enter(Want { target: None, keys, ..s.want() })?;
        conn.max_recv = 512;
        let pairs = text_of_all(&mut conn, "All")?;
        check(pairs.iter().any(|(_, value)| *value == s.target), "the target is not there")
    }),
];

pub(super) fn cases() -> Vec<Case> {
    named(NAMED)
}

fn discovery(subject: &Subject) -> Outcome<Conn> {
    subject.enter(Want { target: None, ..subject.want() })
}

/// SendTargets: the same key may come many times in its answer.
fn text_of_all(conn: &mut Conn, which: &str) -> Outcome<Vec<(String, String)>> {
    asked(conn, which)?.map_or_else(|| fail("SendTargets is rejected"), Ok)
}

fn asked(conn: &mut Conn, which: &str) -> Outcome<Option<Vec<(String, String)>>> {
    use iscsi::pdu::{NO_TAG, TextRequest};
    let (sn, itt) = (conn.numbers(), conn.tag());
    let mut request = TextRequest { sn, last: true, more: false, lun: [0; 8], itt, ttt: NO_TAG };
    conn.send(Pdu::TextRequest(request), format!("SendTargets={which}\0").as_bytes());
    let mut whole = Vec::new();
    loop {
        let (response, data) = match conn.next()? {
            (Pdu::TextResponse(it), data) => (it, data),
            (Pdu::Reject(_), _) => return Ok(None),
            (other, _) => return fail(format!("{other:?} where a text response is due (11.11)")),
        };
        whole.extend_from_slice(&data);
        if response.last {
            break;
        }
        request =
            TextRequest { sn: conn.numbers(), ttt: response.ttt, lun: response.lun, ..request };
        conn.send(Pdu::TextRequest(request), &[]);
    }
    let text = String::from_utf8_lossy(&whole).into_owned();
    let pairs = text.split('\0').filter(|pair| !pair.is_empty());
    let pairs = pairs.map(|pair| pair.split_once('=').map(|(a, b)| (a.to_owned(), b.to_owned())));
    pairs
        .collect::<Option<Vec<_>>>()
        .map_or_else(|| fail(format!("no text: {text:?}")), |it| Ok(Some(it)))
}

fn refused(conn: &mut Conn) -> Outcome {
    match conn.hear()? {
        super::super::wire::Heard::Closed => Ok(()),
        super::super::wire::Heard::Pdu(Pdu::Reject(it), _) => {
            let known = [reason::PROTOCOL, reason::NOT_SUPPORTED].contains(&it.reason);
            check(known, format!("reject reason {:#04x}", it.reason))
        }
        other => fail(format!("{other:?} where a reject is due")),
    }
}

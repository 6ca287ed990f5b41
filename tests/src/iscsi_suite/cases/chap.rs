//! CHAP (RFC 7143 12.1.3, 9.2.1; RFC 1994).

use iscsi::{
    chap::{Account, binary, hexadecimal},
    text::number,
};

use super::{
    super::{
        Case, Outcome, Stop, Subject, check,
        login::{Login, Pairs, Want, respond, value},
        same, skip,
        subject::ChapTarget,
    },
    Named, named,
};

/// The cases that stand for themselves.
const NAMED: &[Named] = &[
    ("chap/right-secret", "RFC 7143 12.1.3", |s| {
        with(s, |s, chap| {
            let (mut login, pairs) = challenged(s, chap, "5")?;
            let answer = respond(&chap.account, &pairs)?;
            login.go(true, 1, &[("CHAP_N", &chap.account.name), ("CHAP_R", &answer)])?;
            let (response, agreed) = login.go(true, 3, &[])?;
            login.enter(response, agreed)?.settle()
        })
    }),
    ("chap/right-into-the-full-feature-phase", "RFC 7143 6.3.2", |s| {
        with(s, |s, chap| {
            let (mut login, pairs) = challenged(s, chap, "5")?;
            let answer = respond(&chap.account, &pairs)?;
            let keys = [("CHAP_N", &*chap.account.name), ("CHAP_R", &*answer)];
            let (mut response, mut agreed) = login.go(true, 3, &keys)?;
            check(response.transit, "T is missing (11.13.2)")?;
            if login.stage == 1 {
                (response, agreed) = login.go(true, 3, &[])?;
            }
            login.enter(response, agreed)?.settle()
        })
    }),
    ("chap/challenge-is-long-and-never-the-same", "RFC 7143 12.1.3", |s| {
        with(s, |s, chap| {
            let challenge =
                |pairs: &Pairs| value(pairs, "CHAP_C").and_then(|text| binary(text, 1024));
            let one = challenge(&challenged(s, chap, "5")?.1).unwrap_or_default();
            let two = challenge(&challenged(s, chap, "5")?.1).unwrap_or_default();
            check(one.len() >= 16, format!("a challenge of {} bytes", one.len()))?;
            check(one != two, "two logins have the same challenge")
        })
    }),
    ("chap/algorithms-by-a-list", "RFC 7143 12.1.3", |s| {
        with(s, |s, chap| {
            let (_, pairs) = challenged(s, chap, "99,5")?;
            same("CHAP_A", value(&pairs, "CHAP_A").and_then(number), Some(5))
        })
    }),
    ("chap/no-algorithm-in-common", "RFC 7143 12.1.3", |s| {
        with(s, |s, chap| {
            let mut login = asked(s, chap)?;
            let answer = login.ask(false, 0, &[("CHAP_A", "99")])?;
            let rejected =
                answer.as_ref().is_some_and(|(_, pairs)| value(pairs, "CHAP_A") == Some("Reject"));
            if rejected { Ok(()) } else { shut(answer) }
        })
    }),
    ("chap/wrong-secret", "RFC 7143 12.1.3", |s| {
        with(s, |s, chap| {
            let wrong = account(&chap.account.name, "not-the-secret-it-is")?;
            let (mut login, pairs) = challenged(s, chap, "5")?;
            let answer = respond(&wrong, &pairs)?;
            shut(login.ask(true, 1, &[("CHAP_N", &wrong.name), ("CHAP_R", &answer)])?)
        })
    }),
    ("chap/wrong-name", "RFC 7143 12.1.3", |s| {
        with(s, |s, chap| {
            let (mut login, pairs) = challenged(s, chap, "5")?;
            let answer = respond(&chap.account, &pairs)?;
            shut(login.ask(true, 1, &[("CHAP_N", "mallory"), ("CHAP_R", &answer)])?)
        })
    }),
    ("chap/response-to-another-challenge", "RFC 7143 9.2.1", |s| {
        with(s, |s, chap| {
            let (_first, old) = challenged(s, chap, "5")?;
            let answer = respond(&chap.account, &old)?;
            let (mut login, _) = challenged(s, chap, "5")?;
            shut(login.ask(true, 1, &[("CHAP_N", &chap.account.name), ("CHAP_R", &answer)])?)
        })
    }),
    ("chap/response-before-the-challenge", "RFC 7143 12.1.3", |s| {
        with(s, |s, chap| {
            let mut login = asked(s, chap)?;
            let keys =
                [("CHAP_N", &*chap.account.name), ("CHAP_R", "0x00112233445566778899aabbccddeeff")];
            shut(login.ask(true, 1, &keys)?)
        })
    }),
    ("chap/response-is-missing", "RFC 7143 12.1.3", |s| {
        with(s, |s, chap| {
            let (mut login, _) = challenged(s, chap, "5")?;
            shut(login.ask(true, 1, &[("CHAP_N", &chap.account.name)])?)
        })
    }),
    ("chap/name-is-missing", "RFC 7143 12.1.3", |s| {
        with(s, |s, chap| {
            let (mut login, pairs) = challenged(s, chap, "5")?;
            let answer = respond(&chap.account, &pairs)?;
            shut(login.ask(true, 1, &[("CHAP_R", &answer)])?)
        })
    }),
    ("chap/response-without-a-mark", "RFC 7143 6.1", |s| {
        with(s, |s, chap| {
            let (mut login, pairs) = challenged(s, chap, "5")?;
            let answer = respond(&chap.account, &pairs)?;
            shut(login.ask(true, 1, &[("CHAP_N", &chap.account.name), ("CHAP_R", &answer[2..])])?)
        })
    }),
    ("chap/response-that-is-too-long", "RFC 7143 12.1.3", |s| {
        with(s, |s, chap| {
            let (mut login, _) = challenged(s, chap, "5")?;
            let long = format!("0x{}", "a5".repeat(2000));
            shut(login.ask(true, 1, &[("CHAP_N", &chap.account.name), ("CHAP_R", &long)])?)
        })
    }),
    ("chap/response-in-base64", "RFC 7143 6.1", |s| {
        with(s, |s, chap| {
            let (mut login, pairs) = challenged(s, chap, "5")?;
            let answer = respond(&chap.account, &pairs)?;
            let answer = base64(&binary(&answer, 64).unwrap_or_default());
            login.go(true, 1, &[("CHAP_N", &chap.account.name), ("CHAP_R", &answer)])?;
            check(login.stage == 1, "the target does not leave the security stage")
        })
    }),
    ("chap/response-in-capital-digits", "RFC 7143 6.1", |s| {
        with(s, |s, chap| {
            let (mut login, pairs) = challenged(s, chap, "5")?;
            let answer = respond(&chap.account, &pairs)?.to_uppercase();
            login.go(true, 1, &[("CHAP_N", &chap.account.name), ("CHAP_R", &answer)])?;
            check(login.stage == 1, "the target does not leave the security stage")
        })
    }),
    ("chap/T-before-the-end", "RFC 7143 6.3.2", |s| {
        with(s, |s, chap| {
            let mut login = asked(s, chap)?;
            match login.ask(true, 1, &[("CHAP_A", "5")])? {
                Some((response, _)) if response.status == 0 => {
                    check(!response.transit, "the target leaves the security stage")
                }
                other => shut(other),
            }
        })
    }),
    ("chap/no-security-stage", "RFC 7143 6.3.2", |s| {
        with(s, |s, chap| {
            let mut login = guarded(s, chap)?;
            login.stage = 1;
            shut(login.ask(true, 3, &[])?)
        })
    }),
    ("chap/AuthMethod-None", "RFC 7143 12.1", |s| {
        with(s, |s, chap| shut(guarded(s, chap)?.ask(true, 1, &[("AuthMethod", "None")])?))
    }),
    ("chap/AuthMethod-None-and-CHAP", "RFC 7143 12.1", |s| {
        with(s, |s, chap| {
            let (_, pairs) = guarded(s, chap)?.go(false, 0, &[("AuthMethod", "None,CHAP")])?;
            same("AuthMethod", value(&pairs, "AuthMethod"), Some("CHAP"))
        })
    }),
    ("chap/AuthMethod-KRB5-and-CHAP", "RFC 7143 12.1", |s| {
        with(s, |s, chap| {
            let (_, pairs) = guarded(s, chap)?.go(false, 0, &[("AuthMethod", "KRB5,CHAP")])?;
            same("AuthMethod", value(&pairs, "AuthMethod"), Some("CHAP"))
        })
    }),
    ("chap/AuthMethod-that-nobody-has", "RFC 7143 12.1", |s| {
        with(s, |s, chap| {
            let answer = guarded(s, chap)?.ask(true, 1, &[("AuthMethod", "X-com.example.auth")])?;
            let rejected = answer.as_ref().is_some_and(|(response, pairs)| {
                !response.transit && value(pairs, "AuthMethod") == Some("Reject")
            });
            if rejected { Ok(()) } else { shut(answer) }
        })
    }),
    ("chap/mutual", "RFC 7143 12.1.3", |s| {
        with(s, |s, chap| {
            let (mut login, pairs, theirs) = mutual(s, chap)?;
            let answer = respond(&chap.account, &pairs)?;
            let challenge = [0x5a; 24];
            let keys = [
                ("CHAP_N", &*chap.account.name),
                ("CHAP_R", &*answer),
                ("CHAP_I", "77"),
                ("CHAP_C", &*hexadecimal(&challenge)),
            ];
            let (_, proof) = login.go(true, 1, &keys)?;
            same("CHAP_N", value(&proof, "CHAP_N"), Some(&*theirs.name))?;
            let asked = [("CHAP_A", "5"), ("CHAP_I", "77"), ("CHAP_C", &*hexadecimal(&challenge))];
            let asked = asked.map(|(key, value)| (key.to_owned(), value.to_owned())).to_vec();
            let right = respond(theirs, &asked)?;
            let found = value(&proof, "CHAP_R").and_then(|text| binary(text, 64));
            same("CHAP_R", found, binary(&right, 64))
        })
    }),
    ("chap/mutual-with-the-targets-own-challenge", "RFC 7143 9.2.1", |s| {
        with(s, |s, chap| {
            let (mut login, pairs, _) = mutual(s, chap)?;
            let answer = respond(&chap.account, &pairs)?;
            let of = |key: &str| value(&pairs, key).unwrap_or_default().to_owned();
            let keys = [
                ("CHAP_N", &*chap.account.name),
                ("CHAP_R", &*answer),
                ("CHAP_I", &*of("CHAP_I")),
                ("CHAP_C", &*of("CHAP_C")),
            ];
            shut(login.ask(true, 1, &keys)?)
        })
    }),
    ("chap/mutual-without-a-challenge", "RFC 7143 12.1.3", |s| {
        with(s, |s, chap| {
            let (mut login, pairs, _) = mutual(s, chap)?;
            let answer = respond(&chap.account, &pairs)?;
            let keys = [("CHAP_N", &*chap.account.name), ("CHAP_R", &*answer), ("CHAP_I", "1")];
            shut(login.ask(true, 1, &keys)?)
        })
    }),
    ("chap/mutual-with-a-challenge-of-1025-bytes", "RFC 7143 12.1.3", |s| {
        with(s, |s, chap| {
            let (mut login, pairs, _) = mutual(s, chap)?;
            let answer = respond(&chap.account, &pairs)?;
            let long = format!("0x{}", "a5".repeat(1025));
            let keys = [
                ("CHAP_N", &*chap.account.name),
                ("CHAP_R", &*answer),
                ("CHAP_I", "1"),
                ("CHAP_C", &*long),
            ];
            shut(login.ask(true, 1, &keys)?)
        })
    }),
];

pub(super) fn cases() -> Vec<Case> {
    let mut all = named(NAMED);
    for (name, code) in [("SHA-1", "6"), ("SHA-256", "7"), ("SHA3-256", "8")] {
        all.push(Case::new(format!("chap/{name}"), "RFC 7143 12.1.3", move |s| {
            with(s, |s, chap| {
                let (mut login, pairs) = challenged(s, chap, &format!("{code},5"))?;
                if value(&pairs, "CHAP_A") == Some("5") {
                    return skip(format!("the target has no {name}"));
                }
                let answer = respond(&chap.account, &pairs)?;
                login.go(true, 1, &[("CHAP_N", &chap.account.name), ("CHAP_R", &answer)]).map(drop)
            })
        }));
    }
    all
}

fn with(subject: &Subject, run: impl Fn(&Subject, &ChapTarget) -> Outcome) -> Outcome {
    match &subject.chap {
        Some(chap) => run(subject, chap),
        None => skip("no CHAP account is given (BULKHEAD_CHAP_USER, BULKHEAD_CHAP_SECRET)"),
    }
}

fn account(name: &str, secret: &str) -> Outcome<Account> {
    Account::new(name, secret.as_bytes()).map_err(|error| Stop::Failed(error.to_string()))
}

/// A login at the security stage.
fn guarded<'a>(subject: &'a Subject, chap: &'a ChapTarget) -> Outcome<Login<'a>> {
    let mut login = Login::open(subject, Want { target: Some(&chap.target), ..subject.want() })?;
    login.stage = 0;
    Ok(login)
}

/// CHAP is agreed upon.
fn asked<'a>(subject: &'a Subject, chap: &'a ChapTarget) -> Outcome<Login<'a>> {
    let mut login = guarded(subject, chap)?;
    let (_, pairs) = login.go(false, 0, &[("AuthMethod", "CHAP")])?;
    same("AuthMethod", value(&pairs, "AuthMethod"), Some("CHAP"))?;
    Ok(login)
}

/// The target gave its challenge.
fn challenged<'a>(
    subject: &'a Subject,
    chap: &'a ChapTarget,
    algorithms: &str,
) -> Outcome<(Login<'a>, Pairs)> {
    let mut login = asked(subject, chap)?;
    let (_, pairs) = login.go(false, 0, &[("CHAP_A", algorithms)])?;
    Ok((login, pairs))
}

fn mutual<'a>(
    subject: &'a Subject,
    chap: &'a ChapTarget,
) -> Outcome<(Login<'a>, Pairs, &'a Account)> {
    let Some(theirs) = &chap.mutual else {
        return skip("no account of the target is given (BULKHEAD_CHAP_TARGET_USER)");
    };
    let (login, pairs) = challenged(subject, chap, "5")?;
    Ok((login, pairs, theirs))
}

/// The login ends, and nobody is let in.
fn shut(answer: Option<(iscsi::pdu::LoginResponse, Pairs)>) -> Outcome {
    match answer {
        None => Ok(()),
        Some((response, _)) => {
            let status = response.status;
            check(status >> 8 == 2, format!("status {status:04x}, T {}", response.transit))
        }
    }
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::from("0b");
    for three in bytes.chunks(3) {
        let mut bits = 0_u32;
        for at in 0..3 {
            bits = bits << 8 | u32::from(three.get(at).copied().unwrap_or(0));
        }
        for at in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * at) & 63) as usize];
            out.push(if at <= three.len() { char::from(digit) } else { '=' });
        }
    }
    out
}

//! Every operational key with what it may be and may not be (RFC 7143 13).

use iscsi::text::number;

use super::super::{Case, Outcome, Stop, Subject, check, fail, login::value};

/// How an offer and what the target wants become one (RFC 7143 6.2.2, 13).
#[derive(Debug, Clone, Copy)]
enum Rule {
    /// The lesser number.
    Least(u64, u64),
    /// The greater number.
    Most(u64, u64),
    /// Yes if both say so.
    And,
    /// Yes if one says so.
    Or,
    /// The first of the list that the target takes.
    List(&'static [&'static str]),
    /// Said, not answered.
    Declared,
}

struct Key(&'static str, &'static str, Rule, &'static [&'static str], &'static [&'static str]);

const LENGTH: Rule = Rule::Least(512, 0xff_ffff);
const COUNT: Rule = Rule::Least(1, 65535);
const YES_NO: &[&str] = &["Yes", "No"];
const NO_YES_NO: &[&str] = &["yes", "Maybe", "1", ""];
const DIGEST: Rule = Rule::List(&["None", "CRC32C"]);
const DIGESTS: &[&str] =
    &["None", "CRC32C", "CRC32C,None", "None,CRC32C", "X-com.example.sum,None"];

/// Key, section, rule, what may be offered, what may not.
const KEYS: &[Key] = &[
    Key("HeaderDigest", "RFC 7143 13.1", DIGEST, DIGESTS, &["MD5", "crc32c", ""]),
    Key("DataDigest", "RFC 7143 13.1", DIGEST, DIGESTS, &["MD5", "crc32c", ""]),
    Key(
        "MaxConnections",
        "RFC 7143 13.2",
        COUNT,
        &["1", "2", "65535", "0x2"],
        &["0", "65536", "-1", "x", ""],
    ),
    Key("InitialR2T", "RFC 7143 13.10", Rule::Or, YES_NO, NO_YES_NO),
    Key("ImmediateData", "RFC 7143 13.11", Rule::And, YES_NO, NO_YES_NO),
    Key(
        "MaxRecvDataSegmentLength",
        "RFC 7143 13.12",
        Rule::Declared,
        &["512", "8192", "0x10000", "16777215"],
        &["0", "511", "16777216", "x"],
    ),
    Key(
        "MaxBurstLength",
        "RFC 7143 13.13",
        LENGTH,
        &["512", "65536", "0x1000", "16777215"],
        &["0", "511", "16777216", "99999999999999999999", "1e3"],
    ),
    Key(
        "FirstBurstLength",
        "RFC 7143 13.14",
        LENGTH,
        &["512", "0x1000", "16777215"],
        &["0", "511", "16777216", "Yes"],
    ),
    Key(
        "DefaultTime2Wait",
        "RFC 7143 13.15",
        Rule::Most(0, 3600),
        &["0", "5", "3600"],
        &["3601", "-1"],
    ),
    Key(
        "DefaultTime2Retain",
        "RFC 7143 13.16",
        Rule::Least(0, 3600),
        &["0", "5", "3600"],
        &["3601", "x"],
    ),
    Key("MaxOutstandingR2T", "RFC 7143 13.17", COUNT, &["1", "4", "65535"], &["0", "65536"]),
    Key("DataPDUInOrder", "RFC 7143 13.18", Rule::Or, YES_NO, NO_YES_NO),
    Key("DataSequenceInOrder", "RFC 7143 13.19", Rule::Or, YES_NO, NO_YES_NO),
    Key(
        "ErrorRecoveryLevel",
        "RFC 7143 13.20",
        Rule::Least(0, 2),
        &["0", "1", "2"],
        &["3", "-1", "x"],
    ),
    Key(
        "TaskReporting",
        "RFC 7143 13.23",
        Rule::List(&["RFC3720", "ResponseFence", "FastAbort"]),
        &["RFC3720", "ResponseFence,RFC3720", "FastAbort,ResponseFence,RFC3720"],
        &["Slowly", ""],
    ),
    Key(
        "iSCSIProtocolLevel",
        "RFC 7143 13.24",
        Rule::Least(0, 31),
        &["0", "1", "2", "31"],
        &["32", "x"],
    ),
];

/// Keys of RFC 3720 that a target still has to know, and what it may answer (RFC 7143 13.25).
const OBSOLETE: &[(&str, &str, &[&str])] = &[
    ("IFMarker", "Yes", &["Reject", "No"]),
    ("OFMarker", "No", &["Reject", "No"]),
    ("IFMarkInt", "2048~8192", &["Reject"]),
    ("OFMarkInt", "2048~8192", &["Reject"]),
];

pub(super) fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for Key(key, section, rule, legal, illegal) in KEYS {
        for offer in *legal {
            all.push(Case::new(format!("keys/{key}={offer}"), section, move |subject| {
                takes(subject, key, offer, *rule)
            }));
        }
        for offer in *illegal {
            let name = format!("keys/{key}={offer}-is-none");
            all.push(Case::new(name, section, move |subject| refuses(subject, key, offer, *rule)));
        }
    }
    for (key, offer, answers) in OBSOLETE {
        all.push(Case::new(format!("keys/{key}-is-obsolete"), "RFC 7143 13.25", move |subject| {
            let (_, pairs) = subject.negotiation()?.go(false, 0, &[(key, offer)])?;
            let answer = value(&pairs, key).unwrap_or("nothing");
            check(answers.contains(&answer), format!("{answer} where {answers:?} is due"))
        }));
    }
    all
}

/// The answer to one key; what the target declares of itself is none.
fn answer(subject: &Subject, key: &str, offer: &str) -> Outcome<Result<Option<String>, u16>> {
    let mut login = subject.negotiation()?;
    match login.ask(false, 0, &[(key, offer)])? {
        None => Ok(Err(0x200)),
        Some((response, _)) if response.status != 0 => Ok(Err(response.status)),
        Some((_, pairs)) => {
            let found = value(&pairs, key).map(str::to_owned);
            // The login is sound still.
            login.go(true, 3, &[])?;
            Ok(Ok(found))
        }
    }
}

fn takes(subject: &Subject, key: &str, offer: &str, rule: Rule) -> Outcome {
    let answer = match answer(subject, key, offer)? {
        Ok(answer) => answer,
        Err(status) => return fail(format!("the login is refused: {status:04x}")),
    };
    if matches!(rule, Rule::Declared) {
        let own = answer.as_deref().map(number);
        let sound = own.is_none_or(|own| own.is_some_and(|n| (512..=0xff_ffff).contains(&n)));
        return check(sound, format!("the target declares {answer:?}"));
    }
    let Some(answer) = answer else { return fail("the key is not answered (6.2)") };
    let wrong = || Stop::Failed(format!("{answer} is answered"));
    let sound = match rule {
        Rule::Least(low, high) | Rule::Most(low, high) => {
            let (n, offered) =
                (number(&answer).ok_or_else(wrong)?, number(offer).ok_or_else(wrong)?);
            let beyond = if matches!(rule, Rule::Least(..)) { n <= offered } else { n >= offered };
            beyond && (low..=high).contains(&n)
        }
        Rule::And => answer == "No" || (answer == "Yes" && offer == "Yes"),
        Rule::Or => answer == "Yes" || (answer == "No" && offer == "No"),
        Rule::List(known) => {
            let offered = offer.split(',').any(|it| it == answer) && known.contains(&&*answer);
            offered || (answer == "Reject" && !offer.contains(','))
        }
        Rule::Declared => true,
    };
    if sound { Ok(()) } else { Err(wrong()) }
}

/// A value that cannot be is answered by Reject or by one that can be, or the negotiation ends
/// (RFC 7143 6.2.2, 7.10).
fn refuses(subject: &Subject, key: &str, offer: &str, rule: Rule) -> Outcome {
    let answer = match answer(subject, key, offer)? {
        Ok(answer) => answer,
        Err(status) => return check(status >> 8 == 2, format!("the login ends with {status:04x}")),
    };
    let text = answer.as_deref().unwrap_or("nothing");
    let possible = match rule {
        Rule::Least(low, high) | Rule::Most(low, high) => {
            number(text).is_some_and(|n| (low..=high).contains(&n))
        }
        Rule::And | Rule::Or => matches!(text, "Yes" | "No"),
        Rule::List(_) => false,
        // The target's own length may stand there.
        Rule::Declared => {
            number(text).is_some_and(|n| (512..=0xff_ffff).contains(&n)) && text != offer
        }
    };
    check(text == "Reject" || possible, format!("{text} is answered"))
}

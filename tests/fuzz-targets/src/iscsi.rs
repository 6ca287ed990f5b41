//! iSCSI: PDUs, the login phase, the full feature phase; answers of its name service.

use std::{
    collections::VecDeque,
    sync::{Arc, LazyLock},
};

use bytes::BytesMut;
use iscsi::{
    budget::Budget,
    chap::{Account, Algorithm, ChapSettings},
    config::{Discovery, Limits, TargetConfig},
    isns::message::{self, Attribute, function, tag},
    login::{Directory, Login, Step},
    negotiate::{ConnectionParameters, SessionParameters, Wishes},
    pdu::{
        DataOut, Digests, Framer, LoginRequest, LogoutRequest, NO_TAG, NopOut, Pdu, RequestNumbers,
        ScsiCommand, Snack, TaskRequest, TextRequest, ahs::Additional, frame,
    },
    session::{Announce, Output, Run, SendTargets, Session, Setup},
    text::{self, Pair},
};
use scsi::{Completion, Sense, SenseKey, Status};

const TARGET: &str = "iqn.2024-01.example:disk";

/// A stream of PDUs, with digests by the first byte. A header that is read is written and read as the
/// same, and so are segments behind it.
pub fn pdus(bytes: &[u8]) {
    let Some((first, bytes)) = bytes.split_first() else { return };
    let digests = Digests { header: first & 1 != 0, data: first & 2 != 0 };
    let framer = Framer { digests, max_data: 65536, max_ahs_words: 67 };
    let mut input = BytesMut::from(bytes);
    while let Ok(Some(it)) = framer.next(&mut input) {
        assert!(it.data.len() <= 65536 && it.ahs.len() <= 67 * 4);
        if let Ok(pdu) = Pdu::read(&it.basic) {
            assert_eq!(Pdu::read(&pdu.write()).as_ref(), Ok(&pdu));
        }
        if let Ok(additional) = Additional::read(&it.ahs) {
            assert_eq!(Additional::read(&additional.write()).as_ref(), Ok(&additional));
        }
        if let Ok(pairs) = text::read(&it.data) {
            let again = text::write(pairs.iter().map(|(key, value)| (&**key, &**value)));
            assert_eq!(text::read(&again).as_ref(), Ok(&pairs));
        }
    }
}

/// A stream of PDUs of an iSNS server. Attributes that are read are written and read as the same.
pub fn isns(mut bytes: &[u8]) {
    while let Ok((rest, pdu)) = message::read_pdu(bytes) {
        assert_eq!(message::payload_length(bytes), Ok(pdu.payload.len()));
        if let Ok((status, attributes)) = message::read_response(pdu.payload) {
            let again =
                [&status.to_be_bytes()[..], &message::write_attributes(&attributes)].concat();
            assert_eq!(again, pdu.payload);
            let targets = iscsi::isns::read_targets(&attributes).unwrap_or_default();
            assert!(targets.len() <= attributes.len());
        }
        bytes = rest;
    }
}

/// Answers to a query and a registration.
pub fn seeds_isns() -> Vec<(String, Vec<u8>)> {
    let group = [
        Attribute::text(tag::NAME, TARGET),
        Attribute::text(tag::GROUP_NAME, TARGET),
        Attribute {
            tag: tag::GROUP_ADDRESS,
            value: [&[0; 10][..], &[255, 255, 192, 0, 2, 1]].concat(),
        },
        Attribute::number(tag::GROUP_PORT, 3260),
        Attribute::number(tag::GROUP_TAG, 1),
    ];
    let period = [Attribute::text(tag::ENTITY, "files"), Attribute::number(tag::PERIOD, 600)];
    let answer = |function: u16, attributes: &[Attribute]| {
        let request = message::write(function | function::RESPONSE, 0, 7, attributes);
        let length = u16::from_be_bytes([request[4], request[5]]) + 4;
        let (head, body) = request.split_at(12);
        let mut head = head.to_vec();
        head[4..6].copy_from_slice(&length.to_be_bytes());
        [&head[..], &[0; 4], body].concat()
    };
    vec![
        ("query".to_owned(), answer(function::QUERY, &group)),
        ("registration".to_owned(), answer(function::REGISTER, &period)),
    ]
}

/// A target that wants CHAP; discovery does not.
struct Guarded(Arc<TargetConfig>);

impl Directory for Guarded {
    fn target(&self, name: &str) -> Option<Arc<TargetConfig>> {
        (name == TARGET).then(|| self.0.clone())
    }

    fn discovery(&self) -> Arc<Discovery> {
        Arc::default()
    }
}

static GUARDED: LazyLock<Guarded> = LazyLock::new(|| {
    let account = Account::new("alice", b"secret-of-alice").expect("it is long enough");
    let settings = ChapSettings::new(vec![account], None, Algorithm::ALL.to_vec());
    let chap = Some(settings.expect("somebody may log in"));
    Guarded(Arc::new(TargetConfig { chap, ..TargetConfig::open(TARGET) }))
});

/// The login phase: a stream of PDUs of a stranger, who never gets to a target without its secret.
pub fn login(bytes: &[u8]) {
    let framer = Framer { digests: Digests::default(), max_data: 8192, max_ahs_words: 0 };
    let mut login = Login::new(([192, 0, 2, 1], 3260).into(), 1);
    let mut input = BytesMut::from(bytes);
    while let Ok(Some(it)) = framer.next(&mut input) {
        match login.receive(&it, &*GUARDED) {
            Step::Respond(bytes) => readable(&bytes, Digests::default()),
            Step::Refuse(bytes, ..) => return readable(&bytes, Digests::default()),
            Step::Close => return,
            Step::Finish(it) => {
                assert!(it.target.is_none(), "a stranger has logged in");
                return readable(&it.accept(1, iscsi::pdu::Numbers::default()), Digests::default());
            }
        }
    }
}

/// What a target sends is PDUs, whole ones.
fn readable(bytes: &[u8], digests: Digests) {
    let framer = Framer { digests, max_data: 0xff_ffff, max_ahs_words: 0 };
    let mut input = BytesMut::from(bytes);
    while !input.is_empty() {
        let it = framer.next(&mut input).expect("a target sends PDUs").expect("whole ones");
        assert!(it.intact);
        Pdu::read(&it.basic).expect("a PDU");
    }
}

struct Nobody;

impl Announce for Nobody {
    fn targets(&self, _: &str, _: Option<&str>, _: SendTargets<'_>) -> Vec<Pair> {
        vec![("TargetName".to_owned(), TARGET.to_owned())]
    }
}

fn setup(first: u8) -> Setup {
    let limits = Limits {
        window: 16,
        immediate: 4,
        command_data: 1 << 20,
        session_data: 1 << 20,
        kept_answers: 1 << 16,
        ..Limits::default()
    };
    Setup {
        initiator: "iqn.me".to_owned(),
        target: (first & 0x80 == 0).then(|| TARGET.to_owned()),
        parameters: SessionParameters {
            max_connections: 2,
            error_recovery_level: first & 3,
            initial_r2t: first & 4 != 0,
            immediate_data: first & 8 == 0,
            fast_abort: first & 16 != 0,
            response_fence: first & 16 != 0,
            protocol_level: 2,
            ..SessionParameters::default()
        },
        wishes: Wishes::default(),
        limits,
        resets: true,
        budget: Arc::new(Budget::new(1 << 20)),
        sets: Arc::default(),
        announce: Arc::new(Nobody),
    }
}

/// The full feature phase over two connections: the first byte says what was agreed upon. Then pairs
/// of a byte (which connection, whether commands end now) and PDUs. What a session holds has its
/// bounds, and what it took of the process is given back.
pub fn session(bytes: &[u8]) {
    let Some((first, mut rest)) = bytes.split_first() else { return };
    let first = if first & 3 == 3 { first & !3 } else { *first };
    let setup = setup(first);
    let budget = setup.budget.clone();
    let mut session = Session::new(setup, 1);
    let digests = Digests { header: false, data: first & 32 != 0 };
    let parameters = ConnectionParameters { digests, ..ConnectionParameters::default() };
    let links = [session.join(1, parameters, 1, 0), session.join(2, parameters, 1, 0)];
    let framer = Framer { digests, max_data: 65536, max_ahs_words: 67 };
    let mut running: VecDeque<Run> = VecDeque::new();
    let mut now = 0;
    while let Some((which, more)) = rest.split_first() {
        let link = links[usize::from(which & 1)];
        let mut input = BytesMut::from(more);
        let before = input.len();
        match framer.next(&mut input) {
            Ok(Some(it)) => session.receive(link, &it, now),
            Ok(None) => break,
            Err(_) => session.offend(link),
        }
        let used = (before - input.len()).max(1);
        rest = more.get(used..).unwrap_or_default();
        now += u64::from(which >> 4) * 1000;
        session.tick(now);
        let ends = which & 2 != 0;
        turn(&mut session, &links, &mut running, ends, digests);
        if which & 4 != 0 {
            session.lose(link, now);
        }
        assert!(session.commands() <= 16 + 4, "{} commands", session.commands());
    }
    session.end("the end");
    turn(&mut session, &links, &mut running, true, digests);
    assert!(session.commands() == 0 || session.running() > 0);
    for run in running {
        session.ended(run.key);
    }
    drop(session);
    assert_eq!(budget.left(), 1 << 20, "a budget is given back");
}

fn turn(
    session: &mut Session,
    links: &[u32],
    running: &mut VecDeque<Run>,
    ends: bool,
    digests: Digests,
) {
    // What was aborted ends by itself, and may let others run.
    for _ in 0..4 {
        session.take_enabled();
        for link in links {
            let mut output = Output::default();
            session.take(*link, &mut output, running);
            readable(&output.to_vec(), digests);
        }
        running.extend(session.take_stray());
        for outside in session.take_outside() {
            session.function_done(outside.token, None);
        }
        let (aborted, alive): (VecDeque<Run>, _) =
            running.drain(..).partition(|run| run.abort.handle().is_aborted());
        *running = alive;
        for run in aborted {
            session.ended(run.key);
        }
        while let Some(run) = ends.then(|| running.pop_front()).flatten() {
            complete(session, &run);
        }
    }
}

fn complete(session: &mut Session, run: &Run) {
    let first = run.cdb.bytes().first().copied().unwrap_or_default();
    let sense = (first & 1 != 0).then(|| Sense::new(SenseKey::IllegalRequest, 0x2000));
    let completion = Completion {
        status: if sense.is_some() { Status::CheckCondition } else { Status::Good },
        sense,
        data_out_wanted: run.data_out.len() as u64,
    };
    let fixed = sense.map(|sense| sense.fixed().to_vec()).unwrap_or_default();
    session.complete(run.key, &completion, &fixed, vec![first; usize::from(first) * 16]);
}

const fn numbers(immediate: bool, cmd_sn: u32) -> RequestNumbers {
    RequestNumbers { immediate, cmd_sn, exp_stat_sn: 1 }
}

fn request(pdu: Pdu, data: &[u8]) -> Vec<u8> {
    frame::write(pdu.write(), &[], data, Digests::default())
}

fn command(cmd_sn: u32, write: bool, last: bool, expected: u32) -> Pdu {
    let mut cdb = [0; 16];
    cdb[0] = if write { 0x2a } else { 0x28 };
    Pdu::ScsiCommand(ScsiCommand {
        sn: numbers(false, cmd_sn),
        last,
        read: !write,
        write,
        attribute: (cmd_sn % 4) as u8,
        priority: 0,
        lun: [0; 8],
        itt: cmd_sn + 0x10,
        expected,
        cdb,
    })
}

fn all() -> Vec<(&'static str, Vec<u8>)> {
    let sn = numbers(true, 1);
    let (lun, itt, ttt) = ([0; 8], 7, NO_TAG);
    let task =
        TaskRequest { sn, function: 2, lun, itt, referenced: 0x11, ref_cmd_sn: 1, exp_data_sn: 0 };
    let text = TextRequest { sn, last: true, more: false, lun, itt, ttt };
    let data = DataOut { last: true, lun, itt: 0x11, ttt, exp_stat_sn: 1, data_sn: 0, offset: 0 };
    let snack = Snack { kind: 1, lun, itt: NO_TAG, ttt, exp_stat_sn: 1, begin: 1, run: 0 };
    vec![
        ("ping", request(Pdu::NopOut(NopOut { sn, lun, itt, ttt }), b"ping")),
        ("read", request(command(1, false, true, 512), &[])),
        ("write", request(command(1, true, false, 1024), &[1; 512])),
        ("data-out", request(Pdu::DataOut(data), &[2; 512])),
        ("function", request(Pdu::TaskRequest(task), &[])),
        ("text", request(Pdu::TextRequest(text), b"SendTargets=All\0X-a.b=1\0")),
        ("snack", request(Pdu::Snack(snack), &[])),
        ("logout", request(Pdu::LogoutRequest(LogoutRequest { sn, reason: 0, itt, cid: 1 }), &[])),
    ]
}

/// Each PDU of an initiator, and all in one stream.
pub fn seeds_pdus() -> Vec<(String, Vec<u8>)> {
    let one = |(name, bytes): (&str, Vec<u8>)| (name.to_owned(), [&[0], &*bytes].concat());
    let whole = all().into_iter().flat_map(|(_, bytes)| bytes);
    let mut seeds: Vec<_> = all().into_iter().map(one).collect();
    seeds.push(("stream".to_owned(), [0].into_iter().chain(whole).collect()));
    seeds
}

fn entry(current: u8, next: u8, pairs: &[(&str, &str)]) -> Vec<u8> {
    let it = LoginRequest {
        sn: numbers(true, 1),
        transit: next > current,
        more: false,
        current,
        next,
        version_max: 0,
        version_min: 0,
        isid: [0x80, 0, 0, 0, 0, 1],
        tsih: 0,
        itt: 1,
        cid: 1,
    };
    request(Pdu::LoginRequest(it), &text::write(pairs.iter().copied()))
}

/// Logins to a target by CHAP, without, and for discovery.
pub fn seeds_login() -> Vec<(String, Vec<u8>)> {
    let who = [("InitiatorName", "iqn.me"), ("TargetName", TARGET)];
    let finder = [("InitiatorName", "iqn.me"), ("SessionType", "Discovery")];
    let chap = [
        entry(0, 0, &[who[0], who[1], ("AuthMethod", "CHAP,None")]),
        entry(0, 0, &[("CHAP_A", "7,5")]),
        entry(
            0,
            1,
            &[("CHAP_N", "alice"), ("CHAP_R", "0x00"), ("CHAP_I", "1"), ("CHAP_C", "0bAAAA")],
        ),
    ];
    let keys = [
        ("HeaderDigest", "CRC32C,None"),
        ("MaxBurstLength", "0x1000"),
        ("FirstBurstLength", "4096"),
        ("InitialR2T", "No"),
        ("TaskReporting", "FastAbort,RFC3720"),
    ];
    let discovery = [entry(1, 1, &finder), entry(1, 3, &keys)];
    vec![
        ("chap".to_owned(), chap.concat()),
        ("none".to_owned(), entry(1, 3, &who)),
        ("discovery".to_owned(), discovery.concat()),
    ]
}

/// Commands with their data, functions and losses, at each level of recovery.
pub fn seeds_session() -> Vec<(String, Vec<u8>)> {
    let seed = |level: u8| {
        let mut bytes = vec![level];
        for (at, (_, pdu)) in all().into_iter().enumerate() {
            bytes.push(if at % 3 == 0 { 2 } else { 0 });
            bytes.extend(pdu);
        }
        bytes.extend([5].into_iter().chain(request(command(2, false, true, 64), &[])));
        (format!("level-{level}"), bytes)
    };
    let mut seeds: Vec<_> = (0..3).map(seed).collect();
    let discovery = all().into_iter().flat_map(|(_, pdu)| [vec![0], pdu].concat());
    seeds.push(("discovery".to_owned(), [0x80].into_iter().chain(discovery).collect()));
    seeds
}

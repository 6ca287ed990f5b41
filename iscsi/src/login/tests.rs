use bytes::BytesMut;
use proptest::prelude::*;

use super::*;
use crate::{
    chap::{Account, Algorithm, binary, hexadecimal},
    config::{Admission, Redirection},
    negotiate::DigestWish,
    pdu::{Basic, RequestNumbers},
};

const TARGET: &str = "iqn.2024-01.example:disk";

struct Targets(Arc<TargetConfig>);

impl Directory for Targets {
    fn target(&self, name: &str) -> Option<Arc<TargetConfig>> {
        (name == self.0.name).then(|| self.0.clone())
    }

    fn discovery(&self) -> Arc<Discovery> {
        Arc::default()
    }
}

fn open() -> TargetConfig {
    TargetConfig::open(TARGET)
}

fn guarded() -> TargetConfig {
    let alice = Account::new("alice", b"a secret of alice").unwrap();
    let target = Account::new("target", b"another secret!").unwrap();
    let chap = ChapSettings::new(vec![alice], Some(target), Algorithm::ALL.to_vec()).unwrap();
    TargetConfig { chap: Some(chap), ..open() }
}

struct Rig {
    login: Login,
    targets: Targets,
}

enum Heard {
    Response(LoginResponse, Vec<Pair>),
    Refused(LoginStatus, Vec<Pair>),
    Finished(Box<Established>, LoginResponse, Vec<Pair>),
    Closed,
}

fn request(current: u8, next: Option<u8>) -> LoginRequest {
    LoginRequest {
        sn: RequestNumbers { immediate: true, cmd_sn: 7, exp_stat_sn: 40 },
        transit: next.is_some(),
        more: false,
        current,
        next: next.unwrap_or_default(),
        version_max: 0,
        version_min: 0,
        isid: [0x80, 0, 0, 0, 0, 1],
        tsih: 0,
        itt: 5,
        cid: 1,
    }
}

fn parse(bytes: &[u8]) -> (LoginResponse, Vec<Pair>) {
    let framer = Framer { digests: Digests::default(), max_data: 8192, max_ahs_words: 0 };
    let frame = framer.next(&mut BytesMut::from(bytes)).unwrap().unwrap();
    let Ok(Pdu::LoginResponse(response)) = Pdu::read(&frame.basic) else { panic!("no response") };
    (response, text::read(&frame.data).unwrap())
}

use crate::pdu::Framer;

impl Rig {
    fn new(config: TargetConfig) -> Self {
        let peer = "10.0.0.7:1000".parse().unwrap();
        Self { login: Login::new(peer, 3), targets: Targets(Arc::new(config)) }
    }

    fn raw(&mut self, basic: Basic, text: &[u8]) -> Heard {
        let bytes = frame::write(basic, &[], text, Digests::default());
        let framer = Framer { digests: Digests::default(), max_data: 8192, max_ahs_words: 0 };
        let frame = framer.next(&mut BytesMut::from(&bytes[..])).unwrap().unwrap();
        match self.login.receive(&frame, &self.targets) {
            Step::Respond(bytes) => {
                let (response, pairs) = parse(&bytes);
                Heard::Response(response, pairs)
            }
            Step::Refuse(bytes, status, _) => {
                let (response, pairs) = parse(&bytes);
                assert_eq!(response.status, status as u16);
                Heard::Refused(status, pairs)
            }
            Step::Close => Heard::Closed,
            Step::Finish(established) => {
                let numbers = Numbers { stat_sn: 0, exp_cmd_sn: 7, max_cmd_sn: 70 };
                let (response, pairs) = parse(&established.accept(9, numbers));
                Heard::Finished(established, response, pairs)
            }
        }
    }

    fn say(&mut self, request: LoginRequest, pairs: &[(&str, &str)]) -> Heard {
        self.raw(Pdu::LoginRequest(request).write(), &text::write(pairs.iter().copied()))
    }

    fn refused(&mut self, request: LoginRequest, pairs: &[(&str, &str)]) -> LoginStatus {
        match self.say(request, pairs) {
            Heard::Refused(status, _) => status,
            _ => panic!("it was not refused"),
        }
    }

    fn answered(
        &mut self,
        request: LoginRequest,
        pairs: &[(&str, &str)],
    ) -> (LoginResponse, Vec<Pair>) {
        match self.say(request, pairs) {
            Heard::Response(response, pairs) => (response, pairs),
            Heard::Refused(status, _) => panic!("{status:?}"),
            Heard::Finished(..) => panic!("it is finished"),
            Heard::Closed => panic!("it is closed"),
        }
    }
}

const WHO: [(&str, &str); 2] = [("InitiatorName", "iqn.me"), ("TargetName", TARGET)];

fn with_who<'a>(more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    [&WHO[..], more].concat()
}

fn find<'a>(pairs: &'a [Pair], key: &str) -> Option<&'a str> {
    pairs.iter().find_map(|(name, value)| (name == key).then_some(value.as_str()))
}

#[test]
fn a_login_in_one_request_is_possible() {
    let mut rig = Rig::new(open());
    let pairs = with_who(&[("HeaderDigest", "CRC32C,None"), ("ErrorRecoveryLevel", "2")]);
    let Heard::Finished(it, response, pairs) = rig.say(request(1, Some(3)), &pairs) else {
        panic!("not finished")
    };
    assert_eq!((it.initiator.as_str(), it.session.error_recovery_level), ("iqn.me", 2));
    assert!(it.connection.digests.header && it.target.is_some());
    assert!(response.transit && response.next == 3 && response.tsih == 9);
    assert_eq!((response.sn.stat_sn, response.sn.max_cmd_sn), (40, 70));
    assert_eq!(find(&pairs, "TargetPortalGroupTag"), Some("3"));
    assert_eq!(find(&pairs, "HeaderDigest"), Some("CRC32C"));
    assert_eq!(find(&pairs, "MaxRecvDataSegmentLength"), Some("262144"));
}

#[test]
fn stages_follow_one_another() {
    let mut rig = Rig::new(open());
    let pairs = with_who(&[("AuthMethod", "CHAP,None")]);
    let (response, pairs) = rig.answered(request(0, Some(1)), &pairs);
    assert!(response.transit && response.next == 1);
    assert_eq!(find(&pairs, "AuthMethod"), Some("None"));
    let (response, pairs) = rig.answered(request(1, None), &[("InitialR2T", "No")]);
    assert!(!response.transit && response.sn.stat_sn == 41);
    assert_eq!(find(&pairs, "InitialR2T"), Some("No"));
    assert!(matches!(rig.say(request(1, Some(3)), &[]), Heard::Finished(..)));
}

#[test]
fn stages_that_do_not_follow_are_refused() {
    let invalid = LoginStatus::InvalidDuringLogin;
    for wrong in [
        request(2, None),
        request(3, None),
        request(1, Some(1)),
        request(1, Some(0)),
        request(0, Some(2)),
    ] {
        assert_eq!(Rig::new(open()).refused(wrong, &WHO), invalid);
    }
    let mut rig = Rig::new(open());
    rig.answered(request(0, None), &WHO);
    assert_eq!(rig.refused(request(1, None), &[]), invalid, "nobody changed the stage");
    let more_and_transit = LoginRequest { more: true, ..request(0, Some(1)) };
    assert_eq!(Rig::new(open()).refused(more_and_transit, &WHO), invalid);
    // Anything but a login request.
    let mut rig = Rig::new(open());
    let nop = Basic { opcode: 0, ..Basic::default() };
    assert!(matches!(rig.raw(nop, &[]), Heard::Closed), "no login began");
    rig.answered(request(0, None), &WHO);
    assert!(matches!(rig.raw(nop, &[]), Heard::Refused(LoginStatus::InvalidDuringLogin, _)));
}

#[test]
fn no_answer_has_a_key_twice() {
    let mut rig = Rig::new(open());
    let own = [WHO[0], WHO[1], ("TargetPortalGroupTag", "7"), ("MaxRecvDataSegmentLength", "1")];
    let Heard::Response(_, pairs) = rig.say(request(1, None), &own) else { panic!("refused") };
    let of = |key: &str| pairs.iter().filter(|(name, _)| name == key).collect::<Vec<_>>();
    assert_eq!(of("TargetPortalGroupTag").len(), 1);
    assert_eq!(of("MaxRecvDataSegmentLength")[0].1, "Reject");
    assert_eq!(of("MaxRecvDataSegmentLength").len(), 1);
    let Heard::Response(_, pairs) = rig.say(request(1, None), &[]) else { panic!("refused") };
    assert!(
        pairs.iter().any(|(key, value)| key == "MaxRecvDataSegmentLength" && value != "Reject")
    );
}

#[test]
fn every_refusal_says_why() {
    let status = |config: TargetConfig, pairs: &[(&str, &str)]| {
        Rig::new(config).refused(request(1, Some(3)), pairs)
    };
    assert_eq!(status(open(), &[("TargetName", TARGET)]), LoginStatus::MissingParameter);
    assert_eq!(status(open(), &[("InitiatorName", "iqn.me")]), LoginStatus::MissingParameter);
    assert_eq!(status(open(), &[("InitiatorName", "me")]), LoginStatus::InitiatorError);
    let other = [("InitiatorName", "iqn.me"), ("TargetName", "iqn.other")];
    assert_eq!(status(open(), &other), LoginStatus::NotFound);
    let odd = with_who(&[("SessionType", "Odd")]);
    assert_eq!(status(open(), &odd), LoginStatus::SessionTypeNotSupported);
    let admitted = vec![Admission {
        name: Some("iqn.me".to_owned()),
        networks: vec![("192.168.0.0".parse().unwrap(), 16)],
    }];
    let closed = TargetConfig { admitted, ..open() };
    assert_eq!(status(closed, &WHO), LoginStatus::AuthorizationFailure);
    let mut strict = open();
    strict.wishes.data_digest = DigestWish::Required;
    assert_eq!(status(strict, &WHO), LoginStatus::MissingParameter);
    assert_eq!(status(guarded(), &WHO), LoginStatus::AuthenticationFailure);
    let newer = LoginRequest { version_min: 1, ..request(1, Some(3)) };
    assert_eq!(Rig::new(open()).refused(newer, &WHO), LoginStatus::UnsupportedVersion);
    let twice = with_who(&[("InitialR2T", "No")]);
    let mut rig = Rig::new(open());
    rig.answered(request(1, None), &twice);
    assert_eq!(rig.refused(request(1, None), &[("InitialR2T", "No")]), LoginStatus::InitiatorError);
}

#[test]
fn a_target_that_moved_says_where() {
    for (permanent, status) in
        [(false, LoginStatus::MovedTemporarily), (true, LoginStatus::MovedPermanently)]
    {
        let there = Redirection { permanent, address: "10.0.0.9:3260,1".to_owned() };
        let mut rig = Rig::new(TargetConfig { redirection: Some(there), ..open() });
        let Heard::Refused(found, pairs) = rig.say(request(1, Some(3)), &WHO) else {
            panic!("not refused")
        };
        assert_eq!(found, status);
        assert_eq!(find(&pairs, "TargetAddress"), Some("10.0.0.9:3260,1"));
    }
}

#[test]
fn whoever_changes_its_identity_in_between_is_refused() {
    for change in [
        LoginRequest { isid: [1; 6], ..request(0, None) },
        LoginRequest { tsih: 4, ..request(0, None) },
        LoginRequest { cid: 4, ..request(0, None) },
        LoginRequest { itt: 4, ..request(0, None) },
    ] {
        let mut rig = Rig::new(open());
        rig.answered(request(0, None), &WHO);
        assert_eq!(rig.refused(change, &[]), LoginStatus::InitiatorError);
    }
}

#[test]
fn chap_opens_a_guarded_target_and_nothing_else_does() {
    let mut rig = Rig::new(guarded());
    let pairs = with_who(&[("AuthMethod", "None")]);
    assert_eq!(rig.refused(request(0, Some(1)), &pairs), LoginStatus::AuthenticationFailure);
    let prove = |secret: &str| {
        let mut rig = Rig::new(guarded());
        let (response, pairs) =
            rig.answered(request(0, Some(1)), &with_who(&[("AuthMethod", "CHAP,None")]));
        assert!(!response.transit);
        assert_eq!(find(&pairs, "AuthMethod"), Some("CHAP"));
        let (_, pairs) = rig.answered(request(0, None), &[("CHAP_A", "7,5")]);
        assert_eq!(find(&pairs, "CHAP_A"), Some("7"));
        let id: u8 = find(&pairs, "CHAP_I").unwrap().parse().unwrap();
        let challenge = binary(find(&pairs, "CHAP_C").unwrap(), 1024).unwrap();
        let mut bytes = vec![id];
        bytes.extend_from_slice(secret.as_bytes());
        bytes.extend_from_slice(&challenge);
        let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &bytes);
        let proof = hexadecimal(hash.as_ref());
        let keys =
            [("CHAP_N", "alice"), ("CHAP_R", &*proof), ("CHAP_I", "1"), ("CHAP_C", "0x0102")];
        (rig.say(request(0, Some(1)), &keys), rig)
    };
    let (Heard::Response(response, pairs), mut rig) = prove("a secret of alice") else {
        panic!("not let in")
    };
    assert!(response.transit && find(&pairs, "CHAP_R").is_some());
    assert!(matches!(rig.say(request(1, Some(3)), &[]), Heard::Finished(..)));
    let wrong = prove("a secret of carol").0;
    assert!(matches!(wrong, Heard::Refused(LoginStatus::AuthenticationFailure, _)));
    // The target proves nothing to whoever has not proven itself.
    let Heard::Refused(_, pairs) = wrong else { unreachable!() };
    assert!(pairs.is_empty());
}

#[test]
fn discovery_needs_no_target() {
    let mut rig = Rig::new(guarded());
    let pairs =
        [("InitiatorName", "iqn.me"), ("SessionType", "Discovery"), ("MaxConnections", "4")];
    let Heard::Finished(it, _, pairs) = rig.say(request(1, Some(3)), &pairs) else {
        panic!("not finished")
    };
    assert!(it.target.is_none());
    assert_eq!(find(&pairs, "MaxConnections"), Some("Irrelevant"));
    assert_eq!(find(&pairs, "TargetPortalGroupTag"), None);
}

#[test]
fn a_text_in_several_requests_is_one_and_an_endless_login_is_refused() {
    let mut rig = Rig::new(open());
    let more = LoginRequest { more: true, ..request(1, None) };
    let Heard::Response(response, pairs) =
        rig.raw(Pdu::LoginRequest(more).write(), b"InitiatorName=iqn.me\0TargetNa")
    else {
        panic!("no response")
    };
    assert!(!response.transit && pairs.is_empty());
    let rest = format!("me={TARGET}\0");
    let last = Pdu::LoginRequest(request(1, Some(3))).write();
    assert!(matches!(rig.raw(last, rest.as_bytes()), Heard::Finished(..)));
    let mut rig = Rig::new(open());
    let refused = (0..100).find_map(|_| match rig.raw(Pdu::LoginRequest(more).write(), b"a") {
        Heard::Refused(status, _) => Some(status),
        _ => None,
    });
    assert_eq!(refused, Some(LoginStatus::InitiatorError));
    let mut rig = Rig::new(open());
    let long = vec![b'a'; 8000];
    rig.raw(Pdu::LoginRequest(more).write(), &long);
    let refused = rig.raw(Pdu::LoginRequest(more).write(), &long);
    assert!(matches!(refused, Heard::Refused(LoginStatus::InitiatorError, _)));
}

proptest! {
    #[test]
    fn no_sequence_of_requests_opens_a_guarded_target(
        requests in prop::collection::vec(
            (any::<u8>(), prop::collection::vec(
                ("AuthMethod|CHAP_[AINRC]|InitialR2T|X-y|[A-Z]{1,3}", "CHAP|None|5|0x[0-9a-f]{0,40}|[ -~]{0,20}"),
                0..6)), 1..8),
    ) {
        let mut rig = Rig::new(guarded());
        for (at, (flags, pairs)) in requests.into_iter().enumerate() {
            let mut basic = Pdu::LoginRequest(request(0, None)).write();
            basic.flags = flags;
            let mut pairs = pairs;
            if at == 0 {
                pairs.extend(WHO.map(|(key, value)| (key.to_owned(), value.to_owned())));
            }
            let text = text::write(pairs.iter().map(|(key, value)| (key.as_str(), value.as_str())));
            match rig.raw(basic, &text) {
                Heard::Finished(..) => prop_assert!(false, "a stranger came in"),
                Heard::Refused(..) => break,
                Heard::Response(..) => {}
                Heard::Closed => break,
            }
        }
    }
}

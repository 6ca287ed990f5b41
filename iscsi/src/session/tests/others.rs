use super::*;
use crate::pdu::{TextRequest, TextResponse};

fn text(rig: &mut Rig, itt: u32, ttt: u32, more: bool, data: &[u8]) -> Vec<(Pdu, Bytes)> {
    let sn = rig.next();
    let request = TextRequest { sn, last: !more, more, lun: [0; 8], itt, ttt };
    rig.send(0, Pdu::TextRequest(request), data);
    rig.answers(0)
}

fn response(answers: &[(Pdu, Bytes)]) -> (TextResponse, Bytes) {
    match &answers[0] {
        (Pdu::TextResponse(it), data) => (*it, data.clone()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_long_list_of_targets_comes_in_pieces() {
    let mut rig = Rig::new(0);
    rig.session.setup.target = None;
    rig.session.setup.announce = Arc::new(Many(2000));
    let (mut it, mut data) = response(&text(&mut rig, 1, NO_TAG, false, b"SendTargets=All\0"));
    let mut whole = data.to_vec();
    while !it.last {
        assert!(it.more && data.len() <= 8192 && it.ttt != NO_TAG);
        (it, data) = response(&text(&mut rig, 1, it.ttt, false, b""));
        whole.extend_from_slice(&data);
    }
    assert_eq!(whole.iter().filter(|byte| **byte == 0).count(), 2000);
    assert!(whole.ends_with(b"TargetName=iqn.t1999\0"));
    assert!(rig.session.links[&0].text.is_none());
}

#[test]
fn a_text_in_several_requests_is_one_and_is_bounded() {
    let mut rig = Rig::new(0);
    let (it, data) = response(&text(&mut rig, 1, NO_TAG, true, b"X-some"));
    assert!(!it.last && data.is_empty());
    let (it, data) = response(&text(&mut rig, 1, it.ttt, false, b"thing=1\0"));
    assert!(it.last);
    assert_eq!(data, &b"X-something=NotUnderstood\0"[..]);
    let (mut it, _) = response(&text(&mut rig, 2, NO_TAG, true, b"X-endless="));
    let mut count = 0;
    loop {
        let answers = text(&mut rig, 2, it.ttt, true, &[b'a'; 4000]);
        if rejected(&answers) == [reason::PROTOCOL] {
            break;
        }
        it = response(&answers).0;
        count += 1;
    }
    assert_eq!(count, 4);
    // The exchange is over; nobody goes on with it.
    assert_eq!(rejected(&text(&mut rig, 2, it.ttt, true, b"a")), [reason::LONG_OPERATION]);
}

#[test]
fn a_session_with_a_target_learns_of_no_other_and_may_change_its_segments() {
    let mut rig = Rig::new(0);
    let (_, data) = response(&text(&mut rig, 1, NO_TAG, false, b"SendTargets=All\0"));
    assert_eq!(data, &b"SendTargets=Reject\0"[..]);
    let (_, data) = response(&text(&mut rig, 1, NO_TAG, false, b"SendTargets=\0"));
    assert_eq!(data, &b"TargetName=iqn.target\0"[..]);
    let keys = b"MaxRecvDataSegmentLength=512\0InitialR2T=No\0";
    let (_, data) = response(&text(&mut rig, 1, NO_TAG, false, keys));
    assert_eq!(data, &b"InitialR2T=Reject\0"[..]);
    let read = rig.read(5, 1024);
    rig.command(0, read, &[]);
    rig.finish(5, vec![0; 1024]);
    assert_eq!(rig.answers(0).len(), 2);
}

#[test]
fn a_discovery_session_takes_no_commands() {
    let mut rig = Rig::new(0);
    rig.session.setup.target = None;
    let read = rig.read(1, 512);
    rig.command(0, read, &[]);
    rig.function(0, 2, crate::pdu::function::LUN_RESET, NO_TAG);
    assert_eq!(rejected(&rig.answers(0)), [reason::PROTOCOL; 2]);
}

#[test]
fn pings_are_answered_with_their_data() {
    let mut rig = Rig::new(0);
    let sn = rig.at_once();
    let ping = NopOut { sn, lun: [0; 8], itt: 5, ttt: NO_TAG };
    rig.send(0, Pdu::NopOut(ping), b"are you there");
    let answers = rig.answers(0);
    assert!(matches!(answers[0].0, Pdu::NopIn(it) if it.itt == 5 && it.ttt == NO_TAG));
    assert_eq!(answers[0].1, &b"are you there"[..]);
}

#[test]
fn a_mute_initiator_is_asked_and_then_dropped() {
    let mut rig = Rig::new(0);
    rig.session.tick(59_999);
    assert!(rig.answers(0).is_empty());
    rig.session.tick(60_000);
    let answers = rig.answers(0);
    let Pdu::NopIn(ping) = answers[0].0 else { panic!("no ping") };
    assert_eq!((answers.len(), ping.itt), (1, NO_TAG));
    let pong = NopOut { sn: rig.at_once(), lun: [0; 8], itt: NO_TAG, ttt: ping.ttt };
    rig.now = 65_000;
    rig.send(0, Pdu::NopOut(pong), &[]);
    rig.session.tick(124_999);
    assert!(rig.answers(0).is_empty());
    rig.session.tick(125_000);
    rig.session.tick(185_000);
    assert_eq!(rig.drain(0).1, Some(Close::Now));
    rig.session.lose(0, 185_000);
    assert!(rig.session.over().is_some() && rig.session.is_idle());
}

#[test]
fn who_is_asked_to_leave_has_its_time() {
    let mut rig = Rig::new(0);
    rig.session.ask_to_leave(3, 0);
    let answers = rig.answers(0);
    let Pdu::AsyncMessage(it) = answers[0].0 else { panic!("no message") };
    assert_eq!((it.event, it.parameters[2]), (1, 3));
    rig.session.tick(2_999);
    assert_eq!(rig.drain(0).1, None);
    rig.session.tick(3_000);
    assert_eq!(rig.drain(0).1, Some(Close::Now));
}

#[test]
fn whoever_is_dropped_is_told() {
    let mut rig = Rig::new(0);
    rig.session.ask_to_negotiate(5);
    rig.session.drop_all("a test");
    let (answers, close) = rig.drain(0);
    let events: Vec<u8> = answers
        .iter()
        .filter_map(|(pdu, _)| match pdu {
            Pdu::AsyncMessage(it) => Some(it.event),
            _ => None,
        })
        .collect();
    assert_eq!((events, close), (vec![4, 3], Some(Close::AfterOutput)));
}

#[test]
fn numbers_of_responses_follow_one_another() {
    let mut rig = Rig::new(0);
    for itt in 1..=3 {
        let read = rig.read(itt, 0);
        rig.command(0, read, &[]);
        rig.finish(itt, Vec::new());
    }
    let numbers: Vec<u32> = rig
        .answers(0)
        .iter_mut()
        .filter_map(|(pdu, _)| pdu.numbers().map(|sn| sn.stat_sn))
        .collect();
    assert_eq!(numbers, [100, 101, 102]);
}

#[test]
fn the_other_connections_are_told_of_one_that_is_dropped() {
    let mut rig = Rig::new(2);
    let other = rig.join(7);
    rig.session.offend(other);
    assert_eq!(rig.drain(other).1, Some(Close::Now));
    let answers = rig.answers(0);
    let Pdu::AsyncMessage(it) = answers[0].0 else { panic!("no message") };
    assert_eq!((it.event, it.parameters), (2, [7, 2, 20]));
}

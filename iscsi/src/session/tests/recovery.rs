use super::*;
use crate::pdu::{LogoutRequest, Snack, function, outcome};

fn snack(kind: u8, itt: u32, begin: u32, run: u32) -> Pdu {
    Pdu::Snack(Snack { kind, lun: [0; 8], itt, ttt: NO_TAG, exp_stat_sn: 0, begin, run })
}

fn logout(rig: &mut Rig, link: u32, reason: u8, cid: u16) -> (u8, Option<Close>) {
    let sn = rig.at_once();
    rig.send(link, Pdu::LogoutRequest(LogoutRequest { sn, reason, itt: 0x99, cid }), &[]);
    let (answers, close) = rig.drain(link);
    let response = answers.iter().find_map(|(pdu, _)| match pdu {
        Pdu::LogoutResponse(it) => Some(it.response),
        _ => None,
    });
    (response.expect("a response"), close)
}

#[test]
fn harmed_data_end_the_command_at_level_0_and_are_asked_for_again_above() {
    for level in [0, 1] {
        let mut rig = Rig::new(level);
        let write = rig.write(1, 4096, true);
        rig.command(0, write, &[]);
        let ask = asked(&rig.answers(0))[0];
        let pdu = |sn, offset, last| {
            let (itt, ttt) = (1, ask.ttt);
            let exp_stat_sn = 0;
            Pdu::DataOut(DataOut { last, lun: [0; 8], itt, ttt, exp_stat_sn, data_sn: sn, offset })
        };
        rig.send_frame(0, pdu(0, 0, false), &[], &[1; 1024], true);
        rig.send_frame(0, pdu(1, 1024, false), &[], &[2; 1024], false);
        if level == 0 {
            let answers = rig.answers(0);
            assert_eq!(rejected(&answers), [reason::DATA_DIGEST]);
            assert_eq!(status_of(&answers, 1), Some((2, 0x4705)));
            continue;
        }
        rig.send_frame(0, pdu(2, 2048, true), &[], &[2; 2048], true);
        let answers = rig.answers(0);
        assert_eq!(rejected(&answers), [reason::DATA_DIGEST]);
        let again = asked(&answers)[0];
        assert_eq!((again.offset, again.length, again.r2t_sn), (1024, 3072, 1));
        rig.data(0, 1, again.ttt, (0, 1024), true, &[2; 3072]);
        assert_eq!(rig.begun(), [1]);
        assert_eq!(rig.runs[0].data_out, [vec![1; 1024], vec![2; 3072]].concat());
    }
}

#[test]
fn a_harmed_command_is_as_if_it_had_not_come() {
    let mut rig = Rig::new(1);
    let write = rig.write(1, 512, true);
    rig.send_frame(0, Pdu::ScsiCommand(write), &[], &[1; 512], false);
    assert_eq!(rejected(&rig.answers(0)), [reason::DATA_DIGEST]);
    rig.command(0, write, &[1; 512]);
    assert_eq!(rig.begun(), [1]);
}

#[test]
fn data_and_status_are_sent_again_until_they_are_acknowledged() {
    let mut rig = Rig::new(1);
    let read = rig.read(1, 20_000);
    rig.command(0, read, &[]);
    rig.finish(1, (0..20_000u32).map(|n| (n % 256) as u8).collect());
    let first = rig.answers(0);
    // 4096 is the burst here, so every Data-In is one.
    assert_eq!(first.len(), 6);
    let Pdu::ScsiResponse(status) = first[5].0 else { panic!("no response") };
    rig.send(0, snack(0, 1, 2, 2), &[]);
    let again = rig.answers(0);
    let same = |a: &(Pdu, Bytes), b: &(Pdu, Bytes)| match (a.0, b.0) {
        (Pdu::DataIn(x), Pdu::DataIn(y)) => (x.data_sn, x.offset, x.last) == (y.data_sn, y.offset, y.last),
        _ => false,
    } && a.1 == b.1;
    assert_eq!(again.len(), 2);
    assert!(same(&again[0], &first[2]) && same(&again[1], &first[3]));
    rig.send(0, snack(1, NO_TAG, status.sn.stat_sn, 1), &[]);
    let again = rig.answers(0);
    assert!(matches!(again[0].0, Pdu::ScsiResponse(it) if it.sn.stat_sn == status.sn.stat_sn));
    // Its arrival is acknowledged: it is not kept.
    let sn = RequestNumbers { exp_stat_sn: status.sn.stat_sn + 1, ..rig.at_once() };
    rig.send(0, Pdu::NopOut(NopOut { sn, lun: [0; 8], itt: NO_TAG, ttt: 0 }), &[]);
    assert_eq!(rig.session.answered_bytes, 0);
    rig.send(0, snack(0, 1, 2, 2), &[]);
    rig.send(0, snack(1, NO_TAG, status.sn.stat_sn, 1), &[]);
    assert_eq!(rejected(&rig.answers(0)), [reason::SNACK; 2]);
}

#[test]
fn data_that_arrived_are_acknowledged_and_not_sent_again() {
    let mut rig = Rig::new(1);
    let read = rig.read(1, 10_000);
    rig.command(0, read, &[]);
    rig.finish(1, vec![5; 10_000]);
    let sent = rig.answers(0);
    let tags: Vec<(bool, u32)> = sent
        .iter()
        .filter_map(|(pdu, _)| match pdu {
            Pdu::DataIn(it) => Some((it.acknowledge, it.ttt)),
            _ => None,
        })
        .collect();
    assert_eq!(tags.iter().map(|it| it.0).collect::<Vec<_>>(), [true, true, false]);
    let mut acknowledge = |begin, ttt| {
        let it = Snack { kind: 2, lun: [0; 8], itt: NO_TAG, ttt, exp_stat_sn: 0, begin, run: 0 };
        rig.send(0, Pdu::Snack(it), &[]);
        rejected(&rig.answers(0))
    };
    assert!(acknowledge(2, tags[0].1).is_empty());
    assert_eq!(acknowledge(9, tags[0].1), [reason::DATA_ACK], "it was not sent");
    assert_eq!(acknowledge(1, tags[0].1), [reason::DATA_ACK], "more arrived before");
    assert_eq!(acknowledge(1, 4711), [reason::DATA_ACK]);
    rig.send(0, snack(0, 1, 1, 1), &[]);
    assert_eq!(rejected(&rig.answers(0)), [reason::SNACK]);
    rig.send(0, snack(0, 1, 2, 1), &[]);
    assert_eq!(rig.answers(0).len(), 1);
}

#[test]
fn data_come_again_in_shorter_pieces_when_the_initiator_says_so() {
    let mut rig = Rig::new(1);
    let read = rig.read(1, 4096);
    rig.command(0, read, &[]);
    rig.finish(1, vec![5; 4096]);
    rig.answers(0);
    rig.session.links.get_mut(&0).unwrap().parameters.initiator_max_recv = 1024;
    let pdu = Snack { kind: 3, lun: [0; 8], itt: 1, ttt: 7, exp_stat_sn: 0, begin: 0, run: 0 };
    rig.send(0, Pdu::Snack(pdu), &[]);
    let again = rig.answers(0);
    assert_eq!(again.len(), 5);
    assert!(again[..4].iter().all(|(_, data)| data.len() == 1024));
    assert!(
        matches!(again[4].0, Pdu::ScsiResponse(it) if it.snack_tag == 7 && it.exp_data_sn == 4)
    );
}

#[test]
fn at_level_0_there_is_no_snack_and_nothing_is_kept() {
    let mut rig = Rig::new(0);
    let read = rig.read(1, 4096);
    rig.command(0, read, &[]);
    rig.finish(1, vec![5; 4096]);
    rig.answers(0);
    assert!(rig.session.answered.is_empty() && rig.session.links[&0].kept.is_empty());
    rig.send(0, snack(1, NO_TAG, 0, 0), &[]);
    assert_eq!(rejected(&rig.answers(0)), [reason::PROTOCOL]);
}

#[test]
fn kept_answers_are_bounded_where_an_initiator_acknowledges_nothing() {
    let limits = Limits { kept_answers: 50_000, ..Limits::default() };
    let mut rig = Rig::with(parameters(1), limits);
    for itt in 0..3000 {
        let read = rig.read(itt, 4096);
        rig.command(0, read, &[]);
        rig.finish(itt, vec![5; 4096]);
        rig.answers(0);
        assert!(rig.session.answered_bytes <= 50_000);
    }
    assert!(rig.session.links[&0].kept.len() <= KEPT_RESPONSES);
    assert!(rig.session.answered_order.len() <= 2 * KEPT_RESPONSES + 1);
}

#[test]
fn acknowledging_what_was_not_sent_changes_nothing() {
    let mut rig = Rig::new(1);
    let read = rig.read(1, 512);
    rig.command(0, read, &[]);
    rig.finish(1, vec![5; 512]);
    let sn = RequestNumbers { exp_stat_sn: 4_000_000, ..rig.at_once() };
    rig.send(0, Pdu::NopOut(NopOut { sn, lun: [0; 8], itt: NO_TAG, ttt: 0 }), &[]);
    assert_eq!(rig.session.answered.len(), 1);
}

#[test]
fn below_level_2_a_lost_connection_ends_the_session() {
    let mut rig = Rig::new(1);
    let other = rig.join(1);
    let read = rig.read(1, 512);
    rig.command(0, read, &[]);
    rig.begun();
    rig.session.lose(0, 5);
    assert!(rig.session.over().is_some());
    let run = rig.runs.pop_front().unwrap();
    rig.session.ended(run.key);
    assert_eq!(rig.drain(other).1, Some(Close::AfterOutput));
    rig.session.lose(other, 6);
    assert!(rig.session.is_idle());
}

#[test]
fn tasks_outlive_their_connection_and_move_to_another() {
    let mut rig = Rig::new(2);
    let (answered, running, asking) =
        (rig.read(1, 4096), rig.read(2, 512), rig.write(3, 8192, true));
    for command in [answered, running, asking] {
        rig.command(0, command, &[]);
    }
    let ask = asked(&rig.answers(0))[0];
    rig.data(0, 3, ask.ttt, (0, 0), false, &[7; 1000]);
    rig.session.lose(0, 10);
    rig.finish(1, vec![1; 4096]);
    let link = rig.join(1);
    rig.function(link, 20, function::TASK_REASSIGN, 1);
    assert_eq!(logout(&mut rig, link, 2, 0).0, 0);
    for (itt, tag) in [(21, 2), (22, 3), (23, 4)] {
        rig.function(link, itt, function::TASK_REASSIGN, tag);
    }
    rig.finish(2, vec![2; 512]);
    let mut answers = rig.answers(link);
    let right = [(21, outcome::COMPLETE), (22, outcome::COMPLETE), (23, outcome::NO_TASK)];
    assert_eq!(outcomes(&answers), right);
    assert_eq!(status_of(&answers, 2), Some((0, 0)));
    let again = asked(&answers)[0];
    assert_eq!((again.offset, again.length), (1000, 4096));
    rig.function(link, 24, function::TASK_REASSIGN, 2);
    answers = rig.answers(link);
    assert_eq!(outcomes(&answers), [(24, outcome::STILL_ALLEGIANT)]);
}

#[test]
fn an_answer_that_nobody_heard_is_given_to_the_connection_that_asks() {
    let mut rig = Rig::new(2);
    let read = rig.read(1, 9000);
    rig.command(0, read, &[]);
    rig.finish(1, vec![1; 9000]);
    rig.session.lose(0, 10);
    let link = rig.join(0);
    let sn = rig.at_once();
    let request = TaskRequest {
        sn,
        function: function::TASK_REASSIGN,
        lun: [0; 8],
        itt: 9,
        referenced: 1,
        ref_cmd_sn: 0,
        exp_data_sn: 2,
    };
    rig.send(link, Pdu::TaskRequest(request), &[]);
    let answers = rig.answers(link);
    assert_eq!(outcomes(&answers), [(9, outcome::COMPLETE)]);
    assert_eq!(answers[1].1.len(), 9000 - 2 * 4096);
    assert_eq!(status_of(&answers, 1), Some((0, 0)));
    rig.session.tick(10_000_000);
    assert!(rig.session.links.contains_key(&link));
}

#[test]
fn nobody_waits_longer_than_the_time_to_retain() {
    let mut rig = Rig::new(2);
    let read = rig.read(1, 512);
    rig.command(0, read, &[]);
    rig.begun();
    rig.session.lose(0, 1000);
    rig.session.tick(22_999);
    assert!(rig.session.over().is_none());
    rig.session.tick(23_000);
    assert!(rig.session.over().is_some());
    let run = rig.runs.pop_front().unwrap();
    rig.session.ended(run.key);
    assert!(rig.session.is_idle());
}

#[test]
fn a_connection_of_the_same_number_takes_the_place_of_the_older() {
    for level in [0, 2] {
        let mut rig = Rig::new(level);
        let read = rig.read(1, 512);
        rig.command(0, read, &[]);
        rig.begun();
        assert!(rig.session.has_room(0));
        let link = rig.join(0);
        assert_eq!(rig.drain(0).1, Some(Close::Now));
        rig.session.lose(0, 5);
        assert!(rig.session.over().is_none(), "it was logged out");
        rig.function(link, 9, function::TASK_REASSIGN, 1);
        let right = if level == 2 { outcome::COMPLETE } else { outcome::NO_REASSIGNMENT };
        assert_eq!(outcomes(&rig.answers(link)), [(9, right)]);
    }
}

#[test]
fn logouts_end_a_session_or_a_connection() {
    let mut rig = Rig::new(0);
    let other = rig.join(1);
    assert_eq!(logout(&mut rig, 0, 1, 7).0, 1, "no such connection");
    assert_eq!(logout(&mut rig, 0, 2, 1).0, 2, "no recovery at this level");
    let read = rig.read(1, 512);
    rig.command(other, read, &[]);
    assert_eq!(logout(&mut rig, 0, 1, 1), (0, None));
    assert_eq!(rig.drain(other).1, Some(Close::Now));
    rig.session.lose(other, 0);
    assert!(rig.session.over().is_none());
    assert_eq!(rig.session.commands(), 0);
    assert_eq!(logout(&mut rig, 0, 0, 0), (0, Some(Close::AfterOutput)));
    assert!(rig.session.over().is_some());
}

#[test]
fn lost_connections_are_bounded() {
    let mut rig = Rig::new(2);
    for cid in 1..100 {
        let link = rig.join(cid);
        rig.session.lose(link, 0);
    }
    assert!(rig.session.links.len() <= 18);
    assert_eq!(rig.session.connections(), 1);
}

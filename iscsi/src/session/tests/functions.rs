use scsi::Lun;

use super::*;
use crate::pdu::{function, outcome};

#[test]
fn a_task_is_gone_before_its_abort_is_answered() {
    let mut rig = Rig::new(0);
    let read = rig.read(1, 512);
    rig.command(0, read, &[]);
    assert_eq!(rig.begun(), [1]);
    rig.function(0, 2, function::ABORT_TASK, 1);
    assert!(rig.answers(0).is_empty(), "the device has it still");
    let run = rig.runs.pop_front().unwrap();
    assert!(rig.session.has(run.key));
    rig.session.ended(run.key);
    let answers = rig.answers(0);
    assert_eq!(outcomes(&answers), [(2, outcome::COMPLETE)]);
    assert_eq!(status_of(&answers, 1), None, "an aborted task has no answer");
    rig.function(0, 3, function::ABORT_TASK, 1);
    assert_eq!(outcomes(&rig.answers(0)), [(3, outcome::NO_TASK)]);
}

#[test]
fn a_task_that_ends_while_it_is_aborted_has_no_answer() {
    let mut rig = Rig::new(0);
    let read = rig.read(1, 512);
    rig.command(0, read, &[]);
    rig.begun();
    rig.function(0, 2, function::ABORT_TASK, 1);
    rig.finish(1, vec![0; 512]);
    let answers = rig.answers(0);
    assert_eq!((outcomes(&answers), answers.len()), (vec![(2, outcome::COMPLETE)], 1));
}

#[test]
fn a_command_that_did_not_come_can_be_aborted() {
    let mut rig = Rig::new(0);
    let (lost, second) = (rig.read(1, 0), rig.read(2, 0));
    rig.command(0, second, &[]);
    assert!(rig.begun().is_empty());
    let sn = rig.at_once();
    let request = TaskRequest {
        sn,
        function: function::ABORT_TASK,
        lun: [0; 8],
        itt: 9,
        referenced: 1,
        ref_cmd_sn: lost.sn.cmd_sn,
        exp_data_sn: 0,
    };
    rig.send(0, Pdu::TaskRequest(request), &[]);
    assert_eq!(outcomes(&rig.answers(0)), [(9, outcome::COMPLETE)]);
    assert_eq!(rig.begun(), [2], "its number counts as come");
    rig.command(0, lost, &[]);
    assert_eq!(rig.begun(), [2]);
}

#[test]
fn a_set_is_aborted_with_those_on_their_way() {
    let mut rig = Rig::new(0);
    let (first, second) = (rig.read(1, 0), rig.read(2, 0));
    rig.command(0, second, &[]);
    rig.function(0, 9, function::ABORT_TASK_SET, NO_TAG);
    assert!(rig.answers(0).is_empty());
    rig.command(0, first, &[]);
    assert!(rig.begun().is_empty(), "neither was begun");
    let outside = rig.session.take_outside();
    assert_eq!(outside.len(), 1);
    assert_eq!(outside[0].reach, Reach::Unit(Lun([0; 8])));
    rig.session.function_done(outside[0].token, None);
    assert_eq!(outcomes(&rig.answers(0)), [(9, outcome::COMPLETE)]);
}

#[test]
fn a_reset_reaches_outside_once_the_own_tasks_are_gone() {
    for (kind, reach) in [
        (function::LUN_RESET, Reach::ResetUnit(Lun([0; 8]))),
        (function::CLEAR_TASK_SET, Reach::ClearTaskSet(Lun([0; 8]))),
        (function::TARGET_WARM_RESET, Reach::ResetTarget { cold: false }),
    ] {
        let mut rig = Rig::new(0);
        let read = rig.read(1, 0);
        rig.command(0, read, &[]);
        rig.begun();
        rig.function(0, 9, kind, NO_TAG);
        assert!(rig.session.take_outside().is_empty());
        let run = rig.runs.pop_front().unwrap();
        rig.session.ended(run.key);
        let outside = rig.session.take_outside();
        assert_eq!(outside[0].reach, reach);
        assert!(rig.answers(0).is_empty());
        rig.session.function_done(outside[0].token, Some(outcome::NO_UNIT));
        assert_eq!(outcomes(&rig.answers(0)), [(9, outcome::NO_UNIT)]);
    }
}

#[test]
fn a_cold_reset_ends_the_session_behind_its_answer() {
    let mut rig = Rig::new(2);
    rig.function(0, 9, function::TARGET_COLD_RESET, NO_TAG);
    let outside = rig.session.take_outside();
    rig.session.function_done(outside[0].token, None);
    let (answers, close) = rig.drain(0);
    assert_eq!(outcomes(&answers), [(9, outcome::COMPLETE)]);
    assert_eq!(close, Some(Close::AfterOutput));
    assert!(rig.session.over().is_some());
}

#[test]
fn resets_can_be_forbidden_and_the_unknown_is_not_supported() {
    let mut rig = Rig::new(0);
    rig.session.setup.resets = false;
    rig.function(0, 1, function::TARGET_WARM_RESET, NO_TAG);
    rig.function(0, 2, function::QUERY_TASK, NO_TAG);
    rig.function(0, 3, 77, NO_TAG);
    rig.function(0, 4, function::TASK_REASSIGN, 1);
    let right = [
        (1, outcome::NOT_AUTHORIZED),
        (2, outcome::NOT_SUPPORTED),
        (3, outcome::NOT_SUPPORTED),
        (4, outcome::NO_REASSIGNMENT),
    ];
    assert_eq!(outcomes(&rig.answers(0)), right);
}

#[test]
fn queries_are_answered_at_protocol_level_2() {
    let level2 = SessionParameters { protocol_level: 2, ..parameters(0) };
    let mut rig = Rig::with(level2, Limits::default());
    let read = rig.read(1, 0);
    rig.command(0, read, &[]);
    rig.function(0, 5, function::QUERY_TASK, 1);
    rig.function(0, 6, function::QUERY_TASK, 2);
    rig.function(0, 7, function::QUERY_TASK_SET, NO_TAG);
    for outside in rig.session.take_outside() {
        rig.session.function_done(outside.token, None);
    }
    let right = [(5, outcome::SUCCEEDED), (6, outcome::COMPLETE), (7, outcome::SUCCEEDED)];
    assert_eq!(outcomes(&rig.answers(0)), right);
    rig.function(0, 8, function::NEXUS_RESET, NO_TAG);
    let run = rig.runs.pop_front().unwrap();
    rig.session.ended(run.key);
    assert_eq!(rig.session.take_outside()[0].reach, Reach::ResetNexus);
}

#[test]
fn another_session_clears_tasks_here_without_an_answer() {
    let mut rig = Rig::new(0);
    let (running, waiting) = (rig.read(1, 0), rig.write(2, 4096, true));
    rig.command(0, running, &[]);
    rig.command(0, waiting, &[]);
    rig.begun();
    let (keys, affected) = rig.session.clear(Some(Lun([0; 8])));
    assert_eq!((keys.len(), affected), (1, true));
    rig.session.ended(keys[0]);
    assert_eq!(rig.session.commands(), 0);
    let (none, affected) = rig.session.clear(None);
    assert!(none.is_empty() && !affected);
    assert_eq!(status_of(&rig.answers(0), 1), None);
}

#[test]
fn with_a_fence_the_other_connections_answers_arrive_first() {
    let fenced = SessionParameters { response_fence: true, ..parameters(0) };
    let mut rig = Rig::with(fenced, Limits::default());
    let other = rig.join(1);
    let read = rig.read(1, 0);
    rig.command(other, read, &[]);
    rig.finish(1, Vec::new());
    assert!(status_of(&rig.answers(other), 1).is_some());
    rig.function(0, 9, function::ABORT_TASK_SET, NO_TAG);
    let outside = rig.session.take_outside();
    rig.session.function_done(outside[0].token, None);
    assert!(rig.answers(0).is_empty());
    let pinged = rig.answers(other);
    let Pdu::NopIn(ping) = pinged[0].0 else { panic!("no ping") };
    let sn = RequestNumbers { exp_stat_sn: ping.sn.stat_sn, ..rig.at_once() };
    let pong = NopOut { sn, lun: [0; 8], itt: NO_TAG, ttt: ping.ttt };
    rig.send(other, Pdu::NopOut(pong), &[]);
    assert_eq!(outcomes(&rig.answers(0)), [(9, outcome::COMPLETE)]);
}

#[test]
fn functions_under_way_are_bounded() {
    let limits = Limits { immediate: 3, ..Limits::default() };
    let mut rig = Rig::with(parameters(0), limits);
    for itt in 0..5 {
        rig.function(0, itt, function::LUN_RESET, NO_TAG);
    }
    assert_eq!(rejected(&rig.answers(0)), [reason::IMMEDIATE; 2]);
}

/// FastAbort (RFC 7143 4.2.3.4): who has tasks that end is told, but for the connection that asked.
#[test]
fn fast_aborts_are_told_to_the_connections_of_the_tasks_that_end() {
    let fast = SessionParameters { fast_abort: true, ..parameters(0) };
    let mut rig = Rig::with(fast, Limits { window: 8, ..Limits::default() });
    let first = rig.session.join(5, ConnectionParameters::default(), 1, 0);
    let second = rig.session.join(6, ConnectionParameters::default(), 1, 0);
    let told = |rig: &mut Rig, link| {
        let mut output = Output::default();
        rig.session.take(link, &mut output, &mut VecDeque::new());
        let framer = Framer { digests: Digests::default(), max_data: 1 << 16, max_ahs_words: 0 };
        let mut input = BytesMut::from(&output.to_vec()[..]);
        let mut events = Vec::new();
        while let Some(frame) = framer.next(&mut input).unwrap() {
            if let Ok(Pdu::AsyncMessage(it)) = Pdu::read(&frame.basic) {
                events.push(it.event);
            }
        }
        events
    };
    let command = ScsiCommand {
        sn: RequestNumbers { immediate: false, cmd_sn: 1, exp_stat_sn: 1 },
        last: true,
        read: false,
        write: true,
        attribute: 1,
        priority: 0,
        lun: [0; 8],
        itt: 1,
        expected: 4096,
        cdb: [0x2a; 16],
    };
    let bytes = frame::write(Pdu::ScsiCommand(command).write(), &[], &[], Digests::default());
    let framer = Framer { digests: Digests::default(), max_data: 1 << 16, max_ahs_words: 0 };
    let frame = framer.next(&mut BytesMut::from(&bytes[..])).unwrap().unwrap();
    rig.session.receive(first, &frame, 0);
    rig.session.clear(Some(Lun([0; 8])));
    assert_eq!(told(&mut rig, first), [5]);
    assert!(told(&mut rig, second).is_empty(), "it had no task");
}

/// RFC 7144 4.1, SAM-5 8.7: the priority is one of simple tasks, 1 is the highest and 0 none.
#[test]
fn commands_that_wait_begin_in_the_order_of_their_priorities_at_protocol_level_2() {
    let begun = |protocol_level| {
        let level = SessionParameters { protocol_level, ..parameters(0) };
        let mut rig = Rig::with(level, Limits::default());
        let ordered = ScsiCommand { attribute: 2, ..rig.read(1, 0) };
        rig.command(0, ordered, &[]);
        for (itt, priority) in [(2, 15), (3, 0), (4, 1), (5, 8), (6, 7), (7, 1), (8, 0)] {
            let simple = ScsiCommand { priority, ..rig.read(itt, 0) };
            rig.command(0, simple, &[]);
        }
        let untagged = ScsiCommand { attribute: 0, priority: 1, ..rig.read(9, 0) };
        rig.command(0, untagged, &[]);
        assert_eq!(rig.begun(), [1], "the others wait for the one that is ordered");
        rig.finish(1, Vec::new());
        rig.begun()
    };
    assert_eq!(begun(2), [4, 7, 6, 3, 8, 9, 5, 2]);
    assert_eq!(begun(1), [2, 3, 4, 5, 6, 7, 8, 9], "the field is reserved");
}

#[test]
fn a_command_at_the_head_of_the_queue_is_before_any_priority() {
    let level2 = SessionParameters { protocol_level: 2, ..parameters(0) };
    let mut rig = Rig::with(level2, Limits::default());
    let simple = ScsiCommand { priority: 1, ..rig.read(1, 0) };
    let head = ScsiCommand { attribute: 3, priority: 15, ..rig.read(2, 0) };
    rig.command(0, simple, &[]);
    rig.command(0, head, &[]);
    assert_eq!(rig.begun(), [2, 1]);
}

/// The device takes no more as long as answers wait to be sent.
#[test]
fn what_comes_later_passes_what_the_device_did_not_begin() {
    let level2 = SessionParameters { protocol_level: 2, ..parameters(0) };
    let mut rig = Rig::with(level2, Limits::default());
    for (itt, priority) in [(1, 2), (2, 14)] {
        let simple = ScsiCommand { priority, ..rig.read(itt, 0) };
        rig.command(0, simple, &[]);
    }
    assert_eq!(rig.begun(), [1, 2]);
    for (itt, priority) in [(3, 3), (4, 1)] {
        let simple = ScsiCommand { priority, ..rig.read(itt, 0) };
        rig.command(0, simple, &[]);
    }
    assert_eq!(rig.begun(), [4, 1, 3, 2]);
}

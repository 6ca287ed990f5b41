use super::*;
use crate::pdu::{Residual, ahs::Additional};

#[test]
fn commands_run_in_the_order_of_their_numbers_over_all_connections() {
    let mut rig = Rig::new(0);
    let other = rig.join(1);
    let (first, second, third) = (rig.read(1, 0), rig.read(2, 0), rig.read(3, 0));
    rig.command(other, third, &[]);
    rig.command(0, second, &[]);
    assert!(rig.begun().is_empty());
    rig.command(0, first, &[]);
    let mut begun = rig.begun();
    begun.sort_unstable();
    assert_eq!(begun, [1, 2, 3]);
    rig.finish(3, Vec::new());
    assert!(rig.answers(0).is_empty(), "the answer belongs to the other connection");
    assert_eq!(status_of(&rig.answers(other), 3), Some((0, 0)));
}

#[test]
fn what_is_outside_of_the_window_or_was_there_before_is_not_there() {
    let mut rig = Rig::new(0);
    let command = rig.read(1, 0);
    rig.command(0, command, &[]);
    let again = ScsiCommand { itt: 2, ..command };
    rig.command(0, again, &[]);
    let mut far = rig.read(3, 0);
    far.sn.cmd_sn = rig.session.numbers().max_cmd_sn + 1;
    rig.command(0, far, &[]);
    assert_eq!(rig.begun(), [1]);
    assert!(rig.answers(0).is_empty());
    assert!(rig.session.early.is_empty());
}

#[test]
fn the_window_closes_as_commands_wait_and_never_moves_back() {
    let mut rig = Rig::new(0);
    let last = rig.session.numbers().max_cmd_sn;
    for itt in 1..=8 {
        let command = rig.read(itt, 0);
        rig.command(0, command, &[]);
        assert_eq!(rig.session.numbers().max_cmd_sn, last);
    }
    let more = rig.read(9, 0);
    rig.command(0, more, &[]);
    assert_eq!(rig.begun().len(), 8);
    rig.finish(4, Vec::new());
    assert_eq!(rig.session.numbers().max_cmd_sn, last + 1);
    rig.command(0, more, &[]);
    assert!(rig.begun().contains(&9));
}

#[test]
fn too_many_immediate_commands_are_rejected() {
    let limits = Limits { immediate: 2, ..Limits::default() };
    let mut rig = Rig::with(parameters(0), limits);
    for itt in 1..=3 {
        let sn = rig.at_once();
        let command = ScsiCommand { sn, ..rig.read(itt, 0) };
        rig.command(0, command, &[]);
    }
    assert_eq!(rejected(&rig.answers(0)), [reason::IMMEDIATE]);
    assert_eq!(rig.begun(), [1, 2]);
}

#[test]
fn a_write_is_asked_for_in_bursts_and_runs_with_all_its_data() {
    let mut rig = Rig::new(0);
    let data: Vec<u8> = (0..14_000u32).map(|n| (n % 251) as u8).collect();
    let write = rig.write(1, 14_000, false);
    rig.command(0, write, &data[..1000]);
    assert!(rig.answers(0).is_empty(), "unsolicited data still come");
    rig.data(0, 1, NO_TAG, (0, 1000), false, &data[1000..1500]);
    rig.data(0, 1, NO_TAG, (1, 1500), true, &data[1500..2048]);
    let mut asks: VecDeque<_> = asked(&rig.answers(0)).into();
    assert_eq!(asks.len(), 2, "MaxOutstandingR2T");
    let mut sn = 0;
    while let Some(ask) = asks.pop_front() {
        assert_eq!((ask.itt, ask.r2t_sn), (1, sn));
        assert!(ask.length <= 4096);
        sn += 1;
        let (start, end) = (ask.offset as usize, (ask.offset + ask.length) as usize);
        let half = start + (end - start) / 2;
        let rest = u32::try_from(half).unwrap();
        rig.data(0, 1, ask.ttt, (0, ask.offset), false, &data[start..half]);
        rig.data(0, 1, ask.ttt, (1, rest), true, &data[half..end]);
        asks.extend(asked(&rig.answers(0)));
    }
    assert_eq!(sn, 3);
    assert_eq!(rig.begun(), [1]);
    assert_eq!(rig.runs[0].data_out, data);
    rig.finish(1, Vec::new());
    let answers = rig.answers(0);
    assert!(matches!(answers[0].0, Pdu::ScsiResponse(it) if it.exp_data_sn == 0));
    assert_eq!(rig.session.setup.budget.left(), 1 << 20);
}

#[test]
fn data_that_were_not_agreed_upon_end_the_command() {
    // Immediate data where there is none.
    let mut rig =
        Rig::with(SessionParameters { immediate_data: false, ..parameters(0) }, Limits::default());
    let write = rig.write(1, 512, true);
    rig.command(0, write, &[1; 512]);
    assert_eq!(status_of(&rig.answers(0), 1), Some((2, 0x0c0c)));
    // More than FirstBurstLength, in one piece and in several.
    let mut rig = Rig::new(0);
    let write = rig.write(1, 9000, true);
    rig.command(0, write, &[1; 2049]);
    assert_eq!(status_of(&rig.answers(0), 1), Some((2, 0x0c0d)));
    let write = rig.write(2, 9000, false);
    rig.command(0, write, &[1; 1500]);
    rig.data(0, 2, NO_TAG, (0, 1500), false, &[1; 549]);
    assert!(rig.answers(0).is_empty(), "its data are waited for");
    rig.data(0, 2, NO_TAG, (1, 2049), true, &[1; 10]);
    assert_eq!(status_of(&rig.answers(0), 2), Some((2, 0x0c0d)));
    // Unsolicited data of a read, or where every byte has to be asked for.
    let read = ScsiCommand { last: false, ..rig.read(3, 512) };
    rig.command(0, read, &[]);
    assert_eq!(rejected(&rig.answers(0)), [reason::PROTOCOL]);
    assert!(rig.begun().is_empty());
    assert_eq!(rig.session.setup.budget.left(), 1 << 20);
}

#[test]
fn more_data_than_asked_for_or_out_of_order_ends_the_command() {
    for (sn, offset, length) in [(0, 0, 4097), (1, 0, 512), (0, 512, 512), (0, 0, 100)] {
        let mut rig = Rig::new(0);
        let write = rig.write(1, 9000, true);
        rig.command(0, write, &[]);
        let ask = asked(&rig.answers(0))[0];
        rig.data(0, 1, ask.ttt, (sn, offset), true, &vec![0; length]);
        assert_eq!(status_of(&rig.answers(0), 1), Some((2, 0x0c0d)), "{sn} {offset} {length}");
        assert!(rig.begun().is_empty());
    }
}

#[test]
fn data_that_nobody_asked_for_are_rejected_or_ignored() {
    let mut rig = Rig::new(0);
    let other = rig.join(1);
    rig.data(0, 77, NO_TAG, (0, 0), true, &[0; 512]);
    assert!(rig.answers(0).is_empty(), "a task that may have been aborted");
    let write = rig.write(1, 4096, true);
    rig.command(0, write, &[]);
    let ask = asked(&rig.answers(0))[0];
    rig.data(0, 1, ask.ttt + 99, (0, 0), true, &[0; 4096]);
    assert_eq!(rejected(&rig.answers(0)), [reason::PROTOCOL]);
    rig.data(other, 1, ask.ttt, (0, 0), true, &[0; 4096]);
    assert_eq!(rejected(&rig.answers(other)), [reason::PROTOCOL]);
    rig.data(0, 1, ask.ttt, (0, 0), true, &[0; 4096]);
    assert_eq!(rig.begun(), [1]);
}

#[test]
fn a_long_read_is_cut_by_segments_and_bursts() {
    let mut rig =
        Rig::with(SessionParameters { max_burst: 20_000, ..parameters(0) }, Limits::default());
    let read = rig.read(1, 30_000);
    rig.command(0, read, &[]);
    let data: Vec<u8> = (0..30_000u32).map(|n| (n % 249) as u8).collect();
    rig.finish(1, data.clone());
    let answers = rig.answers(0);
    let mut place = 0;
    let lengths: Vec<(usize, bool)> = answers
        .iter()
        .enumerate()
        .map(|(sn, (pdu, part))| {
            let Pdu::DataIn(it) = pdu else { panic!("{pdu:?}") };
            assert_eq!((it.data_sn as usize, it.offset as usize), (sn, place));
            assert_eq!(part, &data[place..place + part.len()]);
            place += part.len();
            assert_eq!(it.status.is_some(), place == 30_000, "the status goes with the last");
            (part.len(), it.last)
        })
        .collect();
    let right = [(8192, false), (8192, false), (3616, true), (8192, false), (1808, true)];
    assert_eq!(lengths, right);
}

#[test]
fn residuals_are_counted_and_go_with_a_response_of_their_own() {
    let mut rig = Rig::new(0);
    let read = rig.read(1, 1000);
    rig.command(0, read, &[]);
    rig.finish(1, vec![1; 600]);
    let answers = rig.answers(0);
    assert_eq!(answers[0].1.len(), 600);
    let Pdu::ScsiResponse(it) = answers[1].0 else { panic!("no response") };
    assert_eq!((it.residual, it.exp_data_sn), (Residual::Underflow(400), 1));
    let read = rig.read(2, 100);
    rig.command(0, read, &[]);
    rig.finish(2, vec![1; 600]);
    let answers = rig.answers(0);
    assert_eq!(answers[0].1.len(), 100, "no more than was expected");
    assert!(
        matches!(answers[1].0, Pdu::ScsiResponse(it) if it.residual == Residual::Overflow(500))
    );
}

#[test]
fn sense_data_come_with_their_length() {
    let mut rig = Rig::new(0);
    let read = rig.read(1, 512);
    rig.command(0, read, &[]);
    rig.fail(1, Sense::new(SenseKey::MediumError, 0x1100));
    let answers = rig.answers(0);
    assert_eq!(answers[0].1[..2], [0, 18]);
    assert_eq!(answers[0].1[2] & 0x7f, 0x70);
    assert_eq!(status_of(&answers, 1), Some((2, 0x1100)));
}

#[test]
fn a_tag_that_is_in_use_is_rejected() {
    let mut rig = Rig::new(0);
    for _ in 0..2 {
        let read = rig.read(1, 0);
        rig.command(0, read, &[]);
    }
    assert_eq!(rejected(&rig.answers(0)), [reason::TASK_IN_PROGRESS]);
    assert_eq!(rig.begun(), [1]);
}

#[test]
fn a_long_descriptor_block_and_both_directions_arrive() {
    let mut rig = Rig::new(0);
    let mut command = rig.write(1, 512, true);
    command.read = true;
    command.cdb[0] = 0x7f;
    let more = Additional { cdb: Bytes::from_static(&[7; 16]), read_length: Some(300) };
    rig.send_frame(0, Pdu::ScsiCommand(command), &more.write(), &[3; 512], true);
    assert_eq!(rig.begun(), [1]);
    assert_eq!(rig.runs[0].cdb.bytes().len(), 32);
    rig.finish(1, vec![9; 200]);
    let answers = rig.answers(0);
    assert_eq!(answers[0].1.len(), 200);
    let Pdu::ScsiResponse(it) = answers[1].0 else { panic!("no response") };
    assert_eq!((it.bidirectional, it.residual), (Residual::Underflow(100), Residual::None));
}

#[test]
fn attributes_order_commands() {
    let mut rig = Rig::new(0);
    for (itt, attribute) in [(1, 1), (2, 2), (3, 1), (4, 3)] {
        let command = ScsiCommand { attribute, ..rig.read(itt, 0) };
        rig.command(0, command, &[]);
    }
    assert_eq!(rig.begun(), [4, 1]);
    rig.finish(4, Vec::new());
    rig.finish(1, Vec::new());
    assert_eq!(rig.begun(), [2]);
    rig.finish(2, Vec::new());
    assert_eq!(rig.begun(), [3]);
}

#[test]
fn what_no_command_can_be_is_rejected_with_its_header() {
    let mut rig = Rig::new(0);
    let command = ScsiCommand { attribute: 1, ..rig.read(1, 0) };
    let mut basic = Pdu::ScsiCommand(command).write();
    basic.flags |= 7;
    let bytes = frame::write(basic, &[], &[], Digests::default());
    let framer = Framer { digests: Digests::default(), max_data: 0, max_ahs_words: 0 };
    let frame = framer.next(&mut BytesMut::from(&bytes[..])).unwrap().unwrap();
    rig.session.receive(0, &frame, 0);
    let answers = rig.answers(0);
    assert_eq!(rejected(&answers), [reason::FIELD]);
    assert_eq!(answers[0].1, bytes);
    let unknown = Frame { basic: Basic { opcode: 0x1e, ..frame.basic }, ..frame };
    rig.session.receive(0, &unknown, 0);
    assert_eq!(rejected(&rig.answers(0)), [reason::NOT_SUPPORTED]);
}

#[test]
fn data_beyond_the_session_wait_and_beyond_the_process_are_refused() {
    let limits = Limits { session_data: 100_000, ..Limits::default() };
    let mut rig = Rig::with(parameters(0), limits);
    for itt in 1..=2 {
        let write = rig.write(itt, 60_000, true);
        rig.command(0, write, &[]);
    }
    let asks = asked(&rig.answers(0));
    assert!(asks.iter().all(|ask| ask.itt == 1), "the second waits for room");
    // A write that is larger than all there is.
    let write = rig.write(3, 1 << 20, true);
    rig.command(0, write, &[]);
    assert_eq!(status_of(&rig.answers(0), 3), Some((Status::Busy as u8, 0)));
    let write = rig.write(4, 65 << 20, true);
    rig.command(0, write, &[]);
    assert_eq!(status_of(&rig.answers(0), 4), Some((2, 0x2400)));
    rig.function(0, 50, crate::pdu::function::ABORT_TASK, 1);
    let answers = rig.answers(0);
    assert!(asked(&answers).iter().all(|ask| ask.itt == 2) && !asked(&answers).is_empty());
    rig.function(0, 51, crate::pdu::function::ABORT_TASK, 2);
    assert_eq!(rig.session.setup.budget.left(), 1 << 20);
    assert_eq!(rig.session.held, 0);
}

use crate::pdu::Basic;

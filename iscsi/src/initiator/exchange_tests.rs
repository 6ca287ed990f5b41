//! The rules of a connection, PDU by PDU.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;
use tokio::{sync::oneshot, time::Instant};

use super::exchange::{Agreed, Broken, Command, Exchange, Lost, Pending, Reply, Times};
use crate::{
    negotiate::SessionParameters,
    pdu::{
        AsyncMessage, Basic, DataIn, DataOut, Digests, Frame, Framer, NO_TAG, NopIn, Numbers, Pdu,
        R2t, ScsiCommand, ScsiResponse, TaskResponse, function, outcome,
    },
};

const SECOND: Duration = Duration::from_secs(1);
type Answer = oneshot::Receiver<Result<Reply, Lost>>;

fn exchange(session: SessionParameters, window: u32, now: Instant) -> Exchange {
    let agreed = Agreed {
        session,
        digests: Digests::default(),
        target_max_recv: 1024,
        cmd_sn: u32::MAX,
        exp_stat_sn: 7,
        max_cmd_sn: u32::MAX.wrapping_add(window - 1),
    };
    let times = Times { keep_alive: SECOND * 10, function: SECOND };
    Exchange::new(agreed, times, 64, now)
}

fn submit(it: &mut Exchange, out: usize, read: u32, now: Instant) -> Answer {
    let (done, answer) = oneshot::channel();
    let out = (0..out).map(|n| n as u8).collect();
    let command = Command { lun: [0; 8], cdb: [0x8a; 16], out, read, time: SECOND * 3 };
    it.submit(Pending { command, done }, now);
    answer
}

/// What goes out.
fn sent(it: &mut Exchange) -> Vec<(Pdu, Bytes)> {
    let mut bytes = BytesMut::new();
    while !it.out.is_empty() {
        let part = it.out.slices().concat_all();
        it.out.sent(part.len());
        bytes.extend_from_slice(&part);
    }
    let framer = Framer { digests: Digests::default(), max_data: 1 << 20, max_ahs_words: 0 };
    let mut found = Vec::new();
    while let Some(frame) = framer.next(&mut bytes).unwrap() {
        found.push((Pdu::read(&frame.basic).unwrap(), frame.data));
    }
    assert!(bytes.is_empty());
    found
}

trait ConcatAll {
    fn concat_all(&self) -> Vec<u8>;
}

impl ConcatAll for Vec<std::io::IoSlice<'_>> {
    fn concat_all(&self) -> Vec<u8> {
        self.iter().flat_map(|slice| slice.iter().copied()).collect()
    }
}

fn give(it: &mut Exchange, pdu: Pdu, data: &[u8], now: Instant) -> Result<(), Broken> {
    let data = Bytes::copy_from_slice(data);
    it.apply(Frame { basic: pdu.write(), ahs: Bytes::new(), data, intact: true }, now)
}

fn numbers(stat_sn: u32, max_cmd_sn: u32) -> Numbers {
    Numbers { stat_sn, exp_cmd_sn: max_cmd_sn, max_cmd_sn }
}

fn response(itt: u32, stat_sn: u32) -> Pdu {
    Pdu::ScsiResponse(ScsiResponse { sn: numbers(stat_sn, 50), itt, ..ScsiResponse::default() })
}

fn commands(pdus: &[(Pdu, Bytes)]) -> Vec<ScsiCommand> {
    let command = |pdu: &(Pdu, Bytes)| match pdu.0 {
        Pdu::ScsiCommand(it) => Some(it),
        _ => None,
    };
    pdus.iter().filter_map(command).collect()
}

#[test]
fn the_window_is_kept_over_the_end_of_numbers() {
    let now = Instant::now();
    let mut it = exchange(SessionParameters::default(), 2, now);
    let answers: Vec<Answer> = (0..4).map(|_| submit(&mut it, 0, 512, now)).collect();
    let first = commands(&sent(&mut it));
    assert_eq!(first.iter().map(|it| it.sn.cmd_sn).collect::<Vec<_>>(), [u32::MAX, 0]);
    // An older window opens nothing.
    let old = Numbers { stat_sn: 7, exp_cmd_sn: u32::MAX, max_cmd_sn: u32::MAX - 3 };
    let nop = Pdu::NopIn(NopIn { sn: old, lun: [0; 8], itt: NO_TAG, ttt: NO_TAG });
    give(&mut it, nop, &[], now).unwrap();
    assert!(sent(&mut it).is_empty());
    give(&mut it, response(first[0].itt, 7), &[], now).unwrap();
    let rest = commands(&sent(&mut it));
    assert_eq!(rest.iter().map(|it| it.sn.cmd_sn).collect::<Vec<_>>(), [1, 2]);
    assert!(rest.iter().all(|it| it.sn.exp_stat_sn == 8));
    // A response that skips a number.
    assert!(matches!(give(&mut it, response(rest[0].itt, 9), &[], now), Err(Broken::Protocol(_))));
    it.fail();
    let lost = answers.into_iter().skip(1).map(|mut it| it.try_recv().unwrap().unwrap_err());
    assert!(lost.collect::<Vec<_>>().iter().all(|lost| *lost == Lost::Connection));
}

#[test]
fn data_go_as_they_were_agreed_upon() {
    let now = Instant::now();
    // Immediate data, unsolicited data, then what is asked for.
    let session = SessionParameters {
        initial_r2t: false,
        first_burst: 3000,
        max_burst: 4096,
        ..SessionParameters::default()
    };
    let mut it = exchange(session, 8, now);
    let _answer = submit(&mut it, 6000, 0, now);
    let pdus = sent(&mut it);
    let command = commands(&pdus)[0];
    assert!(!command.last && command.write && command.expected == 6000);
    let outs = |pdus: &[(Pdu, Bytes)]| {
        let out = |(pdu, data): &(Pdu, Bytes)| match pdu {
            Pdu::DataOut(it) => {
                let right: Vec<u8> =
                    (0..data.len()).map(|n| (it.offset as usize + n) as u8).collect();
                assert_eq!(data, &right);
                Some((it.offset, data.len(), it.data_sn, it.last, it.ttt))
            }
            _ => None,
        };
        pdus.iter().filter_map(out).collect::<Vec<_>>()
    };
    assert_eq!(pdus[0].1.len(), 1024);
    assert_eq!(outs(&pdus), [(1024, 1024, 0, false, NO_TAG), (2048, 952, 1, true, NO_TAG)]);
    let ask = |r2t_sn, offset, length| {
        let sn = numbers(7, 20);
        Pdu::R2t(R2t { sn, lun: [0; 8], itt: command.itt, ttt: 5, r2t_sn, offset, length })
    };
    give(&mut it, ask(0, 3000, 3000), &[], now).unwrap();
    let asked = outs(&sent(&mut it));
    assert_eq!(
        asked,
        [(3000, 1024, 0, false, 5), (4024, 1024, 1, false, 5), (5048, 952, 2, true, 5)]
    );
    for wrong in [ask(2, 0, 10), ask(1, 5999, 2), ask(1, 0, 0), ask(1, 0, 4097)] {
        let session = SessionParameters { max_burst: 4096, ..SessionParameters::default() };
        let mut it = exchange(session, 8, now);
        let _answer = submit(&mut it, 6000, 0, now);
        give(&mut it, ask(0, 0, 4096), &[], now).unwrap();
        assert!(give(&mut it, wrong, &[], now).is_err());
    }
    // No immediate data.
    let session = SessionParameters { immediate_data: false, ..SessionParameters::default() };
    let mut it = exchange(session, 8, now);
    let _answer = submit(&mut it, 512, 0, now);
    let pdus = sent(&mut it);
    assert!(pdus.len() == 1 && pdus[0].1.is_empty() && commands(&pdus)[0].last);
}

#[test]
fn what_is_overdue_is_aborted_then_reset_then_given_up() {
    let start = Instant::now();
    let mut it = exchange(SessionParameters::default(), 8, start);
    let mut answer = submit(&mut it, 0, 512, start);
    let task = commands(&sent(&mut it))[0];
    it.tick(start + SECOND * 2).unwrap();
    assert!(sent(&mut it).is_empty());
    it.tick(start + SECOND * 3).unwrap();
    let Pdu::TaskRequest(abort) = sent(&mut it)[0].0 else { panic!("an abort") };
    assert_eq!((abort.function, abort.referenced), (function::ABORT_TASK, task.itt));
    assert_eq!((abort.ref_cmd_sn, abort.sn.immediate), (task.sn.cmd_sn, true));
    // The abort is done.
    let done = |itt, stat_sn| {
        let sn = numbers(stat_sn, 20);
        Pdu::TaskResponse(TaskResponse { sn, response: outcome::COMPLETE, itt })
    };
    give(&mut it, done(abort.itt, 7), &[], start + SECOND * 3).unwrap();
    assert!(matches!(answer.try_recv(), Ok(Err(Lost::Aborted))));
    // The next one's abort is not answered: the unit is reset, and nothing new is sent meanwhile.
    let mut answer = submit(&mut it, 0, 512, start + SECOND * 4);
    sent(&mut it);
    it.tick(start + SECOND * 7).unwrap();
    sent(&mut it);
    it.tick(start + SECOND * 8).unwrap();
    let Pdu::TaskRequest(reset) = sent(&mut it)[0].0 else { panic!("a reset") };
    assert_eq!(reset.function, function::LUN_RESET);
    let _later = submit(&mut it, 0, 512, start + SECOND * 8);
    assert!(sent(&mut it).is_empty());
    give(&mut it, done(reset.itt, 8), &[], start + SECOND * 8).unwrap();
    assert!(matches!(answer.try_recv(), Ok(Err(Lost::Aborted))));
    assert_eq!(commands(&sent(&mut it)).len(), 1);
    // A reset that is not answered is the end.
    for seconds in [11, 12] {
        it.tick(start + SECOND * seconds).unwrap();
    }
    assert_eq!(it.tick(start + SECOND * 13), Err(Broken::Mute));
}

#[test]
fn silence_is_asked_about_and_not_borne() {
    let start = Instant::now();
    let mut it = exchange(SessionParameters::default(), 8, start);
    it.tick(start + SECOND * 10).unwrap();
    let Pdu::NopOut(ping) = sent(&mut it)[0].0 else { panic!("a ping") };
    let pong = NopIn { sn: numbers(7, 20), lun: [0; 8], itt: ping.itt, ttt: NO_TAG };
    give(&mut it, Pdu::NopIn(pong), &[], start + SECOND * 11).unwrap();
    it.tick(start + SECOND * 20).unwrap();
    assert!(sent(&mut it).is_empty());
    // A ping of the target is answered with what it sent.
    let ping = NopIn { sn: numbers(8, 20), lun: [3; 8], itt: NO_TAG, ttt: 9 };
    give(&mut it, Pdu::NopIn(ping), b"are you there", start + SECOND * 20).unwrap();
    let (answer, data) = sent(&mut it).remove(0);
    assert!(matches!(answer, Pdu::NopOut(it) if (it.ttt, it.itt, it.lun) == (9, NO_TAG, [3; 8])));
    assert_eq!(&data[..], b"are you there");
    it.tick(start + SECOND * 30).unwrap();
    it.tick(start + SECOND * 39).unwrap();
    assert_eq!(it.tick(start + SECOND * 40), Err(Broken::Mute));
}

#[test]
fn data_in_are_whole_or_the_connection_is_none() {
    let now = Instant::now();
    let begin = || {
        let mut it = exchange(SessionParameters::default(), 8, now);
        let answer = submit(&mut it, 0, 1024, now);
        let itt = commands(&sent(&mut it))[0].itt;
        (it, answer, itt)
    };
    let part = |itt, data_sn, offset, status| {
        let sn = numbers(7, 20);
        Pdu::DataIn(DataIn { sn, itt, data_sn, offset, status, ttt: NO_TAG, ..DataIn::default() })
    };
    let (mut it, mut answer, itt) = begin();
    give(&mut it, part(itt, 0, 0, None), &[1; 512], now).unwrap();
    give(&mut it, part(itt, 1, 512, Some(0)), &[2; 512], now).unwrap();
    let reply = answer.try_recv().unwrap().unwrap();
    assert_eq!((reply.length, reply.failed, reply.data.concat().len()), (1024, false, 1024));
    for (data_sn, offset, length) in [(1, 0, 512), (0, 512, 512), (0, 0, 1025)] {
        let (mut it, _answer, itt) = begin();
        let wrong = give(&mut it, part(itt, data_sn, offset, None), &vec![0; length], now);
        assert!(matches!(wrong, Err(Broken::Protocol(_))));
    }
    // Data that are announced and missing are no success.
    let (mut it, mut answer, itt) = begin();
    give(&mut it, part(itt, 0, 0, None), &[1; 512], now).unwrap();
    give(&mut it, response(itt, 7), &[], now).unwrap();
    assert!(answer.try_recv().unwrap().unwrap().failed);
    let (mut it, _answer, itt) = begin();
    let harmed = Frame {
        basic: part(itt, 0, 0, None).write(),
        ahs: Bytes::new(),
        data: Bytes::from_static(&[0; 512]),
        intact: false,
    };
    assert_eq!(it.apply(harmed, now), Err(Broken::Digest));
}

#[test]
fn a_target_may_ask_for_the_end() {
    let now = Instant::now();
    for (event, right) in [(1, Broken::LogoutAsked), (2, Broken::Dropped), (3, Broken::Dropped)] {
        let mut it = exchange(SessionParameters::default(), 8, now);
        let sn = numbers(7, 20);
        let message = AsyncMessage { sn, lun: [0; 8], event, code: 0, parameters: [0, 2, 20] };
        assert_eq!(give(&mut it, Pdu::AsyncMessage(message), &[], now), Err(right));
    }
}

proptest! {
    #[test]
    fn any_pdu_is_taken_or_ends_the_connection(
        pdus in prop::collection::vec(
            (
                prop::sample::select(vec![0x20u8, 0x21, 0x22, 0x25, 0x26, 0x31, 0x32, 0x3f, 0x24]),
                any::<(u8, [u8; 2])>(),
                0u32..6,
                any::<[u8; 3]>(),
                prop::collection::vec(any::<u8>(), 0..600),
            ),
            1..40,
        ),
    ) {
        let now = Instant::now();
        let mut it = exchange(SessionParameters::default(), 8, now);
        let _answers: Vec<Answer> =
            [(0, 512), (2048, 0), (0, 0)].map(|(out, read)| submit(&mut it, out, read, now)).into();
        let mut stat_sn = 7u32;
        for (opcode, (flags, middle), itt, small, data) in pdus {
            let words = [
                u32::from(small[0]) << 24 >> 24,
                stat_sn,
                20,
                40,
                u32::from(small[1] % 3),
                u32::from(small[2] % 4) * 512,
                u32::from(small[0]) * 8,
            ];
            let basic = Basic { opcode, flags, middle, itt, words, ..Basic::default() };
            let frame =
                Frame { basic, ahs: Bytes::new(), data: data.into(), intact: true };
            if it.apply(frame, now).is_err() {
                break;
            }
            stat_sn = stat_sn.wrapping_add(u32::from(opcode != 0x31 && opcode != 0x25));
            for (pdu, data) in sent(&mut it) {
                if let Pdu::DataOut(DataOut { offset, .. }) = pdu {
                    prop_assert!(offset as usize + data.len() <= 2048);
                }
            }
        }
        it.fail();
    }
}

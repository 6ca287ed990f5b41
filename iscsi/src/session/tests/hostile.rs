//! Whatever initiators send: nothing panics, nothing grows beyond its bound, nothing is left over.

use proptest::prelude::*;

use scsi::Lun;

use super::*;
use crate::pdu::Basic;

#[derive(Debug, Clone)]
enum Event {
    Pdu { link: u32, basic: Basic, ahs: Vec<u8>, data: usize, intact: bool },
    Finish { at: usize, data_in: usize },
    Time(u64),
    Lose(u32),
    Join(u16),
    Outside,
    Clear,
    Drain(u32),
}

fn basic() -> impl Strategy<Value = Basic> {
    let opcodes = [0u8, 1, 1, 1, 1, 2, 2, 3, 4, 5, 5, 5, 5, 6, 0x10, 0x10, 0x20, 0x21, 0x31, 0x3f];
    let opcode = prop::sample::select(opcodes.to_vec());
    let flags = prop_oneof![
        Just(0x80u8),
        Just(0xa1),
        Just(0x21),
        Just(0xc1),
        Just(0xe2),
        0x80u8..0x90,
        any::<u8>()
    ];
    let tag = prop_oneof![0u32..6, Just(u32::MAX)];
    let word = prop_oneof![0u32..12, Just(u32::MAX), 0u32..20_000, any::<u32>()];
    let words =
        [word.clone(), word.clone(), word.clone(), word.clone(), word.clone(), word.clone(), word];
    (opcode, any::<bool>(), flags, tag, words, 0u8..2).prop_map(
        |(opcode, immediate, flags, itt, words, unit)| Basic {
            opcode,
            immediate,
            flags,
            lun: [0, unit, 0, 0, 0, 0, 0, 0],
            itt,
            words,
            ..Basic::default()
        },
    )
}

fn event() -> impl Strategy<Value = Event> {
    let ahs = prop_oneof![
        8 => Just(Vec::new()),
        1 => prop::collection::vec(any::<u8>(), 1..4).prop_map(|words| words.repeat(4)),
        1 => Just(crate::pdu::ahs::Additional {
            cdb: Bytes::from_static(&[1; 16]), read_length: Some(600)
        }.write()),
    ];
    let data = prop_oneof![Just(0usize), 0usize..600, Just(2048usize), Just(5000usize)];
    prop_oneof![
        20 => (0u32..4, basic(), ahs, data, prop::bool::weighted(0.9)).prop_map(
            |(link, basic, ahs, data, intact)| Event::Pdu { link, basic, ahs, data, intact }),
        5 => (any::<usize>(), 0usize..9000).prop_map(|(at, data_in)| Event::Finish { at, data_in }),
        1 => (0u64..40_000).prop_map(Event::Time),
        1 => (0u32..4).prop_map(Event::Lose),
        1 => (0u16..4).prop_map(Event::Join),
        1 => Just(Event::Outside),
        1 => Just(Event::Clear),
        3 => (0u32..4).prop_map(Event::Drain),
    ]
}

fn limits() -> Limits {
    Limits {
        window: 4,
        immediate: 3,
        session_data: 30_000,
        kept_answers: 20_000,
        ..Limits::default()
    }
}

fn check(rig: &Rig) {
    let it = &rig.session;
    let tasks = it.tasks.values();
    let open = tasks.clone().filter(|task| !task.immediate).count();
    let held: usize = tasks.clone().map(|task| task.held).sum();
    let granted: usize = tasks.clone().filter(|task| !task.starving).map(|task| task.held).sum();
    assert_eq!((open as u32, it.tasks.len() - open), (it.open, it.immediates as usize));
    assert!(it.open <= 4 && it.immediates <= 3 && it.early.len() <= 4);
    assert!(it.functions.len() + it.deferred.len() <= 3);
    assert!(it.early_bytes <= 30_000 && it.answered_bytes <= 20_000);
    assert_eq!(it.setup.budget.left() + held, 1 << 20);
    assert_eq!(it.held, granted);
    assert!(it.links.len() <= 24);
    for task in tasks {
        assert!(task.received <= task.expected_out);
        assert!(task.asked.len() <= 2);
    }
}

fn play(level: u8, events: Vec<Event>) {
    let mut rig = Rig::with(SessionParameters { protocol_level: 2, ..parameters(level) }, limits());
    rig.join(1);
    for event in events {
        match event {
            Event::Pdu { link, basic, ahs, data, intact } => {
                let bytes = frame::write(basic, &ahs, &vec![7; data], Digests::default());
                let framer =
                    Framer { digests: Digests::default(), max_data: 1 << 20, max_ahs_words: 67 };
                let mut frame = framer.next(&mut BytesMut::from(&bytes[..])).unwrap().unwrap();
                frame.intact = intact;
                rig.session.receive(link, &frame, rig.now);
            }
            Event::Finish { at, data_in } => {
                rig.begun();
                if !rig.runs.is_empty() {
                    let at = at % rig.runs.len();
                    let run = rig.runs.remove(at).unwrap();
                    let completion = Completion {
                        status: Status::Good,
                        sense: None,
                        data_out_wanted: run.data_out.len() as u64,
                    };
                    rig.session.complete(run.key, &completion, &[], vec![1; data_in]);
                }
            }
            Event::Time(passed) => {
                rig.now += passed;
                rig.session.tick(rig.now);
            }
            Event::Lose(link) => rig.session.lose(link, rig.now),
            Event::Join(cid) => {
                if rig.session.has_room(cid) {
                    rig.join(cid);
                }
            }
            Event::Outside => {
                for it in rig.session.take_outside() {
                    rig.session.function_done(it.token, None);
                }
            }
            Event::Clear => {
                rig.session.clear(Some(Lun([0; 8])));
            }
            Event::Drain(link) => {
                rig.drain(link);
            }
        }
        check(&rig);
    }
    rig.session.end("the test is over");
    rig.begun();
    let driven = |(_, it): &(&u32, &Link)| !matches!(it.state, State::Lost(_));
    let links: Vec<u32> = rig.session.links.iter().filter(driven).map(|(link, _)| *link).collect();
    for link in links {
        rig.session.lose(link, rig.now);
    }
    while let Some(run) = rig.runs.pop_front() {
        rig.session.ended(run.key);
    }
    assert!(rig.session.is_idle(), "something is left over");
    assert_eq!(rig.session.setup.budget.left(), 1 << 20);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]
    #[test]
    fn whatever_comes_nothing_panics_grows_or_is_left_over(
        level in 0u8..3,
        events in prop::collection::vec(event(), 1..120),
    ) {
        play(level, events);
    }
}

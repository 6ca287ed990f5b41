//! Two engines over a network that delays messages and completions as it likes, and may fall silent.
//!
//! Every run is decided by its seed. What must hold whatever happens: no message meets an end without
//! a receive that is long enough, credits and memory stay within their bounds, all messages arrive in
//! order and unharmed while the network works, and when it falls silent both ends find out.

use std::{collections::VecDeque, time::Instant};

use bytes::Bytes;
use proptest::prelude::*;

use super::*;

/// Numbers that a seed decides (SplitMix64).
struct Dice(u64);

impl Dice {
    fn below(&mut self, most: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % most as u64) as usize
    }
}

/// One end with the provider below it and the upper layer above.
struct End {
    engine: Engine,
    /// Receives that are posted.
    receives: VecDeque<usize>,
    most_receives: usize,
    /// Sends whose completion is still to come.
    leaving: usize,
    to_send: VecDeque<Bytes>,
    inbox: VecDeque<usize>,
    got: Vec<Vec<u8>>,
    tokens: Vec<u32>,
    ended: Option<Fault>,
}

/// What is on its way to an end.
type Way = VecDeque<(Vec<u8>, Option<u32>)>;

impl End {
    fn new(engine: Engine, to_send: Vec<Bytes>) -> Self {
        Self {
            engine,
            receives: VecDeque::new(),
            most_receives: 0,
            leaving: 0,
            to_send: to_send.into(),
            inbox: VecDeque::new(),
            got: Vec::new(),
            tokens: Vec::new(),
            ended: None,
        }
    }

    /// Does what its engine wants.
    fn settle(&mut self, way: &mut Way) {
        while let Some(effect) = self.engine.next() {
            match effect {
                Effect::PostReceive(len) => self.receives.push_back(len),
                Effect::Send { head, body, invalidate, .. } => {
                    self.leaving += 1;
                    way.push_back(([&head[..], &body].concat(), invalidate));
                }
                Effect::Established(_) => {}
                Effect::Deliver(upper) => {
                    self.inbox.push_back(upper.bytes.len() - upper.start);
                    self.got.push(upper.bytes[upper.start..].to_vec());
                    self.tokens.extend(upper.invalidated);
                }
                Effect::End(fault) => self.ended = Some(fault),
            }
        }
        self.most_receives = self.most_receives.max(self.receives.len());
    }
}

/// What can happen next at an end.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Step {
    Arrive(usize),
    Complete(usize),
    Send(usize),
    Take(usize),
}

struct World {
    ends: [End; 2],
    /// To each end.
    ways: [Way; 2],
    dice: Dice,
    now: Instant,
    /// Messages that still arrive before the network falls silent.
    until_silence: Option<usize>,
}

impl World {
    fn settle(&mut self) {
        for at in 0..2 {
            self.ends[at].settle(&mut self.ways[1 - at]);
        }
    }

    fn steps(&self) -> Vec<Step> {
        let mut steps = Vec::new();
        for (at, end) in self.ends.iter().enumerate() {
            let silent = self.until_silence == Some(0);
            if !self.ways[at].is_empty() && !silent {
                steps.push(Step::Arrive(at));
            }
            if end.leaving > 0 && !silent {
                steps.push(Step::Complete(at));
            }
            if !end.to_send.is_empty() && end.engine.agreed().is_some() && end.engine.waiting() < 3
            {
                steps.push(Step::Send(at));
            }
            if !end.inbox.is_empty() {
                steps.push(Step::Take(at));
            }
        }
        steps
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Arrive(at) => {
                let (message, token) = self.ways[at].pop_front().unwrap();
                let end = &mut self.ends[at];
                let room = end.receives.pop_front().expect("a message without a receive");
                assert!(room >= message.len(), "{} bytes for a receive of {room}", message.len());
                end.engine.received(message, token, self.now);
                self.until_silence = self.until_silence.map(|left| left - 1);
            }
            Step::Complete(at) => {
                self.ends[at].leaving -= 1;
                self.ends[at].engine.sent();
            }
            Step::Send(at) => {
                let end = &mut self.ends[at];
                let message = end.to_send.pop_front().unwrap();
                let token = u32::try_from(end.to_send.len()).unwrap() + 1;
                end.engine.send(message, Some(token)).unwrap();
            }
            Step::Take(at) => {
                let end = &mut self.ends[at];
                let len = end.inbox.pop_front().unwrap();
                end.engine.taken(len);
            }
        }
        self.settle();
    }

    fn run(&mut self) {
        self.settle();
        let mut taken = 0u64;
        loop {
            let steps = self.steps();
            if steps.is_empty() {
                return;
            }
            let step = steps[self.dice.below(steps.len())];
            self.take(step);
            taken += 1;
            assert!(taken < 200_000, "they never come to rest");
        }
    }
}

#[derive(Debug, Clone)]
struct Plan {
    seed: u64,
    credits: [u16; 4],
    sizes: [u32; 4],
    held: usize,
    lengths: [Vec<usize>; 2],
    silence: Option<usize>,
}

fn plans(silence: bool) -> impl Strategy<Value = Plan> {
    let credits = prop::array::uniform4(prop_oneof![1u16..5, 1u16..40]);
    let sizes = prop::array::uniform4(128u32..600);
    // Fragments that end on a boundary are as likely as others.
    let length = || prop_oneof![1usize..4000, (1usize..20).prop_map(|parts| parts * 104)];
    // Whoever has connected speaks first: the other has no credit before.
    let lengths = |least: usize| prop::collection::vec(length(), least..30);
    let last = if silence { prop::option::of(0usize..200).boxed() } else { Just(None).boxed() };
    (any::<u64>(), credits, sizes, 0usize..3000, [lengths(1), lengths(0)], last).prop_map(
        |(seed, credits, sizes, held, lengths, silence)| Plan {
            seed,
            credits,
            sizes,
            held,
            lengths,
            silence,
        },
    )
}

fn messages(lengths: &[usize], salt: u8) -> Vec<Bytes> {
    let byte = |number: usize, at: usize| (number * 31 + at) as u8 ^ salt;
    let message = |(number, len): (usize, &usize)| (0..*len).map(|at| byte(number, at)).collect();
    lengths.iter().enumerate().map(message).collect()
}

fn world(plan: &Plan) -> World {
    let now = Instant::now();
    let parameters = |at: usize| Parameters {
        receive_credits: plan.credits[at],
        send_credits: plan.credits[at + 2],
        max_send_size: plan.sizes[at],
        max_receive_size: plan.sizes[at + 2],
        max_fragmented_size: LEAST_FRAGMENTED,
        most_held: plan.held,
        ..Parameters::passive()
    };
    // Whoever answers says what it sends at most, which is no longer than the other receives.
    let active = Engine::active(parameters(0), now);
    let passive = Engine::passive(parameters(1), now);
    World {
        ends: [
            End::new(active, messages(&plan.lengths[0], 0)),
            End::new(passive, messages(&plan.lengths[1], 0x55)),
        ],
        ways: [Way::new(), Way::new()],
        dice: Dice(plan.seed),
        now,
        until_silence: plan.silence,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Everything arrives, in order and unharmed, whoever takes its time.
    #[test]
    fn all_messages_arrive_whatever_is_late(plan in plans(false)) {
        let mut world = world(&plan);
        world.run();
        for (at, end) in world.ends.iter().enumerate() {
            prop_assert_eq!(&end.ended, &None);
            prop_assert!(end.to_send.is_empty() && end.engine.waiting() == 0, "stuck at {}", at);
            let want = messages(&plan.lengths[1 - at], if at == 0 { 0x55 } else { 0 });
            prop_assert_eq!(&end.got, &want);
            let tokens: Vec<u32> = (1..=u32::try_from(want.len()).unwrap()).rev().collect();
            prop_assert_eq!(&end.tokens, &tokens);
            let most = usize::from(plan.credits[at]).max(2) + 1;
            prop_assert!(end.most_receives <= most, "{} receives", end.most_receives);
            prop_assert_eq!(end.engine.held(), 0);
        }
    }

    /// A network that falls silent, with messages and completions lost, leaves nobody waiting.
    #[test]
    fn silence_is_noticed_by_both(plan in plans(true)) {
        let mut world = world(&plan);
        world.run();
        for _ in 0..4 {
            for at in 0..2 {
                let due = world.ends[at].engine.deadline();
                world.ends[at].engine.tick(due);
            }
            world.settle();
            world.until_silence.get_or_insert(0);
        }
        for end in &world.ends {
            prop_assert_eq!(&end.ended, &Some(Fault::Silent));
        }
    }
}

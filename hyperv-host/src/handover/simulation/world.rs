//! Two hosts, their records, a file server and the way between them, all in one queue of events.

use std::collections::{BTreeMap, HashMap, VecDeque};

use crate::handover::{
    Standing,
    rules::{Rule, hold},
    source::{self, Source},
    target::{self, Target},
};

/// How far the numbers of two runs of one host are apart, at least.
const SPAN: u64 = 1 << 20;
/// Time after which nothing breaks any more.
const PEACE: u64 = 4000;
/// Longest that it may take to come to rest then.
const REST: u64 = 60_000;
/// How long a silent peer counts as there.
const TIMEOUT: u64 = 150;

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Side {
    Source,
    Target,
}

/// What either does or writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Effect {
    Source(source::Effect),
    Target(target::Effect),
}

/// What one host tells the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Message {
    State,
    Ready,
    /// The word; its number tells its answer from that of another.
    Commit(u64),
    Outcome(u64, bool),
    Abort,
    LastWord,
    Query(u64),
    Standing(u64, Standing),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Happens {
    Arrives(Side, Message),
    /// A chain of effects goes on.
    Step(Side, u64),
    /// Nobody has answered a question of that number.
    NoAnswer(Side, u64),
    /// The target looks whether its source is still there.
    Look,
    /// The source gives up what it waits for.
    Deadline,
    PowerCut(Side),
    PowerOn(Side),
    Link(bool),
}

/// The records of a host, those of the source and those of the target.
#[derive(Debug, Clone, Copy, Default)]
struct Disk {
    /// `Some(true)`: running, `Some(false)`: handed over.
    vm: Option<bool>,
    /// The number of the VM's last run there.
    run: u64,
    /// The run of a VM on its way in.
    arrival: Option<u64>,
    verdict: Option<bool>,
}

/// A chain of effects, one after the other, as a thread does them.
#[derive(Debug, Default)]
struct Chain {
    todo: VecDeque<Effect>,
    /// A write that is under way.
    writing: Option<Effect>,
}

#[derive(Debug, Default)]
struct Host {
    off: bool,
    disk: Disk,
    runs: bool,
    chains: HashMap<u64, Chain>,
    /// How far its clock is from the true time.
    clock: u64,
    /// The question that it waits for an answer to.
    asking: Option<u64>,
    /// Words that are to be answered when the outcome is known.
    to_answer: Vec<u64>,
}

/// A history.
pub struct World {
    random: u64,
    now: u64,
    next: u64,
    queue: BTreeMap<(u64, u64), Happens>,
    hosts: [Host; 2],
    source: Option<Source>,
    target: Option<Target>,
    link: bool,
    /// The latest run that the server has seen open the disk.
    opened: u64,
    loses: u64,
    slow: u64,
    fails: u64,
    refuses: bool,
    trace: Vec<String>,
}

type Outcome = Result<(), String>;

impl World {
    pub fn new(seed: u64) -> Self {
        let mut this = Self {
            random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5151,
            now: 0,
            next: 0,
            queue: BTreeMap::new(),
            hosts: [Host::default(), Host::default()],
            source: Some(Source::default()),
            target: Some(Target::default()),
            link: true,
            opened: 0,
            loses: 0,
            slow: 0,
            fails: 0,
            refuses: false,
            trace: Vec::new(),
        };
        this.set_up();
        this
    }

    fn set_up(&mut self) {
        // A quarter of the histories has each kind of trouble in full.
        self.loses = [0, 0, 10, 30][self.below(4) as usize];
        self.slow = [3, 30, 300, 600][self.below(4) as usize];
        self.fails = [0, 0, 0, 15][self.below(4) as usize];
        self.refuses = self.below(8) == 0;
        for side in [Side::Source, Side::Target] {
            let clock = self.below(3) * SPAN * 100 + SPAN;
            self.host(side).clock = clock;
        }
        // The VM runs at the source, by a run of its clock's; the run at the target is the next.
        let run = self.host(Side::Source).clock;
        self.opened = run;
        let given = run + SPAN;
        let source = self.host(Side::Source);
        source.disk = Disk { vm: Some(true), run: given, ..Disk::default() };
        source.runs = true;
        let own = self.host(Side::Target).clock;
        let arriving = if hold(Rule::LaterRun) { given } else { own };
        self.host(Side::Target).disk.arrival = Some(arriving);
        let sending = self.below(200);
        self.at(sending + TIMEOUT * 2, Happens::Deadline);
        self.at(sending, Happens::Arrives(Side::Source, Message::State));
        // A source that is lost is noticed, whatever was on its way.
        self.at(sending + TIMEOUT * 3, Happens::Look);
        for _ in 0..self.below(4) {
            let side = self.side();
            let (when, away) = (self.below(PEACE / 2), self.below(800));
            self.at(when, Happens::PowerCut(side));
            self.at(when + away, Happens::PowerOn(side));
        }
        if self.below(3) == 0 {
            let (when, away) = (self.below(1000), self.below(1000));
            self.at(when, Happens::Link(false));
            self.at(when + away, Happens::Link(true));
        }
    }

    /// A number below `limit` (SplitMix64).
    fn below(&mut self, limit: u64) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit.max(1)
    }

    fn side(&mut self) -> Side {
        if self.below(2) == 0 { Side::Source } else { Side::Target }
    }

    fn peace(&self) -> bool {
        self.now >= PEACE
    }

    fn host(&mut self, side: Side) -> &mut Host {
        &mut self.hosts[usize::from(side == Side::Target)]
    }

    fn at(&mut self, after: u64, what: Happens) {
        self.next += 1;
        self.queue.insert((self.now + after, self.next), what);
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn say(&mut self, to: Side, message: Message) {
        let lost = !self.peace() && (!self.link || self.below(100) < self.loses);
        if lost {
            self.trace.push(format!("{}: {message:?} to the {to:?} is lost", self.now));
            return;
        }
        let late = [5, 20, 400][self.below(3) as usize];
        let late = self.below(late) + 1;
        self.at(late, Happens::Arrives(to, message));
    }

    /// Asks or tells, and hears of silence if nothing comes of it.
    fn call(&mut self, from: Side, message: fn(u64) -> Message) {
        let number = self.number();
        self.host(from).asking = Some(number);
        let to = if from == Side::Source { Side::Target } else { Side::Source };
        self.say(to, message(number));
        self.at(TIMEOUT * 4, Happens::NoAnswer(from, number));
    }

    /// Plays the history; whether the guest has moved.
    pub fn play(mut self) -> Result<bool, String> {
        let result = self.run();
        result.map_err(|what| {
            let trace = self.trace.join("\n");
            format!("{what}\n{trace}")
        })
    }

    fn run(&mut self) -> Result<bool, String> {
        while let Some(((now, _), what)) = self.queue.pop_first() {
            self.now = now;
            if now > PEACE + REST {
                return Err("it does not come to rest".into());
            }
            self.happens(what)?;
            self.check()?;
        }
        let [source, target] = &self.hosts;
        let left = (source.disk.vm, target.disk.vm);
        let runs = (source.runs, target.runs);
        let ends = [((Some(true), None), (true, false)), ((None, Some(true)), (false, true))];
        if !ends.contains(&(left, runs)) {
            return Err(format!("at the end records {left:?}, running {runs:?}"));
        }
        if target.disk.arrival.is_some() || target.disk.verdict.is_some() {
            return Err(format!("{:?} is left", target.disk));
        }
        Ok(target.runs)
    }

    /// What holds at every moment.
    fn check(&self) -> Outcome {
        let [source, target] = &self.hosts;
        if source.runs && target.runs {
            return Err("it runs on both".into());
        }
        let arrives = target.disk.arrival.is_some() && target.disk.verdict == Some(true);
        if source.disk.vm.is_none() && target.disk.vm.is_none() && !arrives {
            return Err("no record has it".into());
        }
        Ok(())
    }

    fn happens(&mut self, what: Happens) -> Outcome {
        self.trace.push(format!("{}: {what:?} {:?} {:?}", self.now, self.source, self.target));
        match what {
            Happens::Link(up) => self.link = up,
            Happens::PowerCut(side) => self.power_cut(side),
            Happens::PowerOn(side) => return self.power_on(side),
            Happens::Step(side, chain) if !self.host(side).off => return self.step(side, chain),
            Happens::Arrives(side, message) if !self.host(side).off => {
                return self.arrives(side, message);
            }
            Happens::NoAnswer(side, number) if self.host(side).asking == Some(number) => {
                self.host(side).asking = None;
                match side {
                    Side::Source => return self.source(source::Event::Silence),
                    Side::Target => return self.target(target::Event::Lost),
                }
            }
            Happens::Deadline
                if self.source.is_some_and(|it| it.state() == source::State::Sending) =>
            {
                return self.source(source::Event::Failed);
            }
            Happens::Look => return self.look(),
            _ => {}
        }
        Ok(())
    }

    /// A connection that breaks, or a verdict that is left: the target asks.
    fn look(&mut self) -> Outcome {
        let Some(target) = self.target else { return Ok(()) };
        let asks = self.host(Side::Target).asking.is_some();
        match target.state() {
            target::State::Running
            | target::State::Clearing
            | target::State::Deciding
            | target::State::Opening
            | target::State::Refusing => self.at(TIMEOUT, Happens::Look),
            target::State::Receiving => return self.target(target::Event::Lost),
            _ if asks => self.at(TIMEOUT, Happens::Look),
            _ => return self.target(target::Event::Lost),
        }
        Ok(())
    }

    fn power_cut(&mut self, side: Side) {
        let maybe = self.below(2) == 0;
        let host = self.host(side);
        let cut: Vec<_> = host.chains.drain().filter_map(|(_, chain)| chain.writing).collect();
        host.off = true;
        host.runs = false;
        host.asking = None;
        host.to_answer.clear();
        if maybe {
            for effect in cut {
                self.becomes_durable(side, effect);
            }
        }
        match side {
            Side::Source => self.source = None,
            Side::Target => self.target = None,
        }
    }

    fn power_on(&mut self, side: Side) -> Outcome {
        if !std::mem::replace(&mut self.host(side).off, false) {
            return Ok(());
        }
        let disk = self.host(side).disk;
        match side {
            Side::Source => match disk.vm {
                Some(true) => self.start(Side::Source)?,
                Some(false) => {
                    let (source, effects) = Source::recovered();
                    self.source = Some(source);
                    self.chain(Side::Source, effects.into_iter().map(Effect::Source));
                }
                None => {}
            },
            Side::Target => {
                if let Some((target, effects)) =
                    Target::recovered(disk.arrival.is_some(), disk.verdict)
                {
                    self.target = Some(target);
                    self.chain(Side::Target, effects.into_iter().map(Effect::Target));
                    self.at(TIMEOUT, Happens::Look);
                }
                if disk.vm == Some(true) {
                    self.start(Side::Target)?;
                }
            }
        }
        Ok(())
    }

    /// Has the guest run on a host, by a run that the server must take for a later one.
    fn start(&mut self, side: Side) -> Outcome {
        let host = self.host(side);
        host.disk.run = (host.disk.run + SPAN).max(host.clock);
        host.runs = true;
        let run = host.disk.run;
        self.open(run)
    }

    fn open(&mut self, run: u64) -> Outcome {
        if run <= self.opened {
            return Err(format!("run {run} is not later than {}", self.opened));
        }
        self.opened = run;
        Ok(())
    }

    fn source(&mut self, event: source::Event) -> Outcome {
        let Some(mut source) = self.source else { return Ok(()) };
        let effects = source.apply(event);
        self.source = Some(source);
        self.chain(Side::Source, effects.into_iter().map(Effect::Source));
        Ok(())
    }

    fn target(&mut self, event: target::Event) -> Outcome {
        let Some(mut target) = self.target else { return Ok(()) };
        let effects = target.apply(event);
        self.target = Some(target);
        self.chain(Side::Target, effects.into_iter().map(Effect::Target));
        Ok(())
    }

    fn chain(&mut self, side: Side, effects: impl Iterator<Item = Effect>) {
        let todo: VecDeque<_> = effects.collect();
        if todo.is_empty() {
            return;
        }
        let number = self.number();
        self.host(side).chains.insert(number, Chain { todo, writing: None });
        self.at(0, Happens::Step(side, number));
    }

    /// Ends the write of a chain, or does its next effect.
    fn step(&mut self, side: Side, number: u64) -> Outcome {
        let Some(chain) = self.host(side).chains.get_mut(&number) else { return Ok(()) };
        if let Some(effect) = chain.writing.take() {
            self.at(0, Happens::Step(side, number));
            return self.written(side, effect);
        }
        let Some(effect) = chain.todo.pop_front() else {
            self.host(side).chains.remove(&number);
            return Ok(());
        };
        let writes = matches!(
            effect,
            Effect::Source(source::Effect::Write(_)) | Effect::Target(target::Effect::Write(_))
        );
        if writes {
            chain.writing = Some(effect);
            let slow = if self.peace() { 3 } else { self.slow };
            let takes = self.below(slow) + 1;
            self.at(takes, Happens::Step(side, number));
            return Ok(());
        }
        self.at(0, Happens::Step(side, number));
        match effect {
            Effect::Source(effect) => self.source_does(effect),
            Effect::Target(effect) => self.target_does(effect),
        }
    }

    fn written(&mut self, side: Side, effect: Effect) -> Outcome {
        let good = self.peace() || self.below(100) >= self.fails;
        // What could not be written may be there all the same.
        if good || self.below(2) == 0 {
            self.becomes_durable(side, effect);
        }
        match effect {
            Effect::Source(_) => self.source(source::Event::Written(good))?,
            Effect::Target(target::Effect::Write(target::Record::NoVerdict)) => {
                if good && self.host(Side::Target).disk.arrival.is_none() {
                    // By its records nothing is known of the move any more.
                    self.target = None;
                } else {
                    self.at(TIMEOUT, Happens::Look);
                }
            }
            Effect::Target(_) => {
                self.target(target::Event::Written(good))?;
                let host = self.host(Side::Target);
                let settled = effect == Effect::Target(target::Effect::Write(target::Record::Vm));
                if settled && good && !host.runs {
                    // A start of the host has found it.
                    self.start(Side::Target)?;
                }
            }
        }
        Ok(())
    }

    fn becomes_durable(&mut self, side: Side, effect: Effect) {
        let disk = &mut self.host(side).disk;
        match effect {
            Effect::Source(source::Effect::Write(record)) => {
                disk.vm = match record {
                    source::Record::Running => Some(true),
                    source::Record::HandedOver => Some(false),
                    source::Record::Gone => None,
                };
            }
            Effect::Target(target::Effect::Write(record)) => match record {
                target::Record::Ran => disk.verdict = Some(true),
                target::Record::Refused => disk.verdict = Some(false),
                target::Record::Vm => {
                    disk.vm = Some(true);
                    disk.run = disk.run.max(disk.arrival.unwrap_or(0));
                }
                target::Record::NoArrival => disk.arrival = None,
                target::Record::NoVerdict => disk.verdict = None,
            },
            _ => {}
        }
    }

    fn source_does(&mut self, effect: source::Effect) -> Outcome {
        match effect {
            source::Effect::Give => self.call(Side::Source, Message::Commit),
            source::Effect::Ask => {
                let pause = self.below(100);
                self.at(pause, Happens::Arrives(Side::Source, Message::Query(0)));
            }
            source::Effect::Abort => self.say(Side::Target, Message::Abort),
            source::Effect::LastWord => self.say(Side::Target, Message::LastWord),
            source::Effect::Run if !self.host(Side::Source).runs => {
                return self.start(Side::Source);
            }
            source::Effect::End => self.host(Side::Source).runs = false,
            source::Effect::Run | source::Effect::Write(_) => {}
        }
        Ok(())
    }

    fn target_does(&mut self, effect: target::Effect) -> Outcome {
        match effect {
            target::Effect::SayReady => {
                self.say(Side::Source, Message::Ready);
                let soon = self.below(TIMEOUT * 2);
                self.at(soon, Happens::Look);
            }
            target::Effect::Open => {
                let refused = self.refuses && !self.peace();
                if !refused && let Some(run) = self.host(Side::Target).disk.arrival {
                    self.open(run)?;
                }
                return self.target(target::Event::Opened(!refused));
            }
            target::Effect::Run => self.host(Side::Target).runs = true,
            target::Effect::Answer(runs) => {
                for number in std::mem::take(&mut self.host(Side::Target).to_answer) {
                    self.say(Side::Source, Message::Outcome(number, runs));
                }
                self.at(TIMEOUT * 4, Happens::Look);
            }
            target::Effect::Ask => {
                let pause = self.below(100);
                self.at(pause, Happens::Arrives(Side::Target, Message::Query(0)));
            }
            target::Effect::Drop => self.host(Side::Target).runs = false,
            target::Effect::Write(_) => {}
        }
        Ok(())
    }

    fn arrives(&mut self, side: Side, message: Message) -> Outcome {
        match (side, message) {
            // The time has come to pause the guest and send its state.
            (Side::Source, Message::State) => {
                if self.source.is_some_and(|it| it.state() == source::State::Sending) {
                    self.host(Side::Source).runs = false;
                    self.say(Side::Target, Message::State);
                }
                self.at(TIMEOUT, Happens::Look);
            }
            (Side::Target, Message::State) => return self.target(target::Event::Complete),
            (Side::Source, Message::Ready) => return self.source(source::Event::Ready),
            // The pause before a question is over.
            (Side::Source, Message::Query(0)) => self.call(Side::Source, Message::Query),
            (Side::Target, Message::Query(0)) => self.call(Side::Target, Message::Query),
            (Side::Source, Message::Query(number)) => {
                let standing = self.source.map_or(Standing::Never, Source::standing);
                self.say(Side::Target, Message::Standing(number, standing));
            }
            (Side::Target, Message::Query(number)) => {
                let standing = self.target.map_or(Standing::Never, Target::standing);
                self.say(Side::Source, Message::Standing(number, standing));
            }
            (_, Message::Standing(number, standing)) => {
                if self.host(side).asking.take_if(|it| *it == number).is_none() {
                    return Ok(());
                }
                return match side {
                    Side::Source => self.source(source::Event::Heard(standing)),
                    Side::Target => self.target(target::Event::Heard(standing)),
                };
            }
            (Side::Target, Message::Commit(number)) => {
                match self.target.and_then(Target::outcome) {
                    Some(runs) => self.say(Side::Source, Message::Outcome(number, runs)),
                    None if self.target.is_some() => {
                        self.host(Side::Target).to_answer.push(number);
                        return self.target(target::Event::Heard(Standing::Given));
                    }
                    None => {}
                }
            }
            (Side::Source, Message::Outcome(number, runs)) => {
                if self.host(Side::Source).asking.take_if(|it| *it == number).is_none() {
                    return Ok(());
                }
                let standing = if runs { Standing::Given } else { Standing::Never };
                return self.source(source::Event::Heard(standing));
            }
            (Side::Target, Message::Abort | Message::LastWord) => {
                return self.target(target::Event::Heard(Standing::Never));
            }
            _ => {}
        }
        Ok(())
    }
}

//! One history.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    time::Duration,
};

use super::etcd::Etcd;
use crate::{
    engine::{Effect, Engine, Event, Fence, Now, Outcome, Renewal, Settings, Timing},
    record::{Keys, NodeRecord, Record, Run, Standing, Wish},
    view::View,
};

/// Microseconds in a second.
const SECOND: u64 = 1_000_000;
const ROLES: [&str; 2] = ["a", "b"];

/// What goes wrong beside the usual.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trouble {
    Usual,
    /// The usual, to nodes that are counted dead when they are silent.
    Silence,
    /// A leader that was cut off answers on for a while.
    TwoLeaders,
    /// A node that stands still has a clock that stands still with it.
    StoppedClocks,
}

/// What happens in the world.
#[derive(Debug, Clone)]
enum Happens {
    /// A message of a node has come to etcd.
    Asks(usize, u64, Effect, Duration),
    /// Something comes to a node's engine.
    Comes(usize, u64, Event),
    /// A commit comes to a node's watch.
    Watched(usize, u64, usize),
    /// Whatever ran of a role has ended.
    Ends(usize, u64, String, bool),
    Wakes(usize, u64),
    /// Something goes wrong, or an administrator wants something.
    Strikes,
    Thaws(usize),
    Restarts(usize),
    /// The leader is there, or there again.
    Leads,
    Heals,
}

/// A process that serves a role.
#[derive(Debug)]
struct Child {
    generation: u64,
    /// It goes on until it has ended, which may be a while after it was told to.
    gate: Duration,
}

struct Node {
    engine: Engine,
    /// Counts the lives of the node: what was for an earlier one is lost.
    life: u64,
    alive: bool,
    /// Its engine stands still,
    frozen: bool,
    /// and all the machine with it,
    still: bool,
    /// and its clock.
    clock_stops: bool,
    cut: bool,
    /// Its steady clock is `offset + rate * true time`, less what it stood still.
    offset: u64,
    rate: f64,
    stood: u64,
    frozen_at: u64,
    view: View,
    /// How many commits it has seen.
    watched: usize,
    children: BTreeMap<String, Child>,
    late: Vec<Happens>,
}

pub(super) struct World {
    seed: u64,
    trouble: Trouble,
    fence: Fence,
    now: u64,
    queue: BinaryHeap<Reverse<(u64, u64)>>,
    happens: BTreeMap<u64, Happens>,
    count: u64,
    etcd: Etcd,
    /// It has a leader that a quorum follows.
    led: bool,
    /// When the leader before it was cut off.
    deposed: u64,
    nodes: Vec<Node>,
    healthy: bool,
    keys: Keys,
    newest: BTreeMap<String, u64>,
}

fn steady(node: &Node, now: u64) -> Duration {
    let now = if node.frozen && node.clock_stops { node.frozen_at } else { now };
    let run = (now as f64 * node.rate) as u64;
    Duration::from_micros((node.offset + run).saturating_sub(node.stood))
}

impl World {
    pub(super) fn new(seed: u64, fence: Fence, trouble: Trouble) -> Self {
        let keys = Keys::new("c");
        let mut world = Self {
            seed: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            trouble,
            fence,
            now: 0,
            queue: BinaryHeap::new(),
            happens: BTreeMap::new(),
            count: 0,
            etcd: Etcd::default(),
            led: true,
            deposed: 0,
            nodes: Vec::new(),
            healthy: false,
            keys: keys.clone(),
            newest: BTreeMap::new(),
        };
        for number in 1..=3 {
            world.etcd.put(keys.node(number), NodeRecord::default().to_bytes());
        }
        for at in 0..3 {
            let (offset, rate) = (world.below(1000 * SECOND), world.below(81) as f64 / 1000.0);
            let node = Node {
                engine: Engine::new(world.settings(at)),
                life: 0,
                alive: true,
                frozen: false,
                still: false,
                clock_stops: trouble == Trouble::StoppedClocks,
                cut: false,
                offset,
                rate: 0.96 + rate,
                stood: 0,
                frozen_at: 0,
                view: View::new(keys.clone()),
                watched: 0,
                children: BTreeMap::new(),
                late: Vec::new(),
            };
            world.nodes.push(node);
            world.begin(at);
        }
        for _ in 0..4 {
            let at = world.below(20 * SECOND) + SECOND;
            world.at(at, Happens::Strikes);
        }
        world.at(26 * SECOND, Happens::Heals);
        world
    }

    fn settings(&self, at: usize) -> Settings {
        Settings {
            node: at as u16 + 1,
            name: format!("n{at}"),
            version: "1".into(),
            roles: ROLES.iter().map(|role| ((*role).to_owned(), vec![])).collect(),
            timing: Timing {
                silence: (self.trouble == Trouble::Silence).then_some(Duration::from_secs(1)),
                ..Timing::of_lease(3)
            },
            fence: self.fence,
            keys: self.keys.clone(),
            reach: None,
        }
    }

    fn random(&mut self) -> u64 {
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        self.seed.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11
    }

    fn below(&mut self, most: u64) -> u64 {
        self.random() % most.max(1)
    }

    fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }

    fn at(&mut self, at: u64, what: Happens) {
        self.count += 1;
        self.happens.insert(self.count, what);
        self.queue.push(Reverse((at.max(self.now), self.count)));
    }

    /// A short time, which is long once in a while.
    fn soon(&mut self) -> u64 {
        let most = if !self.healthy && self.one_in(20) { 1_500_000 } else { 4000 };
        self.now + 200 + self.below(most)
    }

    /// A node begins to run: it lists what there is.
    fn begin(&mut self, at: usize) {
        let engine = Engine::new(self.settings(at));
        let node = &mut self.nodes[at];
        node.life += 1;
        (node.alive, node.engine, node.watched) = (true, engine, self.etcd.commits.len());
        node.view = View::new(self.keys.clone());
        node.view.revision = self.etcd.revision;
        for (key, value, revision) in self.etcd.all() {
            node.view.take(&key, Some(&value), revision).unwrap();
        }
        let (life, view) = (node.life, Box::new(node.view.clone()));
        let soon = self.soon();
        self.at(soon, Happens::Comes(at, life, Event::Seen(view)));
        for (key, value, revision) in self.etcd.all() {
            if let Some(run) = self.pulse(&key, &value) {
                self.at(soon, Happens::Comes(at, life, Event::Heard { run, revision }));
            }
        }
        self.at(soon, Happens::Wakes(at, life));
    }

    /// Whose pulse a key is, if it is one.
    fn pulse(&self, key: &str, value: &[u8]) -> Option<Run> {
        let node = key.strip_prefix(self.keys.pulses())?.parse().ok()?;
        Some(Run { node, lease: std::str::from_utf8(value).ok()?.parse().ok()? })
    }

    pub(super) fn play(mut self) -> Result<(), String> {
        while let Some(Reverse((at, number))) = self.queue.pop() {
            self.now = at;
            let before = self.etcd.commits.len();
            if self.led {
                self.etcd.expire(at);
            }
            if self.etcd.commits.len() > before {
                self.tell();
            }
            let what = self.happens.remove(&number).expect("it was put there");
            let end = at > 60 * SECOND;
            self.happen(what);
            self.look()?;
            if end {
                break;
            }
        }
        for role in ROLES {
            let serving = self.nodes.iter().filter(|node| node.children.contains_key(role)).count();
            if serving != 1 {
                return Err(format!("{serving} nodes serve {role} long after all is well"));
            }
        }
        Ok(())
    }

    /// Whether two could change the same now, or one could that served it before another.
    fn look(&self) -> Result<(), String> {
        for role in ROLES {
            let mut open = Vec::new();
            for (at, node) in self.nodes.iter().enumerate() {
                let Some(child) = node.children.get(role).filter(|_| node.alive) else { continue };
                let still = node.frozen && node.still;
                if !still && steady(node, self.now) < child.gate {
                    open.push((at, child.generation));
                }
            }
            let newest = self.newest.get(role).copied().unwrap_or(0);
            let late = open.iter().any(|(_, generation)| *generation < newest);
            if open.len() > 1 || late {
                let now = self.now as f64 / SECOND as f64;
                return Err(format!("at {now}: {role} by {open:?}, the newest is {newest}"));
            }
        }
        Ok(())
    }

    fn happen(&mut self, what: Happens) {
        match what {
            Happens::Asks(at, life, effect, sent) => self.asked((at, life), effect, sent),
            Happens::Comes(at, life, event) => {
                if self.nodes[at].life == life && self.nodes[at].alive {
                    if self.nodes[at].frozen {
                        self.nodes[at].late.push(Happens::Comes(at, life, event));
                    } else {
                        self.engine(at, event);
                    }
                }
            }
            Happens::Watched(at, life, upto) => self.watched(at, life, upto),
            Happens::Ends(at, life, role, orderly) => {
                let node = &mut self.nodes[at];
                if node.life != life || !node.alive {
                    return;
                }
                if node.frozen && orderly {
                    node.late.push(Happens::Ends(at, life, role, orderly));
                    return;
                }
                node.children.remove(&role);
                let event = Event::Stopped(role);
                self.happen(Happens::Comes(at, life, event));
            }
            Happens::Wakes(at, life) => {
                if self.nodes[at].life == life && self.nodes[at].alive {
                    if !self.nodes[at].frozen {
                        self.engine(at, Event::Tick);
                    }
                    // By its own clock, which may be late.
                    let until = self.nodes[at].engine.wake();
                    let wait = until.saturating_sub(steady(&self.nodes[at], self.now));
                    let wait = (wait.as_micros() as u64).clamp(1000, SECOND / 4);
                    let late = self.below(2000);
                    self.at(self.now + wait + late, Happens::Wakes(at, life));
                }
            }
            Happens::Strikes => {
                if !self.healthy {
                    self.strike();
                }
            }
            Happens::Thaws(at) => self.thaw(at),
            Happens::Restarts(at) => {
                if !self.nodes[at].alive {
                    self.begin(at);
                }
            }
            Happens::Leads => {
                if !self.led {
                    self.led = true;
                    self.etcd.elect(self.now);
                }
            }
            Happens::Heals => {
                self.healthy = true;
                self.happen(Happens::Leads);
                for at in 0..self.nodes.len() {
                    self.nodes[at].cut = false;
                    self.thaw(at);
                    self.happen(Happens::Restarts(at));
                    self.etcd.put(self.keys.node(at as u16 + 1), NodeRecord::default().to_bytes());
                }
                self.tell();
            }
        }
    }

    fn engine(&mut self, at: usize, event: Event) {
        let now = Now { steady: steady(&self.nodes[at], self.now), wall: self.now / 1000 };
        for effect in self.nodes[at].engine.on(now, event) {
            self.effect(at, effect);
        }
    }

    fn effect(&mut self, at: usize, effect: Effect) {
        let life = self.nodes[at].life;
        match effect {
            Effect::Gate(until) => {
                let children = self.nodes[at].children.values_mut();
                children.for_each(|child| child.gate = until);
            }
            Effect::Start { role, generation, .. } => {
                let gate = self.nodes[at].engine.gate();
                let newest = self.newest.entry(role.clone()).or_default();
                *newest = generation.max(*newest);
                self.nodes[at].children.insert(role.clone(), Child { generation, gate });
                let soon = self.soon();
                self.at(soon, Happens::Comes(at, life, Event::Started(role)));
            }
            Effect::Stop { role, orderly } => {
                let most = if orderly { SECOND } else { 20_000 };
                let when = self.now + 500 + self.below(most);
                self.at(when, Happens::Ends(at, life, role, orderly));
            }
            Effect::Left => {}
            effect => {
                let (soon, sent) = (self.soon(), steady(&self.nodes[at], self.now));
                self.at(soon, Happens::Asks(at, life, effect, sent));
            }
        }
    }

    /// What a node asks for has come to etcd, or to its agent.
    fn asked(&mut self, (at, life): (usize, u64), effect: Effect, sent: Duration) {
        let lost = self.nodes[at].cut || !self.led || !self.healthy && self.one_in(40);
        let half = !self.healthy && self.one_in(40);
        let now = self.now;
        let event = match effect {
            Effect::Grant(ttl) if !lost => {
                let micros = ttl.as_micros() as u64;
                let lease = self.etcd.grant(now, micros);
                if half { Event::NotGranted } else { Event::Granted { lease, ttl, sent } }
            }
            Effect::Grant(_) => Event::NotGranted,
            Effect::Renew(lease) => {
                let term = self.etcd.term;
                let deposed = self.trouble == Trouble::TwoLeaders
                    && self.deposed > 0
                    && now < self.deposed + 2 * SECOND
                    && self.led
                    && at == 0;
                match self.etcd.ttl(lease) {
                    Some(ttl) if deposed => Event::Renewed(Renewal {
                        lease,
                        ttl: Duration::from_micros(ttl),
                        sent,
                        term: term - 1,
                        quorum_term: term,
                    }),
                    _ if lost || half => {
                        if !lost {
                            self.etcd.renew(now, lease);
                        }
                        Event::NotRenewed
                    }
                    Some(ttl) => {
                        self.etcd.renew(now, lease);
                        let ttl = Duration::from_micros(ttl);
                        let renewal = Renewal { lease, ttl, sent, term, quorum_term: term };
                        Event::Renewed(renewal)
                    }
                    None => Event::Gone(lease),
                }
            }
            Effect::Pulse(lease) => {
                let outcome = if lost { Outcome::Unknown } else { self.pulses(at, lease) };
                if lost && !self.nodes[at].cut && self.one_in(2) {
                    let later = self.now + self.below(3 * SECOND);
                    self.at(later, Happens::Asks(at, life, Effect::Pulse(lease), sent));
                }
                let outcome = if half { Outcome::Unknown } else { outcome };
                Event::Pulsed { lease, sent, outcome }
            }
            Effect::Revoke(lease) => {
                if !lost {
                    self.etcd.revoke(lease);
                    self.tell();
                }
                return;
            }
            Effect::Transact(transaction) => {
                let id = transaction.id;
                let outcome =
                    if lost { Outcome::Unknown } else { self.etcd.transact(transaction.clone()) };
                if lost && !self.nodes[at].cut && self.one_in(2) {
                    // Nobody has answered, and it is carried out later all the same.
                    let later = self.now + self.below(3 * SECOND);
                    let again = Effect::Transact(transaction);
                    self.at(later, Happens::Asks(at, life, again, sent));
                }
                self.tell();
                Event::Done { id, outcome: if half { Outcome::Unknown } else { outcome } }
            }
            Effect::Fence(run) => self.fence(run),
            _ => return,
        };
        let mut soon = self.soon();
        if matches!(event, Event::NotRenewed | Event::NotGranted)
            || matches!(event, Event::Pulsed { outcome: Outcome::Unknown, .. })
        {
            soon += 300_000;
        }
        if !self.healthy && self.one_in(20) {
            let again = self.soon();
            self.at(again, Happens::Comes(at, life, event.clone()));
        }
        self.at(soon, Happens::Comes(at, life, event));
    }

    fn pulses(&mut self, at: usize, lease: i64) -> Outcome {
        let node = at as u16 + 1;
        let outcome = self.etcd.pulse(&self.keys.member(node), self.keys.pulse(node), lease);
        self.tell();
        outcome
    }

    /// An agent ends the run of a node, if it can.
    fn fence(&mut self, run: Run) -> Event {
        if !self.healthy && self.one_in(3) {
            return Event::Fenced(run, Err("no answer".into()));
        }
        let at = usize::from(run.node) - 1;
        self.kill(at);
        Event::Fenced(run, Ok(()))
    }

    fn kill(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        if node.alive {
            (node.alive, node.frozen) = (false, false);
            node.children.clear();
            node.late.clear();
            let back = self.now + 100_000 + self.below(6 * SECOND);
            self.at(back, Happens::Restarts(at));
        }
    }

    /// What was committed is on its way to those who watch.
    fn tell(&mut self) {
        for at in 0..self.nodes.len() {
            let (life, upto) = (self.nodes[at].life, self.etcd.commits.len());
            let soon = self.soon();
            self.at(soon, Happens::Watched(at, life, upto));
        }
    }

    fn watched(&mut self, at: usize, life: u64, upto: usize) {
        let node = &mut self.nodes[at];
        if node.life != life || !node.alive {
            return;
        }
        if node.cut || node.frozen {
            let later = self.now + 50_000;
            self.at(later, Happens::Watched(at, life, upto));
            return;
        }
        if node.watched >= upto {
            return;
        }
        let (from, mut events) = (node.watched, Vec::new());
        for (revision, changes) in &self.etcd.commits[from..upto] {
            for (key, value) in changes {
                node.view.take(key, value.as_deref(), *revision).unwrap();
            }
        }
        node.watched = upto;
        events.push(Event::Seen(Box::new(node.view.clone())));
        for (revision, changes) in &self.etcd.commits[from..upto] {
            for (key, value) in changes {
                if let Some(run) = value.as_deref().and_then(|value| self.pulse(key, value)) {
                    events.push(Event::Heard { run, revision: *revision });
                }
            }
        }
        // They come by two ways.
        if self.one_in(2) {
            events.rotate_left(1);
        }
        events.into_iter().for_each(|event| self.engine(at, event));
    }

    fn thaw(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        if !node.frozen {
            return;
        }
        if node.clock_stops {
            node.stood += ((self.now - node.frozen_at) as f64 * node.rate) as u64;
        }
        node.frozen = false;
        for happens in std::mem::take(&mut node.late) {
            let soon = self.now + self.below(1000);
            self.at(soon, happens);
        }
    }

    fn strike(&mut self) {
        let at = self.below(self.nodes.len() as u64) as usize;
        let long = 100_000 + self.below(7 * SECOND);
        match self.below(8) {
            0 => self.kill(at),
            1 | 2 => {
                let still = self.trouble == Trouble::StoppedClocks || self.one_in(2);
                let node = &mut self.nodes[at];
                if node.alive && !node.frozen {
                    node.still = still;
                    (node.frozen, node.frozen_at) = (true, self.now);
                    self.at(self.now + long, Happens::Thaws(at));
                }
            }
            3 => {
                self.nodes[at].cut = true;
                // Until somebody else is struck so, or all is well.
                self.nodes[(at + 1) % 3].cut = false;
            }
            4 | 5 => {
                self.led = false;
                self.deposed = self.now;
                let long = if self.trouble == Trouble::TwoLeaders { SECOND } else { long };
                self.at(self.now + long, Happens::Leads);
                if self.trouble == Trouble::TwoLeaders {
                    // The node that asks the old leader is cut off soon after.
                    let when = self.now + SECOND + self.below(SECOND);
                    self.at(when, Happens::Strikes);
                }
            }
            6 => {
                let wish = Wish { node: at as u16 + 1, reason: String::new() };
                let role = ROLES[self.below(2) as usize];
                self.etcd.put(self.keys.wish(role), wish.to_bytes());
                self.tell();
            }
            _ => {
                let standings = [Standing::Draining, Standing::Up, Standing::Paused];
                let standing = standings[self.below(3) as usize];
                let node = NodeRecord { standing, ..NodeRecord::default() };
                self.etcd.put(self.keys.node(at as u16 + 1), node.to_bytes());
                self.tell();
            }
        }
    }
}

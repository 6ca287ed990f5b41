//! All paths to one logical unit: which is taken for a command, and what becomes of a command whose
//! path is lost.
//!
//! ```text
//!  run ─► pick (best ALUA rank, round robin) ─► Link ─► reply ─► judge ─► done
//!           ▲                                     │               │ attention, busy, aborted
//!           └────────── lost, or again ───────────┴───────────────┘
//!  keep: one task for each path: connect, log in, look at the unit, publish; again when it ends
//! ```
//! A command whose answer is lost is repeated until `reconnect_time` is over. The session that is
//! made anew on a path has the name of the one that was lost, so the target ends the old one with all
//! its tasks before it begins (RFC 7143 6.3.5): no late copy lands after the repetition.

use std::{
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout_at},
};

use super::{
    Options,
    error::{InitiatorError, chain},
    exchange::{Command, Lost, Reply, Times},
    link::{Link, log_in},
    login::Purpose,
    sense::{SenseData, code, key},
    unit::{Asker, Facts, UNUSED},
};

/// Between attempts to reach a portal: at first, and at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// Before a command is repeated that the unit could not take.
const BUSY: Duration = Duration::from_millis(20);
/// Unit attentions that one command may meet.
const ATTENTIONS: usize = 64;
/// For how long a login may take: at first at least, and at most. The system of a node that stands still
/// takes connections, and nobody there answers; when its address has gone to another node, only a new
/// connection finds it.
const LOGIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(15));

/// Whether a command whose answer is lost is repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Repeat {
    /// Its repetition changes nothing.
    Always,
    /// Its repetition could do it twice.
    Never,
}

/// A path that leads to the unit.
#[derive(Debug)]
pub(super) struct Up {
    pub link: Link,
    rank: AtomicU8,
    group: Option<u16>,
    pub index: usize,
}

#[derive(Debug, Default)]
struct Path {
    up: RwLock<Option<Arc<Up>>>,
    error: Mutex<Option<InitiatorError>>,
    /// Attempts that came to their end.
    tries: AtomicU64,
}

/// All paths to a unit.
#[derive(Debug)]
pub(super) struct Paths {
    options: Options,
    lun: [u8; 8],
    paths: Vec<Path>,
    turn: AtomicUsize,
    changed: watch::Sender<u64>,
    /// What the unit was when the first path led to it.
    facts: RwLock<Option<Facts>>,
    pub(super) size: watch::Sender<u64>,
    /// The key under which all paths are registered, and those that are (SPC-4 5.13.7).
    pub(super) registered: Mutex<(Option<u64>, Vec<usize>)>,
    closed: std::sync::atomic::AtomicBool,
}

fn locked<T>(lock: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Paths {
    pub fn new(options: Options, lun: [u8; 8]) -> Self {
        let paths = options.portals.iter().map(|_| Path::default()).collect();
        Self {
            options,
            lun,
            paths,
            turn: AtomicUsize::new(0),
            changed: watch::channel(0).0,
            facts: RwLock::default(),
            size: watch::channel(0).0,
            registered: Mutex::default(),
            closed: false.into(),
        }
    }

    pub fn options(&self) -> &Options {
        &self.options
    }

    /// What the unit is; nothing before the first path led to it.
    pub fn facts(&self) -> Option<Facts> {
        self.facts.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A command for the unit.
    pub fn command(&self, cdb: [u8; 16], out: bytes::Bytes, read: u32) -> Command {
        Command { lun: self.lun, cdb, out, read, time: self.options.command_time }
    }

    pub fn asker<'a>(&self, link: &'a Link) -> Asker<'a> {
        let time = self.options.command_time;
        Asker { link, lun: self.lun, number: self.options.lun, time }
    }

    /// All paths that lead to the unit now.
    pub fn all_up(&self) -> Vec<Arc<Up>> {
        let up = |path: &Path| path.up.read().unwrap_or_else(PoisonError::into_inner).clone();
        self.paths.iter().filter_map(up).filter(|up| !up.link.is_closed()).collect()
    }

    fn pick(&self) -> Option<Arc<Up>> {
        let all = self.all_up();
        let best = all.iter().map(|up| up.rank.load(Ordering::Relaxed)).min()?;
        let same = all.iter().filter(|up| up.rank.load(Ordering::Relaxed) == best);
        let count = same.clone().count();
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) % count.max(1);
        same.clone().nth(turn).cloned()
    }

    fn tell(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    /// What keeps the paths that lead nowhere from it.
    pub fn failures(&self) -> Vec<InitiatorError> {
        self.paths.iter().filter_map(|path| locked(&path.error).clone()).collect()
    }

    /// Waits until one path leads to the unit, or all have been tried in vain.
    ///
    /// # Errors
    /// Why the first leads nowhere.
    pub async fn first(&self) -> Result<Facts, InitiatorError> {
        let mut changed = self.changed.subscribe();
        loop {
            if !self.all_up().is_empty()
                && let Some(facts) = self.facts()
            {
                return Ok(facts);
            }
            if self.paths.iter().all(|path| path.tries.load(Ordering::Acquire) > 0)
                && let Some(error) = self.failures().into_iter().next()
            {
                return Err(error);
            }
            if changed.changed().await.is_err() {
                return Err(InitiatorError::Closed);
            }
        }
    }

    /// Takes no more commands, and lets go of all paths, which log out.
    pub async fn close(&self) {
        self.closed.store(true, Ordering::Release);
        let all = self.all_up();
        for path in &self.paths {
            *path.up.write().unwrap_or_else(PoisonError::into_inner) = None;
        }
        self.tell();
        for up in all {
            let link = up.link.clone();
            drop(up);
            let ended = link.into_ended();
            super::link::ended(ended).await;
        }
    }

    /// Carries out a command on the best path, again where that is possible and needed.
    ///
    /// # Errors
    /// [`InitiatorError`]: what the unit says, or that it cannot be reached.
    pub async fn run(&self, command: Command, repeat: Repeat) -> Result<Reply, InitiatorError> {
        let mut attentions = 0;
        let mut until: Option<Instant> = None;
        loop {
            if self.closed.load(Ordering::Acquire) {
                return Err(InitiatorError::Closed);
            }
            let mut changed = self.changed.subscribe();
            let limit = until.unwrap_or_else(|| Instant::now() + self.options.reconnect_time);
            let Some(up) = self.pick() else {
                until = Some(limit);
                if timeout_at(limit, changed.changed()).await.is_err() {
                    let why = self.failures().iter().map(|it| chain(it)).collect::<Vec<_>>();
                    return Err(InitiatorError::Unreachable(why.join("; ")));
                }
                continue;
            };
            let outcome = up.link.run(command.clone()).await;
            let reply = match outcome {
                Ok(reply) => reply,
                Err(lost) => {
                    until = Some(limit);
                    if repeat == Repeat::Never {
                        return Err(InitiatorError::InDoubt);
                    }
                    if Instant::now() >= limit {
                        return Err(InitiatorError::TimedOut(self.options.reconnect_time));
                    }
                    if lost == Lost::Connection && !up.link.is_closed() {
                        up.link.closed().await;
                    }
                    continue;
                }
            };
            let pause = match self.judge(&reply, &up).await? {
                Verdict::Done => return Ok(reply),
                Verdict::Attention => {
                    attentions += 1;
                    (attentions > ATTENTIONS).then_some(BUSY)
                }
                Verdict::Later => Some(BUSY),
            };
            if let Some(pause) = pause {
                until = Some(limit);
                if Instant::now() >= limit {
                    let sense = SenseData::read(&reply.sense);
                    return Err(sense.map_or(InitiatorError::Status(reply.status), |sense| {
                        InitiatorError::Sense(sense)
                    }));
                }
                sleep(pause).await;
            }
        }
    }

    async fn judge(&self, reply: &Reply, up: &Arc<Up>) -> Result<Verdict, InitiatorError> {
        if reply.failed {
            return Ok(Verdict::Later);
        }
        match reply.status {
            // GOOD, CONDITION MET.
            0x00 | 0x04 => return Ok(Verdict::Done),
            0x02 => {}
            // BUSY, TASK SET FULL, TASK ABORTED, ACA ACTIVE.
            0x08 | 0x28 | 0x30 | 0x40 => return Ok(Verdict::Later),
            0x18 => return Err(InitiatorError::ReservationConflict),
            status => return Err(InitiatorError::Status(status)),
        }
        let Some(sense) = SenseData::read(&reply.sense) else {
            return Err(InitiatorError::Status(reply.status));
        };
        match (sense.key, sense.code) {
            // NO SENSE and RECOVERED ERROR: it was done.
            (0 | 1, _) => Ok(Verdict::Done),
            (key::UNIT_ATTENTION, code) => {
                self.attention(code, up).await?;
                Ok(Verdict::Attention)
            }
            (key::NOT_READY, code::BECOMING_READY | code::TRANSITIONING) => {
                self.refresh(up).await;
                Ok(Verdict::Later)
            }
            (key::NOT_READY, code::STANDBY | code::UNAVAILABLE) => {
                up.rank.store(UNUSED + 1, Ordering::Relaxed);
                self.refresh(up).await;
                Ok(Verdict::Later)
            }
            (key::ABORTED_COMMAND, _) => Ok(Verdict::Later),
            (key::MISCOMPARE, _) => Err(InitiatorError::Miscompare(sense.information)),
            _ => Err(InitiatorError::Sense(sense)),
        }
    }

    async fn attention(&self, code: u16, up: &Arc<Up>) -> Result<(), InitiatorError> {
        tracing::debug!(code = format!("{code:#06x}"), "unit attention");
        match code {
            code::CAPACITY_CHANGED => {
                // Whoever loses the path meanwhile asks again when there is one.
                if let Ok(capacity) = self.asker(&up.link).capacity().await {
                    self.size.send_replace(capacity.bytes());
                }
            }
            code::ACCESS_CHANGED => self.refresh(up).await,
            // Who took the registration away must not meet it again.
            code::RESERVATIONS_PREEMPTED | code::REGISTRATIONS_PREEMPTED => {
                *locked(&self.registered) = (None, Vec::new());
            }
            _ => {}
        }
        Ok(())
    }

    /// Asks again how good the paths are. Each path is told of a change by an attention of its own,
    /// but one that is not used never meets it.
    async fn refresh(&self, up: &Arc<Up>) {
        if up.group.is_none() {
            return;
        }
        let Ok(ranks) = self.asker(&up.link).ranks().await else { return };
        for path in self.all_up() {
            if let Some((_, rank)) = ranks.iter().find(|(group, _)| Some(*group) == path.group) {
                path.rank.store(*rank, Ordering::Relaxed);
            }
        }
    }

    /// Keeps one path, until it is dropped.
    pub async fn keep(self: Arc<Self>, index: usize) {
        let first = LOGIN.0.max(self.options.keep_alive).min(LOGIN.1);
        let (mut pause, mut login) = (PAUSES.0, first);
        while !self.closed.load(Ordering::Acquire) {
            let path = &self.paths[index];
            match self.open(index, login).await {
                Ok(_) if self.closed.load(Ordering::Acquire) => {}
                Ok(up) => {
                    (pause, login) = (PAUSES.0, first);
                    let link = up.link.clone();
                    *locked(&path.error) = None;
                    *path.up.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(up));
                    path.tries.fetch_add(1, Ordering::Release);
                    self.tell();
                    // Holding it would keep the connection from its logout.
                    let ended = link.into_ended();
                    super::link::ended(ended).await;
                    *path.up.write().unwrap_or_else(PoisonError::into_inner) = None;
                    self.tell();
                }
                Err(error) => {
                    tracing::debug!(portal = %self.options.portals[index], error = %chain(&error), "a path leads nowhere");
                    *locked(&path.error) = Some(error);
                    path.tries.fetch_add(1, Ordering::Release);
                    self.tell();
                    sleep(pause).await;
                    pause = (pause * 2).min(PAUSES.1);
                    login = (login * 2).min(LOGIN.1);
                }
            }
        }
    }

    async fn open(&self, index: usize, login: Duration) -> Result<Up, InitiatorError> {
        let options = &self.options;
        let portal = options.portals[index].clone();
        let purpose = Purpose {
            portal: portal.clone(),
            name: options.name.clone(),
            target: Some(options.target.clone()),
            isid: isid_of(options.isid, index),
            chap: options.chap.clone(),
            mutual: options.mutual.clone(),
            header_digest: options.header_digest,
            data_digest: options.data_digest,
            old_hashes: false,
        };
        let wire = log_in(&purpose, login.min(options.reconnect_time.max(LOGIN.0))).await?;
        let times = Times {
            keep_alive: options.keep_alive,
            function: options.command_time.min(Duration::from_secs(10)),
        };
        let link = Link::start(wire, times, options.queue, portal);
        let asker = self.asker(&link);
        let facts = asker.look().await?;
        let (has_groups, group) = (facts.has_groups, facts.group);
        self.settle(facts)?;
        let group = group.filter(|_| has_groups);
        let rank = match group {
            Some(group) => {
                let ranks = asker.ranks().await.unwrap_or_default();
                ranks.iter().find(|(id, _)| *id == group).map_or(0, |(_, rank)| *rank)
            }
            None => 0,
        };
        self.join_registration(&link, index).await?;
        Ok(Up { link, rank: AtomicU8::new(rank), group, index })
    }

    /// Checks that a path leads to the same unit as all others.
    fn settle(&self, facts: Facts) -> Result<(), InitiatorError> {
        let mut known = self.facts.write().unwrap_or_else(PoisonError::into_inner);
        match &*known {
            Some(known) if known.identity != facts.identity => {
                let what = "a path leads to another logical unit than before";
                Err(InitiatorError::Unusable(what.to_owned()))
            }
            Some(known) if known.capacity.block != facts.capacity.block => {
                let what = "its blocks are of another size than before";
                Err(InitiatorError::Unusable(what.to_owned()))
            }
            Some(_) => {
                self.size.send_replace(facts.capacity.bytes());
                Ok(())
            }
            None => {
                self.size.send_replace(facts.capacity.bytes());
                *known = Some(facts);
                Ok(())
            }
        }
    }
}

enum Verdict {
    Done,
    Attention,
    Later,
}

/// The session identifier of a path: paths may lead to one portal group, which knows no two sessions
/// of one identifier (RFC 7143 4.4.3).
fn isid_of(mut isid: [u8; 6], index: usize) -> [u8; 6] {
    let low = u16::from_be_bytes([isid[4], isid[5]]);
    let low = low.wrapping_add(u16::try_from(index).unwrap_or(u16::MAX));
    isid[4..].copy_from_slice(&low.to_be_bytes());
    isid
}

//! Memory balloon (virtio 1.2 §5.5): a guest's pages that its host has back, for as long as the guest
//! leaves them.
//!
//! ```text
//!  queue 0  inflate    pages that the guest has taken for the balloon ─► given back
//!  queue 1  deflate    pages that it takes again: they are there when they are touched
//!  queue 2  statistics the host keeps the request until it wants to know more
//!  queue 3  reporting  free memory, as ranges that the guest does not use until it is answered ─► given back
//! ```
//!
//! A page that is given back reads as zeros and costs nothing until the guest writes to it. While a machine
//! is being moved that is sound without more: what the guest wrote before is in the dirty log and what it
//! writes after is again, and of a page that it gave away it may expect nothing. A driver that must find
//! its own pattern in free pages (VIRTIO_BALLOON_F_PAGE_POISON, which is not offered) does not report any.

pub mod wire;

use std::{
    ops::Range,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::EventFd;

use self::wire::{LIST_MOST, STATISTICS_MOST, Statistics};
use super::{
    Backend, Drain, QueueIo, SavedDevice, Turn, Worker,
    chain::Chain,
    worker::{Served, Source, serve_in_turn, wake},
};
use crate::platform::{
    bus::lock,
    error::Error,
    memory::{GuestRam, PAGE, give_back},
};

/// `VIRTIO_BALLOON_F_STATS_VQ`.
const F_STATISTICS: u64 = 1 << 1;
/// `VIRTIO_BALLOON_F_DEFLATE_ON_OOM`: a guest that has no memory left takes its pages without asking.
const F_DEFLATE_ON_OOM: u64 = 1 << 2;
/// `VIRTIO_BALLOON_F_PAGE_REPORTING`.
const F_REPORTING: u64 = 1 << 5;

/// Offset and length of what the driver writes in the configuration: how large its balloon is.
const ACTUAL: usize = 4;
/// Bytes that are given back before others have their turn.
const STEP: u64 = 16 << 20;

/// How large the balloon is, in pages, and what its guest tells.
#[derive(Debug, Default)]
struct State {
    /// As its host wants it.
    target: u32,
    /// As its driver says that it is.
    actual: [u8; 4],
    statistics: Statistics,
    /// How often statistics have come.
    told: u64,
    /// Statistics are wanted.
    wanted: bool,
    /// Told when they are.
    wake: Option<EventFd>,
}

/// The balloon of a machine.
#[derive(Debug)]
pub struct Balloon {
    /// Pages that the machine has.
    pages: u32,
    state: Mutex<State>,
    came: Condvar,
    inflated: AtomicU64,
    reported: AtomicU64,
}

/// How a balloon stands, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Standing {
    /// What the host wants it to have.
    pub target: u64,
    /// What it has, as the guest says.
    pub actual: u64,
    /// Given back since the machine is here because the balloon grew; the guest may have it again.
    pub inflated: u64,
    /// Given back since then because the guest does not use it; likewise.
    pub reported: u64,
    /// What the guest has told last of its memory.
    pub statistics: Statistics,
}

/// What of a balloon is moved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedBalloon {
    target: u32,
    actual: u32,
}

impl Balloon {
    /// An empty one of a machine that has so many bytes.
    pub fn new(memory: u64) -> Self {
        Self {
            pages: u32::try_from(memory / PAGE).unwrap_or(u32::MAX),
            state: Mutex::default(),
            came: Condvar::new(),
            inflated: AtomicU64::new(0),
            reported: AtomicU64::new(0),
        }
    }

    /// Wants it to have so many bytes, as whole pages and no more than the machine has; whether the
    /// driver is to be told of a change.
    pub fn set_target(&self, bytes: u64) -> bool {
        let pages = u32::try_from(bytes / PAGE).unwrap_or(u32::MAX).min(self.pages);
        std::mem::replace(&mut lock(&self.state).target, pages) != pages
    }

    /// How it stands. A driver is asked for statistics first, and has `patience` to tell them.
    pub fn standing(&self, patience: Duration) -> Standing {
        let mut state = lock(&self.state);
        if let Some(wake) = &state.wake {
            // Only a counter at its maximum refuses, and that wakes as well.
            let _ = wake.write(1);
            state.wanted = true;
            let (seen, deadline) = (state.told, Instant::now() + patience);
            while state.told == seen {
                let Some(left) = deadline.checked_duration_since(Instant::now()) else { break };
                let waited = self.came.wait_timeout(state, left);
                state = waited.unwrap_or_else(|poison| poison.into_inner()).0;
            }
        }
        let bytes = |pages: u32| u64::from(pages.min(self.pages)) * PAGE;
        Standing {
            target: bytes(state.target),
            actual: bytes(u32::from_le_bytes(state.actual)),
            inflated: self.inflated.load(Ordering::Relaxed),
            reported: self.reported.load(Ordering::Relaxed),
            statistics: state.statistics,
        }
    }

    /// Takes statistics that have come.
    fn told(&self, chain: &Chain, mem: &GuestRam) {
        let mut bytes = vec![0; chain.readable_len().min(STATISTICS_MOST) as usize];
        if chain.read(mem, 0, &mut bytes).is_ok() {
            let mut state = lock(&self.state);
            state.statistics = Statistics::parse(&bytes);
            state.told += 1;
            self.came.notify_all();
        }
    }

    /// Whether statistics are wanted, which is asked once.
    fn is_wanted(&self) -> bool {
        std::mem::take(&mut lock(&self.state).wanted)
    }
}

impl Backend for Balloon {
    fn name(&self) -> String {
        "the balloon".into()
    }

    fn kind(&self) -> u16 {
        5
    }

    fn class(&self) -> u32 {
        0x00_ff_00
    }

    fn features(&self) -> u64 {
        F_STATISTICS | F_DEFLATE_ON_OOM | F_REPORTING
    }

    fn queues(&self) -> u16 {
        4
    }

    fn queue_size(&self) -> u16 {
        128
    }

    fn config(&self) -> Vec<u8> {
        let state = lock(&self.state);
        [state.target.to_le_bytes(), state.actual].concat()
    }

    fn write_config(&self, offset: u64, data: &[u8]) {
        let mut state = lock(&self.state);
        for (index, value) in data.iter().enumerate() {
            let place = usize::try_from(offset).unwrap_or(usize::MAX).saturating_add(index);
            if let Some(byte) = place.checked_sub(ACTUAL).and_then(|at| state.actual.get_mut(at)) {
                *byte = *value;
            }
        }
    }

    fn serve(self: Arc<Self>, io: QueueIo, drain: Drain) -> Worker {
        // Queues of features that were not agreed on are left out (§5.5.2).
        let statistics = io.features & F_STATISTICS != 0;
        match (io.index, statistics) {
            (0, _) => Box::pin(give_back_all(io, drain, self, Names::List)),
            (1, _) => Box::pin(serve_in_turn(io, drain, Source::always(), |chain, _| Served {
                written: 0,
                moved: chain.total_len().min(LIST_MOST),
            })),
            (2, true) => Box::pin(ask(io, drain, self)),
            _ => Box::pin(give_back_all(io, drain, self, Names::Itself)),
        }
    }

    fn reset(&self) {
        let mut state = lock(&self.state);
        // The guest has all its pages again.
        *state = State { target: state.target, ..State::default() };
    }

    fn save(&self) -> Option<SavedDevice> {
        let state = lock(&self.state);
        let actual = u32::from_le_bytes(state.actual);
        Some(SavedDevice::Balloon(SavedBalloon { target: state.target, actual }))
    }

    fn restore(&self, saved: &SavedDevice) -> Result<(), Error> {
        let SavedDevice::Balloon(saved) = saved else {
            return Err(Error::Config("the state of another device for the balloon".into()));
        };
        let mut state = lock(&self.state);
        (state.target, state.actual) = (saved.target.min(self.pages), saved.actual.to_le_bytes());
        Ok(())
    }
}

/// How a request says which memory is free.
#[derive(Debug, Clone, Copy)]
enum Names {
    /// By a list of pages.
    List,
    /// By being that memory.
    Itself,
}

impl Names {
    fn ranges(self, chain: &Chain, mem: &GuestRam) -> Vec<Range<u64>> {
        match self {
            Self::List => {
                let mut bytes = vec![0; chain.readable_len().min(LIST_MOST) as usize];
                let read = chain.read(mem, 0, &mut bytes);
                if read.is_ok() { wire::ranges(&bytes) } else { Vec::new() }
            }
            Self::Itself => {
                let whole = |(start, len): (u64, u32)| start..start.saturating_add(len.into());
                chain.writable_pieces().map(whole).collect()
            }
        }
    }
}

/// Serves a queue by which the guest gives memory away: a request is answered when its host has all of it.
async fn give_back_all(
    mut io: QueueIo,
    mut drain: Drain,
    balloon: Arc<Balloon>,
    names: Names,
) -> QueueIo {
    let mut turn = Turn::default();
    loop {
        turn.renew().await;
        if *drain.borrow_and_update() {
            return io;
        }
        let mut any = false;
        while !turn.is_over()
            && let Some(chain) = io.pop()
        {
            let (mut given, mut step) = (0, 0);
            for range in names.ranges(&chain, &io.mem) {
                let mut start = range.start;
                while start < range.end {
                    // Pages that there are cost time, whoever says how many.
                    if step >= STEP {
                        step = 0;
                        tokio::task::yield_now().await;
                    }
                    let end = range.end.min(start.saturating_add(STEP));
                    given += give_back(&io.mem, start..end);
                    step += end - start;
                    start = end;
                }
            }
            let counter = match names {
                Names::List => &balloon.inflated,
                Names::Itself => &balloon.reported,
            };
            counter.fetch_add(given, Ordering::Relaxed);
            io.push(chain.head, 0);
            turn.took(given);
            any = true;
        }
        if any {
            io.signal();
        }
        if io.rearm(any) {
            continue;
        }
        tokio::select! {
            () = io.kick.wait() => turn.took(0),
            changed = drain.changed() => if changed.is_err() { return io },
        }
    }
}

/// Serves the queue of statistics: a request is kept until more is wanted to be known, and given back to
/// the ring when the queue is drained, where it is found again.
async fn ask(mut io: QueueIo, mut drain: Drain, balloon: Arc<Balloon>) -> QueueIo {
    let Some((wake, listen)) = wake() else { return io };
    lock(&balloon.state).wake = Some(wake);
    let (mut kept, mut turn) = (None::<Chain>, Turn::default());
    loop {
        turn.renew().await;
        if *drain.borrow_and_update() {
            lock(&balloon.state).wake = None;
            if kept.is_some() {
                io.take_back();
            }
            return io;
        }
        if kept.is_some()
            && balloon.is_wanted()
            && let Some(chain) = kept.take()
        {
            io.push(chain.head, 0);
            io.signal();
        }
        let mut popped = false;
        if kept.is_none()
            && let Some(chain) = io.pop()
        {
            balloon.told(&chain, &io.mem);
            turn.took(STATISTICS_MOST);
            (kept, popped) = (Some(chain), true);
        }
        // One that is kept is the only one that a driver has.
        if io.rearm(popped) && kept.is_none() {
            continue;
        }
        tokio::select! {
            () = io.kick.wait() => turn.took(0),
            () = listen.wait() => turn.took(0),
            changed = drain.changed() => if changed.is_err() { return io },
        }
    }
}

//! Counters: what each connection does, added up when someone asks.
//!
//! ```text
//!  connection ─► Meter (its own; only its task writes) ─┐
//!  connection ─► Meter                                  ├─► Totals ─► Page, on a scrape
//!  connections that ended ─► past                       ┘                ▲
//!  tree ─► ShareMeter (in parts that connections are spread over) ───────┘
//!
//!  request ─► PathTimer ─► PathMeter of the share, and of the file if it is one of the busiest
//! ```
//!
//! A counter is written by one task alone, so it needs no locked instruction and shares no cache
//! line with another connection's. The time of every sixteenth request is taken, from the moment
//! it is taken up to its answer, however it was answered.

pub mod files;
pub mod path;
mod shares;
pub mod timer;
pub mod waits;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Instant,
};

use metric_catalogue::{self as catalogue, Page};
use smb_protocol::{Command, NtStatus};
use volume::work::Longest;

pub use self::shares::ShareMeter;
use self::{files::FileMeters, timer::PathTimer, waits::Waits};
use crate::{
    Server,
    session::ConnectionId,
    transport::{Carrier, Network},
};

/// Commands that are counted apart; an unknown one counts as the last.
const COMMANDS: [&str; 20] = [
    "negotiate",
    "session_setup",
    "logoff",
    "tree_connect",
    "tree_disconnect",
    "create",
    "close",
    "flush",
    "read",
    "write",
    "lock",
    "ioctl",
    "cancel",
    "echo",
    "query_directory",
    "change_notify",
    "query_info",
    "set_info",
    "oplock_break",
    "unknown",
];
/// Classes of answers: severity of the status (MS-ERREF 2.3).
const CLASSES: [&str; 4] = ["success", "information", "warning", "error"];
/// What is timed apart.
const KINDS: [&str; 3] = ["read", "write", "other"];
/// Upper ends of the time buckets in microseconds are 4, 8, 16 … and infinity.
const BUCKETS: usize = 22;
/// Every how many requests one is timed.
const SAMPLE: u64 = 16;

/// A counter that one task writes and others read.
#[derive(Debug, Default)]
struct Counter(AtomicU64);

impl Counter {
    fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Counters of one connection.
#[derive(Debug, Default)]
pub struct Meter {
    /// Which part of a share's meter it writes.
    part: usize,
    credits: Counter,
    requests: [[Counter; CLASSES.len()]; COMMANDS.len()],
    times: [[Counter; BUCKETS]; KINDS.len()],
    micros: [Counter; KINDS.len()],
    taken: Counter,
    received: Counter,
    sent: Counter,
    waits: Counter,
    signatures: Counter,
    unprotected: Counter,
    /// Times that answers were sent after requests were taken up, how many the client had under way
    /// then, added up, and how often that took all its credits.
    batches: [Counter; 3],
    /// How the network was when somebody looked last.
    network: [Counter; 4],
    /// A timed answer that is not sent yet, and since when; whether there is one.
    unsent: (Mutex<Option<(PathTimer, Instant)>>, AtomicBool),
}

/// What one connection has done, and how it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ConnectionFigures {
    /// Times that answers were sent after requests were taken up.
    pub batches: u64,
    /// Requests that the client had under way at these times, added up.
    pub under_way: u64,
    /// Times among these at which it had used all its credits.
    pub out_of_credits: u64,
    /// Bytes that came from the client and went to it.
    pub bytes: u64,
    /// The network, if the transport tells.
    pub network: Network,
}

/// Counters added up.
#[derive(Debug, Clone, Default)]
struct Totals {
    requests: [[u64; CLASSES.len()]; COMMANDS.len()],
    times: [[u64; BUCKETS]; KINDS.len()],
    micros: [u64; KINDS.len()],
    received: u64,
    sent: u64,
    waits: u64,
    signatures: u64,
    unprotected: u64,
    /// Of connections that are there.
    credits: u64,
}

fn kind(command: Command) -> usize {
    match command {
        Command::READ => 0,
        Command::WRITE => 1,
        _ => 2,
    }
}

/// The bucket of a time in microseconds.
fn bucket(micros: u64) -> usize {
    (0..BUCKETS - 1).find(|bucket| micros <= 4 << bucket).unwrap_or(BUCKETS - 1)
}

/// Times by bucket, with the upper end of each in seconds.
fn bounded(times: &[u64; BUCKETS]) -> [(f64, u64); BUCKETS] {
    std::array::from_fn(|bucket| ((4u64 << bucket) as f64 / 1e6, times[bucket]))
}

/// An answer that goes out.
#[derive(Debug, Clone, Copy)]
pub struct Answered {
    /// What was asked.
    pub command: Command,
    /// How it ended.
    pub status: NtStatus,
    /// Bytes of files that were read or written.
    pub moved: u64,
    /// When it was taken up, if it is timed.
    pub since: Option<Instant>,
}

impl Answered {
    /// An answer with this body: the number of bytes that were read or written stands in it
    /// (MS-SMB2 2.2.20, DataLength and DataRemaining, one of which is 0; 2.2.22, Count).
    pub fn new(command: Command, status: NtStatus, body: &[u8]) -> Self {
        let number = |at: usize| {
            let bytes = body.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
            u64::from(bytes.map_or(0, u32::from_le_bytes))
        };
        let moved = match command {
            _ if status.is_error() => 0,
            Command::READ => number(4) + number(8),
            Command::WRITE => number(4),
            _ => 0,
        };
        Self { command, status, moved, since: None }
    }

    /// The same, taken up at `since` if it is timed.
    #[must_use]
    pub fn since(self, since: Option<Instant>) -> Self {
        Self { since, ..self }
    }
}

impl Meter {
    /// Counts an answer, about a share if there is one.
    pub fn answered(&self, answer: Answered, share: Option<&ShareMeter>) {
        let command = usize::from(answer.command.0).min(COMMANDS.len() - 1);
        // The interim answer of a request is not an answer of its own.
        if answer.status == NtStatus::PENDING {
            return;
        }
        self.requests[command][(answer.status.0 >> 30) as usize].add(1);
        let kind = kind(answer.command);
        let micros = answer.since.map(|since| {
            let micros = u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX);
            self.times[kind][bucket(micros)].add(1);
            self.micros[kind].add(micros);
            micros
        });
        if let Some(share) = share {
            share.count(self.part, kind, answer.moved, micros);
        }
    }

    /// Counts a request that is taken up; says when, if this one is to be timed.
    pub fn taken(&self) -> Option<Instant> {
        self.taken.add(1);
        self.taken.get().is_multiple_of(SAMPLE).then(Instant::now)
    }

    /// Notes how many credits the client holds now.
    pub fn credits(&self, held: u64) {
        self.credits.set(held);
    }

    /// Whether the next request that is taken up is one to be timed.
    pub fn next_is_timed(&self) -> bool {
        (self.taken.get() + 1).is_multiple_of(SAMPLE)
    }

    /// Notes how many requests a client had under way when it was answered, and whether these took all
    /// its credits.
    pub fn batch(&self, under_way: u64, out_of_credits: bool) {
        self.batches[0].add(1);
        self.batches[1].add(under_way);
        self.batches[2].add(u64::from(out_of_credits));
    }

    /// Notes how the network is.
    pub fn network(&self, network: Network) {
        let Network { rtt, retransmitted, sent, rate } = network;
        for (counter, value) in self.network.iter().zip([rtt, retransmitted, sent, rate]) {
            counter.set(value);
        }
    }

    /// A timed answer stands in the output since `now`.
    pub fn answer_stands(&self, timer: PathTimer, now: Instant) {
        *self.unsent.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((timer, now));
        self.unsent.1.store(true, Ordering::Relaxed);
    }

    /// What stood in the output was sent; the moment if one of the answers was timed.
    pub fn answers_sent(&self) -> Option<Instant> {
        if !self.unsent.1.load(Ordering::Relaxed) {
            return None;
        }
        self.unsent.1.store(false, Ordering::Relaxed);
        let (timer, since) = self.unsent.0.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        let now = Instant::now();
        timer.note(path::Phase::Send, now.saturating_duration_since(since));
        Some(now)
    }

    fn figures(&self) -> ConnectionFigures {
        let [batches, under_way, out_of_credits] = self.batches.each_ref().map(Counter::get);
        let [rtt, retransmitted, sent, rate] = self.network.each_ref().map(Counter::get);
        let network = Network { rtt, retransmitted, sent, rate };
        let bytes = self.received.get() + self.sent.get();
        ConnectionFigures { batches, under_way, out_of_credits, bytes, network }
    }

    /// Counts bytes from the client.
    pub fn received(&self, bytes: usize) {
        self.received.add(bytes as u64);
    }

    /// Counts bytes to the client.
    pub fn sent(&self, bytes: usize) {
        self.sent.add(bytes as u64);
    }

    /// Counts a request that waits.
    pub fn waits(&self) {
        self.waits.add(1);
    }

    /// Counts a request with a wrong signature.
    pub fn bad_signature(&self) {
        self.signatures.add(1);
    }

    /// Counts a request without the signature or encryption that it must have.
    pub fn unprotected(&self) {
        self.unprotected.add(1);
    }
}

impl Totals {
    fn add(&mut self, meter: &Meter) {
        for (sums, counters) in self.requests.iter_mut().zip(&meter.requests) {
            sums.iter_mut().zip(counters).for_each(|(sum, counter)| *sum += counter.get());
        }
        for (sums, counters) in self.times.iter_mut().zip(&meter.times) {
            sums.iter_mut().zip(counters).for_each(|(sum, counter)| *sum += counter.get());
        }
        self.micros.iter_mut().zip(&meter.micros).for_each(|(sum, counter)| *sum += counter.get());
        self.received += meter.received.get();
        self.sent += meter.sent.get();
        self.waits += meter.waits.get();
        self.signatures += meter.signatures.get();
        self.unprotected += meter.unprotected.get();
        self.credits += meter.credits.get();
    }
}

/// Counters of all connections.
#[derive(Debug, Default)]
pub struct Meters {
    /// How long a connection kept a thread without a break.
    pub longest: Longest,
    /// The files whose requests are timed apart.
    pub files: FileMeters,
    /// Requests that wait for other clients now.
    pub waits: Arc<Waits>,
    state: Mutex<State>,
    shares: Mutex<BTreeMap<String, Arc<ShareMeter>>>,
}

#[derive(Debug, Default)]
struct State {
    live: HashMap<ConnectionId, Arc<Meter>>,
    past: Totals,
}

impl Meters {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A meter for a new connection.
    pub fn begin(&self, connection: ConnectionId) -> Arc<Meter> {
        let meter = Arc::new(Meter { part: connection.0 as usize, ..Meter::default() });
        self.lock().live.insert(connection, meter.clone());
        meter
    }

    /// Keeps the counts of a connection that ends.
    pub fn end(&self, connection: ConnectionId) {
        let mut state = self.lock();
        if let Some(meter) = state.live.remove(&connection) {
            meter.credits(0);
            state.past.add(&meter);
        }
    }

    /// The meter of a share, by its folded name: it counts on over reloads.
    pub fn share(&self, name: &str) -> Arc<ShareMeter> {
        let mut shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
        match shares.get(name) {
            Some(meter) => meter.clone(),
            None => shares.entry(name.to_owned()).or_default().clone(),
        }
    }

    /// What the connections have done that there are now.
    pub fn connections(&self) -> Vec<(ConnectionId, ConnectionFigures)> {
        self.lock().live.iter().map(|(id, meter)| (*id, meter.figures())).collect()
    }

    /// Times, answers with errors and all answers, of all connections since the start.
    pub fn summary(&self) -> Summary {
        let totals = self.totals();
        let mut times = [0; BUCKETS];
        for kind in totals.times {
            times.iter_mut().zip(kind).for_each(|(sum, count)| *sum += count);
        }
        let answers = |class: &dyn Fn(usize) -> bool| {
            let counts = totals.requests.iter().flat_map(|counts| counts.iter().enumerate());
            counts.filter(|(index, _)| class(*index)).map(|(_, count)| count).sum()
        };
        Summary {
            reads: totals.requests[usize::from(Command::READ.0)].iter().sum(),
            writes: totals.requests[usize::from(Command::WRITE.0)].iter().sum(),
            answers: answers(&|_| true),
            errors: answers(&|index| CLASSES[index] == "error"),
            received: totals.received,
            sent: totals.sent,
            times,
        }
    }

    fn totals(&self) -> Totals {
        let state = self.lock();
        let mut totals = state.past.clone();
        state.live.values().for_each(|meter| totals.add(meter));
        totals
    }
}

/// What all connections have done since the start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    /// Answers to READ.
    pub reads: u64,
    /// Answers to WRITE.
    pub writes: u64,
    /// All answers.
    pub answers: u64,
    /// Answers with an error.
    pub errors: u64,
    /// Bytes from clients.
    pub received: u64,
    /// Bytes to clients.
    pub sent: u64,
    times: [u64; BUCKETS],
}

impl Summary {
    /// The time in microseconds that `part` of the requests since an earlier moment did not exceed, from 0
    /// to 1, as the upper end of its bucket; `None` if none was timed.
    pub fn quantile_since(&self, before: &Self, part: f64) -> Option<u64> {
        let grown = self.times.iter().zip(before.times).map(|(new, old)| new.saturating_sub(old));
        let all = grown.clone().sum::<u64>() as f64;
        let mut below = 0;
        for (bucket, count) in grown.enumerate() {
            below += count;
            if all > 0.0 && below as f64 >= all * part {
                return Some(4 << bucket);
            }
        }
        None
    }
}

/// Puts on a page what the file server counts.
pub fn show(server: &Server, page: &mut Page) {
    let totals = server.meters.totals();
    let opens = &server.open_files;
    page.info(&catalogue::BUILD, &[env!("CARGO_PKG_VERSION")]);
    page.gauge(&catalogue::UPTIME, &[], server.started.elapsed().as_secs());
    page.gauge(&catalogue::CONNECTIONS, &[], server.connections.load(Ordering::Relaxed));
    page.gauge(&catalogue::SESSIONS, &[], server.sessions.count());
    page.gauge(&catalogue::OPENS, &[], opens.open_count());
    page.gauge(&catalogue::PERSISTENT_OPENS, &[], opens.persistent_opens.held());
    page.gauge(&catalogue::OPEN_FILES, &[], opens.file_count());
    page.gauge(&catalogue::OFFLOAD_TOKENS, &[], server.tokens.count());
    page.gauge(&catalogue::CREDITS, &[], totals.credits);
    let longest = server.meters.longest.get().as_secs_f64();
    page.gauge(&catalogue::LONGEST_TURN, &[], longest);
    let carriers: Vec<_> = server.sessions.all().iter().flat_map(|it| it.channels()).collect();
    for carrier in [Carrier::Tcp, Carrier::Rdma] {
        let count = carriers.iter().filter(|channel| channel.carrier == carrier).count();
        page.gauge(&catalogue::CHANNELS, &[carrier.name()], count);
    }
    for (command, counts) in COMMANDS.iter().zip(&totals.requests) {
        for (class, count) in CLASSES.iter().zip(counts).filter(|(_, count)| **count > 0) {
            page.counter(&catalogue::REQUESTS, &[command, class], *count);
        }
    }
    let (leases, oplocks) = opens.breaks.told();
    page.counter(&catalogue::BREAKS, &["lease"], leases);
    page.counter(&catalogue::BREAKS, &["oplock"], oplocks);
    for (metric, value) in [
        (&catalogue::RECEIVED, totals.received),
        (&catalogue::SENT, totals.sent),
        (&catalogue::STATE_COMMITS, opens.persistent_opens.commits()),
        (&catalogue::WAITS, totals.waits),
        (&catalogue::SIGNATURE_REFUSALS, totals.signatures),
        (&catalogue::PROTECTION_REFUSALS, totals.unprotected),
    ] {
        page.counter(metric, &[], value);
    }
    for (index, kind) in KINDS.iter().enumerate() {
        let sum = totals.micros[index] as f64 / 1e6;
        let buckets = bounded(&totals.times[index]);
        page.histogram(&catalogue::REQUEST_TIME, &[kind], sum, &buckets);
    }
    shares::show(server, page);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_ended_connections_stay() {
        let meters = Meters::default();
        let (first, second) = (meters.begin(ConnectionId(1)), meters.begin(ConnectionId(2)));
        let answered = |meter: &Meter, command, status| {
            meter.answered(Answered::new(command, status, &[]), None);
        };
        answered(&first, Command::READ, NtStatus::SUCCESS);
        answered(&first, Command::READ, NtStatus::PENDING);
        answered(&second, Command::READ, NtStatus::END_OF_FILE);
        answered(&second, Command(999), NtStatus::INVALID_PARAMETER);
        first.credits(7);
        second.credits(9);
        assert_eq!(meters.totals().credits, 16);
        first.received(10);
        second.received(5);
        meters.end(ConnectionId(1));
        let totals = meters.totals();
        assert_eq!(totals.requests[8], [1, 0, 0, 1]);
        assert_eq!(totals.requests[19], [0, 0, 0, 1]);
        assert_eq!(totals.received, 15);
        assert_eq!(totals.credits, 9, "who is gone holds none");
    }

    #[test]
    fn one_request_in_sixteen_is_timed() {
        let meter = Meter::default();
        let timed = (0..64).filter_map(|_| meter.taken()).collect::<Vec<_>>();
        assert_eq!(timed.len(), 4);
        let write = Answered::new(Command::WRITE, NtStatus::SUCCESS, &[]);
        for since in timed.into_iter().map(Some).chain([None]) {
            meter.answered(write.since(since), None);
        }
        assert_eq!(meter.times[1].iter().map(Counter::get).sum::<u64>(), 4);
    }

    #[test]
    fn bytes_are_those_of_the_answer() {
        let body =
            |fields: &[u32]| fields.iter().flat_map(|it| it.to_le_bytes()).collect::<Vec<_>>();
        let moved = |command, status, body: &[u8]| Answered::new(command, status, body).moved;
        let read = body(&[17, 4096, 0, 0]);
        assert_eq!(moved(Command::READ, NtStatus::SUCCESS, &read), 4096);
        // By RDMA: nothing is in the answer, and DataRemaining says how much was moved.
        let direct = body(&[17, 0, 65536, 0]);
        assert_eq!(moved(Command::READ, NtStatus::SUCCESS, &direct), 65536);
        assert_eq!(moved(Command::WRITE, NtStatus::SUCCESS, &body(&[17, 512, 9, 9])), 512);
        assert_eq!(moved(Command::READ, NtStatus::END_OF_FILE, &read), 0);
        assert_eq!(moved(Command::CLOSE, NtStatus::SUCCESS, &read), 0);
        assert_eq!(moved(Command::WRITE, NtStatus::SUCCESS, &[17, 0, 0]), 0);
    }
}

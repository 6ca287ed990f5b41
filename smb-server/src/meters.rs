//! Counters: what each connection does, added up when someone asks.
//!
//! ```text
//!  connection ─► Meter (its own; only its task writes) ─┐
//!  connection ─► Meter                                  ├─► Totals ─► Prometheus text, on a scrape
//!  connections that ended ─► past                       ┘
//! ```
//!
//! A counter is written by one task alone, so it needs no locked instruction and shares no cache
//! line with another connection's. The time of every sixteenth request is taken, from the moment
//! it is taken up to its answer, however it was answered.

use std::{
    collections::HashMap,
    fmt::Write,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use smb_protocol::{Command, NtStatus};
use volume::work::Longest;

use crate::{Server, session::ConnectionId};

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

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Counters of one connection.
#[derive(Debug, Default)]
pub struct Meter {
    requests: [[Counter; CLASSES.len()]; COMMANDS.len()],
    times: [[Counter; BUCKETS]; KINDS.len()],
    micros: [Counter; KINDS.len()],
    taken: Counter,
    received: Counter,
    sent: Counter,
    waits: Counter,
    signatures: Counter,
    unprotected: Counter,
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
}

fn kind(command: Command) -> usize {
    match command {
        Command::READ => 0,
        Command::WRITE => 1,
        _ => 2,
    }
}

impl Meter {
    /// Counts an answer to a command with its status.
    pub fn answered(&self, command: Command, status: NtStatus) {
        let command = usize::from(command.0).min(COMMANDS.len() - 1);
        // The interim answer of a request is not an answer of its own.
        if status != NtStatus::PENDING {
            self.requests[command][(status.0 >> 30) as usize].add(1);
        }
    }

    /// Counts a request that is taken up; says when, if this one is to be timed.
    pub fn taken(&self) -> Option<Instant> {
        self.taken.add(1);
        self.taken.get().is_multiple_of(SAMPLE).then(Instant::now)
    }

    /// Notes how long a request took that was taken up at `since`.
    pub fn timed(&self, command: Command, since: Option<Instant>) {
        let Some(since) = since else { return };
        let micros = u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX);
        let bucket = (0..BUCKETS - 1).find(|bucket| micros <= 4 << bucket).unwrap_or(BUCKETS - 1);
        self.times[kind(command)][bucket].add(1);
        self.micros[kind(command)].add(micros);
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
    }
}

/// Counters of all connections.
#[derive(Debug, Default)]
pub struct Meters {
    /// How long a connection kept a thread without a break.
    pub longest: Longest,
    state: Mutex<State>,
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
        let meter = Arc::<Meter>::default();
        self.lock().live.insert(connection, meter.clone());
        meter
    }

    /// Keeps the counts of a connection that ends.
    pub fn end(&self, connection: ConnectionId) {
        let mut state = self.lock();
        if let Some(meter) = state.live.remove(&connection) {
            state.past.add(&meter);
        }
    }

    fn totals(&self) -> Totals {
        let state = self.lock();
        let mut totals = state.past.clone();
        state.live.values().for_each(|meter| totals.add(meter));
        totals
    }
}

/// The text that Prometheus reads (text format 0.0.4).
pub fn text(server: &Server) -> String {
    let totals = server.meters.totals();
    let mut page = Page(String::with_capacity(16 << 10));
    let gauges = [
        ("connections", "TCP connections", server.connections.load(Ordering::Relaxed) as u64),
        ("sessions", "sessions", server.sessions.count() as u64),
        ("opens", "opens of files and folders", server.open_files.open_count() as u64),
        (
            "persistent_opens",
            "opens that outlive the server",
            server.open_files.persistent_opens.held() as u64,
        ),
        ("open_files", "files and folders that are open", server.open_files.file_count() as u64),
        ("offload_tokens", "tokens of offloaded transfers", server.tokens.count() as u64),
        ("uptime_seconds", "time since the start", server.started.elapsed().as_secs()),
    ];
    for (name, help, value) in gauges {
        page.head(name, "gauge", help);
        page.line(name, "", value);
    }
    page.head("requests_total", "counter", "answers, by command and severity of the status");
    for (command, counts) in COMMANDS.iter().zip(&totals.requests) {
        for (class, count) in CLASSES.iter().zip(counts).filter(|(_, count)| **count > 0) {
            let labels = format!("{{command=\"{command}\",class=\"{class}\"}}");
            page.line("requests_total", &labels, *count);
        }
    }
    let help = "longest time that a connection kept a thread without a break";
    page.head("longest_turn_seconds", "gauge", help);
    page.line("longest_turn_seconds", "", server.meters.longest.get().as_secs_f64());
    let commits = server.open_files.persistent_opens.commits();
    let counters = [
        ("received_bytes_total", "bytes from clients", totals.received),
        ("sent_bytes_total", "bytes to clients", totals.sent),
        ("state_commits_total", "times the state store was made durable", commits),
        ("waits_total", "requests that waited for the disk or an event", totals.waits),
        ("signature_refusals_total", "requests with a wrong signature", totals.signatures),
        (
            "protection_refusals_total",
            "requests without the signature or encryption they must have",
            totals.unprotected,
        ),
    ];
    for (name, help, value) in counters {
        page.head(name, "counter", help);
        page.line(name, "", value);
    }
    let help = "time from taking up a request to its answer, of one request in 16";
    page.head("request_seconds", "histogram", help);
    for (index, kind) in KINDS.iter().enumerate() {
        let mut below = 0;
        for (bucket, count) in totals.times[index].iter().enumerate() {
            below += count;
            let end = match bucket {
                last if last == BUCKETS - 1 => "+Inf".to_owned(),
                bucket => format!("{}", (4u64 << bucket) as f64 / 1e6),
            };
            page.line(
                "request_seconds_bucket",
                &format!("{{kind=\"{kind}\",le=\"{end}\"}}"),
                below,
            );
        }
        let labels = format!("{{kind=\"{kind}\"}}");
        page.line("request_seconds_sum", &labels, totals.micros[index] as f64 / 1e6);
        page.line("request_seconds_count", &labels, below);
    }
    page.0
}

/// A page of metrics under construction.
struct Page(String);

impl Page {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let name = format!("bulkhead_smbd_{name}");
        // Writing to a string does not fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn line(&mut self, name: &str, labels: &str, value: impl std::fmt::Display) {
        let _ = writeln!(self.0, "bulkhead_smbd_{name}{labels} {value}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_ended_connections_stay() {
        let meters = Meters::default();
        let (first, second) = (meters.begin(ConnectionId(1)), meters.begin(ConnectionId(2)));
        first.answered(Command::READ, NtStatus::SUCCESS);
        first.answered(Command::READ, NtStatus::PENDING);
        second.answered(Command::READ, NtStatus::END_OF_FILE);
        second.answered(Command(999), NtStatus::INVALID_PARAMETER);
        first.received(10);
        second.received(5);
        meters.end(ConnectionId(1));
        let totals = meters.totals();
        assert_eq!(totals.requests[8], [1, 0, 0, 1]);
        assert_eq!(totals.requests[19], [0, 0, 0, 1]);
        assert_eq!(totals.received, 15);
    }

    #[test]
    fn one_request_in_sixteen_is_timed() {
        let meter = Meter::default();
        let timed = (0..64).filter_map(|_| meter.taken()).collect::<Vec<_>>();
        assert_eq!(timed.len(), 4);
        timed.into_iter().for_each(|since| meter.timed(Command::WRITE, Some(since)));
        meter.timed(Command::WRITE, None);
        assert_eq!(meter.times[1].iter().map(Counter::get).sum::<u64>(), 4);
    }
}

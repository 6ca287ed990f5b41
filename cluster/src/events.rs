//! What a node's engine is given and what it gives: all of it is values.

use std::{collections::BTreeMap, time::Duration};

use crate::{
    record::{Keys, Reach, Run},
    transaction::Transaction,
    view::View,
};

/// How fast a cluster is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// How long etcd waits for a node that is silent. Whole seconds, at least 2.
    pub lease: Duration,
    /// How much earlier than that the node stops by itself: for clocks that do not agree, and for
    /// what is under way then.
    pub margin: Duration,
    /// How often the lease begins anew.
    pub beat: Duration,
    /// How long until what has failed is tried again.
    pub retry: Duration,
    /// How long a node takes no role that it could not serve, at most: a sixteenth of it the first time,
    /// twice as long each time after that.
    pub unfit: Duration,
    /// How long the others wait for a node that says again and again that it goes on: less than the
    /// lease. None if only the lease counts.
    pub silence: Option<Duration>,
}

impl Timing {
    /// What goes with a lease of so many seconds.
    pub fn of_lease(seconds: u64) -> Self {
        let lease = Duration::from_secs(seconds.max(2));
        Self {
            lease,
            margin: lease / 8,
            beat: lease / 8,
            retry: lease / 12,
            unfit: Duration::from_secs(60),
            silence: None,
        }
    }

    /// How often a node says that it goes on, of so long a silence.
    pub fn pulse_of(silence: Duration) -> Duration {
        silence / 8
    }

    /// How much earlier than a silence is over the node stops by itself. What passed the gate then may
    /// still be on its way to the file system, however short the silence is.
    pub fn margin_of(silence: Duration) -> Duration {
        (silence / 4).max(Duration::from_millis(150))
    }

    /// How long one request of a node to etcd may take before another member of etcd is asked.
    pub fn attempt(&self) -> Duration {
        self.silence.map_or(self.lease / 6, |silence| (silence / 2).min(self.lease / 6))
    }
}

/// What keeps a node that is counted dead from changing anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fence {
    /// Its own gate, which closes before its lease is over.
    Gate,
    /// The gate, and a command that ends the node; without its word nothing is taken over.
    Agent,
}

/// What a node is.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Its number.
    pub node: u16,
    /// Its name.
    pub name: String,
    /// Its version of the program.
    pub version: String,
    /// Its roles, each with the nodes that are preferred for it.
    pub roles: BTreeMap<String, Vec<u16>>,
    /// How fast it is.
    pub timing: Timing,
    /// What makes sure that a dead node is dead.
    pub fence: Fence,
    /// The keys of its cluster.
    pub keys: Keys,
    /// Where it tells clients of other nodes, if it does.
    pub reach: Option<Reach>,
}

/// Both clocks of a node at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// A clock that only goes forward, also while the machine is suspended (`CLOCK_BOOTTIME`).
    pub steady: Duration,
    /// Milliseconds since 1970, for people only.
    pub wall: u64,
}

/// What happened to a node.
#[derive(Debug, Clone)]
pub enum Event {
    /// Time has passed.
    Tick,
    /// etcd has given a lease that was asked for at `sent`.
    Granted {
        /// The lease.
        lease: i64,
        /// How long it lasts.
        ttl: Duration,
        /// When it was asked for, by the steady clock.
        sent: Duration,
    },
    /// It has not.
    NotGranted,
    /// A lease has begun anew.
    Renewed(Renewal),
    /// Nobody knows whether it has.
    NotRenewed,
    /// etcd says that the lease is gone.
    Gone(i64),
    /// What became of saying that a run goes on.
    Pulsed {
        /// The lease of the run.
        lease: i64,
        /// When it was said, by the steady clock.
        sent: Duration,
        /// Refused if the run is no member's any more.
        outcome: Outcome,
    },
    /// A node has said that its run goes on.
    Heard {
        /// The run.
        run: Run,
        /// The revision of etcd at which it did.
        revision: i64,
    },
    /// The view is another one: all of it, or a part.
    Seen(Box<View>),
    /// A transaction is over.
    Done {
        /// Which one.
        id: u64,
        /// How.
        outcome: Outcome,
    },
    /// A role is served.
    Started(String),
    /// Nothing of a role runs here any more.
    Stopped(String),
    /// A role cannot be served here, and nothing of it runs; the text says why.
    Failed(String, String),
    /// A fence agent has ended a run, or could not, and why.
    Fenced(Run, Result<(), String>),
    /// The node is to leave in an orderly way.
    Leave,
}

/// What etcd has said of a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Renewal {
    /// The lease.
    pub lease: i64,
    /// How long it lasts.
    pub ttl: Duration,
    /// When it was asked for, by the steady clock.
    pub sent: Duration,
    /// The term of Raft in which it was answered.
    pub term: u64,
    /// The term in which a quorum was read after that: another one means that a leader has
    /// answered who was none any more.
    pub quorum_term: u64,
}

/// How a transaction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was carried out, at this revision.
    Carried(i64),
    /// A condition does not hold.
    Refused,
    /// Nobody knows.
    Unknown,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Ask etcd for a lease.
    Grant(Duration),
    /// Have a lease begin anew.
    Renew(i64),
    /// Say that the run with this lease goes on, if it is a member's.
    Pulse(i64),
    /// Give a lease back.
    Revoke(i64),
    /// Have a transaction carried out, once.
    Transact(Transaction),
    /// Changes may be made until then, by the steady clock.
    Gate(Duration),
    /// Serve a role.
    Start {
        /// Its name.
        role: String,
        /// The commit that made it ours: whoever commits in the role's name names it.
        revision: i64,
        /// The generation that it is in.
        generation: u64,
        /// This node could not serve it several times in a row, and nobody else has.
        tried: bool,
    },
    /// Stop serving a role: in an orderly way, or at once.
    Stop {
        /// Its name.
        role: String,
        /// Requests may end, and what is open is handed over.
        orderly: bool,
    },
    /// Have a fence agent end a node.
    Fence(Run),
    /// The node has left.
    Left,
}

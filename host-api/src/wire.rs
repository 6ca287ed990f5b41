//! Requests and answers, one JSON object a line.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Consistency, GuestAgent, VmDefinition, VmName};

/// Longest line either side accepts, in bytes.
pub const MAX_LINE: usize = 1 << 20;

/// How a move is to be done.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MoveOptions {
    /// Migration address of the other host, `host:port`.
    pub to: String,
    /// Longest pause of the guest to aim for, in milliseconds; the host's setting if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub downtime_ms: Option<u32>,
    /// Longest pause that the guest may have, in milliseconds, or else the move is given up; the host's
    /// setting if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub longest_downtime_ms: Option<u32>,
    /// Number of connections that carry memory; the host's setting if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub streams: Option<u32>,
}

/// What is asked of the host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "op", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// Take a VM into the host's state.
    Create {
        /// The VM.
        definition: VmDefinition,
    },
    /// Say whether a VM would be taken in, without doing it.
    Check {
        /// The VM.
        definition: VmDefinition,
        /// Locations of disks that are made after that, and need not be there.
        #[serde(default)]
        new: Vec<String>,
    },
    /// Replace the definition of a VM by another of the same name and id.
    Edit {
        /// The VM as it was when the change was thought out.
        was: Box<VmDefinition>,
        /// The VM as it is to be.
        definition: Box<VmDefinition>,
    },
    /// Give a VM that is off another name. Its disks keep theirs.
    Rename {
        /// Which.
        name: VmName,
        /// Its name from now on.
        to: VmName,
    },
    /// Start a VM that is off.
    Start {
        /// Which.
        name: VmName,
    },
    /// Stop a VM: press its power button and wait, or end it at once.
    Stop {
        /// Which.
        name: VmName,
        /// End it without asking the guest.
        #[serde(default)]
        force: bool,
        /// How long the guest has, in seconds.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        timeout_s: Option<u32>,
    },
    /// Have a VM run on that is paused because its watchdog has expired.
    Resume {
        /// Which.
        name: VmName,
    },
    /// Leave the guest of a running VM with so much memory, by its balloon.
    Memory {
        /// Which.
        name: VmName,
        /// How much it may have, in MiB.
        mib: u64,
    },
    /// All VMs.
    List,
    /// Everything about one VM.
    Show {
        /// Which.
        name: VmName,
    },
    /// Why disks of VMs that run here are slow, or that nothing is wrong with them, all of them.
    Why,
    /// Why some of them are slow.
    WhyOf {
        /// A VM, a disk of one (`VM/number`), or a disk's location.
        what: String,
    },
    /// Attach to the console: after the answer the connection carries raw bytes both ways.
    Console {
        /// Which.
        name: VmName,
        /// Send what the guest printed so far first.
        #[serde(default)]
        replay: bool,
    },
    /// Move a running VM to another host.
    Move {
        /// Which.
        name: VmName,
        /// Where to and how.
        options: MoveOptions,
    },
    /// Call off a move that is under way; the VM runs on where it is.
    CancelMove {
        /// Which.
        name: VmName,
    },
    /// Hold a running VM quiet: its guest's file systems are frozen if its agent can do that. That lasts
    /// until [`Request::Thaw`], the end of the connection, or the limit, whichever is first.
    Quiesce {
        /// Which.
        name: VmName,
        /// Longest time that it lasts, in seconds: 1 to 300, 60 if absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        limit_s: Option<u32>,
    },
    /// End what [`Request::Quiesce`] began on this connection.
    Thaw,
    /// Forget a VM that is off. Its disks stay.
    Delete {
        /// Which.
        name: VmName,
    },
    /// Decide by hand about a VM that waits for its peer after a broken move. The caller must
    /// know what the other host did.
    Resolve {
        /// Which.
        name: VmName,
        /// Run it here; otherwise give it up here.
        run: bool,
    },
}

/// State of a VM on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum VmState {
    /// Defined, not running.
    Off,
    /// Running.
    Running,
    /// Paused here: a disk is away or full. It runs on by itself when that is over.
    PausedCritical,
    /// Paused here for good: a disk is another run's now.
    Fenced,
    /// Paused here until somebody has it run on: its watchdog has expired.
    Paused,
    /// Running, being moved away.
    MovingOut,
    /// Being received; not running here.
    MovingIn,
    /// Paused here: the hand-over to or from the peer was cut off and its outcome is being asked.
    InDoubt,
    /// It ended by itself with an error.
    Failed,
}

impl VmState {
    /// The word used on the wire and in tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Running => "running",
            Self::PausedCritical => "paused-critical",
            Self::Fenced => "fenced",
            Self::Paused => "paused",
            Self::MovingOut => "moving-out",
            Self::MovingIn => "moving-in",
            Self::InDoubt => "in-doubt",
            Self::Failed => "failed",
        }
    }
}

/// A line of `vm list`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VmSummary {
    /// Name.
    pub name: VmName,
    /// State.
    pub state: VmState,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Why it is in its state, where there is more to say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Counters of a disk since the VM started on this host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DiskUsage {
    /// Where the disk is.
    pub location: String,
    /// Size in bytes, once it has been open.
    pub size: u64,
    /// Completed reads.
    pub reads: u64,
    /// Completed writes.
    pub writes: u64,
    /// Completed flushes.
    pub flushes: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Requests that ended in an error.
    pub errors: u64,
    /// Longest time one request took, in microseconds.
    pub longest_us: u64,
    /// Times when requests waited for the disk's limits.
    #[serde(default)]
    pub limited: u64,
    /// Times when requests were under way and none was completed for 20 ms or longer: what the
    /// guest sees of a file server that is lost and found again.
    #[serde(default)]
    pub pauses: u64,
    /// Longest of them in microseconds.
    #[serde(default)]
    pub longest_pause_us: u64,
}

/// How the watchdog of a VM stands, whose guest runs on this host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WatchdogUsage {
    /// The guest has it run.
    pub enabled: bool,
    /// Milliseconds until it expires, of the time in which the guest runs; none if it does not run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_ms: Option<u64>,
    /// How often it has expired since the machine is here.
    pub expired: u64,
}

/// The memory of a VM whose machine is here, in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MemoryUsage {
    /// Of the host's memory, what the guest's takes.
    pub resident: u64,
    /// The balloon, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub balloon: Option<BalloonUsage>,
}

/// How a VM's balloon stands, in bytes. All but the first is the guest's word.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BalloonUsage {
    /// What the guest is to go along with.
    pub wanted: u64,
    /// What it goes along with.
    pub has: u64,
    /// Given back to the host since the machine is here because the balloon grew.
    pub inflated: u64,
    /// Given back since then because the guest did not use it, whatever it did later.
    pub reported: u64,
    /// All memory that the guest knows of; Linux counts what is in the balloon.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<u64>,
    /// What it does not use for anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub free: Option<u64>,
    /// What its programs can have without swapping.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub available: Option<u64>,
    /// Its caches of files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caches: Option<u64>,
    /// Swapped out since it started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub swapped_out: Option<u64>,
}

/// What a host says of a disk of a VM.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DiskReport {
    /// The VM.
    pub vm: VmName,
    /// Which of its disks, from 0.
    pub disk: usize,
    /// Where the disk is.
    pub location: String,
    /// How it is, in a sentence: the first of the causes, or that nothing is wrong.
    pub sentence: String,
    /// Causes, those first that cost most time; none if nothing is wrong.
    pub causes: Vec<DiskCause>,
    /// Seconds that the figures are about.
    pub window_s: u64,
    /// Requests of the guest in that time.
    pub operations: u64,
    /// Requests that the guest had in its storage at a time, in the mean.
    pub depth: f64,
    /// Where their time went.
    pub parts: Vec<DiskPart>,
}

/// Why a disk is slow, with what says so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DiskCause {
    /// Its name: `guest-queue`, `host-queue`, `slow-storage` or `slow-sync`.
    pub cause: String,
    /// What is wrong, with figures, and what to do.
    pub sentence: String,
    /// Figures that say so.
    pub evidence: Vec<String>,
}

/// How long one part of the way took.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DiskPart {
    /// Which: `whole` from the ring to its status; of that `read`, `write` and `sync` in the storage, with
    /// the way there; `host`: what is left.
    pub part: String,
    /// How many requests went through it.
    pub count: u64,
    /// Their mean, in microseconds.
    pub mean_us: u64,
    /// What 99 of 100 did not exceed, in microseconds; 0 where only the mean is known.
    pub p99_us: u64,
}

/// What `vm show` tells.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct VmDetail {
    /// Summary.
    pub summary: VmSummary,
    /// Definition.
    pub definition: VmDefinition,
    /// Why it is in its state, where there is more to say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The disks' counters.
    pub disks: Vec<DiskUsage>,
    /// Number of pauses the host imposed on the guest since it runs here.
    pub pauses: u64,
    /// Longest of them in microseconds.
    pub longest_pause_us: u64,
    /// The last move out of or into this host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_move: Option<MoveStatistics>,
    /// Keys of the VM file whose changes wait for the next start of the machine that runs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waiting: Vec<String>,
    /// Its memory, if it has a machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<MemoryUsage>,
    /// The watchdog, if the VM has one and a machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watchdog: Option<WatchdogUsage>,
    /// The guest's agent, if it has one that runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<GuestAgent>,
}

/// One round of the pre-copy.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MoveRound {
    /// 0 for the first pass over all memory.
    pub number: u32,
    /// Pages looked at (4096 bytes each).
    pub pages: u64,
    /// Pages among them that were all zeros and travelled as a bit.
    pub zero_pages: u64,
    /// Bytes of memory stream, before encryption.
    pub bytes: u64,
    /// Duration in microseconds.
    pub micros: u64,
}

/// Progress of a move.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MoveProgress {
    /// What is being done: `connect`, `check`, `precopy`, `handover`, `commit`.
    pub phase: String,
    /// Round under way or just ended.
    pub round: u32,
    /// Pages of this round that have been sent.
    pub sent_pages: u64,
    /// Pages this round has.
    pub total_pages: u64,
    /// Bytes sent so far.
    pub bytes: u64,
}

/// What a finished move cost.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MoveStatistics {
    /// Identity of the move.
    pub id: String,
    /// The other host's migration address.
    pub peer: String,
    /// `out` or `in`.
    pub direction: String,
    /// `moved`, or what went wrong.
    pub outcome: String,
    /// Rounds, the last with the guest paused.
    pub rounds: Vec<MoveRound>,
    /// Pages over all rounds.
    pub pages: u64,
    /// Of them all zeros.
    pub zero_pages: u64,
    /// Bytes of memory and state, before encryption.
    pub bytes: u64,
    /// How memory was compressed.
    pub compression: String,
    /// Connections that carried memory.
    pub streams: u32,
    /// From the request to the guest running on the other host, in milliseconds.
    pub total_ms: f64,
    /// From the pause here until the other host says it runs, in milliseconds.
    pub downtime_ms: f64,
    /// Parts of the downtime in milliseconds, in order.
    pub downtime_parts: Vec<(String, f64)>,
    /// Memory throughput of the pre-copy in MB/s.
    pub mb_per_s: f64,
    /// Bytes of disk content that went from host to host.
    pub disk_bytes: u64,
}

/// The final answer to a request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "reply", rename_all = "kebab-case")]
pub enum Reply {
    /// Done, nothing to tell.
    Ok,
    /// To [`Request::List`].
    List {
        /// Sorted by name.
        vms: Vec<VmSummary>,
    },
    /// To [`Request::Show`].
    Show {
        /// The VM.
        vm: Box<VmDetail>,
    },
    /// To [`Request::Why`] and [`Request::WhyOf`].
    Why {
        /// What is wrong first, then what is used most.
        reports: Vec<DiskReport>,
    },
    /// To [`Request::Console`]: raw bytes follow.
    ConsoleAttached,
    /// To [`Request::Quiesce`]: it is quiet now.
    Quiet {
        /// What a copy of its disks is worth that is made now.
        consistency: Consistency,
        /// Why it is not worth more.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// To [`Request::Thaw`], if it came in time.
    Thawed {
        /// How long the VM was quiet, in milliseconds.
        held_ms: u64,
    },
    /// To [`Request::Move`].
    Moved {
        /// What it cost.
        statistics: Box<MoveStatistics>,
    },
}

/// A line from the host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// On the way.
    Progress {
        /// How far.
        progress: MoveProgress,
    },
    /// The request was carried out.
    Done {
        /// Answer.
        reply: Reply,
    },
    /// The request failed.
    Failed {
        /// Why, in one line.
        message: String,
    },
}

/// Where a host's control socket is when nothing else is said.
pub const DEFAULT_SOCKET: &str = "/run/hyperv-host/control.sock";

/// The control socket to use: the argument, or the default.
pub fn socket_path(given: Option<PathBuf>) -> PathBuf {
    given.unwrap_or_else(|| PathBuf::from(DEFAULT_SOCKET))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_the_documented_form() {
        let stop = Request::Stop { name: "a".parse().unwrap(), force: true, timeout_s: None };
        assert_eq!(
            serde_json::to_string(&stop).unwrap(),
            r#"{"op":"stop","name":"a","force":true}"#
        );
        let back: Request = serde_json::from_str(r#"{"op":"stop","name":"a"}"#).unwrap();
        assert_eq!(
            back,
            Request::Stop { name: "a".parse().unwrap(), force: false, timeout_s: None }
        );
        assert!(serde_json::from_str::<Request>(r#"{"op":"stop","name":"../a"}"#).is_err());
        assert!(serde_json::from_str::<Request>(r#"{"op":"stop","name":"a","x":1}"#).is_err());
    }

    #[test]
    fn events_round_trip() {
        let events = [
            Event::Failed { message: "no".into() },
            Event::Done { reply: Reply::List { vms: vec![] } },
            Event::Done { reply: Reply::Moved { statistics: Box::default() } },
        ];
        for event in events {
            let line = serde_json::to_string(&event).unwrap();
            assert_eq!(serde_json::from_str::<Event>(&line).unwrap(), event);
        }
    }
}

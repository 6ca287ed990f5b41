//! Why something is slow, and what the server did of late.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What the server says of a share, a file or a LUN.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WhyReport {
    /// Its name: that of a share, `share/path` of a file, `target/number` of a LUN.
    pub subject: String,
    /// `share`, `file` or `lun`.
    pub kind: String,
    /// How it is, in a sentence: the first of the causes, or that nothing is wrong.
    pub sentence: String,
    /// Causes, those first that cost most time; none if nothing is wrong.
    pub causes: Vec<WhyCause>,
    /// Seconds that the figures are about.
    pub window_s: u64,
    /// Operations in that time.
    pub operations: u64,
    /// Where their time went, in the order of their way.
    pub phases: Vec<WhyPhase>,
}

/// One cause, with what says so.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WhyCause {
    /// Its name: `slow-disk`, `slow-sync`, `disk-queue`, `fragmented-image`, `lost-channel`, `slow-wire`,
    /// `retransmits`, `lease-contention`, `lock-held`, `cipher`, `cpu-taken`, `credits`, `server-queue`,
    /// `slow-client` or `limit`.
    pub cause: String,
    /// What is wrong, with figures, and what to do.
    pub sentence: String,
    /// Figures that say so.
    pub evidence: Vec<String>,
    /// Seconds since it was seen first; 0 if that was just now.
    pub since_s: u64,
}

/// How long one part of the way took.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WhyPhase {
    /// Which part: `queue`, `break`, `lock`, `crypto`, `read`, `write`, `unmap` (of LUNs), `sync` or
    /// `send`.
    pub phase: String,
    /// How many operations went through it.
    pub count: u64,
    /// Their mean, in microseconds.
    pub mean_us: u64,
    /// What 99 of 100 did not exceed, in microseconds.
    pub p99_us: u64,
}

/// How far a history goes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Span {
    /// An hour, in steps of 10 seconds.
    Hour,
    /// A day, in steps of a minute.
    Day,
    /// Thirty days, in steps of 15 minutes.
    Month,
}

/// What the server did in one step of its history, SMB clients and iSCSI initiators together.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HistoryPoint {
    /// Its end, in seconds since 1970 by the server's clock.
    pub time: u64,
    /// How long it was, in seconds.
    pub seconds: u64,
    /// Operations that read.
    pub reads: u64,
    /// Operations that wrote.
    pub writes: u64,
    /// All other operations.
    pub others: u64,
    /// Bytes from clients.
    pub received: u64,
    /// Bytes to clients.
    pub sent: u64,
    /// Operations among these that were refused or failed.
    pub errors: u64,
    /// Half of the requests of SMB clients took no longer, in microseconds; 0 without requests.
    pub p50_us: u64,
    /// 99 of 100 took no longer, in microseconds; 0 without requests.
    pub p99_us: u64,
    /// Sessions at its end.
    pub sessions: u64,
    /// Opens at its end.
    pub opens: u64,
    /// Processor time that the server used: 1000 is one processor for all of the time.
    pub cpu_permille: u64,
}

//! Requests and answers, one JSON object a line.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Declared, HistoryPoint, ObjectChange, Span, WhyReport};

/// Name of the socket in the server's state folder.
pub const SOCKET: &str = "admin.sock";

/// Longest line either side accepts, in bytes: a list of a quarter of a million opens.
pub const MAX_LINE: usize = 256 << 20;

/// What is asked of the server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "op", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// How the server is.
    Status,
    /// All sessions.
    Sessions,
    /// All opens.
    Opens,
    /// All byte-range locks.
    Locks,
    /// All shares.
    Shares,
    /// Why shares, files and LUNs are slow, all of them.
    Why,
    /// Why one of them is slow.
    WhyOf {
        /// The name of a share, `share/path` of a file, or `target/number` of a LUN.
        what: String,
    },
    /// What the server did of late.
    History {
        /// How far back.
        span: Span,
    },
    /// All iSCSI targets with their LUNs.
    Targets,
    /// All sessions of iSCSI initiators.
    TargetSessions,
    /// End a session of an iSCSI initiator.
    TargetDisconnect {
        /// Which, as [`TargetSession::id`] has it.
        session: u64,
    },
    /// Look again how large the image or device of a LUN is.
    LunResize {
        /// The target's iSCSI name.
        target: String,
        /// The LUN.
        lun: u16,
    },
    /// The nodes of the witness service, and its clients.
    WitnessList,
    /// Say how a node is.
    WitnessState {
        /// Which node.
        node: String,
        /// `up`, `down` or `unknown`.
        state: String,
    },
    /// Have clients of the witness service go elsewhere.
    WitnessMove {
        /// The client, by its own name; all of the share if there is none.
        client: Option<String>,
        /// The share that has moved; the client as a whole if there is none.
        share: Option<String>,
        /// Where to: a node, or an address of one.
        to: String,
    },
    /// End sessions, or close an open.
    Disconnect {
        /// Which.
        target: Target,
    },
    /// Read the configuration again.
    Reload,
    /// Put the program that is installed now in the place of the one that runs.
    Upgrade,
    /// Shares, users and targets, those of the configuration file as well, without secrets.
    DeclaredShow,
    /// Make shares, users and targets what is declared, all or nothing.
    Apply {
        /// What there is to be. Objects of the configuration file are not changed.
        declared: Declared,
        /// Only say what would be done.
        #[serde(default)]
        plan: bool,
        /// Also what clients use now may be changed and removed.
        #[serde(default)]
        cut: bool,
        /// What was declared before and is not named any more goes.
        #[serde(default)]
        prune: bool,
    },
    /// Take a snapshot of a share.
    SnapshotCreate {
        /// Which share.
        share: String,
    },
    /// List the snapshots of a share.
    SnapshotList {
        /// Which share.
        share: String,
    },
    /// Remove a snapshot of a share.
    SnapshotDelete {
        /// Which share.
        share: String,
        /// Its time, as [`Reply::Snapshots`] has it.
        time: String,
    },
}

/// What is to be ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Target {
    /// One session.
    Session(u64),
    /// All sessions of a user.
    User(String),
    /// All sessions from an address.
    Address(String),
    /// One open.
    Open(u64),
}

/// An iSCSI target with its LUNs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TargetInfo {
    /// Its iSCSI name.
    pub name: String,
    /// Its LUNs, by number.
    pub luns: Vec<LunInfo>,
}

/// A LUN of an iSCSI target.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LunInfo {
    /// Its number.
    pub number: u16,
    /// Its image or device.
    pub path: String,
    /// Its size in bytes.
    pub size: u64,
    /// Its logical block in bytes.
    pub block: u32,
    /// Writes are refused.
    pub read_only: bool,
    /// Its identity, in hexadecimal.
    pub id: String,
    /// Initiators that are registered for persistent reservations.
    pub registrations: u64,
    /// A persistent reservation is in force.
    pub reserved: bool,
}

/// A session of an iSCSI initiator.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TargetSession {
    /// Names it to [`Request::TargetDisconnect`].
    pub id: u64,
    /// The target's iSCSI name.
    pub target: String,
    /// The initiator's iSCSI name.
    pub initiator: String,
    /// Addresses of its connections.
    pub clients: Vec<String>,
    /// Commands that wait or run.
    pub commands: u64,
}

/// A node of the witness service.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WitnessNode {
    /// Its name.
    pub name: String,
    /// Where clients reach it.
    pub addresses: Vec<String>,
    /// `up`, `down` or `unknown`.
    pub state: String,
    /// It is the one that was asked.
    pub own: bool,
}

/// A client that is registered with the witness service.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WitnessClient {
    /// Its number.
    pub id: u64,
    /// The client as it names itself.
    pub client: String,
    /// The user, folded.
    pub user: String,
    /// The version of the protocol that it speaks: 1 or 2.
    pub version: u32,
    /// The name by which it reaches the cluster.
    pub net_name: String,
    /// The share that it asked about.
    pub share: Option<String>,
    /// The address that it uses.
    pub address: String,
    /// It waits to be told.
    pub waiting: bool,
}

/// How the server is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Status {
    /// Version of the server.
    pub version: String,
    /// Its name.
    pub name: String,
    /// Its process.
    pub pid: u32,
    /// Seconds since it started.
    pub uptime_s: u64,
    /// Addresses it listens on.
    pub listen: Vec<String>,
    /// Connections.
    pub connections: u64,
    /// Sessions.
    pub sessions: u64,
    /// Opens.
    pub opens: u64,
    /// Files that are open.
    pub files: u64,
    /// Shares.
    pub shares: u64,
    /// Longest time that a connection kept a thread without a break, in microseconds.
    #[serde(default)]
    pub longest_turn_us: u64,
}

/// A session as administrators see it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SessionInfo {
    /// Its name on the wire.
    pub id: u64,
    /// The user, folded.
    pub user: String,
    /// Addresses of its connections.
    pub clients: Vec<String>,
    /// What carries each of them: `tcp` or `rdma`.
    #[serde(default)]
    pub transports: Vec<String>,
    /// Why the data of each of them do not go by RDMA; null where nothing is in the way.
    #[serde(default)]
    pub why_not_rdma: Vec<Option<String>>,
    /// The dialect.
    pub dialect: String,
    /// The cipher, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cipher: Option<String>,
    /// It must encrypt.
    pub encrypted: bool,
    /// It must sign.
    pub signed: bool,
    /// Shares it is connected to, folded.
    pub shares: Vec<String>,
    /// Its opens.
    pub opens: u64,
}

/// An open file or folder as administrators see it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct OpenInfo {
    /// Its name on the wire.
    pub id: u64,
    /// The session that has it; none while a durable open waits for its client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<u64>,
    /// The user, folded.
    pub user: String,
    /// The share, folded.
    pub share: String,
    /// The path in the share.
    pub path: String,
    /// It is a folder.
    pub directory: bool,
    /// Access that was granted, as a mask.
    pub access: u32,
    /// Oplock or lease it has.
    pub caching: String,
    /// Byte-range locks it has.
    pub locks: u64,
}

/// A byte-range lock that an open holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LockInfo {
    /// The open that has it.
    pub open: u64,
    /// The user, folded.
    pub user: String,
    /// The share, folded.
    pub share: String,
    /// The path in the share.
    pub path: String,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// Nobody else may read there.
    pub exclusive: bool,
}

/// A share, with who uses it now.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ShareInfo {
    /// Its name.
    pub name: String,
    /// Its folder.
    pub path: String,
    /// Nothing in it may be changed.
    pub read_only: bool,
    /// Trees that are connected to it.
    pub connected: u64,
    /// Opens in it.
    pub opens: u64,
    /// Its snapshots.
    pub snapshots: u64,
    /// Files in it can share blocks.
    pub shares_blocks: bool,
    /// What administrators see.
    pub comment: String,
}

/// The answer to a request, one line of JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "reply", rename_all = "kebab-case")]
pub enum Reply {
    /// Done, nothing to tell.
    Ok,
    /// To [`Request::Status`].
    Status {
        /// How it is.
        status: Box<Status>,
    },
    /// To [`Request::Sessions`].
    Sessions {
        /// By name.
        sessions: Vec<SessionInfo>,
    },
    /// To [`Request::Opens`].
    Opens {
        /// By share and path.
        opens: Vec<OpenInfo>,
    },
    /// To [`Request::Locks`].
    Locks {
        /// By share, path and offset.
        locks: Vec<LockInfo>,
    },
    /// To [`Request::Shares`].
    Shares {
        /// By name.
        shares: Vec<ShareInfo>,
    },
    /// To [`Request::Why`] and [`Request::WhyOf`].
    Why {
        /// Those with causes first, then by their operations.
        reports: Vec<WhyReport>,
    },
    /// To [`Request::History`].
    History {
        /// Seconds that a point is about, usually.
        step_s: u64,
        /// By time; there is none of the time when the server did not run.
        points: Vec<HistoryPoint>,
    },
    /// To [`Request::Targets`].
    Targets {
        /// By name.
        targets: Vec<TargetInfo>,
    },
    /// To [`Request::TargetSessions`].
    TargetSessions {
        /// By target.
        sessions: Vec<TargetSession>,
    },
    /// To [`Request::LunResize`].
    LunResized {
        /// Its size now, in bytes.
        size: u64,
    },
    /// To [`Request::WitnessList`].
    Witness {
        /// The nodes, the one that was asked first.
        nodes: Vec<WitnessNode>,
        /// Clients, by their numbers.
        clients: Vec<WitnessClient>,
        /// There is a witness service: the configuration has `[witness]`.
        #[serde(default = "yes")]
        configured: bool,
    },
    /// To [`Request::WitnessMove`].
    WitnessMoved {
        /// Registrations that were told.
        count: u64,
    },
    /// To [`Request::DeclaredShow`].
    Declared {
        /// All objects.
        declared: Declared,
    },
    /// To [`Request::Apply`].
    Applied {
        /// What was done, or would be, with each object.
        changes: Vec<ObjectChange>,
    },
    /// To [`Request::Disconnect`].
    Disconnected {
        /// Sessions or opens that were ended.
        count: u64,
    },
    /// To [`Request::SnapshotCreate`].
    SnapshotTaken {
        /// Its time, which is its name.
        time: String,
    },
    /// To [`Request::SnapshotList`].
    Snapshots {
        /// The last first.
        times: Vec<String>,
    },
}

/// What an older server does not say.
fn yes() -> bool {
    true
}

/// A line from the server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_the_documented_form() {
        let text = r#"{"op":"disconnect","target":{"session":7}}"#;
        let request = Request::Disconnect { target: Target::Session(7) };
        assert_eq!(serde_json::to_string(&request).unwrap(), text);
        assert_eq!(serde_json::from_str::<Request>(text).unwrap(), request);
        assert_eq!(serde_json::from_str::<Request>(r#"{"op":"status"}"#).unwrap(), Request::Status);
        for bad in [r#"{"op":"snapshot-create"}"#, r#"{"op":"sessions","x":1}x"#, "{}", ""] {
            assert!(serde_json::from_str::<Request>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn events_round_trip() {
        for event in [
            Event::Failed { message: "no".into() },
            Event::Done { reply: Reply::Status { status: Box::default() } },
            Event::Done { reply: Reply::Opens { opens: vec![OpenInfo::default()] } },
            Event::Done { reply: Reply::Locks { locks: vec![LockInfo::default()] } },
        ] {
            let line = serde_json::to_string(&event).unwrap();
            assert_eq!(serde_json::from_str::<Event>(&line).unwrap(), event);
        }
    }
}

//! What a guest tells of itself by its agent. All of it is the guest's word.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How a guest agent stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum AgentState {
    /// It answers.
    #[default]
    Running,
    /// Its port is open and it does not answer, or what it answers is not understood.
    Silent,
    /// It is busy with something that takes long.
    Busy,
    /// The guest's file systems are frozen, or may be.
    Frozen,
}

impl AgentState {
    /// The word used on the wire and in tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Silent => "silent",
            Self::Busy => "busy",
            Self::Frozen => "frozen",
        }
    }
}

/// A network interface as the guest sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GuestInterface {
    /// Its name in the guest.
    pub name: String,
    /// Its address on the wire, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// Its addresses of IP.
    #[serde(default)]
    pub addresses: Vec<String>,
}

/// A guest agent, and what it tells.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GuestAgent {
    /// How it stands.
    pub state: AgentState,
    /// Why it does not answer, where there is more to say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Version of the agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Name and version of the operating system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub os: Option<String>,
    /// Release of its kernel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// Its network interfaces, without the loopback.
    #[serde(default)]
    pub interfaces: Vec<GuestInterface>,
}

/// What a copy of a VM's disks is worth that is made while the VM is held quiet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Consistency {
    /// The guest's file systems are frozen: what its programs have written is on its disks.
    Application,
    /// It is what the disks would be after a loss of power.
    Crash,
}

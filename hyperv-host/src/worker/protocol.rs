//! What a daemon and a worker say to each other. Each question has one answer, on the connection that it
//! came by; questions that take long each have a connection.

use host_api::{DiskUsage, MemoryUsage, VmDefinition, WatchdogUsage};
use serde::{Deserialize, Serialize};
use vmm::{
    devices::{port::PortError, virtio::storage::Trouble, watchdog::Standing},
    platform::lifecycle::EndReason,
};

use crate::config::StorageConfig;

/// Version of what is said. A daemon takes up workers of its own version alone.
pub const VERSION: u32 = 1;

/// What a machine is made of, beside the files that come with it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Shape {
    /// The definition that it is built of.
    pub definition: VmDefinition,
    /// How its disks are reached, with the servers of these disks alone.
    pub storage: StorageConfig,
    /// Threads for the I/O of its disks.
    pub io_threads: usize,
    /// Number of its run.
    pub run: u64,
    /// The machine before it was reset by its watchdog.
    pub by_watchdog: bool,
}

/// What a daemon asks.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// Who is there.
    Hello,
    /// Build the machine, with its disks open; its taps come along.
    Build(Box<Shape>),
    /// The firmware has its variables in the file that comes along.
    Variables,
    /// The guest runs from now on.
    Run,
    /// What is new, after what was seen of it.
    News {
        /// What was seen.
        seen: u64,
    },
    /// The guest ends.
    End(EndReason),
    /// Press the power button.
    PowerButton,
    /// End the machine and close its disks, each within this time.
    TearDown {
        /// In milliseconds.
        limit_ms: u64,
    },
    /// The process ends.
    Quit,
    /// The limits of these disks hold from now on.
    Follow(Box<VmDefinition>),
    /// The guest is to have so many bytes.
    WantMemory(u64),
    /// Let run on what the watchdog has paused.
    ReleaseWatchdog,
    /// What `vm show` tells.
    Usage,
    /// What the guest has printed from there on; waits for something.
    Console {
        /// From where; where it is now if not said.
        position: Option<u64>,
        /// How long it waits, in milliseconds.
        limit_ms: u64,
    },
    /// Type this into its console.
    Type(Vec<u8>),
    /// How the port of the guest agent is.
    Port,
    /// Send this to the guest agent.
    PortSend(Vec<u8>),
    /// Take what the agent has sent, waiting for something.
    PortReceive {
        /// How long it waits, in milliseconds.
        limit_ms: u64,
    },
    /// Forget what waits at the agent's port.
    PortDiscard,
}

/// What a worker answers.
#[derive(Debug, Serialize, Deserialize)]
pub enum Reply {
    /// It is done.
    Done,
    /// It is not done, and this is why.
    Failed(String),
    /// Who is there.
    Hello {
        /// [`VERSION`] of the worker.
        version: u32,
        /// The definition of its machine, if its guest was let run.
        runs: Option<Box<VmDefinition>>,
    },
    /// The machine is built. The variables that its firmware has, if it has some.
    Built(Option<Vec<u8>>),
    /// What is new.
    News(News),
    /// What `vm show` tells.
    Usage(Box<Usage>),
    /// What the guest printed and the place behind it; nothing at the end.
    Printed(Option<(Vec<u8>, u64)>),
    /// How the port is.
    Port {
        /// A program in the guest has it open.
        open: bool,
        /// The machine has ended.
        ended: bool,
    },
    /// What came of the port.
    Ported(Result<Vec<u8>, PortError>),
}

/// What is looked at in a machine again and again.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct News {
    /// What was seen.
    pub seen: u64,
    /// Why the guest has ended, if it has.
    pub end: Option<EndReason>,
    /// The guest's kernel says that it has panicked.
    pub panicked: bool,
    /// What keeps it from going on.
    pub trouble: Option<Trouble>,
    /// How its watchdog stands.
    pub watchdog: Option<Standing>,
}

/// What `vm show` tells of a machine.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Usage {
    /// Its disks, in order.
    pub disks: Vec<DiskUsage>,
    /// Number of pauses, and the longest in microseconds.
    pub pauses: (u64, u64),
    /// The memory that it takes.
    pub memory: MemoryUsage,
    /// Its watchdog, if it has one.
    pub watchdog: Option<WatchdogUsage>,
}

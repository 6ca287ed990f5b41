//! Why something asked of a host is not done.

use std::io;

use host_api::{VmName, VmState};

use crate::{allowed::NotAllowed, worker::remote::WorkerError};

/// Why something asked of the host was not done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HostError {
    /// There is no such VM.
    #[error("there is no VM {0}")]
    Unknown(VmName),
    /// No machine that runs here has such a disk.
    #[error(
        "no VM that runs here is {0}, or has that disk: say VM, VM/NUMBER or a disk's location"
    )]
    NoDisk(String),
    /// There is one already.
    #[error("there is a VM {0} already")]
    Exists(VmName),
    /// Another has its id.
    #[error("VM {name} has the id of VM {other}; leave `id` out and it gets one of its own")]
    SameId {
        /// Name of the VM.
        name: VmName,
        /// The one that is here.
        other: VmName,
    },
    /// It is not in a state for that.
    #[error("VM {name} is {}", .state.as_str())]
    State {
        /// Name of the VM.
        name: VmName,
        /// State that the VM is in.
        state: VmState,
    },
    /// Its guest cannot do anything.
    #[error("VM {name} is {} and its guest does not run; --force ends it", .state.as_str())]
    Halted {
        /// Name of the VM.
        name: VmName,
        /// State that the VM is in.
        state: VmState,
    },
    /// A network card is to be plugged into what is not there.
    #[error(
        "this host has no bridge {0}; `ip link add {0} type bridge` and `ip link set {0} up` make one"
    )]
    NoBridge(String),
    /// Its move cannot be called off any more.
    #[error("VM {0} is handed over already")]
    TooLate(VmName),
    /// The machine has less memory to give.
    #[error(
        "{mib} MiB of memory are asked for and this host has {free} MiB free; `overcommit` in [limits] \
         lets VMs have more than there is"
    )]
    NoMemory {
        /// MiB that the VM has.
        mib: u64,
        /// MiB that there are.
        free: u64,
    },
    /// Its definition is another by now.
    #[error("VM {0} has been changed meanwhile; look at it and say again what is to change")]
    Changed(VmName),
    /// The machine that runs is not what its definition says by now.
    #[error(
        "VM {name} has changes that wait for its next start ({changes}): stop and start it first"
    )]
    Waiting {
        /// Name of the VM.
        name: VmName,
        /// Keys of the VM file that were changed.
        changes: String,
    },
    /// There is nothing that takes memory from it.
    #[error(
        "VM {0} has no balloon: with `minimum_mib` in its definition (`bulkhead vm edit {0} --minimum SIZE`) it has \
         one from its next start on"
    )]
    NoBalloon(VmName),
    /// Its guest is to have more or less memory than it may.
    #[error("VM {name} may have {least} to {most} MiB of memory, not {mib}")]
    Memory {
        /// Name of the VM.
        name: VmName,
        /// What was asked for.
        mib: u64,
        /// Its minimum.
        least: u64,
        /// All that it was started with.
        most: u64,
    },
    /// Its guest's file systems did not thaw yet.
    #[error(
        "the file systems of VM {0} are frozen: its guest's agent is asked again and again to thaw them, and \
         the VM can be moved once they have"
    )]
    Frozen(VmName),
    /// Nothing is held quiet on the connection.
    #[error("nothing is held quiet on this connection: `thaw` ends a `quiesce` before it")]
    NotQuiet,
    /// It was held quiet for as long as it may be.
    #[error(
        "VM {name} was held quiet for {seconds} s and has thawed since: what was copied after that is of no \
         one moment"
    )]
    QuietTooLong {
        /// Name of the VM.
        name: VmName,
        /// How long it was quiet.
        seconds: u32,
    },
    /// Something else is being done with it.
    #[error("VM {0} is busy")]
    Busy(VmName),
    /// A limit of the configuration.
    #[error("limit reached: {0}")]
    Limit(&'static str),
    /// It did not end in time.
    #[error("VM {name} did not power off within {seconds} s; --force ends it")]
    StillOn {
        /// Name of the VM.
        name: VmName,
        /// How long it had.
        seconds: u64,
    },
    /// The machine could not be built or run, or one of its disks failed.
    #[error(transparent)]
    Vm(#[from] vmm::Error),
    /// The process that has the machine is of no use.
    #[error(transparent)]
    Worker(#[from] WorkerError),
    /// A VM with a process of its own stays where it is.
    #[error(
        "VM {0} has a worker process, and such a VM is not moved while it runs: stop it, or start it again with \
         `workers = false` in [host]"
    )]
    Apart(VmName),
    /// A definition is not possible.
    #[error(transparent)]
    Definition(#[from] host_api::DefinitionError),
    /// It names what VMs of this host may not have.
    #[error(transparent)]
    NotAllowed(#[from] NotAllowed),
    /// Nobody says who this host is to the server of a disk.
    #[error("disk {location}: this host cannot log on there")]
    Login {
        /// Location, as it was given or as the image names it.
        location: String,
        /// The cause, as the layer below tells it.
        #[source]
        source: smb_client::CredentialsError,
    },
    /// The state folder failed.
    #[error("cannot keep the host's records")]
    Store(#[source] io::Error),
    /// A move failed; the VM runs on here.
    #[error("not moved: {0}")]
    NotMoved(String),
    /// The outcome of a move is not known yet.
    #[error("the other host was lost at the hand-over; it is being asked: {0}")]
    InDoubt(String),
    /// The daemon is about to end.
    #[error("this host is being shut down")]
    ShuttingDown,
    /// The configuration has no part for moving.
    #[error("this host has no [migration] in its configuration")]
    NoMigration,
}

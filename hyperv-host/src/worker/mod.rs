//! A process for each VM: what is in it, and how the daemon speaks to it.
//!
//! ```text
//!  daemon ── host ──► machine::Machine ─┬─ Here: the machine is in the daemon
//!                                       └─ Apart: remote ══ unix socket ══► serve (the worker)
//!                                                                            vmm::Vm, disks, KVM
//! ```
//!
//! A worker that dies takes its VM along and no other. A daemon that dies leaves its workers, whose
//! sockets are in the state folder; the next one takes them up ([`launch::find`]). Modules: [`protocol`] what is
//! said, [`link`] how, [`remote`] the daemon's side, [`launch`] how workers start and are found again,
//! [`serve`] the worker's side, [`look`] what is looked at in a machine, whoever has it.

pub mod launch;
pub mod link;
pub mod look;
pub mod machine;
pub mod protocol;
pub mod remote;
pub mod serve;

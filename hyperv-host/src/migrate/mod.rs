//! Live migration: only memory and state move, the disk is handed over.
//!
//! ```text
//!  source                                             target
//!  ──────                                             ──────
//!  Hello (definition, CPU model, disk shapes) ──────► checks: version, name, memory, CPU, disks
//!                                             ◄────── Accepted
//!  Join × N (memory connections)              ──────►
//!  record MovingOut
//!  rounds: all pages, then dirty pages …      ══════► guest memory        (guest runs on)
//!  pause; drain disks; last pages             ══════►
//!  close disks (flushed, given up)
//!  State                                      ──────► vCPUs, chips, devices
//!                                             ◄────── Ready      target: waiting for the word
//!  record HandedOver   ◄── the decision, durable
//!  Commit                                     ──────► verdict `ran`, durable; opens the disks;
//!                                             ◄────── Running     the guest runs here
//!  forgets the VM, durably                            settled meanwhile: its own records, durable
//!  Forget                                     ──────► only then forgets the verdict
//! ```
//!
//! Who goes on when something breaks:
//!
//! ```text
//!  source before HandedOver   the guest runs on at the source: disks are opened again if they
//!                             were closed. A target that had it all asks and hears `never`.
//!  source after HandedOver    it does not run at the source until the target says `never` (it
//!                             never ran there and never will, by a durable verdict or because
//!                             it knows nothing of the move). While the target waits, the word
//!                             is given again. While it cannot be reached the VM is in doubt.
//!  target before its verdict  it never runs by itself. If the source is lost it asks until it
//!                             hears `given` (then it runs) or `never` (then it forgets).
//!  target after its verdict   it runs, or, after a crash, is started afresh: the source does not.
//!  target cannot open a disk  verdict `refused`, durable, then the source is told and goes on.
//!  the last word is lost      the target asks the source until it hears that nothing there speaks
//!                             of the move, and forgets its verdict.
//! ```
//!
//! Both records are single files renamed into place before the message that depends on them is
//! sent. An operator may end a doubt by `vm resolve` when one host will never come back.
//!
//! Who has the VM is decided by two state machines without I/O ([`crate::handover`]), which are
//! simulated in thousands of histories.
//!
//! Modules: [`wire`] the stream's format, [`dial`] and [`door`] the way in, [`source`] and [`send`] the
//! sending side up to the hand-over, [`leave`] from there on, [`target`] and [`receive`] the receiving
//! side up to it, [`arrive`] from there on, [`verdicts`] what is left of moves that are over, [`clock`]
//! the difference of two hosts' clocks. [`crate::tls`] says who may connect, [`crate::fault`] has the points where tests break a
//! move.

pub mod arrive;
pub mod clock;
pub mod dial;
pub mod door;
pub mod leave;
pub mod receive;
pub mod send;
pub mod source;
pub mod target;
pub mod verdicts;
pub mod wire;

/// Why a move did not come about.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MoveError {
    /// The connection or what came over it.
    #[error(transparent)]
    Wire(#[from] wire::WireError),
    /// The connection could not be made.
    #[error(transparent)]
    Tls(#[from] crate::tls::TlsError),
    /// The machine could not be built, saved or restored.
    #[error(transparent)]
    Vm(#[from] vmm::Error),
    /// The other host does not take it.
    #[error("the other host refuses: {0}")]
    Refused(String),
    /// It was called off.
    #[error("it was cancelled")]
    Cancelled,
    /// The guest writes faster than its memory is sent.
    #[error(
        "after {rounds} rounds the guest would still be paused for {pause:?}, and may be for {longest:?}; \
         let it write less, give the move more connections, or allow a longer pause"
    )]
    TooBusy {
        /// Rounds that were made.
        rounds: u32,
        /// How long the last one would take.
        pause: std::time::Duration,
        /// How long it may.
        longest: std::time::Duration,
    },
    /// The guest ended on the way.
    #[error("the guest ended meanwhile")]
    Ended,
    /// A record could not be written.
    #[error("cannot keep the host's records")]
    Store(#[source] std::io::Error),
    /// The peer said something that does not belong there.
    #[error("the other host answered out of turn")]
    Protocol,
}

//! The hand-over of a VM as two state machines without clock, file or socket: what each host does next,
//! given what it has heard and what is durable. The daemon drives them (`migrate::leave` and
//! `migrate::arrive`), and so does the simulation beside them, which loses messages and power.
//!
//! ```text
//!  source                                         target
//!  Sending ── Ready ──► Recording                 Receiving ── Complete ──► Waiting ── asks ──┐
//!     │ Failed             │ written                 │ Failed               │ Given      ◄────┘
//!     │                    ▼                         │                      ▼
//!     │                  Given ── asks ──┐           │         verdict ran: Deciding ──► Opening
//!     │            Never │ │ Given  ◄────┘           │                      │ cannot      │ opened
//!     ▼                  │ ▼                         ▼                      ▼             ▼
//!  Staying ◄─────────────┘ Leaving                 Gone ◄──────────────── Refusing    Running ──► Clearing
//!     │ written               │ deleted                  verdict refused                             │
//!     ▼                       ▼                                                                      ▼
//!  Stays                     Gone ── last word ───────────────────────────────────► verdict gone ◄─ Settled
//! ```
//!
//! What keeps one guest running, and one only, are the rules in [`rules`]: each says what must be
//! durable before what. The simulation breaks them one at a time and finds each.

pub mod rules;
pub mod source;
pub mod target;

#[cfg(test)]
mod simulation;

use serde::{Deserialize, Serialize};

/// What a host knows of a move when it is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    /// Source: still deciding. Target: has it all and waits for the word.
    Waiting,
    /// Source: it is the target's. Target: it ran, or runs, here.
    Given,
    /// It does not run on the answering host by this move and never will (target), or it stays
    /// on the answering host (source).
    Never,
}

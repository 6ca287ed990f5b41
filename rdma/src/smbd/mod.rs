//! MS-SMBD without I/O: negotiation, credits, fragments, keep-alive.
//!
//! ```text
//!  message.rs   what stands in the messages (2.2)
//!  engine.rs    the rules of one connection (3.1): messages, completions and time in, effects out
//! ```
//! The simulation in `simulation/` runs two engines against each other over a network that delays
//! and loses what it likes.

mod credits;
mod engine;
mod message;
mod reassembly;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

pub use engine::{Effect, Engine, Fault, NotSent, Upper};
pub use message::{
    DATA_OFFSET, Data, Malformed, NegotiateRequest, NegotiateResponse, RESPONSE_REQUESTED,
    STATUS_NOT_SUPPORTED, VERSION,
};
pub use reassembly::Disorder;

use std::time::Duration;

/// The smallest message that everyone must receive (MS-SMBD 3.1.5.6).
pub const LEAST_RECEIVE: u32 = 128;
/// The fewest bytes of fragments that everyone must put together (MS-SMBD 3.1.5.6).
pub const LEAST_FRAGMENTED: u32 = 131_072;
/// Room for a message of negotiation (MS-SMBD 3.1.4.1, 3.1.7.2).
pub const NEGOTIATION_RECEIVE: usize = 512;

/// What one end would like (MS-SMBD 3.1.4.1, 3.1.7.2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameters {
    /// Messages that the peer may send us before it is told of more, at most.
    pub receive_credits: u16,
    /// Messages that we would like to send before we are told of more.
    pub send_credits: u16,
    /// The longest message that we send, in bytes.
    pub max_send_size: u32,
    /// The longest message that we receive, in bytes.
    pub max_receive_size: u32,
    /// Most bytes of one message of the upper layer that we put together.
    pub max_fragmented_size: u32,
    /// Most bytes that we move by RDMA for one request.
    pub max_read_write_size: u32,
    /// Bytes of messages that the upper layer has not taken, from which on the peer is told of no
    /// more credits.
    pub most_held: usize,
    /// How long the peer may be silent before it is asked whether it is there.
    pub keepalive: Duration,
    /// How long it has to answer that.
    pub keepalive_answer: Duration,
    /// How long negotiation may take.
    pub negotiation: Duration,
}

impl Parameters {
    /// Those of whoever connects: Windows', but for longer messages and fragments, which spare a
    /// provider without a card much of its work. Windows refuses a `PreferredSendSize` beyond 8136.
    pub fn active() -> Self {
        Self {
            receive_credits: 255,
            send_credits: 255,
            max_send_size: 8136,
            max_receive_size: 8192,
            max_fragmented_size: (1 << 20) + (128 << 10),
            max_read_write_size: 8 << 20,
            most_held: 4 << 20,
            keepalive: Duration::from_secs(120),
            keepalive_answer: Duration::from_secs(5),
            negotiation: Duration::from_secs(120),
        }
    }

    /// Those of whoever is connected to. Its negotiation may take 5 seconds (3.1.7.2).
    pub fn passive() -> Self {
        Self { negotiation: Duration::from_secs(5), ..Self::active() }
    }
}

/// What both ends have agreed on (MS-SMBD 3.1.4.7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Agreed {
    /// The longest message that we may send, in bytes.
    pub max_send_size: u32,
    /// The longest message that we receive, in bytes.
    pub max_receive_size: u32,
    /// Most bytes of one message of the upper layer that the peer puts together.
    pub max_fragmented_send_size: u32,
    /// Most bytes that are moved by RDMA for one request.
    pub max_read_write_size: u32,
}

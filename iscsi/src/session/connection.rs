//! A connection of a session, without its socket.

use std::collections::VecDeque;

use bytes::Bytes;

use super::{Run, output::Output};
use crate::{
    negotiate::ConnectionParameters,
    pdu::Pdu,
    text::{Assembler, Pieces},
};

/// Texts of the full feature phase are kept up to here, in bytes.
const TEXT_LIMIT: usize = 16 << 10;

/// How a connection is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Close {
    /// Once what it has to say was sent.
    AfterOutput,
    /// Now: it broke the protocol, or is mute.
    Now,
}

/// Where a connection stands (RFC 7143 8.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// In the full feature phase.
    Up,
    /// To be closed.
    Closing(Close),
    /// Without a socket since then; its tasks may be taken over (ErrorRecoveryLevel 2).
    Lost(u64),
}

/// A response that the initiator may want again.
#[derive(Debug)]
pub(super) struct Kept {
    pub stat_sn: u32,
    pub pdu: Pdu,
    pub data: Bytes,
    /// The task whose answer it is.
    pub itt: Option<u32>,
}

/// A text exchange under way.
#[derive(Debug)]
pub(super) struct TextExchange {
    pub itt: u32,
    pub ttt: u32,
    pub incoming: Assembler,
    pub outgoing: Pieces,
}

impl TextExchange {
    pub fn new(itt: u32) -> Self {
        Self {
            itt,
            ttt: crate::pdu::NO_TAG,
            incoming: Assembler::new(TEXT_LIMIT),
            outgoing: Pieces::default(),
        }
    }
}

/// A connection in the full feature phase.
#[derive(Debug)]
pub(super) struct Link {
    /// The initiator's number of it.
    pub cid: u16,
    pub state: State,
    pub parameters: ConnectionParameters,
    /// The next StatSN.
    pub stat_sn: u32,
    /// ExpStatSN: what is below has arrived.
    pub acknowledged: u32,
    pub output: Output,
    pub ready: VecDeque<Run>,
    /// When it was heard of last, in milliseconds.
    pub heard: u64,
    /// When it was asked for a sign of life.
    pub asked: Option<u64>,
    pub kept: VecDeque<Kept>,
    pub text: Option<TextExchange>,
    /// It was logged out: that its socket goes is no failure.
    pub logged_out: bool,
    /// Its driver has something to do.
    pub touched: bool,
    /// The initiator was asked to log out, and has until then.
    pub leave_by: Option<u64>,
}

impl Link {
    pub fn new(cid: u16, parameters: ConnectionParameters, stat_sn: u32, now: u64) -> Self {
        Self {
            cid,
            state: State::Up,
            parameters,
            stat_sn,
            acknowledged: stat_sn,
            output: Output::default(),
            ready: VecDeque::new(),
            heard: now,
            asked: None,
            kept: VecDeque::new(),
            text: None,
            logged_out: false,
            touched: false,
            leave_by: None,
        }
    }

    pub fn is_up(&self) -> bool {
        self.state == State::Up
    }
}

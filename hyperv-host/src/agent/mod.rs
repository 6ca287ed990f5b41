//! A client of the QEMU guest agent: what a program in a guest tells of it, and does for its host.
//!
//! ```text
//!  host ── 0xff, guest-sync-delimited n ──► agent       each question begins so: what the agent
//!  host ◄── 0xff, n ──────────────────────── agent       says before the number n is about others
//!  host ── command ─► agent ── answer ─► host
//! ```
//!
//! The agent may be hostile, slow or gone: each question has a deadline, each answer a size
//! ([`answers`]), and one question is asked at a time. Protocol: the QEMU guest agent's reference,
//! `qga/qapi-schema.json`.

pub mod answers;
mod frozen;

use std::{
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use vmm::{devices::port::PortError, platform::bus::lock_within};

use self::answers::{Answers, Info, Interface, Nothing, OsInfo, parse, shown};
pub use self::frozen::Frozen;
use crate::worker::machine::Line;

/// How long an agent has for an answer that needs no work.
pub const SOON: Duration = Duration::from_secs(3);
/// How long it may take to freeze all file systems, which writes what is in its caches.
pub const FREEZE: Duration = Duration::from_secs(30);
/// How long the agent is listened to for a refusal of what it does not answer when it does it.
const REFUSAL: Duration = Duration::from_secs(1);

/// Why an agent was not of use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AgentError {
    /// The port says so.
    #[error("guest agent: {0}")]
    Port(#[from] PortError),
    /// It does something else that takes long.
    #[error("guest agent: it is busy with another question")]
    Busy,
    /// It says no.
    #[error("guest agent: {command} is refused: {why}")]
    Refused {
        /// Name of the command.
        command: &'static str,
        /// What the agent says.
        why: String,
    },
    /// What it says is no answer to the question.
    #[error("guest agent: what it answers to {command} is not understood")]
    Nonsense {
        /// Name of the command.
        command: &'static str,
    },
}

/// The agent of one running machine.
#[derive(Debug)]
pub struct Agent {
    port: Line,
    conversation: Mutex<()>,
    frozen: AtomicBool,
}

impl Agent {
    /// The agent behind a machine's port.
    pub fn new(port: impl Into<Line>) -> Self {
        Self { port: port.into(), conversation: Mutex::default(), frozen: AtomicBool::new(false) }
    }

    /// Whether a program in the guest has the port open. It may still be silent.
    pub fn is_there(&self) -> bool {
        self.port.is_open()
    }

    /// Whether its file systems are frozen, or may be.
    pub fn is_frozen(&self) -> bool {
        self.frozen.load(Ordering::Acquire)
    }

    /// Asks a question; within `limit` there is an answer or an error.
    fn ask<T: DeserializeOwned>(
        &self,
        command: &'static str,
        arguments: Value,
        limit: Duration,
    ) -> Result<T, AgentError> {
        let deadline = Instant::now() + limit;
        let _conversation = lock_within(&self.conversation, limit).ok_or(AgentError::Busy)?;
        let mut answers = self.synchronise(deadline)?;
        self.send(command, arguments)?;
        let line = self.line(&mut answers, command, deadline)?;
        match parse(&line) {
            Some(Ok(value)) => Ok(value),
            Some(Err(refusal)) => Err(AgentError::Refused { command, why: shown(&refusal.desc) }),
            None => Err(AgentError::Nonsense { command }),
        }
    }

    /// Begins a question: what the agent still says to others is over. Gives what comes after.
    fn synchronise(&self, deadline: Instant) -> Result<Answers, AgentError> {
        const COMMAND: &str = "guest-sync-delimited";
        self.port.discard();
        let id = random();
        let mut bytes = vec![0xff];
        bytes.extend(request(COMMAND, json!({ "id": id })));
        self.port.send(&bytes)?;
        let mut answers = Answers::default();
        loop {
            // Whatever else it says is about something else.
            match self.line(&mut answers, COMMAND, deadline) {
                Ok(line) if parse::<u64>(&line) == Some(Ok(id)) => return Ok(answers),
                Ok(_) | Err(AgentError::Nonsense { .. }) => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn send(&self, command: &'static str, arguments: Value) -> Result<(), AgentError> {
        Ok(self.port.send(&request(command, arguments))?)
    }

    /// The next line of the agent. One that never rests is not listened to beyond the deadline either.
    fn line(
        &self,
        answers: &mut Answers,
        command: &'static str,
        deadline: Instant,
    ) -> Result<Vec<u8>, AgentError> {
        loop {
            if let Some(line) = answers.next_line() {
                let overdue = Instant::now() >= deadline;
                let line = line.map_err(|_| AgentError::Nonsense { command })?;
                return if overdue { Err(PortError::Silent.into()) } else { Ok(line) };
            }
            answers.push(&self.port.receive(deadline)?);
            if Instant::now() >= deadline {
                return Err(PortError::Silent.into());
            }
        }
    }

    /// Whether it answers.
    ///
    /// # Errors
    /// [`AgentError`], as everything here.
    pub fn ping(&self) -> Result<(), AgentError> {
        self.ask::<Nothing>("guest-ping", json!({}), SOON).map(drop)
    }

    /// What the agent is.
    ///
    /// # Errors
    /// [`AgentError`], as everything here.
    pub fn info(&self) -> Result<Info, AgentError> {
        self.ask("guest-info", json!({}), SOON)
    }

    /// The guest's operating system.
    ///
    /// # Errors
    /// [`AgentError`], as everything here.
    pub fn os(&self) -> Result<OsInfo, AgentError> {
        self.ask("guest-get-osinfo", json!({}), SOON)
    }

    /// The guest's network interfaces.
    ///
    /// # Errors
    /// [`AgentError`], as everything here.
    pub fn interfaces(&self) -> Result<Vec<Interface>, AgentError> {
        self.ask("guest-network-get-interfaces", json!({}), SOON)
    }

    /// Has the guest power off. It may still be on after that: who wants it off waits for it.
    ///
    /// # Errors
    /// [`AgentError`] if it does not hear it, or says that it will not.
    pub fn shut_down(&self) -> Result<(), AgentError> {
        const COMMAND: &str = "guest-shutdown";
        let _conversation = lock_within(&self.conversation, SOON).ok_or(AgentError::Busy)?;
        let mut answers = self.synchronise(Instant::now() + SOON)?;
        self.send(COMMAND, json!({ "mode": "powerdown" }))?;
        // It does not answer when it does it.
        match self.line(&mut answers, COMMAND, Instant::now() + REFUSAL) {
            Ok(line) => match parse::<Nothing>(&line) {
                Some(Err(refusal)) => {
                    Err(AgentError::Refused { command: COMMAND, why: shown(&refusal.desc) })
                }
                _ => Ok(()),
            },
            Err(_) => Ok(()),
        }
    }

    /// The guest's clock, in nanoseconds since 1970.
    ///
    /// # Errors
    /// [`AgentError`], as everything here.
    pub fn time(&self) -> Result<i64, AgentError> {
        self.ask("guest-get-time", json!({}), SOON)
    }

    /// Sets the guest's clock, to nanoseconds since 1970.
    ///
    /// # Errors
    /// [`AgentError`], as everything here.
    pub fn set_time(&self, nanos: i64) -> Result<(), AgentError> {
        self.ask::<Nothing>("guest-set-time", json!({ "time": nanos }), SOON).map(drop)
    }
}

/// A command as it is sent.
fn request(command: &str, arguments: Value) -> Vec<u8> {
    let mut bytes = json!({ "execute": command, "arguments": arguments }).to_string().into_bytes();
    bytes.push(b'\n');
    bytes
}

/// A number that no answer before has, and that every JSON keeps exactly.
fn random() -> u64 {
    let mut bytes = [0; 8];
    // Without random bytes it is the time, which no answer before has either.
    if rustix::rand::getrandom(&mut bytes[..6], rustix::rand::GetRandomFlags::empty()).is_err() {
        let now = std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_micros() as u64;
        return now & ((1 << 48) - 1);
    }
    u64::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests;

//! A machine as its host sees it, in the daemon itself or in a worker.

use std::{
    fs::File,
    os::fd::AsFd,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use host_api::VmDefinition;
use vmm::{
    Vm,
    devices::{
        console::Console,
        port::{Port, PortError},
        virtio::times::DiskFigures,
    },
    platform::{bus::lock, lifecycle::EndReason},
};

use super::{
    look,
    protocol::{News, Reply, Request, Usage},
    remote::{Remote, SOON, WorkerError},
};

/// A machine; clones are the same one.
#[derive(Debug, Clone)]
pub enum Machine {
    /// In this process.
    Here(Arc<Vm>),
    /// In a process of its own.
    Apart(Arc<Remote>),
}

/// What a machine prints, for one reader.
#[derive(Debug)]
pub enum Printed {
    /// Of a machine in this process, which it does not keep.
    Here(Console),
    /// Of a machine in a worker.
    Apart(Arc<Remote>),
}

/// A keyboard of a machine, which does not keep it.
#[derive(Debug)]
pub struct Keyboard(Weak<Vm>, Option<Arc<Remote>>);

impl Machine {
    /// The machine, if it is in this process.
    pub fn here(&self) -> Option<&Arc<Vm>> {
        match self {
            Self::Here(vm) => Some(vm),
            Self::Apart(_) => None,
        }
    }

    /// Whether it is the same machine.
    pub fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Here(one), Self::Here(other)) => Arc::ptr_eq(one, other),
            (Self::Apart(one), Self::Apart(other)) => Arc::ptr_eq(one, other),
            _ => false,
        }
    }

    /// The definition that it was built of.
    pub fn definition(&self) -> &VmDefinition {
        match self {
            Self::Here(vm) => vm.definition(),
            Self::Apart(remote) => remote.definition(),
        }
    }

    /// Waits for what is new, as [`look::news`] says. A worker that is gone is the end of its machine.
    ///
    /// # Errors
    /// [`WorkerError::Silent`] of a worker that hangs.
    pub fn news(&self, seen: u64, patience: Duration) -> Result<News, WorkerError> {
        let remote = match self {
            Self::Here(vm) => return Ok(look::news(vm, seen, patience)),
            Self::Apart(remote) => remote,
        };
        match remote.ask(&Request::News { seen }, &[], look::EVERY + SOON) {
            Ok(Reply::News(news)) => Ok(news),
            Err(WorkerError::Gone(_)) if remote.has_ended(SOON) => {
                Ok(News { seen, end: Some(remote.end()), ..News::default() })
            }
            other => Err(other.err().unwrap_or(WorkerError::Nonsense)),
        }
    }

    /// Ends the guest. A worker that does not answer is ended with it.
    pub fn end(&self, reason: EndReason) {
        match self {
            Self::Here(vm) => vm.control().end(reason),
            Self::Apart(remote) => {
                if let Err(error) = remote.have(&Request::End(reason)) {
                    tracing::warn!(process = %remote.process(), %error, "the worker is ended");
                    remote.kill();
                }
            }
        }
    }

    /// Waits until the guest has ended, at most `limit`.
    pub fn wait_end(&self, limit: Duration) {
        match self {
            Self::Here(vm) => drop(vm.control().wait_end(limit)),
            Self::Apart(_) => {
                let deadline = Instant::now() + limit;
                let mut seen = 0;
                while Instant::now() < deadline {
                    match self.news(seen, Duration::MAX) {
                        Ok(news) if news.end.is_none() => seen = news.seen,
                        _ => return,
                    }
                }
            }
        }
    }

    /// Presses the power button.
    pub fn press_power_button(&self) {
        match self {
            Self::Here(vm) => vm.press_power_button(),
            Self::Apart(remote) => note(remote.have(&Request::PowerButton)),
        }
    }

    /// Has the limits of a definition's disks hold.
    pub fn follow_limits(&self, definition: &VmDefinition) {
        match self {
            Self::Here(vm) => vm.follow_limits(definition),
            Self::Apart(remote) => {
                note(remote.have(&Request::Follow(Box::new(definition.clone()))));
            }
        }
    }

    /// Has the guest go along with so many bytes.
    ///
    /// # Errors
    /// [`WorkerError`].
    pub fn want_memory(&self, bytes: u64) -> Result<(), WorkerError> {
        match self {
            Self::Here(vm) => vm.want_memory(bytes),
            Self::Apart(remote) => remote.have(&Request::WantMemory(bytes))?,
        }
        Ok(())
    }

    /// Lets run on what its watchdog has paused.
    ///
    /// # Errors
    /// [`WorkerError`].
    pub fn release_watchdog(&self) -> Result<(), WorkerError> {
        match self {
            Self::Here(vm) => {
                if let Some(watchdog) = vm.watchdog() {
                    lock(watchdog).release();
                }
                vm.control().tell();
            }
            Self::Apart(remote) => remote.have(&Request::ReleaseWatchdog)?,
        }
        Ok(())
    }

    /// Lets the guest run for the first time.
    ///
    /// # Errors
    /// [`WorkerError`].
    pub fn run(&self) -> Result<(), WorkerError> {
        match self {
            Self::Here(vm) => vm.resume(),
            Self::Apart(remote) => remote.have(&Request::Run)?,
        }
        Ok(())
    }

    /// Gives its firmware the file of its variables.
    ///
    /// # Errors
    /// [`vmm::Error`].
    pub fn load_variables(&self, file: File) -> Result<(), vmm::Error> {
        let remote = match self {
            Self::Here(vm) => return vm.load_variables(file),
            Self::Apart(remote) => remote,
        };
        match remote.ask(&Request::Variables, &[file.as_fd()], SOON) {
            Ok(_) => Ok(()),
            Err(error) => Err(vmm::Error::Config(error.to_string())),
        }
    }

    /// What `vm show` tells of it.
    ///
    /// # Errors
    /// [`WorkerError`].
    pub fn usage(&self) -> Result<Usage, WorkerError> {
        let remote = match self {
            Self::Here(vm) => return Ok(look::usage(vm)),
            Self::Apart(remote) => remote,
        };
        match remote.ask(&Request::Usage, &[], SOON)? {
            Reply::Usage(usage) => Ok(*usage),
            _ => Err(WorkerError::Nonsense),
        }
    }

    /// How long its disks take, with where they are; nothing of a machine in a worker.
    pub fn figures(&self) -> Vec<(String, DiskFigures)> {
        match self {
            Self::Here(vm) => look::figures(vm),
            Self::Apart(_) => Vec::new(),
        }
    }

    /// What it prints, for one reader.
    pub fn printed(&self) -> Printed {
        match self {
            Self::Here(vm) => Printed::Here(vm.console().clone()),
            Self::Apart(remote) => Printed::Apart(remote.clone()),
        }
    }

    /// A keyboard of it.
    pub fn keyboard(&self) -> Keyboard {
        match self {
            Self::Here(vm) => Keyboard(Arc::downgrade(vm), None),
            Self::Apart(remote) => Keyboard(Weak::new(), Some(remote.clone())),
        }
    }

    /// The port of its guest's agent.
    pub fn agent(&self) -> Line {
        match self {
            Self::Here(vm) => Line::Here(vm.agent().clone()),
            Self::Apart(remote) => Line::Apart(remote.clone()),
        }
    }
}

fn note(done: Result<(), WorkerError>) {
    if let Err(error) = done {
        tracing::warn!(%error, "a worker was asked in vain");
    }
}

impl Printed {
    /// Where printing is now.
    pub fn position(&self) -> u64 {
        match self {
            Self::Here(console) => console.position(),
            Self::Apart(remote) => {
                let here = Request::Console { position: None, limit_ms: 0 };
                match remote.ask(&here, &[], SOON) {
                    Ok(Reply::Printed(Some((_, at)))) => at,
                    _ => 0,
                }
            }
        }
    }

    /// What was printed from there on and the place behind it, waiting for something; none at the end.
    pub fn read_from(&self, position: u64, limit: Duration) -> Option<(Vec<u8>, u64)> {
        match self {
            Self::Here(console) => console.read_from(position, limit),
            Self::Apart(remote) => {
                let limit_ms = millis(limit);
                let from = Request::Console { position: Some(position), limit_ms };
                match remote.ask(&from, &[], limit + SOON) {
                    Ok(Reply::Printed(printed)) => printed,
                    // One that hangs may go on.
                    Err(WorkerError::Silent(_)) => Some((Vec::new(), position)),
                    _ => None,
                }
            }
        }
    }
}

impl Keyboard {
    /// Types into the console; whether there is a machine.
    pub fn type_in(&self, bytes: &[u8]) -> bool {
        if let Some(remote) = &self.1 {
            return remote.have(&Request::Type(bytes.to_vec())).is_ok();
        }
        let Some(vm) = self.0.upgrade() else { return false };
        vm.type_in(bytes);
        true
    }
}

fn millis(limit: Duration) -> u64 {
    u64::try_from(limit.as_millis()).unwrap_or(u64::MAX)
}

/// The port of a guest's agent, wherever its machine is.
#[derive(Debug, Clone)]
pub enum Line {
    /// Of a machine in this process.
    Here(Port),
    /// Of a machine in a worker.
    Apart(Arc<Remote>),
}

impl From<Port> for Line {
    fn from(port: Port) -> Self {
        Self::Here(port)
    }
}

impl Line {
    fn state(&self) -> (bool, bool) {
        match self {
            Self::Here(port) => (port.is_open(), port.has_ended()),
            Self::Apart(remote) => match remote.ask(&Request::Port, &[], SOON) {
                Ok(Reply::Port { open, ended }) => (open, ended),
                Err(WorkerError::Silent(_)) => (false, false),
                _ => (false, true),
            },
        }
    }

    /// Whether a program in the guest has it open.
    pub fn is_open(&self) -> bool {
        self.state().0
    }

    /// Whether the machine has ended.
    pub fn has_ended(&self) -> bool {
        self.state().1
    }

    /// Sends all of `bytes`, or nothing.
    ///
    /// # Errors
    /// [`PortError`].
    pub fn send(&self, bytes: &[u8]) -> Result<(), PortError> {
        match self {
            Self::Here(port) => port.send(bytes),
            Self::Apart(remote) => {
                ported(remote.ask(&Request::PortSend(bytes.to_vec()), &[], SOON)).map(drop)
            }
        }
    }

    /// Takes what the guest has sent, waiting until `deadline` for something.
    ///
    /// # Errors
    /// [`PortError`].
    pub fn receive(&self, deadline: Instant) -> Result<Vec<u8>, PortError> {
        match self {
            Self::Here(port) => port.receive(deadline),
            Self::Apart(remote) => {
                let left = deadline.saturating_duration_since(Instant::now());
                let take = Request::PortReceive { limit_ms: millis(left) };
                ported(remote.ask(&take, &[], left + SOON))
            }
        }
    }

    /// Forgets what waits in both directions.
    pub fn discard(&self) {
        match self {
            Self::Here(port) => port.discard(),
            Self::Apart(remote) => note(remote.have(&Request::PortDiscard)),
        }
    }
}

fn ported(reply: Result<Reply, WorkerError>) -> Result<Vec<u8>, PortError> {
    match reply {
        Ok(Reply::Ported(ported)) => ported,
        Err(WorkerError::Silent(_)) => Err(PortError::Silent),
        _ => Err(PortError::Closed),
    }
}

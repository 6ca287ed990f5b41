//! A worker as its daemon sees it: questions with an end, and a process.

use std::{
    io,
    os::{
        fd::{BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use host_api::VmDefinition;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{
        Pid, PidfdFlags, Signal, WaitOptions, getuid, pidfd_open, pidfd_send_signal, waitpid,
    },
};
use vmm::platform::{bus::lock, lifecycle::EndReason};

use super::{
    link,
    protocol::{Reply, Request},
};

/// How long a worker has for an answer that needs no work.
pub const SOON: Duration = Duration::from_secs(5);
/// How long a process may take to be gone after its end.
pub(super) const GONE: Duration = Duration::from_secs(2);
/// Connections that are kept for the next question.
const KEPT: usize = 8;

/// Why a worker was of no use.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WorkerError {
    /// The process is gone, or its connection.
    #[error("the VM's worker process is gone")]
    Gone(#[source] io::Error),
    /// It takes too long.
    #[error(
        "the VM's worker process does not answer within {0} s; `vm stop --force` ends it and its VM"
    )]
    Silent(u64),
    /// It says no.
    #[error("{0}")]
    Refused(String),
    /// What it says is no answer.
    #[error("the VM's worker process has answered something else than it was asked")]
    Nonsense,
    /// The process at the socket is somebody else's.
    #[error("the process at {0} is of another user")]
    Stranger(PathBuf),
}

/// A worker that runs, and its VM with it. It lives on when this is dropped.
#[derive(Debug)]
pub struct Remote {
    definition: VmDefinition,
    socket: PathBuf,
    process: Pid,
    pidfd: OwnedFd,
    idle: Mutex<Vec<UnixStream>>,
    /// It was ended by its daemon.
    killed: AtomicBool,
}

impl Remote {
    /// The worker of a machine of this definition, a process that listens at a socket.
    ///
    /// # Errors
    /// What the operating system says if there is no such process.
    pub fn new(definition: VmDefinition, socket: &Path, process: Pid) -> io::Result<Self> {
        Ok(Self {
            definition,
            socket: socket.to_owned(),
            process,
            pidfd: pidfd_open(process, PidfdFlags::empty())?,
            idle: Mutex::default(),
            killed: AtomicBool::new(false),
        })
    }

    /// The definition that the machine was built of.
    pub fn definition(&self) -> &VmDefinition {
        &self.definition
    }

    /// The number that the kernel has given the worker's process.
    pub fn process(&self) -> Pid {
        self.process
    }

    /// Asks a question, which has an answer within `limit` or an error.
    ///
    /// # Errors
    /// [`WorkerError`].
    pub fn ask(
        &self,
        request: &Request,
        files: &[BorrowedFd<'_>],
        limit: Duration,
    ) -> Result<Reply, WorkerError> {
        let kept = lock(&self.idle).pop();
        let connection = match kept {
            Some(connection) => connection,
            None => connect(&self.socket, self.process)?,
        };
        let reply = exchange(&connection, request, files, limit)?;
        let mut idle = lock(&self.idle);
        if idle.len() < KEPT {
            idle.push(connection);
        }
        match reply {
            Reply::Failed(why) => Err(WorkerError::Refused(why)),
            reply => Ok(reply),
        }
    }

    /// Asks for something that is done or not.
    ///
    /// # Errors
    /// [`WorkerError`].
    pub fn have(&self, request: &Request) -> Result<(), WorkerError> {
        match self.ask(request, &[], SOON)? {
            Reply::Done => Ok(()),
            _ => Err(WorkerError::Nonsense),
        }
    }

    /// Ends the process, if it is still there, and its socket.
    pub fn kill(&self) {
        self.killed.store(true, Ordering::Release);
        // One that is gone already needs no signal.
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
        self.has_ended(GONE);
        let _ = waitpid(Some(self.process), WaitOptions::NOHANG);
        let _ = std::fs::remove_file(&self.socket);
    }

    /// Whether the process has ended, or ends within `limit`.
    pub fn has_ended(&self, limit: Duration) -> bool {
        gone(&self.pidfd, limit)
    }

    /// How the process has ended, once it has.
    pub fn end(&self) -> EndReason {
        self.has_ended(GONE);
        // A process that an earlier daemon has started is not this one's child, and tells nothing.
        let status = waitpid(Some(self.process), WaitOptions::NOHANG).ok().flatten();
        let _ = std::fs::remove_file(&self.socket);
        if self.killed.load(Ordering::Acquire) {
            return EndReason::Stopped;
        }
        let (process, status) = (self.process, status.map(|(_, status)| status));
        let how = match status.map(|status| (status.terminating_signal(), status.exit_status())) {
            Some((Some(signal), _)) => format!(" by signal {signal}"),
            Some((_, Some(code))) => format!(" with status {code}"),
            _ => String::new(),
        };
        EndReason::Failed(format!("its worker process {process} has ended{how}"))
    }
}

/// Whether a process has ended, or ends within `limit`.
pub(super) fn gone(process: &OwnedFd, limit: Duration) -> bool {
    let time =
        Timespec { tv_sec: limit.as_secs().cast_signed(), tv_nsec: limit.subsec_nanos().into() };
    let mut waits = [PollFd::new(process, PollFlags::IN)];
    matches!(poll(&mut waits, Some(&time)), Ok(1..))
}

/// A connection to the worker at a socket, which must be that process and of the daemon's user.
fn connect(socket: &Path, process: Pid) -> Result<UnixStream, WorkerError> {
    let stream = UnixStream::connect(socket).map_err(WorkerError::Gone)?;
    let peer = rustix::net::sockopt::socket_peercred(&stream)
        .map_err(|error| WorkerError::Gone(error.into()))?;
    // Until the worker listens itself it is the daemon that has listened.
    let known = peer.pid == process || peer.pid == rustix::process::getpid();
    if peer.uid != getuid() || !known {
        return Err(WorkerError::Stranger(socket.to_owned()));
    }
    Ok(stream)
}

/// One question and its answer.
///
/// # Errors
/// [`WorkerError`].
pub fn exchange(
    connection: &UnixStream,
    request: &Request,
    files: &[BorrowedFd<'_>],
    limit: Duration,
) -> Result<Reply, WorkerError> {
    let of = |error: io::Error| match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => WorkerError::Silent(limit.as_secs()),
        _ => WorkerError::Gone(error),
    };
    connection.set_write_timeout(Some(SOON)).map_err(of)?;
    connection.set_read_timeout(Some(limit)).map_err(of)?;
    link::send(connection, request, files).map_err(of)?;
    match link::receive(connection).map_err(of)? {
        Some((reply, _)) => Ok(reply),
        None => Err(WorkerError::Gone(io::ErrorKind::UnexpectedEof.into())),
    }
}

//! How workers start, and how those of an earlier daemon are found.

use std::{
    fs, io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{
            fs::{DirBuilderExt, PermissionsExt},
            net::{UnixListener, UnixStream},
            process::CommandExt,
        },
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use rustix::process::{Pid, PidfdFlags, Signal, getuid, pidfd_open, pidfd_send_signal};

use super::{
    protocol::{Reply, Request, Shape, VERSION},
    remote::{GONE, Remote, SOON, WorkerError, exchange, gone},
};

/// The folder of workers' sockets in a state folder.
pub fn folder(state: &Path) -> PathBuf {
    state.join("run")
}

/// Starts a worker and has it build a machine; gives the variables of its firmware, too.
///
/// # Errors
/// [`WorkerError`]: what is not possible, or the process that does not start.
pub fn start(
    state: &Path,
    shape: Shape,
    taps: &[OwnedFd],
) -> Result<(Remote, Option<Vec<u8>>), WorkerError> {
    let refused = |what: &str, error: io::Error| {
        WorkerError::Refused(format!("cannot start a worker process: {what}: {error}"))
    };
    let (socket, process) = spawn(state).map_err(|error| refused("hyperv-host worker", error))?;
    let definition = shape.definition.clone();
    let disks = definition.disks.len() as u32 + 1;
    let limit = shape.storage.disk_limit() * 2 * disks + SOON * 2;
    let remote = Remote::new(definition, &socket, process)
        .map_err(|error| refused("the process is gone", error))?;
    let taps: Vec<_> = taps.iter().map(AsFd::as_fd).collect();
    match remote.ask(&Request::Build(Box::new(shape)), &taps, limit) {
        Ok(Reply::Built(variables)) => Ok((remote, variables)),
        other => {
            remote.kill();
            Err(other.err().unwrap_or(WorkerError::Nonsense))
        }
    }
}

fn spawn(state: &Path) -> io::Result<(PathBuf, Pid)> {
    let folder = folder(state);
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
    let mut id = [0; 8];
    rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty())?;
    let socket = folder.join(format!("{:016x}.sock", u64::from_le_bytes(id)));
    // Nobody else gets into the folder.
    let listener = UnixListener::bind(&socket)?;
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o600))?;
    let child = Command::new(program()?)
        .arg("worker")
        .stdin(OwnedFd::from(listener))
        .stdout(Stdio::null())
        // What ends the daemon from its terminal ends no guest.
        .process_group(0)
        .spawn();
    let process = child.map(|child| Pid::from_child(&child));
    let process = process.inspect_err(|_| {
        let _ = fs::remove_file(&socket);
    })?;
    Ok((socket, process))
}

/// The program of workers: this one, as it is installed now.
///
/// # Errors
/// What the operating system says.
pub fn program() -> io::Result<PathBuf> {
    let path = std::env::current_exe()?;
    let text = path.to_string_lossy();
    Ok(text.strip_suffix(" (deleted)").map_or(path.clone(), PathBuf::from))
}

/// The workers of an earlier daemon whose guests run. All others in the folder are ended: those that have
/// no guest yet, and those that do not answer.
///
/// # Errors
/// What the folder says.
pub fn find(state: &Path) -> io::Result<Vec<Remote>> {
    let entries = match fs::read_dir(folder(state)) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for entry in entries {
        let socket = entry?.path();
        let Some((process, known)) = greet(&socket) else {
            // Nobody listens there any more.
            let _ = fs::remove_file(&socket);
            continue;
        };
        match known {
            Ok(remote) => found.push(remote),
            Err(why) => {
                tracing::warn!(process = %process.number, why, "a worker of an earlier run is ended");
                process.end();
                let _ = fs::remove_file(&socket);
            }
        }
    }
    Ok(found)
}

/// A process that is meant, and no later one of the same number.
struct Process {
    number: Pid,
    /// None if it has ended already.
    handle: Option<OwnedFd>,
}

impl Process {
    fn of(number: Pid) -> Self {
        Self { number, handle: pidfd_open(number, PidfdFlags::empty()).ok() }
    }

    /// Ends it, and waits until it is gone: what it had open is free then.
    fn end(&self) {
        let Some(handle) = &self.handle else { return };
        // It may have ended by itself.
        let _ = pidfd_send_signal(handle, Signal::KILL);
        gone(handle, GONE);
    }
}

/// The process that listens at a socket, and what it is.
fn greet(socket: &Path) -> Option<(Process, Result<Remote, String>)> {
    let connection = UnixStream::connect(socket).ok()?;
    let peer = rustix::net::sockopt::socket_peercred(&connection).ok()?;
    if peer.uid != getuid() || peer.pid == rustix::process::getpid() {
        return None;
    }
    let process = Process::of(peer.pid);
    let known = match exchange(&connection, &Request::Hello, &[], SOON) {
        Ok(Reply::Hello { version: VERSION, runs: Some(definition) }) => {
            Remote::new(*definition, socket, peer.pid).map_err(|error| error.to_string())
        }
        Ok(Reply::Hello { version, .. }) if version != VERSION => {
            Err(format!("it speaks version {version}, this daemon {VERSION}"))
        }
        Ok(_) => Err("its guest does not run yet".to_owned()),
        Err(error) => Err(error.to_string()),
    };
    Some((process, known))
}

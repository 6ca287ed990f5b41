//! The control socket: one thread a connection, one JSON object a line (see `host-api`).

use std::{
    fs,
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::{
        fs::PermissionsExt,
        net::{UnixListener, UnixStream},
    },
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use host_api::{Event, MAX_LINE, Reply, Request, VmName};
use http_api::Caller;
use vmm::platform::error::chain;

use crate::{
    api::Verbs,
    host::{Host, HostError, spawn},
};

/// Where callers of the socket ask from, for the log of changes.
const SOCKET: &str = "control.sock";

/// How long a VM is held quiet if nobody says otherwise, and at most, in seconds.
const QUIET_LIMIT: u32 = 60;
const LONGEST_QUIET: u32 = 300;
/// How often a console connection looks whether its reader is still there.
const CONSOLE_TICK: Duration = Duration::from_millis(500);
/// How long a client may take to take an answer. One that is stopped would hold what it asked for
/// as long as it is.
const WRITE_LIMIT: Duration = Duration::from_secs(10);
/// Pause after a connection could not be accepted: what is short is not there sooner for asking
/// again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Binds the control socket, readable and writable by its owner only.
///
/// # Errors
/// `AddrInUse` if a daemon listens there, else what the operating system says.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    if UnixStream::connect(path).is_ok() {
        return Err(io::ErrorKind::AddrInUse.into());
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // The socket must never be there with wider permissions, not even for a moment.
    let listener = {
        let old = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
        let listener = UnixListener::bind(path);
        rustix::process::umask(old);
        listener?
    };
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// A connection's place among those that are open.
struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(open: &Arc<AtomicUsize>) -> Self {
        open.fetch_add(1, Ordering::Relaxed);
        Self(open.clone())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Serves the socket for ever.
pub fn serve(verbs: &Arc<Verbs>, listener: &UnixListener) {
    let open = Arc::new(AtomicUsize::new(0));
    let mut failing = false;
    for stream in listener.incoming() {
        let stream = match stream {
            Ok(stream) => stream,
            Err(error) => {
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(%error, "control socket");
                }
                thread::sleep(ACCEPT_PAUSE);
                continue;
            }
        };
        failing = false;
        if open.load(Ordering::Relaxed) >= verbs.host().config.limits.control_connections {
            continue;
        }
        let (verbs, place) = (verbs.clone(), Place::take(&open));
        spawn("control".into(), move || {
            let _place = place;
            if let Err(error) = connection(&verbs, stream) {
                tracing::debug!(%error, "control connection");
            }
        });
    }
}

fn tell(stream: &mut UnixStream, event: &Event) -> io::Result<()> {
    let mut line = serde_json::to_vec(event)?;
    line.push(b'\n');
    let told = stream.write_all(&line);
    if told.is_err() {
        // Part of a line may have gone out. What else there is to tell fails at once.
        let _ = stream.shutdown(std::net::Shutdown::Both);
    }
    told
}

/// The next line; none at the end. One that is longer than allowed ends within.
fn next_line(reader: &mut impl BufRead) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    let got = reader.take(MAX_LINE as u64 + 1).read_until(b'\n', &mut line)?;
    Ok((got > 0).then_some(line))
}

fn connection(verbs: &Verbs, stream: UnixStream) -> io::Result<()> {
    let host = verbs.host();
    let caller = caller(&stream)?;
    stream.set_write_timeout(Some(WRITE_LIMIT))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut stream = stream;
    loop {
        let Some(line) = next_line(&mut reader)? else { return Ok(()) };
        if line.len() > MAX_LINE {
            let message = format!("bad request: longer than {MAX_LINE} bytes");
            return tell(&mut stream, &Event::Failed { message });
        }
        let request = match serde_json::from_slice(&line) {
            Ok(request) => request,
            Err(error) => {
                tell(&mut stream, &Event::Failed { message: format!("bad request: {error}") })?;
                return Ok(());
            }
        };
        if let Request::Console { name, replay } = &request {
            return console(host, stream, reader, name, *replay);
        }
        if let Request::Quiesce { name, limit_s } = &request {
            quiesce(host, &mut stream, &mut reader, name, *limit_s)?;
            continue;
        }
        let done = verbs.carry_out(&caller, request, |progress| {
            // Whoever asked may have gone; what they asked for goes on.
            let _ = tell(&mut stream, &Event::Progress { progress });
        });
        let event = match done {
            Ok(reply) => Event::Done { reply },
            Err(message) => Event::Failed { message },
        };
        tell(&mut stream, &event)?;
    }
}

/// Who is at the other end: only the host's user and the superuser can be.
fn caller(stream: &UnixStream) -> io::Result<Caller> {
    let uid = rustix::net::sockopt::socket_peercred(stream)?.uid;
    Ok(Caller::local(uid.as_raw(), SOCKET))
}

/// Holds a VM quiet until the other end says something, whatever that is, or is gone, or the time is over.
fn quiesce(
    host: &Arc<Host>,
    stream: &mut UnixStream,
    reader: &mut BufReader<UnixStream>,
    name: &VmName,
    limit_s: Option<u32>,
) -> io::Result<()> {
    let seconds = limit_s.unwrap_or(QUIET_LIMIT).clamp(1, LONGEST_QUIET);
    let limit = Duration::from_secs(seconds.into());
    let managed = host.find(name);
    let quiet = managed
        .as_ref()
        .map_err(|error| chain(error))
        .and_then(|it| it.quiesce().map_err(|e| chain(&e)));
    let quiet = match quiet {
        Ok(quiet) => quiet,
        Err(message) => return tell(stream, &Event::Failed { message }),
    };
    let begin = Instant::now();
    let (consistency, reason) = quiet.consistency();
    tell(stream, &Event::Done { reply: Reply::Quiet { consistency, reason } })?;
    reader.get_ref().set_read_timeout(Some(limit))?;
    let said = reader.fill_buf().map(|bytes| !bytes.is_empty());
    drop(quiet);
    let held = begin.elapsed();
    reader.get_ref().set_read_timeout(None)?;
    let overdue = match said {
        Ok(true) => false,
        // Nobody is there to be told.
        Ok(false) => return Ok(()),
        Err(error)
            if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) =>
        {
            true
        }
        Err(error) => return Err(error),
    };
    let Some(line) = next_line(reader)? else { return Ok(()) };
    let event = match serde_json::from_slice(&line) {
        Ok(Request::Thaw) if overdue => Event::Failed {
            message: chain(&HostError::QuietTooLong { name: name.clone(), seconds }),
        },
        Ok(Request::Thaw) => {
            let held_ms = u64::try_from(held.as_millis()).unwrap_or(u64::MAX);
            Event::Done { reply: Reply::Thawed { held_ms } }
        }
        _ => Event::Failed { message: "bad request: only `thaw` ends a quiesce".to_owned() },
    };
    tell(stream, &event)
}

fn console(
    host: &Arc<Host>,
    mut stream: UnixStream,
    mut reader: BufReader<UnixStream>,
    name: &VmName,
    replay: bool,
) -> io::Result<()> {
    let managed = match host.find(name) {
        Ok(managed) => managed,
        Err(error) => return tell(&mut stream, &Event::Failed { message: chain(&error) }),
    };
    let Some(vm) = managed.machine() else {
        let error = HostError::State { name: name.clone(), state: managed.state() };
        return tell(&mut stream, &Event::Failed { message: chain(&error) });
    };
    let out = vm.printed();
    let mut position = if replay { 0 } else { out.position() };
    tell(&mut stream, &Event::Done { reply: Reply::ConsoleAttached })?;
    // Who reads a console may stop reading for as long as they like: that holds nothing up.
    stream.set_write_timeout(None)?;
    let keyboard = vm.keyboard();
    drop(vm);
    spawn(format!("{name}/typing"), move || {
        let mut bytes = [0; 1024];
        while let Ok(got @ 1..) = reader.read(&mut bytes) {
            if !keyboard.type_in(&bytes[..got]) {
                break;
            }
        }
    });
    while let Some((bytes, next)) = out.read_from(position, CONSOLE_TICK) {
        stream.write_all(&bytes)?;
        if bytes.is_empty() && hung_up(&stream) {
            break;
        }
        position = next;
    }
    let _ = stream.shutdown(std::net::Shutdown::Both);
    Ok(())
}

/// Whether the other end is gone altogether (one that only stopped sending still listens).
fn hung_up(stream: &UnixStream) -> bool {
    let mut poll = [rustix::event::PollFd::new(stream, rustix::event::PollFlags::empty())];
    let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    rustix::event::poll(&mut poll, Some(&now)).is_ok()
        && poll[0].revents().contains(rustix::event::PollFlags::HUP)
}

//! `smbd --supervise`: a small process that keeps the listening sockets and starts the server
//! again when it ends, so that clients who come meanwhile wait instead of being refused.
//!
//! ```text
//!             sockets, bound once                 a line: "ready", "alive", "upgrade"
//!  clients ═══════╪══════════════► smbd ──────────────► supervisor ──► service manager
//!                 │                 │ ends by itself      │ starts it again at once; the more
//!                 │                 ▼                     │ often in a row, the later
//!                 └═══════════════► smbd (next)           │
//!                                                         │ not alive for too long: SIGKILL
//!  upgrade: new smbd is started and makes ready ─ "waiting" ─► old one is told to end (SIGTERM)
//!           new one takes the state over when the old one has let go of it ─ "ready"
//! ```
//!
//! The supervisor reads the configuration once, for the addresses; it serves nobody and parses
//! nothing that a client sends. If it ends, the server ends too: its line is cut.

use std::{
    collections::VecDeque,
    ffi::OsString,
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::net::UnixStream as StdStream,
    },
    path::PathBuf,
    process::{ExitStatus, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    net::UnixStream,
    process::{Child, Command},
    signal::unix::{SignalKind, signal},
    sync::mpsc::{UnboundedReceiver, unbounded_channel},
};

use crate::{Bound, inherit};

/// How often a server says that it is alive.
pub const BEAT: Duration = Duration::from_millis(500);
/// How long a server may take to become ready, or to end.
const PATIENCE: Duration = Duration::from_secs(60);
/// Within that time so many servers may end before the next is made to wait.
const LATELY: Duration = Duration::from_secs(10);
const AT_ONCE: usize = 20;
/// Longest pause before another start.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The server that is supervised, and how it is started again.
#[derive(Debug)]
pub struct Plan {
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// More of them for those that come after one that has served.
    pub again: Vec<OsString>,
    /// A server that does not say for so long that it is alive is killed.
    pub patience: Duration,
}

/// How a server is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// Requests end, and what is open is handed over.
    Orderly,
    /// It is killed.
    AtOnce,
}

/// The orders to stop that come to this process by signals.
///
/// # Errors
/// If signals cannot be had.
pub fn stops_by_signal() -> io::Result<UnboundedReceiver<Stop>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (send, stops) = unbounded_channel();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        let _ = send.send(Stop::Orderly);
        // Whoever waits for more than that waits for ever.
        send.closed().await;
    });
    Ok(stops)
}

/// A server that runs, and its line.
struct Server {
    child: Child,
    line: Lines<BufReader<UnixStream>>,
    heard: Instant,
    ready: bool,
}

/// What happened to a server.
enum Event {
    Said(String),
    Ended(io::Result<ExitStatus>),
    Silent,
}

impl Server {
    fn start(plan: &Plan, sockets: &[OwnedFd]) -> io::Result<Self> {
        let (ours, theirs) = StdStream::pair()?;
        inherit::pass_on(&theirs)?;
        let numbers: Vec<_> = sockets.iter().map(|fd| fd.as_raw_fd().to_string()).collect();
        let child = Command::new(&plan.program)
            .args(&plan.arguments)
            .env(inherit::SOCKETS, numbers.join(","))
            .env(inherit::SUPERVISOR, theirs.as_raw_fd().to_string())
            .env_remove("NOTIFY_SOCKET")
            .env_remove("LISTEN_FDS")
            .env_remove("LISTEN_PID")
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        ours.set_nonblocking(true)?;
        let line = BufReader::new(UnixStream::from_std(ours)?).lines();
        Ok(Self { child, line, heard: Instant::now(), ready: false })
    }

    fn signal(&self, signal: Signal) {
        let pid = self.child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        if let Some(pid) = pid
            && let Err(error) = kill_process(pid, signal)
        {
            tracing::warn!(%error, "the server cannot be signalled");
        }
    }

    /// What happens next.
    async fn next(&mut self, patience: Duration) -> Event {
        let patience = if self.ready { patience } else { patience.max(PATIENCE) };
        let silent = tokio::time::sleep_until((self.heard + patience).into());
        tokio::select! {
            biased;
            said = self.line.next_line() => match said {
                Ok(Some(said)) => {
                    self.heard = Instant::now();
                    self.ready |= said == "ready";
                    Event::Said(said)
                }
                // It has let go of its line: it ends.
                _ => Event::Ended(self.child.wait().await),
            },
            ended = self.child.wait() => Event::Ended(ended),
            () = silent => Event::Silent,
        }
    }

    /// Has it end, by force if it does not.
    async fn end(&mut self) {
        self.signal(Signal::TERM);
        if tokio::time::timeout(PATIENCE, self.child.wait()).await.is_err() {
            tracing::warn!("the server does not end and is killed");
            let _ = self.child.kill().await;
        }
    }

    /// Has it end as it is told to, which can become shorter meanwhile.
    async fn stop(&mut self, how: Stop, stops: &mut UnboundedReceiver<Stop>) {
        if how == Stop::Orderly {
            let hurried = async {
                while let Some(how) = stops.recv().await {
                    if how == Stop::AtOnce {
                        return;
                    }
                }
                std::future::pending().await
            };
            tokio::select! {
                () = self.end() => return,
                () = hurried => {}
            }
        }
        let _ = self.child.kill().await;
    }
}

/// How long to wait before the next start after so many that ended lately.
fn pause(ended: usize) -> Duration {
    match u32::try_from(ended.saturating_sub(AT_ONCE)) {
        Ok(0) => Duration::ZERO,
        Ok(more) => LONGEST_PAUSE.min(Duration::from_millis(25) * 2u32.pow(more.min(16))),
        Err(_) => LONGEST_PAUSE,
    }
}

/// Keeps a server running until it is told to stop. `notify` tells the service manager.
///
/// # Errors
/// If the first server does not become ready, or signals cannot be had. Then none runs.
pub async fn run(
    mut plan: Plan,
    bound: Bound,
    notify: impl Fn(&str),
    stops: &mut UnboundedReceiver<Stop>,
) -> anyhow::Result<()> {
    let sockets = bound.into_fds();
    for socket in &sockets {
        inherit::pass_on(socket)?;
    }
    let mut hangup = signal(SignalKind::hangup())?;
    let mut upgrade = signal(SignalKind::user_defined2())?;
    let mut server = Server::start(&plan, &sockets)?;
    let mut served = false;
    let mut ended = VecDeque::new();
    let how = loop {
        let event = tokio::select! {
            event = server.next(plan.patience) => event,
            Some(how) = stops.recv() => break how,
            _ = hangup.recv() => {
                server.signal(Signal::HUP);
                continue;
            }
            _ = upgrade.recv() => Event::Said("upgrade".to_owned()),
        };
        match event {
            Event::Said(said) => match said.as_str() {
                "ready" if !served => {
                    served = true;
                    let again = std::mem::take(&mut plan.again);
                    plan.arguments.extend(again);
                    notify("READY=1");
                }
                "alive" => notify("WATCHDOG=1"),
                "upgrade" => tokio::select! {
                    () = replace(&plan, &sockets, &mut server, &notify) => {}
                    Some(how) = stops.recv() => break how,
                },
                _ => {}
            },
            Event::Silent => {
                tracing::error!("the server is silent and is killed");
                let _ = server.child.start_kill();
                // What it says from now on is not waited for.
                server.heard = Instant::now();
            }
            Event::Ended(status) => {
                let status = status?;
                if !served {
                    anyhow::bail!("the server does not start ({status})");
                }
                ended.push_back(Instant::now());
                while ended.front().is_some_and(|at| at.elapsed() > LATELY) {
                    ended.pop_front();
                }
                let pause = pause(ended.len());
                tracing::error!(%status, ?pause, "the server has ended and is started again");
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    Some(_) = stops.recv() => return Ok(()),
                }
                server = Server::start(&plan, &sockets)?;
            }
        }
    };
    notify("STOPPING=1");
    server.stop(how, stops).await;
    Ok(())
}

/// Awaits something and tells the service manager meanwhile that all is well.
async fn minding<T>(notify: &impl Fn(&str), what: impl Future<Output = T>) -> T {
    let mut tick = tokio::time::interval(BEAT);
    tokio::pin!(what);
    loop {
        tokio::select! {
            done = &mut what => return done,
            _ = tick.tick() => notify("WATCHDOG=1"),
        }
    }
}

/// Puts a new server in the place of the old one: it is started beside it, and when it needs
/// nothing but the state, the old one is told to end. If it does not come that far, the old one
/// stays.
async fn replace(plan: &Plan, sockets: &[OwnedFd], server: &mut Server, notify: &impl Fn(&str)) {
    let since = Instant::now();
    let mut new = match Server::start(plan, sockets) {
        Ok(new) => new,
        Err(error) => {
            tracing::error!(%error, "no upgrade: the new server cannot be started");
            return;
        }
    };
    loop {
        match minding(notify, new.next(PATIENCE)).await {
            Event::Said(said) if said == "waiting" => break,
            Event::Said(_) => {}
            Event::Ended(_) | Event::Silent => {
                tracing::error!("no upgrade: the new server does not start; the old one stays");
                return;
            }
        }
    }
    let prepared = since.elapsed();
    minding(notify, server.end()).await;
    let mut old = std::mem::replace(server, new);
    let _ = old.child.wait().await;
    while !server.ready {
        match minding(notify, server.next(PATIENCE)).await {
            Event::Said(_) => {}
            // The main loop starts another.
            Event::Ended(_) | Event::Silent => {
                let _ = server.child.start_kill();
                return;
            }
        }
    }
    let away = since.elapsed() - prepared;
    tracing::info!(?prepared, ?away, "a new server has taken over");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_ends_again_and_again_is_started_ever_later() {
        assert_eq!((pause(1), pause(AT_ONCE)), (Duration::ZERO, Duration::ZERO));
        assert_eq!(pause(AT_ONCE + 1), Duration::from_millis(50));
        for ended in 0..100 {
            assert!(pause(ended) <= pause(ended + 1) && pause(ended) <= LONGEST_PAUSE);
        }
        assert_eq!(pause(usize::MAX), LONGEST_PAUSE);
    }
}

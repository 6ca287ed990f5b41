//! `bulkhead server`: what a running file server is doing, and telling it to stop doing so.

use std::{collections::BTreeMap, path::PathBuf};

use anyhow::{Context, bail};
use clap::Subcommand;
use serde::Serialize;
use server_api::{Client, HistoryPoint, Reply, Request, SessionInfo, Span, Target};

use crate::{remote, say::shown};

/// Where the server's admin socket is.
#[derive(Debug, clap::Args)]
pub struct Socket {
    /// The server's admin socket: admin.sock in its state folder.
    #[arg(
        long,
        global = true,
        env = "BULKHEAD_SERVER_SOCKET",
        default_value = "/var/lib/bulkhead/admin.sock"
    )]
    socket: PathBuf,
}

impl Socket {
    /// Asks the server over its admin socket, or the one elsewhere that the command line names.
    pub fn ask(&self, request: &Request) -> anyhow::Result<Reply> {
        if let Some(server) = remote::server()? {
            return server.call::<server_api::Server>(request).context("the server refused");
        }
        let mut client = Client::connect(&self.socket)?;
        client.call(request).context("the server refused")
    }
}

/// Arguments of `bulkhead server`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    socket: Socket,
    /// Print JSON instead of a table.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// How the server is.
    Status,
    /// Who is logged in.
    Sessions,
    /// What is open.
    Opens,
    /// Byte ranges that are locked.
    Locks,
    /// The shares.
    Shares,
    /// What it did in the last hour, day or month.
    History {
        /// How far back: in steps of 10 seconds, a minute or 15 minutes.
        #[arg(value_enum, default_value_t = Back::Hour)]
        back: Back,
    },
    /// End sessions with all they have open, or close one open.
    Disconnect(Which),
    /// Read the configuration again.
    Reload,
    /// Have the program that is installed now take over from the one that runs: persistent opens
    /// stay, clients connect again by themselves. Needs smbd --supervise.
    Upgrade,
}

/// How far back.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Back {
    Hour,
    Day,
    Month,
}

impl From<Back> for Span {
    fn from(back: Back) -> Self {
        match back {
            Back::Hour => Self::Hour,
            Back::Day => Self::Day,
            Back::Month => Self::Month,
        }
    }
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct Which {
    /// One session, as `sessions` shows it.
    #[arg(long, value_parser = number)]
    session: Option<u64>,
    /// All sessions of a user.
    #[arg(long)]
    user: Option<String>,
    /// All sessions from an address, with or without port.
    #[arg(long)]
    address: Option<String>,
    /// One open, as `opens` shows it.
    #[arg(long, value_parser = number)]
    open: Option<u64>,
}

/// A number, in hexadecimal as the tables show it (with or without 0x).
fn number(text: &str) -> Result<u64, std::num::ParseIntError> {
    u64::from_str_radix(text.strip_prefix("0x").unwrap_or(text), 16)
}

/// Runs the subcommand that the arguments name.
pub fn run(args: Args) -> anyhow::Result<()> {
    let request = match args.command {
        Command::Status => Request::Status,
        Command::Sessions => Request::Sessions,
        Command::Opens => Request::Opens,
        Command::Locks => Request::Locks,
        Command::Shares => Request::Shares,
        Command::History { back } => Request::History { span: back.into() },
        Command::Reload => Request::Reload,
        Command::Upgrade => Request::Upgrade,
        Command::Disconnect(Which { session, user, address, open }) => {
            let target = session
                .map(Target::Session)
                .or(user.map(Target::User))
                .or(address.map(Target::Address))
                .or(open.map(Target::Open));
            Request::Disconnect { target: target.context("say whom to disconnect")? }
        }
    };
    show(args.socket.ask(&request)?, args.json)
}

/// Prints a value as one line of JSON.
pub fn json(value: &impl Serialize) -> anyhow::Result<()> {
    say!("{}", serde_json::to_string(value)?);
    Ok(())
}

fn show(reply: Reply, as_json: bool) -> anyhow::Result<()> {
    match reply {
        Reply::Status { status } if as_json => json(&status)?,
        Reply::Sessions { sessions } if as_json => json(&sessions)?,
        Reply::Opens { opens } if as_json => json(&opens)?,
        Reply::Locks { locks } if as_json => json(&locks)?,
        Reply::Shares { shares } if as_json => json(&shares)?,
        Reply::History { points, .. } if as_json => json(&points)?,
        Reply::Disconnected { count } if as_json => json(&count)?,
        Reply::Status { status } => {
            let row = |key: &str, value: String| say!("{key:<12} {value}");
            row("name", status.name);
            row("version", status.version);
            row("process", status.pid.to_string());
            row("uptime", format!("{} s", status.uptime_s));
            row("listens on", status.listen.join(", "));
            row("connections", status.connections.to_string());
            row("sessions", status.sessions.to_string());
            row("opens", format!("{} of {} files", status.opens, status.files));
            row("shares", status.shares.to_string());
        }
        Reply::Sessions { sessions } => session_table(sessions),
        Reply::Opens { opens } => table(
            &["OPEN", "SESSION", "USER", "SHARE", "ACCESS", "CACHING", "LOCKS", "PATH"],
            opens.into_iter().map(|o| {
                let session = o.session.map_or_else(|| "-".to_owned(), |id| format!("{id:x}"));
                let caching = if o.caching.is_empty() { "-".to_owned() } else { o.caching };
                let access = format!("{:08x}", o.access);
                let (id, locks) = (format!("{:x}", o.id), o.locks.to_string());
                [id, session, o.user, o.share, access, caching, locks, o.path]
            }),
        ),
        Reply::Locks { locks } => table(
            &["OPEN", "USER", "SHARE", "OFFSET", "LENGTH", "KIND", "PATH"],
            locks.into_iter().map(|l| {
                let kind = if l.exclusive { "exclusive" } else { "shared" }.to_owned();
                let (offset, length) = (l.offset.to_string(), l.length.to_string());
                [format!("{:x}", l.open), l.user, l.share, offset, length, kind, l.path]
            }),
        ),
        Reply::Shares { shares } => table(
            &["SHARE", "MODE", "CONNECTED", "OPENS", "SNAPSHOTS", "BLOCKS", "FOLDER"],
            shares.into_iter().map(|s| {
                let mode = if s.read_only { "ro" } else { "rw" }.to_owned();
                let blocks = if s.shares_blocks { "shared" } else { "-" }.to_owned();
                let (connected, opens) = (s.connected.to_string(), s.opens.to_string());
                [s.name, mode, connected, opens, s.snapshots.to_string(), blocks, s.path]
            }),
        ),
        Reply::History { points, .. } => history(&points),
        Reply::Disconnected { count } => say!("{count} ended"),
        Reply::Ok => {}
        other => bail!("the server answered {other:?}"),
    }
    Ok(())
}

/// The points of a history, each as rates over its time.
fn history(points: &[HistoryPoint]) {
    let ago = points.last().map_or(0, |last| last.time);
    table(
        &[
            "AGO", "READS/S", "WRITES/S", "OTHERS/S", "IN", "OUT", "ERRORS", "P50", "P99",
            "SESSIONS", "CPU",
        ],
        points.iter().map(|p| {
            let rate = |count: u64| format!("{:.1}", count as f64 / p.seconds.max(1) as f64);
            let moved = |bytes: u64| {
                format!("{:.1} MiB/s", bytes as f64 / f64::from(1 << 20) / p.seconds.max(1) as f64)
            };
            let micros =
                |micros: u64| if micros == 0 { "-".to_owned() } else { format!("{micros} µs") };
            [
                format!("{} s", ago - p.time),
                rate(p.reads),
                rate(p.writes),
                rate(p.others),
                moved(p.received),
                moved(p.sent),
                p.errors.to_string(),
                micros(p.p50_us),
                micros(p.p99_us),
                p.sessions.to_string(),
                format!("{:.1} %", p.cpu_permille as f64 / 10.0),
            ]
        }),
    );
}

/// Connections that a line names.
const NAMED: usize = 4;

/// Sessions, and below them why the data of which of their connections do not go by RDMA.
fn session_table(sessions: Vec<SessionInfo>) {
    let mut reasons = BTreeMap::<_, Vec<_>>::new();
    for s in &sessions {
        for (client, why) in s.clients.iter().zip(&s.why_not_rdma) {
            if let Some(why) = why {
                reasons.entry(why.clone()).or_default().push(client.clone());
            }
        }
    }
    table(
        &["SESSION", "USER", "CLIENT", "TRANSPORT", "DIALECT", "PROTECTION", "SHARES", "OPENS"],
        sessions.into_iter().map(|s| {
            let protection = match (s.encrypted, s.signed, s.cipher) {
                (true, _, Some(cipher)) => cipher,
                (_, true, _) => "signed".to_owned(),
                _ => "-".to_owned(),
            };
            let (clients, shares) = (s.clients.join(" "), s.shares.join(" "));
            let (id, opens) = (format!("{:x}", s.id), s.opens.to_string());
            let transports = s.transports.join(" ");
            [id, s.user, clients, transports, s.dialect, protection, shares, opens]
        }),
    );
    for (why, clients) in reasons {
        let named: Vec<_> = clients.iter().take(NAMED).map(|client| shown(client)).collect();
        let more = match clients.len() - named.len() {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        say!("no RDMA for {}{more}: {}", named.join(", "), shown(&why));
    }
}

/// Prints rows below a heading, each column as wide as it must be.
pub fn table<const N: usize>(heading: &[&str; N], rows: impl Iterator<Item = [String; N]>) {
    let rows: Vec<_> = rows.collect();
    let mut widths = heading.map(str::len);
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(shown(cell).chars().count());
        }
    }
    let line = |cells: Vec<&str>| {
        let cells = cells.iter().zip(widths).map(|(cell, width)| format!("{:width$}", shown(cell)));
        say!("{}", cells.collect::<Vec<_>>().join("  ").trim_end());
    };
    line(heading.to_vec());
    for row in &rows {
        line(row.iter().map(String::as_str).collect());
    }
}

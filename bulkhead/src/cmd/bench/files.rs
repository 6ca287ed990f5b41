//! `bulkhead bench smb-files`: small files made, written and closed over one connection.
//!
//! ```text
//!  lane 0   CREATE ─► WRITE ─► CLOSE │ CREATE ─► …        one file after the other
//!  lane 1        CREATE ─► WRITE ─► CLOSE │ …             in each of --queue-depth lanes
//! ```
//!
//! What the lanes have to say at one time is sent together. A file's latency runs from its
//! CREATE to the answer to its CLOSE.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use serde_json::json;
use smb_client::raw::RawConnection;
use smb_protocol::{FileId, NtStatus};

use super::{
    common::{self, Target, latencies, micros},
    cpu,
    histogram::Histogram,
    verify::fill,
};
use crate::units::parse_size;

/// Arguments of `bulkhead bench smb-files`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The path of the URL is the folder for the files: it is made and must not be there.
    #[command(flatten)]
    target: Target,
    /// Bytes of each file.
    #[arg(long, default_value = "4K", value_parser = parse_size)]
    file_size: u64,
    /// Files in progress at a time.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    queue_depth: u16,
    /// How long to measure, in seconds.
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// Leave the files and their folder behind.
    #[arg(long)]
    keep: bool,
}

/// What is done with a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Task {
    /// Make it, write it, close it.
    Make,
    /// Open it to be deleted, close it.
    Remove,
}

/// The request of a lane that is in flight, or is to be sent when there are credits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    Open,
    Write(FileId),
    Close(FileId),
}

#[derive(Clone, Copy, Debug)]
struct Lane {
    file: u64,
    step: Step,
    started: Instant,
}

/// One connection and the files on it.
struct Files<'a> {
    connection: RawConnection,
    folder: &'a str,
    depth: usize,
    data: Vec<u8>,
    /// Lanes by the message that is in flight for them.
    flight: HashMap<u64, Lane>,
    /// Lanes whose request is to be sent.
    due: Vec<Lane>,
    latency: Histogram,
}

impl Files<'_> {
    fn path(&self, file: u64) -> String {
        format!("{}/{file:09}", self.folder)
    }

    /// Starts files for as long as `next` gives numbers, and waits until all are done.
    fn run(
        &mut self,
        task: Task,
        mut next: impl FnMut(Instant) -> Option<u64>,
    ) -> anyhow::Result<()> {
        let mut answers = Vec::new();
        loop {
            let now = Instant::now();
            while self.due.len() + self.flight.len() < self.depth {
                let Some(file) = next(now) else { break };
                self.due.push(Lane { file, step: Step::Open, started: now });
            }
            while let Some(lane) = self.due.pop() {
                let len = if matches!(lane.step, Step::Write(_)) { self.data.len() } else { 0 };
                if !self.connection.can_queue(u32::try_from(len).unwrap_or(u32::MAX)) {
                    self.due.push(lane);
                    break;
                }
                let message = self.queue(task, &lane)?;
                self.flight.insert(message, lane);
            }
            if self.flight.is_empty() {
                match self.due.is_empty() {
                    true => return Ok(()),
                    false => bail!("the server grants no credits for a request of this size"),
                }
            }
            self.connection.send()?;
            answers.clear();
            self.connection.receive(|a| answers.push((a.message, a.status, a.file)))?;
            let now = Instant::now();
            for (message, status, opened) in &answers {
                let Some(lane) = self.flight.remove(message) else { continue };
                if *status != NtStatus::SUCCESS {
                    bail!("{task:?} {:?}, {:?}: {status}", self.path(lane.file), lane.step);
                }
                let step = match (lane.step, opened) {
                    (Step::Open, Some(file)) if task == Task::Make => Step::Write(*file),
                    (Step::Open, Some(file)) => Step::Close(*file),
                    (Step::Open, None) => bail!("a file was opened without a handle"),
                    (Step::Write(file), _) => Step::Close(file),
                    (Step::Close(_), _) => {
                        if task == Task::Make {
                            self.latency.add(now.duration_since(lane.started));
                        }
                        continue;
                    }
                };
                self.due.push(Lane { step, ..lane });
            }
        }
    }

    fn queue(&mut self, task: Task, lane: &Lane) -> anyhow::Result<u64> {
        let path = self.path(lane.file);
        Ok(match lane.step {
            Step::Open if task == Task::Make => self.connection.queue_create(&path)?,
            Step::Open => self.connection.queue_remove(&path)?,
            Step::Write(file) => {
                fill(&mut self.data, lane.file, 1);
                self.connection.queue_write_to(file, 0, &self.data)
            }
            Step::Close(file) => self.connection.queue_close(file),
        })
    }
}

/// Runs the subcommand that the arguments name.
pub fn run(args: Args) -> anyhow::Result<()> {
    let Target { url, server_pid, .. } = &args.target;
    if url.path.is_empty() {
        bail!("{url} names a share and no folder on it");
    }
    if !(args.seconds > 0.0 && args.seconds <= 86400.0) {
        bail!("--seconds must be above 0 and at most 86400");
    }
    let server_cpu = || server_pid.map(cpu::of_tree).transpose();
    server_cpu()?;
    let depth = args.queue_depth;
    let per_file = args.file_size.div_ceil(65536).max(1);
    let credits = (per_file * u64::from(depth)).clamp(64, 8192);
    let options = args.target.options(u16::try_from(credits).unwrap_or(8192))?;
    let mut connection = RawConnection::connect_share(&options, &url.share)?;
    if args.file_size > u64::from(connection.max_io().1) {
        bail!("the server takes at most {} bytes per request", connection.max_io().1);
    }
    connection.create_directory(&url.path)?;
    let protocol = common::protocol(&connection);
    let mut files = Files {
        connection,
        folder: &url.path,
        depth: depth.into(),
        data: vec![0; usize::try_from(args.file_size)?],
        flight: HashMap::new(),
        due: Vec::new(),
        latency: Histogram::new(),
    };
    let (server_before, client_before) = (server_cpu()?, cpu::of_self());
    let started = Instant::now();
    let until = started + Duration::from_secs_f64(args.seconds);
    let mut numbers = 0..;
    files.run(Task::Make, |now| if now < until { numbers.next() } else { None })?;
    let seconds = started.elapsed().as_secs_f64();
    let client_cpu = cpu::of_self().saturating_sub(client_before);
    let server_cpu = server_cpu()?.zip(server_before).map(|(a, b)| a.saturating_sub(b));
    let count = files.latency.total();
    if !args.keep {
        let mut numbers = 0..count;
        files.run(Task::Remove, |_| numbers.next()).context("cannot remove the files")?;
        remove_folder(&mut files.connection, &url.path)?;
    }

    let rate = count as f64 / seconds.max(1e-9);
    let each = |cpu: Duration| micros(cpu) / count.max(1) as f64;
    if args.target.json {
        let report = json!({
            "url": url.to_string(),
            "file_size": args.file_size,
            "queue_depth": depth,
            "protocol": protocol,
            "seconds": seconds,
            "operations": count,
            "operations_per_second": rate.round(),
            "megabytes_per_second": (rate * args.file_size as f64 / 1e5).round() / 10.0,
            "file": latencies(&files.latency),
            "server_cpu_us_per_operation": server_cpu.map(each),
            "server_cpu_seconds": server_cpu.map(|cpu| cpu.as_secs_f64()),
            "client_cpu_us_per_operation": each(client_cpu),
        });
        say!("{report:#}");
        return Ok(());
    }
    say!("{url}\n  {rate:.0} files/s   {count} files in {seconds:.2} s");
    let column = |of| micros(files.latency.quantile(of));
    say!(
        "  us: p50 {} p90 {} p99 {} p99.9 {}",
        column(0.5),
        column(0.9),
        column(0.99),
        column(0.999)
    );
    if let Some(cpu) = server_cpu {
        say!("  server CPU {:.2} us/file", each(cpu));
    }
    say!("  client CPU {:.2} us/file", each(client_cpu));
    Ok(())
}

/// Removes an empty folder.
fn remove_folder(connection: &mut RawConnection, path: &str) -> anyhow::Result<()> {
    connection.queue_remove(path)?;
    connection.send()?;
    let mut file = None;
    let mut status = NtStatus::SUCCESS;
    while file.is_none() && status == NtStatus::SUCCESS {
        connection.receive(|answer| (file, status) = (answer.file, answer.status))?;
    }
    let Some(file) = file else { bail!("cannot remove {path:?}: {status}") };
    connection.queue_close(file);
    connection.send()?;
    while connection.receive(|answer| status = answer.status)? == 0 {}
    if status != NtStatus::SUCCESS {
        bail!("cannot remove {path:?}: {status}");
    }
    Ok(())
}

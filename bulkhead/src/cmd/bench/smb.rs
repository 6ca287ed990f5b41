//! `bulkhead bench smb`: the load, its connections and the report.

use std::{
    sync::{Arc, Barrier},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use serde_json::json;
use smb_client::{ConnectOptions, raw::RawConnection};

use super::{
    channels,
    common::{self, Target, latencies, micros},
    cpu,
    drive::Load,
    histogram::Histogram,
    load::{Outcome, Pattern, Plan, Rw, Worker},
};
use crate::units::parse_size;

/// Arguments of `bulkhead bench smb`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    target: Target,
    /// Where requests go.
    #[arg(long, value_enum, default_value = "rand")]
    pattern: Pattern,
    /// What is done.
    #[arg(long, value_enum, default_value = "read")]
    rw: Rw,
    /// Percentage of reads with --rw mixed.
    #[arg(long, default_value_t = 70, value_parser = clap::value_parser!(u32).range(1..100))]
    mix: u32,
    /// Bytes per request.
    #[arg(long, default_value = "4K", value_parser = parse_size)]
    block_size: u64,
    /// Requests in flight on each connection.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=4096))]
    queue_depth: u16,
    /// Connections, each with a thread of its own.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    connections: u16,
    /// One session with so many connections, through the client that virtual disks use; the queue
    /// depth is that of all of them together.
    #[arg(long, conflicts_with_all = ["connections", "verify"],
          value_parser = clap::value_parser!(u16).range(1..=64))]
    channels: Option<u16>,
    /// By SMB Direct over iWARP, at port 5445 if the address names none, through the client that virtual
    /// disks use. Data go by RDMA with --sign off where the server does not demand signatures.
    #[arg(long, conflicts_with_all = ["connections", "verify"])]
    rdma: bool,
    /// How long to measure, in seconds.
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// Bytes of the file to use; it is grown to this.
    #[arg(long, default_value = "1G", value_parser = parse_size)]
    size: u64,
    /// Compare all that is read with what was written. Writes the whole file first.
    #[arg(long)]
    verify: bool,
}

/// What was measured.
struct Report {
    reads: Histogram,
    writes: Histogram,
    verified: u64,
    seconds: f64,
    bytes: u64,
    server_cpu: Option<Duration>,
    client_cpu: Duration,
    /// Operations of each connection.
    shares: Vec<u64>,
    protocol: serde_json::Value,
}

impl Args {
    fn options(&self) -> anyhow::Result<ConnectOptions> {
        let per_request = self.block_size.div_ceil(65536).max(1);
        let wanted = (per_request * u64::from(self.queue_depth)).clamp(64, 8192);
        self.target.options(u16::try_from(wanted).unwrap_or(8192))
    }

    /// Reads among 100 operations.
    fn reads(&self) -> u32 {
        self.rw.reads(self.mix)
    }

    fn writes(&self) -> bool {
        self.verify || self.rw != Rw::Read
    }

    fn plan(&self, number: u16, blocks: u64) -> Plan {
        // With verification every connection has a part of the file to itself.
        let (first, blocks) = if self.verify {
            let share = blocks / u64::from(self.connections);
            (share * u64::from(number), share)
        } else {
            (0, blocks)
        };
        Plan {
            pattern: self.pattern,
            reads: self.reads(),
            block_size: u32::try_from(self.block_size).unwrap_or(u32::MAX),
            depth: self.queue_depth.into(),
            verify: self.verify,
            compressible: self.target.compress.is_some(),
            first,
            blocks,
            seed: 0x5eed_0000 + u64::from(number),
        }
    }
}

/// Runs the subcommand that the arguments name.
pub fn run(args: Args) -> anyhow::Result<()> {
    if args.target.url.path.is_empty() {
        bail!("{} names a share and no file on it", args.target.url);
    }
    if !(args.seconds > 0.0 && args.seconds <= 86400.0) {
        bail!("--seconds must be above 0 and at most 86400");
    }
    let blocks = args.size.checked_div(args.block_size).unwrap_or(0);
    if blocks < u64::from(args.connections) || (args.verify && args.block_size < 16) {
        bail!("--size and --block-size leave less than one block for each connection");
    }
    let report = match args.channels.or(args.rdma.then_some(1)) {
        Some(channels) => measure_session(&args, blocks, channels)?,
        None => measure(&args, blocks)?,
    };
    if args.target.json {
        say!("{}", serde_json::to_string_pretty(&to_json(&args, &report))?);
    } else {
        print(&args, &report);
    }
    Ok(())
}

/// Measures one session with several connections.
fn measure_session(args: &Args, blocks: u64, count: u16) -> anyhow::Result<Report> {
    let mut options = args.options()?;
    if args.rdma {
        options = options.by(smb_client::Rdma::Always);
    }
    options.max_channels = count;
    options.channels_per_interface = count;
    options.max_io = u32::try_from(args.block_size).unwrap_or(u32::MAX).max(options.max_io);
    let load = Load {
        pattern: args.pattern,
        reads: args.reads(),
        block_size: args.block_size,
        depth: args.queue_depth,
        blocks,
        time: Duration::from_secs_f64(args.seconds),
    };
    let server = args.target.server_pid;
    let cpu = || Ok((cpu::of_self(), server.map(cpu::of_tree).transpose()?));
    let url = &args.target.url;
    let done = channels::run(options, &url.share, &url.path, load, cpu)?;
    let operations = done.reads.total() + done.writes.total();
    Ok(Report {
        reads: done.reads,
        writes: done.writes,
        verified: 0,
        seconds: done.seconds,
        bytes: operations * args.block_size,
        server_cpu: done.server_cpu,
        client_cpu: done.client_cpu,
        shares: vec![operations],
        protocol: done.protocol,
    })
}

fn measure(args: &Args, blocks: u64) -> anyhow::Result<Report> {
    // Fails early when there is no such process.
    args.target.server_pid.map(cpu::of_tree).transpose()?;
    let options = args.options()?;
    let mut workers = Vec::new();
    let mut protocol = serde_json::Value::Null;
    for number in 0..args.connections {
        let connect = |write| {
            RawConnection::connect(&options, &args.target.url.share, &args.target.url.path, write)
        };
        let mut connection = match connect(args.writes()) {
            // To be filled before it can be read.
            Err(error) if number == 0 && !args.writes() => {
                pass_if_missing(&error)?;
                connect(true)?
            }
            other => other?,
        };
        let (max_read, max_write) = connection.max_io();
        let most = if args.writes() { max_read.min(max_write) } else { max_read };
        if args.block_size > u64::from(most) {
            bail!("the server takes at most {most} bytes per request");
        }
        if number == 0 {
            protocol = common::protocol(&connection);
            prepare(args, &options, &mut connection, blocks)?;
        }
        workers.push(Worker::new(connection, args.plan(number, blocks))?);
    }

    let barrier = Arc::new(Barrier::new(workers.len() + 1));
    let time = Duration::from_secs_f64(args.seconds);
    let verify = args.verify;
    let threads: Vec<_> = workers
        .into_iter()
        .map(|mut worker| {
            let barrier = Arc::clone(&barrier);
            thread::spawn(move || -> anyhow::Result<Outcome> {
                let prepared = if verify { worker.prepare() } else { Ok(()) };
                barrier.wait();
                prepared?;
                barrier.wait();
                let done = worker.run(Instant::now() + time);
                barrier.wait();
                barrier.wait();
                done?;
                if verify {
                    worker.verify_all()?;
                }
                worker.finish()
            })
        })
        .collect();
    barrier.wait();
    let server_before = args.target.server_pid.map(cpu::of_tree).transpose();
    let client_before = cpu::of_self();
    barrier.wait();
    barrier.wait();
    let client_cpu = cpu::of_self().saturating_sub(client_before);
    let server_after = args.target.server_pid.map(cpu::of_tree).transpose();
    barrier.wait();

    let mut report = Report {
        reads: Histogram::new(),
        writes: Histogram::new(),
        verified: 0,
        seconds: 0.0,
        bytes: 0,
        server_cpu: None,
        client_cpu,
        shares: Vec::new(),
        protocol,
    };
    for thread in threads {
        let outcome = match thread.join() {
            Ok(outcome) => outcome?,
            Err(_) => bail!("a load thread panicked"),
        };
        report.shares.push(outcome.reads.total() + outcome.writes.total());
        report.reads.merge(&outcome.reads);
        report.writes.merge(&outcome.writes);
        report.verified += outcome.verified;
        report.seconds = report.seconds.max(outcome.elapsed.as_secs_f64());
    }
    report.bytes = (report.reads.total() + report.writes.total()) * args.block_size;
    report.server_cpu = match (server_before?, server_after?) {
        (Some(before), Some(after)) => Some(after.saturating_sub(before)),
        _ => None,
    };
    Ok(report)
}

/// Lets a missing file pass, which is then made.
fn pass_if_missing(error: &smb_client::Error) -> anyhow::Result<()> {
    use smb_protocol::NtStatus;
    match error.nt_status() {
        Some(NtStatus::OBJECT_NAME_NOT_FOUND) => Ok(()),
        _ => Err(error.clone().into()),
    }
}

/// Makes the file as long as it has to be, with data and not holes in what is added.
fn prepare(
    args: &Args,
    options: &ConnectOptions,
    connection: &mut RawConnection,
    blocks: u64,
) -> anyhow::Result<()> {
    const CHUNK: u64 = 64 * 1024;
    let size = blocks * args.block_size;
    let len = connection.len()?;
    if len >= size || args.verify {
        return Ok(());
    }
    let fresh =
        RawConnection::connect(options, &args.target.url.share, &args.target.url.path, true);
    let first = len / CHUNK;
    let plan = Plan {
        pattern: Pattern::Seq,
        reads: 0,
        block_size: CHUNK as u32,
        depth: 16,
        verify: false,
        compressible: args.target.compress.is_some(),
        first,
        blocks: size.div_ceil(CHUNK) - first,
        seed: 1,
    };
    let mut worker = Worker::new(fresh?, plan)?;
    worker.prepare().context("cannot fill the file")?;
    worker.finish()?;
    Ok(())
}

impl Report {
    fn operations(&self) -> u64 {
        self.reads.total() + self.writes.total()
    }

    fn per_operation(&self, cpu: Duration) -> f64 {
        micros(cpu) / self.operations().max(1) as f64
    }

    fn rate(&self) -> f64 {
        self.operations() as f64 / self.seconds.max(1e-9)
    }

    /// Fewest and most operations of a connection, and how many times the fewest the most are.
    fn fairness(&self) -> (u64, u64, f64) {
        let least = self.shares.iter().copied().min().unwrap_or(0);
        let most = self.shares.iter().copied().max().unwrap_or(0);
        (least, most, most as f64 / least.max(1) as f64)
    }

    fn megabytes(&self) -> f64 {
        self.bytes as f64 / 1e6 / self.seconds.max(1e-9)
    }
}

fn to_json(args: &Args, report: &Report) -> serde_json::Value {
    let (least, most, ratio) = report.fairness();
    json!({
        "url": args.target.url.to_string(),
        "pattern": format!("{:?}", args.pattern).to_lowercase(),
        "rw": format!("{:?}", args.rw).to_lowercase(),
        "mix": (args.rw == Rw::Mixed).then_some(args.mix),
        "block_size": args.block_size,
        "queue_depth": args.queue_depth,
        "connections": args.connections,
        "per_connection": {"least": least, "most": most, "most_over_least": ratio},
        "protocol": report.protocol,
        "seconds": report.seconds,
        "operations": report.operations(),
        "operations_per_second": report.rate().round(),
        "megabytes_per_second": (report.megabytes() * 10.0).round() / 10.0,
        "read": latencies(&report.reads),
        "write": latencies(&report.writes),
        "verified_blocks": args.verify.then_some(report.verified),
        "server_cpu_us_per_operation": report.server_cpu.map(|cpu| report.per_operation(cpu)),
        "server_cpu_seconds": report.server_cpu.map(|cpu| cpu.as_secs_f64()),
        "client_cpu_us_per_operation": report.per_operation(report.client_cpu),
    })
}

fn print(args: &Args, report: &Report) {
    let text = |name: &str| report.protocol[name].as_str().unwrap_or("none").to_owned();
    say!("{}", args.target.url);
    match report.protocol["encrypted"].as_bool() {
        Some(encrypted) => say!("  dialect {}   encrypted {encrypted}", text("dialect")),
        None => say!(
            "  dialect {}   signing {}   encryption {}   compression {}",
            text("dialect"),
            text("signing"),
            text("cipher"),
            text("compression")
        ),
    }
    for channel in report.protocol["channels"].as_array().into_iter().flatten() {
        say!("  connection {}", channel.as_str().unwrap_or(""));
    }
    say!(
        "  {:.0} op/s   {:.1} MB/s   {} operations in {:.2} s",
        report.rate(),
        report.megabytes(),
        report.operations(),
        report.seconds
    );
    common::table(&report.reads, &report.writes);
    if args.connections > 1 {
        let (least, most, ratio) = report.fairness();
        say!("  per connection {least} to {most} operations, {ratio:.2} times");
    }
    if let Some(cpu) = report.server_cpu {
        say!("  server CPU {:.2} us/op", report.per_operation(cpu));
    }
    say!("  client CPU {:.2} us/op", report.per_operation(report.client_cpu));
    if args.verify {
        say!("  {} blocks compared, all right", report.verified);
    }
}

//! `bulkhead bench disk`: reads and writes of a virtual disk, wherever it is, through the code that virtual
//! machines use.

use std::{sync::Arc, time::Duration};

use anyhow::{bail, ensure};
use block_io::Disk;
use serde_json::json;
use vhd::Format;

use super::{
    common::{self, latencies, micros},
    cpu,
    drive::{Driven, Load, drive},
    histogram::Histogram,
    load::{Pattern, Rw},
};
use crate::{
    cmd::disk::named,
    storage::{self, Claim},
    units::parse_size,
};

/// Arguments of `bulkhead bench disk`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The disk: `iscsi://[user@]host[:port]/target/LUN`, or an image, local or `smb://…`.
    location: String,
    /// Format of an image; by default as the ending of its name says.
    #[arg(long)]
    format: Option<Format>,
    /// Where requests go.
    #[arg(long, value_enum, default_value = "rand")]
    pattern: Pattern,
    /// What is done. Writing takes --destroy-data.
    #[arg(long, value_enum, default_value = "read")]
    rw: Rw,
    /// Percentage of reads with --rw mixed.
    #[arg(long, default_value_t = 70, value_parser = clap::value_parser!(u32).range(1..100))]
    mix: u32,
    /// Bytes per request.
    #[arg(long, default_value = "4K", value_parser = parse_size)]
    block_size: u64,
    /// Requests in flight.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=4096))]
    queue_depth: u16,
    /// How long to measure, in seconds.
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// Use only so many bytes from the disk's beginning.
    #[arg(long, value_parser = parse_size)]
    size: Option<u64>,
    /// What is on the disk may be overwritten.
    #[arg(long)]
    destroy_data: bool,
    /// Also report on this process and its descendants.
    #[arg(long)]
    server_pid: Option<u32>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// A disk under load.
struct Under(Arc<dyn Disk>);

impl Driven for Under {
    async fn read(&self, offset: u64, buf: &mut [u8]) -> anyhow::Result<usize> {
        self.0.read_at(offset, buf).await?;
        Ok(buf.len())
    }

    async fn write(&self, offset: u64, data: &[u8]) -> anyhow::Result<()> {
        Ok(self.0.write_at(offset, data).await?)
    }
}

/// What was measured.
struct Report {
    bytes: u64,
    reads: Histogram,
    writes: Histogram,
    seconds: f64,
    client_cpu: Duration,
    server_cpu: Option<Duration>,
}

/// Measures the disk and reports what came of it.
pub fn run(args: &Args) -> anyhow::Result<()> {
    if args.rw != Rw::Read && !args.destroy_data {
        bail!(
            "--rw write and mixed overwrite what is on {}; --destroy-data allows it",
            args.location
        );
    }
    ensure!(
        args.seconds > 0.0 && args.seconds <= 86400.0,
        "--seconds must be above 0 and at most 86400"
    );
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let report = runtime.block_on(measure(args))?;
    let operations = report.reads.total() + report.writes.total();
    let rate = operations as f64 / report.seconds.max(1e-9);
    let megabytes = rate * args.block_size as f64 / 1e6;
    let per_operation = |cpu: Duration| micros(cpu) / operations.max(1) as f64;
    if args.json {
        let report = json!({
            "location": args.location,
            "pattern": format!("{:?}", args.pattern).to_lowercase(),
            "rw": format!("{:?}", args.rw).to_lowercase(),
            "mix": (args.rw == Rw::Mixed).then_some(args.mix),
            "block_size": args.block_size,
            "queue_depth": args.queue_depth,
            "bytes_used": report.bytes,
            "seconds": report.seconds,
            "operations": operations,
            "operations_per_second": rate.round(),
            "megabytes_per_second": (megabytes * 10.0).round() / 10.0,
            "read": latencies(&report.reads),
            "write": latencies(&report.writes),
            "server_cpu_us_per_operation": report.server_cpu.map(per_operation),
            "client_cpu_us_per_operation": per_operation(report.client_cpu),
        });
        say!("{}", serde_json::to_string_pretty(&report)?);
        return Ok(());
    }
    say!("{}", args.location);
    let seconds = report.seconds;
    say!("  {rate:.0} op/s   {megabytes:.1} MB/s   {operations} operations in {seconds:.2} s");
    common::table(&report.reads, &report.writes);
    if let Some(cpu) = report.server_cpu {
        say!("  server CPU {:.2} us/op", per_operation(cpu));
    }
    say!("  client CPU {:.2} us/op", per_operation(report.client_cpu));
    Ok(())
}

async fn measure(args: &Args) -> anyhow::Result<Report> {
    let claim = if args.rw == Rw::Read { Claim::Still } else { Claim::Write };
    let named = named(args.format, &args.location)?;
    let disk = storage::open_disk(&args.location, named, claim).await?;
    let geometry = disk.geometry();
    ensure!(
        args.block_size.is_multiple_of(geometry.logical_sector.into()) && args.block_size > 0,
        "--block-size must be a multiple of {} here",
        geometry.logical_sector
    );
    let size = args.size.map_or(geometry.size, |size| size.min(geometry.size));
    let blocks = size / args.block_size;
    ensure!(blocks > 0, "--size and the disk have no room for one block of {}", args.block_size);
    let load = Load {
        pattern: args.pattern,
        reads: args.rw.reads(args.mix),
        block_size: args.block_size,
        depth: args.queue_depth,
        blocks,
        time: Duration::from_secs_f64(args.seconds),
    };
    let server = || args.server_pid.map(cpu::of_tree).transpose();
    let (client_before, server_before) = (cpu::of_self(), server()?);
    let (reads, writes, seconds) = drive(&Arc::new(Under(disk.clone())), load).await?;
    let (client_after, server_after) = (cpu::of_self(), server()?);
    disk.close().await?;
    Ok(Report {
        bytes: blocks * args.block_size,
        reads,
        writes,
        seconds,
        client_cpu: client_after.saturating_sub(client_before),
        server_cpu: server_after.zip(server_before).map(|(after, before)| after - before),
    })
}

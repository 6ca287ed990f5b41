//! `bulkhead bench machine`: what the machine allows a server of files.
//!
//! ```text
//!  server CPU                    client CPU
//!  loopback     send 256 KiB ═══ TCP ══► receive
//!  page cache   pread / pwrite 1 MiB of a file in memory
//!  both, read   pread, send  ═══ TCP ══► receive
//!  both, write  receive, pwrite ◄═ TCP ═ send
//! ```
//!
//! The first two are limits that no server passes; `both` does the two after one another on one
//! CPU, which is what a server with one thread and no protocol could do.

use std::{
    fs::{self, File},
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    os::unix::fs::FileExt,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use block_io::LowWater;
use rustix::thread::{CpuSet, sched_setaffinity};
use serde_json::json;

use crate::units::parse_size;

/// Bytes of one copy from or to the page cache.
const COPY: usize = 1 << 20;
/// Bytes of one send.
const SEND: usize = 256 << 10;

/// Arguments of `bulkhead bench machine`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// File to make on the file system that the share is on; it must not be there, and is removed.
    file: PathBuf,
    /// Bytes of the file.
    #[arg(long, default_value = "256M", value_parser = parse_size)]
    size: u64,
    /// How long to measure each, in seconds.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// The CPU that does what a server does; any if it is not given.
    #[arg(long)]
    server_cpu: Option<usize>,
    /// The CPU that does what a client does; any if it is not given.
    #[arg(long)]
    client_cpu: Option<usize>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Keeps the calling thread on one CPU.
fn pin(cpu: Option<usize>) -> anyhow::Result<()> {
    let Some(cpu) = cpu else { return Ok(()) };
    if cpu >= CpuSet::MAX_CPU {
        bail!("there is no CPU {cpu}");
    }
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set).with_context(|| format!("cannot run on CPU {cpu}"))
}

/// Goes through a file block by block, over and over.
struct Blocks<'a> {
    file: &'a File,
    count: u64,
    next: u64,
    buffer: Vec<u8>,
}

impl<'a> Blocks<'a> {
    fn new(file: &'a File, size: u64) -> Self {
        Self { file, count: size / COPY as u64, next: 0, buffer: vec![0x5a; COPY] }
    }

    fn step(&mut self) -> u64 {
        let offset = self.next * COPY as u64;
        self.next = (self.next + 1) % self.count;
        offset
    }

    fn read(&mut self) -> anyhow::Result<()> {
        let offset = self.step();
        self.file.read_exact_at(&mut self.buffer, offset).context("cannot read the file")
    }

    fn write(&mut self) -> anyhow::Result<()> {
        let offset = self.step();
        self.file.write_all_at(&self.buffer, offset).context("cannot write the file")
    }
}

/// Bytes per second of `copy`, which moves one block.
fn copies(args: &Args, mut copy: impl FnMut() -> anyhow::Result<()> + Send) -> anyhow::Result<f64> {
    let (time, cpu) = (Duration::from_secs_f64(args.seconds), args.server_cpu);
    let work = || {
        pin(cpu)?;
        let (started, mut count) = (Instant::now(), 0u64);
        while started.elapsed() < time {
            copy()?;
            count += 1;
        }
        Ok((count * COPY as u64) as f64 / started.elapsed().as_secs_f64())
    };
    thread::scope(|scope| join(scope.spawn(work)))
}

fn join<T>(thread: thread::ScopedJoinHandle<'_, anyhow::Result<T>>) -> anyhow::Result<T> {
    match thread.join() {
        Ok(result) => result,
        Err(_) => bail!("a thread panicked"),
    }
}

/// Bytes per second over one TCP connection from the thread of `from` to the thread of `to`.
/// `fill` is called before each block is sent and `drain` after each block has come.
fn stream(
    args: &Args,
    (from, to): (Option<usize>, Option<usize>),
    mut fill: impl FnMut(&mut [u8]) -> anyhow::Result<()> + Send,
    mut drain: impl FnMut(&[u8]) -> anyhow::Result<()> + Send,
) -> anyhow::Result<f64> {
    let listener = TcpListener::bind("127.0.0.1:0").context("cannot listen on loopback")?;
    let mut sender = TcpStream::connect(listener.local_addr()?)?;
    let (mut receiver, _) = listener.accept()?;
    sender.set_nodelay(true)?;
    // As servers and clients of storage have it; pacing by timers would hide what loopback can do.
    let _ = rustix::net::sockopt::set_tcp_congestion(&sender, "cubic");
    let time = Duration::from_secs_f64(args.seconds);
    let send = move || {
        pin(from)?;
        let (started, mut block) = (Instant::now(), vec![0x5a; COPY]);
        while started.elapsed() < time {
            fill(&mut block)?;
            for part in block.chunks(SEND) {
                sender.write_all(part).context("cannot send over loopback")?;
            }
        }
        sender.shutdown(Shutdown::Write).context("cannot end the connection")
    };
    let receive = move || {
        pin(to)?;
        let (started, mut block, mut filled, mut sum) = (Instant::now(), vec![0; COPY], 0, 0u64);
        let mut low_water = LowWater::default();
        loop {
            low_water.wait_for(&receiver, COPY - filled);
            let count = receiver.read(&mut block[filled..]).context("cannot receive")?;
            filled += count;
            sum += count as u64;
            if filled == COPY {
                drain(&block)?;
                filled = 0;
            }
            if count == 0 {
                return Ok(sum as f64 / started.elapsed().as_secs_f64());
            }
        }
    };
    thread::scope(|scope| {
        let (receiving, sending) = (scope.spawn(receive), scope.spawn(send));
        join(sending).and(join(receiving))
    })
}

/// Runs the subcommand that the arguments name.
pub fn run(args: Args) -> anyhow::Result<()> {
    if args.size < COPY as u64 {
        bail!("--size must be 1 MiB at least");
    }
    if !(args.seconds > 0.0 && args.seconds <= 3600.0) {
        bail!("--seconds must be above 0 and at most 3600");
    }
    for cpu in [args.server_cpu, args.client_cpu] {
        // Says what is wrong before there is a connection whose end would hide it.
        thread::scope(|scope| join(scope.spawn(move || pin(cpu))))?;
    }
    let file = File::options().read(true).write(true).create_new(true).open(&args.file);
    let file = file.with_context(|| format!("cannot make {}", args.file.display()))?;
    let measured = measure(&args, &file);
    fs::remove_file(&args.file)
        .with_context(|| format!("cannot remove {}", args.file.display()))?;
    report(&args, measured?);
    Ok(())
}

/// Names and bytes per second.
type Figures = [(&'static str, f64); 5];

fn measure(args: &Args, file: &File) -> anyhow::Result<Figures> {
    let mut blocks = Blocks::new(file, args.size);
    for _ in 0..blocks.count {
        blocks.write()?;
    }
    let (server, client) = (args.server_cpu, args.client_cpu);
    let loopback = stream(args, (server, client), |_| Ok(()), |_| Ok(()))?;
    let read = copies(args, || blocks.read())?;
    let write = copies(args, || blocks.write())?;
    let mut copied = Blocks::new(file, args.size);
    let load = |block: &mut [u8]| {
        let offset = copied.step();
        file.read_exact_at(block, offset).context("cannot read the file")
    };
    let both_read = stream(args, (server, client), load, |_| Ok(()))?;
    let mut copied = Blocks::new(file, args.size);
    let store = |block: &[u8]| {
        let offset = copied.step();
        file.write_all_at(block, offset).context("cannot write the file")
    };
    let both_write = stream(args, (client, server), |_| Ok(()), store)?;
    Ok([
        ("loopback", loopback),
        ("page_cache_read", read),
        ("page_cache_write", write),
        ("read_then_send", both_read),
        ("receive_then_write", both_write),
    ])
}

fn report(args: &Args, figures: Figures) {
    if args.json {
        let mut report = json!({
            "server_cpu": args.server_cpu, "client_cpu": args.client_cpu,
            "size": args.size, "seconds": args.seconds,
            "send_bytes": SEND, "copy_bytes": COPY,
        });
        for (name, rate) in figures {
            report[format!("{name}_megabytes_per_second")] = json!((rate / 1e5).round() / 10.0);
        }
        say!("{report:#}");
    } else {
        for (name, rate) in figures {
            say!("{name:<20} {:>10.1} MB/s", rate / 1e6);
        }
    }
}

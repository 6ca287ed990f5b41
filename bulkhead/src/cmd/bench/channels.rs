//! `bulkhead bench smb --channels`: one session with several connections, through the client that
//! virtual disks use. Its requests are spread by the client; nothing is bound to a thread.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use serde_json::json;
use smb_client::{Client, ConnectOptions, Create, OpenOptions, RemoteFile, Session, Share};

use super::{histogram::Histogram, load::Pattern, verify::next_random};

/// What is asked of a file.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    pub pattern: Pattern,
    /// Reads among 100 operations.
    pub reads: u32,
    pub block_size: u64,
    pub depth: u16,
    /// Blocks of the file.
    pub blocks: u64,
    pub time: Duration,
}

/// What was done in one run, with the times of all requests.
pub struct Done {
    pub reads: Histogram,
    pub writes: Histogram,
    pub seconds: f64,
    pub protocol: serde_json::Value,
    /// CPU of this process and of the server's while it was done.
    pub client_cpu: Duration,
    pub server_cpu: Option<Duration>,
}

/// Longest wait for the connections that were asked for.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of one write that makes the file longer.
const CHUNK: u64 = 1 << 20;

/// Runs the load. `cpu` tells what this process and the server's have used.
pub fn run(
    options: ConnectOptions,
    share: &str,
    path: &str,
    load: Load,
    cpu: impl Fn() -> anyhow::Result<(Duration, Option<Duration>)>,
) -> anyhow::Result<Done> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let wanted = options.max_channels;
        let session = Client::connect(options).await?;
        let tree = session.tree(share).await?;
        // As the connections of the other loads have it: others may do as they like.
        let how = OpenOptions {
            share: Share::ReadWrite,
            durable: false,
            ..OpenOptions::create(Create::OpenOrNew)
        };
        let file = Arc::new(tree.open(path, how).await?);
        fill(&file, load.blocks * load.block_size).await.context("cannot fill the file")?;
        let channels = gather(&session, wanted).await?;
        let before = cpu()?;
        let (reads, writes, seconds) = drive(&file, load).await?;
        let after = cpu()?;
        let server_cpu = after.1.zip(before.1).map(|(after, before)| after.saturating_sub(before));
        block_io::File::close(&*file).await?;
        Ok(Done {
            reads,
            writes,
            seconds,
            protocol: json!({
                "dialect": format!("{:?}", session.dialect().await?),
                "encrypted": session.is_encrypted().await?,
                "channels": channels,
            }),
            client_cpu: after.0.saturating_sub(before.0),
            server_cpu,
        })
    })
}

/// Waits for the connections of a session; gives where they go.
async fn gather(session: &Session, wanted: u16) -> anyhow::Result<Vec<String>> {
    let since = Instant::now();
    loop {
        let channels = session.channels().await?;
        if channels.len() >= wanted.into() {
            let text = |(local, server): &(_, _)| format!("{local} - {server}");
            return Ok(channels.iter().map(text).collect());
        }
        if since.elapsed() > PATIENCE {
            bail!("the server gives {} connections of {wanted}", channels.len());
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Makes a file as long as it has to be, with data and not holes in what is added.
async fn fill(file: &RemoteFile, size: u64) -> anyhow::Result<()> {
    let data: Vec<u8> = (0..CHUNK).map(|at| at.wrapping_mul(0x9d).to_le_bytes()[0] | 1).collect();
    let mut at = file.length().await?;
    while at < size {
        let len = CHUNK.min(size - at);
        file.write(at, &data[..usize::try_from(len)?]).await?;
        at += len;
    }
    Ok(())
}

/// Keeps so many requests under way until the time is up.
async fn drive(file: &Arc<RemoteFile>, load: Load) -> anyhow::Result<(Histogram, Histogram, f64)> {
    let over = Arc::new(AtomicBool::new(false));
    let cursor = Arc::new(AtomicU64::new(0));
    let since = Instant::now();
    let mut tasks = Vec::new();
    for number in 0..load.depth {
        let (file, over, cursor) = (file.clone(), over.clone(), cursor.clone());
        tasks.push(tokio::spawn(async move {
            let mut random = 0x5eed_0000 + u64::from(number);
            let (mut reads, mut writes) = (Histogram::new(), Histogram::new());
            let mut data = vec![number.to_le_bytes()[0]; usize::try_from(load.block_size)?];
            while !over.load(Ordering::Relaxed) && since.elapsed() < load.time {
                let block = match load.pattern {
                    Pattern::Rand => next_random(&mut random),
                    Pattern::Seq => cursor.fetch_add(1, Ordering::Relaxed),
                } % load.blocks;
                let offset = block * load.block_size;
                let begun = Instant::now();
                if next_random(&mut random) % 100 < load.reads.into() {
                    let got = file.read(offset, &mut data).await;
                    if got.inspect_err(|_| over.store(true, Ordering::Relaxed))? < data.len() {
                        bail!("the file ends before {}", offset + load.block_size);
                    }
                    reads.add(begun.elapsed());
                } else {
                    let written = file.write(offset, &data).await;
                    written.inspect_err(|_| over.store(true, Ordering::Relaxed))?;
                    writes.add(begun.elapsed());
                }
            }
            Ok((reads, writes))
        }));
    }
    let (mut reads, mut writes) = (Histogram::new(), Histogram::new());
    for task in tasks {
        let (read, written) = task.await??;
        reads.merge(&read);
        writes.merge(&written);
    }
    Ok((reads, writes, since.elapsed().as_secs_f64()))
}

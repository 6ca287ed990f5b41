//! `bulkhead bench smb --channels`: one session with several connections, through the client that
//! virtual disks use. Its requests are spread by the client; nothing is bound to a thread.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use serde_json::json;
use smb_client::{Client, ConnectOptions, Create, OpenOptions, RemoteFile, Session, Share};

use super::{
    drive::{Driven, Load, drive},
    histogram::Histogram,
};

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

impl Driven for RemoteFile {
    async fn read(&self, offset: u64, buf: &mut [u8]) -> anyhow::Result<usize> {
        Ok(Self::read(self, offset, buf).await?)
    }

    async fn write(&self, offset: u64, data: &[u8]) -> anyhow::Result<()> {
        Ok(Self::write(self, offset, data).await?)
    }
}

//! The crate `smb2` as a generator of load: it sends each request by itself, with `DEPTH` outstanding.
//!
//! `rust-clients load ADDRESS SHARE FILE read|write DEPTH SECONDS` reads or writes 4 KiB at random places
//! of a file that is there, and prints `OPERATIONS SECONDS P50 P99`, the latter two in microseconds.

use std::{
    cell::RefCell,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, TryStreamExt, stream};
use smb2::{
    ClientConfig, SmbClient,
    client::connection::{Connection, Frame},
    msg::{read::ReadRequest, write::WriteRequest},
    types::{Command, FileId, TreeId},
};

use crate::{Done, secret};

/// Bytes of one operation.
const BLOCK: u32 = 4096;
/// What the header and the fixed part of a WRITE take (MS-SMB2 2.2.21).
const WRITE_DATA_OFFSET: u16 = 64 + 48;

/// What is asked for again and again.
struct Load {
    connection: Connection,
    tree: TreeId,
    file: FileId,
    blocks: u64,
    writes: bool,
}

impl Load {
    async fn one(&self, block: u64) -> smb2::Result<Frame> {
        let offset = block % self.blocks * u64::from(BLOCK);
        if self.writes {
            let request = WriteRequest {
                data_offset: WRITE_DATA_OFFSET,
                offset,
                file_id: self.file,
                channel: 0,
                remaining_bytes: 0,
                write_channel_info_offset: 0,
                write_channel_info_length: 0,
                flags: 0,
                data: vec![0x5a; BLOCK as usize],
            };
            return self.connection.execute(Command::Write, &request, Some(self.tree)).await;
        }
        let request = ReadRequest {
            padding: 0x50,
            flags: 0,
            length: BLOCK,
            offset,
            file_id: self.file,
            minimum_count: BLOCK,
            channel: 0,
            remaining_bytes: 0,
            read_channel_info: Vec::new(),
        };
        self.connection.execute(Command::Read, &request, Some(self.tree)).await
    }
}

/// Runs the load that the words name.
pub async fn run(words: &[String]) -> Done {
    let [address, share, file, what, depth, seconds] = words else {
        return Err("load ADDRESS SHARE FILE read|write DEPTH SECONDS".into());
    };
    let (depth, seconds): (usize, f64) = (depth.parse()?, seconds.parse()?);
    let mut client = SmbClient::connect(ClientConfig {
        addr: address.clone(),
        timeout: Duration::from_secs(10),
        username: secret("SMB_USER"),
        password: secret("SMB_PASSWORD"),
        domain: String::new(),
        auto_reconnect: false,
        compression: false,
        dfs_enabled: false,
        dfs_target_overrides: Default::default(),
        connect_options: None,
        response_timeout: Some(Duration::from_secs(30)),
        previous_session_id: None,
    })
    .await?;
    let tree = client.connect_share(share).await?;
    let mut connection = client.connection().clone();
    let (id, size) = tree.open_file_readwrite(&mut connection, file).await?;
    let load = Load {
        connection: connection.clone(),
        tree: tree.tree_id,
        file: id,
        blocks: size / u64::from(BLOCK),
        writes: what == "write",
    };
    if load.blocks == 0 {
        return Err(format!("{file} is empty").into());
    }
    let (started, time) = (Instant::now(), Duration::from_secs_f64(seconds));
    let took = RefCell::new(Vec::new());
    let (load, took_of) = (&load, &took);
    // The places are those of a generator of Knuth's, which needs no crate.
    let mut state = 1u64;
    let places = std::iter::from_fn(move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (started.elapsed() < time).then_some(state >> 33)
    });
    stream::iter(places)
        .map(|place| async move {
            let since = Instant::now();
            let frame = load.one(place).await?;
            took_of.borrow_mut().push(since.elapsed());
            let status = frame.header.status;
            if status.is_success() { Ok(()) } else { Err(format!("{what}: {status:?}").into()) }
        })
        .buffer_unordered(depth)
        .try_for_each(|()| async { Ok::<(), Box<dyn std::error::Error>>(()) })
        .await?;
    let seconds = started.elapsed().as_secs_f64();
    tree.close_handle(&mut connection, id).await?;
    let mut took = took.into_inner();
    took.sort_unstable();
    let at = |part: f64| took[(took.len() as f64 * part) as usize].as_secs_f64() * 1e6;
    println!("{} {seconds:.3} {:.1} {:.1}", took.len(), at(0.5), at(0.99));
    Ok(())
}

//! `bulkhead share`: previous versions of a share.

use anyhow::bail;
use clap::Subcommand;
use server_api::{Reply, Request};

use super::server::Socket;

/// Arguments of `bulkhead share`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    socket: Socket,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Take a snapshot, or list or delete what was taken.
    ///
    /// Clients see snapshots as previous versions. The share must be on Btrfs or on XFS with
    /// reflink. On Btrfs a share that is a subvolume is taken in an instant; else each file is
    /// taken as it is at its turn.
    Snapshot {
        /// The share.
        share: String,
        /// List the snapshots, the last first.
        #[arg(long, conflicts_with = "delete")]
        list: bool,
        /// Delete the snapshot of that time (@GMT-YYYY.MM.DD-HH.MM.SS).
        #[arg(long, value_name = "TIME")]
        delete: Option<String>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

/// Runs the subcommand that the arguments name.
pub fn run(args: Args) -> anyhow::Result<()> {
    let Command::Snapshot { share, list, delete, json } = args.command;
    let request = match delete {
        Some(time) => Request::SnapshotDelete { share, time },
        None if list => Request::SnapshotList { share },
        None => Request::SnapshotCreate { share },
    };
    match args.socket.ask(&request)? {
        Reply::SnapshotTaken { time } if json => say!("{}", serde_json::to_string(&time)?),
        Reply::Snapshots { times } if json => say!("{}", serde_json::to_string(&times)?),
        Reply::SnapshotTaken { time } => say!("{time}"),
        Reply::Snapshots { times } => times.iter().for_each(|time| say!("{time}")),
        Reply::Ok => {}
        other => bail!("the server answered {other:?}"),
    }
    Ok(())
}

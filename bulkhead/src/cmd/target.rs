//! `bulkhead target`: the iSCSI targets of a running server, their LUNs and initiators.

use anyhow::bail;
use clap::Subcommand;
use server_api::{LunInfo, Reply, Request, TargetInfo, TargetSession};

use super::server::{Socket, json};

/// Arguments of `bulkhead target`.
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
    /// The targets with their LUNs.
    List,
    /// The initiators that are logged in.
    Sessions,
    /// End the session of an initiator, which may log in again.
    Disconnect {
        /// The session, as `sessions` shows it.
        session: u64,
    },
    /// Have a LUN take the size that its image or device has now, and tell initiators.
    Resize {
        /// The target's iSCSI name.
        target: String,
        /// The LUN's number.
        lun: u16,
    },
}

/// Asks the server and prints what it answers.
pub fn run(args: Args) -> anyhow::Result<()> {
    let request = match args.command {
        Command::List => Request::Targets,
        Command::Sessions => Request::TargetSessions,
        Command::Disconnect { session } => Request::TargetDisconnect { session },
        Command::Resize { target, lun } => Request::LunResize { target, lun },
    };
    match args.socket.ask(&request)? {
        Reply::Targets { targets } if args.json => json(&targets),
        Reply::TargetSessions { sessions } if args.json => json(&sessions),
        Reply::LunResized { size } if args.json => json(&size),
        Reply::Targets { targets } => {
            targets.iter().for_each(show_target);
            Ok(())
        }
        Reply::TargetSessions { sessions } => {
            sessions.iter().for_each(show_session);
            Ok(())
        }
        Reply::LunResized { size } => {
            println!("{size} bytes");
            Ok(())
        }
        Reply::Disconnected { .. } | Reply::Ok => Ok(()),
        other => bail!("the server answered {other:?}"),
    }
}

fn show_target(target: &TargetInfo) {
    println!("{}", target.name);
    for lun in &target.luns {
        let LunInfo { number, path, size, block, id, .. } = lun;
        let mode = if lun.read_only { "read only" } else { "writable" };
        let reserved = if lun.reserved { ", reserved" } else { "" };
        println!(
            "  {number:>4}  {size} bytes in blocks of {block}, {mode}{reserved}  {path}  {id}"
        );
    }
}

fn show_session(session: &TargetSession) {
    let TargetSession { id, target, initiator, clients, commands } = session;
    println!("{id}  {initiator}  {}  {target}  {commands} commands", clients.join(" "));
}

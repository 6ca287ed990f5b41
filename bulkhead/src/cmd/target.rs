//! `bulkhead target`: the iSCSI targets of a running server, their LUNs and initiators; and the
//! targets of any portal.

use anyhow::{Context, bail};
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
    /// The targets that a portal or an iSNS server anywhere knows, with their portals.
    #[command(after_help = crate::password::HELP)]
    Discover {
        /// The portal, `iscsi://[user@]host[:port]`, or the name server, `isns://host[:port]`.
        address: String,
    },
}

/// Asks the server and prints what it answers.
pub fn run(args: Args) -> anyhow::Result<()> {
    let request = match args.command {
        Command::List => Request::Targets,
        Command::Sessions => Request::TargetSessions,
        Command::Disconnect { session } => Request::TargetDisconnect { session },
        Command::Resize { target, lun } => Request::LunResize { target, lun },
        Command::Discover { address } => return discover(&address, args.json),
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

fn discover(address: &str, as_json: bool) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start")?;
    let targets = runtime.block_on(disk_source::discover(address));
    let targets = targets.with_context(|| format!("cannot ask {address}"))?;
    if as_json {
        let portal = |it: &disk_source::DiscoveredPortal| serde_json::json!({ "address": it.address, "group": it.tag });
        let target = |it: &disk_source::DiscoveredTarget| {
            let portals: Vec<_> = it.portals.iter().map(portal).collect();
            serde_json::json!({ "name": it.name, "portals": portals })
        };
        let all: Vec<_> = targets.iter().map(target).collect();
        return json(&all);
    }
    for target in &targets {
        println!("{}", target.name);
        for portal in &target.portals {
            println!("  {}  group {}", portal.address, portal.tag);
        }
    }
    Ok(())
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

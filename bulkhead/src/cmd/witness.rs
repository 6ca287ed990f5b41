//! `bulkhead witness`: the nodes and clients of a server's witness service.

use anyhow::bail;
use clap::{Subcommand, ValueEnum};
use serde_json::json;
use server_api::{Reply, Request, WitnessClient, WitnessNode};

use super::server::{Socket, json, table};

/// Arguments of `bulkhead witness`.
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

#[derive(Debug, Clone, Copy, ValueEnum)]
enum State {
    Up,
    Down,
    Unknown,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The nodes, how each is, and the clients that are registered.
    List,
    /// Say how a node is: clients that use it are told at once.
    State {
        /// The node.
        node: String,
        /// How it is.
        state: State,
    },
    /// Have a client, or those who use a share, go to a node or one of its addresses.
    #[command(group(clap::ArgGroup::new("who").required(true).multiple(true)))]
    Move {
        /// The client, as `list` shows it.
        #[arg(long, group = "who")]
        client: Option<String>,
        /// The share: those of its clients that asked about it.
        #[arg(long, group = "who")]
        share: Option<String>,
        /// Where to: a node, or an address of one.
        to: String,
    },
}

/// Runs the subcommand that the arguments name.
pub fn run(args: Args) -> anyhow::Result<()> {
    let request = match args.command {
        Command::List => Request::WitnessList,
        Command::State { node, state } => {
            let state = match state {
                State::Up => "up",
                State::Down => "down",
                State::Unknown => "unknown",
            };
            Request::WitnessState { node, state: state.to_owned() }
        }
        Command::Move { client, share, to } => Request::WitnessMove { client, share, to },
    };
    match args.socket.ask(&request)? {
        Reply::Witness { configured: false, .. } => {
            bail!("the server is no witness: its configuration has no [witness]")
        }
        Reply::Witness { nodes, clients, .. } if args.json => {
            json(&json!({ "nodes": nodes, "clients": clients }))?;
        }
        Reply::WitnessMoved { count } if args.json => json(&count)?,
        Reply::Witness { nodes, clients, .. } => show(nodes, clients),
        Reply::WitnessMoved { count } => say!("told {count}"),
        Reply::Ok => {}
        other => bail!("the server answered {other:?}"),
    }
    Ok(())
}

fn show(nodes: Vec<WitnessNode>, clients: Vec<WitnessClient>) {
    table(
        &["NODE", "STATE", "ADDRESSES"],
        nodes.into_iter().map(|node| {
            let own = if node.own { " (this one)" } else { "" };
            [format!("{}{own}", node.name), node.state, node.addresses.join(" ")]
        }),
    );
    if clients.is_empty() {
        return;
    }
    say!("");
    table(
        &["CLIENT", "USER", "VERSION", "ADDRESS", "NAME", "SHARE", "WAITS"],
        clients.into_iter().map(|client| {
            let WitnessClient { client, user, version, net_name, share, address, waiting, .. } =
                client;
            let share = share.unwrap_or_else(|| "-".to_owned());
            let waits = if waiting { "yes" } else { "no" }.to_owned();
            [client, user, version.to_string(), address, net_name, share, waits]
        }),
    );
}

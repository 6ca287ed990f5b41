//! `bulkhead target`: the iSCSI targets of a running server, their LUNs and initiators; and the
//! targets of any portal.

use anyhow::{Context, bail};
use clap::Subcommand;
use server_api::{Reply, Request, TargetInfo, TargetSession};
use toml_edit::{Array, InlineTable, Table, value};

use super::{
    config_file::{self, ConfigFile},
    lun,
    server::{Socket, json},
};

/// Arguments of `bulkhead target`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    socket: Socket,
    #[command(flatten)]
    config: ConfigFile,
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
    /// Serve a new target.
    Add(New),
    /// Serve a target no longer; its sessions end, its images stay.
    Remove {
        /// The target's iSCSI name.
        target: String,
    },
    /// The initiators that are logged in.
    Sessions,
    /// End the session of an initiator, which may log in again.
    Disconnect {
        /// The session, as `sessions` shows it.
        session: u64,
    },
    /// As `bulkhead lun resize`.
    #[command(hide = true)]
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

/// A target that is to be served.
#[derive(Debug, clap::Args)]
struct New {
    /// Its iSCSI name, `iqn.2024-01.com.example:web`.
    name: String,
    /// A name for people.
    #[arg(long)]
    alias: Option<String>,
    /// Who may log in, by CHAP: `user=FILE`, with the secret in the file (mode 0600).
    #[arg(long = "chap", value_name = "USER=FILE", required_unless_present = "open")]
    chap: Vec<String>,
    /// Everybody who is admitted may log in, without a secret.
    #[arg(long, conflicts_with = "chap")]
    open: bool,
    /// Names of initiators that may log in; the default is all.
    #[arg(long = "initiator")]
    initiators: Vec<String>,
    /// Networks from which they may; the default is anywhere.
    #[arg(long = "allow", value_name = "NETWORK")]
    hosts_allow: Vec<String>,
}

impl New {
    fn table(&self) -> anyhow::Result<Table> {
        let mut table = Table::new();
        table["name"] = value(&self.name);
        if let Some(alias) = &self.alias {
            table["alias"] = value(alias);
        }
        if self.open {
            table["authentication"] = value("none");
        }
        let mut accounts = Array::new();
        for account in &self.chap {
            let (user, file) = account.split_once('=').context("--chap is USER=FILE")?;
            let file = std::path::absolute(file)?;
            let mut secret = InlineTable::new();
            secret.insert("user", user.into());
            secret.insert("secret_file", file.to_str().context("the path is not UTF-8")?.into());
            accounts.push(secret);
        }
        let lists = [("initiators", &self.initiators), ("hosts_allow", &self.hosts_allow)];
        let lists = lists.map(|(key, list)| (key, list.iter().collect::<Array>()));
        for (key, list) in [("chap", accounts)].into_iter().chain(lists) {
            if !list.is_empty() {
                table[key] = value(list);
            }
        }
        Ok(table)
    }
}

/// Asks the server and prints what it answers.
pub fn run(args: Args) -> anyhow::Result<()> {
    let request = match args.command {
        Command::List => Request::Targets,
        Command::Sessions => Request::TargetSessions,
        Command::Disconnect { session } => Request::TargetDisconnect { session },
        Command::Resize { target, lun } => Request::LunResize { target, lun },
        Command::Discover { address } => return discover(&address, args.json),
        Command::Add(new) => {
            let table = new.table()?;
            let add = |document: &mut _| config_file::add_target(document, table);
            return args.config.change(&args.socket, add);
        }
        Command::Remove { target } => {
            let remove = |document: &mut _| config_file::remove_target(document, &target);
            return args.config.change(&args.socket, remove);
        }
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
            say!("{size} bytes");
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
        say!("{}", target.name);
        for portal in &target.portals {
            say!("  {}  group {}", portal.address, portal.tag);
        }
    }
    Ok(())
}

fn show_target(target: &TargetInfo) {
    say!("{}", target.name);
    target.luns.iter().for_each(|lun| say!("  {}", lun::line(lun)));
}

fn show_session(session: &TargetSession) {
    let TargetSession { id, target, initiator, clients, commands } = session;
    say!("{id}  {initiator}  {}  {target}  {commands} commands", clients.join(" "));
}

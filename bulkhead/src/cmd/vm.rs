//! `bulkhead vm`: asks a VM host's daemon.

mod console;
mod create;
mod edit;
mod fat;
mod made;
mod quiesce;
mod seed;
mod show;

use std::{io::IsTerminal, path::PathBuf};

use anyhow::{Context, bail};
use clap::Subcommand;
use host_api::{DEFAULT_SOCKET, MoveOptions, MoveProgress, Reply, Request, VmName};
use indicatif::{ProgressBar, ProgressStyle};

use crate::vm_host::Client;

/// Arguments of `bulkhead vm`.
#[derive(Debug, clap::Args)]
#[command(after_help = crate::password::HELP)]
pub struct Args {
    /// Control socket of the VM host.
    #[arg(long, global = true, env = "BULKHEAD_HOST", default_value = DEFAULT_SOCKET)]
    socket: PathBuf,
    /// Answer with one JSON object.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Take a VM from a VM file into the host's state; or make one from what is said here, with its disk
    /// and the settings of its first start.
    Create(Box<create::Args>),
    /// Change a VM. What a machine that runs is built of waits for its next start.
    Edit(edit::Edit),
    /// Make a copy of a VM that is off, with copies of its disks; what is read-only is shared.
    Clone(edit::CloneArgs),
    /// Give a VM that is off another name.
    Rename(edit::Rename),
    /// Start a VM.
    Start {
        /// Which.
        name: VmName,
    },
    /// Stop a VM by its power button, or at once.
    Stop {
        /// Which.
        name: VmName,
        /// End it without asking the guest.
        #[arg(long)]
        force: bool,
        /// Seconds the guest has to power off.
        #[arg(long, value_name = "SECONDS")]
        timeout: Option<u32>,
    },
    /// Have a VM run on that is paused because its watchdog has expired.
    Resume {
        /// Which.
        name: VmName,
    },
    /// Leave the guest of a VM that runs with so much memory, by its balloon; the rest is the host's. After
    /// its next start it has all again.
    Memory {
        /// Which.
        name: VmName,
        /// How much it may have, at least its minimum and at most what it has started with.
        #[arg(value_parser = crate::units::parse_size)]
        size: u64,
    },
    /// List the VMs.
    List,
    /// Show everything about a VM.
    Show {
        /// Which.
        name: VmName,
    },
    /// Attach to a VM's console; ends with it, or by Ctrl-].
    Console {
        /// Which.
        name: VmName,
        /// Show what was printed so far first.
        #[arg(long)]
        replay: bool,
        /// Send this line, then only show what the guest prints.
        #[arg(long, value_name = "TEXT")]
        send: Option<String>,
        /// Detach when the guest has printed a line with this text.
        #[arg(long, value_name = "TEXT")]
        until: Option<String>,
    },
    /// Move a running VM to another host; only its memory travels.
    Move {
        /// Which.
        name: VmName,
        /// Migration address of the other host, HOST:PORT.
        #[arg(long)]
        to: String,
        /// Longest pause of the guest to aim for, in milliseconds.
        #[arg(long, value_name = "MS")]
        downtime: Option<u32>,
        /// Longest pause that the guest may have, in milliseconds; a move that needs more is given up.
        #[arg(long, value_name = "MS")]
        max_downtime: Option<u32>,
        /// Connections that carry memory.
        #[arg(long)]
        streams: Option<u32>,
    },
    /// Call off a move that is under way; the VM runs on where it is.
    CancelMove {
        /// Which.
        name: VmName,
    },
    /// Run a command while the guest's file systems stand still, such as one that takes a snapshot of the
    /// share with its disks. They thaw when it ends, whatever becomes of it.
    Quiesce(quiesce::Args),
    /// Forget a VM that is off; its disks stay.
    Delete {
        /// Which.
        name: VmName,
    },
    /// Decide about a VM in doubt after a broken move. Look at the other host first: a VM that
    /// runs on both loses data.
    #[command(group = clap::ArgGroup::new("decision").required(true))]
    Resolve {
        /// Which.
        name: VmName,
        /// Run it on this host.
        #[arg(long, group = "decision")]
        run: bool,
        /// Give it up on this host.
        #[arg(long, group = "decision")]
        discard: bool,
    },
}

/// Runs the subcommand that the arguments name.
pub fn run(args: Args) -> anyhow::Result<()> {
    let mut client = Client::connect(&args.socket)?;
    let json = args.json;
    let (request, done) = match args.command {
        Command::Create(args) => return create::run(client, &args, json),
        Command::Edit(args) => return edit::edit(client, &args, json),
        Command::Clone(args) => return edit::clone(client, &args, json),
        Command::Rename(args) => edit::rename(args),
        Command::Start { name } => {
            (Request::Start { name: name.clone() }, format!("started {name}"))
        }
        Command::Stop { name, force, timeout } => {
            let done = format!("stopped {name}");
            (Request::Stop { name, force, timeout_s: timeout }, done)
        }
        Command::Resume { name } => {
            (Request::Resume { name: name.clone() }, format!("{name} runs on"))
        }
        Command::Memory { name, size } => {
            let mib = create::whole_mib(size, "SIZE")?;
            (Request::Memory { name: name.clone(), mib }, format!("{name} is to have {mib} MiB"))
        }
        Command::Delete { name } => {
            (Request::Delete { name: name.clone() }, format!("deleted {name}"))
        }
        Command::CancelMove { name } => {
            let done = format!("called off the move of {name}");
            (Request::CancelMove { name }, done)
        }
        Command::Resolve { name, run, .. } => {
            (Request::Resolve { name: name.clone(), run }, format!("told {name}'s host"))
        }
        Command::List => return show::list(client.call(&Request::List)?, json),
        Command::Show { name } => return show::vm(client.call(&Request::Show { name })?, json),
        Command::Quiesce(args) => return quiesce::run(client.here()?, args, json),
        Command::Console { name, replay, send, until } => {
            return console::attach(client.here()?, name, replay, send, until);
        }
        Command::Move { name, to, downtime, max_downtime, streams } => {
            let longest_downtime_ms = max_downtime;
            let options = MoveOptions { to, downtime_ms: downtime, longest_downtime_ms, streams };
            return move_vm(client, name, options, json);
        }
    };
    match client.call(&request)? {
        Reply::Ok if json => say!("{}", serde_json::json!({ "ok": done })),
        Reply::Ok => say!("{done}"),
        other => bail!("the VM host answered {other:?}"),
    }
    Ok(())
}

fn move_vm(
    mut client: Client,
    name: VmName,
    options: MoveOptions,
    json: bool,
) -> anyhow::Result<()> {
    let bar = if json || !std::io::stderr().is_terminal() {
        ProgressBar::hidden()
    } else {
        let style = ProgressStyle::with_template("{prefix:>9} {bar:32} {pos}/{len} pages  {msg}");
        ProgressBar::new(0).with_style(style.context("progress style")?)
    };
    let request = Request::Move { name: name.clone(), options };
    let reply = client.call_with(&request, |progress: MoveProgress| {
        bar.set_prefix(progress.phase);
        if progress.total_pages != 0 {
            bar.set_length(progress.total_pages);
            bar.set_position(progress.sent_pages);
        }
        let mb = progress.bytes as f64 / 1e6;
        bar.set_message(format!("round {}  {mb:.0} MB", progress.round));
    });
    bar.finish_and_clear();
    match reply? {
        Reply::Moved { statistics } if json => {
            say!("{}", serde_json::to_string(&statistics)?);
        }
        Reply::Moved { statistics } => {
            say!("moved {name} to {}", statistics.peer);
            show::statistics(&statistics);
        }
        other => bail!("the VM host answered {other:?}"),
    }
    Ok(())
}

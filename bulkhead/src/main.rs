//! `bulkhead`: the one command-line tool for the file server and the VM host.
//!
//! Each top-level subcommand is a module of [`cmd`]; everything they do is done by the library
//! crates or asked of a daemon, so this crate holds argument parsing and presentation only.

#![deny(clippy::print_stdout)]

#[macro_use]
mod say;
mod cmd;
mod password;
mod remote;
mod storage;
mod units;
mod vm_host;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

/// Storage for virtual machines over SMB3, and the hosts that run on it.
#[derive(Debug, Parser)]
#[command(name = "bulkhead", version, about, after_help = password::HELP)]
struct Cli {
    #[command(flatten)]
    remote: remote::Remote,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Create, inspect, check and convert virtual-disk images.
    Disk(cmd::disk::Args),
    /// Run and move virtual machines.
    Vm(cmd::vm::Args),
    /// Set up a VM host.
    Host(cmd::host::Args),
    /// Look at a running file server and tell it what to do.
    Server(cmd::server::Args),
    /// Look at a cluster of file servers, and say who serves what.
    Cluster(cmd::cluster::Args),
    /// Say why a share, a disk or a LUN is slow, or that nothing is wrong with it.
    Why(cmd::why::Args),
    /// Take, list and delete snapshots of a share.
    Share(cmd::share::Args),
    /// Look at a server's iSCSI targets and their initiators; add and remove targets.
    Target(cmd::target::Args),
    /// Look at the LUNs of iSCSI targets; add, remove and resize them.
    Lun(cmd::lun::Args),
    /// Look at a server's witness service and tell its clients where to go.
    Witness(cmd::witness::Args),
    /// Make shares, users and targets of a server what files say, all or nothing.
    Apply(cmd::apply::Apply),
    /// Print shares, users and targets of a server, as `apply` takes them, without secrets.
    Export(cmd::apply::Export),
    /// Users, tokens and changes of a server's control interface.
    Api(cmd::api::Args),
    /// Write the server's users file.
    User(cmd::user::Args),
    /// Measure a server.
    Bench(cmd::bench::Args),
    /// Write what shells and man know of this command.
    Describe(cmd::describe::Args),
}

fn main() -> ExitCode {
    let Cli { remote, command } = Cli::parse();
    let result = remote::choose(remote, command.asks_a_server()).and_then(|()| run(command));
    match result {
        Ok(()) if say::all_was_written() => ExitCode::SUCCESS,
        Ok(()) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bulkhead: {}", say::shown(&format!("{error:#}")));
            ExitCode::FAILURE
        }
    }
}

impl Command {
    /// Whether it asks a file server or a VM host, which may be another machine's.
    fn asks_a_server(&self) -> bool {
        matches!(
            self,
            Self::Server(_)
                | Self::Why(_)
                | Self::Vm(_)
                | Self::Share(_)
                | Self::Target(_)
                | Self::Lun(_)
                | Self::Witness(_)
                | Self::Api(_)
                | Self::Apply(_)
                | Self::Export(_)
        )
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Disk(args) => cmd::disk::run(args),
        Command::Vm(args) => cmd::vm::run(args),
        Command::Host(args) => cmd::host::run(args),
        Command::Server(args) => cmd::server::run(args),
        Command::Cluster(args) => cmd::cluster::run(args),
        Command::Why(args) => cmd::why::run(args),
        Command::Share(args) => cmd::share::run(args),
        Command::Target(args) => cmd::target::run(args),
        Command::Lun(args) => cmd::lun::run(args),
        Command::Witness(args) => cmd::witness::run(args),
        Command::Apply(args) => cmd::apply::apply(args),
        Command::Export(args) => cmd::apply::export(args),
        Command::Api(args) => cmd::api::run(args),
        Command::User(args) => cmd::user::run(args),
        Command::Bench(args) => cmd::bench::run(args),
        Command::Describe(args) => cmd::describe::run(&args, &Cli::command()),
    }
}

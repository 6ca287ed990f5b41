//! `bulkhead`: the one command-line tool for the file server and the VM host.
//!
//! Each top-level subcommand is a module of [`cmd`]; everything they do is done by the library
//! crates or asked of a daemon, so this crate holds argument parsing and presentation only.

#![deny(clippy::print_stdout)]

#[macro_use]
mod say;
mod cmd;
mod password;
mod storage;
mod units;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

/// Storage for virtual machines over SMB3, and the hosts that run on it.
#[derive(Debug, Parser)]
#[command(name = "bulkhead", version, about, after_help = password::HELP)]
struct Cli {
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
    /// Take, list and delete snapshots of a share.
    Share(cmd::share::Args),
    /// Look at a server's iSCSI targets and their initiators; add and remove targets.
    Target(cmd::target::Args),
    /// Look at the LUNs of iSCSI targets; add, remove and resize them.
    Lun(cmd::lun::Args),
    /// Look at a server's witness service and tell its clients where to go.
    Witness(cmd::witness::Args),
    /// Write the server's users file.
    User(cmd::user::Args),
    /// Measure a server.
    Bench(cmd::bench::Args),
    /// Write what shells and man know of this command.
    Describe(cmd::describe::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Disk(args) => cmd::disk::run(args),
        Command::Vm(args) => cmd::vm::run(args),
        Command::Host(args) => cmd::host::run(args),
        Command::Server(args) => cmd::server::run(args),
        Command::Cluster(args) => cmd::cluster::run(args),
        Command::Share(args) => cmd::share::run(args),
        Command::Target(args) => cmd::target::run(args),
        Command::Lun(args) => cmd::lun::run(args),
        Command::Witness(args) => cmd::witness::run(args),
        Command::User(args) => cmd::user::run(args),
        Command::Bench(args) => cmd::bench::run(args),
        Command::Describe(args) => cmd::describe::run(&args, &Cli::command()),
    };
    match result {
        Ok(()) if say::all_was_written() => ExitCode::SUCCESS,
        Ok(()) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bulkhead: {error:#}");
            ExitCode::FAILURE
        }
    }
}

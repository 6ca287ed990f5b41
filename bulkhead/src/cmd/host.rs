//! `bulkhead host`: sets up a VM host.

use std::path::PathBuf;

use anyhow::Context;
use clap::Subcommand;

/// Arguments of `bulkhead host`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make the certificates by which VM hosts trust each other.
    ///
    /// The first use of a --ca folder makes the private authority in it; each use makes a
    /// certificate for one host. Keep the folder of the authority off the hosts and copy each
    /// --out folder to its host.
    Init {
        /// Folder of the authority: ca.pem and ca-key.pem.
        #[arg(long)]
        ca: PathBuf,
        /// Name of the host, as `peers` in other hosts' configuration can say it.
        #[arg(long)]
        name: String,
        /// Folder for the host's files: ca.pem, host.pem and host-key.pem.
        #[arg(long)]
        out: PathBuf,
    },
}

/// Runs the subcommand that the arguments name.
pub fn run(args: Args) -> anyhow::Result<()> {
    let Command::Init { ca, name, out } = args.command;
    let made = host_api::pki::init(&ca, &name, &out)
        .with_context(|| format!("no certificate for {name}"))?;
    if made.authority {
        say!("made the authority in {}", ca.display());
    }
    say!("made the certificate of {name} in {}", out.display());
    Ok(())
}

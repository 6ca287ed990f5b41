//! `bulkhead bench`: measures a server.

mod cpu;
mod histogram;
mod load;
mod smb;
mod verify;

/// Arguments of `bulkhead bench`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Reads and writes a file on an SMB share and reports operations per second, throughput,
    /// latency and CPU.
    Smb(smb::Args),
}

/// Runs the subcommand.
pub fn run(args: Args) -> anyhow::Result<()> {
    match args.what {
        What::Smb(args) => smb::run(args),
    }
}

//! `bulkhead bench`: measures a server or a disk.

mod channels;
mod common;
mod cpu;
mod disk;
mod drive;
mod files;
mod histogram;
mod load;
mod machine;
mod memory;
mod sessions;
mod smb;
mod verify;

/// Arguments of `bulkhead bench`.
#[derive(Debug, clap::Args)]
#[command(after_help = crate::password::HELP)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Reads and writes a file on an SMB share and reports operations per second, throughput,
    /// latency and CPU.
    Smb(smb::Args),
    /// Makes, writes and closes small files in a new folder on an SMB share and reports files
    /// per second, latency and CPU.
    SmbFiles(files::Args),
    /// Opens idle sessions and reports what memory the server needs for each.
    SmbSessions(sessions::Args),
    /// Reads and writes a virtual disk, a LUN or an image, through the code that virtual machines use, and
    /// reports operations per second, throughput, latency and CPU.
    #[command(visible_alias = "iscsi")]
    Disk(disk::Args),
    /// Measures what the machine allows: TCP over loopback, copies to and from the page cache.
    Machine(machine::Args),
}

/// Runs the subcommand that the arguments name.
pub fn run(args: Args) -> anyhow::Result<()> {
    match args.what {
        What::Smb(args) => smb::run(args),
        What::SmbFiles(args) => files::run(args),
        What::SmbSessions(args) => sessions::run(args),
        What::Disk(args) => disk::run(&args),
        What::Machine(args) => machine::run(args),
    }
}

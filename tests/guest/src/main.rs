//! `payload-guest`: writes the guest's image to a file, checks a raw disk that it wrote.

use std::{fs::File, os::unix::fs::FileExt, path::PathBuf};

use anyhow::Context;
use clap::Parser;
use payload_guest::{Expected, GUEST, check};

/// The payload guest and the checker of its disk.
#[derive(Debug, Parser)]
enum Command {
    /// Write the guest's kernel image to a file.
    Kernel {
        /// The file.
        file: PathBuf,
    },
    /// Verify every acknowledged block of a raw image.
    Check {
        /// The image.
        image: PathBuf,
        /// `seed=` of the guest's start line.
        #[arg(long)]
        seed: u64,
        /// `blocks=` of the guest's start line.
        #[arg(long)]
        blocks: u64,
        /// `acked=` or `flushed=` of the guest's last line.
        #[arg(long)]
        acked: u64,
        /// `seq=` of the guest's last line, or more; the same as `--acked` if absent.
        #[arg(long)]
        submitted: Option<u64>,
    },
}

fn main() -> anyhow::Result<()> {
    match Command::parse() {
        Command::Kernel { file } => {
            std::fs::write(&file, GUEST).with_context(|| format!("cannot write {}", file.display()))
        }
        Command::Check { image, seed, blocks, acked, submitted } => {
            let file =
                File::open(&image).with_context(|| format!("cannot open {}", image.display()))?;
            let submitted = submitted.unwrap_or(acked).max(acked);
            let expected = Expected { seed, blocks, acked, submitted };
            let report = check(&expected, |at, bytes| file.read_exact_at(bytes, at))?;
            println!(
                "verified blocks={blocks} exact={} newer={} blank={}",
                report.exact, report.newer, report.blank
            );
            Ok(())
        }
    }
}

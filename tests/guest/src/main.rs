//! `payload-guest`: writes the guest's image to a file, checks a raw disk that it wrote.

use std::{path::PathBuf, sync::Arc};

use anyhow::Context;
use block_io::{LocalFile, LocalOptions};
use clap::Parser;
use payload_guest::{Expected, GUEST, check};
use vhd::Format;

/// The payload guest and the checker of its disk.
#[derive(Debug, Parser)]
enum Command {
    /// Write the guest's kernel image to a file.
    Kernel {
        /// The file.
        file: PathBuf,
    },
    /// Verify every acknowledged block of an image, raw or VHDX by its ending.
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
            let submitted = submitted.unwrap_or(acked).max(acked);
            let expected = Expected { seed, blocks, acked, submitted };
            let runtime = tokio::runtime::Runtime::new().context("cannot start a runtime")?;
            let open = async {
                let file = Arc::new(LocalFile::open(&image, &LocalOptions::read_only())?);
                let format = Format::from_path(&image).unwrap_or(Format::Raw);
                anyhow::Ok(vhd::open_disk(file, format).await?)
            };
            let disk = runtime
                .block_on(open)
                .with_context(|| format!("cannot open {}", image.display()))?;
            let report = check(&expected, |at, bytes| {
                runtime.block_on(disk.read_at(at, bytes)).map_err(std::io::Error::other)
            })?;
            println!(
                "verified blocks={blocks} exact={} newer={} blank={}",
                report.exact, report.newer, report.blank
            );
            Ok(())
        }
    }
}

//! `bulkhead disk`: making, describing, checking, converting, changing and serving disk images.

mod check;
mod convert;
mod create;
mod import;
mod info;
mod ops;
mod serve;
mod track;

use anyhow::{Context, bail};
use clap::{Args as ClapArgs, Subcommand};
use vhd::Format;

pub(super) use self::{
    convert::{copy_all, new_target},
    create::check,
};
use crate::{
    storage::{self, Allowed, Named},
    units::parse_size,
};

/// Arguments of `bulkhead disk`.
#[derive(Debug, ClapArgs)]
#[command(after_help = crate::password::HELP)]
pub struct Args {
    #[command(flatten)]
    allowed: Allowed,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a new, empty image.
    Create(create::Args),
    /// Say what an image is.
    Info(info::Args),
    /// Look for errors in an image; fails if there are any. Writes only to repair.
    Check(check::Args),
    /// Copy an image into another format or layout.
    Convert(convert::Args),
    /// Make an image of a block device, also of one that is in use.
    Import(import::Args),
    /// Offer an image as a network block device (NBD) until interrupted.
    Serve(serve::Args),
    /// Keep track of which parts of an image change.
    Track(track::Args),
    /// Tell which parts of an image changed since a point.
    Changes(track::ChangesArgs),
    #[command(flatten)]
    Ops(ops::Command),
}

/// Runs the subcommand that the arguments name.
pub fn run(args: Args) -> anyhow::Result<()> {
    storage::allow(args.allowed);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start")?;
    runtime.block_on(async {
        match args.command {
            Command::Create(args) => create::run(args).await,
            Command::Info(args) => info::run(args).await,
            Command::Check(args) => check::run(args).await,
            Command::Convert(args) => convert::run(args).await,
            Command::Import(args) => import::run(args).await,
            Command::Serve(args) => serve::run(args).await,
            Command::Track(args) => track::run(args).await,
            Command::Changes(args) => track::changes(args).await,
            Command::Ops(command) => ops::run(command).await,
        }
    })
}

/// The shape of an image to be made.
#[derive(Debug, Clone, Default, ClapArgs)]
pub(super) struct Layout {
    /// Reserve all space now instead of as the disk is written.
    #[arg(long)]
    fixed: bool,
    /// Bytes per block: a power of two from 1M to 256M, of a VHD from 512K; of a QCOW2 image, whose
    /// blocks are called clusters, 512 to 2M.
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    block_size: Option<u64>,
    /// Smallest unit the disk is addressed by.
    #[arg(long, value_name = "BYTES", value_parser = ["512", "4096"])]
    logical_sector_size: Option<String>,
}

impl Layout {
    fn logical_sector(&self) -> Option<u32> {
        self.logical_sector_size.as_deref().and_then(|text| text.parse().ok())
    }

    /// The options for a VHDX of `size` bytes.
    fn vhdx(&self, size: u64) -> anyhow::Result<vhd::vhdx::CreateOptions> {
        let mut options = vhd::vhdx::CreateOptions::new(size);
        options.fixed = self.fixed;
        if let Some(block) = self.block_size {
            options.block_size =
                block.try_into().context("the block size is a power of two from 1M to 256M")?;
        }
        if let Some(sector) = self.logical_sector() {
            options.logical_sector = sector;
        }
        Ok(options)
    }
}

impl Layout {
    /// The options for a VHD of `size` bytes.
    fn vhd(&self, size: u64) -> anyhow::Result<vhd::classic::CreateOptions> {
        let mut options = vhd::classic::CreateOptions::new(size);
        options.fixed = self.fixed;
        if let Some(block) = self.block_size {
            options.block_size =
                block.try_into().context("the block size is a power of two from 512K to 256M")?;
        }
        anyhow::ensure!(self.logical_sector() != Some(4096), "a VHD has 512-byte sectors");
        Ok(options)
    }
}

impl Layout {
    /// The options for a QCOW2 image of `size` bytes.
    fn qcow2(&self, size: u64) -> anyhow::Result<vhd::qcow2::CreateOptions> {
        let mut options = vhd::qcow2::CreateOptions::new(size);
        anyhow::ensure!(!self.fixed, "a QCOW2 image is not fixed");
        if let Some(block) = self.block_size {
            options.cluster_size = block.try_into().context("clusters are of 512 to 2M")?;
        }
        anyhow::ensure!(self.logical_sector() != Some(4096), "a QCOW2 image has 512-byte sectors");
        Ok(options)
    }
}

/// The format asked for, or the one the location's ending names, for a file that is read.
pub(super) fn named(asked: Option<Format>, location: &str) -> anyhow::Result<Named> {
    Ok(Named { format: format(asked, location)?, asked: asked.is_some() })
}

/// The format asked for, or the one the location's ending names.
fn format(asked: Option<Format>, location: &str) -> anyhow::Result<Format> {
    if asked.is_none() && vhd::set::is_set(location) {
        bail!(
            "{location} is a VHD set, whose content is not public: `bulkhead disk info` lists its \
             images (.avhdx), and these can be used"
        );
    }
    asked.or_else(|| storage::format_of(location)).with_context(|| {
        format!("{location}: the ending names no image format (.vhdx, .vhd, .qcow2, .vmdk, .raw, .img); name it")
    })
}

/// Prints a value as JSON on one line.
fn print_json(value: &serde_json::Value) {
    say!("{value}");
}

//! `bulkhead disk create`.

use std::sync::Arc;

use anyhow::Context;
use block_io::File;
use serde_json::json;
use vhd::Format;

use super::{Layout, format, print_json};
use crate::{
    storage::{self, Mode},
    units::{Human, parse_size},
};

/// Arguments of `bulkhead disk create`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where to make the image.
    file: String,
    /// Capacity: 4GiB, 10M, 512K; units are powers of 1024.
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    size: u64,
    #[command(flatten)]
    layout: Layout,
    /// raw or vhdx; by default as the ending of FILE says.
    #[arg(long)]
    format: Option<Format>,
    /// Replace FILE if it is there already.
    #[arg(long)]
    force: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub async fn run(args: Args) -> anyhow::Result<()> {
    let format = format(args.format, &args.file)?;
    check(format, args.size, &args.layout)?;
    let mode = if args.force { Mode::Replace } else { Mode::CreateNew };
    let file = storage::open(&args.file, mode).await?;
    make(&file, format, args.size, &args.layout)
        .await
        .with_context(|| format!("cannot make {}", args.file))?;
    file.close().await?;
    if args.json {
        print_json(&json!({
            "file": args.file,
            "format": format.to_string(),
            "size": args.size,
            "fixed": args.layout.fixed,
        }));
    } else {
        println!("{}: {format}, {}", args.file, Human(args.size));
    }
    Ok(())
}

/// Whether such an image can be made, before a file is made for it.
pub(super) fn check(format: Format, size: u64, layout: &Layout) -> anyhow::Result<()> {
    match format {
        Format::Vhdx => layout.vhdx(size)?.validate()?,
        Format::Raw => anyhow::ensure!(layout.block_size.is_none(), "a raw image has no blocks"),
        other => anyhow::bail!("cannot make {other} images"),
    }
    Ok(())
}

/// Replaces the content of `file` by an empty image of this format.
pub(super) async fn make(
    file: &Arc<dyn File>,
    format: Format,
    size: u64,
    layout: &Layout,
) -> anyhow::Result<()> {
    match format {
        Format::Vhdx => vhd::vhdx::create(file.clone(), &layout.vhdx(size)?).await?,
        Format::Raw => {
            file.set_len(0).await?;
            file.set_len(size).await?;
            if layout.fixed {
                file.allocate(0..size).await?;
            }
            file.flush().await?;
        }
        other => anyhow::bail!("cannot make {other} images"),
    }
    Ok(())
}

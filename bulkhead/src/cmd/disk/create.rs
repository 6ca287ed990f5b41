//! `bulkhead disk create`.

use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use block_io::{Disk, File};
use serde_json::json;
use vhd::Format;

use super::{Layout, format, print_json};
use crate::{
    storage::{self, Claim},
    units::{Human, parse_size},
};

/// Arguments of `bulkhead disk create`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where to make the image.
    file: String,
    /// Capacity: 4GiB, 10M, 512K; units are powers of 1024. With --parent the parent's, unless
    /// a larger one is given.
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    #[arg(required_unless_present = "parent")]
    size: Option<u64>,
    /// Hold only what differs from this image, which must not be changed from now on. The path is
    /// kept relative to FILE.
    #[arg(long, value_name = "IMAGE", conflicts_with_all = ["fixed", "logical_sector_size"])]
    parent: Option<String>,
    #[command(flatten)]
    layout: Layout,
    /// raw, vhdx, vhd or qcow2; by default as the ending of FILE says.
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
    let mode = if args.force { Claim::Replace } else { Claim::CreateNew };
    let cannot = || format!("cannot make {}", args.file);
    let size = match (&args.parent, args.size) {
        (Some(parent), size) => {
            let (child, below) = child(&args, parent, format, size).await?;
            let file = storage::open(&args.file, mode).await?;
            let size = child.make(&file).await.with_context(cannot)?;
            file.close().await?;
            // Until now: what the child says of its parent is so.
            below.close().await?;
            size
        }
        (None, Some(size)) => {
            check(format, size, &args.layout)?;
            let file = storage::open(&args.file, mode).await?;
            make(&file, format, size, &args.layout).await.with_context(cannot)?;
            file.close().await?;
            size
        }
        (None, None) => bail!("the size is missing"),
    };
    if args.json {
        print_json(&json!({
            "file": args.file,
            "format": format.to_string(),
            "size": size,
            "fixed": args.layout.fixed,
            "parent": args.parent,
        }));
    } else {
        say!("{}: {format}, {}", args.file, Human(size));
    }
    Ok(())
}

/// A differencing image to be made.
enum Child {
    Vhdx(vhd::vhdx::CreateOptions),
    Vhd(vhd::classic::CreateOptions),
}

impl Child {
    /// Makes it; returns the size of its disk.
    async fn make(&self, file: &Arc<dyn File>) -> vhd::Result<u64> {
        match self {
            Self::Vhdx(options) => {
                vhd::vhdx::create(file.clone(), options).await.map(|()| options.size)
            }
            Self::Vhd(options) => {
                vhd::classic::create(file.clone(), options).await.map(|()| options.size)
            }
        }
    }
}

/// What a child of `parent` is made of, and the parent's file, which nobody writes as long as that is
/// open. The parent's whole chain must be there.
async fn child(
    args: &Args,
    parent: &str,
    format: Format,
    size: Option<u64>,
) -> anyhow::Result<(Child, Arc<dyn File>)> {
    let path = vhd::chain::relative(&args.file, parent)
        .with_context(|| format!("{parent} is not reached from the folder of {}", args.file))?;
    let file = storage::open(parent, Claim::Still).await?;
    let named = || parent.to_owned();
    let parents = storage::parents(parent).and_beside(&args.file);
    let block_size = args.layout.block_size.map(u32::try_from).transpose();
    let block_size = block_size.context("a power of two up to 256M")?;
    let (child, images, least) = match format {
        Format::Vhdx => {
            let links = vhd::chain::links(file.clone(), parent, &parents).await;
            let links = links.with_context(named)?;
            let info = vhd::vhdx::info(file.clone()).await.with_context(named)?;
            let options = vhd::vhdx::CreateOptions::child(&info, &path);
            let mut options = options.inheriting(file.clone()).await.with_context(named)?;
            options.size = size.unwrap_or(info.disk_size);
            options.block_size = block_size.unwrap_or(options.block_size);
            options.validate()?;
            let images = links.into_iter().map(|link| link.location).collect();
            (Child::Vhdx(options), images, info.disk_size)
        }
        Format::Vhd => {
            let images = vhd::chain::vhd_images(file.clone(), parent, &parents).await;
            let images = images.with_context(named)?.into_iter().map(|(at, _)| at).collect();
            let info = vhd::classic::info(file.clone()).await.with_context(named)?;
            let mut options = vhd::classic::CreateOptions::child(&info, &path);
            options.size = size.unwrap_or(info.disk_size);
            options.block_size = block_size.unwrap_or(options.block_size);
            options.validate()?;
            (Child::Vhd(options), images, info.disk_size)
        }
        other => bail!("{}: a {other} image has no parent", args.file),
    };
    let images: Vec<String> = images;
    if let Some(location) = images.iter().find(|location| same(location, &args.file)) {
        bail!("{location} is an image of the parent's own chain");
    }
    ensure!(size.is_none_or(|size| size >= least), "the parent is larger: {}", Human(least));
    Ok((child, file))
}

/// Whether two locations are one file that is there.
fn same(a: &str, b: &str) -> bool {
    let found = |location: &str| std::fs::canonicalize(location).ok();
    a == b || found(a).is_some_and(|a| Some(a) == found(b))
}

/// Whether such an image can be made, before a file is made for it.
pub(in crate::cmd) fn check(format: Format, size: u64, layout: &Layout) -> anyhow::Result<()> {
    match format {
        Format::Vhdx => layout.vhdx(size)?.validate()?,
        Format::Vhd => layout.vhd(size)?.validate()?,
        Format::Qcow2 => layout.qcow2(size)?.validate()?,
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
        Format::Vhd => vhd::classic::create(file.clone(), &layout.vhd(size)?).await?,
        Format::Qcow2 => {
            let writer = vhd::qcow2::Writer::new(file.clone(), layout.qcow2(size)?).await?;
            writer.close().await?;
        }
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

//! The subcommands that change images nobody uses: their size, parents, density and identity.

mod identity;
mod parents;
mod size;
mod space;

use std::sync::Arc;

use anyhow::{Context, bail};
use block_io::{Disk, File};
use clap::Subcommand;
use indicatif::ProgressBar;
use vhd::{Format, chain, ops::Progress};

use super::{convert::bar, format, print_json};
use crate::storage::{self, Claim};

/// The subcommands that change images which nobody uses.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Give a disk another size.
    Resize(size::Resize),
    /// Move what a differencing image has into its parent.
    Merge(parents::Merge),
    /// Give a differencing image another parent.
    Rebase(parents::Rebase),
    /// Put a new differencing image in front of a disk, which is kept as it is.
    Snapshot(parents::Snapshot),
    /// Make an image's file as short as it can be.
    Compact(space::Compact),
    /// Give back to the storage what nothing in an image uses.
    Trim(space::Trim),
    /// Say where each part of a disk is.
    Map(space::Map),
    /// Copy an image, with an identity of its own.
    Clone(identity::Clone),
    /// Change what an image says of itself.
    Set(identity::Set),
    /// Compare what two images read as; fails if they differ.
    Compare(identity::Compare),
}

/// Runs one of them to its end.
pub async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Resize(args) => args.run().await,
        Command::Merge(args) => args.run().await,
        Command::Rebase(args) => args.run().await,
        Command::Snapshot(args) => args.run().await,
        Command::Compact(args) => args.run().await,
        Command::Trim(args) => args.run().await,
        Command::Map(args) => args.run().await,
        Command::Clone(args) => args.run().await,
        Command::Set(args) => args.run().await,
        Command::Compare(args) => args.run().await,
    }
}

/// The image that a subcommand is about.
#[derive(Debug, clap::Args)]
pub struct Image {
    /// The image.
    file: String,
    /// vhdx or vhd; by default as the ending of FILE says.
    #[arg(long)]
    format: Option<Format>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Image {
    fn format(&self) -> anyhow::Result<Format> {
        let format = format(self.format, &self.file)?;
        match format {
            Format::Vhdx | Format::Vhd => Ok(format),
            other => bail!("{}: a {other} image has no structures to change", self.file),
        }
    }

    /// The image's file, which nobody else writes meanwhile.
    async fn open(&self) -> anyhow::Result<Arc<dyn File>> {
        storage::open(&self.file, Claim::Write).await
    }

    /// Prints the outcome, as JSON if that was asked for.
    fn print(&self, json: serde_json::Value, text: impl FnOnce() -> String) {
        if self.json {
            print_json(&json);
        } else {
            say!("{}", text());
        }
    }
}

/// Where the images of a chain are, the newest first.
async fn locations(location: &str, format: Format) -> anyhow::Result<Vec<String>> {
    let file = storage::open(location, Claim::Look).await?;
    let named = || location.to_owned();
    let mut found = Vec::new();
    match format {
        Format::Vhdx => {
            for link in chain::links(file, location, &storage::parents(location))
                .await
                .with_context(named)?
            {
                link.file.close().await?;
                found.push(link.location);
            }
        }
        _ => {
            for (at, file) in chain::vhd_images(file, location, &storage::parents(location))
                .await
                .with_context(named)?
            {
                file.close().await?;
                found.push(at);
            }
        }
    }
    Ok(found)
}

/// The disk below an image, if it has a parent.
async fn below(location: &str, format: Format) -> anyhow::Result<Option<Arc<dyn Disk>>> {
    match locations(location, format).await?.get(1) {
        Some(parent) => storage::open_disk(parent, format, Claim::Still).await.map(Some),
        None => Ok(None),
    }
}

/// A bar that follows an operation's progress; each step counts a thousandth.
fn watch(json: bool) -> (ProgressBar, impl FnMut(Progress) + Send) {
    let shown = bar(1000, json);
    let following = shown.clone();
    let step = move |progress: Progress| {
        let done = u128::from(progress.done) * 1000 / u128::from(progress.total.max(1));
        following.set_position(done as u64);
    };
    (shown, step)
}

//! `bulkhead disk track` and `bulkhead disk changes`: which parts of a disk changed since a point.

use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use block_io::File;
use clap::Subcommand;
use serde_json::json;
use vhd::{
    Format, Guid,
    tracking::{Changes, Point, Store},
    vhdx,
};

use super::{format, print_json};
use crate::{
    storage::{self, Claim, tracking_of},
    units::Human,
};

/// Arguments of `bulkhead disk track`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Keep track of an image's changes from now on, in a file beside it.
    Enable {
        /// The image, a VHDX.
        file: String,
    },
    /// Keep no track of an image's changes any more.
    Disable {
        /// The image.
        file: String,
    },
    /// Make a point: what changes after it can be asked for. The image must not be in use.
    Point {
        /// The image.
        file: String,
        /// A name of at most 64 bytes.
        name: String,
    },
    /// Remove a point. Changes since earlier ones stay known.
    Remove {
        /// The image.
        file: String,
        /// The point's name or identity.
        point: String,
    },
    /// List the points of an image, oldest first.
    List {
        /// The image.
        file: String,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

/// Arguments of `bulkhead disk changes`.
#[derive(Debug, clap::Args)]
pub struct ChangesArgs {
    /// The image.
    file: String,
    /// Name or identity of the point.
    #[arg(long, value_name = "POINT")]
    since: String,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Size and content's identity of a VHDX.
async fn identity(location: &str, mode: Claim) -> anyhow::Result<(u64, Guid)> {
    let format = format(None, location)?;
    // Only these say when someone else has changed them.
    ensure!(format == Format::Vhdx, "{location}: changes are kept track of for VHDX images only");
    let file = storage::open(location, mode).await?;
    let info = vhdx::info(file.clone()).await.with_context(|| location.to_owned())?;
    file.close().await?;
    Ok((info.disk_size, info.data_write_id))
}

async fn open(location: &str, mode: Claim) -> anyhow::Result<(Arc<dyn File>, Store)> {
    let place = tracking_of(location);
    let file = storage::open(&place, mode).await;
    let file = file.with_context(|| format!("no track is kept of the changes of {location}"))?;
    let store = Store::open(file.clone()).await.with_context(|| place)?;
    Ok((file, store))
}

/// For a change of the points: the tracking file of an image that nobody writes meanwhile.
async fn open_idle(location: &str) -> anyhow::Result<(Arc<dyn File>, Store)> {
    let (file, store) = open(location, Claim::Write).await?;
    let (size, id) = identity(location, Claim::Still).await?;
    if !store.belongs(size, id) {
        bail!("{location} was changed without keeping track: enable it anew");
    }
    Ok((file, store))
}

pub async fn run(args: Args) -> anyhow::Result<()> {
    match args.command {
        Command::Enable { file } => {
            // The writer's lock: nobody changes it while this begins.
            let image = storage::open(&file, Claim::Write).await?;
            let (size, id) = identity(&file, Claim::Look).await?;
            let place = tracking_of(&file);
            let tracking = storage::open(&place, Claim::Replace).await?;
            let store = Store::create(tracking.clone(), size, id).await?;
            let granule = store.state().granule;
            tracking.close().await?;
            image.close().await?;
            say!("{place}: {} for each bit", Human(granule));
        }
        Command::Disable { file } => {
            let (tracking, _) = open(&file, Claim::Write).await?;
            tracking.set_len(0).await?;
            tracking.close().await?;
            let place = tracking_of(&file);
            if !place.contains("://") {
                std::fs::remove_file(&place).with_context(|| format!("cannot remove {place}"))?;
            }
            say!("{file}: no track is kept of its changes");
        }
        Command::Point { file, name } => {
            let (tracking, mut store) = open_idle(&file).await?;
            let point = store.point(&name).await?;
            tracking.close().await?;
            say!("{}", point.id);
        }
        Command::Remove { file, point } => {
            let (tracking, mut store) = open(&file, Claim::Write).await?;
            let id = find(&store, &file, &point)?.id;
            store.remove_point(id).await?;
            tracking.close().await?;
        }
        Command::List { file, json } => {
            let (_, store) = open(&file, Claim::Look).await?;
            list(&store, json);
        }
    }
    Ok(())
}

fn find<'a>(store: &'a Store, file: &str, name: &str) -> anyhow::Result<&'a Point> {
    store.find(name).with_context(|| format!("{file} has no point {name}"))
}

fn list(store: &Store, json: bool) {
    let points = &store.state().points;
    if json {
        let point =
            |p: &Point| json!({"id": p.id.to_string(), "name": p.name, "seconds": p.seconds});
        print_json(&points.iter().map(point).collect());
        return;
    }
    for point in points {
        say!("{} {} {}", point.id, point.seconds, point.name);
    }
}

/// Runs `bulkhead disk changes`.
pub async fn changes(args: ChangesArgs) -> anyhow::Result<()> {
    let (_, store) = open(&args.file, Claim::Look).await?;
    let (size, id) = identity(&args.file, Claim::Look).await?;
    let point = find(&store, &args.file, &args.since)?;
    let changes = store.changes_since(point.id, size, id).await?;
    let (all, ranges) = match changes {
        Changes::All => (true, std::iter::once(0..size).collect()),
        Changes::Ranges(ranges) => (false, ranges),
    };
    let bytes: u64 = ranges.iter().map(|range| range.end - range.start).sum();
    if args.json {
        let ranges: Vec<_> = ranges
            .iter()
            .map(|range| json!({"offset": range.start, "length": range.end - range.start}))
            .collect();
        print_json(&json!({
            "file": args.file,
            "since": point.id.to_string(),
            "size": size,
            "everything": all,
            "changed": bytes,
            "granule": store.state().granule,
            "ranges": ranges,
        }));
        return Ok(());
    }
    for range in &ranges {
        say!("{:#014x} {:>14}", range.start, range.end - range.start);
    }
    let why = if all { ": it was changed without keeping track, or has another size" } else { "" };
    say!("{}: {} of {} changed{why}", args.file, Human(bytes), Human(size));
    Ok(())
}

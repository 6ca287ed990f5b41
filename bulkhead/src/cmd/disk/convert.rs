//! `bulkhead disk convert`.

use std::{
    io::IsTerminal,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use block_io::{Disk, File, RawDisk, Volatile};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use vhd::{
    Format,
    convert::{CopyOptions, Progress, copy},
};

use super::{Layout, create, format, named, print_json};
use crate::{
    storage::{self, Claim},
    units::Human,
};

/// Smallest unit a raw file is copied in.
const SECTOR: u64 = 512;

/// Arguments of `bulkhead disk convert`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The image to read.
    source: String,
    /// The image to make.
    target: String,
    /// Format of SOURCE: raw, vhdx, vhd, qcow2 or vmdk; by default as its ending says.
    #[arg(long, value_name = "FORMAT")]
    from: Option<Format>,
    /// Format of TARGET: raw, vhdx, vhd or qcow2; by default as its ending says.
    #[arg(long, value_name = "FORMAT")]
    to: Option<Format>,
    #[command(flatten)]
    layout: Layout,
    /// Replace TARGET if it is there already.
    #[arg(long)]
    force: bool,
    /// Leave TARGET to the page cache, as qemu-img does: sooner done, and gone or damaged if the
    /// machine fails in the next half minute.
    #[arg(long)]
    volatile: bool,
    /// Requests under way at once.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u8).range(1..))]
    in_flight: u8,
    /// Print JSON and no progress.
    #[arg(long)]
    json: bool,
}

pub async fn run(args: Args) -> anyhow::Result<()> {
    let named = named(args.from, &args.source)?;
    let from = named.format;
    let to = format(args.to, &args.target)?;
    let source = storage::open_disk(&args.source, named, Claim::Still).await?;

    let mut layout = args.layout.clone();
    if from == Format::Vhdx && layout.logical_sector_size.is_none() {
        layout.logical_sector_size = Some(source.geometry().logical_sector.to_string());
    }
    let mut size = source.geometry().size;
    ensure!(size > 0, "{}: an empty file is no disk", args.source);
    if to == Format::Vhdx {
        // The last sector may be larger than the source's.
        size = size.next_multiple_of(u64::from(layout.logical_sector().unwrap_or(512)));
    }
    create::check(to, size, &layout)?;
    let mode = if args.force { Claim::Replace } else { Claim::CreateNew };
    let mut target_file = storage::open(&args.target, mode).await?;
    if args.volatile {
        target_file = Arc::new(Volatile::new(target_file));
    }
    let started = Instant::now();
    let job = Job { source: &source, target: target_file, to, size, layout: &layout };
    let done = job.run(&args).await.with_context(|| {
        format!("converting {} to {} (which is not complete now)", args.source, args.target)
    })?;
    source.close().await?;

    let seconds = started.elapsed().as_secs_f64();
    if args.json {
        print_json(&json!({
            "source": args.source,
            "target": args.target,
            "from": from.to_string(),
            "to": to.to_string(),
            "size": done.total,
            "read": done.read,
            "written": done.written,
            "seconds": seconds,
        }));
    } else {
        say!(
            "{}: {to}, {} with {} of data in {seconds:.1} s",
            args.target,
            Human(done.total),
            Human(done.written)
        );
    }
    Ok(())
}

struct Job<'a> {
    source: &'a Arc<dyn Disk>,
    target: Arc<dyn File>,
    to: Format,
    size: u64,
    layout: &'a Layout,
}

impl Job<'_> {
    async fn run(&self, args: &Args) -> anyhow::Result<Progress> {
        let target = new_target(self.target.clone(), self.to, self.size, self.layout).await?;
        let bar = bar(self.size, args.json);
        let options = CopyOptions {
            in_flight: usize::from(args.in_flight),
            target_is_zero: true,
            ..CopyOptions::default()
        };
        let tell = |progress: Progress| bar.set_position(progress.done);
        let done = copy(self.source.clone(), target.clone(), options, tell).await?;
        target.close().await?;
        bar.finish_and_clear();
        Ok(done)
    }
}

/// Replaces the content of `file` by a new image; gives its disk to be written.
pub(in crate::cmd) async fn new_target(
    file: Arc<dyn File>,
    to: Format,
    size: u64,
    layout: &Layout,
) -> anyhow::Result<Arc<dyn Disk>> {
    if to == Format::Qcow2 {
        let options = layout.qcow2(size)?;
        return Ok(Arc::new(vhd::qcow2::Writer::new(file, options).await?));
    }
    create::make(&file, to, size, layout).await?;
    Ok(match to {
        Format::Raw => Arc::new(RawDisk::open(file, SECTOR as u32).await?),
        to => vhd::open_disk(file, to).await?,
    })
}

/// Copies all of a disk to a new one that is all zeros, with a bar on a terminal.
pub(in crate::cmd) async fn copy_all(
    source: Arc<dyn Disk>,
    target: Arc<dyn Disk>,
    quiet: bool,
) -> anyhow::Result<Progress> {
    let bar = bar(source.geometry().size, quiet);
    let options = CopyOptions { target_is_zero: true, ..CopyOptions::default() };
    let done = copy(source, target, options, |progress| bar.set_position(progress.done)).await?;
    bar.finish_and_clear();
    Ok(done)
}

/// A bar on a terminal, else nothing.
pub(super) fn bar(total: u64, json: bool) -> ProgressBar {
    if json || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(total);
    let template = "{bar:40} {percent:>3}%  {binary_bytes_per_sec}  {eta} left";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

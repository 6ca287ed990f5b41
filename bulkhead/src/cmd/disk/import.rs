//! `bulkhead disk import`: a block device that may be in use becomes an image.

use std::{fs, sync::Arc, time::Instant};

use anyhow::{Context, bail, ensure};
use block_io::{Disk, RawDisk};
use serde_json::json;
use vhd::{
    Format,
    convert::{CopyOptions, Progress, copy},
    import::pass,
};

use super::{
    Layout,
    convert::{bar, new_target},
    create, format, print_json,
};
use crate::{
    storage::{self, Claim},
    units::Human,
};

/// Arguments of `bulkhead disk import`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The block device, a logical unit (iscsi://…), or a file that is read like one.
    device: String,
    /// The image to make.
    target: String,
    /// Format of TARGET: raw, vhdx or vhd; by default as its ending says.
    #[arg(long, value_name = "FORMAT")]
    to: Option<Format>,
    #[command(flatten)]
    layout: Layout,
    /// Replace TARGET if it is there already.
    #[arg(long)]
    force: bool,
    /// Read the device so many times at most until a time finds nothing changed.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(2..))]
    passes: u16,
    /// Keep the image even if the device never rested: its parts are then of different moments.
    #[arg(long)]
    allow_changing: bool,
    /// Print JSON and no progress.
    #[arg(long)]
    json: bool,
}

pub async fn run(args: Args) -> anyhow::Result<()> {
    let to = format(args.to, &args.target)?;
    // A writer is not read back, so it has no second pass.
    ensure!(!matches!(to, Format::Qcow2 | Format::Vmdk), "import makes raw, VHDX or VHD images");
    // A device may be in use, and is read until it rests; a file has an owner who can wait.
    let device = storage::is_lun(&args.device)
        || fs::metadata(&args.device).is_ok_and(|about| !about.is_file());
    let mode = if device { Claim::Look } else { Claim::Still };
    let file = storage::open(&args.device, mode).await?;
    if !device {
        // A device may hold an image as any other content; a file that looks like one is meant as that.
        vhd::probe::check(&*file, &args.device, Format::Raw)
            .await
            .context("convert makes an image of it")?;
    }
    let source: Arc<dyn Disk> = Arc::new(RawDisk::open(file, 512).await?);
    let sector = u64::from(args.layout.logical_sector().unwrap_or(512));
    let size = source.geometry().size.next_multiple_of(sector);
    ensure!(size > 0, "{}: it is empty", args.device);
    create::check(to, size, &args.layout)?;
    let mode = if args.force { Claim::Replace } else { Claim::CreateNew };
    let target = storage::open(&args.target, mode).await?;
    let started = Instant::now();
    let target = new_target(target, to, size, &args.layout).await?;

    let progress = bar(size, args.json);
    let options = CopyOptions { target_is_zero: true, ..CopyOptions::default() };
    let tell = |done: Progress| progress.set_position(done.done);
    copy(source.clone(), target.clone(), options, tell).await?;
    let mut changed = Vec::new();
    while changed.last() != Some(&0) && changed.len() + 1 < usize::from(args.passes) {
        forget(&args.device)?;
        let tell = |done| progress.set_position(done);
        changed.push(pass(source.clone(), target.clone(), tell).await?);
        progress.println(format!("changed meanwhile: {}", Human(changed[changed.len() - 1])));
    }
    progress.finish_and_clear();
    target.close().await?;
    let rested = changed.last() == Some(&0);
    if args.json {
        print_json(&json!({
            "device": args.device,
            "target": args.target,
            "to": to.to_string(),
            "size": size,
            "changed": changed,
            "consistent": rested,
            "seconds": started.elapsed().as_secs_f64(),
        }));
    } else if rested {
        let (passes, seconds) = (changed.len() + 1, started.elapsed().as_secs_f64());
        say!("{}: {to}, {}, {passes} passes in {seconds:.1} s", args.target, Human(size));
    }
    if !rested && !args.allow_changing {
        bail!(
            "{} changed in every pass ({} in the last): {} is of no one moment; let its user pause, \
             or read a snapshot of it",
            args.device,
            Human(changed.last().copied().unwrap_or_default()),
            args.target
        );
    }
    Ok(())
}

/// Has the kernel read a device anew: what a file system writes to it does not come through what the
/// kernel keeps of the device.
fn forget(device: &str) -> anyhow::Result<()> {
    if device.contains("://") {
        return Ok(());
    }
    let file = fs::File::open(device).with_context(|| format!("cannot open {device}"))?;
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)
        .with_context(|| format!("cannot read {device} anew"))
}

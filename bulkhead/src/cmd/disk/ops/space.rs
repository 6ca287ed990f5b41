//! `bulkhead disk compact`, `trim` and `map`.

use anyhow::Context;
use serde_json::json;
use vhd::{
    Place,
    ops::{self, Mapped},
};

use super::{Image, below, locations, watch};
use crate::{
    storage::{self, Claim},
    units::Human,
};

/// Arguments of `bulkhead disk compact`.
#[derive(Debug, clap::Args)]
pub struct Compact {
    #[command(flatten)]
    image: Image,
    /// Also give up what the file systems on the disk do not use (ext2, ext3, ext4, NTFS; refused unless
    /// each was unmounted in an orderly way). Images that have this one as their parent cannot be
    /// used afterwards.
    #[arg(long)]
    filesystem: bool,
}

impl Compact {
    pub async fn run(self) -> anyhow::Result<()> {
        let image = &self.image;
        let format = image.format()?;
        let parent = below(&image.file, format).await?;
        let file = image.open().await?;
        let cannot = || format!("cannot compact {}", image.file);
        let mut unused = 0;
        if self.filesystem {
            let outcome = ops::discard_free(file.clone(), format, parent.clone()).await;
            unused = outcome.with_context(cannot)?;
        }
        let (bar, progress) = watch(image.json);
        let outcome = ops::compact(file.clone(), format, parent, progress).await;
        bar.finish_and_clear();
        let done = outcome.with_context(cannot)?;
        file.close().await?;
        let json = json!({
            "file": image.file,
            "dropped_blocks": done.dropped,
            "unused_by_filesystem": unused,
            "file_size_before": done.before,
            "file_size": done.after,
        });
        image.print(json, || {
            format!(
                "{}: {} instead of {}, {} blocks given up",
                image.file,
                Human(done.after),
                Human(done.before),
                done.dropped
            )
        });
        Ok(())
    }
}

/// Arguments of `bulkhead disk trim`.
#[derive(Debug, clap::Args)]
pub struct Trim {
    #[command(flatten)]
    image: Image,
    /// Also what is used and holds zeros. A fixed image has not all its space then.
    #[arg(long)]
    zeros: bool,
}

impl Trim {
    pub async fn run(self) -> anyhow::Result<()> {
        let image = &self.image;
        let format = image.format()?;
        let file = image.open().await?;
        let (bar, progress) = watch(image.json);
        let outcome = ops::trim(file.clone(), format, self.zeros, progress).await;
        bar.finish_and_clear();
        let holes = outcome.with_context(|| format!("cannot trim {}", image.file))?;
        file.close().await?;
        let json = json!({ "file": image.file, "holes": holes });
        image.print(json, || format!("{}: {} are holes", image.file, Human(holes)));
        Ok(())
    }
}

/// Arguments of `bulkhead disk map`.
#[derive(Debug, clap::Args)]
pub struct Map {
    #[command(flatten)]
    image: Image,
}

impl Map {
    pub async fn run(self) -> anyhow::Result<()> {
        let image = &self.image;
        let format = image.format()?;
        let chain = locations(&image.file, format).await?;
        let mut files = Vec::new();
        for location in &chain {
            files.push(storage::open(location, Claim::Still).await?);
        }
        // A table entry for each part: printed as it comes, so that a large disk needs no memory.
        let mut first = true;
        let show = |part: Mapped| {
            let (start, length) = (part.range.start, part.range.end - part.range.start);
            let (kind, offset) = match part.place {
                Place::File(at) => ("data", Some(at)),
                Place::Zero => ("zero", None),
                Place::Below => ("absent", None),
            };
            let file = &chain[part.level];
            if image.json {
                let value = json!({
                    "start": start,
                    "length": length,
                    "kind": kind,
                    "offset": offset,
                    "depth": part.level,
                    "file": file,
                });
                crate::say::write(format_args!("{}{value}", if first { "" } else { ",\n" }));
            } else {
                let offset = offset.map_or_else(|| "-".to_owned(), |at| format!("{at:#x}"));
                let file = if part.place == Place::Below { "-" } else { file };
                say!("{start:#18x} {length:#16x}  {kind:6} {offset:>16}  {file}");
            }
            first = false;
        };
        if image.json {
            crate::say::write(format_args!("["));
        } else {
            say!("{:>18} {:>16}  {:6} {:>16}  file", "start", "length", "kind", "offset");
        }
        let outcome = ops::map(&files, format, show).await;
        if image.json {
            say!("]");
        }
        outcome.with_context(|| image.file.clone())
    }
}

//! What is told of a VHD set.

use std::path::Path;

use anyhow::{Context, ensure};
use serde_json::json;
use vhd::set::{Image, is_image_of, order};

use super::{Args, print_json};
use crate::storage::{self, Claim};

/// Tells which images a set has and which of them are states of snapshots.
pub async fn show(args: &Args) -> anyhow::Result<()> {
    ensure!(
        !args.file.contains("://"),
        "{}: the images of a set on a share are not listed",
        args.file
    );
    let path = Path::new(&args.file);
    ensure!(path.is_file(), "cannot open {}: No such file", args.file);
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
    let name = name.context("it names no file")?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    let mut images = Vec::new();
    for entry in folder.read_dir().with_context(|| folder.display().to_string())? {
        let image = entry?.file_name().to_string_lossy().into_owned();
        if !is_image_of(&name, &image) {
            continue;
        }
        let location = folder.join(&image).to_string_lossy().into_owned();
        let file = storage::open(&location, Claim::Look).await?;
        let identity = vhd::vhdx::identity(file).await.with_context(|| location)?;
        images.push((image, identity));
    }
    let images = order(images)?;
    let parent = |image: &Image| image.parent.map(|at| images[at].name.clone());
    if args.json {
        let images: Vec<_> = images
            .iter()
            .map(|image| {
                json!({
                    "name": image.name,
                    "content_id": image.content.to_string(),
                    "parent": parent(image),
                    "snapshot": image.snapshot,
                    "parent_missing": image.orphan,
                })
            })
            .collect();
        print_json(&json!({"file": args.file, "format": "vhds", "images": images}));
        return Ok(());
    }
    say!("{}: vhds, {} images", args.file, images.len());
    for image in &images {
        let state = if image.snapshot { "snapshot" } else { "current" };
        let below = match (parent(image), image.orphan) {
            (Some(parent), _) => format!(" on {parent}"),
            (None, true) => " on a parent that is not there".to_owned(),
            (None, false) => String::new(),
        };
        say!("  {state:<20} {}{below}", image.name);
    }
    Ok(())
}

//! `bulkhead disk resize`.

use anyhow::Context;
use serde_json::json;
use vhd::ops::{ResizeOptions, resize};

use super::{Image, below};
use crate::units::{Human, parse_size};

/// Arguments of `bulkhead disk resize`.
#[derive(Debug, clap::Args)]
pub struct Resize {
    #[command(flatten)]
    image: Image,
    /// The new capacity: 4GiB, 10M, 512K; units are powers of 1024.
    #[arg(value_parser = parse_size)]
    size: u64,
    /// Cut off data that is past the new end. Without it a disk is not made shorter than its data.
    #[arg(long)]
    force: bool,
}

impl Resize {
    pub async fn run(self) -> anyhow::Result<()> {
        let (image, size) = (&self.image, self.size);
        let format = image.format()?;
        let parent = below(&image.file, format).await?;
        let file = image.open().await?;
        let options = ResizeOptions { force: self.force, parent, ..ResizeOptions::default() };
        let outcome = resize(file.clone(), format, size, options).await;
        outcome.with_context(|| format!("cannot resize {}", image.file))?;
        let length = file.len().await?;
        file.close().await?;
        let json = json!({ "file": image.file, "size": size, "file_size": length });
        image.print(json, || format!("{}: {}", image.file, Human(size)));
        Ok(())
    }
}

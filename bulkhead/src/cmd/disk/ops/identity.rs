//! `bulkhead disk clone`, `set` and `compare`.

use std::path::PathBuf;

use anyhow::{Context, bail, ensure};
use serde_json::json;
use vhd::{
    Format, Guid, chain, ops,
    vhdx::{self, UserItem},
};

use super::{super::named, Image, locations, print_json, watch};
use crate::storage::{self, Claim};

/// Arguments of `bulkhead disk clone`.
#[derive(Debug, clap::Args)]
pub struct Clone {
    #[command(flatten)]
    image: Image,
    /// The copy to be made.
    target: String,
    /// Replace TARGET if it is there already.
    #[arg(long)]
    force: bool,
}

impl Clone {
    pub async fn run(self) -> anyhow::Result<()> {
        let (image, target) = (&self.image, &self.target);
        let format = image.format()?;
        let chain = locations(&image.file, format).await?;
        let path = match chain.get(1) {
            Some(parent) => Some(chain::relative(target, parent).with_context(|| {
                format!("the parent {parent} is not reached from the folder of {target}")
            })?),
            None => None,
        };
        let source = storage::open(&image.file, Claim::Still).await?;
        let mode = if self.force { Claim::Replace } else { Claim::CreateNew };
        let copy = storage::open(target, mode).await?;
        let (bar, progress) = watch(image.json);
        let parent = match (&path, chain.get(1)) {
            (Some(path), Some(parent)) => {
                Some((storage::open(parent, Claim::Still).await?, path.as_str()))
            }
            _ => None,
        };
        let outcome = ops::clone(source.clone(), copy.clone(), format, parent, progress).await;
        bar.finish_and_clear();
        outcome.with_context(|| format!("copying {} to {target}", image.file))?;
        let length = copy.len().await?;
        copy.close().await?;
        let json = json!({ "file": target, "source": image.file, "file_size": length });
        image.print(json, || format!("{target}: a copy of {} of its own", image.file));
        Ok(())
    }
}

/// Arguments of `bulkhead disk set`.
#[derive(Debug, clap::Args)]
pub struct Set {
    #[command(flatten)]
    image: Image,
    /// What a VHDX says its physical sectors are.
    #[arg(long, value_name = "BYTES", value_parser = ["512", "4096"])]
    physical_sector_size: Option<String>,
    /// The identity of the disk, or "new" for one that nobody has.
    #[arg(long, value_name = "ID")]
    disk_id: Option<String>,
    /// Put the content of a local file, at most 1 MiB, into a VHDX as a metadata item of this
    /// identifier. It belongs to the disk: children made later have it too.
    #[arg(long, value_name = "ID=FILE", value_parser = item)]
    item: Vec<(Guid, PathBuf)>,
    /// Take a metadata item out of a VHDX.
    #[arg(long, value_name = "ID")]
    remove_item: Vec<Guid>,
}

/// An identifier and the file with its value.
fn item(text: &str) -> Result<(Guid, PathBuf), String> {
    let (id, path) = text.split_once('=').ok_or("ID=FILE is wanted")?;
    Ok((id.parse().map_err(|e| format!("{id}: {e}"))?, path.into()))
}

impl Set {
    pub async fn run(self) -> anyhow::Result<()> {
        let image = &self.image;
        let format = image.format()?;
        let physical_sector = self.physical_sector_size.as_deref().and_then(|s| s.parse().ok());
        let disk_id = match self.disk_id.as_deref() {
            None => None,
            Some("new") => Some(Guid::random()),
            Some(id) => Some(id.parse::<Guid>().ok().with_context(|| {
                format!("{id:?} is no identifier such as 01234567-89ab-cdef-0123-456789abcdef")
            })?),
        };
        let what = ops::Set { physical_sector, disk_id };
        let items = !self.item.is_empty() || !self.remove_item.is_empty();
        ensure!(items || what != ops::Set::default(), "there is nothing to set");
        ensure!(!items || format == Format::Vhdx, "a {format} image has no metadata items");
        let mut values = Vec::new();
        for (id, path) in &self.item {
            let value = std::fs::read(path).with_context(|| path.display().to_string())?;
            values.push(UserItem { id: *id, of_disk: true, value });
        }
        let file = image.open().await?;
        let cannot = || format!("cannot change {}", image.file);
        ops::set(file.clone(), format, what).await.with_context(cannot)?;
        for id in &self.remove_item {
            let removed = vhdx::remove_user_item(file.clone(), *id).await.with_context(cannot)?;
            ensure!(removed, "{} has no item {id}", image.file);
        }
        for value in &values {
            vhdx::set_user_item(file.clone(), value).await.with_context(cannot)?;
        }
        file.close().await?;
        let json = json!({
            "file": image.file,
            "physical_sector_size": physical_sector,
            "disk_id": disk_id.map(|id| id.to_string()),
        });
        image.print(json, || format!("{}: changed", image.file));
        Ok(())
    }
}

/// Arguments of `bulkhead disk compare`.
#[derive(Debug, clap::Args)]
pub struct Compare {
    /// An image.
    a: String,
    /// Another, which may be in another format.
    b: String,
    /// Format of A; by default as its ending says.
    #[arg(long, value_name = "FORMAT")]
    format: Option<Format>,
    /// Format of B; by default as its ending says.
    #[arg(long, value_name = "FORMAT")]
    other_format: Option<Format>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Compare {
    pub async fn run(self) -> anyhow::Result<()> {
        let (a, b) = (&self.a, &self.b);
        let first = storage::open_disk(a, named(self.format, a)?, Claim::Still).await?;
        let second = storage::open_disk(b, named(self.other_format, b)?, Claim::Still).await?;
        let (bar, progress) = watch(self.json);
        let outcome = ops::compare(&first, &second, progress).await;
        bar.finish_and_clear();
        let difference = outcome.with_context(|| format!("comparing {a} with {b}"))?;
        if self.json {
            print_json(&json!({
                "a": a,
                "b": b,
                "same": difference.is_none(),
                "first_difference": difference,
                "sizes": [first.geometry().size, second.geometry().size],
            }));
        }
        match difference {
            None if self.json => Ok(()),
            None => {
                say!("{a} and {b} read the same");
                Ok(())
            }
            Some(at) => bail!("{a} and {b} differ from byte {at} on"),
        }
    }
}

//! `bulkhead disk merge`, `rebase` and `snapshot`.

use std::path::Path;

use anyhow::{Context, bail, ensure};
use serde_json::json;
use smb_client::SmbUrl;
use vhd::{
    Format, chain, classic,
    ops::{self, Level},
    vhdx,
};

use super::{Image, locations, watch};
use crate::storage::{self, Claim};

/// Arguments of `bulkhead disk merge`.
#[derive(Debug, clap::Args)]
pub struct Merge {
    #[command(flatten)]
    image: Image,
    /// An image further down the chain, into which all above it go. By default the parent.
    #[arg(long, value_name = "IMAGE")]
    into: Option<String>,
}

impl Merge {
    pub async fn run(self) -> anyhow::Result<()> {
        let image = &self.image;
        let format = image.format()?;
        let chain = locations(&image.file, format).await?;
        ensure!(chain.len() > 1, "{}: it has no parent", image.file);
        let target = match &self.into {
            None => 1,
            Some(into) => {
                let at = chain.iter().skip(1).position(|location| same(location, into));
                1 + at.with_context(|| {
                    format!("{into} is not below {} ({})", image.file, chain.join(", "))
                })?
            }
        };
        let below = match chain.get(target + 1) {
            Some(location) => Some(storage::open_disk(location, format, Claim::Still).await?),
            None => None,
        };
        let mut levels = Vec::new();
        for location in &chain[..=target] {
            set_read_only(location, false)?;
            let file = storage::open(location, Claim::Write).await?;
            levels.push(Level { location: location.clone(), file });
        }
        let (bar, progress) = watch(image.json);
        let outcome = ops::merge_into(&levels, format, below, progress).await;
        bar.finish_and_clear();
        outcome.with_context(|| {
            format!("merging {} into {} (run it again)", image.file, chain[target])
        })?;
        for level in &levels {
            level.file.close().await?;
        }
        let (into, done) = (&chain[target], &chain[..target]);
        let json = json!({ "file": image.file, "into": into, "not_needed": done });
        image.print(json, || {
            format!(
                "{into}: has all of {} now; not needed any more: {}",
                image.file,
                done.join(", ")
            )
        });
        Ok(())
    }
}

/// Arguments of `bulkhead disk rebase`.
#[derive(Debug, clap::Args)]
pub struct Rebase {
    #[command(flatten)]
    image: Image,
    /// The new parent. Its path is kept relative to FILE.
    #[arg(long, value_name = "IMAGE")]
    parent: String,
    /// Change only what the image says of its parent, which may be gone. The disk is then what the
    /// new parent makes of it.
    #[arg(long = "unsafe")]
    blindly: bool,
}

impl Rebase {
    pub async fn run(self) -> anyhow::Result<()> {
        let (image, parent) = (&self.image, &self.parent);
        let format = image.format()?;
        let path = chain::relative(&image.file, parent).with_context(|| {
            format!("{parent} is not reached from the folder of {}", image.file)
        })?;
        let below = locations(parent, format).await?;
        if let Some(location) = below.iter().find(|location| same(location, &image.file)) {
            bail!("{location} is an image of the parent's own chain");
        }
        let cannot = || format!("cannot give {} the parent {parent}", image.file);
        let mut taken = 0;
        let named = storage::open(parent, Claim::Still).await?;
        if self.blindly {
            let file = image.open().await?;
            let outcome = ops::relink(file.clone(), named, format, &path).await;
            outcome.with_context(cannot)?;
            file.close().await?;
        } else {
            let old = super::below(&image.file, format).await?;
            let old = old.with_context(|| format!("{}: it has no parent", image.file))?;
            let new = storage::open_disk(parent, format, Claim::Still).await?;
            let file = image.open().await?;
            let (bar, progress) = watch(image.json);
            let pair = (old, new);
            let outcome = ops::rebase(file.clone(), named, format, &path, pair, progress).await;
            bar.finish_and_clear();
            taken = outcome.with_context(cannot)?;
            file.close().await?;
        }
        let json = json!({ "file": image.file, "parent": parent, "taken_over": taken });
        image.print(json, || format!("{}: the parent is {parent}", image.file));
        Ok(())
    }
}

/// Arguments of `bulkhead disk snapshot`.
#[derive(Debug, clap::Args)]
pub struct Snapshot {
    #[command(flatten)]
    image: Image,
    /// What the new image is called: FILE with this before its ending. By default the first number
    /// that is free.
    #[arg(long)]
    name: Option<String>,
}

impl Snapshot {
    pub async fn run(self) -> anyhow::Result<()> {
        let image = &self.image;
        let format = image.format()?;
        // All of the chain is there, or nothing is made.
        locations(&image.file, format).await?;
        let target = match &self.name {
            Some(name) => {
                ensure!(!name.contains('/'), "a name has no slash: {name:?}");
                numbered(&image.file, name)
            }
            None => free_name(&image.file).await?,
        };
        let path = chain::relative(&target, &image.file)
            .with_context(|| format!("{} is not reached from {target}", image.file))?;
        let parent = storage::open(&image.file, Claim::Still).await?;
        let cannot = || format!("cannot make {target}");
        match format {
            Format::Vhdx => {
                let info = vhdx::info(parent.clone()).await.with_context(|| image.file.clone())?;
                let file = storage::open(&target, Claim::CreateNew).await?;
                let options = vhdx::CreateOptions::child(&info, &path);
                let options = options.inheriting(parent.clone()).await.with_context(cannot)?;
                vhdx::create(file.clone(), &options).await.with_context(cannot)?;
                file.close().await?;
            }
            _ => {
                let info = classic::info(parent.clone()).await;
                let info = info.with_context(|| image.file.clone())?;
                let file = storage::open(&target, Claim::CreateNew).await?;
                let options = classic::CreateOptions::child(&info, &path);
                classic::create(file.clone(), &options).await.with_context(cannot)?;
                file.close().await?;
            }
        }
        parent.close().await?;
        set_read_only(&image.file, true)?;
        let json = json!({ "file": target, "parent": image.file });
        image.print(json, || {
            format!("{target}: use this from now on; {} stays as it is", image.file)
        });
        Ok(())
    }
}

/// A location with a name before its ending.
fn numbered(location: &str, name: &str) -> String {
    match location.rsplit_once('.') {
        Some((stem, ending)) if !ending.contains('/') => format!("{stem}.{name}.{ending}"),
        _ => format!("{location}.{name}"),
    }
}

/// The first numbered name that is not taken.
async fn free_name(location: &str) -> anyhow::Result<String> {
    for number in 1..10_000 {
        let name = numbered(location, &number.to_string());
        match storage::open(&name, Claim::Look).await {
            Ok(file) => file.close().await?,
            Err(_) => return Ok(name),
        }
    }
    bail!("{location}: no number below 10,000 is free; name it")
}

/// Whether two locations are one file that is there.
fn same(a: &str, b: &str) -> bool {
    let found = |location: &str| std::fs::canonicalize(location).ok();
    a == b || found(a).is_some_and(|a| Some(a) == found(b))
}

/// Takes the right to write away from a local file, or gives it to its owner: a parent is not to be
/// changed by mistake. A share is left alone.
fn set_read_only(location: &str, read_only: bool) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    if SmbUrl::looks_like(location) {
        return Ok(());
    }
    let path = Path::new(location);
    let named = || format!("cannot change the permissions of {location}");
    let mut permissions = std::fs::metadata(path).with_context(named)?.permissions();
    let mode = permissions.mode();
    let wanted = match read_only {
        true => mode & !0o222,
        false if mode & 0o222 == 0 => mode | 0o200,
        false => mode,
    };
    if wanted != mode {
        permissions.set_mode(wanted);
        std::fs::set_permissions(path, permissions).with_context(named)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::numbered;

    #[test]
    fn names_go_before_the_ending() {
        assert_eq!(numbered("/vm/a.vhdx", "1"), "/vm/a.1.vhdx");
        assert_eq!(numbered("smb://h/s/a.b.vhd", "old"), "smb://h/s/a.b.old.vhd");
        assert_eq!(numbered("/v.d/disk", "1"), "/v.d/disk.1");
    }
}

//! Another parent for a differencing image.

use std::sync::Arc;

use block_io::{Disk, File};

use super::{Image, Progress, no_such};
use crate::{
    Error, Format, Place, Result,
    classic::{self, edit},
    parent,
    vhdx::{self, edit::Editor, locator::ParentLocator},
};

/// Bytes of the disk whose places are asked for at once.
const WINDOW: u64 = 1 << 30;
/// Bytes compared, and copied if they differ, at once.
const STEP: u64 = 64 << 10;

/// Says in the differencing image in `child` that its parent is the image in `parent`, found from
/// the child's folder at `relative_path`. What the child reads as below is not looked at: it is the
/// caller's to know that it is the same.
///
/// # Errors
/// [`Error::InvalidOptions`] if the child is no differencing image, or the sectors of the two
/// differ; what either image says.
pub async fn relink(
    child: Arc<dyn File>,
    parent: Arc<dyn File>,
    format: Format,
    relative_path: &str,
) -> Result<()> {
    let standalone = || Error::InvalidOptions("the image has no parent to be exchanged".into());
    match format {
        Format::Vhdx => {
            let below = vhdx::info(parent.clone()).await?;
            let mut editor = Editor::open(child).await?;
            let metadata = &editor.image.metadata;
            if metadata.parent.is_none() {
                return Err(standalone());
            }
            let sector = metadata.logical_sector;
            if below.logical_sector != sector {
                return Err(Error::InvalidOptions(format!(
                    "the parent has {}-byte sectors, the image {sector}-byte ones",
                    below.logical_sector
                )));
            }
            let locator = ParentLocator::vhdx(below.data_write_id, relative_path);
            let space = editor.space().await?;
            editor.stage_locator(&locator).await?;
            editor.commit(&space).await?;
            editor.finish().await.map(drop)
        }
        Format::Vhd => {
            let below = classic::info(parent).await?;
            if classic::info(child.clone()).await?.parent.is_none() {
                return Err(standalone());
            }
            let mut editor = edit::Editor::open(child).await?;
            editor.set_parent(below.id, below.timestamp, relative_path).await?;
            editor.finish().await.map(drop)
        }
        other => Err(no_such(other)),
    }
}

/// As [`relink`], but the disk stays what it is: where the new parent's disk `new` differs from the
/// old one's, `old`, the image takes over what the old one has. Returns the bytes taken over.
///
/// # Errors
/// As [`relink`]; what a disk says.
pub async fn rebase(
    child: Arc<dyn File>,
    parent: Arc<dyn File>,
    format: Format,
    relative_path: &str,
    (old, new): (Arc<dyn Disk>, Arc<dyn Disk>),
    mut progress: impl FnMut(Progress),
) -> Result<u64> {
    let image = Image::open(child.clone(), format, Some(old.clone()), false).await?;
    if let Image::Vhdx(disk) = &image {
        // Nobody who reads the disk sees a change.
        disk.choose_content_id(vhdx::identity(child.clone()).await?.data_write_id);
    }
    let total = image.disk().geometry().size;
    let mut state = Progress { done: 0, total };
    let mut taken = 0;
    while state.done < total {
        let window = state.done..(state.done + WINDOW).min(total);
        let (at_old, at_new) = (
            parent::ranges(Some(&old), window.clone()).await?,
            parent::ranges(Some(&new), window.clone()).await?,
        );
        for extent in image.extents(window.clone()).await? {
            if extent.place != Place::Below {
                continue;
            }
            let mut at = extent.range.start;
            while at < extent.range.end {
                let end = ((at / STEP + 1) * STEP).min(extent.range.end);
                let touches = |ranges: &[std::ops::Range<u64>]| {
                    let first = ranges.partition_point(|range| range.end <= at);
                    ranges.get(first).is_some_and(|range| range.start < end)
                };
                if touches(&at_old) || touches(&at_new) {
                    taken += take_over(&image, &old, &new, at..end).await?;
                }
                at = end;
            }
        }
        state.done = window.end;
        progress(state);
    }
    match &image {
        Image::Vhdx(disk) => disk.end().await?,
        Image::Vhd(disk) => disk.flush().await?,
    }
    drop(image);
    relink(child, parent, format, relative_path).await?;
    Ok(taken)
}

/// Writes what the old parent has to the image if the new one has something else.
async fn take_over(
    image: &Image,
    old: &Arc<dyn Disk>,
    new: &Arc<dyn Disk>,
    range: std::ops::Range<u64>,
) -> Result<u64> {
    let len = (range.end - range.start) as usize;
    let (mut was, mut is) = (vec![0; len], vec![0; len]);
    parent::read(Some(old), range.start, &mut was).await?;
    parent::read(Some(new), range.start, &mut is).await?;
    if was == is {
        return Ok(0);
    }
    image.disk().write_at(range.start, &was).await?;
    Ok(len as u64)
}

//! Moving what a differencing image has into its parent.
//!
//! ```text
//!  child: parent may be "as it was" or "as this merge makes it"     (VHDX: parent_linkage, _linkage2)
//!    └─► parent: identity "as this merge makes it" ─► what the child has, block by block ─► flush
//!          └─► child: parent is "as this merge made it"
//! ```
//!
//! Only what the child has itself is written to the parent, so whoever reads the child reads the same
//! before, meanwhile and after: also a reader that has both open all the time. Who reads the parent
//! by itself sees it change. A VHD's identity says nothing of its content, so its child needs no
//! such care.

use std::{ops::Range, sync::Arc};

use block_io::{Disk, File};
use futures_util::{StreamExt, stream::FuturesUnordered};

use super::{Image, Progress, ResizeOptions, no_such, rebase::relink, resize};
use crate::{Error, Format, Guid, Place, Result, chain, parent::Unseen, vhdx, vhdx::edit::Editor};

/// Bytes of the disk whose places are asked for at once.
const WINDOW: u64 = 1 << 30;
/// Bytes moved at once.
const CHUNK: u64 = 1 << 20;
/// Requests under way at once; memory is this times a chunk.
const IN_FLIGHT: usize = 8;

/// Moves what the differencing image in `child` has into its parent in `parent`; `below` is the
/// disk below that, if it is a differencing image itself. The parent is what the child was then;
/// the child stays whole, and is not needed any more. Images that have the child as their parent are
/// to be told of the new one ([`relink`]).
///
/// While it runs, and after a crash, who opens the child with its parents finds the disk as it was.
/// A reader of the child that has it open before goes on reading the same.
///
/// # Errors
/// [`Error::ParentChanged`] if it is not the child's parent; what either image says.
pub async fn merge(
    child: Arc<dyn File>,
    parent: Arc<dyn File>,
    format: Format,
    below: Option<Arc<dyn Disk>>,
    progress: impl FnMut(Progress),
) -> Result<()> {
    merge_one(child, parent, format, below, false, progress).await
}

/// As [`merge`]. With `longer` a parent that is longer than the child stays so, with zeros behind
/// the child's end: what is merged next may reach there.
async fn merge_one(
    child: Arc<dyn File>,
    parent: Arc<dyn File>,
    format: Format,
    below: Option<Arc<dyn Disk>>,
    longer: bool,
    progress: impl FnMut(Progress),
) -> Result<()> {
    match format {
        Format::Vhdx => merge_vhdx(child, parent, below, longer, progress).await,
        Format::Vhd => {
            let about = crate::classic::info(child.clone()).await?;
            let found = crate::classic::info(parent.clone()).await?;
            match &about.parent {
                Some((id, _)) if *id == found.id => {}
                Some(_) => return Err(not_the_parent(found.id)),
                None => return Err(no_parent()),
            }
            // What an interrupted call left of the child's footers is mended.
            crate::classic::edit::Editor::open(child.clone()).await?;
            let size = about.disk_size;
            if size > found.disk_size {
                fit(&parent, format, size, &below, None).await?;
            }
            let target = Image::open(parent.clone(), format, below.clone(), false).await?;
            transfer(&own(child, format, 512).await?, &target, progress).await?;
            if longer && size < found.disk_size {
                target.disk().write_zeroes(size, found.disk_size - size).await?;
            }
            target.disk().flush().await?;
            drop(target);
            if size < found.disk_size && !longer {
                fit(&parent, format, size, &below, None).await?;
            }
            Ok(())
        }
        other => Err(no_such(other)),
    }
}

async fn merge_vhdx(
    child: Arc<dyn File>,
    parent: Arc<dyn File>,
    below: Option<Arc<dyn Disk>>,
    longer: bool,
    progress: impl FnMut(Progress),
) -> Result<()> {
    let format = Format::Vhdx;
    let found = vhdx::identity(parent.clone()).await?.data_write_id;
    let about = vhdx::info(child.clone()).await?;
    let Some(locator) = vhdx::identity(child.clone()).await?.parent else {
        return Err(no_parent());
    };
    if !locator.linkages().contains(&found) {
        return Err(not_the_parent(found));
    }
    // The child takes the parent as it is and as it is going to be.
    let merged = Guid::random();
    let say = async |first, second| {
        let mut editor = Editor::open(child.clone()).await?;
        let space = editor.space().await?;
        editor.stage_locator(&locator.with_linkages(first, second)).await?;
        editor.commit(&space).await?;
        editor.finish().await
    };
    say(found, Some(merged)).await?;

    let (size, before) = (about.disk_size, vhdx::info(parent.clone()).await?.disk_size);
    if size > before {
        fit(&parent, format, size, &below, Some(merged)).await?;
    }
    let target = Image::open(parent.clone(), format, below.clone(), false).await?;
    if let Image::Vhdx(disk) = &target {
        disk.choose_content_id(merged);
        transfer(&own(child.clone(), format, about.logical_sector).await?, &target, progress)
            .await?;
        if longer && size < before {
            target.disk().write_zeroes(size, before - size).await?;
        }
        disk.end().await?;
    }
    drop(target);
    if size < before && !longer {
        fit(&parent, format, size, &below, Some(merged)).await?;
    }
    // MS-VHDX 2.6.1.2: the disk's items are the child's.
    let items = vhdx::inherited_items(child.clone()).await?;
    vhdx::replace_inherited(parent.clone(), &items, merged).await?;
    // Nothing was written if the child had nothing: the parent is then what it was.
    let now = vhdx::identity(parent).await?.data_write_id;
    say(now, None).await.map(drop)
}

/// Gives the parent the size of the child, whose content it takes.
async fn fit(
    parent: &Arc<dyn File>,
    format: Format,
    size: u64,
    below: &Option<Arc<dyn Disk>>,
    content_id: Option<Guid>,
) -> Result<()> {
    let options = ResizeOptions { force: true, parent: below.clone(), content_id };
    resize(parent.clone(), format, size, options).await
}

/// The child by itself.
async fn own(file: Arc<dyn File>, format: Format, sector: u32) -> Result<Image> {
    Image::open(file, format, Some(Arc::new(Unseen { sector })), true).await
}

fn no_parent() -> Error {
    Error::InvalidOptions("the image has no parent".into())
}

fn not_the_parent(found: Guid) -> Error {
    Error::ParentChanged { parent: "the image given as the parent".into(), found }
}

enum Piece {
    Data(Range<u64>),
    Zero(Range<u64>),
}

/// Writes what `source` has itself to `target`.
async fn transfer(
    source: &Image,
    target: &Image,
    mut progress: impl FnMut(Progress),
) -> Result<()> {
    let total = source.disk().geometry().size;
    let mut state = Progress { done: 0, total };
    let mut flight = FuturesUnordered::new();
    let mut at = 0;
    while at < total {
        let window = at..(at + WINDOW).min(total);
        for extent in source.extents(window.clone()).await? {
            let pieces = match extent.place {
                Place::Below => {
                    state.done += extent.range.end - extent.range.start;
                    continue;
                }
                Place::Zero => vec![Piece::Zero(extent.range)],
                Place::File(_) => pieces(source.disk(), extent.range).await?,
            };
            for piece in pieces {
                if flight.len() >= IN_FLIGHT
                    && let Some(done) = flight.next().await
                {
                    let done: Result<u64> = done;
                    state.done += done?;
                    progress(state);
                }
                flight.push(move_piece(source.disk(), target.disk(), piece));
            }
        }
        at = window.end;
    }
    while let Some(done) = flight.next().await {
        state.done += done?;
        progress(state);
    }
    Ok(())
}

/// Cuts a part that the image has into data and the holes of its file.
async fn pieces(disk: &dyn Disk, range: Range<u64>) -> Result<Vec<Piece>> {
    let sector = u64::from(disk.geometry().logical_sector);
    let mut found = Vec::new();
    let mut at = range.start;
    for data in disk.allocated_ranges(range.clone()).await? {
        let start = (data.start / sector * sector).max(at);
        let end = data.end.next_multiple_of(sector).min(range.end);
        if start > at {
            found.push(Piece::Zero(at..start));
            at = start;
        }
        while at < end {
            let next = ((at / CHUNK + 1) * CHUNK).min(end);
            found.push(Piece::Data(at..next));
            at = next;
        }
    }
    if at < range.end {
        found.push(Piece::Zero(at..range.end));
    }
    Ok(found)
}

async fn move_piece(source: &dyn Disk, target: &dyn Disk, piece: Piece) -> Result<u64> {
    let (Piece::Data(range) | Piece::Zero(range)) = &piece;
    let (at, len) = (range.start, range.end - range.start);
    if let Piece::Data(_) = piece {
        let mut buf = vec![0; len as usize];
        source.read_at(at, &mut buf).await?;
        if buf.iter().any(|byte| *byte != 0) {
            target.write_at(at, &buf).await?;
            return Ok(len);
        }
    }
    // Behind the end of a parent that was made longer there is nothing to be made zeros.
    target.write_zeroes(at, len).await?;
    Ok(len)
}

/// One image of a chain that is merged.
#[derive(Debug, Clone)]
pub struct Level {
    /// Where it is, as in [`chain::links`].
    pub location: String,
    /// Its file, open for writing.
    pub file: Arc<dyn File>,
}

/// Moves what all images of a chain but the last have into the last of `levels` (the newest comes
/// first), one after the other from below; `below` is the disk below that. After each step the next
/// image has the last one as its parent, so the newest image can be opened, and is the disk it was,
/// at any time; those in between are given up as they are merged.
///
/// # Errors
/// As [`merge`] and [`relink`].
pub async fn merge_into(
    levels: &[Level],
    format: Format,
    below: Option<Arc<dyn Disk>>,
    mut progress: impl FnMut(Progress),
) -> Result<()> {
    let Some((last, above)) = levels.split_last() else { return Ok(()) };
    for (i, level) in above.iter().enumerate().rev() {
        let (file, target) = (level.file.clone(), last.file.clone());
        merge_one(file, target, format, below.clone(), i > 0, &mut progress).await?;
        let Some(next) = i.checked_sub(1).and_then(|i| above.get(i)) else { break };
        let path = chain::relative(&next.location, &last.location).ok_or_else(|| {
            let (from, to) = (&next.location, &last.location);
            Error::InvalidOptions(format!("{to} is not reached from the folder of {from}"))
        })?;
        relink(next.file.clone(), last.file.clone(), format, &path).await?;
    }
    Ok(())
}

//! A shorter file for the same disk.

use std::{ops::Range, sync::Arc};

use block_io::{Disk, File};

use super::{Image, Progress, no_such};
use crate::{Error, Format, Place, Result, classic, parent, vhdx, vhdx::bat::BlockState};

/// Bytes of the disk whose places are asked for at once.
const WINDOW: u64 = 1 << 30;
/// Bytes looked at once.
const STEP: u64 = 1 << 20;

/// What became of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Compacted {
    /// Blocks that were given up: zeros, or the same in the parent.
    pub dropped: u64,
    /// Bytes of the file before.
    pub before: u64,
    /// Bytes of the file now.
    pub after: u64,
}

/// Gives up the blocks that read the same without what the image has of them (zeros, or what the
/// parent has) and moves others from the end of the file into its holes. The disk reads as before
/// at any time. `parent` is the disk below a differencing image.
///
/// # Errors
/// [`Error::InvalidOptions`] for a fixed image; what the image says.
pub async fn compact(
    file: Arc<dyn File>,
    format: Format,
    parent: Option<Arc<dyn Disk>>,
    mut progress: impl FnMut(Progress),
) -> Result<Compacted> {
    let before = file.len().await?;
    let fixed = || Error::InvalidOptions("a fixed image keeps all its space".into());
    let (block_size, id) = match format {
        Format::Vhdx => {
            let info = vhdx::info(file.clone()).await?;
            if info.kind == vhdx::Kind::Fixed {
                return Err(fixed());
            }
            (u64::from(info.block_size), Some(info.data_write_id))
        }
        Format::Vhd => {
            let info = classic::info(file.clone()).await?;
            (u64::from(info.block_size.ok_or_else(fixed)?), None)
        }
        other => return Err(no_such(other)),
    };
    let image = Image::open(file.clone(), format, parent.clone(), format == Format::Vhd).await?;
    if let (Image::Vhdx(disk), Some(id)) = (&image, id) {
        // Nobody who reads the disk sees a change.
        disk.choose_content_id(id);
    }
    let total = image.disk().geometry().size;
    // The second half is moving.
    let half = |done| Progress { done: done / 2, total };
    let (mut dropped, mut in_vhd) = (0, Vec::new());
    let mut buffers = (vec![0; STEP as usize], vec![0; STEP as usize]);
    let mut at = 0;
    while at < total {
        // Whole blocks: they are powers of two up to 256 MiB.
        let window = at..(at + WINDOW).min(total);
        for (block, range) in stored(&image, window.clone(), block_size).await? {
            let Some(state) = superfluous(&image, parent.as_ref(), range, &mut buffers).await?
            else {
                continue;
            };
            match &image {
                Image::Vhdx(disk) => disk.give_up(block, state).await?,
                // At most 16 Mi blocks.
                Image::Vhd(_) => in_vhd.push(block as u32),
            }
            dropped += 1;
        }
        at = window.end;
        progress(half(at));
    }
    if let Image::Vhdx(disk) = &image {
        disk.end().await?;
    }
    drop(image);
    let moving = |done: u64, of: u64| {
        let share = u128::from(total) * u128::from(done) / u128::from(of.max(1));
        progress(Progress { done: total / 2 + (share / 2) as u64, total });
    };
    let after = match format {
        Format::Vhdx => vhdx::repack::repack(file, moving).await?,
        _ => classic::repack::repack(file, &in_vhd, moving).await?,
    };
    Ok(Compacted { dropped, before, after })
}

/// The blocks of a window that the image has something of.
async fn stored(
    image: &Image,
    window: Range<u64>,
    block_size: u64,
) -> Result<Vec<(u64, Range<u64>)>> {
    let mut found: Vec<(u64, Range<u64>)> = Vec::new();
    let size = image.disk().geometry().size;
    for extent in image.extents(window).await? {
        if let Place::File(_) = extent.place {
            let blocks = extent.range.start / block_size..extent.range.end.div_ceil(block_size);
            for block in blocks {
                if found.last().is_none_or(|(last, _)| *last < block) {
                    found.push((block, block * block_size..((block + 1) * block_size).min(size)));
                }
            }
        }
    }
    Ok(found)
}

/// Whether a block reads the same without what the image has of it, and in which state.
async fn superfluous(
    image: &Image,
    parent: Option<&Arc<dyn Disk>>,
    range: Range<u64>,
    (own, below): &mut (Vec<u8>, Vec<u8>),
) -> Result<Option<BlockState>> {
    let vhdx = matches!(image, Image::Vhdx(_));
    let parent = parent.filter(|_| image.parent_size().is_some());
    let (mut zero, mut same) = (vhdx || parent.is_none(), parent.is_some());
    let mut at = range.start;
    while at < range.end && (zero || same) {
        let n = (range.end - at).min(STEP) as usize;
        // What is known to be a hole need not be read.
        let hole = image.disk().allocated_ranges(at..at + n as u64).await?.is_empty();
        if hole {
            own[..n].fill(0);
        } else {
            image.disk().read_at(at, &mut own[..n]).await?;
            zero &= own[..n].iter().all(|byte| *byte == 0);
        }
        if same {
            parent::read(parent, at, &mut below[..n]).await?;
            same = own[..n] == below[..n];
        }
        at += n as u64;
    }
    Ok(match (same, zero) {
        (true, _) => Some(BlockState::NotPresent),
        (_, true) => Some(if vhdx { BlockState::Zero } else { BlockState::NotPresent }),
        _ => None,
    })
}

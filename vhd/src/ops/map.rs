//! Where each part of a disk is.

use std::{ops::Range, sync::Arc};

use block_io::File;

use super::Image;
use crate::{Format, Place, Result, extent, parent::Unseen};

/// Bytes of the disk whose places are asked for at once.
const WINDOW: u64 = 1 << 30;

/// A part of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapped {
    /// Its bytes on the disk.
    pub range: Range<u64>,
    /// Which image of the chain has it, 0 being the newest; the last one for what no image has.
    pub level: usize,
    /// Where it is; [`Place::Below`] if no image has it, so that it reads as zeros.
    pub place: Place,
}

/// Tells `seen` where each part of the disk is that the images `chain` make, the newest first.
/// Neighbours that are alike come as one within 1 GiB of the disk.
///
/// # Errors
/// What an image says.
pub async fn map(
    chain: &[Arc<dyn File>],
    format: Format,
    mut seen: impl FnMut(Mapped),
) -> Result<()> {
    let mut images = Vec::new();
    for file in chain {
        let sector = match format {
            Format::Vhdx => crate::vhdx::info(file.clone()).await?.logical_sector,
            _ => 512,
        };
        let unseen = Arc::new(Unseen { sector });
        images.push(Image::open(file.clone(), format, Some(unseen), true).await?);
    }
    let total = images.first().map_or(0, |image| image.disk().geometry().size);
    let mut at = 0;
    while at < total {
        let window = at..(at + WINDOW).min(total);
        // What is still to be found, in order; each level finds a part of it.
        let mut missing = vec![window.clone()];
        let mut found: Vec<Mapped> = Vec::new();
        for (level, image) in images.iter().enumerate() {
            let size = image.disk().geometry().size;
            let last = level + 1 == images.len();
            let mut below = Vec::new();
            for range in std::mem::take(&mut missing) {
                let there = range.start..range.end.min(size);
                let mut extents = Vec::new();
                if !there.is_empty() {
                    extents = image.extents(there.clone()).await?;
                }
                let behind = range.start.max(size)..range.end;
                extent::push(&mut extents, behind, Place::Zero);
                for part in extents {
                    if part.place == Place::Below && !last {
                        below.push(part.range);
                    } else {
                        found.push(Mapped { range: part.range, level, place: part.place });
                    }
                }
            }
            missing = below;
        }
        found.sort_unstable_by_key(|part| part.range.start);
        found.into_iter().for_each(&mut seen);
        at = window.end;
    }
    Ok(())
}

//! Another size of the disk.

use std::sync::Arc;

use block_io::{Disk, File};

use super::{Image, no_such};
use crate::{Error, Format, Guid, Result, classic, vhdx};

/// Bytes looked at once for data past the new end.
const STEP: u64 = 1 << 20;
/// Bytes of the disk whose allocation is asked for at once.
const WINDOW: u64 = 1 << 30;

/// How far a resize may go.
#[derive(Debug, Clone, Default)]
pub struct ResizeOptions {
    /// Cut off data that is past the new end.
    pub force: bool,
    /// The disk below a differencing image.
    pub parent: Option<Arc<dyn Disk>>,
    /// The identity of a VHDX's content from now on; random if `None`.
    pub content_id: Option<Guid>,
}

/// Gives the disk in `file` `size` bytes. What is new reads as zeros, also where a parent is longer than
/// the disk was: a VHDX says so of each block, a VHD has no way to and gets blocks of zeros there, which
/// are holes in its file.
///
/// # Errors
/// [`Error::WouldLose`] if there is data past the new end, without `force`;
/// [`Error::InvalidOptions`] for a size that the format has not; what the image or its parent says.
pub async fn resize(
    file: Arc<dyn File>,
    format: Format,
    size: u64,
    options: ResizeOptions,
) -> Result<()> {
    let image = Image::open(file.clone(), format, options.parent.clone(), true).await?;
    let (old, sector) =
        (image.disk().geometry().size, u64::from(image.disk().geometry().logical_sector));
    if size == 0 || !size.is_multiple_of(sector) {
        return Err(Error::InvalidOptions(format!(
            "disk size {size}: whole {sector}-byte sectors, more than nothing"
        )));
    }
    let below = image.parent_size().filter(|below| size > old && *below > old);
    if size < old
        && !options.force
        && let Some(end) = data_end(image.disk(), size).await?
    {
        return Err(Error::WouldLose { size, end });
    }
    drop(image);
    let content = options.content_id.unwrap_or_else(Guid::random);
    let mut hidden = Vec::new();
    if let Some(below) = below {
        // The block in which the disk ends is the image's own from here on.
        match Image::open(file.clone(), format, options.parent, false).await? {
            Image::Vhdx(disk) => {
                disk.choose_content_id(content);
                disk.take_over_last().await?;
                disk.end().await?;
            }
            Image::Vhd(disk) => {
                disk.take_over_last().await?;
                hidden = disk.blocks_below(below.min(size)).await?;
            }
        }
    }
    match format {
        Format::Vhdx => vhdx::resize::resize(file, size, below.unwrap_or(0), content).await,
        Format::Vhd => classic::resize::resize(file, size, &hidden).await,
        other => Err(no_such(other)),
    }
}

/// Where the last data at or past `from` ends, if there is any.
async fn data_end(disk: &dyn Disk, from: u64) -> Result<Option<u64>> {
    let size = disk.geometry().size;
    let mut buf = vec![0; STEP.min(size - from) as usize];
    let mut end = size;
    while end > from {
        let start = end.saturating_sub(WINDOW).max(from);
        for range in disk.allocated_ranges(start..end).await?.into_iter().rev() {
            let mut stop = range.end;
            while stop > range.start {
                let at = stop.saturating_sub(STEP).max(range.start);
                // Allocation is told in sectors, or in finer steps of which these are made.
                let sector = u64::from(disk.geometry().logical_sector);
                let (low, high) = (at / sector * sector, stop.next_multiple_of(sector).min(size));
                buf.resize((high - low) as usize, 0);
                disk.read_at(low, &mut buf).await?;
                if let Some(last) = buf.iter().rposition(|byte| *byte != 0)
                    && low + last as u64 >= from
                {
                    return Ok(Some(low + last as u64 + 1));
                }
                stop = at;
            }
        }
        end = start;
    }
    Ok(None)
}

//! Holes in the file for what an image does not need.

use std::{ops::Range, sync::Arc};

use block_io::File;

use super::{Image, Progress, no_such};
use crate::{
    Format, Place, Result, classic,
    parent::Unseen,
    vhdx::edit::{Editor, punch},
};

/// Bytes of the disk whose places are asked for at once.
const WINDOW: u64 = 1 << 30;
/// Bytes looked at once.
const STEP: u64 = 1 << 20;
/// Zeros in shorter runs stay as they are.
const GRAIN: usize = 64 << 10;

/// Gives back to the storage what nothing in the image uses, and with `zeros` also what is used
/// and holds zeros; the image's structures stay as they are. Returns the bytes that became holes,
/// some of which may have been holes before; 0 if the storage has none.
///
/// # Errors
/// What the image or the file says.
pub async fn trim(
    file: Arc<dyn File>,
    format: Format,
    zeros: bool,
    mut progress: impl FnMut(Progress),
) -> Result<u64> {
    let mut punched = match format {
        Format::Vhdx => {
            let mut editor = Editor::open(file.clone()).await?;
            let free = editor.space().await?.free_runs(editor.image.file_len);
            editor.begin(None).await?;
            punch(&*file, free).await?
        }
        Format::Vhd => {
            let editor = classic::edit::Editor::open(file.clone()).await?;
            punch(&*file, gaps(editor.used())).await?
        }
        other => return Err(no_such(other)),
    };
    if zeros {
        let sector = match format {
            Format::Vhdx => crate::vhdx::info(file.clone()).await?.logical_sector,
            _ => 512,
        };
        let unseen = Arc::new(Unseen { sector });
        let image = Image::open(file.clone(), format, Some(unseen), true).await?;
        let total = image.disk().geometry().size;
        let mut at = 0;
        while at < total {
            let window = at..(at + WINDOW).min(total);
            for extent in image.extents(window.clone()).await? {
                if let Place::File(place) = extent.place {
                    let len = extent.range.end - extent.range.start;
                    punched += punch_zeros(&*file, place..place + len).await?;
                }
            }
            at = window.end;
            progress(Progress { done: at, total });
        }
    }
    file.flush().await?;
    Ok(punched)
}

/// What lies between these ranges, which ascend and may touch.
fn gaps(used: Vec<Range<u64>>) -> Vec<Range<u64>> {
    let mut gaps = Vec::new();
    let mut at = 0;
    for range in used {
        if at < range.start {
            gaps.push(at..range.start);
        }
        at = at.max(range.end);
    }
    gaps
}

/// Punches holes for the zeros of a part of the file.
async fn punch_zeros(file: &dyn File, range: Range<u64>) -> Result<u64> {
    let mut punched = 0;
    let mut buf = vec![0; STEP.min(range.end - range.start) as usize];
    for data in file.allocated_ranges(range).await? {
        let mut at = data.start;
        while at < data.end {
            let n = (data.end - at).min(buf.len() as u64) as usize;
            let got = file.read_at(at, &mut buf[..n]).await?;
            if got == 0 {
                break;
            }
            let mut holes: Vec<Range<u64>> = Vec::new();
            for (i, grain) in buf[..got].chunks(GRAIN).enumerate() {
                if grain.iter().all(|byte| *byte == 0) {
                    let start = at + (i * GRAIN) as u64;
                    let end = start + grain.len() as u64;
                    match holes.last_mut() {
                        Some(last) if last.end == start => last.end = end,
                        _ => holes.push(start..end),
                    }
                }
            }
            punched += punch(file, holes).await?;
            at += got as u64;
        }
    }
    Ok(punched)
}

//! What an image says of itself: identities and sector size; copies that are other disks.

use std::{ops::Range, sync::Arc};

use block_io::File;

use super::{Progress, no_such, rebase::relink};
use crate::{
    Error, Format, Guid, Result,
    classic::{edit, footer},
    staged::Staged,
    vhdx::{
        self, HEADER_OFFSETS, REGION_TABLE_OFFSETS,
        edit::Editor,
        metadata::{DISK_ID, PHYSICAL_SECTOR},
    },
};

/// Bytes copied at once.
const STEP: u64 = 1 << 20;

/// What to change; nothing by default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Set {
    /// Bytes of a physical sector, 512 or 4096; of a VHDX only.
    pub physical_sector: Option<u32>,
    /// The identity of the disk. A VHD's children know it by this.
    pub disk_id: Option<Guid>,
}

/// Changes what the image in `file` says of itself. A VHDX's content has another identity after it,
/// so its children refuse it.
///
/// # Errors
/// [`Error::InvalidOptions`] for what the format has not; what the image says.
pub async fn set(file: Arc<dyn File>, format: Format, what: Set) -> Result<()> {
    if what == Set::default() {
        return Ok(());
    }
    match format {
        Format::Vhdx => {
            if what.physical_sector.is_some_and(|size| ![512, 4096].contains(&size)) {
                let why = "a physical sector has 512 or 4096 bytes";
                return Err(Error::InvalidOptions(why.into()));
            }
            let mut editor = Editor::open(file).await?;
            let space = editor.space().await?;
            if let Some(size) = what.physical_sector {
                editor.stage_item(PHYSICAL_SECTOR, &size.to_le_bytes()).await?;
            }
            if let Some(id) = what.disk_id {
                editor.stage_item(DISK_ID, &id.to_bytes()).await?;
            }
            // User-visible metadata (MS-VHDX 2.2.2).
            editor.begin(Some(Guid::random())).await?;
            editor.commit(&space).await?;
            editor.finish().await.map(drop)
        }
        Format::Vhd => {
            if what.physical_sector.is_some() {
                return Err(Error::InvalidOptions("a VHD has 512-byte sectors".into()));
            }
            let mut editor = edit::Editor::open(file).await?;
            if let Some(id) = what.disk_id {
                editor.set_footer(footer::Footer { id, ..editor.footer.clone() }).await?;
            }
            Ok(())
        }
        other => Err(no_such(other)),
    }
}

/// Makes the file `target` a copy of the image in `source` with identities of its own: another
/// disk with the same content. A differencing image stays the child of its parent (and keeps the
/// disk identity that is the chain's); `parent` is that image's file and how it is reached from the
/// copy's folder, where that is another way. What makes the file an image is written last, so a copy
/// that was cut off is none, or a whole one that finds its parent.
///
/// # Errors
/// What the image or a file says.
pub async fn clone(
    source: Arc<dyn File>,
    target: Arc<dyn File>,
    format: Format,
    parent: Option<(Arc<dyn File>, &str)>,
    mut progress: impl FnMut(Progress),
) -> Result<()> {
    let staged = match format {
        Format::Vhdx => clone_vhdx(source, target, &mut progress).await?,
        Format::Vhd => clone_vhd(source, target, &mut progress).await?,
        other => return Err(no_such(other)),
    };
    if let Some((parent, path)) = parent {
        relink(staged.clone(), parent, format, path).await?;
    }
    let end = staged.len().await?;
    Ok(staged
        .commit(|at| match format {
            Format::Vhdx => at < HEADER_OFFSETS[0],
            _ => at == 0 || at + footer::LEN as u64 == end,
        })
        .await?)
}

/// Copies all but what makes the target an image; that is in what is returned.
async fn clone_vhdx(
    source: Arc<dyn File>,
    target: Arc<dyn File>,
    progress: &mut impl FnMut(Progress),
) -> Result<Arc<Staged>> {
    let image = vhdx::clone_parts(source).await?;
    target.set_len(0).await?;
    target.set_len(image.file_len).await?;
    let log = image.header.log_offset;
    let log = log..log + u64::from(image.header.log_length);
    copy(&*image.view, &*target, vhdx::MIB..log.start, progress).await?;
    copy(&*image.view, &*target, log.end.max(vhdx::MIB)..image.file_len, progress).await?;
    for (at, bytes) in &image.changes {
        target.write_at(*at, bytes).await?;
    }
    let mut header = image.header;
    for at in REGION_TABLE_OFFSETS {
        target.write_at(at, &image.regions).await?;
    }
    for at in HEADER_OFFSETS {
        target.write_at(at, &header.encode()).await?;
        header.sequence += 1;
    }
    target.flush().await?;
    let staged = Arc::new(Staged::new(target).await?);
    staged.write_at(0, &image.identifier).await?;
    Ok(staged)
}

/// As [`clone_vhdx`].
async fn clone_vhd(
    source: Arc<dyn File>,
    target: Arc<dyn File>,
    progress: &mut impl FnMut(Progress),
) -> Result<Arc<Staged>> {
    const LEN: u64 = footer::LEN as u64;
    let image = crate::classic::clone_parts(&source).await?;
    let footer = footer::Footer { id: Guid::random(), ..image.footer };
    target.set_len(0).await?;
    target.set_len(image.end).await?;
    let fixed = footer.kind == footer::Kind::Fixed;
    let first = if fixed { 0 } else { LEN };
    copy(&*source, &*target, first..image.end, progress).await?;
    target.flush().await?;
    let staged = Arc::new(Staged::new(target).await?);
    if !fixed {
        staged.write_at(0, &footer.encode()).await?;
    }
    staged.write_at(image.end, &footer.encode()).await?;
    Ok(staged)
}

/// Copies a range of one file to the same place of another, which is zeros there.
async fn copy(
    source: &dyn File,
    target: &dyn File,
    range: Range<u64>,
    progress: &mut impl FnMut(Progress),
) -> Result<()> {
    if range.start >= range.end {
        return Ok(());
    }
    let mut buf = vec![0; STEP.min(range.end - range.start) as usize];
    for data in source.allocated_ranges(range.clone()).await? {
        let mut at = data.start.max(range.start);
        let end = data.end.min(range.end);
        while at < end {
            let n = (end - at).min(buf.len() as u64) as usize;
            let got = source.read_at(at, &mut buf[..n]).await?;
            if got == 0 {
                break;
            }
            if buf[..got].iter().any(|byte| *byte != 0) {
                target.write_at(at, &buf[..got]).await?;
            }
            at += got as u64;
            progress(Progress { done: at, total: range.end });
        }
    }
    Ok(())
}

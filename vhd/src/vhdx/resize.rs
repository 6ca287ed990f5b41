//! Another size of the disk.
//!
//! ```text
//!  grow    last block's rest, new table entries: zeros ─┐
//!          (a larger table: copied to a new region) ────┼─► one commit: size, regions
//!  shrink  ─────────────────────────────────────────────┘        │
//!          entries past the new end: zeros; blocks given back ◄──┘
//! ```
//!
//! Entries past those that the size calls for are looked at by nobody, so they are made zeros before
//! they count (growing) and after they counted (shrinking), outside of the log.

use std::sync::Arc;

use block_io::File;

use super::{
    MAX_DISK, MIB,
    bat::{BatLayout, BlockState, Content, ENTRY_SIZE, RawEntry},
    edit::Editor,
    metadata::DISK_SIZE,
    space::SpaceMap,
    zero_range,
};
use crate::{Error, Guid, Result};

/// Entries of new blocks written at once.
const STEP: u64 = 1 << 17;

/// Gives the disk `size` bytes. Whether anything is lost is the caller's to know. `below` is the size of
/// a parent that is longer than the disk is now, else 0: new blocks that it has are zeros here, and the
/// one in which the disk ends now is the image's own. `content`: its identity from now on.
pub(crate) async fn resize(
    file: Arc<dyn File>,
    size: u64,
    below: u64,
    content: Guid,
) -> Result<()> {
    let mut editor = Editor::open(file).await?;
    let metadata = &editor.image.metadata;
    let sector = u64::from(metadata.logical_sector);
    if size == 0 || size > MAX_DISK || !size.is_multiple_of(sector) {
        return Err(Error::InvalidOptions(format!(
            "disk size {size}: whole {sector}-byte sectors, more than nothing, at most 64 TiB"
        )));
    }
    let old = editor.layout();
    let new = BatLayout::new(&super::metadata::Metadata { disk_size: size, ..metadata.clone() });
    let fixed = metadata.leave_allocated;
    let mut space = editor.space().await?;
    editor.begin(None).await?;
    if size > old.disk_size {
        editor.cut(&space).await?;
        zero_rest_of_last(&mut editor).await?;
        grow_table(&mut editor, &mut space, &new).await?;
        hide(&mut editor, &old, &new, below).await?;
        if fixed {
            add_blocks(&mut editor, &mut space, &old, &new).await?;
        }
    }
    if size != old.disk_size {
        if new.has_parent && size < old.disk_size {
            // Blocks past the end that fill up the last chunk have no state (check_entry).
            for block in new.blocks..new.block_of_end() {
                editor.stage_entry(new.index(block), RawEntry::default()).await?;
            }
        }
        editor.stage_item(DISK_SIZE, &size.to_le_bytes()).await?;
        editor.begin(Some(content)).await?;
        editor.commit(&space).await?;
    }
    // What counts for nothing any more, also if an earlier call came no further.
    let bat = editor.image.bat;
    let after = bat.offset + new.entries * ENTRY_SIZE;
    if size <= old.disk_size && after < bat.end() {
        editor.file().flush().await?;
        zero_range(&**editor.file(), after..bat.end()).await?;
    }
    editor.finish().await.map(drop)
}

impl BatLayout {
    /// The first block past those that have an entry.
    fn block_of_end(&self) -> u64 {
        if self.has_parent { self.blocks.next_multiple_of(self.chunk_ratio) } else { self.blocks }
    }
}

/// Makes the part of the last block zeros that the disk did not have.
async fn zero_rest_of_last(editor: &mut Editor) -> Result<()> {
    let layout = editor.layout();
    let last = layout.blocks - 1;
    let used = layout.used(last);
    if used == layout.block_size {
        return Ok(());
    }
    let entry = editor.entry(layout.index(last)).await?;
    if let Content::Here(base) | Content::Partly(base) = entry.content() {
        let end = base + layout.block_size;
        if editor.image.file_len < end {
            // It was cut to what the disk had of it.
            editor.file().set_len(end).await?;
            editor.image.file_len = end;
        }
        zero_range(&**editor.file(), base + used..end).await?;
    }
    Ok(())
}

/// Sees that the table has room for `new`, with zeros in the entries that come to count.
async fn grow_table(editor: &mut Editor, space: &mut SpaceMap, new: &BatLayout) -> Result<()> {
    let (old, bat) = (editor.layout(), editor.image.bat);
    if new.entries * ENTRY_SIZE > u64::from(bat.length) {
        return editor.move_table(space, old.entries, new.entries).await;
    }
    let range = bat.offset + old.entries * ENTRY_SIZE..bat.offset + new.entries * ENTRY_SIZE;
    if range.is_empty() { Ok(()) } else { Ok(zero_range(&**editor.file(), range).await?) }
}

/// Says of the new blocks that start before `below` that they are zeros. Those of the last chunk there
/// was, whose entries are looked at already, say so with the commit.
async fn hide(editor: &mut Editor, old: &BatLayout, new: &BatLayout, below: u64) -> Result<()> {
    let last = below.div_ceil(new.block_size).min(new.blocks);
    let zero = RawEntry::new(BlockState::Zero, 0);
    let mut block = old.blocks;
    while block < last && new.index(block) < old.entries {
        editor.stage_entry(new.index(block), zero).await?;
        block += 1;
    }
    while block < last {
        let first = new.index(block);
        // Up to the bitmap's entry, which stays empty.
        let chunk_end = (block / new.chunk_ratio + 1) * new.chunk_ratio;
        let next = last.min(chunk_end).min(block + STEP);
        let bytes: Vec<u8> = (block..next).flat_map(|_| zero.0.to_le_bytes()).collect();
        editor.file().write_at(editor.image.bat.offset + first * ENTRY_SIZE, &bytes).await?;
        block = next;
    }
    Ok(())
}

/// Space for the new blocks of a fixed image, and their entries, which do not count yet.
async fn add_blocks(
    editor: &mut Editor,
    space: &mut SpaceMap,
    old: &BatLayout,
    new: &BatLayout,
) -> Result<()> {
    let count = new.blocks - old.blocks;
    if count == 0 {
        return Ok(());
    }
    let start = space.end().max(editor.image.file_len.next_multiple_of(MIB));
    let end = start + count * new.block_size;
    editor.file().set_len(end).await?;
    match editor.file().allocate(start..end).await {
        Ok(()) | Err(block_io::Error::Unsupported(_)) => {}
        Err(error) => return Err(error.into()),
    }
    if !space.claim(start..end) {
        return Err(block_io::Error::Corrupt("space past the end is in use".into()).into());
    }
    let mut first = old.entries;
    while first < new.entries {
        let last = (first + STEP).min(new.entries);
        let entry = |index| match new.block(index) {
            Some(block) if block >= old.blocks => {
                let at = start + (block - old.blocks) * new.block_size;
                RawEntry::new(BlockState::FullyPresent, at)
            }
            _ => RawEntry::default(),
        };
        let bytes: Vec<u8> = (first..last).flat_map(|i| entry(i).0.to_le_bytes()).collect();
        editor.file().write_at(editor.image.bat.offset + first * ENTRY_SIZE, &bytes).await?;
        first = last;
    }
    Ok(())
}

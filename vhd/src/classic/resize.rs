//! Another size of the disk.
//!
//! ```text
//!  fixed, grow     footer (old size) at the new end ─► old footer: zeros ─► footer (new size)
//!  fixed, shrink   footer (new size) ─► the same at its own end ─► cut
//!  others          table (moved if it must be longer) ─► both footers ─► entries past the end
//! ```
//!
//! A VHD cannot say that a block is zeros. New blocks that a longer parent has something of are made,
//! as holes of the file behind a full bitmap, before the table names them.

use std::sync::Arc;

use block_io::File;

use super::{
    MAX_DISK, SECTOR,
    edit::Editor,
    footer::{self, Footer, Kind},
    load::{ABSENT, load},
};
use crate::{Error, Result, vhdx::zero_range};

/// Gives the disk `size` bytes. Whether anything is lost is the caller's to know. `hidden`: the new
/// blocks that a longer parent may have something of, which are zeros here; the block in which the
/// disk ends now is the image's own then.
pub(crate) async fn resize(file: Arc<dyn File>, size: u64, hidden: &[usize]) -> Result<()> {
    if size == 0 || size > MAX_DISK || !size.is_multiple_of(SECTOR) {
        return Err(Error::InvalidOptions(format!(
            "disk size {size}: whole sectors, more than nothing, at most 2040 GiB"
        )));
    }
    if load(&*file).await?.footer.kind == Kind::Fixed {
        return resize_fixed(file, size).await;
    }
    let mut editor = Editor::open(file).await?;
    let old_size = editor.footer.size;
    if size > old_size {
        zero_rest_of_last(&editor).await?;
        let zeros = add_zeros(&mut editor, hidden).await?;
        grow_table(&mut editor, size, &zeros).await?;
    }
    if size != old_size {
        editor.set_footer(Footer { size, ..editor.footer.clone() }).await?;
    }
    // Entries past the end count for nothing; nor do the blocks that they name.
    if let Some(blocks) = editor.blocks_mut() {
        let wanted = size.div_ceil(u64::from(blocks.header.block_size)) as usize;
        let entries = blocks.header.entries as usize;
        blocks.table.truncate(wanted);
        editor.write_table(wanted..entries).await?;
    }
    editor.finish().await.map(drop)
}

async fn resize_fixed(file: Arc<dyn File>, size: u64) -> Result<()> {
    const LEN: u64 = footer::LEN as u64;
    let mut editor = Editor::open(file).await?;
    let file = editor.file().clone();
    let old = editor.footer.clone();
    if size > old.size {
        let end = size + LEN;
        if editor.file_len < end {
            // In one write, so that the file is never longer without a footer at its end.
            file.write_at(size, &old.encode()).await?;
            file.flush().await?;
            editor.file_len = end;
        }
        // What is behind the old end: the old footer, and what an earlier call left.
        let rest = old.size..editor.file_len - LEN;
        zero_range(&*file, rest.clone()).await?;
        match file.allocate(rest).await {
            Ok(()) | Err(block_io::Error::Unsupported(_)) => {}
            Err(error) => return Err(error.into()),
        }
        file.flush().await?;
    }
    if size != old.size {
        editor.set_footer(Footer { size, ..old }).await?;
    }
    if editor.file_len != size + LEN {
        file.write_at(size, &editor.footer.encode()).await?;
        file.flush().await?;
        file.set_len(size + LEN).await?;
        file.flush().await?;
    }
    Ok(())
}

/// Makes the part of the last block zeros that the disk did not have.
async fn zero_rest_of_last(editor: &Editor) -> Result<()> {
    let Some(blocks) = editor.blocks() else { return Ok(()) };
    let block_size = u64::from(blocks.header.block_size);
    let used = editor.footer.size % block_size;
    if let Some(entry) = blocks.table.last().filter(|entry| **entry != ABSENT && used != 0) {
        let base = u64::from(*entry) * SECTOR + blocks.header.bitmap_len();
        zero_range(&**editor.file(), base + used..base + block_size).await?;
    }
    Ok(())
}

/// Makes blocks of zeros, durably; returns each with its entry.
async fn add_zeros(editor: &mut Editor, which: &[usize]) -> Result<Vec<(usize, u32)>> {
    let Some(blocks) = editor.blocks().filter(|_| !which.is_empty()) else { return Ok(Vec::new()) };
    let bitmap = blocks.header.full_bitmap();
    let len = bitmap.len() as u64 + u64::from(blocks.header.block_size);
    // All of the file behind the footer that stands here is made by this; the footer itself is under
    // the first bitmap.
    let start = editor.extend(which.len() as u64 * len).await?;
    let mut made = Vec::with_capacity(which.len());
    for (at, block) in (start..).step_by(len as usize).zip(which) {
        editor.file().write_at(at, &bitmap).await?;
        // `extend` has seen that the sector has 32 bits.
        made.push((*block, (at / SECTOR) as u32));
    }
    editor.file().flush().await?;
    Ok(made)
}

/// Sees that the table has room for the blocks of a disk of `size` bytes, none of which is there but
/// for `zeros`.
async fn grow_table(editor: &mut Editor, size: u64, zeros: &[(usize, u32)]) -> Result<()> {
    let Some(blocks) = editor.blocks_mut() else { return Ok(()) };
    let wanted = size.div_ceil(u64::from(blocks.header.block_size));
    let had = blocks.table.len();
    // At most 4 Mi: 2040 GiB in blocks of 512 KiB; smaller blocks of others at most 512 Mi.
    if wanted * 4 > 64 << 20 {
        return Err(Error::InvalidOptions(format!(
            "a disk of {size} bytes has more blocks than a table of 64 MiB"
        )));
    }
    let (offset, entries) = (blocks.header.table_offset, u64::from(blocks.header.entries));
    blocks.table.resize(wanted as usize, ABSENT);
    for (block, entry) in zeros {
        if let Some(place) = blocks.table.get_mut(*block) {
            *place = *entry;
        }
    }
    if wanted <= entries {
        return editor.write_table(had..wanted as usize).await;
    }
    let to = editor.extend(wanted * 4).await?;
    if let Some(blocks) = editor.blocks_mut() {
        blocks.header.table_offset = to;
    }
    let written = editor.write_table(0..wanted as usize).await;
    if let Some(blocks) = editor.blocks_mut() {
        blocks.header.table_offset = offset;
    }
    written?;
    editor.set_table(to, wanted as u32).await
}

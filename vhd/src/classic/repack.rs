//! Giving up blocks, and moving others from the end of the file into the gaps.
//!
//! A block is copied into a gap, which nothing names, and made durable; then its table entry, which
//! is part of one sector, names the copy.

use std::{collections::VecDeque, ops::Range, sync::Arc};

use block_io::File;

use super::{SECTOR, edit::Editor, load::ABSENT};
use crate::{Error, Result};

/// Blocks moved by one pair of flushes.
const BATCH: usize = 64;
/// Bytes copied at once.
const STEP: u64 = 1 << 20;

/// Gives up `dropped`, blocks that read the same without what the image has of them, and makes the
/// file as short as moving whole blocks can. Returns its length.
pub(crate) async fn repack(
    file: Arc<dyn File>,
    dropped: &[u32],
    mut progress: impl FnMut(u64, u64),
) -> Result<u64> {
    let mut editor = Editor::open(file).await?;
    for block in dropped {
        if let Some(blocks) = editor.blocks_mut()
            && let Some(entry) = blocks.table.get_mut(*block as usize)
        {
            *entry = ABSENT;
        }
    }
    // Neighbours in one write.
    let mut rest = dropped;
    while let Some(first) = rest.first() {
        let run = rest.iter().zip(*first..).take_while(|(a, b)| **a == *b).count();
        editor.write_table(*first as usize..*first as usize + run).await?;
        rest = &rest[run..];
    }
    editor.move_header_down().await?;
    move_table_down(&mut editor).await?;
    let mut done = 0;
    loop {
        let Some(blocks) = editor.blocks() else {
            return Err(Error::InvalidOptions("a fixed image has no holes".into()));
        };
        let len = blocks.header.bitmap_len() + u64::from(blocks.header.block_size);
        let mut gaps = gaps(&editor.used(), len);
        let mut highest: Vec<(u64, usize)> = blocks
            .table
            .iter()
            .enumerate()
            .filter(|(_, entry)| **entry != ABSENT)
            .map(|(block, entry)| (u64::from(*entry) * SECTOR, block))
            .collect();
        highest.sort_unstable_by(|a, b| b.cmp(a));
        let mut moves = Vec::new();
        for (from, block) in highest.into_iter().take(BATCH) {
            match gaps.pop_front() {
                Some(to) if to < from => moves.push((from, to, block)),
                _ => break,
            }
        }
        if moves.is_empty() {
            return editor.finish().await;
        }
        for (from, to, _) in &moves {
            copy(&**editor.file(), *from..*from + len, *to).await?;
            done += len;
        }
        editor.file().flush().await?;
        let left = gaps.len() as u64 * len;
        progress(done, done + left);
        for (_, to, block) in moves {
            if let Some(blocks) = editor.blocks_mut() {
                // The gap is before the block, whose sector has 32 bits.
                blocks.table[block] = (to / SECTOR) as u32;
            }
            editor.write_table(block..block + 1).await?;
        }
    }
}

/// Places of `len` bytes between what is used, ascending.
fn gaps(used: &[Range<u64>], len: u64) -> VecDeque<u64> {
    let mut found = VecDeque::new();
    let mut at = 0;
    for range in used {
        while at + len <= range.start && found.len() < BATCH {
            found.push_back(at);
            at += len;
        }
        at = at.max(range.end.next_multiple_of(SECTOR));
    }
    found
}

/// Moves the table into a gap before it.
async fn move_table_down(editor: &mut Editor) -> Result<()> {
    let Some(blocks) = editor.blocks() else { return Ok(()) };
    let (from, entries) = (blocks.header.table_offset, blocks.header.entries);
    let len = (u64::from(entries) * 4).next_multiple_of(SECTOR);
    match editor.gap(len) {
        Some(to) if to < from => {
            copy(&**editor.file(), from..from + len, to).await?;
            editor.file().flush().await?;
            editor.set_table(to, entries).await
        }
        _ => Ok(()),
    }
}

/// Copies a range of the file to another place. It is all there, but for the part of the last block
/// that the file may lack.
async fn copy(file: &dyn File, from: Range<u64>, to: u64) -> Result<()> {
    let mut buf = vec![0; STEP.min(from.end - from.start) as usize];
    let mut at = from.start;
    while at < from.end {
        let n = (from.end - at).min(buf.len() as u64) as usize;
        block_io::read_exact_at(file, at, &mut buf[..n]).await?;
        file.write_at(to + (at - from.start), &buf[..n]).await?;
        at += n as u64;
    }
    Ok(())
}

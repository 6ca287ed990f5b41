//! Moving blocks from the end of the file into its holes.
//!
//! A block is copied into a hole, which nothing names; one commit then names the copies instead of
//! the originals, whose space becomes holes. Each block is in one of two places with the same bytes
//! at any time.

use std::{cmp::Reverse, collections::BinaryHeap, ops::Range, sync::Arc};

use block_io::File;

use super::{
    MIB,
    bat::{ENTRY_SIZE, RawEntry},
    edit::{Editor, copy_range},
    region::BAT_REGION,
    scan::scan,
    space::SpaceMap,
    zero_range,
};
use crate::Result;

/// Blocks looked at in one pass over the table.
const PASS: usize = 1 << 17;
/// Bytes moved by one commit at most.
const BATCH: u64 = 256 * MIB;

/// A block that may move: where it is, its table entry.
type Candidate = (Range<u64>, u64, RawEntry);

/// Makes the file as short as moving whole blocks can. Returns its length.
pub(crate) async fn repack(file: Arc<dyn File>, mut progress: impl FnMut(u64, u64)) -> Result<u64> {
    let mut editor = Editor::open(file).await?;
    let mut space = editor.space().await?;
    move_table_down(&mut editor, &mut space).await?;
    let (mut done, mut total) = (0, None);
    loop {
        // A file without holes ends there.
        let target = space.taken();
        let (idle, candidates) = survey(&editor, target).await?;
        let to_move: u64 = candidates.iter().map(|(range, ..)| range.end - range.start).sum();
        let total = *total.get_or_insert(to_move);
        let mut batch = Batch::default();
        let mut moved = false;
        for (index, entry, range) in idle {
            // A place that is kept for a block without data.
            editor.stage_entry(index, RawEntry(entry.0 & 7)).await?;
            batch.add(&mut editor, &mut space, range).await?;
            moved = true;
        }
        for (from, index, entry) in candidates {
            let len = from.end - from.start;
            let Some(to) = space.claim_free(len, from.start) else { continue };
            zero_range(&**editor.file(), to..to + len).await?;
            copy_range(&**editor.file(), from.clone(), to).await?;
            let entry = RawEntry(entry.0 & 0xf_ffff | (to / MIB) << 20);
            editor.stage_entry(index, entry).await?;
            batch.add(&mut editor, &mut space, from).await?;
            done += len;
            moved = true;
            progress(done, total.max(done));
        }
        batch.end(&mut editor, &mut space).await?;
        if !moved {
            return editor.finish().await;
        }
    }
}

/// Space that a commit will free.
#[derive(Default)]
struct Batch {
    freed: Vec<Range<u64>>,
    bytes: u64,
}

impl Batch {
    async fn add(
        &mut self,
        editor: &mut Editor,
        space: &mut SpaceMap,
        range: Range<u64>,
    ) -> Result<()> {
        self.bytes += range.end - range.start;
        self.freed.push(range);
        if editor.room() < 1 || self.bytes >= BATCH {
            self.end(editor, space).await
        } else {
            Ok(())
        }
    }

    async fn end(&mut self, editor: &mut Editor, space: &mut SpaceMap) -> Result<()> {
        editor.commit(space).await?;
        self.freed.drain(..).for_each(|range| space.release(range));
        self.bytes = 0;
        Ok(())
    }
}

/// Moves the table into a hole before it, and gives up what it has and does not need.
async fn move_table_down(editor: &mut Editor, space: &mut SpaceMap) -> Result<()> {
    let (bat, entries) = (editor.image.bat, editor.layout().entries);
    let length = (entries * ENTRY_SIZE).next_multiple_of(MIB);
    if let Some(to) = space.claim_free(length, bat.offset) {
        zero_range(&**editor.file(), to..to + length).await?;
        editor.move_table_to(to, length, entries).await?;
        editor.commit(space).await?;
        // The entries in the new place are read from the file from here on.
        space.release(bat.offset..bat.end());
    } else if length < u64::from(bat.length) {
        let mut regions = editor.image.regions.clone();
        for region in regions.regions.iter_mut().filter(|region| region.id == BAT_REGION) {
            region.length = length as u32;
            editor.image.bat = *region;
        }
        editor.stage_regions(&regions).await?;
        editor.commit(space).await?;
        editor.image.regions = regions;
        space.release(bat.offset + length..bat.end());
    }
    Ok(())
}

type Idle = Vec<(u64, RawEntry, Range<u64>)>;

/// Walks the table: entries that keep space they do not use, and the highest blocks that reach past
/// `target`, highest first.
async fn survey(editor: &Editor, target: u64) -> Result<(Idle, Vec<Candidate>)> {
    let layout = editor.layout();
    let mut idle = Vec::new();
    let mut highest: BinaryHeap<Reverse<(u64, u64, u64, u64)>> = BinaryHeap::new();
    let seen = |index: u64, entry: RawEntry| {
        let Some(range) = layout.claim(index, entry) else { return };
        if layout.block(index).is_some() && !entry.is_stored() {
            if idle.len() < PASS {
                idle.push((index, entry, range));
            }
        } else if range.end > target {
            highest.push(Reverse((range.start, range.end, index, entry.0)));
            if highest.len() > PASS {
                highest.pop();
            }
        }
    };
    scan(&editor.image, |damage| Err(damage.into()), seen, |_, _| {}).await?;
    let mut candidates: Vec<Candidate> = highest
        .into_iter()
        .map(|Reverse((start, end, index, raw))| (start..end, index, RawEntry(raw)))
        .collect();
    candidates.sort_unstable_by_key(|(range, ..)| Reverse(range.start));
    Ok((idle, candidates))
}

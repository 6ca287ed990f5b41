//! Mending what a check finds.
//!
//! ```text
//!  doubled structure, one copy bad    written again from the good one
//!  log without a valid entry          given up; the tables stand as they are
//!  file cut short of a structure      made longer, with zeros
//!  entry that points into another     its bytes, as they read, get a place of their own
//!  entry that points past the end     the block has no data any more: it was lost
//! ```
//!
//! Nothing that reads now reads otherwise after it.

use std::sync::Arc;

use block_io::File;

use super::{
    MAX_FILE, REGION_TABLE_OFFSETS,
    bat::{BatLayout, BlockState, ENTRY_SIZE, RawEntry},
    commit::Headers,
    edit::{Editor, copy_range},
    header,
    load::{headers, load, read_up_to, region_tables},
    space::SpaceMap,
};
use crate::{
    Damage, Error, Fault, Guid, Result, Structure,
    ops::{Action, Repair},
};

/// Bytes of the table read at once.
const STEP: u64 = 1 << 20;
/// Wrong entries mended in one walk over the table.
const AT_ONCE: usize = 1 << 14;
/// A file is made longer by this much at most: the largest table.
const MAX_EXTENSION: u64 = 1 << 30;

/// Mends what can be mended; says in `done` what was done.
pub(crate) async fn mend(file: Arc<dyn File>, done: &mut Vec<Repair>) -> Result<()> {
    doubled_headers(&file, done).await?;
    while let Some(repair) = make_loadable(&file).await? {
        done.push(repair);
    }
    let mut editor = Editor::open(file.clone()).await?;
    editor.begin(None).await?;
    doubled_regions(&mut editor, done).await?;
    while mend_entries(&mut editor, done).await? {}
    editor.finish().await.map(drop)
}

/// Writes a header again whose other copy is valid.
async fn doubled_headers(file: &Arc<dyn File>, done: &mut Vec<Repair>) -> Result<()> {
    let [first, second] = headers(&**file).await?;
    let current = header::current(&first, &second)?;
    for damage in [first.err(), second.err()].into_iter().flatten() {
        Headers::new(current).lock().await.update(&**file, |_| {}).await?;
        done.push(Repair { damage, action: Action::Rewritten });
    }
    Ok(())
}

/// Mends one thing that keeps the structures from being read, if there is such a thing and it can
/// be mended.
async fn make_loadable(file: &Arc<dyn File>) -> Result<Option<Repair>> {
    let damage = match load(file.clone()).await {
        Ok(_) => return Ok(None),
        Err(Error::Damaged(damage)) => damage,
        Err(error) => return Err(error),
    };
    let [first, second] = headers(&**file).await?;
    let (index, current) = header::current(&first, &second)?;
    let len = file.len().await?;
    let wanted = match (&damage.structure, &damage.fault) {
        (Structure::Log, Fault::NoLogSequence) => {
            let headers = Headers::new((index, current));
            headers.lock().await.update(&**file, |h| h.log = Guid::ZERO).await?;
            return Ok(Some(Repair { damage, action: Action::LogGivenUp }));
        }
        (Structure::Log, Fault::Truncated) => {
            current.log_offset.saturating_add(u64::from(current.log_length))
        }
        (Structure::Log, Fault::Field { field: "FlushedFileOffset", value, .. }) => *value,
        // The entries' own extent is not known here; a region is at most 4 GiB.
        (Structure::Bat, Fault::Truncated) => match region_tables(&**file).await? {
            [Ok(table), _] | [_, Ok(table)] => match table.find(super::region::BAT_REGION) {
                Some(region) => region.end(),
                None => return Err(damage.into()),
            },
            _ => return Err(damage.into()),
        },
        _ => return Err(damage.into()),
    };
    if wanted <= len || wanted - len > MAX_EXTENSION {
        return Err(damage.into());
    }
    file.set_len(wanted).await?;
    file.flush().await?;
    Ok(Some(Repair { damage, action: Action::Extended }))
}

/// Writes both region tables as the one that is valid.
async fn doubled_regions(editor: &mut Editor, done: &mut Vec<Repair>) -> Result<()> {
    let damage = match region_tables(&**editor.file()).await? {
        [Ok(first), Ok(second)] if first == second => return Ok(()),
        [Ok(_), Ok(_)] => {
            let fault = Fault::NoValidCopy("the two copies differ".into());
            Damage::new(Structure::RegionTable(2), REGION_TABLE_OFFSETS[1], fault)
        }
        [Err(damage), _] | [_, Err(damage)] => damage,
    };
    let regions = editor.image.regions.clone();
    editor.stage_regions(&regions).await?;
    let space = SpaceMap::default();
    editor.commit(&space).await?;
    done.push(Repair { damage, action: Action::Rewritten });
    Ok(())
}

/// A wrong entry.
struct Wrong {
    index: u64,
    entry: RawEntry,
    damage: Damage,
    /// It is right by itself, but points to what another has.
    overlaps: bool,
}

/// Mends the wrong entries that one walk finds; returns whether there may be more.
async fn mend_entries(editor: &mut Editor, done: &mut Vec<Repair>) -> Result<bool> {
    let (mut space, wrong) = walk(editor).await?;
    let more = wrong.len() == AT_ONCE;
    for wrong in wrong {
        if editor.room() == 0 {
            editor.commit(&space).await?;
        }
        let (entry, action) = mended(editor, &mut space, &wrong).await?;
        editor.stage_entry(wrong.index, entry).await?;
        done.push(Repair { damage: wrong.damage, action });
    }
    editor.commit(&space).await?;
    Ok(more)
}

/// What a wrong entry becomes. What it comes to own is claimed.
async fn mended(
    editor: &mut Editor,
    space: &mut SpaceMap,
    wrong: &Wrong,
) -> Result<(RawEntry, Action)> {
    let layout = editor.layout();
    let (index, base) = (wrong.index, editor.image.bat.offset);
    let lost = || {
        let payload = layout.block(index).is_some_and(|block| block < layout.blocks);
        let state = if payload { BlockState::Undefined } else { BlockState::NotPresent };
        (RawEntry::new(state, 0), Action::Emptied)
    };
    if wrong.overlaps {
        return match layout.claim(index, wrong.entry) {
            Some(range) if wrong.entry.is_stored() || layout.block(index).is_none() => {
                let to = editor.take_space(space, range.end - range.start).await?;
                copy_range(&**editor.file(), range, to).await?;
                let bits = BlockState::from_bits(wrong.entry.state_bits());
                Ok((RawEntry::new(bits.unwrap_or(BlockState::FullyPresent), to), Action::Copied))
            }
            // A place that was kept for a block without data.
            _ => Ok((RawEntry(u64::from(wrong.entry.state_bits())), Action::Corrected)),
        };
    }
    if is_past_the_disk(&layout, index) || layout.block(index).is_none() && !layout.has_parent {
        return Ok((RawEntry::default(), Action::Corrected));
    }
    // Bits that must be zero; a state that there is not, or not here.
    let cleared = RawEntry(wrong.entry.0 & !(0x1_ffff << 3));
    let known = match BlockState::from_bits(cleared.state_bits()) {
        Some(BlockState::PartiallyPresent) => layout.has_parent && layout.block(index).is_some(),
        Some(state) => layout.block(index).is_some() || state == BlockState::FullyPresent,
        None => false,
    };
    let entry =
        if known { cleared } else { RawEntry::new(BlockState::FullyPresent, cleared.offset()) };
    let mut action = Action::Corrected;
    if let Some(range) = layout.claim(index, entry) {
        let len = editor.image.file_len;
        let used = layout.block(index).map_or(range.end - range.start, |block| layout.used(block));
        let end = range.start.saturating_add(used);
        if range.start < len && end > len && end <= MAX_FILE {
            // The part of it that was cut off is lost, the rest is not.
            editor.file().set_len(end).await?;
            editor.image.file_len = end;
            action = Action::Extended;
        }
    }
    if layout.check_entry(index, entry, base, editor.image.file_len).is_err() {
        return Ok(lost());
    }
    match layout.claim(index, entry) {
        Some(range) if !space.claim(range.clone()) => {
            if !entry.is_stored() {
                return Ok((RawEntry(u64::from(entry.state_bits())), Action::Corrected));
            }
            let to = editor.take_space(space, range.end - range.start).await?;
            copy_range(&**editor.file(), range, to).await?;
            Ok((RawEntry(entry.0 & 7 | to), Action::Copied))
        }
        _ => Ok((entry, action)),
    }
}

fn is_past_the_disk(layout: &BatLayout, index: u64) -> bool {
    layout.block(index).is_some_and(|block| block >= layout.blocks)
}

/// Claims what the right entries own; collects the wrong ones.
async fn walk(editor: &Editor) -> Result<(SpaceMap, Vec<Wrong>)> {
    let image = &editor.image;
    let (layout, base) = (image.layout, image.bat.offset);
    let mut space = SpaceMap::default();
    for (_, place) in image.fixed_places() {
        let end = place.end.min(image.file_len);
        if place.start < end {
            // Regions were checked against each other when they were loaded.
            let _ = space.claim(place.start..end);
        }
    }
    let mut wrong = Vec::new();
    let mut first = 0;
    while first < layout.entries {
        let at = base + first * ENTRY_SIZE;
        let len = ((layout.entries - first) * ENTRY_SIZE).min(STEP);
        let bytes = read_up_to(&**editor.file(), at, len as usize).await?;
        if (bytes.len() as u64) < len {
            return Err(Damage::new(Structure::Bat, at, Fault::Truncated).into());
        }
        for (i, raw) in bytes.as_chunks::<8>().0.iter().enumerate() {
            let entry = RawEntry(u64::from_le_bytes(*raw));
            let index = first + i as u64;
            let (overlaps, damage) = match layout.check_entry(index, entry, base, image.file_len) {
                Err(damage) => (false, damage),
                Ok(()) => match layout.claim(index, entry) {
                    Some(range) if !space.claim(range.clone()) => {
                        let (start, len) = (range.start, range.end - range.start);
                        let other = "another block or structure".to_owned();
                        let fault = Fault::Overlap { start, len, other };
                        let at = base + index * ENTRY_SIZE;
                        (true, Damage::new(Structure::Bat, at, fault))
                    }
                    _ => continue,
                },
            };
            if wrong.len() < AT_ONCE {
                wrong.push(Wrong { index, entry, damage, overlaps });
            }
        }
        first += len / ENTRY_SIZE;
    }
    Ok((space, wrong))
}

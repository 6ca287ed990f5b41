//! Walking the whole block table once, for opening and checking.

use super::{
    bat::{Content, ENTRY_SIZE, PAGE_SIZE, RawEntry},
    load::{Loaded, read_up_to},
    space::SpaceMap,
};
use crate::{Damage, Fault, Result, Structure};

/// Bytes of the table read at once.
const STEP: u64 = 1 << 20;

/// Walks the table of an image: checks every entry by itself and against all
/// others, and collects the space they own.
///
/// `found` hears of each wrong entry and whether it stops there; `page` sees each 4 KiB page.
pub(super) async fn scan(
    image: &Loaded,
    mut found: impl FnMut(Damage) -> Result<()>,
    mut entry_seen: impl FnMut(u64, RawEntry),
    mut page: impl FnMut(usize, &[u8]),
) -> Result<SpaceMap> {
    let mut space = SpaceMap::default();
    for (name, place) in image.fixed_places() {
        // They were checked against each other when they were loaded, and end within the
        // file or within 4 GiB of a 64-bit offset; what lies past the file needs no map.
        let end = place.end.min(image.file_len);
        if place.start < end && !space.claim(place.start..end) {
            let (start, len) = (place.start, end - place.start);
            let fault = Fault::Overlap { start, len, other: name };
            found(Damage::new(Structure::File, start, fault))?;
        }
    }
    let layout = &image.layout;
    let mut file_len = image.file_len;
    // Most of the table of a large image that is nearly empty is a hole: blocks that are nowhere.
    let table = image.bat.offset..image.bat.offset + layout.entries * ENTRY_SIZE;
    let mut written = image.view.allocated_ranges(table).await?.into_iter().peekable();
    let mut partly = Partly::default();
    let mut first = 0;
    while first < layout.entries {
        let at = image.bat.offset + first * ENTRY_SIZE;
        let pages = (layout.entries - first).div_ceil(PAGE_SIZE / ENTRY_SIZE);
        // The region is whole megabytes, so whole pages are there unless the file is cut.
        let len = (pages * PAGE_SIZE).min(STEP);
        while written.next_if(|range| range.end <= at).is_some() {}
        if written.peek().is_none_or(|range| range.start >= at + len) {
            first += len / ENTRY_SIZE;
            continue;
        }
        let bytes = read_up_to(&*image.view, at, len as usize).await?;
        let wanted = ((layout.entries - first) * ENTRY_SIZE).min(len) as usize;
        if bytes.len() < wanted {
            return Err(Damage::new(Structure::Bat, at, Fault::Truncated).into());
        }
        for (i, chunk) in bytes.chunks(PAGE_SIZE as usize).enumerate() {
            page((first * ENTRY_SIZE / PAGE_SIZE) as usize + i, chunk);
        }
        for (i, raw) in bytes[..wanted].as_chunks::<8>().0.iter().enumerate() {
            let entry = RawEntry(u64::from_le_bytes(*raw));
            let index = first + i as u64;
            entry_seen(index, entry);
            if entry.0 == 0 {
                continue;
            }
            if layout.has_parent {
                partly.see(image, index, entry, &mut found)?;
            }
            let mut checked = layout.check_entry(index, entry, image.bat.offset, file_len);
            if let Err(Damage { fault: Fault::EntryOffset { .. }, .. }) = checked {
                // A reader may find blocks that were made since the file was measured.
                file_len = image.view.len().await?;
                checked = layout.check_entry(index, entry, image.bat.offset, file_len);
            }
            if let Err(damage) = checked {
                found(damage)?;
                continue;
            }
            if let Some(range) = layout.claim(index, entry)
                && !space.claim(range.clone())
            {
                let (start, len) = (range.start, range.end - range.start);
                let other = "another block or structure".to_owned();
                let fault = Fault::Overlap { start, len, other };
                let at = image.bat.offset + index * ENTRY_SIZE;
                found(Damage::new(Structure::Bat, at, fault))?;
            }
        }
        first += wanted as u64 / ENTRY_SIZE;
    }
    partly.end(image, &mut found)?;
    Ok(space)
}

/// The partly present blocks of the chunk that is being walked, whose sector bitmap stands behind them.
#[derive(Default)]
struct Partly {
    chunk: u64,
    /// At most 32768: the blocks of a chunk.
    entries: Vec<u64>,
}

impl Partly {
    fn see(
        &mut self,
        image: &Loaded,
        index: u64,
        entry: RawEntry,
        found: &mut impl FnMut(Damage) -> Result<()>,
    ) -> Result<()> {
        let chunk = index / (image.layout.chunk_ratio + 1);
        if chunk != self.chunk {
            self.end(image, found)?;
            self.chunk = chunk;
        }
        match entry.content() {
            Content::Partly(_) if image.layout.block(index).is_some() => self.entries.push(index),
            // The bitmap of them all.
            Content::Here(_) if image.layout.block(index).is_none() => self.entries.clear(),
            _ => {}
        }
        Ok(())
    }

    /// Those that are left have no bitmap.
    fn end(&mut self, image: &Loaded, found: &mut impl FnMut(Damage) -> Result<()>) -> Result<()> {
        for index in self.entries.drain(..) {
            let at = image.bat.offset + index * ENTRY_SIZE;
            found(Damage::new(Structure::Bat, at, Fault::NoBitmap { index }))?;
        }
        Ok(())
    }
}

/// What is taken of the file, for those who use or give up the rest and cannot go on with a contradiction
/// in the table. A block whose bitmap is missing contradicts nothing else: reading it fails, and the
/// rest of the image is usable; but a bitmap that nothing names any more may be in what looks unused, so
/// all of the file is taken then.
pub(super) async fn taken(image: &Loaded, page: impl FnMut(usize, &[u8])) -> Result<SpaceMap> {
    let mut searched_for = false;
    let found = |damage: Damage| match damage.fault {
        Fault::NoBitmap { .. } => {
            searched_for = true;
            Ok(())
        }
        _ => Err(damage.into()),
    };
    let mut space = scan(image, found, |_, _| {}, page).await?;
    if searched_for {
        space.take_all(image.file_len);
    }
    Ok(space)
}

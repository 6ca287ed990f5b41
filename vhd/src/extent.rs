//! What of a disk an image has itself.

use std::ops::Range;

/// Where a part of a disk is, as one image sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Place {
    /// In this image, at this byte of its file.
    File(u64),
    /// In this image, which says that it is zeros.
    Zero,
    /// Not in this image: in its parent, zeros without one.
    Below,
}

/// A part of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extent {
    /// Its bytes on the disk.
    pub range: Range<u64>,
    /// Whether the bytes are stored, and in which file and where.
    pub place: Place,
}

/// Appends a part, merged with the last if they are neighbours on the disk and in the file.
pub(crate) fn push(extents: &mut Vec<Extent>, range: Range<u64>, place: Place) {
    if range.is_empty() {
        return;
    }
    if let Some(last) = extents.last_mut()
        && last.range.end == range.start
    {
        let follows = match (last.place, place) {
            (Place::File(a), Place::File(b)) => a + (last.range.end - last.range.start) == b,
            (a, b) => a == b,
        };
        if follows {
            last.range.end = range.end;
            return;
        }
    }
    extents.push(Extent { range, place });
}

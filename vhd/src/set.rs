//! VHD sets: a small file ending in `.vhds` that hosts open, and beside it the VHDX images that hold
//! the disk, ending in `.avhdx`.
//!
//! ```text
//!  disk.vhds                      no public description: it is known by its name only
//!  disk_<GUID>.avhdx  ◄─┐ parent  state of a snapshot
//!  disk_<GUID>.avhdx  ◄─┤         state of a later one
//!  disk_<GUID>.avhdx  ──┘         what is written now
//! ```
//!
//! MS-RSVD 2.2.4.20 and 2.2.4.21 say what a server tells of a set's snapshots, not how they are stored.
//! So the list is made of the images themselves: who is whose parent (MS-VHDX 2.6.2.6.3).

use crate::{Error, Guid, Result, chain::MAX_DEPTH, vhdx::Identity};

/// What the names of sets and of their images end in.
pub const ENDING: &str = ".vhds";
/// What the names of the images of a set end in.
pub const IMAGE_ENDING: &str = ".avhdx";

/// Whether a location is that of a set.
pub fn is_set(location: &str) -> bool {
    location.to_ascii_lowercase().ends_with(ENDING)
}

/// Whether a file's name is that of an image of the set with this name: the same with something
/// after an underscore, or nothing.
pub fn is_image_of(set: &str, name: &str) -> bool {
    let (set, name) = (set.to_lowercase(), name.to_lowercase());
    let (Some(stem), Some(image)) = (set.strip_suffix(ENDING), name.strip_suffix(IMAGE_ENDING))
    else {
        return false;
    };
    image.strip_prefix(stem).is_some_and(|rest| rest.is_empty() || rest.starts_with('_'))
}

/// One image of a set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Its file's name.
    pub name: String,
    /// The identity of its content.
    pub content: Guid,
    /// Where its parent is in the list; `None` for the first, or if that is not there.
    pub parent: Option<usize>,
    /// Something builds on it: it is the state of a snapshot and is not written any more.
    pub snapshot: bool,
    /// It needs a parent that is not there.
    pub orphan: bool,
}

/// Puts the images of a set in order, every parent before its children.
///
/// # Errors
/// [`Error::EndlessChain`] for images that build on themselves.
pub fn order(images: Vec<(String, Identity)>) -> Result<Vec<Image>> {
    let parent_of = |identity: &Identity| {
        let linkages = identity.parent.as_ref()?.linkages();
        images.iter().position(|(_, other)| linkages.contains(&other.data_write_id))
    };
    let parents: Vec<Option<usize>> = images.iter().map(|(_, id)| parent_of(id)).collect();
    let depth = |mut at: usize| {
        let mut depth = 0;
        while let Some(parent) = parents[at] {
            (at, depth) = (parent, depth + 1);
            if depth > images.len().min(MAX_DEPTH) {
                return Err(Error::EndlessChain { at: images[at].0.clone() });
            }
        }
        Ok(depth)
    };
    let mut order = Vec::with_capacity(images.len());
    for (at, (name, _)) in images.iter().enumerate() {
        order.push((depth(at)?, name, at));
    }
    order.sort_unstable();
    let place = |at: usize| order.iter().position(|(_, _, other)| *other == at);
    let found = order.iter().map(|(_, name, at)| Image {
        name: (*name).clone(),
        content: images[*at].1.data_write_id,
        parent: parents[*at].and_then(place),
        snapshot: parents.contains(&Some(*at)),
        orphan: images[*at].1.parent.is_some() && parents[*at].is_none(),
    });
    Ok(found.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vhdx::locator::ParentLocator;

    fn identity(content: u32, parent: Option<u32>) -> Identity {
        let guid = |n| Guid::from_fields(n, 1, 2, 3);
        let parent = parent.map(|n| ParentLocator::vhdx(guid(n), "x.avhdx"));
        Identity { disk_id: guid(99), data_write_id: guid(content), parent }
    }

    #[test]
    fn names() {
        assert!(is_set("/vm/Disk.VHDS") && !is_set("/vm/disk.vhdx"));
        for name in ["disk.avhdx", "Disk_1234.AVHDX"] {
            assert!(is_image_of("disk.vhds", name), "{name}");
        }
        for name in ["disk2.avhdx", "disk_1.vhdx", "other.avhdx"] {
            assert!(!is_image_of("disk.vhds", name), "{name}");
        }
    }

    #[test]
    fn parents_come_first_and_snapshots_are_what_is_built_on() {
        let image = |name: &str, content, parent| (name.to_owned(), identity(content, parent));
        let found = order(vec![
            image("now", 4, Some(3)),
            image("tried", 5, Some(2)),
            image("base", 1, None),
            image("second", 3, Some(2)),
            image("first", 2, Some(1)),
            image("lost", 6, Some(77)),
        ])
        .unwrap();
        let told: Vec<_> = found
            .iter()
            .map(|i| {
                (i.name.as_str(), i.parent.map(|p| found[p].name.as_str()), i.snapshot, i.orphan)
            })
            .collect();
        assert_eq!(
            told,
            [
                ("base", None, true, false),
                ("lost", None, false, true),
                ("first", Some("base"), true, false),
                ("second", Some("first"), true, false),
                ("tried", Some("first"), false, false),
                ("now", Some("second"), false, false),
            ]
        );
        let around = order(vec![image("a", 1, Some(2)), image("b", 2, Some(1))]);
        assert!(matches!(around, Err(Error::EndlessChain { .. })));
    }
}

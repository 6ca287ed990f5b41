//! The names by which a file is open, and which of them are to go (MS-FSA 2.1.1.5, 2.1.5.5).
//!
//! A file may have several names. Deleting is said of a name: it goes when the last open that came
//! by it is closed, and the others stay.

use crate::fs::path::RelPath;

/// Names one of [`Links`].
pub type LinkId = u32;

/// The names by which one file is open.
#[derive(Debug, Default)]
pub struct Links {
    links: Vec<Link>,
    next: LinkId,
}

/// A name by which a file is open.
#[derive(Debug, Clone)]
pub struct Link {
    id: LinkId,
    users: usize,
    /// From the root of the system.
    pub path: RelPath,
    /// It goes when the last of its users leaves.
    pub delete_pending: bool,
    /// The key of the lease on the folder of whoever said so last.
    pub deleter: Option<[u8; 16]>,
    /// It is gone already, while some still use it.
    pub gone: bool,
}

impl Link {
    /// Whether it is to be deleted when one more user leaves.
    pub fn goes_with_the_next(&self) -> bool {
        self.users == 1 && self.delete_pending && !self.gone
    }
}

impl Links {
    /// The name that an open by `path` uses. A file that has but one name is open by that, even
    /// where it was reached another way.
    fn at(&self, path: &RelPath, only: bool) -> Option<usize> {
        let same = |link: &Link| !link.gone && link.path == *path;
        let one = || only.then(|| self.links.iter().position(|link| !link.gone)).flatten();
        self.links.iter().position(same).or_else(one)
    }

    /// Whether the name that an open by `path` would use is to go.
    pub fn is_going(&self, path: &RelPath, only: bool) -> bool {
        self.at(path, only).is_some_and(|at| self.links[at].delete_pending)
    }

    /// Adds a user of a name; `only` says that the file has no other.
    pub fn enter(&mut self, path: &RelPath, only: bool) -> LinkId {
        let at = self.at(path, only).unwrap_or_else(|| {
            let (id, path) = (self.next, path.clone());
            self.next = self.next.wrapping_add(1);
            let (delete_pending, gone, deleter) = (false, false, None);
            self.links.push(Link { id, users: 0, path, delete_pending, deleter, gone });
            self.links.len() - 1
        });
        self.links[at].users += 1;
        self.links[at].id
    }

    /// Takes a user away, and the name if that was its last.
    pub fn leave(&mut self, id: LinkId) {
        let Some(at) = self.links.iter().position(|link| link.id == id) else { return };
        self.links[at].users -= 1;
        if self.links[at].users == 0 {
            self.links.swap_remove(at);
        }
    }

    /// A name that is used.
    pub fn get(&self, id: LinkId) -> Option<&Link> {
        self.links.iter().find(|link| link.id == id)
    }

    /// A name that is used, to change.
    pub fn get_mut(&mut self, id: LinkId) -> Option<&mut Link> {
        self.links.iter_mut().find(|link| link.id == id)
    }

    /// All names that are used.
    pub fn iter(&self) -> impl Iterator<Item = &Link> {
        self.links.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_goes_with_its_own_last_user() {
        let (a, b) = (RelPath::root().child("a"), RelPath::root().child("b"));
        let mut links = Links::default();
        let (one, two, other) =
            (links.enter(&a, false), links.enter(&a, false), links.enter(&b, false));
        assert_eq!(one, two);
        links.get_mut(other).unwrap().delete_pending = true;
        assert!(links.is_going(&b, false) && !links.is_going(&a, false));
        let goes = |links: &Links, id| links.get(id).unwrap().goes_with_the_next();
        assert!(!goes(&links, one) && goes(&links, other));
        links.get_mut(one).unwrap().delete_pending = true;
        assert!(!goes(&links, one), "another uses it");
        links.leave(one);
        assert!(goes(&links, two));
        links.leave(other);
        assert!(links.get(other).is_none());
        // What is gone is no name any more, though it is used.
        links.get_mut(two).unwrap().gone = true;
        assert!(!goes(&links, two));
        let new = links.enter(&a, true);
        assert_ne!(new, two);
        links.leave(two);
        links.leave(new);
        assert_eq!(links.iter().count(), 0);
    }

    #[test]
    fn a_file_with_one_name_is_open_by_it_whatever_led_there() {
        let (real, symbolic) = (RelPath::root().child("f"), RelPath::root().child("link"));
        let mut links = Links::default();
        let id = links.enter(&real, true);
        assert_eq!(links.enter(&symbolic, true), id);
        links.get_mut(id).unwrap().delete_pending = true;
        assert!(links.is_going(&symbolic, true));
    }
}

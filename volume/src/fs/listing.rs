//! A directory listing under way: names as the file system gives them, one piece after the other,
//! so that a folder of any size is listed in the same memory.

use std::{
    ffi::{OsStr, OsString},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    sync::Arc,
    time::Instant,
};

use rustix::{
    fs::{Dir, FileType, Mode, OFlags},
    io::Errno,
};
use smb_protocol::{NtStatus, fscc::directory::Entry, msg::create::Access, security::Sid};

use crate::{
    budget::Held,
    fs::{
        attributes::{self, Facts},
        descriptor::{presentable, reopen},
        eas, nameless,
        pattern::Pattern,
        security,
        short::short_name,
        volume::Volume,
    },
    status::of_errno,
};

/// Rights that make a file readable: what `GENERIC_READ` is without waiting.
const READABLE: Access = Access(0x0002_0089);

/// A listing under way.
#[derive(Debug)]
pub struct Listing {
    dir: Dir,
    pattern: Pattern,
    /// Where the folder is.
    volume: Arc<Volume>,
    /// Show only what these may read.
    readable_by: Option<Arc<[Sid]>>,
    stage: Stage,
    /// The next entry, which did not fit the answer before.
    next: Option<Entry>,
    /// Whether anything was answered yet; an empty first answer is an error of its own.
    answered: bool,
    /// What it takes of its user's budget.
    _held: Held,
}

/// Memory of a listing: what the system gives at a time.
pub const HELD: usize = 40 << 10;

/// What is listed next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// A name without wildcards, as it stands.
    Plain,
    /// `.`.
    Itself,
    /// `..`.
    Above,
    /// What the folder holds.
    Names,
    /// Nothing.
    End,
}

/// What a step of a listing came to.
#[derive(Debug)]
pub enum Step<'a> {
    /// The next entry.
    Entry(&'a Entry),
    /// There is none.
    End,
    /// None was found yet; many names were looked at.
    Unknown,
}

impl Listing {
    /// Begins to list the folder of `volume` that `fd` names; with `readable_by` only what these may read.
    ///
    /// # Errors
    /// OBJECT_NAME_INVALID for a pattern that no name can meet; what the file system says.
    pub fn start(
        volume: &Arc<Volume>,
        fd: &OwnedFd,
        pattern: &str,
        readable_by: Option<Arc<[Sid]>>,
        held: Held,
    ) -> Result<Self, NtStatus> {
        let pattern = Pattern::new(pattern).ok_or(NtStatus::OBJECT_NAME_INVALID)?;
        let folder = reopen(fd, OFlags::RDONLY | OFlags::DIRECTORY).map_err(of_errno)?;
        let dir = Dir::new(folder).map_err(of_errno)?;
        let mut listing = Self {
            dir,
            pattern,
            volume: volume.clone(),
            readable_by,
            stage: Stage::End,
            next: None,
            answered: false,
            _held: held,
        };
        listing.rewind();
        Ok(listing)
    }

    /// Goes back to the first name.
    pub fn rewind(&mut self) {
        self.dir.rewind();
        self.next = None;
        self.stage = if self.pattern.is_plain() { Stage::Plain } else { Stage::Itself };
    }

    /// Begins anew with another pattern; that something was answered stays so.
    ///
    /// # Errors
    /// OBJECT_NAME_INVALID for a pattern that no name can meet; the listing is as it was.
    pub fn restart(&mut self, pattern: &str) -> Result<(), NtStatus> {
        self.pattern = Pattern::new(pattern).ok_or(NtStatus::OBJECT_NAME_INVALID)?;
        self.rewind();
        Ok(())
    }

    /// Whether nothing was answered from this listing yet; marks it answered.
    pub fn first_answer(&mut self) -> bool {
        !std::mem::replace(&mut self.answered, true)
    }

    /// The next entry that still exists, without moving on; looks at one name, and at others up
    /// to `until`.
    pub fn peek(&mut self, folder: &OwnedFd, until: Option<Instant>) -> Result<Step<'_>, Errno> {
        while self.next.is_none() && self.stage != Stage::End {
            self.next = self.look(folder)?;
            if self.next.is_none() && until.is_some_and(|until| Instant::now() >= until) {
                return Ok(Step::Unknown);
            }
        }
        Ok(self.next.as_ref().map_or(Step::End, Step::Entry))
    }

    /// Moves past the entry that was peeked at.
    pub fn advance(&mut self) {
        self.next = None;
    }

    /// Looks at one name; `None` if it is not to be listed.
    fn look(&mut self, folder: &OwnedFd) -> Result<Option<Entry>, Errno> {
        // Both are listed where "." is meant (MS-FSA 2.1.5.6.3).
        let dots = |pattern: &Pattern, name: &str| {
            // What lies above the share is nobody's business: ".." shows the folder's own facts.
            let itself = || open(folder.as_fd(), OsStr::new("."));
            pattern.matches(".").then(|| describe(itself()?.as_fd(), name)).flatten()
        };
        Ok(match self.stage {
            Stage::Plain => {
                // Most often the name is asked for as it is; else it may differ in case.
                let name = OsString::from(self.pattern.text());
                let found = self.describe(folder, &name);
                self.stage = if found.is_some() { Stage::End } else { Stage::Names };
                found
            }
            Stage::Itself => {
                self.stage = Stage::Above;
                dots(&self.pattern, ".")
            }
            Stage::Above => {
                self.stage = Stage::Names;
                dots(&self.pattern, "..")
            }
            Stage::Names => match self.dir.read() {
                None => {
                    self.stage = Stage::End;
                    None
                }
                Some(entry) => {
                    let entry = entry?;
                    let name = OsStr::from_bytes(entry.file_name().to_bytes());
                    match presentable(name) {
                        Some(text) if self.matches(text) => self.describe(folder, name),
                        _ => None,
                    }
                }
            },
            Stage::End => None,
        })
    }

    fn matches(&self, name: &str) -> bool {
        self.pattern.matches(name)
            || short_name(name).is_some_and(|short| self.pattern.matches(&short))
    }

    fn describe(&self, folder: &OwnedFd, name: &OsStr) -> Option<Entry> {
        let text = presentable(name)?;
        let mut fd = open(folder.as_fd(), name)?;
        let stat = rustix::fs::fstat(&fd).ok()?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink {
            // A link of the host is what it leads to; one that leads nowhere is not there.
            fd = self.volume.behind_link(folder.as_fd(), text).ok()?;
        }
        if let Some(sids) = &self.readable_by {
            let rights = security::access(fd.as_fd(), sids).unwrap_or(Access::NONE);
            if !rights.has(READABLE) {
                return None;
            }
        }
        describe(fd.as_fd(), text)
    }
}

fn open(folder: BorrowedFd<'_>, name: &OsStr) -> Option<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(folder, name, flags, Mode::empty()).ok()
}

fn describe(fd: BorrowedFd<'_>, name: &str) -> Option<Entry> {
    let dots = name == "." || name == "..";
    let facts: Facts = attributes::facts(fd).ok()?;
    Some(Entry {
        times: facts.times,
        end_of_file: facts.end_of_file,
        allocation_size: facts.allocation_size,
        attributes: facts.attributes,
        ea_size: eas::size(fd),
        reparse_tag: facts.reparse_tag,
        // 0 where there is none to tell (MS-FSCC 2.4.22).
        file_id: if name == ".." { 0 } else { facts.file_id },
        short_name: if dots { None } else { short_name(name) }.unwrap_or_default(),
        name: name.to_owned(),
    })
}

/// Whether a folder holds nothing, whether or not it could be shown, but what was being made in it.
pub fn is_empty(fd: &OwnedFd) -> Result<bool, Errno> {
    for entry in Dir::new(reopen(fd, OFlags::RDONLY | OFlags::DIRECTORY)?)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if !matches!(name, b"." | b"..") && !nameless::is(name) {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs};

    use super::*;
    use crate::budget::Budget;

    fn held() -> Held {
        Budget::new(HELD).take(HELD).unwrap()
    }

    fn names(listing: &mut Listing, folder: &OwnedFd) -> Vec<String> {
        let mut list = Vec::new();
        loop {
            match listing.peek(folder, Some(Instant::now())).unwrap() {
                Step::Entry(entry) => list.push(entry.name.clone()),
                Step::End => return list,
                Step::Unknown => continue,
            }
            listing.advance();
        }
    }

    #[test]
    fn every_name_is_listed_once_in_bounded_steps() {
        let root = tempfile::tempdir().unwrap();
        let mut want: BTreeSet<String> = [".".to_owned(), "..".to_owned()].into();
        for number in 0..500 {
            let name = format!("file {number}");
            fs::write(root.path().join(&name), "").unwrap();
            want.insert(name);
        }
        fs::create_dir(root.path().join(".bulkhead")).unwrap();
        let folder = OwnedFd::from(fs::File::open(root.path()).unwrap());
        let volume = Arc::new(Volume::open(root.path()).unwrap());
        let mut listing = Listing::start(&volume, &folder, "*", None, held()).unwrap();
        let list = names(&mut listing, &folder);
        assert_eq!(list.len(), want.len());
        assert_eq!(list.into_iter().collect::<BTreeSet<_>>(), want);
        listing.rewind();
        assert_eq!(names(&mut listing, &folder).len(), want.len());
        // One that matches nothing looks at names for as long as it may.
        let mut listing = Listing::start(&volume, &folder, "nothing*", None, held()).unwrap();
        let step = listing.peek(&folder, Some(Instant::now())).unwrap();
        assert!(matches!(step, Step::Unknown));
        assert_eq!(names(&mut listing, &folder), [""; 0]);
    }

    #[test]
    fn links_of_the_host_are_what_they_lead_to() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("d/sub")).unwrap();
        fs::write(root.path().join("file"), "content").unwrap();
        for (target, name) in
            [("../file", "good"), ("sub", "way"), ("none", "dangling"), ("/etc", "out")]
        {
            std::os::unix::fs::symlink(target, root.path().join("d").join(name)).unwrap();
        }
        let folder = OwnedFd::from(fs::File::open(root.path().join("d")).unwrap());
        let volume = Arc::new(Volume::open(root.path()).unwrap());
        let mut listing = Listing::start(&volume, &folder, "*", None, held()).unwrap();
        let mut list = Vec::new();
        loop {
            match listing.peek(&folder, None).unwrap() {
                Step::Entry(entry) => {
                    list.push((entry.name.clone(), entry.end_of_file, entry.attributes.0));
                }
                Step::End => break,
                Step::Unknown => unreachable!("it may look at all names"),
            }
            listing.advance();
        }
        list.sort();
        let names: Vec<_> = list.iter().map(|(name, size, bits)| (&**name, *size, *bits)).collect();
        let (folder, file) = (0x10, 0x20);
        let want = [(".", 0, folder), ("..", 0, folder), ("good", 7, file), ("sub", 0, folder)];
        assert_eq!(names, [&want[..], &[("way", 0, folder)]].concat());
    }

    #[test]
    fn plain_names_are_found_in_any_case_and_by_their_short_name() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("A long Name.txt"), "").unwrap();
        let folder = OwnedFd::from(fs::File::open(root.path()).unwrap());
        let volume = Arc::new(Volume::open(root.path()).unwrap());
        let short = short_name("A long Name.txt").unwrap();
        for pattern in ["A long Name.txt", "a LONG name.TXT", &short, "A?????~?.*"] {
            let mut listing = Listing::start(&volume, &folder, pattern, None, held()).unwrap();
            assert_eq!(names(&mut listing, &folder), ["A long Name.txt"], "{pattern}");
        }
        assert!(!is_empty(&folder).unwrap());
    }
}

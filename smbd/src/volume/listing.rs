//! A directory listing under way: the names as they were at its start.

use std::{
    ffi::{OsStr, OsString},
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
};

use rustix::{
    fs::{Dir, Mode, OFlags},
    io::Errno,
};
use smb_protocol::fscc::directory::Entry;

use super::{
    attributes::{self, Facts},
    pattern::Pattern,
    presentable, reopen,
    short::short_name,
};

/// A listing under way.
#[derive(Debug)]
pub struct Listing {
    names: Vec<OsString>,
    next: usize,
    pattern: Pattern,
    /// Whether anything was answered yet; an empty first answer is an error of its own.
    answered: bool,
}

impl Listing {
    /// Reads the names of the folder that `fd` names; at most `limit`.
    pub fn start(fd: &OwnedFd, pattern: &str, limit: usize) -> Result<Self, Errno> {
        let folder = reopen(fd, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let pattern = Pattern::new(pattern);
        let mut names = Vec::new();
        for special in [".", ".."] {
            if pattern.matches(special) {
                names.push(OsString::from(special));
            }
        }
        for entry in Dir::new(folder)? {
            let entry = entry?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if presentable(name).is_some_and(|text| pattern.matches(text)) {
                if names.len() >= limit {
                    return Err(Errno::NOMEM);
                }
                names.push(name.to_owned());
            }
        }
        Ok(Self { names, next: 0, pattern, answered: false })
    }

    /// Goes back to the first name.
    pub fn rewind(&mut self) {
        self.next = 0;
    }

    /// Whether nothing was answered from this listing yet; marks it answered.
    pub fn first_answer(&mut self) -> bool {
        !std::mem::replace(&mut self.answered, true)
    }

    /// Whether the pattern is a plain name.
    pub fn is_plain(&self) -> bool {
        self.pattern.is_plain()
    }

    /// The next entry that still exists, without moving on.
    pub fn peek(&mut self, folder: &OwnedFd) -> Option<Entry> {
        while let Some(name) = self.names.get(self.next) {
            if let Some(entry) = describe(folder, name) {
                return Some(entry);
            }
            self.next += 1;
        }
        None
    }

    /// Moves past the entry that was peeked at.
    pub fn advance(&mut self) {
        self.next += 1;
    }
}

fn describe(folder: &OwnedFd, name: &OsStr) -> Option<Entry> {
    let text = if name == "." || name == ".." { name.to_str()? } else { presentable(name)? };
    // What lies above the share is nobody's business: ".." shows the folder's own facts.
    let target = if text == ".." { OsStr::new(".") } else { name };
    let fd = rustix::fs::openat(
        folder,
        target,
        OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .ok()?;
    let facts: Facts = attributes::facts(fd.as_fd()).ok()?;
    Some(Entry {
        times: facts.times,
        end_of_file: facts.end_of_file,
        allocation_size: facts.allocation_size,
        attributes: facts.attributes,
        ea_size: facts.ea_size,
        file_id: facts.file_id,
        short_name: if text.starts_with('.') && text.trim_start_matches('.').is_empty() {
            String::new()
        } else {
            short_name(text).unwrap_or_default()
        },
        name: text.to_owned(),
    })
}

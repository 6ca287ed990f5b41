//! Differencing images and the parents they name.
//!
//! ```text
//!  location, file ─► identity ─► parent locator ─► location of the parent ─► its file ─► ...
//!                                     │                                        │
//!                                     └── parent_linkage  =  DataWriteGuid ────┘
//!  then from the last parent upwards: each opened for reading, as what the one above lacks
//! ```
//!
//! A parent that was changed after its child was made has another DataWriteGuid and is refused:
//! what the child lacks is not what it was (MS-VHDX 2.2.2, 2.6.2.6.3). A VHD's identity does not
//! change with its content, so of its parents only that is checked.

use std::sync::Arc;

use block_io::{Disk, File, IoFuture};

pub use crate::folders::LocalFiles;
use crate::{
    Error, Format, Guid, Result,
    classic::{self, ParentPlaces, Vhd},
    vhdx::{self, Identity, OpenOptions, Vhdx, locator::ParentLocator},
    vmdk::Vmdk,
};

/// Images in one chain at most. What a chain costs is a file and a table for each.
pub const MAX_DEPTH: usize = 256;

/// Opens the files that a chain is made of.
pub trait Files: Send + Sync {
    /// Opens the file at a location, in the form in which the first image's was given, for
    /// reading.
    ///
    /// # Errors
    /// [`block_io::Error::Outside`] for one that must not be opened ([`crate::folders`]).
    fn open<'a>(&'a self, location: &'a str) -> IoFuture<'a, Arc<dyn File>>;

    /// Whether a file is read as the raw backing file of an image because that says so.
    fn trusts_raw(&self) -> bool {
        false
    }
}

/// One image of a chain.
#[derive(Debug, Clone)]
pub struct Link {
    /// Location, as it was given or as the image names it.
    pub location: String,
    /// Its open file, for reading.
    pub file: Arc<dyn File>,
    /// Its identities, and where it says that its parent is.
    pub identity: Identity,
}

/// Finds the images below the VHDX in `file`, which is at `location`; that one is the first.
///
/// # Errors
/// [`Error::ParentMissing`], [`Error::ParentChanged`], [`Error::EndlessChain`]; what an image of
/// the chain says.
pub async fn links(file: Arc<dyn File>, location: &str, files: &dyn Files) -> Result<Vec<Link>> {
    let identity = vhdx::identity(file.clone()).await?;
    let mut chain = vec![Link { location: location.to_owned(), file, identity }];
    while let Some(last) = chain.last()
        && let Some(locator) = &last.identity.parent
    {
        let parent = find(&last.location, locator, files).await?;
        let known = |link: &Link| link.location == parent.location;
        if chain.len() >= MAX_DEPTH || chain.iter().any(known) {
            return Err(Error::EndlessChain { at: parent.location });
        }
        let expected = locator.linkages();
        let found = parent.identity.data_write_id;
        if !expected.contains(&found) {
            // A merge tells the child before it renews the parent: it may have begun in between.
            let now = vhdx::identity(last.file.clone()).await?;
            let told = now.parent.as_ref().is_some_and(|now| now.linkages().contains(&found));
            if !told {
                return Err(Error::ParentChanged { parent: parent.location, found });
            }
        }
        chain.push(parent);
    }
    Ok(chain)
}

/// Opens the VHDX in `file`, which is at `location`, with all its parents. These are only read.
///
/// # Errors
/// As [`links`]; what opening an image says.
pub async fn open(
    file: Arc<dyn File>,
    location: &str,
    files: &dyn Files,
    options: OpenOptions,
) -> Result<Vhdx> {
    let mut chain = links(file, location, files).await?;
    let first = chain.remove(0);
    let mut parent: Option<Arc<dyn Disk>> = None;
    for link in chain.into_iter().rev() {
        let options = OpenOptions { parent: parent.take(), ..OpenOptions::read_only() };
        parent = Some(Arc::new(Vhdx::open(link.file, options).await?));
    }
    Vhdx::open(first.file, OpenOptions { parent, ..options }).await
}

/// Opens the disk in `file`, which is at `location`, in any format, with all its parents. These are
/// only read; the image itself is if its file is.
///
/// # Errors
/// As [`links`]; what opening an image says.
pub async fn open_disk(
    file: Arc<dyn File>,
    location: &str,
    format: Format,
    files: &dyn Files,
) -> Result<Arc<dyn Disk>> {
    Ok(match format {
        Format::Vhdx => Arc::new(open(file, location, files, OpenOptions::default()).await?),
        Format::Vhd => Arc::new(open_vhd(file, location, files).await?),
        Format::Qcow2 => crate::qcow2::open_chain(file, location, files).await?,
        Format::Vmdk => Arc::new(Vmdk::open_at(file, location, files).await?),
        Format::Raw => crate::open_disk(file, format).await?,
    })
}

/// Opens the VHD in `file`, which is at `location`, with all its parents. These are only read.
///
/// # Errors
/// As [`links`]; what opening an image says.
pub async fn open_vhd(file: Arc<dyn File>, location: &str, files: &dyn Files) -> Result<Vhd> {
    let mut chain = vhd_images(file.clone(), location, files).await?;
    let mut parent: Option<Arc<dyn Disk>> = None;
    for (_, file) in chain.drain(1..).rev() {
        let options = classic::OpenOptions { parent: parent.take(), read_only: true };
        parent = Some(Arc::new(Vhd::open(file, options).await?));
    }
    Vhd::open(file, classic::OpenOptions { parent, read_only: false }).await
}

/// Finds the images below the VHD in `file`, which is at `location`; that one is the first.
///
/// # Errors
/// As [`links`].
pub async fn vhd_images(
    file: Arc<dyn File>,
    location: &str,
    files: &dyn Files,
) -> Result<Vec<(String, Arc<dyn File>)>> {
    let mut chain = vec![(location.to_owned(), file)];
    while let Some((child, file)) = chain.last()
        && let Some((id, named)) = classic::info(file.clone()).await?.parent
    {
        let (at, parent) = find_vhd(child, id, &named, files).await?;
        if chain.len() >= MAX_DEPTH || chain.iter().any(|(location, _)| *location == at) {
            return Err(Error::EndlessChain { at });
        }
        chain.push((at, parent));
    }
    Ok(chain)
}

/// The first of a parent's places at which it is.
async fn find_vhd(
    child: &str,
    id: Guid,
    named: &ParentPlaces,
    files: &dyn Files,
) -> Result<(String, Arc<dyn File>)> {
    let mut tried: Vec<String> = Vec::new();
    tried.extend(named.beside().iter().filter_map(|path| beside(child, path)));
    for path in &named.absolute {
        tried.extend(full(child, path));
    }
    let (mut other, mut last) = (None, Last::default());
    for location in &tried {
        match files.open(location).await {
            Ok(file) => match classic::info(file.clone()).await {
                Ok(info) if info.id == id => return Ok((location.clone(), file)),
                Ok(info) => {
                    let changed = Error::ParentChanged { parent: location.clone(), found: info.id };
                    other = other.or(Some(changed));
                }
                Err(error) => other = other.or(Some(error)),
            },
            Err(error) => last.note(error),
        }
    }
    let all = named.relative.iter().chain(&named.absolute).chain(&named.name);
    let parent = all.into_iter().next().cloned().unwrap_or_default();
    Err(other.unwrap_or_else(|| last.error(parent, tried)))
}

/// Why no place of a parent gave it.
#[derive(Default)]
struct Last {
    outside: Option<block_io::Error>,
    other: Option<block_io::Error>,
}

impl Last {
    fn note(&mut self, error: block_io::Error) {
        match error {
            block_io::Error::Outside(_) => self.outside = Some(error),
            // Who has it is worth more than that another place has nothing.
            error if !matches!(self.other, Some(block_io::Error::Busy(_))) => {
                self.other = Some(error);
            }
            _ => {}
        }
    }

    /// That a place must not be looked at is told before that others have nothing: there it may be.
    fn error(self, parent: String, tried: Vec<String>) -> Error {
        match (self.outside, self.other) {
            (_, Some(busy @ block_io::Error::Busy(_))) => busy.into(),
            (Some(outside), _) => outside.into(),
            (None, source) => Error::ParentMissing { parent, tried, source },
        }
    }
}

/// The parent that a locator names: the first of its places at which there is an image.
async fn find(child: &str, locator: &ParentLocator, files: &dyn Files) -> Result<Link> {
    let tried = places(child, locator);
    let mut last = Last::default();
    for location in &tried {
        match files.open(location).await {
            Ok(file) => {
                let identity = vhdx::identity(file.clone()).await?;
                return Ok(Link { location: location.clone(), file, identity });
            }
            Err(error) => last.note(error),
        }
    }
    Err(last.error(locator.place(), tried))
}

/// Where the parent of the image at `child` may be: relative to it, then by its full name
/// (MS-VHDX 2.6.2.6.3), if that has a meaning here.
fn places(child: &str, locator: &ParentLocator) -> Vec<String> {
    let mut places = Vec::new();
    if let Some(path) = locator.get("relative_path") {
        places.extend(beside(child, &path.replace('\\', "/")));
    }
    for key in ["absolute_win32_path", "volume_path"] {
        let Some(path) = locator.get(key) else { continue };
        places.extend(full(child, path));
    }
    places
}

/// A full path, if it has a meaning where `child` is.
fn full(child: &str, path: &str) -> Option<String> {
    let local = path.starts_with('/') && !child.contains("://");
    if local { Some(path.to_owned()) } else { on_share(child, path) }
}

/// A path relative to the folder of `child`. One on a share does not leave it.
pub(crate) fn beside(child: &str, path: &str) -> Option<String> {
    let folder = child.rsplit_once('/').map_or("", |(folder, _)| folder);
    let Some((scheme, rest)) = folder.split_once("://") else {
        let path = path.trim_start_matches("./");
        return Some(match child.contains('/') {
            true => format!("{folder}/{path}"),
            false => path.to_owned(),
        });
    };
    let mut parts: Vec<&str> = rest.split('/').collect();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            // Host and share stay.
            ".." if parts.len() <= 2 => return None,
            ".." => drop(parts.pop()),
            name => parts.push(name),
        }
    }
    Some(format!("{scheme}://{}", parts.join("/")))
}

/// A path of the form `\\host\share\path`, on the host of `child`: an image cannot send anyone
/// who opens it, and what they log in with, to another.
fn on_share(child: &str, path: &str) -> Option<String> {
    let (scheme, rest) = child.split_once("://")?;
    let authority = rest.split('/').next()?;
    let host = authority.rsplit('@').next()?.split(':').next()?;
    let unc = path.strip_prefix(r"\\?\UNC\").or_else(|| path.strip_prefix(r"\\"))?;
    let (named, below) = unc.split_once('\\')?;
    let climbs = below.split('\\').any(|part| part == "..");
    let same = named.eq_ignore_ascii_case(host) && !climbs;
    same.then(|| format!("{scheme}://{authority}/{}", below.replace('\\', "/")))
}

/// The path of `to` as seen from the folder of `from`, both local or both on one share: what a
/// child at `from` says of its parent at `to`.
pub fn relative(from: &str, to: &str) -> Option<String> {
    let parts = |location: &str| -> Option<(String, Vec<String>)> {
        if let Some((scheme, rest)) = location.split_once("://") {
            let mut parts = rest.split('/').map(str::to_owned);
            let root = format!("{scheme}://{}/{}", parts.next()?, parts.next()?);
            return Some((root, parts.collect()));
        }
        let whole = std::path::absolute(location).ok()?;
        let parts = whole.to_str()?.split('/').filter(|part| !part.is_empty());
        Some((String::new(), parts.map(str::to_owned).collect()))
    };
    let ((from_root, from), (to_root, to)) = (parts(from)?, parts(to)?);
    if from_root != to_root || from.iter().chain(&to).any(|part| part == "..") {
        return None;
    }
    let folder = &from[..from.len().checked_sub(1)?];
    let common = folder.iter().zip(&to).take_while(|(a, b)| a == b).count();
    let up = vec!["..".to_owned(); folder.len() - common];
    let path = [up.as_slice(), to.get(common..)?].concat().join("/");
    (!path.is_empty()).then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_taken_from_the_child_and_stay_on_its_share() {
        let at = |child: &str, path: &str| places(child, &ParentLocator::vhdx(Guid::ZERO, path));
        assert_eq!(at("/vm/child.vhdx", "base.vhdx"), ["/vm/base.vhdx"]);
        assert_eq!(at("/vm/child.vhdx", "../base.vhdx"), ["/vm/../base.vhdx"]);
        assert_eq!(at("child.vhdx", "base.vhdx"), ["base.vhdx"]);
        let url = "smb://me@host:1445/vms/a/child.vhdx";
        assert_eq!(at(url, "base.vhdx"), ["smb://me@host:1445/vms/a/base.vhdx"]);
        assert_eq!(at(url, "../b/base.vhdx"), ["smb://me@host:1445/vms/b/base.vhdx"]);
        assert!(at(url, "../../other/base.vhdx").is_empty());
        let full = |path: &str| {
            let entries = vec![("absolute_win32_path".to_owned(), path.to_owned())];
            places(url, &ParentLocator { entries, ..ParentLocator::vhdx(Guid::ZERO, "") })
        };
        assert_eq!(full(r"\\HOST\vms\base.vhdx"), ["smb://me@host:1445/vms/base.vhdx"]);
        assert_eq!(full(r"\\?\UNC\host\x\base.vhdx"), ["smb://me@host:1445/x/base.vhdx"]);
        for elsewhere in [r"\\other\vms\base.vhdx", r"\\host\vms\..\..\x", r"C:\base.vhdx", "/b"] {
            assert!(full(elsewhere).is_empty(), "{elsewhere}");
        }
    }

    #[test]
    fn parents_are_named_from_the_folder_of_the_child() {
        let named = |from: &str, to: &str| relative(from, to);
        assert_eq!(named("/vm/a.vhdx", "/vm/b.vhdx").as_deref(), Some("b.vhdx"));
        assert_eq!(named("/vm/x/a.vhdx", "/vm/b.vhdx").as_deref(), Some("../b.vhdx"));
        assert_eq!(named("a.vhdx", "base/b.vhdx").as_deref(), Some("base/b.vhdx"));
        let (one, two) = ("smb://h/s/d/a.vhdx", "smb://h/s/b.vhdx");
        assert_eq!(named(one, two).as_deref(), Some("../b.vhdx"));
        assert_eq!(named(one, "smb://h/t/b.vhdx"), None);
        assert_eq!(named(one, "/vm/b.vhdx"), None);
    }
}

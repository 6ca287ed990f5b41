//! Where the files may lie that an image names: its parents, backing files and extents.
//!
//! ```text
//!  image ── names ──► path ──► in the image's folder or below, or in one that was allowed? ──► opened
//!                                      └ no: Outside, and nothing is opened
//! ```
//!
//! An image comes from anywhere, and who opens it may read what its maker may not. So a path that leads
//! out of its folder, by its own words or by a link on the way, is not followed. Local files are opened
//! by one call that the system itself keeps within the folder (`openat2` with `RESOLVE_BENEATH`): nothing
//! is looked at first and opened after.

use std::{
    ffi::OsString,
    os::fd::OwnedFd,
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use block_io::{Error, File, IoFuture, LocalFile, LocalOptions};
use rustix::{
    fs::{Dir, Mode, OFlags, ResolveFlags},
    io::Errno,
};

use crate::chain::Files;

/// Folders, each an absolute path or the address of one on a share.
#[derive(Debug, Clone, Default)]
pub struct Folders {
    all: Vec<String>,
    more: &'static str,
}

impl Folders {
    /// The folder of the image at `location`. `more` says in errors how others are allowed.
    pub fn of(location: &str, more: &'static str) -> Self {
        Self { all: Vec::new(), more }.and_of(location)
    }

    /// These and the folder of the image at `location`.
    #[must_use]
    pub fn and_of(self, location: &str) -> Self {
        let folder = match location.rsplit_once('/') {
            Some(("", _)) => "/",
            Some((folder, _)) => folder,
            None => ".",
        };
        self.and(folder)
    }

    /// These and one more.
    #[must_use]
    pub fn and(mut self, folder: impl Into<String>) -> Self {
        self.all.push(folder.into());
        self
    }

    /// Whether a location on a share is in one of them, or below.
    pub fn hold(&self, location: &str) -> bool {
        let parts = |location: &str| -> Option<Vec<String>> {
            let (scheme, rest) = location.split_once("://")?;
            let parts = rest.split('/').filter(|part| !part.is_empty()).map(str::to_lowercase);
            Some(std::iter::once(scheme.to_lowercase()).chain(parts).collect())
        };
        let Some(there) = parts(location) else { return false };
        let climbs = there.iter().any(|part| part == ".." || part == ".");
        !climbs && self.all.iter().filter_map(|at| parts(at)).any(|at| there.starts_with(&at))
    }

    /// What is said of a location that is in none of them.
    pub fn refusal(&self, location: &str) -> Error {
        Error::Outside(format!(
            "{location} is named by an image and lies outside of {}; {}",
            self.all.join(", "),
            self.more
        ))
    }

    /// Opens a local file in one of them, or below, for reading; nobody writes it meanwhile.
    ///
    /// # Errors
    /// [`Error::Outside`] if it is in none; what the operating system says.
    pub fn open(&self, location: &str) -> block_io::Result<LocalFile> {
        let mut missing = None;
        for folder in self.all.iter().filter(|folder| !folder.contains("://")) {
            let Some(rest) = below(folder, location) else { continue };
            match open_below(folder, &rest) {
                Ok(fd) => return LocalFile::take(fd.into(), location, &LocalOptions::still()),
                // It climbs, or a link on the way leads out.
                Err(Errno::XDEV | Errno::LOOP) => {}
                Err(error) => missing = Some(error),
            }
        }
        match missing {
            Some(error) => Err(Error::io(format!("opening {location}"), error.into())),
            None => Err(self.refusal(location)),
        }
    }
}

/// What of a location is below a folder, by their words or as the system resolves them. A wrong answer is
/// harmless: the file is opened beneath the folder all the same.
fn below(folder: &str, location: &str) -> Option<PathBuf> {
    let whole = |path: &str| std::path::absolute(path).ok();
    let rest = |folder: &Path, path: &Path| path.strip_prefix(folder).ok().map(Path::to_path_buf);
    let (folder, path) = (whole(folder)?, whole(location)?);
    if let Some(rest) = rest(&folder, &path) {
        return Some(rest);
    }
    let real = path.parent()?.canonicalize().ok()?.join(path.file_name()?);
    rest(&folder.canonicalize().ok()?, &real)
}

/// Opens a regular file below a folder; the last part of its name may be in another case, as programs
/// on Windows do not mind.
fn open_below(folder: &str, rest: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let root = rustix::fs::open(folder, flags | OFlags::DIRECTORY, Mode::empty())?;
    let beneath = |path: &Path, flags: OFlags| {
        let how = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        rustix::fs::openat2(&root, path, flags, Mode::empty(), how)
    };
    // Not waiting: a pipe would until someone writes.
    let flags = flags | OFlags::NONBLOCK | OFlags::NOCTTY;
    let opened = match beneath(rest, flags) {
        Err(Errno::NOENT) => {
            let above = rest.parent().filter(|path| !path.as_os_str().is_empty());
            let above = above.unwrap_or(Path::new("."));
            let list = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::DIRECTORY;
            let name = in_other_case(&beneath(above, list)?, rest)?;
            beneath(&above.join(name), flags)
        }
        other => other,
    }?;
    let kind = rustix::fs::fstat(&opened)?.st_mode;
    match rustix::fs::FileType::from_raw_mode(kind).is_file() {
        true => Ok(opened),
        // A device or a pipe is no image.
        false => Err(Errno::NODEV),
    }
}

/// The one name in a folder that differs from a path's last part in case only.
fn in_other_case(folder: &OwnedFd, path: &Path) -> Result<OsString, Errno> {
    use std::os::unix::ffi::OsStringExt;
    let Some(Component::Normal(wanted)) = path.components().next_back() else {
        return Err(Errno::NOENT);
    };
    let wanted = wanted.to_str().ok_or(Errno::NOENT)?.to_lowercase();
    let mut found = None;
    for entry in Dir::read_from(folder)? {
        let name = entry?.file_name().to_owned();
        if name.to_str().is_ok_and(|name| name.to_lowercase() == wanted) {
            if found.is_some() {
                // Which of them is meant nobody can say.
                return Err(Errno::NOENT);
            }
            found = Some(OsString::from_vec(name.into_bytes()));
        }
    }
    found.ok_or(Errno::NOENT)
}

/// Local files that an image names, in its folder and those that are allowed.
#[derive(Debug, Clone)]
pub struct LocalFiles {
    folders: Folders,
}

impl LocalFiles {
    /// Those in the folder of the image at `location`, and below.
    pub fn beside(location: &str) -> Self {
        Self { folders: Folders::of(location, "allow that folder with LocalFiles::and_from") }
    }

    /// Also those in this folder and below.
    #[must_use]
    pub fn and_from(mut self, folder: impl Into<String>) -> Self {
        self.folders = self.folders.and(folder);
        self
    }
}

impl Files for LocalFiles {
    fn open<'a>(&'a self, location: &'a str) -> IoFuture<'a, Arc<dyn File>> {
        Box::pin(async move { Ok(Arc::new(self.folders.open(location)?) as Arc<dyn File>) })
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    fn opens(folders: &Folders, location: &Path) -> Result<(), Error> {
        folders.open(location.to_str().unwrap()).map(|_| ())
    }

    #[tokio::test]
    async fn nothing_outside_of_the_folder_is_opened() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir_all(at("vm/sub")).unwrap();
        fs::create_dir(at("other")).unwrap();
        for name in ["vm/base", "vm/sub/base", "other/base", "secret"] {
            fs::write(at(name), name).unwrap();
        }
        symlink(at("secret"), at("vm/link")).unwrap();
        symlink("../secret", at("vm/relative")).unwrap();
        symlink("sub/base", at("vm/inside")).unwrap();
        symlink("../other", at("vm/folder")).unwrap();
        symlink(at("vm"), at("way")).unwrap();
        let folders = Folders::of(at("vm/child").to_str().unwrap(), "no more");
        for inside in
            ["vm/base", "vm/sub/base", "vm/sub/../base", "vm/inside", "vm/BASE", "way/base"]
        {
            opens(&folders, &at(inside)).unwrap_or_else(|e| panic!("{inside}: {e}"));
        }
        for outside in [
            "secret",
            "other/base",
            "vm/../secret",
            "vm/sub/../../secret",
            "vm/link",
            "vm/relative",
            "vm/folder/base",
            "vm/../vm/../secret",
            "other/../secret",
        ] {
            let error = opens(&folders, &at(outside)).unwrap_err();
            assert!(matches!(error, Error::Outside(_)), "{outside}: {error}");
            assert!(error.to_string().contains("no more"), "{error}");
        }
        let more = folders.clone().and(at("other").to_str().unwrap());
        opens(&more, &at("other/base")).unwrap();
        assert!(matches!(opens(&more, &at("secret")), Err(Error::Outside(_))));
        // What is not there is told as that, and a pipe keeps nobody waiting.
        assert!(matches!(opens(&folders, &at("vm/none")), Err(Error::Io { .. })));
        rustix::fs::mknodat(
            rustix::fs::CWD,
            at("vm/pipe"),
            rustix::fs::FileType::Fifo,
            Mode::RUSR,
            0,
        )
        .unwrap();
        assert!(matches!(opens(&folders, &at("vm/pipe")), Err(Error::Io { .. })));
        // Two names that differ in case only are two files.
        fs::write(at("vm/bAse"), "").unwrap();
        assert!(matches!(opens(&folders, &at("vm/BASE")), Err(Error::Io { .. })));
    }

    #[test]
    fn addresses_stay_in_their_folder() {
        let folders =
            Folders::of("smb://me@host:1445/vms/a/child.vhdx", "").and("smb://h/s/golden");
        for inside in ["smb://me@host:1445/vms/a/base.vhdx", "smb://me@host:1445/VMS/a/b/c.vhdx"] {
            assert!(folders.hold(inside), "{inside}");
        }
        assert!(folders.hold("smb://h/s/golden/base.vhdx"));
        for outside in [
            "smb://me@host:1445/vms/base.vhdx",
            "smb://me@host:1445/vms/ab/base.vhdx",
            "smb://me@host:1445/vms/a/../base.vhdx",
            "smb://host:1445/vms/a/base.vhdx",
            "/vms/a/base",
            "smb://h/s/gold/base.vhdx",
        ] {
            assert!(!folders.hold(outside), "{outside}");
        }
    }
}

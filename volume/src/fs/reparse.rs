//! Reparse points (MS-FSA 2.1.1.3, `ReparseTag`, `ReparseGUID`, `ReparseData`): kept with their file in
//! the extended attribute `user.bulkhead.reparse`, as the buffer in which clients set and get them
//! (MS-FSCC 2.1.2.2, 2.1.2.3). Where the file system has no room for so long an attribute, only the
//! header is there, and the data lie beside the file's streams. Nothing special is made on the disk and
//! nothing is followed: to local programs it is a plain file or folder.
//!
//! ```text
//!  set:    (data aside ─►) user.bulkhead.reparse ─► the attribute REPARSE_POINT in user.bulkhead
//!  remove: the attribute goes    ─► user.bulkhead.reparse goes
//! ```
//!
//! So a crash in between leaves what no one looks at; long data lie aside (`fs/aside.rs`), and a
//! change of them leaves the old or the new. A file is a reparse point while it has both, and most files
//! are known to be none by the attribute, which is read anyway.
//!
//! A folder that is a reparse point is empty when it becomes one, and nothing comes into it by a name
//! that leads through it; therefore a name below it is not found, and only then is it looked for on the
//! way. What other programs of the machine put into such a folder is met as if it were none.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::MutexGuard,
};

use rustix::{fs::XattrFlags, io::Errno};
use smb_protocol::{
    NtStatus,
    fscc::reparse::{MAX_LEN, ReparsePoint, ReparseTag},
};

use crate::{
    fs::{
        aside::Slot, attributes, descriptor::magic_path, entry, listing, permit::Permit,
        shards::Shards, volume::Volume,
    },
    status::of_errno,
};

const XATTR: &str = "user.bulkhead.reparse";

/// The reparse point of a file, in the form in which clients get it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Point {
    raw: Vec<u8>,
    tag: ReparseTag,
    guid: Option<[u8; 16]>,
}

impl Point {
    fn read(raw: Vec<u8>) -> Option<Self> {
        let ReparsePoint { tag, guid, .. } = ReparsePoint::parse(&raw).ok()?;
        Some(Self { raw, tag, guid })
    }

    /// The tag, which says whose it is.
    pub fn tag(&self) -> ReparseTag {
        self.tag
    }

    /// Who gave out the tag, if Microsoft did not.
    pub fn guid(&self) -> Option<[u8; 16]> {
        self.guid
    }

    /// The whole buffer: header and data.
    pub fn buffer(&self) -> &[u8] {
        &self.raw
    }

    /// What its owner keeps there.
    pub fn data(&self) -> &[u8] {
        self.raw.get(ReparsePoint::header_len(self.tag)..).unwrap_or_default()
    }
}

/// A name that leads to or through a reparse point, which nobody here follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Met {
    /// What was met.
    pub point: Point,
    /// Parts of the name that lead to it, its own included.
    pub depth: usize,
}

impl Met {
    /// What that is to who wants to open the name (MS-SMB2 3.3.5.9): a link that the client may
    /// follow, or what nothing here understands.
    pub fn status(&self) -> NtStatus {
        match self.point.tag {
            ReparseTag::SYMLINK => NtStatus::STOPPED_ON_SYMLINK,
            _ => NtStatus::IO_REPARSE_TAG_NOT_HANDLED,
        }
    }
}

/// Why a name leads nowhere.
#[derive(Debug)]
pub enum Lost {
    /// With this status.
    Status(NtStatus),
    /// A reparse point is on the way.
    Reparse(Box<Met>),
}

impl From<NtStatus> for Lost {
    fn from(status: NtStatus) -> Self {
        Self::Status(status)
    }
}

impl From<Lost> for NtStatus {
    fn from(lost: Lost) -> Self {
        match lost {
            Lost::Status(status) => status,
            Lost::Reparse(met) => met.status(),
        }
    }
}

/// Whether a file with this tag, 0 if it is no reparse point, may have extended attributes: of reparse
/// points those of the Windows Subsystem for Linux alone, which keep there what they are
/// (MS-FSA 2.1.5.10.37, 2.1.5.15.6).
pub fn takes_eas(tag: u32) -> bool {
    tag == 0 || ReparseTag(tag).is_of_wsl()
}

/// What is in the extended attribute, whether or not the file is marked: all of the buffer, or its
/// header.
fn kept(fd: BorrowedFd<'_>) -> Result<Option<Vec<u8>>, Errno> {
    let mut raw = vec![0; MAX_LEN];
    match rustix::fs::getxattr(magic_path(fd).as_str(), XATTR, &mut raw[..]) {
        Ok(len) => {
            raw.truncate(len);
            Ok(Some(raw))
        }
        Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::RANGE) => Ok(None),
        Err(error) => Err(error),
    }
}

/// A header without its data.
struct HeaderAlone {
    tag: ReparseTag,
    /// Length of the data in bytes.
    len: usize,
    /// Where they lie aside.
    slot: Slot,
}

impl HeaderAlone {
    /// The header and, in the byte behind it, the slot. Data of one byte are never aside.
    fn read(raw: &[u8]) -> Option<Self> {
        let (fields, _) = raw.split_first_chunk::<6>()?;
        let [a, b, c, d, e, f] = *fields;
        let tag = ReparseTag(u32::from_le_bytes([a, b, c, d]));
        let len = usize::from(u16::from_le_bytes([e, f]));
        let slot = match raw.get(ReparsePoint::header_len(tag)..)? {
            [0] => Slot::First,
            [1] => Slot::Second,
            _ => return None,
        };
        (len > 1).then_some(Self { tag, len, slot })
    }
}

/// One change of a file at a time, and none while what it is about is put together: each is of several
/// steps, and one of them waits for the disk, so other files are not kept waiting.
fn alone(fd: BorrowedFd<'_>) -> Result<MutexGuard<'static, ()>, Errno> {
    static FILES: Shards = Shards::new();
    Ok(FILES.lock(&rustix::fs::fstat(fd)?))
}

/// The tag of a file that is marked; 0 where nothing stands behind that.
pub(crate) fn tag_of(fd: BorrowedFd<'_>) -> u32 {
    let Ok(Some(raw)) = kept(fd) else { return 0 };
    let tag = match HeaderAlone::read(&raw) {
        Some(header) => Some(header.tag),
        None => ReparsePoint::parse(&raw).ok().map(|point| point.tag),
    };
    tag.map_or(0, |tag| tag.0)
}

/// The reparse point of a file of a volume, if it is one.
///
/// # Errors
/// What the file system says.
pub fn of(volume: &Volume, fd: BorrowedFd<'_>) -> Result<Option<Point>, Errno> {
    if !attributes::is_marked_reparse(fd) {
        return Ok(None);
    }
    let Some(raw) = kept(fd)? else { return Ok(None) };
    if HeaderAlone::read(&raw).is_none() {
        return Ok(Point::read(raw));
    }
    let _alone = alone(fd)?;
    let Some(mut raw) = kept(fd)? else { return Ok(None) };
    if let Some(HeaderAlone { tag, len, slot }) = HeaderAlone::read(&raw) {
        raw.truncate(ReparsePoint::header_len(tag));
        match volume.streams().aside(fd, slot, len)? {
            Some(data) => raw.extend_from_slice(&data),
            // A copy that was made without what lies aside is a point without data.
            None => raw[4..6].fill(0),
        }
    }
    Ok(Point::read(raw))
}

/// Makes a file or folder a reparse point, or changes the data of one.
///
/// # Errors
/// `VOLUME_NOT_UPGRADED` where the file system keeps no extended attributes, `DISK_FULL` where it has
/// no room for this one; what the file system says.
pub fn keep(
    permit: Permit<'_>,
    fd: BorrowedFd<'_>,
    point: &ReparsePoint<'_>,
) -> Result<(), NtStatus> {
    let mut raw = Vec::new();
    point.encode(&mut raw);
    let path = magic_path(fd);
    let put = |raw: &[u8]| rustix::fs::setxattr(path.as_str(), XATTR, raw, XattrFlags::empty());
    let streams = permit.volume().streams();
    let _alone = alone(fd).map_err(of_errno)?;
    let aside = || {
        let before = kept(fd)?.and_then(|raw| HeaderAlone::read(&raw));
        let slot = before.map_or(Slot::First, |before| before.slot.other());
        streams.keep_aside(fd, slot, point.data)?;
        let mut header = raw[..ReparsePoint::header_len(point.tag)].to_vec();
        header.push(u8::from(slot == Slot::Second));
        put(&header)?;
        Ok(slot)
    };
    let done = match put(&raw) {
        Err(Errno::NOSPC | Errno::TOOBIG | Errno::RANGE) if point.data.len() > 1 => {
            aside().and_then(|slot| streams.drop_aside(fd, Some(slot)))
        }
        Ok(()) => streams.drop_aside(fd, None),
        other => other,
    };
    match done {
        Ok(()) => attributes::mark_reparse(fd, true).map_err(of_errno),
        Err(Errno::OPNOTSUPP) => Err(NtStatus::VOLUME_NOT_UPGRADED),
        Err(Errno::NOSPC | Errno::TOOBIG | Errno::RANGE) => Err(NtStatus::DISK_FULL),
        Err(error) => Err(of_errno(error)),
    }
}

/// Makes a folder that is none a reparse point, if it is empty: what came in before was there first.
///
/// # Errors
/// `DIRECTORY_NOT_EMPTY`; as [`keep`].
pub fn keep_on_folder(
    permit: Permit<'_>,
    fd: &OwnedFd,
    point: &ReparsePoint<'_>,
) -> Result<(), NtStatus> {
    entry::announce();
    keep(permit, fd.as_fd(), point)?;
    let is_empty = entry::settle(fd.as_fd()).and_then(|()| listing::is_empty(fd));
    if !is_empty.map_err(of_errno)? {
        remove(permit, fd.as_fd()).map_err(of_errno)?;
        return Err(NtStatus::DIRECTORY_NOT_EMPTY);
    }
    Ok(())
}

/// Makes a reparse point a plain file or folder again; its content stays.
///
/// # Errors
/// What the file system says.
pub fn remove(permit: Permit<'_>, fd: BorrowedFd<'_>) -> Result<(), Errno> {
    let _alone = alone(fd)?;
    attributes::mark_reparse(fd, false)?;
    match rustix::fs::removexattr(magic_path(fd).as_str(), XATTR) {
        Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => {
            permit.volume().streams().drop_aside(fd, None)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use smb_protocol::{fscc::FileAttributes, msg::create::Access};

    use super::*;

    #[test]
    fn a_point_stays_with_its_file_and_half_of_one_is_none() {
        let root = tempfile::tempdir().unwrap();
        let volume = Volume::open(root.path()).unwrap();
        let permit = volume.permit(Access::ALL).unwrap();
        let file = std::fs::File::create(root.path().join("f")).unwrap();
        let fd = file.as_fd();
        assert_eq!(of(&volume, fd), Ok(None));
        let fifo = ReparsePoint { tag: ReparseTag::LX_FIFO, guid: None, data: &[] };
        let foreign = ReparsePoint { tag: ReparseTag(0x17), guid: Some([7; 16]), data: b"data" };
        for point in [&fifo, &foreign] {
            keep(permit, fd, point).unwrap();
            let found = of(&volume, fd).unwrap().unwrap();
            assert_eq!(
                (found.tag(), found.guid(), found.data()),
                (point.tag, point.guid, point.data)
            );
            let facts = attributes::facts(fd).unwrap();
            assert!(facts.attributes.has(FileAttributes::REPARSE_POINT));
            assert_eq!(facts.reparse_tag, point.tag.0);
            // Attributes that a client sets do not touch it.
            attributes::set_attributes(fd, FileAttributes::HIDDEN).unwrap();
            assert_eq!(of(&volume, fd).unwrap().unwrap().tag(), point.tag);
            assert_eq!(std::fs::read(root.path().join("f")).unwrap(), b"");
            assert!(std::fs::symlink_metadata(root.path().join("f")).unwrap().is_file());
            remove(permit, fd).unwrap();
            assert_eq!(
                (of(&volume, fd), attributes::facts(fd).unwrap().reparse_tag),
                (Ok(None), 0)
            );
        }
        // One of the two alone: a crash in between, or somebody's own doing.
        keep(permit, fd, &fifo).unwrap();
        rustix::fs::fremovexattr(&file, XATTR).unwrap();
        let facts = attributes::facts(fd).unwrap();
        assert!(!facts.attributes.has(FileAttributes::REPARSE_POINT));
        assert_eq!(of(&volume, fd), Ok(None));
        rustix::fs::fsetxattr(&file, XATTR, b"nonsense", XattrFlags::empty()).unwrap();
        assert_eq!(of(&volume, fd), Ok(None));
        keep(permit, fd, &fifo).unwrap();
        attributes::mark_reparse(fd, false).unwrap();
        assert_eq!(of(&volume, fd), Ok(None));
        remove(permit, fd).unwrap();
        remove(permit, fd).unwrap();
    }
    /// ext4 keeps some 4,000 bytes of attributes.
    #[test]
    fn the_longest_data_are_kept_wherever_there_is_room() {
        let root = tempfile::tempdir().unwrap();
        let volume = Volume::open(root.path()).unwrap();
        let permit = volume.permit(Access::ALL).unwrap();
        let path = root.path().join("f");
        let file = std::fs::File::create(&path).unwrap();
        let fd = file.as_fd();
        let long: Vec<u8> = (0..MAX_LEN - 8).map(|at| at as u8).collect();
        for (tag, guid, data) in [
            (ReparseTag::NFS, None, &long[..]),
            (ReparseTag::NFS, None, &long[..9000]),
            (ReparseTag(0x17), Some([7; 16]), &long[..MAX_LEN - 24]),
            (ReparseTag::NFS, None, &long[..9]),
        ] {
            keep(permit, fd, &ReparsePoint { tag, guid, data }).unwrap();
            let found = of(&volume, fd).unwrap().unwrap();
            assert_eq!((found.tag(), found.guid(), found.data()), (tag, guid, data));
            assert_eq!(attributes::facts(fd).unwrap().reparse_tag, tag.0);
            // No stream of the file, and not gone with its streams.
            assert!(volume.streams().list(fd).unwrap().is_empty());
            volume.streams().clear(fd, |_| false).unwrap();
            assert_eq!(of(&volume, fd).unwrap().unwrap().data(), data);
        }
        keep(permit, fd, &ReparsePoint { tag: ReparseTag::NFS, guid: None, data: &long }).unwrap();
        remove(permit, fd).unwrap();
        assert_eq!(of(&volume, fd), Ok(None));
        keep(permit, fd, &ReparsePoint { tag: ReparseTag::NFS, guid: None, data: &long }).unwrap();
        std::fs::remove_file(&path).unwrap();
        permit.forget_streams(fd).unwrap();
        let left = std::fs::read_dir(root.path().join(".bulkhead/streams"));
        assert!(
            left.is_ok_and(|mut left| left.next().is_none())
                || !root.path().join(".bulkhead").exists()
        );
    }

    /// What is kept of a point is the old or the new one, whoever else changes it and wherever a change
    /// ends.
    #[test]
    fn a_change_of_long_data_is_whole_or_not_at_all() {
        let root = tempfile::tempdir().unwrap();
        let volume = Volume::open(root.path()).unwrap();
        let permit = volume.permit(Access::ALL).unwrap();
        let file = std::fs::File::create(root.path().join("f")).unwrap();
        let fd = file.as_fd();
        let of_tag = |data| ReparsePoint { tag: ReparseTag::NFS, guid: None, data };
        let (first, second, short) = (vec![b'A'; MAX_LEN - 8], vec![b'B'; 9000], vec![b'C'; 16]);
        std::thread::scope(|scope| {
            for data in [&first, &second, &short] {
                let change = move || (0..50).for_each(|_| keep(permit, fd, &of_tag(data)).unwrap());
                scope.spawn(change);
            }
            for _ in 0..200 {
                let Some(found) = of(&volume, fd).unwrap() else { continue };
                let value = found.data()[0];
                let wanted = match value {
                    b'A' => first.len(),
                    b'B' => second.len(),
                    _ => 16,
                };
                assert_eq!(found.data().len(), wanted);
                assert!(found.data().iter().all(|byte| *byte == value));
            }
        });
        keep(permit, fd, &of_tag(&first)).unwrap();
        let Some(header) = HeaderAlone::read(&kept(fd).unwrap().unwrap()) else {
            // A file system with room for all of it in the attribute changes that at once.
            return;
        };
        volume.streams().keep_aside(fd, header.slot.other(), &second).unwrap();
        assert_eq!(of(&volume, fd).unwrap().unwrap().data(), first, "a crash before the header");
        // A copy that has the attribute and nothing else is a point with this tag, and can be removed.
        volume.streams().drop_aside(fd, None).unwrap();
        let found = of(&volume, fd).unwrap().unwrap();
        assert_eq!((found.tag(), found.data()), (ReparseTag::NFS, &[][..]));
        assert_eq!(attributes::facts(fd).unwrap().reparse_tag, ReparseTag::NFS.0);
        remove(permit, fd).unwrap();
        assert_eq!(of(&volume, fd), Ok(None));
    }

    /// Of a name that comes into a folder and the folder that becomes a link, one is refused, in
    /// whichever way the name comes.
    #[test]
    fn nothing_is_below_a_folder_that_became_a_link() {
        use crate::fs::path::RelPath;

        let root = tempfile::tempdir().unwrap();
        let volume = Volume::open(root.path()).unwrap();
        let permit = volume.permit(Access::ALL).unwrap();
        let link = ReparsePoint { tag: ReparseTag::SYMLINK, guid: None, data: &[0; 12] };
        let (mut linked, mut entered) = (0, 0);
        for round in 0..400 {
            let (folder, other) = (format!("folder-{round}"), format!("other-{round}"));
            std::fs::create_dir(root.path().join(&folder)).unwrap();
            let file = std::fs::File::create(root.path().join(&other)).unwrap();
            let stat = rustix::fs::fstat(&file).unwrap();
            let at = OwnedFd::from(std::fs::File::open(root.path().join(&folder)).unwrap());
            let path = |name: &str| RelPath::from_system(std::path::Path::new(name));
            let (from, into) = (path(&other), path(&folder).child("in"));
            let barrier = std::sync::Barrier::new(2);
            let (set, came) = std::thread::scope(|scope| {
                let sets = scope.spawn(|| {
                    barrier.wait();
                    keep_on_folder(permit, &at, &link).is_ok()
                });
                barrier.wait();
                let came = match round % 4 {
                    0 => permit.create_file(at.as_fd(), "in").map(drop),
                    1 => permit.create_folder(at.as_fd(), "in", |_| Ok::<_, ()>(())).map(drop),
                    2 => permit.link(file.as_fd(), &into, None),
                    _ => permit.rename((&from, &stat), &into, None),
                };
                let set = sets.join().unwrap();
                if let (true, Err(error)) = (set, came) {
                    // As one that came later would be.
                    assert_eq!(volume.refusal(&into, error), NtStatus::STOPPED_ON_SYMLINK);
                }
                (set, came.is_ok())
            });
            assert!(!(set && came), "round {round}");
            assert_eq!(of(&volume, at.as_fd()).unwrap().is_some(), set);
            assert_eq!(listing::is_empty(&at).unwrap(), !came);
            (linked, entered) = (linked + u32::from(set), entered + u32::from(came));
        }
        assert!(linked > 0 && entered > 0, "both were tried: {linked}, {entered}");
    }
}

//! What is remembered of a persistent open, and its bytes.
//!
//! ```text
//!  'o' id   OpenRecord     written when it is made, renamed or marked to be deleted
//!  'l' id   LocksRecord    its byte-range locks and their sequence numbers
//!  'c' id   CachingRecord  what its client may cache
//!  'a' id   AwayRecord     since when its client is away
//!  'n' id   NextRecord     what its file is about to be called: there before it is renamed
//! ```
//!
//! Each begins with a version byte, which is 2 for the open of a named stream and else 1. Numbers are
//! little-endian, in keys big-endian. A record of another version, or one that is malformed, is
//! refused as a whole.

use state_store::{Batch, Records};

use crate::sharing::caching::CachingRecord;

const VERSION: u8 = 1;
/// Of the record of an open that has a stream at its end.
const WITH_STREAM: u8 = 2;

/// A record cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a record of an open is malformed: {0}")]
pub struct Malformed(pub &'static str);

/// Which record of an open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The open itself.
    Open,
    /// Its locks.
    Locks,
    /// What its client may cache.
    Caching,
    /// Since when its client is away.
    Away,
    /// What its file is about to be called.
    Next,
}

/// The key of a record of the open `id`.
pub fn key(kind: Kind, id: u64) -> Vec<u8> {
    let letter = match kind {
        Kind::Open => b'o',
        Kind::Locks => b'l',
        Kind::Caching => b'c',
        Kind::Away => b'a',
        Kind::Next => b'n',
    };
    let mut key = vec![letter];
    key.extend_from_slice(&id.to_be_bytes());
    key
}

/// Forgets an open with all its records.
pub fn forget(id: u64) -> Batch {
    [Kind::Open, Kind::Locks, Kind::Caching, Kind::Away, Kind::Next]
        .into_iter()
        .fold(Batch::new(), |batch, kind| batch.delete(key(kind, id)))
}

/// A file as it is known again after a restart: an inode number can be given to another file, a
/// number with the time of birth is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FileIdentity {
    /// Inode.
    pub inode: u64,
    /// When it was made: seconds and nanoseconds; zeros where the file system does not say.
    pub born: (i64, u32),
}

/// A named stream of the file that is open.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StreamRecord {
    /// Its name, without colons.
    pub name: String,
    /// Which file held its content.
    pub file: FileIdentity,
}

/// What the client of an open was promised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Promise {
    /// It outlives its connection as long as its handle is cached; a server that ended in an
    /// orderly way has handed it over.
    Durable,
    /// It outlives its connection; handed over likewise.
    Resilient,
    /// It outlives the server.
    #[default]
    Persistent,
}

/// An open that outlives its server (MS-SMB2 3.3.1.10).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OpenRecord {
    /// Its persistent name.
    pub id: u64,
    /// Its volatile name.
    pub volatile: u64,
    /// `CreateGuid`, if there is one.
    pub create_guid: Option<[u8; 16]>,
    /// `ClientGuid` of the connection.
    pub client: [u8; 16],
    /// The user, folded: `DurableOwner`.
    pub user: String,
    /// Share name, folded.
    pub share: String,
    /// Name in the share, as asked for.
    pub name: String,
    /// Where the file is below the share's folder, as the disk has it.
    pub path: String,
    /// Which file was there.
    pub file: FileIdentity,
    /// `GrantedAccess`.
    pub access: u32,
    /// `DesiredAccess`.
    pub desired_access: u32,
    /// `ShareAccess`.
    pub share_access: u32,
    /// `CreateOptions`.
    pub options: u32,
    /// What the create did.
    pub action: u32,
    /// How long it is kept when its client is away, in milliseconds.
    pub timeout: u32,
    /// What its client was promised.
    pub promise: Promise,
    /// The file is to be deleted when this open is closed.
    pub delete_on_close: bool,
    /// The file is to be deleted when all are closed.
    pub delete_pending: bool,
    /// `Lease.LeaseKey`.
    pub lease: Option<[u8; 16]>,
    /// The lease on the folder that the client says it has.
    pub parent_lease: Option<[u8; 16]>,
    /// `AppInstanceId`.
    pub app_instance: Option<[u8; 16]>,
    /// `AppInstanceVersion`.
    pub app_version: Option<(u64, u64)>,
    /// The stream, if it is a named one that is open; `file` is the file it belongs to.
    pub stream: Option<StreamRecord>,
}

/// A byte-range lock as it is remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lock {
    /// First byte.
    pub offset: u64,
    /// Number of bytes.
    pub length: u64,
    /// Nobody else may have it.
    pub exclusive: bool,
}

/// Locks of an open with `LockSequenceArray`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LocksRecord {
    /// The locks, in the order they were taken.
    pub locks: Vec<Lock>,
    /// Sequence numbers by index; 255 is none.
    pub sequences: Option<[u8; 64]>,
}

/// Since when the client of an open is away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AwayRecord {
    /// Milliseconds since 1970.
    pub since: u64,
}

/// What the file of an open is about to be called: a server that ends in between finds it there.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NextRecord {
    /// Path in the share, its parts joined by `/`.
    pub path: String,
}

struct Out(Vec<u8>);

impl Out {
    fn new() -> Self {
        Self(vec![VERSION])
    }

    fn put(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn flag(self, flag: bool) -> Self {
        self.put(&[flag.into()])
    }

    fn identity(self, file: FileIdentity) -> Self {
        self.put(&file.inode.to_le_bytes())
            .put(&file.born.0.to_le_bytes())
            .put(&file.born.1.to_le_bytes())
    }

    fn text(self, text: &str) -> Self {
        // Longer than any name there is would be a defect; it does not become another name.
        let len = u32::try_from(text.len()).unwrap_or(u32::MAX);
        self.put(&len.to_le_bytes()).put(text.as_bytes())
    }

    fn option(self, bytes: Option<&[u8]>) -> Self {
        match bytes {
            Some(bytes) => self.flag(true).put(bytes),
            None => self.flag(false),
        }
    }
}

struct In<'a>(&'a [u8]);

impl<'a> In<'a> {
    fn new(bytes: &'a [u8]) -> Result<Self, Malformed> {
        match bytes {
            [VERSION, rest @ ..] => Ok(Self(rest)),
            _ => Err(Malformed("version")),
        }
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let (head, rest) = self.0.split_at_checked(len).ok_or(Malformed("too short"))?;
        self.0 = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (head, rest) = self.0.split_first_chunk().ok_or(Malformed("too short"))?;
        self.0 = rest;
        Ok(*head)
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_le_bytes)
    }

    fn flag(&mut self) -> Result<bool, Malformed> {
        match self.array()? {
            [0] => Ok(false),
            [1] => Ok(true),
            _ => Err(Malformed("a flag")),
        }
    }

    fn identity(&mut self) -> Result<FileIdentity, Malformed> {
        let inode = self.u64()?;
        Ok(FileIdentity { inode, born: (self.array().map(i64::from_le_bytes)?, self.u32()?) })
    }

    fn text(&mut self) -> Result<String, Malformed> {
        let len = self.u32()? as usize;
        let text = std::str::from_utf8(self.take(len)?).map_err(|_| Malformed("a name"))?;
        Ok(text.to_owned())
    }

    fn option<T>(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<T, Malformed>,
    ) -> Result<Option<T>, Malformed> {
        if self.flag()? { read(self).map(Some) } else { Ok(None) }
    }

    fn end<T>(self, value: T) -> Result<T, Malformed> {
        if self.0.is_empty() { Ok(value) } else { Err(Malformed("too long")) }
    }
}

impl OpenRecord {
    /// The bytes that are kept in the state store.
    pub fn to_bytes(&self) -> Vec<u8> {
        let version = self.app_version.map(|(high, low)| {
            let mut bytes = high.to_le_bytes().to_vec();
            bytes.extend_from_slice(&low.to_le_bytes());
            bytes
        });
        let begin = if self.stream.is_some() { Out(vec![WITH_STREAM]) } else { Out::new() };
        let out = begin
            .put(&self.id.to_le_bytes())
            .put(&self.volatile.to_le_bytes())
            .option(self.create_guid.as_ref().map(|guid| &guid[..]))
            .put(&self.client)
            .text(&self.user)
            .text(&self.share)
            .text(&self.name)
            .text(&self.path);
        let out = out
            .identity(self.file)
            .put(&self.access.to_le_bytes())
            .put(&self.desired_access.to_le_bytes())
            .put(&self.share_access.to_le_bytes())
            .put(&self.options.to_le_bytes())
            .put(&self.action.to_le_bytes())
            .put(&self.timeout.to_le_bytes())
            .put(&[match self.promise {
                Promise::Durable => 1,
                Promise::Resilient => 2,
                Promise::Persistent => 3,
            }])
            .flag(self.delete_on_close)
            .flag(self.delete_pending)
            .option(self.lease.as_ref().map(|key| &key[..]))
            .option(self.parent_lease.as_ref().map(|key| &key[..]))
            .option(self.app_instance.as_ref().map(|id| &id[..]))
            .option(version.as_deref());
        match &self.stream {
            Some(stream) => out.text(&stream.name).identity(stream.file).0,
            None => out.0,
        }
    }

    /// Reads its bytes.
    ///
    /// # Errors
    /// If they are not of this version, or malformed.
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let (mut r, streams) = match bytes {
            [WITH_STREAM, rest @ ..] => (In(rest), true),
            _ => (In::new(bytes)?, false),
        };
        let record = Self {
            id: r.u64()?,
            volatile: r.u64()?,
            create_guid: r.option(In::array)?,
            client: r.array()?,
            user: r.text()?,
            share: r.text()?,
            name: r.text()?,
            path: r.text()?,
            file: r.identity()?,
            access: r.u32()?,
            desired_access: r.u32()?,
            share_access: r.u32()?,
            options: r.u32()?,
            action: r.u32()?,
            timeout: r.u32()?,
            promise: match r.array()? {
                [1] => Promise::Durable,
                [2] => Promise::Resilient,
                [3] => Promise::Persistent,
                _ => return Err(Malformed("the promise")),
            },
            delete_on_close: r.flag()?,
            delete_pending: r.flag()?,
            lease: r.option(In::array)?,
            parent_lease: r.option(In::array)?,
            app_instance: r.option(In::array)?,
            app_version: r.option(|r| Ok((r.u64()?, r.u64()?)))?,
            stream: match streams {
                true => Some(StreamRecord { name: r.text()?, file: r.identity()? }),
                false => None,
            },
        };
        r.end(record)
    }
}

impl LocksRecord {
    /// The bytes that are kept in the state store.
    pub fn to_bytes(&self) -> Vec<u8> {
        let out = Out::new().option(self.sequences.as_ref().map(|numbers| &numbers[..]));
        let one = |out: Out, lock: &Lock| {
            out.put(&lock.offset.to_le_bytes()).put(&lock.length.to_le_bytes()).flag(lock.exclusive)
        };
        self.locks.iter().fold(out, one).0
    }

    /// Reads its bytes.
    ///
    /// # Errors
    /// If they are not of this version, or malformed.
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut r = In::new(bytes)?;
        let sequences = r.option(In::array)?;
        let mut locks = Vec::new();
        while !r.0.is_empty() {
            locks.push(Lock { offset: r.u64()?, length: r.u64()?, exclusive: r.flag()? });
        }
        Ok(Self { locks, sequences })
    }
}

impl CachingRecord {
    /// The bytes that are kept in the state store.
    pub fn to_bytes(&self) -> Vec<u8> {
        let out = Out::new().put(&self.state.to_le_bytes());
        let Some((parent, epoch)) = &self.v2 else { return out.flag(false).0 };
        out.flag(true).put(&epoch.to_le_bytes()).option(parent.as_ref().map(|key| &key[..])).0
    }

    /// Reads its bytes.
    ///
    /// # Errors
    /// If they are not of this version, or malformed.
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut r = In::new(bytes)?;
        let state = r.u32()?;
        let v2 = r.option(|r| {
            let epoch = r.array().map(u16::from_le_bytes)?;
            Ok((r.option(In::array)?, epoch))
        })?;
        r.end(Self { state, v2 })
    }
}

impl NextRecord {
    /// The bytes that are kept in the state store.
    pub fn to_bytes(&self) -> Vec<u8> {
        Out::new().text(&self.path).0
    }

    /// Reads its bytes.
    ///
    /// # Errors
    /// If they are not of this version, or malformed.
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut r = In::new(bytes)?;
        let path = r.text()?;
        r.end(Self { path })
    }
}

impl AwayRecord {
    /// The bytes that are kept in the state store.
    pub fn to_bytes(&self) -> Vec<u8> {
        Out::new().put(&self.since.to_le_bytes()).0
    }

    /// Reads its bytes.
    ///
    /// # Errors
    /// If they are not of this version, or malformed.
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut r = In::new(bytes)?;
        let since = r.u64()?;
        r.end(Self { since })
    }
}

/// An open with all its records.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Remembered {
    /// The open.
    pub open: OpenRecord,
    /// Its locks.
    pub locks: LocksRecord,
    /// What its client may cache.
    pub caching: Option<CachingRecord>,
    /// Since when its client is away.
    pub away: Option<AwayRecord>,
    /// What its file was about to be called.
    pub next: Option<NextRecord>,
}

/// All opens in the order of their names, and the names of those whose records cannot be read.
pub fn opens(records: &Records) -> (Vec<Remembered>, Vec<(u64, Malformed)>) {
    let (mut opens, mut bad) = (Vec::new(), Vec::new());
    for (name, value) in records {
        let Some(id) = name.strip_prefix(b"o").and_then(|id| id.try_into().ok()) else { continue };
        let id = u64::from_be_bytes(id);
        let get = |kind| records.get(&key(kind, id));
        let read = || {
            let open = OpenRecord::parse(value)?;
            if open.id != id {
                return Err(Malformed("another open's"));
            }
            Ok(Remembered {
                open,
                locks: get(Kind::Locks)
                    .map(|bytes| LocksRecord::parse(bytes))
                    .transpose()?
                    .unwrap_or_default(),
                caching: get(Kind::Caching).map(|b| CachingRecord::parse(b)).transpose()?,
                away: get(Kind::Away).map(|b| AwayRecord::parse(b)).transpose()?,
                next: get(Kind::Next).map(|b| NextRecord::parse(b)).transpose()?,
            })
        };
        match read() {
            Ok(remembered) => opens.push(remembered),
            Err(why) => bad.push((id, why)),
        }
    }
    (opens, bad)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn open_record() -> impl Strategy<Value = OpenRecord> {
        let guid = any::<[u8; 16]>;
        let option = || prop::option::of(guid());
        (
            any::<(u64, u64, [u32; 6], [bool; 2], u8)>(),
            (guid(), guid(), ".{0,9}", ".{0,9}", ".{0,20}", ".{0,20}"),
            any::<(u64, i64, u32)>(),
            (option(), option(), option(), any::<Option<(u64, u64)>>()),
            prop::option::of((".{0,9}", any::<(u64, i64, u32)>())),
        )
            .prop_map(|(plain, names, file, options, stream)| OpenRecord {
                id: plain.0,
                volatile: plain.1,
                access: plain.2[0],
                desired_access: plain.2[1],
                share_access: plain.2[2],
                options: plain.2[3],
                action: plain.2[4],
                timeout: plain.2[5],
                delete_on_close: plain.3[0],
                delete_pending: plain.3[1],
                promise: [Promise::Durable, Promise::Resilient, Promise::Persistent]
                    [usize::from(plain.4) % 3],
                create_guid: (plain.4 > 9).then_some(names.0),
                client: names.1,
                user: names.2,
                share: names.3,
                name: names.4,
                path: names.5,
                file: FileIdentity { inode: file.0, born: (file.1, file.2) },
                lease: options.0,
                parent_lease: options.1,
                app_instance: options.2,
                app_version: options.3,
                stream: stream.map(|(name, file)| StreamRecord {
                    name,
                    file: FileIdentity { inode: file.0, born: (file.1, file.2) },
                }),
            })
    }

    fn remembered() -> impl Strategy<Value = Remembered> {
        let lock = any::<(u64, u64, bool)>().prop_map(|(offset, length, exclusive)| Lock {
            offset,
            length,
            exclusive,
        });
        let sequences = any::<Option<[[u8; 32]; 2]>>()
            .prop_map(|s| s.map(|s| std::array::from_fn(|i| s[i / 32][i % 32])));
        let caching = any::<(u32, Option<(Option<[u8; 16]>, u16)>)>()
            .prop_map(|(state, v2)| CachingRecord { state, v2 });
        let away = any::<u64>().prop_map(|since| AwayRecord { since });
        (
            open_record(),
            prop::collection::vec(lock, 0..5),
            sequences,
            prop::option::of(caching),
            prop::option::of(away),
            any::<Option<String>>(),
        )
            .prop_map(|(open, locks, sequences, caching, away, next)| Remembered {
                open,
                locks: LocksRecord { locks, sequences },
                caching,
                away,
                next: next.map(|path| NextRecord { path }),
            })
    }

    fn batch(all: &[Remembered]) -> Batch {
        all.iter().fold(Batch::new(), |batch, one| {
            let id = one.open.id;
            let mut batch = batch
                .put(key(Kind::Open, id), one.open.to_bytes())
                .put(key(Kind::Locks, id), one.locks.to_bytes());
            if let Some(caching) = &one.caching {
                batch = batch.put(key(Kind::Caching, id), caching.to_bytes());
            }
            if let Some(next) = &one.next {
                batch = batch.put(key(Kind::Next, id), next.to_bytes());
            }
            match &one.away {
                Some(away) => batch.put(key(Kind::Away, id), away.to_bytes()),
                None => batch,
            }
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        /// Opens come out of the records as they went in, and are gone when they are forgotten.
        #[test]
        fn opens_are_remembered(mut all in prop::collection::vec(remembered(), 0..5)) {
            all.sort_by_key(|one| one.open.id);
            all.dedup_by_key(|one| one.open.id);
            let mut records = Records::new();
            batch(&all).apply(&mut records);
            prop_assert_eq!(opens(&records), (all.clone(), Vec::new()));
            for one in &all {
                forget(one.open.id).apply(&mut records);
            }
            prop_assert!(records.is_empty());
        }

        /// Any bytes are read or refused; a record that is cut or longer is refused, and what is
        /// read is written the same.
        #[test]
        fn records_are_total(
            one in remembered(),
            noise in prop::collection::vec(any::<u8>(), 0..200),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        ) {
            let whole = one.open.to_bytes();
            for len in 0..whole.len() {
                prop_assert!(OpenRecord::parse(&whole[..len]).is_err());
            }
            let mut long = whole.clone();
            long.push(0);
            prop_assert!(OpenRecord::parse(&long).is_err());
            for mut bytes in [whole, one.locks.to_bytes(), noise] {
                for (at, value) in &changes {
                    if !bytes.is_empty() {
                        let at = at.index(bytes.len());
                        bytes[at] = *value;
                    }
                }
                if let Ok(read) = OpenRecord::parse(&bytes) { prop_assert_eq!(read.to_bytes(), &bytes[..]); }
                if let Ok(read) = LocksRecord::parse(&bytes) { prop_assert_eq!(read.to_bytes(), &bytes[..]); }
                if let Ok(read) = CachingRecord::parse(&bytes) { prop_assert_eq!(read.to_bytes(), &bytes[..]); }
                if let Ok(read) = AwayRecord::parse(&bytes) { prop_assert_eq!(read.to_bytes(), &bytes[..]); }
            }
        }
    }
}

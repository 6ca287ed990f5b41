//! The bytes of a store's file.
//!
//! ```text
//!  header (4096)  magic  version  salt  capacity = length of the file  crc
//!  frame          seq u64  len u32  payload crc u32  header crc u32  0 u32  payload, to 8 bytes
//!  frame 1 is all there was when the file was made; each later one is one or more commits
//!  zeros          up to the capacity
//!
//!  payload        of these any number:
//!                 1 len u8 key  len u32 value     sets a record
//!                 2 len u8 key                    takes it away
//!                 3 18 u8  revision u64  node u16  epoch u64     whose commit the ones behind are of
//!                 4 10 u8  node u16  epoch u64    the epoch of a node
//! ```
//!
//! Version 1 of the format had neither commits nor epochs; its records are of nobody's commit 0.
//! All numbers are little-endian. The file has its whole length from the start, so a shorter one
//! was cut; a frame's checksums hold the file's salt, so nothing older than the file passes for a
//! frame of it. The last frame may be torn by a crash, and is as if it had not been written; one
//! that is wrong while a later one is right means damage, and the file is refused.

use std::collections::BTreeMap;

use crate::{Batch, Entry, MAX_KEY, MAX_VALUE, Owner, Revision};

/// Bytes before the first frame.
pub const HEADER: usize = 4096;
/// Bytes before a frame's payload.
pub const FRAME: usize = 24;
/// Longest file.
pub const MOST: u64 = 1 << 30;
const MAGIC: &[u8; 8] = b"BHSTATE\0";
const VERSION: u32 = 2;
/// Without commits and epochs.
const PLAIN: u32 = 1;
const PUT: u8 = 1;
const DELETE: u8 = 2;
const STAMP: u8 = 3;
const EPOCH: u8 = 4;

/// What a file holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Content {
    /// The records by key.
    pub entries: BTreeMap<Vec<u8>, Entry>,
    /// The epoch of each node that has one.
    pub epochs: BTreeMap<u16, u64>,
    /// The last commit.
    pub revision: Revision,
}

impl Content {
    /// Makes the changes of a batch that is committed.
    pub fn apply(&mut self, batch: &Batch, owner: Owner, revision: Revision) {
        self.revision = revision;
        for (key, value) in batch.changes() {
            match value {
                Some(value) => {
                    let entry = Entry { value: value.clone(), owner, revision };
                    drop(self.entries.insert(key.clone(), entry));
                }
                None => drop(self.entries.remove(key)),
            }
        }
    }

    /// The greatest epoch that any node has.
    pub fn last_epoch(&self) -> u64 {
        self.epochs.values().copied().max().unwrap_or(0)
    }
}

/// What is wrong with a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// It begins with something else.
    #[error("not a state store")]
    NotAStore,
    /// Another version wrote it.
    #[error("written by version {0} of the format, which this server does not know")]
    Version(u32),
    /// It was cut or lengthened.
    #[error("{found} bytes long where {expected} were written")]
    Length {
        /// The length it was made with.
        expected: u64,
        /// The length it has.
        found: u64,
    },
    /// Bytes changed.
    #[error("damaged at byte {0}")]
    At(u64),
}

/// Where the next frame goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor {
    salt: u64,
    capacity: u64,
    /// Offset of the next frame.
    pub end: u64,
    seq: u64,
}

/// A file that was read.
#[derive(Debug, PartialEq, Eq)]
pub struct Read {
    /// What is in it.
    pub content: Content,
    /// It is of an older version, and a new file must take its place before anything is added.
    pub old: bool,
    /// Where it goes on.
    pub cursor: Cursor,
    /// Bytes behind the last frame that a torn write has left, up to this offset.
    pub torn_to: u64,
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|b| u32::from_le_bytes(*b))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|b| u64::from_le_bytes(*b))
}

fn header(version: u32, salt: u64, capacity: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER);
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&version.to_le_bytes());
    out.extend_from_slice(&salt.to_le_bytes());
    out.extend_from_slice(&capacity.to_le_bytes());
    let crc = crc32c::crc32c(&out);
    out.extend_from_slice(&crc.to_le_bytes());
    out.resize(HEADER, 0);
    out
}

/// Bytes that a payload takes with its frame.
pub fn framed(payload: usize) -> u64 {
    (FRAME + payload).next_multiple_of(8) as u64
}

/// Appends a commit as it stands in a payload.
pub fn encode(batch: &Batch, owner: Owner, revision: Revision, out: &mut Vec<u8>) {
    stamp(owner, revision, out);
    for (key, value) in batch.changes() {
        put(key, value.as_deref(), out);
    }
}

/// Appends the epoch of a node.
pub fn encode_epoch(owner: Owner, out: &mut Vec<u8>) {
    out.extend_from_slice(&[EPOCH, 10]);
    out.extend_from_slice(&owner.node.to_le_bytes());
    out.extend_from_slice(&owner.epoch.to_le_bytes());
}

fn stamp(owner: Owner, revision: Revision, out: &mut Vec<u8>) {
    out.extend_from_slice(&[STAMP, 18]);
    out.extend_from_slice(&revision.0.to_le_bytes());
    out.extend_from_slice(&owner.node.to_le_bytes());
    out.extend_from_slice(&owner.epoch.to_le_bytes());
}

fn put(key: &[u8], value: Option<&[u8]>, out: &mut Vec<u8>) {
    out.push(if value.is_some() { PUT } else { DELETE });
    // The batch was checked: keys are short, values too.
    out.push(key.len() as u8);
    out.extend_from_slice(key);
    if let Some(value) = value {
        out.extend_from_slice(&(value.len() as u32).to_le_bytes());
        out.extend_from_slice(value);
    }
}

fn owner_at(bytes: &[u8], at: usize) -> Option<Owner> {
    let node = bytes.get(at..)?.first_chunk().map(|b| u16::from_le_bytes(*b))?;
    Some(Owner { node, epoch: u64_at(bytes, at + 2)? })
}

/// Makes the changes of a payload; `None` if it is malformed.
fn carry_out(mut payload: &[u8], stamps: bool, content: &mut Content) -> Option<()> {
    let take = |payload: &mut &[u8], len: usize| {
        let (head, rest) = payload.split_at_checked(len)?;
        *payload = rest;
        Some(head.to_vec())
    };
    let (mut owner, mut revision) = (Owner::default(), Revision(0));
    while let [op, len, rest @ ..] = payload {
        payload = rest;
        let key = take(&mut payload, (*len).into()).filter(|key| !key.is_empty())?;
        match *op {
            PUT => {
                let len = take(&mut payload, 4).and_then(|b| u32_at(&b, 0))? as usize;
                let value = Some(len).filter(|len| *len <= MAX_VALUE);
                let value = take(&mut payload, value?)?;
                content.entries.insert(key, Entry { value, owner, revision });
            }
            DELETE => drop(content.entries.remove(&key)),
            STAMP if stamps && key.len() == 18 => {
                (revision, owner) = (Revision(u64_at(&key, 0)?), owner_at(&key, 8)?);
                content.revision = content.revision.max(revision);
            }
            EPOCH if stamps && key.len() == 10 => {
                let Owner { node, epoch } = owner_at(&key, 0)?;
                content.epochs.insert(node, epoch);
            }
            _ => return None,
        }
    }
    payload.is_empty().then_some(())
}

impl Cursor {
    /// A new file with this content; `salt` is like that of no other file. Gives its bytes up to
    /// the end of what is not zero, and where it goes on.
    pub fn begin(content: &Content, salt: u64, least: u64) -> (Vec<u8>, Self) {
        let mut payload = Vec::new();
        for (node, epoch) in &content.epochs {
            encode_epoch(Owner { node: *node, epoch: *epoch }, &mut payload);
        }
        // The last commit, whose changes may all be gone.
        stamp(Owner::default(), content.revision, &mut payload);
        let mut last = (Owner::default(), content.revision);
        for (key, entry) in &content.entries {
            if (entry.owner, entry.revision) != last {
                last = (entry.owner, entry.revision);
                stamp(entry.owner, entry.revision, &mut payload);
            }
            put(key, Some(&entry.value), &mut payload);
        }
        let wanted = HEADER as u64 + 4 * framed(payload.len());
        let capacity = wanted.next_power_of_two().max(least);
        let mut cursor = Self { salt, capacity, end: HEADER as u64, seq: 1 };
        let mut bytes = header(VERSION, salt, capacity);
        bytes.extend_from_slice(&cursor.frame(&payload));
        (bytes, cursor)
    }

    /// Length of the file.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Bytes that are left for frames.
    pub fn room(&self) -> u64 {
        self.capacity - self.end
    }

    fn header_crc(&self, seq: u64, len: u32, payload: u32) -> u32 {
        let mut crc = crc32c::crc32c(&self.salt.to_le_bytes());
        crc = crc32c::crc32c_append(crc, &seq.to_le_bytes());
        crc = crc32c::crc32c_append(crc, &len.to_le_bytes());
        crc32c::crc32c_append(crc, &payload.to_le_bytes())
    }

    /// The next frame, which belongs at [`Cursor::end`] of before; there must be room for it.
    pub fn frame(&mut self, payload: &[u8]) -> Vec<u8> {
        let (len, crc) = (payload.len() as u32, crc32c::crc32c(payload));
        let mut out = Vec::with_capacity(payload.len() + FRAME + 8);
        out.extend_from_slice(&self.seq.to_le_bytes());
        out.extend_from_slice(&len.to_le_bytes());
        out.extend_from_slice(&crc.to_le_bytes());
        out.extend_from_slice(&self.header_crc(self.seq, len, crc).to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(payload);
        out.resize(out.len().next_multiple_of(8), 0);
        self.seq += 1;
        self.end += out.len() as u64;
        out
    }

    /// Number and payload range of the frame that begins at `at`, as far as its header goes.
    fn head(&self, file: &[u8], at: usize) -> Option<(u64, std::ops::Range<usize>, u32)> {
        let (seq, len) = (u64_at(file, at)?, u32_at(file, at + 8)?);
        let (crc, head) = (u32_at(file, at + 12)?, u32_at(file, at + 16)?);
        let start = at + FRAME;
        let right = seq > 0 && u32_at(file, at + 20) == Some(0);
        let fits = start.checked_add(len as usize).is_some_and(|end| end <= file.len());
        (right && fits && head == self.header_crc(seq, len, crc))
            .then(|| (seq, start..start + len as usize, crc))
    }
}

/// Reads a whole file.
///
/// # Errors
/// [`Damage`] if it is not what was written, but for a last frame that was torn.
pub fn read(file: &[u8]) -> Result<Read, Damage> {
    if file.get(..8) != Some(MAGIC) {
        return Err(Damage::NotAStore);
    }
    let found = file.len() as u64;
    let short = Damage::Length { expected: HEADER as u64, found };
    let version = u32_at(file, 8).ok_or(short)?;
    if !(PLAIN..=VERSION).contains(&version) {
        return Err(Damage::Version(version));
    }
    let (salt, capacity) = (u64_at(file, 12).ok_or(short)?, u64_at(file, 20).ok_or(short)?);
    if u32_at(file, 28).ok_or(short)? != crc32c::crc32c(&file[..28]) {
        return Err(Damage::At(0));
    }
    if capacity != found || capacity > MOST || found < (HEADER + FRAME) as u64 {
        return Err(Damage::Length { expected: capacity, found });
    }
    if let Some(at) = file[32..HEADER].iter().position(|byte| *byte != 0) {
        return Err(Damage::At(32 + at as u64));
    }
    let mut cursor = Cursor { salt, capacity, end: HEADER as u64, seq: 1 };
    let mut content = Content::default();
    let mut at = HEADER;
    while let Some((seq, payload, crc)) = cursor.head(file, at) {
        let padded = payload.end.next_multiple_of(8).min(file.len());
        let clean = file[payload.end..padded].iter().all(|byte| *byte == 0);
        let bytes = &file[payload];
        if seq != cursor.seq || !clean || crc32c::crc32c(bytes) != crc {
            break;
        }
        // The checksum is right, so this is what was written.
        carry_out(bytes, version > PLAIN, &mut content).ok_or(Damage::At(at as u64))?;
        at = padded;
        cursor.seq += 1;
        cursor.end = at as u64;
    }
    // The first frame was there before the file had its name.
    if cursor.seq == 1 {
        return Err(Damage::At(HEADER as u64));
    }
    let later = (at + 8..file.len()).step_by(8).any(|q| cursor.head(file, q).is_some());
    if later {
        return Err(Damage::At(at as u64));
    }
    let torn = file[at..].iter().rposition(|byte| *byte != 0).map_or(at, |last| at + last + 1);
    Ok(Read { content, old: version < VERSION, cursor, torn_to: torn as u64 })
}

const _: () = assert!(MAX_KEY <= u8::MAX as usize && MAX_VALUE <= u32::MAX as usize);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Files as they stood after each commit, with what was in them then.
    fn history(batches: &[Batch]) -> Vec<(Vec<u8>, Content)> {
        let mut records = Content::default();
        let first = Batch::new().put(b"first".to_vec(), vec![1; 40]);
        records.apply(&first, Owner { node: 3, epoch: 7 }, Revision(40));
        records.epochs.insert(3, 7);
        let (mut file, mut cursor) = Cursor::begin(&records, 0x1234_5678_9abc_def0, 8192);
        file.resize(cursor.capacity() as usize, 0);
        let mut all = vec![(file.clone(), records.clone())];
        for batch in batches {
            let mut payload = Vec::new();
            let owner = Owner { node: 2, epoch: records.revision.0 };
            let revision = Revision(records.revision.0 + 1);
            encode_epoch(owner, &mut payload);
            encode(batch, owner, revision, &mut payload);
            if framed(payload.len()) > cursor.room() {
                break;
            }
            let at = cursor.end as usize;
            let frame = cursor.frame(&payload);
            file[at..at + frame.len()].copy_from_slice(&frame);
            records.epochs.insert(owner.node, owner.epoch);
            records.apply(batch, owner, revision);
            all.push((file.clone(), records.clone()));
        }
        all
    }

    fn batch() -> impl Strategy<Value = Batch> {
        let change = (0u8..6, prop::option::of(prop::collection::vec(any::<u8>(), 0..300)));
        prop::collection::vec(change, 1..4).prop_map(|changes| {
            changes.into_iter().fold(Batch::new(), |batch, (key, value)| match value {
                Some(value) => batch.put(vec![b'k', key], value),
                None => batch.delete(vec![b'k', key]),
            })
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]

        /// What was committed is read back, and the file goes on where it ended.
        #[test]
        fn what_is_written_is_read(batches in prop::collection::vec(batch(), 0..12)) {
            for (file, records) in history(&batches) {
                let read = read(&file).unwrap();
                prop_assert_eq!(&read.content, &records);
                prop_assert_eq!(read.torn_to, read.cursor.end);
            }
        }

        /// A crash while the last frame is written leaves any part of it on the disk: the records
        /// are those of before or after, and what is torn is found.
        #[test]
        fn a_torn_write_never_happened(
            batches in prop::collection::vec(batch(), 1..8),
            kept in any::<[bool; 64]>(),
            sector in prop::sample::select(vec![8usize, 64, 512]),
        ) {
            let all = history(&batches);
            let [.., (before, old), (after, new)] = &all[..] else { return Ok(()) };
            let mut file = before.clone();
            let start = read(before).unwrap().cursor.end as usize / sector * sector;
            for (index, at) in (start..file.len()).step_by(sector).enumerate() {
                if kept[index % 64] {
                    file[at..at + sector].copy_from_slice(&after[at..at + sector]);
                }
            }
            let read = read(&file).unwrap();
            prop_assert!(read.content == *old || read.content == *new);
            let tail = file[read.cursor.end as usize..].iter().any(|byte| *byte != 0);
            prop_assert_eq!(tail, read.torn_to > read.cursor.end);
        }

        /// Noise is refused.
        #[test]
        fn noise_is_no_store(mut noise in prop::collection::vec(any::<u8>(), 0..5000), head in any::<bool>()) {
            if head && noise.len() > 12 {
                noise[..8].copy_from_slice(MAGIC);
                noise[8..12].copy_from_slice(&VERSION.to_le_bytes());
            }
            prop_assert!(read(&noise).is_err());
        }
    }

    fn some() -> Vec<(Vec<u8>, Content)> {
        let batch = |n: u8| Batch::new().put(vec![n], vec![n; 70]).delete(vec![n - 1]);
        history(&[batch(1), batch(2), batch(3), batch(4)])
    }

    #[test]
    fn cut_at_any_byte_it_is_refused() {
        let all = some();
        let (file, _) = all.last().unwrap();
        for len in 0..file.len() {
            let damage = read(&file[..len]).unwrap_err();
            assert!(matches!(damage, Damage::Length { .. } | Damage::NotAStore), "{len}: {damage}");
        }
    }

    /// Any changed byte is noticed, unless it is of the last frame, which then counts as torn, or
    /// behind it.
    #[test]
    fn changed_at_any_byte_it_is_refused_or_loses_the_last_commit_only() {
        let all = some();
        let (file, records) = all.last().unwrap();
        let last = read(&all[all.len() - 2].0).unwrap().cursor.end as usize;
        let end = read(file).unwrap().cursor.end as usize;
        for at in 0..file.len() {
            let mut file = file.clone();
            file[at] ^= 0x41;
            match read(&file) {
                Err(_) => assert!(at < last, "byte {at}"),
                Ok(read) if at < end => {
                    assert!(at >= last, "byte {at}");
                    assert_eq!(read.content, all[all.len() - 2].1, "byte {at}");
                    assert!(read.torn_to > read.cursor.end);
                }
                Ok(read) => assert_eq!(&read.content, records, "byte {at}"),
            }
        }
    }

    /// Fixed bytes, so that files of older servers stay readable.
    #[test]
    fn golden_file() {
        let mut content = Content::default();
        let owner = Owner { node: 2, epoch: 5 };
        content.apply(&Batch::new().put(b"k".to_vec(), b"value".to_vec()), owner, Revision(9));
        content.epochs.insert(2, 6);
        let (file, cursor) = Cursor::begin(&content, 0x0807_0605_0403_0201, 8192);
        assert_eq!(file.len(), HEADER + 88);
        assert_eq!(
            &file[..28],
            b"BHSTATE\0\x02\0\0\0\x01\x02\x03\x04\x05\x06\x07\x08\0\x20\0\0\0\0\0\0"
        );
        let frame = &file[HEADER..];
        assert_eq!(&frame[..12], b"\x01\0\0\0\0\0\0\0\x40\0\0\0");
        let payload = [
            &b"\x04\x0a\x02\0\x06\0\0\0\0\0\0\0"[..],
            b"\x03\x12\x09\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
            b"\x03\x12\x09\0\0\0\0\0\0\0\x02\0\x05\0\0\0\0\0\0\0",
            b"\x01\x01k\x05\0\0\0value",
        ];
        assert_eq!(frame[24..24 + 64], payload.concat());
        assert_eq!((cursor.end, cursor.capacity()), (HEADER as u64 + 88, 8192));
    }

    /// The bytes of a file that version 1 of the format wrote.
    #[test]
    fn a_file_of_the_version_before_is_read() {
        let mut file = header(PLAIN, 0x0807_0605_0403_0201, 8192);
        let mut cursor =
            Cursor { salt: 0x0807_0605_0403_0201, capacity: 8192, end: HEADER as u64, seq: 1 };
        file.extend_from_slice(&cursor.frame(b"\x01\x01k\x05\0\0\0value"));
        file.extend_from_slice(&cursor.frame(b"\x01\x01j\x01\0\0\0J\x02\x01k\x01\x01l\0\0\0\0"));
        file.resize(8192, 0);
        let read = read(&file).unwrap();
        assert!(read.old);
        let entry = |value: &[u8]| Entry { value: value.to_vec(), ..Entry::default() };
        let entries = [(b"j".to_vec(), entry(b"J")), (b"l".to_vec(), entry(b""))];
        assert_eq!(read.content, Content { entries: entries.into(), ..Content::default() });
        // It knew no commits, so a file that has some is not of it.
        let mut payload = Vec::new();
        encode(&Batch::new(), Owner::default(), Revision(1), &mut payload);
        assert!(carry_out(&payload, true, &mut Content::default()).is_some());
        assert!(carry_out(&payload, false, &mut Content::default()).is_none());
    }
}

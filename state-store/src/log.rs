//! The bytes of a store's file.
//!
//! ```text
//!  header (4096)  magic  version  salt  capacity = length of the file  crc
//!  frame          seq u64  len u32  payload crc u32  header crc u32  0 u32  payload, to 8 bytes
//!  frame 1 is all there was when the file was made; each later one is one commit
//!  zeros          up to the capacity
//! ```
//!
//! All numbers are little-endian. The file has its whole length from the start, so a shorter one
//! was cut; a frame's checksums hold the file's salt, so nothing older than the file passes for a
//! frame of it. The last frame may be torn by a crash, and is as if it had not been written; one
//! that is wrong while a later one is right means damage, and the file is refused.

use crate::{Batch, MAX_KEY, MAX_VALUE, Records};

/// Bytes before the first frame.
pub const HEADER: usize = 4096;
/// Bytes before a frame's payload.
pub const FRAME: usize = 24;
/// Longest file.
pub const MOST: u64 = 1 << 30;
const MAGIC: &[u8; 8] = b"BHSTATE\0";
const VERSION: u32 = 1;
const PUT: u8 = 1;
const DELETE: u8 = 2;

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
    /// Its records.
    pub records: Records,
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

fn header(salt: u64, capacity: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER);
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
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

/// Appends the changes of a batch as they stand in a payload.
pub fn encode(batch: &Batch, out: &mut Vec<u8>) {
    for (key, value) in batch.changes() {
        put(key, value.as_deref(), out);
    }
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

/// Makes the changes of a payload; `None` if it is malformed.
fn carry_out(mut payload: &[u8], records: &mut Records) -> Option<()> {
    let take = |payload: &mut &[u8], len: usize| {
        let (head, rest) = payload.split_at_checked(len)?;
        *payload = rest;
        Some(head.to_vec())
    };
    while let [op, len, rest @ ..] = payload {
        payload = rest;
        let key = take(&mut payload, (*len).into()).filter(|key| !key.is_empty())?;
        match *op {
            PUT => {
                let len = take(&mut payload, 4).and_then(|b| u32_at(&b, 0))? as usize;
                let value = Some(len).filter(|len| *len <= MAX_VALUE);
                records.insert(key, take(&mut payload, value?)?);
            }
            DELETE => drop(records.remove(&key)),
            _ => return None,
        }
    }
    payload.is_empty().then_some(())
}

impl Cursor {
    /// A new file with these records; `salt` is like that of no other file. Gives its bytes up to
    /// the end of what is not zero, and where it goes on.
    pub fn begin(records: &Records, salt: u64, least: u64) -> (Vec<u8>, Self) {
        let mut payload = Vec::new();
        for (key, value) in records {
            put(key, Some(value), &mut payload);
        }
        let wanted = HEADER as u64 + 4 * framed(payload.len());
        let capacity = wanted.next_power_of_two().max(least);
        let mut cursor = Self { salt, capacity, end: HEADER as u64, seq: 1 };
        let mut bytes = header(salt, capacity);
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
    if version != VERSION {
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
    let mut records = Records::new();
    let mut at = HEADER;
    while let Some((seq, payload, crc)) = cursor.head(file, at) {
        let padded = payload.end.next_multiple_of(8).min(file.len());
        let clean = file[payload.end..padded].iter().all(|byte| *byte == 0);
        let bytes = &file[payload];
        if seq != cursor.seq || !clean || crc32c::crc32c(bytes) != crc {
            break;
        }
        // The checksum is right, so this is what was written.
        carry_out(bytes, &mut records).ok_or(Damage::At(at as u64))?;
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
    Ok(Read { records, cursor, torn_to: torn as u64 })
}

const _: () = assert!(MAX_KEY <= u8::MAX as usize && MAX_VALUE <= u32::MAX as usize);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Files as they stood after each commit, with the records then.
    fn history(batches: &[Batch]) -> Vec<(Vec<u8>, Records)> {
        let mut records = Records::from([(b"first".to_vec(), vec![1; 40])]);
        let (mut file, mut cursor) = Cursor::begin(&records, 0x1234_5678_9abc_def0, 8192);
        file.resize(cursor.capacity() as usize, 0);
        let mut all = vec![(file.clone(), records.clone())];
        for batch in batches {
            let mut payload = Vec::new();
            encode(batch, &mut payload);
            if framed(payload.len()) > cursor.room() {
                break;
            }
            let at = cursor.end as usize;
            let frame = cursor.frame(&payload);
            file[at..at + frame.len()].copy_from_slice(&frame);
            batch.apply(&mut records);
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
                prop_assert_eq!(&read.records, &records);
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
            prop_assert!(read.records == *old || read.records == *new);
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

    fn some() -> Vec<(Vec<u8>, Records)> {
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
                    assert_eq!(read.records, all[all.len() - 2].1, "byte {at}");
                    assert!(read.torn_to > read.cursor.end);
                }
                Ok(read) => assert_eq!(&read.records, records, "byte {at}"),
            }
        }
    }

    /// Fixed bytes, so that files of older servers stay readable.
    #[test]
    fn golden_file() {
        let records = Records::from([(b"k".to_vec(), b"value".to_vec())]);
        let (file, cursor) = Cursor::begin(&records, 0x0807_0605_0403_0201, 8192);
        assert_eq!(file.len(), HEADER + 40);
        assert_eq!(
            &file[..28],
            b"BHSTATE\0\x01\0\0\0\x01\x02\x03\x04\x05\x06\x07\x08\0\x20\0\0\0\0\0\0"
        );
        let frame = &file[HEADER..];
        assert_eq!(&frame[..12], b"\x01\0\0\0\0\0\0\0\x0c\0\0\0");
        assert_eq!(&frame[24..36], b"\x01\x01k\x05\0\0\0value");
        assert_eq!((cursor.end, cursor.capacity()), (HEADER as u64 + 40, 8192));
    }
}

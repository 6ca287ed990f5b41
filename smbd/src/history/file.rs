//! The file of the history: three rings of records, each record with its own checksum.
//!
//! ```text
//!  0        4096                                                        453,376
//!  │ heading │ 360 records of 10 s │ 1,440 of a minute │ 2,880 of 15 min │    96 bytes each
//! ```
//!
//! The file has one size for ever. A record stands where its number says, so a write that was torn, or a
//! part of the file that somebody changed, costs the records in it and no other. Nothing is synced: after
//! a loss of power the last records may be missing.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
};

use server_api::HistoryPoint;

/// What the file begins with; the rest of the heading is zero.
const MAGIC: &[u8; 16] = b"bulkhead-hist-1\n";
/// Bytes of the heading.
const HEADING: usize = 4096;
/// Bytes of a record.
const RECORD: usize = 96;
/// Numbers in a record, behind which its checksum stands.
const NUMBERS: usize = 11;

/// One of the rings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ring {
    /// Seconds that a record is about.
    pub step: u64,
    /// Records.
    pub count: u64,
}

/// The rings: an hour, a day, thirty days.
pub const RINGS: [Ring; 3] = [
    Ring { step: 10, count: 360 },
    Ring { step: 60, count: 1440 },
    Ring { step: 900, count: 2880 },
];

/// Bytes of the file.
pub const SIZE: usize = HEADING + RECORD * (360 + 1440 + 2880);

/// Where a ring begins, in records.
fn first(ring: usize) -> u64 {
    RINGS[..ring].iter().map(|it| it.count).sum()
}

/// A record: its number in its ring, from 1 on, and what it says.
type Numbered = (u64, HistoryPoint);

fn encode(ring: usize, number: u64, point: &HistoryPoint) -> [u8; RECORD] {
    let p = point;
    let small = |high: u64, low: u64| high.min(0xffff_ffff) << 32 | low.min(0xffff_ffff);
    let numbers: [u64; NUMBERS] = [
        number << 2 | ring as u64,
        p.time,
        p.reads,
        p.writes,
        p.others,
        p.received,
        p.sent,
        p.errors,
        small(p.p50_us, p.p99_us),
        small(p.sessions, p.opens),
        small(p.seconds, p.cpu_permille),
    ];
    let mut record = [0; RECORD];
    for (place, number) in record.chunks_exact_mut(8).zip(numbers) {
        place.copy_from_slice(&number.to_le_bytes());
    }
    let sum = crc32c::crc32c(&record[..NUMBERS * 8]);
    record[NUMBERS * 8..NUMBERS * 8 + 4].copy_from_slice(&sum.to_le_bytes());
    record
}

/// The record that stands at a place of a ring, if it is whole and belongs there.
fn decode(ring: usize, place: u64, record: &[u8]) -> Option<Numbered> {
    let (numbers, rest) = record.split_at_checked(NUMBERS * 8)?;
    let sum = u32::from_le_bytes(rest.get(..4)?.try_into().ok()?);
    if sum != crc32c::crc32c(numbers) {
        return None;
    }
    let mut numbers = numbers.chunks_exact(8).map(|it| it.try_into().map_or(0, u64::from_le_bytes));
    let mut next = || numbers.next().unwrap_or(0);
    let tag = next();
    let number = tag >> 2;
    if tag & 3 != ring as u64 || number == 0 || number % RINGS[ring].count != place {
        return None;
    }
    let mut point = HistoryPoint {
        time: next(),
        reads: next(),
        writes: next(),
        others: next(),
        received: next(),
        sent: next(),
        errors: next(),
        ..HistoryPoint::default()
    };
    let mut pair = || {
        let both = next();
        (both >> 32, both & 0xffff_ffff)
    };
    (point.p50_us, point.p99_us) = pair();
    (point.sessions, point.opens) = pair();
    (point.seconds, point.cpu_permille) = pair();
    Some((number, point))
}

/// The file, with all that is in it.
#[derive(Debug)]
pub struct HistoryFile {
    file: File,
    /// The records of each ring by their places.
    rings: [Vec<Option<Numbered>>; RINGS.len()],
    /// The numbers that were given last.
    last: [u64; RINGS.len()],
}

/// What stands in the bytes of a file.
fn parse(bytes: &[u8]) -> [Vec<Option<Numbered>>; RINGS.len()] {
    let record = |ring: usize, place: u64| {
        let at = HEADING + (first(ring) + place) as usize * RECORD;
        decode(ring, place, bytes.get(at..at + RECORD)?)
    };
    std::array::from_fn(|ring| (0..RINGS[ring].count).map(|place| record(ring, place)).collect())
}

impl HistoryFile {
    /// Opens the file, or makes it. What in it is not whole is taken for not there.
    ///
    /// # Errors
    /// What the system says.
    pub fn open(path: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = options.custom_flags(libc::O_NOFOLLOW).open(path)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::other(format!("{} is no file", path.display())));
        }
        file.set_len(SIZE as u64)?;
        let mut bytes = vec![0; SIZE];
        file.read_exact_at(&mut bytes, 0)?;
        if !bytes.starts_with(MAGIC) {
            file.write_all_at(MAGIC, 0)?;
        }
        let rings = parse(&bytes);
        let newest = |ring: &Vec<Option<Numbered>>| {
            ring.iter().flatten().map(|(number, _)| *number).max().unwrap_or(0)
        };
        let last = rings.each_ref().map(newest);
        Ok(Self { file, rings, last })
    }

    /// Puts a record behind the last one of a ring, in the place of the oldest.
    ///
    /// # Errors
    /// What the system says; the record is known as long as the process lives all the same.
    pub fn put(&mut self, ring: usize, point: HistoryPoint) -> io::Result<()> {
        // A number that nobody gave, of a file that was made up, may be the last that there is.
        let number = self.last[ring].checked_add(1).filter(|it| it >> 62 == 0).unwrap_or(1);
        self.last[ring] = number;
        let place = number % RINGS[ring].count;
        let record = encode(ring, number, &point);
        self.rings[ring][place as usize] = Some((number, point));
        let at = HEADING as u64 + (first(ring) + place) * RECORD as u64;
        self.file.write_all_at(&record, at)
    }

    /// The records of a ring that are of the time that it is long, up to `now` in seconds since 1970, by
    /// their times: where the clock was put back and two are of one time, the one that was written last.
    pub fn points(&self, ring: usize, now: u64) -> Vec<HistoryPoint> {
        let Ring { step, count } = RINGS[ring];
        let oldest = now.saturating_sub(step * count);
        let all = self.rings[ring].iter().flatten();
        let mut all: Vec<_> =
            all.filter(|(_, point)| point.time > oldest && point.time <= now).collect();
        all.sort_by_key(|(number, point)| (point.time, std::cmp::Reverse(*number)));
        all.dedup_by_key(|(_, point)| point.time);
        all.into_iter().map(|(_, point)| point.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;

    fn point(time: u64) -> HistoryPoint {
        HistoryPoint {
            time,
            seconds: 10,
            reads: 1,
            writes: 2,
            others: 3,
            received: u64::MAX,
            sent: 5,
            errors: 6,
            p50_us: 7,
            p99_us: 8,
            sessions: 9,
            opens: 10,
            cpu_permille: 11,
        }
    }

    fn filled(folder: &Path, count: u64) -> (std::path::PathBuf, HistoryFile) {
        let path = folder.join("history");
        let mut file = HistoryFile::open(&path).unwrap();
        (1..=count).for_each(|n| file.put(0, point(n * 10)).unwrap());
        (path, file)
    }

    #[test]
    fn the_file_has_one_size_and_the_newest_records() {
        let folder = tempfile::tempdir().unwrap();
        let (path, file) = filled(folder.path(), 1000);
        assert_eq!(fs::metadata(&path).unwrap().len(), SIZE as u64);
        let kept = file.points(0, 10_000);
        assert_eq!((kept.len(), kept[0].time, kept[359].time), (360, 6410, 10_000));
        drop(file);
        let mut again = HistoryFile::open(&path).unwrap();
        assert_eq!(again.points(0, 10_000), kept);
        again.put(0, point(10_010)).unwrap();
        assert_eq!(again.points(0, 10_010).last(), Some(&point(10_010)));
        assert_eq!(fs::metadata(&path).unwrap().len(), SIZE as u64);
        assert_eq!(again.points(1, 10_010), []);
    }

    #[test]
    fn a_clock_that_jumps_loses_nothing_that_is_of_its_time() {
        let folder = tempfile::tempdir().unwrap();
        let (_, mut file) = filled(folder.path(), 10);
        // A year ahead, and back again to a time that was there already.
        file.put(0, point(31_536_000)).unwrap();
        file.put(0, HistoryPoint { reads: 77, ..point(50) }).unwrap();
        let now = file.points(0, 100);
        assert_eq!(
            now.iter().map(|it| it.time).collect::<Vec<_>>(),
            (1..=10).map(|n| n * 10).collect::<Vec<_>>()
        );
        assert_eq!(now[4].reads, 77, "the later of two");
        assert_eq!(file.points(0, 31_536_000).len(), 1);
    }

    #[test]
    fn a_file_of_another_size_or_heading_is_made_right() {
        let folder = tempfile::tempdir().unwrap();
        let (path, file) = filled(folder.path(), 300);
        drop(file);
        let mut bytes = fs::read(&path).unwrap();
        bytes[..HEADING].fill(0xff);
        bytes.truncate(HEADING + 100 * RECORD + 50);
        fs::write(&path, &bytes).unwrap();
        let again = HistoryFile::open(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().len(), SIZE as u64);
        assert_eq!(again.points(0, 3000).len(), 99, "records 1 to 99 stand before the cut");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Whatever is done to a part of the file, only records in it are lost.
        #[test]
        fn a_change_costs_the_records_that_it_meets(at in 0usize..SIZE - 200, len in 1usize..200, byte in any::<u8>()) {
            let folder = tempfile::tempdir().unwrap();
            let (path, file) = filled(folder.path(), 360);
            let before = file.points(0, 3600);
            drop(file);
            let mut bytes = fs::read(&path).unwrap();
            bytes[at..at + len].fill(byte);
            fs::write(&path, &bytes).unwrap();
            let after = HistoryFile::open(&path).unwrap().points(0, 3600);
            let met = |time: u64| {
                let place = HEADING + (time / 10 % 360) as usize * RECORD;
                at < place + RECORD && place < at + len
            };
            let kept = |point: &&HistoryPoint| after.contains(point);
            for lost in before.iter().filter(|point| !kept(point)) {
                prop_assert!(met(lost.time));
            }
            prop_assert!(after.iter().all(|point| before.contains(point)));
        }

        /// No bytes are a record but those that were written for that place.
        #[test]
        fn any_bytes_are_read(bytes in prop::collection::vec(any::<u8>(), 0..300), ring in 0usize..3) {
            prop_assert_eq!(decode(ring, 3, &bytes), None);
            let whole = encode(ring, 3, &point(9));
            prop_assert_eq!(decode(ring, 3, &whole), Some((3, point(9))));
            prop_assert_eq!(decode(ring, 4, &whole), None);
            prop_assert_eq!(decode((ring + 1) % 3, 3, &whole), None);
        }
    }
}

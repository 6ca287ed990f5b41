//! Which clusters of an NTFS volume are free.
//!
//! ```text
//!  boot sector ─► record 0 of the master file table, $MFT ─► where the other records are
//!                   record 2, $LogFile   the log must be ended
//!                   record 3, $Volume    no flag may be set
//!                   record 6, $Bitmap    one bit for each cluster
//! ```
//!
//! The bitmap has neither checksum nor count. It is believed if the volume was ended in an orderly way
//! and if what certainly is in use (the boot sector, the files above) is so in it.

use std::ops::Range;

use block_io::Disk;

use super::{ext4::read, free::Refusal};
use crate::{Result, bytes::Fields};

/// Bytes of which the last two are replaced by a check value in records and log pages.
const STRIDE: usize = 512;
/// Bytes of the bitmap read at once.
const STEP: u64 = 1 << 20;
/// Runs of one file that are looked at; a file has some hundreds at most.
const MAX_RUNS: usize = 1 << 16;
/// Bytes of the log in which its restart pages are.
const LOG_HEAD: usize = 128 << 10;

const LOG_FILE: u64 = 2;
const VOLUME: u64 = 3;
const BITMAP: u64 = 6;

/// Attribute types.
const ATTRIBUTE_LIST: u32 = 0x20;
const VOLUME_INFORMATION: u32 = 0x70;
const DATA: u32 = 0x80;

type Outcome<T> = std::result::Result<T, Refusal>;

/// Whether the first sector of a volume is that of NTFS.
pub(super) fn is_boot_sector(sector: &[u8]) -> bool {
    sector.get(3..11) == Some(b"NTFS    ") && sector.u16(510) == 0xaa55
}

/// A boot sector that is within its rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Boot {
    /// Bytes of a cluster.
    cluster: u64,
    clusters: u64,
    /// First cluster of the master file table.
    table: u64,
    /// Bytes of one of its records.
    record: usize,
}

fn parse(bytes: &[u8], len: u64) -> Outcome<Boot> {
    let sector = u64::from(bytes.u16(11));
    let per_cluster = match bytes[13] {
        count @ 1..=128 => u64::from(count),
        // A power of two below one, as of Windows 10.
        shift @ 0xf4..=0xff => 1 << (256 - u32::from(shift)),
        _ => 0,
    };
    let cluster = sector * per_cluster;
    let clusters = bytes.u64(40).checked_div(per_cluster).unwrap_or(0);
    let record = match bytes[64] {
        count @ 1..=0x7f => u64::from(count) * cluster,
        shift @ 0xf0..=0xf7 => 1 << (256 - u32::from(shift)),
        _ => 0,
    };
    let table = bytes.u64(48);
    let fits = clusters.checked_mul(cluster).is_some_and(|bytes| bytes <= len);
    let sizes = sector.is_power_of_two()
        && (512..=4096).contains(&sector)
        && cluster.is_power_of_two()
        && (512..=2 << 20).contains(&cluster)
        && record.is_power_of_two()
        && (1024..=4096).contains(&record);
    if !sizes || !fits || table == 0 || table >= clusters {
        return Err(Refusal::Contradiction);
    }
    Ok(Boot { cluster, clusters, table, record: record as usize })
}

/// Puts back what the check values of a record or log page stand in the place of; they must all be
/// there.
fn restored(mut bytes: Vec<u8>, magic: &[u8; 4]) -> Outcome<Vec<u8>> {
    let (at, count) = (usize::from(bytes.u16(4)), usize::from(bytes.u16(6)));
    let strides = bytes.len() / STRIDE;
    if !bytes.starts_with(magic) || count != strides + 1 || at + 2 * count > STRIDE - 2 {
        return Err(Refusal::Contradiction);
    }
    let check = bytes.u16(at);
    for i in 1..count {
        let end = i * STRIDE - 2;
        if bytes.u16(end) != check {
            return Err(Refusal::Contradiction);
        }
        let value: [u8; 2] = bytes.array(at + 2 * i);
        bytes[end..end + 2].copy_from_slice(&value);
    }
    Ok(bytes)
}

/// The attributes of a record that is in use and stands by itself, each within the record.
fn attributes(record: &[u8]) -> Outcome<Vec<&[u8]>> {
    let used = record.u32(24) as usize;
    if record.u16(22) & 1 == 0 || record.u64(32) != 0 || used > record.len() {
        return Err(Refusal::Contradiction);
    }
    let mut at = usize::from(record.u16(20));
    let mut found = Vec::new();
    while at + 4 <= used && record.u32(at) != u32::MAX {
        let len = record.u32(at + 4) as usize;
        if len < 24 || !len.is_multiple_of(8) || at + len > used {
            return Err(Refusal::Contradiction);
        }
        found.push(&record[at..at + len]);
        at += len;
    }
    // The rest of such a file is in other records.
    if found.iter().any(|attribute| attribute.u32(0) == ATTRIBUTE_LIST) {
        return Err(Refusal::Feature);
    }
    Ok(found)
}

/// The only attribute of this type that has no name.
fn unnamed<'a>(attributes: &[&'a [u8]], kind: u32) -> Outcome<&'a [u8]> {
    let mut found = attributes.iter().filter(|a| a.u32(0) == kind && a[9] == 0);
    match (found.next(), found.next()) {
        (Some(one), None) => Ok(one),
        _ => Err(Refusal::Contradiction),
    }
}

/// What a file that is not in its record has, and where.
#[derive(Debug, PartialEq, Eq)]
struct Content {
    size: u64,
    /// Clusters of the volume, in the order of the file.
    runs: Vec<Range<u64>>,
}

/// The content that an attribute names: not sparse, not compressed, all of it written.
fn content(attribute: &[u8], boot: &Boot) -> Outcome<Content> {
    let wrong = Err(Refusal::Contradiction);
    if attribute.len() < 64 || attribute[8] != 1 || attribute.u64(16) != 0 {
        return wrong;
    }
    if attribute.u16(12) != 0 {
        return Err(Refusal::Feature);
    }
    let (size, initialized) = (attribute.u64(48), attribute.u64(56));
    let (mut at, mut cluster, mut total) = (usize::from(attribute.u16(32)), 0i64, 0u64);
    let mut runs = Vec::new();
    while let Some(&head) = attribute.get(at).filter(|head| **head != 0) {
        let (n, m) = (usize::from(head & 15), usize::from(head >> 4));
        let field = |from: usize, len: usize| attribute.get(from..from + len);
        let (Some(length), Some(delta)) = (field(at + 1, n), field(at + 1 + n, m)) else {
            return wrong;
        };
        if !(1..=8).contains(&n) || !(1..=8).contains(&m) || runs.len() == MAX_RUNS {
            return wrong;
        }
        let number = |bytes: &[u8], fill: u8| {
            let mut all = [fill; 8];
            all[..bytes.len()].copy_from_slice(bytes);
            u64::from_le_bytes(all)
        };
        let negative = delta[m - 1] & 0x80 != 0;
        let delta = number(delta, if negative { 0xff } else { 0 }) as i64;
        let length = number(length, 0);
        let Some(start) = cluster.checked_add(delta).filter(|start| *start >= 0) else {
            return wrong;
        };
        let end = (start as u64).checked_add(length).filter(|end| *end <= boot.clusters);
        let Some(end) = end.filter(|_| length > 0) else { return wrong };
        runs.push(start as u64..end);
        total += length;
        cluster = start;
        at += 1 + n + m;
    }
    if initialized != size || total.checked_mul(boot.cluster).is_none_or(|bytes| bytes < size) {
        return wrong;
    }
    Ok(Content { size, runs })
}

/// Reads a part of a file; fewer bytes at its end.
async fn read_file(
    disk: &dyn Disk,
    volume: &Range<u64>,
    boot: &Boot,
    content: &Content,
    from: u64,
    len: usize,
) -> Result<Vec<u8>> {
    let stop = from.saturating_add(len as u64).min(content.size);
    let mut bytes = Vec::new();
    let mut at = 0;
    for run in &content.runs {
        let run_len = (run.end - run.start) * boot.cluster;
        let (low, high) = (from.max(at), stop.min(at + run_len));
        if low < high {
            let place = volume.start + run.start * boot.cluster + (low - at);
            bytes.extend(read(disk, place, (high - low) as usize, volume.end).await?);
        }
        at += run_len;
    }
    Ok(bytes)
}

/// Whether the log has nothing that waits: never used, or every restart page says that its users have
/// ended.
fn log_is_ended(head: &[u8]) -> Outcome<()> {
    if head.iter().all(|byte| *byte == 0xff) {
        return Ok(());
    }
    let mut pages = 0;
    let mut at = 0;
    while at < head.len() && head[at..].starts_with(b"RSTR") {
        let page_len = head.u32(at + 16) as usize;
        if !(1024..=64 << 10).contains(&page_len) || !page_len.is_power_of_two() {
            return Err(Refusal::Contradiction);
        }
        let Some(page) = head.get(at..at + page_len) else { return Err(Refusal::Contradiction) };
        let page = restored(page.to_vec(), b"RSTR")?;
        let area = usize::from(page.u16(24));
        if area + 48 > page_len {
            return Err(Refusal::Contradiction);
        }
        // No client of the log, or the flag of a clean volume.
        if page.u16(area + 12) != 0xffff && page.u16(area + 14) & 2 == 0 {
            return Err(Refusal::NotClean);
        }
        pages += 1;
        at += page_len;
        if pages == 2 {
            return Ok(());
        }
    }
    // Not both of its copies: whoever wrote them was interrupted.
    Err(Refusal::NotClean)
}

/// The free parts of the NTFS volume in `volume` of the disk, ascending; `None` if there is no such
/// file system.
pub(super) async fn free(
    disk: &dyn Disk,
    volume: Range<u64>,
) -> Result<Outcome<Option<Vec<Range<u64>>>>> {
    let sector = read(disk, volume.start, 512, volume.end).await?;
    if !is_boot_sector(&sector) {
        return Ok(Ok(None));
    }
    match free_clusters(disk, &volume, &sector).await {
        Ok(found) => Ok(Ok(Some(found))),
        Err(Stop::Refused(refusal)) => Ok(Err(refusal)),
        Err(Stop::Failed(error)) => Err(error),
    }
}

/// Why there is no answer.
enum Stop {
    Refused(Refusal),
    Failed(crate::Error),
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<crate::Error> for Stop {
    fn from(error: crate::Error) -> Self {
        Self::Failed(error)
    }
}

async fn free_clusters(
    disk: &dyn Disk,
    volume: &Range<u64>,
    sector: &[u8],
) -> std::result::Result<Vec<Range<u64>>, Stop> {
    let boot = parse(sector, volume.end - volume.start)?;
    let at = volume.start + boot.table * boot.cluster;
    let own = restored(read(disk, at, boot.record, volume.end).await?, b"FILE")?;
    let table = content(unnamed(&attributes(&own)?, DATA)?, &boot)?;
    if table.runs.first().is_none_or(|run| run.start != boot.table) {
        return Err(Refusal::Contradiction.into());
    }
    let record = async |number: u64| -> std::result::Result<Vec<u8>, Stop> {
        let from = number * boot.record as u64;
        let bytes = read_file(disk, volume, &boot, &table, from, boot.record).await?;
        if bytes.len() < boot.record {
            return Err(Refusal::Contradiction.into());
        }
        Ok(restored(bytes, b"FILE")?)
    };
    let about = record(VOLUME).await?;
    let about = unnamed(&attributes(&about)?, VOLUME_INFORMATION)?.to_vec();
    let value = usize::from(about.u16(20));
    if about[8] != 0 || about.len() < value + 12 {
        return Err(Refusal::Contradiction.into());
    }
    match (about[value + 8], about[value + 9]) {
        (1, 2) | (3, 0 | 1) => {}
        _ => return Err(Refusal::Feature.into()),
    }
    if about.u16(value + 10) != 0 {
        return Err(Refusal::NotClean.into());
    }
    let log = record(LOG_FILE).await?;
    let log = content(unnamed(&attributes(&log)?, DATA)?, &boot)?;
    log_is_ended(&read_file(disk, volume, &boot, &log, 0, LOG_HEAD).await?)?;

    let bitmap = record(BITMAP).await?;
    let bitmap = content(unnamed(&attributes(&bitmap)?, DATA)?, &boot)?;
    let bytes = boot.clusters.div_ceil(8);
    if bitmap.size < bytes {
        return Err(Refusal::Contradiction.into());
    }
    // What certainly is in use, none of it twice.
    let mut used: Vec<Range<u64>> = [&table, &log, &bitmap]
        .into_iter()
        .flat_map(|content| content.runs.iter().cloned())
        .chain(std::iter::once(0..1))
        .collect();
    used.sort_unstable_by_key(|run| run.start);
    if used.windows(2).any(|pair| pair[0].end > pair[1].start) {
        return Err(Refusal::Contradiction.into());
    }
    let mut free: Vec<Range<u64>> = Vec::new();
    let mut from = 0;
    while from < bytes {
        let len = STEP.min(bytes - from);
        let bits = read_file(disk, volume, &boot, &bitmap, from, len as usize).await?;
        if (bits.len() as u64) < len {
            return Err(Refusal::Contradiction.into());
        }
        for (i, byte) in bits.iter().enumerate().filter(|(_, byte)| **byte != 0xff) {
            let first = (from + i as u64) * 8;
            for cluster in (first..(first + 8).min(boot.clusters))
                .filter(|cluster| byte >> (cluster - first) & 1 == 0)
            {
                match free.last_mut() {
                    Some(last) if last.end == cluster => last.end += 1,
                    _ => free.push(cluster..cluster + 1),
                }
            }
        }
        from += len;
    }
    for run in &used {
        let after = free.partition_point(|free| free.end <= run.start);
        if free.get(after).is_some_and(|free| free.start < run.end) {
            return Err(Refusal::Contradiction.into());
        }
    }
    let place = |run: Range<u64>| {
        volume.start + run.start * boot.cluster..volume.start + run.end * boot.cluster
    };
    Ok(free.into_iter().map(place).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BOOT: Boot = Boot { cluster: 4096, clusters: 1 << 30, table: 4, record: 1024 };

    /// An attribute with these runs, each encoded in as many bytes as asked for.
    fn attribute(runs: &[(Range<u64>, usize)], size: u64) -> Vec<u8> {
        let mut bytes = vec![0; 64];
        bytes[0..4].copy_from_slice(&DATA.to_le_bytes());
        bytes[8] = 1;
        bytes[32] = 64;
        bytes[48..56].copy_from_slice(&size.to_le_bytes());
        bytes[56..64].copy_from_slice(&size.to_le_bytes());
        let mut last = 0i64;
        for (run, width) in runs {
            bytes.push((width << 4 | width) as u8);
            bytes.extend(&(run.end - run.start).to_le_bytes()[..*width]);
            bytes.extend(&(run.start as i64 - last).to_le_bytes()[..*width]);
            last = run.start as i64;
        }
        bytes.push(0);
        bytes
    }

    proptest! {
        #[test]
        fn runs_come_back(
            runs in prop::collection::vec((0u64..1 << 29, 1u64..1 << 20, 4usize..9), 1..40),
        ) {
            let runs: Vec<(Range<u64>, usize)> =
                runs.into_iter().map(|(start, len, width)| (start..start + len, width)).collect();
            let clusters: u64 = runs.iter().map(|(run, _)| run.end - run.start).sum();
            let size = clusters * BOOT.cluster - 5;
            let found = content(&attribute(&runs, size), &BOOT);
            let expected: Vec<Range<u64>> = runs.iter().map(|(run, _)| run.clone()).collect();
            prop_assert_eq!(found, Ok(Content { size, runs: expected }));
            // More than the runs have.
            let long = content(&attribute(&runs, size + 6), &BOOT);
            prop_assert_eq!(long, Err(Refusal::Contradiction));
        }

        /// Whatever the bytes: what is believed of them lies within the volume.
        #[test]
        fn noise_is_refused_or_within_the_volume(
            bytes in prop::collection::vec(any::<u8>(), 512..1500), len in 0u64..1 << 45,
            runs in prop::collection::vec(any::<u8>(), 0..60),
        ) {
            if let Ok(boot) = parse(&bytes, len) {
                prop_assert!(boot.clusters * boot.cluster <= len && boot.table < boot.clusters);
            }
            let mut attribute = attribute(&[], 0);
            attribute.truncate(64);
            attribute.extend(runs);
            if let Ok(found) = content(&attribute, &BOOT) {
                prop_assert!(found.runs.iter().all(|run| run.end <= BOOT.clusters));
            }
            let mut record = bytes;
            record.truncate(1024);
            let _ = log_is_ended(&record);
            record.resize(1024, 0);
            record[..8].copy_from_slice(b"FILE\x30\0\x03\0");
            for end in [510, 1022] {
                record.copy_within(0x30..0x32, end);
            }
            let whole = restored(record, b"FILE");
            prop_assert!(whole.is_ok());
            if let Ok(found) = attributes(&whole.unwrap()) {
                let _ = unnamed(&found, DATA);
            }
        }
    }
}

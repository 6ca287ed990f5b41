//! A small FAT file system with a few files in its root, made in memory: what cloud-init and other
//! guests read their first settings from.
//!
//! ```text
//!  sector 0   boot sector       1..       two tables (FAT12)       root folder       clusters of 2 KiB
//! ```
//!
//! Layout: Microsoft's FAT specification, 1.03 (2000). Names are in long form (VFAT), each with a short
//! one beside it.

use anyhow::{Context, ensure};

const SECTOR: usize = 512;
/// Sectors of the volume: 4 MiB.
const SECTORS: usize = 8192;
const CLUSTER: usize = 4 * SECTOR;
const ROOT_ENTRIES: usize = 512;
const ENTRY: usize = 32;
const TABLES: usize = 2;
const TABLE_SECTORS: usize = 6;
const ROOT: usize = (1 + TABLES * TABLE_SECTORS) * SECTOR;
const DATA: usize = ROOT + ROOT_ENTRIES * ENTRY;
/// Clusters 0 and 1 are not there.
const FIRST: usize = 2;
const CLUSTERS: usize = (SECTORS * SECTOR - DATA) / CLUSTER;
/// Ends a file's chain of clusters.
const LAST: u16 = 0xfff;
/// 1 January 1980, the first day that the format knows.
const DATE: [u8; 2] = [0x21, 0];
/// Characters of a long name in one entry.
const PIECE: usize = 13;

/// A volume of this label with these files. The same files make the same bytes.
///
/// # Errors
/// If a name or the label cannot be written, or the files do not fit into 4 MiB.
pub fn volume(label: &str, files: &[(&str, &[u8])]) -> anyhow::Result<Vec<u8>> {
    let mut bytes = vec![0; SECTORS * SECTOR];
    let label = short(label, 11).with_context(|| format!("{label:?} is no label"))?;
    bytes[..SECTOR].copy_from_slice(&boot_sector(&label, files));
    let mut table = vec![0u16; FIRST + CLUSTERS];
    (table[0], table[1]) = (0xff8, LAST);
    let mut entries = vec![entry(&label, 8, 0, 0)];
    let mut next = FIRST;
    for (number, (name, content)) in files.iter().enumerate() {
        let count = content.len().div_ceil(CLUSTER);
        ensure!(next + count <= table.len(), "the files are larger than 4 MiB together");
        let at = DATA + (next - FIRST) * CLUSTER;
        bytes[at..at + content.len()].copy_from_slice(content);
        let chain = table[next..next + count].iter_mut().zip(next as u16 + 1..);
        for (index, (place, following)) in chain.enumerate() {
            *place = if index + 1 == count { LAST } else { following };
        }
        let first = if count == 0 { 0 } else { next };
        entries.extend(named(name, number, first, content.len())?);
        next += count;
    }
    ensure!(entries.len() <= ROOT_ENTRIES, "there are too many files");
    for (place, entry) in bytes[ROOT..DATA].chunks_exact_mut(ENTRY).zip(&entries) {
        place.copy_from_slice(entry);
    }
    for copy in 0..TABLES {
        let at = (1 + copy * TABLE_SECTORS) * SECTOR;
        // Two entries of 12 bits are three bytes.
        for (place, pair) in bytes[at..].chunks_exact_mut(3).zip(table.chunks(2)) {
            let (even, odd) = (pair[0], pair.get(1).copied().unwrap_or(0));
            let middle = (even >> 8) as u8 | (odd << 4) as u8;
            place.copy_from_slice(&[even as u8, middle, (odd >> 4) as u8]);
        }
    }
    Ok(bytes)
}

/// Text as names without case have it: upper case, filled up with spaces.
fn short(text: &str, len: usize) -> Option<[u8; 11]> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'~' | b'-' | b'_');
    let good = (1..=len).contains(&text.len()) && text.bytes().all(plain);
    let mut name = [b' '; 11];
    name[..if good { text.len() } else { 0 }].copy_from_slice(if good {
        text.as_bytes()
    } else {
        &[]
    });
    name.make_ascii_uppercase();
    good.then_some(name)
}

fn boot_sector(label: &[u8; 11], files: &[(&str, &[u8])]) -> [u8; SECTOR] {
    let mut sector = [0; SECTOR];
    let mut put = |at: usize, bytes: &[u8]| sector[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &[0xeb, 0x3c, 0x90]);
    put(3, b"MSDOS5.0");
    put(11, &(SECTOR as u16).to_le_bytes());
    put(13, &[(CLUSTER / SECTOR) as u8]);
    put(14, &1u16.to_le_bytes());
    put(16, &[TABLES as u8]);
    put(17, &(ROOT_ENTRIES as u16).to_le_bytes());
    put(19, &(SECTORS as u16).to_le_bytes());
    put(21, &[0xf8]);
    put(22, &(TABLE_SECTORS as u16).to_le_bytes());
    // Sectors of a track and heads: what a disk of this size might have.
    put(24, &32u16.to_le_bytes());
    put(26, &4u16.to_le_bytes());
    put(36, &[0x80, 0, 0x29]);
    put(39, &serial(files).to_le_bytes());
    put(43, label);
    put(54, b"FAT12   ");
    // What runs when somebody boots it: wait for ever.
    put(62, &[0xf4, 0xeb, 0xfd]);
    put(510, &[0x55, 0xaa]);
    sector
}

/// A serial number that other files have another of (FNV-1a).
fn serial(files: &[(&str, &[u8])]) -> u32 {
    let all = files.iter().flat_map(|(name, content)| name.as_bytes().iter().chain(*content));
    all.fold(0x811c_9dc5, |sum: u32, byte| (sum ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

fn entry(name: &[u8; 11], attributes: u8, cluster: usize, len: usize) -> [u8; ENTRY] {
    let mut entry = [0; ENTRY];
    entry[..11].copy_from_slice(name);
    entry[11] = attributes;
    for at in [16, 18, 24] {
        entry[at..at + 2].copy_from_slice(&DATE);
    }
    entry[26..28].copy_from_slice(&(cluster as u16).to_le_bytes());
    entry[28..].copy_from_slice(&(len as u32).to_le_bytes());
    entry
}

/// The entries of a file: its long name, the last piece first, and its short one.
fn named(
    name: &str,
    number: usize,
    cluster: usize,
    len: usize,
) -> anyhow::Result<Vec<[u8; ENTRY]>> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    ensure!((1..=100).contains(&name.len()) && name.chars().all(plain), "{name:?} is no file name");
    let alias = short(&format!("FILE~{number}"), 8).context("there are too many files")?;
    // The sum binds the long name to the short one (FAT specification, "Short Directory Entries").
    let sum = alias.iter().fold(0u8, |sum, byte| sum.rotate_right(1).wrapping_add(*byte));
    let text: Vec<u16> = name.encode_utf16().chain([0]).collect();
    // What the terminator ends exactly has none.
    let text = if name.len().is_multiple_of(PIECE) { &text[..name.len()] } else { &text[..] };
    let pieces: Vec<&[u16]> = text.chunks(PIECE).collect();
    let mut entries = Vec::new();
    for (index, piece) in pieces.iter().enumerate().rev() {
        let mut entry = [0xff; ENTRY];
        let last = if index + 1 == pieces.len() { 0x40 } else { 0 };
        entry[0] = last | (index as u8 + 1);
        (entry[11], entry[12], entry[13]) = (0x0f, 0, sum);
        entry[26..28].fill(0);
        let places = (1..11).step_by(2).chain((14..26).step_by(2)).chain((28..32).step_by(2));
        for (at, unit) in places.zip(*piece) {
            entry[at..at + 2].copy_from_slice(&unit.to_le_bytes());
        }
        entries.push(entry);
    }
    entries.push(self::entry(&alias, 0x20, cluster, len));
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use std::{fs, process::Command};

    use test_support::process::foreign;

    use super::*;

    fn run(program: &std::path::Path, args: &[&str]) -> String {
        let output = Command::new(program).args(args).output().unwrap();
        let text = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(output.status.success(), "{program:?} {args:?}: {text}");
        text
    }

    /// What others make of a volume: dosfstools find no fault, mtools read the files.
    #[test]
    fn others_read_what_is_written() {
        let (Some(fsck), Some(mtype), Some(blkid)) =
            (foreign("fsck.fat"), foreign("mtype"), foreign("blkid"))
        else {
            return;
        };
        let large: Vec<u8> = (0..300_000u32).map(|i| b'a' + (i % 23) as u8).collect();
        let files: &[(&str, &[u8])] = &[
            ("meta-data", b"instance-id: 1\n"),
            ("user-data", &large),
            ("network-config", b""),
            ("thirteen-long", b"13"),
            ("a-name-of-more-than-two-pieces.yaml", b"long"),
        ];
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("seed.img");
        fs::write(&path, volume("cidata", files).unwrap()).unwrap();
        let image = path.to_str().unwrap();
        run(&fsck, &["-n", "-v", image]);
        assert!(run(&blkid, &["-p", image]).contains("LABEL=\"CIDATA\""));
        for (name, content) in files {
            let got = run(&mtype, &["-i", image, &format!("::{name}")]);
            assert!(got.as_bytes() == *content, "{name}: {} bytes", got.len());
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let large = vec![0; SECTORS * SECTOR];
        assert!(volume("cidata", &[("a", &large)]).is_err());
        assert!(volume("", &[]).is_err() && volume("a label too long", &[]).is_err());
        for name in ["", "a/b", "ä", &"x".repeat(101)] {
            assert!(volume("cidata", &[(name, b"")]).is_err(), "{name}");
        }
    }
}

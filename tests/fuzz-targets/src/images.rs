//! Images of virtual disks, opened and read.
//!
//! ```text
//!  byte 0   bit 0: the rest is the image itself, else changes to a whole image of the format
//!           bit 1: all checksums are put right, as an attacker would
//!  change   place u32 (modulo the image's length) | count u8 | count bytes
//! ```
//!
//! Held: errors are typed; what the check calls clean opens, and all of it that is looked at reads.

use std::sync::{Arc, OnceLock};

use block_io::{Disk, File, testing::MemFile};
use vhd::{Error, Format, classic, qcow2 as cow, vhdx as x, vmdk as vm};

/// Bytes of a disk that are looked at, of one that says that it is larger.
const LOOK: u64 = 1 << 20;
const PIECE: usize = 64 << 10;
const MIB: u64 = 1 << 20;
const SECTOR: usize = 512;

/// A VHD.
pub fn vhd(bytes: &[u8]) {
    static BASE: OnceLock<MemFile> = OnceLock::new();
    exercise(Format::Vhd, BASE.get_or_init(|| MemFile::with_holes(&block(base_vhd()))), bytes);
}

/// A VHDX.
pub fn vhdx(bytes: &[u8]) {
    static BASE: OnceLock<MemFile> = OnceLock::new();
    exercise(Format::Vhdx, BASE.get_or_init(|| MemFile::with_holes(&block(base_vhdx()))), bytes);
}

/// A QCOW2 without a backing file.
pub fn qcow2(bytes: &[u8]) {
    static BASE: OnceLock<MemFile> = OnceLock::new();
    exercise(Format::Qcow2, BASE.get_or_init(|| MemFile::with_holes(&block(base_qcow2()))), bytes);
}

/// A sparse VMDK.
pub fn vmdk(bytes: &[u8]) {
    static BASE: OnceLock<MemFile> = OnceLock::new();
    exercise(Format::Vmdk, BASE.get_or_init(|| MemFile::with_holes(&base_vmdk())), bytes);
}

fn block<T>(future: impl Future<Output = T>) -> T {
    thread_local! {
        static RUNTIME: tokio::runtime::Runtime =
            tokio::runtime::Builder::new_current_thread().build().expect("a runtime needs no more");
    }
    RUNTIME.with(|runtime| runtime.block_on(future))
}

/// Makes the image that the bytes mean, and looks at it.
fn exercise(format: Format, base: &MemFile, bytes: &[u8]) {
    let Some((mode, bytes)) = bytes.split_first() else { return };
    block(async {
        let file = match mode & 1 {
            1 => MemFile::from_bytes(bytes),
            _ => base.copy(),
        };
        let len = file.len().await.expect("memory has a length");
        if mode & 1 == 0 {
            change(&file, len, bytes).await;
        }
        if mode & 2 == 2 {
            mend(format, &file, len).await;
        }
        look(format, Arc::new(file.read_only_copy())).await;
    });
}

async fn change(file: &MemFile, len: u64, mut bytes: &[u8]) {
    while let Some(([a, b, c, d, count], rest)) = bytes.split_first_chunk() {
        let at = u64::from(u32::from_le_bytes([*a, *b, *c, *d])) % len;
        let count = usize::from(*count).min(rest.len()).min((len - at) as usize);
        file.write_at(at, &rest[..count]).await.expect("memory takes it");
        bytes = &rest[count..];
    }
}

/// Errors are typed: nothing here fails but the image.
fn typed(error: &Error) {
    match error {
        Error::Damaged(damage) => assert!(damage.to_string().contains("at offset 0x"), "{damage}"),
        Error::Unsupported(_) | Error::InvalidOptions(_) | Error::Differencing { .. } => {}
        Error::Storage(error) => failed(error),
        other => panic!("{other}"),
    }
}

fn failed(error: &block_io::Error) {
    use block_io::Error::{Corrupt, Io, OutOfRange, Unsupported};
    match error {
        Corrupt(_) | OutOfRange { .. } | Unsupported(_) => {}
        Io { source, .. } if source.kind() == std::io::ErrorKind::Unsupported => {}
        other => panic!("{other}"),
    }
}

async fn open(format: Format, file: Arc<dyn File>) -> vhd::Result<Arc<dyn Disk>> {
    Ok(match format {
        Format::Vhd => {
            let options = classic::OpenOptions { parent: None, read_only: true };
            Arc::new(classic::Vhd::open(file, options).await?)
        }
        Format::Vhdx => Arc::new(x::Vhdx::open(file, x::OpenOptions::read_only()).await?),
        Format::Qcow2 => Arc::new(cow::Qcow2::open(file, None).await?),
        _ => Arc::new(vm::Vmdk::open(file).await?),
    })
}

async fn look(format: Format, file: Arc<dyn File>) {
    let report = match format {
        Format::Vhd => classic::check(file.clone()).await,
        Format::Vhdx => x::check(file.clone()).await,
        Format::Qcow2 => cow::check(file.clone()).await,
        _ => vm::check(file.clone()).await,
    };
    let clean = report.inspect_err(typed).is_ok_and(|report| report.is_clean());
    let disk = match open(format, file).await {
        Ok(disk) => disk,
        Err(error) => {
            typed(&error);
            let alone = matches!(error, Error::Differencing { .. });
            assert!(!clean || alone, "what is clean does not open: {error}");
            return;
        }
    };
    let size = disk.geometry().size;
    let unit = u64::from(disk.geometry().logical_sector).max(SECTOR as u64);
    let mut piece = vec![0; PIECE];
    let ends = [0..size.min(LOOK), size.saturating_sub(PIECE as u64)..size];
    for range in ends {
        let (mut at, end) = (range.start / unit * unit, range.end / unit * unit);
        while at < end {
            let n = (end - at).min(piece.len() as u64) as usize;
            if let Err(error) = disk.read_at(at, &mut piece[..n]).await {
                failed(&error);
                assert!(!clean, "what is clean does not read: {error}");
            }
            at += n as u64;
        }
    }
    if let Err(error) = disk.allocated_ranges(0..size.min(LOOK)).await {
        failed(&error);
    }
}

/// Puts all checksums right.
async fn mend(format: Format, file: &MemFile, len: u64) {
    let ones = |part: &mut [u8], sum: usize| {
        part[sum..sum + 4].fill(0);
        let value = !part.iter().fold(0u32, |sum, byte| sum.wrapping_add(u32::from(*byte)));
        part[sum..sum + 4].copy_from_slice(&value.to_be_bytes());
    };
    let crc = |part: &mut [u8]| {
        part[4..8].fill(0);
        let value = crc32c::crc32c(part);
        part[4..8].copy_from_slice(&value.to_le_bytes());
    };
    match format {
        Format::Vhd => {
            let end = len.saturating_sub(SECTOR as u64) / SECTOR as u64 * SECTOR as u64;
            for at in [0, end] {
                mended(file, at, 512, |part| ones(part, 64)).await;
            }
            mended(file, 512, 1024, |part| ones(part, 36)).await;
        }
        Format::Vhdx => {
            let tables =
                [(64 << 10, 4096), (128 << 10, 4096), (192 << 10, 65536), (256 << 10, 65536)];
            for (at, len) in tables {
                mended(file, at, len, crc).await;
            }
            // The entries of a log at its usual place.
            for at in (MIB..2 * MIB).step_by(4096) {
                let mut head = [0; 12];
                let read = file.read_at(at, &mut head).await.expect("memory gives it");
                let len = u32::from_le_bytes([head[8], head[9], head[10], head[11]]);
                if read == 12 && head.starts_with(b"loge") && (4096..=0x10_0000).contains(&len) {
                    mended(file, at, len as usize, crc).await;
                }
            }
        }
        _ => {}
    }
}

/// Changes a part of a file, if it has it whole.
async fn mended(file: &MemFile, at: u64, len: usize, change: impl FnOnce(&mut [u8])) {
    let mut part = vec![0; len];
    if file.read_at(at, &mut part).await.expect("memory gives it") == len {
        change(&mut part);
        file.write_at(at, &part).await.expect("memory takes it");
    }
}

async fn base_vhd() -> Vec<u8> {
    let file = Arc::new(MemFile::new());
    let options = classic::CreateOptions::new(8 * MIB);
    classic::create(file.clone(), &options).await.expect("memory takes it");
    let disk = classic::Vhd::open(file.clone(), classic::OpenOptions::default()).await;
    let disk = disk.expect("what was made opens");
    disk.write_at(MIB, &[0xc1; 8192]).await.expect("memory takes it");
    disk.close().await.expect("memory takes it");
    file.to_bytes()
}

async fn base_vhdx() -> Vec<u8> {
    let file = Arc::new(MemFile::new());
    let options = x::CreateOptions { block_size: MIB as u32, ..x::CreateOptions::new(4 * MIB) };
    x::create(file.clone(), &options).await.expect("memory takes it");
    let disk = x::Vhdx::open(file.clone(), x::OpenOptions::default()).await;
    let disk = disk.expect("what was made opens");
    disk.write_at(0, &[0xc1; 8192]).await.expect("memory takes it");
    disk.flush().await.expect("memory takes it");
    disk.write_at(2 * MIB, &[0xc2; 8192]).await.expect("memory takes it");
    disk.flush().await.expect("memory takes it");
    // Not closed: the log is to be replayed.
    file.to_bytes()
}

async fn base_qcow2() -> Vec<u8> {
    let file = Arc::new(MemFile::new());
    let options = cow::CreateOptions { cluster_size: 4096, ..cow::CreateOptions::new(3 * MIB) };
    let writer = cow::Writer::new(file.clone(), options).await.expect("memory takes it");
    writer.write_at(8192, &[0xc1; 20 << 10]).await.expect("memory takes it");
    writer.write_at(2 * MIB, &[0xc2; 8192]).await.expect("memory takes it");
    writer.close().await.expect("memory takes it");
    file.to_bytes()
}

/// A sparse VMDK as VMware's format notes lay it out: header, descriptor, directory, table, grains.
fn base_vmdk() -> Vec<u8> {
    const GRAIN: usize = 64 << 10;
    let mut bytes = vec![0; GRAIN + 2 * GRAIN];
    let mut put = |at: usize, data: &[u8]| bytes[at..at + data.len()].copy_from_slice(data);
    put(0, b"KDMV");
    put(4, &1u32.to_le_bytes());
    put(8, &3u32.to_le_bytes());
    let numbers = [(12, 4096u64), (20, 128), (28, 1), (36, 20), (48, 21), (56, 26), (64, 128)];
    for (at, sectors) in numbers {
        put(at, &sectors.to_le_bytes());
    }
    put(44, &512u32.to_le_bytes());
    put(73, b"\n \r\n");
    let text = "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\n\
        createType=\"monolithicSparse\"\nRW 4096 SPARSE \"disk.vmdk\"\n";
    put(SECTOR, text.as_bytes());
    put(26 * SECTOR, &27u32.to_le_bytes());
    for (grain, entry) in [(0, 128u32), (1, 256)] {
        put(27 * SECTOR + grain * 4, &entry.to_le_bytes());
    }
    put(GRAIN, &[0xc1; 2 * GRAIN]);
    bytes
}

/// Changes to an image: none, and at each of these places.
fn seeds(places: &[u32], raw: Option<&[u8]>) -> Vec<(String, Vec<u8>)> {
    let mut seeds = vec![("whole".into(), vec![0])];
    for at in places {
        let mut bytes = vec![2];
        bytes.extend(at.to_le_bytes());
        bytes.extend([4, 0xff, 0, 0, 1]);
        seeds.push((format!("at-{at:x}"), bytes));
    }
    seeds.extend(raw.map(|raw| ("raw".into(), [&[3], raw].concat())));
    seeds
}

/// A VHD as it is, and with changes of its structures.
pub fn seeds_vhd() -> Vec<(String, Vec<u8>)> {
    let base = block(base_vhd());
    let end = base.len() as u32 - 512;
    seeds(&[8, 16, 48, 60, 512 + 16, 512 + 28, 512 + 32, 1536, end + 16], Some(&base[..2560]))
}

/// A VHDX as it is, and with changes of its structures.
pub fn seeds_vhdx() -> Vec<(String, Vec<u8>)> {
    let (kib, mib) = (1 << 10, 1 << 20);
    let places = [
        0,
        64 * kib + 8,
        64 * kib + 68,
        128 * kib + 48,
        192 * kib + 8,
        192 * kib + 32,
        mib + 8,
        mib + 16,
        mib + 64,
        2 * mib + 8,
        2 * mib + 48,
        2 * mib + 64 * kib,
        3 * mib,
        3 * mib + 8,
    ];
    seeds(&places, None)
}

/// A QCOW2 as it is, and with changes of its structures.
pub fn seeds_qcow2() -> Vec<(String, Vec<u8>)> {
    let base = block(base_qcow2());
    let at = |at: usize| u64::from_be_bytes(base[at..at + 8].try_into().unwrap_or_default()) as u32;
    let (l1, counts) = (at(40), at(48));
    let places = [4, 8, 20, 24, 36, 40, 48, 56, 60, 72, 96, 100, 104, l1, l1 + 4, counts];
    seeds(&places, Some(&base[..4096]))
}

/// A VMDK as it is, and with changes of its structures.
pub fn seeds_vmdk() -> Vec<(String, Vec<u8>)> {
    let places = [4, 8, 12, 20, 28, 44, 56, 73, 77, 520, 26 * 512, 27 * 512];
    seeds(&places, Some(&base_vmdk()[..1024]))
}

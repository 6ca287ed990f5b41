//! A disk that is slow in each of its ways ([`SlowDisk`]).

use std::{
    fs::{self, File},
    io::Write,
    os::unix::fs::FileExt,
    path::Path,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use bulkhead_tests::{slow_disk::SlowDisk, smbd::Smbd};
use rustix::fs::{Advice, FallocateFlags};
use smb_client::raw::RawConnection;

use super::{causes, note, options, until, why};

/// Bytes of the file that is used.
const LEN: u64 = 16 << 20;
/// Bytes of the disk.
const DISK: u64 = 96 << 20;
/// Bytes of a block.
const BLOCK: u64 = 4096;

/// A server whose share `slow` is on a disk, with a file there. The disk is to be dropped last.
fn server(disk: &SlowDisk) -> Smbd {
    whole(&disk.folder().join("disk"));
    let folder = disk.folder();
    let share =
        format!("[[share]]\nname = \"slow\"\npath = \"{}\"\nusers = [\"admin\"]", folder.display());
    Smbd::start("", &share)
}

/// Writes a file in one piece.
fn whole(path: &Path) {
    let mut file = File::create_new(path).unwrap();
    file.write_all(&vec![7; LEN as usize]).unwrap();
    file.sync_all().unwrap();
}

/// Has the system forget what it has of a file, so that all is read from the disk.
fn forget(path: &Path) {
    let file = File::open(path).unwrap();
    rustix::fs::fadvise(&file, 0, None, Advice::DontNeed).unwrap();
}

fn connect(server: &Smbd, path: &str) -> RawConnection {
    RawConnection::connect(&options(server), "slow", path, true).unwrap()
}

/// Reads `count` blocks all over the file, `depth` at a time.
fn scattered(connection: &mut RawConnection, (count, depth): (u64, u64), len: u64) {
    let (mut next, mut under_way) = (0, 0);
    while next < count || under_way > 0 {
        while next < count && under_way < depth && connection.can_queue(len as u32) {
            // Odd, so that every block has its turn, and far from the last one.
            let block = next.wrapping_mul(0x9e37_79b1) % (LEN / len);
            connection.queue_read(block * len, len as u32);
            (next, under_way) = (next + 1, under_way + 1);
        }
        connection.send().unwrap();
        let answered = connection.receive_all(|header, _| assert!(header.status.is_success()));
        under_way -= answered.unwrap() as u64;
    }
}

#[test]
fn a_slow_disk_is_named() {
    let Some(disk) = SlowDisk::mount(DISK) else { return };
    let server = server(&disk);
    let mut connection = connect(&server, "disk");
    disk.slowness.read.store(25_000, Ordering::Relaxed);
    let report = until(&server, "slow/disk", "slow-disk", || {
        forget(&disk.folder().join("disk"));
        scattered(&mut connection, (20, 1), BLOCK);
    });
    assert!(report["sentence"].as_str().unwrap().contains("disk loop"), "{report:#}");
}

#[test]
fn a_disk_with_more_to_do_than_it_can_is_named() {
    let Some(disk) = SlowDisk::mount(DISK) else { return };
    let server = server(&disk);
    let mut connection = connect(&server, "disk");
    disk.slowness.read.store(2000, Ordering::Relaxed);
    until(&server, "slow/disk", "disk-queue", || {
        forget(&disk.folder().join("disk"));
        scattered(&mut connection, (512, 32), BLOCK);
    });
}

/// Writes blocks, each durable before the next.
fn durable(connection: &mut RawConnection, count: u64) {
    for block in 0..count {
        connection.queue_write(block * BLOCK, &[9; BLOCK as usize]);
        connection.send().unwrap();
        while connection.receive_all(|_, _| {}).unwrap() == 0 {}
        connection.flush().unwrap();
    }
}

#[test]
fn a_disk_that_is_slow_to_make_durable_is_named() {
    let Some(disk) = SlowDisk::mount(DISK) else { return };
    let server = server(&disk);
    let mut connection = connect(&server, "disk");
    disk.slowness.sync.store(30_000, Ordering::Relaxed);
    until(&server, "slow/disk", "slow-sync", || durable(&mut connection, 10));
}

/// The good half minute before it hides no fault: among all that was made durable in it, what is slow is
/// little.
#[test]
fn a_fault_after_a_good_time_is_named() {
    let Some(disk) = SlowDisk::mount(DISK) else { return };
    let server = server(&disk);
    let mut connection = connect(&server, "disk");
    let begun = Instant::now();
    // As long as the server remembers.
    while begun.elapsed() < Duration::from_secs(40) {
        durable(&mut connection, 200);
    }
    let good = why(&server, "slow/disk");
    assert_eq!(causes(&good), [""; 0], "{good:#}");
    disk.slowness.sync.store(30_000, Ordering::Relaxed);
    let bad = until(&server, "slow/disk", "slow-sync", || durable(&mut connection, 10));
    assert!(bad["window_s"].as_u64() < Some(25), "{bad:#}");
}

/// Makes a file of which each 16 KiB are elsewhere: all space is taken but for holes of that size.
fn in_pieces(folder: &Path) {
    const PIECE: u64 = 16 << 10;
    let filler = File::create_new(folder.join("filler")).unwrap();
    let room = rustix::fs::statvfs(folder).unwrap();
    let mut len = room.f_bavail * room.f_frsize / (2 * PIECE) * (2 * PIECE);
    // The tree of its extents takes some as well.
    while rustix::fs::fallocate(&filler, FallocateFlags::empty(), 0, len).is_err() {
        len -= 2 * PIECE;
    }
    let rest = File::create_new(folder.join("rest")).unwrap();
    let mut end = 0;
    while rest.write_all_at(&[1; 4096], end).is_ok() && rest.sync_all().is_ok() {
        end += 4096;
    }
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    for hole in 0..LEN / PIECE + 128 {
        rustix::fs::fallocate(&filler, flags, hole * 2 * PIECE, PIECE).unwrap();
    }
    filler.sync_all().unwrap();
    whole(&folder.join("pieces"));
}

/// On a disk whose arm has a way to go, an image in pieces is slow, and a whole one beside it is not.
#[test]
fn an_image_in_pieces_is_named_and_a_whole_one_is_not() {
    const LARGE: u64 = 1 << 20;
    let Some(disk) = SlowDisk::mount(DISK) else { return };
    let server = server(&disk);
    in_pieces(&disk.folder());
    disk.slowness.seek.store(4000, Ordering::Relaxed);
    let mut connection = connect(&server, "disk");
    let begun = Instant::now();
    forget(&disk.folder().join("disk"));
    scattered(&mut connection, (16, 1), LARGE);
    let report = why(&server, "slow/disk");
    assert_eq!(causes(&report), [""; 0], "{report:#}");
    note("whole image on a disk that seeks", &report, begun);
    let mut connection = connect(&server, "pieces");
    let report = until(&server, "slow/pieces", "fragmented-image", || {
        forget(&disk.folder().join("pieces"));
        scattered(&mut connection, (16, 1), LARGE);
    });
    assert!(report["sentence"].as_str().unwrap().contains("pieces"), "{report:#}");
    fs::remove_file(disk.folder().join("filler")).unwrap();
}

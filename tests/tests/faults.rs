//! Disks that fill up or break, and files that change or go beneath the server: the right status,
//! nothing acknowledged lost, and everyone else is served.

use std::{
    fs,
    os::unix::fs::{FileExt, PermissionsExt},
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use block_io::File;
use bulkhead_tests::{
    process::{foreign, run},
    smbd::{PASSWORD, Smbd, USER},
    volume::{Kind, Volume},
};
use smb_client::{
    Client, ConnectOptions, Create, Login, OpenOptions, RemoteFile, Tree, raw::RawConnection,
};
use smb_protocol::{
    Command as Smb, NtStatus,
    fscc::InfoClass,
    msg::{close, query_info::InfoType, set_info},
};

const BLOCK: usize = 64 << 10;

fn options(server: &Smbd) -> ConnectOptions {
    ConnectOptions {
        reconnect_timeout: Duration::ZERO,
        ..ConnectOptions::new("127.0.0.1", server.port(), Login::new(USER, PASSWORD))
    }
}

async fn tree(server: &Smbd, share: &str) -> Tree {
    Client::connect(options(server)).await.unwrap().tree(share).await.unwrap()
}

/// A second share named `other` over `path`.
fn other_share(path: &Path) -> String {
    format!("[[share]]\nname = \"other\"\npath = \"{}\"\nusers = [\"{USER}\"]\n", path.display())
}

/// Content of block `number`, in no other block.
fn block(number: u64) -> Vec<u8> {
    (0..BLOCK as u64 / 8)
        .flat_map(|at| (number << 32 | at).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes())
        .collect()
}

/// Writes blocks until one is refused; gives how many were taken and the refusal.
async fn fill(file: &RemoteFile) -> (u64, NtStatus) {
    for number in 0..4096 {
        if let Err(error) = file.write(number * BLOCK as u64, &block(number)).await {
            return (number, error.nt_status().expect("a status, not a lost connection"));
        }
    }
    panic!("the disk never fills");
}

/// Whether the file has all blocks that were taken.
async fn has_blocks(file: &RemoteFile, count: u64) {
    let mut back = vec![0; BLOCK];
    for number in 0..count {
        assert_eq!(file.read(number * BLOCK as u64, &mut back).await.unwrap(), BLOCK);
        assert!(back == block(number), "block {number} is lost");
    }
}

/// Somebody on the share `vms` writes and reads back.
async fn others_are_served(server: &Smbd) {
    let vms = tree(server, "vms").await;
    let file = vms.open("served", OpenOptions::create(Create::Replace)).await.unwrap();
    file.write(0, &block(7)).await.unwrap();
    file.sync().await.unwrap();
    let mut back = vec![0; BLOCK];
    file.read(0, &mut back).await.unwrap();
    assert!(back == block(7));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_named_and_loses_nothing() {
    let Some(volume) = Volume::mount_in(&std::env::temp_dir(), Kind::Ext4, 16 << 20) else {
        return;
    };
    let mut server = Smbd::start("", &other_share(&volume.path()));
    let other = tree(&server, "other").await;
    let file = other.open("disk", OpenOptions::create(Create::New)).await.unwrap();
    let (count, status) = fill(&file).await;
    assert_eq!(status, NtStatus::DISK_FULL);
    assert!(count > 16, "only {count} blocks fit");
    // What was taken can be made durable, read and written again while the disk is full.
    file.sync().await.unwrap();
    has_blocks(&file, count).await;
    file.write(0, &block(0)).await.unwrap();
    // Neither a reservation nor a new file's content fits, and each says so.
    let second = other.open("second", OpenOptions::create(Create::OpenOrNew)).await.unwrap();
    let refused = second.write(0, &vec![1; 4 * BLOCK]).await.unwrap_err();
    assert_eq!(refused.nt_status(), Some(NtStatus::DISK_FULL));
    others_are_served(&server).await;
    // Room comes back when a file is cut, to the very open that was refused.
    file.set_length(4 * BLOCK as u64).await.unwrap();
    second.write(0, &block(9)).await.unwrap();
    second.sync().await.unwrap();
    has_blocks(&file, 4).await;
    assert!(fs::read(volume.path().join("second")).unwrap().starts_with(&block(9)));
    assert!(server.alive());
}

/// Changes go on being written down on a full disk as long as there is the room that was kept for them,
/// and none is made after that.
#[test]
fn no_change_on_a_full_disk_is_missing_in_the_log() {
    let Some(volume) = Volume::mount_in(&std::env::temp_dir(), Kind::Ext4, 64 << 20) else {
        return;
    };
    let server = Smbd::start_in(&volume.path(), "", "");
    let log = server.scratch().join("state/audit.jsonl");
    // Who is answered finds the room taken.
    assert!(server.admin(&["server", "status"]).status.success());
    let filler = volume.path().join("filler");
    let full = fs::File::create(&filler).unwrap();
    let mut length = 0;
    take_all(&full, &mut length);
    let lines = || fs::read_to_string(&log).unwrap_or_default().lines().count();
    let disconnect = || server.admin(&["server", "disconnect", "--user", "nobody"]);
    for number in 1..=20 {
        let text = disconnect();
        let text = String::from_utf8_lossy(&text.stderr);
        assert_eq!(lines(), number, "{text}");
    }
    // What is kept is used up by somebody else.
    let room = fs::metadata(&log).unwrap();
    fs::OpenOptions::new().write(true).open(&log).unwrap().set_len(room.len()).unwrap();
    take_all(&full, &mut length);
    let refused = disconnect();
    let text = String::from_utf8_lossy(&refused.stderr);
    assert!(text.contains("cannot take a change") && text.contains("audit.jsonl"), "{text}");
    assert_eq!(lines(), 20);
    drop(full);
    fs::remove_file(&filler).unwrap();
    let made = disconnect();
    assert_eq!(lines(), 21, "{}", String::from_utf8_lossy(&made.stderr));
}

/// Has a file take all that its file system has left. The kernel refuses one request for space while it
/// takes back what it had set aside for other files, so what counts is what it says is left.
fn take_all(file: &fs::File, length: &mut u64) {
    let since = Instant::now();
    loop {
        for piece in [1 << 20, 4096, 1024] {
            let empty = rustix::fs::FallocateFlags::empty();
            while rustix::fs::fallocate(file, empty, *length, piece).is_ok() {
                *length += piece;
            }
        }
        let about = rustix::fs::fstatvfs(file).unwrap();
        let left = about.f_bavail * about.f_frsize;
        if left < 8192 {
            return;
        }
        assert!(since.elapsed() < Duration::from_secs(30), "{left} bytes are not to be had");
        rustix::fs::syncfs(file).unwrap();
    }
}

/// The volume promises more than the disk beneath it has: writes are taken by the page cache, and
/// it is the flush that must not lie.
#[tokio::test(flavor = "multi_thread")]
async fn a_flush_that_fails_is_told_and_stays_failed() {
    let base = tempfile::tempdir().unwrap();
    if !rustix::process::geteuid().is_root() {
        bulkhead_tests::skip(bulkhead_tests::Need::Root.because("mounting needs root"));
        return;
    }
    let mut mount = Command::new("mount");
    mount.args(["-t", "tmpfs", "-o", "size=8m", "tmpfs"]).arg(base.path());
    if !run(&mut mount, Duration::from_secs(30)).status.success() {
        bulkhead_tests::skip("a tmpfs cannot be mounted here");
        return;
    }
    let unmount = Unmount(&base);
    let Some(volume) = Volume::mount_in(base.path(), Kind::Ext4, 64 << 20) else { return };
    let mut server = Smbd::start("", &other_share(&volume.path()));
    let other = tree(&server, "other").await;
    let file = other.open("disk", OpenOptions::create(Create::New)).await.unwrap();
    for number in 0..256 {
        if let Err(error) = file.write(number * BLOCK as u64, &block(number)).await {
            let status = error.nt_status();
            assert!(is_disk_error(status), "{status:?}");
        }
    }
    let first = file.sync().await.unwrap_err();
    assert!(is_disk_error(first.nt_status()), "{first}");
    let again = file.sync().await.unwrap_err();
    assert!(is_disk_error(again.nt_status()), "a later flush hides the loss: {again}");
    others_are_served(&server).await;
    assert!(server.alive());
    drop(file);
    drop(other);
    // The server's own folder is elsewhere; what it still has open here goes with it.
    assert_eq!(server.stop(), Vec::<String>::new());
    drop(volume);
    drop(unmount);
}

/// Unmounts a folder at the end of a test.
struct Unmount<'a>(&'a tempfile::TempDir);

impl Drop for Unmount<'_> {
    fn drop(&mut self) {
        let mut umount = Command::new("umount");
        run(umount.arg("-l").arg(self.0.path()), Duration::from_secs(30));
    }
}

fn is_disk_error(status: Option<NtStatus>) -> bool {
    matches!(status, Some(NtStatus::DISK_FULL | NtStatus::IO_DEVICE_ERROR))
}

/// The end of the device beneath the file system is gone.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_cannot_be_read_is_named() {
    let Some(volume) = Volume::mount_in(&std::env::temp_dir(), Kind::Ext4, 64 << 20) else {
        return;
    };
    let content: Vec<u8> = (0..512).flat_map(block).collect();
    fs::write(volume.path().join("disk"), &content).unwrap();
    let file = fs::File::open(volume.path().join("disk")).unwrap();
    file.sync_all().unwrap();
    let image = fs::File::options().write(true).open(volume.image()).unwrap();
    image.set_len(16 << 20).unwrap();
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    let mut direct = vec![0; BLOCK];
    let lost = (0..512u64).rev().find(|n| file.read_at(&mut direct, n * BLOCK as u64).is_err());
    let Some(lost) = lost else {
        bulkhead_tests::skip("this kernel reads zeros where a loop device's file ends");
        return;
    };
    for engine in ["threads", "auto"] {
        let io = format!("io_engine = \"{engine}\"");
        let mut server = Smbd::start(&io, &other_share(&volume.path()));
        let other = tree(&server, "other").await;
        let disk = other.open("disk", OpenOptions::read()).await.unwrap();
        let mut back = vec![0; BLOCK];
        for _ in 0..2 {
            let error = disk.read(lost * BLOCK as u64, &mut back).await.unwrap_err();
            assert_eq!(error.nt_status(), Some(NtStatus::IO_DEVICE_ERROR), "{engine}");
        }
        // What can be read, is, through the same open.
        assert_eq!(disk.read(0, &mut back).await.unwrap(), BLOCK);
        assert!(back == content[..BLOCK]);
        others_are_served(&server).await;
        assert!(server.alive());
    }
}

/// An administrator takes the right to change a file that is open and being written.
#[tokio::test(flavor = "multi_thread")]
async fn permission_lost_while_writing_is_named() {
    let Some(volume) = Volume::mount_in(&std::env::temp_dir(), Kind::Ext4, 32 << 20) else {
        return;
    };
    let Some(chattr) = foreign("chattr") else { return };
    let mut server = Smbd::start("", &other_share(&volume.path()));
    let other = tree(&server, "other").await;
    let file = other.open("disk", OpenOptions::create(Create::New)).await.unwrap();
    file.write(0, &block(0)).await.unwrap();
    let path = volume.path().join("disk");
    let set = |flag: &str| {
        run(Command::new(&chattr).arg(flag).arg(&path), Duration::from_secs(30)).status.success()
    };
    if !set("+i") {
        bulkhead_tests::skip("files cannot be made immutable here");
        return;
    }
    let refused = file.write(BLOCK as u64, &block(1)).await.unwrap_err();
    assert_eq!(refused.nt_status(), Some(NtStatus::ACCESS_DENIED));
    has_blocks(&file, 1).await;
    let refused = tree(&server, "other").await.delete("disk").await.unwrap_err();
    let status = refused.nt_status();
    assert!(
        matches!(status, Some(NtStatus::ACCESS_DENIED | NtStatus::SHARING_VIOLATION)),
        "{refused}"
    );
    others_are_served(&server).await;
    assert!(set("-i"));
    file.write(BLOCK as u64, &block(1)).await.unwrap();
    file.sync().await.unwrap();
    has_blocks(&file, 2).await;
    assert!(server.alive());
}

/// Without privileges, the modes of files bind the server: at the open, not later.
#[tokio::test(flavor = "multi_thread")]
async fn modes_that_change_bind_the_next_open() {
    if !rustix::process::geteuid().is_root() {
        bulkhead_tests::skip(
            bulkhead_tests::Need::Root.because("becoming another user needs root"),
        );
        return;
    }
    let base = tempfile::tempdir().unwrap();
    fs::set_permissions(base.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let passwd = fs::read_to_string("/etc/passwd").unwrap();
    let Some(nobody) = passwd.lines().find(|line| line.starts_with("nobody:")) else { return };
    let uid: u32 = nobody.split(':').nth(2).unwrap().parse().unwrap();
    let server = Smbd::start_as("nobody", uid, base.path());
    let vms = tree(&server, "vms").await;
    let file = vms.open("disk", OpenOptions::create(Create::New)).await.unwrap();
    file.write(0, &block(0)).await.unwrap();
    let path = server.files().join("disk");
    std::os::unix::fs::chown(&path, Some(0), Some(0)).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o0)).unwrap();
    file.write(BLOCK as u64, &block(1)).await.unwrap();
    file.sync().await.unwrap();
    file.close().await.unwrap();
    let refused = vms.open("disk", OpenOptions::read()).await.unwrap_err();
    assert_eq!(refused.nt_status(), Some(NtStatus::ACCESS_DENIED));
    others_are_served(&server).await;
    let all = fs::read(&path).unwrap();
    assert!(all == [block(0), block(1)].concat());
}

/// Another file takes the name of one that is open.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_replaced_underneath_keeps_both_contents() {
    let server = Smbd::start("", "");
    let vms = tree(&server, "vms").await;
    let old = vms.open("disk", OpenOptions::create(Create::New)).await.unwrap();
    old.write(0, &block(0)).await.unwrap();
    let path = server.files().join("disk");
    let kept = server.scratch().join("kept");
    fs::hard_link(&path, &kept).unwrap();
    fs::write(server.scratch().join("new"), block(5)).unwrap();
    fs::rename(server.scratch().join("new"), &path).unwrap();
    // The open goes on with the file that it opened.
    old.write(BLOCK as u64, &block(1)).await.unwrap();
    old.sync().await.unwrap();
    has_blocks(&old, 2).await;
    assert!(fs::read(&path).unwrap() == block(5), "written to the wrong file");
    assert!(fs::read(&kept).unwrap() == [block(0), block(1)].concat());
    // Who opens the name now gets the new one, and the old open does not stand in the way.
    let new = vms.open("disk", OpenOptions::write()).await.unwrap();
    let mut back = vec![0; BLOCK];
    new.read(0, &mut back).await.unwrap();
    assert!(back == block(5));
    new.write(0, &block(6)).await.unwrap();
    new.close().await.unwrap();
    old.close().await.unwrap();
    assert!(fs::read(&path).unwrap() == block(6));
}

/// A file that is to be deleted when it is closed is replaced before: the other one stays.
#[test]
fn a_deletion_never_takes_another_file() {
    let server = Smbd::start("", "");
    let path = server.files().join("disk");
    fs::write(&path, block(0)).unwrap();
    let mut raw = Raw::open(&server, "disk");
    raw.set_disposition();
    fs::write(server.scratch().join("new"), block(5)).unwrap();
    fs::rename(server.scratch().join("new"), &path).unwrap();
    raw.close();
    assert!(fs::read(&path).unwrap() == block(5), "the replacement was deleted");
}

/// A connection that opens a file with the right to delete it.
struct Raw(RawConnection, smb_protocol::FileId);

impl Raw {
    fn open(server: &Smbd, name: &str) -> Self {
        use smb_protocol::msg::create::{
            Access, CreateOptions, Disposition, Request, Response, ShareAccess,
        };
        let mut raw = RawConnection::connect(&options(server), "vms", "opener", true).unwrap();
        let request = Request {
            impersonation: 2,
            access: Access::ALL,
            share: ShareAccess::READ | ShareAccess::WRITE | ShareAccess::DELETE,
            disposition: Disposition::OPEN,
            options: CreateOptions::NON_DIRECTORY_FILE,
            name: name.into(),
            ..Default::default()
        };
        raw.queue_request(Smb::CREATE, |out| request.encode(out));
        let mut id = None;
        raw.send().unwrap();
        while id.is_none() {
            raw.receive_all(|header, body| {
                assert_eq!(header.status, NtStatus::SUCCESS);
                id = Some(Response::parse(body).unwrap().file_id);
            })
            .unwrap();
        }
        Self(raw, id.unwrap())
    }

    /// Sends one request and waits until it is answered with success.
    fn ask(&mut self, command: Smb, encode: impl FnOnce(&mut Vec<u8>)) {
        self.0.queue_request(command, encode);
        self.0.send().unwrap();
        let mut status = None;
        while status.is_none() {
            self.0.receive_all(|header, _| status = Some(header.status)).unwrap();
        }
        assert_eq!(status, Some(NtStatus::SUCCESS));
    }

    /// Has the file deleted when it is closed.
    fn set_disposition(&mut self) {
        let request = set_info::Request {
            info_type: InfoType::FILE,
            class: InfoClass::DISPOSITION,
            file_id: self.1,
            input: &[1],
            ..Default::default()
        };
        self.ask(Smb::SET_INFO, |out| request.encode(out));
    }

    fn close(mut self) {
        let request = close::Request { flags: 0, file_id: self.1 };
        self.ask(Smb::CLOSE, |out| request.encode(out));
    }
}

/// Files are removed and cut, and a share's whole folder goes, while clients use them.
#[tokio::test(flavor = "multi_thread")]
async fn what_goes_underneath_is_told() {
    let elsewhere = tempfile::tempdir().unwrap();
    let folder = elsewhere.path().join("folder");
    fs::create_dir(&folder).unwrap();
    let mut server = Smbd::start("", &other_share(&folder));
    let other = tree(&server, "other").await;
    let removed = other.open("removed", OpenOptions::create(Create::New)).await.unwrap();
    let cut = other.open("cut", OpenOptions::create(Create::New)).await.unwrap();
    for file in [&removed, &cut] {
        file.write(0, &block(0)).await.unwrap();
        file.write(BLOCK as u64, &block(1)).await.unwrap();
    }
    fs::remove_file(folder.join("removed")).unwrap();
    fs::File::options().write(true).open(folder.join("cut")).unwrap().set_len(100).unwrap();
    has_blocks(&removed, 2).await;
    removed.write(0, &block(0)).await.unwrap();
    let mut back = vec![0; BLOCK];
    assert_eq!(cut.read(0, &mut back).await.unwrap(), 100);
    assert!(back[..100] == block(0)[..100]);
    assert_eq!(cut.length().await.unwrap(), 100);
    cut.write(0, &block(3)).await.unwrap();
    assert!(fs::read(folder.join("cut")).unwrap() == block(3));
    let gone = other.open("removed", OpenOptions::read()).await.unwrap_err();
    assert_eq!(gone.nt_status(), Some(NtStatus::OBJECT_NAME_NOT_FOUND));
    fs::remove_dir_all(&folder).unwrap();
    let gone = other.open("cut", OpenOptions::read()).await.unwrap_err();
    assert_eq!(gone.nt_status(), Some(NtStatus::OBJECT_NAME_NOT_FOUND));
    let refused = other.open("new", OpenOptions::create(Create::New)).await.unwrap_err();
    assert!(refused.nt_status().is_some(), "{refused}");
    others_are_served(&server).await;
    removed.close().await.unwrap();
    cut.close().await.unwrap();
    assert!(server.alive());
}

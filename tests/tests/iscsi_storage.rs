//! What becomes of LUNs when what is below them changes: a file system that is full, an image that
//! cannot be had again, a process that ends in the middle of SANITIZE, state that is damaged.

use std::{
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use bulkhead_tests::{
    initiator::{Answer, Client, Moves, TARGET, Who},
    iscsi::{Served, ask, good, lun, thick, thin, vhdx},
    process::{ours, run},
    volume::{Kind, Volume},
};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(60);
const MIB: u64 = 1 << 20;
const OPEN: &str = "authentication = \"none\"";
const TEST_UNIT_READY: [u8; 6] = [0; 6];
const SYNCHRONIZE_CACHE: [u8; 10] = [0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0];
/// Sectors of one write.
const SECTORS: u16 = 128;

fn write10(block: u32, count: u16, fua: bool) -> [u8; 10] {
    let ([a, b, c, d], [e, f]) = (block.to_be_bytes(), count.to_be_bytes());
    [0x2a, if fua { 8 } else { 0 }, a, b, c, d, 0, e, f, 0]
}

fn read10(block: u32, count: u16) -> [u8; 10] {
    let mut cdb = write10(block, count, false);
    cdb[0] = 0x28;
    cdb
}

async fn log_in(served: &Served) -> Client {
    let (client, response) = Client::log_in(served.port.address(), Who::default()).await;
    assert_eq!(response.status, 0, "the login is refused");
    client
}

/// The `number`th write's data.
fn data(number: u32) -> Vec<u8> {
    number.to_le_bytes().iter().copied().cycle().take(usize::from(SECTORS) * 512).collect()
}

/// Writes piece after piece from `from` on until one is refused, each durable by FUA or by the
/// SYNCHRONIZE CACHE behind it; how many are, at most `most`.
async fn fill(client: &mut Client, from: u32, most: u32) -> (u32, Option<Answer>) {
    for number in from..most {
        let (at, bytes) = (number * u32::from(SECTORS), data(number));
        let fua = number % 2 == 0;
        let wrote = client.scsi_quiet(0, &write10(at, SECTORS, fua), Moves::Out(&bytes)).await;
        if wrote.status != 0 {
            return (number, Some(wrote));
        }
        if !fua {
            let flushed = client.scsi_quiet(0, &SYNCHRONIZE_CACHE, Moves::Nothing).await;
            if flushed.status != 0 {
                return (number, Some(flushed));
            }
        }
    }
    (most, None)
}

async fn all_there(client: &mut Client, count: u32) {
    for number in 0..count {
        let cdb = read10(number * u32::from(SECTORS), SECTORS);
        let read = client.scsi_quiet(0, &cdb, Moves::In(u32::from(SECTORS) * 512)).await;
        good(&read);
        assert!(read.data == data(number), "piece {number} is lost");
    }
}

/// SPACE ALLOCATION FAILED WRITE PROTECT (SBC-3 4.7.3.6).
const NO_SPACE: (u8, u8, u8) = (7, 0x27, 7);

async fn a_full_file_system(make: impl Fn(&Path) -> PathBuf) {
    let Some(volume) = Volume::mount_in(&std::env::temp_dir(), Kind::Ext4, 32 << 20) else {
        return;
    };
    // Room that comes back when it is wanted.
    let ballast = thick(&volume.path(), "ballast", 12 * MIB);
    let image = make(&volume.path());
    let mut served = Served::start(&format!("{OPEN}\n{}", lun(0, &image, "")));
    let mut client = log_in(&served).await;
    let most = (60 * MIB / (u64::from(SECTORS) * 512)) as u32;
    let (count, refused) = fill(&mut client, 0, most).await;
    let refused = refused.expect("the file system is full");
    assert!(count > 16, "{count} pieces");
    assert_eq!(refused.sense_code(), Some(NO_SPACE), "{refused:?}");
    // It stays so, and what was acknowledged can be read.
    let (again, refused) = fill(&mut client, count, most).await;
    assert_eq!((again, refused.and_then(|it| it.sense_code())), (count, Some(NO_SPACE)));
    all_there(&mut client, count).await;
    // What is there already takes no space to be written again.
    let bytes = data(0);
    good(&client.scsi_quiet(0, &write10(0, SECTORS, true), Moves::Out(&bytes)).await);
    // A process that is killed while there is no room loses nothing either.
    served.server.kill_and_restart();
    let mut client = log_in(&served).await;
    all_there(&mut client, count).await;
    fs::remove_file(ballast).unwrap();
    let (more, refused) = fill(&mut client, count, count + 64).await;
    assert_eq!((more, refused.map(|it| it.sense_code())), (count + 64, None));
    served.server.kill_and_restart();
    let mut client = log_in(&served).await;
    all_there(&mut client, more).await;
    drop(client);
    let complaints = served.server.stop();
    assert!(complaints.iter().all(|line| line.contains("no space left")), "{complaints:?}");
    assert!(!complaints.is_empty(), "an administrator is told");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_file_system_below_a_raw_image_keeps_what_was_acknowledged() {
    a_full_file_system(|folder| thin(folder, "a.raw", 64 * MIB)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_file_system_below_a_vhdx_keeps_what_was_acknowledged() {
    a_full_file_system(|folder| {
        let path = folder.join("a.vhdx");
        let mut command = Command::new(ours("bulkhead"));
        command.args(["disk", "create"]).arg(&path).args(["--size", "64M", "--block-size", "1M"]);
        let output = run(&mut command, LIMIT);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        path
    })
    .await;
}

/// Where a VHDX has its two region tables, of 64 KiB each (MS-VHDX 2.2).
const REGION_TABLES: u64 = 192 << 10;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_resize_that_cannot_be_leaves_the_lun_or_tells_that_it_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let raw = thin(folder.path(), "a.raw", 16 * MIB);
    let image = vhdx(folder.path(), "b.vhdx", "64M");
    let section = format!("{OPEN}\n{}{}", lun(0, &raw, ""), lun(1, &image, ""));
    let mut served = Served::start(&section);
    let mut client = log_in(&served).await;
    let bytes = data(3);
    for unit in [0, 1] {
        good(&client.scsi_quiet(unit, &write10(0, SECTORS, true), Moves::Out(&bytes)).await);
    }
    let resize = |lun: &str| {
        let output = served.server.admin(&["target", "resize", TARGET, lun]);
        assert!(!output.status.success(), "lun {lun}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    // One that has shrunk under its initiators is seen before anything is closed.
    fs::File::options().write(true).open(&raw).unwrap().set_len(8 * MIB).unwrap();
    let why = resize("0");
    assert!(why.contains("cannot shrink") && !why.contains("not served"), "{why}");
    // So is one whose file is gone.
    fs::rename(&image, folder.path().join("aside")).unwrap();
    let why = resize("1");
    assert!(why.contains("b.vhdx") && !why.contains("not served"), "{why}");
    fs::rename(folder.path().join("aside"), &image).unwrap();
    for unit in [0, 1] {
        let read =
            client.scsi_quiet(unit, &read10(0, SECTORS), Moves::In(bytes.len() as u32)).await;
        good(&read);
        assert!(read.data == bytes);
    }
    // One that is no image any more: both region tables are gone.
    let file = fs::File::options().read(true).write(true).open(&image).unwrap();
    let mut before = vec![0; 128 << 10];
    file.read_exact_at(&mut before, REGION_TABLES).unwrap();
    file.write_all_at(&vec![0; before.len()], REGION_TABLES).unwrap();
    let why = resize("1");
    assert!(why.contains("not served now") && why.contains("reload"), "{why}");
    let gone = client.scsi_quiet(1, &TEST_UNIT_READY, Moves::Nothing).await;
    assert_eq!(gone.sense_code(), Some((5, 0x25, 0)), "initiators are told");
    let list = ask(&served.server, &["target", "list", "--json"]);
    assert_eq!(list[0]["luns"].as_array().unwrap().len(), 1, "{list}");
    good(&client.scsi_quiet(0, &read10(0, 1), Moves::In(512)).await);
    // Whoever mends it has it back.
    file.write_all_at(&before, REGION_TABLES).unwrap();
    served.reload(&section).unwrap();
    let read = client.scsi_quiet(1, &read10(0, SECTORS), Moves::In(bytes.len() as u32)).await;
    good(&read);
    assert!(read.data == bytes);
    drop(client);
    let complaints = served.server.stop();
    let known = |line: &String| line.contains("damaged") || line.contains("orderly");
    assert!(complaints.iter().all(known), "{complaints:?}");
}

/// SANITIZE OVERWRITE with one byte, at once.
async fn sanitize(client: &mut Client, byte: u8) {
    let list = [1, 0, 0, 1, byte];
    let cdb = [0x48, 0x81, 0, 0, 0, 0, 0, 0, 5, 0];
    good(&client.scsi_quiet(0, &cdb, Moves::Out(&list)).await);
}

const SANITIZING: (u8, u8, u8) = (2, 4, 0x1b);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sanitize_goes_on_over_kills_and_restarts_until_all_is_wiped() {
    let folder = tempfile::tempdir().unwrap();
    let image = thick(folder.path(), "a.raw", 8 * MIB);
    let section = format!("{OPEN}\n{}", lun(0, &image, "sanitize_rate = \"4MiB\""));
    let mut served = Served::start(&section);
    let mut client = log_in(&served).await;
    good(&client.scsi_quiet(0, &write10(0, SECTORS, true), Moves::Out(&data(7))).await);
    good(&client.scsi_quiet(0, &write10(16_000, SECTORS, true), Moves::Out(&data(8))).await);
    sanitize(&mut client, 0xab).await;
    for killed in [true, false, true] {
        let busy = client.scsi_quiet(0, &read10(16_000, 1), Moves::In(512)).await;
        assert_eq!(busy.sense_code(), Some(SANITIZING), "killed: {killed}");
        if !killed {
            served.server.signal(rustix::process::Signal::TERM);
            while served.server.alive() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        served.server.kill_and_restart();
        client = log_in(&served).await;
    }
    loop {
        let answer = client.scsi_quiet(0, &TEST_UNIT_READY, Moves::Nothing).await;
        match answer.sense_code() {
            Some(SANITIZING) => tokio::time::sleep(Duration::from_millis(50)).await,
            None => break,
            other => panic!("{other:?}"),
        }
    }
    let wiped = |content: Vec<u8>| content.iter().all(|byte| *byte == 0xab);
    assert!(wiped(fs::read(&image).unwrap()));
    // It is not carried out once more over what is written then.
    good(&client.scsi_quiet(0, &write10(0, SECTORS, true), Moves::Out(&data(9))).await);
    served.server.kill_and_restart();
    let mut client = log_in(&served).await;
    let read = client.scsi_quiet(0, &read10(0, SECTORS), Moves::In(u32::from(SECTORS) * 512)).await;
    good(&read);
    assert!(read.data == data(9));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reservations_that_are_damaged_stop_targets_alone() {
    let folder = tempfile::tempdir().unwrap();
    let image = thin(folder.path(), "a.raw", 16 * MIB);
    let section = format!("{OPEN}\n{}", lun(0, &image, ""));
    let mut served = Served::start(&section);
    let store = served.server.scratch().join("state/reservations");
    served.server.stop();
    let sound = fs::read(&store).unwrap();
    fs::write(&store, b"no store at all").unwrap();
    let with = fs::read_to_string(served.server.config()).unwrap();
    let (without, _) = with.split_once("[iscsi]").unwrap();
    // A file server without targets has no use for them.
    fs::write(served.server.config(), without).unwrap();
    served.server.kill_and_restart();
    assert_eq!(served.server.stop(), Vec::<String>::new());
    // With targets it serves files, and says why it serves no target.
    fs::write(served.server.config(), &with).unwrap();
    served.server.kill_and_restart();
    assert_eq!(ask(&served.server, &["target", "list", "--json"]), Value::Array(Vec::new()));
    let why = served.reload(&section).unwrap_err();
    assert!(why.contains("state/reservations") && why.contains("move the file away"), "{why}");
    // Once they are right again a reload is enough.
    fs::write(&store, sound).unwrap();
    served.reload(&section).unwrap();
    let mut client = log_in(&served).await;
    good(&client.scsi_quiet(0, &TEST_UNIT_READY, Moves::Nothing).await);
    drop(client);
    let complaints = served.server.stop();
    assert!(!complaints.is_empty());
    assert!(complaints.iter().all(|line| line.contains("reservations")), "{complaints:?}");
}

/// The identities of all LUNs, by target and number.
fn identities(served: &Served) -> Vec<String> {
    let list = ask(&served.server, &["target", "list", "--json"]);
    let luns =
        list.as_array().unwrap().iter().flat_map(|target| target["luns"].as_array().unwrap());
    luns.map(|lun| lun["id"].as_str().unwrap().replace('-', "").to_lowercase()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lun_is_known_by_what_its_image_says_that_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let bulkhead = |args: &[&str], file: &Path| {
        let output = run(Command::new(ours("bulkhead")).args(args).arg(file), LIMIT);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice::<Value>(&output.stdout).unwrap_or_default()
    };
    let id = |name: &str| {
        let info = bulkhead(&["disk", "info", "--json"], &at(name));
        info["disk_id"].as_str().unwrap().replace('-', "").to_lowercase()
    };
    let raw = thin(folder.path(), "r.raw", 16 * MIB);
    let first = vhdx(folder.path(), "a.vhdx", "64M");
    let vhd = vhdx(folder.path(), "v.vhd", "64M");
    let number = "0f0e0d0c0b0a09080706050403020100";
    let fixed = thin(folder.path(), "f.raw", 16 * MIB);
    let section = format!(
        "{OPEN}\n{}{}{}{}",
        lun(0, &first, ""),
        lun(1, &vhd, ""),
        lun(2, &raw, ""),
        lun(3, &fixed, &format!("id = \"{number}\"")),
    );
    let served = Served::start(&section);
    let before = identities(&served);
    assert_eq!(before[..2], [id("a.vhdx"), id("v.vhd")]);
    assert_eq!(before[3], number);
    // An image is the same disk under another number; a raw one is what its place says.
    let section = format!("{OPEN}\n{}{}", lun(7, &first, ""), lun(8, &raw, ""));
    served.reload(&section).unwrap();
    let after = identities(&served);
    assert_eq!(after[0], before[0]);
    assert_ne!(after[1], before[2]);
    // A copy would be one disk with the first to initiators, in whichever target it is.
    let copy = at("copy.vhdx");
    fs::copy(&first, &copy).unwrap();
    let mut served = served;
    let other = "[[target]]\nname = \"iqn.2024-01.example:other\"\nauthentication = \"none\"";
    for twin in [
        format!("{section}{}", lun(9, &copy, "")),
        format!("{section}\n{other}\n{}", lun(0, &copy, "")),
    ] {
        let why = served.reload(&twin).unwrap_err();
        assert!(why.contains("same identity") && why.contains("--disk-id new"), "{why}");
    }
    let twin = format!("{section}\n{other}\n{}", lun(0, &copy, ""));
    bulkhead(&["disk", "set", "--disk-id", "new"], &copy);
    served.reload(&twin).unwrap();
    assert_eq!(identities(&served).len(), 3);
    let complaints = served.server.stop();
    assert!(complaints.iter().all(|line| line.contains("same identity")), "{complaints:?}");
}

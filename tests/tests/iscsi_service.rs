//! What smbd keeps to as an iSCSI target: one writer for an image, nothing lost that was promised,
//! reservations that outlive it, targets that change while initiators are there.

use std::{
    fs,
    os::unix::fs::{FileExt, MetadataExt},
    path::Path,
    process::Command,
    time::Duration,
};

use block_io::File;
use bulkhead_tests::{
    initiator::{Answer, Client, Moves, TARGET, Who},
    iscsi::{Served, ask, good, lun, thick, thin, vhdx},
    port::Port,
    process::{foreign, ours, run},
    smbd::{PASSWORD, Smbd, USER},
};
use smb_client::{ConnectOptions, Login, OpenOptions, Share, Tree};
use smb_protocol::NtStatus;

const LIMIT: Duration = Duration::from_secs(60);
const MIB: u64 = 1 << 20;
const OPEN: &str = "authentication = \"none\"";
const RESERVATION_CONFLICT: u8 = 0x18;
const TEST_UNIT_READY: [u8; 6] = [0; 6];
const READ_CAPACITY: [u8; 10] = [0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0];
const SYNCHRONIZE_CACHE: [u8; 10] = [0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0];

fn write10(block: u32, count: u16, fua: bool) -> [u8; 10] {
    let ([a, b, c, d], [e, f]) = (block.to_be_bytes(), count.to_be_bytes());
    [0x2a, if fua { 8 } else { 0 }, a, b, c, d, 0, e, f, 0]
}

fn read10(block: u32, count: u16) -> [u8; 10] {
    let mut cdb = write10(block, count, false);
    cdb[0] = 0x28;
    cdb
}

async fn log_in(served: &Served, initiator: &str, keys: &[(&str, &str)]) -> Client {
    let who = Who { initiator, keys, ..Who::default() };
    let (client, response) = Client::log_in(served.port.address(), who).await;
    assert_eq!(response.status, 0, "the login is refused");
    client
}

async fn tree(server: &Smbd) -> Tree {
    let login = Login::new(USER, PASSWORD);
    let options = ConnectOptions::new("127.0.0.1", server.port(), login);
    smb_client::Client::connect(options).await.unwrap().tree("vms").await.unwrap()
}

/// What a program says that must not succeed.
fn refused(program: impl AsRef<std::ffi::OsStr>, args: &[&str]) -> String {
    let output = run(Command::new(program).args(args), LIMIT);
    assert!(!output.status.success(), "{args:?} went through");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn digests_of_headers_and_data_guard_what_is_written_and_read() {
    let folder = tempfile::tempdir().unwrap();
    let image = thin(folder.path(), "a.raw", 16 * MIB);
    let demanded = "header_digest = \"required\"\ndata_digest = \"required\"";
    let served = Served::start(&format!("{OPEN}\n{demanded}\n{}", lun(0, &image, "")));
    let crc = [("HeaderDigest", "CRC32C"), ("DataDigest", "CRC32C")];
    let mut client = log_in(&served, "iqn.me", &crc).await;
    assert_eq!(client.key("HeaderDigest"), Some("CRC32C"));
    assert_eq!(client.key("DataDigest"), Some("CRC32C"));
    let data: Vec<u8> = (0..40 * 512_u32).map(|n| (n * 7 % 251) as u8).collect();
    good(&client.scsi_quiet(0, &write10(7, 40, true), Moves::Out(&data)).await);
    let mut held = vec![0; data.len()];
    fs::File::open(&image).unwrap().read_exact_at(&mut held, 7 * 512).unwrap();
    assert!(held == data, "it is in the image");
    let read = client.scsi(0, &read10(7, 40), Moves::In(40 * 512)).await;
    good(&read);
    assert!(read.data == data);
    let none = Who { isid: 2, ..Who::default() };
    let (_, response) = Client::log_in(served.port.address(), none).await;
    assert_ne!(response.status, 0, "who offers no digest is refused");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_has_one_writer_whichever_way_it_comes() {
    let mut served = Served::start(OPEN);
    let image = vhdx(&served.server.files(), "a.vhdx", "64M");
    let section = format!("{OPEN}\n{}", lun(0, &image, ""));
    let share = tree(&served.server).await;
    let held = share.open("a.vhdx", OpenOptions::write()).await.unwrap();
    let why = served.reload(&section).unwrap_err();
    assert!(why.contains("lun 0") && why.contains("in use by"), "{why}");
    assert!(why.contains("smbd (pid "), "it says which program has it: {why}");
    assert!(why.contains("open by SMB: ADMIN as \\\\VMS\\a.vhdx"), "and which user: {why}");
    held.close().await.unwrap();
    served.reload(&section).unwrap();
    let mut client = log_in(&served, "iqn.me", &[]).await;
    good(&client.scsi_quiet(0, &write10(0, 1, true), Moves::Out(&[7; 512])).await);
    for options in [OpenOptions::write(), OpenOptions { share: Share::Read, ..OpenOptions::read() }]
    {
        let refusal = share.open("a.vhdx", options).await.err().and_then(|e| e.nt_status());
        assert_eq!(refusal, Some(NtStatus::SHARING_VIOLATION));
    }
    let path = image.to_str().unwrap();
    let why = refused(ours("bulkhead"), &["disk", "resize", path, "128M"]);
    assert!(why.contains("in use by") && why.contains("smbd (pid "), "{why}");
    if let Some(qemu) = foreign("qemu-img") {
        let why = refused(qemu, &["resize", "-f", "raw", path, "128M"]);
        assert!(why.contains("another process using the image"), "{why}");
    }
    served.reload(OPEN).unwrap();
    let answer = client.scsi_quiet(0, &TEST_UNIT_READY, Moves::Nothing).await;
    assert_eq!(answer.sense_code(), Some((5, 0x25, 0)), "the LUN is gone");
    let mine = share.open("a.vhdx", OpenOptions::write()).await.unwrap();
    mine.close().await.unwrap();
    // The one complaint is of the LUN that could not be served.
    let complaints = served.server.stop();
    let so = complaints.iter().all(|line| line.contains("lun 0") && line.contains("in use by"));
    assert!(!complaints.is_empty() && so, "{complaints:?}");
}

/// A block's content: which it is and which write it was.
fn block(at: u32, turn: u32) -> Vec<u8> {
    let words = [at.to_le_bytes(), turn.to_le_bytes()].concat();
    words.iter().copied().cycle().take(512).collect()
}

/// Writes until the server is killed, durable by FUA or by SYNCHRONIZE CACHE; what was promised.
async fn write_until_killed(
    mut client: Client,
    turn: u32,
    promised: tokio::sync::watch::Sender<u32>,
) {
    const BATCH: u32 = 8;
    for round in 0_u32.. {
        let fua = round % 2 == 0;
        for n in 0..BATCH {
            let at = (round * BATCH + n) % 4096;
            let data = block(at, turn);
            let command = client.command(0, &write10(at, 1, fua), Moves::Out(&data));
            client.try_send(iscsi::pdu::Pdu::ScsiCommand(command), &[]).await;
            let Some(answer) = client.answer_or_end(command.itt, &data).await else { return };
            good(&answer);
        }
        if !fua {
            let command = client.command(0, &SYNCHRONIZE_CACHE, Moves::Nothing);
            client.try_send(iscsi::pdu::Pdu::ScsiCommand(command), &[]).await;
            let Some(answer) = client.answer_or_end(command.itt, &[]).await else { return };
            good(&answer);
        }
        promised.send_replace((round + 1) * BATCH);
    }
}

async fn nothing_is_lost(make: impl Fn(&Path) -> std::path::PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let image = make(folder.path());
    let mut served = Served::start(&format!("{OPEN}\n{}", lun(0, &image, "")));
    for turn in 1..=4_u32 {
        let mut client = log_in(&served, "iqn.me", &[]).await;
        good(&client.scsi_quiet(0, &TEST_UNIT_READY, Moves::Nothing).await);
        let (promise, mut promised) = tokio::sync::watch::channel(0);
        let writer = tokio::spawn(write_until_killed(client, turn, promise));
        promised.wait_for(|count| *count >= 64 * turn).await.unwrap();
        served.server.kill_and_restart();
        writer.await.unwrap();
        let count = (*promised.borrow()).min(4096);
        let mut client = log_in(&served, "iqn.me", &[]).await;
        for at in 0..count {
            let read = client.scsi_quiet(0, &read10(at, 1), Moves::In(512)).await;
            good(&read);
            assert!(read.data == block(at, turn), "block {at} of turn {turn} is lost");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_made_durable_is_there_after_a_kill() {
    nothing_is_lost(|folder| thin(folder, "a.raw", 16 * MIB)).await;
    nothing_is_lost(|folder| vhdx(folder, "a.vhdx", "64M")).await;
}

/// PERSISTENT RESERVE OUT with a service action, the key so far and the new one.
async fn reserve(
    client: &mut Client,
    action: u8,
    kind: u8,
    keys: (u64, u64),
    aptpl: bool,
) -> Answer {
    let cdb = [0x5f, action, kind, 0, 0, 0, 0, 0, 24, 0];
    let mut list = [keys.0.to_be_bytes(), keys.1.to_be_bytes(), [0; 8]].concat();
    list[20] = u8::from(aptpl);
    client.scsi_quiet(0, &cdb, Moves::Out(&list)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reservations_that_are_to_outlive_a_loss_of_power_outlive_a_kill() {
    const REGISTER: u8 = 0;
    const RESERVE: u8 = 1;
    const WRITE_EXCLUSIVE: u8 = 1;
    const KEY: u64 = 0x1234_5678;
    let folder = tempfile::tempdir().unwrap();
    let image = thin(folder.path(), "a.raw", 16 * MIB);
    let mut served = Served::start(&format!("{OPEN}\n{}", lun(0, &image, "")));
    let mut holder = log_in(&served, "iqn.holder", &[]).await;
    good(&reserve(&mut holder, REGISTER, 0, (0, KEY), true).await);
    good(&reserve(&mut holder, RESERVE, WRITE_EXCLUSIVE, (KEY, 0), false).await);
    served.server.kill_and_restart();
    let list = ask(&served.server, &["target", "list", "--json"]);
    let unit = &list[0]["luns"][0];
    assert_eq!((&unit["reserved"], &unit["registrations"]), (&true.into(), &1.into()), "{list}");
    let mut other = log_in(&served, "iqn.other", &[]).await;
    let answer = other.scsi_quiet(0, &write10(0, 1, false), Moves::Out(&[1; 512])).await;
    assert_eq!(answer.status, RESERVATION_CONFLICT);
    let keys = other.scsi_quiet(0, &[0x5e, 0, 0, 0, 0, 0, 0, 0, 64, 0], Moves::In(64)).await;
    assert_eq!(keys.data[8..16], KEY.to_be_bytes());
    let mut holder = log_in(&served, "iqn.holder", &[]).await;
    good(&holder.scsi_quiet(0, &write10(0, 1, false), Moves::Out(&[2; 512])).await);
    // Gone for good once it is cleared.
    good(&reserve(&mut holder, 3, 0, (KEY, 0), false).await);
    served.server.kill_and_restart();
    let mut other = log_in(&served, "iqn.other", &[]).await;
    good(&other.scsi_quiet(0, &write10(0, 1, false), Moves::Out(&[1; 512])).await);
}

/// The unit attentions that wait for a client, as it meets them.
async fn attentions(client: &mut Client, unit: u8) -> Vec<(u8, u8)> {
    let mut found = Vec::new();
    loop {
        let answer = client.scsi(unit, &TEST_UNIT_READY, Moves::Nothing).await;
        match answer.sense_code() {
            Some((6, code, qualifier)) => found.push((code, qualifier)),
            _ => return found,
        }
    }
}

async fn units(client: &mut Client) -> Vec<u8> {
    let answer =
        client.scsi_quiet(0, &[0xa0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0], Moves::In(256)).await;
    good(&answer);
    answer.data[8..].as_chunks::<8>().0.iter().map(|entry| entry[1]).collect()
}

/// What leaves one target is closed before another opens it, in whichever order they are written.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_goes_from_one_target_to_another_by_one_reload() {
    let served = Served::start(OPEN);
    let image = thin(&served.server.files(), "a.raw", 64 * MIB);
    let both = |first: &str, second: &str| {
        format!(
            "{OPEN}\n{first}\n[[target]]\nname = \"iqn.2026-11.example:other\"\n{OPEN}\n{second}"
        )
    };
    let unit = lun(0, &image, "");
    served.reload(&both("", &unit)).unwrap();
    for _ in 0..2 {
        served.reload(&both(&unit, "")).unwrap();
        let mut client = log_in(&served, "iqn.me", &[]).await;
        good(&client.scsi_quiet(0, &write10(0, 1, true), Moves::Out(&[7; 512])).await);
        served.reload(&both("", &unit)).unwrap();
        let answer = client.scsi_quiet(0, &TEST_UNIT_READY, Moves::Nothing).await;
        assert_eq!(answer.sense_code(), Some((5, 0x25, 0)), "the LUN is gone");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn initiators_are_told_what_a_reload_changes() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| thin(folder.path(), name, 16 * MIB);
    let (a, b) = (path("a.raw"), path("b.raw"));
    let first = format!("{OPEN}\n{}", lun(0, &a, ""));
    let served = Served::start(&first);
    let mut me = log_in(&served, "iqn.me", &[]).await;
    attentions(&mut me, 0).await;
    assert_eq!(units(&mut me).await, [0]);
    // A LUN comes: REPORTED LUNS DATA HAS CHANGED.
    served.reload(&format!("{first}{}", lun(1, &b, ""))).unwrap();
    assert_eq!(attentions(&mut me, 0).await, [(0x3f, 0x0e)]);
    assert_eq!(units(&mut me).await, [0, 1]);
    attentions(&mut me, 1).await;
    // It is for another only.
    served.reload(&format!("{first}{}", lun(1, &b, "initiators = [\"iqn.you\"]"))).unwrap();
    assert_eq!(attentions(&mut me, 0).await, [(0x3f, 0x0e)]);
    assert_eq!(units(&mut me).await, [0]);
    let hidden = me.scsi_quiet(1, &TEST_UNIT_READY, Moves::Nothing).await;
    assert_eq!(hidden.sense_code(), Some((5, 0x25, 0)));
    let mut you = log_in(&served, "iqn.you", &[]).await;
    attentions(&mut you, 0).await;
    assert_eq!(units(&mut you).await, [0, 1]);
    good(&you.scsi_quiet(1, &TEST_UNIT_READY, Moves::Nothing).await);
    // It goes.
    served.reload(&first).unwrap();
    assert_eq!(attentions(&mut you, 0).await, [(0x3f, 0x0e)]);
    assert_eq!(units(&mut you).await, [0]);
    // The session that was there all the time goes on.
    good(&me.scsi_quiet(0, &write10(0, 1, false), Moves::Out(&[1; 512])).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lun_grows_while_it_is_used_and_a_session_can_be_ended() {
    let folder = tempfile::tempdir().unwrap();
    let image = thin(folder.path(), "a.raw", 16 * MIB);
    let served = Served::start(&format!("{OPEN}\n{}", lun(0, &image, "")));
    let mut client = log_in(&served, "iqn.me", &[]).await;
    attentions(&mut client, 0).await;
    let last = |answer: Answer| u32::from_be_bytes(answer.data[..4].try_into().unwrap());
    let before = last(client.scsi(0, &READ_CAPACITY, Moves::In(8)).await);
    assert_eq!(u64::from(before), 16 * MIB / 512 - 1);
    fs::File::options().write(true).open(&image).unwrap().set_len(32 * MIB).unwrap();
    assert_eq!(ask(&served.server, &["target", "resize", TARGET, "0", "--json"]), 32 * MIB);
    // CAPACITY DATA HAVE CHANGED.
    assert_eq!(attentions(&mut client, 0).await, [(0x2a, 9)]);
    let after = last(client.scsi(0, &READ_CAPACITY, Moves::In(8)).await);
    assert_eq!(u64::from(after), 32 * MIB / 512 - 1);
    good(&client.scsi(0, &write10(after, 1, true), Moves::Out(&[9; 512])).await);
    assert!(!served.server.admin(&["target", "resize", TARGET, "9"]).status.success());
    let sessions = ask(&served.server, &["target", "sessions", "--json"]);
    assert_eq!(
        (&sessions[0]["initiator"], sessions.as_array().unwrap().len()),
        (&"iqn.me".into(), 1)
    );
    let id = sessions[0]["id"].to_string();
    assert!(served.server.admin(&["target", "disconnect", &id]).status.success());
    while client.next().await.is_some() {}
    assert!(!served.server.admin(&["target", "disconnect", &id]).status.success(), "it is gone");
    log_in(&served, "iqn.me", &[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unmap_gives_space_back_to_the_file_system() {
    let folder = tempfile::tempdir_in(ours("smbd").parent().unwrap()).unwrap();
    let image = thin(folder.path(), "a.raw", 64 * MIB);
    let served = Served::start(&format!("{OPEN}\n{}", lun(0, &image, "")));
    let mut client = log_in(&served, "iqn.me", &[]).await;
    let data = vec![0x5a; 1 << 20];
    for at in 0..8 {
        good(&client.scsi_quiet(0, &write10(at * 2048, 2048, false), Moves::Out(&data)).await);
    }
    good(&client.scsi(0, &SYNCHRONIZE_CACHE, Moves::Nothing).await);
    let held = || fs::metadata(&image).unwrap().blocks() * 512;
    let before = held();
    assert!(before >= 8 * MIB, "{before}");
    // All but the first of the eight MiB.
    let mut list = vec![0, 22, 0, 16, 0, 0, 0, 0];
    list.extend(2048_u64.to_be_bytes());
    list.extend((7 * 2048_u32).to_be_bytes());
    list.extend([0; 4]);
    good(&client.scsi(0, &[0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0], Moves::Out(&list)).await);
    let after = held();
    assert!(after + 7 * MIB <= before + 64 * 1024, "{before} bytes became {after}");
    let read = client.scsi(0, &read10(2048, 1), Moves::In(512)).await;
    assert_eq!(read.data, [0; 512]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unmap_of_a_thick_lun_keeps_its_space() {
    let folder = tempfile::tempdir_in(ours("smbd").parent().unwrap()).unwrap();
    let image = thick(folder.path(), "a.raw", 16 * MIB);
    let served = Served::start(&format!("{OPEN}\n{}", lun(0, &image, "thin = false")));
    let mut client = log_in(&served, "iqn.me", &[]).await;
    let data = vec![0x5a; 8 << 20];
    good(&client.scsi_quiet(0, &write10(0, 16384, true), Moves::Out(&data)).await);
    let held = || fs::metadata(&image).unwrap().blocks() * 512;
    let before = held();
    // The second to the seventh MiB.
    let mut list = vec![0, 22, 0, 16, 0, 0, 0, 0];
    list.extend(2048_u64.to_be_bytes());
    list.extend((6 * 2048_u32).to_be_bytes());
    list.extend([0; 4]);
    good(&client.scsi(0, &[0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0], Moves::Out(&list)).await);
    good(&client.scsi(0, &SYNCHRONIZE_CACHE, Moves::Nothing).await);
    // Its map may take a block more or less.
    assert!(held() + 64 * 1024 > before, "{before} bytes became {}", held());
    // Before they are read: what is in the page cache counts as mapped, or unknown.
    let get_lba_status = [0x9e, 0x12, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 24, 0, 0];
    let status = client.scsi(0, &get_lba_status, Moves::In(24)).await;
    assert_eq!(status.data[8..21], [0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0x30, 0, 2], "anchored");
    let read = client.scsi(0, &read10(2048, 1), Moves::In(512)).await;
    assert_eq!(read.data, [0; 512]);
    let read = client.scsi(0, &read10(2047, 1), Moves::In(512)).await;
    assert_eq!(read.data, [0x5a; 512]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_confined_server_serves_images_outside_of_shares_and_no_other_folder_later() {
    let (near, far) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let image = thin(near.path(), "a.raw", 16 * MIB);
    let first = format!("{OPEN}\n{}", lun(0, &image, ""));
    let served = Served::start(&first);
    let mut client = log_in(&served, "iqn.me", &[]).await;
    good(&client.scsi_quiet(0, &write10(0, 1, true), Moves::Out(&[1; 512])).await);
    let beside = thin(near.path(), "b.raw", 16 * MIB);
    served.reload(&format!("{first}{}", lun(1, &beside, ""))).unwrap();
    assert_eq!(units(&mut client).await, [0, 1]);
    let elsewhere = thin(far.path(), "c.raw", 16 * MIB);
    let why = served.reload(&format!("{first}{}", lun(2, &elsewhere, ""))).unwrap_err();
    assert!(why.contains("outside of the folders") && why.contains("restart it"), "{why}");
    assert!(why.contains(elsewhere.to_str().unwrap()), "{why}");
    assert_eq!(units(&mut client).await, [0, 1], "all stays as it was");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn initiators_are_sent_where_a_target_went() {
    let folder = tempfile::tempdir().unwrap();
    let image = thin(folder.path(), "a.raw", 16 * MIB);
    let served = Served::start(&format!("{OPEN}\n{}", lun(0, &image, "")));
    let mut client = log_in(&served, "iqn.me", &[]).await;
    good(&client.scsi_quiet(0, &TEST_UNIT_READY, Moves::Nothing).await);
    served.reload("redirect = { address = \"192.0.2.7:3260\" }").unwrap();
    while client.next().await.is_some() {}
    let at = served.port.address();
    let (sent, response) = Client::log_in(at, Who::default()).await;
    assert_eq!((response.status, sent.key("TargetAddress")), (0x101, Some("192.0.2.7:3260")));
    served.reload("redirect = { address = \"store.example:3260\", permanent = true }").unwrap();
    let (sent, response) = Client::log_in(at, Who::default()).await;
    assert_eq!((response.status, sent.key("TargetAddress")), (0x102, Some("store.example:3260")));
    let why = served.reload("redirect = { address = \"nowhere\" }").unwrap_err();
    assert!(why.contains("host:port"), "{why}");
    served.reload(&format!("{OPEN}\n{}", lun(0, &image, ""))).unwrap();
    let mut client = log_in(&served, "iqn.me", &[]).await;
    good(&client.scsi_quiet(0, &TEST_UNIT_READY, Moves::Nothing).await);
}

/// The tool writes the configuration that it has the server take, and a change that is refused is
/// taken back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn targets_and_luns_are_added_and_removed_while_others_are_used() {
    const NEW: &str = "iqn.2024-01.example:new";
    let folder = tempfile::tempdir().unwrap();
    let image = |name: &str| thin(folder.path(), name, MIB);
    let mut served = Served::start(&format!("{OPEN}\n# by hand\n{}", lun(0, &image("a.raw"), "")));
    let config = served.server.config().display().to_string();
    let tool = |served: &Served, args: &[&str]| {
        served.server.admin(&[args, &["--config", &config]].concat())
    };
    let done = |args: &[&str]| {
        let output = tool(&served, args);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let mut client = log_in(&served, "iqn.me", &[]).await;
    good(&client.scsi_quiet(0, &TEST_UNIT_READY, Moves::Nothing).await);
    let before = fs::read_to_string(&config).unwrap();

    let (b, c) = (image("b.raw"), image("c.raw"));
    assert_eq!(done(&["lun", "add", TARGET, b.to_str().unwrap()]), format!("lun 1 of {TARGET}\n"));
    done(&["target", "add", NEW, "--open", "--alias", "new"]);
    done(&["lun", "add", NEW, c.to_str().unwrap(), "--number", "7", "--read-only"]);
    good(&client.scsi_quiet(1, &TEST_UNIT_READY, Moves::Nothing).await);
    assert!(fs::read_to_string(&config).unwrap().contains("# by hand"));
    let listed = done(&["lun", "list"]);
    assert!(listed.contains("c.raw") && listed.contains("read only"), "{listed}");

    // What the server does not take is not in the file.
    let held = fs::read_to_string(&config).unwrap();
    let gone = folder.path().join("gone.raw").display().to_string();
    for args in [&["lun", "add", TARGET, &gone][..], &["target", "add", "no-name", "--open"]] {
        let output = tool(&served, args);
        assert!(!output.status.success(), "{args:?}");
        assert_eq!(fs::read_to_string(&config).unwrap(), held, "{args:?}");
    }
    good(&client.scsi_quiet(0, &TEST_UNIT_READY, Moves::Nothing).await);

    done(&["target", "remove", NEW]);
    done(&["lun", "remove", TARGET, "1"]);
    assert_eq!(fs::read_to_string(&config).unwrap(), before);
    let answer = client.scsi_quiet(1, &TEST_UNIT_READY, Moves::Nothing).await;
    assert_eq!(answer.status, 2, "there is no such unit");
    let complaints = served.server.stop();
    assert!(complaints.iter().all(|line| line.contains("gone.raw")), "{complaints:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_of_a_lun_change_while_it_is_used() {
    let folder = tempfile::tempdir().unwrap();
    let image = thin(folder.path(), "a.raw", MIB);
    let metrics = Port::reserve();
    let config = |keys: &str| format!("{OPEN}\n{}", lun(0, &image, keys));
    let keys = format!("metrics = \"{}\"", metrics.address());
    let served = Served::start_with(&keys, &config(""));
    let page = || {
        use std::io::{Read, Write};
        let mut stream = std::net::TcpStream::connect(metrics.address()).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    };
    let value = |name: &str, more: &str| {
        let start = format!("bulkhead_{name}{{target=\"{TARGET}\",lun=\"0\"{more}}} ");
        let line = page().lines().find_map(|line| Some(line.strip_prefix(&start)?.to_owned()));
        line.unwrap().parse::<u64>().unwrap()
    };
    let mut client = log_in(&served, "iqn.me", &[]).await;
    good(&client.scsi_quiet(0, &TEST_UNIT_READY, Moves::Nothing).await);
    for _ in 0..20 {
        good(&client.scsi(0, &write10(0, 8, false), Moves::Out(&[7; 4096])).await);
    }
    assert_eq!(value("lun_bytes_total", ",kind=\"write\""), 20 * 4096);
    assert_eq!(value("lun_delayed_total", ""), 0);
    served.reload(&config("max_bandwidth = \"64KiB\"")).unwrap();
    for _ in 0..5 {
        good(&client.scsi(0, &read10(0, 8), Moves::In(4096)).await);
    }
    assert!(value("lun_delayed_total", "") > 0, "20 KiB are more than a tenth of a second's");
    assert_eq!(value("lun_bytes_total", ",kind=\"read\""), 5 * 4096);
    served.reload(&config("")).unwrap();
    let delayed = value("lun_delayed_total", "");
    for _ in 0..50 {
        good(&client.scsi(0, &read10(0, 8), Moves::In(4096)).await);
    }
    assert_eq!(value("lun_delayed_total", ""), delayed);
}

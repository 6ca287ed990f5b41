//! The tool as an initiator: logical units of a real smbd, over its death; and those of tgt, a target
//! that others wrote.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use bulkhead_tests::{
    port::Port,
    process::{Stopped, foreign, ours, run},
    smbd::Smbd,
};

const LIMIT: Duration = Duration::from_secs(120);
const TARGET: &str = "iqn.2024-01.example:disk";
const SECRET: &str = "a secret of carol";
const MIB: u64 = 1 << 20;

struct House {
    server: Smbd,
    port: Port,
    folder: tempfile::TempDir,
}

impl House {
    /// A server with an empty unit 0 of `mebibytes` for carol alone, which proves itself.
    fn new(mebibytes: u64) -> Self {
        let (port, folder) = (Port::reserve(), tempfile::tempdir().unwrap());
        let at = |name: &str| folder.path().join(name);
        fs::File::create(at("lun.raw")).unwrap().set_len(mebibytes * MIB).unwrap();
        for (name, secret) in [("carol", SECRET), ("store", "the store's own")] {
            fs::write(at(name), secret).unwrap();
            fs::set_permissions(at(name), PermissionsExt::from_mode(0o600)).unwrap();
        }
        let config = format!(
            "[iscsi]\nlisten = [\"{}\"]\n[[target]]\nname = \"{TARGET}\"\n\
             chap = [{{ user = \"carol\", secret_file = {:?} }}]\n\
             mutual_chap = {{ user = \"store\", secret_file = {:?} }}\n\
             [[target.lun]]\nnumber = 0\npath = {:?}\nthin = true\n",
            port.address(),
            at("carol"),
            at("store"),
            at("lun.raw"),
        );
        Self { server: Smbd::start("", &config), port, folder }
    }

    fn lun(&self) -> String {
        format!("iscsi://{}/{TARGET}/0", self.port.address())
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(ours("bulkhead"));
    command
        .args(args)
        .env("BULKHEAD_CHAP_USER", "carol")
        .env("BULKHEAD_CHAP_SECRET", SECRET)
        .env("BULKHEAD_CHAP_TARGET_USER", "store")
        .env("BULKHEAD_CHAP_TARGET_SECRET", "the store's own")
        .env("BULKHEAD_INITIATOR_NAME", "iqn.2024-01.example:host");
    command
}

fn bulkhead(args: &[&str]) -> String {
    succeeded(run(&mut command(args), LIMIT))
}

fn succeeded(output: Output) -> String {
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}{}", said(&output.stdout), said(&output.stderr));
    said(&output.stdout)
}

/// Bytes with holes: every third part of 192 KiB is empty.
fn content(mebibytes: u64) -> Vec<u8> {
    let mut bytes = vec![0; (mebibytes * MIB) as usize];
    for (n, part) in bytes.chunks_mut(192 << 10).enumerate().filter(|(n, _)| n % 3 != 1) {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64 ^ n as u64;
        for eight in part.chunks_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            eight.copy_from_slice(&state.to_le_bytes()[..eight.len()]);
        }
    }
    bytes
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn what_is_copied_to_a_unit_and_back_is_the_same() {
    let mut house = House::new(64);
    let (lun, from, back) = (house.lun(), house.at("from.raw"), house.at("back.vhdx"));
    let bytes = content(64);
    fs::write(&from, &bytes).unwrap();
    // Of what was there before nothing shines through the holes.
    fs::write(house.at("old.raw"), vec![0xaa; 64 << 20]).unwrap();
    bulkhead(&["disk", "convert", text(&house.at("old.raw")), &lun, "--force"]);
    bulkhead(&["disk", "convert", text(&from), &lun, "--force"]);
    assert!(fs::read(house.at("lun.raw")).unwrap() == bytes);
    bulkhead(&["disk", "convert", &lun, text(&back)]);
    let same = house.at("same.raw");
    bulkhead(&["disk", "convert", text(&back), text(&same)]);
    assert!(fs::read(&same).unwrap() == bytes);
    let image = fs::metadata(&back).unwrap();
    assert!(image.blocks() * 512 < 60 * MIB, "holes were copied: {}", image.blocks() * 512);
    let info = bulkhead(&["disk", "info", &lun, "--json"]);
    let info: serde_json::Value = serde_json::from_str(&info).unwrap();
    assert_eq!((info["format"].as_str(), info["size"].as_u64()), (Some("raw"), Some(64 * MIB)));
    let imported = house.at("imported.raw");
    bulkhead(&["disk", "import", &lun, text(&imported)]);
    assert!(fs::read(&imported).unwrap() == bytes);
    assert_eq!(house.server.stop(), [""; 0]);
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    let mut house = House::new(4);
    let lun = house.lun();
    let refused = |args: &[&str]| {
        let output = run(&mut command(args), LIMIT);
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let raw = house.at("a.raw");
    fs::write(&raw, content(4)).unwrap();
    assert!(refused(&["disk", "convert", text(&raw), &lun]).contains("--force"));
    fs::write(&raw, content(5)).unwrap();
    assert!(refused(&["disk", "convert", text(&raw), &lun, "--force"]).contains("no space"));
    let none = lun.replace("/0", "/9");
    assert!(refused(&["disk", "info", &none]).contains("no logical unit 9"));
    let secret = lun.replace("iscsi://", "iscsi://carol%topsecretsecret@");
    let said = refused(&["disk", "info", &secret]);
    assert!(said.contains("BULKHEAD_CHAP_SECRET") && !said.contains("topsecret"), "{said}");
    let mut wrong = command(&["disk", "info", &lun]);
    let output = run(wrong.env("BULKHEAD_CHAP_SECRET", "not carol's secret"), LIMIT);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("authentication failed"), "{said}");
    let mut wrong = command(&["disk", "info", &lun]);
    let output = run(wrong.env("BULKHEAD_CHAP_TARGET_SECRET", "not the store's"), LIMIT);
    assert!(!output.status.success());
    // The server tells of refused logins.
    house.server.stop();
}

#[test]
fn a_lun_is_measured_and_overwritten_only_if_that_is_allowed() {
    let mut house = House::new(4);
    let (lun, server) = (house.lun(), house.server.pid().to_string());
    let before = fs::read(house.at("lun.raw")).unwrap();
    let bench = |more: &[&str]| {
        let args = ["bench", "iscsi", &lun, "--seconds", "0.2", "--server-pid", &server, "--json"];
        run(&mut command(&[&args, more].concat()), LIMIT)
    };
    let report: serde_json::Value = serde_json::from_str(&succeeded(bench(&[]))).unwrap();
    let count = |report: &serde_json::Value, what: &str| report[what]["operations"].as_u64();
    assert!(count(&report, "read") > Some(0) && count(&report, "write") == Some(0), "{report}");
    assert_eq!(report["bytes_used"].as_u64(), Some(4 * MIB));
    let output = bench(&["--rw", "write"]);
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("--destroy-data"));
    assert!(fs::read(house.at("lun.raw")).unwrap() == before);
    let writes = bench(&["--rw", "write", "--destroy-data", "--pattern", "seq", "--size", "1M"]);
    let report: serde_json::Value = serde_json::from_str(&succeeded(writes)).unwrap();
    assert!(count(&report, "write") > Some(0), "{report}");
    let after = fs::read(house.at("lun.raw")).unwrap();
    assert!(
        after[..MIB as usize] != before[..MIB as usize]
            && after[MIB as usize..] == before[MIB as usize..]
    );
    assert_eq!(house.server.stop(), [""; 0]);
}

#[test]
fn a_portal_tells_its_targets() {
    let house = House::new(1);
    let portal = house.port.address().to_string();
    let address = format!("iscsi://{portal}");
    // Discovery is open where nothing says otherwise.
    let mut plain = Command::new(ours("bulkhead"));
    let said = succeeded(run(plain.args(["target", "discover", &address, "--json"]), LIMIT));
    let said: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(said[0]["name"], TARGET);
    assert_eq!(said[0]["portals"][0]["address"], *portal);
    let mut ours = command(&["target", "discover", &address]);
    // Whom nothing is proved to does not listen on.
    assert!(!run(&mut ours, LIMIT).status.success());
    ours.env_remove("BULKHEAD_CHAP_TARGET_USER").env_remove("BULKHEAD_CHAP_TARGET_SECRET");
    let said = succeeded(run(&mut ours, LIMIT));
    assert!(said.contains(TARGET) && said.contains(&portal), "{said}");
}

/// A child whose end is waited for.
fn end(mut child: Child) -> std::process::ExitStatus {
    let since = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if since.elapsed() > LIMIT {
            child.kill().unwrap();
            panic!("the copy comes to no end");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Kills the server whenever `progress` has grown by some, until the copy is done; how often.
fn kill_during(house: &mut House, child: &mut Child, progress: &Path) -> usize {
    let size = || fs::metadata(progress).map_or(0, |it| it.blocks() * 512);
    let (mut kills, mut last) = (0, size());
    while child.try_wait().unwrap().is_none() && kills < 4 {
        if size() >= last + 8 * MIB {
            house.server.kill_and_restart();
            kills += 1;
            last = size();
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    kills
}

#[test]
fn a_server_that_is_killed_amid_a_copy_loses_nothing() {
    let mut house = House::new(256);
    let (lun, from, back) = (house.lun(), house.at("from.raw"), house.at("back.raw"));
    let bytes = content(256);
    fs::write(&from, &bytes).unwrap();
    let mut quiet = command(&["disk", "convert", text(&from), &lun, "--force", "--in-flight", "2"]);
    let mut child = quiet.stdout(Stdio::null()).spawn().unwrap();
    let image = house.at("lun.raw");
    let kills = kill_during(&mut house, &mut child, &image);
    assert!(end(child).success());
    assert!(kills > 0, "the copy was done before the first kill");
    assert!(fs::read(&image).unwrap() == bytes);
    let mut quiet = command(&["disk", "convert", &lun, text(&back), "--in-flight", "2"]);
    let mut child = quiet.stdout(Stdio::null()).spawn().unwrap();
    let kills = kill_during(&mut house, &mut child, &back);
    assert!(end(child).success());
    assert!(kills > 0, "the copy was done before the first kill");
    assert!(fs::read(&back).unwrap() == bytes);
    house.server.stop();
}

/// tgtd with one unit, which only this user's process sees.
struct Tgt {
    _process: Stopped,
    folder: tempfile::TempDir,
    port: Port,
}

impl Tgt {
    fn admin(&self, args: &[&str]) {
        let mut command = Command::new("tgtadm");
        command.env("TGT_IPC_SOCKET", self.folder.path().join("ipc"));
        succeeded(run(command.args(args), LIMIT));
    }

    fn start(mebibytes: u64) -> Option<Self> {
        let program = foreign("tgtd")?;
        foreign("tgtadm")?;
        let (folder, port) = (tempfile::tempdir().unwrap(), Port::reserve());
        fs::File::create(folder.path().join("lun")).unwrap().set_len(mebibytes * MIB).unwrap();
        let portal = format!("portal={}", port.address());
        let mut command = Command::new(program);
        command.args(["-f", "--iscsi", &portal]).env("TGT_IPC_SOCKET", folder.path().join("ipc"));
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        bulkhead_tests::process::wait_for(port.address());
        let tgt = Self { _process: Stopped(child), folder, port };
        let tid = ["--lld", "iscsi", "--tid", "1"];
        let new = ["--op", "new", "--mode", "target", "-T", TARGET];
        tgt.admin(&[&tid[..], &new].concat());
        let file = tgt.folder.path().join("lun");
        let unit = ["--op", "new", "--mode", "logicalunit", "--lun", "1", "-b", text(&file)];
        tgt.admin(&[&tid[..], &unit].concat());
        tgt.admin(&[&tid[..], &["--op", "bind", "--mode", "target", "-I", "ALL"]].concat());
        let account = ["--user", "carol", "--password", SECRET];
        let new = [&["--lld", "iscsi", "--op", "new", "--mode", "account"][..], &account].concat();
        tgt.admin(&new);
        let bind = ["--op", "bind", "--mode", "account", "--user", "carol"];
        tgt.admin(&[&tid[..], &bind].concat());
        Some(tgt)
    }
}

#[test]
fn a_unit_of_a_foreign_target_is_written_and_read() {
    let Some(tgt) = Tgt::start(64) else { return };
    let folder = tempfile::tempdir().unwrap();
    let (from, back) = (folder.path().join("from.raw"), folder.path().join("back.raw"));
    let bytes = content(64);
    fs::write(&from, &bytes).unwrap();
    let lun = format!("iscsi://{}/{TARGET}/1", tgt.port.address());
    let plain = |args: &[&str]| {
        let mut command = command(args);
        command.env_remove("BULKHEAD_CHAP_TARGET_USER").env_remove("BULKHEAD_CHAP_TARGET_SECRET");
        succeeded(run(&mut command, LIMIT))
    };
    plain(&["disk", "convert", text(&from), &lun, "--force"]);
    assert!(fs::read(tgt.folder.path().join("lun")).unwrap() == bytes);
    plain(&["disk", "convert", &lun, text(&back)]);
    assert!(fs::read(&back).unwrap() == bytes);
    let said = plain(&["target", "discover", &format!("iscsi://{}", tgt.port.address())]);
    assert!(said.contains(TARGET), "{said}");
}

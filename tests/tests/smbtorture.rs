//! Samba's smbtorture against smbd. The names that may fail stand in docs/interop.md with their
//! reasons; everything else must pass.

use std::time::Duration;

use bulkhead_tests::{
    smbd::Smbd,
    torture::suite,
    volume::{Kind, Volume},
};

const LIMIT: Duration = Duration::from_secs(240);

/// They encrypt for a session that they ended, which ends the connection (MS-SMB2 3.3.5.2.1.1).
const OF_ENDED_SESSIONS: [&str; 8] = [
    // It names a session that there is not inside a sealed message, which ends the connection
    // (MS-SMB2 3.3.5.2.1.1).
    "smb2.compound.invalid2",
    "smb2.connect",
    "smb2.tcon",
    "smb2.durable-open.reopen1a",
    "smb2.durable-open.reopen1a-lease",
    "smb2.durable-v2-open.reopen1a",
    "smb2.durable-v2-open.reopen1a-lease",
    "smb2.lock.cancel-logoff",
];

/// Runs a suite signed and encrypted and checks that just `allowed` does not pass.
fn check(name: &str, least: usize, allowed: &[&str]) {
    for protection in ["sign", "encrypt"] {
        let ended = |test: &str| protection == "encrypt" && OF_ENDED_SESSIONS.contains(&test);
        if ended(name) {
            continue;
        }
        // Some tests send requests that no session signs.
        let options = "signing = \"enabled\"\nencryption = \"offered\"\ntest_controls = true";
        let server = Smbd::start(options, "");
        let Some(results) = suite(&server, name, protection, LIMIT) else { return };
        let surprise: Vec<_> = results
            .failed
            .iter()
            .chain(&results.skipped)
            .filter(|test| !allowed.contains(&test.as_str()) && !ended(test))
            .collect();
        assert!(surprise.is_empty(), "{name} ({protection}): {surprise:?}\n{}", results.output);
        let passed = results.passed.len() + results.failed.iter().filter(|t| ended(t)).count();
        assert!(passed >= least, "{name} ({protection}): {passed} passed\n{}", results.output);
    }
}

#[test]
fn connect() {
    check("smb2.connect", 1, &[]);
}

#[test]
fn tcon() {
    check("smb2.tcon", 1, &[]);
}

#[test]
fn rw() {
    check("smb2.rw", 3, &[]);
}

#[test]
fn read() {
    check("smb2.read", 5, &[]);
}

#[test]
fn mkdir() {
    check("smb2.mkdir", 1, &[]);
}

#[test]
fn credits() {
    check("smb2.credits", 3, &[]);
}

#[test]
fn sharemode() {
    check("smb2.sharemode", 3, &[]);
}

#[test]
fn compound() {
    // One by one, and not invalid4: it sends a command that there is not, which ends the connection
    // (MS-SMB2 3.3.5.2.6; Samba answers it), and the tests after it wait for a dead one.
    const TESTS: [&str; 18] = [
        "related1",
        "related2",
        "related3",
        "related4",
        "related5",
        "related6",
        "related7",
        "related8",
        "related9",
        "unrelated1",
        "invalid1",
        "invalid2",
        "invalid3",
        "interim1",
        "interim2",
        "compound-break",
        "compound-padding",
        "create-write-close",
    ];
    for test in TESTS {
        check(&format!("smb2.compound.{test}"), 1, &[]);
    }
    check("smb2.compound_find", 3, &[]);
}

#[test]
fn names_and_folders() {
    check("smb2.dir", 7, &["smb2.dir.file-index"]);
    check("smb2.rename", 11, &[]);
    check("smb2.mangle", 1, &[]);
    check("smb2.charset", 3, &["smb2.charset.Testing partial surrogate"]);
    check("smb2.fileid", 4, &[]);
}

#[test]
fn creates() {
    check("smb2.create", 14, &["smb2.create.gentest", "smb2.create.quota-fake-file"]);
    check("smb2.delete-on-close-perms", 9, &[]);
    check("smb2.deny", 2, &[]);
    check("smb2.openattr", 1, &[]);
    check("smb2.winattr", 1, &[]);
}

#[test]
fn streams() {
    check("smb2.streams", 13, &["smb2.streams.rename2"]);
    check("smb2.ioctl-on-stream", 1, &[]);
}

#[test]
fn information() {
    check("smb2.getinfo", 8, &[]);
    check("smb2.setinfo", 1, &[]);
}

#[test]
fn timestamps() {
    // They want a write not to show for two seconds, as it was before Windows Server 2022.
    let older = ["vs-seteof", "vs-flush", "vs-setbasic"].map(|with| format!("write-{with}"));
    let older = older.into_iter().chain(["2write".to_owned()]);
    let older: Vec<_> = older.map(|test| format!("smb2.timestamps.delayed-{test}")).collect();
    check("smb2.timestamps", 11, &older.iter().map(String::as_str).collect::<Vec<_>>());
}

#[test]
fn access_lists() {
    check("smb2.acls", 14, &[]);
    check("smb2.sdread", 1, &[]);
}

#[test]
fn locks() {
    // Skipped by the suite itself: for clusters of Samba, and for servers of long ago.
    let others = ["rw-none", "replay_broken_windows", "ctdb-delrec-deadlock"];
    let others = others.map(|test| format!("smb2.lock.{test}"));
    check("smb2.lock", 22, &others.each_ref().map(String::as_str));
    check("smb2.compound_async", 2, &[]);
}

#[test]
fn durable_handles() {
    check("smb2.durable-open", 23, &[]);
    check("smb2.durable-v2-open", 15, &[]);
}

/// Those that do not wait for a break to time out; `make interop` runs all.
#[test]
fn oplocks_and_leases() {
    for test in [
        "oplock.exclusive1",
        "oplock.batch1",
        "oplock.batch11",
        "oplock.batch16",
        "oplock.brl1",
        "oplock.levelii502",
        "lease.request",
        "lease.break_twice",
        "lease.upgrade2",
        "lease.breaking3",
        "lease.v2_request_parent",
        "lease.v2_complex1",
        "lease.unlink",
        "notify.dir",
        "notify.rec",
        "notify.tree",
        "notify.overflow",
        "notify.rmdir3",
        "notify.tree",
    ] {
        check(&format!("smb2.{test}"), 1, &[]);
    }
}

/// Previous versions, on each file system that has them.
#[test]
fn twrp() {
    for kind in [Kind::Xfs, Kind::Btrfs] {
        let Some(volume) = Volume::mount(kind) else { return };
        let server = Smbd::start_in(&volume.path(), "signing = \"enabled\"", "");
        let Some(results) = suite(&server, "smb2.twrp", "sign", LIMIT) else { return };
        let passed =
            ["smb2.twrp.write", "smb2.twrp.stream", "smb2.twrp.openroot", "smb2.twrp.listdir"];
        assert_eq!(results.passed, passed, "{kind:?}:\n{}", results.output);
    }
}

/// On a file system whose files share blocks; what needs compression or Samba's private test
/// controls does not apply.
#[test]
fn ioctl() {
    let Some(volume) = Volume::mount(Kind::Xfs) else { return };
    let server = "signing = \"enabled\"\nencryption = \"offered\"";
    let server = Smbd::start_in(&volume.path(), server, "");
    let Some(results) = suite(&server, "smb2.ioctl", "sign", LIMIT) else { return };
    // It wants the answer of ReFS to a demand for compression; that of NTFS is another
    // (MS-FSA 2.1.5.10.30, MS-FSCC 2.3.68).
    let allowed = ["smb2.ioctl.bug14769", "smb2.ioctl.compress_notsup_set"];
    let surprise: Vec<_> =
        results.failed.iter().filter(|test| !allowed.contains(&test.as_str())).collect();
    assert!(surprise.is_empty(), "{surprise:?}\n{}", results.output);
    assert!(results.passed.len() >= 58, "{} passed\n{}", results.passed.len(), results.output);
}

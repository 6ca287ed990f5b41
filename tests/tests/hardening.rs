//! What smbd gives up before it serves anyone, and that it serves all the same.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    process::Command,
    time::Duration,
};

use bulkhead_tests::{
    process::{foreign, run},
    smbd::{PASSWORD, Smbd, USER},
};

fn smbclient(server: &Smbd, what: &str) -> Option<String> {
    let mut command = Command::new(foreign("smbclient")?);
    command
        .current_dir(server.scratch())
        .args(["-s", "/dev/null", "-p", &server.port().to_string()])
        .args(["-U", &format!("{USER}%{PASSWORD}"), "//127.0.0.1/vms", "-c", what]);
    let output = run(&mut command, Duration::from_secs(60));
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    Some(out + &String::from_utf8_lossy(&output.stderr))
}

/// A line of /proc/PID/status.
fn status(server: &Smbd, key: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    line.unwrap_or_default().trim().to_owned()
}

#[test]
fn a_server_gains_no_privileges_and_filters_its_system_calls() {
    let server = Smbd::start("", "");
    assert_eq!(status(&server, "NoNewPrivs"), "1");
    assert_eq!(status(&server, "Seccomp"), "2");
    let open = Smbd::start("sandbox = false", "");
    assert_eq!(status(&open, "Seccomp"), "0");
}

#[test]
fn a_reload_cannot_lead_out_of_the_sandbox() {
    let server = Smbd::start("", "");
    let config = fs::read_to_string(server.config()).unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let share = format!("[[share]]\nname = \"x\"\npath = \"{}\"\n", elsewhere.path().display());
    fs::write(server.config(), format!("{config}{share}")).unwrap();
    let output = server.admin(&["server", "reload"]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && errors.contains("restart it"), "{errors}");
    // A folder below one that is shared already is no news.
    fs::create_dir(server.files().join("below")).unwrap();
    let share = "[[share]]\nname = \"x\"\npath = \"files/below\"\n";
    fs::write(server.config(), format!("{config}{share}")).unwrap();
    assert!(server.admin(&["server", "reload"]).status.success());
}

#[test]
fn a_server_becomes_its_user_and_serves() {
    if !rustix::process::geteuid().is_root() {
        bulkhead_tests::skip(
            bulkhead_tests::Need::Root.because("becoming another user needs root"),
        );
        return;
    }
    // The user must reach what is its own.
    let base = tempfile::tempdir().unwrap();
    fs::set_permissions(base.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let passwd = fs::read_to_string("/etc/passwd").unwrap();
    let Some(nobody) = passwd.lines().find(|line| line.starts_with("nobody:")) else { return };
    let uid: u32 = nobody.split(':').nth(2).unwrap().parse().unwrap();
    let server = Smbd::start_as("nobody", uid, base.path());
    let ids = status(&server, "Uid");
    assert!(ids.split_whitespace().all(|id| id == uid.to_string()), "{ids}");
    assert_eq!(status(&server, "CapEff"), "0000000000000000");
    fs::write(server.scratch().join("local"), "content").unwrap();
    let what = "put local a; get a back; mkdir d; rename a d\\a; allinfo d\\a; del d\\a; rmdir d";
    let Some(text) = smbclient(&server, what) else { return };
    assert!(!text.contains("NT_STATUS_"), "{text}");
    assert_eq!(fs::read_to_string(server.scratch().join("back")).unwrap(), "content");
    let text = smbclient(&server, "put local kept").unwrap();
    assert!(!text.contains("NT_STATUS_"), "{text}");
    assert_eq!(fs::metadata(server.files().join("kept")).unwrap().uid(), uid);
    assert_eq!(fs::metadata(server.scratch().join("state")).unwrap().uid(), uid);
    assert!(server.admin(&["server", "reload"]).status.success());
}

/// A server that stays root does not lend a client's content root's rights.
#[test]
fn content_that_a_client_changes_is_not_set_user_id() {
    if !rustix::process::geteuid().is_root() {
        bulkhead_tests::skip(
            bulkhead_tests::Need::Root.because("only root keeps these bits when it writes"),
        );
        return;
    }
    let server = Smbd::start("", "");
    // CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER; on Btrfs CAP_SYS_ADMIN.
    let kept = u64::from_str_radix(&status(&server, "CapEff"), 16).unwrap();
    assert_eq!(kept & !(1 << 21), 0b1111, "{kept:#x}");
    let program = server.files().join("program");
    let make = |bits: u32| {
        fs::write(&program, "#!/bin/sh\nexit 0\n").unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(bits)).unwrap();
    };
    for bits in [0o4755, 0o2755, 0o6755] {
        make(bits);
        fs::write(server.scratch().join("new"), "#!/bin/sh\nrm -rf /\n").unwrap();
        let Some(said) = smbclient(&server, "put new program") else { return };
        assert!(said.contains("putting file"), "{said}");
        assert_eq!(fs::metadata(&program).unwrap().mode() & 0o7777, 0o755, "{bits:o}");
    }
}

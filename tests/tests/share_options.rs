//! Options of shares that show only with a real client or a real file system.

use std::{fs, os::unix::fs::MetadataExt, process::Command, time::Duration};

use bulkhead_tests::{
    process::{foreign, run},
    smbd::{PASSWORD, Smbd, USER},
};

fn smbclient(server: &Smbd, share: &str, what: &str) -> Option<String> {
    let mut command = Command::new(foreign("smbclient")?);
    command.args(["-s", "/dev/null", "-p", &server.port().to_string()]).args([
        "-U",
        &format!("{USER}%{PASSWORD}"),
        &format!("//127.0.0.1/{share}"),
        "-c",
        what,
    ]);
    let output = run(&mut command, Duration::from_secs(60));
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    Some(out + &String::from_utf8_lossy(&output.stderr))
}

fn share(name: &str, options: &str) -> String {
    format!("[[share]]\nname = \"{name}\"\npath = \"files\"\nusers = [\"{USER}\"]\n{options}\n")
}

#[test]
fn a_share_is_refused_to_clients_from_elsewhere() {
    let near = share("near", "hosts_allow = [\"127.0.0.0/8\"]");
    let far = share("far", "hosts_allow = [\"192.0.2.0/24\"]");
    let shut = share("shut", "hosts_deny = [\"127.0.0.1\"]");
    let server = Smbd::start("", &format!("{near}{far}{shut}"));
    let Some(text) = smbclient(&server, "near", "ls") else { return };
    assert!(!text.contains("NT_STATUS_"), "{text}");
    for name in ["far", "shut"] {
        let text = smbclient(&server, name, "ls").unwrap();
        assert!(text.contains("NT_STATUS_ACCESS_DENIED"), "{name}: {text}");
    }
}

#[test]
fn what_is_made_in_a_share_gets_its_group() {
    if !rustix::process::geteuid().is_root() {
        bulkhead_tests::skip(
            bulkhead_tests::Need::Root.because("giving files another group needs root"),
        );
        return;
    }
    let server = Smbd::start("", &share("ours", "group = \"4242\""));
    let local = server.scratch().join("local");
    fs::write(&local, "x").unwrap();
    let what = format!("put {} f; mkdir d", local.display());
    let Some(text) = smbclient(&server, "ours", &what) else { return };
    assert!(!text.contains("NT_STATUS_"), "{text}");
    for name in ["f", "d"] {
        assert_eq!(fs::metadata(server.files().join(name)).unwrap().gid(), 4242, "{name}");
    }
}

//! A DFS namespace as Samba's smbclient walks through it. It dials port 445 of a link's target,
//! so the test runs in a network of its own.

use std::{fs, process::Command, time::Duration};

use bulkhead_tests::{
    process::{foreign, run},
    smbd::{PASSWORD, Smbd, USER},
};

const LIMIT: Duration = Duration::from_secs(60);
/// Set where the network is our own.
const INSIDE: &str = "BULKHEAD_TEST_NETWORK";

/// Runs this test once more in a new network; `true` in there, when its body is to be run.
fn in_a_network_of_its_own(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        let up = run(Command::new("ip").args(["link", "set", "lo", "up"]), LIMIT);
        assert!(up.status.success(), "no loopback: {}", String::from_utf8_lossy(&up.stderr));
        return true;
    }
    for program in ["unshare", "ip", "smbclient"] {
        if foreign(program).is_none() {
            return false;
        }
    }
    if !rustix::process::geteuid().is_root() {
        bulkhead_tests::skip(
            bulkhead_tests::Need::Root.because("a network of one's own needs root"),
        );
        return false;
    }
    let ourselves = std::env::current_exe().unwrap();
    let mut command = Command::new("unshare");
    command.arg("--net").arg(ourselves).args(["--exact", test, "--nocapture"]).env(INSIDE, "1");
    let output = run(&mut command, LIMIT * 2);
    let (out, error) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}{error}");
    false
}

#[test]
fn smbclient_walks_through_a_link() {
    if !in_a_network_of_its_own("smbclient_walks_through_a_link") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("target");
    fs::create_dir_all(target.join("deep")).unwrap();
    fs::write(target.join("deep/file"), "elsewhere").unwrap();
    let rest = format!(
        "[[share]]\nname = \"target\"\npath = \"{}\"\nusers = [\"{USER}\"]\n\
         [[dfs]]\npath = '\\vms\\a\\link'\ntargets = ['\\\\127.0.0.1\\target']\n",
        target.display()
    );
    let server =
        Smbd::start_at("127.0.0.1:445".parse().unwrap(), "encryption = \"offered\"", &rest);
    fs::create_dir_all(server.files().join("a/link")).unwrap();
    fs::write(server.files().join("own"), "here").unwrap();
    let smbclient = |args: &[&str], what: &str| {
        let mut command = Command::new(foreign("smbclient").unwrap());
        command
            .current_dir(server.scratch())
            .args(["-s", "/dev/null", "-U", &format!("{USER}%{PASSWORD}")])
            .args(args)
            .args(["//127.0.0.1/vms", "-c", what]);
        let output = run(&mut command, LIMIT);
        let out = String::from_utf8_lossy(&output.stdout);
        let text = format!("{out}{}", String::from_utf8_lossy(&output.stderr));
        assert!(!text.contains("NT_STATUS"), "{args:?} {what}: {text}");
        text
    };
    for dialect in ["SMB2_02", "SMB2_10", "SMB3_00", "SMB3_11"] {
        let args = [&*format!("--option=client max protocol={dialect}")];
        // In the namespace, through the link, and by a path that crosses it.
        let what = "get own mine; cd a/link; cd deep; ls; showconnect; cd /; \
                    get a\\link\\deep\\file theirs; put mine a\\link\\deep\\new";
        let text = smbclient(&args, what);
        assert!(text.contains("//127.0.0.1/target") && text.contains("file"), "{text}");
        assert_eq!(fs::read(server.scratch().join("mine")).unwrap(), b"here");
        assert_eq!(fs::read(server.scratch().join("theirs")).unwrap(), b"elsewhere");
        assert_eq!(fs::read(target.join("deep/new")).unwrap(), b"here");
        fs::remove_file(target.join("deep/new")).unwrap();
        // What lies in the namespace below the link is not reached.
        assert_eq!(fs::read_dir(server.files().join("a/link")).unwrap().count(), 0);
    }
}

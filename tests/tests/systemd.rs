//! The units of packaging/ under a real service manager, which is process 1 of namespaces of its
//! own: everything that its filters forbid and smbd needs shows here.

use std::{fs, path::Path, process::Command, time::Duration};

use bulkhead_tests::process::{foreign, ours, run};

#[test]
fn smbd_is_a_service() {
    let systemd = Path::new("/lib/systemd/systemd");
    if !rustix::process::geteuid().is_root() {
        bulkhead_tests::skip(bulkhead_tests::Need::Root.because("a machine of its own needs root"));
        return;
    }
    if !systemd.exists() {
        bulkhead_tests::skip(bulkhead_tests::Need::Programs.because("systemd is not installed"));
        return;
    }
    let tools = ["unshare", "smbclient", "runuser", "useradd", "pgrep", "ip"];
    if !tools.iter().all(|tool| foreign(tool).is_some()) {
        return;
    }
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    // What a service manager cleans when it starts is not the machine's.
    let kept = ["/tmp", "/var/tmp"];
    let kept = kept.map(|place| {
        let canary = tempfile::Builder::new().prefix("canary").tempdir_in(place).unwrap();
        fs::write(canary.path().join("file"), "precious").unwrap();
        canary
    });
    let parameters = kernel_parameters();
    let (report, root) = (folder.path().join("report"), Path::new(env!("CARGO_MANIFEST_DIR")));
    fs::write(&report, "").unwrap();
    let smbd = ours("smbd");
    let namespaces = ["--fork", "--pid", "--mount", "--cgroup", "--uts", "--ipc", "--net"];
    let mut command = Command::new("unshare");
    command.args(namespaces).arg("--kill-child").arg(root.join("systemd/enter.sh"));
    let output = run(command.arg(smbd.parent().unwrap()).arg(&report), Duration::from_secs(240));
    let report = fs::read_to_string(&report).unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    if !report.contains("systemd: ") && said.contains("Operation not permitted") {
        bulkhead_tests::skip(format_args!("this machine allows no namespaces: {said}"));
        return;
    }
    assert!(report.contains("systemd: PASS"), "{report}\n{said}");
    for canary in kept {
        let file = canary.path().join("file");
        assert_eq!(fs::read(&file).unwrap(), b"precious", "{} was touched", file.display());
    }
    assert_eq!(kernel_parameters(), parameters);
}

/// Parameters of the kernel that a service manager sets when a machine boots.
fn kernel_parameters() -> Vec<Option<String>> {
    let names = ["kernel/core_pattern", "kernel/pid_max", "kernel/sysrq", "fs/nr_open"];
    names.map(|name| fs::read_to_string(Path::new("/proc/sys").join(name)).ok()).into()
}

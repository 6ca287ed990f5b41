//! The Debian packages: what they hold, and that they are installed, upgraded, removed and purged as
//! an administrator expects, in namespaces and a layer above the machine's files.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use bulkhead_tests::{
    Need,
    process::{foreign, ours, run},
    skip,
};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Builds the packages in a folder; the names and bytes of what is in it.
fn build(out: &Path, version: &str) -> BTreeMap<PathBuf, Vec<u8>> {
    let programs = ["smbd", "bulkhead", "hyperv-host"].map(ours);
    let script = Path::new(ROOT).join("../packaging/build.sh");
    let mut command = Command::new(script);
    command.arg(programs[0].parent().unwrap()).arg(out).arg(version).env("COMPRESSION", "none");
    let output = run(&mut command, Duration::from_secs(240));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let files = fs::read_dir(out).unwrap().map(|entry| entry.unwrap().path());
    files.map(|path| (path.file_name().unwrap().into(), fs::read(&path).unwrap())).collect()
}

#[test]
fn packages_are_installed_and_purged_and_leave_what_is_not_theirs() {
    if !rustix::process::geteuid().is_root() {
        skip(Need::Root.because("a layer above the machine's files needs root"));
        return;
    }
    let tools = ["unshare", "dpkg-deb", "dpkg-shlibdeps", "dpkg-scanpackages", "setpriv", "strip"];
    let more = ["smbclient", "systemd-sysusers", "ip"];
    if !tools.iter().chain(&more).all(|tool| foreign(tool).is_some()) {
        return;
    }
    let scratch = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let [old, new, again] = ["old", "new", "again"].map(|name| scratch.path().join(name));
    let built = build(&old, "1.0.0");
    build(&new, "9.0.0");
    assert!(build(&again, "1.0.0") == built, "the same source gave other bytes");
    let packages = String::from_utf8(built[Path::new("Packages")].clone()).unwrap();
    let named = packages.lines().filter(|line| line.starts_with("Package: "));
    assert_eq!(named.count(), 3, "{packages}");
    assert!(packages.contains("libc6 (>= "), "{packages}");

    let mut command = Command::new("unshare");
    command.args(["--fork", "--pid", "--mount", "--ipc", "--net", "--kill-child"]);
    command.arg(Path::new(ROOT).join("packages/scenario.sh")).args([&old, &new]);
    let output = run(command.arg(scratch.path()), Duration::from_secs(240));
    let said = [&output.stdout[..], &output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    if !said.contains("packages: ") && said.contains("Operation not permitted") {
        skip(format_args!("this machine allows no namespaces: {said}"));
        return;
    }
    assert!(said.contains("packages: PASS"), "{said}");
}

/// What `--help` lists, the manual page explains.
#[test]
fn manual_pages_know_every_option() {
    for (program, page) in [("smbd", "bulkhead-smbd.8"), ("hyperv-host", "hyperv-host.8")] {
        let output = run(Command::new(ours(program)).arg("--help"), Duration::from_secs(30));
        let help = String::from_utf8(output.stdout).unwrap();
        let page = Path::new(ROOT).join("../packaging/man").join(page);
        let page = fs::read_to_string(page).unwrap().replace('\\', "");
        let options: Vec<_> = help
            .split_whitespace()
            .filter(|word| word.starts_with("--"))
            .map(|word| word.trim_end_matches(|end: char| !end.is_ascii_lowercase()))
            .collect();
        assert!(options.len() > 2, "{help}");
        for option in options {
            assert!(page.contains(option), "{program} {option}");
        }
    }
}

//! `bulkhead disk` with images of other formats, sets, devices in use, and kept track of.

mod common;

use std::{path::Path, process::Command};

use tempfile::TempDir;

use common::{fails, json, ok, raw, text};

fn qemu_img(dir: &Path, args: &[&str]) -> Option<String> {
    let Ok(output) = Command::new("qemu-img").current_dir(dir).args(args).output() else {
        test_support::skip(test_support::Need::Programs.because("no qemu-img here"));
        return None;
    };
    assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
    Some(text(&output.stdout))
}

#[test]
fn images_go_from_format_to_format() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    let bytes = raw(&dir.join("a.raw"), 0);
    ok(dir, &["disk", "convert", "a.raw", "a.qcow2"]);
    let info = json(dir, &["disk", "info", "a.qcow2", "--json"]);
    assert_eq!((&info["size"], &info["cluster_size"]), (&bytes.len().into(), &65536.into()));
    let check = json(dir, &["disk", "check", "a.qcow2", "--json"]);
    assert_eq!((&check["errors"], &check["warnings"]), (&0.into(), &0.into()), "{check}");
    ok(dir, &["disk", "convert", "a.qcow2", "b.vhdx", "--block-size", "1M"]);
    ok(dir, &["disk", "convert", "--volatile", "b.vhdx", "c.qcow2", "--block-size", "4K"]);
    ok(dir, &["disk", "convert", "c.qcow2", "d.vhd"]);
    ok(dir, &["disk", "convert", "d.vhd", "e.raw"]);
    // A VHD's size is one that its geometry gives.
    assert!(std::fs::read(dir.join("e.raw")).unwrap()[..bytes.len()] == bytes);
    ok(dir, &["disk", "create", "empty.qcow2", "--size", "1T"]);
    let info = json(dir, &["disk", "info", "empty.qcow2", "--json"]);
    assert_eq!(info["size"], 1u64 << 40);
    for (args, expected) in [
        (&["disk", "convert", "a.raw", "x.vmdk"][..], "cannot make vmdk images"),
        (&["disk", "create", "x.qcow2", "--size", "1M", "--fixed"][..], "not fixed"),
        (&["disk", "create", "x.qcow2", "--size", "1M", "--block-size", "4M"][..], "2 MiB"),
        (&["disk", "info", "a.raw", "--format", "qcow2"][..], "wrong signature"),
        (&["disk", "info", "a.raw", "--format", "vmdk"][..], "descriptor at offset 0x0"),
    ] {
        let message = fails(dir, args);
        assert!(message.contains(expected), "{args:?}: {message}");
    }
    let args = ["convert", "-f", "qcow2", "-O", "vmdk", "c.qcow2", "f.vmdk"];
    if qemu_img(dir, &args).is_none() {
        return;
    }
    let info = json(dir, &["disk", "info", "f.vmdk", "--json"]);
    assert_eq!((&info["kind"], &info["size"]), (&"monolithicSparse".into(), &bytes.len().into()));
    ok(dir, &["disk", "check", "f.vmdk"]);
    ok(dir, &["disk", "convert", "f.vmdk", "g.raw"]);
    assert!(std::fs::read(dir.join("g.raw")).unwrap() == bytes);
}

#[test]
fn changes_since_a_point_are_told() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    ok(dir, &["disk", "create", "a.vhdx", "--size", "64M"]);
    let missing = fails(dir, &["disk", "track", "point", "a.vhdx", "one"]);
    assert!(missing.contains("no track is kept"), "{missing}");
    ok(dir, &["disk", "track", "enable", "a.vhdx"]);
    let id = ok(dir, &["disk", "track", "point", "a.vhdx", "one"]);
    let since = |point: &str| json(dir, &["disk", "changes", "a.vhdx", "--since", point, "--json"]);
    assert_eq!(since("one")["changed"], 0);
    assert_eq!(since(id.trim())["everything"], false);
    let again = fails(dir, &["disk", "track", "point", "a.vhdx", "one"]);
    assert!(again.contains("already"), "{again}");

    if let Some(write) = qemu_io(dir, "a.vhdx", "write -P 1 1M 200k") {
        assert!(write);
        let changes = since("one");
        assert_eq!(
            (&changes["changed"], &changes["everything"]),
            (&(256 << 10).into(), &false.into())
        );
        assert_eq!(changes["ranges"][0]["offset"], 1 << 20);
        ok(dir, &["disk", "track", "point", "a.vhdx", "two"]);
        assert!(qemu_io(dir, "a.vhdx", "write -P 2 5M 4k").unwrap());
        assert_eq!(since("two")["changed"], 64 << 10);
        assert_eq!(since("one")["changed"], 320 << 10);
        ok(dir, &["disk", "track", "remove", "a.vhdx", "two"]);
        assert_eq!(since("one")["changed"], 320 << 10);
        let list = json(dir, &["disk", "track", "list", "a.vhdx", "--json"]);
        assert_eq!((list.as_array().unwrap().len(), &list[0]["name"]), (1, &"one".into()));

        // Someone else writes to it.
        let args = ["-f", "vhdx", "-c", "write 0 4k", "a.vhdx"];
        let wrote = Command::new("qemu-io").current_dir(dir).args(args).output().unwrap();
        assert!(wrote.status.success());
        let changes = since("one");
        assert_eq!(
            (&changes["changed"], &changes["everything"]),
            (&(64 << 20).into(), &true.into())
        );
        let point = fails(dir, &["disk", "track", "point", "a.vhdx", "three"]);
        assert!(point.contains("changed without keeping track"), "{point}");
    }
    ok(dir, &["disk", "track", "disable", "a.vhdx"]);
    assert!(!dir.join("a.vhdx.tracking").exists());
}

/// Has qemu-io do something to an image that is served here; `None` if there is no qemu-io.
fn qemu_io(dir: &Path, image: &str, step: &str) -> Option<bool> {
    use std::io::{BufRead, BufReader};
    if Command::new("qemu-io").arg("--version").output().is_err() {
        test_support::skip(test_support::Need::Programs.because("no qemu-io here"));
        return None;
    }
    let mut server = Command::new(env!("CARGO_BIN_EXE_bulkhead"))
        .current_dir(dir)
        .args(["disk", "serve", image, "--socket", "nbd", "--until-idle"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let url = line.trim().rsplit_once(": ").expect("it says where it is").1;
    let args = ["-f", "raw", "-c", step, url];
    let done = Command::new("qemu-io").current_dir(dir).args(args).output().unwrap();
    Some(done.status.success() && server.wait().unwrap().success())
}

#[test]
fn a_set_is_told_by_its_images() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    std::fs::write(dir.join("disk.vhds"), [0; 4096]).unwrap();
    ok(dir, &["disk", "create", "disk_base.avhdx", "--size", "64M"]);
    ok(dir, &["disk", "create", "disk_now.avhdx", "--parent", "disk_base.avhdx"]);
    ok(dir, &["disk", "create", "other.avhdx", "--size", "64M"]);
    let info = json(dir, &["disk", "info", "disk.vhds", "--json"]);
    let images = info["images"].as_array().unwrap();
    assert_eq!(images.len(), 2, "{info}");
    assert_eq!(
        (&images[0]["name"], &images[0]["snapshot"]),
        (&"disk_base.avhdx".into(), &true.into())
    );
    assert_eq!(
        (&images[1]["parent"], &images[1]["snapshot"]),
        (&"disk_base.avhdx".into(), &false.into())
    );
    let said = ok(dir, &["disk", "info", "disk.vhds"]);
    assert!(said.contains("current") && said.contains("on disk_base.avhdx"), "{said}");
    assert!(fails(dir, &["disk", "info", "gone.vhds"]).contains("No such file"));
}

#[test]
fn a_device_at_rest_is_taken_over_in_two_passes() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    let bytes = raw(&dir.join("device"), 0);
    let done = json(dir, &["disk", "import", "device", "a.vhdx", "--json"]);
    assert_eq!((&done["consistent"], &done["changed"]), (&true.into(), &serde_json::json!([0])));
    ok(dir, &["disk", "convert", "a.vhdx", "back.raw"]);
    assert!(std::fs::read(dir.join("back.raw")).unwrap() == bytes);
    let said = ok(dir, &["disk", "import", "device", "b.vhdx"]);
    // A fraction of a second is none of nothing.
    let took = said.trim().rsplit_once(" passes in ").and_then(|(_, took)| took.strip_suffix(" s"));
    assert!(took.is_some_and(|took| took.parse::<f64>().is_ok()), "{said}");
    let message = fails(dir, &["disk", "import", "device", "a.qcow2"]);
    assert!(message.contains("import makes"), "{message}");
}

#[test]
fn a_file_in_use_is_waited_for_and_named() {
    use std::io::{BufRead, BufReader};
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    ok(dir, &["disk", "create", "a.vhdx", "--size", "64M"]);
    let serve = |socket: &str| {
        let mut child = Command::new(env!("CARGO_BIN_EXE_bulkhead"))
            .current_dir(dir)
            .args(["disk", "serve", "a.vhdx", "--socket", socket])
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        (child, line)
    };
    let (mut holder, line) = serve("one");
    assert!(line.contains("one"), "{line}");
    let message = fails(dir, &["disk", "serve", "a.vhdx", "--socket", "two"]);
    assert!(message.contains("a.vhdx is in use by bulkhead (pid "), "{message}");
    // The next begins while the holder still has it, and goes on when that is killed.
    let next = std::thread::scope(|scope| {
        let next = scope.spawn(|| serve("two"));
        holder.kill().unwrap();
        holder.wait().unwrap();
        next.join().unwrap()
    });
    let (mut child, line) = next;
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(line.contains("two"), "{line}");
}

/// A loop device over a file, given up when the test ends.
struct Loop(String);

impl Loop {
    /// `None` with a line where there are no loop devices, or not for this user.
    fn over(file: &Path) -> Option<Self> {
        let output = Command::new("losetup").args(["--find", "--show"]).arg(file).output();
        match output {
            Ok(output) if output.status.success() => Some(Self(text(&output.stdout).trim().into())),
            other => {
                test_support::skip(format_args!("no loop device here: {other:?}"));
                None
            }
        }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        // If it is gone already there is nothing to give up.
        let _ = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

#[test]
fn a_block_device_is_taken_over() {
    use std::{io::Write, os::unix::fs::FileExt};
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    let mut bytes = raw(&dir.join("under"), 0);
    let Some(device) = Loop::over(&dir.join("under")) else { return };
    // Written through the device and not yet in the file below.
    let mut open = std::fs::OpenOptions::new().write(true).open(&device.0).unwrap();
    open.write_all_at(&[0x77; 5000], 6 << 20).unwrap();
    open.flush().unwrap();
    bytes[6 << 20..][..5000].fill(0x77);
    let done = json(dir, &["disk", "import", &device.0, "a.vhdx", "--json"]);
    assert_eq!((&done["consistent"], &done["size"]), (&true.into(), &(bytes.len() as u64).into()));
    ok(dir, &["disk", "compare", "a.vhdx", &device.0, "--other-format", "raw"]);
    ok(dir, &["disk", "convert", "a.vhdx", "back.raw"]);
    assert!(std::fs::read(dir.join("back.raw")).unwrap() == bytes);
}

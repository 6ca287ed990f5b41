//! `bulkhead disk` as a user runs it.

mod common;

use std::{
    path::Path,
    process::{Command, Stdio},
};

use tempfile::TempDir;

use common::{BULKHEAD, bulkhead, fails, json, ok, raw, text};

#[test]
fn create_info_check() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    let args = ["disk", "create", "a.vhdx", "--size", "4GiB", "--block-size", "2M"];
    assert_eq!(ok(dir, &args), "a.vhdx: vhdx, 4 GiB\n");
    let info = json(dir, &["disk", "info", "a.vhdx", "--json"]);
    assert_eq!(info["kind"], "dynamic");
    assert_eq!(info["size"], 4u64 << 30);
    assert_eq!(info["block_size"], 2 << 20);
    assert_eq!(info["logical_sector_size"], 512);
    assert_eq!(info["allocated_blocks"], 0);
    assert!(ok(dir, &["disk", "info", "a.vhdx"]).contains("4 GiB (4294967296 bytes)"));
    let check = json(dir, &["disk", "check", "a.vhdx", "--json"]);
    assert_eq!((&check["errors"], &check["warnings"]), (&0.into(), &0.into()));

    let args = [
        "disk",
        "create",
        "f.vhdx",
        "--size",
        "10M",
        "--fixed",
        "--logical-sector-size",
        "4096",
        "--block-size",
        "1M",
        "--json",
    ];
    assert_eq!(json(dir, &args)["fixed"], true);
    let info = json(dir, &["disk", "info", "f.vhdx", "--json"]);
    assert_eq!((&info["kind"], &info["allocated_blocks"]), (&"fixed".into(), &10.into()));
    assert_eq!(info["logical_sector_size"], 4096);

    let message = fails(dir, &["disk", "create", "a.vhdx", "--size", "1G"]);
    assert!(message.contains("exists"), "{message}");
    ok(dir, &["disk", "create", "a.vhdx", "--size", "1G", "--force"]);
    assert_eq!(json(dir, &["disk", "info", "a.vhdx", "--json"])["size"], 1 << 30);
}

#[test]
fn mistakes_are_named() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    for (args, expected) in [
        (&["disk", "create", "x.vhdx", "--size", "10X"][..], "is not a size"),
        (&["disk", "create", "x.vhdx", "--size", "65T"][..], "at most 64 TiB"),
        (&["disk", "create", "x.vhdx", "--size", "1G", "--block-size", "3M"][..], "power of two"),
        (&["disk", "create", "x.qed", "--size", "1G"][..], "names no image format"),
        (&["disk", "info", "missing.vhdx"][..], "No such file"),
        (&["disk", "info", "ftp://host/x.vhdx"][..], "no storage of kind \"ftp\""),
    ] {
        let message = fails(dir, args);
        assert!(message.contains(expected), "{args:?}: {message}");
    }
}

#[test]
fn damage_fails_the_check_and_is_named() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("a.vhdx");
    ok(dir.path(), &["disk", "create", "a.vhdx", "--size", "1G"]);
    let mut bytes = std::fs::read(&path).unwrap();
    // A table entry that points past the end of the file.
    bytes[3 << 20..][..8].copy_from_slice(&(0x1000u64 << 20 | 6).to_le_bytes());
    std::fs::write(&path, &bytes).unwrap();
    let output = bulkhead(dir.path(), &["disk", "check", "a.vhdx", "--json"]);
    assert!(!output.status.success());
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["errors"], 1);
    assert_eq!(report["findings"][0]["structure"], "block table");
    assert_eq!(report["findings"][0]["offset"], 3 << 20);
    let message = fails(dir.path(), &["disk", "convert", "a.vhdx", "a.raw"]);
    assert!(message.contains("block table at offset 0x300000"), "{message}");
}

#[test]
fn converts_there_and_back() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    let bytes = raw(&dir.join("a.raw"), 512);
    ok(dir, &["disk", "convert", "a.raw", "a.vhdx", "--block-size", "1M"]);
    let done = json(dir, &["disk", "convert", "a.vhdx", "b.vhdx", "--fixed", "--json"]);
    assert_eq!(done["size"], bytes.len());
    assert!(done["written"].as_u64().unwrap() < 1 << 20, "{done}");
    ok(dir, &["disk", "convert", "b.vhdx", "b.bin"]);
    assert!(std::fs::read(dir.join("b.bin")).unwrap() == bytes);
    for name in ["a.vhdx", "b.vhdx"] {
        let check = json(dir, &["disk", "check", name, "--json"]);
        assert_eq!((&check["errors"], &check["unused_bytes"]), (&0.into(), &0.into()), "{check}");
    }
    // Named formats win over endings.
    ok(dir, &["disk", "convert", "a.vhdx", "c.vhdx", "--from", "raw", "--to", "raw"]);
    assert!(
        std::fs::read(dir.join("a.vhdx")).unwrap() == std::fs::read(dir.join("c.vhdx")).unwrap()
    );
}

#[test]
fn a_raw_file_of_any_length_is_filled_up_to_a_sector() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    for (extra, sector) in [(100, "512"), (100, "4096"), (512, "4096")] {
        let mut bytes = raw(&dir.join("a.raw"), extra);
        let to = ["--logical-sector-size", sector, "--force"];
        ok(dir, &[&["disk", "convert", "a.raw", "a.vhdx"][..], &to].concat());
        ok(dir, &["disk", "convert", "a.vhdx", "b.raw", "--force"]);
        bytes.resize(bytes.len().next_multiple_of(sector.parse().unwrap()), 0);
        assert!(std::fs::read(dir.join("b.raw")).unwrap() == bytes, "{extra} {sector}");
    }
}

#[test]
fn a_child_holds_what_differs_and_refuses_a_changed_parent() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let bytes = raw(&dir.join("disk.raw"), 0);
    ok(dir, &["disk", "convert", "disk.raw", "base.vhdx", "--block-size", "1M"]);
    std::fs::create_dir(dir.join("below")).unwrap();
    ok(dir, &["disk", "create", "below/one.vhdx", "--parent", "base.vhdx"]);
    ok(dir, &["disk", "create", "two.vhdx", "--parent", "below/one.vhdx"]);
    let info = json(dir, &["disk", "info", "two.vhdx", "--json"]);
    assert_eq!(
        (info["kind"].as_str(), info["size"].as_u64()),
        (Some("differencing"), Some(bytes.len() as u64))
    );
    assert_eq!(info["parent"]["relative_path"], r".\below\one.vhdx");
    assert_eq!(info["allocated_blocks"], 0);
    ok(dir, &["disk", "check", "two.vhdx"]);
    ok(dir, &["disk", "convert", "two.vhdx", "back.raw"]);
    assert!(std::fs::read(dir.join("back.raw")).unwrap() == bytes);

    let error =
        fails(dir, &["disk", "create", "base.vhdx", "--parent", "below/one.vhdx", "--force"]);
    assert!(error.contains("parent's own chain"), "{error}");
    let error = fails(dir, &["disk", "create", "x.raw", "--parent", "base.vhdx"]);
    assert!(error.contains("has no parent"), "{error}");
    let error = fails(dir, &["disk", "create", "x.vhdx", "--parent", "base.vhdx", "--size", "1M"]);
    assert!(error.contains("the parent is larger"), "{error}");

    // Another image at the parent's place.
    ok(dir, &["disk", "convert", "disk.raw", "base.vhdx", "--force"]);
    let error = fails(dir, &["disk", "convert", "two.vhdx", "again.raw"]);
    assert!(error.contains("is not the parent or was changed since"), "{error}");
    std::fs::remove_file(dir.join("base.vhdx")).unwrap();
    let error = fails(dir, &["disk", "convert", "two.vhdx", "again.raw"]);
    assert!(error.contains("is not there (looked at: below/../base.vhdx)"), "{error}");
}

#[test]
fn a_vhd_is_made_described_checked_and_converted() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    let bytes = raw(&dir.join("disk.raw"), 512);
    ok(dir, &["disk", "convert", "disk.raw", "base.vhd", "--block-size", "512K"]);
    ok(dir, &["disk", "create", "child.vhd", "--parent", "base.vhd"]);
    for (name, kind) in [("base.vhd", "dynamic"), ("child.vhd", "differencing")] {
        let info = json(dir, &["disk", "info", name, "--json"]);
        assert_eq!((&info["format"], &info["kind"]), (&"vhd".into(), &kind.into()), "{info}");
        assert_eq!(info["size"], bytes.len());
        assert!(ok(dir, &["disk", "info", name]).contains(kind));
        assert_eq!(json(dir, &["disk", "check", name, "--json"])["errors"], 0);
    }
    ok(dir, &["disk", "convert", "child.vhd", "copy.vhdx"]);
    ok(dir, &["disk", "convert", "copy.vhdx", "fixed.vhd", "--fixed"]);
    ok(dir, &["disk", "convert", "fixed.vhd", "back.raw"]);
    assert!(std::fs::read(dir.join("back.raw")).unwrap() == bytes);
    let error = fails(dir, &["disk", "create", "big.vhd", "--size", "3TiB"]);
    assert!(error.contains("at most 2040 GiB") && !dir.join("big.vhd").exists(), "{error}");
    let error = fails(dir, &["disk", "create", "x.vhdx", "--parent", "base.vhd"]);
    assert!(error.contains("base.vhd"), "{error}");
}

/// A parent and a child in both formats, each with data of its own, and what the child reads as.
fn parent_and_child(dir: &Path, ending: &str) -> (String, String, Vec<u8>) {
    let bytes = raw(&dir.join("disk.raw"), 0);
    let (base, child) = (format!("base.{ending}"), format!("child.{ending}"));
    ok(dir, &["disk", "convert", "disk.raw", &base, "--block-size", "1M"]);
    ok(dir, &["disk", "create", &child, "--parent", &base]);
    (base, child, bytes)
}

fn reads_as(dir: &Path, image: &str, bytes: &[u8]) {
    ok(dir, &["disk", "convert", image, "now.raw", "--force"]);
    assert!(std::fs::read(dir.join("now.raw")).unwrap() == bytes, "{image}");
    let check = json(dir, &["disk", "check", image, "--json"]);
    assert_eq!((&check["errors"], &check["warnings"]), (&0.into(), &0.into()), "{check}");
}

#[test]
fn resize_keeps_data_unless_told_not_to() {
    for ending in ["vhdx", "vhd"] {
        let dir = TempDir::new().unwrap();
        let dir = dir.path();
        let (base, _, mut bytes) = parent_and_child(dir, ending);
        let done = json(dir, &["disk", "resize", &base, "11M", "--json"]);
        assert_eq!(done["size"], 11 << 20);
        bytes.resize(11 << 20, 0);
        reads_as(dir, &base, &bytes);
        let error = fails(dir, &["disk", "resize", &base, "6M"]);
        assert!(error.contains("there is data up to 9437184, past the new size"), "{error}");
        ok(dir, &["disk", "resize", &base, "9M"]);
        ok(dir, &["disk", "resize", &base, "6M", "--force"]);
        bytes.truncate(6 << 20);
        reads_as(dir, &base, &bytes);
        let error = fails(dir, &["disk", "resize", &base, "1"]);
        assert!(error.contains("whole"), "{error}");
        let error = fails(dir, &["disk", "resize", "disk.raw", "1M"]);
        assert!(error.contains("no structures"), "{error}");
    }
}

#[test]
fn snapshots_are_merged_again() {
    for ending in ["vhdx", "vhd"] {
        let dir = TempDir::new().unwrap();
        let dir = dir.path();
        let (base, _, bytes) = parent_and_child(dir, ending);
        let one = json(dir, &["disk", "snapshot", &base, "--json"]);
        let one = one["file"].as_str().unwrap().to_owned();
        assert_eq!(one, format!("base.1.{ending}"));
        let mode = std::fs::metadata(dir.join(&base)).unwrap().permissions();
        assert!(mode.readonly(), "{base} can be written to");
        ok(dir, &["disk", "snapshot", &one, "--name", "top"]);
        let top = format!("base.1.top.{ending}");
        let map = json(dir, &["disk", "map", &top, "--json"]);
        let parts = map.as_array().unwrap();
        let data = parts.iter().find(|part| part["kind"] == "data").unwrap();
        assert_eq!((&data["depth"], data["file"].as_str()), (&2.into(), Some(base.as_str())));
        let length: u64 = parts.iter().map(|part| part["length"].as_u64().unwrap()).sum();
        assert_eq!(length, bytes.len() as u64);
        assert!(ok(dir, &["disk", "map", &top]).contains(&base));

        let error = fails(dir, &["disk", "merge", &top, "--into", &top]);
        assert!(error.contains("is not below"), "{error}");
        let done = json(dir, &["disk", "merge", &top, "--into", &base, "--json"]);
        assert_eq!(done["not_needed"], serde_json::json!([top, one]));
        reads_as(dir, &top, &bytes);
        reads_as(dir, &base, &bytes);
        let error = fails(dir, &["disk", "merge", &base]);
        assert!(error.contains("has no parent"), "{error}");
    }
}

#[test]
fn rebase_keeps_what_the_disk_reads_as() {
    for ending in ["vhdx", "vhd"] {
        let dir = TempDir::new().unwrap();
        let dir = dir.path();
        let (base, child, bytes) = parent_and_child(dir, ending);
        let other = format!("other.{ending}");
        std::fs::create_dir(dir.join("below")).unwrap();
        ok(dir, &["disk", "create", &other, "--size", "9M"]);
        let done = json(dir, &["disk", "rebase", &child, "--parent", &other, "--json"]);
        assert!(done["taken_over"].as_u64().unwrap() > 0, "{done}");
        reads_as(dir, &child, &bytes);
        // The same content somewhere else: only the place changes.
        let moved = format!("below/{base}");
        std::fs::rename(dir.join(&base), dir.join(&moved)).unwrap();
        ok(dir, &["disk", "rebase", &child, "--parent", &moved, "--unsafe"]);
        let info = json(dir, &["disk", "info", &child, "--json"]);
        assert!(info["parent"].to_string().contains("below"), "{info}");
        reads_as(dir, &child, &bytes);
        let error = fails(dir, &["disk", "rebase", &moved, "--parent", &child, "--unsafe"]);
        assert!(error.contains("parent's own chain"), "{error}");
    }
}

#[test]
fn compact_trim_clone_set_and_compare() {
    for ending in ["vhdx", "vhd"] {
        let dir = TempDir::new().unwrap();
        let dir = dir.path();
        let bytes = raw(&dir.join("disk.raw"), 0);
        let (a, b) = (format!("a.{ending}"), format!("b.{ending}"));
        ok(dir, &["disk", "convert", "disk.raw", &a, "--block-size", "1M"]);
        ok(dir, &["disk", "resize", &a, "6M", "--force"]);
        ok(dir, &["disk", "compact", &a]);
        let done = json(dir, &["disk", "trim", &a, "--zeros", "--json"]);
        assert!(done["holes"].as_u64().is_some(), "{done}");
        reads_as(dir, &a, &bytes[..6 << 20]);

        ok(dir, &["disk", "clone", &a, &b]);
        assert!(fails(dir, &["disk", "clone", &a, &b]).contains("exists"));
        reads_as(dir, &b, &bytes[..6 << 20]);
        let id = |name: &str| json(dir, &["disk", "info", name, "--json"])["disk_id"].clone();
        assert_ne!(id(&a), id(&b));
        let wanted = "01234567-89ab-cdef-0123-456789abcdef";
        ok(dir, &["disk", "set", &b, "--disk-id", wanted]);
        assert_eq!(id(&b), wanted);
        assert!(fails(dir, &["disk", "set", &b, "--disk-id", "x"]).contains("no identifier"));
        assert!(fails(dir, &["disk", "set", &b]).contains("nothing to set"));
        assert!(ok(dir, &["disk", "compare", &a, &b]).contains("read the same"));
        let error = fails(dir, &["disk", "compare", &a, "disk.raw"]);
        assert!(error.contains("differ from byte"), "{error}");
        if ending == "vhdx" {
            ok(dir, &["disk", "set", &b, "--physical-sector-size", "512"]);
            assert_eq!(json(dir, &["disk", "info", &b, "--json"])["physical_sector_size"], 512);
        }
        let error = fails(dir, &["disk", "compact", &a, "--format", "raw"]);
        assert!(error.contains("no structures"), "{error}");
    }
}

#[test]
fn repair_says_what_it_did() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("a.vhdx");
    ok(dir.path(), &["disk", "create", "a.vhdx", "--size", "1G"]);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[3 << 20..][..8].copy_from_slice(&(0x1000u64 << 20 | 6).to_le_bytes());
    bytes[64 << 10] = 0;
    std::fs::write(&path, &bytes).unwrap();
    fails(dir.path(), &["disk", "check", "a.vhdx"]);
    let report = json(dir.path(), &["disk", "check", "a.vhdx", "--repair", "--json"]);
    assert_eq!(report["errors"], 0);
    let done = report["repairs"].as_array().unwrap();
    assert_eq!(done.len(), 2, "{report}");
    assert_eq!(done[0]["structure"], "header 1");
    assert_eq!((&done[1]["offset"], &done[1]["kind"]), (&(3 << 20).into(), &"repaired".into()));
    let said = ok(dir.path(), &["disk", "check", "a.vhdx", "--repair"]);
    assert!(!said.contains("repaired") && said.contains("0 errors, 0 warnings"), "{said}");
}

/// `bulkhead … | head`: who reads no more is told no more, and that is no fault of what was asked for. A
/// full disk below `> file` is one.
#[test]
fn a_reader_that_has_gone_is_no_failure_and_a_full_disk_is_one() {
    let dir = TempDir::new().unwrap();
    ok(dir.path(), &["disk", "create", "a.vhdx", "--size", "1GiB"]);
    for args in [&["disk", "info", "a.vhdx"][..], &["disk", "map", "a.vhdx", "--json"], &["--help"]]
    {
        let told = |stdout: Stdio| {
            let mut command = Command::new(BULKHEAD);
            command.current_dir(dir.path()).args(args).stdout(stdout);
            let output =
                command.stderr(Stdio::piped()).spawn().unwrap().wait_with_output().unwrap();
            (output.status.code(), text(&output.stderr))
        };
        let (reads, writes) = std::io::pipe().unwrap();
        drop(reads);
        assert_eq!(told(writes.into()), (Some(0), String::new()), "{args:?}");
        if args[0] == "disk" {
            let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
            let (code, message) = told(full.into());
            assert_eq!(code, Some(1));
            assert!(message.contains("standard output: No space left on device"), "{message}");
        }
    }
}

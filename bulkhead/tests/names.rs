//! Formats are what they say, and what an image names stays in its folder.

mod common;

use std::{
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
    process::Command,
};

use common::{fails, ok, run};
use tempfile::TempDir;

/// A file that is raw by its ending and an image by its content is taken for neither unasked.
#[test]
fn an_image_called_raw_is_refused_until_its_format_is_named() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    std::fs::write(dir.join("small.raw"), vec![1; 1 << 20]).unwrap();
    let qemu = |format: &str, more: &[&str], name: &str| {
        run(Command::new("qemu-img")
            .args(["convert", "-f", "raw", "-O", format])
            .args(more)
            .arg(dir.join("small.raw"))
            .arg(dir.join(name)));
    };
    qemu("qcow2", &[], "a.img");
    qemu("vmdk", &[], "b.bin");
    qemu("vhdx", &[], "c.raw");
    qemu("vpc", &["-o", "force_size"], "d.iso");
    qemu("vpc", &["-o", "force_size,subformat=fixed"], "e.img");
    let short = std::fs::read(dir.join("e.img")).unwrap();
    std::fs::write(dir.join("f.img"), &short[..short.len() - 1]).unwrap();
    for (file, mark, format) in [
        ("a.img", "QCOW2", "qcow2"),
        ("b.bin", "VMDK", "vmdk"),
        ("c.raw", "VHDX", "vhdx"),
        ("d.iso", "VHD", "vhd"),
        ("e.img", "VHD", "vhd"),
        ("f.img", "VHD", "vhd"),
    ] {
        for words in [
            &["disk", "convert", file, "o.vhdx"][..],
            &["disk", "info", file],
            &["disk", "compare", file, "small.raw"],
            &["disk", "compare", "small.raw", file],
            &["disk", "import", file, "o.vhdx"],
            &["disk", "serve", file, "--socket", "s"],
            &["disk", "serve", file, "--socket", "s", "--read-only"],
        ] {
            let told = fails(dir, words);
            assert!(told.contains(&format!("the mark of a {mark} image")), "{words:?}: {told}");
            assert!(told.contains(file) && !dir.join("o.vhdx").exists(), "{words:?}: {told}");
        }
        // Named, it is what it is, or what the caller says.
        ok(dir, &["disk", "convert", file, "o.raw", "--from", format, "--force"]);
        let read = std::fs::read(dir.join("o.raw")).unwrap();
        assert!(read[..1 << 20] == [1; 1 << 20] && read[1 << 20..].iter().all(|byte| *byte == 0));
        ok(dir, &["disk", "convert", file, "o.raw", "--from", "raw", "--force"]);
        let whole = std::fs::read(dir.join(file)).unwrap();
        assert!(std::fs::read(dir.join("o.raw")).unwrap().starts_with(&whole[..512]));
    }
    std::fs::write(dir.join("set.vhds"), b"?").unwrap();
    let told = fails(dir, &["disk", "convert", "set.vhds", "o.raw", "--force"]);
    assert!(told.contains("VHD set"), "{told}");
}

/// A QCOW2 image whose backing file is another, as its maker names it.
fn qcow2_on(dir: &Path, name: &str, backing: &str, format: &str) {
    run(Command::new("qemu-img")
        .current_dir(dir)
        .args(["create", "-q", "-u", "-f", "qcow2", "-b", backing, "-F", format, name, "1M"]));
}

/// Whoever makes an image may name any file in it: what the tool's user reads it does not get so.
#[test]
fn an_image_shows_nothing_of_files_that_it_names() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    std::fs::create_dir(dir.join("upload")).unwrap();
    let secret = dir.join("secret");
    std::fs::write(&secret, b"the secret of root".repeat(100)).unwrap();
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::write(dir.join("upload/beside"), vec![7; 1 << 20]).unwrap();
    symlink(&secret, dir.join("upload/link")).unwrap();
    for (backing, why) in [
        (secret.to_str().unwrap(), "lies outside of upload"),
        ("../secret", "lies outside of upload"),
        ("link", "lies outside of upload"),
        ("/etc/hostname", "lies outside of upload"),
        ("/dev/zero", "lies outside of upload"),
    ] {
        qcow2_on(dir, "upload/a.qcow2", backing, "raw");
        for more in [&[][..], &["--trust-raw-backing"]] {
            let words = [&["disk", "convert", "upload/a.qcow2", "o.raw", "--force"][..], more];
            let told = fails(dir, &words.concat());
            let why = if more.is_empty() { "--trust-raw-backing" } else { why };
            assert!(told.contains(why), "{backing}: {told}");
            let made = std::fs::read(dir.join("o.raw")).unwrap_or_default();
            assert!(!made.windows(10).any(|part| part == b"the secret"), "{backing}");
        }
        // Saying what it is opens none of it.
        assert!(ok(dir, &["disk", "info", "upload/a.qcow2"]).contains(backing));
    }
    qcow2_on(dir, "upload/a.qcow2", "../secret", "raw");
    let words = ["disk", "convert", "upload/a.qcow2", "o.raw", "--force", "--trust-raw-backing"];
    ok(dir, &[&words[..], &["--parents-from", "."]].concat());
    qcow2_on(dir, "upload/a.qcow2", "beside", "raw");
    assert!(fails(dir, &words[..5]).contains("--trust-raw-backing"));
    ok(dir, &words);
    assert!(std::fs::read(dir.join("o.raw")).unwrap() == vec![7; 1 << 20]);
    // A backing file that is an image needs no trust, and its own backing file does.
    qcow2_on(dir, "upload/b.qcow2", "a.qcow2", "qcow2");
    let words = ["disk", "convert", "upload/b.qcow2", "o.raw", "--force"];
    assert!(fails(dir, &words).contains("--trust-raw-backing"));
    ok(dir, &[&words[..], &["--trust-raw-backing"]].concat());
}

/// A VMDK's extents are files beside it.
#[test]
fn extents_outside_of_the_folder_are_not_read() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    std::fs::create_dir(dir.join("upload")).unwrap();
    std::fs::write(dir.join("secret"), vec![9; 4096]).unwrap();
    symlink("../secret", dir.join("upload/link")).unwrap();
    let secret = dir.join("secret");
    for extent in ["../secret", secret.to_str().unwrap(), "link", "x/../../secret"] {
        let text = format!("# Disk DescriptorFile\ncreateType=\"m\"\nRW 8 FLAT \"{extent}\" 0\n");
        std::fs::write(dir.join("upload/a.vmdk"), text).unwrap();
        let told = fails(dir, &["disk", "convert", "upload/a.vmdk", "o.raw", "--force"]);
        assert!(told.contains("outside of"), "{extent}: {told}");
        assert!(!std::fs::read(dir.join("o.raw")).unwrap_or_default().contains(&9));
        ok(dir, &["disk", "info", "upload/a.vmdk"]);
    }
}

/// Parents in other folders: by name of the folder only, for every subcommand that reads below.
#[test]
fn parents_elsewhere_are_opened_where_that_is_allowed() {
    for ending in ["vhdx", "vhd"] {
        let dir = TempDir::new().unwrap();
        let dir = dir.path();
        let (base, child) = (format!("golden/base.{ending}"), format!("vm/child.{ending}"));
        std::fs::create_dir(dir.join("golden")).unwrap();
        std::fs::create_dir(dir.join("vm")).unwrap();
        ok(dir, &["disk", "create", &base, "--size", "8M"]);
        ok(dir, &["disk", "create", &child, "--parent", &base]);
        ok(dir, &["disk", "info", &child]);
        for words in [
            &["disk", "convert", &child, "o.raw", "--force"][..],
            &["disk", "map", &child],
            &["disk", "compact", &child],
            &["disk", "resize", &child, "16M"],
            &["disk", "snapshot", &child],
            &["disk", "merge", &child],
        ] {
            let told = fails(dir, words);
            assert!(told.contains("lies outside of vm; --parents-from"), "{words:?}: {told}");
            if words[1] != "snapshot" {
                ok(dir, &[words, &["--parents-from", "golden"]].concat());
            }
        }
    }
}

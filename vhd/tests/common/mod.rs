//! What the image tests share.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::{
    io::Read,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::Arc,
};

use block_io::{Disk, File, LocalFile, LocalOptions, testing::MemFile};
use vhd::vhdx::{CreateOptions, OpenOptions, Vhdx, create};

pub const MIB: u64 = 1 << 20;

/// Options for a small dynamic image.
pub fn small(size: u64, block_size: u64) -> CreateOptions {
    CreateOptions { block_size: block_size as u32, ..CreateOptions::new(size) }
}

/// A new image in memory.
pub async fn mem_image(options: &CreateOptions) -> Arc<MemFile> {
    let file = Arc::new(MemFile::new());
    create(file.clone(), options).await.unwrap();
    file
}

pub async fn open(file: Arc<dyn File>) -> Vhdx {
    Vhdx::open(file, OpenOptions::default()).await.unwrap()
}

pub async fn open_read_only(file: Arc<dyn File>) -> Vhdx {
    Vhdx::open(file, OpenOptions::read_only()).await.unwrap()
}

pub fn local(path: impl AsRef<Path>, options: LocalOptions) -> Arc<LocalFile> {
    Arc::new(LocalFile::open(path, &options).unwrap())
}

/// All bytes of a disk.
pub async fn read_all(disk: &dyn Disk) -> Vec<u8> {
    let mut bytes = vec![0xee; disk.geometry().size as usize];
    for (i, chunk) in bytes.chunks_mut(8 << 20).enumerate() {
        disk.read_at((i * (8 << 20)) as u64, chunk).await.unwrap();
    }
    bytes
}

/// Fails with the findings unless the image has no error.
pub async fn assert_clean(file: Arc<dyn File>) -> vhd::vhdx::Report {
    let report = vhd::vhdx::check(file).await.unwrap();
    assert!(report.is_clean() && report.warnings == 0, "{report:#?}");
    report
}

/// Whether `qemu-img` is here; says so if not.
pub fn have_qemu() -> bool {
    have("qemu-img")
}

pub fn have(tool: &str) -> bool {
    let found = Command::new(tool)
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if !found {
        test_support::skip(test_support::Need::Programs.because(format_args!("no {tool} here")));
    }
    found
}

pub fn run(tool: &str, args: &[&str]) -> Output {
    let output = Command::new(tool).args(args).output().unwrap();
    assert!(
        output.status.success(),
        "{tool} {args:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

pub fn qemu_img(args: &[&str]) -> String {
    String::from_utf8(run("qemu-img", args).stdout).unwrap()
}

/// `qemu-img check` finds nothing.
pub fn qemu_check(path: &Path) {
    let text = qemu_img(&["check", "-f", "vhdx", path.to_str().unwrap()]);
    assert!(text.contains("No errors were found"), "{text}");
}

/// A sample image, decompressed into `dir`; `None` with a line if it is not here.
pub fn sample(name: &str, dir: &Path) -> Option<PathBuf> {
    let folder = std::env::var_os("BULKHEAD_SAMPLES").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/samples"),
        PathBuf::from,
    );
    let packed = folder.join(name);
    if !packed.exists() {
        test_support::skip(
            test_support::Need::Samples.because(format_args!("no {} here", packed.display())),
        );
        return None;
    }
    let tool = if name.ends_with(".gz") { "gzip" } else { "bzip2" };
    if !have(tool) {
        return None;
    }
    let target = dir.join(packed.file_stem().unwrap());
    let out = std::fs::File::create(&target).unwrap();
    let status =
        Command::new(tool).arg("-dc").arg(&packed).stdout(Stdio::from(out)).status().unwrap();
    assert!(status.success());
    Some(target)
}

/// The SHA-256 of a file, by coreutils.
pub fn sha256(path: &Path) -> String {
    let output = run("sha256sum", &[path.to_str().unwrap()]);
    String::from_utf8(output.stdout).unwrap()[..64].to_owned()
}

/// Whether two files have the same bytes.
pub fn same(a: &Path, b: &Path) -> bool {
    let (mut a, mut b) = (std::fs::File::open(a).unwrap(), std::fs::File::open(b).unwrap());
    if a.metadata().unwrap().len() != b.metadata().unwrap().len() {
        return false;
    }
    let (mut x, mut y) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    loop {
        let n = a.read(&mut x).unwrap();
        b.read_exact(&mut y[..n]).unwrap();
        if n == 0 {
            return true;
        }
        if x[..n] != y[..n] {
            return false;
        }
    }
}

/// The SHA-256 of what libvhdi reads from a chain of images, the newest first; `None` with a line
/// if its Python module is not here. `BULKHEAD_PYVHDI` may name the folder it is in.
pub fn libvhdi_sum(chain: &[&str]) -> Option<String> {
    const READ: &str = "import sys, hashlib\ntry:\n import pyvhdi\nexcept ImportError:\n sys.exit(77)\n\
        chain = []\n\
        for path in sys.argv[1:]:\n f = pyvhdi.file(); f.open(path); chain.append(f)\n\
        for child, parent in zip(chain, chain[1:]): child.set_parent(parent)\n\
        f = chain[0]; h = hashlib.sha256(); left = f.get_media_size()\n\
        while left:\n b = f.read_buffer(min(left, 1 << 20)); h.update(b); left -= len(b)\n\
        print(h.hexdigest())";
    let Ok(output) = Command::new("/usr/bin/python3")
        .env("PYTHONPATH", std::env::var_os("BULKHEAD_PYVHDI").unwrap_or_default())
        .args(["-c", READ])
        .args(chain)
        .output()
    else {
        test_support::skip(test_support::Need::Programs.because("no /usr/bin/python3 here"));
        return None;
    };
    if output.status.code() == Some(77) {
        test_support::skip(test_support::Need::Programs.because("no pyvhdi here"));
        return None;
    }
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

//! The Python package smbprotocol: every dialect, signing algorithm and cipher.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use bulkhead_tests::{
    process::{foreign, run},
    smbd::{PASSWORD, Smbd, USER},
};

const LIMIT: Duration = Duration::from_secs(240);
const PACKAGE: &str = "smbprotocol==1.17.0";

/// A Python with the package, in a folder that is kept between runs; `None`, with one line that
/// says why, if it cannot be had.
fn python() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("smbprotocol");
    let python = folder.join("bin/python");
    let has_package = |python: &Path| {
        python.exists()
            && run(Command::new(python).args(["-c", "import smbprotocol"]), LIMIT).status.success()
    };
    if has_package(&python) {
        return Some(python);
    }
    let system = foreign("python3")?;
    let made = run(Command::new(system).args(["-m", "venv"]).arg(&folder), LIMIT);
    if made.status.success() {
        let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"];
        let options = ["--timeout", "20", "--retries", "1", PACKAGE];
        run(Command::new(&python).args(pip).args(options), LIMIT);
    }
    if has_package(&python) {
        return Some(python);
    }
    bulkhead_tests::skip(bulkhead_tests::Need::Network.because(format_args!(
        "the Python package {PACKAGE} is not installed and cannot be fetched"
    )));
    None
}

#[test]
fn every_dialect_signature_and_cipher() {
    let Some(python) = python() else { return };
    let server = Smbd::start("encryption = \"offered\"", "");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("python/matrix.py");
    let mut command = Command::new(python);
    command.arg(script).args([&server.port().to_string(), USER, PASSWORD]);
    let output = run(&mut command, LIMIT);
    let text = String::from_utf8_lossy(&output.stdout);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}{error}");
    // 2.0.2 and 2.1; 3.0 and 3.0.2, signed and sealed; 3.1.1 with three algorithms, each signed
    // and with four ciphers.
    assert_eq!(text.lines().filter(|line| line.starts_with("ok ")).count(), 2 + 4 + 15, "{text}");
    assert_eq!(std::fs::read_dir(server.files()).unwrap().count(), 0);
}

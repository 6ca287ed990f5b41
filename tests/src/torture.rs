//! smbtorture against our server, with its results counted.

use std::{process::Command, time::Duration};

use crate::{
    process::{foreign, run},
    smbd::{PASSWORD, PASSWORD2, Smbd, USER, USER2},
};

/// What a suite came to.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Results {
    /// Tests that passed.
    pub passed: Vec<String>,
    /// Tests that failed.
    pub failed: Vec<String>,
    /// Tests that did not apply.
    pub skipped: Vec<String>,
    /// Everything that was printed.
    pub output: String,
}

/// Runs a suite; `protection` is `sign`, `encrypt` or `off`. `None` if smbtorture is missing.
pub fn suite(server: &Smbd, name: &str, protection: &str, limit: Duration) -> Option<Results> {
    let program = foreign("smbtorture")?;
    let mut command = Command::new(program);
    command
        .current_dir(server.scratch())
        .args(["--format=subunit", "--fullname", "-s", "/dev/null"])
        .args(["-p", &server.port().to_string()])
        .args(["-U", &format!("DOM\\{USER}%{PASSWORD}")])
        .arg("--option=client min protocol=SMB2_10")
        .arg(format!("--client-protection={protection}"))
        .arg(format!("--option=torture:user2name={USER2}"))
        .arg(format!("--option=torture:user2password={PASSWORD2}"))
        .arg("//127.0.0.1/vms")
        .arg(name);
    let output = run(&mut command, limit);
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    let named = |kinds: &[&str]| {
        let mut names = Vec::new();
        for line in text.lines() {
            for kind in kinds {
                if let Some(rest) = line.strip_prefix(kind) {
                    names.push(rest.trim_end_matches('[').trim().to_owned());
                }
            }
        }
        names
    };
    Some(Results {
        passed: named(&["success: "]),
        failed: named(&["failure: ", "error: "]),
        skipped: named(&["skip: "]),
        output: text,
    })
}

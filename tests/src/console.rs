//! What tests of the web console share: a server with its pages, Node's modules, and journeys in a browser.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use rustix::fs::{FlockOperation, flock};
use serde_json::{Value, json};

use crate::{
    interface::Interface,
    process::{foreign, ours, run},
    smbd::{Smbd, USER},
};

/// How long a journey, or the installation of modules, may take.
const LIMIT: Duration = Duration::from_secs(280);

/// The folder of the console's sources.
pub fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../console")
}

/// The folder with `node_modules` as the lockfile has them, below the target folder, made anew when that
/// changes. `None`, with a line that says why, without Node or a registry of packages.
///
/// # Panics
/// If the folder cannot be written.
pub fn modules() -> Option<PathBuf> {
    foreign("node")?;
    let npm = foreign("npm")?;
    let target = ours("smbd").parent()?.parent()?.join("console");
    let folder = target.join("modules");
    fs::create_dir_all(&folder).expect("the target folder is writable");
    // Tests are processes: one of them installs, the others wait.
    let lock = File::create(target.join("lock")).expect("the target folder is writable");
    flock(&lock, FlockOperation::LockExclusive).expect("a file of ours can be locked");
    let names = ["package.json", "package-lock.json", ".npmrc"];
    let wanted = names.map(|name| fs::read(sources().join(name)).expect("it is in the tree"));
    let done = folder.join("done");
    if fs::read(&done).is_ok_and(|have| have == wanted.concat()) {
        return Some(folder);
    }
    let _ = fs::remove_file(&done);
    for (name, bytes) in names.iter().zip(&wanted) {
        fs::write(folder.join(name), bytes).expect("the target folder is writable");
    }
    let mut install = Command::new(npm);
    // No script of a package runs.
    install.args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"]).current_dir(&folder);
    let output = run(&mut install, LIMIT);
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let why = format!("npm cannot install the modules of the console: {said}");
        test_support::skip(test_support::Need::Network.because(why));
        return None;
    }
    fs::write(done, wanted.concat()).expect("the target folder is writable");
    Some(folder)
}

/// A server with the console at a port of its own, and a user for each role.
#[derive(Debug)]
pub struct Console {
    /// The server.
    pub server: Smbd,
    /// Where its pages are.
    pub interface: Interface,
}

impl Console {
    /// Starts one; `rest` is put behind the section of the interface.
    ///
    /// # Panics
    /// If what it needs cannot be written.
    pub fn start(rest: &str) -> Self {
        let interface = Interface::new();
        Self { server: Smbd::start("", &interface.table(rest)), interface }
    }

    /// The certificate by which clients know it.
    pub fn ca(&self) -> PathBuf {
        self.interface.ca()
    }

    /// Goes on a journey (`tests/console/journeys.mjs`) with more for it to know, and leaves pictures below
    /// `target/console`. `false` if it cannot be gone here.
    ///
    /// # Panics
    /// If something was not as it must be.
    pub fn journey(&self, name: &str, more: &Value) -> bool {
        let mut given = json!({ "user": USER, "files": self.server.files() });
        join(&mut given, more);
        journey(&self.interface, name, &given)
    }
}

fn join(all: &mut Value, more: &Value) {
    if let (Some(all), Some(more)) = (all.as_object_mut(), more.as_object()) {
        all.extend(more.clone());
    }
}

/// Goes on a journey through the console of a daemon with this interface.
///
/// # Panics
/// If something was not as it must be.
pub fn journey(interface: &Interface, name: &str, more: &Value) -> bool {
    let Some((modules, browser)) = modules().zip(foreign("chromium")) else { return false };
    let shots = modules.with_file_name("pictures");
    let mut given = json!({
        "url": format!("{}/", interface.url()),
        "modules": modules,
        "browser": browser,
        "shots": shots,
        "dist": sources().join("dist"),
    });
    join(&mut given, more);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("console/journeys.mjs");
    let mut command = Command::new("node");
    // The browser keeps what it has in a folder that goes with the journey.
    command.arg(script).arg(name).env("HOME", interface.folder());
    command.env("TMPDIR", interface.folder());
    command.env("BULKHEAD_CONSOLE_JOURNEY", given.to_string());
    let output = run(&mut command, LIMIT);
    let (said, errors) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.contains("arrived"), "{name}: {said}\n{errors}");
    true
}

//! An smbd that serves iSCSI, and images for it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use serde_json::Value;

use crate::{
    initiator::{Answer, TARGET},
    port::Port,
    process::{ours, run},
    smbd::Smbd,
};

/// A file server with one target, at a port of its own.
#[derive(Debug)]
pub struct Served {
    /// The server.
    pub server: Smbd,
    /// Where it takes initiators.
    pub port: Port,
    /// What a configuration held before the target.
    before: String,
}

impl Served {
    /// Starts one; `target` are keys of its `[[target]]` and the `[[target.lun]]` behind them.
    pub fn start(target: &str) -> Self {
        Self::start_with("", target)
    }

    /// Starts one with more keys of `[server]`.
    pub fn start_with(keys: &str, target: &str) -> Self {
        let port = Port::reserve();
        let server = Smbd::start(keys, &section(&port, target));
        let config = fs::read_to_string(server.config()).expect("it was written");
        let (before, _) = config.split_once("[[target]]").expect("there is a target");
        Self { before: before.to_owned(), server, port }
    }

    /// Writes another target into the configuration.
    pub fn configure(&self, target: &str) {
        let text = format!("{}{}", self.before, target_section(target));
        fs::write(self.server.config(), text).expect("the folder is writable");
    }

    /// Has it read its configuration, with another target; what it says if it does not like it.
    pub fn reload(&self, target: &str) -> Result<(), String> {
        self.configure(target);
        let output = self.server.admin(&["server", "reload"]);
        match output.status.success() {
            true => Ok(()),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }

    /// The URL of a logical unit as libiscsi's programs take it; `login` is empty or `user%secret@`.
    pub fn url(&self, login: &str, lun: u16) -> String {
        format!("iscsi://{login}{}/{TARGET}/{lun}", self.port.address())
    }
}

/// The sections of a target at a port.
pub fn section(port: &Port, target: &str) -> String {
    format!("[iscsi]\nlisten = [\"{}\"]\n{}", port.address(), target_section(target))
}

fn target_section(target: &str) -> String {
    format!("[[target]]\nname = \"{TARGET}\"\n{target}\n")
}

/// A `[[target.lun]]`.
pub fn lun(number: u16, path: &Path, keys: &str) -> String {
    format!("[[target.lun]]\nnumber = {number}\npath = \"{}\"\n{keys}\n", path.display())
}

/// A sparse raw image.
pub fn thin(folder: &Path, name: &str, size: u64) -> PathBuf {
    let path = folder.join(name);
    let file = fs::File::create(&path).expect("the folder is writable");
    file.set_len(size).expect("a sparse file has room");
    path
}

/// A raw image all of whose blocks are there.
pub fn thick(folder: &Path, name: &str, size: u64) -> PathBuf {
    let path = thin(folder, name, size);
    let file = fs::File::options().write(true).open(&path).expect("it was made");
    let all = rustix::fs::FallocateFlags::empty();
    rustix::fs::fallocate(&file, all, 0, size).expect("there is room");
    path
}

/// A VHDX of `size`, as `bulkhead disk create` takes it.
pub fn vhdx(folder: &Path, name: &str, size: &str) -> PathBuf {
    create(folder, name, &["--size", size])
}

/// An image that `bulkhead disk create` makes with these options.
pub fn create(folder: &Path, name: &str, options: &[&str]) -> PathBuf {
    let path = folder.join(name);
    let mut command = Command::new(ours("bulkhead"));
    command.args(["disk", "create"]).arg(&path).args(options);
    let output = run(&mut command, Duration::from_secs(60));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    path
}

/// An answer that is none of a failure.
pub fn good(answer: &Answer) {
    assert_eq!(answer.status, 0, "{answer:?}");
}

/// What a server's admin socket answers, which must not refuse; null if that is no JSON.
pub fn ask(server: &Smbd, args: &[&str]) -> Value {
    let output = server.admin(args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
}

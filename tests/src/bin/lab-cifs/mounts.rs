//! The mounts, and mounting.

use std::{fs, path::Path};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::Outcome;

const PLACE: &str = "/mnt";

/// Where smbd is.
pub struct Server {
    /// Its address, as the VM sees it.
    pub address: String,
    /// Its port.
    pub port: u16,
}

/// What is done on a mount beyond the quick operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Random operations for a given time.
    Soak,
    /// fio with checksums.
    Fio,
    /// A clone of a repository.
    Git,
}

/// One way to mount the share.
pub struct Mount {
    /// The dialect as the mount option says it.
    pub dialect: &'static str,
    /// Further options.
    pub options: &'static str,
    /// What is done on it.
    pub work: &'static [Work],
}

impl Mount {
    /// Dialect and options.
    pub fn name(&self) -> String {
        if self.options.is_empty() {
            self.dialect.to_owned()
        } else {
            format!("{},{}", self.dialect, self.options)
        }
    }

    /// Whether messages are signed: smbd of the `rdma` scenario leaves it to the client, which does
    /// without if nobody asks, and has data go by RDMA only then.
    fn signs(&self) -> bool {
        !self.options.contains("rdma") || self.options.contains("sign")
    }

    /// The share: persistent handles are for those that are continuously available.
    fn share(&self) -> &'static str {
        if self.options.contains("persistenthandles") { "available" } else { "vms" }
    }

    /// Whether the client and smbd agreed on what was asked for.
    pub fn was_agreed(&self) -> Outcome<()> {
        let mounts = fs::read_to_string("/proc/mounts").map_err(|e| e.to_string())?;
        let line = mounts.lines().find(|l| l.contains(" cifs ")).ok_or("it is not mounted")?;
        for asked in self.options.split(',').filter(|o| !o.is_empty()) {
            // Of signing it tells elsewhere, and not here.
            if asked != "sign" && !line.contains(asked) {
                return Err(format!("no {asked} in {line}"));
            }
        }
        let data = debug_data();
        let dialect = match self.dialect {
            "2.1" => "0x210",
            "3.0" => "0x300",
            "3.0.2" => "0x302",
            _ => "0x311",
        };
        let says = |words: &[&str]| data.lines().any(|l| words.iter().all(|w| l.contains(w)));
        if !says(&[&format!("Dialect {dialect}")]) {
            return Err(format!("the client does not speak {dialect}:\n{data}"));
        }
        let signs = says(&[&format!("Dialect {dialect} signed")]);
        if signs != self.signs() {
            return Err(format!("the client signs what it should not, or not at all:\n{data}"));
        }
        // Newer kernels say it in small letters.
        let sealed = says(&["DISK", "Encrypted"]) || says(&["DISK", "encrypted"]);
        if sealed != self.options.contains("seal") {
            return Err(format!("the client encrypts what it should not, or not at all:\n{data}"));
        }
        Ok(())
    }
}

/// Every mount that is tried.
pub fn all() -> Vec<Mount> {
    use Work::{Fio, Git, Soak};
    let with = |dialect, options, work| Mount { dialect, options, work };
    vec![
        with("3.1.1", "cache=strict", &[Fio, Git, Soak] as &[_]),
        with("3.1.1", "seal,cache=none", &[Fio, Soak]),
        with("3.1.1", "nobrl,mfsymlinks", &[]),
        with("3.1.1", "resilienthandles", &[]),
        with("3.1.1", "persistenthandles", &[Fio]),
        with("3.0.2", "", &[]),
        with("3.0.2", "seal", &[]),
        with("3.0", "cache=none", &[]),
        with("3.0", "seal", &[Git]),
        with("2.1", "cache=strict", &[Fio, Soak]),
        with("2.1", "cache=none,nobrl", &[]),
    ]
}

/// Every mount that is tried over SMB Direct.
pub fn rdma() -> Vec<Mount> {
    use Work::{Fio, Soak};
    let with = |dialect, options, work| Mount { dialect, options, work };
    vec![
        with("3.1.1", "rdma,cache=strict", &[Fio] as &[_]),
        with("3.1.1", "rdma,cache=none", &[Fio]),
        with("3.1.1", "rdma,sign,cache=none", &[Fio, Soak]),
        with("3.1.1", "rdma,seal,cache=none", &[Fio, Soak]),
        with("3.1.1", "rdma,persistenthandles", &[Fio]),
        with("3.0.2", "rdma,cache=none", &[Fio]),
        with("3.0", "rdma,cache=none", &[Fio]),
    ]
}

/// A mount that ends when it is told to.
pub struct Mounted(());

impl Mounted {
    /// Mounts the share at /mnt.
    pub fn new(server: &Server, how: &Mount) -> Outcome<Self> {
        let source = format!("//{}/{}", server.address, how.share());
        let more = if how.options.is_empty() { String::new() } else { format!(",{}", how.options) };
        let options = format!(
            "ip={},port={},username=admin,password=pw-of-admin,vers={}{more}",
            server.address, server.port, how.dialect
        );
        let data = std::ffi::CString::new(options).map_err(|e| e.to_string())?;
        mount(source, PLACE, "cifs", MountFlags::empty(), Some(data.as_c_str()))
            .map_err(|error| format!("mount: {error}"))?;
        Ok(Self(()))
    }

    /// Unmounts it; nothing may be in use.
    pub fn end(self) -> Outcome<()> {
        unmount(PLACE, UnmountFlags::empty()).map_err(|error| format!("unmount: {error}"))
    }
}

/// Takes away what a failed test left: the mount and the local copy.
pub fn forget() {
    for name in ["quick", "soak", "clone", "fio"] {
        let _ = fs::remove_dir_all(Path::new(PLACE).join(name));
        let _ = fs::remove_dir_all(Path::new("/tmp").join(name));
    }
    let _ = unmount(PLACE, UnmountFlags::DETACH);
}

/// What the client tells of its servers, sessions and shares.
pub fn debug_data() -> String {
    fs::read_to_string("/proc/fs/cifs/DebugData").unwrap_or_default()
}

//! The seed of a guest's first start: what cloud-init reads as its data source NoCloud, on a disk with
//! the label `cidata`.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use host_api::{VmId, VmName};

use super::fat;

/// Most bytes of one file.
const MOST: u64 = 1 << 20;
/// How user data begins that cloud-init does something with.
const KINDS: [&str; 10] = [
    "#cloud-config",
    "#!",
    "#include",
    "#cloud-boothook",
    "#part-handler",
    "#upstart-job",
    "## template:",
    "Content-Type:",
    "MIME-Version:",
    "From ",
];

/// Where the settings of a guest's first start are.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Files {
    /// User data of cloud-init (#cloud-config or a script): the guest finds it on a small read-only disk
    /// beside its first one.
    #[arg(long, value_name = "FILE")]
    pub cloud_init: Option<PathBuf>,
    /// The guest's network configuration for cloud-init.
    #[arg(long, value_name = "FILE", requires = "cloud_init")]
    pub network_config: Option<PathBuf>,
}

/// The content of a seed.
#[derive(Debug)]
pub struct Seed {
    user_data: Vec<u8>,
    network_config: Option<Vec<u8>>,
}

impl Files {
    /// Reads and checks the files; none if none is said.
    ///
    /// # Errors
    /// What is wrong with which file.
    pub fn read(&self) -> anyhow::Result<Option<Seed>> {
        let Some(path) = &self.cloud_init else { return Ok(None) };
        let user_data = content(path)?;
        let known = KINDS.iter().any(|kind| user_data.starts_with(kind.as_bytes()));
        // Compressed data are looked into by cloud-init.
        ensure!(
            known || user_data.starts_with(&[0x1f, 0x8b]),
            "{}: cloud-init does nothing with user data that begin so; the first line of settings is \
             #cloud-config, of a script #!",
            path.display()
        );
        let network_config = self.network_config.as_deref().map(content).transpose()?;
        Ok(Some(Seed { user_data, network_config }))
    }
}

fn content(path: &Path) -> anyhow::Result<Vec<u8>> {
    let cannot = || format!("cannot read {}", path.display());
    let len = std::fs::metadata(path).with_context(cannot)?.len();
    ensure!(len <= MOST, "{}: more than 1 MiB", path.display());
    std::fs::read(path).with_context(cannot)
}

impl Seed {
    /// The disk for a VM: cloud-init does its work once for each id.
    ///
    /// # Errors
    /// If the files do not fit.
    pub fn volume(&self, name: &VmName, id: VmId) -> anyhow::Result<Vec<u8>> {
        let meta_data = format!(
            "instance-id: {}\nlocal-hostname: {}\n",
            String::from(id),
            host_name(name.as_str())
        );
        let mut files =
            vec![("meta-data", meta_data.as_bytes()), ("user-data", self.user_data.as_slice())];
        if let Some(network_config) = &self.network_config {
            files.push(("network-config", network_config));
        }
        fat::volume("cidata", &files)
    }
}

/// A VM's name as that of a host may be (RFC 1123 2.1): a label of letters, digits and `-`.
fn host_name(name: &str) -> String {
    let letter = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
    let label: String = name.chars().take(63).map(letter).collect();
    let label = label.trim_matches('-');
    if label.is_empty() { "vm".to_owned() } else { label.to_ascii_lowercase() }
}

/// Where the seed of a VM is: beside its first disk.
pub fn location(disk: &str, name: &VmName) -> String {
    let folder = disk.rfind('/').map_or("", |at| &disk[..=at]);
    format!("{folder}{name}-seed.img")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_beside_the_disk() {
        let name = "web-1".parse().unwrap();
        assert_eq!(location("smb://h/vms/a/x.vhdx", &name), "smb://h/vms/a/web-1-seed.img");
        assert_eq!(location("x.vhdx", &name), "web-1-seed.img");
    }

    #[test]
    fn a_guest_is_called_as_hosts_may_be() {
        for (name, host) in [("Web_1.x", "web-1-x"), ("a.", "a"), ("_", "vm")] {
            assert_eq!(host_name(name), host);
        }
    }

    #[test]
    fn user_data_that_nothing_is_done_with_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("user-data");
        let files = Files { cloud_init: Some(path.clone()), network_config: None };
        assert!(files.read().unwrap_err().to_string().contains("cannot read"));
        std::fs::write(&path, "users: []\n").unwrap();
        assert!(files.read().unwrap_err().to_string().contains("#cloud-config"));
        std::fs::write(&path, "#cloud-config\nusers: []\n").unwrap();
        let seed = files.read().unwrap().unwrap();
        let volume = seed.volume(&"a".parse().unwrap(), VmId([7; 16])).unwrap();
        let text = String::from_utf8_lossy(&volume);
        assert!(text.contains("instance-id: 07070707") && text.contains("#cloud-config"));
        std::fs::write(&path, vec![b'#'; 2 << 20]).unwrap();
        assert!(files.read().unwrap_err().to_string().contains("1 MiB"));
    }
}

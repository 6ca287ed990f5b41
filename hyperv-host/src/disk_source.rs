//! Opening a VM's disk wherever it is: the one place that knows locations and formats.
//!
//! On a share a disk is opened as an instance of its VM, later than any before: what an earlier run
//! of the VM still has open, on this host or on one that is gone, the server closes at once, and it
//! does not come back. Hosts' clocks say which is later.
//!
//! ```text
//!  location ── prepare ──► reachable, session set up ── open ──► Disk (this host the only writer)
//!     local path: LocalFile, exclusive lock      smb://…: RemoteFile, others may only read
//! ```

use std::{sync::Arc, time::SystemTime};

use block_io::{Disk, Error, File, LocalFile, LocalOptions, Result};
use host_api::{DiskDefinition, DiskFormat, VmDefinition, VmId};
use smb_client::{Client, ConnectOptions, Instance, Login, OpenOptions, SmbUrl, Tree};
use vhd::Format;

/// Connections to a server at most.
const CHANNELS: u16 = 4;

/// A disk that can be opened quickly: its place is known to be reachable.
#[derive(Debug)]
pub struct Prepared {
    definition: DiskDefinition,
    place: Place,
    vm: Option<VmId>,
}

enum Place {
    Local,
    Share { tree: Tree, path: String },
}

impl std::fmt::Debug for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Place::Local => "Local",
            Place::Share { .. } => "Share",
        })
    }
}

/// Checks that a disk's file is there, without opening it; for a share this sets up the session
/// that [`Prepared::open`] uses.
///
/// # Errors
/// What the file system or the server says.
async fn prepare(vm: Option<VmId>, definition: &DiskDefinition) -> Result<Prepared> {
    let place = if SmbUrl::looks_like(&definition.location) {
        let url: SmbUrl = definition
            .location
            .parse()
            .map_err(|error: smb_client::UrlError| Error::Corrupt(error.to_string()))?;
        let login = Login::from_env(url.user.as_deref())
            .map_err(|error| Error::Disconnected(crate::vmm::error::chain(&error)))?;
        let options =
            ConnectOptions { max_channels: CHANNELS, ..ConnectOptions::for_url(&url, login) };
        let session = Client::connect(options).await?;
        let tree = session.tree(&url.share).await?;
        tree.stat(&url.path).await?;
        Place::Share { tree, path: url.path }
    } else {
        let at = |error| Error::io(format!("cannot look at {}", definition.location), error);
        tokio::fs::metadata(&definition.location).await.map_err(at)?;
        Place::Local
    };
    Ok(Prepared { definition: definition.clone(), place, vm })
}

impl Prepared {
    /// Where the disk is.
    pub fn location(&self) -> &str {
        &self.definition.location
    }

    /// The run of its VM that begins now.
    fn instance(&self) -> Option<Instance> {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let version = u64::try_from(since.as_nanos()).unwrap_or(u64::MAX);
        self.vm.map(|vm| Instance { id: vm.0, version })
    }

    /// Opens the disk. Unless it is read-only, no one else can then open it for writing.
    ///
    /// # Errors
    /// [`Error::Busy`] while another has it, and whatever else the storage or the image says.
    pub async fn open(&self) -> Result<Arc<dyn Disk>> {
        let read_only = self.definition.read_only;
        let file: Arc<dyn File> = match &self.place {
            Place::Local => {
                let options =
                    if read_only { LocalOptions::read_only() } else { LocalOptions::read_write() };
                Arc::new(LocalFile::open(&self.definition.location, &options)?)
            }
            Place::Share { tree, path } => {
                let options = match read_only {
                    true => OpenOptions::read(),
                    false => OpenOptions { instance: self.instance(), ..OpenOptions::write() },
                };
                Arc::new(tree.open(path, options).await?)
            }
        };
        let format = match self.definition.format() {
            DiskFormat::Raw => Format::Raw,
            DiskFormat::Vhdx => Format::Vhdx,
        };
        Ok(vhd::open_disk(file, format).await?)
    }
}

/// Prepares and opens all disks of a machine, in order.
///
/// # Errors
/// The first failure, with the location of its disk; disks opened before it are closed again.
pub async fn open_all(
    prepared: &[Prepared],
) -> std::result::Result<Vec<Arc<dyn Disk>>, crate::vmm::Error> {
    let mut disks: Vec<Arc<dyn Disk>> = Vec::new();
    for disk in prepared {
        match disk.open().await {
            Ok(disk) => disks.push(disk),
            Err(source) => {
                for open in disks {
                    // The failure that matters is told below.
                    let _ = open.close().await;
                }
                let location = disk.location().to_owned();
                return Err(crate::vmm::Error::Disk { location, source });
            }
        }
    }
    Ok(disks)
}

/// Prepares all disks of a machine, in order.
///
/// # Errors
/// The first failure, with the location of its disk.
pub async fn prepare_all(
    machine: &VmDefinition,
) -> std::result::Result<Vec<Prepared>, crate::vmm::Error> {
    let mut prepared = Vec::new();
    for definition in &machine.disks {
        let location = definition.location.clone();
        let disk = prepare(machine.id, definition)
            .await
            .map_err(|source| crate::vmm::Error::Disk { location, source })?;
        prepared.push(disk);
    }
    Ok(prepared)
}

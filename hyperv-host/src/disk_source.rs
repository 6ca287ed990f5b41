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

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use block_io::{Disk, Error, File, IoFuture, LocalFile, LocalOptions, Result};
use host_api::{DiskDefinition, DiskFormat, VmDefinition, VmId};
use smb_client::{
    Client, ConnectOptions, Encryption, Instance, Login, OpenOptions, Share, SmbUrl, Tree,
};
use vhd::{Format, chain, folders::Folders, tracking};

use crate::config::{Encrypted, ServerConfig, StorageConfig};

/// A disk that can be opened quickly: its place is known to be reachable.
#[derive(Debug)]
pub struct Prepared {
    definition: DiskDefinition,
    place: Place,
    vm: Option<VmId>,
    storage: Arc<StorageConfig>,
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
async fn prepare(
    vm: Option<VmId>,
    definition: &DiskDefinition,
    storage: &Arc<StorageConfig>,
) -> Result<Prepared> {
    format(definition)?;
    let place = if SmbUrl::looks_like(&definition.location) {
        let url = parse(&definition.location)?;
        let tree = connect(&url, storage).await?;
        tree.stat(&url.path).await?;
        Place::Share { tree, path: url.path }
    } else {
        let at = |error| Error::io(format!("cannot look at {}", definition.location), error);
        tokio::fs::metadata(&definition.location).await.map_err(at)?;
        Place::Local
    };
    Ok(Prepared { definition: definition.clone(), place, vm, storage: storage.clone() })
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
        let file = self.file("").await?;

        let format = format(&self.definition)?;
        let location = &self.definition.location;
        if self.definition.format.is_none() {
            vhd::probe::check(&*file, location, format).await?;
        }
        if read_only && format == Format::Vhdx {
            let options = vhd::vhdx::OpenOptions::read_only();
            return Ok(Arc::new(chain::open(file, location, self, options).await?));
        }
        let disk = chain::open_disk(file.clone(), location, format, self).await?;
        if read_only || format != Format::Vhdx {
            return Ok(disk);
        }
        let tracked = self.tracked(disk.clone(), file).await;
        if tracked.is_err() {
            // The failure that matters is the one that is returned.
            let _ = disk.close().await;
        }
        tracked
    }

    /// Opens the disk's file, or the one beside it whose name has this ending.
    async fn file(&self, ending: &str) -> Result<Arc<dyn File>> {
        let read_only = self.definition.read_only;
        Ok(match &self.place {
            Place::Local => {
                let options =
                    if read_only { LocalOptions::still() } else { LocalOptions::read_write() };
                let path = format!("{}{ending}", self.definition.location);
                Arc::new(LocalFile::open(path, &options)?)
            }
            Place::Share { tree, path } => {
                let options = match read_only {
                    true => still(),
                    false => OpenOptions { instance: self.instance(), ..OpenOptions::write() },
                };
                Arc::new(tree.open(&format!("{path}{ending}"), options).await?)
            }
        })
    }

    /// The disk as it is; if track is kept of its changes, those of the machine are.
    async fn tracked(&self, disk: Arc<dyn Disk>, file: Arc<dyn File>) -> Result<Arc<dyn Disk>> {
        let location = format!("{}{}", self.definition.location, tracking::ENDING);
        let there = match &self.place {
            Place::Local => {
                let at = |error| Error::io(format!("cannot look for {location}"), error);
                tokio::fs::try_exists(&location).await.map_err(at)?
            }
            Place::Share { tree, path } => {
                tree.exists(&format!("{path}{}", tracking::ENDING)).await?
            }
        };
        if !there {
            return Ok(disk);
        }
        let beside = self.file(tracking::ENDING).await?;
        match tracking::attach(disk.clone(), file, beside).await {
            // The machine is worth more than what is known of its changes: they are not told as
            // others than they are, since the content has another identity from its first one on.
            Err(vhd::Error::Damaged(damage)) => {
                tracing::warn!(%location, %damage, "no track is kept of a disk's changes");
                Ok(disk)
            }
            other => Ok(other?),
        }
    }
}

/// How the parents of a machine's disk come to be where they are opened from.
const NO_MORE: &str = "a machine's disk has its parents in its own folder or below";

/// What a disk is: what its definition says, or else its ending. Nothing is guessed: a disk that is taken
/// for another format is written over.
///
/// # Errors
/// If neither says a format that machines run from.
pub fn format(disk: &DiskDefinition) -> Result<Format> {
    let location = &disk.location;
    let refuse = |why: String| {
        let source = std::io::Error::new(std::io::ErrorKind::InvalidInput, why);
        Error::io(format!("{location} cannot be a disk of a machine"), source)
    };
    match (disk.format, Format::from_path(location)) {
        (Some(DiskFormat::Raw), _) => Ok(Format::Raw),
        (Some(DiskFormat::Vhdx), _) => Ok(Format::Vhdx),
        (None, Some(format @ (Format::Raw | Format::Vhdx))) => Ok(format),
        (None, Some(other)) => Err(refuse(format!(
            "machines run from raw disks and VHDX images, and its ending says {other}; `bulkhead disk \
             convert` makes one of it"
        ))),
        // A device has no ending.
        (None, None) if is_device(location) => Ok(Format::Raw),
        (None, None) => {
            Err(refuse("its ending names no format; say format = \"raw\" or \"vhdx\"".into()))
        }
    }
}

fn is_device(location: &str) -> bool {
    use std::os::unix::fs::FileTypeExt;
    std::fs::metadata(location).is_ok_and(|about| about.file_type().is_block_device())
}

/// For reading what nobody writes meanwhile.
fn still() -> OpenOptions {
    OpenOptions { share: Share::Read, ..OpenOptions::read() }
}

/// The parents of a differencing image: files beside it or below, on the same server.
impl chain::Files for Prepared {
    fn open<'a>(&'a self, location: &'a str) -> IoFuture<'a, Arc<dyn File>> {
        Box::pin(async move {
            let folders = Folders::of(&self.definition.location, NO_MORE);
            let Place::Share { tree, .. } = &self.place else {
                return Ok(Arc::new(folders.open(location)?) as _);
            };
            if !folders.hold(location) {
                return Err(folders.refusal(location));
            }
            let url = parse(location)?;
            let file = if url.share.eq_ignore_ascii_case(tree.share()) {
                tree.open(&url.path, still()).await?
            } else {
                connect(&url, &self.storage).await?.open(&url.path, still()).await?
            };
            Ok(Arc::new(file) as _)
        })
    }
}

fn parse(location: &str) -> Result<SmbUrl> {
    location.parse().map_err(|error: smb_client::UrlError| Error::Corrupt(error.to_string()))
}

/// What the configuration says of the server of an address.
fn server<'a>(url: &SmbUrl, storage: &'a StorageConfig) -> Option<&'a ServerConfig> {
    storage.servers.iter().find(|server| {
        let said = format!("smb://{}/x", server.host).parse::<SmbUrl>();
        said.is_ok_and(|said| said.host.eq_ignore_ascii_case(&url.host) && said.port == url.port)
    })
}

/// Who this host is to the server of an address: what the configuration says of it, else the one
/// login in the environment.
///
/// # Errors
/// If there is none, or its file cannot be used.
pub fn login(
    url: &SmbUrl,
    storage: &StorageConfig,
) -> std::result::Result<Login, smb_client::CredentialsError> {
    match server(url, storage).and_then(|server| server.credentials.as_deref()) {
        Some(file) => Login::from_file(file, url.user.as_deref()),
        None => Login::from_env(url.user.as_deref()),
    }
}

/// A session with the share that a location names.
async fn connect(url: &SmbUrl, storage: &StorageConfig) -> Result<Tree> {
    let login = login(url, storage)
        .map_err(|error| Error::Disconnected(vmm::platform::error::chain(&error)))?;
    let rule = server(url, storage).and_then(|server| server.encryption);
    let options = ConnectOptions {
        max_channels: storage.channels,
        keep_alive: Duration::from_millis(storage.keep_alive_ms.into()),
        reconnect_timeout: Duration::from_secs(storage.reconnect_s.into()),
        encryption: match rule.unwrap_or(storage.encryption) {
            Encrypted::Required => Encryption::Required,
            Encrypted::IfRequired => Encryption::IfRequired,
        },
        ..ConnectOptions::for_url(url, login)
    };
    let session = Client::connect(options).await?;
    Ok(session.tree(&url.share).await?)
}

/// Prepares and opens all disks of a machine, in order.
///
/// # Errors
/// The first failure, with the location of its disk; disks opened before it are closed again.
pub async fn open_all(
    prepared: &[Prepared],
) -> std::result::Result<Vec<Arc<dyn Disk>>, vmm::Error> {
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
                return Err(vmm::Error::Disk { location, source });
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
    storage: &Arc<StorageConfig>,
) -> std::result::Result<Vec<Prepared>, vmm::Error> {
    let mut prepared = Vec::new();
    for definition in &machine.disks {
        let location = definition.location.clone();
        let disk = prepare(machine.id, definition, storage)
            .await
            .map_err(|source| vmm::Error::Disk { location, source })?;
        prepared.push(disk);
    }
    Ok(prepared)
}

#[cfg(test)]
mod tests {
    use vhd::vhdx::{CreateOptions, create, info};

    use super::*;

    async fn local(definition: &DiskDefinition) -> Result<Prepared> {
        prepare(None, definition, &Arc::default()).await
    }

    /// A disk whose parent is in another folder; the parent is left alone.
    #[tokio::test]
    async fn a_differencing_image_opens_with_its_parents() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        std::fs::create_dir(dir.path().join("base")).unwrap();
        let file = |path: &str, options: LocalOptions| -> Arc<dyn File> {
            Arc::new(LocalFile::open(path, &options).unwrap())
        };
        let (base, child) = (path("base/base.vhdx"), path("child.vhdx"));
        let made = file(&base, LocalOptions::create_new());
        create(made.clone(), &CreateOptions::new(64 << 20)).await.unwrap();
        let disk = vhd::open_disk(made, Format::Vhdx).await.unwrap();
        disk.write_at(0, &[1; 4096]).await.unwrap();
        disk.close().await.unwrap();
        let about = info(file(&base, LocalOptions::read_only())).await.unwrap();
        let options = CreateOptions::child(&about, "base/base.vhdx");
        create(file(&child, LocalOptions::create_new()), &options).await.unwrap();
        let before = std::fs::read(&base).unwrap();

        let definition = DiskDefinition { location: child, format: None, read_only: false };
        let disk = local(&definition).await.unwrap().open().await.unwrap();
        let mut bytes = [0; 8192];
        disk.write_at(4096, &[2; 4096]).await.unwrap();
        disk.read_at(0, &mut bytes).await.unwrap();
        assert!(bytes[..4096] == [1; 4096] && bytes[4096..] == [2; 4096]);
        disk.close().await.unwrap();
        assert!(std::fs::read(&base).unwrap() == before, "the parent was changed");

        std::fs::remove_file(&base).unwrap();
        let error = local(&definition).await.unwrap().open().await.unwrap_err();
        assert!(error.to_string().contains("base.vhdx"), "{error}");
    }

    /// A machine's first write would destroy what is taken for another format than it is.
    #[tokio::test]
    async fn a_disk_is_what_its_ending_says_or_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).display().to_string();
        let open = async |name: &str, format| {
            let definition = DiskDefinition { location: at(name), format, read_only: false };
            local(&definition).await?.open().await?.close().await
        };
        let made = LocalFile::open(at("a.avhdx"), &LocalOptions::create_new()).unwrap();
        create(Arc::new(made), &CreateOptions::new(8 << 20)).await.unwrap();
        for name in ["copy.img", "copy", "copy.qcow2"] {
            std::fs::copy(at("a.avhdx"), at(name)).unwrap();
        }
        open("a.avhdx", None).await.unwrap();
        for (name, why) in
            [("copy.img", "VHDX"), ("copy", "names no format"), ("copy.qcow2", "ending says qcow2")]
        {
            let before = std::fs::read(at(name)).unwrap();
            let error = vmm::platform::error::chain(&open(name, None).await.unwrap_err());
            assert!(error.contains(why) && error.contains(name), "{error}");
            assert!(std::fs::read(at(name)).unwrap() == before);
            open(name, Some(DiskFormat::Vhdx)).await.unwrap();
            open(name, Some(DiskFormat::Raw)).await.unwrap();
        }
    }

    /// A disk that another program uses is not a machine's, and the other way round.
    #[tokio::test]
    async fn a_disk_is_used_by_one_program() {
        let dir = tempfile::tempdir().unwrap();
        let location = dir.path().join("a.raw").display().to_string();
        std::fs::write(&location, [0; 4096]).unwrap();
        let disk =
            |read_only| DiskDefinition { location: location.clone(), format: None, read_only };
        let write = || {
            let mut qemu = std::process::Command::new("qemu-io");
            qemu.args(["-f", "raw", "-c", "write 0 512", &location]);
            qemu.output().expect("qemu-io is installed").status.success()
        };
        for read_only in [false, true] {
            let open = local(&disk(read_only)).await.unwrap().open().await.unwrap();
            assert!(!write(), "read_only = {read_only}");
            open.close().await.unwrap();
        }
        assert!(write());
        let held = LocalFile::open(&location, &LocalOptions::read_write()).unwrap();
        for read_only in [false, true] {
            let refused = local(&disk(read_only)).await.unwrap().open().await;
            assert!(matches!(refused, Err(Error::Busy(_))), "{refused:?}");
        }
        drop(held);
    }

    /// What a machine changes is told afterwards, and no more than that; without a readable file it
    /// runs all the same.
    #[tokio::test]
    async fn track_is_kept_of_what_a_machine_changes() {
        use vhd::tracking::{Changes, ENDING, Store};

        let dir = tempfile::tempdir().unwrap();
        let location = dir.path().join("disk.vhdx").display().to_string();
        let beside = format!("{location}{ENDING}");
        let open = |path: &str, options: LocalOptions| -> Arc<dyn File> {
            Arc::new(LocalFile::open(path, &options).unwrap())
        };
        let image = open(&location, LocalOptions::create_new());
        create(image.clone(), &CreateOptions::new(64 << 20)).await.unwrap();
        let about = info(image).await.unwrap();
        let (size, id) = (about.disk_size, about.data_write_id);
        let file = open(&beside, LocalOptions::create_new());
        let point = Store::create(file, size, id).await.unwrap().point("before").await.unwrap();
        let definition =
            DiskDefinition { location: location.clone(), format: None, read_only: false };
        let run = async |at: u64| {
            let disk = local(&definition).await.unwrap().open().await.unwrap();
            disk.write_at(at, &[1; 4096]).await.unwrap();
            disk.close().await.unwrap();
        };
        let changes = async || {
            let now = info(open(&location, LocalOptions::read_only())).await.unwrap();
            let store = Store::open(open(&beside, LocalOptions::read_only())).await.unwrap();
            store.changes_since(point.id, size, now.data_write_id).await.unwrap()
        };
        assert_eq!(changes().await, Changes::Ranges(vec![]));
        // Two runs of the machine.
        run(1 << 20).await;
        run(40 << 20).await;
        let granule = 64 << 10;
        let expected = [1u64 << 20, 40 << 20].map(|at| at..at + granule);
        assert_eq!(changes().await, Changes::Ranges(expected.to_vec()));
        // While one runs nobody else keeps track, and the other way round.
        let held = open(&beside, LocalOptions::read_write());
        let refused = local(&definition).await.unwrap().open().await;
        assert!(matches!(refused, Err(Error::Busy(_))), "{refused:?}");
        held.close().await.unwrap();

        std::fs::write(&beside, [7; 9000]).unwrap();
        run(2 << 20).await;
        assert_eq!(std::fs::read(&beside).unwrap(), [7; 9000], "damage was written over");
        std::fs::write(&beside, []).unwrap();
        run(3 << 20).await;
        assert!(std::fs::read(&beside).unwrap().is_empty());
    }
}

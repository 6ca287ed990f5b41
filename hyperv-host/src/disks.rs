//! The disks of a VM: which formats machines run from, and in which order a machine's disks are opened.
//! How a location becomes a disk is the crate `disk-source`'s.
//!
//! On a share a disk is opened as an instance of its VM, later than any before: what an earlier run of
//! the VM still has open, on this host or on one that is gone, the server closes at once, and it does
//! not come back. A logical unit is taken over by its reservation with the same effect. The numbers of
//! [`Run`]s say which is later.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use block_io::{Disk, Error};
use disk_source::{Claim, Configured, Damaged, Named, ParentRule, Prepared, Server, Source};
use host_api::{DiskDefinition, DiskFormat, VmDefinition, VmId};
use smb_client::{Compress, Encryption, Instance, Rdma};
use tokio::runtime::Runtime;
use vhd::Format;
use vmm::devices::virtio::storage::LossRule;

use crate::config::{Compressed, Direct, Encrypted, ServerConfig, StorageConfig, StorageLoss};

/// How the parents of a machine's disk come to be where they are opened from.
const NO_MORE: &str = "a machine's disk has its parents in its own folder or below";

/// How long an open disk's server is tried where guests wait for it: longer than anybody waits.
const FOR_EVER: Duration = Duration::from_secs(10 * 365 * 86_400);

fn encryption(rule: Encrypted) -> Encryption {
    match rule {
        Encrypted::Required => Encryption::Required,
        Encrypted::IfRequired => Encryption::IfRequired,
    }
}

fn compression(rule: Compressed) -> Compress {
    match rule {
        Compressed::Never => Compress::Never,
        Compressed::IfAsked => Compress::IfAsked,
        Compressed::Always => Compress::Always,
    }
}

/// The file servers of a configuration.
pub fn servers(storage: &StorageConfig) -> Configured {
    let server = |server: &ServerConfig| Server {
        host: server.host.clone(),
        credentials: server.credentials.clone(),
        encryption: server.encryption.map(encryption),
        compression: server.compression.map(compression),
        rdma: match server.rdma {
            Direct::Never => Rdma::Never,
            Direct::IfPossible => Rdma::IfPossible,
            Direct::Always => Rdma::Always,
        },
    };
    Configured {
        encryption: encryption(storage.encryption),
        compression: compression(storage.compression),
        servers: storage.servers.iter().map(server).collect(),
        keep_alive: Duration::from_millis(storage.keep_alive_ms.into()),
        reconnect_timeout: match storage.on_storage_loss {
            StorageLoss::Pause => FOR_EVER,
            StorageLoss::Report => Duration::from_secs(storage.reconnect_s.into()),
        },
        max_channels: storage.channels,
    }
}

impl StorageConfig {
    /// How long opening or closing a disk may take.
    pub fn disk_limit(&self) -> Duration {
        Duration::from_secs(self.reconnect_s.into())
    }

    /// What guests see of storage that is away.
    pub fn loss_rule(&self) -> LossRule {
        match self.on_storage_loss {
            StorageLoss::Pause => LossRule::Pause,
            StorageLoss::Report => LossRule::Report,
        }
    }

    /// What of it is about the servers of a VM's disks: nobody else's login is named.
    #[must_use]
    pub fn of_disks(&self, disks: &[DiskDefinition]) -> Self {
        let is_named = |server: &ServerConfig| {
            disks.iter().any(|disk| disk.location.contains(server.host.as_str()))
        };
        let mut storage = self.clone();
        storage.locations = None;
        storage.servers.retain(is_named);
        storage
    }
}

/// The threads on which disks' I/O runs.
///
/// # Errors
/// What the operating system says.
pub fn runtime(threads: usize) -> std::io::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .thread_name("disk-io")
        .enable_all()
        .build()
}

/// What opens the disks of a host's machines. A machine is worth more than what is known of its changes:
/// damaged change tracking does not keep it from running.
pub fn source(servers: Configured) -> Source {
    let rule = ParentRule { remedy: NO_MORE, ..ParentRule::default() };
    Source::new(Arc::new(servers), rule).with_damaged_tracking(Damaged::Ignore)
}

/// What a disk is: what its definition says, or else its ending. Nothing is guessed: a disk that is taken
/// for another format is written over.
///
/// # Errors
/// If neither says a format that machines run from.
pub fn format(disk: &DiskDefinition) -> block_io::Result<Format> {
    let location = &disk.location;
    let refuse = |why: String| {
        let source = std::io::Error::new(std::io::ErrorKind::InvalidInput, why);
        Error::io(format!("{location} cannot be a disk of a machine"), source)
    };
    match (disk.format, disk_source::format_of(location)) {
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

/// One run of a VM, from its start or arrival on a host to its end there.
#[derive(Debug)]
pub struct Run {
    vm: Option<VmId>,
    /// The version of the instance that opens the disks next.
    next: AtomicU64,
}

impl Run {
    /// The versions that one run has, one for each time that its disks are opened: the numbers of
    /// two runs are at least so far apart.
    pub const SPAN: u64 = 1 << 20;

    /// The run with this number, which its host's records have given to no other run.
    pub fn new(vm: Option<VmId>, number: u64) -> Self {
        Self { vm, next: AtomicU64::new(number) }
    }

    /// What the disks are opened as now: a later instance than each time before. An attempt whose
    /// files the server still has open does not keep the next one out.
    fn instance(&self) -> Option<Instance> {
        let version = self.next.fetch_add(1, Ordering::Relaxed);
        self.vm.map(|vm| Instance { id: vm.0, version })
    }

    /// What the disks will be opened as next.
    fn upcoming(&self) -> Option<Instance> {
        let version = self.next.load(Ordering::Relaxed);
        self.vm.map(|vm| Instance { id: vm.0, version })
    }
}

/// Does something with the disk at `location` that may take `limit`.
///
/// # Errors
/// What it fails with, or that it takes longer, with the location.
pub async fn in_time<T, E: Into<Error>>(
    limit: Duration,
    location: &str,
    what: impl Future<Output = Result<T, E>>,
) -> Result<T, vmm::Error> {
    let source = match tokio::time::timeout(limit, what).await {
        Ok(Ok(done)) => return Ok(done),
        Ok(Err(error)) => error.into(),
        Err(_) => Error::Disconnected(format!("no answer within {} s", limit.as_secs_f64())),
    };
    Err(vmm::Error::Disk { location: location.to_owned(), source })
}

/// Prepares all disks of a machine for a run of it, in order; each may take `limit`.
///
/// # Errors
/// The first failure, with the location of its disk.
pub async fn prepare_all(
    machine: &VmDefinition,
    source: &Source,
    run: &Run,
    limit: Duration,
) -> Result<Vec<Prepared>, vmm::Error> {
    let instance = run.upcoming();
    let mut prepared = Vec::new();
    for disk in &machine.disks {
        prepared.push(in_time(limit, &disk.location, prepare(disk, source, instance)).await?);
    }
    Ok(prepared)
}

async fn prepare(
    disk: &DiskDefinition,
    source: &Source,
    instance: Option<Instance>,
) -> block_io::Result<Prepared> {
    let named = Named { format: format(disk)?, asked: disk.format.is_some() };
    let claim = if disk.read_only { Claim::Still } else { Claim::Write };
    Ok(source.prepare(&disk.location, named, claim, instance).await?)
}

/// Opens all disks of a machine, in order; each may take `limit`.
///
/// # Errors
/// The first failure, with the location of its disk; disks opened before it are closed again.
pub async fn open_all(
    prepared: &[Prepared],
    run: &Run,
    limit: Duration,
) -> Result<Vec<Arc<dyn Disk>>, vmm::Error> {
    let instance = run.instance();
    let mut disks: Vec<Arc<dyn Disk>> = Vec::new();
    for disk in prepared {
        match in_time(limit, disk.location(), disk.open(instance)).await {
            Ok(disk) => disks.push(disk),
            Err(error) => {
                for open in disks {
                    // The failure that matters is told below.
                    let _ = in_time(limit, "", open.close()).await;
                }
                return Err(error);
            }
        }
    }
    Ok(disks)
}

#[cfg(test)]
mod tests {
    use vhd::vhdx::{CreateOptions, create, info};

    use block_io::{File, LocalFile, LocalOptions};

    use super::*;

    /// A disk of a host whose configuration says nothing.
    struct Local(Prepared);

    impl Local {
        async fn open(&self) -> block_io::Result<Arc<dyn Disk>> {
            Ok(self.0.open(None).await?)
        }
    }

    async fn local(definition: &DiskDefinition) -> block_io::Result<Local> {
        let source = source(servers(&StorageConfig::default()));
        prepare(definition, &source, None).await.map(Local)
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

        let definition = DiskDefinition::new(child, false);
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
            let definition = DiskDefinition { format, ..DiskDefinition::new(at(name), false) };
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

    /// A host that tries again is not kept out by what it tried before, and the next run is later.
    #[test]
    fn each_attempt_of_a_run_is_a_later_instance() {
        let id = VmId([7; 16]);
        let run = Run::new(Some(id), 1000);
        let versions: Vec<_> = (0..3).map(|_| run.instance().unwrap().version).collect();
        assert_eq!(versions, [1000, 1001, 1002]);
        assert_eq!(run.instance().unwrap().id, id.0);
        assert!(Run::new(None, 1000).instance().is_none());
    }

    /// A disk that another program uses is not a machine's, and the other way round.
    #[tokio::test]
    async fn a_disk_is_used_by_one_program() {
        let dir = tempfile::tempdir().unwrap();
        let location = dir.path().join("a.raw").display().to_string();
        std::fs::write(&location, [0; 4096]).unwrap();
        let disk = |read_only| DiskDefinition::new(location.clone(), read_only);
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
        let definition = DiskDefinition::new(location.clone(), false);
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

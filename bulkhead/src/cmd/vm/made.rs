//! Files that were made for a VM, and are taken away again if it does not come to be.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, ensure};
use block_io::{Disk, File};
use host_api::VmDefinition;
use vhd::Format;

use crate::{
    cmd::disk,
    storage::{self, Claim, Named},
    vm_host::Client,
};

/// How often it is tried to remove a file, and the pause in between.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(100);

/// Files made so far.
#[derive(Debug, Default)]
pub struct Made(Vec<String>);

impl Made {
    /// Removes them all. What cannot be removed is told: it is somebody's to look at.
    pub async fn undo(self) {
        for location in self.0.into_iter().rev() {
            let mut tries = 0;
            while let Err(error) = storage::remove(&location).await {
                tries += 1;
                if tries == TRIES {
                    eprintln!("{location} was made and cannot be removed: {error:#}");
                    break;
                }
                // A file that was being written is closed behind the one who let go of it.
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    /// Makes a file that is not there yet.
    async fn file(&mut self, location: &str) -> anyhow::Result<Arc<dyn File>> {
        let file = storage::open(location, Claim::CreateNew).await?;
        self.0.push(location.to_owned());
        Ok(file)
    }

    /// Makes a disk: an empty one, or one with the content of another.
    ///
    /// # Errors
    /// What the storage says, with the location.
    pub async fn disk(&mut self, disk: &NewDisk, quiet: bool) -> anyhow::Result<()> {
        let cannot = || format!("cannot make {}", disk.location);
        let file = self.file(&disk.location).await?;
        let layout = disk::Layout::default();
        let target = disk::new_target(file, disk.format, disk.size, &layout).await;
        let target = target.with_context(cannot)?;
        if let Some(source) = &disk.source {
            let copied = disk::copy_all(source.clone(), target.clone(), quiet).await;
            copied.with_context(cannot)?;
        }
        target.close().await.with_context(cannot)
    }

    /// Makes a file with this content.
    ///
    /// # Errors
    /// What the storage says, with the location.
    pub async fn content(&mut self, location: &str, bytes: &[u8]) -> anyhow::Result<()> {
        let cannot = || format!("cannot make {location}");
        let file = self.file(location).await?;
        file.write_at(0, bytes).await.with_context(cannot)?;
        file.flush().await.with_context(cannot)?;
        file.close().await.with_context(cannot)
    }
}

/// A disk that is to be made.
#[derive(Debug)]
pub struct NewDisk {
    /// Where it is to be.
    pub location: String,
    /// What is to be made there.
    pub format: Format,
    /// How large it is to be, in bytes.
    pub size: u64,
    /// What it is a copy of.
    pub source: Option<Arc<dyn Disk>>,
}

impl NewDisk {
    /// Looks at what is to be made, and opens what it is made of. Nothing is made yet.
    ///
    /// # Errors
    /// What is wrong with the sizes, the formats or the source.
    pub async fn plan(
        location: &str,
        image: Option<(&str, Named)>,
        size: Option<u64>,
    ) -> anyhow::Result<Self> {
        let format = storage::format_of(location).filter(|_| !storage::is_lun(location));
        let format =
            format.filter(|format| matches!(format, Format::Vhdx | Format::Raw)).with_context(
                || format!("{location}: a disk of a VM that is made ends in .vhdx, .raw or .img"),
            )?;
        let source = match image {
            Some((image, named)) => Some(storage::open_disk(image, named, Claim::Still).await?),
            None => None,
        };
        let least = source.as_ref().map_or(0, |disk| disk.geometry().size);
        let size = match size {
            Some(size) => {
                ensure!(size >= least, "--size is less than the {least} bytes of the image");
                size
            }
            None => least,
        };
        ensure!(size > 0, "{location}: say how large it is with --size");
        let size = size.next_multiple_of(512);
        disk::check(format, size, &disk::Layout::default())?;
        Ok(Self { location: location.to_owned(), format, size, source })
    }
}

/// Where the disks of a VM are that are files, with paths as the host has them.
pub fn absolute(location: &str) -> anyhow::Result<String> {
    if location.contains("://") {
        return Ok(location.to_owned());
    }
    let path = std::path::absolute(location).with_context(|| format!("where is {location}?"))?;
    path.into_os_string().into_string().ok().context("a path is not text")
}

/// A random identity for a new VM.
///
/// # Errors
/// If the system has no random numbers.
pub fn new_id() -> anyhow::Result<host_api::VmId> {
    let mut id = [0; 16];
    let random = rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty());
    random.context("the system has no random numbers")?;
    Ok(host_api::VmId(id))
}

/// Asks the host whether it would take a VM whose disks at `new` are made after that.
///
/// # Errors
/// What the host says.
pub fn ask(client: &mut Client, definition: &VmDefinition, new: Vec<String>) -> anyhow::Result<()> {
    let request = host_api::Request::Check { definition: definition.clone(), new };
    match client.call(&request)? {
        host_api::Reply::Ok => Ok(()),
        other => anyhow::bail!("the VM host answered {other:?}"),
    }
}

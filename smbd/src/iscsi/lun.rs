//! The images and devices behind LUNs.

use std::{path::Path, sync::Arc, time::Duration};

use aws_lc_rs::digest;
use block_io::{Disk, RawDisk};
use disk_source::{Claim, Error, ParentRule, Servers, Source};
use scsi::LogicalUnit;
use smb_client::{ConnectOptions, SmbUrl};
use smb_server::meters::path::PathMeter;
use vhd::Format;

use super::{
    config::Lun,
    gated::Gated,
    served::Place,
    timed::{Queue, Timed},
};

/// How long an image is waited for that another program has: one that was killed lets go of it a
/// moment after it is gone.
const PATIENCE: Duration = Duration::from_millis(500);

/// The daemon connects to nobody: its images are on this machine.
#[derive(Debug)]
struct Nobody;

impl Servers for Nobody {
    fn connect_options(&self, url: &SmbUrl) -> disk_source::Result<ConnectOptions> {
        let text = format!("{url:?} is on another server; the image of a LUN is on this machine");
        Err(Error::Login(text.into()))
    }
}

/// Opens disks for LUNs.
pub(super) struct Disks {
    source: Source,
    gated: bool,
}

/// A LUN's disk.
pub(super) struct Opened {
    lun: Lun,
    disk: Arc<dyn Disk>,
    identity: [u8; 16],
    meter: Arc<PathMeter>,
}

impl Disks {
    pub(super) fn new() -> Self {
        let remedy = "move the parent beside the image";
        let rule = ParentRule { folders: Vec::new(), remedy, trusts_raw: false };
        Self { source: Source::new(Arc::new(Nobody), rule).waiting(PATIENCE), gated: false }
    }

    /// Nothing of the disks changes once the process's gate is closed.
    pub(super) fn gated(self) -> Self {
        Self { gated: true, ..self }
    }

    /// Opens the disk of a LUN, which nobody else may have meanwhile, unless all only read it.
    ///
    /// # Errors
    /// What is wrong with it, or who has it.
    pub(super) async fn open(&self, target: &str, lun: &Lun) -> Result<Opened, String> {
        let meter = Arc::<PathMeter>::default();
        let disk = self.disk(lun, &meter).await?;
        let identity = match lun.id {
            Some(id) => id,
            None => match self.own_identity(lun).await {
                Ok(own) => own.unwrap_or_else(|| identity(target, lun.number)),
                Err(why) => {
                    let _ = disk.close().await;
                    return Err(why);
                }
            },
        };
        tracing::info!(target, lun = lun.number, path = %lun.path.display(), "a LUN is served");
        Ok(Opened { lun: lun.clone(), disk, identity, meter })
    }

    /// What the image says that it is: the virtual disk identifier of a VHDX (MS-VHDX 2.6.2.3), the
    /// unique identifier of a VHD. Other formats say nothing.
    async fn own_identity(&self, lun: &Lun) -> Result<Option<[u8; 16]>, String> {
        let look = || async {
            let location = location(&lun.path)?;
            self.source.open(location, Claim::Look).await.map_err(|error| explained(&error))
        };
        let found = match lun.format.format {
            Format::Vhdx => vhd::vhdx::identity(look().await?).await.map(|found| found.disk_id),
            Format::Vhd => vhd::classic::info(look().await?).await.map(|found| found.id),
            _ => return Ok(None),
        };
        let id = found.map_err(|error| explained(&error))?;
        // The bytes as `bulkhead disk info` prints them, so that `id` can say the same.
        Ok(if id.is_zero() { None } else { super::config::identity(&id.to_string()).ok() })
    }

    /// How large the disk of a LUN is now, if that can be seen while it is served.
    ///
    /// # Errors
    /// It cannot be opened any more.
    pub(super) async fn size(&self, opened: &Opened) -> Result<Option<u64>, String> {
        let location = location(&opened.lun.path)?;
        let file = self.source.open(location, Claim::Look).await.map_err(|e| explained(&e))?;
        if opened.lun.format.format != Format::Raw {
            return Ok(None);
        }
        let len = file.len().await.map_err(|error| error.to_string())?;
        Ok(Some(len / u64::from(opened.lun.sector) * u64::from(opened.lun.sector)))
    }

    async fn disk(&self, lun: &Lun, meter: &Arc<PathMeter>) -> Result<Arc<dyn Disk>, String> {
        let disk = self.plain(lun).await?;
        let disk = if self.gated { Arc::new(Gated(disk)) } else { disk };
        Ok(Arc::new(Timed { disk, meter: meter.clone() }))
    }

    async fn plain(&self, lun: &Lun) -> Result<Arc<dyn Disk>, String> {
        let claim = if lun.read_only { Claim::Still } else { Claim::Write };
        let location = location(&lun.path)?;
        let failed = |error: disk_source::Error| explained(&error);
        if lun.format.format == Format::Raw && lun.sector != 512 {
            let file = self.source.open(location, claim).await.map_err(failed)?;
            lun.format.check(&*file, location).await.map_err(failed)?;
            let disk = RawDisk::open(file, lun.sector).await.map_err(|error| error.to_string())?;
            return Ok(Arc::new(disk));
        }
        self.source.open_disk(location, lun.format, claim).await.map_err(failed)
    }

    /// The disk of a LUN with the size that its image or device has now. It is closed in between:
    /// its commands have ended, or meet an error that initiators repeat.
    pub(super) async fn grown(&self, opened: &Opened) -> Result<Arc<dyn Disk>, String> {
        opened.disk.close().await.map_err(|error| error.to_string())?;
        self.disk(&opened.lun, &opened.meter).await
    }
}

impl Opened {
    /// Whether it is what a configuration says, but for what changes while it is used.
    pub(super) fn is(&self, lun: &Lun) -> bool {
        let Lun { ref initiators, limits, warn_below, .. } = *lun;
        Lun { initiators: initiators.clone(), limits, warn_below, ..self.lun.clone() } == *lun
    }

    /// Where its image is.
    pub(super) fn place(&self) -> Place {
        let meter = self.meter.clone();
        Place { path: self.lun.path.clone(), warn_below: self.lun.warn_below, meter }
    }

    pub(super) fn set_warn_below(&mut self, bytes: u64) {
        self.lun.warn_below = bytes;
    }

    pub(super) fn path(&self) -> String {
        self.lun.path.display().to_string()
    }

    pub(super) fn replace(&mut self, disk: Arc<dyn Disk>) {
        self.disk = disk;
    }

    /// The identity that initiators know it by.
    pub(super) fn identity(&self) -> [u8; 16] {
        self.identity
    }

    /// What initiators meet.
    pub(super) fn unit(&self) -> LogicalUnit {
        let lun = &self.lun;
        let unit = LogicalUnit::new(self.disk.clone(), self.identity);
        LogicalUnit {
            read_only: lun.read_only,
            thin: lun.thin.unwrap_or(unit.thin),
            write_cache: lun.write_cache,
            product: lun.product.clone().unwrap_or(unit.product),
            physical_block: lun.physical_sector,
            removable: lun.removable,
            atomic_blocks: lun.atomic_sectors,
            sanitize_rate: lun.sanitize_rate.unwrap_or(unit.sanitize_rate),
            limits: lun.limits,
            queue: Some(Arc::new(Queue(self.meter.clone()))),
            ..unit
        }
    }

    pub(super) async fn close(self) {
        if let Err(error) = self.disk.close().await {
            tracing::error!(path = self.path(), %error, "an image was not closed in an orderly way");
        }
    }
}

/// The identity of a LUN for which neither its configuration nor its image has one: the same as long
/// as it has that number in that target.
fn identity(target: &str, number: u16) -> [u8; 16] {
    let mut hash = digest::Context::new(&digest::SHA256);
    hash.update(b"bulkhead logical unit\0");
    hash.update(target.as_bytes());
    hash.update(&[0]);
    hash.update(&number.to_be_bytes());
    let mut identity = [0; 16];
    identity.copy_from_slice(&hash.finish().as_ref()[..16]);
    identity
}

fn location(path: &Path) -> Result<&str, String> {
    path.to_str().ok_or_else(|| format!("{}: the path is no UTF-8", path.display()))
}

/// An error with what it comes from.
fn explained(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = error.source();
    }
    text
}

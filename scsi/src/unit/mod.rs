//! One logical unit: a disk, and all that initiators can make it remember.

mod attention;
mod carry;
mod mode;
mod range_lock;
mod sanitize;
mod space;
mod usage;

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

pub(crate) use attention::Attentions;
use block_io::Disk;
pub(crate) use carry::carry;
pub(crate) use mode::{Mode, Shape};
pub(crate) use range_lock::{Guard, RangeLock};
pub(crate) use sanitize::{
    Pattern, Sanitize, go_on as go_on_sanitizing, kept as kept_sanitize, start as start_sanitize,
};
pub use space::Space;
pub(crate) use space::{Room, log_sense, threshold_exponent};
pub(crate) use usage::{Kind, Meter};
pub use usage::{Limits, Usage};

use crate::{
    SenseKey, asc,
    cdb::{Extent, Features},
    refusal::{Done, Refusal},
    reservation::Reservations,
};

/// Most bytes of one READ, WRITE or VERIFY: MAXIMUM TRANSFER LENGTH.
pub(crate) const MAX_TRANSFER: u64 = 16 << 20;
/// Most blocks of one COMPARE AND WRITE.
pub(crate) const MAX_COMPARE: u32 = 255;
/// Most blocks of one WRITE SAME, and of one descriptor of UNMAP.
pub(crate) const MAX_SAME: u32 = 32768;
/// Most blocks of one UNMAP.
pub(crate) const MAX_UNMAP: u32 = 1 << 20;
/// Most descriptors of one UNMAP.
pub(crate) const MAX_UNMAP_DESCRIPTORS: u32 = 256;

/// Most commands that were aborted and still write; with more the unit is BUSY. Its disk hangs, and who
/// logs in again and again must not pile up data.
pub(crate) const MAX_LATE: usize = 256;
/// Bytes of their blocks from which on it is BUSY likewise.
const MAX_LATE_BYTES: u64 = 64 << 20;

/// What a logical unit is made of: [`LogicalUnit::new`], and what of it is to be otherwise.
#[derive(Debug, Clone)]
pub struct LogicalUnit {
    /// Where the blocks are. Its logical sector is the logical block.
    pub disk: Arc<dyn Disk>,
    /// Names the logical unit in all the world and for ever: initiators find their data by it, and
    /// reservations are kept by it.
    pub identity: [u8; 16],
    /// PRODUCT IDENTIFICATION: up to 16 printable ASCII characters.
    pub product: String,
    /// Writes are refused. A disk that refuses them makes it true.
    pub read_only: bool,
    /// UNMAP gives space back, and GET LBA STATUS tells where there is none. Without it a disk that
    /// [keeps its space](Disk::keeps_space) is resource provisioned (SBC-3 4.7.3.2): what is unmapped
    /// reads as zeros, and its space stays.
    pub thin: bool,
    /// The medium can be ejected (RMB).
    pub removable: bool,
    /// A write is done before it is durable, until SYNCHRONIZE CACHE or FUA (WCE); initiators can
    /// change that.
    pub write_cache: bool,
    /// Most blocks of which the disk promises that a loss of power leaves all or none of a write;
    /// 0: it promises nothing, and there is no WRITE ATOMIC.
    pub atomic_blocks: u32,
    /// Physical blocks are said to be this large in bytes, instead of what the disk says.
    pub physical_block: Option<u32>,
    /// Most bytes in a second that SANITIZE writes over, so that it leaves something for others; an
    /// erase rests as long as it works instead.
    pub sanitize_rate: u64,
    /// How much it may do in a second.
    pub limits: Limits,
    /// Who is told how long commands wait for that.
    pub queue: Option<Arc<dyn QueueMeter>>,
}

/// Counts what waits before a logical unit.
pub trait QueueMeter: std::fmt::Debug + Send + Sync {
    /// A command has waited so long for the limits of its unit, and goes on.
    fn waited(&self, time: std::time::Duration);
}

impl LogicalUnit {
    /// A logical unit on a disk: not removable, thick if the disk cannot give space back, with a
    /// write cache.
    #[must_use]
    pub fn new(disk: Arc<dyn Disk>, identity: [u8; 16]) -> Self {
        let thin = disk.geometry().discard_granularity != 0;
        Self {
            disk,
            identity,
            product: "Virtual Disk".to_owned(),
            read_only: false,
            thin,
            removable: false,
            write_cache: true,
            atomic_blocks: 0,
            physical_block: None,
            sanitize_rate: 256 << 20,
            limits: Limits::default(),
            queue: None,
        }
    }
}

/// Where the space of unmapped blocks is (SBC-3 4.7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Provisioning {
    /// No block can be unmapped.
    Full,
    /// Unmapped blocks are anchored: their space is theirs.
    Resource,
    /// Unmapped blocks are deallocated.
    Thin,
}

impl Provisioning {
    /// Blocks can be unmapped (LBPME).
    pub(crate) const fn unmaps(self) -> bool {
        !matches!(self, Self::Full)
    }
}

/// What of a [`LogicalUnit`] stays as it is, whatever its disk is by now.
#[derive(Debug)]
pub(crate) struct Options {
    pub identity: [u8; 16],
    pub product: String,
    pub provisioning: Provisioning,
    pub removable: bool,
    pub atomic_blocks: u32,
    pub sanitize_rate: u64,
    read_only: bool,
    physical_block: Option<u32>,
    block: u32,
    pub queue: Option<Arc<dyn QueueMeter>>,
}

/// A logical unit that is in a target.
#[derive(Debug)]
pub(crate) struct Unit {
    pub number: u16,
    pub options: Options,
    disk: RwLock<Arc<dyn Disk>>,
    pub attentions: Attentions,
    pub mode: Mode,
    pub ranges: Arc<RangeLock>,
    pub reservations: Reservations,
    pub sanitize: Sanitize,
    pub meter: Meter,
    pub room: Room,
    /// Tokens that stand for data of this unit.
    pub tokens: AtomicUsize,
    present: AtomicBool,
    prevented: Mutex<HashSet<u64>>,
}

impl Unit {
    pub(crate) fn new(number: u16, made: LogicalUnit, reservations: Reservations) -> Self {
        let options = Options {
            identity: made.identity,
            product: made.product,
            provisioning: match (made.thin, made.disk.keeps_space()) {
                (true, _) => Provisioning::Thin,
                (false, true) => Provisioning::Resource,
                (false, false) => Provisioning::Full,
            },
            removable: made.removable,
            atomic_blocks: made.atomic_blocks,
            sanitize_rate: made.sanitize_rate,
            read_only: made.read_only || made.disk.is_read_only(),
            physical_block: made.physical_block,
            block: made.disk.geometry().logical_sector,
            queue: made.queue,
        };
        let meter = Meter::default();
        meter.set_limits(made.limits);
        Self {
            number,
            options,
            meter,
            room: Room::default(),
            disk: RwLock::new(made.disk),
            attentions: Attentions::default(),
            mode: Mode::new(made.write_cache),
            ranges: Arc::default(),
            reservations,
            sanitize: Sanitize::default(),
            tokens: AtomicUsize::new(0),
            present: AtomicBool::new(true),
            prevented: Mutex::default(),
        }
    }

    pub(crate) fn disk(&self) -> Arc<dyn Disk> {
        Arc::clone(&self.disk.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The same disk with another size.
    pub(crate) fn set_disk(&self, disk: Arc<dyn Disk>) {
        *self.disk.write().unwrap_or_else(PoisonError::into_inner) = disk;
    }

    pub(crate) const fn block(&self) -> u32 {
        self.options.block
    }

    pub(crate) fn blocks(&self) -> u64 {
        self.disk().geometry().size / u64::from(self.block())
    }

    /// Two to this power logical blocks are a physical one (READ CAPACITY(16)).
    pub(crate) fn physical_exponent(&self) -> u8 {
        let physical =
            self.options.physical_block.unwrap_or(self.disk().geometry().physical_sector);
        let blocks = (physical / self.block()).max(1);
        (blocks.ilog2() as u8).min(15)
    }

    pub(crate) const fn read_only(&self) -> bool {
        self.options.read_only
    }

    pub(crate) fn features(&self, explicit_alua: bool) -> Features {
        Features {
            unmap: self.options.provisioning.unmaps(),
            anchor: self.options.provisioning == Provisioning::Resource,
            atomic: self.options.atomic_blocks > 0,
            explicit_alua,
        }
    }

    /// What is known of the room below it, if it is thin.
    pub(crate) fn room(&self) -> Option<&Room> {
        (self.options.provisioning == Provisioning::Thin).then_some(&self.room)
    }

    pub(crate) fn shape(&self) -> Shape {
        Shape { blocks: self.blocks(), block: self.block(), read_only: self.read_only() }
    }

    /// The bytes of blocks that there are.
    ///
    /// # Errors
    /// LOGICAL BLOCK ADDRESS OUT OF RANGE.
    pub(crate) fn bytes(&self, lba: u64, blocks: u64) -> Result<(u64, u64), Refusal> {
        let all = self.blocks();
        match lba.checked_add(blocks) {
            Some(end) if end <= all => {
                let block = u64::from(self.block());
                Ok((lba * block, blocks * block))
            }
            _ => Err(Refusal::out_of_range(lba.max(all))),
        }
    }

    /// The bytes of a range that one command may name.
    ///
    /// # Errors
    /// LOGICAL BLOCK ADDRESS OUT OF RANGE; INVALID FIELD IN CDB if it is too long.
    pub(crate) fn transfer(&self, extent: &Extent) -> Result<(u64, u64), Refusal> {
        let (offset, len) = self.bytes(extent.lba, u64::from(extent.blocks))?;
        if len > MAX_TRANSFER {
            return Err(Refusal::in_cdb(extent.length_at, Some(7)));
        }
        Ok((offset, len))
    }

    /// Whether its disk takes what is written to it.
    ///
    /// # Errors
    /// BUSY while too much hangs that was aborted.
    pub(crate) fn not_crowded(&self) -> Done {
        let bytes = self.ranges.late_blocks().saturating_mul(u64::from(self.block()));
        match self.ranges.late() >= MAX_LATE || bytes >= MAX_LATE_BYTES {
            true => Err(Refusal::Busy),
            false => Ok(()),
        }
    }

    /// Nothing keeps writes away.
    ///
    /// # Errors
    /// DATA PROTECT.
    pub(crate) fn writable(&self) -> Done {
        if self.read_only() {
            return Err(Refusal::protect(asc::WRITE_PROTECTED));
        }
        if self.mode.write_protect.load(Ordering::Acquire) {
            return Err(Refusal::protect(asc::SOFTWARE_WRITE_PROTECTED));
        }
        Ok(())
    }

    /// There is a medium.
    ///
    /// # Errors
    /// NOT READY, MEDIUM NOT PRESENT.
    pub(crate) fn has_medium(&self) -> Done {
        if self.present.load(Ordering::Acquire) {
            Ok(())
        } else {
            Err(Refusal::check(SenseKey::NotReady, asc::NO_MEDIUM))
        }
    }

    fn prevented(&self) -> MutexGuard<'_, HashSet<u64>> {
        self.prevented.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// PREVENT ALLOW MEDIUM REMOVAL of one nexus.
    pub(crate) fn prevent(&self, nexus: u64, prevent: bool) {
        if prevent {
            self.prevented().insert(nexus);
        } else {
            self.prevented().remove(&nexus);
        }
    }

    /// Loads or ejects the medium. Answers whether it went in.
    ///
    /// # Errors
    /// Some nexus prevents it.
    pub(crate) fn load(&self, load: bool) -> Result<bool, Refusal> {
        let prevented = self.prevented();
        if !prevented.is_empty() {
            return Err(Refusal::illegal(asc::REMOVAL_PREVENTED));
        }
        Ok(!self.present.swap(load, Ordering::AcqRel) && load)
    }

    /// Everything that a logical unit reset ends (SAM-5 6.3.3).
    pub(crate) fn reset(&self) {
        self.mode.reset();
        self.reservations.reset();
        self.prevented().clear();
    }

    /// Everything that ends with a nexus.
    pub(crate) fn detach(&self, nexus: u64) {
        self.attentions.forget(nexus);
        self.reservations.release(nexus);
        self.prevented().remove(&nexus);
    }

    /// Makes what was written durable, where the command or the missing write cache asks for it.
    pub(crate) async fn settle(&self, disk: &dyn Disk, force: bool) -> Done {
        if force || !self.mode.write_cache.load(Ordering::Acquire) {
            self.flush(disk).await?;
        }
        Ok(())
    }

    /// Makes what was written durable; where nothing is ever written it is.
    pub(crate) async fn flush(&self, disk: &dyn Disk) -> Done {
        if self.read_only() { Ok(()) } else { disk.flush().await.map_err(Refusal::writing) }
    }
}

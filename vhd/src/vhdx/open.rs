//! Opening an image.

use std::sync::{Arc, Mutex, OnceLock, atomic::AtomicBool};

use block_io::{Disk, File, FlushGroup, Geometry};

use super::{
    MIB, Vhdx,
    alloc::Space,
    commit::{Headers, LogWriter},
    disk::Inner,
    epoch::Epochs,
    load::{Loaded, load},
    log,
    scan::taken,
    table::BatCache,
};
use crate::{Damage, Error, Fault, Guid, Result};

/// Times that a reader tries to open an image that another may be changing.
const ATTEMPTS: usize = 4;

/// How to open an image.
#[derive(Debug, Clone)]
pub struct OpenOptions {
    /// What a differencing image lacks is read from this disk, which is only read; its identity is
    /// the caller's to check ([`crate::chain`] does). Not used by other images.
    pub parent: Option<Arc<dyn Disk>>,
    /// Never write, not even to replay the log (which then happens in memory). Implied by a file
    /// that is read-only.
    pub read_only: bool,
    /// Bytes of the block table kept in memory at most, beyond what a commit holds.
    pub table_cache: usize,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self { parent: None, read_only: false, table_cache: 64 << 20 }
    }
}

impl OpenOptions {
    /// Options of an image that is only read.
    pub fn read_only() -> Self {
        Self { read_only: true, ..Self::default() }
    }
}

impl Vhdx {
    /// Opens the image in `file`, which the disk keeps until [`block_io::Disk::close`].
    ///
    /// A log left by a crash is replayed first: in the file, or in memory if read-only. Nothing
    /// else is written before the first change of the disk.
    ///
    /// # Errors
    /// [`Error::Damaged`] naming structure, offset and fault; [`Error::Differencing`];
    /// [`Error::Unsupported`]; [`Error::Storage`] for what the file says.
    pub async fn open(file: Arc<dyn File>, options: OpenOptions) -> Result<Self> {
        let read_only = options.read_only || file.is_read_only();
        for _ in 1..ATTEMPTS {
            match Self::open_once(file.clone(), options.clone()).await {
                // A writer may have moved a block while the table was read.
                Err(Error::Damaged(Damage { fault: Fault::Overlap { .. }, .. })) if read_only => {}
                other => return other,
            }
        }
        Self::open_once(file, options).await
    }

    async fn open_once(file: Arc<dyn File>, options: OpenOptions) -> Result<Self> {
        let read_only = options.read_only || file.is_read_only();
        let image =
            if read_only { load(file.clone()).await? } else { load_to_change(&file).await? };
        let parent = parent(&image, options.parent)?;
        let layout = image.layout;
        let pages = options.table_cache / 4096;
        let log_len = u64::from(image.header.1.log_length);
        // One entry takes at most half the log, so that the one before it stays whole.
        let max_dirty = log::data_capacity(log_len / 2).min(1024);
        let bat = BatCache::new(layout.pages(), pages, max_dirty);
        let keep = layout.pages() <= pages as u64;
        let seen = |page, bytes: &[u8]| {
            if keep {
                bat.insert(page, bytes);
            }
        };
        let space = taken(&image, seen).await?;
        let metadata = &image.metadata;
        let geometry = Geometry {
            size: metadata.disk_size,
            logical_sector: metadata.logical_sector,
            physical_sector: metadata.physical_sector,
            discard_granularity: if metadata.leave_allocated { 0 } else { metadata.block_size },
        };
        let inner = Inner {
            file: image.view.clone(),
            geometry,
            layout,
            fixed: metadata.leave_allocated,
            parent,
            fills: std::array::from_fn(|_| tokio::sync::Mutex::default()),
            bat_offset: image.bat.offset,
            read_only,
            bat,
            space: Mutex::new(Space::new(space, image.file_len)),
            refill: tokio::sync::Mutex::default(),
            epochs: Epochs::default(),
            started: AtomicBool::new(false),
            next_content: OnceLock::new(),
            headers: Headers::new(image.header),
            log: tokio::sync::Mutex::new(LogWriter::new(image.header.1.log_offset, log_len)),
            flushes: FlushGroup::new(),
        };
        debug_assert!(image.file_len >= MIB);
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Chooses the identity that the content gets with the first change (DataWriteGuid, MS-VHDX
    /// 2.2.2) instead of a random one: for changes that readers of the disk cannot see, and for
    /// those that a child was told of before. Without effect after the first change or the first
    /// call.
    pub(crate) fn choose_content_id(&self, id: Guid) {
        let _ = self.inner.next_content.set(id);
    }
}

/// Reads an image that is going to be changed; a log left by a crash is replayed into the file.
pub(super) async fn load_to_change(file: &Arc<dyn File>) -> Result<Loaded> {
    let mut image = load(file.clone()).await?;
    let Some(overlay) = image.overlay.take() else { return Ok(image) };
    // MS-VHDX 2.2.2: a new FileWriteGuid before the replay, LogGuid zero after it.
    let headers = Headers::new(image.header);
    let mut state = headers.lock().await;
    state.update(&**file, |h| h.file_write = Guid::random()).await?;
    overlay.apply(&**file).await?;
    file.flush().await?;
    state.update(&**file, |h| h.log = Guid::ZERO).await?;
    load(file.clone()).await
}

/// The disk below a differencing image, `None` for others.
fn parent(image: &Loaded, given: Option<Arc<dyn Disk>>) -> Result<Option<Arc<dyn Disk>>> {
    let metadata = &image.metadata;
    if !metadata.has_parent {
        return Ok(None);
    }
    let Some(parent) = given else {
        let parent = metadata.parent.as_ref().map_or_else(String::new, |p| p.place());
        return Err(Error::Differencing { parent });
    };
    let sector = parent.geometry().logical_sector;
    if sector != metadata.logical_sector {
        return Err(Error::InvalidOptions(format!(
            "the parent has {sector}-byte sectors, the image {}-byte ones",
            metadata.logical_sector
        )));
    }
    Ok(Some(parent))
}

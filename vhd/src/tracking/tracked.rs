//! A disk whose changes are kept track of.

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use block_io::{Disk, File, Geometry, IoFuture, Result};
use tokio::sync::{Mutex, RwLock};

use super::{
    map::Map,
    state::{MAX_ACTIVE, Point, REGION},
    store::{Changes, Store},
};
use crate::{Guid, vhdx};

/// Tells the identity of a disk's content, which every session that changes it renews before its
/// first change is written.
pub trait Content: Send + Sync + std::fmt::Debug {
    /// The identity as it is in the image now.
    fn id(&self) -> IoFuture<'_, Guid>;
}

/// The identity that a VHDX has in its header.
#[derive(Debug)]
struct OfVhdx(Arc<dyn File>);

impl Content for OfVhdx {
    fn id(&self) -> IoFuture<'_, Guid> {
        Box::pin(async { Ok(vhdx::identity(self.0.clone()).await?.data_write_id) })
    }
}

/// A disk that keeps track of what is changed through it.
#[derive(Debug)]
pub struct Tracked {
    disk: Arc<dyn Disk>,
    content: Box<dyn Content>,
    granule: u64,
    store: Mutex<Store>,
    /// Changed since the last point.
    changed: Map,
    /// Of those, what the file has in its map.
    durable: Map,
    /// Regions that the file has as active.
    active: Map,
    /// The content's identity is the one of this session.
    begun: AtomicBool,
    beginning: Mutex<()>,
    /// Shared by changes, held alone by a point: what is under way belongs to one side of it.
    gate: RwLock<()>,
}

impl Tracked {
    /// Keeps track of `disk`, the open VHDX in `image`, in `file`.
    ///
    /// # Errors
    /// As [`Tracked::open`].
    pub async fn vhdx(
        disk: Arc<dyn Disk>,
        image: Arc<dyn File>,
        file: Arc<dyn File>,
    ) -> crate::Result<Self> {
        Self::open(disk, Box::new(OfVhdx(image)), file).await
    }

    /// Keeps track of `disk` in `file`, which holds a [`Store`]. If that is not about the disk's
    /// content, it begins anew, without points.
    ///
    /// A change of no bytes must renew the content's identity, as it does with [`vhdx::Vhdx`].
    ///
    /// # Errors
    /// [`crate::Error::Damaged`] if the tracking file is; what the files say.
    pub async fn open(
        disk: Arc<dyn Disk>,
        content: Box<dyn Content>,
        file: Arc<dyn File>,
    ) -> crate::Result<Self> {
        let mut store = Store::open(file).await?;
        let (size, id) = (disk.geometry().size, content.id().await?);
        if !store.belongs(size, id) {
            store.reset(size, id).await?;
        }
        let granules = store.state.granules();
        let (changed, durable) = (Map::new(granules), Map::new(granules));
        let active = Map::new(granules.div_ceil(REGION));
        if let Some(last) = store.state.points.last() {
            let words = store.map(last.slot).await?;
            changed.add(&words);
            durable.add(&words);
        }
        // What a crash left active stays so: all of it may have changed.
        for region in &store.state.active {
            let region = u64::from(*region);
            active.set(region);
            (region * REGION..(region + 1) * REGION).for_each(|granule| changed.set(granule));
        }
        Ok(Self {
            disk,
            content,
            granule: store.state.granule,
            store: Mutex::new(store),
            changed,
            durable,
            active,
            begun: AtomicBool::new(false),
            beginning: Mutex::default(),
            gate: RwLock::new(()),
        })
    }

    /// The points there are, oldest first.
    pub async fn points(&self) -> Vec<Point> {
        self.store.lock().await.state.points.clone()
    }

    /// Makes a point: what is changed from its return on is told by [`Tracked::changes_since`].
    /// Changes under way are waited for, and the disk is flushed.
    ///
    /// # Errors
    /// As [`Store::point`]; what disk and file say.
    pub async fn point(&self, name: &str) -> crate::Result<Point> {
        let _alone = self.gate.write().await;
        self.disk.flush().await?;
        let mut store = self.store.lock().await;
        self.checkpoint(&mut store).await?;
        let point = store.point(name).await?;
        self.changed.clear();
        self.durable.clear();
        Ok(point)
    }

    /// Removes a point.
    ///
    /// # Errors
    /// As [`Store::remove_point`].
    pub async fn remove_point(&self, id: Guid) -> crate::Result<()> {
        let mut store = self.store.lock().await;
        self.checkpoint(&mut store).await?;
        store.remove_point(id).await?;
        // The map of the point that is the last now has more than was marked since.
        if let Some(last) = store.state.points.last() {
            let words = store.map(last.slot).await?;
            self.changed.add(&words);
            self.durable.add(&words);
        }
        Ok(())
    }

    /// What changed since a point.
    ///
    /// # Errors
    /// [`crate::Error::InvalidOptions`] if there is no such point.
    pub async fn changes_since(&self, id: Guid) -> crate::Result<Changes> {
        let store = self.store.lock().await;
        let words = store.words_since(id, Some(&self.changed.words())).await?;
        Ok(store.ranges(&words))
    }

    /// Marks a range as changed; on return that is durable, if not as exactly.
    async fn mark(&self, offset: u64, len: u64) -> Result<()> {
        if !self.begun.load(Ordering::Acquire) {
            self.begin().await?;
        }
        if len == 0 {
            return Ok(());
        }
        let granules = offset / self.granule..(offset + len).div_ceil(self.granule);
        let mut missing = false;
        for granule in granules.clone() {
            // Marked before it is looked whether that is durable: a checkpoint makes regions
            // inactive first and takes the marks then, so it has this mark or is seen here.
            self.changed.set(granule);
            missing |= !self.is_durable(granule);
        }
        if missing { self.activate(granules).await } else { Ok(()) }
    }

    fn is_durable(&self, granule: u64) -> bool {
        self.active.get(granule / REGION) || self.durable.get(granule)
    }

    /// Makes the regions of what is not durable active.
    async fn activate(&self, granules: Range<u64>) -> Result<()> {
        let mut store = self.store.lock().await;
        let missing = |granule: &u64| !self.is_durable(*granule);
        let mut regions: Vec<u32> =
            granules.clone().filter(missing).map(|granule| (granule / REGION) as u32).collect();
        regions.dedup();
        if store.state.active.len() + regions.len() > MAX_ACTIVE {
            // The marks are there already, so this covers them.
            return self.checkpoint(&mut store).await;
        }
        if regions.is_empty() {
            return Ok(());
        }
        store.state.active.extend(&regions);
        store.save().await?;
        regions.iter().for_each(|region| self.active.set(u64::from(*region)));
        Ok(())
    }

    /// Makes the exact map durable, and no region active.
    async fn checkpoint(&self, store: &mut Store) -> Result<()> {
        self.active.clear();
        let words = self.changed.words();
        if let Some(slot) = store.state.points.last().map(|point| point.slot) {
            let there = self.durable.words();
            if words != there {
                store.put_map(slot, &words, Some(&there)).await?;
                store.file.flush().await?;
            }
        }
        if !store.state.active.is_empty() {
            store.state.active.clear();
            store.save().await?;
        }
        self.durable.add(&words);
        Ok(())
    }

    /// Ties what is kept to the content as this session makes it.
    async fn begin(&self) -> Result<()> {
        let _one = self.beginning.lock().await;
        if self.begun.load(Ordering::Acquire) {
            return Ok(());
        }
        self.disk.discard(0, 0).await?;
        let id = self.content.id().await?;
        let mut store = self.store.lock().await;
        if store.state.content != id {
            store.state.content = id;
            store.save().await?;
        }
        self.begun.store(true, Ordering::Release);
        Ok(())
    }

    async fn end(&self) -> Result<()> {
        let _alone = self.gate.write().await;
        self.disk.close().await?;
        let mut store = self.store.lock().await;
        if self.begun.load(Ordering::Acquire) || !store.state.active.is_empty() {
            self.checkpoint(&mut store).await?;
        }
        store.file.close().await
    }
}

/// The open VHDX in `image` with its changes kept track of in `tracking`; as it is if that file is empty,
/// which is what is left where keeping track was ended and a file could not be removed.
///
/// # Errors
/// As [`Tracked::open`].
pub async fn attach(
    disk: Arc<dyn Disk>,
    image: Arc<dyn File>,
    tracking: Arc<dyn File>,
) -> crate::Result<Arc<dyn Disk>> {
    if tracking.len().await? == 0 {
        tracking.close().await?;
        return Ok(disk);
    }
    Ok(Arc::new(Tracked::vhdx(disk, image, tracking).await?))
}

impl Disk for Tracked {
    fn geometry(&self) -> Geometry {
        self.disk.geometry()
    }

    fn read_at<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> IoFuture<'a, ()> {
        self.disk.read_at(offset, buf)
    }

    fn write_at<'a>(&'a self, offset: u64, buf: &'a [u8]) -> IoFuture<'a, ()> {
        Box::pin(async move {
            self.geometry().check(offset, buf.len() as u64)?;
            let _shared = self.gate.read().await;
            self.mark(offset, buf.len() as u64).await?;
            self.disk.write_at(offset, buf).await
        })
    }

    fn write_whole<'a>(&'a self, offset: u64, buf: &'a [u8]) -> IoFuture<'a, ()> {
        Box::pin(async move {
            self.geometry().check(offset, buf.len() as u64)?;
            let _shared = self.gate.read().await;
            self.mark(offset, buf.len() as u64).await?;
            self.disk.write_whole(offset, buf).await
        })
    }

    fn flush(&self) -> IoFuture<'_, ()> {
        self.disk.flush()
    }

    fn discard(&self, offset: u64, len: u64) -> IoFuture<'_, ()> {
        Box::pin(async move {
            self.geometry().check(offset, len)?;
            let _shared = self.gate.read().await;
            self.mark(offset, len).await?;
            self.disk.discard(offset, len).await
        })
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> IoFuture<'_, ()> {
        Box::pin(async move {
            self.geometry().check(offset, len)?;
            let _shared = self.gate.read().await;
            self.mark(offset, len).await?;
            self.disk.write_zeroes(offset, len).await
        })
    }

    fn write_zeroes_kept(&self, offset: u64, len: u64) -> IoFuture<'_, ()> {
        Box::pin(async move {
            self.geometry().check(offset, len)?;
            let _shared = self.gate.read().await;
            self.mark(offset, len).await?;
            self.disk.write_zeroes_kept(offset, len).await
        })
    }

    fn keeps_space(&self) -> bool {
        self.disk.keeps_space()
    }

    fn allocated_ranges(&self, range: Range<u64>) -> IoFuture<'_, Vec<Range<u64>>> {
        self.disk.allocated_ranges(range)
    }

    fn written_ranges(&self, range: Range<u64>) -> IoFuture<'_, Vec<Range<u64>>> {
        self.disk.written_ranges(range)
    }

    fn is_read_only(&self) -> bool {
        self.disk.is_read_only()
    }

    fn close(&self) -> IoFuture<'_, ()> {
        Box::pin(self.end())
    }
}

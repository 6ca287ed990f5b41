//! The disk: reads, writes, flushes and zeros as commands, in pieces that the unit takes.

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
};

use block_io::{Disk, Error, Geometry, IoFuture};
use bytes::Bytes;
use futures_util::future::join_all;
use tokio::{
    sync::{Semaphore, SemaphorePermit, watch},
    task::AbortHandle,
};

use super::{
    cdb,
    error::InitiatorError,
    exchange::{Command, Reply},
    paths::{Paths, Repeat},
    sense::code,
    unit::{Facts, joined},
};

/// The longest transfer of one command, in bytes.
const PIECE: u64 = 1 << 20;
/// Blocks that one WRITE SAME names where the unit says nothing, in bytes.
const SAME: u64 = 16 << 20;
/// Bytes of an answer of GET LBA STATUS.
const STATUS: u32 = 8 + 16 * 1024;

/// How zeros are written: what a unit refuses is not tried again.
mod zeros {
    pub const NO_DATA: u8 = 0;
    pub const ONE_BLOCK: u8 = 1;
    pub const PLAIN: u8 = 2;
}

/// A logical unit of an iSCSI target, opened. Dropping it logs out, without a flush.
#[derive(Debug)]
pub struct IscsiDisk {
    pub(super) paths: Arc<Paths>,
    keepers: Vec<AbortHandle>,
    facts: Facts,
    geometry: Geometry,
    read_only: bool,
    /// Bytes of one command.
    piece: u64,
    room: Semaphore,
    zeros: AtomicU8,
    short_flush: AtomicU8,
    /// Whether closing it takes its registrations away.
    pub(super) releases: AtomicBool,
}

impl Drop for IscsiDisk {
    fn drop(&mut self) {
        self.keepers.iter().for_each(AbortHandle::abort);
    }
}

impl IscsiDisk {
    pub(super) async fn open(paths: Paths) -> Result<Arc<Self>, InitiatorError> {
        let paths = Arc::new(paths);
        let keep = |index| tokio::spawn(Arc::clone(&paths).keep(index)).abort_handle();
        let keepers: Vec<AbortHandle> = (0..paths.options().portals.len()).map(keep).collect();
        let facts = match paths.first().await {
            Ok(facts) => facts,
            Err(error) => {
                keepers.iter().for_each(AbortHandle::abort);
                return Err(error);
            }
        };
        let block = u64::from(facts.capacity.block);
        let burst = paths.all_up().iter().map(|up| up.link.max_burst).min();
        let piece = PIECE.min(burst.map_or(PIECE, u64::from));
        let piece = match facts.limits.transfer {
            0 => piece,
            most => piece.min(u64::from(most) * block),
        };
        let granularity =
            facts.capacity.block.saturating_mul(facts.limits.unmap_granularity.max(1));
        let geometry = Geometry {
            size: facts.capacity.bytes(),
            logical_sector: facts.capacity.block,
            physical_sector: facts.capacity.physical,
            discard_granularity: if facts.unmaps { granularity } else { 0 },
        };
        let zeros = if facts.same_without_data { zeros::NO_DATA } else { zeros::ONE_BLOCK };
        let options = paths.options();
        Ok(Arc::new(Self {
            read_only: options.read_only || facts.protected,
            room: Semaphore::new(options.queue),
            piece: (piece / block * block).max(block),
            keepers,
            geometry,
            facts,
            zeros: AtomicU8::new(zeros),
            short_flush: AtomicU8::new(0),
            releases: AtomicBool::new(false),
            paths,
        }))
    }

    /// The size of the unit as it is now, in bytes; [`Disk::geometry`] has that of its opening.
    #[must_use]
    pub fn size(&self) -> u64 {
        *self.paths.size.borrow()
    }

    /// Tells when the unit's size changes.
    #[must_use]
    pub fn sizes(&self) -> watch::Receiver<u64> {
        self.paths.size.subscribe()
    }

    /// How many paths lead to the unit now.
    #[must_use]
    pub fn paths(&self) -> usize {
        self.paths.all_up().len()
    }

    pub(super) async fn run(&self, command: Command) -> Result<Reply, InitiatorError> {
        self.paths.run(command, Repeat::Always).await
    }

    async fn room(&self) -> Result<SemaphorePermit<'_>, Error> {
        self.room.acquire().await.map_err(|_| Error::Closed)
    }

    fn block(&self, bytes: u64) -> u64 {
        bytes / u64::from(self.geometry.logical_sector)
    }

    fn blocks(&self, bytes: u64) -> u32 {
        u32::try_from(self.block(bytes)).unwrap_or(u32::MAX)
    }

    /// The error of a transfer, which a unit that has shrunk does not know the end of.
    fn explained(&self, error: InitiatorError, offset: u64, len: u64) -> Error {
        match error {
            InitiatorError::Sense(sense) if sense.code == code::LBA_OUT_OF_RANGE => {
                Error::OutOfRange { offset, len, size: self.size() }
            }
            other => other.into(),
        }
    }

    async fn read_piece(&self, offset: u64, buf: &mut [u8]) -> block_io::Result<()> {
        let _room = self.room().await?;
        let len = buf.len() as u64;
        let cdb = cdb::read(self.block(offset), self.blocks(len));
        let expected = u32::try_from(len).unwrap_or(u32::MAX);
        let command = self.paths.command(cdb, Bytes::new(), expected);
        let reply = self.run(command).await.map_err(|error| self.explained(error, offset, len))?;
        if u64::from(reply.length) != len {
            let short = format!("a read of {len} bytes gave {}", reply.length);
            return Err(InitiatorError::Unusable(short).into());
        }
        let mut rest = buf;
        for part in &reply.data {
            let (now, later) = rest.split_at_mut(part.len());
            now.copy_from_slice(part);
            rest = later;
        }
        Ok(())
    }

    async fn write_piece(&self, offset: u64, buf: &[u8]) -> block_io::Result<()> {
        let _room = self.room().await?;
        let len = buf.len() as u64;
        let cdb = cdb::write(self.block(offset), self.blocks(len));
        let command = self.paths.command(cdb, Bytes::copy_from_slice(buf), 0);
        self.run(command).await.map_err(|error| self.explained(error, offset, len))?;
        Ok(())
    }

    fn writable(&self, offset: u64, len: u64) -> block_io::Result<()> {
        if self.read_only {
            return Err(Error::ReadOnly);
        }
        self.geometry.check(offset, len)
    }

    async fn write_all(&self, offset: u64, buf: &[u8]) -> block_io::Result<()> {
        let piece = usize::try_from(self.piece).unwrap_or(usize::MAX);
        if buf.len() <= piece {
            return if buf.is_empty() { Ok(()) } else { self.write_piece(offset, buf).await };
        }
        let parts = buf.chunks(piece).enumerate();
        let parts = parts.map(|(n, part)| self.write_piece(offset + (n * piece) as u64, part));
        // All come to their end before the first failure is told: none lands after it.
        join_all(parts).await.into_iter().collect()
    }

    /// Zeros by WRITE SAME, as well as the unit knows it (SBC-3 5.46).
    async fn zero_piece(&self, offset: u64, len: u64) -> block_io::Result<()> {
        let unmap = self.facts.unmaps_same && self.facts.capacity.zeros;
        loop {
            let way = self.zeros.load(Ordering::Relaxed);
            if way >= zeros::PLAIN {
                let piece = usize::try_from(self.piece.min(len)).unwrap_or(usize::MAX);
                let zeros = vec![0; piece];
                let (mut at, end) = (offset, offset + len);
                while at < end {
                    let now = (end - at).min(piece as u64);
                    self.write_piece(at, &zeros[..now as usize]).await?;
                    at += now;
                }
                return Ok(());
            }
            let no_data = way == zeros::NO_DATA;
            let cdb = cdb::write_same(self.block(offset), self.blocks(len), unmap, no_data);
            let out = match no_data {
                true => Bytes::new(),
                false => vec![0; self.geometry.logical_sector as usize].into(),
            };
            let _room = self.room().await?;
            match self.run(self.paths.command(cdb, out, 0)).await {
                Ok(_) => return Ok(()),
                Err(InitiatorError::Sense(sense))
                    if sense.is_illegal() && sense.code != code::LBA_OUT_OF_RANGE =>
                {
                    let next = match way {
                        zeros::NO_DATA if sense.code != code::OPERATION_CODE => zeros::ONE_BLOCK,
                        _ => zeros::PLAIN,
                    };
                    self.zeros.fetch_max(next, Ordering::Relaxed);
                }
                Err(error) => return Err(self.explained(error, offset, len)),
            }
        }
    }

    async fn unmap(&self, offset: u64, len: u64) -> block_io::Result<()> {
        let limits = self.facts.limits;
        let most = match limits.unmap {
            0 => u32::MAX,
            most => most,
        };
        let (mut lba, end) = (self.block(offset), self.block(offset + len));
        while lba < end {
            let blocks = u32::try_from(end - lba).unwrap_or(u32::MAX).min(most);
            let list = cdb::unmap_list(&[(lba, blocks)]);
            let cdb = cdb::unmap(u16::try_from(list.len()).unwrap_or(u16::MAX));
            let _room = self.room().await?;
            self.run(self.paths.command(cdb, list.into(), 0))
                .await
                .map_err(|error| self.explained(error, offset, len))?;
            lba += u64::from(blocks);
        }
        Ok(())
    }

    async fn synchronize(&self) -> Result<(), InitiatorError> {
        if self.short_flush.load(Ordering::Relaxed) == 0 {
            let command = self.paths.command(cdb::synchronize(), Bytes::new(), 0);
            match self.run(command).await {
                Err(InitiatorError::Sense(sense)) if sense.is_illegal() => {
                    self.short_flush.store(1, Ordering::Relaxed);
                }
                other => return other.map(|_| ()),
            }
        }
        let command = self.paths.command(cdb::synchronize_short(), Bytes::new(), 0);
        match self.run(command).await {
            // A unit without the command has no cache.
            Err(InitiatorError::Sense(sense)) if sense.code == code::OPERATION_CODE => Ok(()),
            other => other.map(|_| ()),
        }
    }

    /// What GET LBA STATUS says of a range of blocks: mapped ones, and up to where it tells
    /// (SBC-3 5.4).
    async fn status(
        &self,
        lba: u64,
        end: u64,
    ) -> Result<Option<(Vec<Range<u64>>, u64)>, InitiatorError> {
        let command = self.paths.command(cdb::lba_status(lba, STATUS), Bytes::new(), STATUS);
        let bytes = match self.run(command).await {
            Ok(reply) => joined(&reply),
            Err(InitiatorError::Sense(sense)) if sense.is_illegal() => return Ok(None),
            Err(error) => return Err(error),
        };
        let (mut mapped, mut next) = (Vec::new(), lba);
        for entry in bytes.get(8..).unwrap_or_default().as_chunks::<16>().0 {
            let start = u64::from_be_bytes(entry[..8].try_into().unwrap_or_default());
            let blocks = u32::from_be_bytes(entry[8..12].try_into().unwrap_or_default());
            let until = start.saturating_add(blocks.into());
            // An answer that does not go on from where the last ended tells nothing.
            if start > next || until <= next || next >= end {
                break;
            }
            if entry[12] & 0x0f == 0 {
                mapped.push(next..until.min(end));
            }
            next = until;
        }
        Ok(Some((mapped, next.min(end))))
    }

    async fn allocated(&self, range: Range<u64>) -> Result<Vec<Range<u64>>, InitiatorError> {
        if !(self.facts.capacity.thin && self.facts.capacity.zeros) {
            return Ok(vec![range]);
        }
        let block = u64::from(self.geometry.logical_sector);
        let (mut lba, end) = (range.start / block, range.end.div_ceil(block));
        let mut found: Vec<Range<u64>> = Vec::new();
        let mut add = |more: Range<u64>| {
            let more = (more.start * block).max(range.start)..(more.end * block).min(range.end);
            match found.last_mut() {
                Some(last) if last.end == more.start => last.end = more.end,
                _ => found.push(more),
            }
        };
        while lba < end {
            match self.status(lba, end).await? {
                Some((mapped, next)) if next > lba => {
                    mapped.into_iter().for_each(&mut add);
                    lba = next;
                }
                _ => {
                    add(lba..end);
                    break;
                }
            }
        }
        Ok(found)
    }
}

impl Disk for IscsiDisk {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn read_at<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> IoFuture<'a, ()> {
        Box::pin(async move {
            self.geometry.check(offset, buf.len() as u64)?;
            let piece = usize::try_from(self.piece).unwrap_or(usize::MAX);
            if buf.len() <= piece {
                return if buf.is_empty() { Ok(()) } else { self.read_piece(offset, buf).await };
            }
            let parts = buf.chunks_mut(piece).enumerate();
            let parts = parts.map(|(n, part)| self.read_piece(offset + (n * piece) as u64, part));
            join_all(parts).await.into_iter().collect()
        })
    }

    fn write_at<'a>(&'a self, offset: u64, buf: &'a [u8]) -> IoFuture<'a, ()> {
        Box::pin(async move {
            self.writable(offset, buf.len() as u64)?;
            self.write_all(offset, buf).await
        })
    }

    fn flush(&self) -> IoFuture<'_, ()> {
        Box::pin(async move {
            match self.read_only {
                true => Ok(()),
                false => Ok(self.synchronize().await?),
            }
        })
    }

    fn discard(&self, offset: u64, len: u64) -> IoFuture<'_, ()> {
        Box::pin(async move {
            self.writable(offset, len)?;
            if self.facts.unmaps { self.unmap(offset, len).await } else { Ok(()) }
        })
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> IoFuture<'_, ()> {
        Box::pin(async move {
            self.writable(offset, len)?;
            let block = u64::from(self.geometry.logical_sector);
            let most = match self.facts.limits.same {
                0 => SAME,
                blocks => blocks.saturating_mul(block).min(1 << 30),
            };
            let (mut at, end) = (offset, offset + len);
            while at < end {
                let now = (end - at).min(most);
                self.zero_piece(at, now).await?;
                at += now;
            }
            Ok(())
        })
    }

    fn allocated_ranges(&self, range: Range<u64>) -> IoFuture<'_, Vec<Range<u64>>> {
        Box::pin(async move {
            let len = range.end.saturating_sub(range.start);
            Error::check_range(range.start, len, self.geometry.size)?;
            if len == 0 {
                return Ok(Vec::new());
            }
            Ok(self.allocated(range).await?)
        })
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn close(&self) -> IoFuture<'_, ()> {
        Box::pin(async move {
            let flushed = match self.read_only {
                true => Ok(()),
                false => self.synchronize().await,
            };
            let released = match self.releases.load(Ordering::Relaxed) {
                true => self.register(0, false).await,
                false => Ok(()),
            };
            self.room.close();
            self.paths.close().await;
            self.keepers.iter().for_each(AbortHandle::abort);
            match flushed.and(released) {
                // Closing twice is closing.
                Ok(()) | Err(InitiatorError::Closed) => Ok(()),
                Err(error) => Err(error.into()),
            }
        })
    }
}

//! Commands that read and write blocks (SBC-3 5). Payload goes between the transport's buffers and
//! the disk as it is.

use std::sync::Arc;

use block_io::Disk;
use bytes::Bytes;

use crate::{
    Sense, SenseKey, asc,
    call::Call,
    cdb::{Access, ByteCheck, Extent},
    refusal::{Done, Refusal},
    unit::{Guard, MAX_COMPARE, Provisioning, carry},
};

/// Bytes that are read at a time where nobody gets them.
const CHUNK: u64 = 1 << 20;

impl Call<'_> {
    /// As much of data-out as came, of `wanted` bytes, in whole blocks.
    ///
    /// # Errors
    /// A part of a block came: nothing of it can be written.
    fn blocks_out(&self, wanted: u64) -> Result<&[u8], Refusal> {
        let len = usize::try_from(wanted).unwrap_or(usize::MAX).min(self.data_out.len());
        if !len.is_multiple_of(self.unit.block() as usize) {
            return Err(Refusal::illegal(asc::FIELD_IN_INFORMATION_UNIT));
        }
        Ok(&self.data_out[..len])
    }

    pub(crate) async fn read(&self, extent: Extent, data_in: &mut Vec<u8>) -> Done {
        let (offset, len) = self.unit.transfer(&extent)?;
        if len == 0 {
            return Ok(());
        }
        let disk = self.unit.disk();
        if extent.force {
            self.unit.flush(&*disk).await?;
        }
        let _guard = self.unit.ranges.shared(extent.lba, extent.blocks.into()).await;
        self.still_allowed(Access::Read)?;
        let begin = data_in.len();
        data_in.resize(begin + len as usize, 0);
        let done = disk.read_at(offset, &mut data_in[begin..]).await;
        if done.is_err() {
            data_in.truncate(begin);
        }
        done.map_err(Refusal::reading)
    }

    /// Data beyond what the initiator announced are not written, and the rest is as it would be
    /// otherwise: of a block that came in part the other part stays (FCP-4 9.4.2).
    pub(crate) async fn write(&self, extent: Extent) -> Done {
        let (offset, len) = self.unit.transfer(&extent)?;
        self.unit.writable()?;
        let disk = self.unit.disk();
        if let Some(data) = self.came(len) {
            let whole = data.len().is_multiple_of(self.unit.block() as usize);
            let (ranges, blocks) = (&self.unit.ranges, u64::from(extent.blocks));
            let guard = match whole {
                true => ranges.shared(extent.lba, blocks).await,
                false => ranges.alone(extent.lba, blocks).await,
            };
            self.put_all(guard, &disk, offset, data).await?;
        }
        self.unit.settle(&*disk, extent.force).await
    }

    /// As much of data-out as came, of `wanted` bytes; `None` if nothing did.
    fn came(&self, wanted: u64) -> Option<Bytes> {
        let len = usize::try_from(wanted).unwrap_or(usize::MAX).min(self.data_out.len());
        let data = (len > 0).then(|| self.data_out.slice(..len))?;
        // Should the command be aborted, its write keeps the data: not what came beside them.
        let padded = self.data_out.len() - len > len;
        Some(if padded { Bytes::copy_from_slice(&data) } else { data })
    }

    /// Writes data of which the last may be a part of a block: the guard must be alone then.
    async fn put_all(
        &self,
        mut guard: Guard,
        disk: &Arc<dyn Disk>,
        offset: u64,
        mut data: Bytes,
    ) -> Result<Guard, Refusal> {
        let block = self.unit.block() as usize;
        let part = data.split_off(data.len() / block * block);
        let end = offset + data.len() as u64;
        if !data.is_empty() {
            (guard, _) = self.put(guard, disk, offset, data).await?;
        }
        if !part.is_empty() {
            let mut bytes = vec![0; block];
            disk.read_at(end, &mut bytes).await.map_err(Refusal::reading)?;
            bytes[..part.len()].copy_from_slice(&part);
            (guard, _) = self.put(guard, disk, end, bytes).await?;
        }
        Ok(guard)
    }

    /// Writes under a guard: what a reservation forbids by now does not land any more, and tokens
    /// that stand for what was here are void. Gives back the guard and the data.
    pub(crate) async fn put<D: AsRef<[u8]> + Send + 'static>(
        &self,
        guard: Guard,
        disk: &Arc<dyn Disk>,
        offset: u64,
        data: D,
    ) -> Result<(Guard, D), Refusal> {
        self.still_allowed(Access::Write)?;
        self.target.tokens.changed(self.unit, offset, data.as_ref().len() as u64);
        write_carried(guard, disk, offset, data).await
    }

    pub(crate) async fn verify(&self, extent: Extent, check: ByteCheck) -> Done {
        let (offset, len) = self.unit.transfer(&extent)?;
        if len == 0 {
            return Ok(());
        }
        let block = u64::from(self.unit.block());
        let data = match check {
            ByteCheck::None => Expected::Anything,
            ByteCheck::All => Expected::Each(self.blocks_out(len)?),
            ByteCheck::One => Expected::Same(self.blocks_out(block)?),
        };
        let disk = self.unit.disk();
        let _guard = self.unit.ranges.shared(extent.lba, extent.blocks.into()).await;
        self.still_allowed(Access::Read)?;
        compare(&*disk, offset, len, data).await
    }

    /// WRITE AND VERIFY (SBC-3 5.41): nobody else's write comes between its two halves.
    pub(crate) async fn write_verify(&self, extent: Extent, check: ByteCheck) -> Done {
        let (offset, len) = self.unit.transfer(&extent)?;
        self.unit.writable()?;
        let disk = self.unit.disk();
        let Some(data) = self.came(len) else {
            return self.unit.settle(&*disk, extent.force).await;
        };
        let guard = self.unit.ranges.alone(extent.lba, extent.blocks.into()).await;
        let whole = data.slice(..data.len() - data.len() % self.unit.block() as usize);
        let _guard = self.put_all(guard, &disk, offset, data).await?;
        self.unit.settle(&*disk, extent.force).await?;
        let expected = match check {
            ByteCheck::None => Expected::Anything,
            _ => Expected::Each(&whole),
        };
        compare(&*disk, offset, whole.len() as u64, expected).await
    }

    /// COMPARE AND WRITE (SBC-3 5.2): the first half is what must be there, the second what is
    /// then written.
    pub(crate) async fn compare_and_write(&self, extent: Extent) -> Done {
        if extent.blocks > MAX_COMPARE {
            return Err(Refusal::in_cdb(extent.length_at, Some(7)));
        }
        let (offset, len) = self.unit.transfer(&extent)?;
        self.unit.writable()?;
        if self.data_out.len() as u64 != 2 * len {
            return Err(Refusal::in_cdb(extent.length_at, Some(7)));
        }
        if len == 0 {
            return Ok(());
        }
        let (there, new) = (&self.data_out[..len as usize], self.data_out.slice(len as usize..));
        let disk = self.unit.disk();
        {
            let guard = self.unit.ranges.alone(extent.lba, extent.blocks.into()).await;
            self.still_allowed(Access::Write)?;
            let mut found = vec![0; len as usize];
            disk.read_at(offset, &mut found).await.map_err(Refusal::reading)?;
            if let Some(at) = found.iter().zip(there).position(|(a, b)| a != b) {
                return Err(miscompare(Some(at as u64)));
            }
            self.put(guard, &disk, offset, new).await?;
        }
        self.unit.settle(&*disk, extent.force).await
    }

    /// ORWRITE (SBC-3 5.12).
    pub(crate) async fn or_write(&self, extent: Extent) -> Done {
        let (offset, len) = self.unit.transfer(&extent)?;
        self.unit.writable()?;
        let data = self.blocks_out(len)?;
        let disk = self.unit.disk();
        if !data.is_empty() {
            let guard = self.unit.ranges.alone(extent.lba, extent.blocks.into()).await;
            self.still_allowed(Access::Write)?;
            let mut bytes = vec![0; data.len()];
            disk.read_at(offset, &mut bytes).await.map_err(Refusal::reading)?;
            for (byte, more) in bytes.iter_mut().zip(data) {
                *byte |= more;
            }
            self.put(guard, &disk, offset, bytes).await?;
        }
        self.unit.settle(&*disk, extent.force).await
    }

    /// WRITE ATOMIC(16) (SBC-4 5.50): to other commands it is one step by the lock, to a loss of
    /// power by what the disk promises.
    pub(crate) async fn write_atomic(&self, extent: Extent, boundary: u16) -> Done {
        let (offset, len) = self.unit.transfer(&extent)?;
        self.unit.writable()?;
        if boundary != 0 {
            return Err(Refusal::in_cdb(10, Some(7)));
        }
        if extent.blocks > self.unit.options.atomic_blocks {
            return Err(Refusal::in_cdb(extent.length_at, Some(7)));
        }
        if (self.data_out.len() as u64) < len {
            return Err(Refusal::illegal(asc::FIELD_IN_INFORMATION_UNIT));
        }
        let disk = self.unit.disk();
        if len > 0 {
            let guard = self.unit.ranges.alone(extent.lba, extent.blocks.into()).await;
            self.put_whole(guard, &disk, offset, &extent).await?;
        }
        self.unit.settle(&*disk, extent.force).await
    }

    /// Writes data-out by one request of the storage below.
    ///
    /// # Errors
    /// INVALID FIELD IN CDB where the blocks lie in several places of an image: no promise holds for
    /// those together.
    async fn put_whole(
        &self,
        guard: Guard,
        disk: &Arc<dyn Disk>,
        offset: u64,
        extent: &Extent,
    ) -> Done {
        self.still_allowed(Access::Write)?;
        let len = u64::from(extent.blocks) * u64::from(self.unit.block());
        let (disk, data) = (Arc::clone(disk), self.data_out.slice(..len as usize));
        self.target.tokens.changed(self.unit, offset, len);
        let work = async move { disk.write_whole(offset, &data).await };
        match carry(guard, work).await.1 {
            Err(block_io::Error::Unsupported(_)) => Err(Refusal::in_cdb(extent.length_at, Some(7))),
            done => done.map_err(Refusal::writing),
        }
    }

    /// SYNCHRONIZE CACHE: all of it, whatever the range. It is over when it is done, also where
    /// IMMED would let it go on.
    pub(crate) async fn synchronize_cache(&self, extent: Extent) -> Done {
        self.unit.bytes(extent.lba, extent.blocks.into())?;
        self.unit.flush(&*self.unit.disk()).await
    }

    /// PRE-FETCH: there is no cache of known size here, so it never promises that blocks are in it.
    pub(crate) fn pre_fetch(&self, extent: Extent) -> Done {
        self.unit.bytes(extent.lba, extent.blocks.into())?;
        Ok(())
    }
}

/// Writes under a guard, to the end also where the command is aborted meanwhile; gives back both.
pub(crate) async fn write_carried<D: AsRef<[u8]> + Send + 'static>(
    guard: Guard,
    disk: &Arc<dyn Disk>,
    offset: u64,
    data: D,
) -> Result<(Guard, D), Refusal> {
    let disk = Arc::clone(disk);
    let work = async move {
        let done = disk.write_at(offset, data.as_ref()).await;
        (data, done)
    };
    let (guard, (data, done)) = carry(guard, work).await;
    done.map_err(Refusal::writing)?;
    Ok((guard, data))
}

/// Bytes that are made zero at a time: an abort waits for no more.
const ZERO_PART: u64 = 32 << 20;

/// Makes blocks zero under a guard, as [`write_carried`] writes. Only of a thin unit is space given back.
pub(crate) async fn zero_carried(
    guard: Guard,
    disk: &Arc<dyn Disk>,
    offset: u64,
    len: u64,
    provisioning: Provisioning,
) -> Result<Guard, Refusal> {
    let mut guard = guard;
    let mut at = 0;
    while at < len {
        let (disk, offset, part) = (Arc::clone(disk), offset + at, ZERO_PART.min(len - at));
        let work = async move {
            match provisioning {
                Provisioning::Thin => disk.write_zeroes(offset, part).await,
                Provisioning::Resource | Provisioning::Full => {
                    disk.write_zeroes_kept(offset, part).await
                }
            }
        };
        let done;
        (guard, done) = carry(guard, work).await;
        done.map_err(Refusal::writing)?;
        at += part;
    }
    Ok(guard)
}

/// What blocks are compared with.
enum Expected<'a> {
    /// They can be read: that is all.
    Anything,
    Each(&'a [u8]),
    Same(&'a [u8]),
}

async fn compare(disk: &dyn Disk, offset: u64, len: u64, expected: Expected<'_>) -> Done {
    // Of data that came short as much is compared as came.
    let len = match expected {
        Expected::Each(data) => data.len() as u64,
        Expected::Same([]) => 0,
        _ => len,
    };
    let mut buffer = vec![0; CHUNK.min(len) as usize];
    let mut at = 0;
    while at < len {
        let part = &mut buffer[..CHUNK.min(len - at) as usize];
        disk.read_at(offset + at, part).await.map_err(Refusal::reading)?;
        let same = match expected {
            Expected::Anything => true,
            Expected::Each(data) => part == &data[at as usize..at as usize + part.len()],
            Expected::Same(one) => part.chunks(one.len()).all(|it| it == one),
        };
        if !same {
            return Err(miscompare(None));
        }
        at += part.len() as u64;
    }
    Ok(())
}

/// MISCOMPARE, with the place of the first byte that is different.
fn miscompare(at: Option<u64>) -> Refusal {
    Refusal::Check(Sense { information: at, ..Sense::new(SenseKey::Miscompare, asc::MISCOMPARE) })
}

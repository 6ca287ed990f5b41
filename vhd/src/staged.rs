//! A file whose changes are kept in memory until they are complete.
//!
//! ```text
//!  writes ──► sectors in memory ──► commit: all but the sealed ones ─► flush ─► the sealed ones ─► flush
//!  reads  ◄── sectors in memory, else the file
//! ```
//!
//! What makes bytes an image (a VHDX's identifier, a VHD's footers) is sealed: a crash leaves no image
//! or the whole one.

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use block_io::{File, IoFuture, Result};

/// The unit in which changes are kept.
const SECTOR: u64 = 512;
type Sector = [u8; SECTOR as usize];

/// Changes of structures: memory grows with what is written.
#[derive(Debug)]
pub(crate) struct Staged {
    file: Arc<dyn File>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    sectors: BTreeMap<u64, Box<Sector>>,
    /// Bytes of the file as it is to be.
    len: u64,
}

impl Staged {
    /// `file` as it is, without changes.
    pub(crate) async fn new(file: Arc<dyn File>) -> Result<Self> {
        let state = State { sectors: BTreeMap::new(), len: file.len().await? };
        Ok(Self { file, state: Mutex::new(state) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes the changes to the file, those of sectors that are sealed last. Durable on return.
    pub(crate) async fn commit(&self, sealed: impl Fn(u64) -> bool) -> Result<()> {
        let (len, sectors) = {
            let mut state = self.state();
            (state.len, std::mem::take(&mut state.sectors))
        };
        // What is behind an end that moved is for none of the sectors below.
        self.file.set_len(len).await?;
        let (last, first): (Vec<_>, Vec<_>) = sectors.iter().partition(|(at, _)| sealed(**at));
        for part in [first, last] {
            for (at, bytes) in part {
                // A sector that the file ends in is not filled up.
                let within = (len - at).min(SECTOR) as usize;
                self.file.write_at(*at, &bytes[..within]).await?;
            }
            self.file.flush().await?;
        }
        Ok(())
    }
}

impl File for Staged {
    fn read_at<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> IoFuture<'a, usize> {
        Box::pin(async move {
            let len = self.state().len.saturating_sub(offset).min(buf.len() as u64) as usize;
            let buf = &mut buf[..len];
            let got = self.file.read_at(offset, buf).await?;
            buf[got..].fill(0);
            let end = offset + len as u64;
            let state = self.state();
            for (at, bytes) in state.sectors.range(offset.saturating_sub(SECTOR - 1)..end) {
                let (from, to) = ((*at).max(offset), (at + SECTOR).min(end));
                if from < to {
                    buf[(from - offset) as usize..(to - offset) as usize]
                        .copy_from_slice(&bytes[(from - at) as usize..(to - at) as usize]);
                }
            }
            Ok(len)
        })
    }

    fn write_at<'a>(&'a self, offset: u64, buf: &'a [u8]) -> IoFuture<'a, ()> {
        Box::pin(async move {
            let end = offset + buf.len() as u64;
            let mut at = offset / SECTOR * SECTOR;
            while at < end {
                let mut sector: Box<Sector> = Box::new([0; SECTOR as usize]);
                let (from, to) = (at.max(offset), (at + SECTOR).min(end));
                if to - from < SECTOR {
                    self.read_at(at, &mut sector[..]).await?;
                }
                sector[(from - at) as usize..(to - at) as usize]
                    .copy_from_slice(&buf[(from - offset) as usize..(to - offset) as usize]);
                let mut state = self.state();
                state.sectors.insert(at, sector);
                state.len = state.len.max(to);
                at += SECTOR;
            }
            Ok(())
        })
    }

    fn flush(&self) -> IoFuture<'_, ()> {
        Box::pin(async { Ok(()) })
    }

    fn len(&self) -> IoFuture<'_, u64> {
        Box::pin(async { Ok(self.state().len) })
    }

    /// Only to lengths of whole sectors.
    fn set_len(&self, len: u64) -> IoFuture<'_, ()> {
        Box::pin(async move {
            let old = {
                let mut state = self.state();
                state.sectors.split_off(&len);
                std::mem::replace(&mut state.len, len)
            };
            // What the file has there must not come back if it becomes longer again.
            if len < old && len < self.file.len().await? {
                self.file.set_len(len).await?;
            }
            Ok(())
        })
    }

    fn punch_hole(&self, range: Range<u64>) -> IoFuture<'_, ()> {
        let _ = range;
        Box::pin(async { Err(block_io::Error::Unsupported("holes in what is not written yet")) })
    }

    fn allocated_ranges(&self, range: Range<u64>) -> IoFuture<'_, Vec<Range<u64>>> {
        Box::pin(async move { Ok(vec![range.start..range.end.min(self.state().len)]) })
    }

    fn is_read_only(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use block_io::testing::MemFile;
    use proptest::{collection::vec, prelude::*};

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..Default::default() })]

        /// Reads see the changes, the file none of them before the commit and all after it.
        #[test]
        fn changes_are_seen_and_come_at_once(
            writes in vec((0u64..6000, vec(any::<u8>(), 1..900)), 0..12),
            cut in proptest::option::of(1u64..12),
        ) {
            tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
                let file = Arc::new(MemFile::from_bytes(&[0xaa; 4096]));
                let mut model = vec![0xaa; 4096];
                let staged = Staged::new(file.clone()).await.unwrap();
                for (at, bytes) in &writes {
                    staged.write_at(*at, bytes).await.unwrap();
                    let (at, end) = (*at as usize, *at as usize + bytes.len());
                    model.resize(model.len().max(end), 0);
                    model[at..end].copy_from_slice(bytes);
                }
                assert!(file.to_bytes() == [0xaa; 4096], "written before the commit");
                if let Some(len) = cut {
                    staged.set_len(len * SECTOR).await.unwrap();
                    model.resize((len * SECTOR) as usize, 0);
                }
                let mut seen = vec![0xee; 10_000];
                let got = staged.read_at(0, &mut seen).await.unwrap();
                assert!(seen[..got] == model);
                staged.commit(|at| at == 0).await.unwrap();
                assert!(file.to_bytes() == model);
            });
        }
    }
}

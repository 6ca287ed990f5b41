//! A file that loses what was not flushed.

use std::{
    ops::Range,
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::{MemFile, Rng, sparse::Sparse};
use crate::{Error, File, IoFuture, Result};

/// The piece of a write that reaches the medium whole or not at all.
const SECTOR: usize = 512;

/// What a crash leaves of the changes that were not flushed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Survival {
    /// All of them: the process died, the machine did not.
    All,
    /// None of them.
    None,
    /// Some, in any order, torn at sector boundaries: the machine died.
    Some,
}

#[derive(Debug, Clone)]
enum Change {
    Write(u64, Vec<u8>),
    SetLen(u64),
    Zero(Range<u64>),
}

impl Change {
    fn apply(&self, to: &mut Sparse) {
        match self {
            Change::Write(offset, data) => to.write(*offset, data),
            Change::SetLen(len) => to.set_len(*len),
            // The write that made the file as long may be lost.
            Change::Zero(range) => to.zero(range.start.min(to.len())..range.end.min(to.len())),
        }
    }
}

/// A file whose unflushed changes can be lost.
///
/// Every operation first gives other tasks a seeded number of turns, so requests in flight
/// together overtake each other in a repeatable way. After [`CrashFile::fail_after`] operations
/// all further ones fail, which stops the user of the file at an arbitrary point.
///
/// ```text
///  view     = durable + every change so far   (what reads see)
///  durable  = everything a completed flush covers
///  crash()  = durable + a seeded, reordered, torn part of the rest
/// ```
#[derive(Debug)]
pub struct CrashFile {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    view: Sparse,
    durable: Sparse,
    pending: Vec<Change>,
    /// Changes ever made, flushed ones included.
    recorded: u64,
    rng: Rng,
    operations: u64,
    fail_after: u64,
    flushes_left: Option<(Range<u64>, u64)>,
}

impl CrashFile {
    /// A file with the content of `base`, all of it durable.
    pub fn new(base: &MemFile, seed: u64) -> Self {
        let mut durable = Sparse::default();
        base.sparse_into(&mut durable);
        Self {
            state: Mutex::new(State {
                view: durable.clone(),
                durable,
                pending: Vec::new(),
                recorded: 0,
                rng: Rng::new(seed),
                operations: 0,
                fail_after: u64::MAX,
                flushes_left: None,
            }),
        }
    }

    /// Lets `operations` more changes and flushes through, then fails everything.
    pub fn fail_after(&self, operations: u64) {
        let mut state = self.lock();
        state.fail_after = state.operations + operations;
    }

    /// Of the flushes that find unflushed writes in `range`, lets `flushes` through and fails the
    /// next and everything that follows: the moment at which the most is unflushed.
    pub fn fail_at_flush(&self, range: Range<u64>, flushes: u64) {
        self.lock().flushes_left = Some((range, flushes));
    }

    /// Changes and flushes so far.
    pub fn operations(&self) -> u64 {
        self.lock().operations
    }

    /// What is found after a crash now. The file itself goes on.
    pub fn crash(&self, seed: u64, survival: Survival) -> MemFile {
        let state = self.lock();
        let mut image = state.durable.clone();
        match survival {
            Survival::None => {}
            Survival::All => state.pending.iter().for_each(|change| change.apply(&mut image)),
            Survival::Some => survive(&mut image, &state.pending, &mut Rng::new(seed)),
        }
        MemFile::from_sparse(image)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn turns(&self, changes: bool) -> Result<()> {
        let turns = {
            let mut state = self.lock();
            // Mostly soon, at times long after many others.
            match state.rng.below(100) {
                0..50 => 0,
                50..95 => state.rng.below(4),
                _ => state.rng.below(300),
            }
        };
        for _ in 0..turns {
            tokio::task::yield_now().await;
        }
        let mut state = self.lock();
        if state.operations >= state.fail_after {
            return Err(Error::Disconnected("the test's crash".into()));
        }
        state.operations += u64::from(changes);
        Ok(())
    }

    async fn change(&self, change: Change) -> Result<()> {
        self.turns(true).await?;
        let mut state = self.lock();
        change.apply(&mut state.view);
        state.pending.push(change);
        state.recorded += 1;
        Ok(())
    }
}

/// Applies a part of `pending`. Size changes and holes are journaled by file systems: they
/// survive in order, up to some point. Writes survive sector by sector, in any order between two
/// of those.
fn survive(image: &mut Sparse, pending: &[Change], rng: &mut Rng) {
    let journaled = pending.iter().filter(|c| !matches!(c, Change::Write(..))).count() as u64;
    let mut journal_left = rng.below(journaled + 1);
    let keep = [0, 20, 50, 80, 100][rng.below(5) as usize];
    let mut batch: Vec<(u64, &Vec<u8>)> = Vec::new();
    let apply = |image: &mut Sparse, batch: &mut Vec<(u64, &Vec<u8>)>, rng: &mut Rng| {
        while !batch.is_empty() {
            let (offset, data) = batch.swap_remove(rng.below(batch.len() as u64) as usize);
            let tear = rng.chance(30);
            let whole = rng.chance(keep);
            for (i, sector) in data.chunks(SECTOR).enumerate() {
                if if tear { rng.chance(50) } else { whole } {
                    image.write(offset + (i * SECTOR) as u64, sector);
                }
            }
        }
    };
    for change in pending {
        match change {
            Change::Write(offset, data) => batch.push((*offset, data)),
            journaled => {
                apply(image, &mut batch, rng);
                if journal_left > 0 {
                    journal_left -= 1;
                    journaled.apply(image);
                }
            }
        }
    }
    apply(image, &mut batch, rng);
}

impl File for CrashFile {
    fn read_at<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> IoFuture<'a, usize> {
        Box::pin(async move {
            self.turns(false).await?;
            Ok(self.lock().view.read(offset, buf))
        })
    }

    fn write_at<'a>(&'a self, offset: u64, buf: &'a [u8]) -> IoFuture<'a, ()> {
        Box::pin(self.change(Change::Write(offset, buf.to_vec())))
    }

    fn flush(&self) -> IoFuture<'_, ()> {
        Box::pin(async move {
            // What was complete at the call is covered; what comes during it is not.
            let covered = self.lock().recorded;
            self.turns(true).await?;
            let mut state = self.lock();
            let state = &mut *state;
            if let Some((range, left)) = &mut state.flushes_left {
                let touches = |change: &Change| match change {
                    Change::Write(at, data) => {
                        *at < range.end && range.start < at + data.len() as u64
                    }
                    _ => false,
                };
                if state.pending.iter().any(touches) {
                    if *left == 0 {
                        state.fail_after = 0;
                        return Err(Error::Disconnected("the test's crash".into()));
                    }
                    *left -= 1;
                }
            }
            // A flush that ran at the same time may have taken some of them already.
            let taken = state.recorded - state.pending.len() as u64;
            let count = covered.saturating_sub(taken) as usize;
            for change in state.pending.drain(..count) {
                change.apply(&mut state.durable);
            }
            Ok(())
        })
    }

    fn len(&self) -> IoFuture<'_, u64> {
        Box::pin(async move { Ok(self.lock().view.len()) })
    }

    fn set_len(&self, len: u64) -> IoFuture<'_, ()> {
        Box::pin(self.change(Change::SetLen(len)))
    }

    fn punch_hole(&self, range: Range<u64>) -> IoFuture<'_, ()> {
        Box::pin(self.change(Change::Zero(range)))
    }

    fn allocated_ranges(&self, range: Range<u64>) -> IoFuture<'_, Vec<Range<u64>>> {
        Box::pin(async move { Ok(self.lock().view.ranges(range)) })
    }

    fn is_read_only(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn flushed_stays_and_the_rest_may_tear() {
        let mut torn = 0;
        let mut lost = 0;
        for seed in 0..200 {
            let file = CrashFile::new(&MemFile::new(), seed);
            file.write_at(0, &[1; 4096]).await.unwrap();
            file.flush().await.unwrap();
            file.write_at(4096, &[2; 4096]).await.unwrap();
            let after = file.crash(seed, Survival::Some).to_bytes();
            assert_eq!(after[..4096], [1; 4096]);
            let kept = after[4096..].iter().filter(|b| **b == 2).count();
            lost += u32::from(kept == 0);
            torn += u32::from(kept > 0 && kept < 4096);
            assert!(kept.is_multiple_of(SECTOR));
            assert_eq!(file.crash(seed, Survival::None).to_bytes().len(), 4096);
            assert_eq!(file.crash(seed, Survival::All).to_bytes()[4096..], [2; 4096]);
        }
        assert!(torn > 10 && lost > 10, "{torn} torn, {lost} lost");
    }

    #[tokio::test]
    async fn fails_after_the_given_number_of_changes() {
        let file = CrashFile::new(&MemFile::new(), 1);
        file.fail_after(2);
        file.write_at(0, &[1]).await.unwrap();
        file.set_len(5).await.unwrap();
        assert!(matches!(file.flush().await, Err(Error::Disconnected(_))));
        assert_eq!(file.crash(0, Survival::None).to_bytes().len(), 0);
    }
}

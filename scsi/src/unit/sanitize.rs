//! SANITIZE (SBC-3 4.11, 5.30): every block is written over or erased, whatever becomes of the
//! command, its nexus, resets or the process meanwhile.
//!
//! ```text
//!            ┌── done, not kept any more ───┐
//!            ▼                              │
//!  idle ── SANITIZE ──► kept ──► in progress ┤◄── the process ended: it begins anew
//!                                  ▲        └── failed, kept ──► failed ── EXIT FAILURE MODE ──► idle
//!                                  └──────────── SANITIZE ─────────┘
//! ```

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU16, Ordering},
    },
    time::Duration,
};

use block_io::Disk;
use nom::{
    IResult, Parser,
    bytes::complete::take,
    number::complete::{be_u8, be_u16},
};
use tokio::{sync::watch, time::Instant};

use super::{Provisioning, Unit};
use crate::{
    Sense, SenseKey, asc,
    refusal::{Done, Refusal},
    store::{Kept, UnitStore},
};

const IDLE: u8 = 0;
const RUNNING: u8 = 1;
const FAILED: u8 = 2;

/// Bytes of one step.
const STEP: u64 = 1 << 20;

/// An erase that was at work this long rests as long: what it costs is up to the disk below, so no
/// rate in bytes would fit both a hole that is punched and zeros that are written.
const REST: Duration = Duration::from_millis(20);

/// What the first byte of what is kept says.
const VERSION: u8 = 1;

/// An answer to what the store could not keep.
const UNKEPT: Refusal = Refusal::check(SenseKey::HardwareError, asc::INTERNAL_FAILURE);

/// Where a sanitize operation stands.
#[derive(Debug, Default)]
pub(crate) struct Sanitize {
    phase: AtomicU8,
    /// Of 65536 parts how many are done.
    progress: AtomicU16,
    /// It is to stop where it is: the process ends, or the unit goes.
    halted: watch::Sender<bool>,
}

/// What blocks are left with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Pattern {
    /// Nothing: they are unmapped.
    Erase,
    /// These bytes over and over from the begin of each block, so many times; the bits turned
    /// over from time to time.
    Overwrite { bytes: Vec<u8>, times: u8, invert: bool },
}

impl Sanitize {
    /// What commands of the medium are answered.
    ///
    /// # Errors
    /// NOT READY with how far it is; MEDIUM ERROR after one that failed.
    pub(crate) fn check(&self) -> Done {
        match self.phase.load(Ordering::Acquire) {
            IDLE => Ok(()),
            RUNNING => Err(Refusal::Check(self.in_progress())),
            _ => Err(Refusal::check(SenseKey::MediumError, asc::SANITIZE_FAILED)),
        }
    }

    /// The answer of REQUEST SENSE while it lasts.
    pub(crate) fn sense(&self) -> Option<Sense> {
        (self.phase.load(Ordering::Acquire) == RUNNING).then(|| self.in_progress())
    }

    pub(crate) fn running(&self) -> bool {
        self.phase.load(Ordering::Acquire) == RUNNING
    }

    fn in_progress(&self) -> Sense {
        let [high, low] = self.progress.load(Ordering::Relaxed).to_be_bytes();
        Sense {
            specific: Some([0x80, high, low]),
            ..Sense::new(SenseKey::NotReady, asc::SANITIZE_IN_PROGRESS)
        }
    }

    /// EXIT FAILURE MODE.
    ///
    /// # Errors
    /// One is in progress; the store failed, and then it is as it was.
    pub(crate) async fn exit_failure(&self, unit: [u8; 16], store: Option<&dyn UnitStore>) -> Done {
        if self.phase.load(Ordering::Acquire) == FAILED {
            if let Some(store) = store {
                store.save(unit, Kept::Sanitize, &[]).await.map_err(|error| unkept(&error))?;
            }
            let _ = self.phase.compare_exchange(FAILED, IDLE, Ordering::AcqRel, Ordering::Acquire);
        }
        self.check()
    }

    /// The phase that it began in.
    fn begin(&self) -> Result<u8, Refusal> {
        for from in [IDLE, FAILED] {
            let begun =
                self.phase.compare_exchange(from, RUNNING, Ordering::AcqRel, Ordering::Acquire);
            if begun.is_ok() {
                self.progress.store(0, Ordering::Relaxed);
                return Ok(from);
            }
        }
        Err(Refusal::Check(self.in_progress()))
    }

    /// Takes up what was kept of it; the pattern if it is to go on. What must not be written any
    /// more cannot be sanitized.
    pub(crate) fn restore(&self, kept: Option<Operation>, read_only: bool) -> Option<Pattern> {
        let Operation { failed, pattern } = kept?;
        let failed = failed || read_only;
        self.phase.store(if failed { FAILED } else { RUNNING }, Ordering::Release);
        (!failed).then_some(pattern)
    }

    /// What is under way stops where it is, and what is kept of it stays.
    pub(crate) fn halt(&self) {
        self.halted.send_replace(true);
    }
}

/// An operation as it is kept.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Operation {
    failed: bool,
    pattern: Pattern,
}

impl Operation {
    fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION, u8::from(self.failed)];
        match &self.pattern {
            Pattern::Erase => out.push(0),
            Pattern::Overwrite { bytes, times, invert } => {
                out.extend([1, *times, u8::from(*invert)]);
                out.extend((bytes.len() as u16).to_be_bytes());
                out.extend(bytes);
            }
        }
        out
    }
}

fn operation(input: &[u8]) -> IResult<&[u8], Option<Operation>> {
    let (rest, (version, failed, kind)) = (be_u8, be_u8, be_u8).parse(input)?;
    let (rest, pattern) = match kind {
        0 => (rest, Pattern::Erase),
        _ => {
            let (rest, (times, invert, length)) = (be_u8, be_u8, be_u16).parse(rest)?;
            let (rest, bytes) = take(length)(rest)?;
            (rest, Pattern::Overwrite { bytes: bytes.to_vec(), times, invert: invert != 0 })
        }
    };
    let possible = match &pattern {
        Pattern::Erase => true,
        Pattern::Overwrite { bytes, times, .. } => !bytes.is_empty() && *times > 0,
    };
    let known = version == VERSION && failed < 2 && kind < 2 && possible && rest.is_empty();
    Ok((rest, known.then_some(Operation { failed: failed == 1, pattern })))
}

/// What a store kept of an operation, if anything; `None` for bytes that are no operation.
pub(crate) fn kept(bytes: Option<&[u8]>) -> Option<Option<Operation>> {
    match bytes.unwrap_or_default() {
        [] => Some(None),
        bytes => operation(bytes).ok()?.1.map(Some),
    }
}

fn unkept(error: &std::io::Error) -> Refusal {
    tracing::error!(%error, "what becomes of a sanitize operation could not be kept");
    UNKEPT
}

/// How far an operation is.
#[derive(Debug, Clone, Copy)]
enum Stage {
    Asked,
    /// It goes on whatever happens.
    Begun,
    Ended(Done),
}

/// An operation that goes on by itself.
#[derive(Debug)]
pub(crate) struct Started(watch::Receiver<Stage>);

impl Started {
    /// Waits for its end.
    ///
    /// # Errors
    /// What it failed with.
    pub(crate) async fn end(mut self) -> Done {
        match *self
            .0
            .wait_for(|stage| matches!(stage, Stage::Ended(_)))
            .await
            .map_err(|_| UNKEPT)?
        {
            Stage::Ended(end) => end,
            _ => Err(UNKEPT),
        }
    }
}

/// Begins an operation. It outlives its command from the first moment, and the process when this has
/// ended.
///
/// # Errors
/// One is in progress, or it could not be kept.
pub(crate) async fn start(
    unit: &Arc<Unit>,
    store: Option<Arc<dyn UnitStore>>,
    pattern: Pattern,
) -> Result<Started, Refusal> {
    let before = unit.sanitize.begin()?;
    let (tell, mut told) = watch::channel(Stage::Asked);
    let unit = Arc::clone(unit);
    tokio::spawn(async move {
        let operation = Operation { failed: false, pattern };
        if let Err(refusal) = keep(&unit, store.as_deref(), &operation.encode()).await {
            // If it got there all the same it must not be carried out at the next start.
            let back = match before {
                FAILED => Operation { failed: true, pattern: operation.pattern }.encode(),
                _ => Vec::new(),
            };
            let _ = keep(&unit, store.as_deref(), &back).await;
            unit.sanitize.phase.store(before, Ordering::Release);
            tell.send_replace(Stage::Ended(Err(refusal)));
            return;
        }
        tell.send_replace(Stage::Begun);
        carry_out(&unit, store.as_deref(), operation.pattern, &tell).await;
    });
    match *told.wait_for(|stage| !matches!(stage, Stage::Asked)).await.map_err(|_| UNKEPT)? {
        Stage::Ended(Err(refusal)) if refusal == UNKEPT => return Err(refusal),
        _ => {}
    }
    Ok(Started(told))
}

/// Goes on with an operation that an earlier process began: from the begin, since it is not known
/// how far that came.
pub(crate) fn go_on(unit: &Arc<Unit>, store: Option<Arc<dyn UnitStore>>, pattern: Pattern) {
    let unit = Arc::clone(unit);
    tokio::spawn(async move {
        let (tell, _) = watch::channel(Stage::Begun);
        carry_out(&unit, store.as_deref(), pattern, &tell).await;
    });
}

async fn keep(unit: &Unit, store: Option<&dyn UnitStore>, state: &[u8]) -> Done {
    match store {
        None => Ok(()),
        Some(store) => {
            let kept = store.save(unit.options.identity, Kept::Sanitize, state).await;
            kept.map_err(|error| unkept(&error))
        }
    }
}

async fn carry_out(
    unit: &Unit,
    store: Option<&dyn UnitStore>,
    pattern: Pattern,
    tell: &watch::Sender<Stage>,
) {
    let mut halted = unit.sanitize.halted.subscribe();
    let work = async {
        // Commands that were under way are over before anything is wiped.
        let guard = unit.ranges.alone(0, u64::MAX).await;
        let end = run(unit, &pattern).await;
        drop(guard);
        end
    };
    let mut end = tokio::select! {
        _ = halted.wait_for(|halted| *halted) => return,
        end = work => end,
    };
    // What is still kept after a success would be carried out again at the next start, over what was
    // written by then.
    if end.is_ok() {
        end = keep(unit, store, &[]).await;
    }
    if let Err(refusal) = end {
        tracing::error!(?refusal, lun = unit.number, "a sanitize operation failed");
        let failed = Operation { failed: true, pattern };
        // If that cannot be kept it is carried out again, which harms nothing: nothing was written.
        let _ = keep(unit, store, &failed.encode()).await;
    }
    let phase = if end.is_ok() { IDLE } else { FAILED };
    unit.sanitize.phase.store(phase, Ordering::Release);
    tell.send_replace(Stage::Ended(end));
}

async fn run(unit: &Unit, pattern: &Pattern) -> Done {
    let disk = unit.disk();
    let passes = match pattern {
        Pattern::Erase => 1,
        Pattern::Overwrite { times, .. } => u32::from(*times),
    };
    let began = Instant::now();
    let size = disk.geometry().size;
    for pass in 0..passes {
        let fill = match pattern {
            Pattern::Erase => None,
            Pattern::Overwrite { bytes, invert, times } => {
                // The last pass leaves the pattern as it was given (SBC-3 5.30.2.2).
                let turned = *invert && (u32::from(*times) - 1 - pass) % 2 == 1;
                Some(filled(bytes, unit.block() as usize, turned))
            }
        };
        let mut at = 0;
        let mut owed = Duration::ZERO;
        while at < size {
            let len = STEP.min(size - at);
            let from = Instant::now();
            step(&*disk, at..at + len, fill.as_deref(), unit.options.provisioning).await?;
            owed += from.elapsed();
            at += len;
            let done = u128::from(pass) * u128::from(size) + u128::from(at);
            let part = done * 65535 / (u128::from(passes) * u128::from(size)).max(1);
            unit.sanitize.progress.store(part as u16, Ordering::Relaxed);
            if fill.is_some() {
                pace(began, done, unit.options.sanitize_rate).await;
            } else if owed >= REST {
                tokio::time::sleep(std::mem::take(&mut owed)).await;
            }
        }
        disk.flush().await.map_err(Refusal::writing)?;
    }
    Ok(())
}

async fn step(
    disk: &dyn Disk,
    Range { start, end }: Range<u64>,
    fill: Option<&[u8]>,
    provisioning: Provisioning,
) -> Done {
    let len = end - start;
    let done = match (fill, provisioning) {
        (None, Provisioning::Thin) => disk.write_zeroes(start, len).await,
        (None, _) => disk.write_zeroes_kept(start, len).await,
        (Some(bytes), _) => disk.write_at(start, &bytes[..len as usize]).await,
    };
    done.map_err(Refusal::writing)
}

/// Waits until `done` bytes are no more than the rate allows.
async fn pace(began: Instant, done: u128, rate: u64) {
    let due = done * 1_000_000 / u128::from(rate.max(1));
    let due = Duration::from_micros(u64::try_from(due).unwrap_or(u64::MAX / 4));
    tokio::time::sleep_until(began + due).await;
}

/// One step's bytes: the pattern begins anew with each block.
fn filled(pattern: &[u8], block: usize, turned: bool) -> Vec<u8> {
    let turn = if turned { 0xff } else { 0 };
    let one: Vec<u8> = pattern.iter().cycle().take(block).map(|byte| byte ^ turn).collect();
    one.iter().copied().cycle().take(STEP as usize).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_kept_comes_back(
            failed in any::<bool>(),
            invert in any::<bool>(),
            times in 1u8..32,
            bytes in proptest::collection::vec(any::<u8>(), 1..600),
        ) {
            for pattern in [Pattern::Erase, Pattern::Overwrite { bytes: bytes.clone(), times, invert }] {
                let encoded = Operation { failed, pattern: pattern.clone() }.encode();
                prop_assert_eq!(kept(Some(&encoded)), Some(Some(Operation { failed, pattern })));
                for end in 1..encoded.len() {
                    prop_assert_eq!(kept(Some(&encoded[..end])), None);
                }
            }
            prop_assert_eq!(kept(None), Some(None));
        }

        #[test]
        fn any_bytes_are_an_operation_or_none(
            bytes in proptest::collection::vec(any::<u8>(), 0..40),
        ) {
            let _ = kept(Some(&bytes));
        }
    }
}

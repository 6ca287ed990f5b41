//! SANITIZE (SBC-3 4.11, 5.30): every block is written over or erased, whatever becomes of the
//! command, its nexus or resets meanwhile.
//!
//! ```text
//!            ┌── done ──────────────┐
//!            ▼                      │
//!  idle ── SANITIZE ──► in progress ┤
//!                            ▲      └── failed ──► failed ── EXIT FAILURE MODE ──► idle
//!                            └──────── SANITIZE ──────┘
//! ```

use std::{
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU16, Ordering},
    },
    time::Duration,
};

use block_io::Disk;
use tokio::{sync::watch, time::Instant};

use super::Unit;
use crate::{
    Sense, SenseKey, asc,
    refusal::{Done, Refusal},
};

const IDLE: u8 = 0;
const RUNNING: u8 = 1;
const FAILED: u8 = 2;

/// Bytes of one step.
const STEP: u64 = 1 << 20;

/// Where a sanitize operation stands.
#[derive(Debug, Default)]
pub(crate) struct Sanitize {
    phase: AtomicU8,
    /// Of 65536 parts how many are done.
    progress: AtomicU16,
}

/// What blocks are left with.
#[derive(Debug, Clone)]
pub(crate) enum Pattern {
    /// Nothing: they are deallocated.
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
    /// One is in progress.
    pub(crate) fn exit_failure(&self) -> Done {
        let _ = self.phase.compare_exchange(FAILED, IDLE, Ordering::AcqRel, Ordering::Acquire);
        self.check()
    }

    fn begin(&self) -> Done {
        let began = |from| {
            self.phase.compare_exchange(from, RUNNING, Ordering::AcqRel, Ordering::Acquire).is_ok()
        };
        if began(IDLE) || began(FAILED) {
            self.progress.store(0, Ordering::Relaxed);
            return Ok(());
        }
        Err(Refusal::Check(self.in_progress()))
    }
}

/// Begins an operation that goes on by itself; the receiver holds its end when there is one.
///
/// # Errors
/// One is in progress.
pub(crate) fn start(
    unit: &Arc<Unit>,
    pattern: Pattern,
) -> Result<watch::Receiver<Option<Done>>, Refusal> {
    unit.sanitize.begin()?;
    let (tell, told) = watch::channel(None);
    let unit = Arc::clone(unit);
    tokio::spawn(async move {
        // Commands that were under way are over before anything is wiped.
        let guard = unit.ranges.alone(0, u64::MAX).await;
        let end = run(&unit, &pattern).await;
        drop(guard);
        let phase = match end {
            Ok(()) => IDLE,
            Err(refusal) => {
                tracing::error!(?refusal, lun = unit.number, "a sanitize operation failed");
                FAILED
            }
        };
        unit.sanitize.phase.store(phase, Ordering::Release);
        tell.send_replace(Some(end));
    });
    Ok(told)
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
        while at < size {
            let len = STEP.min(size - at);
            step(&*disk, at, len, fill.as_deref()).await?;
            at += len;
            let done = u128::from(pass) * u128::from(size) + u128::from(at);
            let part = done * 65535 / (u128::from(passes) * u128::from(size)).max(1);
            unit.sanitize.progress.store(part as u16, Ordering::Relaxed);
            if fill.is_some() {
                pace(began, done, unit.options.sanitize_rate).await;
            }
        }
        disk.flush().await.map_err(Refusal::writing)?;
    }
    Ok(())
}

async fn step(disk: &dyn Disk, at: u64, len: u64, fill: Option<&[u8]>) -> Done {
    match fill {
        None => disk.write_zeroes(at, len).await.map_err(Refusal::writing),
        Some(bytes) => disk.write_at(at, &bytes[..len as usize]).await.map_err(Refusal::writing),
    }
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

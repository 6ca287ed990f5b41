//! Copying one disk to another: holes stay holes, several requests in flight.
//!
//! ```text
//!  what the source has ──► pieces ──► workers, a buffer each piece: read ─► zeros? ─► write
//!                                        │ every FLUSH_EVERY bytes
//!                                        └──► a flush of the target beside them
//! ```

use std::{
    collections::VecDeque,
    ops::Range,
    sync::{
        Arc, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use block_io::Disk;
use tokio::{
    sync::{Mutex, mpsc},
    task::JoinSet,
};

use crate::{Error, Result};

/// Request size and concurrency of a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CopyOptions {
    /// Bytes per request.
    pub chunk: usize,
    /// Requests in flight; memory use is this times `chunk`.
    pub in_flight: usize,
    /// The target reads as zeros everywhere: zeros need not be written.
    pub target_is_zero: bool,
}

impl Default for CopyOptions {
    fn default() -> Self {
        Self { chunk: 1 << 20, in_flight: 8, target_is_zero: false }
    }
}

/// How far a copy is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// Bytes of the disk dealt with.
    pub done: u64,
    /// Bytes of the disk.
    pub total: u64,
    /// Bytes read from the source.
    pub read: u64,
    /// Bytes written to the target.
    pub written: u64,
}

/// Zeros in runs shorter than this are copied with the data around them.
const GRAIN: usize = 64 << 10;
/// Bytes of the disk whose allocation is asked for at once.
const WINDOW: u64 = 1 << 30;
/// Bytes after which a worker tells of them: whoever is told needs a processor, too.
const TELL_EVERY: u64 = 8 << 20;
/// Bytes after which a flush is begun, so that the storage below works all the time and the one at
/// the end finds little to do.
const FLUSH_EVERY: u64 = 128 << 20;

/// Copies all of `source` to `target` and flushes it. `progress` hears of steps of some megabytes.
///
/// What the source knows to be zeros is not read; with [`CopyOptions::target_is_zero`] zeros are
/// not written either, else they are written with [`Disk::write_zeroes`]. If the target is longer
/// its rest is left alone, but for zeros that fill up a larger last sector.
///
/// # Errors
/// [`Error::InvalidOptions`] if the target is too short; what either disk says.
pub async fn copy(
    source: Arc<dyn Disk>,
    target: Arc<dyn Disk>,
    options: CopyOptions,
    mut progress: impl FnMut(Progress),
) -> Result<Progress> {
    let total = source.geometry().size;
    let (sector, room) = (u64::from(target.geometry().logical_sector), target.geometry().size);
    if room < total.next_multiple_of(sector) {
        return Err(Error::InvalidOptions(format!(
            "the target has {room} bytes in {sector}-byte sectors, the source {total}"
        )));
    }
    let chunk = (options.chunk.max(1) as u64).next_multiple_of(GRAIN as u64);
    let workers = options.in_flight.max(1);
    let plan = Arc::new(Plan {
        source: source.clone(),
        total,
        chunk,
        ready: std::sync::Mutex::default(),
        cut_to: Mutex::new(0),
        failed: AtomicBool::new(false),
    });
    let (tell, mut steps) = mpsc::channel(2 * workers);
    let buffers = Arc::new(Buffers::default());
    // Dropped with this future: nothing goes on without it.
    let mut tasks = JoinSet::new();
    for _ in 0..workers {
        let worker = Worker {
            source: source.clone(),
            target: target.clone(),
            target_is_zero: options.target_is_zero,
            sector,
            buffers: buffers.clone(),
        };
        tasks.spawn(worker.run(plan.clone(), tell.clone()));
    }
    drop(tell);

    let mut state = Progress { total, ..Progress::default() };
    let mut flushes: JoinSet<block_io::Result<()>> = JoinSet::new();
    let mut flush_at = FLUSH_EVERY;
    while let Some(step) = steps.recv().await {
        state.add(step);
        progress(state);
        while let Some(flushed) = flushes.try_join_next() {
            joined(flushed)??;
        }
        if state.written >= flush_at && flushes.is_empty() {
            flush_at = state.written + FLUSH_EVERY;
            let target = target.clone();
            flushes.spawn(async move { target.flush().await });
        }
    }
    // All workers have ended: each with its last piece, or with an error.
    while let Some(ended) = tasks.join_next().await {
        joined(ended)??;
    }
    while let Some(flushed) = flushes.join_next().await {
        joined(flushed)??;
    }
    target.flush().await?;
    Ok(state)
}

/// What a task came to; a panic in it goes on here.
fn joined<T>(ended: std::result::Result<T, tokio::task::JoinError>) -> Result<T> {
    ended.map_err(|error| match error.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(error) => {
            block_io::Error::io("copying", std::io::Error::other(error.to_string())).into()
        }
    })
}

impl Progress {
    fn add(&mut self, step: Step) {
        self.done += step.done;
        self.read += step.read;
        self.written += step.written;
    }
}

#[derive(Default)]
struct Step {
    done: u64,
    read: u64,
    written: u64,
}

#[derive(Debug)]
enum Piece {
    Data(Range<u64>),
    Zero(Range<u64>),
}

/// The pieces still to be copied. Workers take them without waiting for each other, but for the one
/// that cuts the next window.
#[derive(Debug)]
struct Plan {
    source: Arc<dyn Disk>,
    total: u64,
    chunk: u64,
    ready: std::sync::Mutex<VecDeque<Piece>>,
    /// Up to where the disk was cut.
    cut_to: Mutex<u64>,
    /// A worker failed: there is nothing more to do.
    failed: AtomicBool,
}

impl Plan {
    fn ready(&self) -> std::sync::MutexGuard<'_, VecDeque<Piece>> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next piece, or `None` if there are no more.
    async fn next(&self) -> Result<Option<Piece>> {
        if self.failed.load(Relaxed) {
            return Ok(None);
        }
        if let Some(piece) = self.ready().pop_front() {
            return Ok(Some(piece));
        }
        let mut at = self.cut_to.lock().await;
        loop {
            if let Some(piece) = self.ready().pop_front() {
                return Ok(Some(piece));
            }
            if *at >= self.total {
                return Ok(None);
            }
            let end = at.saturating_add(WINDOW).min(self.total);
            let pieces = cut(&*self.source, *at..end, self.chunk).await?;
            *at = end;
            self.ready().extend(pieces);
        }
    }
}

/// Cuts a window of the disk into pieces: data in chunks on chunk boundaries, and the zeros
/// between. Together they are the whole window.
async fn cut(source: &dyn Disk, window: Range<u64>, chunk: u64) -> Result<Vec<Piece>> {
    let end = window.end;
    let mut pieces = Vec::new();
    let mut at = window.start;
    for data in source.allocated_ranges(window).await? {
        // Whole grains, so that requests stay aligned whatever the source says.
        let grain = GRAIN as u64;
        let start = (data.start / grain * grain).max(at);
        let stop = data.end.next_multiple_of(grain).min(end);
        if start > at {
            pieces.push(Piece::Zero(at..start));
            at = start;
        }
        while at < stop {
            let next = ((at / chunk + 1) * chunk).min(stop);
            pieces.push(Piece::Data(at..next));
            at = next;
        }
    }
    if at < end {
        pieces.push(Piece::Zero(at..end));
    }
    Ok(pieces)
}

/// Buffers that are not in use, the last used one on top: where nothing waits, as between files in
/// the page cache, one for each processor does, and stays in its cache.
#[derive(Debug, Default)]
struct Buffers(std::sync::Mutex<Vec<Vec<u8>>>);

impl Buffers {
    fn take(&self) -> Vec<u8> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
    }

    fn put(&self, buffer: Vec<u8>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(buffer);
    }
}

/// Copies pieces one after the other.
struct Worker {
    source: Arc<dyn Disk>,
    target: Arc<dyn Disk>,
    target_is_zero: bool,
    /// Bytes of a sector of the target.
    sector: u64,
    buffers: Arc<Buffers>,
}

impl Worker {
    /// Works until there are no more pieces or one fails.
    async fn run(self, plan: Arc<Plan>, steps: mpsc::Sender<Step>) -> Result<()> {
        let ended = self.work(&plan, steps).await;
        if ended.is_err() {
            plan.failed.store(true, Relaxed);
        }
        ended
    }

    async fn work(&self, plan: &Plan, steps: mpsc::Sender<Step>) -> Result<()> {
        let mut done = Step::default();
        while let Some(piece) = plan.next().await? {
            let mut buf = self.buffers.take();
            let copied = self.copy(piece, &mut buf).await;
            self.buffers.put(buf);
            let step = copied?;
            done.done += step.done;
            done.read += step.read;
            done.written += step.written;
            if done.done >= TELL_EVERY {
                steps.send(std::mem::take(&mut done)).await.unwrap_or_default();
            }
            // Between files in the page cache nothing waits: a worker would keep its thread, and the
            // next one that is to run on it from an idle thread.
            tokio::task::yield_now().await;
        }
        steps.send(done).await.unwrap_or_default();
        Ok(())
    }

    async fn copy(&self, piece: Piece, buf: &mut Vec<u8>) -> Result<Step> {
        // Only the last piece of the disk may end within a sector of the target.
        let range = match piece {
            Piece::Zero(range) => {
                let done = range.end - range.start;
                if !self.target_is_zero {
                    let len = done.next_multiple_of(self.sector);
                    self.target.write_zeroes(range.start, len).await?;
                }
                return Ok(Step { done, read: 0, written: 0 });
            }
            Piece::Data(range) => range,
        };
        let len = range.end - range.start;
        buf.resize(len.next_multiple_of(self.sector) as usize, 0);
        let (data, rest) = buf.split_at_mut(len as usize);
        rest.fill(0);
        self.source.read_at(range.start, data).await?;
        let mut written = 0;
        for (part, is_zero) in runs(buf) {
            let (at, n) = (range.start + part.start as u64, part.len() as u64);
            if !is_zero {
                self.target.write_at(at, &buf[part]).await?;
                written += n;
            } else if !self.target_is_zero {
                self.target.write_zeroes(at, n).await?;
            }
        }
        Ok(Step { done: len, read: len, written })
    }
}

/// The runs of zero and of other grains.
fn runs(buf: &[u8]) -> Vec<(Range<usize>, bool)> {
    let mut runs: Vec<(Range<usize>, bool)> = Vec::new();
    let mut at = 0;
    for grain in buf.chunks(GRAIN) {
        let zero = is_zero(grain);
        let end = at + grain.len();
        match runs.last_mut() {
            Some((last, kind)) if *kind == zero => last.end = end,
            _ => runs.push((at..end, zero)),
        }
        at = end;
    }
    runs
}

fn is_zero(bytes: &[u8]) -> bool {
    // Whole blocks by or-ing, which the compiler vectorises, with an early end for data.
    bytes.chunks(1024).all(|block| block.iter().fold(0, |any, byte| any | byte) == 0)
}

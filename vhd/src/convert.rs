//! Copying one disk to another: holes stay holes, several requests in flight.

use std::ops::Range;

use block_io::Disk;
use futures_util::{StreamExt, stream::FuturesUnordered};

use crate::{Error, Result};

/// How to copy.
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

/// Copies all of `source` to `target` and flushes it. `progress` hears of every step.
///
/// What the source knows to be zeros is not read; with [`CopyOptions::target_is_zero`] zeros are
/// not written either, else they are written with [`Disk::write_zeroes`]. If the target is longer
/// its rest is left alone, but for zeros that fill up a larger last sector.
///
/// # Errors
/// [`Error::InvalidOptions`] if the target is too short; what either disk says.
pub async fn copy(
    source: &dyn Disk,
    target: &dyn Disk,
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
    let mut state = Progress { total, ..Progress::default() };
    let mut flight = FuturesUnordered::new();
    let mut at = 0;
    while at < total {
        let window = at..(at + WINDOW).min(total);
        for piece in pieces(source, window.clone(), chunk).await? {
            if flight.len() >= options.in_flight.max(1)
                && let Some(step) = flight.next().await
            {
                state.add(step?);
                progress(state);
            }
            flight.push(copy_piece(source, target, piece, options.target_is_zero));
        }
        at = window.end;
    }
    while let Some(step) = flight.next().await {
        state.add(step?);
        progress(state);
    }
    target.flush().await?;
    Ok(state)
}

impl Progress {
    fn add(&mut self, step: Step) {
        self.done += step.done;
        self.read += step.read;
        self.written += step.written;
    }
}

struct Step {
    done: u64,
    read: u64,
    written: u64,
}

enum Piece {
    Data(Range<u64>),
    Zero(Range<u64>),
}

/// Cuts a window of the disk into pieces: data in chunks on chunk boundaries, and the zeros
/// between. Together they are the whole window.
async fn pieces(source: &dyn Disk, window: Range<u64>, chunk: u64) -> Result<Vec<Piece>> {
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

async fn copy_piece(
    source: &dyn Disk,
    target: &dyn Disk,
    piece: Piece,
    target_is_zero: bool,
) -> Result<Step> {
    // Only the last piece of the disk may end within a sector of the target.
    let sector = u64::from(target.geometry().logical_sector);
    let range = match piece {
        Piece::Zero(range) => {
            let done = range.end - range.start;
            if !target_is_zero {
                target.write_zeroes(range.start, done.next_multiple_of(sector)).await?;
            }
            return Ok(Step { done, read: 0, written: 0 });
        }
        Piece::Data(range) => range,
    };
    let len = range.end - range.start;
    let mut buf = vec![0; len.next_multiple_of(sector) as usize];
    source.read_at(range.start, &mut buf[..len as usize]).await?;
    let mut written = 0;
    for (part, is_zero) in runs(&buf) {
        let (at, n) = (range.start + part.start as u64, part.len() as u64);
        if !is_zero {
            target.write_at(at, &buf[part]).await?;
            written += n;
        } else if !target_is_zero {
            target.write_zeroes(at, n).await?;
        }
    }
    Ok(Step { done: len, read: len, written })
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

//! A sparse byte array in chunks.

use std::{collections::BTreeMap, ops::Range};

const CHUNK: u64 = 4096;

/// A sparse byte array with a length; what was never written reads as zeros.
#[derive(Debug, Clone, Default)]
pub(super) struct Sparse {
    chunks: BTreeMap<u64, Box<[u8; CHUNK as usize]>>,
    len: u64,
}

impl Sparse {
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    pub(super) fn read(&self, offset: u64, buf: &mut [u8]) -> usize {
        let n = usize::try_from(self.len.saturating_sub(offset)).unwrap_or(usize::MAX);
        let n = n.min(buf.len());
        let mut done = 0;
        while done < n {
            let (chunk, within, part) = Self::piece(offset + done as u64, n - done);
            match self.chunks.get(&chunk) {
                Some(data) => buf[done..done + part].copy_from_slice(&data[within..within + part]),
                None => buf[done..done + part].fill(0),
            }
            done += part;
        }
        n
    }

    pub(super) fn write(&mut self, offset: u64, buf: &[u8]) {
        let mut done = 0;
        while done < buf.len() {
            let (chunk, within, part) = Self::piece(offset + done as u64, buf.len() - done);
            let data = self.chunks.entry(chunk).or_insert_with(|| Box::new([0; CHUNK as usize]));
            data[within..within + part].copy_from_slice(&buf[done..done + part]);
            done += part;
        }
        self.len = self.len.max(offset + buf.len() as u64);
    }

    pub(super) fn set_len(&mut self, len: u64) {
        if len < self.len {
            self.zero(len..self.len);
        }
        self.len = len;
    }

    pub(super) fn zero(&mut self, range: Range<u64>) {
        let first = range.start / CHUNK;
        let last = range.end.div_ceil(CHUNK);
        let touched: Vec<u64> = self.chunks.range(first..last).map(|(k, _)| *k).collect();
        for key in touched {
            let start = range.start.max(key * CHUNK);
            let end = range.end.min((key + 1) * CHUNK);
            if end - start == CHUNK {
                self.chunks.remove(&key);
            } else if let Some(data) = self.chunks.get_mut(&key) {
                data[(start - key * CHUNK) as usize..(end - key * CHUNK) as usize].fill(0);
            }
        }
    }

    pub(super) fn ranges(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let end = range.end.min(self.len);
        let mut found: Vec<Range<u64>> = Vec::new();
        for key in self.chunks.range(range.start / CHUNK..end.div_ceil(CHUNK)).map(|(k, _)| *k) {
            let piece = (key * CHUNK).max(range.start)..((key + 1) * CHUNK).min(end);
            match found.last_mut() {
                Some(last) if last.end == piece.start => last.end = piece.end,
                _ if piece.start < piece.end => found.push(piece),
                _ => {}
            }
        }
        found
    }

    /// The chunk, the offset within it and the length of the first piece of `len` at `offset`.
    fn piece(offset: u64, len: usize) -> (u64, usize, usize) {
        let within = (offset % CHUNK) as usize;
        (offset / CHUNK, within, len.min(CHUNK as usize - within))
    }
}

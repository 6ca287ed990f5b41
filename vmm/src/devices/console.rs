//! The host side of a guest's console: what the guest printed, kept in a bounded ring and
//! handed to those attached; what they type, handed to the guest's device.
//!
//! ```text
//!  guest ──► push() ─┬─► ring (last 256 KiB)
//!                    └─► attached readers (bounded; a slow one loses its place, not the guest's)
//!  attached ──► type_in() ──► input queue ──► device (wake)
//! ```

use std::{
    collections::VecDeque,
    io::Write,
    sync::{Arc, Condvar, Mutex},
    time::{Duration, Instant},
};

use vmm_sys_util::eventfd::EventFd;

use crate::platform::bus::lock;

const RING: usize = 256 * 1024;
const INPUT: usize = 64 * 1024;

#[derive(Debug, Default)]
struct Inner {
    ring: VecDeque<u8>,
    /// Number of bytes ever printed; the ring holds the last of them.
    printed: u64,
    input: VecDeque<u8>,
    closed: bool,
    /// Writes here tell the guest's device of new input.
    wake: Option<EventFd>,
}

/// A console; clones are the same console.
#[derive(Debug, Clone, Default)]
pub struct Console {
    inner: Arc<(Mutex<Inner>, Condvar)>,
}

impl Console {
    /// Appends what the guest printed.
    pub fn push(&self, bytes: &[u8]) {
        let mut inner = lock(&self.inner.0);
        inner.ring.extend(bytes);
        inner.printed += bytes.len() as u64;
        let excess = inner.ring.len().saturating_sub(RING);
        inner.ring.drain(..excess);
        self.inner.1.notify_all();
    }

    /// Where printing is now; a place to read from.
    pub fn position(&self) -> u64 {
        lock(&self.inner.0).printed
    }

    /// What was printed from `position` on (or from the oldest byte still kept) and the place
    /// after it; waits up to `limit` for something. `None` once the console is closed and read.
    pub fn read_from(&self, position: u64, limit: Duration) -> Option<(Vec<u8>, u64)> {
        let deadline = Instant::now() + limit;
        let mut inner = lock(&self.inner.0);
        loop {
            if inner.printed > position {
                let start = inner.printed - inner.ring.len() as u64;
                let skip = usize::try_from(position.saturating_sub(start)).unwrap_or(usize::MAX);
                let bytes = inner.ring.iter().skip(skip).copied().collect();
                return Some((bytes, inner.printed));
            }
            if inner.closed {
                return None;
            }
            let Some(left) = deadline.checked_duration_since(Instant::now()) else {
                return Some((Vec::new(), position));
            };
            inner = self
                .inner
                .1
                .wait_timeout(inner, left)
                .unwrap_or_else(|poison| poison.into_inner())
                .0;
        }
    }

    /// The last of what is kept, `most` bytes of it.
    pub fn last(&self, most: usize) -> Vec<u8> {
        let inner = lock(&self.inner.0);
        let skip = inner.ring.len().saturating_sub(most);
        inner.ring.iter().skip(skip).copied().collect()
    }

    /// Everything still kept, for a test's report.
    pub fn tail(&self) -> Vec<u8> {
        lock(&self.inner.0).ring.iter().copied().collect()
    }

    /// Input for the guest; what does not fit into 64 KiB is dropped.
    pub fn type_in(&self, bytes: &[u8]) {
        let mut inner = lock(&self.inner.0);
        let room = INPUT - inner.input.len().min(INPUT);
        inner.input.extend(&bytes[..bytes.len().min(room)]);
        wake(&inner);
    }

    /// Takes up to `most` bytes of input.
    pub fn take_input(&self, most: usize) -> Vec<u8> {
        let mut inner = lock(&self.inner.0);
        let most = most.min(inner.input.len());
        inner.input.drain(..most).collect()
    }

    /// Puts back input that the device had no room for.
    pub fn put_back(&self, bytes: &[u8]) {
        let mut inner = lock(&self.inner.0);
        for byte in bytes.iter().rev() {
            inner.input.push_front(*byte);
        }
    }

    /// Whether input waits for the guest.
    pub fn has_input(&self) -> bool {
        !lock(&self.inner.0).input.is_empty()
    }

    /// Sets what is told of input.
    pub fn set_wake(&self, eventfd: EventFd) {
        let mut inner = lock(&self.inner.0);
        inner.wake = Some(eventfd);
        if !inner.input.is_empty() {
            wake(&inner);
        }
    }

    /// No more will be printed.
    pub fn close(&self) {
        lock(&self.inner.0).closed = true;
        self.inner.1.notify_all();
    }
}

fn wake(inner: &Inner) {
    if let Some(eventfd) = &inner.wake {
        // Only a counter at its maximum refuses, and that wakes as well.
        let _ = eventfd.write(1);
    }
}

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.push(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_gets_each_byte_once_and_the_ring_is_bounded() {
        let console = Console::default();
        console.push(b"one");
        let (bytes, next) = console.read_from(0, Duration::ZERO).unwrap();
        assert_eq!((bytes.as_slice(), next), (&b"one"[..], 3));
        console.push(&vec![b'x'; RING + 10]);
        let (bytes, next) = console.read_from(next, Duration::ZERO).unwrap();
        assert_eq!((bytes.len(), next), (RING, (RING + 13) as u64));
        assert_eq!(console.read_from(next, Duration::ZERO).unwrap().0, b"");
        console.close();
        assert!(console.read_from(next, Duration::ZERO).is_none());
    }

    #[test]
    fn input_that_is_put_back_keeps_its_order() {
        let console = Console::default();
        console.type_in(b"abcdef");
        let taken = console.take_input(4);
        console.put_back(&taken[2..]);
        assert_eq!(console.take_input(100), b"cdef");
        console.type_in(&vec![0; INPUT * 2]);
        assert_eq!(console.take_input(usize::MAX).len(), INPUT);
    }
}

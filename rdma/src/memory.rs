//! Registered memory: what the other side of a connection may read or write, and nothing else.
//!
//! ```text
//!  register(buffer, window) ──► Part: token, offset, length ──► told to the peer in a message
//!      │
//!      ▼  the peer's operation names token, offset and length
//!  check: known? valid? right kind? inside the window? ──► bytes, or a Refusal
//!      │
//!  invalidate (by the peer's Send)  the right ends, the buffer stays
//!  deregister (by the owner)        the buffer comes back
//! ```
//!
//! A buffer belongs to the table while it is registered, so no part of it is read or written by its
//! owner meanwhile. Only a window of it is granted: the bytes around the window are out of reach.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;

/// A part of registered memory, as buffer descriptors name it (MS-SMBD 2.2.3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Part {
    /// Where its first byte is, in bytes, as its owner counts.
    pub offset: u64,
    /// The steering tag that names the memory to its owner.
    pub token: u32,
    /// How many bytes it has.
    pub length: u32,
}

impl Part {
    /// The first `len` bytes of several parts, one after the other, without those of no bytes; `None`
    /// if they have fewer together.
    pub fn first(parts: &[Self], len: usize) -> Option<Vec<Self>> {
        let mut left = len;
        let mut all = Vec::new();
        for part in parts {
            let here = left.min(part.length as usize);
            if here > 0 {
                // It is no more than a length of 32 bits was.
                all.push(Self { length: u32::try_from(here).ok()?, ..*part });
            }
            left -= here;
        }
        (left == 0).then_some(all)
    }
}

/// Memory that is registered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Memory {
    /// The peer may read it.
    Readable(Bytes),
    /// The peer may write to a window of it.
    Writable(Vec<u8>, Range<usize>),
}

impl Memory {
    /// All of a buffer, for the peer to write to.
    pub fn writable(buffer: Vec<u8>) -> Self {
        let all = 0..buffer.len();
        Self::Writable(buffer, all)
    }

    /// The buffer itself, whatever was granted of it.
    pub fn into_vec(self) -> Vec<u8> {
        match self {
            Self::Readable(bytes) => bytes.into(),
            Self::Writable(buffer, _) => buffer,
        }
    }

    fn window(&self) -> Range<usize> {
        match self {
            Self::Readable(bytes) => 0..bytes.len(),
            Self::Writable(buffer, window) => {
                let end = window.end.min(buffer.len());
                window.start.min(end)..end
            }
        }
    }
}

/// Why an operation of the peer touches nothing (RFC 5040 8.2, RFC 5041 8.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No memory has this token, or its right has ended.
    #[error("no memory has this token")]
    Token,
    /// It names bytes outside what was granted.
    #[error("outside the memory that was granted")]
    Bounds,
    /// The memory may be read and not written, or the other way round.
    #[error("not what this memory was granted for")]
    Rights,
    /// Its offset and length leave the address space.
    #[error("the offset wraps")]
    Wraps,
}

#[derive(Debug)]
struct Region {
    memory: Memory,
    /// What the peer calls the first byte of the window.
    base: u64,
    valid: bool,
}

/// All that is registered at one end of a connection.
#[derive(Debug, Default)]
pub struct Regions {
    all: HashMap<u32, Region>,
    tags: RandomState,
    counter: u64,
}

/// Regions that an end may have at most. Its own program makes them, not the peer.
pub const MOST_REGIONS: usize = 1 << 16;

impl Regions {
    /// A token that names nothing yet and cannot be guessed.
    pub fn fresh(&mut self) -> u32 {
        loop {
            self.counter += 1;
            let [a, b, c, d, ..] = self.tags.hash_one(self.counter).to_le_bytes();
            let token = u32::from_le_bytes([a, b, c, d]);
            // Some cards take 0 for all of memory.
            if token != 0 && !self.all.contains_key(&token) {
                return token;
            }
        }
    }

    /// Registers memory; gives it back if there is too much, or its window is longer than a
    /// descriptor can say.
    ///
    /// # Errors
    /// The memory itself.
    pub fn register(&mut self, memory: Memory) -> Result<Part, Memory> {
        let length = u32::try_from(memory.window().len());
        let (Ok(length), true) = (length, self.all.len() < MOST_REGIONS) else {
            return Err(memory);
        };
        let token = self.fresh();
        // Offsets do not begin at nought: who takes them for lengths is found out.
        let offset = u64::from(token >> 8) << 12;
        self.all.insert(token, Region { memory, base: offset, valid: true });
        Ok(Part { offset, token, length })
    }

    /// Ends the right to memory and gives it back.
    pub fn deregister(&mut self, token: u32) -> Option<Memory> {
        self.all.remove(&token).map(|region| region.memory)
    }

    /// The peer gives its right to memory up (RFC 5040 5.2); whether it had one.
    pub fn invalidate(&mut self, token: u32) -> bool {
        match self.all.get_mut(&token) {
            Some(region) => std::mem::replace(&mut region.valid, false),
            None => false,
        }
    }

    /// How many regions there are.
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Whether nothing is registered.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// What the peer may read there.
    ///
    /// # Errors
    /// Why it may not. A length of nothing is never refused (RFC 5040 5.2.1).
    pub fn read(&self, token: u32, offset: u64, len: usize) -> Result<Bytes, Refusal> {
        if len == 0 {
            return Ok(Bytes::new());
        }
        let region = self.all.get(&token).filter(|region| region.valid).ok_or(Refusal::Token)?;
        let Memory::Readable(bytes) = &region.memory else { return Err(Refusal::Rights) };
        let range = inside(region, offset, len)?;
        Ok(bytes.slice(range))
    }

    /// Puts what the peer writes there.
    ///
    /// # Errors
    /// Why it may not; nothing has changed then.
    pub fn write(&mut self, token: u32, offset: u64, data: &[u8]) -> Result<(), Refusal> {
        if data.is_empty() {
            return Ok(());
        }
        let region =
            self.all.get_mut(&token).filter(|region| region.valid).ok_or(Refusal::Token)?;
        if matches!(region.memory, Memory::Readable(_)) {
            return Err(Refusal::Rights);
        }
        let range = inside(region, offset, data.len())?;
        let Memory::Writable(buffer, _) = &mut region.memory else { return Err(Refusal::Rights) };
        buffer[range].copy_from_slice(data);
        Ok(())
    }
}

/// Where these bytes are in the region's buffer.
fn inside(region: &Region, offset: u64, len: usize) -> Result<Range<usize>, Refusal> {
    offset.checked_add(len as u64).ok_or(Refusal::Wraps)?;
    let window = region.memory.window();
    let start = offset.checked_sub(region.base).and_then(|start| usize::try_from(start).ok());
    let start = start.ok_or(Refusal::Bounds)?;
    let end = start.checked_add(len).ok_or(Refusal::Wraps)?;
    if end > window.len() {
        return Err(Refusal::Bounds);
    }
    Ok(window.start + start..window.start + end)
}

/// Buffers that are used again, a bounded number of bytes: what is read into and written from.
///
/// A provider that must register memory with a card does so once for each buffer of the pool, and
/// never for a request.
#[derive(Debug, Clone)]
pub struct Pool {
    free: Arc<Mutex<Vec<Vec<u8>>>>,
    each: usize,
    most: usize,
}

impl Pool {
    /// Keeps up to `most` buffers of `each` bytes.
    pub fn new(each: usize, most: usize) -> Self {
        Self { free: Arc::default(), each, most }
    }

    /// A buffer of `len` bytes. What is in it is whatever was, so it must be filled before it is
    /// shown to anyone.
    pub fn take(&self, len: usize) -> Vec<u8> {
        if len > self.each {
            return vec![0; len];
        }
        let kept = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut buffer = kept.unwrap_or_else(|| vec![0; self.each]);
        buffer.truncate(len);
        buffer.resize(len, 0);
        buffer
    }

    /// Takes a buffer back that is not needed any more.
    pub fn give(&self, mut buffer: Vec<u8>) {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        if buffer.capacity() == self.each && free.len() < self.most {
            buffer.resize(self.each, 0);
            free.push(buffer);
        }
    }

    /// How many buffers are kept.
    pub fn kept(&self) -> usize {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const POISON: u8 = 0xa5;

    proptest! {
        /// Whatever a peer writes, wherever: bytes outside the windows stay as they were, and no read
        /// shows one of them.
        #[test]
        fn nothing_outside_a_window_is_touched(
            windows in prop::collection::vec((0usize..40, 0usize..40), 1..6),
            operations in prop::collection::vec(
                (0usize..7, prop_oneof![-50i64..100, any::<i64>()], 0usize..80, any::<bool>()), 0..60),
        ) {
            let mut regions = Regions::default();
            let mut parts = Vec::new();
            for (start, len) in &windows {
                let buffer = vec![POISON; 100];
                parts.push(regions.register(Memory::Writable(buffer, *start..start + len)).unwrap());
            }
            for (which, distance, len, reads) in &operations {
                let part = parts.get(*which).copied().unwrap_or(Part { token: 7, ..parts[0] });
                let offset = part.offset.wrapping_add_signed(*distance);
                let inside = which < &parts.len() && *distance >= 0
                    && (*distance as u64).saturating_add(*len as u64) <= u64::from(part.length);
                if *reads {
                    // It was granted for writing.
                    prop_assert_eq!(regions.read(part.token, offset, *len).is_ok(), *len == 0);
                } else {
                    let written = regions.write(part.token, offset, &vec![1; *len]);
                    prop_assert_eq!(written.is_ok(), inside || *len == 0);
                }
            }
            for (part, (start, len)) in parts.iter().zip(&windows) {
                let buffer = regions.deregister(part.token).unwrap().into_vec();
                for (at, byte) in buffer.iter().enumerate() {
                    prop_assert!(*byte == POISON || (*start..start + len).contains(&at));
                }
            }
            prop_assert!(regions.is_empty());
        }
    }

    #[test]
    fn a_right_ends_with_its_invalidation_and_the_buffer_stays() {
        let mut regions = Regions::default();
        let part = regions.register(Memory::Readable(Bytes::from_static(b"abcdef"))).unwrap();
        assert_eq!(regions.read(part.token, part.offset + 2, 3).unwrap(), "cde");
        assert_eq!(regions.write(part.token, part.offset, b"x"), Err(Refusal::Rights));
        assert_eq!(regions.read(part.token, u64::MAX, 2), Err(Refusal::Wraps));
        assert!(regions.invalidate(part.token));
        assert!(!regions.invalidate(part.token), "only once");
        assert_eq!(regions.read(part.token, part.offset, 1), Err(Refusal::Token));
        assert_eq!(regions.deregister(part.token).unwrap().into_vec(), b"abcdef");
        assert!(!regions.invalidate(part.token));
    }

    #[test]
    fn tokens_are_neither_nought_nor_two_things_at_once() {
        let mut regions = Regions::default();
        let mut seen = std::collections::HashSet::new();
        for _ in 0..1000 {
            let part = regions.register(Memory::writable(vec![0; 4])).unwrap();
            assert!(part.token != 0 && seen.insert(part.token));
        }
        assert_eq!(regions.len(), 1000);
    }

    #[test]
    fn parts_are_cut_to_a_length() {
        let part = |token, length| Part { offset: 0, token, length };
        let all = [part(1, 10), part(2, 0), part(3, 10)];
        assert_eq!(Part::first(&all, 15).unwrap(), [part(1, 10), part(3, 5)]);
        assert_eq!(Part::first(&all, 10).unwrap(), [part(1, 10)]);
        assert_eq!(Part::first(&all, 0).unwrap(), []);
        assert_eq!(Part::first(&all, 21), None);
    }

    #[test]
    fn a_pool_gives_what_it_was_given_and_keeps_no_more_than_it_may() {
        let pool = Pool::new(64, 2);
        let buffers: Vec<_> = (0..4).map(|_| pool.take(40)).collect();
        assert!(buffers.iter().all(|buffer| buffer.len() == 40));
        buffers.into_iter().for_each(|buffer| pool.give(buffer));
        assert_eq!(pool.kept(), 2);
        pool.give(pool.take(1000));
        assert_eq!((pool.take(64).len(), pool.kept()), (64, 1));
    }
}

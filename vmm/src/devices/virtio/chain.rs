//! One request: the guest's descriptor chain, copied out so that later changes to the ring do
//! not matter, and checked piecewise against guest memory at each access.

use std::ops::Deref;

use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestAddress, GuestMemory};

use crate::platform::memory::GuestRam;

/// Most pieces taken from one chain; more are ignored (the queues have fewer entries).
const MOST_PIECES: usize = 1024;

/// Guest memory of a request that could not be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("request reaches outside of guest memory or of itself")]
pub struct BadChain;

type Piece = (GuestAddress, u32);

/// A request: the descriptors of one chain.
#[derive(Debug)]
pub struct Chain {
    /// What is given back.
    pub head: u16,
    readable: Vec<Piece>,
    writable: Vec<Piece>,
}

impl Chain {
    /// Copies the pieces of a chain.
    pub fn collect<M>(chain: DescriptorChain<M>) -> Self
    where
        M: Deref,
        M::Target: GuestMemory,
    {
        let mut this =
            Self { head: chain.head_index(), readable: Vec::new(), writable: Vec::new() };
        for piece in chain.take(MOST_PIECES) {
            let list = if piece.is_write_only() { &mut this.writable } else { &mut this.readable };
            list.push((piece.addr(), piece.len()));
        }
        this
    }

    /// Bytes the device may read.
    pub fn readable_len(&self) -> u64 {
        self.readable.iter().map(|piece| u64::from(piece.1)).sum()
    }

    /// Bytes the device may write.
    pub fn writable_len(&self) -> u64 {
        self.writable.iter().map(|piece| u64::from(piece.1)).sum()
    }

    /// Bytes of all pieces.
    pub fn total_len(&self) -> u64 {
        self.readable_len() + self.writable_len()
    }

    /// Where the device may write: addresses and lengths, which may be in no memory.
    pub fn writable_pieces(&self) -> impl Iterator<Item = (u64, u32)> {
        self.writable.iter().map(|(address, len)| (address.0, *len))
    }

    /// Copies `into.len()` readable bytes from `offset` of the request.
    pub fn read(&self, mem: &GuestRam, offset: u64, into: &mut [u8]) -> Result<(), BadChain> {
        let mut done = 0;
        walk(&self.readable, offset, into.len(), |address, len| {
            let part = &mut into[done..done + len];
            done += len;
            mem.read_slice(part, address).map_err(|_| BadChain)
        })
    }

    /// Copies `from` into the writable bytes at `offset` of the request.
    pub fn write(&self, mem: &GuestRam, offset: u64, from: &[u8]) -> Result<(), BadChain> {
        let mut done = 0;
        walk(&self.writable, offset, from.len(), |address, len| {
            let part = &from[done..done + len];
            done += len;
            mem.write_slice(part, address).map_err(|_| BadChain)
        })
    }
}

fn walk(
    pieces: &[Piece],
    mut offset: u64,
    mut len: usize,
    mut each: impl FnMut(GuestAddress, usize) -> Result<(), BadChain>,
) -> Result<(), BadChain> {
    for (address, size) in pieces {
        if len == 0 {
            break;
        }
        let size = u64::from(*size);
        if offset >= size {
            offset -= size;
            continue;
        }
        let take = len.min((size - offset) as usize);
        let address = address.0.checked_add(offset).ok_or(BadChain)?;
        each(GuestAddress(address), take)?;
        len -= take;
        offset = 0;
    }
    if len == 0 { Ok(()) } else { Err(BadChain) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        /// Walking pieces visits exactly the bytes that a flat list of addresses has.
        #[test]
        fn walking_is_indexing(
            pieces in prop::collection::vec((0u64..1 << 40, 0u32..50), 0..8),
            offset in 0u64..300,
            len in 0usize..300,
        ) {
            let pieces: Vec<Piece> =
                pieces.into_iter().map(|(at, len)| (GuestAddress(at), len)).collect();
            let flat: Vec<u64> = pieces
                .iter()
                .flat_map(|(at, len)| (0..u64::from(*len)).map(|i| at.0 + i))
                .collect();
            let mut seen = Vec::new();
            let result = walk(&pieces, offset, len, |at, n| {
                seen.extend((0..n as u64).map(|i| at.0 + i));
                Ok(())
            });
            let wanted = flat.get(offset as usize..).and_then(|rest| rest.get(..len));
            match wanted {
                Some(wanted) => { prop_assert!(result.is_ok()); prop_assert_eq!(seen, wanted); }
                None => prop_assert!(result.is_err() || len == 0),
            }
        }
    }
}

//! A split virtqueue of fixed size.

use core::{
    cell::UnsafeCell,
    ptr::{addr_of, addr_of_mut, read_volatile, write_volatile},
    sync::atomic::{Ordering, fence},
};

use crate::machine::write16;

/// Entries of a queue.
pub const SIZE: usize = 256;
const NEXT: u16 = 1;
const WRITE: u16 = 2;

#[repr(C)]
#[derive(Clone, Copy)]
struct Descriptor {
    address: u64,
    len: u32,
    flags: u16,
    next: u16,
}

/// The memory that the device sees.
#[repr(C, align(4096))]
pub struct Ring {
    descriptors: [Descriptor; SIZE],
    avail: [u16; 2 + SIZE + 1],
    pad: [u16; 1],
    used: [u32; 1 + 2 * SIZE + 1],
}

/// A ring in static memory.
pub struct RingCell(UnsafeCell<Ring>);

// SAFETY: each ring is used by one queue on the one processor that works.
unsafe impl Sync for RingCell {}

impl RingCell {
    /// An empty ring.
    pub const fn new() -> Self {
        let blank = Descriptor { address: 0, len: 0, flags: 0, next: 0 };
        Self(UnsafeCell::new(Ring {
            descriptors: [blank; SIZE],
            avail: [0; 2 + SIZE + 1],
            pad: [0],
            used: [0; 1 + 2 * SIZE + 1],
        }))
    }
}

/// The driver's side of a queue. Requests are chains of `STEP` consecutive descriptors; a
/// request is named by its slot, `0..SIZE / STEP`.
pub struct Queue<const STEP: usize> {
    ring: *mut Ring,
    doorbell: u64,
    size: usize,
    avail: u16,
    seen: u16,
}

impl<const STEP: usize> Queue<STEP> {
    /// A queue of `size` entries, a power of two up to [`SIZE`].
    pub fn new(ring: &'static RingCell, size: usize) -> Self {
        Self { ring: ring.0.get(), doorbell: 0, size, avail: 0, seen: 0 }
    }

    /// Addresses of the descriptor table, the available ring and the used ring.
    pub fn addresses(&self) -> [u64; 3] {
        // SAFETY: only addresses are taken.
        unsafe {
            [
                addr_of!((*self.ring).descriptors) as u64,
                addr_of!((*self.ring).avail) as u64,
                addr_of!((*self.ring).used) as u64,
            ]
        }
    }

    pub fn set_doorbell(&mut self, doorbell: u64) {
        self.doorbell = doorbell;
    }

    /// Makes a request available in `slot`: pieces of (address, length, device writes).
    pub fn submit(&mut self, slot: usize, pieces: &[(u64, u32, bool)]) {
        let first = slot * STEP;
        for (index, (address, len, write)) in pieces.iter().enumerate() {
            let last = index + 1 == pieces.len();
            let flags = if *write { WRITE } else { 0 } | if last { 0 } else { NEXT };
            let descriptor = Descriptor {
                address: *address,
                len: *len,
                flags,
                next: (first + index + 1) as u16,
            };
            // SAFETY: the slot is not in flight, so the device does not look at it.
            unsafe {
                write_volatile(addr_of_mut!((*self.ring).descriptors[first + index]), descriptor);
            }
        }
        let place = 2 + usize::from(self.avail) % self.size;
        self.avail = self.avail.wrapping_add(1);
        // SAFETY: ring memory of ours; the fences order the index after what it exposes.
        unsafe {
            write_volatile(addr_of_mut!((*self.ring).avail[place]), first as u16);
            fence(Ordering::SeqCst);
            write_volatile(addr_of_mut!((*self.ring).avail[1]), self.avail);
        }
        fence(Ordering::SeqCst);
    }

    /// Rings the doorbell unless the device said it needs none.
    pub fn kick(&self, number: u16) {
        // SAFETY: ring memory of ours.
        let flags = unsafe { read_volatile(addr_of!((*self.ring).used[0])) } as u16;
        if flags & 1 == 0 {
            write16(self.doorbell, number);
        }
    }

    /// A finished request: its slot and the bytes written into it.
    pub fn finished(&mut self) -> Option<(usize, u32)> {
        // SAFETY: ring memory of ours; the entry is read after the index that exposes it.
        unsafe {
            let index = (read_volatile(addr_of!((*self.ring).used[0])) >> 16) as u16;
            if index == self.seen {
                return None;
            }
            fence(Ordering::SeqCst);
            let place = 1 + 2 * (usize::from(self.seen) % self.size);
            let id = read_volatile(addr_of!((*self.ring).used[place]));
            let len = read_volatile(addr_of!((*self.ring).used[place + 1]));
            self.seen = self.seen.wrapping_add(1);
            Some((id as usize / STEP, len))
        }
    }
}

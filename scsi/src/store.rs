//! What of a logical unit outlives the process.

use std::{future::Future, io, pin::Pin};

/// The future of one operation of a store.
pub type StoreFuture<'a, T> = Pin<Box<dyn Future<Output = io::Result<T>> + Send + 'a>>;

/// What is kept of a logical unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kept {
    /// Reservations that are to outlive a loss of power (APTPL, SPC-4 5.13.5).
    Reservations,
    /// A sanitize operation that is under way or has failed (SBC-3 4.11).
    Sanitize,
}

/// Where it is kept while a target is not running. What is kept is opaque, at most some 80 KiB of
/// each kind for a logical unit, and belongs to the 128-bit identity of it.
pub trait UnitStore: Send + Sync + 'static {
    /// Keeps `state` in place of what of that kind was kept for `unit`; empty: nothing is to be
    /// kept. The future ends when it is durable. Calls for one unit and kind do not overlap.
    fn save<'a>(&'a self, unit: [u8; 16], kept: Kept, state: &'a [u8]) -> StoreFuture<'a, ()>;

    /// What of that kind is kept for `unit`, if anything.
    fn load(&self, unit: [u8; 16], kept: Kept) -> StoreFuture<'_, Option<Vec<u8>>>;
}

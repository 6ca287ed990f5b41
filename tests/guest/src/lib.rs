//! The payload guest: its image, and the checker of what it wrote.
//!
//! ```text
//!  kernel/ ── build.rs (rustc, own linker script) ──► ELF with a PVH entry ──► GUEST
//!  src/pattern.rs ── shared ──► guest writes ; check() knows what must be where
//! ```

mod check;
mod line;
pub mod pattern;

pub use check::{CheckError, Expected, Report, check};
pub use line::Line;

/// The guest: an ELF file with a PVH entry.
pub const GUEST: &[u8] = include_bytes!(env!("PAYLOAD_GUEST_ELF"));

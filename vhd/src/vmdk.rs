//! VMware's VMDK format, for reading ("Virtual Disk Format 5.0", "VMDK" below): sparse extents, as
//! they are and stream-optimized, and descriptors that name flat or sparse extents beside them.
//!
//! ```text
//!  monolithicSparse, streamOptimized     one file: header, descriptor within, tables, grains
//!  monolithicFlat, twoGbMaxExtentFlat    descriptor (text) ─► extents of plain bytes
//!  twoGbMaxExtentSparse                  descriptor (text) ─► sparse extents
//!
//!  sector ─► extent ─► grain directory (in memory) ─► grain table (cached) ─► grain ─► bytes
//! ```
//!
//! | file | role |
//! |---|---|
//! | `header`, `descriptor` | structures: parse, no I/O |
//! | `sparse` | one sparse extent |
//! | `disk` | extents one after the other as a disk; finding their files |

mod check;
pub mod descriptor;
mod disk;
pub mod header;
mod sparse;

pub use check::check;
pub use disk::{Info, Vmdk, info};

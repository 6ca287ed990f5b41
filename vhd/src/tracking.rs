//! Which parts of a disk changed since a named point, kept in a file beside the image.
//!
//! ```text
//!  write ──► granules marked in memory ──► region not known as active? ─► state written, flushed
//!                                                                            │
//!            the write itself  ◄─────────────────────────────────────────────┘
//!
//!  point k      point k+1        now
//!    ├─ map k ────┼─ map k+1 ─────┤        changed since k  =  map k  or  map k+1
//! ```
//!
//! A change may be told that did not happen, never the reverse. So before anything in a *region* (256
//! granules) is written for the first time, the region is durably *active*: after a crash all of it
//! counts as changed. A checkpoint (at a point, at the close, and when many regions are active) makes
//! the exact map durable and the regions inactive. A point flushes the disk first, so that a crash
//! cannot take back what was there when the point was made.
//!
//! What is kept belongs to the content of the image: a VHDX has an identifier that every session which
//! changes it renews (MS-VHDX 2.2.2, DataWriteGuid). If the image was changed by someone who keeps no
//! track, or its size is another, everything counts as changed since every point ([`Changes::All`]).
//!
//! | file | role |
//! |---|---|
//! | `state` | what is written as one: points, maps' places, active regions; no I/O |
//! | `map` | a map of granules in memory |
//! | `store` | the file: state in two places, maps |
//! | `tracked` | a disk whose changes are kept track of |

mod map;
pub mod state;
mod store;
mod tracked;

pub use state::{Point, State};
pub use store::{Changes, Store};
pub use tracked::{Content, Tracked, attach};

/// What a tracking file's name ends in, after the image's.
pub const ENDING: &str = ".tracking";

//! QEMU's QCOW2 format, versions 2 and 3: reading, checking, and writing whole images
//! (docs/interop/qcow2 of QEMU, "QCOW2" below). All numbers are big-endian.
//!
//! ```text
//!  disk offset ─► L1 table (in memory) ─► L2 table (cached) ─► cluster ─► zeros
//!                                                               │   ├──► host offset ─► bytes
//!                                                               │   └──► compressed ─► inflated
//!                                                               └──────► nowhere: backing file
//! ```
//!
//! Images are not changed in place: [`Qcow2`] only reads, and never trusts reference counts, so that
//! images with the dirty bit (lazy reference counts) read as they are. [`Writer`] makes an image
//! anew and is not readable before it is closed.
//!
//! | file | role |
//! |---|---|
//! | `header`, `entry` | structures: parse and encode, no I/O |
//! | `disk`, `inflate` | the disk of an image; compressed clusters |
//! | `chain` | following backing files |
//! | `info`, `check` | describing an image with its snapshots; judging it |
//! | `create` | writing one |

mod chain;
mod check;
mod create;
mod disk;
pub mod entry;
pub mod header;
mod inflate;
mod info;

pub use chain::open_chain;
pub use check::check;
pub use create::{CreateOptions, Writer};
pub use disk::Qcow2;
pub use header::{Compression, Header};
pub use info::{Info, Snapshot, info};

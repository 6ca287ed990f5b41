//! Random operations on two folders that must stay alike: one on the file system that is tested,
//! one on a file system that is trusted.
//!
//! ```text
//!  seed ─► random.rs ─► op.rs: one operation ─┬─► apply.rs on the tested folder ──┐
//!                                             └─► apply.rs on the trusted one ────┴─ same outcome?
//!  every so often, and at the end: compare.rs ─ same names, kinds, sizes, content?
//! ```
//!
//! What is done depends on the seed and on what the trusted folder holds, so a run can be replayed
//! by its seed up to the operation at which it failed.

mod apply;
mod compare;
mod op;
mod random;
mod soak;

pub use compare::{compare, compare_links};
pub use soak::{Abilities, Options, Summary, soak};

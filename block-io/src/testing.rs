//! Files for tests: [`MemFile`] keeps its bytes in memory, [`CrashFile`] forgets what was not
//! flushed when it crashes, in an order and with tears that a seed decides.

mod crash;
mod mem;
mod rng;
mod sparse;

pub use crash::{CrashFile, Survival};
pub use mem::MemFile;
pub use rng::Rng;

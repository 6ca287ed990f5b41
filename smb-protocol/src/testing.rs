//! For tests and fuzz targets (feature `testing`): samples of all messages with what reads and
//! writes them, and a Kerberos service whose keys are known.

mod cases;
mod tickets;

pub use cases::{Case, authentication, create_contexts, messages, reparse_points};
pub use tickets::Tickets;

//! What devices and the machine stand on: buses, guest memory, interrupts, the host's clock, and how a machine ends.

pub mod bus;
pub mod clock;
pub mod dirty;
pub mod error;
pub mod hex;
pub mod irq;
pub mod layout;
pub mod lifecycle;
pub mod memory;

//! A virtual machine monitor on KVM, without files of definitions, other hosts, or how disks are opened.
//!
//! ```text
//!  machine    Vm: built, saved, restored; boot, CPU model, vCPU threads
//!     ▼
//!  devices    serial, power, clock, PCI, virtio: disk, console, entropy
//!     ▼
//!  platform   buses, guest memory, interrupts, how a machine is told to run, to park and to end
//! ```

pub mod devices;
pub mod machine;
pub mod platform;

pub use machine::{DRAIN_LIMIT, DiskShape, Vm};
pub use platform::{error::Error, layout::VARIABLES_MOST};

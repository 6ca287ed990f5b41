//! Devices of a virtual machine.
//!
//! ```text
//!  port I/O ─► Bus ─┬─ serial (16550)         MMIO ─► Bus ── virtio-pci BARs
//!                   ├─ power (ACPI PM, reset)                  │ queues
//!                   ├─ cmos, pvpanic        └─ flash           ▼
//!                   ├─ fw_cfg, debug port            virtio: blk, console, rng
//!                   └─ pci config (CF8/CFC): piix, virtio-pci, watchdog
//! ```
//!
//! A device's saved form is a plain serde structure of its own, versioned as a whole by
//! [`crate::machine::state`].

pub mod cmos;
pub mod console;
pub mod flash;
pub mod fw_cfg;
pub mod pci;
pub mod piix;
pub mod port;
pub mod power;
pub mod pvpanic;
pub mod serial;
pub mod virtio;
pub mod watchdog;

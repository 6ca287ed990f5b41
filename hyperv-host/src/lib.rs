//! The VM host.
//!
//! ```text
//!  bulkhead vm … ─► daemon::control ─► daemon (VM table, durable records)
//!                                        │ build, start, stop        │ move
//!                                        ▼                           ▼
//!                                      vmm::Vm ◄── memory, state ── migrate ═ TLS ═► other host
//!                                        │ virtio-blk
//!                                        ▼
//!                           disks ─► disk-source ─► block_io::Disk (local, or over SMB)
//! ```

pub mod allowed;
pub mod config;
pub mod daemon;
pub mod disks;
pub mod migrate;

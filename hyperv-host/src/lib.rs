//! The VM host.
//!
//! ```text
//!  bulkhead vm … ─► control ─► api ─► host (VM table, durable records)
//!  HTTP ─► http-api ───────────┘         │
//!                                        │ build, start, stop        │ move
//!                                        ▼                           ▼
//!                                      vmm::Vm ◄── memory, state ── migrate ═ TLS ═► other host
//!                                        │                             │ handover: who has it
//!                                        │ virtio-blk
//!                                        ▼
//!                           disks ─► disk-source ─► block_io::Disk (local, or over SMB)
//! ```

pub mod agent;
pub mod allowed;
pub mod api;
pub mod config;
pub mod control;
pub mod disks;
pub mod fault;
pub mod handover;
pub mod host;
pub mod metrics;
pub mod migrate;
pub mod nics;
pub mod recover;
pub mod schema;
pub mod tls;
pub mod why;
pub mod worker;

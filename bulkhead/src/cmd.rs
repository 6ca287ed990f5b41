//! One module per top-level subcommand; each has its `Args` and a `run`.

pub mod api;
pub mod apply;
pub mod bench;
pub mod cluster;
mod config_file;
pub mod describe;
pub mod disk;
pub mod host;
pub mod lun;
pub mod server;
pub mod share;
pub mod target;
pub mod user;
pub mod vm;
pub mod why;
pub mod witness;

//! Fuzz targets: functions that take any bytes and hold what must be true of every input.
//!
//! ```text
//!  fuzz/ (libFuzzer, nightly) ─┐
//!                              ├─► Target::run(bytes) ─► panics where a promise is broken
//!  tests/corpus.rs (stable) ───┘
//! ```
//!
//! `make fuzz` runs each under libFuzzer; `make test` replays `tests/fuzz-corpus/<target>/*` with
//! the same functions on stable Rust and measures their memory. A module has the targets of one
//! family and says what its bytes mean and what is held.

mod auth;
mod compression;
mod devices;
mod exchange;
mod firmware;
mod guest;
mod http;
mod images;
mod iscsi;
mod messages;
mod migration;
mod rdma;
mod rpc;
mod scsi;
mod witness;

/// A function that takes any bytes.
pub struct Target {
    /// Its name: that of its corpus, and of its program in `fuzz/`.
    pub name: &'static str,
    /// Takes bytes; panics if a promise is broken.
    pub run: fn(&[u8]),
    /// Bytes of memory that one input may take, beyond sixteen times its length.
    pub memory: usize,
    /// Inputs to begin with, made by the product's own writers.
    pub seeds: fn() -> Vec<(String, Vec<u8>)>,
}

/// All targets.
pub const TARGETS: &[Target] = &[
    Target { name: "messages", run: messages::run, memory: MIB, seeds: messages::seeds },
    Target { name: "http-calls", run: http::calls, memory: MIB, seeds: http::seeds },
    Target {
        name: "create-contexts",
        run: messages::run_contexts,
        memory: MIB,
        seeds: messages::seeds_contexts,
    },
    Target {
        name: "reparse",
        run: messages::run_reparse,
        memory: MIB,
        seeds: messages::seeds_reparse,
    },
    Target { name: "ntlm", run: auth::ntlm, memory: MIB, seeds: auth::seeds_ntlm },
    Target { name: "spnego", run: auth::spnego, memory: MIB, seeds: auth::seeds_spnego },
    Target { name: "kerberos", run: auth::kerberos, memory: MIB, seeds: auth::seeds_kerberos },
    Target {
        name: "lznt1",
        run: compression::run_lznt1,
        memory: 2 * MIB,
        seeds: compression::seeds_lznt1,
    },
    Target {
        name: "lz77",
        run: compression::run_lz77,
        memory: 2 * MIB,
        seeds: compression::seeds_lz77,
    },
    Target {
        name: "lz77-huffman",
        run: compression::run_lz77_huffman,
        memory: 4 * MIB,
        seeds: compression::seeds_lz77_huffman,
    },
    Target {
        name: "lz4",
        run: compression::run_lz4,
        memory: 2 * MIB,
        seeds: compression::seeds_lz4,
    },
    Target {
        name: "compressed",
        run: compression::run,
        memory: 4 * MIB,
        seeds: compression::seeds,
    },
    Target { name: "firmware", run: firmware::guest, memory: MIB, seeds: firmware::seeds },
    Target { name: "ports", run: guest::ports, memory: MIB, seeds: guest::seeds_ports },
    Target { name: "guest-agent", run: guest::agent, memory: MIB, seeds: guest::seeds_agent },
    Target { name: "balloon", run: devices::balloon, memory: MIB, seeds: devices::seeds_balloon },
    Target {
        name: "watchdog",
        run: devices::watchdog,
        memory: MIB,
        seeds: devices::seeds_watchdog,
    },
    Target { name: "rpc", run: rpc::run, memory: 4 * MIB, seeds: rpc::seeds },
    Target { name: "ndr", run: rpc::ndr, memory: MIB, seeds: rpc::seeds_ndr },
    Target { name: "ndr64", run: rpc::ndr64, memory: MIB, seeds: rpc::seeds_ndr64 },
    Target { name: "rpc-logon", run: witness::logon, memory: MIB, seeds: witness::seeds_logon },
    Target { name: "rpc-signed", run: witness::signed, memory: MIB, seeds: witness::seeds_signed },
    Target { name: "towers", run: witness::towers, memory: MIB, seeds: witness::seeds_towers },
    Target { name: "witness", run: witness::calls, memory: MIB, seeds: witness::seeds_calls },
    Target { name: "vhd", run: images::vhd, memory: IMAGE, seeds: images::seeds_vhd },
    Target { name: "vhdx", run: images::vhdx, memory: IMAGE, seeds: images::seeds_vhdx },
    Target { name: "qcow2", run: images::qcow2, memory: IMAGE, seeds: images::seeds_qcow2 },
    Target { name: "vmdk", run: images::vmdk, memory: IMAGE, seeds: images::seeds_vmdk },
    Target { name: "migration", run: migration::run, memory: MIB, seeds: migration::seeds },
    Target { name: "iscsi-pdus", run: iscsi::pdus, memory: MIB, seeds: iscsi::seeds_pdus },
    Target { name: "iscsi-login", run: iscsi::login, memory: MIB, seeds: iscsi::seeds_login },
    Target {
        name: "iscsi-session",
        run: iscsi::session,
        memory: 32 * MIB,
        seeds: iscsi::seeds_session,
    },
    Target { name: "isns", run: iscsi::isns, memory: MIB, seeds: iscsi::seeds_isns },
    Target { name: "scsi", run: scsi::run, memory: 64 * MIB, seeds: scsi::seeds },
    Target { name: "mpa", run: rdma::mpa, memory: MIB, seeds: rdma::seeds_mpa },
    Target { name: "rdmap", run: rdma::rdmap, memory: 4 * MIB, seeds: rdma::seeds_rdmap },
    Target { name: "smbdirect", run: rdma::smbd, memory: 4 * MIB, seeds: rdma::seeds_smbd },
    Target { name: "exchange", run: exchange::run, memory: 64 * MIB, seeds: exchange::seeds },
];

const MIB: usize = 1 << 20;
/// The largest tables that are believed in, and a few copies of the image.
const IMAGE: usize = 160 * MIB;

/// Runs the target of this name.
///
/// # Panics
/// If there is none, or if it breaks a promise.
pub fn run(name: &str, bytes: &[u8]) {
    let target = TARGETS.iter().find(|target| target.name == name);
    (target.expect("a target has this name").run)(bytes);
}

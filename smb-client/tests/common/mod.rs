//! A private Samba server on a loopback port, as a partner nobody here wrote.
#![allow(dead_code, reason = "each test program uses a part")]

use smb_client::{ConnectOptions, Login};
pub use test_support::{
    pattern,
    samba::{PASSWORD, Samba, USER},
};

/// Starts a server, or says in one line why the test is skipped.
pub fn start(extra: &str) -> Option<Samba> {
    let global = "kernel oplocks = no\nkernel share modes = no\nposix locking = no\n\
                  durable handles = yes\nserver min protocol = SMB2_10\n";
    Samba::start(&format!("{global}{extra}"), "")
}

/// How its user connects to it.
pub fn options(samba: &Samba) -> ConnectOptions {
    ConnectOptions::new("127.0.0.1", samba.port(), Login::new(USER, PASSWORD))
}

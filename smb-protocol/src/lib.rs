//! Wire types of SMB 2.1–3.1.1 and what protects them: no sockets, no runtime, no clock.
#![forbid(unsafe_code)]

pub mod crypto;
pub mod ntlm;
pub mod spnego;

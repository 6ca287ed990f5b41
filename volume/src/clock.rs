//! The time as files have it, and random numbers.

use std::{io, time::SystemTime};

use smb_protocol::fscc::filetime_from_unix;

/// The time as FILETIME.
pub fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    filetime_from_unix(i64::try_from(since.as_secs()).unwrap_or(0), since.subsec_nanos())
}

/// Random bytes from the system.
pub fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    let mut filled = 0;
    while filled < N {
        filled +=
            rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty())?;
    }
    Ok(bytes)
}

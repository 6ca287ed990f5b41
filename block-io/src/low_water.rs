//! How much a TCP socket gathers before it wakes its reader (`SO_RCVLOWAT`, socket(7)).
//!
//! A reader that is faster than its peer is woken for every segment, and each wake-up costs the
//! peer's CPU more than the copy of the segment. One that waits for a large message says so.

#![expect(unsafe_code, reason = "an option of sockets that rustix does not have")]

use std::os::fd::{AsFd, AsRawFd};

/// Most that is waited for: copying it goes on while the rest of a message comes.
const MOST: usize = 512 << 10;
/// Less is not worth a system call.
const LEAST: usize = 64 << 10;

/// What a socket was told last.
#[derive(Debug)]
pub struct LowWater {
    bytes: usize,
}

impl Default for LowWater {
    /// A new socket wakes its reader for every byte.
    fn default() -> Self {
        Self { bytes: 1 }
    }
}

impl LowWater {
    /// The reader is about to wait and has no use for fewer than `missing` bytes. The system
    /// wakes it earlier when the connection ends or the socket's buffer is full.
    pub fn wait_for(&mut self, socket: impl AsFd, missing: usize) {
        let bytes = if missing < LEAST { 1 } else { missing.min(MOST) };
        if bytes == self.bytes {
            return;
        }
        let value = bytes as libc::c_int;
        // SAFETY: the descriptor is open while it is borrowed, and the option is one `int`.
        let set = unsafe {
            libc::setsockopt(
                socket.as_fd().as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_RCVLOWAT,
                (&raw const value).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            )
        };
        // A socket that refuses goes on as it was.
        if set == 0 {
            self.bytes = bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::{TcpListener, TcpStream},
        os::fd::BorrowedFd,
        time::Duration,
    };

    use rustix::event::{PollFd, PollFlags, poll};

    use super::*;

    fn is_readable(socket: BorrowedFd<'_>, wait: Duration) -> bool {
        let timeout = rustix::time::Timespec::try_from(wait).unwrap();
        poll(&mut [PollFd::new(&socket, PollFlags::IN)], Some(&timeout)).unwrap() > 0
    }

    #[test]
    fn a_reader_sleeps_until_enough_is_there() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut sender = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut receiver, _) = listener.accept().unwrap();
        let mut low_water = LowWater::default();
        low_water.wait_for(&receiver, 100_000);
        sender.write_all(&[7; 50_000]).unwrap();
        assert!(!is_readable(receiver.as_fd(), Duration::from_millis(50)));
        sender.write_all(&[7; 50_000]).unwrap();
        assert!(is_readable(receiver.as_fd(), Duration::from_secs(30)));
        receiver.read_exact(&mut [0; 100_000]).unwrap();
        // The end is told at once.
        low_water.wait_for(&receiver, 1 << 20);
        drop(sender);
        assert!(is_readable(receiver.as_fd(), Duration::from_secs(30)));
        low_water.wait_for(&receiver, 10);
        assert_eq!(low_water.bytes, 1);
    }
}

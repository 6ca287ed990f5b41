//! What a server is given by the process that started it: sockets that are bound already, and a
//! line to its supervisor.
//!
//! ```text
//!  systemd ─► LISTEN_PID, LISTEN_FDS: descriptors from 3 on
//!  smbd --supervise ─► SMBD_SOCKETS: numbers of descriptors; SMBD_SUPERVISOR: the line
//! ```
//!
//! Sockets are told apart by the addresses they are bound to. All of it is read once, before any
//! thread is started.

use std::{
    net::{SocketAddr, TcpListener},
    os::{
        fd::{AsFd, FromRawFd, OwnedFd, RawFd},
        unix::net::UnixStream,
    },
    sync::atomic::{AtomicBool, Ordering},
};

use rustix::{io::FdFlags, net::sockopt};

/// Names sockets by their descriptors, separated by commas.
pub const SOCKETS: &str = "SMBD_SOCKETS";
/// Names the line to the supervisor by its descriptor.
pub const SUPERVISOR: &str = "SMBD_SUPERVISOR";
/// The first descriptor that systemd passes on.
const FIRST: RawFd = 3;
/// Sockets that can be passed on.
const MOST: i32 = 256;

/// The listening sockets that were inherited from whoever started this.
#[derive(Debug, Default)]
pub struct Inherited {
    /// Sockets that listen.
    pub sockets: Vec<TcpListener>,
    /// The line to the supervisor.
    pub supervisor: Option<UnixStream>,
}

/// Takes the descriptor of a number that whoever started this process has named on its command line.
/// To be done once for each, while there is one thread.
pub fn named(number: RawFd) -> Option<OwnedFd> {
    own(number)
}

/// Takes what was inherited; the second time there is nothing.
pub fn take() -> Inherited {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::AcqRel) {
        return Inherited::default();
    }
    let variable = |name| std::env::var(name).ok();
    let mine = variable("LISTEN_PID").is_some_and(|pid| pid == std::process::id().to_string());
    let passed = variable("LISTEN_FDS").filter(|_| mine).and_then(|count| count.parse().ok());
    let numbers = numbers(passed, variable(SOCKETS).as_deref());
    let sockets = numbers.into_iter().filter_map(own).filter(listens).map(TcpListener::from);
    let line = variable(SUPERVISOR).and_then(|number| number.parse().ok()).and_then(own);
    Inherited { sockets: sockets.collect(), supervisor: line.map(UnixStream::from) }
}

/// The descriptors that are meant, each once.
fn numbers(passed: Option<i32>, sockets: Option<&str>) -> Vec<RawFd> {
    let passed = passed.unwrap_or(0).clamp(0, MOST);
    let mut numbers: Vec<RawFd> = (FIRST..FIRST + passed).collect();
    let named = sockets.unwrap_or_default().split(',').filter_map(|number| number.parse().ok());
    for number in named.filter(|number| *number >= FIRST) {
        if !numbers.contains(&number) {
            numbers.push(number);
        }
    }
    numbers
}

#[expect(unsafe_code, reason = "descriptors are inherited by number")]
fn own(number: RawFd) -> Option<OwnedFd> {
    if number < FIRST {
        return None;
    }
    // SAFETY: borrowed for the call only, which fails on a number that is no descriptor.
    let there = unsafe { rustix::fd::BorrowedFd::borrow_raw(number) };
    rustix::io::fcntl_setfd(there, FdFlags::CLOEXEC).ok()?;
    // SAFETY: it is open, and whoever started this process says that it is ours; `take` is
    // carried out once, before anything else could have opened a descriptor by that number.
    Some(unsafe { OwnedFd::from_raw_fd(number) })
}

fn listens(socket: &OwnedFd) -> bool {
    let stream = sockopt::socket_type(socket) == Ok(rustix::net::SocketType::STREAM);
    stream && sockopt::socket_acceptconn(socket).unwrap_or(false)
}

/// Takes the socket that is bound to an address from a list; port 0 means any of that address.
pub fn bound_to(address: SocketAddr, sockets: &mut Vec<TcpListener>) -> Option<TcpListener> {
    let fits = |socket: &TcpListener| {
        socket.local_addr().is_ok_and(|bound| {
            bound.ip() == address.ip() && (address.port() == 0 || bound.port() == address.port())
        })
    };
    let at = sockets.iter().position(fits)?;
    Some(sockets.remove(at))
}

/// Lets programs that are started from here inherit a descriptor.
///
/// # Errors
/// What the system says.
pub fn pass_on(fd: impl AsFd) -> rustix::io::Result<()> {
    rustix::io::fcntl_setfd(fd, FdFlags::empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_named_in_two_ways() {
        assert!(numbers(None, None).is_empty());
        assert_eq!(numbers(Some(2), None), [3, 4]);
        assert_eq!(numbers(Some(1), Some("3,9,x,,9,-1,2")), [3, 9]);
        assert_eq!(numbers(Some(-5), Some("4")), [4]);
        assert_eq!(numbers(Some(i32::MAX), None).len(), MOST as usize);
    }

    #[test]
    fn sockets_are_found_by_their_address() {
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let mut sockets = vec![TcpListener::bind(any).unwrap(), TcpListener::bind(any).unwrap()];
        let second = sockets[1].local_addr().unwrap();
        let found = bound_to(second, &mut sockets).unwrap();
        assert_eq!(found.local_addr().unwrap(), second);
        assert!(bound_to(second, &mut sockets).is_none());
        assert!(bound_to("127.0.0.2:0".parse().unwrap(), &mut sockets).is_none());
        assert!(bound_to(any, &mut sockets).is_some());
        assert!(sockets.is_empty());
    }
}

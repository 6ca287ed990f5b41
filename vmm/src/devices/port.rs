//! The host side of a named port of a guest's console device: a stream of bytes both ways, between a
//! program in the guest that has the port open and the host.
//!
//! ```text
//!  host ──► send() ────► to the guest, 64 KiB at most ──► device (wake)
//!  host ◄── receive() ◄─ from the guest ◄── device, which takes nothing more while 64 KiB wait
//! ```
//!
//! What the guest sends is kept until the host takes it: a guest that sends without end waits, and
//! takes no more memory than that.

use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex},
    time::Instant,
};

use vmm_sys_util::eventfd::EventFd;

use crate::platform::bus::lock;

/// Bytes for the guest that may wait.
const TO_GUEST: usize = 64 << 10;
/// When so many bytes of the guest wait nothing more is taken from it.
const FROM_GUEST: usize = 64 << 10;

/// Why nothing was sent or received.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, thiserror::Error, serde::Serialize, serde::Deserialize,
)]
pub enum PortError {
    /// No program in the guest has the port open.
    #[error("no program in the guest has the port open")]
    Closed,
    /// The guest does not take what was sent before.
    #[error("the guest takes nothing more from the port")]
    Full,
    /// Nothing came in time.
    #[error("the guest did not answer in time")]
    Silent,
}

#[derive(Debug, Default)]
struct Inner {
    to_guest: VecDeque<u8>,
    from_guest: VecDeque<u8>,
    /// A program in the guest has it open.
    open: bool,
    /// The machine has ended.
    ended: bool,
    /// Told when there is something for the guest.
    wake_to: Option<EventFd>,
    /// Told when more is taken from the guest.
    wake_from: Option<EventFd>,
}

/// A port; clones are the same port.
#[derive(Debug, Clone, Default)]
pub struct Port {
    inner: Arc<(Mutex<Inner>, Condvar)>,
}

impl Port {
    /// Whether a program in the guest has the port open.
    pub fn is_open(&self) -> bool {
        let inner = lock(&self.inner.0);
        inner.open && !inner.ended
    }

    /// Sends all of `bytes`, or nothing.
    ///
    /// # Errors
    /// [`PortError::Closed`], or [`PortError::Full`] if they do not fit beside what waits.
    pub fn send(&self, bytes: &[u8]) -> Result<(), PortError> {
        let mut inner = lock(&self.inner.0);
        if !inner.open || inner.ended {
            return Err(PortError::Closed);
        }
        if bytes.len() > TO_GUEST - inner.to_guest.len().min(TO_GUEST) {
            return Err(PortError::Full);
        }
        inner.to_guest.extend(bytes);
        wake(inner.wake_to.as_ref());
        Ok(())
    }

    /// Takes what the guest has sent, waiting until `deadline` for something.
    ///
    /// # Errors
    /// [`PortError::Closed`] or [`PortError::Silent`].
    pub fn receive(&self, deadline: Instant) -> Result<Vec<u8>, PortError> {
        let mut inner = lock(&self.inner.0);
        loop {
            if !inner.from_guest.is_empty() {
                let bytes = inner.from_guest.drain(..).collect();
                wake(inner.wake_from.as_ref());
                return Ok(bytes);
            }
            if !inner.open || inner.ended {
                return Err(PortError::Closed);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(PortError::Silent);
            }
            let waited = self.inner.1.wait_timeout(inner, left);
            inner = waited.unwrap_or_else(|poison| poison.into_inner()).0;
        }
    }

    /// Forgets what waits in both directions: of a conversation that is over.
    pub fn discard(&self) {
        let mut inner = lock(&self.inner.0);
        inner.to_guest.clear();
        inner.from_guest.clear();
        wake(inner.wake_from.as_ref());
    }

    /// Nobody will send or receive any more: the machine has ended.
    pub fn close(&self) {
        let mut inner = lock(&self.inner.0);
        inner.ended = true;
        wake(inner.wake_to.as_ref());
        self.inner.1.notify_all();
    }

    /// Whether the machine has ended.
    pub fn has_ended(&self) -> bool {
        lock(&self.inner.0).ended
    }

    /// A program in the guest has opened or closed it. What one before it did not take is not for it.
    pub fn set_open(&self, open: bool) {
        let mut inner = lock(&self.inner.0);
        if std::mem::replace(&mut inner.open, open) != open {
            inner.to_guest.clear();
        }
        self.inner.1.notify_all();
    }

    /// Takes up to `most` bytes that are for the guest.
    pub fn take_for_guest(&self, most: usize) -> Vec<u8> {
        let mut inner = lock(&self.inner.0);
        let most = most.min(inner.to_guest.len());
        inner.to_guest.drain(..most).collect()
    }

    /// Whether there is something for the guest, and a program that reads it.
    pub fn has_for_guest(&self) -> bool {
        let inner = lock(&self.inner.0);
        inner.open && !inner.to_guest.is_empty()
    }

    /// Whether more is taken from the guest.
    pub fn has_room(&self) -> bool {
        lock(&self.inner.0).from_guest.len() < FROM_GUEST
    }

    /// Keeps what the guest has sent for the host. The device asks [`Port::has_room`] first.
    pub fn push_from_guest(&self, bytes: &[u8]) {
        let mut inner = lock(&self.inner.0);
        inner.from_guest.extend(bytes);
        self.inner.1.notify_all();
    }

    /// Sets what is told when there is something for the guest.
    pub fn set_wake_to(&self, eventfd: EventFd) {
        lock(&self.inner.0).wake_to = Some(eventfd);
    }

    /// Sets what is told when more is taken from the guest.
    pub fn set_wake_from(&self, eventfd: EventFd) {
        lock(&self.inner.0).wake_from = Some(eventfd);
    }
}

fn wake(eventfd: Option<&EventFd>) {
    if let Some(eventfd) = eventfd {
        // Only a counter at its maximum refuses, and that wakes as well.
        let _ = eventfd.write(1);
    }
}

#[cfg(test)]
mod tests {
    use std::{thread, time::Duration};

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    #[test]
    fn nothing_is_said_to_a_port_that_nobody_has_open() {
        let port = Port::default();
        assert_eq!(port.send(b"x"), Err(PortError::Closed));
        assert_eq!(port.receive(soon()), Err(PortError::Closed));
        port.set_open(true);
        port.send(b"one").unwrap();
        assert!(port.has_for_guest());
        // Another program has it then.
        port.set_open(false);
        port.set_open(true);
        assert!(!port.has_for_guest());
        port.close();
        assert_eq!(port.send(b"x"), Err(PortError::Closed));
        assert!(!port.is_open());
    }

    #[test]
    fn what_waits_is_bounded_both_ways() {
        let port = Port::default();
        port.set_open(true);
        port.send(&vec![1; TO_GUEST]).unwrap();
        assert_eq!(port.send(b"x"), Err(PortError::Full));
        assert_eq!(port.take_for_guest(usize::MAX).len(), TO_GUEST);
        assert!(port.has_room());
        port.push_from_guest(&vec![2; FROM_GUEST]);
        assert!(!port.has_room());
        assert_eq!(port.receive(soon()).unwrap().len(), FROM_GUEST);
        assert!(port.has_room());
        assert_eq!(port.receive(Instant::now()), Err(PortError::Silent));
    }

    #[test]
    fn who_waits_is_told_of_bytes_and_of_the_end() {
        let port = Port::default();
        port.set_open(true);
        let there = port.clone();
        let waiting = thread::spawn(move || (there.receive(soon()), there.receive(soon())));
        port.push_from_guest(b"answer");
        // The second call ends when the port is closed, and not before.
        while !port.has_room() || lock(&port.inner.0).from_guest.len() == 6 {
            thread::yield_now();
        }
        port.set_open(false);
        assert_eq!(waiting.join().unwrap(), (Ok(b"answer".to_vec()), Err(PortError::Closed)));
    }
}

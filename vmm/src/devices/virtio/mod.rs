//! virtio 1.2 devices over PCI.
//!
//! ```text
//!  guest ─ BAR ─► transport::VirtioPci ── DRIVER_OK ──► one worker task a queue (tokio)
//!        ─ notify ─► ioeventfd ───────────────────────►   │ pops chains, many in flight
//!        ◄─ MSI-X ◄─ irqfd ◄──────────────────────────────┘ used ring, batched
//! ```
//!
//! A [`Backend`] is what tells a disk from a console: its configuration and the future that
//! serves a queue. A worker owns its queue and gives it back when it is told to drain, with
//! nothing in flight; so a paused device's whole state is its registers and ring positions.
//!
//! Workers of all machines share a few threads. None of them goes on for as long as its guest
//! asks for more: after a [`Turn`] it lets the others go on.

pub mod balloon;
pub mod blk;
pub mod chain;
pub mod console;
pub mod net;
mod pace;
pub mod rng;
pub mod storage;
pub mod times;
pub mod transport;
mod worker;

#[cfg(test)]
mod tests;

use std::{
    fmt::Debug,
    future::{Future, poll_fn},
    pin::Pin,
    sync::Arc,
    task::Poll,
};

use serde::{Deserialize, Serialize};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::watch,
};
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vmm_sys_util::eventfd::EventFd;

use self::{balloon::SavedBalloon, chain::Chain, console::control::SavedPorts};
use super::pci::msix::Msix;
use crate::platform::{error::Error, memory::GuestRam};

/// `VIRTIO_F_INDIRECT_DESC`.
pub const F_INDIRECT: u64 = 1 << 28;
/// `VIRTIO_F_EVENT_IDX`.
pub const F_EVENT_IDX: u64 = 1 << 29;
/// `VIRTIO_F_VERSION_1`.
pub const F_VERSION_1: u64 = 1 << 32;

/// A queue at work.
#[derive(Debug)]
pub struct QueueIo {
    /// Number of the queue.
    pub index: u16,
    /// Ring positions.
    pub queue: Queue,
    /// Guest memory.
    pub mem: Arc<GuestRam>,
    /// The guest's notifications.
    pub kick: Kick,
    /// Negotiated features.
    pub features: u64,
    /// The function's vectors.
    pub msix: Arc<Msix>,
    /// The queue's vector.
    pub vector: u16,
    empty_looks: u8,
}

impl QueueIo {
    /// A queue at its positions, and what its worker needs.
    pub fn new(
        index: u16,
        queue: Queue,
        mem: Arc<GuestRam>,
        kick: Kick,
        features: u64,
        msix: Arc<Msix>,
        vector: u16,
    ) -> Self {
        Self { index, queue, mem, kick, features, msix, vector, empty_looks: 0 }
    }

    /// Next request of the guest, if there is one.
    pub fn pop(&mut self) -> Option<Chain> {
        let chain = self.queue.pop_descriptor_chain(&*self.mem)?;
        Some(Chain::collect(chain))
    }

    /// Makes the request that was taken last the next one again.
    pub fn take_back(&mut self) {
        self.queue.go_to_previous_position();
    }

    /// Gives a request back with the number of bytes written into it.
    pub fn push(&mut self, head: u16, written: u32) {
        if let Err(error) = self.queue.add_used(&*self.mem, head, written) {
            tracing::debug!(%error, "the guest's used ring is unusable");
        }
    }

    /// Interrupts the guest if it wants to know of what was pushed.
    pub fn signal(&mut self) {
        if self.queue.needs_notification(&*self.mem).unwrap_or(true) {
            self.msix.signal(self.vector);
        }
    }

    /// Asks for notifications again; whether to look for requests once more. `popped` says
    /// whether the last look found any: a ring that claims requests and gives none is broken by
    /// the guest, and not worth more than another look.
    pub fn rearm(&mut self, popped: bool) -> bool {
        const LOOKS: u8 = 2;
        if !self.queue.enable_notification(&*self.mem).unwrap_or(false) {
            self.empty_looks = 0;
            return false;
        }
        self.empty_looks = if popped { 0 } else { self.empty_looks + 1 };
        if self.empty_looks < LOOKS {
            return true;
        }
        self.empty_looks = 0;
        false
    }

    /// Says that no notifications are needed for now.
    pub fn disarm(&mut self) {
        // A ring that cannot be written only costs notifications.
        let _ = self.queue.disable_notification(&*self.mem);
    }
}

/// What a worker does in one go. A guest that refills its ring as fast as it is emptied would
/// otherwise keep a thread to itself, and a drain from ever being seen.
#[derive(Debug, Default)]
pub struct Turn {
    taken: u32,
    bytes: u64,
}

impl Turn {
    /// Most requests and notifications of a turn.
    pub const MOST: u32 = 64;
    /// Most bytes of a turn; the request that reaches it is the last.
    pub const MOST_BYTES: u64 = 1 << 20;

    /// Counts a request of so many bytes, or a notification.
    pub fn took(&mut self, bytes: u64) {
        self.taken += 1;
        self.bytes = self.bytes.saturating_add(bytes);
    }

    /// Whether nothing more may be taken.
    pub fn is_over(&self) -> bool {
        self.taken >= Self::MOST || self.bytes >= Self::MOST_BYTES
    }

    /// Begins the next turn if this one is over, after others have had theirs. What was done must
    /// have been signalled before.
    pub async fn renew(&mut self) {
        if self.is_over() {
            *self = Self::default();
            tokio::task::yield_now().await;
        }
    }
}

/// Lets the worker do something else first, from within one of its requests. The request is woken
/// at once, by which `FuturesUnordered` sees that it must not go on by itself.
pub async fn give_way() {
    let mut given = false;
    poll_fn(|context| {
        if std::mem::replace(&mut given, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// The eventfd behind a queue's doorbell.
#[derive(Debug)]
pub struct Kick {
    fd: Option<AsyncFd<EventFd>>,
}

impl Kick {
    /// Listens to `fd`; must be called within a runtime.
    #[expect(unsafe_code, reason = "eventfds of vmm-sys-util only have a raw descriptor")]
    pub fn new(fd: EventFd) -> Self {
        // SAFETY: the eventfd owns its descriptor and is neither replaced nor closed while it
        // is registered.
        match unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) } {
            Ok(fd) => Self { fd: Some(fd) },
            Err(error) => {
                tracing::error!(%error, "cannot wait for a queue's notifications");
                Self { fd: None }
            }
        }
    }

    /// Waits for a notification. Cancel safe.
    pub async fn wait(&self) {
        let Some(fd) = &self.fd else { return std::future::pending().await };
        loop {
            let Ok(mut guard) = fd.readable().await else { return std::future::pending().await };
            match guard.try_io(|fd| fd.get_ref().read()) {
                Ok(Ok(_)) => return,
                Ok(Err(error)) => tracing::error!(%error, "a queue's eventfd"),
                Err(_would_block) => {}
            }
        }
    }
}

/// Tells a worker to drain (true) or to go on (false).
pub type Drain = watch::Receiver<bool>;

/// A queue's worker, which gives the queue back when it ends.
pub type Worker = Pin<Box<dyn Future<Output = QueueIo> + Send>>;

/// What a device has beyond its registers and rings, as it is moved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SavedDevice {
    /// The ports of a console.
    Ports(SavedPorts),
    /// The size of a balloon.
    Balloon(SavedBalloon),
}

/// What makes a virtio device the device it is.
pub trait Backend: Send + Sync + Debug {
    /// What it is, for messages.
    fn name(&self) -> String;
    /// Device type (virtio 1.2 §5).
    fn kind(&self) -> u16;
    /// PCI class, subclass and interface.
    fn class(&self) -> u32;
    /// Features offered beyond those of the transport.
    fn features(&self) -> u64 {
        0
    }
    /// Number of queues.
    fn queues(&self) -> u16;
    /// Entries of each queue.
    fn queue_size(&self) -> u16 {
        64
    }
    /// Device-specific configuration.
    fn config(&self) -> Vec<u8> {
        Vec::new()
    }
    /// The driver writes to the device-specific configuration; most devices have nothing there for it.
    fn write_config(&self, _offset: u64, _data: &[u8]) {}
    /// Serves a queue until drained: when `drain` is true, takes nothing new, finishes what is
    /// in flight and returns.
    fn serve(self: Arc<Self>, io: QueueIo, drain: Drain) -> Worker;
    /// The driver has reset the device; no queue is served.
    fn reset(&self) {}
    /// What a paused device has beyond its registers and rings, if it has anything.
    fn save(&self) -> Option<SavedDevice> {
        None
    }
    /// Puts in place what was saved of a device that has not run.
    ///
    /// # Errors
    /// [`Error::Config`] if that is another device's.
    fn restore(&self, _saved: &SavedDevice) -> Result<(), Error> {
        Err(Error::Config(format!("{} has no state of its own", self.name())))
    }
}

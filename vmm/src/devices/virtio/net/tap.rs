//! A tap, of which each read and write is one frame with the kernel's header before it
//! (`struct virtio_net_hdr_v1`, Linux `Documentation/networking/tuntap.rst`).

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
    sync::OnceLock,
};

use tokio::io::{Interest, unix::AsyncFd};

/// Bytes before each frame: virtio's header with the number of buffers (virtio 1.2 §5.1.6).
pub const HEADER: usize = 12;

const TUN_F_CSUM: libc::c_ulong = 1;
const TUN_F_TSO4: libc::c_ulong = 2;
const TUN_F_TSO6: libc::c_ulong = 4;

/// What a reader of frames does by itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Offloads {
    /// Checksums of TCP and UDP.
    pub sums: bool,
    /// Segments of TCP over IPv4 longer than a frame.
    pub tcp4: bool,
    /// Likewise over IPv6.
    pub tcp6: bool,
}

/// An open tap, read and written frame by frame.
#[derive(Debug)]
pub struct Tap {
    fd: OwnedFd,
    /// As the runtime of the workers knows it.
    watched: OnceLock<Option<AsyncFd<OwnedFd>>>,
}

impl Tap {
    /// Takes a tap, which must not block.
    pub(super) fn new(fd: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        let size = HEADER as libc::c_int;
        set(&fd, libc::TUNSETVNETHDRSZ, std::ptr::from_ref(&size) as libc::c_ulong)?;
        Ok(Self { fd, watched: OnceLock::new() })
    }

    /// Says what is left to who reads.
    pub(super) fn set_offloads(&self, offloads: Offloads) {
        let bit = |on: bool, bit: libc::c_ulong| if on { bit } else { 0 };
        let flags = bit(offloads.sums, TUN_F_CSUM)
            | bit(offloads.tcp4, TUN_F_TSO4)
            | bit(offloads.tcp6, TUN_F_TSO6);
        if let Err(error) = set(&self.fd, libc::TUNSETOFFLOAD, flags) {
            tracing::warn!(%error, "a tap does not leave work to its guest");
        }
    }

    /// Waits until there may be a frame. Within the workers' runtime.
    pub(super) async fn readable(&self) {
        let watched = self.watched.get_or_init(|| watch(self.fd.try_clone().ok()?));
        let Some(fd) = watched else { return std::future::pending().await };
        match fd.readable().await {
            // Whether there is one says the read; the next wait is for the next edge.
            Ok(mut ready) => {
                if self.is_empty() {
                    ready.clear_ready();
                }
            }
            Err(_) => std::future::pending().await,
        }
    }

    fn is_empty(&self) -> bool {
        let mut poll = [rustix::event::PollFd::new(&self.fd, rustix::event::PollFlags::IN)];
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        rustix::event::poll(&mut poll, Some(&now)).is_ok_and(|ready| ready == 0)
    }

    /// Reads a frame with its header, if there is one.
    pub(super) fn read(&self, buffer: &mut [u8]) -> Option<usize> {
        rustix::io::read(&self.fd, buffer).ok()
    }

    /// Writes a frame with its header.
    pub(super) fn write(&self, frame: &[u8]) -> io::Result<()> {
        rustix::io::write(&self.fd, frame)?;
        Ok(())
    }
}

#[expect(unsafe_code, reason = "the runtime is told of a descriptor")]
fn watch(fd: OwnedFd) -> Option<AsyncFd<OwnedFd>> {
    // SAFETY: it owns its descriptor, which is neither replaced nor closed while it is registered.
    unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }.ok()
}

#[expect(unsafe_code, reason = "ioctls of taps")]
fn set(fd: &OwnedFd, request: libc::Ioctl, argument: libc::c_ulong) -> io::Result<()> {
    // SAFETY: both requests that this is called with take a number, or read one `int` at an address
    // that lives through the call.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), request, argument) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

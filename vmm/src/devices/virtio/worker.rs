//! The worker of a queue whose requests are done as they are taken, one after the other.

use vmm_sys_util::eventfd::EventFd;

use super::{Drain, Kick, QueueIo, Turn, chain::Chain};
use crate::platform::memory::GuestRam;

/// What became of a request.
#[derive(Debug, Clone, Copy)]
pub struct Served {
    /// Bytes written into it, which the guest is told.
    pub written: u32,
    /// Bytes that count against the worker's turn.
    pub moved: u64,
}

/// Where the content of requests comes from or goes to.
pub struct Source {
    /// Notified when there may be more, beside the guest's own notifications.
    pub wake: Option<Kick>,
    /// Whether a request can be served now.
    pub has_more: Box<dyn Fn() -> bool + Send + Sync>,
}

impl Source {
    /// One that serves any request at any time.
    pub fn always() -> Self {
        Self { wake: None, has_more: Box::new(|| true) }
    }

    async fn woken(&self) {
        match &self.wake {
            Some(wake) => wake.wait().await,
            None => std::future::pending().await,
        }
    }
}

/// An eventfd to be told by, and the end that is listened to; must be called within a runtime.
pub fn wake() -> Option<(EventFd, Kick)> {
    let wake = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)
        .and_then(|wake| Ok((wake.try_clone()?, wake)));
    match wake {
        Ok((listen, wake)) => Some((wake, Kick::new(listen))),
        Err(error) => {
            tracing::error!(%error, "a queue of a guest's device does nothing");
            None
        }
    }
}

/// Serves a queue until it is drained: each request that `source` has something for goes to `serve`
/// and back to the guest.
pub async fn serve_in_turn(
    mut io: QueueIo,
    mut drain: Drain,
    source: Source,
    serve: impl Fn(&Chain, &GuestRam) -> Served + Send,
) -> QueueIo {
    let mut turn = Turn::default();
    loop {
        turn.renew().await;
        if *drain.borrow_and_update() {
            return io;
        }
        let mut any = false;
        while !turn.is_over()
            && (source.has_more)()
            && let Some(chain) = io.pop()
        {
            let served = serve(&chain, &io.mem);
            io.push(chain.head, served.written);
            turn.took(served.moved);
            any = true;
        }
        if any {
            io.signal();
        }
        if io.rearm(any) && (source.has_more)() {
            continue;
        }
        tokio::select! {
            () = io.kick.wait() => turn.took(0),
            () = source.woken() => turn.took(0),
            changed = drain.changed() => if changed.is_err() { return io },
        }
    }
}

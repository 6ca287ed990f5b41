//! Console device (virtio 1.2 §5.3) with one port: queue 0 to the guest, queue 1 from it.

use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::{
    Backend, Drain, Kick, QueueIo, Worker,
    chain::Chain,
    worker::{Served, Source, serve_in_turn},
};
use crate::{devices::console::Console, platform::memory::GuestRam};

/// Most bytes taken from one request of the guest.
const MOST: u64 = 64 * 1024;

/// The virtio console: what a [`Console`] prints and takes, as a device.
#[derive(Debug)]
pub struct VirtioConsole {
    console: Console,
}

impl VirtioConsole {
    /// A device that prints to and reads from `console`.
    pub fn new(console: Console) -> Self {
        Self { console }
    }
}

impl Backend for VirtioConsole {
    fn name(&self) -> String {
        "the console".into()
    }

    fn kind(&self) -> u16 {
        3
    }

    fn class(&self) -> u32 {
        0x07_80_00
    }

    fn queues(&self) -> u16 {
        2
    }

    fn config(&self) -> Vec<u8> {
        vec![0; 12]
    }

    fn serve(self: Arc<Self>, io: QueueIo, drain: Drain) -> Worker {
        let console = self.console.clone();
        if io.index == 0 {
            Box::pin(to_guest(io, drain, console))
        } else {
            let serve = move |chain: &Chain, mem: &GuestRam| from_guest(chain, mem, &console);
            Box::pin(serve_in_turn(io, drain, Source::always(), serve))
        }
    }
}

/// Prints what a request carries.
fn from_guest(chain: &Chain, mem: &GuestRam, console: &Console) -> Served {
    let mut bytes = vec![0; chain.readable_len().min(MOST) as usize];
    if chain.read(mem, 0, &mut bytes).is_ok() {
        console.push(&bytes);
    }
    Served { written: 0, moved: bytes.len() as u64 }
}

/// Gives the guest what was typed, as far as it fits into its requests.
async fn to_guest(io: QueueIo, drain: Drain, console: Console) -> QueueIo {
    let wake = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)
        .and_then(|wake| Ok((wake.try_clone()?, wake)));
    let wake = match wake {
        Ok((listen, wake)) => {
            console.set_wake(wake);
            Kick::new(listen)
        }
        Err(error) => {
            tracing::error!(%error, "no input for a guest's console");
            return io;
        }
    };
    let typed = console.clone();
    let source = Source { wake: Some(wake), has_more: Box::new(move || typed.has_input()) };
    let serve = move |chain: &Chain, mem: &GuestRam| {
        let input = console.take_input(chain.writable_len().min(MOST) as usize);
        let written = match chain.write(mem, 0, &input) {
            Ok(()) => input.len() as u32,
            Err(_) => 0,
        };
        Served { written, moved: input.len() as u64 }
    };
    serve_in_turn(io, drain, source, serve).await
}

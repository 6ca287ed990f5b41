//! Console device (virtio 1.2 §5.3) with one port: queue 0 to the guest, queue 1 from it.

use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::{Backend, Drain, Kick, QueueIo, Turn, Worker};
use crate::devices::console::Console;

/// Most bytes taken from one request of the guest.
const MOST: u64 = 64 * 1024;

/// The device.
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

    fn features(&self) -> u64 {
        0
    }

    fn queues(&self) -> u16 {
        2
    }

    fn queue_size(&self) -> u16 {
        64
    }

    fn config(&self) -> Vec<u8> {
        vec![0; 12]
    }

    fn serve(self: Arc<Self>, io: QueueIo, drain: Drain) -> Worker {
        let console = self.console.clone();
        if io.index == 0 {
            Box::pin(to_guest(io, drain, console))
        } else {
            Box::pin(from_guest(io, drain, console))
        }
    }
}

async fn from_guest(mut io: QueueIo, mut drain: Drain, console: Console) -> QueueIo {
    let mut turn = Turn::default();
    loop {
        turn.renew().await;
        if *drain.borrow_and_update() {
            return io;
        }
        let mut any = false;
        while !turn.is_over()
            && let Some(chain) = io.pop()
        {
            let mut bytes = vec![0; chain.readable_len().min(MOST) as usize];
            if chain.read(&io.mem, 0, &mut bytes).is_ok() {
                console.push(&bytes);
            }
            io.push(chain.head, 0);
            turn.took(bytes.len() as u64);
            any = true;
        }
        if any {
            io.signal();
        }
        if io.rearm(any) {
            continue;
        }
        tokio::select! {
            () = io.kick.wait() => turn.took(0),
            changed = drain.changed() => if changed.is_err() { return io },
        }
    }
}

async fn to_guest(mut io: QueueIo, mut drain: Drain, console: Console) -> QueueIo {
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
    let mut turn = Turn::default();
    loop {
        turn.renew().await;
        if *drain.borrow_and_update() {
            return io;
        }
        let mut any = false;
        while !turn.is_over()
            && console.has_input()
            && let Some(chain) = io.pop()
        {
            let input = console.take_input(chain.writable_len().min(MOST) as usize);
            let written = match chain.write(&io.mem, 0, &input) {
                Ok(()) => input.len() as u32,
                Err(_) => 0,
            };
            io.push(chain.head, written);
            turn.took(input.len() as u64);
            any = true;
        }
        if any {
            io.signal();
        }
        if io.rearm(any) && console.has_input() {
            continue;
        }
        tokio::select! {
            () = io.kick.wait() => turn.took(0),
            () = wake.wait() => turn.took(0),
            changed = drain.changed() => if changed.is_err() { return io },
        }
    }
}

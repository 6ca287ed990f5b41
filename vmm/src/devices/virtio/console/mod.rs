//! Console device (virtio 1.2 §5.3) with two ports: the console, and the guest agent's by its name.
//!
//! ```text
//!  queue 0, 1   console: to the guest, from it        what a driver without ports has
//!  queue 2, 3   control: to the guest, from it        which ports there are, who has one open
//!  queue 4, 5   guest agent: to the guest, from it
//! ```
//!
//! A size of the console (VIRTIO_CONSOLE_F_SIZE) is not offered: who is attached to a console may be
//! nobody, or several with terminals of different sizes.

pub mod control;

use std::sync::{Arc, Mutex};

use vmm_sys_util::eventfd::EventFd;

use self::control::{AGENT, Control, PORTS};
use super::{
    Backend, Drain, QueueIo, SavedDevice, Worker,
    chain::Chain,
    worker::{Served, Source, serve_in_turn, wake},
};
use crate::{
    devices::{console::Console, port::Port},
    platform::{bus::lock, error::Error, memory::GuestRam},
};

const F_MULTIPORT: u64 = 1 << 1;

/// Most bytes taken from one request of the guest.
const MOST: u64 = 64 * 1024;
/// Bytes looked at of a control message of the guest.
const CONTROL: u64 = 8;

/// The virtio console: what a [`Console`] prints and takes, and a [`Port`], as a device.
#[derive(Debug)]
pub struct VirtioConsole {
    console: Console,
    agent: Port,
    control: Mutex<Control>,
    /// Told when the driver is to be told something.
    wake: Mutex<Option<EventFd>>,
}

impl VirtioConsole {
    /// A device that prints to and reads from `console`, with `agent` as the guest agent's port.
    pub fn new(console: Console, agent: Port) -> Self {
        Self { console, agent, control: Mutex::default(), wake: Mutex::default() }
    }

    /// Changes the state of the ports, and has what comes of it seen.
    fn change(&self, change: impl FnOnce(&mut Control)) {
        let mut control = lock(&self.control);
        change(&mut control);
        self.agent.set_open(control.is_open(AGENT));
        if control.has_more()
            && let Some(wake) = &*lock(&self.wake)
        {
            // Only a counter at its maximum refuses, and that wakes as well.
            let _ = wake.write(1);
        }
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
        F_MULTIPORT
    }

    fn queues(&self) -> u16 {
        2 + 2 * PORTS as u16
    }

    fn config(&self) -> Vec<u8> {
        // Columns, rows, most ports, emergency write.
        let mut config = vec![0; 12];
        config[4..8].copy_from_slice(&(PORTS as u32).to_le_bytes());
        config
    }

    fn serve(self: Arc<Self>, io: QueueIo, drain: Drain) -> Worker {
        match io.index {
            0 => Box::pin(to_console(io, drain, self.console.clone())),
            1 => {
                let console = self.console.clone();
                let serve = move |chain: &Chain, mem: &GuestRam| {
                    from_guest(chain, mem, |bytes| console.push(bytes))
                };
                Box::pin(serve_in_turn(io, drain, Source::always(), serve))
            }
            2 => Box::pin(tell(io, drain, self)),
            3 => {
                let serve = move |chain: &Chain, mem: &GuestRam| {
                    let mut bytes = vec![0; chain.readable_len().min(CONTROL) as usize];
                    if chain.read(mem, 0, &mut bytes).is_ok() {
                        self.change(|control| control.take(&bytes));
                    }
                    Served { written: 0, moved: CONTROL }
                };
                Box::pin(serve_in_turn(io, drain, Source::always(), serve))
            }
            4 => Box::pin(to_agent(io, drain, self.agent.clone())),
            _ => Box::pin(from_agent(io, drain, self.agent.clone())),
        }
    }

    fn reset(&self) {
        self.change(|control| *control = Control::default());
    }

    fn save(&self) -> Option<SavedDevice> {
        Some(SavedDevice::Ports(lock(&self.control).save()))
    }

    fn restore(&self, saved: &SavedDevice) -> Result<(), Error> {
        let SavedDevice::Ports(ports) = saved else {
            return Err(Error::Config("the state of another device for the console".into()));
        };
        let restored = Control::restored(ports)?;
        self.change(|control| *control = restored);
        Ok(())
    }
}

/// Takes what a request carries.
fn from_guest(chain: &Chain, mem: &GuestRam, take: impl Fn(&[u8])) -> Served {
    let mut bytes = vec![0; chain.readable_len().min(MOST) as usize];
    if chain.read(mem, 0, &mut bytes).is_ok() {
        take(&bytes);
    }
    Served { written: 0, moved: bytes.len() as u64 }
}

/// Writes bytes into a request.
fn to_guest(chain: &Chain, mem: &GuestRam, take: impl Fn(usize) -> Vec<u8>) -> Served {
    let bytes = take(chain.writable_len().min(MOST) as usize);
    let written = match chain.write(mem, 0, &bytes) {
        Ok(()) => bytes.len() as u32,
        Err(_) => 0,
    };
    Served { written, moved: bytes.len() as u64 }
}

/// Gives the guest what was typed, as far as it fits into its requests.
async fn to_console(io: QueueIo, drain: Drain, console: Console) -> QueueIo {
    let Some((wake, listen)) = wake() else { return io };
    console.set_wake(wake);
    let typed = console.clone();
    let source = Source { wake: Some(listen), has_more: Box::new(move || typed.has_input()) };
    let serve =
        move |chain: &Chain, mem: &GuestRam| to_guest(chain, mem, |most| console.take_input(most));
    serve_in_turn(io, drain, source, serve).await
}

/// Tells the driver what it is to know of the ports. What does not fit into its request it does not
/// hear: a driver has pages for that.
async fn tell(io: QueueIo, drain: Drain, device: Arc<VirtioConsole>) -> QueueIo {
    let Some((wake, listen)) = wake() else { return io };
    *lock(&device.wake) = Some(wake);
    let looked = device.clone();
    let has_more = Box::new(move || lock(&looked.control).has_more());
    let source = Source { wake: Some(listen), has_more };
    let serve = move |chain: &Chain, mem: &GuestRam| {
        to_guest(chain, mem, |most| {
            let next = lock(&device.control).next_message().unwrap_or_default();
            if next.len() <= most { next } else { Vec::new() }
        })
    };
    serve_in_turn(io, drain, source, serve).await
}

/// Gives the agent what the host has sent.
async fn to_agent(io: QueueIo, drain: Drain, port: Port) -> QueueIo {
    let Some((wake, listen)) = wake() else { return io };
    port.set_wake_to(wake);
    let waits = port.clone();
    let source = Source { wake: Some(listen), has_more: Box::new(move || waits.has_for_guest()) };
    let serve =
        move |chain: &Chain, mem: &GuestRam| to_guest(chain, mem, |most| port.take_for_guest(most));
    serve_in_turn(io, drain, source, serve).await
}

/// Takes what the agent sends, as long as there is room for it.
async fn from_agent(io: QueueIo, drain: Drain, port: Port) -> QueueIo {
    let Some((wake, listen)) = wake() else { return io };
    port.set_wake_from(wake);
    let room = port.clone();
    let source = Source { wake: Some(listen), has_more: Box::new(move || room.has_room()) };
    let serve = move |chain: &Chain, mem: &GuestRam| {
        from_guest(chain, mem, |bytes| port.push_from_guest(bytes))
    };
    serve_in_turn(io, drain, source, serve).await
}

//! The virtio console: lines out, commands in.

use core::{cell::UnsafeCell, fmt};

use crate::{
    machine::{self, CONSOLE_VECTOR},
    pci,
    virtq::{Queue, RingCell},
};

static INPUT_RING: RingCell = RingCell::new();
static OUTPUT_RING: RingCell = RingCell::new();

const QUEUE: usize = 64;
const OUTPUT: usize = 1024;
const INPUT: usize = 64;

struct Buffers(UnsafeCell<([u8; OUTPUT], [u8; INPUT])>);

// SAFETY: used by the one console on the one processor that works.
unsafe impl Sync for Buffers {}

static BUFFERS: Buffers = Buffers(UnsafeCell::new(([0; OUTPUT], [0; INPUT])));

/// A console.
pub struct Console {
    input: Queue<1>,
    output: Queue<1>,
    busy: bool,
    line: [u8; OUTPUT],
    len: usize,
    command: [u8; INPUT],
    command_len: usize,
}

impl Console {
    /// Finds the device.
    pub fn new() -> Result<Self, &'static str> {
        let device = pci::find(3).ok_or("no virtio console")?;
        device.negotiate(1 << 32).ok_or("the console is not a modern one")?;
        device.enable_msix(CONSOLE_VECTOR);
        let mut input = Queue::new(&INPUT_RING, QUEUE);
        let mut output = Queue::new(&OUTPUT_RING, QUEUE);
        input.set_doorbell(device.set_queue(0, QUEUE as u16, input.addresses()));
        output.set_doorbell(device.set_queue(1, QUEUE as u16, output.addresses()));
        device.ready();
        let mut this = Self {
            input,
            output,
            busy: false,
            line: [0; OUTPUT],
            len: 0,
            command: [0; INPUT],
            command_len: 0,
        };
        this.offer_input();
        Ok(this)
    }

    fn offer_input(&mut self) {
        let address = BUFFERS.0.get() as u64 + OUTPUT as u64;
        self.input.submit(0, &[(address, INPUT as u32, true)]);
        self.input.kick(0);
    }

    /// Sends what has been collected and waits until the device has taken it.
    fn send(&mut self) {
        while self.busy {
            if self.output.finished().is_some() {
                self.busy = false;
            }
            core::hint::spin_loop();
        }
        // SAFETY: nothing is in flight, so the buffer is ours.
        let buffer = unsafe { &mut (*BUFFERS.0.get()).0 };
        buffer[..self.len].copy_from_slice(&self.line[..self.len]);
        self.output.submit(0, &[(buffer.as_ptr() as u64, self.len as u32, false)]);
        self.output.kick(1);
        self.busy = true;
        self.len = 0;
    }

    /// Waits until everything printed has been taken.
    pub fn drain(&mut self) {
        while self.busy {
            if self.output.finished().is_some() {
                self.busy = false;
            }
            core::hint::spin_loop();
        }
    }

    /// Whether `stop` was typed, or the power button pressed.
    pub fn stop_wanted(&mut self) -> bool {
        let mut stop = machine::power_button();
        while let Some((_, len)) = self.input.finished() {
            // SAFETY: the buffer was given back by the device.
            let bytes = unsafe { (*BUFFERS.0.get()).1 };
            for byte in &bytes[..(len as usize).min(INPUT)] {
                if matches!(byte, b'\n' | b'\r') {
                    stop |= &self.command[..self.command_len] == b"stop";
                    self.command_len = 0;
                } else if self.command_len < INPUT {
                    self.command[self.command_len] = *byte;
                    self.command_len += 1;
                }
            }
            self.offer_input();
        }
        stop
    }
}

impl fmt::Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            self.line[self.len] = byte;
            self.len += 1;
            if byte == b'\n' || self.len == OUTPUT {
                self.send();
            }
        }
        Ok(())
    }
}

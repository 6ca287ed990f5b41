//! The 16550 serial port, from `vm-superio`, joined to a [`Console`].

use std::io;

use serde::{Deserialize, Serialize};
use vm_superio::{Serial, SerialState, Trigger, serial::NoEvents};
use vmm_sys_util::eventfd::EventFd;

use super::console::Console;
use crate::platform::{bus::BusDevice, error::Error};

/// The port's interrupt: an eventfd bound to its line.
#[derive(Debug)]
pub struct Line(pub EventFd);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// Saved form: the registers of a 16550 and its receive FIFO.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SavedSerial {
    registers: [u8; 9],
    fifo: Vec<u8>,
}

/// The serial port of a machine, COM1.
pub struct SerialPort {
    serial: Serial<Line, NoEvents, Console>,
    console: Console,
}

impl std::fmt::Debug for SerialPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SerialPort")
    }
}

impl SerialPort {
    /// A port that interrupts through `line` and prints to `console`.
    pub fn new(line: EventFd, console: Console) -> Self {
        Self { serial: Serial::new(Line(line), console.clone()), console }
    }

    /// Moves waiting input into the receive FIFO as far as it has room.
    pub fn refill(&mut self) {
        let serial = &mut self.serial;
        let room = serial.fifo_capacity();
        if room == 0 || !self.console.has_input() {
            return;
        }
        let input = self.console.take_input(room);
        let taken = serial.enqueue_raw_bytes(&input).unwrap_or(0);
        self.console.put_back(&input[taken..]);
    }

    /// The registers as they are now.
    pub fn save(&self) -> SavedSerial {
        let state = self.serial.state();
        let registers = [
            state.baud_divisor_low,
            state.baud_divisor_high,
            state.interrupt_enable,
            state.interrupt_identification,
            state.line_control,
            state.line_status,
            state.modem_control,
            state.modem_status,
            state.scratch,
        ];
        SavedSerial { registers, fifo: state.in_buffer }
    }

    /// Puts saved registers in place.
    pub fn restore(&mut self, saved: &SavedSerial) -> Result<(), Error> {
        let [low, high, enable, identification, line, status, modem, modem_status, scratch] =
            saved.registers;
        let state = SerialState {
            baud_divisor_low: low,
            baud_divisor_high: high,
            interrupt_enable: enable,
            interrupt_identification: identification,
            line_control: line,
            line_status: status,
            modem_control: modem,
            modem_status,
            scratch,
            in_buffer: saved.fifo.clone(),
        };
        let line =
            self.serial.interrupt_evt().0.try_clone().map_err(Error::os("duplicate an eventfd"))?;
        let new = Serial::from_state(&state, Line(line), NoEvents, self.console.clone())
            .map_err(|error| Error::Config(format!("serial port state: {error:?}")))?;
        self.serial = new;
        Ok(())
    }
}

impl BusDevice for SerialPort {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let (serial, [byte]) = (&mut self.serial, data) {
            *byte = serial.read(offset as u8);
        }
        if offset == 0 {
            self.refill();
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let (serial, [byte]) = (&mut self.serial, data)
            && let Err(error) = serial.write(offset as u8, *byte)
        {
            tracing::debug!(?error, "serial port");
        }
    }
}

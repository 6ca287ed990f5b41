//! The control messages of a console with ports (virtio 1.2 §5.3.6.2), without queues: what the driver
//! says, and what it is still to be told.
//!
//! ```text
//!  driver: DEVICE_READY ──► each port: ADD
//!  driver: PORT_READY p ──► port p: CONSOLE if it is the console, NAME if it has one, OPEN
//!  driver: PORT_OPEN p  ──► a program has opened or closed port p
//! ```
//!
//! What is to be told is a set of bits for each port and no queue: a driver that asks again and again
//! and takes no answer makes nothing grow.

use serde::{Deserialize, Serialize};

use crate::platform::error::Error;

/// Ports of a device: the console, and the guest agent's.
pub const PORTS: usize = 2;
/// The port that is the console.
pub const CONSOLE: usize = 0;
/// The port of the guest agent.
pub const AGENT: usize = 1;
/// The name by which the guest agent finds its port.
pub const AGENT_NAME: &str = "org.qemu.guest_agent.0";

/// Bytes of a message without a name: id, event, value.
const MESSAGE: usize = 8;

const DEVICE_READY: u16 = 0;
const DEVICE_ADD: u16 = 1;
const PORT_READY: u16 = 3;
const CONSOLE_PORT: u16 = 4;
const PORT_OPEN: u16 = 6;
const PORT_NAME: u16 = 7;

/// What a port's driver is to be told, in the order in which it is.
const ADD: u8 = 1;
const IS_CONSOLE: u8 = 2;
const NAME: u8 = 4;
const OPEN: u8 = 8;
const ALL: u8 = ADD | IS_CONSOLE | NAME | OPEN;

/// The state of a device's ports.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Control {
    to_tell: [u8; PORTS],
    open: [bool; PORTS],
}

/// The ports of a device as they are moved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedPorts {
    to_tell: Vec<u8>,
    open: Vec<bool>,
}

impl Control {
    /// Takes a message of the driver. One that makes no sense changes nothing.
    pub fn take(&mut self, message: &[u8]) {
        let Some((message, _)) = message.split_first_chunk::<MESSAGE>() else { return };
        let [a, b, c, d, event @ .., low, high] = *message;
        let id = usize::try_from(u32::from_le_bytes([a, b, c, d])).unwrap_or(usize::MAX);
        let value = u16::from_le_bytes([low, high]);
        match u16::from_le_bytes(event) {
            DEVICE_READY if value == 1 => {
                self.to_tell = [ADD; PORTS];
                self.open = [false; PORTS];
            }
            PORT_READY if value == 1 && id < PORTS => {
                self.to_tell[id] |= OPEN | if id == CONSOLE { IS_CONSOLE } else { NAME };
            }
            PORT_OPEN if id < PORTS => self.open[id] = value != 0,
            _ => {}
        }
    }

    /// Whether the driver is to be told something.
    pub fn has_more(&self) -> bool {
        self.to_tell != [0; PORTS]
    }

    /// The next message to the driver, which is told it by that.
    pub fn next_message(&mut self) -> Option<Vec<u8>> {
        let port = self.to_tell.iter().position(|bits| *bits != 0)?;
        let bits = &mut self.to_tell[port];
        let what = *bits & bits.wrapping_neg();
        *bits &= !what;
        let (event, name) = match what {
            ADD => (DEVICE_ADD, ""),
            IS_CONSOLE => (CONSOLE_PORT, ""),
            NAME => (PORT_NAME, AGENT_NAME),
            _ => (PORT_OPEN, ""),
        };
        let mut message = (port as u32).to_le_bytes().to_vec();
        message.extend(event.to_le_bytes());
        message.extend(1u16.to_le_bytes());
        message.extend(name.as_bytes());
        Some(message)
    }

    /// Whether a program in the guest has a port open.
    pub fn is_open(&self, port: usize) -> bool {
        self.open.get(port).copied().unwrap_or(false)
    }

    /// The ports as they are now.
    pub fn save(&self) -> SavedPorts {
        SavedPorts { to_tell: self.to_tell.to_vec(), open: self.open.to_vec() }
    }

    /// Ports as they were saved.
    ///
    /// # Errors
    /// [`Error::Config`] if they are another device's.
    pub fn restored(saved: &SavedPorts) -> Result<Self, Error> {
        let to_tell = <[u8; PORTS]>::try_from(saved.to_tell.as_slice());
        let open = <[bool; PORTS]>::try_from(saved.open.as_slice());
        match (to_tell, open) {
            (Ok(to_tell), Ok(open)) if to_tell.iter().all(|bits| bits & !ALL == 0) => {
                Ok(Self { to_tell, open })
            }
            _ => Err(Error::Config("saved ports of another console device".into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(id: u32, event: u16, value: u16) -> Vec<u8> {
        let mut bytes = id.to_le_bytes().to_vec();
        bytes.extend(event.to_le_bytes());
        bytes.extend(value.to_le_bytes());
        bytes
    }

    fn told(control: &mut Control) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| control.next_message()).collect()
    }

    #[test]
    fn a_driver_learns_of_the_console_and_of_the_agents_port() {
        let mut control = Control::default();
        assert!(!control.has_more());
        control.take(&message(u32::MAX, DEVICE_READY, 1));
        let added = [message(0, DEVICE_ADD, 1), message(1, DEVICE_ADD, 1)];
        assert_eq!(told(&mut control), added);
        control.take(&message(0, PORT_READY, 1));
        let console = [message(0, CONSOLE_PORT, 1), message(0, PORT_OPEN, 1)];
        assert_eq!(told(&mut control), console);
        control.take(&message(1, PORT_READY, 1));
        let name = [message(1, PORT_NAME, 1), AGENT_NAME.as_bytes().to_vec()].concat();
        assert_eq!(told(&mut control), [name, message(1, PORT_OPEN, 1)]);
        control.take(&message(1, PORT_OPEN, 1));
        assert!(control.is_open(AGENT) && !control.is_open(CONSOLE));
        control.take(&message(1, PORT_OPEN, 0));
        assert!(!control.is_open(AGENT));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        /// Whatever a driver says, it is told a few things and no more, and what is saved is the same
        /// where it is restored.
        #[test]
        fn any_driver_is_told_little(
            messages in prop::collection::vec(
                (0u32..4, 0u16..9, 0u16..3).prop_map(|(id, event, value)| message(id, event, value)),
                0..200,
            ),
        ) {
            let mut control = Control::default();
            for message in &messages {
                control.take(message);
            }
            prop_assert_eq!(&Control::restored(&control.save()).unwrap(), &control);
            prop_assert!(told(&mut control).len() <= 4 * PORTS);
        }
    }
}

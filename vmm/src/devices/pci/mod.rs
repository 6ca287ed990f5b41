//! PCI: configuration mechanism 1, one bus, a host bridge and functions behind it.

pub mod config;
pub mod msix;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use config::ConfigSpace;

use crate::platform::bus::{BusDevice, lock};

/// A function on the bus.
pub trait PciFunction: Send {
    /// Reads configuration space; `offset + data.len() <= 256`.
    fn config_read(&mut self, offset: usize, data: &mut [u8]);
    /// Writes configuration space; `offset + data.len() <= 256`.
    fn config_write(&mut self, offset: usize, data: &[u8]);
}

/// The host bridge: says what it is and does nothing else.
#[derive(Debug)]
struct HostBridge(ConfigSpace);

impl PciFunction for HostBridge {
    fn config_read(&mut self, offset: usize, data: &mut [u8]) {
        self.0.read(offset, data);
    }

    fn config_write(&mut self, offset: usize, data: &[u8]) {
        self.0.write(offset, data);
    }
}

/// Ports 0xcf8–0xcff: the address register and the window.
pub struct ConfigPorts {
    /// The address register.
    pub address: u32,
    /// By device and function: `device << 3 | function`.
    functions: BTreeMap<u8, Arc<Mutex<dyn PciFunction>>>,
}

impl std::fmt::Debug for ConfigPorts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConfigPorts")
            .field("address", &self.address)
            .field("functions", &self.functions.keys())
            .finish_non_exhaustive()
    }
}

impl Default for ConfigPorts {
    fn default() -> Self {
        // Red Hat's generic host bridge; class 06 00 (host bridge).
        let bridge = HostBridge(ConfigSpace::new(0x1b36, 0x0008, 0x06_00_00));
        let mut ports = Self::empty();
        ports.put(0, 0, Arc::new(Mutex::new(bridge)));
        ports
    }
}

impl ConfigPorts {
    /// A bus without any function.
    pub fn empty() -> Self {
        Self { address: 0, functions: BTreeMap::new() }
    }

    /// Puts a function at a device and function number of bus 0.
    pub fn put(&mut self, device: u8, function: u8, it: Arc<Mutex<dyn PciFunction>>) {
        self.functions.insert(device << 3 | function & 7, it);
    }

    /// The device number after the last one that is taken.
    pub fn next_device(&self) -> u8 {
        self.functions.keys().next_back().map_or(0, |last| (last >> 3) + 1)
    }

    /// Adds a function at the next device of bus 0.
    pub fn add(&mut self, function: Arc<Mutex<dyn PciFunction>>) {
        self.put(self.next_device(), 0, function);
    }

    /// The function and register that the address register and a window offset select.
    fn target(&self, window: usize) -> Option<(&Arc<Mutex<dyn PciFunction>>, usize)> {
        let address = self.address;
        if address >> 31 == 0 || (address >> 16) & 0xff != 0 {
            return None;
        }
        let slot = self.functions.get(&((address >> 8) as u8))?;
        Some((slot, (address as usize & 0xfc) + window))
    }
}

impl BusDevice for ConfigPorts {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if offset < 4 {
            let bytes = self.address.to_le_bytes();
            let from = offset as usize;
            for (index, byte) in data.iter_mut().enumerate() {
                *byte = bytes.get(from + index).copied().unwrap_or(0xff);
            }
        } else if offset as usize + data.len() <= 8
            && let Some((function, register)) = self.target(offset as usize - 4)
        {
            lock(function).config_read(register, data);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if offset == 0 && data.len() == 4 {
            self.address = u32::from_le_bytes([data[0], data[1], data[2], data[3]]);
        } else if offset >= 4
            && offset as usize + data.len() <= 8
            && let Some((function, register)) = self.target(offset as usize - 4)
        {
            lock(function).config_write(register, data);
        }
    }
}

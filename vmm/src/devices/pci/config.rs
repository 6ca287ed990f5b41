//! A function's 256 bytes of configuration space with a mask of the bits that can be written.

use serde::{Deserialize, Serialize};

/// Command register.
pub const COMMAND: usize = 0x04;
/// Command bit: the function answers memory accesses.
pub const COMMAND_MEMORY: u8 = 0x02;
/// First base address register.
pub const BAR0: usize = 0x10;
const STATUS: usize = 0x06;
const STATUS_CAPABILITIES: u8 = 0x10;
const CAPABILITIES: usize = 0x34;
const FIRST_CAPABILITY: usize = 0x40;

/// The configuration space of a function (PCI 3.0 chapter 6).
#[derive(Debug, Clone)]
pub struct ConfigSpace {
    bytes: [u8; 256],
    writable: [u8; 256],
    next_capability: usize,
    last_capability: usize,
}

/// Saved form: the bytes, 256 of them.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SavedConfig(Vec<u8>);

impl ConfigSpace {
    /// A type 0 header; `class` is class, subclass and interface, highest byte first.
    pub fn new(vendor: u16, device: u16, class: u32) -> Self {
        let mut bytes = [0; 256];
        bytes[0..2].copy_from_slice(&vendor.to_le_bytes());
        bytes[2..4].copy_from_slice(&device.to_le_bytes());
        bytes[8] = 1;
        bytes[9..12].copy_from_slice(&class.to_le_bytes()[..3]);
        bytes[0x2c..0x2e].copy_from_slice(&vendor.to_le_bytes());
        bytes[0x2e..0x30].copy_from_slice(&device.to_le_bytes());
        let mut writable = [0; 256];
        writable[COMMAND..COMMAND + 2].copy_from_slice(&[0x06, 0x04]);
        writable[0x3c] = 0xff;
        Self { bytes, writable, next_capability: FIRST_CAPABILITY, last_capability: CAPABILITIES }
    }

    /// Says whose product the function is (subsystem vendor and subsystem).
    #[must_use]
    pub fn of_subsystem(mut self, vendor: u16, subsystem: u16) -> Self {
        self.bytes[0x2c..0x2e].copy_from_slice(&vendor.to_le_bytes());
        self.bytes[0x2e..0x30].copy_from_slice(&subsystem.to_le_bytes());
        self
    }

    /// Puts `bytes` at `offset`, and lets the bits of `writable` be written there.
    #[must_use]
    pub fn with(mut self, offset: usize, bytes: &[u8], writable: &[u8]) -> Self {
        self.bytes[offset..offset + bytes.len()].copy_from_slice(bytes);
        self.writable[offset..offset + writable.len()].copy_from_slice(writable);
        self
    }

    /// The little-endian 16 bits at `offset`.
    pub fn word(&self, offset: usize) -> u16 {
        u16::from_le_bytes([self.bytes[offset], self.bytes[offset + 1]])
    }

    /// Makes BAR 0 a 32-bit memory window of `size` bytes (a power of two) at `address`.
    pub fn set_bar0(&mut self, address: u32, size: u32) {
        self.bytes[BAR0..BAR0 + 4].copy_from_slice(&address.to_le_bytes());
        self.writable[BAR0..BAR0 + 4].copy_from_slice(&(!(size - 1)).to_le_bytes());
    }

    /// Address of BAR 0 now.
    pub fn bar0(&self) -> u32 {
        u32::from_le_bytes([
            self.bytes[BAR0],
            self.bytes[BAR0 + 1],
            self.bytes[BAR0 + 2],
            self.bytes[BAR0 + 3],
        ]) & !0xf
    }

    /// Whether memory accesses are answered.
    pub fn memory_enabled(&self) -> bool {
        self.bytes[COMMAND] & COMMAND_MEMORY != 0
    }

    /// Appends a capability: `id`, then (after the link byte) `body`, of which the bits in
    /// `writable` can be written. Returns its offset.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> usize {
        let at = self.next_capability;
        self.bytes[STATUS] |= STATUS_CAPABILITIES;
        self.bytes[self.last_capability] = at as u8;
        self.bytes[at] = id;
        self.bytes[at + 2..at + 2 + body.len()].copy_from_slice(body);
        self.writable[at + 2..at + 2 + writable.len()].copy_from_slice(writable);
        self.last_capability = at + 1;
        self.next_capability = (at + 2 + body.len()).next_multiple_of(4);
        at
    }

    /// Reads; past the end reads as ones.
    pub fn read(&self, offset: usize, data: &mut [u8]) {
        for (index, byte) in data.iter_mut().enumerate() {
            *byte = self.bytes.get(offset + index).copied().unwrap_or(0xff);
        }
    }

    /// Writes the writable bits.
    pub fn write(&mut self, offset: usize, data: &[u8]) {
        for (index, value) in data.iter().enumerate() {
            if let (Some(byte), Some(mask)) =
                (self.bytes.get_mut(offset + index), self.writable.get(offset + index))
            {
                *byte = (*byte & !mask) | (value & mask);
            }
        }
    }

    /// The bytes as they are now.
    pub fn save(&self) -> SavedConfig {
        SavedConfig(self.bytes.to_vec())
    }

    /// Restores the writable bits.
    pub fn restore(&mut self, saved: &SavedConfig) {
        self.write(0, &saved.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_address_tells_its_size_when_ones_are_written() {
        let mut config = ConfigSpace::new(0x1af4, 0x1042, 0x01_80_00);
        config.set_bar0(0xc000_0000, 0x8000);
        config.write(BAR0, &[0xff; 4]);
        let mut size = [0; 4];
        config.read(BAR0, &mut size);
        assert_eq!(u32::from_le_bytes(size), 0xffff_8000);
        config.write(BAR0, &0xd000_0000u32.to_le_bytes());
        assert_eq!(config.bar0(), 0xd000_0000);
    }

    #[test]
    fn capabilities_form_a_list() {
        let mut config = ConfigSpace::new(1, 2, 3);
        let first = config.add_capability(9, &[1, 2, 3, 4, 5, 6], &[]);
        let second = config.add_capability(0x11, &[0; 10], &[0, 0xc0]);
        let mut byte = [0];
        config.read(CAPABILITIES, &mut byte);
        assert_eq!(usize::from(byte[0]), first);
        config.read(first + 1, &mut byte);
        assert_eq!(usize::from(byte[0]), second);
        config.write(second + 2, &[0xff, 0xff]);
        config.read(second + 3, &mut byte);
        assert_eq!(byte[0], 0xc0);
    }
}

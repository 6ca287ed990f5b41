//! The firmware's configuration: items by number and files by name, read through three ports
//! (QEMU's `docs/specs/fw_cfg`).
//!
//! ```text
//!  0x510  16 bits, written: selects an item and goes to its beginning
//!  0x511   8 bits, read: the next byte of it
//!  0x514  64 bits, big-endian, written in halves: address of a DMA descriptor in guest memory
//!           control (item << 16 | skip, select, read, error), length, address, all big-endian
//! ```
//!
//! Guests can change nothing here: a write by DMA is answered with an error. Descriptors are the
//! guest's; a transfer is bounded, and one that does not lie in guest memory is an error in its control
//! word. Past the end of an item, and in items that are not there, all bytes are 0.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};
use vm_memory::{Bytes, GuestAddress};

use crate::platform::{bus::BusDevice, memory::GuestRam};

/// Bytes of the range of ports that a device is registered for.
pub const PORTS: u64 = 12;
const DATA: u64 = 1;
const DMA: u64 = 4;

/// What the DMA ports read as, and the first item: that this is here.
const DMA_SIGNATURE: [u8; 8] = *b"QEMU CFG";
const SIGNATURE: u16 = 0;
const ID: u16 = 1;
const DIRECTORY: u16 = 0x19;
const FIRST_FILE: u16 = 0x20;
/// The ports 0x510 and 0x511, and DMA.
const FEATURES: u32 = 1 | 2;

const CONTROL_ERROR: u32 = 1;
const CONTROL_READ: u32 = 2;
const CONTROL_SKIP: u32 = 4;
const CONTROL_SELECT: u32 = 8;
const CONTROL_WRITE: u32 = 16;

/// Most bytes of one transfer. No item is as long; a guest that asks for more is mistaken, and must
/// not keep its vCPU here while others wait for it.
const MOST: u32 = 16 << 20;
/// Longest name of a file, its terminator not counted.
const NAME: usize = 55;

/// What is selected, as it is moved. The items are made anew from the VM's definition.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedFwCfg {
    selected: u16,
    offset: u32,
    dma_high: u32,
}

/// The device. Its items do not change once the guest runs.
#[derive(Debug)]
pub struct FwCfg {
    ram: Arc<GuestRam>,
    items: BTreeMap<u16, Vec<u8>>,
    files: Vec<(String, u16)>,
    at: SavedFwCfg,
}

impl FwCfg {
    /// A device without files, whose DMA goes to `ram`.
    pub fn new(ram: Arc<GuestRam>) -> Self {
        let items = BTreeMap::from([
            (SIGNATURE, DMA_SIGNATURE[..4].to_vec()),
            (ID, FEATURES.to_le_bytes().to_vec()),
            (DIRECTORY, 0u32.to_be_bytes().to_vec()),
        ]);
        Self { ram, items, files: Vec::new(), at: SavedFwCfg::default() }
    }

    /// Adds an item with a number of its own.
    pub fn add(&mut self, number: u16, content: impl Into<Vec<u8>>) {
        self.items.insert(number, content.into());
    }

    /// Adds a file; its name may have 55 characters of ASCII, and is cut there.
    pub fn add_file(&mut self, name: &str, content: impl Into<Vec<u8>>) {
        let number = FIRST_FILE + self.files.len() as u16;
        let name: String = name.chars().filter(char::is_ascii).take(NAME).collect();
        self.files.push((name, number));
        self.items.insert(number, content.into());
        self.items.insert(DIRECTORY, self.directory());
    }

    /// A file's content, if it is there.
    pub fn file(&self, name: &str) -> Option<&[u8]> {
        let (_, number) = self.files.iter().find(|file| file.0 == name)?;
        self.items.get(number).map(Vec::as_slice)
    }

    /// Count, then 64 bytes a file: length, number, two bytes of nothing, name.
    fn directory(&self) -> Vec<u8> {
        let mut bytes = (self.files.len() as u32).to_be_bytes().to_vec();
        for (name, number) in &self.files {
            let len = self.items.get(number).map_or(0, Vec::len);
            bytes.extend((len as u32).to_be_bytes());
            bytes.extend(number.to_be_bytes());
            bytes.extend([0; 2]);
            bytes.extend(name.as_bytes());
            bytes.resize(bytes.len() + NAME + 1 - name.len(), 0);
        }
        bytes
    }

    /// What is selected now.
    pub fn save(&self) -> SavedFwCfg {
        self.at.clone()
    }

    /// Selects what was selected when `saved` was read.
    pub fn restore(&mut self, saved: &SavedFwCfg) {
        self.at = saved.clone();
    }

    fn select(&mut self, number: u16) {
        self.at.selected = number;
        self.at.offset = 0;
    }

    /// What is left of the selected item.
    fn rest(&self) -> &[u8] {
        let item = self.items.get(&self.at.selected);
        item.and_then(|item| item.get(self.at.offset as usize..)).unwrap_or_default()
    }

    fn next(&mut self) -> u8 {
        let byte = self.rest().first().copied().unwrap_or(0);
        self.at.offset = self.at.offset.saturating_add(1);
        byte
    }

    /// Does what the descriptor at `address` says, and says in its control word how that went.
    fn transfer(&mut self, address: u64) {
        let at = GuestAddress(address);
        let mut descriptor = [0; 16];
        if self.ram.read_slice(&mut descriptor, at).is_err() {
            // Nowhere to say so.
            tracing::debug!(address, "a firmware's DMA descriptor is not in memory");
            return;
        }
        let word =
            |at: usize| u32::from_be_bytes(std::array::from_fn(|index| descriptor[at + index]));
        let (control, len) = (word(0), word(4));
        let to = u64::from(word(8)) << 32 | u64::from(word(12));
        if control & CONTROL_SELECT != 0 {
            self.select((control >> 16) as u16);
        }
        let done = if control & CONTROL_READ != 0 {
            self.read_to(to, len)
        } else if control & CONTROL_WRITE != 0 {
            false
        } else {
            if control & CONTROL_SKIP != 0 {
                self.at.offset = self.at.offset.saturating_add(len);
            }
            true
        };
        let answer = if done { 0 } else { CONTROL_ERROR };
        // It was read from there, so it is memory.
        let _ = self.ram.write_slice(&answer.to_be_bytes(), at);
    }

    /// Copies the next `len` bytes to guest memory; whether there is room for all of them.
    fn read_to(&mut self, to: u64, len: u32) -> bool {
        const ZEROES: [u8; 4096] = [0; 4096];
        if len > MOST || to.checked_add(u64::from(len)).is_none() {
            return false;
        }
        let rest = self.rest();
        let known = rest.len().min(len as usize);
        let mut good = self.ram.write_slice(&rest[..known], GuestAddress(to)).is_ok();
        let mut at = known;
        while good && at < len as usize {
            let count = ZEROES.len().min(len as usize - at);
            good = self.ram.write_slice(&ZEROES[..count], GuestAddress(to + at as u64)).is_ok();
            at += count;
        }
        self.at.offset = self.at.offset.saturating_add(len);
        good
    }
}

impl BusDevice for FwCfg {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        match offset {
            DATA => data.iter_mut().for_each(|byte| *byte = self.next()),
            DMA.. => {
                let from = (offset - DMA) as usize;
                for (index, byte) in data.iter_mut().enumerate() {
                    *byte = DMA_SIGNATURE.get(from + index).copied().unwrap_or(0xff);
                }
            }
            _ => data.fill(0),
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        match (offset, data) {
            (0, [low, high]) => self.select(u16::from_le_bytes([*low, *high])),
            (DMA, [a, b, c, d]) => self.at.dma_high = u32::from_be_bytes([*a, *b, *c, *d]),
            (8, [a, b, c, d]) => {
                let high = std::mem::take(&mut self.at.dma_high);
                let low = u32::from_be_bytes([*a, *b, *c, *d]);
                self.transfer(u64::from(high) << 32 | u64::from(low));
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::platform::memory;

    fn device() -> FwCfg {
        let mut device = FwCfg::new(memory::allocate(1 << 20).unwrap());
        device.add(5, 3u16.to_le_bytes());
        device.add_file("etc/one", *b"first");
        device.add_file("etc/two", *b"");
        device
    }

    fn bytes(device: &mut FwCfg, number: u16, count: usize) -> Vec<u8> {
        device.write(0, &number.to_le_bytes());
        let mut bytes = vec![0; count];
        bytes.chunks_mut(1).for_each(|byte| device.read(DATA, byte));
        bytes
    }

    /// Has the device do what a descriptor says; its control word afterwards.
    fn dma(device: &mut FwCfg, control: u32, len: u32, to: u64) -> u32 {
        let mut descriptor = control.to_be_bytes().to_vec();
        descriptor.extend(len.to_be_bytes());
        descriptor.extend(to.to_be_bytes());
        device.ram.write_slice(&descriptor, GuestAddress(0x100)).unwrap();
        device.write(8, &0x100u32.to_be_bytes());
        u32::from_be(device.ram.read_obj(GuestAddress(0x100)).unwrap())
    }

    #[test]
    fn items_are_read_from_their_beginning_and_end_in_zeroes() {
        let mut device = device();
        assert_eq!(bytes(&mut device, SIGNATURE, 6), b"QEMU\0\0");
        assert_eq!(bytes(&mut device, ID, 4), 3u32.to_le_bytes());
        assert_eq!(bytes(&mut device, 5, 3), [3, 0, 0]);
        assert_eq!(bytes(&mut device, 0x777, 2), [0, 0]);
        let directory = bytes(&mut device, DIRECTORY, 4 + 128);
        assert_eq!(directory[..4], [0, 0, 0, 2]);
        assert_eq!(directory[4..12], [0, 0, 0, 5, 0, 0x20, 0, 0]);
        assert_eq!(&directory[12..20], b"etc/one\0");
        assert_eq!(bytes(&mut device, 0x20, 5), b"first");
        let mut signature = [0; 8];
        device.read(DMA, &mut signature);
        assert_eq!(&signature, b"QEMU CFG");
    }

    #[test]
    fn a_transfer_reads_skips_and_selects() {
        let mut device = device();
        let read = 0x20 << 16 | CONTROL_SELECT | CONTROL_READ;
        device.ram.write_slice(&[0xee; 16], GuestAddress(0x200)).unwrap();
        assert_eq!(dma(&mut device, read, 8, 0x200), 0);
        let mut got = [0; 9];
        device.ram.read_slice(&mut got, GuestAddress(0x200)).unwrap();
        assert_eq!(&got, b"first\0\0\0\xee");
        assert_eq!(dma(&mut device, 0x20 << 16 | CONTROL_SELECT | CONTROL_SKIP, 3, 0), 0);
        assert_eq!(dma(&mut device, CONTROL_READ, 2, 0x200), 0);
        device.ram.read_slice(&mut got[..2], GuestAddress(0x200)).unwrap();
        assert_eq!(&got[..2], b"st");
        let saved = device.save();
        assert_eq!(saved, SavedFwCfg { selected: 0x20, offset: 5, dma_high: 0 });
    }

    #[test]
    fn what_a_guest_may_not_is_an_error_and_nothing_else() {
        let mut device = device();
        let read = 0x20 << 16 | CONTROL_SELECT | CONTROL_READ;
        assert_eq!(dma(&mut device, CONTROL_WRITE, 1, 0x200), CONTROL_ERROR);
        assert_eq!(dma(&mut device, read, MOST + 1, 0x200), CONTROL_ERROR);
        assert_eq!(dma(&mut device, read, 8, (1 << 20) - 4), CONTROL_ERROR);
        assert_eq!(dma(&mut device, read, 8, u64::MAX - 3), CONTROL_ERROR);
        // A descriptor that is not in memory.
        device.write(DMA, &1u32.to_be_bytes());
        device.write(8, &0u32.to_be_bytes());
        assert_eq!(bytes(&mut device, 0x20, 5), b"first");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        /// However an item is read, in whatever pieces, its bytes come in order and then zeroes.
        #[test]
        fn pieces_are_in_order(
            content in prop::collection::vec(any::<u8>(), 0..200),
            pieces in prop::collection::vec((0..3u8, 0..50u32), 1..20),
        ) {
            let mut device = device();
            device.add_file("etc/it", content.clone());
            device.write(0, &0x22u16.to_le_bytes());
            let at = |index: u32| content.get(index as usize).copied().unwrap_or(0);
            let mut next = 0;
            for (kind, len) in pieces {
                let mut got = vec![0; len as usize];
                match kind {
                    0 => got.chunks_mut(1).for_each(|byte| device.read(DATA, byte)),
                    1 => {
                        prop_assert_eq!(dma(&mut device, CONTROL_READ, len, 0x200), 0);
                        device.ram.read_slice(&mut got, GuestAddress(0x200)).unwrap();
                    }
                    _ => {
                        prop_assert_eq!(dma(&mut device, CONTROL_SKIP, len, 0), 0);
                        got = (next..next + len).map(at).collect();
                    }
                }
                prop_assert_eq!(got, (next..next + len).map(at).collect::<Vec<_>>());
                next += len;
            }
        }
    }
}

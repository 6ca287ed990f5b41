//! MSI-X: the vector table, masks and pending bits (PCI Local Bus 3.0 §6.8.2).

use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::EventFd;

use crate::platform::{
    bus::lock,
    error::Error,
    irq::{IrqRouter, Msi},
};

/// A vector number that means none.
pub const NO_VECTOR: u16 = 0xffff;
const ENTRY: usize = 16;
const MASKED: u32 = 1;

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Entry {
    address: u64,
    data: u32,
    control: u32,
}

/// The table of vectors as it is moved.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SavedMsix {
    enabled: bool,
    function_masked: bool,
    entries: Vec<Entry>,
    pending: u64,
}

#[derive(Debug)]
struct Table {
    enabled: bool,
    function_masked: bool,
    entries: Vec<Entry>,
    pending: u64,
}

/// The vectors of one function; at most 64.
#[derive(Debug)]
pub struct Msix {
    table: Mutex<Table>,
    lines: Vec<(u32, EventFd)>,
    router: Arc<IrqRouter>,
}

impl Msix {
    /// A table of `count` vectors, all masked.
    pub fn new(count: usize, router: Arc<IrqRouter>) -> Result<Self, Error> {
        let lines = (0..count).map(|_| router.allocate()).collect::<Result<_, _>>()?;
        let entries = vec![Entry { address: 0, data: 0, control: MASKED }; count];
        let table = Table { enabled: false, function_masked: false, entries, pending: 0 };
        Ok(Self { table: Mutex::new(table), lines, router })
    }

    /// Number of vectors in the table.
    pub fn len(&self) -> usize {
        self.lines.len()
    }

    /// Never: a function has at least one vector.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// Interrupts the guest through `vector`, or remembers it while that is masked.
    pub fn signal(&self, vector: u16) {
        let index = usize::from(vector);
        let mut table = lock(&self.table);
        let Some(entry) = table.entries.get(index) else { return };
        if !table.enabled {
            return;
        }
        if table.function_masked || entry.control & MASKED != 0 {
            table.pending |= 1 << index;
        } else {
            // Refused only if the counter is full, and then an interrupt is on its way.
            let _ = self.lines[index].1.write(1);
        }
    }

    /// Takes bits 15 (enable) and 14 (function mask) of the message control register.
    pub fn set_control(&self, control: u16) {
        let mut table = lock(&self.table);
        table.enabled = control & 0x8000 != 0;
        table.function_masked = control & 0x4000 != 0;
        for index in 0..self.lines.len() {
            self.update(&mut table, index, true);
        }
    }

    /// Reads the table (4 or 8 bytes, aligned).
    pub fn read_table(&self, offset: usize, data: &mut [u8]) {
        let table = lock(&self.table);
        let Some(entry) = table.entries.get(offset / ENTRY) else { return data.fill(0) };
        let mut bytes = [0; ENTRY];
        bytes[..8].copy_from_slice(&entry.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&entry.data.to_le_bytes());
        bytes[12..].copy_from_slice(&entry.control.to_le_bytes());
        let from = offset % ENTRY;
        for (index, byte) in data.iter_mut().enumerate() {
            *byte = bytes.get(from + index).copied().unwrap_or(0);
        }
    }

    /// Writes the table (4 or 8 bytes, aligned).
    pub fn write_table(&self, offset: usize, data: &[u8]) {
        let mut table = lock(&self.table);
        let index = offset / ENTRY;
        let Some(entry) = table.entries.get_mut(index) else { return };
        for (place, word) in (offset % ENTRY..).step_by(4).zip(data.chunks_exact(4)) {
            let word = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
            match place {
                0 => entry.address = entry.address & !0xffff_ffff | u64::from(word),
                4 => entry.address = entry.address & 0xffff_ffff | u64::from(word) << 32,
                8 => entry.data = word,
                12 => entry.control = word & MASKED,
                _ => {}
            }
        }
        self.update(&mut table, index, true);
    }

    /// Reads the pending bits.
    pub fn read_pending(&self, offset: usize, data: &mut [u8]) {
        let bytes = lock(&self.table).pending.to_le_bytes();
        for (index, byte) in data.iter_mut().enumerate() {
            *byte = bytes.get(offset + index).copied().unwrap_or(0);
        }
    }

    /// Brings the route of an unmasked vector up to date and delivers what waited for it.
    fn update(&self, table: &mut Table, index: usize, commit: bool) {
        let entry = table.entries[index];
        if !table.enabled || table.function_masked || entry.control & MASKED != 0 {
            return;
        }
        self.router.set(self.lines[index].0, Msi { address: entry.address, data: entry.data });
        if commit && let Err(error) = self.router.commit() {
            tracing::warn!(%error, "cannot route an interrupt");
        }
        if commit && table.pending & 1 << index != 0 {
            table.pending &= !(1 << index);
            let _ = self.lines[index].1.write(1);
        }
    }

    /// The table as it is now.
    pub fn save(&self) -> SavedMsix {
        let table = lock(&self.table);
        SavedMsix {
            enabled: table.enabled,
            function_masked: table.function_masked,
            entries: table.entries.clone(),
            pending: table.pending,
        }
    }

    /// Restores the table, of which a function of an earlier version may have had only the first
    /// vectors; the caller commits the router afterwards.
    pub fn restore(&self, saved: &SavedMsix) -> Result<(), Error> {
        if saved.entries.len() > self.lines.len() {
            let (got, have) = (saved.entries.len(), self.lines.len());
            return Err(Error::Config(format!("{got} MSI-X vectors saved, {have} here")));
        }
        let mut table = lock(&self.table);
        table.enabled = saved.enabled;
        table.function_masked = saved.function_masked;
        table.entries[..saved.entries.len()].copy_from_slice(&saved.entries);
        table.pending = saved.pending;
        for index in 0..self.lines.len() {
            self.update(&mut table, index, false);
        }
        Ok(())
    }
}

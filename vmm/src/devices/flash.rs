//! Flash memory: a firmware's variables, and its code, which only reads.
//!
//! The variables are a chip with Intel's command set (CFI primary command set 1), eight bits wide, in
//! blocks of 4 KiB, as QEMU's machines have one and OVMF's driver knows it:
//!
//! ```text
//!             10 or 40: program          any: the byte is put there
//!   ┌───────► Programming ────────────────────────────┐
//!   │         20: erase                  d0: the block is ones again
//!  Array ───► Erasing ────────────────────────────────┤
//!  (memory)   60: lock                   d0 or 01     ▼
//!   │  ▲ ───► Locking ───────────────────────────► Status: reads tell how it went
//!   │  │ 70                                           │  ▲
//!   │  └──────── ff, 50 (clears the status) ◄─────────┘  │
//!   └────────────────────────────────────────────────────┘
//! ```
//!
//! While it is an array, guests read it as memory without leaving; in all other states their reads come
//! here. Their writes always do.
//!
//! **Durability.** What was programmed is written to the variables' file and synced before the guest's
//! access returns that makes the chip an array again or asks for its status: no driver goes on without
//! one of them. What was erased is there when the access returns that erases it: what a driver
//! programs after that must not be there before. OVMF has the array back after each piece that it
//! writes, so that a variable that was set is durable when SetVariable returns, and what it orders
//! against a loss of power stays in order. If the file cannot be written or synced, the status says that programming and erasing failed, and it
//! is tried again with the next.
//!
//! Programming puts the byte there as it is, where real chips can only clear bits, since firmware for
//! virtual machines is tried on chips that do so. Locks are taken and do nothing.

use std::{collections::BTreeSet, fs::File, io, os::unix::fs::FileExt};

use serde::{Deserialize, Serialize};

use crate::platform::{
    bus::BusDevice,
    error::{Error, chain},
    memory::Rom,
};

/// Bytes of a block, the least that is erased.
pub const BLOCK: usize = 4096;
/// The chip is ready; the only bit that is set by success.
const READY: u8 = 0x80;
/// Erasing and programming failed (bits 5 and 4).
const FAILED: u8 = 0x30;

const PROGRAM: u8 = 0x10;
const PROGRAM_TOO: u8 = 0x40;
const ERASE: u8 = 0x20;
const CLEAR_STATUS: u8 = 0x50;
const LOCK: u8 = 0x60;
const READ_STATUS: u8 = 0x70;
const CONFIRM: u8 = 0xd0;

/// What the chip does with the next access.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Reads are of its content.
    #[default]
    Array,
    /// Reads are of its status.
    Status,
    /// The next byte is put where it is written.
    Programming,
    /// The next byte confirms that a block is erased.
    Erasing,
    /// The next byte says what becomes of a block's lock.
    Locking,
}

/// A chip as it is moved: what its file has, too, and how far its driver is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SavedFlash {
    mode: Mode,
    status: u8,
    bytes: usize,
    /// Runs of blocks that are not all ones: the first one's number, and content in base 16.
    runs: Vec<(usize, crate::platform::hex::Hex)>,
}

/// A chip that keeps variables.
#[derive(Debug)]
pub struct Flash {
    rom: Rom,
    mode: Mode,
    status: u8,
    /// Blocks that the file does not have yet.
    changed: BTreeSet<usize>,
    file: Option<File>,
    /// They could not be kept when that was tried last.
    failing: bool,
}

impl Flash {
    /// A chip with the content of `rom`, kept nowhere yet.
    ///
    /// # Errors
    /// What KVM refuses.
    pub fn new(mut rom: Rom) -> Result<Self, Error> {
        rom.show(true)?;
        let changed = BTreeSet::new();
        Ok(Self { rom, mode: Mode::Array, status: READY, changed, file: None, failing: false })
    }

    /// Takes what `file` has and keeps all changes there from now on.
    ///
    /// # Errors
    /// [`Error::Config`] if its size is not the chip's, [`Error::Os`] if it cannot be read.
    pub fn load(&mut self, file: File) -> Result<(), Error> {
        let mut content = vec![0; self.rom.len()];
        let len = file.metadata().map_err(Error::os("read a VM's firmware variables"))?.len();
        if len != content.len() as u64 {
            return Err(Error::Config(format!(
                "the VM's firmware variables have {len} bytes, its firmware has room for {}",
                content.len()
            )));
        }
        file.read_exact_at(&mut content, 0).map_err(Error::os("read a VM's firmware variables"))?;
        self.rom.write(0, &content);
        self.changed.clear();
        self.file = Some(file);
        Ok(())
    }

    /// Keeps all that it has in `file`, an empty one, durably, and all changes from now on.
    ///
    /// # Errors
    /// [`Error::Os`] if it cannot be written.
    pub fn keep(&mut self, file: File) -> Result<(), Error> {
        file.write_all_at(&self.content(), 0)
            .and_then(|()| file.sync_all())
            .map_err(Error::os("keep a VM's firmware variables"))?;
        self.changed.clear();
        self.file = Some(file);
        Ok(())
    }

    /// All bytes as they are now.
    pub fn content(&self) -> Vec<u8> {
        let mut content = vec![0; self.rom.len()];
        self.rom.read(0, &mut content);
        content
    }

    /// The chip as it is now.
    pub fn save(&self) -> SavedFlash {
        let content = self.content();
        let mut runs: Vec<(usize, Vec<u8>)> = Vec::new();
        for (number, block) in content.chunks(BLOCK).enumerate() {
            if block.iter().all(|byte| *byte == 0xff) {
                continue;
            }
            match runs.last_mut() {
                Some((first, run)) if *first + run.len() / BLOCK == number => run.extend(block),
                _ => runs.push((number, block.to_vec())),
            }
        }
        let runs = runs.into_iter().map(|(first, run)| (first, run.into())).collect();
        SavedFlash { mode: self.mode, status: self.status, bytes: content.len(), runs }
    }

    /// Puts a saved chip in place of this one, which no guest has used.
    ///
    /// # Errors
    /// [`Error::Config`] if it is of another size, and what KVM refuses.
    pub fn restore(&mut self, saved: &SavedFlash) -> Result<(), Error> {
        let here = self.rom.len();
        if saved.bytes != here {
            let there = saved.bytes;
            return Err(Error::Config(format!(
                "the VM's firmware variables have {there} bytes there, and {here} here"
            )));
        }
        let mut content = vec![0xff; here];
        for (first, run) in &saved.runs {
            let at = first.checked_mul(BLOCK).unwrap_or(usize::MAX);
            let end = at.saturating_add(run.0.len());
            let place = content.get_mut(at..end).ok_or_else(|| {
                Error::Config("the VM's firmware variables are more than it says".into())
            })?;
            place.copy_from_slice(&run.0);
        }
        self.rom.write(0, &content);
        self.status = saved.status;
        self.set_mode(saved.mode)
    }

    fn set_mode(&mut self, mode: Mode) -> Result<(), Error> {
        self.mode = mode;
        self.rom.show(mode == Mode::Array)
    }

    /// Writes what has changed to the file and syncs it.
    fn write_back(&mut self) -> io::Result<()> {
        let Some(file) = self.file.as_ref().filter(|_| !self.changed.is_empty()) else {
            return Ok(());
        };
        let mut block = [0; BLOCK];
        for number in &self.changed {
            self.rom.read(number * BLOCK, &mut block);
            file.write_all_at(&block, (number * BLOCK) as u64)?;
        }
        file.sync_data()?;
        self.changed.clear();
        Ok(())
    }

    /// Makes durable what was programmed and erased; the status tells if it is not. The log is told when
    /// that begins and ends: how often it is tried is the guest's choice.
    fn settle(&mut self) {
        match self.write_back() {
            Ok(()) if self.failing => {
                tracing::info!("a VM's firmware variables are kept again");
                self.failing = false;
            }
            Ok(()) => {}
            Err(error) => {
                if !self.failing {
                    tracing::error!(%error, "a VM's firmware variables cannot be kept");
                }
                self.failing = true;
                self.status |= FAILED;
            }
        }
    }

    /// The byte that a guest reads from outside of the array.
    fn told(&mut self) -> u8 {
        self.settle();
        self.status
    }

    fn take(&mut self, offset: usize, byte: u8) {
        let next = match (self.mode, byte) {
            (Mode::Programming, _) => {
                self.rom.write(offset, &[byte]);
                self.changed.insert(offset / BLOCK);
                self.status |= READY;
                Mode::Status
            }
            (Mode::Erasing, CONFIRM) => {
                let number = offset / BLOCK;
                self.rom.write(number * BLOCK, &[0xff; BLOCK]);
                self.changed.insert(number);
                self.settle();
                self.status |= READY;
                Mode::Status
            }
            // Locked or unlocked: all the same.
            (Mode::Locking, CONFIRM | 0x01) => {
                self.status |= READY;
                Mode::Status
            }
            // It was told one thing and then another.
            (Mode::Erasing | Mode::Locking, _) => {
                self.status |= READY | FAILED;
                Mode::Status
            }
            (Mode::Array | Mode::Status, PROGRAM | PROGRAM_TOO) => Mode::Programming,
            (Mode::Array | Mode::Status, ERASE) => Mode::Erasing,
            (Mode::Array | Mode::Status, LOCK) => Mode::Locking,
            (Mode::Array | Mode::Status, READ_STATUS) => Mode::Status,
            (Mode::Array | Mode::Status, CLEAR_STATUS) => {
                self.settle();
                self.status = 0;
                Mode::Array
            }
            // Read the array, and what it does not know.
            (Mode::Array | Mode::Status, _) => {
                self.settle();
                Mode::Array
            }
        };
        if let Err(error) = self.set_mode(next) {
            tracing::error!(error = chain(&error), "a VM's flash memory");
        }
    }
}

impl BusDevice for Flash {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        match self.mode {
            Mode::Array => self.rom.read(offset as usize, data),
            _ => {
                let status = self.told();
                data.fill(status);
            }
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        for (index, byte) in data.iter().enumerate() {
            let at = offset as usize + index;
            if at < self.rom.len() {
                self.take(at, *byte);
            }
        }
    }
}

/// Code, which guests read and cannot change.
#[derive(Debug)]
pub struct Code(Rom);

impl Code {
    /// The content of `rom`.
    ///
    /// # Errors
    /// What KVM refuses.
    pub fn new(mut rom: Rom) -> Result<Self, Error> {
        rom.show(true)?;
        Ok(Self(rom))
    }
}

impl BusDevice for Code {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        self.0.read(offset as usize, data);
    }

    fn write(&mut self, _: u64, _: &[u8]) {}
}

#[cfg(test)]
mod tests;

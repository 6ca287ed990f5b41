//! The real-time clock's index and data ports: the time of the host, which guests cannot set, no
//! alarms; and, for firmware, the memory beside it, with what of the machine's size is told there.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::platform::{bus::BusDevice, error::Error, hex::Hex, memory};

/// Memory of the clock's chip begins here, behind the clock.
const FIRST: usize = 0x0e;
/// Registers in all.
const REGISTERS: usize = 0x80;
/// The century, which is the clock's.
const CENTURY: usize = 0x32;

/// A clock that guests read at boot. Its only state is the index last written, unless it has memory.
#[derive(Debug, Default)]
pub struct Cmos {
    /// Register selected by port 0x70.
    pub index: u8,
    memory: Option<Box<[u8; REGISTERS]>>,
}

/// The chip's memory as it is moved; none of a machine without firmware.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SavedMemory(Hex);

impl Cmos {
    /// A clock with memory, in which a machine of so many bytes and vCPUs tells its size, as QEMU's `pc`
    /// does: firmware looks there for what it does not find elsewhere.
    pub fn of_machine(bytes: u64, vcpus: u32) -> Self {
        let low = memory::ranges(bytes)[0].1;
        let high = bytes - low;
        let kib = |most: u64, bytes: u64| (bytes >> 10).min(most);
        let mut all = Box::new([0; REGISTERS]);
        let mut put = |at: usize, value: u64, len: usize| {
            all[at..at + len].copy_from_slice(&value.to_le_bytes()[..len]);
        };
        put(0x15, 640, 2);
        let extended = kib(0xffff, low.saturating_sub(1 << 20));
        put(0x17, extended, 2);
        put(0x30, extended, 2);
        put(0x34, (low.saturating_sub(16 << 20) >> 16).min(0xffff), 2);
        put(0x5b, high >> 16, 3);
        put(0x5f, u64::from(vcpus) - 1, 1);
        Self { index: 0, memory: Some(all) }
    }

    /// The memory as it is now.
    pub fn save_memory(&self) -> SavedMemory {
        SavedMemory(self.memory.as_deref().map_or(Vec::new(), |all| all.to_vec()).into())
    }

    /// Puts saved memory in place.
    ///
    /// # Errors
    /// [`Error::Config`] if it is of another machine.
    pub fn restore_memory(&mut self, saved: &SavedMemory) -> Result<(), Error> {
        match (&mut self.memory, &saved.0.0[..]) {
            (None, []) => Ok(()),
            (Some(all), bytes) if bytes.len() == REGISTERS => {
                all.copy_from_slice(bytes);
                Ok(())
            }
            _ => Err(Error::Config("the clock's memory is another machine's".into())),
        }
    }

    /// The byte of memory that is selected, if that is memory.
    fn cell(&mut self) -> Option<&mut u8> {
        let index = usize::from(self.index);
        let memory = self.memory.as_mut().filter(|_| index >= FIRST && index != CENTURY)?;
        memory.get_mut(index)
    }

    fn register(&mut self) -> u8 {
        if let Some(cell) = self.cell() {
            return *cell;
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let (days, second) = (now / 86_400, now % 86_400);
        let (year, month, day) = civil(days);
        let value = match self.index {
            0x00 => second % 60,
            0x02 => second / 60 % 60,
            0x04 => second / 3600,
            0x06 => (days + 4) % 7 + 1,
            0x07 => day,
            0x08 => month,
            0x09 => year % 100,
            0x32 => year / 100,
            // Status A: it counts. Status B: 24 hours, BCD. Status D: the battery is good.
            0x0a if self.memory.is_some() => return 0x26,
            0x0b => return 0x02,
            0x0d => return 0x80,
            _ => return 0,
        };
        (value / 10 * 16 + value % 10) as u8
    }
}

/// Year, month and day of a number of days since 1970-01-01 (proleptic Gregorian).
fn civil(days: u64) -> (u64, u64, u64) {
    let z = days + 719_468;
    let (era, doe) = (z / 146_097, z % 146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    (yoe + era * 400 + u64::from(month <= 2), month, doy - (153 * mp + 2) / 5 + 1)
}

impl BusDevice for Cmos {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        data[0] = if offset == 0 { self.index } else { self.register() };
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if offset == 0 {
            self.index = data[0] & 0x7f;
        } else if let Some(cell) = self.cell() {
            *cell = data[0];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(cmos: &mut Cmos, index: u8) -> u8 {
        let mut byte = [0];
        cmos.write(0, &[index]);
        cmos.read(1, &mut byte);
        byte[0]
    }

    #[test]
    fn firmware_reads_the_size_of_its_machine() {
        let sizes = |bytes, vcpus| {
            let mut cmos = Cmos::of_machine(bytes, vcpus);
            [0x15, 0x16, 0x30, 0x31, 0x34, 0x35, 0x5b, 0x5c, 0x5d, 0x5f].map(|it| at(&mut cmos, it))
        };
        assert_eq!(sizes(512 << 20, 1), [0x80, 2, 0xff, 0xff, 0, 0x1f, 0, 0, 0, 0]);
        // 3 GiB below 4 GiB, 5 GiB above.
        assert_eq!(sizes(8 << 30, 4), [0x80, 2, 0xff, 0xff, 0, 0xbf, 0, 0x40, 1, 3]);
        assert_eq!(sizes(16 << 20, 2), [0x80, 2, 0, 0x3c, 0, 0, 0, 0, 0, 1]);
    }

    #[test]
    fn memory_is_kept_and_the_clock_is_not_set() {
        let mut cmos = Cmos::of_machine(64 << 20, 1);
        let year = at(&mut cmos, 9);
        for (index, value) in [(9, 0x42), (0x32, 0x42), (0x38, 0x42), (0x7f, 7)] {
            cmos.write(0, &[index]);
            cmos.write(1, &[value]);
        }
        assert_eq!((at(&mut cmos, 9), at(&mut cmos, 0x38), at(&mut cmos, 0x7f)), (year, 0x42, 7));
        assert_ne!(at(&mut cmos, 0x32), 0x42);
        let mut other = Cmos::of_machine(64 << 20, 1);
        other.restore_memory(&cmos.save_memory()).unwrap();
        assert_eq!(at(&mut other, 0x38), 0x42);
        // A machine without firmware has none.
        let mut plain = Cmos::default();
        plain.restore_memory(&plain.save_memory()).unwrap();
        assert!(plain.restore_memory(&cmos.save_memory()).is_err());
        assert_eq!((at(&mut plain, 0x5f), at(&mut plain, 0x0a)), (0, 0));
    }

    #[test]
    fn dates_match_the_calendar() {
        assert_eq!(civil(0), (1970, 1, 1));
        assert_eq!(civil(11_016), (2000, 2, 29));
        assert_eq!(civil(20_777), (2026, 11, 20));
    }
}

//! The real-time clock's index and data ports, read-only: the time of the host, no alarms.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::platform::bus::BusDevice;

/// A clock that guests read at boot. Its only state is the index last written.
#[derive(Debug, Default)]
pub struct Cmos {
    /// Register selected by port 0x70.
    pub index: u8,
}

impl Cmos {
    fn register(&self) -> u8 {
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
            // Status B: 24 hours, BCD. Status D: the battery is good.
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
        }
    }
}

#[cfg(test)]
mod tests {
    use super::civil;

    #[test]
    fn dates_match_the_calendar() {
        assert_eq!(civil(0), (1970, 1, 1));
        assert_eq!(civil(11_016), (2000, 2, 29));
        assert_eq!(civil(20_777), (2026, 11, 20));
    }
}

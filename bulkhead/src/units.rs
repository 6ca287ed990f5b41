//! Sizes as people write and read them.

use std::fmt;

/// Reads `4096`, `4K`, `64KiB`, `1M`, `10GiB`, `2T`; units are powers of 1024.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let bad = || format!("{text:?} is not a size such as 4096, 4K, 1MiB or 10G");
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| bad())?;
    let unit = unit.trim().to_ascii_uppercase();
    let unit = unit.strip_suffix("IB").or(unit.strip_suffix('B')).unwrap_or(&unit);
    let shift = match unit {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        "P" => 50,
        _ => return Err(bad()),
    };
    number.checked_mul(1 << shift).ok_or_else(bad)
}

/// Prints a number of bytes for people.
pub struct Human(pub u64);

impl fmt::Display for Human {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = ["KiB", "MiB", "GiB", "TiB", "PiB"];
        let Some(step) = (self.0.max(1).ilog2() / 10).checked_sub(1) else {
            return write!(f, "{} B", self.0);
        };
        let step = (step as usize).min(units.len() - 1);
        let unit = 1u64 << (10 * (step + 1));
        if self.0.is_multiple_of(unit) {
            write!(f, "{} {}", self.0 / unit, units[step])
        } else {
            write!(f, "{:.2} {}", self.0 as f64 / unit as f64, units[step])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, size) in [
            ("0", 0),
            ("4096", 4096),
            ("4K", 4096),
            ("4k", 4096),
            ("64KiB", 65536),
            ("1 MB", 1 << 20),
            ("10G", 10 << 30),
            ("64T", 64 << 40),
            ("512B", 512),
        ] {
            assert_eq!(parse_size(text), Ok(size), "{text}");
        }
        for text in ["", "K", "1.5G", "-1", "4X", "4KK", "99999999P", "4 iB x"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn prints_for_people() {
        let shown = [0, 1023, 1024, 1536, 4 << 30, (4 << 30) + (1 << 29)]
            .map(|bytes| Human(bytes).to_string());
        assert_eq!(shown, ["0 B", "1023 B", "1 KiB", "1.50 KiB", "4 GiB", "4.50 GiB"]);
    }
}

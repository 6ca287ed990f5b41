//! Sizes as people write them.

use std::fmt;

/// Parses a number of bytes: `512`, `512K`, `10M`, `4G`, `4GiB`, `1.5T`. Units are powers of 1024.
pub fn parse(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        unit => return Err(format!("unknown unit {unit:?}: K, M, G or T")),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let too_large = || format!("{text} is too large");
    let whole: u64 = match whole.parse() {
        Ok(whole) => whole,
        Err(_) if whole.chars().all(|c| c.is_ascii_digit()) && !whole.is_empty() => {
            return Err(too_large());
        }
        Err(_) => return Err(format!("{text:?} is not a size such as 4GiB, 10M or 512K")),
    };
    let mut bytes = whole.checked_mul(1 << shift).ok_or_else(too_large)?;
    if !fraction.is_empty() {
        if fraction.len() > 6 || !fraction.chars().all(|c| c.is_ascii_digit()) {
            return Err(format!("{text:?} is not a size such as 1.5GiB"));
        }
        let scale = 10u64.pow(fraction.len() as u32);
        let part: u64 = fraction.parse().map_err(|_| format!("{text:?} is not a size"))?;
        // At most 10^6 times 2^40: no overflow.
        bytes = bytes.checked_add((part << shift) / scale).ok_or_else(too_large)?;
    }
    Ok(bytes)
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
    fn units_are_powers_of_1024() {
        for (text, bytes) in [
            ("0", 0),
            ("512", 512),
            ("512K", 512 << 10),
            ("10M", 10 << 20),
            ("4GiB", 4 << 30),
            ("4 gb", 4 << 30),
            ("64T", 64 << 40),
            ("1.5G", 3 << 29),
            ("0.25M", 1 << 18),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
        for text in
            ["", "G", "-1", "1X", "1..5G", "1.G5", "99999999999999999999", "17000000T", "1e3"]
        {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn prints_for_people() {
        let shown = [0, 1023, 1024, 1536, 4 << 30, (4 << 30) + (1 << 29)]
            .map(|bytes| Human(bytes).to_string());
        assert_eq!(shown, ["0 B", "1023 B", "1 KiB", "1.50 KiB", "4 GiB", "4.50 GiB"]);
    }
}

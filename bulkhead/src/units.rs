//! Sizes as people write them.

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
}

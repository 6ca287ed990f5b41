//! Previous versions: the time that names one in a path (`@GMT-2026.11.21-00.38.05`, MS-SMB2 1.1)
//! and the list of them (`SRV_SNAPSHOT_ARRAY`, MS-SMB2 2.2.32.2).

use std::{fmt, str::FromStr};

use nom::Parser;

use super::{filetime_from_unix, filetime_to_unix};
use crate::{
    name,
    parse::{self, Input, Parsed, counted, size32, skip, text, u32},
    wire::{Put, Result, len32},
};

/// When a snapshot was taken, in whole seconds since 1970 UTC; written as an `@GMT` token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SnapshotTime(i64);

/// Length of a token in characters.
const TOKEN: usize = 24;
/// First second of the year 10000, which a token cannot name.
const END: i64 = 253_402_300_800;

/// Not an `@GMT` token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a time of the form @GMT-YYYY.MM.DD-HH.MM.SS")]
pub struct NotATime;

impl SnapshotTime {
    /// From seconds since 1970; `None` before 1970 and after 9999.
    pub fn from_unix(seconds: i64) -> Option<Self> {
        (0..END).contains(&seconds).then_some(Self(seconds))
    }

    /// The second that a FILETIME lies in.
    pub fn from_filetime(time: u64) -> Option<Self> {
        Self::from_unix(filetime_to_unix(time).0)
    }

    /// The time in seconds since 1970.
    pub fn unix(self) -> i64 {
        self.0
    }

    /// The time as FILETIME, at the begin of its second.
    pub fn filetime(self) -> u64 {
        filetime_from_unix(self.0, 0)
    }
}

/// Days since 1970 of a day of the Gregorian calendar.
fn days_of(year: i64, month: i64, day: i64) -> i64 {
    // Years that begin in March, in eras of 400 years.
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// Year, month and day of a number of days since 1970.
fn date_of(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year + i64::from(month <= 2), month, day)
}

impl fmt::Display for SnapshotTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (days, second) = (self.0.div_euclid(86_400), self.0.rem_euclid(86_400));
        let (year, month, day) = date_of(days);
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        write!(f, "@GMT-{year:04}.{month:02}.{day:02}-{hour:02}.{minute:02}.{second:02}")
    }
}

impl FromStr for SnapshotTime {
    type Err = NotATime;

    fn from_str(text: &str) -> std::result::Result<Self, NotATime> {
        let rest = text
            .get(..5)
            .filter(|start| start.eq_ignore_ascii_case("@GMT-"))
            .and_then(|_| text.get(5..))
            .filter(|_| text.len() == TOKEN)
            .ok_or(NotATime)?;
        let number = |from: usize, len: usize| {
            let digits = rest.get(from..from + len)?;
            digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse::<i64>().ok())?
        };
        let marks: Vec<u8> = [4, 7, 10, 13, 16].iter().map(|at| rest.as_bytes()[*at]).collect();
        let fields = (number(0, 4), number(5, 2), number(8, 2));
        let clock = (number(11, 2), number(14, 2), number(17, 2));
        let ((Some(year), Some(month), Some(day)), (Some(hour), Some(minute), Some(second))) =
            (fields, clock)
        else {
            return Err(NotATime);
        };
        if marks != b"..-.." {
            return Err(NotATime);
        }
        let days = days_of(year, month, day);
        let real = date_of(days) == (year, month, day) && hour < 24 && minute < 60 && second < 60;
        let seconds = days * 86_400 + hour * 3600 + minute * 60 + second;
        Self::from_unix(seconds).filter(|_| real).ok_or(NotATime)
    }
}

/// Appends the list; times that do not fit into `room` bytes are counted but not shown.
pub fn encode_list(times: &[SnapshotTime], room: usize, out: &mut Vec<u8>) {
    let mut array = Vec::new();
    for time in times {
        array.put(&name::to_utf16(&time.to_string()));
        array.put_u16(0);
    }
    // A list of none has its end as well (MS-SMB2 3.3.5.15.1, note 383).
    array.put_u16(0);
    let fits = 12 + array.len() <= room;
    out.put_u32(len32(times.len()));
    out.put_u32(if fits { len32(times.len()) } else { 0 });
    out.put_u32(len32(array.len()));
    if fits {
        out.put(&array);
    }
}

/// Reads a token and the zero behind it.
fn token(input: Input<'_>) -> Parsed<'_, SnapshotTime> {
    const FIELD: &str = "snapshots.SnapShots";
    let (i, (token, ())) = (text(TOKEN * 2, FIELD), skip(2, FIELD)).parse(input)?;
    match token.parse() {
        Ok(time) => Ok((i, time)),
        Err(NotATime) => Err(input.impossible(FIELD, 0u8)),
    }
}

/// Reads the list: how many there are, and those that are shown.
///
/// # Errors
/// The data end before the snapshots that they count, or one of them is no time.
pub fn parse_list(data: &[u8]) -> Result<(u32, Vec<SnapshotTime>)> {
    const ENTRY: usize = (TOKEN + 1) * 2;
    parse::with(Input::new(data), |input| {
        let (i, (all, shown, _)) = (
            u32("snapshots.NumberOfSnapShots"),
            size32("snapshots.NumberOfSnapShotsReturned"),
            skip(4, "snapshots.SnapShotArraySize"),
        )
            .parse(input)?;
        let (i, times) = counted(shown, ENTRY, "snapshots.SnapShots", token).parse(i)?;
        Ok((i, (all, times)))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn tokens_of_known_days() {
        for (text, seconds) in [
            ("@GMT-1970.01.01-00.00.00", 0),
            ("@GMT-2000.02.29-12.30.59", 951_827_459),
            ("@GMT-2026.11.21-00.38.05", 1_795_221_485),
            ("@GMT-9999.12.31-23.59.59", END - 1),
        ] {
            let time = SnapshotTime::from_unix(seconds).unwrap();
            assert_eq!(time.to_string(), text);
            assert_eq!(text.parse(), Ok(time));
            assert_eq!(SnapshotTime::from_filetime(time.filetime() + 9_999_999), Some(time));
        }
        for text in [
            "@GMT-2026.11.21-00.38.5",
            "@GMT-2026.11.31-00.00.00",
            "@GMT-2025.02.29-00.00.00",
            "@GMT-2026.11.21-24.00.00",
            "@GMT-2026.11.21 00.38.05",
            "@GMT-+026.11.21-00.38.05",
            "@GMT-1969.12.31-23.59.59",
            "@GMT-2026.11.21-00.38.é",
            "",
        ] {
            assert_eq!(text.parse::<SnapshotTime>(), Err(NotATime), "{text}");
        }
    }

    #[test]
    fn a_list_that_does_not_fit_is_counted() {
        let times: Vec<_> = (0..3).filter_map(SnapshotTime::from_unix).collect();
        let mut out = Vec::new();
        encode_list(&times, 16, &mut out);
        assert_eq!(out, [3, 0, 0, 0, 0, 0, 0, 0, 152, 0, 0, 0]);
        assert_eq!(parse_list(&out).unwrap(), (3, Vec::new()));
    }

    proptest! {
        #[test]
        fn times_and_lists_round_trip(seconds in prop::collection::vec(0..END, 0..10)) {
            let times: Vec<_> = seconds.into_iter().filter_map(SnapshotTime::from_unix).collect();
            for time in &times {
                prop_assert_eq!(time.to_string().parse(), Ok(*time));
            }
            let mut out = Vec::new();
            encode_list(&times, 4096, &mut out);
            prop_assert_eq!(parse_list(&out).unwrap(), (times.len() as u32, times));
        }

        #[test]
        fn any_text_and_bytes_are_answered(text in "\\PC{0,30}", data in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = text.parse::<SnapshotTime>();
            let _ = parse_list(&data);
        }
    }
}

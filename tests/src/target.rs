//! What a benchmark's measurements are held to.

use std::fmt;

use serde_json::{Value, json};

/// What a measured value is to be.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Wanted {
    /// This or more.
    AtLeast(f64),
    /// This or less.
    AtMost(f64),
    /// Less than this.
    Below(f64),
}

/// One target and what was measured.
#[derive(Clone, PartialEq, Debug)]
pub struct Target {
    /// What is measured.
    pub name: String,
    /// Unit of both numbers.
    pub unit: &'static str,
    /// Missing where it is a peer's figure and there is no peer.
    pub wanted: Option<Wanted>,
    /// Missing if it was not measured.
    pub measured: Option<f64>,
}

impl Target {
    /// Whether it is met; unknown without a measurement or without a peer.
    pub fn met(&self) -> Option<bool> {
        let measured = self.measured?;
        Some(match self.wanted? {
            Wanted::AtLeast(least) => measured >= least,
            Wanted::AtMost(most) => measured <= most,
            Wanted::Below(limit) => measured < limit,
        })
    }

    /// The row of the report.
    pub fn to_json(&self) -> Value {
        let (relation, value) = match self.wanted {
            Some(Wanted::AtLeast(value)) => (Some("at least"), Some(value)),
            Some(Wanted::AtMost(value)) => (Some("at most"), Some(value)),
            Some(Wanted::Below(value)) => (Some("below"), Some(value)),
            None => (None, None),
        };
        json!({
            "target": self.name,
            "unit": self.unit,
            "relation": relation,
            "wanted": value,
            "measured": self.measured,
            "met": self.met(),
        })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let wanted = match self.wanted {
            Some(Wanted::AtLeast(value)) => format!("≥ {value:.2} {}", self.unit),
            Some(Wanted::AtMost(value)) => format!("≤ {value:.2} {}", self.unit),
            Some(Wanted::Below(value)) => format!("< {value:.2} {}", self.unit),
            None => "no peer".to_owned(),
        };
        let measured = self.measured.map_or("-".to_owned(), |value| format!("{value:.2}"));
        let met = match self.met() {
            Some(true) => "yes",
            Some(false) => "NO",
            None => "unknown",
        };
        write!(f, "{:<52} {wanted:<13} {measured:>10} {met:>10}", self.name)
    }
}

//! Every metric of the daemons: its name, unit, kind, labels and meaning, in one table; and the page
//! that Prometheus reads, on which nothing else can stand.
//!
//! ```text
//!  CATALOGUE ─┬─► Page (a daemon, on a scrape) ─► OpenMetrics text
//!             └─► documentation, alert rules, board (generated; tests hold them to it)
//! ```
//!
//! No I/O, no clock. A name that is in the table once keeps its meaning: people have boards and
//! alerts on it.

mod page;
mod table;

pub use page::{CONTENT_TYPE, Page};
pub use table::*;

/// What kind of values a metric has (OpenMetrics 1.0, "Metric Types").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Goes up as long as the process lives.
    Counter,
    /// Is as it is now.
    Gauge,
    /// How many of the values lie below each bound.
    Histogram,
    /// Always 1; its labels are what it says.
    Info,
}

impl Kind {
    /// Its word in the text format.
    pub fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
            Self::Info => "info",
        }
    }

    /// The endings that the names of its samples have.
    pub fn endings(self) -> &'static [&'static str] {
        match self {
            Self::Counter => &["_total"],
            Self::Gauge => &[""],
            Self::Histogram => &["_bucket", "_sum", "_count"],
            Self::Info => &["_info"],
        }
    }
}

/// What a value is counted in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Things: the name says which.
    Things,
    /// Seconds, as a fraction.
    Seconds,
    /// Bytes, whole ones.
    Bytes,
}

impl Unit {
    /// The word that the name ends with, and `# UNIT` says.
    pub fn name(self) -> Option<&'static str> {
        match self {
            Self::Things => None,
            Self::Seconds => Some("seconds"),
            Self::Bytes => Some("bytes"),
        }
    }
}

/// One metric: what its name means.
#[derive(Debug, PartialEq, Eq)]
pub struct Metric {
    /// Its name, without the ending of a sample.
    pub name: &'static str,
    /// Its kind.
    pub kind: Kind,
    /// Its unit.
    pub unit: Unit,
    /// Names of its labels, in the order in which values are given.
    pub labels: &'static [&'static str],
    /// What it tells, in a clause.
    pub help: &'static str,
}

/// The metric that a sample of this name is of, by the ending that its kind has.
pub fn of_sample(name: &str) -> Option<&'static Metric> {
    let is = |metric: &&&Metric| {
        let ending = name.strip_prefix(metric.name);
        ending.is_some_and(|ending| metric.kind.endings().contains(&ending))
    };
    CATALOGUE.iter().find(is).copied()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_are_unique_and_say_their_unit() {
        let mut seen = HashSet::new();
        for metric in CATALOGUE {
            let Metric { name, unit, labels, help, .. } = metric;
            assert!(seen.insert(name), "{name} is there twice");
            let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
            assert!(name.starts_with("bulkhead_") && name.chars().all(legal), "{name}");
            for ending in ["_total", "_bucket", "_sum", "_count", "_info", "_created"] {
                assert!(!name.ends_with(ending), "{name}: {ending} is the ending of a sample");
            }
            match unit.name() {
                Some(unit) => assert!(name.ends_with(&format!("_{unit}")), "{name}"),
                None => {
                    assert!(!name.ends_with("_seconds") && !name.ends_with("_bytes"), "{name}")
                }
            }
            assert!(labels.iter().all(|label| *label != "le" && label.chars().all(legal)));
            assert!(help.len() > 10 && !help.ends_with('.') && !help.contains('\n'), "{name}");
        }
    }

    #[test]
    fn samples_are_known_by_the_endings_of_their_kind() {
        assert_eq!(of_sample("bulkhead_smbd_requests_total"), Some(&REQUESTS));
        assert_eq!(of_sample("bulkhead_smbd_request_seconds_bucket"), Some(&REQUEST_TIME));
        assert_eq!(of_sample("bulkhead_smbd_sessions"), Some(&SESSIONS));
        for name in ["bulkhead_smbd_requests", "bulkhead_smbd_sessions_total", "bulkhead_x", ""] {
            assert_eq!(of_sample(name), None, "{name}");
        }
    }
}

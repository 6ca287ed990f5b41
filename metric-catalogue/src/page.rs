//! The text of OpenMetrics 1.0.

use std::fmt::{Display, Write};

use crate::{CATALOGUE, Kind, Metric, Unit};

/// The type of the text, for the header of the answer.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A page under construction: samples come in any order, and stand in that of the catalogue.
#[derive(Debug)]
pub struct Page {
    /// The samples of each metric, by its place in the catalogue.
    samples: Vec<String>,
}

impl Default for Page {
    fn default() -> Self {
        Self { samples: vec![String::new(); CATALOGUE.len()] }
    }
}

/// The labels of a sample, in braces; escapes are the format's ("ABNF": escaped-string).
fn braces(metric: &Metric, values: &[&str], bound: Option<&str>) -> String {
    assert_eq!(metric.labels.len(), values.len(), "labels of {}", metric.name);
    let names = metric.labels.iter().copied().chain(bound.map(|_| "le"));
    let pairs = names.zip(values.iter().copied().chain(bound)).map(|(name, value)| {
        let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        format!("{name}=\"{value}\"")
    });
    let pairs = pairs.collect::<Vec<_>>().join(",");
    if pairs.is_empty() { pairs } else { format!("{{{pairs}}}") }
}

impl Page {
    fn line(&mut self, metric: &Metric, ending: &str, braces: &str, value: impl Display) {
        let place = CATALOGUE.iter().position(|other| *other == metric);
        // Metrics are the constants of the table.
        let Some(samples) = place.and_then(|place| self.samples.get_mut(place)) else { return };
        // Writing to a string does not fail.
        let _ = writeln!(samples, "{}{ending}{braces} {value}", metric.name);
    }

    /// Says how a gauge is.
    ///
    /// # Panics
    /// If it is no gauge, or has other labels.
    pub fn gauge(&mut self, metric: &Metric, labels: &[&str], value: impl Display) {
        assert_eq!(metric.kind, Kind::Gauge, "{}", metric.name);
        self.line(metric, "", &braces(metric, labels, None), value);
    }

    /// Says how far a counter is.
    ///
    /// # Panics
    /// If it is no counter, or has other labels.
    pub fn counter(&mut self, metric: &Metric, labels: &[&str], value: u64) {
        assert_eq!(metric.kind, Kind::Counter, "{}", metric.name);
        self.line(metric, "_total", &braces(metric, labels, None), value);
    }

    /// Says what an info says.
    ///
    /// # Panics
    /// If it is none, or has other labels.
    pub fn info(&mut self, metric: &Metric, labels: &[&str]) {
        assert_eq!(metric.kind, Kind::Info, "{}", metric.name);
        self.line(metric, "_info", &braces(metric, labels, None), 1);
    }

    /// Says how values lie: how many are in each bucket, with its upper end; the last has all that
    /// are above the others, whatever its end.
    ///
    /// # Panics
    /// If the metric is no histogram, or has other labels.
    pub fn histogram(
        &mut self,
        metric: &Metric,
        labels: &[&str],
        sum: f64,
        buckets: &[(f64, u64)],
    ) {
        assert_eq!(metric.kind, Kind::Histogram, "{}", metric.name);
        let mut below = 0;
        for (index, (end, count)) in buckets.iter().enumerate() {
            below += count;
            let end = if index + 1 == buckets.len() { "+Inf".to_owned() } else { end.to_string() };
            self.line(metric, "_bucket", &braces(metric, labels, Some(&end)), below);
        }
        let braces = braces(metric, labels, None);
        self.line(metric, "_sum", &braces, sum);
        self.line(metric, "_count", &braces, below);
    }

    /// The text; metrics without samples are not in it.
    pub fn text(self) -> String {
        let mut text = String::with_capacity(16 << 10);
        for (metric, samples) in CATALOGUE.iter().zip(&self.samples) {
            if samples.is_empty() {
                continue;
            }
            let Metric { name, kind, unit, help, .. } = metric;
            let _ = writeln!(text, "# TYPE {name} {}", kind.name());
            if let Some(unit) = Unit::name(*unit) {
                let _ = writeln!(text, "# UNIT {name} {unit}");
            }
            let _ = writeln!(text, "# HELP {name} {help}");
            text.push_str(samples);
        }
        text.push_str("# EOF\n");
        text
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{BUILD, LUN_FAILED, RECEIVED, REQUEST_TIME, SESSIONS, SHARE_OPERATIONS};

    #[test]
    fn a_page_is_as_the_format_says() {
        let mut page = Page::default();
        page.counter(&RECEIVED, &[], 10);
        page.info(&BUILD, &["0.1.0"]);
        page.histogram(&REQUEST_TIME, &["read"], 0.5, &[(0.001, 2), (0.002, 0), (0.0, 1)]);
        page.gauge(&SESSIONS, &[], 3);
        let text = page.text();
        let helps = text.lines().filter(|line| !line.starts_with("# HELP")).collect::<Vec<_>>();
        assert_eq!(
            helps,
            [
                "# TYPE bulkhead_smbd_build info",
                "bulkhead_smbd_build_info{version=\"0.1.0\"} 1",
                "# TYPE bulkhead_smbd_sessions gauge",
                "bulkhead_smbd_sessions 3",
                "# TYPE bulkhead_smbd_request_seconds histogram",
                "# UNIT bulkhead_smbd_request_seconds seconds",
                "bulkhead_smbd_request_seconds_bucket{kind=\"read\",le=\"0.001\"} 2",
                "bulkhead_smbd_request_seconds_bucket{kind=\"read\",le=\"0.002\"} 2",
                "bulkhead_smbd_request_seconds_bucket{kind=\"read\",le=\"+Inf\"} 3",
                "bulkhead_smbd_request_seconds_sum{kind=\"read\"} 0.5",
                "bulkhead_smbd_request_seconds_count{kind=\"read\"} 3",
                "# TYPE bulkhead_smbd_received_bytes counter",
                "# UNIT bulkhead_smbd_received_bytes bytes",
                "bulkhead_smbd_received_bytes_total 10",
                "# EOF",
            ]
        );
    }

    #[test]
    #[should_panic(expected = "labels of bulkhead_lun_failed")]
    fn a_label_that_is_missing_is_a_defect() {
        Page::default().counter(&LUN_FAILED, &["iqn"], 1);
    }

    proptest! {
        /// Whatever a name is, it stays within its quotes and on its line.
        #[test]
        fn any_name_is_a_value_of_a_label(name in "\\PC{0,20}|[\"\\\\\n}{# ]{0,12}") {
            let mut page = Page::default();
            page.counter(&SHARE_OPERATIONS, &[&name, "read"], 7);
            let text = page.text();
            let line = text.lines().find(|line| !line.starts_with('#')).unwrap();
            let inside = line.strip_prefix("bulkhead_smbd_share_operations_total{share=\"");
            let inside = inside.unwrap().strip_suffix("\",kind=\"read\"} 7").unwrap();
            let mut back = String::new();
            let mut letters = inside.chars();
            while let Some(letter) = letters.next() {
                prop_assert_ne!(letter, '"');
                back.push(match letter {
                    '\\' => match letters.next() {
                        Some('n') => '\n',
                        Some(other) => other,
                        None => panic!("an escape of nothing"),
                    },
                    letter => letter,
                });
            }
            prop_assert_eq!(back, name);
        }
    }
}

//! docs/metrics.md.

use std::fmt::Write;

use metric_catalogue::{CATALOGUE, Kind, Metric};

use super::rules::RULES;

const HEAD: &str = "\
# Metrics

`metrics = \"127.0.0.1:9445\"` in the `[server]` table of smbd's configuration lets Prometheus read
`http://127.0.0.1:9445/metrics`; a role of a cluster has a `metrics` of its own. The page is in the text format of
OpenMetrics 1.0. There is no login: bind it to loopback or to a management network. [operate.md](operate.md) says how
Prometheus and Grafana are set up with it.

This file, the alert rules and the board are made of the catalogue that the page itself comes from
(`metric-catalogue/src/table.rs`) by `cargo run -p bulkhead-tests --bin operate`; a test fails when they differ.

A counter goes up as long as the process lives, and begins at 0 with the next one. A histogram has the samples
`…_bucket` (`le` is the upper end), `…_sum` and `…_count`; times are taken of one request in 16.

| metric | kind | labels | tells |
| --- | --- | --- | --- |
";

const ALERTS: &str = "
## Alerts

`conf/prometheus/bulkhead.rules.yml` has these; `promtool test rules conf/prometheus/bulkhead.tests.yml` tries each, both
where it must fire and where it must not.

| alert | after | severity | says | what to do |
| --- | --- | --- | --- | --- |
";

/// The name of a metric as a query has it.
fn shown(metric: &Metric) -> String {
    let ending = match metric.kind {
        Kind::Counter => "_total",
        Kind::Info => "_info",
        Kind::Gauge | Kind::Histogram => "",
    };
    format!("{}{ending}", metric.name)
}

/// The whole document.
pub(super) fn text() -> String {
    let mut text = HEAD.to_owned();
    for metric in CATALOGUE {
        let labels = metric.labels.iter().map(|label| format!("`{label}`")).collect::<Vec<_>>();
        let labels = if labels.is_empty() { "–".to_owned() } else { labels.join(", ") };
        let (name, kind, help) = (shown(metric), metric.kind.name(), metric.help);
        // Writing to a string does not fail.
        let _ = writeln!(text, "| `{name}` | {kind} | {labels} | {help} |");
    }
    text.push_str(ALERTS);
    for rule in RULES {
        let says = rule.summary.replace("{{ $labels.", "`").replace(" }}", "`");
        let (name, hold, severity, remedy) = (rule.name, rule.hold, rule.severity, rule.remedy);
        let _ = writeln!(text, "| {name} | {hold} | {severity} | {says} | {remedy} |");
    }
    text
}

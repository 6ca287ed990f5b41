//! What the generators say, medians of it, and what it is held to. Nothing here measures.

use std::{collections::BTreeMap, time::Duration};

use bulkhead_tests::target::{Target, Wanted};
use serde_json::{Value, json};

use crate::Results;

/// Our server's name in the report.
pub const BULKHEAD: &str = "bulkhead";
/// The name of the server without a protocol.
pub const FLOOR: &str = "floor";

const RATE: &str = "operations_per_second";
const CPU: &str = "server_cpu_us_per_operation";

/// What a test of `smb2.bench` printed last, as `read[num/s=18,978;bytes/s=77,733,888;avslat=0.001701;…]`
/// or `1236.53 ops/second`; several kinds of operation count together. `None` if it did not succeed.
pub fn of_torture(text: &str, used: Duration) -> Option<Value> {
    if !text.lines().any(|line| line.starts_with("success:")) {
        return None;
    }
    let seconds_of = |line: &str| line.split_once(' ')?.0.parse::<f64>().ok();
    let mut figures: Option<(f64, Option<f64>)> = None;
    for line in text.split(['\n', '\r']) {
        if let Some(rate) = line.strip_suffix(" ops/second").and_then(|it| it.parse::<f64>().ok()) {
            figures = Some((rate, None));
        }
        let kinds: Vec<&str> =
            line.split('[').skip(1).filter_map(|it| it.split(']').next()).collect();
        if kinds.is_empty() || seconds_of(line).is_none() {
            continue;
        }
        let rates = kinds.iter().filter_map(|kind| field(kind, "num/s"));
        let latency = kinds.first().and_then(|kind| field(kind, "avslat"));
        figures = Some((rates.sum(), latency));
    }
    let (rate, latency) = figures?;
    let seconds = text
        .lines()
        .find_map(|it| it.strip_prefix("Running for ")?.split(' ').next()?.parse::<f64>().ok())?;
    Some(json!({
        RATE: rate,
        CPU: used.as_secs_f64() * 1e6 / (rate * seconds),
        "mean_us": latency.map(|it| it * 1e6),
    }))
}

/// A figure such as `num/s=18,978` among others, which a comma or a semicolon parts.
fn field(kind: &str, name: &str) -> Option<f64> {
    let (_, rest) = kind.split_once(&format!("{name}="))?;
    let mut number = String::new();
    let mut chars = rest.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '0'..='9' | '.' => number.push(c),
            ',' if chars.peek().is_some_and(char::is_ascii_digit) => {}
            _ => break,
        }
    }
    number.parse().ok()
}

/// The rounds of one load.
#[derive(Debug)]
pub struct Row {
    load: String,
    rounds: BTreeMap<String, Vec<Value>>,
    failed: BTreeMap<String, String>,
}

/// The middle of some numbers.
fn median(mut numbers: Vec<f64>) -> Option<f64> {
    numbers.sort_by(f64::total_cmp);
    let (low, high) =
        (numbers.get(numbers.len().checked_sub(1)? / 2)?, numbers.get(numbers.len() / 2)?);
    Some((low + high) / 2.0)
}

impl Row {
    /// A load of which nothing was measured.
    pub fn new(load: &str) -> Self {
        Self { load: load.to_owned(), rounds: BTreeMap::new(), failed: BTreeMap::new() }
    }

    /// Takes in one round of a server.
    pub fn add(&mut self, server: &str, result: Result<Value, String>) {
        match result {
            Ok(result) => self.rounds.entry(server.to_owned()).or_default().push(result),
            Err(why) => drop(self.failed.insert(server.to_owned(), why)),
        }
    }

    /// The row of the report: medians of each server, the better Samba, and the ratios to it. A server of
    /// which a round failed has no figures.
    pub fn finish(self) -> Value {
        let mut servers = Results::new();
        for (name, rounds) in
            self.rounds.iter().filter(|(name, _)| !self.failed.contains_key(*name))
        {
            let mut medians = Results::new();
            for key in rounds[0].as_object().into_iter().flat_map(|it| it.keys()) {
                let values = rounds.iter().filter_map(|round| round[key].as_f64()).collect();
                medians.insert(key.clone(), json!(median(values)));
            }
            medians.insert("rounds".to_owned(), json!(rounds));
            servers.insert(name.clone(), Value::Object(medians));
        }
        let rate = |name: &str| servers.get(name)?[RATE].as_f64();
        let cpu = |name: &str| servers.get(name)?[CPU].as_f64();
        let p50 = |name: &str| servers.get(name)?["p50_us"].as_f64();
        let peers = servers.keys().filter(|name| name.starts_with("samba"));
        let better = peers.max_by(|a, b| rate(a).unwrap_or(0.0).total_cmp(&rate(b).unwrap_or(0.0)));
        let over = |of: &dyn Fn(&str) -> Option<f64>, other: Option<&str>| {
            Some(of(BULKHEAD)? / of(other?)?)
        };
        let better = better.map(String::as_str);
        let row = json!({
            "load": self.load,
            "better": better,
            "ratio": over(&rate, better),
            "cpu_ratio": over(&cpu, better),
            "p50_ratio": over(&p50, better),
            "rate_over_floor": over(&rate, Some(FLOOR)),
            "cpu_over_floor": over(&cpu, Some(FLOOR)),
            "p50_over_floor": over(&p50, Some(FLOOR)),
            "failed": self.failed,
        });
        let mut row = row;
        row["servers"] = Value::Object(servers);
        row
    }
}

/// Prints what the columns are.
pub fn head() {
    println!("{:<38} {:<15} {:>10} {:>8} {:>9}", "load", "server", "op/s", "CPU µs", "p50 µs");
}

/// Prints a row.
pub fn show(row: &Value) {
    let load = row["load"].as_str().unwrap_or_default();
    for (name, result) in row["servers"].as_object().into_iter().flatten() {
        let number = |key: &str| result[key].as_f64();
        let latency = number("p50_us").or_else(|| number("mean_us")).unwrap_or(f64::NAN);
        println!(
            "{load:<38} {name:<15} {:>10.0} {:>8.2} {latency:>9.1}",
            number(RATE).unwrap_or(f64::NAN),
            number(CPU).unwrap_or(f64::NAN),
        );
    }
    for (name, why) in row["failed"].as_object().into_iter().flatten() {
        println!("{load:<38} {name:<15} failed: {}", why.as_str().unwrap_or_default());
    }
    let number = |key: &str| row[key].as_f64().map_or("-".to_owned(), |it| format!("{it:.2}"));
    println!(
        "{load:<38} of the better Samba: {} × the rate at {} × the CPU; of the floor's CPU: {} ×",
        number("ratio"),
        number("cpu_ratio"),
        number("cpu_over_floor"),
    );
}

/// The targets.
pub fn judge(rows: &[Value]) -> Vec<Target> {
    let held = |load: &str, key: &str, wanted: Wanted| {
        let row =
            rows.iter().find(|row| row["load"].as_str().is_some_and(|it| it.starts_with(load)));
        let measured = row.and_then(|row| row[key].as_f64());
        let what = match key {
            "ratio" => "rate",
            "cpu_ratio" => "server CPU",
            _ => "p50",
        };
        Target {
            name: format!("{load}: {what} of the better Samba's"),
            unit: "×",
            wanted: Some(wanted),
            measured,
        }
    };
    use Wanted::{AtLeast, AtMost};
    vec![
        held("bench.read 2 × QD16", "ratio", AtLeast(2.0)),
        held("bench.write 2 × QD16", "ratio", AtLeast(2.5)),
        held("bench.path-contention-shared", "ratio", AtLeast(3.0)),
        held("bench.session-setup", "ratio", AtLeast(1.5)),
        held("crate smb2 read QD32", "ratio", AtLeast(1.4)),
        held("crate smb2 read QD32", "cpu_ratio", AtMost(0.65)),
        held("crate smb2 write QD32", "ratio", AtLeast(1.6)),
        held("crate smb2 read QD1", "p50_ratio", AtMost(0.6)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ: &str = "test: smb2.bench.read\nRunning for 2 seconds\n\
        1.00 second: read[num/s=18;bytes/s=77;avslat=0.1;minlat=0.1;maxlat=0.2]\r\
        2.02 second: read[num/s=18,978;bytes/s=77,733,888;avslat=0.001701;minlat=0.000168;maxlat=0.074852]\n\
        2.02 seconds\nsuccess: smb2.bench.read\n";

    #[test]
    fn the_last_figures_of_a_test_that_succeeded_count() {
        let value = of_torture(READ, Duration::from_secs(1)).unwrap();
        assert_eq!(value[RATE], 18_978.0);
        assert_eq!(value[CPU].as_f64().unwrap().round(), 26.0);
        assert_eq!(value["mean_us"].as_f64().unwrap().round(), 1701.0);
        assert!(of_torture(&READ.replace("success", "failure"), Duration::ZERO).is_none());
        let both = READ.replace("read[", "open[num/s=2;avslat=0.1] close[");
        assert_eq!(of_torture(&both, Duration::ZERO).unwrap()[RATE], 18_980.0);
        let commas = "Running for 1 seconds\n1.00 second: setup[num/s=2,596,avslat=0.002124,minlat=0.0] \
            logoff[num/s=2,595,avslat=0.1]\nsuccess: smb2.bench.session-setup\n";
        assert_eq!(of_torture(commas, Duration::ZERO).unwrap()[RATE], 5191.0);
        let plain = "Running for 2 seconds\n1236.53 ops/second\nsuccess: smb2.bench.oplock1\n";
        assert_eq!(of_torture(plain, Duration::ZERO).unwrap()[RATE], 1236.53);
    }

    #[test]
    fn ratios_are_of_medians_and_to_the_better_samba() {
        let mut row = Row::new("crate smb2 read QD32");
        let figures = |rate: f64, cpu: f64| Ok(json!({RATE: rate, CPU: cpu, "p50_us": 1.0}));
        for (ours, plain, uring) in [(90.0, 10.0, 50.0), (100.0, 20.0, 40.0), (400.0, 30.0, 60.0)] {
            row.add(BULKHEAD, figures(ours, 5.0));
            row.add("samba", figures(plain, 20.0));
            row.add("samba io_uring", figures(uring, 10.0));
            row.add(FLOOR, figures(200.0, 2.0));
        }
        let row = row.finish();
        assert_eq!((&row["better"], &row["ratio"]), (&json!("samba io_uring"), &json!(2.0)));
        assert_eq!((&row["cpu_ratio"], &row["cpu_over_floor"]), (&json!(0.5), &json!(2.5)));
        let met = |targets: &[Target]| targets.iter().filter_map(Target::met).collect::<Vec<_>>();
        assert_eq!(met(&judge(&[row])), [true, true]);
    }

    #[test]
    fn a_server_that_failed_once_has_no_figures() {
        let mut row = Row::new("bench.read 2 × QD16");
        row.add(BULKHEAD, Ok(json!({RATE: 2.0})));
        row.add("samba", Ok(json!({RATE: 1.0})));
        row.add("samba", Err("refused".into()));
        let row = row.finish();
        assert_eq!((&row["ratio"], &row["failed"]["samba"]), (&Value::Null, &json!("refused")));
    }
}

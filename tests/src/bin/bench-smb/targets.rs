//! What the measurements are held to, and whether they reach it.
//!
//! Everything here is a function of the report, so that it can be checked without a measurement.

use bulkhead_tests::target::{Target, Wanted};
use serde_json::{Map, Value, json};

/// Our server's name in the report.
pub const BULKHEAD: &str = "bulkhead";
/// The name of an earlier build of our server, which is no peer.
pub const BEFORE: &str = "before";
/// Loads by name.
pub const RAND_READ: &str = "4 KiB random read QD32";
pub const RAND_WRITE: &str = "4 KiB random write QD32";
pub const RAND_READ_1: &str = "4 KiB random read QD1";
pub const SEQ_READ: &str = "1 MiB sequential read QD8";
pub const SEQ_WRITE: &str = "1 MiB sequential write QD8";
pub const SMALL: [&str; 2] = ["4 KiB new files QD1", "4 KiB new files QD8"];
pub const FAIR_READ: &str = "4 KiB random read 64 × QD16";

const PROTECTIONS: [&str; 3] = ["unsigned", "signed", "encrypted"];

/// Our operations per second over those of the best peer, if there is one.
pub fn ratio(results: &Map<String, Value>) -> Option<f64> {
    let rate = |result: &Value| result["operations_per_second"].as_f64();
    let ours = rate(results.get(BULKHEAD)?)?;
    let best = peers(results).filter_map(rate).fold(0.0, f64::max);
    (best > 0.0).then_some(ours / best)
}

/// What others measured.
fn peers(results: &Map<String, Value>) -> impl Iterator<Item = &Value> {
    let others = results.iter().filter(|(name, _)| ![BULKHEAD, BEFORE].contains(&name.as_str()));
    others.map(|(_, result)| result)
}

/// Our operations per second, and our CPU time for each, over those of the earlier build.
pub fn beside_before(results: &Map<String, Value>) -> Option<Value> {
    let (ours, before) = (results.get(BULKHEAD)?, results.get(BEFORE)?);
    let over = |name: &str| Some(ours[name].as_f64()? / before[name].as_f64()?);
    Some(json!({
        "operations_per_second": over("operations_per_second"),
        "server_cpu_us_per_operation": over("server_cpu_us_per_operation"),
    }))
}

/// Which part of what the machine allows our server reaches with a sequential load: of the
/// smaller of loopback and page cache, and of both after one another on the server's CPU. The
/// latter is what is judged: the bytes go both ways, and the server has one CPU for them.
pub fn limits(load: &str, row: &Value, machine: &Value) -> Option<Value> {
    let (copy, both) = match load {
        SEQ_READ => ("page_cache_read", "read_then_send"),
        SEQ_WRITE => ("page_cache_write", "receive_then_write"),
        _ => return None,
    };
    let rate = |name: &str| machine[format!("{name}_megabytes_per_second")].as_f64();
    let ours = row["servers"][BULKHEAD]["megabytes_per_second"].as_f64()?;
    let smaller = rate("loopback")?.min(rate(copy)?);
    let both = rate(both)?;
    Some(json!({
        "smaller_megabytes_per_second": smaller,
        "share_of_smaller": ours / smaller,
        "both_megabytes_per_second": both,
        "share_of_both": ours / both,
    }))
}

/// All targets.
pub fn judge(report: &Value) -> Vec<Target> {
    use Wanted::{AtLeast, AtMost, Below};
    let row = |load: &str, protection: &str| {
        let rows = report["rows"].as_array()?;
        rows.iter().find(|row| row["load"] == load && row["protection"] == protection)
    };
    let ratio = |load: &str, protection: &str, least: f64| {
        let row = row(load, protection);
        let ratio = row.and_then(|row| row["ratio"].as_f64());
        Target {
            name: format!("{load}, {protection}: of best Samba"),
            unit: "×",
            wanted: ratio.map(|_| AtLeast(least)),
            measured: ratio,
        }
    };
    let cpu = |load: &str, protection: &str| {
        row(load, protection)?["servers"][BULKHEAD]["server_cpu_us_per_operation"].as_f64()
    };

    let mut targets = Vec::new();
    targets.extend(PROTECTIONS.map(|protection| ratio(RAND_READ, protection, 2.0)));
    for (load, most) in [(RAND_READ, 3.5), (RAND_WRITE, 6.0)] {
        for protection in ["unsigned", "signed"] {
            targets.push(Target {
                name: format!("{load}, {protection}: server CPU"),
                unit: "µs",
                wanted: Some(AtMost(most)),
                measured: cpu(load, protection),
            });
        }
        let more = cpu(load, "encrypted").zip(cpu(load, "unsigned"));
        targets.push(Target {
            name: format!("{load}: encryption's server CPU"),
            unit: "µs",
            wanted: Some(AtMost(1.0)),
            measured: more.map(|(encrypted, unsigned)| encrypted - unsigned),
        });
    }
    for protection in PROTECTIONS {
        let servers = row(RAND_READ_1, protection).and_then(|row| row["servers"].as_object());
        let p50 = |result: &Value| result["read"]["p50_us"].as_f64();
        let best = servers.and_then(|all| peers(all).filter_map(p50).reduce(f64::min));
        targets.push(Target {
            name: format!("{RAND_READ_1}, {protection}: p50"),
            unit: "µs",
            wanted: best.map(Below),
            measured: servers.and_then(|servers| p50(servers.get(BULKHEAD)?)),
        });
    }
    for load in [SEQ_READ, SEQ_WRITE] {
        targets.extend(PROTECTIONS.map(|protection| ratio(load, protection, 1.2)));
        // Without signing and sealing, which loopback and page cache know nothing of; the report
        // has the shares of the others too.
        targets.push(Target {
            name: format!("{load}, unsigned: of what the machine allows"),
            unit: "×",
            wanted: Some(AtLeast(0.8)),
            measured: row(load, "unsigned").and_then(|row| row["limits"]["share_of_both"].as_f64()),
        });
    }
    for load in SMALL {
        targets.extend(PROTECTIONS.map(|protection| ratio(load, protection, 2.0)));
    }
    let idle = report["sessions"][BULKHEAD]["server_rss_per_session"].as_f64();
    targets.push(Target {
        name: "1,000 idle sessions: memory of each".to_owned(),
        unit: "KiB",
        wanted: Some(AtMost(64.0)),
        measured: idle.map(|bytes| bytes / 1024.0),
    });
    targets.push(Target {
        name: format!("{FAIR_READ}: most over least"),
        unit: "×",
        wanted: Some(AtMost(2.0)),
        measured: row(FAIR_READ, "signed")
            .and_then(|row| row["servers"][BULKHEAD]["per_connection"]["most_over_least"].as_f64()),
    });
    targets
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Value {
        let machine = json!({
            "loopback_megabytes_per_second": 2500.0, "page_cache_read_megabytes_per_second": 9000.0,
            "read_then_send_megabytes_per_second": 2000.0,
        });
        let server = |rate: f64, cpu: f64, p50: f64| {
            json!({
                "operations_per_second": rate, "megabytes_per_second": rate / 100.0,
                "server_cpu_us_per_operation": cpu, "read": {"p50_us": p50},
                "per_connection": {"most_over_least": 1.5},
            })
        };
        let mut rows = Vec::new();
        for (protection, ours, cpu) in [
            ("unsigned", 210_000.0, 3.0),
            ("signed", 190_000.0, 3.6),
            ("encrypted", 150_000.0, 4.5),
        ] {
            for load in [RAND_READ, RAND_READ_1, SEQ_READ, FAIR_READ] {
                let results = json!({
                    BULKHEAD: server(ours, cpu, 80.0),
                    "samba": server(50_000.0, 20.0, 90.0),
                    "samba io_uring": server(100_000.0, 9.0, 80.0),
                });
                let mut row = json!({
                    "load": load, "protection": protection,
                    "ratio": ratio(results.as_object().unwrap()), "servers": results,
                });
                row["limits"] = limits(load, &row, &machine).unwrap_or_default();
                rows.push(row);
            }
        }
        let sessions = json!({BULKHEAD: {"server_rss_per_session": 65_537}});
        json!({"rows": rows, "sessions": sessions})
    }

    fn met(targets: &[Target], name: &str) -> Option<bool> {
        targets.iter().find(|target| target.name == name).unwrap().met()
    }

    #[test]
    fn each_target_is_compared_in_its_own_direction() {
        let targets = judge(&report());
        for (name, wanted) in [
            ("4 KiB random read QD32, unsigned: of best Samba", Some(true)),
            ("4 KiB random read QD32, signed: of best Samba", Some(false)),
            ("4 KiB random read QD32, unsigned: server CPU", Some(true)),
            ("4 KiB random read QD32, signed: server CPU", Some(false)),
            ("4 KiB random read QD32: encryption's server CPU", Some(false)),
            // As fast as the best is not faster.
            ("4 KiB random read QD1, signed: p50", Some(false)),
            ("1 MiB sequential read QD8, signed: of best Samba", Some(true)),
            ("1 MiB sequential read QD8, unsigned: of what the machine allows", Some(true)),
            ("1,000 idle sessions: memory of each", Some(false)),
            ("4 KiB random read 64 × QD16: most over least", Some(true)),
            // Not measured here.
            ("4 KiB random write QD32, signed: server CPU", None),
            ("4 KiB new files QD8, signed: of best Samba", None),
        ] {
            assert_eq!(met(&targets, name), wanted, "{name}");
        }
        let (met, all) = (|t: &&Target| t.met() == Some(true), targets.len());
        assert!(targets.iter().filter(met).count() < all);
        assert!(targets.iter().all(|target| target.to_json()["target"].is_string()));
    }

    #[test]
    fn shares_are_of_the_smaller_limit_and_of_both() {
        let report = report();
        let row = report["rows"].as_array().unwrap().iter().find(|row| row["load"] == SEQ_READ);
        let limits = &row.unwrap()["limits"];
        assert_eq!(limits["share_of_smaller"], 2100.0 / 2500.0);
        assert_eq!(limits["share_of_both"], 2100.0 / 2000.0);
        assert!(super::limits(RAND_READ, row.unwrap(), &Value::Null).is_none());
    }

    #[test]
    fn without_a_peer_nothing_is_claimed() {
        let mut report = report();
        for row in report["rows"].as_array_mut().unwrap() {
            let servers = row["servers"].as_object_mut().unwrap();
            servers.retain(|name, _| name == BULKHEAD);
            let alone = ratio(servers);
            row["ratio"] = json!(alone);
        }
        let targets = judge(&report);
        assert_eq!(met(&targets, "4 KiB random read QD32, unsigned: of best Samba"), None);
        assert_eq!(met(&targets, "4 KiB random read QD1, unsigned: p50"), None);
        assert_eq!(met(&targets, "4 KiB random read QD32, unsigned: server CPU"), Some(true));
    }
}

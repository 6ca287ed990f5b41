//! What the measurements are held to.
//!
//! Everything here is a function of the report, so that it can be checked without a measurement.

use bulkhead_tests::target::{Target, Wanted};
use serde_json::Value;

/// Contestants by name.
pub const OURS: &str = "bulkhead";
/// Ours, without making the result durable.
pub const VOLATILE: &str = "bulkhead, volatile";
pub const QEMU: &str = "qemu-img";
pub const DURABLE: &str = "qemu-img, durable";
pub const RAW: &str = "raw file";
/// Loads by name.
pub const CONVERT: &str = "convert raw to VHDX";
pub const ALLOCATE: &str = "4 KiB writes QD32, fresh image";
pub const FULL_READ: &str = "4 KiB reads QD32, full image";
pub const FULL_WRITE: &str = "4 KiB writes QD32, full image";
pub const OPEN: &str = "open of 64 TiB";

/// The name of the load that fills an image with such blocks.
pub fn allocate(block_mib: u64) -> String {
    format!("{ALLOCATE}, {block_mib} MiB blocks")
}

/// All targets.
pub fn judge(report: &Value) -> Vec<Target> {
    let rate = |load: &str, name: &str| {
        let rows = report["rows"].as_array()?;
        rows.iter().find(|row| row["load"] == load)?["results"][name].as_f64()
    };
    let ratio = |load: &str, peer: &str, least: f64| {
        let ours = if (load, peer) == (CONVERT, QEMU) { VOLATILE } else { OURS };
        let peer_rate = rate(load, peer);
        Target {
            name: format!("{load}: of {peer}"),
            unit: "×",
            wanted: peer_rate.map(|_| Wanted::AtLeast(least)),
            measured: rate(load, ours).zip(peer_rate).map(|(ours, peer)| ours / peer),
        }
    };
    let mut targets = vec![ratio(CONVERT, QEMU, 1.3), ratio(CONVERT, DURABLE, 1.3)];
    for block_mib in [1, 32] {
        let load = allocate(block_mib);
        targets.extend([ratio(&load, QEMU, 2.0), ratio(&load, RAW, 0.8)]);
    }
    targets.extend([FULL_READ, FULL_WRITE].map(|load| ratio(load, RAW, 0.95)));
    for opened in report["opens"].as_array().into_iter().flatten() {
        for (field, unit, most) in [("milliseconds", "ms", 50.0), ("peak_mebibytes", "MiB", 64.0)] {
            targets.push(Target {
                name: opened["load"].as_str().unwrap_or(OPEN).to_owned(),
                unit,
                wanted: Some(Wanted::AtMost(most)),
                measured: opened[field].as_f64(),
            });
        }
    }
    targets
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_target_is_judged_against_its_peer() {
        let report = json!({
            "rows": [
                {"load": CONVERT, "results": {
                    OURS: 1300.0, VOLATILE: 2600.0, QEMU: 2000.0, DURABLE: 1001.0,
                }},
                {"load": allocate(1), "results": {OURS: 79.0, RAW: 100.0}},
            ],
            "opens": [{"load": OPEN, "milliseconds": 50.0, "peak_mebibytes": 64.1}],
        });
        let met = |name: &str, unit: &str| {
            let targets = judge(&report);
            targets.iter().find(|t| t.name == name && t.unit == unit).unwrap().met()
        };
        assert_eq!(met(&format!("{CONVERT}: of {QEMU}"), "×"), Some(true));
        assert_eq!(met(&format!("{CONVERT}: of {DURABLE}"), "×"), Some(false));
        assert_eq!(met(&format!("{}: of {RAW}", allocate(1)), "×"), Some(false));
        // Without a peer nothing is claimed.
        assert_eq!(met(&format!("{}: of {QEMU}", allocate(1)), "×"), None);
        assert_eq!(met(OPEN, "ms"), Some(true));
        assert_eq!(met(OPEN, "MiB"), Some(false));
    }
}

//! `iscsi-perf` of libiscsi as generator: an initiator that nobody here wrote, which reads at random.

use std::{process::Command, time::Duration};

use bulkhead_tests::{initiator::TARGET, process::installed};

use crate::{Contestant, Measured, Outcome, cpu};

/// What this load is called.
pub const NAME: &str = "4 KiB random reads QD32, iscsi-perf";

/// Runs it on a contestant; `None` if the program is not installed.
pub fn measure(who: &Contestant, time: Duration) -> Option<Outcome<Measured>> {
    let program = installed("iscsi-perf")?;
    Some((|| {
        // It counts whole seconds.
        let seconds = time.as_secs_f64().ceil().max(1.0);
        let before = cpu(who.pid)?;
        let output = Command::new(program)
            .args(["-i", "iqn.2024-01.example:perf", "-m", "32", "-b", "8", "-r"])
            .args(["-t", &seconds.to_string()])
            .arg(format!("iscsi://{}/{TARGET}/{}", who.at, who.lun))
            .output()?;
        let used = cpu(who.pid)? - before;
        let text = String::from_utf8_lossy(&output.stdout);
        let rate = average(&text)
            .ok_or_else(|| format!("iscsi-perf: {}", String::from_utf8_lossy(&output.stderr)))?;
        Ok(Measured { rate, cpu: used * 1e6 / (rate * seconds).max(1.0), apart: 1.0 })
    })())
}

/// The operations in a second of its last line.
fn average(text: &str) -> Option<f64> {
    text.rsplit("iops average").next()?.split_whitespace().next()?.parse().ok()
}

//! What LUNs cost that nobody uses: how long smbd takes to its first login with many of them, and the
//! memory and descriptors of each.

use std::{fs, path::Path, time::Instant};

use bulkhead_tests::{
    initiator::TARGET,
    iscsi::{Served, lun, thin, vhdx},
};
use serde_json::{Value, json};

use crate::{Outcome, load::Session};

/// LUNs of the full server.
const MANY: u16 = 500;
/// Starts of which the fastest counts: the machine has others.
const STARTS: usize = 3;

/// A server with a number of idle LUNs.
struct Idle {
    /// Seconds from the start of the process to the end of the first login.
    seconds: f64,
    /// Bytes of memory of its own.
    bytes: u64,
    descriptors: usize,
}

fn measure(luns: &str) -> Outcome<Idle> {
    let since = Instant::now();
    let served = Served::start(&format!("authentication = \"none\"\n{luns}"));
    // Nobody is let in before all LUNs are served.
    let session = Session::log_in(served.port.address(), TARGET, 0, false)?;
    let seconds = since.elapsed().as_secs_f64();
    let process = Path::new("/proc").join(served.server.pid().to_string());
    let status = fs::read_to_string(process.join("status"))?;
    let kib = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = kib.and_then(|text| text.trim().trim_end_matches(" kB").parse::<u64>().ok());
    let descriptors = fs::read_dir(process.join("fd"))?.count();
    drop(session);
    Ok(Idle { seconds, bytes: kib.ok_or("no RssAnon")? << 10, descriptors })
}

/// The fastest of some starts.
fn best(luns: &str) -> Outcome<Idle> {
    let mut all = (0..STARTS).map(|_| measure(luns)).collect::<Outcome<Vec<_>>>()?;
    all.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
    Ok(all.swap_remove(0))
}

/// One LUN beside many, on raw images and on VHDX.
pub fn idle_luns() -> Outcome<Vec<Value>> {
    let folder = tempfile::tempdir()?;
    let template = vhdx(folder.path(), "template.vhdx", "64M");
    let mut rows = Vec::new();
    for kind in ["raw", "VHDX"] {
        let image = |number: u16| -> Outcome<String> {
            let path = match kind {
                "raw" => thin(folder.path(), &format!("{number}.raw"), 64 << 20),
                _ => {
                    let path = folder.path().join(format!("{number}.vhdx"));
                    fs::copy(&template, &path)?;
                    path
                }
            };
            // Copies of an image would be one disk to initiators.
            Ok(lun(number, &path, &format!("id = \"{:032x}\"", u32::from(number) + 1)))
        };
        let luns = (0..MANY).map(image).collect::<Outcome<Vec<_>>>()?;
        let (one, many) = (best(&luns[0])?, best(&luns.concat())?);
        let each = many.bytes.saturating_sub(one.bytes) / u64::from(MANY - 1);
        let more = many.descriptors.saturating_sub(one.descriptors) as f64 / f64::from(MANY - 1);
        println!(
            "{MANY} idle LUNs, {kind}: first login after {:.3} s (with one: {:.3} s), {each} bytes and \
             {more:.1} descriptors each",
            many.seconds, one.seconds
        );
        rows.push(json!({"luns": MANY, "image": kind, "seconds_to_first_login": many.seconds,
            "seconds_to_first_login_with_one": one.seconds, "bytes_each": each,
            "descriptors_each": more}));
    }
    Ok(rows)
}

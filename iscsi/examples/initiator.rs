//! Reads (or, with `write`, writes) random blocks of a logical unit:
//! `initiator PORTAL TARGET LUN DEPTH SECONDS [BYTES] [write]`. Prints how many a second, and this
//! process's CPU for each.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use block_io::Disk;
use iscsi::initiator::{Initiator, Options};

/// Clock ticks of user and system time so far; a hundred are a second.
fn ticks() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let field = |at: usize| fields.get(at).and_then(|it| it.parse::<u64>().ok()).unwrap_or(0);
    field(11) + field(12)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [portal, target, lun, depth, seconds, more @ ..] = &arguments[..] else {
        return Err("initiator PORTAL TARGET LUN DEPTH SECONDS [BYTES] [write]".into());
    };
    let bytes: usize = more.first().map_or(Ok(4096), |text| text.parse())?;
    let write = more.get(1).is_some_and(|word| word == "write");
    let name = "iqn.2024-01.example.bulkhead:load";
    let portals = portal.split(',').map(str::to_owned).collect();
    let disk = Initiator::connect(Options::new(portals, target, lun.parse()?, name)?).await?;
    let blocks = disk.geometry().size / bytes as u64;
    let (over, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let (since, before) = (Instant::now(), ticks());
    let tasks = (0..depth.parse::<u64>()?).map(|n| {
        let (disk, over, count) = (disk.clone(), over.clone(), count.clone());
        tokio::spawn(async move {
            let mut state = 0x9e37_79b9_7f4a_7c15u64.wrapping_mul(n + 1);
            let mut buf = vec![0x5a; bytes];
            while !over.load(Ordering::Relaxed) {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                let offset = state % blocks * bytes as u64;
                match write {
                    true => disk.write_at(offset, &buf).await?,
                    false => disk.read_at(offset, &mut buf).await?,
                }
                count.fetch_add(1, Ordering::Relaxed);
            }
            Ok::<_, block_io::Error>(())
        })
    });
    let tasks: Vec<_> = tasks.collect();
    tokio::time::sleep(Duration::from_secs(seconds.parse()?)).await;
    over.store(true, Ordering::Relaxed);
    for task in tasks {
        task.await??;
    }
    let (count, took) = (count.load(Ordering::Relaxed), since.elapsed().as_secs_f64());
    let cpu = (ticks() - before) as f64 * 10_000.0 / count.max(1) as f64;
    println!("{:.0}/s, {cpu:.2} us of CPU each", count as f64 / took);
    disk.close().await?;
    Ok(())
}

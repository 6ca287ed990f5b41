//! CPU time of a process and all its descendants, from `/proc`.

use std::{collections::HashMap, fs, time::Duration};

use anyhow::Context;

/// What `/proc/PID/stat` says of one process.
struct Stat {
    parent: u32,
    /// Ticks of the process and of its children that ended and were waited for.
    ticks: u64,
}

fn read(pid: u32) -> Option<Stat> {
    parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// The name, in parentheses, may hold anything, so fields count from the last `)`.
fn parse(text: &str) -> Option<Stat> {
    let (_, rest) = text.rsplit_once(')')?;
    let fields: Vec<_> = rest.split_ascii_whitespace().collect();
    let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
    // utime, stime, cutime, cstime are fields 14 to 17, the parent is field 4; rest starts at 3.
    let ticks = number(11)? + number(12)? + number(13)? + number(14)?;
    Some(Stat { parent: u32::try_from(number(1)?).ok()?, ticks })
}

/// A process and all its descendants.
fn tree(pid: u32) -> anyhow::Result<Vec<(u32, Stat)>> {
    let mut stats = HashMap::new();
    for entry in fs::read_dir("/proc").context("cannot read /proc")? {
        let Some(pid) = entry.ok().and_then(|entry| entry.file_name().to_str()?.parse().ok())
        else {
            continue;
        };
        if let Some(stat) = read(pid) {
            stats.insert(pid, stat);
        }
    }
    stats.get(&pid).with_context(|| format!("there is no process {pid}"))?;
    let belongs = |other: u32| {
        let (mut above, mut steps) = (other, 0);
        while above != pid && steps < 64 {
            let Some(parent) = stats.get(&above) else { break };
            above = parent.parent;
            steps += 1;
        }
        above == pid
    };
    let members: Vec<u32> = stats.keys().copied().filter(|other| belongs(*other)).collect();
    Ok(members.into_iter().filter_map(|other| Some((other, stats.remove(&other)?))).collect())
}

/// The process ids of a process and all its descendants.
pub fn members(pid: u32) -> anyhow::Result<Vec<u32>> {
    Ok(tree(pid)?.into_iter().map(|(pid, _)| pid).collect())
}

/// CPU time that a process, its threads, and its descendants have used so far. A descendant
/// whose parent does not wait for it is no longer counted once it has ended.
pub fn of_tree(pid: u32) -> anyhow::Result<Duration> {
    let ticks: u64 = tree(pid)?.iter().map(|(_, stat)| stat.ticks).sum();
    Ok(Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64))
}

/// CPU time that this process has used so far.
pub fn of_self() -> Duration {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    let seconds = u64::try_from(used.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(used.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_parentheses_do_not_confuse() {
        let text = "42 (a) b) (c) S 7 42 42 0 -1 4194560 1 0 0 0 10 20 3 4 20 0 1 0 5 6 7";
        let stat = parse(text).unwrap();
        assert_eq!((stat.parent, stat.ticks), (7, 37));
        assert!(parse("42 (a) S 7").is_none());
    }

    #[test]
    fn own_time_is_seen_both_ways() {
        let before = of_self();
        let mut sum = 0u64;
        while of_self() < before + Duration::from_millis(60) {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        assert!(of_tree(std::process::id()).unwrap() >= Duration::from_millis(50));
        assert!(of_tree(u32::MAX).is_err());
    }
}

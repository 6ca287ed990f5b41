//! What a process and all its descendants use of the machine, from `/proc`.
//!
//! CPU time is read twice over: what the scheduler counted for each thread that there is, in nanoseconds,
//! and what the kernel's accounts say, in ticks, which have the threads and children that ended too.

use std::{collections::BTreeMap, fs, time::Duration};

/// CPU time that processes have used up to a moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cpu {
    /// Nanoseconds of each thread that there is.
    threads: BTreeMap<u32, u64>,
    /// Ticks of all threads that there are and were, and of children that ended.
    ticks: u64,
}

impl Cpu {
    /// What a process and its descendants have used by now.
    pub fn of_tree(pid: u32) -> Self {
        let mut used = Self::default();
        for member in members(pid) {
            // One that ends meanwhile is in its parent's accounts.
            let Some(stat) = Stat::read(member) else { continue };
            used.ticks += stat.ticks;
            for thread in numbers(&format!("/proc/{member}/task")) {
                let path = format!("/proc/{member}/task/{thread}/schedstat");
                let text = fs::read_to_string(path).unwrap_or_default();
                let running = text.split_ascii_whitespace().next().and_then(|it| it.parse().ok());
                used.threads.insert(thread, running.unwrap_or(0));
            }
        }
        used
    }

    /// What was used since an earlier moment: exactly while no thread ended, else to a tick.
    pub fn since(&self, earlier: &Self) -> Duration {
        if earlier.threads.keys().all(|thread| self.threads.contains_key(thread)) {
            let used = |(thread, now): (&u32, &u64)| {
                now.saturating_sub(earlier.threads.get(thread).copied().unwrap_or(0))
            };
            let exact = Duration::from_nanos(self.threads.iter().map(used).sum());
            // Threads that began and ended in between are in the accounts alone.
            return exact.max(ticks(self.ticks.saturating_sub(earlier.ticks + 2)));
        }
        ticks(self.ticks.saturating_sub(earlier.ticks))
    }
}

fn ticks(count: u64) -> Duration {
    Duration::from_secs_f64(count as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// Memory of a process and its descendants in bytes; a page that so many share counts a so-many-th for
/// each.
pub fn memory_of_tree(pid: u32) -> u64 {
    members(pid).into_iter().filter_map(|member| field(member, "smaps_rollup", "Pss")).sum()
}

/// The value of a line such as `Pss:    1234 kB` of a file of a process, in bytes.
fn field(pid: u32, file: &str, name: &str) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/{file}")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// What `/proc/PID/stat` says of one process.
struct Stat {
    parent: u32,
    ticks: u64,
}

impl Stat {
    fn read(pid: u32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    /// The name, in parentheses, may hold anything, so fields count from the last `)`, behind which is
    /// field 3: the parent is field 4, the times of the process and of its children 14 to 17.
    fn parse(text: &str) -> Option<Self> {
        let (_, rest) = text.rsplit_once(')')?;
        let fields: Vec<_> = rest.split_ascii_whitespace().collect();
        let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
        let ticks = number(11)? + number(12)? + number(13)? + number(14)?;
        Some(Self { parent: u32::try_from(number(1)?).ok()?, ticks })
    }
}

/// The names of a folder's entries that are numbers.
fn numbers(folder: &str) -> Vec<u32> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// A process and all its descendants, as far as they are there.
pub fn members(pid: u32) -> Vec<u32> {
    let parent = |pid: u32| Some((pid, Stat::read(pid)?.parent));
    let parents: BTreeMap<u32, u32> = numbers("/proc").into_iter().filter_map(parent).collect();
    let belongs = |other: &u32| {
        let line = std::iter::successors(Some(*other), |above| parents.get(above).copied());
        line.take(64).any(|above| above == pid)
    };
    parents.keys().copied().filter(belongs).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_parentheses_do_not_confuse() {
        let text = "42 (a) b) (c) S 7 42 42 0 -1 4194560 1 0 0 0 10 20 3 4 20 0 1 0 5 6 7";
        let stat = Stat::parse(text).unwrap();
        assert_eq!((stat.parent, stat.ticks), (7, 37));
        assert!(Stat::parse("42 (a) S 7").is_none());
    }

    #[test]
    fn exact_times_count_while_no_thread_ended_and_accounts_else() {
        let at = |threads: &[(u32, u64)], ticks| Cpu {
            threads: threads.iter().copied().collect(),
            ticks,
        };
        let before = at(&[(1, 1000), (2, 500)], 100);
        // A thread came, one worked.
        assert_eq!(
            at(&[(1, 1700), (2, 500), (3, 40)], 101).since(&before),
            Duration::from_nanos(740)
        );
        // One ended.
        assert_eq!(at(&[(1, 1700)], 110).since(&before), ticks(10));
        // Children came and ended in between.
        assert_eq!(at(&[(1, 1700), (2, 500)], 152).since(&before), ticks(50));
    }

    #[test]
    fn what_this_process_uses_is_seen() {
        let me = std::process::id();
        let before = Cpu::of_tree(me);
        let (mut sum, since) = (0u64, std::time::Instant::now());
        while Cpu::of_tree(me).since(&before) < Duration::from_millis(30) {
            assert!(since.elapsed() < Duration::from_secs(60));
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        let before = memory_of_tree(me);
        let touched = std::hint::black_box(vec![7u8; 64 << 20]);
        assert!(memory_of_tree(me) >= before + (48 << 20));
        assert_eq!(touched[touched.len() - 1], 7);
    }
}

//! What the machine had for the server, as `/proc` and `/sys` tell it. What cannot be read counts as
//! nothing: a kernel or container may not have it.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use super::rules::{Device, Machine};

/// What is read while the server runs, for the sandbox.
pub fn readable() -> [PathBuf; 3] {
    ["/proc/stat", "/proc/diskstats", "/sys/fs/cgroup"].map(PathBuf::from)
}

/// Counters as they stand at some moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Counters {
    /// Seconds of processor time that the process used.
    pub used: f64,
    /// Seconds that its threads were ready and did not run.
    waited: f64,
    /// Seconds that the host below took from all processors.
    stolen: f64,
    /// Seconds that its control group held it back.
    held_back: f64,
    /// Disks by their numbers: name, milliseconds that it was busy, and those times its requests.
    disks: Vec<((u32, u32), String, u64, u64)>,
}

fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn number(text: Option<&str>) -> u64 {
    text.and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// Seconds that threads ran and waited, by the text of a `schedstat` of each.
fn schedule(texts: impl Iterator<Item = String>) -> (f64, f64) {
    texts.fold((0.0, 0.0), |(used, waited), text| {
        let mut words = text.split_whitespace();
        let mut next = || number(words.next()) as f64 / 1e9;
        (used + next(), waited + next())
    })
}

/// Seconds that the host took, by the text of `/proc/stat` (proc(5): the eighth number, in ticks).
fn stolen(text: &str, ticks: f64) -> f64 {
    let line = text.lines().next().unwrap_or_default();
    number(line.split_whitespace().nth(8)) as f64 / ticks
}

/// Seconds that a control group was held back, by the text of `cpu.stat` of either version.
fn held_back(text: &str) -> f64 {
    let find = |name| {
        let mut lines = text.lines().filter_map(|line| line.split_once(' '));
        lines.find(|(key, _)| *key == name).map(|(_, value)| number(Some(value.trim())) as f64)
    };
    find("throttled_usec")
        .map(|micros| micros / 1e6)
        .or_else(|| find("throttled_time").map(|nanos| nanos / 1e9))
        .unwrap_or(0.0)
}

/// The file that tells how a control group is held back, by the text of `/proc/self/cgroup`.
fn group(text: &str) -> Option<PathBuf> {
    let mut found = None;
    for line in text.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?.trim_start_matches('/'));
        // It stands behind version 2, which has no list of controllers.
        if controllers.is_empty() {
            found = found.or(Some(Path::new("/sys/fs/cgroup").join(path)));
        } else if controllers.split(',').any(|it| it == "cpu") {
            found = Some(Path::new("/sys/fs/cgroup/cpu").join(path));
        }
    }
    Some(found?.join("cpu.stat"))
}

/// Disks by the text of `/proc/diskstats` (Documentation/admin-guide/iostats.rst: fields 10 and 11).
fn disks(text: &str) -> Vec<((u32, u32), String, u64, u64)> {
    let one = |line: &str| {
        let words: Vec<_> = line.split_whitespace().collect();
        let device = (words.first()?.parse().ok()?, words.get(1)?.parse().ok()?);
        let (busy, weighted) = (number(words.get(12).copied()), number(words.get(13).copied()));
        Some((device, (*words.get(2)?).to_owned(), busy, weighted))
    };
    text.lines().filter_map(one).collect()
}

impl Counters {
    /// How they stand now.
    pub fn now() -> Self {
        let threads = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
        let (_, waited) = schedule(threads.map(|thread| read(thread.path().join("schedstat"))));
        let ticks = rustix::param::clock_ticks_per_second() as f64;
        let usage = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        Self {
            used: usage.tv_sec as f64 + usage.tv_nsec as f64 / 1e9,
            waited,
            stolen: stolen(&read("/proc/stat"), ticks),
            held_back: group(&read("/proc/self/cgroup")).map_or(0.0, |file| held_back(&read(file))),
            disks: disks(&read("/proc/diskstats")),
        }
    }

    /// What the machine had since an earlier moment, `seconds` ago.
    pub fn since(&self, before: &Self, seconds: f64) -> Machine {
        // A thread that is gone takes its time with it.
        let rate = |new: f64, old: f64| ((new - old) / seconds.max(0.001)).max(0.0);
        Machine {
            processors: std::thread::available_parallelism().map_or(1.0, |all| all.get() as f64),
            used: rate(self.used, before.used),
            waited: rate(self.waited, before.waited),
            stolen: rate(self.stolen, before.stolen),
            held_back: rate(self.held_back, before.held_back),
            aes: aes(),
        }
    }

    /// What the disk below a path did since an earlier moment, if the system counts it.
    pub fn disk(&self, before: &Self, seconds: f64, path: &Path) -> Option<Device> {
        let device = fs::metadata(path).ok()?.dev();
        let device = (rustix::fs::major(device), rustix::fs::minor(device));
        let find = |counters: &Self| counters.disks.iter().find(|it| it.0 == device).cloned();
        let ((_, name, busy, weighted), (.., old_busy, old_weighted)) =
            (find(self)?, find(before)?);
        let millis = seconds.max(0.001) * 1e3;
        Some(Device {
            name,
            busy: (busy.saturating_sub(old_busy) as f64 / millis).min(1.0),
            queue: weighted.saturating_sub(old_weighted) as f64 / millis,
        })
    }
}

/// Whether the processor has instructions for AES.
fn aes() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("aes");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return true;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_read_as_the_kernel_writes_them() {
        let texts = ["1000000000 500000000 7", "2000000000 0 1", "", "x"].map(str::to_owned);
        assert_eq!(schedule(texts.into_iter()), (3.0, 0.5));
        let stat = "cpu  10 20 30 40 50 60 70 250 0 0\ncpu0 1 2 3 4 5 6 7 8 0 0\n";
        assert!((stolen(stat, 100.0) - 2.5).abs() < 1e-9);
        assert!(
            (held_back("usage_usec 9\nnr_throttled 3\nthrottled_usec 1500000\n") - 1.5).abs()
                < 1e-9
        );
        assert!((held_back("nr_periods 1\nthrottled_time 2000000000\n") - 2.0).abs() < 1e-9);
        assert!(held_back("").abs() < 1e-9);
        let two = group("0::/system.slice/x.service\n").unwrap();
        assert_eq!(two, Path::new("/sys/fs/cgroup/system.slice/x.service/cpu.stat"));
        let one = group("4:cpu,cpuacct:/a\n1:name=systemd:/b\n0::/c\n").unwrap();
        assert_eq!(one, Path::new("/sys/fs/cgroup/cpu/a/cpu.stat"));
        assert_eq!(group("nonsense"), None);
        let line = "   8       1 sda1 1 2 3 4 5 6 7 8 0 900 1800 0 0\n garbage\n";
        assert_eq!(disks(line), [((8, 1), "sda1".to_owned(), 900, 1800)]);
    }

    #[test]
    fn a_disk_is_known_by_the_number_of_its_file_system() {
        let folder = tempfile::tempdir().unwrap();
        let device = fs::metadata(folder.path()).unwrap().dev();
        let device = (rustix::fs::major(device), rustix::fs::minor(device));
        let at = |busy, weighted| Counters {
            disks: vec![(device, "sdz".to_owned(), busy, weighted)],
            ..Counters::default()
        };
        let found = at(1500, 9000).disk(&at(500, 1000), 2.0, folder.path());
        assert_eq!(found, Some(Device { name: "sdz".to_owned(), busy: 0.5, queue: 4.0 }));
        assert_eq!(at(0, 0).disk(&Counters::default(), 1.0, folder.path()), None);
    }

    #[test]
    fn this_process_uses_processor_time() {
        let before = Counters::now();
        let mut sum = 0u64;
        let after = loop {
            sum = (0..100_000u64).fold(sum, u64::wrapping_add);
            let after = Counters::now();
            if after.used > before.used {
                break after;
            }
        };
        assert!(after.since(&before, 1.0).used > 0.0, "{sum}");
    }
}

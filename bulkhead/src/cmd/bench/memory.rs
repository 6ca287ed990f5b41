//! Memory of a process and all its descendants, from `/proc`.

use std::fs;

use anyhow::Context;

use super::cpu;

/// Memory that processes have, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Memory {
    /// Resident pages of each process, added up: pages that several share count several times.
    pub resident: u64,
    /// The same, but a page that so many share counts a so-many-th for each.
    pub proportional: u64,
}

/// The value of a line such as `VmRSS:    1234 kB`, in bytes.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Memory of a process and its descendants now; those that end meanwhile are left out.
pub fn of_tree(pid: u32) -> anyhow::Result<Memory> {
    let mut sum = Memory::default();
    let mut seen = false;
    for member in cpu::members(pid)? {
        let read = |file: &str| fs::read_to_string(format!("/proc/{member}/{file}"));
        let (Ok(status), Ok(maps)) = (read("status"), read("smaps_rollup")) else { continue };
        if let (Some(resident), Some(proportional)) = (field(&status, "VmRSS"), field(&maps, "Pss"))
        {
            sum.resident += resident;
            sum.proportional += proportional;
            seen = true;
        }
    }
    seen.then_some(sum).with_context(|| format!("cannot read the memory of process {pid}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let text = "Rss:  10 kB\nPss_Dirty:  3 kB\nPss:\t   7 kB\nVmRSS: x kB\n";
        assert_eq!(field(text, "Pss"), Some(7 * 1024));
        assert_eq!(field(text, "Rss"), Some(10 * 1024));
        assert_eq!(field(text, "VmRSS"), None);
        assert_eq!(field(text, "VmSwap"), None);
    }

    #[test]
    fn what_is_touched_counts() {
        let before = of_tree(std::process::id()).unwrap();
        let touched = std::hint::black_box(vec![7u8; 64 << 20]);
        let after = of_tree(std::process::id()).unwrap();
        assert!(after.resident >= before.resident + (48 << 20), "{before:?} {after:?}");
        assert!(after.proportional >= before.proportional + (48 << 20), "{before:?} {after:?}");
        assert_eq!(touched[touched.len() - 1], 7);
        assert!(of_tree(u32::MAX).is_err());
    }
}

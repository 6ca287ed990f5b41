//! Which pages of guest memory were written since they were last looked at: KVM's log of the
//! vCPUs' writes joined with the bitmap of the devices' writes.
//!
//! ```text
//!  vCPU writes ──► KVM log ── GET ─► bits ── CLEAR(those bits) ──► write-protected again
//!                                     │ OR
//!  device writes ─► AtomicBitmap ─────┘──► pages to send
//! ```
//!
//! With `KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2` reading the log does not clear it; bits are cleared
//! just before their pages are read, so a page that is written meanwhile is seen again.

use std::{ops::Range, os::fd::AsRawFd};

use kvm_bindings::{
    KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_MEM_LOG_DIRTY_PAGES, kvm_clear_dirty_log, kvm_enable_cap,
};
use kvm_ioctls::VmFd;
use rustix::fs::SeekFrom;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::{ioctl::ioctl_with_ref, ioctl_iowr_nr};

use super::{
    error::Error,
    memory::{self, GuestRam, PAGE},
};

mod ioctl {
    use super::{ioctl_iowr_nr, kvm_clear_dirty_log};
    ioctl_iowr_nr!(KVM_CLEAR_DIRTY_LOG, 0xae, 0xc0, kvm_clear_dirty_log);
}

/// Pages of guest memory as bits, one word list a region.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageSet {
    /// For each region of guest memory, a bit a page, lowest first.
    pub words: Vec<Vec<u64>>,
}

impl PageSet {
    /// All pages of `ram`.
    pub fn all(ram: &GuestRam) -> Self {
        let words = ram.iter().map(|region| {
            let pages = region.len() / PAGE;
            let mut words = vec![u64::MAX; pages.div_ceil(64) as usize];
            if let (Some(last), extra @ 1..) = (words.last_mut(), pages % 64) {
                *last = (1 << extra) - 1;
            }
            words
        });
        Self { words: words.collect() }
    }

    /// The pages of `ram` that were ever touched; all others are zeros. Whoever asks while the
    /// guest runs must have the dirty log on, which has what is touched from then on.
    pub fn touched(ram: &GuestRam) -> Self {
        let mut set = Self::all(ram);
        for (region, words) in ram.iter().zip(&mut set.words) {
            let Some(file) = region.file_offset() else { continue };
            if let Some(holes) = holes(file.file(), file.start(), region.len()) {
                for hole in holes {
                    clear(words, hole);
                }
            }
        }
        set
    }

    /// Adds the pages of a set of the same memory.
    pub fn join(&mut self, other: &Self) {
        for (words, more) in self.words.iter_mut().zip(&other.words) {
            for (word, more) in words.iter_mut().zip(more) {
                *word |= more;
            }
        }
    }

    /// Number of pages that are marked.
    pub fn count(&self) -> u64 {
        self.words.iter().flatten().map(|word| u64::from(word.count_ones())).sum()
    }
}

/// Ranges of pages of a memfd from `start` on that have no memory behind them; `None` if the
/// kernel cannot tell.
fn holes(file: &std::fs::File, start: u64, len: u64) -> Option<Vec<Range<u64>>> {
    let end = start + len;
    let mut holes = Vec::new();
    let mut at = start;
    while at < end {
        let data = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(data) => data.min(end),
            // No data from here on.
            Err(rustix::io::Errno::NXIO) => end,
            Err(_) => return None,
        };
        holes.push((at - start).div_ceil(PAGE)..(data - start) / PAGE);
        if data == end {
            break;
        }
        at = rustix::fs::seek(file, SeekFrom::Hole(data)).ok()?.min(end);
    }
    Some(holes)
}

fn clear(words: &mut [u64], pages: Range<u64>) {
    let mut page = pages.start;
    while page < pages.end {
        let (word, bit) = ((page / 64) as usize, page % 64);
        let count = (64 - bit).min(pages.end - page);
        let mask = if count == 64 { u64::MAX } else { ((1 << count) - 1) << bit };
        words[word] &= !mask;
        page += count;
    }
}

/// The dirty log of a machine, on while this exists.
#[derive(Debug)]
pub struct DirtyLog<'a> {
    vm: &'a VmFd,
    ram: &'a GuestRam,
    manual: bool,
}

impl<'a> DirtyLog<'a> {
    /// Switches logging on. Everything counts as clean: the caller sends all pages first.
    pub fn start(vm: &'a VmFd, ram: &'a GuestRam) -> Result<Self, Error> {
        // Pages start write-protected only where a CLEAR asks for it (bit 1, initially all set)
        // is not used: the first pass is over all pages anyway and clears as it goes.
        let cap = kvm_enable_cap {
            cap: KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
            args: [1, 0, 0, 0],
            ..Default::default()
        };
        let manual = vm.enable_cap(&cap).is_ok();
        if let Err(error) = memory::register(vm, ram, KVM_MEM_LOG_DIRTY_PAGES) {
            // A slot may already log: none must.
            let _ = memory::register(vm, ram, 0);
            return Err(error);
        }
        let log = Self { vm, ram, manual };
        log.take()?;
        Ok(log)
    }

    /// The pages written since the last call; they count as clean again. The caller must read
    /// them afterwards.
    pub fn take(&self) -> Result<PageSet, Error> {
        let mut words = Vec::new();
        for (slot, region) in self.ram.iter().enumerate() {
            let mut bits = self
                .vm
                .get_dirty_log(slot as u32, region.len() as usize)
                .map_err(Error::kvm("tell the dirty pages"))?;
            if self.manual && bits.iter().any(|word| *word != 0) {
                self.clear(slot as u32, region.len() / PAGE, &mut bits)?;
            }
            let device = region.get_mmap().bitmap().get_and_reset();
            for (word, more) in bits.iter_mut().zip(device) {
                *word |= more;
            }
            words.push(bits);
        }
        Ok(PageSet { words })
    }

    #[expect(unsafe_code, reason = "an ioctl that kvm-ioctls does not have")]
    fn clear(&self, slot: u32, pages: u64, bits: &mut [u64]) -> Result<(), Error> {
        let num_pages = u32::try_from(pages)
            .map_err(|_| Error::Memory(format!("a region of {pages} pages")))?;
        let mut request =
            kvm_clear_dirty_log { slot, num_pages, first_page: 0, ..Default::default() };
        request.__bindgen_anon_1.dirty_bitmap = bits.as_mut_ptr().cast();
        // SAFETY: the bitmap has a bit for each page of the slot, and KVM only reads it.
        let result =
            unsafe { ioctl_with_ref(&VmRef(self.vm), ioctl::KVM_CLEAR_DIRTY_LOG(), &request) };
        if result < 0 {
            return Err(Error::Os {
                what: "clear the dirty log",
                source: std::io::Error::last_os_error(),
            });
        }
        Ok(())
    }
}

struct VmRef<'a>(&'a VmFd);

impl AsRawFd for VmRef<'_> {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.0.as_raw_fd()
    }
}

impl Drop for DirtyLog<'_> {
    fn drop(&mut self) {
        if let Err(error) = memory::register(self.vm, self.ram, 0) {
            tracing::warn!(error = %super::error::chain(&error), "dirty logging stays on");
        }
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress};

    use super::*;

    #[test]
    fn touched_pages_are_found() {
        let ram = memory::allocate(8 << 20).unwrap();
        assert_eq!(PageSet::all(&ram).count(), 2048);
        for page in [0, 63, 64, 65, 500, 2047] {
            ram.write_obj(1u8, GuestAddress(page * PAGE)).unwrap();
        }
        let touched = PageSet::touched(&ram);
        let mut wanted = vec![0u64; 32];
        for page in [0, 63, 64, 65, 500, 2047] {
            wanted[page / 64] |= 1 << (page % 64);
        }
        assert_eq!(touched.words, vec![wanted]);
    }

    #[test]
    fn clearing_a_range_clears_exactly_it() {
        let mut words = vec![u64::MAX; 4];
        clear(&mut words, 60..130);
        let left = |page: usize| words[page / 64] >> (page % 64) & 1 == 1;
        assert!((0..256).all(|page| left(page) != (60..130).contains(&page)));
    }
}

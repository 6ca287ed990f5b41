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

use std::os::fd::AsRawFd;

use kvm_bindings::{
    KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_MEM_LOG_DIRTY_PAGES, kvm_clear_dirty_log, kvm_enable_cap,
};
use kvm_ioctls::VmFd;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::{ioctl::ioctl_with_ref, ioctl_iowr_nr};

use super::{
    Error,
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

    /// Adds the pages of a set of the same memory.
    pub fn join(&mut self, other: &Self) {
        for (words, more) in self.words.iter_mut().zip(&other.words) {
            for (word, more) in words.iter_mut().zip(more) {
                *word |= more;
            }
        }
    }

    /// Number of pages.
    pub fn count(&self) -> u64 {
        self.words.iter().flatten().map(|word| u64::from(word.count_ones())).sum()
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
        let result = unsafe { ioctl_with_ref(&VmRef(self.vm), ioctl::KVM_CLEAR_DIRTY_LOG(), &request) };
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

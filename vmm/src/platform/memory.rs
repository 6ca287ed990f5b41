//! Guest memory: memfd-backed regions with a bitmap of the pages that devices wrote.

use std::{ops::Range, sync::Arc};

use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use rustix::fs::FallocateFlags;
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, MmapRegion,
    VolatileMemory, bitmap::AtomicBitmap,
};

use super::{error::Error, layout};

/// Size of a page of guest memory everywhere in this crate.
pub const PAGE: u64 = 4096;

/// Guest memory with the device-side dirty bitmap: every access through `vm-memory` marks what
/// it wrote.
pub type GuestRam = GuestMemoryMmap<AtomicBitmap>;

/// Ranges (start, bytes) of guest memory of `size` bytes.
pub fn ranges(size: u64) -> Vec<(u64, u64)> {
    let low = size.min(layout::LOW_MEMORY_END);
    let mut ranges = vec![(0, low)];
    if size > low {
        ranges.push((layout::HIGH_RAM, size - low));
    }
    ranges
}

/// Allocates guest memory of `size` bytes, a multiple of [`PAGE`].
pub fn allocate(size: u64) -> Result<Arc<GuestRam>, Error> {
    let file = memfd(size)?;
    let mut at = 0;
    let mut parts = Vec::new();
    let file = Arc::new(file);
    for (start, len) in ranges(size) {
        let len_usize = usize::try_from(len).map_err(|_| Error::Memory("too large".into()))?;
        let offset = FileOffset::from_arc(file.clone(), at);
        parts.push((GuestAddress(start), len_usize, Some(offset)));
        at += len;
    }
    GuestRam::from_ranges_with_files(parts)
        .map(Arc::new)
        .map_err(|error| Error::Memory(error.to_string()))
}

fn memfd(size: u64) -> Result<std::fs::File, Error> {
    let memory = |error: rustix::io::Errno| Error::Memory(error.to_string());
    let fd =
        rustix::fs::memfd_create("guest-ram", rustix::fs::MemfdFlags::CLOEXEC).map_err(memory)?;
    rustix::fs::ftruncate(&fd, size).map_err(memory)?;
    Ok(fd.into())
}

/// Gives the whole pages of a range of guest addresses back to the host: they read as zeros until they are
/// written to. How many bytes of the range were memory.
pub fn give_back(ram: &GuestRam, range: Range<u64>) -> u64 {
    let Some(from) = range.start.checked_next_multiple_of(PAGE) else { return 0 };
    let to = range.end / PAGE * PAGE;
    let mut given = 0;
    for region in ram.iter() {
        let start = region.start_addr().0;
        let (from, to) = (from.max(start), to.min(start + region.len()));
        let Some(file) = region.file_offset().filter(|_| from < to) else { continue };
        let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let at = file.start() + (from - start);
        match rustix::fs::fallocate(file.file(), how, at, to - from) {
            Ok(()) => given += to - from,
            Err(error) => tracing::debug!(%error, "memory that is not given back"),
        }
    }
    given
}

/// Bytes of the host's memory that guest memory takes.
pub fn resident(ram: &GuestRam) -> u64 {
    let file = ram.iter().next().and_then(GuestMemoryRegion::file_offset);
    let stat = file.and_then(|file| rustix::fs::fstat(file.file()).ok());
    stat.map_or(0, |stat| u64::try_from(stat.st_blocks).unwrap_or(0) * 512)
}

/// Gives the memory to KVM, one slot a region, with `flags`
/// (`KVM_MEM_LOG_DIRTY_PAGES` switches dirty logging on, 0 off).
pub fn register(vm: &VmFd, ram: &GuestRam, flags: u32) -> Result<(), Error> {
    for (slot, region) in ram.iter().enumerate() {
        let address = region
            .get_host_address(vm_memory::MemoryRegionAddress(0))
            .map_err(|error| Error::Memory(error.to_string()))?;
        let region = kvm_userspace_memory_region {
            slot: slot as u32,
            flags,
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: address as u64,
        };
        set_region(vm, region)?;
    }
    Ok(())
}

#[expect(unsafe_code, reason = "KVM must be told a host address")]
fn set_region(vm: &VmFd, region: kvm_userspace_memory_region) -> Result<(), Error> {
    // SAFETY: the address and length are those of a mapping owned by the `GuestRam`, which each
    // vCPU's thread keeps for as long as it can run the guest, or by a `Rom`, which takes its slot away
    // before its mapping.
    unsafe { vm.set_user_memory_region(region) }.map_err(Error::kvm("set a memory region"))
}

/// Slots of what is not RAM begin here; guest memory has the ones from 0 on.
const FIRST_ROM_SLOT: u32 = 8;

/// Memory that a guest reads and that its writes do not change: they are the device's, as accesses to
/// its registers are.
#[derive(Debug)]
pub struct Rom {
    region: Arc<MmapRegion>,
    at: u64,
    slot: u32,
    /// The machine whose guest sees it; none in tests of a device alone.
    vm: Option<Arc<VmFd>>,
    shown: bool,
}

impl Rom {
    /// The `number`th of a machine: `content` at address `at`, both multiples of [`PAGE`]. The guest
    /// does not see it yet.
    ///
    /// # Errors
    /// [`Error::Memory`].
    pub fn new(vm: Option<Arc<VmFd>>, number: u32, at: u64, content: &[u8]) -> Result<Self, Error> {
        let len = content.len() as u64;
        if len == 0 || !len.is_multiple_of(PAGE) || !at.is_multiple_of(PAGE) {
            return Err(Error::Memory(format!("a ROM of {len} bytes at {at:#x}")));
        }
        let region =
            MmapRegion::new(content.len()).map_err(|error| Error::Memory(error.to_string()))?;
        let region = Arc::new(region);
        let rom = Self { region, at, slot: FIRST_ROM_SLOT + number, vm, shown: false };
        rom.write(0, content);
        Ok(rom)
    }

    /// Where the guest sees it.
    pub fn range(&self) -> Range<u64> {
        self.at..self.at + self.region.size() as u64
    }

    /// Bytes that it has.
    pub fn len(&self) -> usize {
        self.region.size()
    }

    /// Never: it has a page at least.
    pub fn is_empty(&self) -> bool {
        self.region.size() == 0
    }

    /// Copies from `offset` on; past the end are ones.
    pub fn read(&self, offset: usize, data: &mut [u8]) {
        data.fill(0xff);
        if let Some(rest) = self.region.size().checked_sub(offset) {
            let count = data.len().min(rest);
            if let Ok(part) = self.region.get_slice(offset, count) {
                part.copy_to(&mut data[..count]);
            }
        }
    }

    /// Changes what the guest reads from `offset` on; what is past the end is left out.
    pub fn write(&self, offset: usize, data: &[u8]) {
        if let Some(rest) = self.region.size().checked_sub(offset) {
            let count = data.len().min(rest);
            if let Ok(part) = self.region.get_slice(offset, count) {
                part.copy_from(&data[..count]);
            }
        }
    }

    /// Lets the guest read it as memory, or has its reads come to the device, too.
    ///
    /// # Errors
    /// What KVM refuses.
    pub fn show(&mut self, shown: bool) -> Result<(), Error> {
        if let Some(vm) = self.vm.as_ref().filter(|_| self.shown != shown) {
            let region = kvm_userspace_memory_region {
                slot: self.slot,
                flags: KVM_MEM_READONLY,
                guest_phys_addr: self.at,
                // A slot of no bytes is none.
                memory_size: if shown { self.region.size() as u64 } else { 0 },
                userspace_addr: self.region.as_ptr() as u64,
            };
            set_region(vm, region)?;
        }
        self.shown = shown;
        Ok(())
    }
}

impl Drop for Rom {
    fn drop(&mut self) {
        if let Err(error) = self.show(false) {
            // A guest that still sees these addresses must not find there what comes after it.
            tracing::error!(error = super::error::chain(&error), "a ROM stays with KVM");
            std::mem::forget(self.region.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;

    #[test]
    fn whole_pages_are_given_back_and_no_others() {
        let ram = allocate(16 * PAGE).unwrap();
        let fill =
            || (0..16 * PAGE / 8).for_each(|at| ram.write_obj(7u64, GuestAddress(at * 8)).unwrap());
        let full = |page: u64| ram.read_obj::<u64>(GuestAddress(page * PAGE)).unwrap() == 7;
        fill();
        assert_eq!(resident(&ram), 16 * PAGE);
        assert_eq!(give_back(&ram, PAGE + 1..5 * PAGE - 1), 2 * PAGE);
        assert_eq!(resident(&ram), 14 * PAGE);
        let left: Vec<u64> = (0..16).filter(|page| full(*page)).collect();
        assert_eq!(left, [0, 1, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);
        // What is no memory is none, and a page is there again when it is written to.
        let reversed = Range { start: 5 * PAGE, end: PAGE };
        for range in [20 * PAGE..u64::MAX, u64::MAX - 1..u64::MAX, reversed, 3..9] {
            assert_eq!(give_back(&ram, range), 0);
        }
        fill();
        assert_eq!(give_back(&ram, 15 * PAGE..u64::MAX), PAGE);
        assert!(full(14) && !full(15));
    }
}

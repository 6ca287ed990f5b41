//! Guest memory: memfd-backed regions with a bitmap of the pages that devices wrote.

use std::sync::Arc;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    bitmap::AtomicBitmap,
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
    // vCPU's thread keeps for as long as it can run the guest.
    unsafe { vm.set_user_memory_region(region) }.map_err(Error::kvm("set a memory region"))
}

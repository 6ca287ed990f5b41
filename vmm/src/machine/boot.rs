//! Direct boot: loads a kernel into guest memory and sets the first vCPU to its entry.
//!
//! - ELF with a PVH note: 32-bit protected mode, paging off, `ebx` = start info
//!   (Xen's `docs/misc/pvh`).
//! - bzImage: 64-bit entry at 0x200, `rsi` = zero page (Linux `Documentation/arch/x86/boot`).

use std::{fs::File, io::Read, os::unix::fs::FileExt, path::Path};

use host_api::BootDefinition;
use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use linux_loader::loader::{
    KernelLoader,
    bootparam::{boot_e820_entry, boot_params},
    bzimage::BzImage,
    elf::{
        Elf, PvhBootCapability,
        start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info},
    },
};
use vm_memory::{ByteValued, Bytes, GuestAddress};

use crate::platform::{
    error::Error,
    layout,
    memory::{self, GuestRam},
};

pub(super) const E820_RAM: u32 = 1;
pub(super) const E820_RESERVED: u32 = 2;
const PVH_MAGIC: u32 = 0x336e_c578;

/// How the first vCPU enters the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// PVH: 32-bit, at this address.
    Pvh(u64),
    /// Linux 64-bit, at this address.
    Linux64(u64),
}

fn gone(error: impl std::fmt::Display) -> Error {
    Error::Memory(error.to_string())
}

/// Loads what `boot` names; `memory` is the guest's memory in bytes.
pub fn load(ram: &GuestRam, boot: &BootDefinition, memory: u64, rsdp: u64) -> Result<Entry, Error> {
    let bad = |path: &Path, why: String| Error::Boot { path: path.to_owned(), why };
    let mut file =
        File::open(&boot.kernel).map_err(|error| bad(&boot.kernel, error.to_string()))?;
    let mut magic = [0; 4];
    file.read_exact(&mut magic).map_err(|error| bad(&boot.kernel, error.to_string()))?;
    let end = initrd_end(&file, &magic).map_err(|error| bad(&boot.kernel, error.to_string()))?;
    let end = end.min(memory).min(layout::LOW_MEMORY_END);
    let initrd = boot.initrd.as_deref().map(|path| load_initrd(ram, path, end)).transpose()?;
    let cmdline = boot.cmdline.as_bytes();
    if cmdline.len() >= layout::CMDLINE_MAX || cmdline.contains(&0) {
        return Err(bad(&boot.kernel, "the command line is too long".into()));
    }
    ram.write_slice(cmdline, GuestAddress(layout::CMDLINE)).map_err(gone)?;
    ram.write_slice(&[0], GuestAddress(layout::CMDLINE + cmdline.len() as u64)).map_err(gone)?;
    if &magic == b"\x7fELF" {
        let loaded = Elf::load(ram, None, &mut file, Some(GuestAddress(layout::HIGH_MEMORY)))
            .map_err(|error| bad(&boot.kernel, error.to_string()))?;
        let PvhBootCapability::PvhEntryPresent(entry) = loaded.pvh_boot_cap else {
            return Err(bad(&boot.kernel, "an ELF file without a PVH entry note".into()));
        };
        write_pvh_info(ram, initrd, memory, rsdp)?;
        Ok(Entry::Pvh(entry.0))
    } else {
        let loaded = BzImage::load(ram, None, &mut file, Some(GuestAddress(layout::HIGH_MEMORY)))
            .map_err(|error| bad(&boot.kernel, error.to_string()))?;
        let Some(header) = loaded.setup_header else {
            return Err(bad(&boot.kernel, "a kernel without a setup header".into()));
        };
        const XLF_KERNEL_64: u16 = 1;
        if header.xloadflags & XLF_KERNEL_64 == 0 {
            return Err(bad(&boot.kernel, "a kernel without a 64-bit entry".into()));
        }
        let mut params = boot_params { hdr: header, ..Default::default() };
        params.hdr.type_of_loader = 0xff;
        params.hdr.cmd_line_ptr = layout::CMDLINE as u32;
        params.hdr.cmdline_size = cmdline.len() as u32;
        params.acpi_rsdp_addr = rsdp;
        if let Some((at, len)) = initrd {
            params.hdr.ramdisk_image = at as u32;
            params.hdr.ramdisk_size = len as u32;
        }
        let map = memory_map(memory);
        params.e820_entries = map.len() as u8;
        for (entry, (addr, size, type_)) in params.e820_table.iter_mut().zip(map) {
            *entry = boot_e820_entry { addr, size, r#type: type_ };
        }
        ram.write_slice(params.as_slice(), GuestAddress(layout::ZERO_PAGE)).map_err(gone)?;
        write_page_tables(ram)?;
        Ok(Entry::Linux64(loaded.kernel_load.0 + 0x200))
    }
}

/// Where the initrd of a kernel must have ended: a bzImage's header says which byte may be its last
/// (`initrd_addr_max` of the x86 boot protocol, 2.03 and later), 0x37ff_ffff in older ones.
fn initrd_end(kernel: &File, magic: &[u8; 4]) -> std::io::Result<u64> {
    const MARK: u64 = 0x202;
    const VERSION: u64 = 0x206;
    const LAST: u64 = 0x22c;
    if magic == b"\x7fELF" {
        return Ok(layout::LOW_MEMORY_END);
    }
    let mut mark = [0; 4];
    let (mut version, mut last) = ([0; 2], [0; 4]);
    kernel.read_exact_at(&mut mark, MARK)?;
    kernel.read_exact_at(&mut version, VERSION)?;
    kernel.read_exact_at(&mut last, LAST)?;
    let said = &mark == b"HdrS" && u16::from_le_bytes(version) >= 0x203;
    Ok(u64::from(if said { u32::from_le_bytes(last) } else { 0x37ff_ffff }) + 1)
}

/// Puts the initrd as high as possible below `end`; returns its address and length.
fn load_initrd(ram: &GuestRam, path: &Path, end: u64) -> Result<(u64, u64), Error> {
    let bad = |why: String| Error::Boot { path: path.to_owned(), why };
    let mut file = File::open(path).map_err(|error| bad(error.to_string()))?;
    let len = file.metadata().map_err(|error| bad(error.to_string()))?.len();
    let at = end
        .checked_sub(len)
        .map(|at| at & !(memory::PAGE - 1))
        .filter(|at| *at > layout::HIGH_MEMORY)
        .ok_or_else(|| bad(format!("{len} bytes do not fit into guest memory")))?;
    ram.read_exact_volatile_from(GuestAddress(at), &mut file, len as usize)
        .map_err(|error| bad(error.to_string()))?;
    Ok((at, len))
}

/// Address, length and type of the guest's memory ranges.
fn memory_map(memory: u64) -> Vec<(u64, u64, u32)> {
    let mut map = vec![
        (0, layout::EBDA, E820_RAM),
        (layout::EBDA, layout::HIGH_MEMORY - layout::EBDA, E820_RESERVED),
    ];
    for (start, len) in memory::ranges(memory) {
        let skip = if start == 0 { layout::HIGH_MEMORY } else { 0 };
        map.push((start + skip, len - skip, E820_RAM));
    }
    map
}

fn write_pvh_info(
    ram: &GuestRam,
    initrd: Option<(u64, u64)>,
    memory: u64,
    rsdp: u64,
) -> Result<(), Error> {
    let map = memory_map(memory);
    let modules = layout::PVH_MEMMAP + 512;
    let info = hvm_start_info {
        magic: PVH_MAGIC,
        version: 1,
        nr_modules: u32::from(initrd.is_some()),
        modlist_paddr: if initrd.is_some() { modules } else { 0 },
        cmdline_paddr: layout::CMDLINE,
        rsdp_paddr: rsdp,
        memmap_paddr: layout::PVH_MEMMAP,
        memmap_entries: map.len() as u32,
        ..Default::default()
    };
    ram.write_slice(info.as_slice(), GuestAddress(layout::PVH_INFO)).map_err(gone)?;
    for (index, (addr, size, type_)) in map.into_iter().enumerate() {
        let entry = hvm_memmap_table_entry { addr, size, type_, reserved: 0 };
        let at = layout::PVH_MEMMAP + (index * size_of::<hvm_memmap_table_entry>()) as u64;
        ram.write_slice(entry.as_slice(), GuestAddress(at)).map_err(gone)?;
    }
    if let Some((paddr, size)) = initrd {
        let module = hvm_modlist_entry { paddr, size, ..Default::default() };
        ram.write_slice(module.as_slice(), GuestAddress(modules)).map_err(gone)?;
    }
    Ok(())
}

/// Identity-maps the first 4 GiB with 2 MiB pages.
fn write_page_tables(ram: &GuestRam) -> Result<(), Error> {
    let base = layout::BOOT_PAGE_TABLES;
    let put = |at: u64, value: u64| ram.write_obj(value, GuestAddress(at)).map_err(gone);
    put(base, (base + 0x1000) | 3)?;
    for directory in 0..4 {
        let table = base + 0x2000 + directory * 0x1000;
        put(base + 0x1000 + directory * 8, table | 3)?;
        for page in 0..512 {
            put(table + page * 8, (directory << 30) | (page << 21) | 0x83)?;
        }
    }
    Ok(())
}

fn segment(selector: u16, type_: u8, long: bool) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_,
        present: 1,
        dpl: 0,
        db: u8::from(!long),
        s: 1,
        l: u8::from(long),
        g: 1,
        avl: 0,
        unusable: 0,
        padding: 0,
    }
}

/// The registers with which the first vCPU enters.
pub fn entry_registers(
    ram: &GuestRam,
    entry: Entry,
    sregs: &mut kvm_sregs,
) -> Result<kvm_regs, Error> {
    let long = matches!(entry, Entry::Linux64(_));
    let code_flags = if long { 0x00af_9b00_0000_ffff } else { 0x00cf_9b00_0000_ffff };
    let gdt: [u64; 4] = [0, 0, code_flags, 0x00cf_9300_0000_ffff];
    for (index, entry) in gdt.into_iter().enumerate() {
        ram.write_obj(entry, GuestAddress(layout::BOOT_GDT + index as u64 * 8)).map_err(gone)?;
    }
    sregs.gdt.base = layout::BOOT_GDT;
    sregs.gdt.limit = 31;
    sregs.idt.base = 0;
    sregs.idt.limit = 0;
    sregs.cs = segment(0x10, 0xb, long);
    let data = segment(0x18, 0x3, false);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    const PROTECTED: u64 = 1;
    const EXTENSION_TYPE: u64 = 1 << 4;
    const PAGING: u64 = 1 << 31;
    const PHYSICAL_ADDRESS_EXTENSION: u64 = 1 << 5;
    const LONG_MODE: u64 = 1 << 8 | 1 << 10;
    sregs.cr0 = PROTECTED | EXTENSION_TYPE;
    let mut regs = kvm_regs { rflags: 2, ..Default::default() };
    match entry {
        Entry::Pvh(at) => {
            // A 32-bit task state of sufficient size must be loaded (pvh, "task register").
            sregs.tr = kvm_segment { limit: 0x67, type_: 0xb, present: 1, ..Default::default() };
            sregs.cr4 = 0;
            sregs.efer = 0;
            regs.rip = at;
            regs.rbx = layout::PVH_INFO;
        }
        Entry::Linux64(at) => {
            sregs.cr3 = layout::BOOT_PAGE_TABLES;
            sregs.cr4 = PHYSICAL_ADDRESS_EXTENSION;
            sregs.cr0 |= PAGING;
            sregs.efer = LONG_MODE;
            regs.rip = at;
            regs.rsi = layout::ZERO_PAGE;
            regs.rsp = layout::BOOT_STACK;
            regs.rbp = layout::BOOT_STACK;
        }
    }
    Ok(regs)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn an_initrd_ends_where_its_kernel_can_reach_it() {
        let kernel = |mark: &[u8], version: u16, last: u32| {
            let mut file = tempfile::tempfile().unwrap();
            let mut bytes = vec![0; 0x300];
            bytes[0x202..0x202 + mark.len()].copy_from_slice(mark);
            bytes[0x206..0x208].copy_from_slice(&version.to_le_bytes());
            bytes[0x22c..0x230].copy_from_slice(&last.to_le_bytes());
            file.write_all(&bytes).unwrap();
            file
        };
        let end = |file: &File| initrd_end(file, b"MZ\0\0").unwrap();
        assert_eq!(end(&kernel(b"HdrS", 0x20f, 0x7fff_ffff)), 0x8000_0000);
        assert_eq!(end(&kernel(b"HdrS", 0x202, 0x7fff_ffff)), 0x3800_0000);
        assert_eq!(end(&kernel(b"", 0x20f, 0x7fff_ffff)), 0x3800_0000);
        let elf = initrd_end(&kernel(b"", 0, 0), b"\x7fELF").unwrap();
        assert_eq!(elf, layout::LOW_MEMORY_END);
        let ram = memory::allocate(16 << 20).unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), vec![7; 5000]).unwrap();
        let (at, len) = load_initrd(&ram, file.path(), 0x30_0000).unwrap();
        assert!(at + len <= 0x30_0000 && len == 5000, "{at:#x}");
        assert!(load_initrd(&ram, file.path(), layout::HIGH_MEMORY + 4096).is_err());
    }

    #[test]
    fn the_memory_map_has_all_memory_and_no_overlap() {
        for memory in [16 << 20, 3 << 30, 5u64 << 30] {
            let map = memory_map(memory);
            let ram: u64 = map.iter().filter(|entry| entry.2 == E820_RAM).map(|e| e.1).sum();
            assert_eq!(ram, memory - (layout::HIGH_MEMORY - layout::EBDA));
            assert!(map.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0));
        }
    }
}

//! Where things are in a guest's physical address space and I/O space.
//!
//! ```text
//!  0         640K  1M            lowmem end      3G        4G
//!  | boot data | … | kernel … initrd |   hole    | MMIO     | high memory …
//! ```

/// Start of what a PVH entry is told (`hvm_start_info`).
pub const PVH_INFO: u64 = 0x6000;
/// Memory map of a PVH entry.
pub const PVH_MEMMAP: u64 = 0x6100;
/// The Linux zero page.
pub const ZERO_PAGE: u64 = 0x7000;
/// Initial stack pointer of a 64-bit Linux entry.
pub const BOOT_STACK: u64 = 0x8ff0;
/// Page tables of a 64-bit Linux entry: one PML4, one PDPT, four page directories.
pub const BOOT_PAGE_TABLES: u64 = 0x9000;
/// GDT of the entry.
pub const BOOT_GDT: u64 = 0x500;
/// The kernel command line.
pub const CMDLINE: u64 = 0x2_0000;
/// Longest command line in bytes with its terminator.
pub const CMDLINE_MAX: usize = 0x1_0000;
/// End of conventional memory.
pub const EBDA: u64 = 0x9_fc00;
/// The ACPI tables, RSDP first (a BIOS area that is searched on 16-byte boundaries).
pub const ACPI_TABLES: u64 = 0xe_0000;
/// Bytes reserved for the ACPI tables.
pub const ACPI_TABLES_LEN: u64 = 0x1_0000;
/// Where kernels are loaded.
pub const HIGH_MEMORY: u64 = 0x10_0000;
/// RAM below 4 GiB ends here at the latest.
pub const LOW_MEMORY_END: u64 = 0xc000_0000;
/// PCI memory window.
pub const PCI_MMIO: u64 = 0xc000_0000;
/// Bytes of the PCI memory window.
pub const PCI_MMIO_LEN: u64 = 0x3000_0000;
/// RAM above 4 GiB starts here.
pub const HIGH_RAM: u64 = 1 << 32;
/// I/O APIC.
pub const IOAPIC: u32 = 0xfec0_0000;
/// Local APICs.
pub const LAPIC: u32 = 0xfee0_0000;
/// Three pages that KVM uses on Intel for real mode; below all that a firmware takes.
pub const TSS: usize = 0xfeff_d000;
/// One page more of the same.
pub const IDENTITY_MAP: u64 = 0xfeff_c000;
/// A firmware ends here, and a CPU's first instruction is 16 bytes below.
pub const FIRMWARE_END: u64 = 1 << 32;
/// Most bytes that a firmware and its variables may have.
pub const FIRMWARE_MOST: u64 = 16 << 20;
/// Most bytes of them that are variables: they go with a machine when it is moved, in its state.
pub const VARIABLES_MOST: u64 = 2 << 20;
/// The end of a BIOS has a copy in memory that ends here.
pub const BIOS_COPY_END: u64 = 0x10_0000;
/// Bytes of that copy.
pub const BIOS_COPY: usize = 0x2_0000;
/// The least address at which firmware places PCI windows.
pub const FIRMWARE_PCI_LEAST: u64 = 0x8000_0000;
/// The end of the range in which it does.
pub const FIRMWARE_PCI_END: u64 = IOAPIC as u64;

/// Interrupt of the serial port.
pub const SERIAL_IRQ: u32 = 4;
/// ACPI system control interrupt.
pub const SCI_IRQ: u32 = 9;
/// First interrupt line that is free for message-signalled interrupts.
pub const FIRST_MSI_GSI: u32 = 24;

/// 16550 serial port.
pub const SERIAL_PORT: u16 = 0x3f8;
/// Real-time clock index and data.
pub const CMOS_PORT: u16 = 0x70;
/// ACPI PM1a event block (status, enable).
pub const PM1_EVENT: u16 = 0x600;
/// ACPI PM1a control block.
pub const PM1_CONTROL: u16 = 0x604;
/// ACPI PM timer.
pub const PM_TIMER: u16 = 0x608;
/// PCI configuration mechanism 1.
pub const PCI_CONFIG: u16 = 0xcf8;
/// Reset control register.
pub const RESET_PORT: u16 = 0xcf9;
/// Keyboard controller, kept for its reset command only.
pub const I8042_PORT: u16 = 0x60;
/// System control port A: the address line 20, and a reset.
pub const PORT_92: u16 = 0x92;
/// Where a guest's kernel says that it has panicked.
pub const PANIC_PORT: u16 = 0x505;
/// Where firmware prints what is for its developers.
pub const DEBUG_PORT: u16 = 0x402;
/// Selector, data and DMA address of the firmware's configuration.
pub const FW_CFG: u16 = 0x510;

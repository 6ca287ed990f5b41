//! The machine: ports, the local APIC, interrupts, clocks, the command line.

use core::{
    arch::asm,
    fmt,
    ptr::{addr_of, addr_of_mut, read_volatile, write_volatile},
};

unsafe extern "C" {
    static mut idt: [[u64; 2]; 256];
    static exception_table: [u64; 32];
    static mut irq_count: [u64; 2];
    static start_info: u64;
    #[link_name = "exception_record"]
    static exception_words: [u64; 4];
    fn irq_disk();
    fn irq_console();
}

/// Interrupt vector of the disk.
pub const DISK_VECTOR: u8 = 0x50;
/// Interrupt vector of the console.
pub const CONSOLE_VECTOR: u8 = 0x51;
const LAPIC: u64 = 0xfee0_0000;
const PM_TIMER: u16 = 0x608;
const PM_TIMER_HZ: u64 = 3_579_545;

pub fn out8(port: u16, value: u8) {
    // SAFETY: ring 3 has the privilege; ports do not alias memory.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack)) }
}

pub fn out16(port: u16, value: u16) {
    // SAFETY: as above.
    unsafe { asm!("out dx, ax", in("dx") port, in("ax") value, options(nomem, nostack)) }
}

pub fn out32(port: u16, value: u32) {
    // SAFETY: as above.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nomem, nostack)) }
}

pub fn in32(port: u16) -> u32 {
    let value;
    // SAFETY: as above.
    unsafe { asm!("in eax, dx", in("dx") port, out("eax") value, options(nomem, nostack)) }
    value
}

pub fn tsc() -> u64 {
    // SAFETY: reads a counter.
    unsafe { core::arch::x86_64::_rdtsc() }
}

pub fn read32(address: u64) -> u32 {
    // SAFETY: the first 4 GiB are mapped; the callers pass device registers.
    unsafe { read_volatile(address as *const u32) }
}

pub fn write32(address: u64, value: u32) {
    // SAFETY: as above.
    unsafe { write_volatile(address as *mut u32, value) }
}

pub fn write16(address: u64, value: u16) {
    // SAFETY: as above.
    unsafe { write_volatile(address as *mut u16, value) }
}

pub fn read8(address: u64) -> u8 {
    // SAFETY: as above.
    unsafe { read_volatile(address as *const u8) }
}

pub fn write8(address: u64, value: u8) {
    // SAFETY: as above.
    unsafe { write_volatile(address as *mut u8, value) }
}

fn gate(vector: usize, handler: u64) {
    let low = (handler & 0xffff) | 0x10 << 16 | 0x8e00 << 32 | (handler >> 16 & 0xffff) << 48;
    // SAFETY: the table is ours, and entries are written before interrupts can come.
    unsafe { write_volatile(addr_of_mut!(idt[vector]), [low, handler >> 32]) }
}

/// Fills the interrupt table and switches the local APIC on.
pub fn set_up_interrupts() {
    // SAFETY: a constant table.
    let exceptions = unsafe { read_volatile(addr_of!(exception_table)) };
    for (vector, handler) in exceptions.into_iter().enumerate() {
        gate(vector, handler);
    }
    gate(usize::from(DISK_VECTOR), irq_disk as *const () as u64);
    gate(usize::from(CONSOLE_VECTOR), irq_console as *const () as u64);
    gate(0xff, irq_console as *const () as u64);
    out8(0x21, 0xff);
    out8(0xa1, 0xff);
    write32(LAPIC + 0x80, 0);
    write32(LAPIC + 0xf0, 0x1ff);
}

/// Interrupts of the disk and of the console so far.
pub fn interrupts() -> [u64; 2] {
    // SAFETY: counters that ring 0 increments.
    unsafe { read_volatile(addr_of!(irq_count)) }
}

/// Vector, error code, instruction and CR2 of the last exception.
pub fn exception_record() -> [u64; 4] {
    // SAFETY: written by ring 0 before it came here.
    unsafe { read_volatile(addr_of!(exception_words)) }
}

/// The kernel command line.
pub fn command_line() -> &'static [u8] {
    // SAFETY: what the PVH entry was told: a structure whose word at 24 is the address of a
    // zero-terminated text; nothing writes to either.
    unsafe {
        let info = read_volatile(addr_of!(start_info)) as *const u8;
        let text = (info.add(24) as *const u64).read_unaligned() as *const u8;
        let mut len = 0;
        while len < 4096 && *text.add(len) != 0 {
            len += 1;
        }
        core::slice::from_raw_parts(text, len)
    }
}

/// TSC ticks per second, measured against the PM timer for about 15 ms.
pub fn tsc_hz() -> u64 {
    const WAIT: u32 = (PM_TIMER_HZ / 64) as u32;
    let (from, start) = (in32(PM_TIMER), tsc());
    loop {
        let passed = in32(PM_TIMER).wrapping_sub(from);
        if passed >= WAIT {
            let ticks = tsc() - start;
            return (u128::from(ticks) * u128::from(PM_TIMER_HZ) / u128::from(passed)) as u64;
        }
    }
}

/// Whether the power button was pressed.
pub fn power_button() -> bool {
    in32(0x600) & 1 << 8 != 0
}

/// Switches the machine off through ACPI S5.
pub fn power_off() -> ! {
    loop {
        out16(0x604, 5 << 10 | 1 << 13);
    }
}

/// The serial port, for first and last words.
pub struct Serial;

impl fmt::Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            out8(0x3f8, byte);
        }
        Ok(())
    }
}

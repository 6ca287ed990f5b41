//! A bare-metal guest that works its disk and its memory hard and checks both.
//!
//! ```text
//!  boot.s (ring 0: entry, interrupts) ──► guest_main (ring 3, all ports by the I/O bitmap)
//!      pci ──► virtq ──► disk, console
//!      work: writes, flushes, reads back, dirties memory, reports, obeys
//! ```
//!
//! Memory (identity mapped): 2 MiB image, 8 MiB disk buffers, 16 MiB table of last writes,
//! 32 MiB and up the working set.
//!
//! Command line: `span=MIB blocks=N seconds=N flush_every=N ws_mib=N seed=N depth=N iops=N`;
//! 0 means no limit for `blocks`, `seconds` and `iops`. Console commands, each a line: `stop`.

#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "bare metal: everything here is raw memory and ports")]

mod console;
mod machine;
#[path = "../src/pattern.rs"]
#[allow(dead_code, reason = "the guest only needs a part")]
mod pattern;
mod pci;
mod virtq;
mod work;

use core::{arch::global_asm, fmt::Write, panic::PanicInfo};

global_asm!(include_str!("boot.s"), options(att_syntax, raw));

/// Where ring 0 leaves the processor.
#[unsafe(no_mangle)]
extern "C" fn guest_main() -> ! {
    machine::set_up_interrupts();
    let mut serial = machine::Serial;
    let _ = writeln!(serial, "payload: up");
    let settings = work::Settings::from_command_line(machine::command_line());
    let code = match work::Work::new(settings) {
        Ok(mut work) => work.run(),
        Err(why) => {
            let _ = writeln!(serial, "payload: failed: {why}");
            1
        }
    };
    let _ = writeln!(serial, "payload: off, code {code}");
    machine::power_off()
}

/// Where ring 0 sends exceptions.
#[unsafe(no_mangle)]
extern "C" fn guest_exception() -> ! {
    let [vector, error, at, address] = machine::exception_record();
    let mut serial = machine::Serial;
    let _ = writeln!(
        serial,
        "payload: failed: exception {vector} error {error:#x} at {at:#x} address {address:#x}"
    );
    machine::power_off()
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    let _ = writeln!(machine::Serial, "payload: failed: {info}");
    machine::power_off()
}

/// Referred to by the precompiled core, never called: panics end the guest.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

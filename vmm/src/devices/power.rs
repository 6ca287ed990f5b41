//! ACPI fixed hardware: power button, soft off, the PM timer; and the reset ports.
//!
//! Registers (ACPI 6.5 §4.8.3): PM1a event block at 0x600, control at 0x604, timer at 0x608
//! (3.579545 MHz, 32 bits).

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};

use crate::platform::{
    bus::BusDevice,
    clock, layout,
    lifecycle::{Control, EndReason},
};

/// PM timer ticks per second.
pub const PM_TIMER_HZ: u64 = 3_579_545;
/// Sleep type of S5 in the DSDT.
pub const S5_SLEEP_TYPE: u16 = 5;
/// Sleep type by which firmware switches a PIIX4 off, which it does without the DSDT.
const PIIX_OFF: u16 = 0;
const POWER_BUTTON: u16 = 1 << 8;
const SLEEP_ENABLE: u16 = 1 << 13;
const SCI_ENABLE: u16 = 1;

/// The power management registers as they are moved.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PowerState {
    status: u16,
    enable: u16,
    /// PM timer age in nanoseconds when saved.
    timer_ns: u64,
    /// Host time then, in nanoseconds since 1970; 0 from a host of an earlier version.
    #[serde(default)]
    read_at: u64,
}

impl PowerState {
    /// Makes the time at which the timer was read that of a host whose clock is `nanos` ahead.
    pub fn set_clock_forward(&mut self, nanos: i64) {
        self.read_at = self.read_at.saturating_add_signed(nanos);
    }
}

/// The power management registers and what writing to them does.
#[derive(Debug)]
pub struct Power {
    vm: Arc<VmFd>,
    control: Arc<Control>,
    status: u16,
    enable: u16,
    timer_base: Duration,
    timer_since: Instant,
}

impl Power {
    /// A machine just switched on.
    pub fn new(vm: Arc<VmFd>, control: Arc<Control>) -> Self {
        Self {
            vm,
            control,
            status: 0,
            enable: 0,
            timer_base: Duration::ZERO,
            timer_since: Instant::now(),
        }
    }

    /// Presses the power button.
    pub fn press_button(&mut self) {
        self.status |= POWER_BUTTON;
        self.update_line();
    }

    /// The registers as they are now.
    pub fn save(&self) -> PowerState {
        let timer_ns = u64::try_from(self.timer().as_nanos()).unwrap_or(u64::MAX);
        PowerState { status: self.status, enable: self.enable, timer_ns, read_at: clock::now() }
    }

    /// Restores the registers. The timer has gone on while the guest was away, as its TSC has: a guest
    /// that watches one by the other would distrust it.
    pub fn restore(&mut self, state: &PowerState) {
        self.status = state.status;
        self.enable = state.enable;
        let away = Duration::from_nanos(clock::time_away(state.read_at));
        self.timer_base = Duration::from_nanos(state.timer_ns).saturating_add(away);
        self.timer_since = Instant::now();
    }

    fn timer(&self) -> Duration {
        self.timer_base.saturating_add(self.timer_since.elapsed())
    }

    fn update_line(&self) {
        let active = self.status & self.enable != 0;
        if let Err(error) = self.vm.set_irq_line(layout::SCI_IRQ, active) {
            tracing::warn!(%error, "cannot raise the ACPI interrupt");
        }
    }

    fn register(&self, offset: u64) -> u32 {
        match offset {
            0 => u32::from(self.status) | u32::from(self.enable) << 16,
            4 => u32::from(SCI_ENABLE),
            8 => {
                let ticks = self.timer().as_nanos() * u128::from(PM_TIMER_HZ) / 1_000_000_000;
                ticks as u32
            }
            _ => 0,
        }
    }
}

impl BusDevice for Power {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let bytes = self.register(offset & !3).to_le_bytes();
        let from = (offset & 3) as usize;
        for (index, byte) in data.iter_mut().enumerate() {
            *byte = bytes.get(from + index).copied().unwrap_or(0);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let byte = |index| u16::from(data.get(index).copied().unwrap_or(0));
        let word = byte(0) | byte(1) << 8;
        match offset {
            0 => {
                self.status &= !word;
                if data.len() == 4 {
                    self.enable = byte(2) | byte(3) << 8;
                }
                self.update_line();
            }
            2 => {
                self.enable = word;
                self.update_line();
            }
            4 if word & SLEEP_ENABLE != 0
                && matches!((word >> 10) & 7, S5_SLEEP_TYPE | PIIX_OFF) =>
            {
                self.control.end(EndReason::PowerOff);
            }
            _ => {}
        }
    }
}

/// The two ports by which PCs are reset: 0xcf9, and command 0xfe of a keyboard controller that
/// is otherwise absent.
#[derive(Debug)]
pub struct ResetPort {
    control: Arc<Control>,
    keyboard: bool,
}

impl ResetPort {
    /// The reset control register, at port 0xcf9.
    pub fn control_register(control: Arc<Control>) -> Self {
        Self { control, keyboard: false }
    }

    /// Ports 0x60 and 0x64 (registered as one range of five).
    pub fn keyboard(control: Arc<Control>) -> Self {
        Self { control, keyboard: true }
    }
}

impl BusDevice for ResetPort {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        // 0x61 is KVM's; a status of all ones says there is no keyboard controller.
        data.fill(if self.keyboard && offset != 1 { 0xff } else { 0 });
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let reset =
            if self.keyboard { offset == 4 && data[0] == 0xfe } else { data[0] & 0x04 != 0 };
        if reset {
            self.control.end(EndReason::Reset);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The PM timer goes on by the time that a guest was away, as its TSC does.
    #[test]
    fn the_timer_does_not_stand_still_while_its_guest_is_away() {
        let Some(kvm) = test_support::kvm() else { return };
        let vm = Arc::new(kvm.create_vm().unwrap());
        let power = || Power::new(vm.clone(), Arc::new(Control::default()));
        let saved = power().save();
        let ticks = |saved: &PowerState| {
            let mut there = power();
            there.restore(saved);
            u64::from(there.register(8))
        };
        assert!(ticks(&saved) < 100 * PM_TIMER_HZ);
        let mut away = saved.clone();
        away.set_clock_forward(-200_000_000_000);
        let there = ticks(&away);
        assert!((200 * PM_TIMER_HZ..300 * PM_TIMER_HZ).contains(&there), "{there}");
        // A host of an earlier version does not say when it was.
        let old = PowerState { read_at: 0, ..saved };
        assert!(ticks(&old) < 100 * PM_TIMER_HZ);
    }
}

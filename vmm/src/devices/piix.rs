//! The chipset that PC firmware looks for: Intel's 440FX with a PIIX3 and the power management of a
//! PIIX4, as QEMU's `pc` machines have it, and two ports of a PC.
//!
//! ```text
//!  0:0.0  8086:1237  host bridge    PAM (0x59) and SMRAM (0x72) are kept and change nothing: what is
//!                                   below 1 MiB is memory, and the BIOS is there already
//!  0:1.0  8086:7000  ISA bridge     PIRQ routes (0x60) are kept; no function here has an INTx line
//!  0:1.3  8086:7113  power          PMBASE (0x40), switched on by PMREGMISC (0x80)
//! ```
//!
//! The power management registers are those of [`super::power`], which are at 0x600 in any case, where
//! the ACPI tables say: firmware that puts them elsewhere finds them there, too.

use std::{
    ops::Range,
    sync::{Arc, Mutex, Weak},
};

use serde::{Deserialize, Serialize};

use super::{
    console::Console,
    pci::{
        PciFunction,
        config::{ConfigSpace, SavedConfig},
    },
};
use crate::platform::{
    bus::{Bus, BusDevice},
    layout,
    lifecycle::{Control, EndReason},
};

const INTEL: u16 = 0x8086;
/// By these firmware knows QEMU's machines.
const SUBSYSTEM: (u16, u16) = (0x1af4, 0x1100);
const PM_BASE: usize = 0x40;
const PM_ENABLE: usize = 0x80;
/// Ports of the power management registers.
const PM_PORTS: u64 = 64;

/// A function that only says what it is, and keeps what is written.
#[derive(Debug)]
pub struct Plain(ConfigSpace);

impl Plain {
    /// The host bridge, 0:0.0.
    pub fn host_bridge() -> Self {
        let config = function(0x1237, 0x06_00_00, 2);
        Self(config.with(0x59, &[], &[0xff; 7]).with(0x72, &[0x02], &[0xff]))
    }

    /// The bridge to ISA devices, 0:1.0, of which 0:1.3 is a part.
    pub fn isa_bridge() -> Self {
        const MANY_FUNCTIONS: u8 = 0x80;
        let config = function(0x7000, 0x06_01_00, 0);
        let config = config.with(0x0e, &[MANY_FUNCTIONS], &[]);
        Self(config.with(0x4c, &[], &[0xff; 4]).with(0x60, &[0x80; 4], &[0xff; 4]))
    }

    /// The registers as they are now.
    pub fn save(&self) -> SavedConfig {
        self.0.save()
    }

    /// Puts the registers that can be written back in place.
    pub fn restore(&mut self, saved: &SavedConfig) {
        self.0.restore(saved);
    }
}

/// Configuration space of one of these functions.
fn function(device: u16, class: u32, revision: u8) -> ConfigSpace {
    ConfigSpace::new(INTEL, device, class).of_subsystem(SUBSYSTEM.0, SUBSYSTEM.1).with(
        0x08,
        &[revision],
        &[],
    )
}

impl PciFunction for Plain {
    fn config_read(&mut self, offset: usize, data: &mut [u8]) {
        self.0.read(offset, data);
    }

    fn config_write(&mut self, offset: usize, data: &[u8]) {
        self.0.write(offset, data);
    }
}

/// The function that says where the power management registers are, 0:1.3.
pub struct PowerManagement {
    config: ConfigSpace,
    /// The bus has this function.
    ports: Weak<Bus>,
    power: Arc<Mutex<dyn BusDevice>>,
    /// Where the registers are beside their fixed place.
    at: Option<u64>,
}

impl std::fmt::Debug for PowerManagement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PowerManagement").field("at", &self.at).finish_non_exhaustive()
    }
}

impl PowerManagement {
    /// The function, for registers that are the device `power` on `ports`.
    pub fn new(ports: &Arc<Bus>, power: Arc<Mutex<dyn BusDevice>>) -> Self {
        // DEVACTB says that system management mode is set up: there is none, and firmware that sees
        // this does not try.
        let config = function(0x7113, 0x06_80_00, 3)
            .with(PM_BASE, &[1, 0, 0, 0], &[0xc0, 0xff])
            .with(0x58, &[0, 0, 0, 0x02], &[])
            .with(PM_ENABLE, &[0], &[1])
            .with(0x90, &[1, 0, 0, 0], &[0xf0, 0xff])
            .with(0xd2, &[0], &[0xff]);
        Self { config, ports: Arc::downgrade(ports), power, at: None }
    }

    /// The registers as they are now.
    pub fn save(&self) -> SavedConfig {
        self.config.save()
    }

    /// Puts the registers that can be written back in place, and what they say with them.
    pub fn restore(&mut self, saved: &SavedConfig) {
        self.config.restore(saved);
        self.follow();
    }

    /// Has the power management registers where configuration space says.
    fn follow(&mut self) {
        let base = u64::from(self.config.word(PM_BASE) & 0xffc0);
        let enabled = self.config.word(PM_ENABLE) & 1 != 0;
        // At their own place they are in any case.
        let wanted = enabled && base != 0 && base != u64::from(layout::PM1_EVENT);
        let wanted = wanted.then_some(base);
        let Some(ports) = self.ports.upgrade().filter(|_| wanted != self.at) else { return };
        if let Some(old) = self.at {
            ports.remove(old, &self.power);
        }
        if let Some(new) = wanted {
            ports.insert(new..new + PM_PORTS, self.power.clone());
        }
        self.at = wanted;
    }
}

impl PciFunction for PowerManagement {
    fn config_read(&mut self, offset: usize, data: &mut [u8]) {
        self.config.read(offset, data);
    }

    fn config_write(&mut self, offset: usize, data: &[u8]) {
        self.config.write(offset, data);
        self.follow();
    }
}

/// Port 0x92. Address line 20 is always there, whatever is said; bit 0 resets.
#[derive(Debug)]
pub struct Port92 {
    /// What was written last.
    pub value: u8,
    control: Arc<Control>,
}

impl Port92 {
    /// With the address line switched on, as it is here.
    pub fn new(control: Arc<Control>) -> Self {
        Self { value: 2, control }
    }
}

impl BusDevice for Port92 {
    fn read(&mut self, _: u64, data: &mut [u8]) {
        data.fill(self.value);
    }

    fn write(&mut self, _: u64, data: &[u8]) {
        self.value = data[0] & !1;
        if data[0] & 1 != 0 {
            self.control.end(EndReason::Reset);
        }
    }
}

/// What firmware prints for its developers: kept in a ring of 256 KiB, and told line by line to who
/// reads the host's log at level `debug`.
#[derive(Debug)]
pub struct DebugPort {
    vm: String,
    log: Console,
    line: Vec<u8>,
}

impl DebugPort {
    /// Longest line that is told at once.
    const LINE: usize = 256;

    /// The port of the VM of that name, printing to `log`.
    pub fn new(vm: &str, log: Console) -> Self {
        Self { vm: vm.to_owned(), log, line: Vec::new() }
    }

    /// The ports that it is registered for.
    pub fn ports(at: u16) -> Range<u64> {
        u64::from(at)..u64::from(at) + 1
    }
}

impl BusDevice for DebugPort {
    fn read(&mut self, _: u64, data: &mut [u8]) {
        // That it is here.
        data.fill(0xe9);
    }

    fn write(&mut self, _: u64, data: &[u8]) {
        self.log.push(data);
        for byte in data {
            match byte {
                b'\n' => {}
                0x20..0x7f => self.line.push(*byte),
                _ => continue,
            }
            if *byte == b'\n' || self.line.len() == Self::LINE {
                let line = String::from_utf8_lossy(&self.line);
                tracing::debug!(vm = self.vm, %line, "firmware");
                self.line.clear();
            }
        }
    }
}

/// What of the chipset is moved.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SavedPiix {
    /// Host bridge, ISA bridge, power management.
    pub functions: [SavedConfig; 3],
    /// Port 0x92.
    pub port_92: u8,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A device that reads as where it was read.
    struct Echo;

    impl BusDevice for Echo {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            data.fill(offset as u8);
        }

        fn write(&mut self, _: u64, _: &[u8]) {}
    }

    fn read(bus: &Bus, port: u64) -> u8 {
        let mut byte = [0];
        bus.read(port, &mut byte);
        byte[0]
    }

    #[test]
    fn power_registers_are_where_firmware_puts_them() {
        let bus = Arc::new(Bus::default());
        let mut function = PowerManagement::new(&bus, Arc::new(Mutex::new(Echo)));
        assert_eq!(read(&bus, 0xb004), 0xff);
        function.config_write(PM_BASE, &0xb001u32.to_le_bytes());
        assert_eq!(read(&bus, 0xb004), 0xff, "it is not switched on");
        function.config_write(PM_ENABLE, &[1]);
        assert_eq!((read(&bus, 0xb004), read(&bus, 0xb03f), read(&bus, 0xb040)), (4, 0x3f, 0xff));
        let saved = function.save();
        function.config_write(PM_BASE, &0xc041u32.to_le_bytes());
        assert_eq!((read(&bus, 0xb004), read(&bus, 0xc044)), (0xff, 4));
        function.config_write(PM_ENABLE, &[0]);
        assert_eq!(read(&bus, 0xc044), 0xff);
        function.restore(&saved);
        assert_eq!(read(&bus, 0xb004), 4);
        // At their own place they stay, whatever is said of it.
        let own = u64::from(layout::PM1_EVENT);
        bus.insert(own..own + 12, function.power.clone());
        for (register, value) in [(PM_BASE, 0x601u32), (PM_ENABLE, 1), (PM_ENABLE, 0)] {
            function.config_write(register, &value.to_le_bytes());
            assert_eq!(read(&bus, own + 4), 4);
        }
        function.restore(&saved);
        let mut base = [0; 4];
        function.config_read(PM_BASE, &mut base);
        assert_eq!(u32::from_le_bytes(base), 0xb001);
    }

    #[test]
    fn firmware_finds_the_chipset_that_it_knows() {
        let bus = Arc::new(Bus::default());
        let mut all: [Box<dyn PciFunction>; 3] = [
            Box::new(Plain::host_bridge()),
            Box::new(Plain::isa_bridge()),
            Box::new(PowerManagement::new(&bus, Arc::new(Mutex::new(Echo)))),
        ];
        let found = all.each_mut().map(|function| {
            let mut ids = [0; 4];
            function.config_read(0, &mut ids);
            let mut subsystem = [0; 4];
            function.config_read(0x2c, &mut subsystem);
            assert_eq!(u32::from_le_bytes(subsystem), 0x1100_1af4);
            u32::from_le_bytes(ids)
        });
        assert_eq!(found, [0x1237_8086, 0x7000_8086, 0x7113_8086]);
        // What is shadowed is kept, as firmware reads it back.
        all[0].config_write(0x59, &[0x30, 0x33]);
        let mut pam = [0; 2];
        all[0].config_read(0x59, &mut pam);
        assert_eq!(pam, [0x30, 0x33]);
    }

    #[test]
    fn port_92_resets_and_keeps_the_address_line() {
        let control = Arc::new(Control::default());
        let mut port = Port92::new(control.clone());
        port.write(0, &[0]);
        let mut byte = [9];
        port.read(0, &mut byte);
        assert_eq!((byte[0], control.ended()), (0, None));
        port.write(0, &[3]);
        assert_eq!(control.ended(), Some(EndReason::Reset));
    }

    #[test]
    fn what_firmware_prints_is_kept_within_bounds() {
        let log = Console::default();
        let mut port = DebugPort::new("a", log.clone());
        let mut here = [0];
        port.read(0, &mut here);
        assert_eq!(here[0], 0xe9);
        port.write(0, b"SeaBIOS\n");
        assert_eq!(log.tail(), b"SeaBIOS\n");
        for _ in 0..300_000 {
            port.write(0, b"x");
        }
        assert!(log.tail().len() <= 256 << 10);
        assert!(port.line.len() < DebugPort::LINE);
    }
}

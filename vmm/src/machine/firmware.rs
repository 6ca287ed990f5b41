//! A machine that starts by a firmware: SeaBIOS or OVMF, both by the contract of QEMU's `pc`.
//!
//! ```text
//!  0        0xe0000     1M            lowmem end            0xfec00000        4G
//!  | memory | BIOS copy | memory …    |  PCI, where firmware puts it |  … vars, code |
//!                                                          flash, read as memory ┘  └ ROM
//!  fw_cfg: memory map, ACPI tables and how to link them, SMBIOS, boot order
//! ```
//!
//! The first vCPU starts as after a reset, 16 bytes below 4 GiB. What firmware is loaded and what it
//! is told is made of the VM's definition and of files of the host, at each start; what it does with
//! its devices moves with the machine ([`SavedFirmware`]).

use std::{
    fs, io,
    path::Path,
    sync::{Arc, Mutex},
};

use host_api::{FirmwareDefinition, FirmwareKind, VmDefinition};
use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};
use vm_memory::{Bytes, GuestAddress};

use super::{acpi::Tables, boot, loader, smbios};
use crate::{
    devices::{
        cmos::{Cmos, SavedMemory},
        console::Console,
        flash::{BLOCK, Code, Flash, SavedFlash},
        fw_cfg::{self, FwCfg, SavedFwCfg},
        pci::ConfigPorts,
        piix::{DebugPort, Plain, Port92, PowerManagement, SavedPiix},
        power::Power,
    },
    platform::{
        bus::{Bus, lock},
        error::Error,
        layout,
        lifecycle::Control,
        memory::{self, GuestRam, Rom},
    },
};

/// Which firmware a machine has, for a host that is to take it over: in the middle of its work it goes
/// on with what is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FirmwareId {
    /// Bytes of the code.
    bytes: u64,
    /// Bytes of the variables.
    variables: u64,
    /// FNV-1a of the code, 64 bits.
    digest: u64,
}

/// What of a firmware's devices is moved.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SavedFirmware {
    fw_cfg: SavedFwCfg,
    chipset: SavedPiix,
    cmos: SavedMemory,
    flash: Option<SavedFlash>,
}

/// The files of a firmware.
#[derive(Debug)]
pub struct Images {
    code: Vec<u8>,
    vars: Option<Vec<u8>>,
}

impl Images {
    /// Reads what a definition names.
    ///
    /// # Errors
    /// [`Error::Boot`], which says what to install if a file of a package is not there.
    pub fn read(definition: &FirmwareDefinition) -> Result<Self, Error> {
        let kind = definition.kind;
        let read = |path: &Path, what: &str, most: u64| {
            let bad = |why: String| Error::Boot { path: path.to_owned(), why };
            let len = fs::metadata(path).map_err(|error| bad(missing(kind, path, &error)))?.len();
            if len == 0 || len > most || !len.is_multiple_of(BLOCK as u64) {
                let wanted = format!("{what} a multiple of {BLOCK}, at most {most}");
                return Err(bad(format!("it has {len} bytes; {wanted}")));
            }
            fs::read(path).map_err(|error| bad(error.to_string()))
        };
        let vars = |path: &Path| read(path, "a firmware's variables have", layout::VARIABLES_MOST);
        let vars = definition.vars().map(vars).transpose()?;
        let code = read(definition.code(), "a firmware has", layout::FIRMWARE_MOST)?;
        let all = code.len() + vars.as_ref().map_or(0, Vec::len);
        if all as u64 > layout::FIRMWARE_MOST {
            let why = format!("with its variables it has {all} bytes, more than there is room for");
            return Err(Error::Boot { path: definition.code().to_owned(), why });
        }
        Ok(Self { code, vars })
    }

    fn id(&self) -> FirmwareId {
        let hash = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
        FirmwareId {
            bytes: self.code.len() as u64,
            variables: self.vars.as_ref().map_or(0, Vec::len) as u64,
            digest: self.code.iter().fold(0xcbf2_9ce4_8422_2325, hash),
        }
    }
}

/// Why a file of a firmware cannot be read, and what to do about it.
fn missing(kind: FirmwareKind, path: &Path, error: &io::Error) -> String {
    let of_package = path == kind.default_code() || Some(path) == kind.default_vars();
    if error.kind() == io::ErrorKind::NotFound && of_package {
        let package = kind.package();
        return format!(
            "it is not there; install the package {package} on this host, or say in the VM file where the firmware \
             is ([firmware] code and vars)"
        );
    }
    error.to_string()
}

/// What a firmware needs of its machine.
#[derive(Debug)]
pub struct Parts<'a> {
    /// The machine at KVM.
    pub vm: &'a Arc<VmFd>,
    /// Guest memory.
    pub ram: &'a Arc<GuestRam>,
    /// The bus of ports.
    pub pio: &'a Arc<Bus>,
    /// The MMIO bus.
    pub mmio: &'a Arc<Bus>,
    /// How the machine is ended.
    pub control: &'a Arc<Control>,
    /// The power management registers.
    pub power: &'a Arc<Mutex<Power>>,
}

/// A machine's firmware and the devices that are there for it.
#[derive(Debug)]
pub struct Firmware {
    id: FirmwareId,
    /// The end of the code, as it is below 1 MiB.
    copy: Vec<u8>,
    host_bridge: Arc<Mutex<Plain>>,
    isa_bridge: Arc<Mutex<Plain>>,
    power: Arc<Mutex<PowerManagement>>,
    port_92: Arc<Mutex<Port92>>,
    fw_cfg: Arc<Mutex<FwCfg>>,
    flash: Option<Arc<Mutex<Flash>>>,
    log: Console,
}

impl Firmware {
    /// Puts the devices on the machine's buses. Their PCI functions are on the bus that comes with them,
    /// to which the machine adds its own.
    ///
    /// # Errors
    /// What is wrong with the images, and what KVM refuses.
    pub fn new(
        definition: &VmDefinition,
        firmware: &FirmwareDefinition,
        parts: &Parts<'_>,
    ) -> Result<(Self, ConfigPorts), Error> {
        let images = Images::read(firmware)?;
        let id = images.id();
        let code_at = layout::FIRMWARE_END - id.bytes;
        let rom =
            |number, at, content: &[u8]| Rom::new(Some(parts.vm.clone()), number, at, content);
        let code = rom(0, code_at, &images.code)?;
        let range = code.range();
        parts.mmio.insert(range, Arc::new(Mutex::new(Code::new(code)?)));
        let flash = match &images.vars {
            None => None,
            Some(vars) => {
                let chip = rom(1, code_at - id.variables, vars)?;
                let range = chip.range();
                let chip = Arc::new(Mutex::new(Flash::new(chip)?));
                parts.mmio.insert(range, chip.clone());
                Some(chip)
            }
        };
        let copy = images.code[images.code.len().saturating_sub(layout::BIOS_COPY)..].to_vec();

        let mut pci = ConfigPorts::empty();
        let host_bridge = Arc::new(Mutex::new(Plain::host_bridge()));
        let isa_bridge = Arc::new(Mutex::new(Plain::isa_bridge()));
        let power = PowerManagement::new(parts.pio, parts.power.clone());
        let power = Arc::new(Mutex::new(power));
        pci.put(0, 0, host_bridge.clone());
        pci.put(1, 0, isa_bridge.clone());
        pci.put(1, 3, power.clone());

        let log = Console::default();
        let debug = DebugPort::new(definition.name.as_str(), log.clone());
        parts.pio.insert(DebugPort::ports(layout::DEBUG_PORT), Arc::new(Mutex::new(debug)));
        let port_92 = Arc::new(Mutex::new(Port92::new(parts.control.clone())));
        let at = u64::from(layout::PORT_92);
        parts.pio.insert(at..at + 1, port_92.clone());
        let first_disk = pci.next_device();
        let told = told(definition, firmware.kind, parts.ram.clone(), first_disk);
        let fw_cfg = Arc::new(Mutex::new(told));
        let at = u64::from(layout::FW_CFG);
        parts.pio.insert(at..at + fw_cfg::PORTS, fw_cfg.clone());
        let all = Self { id, copy, host_bridge, isa_bridge, power, port_92, fw_cfg, flash, log };
        Ok((all, pci))
    }

    /// Puts into memory what firmware finds there at a reset.
    ///
    /// # Errors
    /// [`Error::Memory`] if there is too little of it.
    pub fn load(&self, ram: &GuestRam) -> Result<(), Error> {
        let at = layout::BIOS_COPY_END - self.copy.len() as u64;
        ram.write_slice(&self.copy, GuestAddress(at))
            .map_err(|error| Error::Memory(error.to_string()))
    }

    /// Which firmware it is.
    pub fn id(&self) -> &FirmwareId {
        &self.id
    }

    /// What it printed for its developers.
    pub fn log(&self) -> &Console {
        &self.log
    }

    /// The chip with its variables; none of a BIOS.
    pub fn flash(&self) -> Option<&Arc<Mutex<Flash>>> {
        self.flash.as_ref()
    }

    /// The devices as they are now; `cmos` is the machine's.
    pub fn save(&self, cmos: &Cmos) -> SavedFirmware {
        let functions = [
            lock(&self.host_bridge).save(),
            lock(&self.isa_bridge).save(),
            lock(&self.power).save(),
        ];
        SavedFirmware {
            fw_cfg: lock(&self.fw_cfg).save(),
            chipset: SavedPiix { functions, port_92: lock(&self.port_92).value },
            cmos: cmos.save_memory(),
            flash: self.flash.as_ref().map(|flash| lock(flash).save()),
        }
    }

    /// Puts saved devices in place.
    ///
    /// # Errors
    /// [`Error::Config`] if they are another machine's.
    pub fn restore(&self, saved: &SavedFirmware, cmos: &mut Cmos) -> Result<(), Error> {
        lock(&self.fw_cfg).restore(&saved.fw_cfg);
        let [host_bridge, isa_bridge, power] = &saved.chipset.functions;
        lock(&self.host_bridge).restore(host_bridge);
        lock(&self.isa_bridge).restore(isa_bridge);
        lock(&self.power).restore(power);
        lock(&self.port_92).value = saved.chipset.port_92;
        cmos.restore_memory(&saved.cmos)?;
        match (&self.flash, &saved.flash) {
            (None, None) => Ok(()),
            (Some(flash), Some(saved)) => lock(flash).restore(saved),
            _ => Err(Error::Config("a firmware of another kind".into())),
        }
    }
}

/// What the firmware of a machine is told. `first_disk` is the PCI device of its first disk.
fn told(
    definition: &VmDefinition,
    kind: FirmwareKind,
    ram: Arc<GuestRam>,
    first_disk: u8,
) -> FwCfg {
    let memory = definition.memory_mib << 20;
    let vcpus = definition.vcpus;
    let mut told = FwCfg::new(ram);
    told.add(0x02, definition.id.map_or([0; 16], |id| id.0));
    told.add(0x03, memory.to_le_bytes());
    // Nothing is drawn: what is for a screen goes to the serial port.
    told.add(0x04, 1u16.to_le_bytes());
    told.add(0x05, (vcpus as u16).to_le_bytes());
    // No kernel comes this way.
    told.add(0x08, 0u32.to_le_bytes());
    told.add(0x0e, 0u16.to_le_bytes());
    told.add(0x0f, (vcpus as u16).to_le_bytes());
    // The timer's line 0 arrives at pin 2 of the I/O APIC.
    told.add(0x8002, 1u32.to_le_bytes());

    told.add_file("etc/e820", memory_map(memory));
    // No sleep; off is S5 of that type.
    told.add_file("etc/system-states", [128, 0, 0, 1, 2, 128]);
    for (name, content) in loader::files(Tables::of(vcpus, &pci_window(memory))) {
        told.add_file(name, content);
    }
    for (name, content) in smbios::files(definition) {
        told.add_file(name, content);
    }
    if kind == FirmwareKind::Bios {
        told.add_file("etc/sercon-port", u64::from(layout::SERIAL_PORT).to_le_bytes());
        // Without a disk that boots it says so and stays, so that somebody can read it.
        told.add_file("etc/boot-fail-wait", u32::MAX.to_le_bytes());
        // UEFI has an order of its own among its variables, which this would overrule at each start.
        told.add_file("bootorder", boot_order(definition.disks.len(), first_disk));
    }
    told
}

/// Where PCI functions may be: both firmwares begin at 2 GiB, or where memory ends if that is later.
fn pci_window(memory: u64) -> std::ops::Range<u64> {
    let low = memory::ranges(memory)[0].1;
    let start = if low <= layout::FIRMWARE_PCI_LEAST {
        layout::FIRMWARE_PCI_LEAST
    } else {
        layout::LOW_MEMORY_END
    };
    start..layout::FIRMWARE_PCI_END
}

/// Address, length and type, of memory and of what KVM has taken; firmware knows what else there is.
fn memory_map(memory: u64) -> Vec<u8> {
    const PAGES_OF_KVM: u64 = 4;
    let ram = memory::ranges(memory).into_iter().map(|(at, len)| (at, len, boot::E820_RAM));
    let taken = (layout::IDENTITY_MAP, PAGES_OF_KVM * memory::PAGE, boot::E820_RESERVED);
    let mut bytes = Vec::new();
    for (at, len, kind) in ram.chain([taken]) {
        bytes.extend(at.to_le_bytes());
        bytes.extend(len.to_le_bytes());
        bytes.extend(kind.to_le_bytes());
    }
    bytes
}

/// The disks in order, as Open Firmware names them.
fn boot_order(disks: usize, first: u8) -> Vec<u8> {
    let device =
        |index: usize| format!("/pci@i0cf8/scsi@{:x}/disk@0,0", usize::from(first) + index);
    let all: Vec<String> = (0..disks).map(device).collect();
    let mut bytes = all.join("\n").into_bytes();
    bytes.push(0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definition(text: &str) -> VmDefinition {
        VmDefinition::from_toml(&format!("name = 'a'\nmemory_mib = 256\n{text}")).unwrap()
    }

    #[test]
    fn what_is_missing_is_named_with_its_package() {
        let gone = io::Error::from(io::ErrorKind::NotFound);
        for kind in [FirmwareKind::Bios, FirmwareKind::Uefi] {
            let why = missing(kind, kind.default_code(), &gone);
            assert!(why.contains(&format!("install the package {}", kind.package())), "{why}");
        }
        let own = definition("[firmware]\nkind = 'uefi'\nvars = '/nowhere/v'\n").firmware.unwrap();
        let error = Images::read(&own).unwrap_err().to_string();
        assert!(error.contains("/nowhere/v") && !error.contains("install"), "{error}");
    }

    #[test]
    fn files_that_are_no_firmware_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bios");
        let text = format!("[firmware]\nkind = 'bios'\ncode = {path:?}\n");
        let own = definition(&text).firmware.unwrap();
        for (len, good) in [(0, false), (4095, false), (4096, true), ((16 << 20) + 4096, false)] {
            fs::File::create(&path).unwrap().set_len(len).unwrap();
            assert_eq!(Images::read(&own).is_ok(), good, "{len}");
        }
        let vars = dir.path().join("vars");
        let text = format!("[firmware]\nkind = 'uefi'\ncode = {path:?}\nvars = {vars:?}\n");
        let own = definition(&text).firmware.unwrap();
        for (of_code, of_vars, wrong) in [
            (14, 2, None),
            (15, 2, Some("with its variables")),
            (1, 3, Some("a firmware's variables have")),
        ] {
            fs::File::create(&path).unwrap().set_len(of_code << 20).unwrap();
            fs::File::create(&vars).unwrap().set_len(of_vars << 20).unwrap();
            match (Images::read(&own), wrong) {
                (Ok(_), None) => {}
                (Err(error), Some(why)) => assert!(error.to_string().contains(why), "{error}"),
                (read, _) => panic!("{of_code} and {of_vars}: {read:?}"),
            }
        }
    }

    #[test]
    fn firmware_is_told_of_all_memory_and_of_its_disks_in_order() {
        let disks = "[[disk]]\nlocation = '/a.raw'\n[[disk]]\nlocation = '/b.raw'\n";
        let text = format!("[firmware]\nkind = 'bios'\n{disks}");
        let ram = memory::allocate(1 << 20).unwrap();
        let bios = told(&definition(&text), FirmwareKind::Bios, ram.clone(), 2);
        let order = bios.file("bootorder").unwrap();
        assert_eq!(order, b"/pci@i0cf8/scsi@2/disk@0,0\n/pci@i0cf8/scsi@3/disk@0,0\0");
        let map = bios.file("etc/e820").unwrap();
        assert_eq!(map.len(), 2 * 20);
        assert_eq!(map[8..16], (256u64 << 20).to_le_bytes());
        assert_eq!(memory_map(8 << 30).len(), 3 * 20);
        let uefi = told(&definition(&text), FirmwareKind::Uefi, ram, 2);
        assert_eq!(uefi.file("bootorder"), None);
        assert!(uefi.file(loader::SCRIPT).is_some() && uefi.file("etc/sercon-port").is_none());
        assert_eq!(pci_window(1 << 30), 0x8000_0000..0xfec0_0000);
        assert_eq!(pci_window(8 << 30), 0xc000_0000..0xfec0_0000);
    }
}

//! What a guest does with the devices that are there for its firmware: configuration, flash memory,
//! chipset, clock.

use std::{
    fs::File,
    io::Read,
    sync::{Arc, Mutex},
};

use vm_memory::{Bytes, GuestAddress};
use vmm::{
    devices::{
        cmos::Cmos,
        flash::Flash,
        fw_cfg::{FwCfg, PORTS},
        pci::{ConfigPorts, PciFunction},
        piix::{Plain, PowerManagement},
    },
    platform::{
        bus::{Bus, BusDevice},
        memory::{self, GuestRam, Rom},
    },
};

const RAM: usize = 64 << 10;
const FLASH: usize = 16 << 10;
/// Bytes of a step: what, two of a place, how long, four of data.
const STEP: usize = 8;
/// Most steps of one input.
const STEPS: usize = 512;

struct Devices {
    ram: Arc<GuestRam>,
    fw_cfg: FwCfg,
    flash: Flash,
    file: File,
    ports: Arc<Bus>,
    cmos: Cmos,
}

fn chip() -> (Flash, File) {
    let rom = Rom::new(None, 1, 0xffc0_0000, &[0xff; FLASH]).expect("a ROM");
    let mut flash = Flash::new(rom).expect("a chip");
    let file = tempfile::tempfile().expect("a file");
    flash.keep(file.try_clone().expect("a file")).expect("a chip that is kept");
    (flash, file)
}

impl Devices {
    fn new() -> Self {
        let ram = memory::allocate(RAM as u64).expect("memory");
        let mut fw_cfg = FwCfg::new(ram.clone());
        fw_cfg.add_file("etc/one", (0..=255u8).collect::<Vec<_>>());
        fw_cfg.add_file("etc/none", Vec::new());
        let (flash, file) = chip();
        let ports = Arc::new(Bus::default());
        let power = Arc::new(Mutex::new(Cmos::default()));
        let mut pci = ConfigPorts::empty();
        let functions: [Arc<Mutex<dyn PciFunction>>; 3] = [
            Arc::new(Mutex::new(Plain::host_bridge())),
            Arc::new(Mutex::new(Plain::isa_bridge())),
            Arc::new(Mutex::new(PowerManagement::new(&ports, power))),
        ];
        for ((device, function), it) in [(0, 0), (1, 0), (1, 3)].into_iter().zip(functions) {
            pci.put(device, function, it);
        }
        ports.insert(0xcf8..0xd00, Arc::new(Mutex::new(pci)));
        let cmos = Cmos::of_machine(1 << 30, 2);
        Self { ram, fw_cfg, flash, file, ports, cmos }
    }

    fn memory(&self) -> Vec<u8> {
        let mut all = vec![0; RAM];
        self.ram.read_slice(&mut all, GuestAddress(0)).expect("memory");
        all
    }

    /// A write to the configuration's ports changes no memory but what its descriptor names.
    fn configure(&mut self, offset: u64, data: &[u8]) {
        let before = self.memory();
        self.fw_cfg.write(offset, data);
        let after = self.memory();
        if before == after {
            return;
        }
        let at = u32::from_be_bytes(data.try_into().expect("the low half of an address")) as usize;
        let control = u32::from_be_bytes(after[at..at + 4].try_into().expect("four bytes"));
        assert!(control <= 1, "a transfer ends with {control:#x}");
        let word =
            |from: usize| u32::from_be_bytes(before[from..from + 4].try_into().expect("four"));
        let (len, to) = (word(at + 4) as usize, word(at + 12) as usize);
        for (index, (old, new)) in before.iter().zip(&after).enumerate() {
            let named = (at..at + 4).contains(&index) || (to..to + len).contains(&index);
            assert!(named || old == new, "byte {index:#x} of memory is changed");
        }
    }

    fn step(&mut self, step: &[u8; STEP]) {
        let [kind, high, low, len, data @ ..] = *step;
        let place = u64::from(u16::from_be_bytes([high, low]));
        let len = [1, 2, 4][usize::from(len) % 3];
        let mut data = data;
        let data = &mut data[..len];
        match kind % 8 {
            0 => self.configure(place % PORTS, data),
            1 => self.fw_cfg.read(place % PORTS, data),
            2 => drop(self.ram.write_slice(data, GuestAddress(place))),
            3 => self.flash.write(place % FLASH as u64, data),
            4 => self.flash.read(place % FLASH as u64, data),
            5 => self.move_flash(),
            6 => self.ports.write_to(0xcf8 + place % 8, data),
            _ => self.cmos.write(place % 2, data),
        }
    }

    /// Another chip goes on from what is saved of this one.
    fn move_flash(&mut self) {
        let saved = self.flash.save();
        let (mut flash, _) = chip();
        flash.restore(&saved).expect("a chip of the same size");
        assert!(flash.content() == self.flash.content(), "a chip has changed on its way");
        let file = tempfile::tempfile().expect("a file");
        flash.keep(file.try_clone().expect("a file")).expect("a chip that is kept");
        (self.flash, self.file) = (flash, file);
    }

    /// What a driver has back from the array is in the file.
    fn check_file(&mut self) {
        for _ in 0..2 {
            self.flash.write(0, &[0xff]);
        }
        let mut kept = Vec::new();
        let mut file = &self.file;
        std::io::Seek::rewind(&mut file).expect("a file");
        file.read_to_end(&mut kept).expect("a file");
        assert!(kept == self.flash.content(), "the file is not what the chip has");
    }
}

/// Steps of eight bytes: accesses of a guest to the devices, and moves in between. Whatever it does, a
/// transfer changes only memory that its descriptor names, a chip is the same where it is moved, and its
/// file has what it has.
pub fn guest(bytes: &[u8]) {
    let mut devices = Devices::new();
    for step in bytes.as_chunks::<STEP>().0.iter().take(STEPS) {
        devices.step(step);
    }
    devices.check_file();
}

fn steps(all: &[[u8; STEP]]) -> Vec<u8> {
    all.concat()
}

/// A transfer by DMA, flash that is looked for, programmed, erased and moved, and a chipset set up.
pub fn seeds() -> Vec<(String, Vec<u8>)> {
    let word = |at: u8, value: [u8; 4]| [2, 0x01, at, 2, value[0], value[1], value[2], value[3]];
    let transfer = steps(&[
        // Select and read 16 bytes of the first file to 0x200, by the descriptor at 0x100.
        word(0x00, [0, 0x20, 0, 0x0a]),
        word(0x04, [0, 0, 0, 16]),
        word(0x08, [0; 4]),
        word(0x0c, [0, 0, 2, 0]),
        [0, 0, 4, 2, 0, 0, 0, 0],
        [0, 0, 8, 2, 0, 0, 1, 0],
    ]);
    let bytes =
        steps(&[[0, 0, 0, 1, 0x19, 0, 0, 0], [1, 0, 1, 0, 0, 0, 0, 0], [1, 0, 4, 2, 0, 0, 0, 0]]);
    let command = |at: u8, byte: u8| [3, at, 7, 0, byte, 0, 0, 0];
    let look = [4, 0, 7, 0, 0, 0, 0, 0];
    let flash = steps(&[
        command(0, 0x50),
        command(0, 0x70),
        look,
        command(0, 0x10),
        command(0, 0x5a),
        command(0, 0xff),
        look,
        command(16, 0x20),
        command(16, 0xd0),
        look,
        [5, 0, 0, 0, 0, 0, 0, 0],
        command(16, 0x60),
        command(16, 0x01),
        command(0, 0xff),
        look,
    ]);
    let select = |function: u8, register: u8| [6, 0, 0, 2, register, function, 0, 0x80];
    let chipset = steps(&[
        select(0x0b, 0x40),
        [6, 0, 4, 2, 0x01, 0xb0, 0, 0],
        select(0x0b, 0x80),
        [6, 0, 4, 0, 1, 0, 0, 0],
        select(0, 0x58),
        [6, 0, 5, 0, 0x30, 0, 0, 0],
        [7, 0, 0, 0, 0x38, 0, 0, 0],
        [7, 0, 1, 0, 0x42, 0, 0, 0],
    ]);
    [("transfer", transfer), ("bytes", bytes), ("flash", flash), ("chipset", chipset)]
        .map(|(name, bytes)| (name.to_owned(), bytes))
        .into()
}

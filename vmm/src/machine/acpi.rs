//! ACPI tables (ACPI 6.5): RSDP, XSDT, FADT with the PM timer, MADT, and a DSDT with the PCI
//! root, the serial port, the port for panics and S5. They are laid out in one piece, in which pointers count from its
//! beginning until it is known where it is: for a kernel that is here, for firmware with the firmware
//! ([`super::loader`]).

use std::ops::Range;

use acpi_tables::{
    Aml, AmlSink, aml,
    sdt::{GenericAddress, Sdt},
};
use vm_memory::{Bytes, GuestAddress};

use crate::{
    devices::power::S5_SLEEP_TYPE,
    platform::{error::Error, layout, memory::GuestRam},
};

const OEM: [u8; 6] = *b"BULKHD";
const OEM_TABLE: [u8; 8] = *b"HYPERVHO";
/// Bytes of a table's header.
const HEADER: usize = 36;
const FADT_FACS: usize = 36;
const FADT_DSDT: usize = 40;
const FADT_X_DSDT: usize = 140;

struct Bytecode(Vec<u8>);

impl AmlSink for Bytecode {
    fn byte(&mut self, byte: u8) {
        self.0.push(byte);
    }
}

fn table(signature: &[u8; 4], revision: u8, body: &[u8]) -> Sdt {
    let mut table = Sdt::new(*signature, 36, revision, OEM, OEM_TABLE, 1);
    table.append_slice(body);
    table
}

/// `window` is where PCI functions have their memory.
fn dsdt(window: &Range<u64>) -> Sdt {
    let mut code = Bytecode(Vec::new());
    let (pci, pci_end) = (window.start as u32, (window.end - 1) as u32);
    aml::Scope::new(
        "_SB_".into(),
        vec![
            &aml::Device::new(
                "PCI0".into(),
                vec![
                    &aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0A03")),
                    &aml::Name::new("_ADR".into(), &aml::ZERO),
                    &aml::Name::new("_UID".into(), &aml::ZERO),
                    &aml::Name::new(
                        "_CRS".into(),
                        &aml::ResourceTemplate::new(vec![
                            &aml::AddressSpace::new_bus_number(0u16, 0u16),
                            &aml::IO::new(layout::PCI_CONFIG, layout::PCI_CONFIG, 1, 8),
                            &aml::AddressSpace::new_io(0u16, 0x0cf7, None),
                            &aml::AddressSpace::new_io(0x0d00u16, 0xffff, None),
                            &aml::AddressSpace::new_memory(
                                aml::AddressSpaceCacheable::NotCacheable,
                                true,
                                pci,
                                pci_end,
                                None,
                            ),
                        ]),
                    ),
                ],
            ),
            &aml::Device::new(
                "COM1".into(),
                vec![
                    &aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0501")),
                    &aml::Name::new("_UID".into(), &aml::ZERO),
                    &aml::Name::new(
                        "_CRS".into(),
                        &aml::ResourceTemplate::new(vec![
                            &aml::Interrupt::new(true, true, false, false, layout::SERIAL_IRQ),
                            &aml::IO::new(layout::SERIAL_PORT, layout::SERIAL_PORT, 0, 8),
                        ]),
                    ),
                ],
            ),
            &aml::Device::new(
                "PEVT".into(),
                vec![
                    &aml::Name::new("_HID".into(), &"QEMU0001"),
                    // It is there, enabled and working; nobody needs to be shown it.
                    &aml::Name::new("_STA".into(), &0x0bu8),
                    &aml::Name::new(
                        "_CRS".into(),
                        &aml::ResourceTemplate::new(vec![&aml::IO::new(
                            layout::PANIC_PORT,
                            layout::PANIC_PORT,
                            1,
                            1,
                        )]),
                    ),
                ],
            ),
        ],
    )
    .to_aml_bytes(&mut code);
    let s5 = u8::try_from(S5_SLEEP_TYPE).unwrap_or(0);
    aml::Name::new("_S5_".into(), &aml::Package::new(vec![&s5, &s5, &aml::ZERO, &aml::ZERO]))
        .to_aml_bytes(&mut code);
    table(b"DSDT", 2, &code.0)
}

fn fadt(facs: u64, dsdt: u64) -> Sdt {
    const TIMER_IS_32_BITS: u32 = 1 << 8;
    const WBINVD: u32 = 1;
    const C1: u32 = 1 << 2;
    const NO_SLEEP_BUTTON: u32 = 1 << 5;
    const RESET_REGISTER: u32 = 1 << 10;
    let mut fadt = Sdt::new(*b"FACP", 276, 6, OEM, OEM_TABLE, 1);
    fadt.write_u32(FADT_FACS, facs as u32);
    fadt.write_u32(FADT_DSDT, dsdt as u32);
    fadt.write_u16(46, layout::SCI_IRQ as u16);
    fadt.write_u32(56, u32::from(layout::PM1_EVENT));
    fadt.write_u32(64, u32::from(layout::PM1_CONTROL));
    fadt.write_u32(76, u32::from(layout::PM_TIMER));
    fadt.write_bytes(88, &[4, 2, 0, 4]);
    // C2 and C3 are absent when their latencies are over 100 and 1000 µs.
    fadt.write_u16(96, 0x0fff);
    fadt.write_u16(98, 0x0fff);
    fadt.write_u8(108, 0x32);
    // Legacy devices (the serial port); no VGA; no keyboard controller.
    fadt.write_u16(109, 0x0005);
    fadt.write_u32(112, TIMER_IS_32_BITS | WBINVD | C1 | NO_SLEEP_BUTTON | RESET_REGISTER);
    fadt.write(116, GenericAddress::io_port_address::<u8>(layout::RESET_PORT));
    fadt.write_u8(128, 0x06);
    fadt.write_u64(FADT_X_DSDT, dsdt);
    fadt.write(148, GenericAddress::io_port_address::<u32>(layout::PM1_EVENT));
    fadt.write(172, GenericAddress::io_port_address::<u16>(layout::PM1_CONTROL));
    fadt.write(208, GenericAddress::io_port_address::<u32>(layout::PM_TIMER));
    fadt.update_checksum();
    fadt
}

fn madt(vcpus: u32) -> Sdt {
    let mut body = Vec::new();
    body.extend(layout::LAPIC.to_le_bytes());
    // PC-compatible: the 8259s are there too.
    body.extend(1u32.to_le_bytes());
    for id in 0..vcpus {
        body.extend([0, 8, id as u8, id as u8, 1, 0, 0, 0]);
    }
    body.extend([1, 12, vcpus as u8, 0]);
    body.extend(layout::IOAPIC.to_le_bytes());
    body.extend(0u32.to_le_bytes());
    // Timer: line 0 is pin 2. SCI: level, active high.
    body.extend([2, 10, 0, 0, 2, 0, 0, 0, 0, 0]);
    body.extend([2, 10, 0, layout::SCI_IRQ as u8, layout::SCI_IRQ as u8, 0, 0, 0, 0x0d, 0]);
    // LINT1 of every processor is NMI.
    body.extend([4, 6, 0xff, 0, 0, 1]);
    table(b"APIC", 4, &body)
}

/// The 36 bytes by which the tables are found, with the address of the XSDT.
pub fn rsdp(xsdt: u64) -> Vec<u8> {
    let mut rsdp = b"RSD PTR \0".to_vec();
    rsdp.extend(OEM);
    rsdp.push(2);
    rsdp.extend(0u32.to_le_bytes());
    rsdp.extend(36u32.to_le_bytes());
    rsdp.extend(xsdt.to_le_bytes());
    rsdp.extend([0; 4]);
    rsdp[RSDP_CHECKSUM] = checksum(&rsdp[..20]);
    rsdp[RSDP_EXTENDED_CHECKSUM] = checksum(&rsdp);
    rsdp
}

/// A place in the tables that has the address of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pointer {
    /// Where it is.
    pub at: usize,
    /// Bytes that it has: 4 or 8.
    pub size: usize,
}

/// The tables in one piece.
#[derive(Debug)]
pub struct Tables {
    /// All but the RSDP; pointers are offsets in it, checksums those of tables with such pointers.
    pub bytes: Vec<u8>,
    /// The pointers in it.
    pub pointers: Vec<Pointer>,
    /// The tables with pointers: each one's range, whose sum must be 0.
    pub summed: Vec<Range<usize>>,
    /// Where the XSDT is, which the RSDP points to.
    pub xsdt: usize,
}

/// Where a table has its checksum (ACPI 6.5 §5.2.6).
pub const CHECKSUM: usize = 9;
/// Where an RSDP has the address of the XSDT, and its checksums: of the first 20 bytes, of all 36.
pub const RSDP_XSDT: usize = 24;
/// Checksum of the first 20 bytes of an RSDP.
pub const RSDP_CHECKSUM: usize = 8;
/// Checksum of all 36 bytes of an RSDP.
pub const RSDP_EXTENDED_CHECKSUM: usize = 32;

impl Tables {
    /// The tables of a machine with so many vCPUs, whose PCI functions have their memory in `window`.
    pub fn of(vcpus: u32, window: &Range<u64>) -> Self {
        let mut bytes = Vec::new();
        let mut put = |table: &[u8]| {
            bytes.resize(bytes.len().next_multiple_of(64), 0);
            let at = bytes.len();
            bytes.extend(table);
            at
        };
        let mut facs = b"FACS".to_vec();
        facs.extend(64u32.to_le_bytes());
        facs.resize(32, 0);
        facs.push(2);
        facs.resize(64, 0);
        let facs = put(&facs);
        let dsdt = put(dsdt(window).as_slice());
        let table = fadt(facs as u64, dsdt as u64);
        let fadt = put(table.as_slice());
        let fadt_end = fadt + table.as_slice().len();
        let madt = put(madt(vcpus).as_slice());
        let entries: Vec<u8> =
            [fadt, madt].into_iter().flat_map(|at| (at as u64).to_le_bytes()).collect();
        let xsdt = put(self::table(b"XSDT", 1, &entries).as_slice());
        let pointer = |at, size| Pointer { at, size };
        let pointers = vec![
            pointer(fadt + FADT_FACS, 4),
            pointer(fadt + FADT_DSDT, 4),
            pointer(fadt + FADT_X_DSDT, 8),
            pointer(xsdt + HEADER, 8),
            pointer(xsdt + HEADER + 8, 8),
        ];
        let summed = vec![fadt..fadt_end, xsdt..bytes.len()];
        Self { bytes, pointers, summed, xsdt }
    }

    /// Makes all pointers addresses of tables that begin at `base`.
    fn place(&mut self, base: u64) {
        for pointer in &self.pointers {
            let place = &mut self.bytes[pointer.at..pointer.at + pointer.size];
            let mut wide = [0; 8];
            wide[..pointer.size].copy_from_slice(place);
            let address = u64::from_le_bytes(wide) + base;
            place.copy_from_slice(&address.to_le_bytes()[..pointer.size]);
        }
        for range in &self.summed {
            let table = &mut self.bytes[range.clone()];
            table[CHECKSUM] = 0;
            table[CHECKSUM] = checksum(table);
        }
    }
}

/// What makes the sum of bytes 0.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_sub(*byte))
}

/// Writes the tables and returns the address of the RSDP.
pub fn write(ram: &GuestRam, vcpus: u32) -> Result<u64, Error> {
    let window = layout::PCI_MMIO..layout::PCI_MMIO + layout::PCI_MMIO_LEN;
    let mut tables = Tables::of(vcpus, &window);
    let base = layout::ACPI_TABLES + 64;
    if tables.bytes.len() as u64 > layout::ACPI_TABLES_LEN - 64 {
        return Err(Error::Memory("no room for the ACPI tables".into()));
    }
    tables.place(base);
    let put = |bytes: &[u8], at: u64| {
        ram.write_slice(bytes, GuestAddress(at)).map_err(|error| Error::Memory(error.to_string()))
    };
    put(&tables.bytes, base)?;
    put(&rsdp(base + tables.xsdt as u64), layout::ACPI_TABLES)?;
    Ok(layout::ACPI_TABLES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_table_sums_to_zero_and_says_its_length() {
        for table in [dsdt(&(0xc000_0000..0xf000_0000)), fadt(0x1000, 0x2000), madt(4)] {
            let bytes = table.as_slice();
            assert_eq!(bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);
            assert_eq!(u32::from_le_bytes(bytes[4..8].try_into().unwrap()), bytes.len() as u32);
        }
        let rsdp = rsdp(0xe_1000);
        assert_eq!(rsdp.len(), 36);
        for part in [&rsdp[..20], &rsdp[..]] {
            assert_eq!(part.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);
        }
    }
}

//! ACPI tables (ACPI 6.5): RSDP, XSDT, FADT with the PM timer, MADT, and a DSDT with the PCI
//! root, the serial port and S5.

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

fn dsdt() -> Sdt {
    let mut code = Bytecode(Vec::new());
    let pci = layout::PCI_MMIO as u32;
    let pci_end = (layout::PCI_MMIO + layout::PCI_MMIO_LEN - 1) as u32;
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
    fadt.write_u32(36, facs as u32);
    fadt.write_u32(40, dsdt as u32);
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
    fadt.write_u64(140, dsdt);
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

fn rsdp(xsdt: u64) -> Vec<u8> {
    let mut rsdp = b"RSD PTR \0".to_vec();
    rsdp.extend(OEM);
    rsdp.push(2);
    rsdp.extend(0u32.to_le_bytes());
    rsdp.extend(36u32.to_le_bytes());
    rsdp.extend(xsdt.to_le_bytes());
    rsdp.extend([0; 4]);
    let sum = |bytes: &[u8]| bytes.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte));
    rsdp[8] = sum(&rsdp[..20]);
    rsdp[32] = sum(&rsdp);
    rsdp
}

/// Writes the tables and returns the address of the RSDP.
pub fn write(ram: &GuestRam, vcpus: u32) -> Result<u64, Error> {
    let mut at = layout::ACPI_TABLES + 64;
    let mut put = |bytes: &[u8]| {
        let here = at;
        at = (at + bytes.len() as u64).next_multiple_of(64);
        if at > layout::ACPI_TABLES + layout::ACPI_TABLES_LEN {
            return Err(Error::Memory("no room for the ACPI tables".into()));
        }
        ram.write_slice(bytes, GuestAddress(here))
            .map_err(|error| Error::Memory(error.to_string()))?;
        Ok(here)
    };
    let mut facs = b"FACS".to_vec();
    facs.extend(64u32.to_le_bytes());
    facs.resize(32, 0);
    facs.push(2);
    facs.resize(64, 0);
    let facs = put(&facs)?;
    let dsdt = put(dsdt().as_slice())?;
    let fadt = put(fadt(facs, dsdt).as_slice())?;
    let madt = put(madt(vcpus).as_slice())?;
    let entries: Vec<u8> = [fadt, madt].into_iter().flat_map(u64::to_le_bytes).collect();
    let xsdt = put(table(b"XSDT", 1, &entries).as_slice())?;
    ram.write_slice(&rsdp(xsdt), GuestAddress(layout::ACPI_TABLES))
        .map_err(|error| Error::Memory(error.to_string()))?;
    Ok(layout::ACPI_TABLES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_table_sums_to_zero_and_says_its_length() {
        for table in [dsdt(), fadt(0x1000, 0x2000), madt(4)] {
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

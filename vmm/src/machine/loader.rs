//! How firmware puts the ACPI tables where it wants them: a script of 128-byte commands beside the
//! tables (QEMU's `bios-linker-loader`).
//!
//! ```text
//!  1  put a file into memory       file, alignment, zone (1: anywhere below 4 GiB, 2: 0xf0000–0xfffff)
//!  2  add a file's address         file that has the pointer, file it points into, offset, size
//!  3  sum                          file, offset of the checksum, offset and length of what is summed
//! ```

use super::acpi::{self, CHECKSUM, RSDP_CHECKSUM, RSDP_EXTENDED_CHECKSUM, RSDP_XSDT, Tables};

/// Name of the file with the tables.
pub const TABLES: &str = "etc/acpi/tables";
/// Name of the file with the RSDP.
pub const RSDP: &str = "etc/acpi/rsdp";
/// Name of the file with the script.
pub const SCRIPT: &str = "etc/table-loader";

const COMMAND: usize = 128;
const NAME: usize = 56;
const ANYWHERE: u8 = 1;
const BIOS_AREA: u8 = 2;

/// Commands one after the other.
#[derive(Debug, Default)]
struct Script(Vec<u8>);

impl Script {
    fn command(&mut self, number: u32, names: &[&str], rest: &[&[u8]]) {
        let end = self.0.len() + COMMAND;
        self.0.extend(number.to_le_bytes());
        for name in names {
            self.0.extend(name.as_bytes());
            self.0.resize(self.0.len() + NAME - name.len(), 0);
        }
        rest.iter().for_each(|bytes| self.0.extend(*bytes));
        self.0.resize(end, 0);
    }

    fn allocate(&mut self, file: &str, alignment: u32, zone: u8) {
        self.command(1, &[file], &[&alignment.to_le_bytes(), &[zone]]);
    }

    fn add_pointer(&mut self, file: &str, to: &str, at: usize, size: usize) {
        self.command(2, &[file, to], &[&(at as u32).to_le_bytes(), &[size as u8]]);
    }

    fn add_checksum(&mut self, file: &str, at: usize, from: usize, len: usize) {
        let words = [at, from, len].map(|word| (word as u32).to_le_bytes());
        self.command(3, &[file], &[&words[0], &words[1], &words[2]]);
    }
}

/// The files by which firmware makes a machine's ACPI tables: names and contents.
pub fn files(mut tables: Tables) -> [(&'static str, Vec<u8>); 3] {
    let mut script = Script::default();
    script.allocate(TABLES, 64, ANYWHERE);
    script.allocate(RSDP, 16, BIOS_AREA);
    for pointer in &tables.pointers {
        script.add_pointer(TABLES, TABLES, pointer.at, pointer.size);
    }
    for range in &tables.summed {
        // Firmware makes the sum of all of them 0.
        tables.bytes[range.start + CHECKSUM] = 0;
        script.add_checksum(TABLES, range.start + CHECKSUM, range.start, range.len());
    }
    let mut rsdp = acpi::rsdp(tables.xsdt as u64);
    rsdp[RSDP_CHECKSUM] = 0;
    rsdp[RSDP_EXTENDED_CHECKSUM] = 0;
    script.add_pointer(RSDP, TABLES, RSDP_XSDT, 8);
    script.add_checksum(RSDP, RSDP_CHECKSUM, 0, 20);
    script.add_checksum(RSDP, RSDP_EXTENDED_CHECKSUM, 0, rsdp.len());
    [(TABLES, tables.bytes), (RSDP, rsdp), (SCRIPT, script.0)]
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    /// What firmware does with the script: the memory that comes of it, by address.
    fn run(files: [(&str, Vec<u8>); 3]) -> HashMap<String, (u64, Vec<u8>)> {
        let script = files[2].1.clone();
        let contents: HashMap<&str, Vec<u8>> = files.into_iter().collect();
        let mut memory: HashMap<String, (u64, Vec<u8>)> = HashMap::new();
        for command in script.chunks_exact(COMMAND) {
            let word =
                |at: usize| u32::from_le_bytes(command[at..at + 4].try_into().unwrap()) as usize;
            let name = |at: usize| {
                let text = String::from_utf8(command[at..at + NAME].to_vec()).unwrap();
                text.trim_end_matches('\0').to_owned()
            };
            match word(0) {
                1 => {
                    let (alignment, zone) = (word(60) as u64, command[64]);
                    let at = if zone == BIOS_AREA { 0xf_1230u64 } else { 0x7ffd_3000 };
                    assert_eq!(at % alignment, 0);
                    let content = contents[name(4).as_str()].clone();
                    memory.insert(name(4), (at, content));
                }
                2 => {
                    let base = memory[&name(60)].0;
                    let (at, size) = (word(116), usize::from(command[120]));
                    let place = &mut memory.get_mut(&name(4)).unwrap().1[at..at + size];
                    let mut wide = [0; 8];
                    wide[..size].copy_from_slice(place);
                    let value = u64::from_le_bytes(wide) + base;
                    place.copy_from_slice(&value.to_le_bytes()[..size]);
                }
                3 => {
                    let (at, from, len) = (word(60), word(64), word(68));
                    let content = &mut memory.get_mut(&name(4)).unwrap().1;
                    let sum = content[from..from + len].iter().fold(0u8, |s, b| s.wrapping_sub(*b));
                    content[at] = content[at].wrapping_add(sum);
                }
                other => panic!("command {other}"),
            }
        }
        memory
    }

    /// The tables that firmware makes can be walked from the RSDP, and every sum is right.
    #[test]
    fn the_script_makes_tables_that_hang_together() {
        let window = 0x8000_0000..0xfec0_0000;
        let memory = run(files(Tables::of(3, &window)));
        let (base, tables) = &memory[TABLES];
        let (_, rsdp) = &memory[RSDP];
        let sum = |bytes: &[u8]| bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        assert_eq!((sum(&rsdp[..20]), sum(rsdp)), (0, 0));
        let long =
            |bytes: &[u8], at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        let table = |address: u64| {
            let at = usize::try_from(address - base).unwrap();
            let len = u32::from_le_bytes(tables[at + 4..at + 8].try_into().unwrap()) as usize;
            &tables[at..at + len]
        };
        let xsdt = table(long(rsdp, RSDP_XSDT));
        assert_eq!((&xsdt[..4], sum(xsdt)), (&b"XSDT"[..], 0));
        let (fadt, madt) = (table(long(xsdt, 36)), table(long(xsdt, 44)));
        assert_eq!((&fadt[..4], sum(fadt)), (&b"FACP"[..], 0));
        assert_eq!((&madt[..4], sum(madt)), (&b"APIC"[..], 0));
        let short = |at: usize| u64::from(u32::from_le_bytes(fadt[at..at + 4].try_into().unwrap()));
        assert_eq!(&table(short(36))[..4], b"FACS");
        assert_eq!(short(40), long(fadt, 140));
        let dsdt = table(short(40));
        assert_eq!((&dsdt[..4], sum(dsdt)), (&b"DSDT"[..], 0));
    }
}

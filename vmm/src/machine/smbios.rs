//! What the machine says of itself (SMBIOS 2.8, DSP0134): an entry point and structures, which
//! firmware puts into memory with its own about itself (type 0).

use host_api::VmDefinition;

use crate::platform::memory;

const MANUFACTURER: &str = "Bulkhead";
const PRODUCT: &str = "Virtual machine";
const MEMORY_ARRAY: u16 = 0x1000;
const MIB: u64 = 1 << 20;
/// No handle is given.
const NONE: [u8; 2] = [0xfe, 0xff];

/// Structures one after the other, counted and measured.
#[derive(Debug, Default)]
struct Structures {
    bytes: Vec<u8>,
    count: u16,
    longest: usize,
}

impl Structures {
    /// Adds one: its fields behind the header, and its strings, which fields name from 1 on.
    fn add(&mut self, kind: u8, handle: u16, fields: &[&[u8]], strings: &[&str]) {
        let begin = self.bytes.len();
        let len: usize = 4 + fields.iter().map(|field| field.len()).sum::<usize>();
        self.bytes.extend([kind, len as u8]);
        self.bytes.extend(handle.to_le_bytes());
        fields.iter().for_each(|field| self.bytes.extend(*field));
        for text in strings {
            self.bytes.extend(text.bytes().chain([0]));
        }
        self.bytes.extend(if strings.is_empty() { &[0, 0][..] } else { &[0] });
        self.count += 1;
        self.longest = self.longest.max(self.bytes.len() - begin);
    }
}

/// The VM's id as SMBIOS has it: its first three fields are little-endian (7.2.1).
fn uuid(mut id: [u8; 16]) -> [u8; 16] {
    for field in [0..4, 4..6, 6..8] {
        id[field].reverse();
    }
    id
}

fn describe(all: &mut Structures, definition: &VmDefinition) {
    let id = uuid(definition.id.map_or([0; 16], |id| id.0));
    const POWER_SWITCH: u8 = 6;
    let name = definition.name.as_str();
    all.add(1, 0x100, &[&[1, 2, 0, 3], &id, &[POWER_SWITCH, 0, 0]], &[MANUFACTURER, PRODUCT, name]);
    // A chassis of another kind, whose states are safe, without cords and parts.
    all.add(3, 0x300, &[&[1, 1, 0, 0, 0, 3, 3, 3, 2], &[0; 9]], &[MANUFACTURER]);
    let cores = u8::try_from(definition.vcpus).unwrap_or(u8::MAX);
    let none = [0xff; 6];
    all.add(
        4,
        0x400,
        // A populated socket with a processor that is enabled; its CPUID says more.
        &[&[1, 3, 1, 2], &[0; 16], &[0x41, 1], &none, &[0, 0, 0, cores, cores, cores, 2, 0, 1, 0]],
        &["CPU 0", MANUFACTURER],
    );
}

fn describe_memory(all: &mut Structures, bytes: u64) {
    let kib = bytes >> 10;
    let (short, extended) = if kib < 0x8000_0000 { (kib as u32, 0) } else { (0x8000_0000, bytes) };
    // An array of another place, for the system, with errors corrected.
    all.add(
        16,
        MEMORY_ARRAY,
        &[&[1, 3, 6], &short.to_le_bytes(), &NONE, &[1, 0], &extended.to_le_bytes()],
        &[],
    );
    let mib = bytes / MIB;
    let (short, extended) = if mib < 0x7fff { (mib as u16, 0) } else { (0x7fff, mib as u32) };
    all.add(
        17,
        0x1100,
        &[
            &MEMORY_ARRAY.to_le_bytes(),
            &NONE,
            &[0xff; 4],
            &short.to_le_bytes(),
            // A DIMM of no set, of RAM.
            &[9, 0, 1, 0, 7, 2, 0, 0, 0, 2, 0, 0, 0, 0],
            &extended.to_le_bytes(),
            &[0; 8],
        ],
        &["DIMM 0", MANUFACTURER],
    );
    for (index, (start, len)) in memory::ranges(bytes).into_iter().enumerate() {
        let (first, last) = (start >> 10, ((start + len) >> 10) - 1);
        let fits = last < 0xffff_ffff;
        let short = |kib: u64| if fits { kib as u32 } else { u32::MAX }.to_le_bytes();
        let long = |at: u64| if fits { 0 } else { at }.to_le_bytes();
        all.add(
            19,
            0x1300 + index as u16,
            &[
                &short(first),
                &short(last),
                &MEMORY_ARRAY.to_le_bytes(),
                &[1],
                &long(start),
                &long(start + len - 1),
            ],
            &[],
        );
    }
}

/// Entry point and structures of a machine.
pub fn files(definition: &VmDefinition) -> [(&'static str, Vec<u8>); 2] {
    let mut all = Structures::default();
    describe(&mut all, definition);
    describe_memory(&mut all, definition.memory_mib * MIB);
    all.add(32, 0x2000, &[&[0; 7]], &[]);
    all.add(127, 0x7f00, &[], &[]);

    let sum = |bytes: &[u8]| bytes.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte));
    let mut entry = b"_SM_\0\x1f\x02\x08".to_vec();
    entry.extend((all.longest as u16).to_le_bytes());
    entry.extend([0; 6]);
    entry.extend(b"_DMI_\0");
    entry.extend((all.bytes.len() as u16).to_le_bytes());
    // Firmware says where it is.
    entry.extend([0; 4]);
    entry.extend(all.count.to_le_bytes());
    entry.push(0x28);
    entry[0x15] = sum(&entry[0x10..]);
    entry[4] = sum(&entry);
    [("etc/smbios/smbios-anchor", entry), ("etc/smbios/smbios-tables", all.bytes)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(memory_mib: u64) -> [(&'static str, Vec<u8>); 2] {
        let text = format!(
            "name = 'web'\nid = '00112233445566778899aabbccddeeff'\nmemory_mib = {memory_mib}\n\
             vcpus = 3\n[firmware]\nkind = 'bios'\n"
        );
        files(&VmDefinition::from_toml(&text).unwrap())
    }

    #[test]
    fn structures_can_be_walked_and_counted() {
        for memory_mib in [256, 8192, 1 << 20] {
            let [(_, entry), (_, bytes)] = of(memory_mib);
            let sum = |bytes: &[u8]| bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
            assert_eq!((entry.len(), sum(&entry), sum(&entry[16..])), (31, 0, 0));
            let (mut at, mut kinds) = (0, Vec::new());
            while at < bytes.len() {
                let len = usize::from(bytes[at + 1]);
                // Lengths that each type has in SMBIOS 2.8, or in an earlier one.
                let expected = match bytes[at] {
                    1 => 27,
                    3 => 22,
                    4 => 42,
                    16 => 23,
                    17 => 40,
                    19 => 31,
                    32 => 11,
                    _ => 4,
                };
                assert_eq!(len, expected, "type {}", bytes[at]);
                kinds.push(bytes[at]);
                let rest = &bytes[at + len..];
                at += len + 2 + rest.windows(2).position(|pair| pair == [0, 0]).unwrap();
            }
            let count = u16::from_le_bytes([entry[0x1c], entry[0x1d]]);
            assert_eq!((kinds.len() as u16, kinds[kinds.len() - 1]), (count, 127));
            assert_eq!(u16::from_le_bytes([entry[0x16], entry[0x17]]) as usize, bytes.len());
        }
    }

    #[test]
    fn a_guest_reads_the_id_of_its_vm() {
        let [_, (_, bytes)] = of(256);
        assert_eq!(bytes[0], 1);
        let id = &bytes[8..24];
        assert_eq!(id[..8], [0x33, 0x22, 0x11, 0x00, 0x55, 0x44, 0x77, 0x66]);
        assert_eq!(id[8..], [0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff]);
    }
}

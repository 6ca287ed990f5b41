//! What a vCPU is told it can do, and whether another host can offer the same.

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::Kvm;
use serde::{Deserialize, Serialize};

use crate::platform::error::Error;

/// One CPUID leaf in saved form: function, index, flags, eax, ebx, ecx, edx.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leaf(pub [u32; 7]);

/// The leaves a guest sees, without what differs from vCPU to vCPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuModel(pub Vec<Leaf>);

/// Registers of leaves that hold feature bits: function, index, register (0 = eax).
const FEATURES: [(u32, u32, usize); 26] = [
    (1, 0, 2),
    (1, 0, 3),
    (6, 0, 0),
    (7, 0, 1),
    (7, 0, 2),
    (7, 0, 3),
    (7, 1, 0),
    (7, 1, 1),
    (7, 1, 3),
    (7, 2, 3),
    // States that XSAVE saves and that XCR0 and IA32_XSS may have.
    (0xd, 0, 0),
    (0xd, 0, 3),
    (0xd, 1, 0),
    (0xd, 1, 2),
    // Processor trace, key locker.
    (0x14, 0, 1),
    (0x14, 0, 2),
    (0x19, 0, 1),
    // What KVM does for guests that know it.
    (KVM_FEATURES, 0, 0),
    (0x8000_0001, 0, 2),
    (0x8000_0001, 0, 3),
    // Invariant TSC among others.
    (0x8000_0007, 0, 1),
    (0x8000_0007, 0, 3),
    (0x8000_0008, 0, 1),
    (0x8000_000a, 0, 3),
    (0x8000_0021, 0, 0),
    (0x8000_0021, 0, 1),
];

const KVM_FEATURES: u32 = 0x4000_0001;
/// Widths of addresses: eax 7:0 physical, 15:8 linear.
const ADDRESSES: (u32, u32, usize) = (0x8000_0008, 0, 0);
const EXTENDED_FEATURES: u32 = 0x8000_0001;
/// AMD's virtualisation: its features and limits.
const SVM: u32 = 0x8000_000a;
/// The subleaf counts: `KVM_CPUID_FLAG_SIGNIFCANT_INDEX`.
const INDEXED: u32 = 1;

impl CpuModel {
    /// What new machines of this host have: all that KVM supports, but not its own kind of virtualisation.
    /// What a guest's guests are in the middle of would have to move with it, and is not among what
    /// moves.
    ///
    /// # Errors
    /// What KVM says.
    pub fn offered(kvm: &Kvm) -> Result<Self, Error> {
        Ok(Self::of_host(kvm)?.without_nesting())
    }

    fn without_nesting(mut self) -> Self {
        const VMX_BIT: u32 = 1 << 5;
        const SVM_BIT: u32 = 1 << 2;
        self.0.retain(|leaf| leaf.0[0] != SVM);
        for leaf in &mut self.0 {
            match leaf.0[0] {
                1 => leaf.0[5] &= !VMX_BIT,
                EXTENDED_FEATURES => leaf.0[5] &= !SVM_BIT,
                _ => {}
            }
        }
        self
    }

    /// All that KVM supports on this host.
    ///
    /// # Errors
    /// What KVM says.
    pub fn of_host(kvm: &Kvm) -> Result<Self, Error> {
        let cpuid =
            kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(Error::kvm("tell its CPUID"))?;
        let leaf =
            |e: &kvm_cpuid_entry2| Leaf([e.function, e.index, e.flags, e.eax, e.ebx, e.ecx, e.edx]);
        Ok(Self(cpuid.as_slice().iter().map(leaf).collect()))
    }

    fn register(&self, (function, index, register): (u32, u32, usize)) -> u32 {
        let leaf = self.0.iter().find(|leaf| leaf.0[0] == function && leaf.0[1] == index);
        leaf.map_or(0, |leaf| leaf.0[3 + register])
    }

    /// What `self` promises to a guest and a host with `other` cannot keep, in words.
    pub fn missing_on(&self, other: &Self) -> Option<String> {
        let missing: Vec<String> = FEATURES
            .into_iter()
            .filter_map(|place| {
                let missing = self.register(place) & !other.register(place);
                let (function, index, register) = place;
                let name = ["eax", "ebx", "ecx", "edx"][register];
                (missing != 0).then(|| format!("leaf {function:#x}.{index} {name} {missing:#x}"))
            })
            .collect();
        let vendor = |model: &Self| [1, 2, 3].map(|register| model.register((0, 0, register)));
        if vendor(self) != vendor(other) {
            return Some("a CPU of the same vendor".into());
        }
        if !missing.is_empty() {
            return Some(format!("CPU features {}", missing.join(", ")));
        }
        // A guest may use all bits that it was told of, and an address with more is a fault.
        let widths = |model: &Self| [0, 8].map(|shift| model.register(ADDRESSES) >> shift & 0xff);
        let (mine, theirs) = (widths(self), widths(other));
        let short = mine.iter().zip(theirs).any(|(mine, theirs)| theirs < *mine);
        short.then(|| {
            let [physical, linear] = mine;
            format!("addresses of {physical} bits (physical) and {linear} bits (linear)")
        })
    }

    /// The leaves of vCPU `id` of `count`: one package of cores without threads that share its last
    /// cache.
    pub fn for_vcpu(&self, id: u32, count: u32) -> Result<CpuId, Error> {
        let leaf = |leaf: &Leaf| {
            let [function, index, flags, eax, ebx, ecx, edx] = leaf.0;
            let none = kvm_cpuid_entry2::default();
            kvm_cpuid_entry2 { function, index, flags, eax, ebx, ecx, edx, ..none }
        };
        // KVM gives the levels of the topology as the host has them, or one that says nothing.
        let level = |leaf: &&Leaf| matches!(leaf.0[0], 0xb | 0x1f);
        let mut entries: Vec<_> = self.0.iter().filter(|it| !level(it)).map(leaf).collect();
        for entry in &mut entries {
            describe(entry, id, count);
        }
        let mut levels: Vec<u32> = self.0.iter().filter(level).map(|leaf| leaf.0[0]).collect();
        levels.dedup();
        for function in levels {
            entries.extend(topology(function, id, count));
        }
        CpuId::from_entries(&entries).map_err(|error| Error::Config(format!("CPUID: {error:?}")))
    }
}

/// Bits of an APIC id that tell the cores of one package apart.
fn core_bits(count: u32) -> u32 {
    count.next_power_of_two().trailing_zeros()
}

/// Puts the vCPU's own place into a leaf that has it.
fn describe(entry: &mut kvm_cpuid_entry2, id: u32, count: u32) {
    let sharers = (1 << core_bits(count)) - 1;
    match entry.function {
        1 => {
            const HYPERVISOR: u32 = 1 << 31;
            const TSC_DEADLINE: u32 = 1 << 24;
            const HYPER_THREADING: u32 = 1 << 28;
            entry.ecx |= HYPERVISOR | TSC_DEADLINE;
            entry.ebx = entry.ebx & 0xffff | id << 24 | count << 16;
            if count > 1 {
                entry.edx |= HYPER_THREADING;
            }
        }
        // Caches, one a subleaf (Intel SDM 2A CPUID 4, AMD APM 3 E.4.15): type in eax 4:0, 0 if there is
        // none; level in 7:5; sharers less one in 25:14; in leaf 4 cores less one in 31:26.
        4 | 0x8000_001d if entry.eax & 0x1f != 0 => {
            const LAST: u32 = 3;
            let shared = if entry.eax >> 5 & 7 >= LAST { sharers } else { 0 };
            let cores = if entry.function == 4 { sharers.min(63) << 26 } else { 0 };
            entry.eax = entry.eax & 0x3fff | shared << 14 | cores;
        }
        // Cores less one in 7:0, bits of their part of the APIC id in 15:12 (AMD APM 3 E.4.8).
        0x8000_0008 => {
            entry.ecx = entry.ecx & !0xf0ff | core_bits(count) << 12 | (count - 1);
        }
        // Extended APIC id; the core's number and threads less one; the node (AMD APM 3 E.4.16).
        0x8000_001e => (entry.eax, entry.ebx, entry.ecx) = (id, id, 0),
        _ => {}
    }
}

/// The subleaves of an extended topology leaf (Intel SDM 2A CPUID 0BH and 1FH): a level of threads, of
/// which each core has one, a level of cores, and none beyond.
fn topology(function: u32, id: u32, count: u32) -> [kvm_cpuid_entry2; 3] {
    const THREADS: u32 = 1 << 8;
    const CORES: u32 = 2 << 8;
    let levels = [(0, 1, THREADS), (core_bits(count), count, CORES | 1), (0, 0, 2)];
    let mut index = 0;
    levels.map(|(eax, ebx, ecx)| {
        let none = kvm_cpuid_entry2::default();
        let entry =
            kvm_cpuid_entry2 { function, index, flags: INDEXED, eax, ebx, ecx, edx: id, ..none };
        index += 1;
        entry
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_without_a_feature_is_refused_by_name() {
        let big = CpuModel(vec![Leaf([0, 0, 0, 1, 7, 7, 7]), Leaf([7, 0, 1, 0, 0x21, 0, 0])]);
        let small = CpuModel(vec![Leaf([0, 0, 0, 1, 7, 7, 7]), Leaf([7, 0, 1, 0, 1, 0, 0])]);
        assert_eq!(small.missing_on(&big), None);
        assert_eq!(big.missing_on(&small).unwrap(), "CPU features leaf 0x7.0 ebx 0x20");
        let other = CpuModel(vec![Leaf([0, 0, 0, 1, 8, 7, 7]), Leaf([7, 0, 1, 0, 0x21, 0, 0])]);
        assert!(big.missing_on(&other).unwrap().contains("vendor"));
    }

    #[test]
    fn each_kind_of_feature_counts() {
        for (function, index, register) in FEATURES {
            let mut leaf = [function, index, 0, 0, 0, 0, 0];
            leaf[3 + register] = 1 << 8;
            let with = CpuModel(vec![Leaf(leaf)]);
            leaf[3 + register] = 0;
            let without = CpuModel(vec![Leaf(leaf)]);
            let missing = with.missing_on(&without).unwrap();
            assert!(missing.contains(&format!("{function:#x}.{index}")), "{missing}");
            assert_eq!(without.missing_on(&with), None);
        }
    }

    #[test]
    fn addresses_are_as_wide_as_a_guest_was_told() {
        let wide = |physical: u32, linear: u32| {
            CpuModel(vec![Leaf([0x8000_0008, 0, 0, linear << 8 | physical, 0, 0, 0])])
        };
        assert_eq!(wide(46, 48).missing_on(&wide(52, 57)), None);
        assert!(wide(52, 48).missing_on(&wide(46, 48)).unwrap().contains("52 bits"));
        assert!(wide(46, 57).missing_on(&wide(46, 48)).unwrap().contains("57 bits"));
    }

    #[test]
    fn a_guest_is_not_told_of_virtualisation() {
        let host = CpuModel(vec![
            Leaf([1, 0, 0, 0, 0, 1 << 5 | 1, 0]),
            Leaf([EXTENDED_FEATURES, 0, 0, 0, 0, 1 << 2 | 1, 0]),
            Leaf([SVM, 0, 0, 1, 8, 0, 0x1234]),
        ]);
        let offered = host.clone().without_nesting();
        let expected = CpuModel(vec![
            Leaf([1, 0, 0, 0, 0, 1, 0]),
            Leaf([EXTENDED_FEATURES, 0, 0, 0, 0, 1, 0]),
        ]);
        assert_eq!(offered, expected);
        // What a guest that has it needs is still told apart from what a host has.
        assert_eq!(offered.missing_on(&host), None);
        assert!(host.missing_on(&offered).is_some());
    }

    /// As Linux counts them: a package's vCPUs have APIC ids that differ in the bits of the level of
    /// cores alone.
    #[test]
    fn vcpus_are_cores_of_one_package() {
        let cache = |level: u32, kind: u32| Leaf([4, level, 1, level << 5 | kind, 0, 0, 0]);
        let model = CpuModel(vec![
            Leaf([1, 0, 0, 0, 0, 0, 0]),
            cache(1, 1),
            cache(2, 3),
            cache(3, 3),
            // KVM's own, which says nothing.
            Leaf([0xb, 0, 1, 0, 0, 0, 0]),
            Leaf([0x8000_0008, 0, 0, 0x3030, 0, 0, 0]),
        ]);
        for (count, bits) in [(1u32, 0u32), (2, 1), (3, 2), (4, 2), (64, 6)] {
            for id in 0..count {
                let cpuid = model.for_vcpu(id, count).unwrap();
                let get = |function, index| {
                    let is_it =
                        |it: &&kvm_cpuid_entry2| it.function == function && it.index == index;
                    let found: Vec<_> = cpuid.as_slice().iter().filter(is_it).collect();
                    assert_eq!(found.len(), 1, "{function:#x}.{index}");
                    *found[0]
                };
                let (threads, cores) = (get(0xb, 0), get(0xb, 1));
                assert_eq!((threads.eax, threads.ebx, threads.ecx), (0, 1, 1 << 8));
                assert_eq!((cores.eax, cores.ebx, cores.ecx), (bits, count, 2 << 8 | 1));
                assert_eq!((get(0xb, 2).ecx >> 8, cores.edx), (0, id));
                assert_eq!(id >> cores.eax, 0, "one package");
                let sharers = |level: u32| (get(4, level).eax >> 14 & 0xfff) + 1;
                assert_eq!([sharers(1), sharers(2), sharers(3)], [1, 1, 1 << bits]);
                assert_eq!(get(0x8000_0008, 0).ecx & 0xff, count - 1);
                assert_eq!(get(1, 0).ebx >> 24, id);
            }
        }
    }
}

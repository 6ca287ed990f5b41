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
const FEATURES: [(u32, u32, usize); 10] = [
    (1, 0, 2),
    (1, 0, 3),
    (7, 0, 1),
    (7, 0, 2),
    (7, 0, 3),
    (7, 1, 0),
    (0xd, 0, 0),
    (0xd, 1, 0),
    (0x8000_0001, 0, 2),
    (0x8000_0001, 0, 3),
];

impl CpuModel {
    /// All that KVM supports on this host.
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
        (!missing.is_empty()).then(|| format!("CPU features {}", missing.join(", ")))
    }

    /// The leaves of vCPU `id` of `count`.
    pub fn for_vcpu(&self, id: u32, count: u32) -> Result<CpuId, Error> {
        let bits = count.next_power_of_two().trailing_zeros();
        let entries: Vec<kvm_cpuid_entry2> = self
            .0
            .iter()
            .map(|leaf| {
                let [function, index, flags, mut eax, mut ebx, mut ecx, mut edx] = leaf.0;
                match function {
                    1 => {
                        const HYPERVISOR: u32 = 1 << 31;
                        const TSC_DEADLINE: u32 = 1 << 24;
                        const HYPER_THREADING: u32 = 1 << 28;
                        ecx |= HYPERVISOR | TSC_DEADLINE;
                        ebx = ebx & 0xffff | id << 24 | count << 16;
                        if count > 1 {
                            edx |= HYPER_THREADING;
                        }
                    }
                    0xb | 0x1f => {
                        edx = id;
                        (eax, ebx, ecx) = match index {
                            0 => (0, 1, 1 << 8),
                            1 => (bits, count, 2 << 8 | 1),
                            _ => (0, 0, index),
                        };
                    }
                    _ => {}
                }
                kvm_cpuid_entry2 {
                    function,
                    index,
                    flags,
                    eax,
                    ebx,
                    ecx,
                    edx,
                    ..Default::default()
                }
            })
            .collect();
        CpuId::from_entries(&entries).map_err(|error| Error::Config(format!("CPUID: {error:?}")))
    }
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
}

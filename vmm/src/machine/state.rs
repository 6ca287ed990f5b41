//! The state of a paused machine outside of its memory and disks, and how it is read from and
//! written to KVM.
//!
//! The form is versioned as a whole ([`VERSION`]); it travels as JSON, whose fields are named,
//! and KVM's structures within it as their bytes in base 16 (they are kernel ABI).

use kvm_bindings::{
    KVM_CLOCK_REALTIME, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, Msrs,
    kvm_clock_data, kvm_debugregs, kvm_irqchip, kvm_lapic_state, kvm_mp_state, kvm_msr_entry,
    kvm_pit_state2, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{VcpuFd, VmFd};
use serde::{Deserialize, Serialize};

use super::firmware::{FirmwareId, SavedFirmware};
use crate::{
    devices::{
        power::PowerState, serial::SavedSerial, virtio::transport::SavedVirtio,
        watchdog::SavedWatchdog,
    },
    platform::{
        clock::{now, time_away},
        error::Error,
        hex::{from_base_16, to_base_16},
    },
};

/// Version of this form. A field that may be left out needs no other.
pub const VERSION: u32 = 1;
/// Most of what the guest printed that goes with it, in bytes.
pub const HISTORY: usize = 16 << 10;
const MSR_TSC: u32 = 0x10;
/// MSRs that tell of the host and not of the guest, which may find others where it goes: the version
/// of the microcode, the platform's frequencies, what counters there are.
pub const MAY_DIFFER: [u32; 3] = [0x8b, 0xce, 0x345];

/// The registers of one vCPU as they are moved.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct VcpuState {
    mp_state: Abi<kvm_mp_state>,
    regs: Abi<kvm_regs>,
    sregs: Abi<kvm_sregs>,
    xsave: Abi<XsaveArea>,
    xcrs: Abi<kvm_xcrs>,
    debug: Abi<kvm_debugregs>,
    lapic: Abi<kvm_lapic_state>,
    events: Abi<kvm_vcpu_events>,
    /// Index and value.
    msrs: Vec<(u32, u64)>,
    tsc_khz: u32,
    /// Host time when the MSRs were read, in nanoseconds since 1970.
    read_at: u64,
}

/// The interrupt controllers, timer and clock that KVM emulates.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ChipState {
    pic_master: Abi<kvm_irqchip>,
    pic_slave: Abi<kvm_irqchip>,
    ioapic: Abi<kvm_irqchip>,
    pit: Abi<kvm_pit_state2>,
    clock: Abi<kvm_clock_data>,
}

/// All that is moved of a machine but its memory.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MachineState {
    /// [`VERSION`] of the writer.
    pub version: u32,
    /// vCPUs by number.
    pub vcpus: Vec<VcpuState>,
    /// Interrupt controllers, timer and clock of the machine.
    pub chips: ChipState,
    /// ACPI registers.
    pub power: PowerState,
    /// Serial port.
    pub serial: SavedSerial,
    /// Index register of the real-time clock.
    pub cmos_index: u8,
    /// PCI address register.
    pub pci_address: u32,
    /// virtio functions by slot.
    pub virtio: Vec<SavedVirtio>,
    /// The last of what the guest printed; none from a host of an earlier version.
    #[serde(default)]
    pub printed: Printed,
    /// The devices of a machine that starts by a firmware.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub firmware: Option<SavedFirmware>,
    /// The watchdog of a machine that has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watchdog: Option<SavedWatchdog>,
}

/// Bytes that a guest printed; on the wire in base 16.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Printed(pub Vec<u8>);

/// What of a machine a target must be able to keep, which it is told beforehand.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Needs {
    /// Frequency of its TSC in kHz; 0 if that is not known.
    pub tsc_khz: u32,
    /// The MSRs that it has.
    pub msrs: Vec<u32>,
    /// The firmware that it started by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub firmware: Option<FirmwareId>,
}

/// The fixed part of `kvm_xsave`.
#[derive(Debug, Clone, Copy)]
struct XsaveArea([u32; 1024]);

/// A structure of the kernel's ABI; on the wire its bytes in base 16.
#[derive(Debug, Clone, Copy)]
struct Abi<T>(T);

/// Structures that are plain bytes without padding that matters.
#[expect(unsafe_code, reason = "KVM's structures are plain data")]
mod plain {
    use super::*;

    /// # Safety
    /// Any bytes must be a valid value, and there must be no padding.
    pub unsafe trait Plain: Copy {}

    // SAFETY: C structures and unions of integers as the kernel's ABI lays them out, with
    // explicit padding fields.
    unsafe impl Plain for kvm_mp_state {}
    // SAFETY: as above.
    unsafe impl Plain for kvm_regs {}
    // SAFETY: as above.
    unsafe impl Plain for kvm_sregs {}
    // SAFETY: as above.
    unsafe impl Plain for XsaveArea {}
    // SAFETY: as above.
    unsafe impl Plain for kvm_xcrs {}
    // SAFETY: as above.
    unsafe impl Plain for kvm_debugregs {}
    // SAFETY: as above.
    unsafe impl Plain for kvm_lapic_state {}
    // SAFETY: as above.
    unsafe impl Plain for kvm_vcpu_events {}
    // SAFETY: as above.
    unsafe impl Plain for kvm_irqchip {}
    // SAFETY: as above.
    unsafe impl Plain for kvm_pit_state2 {}
    // SAFETY: as above.
    unsafe impl Plain for kvm_clock_data {}

    pub fn bytes<T: Plain>(value: &T) -> &[u8] {
        // SAFETY: `T` is plain data without padding, so all its bytes are initialised.
        unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast(), size_of::<T>()) }
    }

    pub fn from_bytes<T: Plain>(bytes: &[u8]) -> Option<T> {
        (bytes.len() == size_of::<T>())
            // SAFETY: the length is that of `T`, and any bytes are a valid `T`.
            .then(|| unsafe { std::ptr::read_unaligned(bytes.as_ptr().cast()) })
    }
}

impl<T: plain::Plain> Serialize for Abi<T> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&to_base_16(plain::bytes(&self.0)))
    }
}

impl Serialize for Printed {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&to_base_16(&self.0))
    }
}

impl<'de> Deserialize<'de> for Printed {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error as _;
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        from_base_16(&text).map(Self).ok_or_else(|| D::Error::custom("no bytes in base 16"))
    }
}

impl<'de, T: plain::Plain> Deserialize<'de> for Abi<T> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error as _;
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        from_base_16(&text)
            .and_then(|bytes| plain::from_bytes(&bytes))
            .map(Abi)
            .ok_or_else(|| D::Error::custom(format!("{} digits for KVM state", text.len())))
    }
}

impl MachineState {
    /// Makes the times at which the clocks were read those of a host whose clock is `nanos` ahead of
    /// this one's: it takes the difference to its own time for the time that the guest was away.
    pub fn set_clocks_forward(&mut self, nanos: i64) {
        for vcpu in &mut self.vcpus {
            vcpu.read_at = vcpu.read_at.saturating_add_signed(nanos);
        }
        let clock = &mut self.chips.clock.0;
        if clock.flags & KVM_CLOCK_REALTIME != 0 {
            clock.realtime = clock.realtime.saturating_add_signed(nanos);
        }
        self.power.set_clock_forward(nanos);
    }
}

/// The MSRs among `indices` that can be read from `vcpu`.
pub fn readable_msrs(vcpu: &VcpuFd, indices: &[u32]) -> Vec<u32> {
    let mut readable = Vec::new();
    for index in indices {
        let entry = kvm_msr_entry { index: *index, ..Default::default() };
        if let Ok(mut msrs) = Msrs::from_entries(&[entry])
            && matches!(vcpu.get_msrs(&mut msrs), Ok(1))
        {
            readable.push(*index);
        }
    }
    readable
}

/// Reads a parked vCPU.
pub fn save_vcpu(vcpu: &VcpuFd, msrs: &[u32]) -> Result<VcpuState, Error> {
    // The multiprocessor state first: reading it applies pending INIT and SIPI.
    let mp_state = Abi(vcpu.get_mp_state().map_err(Error::kvm("save the run state"))?);
    let regs = Abi(vcpu.get_regs().map_err(Error::kvm("save the registers"))?);
    let sregs = Abi(vcpu.get_sregs().map_err(Error::kvm("save the system registers"))?);
    let xsave = vcpu.get_xsave().map_err(Error::kvm("save the vector registers"))?;
    let xsave = Abi(XsaveArea(xsave.region));
    let xcrs = Abi(vcpu.get_xcrs().map_err(Error::kvm("save XCR0"))?);
    let debug = Abi(vcpu.get_debug_regs().map_err(Error::kvm("save the debug registers"))?);
    let lapic = Abi(vcpu.get_lapic().map_err(Error::kvm("save the local APIC"))?);
    let tsc_khz = vcpu.get_tsc_khz().unwrap_or(0);
    let mut saved = Vec::with_capacity(msrs.len());
    let read_at = now();
    let mut rest: Vec<kvm_msr_entry> =
        msrs.iter().map(|index| kvm_msr_entry { index: *index, ..Default::default() }).collect();
    while !rest.is_empty() {
        let mut list = Msrs::from_entries(&rest)
            .map_err(|error| Error::Config(format!("MSR list: {error:?}")))?;
        let got = vcpu.get_msrs(&mut list).map_err(Error::kvm("save the MSRs"))?;
        saved.extend(list.as_slice()[..got].iter().map(|entry| (entry.index, entry.data)));
        rest.drain(..(got + 1).min(rest.len()));
    }
    let events = Abi(vcpu.get_vcpu_events().map_err(Error::kvm("save pending events"))?);
    let msrs = saved;
    Ok(VcpuState {
        mp_state,
        regs,
        sregs,
        xsave,
        xcrs,
        debug,
        lapic,
        events,
        msrs,
        tsc_khz,
        read_at,
    })
}

/// Has a vCPU's TSC go at a frequency, if it is not near enough that a guest notices nothing (as KVM
/// takes it, 250 in a million).
pub fn set_tsc_frequency(vcpu: &VcpuFd, khz: u32) -> Result<(), Error> {
    let here = vcpu.get_tsc_khz().unwrap_or(0);
    if khz == 0 || here.abs_diff(khz) <= here / 4000 {
        return Ok(());
    }
    vcpu.set_tsc_khz(khz).map_err(|source| {
        tracing::debug!(%source, khz, here, "a TSC frequency");
        Error::Config(format!(
            "this host's CPUs cannot scale their TSC of {here} kHz to the guest's {khz} kHz"
        ))
    })
}

/// What an MSR that could not be written means: nothing if it is as it should be, or is the host's.
fn check_refused(vcpu: &VcpuFd, refused: &kvm_msr_entry) -> Result<(), Error> {
    let (index, wanted) = (refused.index, refused.data);
    if MAY_DIFFER.contains(&index) {
        return Ok(());
    }
    let mut list = Msrs::from_entries(&[kvm_msr_entry { index, ..Default::default() }])
        .map_err(|error| Error::Config(format!("MSR list: {error:?}")))?;
    let got = vcpu.get_msrs(&mut list).map_err(Error::kvm("read an MSR"))?;
    let here = list.as_slice()[..got].first().map(|entry| entry.data);
    if here == Some(wanted) || (here.is_none() && wanted == 0) {
        return Ok(());
    }
    let here = here.map_or_else(|| "none".to_owned(), |here| format!("{here:#x}"));
    Err(Error::Config(format!(
        "MSR {index:#x} cannot be restored to {wanted:#x}, it is {here} on this host"
    )))
}

/// Writes a vCPU that has not run. Its CPUID must be set.
///
/// # Errors
/// What KVM refuses, and what a guest would find changed.
pub fn restore_vcpu(vcpu: &VcpuFd, state: &VcpuState) -> Result<(), Error> {
    set_tsc_frequency(vcpu, state.tsc_khz)?;
    vcpu.set_mp_state(state.mp_state.0).map_err(Error::kvm("restore the run state"))?;
    vcpu.set_regs(&state.regs.0).map_err(Error::kvm("restore the registers"))?;
    vcpu.set_sregs(&state.sregs.0).map_err(Error::kvm("restore the system registers"))?;
    set_xsave(vcpu, &state.xsave.0)?;
    // A CPU without XSAVE has none, and KVM refuses to set it even to nothing.
    if state.xcrs.0.nr_xcrs > 0 {
        vcpu.set_xcrs(&state.xcrs.0).map_err(Error::kvm("restore XCR0"))?;
    }
    vcpu.set_debug_regs(&state.debug.0).map_err(Error::kvm("restore the debug registers"))?;
    vcpu.set_lapic(&state.lapic.0).map_err(Error::kvm("restore the local APIC"))?;
    // The TSC went on while the guest was away, if both hosts' clocks make sense of it.
    let away = time_away(state.read_at);
    let ticks = u128::from(away) * u128::from(state.tsc_khz) / 1_000_000;
    let mut rest: Vec<kvm_msr_entry> = state
        .msrs
        .iter()
        .map(|(index, data)| {
            let data = match *index {
                MSR_TSC => data.wrapping_add(ticks as u64),
                _ => *data,
            };
            kvm_msr_entry { index: *index, data, ..Default::default() }
        })
        .collect();
    while !rest.is_empty() {
        let list = Msrs::from_entries(&rest)
            .map_err(|error| Error::Config(format!("MSR list: {error:?}")))?;
        let set = vcpu.set_msrs(&list).map_err(Error::kvm("restore the MSRs"))?;
        if let Some(refused) = rest.get(set) {
            check_refused(vcpu, refused)?;
        }
        rest.drain(..(set + 1).min(rest.len()));
    }
    vcpu.set_vcpu_events(&state.events.0).map_err(Error::kvm("restore pending events"))
}

#[expect(unsafe_code, reason = "kvm-ioctls leaves the size of the area to its caller")]
fn set_xsave(vcpu: &VcpuFd, area: &XsaveArea) -> Result<(), Error> {
    let area = kvm_xsave { region: area.0, ..Default::default() };
    // SAFETY: this process never asks for dynamically enabled features, so the kernel reads
    // 4096 bytes, the size of the area.
    unsafe { vcpu.set_xsave(&area) }.map_err(Error::kvm("restore the vector registers"))
}

/// Reads the state of the interrupt chips and the timer.
pub fn save_chips(vm: &VmFd) -> Result<ChipState, Error> {
    let chip = |chip_id| {
        let mut chip = kvm_irqchip { chip_id, ..Default::default() };
        vm.get_irqchip(&mut chip).map_err(Error::kvm("save an interrupt controller"))?;
        Ok(Abi(chip))
    };
    Ok(ChipState {
        pic_master: chip(KVM_IRQCHIP_PIC_MASTER)?,
        pic_slave: chip(KVM_IRQCHIP_PIC_SLAVE)?,
        ioapic: chip(KVM_IRQCHIP_IOAPIC)?,
        pit: Abi(vm.get_pit2().map_err(Error::kvm("save the timer"))?),
        clock: Abi(vm.get_clock().map_err(Error::kvm("save the clock"))?),
    })
}

/// Writes the state of the interrupt chips and the timer.
pub fn restore_chips(vm: &VmFd, state: &ChipState) -> Result<(), Error> {
    for chip in [&state.pic_master, &state.pic_slave, &state.ioapic] {
        vm.set_irqchip(&chip.0).map_err(Error::kvm("restore an interrupt controller"))?;
    }
    vm.set_pit2(&state.pit.0).map_err(Error::kvm("restore the timer"))?;
    let mut clock = state.clock.0;
    clock.flags &= KVM_CLOCK_REALTIME;
    vm.set_clock(&clock).map_err(Error::kvm("restore the clock"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn kernel_structures_round_trip() {
        let regs = kvm_regs { rip: 0x1234, rflags: 2, ..Default::default() };
        let text = serde_json::to_string(&Abi(regs)).unwrap();
        let back: Abi<kvm_regs> = serde_json::from_str(&text).unwrap();
        assert_eq!(back.0, regs);
        assert_eq!(text.len(), 2 + 2 * size_of::<kvm_regs>());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        /// Only text of exactly the right length and alphabet is a structure.
        #[test]
        fn other_text_is_refused(text in "[0-9a-g]{0,20}") {
            let parsed = serde_json::from_str::<Abi<kvm_mp_state>>(&format!("\"{text}\""));
            let right = text.len() == 2 * size_of::<kvm_mp_state>() && !text.contains('g');
            prop_assert_eq!(parsed.is_ok(), right);
        }
    }
}

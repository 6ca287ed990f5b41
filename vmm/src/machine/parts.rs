//! The parts that a machine is put together of: what KVM has of it, its cards, its ports.

use std::{
    os::fd::OwnedFd,
    sync::{Arc, Mutex},
};

use host_api::VmDefinition;
use kvm_bindings::{KVM_PIT_SPEAKER_DUMMY, kvm_pit_config};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use vmm_sys_util::eventfd::EventFd;

use super::{DiskShape, cpu::CpuModel};
use crate::{
    devices::{
        cmos::Cmos,
        console::Console,
        pci::ConfigPorts,
        power::{Power, ResetPort},
        pvpanic::PanicPort,
        serial::SerialPort,
        virtio::{
            Backend,
            balloon::Balloon,
            blk::Blk,
            net::{Limit, Limits, Net},
            transport::{BAR_SIZE, Machine, VirtioPci},
        },
        watchdog::Watchdog,
    },
    platform::{bus::Bus, error::Error, layout, lifecycle::Control},
};

/// What a guest is told of a disk to tell it from all others: the VM's id and the disk's place, which
/// stay when the VM moves. 20 bytes at most (virtio 1.2 §5.2.6).
pub(super) fn serial_number(definition: &VmDefinition, index: usize) -> String {
    match definition.id {
        Some(id) => format!("{:.17}-{index}", String::from(id)),
        None => format!("bulkhead-{index}"),
    }
}

/// The functions on a machine's PCI bus behind those of its chipset, each at the next device.
pub(super) struct Functions<'a> {
    /// What they need of it.
    pub machine: &'a Machine,
    /// The bus.
    pub pci: &'a mut ConfigPorts,
    /// Those that are virtio, in their order.
    pub virtio: Vec<Arc<Mutex<VirtioPci>>>,
}

impl Functions<'_> {
    /// Where the next function has its window until its guest or firmware puts it elsewhere.
    fn bar(&self) -> u64 {
        layout::PCI_MMIO + self.virtio.len() as u64 * u64::from(BAR_SIZE)
    }

    /// Adds a virtio function.
    pub(super) fn add(&mut self, backend: Arc<dyn Backend>) -> Result<(), Error> {
        let function = VirtioPci::new(self.machine, backend, self.bar())?;
        self.pci.add(function.clone());
        self.virtio.push(function);
        Ok(())
    }

    /// Adds the disks of a definition, a queue for each vCPU.
    pub(super) fn add_disks(
        &mut self,
        definition: &VmDefinition,
        shapes: &[DiskShape],
    ) -> Result<Vec<(String, Arc<Blk>)>, Error> {
        let mut disks = Vec::new();
        for (index, (disk, shape)) in definition.disks.iter().zip(shapes).enumerate() {
            let queues = u16::try_from(definition.vcpus.min(16)).unwrap_or(1);
            let id = serial_number(definition, index);
            let blk = Arc::new(Blk::new(shape.geometry, shape.read_only, queues, &id));
            blk.belongs_to(&self.machine.control, &disk.location);
            blk.set_limits(disk.limits);
            self.add(blk.clone())?;
            disks.push((disk.location.clone(), blk));
        }
        Ok(disks)
    }

    /// Adds the balloon of a definition that has one.
    pub(super) fn add_balloon(
        &mut self,
        definition: &VmDefinition,
    ) -> Result<Option<Arc<Balloon>>, Error> {
        if definition.minimum_mib.is_none() {
            return Ok(None);
        }
        let balloon = Arc::new(Balloon::new(definition.memory_mib << 20));
        self.add(balloon.clone())?;
        Ok(Some(balloon))
    }

    /// Adds the watchdog of a definition that has one.
    pub(super) fn add_watchdog(
        &mut self,
        definition: &VmDefinition,
    ) -> Option<Arc<Mutex<Watchdog>>> {
        let machine = self.machine;
        let (control, mmio, runtime) = (&machine.control, &machine.mmio, &machine.runtime);
        let watchdog = Watchdog::new(control, definition.on_watchdog?, mmio, self.bar(), runtime);
        self.pci.add(watchdog.clone());
        Some(watchdog)
    }
}

/// A machine's network cards over its taps, in order.
pub(super) fn nets(definition: &VmDefinition, taps: Vec<OwnedFd>) -> Result<Vec<Arc<Net>>, Error> {
    let limit =
        |mbit: Option<u32>| mbit.map(|mbit| Limit { bytes_per_s: u64::from(mbit) * 125_000 });
    let cards = definition.nics.iter().enumerate().zip(taps);
    cards
        .map(|((index, nic), tap)| {
            let limits = Limits { receive: limit(nic.receive_mbit), send: limit(nic.send_mbit) };
            let net = Net::new(tap, definition.mac(index).0, limits);
            net.map(Arc::new).map_err(Error::os("use a tap"))
        })
        .collect()
}

/// An empty machine with its interrupt controllers and timer.
pub(super) fn create(kvm: &Kvm) -> Result<Arc<VmFd>, Error> {
    let vm = Arc::new(kvm.create_vm().map_err(Error::kvm("create a VM"))?);
    vm.set_identity_map_address(layout::IDENTITY_MAP)
        .map_err(Error::kvm("set the identity map address"))?;
    vm.set_tss_address(layout::TSS).map_err(Error::kvm("set the TSS address"))?;
    vm.create_irq_chip().map_err(Error::kvm("create the interrupt controllers"))?;
    let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
    vm.create_pit2(pit).map_err(Error::kvm("create the timer"))?;
    Ok(vm)
}

/// A machine's `count` vCPUs, which can do what `model` says.
pub(super) fn create_vcpus(vm: &VmFd, model: &CpuModel, count: u32) -> Result<Vec<VcpuFd>, Error> {
    let create = |id| {
        let fd = vm.create_vcpu(u64::from(id)).map_err(Error::kvm("create a vCPU"))?;
        let cpuid = model.for_vcpu(id, count)?;
        fd.set_cpuid2(&cpuid).map_err(Error::kvm("set the CPUID"))?;
        Ok(fd)
    };
    (0..count).map(create).collect()
}

/// The serial port, whose interrupt is with KVM.
pub(super) fn serial_port(vm: &VmFd, console: Console) -> Result<Arc<Mutex<SerialPort>>, Error> {
    let line = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)
        .map_err(Error::os("make an eventfd"))?;
    vm.register_irqfd(&line, layout::SERIAL_IRQ).map_err(Error::kvm("register an irqfd"))?;
    Ok(Arc::new(Mutex::new(SerialPort::new(line, console))))
}

/// Puts the devices at fixed ports on their bus, as every machine has them.
pub(super) fn place_ports(
    pio: &Bus,
    control: &Arc<Control>,
    serial: &Arc<Mutex<SerialPort>>,
    cmos: &Arc<Mutex<Cmos>>,
    power: &Arc<Mutex<Power>>,
    pci: &Arc<Mutex<ConfigPorts>>,
    panic: PanicPort,
) {
    let ports = |start: u16, len: u64| u64::from(start)..u64::from(start) + len;
    pio.insert(ports(layout::SERIAL_PORT, 8), serial.clone());
    pio.insert(ports(layout::CMOS_PORT, 2), cmos.clone());
    pio.insert(ports(layout::PM1_EVENT, 12), power.clone());
    let reset = ResetPort::control_register(control.clone());
    pio.insert(ports(layout::RESET_PORT, 1), Arc::new(Mutex::new(reset)));
    pio.insert(ports(layout::PANIC_PORT, 1), Arc::new(Mutex::new(panic)));
    pio.insert(ports(layout::PCI_CONFIG, 8), pci.clone());
    let keyboard = ResetPort::keyboard(control.clone());
    pio.insert(ports(layout::I8042_PORT, 5), Arc::new(Mutex::new(keyboard)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_disks_have_one_serial_number() {
        let text = "name = 'a'\nmemory_mib = 64\n[boot]\nkernel = '/k'\n";
        let with = |id: &str| VmDefinition::from_toml(&format!("{id}{text}")).unwrap();
        let one = with("id = '5f0e7c1a9b3d4e6f8a2b4c6d8e0f1a3b'\n");
        let other = with("id = '5f0e7c1a9b3d4e6f9a2b4c6d8e0f1a3b'\n");
        let mut all = Vec::new();
        for definition in [&one, &other] {
            all.extend((0..16).map(|disk| serial_number(definition, disk)));
        }
        assert!(all.iter().all(|serial| serial.len() <= 20), "{all:?}");
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 32);
        assert_eq!(serial_number(&with(""), 3), "bulkhead-3");
    }
}

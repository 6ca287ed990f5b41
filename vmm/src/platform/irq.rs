//! Interrupt routing: message-signalled vectors as irqfds.
//!
//! ```text
//!  device worker ── eventfd write ──► irqfd (gsi) ── routing table ──► MSI ──► local APIC
//! ```

use std::sync::{Arc, Mutex};

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, KvmIrqRouting, kvm_irq_routing_entry,
};
use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::EventFd;

use super::{bus::lock, error::Error, layout};

/// Where a message-signalled interrupt goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Msi {
    /// Message address.
    pub address: u64,
    /// Message data.
    pub data: u32,
}

/// Owner of a VM's routing table.
#[derive(Debug)]
pub struct IrqRouter {
    vm: Arc<VmFd>,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    vectors: Vec<Msi>,
    changed: bool,
}

impl IrqRouter {
    /// A table with the legacy interrupt controllers' lines only.
    pub fn new(vm: Arc<VmFd>) -> Self {
        Self { vm, table: Mutex::default() }
    }

    /// Takes the next line for a message-signalled vector and returns it with its eventfd.
    pub fn allocate(&self) -> Result<(u32, EventFd), Error> {
        let eventfd = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)
            .map_err(Error::os("make an eventfd"))?;
        let mut table = lock(&self.table);
        let gsi = layout::FIRST_MSI_GSI + table.vectors.len() as u32;
        table.vectors.push(Msi::default());
        self.vm.register_irqfd(&eventfd, gsi).map_err(Error::kvm("register an irqfd"))?;
        Ok((gsi, eventfd))
    }

    /// Points a line at `msi` from the next [`IrqRouter::commit`] on.
    pub fn set(&self, gsi: u32, msi: Msi) {
        let mut table = lock(&self.table);
        let index = (gsi - layout::FIRST_MSI_GSI) as usize;
        if table.vectors[index] != msi {
            table.vectors[index] = msi;
            table.changed = true;
        }
    }

    /// Gives KVM the table if it has changed.
    pub fn commit(&self) -> Result<(), Error> {
        let mut table = lock(&self.table);
        if !table.changed {
            return Ok(());
        }
        let vectors = &table.vectors;
        let mut entries: Vec<kvm_irq_routing_entry> = (0..24).flat_map(legacy).collect();
        let used = vectors.iter().enumerate().filter(|(_, msi)| msi.address != 0);
        entries.extend(used.map(|(index, msi)| message(index, msi)));
        let routes = KvmIrqRouting::from_entries(&entries)
            .map_err(|error| Error::Config(format!("interrupt routing: {error:?}")))?;
        self.vm.set_gsi_routing(&routes).map_err(Error::kvm("set the interrupt routing"))?;
        table.changed = false;
        Ok(())
    }
}

fn legacy(line: u32) -> Vec<kvm_irq_routing_entry> {
    let entry = |chip, pin| {
        let mut entry = kvm_irq_routing_entry {
            gsi: line,
            type_: KVM_IRQ_ROUTING_IRQCHIP,
            ..Default::default()
        };
        entry.u.irqchip.irqchip = chip;
        entry.u.irqchip.pin = pin;
        entry
    };
    // The timer's line 0 arrives at pin 2 of the I/O APIC, as the MADT says.
    let ioapic = entry(KVM_IRQCHIP_IOAPIC, if line == 0 { 2 } else { line });
    match line {
        0..8 => vec![entry(KVM_IRQCHIP_PIC_MASTER, line), ioapic],
        8..16 => vec![entry(KVM_IRQCHIP_PIC_SLAVE, line - 8), ioapic],
        _ => vec![ioapic],
    }
}

fn message(index: usize, msi: &Msi) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry {
        gsi: layout::FIRST_MSI_GSI + index as u32,
        type_: KVM_IRQ_ROUTING_MSI,
        ..Default::default()
    };
    entry.u.msi.address_lo = msi.address as u32;
    entry.u.msi.address_hi = (msi.address >> 32) as u32;
    entry.u.msi.data = msi.data;
    entry
}

//! virtio over PCI (virtio 1.2 §4.1), modern interface with MSI-X.
//!
//! ```text
//!  BAR 0   0x0000 common configuration   0x3000 notification, 4 bytes a queue
//!          0x1000 ISR status             0x4000 MSI-X table
//!          0x2000 device configuration   0x5000 MSI-X pending bits
//! ```

mod saved;
mod space;

use std::{
    panic::{AssertUnwindSafe, resume_unwind},
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use futures_util::FutureExt;
use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use tokio::{runtime::Handle, sync::watch, task::JoinHandle};
use virtio_queue::{Queue, QueueState, QueueT};
use vmm_sys_util::eventfd::EventFd;

pub use self::saved::SavedVirtio;
use self::{saved::SavedQueue, space::config_space};
use super::{Backend, F_EVENT_IDX, F_INDIRECT, F_VERSION_1, Kick, QueueIo};
use crate::{
    devices::pci::{
        PciFunction,
        config::ConfigSpace,
        msix::{Msix, NO_VECTOR},
    },
    platform::{
        bus::{Bus, BusDevice},
        error::{Error, chain, panic_text},
        irq::IrqRouter,
        lifecycle::{Control, EndReason},
        memory::GuestRam,
    },
};

/// Size of BAR 0.
pub const BAR_SIZE: u32 = 0x8000;
const ISR: u64 = 0x1000;
const DEVICE: u64 = 0x2000;
const NOTIFY: u64 = 0x3000;
const TABLE: u64 = 0x4000;
const PENDING: u64 = 0x5000;

const STATUS_DRIVER_OK: u8 = 4;
const STATUS_FEATURES_OK: u8 = 8;
const STATUS_NEEDS_RESET: u8 = 64;
/// Bit of the ISR status: the configuration has changed, or the device needs a reset.
const ISR_CONFIG: u8 = 2;

struct Slot {
    saved: SavedQueue,
    kick: EventFd,
    /// The queue's worker while the device runs, and until it has ended.
    worker: Option<JoinHandle<QueueIo>>,
}

/// BAR 0 as it is mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Window {
    at: u64,
    doorbells: bool,
}

/// A virtio function on the PCI bus.
pub struct VirtioPci {
    backend: Arc<dyn Backend>,
    vm: Arc<VmFd>,
    /// The bus has this function.
    mmio: Weak<Bus>,
    mem: Arc<GuestRam>,
    runtime: Handle,
    control: Arc<Control>,
    config: ConfigSpace,
    msix: Arc<Msix>,
    msix_capability: usize,
    pci_capability: usize,
    /// Itself, as the bus has it.
    this: Weak<Mutex<Self>>,
    /// Where BAR 0 is on the bus, and whether its doorbells are with KVM; nowhere while the function
    /// answers no memory accesses (PCI 3.0 §6.2.2).
    window: Option<Window>,
    device_feature_select: u32,
    driver_feature_select: u32,
    driver_features: u64,
    config_vector: u16,
    queue_select: u16,
    status: u8,
    isr: u8,
    /// Counts changes of the device's configuration (virtio 1.2 §2.5.1).
    generation: u8,
    /// A reset that the guest asked for is not done: workers from before it have not ended.
    resetting: bool,
    /// A worker has panicked since the last reset.
    failed: Arc<AtomicBool>,
    slots: Vec<Slot>,
    drain: watch::Sender<bool>,
}

impl std::fmt::Debug for VirtioPci {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VirtioPci").field("backend", &self.backend).finish_non_exhaustive()
    }
}

/// What a function needs of its machine.
#[derive(Debug, Clone)]
pub struct Machine {
    /// The machine at KVM.
    pub vm: Arc<VmFd>,
    /// The MMIO bus.
    pub mmio: Arc<Bus>,
    /// Guest memory.
    pub mem: Arc<GuestRam>,
    /// Interrupt routing.
    pub router: Arc<IrqRouter>,
    /// When vCPUs are wanted back.
    pub control: Arc<Control>,
    /// Where queue workers run.
    pub runtime: Handle,
}

impl VirtioPci {
    /// Makes a function with BAR 0 at `bar`. It is on the MMIO bus when, and where, the guest says.
    pub fn new(
        machine: &Machine,
        backend: Arc<dyn Backend>,
        bar: u64,
    ) -> Result<Arc<Mutex<Self>>, Error> {
        let count = backend.queues();
        let msix = Arc::new(Msix::new(usize::from(count) + 1, machine.router.clone())?);
        let (config, pci_capability, msix_capability) = config_space(&*backend, bar as u32);
        let slots = (0..count)
            .map(|_| {
                let kick = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)
                    .map_err(Error::os("make an eventfd"))?;
                Ok(Slot { saved: SavedQueue::blank(backend.queue_size()), kick, worker: None })
            })
            .collect::<Result<_, Error>>()?;
        let failed = Arc::default();
        Ok(Arc::new_cyclic(|this| {
            Mutex::new(Self {
                this: this.clone(),
                backend,
                vm: machine.vm.clone(),
                mmio: Arc::downgrade(&machine.mmio),
                mem: machine.mem.clone(),
                runtime: machine.runtime.clone(),
                control: machine.control.clone(),
                config,
                msix,
                msix_capability,
                pci_capability,
                window: None,
                device_feature_select: 0,
                driver_feature_select: 0,
                driver_features: 0,
                config_vector: NO_VECTOR,
                queue_select: 0,
                status: 0,
                isr: 0,
                generation: 0,
                resetting: false,
                failed,
                slots,
                drain: watch::Sender::new(false),
            })
        }))
    }

    fn doorbell(bar: u64, queue: usize) -> IoEventAddress {
        IoEventAddress::Mmio(bar + NOTIFY + 4 * queue as u64)
    }

    /// Has KVM take the doorbells of a window at `bar`. If it does not take them all it takes none:
    /// another function is there too.
    fn register_doorbells(&self, bar: u64) -> Result<(), Error> {
        for (queue, slot) in self.slots.iter().enumerate() {
            let address = Self::doorbell(bar, queue);
            if let Err(error) = self.vm.register_ioevent(&slot.kick, &address, NoDatamatch) {
                self.forget_doorbells(bar, queue);
                return Err(Error::kvm("register an ioeventfd")(error));
            }
        }
        Ok(())
    }

    /// Takes the first `count` doorbells of a window at `bar` back from KVM.
    fn forget_doorbells(&self, bar: u64, count: usize) {
        for (queue, slot) in self.slots.iter().enumerate().take(count) {
            let address = Self::doorbell(bar, queue);
            if let Err(error) = self.vm.unregister_ioevent(&slot.kick, &address, NoDatamatch) {
                tracing::warn!(%error, queue, "a doorbell stays with KVM");
            }
        }
    }

    fn features(&self) -> u64 {
        self.backend.features() | F_VERSION_1 | F_EVENT_IDX | F_INDIRECT
    }

    /// Says that only a reset makes the device work again, and interrupts a driver that runs
    /// (virtio 1.2 §2.1.2).
    fn need_reset(&mut self) {
        self.status |= STATUS_NEEDS_RESET;
        if self.status & STATUS_DRIVER_OK != 0 {
            self.isr |= ISR_CONFIG;
            self.msix.signal(self.config_vector);
        }
    }

    /// The device's own configuration has changed: a driver that runs is told.
    pub fn config_changed(&mut self) {
        self.generation = self.generation.wrapping_add(1);
        if self.status & STATUS_DRIVER_OK != 0 {
            self.isr |= ISR_CONFIG;
            self.msix.signal(self.config_vector);
        }
    }

    /// Starts the workers of all queues that are set up and have none.
    fn start_workers(&mut self) {
        if self.resetting {
            // The workers from before the reset go on draining.
            return;
        }
        self.drain.send_replace(false);
        for index in 0..self.slots.len() {
            let slot = &mut self.slots[index];
            if !slot.saved.ready || slot.worker.is_some() {
                continue;
            }
            let state = QueueState {
                max_size: self.backend.queue_size(),
                next_avail: slot.saved.next_avail,
                next_used: slot.saved.next_used,
                event_idx_enabled: self.driver_features & F_EVENT_IDX != 0,
                size: slot.saved.size,
                ready: true,
                desc_table: slot.saved.desc,
                avail_ring: slot.saved.avail,
                used_ring: slot.saved.used,
            };
            let queue = match Queue::try_from(state) {
                Ok(queue) if queue.is_valid(&*self.mem) => queue,
                _ => {
                    tracing::warn!(index, "a guest's queue is not usable");
                    self.need_reset();
                    continue;
                }
            };
            let kick = match slot.kick.try_clone() {
                Ok(kick) => kick,
                Err(error) => {
                    tracing::error!(%error, "cannot start a queue");
                    self.need_reset();
                    continue;
                }
            };
            let backend = self.backend.clone();
            let (mem, msix) = (self.mem.clone(), self.msix.clone());
            let (vector, features) = (slot.saved.vector, self.driver_features);
            let drain = self.drain.subscribe();
            let (failed, control) = (self.failed.clone(), self.control.clone());
            slot.worker = Some(self.runtime.spawn(async move {
                let kick = Kick::new(kick);
                let index = index as u16;
                let io = QueueIo::new(index, queue, mem, kick, features, msix, vector);
                let name = backend.name();
                let worker = AssertUnwindSafe(backend.serve(io, drain)).catch_unwind();
                worker.await.unwrap_or_else(|panic| {
                    // What was in flight is lost, and its guest would wait for it for ever.
                    failed.store(true, Ordering::Release);
                    let what = panic_text(&*panic);
                    let why = format!("{name} failed, which is a defect: {what}");
                    tracing::error!(index, why, "a queue worker failed");
                    control.end(EndReason::Failed(why));
                    resume_unwind(panic)
                })
            }));
        }
    }

    /// Tells the workers to drain; [`VirtioPci::finish_pause`] waits for them.
    pub fn begin_pause(&self) {
        self.drain.send_replace(true);
    }

    /// Waits until nothing is in flight; if that is not so by `deadline`, lets the workers go on
    /// and answers false.
    pub fn finish_pause(&mut self, deadline: Instant) -> bool {
        let runtime = self.runtime.clone();
        let mut failed = false;
        for slot in &mut self.slots {
            let Some(mut worker) = slot.worker.take() else { continue };
            let at = tokio::time::Instant::from_std(deadline);
            let ended = runtime.block_on(async { tokio::time::timeout_at(at, &mut worker).await });
            match ended {
                Ok(Ok(io)) => {
                    slot.saved.next_avail = io.queue.next_avail();
                    slot.saved.next_used = io.queue.next_used();
                }
                // It has said so itself.
                Ok(Err(_)) => failed = true,
                Err(_) => {
                    slot.worker = Some(worker);
                    self.start_workers();
                    return false;
                }
            }
        }
        if failed {
            self.need_reset();
        }
        if self.resetting {
            self.finish_reset();
        }
        true
    }

    /// Lets a paused device run on.
    pub fn resume(&mut self) {
        if self.status & STATUS_DRIVER_OK != 0 {
            self.start_workers();
        }
    }

    /// Makes guest and device look at their rings again: notifications and interrupts that were
    /// on their way when the state was saved are repeated. Both sides tolerate spurious ones.
    pub fn nudge(&self) {
        for slot in self.slots.iter().filter(|slot| slot.saved.ready) {
            let _ = slot.kick.write(1);
            self.msix.signal(slot.saved.vector);
        }
    }

    /// Resets the device when its workers have ended: requests under way are waited for, as a disk
    /// would. Their storage may not answer for long, and a vCPU that is wanted back is not kept for
    /// that: then the reset is done later, and until then the guest reads a status other than 0,
    /// by which it knows that its rings and buffers are still in use (virtio 1.2 §4.1.4.3.2).
    fn reset(&mut self) {
        self.begin_pause();
        let (runtime, control) = (self.runtime.clone(), self.control.clone());
        for slot in &mut self.slots {
            let Some(worker) = &mut slot.worker else { continue };
            let ended = runtime.block_on(async {
                tokio::select! {
                    biased;
                    ended = worker => Some(ended),
                    () = control.leaving() => None,
                }
            });
            match ended {
                // One that failed has said so itself.
                Some(_) => {}
                None => {
                    self.resetting = true;
                    self.status = STATUS_NEEDS_RESET;
                    return;
                }
            }
            slot.worker = None;
        }
        self.finish_reset();
    }

    /// Does a reset that had to wait, if it need not any more.
    fn follow_reset(&mut self) {
        let ended = |slot: &Slot| slot.worker.as_ref().is_none_or(JoinHandle::is_finished);
        if self.resetting && self.slots.iter().all(ended) {
            self.reset();
        }
    }

    /// Sets all back to the beginning; there are no workers any more.
    fn finish_reset(&mut self) {
        for slot in &mut self.slots {
            slot.saved = SavedQueue::blank(self.backend.queue_size());
        }
        self.resetting = false;
        self.backend.reset();
        self.failed.store(false, Ordering::Release);
        self.drain.send_replace(false);
        self.driver_features = 0;
        self.device_feature_select = 0;
        self.driver_feature_select = 0;
        self.config_vector = NO_VECTOR;
        self.queue_select = 0;
        self.status = 0;
        self.isr = 0;
    }

    /// Has the window where the guest has put BAR 0 and lets it be seen, and nowhere else. Firmware
    /// moves the windows of several functions through each other's places, with accesses off meanwhile.
    fn follow_bar(&mut self) {
        let wanted = self.config.memory_enabled().then(|| u64::from(self.config.bar0()));
        if wanted == self.window.map(|window| window.at) {
            return;
        }
        let (Some(mmio), Some(this)) = (self.mmio.upgrade(), self.this.upgrade()) else { return };
        let this: Arc<Mutex<dyn BusDevice>> = this;
        if let Some(old) = self.window.take() {
            if old.doorbells {
                self.forget_doorbells(old.at, self.slots.len());
            }
            mmio.remove(old.at, &this);
        }
        if let Some(at) = wanted {
            // Without them a notification comes by the bus, which is slower.
            let doorbells = self.register_doorbells(at).inspect_err(|error| {
                tracing::warn!(error = chain(error), at, "a guest's window has no doorbells");
            });
            mmio.insert(at..at + u64::from(BAR_SIZE), this);
            self.window = Some(Window { at, doorbells: doorbells.is_ok() });
        }
    }

    fn common(&self) -> [u8; 64] {
        let half = |features: u64, select: u32| match select {
            0 => features as u32,
            1 => (features >> 32) as u32,
            _ => 0,
        };
        let mut bytes = [0; 64];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0x00, &self.device_feature_select.to_le_bytes());
        put(0x04, &half(self.features(), self.device_feature_select).to_le_bytes());
        put(0x08, &self.driver_feature_select.to_le_bytes());
        put(0x0c, &half(self.driver_features, self.driver_feature_select).to_le_bytes());
        put(0x10, &self.config_vector.to_le_bytes());
        put(0x12, &(self.slots.len() as u16).to_le_bytes());
        let failed = self.failed.load(Ordering::Acquire);
        put(0x14, &[self.status | if failed { STATUS_NEEDS_RESET } else { 0 }, 0]);
        put(0x15, &[self.generation]);
        put(0x16, &self.queue_select.to_le_bytes());
        if let Some(slot) = self.slots.get(usize::from(self.queue_select)) {
            let queue = &slot.saved;
            put(0x18, &queue.size.to_le_bytes());
            put(0x1a, &queue.vector.to_le_bytes());
            put(0x1c, &u16::from(queue.ready).to_le_bytes());
            put(0x1e, &self.queue_select.to_le_bytes());
            put(0x20, &queue.desc.to_le_bytes());
            put(0x28, &queue.avail.to_le_bytes());
            put(0x30, &queue.used.to_le_bytes());
        }
        bytes
    }

    fn write_common(&mut self, offset: u64, data: &[u8]) {
        let mut wide = [0; 8];
        wide[..data.len().min(8)].copy_from_slice(&data[..data.len().min(8)]);
        let value = u64::from_le_bytes(wide);
        self.follow_reset();
        if self.resetting && (offset != 0x14 || value != 0) {
            // The guest has not waited for the reset that it asked for.
            return;
        }
        let vector = |value: u64, vectors: usize| {
            if (value as usize) < vectors { value as u16 } else { NO_VECTOR }
        };
        let vectors = self.msix.len();
        let idle = self.status & STATUS_DRIVER_OK == 0;
        match offset {
            0x00 => self.device_feature_select = value as u32,
            0x08 => self.driver_feature_select = value as u32,
            0x0c if self.status & STATUS_FEATURES_OK == 0 => {
                let shift = match self.driver_feature_select {
                    0 => 0,
                    1 => 32,
                    _ => return,
                };
                let kept = self.driver_features & !(0xffff_ffff << shift);
                self.driver_features = (kept | (value & 0xffff_ffff) << shift) & self.features();
            }
            0x10 => self.config_vector = vector(value, vectors),
            0x14 => self.write_status(value as u8),
            0x16 => self.queue_select = value as u16,
            _ => {}
        }
        let most = self.backend.queue_size();
        let Some(slot) = self.slots.get_mut(usize::from(self.queue_select)) else { return };
        let queue = &mut slot.saved;
        if !idle && !matches!(offset, 0x1a | 0x1c) {
            return;
        }
        match offset {
            0x18 if value.is_power_of_two() && value <= u64::from(most) => {
                queue.size = value as u16;
            }
            0x1a if slot.worker.is_none() => queue.vector = vector(value, vectors),
            0x1c if value == 1 && idle => queue.ready = true,
            0x20..0x38 => {
                let place = match offset & !7 {
                    0x20 => &mut queue.desc,
                    0x28 => &mut queue.avail,
                    _ => &mut queue.used,
                };
                *place = match (data.len(), offset & 4) {
                    (8, 0) => value,
                    (4, 0) => *place & !0xffff_ffff | value,
                    (4, _) => *place & 0xffff_ffff | value << 32,
                    _ => *place,
                };
            }
            _ => {}
        }
    }

    fn write_status(&mut self, status: u8) {
        if status == 0 {
            self.reset();
            return;
        }
        let mut set = status & !self.status & !STATUS_NEEDS_RESET;
        // The driver reads back whether its features are taken (virtio 1.2 §2.2.2, §3.1.1): without
        // VERSION_1 they are those of a legacy driver, which this is no device for.
        if self.driver_features & F_VERSION_1 == 0 {
            set &= !(STATUS_FEATURES_OK | STATUS_DRIVER_OK);
        }
        // Nothing starts before the features are agreed on.
        if (self.status | set) & STATUS_FEATURES_OK == 0 {
            set &= !STATUS_DRIVER_OK;
        }
        self.status |= set;
        if set & STATUS_DRIVER_OK != 0 {
            self.start_workers();
        }
    }

    fn bar_read(&mut self, offset: u64, data: &mut [u8]) {
        let copy = |from: &[u8], at: u64, data: &mut [u8]| {
            for (index, byte) in data.iter_mut().enumerate() {
                *byte = from.get(at as usize + index).copied().unwrap_or(0);
            }
        };
        match offset {
            ..ISR => {
                self.follow_reset();
                copy(&self.common(), offset, data);
            }
            ISR..DEVICE => {
                data.fill(0);
                data[0] = std::mem::take(&mut self.isr);
            }
            DEVICE..NOTIFY => copy(&self.backend.config(), offset - DEVICE, data),
            TABLE..PENDING => self.msix.read_table((offset - TABLE) as usize, data),
            PENDING.. => self.msix.read_pending((offset - PENDING) as usize, data),
            _ => data.fill(0),
        }
    }

    fn bar_write(&mut self, offset: u64, data: &[u8]) {
        match offset {
            ..ISR => self.write_common(offset, data),
            DEVICE..NOTIFY => self.backend.write_config(offset - DEVICE, data),
            NOTIFY..TABLE => {
                // KVM takes doorbells by ioeventfd; this is for accesses it leaves to us.
                if let Some(slot) = self.slots.get(((offset - NOTIFY) / 4) as usize) {
                    let _ = slot.kick.write(1);
                }
            }
            TABLE..PENDING => self.msix.write_table((offset - TABLE) as usize, data),
            _ => {}
        }
    }

    /// The BAR window in configuration space: offset and length of the access.
    fn config_window(&self) -> Option<(u64, usize)> {
        let mut cap = [0; 20];
        self.config.read(self.pci_capability, &mut cap);
        let word = |at: usize| u32::from_le_bytes([cap[at], cap[at + 1], cap[at + 2], cap[at + 3]]);
        let (offset, len) = (word(8), word(12) as usize);
        let fits = cap[4] == 0 && matches!(len, 1 | 2 | 4) && offset < BAR_SIZE - 4;
        fits.then_some((u64::from(offset), len))
    }
}

impl BusDevice for VirtioPci {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        self.bar_read(offset, data);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        self.bar_write(offset, data);
    }
}

impl PciFunction for VirtioPci {
    fn config_read(&mut self, offset: usize, data: &mut [u8]) {
        if offset == self.pci_capability + 16
            && let Some((at, len)) = self.config_window()
        {
            data.fill(0);
            let len = len.min(data.len());
            return self.bar_read(at, &mut data[..len]);
        }
        self.config.read(offset, data);
    }

    fn config_write(&mut self, offset: usize, data: &[u8]) {
        if offset == self.pci_capability + 16
            && let Some((at, len)) = self.config_window()
        {
            return self.bar_write(at, &data[..len.min(data.len())]);
        }
        self.config.write(offset, data);
        let end = offset + data.len();
        if offset < 0x14 && end > 4 {
            self.follow_bar();
        }
        let control = self.msix_capability + 2;
        if offset < control + 2 && end > control {
            let mut bytes = [0; 2];
            self.config.read(control, &mut bytes);
            self.msix.set_control(u16::from_le_bytes(bytes));
        }
    }
}

//! The virtual machine: memory, vCPUs, interrupt routing and devices put together on KVM.
//!
//! ```text
//!  Vm ─┬─ Vcpus (a thread each) ── exits ──► Bus (ports, MMIO) ──► devices
//!      ├─ GuestRam (memfd) ◄── read, write, marks dirty ── queue workers
//!      ├─ IrqRouter (MSI-X → irqfd)
//!      └─ MachineState ◄─ save / restore ─► another Vm
//! ```
//!
//! A `Vm` knows nothing of files of definitions, of other hosts or of how disks are opened; it
//! is given open disks and takes them back.

pub mod acpi;
mod ballooned;
pub mod boot;
pub mod cpu;
pub mod firmware;
pub mod loader;
mod parts;
pub mod smbios;
pub mod state;
pub mod vcpu;

use std::{
    fs::File,
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use block_io::{Disk, Geometry};
use host_api::{ConsoleKind, VmDefinition};
use kvm_ioctls::{Kvm, VmFd};
use tokio::runtime::Handle;

use self::{
    cpu::CpuModel,
    firmware::{Firmware, Parts},
    parts::{Functions, create, create_vcpus, nets, place_ports, serial_port},
    state::{MachineState, Needs},
    vcpu::Vcpus,
};
use crate::{
    devices::{
        cmos::Cmos,
        console::Console,
        pci::ConfigPorts,
        port::Port,
        power::Power,
        pvpanic::PanicPort,
        serial::SerialPort,
        virtio::{
            balloon::Balloon,
            blk::Blk,
            console::VirtioConsole,
            net::Net,
            rng::Rng,
            storage::{LossRule, Trouble},
            transport::{Machine, VirtioPci},
        },
        watchdog::Watchdog,
    },
    platform::{
        bus::{Bus, lock, lock_within},
        error::{self, Error},
        irq::IrqRouter,
        lifecycle::Control,
        memory::{self, GuestRam},
    },
};

/// How long devices have to finish what is in flight when a machine is paused.
pub const DRAIN_LIMIT: Duration = Duration::from_secs(20);
/// How long vCPUs that are to be held back are waited for.
const HOLD_LIMIT: Duration = Duration::from_secs(1);
/// How long the end of a machine waits for a device that may be in a vCPU's hands: no longer than
/// anybody but a thread that is held up keeps it.
const DEVICE_LIMIT: Duration = Duration::from_secs(1);

/// What the guest is told of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskShape {
    /// Size and sectors.
    pub geometry: Geometry,
    /// Whether writes are refused.
    pub read_only: bool,
}

/// A virtual machine. Dropping it ends it.
#[derive(Debug)]
pub struct Vm {
    // First, so that threads end before what they use goes away. One that is held up and does not
    // has all of that for its own.
    vcpus: Mutex<Vcpus>,
    definition: VmDefinition,
    model: CpuModel,
    msrs: Vec<u32>,
    /// What the guest takes its TSC to count in a millisecond.
    tsc_khz: AtomicU32,
    power: Arc<Mutex<Power>>,
    serial: Arc<Mutex<SerialPort>>,
    cmos: Arc<Mutex<Cmos>>,
    pci: Arc<Mutex<ConfigPorts>>,
    firmware: Option<Firmware>,
    virtio: Vec<Arc<Mutex<VirtioPci>>>,
    disks: Vec<(String, Arc<Blk>)>,
    /// Their functions come after those of the disks.
    nets: Vec<Arc<Net>>,
    router: Arc<IrqRouter>,
    console: Console,
    agent: Port,
    panicked: Arc<AtomicBool>,
    watchdog: Option<Arc<Mutex<Watchdog>>>,
    balloon: Option<Arc<Balloon>>,
    control: Arc<Control>,
    pauses: AtomicU64,
    longest_pause_us: AtomicU64,
    paused_at: Mutex<Option<Instant>>,
    halted_at: Mutex<Option<Instant>>,
    vm: Arc<VmFd>,
    ram: Arc<GuestRam>,
}

impl Vm {
    /// Builds a machine: memory empty, vCPUs parked, disks known by shape only. `model` is what
    /// the vCPUs can do; what this host offers if `None`.
    pub fn build(
        kvm: &Kvm,
        definition: &VmDefinition,
        shapes: &[DiskShape],
        model: Option<CpuModel>,
        taps: Vec<OwnedFd>,
        runtime: Handle,
    ) -> Result<Self, Error> {
        let vm = create(kvm)?;
        let ram = memory::allocate(definition.memory_mib << 20)?;
        memory::register(&vm, &ram, 0)?;
        let model = match model {
            Some(model) => model,
            None => CpuModel::offered(kvm)?,
        };
        let count = definition.vcpus;
        let fds = create_vcpus(&vm, &model, count)?;
        let indices = kvm.get_msr_index_list().map_err(Error::kvm("tell which MSRs there are"))?;
        let msrs = state::readable_msrs(&fds[0], indices.as_slice());
        let tsc_khz = AtomicU32::new(fds[0].get_tsc_khz().unwrap_or(0));

        let (pio, mmio) = (Arc::new(Bus::default()), Arc::new(Bus::default()));
        let vcpus = Vcpus::start(definition.name.as_str(), fds, &pio, &mmio, &ram)?;
        let control = vcpus.control().clone();
        let router = Arc::new(IrqRouter::new(vm.clone()));

        let (serial_console, virtio_console) = (Console::default(), Console::default());
        let serial = serial_port(&vm, serial_console.clone())?;
        let power = Arc::new(Mutex::new(Power::new(vm.clone(), control.clone())));
        let (cmos, firmware, mut pci) = match &definition.firmware {
            None => (Cmos::default(), None, ConfigPorts::default()),
            Some(wanted) => {
                let (vm, ram, pio, mmio) = (&vm, &ram, &pio, &mmio);
                let parts = Parts { vm, ram, pio, mmio, control: &control, power: &power };
                let (firmware, pci) = Firmware::new(definition, wanted, &parts)?;
                (Cmos::of_machine(definition.memory_mib << 20, count), Some(firmware), pci)
            }
        };
        let cmos = Arc::new(Mutex::new(cmos));

        let machine = Machine {
            vm: vm.clone(),
            mmio,
            mem: ram.clone(),
            router: router.clone(),
            control: control.clone(),
            runtime,
        };
        let mut functions = Functions { machine: &machine, pci: &mut pci, virtio: Vec::new() };
        let disks = functions.add_disks(definition, shapes)?;
        let nets = nets(definition, taps)?;
        for net in &nets {
            functions.add(net.clone())?;
        }
        let agent = Port::default();
        functions.add(Arc::new(VirtioConsole::new(virtio_console.clone(), agent.clone())))?;
        functions.add(Arc::new(Rng))?;
        // These come last, so that all others are where they are without them.
        let balloon = functions.add_balloon(definition)?;
        let watchdog = functions.add_watchdog(definition);
        let virtio = functions.virtio;
        let pci = Arc::new(Mutex::new(pci));
        let panicked = Arc::default();
        let panic = PanicPort::new(control.clone(), definition.on_panic, Arc::clone(&panicked));
        place_ports(&pio, &control, &serial, &cmos, &power, &pci, panic);

        let console = match definition.console {
            ConsoleKind::Serial => serial_console,
            ConsoleKind::Virtio => virtio_console,
        };
        Ok(Self {
            vcpus: Mutex::new(vcpus),
            definition: definition.clone(),
            model,
            msrs,
            tsc_khz,
            power,
            serial,
            cmos,
            pci,
            firmware,
            virtio,
            disks,
            nets,
            router,
            console,
            agent,
            panicked,
            watchdog,
            balloon,
            control,
            pauses: AtomicU64::new(0),
            longest_pause_us: AtomicU64::new(0),
            paused_at: Mutex::new(None),
            halted_at: Mutex::new(None),
            vm,
            ram,
        })
    }

    /// Loads what the definition boots and sets the first vCPU to its entry: a kernel's, or a firmware's,
    /// where a vCPU is anyway.
    pub fn load(&self) -> Result<(), Error> {
        if let Some(firmware) = &self.firmware {
            return firmware.load(&self.ram);
        }
        let Some(kernel) = &self.definition.boot else {
            return Err(Error::Config("the VM has neither a kernel nor a firmware".into()));
        };
        let rsdp = acpi::write(&self.ram, self.definition.vcpus)?;
        let bytes = self.definition.memory_mib << 20;
        let entry = boot::load(&self.ram, kernel, bytes, rsdp)?;
        let vcpus = lock(&self.vcpus);
        let first = lock(&vcpus.fds()[0]);
        let mut sregs = first.get_sregs().map_err(Error::kvm("read the system registers"))?;
        let regs = boot::entry_registers(&self.ram, entry, &mut sregs)?;
        first.set_sregs(&sregs).map_err(Error::kvm("set the system registers"))?;
        first.set_regs(&regs).map_err(Error::kvm("set the registers"))
    }

    /// Its firmware, if it starts by one.
    pub fn firmware(&self) -> Option<&Firmware> {
        self.firmware.as_ref()
    }

    /// The firmware's variables as they are now: those of a new machine until others are loaded. None if
    /// it has none.
    pub fn variables(&self) -> Option<Vec<u8>> {
        Some(lock(self.firmware.as_ref()?.flash()?).content())
    }

    /// Gives the firmware the variables in a file, which has all changes of them from now on.
    ///
    /// # Errors
    /// [`Error::Config`] if they are another firmware's, [`Error::Os`] if they cannot be read.
    pub fn load_variables(&self, file: File) -> Result<(), Error> {
        match self.firmware.as_ref().and_then(Firmware::flash) {
            Some(flash) => lock(flash).load(file),
            None => Ok(()),
        }
    }

    /// Writes the firmware's variables to an empty file, durably, which has all changes of them from now
    /// on.
    ///
    /// # Errors
    /// [`Error::Os`] if they cannot be written.
    pub fn keep_variables(&self, file: File) -> Result<(), Error> {
        match self.firmware.as_ref().and_then(Firmware::flash) {
            Some(flash) => lock(flash).keep(file),
            None => Ok(()),
        }
    }

    /// What the vCPUs can do.
    pub fn model(&self) -> &CpuModel {
        &self.model
    }

    /// What of a machine's time and registers a target must be able to keep.
    pub fn needs(&self) -> Needs {
        Needs {
            tsc_khz: self.tsc_khz.load(Ordering::Relaxed),
            msrs: self.msrs.clone(),
            firmware: self.firmware.as_ref().map(|firmware| firmware.id().clone()),
        }
    }

    /// Makes a machine that does not run ready for what another needs, before that is paused: its TSC's
    /// frequency is set, and its MSRs are known here.
    ///
    /// # Errors
    /// What this host cannot keep.
    pub fn prepare_for(&self, needs: &Needs) -> Result<(), Error> {
        let unknown: Vec<String> = needs
            .msrs
            .iter()
            .filter(|msr| !self.msrs.contains(msr) && !state::MAY_DIFFER.contains(msr))
            .map(|msr| format!("{msr:#x}"))
            .collect();
        if !unknown.is_empty() {
            let unknown = unknown.join(", ");
            return Err(Error::Config(format!("this host's KVM does not know the MSRs {unknown}")));
        }
        if needs.firmware.as_ref() != self.firmware.as_ref().map(Firmware::id) {
            let path = self.definition.firmware.as_ref().map(|firmware| firmware.code());
            let path = path.map_or_else(String::new, |path| path.display().to_string());
            return Err(Error::Config(format!(
                "this host's firmware {path} is not the one that the VM has started with: install the same version \
                 of its package on both hosts and restart the VM"
            )));
        }
        let vcpus = lock(&self.vcpus);
        vcpus.fds().iter().try_for_each(|fd| state::set_tsc_frequency(&lock(fd), needs.tsc_khz))?;
        if needs.tsc_khz != 0 {
            self.tsc_khz.store(needs.tsc_khz, Ordering::Relaxed);
        }
        Ok(())
    }

    /// The definition it was built from.
    pub fn definition(&self) -> &VmDefinition {
        &self.definition
    }

    /// The guest's memory, shared with its devices.
    pub fn ram(&self) -> &Arc<GuestRam> {
        &self.ram
    }

    /// KVM's handle, for the dirty log.
    pub fn fd(&self) -> &Arc<VmFd> {
        &self.vm
    }

    /// The disks by location.
    pub fn disks(&self) -> &[(String, Arc<Blk>)] {
        &self.disks
    }

    /// How the guest ends or ended.
    pub fn control(&self) -> &Arc<Control> {
        &self.control
    }

    /// The console that the definition names.
    pub fn console(&self) -> &Console {
        &self.console
    }

    /// Whether its guest's kernel has said that it has panicked.
    pub fn has_panicked(&self) -> bool {
        self.panicked.load(Ordering::Acquire)
    }

    /// Its watchdog, if its definition has one.
    pub fn watchdog(&self) -> Option<&Arc<Mutex<Watchdog>>> {
        self.watchdog.as_ref()
    }

    /// The port of the guest agent.
    pub fn agent(&self) -> &Port {
        &self.agent
    }

    /// Types into the console.
    pub fn type_in(&self, bytes: &[u8]) {
        self.console.type_in(bytes);
        if self.definition.console == ConsoleKind::Serial {
            lock(&self.serial).refill();
        }
    }

    /// Presses the power button.
    pub fn press_power_button(&self) {
        lock(&self.power).press_button();
    }

    /// Gives the machine its open disks, in order.
    pub fn attach_disks(&self, disks: Vec<Arc<dyn Disk>>) -> Result<(), Error> {
        for ((location, blk), disk) in self.disks.iter().zip(disks) {
            blk.attach(disk).map_err(|why| Error::Config(format!("{location}: {why}")))?;
        }
        Ok(())
    }

    /// Makes durable what the disks have taken so far; the guest need not be paused. An error
    /// is left to the next flush that matters.
    pub async fn flush_disks(&self) {
        for (location, blk) in &self.disks {
            if let Some(disk) = blk.disk()
                && !disk.is_read_only()
                && let Err(error) = disk.flush().await
            {
                tracing::debug!(location, error = error::chain(&error), "flush");
            }
        }
    }

    /// Takes the disks away from a paused machine.
    pub fn detach_disks(&self) -> Vec<(String, Arc<dyn Disk>)> {
        let taken = |(location, blk): &(String, Arc<Blk>)| Some((location.clone(), blk.detach()?));
        self.disks.iter().filter_map(taken).collect()
    }

    /// Lets the guest run.
    pub fn resume(&self) {
        for function in &self.virtio {
            lock(function).resume();
        }
        lock(&self.vcpus).resume();
        if let Some(since) = lock(&self.paused_at).take() {
            self.count_pause(since);
        }
    }

    /// Parks the vCPUs, then waits until no device has anything in flight. If a vCPU or a device
    /// does not come to rest in time the guest runs on and the error says so.
    pub fn pause(&self, limit: Duration) -> Result<(), Error> {
        let begin = Instant::now();
        lock(&self.paused_at).get_or_insert(begin);
        self.pauses.fetch_add(1, Ordering::Relaxed);
        let vcpus = lock(&self.vcpus);
        if !vcpus.pause(begin + limit) {
            // No device was paused, and one of them may be what holds the vCPU up.
            vcpus.resume();
            lock(&self.paused_at).take();
            return Err(Error::Drain(limit.as_secs()));
        }
        drop(vcpus);
        for function in &self.virtio {
            lock(function).begin_pause();
        }
        for function in &self.virtio {
            if !lock(function).finish_pause(begin + limit) {
                self.resume();
                return Err(Error::Drain(limit.as_secs()));
            }
        }
        Ok(())
    }

    /// Keeps the vCPUs from running, or lets them run again; devices go on. A vCPU that does not
    /// park in time is held up as it is.
    pub fn hold_vcpus(&self, hold: bool) {
        let vcpus = lock(&self.vcpus);
        if hold {
            vcpus.pause(Instant::now() + HOLD_LIMIT);
        } else {
            vcpus.resume();
        }
    }

    /// Says what the guest sees of storage that is away.
    pub fn set_loss_rule(&self, rule: LossRule) {
        for (_, blk) in &self.disks {
            blk.set_loss_rule(rule);
        }
    }

    /// Says how much its disks do in a second, as far as `definition` has them.
    pub fn follow_limits(&self, definition: &VmDefinition) {
        for (location, blk) in &self.disks {
            let same = |disk: &&host_api::DiskDefinition| disk.location == *location;
            if let Some(disk) = definition.disks.iter().find(same) {
                blk.set_limits(disk.limits);
            }
        }
    }

    /// What keeps the machine from going on: a disk that is another's, else one that has been silent
    /// for `patience` or cannot be reached.
    pub fn trouble(&self, patience: Duration) -> Option<Trouble> {
        let all = self.disks.iter().filter_map(|(_, blk)| blk.trouble(patience));
        all.min_by_key(|trouble| !matches!(trouble, Trouble::Fenced(_)))
    }

    /// Keeps the vCPUs from running whatever else is done with the machine, or no longer. One that is
    /// not parked within a second is kicked again by the next call.
    pub fn halt(&self, halted: bool) {
        let begin = Instant::now();
        let change = self.control.halt(halted);
        if halted {
            if change {
                self.pauses.fetch_add(1, Ordering::Relaxed);
                *lock(&self.halted_at) = Some(begin);
            }
            // A pause that is under way kicks them itself.
            if let Some(vcpus) = lock_within(&self.vcpus, HOLD_LIMIT) {
                vcpus.wait_parked(begin + HOLD_LIMIT);
            }
        } else if let Some(since) = lock(&self.halted_at).take() {
            self.count_pause(since);
        }
    }

    fn count_pause(&self, since: Instant) {
        let micros = u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.longest_pause_us.fetch_max(micros, Ordering::Relaxed);
    }

    /// Tells the networks where the machine is now, and has its guest do so.
    pub fn announce(&self) {
        for (net, function) in self.nets.iter().zip(&self.virtio[self.disks.len()..]) {
            net.announce();
            lock(function).config_changed();
        }
    }

    /// Number of pauses and the longest in microseconds.
    pub fn pauses(&self) -> (u64, u64) {
        let count = self.pauses.load(Ordering::Relaxed);
        (count, self.longest_pause_us.load(Ordering::Relaxed))
    }

    /// Saves a paused machine.
    pub fn save(&self) -> Result<MachineState, Error> {
        let vcpus = lock(&self.vcpus);
        let vcpus = vcpus
            .fds()
            .iter()
            .map(|fd| state::save_vcpu(&lock(fd), &self.msrs))
            .collect::<Result<_, _>>()?;
        let firmware = self.firmware.as_ref().map(|firmware| firmware.save(&lock(&self.cmos)));
        Ok(MachineState {
            version: state::VERSION,
            vcpus,
            chips: state::save_chips(&self.vm)?,
            power: lock(&self.power).save(),
            serial: lock(&self.serial).save(),
            cmos_index: lock(&self.cmos).index,
            pci_address: lock(&self.pci).address,
            virtio: self.virtio.iter().map(|function| lock(function).save()).collect(),
            printed: state::Printed(self.console.last(state::HISTORY)),
            firmware,
            watchdog: self.watchdog.as_ref().map(|watchdog| lock(watchdog).save()),
        })
    }

    /// Restores a machine that has not run; its memory must already be there.
    pub fn restore(&self, saved: &MachineState) -> Result<(), Error> {
        if saved.version != state::VERSION {
            let (theirs, ours) = (saved.version, state::VERSION);
            return Err(Error::Config(format!("machine state version {theirs}, here {ours}")));
        }
        let vcpus = lock(&self.vcpus);
        let fds = vcpus.fds();
        if saved.vcpus.len() != fds.len() || saved.virtio.len() != self.virtio.len() {
            return Err(Error::Config("machine state of another machine".into()));
        }
        state::restore_chips(&self.vm, &saved.chips)?;
        for (fd, saved) in fds.iter().zip(&saved.vcpus) {
            state::restore_vcpu(&lock(fd), saved)?;
        }
        lock(&self.power).restore(&saved.power);
        lock(&self.serial).restore(&saved.serial)?;
        lock(&self.cmos).index = saved.cmos_index;
        match (&self.firmware, &saved.firmware) {
            (None, None) => {}
            (Some(firmware), Some(saved)) => firmware.restore(saved, &mut lock(&self.cmos))?,
            _ => return Err(Error::Config("machine state of another machine".into())),
        }
        match (&self.watchdog, &saved.watchdog) {
            (None, None) => {}
            (Some(watchdog), Some(saved)) => lock(watchdog).restore(saved)?,
            _ => return Err(Error::Config("machine state of another machine".into())),
        }
        lock(&self.pci).address = saved.pci_address;
        self.console.push(&saved.printed.0);
        for (function, saved) in self.virtio.iter().zip(&saved.virtio) {
            lock(function).restore(saved)?;
        }
        self.router.commit()?;
        for function in &self.virtio {
            lock(function).nudge();
        }
        Ok(())
    }

    /// Ends the guest and waits for its vCPUs; requests in flight have `limit` to be finished.
    pub fn stop(&self, limit: Duration) {
        lock(&self.vcpus).stop();
        for function in &self.virtio {
            if let Some(function) = lock_within(function, DEVICE_LIMIT) {
                function.begin_pause();
            }
        }
        let deadline = Instant::now() + limit;
        for function in &self.virtio {
            let Some(mut function) = lock_within(function, DEVICE_LIMIT) else { continue };
            if !function.finish_pause(deadline) {
                tracing::warn!(vm = %self.definition.name, "disk requests are still in flight");
                function.begin_pause();
            }
        }
        self.console.close();
        self.agent.close();
    }
}

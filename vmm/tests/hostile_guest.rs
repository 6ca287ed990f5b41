//! A guest that does what no driver does: registers and rings of rubbish. The host must neither
//! fall over nor spin, and the device must work again after a reset.

mod support;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use block_io::{Disk, Error, Geometry, IoFuture, LocalFile, LocalOptions, RawDisk};
use kvm_ioctls::{IoEventAddress, NoDatamatch};
use proptest::prelude::*;
use tokio::sync::watch;
use vm_memory::{Bytes, GuestAddress};
use vmm::{
    devices::{
        pci::PciFunction,
        virtio::{
            blk::Blk,
            storage::{LossRule, Trouble},
            transport::{BAR_SIZE, Machine, VirtioPci},
        },
    },
    platform::{
        bus::BusDevice,
        layout,
        lifecycle::{Control, EndReason},
        memory::GuestRam,
    },
};
use vmm_sys_util::eventfd::EventFd;

struct Rig {
    function: Arc<Mutex<VirtioPci>>,
    ram: Arc<GuestRam>,
    blk: Arc<Blk>,
    control: Arc<Control>,
    _runtime: tokio::runtime::Runtime,
    _image: tempfile::NamedTempFile,
}

fn rig() -> Option<Rig> {
    rig_with(|disk| disk)
}

/// A rig whose disk is made of a plain one.
fn rig_with(make: impl FnOnce(Arc<dyn Disk>) -> Arc<dyn Disk>) -> Option<Rig> {
    let (machine, runtime) = support::machine()?;
    let (ram, control) = (machine.mem.clone(), machine.control.clone());
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(1 << 20).unwrap();
    let disk: Arc<dyn Disk> = runtime.block_on(async {
        let file = LocalFile::open(image.path(), &LocalOptions::read_write()).unwrap();
        Arc::new(RawDisk::open(Arc::new(file), 512).await.unwrap())
    });
    let disk = make(disk);
    let blk = Arc::new(Blk::new(disk.geometry(), false, 2, "x"));
    blk.attach(disk).unwrap();
    let function = VirtioPci::new(&machine, blk.clone(), layout::PCI_MMIO).unwrap();
    Some(Rig { function, ram, blk, control, _runtime: runtime, _image: image })
}

/// A disk that answers reads only when it is let.
#[derive(Debug)]
struct Deaf {
    disk: Arc<dyn Disk>,
    open: watch::Sender<bool>,
    asked: AtomicUsize,
    /// It panics then.
    breaks: AtomicBool,
    /// What it answers to reads instead of data.
    fails: Mutex<Option<fn() -> Error>>,
}

impl Deaf {
    fn over(disk: Arc<dyn Disk>) -> Arc<Self> {
        Arc::new(Self {
            disk,
            open: watch::Sender::new(false),
            asked: AtomicUsize::new(0),
            breaks: AtomicBool::new(false),
            fails: Mutex::new(None),
        })
    }
}

impl Disk for Deaf {
    fn geometry(&self) -> Geometry {
        self.disk.geometry()
    }

    fn read_at<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> IoFuture<'a, ()> {
        Box::pin(async move {
            self.asked.fetch_add(1, Ordering::Relaxed);
            let _ = self.open.subscribe().wait_for(|open| *open).await;
            assert!(!self.breaks.load(Ordering::Relaxed), "it breaks");
            if let Some(error) = *self.fails.lock().unwrap() {
                return Err(error());
            }
            self.disk.read_at(offset, buf).await
        })
    }

    fn write_at<'a>(&'a self, offset: u64, buf: &'a [u8]) -> IoFuture<'a, ()> {
        self.disk.write_at(offset, buf)
    }

    fn flush(&self) -> IoFuture<'_, ()> {
        self.disk.flush()
    }

    fn discard(&self, offset: u64, len: u64) -> IoFuture<'_, ()> {
        self.disk.discard(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> IoFuture<'_, ()> {
        self.disk.write_zeroes(offset, len)
    }

    fn is_read_only(&self) -> bool {
        self.disk.is_read_only()
    }

    fn close(&self) -> IoFuture<'_, ()> {
        self.disk.close()
    }
}

/// A rig whose disk does not answer, with a read under way.
fn deaf_rig() -> Option<(Rig, Arc<Deaf>)> {
    let mut deaf = None;
    let rig = rig_with(|disk| deaf.insert(Deaf::over(disk)).clone())?;
    let deaf = deaf.unwrap();
    rig.ask();
    wait("a read", || deaf.asked.load(Ordering::Relaxed) == 1);
    Some((rig, deaf))
}

fn wait(what: &str, done: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < deadline, "no {what}");
        std::thread::yield_now();
    }
}

const NEEDS_RESET: u8 = 64;
const DESC: u64 = 0x10_0000;
const AVAIL: u64 = 0x11_0000;
const USED: u64 = 0x12_0000;

impl Rig {
    fn write(&self, offset: u64, bytes: &[u8]) {
        BusDevice::write(&mut *self.function.lock().unwrap(), offset, bytes);
    }

    fn read8(&self, offset: u64) -> u8 {
        let mut byte = [0];
        BusDevice::read(&mut *self.function.lock().unwrap(), offset, &mut byte);
        byte[0]
    }

    fn start(&self) {
        self.write(0x14, &[0]);
        assert_eq!(self.read8(0x14), 0);
        self.write(0x14, &[3]);
        self.write(0x08, &1u32.to_le_bytes());
        self.write(0x0c, &1u32.to_le_bytes());
        self.write(0x14, &[0xb]);
        self.write(0x16, &0u16.to_le_bytes());
        self.write(0x18, &256u16.to_le_bytes());
        for (place, address) in [(0x20, DESC), (0x28, AVAIL), (0x30, USED)] {
            self.write(place, &address.to_le_bytes());
        }
        self.write(0x1c, &1u16.to_le_bytes());
        self.write(0x14, &[0xf]);
    }

    fn put<T: vm_memory::ByteValued>(&self, at: u64, value: T) {
        self.ram.write_obj(value, GuestAddress(at)).unwrap();
    }

    fn descriptor(&self, index: u64, address: u64, len: u32, flags: u16, next: u16) {
        let at = DESC + index * 16;
        self.put(at, address);
        self.put(at + 8, len);
        self.put(at + 12, flags);
        self.put(at + 14, next);
    }

    fn kick(&self) {
        self.write(0x3000, &0u16.to_le_bytes());
    }

    /// The guest starts the device and reads sector 0.
    fn ask(&self) {
        self.ram.write_slice(&[0; 0x3_0000], GuestAddress(DESC)).unwrap();
        self.start();
        self.put_read();
    }

    fn put_read(&self) {
        self.descriptor(0, 0x20_0000, 16, 1, 1);
        self.descriptor(1, 0x21_0000, 512, 3, 2);
        self.descriptor(2, 0x22_0000, 1, 2, 0);
        self.put(0x20_0000, [0u64; 2]);
        self.put(0x22_0000, 0xffu8);
        self.put(AVAIL + 4, 0u16);
        self.put(AVAIL + 2, 1u16);
        self.kick();
    }

    fn used(&self) -> u16 {
        self.ram.read_obj(GuestAddress(USED + 2)).unwrap()
    }

    /// The device answers a read of sector 0.
    fn works(&self) {
        self.ask();
        wait("an answer", || self.used() == 1);
        assert_eq!(self.ram.read_obj::<u8>(GuestAddress(0x22_0000)).unwrap(), 0);
    }
}

#[test]
fn a_ring_that_claims_what_it_does_not_have_stops_nobody() {
    let Some(rig) = rig() else { return };
    rig.ram.write_slice(&[0; 0x3_0000], GuestAddress(DESC)).unwrap();
    rig.start();
    // Far more entries than the ring has room for.
    rig.put(AVAIL + 2, 60_000u16);
    rig.kick();
    // One runtime thread: a worker that spins would never let the reset through.
    rig.works();
}

#[test]
fn requests_outside_of_memory_or_of_the_disk_fail_and_harm_nothing() {
    let Some(rig) = rig() else { return };
    rig.works();
    let errors = |rig: &Rig| rig.blk.counters.errors.load(Ordering::Relaxed);
    let before = errors(&rig);
    // The data lies outside of memory; the sector lies outside of the disk; a loop.
    rig.descriptor(3, 0x20_0000, 16, 1, 4);
    rig.descriptor(4, 0x4000_0000, 4096, 3, 5);
    rig.descriptor(5, 0x22_0000, 1, 2, 0);
    rig.descriptor(6, 0x23_0000, 16, 1, 1);
    rig.put(0x23_0000, [0u64, u64::MAX]);
    rig.descriptor(7, 0x20_0000, 16, 1, 7);
    for (slot, head) in [(1u64, 3u16), (2, 6), (3, 7)] {
        rig.put(AVAIL + 4 + slot * 2, head);
    }
    rig.put(AVAIL + 2, 4u16);
    rig.kick();
    wait("end of them all", || rig.used() == 4);
    assert_eq!(errors(&rig) - before, 2);
    rig.works();
}

/// The guest resets a device whose disk does not answer: the vCPU is let go when it is wanted back,
/// and not before. Then nothing of the guest's moves the device until its request has ended.
fn reset_is_given_up(rig: &Rig, wanted_back: impl FnOnce(&Control)) {
    thread::scope(|scope| {
        let vcpu = scope.spawn(|| rig.write(0x14, &[0]));
        thread::sleep(Duration::from_millis(100));
        assert!(!vcpu.is_finished(), "requests under way are waited for");
        wanted_back(&rig.control);
        wait("vCPU", || vcpu.is_finished());
    });
    assert_eq!(rig.read8(0x14), NEEDS_RESET);
    // A guest that does not wait until it reads 0.
    for status in [3, 0xb, 0xf] {
        rig.write(0x14, &[status]);
    }
    rig.put_read();
    assert_eq!((rig.read8(0x14), rig.used()), (NEEDS_RESET, 0));
}

#[test]
fn a_reset_is_over_when_storage_answers_and_not_before() {
    let Some((rig, deaf)) = deaf_rig() else { return };
    reset_is_given_up(&rig, Control::hold);
    rig.control.run();
    deaf.open.send_replace(true);
    wait("end of the reset", || rig.read8(0x14) == 0);
    // What was under way was of before the reset; what was asked for meanwhile was not taken.
    assert_eq!((rig.used(), deaf.asked.load(Ordering::Relaxed)), (1, 1));
    rig.works();
}

#[test]
fn a_machine_ends_though_a_reset_waits_for_storage() {
    let Some((rig, _deaf)) = deaf_rig() else { return };
    reset_is_given_up(&rig, |control| control.end(EndReason::Stopped));
    assert!(!rig.function.lock().unwrap().finish_pause(Instant::now()));
}

#[test]
fn a_pause_waits_for_what_a_reset_does_not() {
    let Some((rig, deaf)) = deaf_rig() else { return };
    reset_is_given_up(&rig, Control::hold);
    let pause = |limit| {
        let mut function = rig.function.lock().unwrap();
        function.begin_pause();
        function.finish_pause(Instant::now() + limit)
    };
    assert!(!pause(Duration::from_millis(50)));
    rig.function.lock().unwrap().resume();
    rig.put_read();
    thread::sleep(Duration::from_millis(50));
    assert_eq!((rig.read8(0x14), deaf.asked.load(Ordering::Relaxed)), (NEEDS_RESET, 1));
    deaf.open.send_replace(true);
    assert!(pause(Duration::from_secs(20)));
    assert_eq!(rig.read8(0x14), 0);
    rig.function.lock().unwrap().resume();
    rig.control.run();
    rig.works();
}

#[test]
fn a_device_that_panics_ends_its_machine_at_once() {
    let Some((rig, deaf)) = deaf_rig() else { return };
    assert_eq!((rig.read8(0x14), rig.control.ended()), (0xf, None));
    deaf.breaks.store(true, Ordering::Relaxed);
    deaf.open.send_replace(true);
    let end = rig.control.wait_end(Duration::from_secs(20));
    let Some(EndReason::Failed(why)) = end else { panic!("{end:?}") };
    assert!(why.contains("disk x failed") && why.contains("it breaks"), "{why}");
    assert_eq!(rig.read8(0x14), 0xf | NEEDS_RESET);
}

/// A rig whose disk answers reads with an error, and belongs to its machine.
fn failing_rig(error: fn() -> Error) -> Option<(Rig, Arc<Deaf>)> {
    let mut deaf = None;
    let rig = rig_with(|disk| deaf.insert(Deaf::over(disk)).clone())?;
    let deaf = deaf.unwrap();
    rig.blk.belongs_to(&rig.control, "smb://h/s/a.vhdx");
    *deaf.fails.lock().unwrap() = Some(error);
    deaf.open.send_replace(true);
    rig.ask();
    Some((rig, deaf))
}

const PATIENCE: Duration = Duration::from_secs(3600);

#[test]
fn a_guest_sees_no_error_of_storage_that_is_away() {
    let Some((rig, deaf)) = failing_rig(|| Error::Disconnected("no route".into())) else { return };
    wait("trouble", || rig.blk.trouble(PATIENCE).is_some());
    let Some(Trouble::Away(why)) = rig.blk.trouble(PATIENCE) else { panic!("it is only away") };
    assert!(why.contains("a.vhdx") && why.contains("no route"), "{why}");
    wait("a second try", || deaf.asked.load(Ordering::Relaxed) > 1);
    assert_eq!(rig.used(), 0);
    *deaf.fails.lock().unwrap() = None;
    wait("an answer", || rig.used() == 1);
    assert_eq!(rig.ram.read_obj::<u8>(GuestAddress(0x22_0000)).unwrap(), 0);
    wait("end of the trouble", || rig.blk.trouble(PATIENCE).is_none());
    assert_eq!(rig.blk.counters.errors.load(Ordering::Relaxed), 0);
}

#[test]
fn a_guest_sees_that_storage_is_away_where_it_is_to() {
    let Some((rig, deaf)) = failing_rig(|| Error::Disconnected("no route".into())) else { return };
    rig.blk.set_loss_rule(LossRule::Report);
    wait("an answer", || rig.used() == 1);
    assert_eq!(rig.ram.read_obj::<u8>(GuestAddress(0x22_0000)).unwrap(), 1);
    assert_eq!(rig.blk.trouble(Duration::ZERO), None);
    *deaf.fails.lock().unwrap() = None;
    rig.works();
}

#[test]
fn a_disk_that_is_anothers_is_asked_once_and_its_machine_can_end() {
    let Some((rig, deaf)) = failing_rig(|| Error::Fenced("a later run".into())) else { return };
    wait("trouble", || rig.blk.trouble(PATIENCE).is_some());
    assert!(
        matches!(rig.blk.trouble(PATIENCE), Some(Trouble::Fenced(why)) if why.contains("later"))
    );
    assert_eq!((rig.used(), deaf.asked.load(Ordering::Relaxed)), (0, 1));
    rig.control.end(EndReason::Stopped);
    let mut function = rig.function.lock().unwrap();
    function.begin_pause();
    assert!(function.finish_pause(Instant::now() + Duration::from_secs(60)));
}

const COMMAND: usize = 0x04;
const BAR: usize = 0x10;
const MEMORY: [u8; 2] = [2, 0];

/// Three disks of one, two and three queues, by which a window tells whose it is.
fn functions(machine: &Machine) -> Vec<Arc<Mutex<VirtioPci>>> {
    let geometry = Geometry {
        size: 1 << 20,
        logical_sector: 512,
        physical_sector: 4096,
        discard_granularity: 0,
    };
    let make = |queues: u16| {
        let blk = Arc::new(Blk::new(geometry, false, queues, "x"));
        VirtioPci::new(machine, blk, window(u64::from(queues) - 1)).unwrap()
    };
    (1..=3).map(make).collect()
}

fn window(place: u64) -> u64 {
    layout::PCI_MMIO + place * u64::from(BAR_SIZE)
}

/// Queues of the function that answers at a place; all ones if none does.
fn queues_at(machine: &Machine, place: u64) -> u16 {
    let mut bytes = [0; 2];
    machine.mmio.read(window(place) + 0x12, &mut bytes);
    u16::from_le_bytes(bytes)
}

/// Whether KVM has a doorbell for a queue of what is at a place.
fn has_doorbell(machine: &Machine, place: u64, queue: u64) -> bool {
    let other = EventFd::new(libc::EFD_NONBLOCK).unwrap();
    let address = IoEventAddress::Mmio(window(place) + 0x3000 + 4 * queue);
    let taken = machine.vm.register_ioevent(&other, &address, NoDatamatch).is_err();
    if !taken {
        machine.vm.unregister_ioevent(&other, &address, NoDatamatch).unwrap();
    }
    taken
}

/// Firmware gives the windows out anew, each through places that are others' by then.
#[test]
fn functions_answer_where_firmware_has_put_their_windows() {
    let Some((machine, _runtime)) = support::machine() else { return };
    let all = functions(&machine);
    let write = |function: usize, at: usize, bytes: &[u8]| {
        all[function].lock().unwrap().config_write(at, bytes);
    };
    let none = u16::MAX;
    for place in 0..3 {
        assert_eq!(queues_at(&machine, place), none, "nothing answers before it may");
    }
    let orders = [[0u64, 1, 2], [2, 1, 0], [1, 2, 0], [2, 0, 1], [0, 2, 1]];
    for order in orders {
        for (function, place) in order.into_iter().enumerate() {
            write(function, COMMAND, &[0, 0]);
            // How firmware learns of the size.
            write(function, BAR, &[0xff; 4]);
            write(function, BAR, &(window(place) as u32).to_le_bytes());
        }
        for place in 0..3 {
            assert_eq!(queues_at(&machine, place), none, "{order:?}");
            assert!(!has_doorbell(&machine, place, 0), "{order:?}");
        }
        for (function, place) in order.into_iter().enumerate() {
            write(function, COMMAND, &MEMORY);
            let queues = function as u64 + 1;
            assert_eq!(u64::from(queues_at(&machine, place)), queues, "{order:?}");
            assert!((0..queues).all(|queue| has_doorbell(&machine, place, queue)), "{order:?}");
            assert!(!has_doorbell(&machine, place, queues), "{order:?}");
        }
    }
    // Two at one place: the guest's own loss, and over when one goes.
    write(1, COMMAND, &[0, 0]);
    write(1, BAR, &(window(0) as u32).to_le_bytes());
    write(1, COMMAND, &MEMORY);
    write(0, COMMAND, &[0, 0]);
    assert_eq!(queues_at(&machine, 0), 2);
    write(1, COMMAND, &[0, 0]);
    assert_eq!(queues_at(&machine, 0), none);
}

#[test]
fn a_driver_without_the_version_feature_gets_no_device() {
    let Some(rig) = rig() else { return };
    rig.write(0x14, &[0]);
    rig.write(0x14, &[3]);
    // No VERSION_1: the driver reads that its features are not taken, and nothing starts.
    rig.write(0x14, &[0xb]);
    assert_eq!(rig.read8(0x14), 3);
    rig.write(0x14, &[0xf]);
    assert_eq!(rig.read8(0x14), 3);
    rig.start();
    assert_eq!(rig.read8(0x14), 0xf);
    // What was agreed on stays.
    rig.write(0x08, &0u32.to_le_bytes());
    rig.write(0x0c, &u32::MAX.to_le_bytes());
    let mut bytes = [0; 4];
    BusDevice::read(&mut *rig.function.lock().unwrap(), 0x0c, &mut bytes);
    assert_eq!(bytes, [0; 4]);
}

#[test]
fn a_device_that_needs_a_reset_says_so_by_its_interrupt_status() {
    let Some(rig) = rig() else { return };
    rig.start();
    rig.write(0x14, &[0]);
    rig.write(0x14, &[3]);
    rig.write(0x08, &1u32.to_le_bytes());
    rig.write(0x0c, &1u32.to_le_bytes());
    rig.write(0x14, &[0xb]);
    rig.write(0x16, &0u16.to_le_bytes());
    // Rings that are in no memory.
    for place in [0x20, 0x28, 0x30] {
        rig.write(place, &(1u64 << 40).to_le_bytes());
    }
    rig.write(0x1c, &1u16.to_le_bytes());
    rig.write(0x14, &[0xf]);
    assert_eq!(rig.read8(0x14), 0xf | NEEDS_RESET);
    assert_eq!(rig.read8(0x1000), 2, "the configuration interrupt");
    rig.works();
}

#[derive(Debug, Clone)]
enum Access {
    Bar(u64, Vec<u8>),
    Config(usize, Vec<u8>),
    Ring(u64, u64),
    Kick,
}

fn access() -> impl Strategy<Value = Access> {
    let bytes = prop::sample::select(vec![1usize, 2, 4, 8])
        .prop_flat_map(|len| prop::collection::vec(any::<u8>(), len));
    prop_oneof![
        4 => (0u64..0x40, bytes.clone()).prop_map(|(at, bytes)| Access::Bar(at, bytes)),
        1 => (0u64..u64::from(BAR_SIZE) - 8, bytes.clone())
            .prop_map(|(at, bytes)| Access::Bar(at, bytes)),
        // Not the base address: moving the window away is the guest's own loss.
        2 => (0x14usize..248, bytes).prop_map(|(at, bytes)| Access::Config(at, bytes)),
        2 => (0u64..0x4000, any::<u64>()).prop_map(|(at, value)| Access::Ring(at * 8, value)),
        1 => Just(Access::Kick),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn registers_and_rings_of_rubbish_are_survived(
        accesses in prop::collection::vec(access(), 1..120),
    ) {
        let Some(rig) = rig() else { return Ok(()) };
        rig.start();
        for access in accesses {
            match access {
                Access::Bar(at, bytes) => {
                    rig.write(at, &bytes);
                    let mut back = [0; 8];
                    let function = &mut *rig.function.lock().unwrap();
                    BusDevice::read(function, at, &mut back[..bytes.len()]);
                }
                Access::Config(at, bytes) => {
                    let function = &mut *rig.function.lock().unwrap();
                    function.config_write(at, &bytes);
                    let mut back = [0; 8];
                    function.config_read(at, &mut back[..bytes.len()]);
                }
                Access::Ring(at, value) => rig.put(DESC + at, value),
                Access::Kick => rig.kick(),
            }
        }
        rig.works();
    }
}

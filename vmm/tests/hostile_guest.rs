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

use block_io::{Disk, Geometry, IoFuture, LocalFile, LocalOptions, RawDisk};
use proptest::prelude::*;
use tokio::sync::watch;
use vm_memory::{Bytes, GuestAddress};
use vmm::{
    devices::{
        pci::PciFunction,
        virtio::{
            blk::Blk,
            transport::{BAR_SIZE, Machine, VirtioPci},
        },
    },
    platform::{
        bus::{Bus, BusDevice},
        irq::IrqRouter,
        layout,
        lifecycle::{Control, EndReason},
        memory::{self, GuestRam},
    },
};

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
    let kvm = support::kvm()?;
    let vm = Arc::new(kvm.create_vm().unwrap());
    vm.set_identity_map_address(layout::IDENTITY_MAP).unwrap();
    vm.set_tss_address(layout::TSS).unwrap();
    let ram = memory::allocate(16 << 20).unwrap();
    memory::register(&vm, &ram, 0).unwrap();
    vm.create_irq_chip().unwrap();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let control = Arc::new(Control::default());
    control.run();
    let machine = Machine {
        router: Arc::new(IrqRouter::new(vm.clone())),
        vm,
        mmio: Arc::new(Bus::default()),
        mem: ram.clone(),
        control: control.clone(),
        runtime: runtime.handle().clone(),
    };
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
}

impl Deaf {
    fn over(disk: Arc<dyn Disk>) -> Arc<Self> {
        Arc::new(Self {
            disk,
            open: watch::Sender::new(false),
            asked: AtomicUsize::new(0),
            breaks: AtomicBool::new(false),
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

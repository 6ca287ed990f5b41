//! Workers polled by hand: what one turn of each takes, seen from the used ring.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
};

use block_io::{Disk, Geometry, IoFuture};
use host_api::DiskLimits;
use kvm_ioctls::Kvm;
use tokio::{runtime::Runtime, sync::watch};
use virtio_queue::QueueState;
use vm_memory::{Bytes, GuestAddress};

use super::{balloon::Balloon, blk::Blk, console::VirtioConsole, rng::Rng, *};
use crate::{
    devices::{console::Console, port::Port},
    platform::{irq::IrqRouter, memory},
};

const ENTRIES: u16 = 256;
const DESC: u64 = 0x10_0000;
const AVAIL: u64 = 0x11_0000;
const USED: u64 = 0x12_0000;
const HEADER: u64 = 0x20_0000;
const STATUS: u64 = 0x21_0000;
const DATA: u64 = 0x30_0000;
const NEXT: u16 = 1;
const WRITABLE: u16 = 2;

/// A disk whose requests are done at once.
#[derive(Debug, Default)]
struct QuickDisk {
    reads: AtomicUsize,
    writes: AtomicUsize,
    zeroed: AtomicUsize,
    zeroed_and_kept: AtomicUsize,
}

impl Disk for QuickDisk {
    fn geometry(&self) -> Geometry {
        Geometry {
            size: 1 << 40,
            logical_sector: 512,
            physical_sector: 4096,
            discard_granularity: 0,
        }
    }

    fn read_at<'a>(&'a self, _: u64, _: &'a mut [u8]) -> IoFuture<'a, ()> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        Box::pin(async { Ok(()) })
    }

    fn write_at<'a>(&'a self, _: u64, _: &'a [u8]) -> IoFuture<'a, ()> {
        self.writes.fetch_add(1, Ordering::Relaxed);
        Box::pin(async { Ok(()) })
    }

    fn flush(&self) -> IoFuture<'_, ()> {
        Box::pin(async { Ok(()) })
    }

    fn discard(&self, _: u64, _: u64) -> IoFuture<'_, ()> {
        Box::pin(async { Ok(()) })
    }

    fn write_zeroes(&self, _: u64, _: u64) -> IoFuture<'_, ()> {
        self.zeroed.fetch_add(1, Ordering::Relaxed);
        Box::pin(async { Ok(()) })
    }

    fn write_zeroes_kept(&self, _: u64, _: u64) -> IoFuture<'_, ()> {
        self.zeroed_and_kept.fetch_add(1, Ordering::Relaxed);
        Box::pin(async { Ok(()) })
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn close(&self) -> IoFuture<'_, ()> {
        Box::pin(async { Ok(()) })
    }
}

/// A worker whose ring is full of the same request.
struct Rig {
    worker: Worker,
    drain: watch::Sender<bool>,
    ram: Arc<GuestRam>,
    runtime: Runtime,
}

/// `pieces` are address, length and flags of the request's descriptors. `None` without KVM.
fn rig(backend: Arc<dyn Backend>, index: u16, pieces: &[(u64, u32, u16)]) -> Option<Rig> {
    let vm = match Kvm::new() {
        Ok(kvm) => Arc::new(kvm.create_vm().unwrap()),
        Err(error) => {
            test_support::skip(
                test_support::Need::Kvm.because(format_args!("/dev/kvm cannot be used: {error}")),
            );
            return None;
        }
    };
    vm.create_irq_chip().unwrap();
    let msix = Arc::new(Msix::new(1, Arc::new(IrqRouter::new(vm))).unwrap());
    let ram = memory::allocate(16 << 20).unwrap();
    for (index, (address, len, flags)) in pieces.iter().enumerate() {
        let at = DESC + 16 * index as u64;
        let next = if index + 1 < pieces.len() { NEXT } else { 0 };
        ram.write_obj(*address, GuestAddress(at)).unwrap();
        ram.write_obj(*len, GuestAddress(at + 8)).unwrap();
        ram.write_obj(flags | next, GuestAddress(at + 12)).unwrap();
        ram.write_obj(index as u16 + 1, GuestAddress(at + 14)).unwrap();
    }
    ram.write_obj(ENTRIES, GuestAddress(AVAIL + 2)).unwrap();
    let queue = Queue::try_from(QueueState {
        max_size: ENTRIES,
        next_avail: 0,
        next_used: 0,
        event_idx_enabled: false,
        size: ENTRIES,
        ready: true,
        desc_table: DESC,
        avail_ring: AVAIL,
        used_ring: USED,
    })
    .unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let kick = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).unwrap();
    let entered = runtime.enter();
    let io = QueueIo::new(index, queue, ram.clone(), Kick::new(kick), 0, msix, 0);
    drop(entered);
    let drain = watch::Sender::new(false);
    let worker = backend.serve(io, drain.subscribe());
    Some(Rig { worker, drain, ram, runtime })
}

impl Rig {
    /// Polls the worker once; whether it has ended.
    fn poll(&mut self) -> bool {
        let _entered = self.runtime.enter();
        let mut context = Context::from_waker(Waker::noop());
        matches!(self.worker.as_mut().poll(&mut context), Poll::Ready(_))
    }

    /// Runs the worker, woken by whatever wakes it, until the guest has so many requests back.
    fn run_until_used(&mut self, count: u32) {
        self.run_until_used_at_least(count);
        assert_eq!(self.used(), count);
    }

    /// As [`Rig::run_until_used`], where more may come back at once.
    fn run_until_used_at_least(&mut self, count: u32) {
        let Self { worker, runtime, ram, .. } = self;
        runtime.block_on(poll_fn(|context| {
            assert!(worker.as_mut().poll(context).is_pending());
            let used: u16 = ram.read_obj(GuestAddress(USED + 2)).unwrap();
            if u32::from(used) >= count { Poll::Ready(()) } else { Poll::Pending }
        }));
    }

    fn used(&self) -> u32 {
        u32::from(self.ram.read_obj::<u16>(GuestAddress(USED + 2)).unwrap())
    }

    /// One turn is done, and a drain ends the worker though the guest has asked for more.
    fn takes_turns(mut self, in_flight: u32) {
        assert!(!self.poll());
        assert_eq!(self.used(), Turn::MOST);
        assert!(!self.poll());
        assert_eq!(self.used(), 2 * Turn::MOST);
        self.drain.send_replace(true);
        // What is finished may be a turn of its own.
        assert!(self.poll() || self.poll());
        assert_eq!(self.used(), 2 * Turn::MOST + in_flight);
    }
}

#[test]
fn a_guest_that_wants_random_numbers_without_end_takes_turns() {
    let Some(rig) = rig(Arc::new(Rng), 0, &[(DATA, 64, WRITABLE)]) else { return };
    rig.takes_turns(0);
}

#[test]
fn a_guest_that_prints_without_end_takes_turns() {
    let device = || Arc::new(VirtioConsole::new(Console::default(), Port::default()));
    let Some(small) = rig(device(), 1, &[(DATA, 64, 0)]) else { return };
    small.takes_turns(0);
    let Some(mut large) = rig(device(), 1, &[(DATA, 64 << 10, 0)]) else { return };
    assert!(!large.poll());
    assert_eq!(u64::from(large.used()), Turn::MOST_BYTES / (64 << 10));
}

#[test]
fn a_guest_that_is_typed_to_without_end_takes_turns() {
    let console = Console::default();
    console.type_in(&[b'x'; 1000]);
    let device = Arc::new(VirtioConsole::new(console, Port::default()));
    let Some(rig) = rig(device, 0, &[(DATA, 1, WRITABLE)]) else { return };
    rig.takes_turns(0);
}

fn blk() -> (Arc<Blk>, Arc<QuickDisk>) {
    let disk = Arc::new(QuickDisk::default());
    let blk = Arc::new(Blk::new(disk.geometry(), false, 1, "x"));
    blk.attach(disk.clone()).unwrap();
    (blk, disk)
}

#[test]
fn a_guest_that_reads_without_end_takes_turns() {
    let request = [(HEADER, 16, 0), (DATA, 512, WRITABLE), (STATUS, 1, WRITABLE)];
    let Some(rig) = rig(blk().0, 0, &request) else { return };
    // What a disk has begun it finishes.
    rig.takes_turns(Turn::MOST);
}

#[test]
fn a_guest_that_gives_memory_away_without_end_takes_turns() {
    for (queue, flags) in [(0, 0), (1, 0), (2, WRITABLE)] {
        let balloon = Arc::new(Balloon::new(16 << 20));
        let Some(rig) = rig(balloon, queue, &[(DATA, 64, flags)]) else { return };
        rig.takes_turns(0);
    }
}

#[test]
fn what_a_limit_holds_back_stays_with_the_guest() {
    // Eight seconds for each of these.
    let slow = DiskLimits { max_iops: Some(1), burst_ms: Some(0), ..DiskLimits::default() };
    let request = [(HEADER, 16, 0), (DATA, 64 << 10, WRITABLE), (STATUS, 1, WRITABLE)];
    for drains in [true, false] {
        let (blk, disk) = blk();
        blk.set_limits(slow);
        let Some(mut rig) = rig(blk.clone(), 0, &request) else { return };
        assert!(!rig.poll() && !rig.poll());
        assert_eq!((rig.used(), disk.reads.load(Ordering::Relaxed), blk.waited()), (1, 1, 1));
        if drains {
            // Nothing is under way, so a pause waits for nothing.
            rig.drain.send_replace(true);
            assert!(rig.poll());
        } else {
            blk.set_limits(DiskLimits::default());
            rig.run_until_used_at_least(Turn::MOST);
        }
        assert_eq!(rig.used() == 1, drains);
    }
}

#[test]
fn a_long_request_gives_way_to_others() {
    let (blk, disk) = blk();
    let request = [(HEADER, 16, 0), (DATA, 8 << 20, WRITABLE), (STATUS, 1, WRITABLE)];
    let Some(mut rig) = rig(blk, 0, &request) else { return };
    assert!(!rig.poll());
    let reads = disk.reads.load(Ordering::Relaxed);
    assert!(reads <= 2, "{reads} pieces in one go");
}

/// Polls a request of `count` pieces of `len` bytes to its end; its status, and how often the disk
/// was asked for anything.
fn request(kind: u32, count: usize, len: u32, flags: u16) -> Option<(u8, usize)> {
    let (blk, disk) = blk();
    let mut pieces = vec![(HEADER, 16, 0)];
    pieces.extend(vec![(DATA, len, flags); count]);
    pieces.push((STATUS, 1, WRITABLE));
    let mut rig = rig(blk, 0, &pieces)?;
    rig.ram.write_obj(kind, GuestAddress(HEADER)).unwrap();
    rig.ram.write_obj(0xffu8, GuestAddress(STATUS)).unwrap();
    rig.ram.write_obj(1u16, GuestAddress(AVAIL + 2)).unwrap();
    while rig.used() == 0 {
        rig.poll();
    }
    let status = rig.ram.read_obj(GuestAddress(STATUS)).unwrap();
    let asked = disk.reads.load(Ordering::Relaxed) + disk.writes.load(Ordering::Relaxed);
    Some((status, asked))
}

#[test]
fn a_request_is_as_long_as_a_driver_is_told_at_most() {
    for (kind, flags) in [(0, WRITABLE), (1, 0)] {
        let Some((status, asked)) = request(kind, 254, 1 << 20, flags) else { return };
        assert_eq!((status, asked), (0, 254));
        // One sector more, by pieces that are all the same memory.
        let Some((status, asked)) = request(kind, 254, (1 << 20) + 512, flags) else { return };
        assert_eq!((status, asked), (1, 0));
    }
}

#[test]
fn a_driver_is_told_how_long_a_segment_may_be() {
    let (blk, _) = blk();
    assert_ne!(blk.features() & 1 << 1, 0);
    assert_eq!(blk.config()[8..16], [0, 0, 16, 0, 254, 0, 0, 0]);
}

/// Space is given back by a write of zeros only where the driver lets it (virtio 1.2 §5.2.6.2).
#[test]
fn zeros_keep_their_space_unless_it_may_go() {
    const WRITE_ZEROES: u32 = 13;
    for (unmap, expected) in [(0u32, (0, 1)), (1, (1, 0))] {
        let (blk, disk) = blk();
        let pieces = [(HEADER, 16, 0), (DATA, 16, 0), (STATUS, 1, WRITABLE)];
        let Some(mut rig) = rig(blk, 0, &pieces) else { return };
        rig.ram.write_obj(WRITE_ZEROES, GuestAddress(HEADER)).unwrap();
        rig.ram.write_obj([0u32, 0, 8, unmap], GuestAddress(DATA)).unwrap();
        rig.ram.write_obj(1u16, GuestAddress(AVAIL + 2)).unwrap();
        while rig.used() == 0 {
            rig.poll();
        }
        assert_eq!(rig.ram.read_obj::<u8>(GuestAddress(STATUS)).unwrap(), 0);
        let asked =
            [&disk.zeroed, &disk.zeroed_and_kept].map(|count| count.load(Ordering::Relaxed));
        assert_eq!((asked[0], asked[1]), expected);
    }
}

/// What a disk frees best is a block of an image; what it frees at all is less, and is what a guest's
/// discards are to be made of.
#[test]
fn a_guest_gives_back_what_is_smaller_than_a_block() {
    let geometry = Geometry {
        size: 1 << 30,
        logical_sector: 512,
        physical_sector: 4096,
        discard_granularity: 32 << 20,
    };
    let config = Blk::new(geometry, false, 1, "x").config();
    assert_eq!(config[44..48], 8u32.to_le_bytes());
}

fn with_ports() -> (Arc<VirtioConsole>, Port) {
    let port = Port::default();
    (Arc::new(VirtioConsole::new(Console::default(), port.clone())), port)
}

/// A control message of the driver (virtio 1.2 §5.3.6.2).
fn says(rig: &Rig, id: u32, event: u16, value: u16) {
    rig.ram.write_obj(id, GuestAddress(DATA)).unwrap();
    rig.ram.write_obj(event, GuestAddress(DATA + 4)).unwrap();
    rig.ram.write_obj(value, GuestAddress(DATA + 6)).unwrap();
}

#[test]
fn a_driver_that_asks_without_end_takes_turns_and_is_told_little() {
    let (device, _) = with_ports();
    let Some(asks) = rig(device.clone(), 3, &[(DATA, 8, 0)]) else { return };
    says(&asks, 0, 0, 1);
    asks.takes_turns(0);
    let Some(mut told) = rig(device, 2, &[(DATA, 64, WRITABLE)]) else { return };
    assert!(!told.poll());
    assert_eq!(told.used(), 2);
    let last: [u8; 8] = told.ram.read_obj(GuestAddress(DATA)).unwrap();
    assert_eq!(last, [1, 0, 0, 0, 1, 0, 1, 0]);
}

#[test]
fn a_port_is_open_from_when_the_driver_says_so_until_the_device_is_reset() {
    let (device, port) = with_ports();
    let Some(mut opens) = rig(device.clone(), 3, &[(DATA, 8, 0)]) else { return };
    says(&opens, 1, 6, 1);
    assert!(!port.is_open());
    opens.poll();
    assert!(port.is_open());
    let saved = device.save().unwrap();
    let (other, there) = with_ports();
    other.restore(&saved).unwrap();
    assert!(there.is_open());
    device.reset();
    assert!(!port.is_open());
}

#[test]
fn a_message_that_a_driver_has_no_room_for_is_not_torn() {
    let (device, _) = with_ports();
    let Some(mut asks) = rig(device.clone(), 3, &[(DATA, 8, 0)]) else { return };
    says(&asks, 0, 0, 1);
    asks.poll();
    let Some(mut told) = rig(device, 2, &[(DATA, 7, WRITABLE)]) else { return };
    told.ram.write_obj(0x55u8, GuestAddress(DATA)).unwrap();
    told.poll();
    assert_eq!(told.used(), 2);
    assert_eq!(told.ram.read_obj::<u8>(GuestAddress(DATA)).unwrap(), 0x55);
}

#[test]
fn a_guest_that_sends_without_end_waits_for_its_host() {
    let (device, port) = with_ports();
    port.set_open(true);
    let Some(mut sends) = rig(device, 5, &[(DATA, 64 << 10, 0)]) else { return };
    for taken in 1..=3 {
        sends.run_until_used(taken);
        assert!(!port.has_room());
        assert_eq!(port.receive(std::time::Instant::now()).unwrap().len(), 64 << 10);
    }
}

#[test]
fn a_guest_gets_what_is_sent_to_it_once_it_listens() {
    let (device, port) = with_ports();
    port.set_open(true);
    port.send(b"question").unwrap();
    let Some(mut takes) = rig(device, 4, &[(DATA, 5, WRITABLE)]) else { return };
    takes.poll();
    assert_eq!(takes.used(), 2);
    let last: [u8; 3] = takes.ram.read_obj(GuestAddress(DATA)).unwrap();
    assert_eq!(&last, b"ion");
}

//! The balloon's rings as a driver works them, and as one that lies does.

mod support;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use vm_memory::{Bytes, GuestAddress};
use vmm::{
    devices::virtio::{
        balloon::Balloon,
        transport::{Machine, VirtioPci},
    },
    platform::{
        bus::BusDevice,
        layout,
        memory::{GuestRam, PAGE, resident},
    },
};

const PATIENCE: Duration = Duration::from_secs(60);
const MIB: u64 = 1 << 20;
/// The guest's memory, in pages, and where the test's pages in it begin: what is below are rings.
const PAGES: u64 = 16 * MIB / PAGE;
const FIRST: u64 = 8 * MIB / PAGE;
const WRITABLE: u16 = 2;
const LISTS: u64 = 0x20_0000;

struct Rig {
    function: Arc<Mutex<VirtioPci>>,
    balloon: Arc<Balloon>,
    ram: Arc<GuestRam>,
    /// Requests that each queue was given.
    given: [u16; 4],
    _runtime: tokio::runtime::Runtime,
    machine: Machine,
}

fn ring(queue: u64, part: u64) -> u64 {
    0x10_0000 + queue * 0x1_0000 + part * 0x4000
}

fn rig() -> Option<Rig> {
    let (machine, runtime) = support::machine()?;
    let balloon = Arc::new(Balloon::new(16 * MIB));
    let function = VirtioPci::new(&machine, balloon.clone(), layout::PCI_MMIO).unwrap();
    let ram = machine.mem.clone();
    // All of it takes memory of the host's from the beginning, rings too.
    ram.write_slice(&vec![0; (16 * MIB) as usize], GuestAddress(0)).unwrap();
    for page in FIRST..PAGES {
        ram.write_obj(page, GuestAddress(page * PAGE)).unwrap();
    }
    Some(Rig { function, balloon, ram, given: [0; 4], _runtime: runtime, machine })
}

impl Rig {
    fn write(&self, offset: u64, bytes: &[u8]) {
        BusDevice::write(&mut *self.function.lock().unwrap(), offset, bytes);
    }

    fn read(&self, offset: u64) -> u32 {
        let mut bytes = [0; 4];
        BusDevice::read(&mut *self.function.lock().unwrap(), offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    /// A driver that takes these features has so many queues.
    fn start(&mut self, features: u32, queues: u64) {
        self.write(0x14, &[0]);
        self.write(0x14, &[3]);
        for (half, bits) in [(0u32, features), (1, 1)] {
            self.write(0x08, &half.to_le_bytes());
            self.write(0x0c, &bits.to_le_bytes());
        }
        self.write(0x14, &[0xb]);
        for queue in 0..queues {
            self.write(0x16, &(queue as u16).to_le_bytes());
            for part in 0..3 {
                self.write(0x20 + 8 * part, &ring(queue, part).to_le_bytes());
            }
            self.write(0x1c, &1u16.to_le_bytes());
        }
        self.write(0x14, &[0xf]);
        assert_eq!(self.read(0x14) & 0xff, 0xf);
    }

    /// Gives a queue a request of one piece.
    fn give(&mut self, queue: u64, address: u64, len: u32, flags: u16) {
        let put = |at: u64, bytes: &[u8]| self.ram.write_slice(bytes, GuestAddress(at)).unwrap();
        let number = self.given[queue as usize];
        let head = number % 128;
        let at = ring(queue, 0) + 16 * u64::from(head);
        put(at, &address.to_le_bytes());
        put(at + 8, &len.to_le_bytes());
        put(at + 12, &flags.to_le_bytes());
        put(ring(queue, 1) + 4 + 2 * u64::from(head), &head.to_le_bytes());
        put(ring(queue, 1) + 2, &(number + 1).to_le_bytes());
        self.given[queue as usize] += 1;
        self.write(0x3000 + 4 * queue, &(queue as u16).to_le_bytes());
    }

    fn answered(&self, queue: u64) -> u16 {
        self.ram.read_obj(GuestAddress(ring(queue, 2) + 2)).unwrap()
    }

    /// Waits until all requests of a queue are answered.
    fn settle(&self, queue: u64) {
        let since = Instant::now();
        while self.answered(queue) != self.given[queue as usize] {
            assert!(since.elapsed() < PATIENCE, "queue {queue} is not answered");
            std::thread::yield_now();
        }
    }

    fn inflate(&mut self, pages: &[u32]) {
        let list: Vec<u8> = pages.iter().flat_map(|page| page.to_le_bytes()).collect();
        self.ram.write_slice(&list, GuestAddress(LISTS)).unwrap();
        self.give(0, LISTS, list.len() as u32, 0);
        self.settle(0);
    }

    /// The test's pages that do not have their content any more.
    fn gone(&self) -> Vec<u64> {
        let content = |page: u64| self.ram.read_obj::<u64>(GuestAddress(page * PAGE)).unwrap();
        (FIRST..PAGES).filter(|page| content(*page) != *page).collect()
    }
}

#[test]
fn pages_in_the_balloon_are_the_hosts_and_no_others() {
    let Some(mut rig) = rig() else { return };
    rig.start(1 << 2, 2);
    assert!(rig.balloon.set_target(MIB) && !rig.balloon.set_target(MIB));
    assert_eq!(rig.read(0x2000), 256);
    let before = resident(&rig.ram);
    let wanted: Vec<u32> = (3000..3256).rev().collect();
    rig.inflate(&wanted);
    assert_eq!(resident(&rig.ram), before - MIB);
    rig.write(0x2004, &256u32.to_le_bytes());
    let standing = rig.balloon.standing(Duration::ZERO);
    assert_eq!((standing.target, standing.actual, standing.inflated), (MIB, MIB, MIB));
    assert_eq!(rig.gone(), (3000..3256).collect::<Vec<u64>>());
    // They are there when the guest takes them again.
    rig.give(1, LISTS, 1024, 0);
    rig.settle(1);
    rig.ram.write_obj(3000u64, GuestAddress(3000 * PAGE)).unwrap();
    assert_eq!(rig.gone().len(), 255);
    // Pages that are in no memory, and a list that is not.
    rig.inflate(&[u32::MAX, 4096, 0x000c_0000, 0x000f_ee00]);
    rig.give(0, 1 << 40, 4096, 0);
    rig.give(0, 16 * MIB - PAGE, u32::MAX, 0);
    rig.settle(0);
    assert_eq!((rig.gone().len(), rig.balloon.standing(Duration::ZERO).inflated), (255, MIB));
    // What a driver says of its balloon is no more than there is.
    rig.write(0x2004, &u32::MAX.to_le_bytes());
    rig.write(0x2002, &[0xff; 8]);
    rig.write(0x2ff8, &[0xff; 8]);
    assert_eq!(rig.balloon.standing(Duration::ZERO).actual, 16 * MIB);
    assert_eq!(rig.read(0x2000), 256);
    rig.balloon.set_target(u64::MAX);
    assert_eq!(u64::from(rig.read(0x2000)), PAGES);
}

/// A driver without statistics has the queue of free memory in their place.
#[test]
fn free_memory_that_is_told_of_is_the_hosts() {
    for (features, queue) in [(1 << 5, 2), (1 << 5 | 1 << 1, 3)] {
        let Some(mut rig) = rig() else { return };
        rig.start(features, queue + 1);
        let before = resident(&rig.ram);
        rig.give(queue, 3000 * PAGE, (2 * MIB) as u32, WRITABLE);
        rig.settle(queue);
        assert_eq!(resident(&rig.ram), before - 2 * MIB);
        assert_eq!(rig.balloon.standing(Duration::ZERO).reported, 2 * MIB);
        // Of what is not all memory the rest is; parts of pages are not.
        rig.give(queue, 15 * MIB, u32::MAX, WRITABLE);
        rig.give(queue, 4000 * PAGE - 1, PAGE as u32, WRITABLE);
        rig.give(queue, u64::MAX - 4096, 8192, WRITABLE);
        // Only what the device may write to is given away.
        rig.give(queue, 2500 * PAGE, PAGE as u32, 0);
        rig.settle(queue);
        let gone: Vec<u64> = (3000..3512).chain(15 * MIB / PAGE..PAGES).collect();
        assert_eq!(rig.gone(), gone);
    }
}

#[test]
fn statistics_are_as_new_as_they_are_asked_for() {
    let Some(mut rig) = rig() else { return };
    rig.start(1 << 1, 3);
    let tell = |rig: &mut Rig, free: u64| {
        let entry = [&4u16.to_le_bytes()[..], &free.to_le_bytes()].concat();
        rig.ram.write_slice(&entry, GuestAddress(LISTS)).unwrap();
        rig.give(2, LISTS, entry.len() as u32, 0);
    };
    let free = |balloon: &Balloon| balloon.standing(PATIENCE).statistics.free.unwrap_or(0);
    // Who answers nothing is not waited for.
    let first = |balloon: &Balloon| {
        let since = Instant::now();
        loop {
            match balloon.standing(Duration::ZERO).statistics.free.unwrap_or(0) {
                0 => assert!(since.elapsed() < PATIENCE, "nothing is told"),
                told => return told,
            }
        }
    };
    let (balloon, stop) = (rig.balloon.clone(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        // A driver tells something new whenever it is asked.
        let driver = scope.spawn(|| {
            let mut told = 0;
            while !stop.load(Ordering::Acquire) {
                if rig.answered(2) == rig.given[2] {
                    told += 1;
                    tell(&mut rig, told);
                }
                std::thread::yield_now();
            }
        });
        let mut last = first(&balloon);
        for _ in 0..10 {
            let now = free(&balloon);
            assert!(now > last, "{now} after {last}");
            last = now;
        }
        stop.store(true, Ordering::Release);
        driver.join().unwrap();
    });
    if rig.answered(2) == rig.given[2] {
        tell(&mut rig, 1000);
    }
    // The request that is kept is found again on another machine.
    let mut function = rig.function.lock().unwrap();
    function.begin_pause();
    assert!(function.finish_pause(Instant::now() + PATIENCE));
    let saved = serde_json::to_string(&function.save()).unwrap();
    drop(function);
    let there = Arc::new(Balloon::new(16 * MIB));
    let function = VirtioPci::new(&rig.machine, there.clone(), layout::PCI_MMIO).unwrap();
    let mut function = function.lock().unwrap();
    function.restore(&serde_json::from_str(&saved).unwrap()).unwrap();
    function.resume();
    function.nudge();
    assert!(first(&there) > 0);
    function.begin_pause();
    assert!(function.finish_pause(Instant::now() + PATIENCE));
}

//! A card whose guest is this test and whose network is a socket on the tap's interface, all in a network
//! namespace of the test's own.

use std::{
    os::fd::{AsRawFd, OwnedFd},
    sync::Arc,
    time::{Duration, Instant},
};

use proptest::prelude::*;
use rustix::thread::{UnshareFlags, unshare_unsafe};
use tokio::{runtime::Runtime, sync::watch, task::JoinHandle};
use virtio_queue::{Queue, QueueState, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use vmm::{
    devices::{
        pci::msix::Msix,
        virtio::{
            Backend, Kick, QueueIo,
            net::{HEADER, Interface, Limits, Mac, Net, open_tap},
        },
    },
    platform::{
        irq::IrqRouter,
        memory::{self, GuestRam},
    },
};

/// `VIRTIO_NET_F_MRG_RXBUF`
const F_MERGE_BUFFERS: u64 = 1 << 15;
const MAC: Mac = [2, 0, 0, 0, 0, 7];
const ENTRIES: u16 = 256;
/// Where a queue's rings are, and its buffers.
const RINGS: u64 = 0x10_0000;
const BUFFERS: u64 = 0x40_0000;
const WRITABLE: u16 = 2;
const NEXT: u16 = 1;

/// One queue of the card, and the guest's side of it.
struct Side {
    worker: JoinHandle<QueueIo>,
    kick: EventFd,
    ram: Arc<GuestRam>,
    at: u64,
    available: u16,
    seen: u16,
}

struct Rig {
    runtime: Runtime,
    net: Arc<Net>,
    network: OwnedFd,
    drain: watch::Sender<bool>,
    ram: Arc<GuestRam>,
    msix: Arc<Msix>,
}

#[expect(unsafe_code, reason = "a packet socket's address")]
fn packet_socket(interface: &Interface) -> OwnedFd {
    use std::os::fd::FromRawFd;
    const ALL: u16 = 3;
    let name = std::ffi::CString::new(interface.name.as_str()).unwrap();
    // SAFETY: plain system calls; the address is of the type that packet sockets have.
    unsafe {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
        let socket = libc::socket(libc::AF_PACKET, kind, i32::from(ALL.to_be()));
        assert!(socket >= 0, "{}", std::io::Error::last_os_error());
        let socket = OwnedFd::from_raw_fd(socket);
        let mut address: libc::sockaddr_ll = std::mem::zeroed();
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = ALL.to_be();
        address.sll_ifindex = libc::if_nametoindex(name.as_ptr()).cast_signed();
        let size = size_of_val(&address) as u32;
        let bound = libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size);
        assert_eq!(bound, 0, "{}", std::io::Error::last_os_error());
        socket
    }
}

/// A card on a tap in a namespace that this thread alone is in; `None` where that cannot be.
#[expect(unsafe_code, reason = "unsharing a namespace")]
fn rig(limits: Limits) -> Option<Rig> {
    let kvm = test_support::kvm()?;
    // SAFETY: only the network namespace, which no other thread of the test is in, is left.
    if let Err(error) = unsafe { unshare_unsafe(UnshareFlags::NEWNET) } {
        let why = format_args!("a network namespace of its own is needed: {error}");
        test_support::skip(test_support::Need::Root.because(why));
        return None;
    }
    let (tap, interface) = open_tap("bh%d").unwrap();
    assert_eq!(interface.name, "bh0");
    interface.set_up().unwrap();
    let network = packet_socket(&interface);
    let vm = Arc::new(kvm.create_vm().unwrap());
    vm.create_irq_chip().unwrap();
    let msix = Arc::new(Msix::new(4, Arc::new(IrqRouter::new(vm))).unwrap());
    let ram = memory::allocate(64 << 20).unwrap();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let net = Arc::new(Net::new(tap, MAC, limits).unwrap());
    Some(Rig { runtime, net, network, drain: watch::Sender::new(false), ram, msix })
}

impl Rig {
    fn serve(&self, index: u16, features: u64) -> Side {
        let at = RINGS + 0x1_0000 * u64::from(index);
        let queue = Queue::try_from(QueueState {
            max_size: ENTRIES,
            next_avail: 0,
            next_used: 0,
            event_idx_enabled: false,
            size: ENTRIES,
            ready: true,
            desc_table: at,
            avail_ring: at + 0x4000,
            used_ring: at + 0x8000,
        })
        .unwrap();
        let kick = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).unwrap();
        let entered = self.runtime.enter();
        let worker_kick = Kick::new(kick.try_clone().unwrap());
        let (mem, msix) = (self.ram.clone(), self.msix.clone());
        let io = QueueIo::new(index, queue, mem, worker_kick, features, msix, 0);
        drop(entered);
        let net: Arc<dyn Backend> = self.net.clone();
        let worker = self.runtime.spawn(net.serve(io, self.drain.subscribe()));
        Side { worker, kick, ram: self.ram.clone(), at, available: 0, seen: 0 }
    }

    /// Sends a frame from the network.
    fn send(&self, frame: &[u8]) {
        assert_eq!(rustix::io::write(&self.network, frame).unwrap(), frame.len());
    }

    /// The next frame that came from the card to the network.
    fn hear(&self, wanted: impl Fn(&[u8]) -> bool) -> Vec<u8> {
        let mut bytes = vec![0; 100_000];
        loop {
            let mut poll =
                [rustix::event::PollFd::new(&self.network, rustix::event::PollFlags::IN)];
            let limit = rustix::event::Timespec { tv_sec: 20, tv_nsec: 0 };
            assert_eq!(rustix::event::poll(&mut poll, Some(&limit)).unwrap(), 1, "no frame");
            let got = rustix::io::read(&self.network, &mut bytes).unwrap();
            // The kernel's own (of IPv6) are there, too.
            if wanted(&bytes[..got]) {
                return bytes[..got].to_vec();
            }
        }
    }

    /// Ends the workers; the positions in their available rings.
    fn drain(&self, sides: Vec<Side>) -> Vec<u16> {
        self.drain.send_replace(true);
        let ended = |side: Side| self.runtime.block_on(side.worker).unwrap().queue.next_avail();
        sides.into_iter().map(ended).collect()
    }
}

impl Side {
    fn buffer(&self, index: u16) -> u64 {
        BUFFERS + (self.at - RINGS) * 0x100 + u64::from(index) * 0x1_1000
    }

    /// Makes a buffer of pieces of these lengths available.
    fn offer(&mut self, pieces: &[u32], flags: u16) {
        self.offer_each(&pieces.iter().map(|len| (*len, flags)).collect::<Vec<_>>());
    }

    fn offer_each(&mut self, pieces: &[(u32, u16)]) {
        let first = self.available * 4 % ENTRIES;
        let mut address = self.buffer(self.available);
        for (index, (len, flags)) in pieces.iter().enumerate() {
            let at = self.at + 16 * (u64::from(first) + index as u64);
            let next = if index + 1 < pieces.len() { NEXT } else { 0 };
            self.ram.write_obj(address, GuestAddress(at)).unwrap();
            self.ram.write_obj(*len, GuestAddress(at + 8)).unwrap();
            self.ram.write_obj(flags | next, GuestAddress(at + 12)).unwrap();
            self.ram.write_obj(first + index as u16 + 1, GuestAddress(at + 14)).unwrap();
            address += u64::from(*len);
        }
        let ring = self.at + 0x4000;
        let slot = ring + 4 + 2 * u64::from(self.available % ENTRIES);
        self.ram.write_obj(first, GuestAddress(slot)).unwrap();
        self.available += 1;
        self.ram.write_obj(self.available, GuestAddress(ring + 2)).unwrap();
        self.kick.write(1).unwrap();
    }

    /// Sends a frame with a header that leaves nothing to others.
    fn send(&mut self, frame: &[u8]) {
        let mut bytes = vec![0; HEADER];
        bytes.extend(frame);
        self.ram.write_slice(&bytes, GuestAddress(self.buffer(self.available))).unwrap();
        self.offer(&[HEADER as u32, frame.len() as u32], 0);
    }

    /// Waits for the next buffer that is given back; its bytes.
    fn used(&mut self) -> Vec<u8> {
        let ring = self.at + 0x8000;
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.ram.read_obj::<u16>(GuestAddress(ring + 2)).unwrap() == self.seen {
            assert!(Instant::now() < deadline, "no buffer came back");
            std::thread::yield_now();
        }
        let slot = ring + 4 + 8 * u64::from(self.seen % ENTRIES);
        let len: u32 = self.ram.read_obj(GuestAddress(slot + 4)).unwrap();
        let mut bytes = vec![0; len as usize];
        self.ram.read_slice(&mut bytes, GuestAddress(self.buffer(self.seen))).unwrap();
        self.seen += 1;
        bytes
    }
}

/// A frame of an Ethernet type that is for experiments (IEEE 802, 88B5).
fn frame(number: u8, len: usize) -> Vec<u8> {
    let mut frame = [0xff; 6].to_vec();
    frame.extend([2, 0, 0, 0, 0, 9]);
    frame.extend([0x88, 0xb5]);
    frame.resize(len, number);
    frame
}

fn is_ours(frame: &[u8]) -> bool {
    frame[12..14] == [0x88, 0xb5]
}

fn receive_ours(side: &mut Side) -> Vec<u8> {
    loop {
        let bytes = side.used();
        if bytes.len() > HEADER && is_ours(&bytes[HEADER..]) {
            return bytes;
        }
        // One of the kernel's, whose buffer is offered again as another.
        side.offer(&[2048], WRITABLE);
    }
}

#[test]
fn frames_go_both_ways_as_they_are() {
    let Some(rig) = rig(Limits::default()) else { return };
    let (mut receive, mut send) = (rig.serve(0, F_MERGE_BUFFERS), rig.serve(1, 0));
    for _ in 0..8 {
        receive.offer(&[2048], WRITABLE);
    }
    for number in 0..4 {
        let from_guest = frame(number, 60 + 100 * usize::from(number));
        send.send(&from_guest);
        assert_eq!(rig.hear(is_ours), from_guest);
        send.used();
        let to_guest = frame(100 + number, 1500);
        rig.send(&to_guest);
        let got = receive_ours(&mut receive);
        assert!(got[HEADER..] == to_guest);
        assert_eq!(got[HEADER - 2..HEADER], [1, 0], "buffers that it is in");
    }
    rig.drain(vec![receive, send]);
}

/// A frame is in as many buffers as it takes; one that waits for buffers when the machine is paused is
/// lost, and what was taken for it is the guest's again.
#[test]
fn frames_are_spread_over_buffers_and_wait_for_them() {
    let Some(rig) = rig(Limits::default()) else { return };
    let mut receive = rig.serve(0, F_MERGE_BUFFERS);
    let sent = frame(7, 1200);
    rig.send(&sent);
    for _ in 0..40 {
        receive.offer(&[100, 28], WRITABLE);
    }
    let mut got = Vec::new();
    // Those of the kernel come before, or between.
    while !(got.len() > HEADER && is_ours(&got[HEADER..])) {
        got = receive.used();
    }
    let buffers = u16::from_le_bytes([got[HEADER - 2], got[HEADER - 1]]);
    assert_eq!(buffers, (1200u16 + HEADER as u16).div_ceil(128));
    for _ in 1..buffers {
        got.extend(receive.used());
    }
    assert!(got[HEADER..] == sent);
    rig.drain(vec![receive]);
}

#[test]
fn a_machine_that_is_paused_takes_no_buffer_with_it() {
    let Some(rig) = rig(Limits::default()) else { return };
    let mut receive = rig.serve(0, F_MERGE_BUFFERS);
    rig.send(&frame(7, 1200));
    // Too few for any frame: those that were taken are given back.
    receive.offer(&[20], WRITABLE);
    receive.offer(&[20], WRITABLE);
    let positions = rig.drain(vec![receive]);
    assert_eq!(positions, [0]);
}

/// What is no frame, and what has a header of rubbish, is lost and harms nothing.
#[test]
fn rubbish_from_a_guest_is_lost() {
    let Some(rig) = rig(Limits::default()) else { return };
    let mut send = rig.serve(1, 0);
    for pieces in [&[0u32][..], &[1], &[HEADER as u32], &[12, 4], &[u32::MAX, 12], &[100_000]] {
        send.offer(pieces, 0);
        send.used();
    }
    let mut bytes = [0xff; HEADER].to_vec();
    bytes.extend(frame(1, 100));
    rig.ram.write_slice(&bytes, GuestAddress(send.buffer(send.available))).unwrap();
    send.offer(&[bytes.len() as u32], 0);
    send.used();
    let good = frame(2, 100);
    send.send(&good);
    assert_eq!(rig.hear(is_ours), good);
    rig.drain(vec![send]);
}

#[test]
fn a_card_that_has_moved_says_where_it_is_until_its_guest_has() {
    let Some(rig) = rig(Limits::default()) else { return };
    let mut control = rig.serve(2, 0);
    let status = |rig: &Rig| rig.net.config()[6];
    assert_eq!((status(&rig), &rig.net.config()[..6]), (1, &MAC[..]));
    rig.net.announce();
    let frame = rig.hear(|frame| frame[12..14] == [0x80, 0x35]);
    assert_eq!((&frame[..6], &frame[6..12]), (&[0xff; 6][..], &MAC[..]));
    assert_eq!(status(&rig), 3, "the guest is asked to announce itself");
    // A command that is unknown, one without an answer, and the right one.
    let command = |control: &mut Side, bytes: [u8; 2]| {
        control.ram.write_slice(&bytes, GuestAddress(control.buffer(control.available))).unwrap();
        control.offer_each(&[(2, 0), (1, WRITABLE)]);
        control.used();
    };
    command(&mut control, [9, 9]);
    assert_eq!(status(&rig), 3);
    command(&mut control, [3, 0]);
    assert_eq!(status(&rig), 1);
    rig.drain(vec![control]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Whatever a guest puts into its rings, each queue of the card ends when it is to, and the card works
    /// with rings that are right.
    #[test]
    fn rings_of_rubbish_are_survived(
        queue in 0u16..3,
        words in prop::collection::vec((0u64..0x2400, any::<u64>()), 1..60),
        available in any::<u16>(),
        frames in 0usize..3,
    ) {
        let Some(rig) = rig(Limits::default()) else { return Ok(()) };
        let side = rig.serve(queue, F_MERGE_BUFFERS);
        for (at, word) in words {
            rig.ram.write_obj(word, GuestAddress(side.at + at * 8)).unwrap();
        }
        rig.ram.write_obj(available, GuestAddress(side.at + 0x4002)).unwrap();
        side.kick.write(1).unwrap();
        for _ in 0..frames {
            rig.send(&frame(9, 1400));
        }
        rig.drain(vec![side]);
        rig.drain.send_replace(false);
        rig.ram.write_slice(&[0; 0x3_0000], GuestAddress(RINGS)).unwrap();
        let mut send = rig.serve(1, 0);
        let good = frame(3, 100);
        send.send(&good);
        prop_assert_eq!(rig.hear(|frame| is_ours(frame) && frame[20] == 3), good);
        rig.drain(vec![send]);
    }
}

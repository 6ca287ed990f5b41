//! Network device (virtio 1.2 §5.1) over a tap, with one pair of queues and a control queue.
//!
//! ```text
//!  queue 0 ◄── receive ◄── frame, 12 bytes of header ── tap ◄── bridge
//!  queue 1 ──► send ─────► frame, 12 bytes of header ──► tap ──► bridge
//!  queue 2 ──► control: the guest has announced itself
//! ```
//!
//! The header is the kernel's own (`IFF_VNET_HDR`), so that checksums and segments are left to who is
//! last to have them: what the guest leaves out the kernel does, and the other way round. What a guest
//! puts there is checked by the kernel (`tun_get_user`), as for every user of a tap.
//!
//! A frame that finds no buffer waits for one, and others wait in the tap behind it until that is full:
//! the network loses them there. A frame that a guest's buffers are too small for is lost.

mod control;
mod interface;
mod rate;
mod tap;

use std::{
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

pub use self::{
    interface::{Interface, open_tap},
    rate::Limit,
    tap::{HEADER, Tap},
};
use self::{rate::Bucket, tap::Offloads};
use super::{
    Backend, Drain, QueueIo, Turn, Worker,
    chain::Chain,
    worker::{Source, serve_in_turn},
};

const F_CSUM: u64 = 1 << 0;
const F_GUEST_CSUM: u64 = 1 << 1;
const F_MAC: u64 = 1 << 5;
const F_GUEST_TSO4: u64 = 1 << 7;
const F_GUEST_TSO6: u64 = 1 << 8;
const F_HOST_TSO4: u64 = 1 << 11;
const F_HOST_TSO6: u64 = 1 << 12;
const F_MERGE_BUFFERS: u64 = 1 << 15;
const F_STATUS: u64 = 1 << 16;
const F_CONTROL: u64 = 1 << 17;
const F_ANNOUNCE: u64 = 1 << 21;

const S_LINK_UP: u16 = 1;
const S_ANNOUNCE: u16 = 2;

/// Most bytes of a frame: 64 KiB of a segment that is still whole, its Ethernet header and a tag.
const FRAME: usize = (64 << 10) + 18;
const QUEUE_SIZE: u16 = 256;
/// Most buffers that one frame is spread over.
const MOST_BUFFERS: usize = QUEUE_SIZE as usize;

/// The address of a network card.
pub type Mac = [u8; 6];

/// How much goes through a card in a second, at most; for each way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// To the guest.
    pub receive: Option<Limit>,
    /// From it.
    pub send: Option<Limit>,
}

/// A virtio network card over an open tap.
#[derive(Debug)]
pub struct Net {
    mac: Mac,
    limits: Limits,
    tap: Arc<Tap>,
    announce: Arc<AtomicBool>,
}

impl Net {
    /// A card with this address over a tap that was opened with `IFF_TAP | IFF_NO_PI | IFF_VNET_HDR`.
    ///
    /// # Errors
    /// What the operating system says to a header of [`HEADER`] bytes.
    pub fn new(tap: OwnedFd, mac: Mac, limits: Limits) -> std::io::Result<Self> {
        Ok(Self { mac, limits, tap: Arc::new(Tap::new(tap)?), announce: Arc::default() })
    }

    /// Tells the network where the card is now: by a frame of its own (RARP, RFC 903), from which bridges
    /// and switches learn, and by asking a guest that can to announce itself, from which its neighbours
    /// do. Whether the guest is to be told that its configuration has changed.
    pub fn announce(&self) -> bool {
        if let Err(error) = self.tap.write(&rarp(self.mac)) {
            tracing::warn!(%error, "a card's place is not announced");
        }
        self.announce.store(true, Ordering::Release);
        true
    }
}

/// A request for the card's own address, which nobody has to answer, to all, with a header that leaves
/// nothing to others.
fn rarp(mac: Mac) -> Vec<u8> {
    const BROADCAST: Mac = [0xff; 6];
    let mut frame = vec![0; HEADER];
    frame.extend(BROADCAST);
    frame.extend(mac);
    // Ethernet type, hardware and protocol types and lengths, request.
    frame.extend([0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3]);
    for _ in 0..2 {
        frame.extend(mac);
        frame.extend([0; 4]);
    }
    frame.resize(HEADER + 60, 0);
    frame
}

impl Backend for Net {
    fn name(&self) -> String {
        let [a, b, c, d, e, f] = self.mac;
        format!("network card {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }

    fn kind(&self) -> u16 {
        1
    }

    fn class(&self) -> u32 {
        0x02_00_00
    }

    fn features(&self) -> u64 {
        F_CSUM
            | F_GUEST_CSUM
            | F_MAC
            | F_GUEST_TSO4
            | F_GUEST_TSO6
            | F_HOST_TSO4
            | F_HOST_TSO6
            | F_MERGE_BUFFERS
            | F_STATUS
            | F_CONTROL
            | F_ANNOUNCE
    }

    fn queues(&self) -> u16 {
        3
    }

    fn queue_size(&self) -> u16 {
        QUEUE_SIZE
    }

    fn config(&self) -> Vec<u8> {
        let announce = if self.announce.load(Ordering::Acquire) { S_ANNOUNCE } else { 0 };
        let mut config = self.mac.to_vec();
        config.extend((S_LINK_UP | announce).to_le_bytes());
        // Pairs of queues.
        config.extend(1u16.to_le_bytes());
        config
    }

    fn serve(self: Arc<Self>, io: QueueIo, drain: Drain) -> Worker {
        match io.index {
            0 => Box::pin(receive(self, io, drain)),
            1 => Box::pin(send(self, io, drain)),
            _ => {
                let announce = self.announce.clone();
                let serve = move |chain: &Chain, mem: &_| control::serve(chain, mem, &announce);
                Box::pin(serve_in_turn(io, drain, Source::always(), serve))
            }
        }
    }
}

/// What of a frame is left to the guest that has taken these features.
fn offloads(features: u64) -> Offloads {
    let sums = features & F_GUEST_CSUM != 0;
    Offloads {
        sums,
        tcp4: sums && features & F_GUEST_TSO4 != 0,
        tcp6: sums && features & F_GUEST_TSO6 != 0,
    }
}

/// Brings frames to the guest.
async fn receive(net: Arc<Net>, mut io: QueueIo, mut drain: Drain) -> QueueIo {
    net.tap.set_offloads(offloads(io.features));
    let merges = io.features & F_MERGE_BUFFERS != 0;
    let mut bucket = Bucket::new(net.limits.receive);
    let mut buffer = vec![0; HEADER + FRAME];
    // A frame that has come, and buffers that were taken for it.
    let mut pending = None;
    let mut buffers: Vec<Chain> = Vec::new();
    let mut turn = Turn::default();
    loop {
        turn.renew().await;
        if *drain.borrow_and_update() {
            // The frame is lost, as frames are; the buffers are the guest's again.
            for _ in 0..buffers.len() {
                io.take_back();
            }
            return io;
        }
        let len = match pending {
            Some(len) => len,
            None => {
                let ready = async {
                    bucket.wait().await;
                    net.tap.readable().await
                };
                tokio::select! {
                    () = ready => turn.took(0),
                    changed = drain.changed() => {
                        if changed.is_err() {
                            return io;
                        }
                        continue;
                    }
                }
                let Some(len) = net.tap.read(&mut buffer).filter(|len| *len > HEADER) else {
                    continue;
                };
                bucket.took(len - HEADER);
                pending = Some(len);
                len
            }
        };
        let most = if merges { MOST_BUFFERS } else { 1 };
        while room(&buffers) < len as u64
            && buffers.len() < most
            && let Some(chain) = io.pop()
        {
            buffers.push(chain);
        }
        if room(&buffers) < len as u64 && buffers.len() < most {
            // It has none left: its next notification says that there are more.
            if !io.rearm(false) {
                tokio::select! {
                    () = io.kick.wait() => turn.took(0),
                    changed = drain.changed() => if changed.is_err() { return io },
                }
            }
            continue;
        }
        let taken = std::mem::take(&mut buffers);
        give(&mut io, taken, &mut buffer[..len]);
        pending = None;
        turn.took(len as u64);
        io.signal();
    }
}

fn room(buffers: &[Chain]) -> u64 {
    buffers.iter().map(Chain::writable_len).sum()
}

/// Puts a frame into buffers, or gives them back empty if it does not fit (virtio 1.2 §5.1.6.4).
fn give(io: &mut QueueIo, buffers: Vec<Chain>, frame: &mut [u8]) {
    let fits = room(&buffers) >= frame.len() as u64;
    frame[HEADER - 2..HEADER].copy_from_slice(&(buffers.len() as u16).to_le_bytes());
    let mut rest = if fits { &*frame } else { &[] };
    for chain in buffers {
        let len = chain.writable_len().min(rest.len() as u64) as usize;
        let (part, after) = rest.split_at(len);
        rest = after;
        let written = if chain.write(&io.mem, 0, part).is_ok() { len as u32 } else { 0 };
        io.push(chain.head, written);
    }
}

/// Takes frames from the guest.
async fn send(net: Arc<Net>, mut io: QueueIo, mut drain: Drain) -> QueueIo {
    let mut bucket = Bucket::new(net.limits.send);
    let mut buffer = vec![0; HEADER + FRAME];
    let mut turn = Turn::default();
    loop {
        turn.renew().await;
        if *drain.borrow_and_update() {
            return io;
        }
        let mut any = false;
        while !turn.is_over()
            && bucket.is_ready()
            && let Some(chain) = io.pop()
        {
            any = true;
            let len = chain.readable_len();
            turn.took(len);
            let fits = len > HEADER as u64 && len <= buffer.len() as u64;
            if fits && chain.read(&io.mem, 0, &mut buffer[..len as usize]).is_ok() {
                bucket.took(len as usize - HEADER);
                if let Err(error) = net.tap.write(&buffer[..len as usize]) {
                    // Full, or no frame: it is lost, as on any wire.
                    tracing::trace!(%error, len, "a guest's frame is lost");
                }
            }
            io.push(chain.head, 0);
        }
        if any {
            io.signal();
        }
        if turn.is_over() {
            continue;
        }
        if !bucket.is_ready() {
            tokio::select! {
                () = bucket.wait() => {}
                changed = drain.changed() => if changed.is_err() { return io },
            }
            continue;
        }
        if io.rearm(any) {
            continue;
        }
        tokio::select! {
            () = io.kick.wait() => turn.took(0),
            changed = drain.changed() => if changed.is_err() { return io },
        }
    }
}

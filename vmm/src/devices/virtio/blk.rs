//! Block device (virtio 1.2 §5.2) over any `block_io::Disk`, with one queue a vCPU.
//!
//! ```text
//!  queue worker: pop ──► request futures (all polled by this one task) ──► Disk
//!                 ▲                     │ several done at once
//!                 └──── used ring ◄─────┘ one interrupt a batch
//! ```
//!
//! Payload is copied between guest memory and a pooled buffer. The copy is deliberate: the
//! guest can change its memory while a request is under way, and what is signed or sealed on
//! its way to a server must not change under the hands of the signer.

use std::{
    sync::{
        Arc, Mutex, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use block_io::{Disk, Geometry};
use futures_util::{FutureExt, StreamExt, stream::FuturesUnordered};
use host_api::DiskLimits;

use super::{
    Backend, Drain, QueueIo, Turn, Worker,
    chain::Chain,
    give_way,
    pace::Pace,
    storage::{Kind, LossRule, Storage, Trouble},
    times::DiskTimes,
};
use crate::platform::{bus::lock, error::chain as causes, lifecycle::Control, memory::GuestRam};

const SECTOR: u64 = 512;
const F_SIZE_MAX: u64 = 1 << 1;
const F_SEG_MAX: u64 = 1 << 2;
const F_READ_ONLY: u64 = 1 << 5;
const F_BLOCK_SIZE: u64 = 1 << 6;
const F_FLUSH: u64 = 1 << 9;
const F_TOPOLOGY: u64 = 1 << 10;
const F_MULTI_QUEUE: u64 = 1 << 12;
const F_DISCARD: u64 = 1 << 13;
const F_WRITE_ZEROES: u64 = 1 << 14;

const T_IN: u32 = 0;
const T_OUT: u32 = 1;
const T_FLUSH: u32 = 4;
const T_GET_ID: u32 = 8;
const T_DISCARD: u32 = 11;
const T_WRITE_ZEROES: u32 = 13;

const S_OK: u8 = 0;
const S_IOERR: u8 = 1;
const S_UNSUPPORTED: u8 = 2;

/// Bytes of a request that are not its data: what is before it, and the status behind.
const FRAME: u64 = 17;
const QUEUE_SIZE: u16 = 256;
const SEGMENTS: u32 = QUEUE_SIZE as u32 - 2;
/// Most bytes of a segment, which drivers are told.
const SEGMENT: u32 = 1 << 20;
/// Most bytes of a read or write: what a driver can ask for that keeps to what it is told. One
/// that does not take up [`F_SIZE_MAX`] asks for far less (Linux for a few MiB). Descriptors may
/// overlap, so guest memory bounds nothing.
const MOST_BYTES: u64 = SEGMENTS as u64 * SEGMENT as u64;
/// Requests of one queue under way at a time.
const IN_FLIGHT: usize = 128;
/// Larger requests are carried out in pieces of this size, which bounds memory.
const PIECE: usize = 1 << 20;
/// Bytes of buffers that are kept for the next requests, of all queues together.
const KEEP: usize = 8 << 20;
/// Most sectors of one discard or write-zeroes.
const MOST_SECTORS: u32 = (1 << 30) / SECTOR as u32;

/// Counters of a disk.
#[derive(Debug, Default)]
pub struct Counters {
    /// Completed reads.
    pub reads: AtomicU64,
    /// Completed writes.
    pub writes: AtomicU64,
    /// Completed flushes.
    pub flushes: AtomicU64,
    /// Bytes read.
    pub read_bytes: AtomicU64,
    /// Bytes written.
    pub written_bytes: AtomicU64,
    /// Failed requests.
    pub errors: AtomicU64,
    /// Longest request in microseconds.
    pub longest_us: AtomicU64,
    /// Times when requests were under way and none was completed for `PAUSE` or longer, as when
    /// a file server is lost and found again.
    pub pauses: AtomicU64,
    /// The longest of them in microseconds.
    pub longest_pause_us: AtomicU64,
    /// How long requests took, and what took it.
    pub times: DiskTimes,
}

/// What counts as a pause of a disk.
const PAUSE: Duration = Duration::from_millis(20);

/// When a queue's requests last went on.
struct Progress {
    queue: u16,
    since: Instant,
}

impl Progress {
    /// Requests are under way where none were.
    fn begin(&mut self, blk: &Blk) {
        self.since = Instant::now();
        blk.storage.goes_on(self.queue, self.since);
    }

    /// Requests were completed: counts a pause before that.
    fn completed(&mut self, blk: &Blk) {
        let now = Instant::now();
        let quiet = now.duration_since(std::mem::replace(&mut self.since, now));
        if quiet >= PAUSE {
            let micros = u64::try_from(quiet.as_micros()).unwrap_or(u64::MAX);
            blk.counters.pauses.fetch_add(1, Ordering::Relaxed);
            blk.counters.longest_pause_us.fetch_max(micros, Ordering::Relaxed);
        }
    }

    /// What was completed is with the guest; whether more is under way.
    fn handed_on(&self, blk: &Blk, more: bool) {
        if more {
            blk.storage.goes_on(self.queue, self.since);
        } else {
            blk.storage.rests(self.queue);
        }
    }
}

/// A virtio block device over an open disk.
#[derive(Debug)]
pub struct Blk {
    geometry: Geometry,
    read_only: bool,
    queues: u16,
    id: [u8; 20],
    /// The open disk; empty while another host has it.
    disk: RwLock<Option<Arc<dyn Disk>>>,
    storage: Storage,
    pace: Pace,
    /// What was done for the guest since the machine was built.
    pub counters: Counters,
    pool: Mutex<Pool>,
}

/// Buffers that are kept for the next requests, and the bytes that they have.
#[derive(Debug, Default)]
struct Pool {
    buffers: Vec<Vec<u8>>,
    bytes: usize,
}

impl Blk {
    /// A device of the shape of a disk, which is given by [`Blk::attach`].
    pub fn new(geometry: Geometry, read_only: bool, queues: u16, id: &str) -> Self {
        let mut name = [0; 20];
        let len = id.len().min(name.len());
        name[..len].copy_from_slice(&id.as_bytes()[..len]);
        Self {
            geometry,
            read_only,
            queues,
            id: name,
            disk: RwLock::new(None),
            storage: Storage::new(queues),
            pace: Pace::default(),
            counters: Counters::default(),
            pool: Mutex::default(),
        }
    }

    /// Says whose machine cannot go on when the disk at `location` is away.
    pub fn belongs_to(&self, machine: &Arc<Control>, location: &str) {
        self.storage.belongs_to(machine, location);
    }

    /// Says what the guest sees of storage that is away.
    pub fn set_loss_rule(&self, rule: LossRule) {
        self.storage.set_rule(rule);
    }

    /// Says how much it does in a second, from now on.
    pub fn set_limits(&self, limits: DiskLimits) {
        self.pace.set(limits);
    }

    /// How often one of its queues has waited for that.
    pub fn waited(&self) -> u64 {
        self.pace.waited()
    }

    /// What keeps the machine from going on, if it is this disk; silence of `patience` and longer does.
    pub fn trouble(&self, patience: Duration) -> Option<Trouble> {
        self.storage.trouble(patience)
    }

    /// Gives the device its disk; it must have the shape the device was made with.
    pub fn attach(&self, disk: Arc<dyn Disk>) -> Result<(), String> {
        let found = disk.geometry();
        if found.size != self.geometry.size || found.logical_sector != self.geometry.logical_sector
        {
            return Err(format!("the disk is {found:?}, the guest knows {:?}", self.geometry));
        }
        *self.disk.write().unwrap_or_else(|poison| poison.into_inner()) = Some(disk);
        Ok(())
    }

    /// Takes the disk away. Queues must be drained.
    pub fn detach(&self) -> Option<Arc<dyn Disk>> {
        self.disk.write().unwrap_or_else(|poison| poison.into_inner()).take()
    }

    /// Shape of the disk.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// The disk while it is open.
    pub fn disk(&self) -> Option<Arc<dyn Disk>> {
        self.disk.read().unwrap_or_else(|poison| poison.into_inner()).clone()
    }

    fn buffer(&self, len: usize) -> Vec<u8> {
        let mut buffer = {
            let mut pool = lock(&self.pool);
            let buffer = pool.buffers.pop().unwrap_or_default();
            pool.bytes -= buffer.capacity();
            buffer
        };
        if buffer.len() < len {
            buffer.resize(len, 0);
        }
        buffer
    }

    fn give_back(&self, buffer: Vec<u8>) {
        let mut pool = lock(&self.pool);
        let bytes = pool.bytes + buffer.capacity();
        if bytes <= KEEP && pool.buffers.len() < IN_FLIGHT {
            pool.bytes = bytes;
            pool.buffers.push(buffer);
        }
    }
}

impl Backend for Blk {
    fn name(&self) -> String {
        let id = self.id.split(|byte| *byte == 0).next().unwrap_or_default();
        format!("disk {}", String::from_utf8_lossy(id))
    }

    fn kind(&self) -> u16 {
        2
    }

    fn class(&self) -> u32 {
        0x01_80_00
    }

    fn features(&self) -> u64 {
        let mut features =
            F_SIZE_MAX | F_SEG_MAX | F_BLOCK_SIZE | F_FLUSH | F_TOPOLOGY | F_MULTI_QUEUE;
        if self.read_only {
            features |= F_READ_ONLY;
        } else {
            features |= F_DISCARD | F_WRITE_ZEROES;
        }
        features
    }

    fn queues(&self) -> u16 {
        self.queues
    }

    fn queue_size(&self) -> u16 {
        QUEUE_SIZE
    }

    fn config(&self) -> Vec<u8> {
        let mut config = vec![0; 60];
        let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
        let logical = self.geometry.logical_sector;
        let exponent = (self.geometry.physical_sector / logical).max(1).ilog2() as u8;
        put(0, &(self.geometry.size / SECTOR).to_le_bytes());
        put(8, &SEGMENT.to_le_bytes());
        put(12, &SEGMENTS.to_le_bytes());
        put(20, &logical.to_le_bytes());
        put(24, &[exponent, 0, 1, 0]);
        put(28, &(self.geometry.physical_sector / logical).to_le_bytes());
        put(34, &self.queues.to_le_bytes());
        put(36, &MOST_SECTORS.to_le_bytes());
        put(40, &1u32.to_le_bytes());
        // A disk may free whole blocks best, and its file gives back what is smaller, too.
        let discard = self.geometry.physical_sector.max(logical) / SECTOR as u32;
        put(44, &discard.to_le_bytes());
        put(48, &MOST_SECTORS.to_le_bytes());
        put(52, &1u32.to_le_bytes());
        put(56, &[1]);
        config
    }

    fn serve(self: Arc<Self>, io: QueueIo, drain: Drain) -> Worker {
        Box::pin(serve(self, io, drain))
    }
}

struct Done {
    head: u16,
    written: u32,
    bytes: u64,
}

async fn serve(blk: Arc<Blk>, mut io: QueueIo, mut drain: Drain) -> QueueIo {
    let disk = blk.disk();
    let mut in_flight = FuturesUnordered::new();
    let mut progress = Progress { queue: io.index, since: Instant::now() };
    let mut turn = Turn::default();
    loop {
        turn.renew().await;
        // What the limits hold back stays in the ring.
        let mut held = false;
        let draining = *drain.borrow_and_update();
        if draining && in_flight.is_empty() {
            drop(in_flight);
            return io;
        }
        if !draining {
            loop {
                io.disarm();
                let before = in_flight.len();
                held = !blk.pace.is_ready();
                while !held
                    && in_flight.len() < IN_FLIGHT
                    && let Some(chain) = io.pop()
                {
                    blk.pace.took(chain.total_len().saturating_sub(FRAME).min(MOST_BYTES));
                    held = !blk.pace.is_ready();
                    let (blk, disk, mem) = (blk.clone(), disk.clone(), io.mem.clone());
                    in_flight.push(async move {
                        let written = request(&blk, disk.as_deref(), &mem, &chain).await;
                        Done { head: chain.head, written, bytes: chain.total_len() }
                    });
                }
                let popped = in_flight.len() > before;
                if popped && before == 0 {
                    progress.begin(&blk);
                }
                if held || in_flight.len() >= IN_FLIGHT || !io.rearm(popped) {
                    break;
                }
            }
        }
        tokio::select! {
            biased;
            Some(done) = in_flight.next(), if !in_flight.is_empty() => {
                progress.completed(&blk);
                io.push(done.head, done.written);
                turn.took(done.bytes);
                while !turn.is_over()
                    && let Some(Some(done)) = in_flight.next().now_or_never()
                {
                    io.push(done.head, done.written);
                    turn.took(done.bytes);
                }
                progress.handed_on(&blk, !in_flight.is_empty());
                io.signal();
            }
            changed = drain.changed() => if changed.is_err() { return io },
            () = blk.pace.wait(), if held && in_flight.len() < IN_FLIGHT => turn.took(0),
            () = io.kick.wait(), if !draining && !held && in_flight.len() < IN_FLIGHT => {
                turn.took(0);
            }
        }
    }
}

/// Carries out one request and returns how many bytes were written into it.
async fn request(blk: &Blk, disk: Option<&dyn Disk>, mem: &GuestRam, chain: &Chain) -> u32 {
    let start = Instant::now();
    let room = chain.writable_len();
    let Some(data_room) = room.checked_sub(1) else { return 0 };
    let mut written = 0;
    let outcome = match disk {
        Some(disk) => carry_out(blk, disk, mem, chain, data_room, &mut written).await,
        None => Err(Refused::Io("no disk".into())),
    };
    let took = start.elapsed();
    blk.counters.times.whole.note(took, 1);
    let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
    blk.counters.longest_us.fetch_max(micros, Ordering::Relaxed);
    let status = match outcome {
        Ok(()) => S_OK,
        Err(Refused::Unsupported) => S_UNSUPPORTED,
        Err(Refused::Io(why)) => {
            if blk.counters.errors.fetch_add(1, Ordering::Relaxed) < 10 {
                tracing::warn!(disk = blk.storage.location(), why, "a guest's disk request failed");
            }
            S_IOERR
        }
    };
    if chain.write(mem, data_room, &[status]).is_err() {
        return 0;
    }
    u32::try_from(written + 1).unwrap_or(u32::MAX)
}

enum Refused {
    Unsupported,
    Io(String),
}

impl From<block_io::Error> for Refused {
    fn from(error: block_io::Error) -> Self {
        Self::Io(causes(&error))
    }
}

/// Has a disk do something, until it is done or the guest is to see that it failed.
macro_rules! persist {
    ($blk:expr, $kind:expr, $what:expr) => {{
        let mut held = None;
        while let Err(error) = $blk.counters.times.storage($kind, $what).await {
            $blk.storage.bear(error, $kind, &mut held).await?;
        }
    }};
}

impl From<super::chain::BadChain> for Refused {
    fn from(error: super::chain::BadChain) -> Self {
        Refused::Io(error.to_string())
    }
}

/// Bytes of a request's header: type, reserved, sector.
const HEADER: u64 = 16;

/// First byte of a sector.
fn byte(sector: u64) -> Result<u64, Refused> {
    sector.checked_mul(SECTOR).ok_or_else(|| Refused::Io(format!("sector {sector}")))
}

/// What a discard or write-zeroes is about (virtio 1.2 §5.2.6).
struct Segment {
    offset: u64,
    len: u64,
    /// The space may be given back.
    unmap: bool,
}

fn segment(mem: &GuestRam, chain: &Chain, kind: u32) -> Result<Segment, Refused> {
    let mut segment = [0; 16];
    chain.read(mem, HEADER, &mut segment)?;
    let word = |at: usize| {
        u32::from_le_bytes([segment[at], segment[at + 1], segment[at + 2], segment[at + 3]])
    };
    let start = u64::from(word(0)) | u64::from(word(4)) << 32;
    let (sectors, flags) = (word(8), word(12));
    if sectors > MOST_SECTORS || chain.readable_len() != HEADER + 16 {
        return Err(Refused::Io(format!("{sectors} sectors to discard")));
    }
    // Only write-zeroes has a flag, bit 0 "may unmap" (virtio 1.2 §5.2.6.2).
    if flags & !1 != 0 || (kind == T_DISCARD && flags != 0) {
        return Err(Refused::Unsupported);
    }
    let len = u64::from(sectors) * SECTOR;
    Ok(Segment { offset: byte(start)?, len, unmap: flags & 1 != 0 })
}

async fn carry_out(
    blk: &Blk,
    disk: &dyn Disk,
    mem: &GuestRam,
    chain: &Chain,
    data_room: u64,
    written: &mut u64,
) -> Result<(), Refused> {
    let counters = &blk.counters;
    let mut header = [0; HEADER as usize];
    chain.read(mem, 0, &mut header)?;
    let kind = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
    let sector = u64::from_le_bytes([
        header[8], header[9], header[10], header[11], header[12], header[13], header[14],
        header[15],
    ]);
    let bounded = |len: u64| {
        let refused = || Refused::Io(format!("{len} bytes in one request"));
        (len <= MOST_BYTES).then_some(len).ok_or_else(refused)
    };
    match kind {
        T_IN => {
            let offset = byte(sector)?;
            disk.geometry().check(offset, bounded(data_room)?)?;
            let mut buffer = blk.buffer(PIECE.min(data_room as usize));
            while *written < data_room {
                let len = PIECE.min((data_room - *written) as usize);
                persist!(blk, Kind::Read, disk.read_at(offset + *written, &mut buffer[..len]));
                chain.write(mem, *written, &buffer[..len])?;
                *written += len as u64;
                if *written < data_room {
                    give_way().await;
                }
            }
            blk.give_back(buffer);
            counters.reads.fetch_add(1, Ordering::Relaxed);
            counters.read_bytes.fetch_add(data_room, Ordering::Relaxed);
        }
        T_OUT => {
            let offset = byte(sector)?;
            let len = bounded(chain.readable_len() - HEADER)?;
            disk.geometry().check(offset, len)?;
            if blk.read_only {
                return Err(block_io::Error::ReadOnly.into());
            }
            let mut buffer = blk.buffer(PIECE.min(len as usize));
            let mut done = 0;
            while done < len {
                let part = PIECE.min((len - done) as usize);
                chain.read(mem, HEADER + done, &mut buffer[..part])?;
                persist!(blk, Kind::Write, disk.write_at(offset + done, &buffer[..part]));
                done += part as u64;
                if done < len {
                    give_way().await;
                }
            }
            blk.give_back(buffer);
            counters.writes.fetch_add(1, Ordering::Relaxed);
            counters.written_bytes.fetch_add(len, Ordering::Relaxed);
        }
        T_FLUSH => {
            if !blk.read_only {
                persist!(blk, Kind::Flush, disk.flush());
            }
            counters.flushes.fetch_add(1, Ordering::Relaxed);
        }
        T_GET_ID => {
            let len = data_room.min(blk.id.len() as u64);
            chain.write(mem, 0, &blk.id[..len as usize])?;
            *written = len;
        }
        T_DISCARD | T_WRITE_ZEROES if !blk.read_only => {
            let Segment { offset, len, unmap } = segment(mem, chain, kind)?;
            if kind == T_DISCARD {
                persist!(blk, Kind::Write, disk.discard(offset, len));
            } else if unmap {
                persist!(blk, Kind::Write, disk.write_zeroes(offset, len));
            } else {
                // Zeros that stay are written as any other data, though none came with the request.
                blk.pace.took(len);
                persist!(blk, Kind::Write, disk.write_zeroes_kept(offset, len));
            }
        }
        _ => return Err(Refused::Unsupported),
    }
    Ok(())
}

//! The work: writes in flight, flushes, reads back, memory rewritten, progress told.

use core::{fmt::Write, ptr};

use crate::{
    console::Console,
    machine::{self, DISK_VECTOR},
    pattern::{self, Content, WORDS},
    pci,
    virtq::{Queue, RingCell},
};

static DISK_RING: RingCell = RingCell::new();

/// Descriptors of a request: header, data, status.
const STEP: usize = 4;
/// Most requests in flight, the flush and a read among them.
const SLOTS: usize = 60;
const BUFFERS: u64 = 8 << 20;
const HEADERS: u64 = BUFFERS + SLOTS as u64 * 4096;
const LAST: u64 = 16 << 20;
const MOST_BLOCKS: u64 = (16 << 20) / 8;
const WORKING_SET: u64 = 32 << 20;
const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;

/// The command line.
pub struct Settings {
    /// MiB of the disk that are used.
    span_mib: u64,
    /// Writes to do; 0 without end.
    blocks: u64,
    /// Seconds to run; 0 without end.
    seconds: u64,
    flush_every: u64,
    ws_mib: u64,
    seed: u64,
    depth: usize,
    /// Writes per second; 0 as many as possible.
    iops: u64,
}

impl Settings {
    pub fn from_command_line(line: &[u8]) -> Self {
        let get = |key: &str, default: u64| {
            line.split(|byte| *byte == b' ')
                .find_map(|word| word.strip_prefix(key.as_bytes())?.strip_prefix(b"="))
                .map_or(default, |digits| {
                    digits
                        .iter()
                        .take_while(|byte| byte.is_ascii_digit())
                        .fold(0, |sum: u64, byte| sum * 10 + u64::from(byte - b'0'))
                })
        };
        Self {
            span_mib: get("span", 64),
            blocks: get("blocks", 0),
            seconds: get("seconds", 0),
            flush_every: get("flush_every", 64).max(1),
            ws_mib: get("ws_mib", 16),
            seed: get("seed", 1),
            depth: get("depth", 16).clamp(1, SLOTS as u64 - 4) as usize,
            iops: get("iops", 0),
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Slot {
    Free,
    Write { seq: u64, block: u64 },
    Read { seq: u64, block: u64 },
    Flush { covers: u64 },
}

/// The state of the work.
pub struct Work {
    settings: Settings,
    console: Console,
    queue: Queue<STEP>,
    slots: [Slot; SLOTS],
    blocks: u64,
    hz: u64,
    started: u64,
    /// Writes given to the disk.
    submitted: u64,
    /// All writes up to this one have completed.
    acked: u64,
    /// All writes up to this one were completed before a flush that has completed.
    flushed: u64,
    flushing: bool,
    in_flight: usize,
    reads: u64,
    /// Reads that are on the way.
    reading: usize,
    errors: u64,
    memory_errors: u64,
    passes: u64,
    page: u64,
    last_done: u64,
    gap: u64,
    longest_gap: u64,
    random: u64,
}

impl Work {
    pub fn new(settings: Settings) -> Result<Self, &'static str> {
        let console = Console::new()?;
        let device = pci::find(2).ok_or("no virtio disk")?;
        device.negotiate(1 << 32 | 1 << 9).ok_or("the disk is not a modern one")?;
        if !device.enable_msix(DISK_VECTOR) {
            return Err("the disk has no MSI-X");
        }
        let mut queue = Queue::new(&DISK_RING, crate::virtq::SIZE);
        let doorbell = device.set_queue(0, crate::virtq::SIZE as u16, queue.addresses());
        queue.set_doorbell(doorbell);
        device.ready();
        let sectors = u64::from(device.device_word(0)) | u64::from(device.device_word(4)) << 32;
        let blocks = (settings.span_mib << 8).min(sectors / 8).min(MOST_BLOCKS);
        if blocks < 64 {
            return Err("the disk is too small");
        }
        // SAFETY: memory set aside for the table and the working set.
        unsafe {
            ptr::write_bytes(LAST as *mut u8, 0, MOST_BLOCKS as usize * 8);
            ptr::write_bytes(WORKING_SET as *mut u8, 0, (settings.ws_mib << 20) as usize);
        }
        let hz = machine::tsc_hz();
        let started = machine::tsc();
        let random = settings.seed;
        Ok(Self {
            settings, console, queue, slots: [Slot::Free; SLOTS], blocks, hz, started,
            submitted: 0, acked: 0, flushed: 0, flushing: false, in_flight: 0, reads: 0,
            reading: 0, errors: 0, memory_errors: 0, passes: 0, page: 0, last_done: started,
            gap: 0, longest_gap: 0, random,
        })
    }

    pub fn run(&mut self) -> i32 {
        let (blocks, span) = (self.blocks, self.settings.span_mib);
        let (seed, ws) = (self.settings.seed, self.settings.ws_mib);
        let _ = writeln!(
            self.console,
            "start seed={seed} blocks={blocks} span={span} ws_mib={ws} tsc_hz={}",
            self.hz
        );
        let mut next_report = self.started + self.hz / 5;
        let mut stopping = false;
        loop {
            self.reap();
            let now = machine::tsc();
            if !stopping {
                self.feed(now);
            } else if self.in_flight == 0 {
                if self.flushed == self.submitted {
                    break;
                }
                self.flush();
            }
            self.dirty();
            if now >= next_report {
                next_report = now + self.hz / 5;
                self.report("progress", now);
                let done = self.settings.blocks != 0 && self.submitted >= self.settings.blocks;
                let late = self.settings.seconds != 0
                    && now - self.started >= self.settings.seconds * self.hz;
                stopping |= done || late || self.console.stop_wanted();
            }
        }
        self.report("final", machine::tsc());
        self.console.drain();
        i32::from(self.errors + self.memory_errors != 0)
    }

    fn report(&mut self, word: &str, now: u64) {
        let micros = |ticks: u64| ticks / (self.hz / 1_000_000).max(1);
        let (gap, longest) = (micros(self.gap), micros(self.longest_gap));
        let elapsed = micros(now - self.started) / 1000;
        self.gap = 0;
        let [disk_irqs, _] = machine::interrupts();
        let _ = writeln!(
            self.console,
            "{word} ms={elapsed} seq={} acked={} flushed={} reads={} gap_us={gap} \
             longest_gap_us={longest} verify_errors={} memory_errors={} passes={} irqs={disk_irqs}",
            self.submitted, self.acked, self.flushed, self.reads, self.errors,
            self.memory_errors, self.passes
        );
    }

    fn last(block: u64) -> *mut u64 {
        (LAST + block * 8) as *mut u64
    }

    /// Starts what there is room for.
    fn feed(&mut self, now: u64) {
        let done = self.settings.blocks != 0 && self.submitted >= self.settings.blocks;
        let allowed = match self.settings.iops {
            0 => u64::MAX,
            iops => {
                let micros = (now - self.started) / (self.hz / 1_000_000).max(1);
                micros * iops / 1_000_000
            }
        };
        let mut kick = false;
        while !done && self.in_flight < self.settings.depth && self.submitted < allowed {
            let seq = self.submitted + 1;
            if seq.is_multiple_of(8) && self.reading < 2 && self.read_back() {
                kick = true;
            }
            let block = pattern::block_of(self.settings.seed, seq, self.blocks);
            if self.busy(block) {
                break;
            }
            let Some(slot) = self.free_slot() else { break };
            // SAFETY: the slot is free, so its buffer is ours.
            let words = unsafe { &mut *(self.buffer(slot) as *mut [u64; WORDS]) };
            pattern::fill(self.settings.seed, seq, block, words);
            self.slots[slot] = Slot::Write { seq, block };
            self.submit(slot, OUT, block);
            self.submitted = seq;
            kick = true;
            if self.settings.blocks != 0 && self.submitted >= self.settings.blocks {
                break;
            }
        }
        if kick {
            self.queue.kick(0);
        }
        if !self.flushing && self.acked >= self.flushed + self.settings.flush_every {
            self.flush();
        }
    }

    fn busy(&self, wanted: u64) -> bool {
        self.slots.iter().any(|slot| match slot {
            Slot::Write { block, .. } | Slot::Read { block, .. } => *block == wanted,
            _ => false,
        })
    }

    fn free_slot(&self) -> Option<usize> {
        self.slots.iter().position(|slot| *slot == Slot::Free)
    }

    fn buffer(&self, slot: usize) -> u64 {
        BUFFERS + slot as u64 * 4096
    }

    /// Reads a random block whose content is known.
    fn read_back(&mut self) -> bool {
        self.random = pattern::mix(self.random);
        let block = self.random % self.blocks;
        // SAFETY: an entry of the table.
        let seq = unsafe { *Self::last(block) };
        let Some(slot) = self.free_slot() else { return false };
        if seq == 0 || self.busy(block) {
            return false;
        }
        self.slots[slot] = Slot::Read { seq, block };
        self.reading += 1;
        self.submit(slot, IN, block);
        true
    }

    fn flush(&mut self) {
        if self.flushing {
            return;
        }
        let Some(slot) = self.free_slot() else { return };
        self.flushing = true;
        self.slots[slot] = Slot::Flush { covers: self.acked };
        self.submit(slot, FLUSH, 0);
        self.queue.kick(0);
    }

    fn submit(&mut self, slot: usize, kind: u32, block: u64) {
        let header = HEADERS + slot as u64 * 32;
        // SAFETY: the slot is free, so its header and status are ours.
        unsafe {
            ptr::write_volatile(header as *mut [u32; 2], [kind, 0]);
            ptr::write_volatile((header + 8) as *mut u64, block * 8);
            ptr::write_volatile((header + 16) as *mut u8, 0xff);
        }
        let data = (self.buffer(slot), 4096, kind == IN);
        let (head, status) = ((header, 16, false), (header + 16, 1, true));
        if kind == FLUSH {
            self.queue.submit(slot, &[head, status]);
        } else {
            self.queue.submit(slot, &[head, data, status]);
        }
        self.in_flight += 1;
    }

    /// Takes what has finished.
    fn reap(&mut self) {
        while let Some((slot, _)) = self.queue.finished() {
            let now = machine::tsc();
            let gap = now.saturating_sub(self.last_done);
            self.gap = self.gap.max(gap);
            // The first requests pay for the device's start.
            if self.acked > 0 {
                self.longest_gap = self.longest_gap.max(gap);
            }
            self.last_done = now;
            self.in_flight -= 1;
            let status = machine::read8(HEADERS + slot as u64 * 32 + 16);
            let done = core::mem::replace(&mut self.slots[slot], Slot::Free);
            if status != 0 {
                self.errors += 1;
            }
            match done {
                Slot::Write { seq, block } => {
                    // SAFETY: an entry of the table.
                    unsafe { *Self::last(block) = seq };
                    self.advance();
                }
                Slot::Read { seq, block } => {
                    self.reading -= 1;
                    self.reads += 1;
                    // SAFETY: the request has finished, so its buffer is ours.
                    let words = unsafe { &*(self.buffer(slot) as *const [u64; WORDS]) };
                    let wanted = Content::Write { seq, block };
                    if pattern::look(self.settings.seed, words) != wanted {
                        self.errors += 1;
                        let _ = writeln!(self.console, "damaged block={block} seq={seq}");
                    }
                }
                Slot::Flush { covers } => {
                    self.flushing = false;
                    self.flushed = covers;
                }
                Slot::Free => self.errors += 1,
            }
        }
        if self.in_flight == 0 {
            self.last_done = machine::tsc();
        }
    }

    /// Moves `acked` up to the oldest write in flight.
    fn advance(&mut self) {
        let oldest = self.slots.iter().filter_map(|slot| match slot {
            Slot::Write { seq, .. } => Some(*seq),
            _ => None,
        });
        self.acked = oldest.min().map_or(self.submitted, |seq| seq - 1);
    }

    /// Rewrites some pages of the working set and checks what they held: page `p` holds, in
    /// every eighth word, the number of the pass mixed with `p`.
    fn dirty(&mut self) {
        const PAGES: u64 = 32;
        let pages = self.settings.ws_mib << 8;
        for _ in 0..PAGES.min(pages) {
            let old = if self.passes == 0 { 0 } else { pattern::mix(self.passes << 32 | self.page) };
            let new = pattern::mix((self.passes + 1) << 32 | self.page);
            let base = WORKING_SET + self.page * 4096;
            for line in 0..64 {
                let word = (base + line * 64) as *mut u64;
                // SAFETY: memory of the working set.
                unsafe {
                    if ptr::read_volatile(word) != old {
                        self.memory_errors += 1;
                    }
                    ptr::write_volatile(word, new);
                }
            }
            self.page += 1;
            if self.page == pages {
                self.page = 0;
                self.passes += 1;
            }
        }
    }
}

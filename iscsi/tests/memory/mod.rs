//! A device in memory: just enough of SCSI for initiators to be satisfied with.
#![allow(dead_code, reason = "not every user needs all of it")]

use std::sync::{
    Mutex, PoisonError, RwLock,
    atomic::{AtomicUsize, Ordering},
};

use scsi::{Completion, Device, Lun, Nexus, Request, Sense, SenseKey, Status};
use tokio::sync::Semaphore;

/// Bytes of a block.
pub const BLOCK: usize = 512;

/// Logical unit 0 answers at once; on logical unit 1 reads and writes wait for a permit.
pub struct Memory {
    blocks: RwLock<Vec<u8>>,
    /// What reads and writes of logical unit 1 wait for.
    pub permits: Semaphore,
    /// Reads and writes that were begun, and that came to their end.
    pub begun: AtomicUsize,
    pub done: AtomicUsize,
    /// What transports told: attach, detach, resets, cleared tasks.
    pub told: Mutex<Vec<String>>,
}

fn check(key: SenseKey, code: u16) -> Completion {
    let sense = Some(Sense::new(key, code));
    Completion { status: Status::CheckCondition, sense, data_out_wanted: 0 }
}

fn good(wanted: usize) -> Completion {
    Completion { status: Status::Good, sense: None, data_out_wanted: wanted as u64 }
}

fn be(bytes: &[u8]) -> usize {
    bytes.iter().fold(0, |n, byte| n << 8 | usize::from(*byte))
}

impl Memory {
    pub fn new(blocks: usize) -> Self {
        Self {
            blocks: RwLock::new(vec![0; blocks * BLOCK]),
            permits: Semaphore::new(0),
            begun: AtomicUsize::new(0),
            done: AtomicUsize::new(0),
            told: Mutex::default(),
        }
    }

    fn tell(&self, what: String) {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).push(what);
    }

    pub fn content(&self, block: usize, count: usize) -> Vec<u8> {
        self.blocks.read().unwrap()[block * BLOCK..][..count * BLOCK].to_vec()
    }

    fn inquiry(cdb: &[u8], out: &mut Vec<u8>) -> Completion {
        let mut page = match (cdb[1] & 1, cdb[2]) {
            (0, 0) => {
                let mut page = vec![0, 0, 6, 2, 31, 0, 0, 2];
                page.extend_from_slice(b"BULKHEADMemory          0001");
                page
            }
            (1, 0x00) => vec![0, 0, 0, 3, 0x00, 0x80, 0x83],
            (1, 0x80) => b"\x00\x80\x00\x04MEM0".to_vec(),
            (1, 0x83) => b"\x00\x83\x00\x0c\x02\x01\x00\x08BULKHEAD".to_vec(),
            _ => return check(SenseKey::IllegalRequest, 0x2400),
        };
        page.truncate(be(&cdb[3..5]));
        out.extend(page);
        good(0)
    }

    fn transfer(
        &self,
        write: bool,
        block: usize,
        count: usize,
        request: &Request<'_>,
        out: &mut Vec<u8>,
    ) -> Completion {
        let (start, length) = (block * BLOCK, count * BLOCK);
        let size = self.blocks.read().unwrap().len();
        if start + length > size {
            return check(SenseKey::IllegalRequest, 0x2100);
        }
        if write {
            let have = request.data_out.len().min(length);
            self.blocks.write().unwrap()[start..start + have]
                .copy_from_slice(&request.data_out[..have]);
            return good(length);
        }
        out.extend_from_slice(&self.blocks.read().unwrap()[start..start + length]);
        good(0)
    }

    fn other(&self, request: &Request<'_>, out: &mut Vec<u8>) -> Completion {
        let cdb = request.cdb;
        let last = self.blocks.read().unwrap().len() / BLOCK - 1;
        match cdb[0] {
            0x00 | 0x35 | 0x91 => good(0),
            // A device with a fault.
            0xc0 => panic!("the device has a fault"),
            0x03 => {
                let mut sense = Sense::new(SenseKey::NoSense, 0).fixed().to_vec();
                sense.truncate(usize::from(cdb[4]));
                out.extend(sense);
                good(0)
            }
            0x12 => Self::inquiry(cdb, out),
            0x1a => {
                let mut page = vec![3, 0, 0x10, 0];
                page.truncate(usize::from(cdb[4]));
                out.extend(page);
                good(0)
            }
            0x25 => {
                out.extend_from_slice(&u32::try_from(last).unwrap_or(u32::MAX).to_be_bytes());
                out.extend_from_slice(&512u32.to_be_bytes());
                good(0)
            }
            0x9e if cdb[1] & 0x1f == 0x10 => {
                let mut page = (last as u64).to_be_bytes().to_vec();
                page.extend_from_slice(&512u32.to_be_bytes());
                page.resize(32, 0);
                page.truncate(be(&cdb[10..14]));
                out.extend(page);
                good(0)
            }
            0xa0 => {
                let mut page = vec![0, 0, 0, 16, 0, 0, 0, 0];
                page.extend([0; 8]);
                page.extend([0, 1, 0, 0, 0, 0, 0, 0]);
                page.truncate(be(&cdb[6..10]));
                out.extend(page);
                good(0)
            }
            _ => check(SenseKey::IllegalRequest, 0x2000),
        }
    }
}

impl Device for Memory {
    fn attach(&self, nexus: &Nexus) {
        self.tell(format!("attach {}", nexus.initiator));
    }

    fn detach(&self, nexus: &Nexus) {
        self.tell(format!("detach {}", nexus.initiator));
    }

    async fn execute<'a>(
        &'a self,
        _nexus: &'a Nexus,
        request: Request<'a>,
        data_in: &'a mut Vec<u8>,
    ) -> Completion {
        let cdb = request.cdb;
        let Some(unit) = [0u8, 1].into_iter().find(|n| request.lun.0 == [0, *n, 0, 0, 0, 0, 0, 0])
        else {
            return check(SenseKey::IllegalRequest, 0x2500);
        };
        let (write, block, count) = match cdb[0] {
            0x28 | 0x2a => (cdb[0] == 0x2a, be(&cdb[2..6]), be(&cdb[7..9])),
            0x88 | 0x8a => (cdb[0] == 0x8a, be(&cdb[2..10]), be(&cdb[10..14])),
            _ => return self.other(&request, data_in),
        };
        if block > 1 << 40 || count > 1 << 16 {
            return check(SenseKey::IllegalRequest, 0x2100);
        }
        self.begun.fetch_add(1, Ordering::Relaxed);
        if unit == 1
            && let Ok(permit) = self.permits.acquire().await
        {
            permit.forget();
        }
        let completion = self.transfer(write, block, count, &request, data_in);
        self.done.fetch_add(1, Ordering::Relaxed);
        completion
    }

    fn has_unit(&self, _nexus: &Nexus, lun: Lun) -> bool {
        lun.0[0] == 0 && lun.0[1] < 2 && lun.0[2..] == [0; 6]
    }

    fn reset_unit(&self, _nexus: &Nexus, lun: Lun) {
        self.tell(format!("reset unit {}", lun.0[1]));
    }

    fn reset_target(&self, _nexus: &Nexus) {
        self.tell("reset target".to_owned());
    }

    fn tasks_cleared(&self, _nexus: &Nexus, lun: Lun, others: &[Nexus]) {
        self.tell(format!("cleared {} of {}", lun.0[1], others.len()));
    }
}

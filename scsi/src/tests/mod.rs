//! The crate as a transport sees it: commands as bytes, through [`Device`].

mod aborted;
mod copies;
mod hostile;
mod life;
mod media;
mod provisioning;
mod reservations;

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex},
};

use block_io::{Disk, File, RawDisk, testing::MemFile};
use bytes::Bytes;

use crate::*;

/// A set of logical units on disks in memory, and initiators that speak to it.
pub(crate) struct Bench {
    pub units: Units,
    pub file: Arc<MemFile>,
    pub block: u32,
}

pub(crate) const BLOCKS: u64 = 4096;

/// A disk in memory.
pub(crate) fn run<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(future)
}

pub(crate) async fn disk(blocks: u64, block: u32) -> (Arc<MemFile>, Arc<dyn Disk>) {
    let file = Arc::new(MemFile::new());
    file.set_len(blocks * u64::from(block)).await.expect("memory grows");
    let disk = RawDisk::open(Arc::clone(&file) as Arc<dyn File>, block).await.expect("a disk");
    (file, Arc::new(disk))
}

/// What a command came to.
#[derive(Debug)]
pub(crate) struct Answer {
    pub end: Completion,
    pub data: Vec<u8>,
}

impl Answer {
    pub(crate) fn good(self) -> Vec<u8> {
        assert_eq!(self.end.status, Status::Good, "{:?}", self.end.sense);
        self.data
    }

    pub(crate) fn code(&self) -> Option<(SenseKey, u16)> {
        self.end.sense.map(|sense| (sense.key, sense.code))
    }

    pub(crate) fn status(&self) -> Status {
        self.end.status
    }
}

pub(crate) fn nexus(id: u64) -> Nexus {
    let initiator = format!("iqn.2020-01.example:{id},i,0x80000000000{id}").into();
    Nexus { id, initiator, port: 1 }
}

impl Bench {
    /// One unit, 0, and nexuses 1 to 4 that know of the power on.
    pub(crate) async fn new(block: u32, change: impl FnOnce(&mut LogicalUnit)) -> Self {
        Self::with(block, UnitsOptions::default(), change).await
    }

    pub(crate) async fn with(
        block: u32,
        options: UnitsOptions,
        change: impl FnOnce(&mut LogicalUnit),
    ) -> Self {
        let (file, disk) = disk(BLOCKS, block).await;
        let units = Units::new(options);
        let mut unit = LogicalUnit::new(disk, [7; 16]);
        unit.sanitize_rate = u64::MAX;
        change(&mut unit);
        units.add(0, unit).await.expect("there is none");
        let bench = Self { units, file, block };
        for id in 1..=4 {
            bench.units.attach(&nexus(id));
            bench.calm(id).await;
        }
        bench
    }

    /// Takes all unit attentions of a nexus, and answers which they were.
    pub(crate) async fn calm(&self, id: u64) -> Vec<u16> {
        let mut codes = Vec::new();
        loop {
            let answer = self.send(id, &[0; 6], &[]).await;
            match answer.code() {
                Some((SenseKey::UnitAttention, code)) => codes.push(code),
                _ => return codes,
            }
        }
    }

    pub(crate) async fn send(&self, id: u64, cdb: &[u8], out: &[u8]) -> Answer {
        self.send_to(0, id, cdb, out).await
    }

    pub(crate) async fn send_to(&self, lun: u8, id: u64, cdb: &[u8], out: &[u8]) -> Answer {
        let mut data = Vec::new();
        let out = Bytes::copy_from_slice(out);
        let request = Request {
            lun: Lun([0, lun, 0, 0, 0, 0, 0, 0]),
            cdb,
            data_out: &out,
            attribute: TaskAttribute::Simple,
            rank: Rank::MIDDLE,
        };
        let nexus = nexus(id);
        let end = self.units.execute(&nexus, request, &mut data).await;
        Answer { end, data }
    }

    /// A command of 16 bytes on blocks.
    pub(crate) async fn on(
        &self,
        code: u8,
        flags: u8,
        lba: u64,
        blocks: u32,
        out: &[u8],
    ) -> Answer {
        self.send(1, &cdb16(code, flags, lba, blocks), out).await
    }

    pub(crate) async fn contents(&self, lba: u64, blocks: u32) -> Vec<u8> {
        self.on(0x88, 0, lba, blocks, &[]).await.good()
    }

    pub(crate) fn of(&self, byte: u8, blocks: usize) -> Vec<u8> {
        vec![byte; blocks * self.block as usize]
    }
}

pub(crate) fn cdb16(code: u8, flags: u8, lba: u64, blocks: u32) -> Vec<u8> {
    let mut cdb = vec![code, flags];
    cdb.extend(lba.to_be_bytes());
    if code == 0x89 {
        cdb.extend([0, 0, 0, blocks as u8, 0, 0]);
    } else {
        cdb.extend(blocks.to_be_bytes());
        cdb.extend([0, 0]);
    }
    cdb
}

/// Which unit's, and what of it.
pub(crate) type Key = ([u8; 16], Kept);

/// A store in memory that fails when told to.
#[derive(Default)]
pub(crate) struct MemStore {
    pub kept: Mutex<HashMap<Key, Vec<u8>>>,
    pub broken: std::sync::atomic::AtomicBool,
}

impl UnitStore for MemStore {
    fn save<'a>(&'a self, unit: [u8; 16], kept: Kept, state: &'a [u8]) -> StoreFuture<'a, ()> {
        Box::pin(async move {
            if self.broken.load(std::sync::atomic::Ordering::SeqCst) {
                return Err(io::Error::other("broken"));
            }
            self.kept.lock().expect("no panic").insert((unit, kept), state.to_vec());
            Ok(())
        })
    }

    fn load(&self, unit: [u8; 16], kept: Kept) -> StoreFuture<'_, Option<Vec<u8>>> {
        let found = self.kept.lock().expect("no panic").get(&(unit, kept)).cloned();
        Box::pin(async move { Ok(found) })
    }
}

//! Commands that are aborted while their disk writes: what was begun is before any later command.

use std::{
    ops::Range,
    pin::{Pin, pin},
    sync::atomic::{AtomicBool, Ordering},
    task::{Context, Waker},
};

use block_io::{Geometry, IoFuture};
use tokio::sync::Semaphore;

use super::*;

/// A disk whose writes hang while it is told so, each until it gets a permit.
#[derive(Debug)]
pub(super) struct Hanging {
    disk: Arc<dyn Disk>,
    hangs: AtomicBool,
    permits: Semaphore,
}

impl Hanging {
    /// One that does not hang yet.
    pub(super) fn new(disk: Arc<dyn Disk>) -> Self {
        Self { disk, hangs: AtomicBool::new(false), permits: Semaphore::new(0) }
    }

    async fn turn(&self) {
        if self.hangs.load(Ordering::SeqCst) {
            self.permits.acquire().await.expect("it is never closed").forget();
        }
    }

    fn hang(&self, hangs: bool) {
        self.hangs.store(hangs, Ordering::SeqCst);
    }
}

impl Disk for Hanging {
    fn geometry(&self) -> Geometry {
        self.disk.geometry()
    }

    fn read_at<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> IoFuture<'a, ()> {
        self.disk.read_at(offset, buf)
    }

    fn write_at<'a>(&'a self, offset: u64, buf: &'a [u8]) -> IoFuture<'a, ()> {
        Box::pin(async move {
            self.turn().await;
            self.disk.write_at(offset, buf).await
        })
    }

    fn flush(&self) -> IoFuture<'_, ()> {
        self.disk.flush()
    }

    fn discard(&self, offset: u64, len: u64) -> IoFuture<'_, ()> {
        self.disk.discard(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> IoFuture<'_, ()> {
        Box::pin(async move {
            self.turn().await;
            self.disk.write_zeroes(offset, len).await
        })
    }

    fn write_whole<'a>(&'a self, offset: u64, buf: &'a [u8]) -> IoFuture<'a, ()> {
        self.write_at(offset, buf)
    }

    fn allocated_ranges(&self, range: Range<u64>) -> IoFuture<'_, Vec<Range<u64>>> {
        self.disk.allocated_ranges(range)
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn close(&self) -> IoFuture<'_, ()> {
        self.disk.close()
    }
}

/// A unit whose blocks are all 1, on a disk that hangs from now on.
async fn hanging() -> (Bench, Arc<Hanging>) {
    let mut made = None;
    let bench = Bench::new(512, |unit| {
        let disk = Arc::new(Hanging::new(unit.disk.clone()));
        unit.disk = disk.clone();
        unit.atomic_blocks = 8;
        made = Some(disk);
    })
    .await;
    bench.on(0x8a, 0, 0, 8, &bench.of(1, 8)).await.good();
    let disk = made.expect("a unit was made");
    disk.hang(true);
    (bench, disk)
}

fn ready<F: Future>(future: Pin<&mut F>) -> bool {
    future.poll(&mut Context::from_waker(Waker::noop())).is_ready()
}

/// Sends a command whose write hangs, and aborts it.
fn abort(bench: &Bench, cdb: &[u8], out: &[u8]) {
    assert!(!ready(pin!(bench.send(1, cdb, out))), "{cdb:x?} hangs");
}

/// Every command that writes, with its data and the first two blocks as what it had begun leaves them.
fn writers(bench: &Bench) -> Vec<(Vec<u8>, Vec<u8>, Vec<u8>)> {
    let [one, two, three] = [1, 2, 3].map(|byte| bench.of(byte, 2));
    let part = [&bench.of(2, 1)[..], &[2; 100]].concat();
    // The part of a block is written after the whole ones, and was not begun.
    let cut = [bench.of(2, 1), bench.of(1, 1)].concat();
    let (first, zeros) = (bench.of(2, 1), bench.of(0, 1));
    let mut unmap = vec![0, 22, 0, 16, 0, 0, 0, 0];
    unmap.extend([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0]);
    vec![
        (cdb16(0x8a, 0, 0, 2), two.clone(), two.clone()),
        (cdb16(0x8a, 0, 0, 2), part, cut),
        (cdb16(0x8e, 2, 0, 2), two.clone(), two.clone()),
        (cdb16(0x89, 0, 0, 2), [one, two.clone()].concat(), two.clone()),
        (cdb16(0x8b, 0, 0, 2), two.clone(), three),
        (vec![0x9c, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0], two.clone(), two.clone()),
        (cdb16(0x93, 0, 0, 2), first, two),
        (cdb16(0x93, 8, 0, 2), zeros, bench.of(0, 2)),
        (vec![0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0], unmap, bench.of(0, 2)),
    ]
}

#[test]
fn what_an_aborted_command_had_begun_is_there_before_a_later_command_looks() {
    run(async {
        let (count, _) = hanging().await;
        for at in 0..writers(&count).len() {
            let (bench, disk) = hanging().await;
            let (cdb, data, after) = writers(&bench).swap_remove(at);
            abort(&bench, &cdb, &data);
            disk.hang(false);
            let read = cdb16(0x88, 0, 0, 2);
            let mut later = pin!(bench.send(2, &read, &[]));
            assert!(!ready(later.as_mut()), "{cdb:x?} is not over");
            assert_eq!(bench.contents(4, 2).await, bench.of(1, 2), "other blocks");
            disk.permits.add_permits(2);
            assert_eq!(later.await.good(), after, "{cdb:x?}");
        }
    });
}

/// COMPARE AND WRITE as clusters lock by it: the second does not see the blocks before the first, whose
/// connection is gone, has written.
#[test]
fn an_aborted_compare_and_write_keeps_its_blocks_until_it_has_written() {
    run(async {
        let (bench, disk) = hanging().await;
        let swap = |from, to| [bench.of(from, 1), bench.of(to, 1)].concat();
        let cdb = cdb16(0x89, 0, 0, 1);
        abort(&bench, &cdb, &swap(1, 2));
        let second = swap(1, 3);
        let mut second = pin!(bench.send(2, &cdb, &second));
        assert!(!ready(second.as_mut()));
        disk.permits.add_permits(1);
        assert_eq!(second.await.code(), Some((SenseKey::Miscompare, crate::asc::MISCOMPARE)));
        assert_eq!(bench.contents(0, 1).await, bench.of(2, 1));
    });
}

#[test]
fn preempt_and_abort_is_answered_when_what_was_aborted_has_landed() {
    run(async {
        let (bench, disk) = hanging().await;
        for id in [1, 2] {
            bench.reserve_out(id, 6, 0, 0, id).await;
        }
        bench.reserve_out(1, 1, 5, 1, 0).await;
        abort(&bench, &cdb16(0x8a, 0, 0, 1), &bench.of(9, 1));
        let (cdb, list) = (super::reservations::out(5, 5), super::reservations::list(2, 1, 0));
        let mut preempt = pin!(bench.send(2, &cdb, &list));
        assert!(!ready(preempt.as_mut()), "the write can still land");
        disk.permits.add_permits(1);
        preempt.await.good();
        disk.hang(false);
        assert_eq!(bench.send(2, &cdb16(0x88, 0, 0, 1), &[]).await.good(), bench.of(9, 1));
    });
}

/// A disk that never answers: who logs in again and again piles nothing up.
#[test]
fn a_unit_with_many_aborted_writes_is_busy_until_they_end() {
    run(async {
        let (bench, disk) = hanging().await;
        for lba in 0..crate::unit::MAX_LATE as u64 {
            abort(&bench, &cdb16(0x8a, 0, lba, 1), &bench.of(2, 1));
        }
        let write = cdb16(0x8a, 0, 4000, 1);
        assert_eq!(bench.send(2, &write, &bench.of(3, 1)).await.status(), Status::Busy);
        bench.send(2, &[0x12, 0, 0, 0, 96, 0], &[]).await.good();
        disk.hang(false);
        disk.permits.add_permits(crate::unit::MAX_LATE);
        bench.units.remove(0).await.expect("it waits for them");
        bench.units.add(0, LogicalUnit::new(disk, [7; 16])).await.expect("there is none");
        bench.calm(1).await;
        assert_eq!(bench.contents(9, 1).await, bench.of(2, 1));
    });
}

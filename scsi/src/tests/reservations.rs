//! Reservations through commands.

use std::sync::atomic::Ordering;

use super::*;
use crate::asc;

/// Where the reservations of the bench's unit are kept.
const KEY: Key = ([7; 16], Kept::Reservations);

pub(super) fn out(action: u8, kind: u8) -> [u8; 10] {
    [0x5f, action, kind, 0, 0, 0, 0, 0, 24, 0]
}

pub(super) fn list(key: u64, new: u64, flags: u8) -> Vec<u8> {
    let mut list = key.to_be_bytes().to_vec();
    list.extend(new.to_be_bytes());
    list.extend([0, 0, 0, 0, flags, 0, 0, 0]);
    list
}

impl Bench {
    pub(super) async fn reserve_out(
        &self,
        id: u64,
        action: u8,
        kind: u8,
        key: u64,
        new: u64,
    ) -> Status {
        self.send(id, &out(action, kind), &list(key, new, 0)).await.status()
    }

    async fn reserve_in(&self, id: u64, action: u8) -> Vec<u8> {
        self.send(id, &[0x5e, action, 0, 0, 0, 0, 0, 0x40, 0, 0], &[]).await.good()
    }

    async fn may(&self, id: u64) -> (bool, bool) {
        let data = self.of(0, 1);
        let read = self.send(id, &cdb16(0x88, 0, 0, 1), &[]).await.status();
        let write = self.send(id, &cdb16(0x8a, 0, 0, 1), &data).await.status();
        for status in [read, write] {
            assert!(matches!(status, Status::Good | Status::ReservationConflict));
        }
        (read == Status::Good, write == Status::Good)
    }
}

#[test]
fn each_type_lets_holders_registrants_and_others_do_what_it_says() {
    run(async {
        let bench = Bench::new(512, |_| {}).await;
        let types = [
            (1, (true, false), (true, false)),
            (3, (false, false), (false, false)),
            (5, (true, true), (true, false)),
            (6, (true, true), (false, false)),
            (7, (true, true), (true, false)),
            (8, (true, true), (false, false)),
        ];
        for (kind, registrant, other) in types {
            for id in [1, 2] {
                assert_eq!(bench.reserve_out(id, 6, 0, 0, id).await, Status::Good);
            }
            assert_eq!(bench.reserve_out(1, 1, kind, 1, 0).await, Status::Good);
            assert_eq!(bench.may(1).await, (true, true), "type {kind}: the holder");
            assert_eq!(bench.may(2).await, registrant, "type {kind}: a registrant");
            assert_eq!(bench.may(3).await, other, "type {kind}: another");
            let held = bench.reserve_in(3, 1).await;
            assert_eq!(held[21], kind);
            let key = if kind > 6 { 0 } else { 1 };
            assert_eq!(held[8..16], u64::to_be_bytes(key));
            assert_eq!(bench.reserve_out(1, 3, 0, 1, 0).await, Status::Good);
            assert_eq!(bench.calm(2).await, [asc::RESERVATIONS_PREEMPTED]);
        }
    });
}

#[test]
fn who_is_preempted_is_told_and_cannot_write_any_more() {
    run(async {
        let bench = Bench::new(512, |_| {}).await;
        for id in [1, 2] {
            assert_eq!(bench.reserve_out(id, 0, 0, 0, id).await, Status::Good);
        }
        assert_eq!(bench.reserve_out(1, 1, 5, 1, 0).await, Status::Good);
        assert_eq!(bench.reserve_out(2, 5, 5, 2, 1).await, Status::Good);
        assert_eq!(bench.calm(1).await, [asc::REGISTRATIONS_PREEMPTED]);
        assert_eq!(bench.may(1).await, (true, false));
        let keys = bench.reserve_in(1, 0).await;
        assert_eq!(keys[..16], [0, 0, 0, 3, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 2]);
        assert_eq!(bench.reserve_out(1, 0, 0, 9, 1).await, Status::ReservationConflict);
    });
}

#[test]
fn full_status_names_ports_and_capabilities_are_eight_bytes() {
    run(async {
        let bench = Bench::new(512, |_| {}).await;
        bench.reserve_out(1, 6, 0, 0, 0xabcd).await;
        bench.reserve_out(1, 1, 3, 0xabcd, 0).await;
        let full = bench.reserve_in(2, 3).await;
        let name = &*nexus(1).initiator;
        assert_eq!(full[8..16], 0xabcdu64.to_be_bytes());
        assert_eq!((full[20], full[21]), (1, 3));
        assert_eq!(full[26..28], [0, 1]);
        assert_eq!(full[32], 0x45);
        assert_eq!(&full[36..36 + name.len()], name.as_bytes());
        let capabilities = bench.reserve_in(2, 2).await;
        assert_eq!(capabilities, [0, 8, 0x1c, 0x80, 0xea, 0x01, 0, 0]);
        for action in 4..32u8 {
            let answer = bench.send(2, &[0x5e, action, 0, 0, 0, 0, 0, 1, 0, 0], &[]).await;
            assert_eq!(answer.code(), Some((SenseKey::IllegalRequest, asc::FIELD_IN_CDB)));
        }
    });
}

#[test]
fn reservations_that_are_to_outlive_power_are_durable_before_the_answer() {
    run(async {
        let store = Arc::new(MemStore::default());
        let options = || UnitsOptions { store: Some(store.clone()), ..UnitsOptions::default() };
        let bench = Bench::with(512, options(), |_| {}).await;
        bench.send(1, &out(6, 0), &list(0, 1, 1)).await.good();
        assert_eq!(bench.reserve_out(1, 1, 3, 1, 0).await, Status::Good);
        // The next life has them, with PRGENERATION 0.
        let next = Bench::with(512, options(), |_| {}).await;
        assert_eq!(next.may(2).await, (false, false));
        assert_eq!(next.may(1).await, (true, true));
        assert_eq!(next.reserve_in(2, 0).await[..8], [0, 0, 0, 0, 0, 0, 0, 8]);
        // What cannot be kept does not happen.
        store.broken.store(true, Ordering::SeqCst);
        let refused = next.send(1, &out(3, 0), &list(1, 0, 0)).await;
        assert_eq!(refused.code(), Some((SenseKey::HardwareError, asc::INTERNAL_FAILURE)));
        assert_eq!(next.may(2).await, (false, false));
        store.broken.store(false, Ordering::SeqCst);
        next.send(1, &out(3, 0), &list(1, 0, 0)).await.good();
        assert_eq!(store.kept.lock().expect("no panic").get(&KEY), Some(&Vec::new()));
        // What is damaged is a reason to say so.
        store.kept.lock().expect("no panic").insert(KEY, vec![1, 2, 3]);
        let (_, disk) = disk(8, 512).await;
        let added = Units::new(options()).add(0, LogicalUnit::new(disk, [7; 16])).await;
        assert!(matches!(added, Err(UnitsError::Damaged(0))));
    });
}

#[test]
fn without_a_store_none_can_be_asked_to_outlive_power() {
    run(async {
        let bench = Bench::new(512, |_| {}).await;
        let refused = bench.send(1, &out(6, 0), &list(0, 1, 1)).await;
        assert_eq!(refused.code(), Some((SenseKey::IllegalRequest, asc::FIELD_IN_LIST)));
        assert_eq!(bench.reserve_in(1, 0).await[7], 0);
    });
}

#[test]
fn a_reserve_of_the_old_kind_ends_with_its_nexus_and_with_a_reset() {
    run(async {
        let bench = Bench::new(512, |_| {}).await;
        let (reserve, release) = ([0x16, 0, 0, 0, 0, 0], [0x17, 0, 0, 0, 0, 0]);
        bench.send(1, &reserve, &[]).await.good();
        bench.send(1, &reserve, &[]).await.good();
        let sense = [0x1a, 8, 0x3f, 0, 255, 0];
        assert_eq!(bench.send(2, &reserve, &[]).await.status(), Status::ReservationConflict);
        assert_eq!(bench.send(2, &sense, &[]).await.status(), Status::ReservationConflict);
        bench.send(2, &release, &[]).await.good();
        assert_eq!(bench.may(2).await, (false, false));
        bench.send(2, &[0x12, 0, 0, 0, 36, 0], &[]).await.good();
        bench.units.detach(&nexus(1));
        assert_eq!(bench.may(2).await, (true, true));
        bench.send(2, &reserve, &[]).await.good();
        bench.units.reset_unit(&nexus(2), Lun([0; 8]));
        bench.calm(3).await;
        assert_eq!(bench.may(3).await, (true, true));
    });
}

#[test]
fn a_move_gives_the_reservation_to_another_port() {
    run(async {
        let bench = Bench::new(512, |_| {}).await;
        bench.reserve_out(1, 6, 0, 0, 1).await;
        bench.reserve_out(1, 1, 3, 1, 0).await;
        let name = nexus(2).initiator.to_uppercase().replace(",I,0X", ",i,0x");
        let length = (name.len() + 1).next_multiple_of(4);
        let mut id = vec![0x45, 0];
        id.extend((length as u16).to_be_bytes());
        id.extend(name.as_bytes());
        id.resize(4 + length, 0);
        let mut list = 1u64.to_be_bytes().to_vec();
        list.extend(2u64.to_be_bytes());
        // UNREG; relative target port 1.
        list.extend([0, 2, 0, 1]);
        list.extend((id.len() as u32).to_be_bytes());
        list.extend(id);
        let cdb = [0x5f, 7, 0, 0, 0, 0, 0, 0, list.len() as u8, 0];
        bench.send(1, &cdb, &list).await.good();
        assert_eq!(bench.may(2).await, (true, true));
        assert_eq!(bench.may(1).await, (false, false));
    });
}

#[test]
fn a_command_that_waited_does_not_land_after_preempt_and_abort() {
    run(async {
        let bench = Bench::new(512, |_| {}).await;
        for id in [1, 2] {
            bench.reserve_out(id, 6, 0, 0, id).await;
        }
        bench.reserve_out(1, 1, 5, 1, 0).await;
        bench.on(0x8a, 0, 0, 1, &bench.of(1, 1)).await.good();
        // A write of the holder stands behind somebody else's step while it is preempted.
        let lun = Lun([0; 8]);
        let unit = bench.units.unit_for_tests(&nexus(1), lun).expect("it is there");
        let step = unit.ranges.alone(0, 1).await;
        let data = bench.of(9, 1);
        let cdb = cdb16(0x8a, 0, 0, 1);
        let mut late = Box::pin(bench.send(1, &cdb, &data));
        let waker = std::task::Waker::noop();
        let mut context = std::task::Context::from_waker(waker);
        assert!(late.as_mut().poll(&mut context).is_pending());
        let preempt_list = list(2, 1, 0);
        let preempt_cdb = out(5, 5);
        let mut preempt = Box::pin(bench.send(2, &preempt_cdb, &preempt_list));
        assert!(preempt.as_mut().poll(&mut context).is_pending(), "it waits for what is under way");
        drop(step);
        assert_eq!(late.await.status(), Status::ReservationConflict);
        preempt.await.good();
        let found = bench.send(2, &cdb16(0x88, 0, 0, 1), &[]).await.good();
        assert_eq!(found, bench.of(1, 1));
    });
}

/// A store that keeps what it is given, and whose futures never end while it is slow.
#[derive(Default)]
struct SlowStore {
    inner: MemStore,
    slow: std::sync::atomic::AtomicBool,
}

impl UnitStore for SlowStore {
    fn save<'a>(&'a self, unit: [u8; 16], kept: Kept, state: &'a [u8]) -> StoreFuture<'a, ()> {
        Box::pin(async move {
            self.inner.save(unit, kept, state).await?;
            if self.slow.load(Ordering::SeqCst) {
                std::future::pending::<()>().await;
            }
            Ok(())
        })
    }

    fn load(&self, unit: [u8; 16], kept: Kept) -> StoreFuture<'_, Option<Vec<u8>>> {
        self.inner.load(unit, kept)
    }
}

#[test]
fn a_change_that_was_aborted_does_not_stay_in_the_store() {
    run(async {
        let store = Arc::new(SlowStore::default());
        let options = UnitsOptions { store: Some(store.clone()), ..UnitsOptions::default() };
        let bench = Bench::with(512, options, |_| {}).await;
        bench.send(1, &out(6, 0), &list(0, 1, 1)).await.good();
        let kept = || store.inner.kept.lock().expect("no panic").get(&KEY).cloned();
        let before = kept();
        store.slow.store(true, Ordering::SeqCst);
        {
            let (cdb, list) = (out(1, 3), list(1, 0, 0));
            let mut reserve = Box::pin(bench.send(1, &cdb, &list));
            let mut context = std::task::Context::from_waker(std::task::Waker::noop());
            assert!(reserve.as_mut().poll(&mut context).is_pending());
        }
        assert_ne!(kept(), before, "it had reached the store");
        assert_eq!(bench.may(2).await, (true, true), "it never came into force");
        store.slow.store(false, Ordering::SeqCst);
        // The same key again: nothing changes, and the store knows.
        bench.send(1, &out(6, 0), &list(0, 1, 1)).await.good();
        assert_eq!(kept(), before);
    });
}

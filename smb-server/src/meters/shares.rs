//! What is done with each share.
//!
//! Connections of one share are spread over the parts of its meter, so that two of them seldom write
//! one cache line; where they do nothing is lost.

use std::sync::{
    Arc, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use metric_catalogue::{self as catalogue, Page};

use super::{
    BUCKETS, KINDS, bounded, bucket,
    path::{PathMeter, Phase},
};
use crate::Server;

/// Parts of a meter.
const PARTS: usize = 8;

/// Counters that some connections write.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Part {
    operations: [AtomicU64; KINDS.len()],
    moved: [AtomicU64; KINDS.len()],
    times: [[AtomicU64; BUCKETS]; KINDS.len()],
    micros: [AtomicU64; KINDS.len()],
}

/// Counters of one share.
#[derive(Debug, Default)]
pub struct ShareMeter {
    /// Where the time of its requests goes.
    pub path: PathMeter,
    parts: [Part; PARTS],
}

impl ShareMeter {
    /// Counts an answer of a connection that writes `part`: its kind, the bytes that it moved, and how
    /// long it took if that was measured.
    pub(super) fn count(&self, part: usize, kind: usize, moved: u64, micros: Option<u64>) {
        let add = |counter: &AtomicU64, n| {
            counter.fetch_add(n, Ordering::Relaxed);
        };
        let part = &self.parts[part % PARTS];
        add(&part.operations[kind], 1);
        if moved > 0 {
            add(&part.moved[kind], moved);
        }
        if let Some(micros) = micros {
            add(&part.times[kind][bucket(micros)], 1);
            add(&part.micros[kind], micros);
        }
    }

    /// Answers about the share.
    pub fn operations(&self) -> u64 {
        (0..KINDS.len()).map(|kind| self.sum(|part| &part.operations[kind])).sum()
    }

    fn sum(&self, counter: impl Fn(&Part) -> &AtomicU64) -> u64 {
        self.parts.iter().map(|part| counter(part).load(Ordering::Relaxed)).sum()
    }
}

/// Puts on a page what was done with the shares that are served now, by the names that people wrote.
pub(super) fn show(server: &Server, page: &mut Page) {
    let current = server.current();
    let meters = server.meters.shares.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let served = current.config.shares.iter();
    let all = served.filter_map(|(key, share)| Some((&*share.name, meters.get(key)?)));
    for (name, meter) in all {
        one(name, meter, page);
    }
}

fn one(name: &str, meter: &Arc<ShareMeter>, page: &mut Page) {
    for (index, kind) in KINDS.iter().enumerate() {
        let labels = [name, *kind];
        let operations = meter.sum(|part| &part.operations[index]);
        page.counter(&catalogue::SHARE_OPERATIONS, &labels, operations);
        let times: [u64; BUCKETS] =
            std::array::from_fn(|bucket| meter.sum(|part| &part.times[index][bucket]));
        let sum = meter.sum(|part| &part.micros[index]) as f64 / 1e6;
        page.histogram(&catalogue::SHARE_TIME, &labels, sum, &bounded(&times));
        if matches!(*kind, "read" | "write") {
            let moved = meter.sum(|part| &part.moved[index]);
            page.counter(&catalogue::SHARE_MOVED, &labels, moved);
        }
    }
    let path = meter.path.figures();
    // Space is given back to LUNs alone.
    for phase in Phase::ALL.into_iter().filter(|phase| *phase != Phase::Unmap) {
        let times = path.of(phase);
        let sum = times.nanos as f64 / 1e9;
        page.histogram(&catalogue::SHARE_PATH, &[name, phase.name()], sum, &times.coarse());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_many_connections_count_at_a_time_is_all_there() {
        let meter = Arc::<ShareMeter>::default();
        let each = |part: usize| {
            let meter = meter.clone();
            move || (0..1000).for_each(|n| meter.count(part, n % 3, 2, (n % 10 == 0).then_some(5)))
        };
        // More than there are parts: some share one.
        let threads: Vec<_> = (0..PARTS + 3).map(|part| std::thread::spawn(each(part))).collect();
        let count = threads.len() as u64;
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        let mut page = Page::default();
        one("vms", &meter, &mut page);
        let text = page.text();
        let has = |line: String| assert!(text.contains(&line), "{line} is not in\n{text}");
        let of = "{share=\"vms\",kind=\"read\"}";
        has(format!("bulkhead_smbd_share_operations_total{of} {}\n", 334 * count));
        has(format!("bulkhead_smbd_share_bytes_total{of} {}\n", 668 * count));
        has(format!("bulkhead_smbd_share_seconds_count{of} {}\n", 34 * count));
        assert!(!text.contains("share_bytes_total{share=\"vms\",kind=\"other\"}"), "{text}");
    }
}

//! Why a virtual disk is slow, by its figures: no clock, no machine.

use block_io::Times;
use host_api::{DiskCause, DiskPart};
use vmm::devices::virtio::times::DiskFigures;

/// Least times of a part of the way, for what is said of them to mean anything.
const SOME: u64 = 4;
/// 99 of 100 requests should end in this, in microseconds.
const SLOW: u64 = 20_000;
/// Making durable should, in microseconds, in the mean.
const FLUSH_SLOW: f64 = 10_000.0;
/// Part of the time from which on a part of the way is what is slow.
const MUCH: f64 = 0.3;
/// Requests at a time of which each waits for the others.
const DEEP: f64 = 8.0;
/// What one request of them takes if it were alone, in microseconds, where the storage is well.
const ALONE: f64 = 5_000.0;

/// Microseconds as people read them.
fn shown(micros: f64) -> String {
    match micros {
        micros if micros < 1e3 => format!("{micros:.0} µs"),
        micros if micros < 1e6 => format!("{:.1} ms", micros / 1e3),
        micros => format!("{:.1} s", micros / 1e6),
    }
}

fn line(name: &str, times: &Times) -> String {
    let (mean, most) = (shown(times.mean()), shown(times.quantile(0.99) as f64));
    format!("{name}: {} times, {mean} in the mean, 99 of 100 within {most}", times.count())
}

/// What one in a hundred exceeds, and some do: of few times a single one says nothing.
fn slowest(times: &Times) -> u64 {
    times.quantile((1.0 - SOME as f64 / times.count().max(1) as f64).clamp(0.0, 0.99))
}

fn part(figures: &DiskFigures, nanos: u64) -> f64 {
    nanos as f64 / figures.whole.nanos.max(1) as f64
}

/// How much time a cause costs, in nanoseconds, and the cause.
type Said = (u64, DiskCause);

fn cause(cost: u64, name: &str, sentence: String, evidence: Vec<String>) -> Said {
    (cost, DiskCause { cause: name.to_owned(), sentence, evidence })
}

/// The guest asks for more at a time than its storage can, or the storage is slow.
fn storage(figures: &DiskFigures) -> Option<Said> {
    let both = [("read", &figures.read), ("write", &figures.write)];
    let slow = |(_, times): &(&str, &Times)| times.count() >= SOME && slowest(times) >= SLOW;
    let (name, times) = both.into_iter().filter(slow).max_by_key(|(_, times)| times.nanos)?;
    let cost = figures.read.nanos + figures.write.nanos;
    if part(figures, cost) < MUCH {
        return None;
    }
    let (depth, most) = (figures.depth(), times.quantile(0.99) as f64);
    let evidence = vec![line(name, times), format!("{depth:.1} requests of the guest at a time")];
    if depth >= DEEP && most / depth < ALONE {
        let sentence = format!(
            "The guest has {depth:.0} requests under way at a time, so each waits for the others: one alone \
             would take {}. Its own queue is what is long: let it ask for less at a time, or spread its work \
             over more disks.",
            shown(times.mean() / depth)
        );
        return Some(cause(cost, "guest-queue", sentence, evidence));
    }
    let sentence = format!(
        "The storage is slow: one {name} in a hundred takes longer than {}, the way to it and back included. \
         Ask its server (bulkhead why).",
        shown(most * 0.8)
    );
    Some(cause(cost, "slow-storage", sentence, evidence))
}

fn flushes(figures: &DiskFigures) -> Option<Said> {
    let times = &figures.flush;
    if times.count() < SOME || times.mean() < FLUSH_SLOW || part(figures, times.nanos) < MUCH {
        return None;
    }
    let sentence = format!(
        "The storage takes {} to make something durable: ask its server (bulkhead why), or give it a write \
         cache that survives a loss of power.",
        shown(times.mean())
    );
    Some(cause(times.nanos, "slow-sync", sentence, vec![line("sync", times)]))
}

fn host(figures: &DiskFigures) -> Option<Said> {
    let waits = figures.host_nanos();
    let whole = &figures.whole;
    if whole.count() < SOME || slowest(whole) < SLOW || part(figures, waits) < MUCH {
        return None;
    }
    let each = waits as f64 / 1e3 / whole.count() as f64;
    let sentence = format!(
        "Requests wait in this host, {} each, before and after the storage has them: its processors are \
         busy, a limit of the disk holds them, or the storage was away.",
        shown(each)
    );
    Some(cause(waits, "host-queue", sentence, vec![line("whole", whole)]))
}

/// All causes, those first that cost most; none if nothing is wrong.
pub(super) fn causes(figures: &DiskFigures) -> Vec<DiskCause> {
    let rules = [storage, flushes, host];
    let mut said: Vec<Said> = rules.iter().filter_map(|rule| rule(figures)).collect();
    said.sort_by_key(|(cost, _)| std::cmp::Reverse(*cost));
    said.into_iter().map(|(_, cause)| cause).collect()
}

/// How it is, in a sentence.
pub(super) fn sentence(figures: &DiskFigures, causes: &[DiskCause], window: f64) -> String {
    match (causes.first(), figures.whole.count()) {
        (Some(cause), _) => cause.sentence.clone(),
        (None, 0) => {
            format!("Nothing is wrong: the guest asked nothing of it in the last {window:.0} s.")
        }
        (None, count) => format!(
            "Nothing is wrong: {count} requests in {window:.0} s, of which each took {}.",
            shown(figures.whole.mean())
        ),
    }
}

/// Where the time went.
pub(super) fn parts(figures: &DiskFigures) -> Vec<DiskPart> {
    let all = [
        ("whole", &figures.whole),
        ("read", &figures.read),
        ("write", &figures.write),
        ("sync", &figures.flush),
    ];
    let all = all.into_iter().filter(|(_, times)| times.count() > 0);
    let shown = all.map(|(name, times)| DiskPart {
        part: name.to_owned(),
        count: times.count(),
        mean_us: times.mean() as u64,
        p99_us: times.quantile(0.99),
    });
    let mut shown: Vec<_> = shown.collect();
    if let Some(whole) = shown.first() {
        let count = whole.count;
        // Only their sum is known: what the storage did not take.
        let mean_us = figures.host_nanos() / 1000 / count;
        shown.push(DiskPart { part: "host".to_owned(), count, mean_us, p99_us: 0 });
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(read: &[(u64, u64)], flush: &[(u64, u64)], more: u64, depth: u64) -> DiskFigures {
        let both = [read, flush].concat();
        let later: Vec<_> = both.iter().map(|(micros, count)| (micros + more, *count)).collect();
        DiskFigures {
            whole: Times::of(&later),
            read: Times::of(read),
            flush: Times::of(flush),
            met: (depth, 1),
            ..DiskFigures::default()
        }
    }

    #[test]
    fn each_part_of_the_way_is_named_and_alone() {
        let cases = [
            (vec![], figures(&[(300, 900)], &[(900, 40)], 20, 4), "Nothing is wrong: 940"),
            (vec![], DiskFigures::default(), "asked nothing"),
            // One among few, though it takes most of the time.
            (vec![], figures(&[(300, 50), (900_000, 1)], &[], 20, 1), "51 requests"),
            (vec!["guest-queue"], figures(&[(60_000, 900)], &[], 20, 32), "1.9 ms"),
            (vec!["slow-storage"], figures(&[(60_000, 900)], &[], 20, 1), "one read in a hundred"),
            // Deep, and slow even so.
            (vec!["slow-storage"], figures(&[(400_000, 900)], &[], 20, 16), "bulkhead why"),
            (vec!["slow-sync"], figures(&[(300, 900)], &[(45_000, 90)], 20, 4), "45.0 ms"),
            (vec!["host-queue"], figures(&[(300, 900)], &[], 30_000, 4), "30.0 ms each"),
        ];
        for (names, figures, words) in cases {
            let causes = causes(&figures);
            let found: Vec<_> = causes.iter().map(|it| it.cause.as_str()).collect();
            assert_eq!(found, names, "{figures:?}");
            let said = sentence(&figures, &causes, 30.0);
            assert!(said.contains(words), "{said}");
        }
    }

    #[test]
    fn what_the_host_takes_is_shown_beside_the_storage() {
        let shown = parts(&figures(&[(300, 900)], &[], 700, 4));
        let of = |name: &str| shown.iter().find(|it| it.part == name).map(|it| it.mean_us);
        assert_eq!((of("whole"), of("read"), of("host")), (Some(1000), Some(300), Some(700)));
        assert_eq!(of("write"), None);
        assert!(parts(&DiskFigures::default()).is_empty());
    }
}

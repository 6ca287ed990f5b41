//! Each cause by its figures, and none where nothing is wrong.

use super::*;

/// A share that is well: 3,000 operations in 30 s, from the page cache.
fn well() -> Facts {
    let path = PathFigures::default()
        .with(Phase::Queue, Times::of(&[(10, 3000)]))
        .with(Phase::Read, Times::of(&[(20, 2990), (300, 10)]))
        .with(Phase::Write, Times::of(&[(30, 1000)]))
        .with(Phase::Sync, Times::of(&[(900, 40)]))
        .with(Phase::Send, Times::of(&[(20, 3000)]));
    Facts {
        window: 30.0,
        operations: 3000,
        path,
        clients: Clients {
            batches: 500,
            under_way: 3000,
            credits: 512,
            rtt: (200, "192.0.2.7".to_owned()),
            segments: (100_000, 3),
            ..Clients::default()
        },
        machine: Machine {
            processors: 8.0,
            used: 0.5,
            waited: 0.02,
            aes: true,
            ..Machine::default()
        },
        device: Some(Device { name: "sda".to_owned(), busy: 0.2, queue: 0.4 }),
        ..Facts::default()
    }
}

fn names(facts: &Facts) -> Vec<String> {
    causes(facts).into_iter().map(|cause| cause.cause).collect()
}

fn with(phase: Phase, times: &[(u64, u64)]) -> Facts {
    let well = well();
    Facts { path: well.path.clone().with(phase, Times::of(times)), ..well }
}

#[test]
fn nothing_is_wrong_where_nothing_is() {
    assert_eq!(names(&well()), [""; 0]);
    assert!(sentence(&well(), &[]).starts_with("Nothing is wrong: 3000 operations"));
    let idle = Facts { window: 30.0, ..Facts::default() };
    assert_eq!(names(&idle), [""; 0]);
    assert!(sentence(&idle, &[]).contains("nobody asked"));
    // One slow answer, one lost segment, one break are no cause.
    let mut once = with(Phase::Read, &[(20, 2990), (90_000, 1)]);
    once.clients.segments = (100, 1);
    once.path = once.path.with(Phase::Break, Times::of(&[(500, 3)]));
    assert_eq!(names(&once), [""; 0]);
    // Neither is one among few, though it takes most of the time.
    let few = with(Phase::Read, &[(20, 50), (900_000, 1)]);
    assert_eq!(names(&few), [""; 0]);
    // A network is not slower than what nobody timed.
    let mut untimed = Facts { path: PathFigures::default(), ..well() };
    untimed.clients.rtt.0 = 20_000;
    assert_eq!(names(&untimed), [""; 0]);
}

#[test]
fn who_asks_for_one_thing_at_a_time_is_told_so() {
    let mut facts = well();
    facts.clients.under_way = facts.clients.batches;
    let said = sentence(&facts, &causes(&facts));
    assert!(said.starts_with("Nothing is wrong") && said.contains("one thing at a time"), "{said}");
}

#[test]
fn each_cause_is_named_by_its_figures_and_alone() {
    let change = |change: &dyn Fn(&mut Facts)| {
        let mut facts = well();
        change(&mut facts);
        facts
    };
    let slow = [(40_000, 2000), (90_000, 100)];
    let cases: Vec<(&str, Facts, &str)> = vec![
        ("slow-disk", with(Phase::Read, &slow), "one read in a hundred"),
        ("slow-disk", with(Phase::Write, &slow), "sda"),
        ("slow-sync", with(Phase::Sync, &[(45_000, 300)]), "45.0 ms"),
        (
            "disk-queue",
            change(&|it| {
                it.path = it.path.clone().with(Phase::Read, Times::of(&[(40_000, 3000)]));
                it.path = it.path.clone().with_storage_queue(32);
            }),
            "more to do than it can",
        ),
        (
            "fragmented-image",
            Facts {
                pieces: Some(Pieces { count: 40_000, bytes: 400 << 20 }),
                ..with(Phase::Read, &slow)
            },
            "40000 pieces",
        ),
        (
            "lost-channel",
            change(&|it| it.clients.lost = vec![("alice on 192.0.2.7".to_owned(), 1, 4)]),
            "1 of the 4",
        ),
        ("slow-wire", change(&|it| it.clients.rtt.0 = 20_000), "192.0.2.7"),
        ("retransmits", change(&|it| it.clients.segments = (10_000, 400)), "4 %"),
        ("lease-contention", with(Phase::Break, &[(2000, 900)]), "30 times a second"),
        (
            "lock-held",
            change(&|it| {
                let holder = Some("bob as \\\\VMS\\a.vhdx".to_owned());
                it.waiting = vec![Waiter { phase: Phase::Lock, seconds: 12.0, holder }];
            }),
            "bob as \\\\VMS\\a.vhdx has it locked",
        ),
        ("cipher", with(Phase::Crypto, &[(9000, 3000)]), "encrypted or signed"),
        (
            "cipher",
            change(&|it| {
                it.machine.aes = false;
                it.path = it.path.clone().with(Phase::Crypto, Times::of(&[(2500, 3000)]));
            }),
            "no instructions for AES",
        ),
        (
            "cipher",
            change(&|it| {
                it.clients.bytes = 3000 << 20;
                it.clients.ciphers = vec![Cipher::Aes128Gcm, Cipher::Aes128Ccm];
                it.path = it.path.clone().with(Phase::Read, Times::of(&[(3000, 3000)]));
                it.path = it.path.clone().with(Phase::Crypto, Times::of(&[(2500, 3000)]));
            }),
            "AES-128-CCM, which takes one block after the other",
        ),
        ("cpu-taken", change(&|it| it.machine.stolen = 2.0), "host below"),
        ("cpu-taken", change(&|it| it.machine.held_back = 0.5), "control group"),
        ("cpu-taken", change(&|it| it.machine.waited = 3.0), "other programs"),
        ("credits", change(&|it| it.clients.out_of_credits = 400), "limits.credits, which is 512"),
        ("server-queue", with(Phase::Queue, &[(25_000, 3000)]), "server itself"),
        ("slow-client", with(Phase::Send, &[(50_000, 3000)]), "Answers wait"),
        ("limit", change(&|it| it.limited = 1000), "max_iops"),
    ];
    for (name, facts, words) in cases {
        assert_eq!(names(&facts), [name]);
        let causes = causes(&facts);
        let said = sentence(&facts, &causes);
        assert!(said.contains(words), "{name}: {said}");
        assert!(!causes[0].evidence.is_empty(), "{name} has no evidence");
    }
}

#[test]
fn what_costs_most_comes_first() {
    let mut facts = with(Phase::Read, &[(100_000, 3000)]);
    facts.clients.lost = vec![("alice".to_owned(), 1, 2)];
    assert_eq!(names(&facts), ["slow-disk", "lost-channel"]);
}

#[test]
fn a_busy_server_whose_threads_wait_for_each_other_is_not_robbed() {
    let mut facts = well();
    facts.machine = Machine { used: 7.0, waited: 2.0, ..facts.machine };
    assert_eq!(names(&facts), [""; 0]);
}

#[test]
fn parts_without_times_are_not_shown() {
    let shown: Vec<_> = phases(&well().path).into_iter().map(|it| it.phase).collect();
    assert_eq!(shown, ["queue", "read", "write", "sync", "send"]);
}

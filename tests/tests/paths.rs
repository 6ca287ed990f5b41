//! Two networks between client and server: both are used, and either may fail.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bulkhead_tests::{
    ledger::{Ledger, Load},
    paths::{End, Path, Paths},
    smbd::{PASSWORD, Smbd, USER},
};
use rustix::process::Signal;
use smb_client::{Client, ConnectOptions, Create, Login, OpenOptions, RemoteFile, Session};

const SHARE: &str = "[[share]]\nname = \"ca\"\npath = \"files\"\nusers = [\"admin\"]\n\
                     continuously_available = true";

/// Runs a test on threads at the client's end of two paths, with a server at the other.
fn between(test: impl AsyncFnOnce(&Paths, &Smbd)) {
    let Some(paths) = Paths::new() else { return };
    paths.enter();
    // Nobody else is in this network.
    let address = paths.server(Path::A, 4445);
    let server = Smbd::start_within(&paths.namespace(End::Server), address, "", SHARE);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(test(&paths, &server));
    drop(runtime);
    drop(server);
}

async fn open(server: &Smbd, channels: u16, name: &str) -> (Session, Arc<RemoteFile>) {
    let login = Login::new(USER, PASSWORD);
    let options = ConnectOptions {
        max_channels: channels,
        ..ConnectOptions::new(&server.address().ip().to_string(), server.port(), login)
    };
    let session = Client::connect(options).await.unwrap();
    let tree = session.tree("ca").await.unwrap();
    let file = tree.open(name, OpenOptions::create(Create::New)).await.unwrap();
    (session, Arc::new(file))
}

/// Waits until a condition holds.
async fn until(what: &str, condition: impl AsyncFn() -> bool) {
    let since = Instant::now();
    while !condition().await {
        assert!(since.elapsed() < Duration::from_secs(60), "{what}: not within a minute");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn channels(session: &Session, count: usize) {
    until("channels", async || session.channels().await.unwrap().len() == count).await;
}

#[test]
fn both_paths_carry_and_two_channels_carry_more() {
    between(async |paths, server| {
        Path::BOTH.iter().for_each(|path| paths.slow(*path, 200));
        let mut rates = Vec::new();
        for count in [1, 2] {
            let (session, file) = open(server, count, &format!("disk{count}")).await;
            channels(&session, count.into()).await;
            let load = Load { depth: 16, blocks: 8, block: 64 << 10, seed: 3 };
            let before = Path::BOTH.map(|path| paths.carried(path));
            let (since, ledger) = (Instant::now(), Ledger::start(&file, load));
            ledger.go_on(500).await;
            let rate = ledger.bytes() as f64 / since.elapsed().as_secs_f64() / 1e6;
            ledger.end().await.unwrap();
            let carried = [0, 1].map(|at| paths.carried(Path::BOTH[at]) - before[at]);
            println!("{count} channels: {rate:.1} MB/s, bytes by path {carried:?}");
            let [a, b] = carried;
            match count {
                1 => assert!(b < a / 20, "one channel uses one path: {carried:?}"),
                _ => assert!(a > b / 4 && b > a / 4, "both paths carry: {carried:?}"),
            }
            rates.push(rate);
        }
        println!("two channels: {:.2} times one", rates[1] / rates[0]);
    });
}

#[derive(Debug, Clone, Copy)]
enum Cut {
    Link(End),
    Silence,
}

#[test]
fn either_path_may_fail_and_is_used_again() {
    between(async |paths, server| {
        let (session, file) = open(server, 2, "disk").await;
        channels(&session, 2).await;
        let ledger = Ledger::start(&file, Load { depth: 16, blocks: 16, block: 16384, seed: 5 });
        for cut in [Cut::Link(End::Client), Cut::Link(End::Server), Cut::Silence] {
            for path in Path::BOTH {
                ledger.go_on(200).await;
                let _ = (ledger.longest_pause(), ledger.slowest_request());
                let since = Instant::now();
                let set = |broken: bool| match cut {
                    Cut::Link(end) => paths.link(path, end, !broken),
                    Cut::Silence => paths.swallow(path, broken),
                };
                set(true);
                channels(&session, 1).await;
                let noticed = since.elapsed();
                ledger.go_on(500).await;
                // What was lost with the path was answered, too.
                ledger.each_goes_on().await;
                let (pause, slowest) = (ledger.longest_pause(), ledger.slowest_request());
                set(false);
                let since = Instant::now();
                let before = paths.carried(path);
                until("the path is used", async || paths.carried(path) > before + (1 << 20)).await;
                println!(
                    "{path:?} {cut:?}: noticed after {noticed:?}, slowest request {slowest:?}, \
                     longest time without any answer {pause:?}, used again after {:?}",
                    since.elapsed()
                );
                channels(&session, 2).await;
            }
        }
        ledger.end().await.unwrap();
    });
}

/// Channels come and go with what the server offers, while requests are under way.
#[test]
fn an_interface_that_is_not_offered_any_more_is_left_alone() {
    between(async |paths, server| {
        let (session, file) = open(server, 4, "disk").await;
        channels(&session, 2).await;
        let ledger = Ledger::start(&file, Load { depth: 8, blocks: 16, block: 4096, seed: 4 });
        ledger.go_on(100).await;
        let config = std::fs::read_to_string(server.config()).unwrap();
        let hidden = "\n[[interface]]\nname = \"b1\"\noffered = false\n";
        std::fs::write(server.config(), format!("{config}{hidden}")).unwrap();
        server.signal(Signal::HUP);
        channels(&session, 1).await;
        let before = paths.carried(Path::B);
        ledger.go_on(500).await;
        assert!(paths.carried(Path::B) < before + 100_000, "it is still used");
        std::fs::write(server.config(), config).unwrap();
        server.signal(Signal::HUP);
        channels(&session, 2).await;
        ledger.go_on(100).await;
        ledger.end().await.unwrap();
    });
}

/// Both at once is a lost session, which comes back by whichever path is there: here not by the
/// one that was dialled.
#[test]
fn a_session_comes_back_by_the_other_path() {
    between(async |paths, server| {
        let (session, file) = open(server, 2, "disk").await;
        channels(&session, 2).await;
        let ledger = Ledger::start(&file, Load { depth: 4, blocks: 16, block: 4096, seed: 9 });
        ledger.go_on(100).await;
        paths.swallow(Path::A, true);
        paths.swallow(Path::B, true);
        // While there is no session nobody can say what its channels are.
        let lost = async || {
            tokio::time::timeout(Duration::from_millis(100), session.channels()).await.is_err()
        };
        until("the session is lost", lost).await;
        paths.swallow(Path::B, false);
        ledger.go_on(100).await;
        let addresses = session.channels().await.unwrap();
        assert!(addresses.iter().all(|(_, server)| *server == Path::B.address(End::Server)));
        ledger.each_goes_on().await;
        println!("both paths silent, one for good: slowest request {:?}", ledger.slowest_request());
        paths.swallow(Path::A, false);
        channels(&session, 2).await;
        ledger.end().await.unwrap();
    });
}

//! What clients meet when another node has taken over: they are told, they are reset, and all that they
//! had is there.

use std::{
    io::{ErrorKind, Read},
    net::{IpAddr, SocketAddr, TcpStream},
    sync::Arc,
    time::{Duration, Instant},
};

use block_io::{Disk, File};
use bulkhead_tests::{
    cluster::{
        FLOATING, Nodes, Setup, WITNESS,
        network::{Named, in_a_network_of_its_own},
        writer::{Writer, options},
    },
    initiator::TARGET,
    iscsi::{lun, thin},
    port::Port,
    process::{ours, run},
    smbd::USER,
};
use iscsi::initiator::{Initiator, InitiatorError, Options, ReservationType};
use smb_client::{Client, ConnectOptions, Create, OpenOptions, Witness};

const LIMIT: Duration = Duration::from_secs(120);
/// Longer than any test.
const NEVER: Duration = Duration::from_secs(3600);

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap()
}

/// A client that would notice a silent server by nothing but what others tell it.
fn deaf(nodes: &Nodes) -> ConnectOptions {
    ConnectOptions {
        keep_alive: NEVER,
        request_timeout: NEVER,
        connect_timeout: Duration::from_secs(10),
        ..options(nodes)
    }
}

/// Waits until a client waits to be told by a node that another one than it uses.
fn until_registered(nodes: &Nodes, with: usize) {
    let since = Instant::now();
    let socket = nodes.witness_socket(with);
    loop {
        let mut command = std::process::Command::new(ours("bulkhead"));
        command.args(["witness", "--json", "--socket"]).arg(&socket).arg("list");
        let output = run(&mut command, LIMIT);
        let list: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let floating = FLOATING.to_string();
        let waits = |it: &serde_json::Value| it["waiting"] == true && it["address"] == *floating;
        if list["clients"].as_array().is_some_and(|all| all.iter().any(waits)) {
            return;
        }
        assert!(since.elapsed() < LIMIT, "{list}\n{}", nodes.logs());
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_client_of_a_node_that_falls_silent_is_told_by_another_and_goes_on() {
    let name = "a_client_of_a_node_that_falls_silent_is_told_by_another_and_goes_on";
    if !in_a_network_of_its_own(name, LIMIT * 2) {
        return;
    }
    runtime().block_on(async {
        let setup = Setup { networks: true, more: WITNESS.to_owned(), ..Setup::default() };
        let mut nodes = Nodes::start(&setup).unwrap();
        let (first, generation) = nodes.wait_until_served(0);
        nodes.wait_for_members(2);
        let network = Arc::new(Named { name: "files", address: FLOATING.into() });
        let writer = Writer::start(
            ConnectOptions {
                host: "files".to_owned(),
                network: Some(network),
                witness: Witness::Mapped,
                ..deaf(&nodes)
            },
            "disk",
        )
        .await;
        writer.goes_on().await;
        let other = 1 - first;
        until_registered(&nodes, other);
        // Nothing of it reaches anybody any more, and nobody is told so by the network.
        nodes.cut(first, true);
        nodes.kill(first);
        let (second, generation) = nodes.wait_until_served(generation);
        assert_eq!(second, other);
        writer.goes_on().await;
        nodes.cut(first, false);
        nodes.launch(first);
        nodes.wait_for_members(2);
        // And back, as an administrator wants it.
        until_registered(&nodes, first);
        nodes.must(0, &["move", "vms", &(first + 1).to_string(), "--reason", "home"]);
        assert_eq!(nodes.wait_until_served(generation + 1).0, first);
        writer.goes_on().await;
        until_registered(&nodes, other);
        writer.end(&nodes.files()).await;
    });
}

/// Nobody tells this client anything, and it says nothing itself: it would wait for ever.
#[test]
fn a_connection_that_only_listens_is_reset_when_its_address_has_moved() {
    let name = "a_connection_that_only_listens_is_reset_when_its_address_has_moved";
    if !in_a_network_of_its_own(name, LIMIT) {
        return;
    }
    let setup = Setup { networks: true, ..Setup::default() };
    let mut nodes = Nodes::start(&setup).unwrap();
    let (first, generation) = nodes.wait_until_served(0);
    nodes.wait_for_members(2);
    let runtime = runtime();
    // Whoever has logged in is not sent away.
    let session = runtime.block_on(Client::connect(deaf(&nodes))).unwrap();
    let mut silent = TcpStream::connect(SocketAddr::from((IpAddr::from(FLOATING), 445))).unwrap();
    silent.set_read_timeout(Some(LIMIT)).unwrap();
    nodes.wait_for_peers(2);
    nodes.cut(first, true);
    nodes.kill(first);
    let error = silent.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    nodes.wait_until_served(generation);
    let tree = runtime.block_on(session.tree("vms"));
    tree.expect("it has found the other node");
}

/// Nor is an initiator told that says nothing while it waits for an answer.
#[test]
fn an_initiator_whose_targets_have_moved_is_reset() {
    let name = "an_initiator_whose_targets_have_moved_is_reset";
    if !in_a_network_of_its_own(name, LIMIT) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let image = thin(folder.path(), "lun", 16 << 20);
    let setup = Setup {
        networks: true,
        more: format!(
            "[[target]]\nname = \"{TARGET}\"\nauthentication = \"none\"\n{}",
            lun(0, &image, "")
        ),
        role: format!("targets = [\"{TARGET}\"]\niscsi_listen = [\"{FLOATING}:3260\"]"),
        ..Setup::default()
    };
    let mut nodes = Nodes::start(&setup).unwrap();
    let (first, _) = nodes.wait_until_served(0);
    nodes.wait_for_members(2);
    let portals = vec![format!("{FLOATING}:3260")];
    let options = Options::new(portals, TARGET, 0, "iqn.2024-01.test:deaf".to_owned()).unwrap();
    let options = Options { keep_alive: LIMIT * 9, command_time: LIMIT * 9, ..options };
    runtime().block_on(async {
        let disk = Initiator::connect(options).await.unwrap();
        disk.write_at(0, &[1; 4096]).await.unwrap();
        nodes.wait_for_peers(1);
        nodes.cut(first, true);
        nodes.kill(first);
        disk.write_at(4096, &[2; 4096]).await.unwrap();
        let mut found = [0; 8192];
        disk.read_at(0, &mut found).await.unwrap();
        assert_eq!((&found[..4096], &found[4096..]), (&[1; 4096][..], &[2; 4096][..]));
        disk.close().await.unwrap();
    });
}

/// A transaction of etcd has 128 steps: what so many opens need at once is more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_opens_are_taken_over_and_closed_at_once() {
    const COUNT: usize = 1000;
    let Some(mut nodes) = Nodes::start(&Setup::default()) else { return };
    let (first, generation) = nodes.wait_until_served(0);
    nodes.wait_for_members(2);
    let session = Client::connect(options(&nodes)).await.unwrap();
    let tree = session.tree("vms").await.unwrap();
    let mut files = Vec::new();
    for n in 0..COUNT {
        let new = OpenOptions::create(Create::New);
        let file = tree.open(&format!("f{n}"), new).await.unwrap();
        assert!(file.is_durable());
        files.push(file);
    }
    assert!(nodes.stored() >= COUNT);
    nodes.kill(first);
    let (second, _) = nodes.wait_until_served(generation);
    assert_ne!(second, first);
    for (n, file) in files.iter().enumerate() {
        file.write_at(0, &n.to_le_bytes()).await.unwrap();
    }
    for n in 0..COUNT {
        assert_eq!(std::fs::read(nodes.files().join(format!("f{n}"))).unwrap(), n.to_le_bytes());
    }
    assert!(nodes.stored() >= COUNT);
    // All of them are closed at once.
    let socket = nodes.role_folder(second).join("admin.sock");
    let mut command = std::process::Command::new(ours("bulkhead"));
    command.args(["server", "--socket"]).arg(socket).args(["disconnect", "--user", USER]);
    assert!(run(&mut command, LIMIT).status.success());
    let since = Instant::now();
    while nodes.stored() > 0 {
        assert!(since.elapsed() < LIMIT, "{} are left", nodes.stored());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let logs = nodes.logs();
    assert!(!logs.contains("is lost"), "{logs}");
    drop(files);
}

/// A disk on a target of the role, and another initiator that has no right to it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lun_and_its_reservation_go_over_with_their_role() {
    const KEY: u64 = 0x1234;
    let (folder, port) = (tempfile::tempdir().unwrap(), Port::reserve());
    let image = thin(folder.path(), "lun", 16 << 20);
    let setup = Setup {
        more: format!(
            "[[target]]\nname = \"{TARGET}\"\nauthentication = \"none\"\n{}",
            lun(0, &image, "")
        ),
        role: format!("targets = [\"{TARGET}\"]\niscsi_listen = [\"{}\"]", port.address()),
        ..Setup::default()
    };
    let Some(mut nodes) = Nodes::start(&setup) else { return };
    let (first, generation) = nodes.wait_until_served(0);
    nodes.wait_for_members(2);
    let options = |name: &str| {
        Options::new(
            vec![port.address().to_string()],
            TARGET,
            0,
            format!("iqn.2024-01.test:{name}"),
        )
        .unwrap()
    };
    let disk = Initiator::connect(options("owner")).await.unwrap();
    disk.register(KEY, true).await.unwrap();
    disk.reserve(KEY, ReservationType::WriteExclusive).await.unwrap();
    let block = |n: u8| vec![n; 4096];
    for n in 0..100u8 {
        disk.write_at(u64::from(n) * 4096, &block(n)).await.unwrap();
        if n == 50 {
            nodes.kill(first);
        }
    }
    disk.flush().await.unwrap();
    let (second, generation) = nodes.wait_until_served(generation);
    assert_ne!(second, first);
    let stranger = Initiator::connect(options("stranger")).await.unwrap();
    let refused = stranger.write_at(0, &block(0xff)).await;
    assert!(refused.is_err(), "it is reserved for another");
    assert!(matches!(
        stranger.reserve(1, ReservationType::WriteExclusive).await,
        Err(InitiatorError::ReservationConflict)
    ));
    let found = disk.reservations().await.unwrap();
    assert_eq!(found.reservation.map(|it| it.key), Some(KEY));
    // A planned move, too, loses nothing.
    nodes.launch(first);
    nodes.wait_for_members(2);
    nodes.must(0, &["move", "vms", &(first + 1).to_string()]);
    nodes.wait_until_served(generation + 1);
    disk.write_at(100 * 4096, &block(100)).await.unwrap();
    for n in 0..=100u8 {
        let mut found = block(0);
        disk.read_at(u64::from(n) * 4096, &mut found).await.unwrap();
        assert_eq!(found, block(n), "block {n}");
    }
    assert_eq!(disk.reservations().await.unwrap().reservation.map(|it| it.key), Some(KEY));
    disk.close().await.unwrap();
}

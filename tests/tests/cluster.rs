//! A file server that goes from node to node while a client writes: every acknowledged block is there, and
//! a node that comes late changes nothing.

use std::{
    fs,
    os::unix::{
        fs::{FileExt, PermissionsExt},
        process::ExitStatusExt,
    },
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use block_io::File;
use bulkhead_tests::{
    Need,
    cluster::{Nodes, Setup},
    process::{foreign, ours, run},
    skip,
    smbd::{PASSWORD, USER},
};
use rustix::process::Signal;
use smb_client::{Client, ConnectOptions, Create, Login, OpenOptions};
use tokio::task::JoinHandle;

const LIMIT: Duration = Duration::from_secs(120);
const BLOCK: usize = 4096;
const BLOCKS: u64 = 64;
/// Set where the network is our own.
const INSIDE: &str = "BULKHEAD_TEST_NETWORK";

/// Runs a test once more in a new network; `true` in there, when its body is to be run.
fn in_a_network_of_its_own(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        let up = run(Command::new("ip").args(["link", "set", "lo", "up"]), LIMIT);
        assert!(up.status.success(), "no loopback: {}", String::from_utf8_lossy(&up.stderr));
        return true;
    }
    for program in ["unshare", "nsenter", "ip", "etcd"] {
        if foreign(program).is_none() {
            return false;
        }
    }
    if !rustix::process::geteuid().is_root() {
        skip(Need::Root.because("networks of one's own need root"));
        return false;
    }
    let ourselves = std::env::current_exe().unwrap();
    let mut command = Command::new("unshare");
    command.arg("--net").arg(ourselves).args(["--exact", test, "--nocapture"]).env(INSIDE, "1");
    let output = run(&mut command, LIMIT * 4);
    let (out, error) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}{error}");
    false
}

/// A client that writes numbered blocks over and over, one after the other.
struct Writer {
    stop: Arc<AtomicBool>,
    /// The last number that was acknowledged.
    written: Arc<AtomicU64>,
    task: JoinHandle<u64>,
}

fn block(n: u64) -> Vec<u8> {
    n.to_le_bytes().repeat(BLOCK / 8)
}

impl Writer {
    async fn start(nodes: &Nodes) -> Self {
        let address = nodes.address;
        let login = Login::new(USER, PASSWORD);
        let options = ConnectOptions {
            keep_alive: Duration::from_millis(500),
            connect_timeout: Duration::from_secs(1),
            request_timeout: Duration::from_secs(3600),
            reconnect_timeout: Duration::from_secs(60),
            ..ConnectOptions::new(&address.ip().to_string(), address.port(), login)
        };
        let session = Client::connect(options).await.unwrap();
        let tree = session.tree("vms").await.unwrap();
        let file = tree.open("disk", OpenOptions::create(Create::New)).await.unwrap();
        assert!(file.is_durable());
        let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counted) = (stop.clone(), written.clone());
        let task = tokio::spawn(async move {
            let mut n = 0;
            while !stopped.load(Ordering::SeqCst) {
                n += 1;
                file.write_at(n % BLOCKS * BLOCK as u64, &block(n)).await.unwrap();
                counted.store(n, Ordering::SeqCst);
                if n.is_multiple_of(100) {
                    let before = n - 50;
                    let mut found = vec![0; BLOCK];
                    file.read_at(before % BLOCKS * BLOCK as u64, &mut found).await.unwrap();
                    assert_eq!(found, block(before));
                }
            }
            File::close(&file).await.unwrap();
            n
        });
        Self { stop, written, task }
    }

    /// Waits until it has written some more.
    async fn goes_on(&self) {
        let from = self.written.load(Ordering::SeqCst);
        let more = async {
            while self.written.load(Ordering::SeqCst) < from + 20 && !self.task.is_finished() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(LIMIT, more).await.expect("the client goes on");
        assert!(!self.task.is_finished(), "the client has seen an error");
    }

    /// Ends it; all that it has written is there.
    async fn end(self, files: &Path) {
        self.stop.store(true, Ordering::SeqCst);
        let last = tokio::time::timeout(LIMIT, self.task).await.expect("it ends").unwrap();
        let disk = fs::File::open(files.join("disk")).unwrap();
        for n in last.saturating_sub(BLOCKS - 1).max(1)..=last {
            let mut found = vec![0; BLOCK];
            disk.read_exact_at(&mut found, n % BLOCKS * BLOCK as u64).unwrap();
            assert_eq!(found, block(n), "block {n}");
        }
    }
}

/// Needs no root: two nodes on loopback, of which one is killed; then planned moves.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_killed_drained_or_stopped_costs_a_client_a_pause() {
    let Some(mut nodes) = Nodes::start(&Setup::default()) else { return };
    let (first, generation) = nodes.wait_until_served(0);
    nodes.wait_for_members(2);
    let writer = Writer::start(&nodes).await;
    writer.goes_on().await;
    let identity = fs::read(nodes.role_folder(first).join("server-guid")).unwrap();
    // The server of the role alone: its node starts it again.
    let pids = nodes.serving(first);
    let pid = rustix::process::Pid::from_raw(pids[0].cast_signed()).unwrap();
    rustix::process::kill_process(pid, Signal::KILL).unwrap();
    writer.goes_on().await;
    assert_eq!(nodes.wait_until_served(0), (first, generation));
    // The whole node.
    nodes.kill(first);
    let (second, generation) = nodes.wait_until_served(generation);
    assert_ne!(first, second);
    writer.goes_on().await;
    let same = fs::read(nodes.role_folder(second).join("server-guid")).unwrap();
    assert_eq!(same, identity, "the SIDs of users are others");
    nodes.launch(first);
    nodes.wait_for_members(2);
    let home = (first + 1).to_string();
    nodes.must(0, &["move", "vms", &home, "--reason", "home"]);
    let (third, generation) = nodes.wait_until_served(generation + 1);
    assert_eq!(third, first);
    writer.goes_on().await;
    nodes.must(first, &["drain", "--reason", "new disk"]);
    let (fourth, generation) = nodes.wait_until_served(generation);
    assert_eq!(fourth, second);
    writer.goes_on().await;
    let error = nodes.cluster(0, &["move", "vms", &home]);
    let error = String::from_utf8_lossy(&error.stderr).into_owned();
    assert!(error.contains("cannot take role vms: it is draining"), "{error}");
    nodes.must(first, &["resume"]);
    // Whoever ends in an orderly way gives everything away first.
    nodes.stop(second);
    let (fifth, _) = nodes.wait_until_served(generation);
    assert_eq!(fifth, first);
    writer.goes_on().await;
    writer.end(&nodes.files()).await;
    let history = nodes.must(0, &["history", "vms"]);
    for why in [
        "nobody had it",
        &format!("node {home} was lost"),
        &format!("moved to node {home}: home"),
        &format!("node {home} is drained: new disk"),
        &format!("node {} has left", second + 1),
    ] {
        assert!(history.contains(why), "{why:?} is not in\n{history}");
    }
    assert_eq!(nodes.status()["nodes"][&(second + 1).to_string()]["state"], "down");
    let error = nodes.cluster(first, &["remove", &home]);
    assert!(String::from_utf8_lossy(&error.stderr).contains("drain it and stop it first"));
    nodes.must(first, &["remove", &(second + 1).to_string()]);
    assert!(nodes.status()["nodes"].get((second + 1).to_string()).is_none());
}

/// Nodes with networks of their own, and an address that floats among them.
#[test]
fn a_node_that_stands_still_is_taken_over_from_and_changes_nothing_when_it_goes_on() {
    let name = "a_node_that_stands_still_is_taken_over_from_and_changes_nothing_when_it_goes_on";
    if !in_a_network_of_its_own(name) {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let setup = Setup { nodes: 3, members: 3, lease: 3, networks: true, ..Setup::default() };
        let mut nodes = Nodes::start(&setup).unwrap();
        let (first, mut generation) = nodes.wait_until_served(0);
        nodes.wait_for_members(3);
        let writer = Writer::start(&nodes).await;
        let mut owner = first;
        for round in 0..2 {
            writer.goes_on().await;
            let pids = nodes.serving(owner);
            assert!(!pids.is_empty());
            nodes.signal(owner, Signal::STOP);
            let (next, now) = nodes.wait_until_served(generation);
            assert_ne!(next, owner, "round {round}");
            writer.goes_on().await;
            // The server did not wait to be continued.
            let gone = |pid: &u32| {
                let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
                stat.is_empty() || stat.contains(") Z ")
            };
            assert!(pids.iter().all(gone), "a server that stands still is there still");
            nodes.signal(owner, Signal::CONT);
            nodes.wait_for_members(3);
            writer.goes_on().await;
            assert_eq!(nodes.wait_until_served(0), (next, now));
            (owner, generation) = (next, now);
        }
        // A leader of etcd that is killed moves nothing, or costs a pause.
        let leader = nodes.etcd.wait_for_leader();
        nodes.etcd.kill(leader);
        writer.goes_on().await;
        nodes.etcd.restart(leader);
        // Without a quorum everything stops; when there is one again, everything goes on.
        let (_, before) = nodes.wait_until_served(0);
        nodes.etcd.kill(0);
        nodes.etcd.kill(1);
        let since = std::time::Instant::now();
        while (0..3).any(|at| !nodes.serving(at).is_empty()) {
            assert!(since.elapsed() < LIMIT, "a role is served without a lease");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        nodes.etcd.restart(0);
        nodes.etcd.restart(1);
        nodes.etcd.wait_for_leader();
        nodes.wait_until_served(before);
        writer.goes_on().await;
        let (owner, generation) = nodes.wait_until_served(0);
        nodes.kill(owner);
        nodes.wait_until_served(generation);
        writer.goes_on().await;
        writer.end(&nodes.files()).await;
    });
}

/// Without an agent's word nothing is taken from a node that is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_taken_over_before_an_agent_says_that_the_node_has_ended() {
    let folder = tempfile::tempdir().unwrap();
    let (agent, word) = (folder.path().join("agent"), folder.path().join("word"));
    // It notes whom it is asked to end, and succeeds once there is a word.
    let script = format!(
        "#!/bin/sh\necho \"$BULKHEAD_FENCED_NODE $1\" >> {0}/asked\n[ -e {1} ]\n",
        folder.path().display(),
        word.display()
    );
    fs::write(&agent, script).unwrap();
    fs::set_permissions(&agent, fs::Permissions::from_mode(0o755)).unwrap();
    let of = |node: usize| {
        let agent = agent.display();
        format!("[[cluster.fence_agent]]\nnode = {node}\ncommand = [\"{agent}\", \"off\"]\n")
    };
    let fence = format!("fence = \"agent\"\n{}{}", of(1), of(2));
    let Some(mut nodes) = Nodes::start(&Setup { fence, ..Setup::default() }) else { return };
    let (first, generation) = nodes.wait_until_served(0);
    nodes.wait_for_members(2);
    let writer = Writer::start(&nodes).await;
    writer.goes_on().await;
    nodes.kill(first);
    let asked = folder.path().join("asked");
    let wanted = format!("{} off\n", first + 1).repeat(2);
    let since = std::time::Instant::now();
    while !fs::read_to_string(&asked).is_ok_and(|said| said.starts_with(&wanted)) {
        assert!(since.elapsed() < LIMIT, "no agent was asked twice\n{}", nodes.logs());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let status = nodes.status();
    assert_eq!(status["roles"]["vms"]["state"], "lost", "{status}");
    assert_eq!(status["roles"]["vms"]["generation"], generation);
    fs::write(&word, "").unwrap();
    let (second, _) = nodes.wait_until_served(generation);
    assert_ne!(second, first);
    writer.goes_on().await;
    writer.end(&nodes.files()).await;
}

/// What is wrong is told by name, before anything is served.
#[test]
fn a_cluster_that_is_not_set_up_is_told_what_is_missing() {
    let Some(nodes) = Nodes::start(&Setup { nodes: 1, ..Setup::default() }) else { return };
    nodes.wait_until_served(0);
    let twice = nodes.cluster(0, &["init"]);
    assert!(String::from_utf8_lossy(&twice.stderr).contains("a cluster test in this etcd already"));
    let found = nodes.must(0, &["validate"]);
    for wanted in ["is version 3.", "node 1 is one of its", "names no mounts", "without TLS"] {
        assert!(found.contains(wanted), "{wanted:?} is not in\n{found}");
    }
    let text = fs::read_to_string(nodes.config(0)).unwrap();
    let with = |change: (&str, &str)| {
        let path = nodes.config(0).with_file_name("other.toml");
        fs::write(&path, text.replace(change.0, change.1)).unwrap();
        path
    };
    let validate = |path: &Path| {
        let mut command = Command::new(ours("bulkhead"));
        command.args(["cluster", "validate", "--config"]).arg(path);
        let output = run(&mut command, LIMIT);
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let other = validate(&with(("node = 1", "node = 7")));
    assert!(other.contains("MISSING  node 7: run `bulkhead cluster join`"), "{other}");
    let unmounted = "addresses = \"none\"\nmounts = [\"state\"]";
    let unmounted = validate(&with(("addresses = \"none\"", unmounted)));
    assert!(unmounted.contains("state is not mounted"), "{unmounted}");
    let check = |path: &Path| {
        let output =
            run(Command::new(ours("smbd")).arg("--check").arg("--config").arg(path), LIMIT);
        assert_eq!(output.status.into_raw() >> 8, 2);
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    for (change, wanted) in [
        (("shares = [\"vms\"]", "shares = [\"other\"]"), "there is no share \"other\""),
        (("[server]\n", "[server]\nlisten = [\"0.0.0.0:445\"]\n"), "has its own listen"),
        (
            ("[cluster]\n", "[iscsi]\nlisten = [\"127.0.0.1:0\"]\n[cluster]\n"),
            "targets do not go over",
        ),
    ] {
        let said = check(&with(change));
        assert!(said.contains(wanted), "{wanted:?} is not in {said}");
    }
}

//! A file server that goes from node to node while a client writes: every acknowledged block is there, and
//! a node that comes late changes nothing.

use std::{
    fs,
    os::unix::{fs::PermissionsExt, process::ExitStatusExt},
    path::Path,
    process::Command,
    sync::Barrier,
    thread,
    time::Duration,
};

use bulkhead_tests::{
    cluster::{
        Nodes, Setup,
        network::{has_ended, in_a_network_of_its_own},
        writer::{Writer, options},
    },
    process::{ours, run},
};
use rustix::process::Signal;

const LIMIT: Duration = Duration::from_secs(120);
/// Needs no root: two nodes on loopback, of which one is killed; then planned moves.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_killed_drained_or_stopped_costs_a_client_a_pause() {
    let Some(mut nodes) = Nodes::start(&Setup::default()) else { return };
    let (first, generation) = nodes.wait_until_served(0);
    nodes.wait_for_members(2);
    let writer = Writer::start(options(&nodes), "disk").await;
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
    if !in_a_network_of_its_own(name, LIMIT * 4) {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let setup = Setup { nodes: 3, members: 3, lease: 3, networks: true, ..Setup::default() };
        let mut nodes = Nodes::start(&setup).unwrap();
        let (first, mut generation) = nodes.wait_until_served(0);
        nodes.wait_for_members(3);
        let writer = Writer::start(options(&nodes), "disk").await;
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
            assert!(
                pids.iter().all(|pid| has_ended(*pid)),
                "a server that stands still is there still"
            );
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
    let writer = Writer::start(options(&nodes), "disk").await;
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

/// A lease that is a minute long, and a node that is taken over from long before, since it is silent.
#[tokio::test]
async fn a_silent_node_is_taken_over_from_before_its_lease_is_over() {
    let fence = "fence = \"gate\"\nsilence_milliseconds = 2000".to_owned();
    let Some(mut nodes) = Nodes::start(&Setup { lease: 60, fence, ..Setup::default() }) else {
        return;
    };
    let (first, generation) = nodes.wait_until_served(0);
    nodes.wait_for_members(2);
    let writer = Writer::start(options(&nodes), "disk").await;
    writer.goes_on().await;
    let since = std::time::Instant::now();
    nodes.kill(first);
    let (second, generation) = nodes.wait_until_served(generation);
    assert!(since.elapsed() < Duration::from_secs(50), "only the end of its lease has told");
    assert_ne!(second, first);
    writer.goes_on().await;
    // Nobody waits for the old lease when it comes back, nor when the other one is lost in turn.
    nodes.launch(first);
    nodes.wait_for_members(2);
    nodes.kill(second);
    let (third, _) = nodes.wait_until_served(generation);
    assert!(since.elapsed() < Duration::from_secs(50), "only the end of its lease has told");
    assert_eq!(third, first);
    writer.goes_on().await;
    writer.end(&nodes.files()).await;
}

/// Each decides anew when another was first; a node that comes back writes to the same record.
#[test]
fn those_who_change_one_node_at_once_do_not_refuse_each_other() {
    let Some(nodes) = Nodes::start(&Setup::default()) else { return };
    nodes.wait_for_members(2);
    let all = Barrier::new(6);
    thread::scope(|scope| {
        for number in 0..6 {
            let (all, nodes) = (&all, &nodes);
            scope.spawn(move || {
                all.wait();
                nodes.must(0, &["pause", "2", "--reason", &format!("asked by {number}")]);
            });
        }
    });
    assert_eq!(nodes.status()["nodes"]["2"]["state"], "paused");
    nodes.must(0, &["resume", "2"]);
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
            "iscsi.listen and [cluster]: each [[cluster.role]] has its own iscsi_listen",
        ),
    ] {
        let said = check(&with(change));
        assert!(said.contains(wanted), "{wanted:?} is not in {said}");
    }
}

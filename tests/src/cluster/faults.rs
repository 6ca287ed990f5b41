//! What can happen to the nodes of a cluster, and how it is over.

use std::fmt;

use rustix::process::{Pid, Signal, kill_process};

use super::Nodes;

/// Something that happens to the node that serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// An administrator moves the role to another node.
    Moved,
    /// An administrator drains the node.
    Drained,
    /// The server of the role is killed, and its node lives.
    ServerKilled,
    /// All processes of the node are killed.
    NodeKilled,
    /// All processes of the node stand still, and go on when others have its role.
    Frozen,
    /// The node's network is cut: nobody is told anything.
    CutOff,
    /// The member of etcd that leads is killed.
    LeaderKilled,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Moved,
        Self::Drained,
        Self::ServerKilled,
        Self::NodeKilled,
        Self::Frozen,
        Self::CutOff,
        Self::LeaderKilled,
    ];

    /// What it is called where programs read it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Moved => "moved",
            Self::Drained => "drained",
            Self::ServerKilled => "server-killed",
            Self::NodeKilled => "node-killed",
            Self::Frozen => "frozen",
            Self::CutOff => "cut-off",
            Self::LeaderKilled => "etcd-leader-killed",
        }
    }

    /// Whether the role goes to another node by it.
    fn moves(self) -> bool {
        !matches!(self, Self::ServerKilled | Self::LeaderKilled)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Moved => "the role is moved",
            Self::Drained => "the node is drained",
            Self::ServerKilled => "the server of the role is killed",
            Self::NodeKilled => "the node is killed",
            Self::Frozen => "the node stands still",
            Self::CutOff => "the node is cut off",
            Self::LeaderKilled => "the leader of etcd is killed",
        })
    }
}

/// What is to be mended when a fault is over.
#[derive(Debug)]
#[must_use = "a node stays as it is"]
pub struct Broken {
    fault: Fault,
    node: usize,
    member: Option<usize>,
    /// The processes that served.
    pids: Vec<u32>,
    after: u64,
}

impl Nodes {
    /// Has something happen to the node that serves.
    ///
    /// # Panics
    /// If it cannot be done.
    pub fn suffer(&mut self, fault: Fault) -> Broken {
        let (node, after) = self.wait_until_served(0);
        let pids = self.serving(node);
        let mut member = None;
        match fault {
            Fault::Moved => {
                let to = ((node + 1) % self.len() + 1).to_string();
                self.must(0, &["move", "vms", &to, "--reason", "a test"]);
            }
            Fault::Drained => {
                self.must(node, &["drain", "--reason", "a test"]);
            }
            Fault::ServerKilled => {
                let pid = pids.first().and_then(|pid| Pid::from_raw(pid.cast_signed()));
                kill_process(pid.expect("it serves"), Signal::KILL).expect("it is ours");
            }
            Fault::NodeKilled => self.kill(node),
            Fault::Frozen => self.signal(node, Signal::STOP),
            Fault::CutOff => self.cut(node, true),
            Fault::LeaderKilled => {
                let leader = self.etcd.wait_for_leader();
                self.etcd.kill(leader);
                member = Some(leader);
            }
        }
        Broken { fault, node, member, pids, after }
    }

    /// Waits until the role is served again where the fault has it go.
    ///
    /// # Panics
    /// If nobody serves it, or somebody should not.
    pub fn wait_over(&self, broken: &Broken) {
        let after = if broken.fault.moves() { broken.after } else { 0 };
        let (node, _) = self.wait_until_served(after);
        assert!(!broken.fault.moves() || node != broken.node, "{:?}", broken.fault);
    }

    /// Has everything be as it was: all nodes are there, and all members of etcd.
    ///
    /// # Panics
    /// If a server is still there that was to end with its node's lease, or a node does not come back.
    pub fn mend(&mut self, broken: Broken) {
        let Broken { fault, node, member, pids, .. } = broken;
        match fault {
            Fault::Moved | Fault::ServerKilled => {}
            Fault::Drained => drop(self.must(node, &["resume"])),
            Fault::NodeKilled => self.launch(node),
            Fault::Frozen => {
                let gone = pids.iter().all(|pid| super::network::has_ended(*pid));
                assert!(gone, "a server that stands still is there still");
                self.signal(node, Signal::CONT);
            }
            Fault::CutOff => self.cut(node, false),
            Fault::LeaderKilled => {
                self.etcd.restart(member.expect("one was killed"));
                self.etcd.wait_for_leader();
            }
        }
        self.wait_for_members(self.len());
        // A node that is lost too often is left out; here that is what it is for.
        for at in 1..=self.len() {
            if self.status()["nodes"][at.to_string()]["state"] == "quarantined" {
                self.must(0, &["resume", &at.to_string()]);
            }
        }
    }
}

//! What can happen to the nodes of a cluster, and how it is over.

use std::{fmt, path::Path, thread, time::Duration};

use rustix::process::{Pid, Signal, kill_process};

use test_support::process::run;

use super::{LIMIT, Nodes};

/// How long etcd has no majority, or its leader stands still: longer than a silence, and than a lease of
/// two seconds less what is kept for clocks.
const AWAY: Duration = Duration::from_secs(3);
/// How often a network comes and goes, and how long it is away each time.
const FLAPS: (usize, Duration) = (6, Duration::from_millis(400));

/// Something that happens to the node that serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// An administrator moves the role to another node.
    Moved,
    /// An administrator drains the node.
    Drained,
    /// The node is stopped in an orderly way, as an upgrade does it, and started again.
    Upgraded,
    /// The server of the role is killed, and its node lives.
    ServerKilled,
    /// All processes of the node are killed.
    NodeKilled,
    /// All processes of the node stand still, and go on when others have its role.
    Frozen,
    /// The node's network is cut: nobody is told anything.
    CutOff,
    /// The node hears nothing of others, and they hear it.
    Deaf,
    /// The node hears others, and they hear nothing of it.
    Mute,
    /// The node's network comes and goes.
    Flapping,
    /// The member of etcd that leads is killed.
    LeaderKilled,
    /// The member of etcd that leads stands still for a while.
    LeaderFrozen,
    /// All members of etcd but one stand still for a while.
    QuorumFrozen,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::Moved,
        Self::Drained,
        Self::Upgraded,
        Self::ServerKilled,
        Self::NodeKilled,
        Self::Frozen,
        Self::CutOff,
        Self::Deaf,
        Self::Mute,
        Self::Flapping,
        Self::LeaderKilled,
        Self::LeaderFrozen,
        Self::QuorumFrozen,
    ];

    /// What it is called where programs read it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Moved => "moved",
            Self::Drained => "drained",
            Self::Upgraded => "upgraded",
            Self::ServerKilled => "server-killed",
            Self::NodeKilled => "node-killed",
            Self::Frozen => "frozen",
            Self::CutOff => "cut-off",
            Self::Deaf => "deaf",
            Self::Mute => "mute",
            Self::Flapping => "flapping",
            Self::LeaderKilled => "etcd-leader-killed",
            Self::LeaderFrozen => "etcd-leader-frozen",
            Self::QuorumFrozen => "etcd-quorum-frozen",
        }
    }

    /// Whether the role goes to another node by it.
    fn moves(self) -> bool {
        !matches!(self, Self::ServerKilled | Self::Flapping) && !self.is_of_etcd()
    }

    /// Whether it happens to etcd.
    pub fn is_of_etcd(self) -> bool {
        matches!(self, Self::LeaderKilled | Self::LeaderFrozen | Self::QuorumFrozen)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Moved => "the role is moved",
            Self::Drained => "the node is drained",
            Self::Upgraded => "the node is stopped for an upgrade",
            Self::ServerKilled => "the server of the role is killed",
            Self::NodeKilled => "the node is killed",
            Self::Frozen => "the node stands still",
            Self::CutOff => "the node is cut off",
            Self::Deaf => "the node hears nothing",
            Self::Mute => "nobody hears the node",
            Self::Flapping => "the node's network comes and goes",
            Self::LeaderKilled => "the leader of etcd is killed",
            Self::LeaderFrozen => "the leader of etcd stands still",
            Self::QuorumFrozen => "etcd has no majority for a while",
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
            Fault::Upgraded => self.stop(node),
            Fault::ServerKilled => {
                let pid = pids.first().and_then(|pid| Pid::from_raw(pid.cast_signed()));
                kill_process(pid.expect("it serves"), Signal::KILL).expect("it is ours");
            }
            Fault::NodeKilled => self.kill(node),
            Fault::Frozen => self.signal(node, Signal::STOP),
            Fault::CutOff => self.cut(node, true),
            Fault::Deaf => self.drop_packets(node, ["-A", "INPUT", "-i"]),
            Fault::Mute => self.drop_packets(node, ["-A", "OUTPUT", "-o"]),
            Fault::Flapping => {
                for _ in 0..FLAPS.0 {
                    self.cut(node, true);
                    thread::sleep(FLAPS.1);
                    self.cut(node, false);
                    thread::sleep(FLAPS.1);
                }
            }
            Fault::LeaderKilled => {
                let leader = self.etcd.wait_for_leader();
                self.etcd.kill(leader);
                member = Some(leader);
            }
            Fault::LeaderFrozen | Fault::QuorumFrozen => {
                let leader = self.etcd.wait_for_leader();
                let members = self.etcd.endpoints().len();
                let still: Vec<usize> = match fault {
                    Fault::QuorumFrozen => (0..members).filter(|at| *at != leader).collect(),
                    _ => vec![leader],
                };
                still.iter().for_each(|at| self.etcd.freeze(*at, true));
                thread::sleep(AWAY);
                still.iter().for_each(|at| self.etcd.freeze(*at, false));
            }
        }
        Broken { fault, node, member, pids, after }
    }

    /// Has a node's system drop what comes in, or goes out, or again not do so.
    fn drop_packets(&self, at: usize, [action, chain, way]: [&str; 3]) {
        let mut command = self.networks.within(at, Path::new("iptables"));
        command.args(["-w", action, chain, way, "eth0", "-j", "DROP"]);
        let output = run(&mut command, LIMIT);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
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
        self.undo(&broken);
        self.bring_back(broken);
    }

    /// Undoes a fault itself: a node has its network again, and its processes go on.
    ///
    /// # Panics
    /// If a server is still there that was to end with its node's lease.
    pub fn undo(&mut self, broken: &Broken) {
        let Broken { fault, node, member, pids, .. } = broken;
        let node = *node;
        match fault {
            Fault::Moved
            | Fault::Drained
            | Fault::Upgraded
            | Fault::ServerKilled
            | Fault::NodeKilled
            | Fault::Flapping
            | Fault::LeaderFrozen
            | Fault::QuorumFrozen => {}
            Fault::Frozen => {
                let gone = pids.iter().all(|pid| super::network::has_ended(*pid));
                assert!(gone, "a server that stands still is there still");
                self.signal(node, Signal::CONT);
            }
            Fault::CutOff => self.cut(node, false),
            Fault::Deaf => self.drop_packets(node, ["-D", "INPUT", "-i"]),
            Fault::Mute => self.drop_packets(node, ["-D", "OUTPUT", "-o"]),
            Fault::LeaderKilled => {
                self.etcd.restart(member.expect("one was killed"));
                self.etcd.wait_for_leader();
            }
        }
    }

    /// Starts again what a fault that is undone has ended, and waits until all nodes are there.
    ///
    /// # Panics
    /// If one does not come back.
    pub fn bring_back(&mut self, broken: Broken) {
        match broken.fault {
            Fault::Drained => drop(self.must(broken.node, &["resume"])),
            Fault::NodeKilled | Fault::Upgraded => self.launch(broken.node),
            _ => {}
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

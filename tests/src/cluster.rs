//! Several nodes of a cluster as private processes: on loopback, or each in a network of its own.

pub mod ceph;
pub mod faults;
pub mod gluster;
pub mod guest;
pub mod network;
pub mod volumes;
pub mod writer;

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;
use test_support::{
    etcd::Etcd,
    port::Port,
    process::{Stopped, ours, run},
    smbd::{PASSWORD, USER},
};

/// A command that hangs is a failure.
const LIMIT: Duration = Duration::from_secs(90);

/// The network of nodes that have networks of their own, and what floats in it.
const NETWORK: &str = "10.77.0";
/// Where the role is in that network.
pub const FLOATING: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 50);
/// Where we are in it, and etcd.
pub const HERE: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 254);

/// Every node, in a network of its own, is a witness of a cluster that clients call `files`.
pub const WITNESS: &str = "[witness]\nlisten = [\"0.0.0.0:49152\"]\nendpoint_mapper = [\"0.0.0.0:135\"]\n\
     name = \"N{node}\"\naddresses = [\"10.77.0.{node}\"]\ncluster_names = [\"files\"]\n";

/// Nodes with one role, `vms`, whose share has the same name, over one folder.
#[derive(Debug)]
pub struct Nodes {
    /// The etcd that they share.
    pub etcd: Etcd,
    folder: TempDir,
    /// Where the role is served.
    pub address: SocketAddr,
    _port: Option<Port>,
    /// What the nodes have of networks of their own.
    pub networks: Networks,
    running: Vec<Option<Stopped>>,
}

/// How nodes are set up.
#[derive(Debug, Clone)]
pub struct Setup {
    /// How many there are.
    pub nodes: usize,
    /// Members of etcd.
    pub members: usize,
    /// Seconds of a lease.
    pub lease: u64,
    /// Each has a network of its own, and the address floats.
    pub networks: bool,
    /// More lines of `[cluster]`, instead of `fence = "gate"`.
    pub fence: String,
    /// More lines of the role.
    pub role: String,
    /// More tables of the file; `{node}` stands for the number of the node.
    pub more: String,
    /// Where the share is on each node, if that is no folder of all nodes.
    pub files: Vec<PathBuf>,
}

impl Default for Setup {
    fn default() -> Self {
        let fence = "fence = \"gate\"".to_owned();
        let (role, more, files) = (String::new(), String::new(), Vec::new());
        Self { nodes: 2, members: 1, lease: 2, networks: false, fence, role, more, files }
    }
}

/// Sends a signal to a process and to all that it has started.
fn signal_tree(pid: u32, signal: Signal) {
    let children = format!("/proc/{pid}/task/{pid}/children");
    let children = fs::read_to_string(children).unwrap_or_default();
    if let Some(pid) = Pid::from_raw(pid.cast_signed()) {
        let _ = kill_process(pid, signal);
    }
    for child in children.split_whitespace().filter_map(|child| child.parse().ok()) {
        signal_tree(child, signal);
    }
}

fn ip(words: &str) {
    let output = run(Command::new("ip").args(words.split_whitespace()), LIMIT);
    assert!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Networks of nodes, each joined by a bridge to the one in which this is made, which is to be the
/// caller's alone.
#[derive(Debug)]
pub struct Networks(Vec<Stopped>);

impl Networks {
    /// All nodes have the network of the caller.
    pub fn none() -> Self {
        Self(Vec::new())
    }

    /// One for each of so many nodes.
    ///
    /// # Panics
    /// If the caller is not root.
    pub fn new(count: usize) -> Self {
        ip("link add br0 type bridge");
        ip(&format!("addr add {HERE}/24 dev br0"));
        ip("link set br0 up");
        let mut all = Self::none();
        (0..count).for_each(|at| all.add(at));
        all
    }

    fn add(&mut self, at: usize) {
        let mut command = Command::new("unshare");
        command.args(["--net", "sleep", "36000"]).stdin(Stdio::null());
        let keeper = Stopped(command.spawn().expect("unshare is there"));
        let pid = keeper.pid();
        let since = Instant::now();
        let network = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/net")).ok();
        while network(&pid.to_string()) == network("self") {
            assert!(since.elapsed() < LIMIT, "there is no new network");
            thread::sleep(Duration::from_millis(5));
        }
        self.0.push(keeper);
        ip(&format!("link add v{at} type veth peer name eth0 netns {pid}"));
        ip(&format!("link set v{at} master br0 up"));
        for words in [
            "link set lo up".to_owned(),
            "link set eth0 up".to_owned(),
            format!("addr add {}/24 dev eth0", Self::address(at)),
        ] {
            let mut command = self.within(at, Path::new("ip"));
            let output = run(command.args(words.split_whitespace()), LIMIT);
            assert!(output.status.success(), "ip {words} in the network of node {at}");
        }
    }

    /// A node's own address.
    pub fn address(at: usize) -> IpAddr {
        format!("{NETWORK}.{}", at + 1).parse().expect("it is one")
    }

    /// A command that is carried out in a node's network.
    pub fn within(&self, at: usize, program: &Path) -> Command {
        let Some(keeper) = self.0.get(at) else { return Command::new(program) };
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", keeper.pid())).arg(program);
        command
    }
}

impl Nodes {
    /// Starts etcd and nodes, and makes the cluster; `None` where etcd is not installed. With networks
    /// of their own it is to be called in a network that is the caller's alone.
    pub fn start(setup: &Setup) -> Option<Self> {
        let networks = if setup.networks { Networks::new(setup.nodes) } else { Networks::none() };
        Self::start_in(setup, networks)
    }

    /// The same in networks that are there already.
    pub fn start_in(setup: &Setup, networks: Networks) -> Option<Self> {
        let etcd_at = if setup.networks { HERE } else { Ipv4Addr::LOCALHOST };
        let etcd = Etcd::start_with(setup.members, IpAddr::V4(etcd_at), "http", &[])?;
        let folder = tempfile::Builder::new().prefix("cluster").tempdir().expect("a folder");
        fs::create_dir(folder.path().join("files")).expect("the folder is writable");
        let port = (!setup.networks).then(Port::reserve);
        let address = match &port {
            Some(port) => port.address(),
            None => SocketAddr::from((FLOATING, 445)),
        };
        let running = (0..setup.nodes).map(|_| None).collect();
        let mut nodes = Self { etcd, folder, address, _port: port, networks, running };
        (0..setup.nodes).for_each(|at| nodes.configure(at, setup));
        nodes.must(0, &["init"]);
        for at in 0..setup.nodes {
            if at > 0 {
                nodes.must(at, &["join"]);
            }
            nodes.launch(at);
        }
        Some(nodes)
    }

    /// How many nodes there are.
    pub fn len(&self) -> usize {
        self.running.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.running.is_empty()
    }

    /// Takes the network of a node away, or gives it back.
    pub fn cut(&self, at: usize, away: bool) {
        ip(&format!("link set v{at} {}", if away { "down" } else { "up" }));
    }

    fn home(&self, at: usize) -> PathBuf {
        self.folder.path().join(format!("n{}", at + 1))
    }

    /// The folder that all nodes serve.
    pub fn files(&self) -> PathBuf {
        self.folder.path().join("files")
    }

    /// A node's configuration file.
    pub fn config(&self, at: usize) -> PathBuf {
        self.home(at).join("smbd.toml")
    }

    fn configure(&self, at: usize, setup: &Setup) {
        let addresses = match setup.networks {
            true => "interface = \"eth0\"\nprefix = 24",
            false => "addresses = \"none\"",
        };
        let text = format!(
            "[server]\nstate_dir = \"state\"\nencryption = \"offered\"\n\
             [[user]]\nname = \"{USER}\"\npassword = \"{PASSWORD}\"\n\
             [[share]]\nname = \"vms\"\npath = \"{files}\"\nusers = [\"{USER}\"]\n\
             continuously_available = true\n{more}\n\
             [cluster]\nname = \"test\"\nnode = {node}\nnode_name = \"n{node}\"\n\
             endpoints = {endpoints:?}\nlease_seconds = {lease}\n{fence}\n\
             [[cluster.role]]\nname = \"vms\"\nshares = [\"vms\"]\nlisten = [\"{listen}\"]\n\
             {addresses}\n{role}\n",
            files = setup.files.get(at).unwrap_or(&self.files()).display(),
            more = setup.more.replace("{node}", &(at + 1).to_string()),
            role = setup.role,
            node = at + 1,
            endpoints = self.etcd.endpoints(),
            lease = setup.lease,
            fence = setup.fence,
            listen = self.address,
        );
        fs::create_dir(self.home(at)).expect("the folder is writable");
        fs::write(self.config(at), text).expect("the folder is writable");
    }

    /// Starts a node.
    pub fn launch(&mut self, at: usize) {
        let log = fs::File::options().create(true).append(true).open(self.home(at).join("log"));
        let mut command = self.networks.within(at, &ours("smbd"));
        let child = command
            .arg("--config")
            .arg(self.config(at))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log.expect("the folder is writable"))
            .spawn()
            .expect("smbd starts");
        self.running[at] = Some(Stopped(child));
    }

    /// Sends a signal to all processes of a node.
    pub fn signal(&self, at: usize, signal: Signal) {
        let node = self.running[at].as_ref().expect("it runs");
        signal_tree(node.pid(), signal);
    }

    /// Processes of a node that serve a role.
    pub fn serving(&self, at: usize) -> Vec<u32> {
        let pid = self.running[at].as_ref().expect("it runs").pid();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        let children = children.unwrap_or_default();
        let children = children.split_whitespace().filter_map(|child| child.parse().ok());
        // Not the commands that set addresses.
        let serves = |pid: &u32| {
            fs::read(format!("/proc/{pid}/cmdline"))
                .is_ok_and(|line| line.windows(6).any(|words| words == b"--role"))
        };
        children.filter(serves).collect()
    }

    /// Kills all processes of a node without warning.
    pub fn kill(&mut self, at: usize) {
        self.signal(at, Signal::KILL);
        if let Some(mut node) = self.running[at].take() {
            let _ = node.0.wait();
        }
    }

    /// Stops a node in an orderly way.
    pub fn stop(&mut self, at: usize) {
        self.running[at] = None;
    }

    /// Runs `bulkhead cluster` on a node.
    pub fn cluster(&self, at: usize, words: &[&str]) -> Output {
        let mut command = Command::new(ours("bulkhead"));
        command.arg("cluster").args(words).arg("--config").arg(self.config(at));
        run(&mut command, LIMIT)
    }

    /// The same, which must succeed; what it prints.
    pub fn must(&self, at: usize, words: &[&str]) -> String {
        let output = self.cluster(at, words);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "bulkhead cluster {words:?}: {said}\n{}", self.logs());
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// What `bulkhead cluster status` says, once etcd answers.
    pub fn status(&self) -> Value {
        let since = Instant::now();
        loop {
            let output = self.cluster(0, &["--json", "status"]);
            if output.status.success() {
                return serde_json::from_slice(&output.stdout).expect("it is JSON");
            }
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(said.contains("no answer from etcd"), "{said}");
            assert!(since.elapsed() < LIMIT, "{said}");
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until the role is served in a later generation than `after`; the node and the generation.
    pub fn wait_until_served(&self, after: u64) -> (usize, u64) {
        let since = Instant::now();
        loop {
            let role = self.status()["roles"]["vms"].clone();
            let generation = role["generation"].as_u64().unwrap_or(0);
            if role["state"] == "serving"
                && generation > after
                && let Some(node) = role["node"].as_u64()
            {
                return (node as usize - 1, generation);
            }
            assert!(since.elapsed() < LIMIT, "nobody serves: {role}\n{}", self.logs());
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until as many nodes are there.
    pub fn wait_for_members(&self, count: usize) {
        let since = Instant::now();
        loop {
            let nodes = self.status()["nodes"].clone();
            let there =
                nodes.as_object().into_iter().flatten().filter(|(_, n)| n["state"] != "down");
            if there.count() == count {
                return;
            }
            assert!(since.elapsed() < LIMIT, "not all are there: {nodes}\n{}", self.logs());
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Where the role's server keeps what is its own on a node.
    pub fn role_folder(&self, at: usize) -> PathBuf {
        self.home(at).join("state/roles/vms")
    }

    /// The admin socket of a node's witness service.
    pub fn witness_socket(&self, at: usize) -> PathBuf {
        self.home(at).join("state/witness/admin.sock")
    }

    /// What etcd has under keys with a prefix.
    fn etcdctl(&self, prefix: &str, how: &[&str]) -> String {
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").arg(format!("--endpoints={}", self.etcd.endpoint(0)));
        let output = run(command.args(["get", "--prefix", prefix]).args(how), LIMIT);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Waits until so many connections of clients are noted for the node that has the role next.
    pub fn wait_for_peers(&self, count: usize) {
        let since = Instant::now();
        loop {
            let noted = self.etcdctl("/bulkhead.store/test/vms.peers", &["--print-value-only"]);
            if noted.lines().filter(|line| line.contains(' ')).count() == count {
                return;
            }
            assert!(since.elapsed() < LIMIT, "{noted}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// How many records the store of the role's opens has: one for each open, and more.
    pub fn stored(&self) -> usize {
        let prefix = "/bulkhead.store/test/vms/r/";
        let said = self.etcdctl(prefix, &["--keys-only", "--write-out=json"]);
        let said: Value = serde_json::from_str(&said).expect("it is JSON");
        // What is none is left out.
        usize::try_from(said["count"].as_u64().unwrap_or(0)).expect("they fit")
    }

    /// What all nodes have said.
    pub fn logs(&self) -> String {
        let one = |at| {
            let log = fs::read_to_string(self.home(at).join("log")).unwrap_or_default();
            format!("--- node {}\n{log}", at + 1)
        };
        (0..self.running.len()).map(one).collect()
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}", self.logs());
        }
        for at in 0..self.running.len() {
            if self.running[at].is_some() {
                self.signal(at, Signal::CONT);
            }
        }
    }
}

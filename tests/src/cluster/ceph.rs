//! CephFS on the nodes of a cluster: a storage cluster of one of each daemon beside the nodes, mounted on
//! each node by ceph-fuse under the node's own name, by which a fence agent evicts it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use test_support::process::{Stopped, foreign};

use super::{
    HERE, Networks,
    volumes::{Volume, must, wait_for_mount, wait_until},
};

/// A storage cluster, and its file system on each node.
#[derive(Debug)]
pub struct Ceph {
    /// By node; none while it is not mounted.
    mounts: Vec<Option<Stopped>>,
    daemons: Vec<Stopped>,
    folder: PathBuf,
    tool: PathBuf,
}

impl Ceph {
    /// Starts the storage cluster and mounts its file system on so many nodes; `None` where Ceph is not
    /// installed.
    ///
    /// # Panics
    /// If something of it does not succeed.
    pub fn start(networks: &Networks, count: usize, folder: &Path) -> Option<Self> {
        for program in ["ceph-mon", "ceph-mgr", "ceph-osd", "ceph-mds", "ceph-fuse", "monmaptool"] {
            foreign(program)?;
        }
        let folder = folder.join("ceph");
        let mut all = Self {
            mounts: (0..count).map(|_| None).collect(),
            daemons: Vec::new(),
            tool: foreign("ceph")?,
            folder,
        };
        all.configure();
        all.start_monitor();
        all.daemon("ceph-mgr", "x");
        all.start_store();
        all.daemon("ceph-mds", "a");
        for pool in ["metadata", "data"] {
            all.ceph(&["osd", "pool", "create", pool, "8"]);
        }
        all.ceph(&["fs", "new", "vms", "metadata", "data"]);
        // A file system that has no room yet refuses writes.
        wait_until("Ceph serves files and knows its room", || {
            all.ceph(&["mds", "stat"]).contains("up:active")
                && !all.ceph(&["df", "--format", "json"]).contains("\"total_bytes\":0")
        });
        (0..count).for_each(|at| all.mount(networks, at));
        Some(all)
    }

    fn config(&self) -> PathBuf {
        self.folder.join("ceph.conf")
    }

    fn place(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn configure(&self) {
        for name in ["mon", "mgr", "osd", "mds"] {
            fs::create_dir_all(self.place(name)).expect("the folder is writable");
        }
        for at in 0..self.mounts.len() {
            fs::create_dir_all(self.mounted(at)).expect("the folder is writable");
        }
        let text = format!(
            "[global]\nfsid = {id}\nmon host = [v2:{HERE}:3300,v1:{HERE}:6789]\npublic addr = {HERE}\n\
             auth cluster required = none\nauth service required = none\nauth client required = none\n\
             osd pool default size = 1\nosd pool default min size = 1\nmon allow pool size one = true\n\
             mon data = {at}/mon\nmgr data = {at}/mgr\nosd data = {at}/osd\nmds data = {at}/mds\n\
             run dir = {at}\ncrash dir = {at}\npid file =\nlog file = {at}/$name.log\n\
             admin socket = {at}/$name.$pid.asok\nosd objectstore = bluestore\n\
             bluestore block size = 8589934592\nosd crush chooseleaf type = 0\n\
             mgr initial modules =\nmgr stats period = 1\n[client]\npublic addr =\n",
            id = Self::new_id(),
            at = self.folder.display(),
        );
        fs::write(self.config(), text).expect("the folder is writable");
    }

    fn new_id() -> String {
        let id = fs::read_to_string("/proc/sys/kernel/random/uuid").expect("Linux makes ids");
        id.trim().to_owned()
    }

    /// A program of Ceph with our configuration.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.arg("--conf").arg(self.config());
        command
    }

    /// The tool of administrators; what it prints.
    fn ceph(&self, words: &[&str]) -> String {
        let mut command = Command::new(&self.tool);
        command.arg("--conf").arg(self.config()).args(words);
        must(command)
    }

    fn start_monitor(&mut self) {
        let map = self.place("monmap");
        let addresses = format!("[v2:{HERE}:3300,v1:{HERE}:6789]");
        let text = fs::read_to_string(self.config()).expect("it is there");
        let id = text.lines().find_map(|line| line.strip_prefix("fsid = ")).expect("it has one");
        let mut make = Command::new("monmaptool");
        make.args(["--create", "--fsid", id, "--addv", "a", &addresses]).arg(&map);
        must(make);
        let mut make = self.command("ceph-mon");
        make.args(["--mkfs", "-i", "a", "--monmap"]).arg(&map);
        must(make);
        self.daemon("ceph-mon", "a");
    }

    /// The daemon that keeps objects, in a file.
    fn start_store(&mut self) {
        let id = Self::new_id();
        self.ceph(&["osd", "new", &id]);
        let mut make = self.command("ceph-osd");
        make.args(["-i", "0", "--mkfs", "--osd-uuid", &id]);
        must(make);
        self.daemon("ceph-osd", "0");
    }

    fn daemon(&mut self, program: &str, name: &str) {
        let mut command = self.command(program);
        command.args(["-f", "-i", name]);
        self.daemons.push(self.spawn(command, program));
    }

    fn spawn(&self, mut command: Command, name: &str) -> Stopped {
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.place(name).with_extension("out"));
        let log = log.expect("the folder is writable");
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("it can be had twice"));
        Stopped(command.stderr(log).spawn().expect("it is installed"))
    }

    /// By what name a node mounts the file system.
    fn client(at: usize) -> String {
        format!("n{}", at + 1)
    }

    fn mount(&mut self, networks: &Networks, at: usize) {
        let place = self.mounted(at);
        let mut command = networks.within(at, Path::new("ceph-fuse"));
        command.arg("--conf").arg(self.config());
        command.args(["-f", "--id", &Self::client(at)]).arg(&place);
        self.mounts[at] = Some(self.spawn(command, &format!("fuse{}", at + 1)));
        wait_for_mount(&place);
    }

    /// Whether the file system knows a node, and takes its writes.
    fn knows(&self, at: usize) -> bool {
        let name = format!("auth_name={}", Self::client(at));
        let said = self.ceph(&["tell", "mds.0", "client", "ls", &name]);
        said.contains("\"state\": \"open\"")
    }
}

impl Volume for Ceph {
    fn name(&self) -> &'static str {
        "cephfs"
    }

    fn mounted(&self, at: usize) -> PathBuf {
        self.folder.join(Self::client(at)).join("volume")
    }

    fn fence(&self) -> String {
        let (tool, config) = (self.tool.display(), self.config());
        let agent = |at: usize| {
            let (node, name) = (at + 1, Self::client(at));
            format!(
                "[[cluster.fence_agent]]\nnode = {node}\ncommand = [\"{tool}\", \"--conf\", \"{config}\", \
                 \"tell\", \"mds.0\", \"client\", \"evict\", \"auth_name={name}\"]\n",
                config = config.display()
            )
        };
        (0..self.mounts.len())
            .map(agent)
            .fold("fence = \"agent\"\n".to_owned(), |all, one| all + &one)
    }

    /// A node that was evicted has to mount anew.
    fn make_whole(&mut self, networks: &Networks) {
        for at in 0..self.mounts.len() {
            if !self.knows(at) {
                self.mounts[at] = None;
                let _ =
                    rustix::mount::unmount(self.mounted(at), rustix::mount::UnmountFlags::DETACH);
                self.mount(networks, at);
            }
        }
    }
}

impl Drop for Ceph {
    fn drop(&mut self) {
        for at in 0..self.mounts.len() {
            let _ = rustix::mount::unmount(self.mounted(at), rustix::mount::UnmountFlags::DETACH);
        }
        self.mounts.clear();
        self.daemons.clear();
    }
}

//! GlusterFS on the nodes of a cluster: a brick on each, the same volume mounted on each. All that
//! glusterd keeps on a machine is each node's own, in one folder of ours.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use test_support::process::{Stopped, foreign, run};

use super::{
    Networks,
    volumes::{LIMIT, Volume, must, wait_for_mount, wait_until},
};

const VOLUME: &str = "vms";

/// What docs/cluster.md says of a volume: nothing is held back in a node, and a node that is silent is
/// given up soon, its locks with it.
const OPTIONS: [(&str, &str); 9] = [
    ("performance.write-behind", "off"),
    ("performance.flush-behind", "off"),
    ("performance.quick-read", "off"),
    ("performance.open-behind", "off"),
    ("network.ping-timeout", "3"),
    ("server.tcp-user-timeout", "3"),
    ("server.keepalive-time", "2"),
    ("server.keepalive-interval", "1"),
    ("server.keepalive-count", "2"),
];

/// Where glusterd keeps what is the machine's.
const PLACES: [&str; 3] = ["/var/lib/glusterd", "/var/log/glusterfs", "/run"];

/// A volume with a brick on each node.
#[derive(Debug)]
pub struct Gluster {
    mounts: Vec<Stopped>,
    daemons: Vec<Stopped>,
    folder: PathBuf,
    /// Connections of clients that all bricks have together when the volume is whole.
    clients: usize,
}

impl Gluster {
    /// Starts a daemon on each of so many nodes, makes a volume of a brick on each, and mounts it on
    /// each; `None` where GlusterFS is not installed. Mounts are the caller's own: it is to have a mount
    /// namespace of its own.
    ///
    /// # Panics
    /// If something of it does not succeed.
    pub fn start(networks: &Networks, count: usize, folder: &Path) -> Option<Self> {
        for program in ["glusterd", "gluster", "glusterfs"] {
            foreign(program)?;
        }
        let mut all =
            Self { mounts: Vec::new(), daemons: Vec::new(), folder: folder.to_owned(), clients: 0 };
        for place in PLACES {
            fs::create_dir_all(place).expect("root makes folders");
        }
        (0..count).for_each(|at| all.launch(networks, at));
        for at in 0..count {
            wait_until("glusterd answers", || {
                run(all.tool(at).args(["peer", "status"]), LIMIT).status.success()
            });
        }
        let address = |at: usize| Networks::address(at).to_string();
        for at in 1..count {
            all.gluster(&["peer", "probe", &address(at)]);
        }
        wait_until("all peers are connected", || {
            all.gluster(&["peer", "status"]).matches("(Connected)").count() == count - 1
        });
        let bricks: Vec<_> = (0..count)
            .map(|at| format!("{}:{}", address(at), all.home(at).join("brick").display()))
            .collect();
        let replicas = count.to_string();
        let mut words = vec!["volume", "create", VOLUME, "replica", &replicas];
        words.extend(bricks.iter().map(String::as_str));
        words.push("force");
        all.gluster(&words);
        for (key, value) in OPTIONS {
            all.gluster(&["volume", "set", VOLUME, key, value]);
        }
        all.gluster(&["volume", "start", VOLUME]);
        (0..count).for_each(|at| all.mount(networks, at));
        // Each mount has each brick, and so has the healer of each node.
        all.clients = 2 * count * count;
        all.wait_for_bricks();
        Some(all)
    }

    /// Waits until every node's mount and healer has every brick again: a second fault before that is
    /// one too many for three bricks.
    fn wait_for_bricks(&self) {
        wait_until("every client of the volume has every brick", || {
            let mut command = self.tool(0);
            command.args(["volume", "status", VOLUME, "clients"]);
            let output = run(&mut command, LIMIT);
            let text = String::from_utf8_lossy(&output.stdout);
            let counts = text.lines().filter_map(|line| line.strip_prefix("Clients connected :"));
            let all: usize = counts.filter_map(|count| count.trim().parse::<usize>().ok()).sum();
            output.status.success() && all >= self.clients
        });
    }

    fn home(&self, at: usize) -> PathBuf {
        self.folder.join(format!("gluster{}", at + 1))
    }

    /// The daemon of a node, with places of its own.
    fn launch(&mut self, networks: &Networks, at: usize) {
        let home = self.home(at);
        let mut script = String::from("set -e\nmount --make-rprivate /\n");
        for (number, place) in PLACES.iter().enumerate() {
            let own = home.join(format!("place{number}"));
            fs::create_dir_all(&own).expect("the folder is writable");
            script.push_str(&format!("mount --bind {} {place}\n", own.display()));
        }
        fs::create_dir_all(self.mounted(at)).expect("the folder is writable");
        fs::create_dir_all(home.join("brick")).expect("the folder is writable");
        script.push_str("mkdir -p /run/gluster\nexec glusterd -N --log-level WARNING\n");
        let log = fs::File::create(home.join("log")).expect("the folder is writable");
        let mut command = networks.within(at, Path::new("unshare"));
        command.args(["--mount", "sh", "-c", &script]).stdin(Stdio::null());
        command.stdout(log.try_clone().expect("it can be had twice")).stderr(log);
        self.daemons.push(Stopped(command.spawn().expect("unshare is there")));
    }

    /// `gluster` on a node.
    fn tool(&self, at: usize) -> Command {
        let daemon = self.daemons[at].pid();
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{daemon}/ns/net"));
        command.arg(format!("--mount=/proc/{daemon}/ns/mnt"));
        command.args(["gluster", "--mode=script"]);
        command
    }

    fn gluster(&self, words: &[&str]) -> String {
        let mut command = self.tool(0);
        command.args(words);
        must(command)
    }

    fn mount(&mut self, networks: &Networks, at: usize) {
        let place = self.mounted(at);
        let log = self.home(at).join("mount.log");
        let mut command = networks.within(at, Path::new("glusterfs"));
        command.arg(format!("--volfile-server={}", Networks::address(at)));
        command.arg(format!("--volfile-id={VOLUME}"));
        command.arg(format!("--log-file={}", log.display()));
        command.args(["--no-daemon", "--entry-timeout=0", "--attribute-timeout=0"]);
        command.arg(&place).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.mounts.push(Stopped(command.spawn().expect("nsenter is there")));
        wait_for_mount(&place);
    }

    /// The processes of the bricks, by their files.
    fn bricks(&self) -> Vec<rustix::process::Pid> {
        let of = |at: usize| {
            // Below /run of the node.
            let vols = self.home(at).join("place2/gluster/vols").join(VOLUME);
            let entries = fs::read_dir(vols).into_iter().flatten().flatten();
            let pid = |entry: fs::DirEntry| {
                let text = fs::read_to_string(entry.path()).ok()?;
                rustix::process::Pid::from_raw(text.trim().parse().ok()?)
            };
            entries.filter_map(pid).collect::<Vec<_>>()
        };
        (0..self.daemons.len()).flat_map(of).collect()
    }
}

impl Volume for Gluster {
    fn name(&self) -> &'static str {
        "glusterfs"
    }

    fn mounted(&self, at: usize) -> PathBuf {
        self.home(at).join("volume")
    }

    fn fence(&self) -> String {
        "fence = \"gate\"\n".to_owned()
    }

    fn make_whole(&mut self, _: &Networks) {
        self.wait_for_bricks();
    }
}

impl Drop for Gluster {
    fn drop(&mut self) {
        for at in 0..self.mounts.len() {
            let _ = rustix::mount::unmount(self.mounted(at), rustix::mount::UnmountFlags::DETACH);
        }
        self.mounts.clear();
        for pid in self.bricks() {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        self.daemons.clear();
    }
}

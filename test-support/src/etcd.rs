//! etcd as private processes: one member or several, each of which can be killed, frozen and started
//! again.

use std::{
    fs,
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    path::PathBuf,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use tempfile::TempDir;

use crate::{
    port::Port,
    process::{Stopped, foreign},
};

/// A cluster of etcd.
#[derive(Debug)]
pub struct Etcd {
    program: PathBuf,
    folder: TempDir,
    /// Where its members are reached.
    address: IpAddr,
    scheme: &'static str,
    arguments: Vec<String>,
    members: Vec<Member>,
}

#[derive(Debug)]
struct Member {
    process: Option<Stopped>,
    clients: Port,
    peers: Port,
    metrics: Port,
}

impl Etcd {
    /// Starts so many members on loopback; `None` where etcd is not installed, which is a check that is
    /// left out.
    pub fn start(count: usize) -> Option<Self> {
        Self::start_with(count, IpAddr::V4(Ipv4Addr::LOCALHOST), "http", &[])
    }

    /// The same with clients at an address of this machine, by `http` or `https`, and with more
    /// arguments.
    pub fn start_with(
        count: usize,
        address: IpAddr,
        scheme: &'static str,
        arguments: &[String],
    ) -> Option<Self> {
        let program = foreign("etcd")?;
        let folder = tempfile::Builder::new().prefix("etcd").tempdir().expect("a folder");
        let member = |_| Member {
            process: None,
            clients: Port::reserve(),
            peers: Port::reserve(),
            metrics: Port::reserve(),
        };
        let members = (0..count).map(member).collect();
        let arguments = arguments.to_vec();
        let mut etcd = Self { program, folder, address, scheme, arguments, members };
        (0..count).for_each(|at| etcd.launch(at));
        etcd.wait_for_leader();
        Some(etcd)
    }

    fn launch(&mut self, at: usize) {
        let peer = |port: &Port| format!("http://127.0.0.1:{}", port.number());
        let all = self.members.iter().enumerate();
        let all: Vec<_> = all.map(|(at, m)| format!("m{at}={}", peer(&m.peers))).collect();
        let member = &self.members[at];
        let clients = self.endpoint(at);
        let log = self.folder.path().join(format!("log{at}"));
        let log = fs::File::options().create(true).append(true).open(log);
        let mut command = Command::new(&self.program);
        for (key, value) in [
            ("--name", format!("m{at}")),
            ("--data-dir", self.folder.path().join(format!("m{at}")).display().to_string()),
            ("--listen-client-urls", clients.clone()),
            ("--advertise-client-urls", clients),
            ("--listen-peer-urls", peer(&member.peers)),
            ("--initial-advertise-peer-urls", peer(&member.peers)),
            ("--listen-metrics-urls", peer(&member.metrics)),
            ("--initial-cluster", all.join(",")),
            ("--initial-cluster-state", "new".to_owned()),
            ("--logger", "zap".to_owned()),
            ("--log-level", "error".to_owned()),
        ] {
            command.arg(format!("{key}={value}"));
        }
        let child = command
            .args(&self.arguments)
            .env("ETCD_UNSUPPORTED_ARCH", "arm64")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log.expect("the folder is writable"))
            .spawn()
            .expect("etcd starts");
        self.members[at].process = Some(Stopped(child));
    }

    /// Where clients reach a member.
    pub fn endpoint(&self, at: usize) -> String {
        format!("{}://{}:{}", self.scheme, self.address, self.members[at].clients.number())
    }

    /// Where clients reach all of them.
    pub fn endpoints(&self) -> Vec<String> {
        (0..self.members.len()).map(|at| self.endpoint(at)).collect()
    }

    /// Whether a member says that it leads.
    fn leads(&self, at: usize) -> bool {
        self.members[at].process.is_some()
            && self.metrics(at).is_some_and(|text| {
                text.lines().any(|line| line == "etcd_server_is_leader 1")
                    && text.lines().any(|line| line == "etcd_server_has_leader 1")
            })
    }

    fn metrics(&self, at: usize) -> Option<String> {
        let to: SocketAddr = self.members[at].metrics.address();
        let mut stream = TcpStream::connect_timeout(&to, Duration::from_millis(300)).ok()?;
        stream.set_read_timeout(Some(Duration::from_millis(500))).ok()?;
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        Some(text)
    }

    /// The member that leads, once one does.
    ///
    /// # Panics
    /// If none does within half a minute.
    pub fn wait_for_leader(&self) -> usize {
        let since = Instant::now();
        loop {
            if let Some(at) = (0..self.members.len()).find(|at| self.leads(*at)) {
                return at;
            }
            assert!(
                since.elapsed() < Duration::from_secs(30),
                "etcd has no leader:\n{}",
                self.log()
            );
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// What its members have said.
    pub fn log(&self) -> String {
        let one = |at| fs::read_to_string(self.folder.path().join(format!("log{at}")));
        (0..self.members.len()).filter_map(|at| one(at).ok()).collect()
    }

    /// Kills a member without warning.
    pub fn kill(&mut self, at: usize) {
        if let Some(mut process) = self.members[at].process.take() {
            process.0.kill().expect("it runs");
            process.0.wait().expect("it was ours");
        }
    }

    /// Starts a member again that was killed.
    pub fn restart(&mut self, at: usize) {
        self.launch(at);
    }

    /// Has a member stand still, or go on.
    pub fn freeze(&self, at: usize, still: bool) {
        if let Some(process) = &self.members[at].process {
            process.signal(if still { Signal::STOP } else { Signal::CONT });
        }
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for member in &mut self.members {
            if let Some(process) = &mut member.process {
                // Nothing of it is needed any more, and one that stands still does not end by itself.
                let _ = process.0.kill();
                let _ = process.0.wait();
            }
        }
    }
}

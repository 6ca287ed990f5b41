//! Two networks between a client and a server on this machine, in namespaces of their own.
//!
//! ```text
//!  namespace of the client            namespace of the server
//!    a0 10.77.1.2 ═════ veth pair ═════ a1 10.77.1.1
//!    b0 10.77.2.2 ═════ veth pair ═════ b1 10.77.2.1
//! ```
//!
//! The paths can be made slow (`tc`), lose their link (`ip link set down`) and swallow everything
//! (`iptables`). Needs root and these three programs.

use std::{
    fs::File,
    net::{IpAddr, SocketAddr},
    process::{Command, Output},
    time::Duration,
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::process::{foreign, run};

/// One of the two paths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Path {
    /// 10.77.1.0/24.
    A,
    /// 10.77.2.0/24.
    B,
}

/// One of the two ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Where the test is.
    Client,
    /// Where the server is.
    Server,
}

impl Path {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::A, Self::B];

    fn letter(self) -> char {
        match self {
            Self::A => 'a',
            Self::B => 'b',
        }
    }

    fn interface(self, end: End) -> String {
        format!("{}{}", self.letter(), if end == End::Client { 0 } else { 1 })
    }

    /// The address of one end.
    pub fn address(self, end: End) -> IpAddr {
        let net = if self == Self::A { 1 } else { 2 };
        IpAddr::from([10, 77, net, if end == End::Client { 2 } else { 1 }])
    }
}

/// The two networks; gone when dropped.
#[derive(Debug)]
pub struct Paths {
    name: String,
}

fn command(words: &[&str]) -> Output {
    run(Command::new(words[0]).args(&words[1..]), Duration::from_secs(30))
}

fn must(words: &[&str]) -> String {
    let output = command(words);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words:?}: {errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

impl Paths {
    /// Makes them, or says in one line what is missing.
    pub fn new() -> Option<Self> {
        for program in ["ip", "tc", "iptables"] {
            foreign(program)?;
        }
        let paths = Self { name: format!("bulkhead-{}", std::process::id()) };
        for end in [End::Client, End::Server] {
            let made = command(&["ip", "netns", "add", &paths.namespace(end)]);
            if !made.status.success() {
                let why = String::from_utf8_lossy(&made.stderr).trim().to_owned();
                test_support::skip(format_args!("network namespaces are not allowed here: {why}"));
                return None;
            }
            paths.ip(end, &["link", "set", "lo", "up"]);
        }
        for path in Path::BOTH {
            let (here, there) = (path.interface(End::Client), path.interface(End::Server));
            let other = paths.namespace(End::Server);
            let pair =
                ["link", "add", &here, "type", "veth", "peer", "name", &there, "netns", &other];
            paths.ip(End::Client, &pair);
            for end in [End::Client, End::Server] {
                let (interface, address) = (path.interface(end), path.address(end).to_string());
                paths.ip(end, &["addr", "add", &format!("{address}/24"), "dev", &interface]);
                paths.ip(end, &["link", "set", &interface, "up"]);
            }
        }
        Some(paths)
    }

    /// The namespace of an end.
    pub fn namespace(&self, end: End) -> String {
        format!("{}-{}", self.name, if end == End::Client { "c" } else { "s" })
    }

    fn ip(&self, end: End, words: &[&str]) -> String {
        must(&[&["ip", "-n", &self.namespace(end)][..], words].concat())
    }

    fn within(&self, end: End, words: &[&str]) -> String {
        must(&[&["ip", "netns", "exec", &self.namespace(end)][..], words].concat())
    }

    /// Moves this thread, and those that it starts from now on, to the client's end.
    pub fn enter(&self) {
        let path = std::path::Path::new("/run/netns").join(self.namespace(End::Client));
        let file = File::open(path).expect("it was made");
        let network = Some(LinkNameSpaceType::Network);
        move_into_link_name_space(std::os::fd::AsFd::as_fd(&file), network).expect("we are root");
    }

    /// Where a server with that port is reached.
    pub fn server(&self, path: Path, port: u16) -> SocketAddr {
        SocketAddr::new(path.address(End::Server), port)
    }

    /// Lets a path carry so many megabits a second each way.
    pub fn slow(&self, path: Path, megabits: u32) {
        let rate = format!("{megabits}mbit");
        for end in [End::Client, End::Server] {
            let interface = path.interface(end);
            let shape = ["tc", "qdisc", "replace", "dev", &interface, "root", "tbf", "rate", &rate];
            self.within(end, &[&shape[..], &["burst", "128kb", "latency", "100ms"]].concat());
        }
    }

    /// Takes that away.
    pub fn fast(&self, path: Path) {
        for end in [End::Client, End::Server] {
            self.within(end, &["tc", "qdisc", "del", "dev", &path.interface(end), "root"]);
        }
    }

    /// Takes the link of a path down at one end, or up again.
    pub fn link(&self, path: Path, end: End, up: bool) {
        let state = if up { "up" } else { "down" };
        self.ip(end, &["link", "set", &path.interface(end), state]);
    }

    /// Has a path swallow all that comes at either end, or not any more.
    pub fn swallow(&self, path: Path, swallow: bool) {
        let action = if swallow { "-I" } else { "-D" };
        for end in [End::Client, End::Server] {
            let interface = path.interface(end);
            let rule = ["iptables", "-w", action, "INPUT", "-i", &interface, "-j", "DROP"];
            self.within(end, &rule);
        }
    }

    /// Bytes that a path has carried both ways.
    pub fn carried(&self, path: Path) -> u64 {
        let interface = path.interface(End::Client);
        let text = self.ip(End::Client, &["-j", "-s", "link", "show", "dev", &interface]);
        let all: serde_json::Value = serde_json::from_str(&text).expect("ip writes JSON");
        let bytes = |way: &str| all[0]["stats64"][way]["bytes"].as_u64().expect("ip counts bytes");
        bytes("rx") + bytes("tx")
    }
}

impl Drop for Paths {
    fn drop(&mut self) {
        for end in [End::Client, End::Server] {
            command(&["ip", "netns", "del", &self.namespace(end)]);
        }
    }
}

//! Networks of their own: for a test, and for what a client calls a server.

use std::{
    fs, io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    process::Command,
    time::Duration,
};

use smb_client::{Dialled, Network};
use test_support::{
    Need,
    process::{foreign, run},
    skip,
};
use tokio::net::TcpStream;

/// Set where the network is our own.
const INSIDE: &str = "BULKHEAD_TEST_NETWORK";

/// Runs a test once more in a new network, for `limit` at most; `true` in there, when its body is to be
/// run.
///
/// # Panics
/// If the test fails in there.
pub fn in_a_network_of_its_own(test: &str, limit: Duration) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        let up = run(Command::new("ip").args(["link", "set", "lo", "up"]), limit);
        assert!(up.status.success(), "no loopback: {}", String::from_utf8_lossy(&up.stderr));
        return true;
    }
    for program in ["unshare", "nsenter", "ip", "iptables", "etcd"] {
        if foreign(program).is_none() {
            return false;
        }
    }
    if !rustix::process::geteuid().is_root() {
        skip(Need::Root.because("networks of one's own need root"));
        return false;
    }
    let ourselves = std::env::current_exe().expect("a running program has a path");
    let mut command = Command::new("unshare");
    command.arg("--net").arg(ourselves).args(["--exact", test, "--nocapture"]).env(INSIDE, "1");
    let output = run(&mut command, limit);
    let (out, error) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}{error}");
    false
}

/// A network in which one address has a name, which the system does not know.
#[derive(Debug)]
pub struct Named {
    /// The name.
    pub name: &'static str,
    /// What it stands for.
    pub address: IpAddr,
}

impl Network for Named {
    fn connect<'a>(
        &'a self,
        host: &'a str,
        port: u16,
    ) -> Pin<Box<dyn Future<Output = io::Result<Dialled>> + Send + 'a>> {
        Box::pin(async move {
            let address = if host == self.name { self.address } else { parsed(host)? };
            let stream = TcpStream::connect(SocketAddr::new(address, port)).await?;
            stream.set_nodelay(true)?;
            let (local, server) = (stream.local_addr()?.ip(), stream.peer_addr()?.ip());
            Ok(Dialled { stream: Box::new(stream), local, server, direct: None })
        })
    }
}

fn parsed(host: &str) -> io::Result<IpAddr> {
    host.parse().map_err(|_| io::Error::new(io::ErrorKind::NotFound, format!("no host {host}")))
}

/// Whether a process has ended; one that nobody has waited for has.
pub fn has_ended(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.is_empty() || stat.contains(") Z ")
}

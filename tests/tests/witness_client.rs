//! Our client with a witness: the node that it uses is frozen, and it goes on at the other before it would
//! have noticed by itself.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use bulkhead_tests::{
    port::Port,
    smbd::{PASSWORD, Smbd, USER},
};
use rustix::process::Signal;
use smb_client::{Client, ConnectOptions, Login, OpenOptions, Witness};

const LIMIT: Duration = Duration::from_secs(60);

/// Two nodes with one folder, reached as `localhost` at 127.0.0.1 and 127.0.0.2, at the same ports.
struct Nodes {
    one: Smbd,
    two: Smbd,
    port: u16,
    witness: u16,
    _ports: [Port; 2],
    _folder: tempfile::TempDir,
}

fn nodes() -> Nodes {
    let (port, witness) = (Port::reserve(), Port::reserve());
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("disk"), b"the same disk").unwrap();
    let node = |last: u8, name: &str, other: (u8, &str)| {
        let at = |port| SocketAddr::from(([127, 0, 0, last], port));
        let rest = format!(
            "[[share]]\nname = \"so\"\npath = \"{}\"\nusers = [\"{USER}\"]\ncluster = \"scale-out\"\n\
             [witness]\nlisten = [\"{}\"]\nname = \"{name}\"\naddresses = [\"127.0.0.{last}\"]\n\
             cluster_names = [\"localhost\"]\n\
             [[witness.node]]\nname = \"{}\"\naddresses = [\"127.0.0.{}\"]\n",
            folder.path().display(),
            at(witness.number()),
            other.1,
            other.0,
        );
        let server = Smbd::start_at(at(port.number()), "", &rest);
        let output = server.admin(&["witness", "state", other.1, "up"]);
        assert!(output.status.success(), "{output:?}");
        server
    };
    let (one, two) = (node(1, "ONE", (2, "TWO")), node(2, "TWO", (1, "ONE")));
    let numbers = (port.number(), witness.number());
    let _ports = [port, witness];
    Nodes { one, two, port: numbers.0, witness: numbers.1, _ports, _folder: folder }
}

impl Nodes {
    fn options(&self) -> ConnectOptions {
        ConnectOptions {
            witness: Witness::Port(self.witness),
            // A silent server is noticed by the witness, not by this.
            keep_alive: LIMIT * 10,
            request_timeout: LIMIT * 10,
            ..ConnectOptions::new("localhost", self.port, Login::new(USER, PASSWORD))
        }
    }

    /// Waits until a client waits to be told by a node.
    async fn until_registered(&self, with: &Smbd, uses: &str) {
        let since = Instant::now();
        loop {
            let output = with.admin(&["witness", "--json", "list"]);
            let list: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
            let waits = |client: &serde_json::Value| {
                client["waiting"] == true && client["address"] == uses && client["share"] == "so"
            };
            if list["clients"].as_array().unwrap().iter().any(waits) {
                return;
            }
            assert!(since.elapsed() < LIMIT, "{list}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

fn says(node: &Smbd, args: &[&str]) {
    let output = node.admin(&[&["witness"], args].concat());
    assert!(output.status.success(), "{output:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_leaves_a_frozen_node_when_its_witness_says_so_and_goes_back_when_told() {
    let mut nodes = nodes();
    let session = Client::connect(nodes.options()).await.unwrap();
    let tree = session.tree("so").await.unwrap();
    let file = tree.open("disk", OpenOptions::read()).await.unwrap();
    let at = async |last: u8| {
        let channels = session.channels().await.unwrap();
        assert_eq!(channels.len(), 1);
        assert_eq!(channels[0].1, std::net::IpAddr::from([127, 0, 0, last]));
    };
    at(1).await;
    nodes.until_registered(&nodes.two, "127.0.0.1").await;
    nodes.one.signal(Signal::STOP);
    says(&nodes.two, &["state", "ONE", "down"]);
    // All that was asked of the frozen node, and is asked from now on, is answered by the other.
    assert_eq!(tree.stat("disk").await.unwrap().len, 13);
    let mut text = vec![0; 13];
    use block_io::File;
    file.read_at(0, &mut text).await.unwrap();
    assert_eq!(text, b"the same disk");
    at(2).await;
    nodes.one.signal(Signal::CONT);
    says(&nodes.two, &["state", "ONE", "up"]);
    // It is registered anew, with the node that it does not use, and is sent back there.
    nodes.until_registered(&nodes.one, "127.0.0.2").await;
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    says(&nodes.one, &["move", "--client", &host, "ONE"]);
    nodes.until_registered(&nodes.two, "127.0.0.1").await;
    assert_eq!(tree.stat("disk").await.unwrap().len, 13);
    at(1).await;
    drop((file, tree, session));
    assert!(nodes.one.stop().is_empty() && nodes.two.stop().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_without_a_witness_service_works_as_before() {
    let nodes = nodes();
    let options = ConnectOptions { witness: Witness::Port(1), ..nodes.options() };
    let session = Client::connect(options).await.unwrap();
    let tree = session.tree("so").await.unwrap();
    assert_eq!(tree.stat("disk").await.unwrap().len, 13);
}

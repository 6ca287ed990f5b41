//! The witness service: with Samba's client at every level and in both representations of data, and with
//! clients that mean no good.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::{ChildStdout, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use bulkhead_tests::{
    Need,
    kdc::{HOST, Kdc, REALM},
    paths::{self, End, Paths},
    port::Port,
    process::{Stopped, foreign, run},
    rpc::{Failed, Rpc, login},
    skip,
    smbd::{PASSWORD, Smbd, USER},
};
use dce_rpc::{
    FaultStatus, SyntaxId, Transfer, epm,
    ndr::Handle,
    pdu::{Flags, Kind, Pdu, Request as Part},
    security::Level,
};
use witness::{Reply, Request, Status, Version, message::Register};

const LIMIT: Duration = Duration::from_secs(60);
/// The system's own, which Debian's packages are for.
const PYTHON: &str = "/usr/bin/python3";

/// A server with the witness service, and the endpoint mapper beside it.
struct Served {
    server: Smbd,
    witness: Port,
    mapper: Port,
}

fn served(limits: &str, rest: &str) -> Served {
    started(limits, rest, &|rest| Smbd::start("", rest))
}

fn started(limits: &str, rest: &str, start: &dyn Fn(&str) -> Smbd) -> Served {
    let (witness, mapper) = (Port::reserve(), Port::reserve());
    let rest = format!(
        "[[share]]\nname = \"so\"\npath = \"files\"\nusers = [\"{USER}\"]\ncluster = \"scale-out\"\n\
         [witness]\nlisten = [\"{}\"]\nendpoint_mapper = [\"{}\"]\nname = \"ONE\"\n\
         cluster_names = [\"files\", \"files.test\"]\naddresses = [\"127.0.0.1\"]\n\
         [[witness.node]]\nname = \"TWO\"\naddresses = [\"192.0.2.2\", \"192.0.2.12\"]\n\
         [witness.limits]\n{limits}\n{rest}",
        witness.address(),
        mapper.address(),
    );
    Served { server: start(&rest), witness, mapper }
}

impl Served {
    fn at(&self) -> SocketAddr {
        self.witness.address()
    }

    fn admin(&self, args: &[&str]) -> String {
        let output = self.server.admin(&[&["witness"], args].concat());
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {text}{error}");
        text
    }

    fn clients(&self) -> Vec<serde_json::Value> {
        let text = self.admin(&["--json", "list"]);
        let list: serde_json::Value = serde_json::from_str(&text).unwrap();
        list["clients"].as_array().unwrap().clone()
    }

    /// Waits until all of so many clients wait to be told.
    fn until_waiting(&self, count: usize) {
        let since = Instant::now();
        loop {
            let clients = self.clients();
            if clients.len() == count && clients.iter().all(|client| client["waiting"] == true) {
                return;
            }
            assert!(since.elapsed() < LIMIT, "{clients:?}");
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Samba's client, and what it says.
struct Samba {
    _process: Stopped,
    lines: BufReader<ChildStdout>,
}

impl Samba {
    fn start(binding: &str, user: &str, share: &str, notices: u32, kdc: Option<&Kdc>) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("python/witness.py");
        let mut command = Command::new(PYTHON);
        command.arg(script).args([binding, user, PASSWORD, "FILES", "192.0.2.2", share]);
        command.arg(notices.to_string()).stdout(Stdio::piped()).stdin(Stdio::null());
        if let Some(kdc) = kdc {
            kdc.client(&mut command);
        }
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { _process: Stopped(child), lines }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }
}

/// Whether the system's Python has Samba's bindings.
fn bindings() -> bool {
    let mut command = Command::new(PYTHON);
    command.args(["-c", "import samba.dcerpc.witness"]).stderr(Stdio::null());
    let there = command.status().is_ok_and(|status| status.success());
    if !there {
        skip(Need::Programs.because("python3-samba is not installed"));
    }
    there
}

/// Has a client of Samba go through all there is, up to the end of its registration.
fn all_notices(served: &Served, options: &str, kdc: Option<&Kdc>) {
    served.admin(&["state", "two", "up"]);
    let binding = format!("ncacn_ip_tcp:127.0.0.1[{},{options}]", served.witness.number());
    let user = if kdc.is_some() { "-" } else { USER };
    let mut samba = Samba::start(&binding, user, "so", 5, kdc);
    assert_eq!(samba.line(), "interface ONE 127.0.0.1 1 1 0x20000", "{options}");
    assert_eq!(samba.line(), "interface TWO 192.0.2.2 1 5 0x20000", "{options}");
    assert_eq!(samba.line(), "interface TWO 192.0.2.12 1 5 0x20000", "{options}");
    assert_eq!(samba.line(), "registered", "{options}");
    served.until_waiting(1);
    served.admin(&["state", "TWO", "down"]);
    assert_eq!(samba.line(), "changed TWO 255", "{options}");
    assert_eq!(samba.line(), "told 4 192.0.2.2/0x11 192.0.2.12/0x11", "{options}");
    served.until_waiting(1);
    served.admin(&["move", "--client", "client.example", "ONE"]);
    assert_eq!(samba.line(), "told 2 127.0.0.1/0x9", "{options}");
    served.until_waiting(1);
    served.admin(&["move", "--share", "SO", "127.0.0.1"]);
    assert_eq!(samba.line(), "told 3 127.0.0.1/0x9", "{options}");
    served.until_waiting(1);
    served.admin(&["state", "TWO", "up"]);
    assert_eq!(samba.line(), "changed TWO 1", "{options}");
    assert_eq!(samba.line(), "unregistered", "{options}");
    assert_eq!(samba.line(), "again 0x57", "{options}");
    assert_eq!(samba.line(), "refused 0x51a", "{options}");
    assert_eq!(samba.line(), "refused 0x57", "{options}");
    assert_eq!(samba.line(), "", "{options}");
}

#[test]
fn sambas_client_is_told_of_everything_signed_and_sealed_in_ndr_and_ndr64() {
    if !bindings() {
        return;
    }
    let served = served("", "");
    for level in ["sign", "seal"] {
        for transfer in ["", ",ndr64"] {
            for mechanism in ["spnego", "ntlm"] {
                all_notices(&served, &format!("{level},{mechanism}{transfer}"), None);
            }
        }
    }
}

#[test]
fn sambas_client_speaks_version_1_too_and_nobody_is_served_who_does_not_sign() {
    if !bindings() {
        return;
    }
    let served = served("", "");
    served.admin(&["state", "two", "up"]);
    let binding =
        |options: &str| format!("ncacn_ip_tcp:127.0.0.1[{},{options}]", served.witness.number());
    let mut samba = Samba::start(&binding("sign"), USER, "-", 1, None);
    while samba.line() != "registered" {}
    served.until_waiting(1);
    assert_eq!(served.clients()[0]["version"], 1);
    served.admin(&["state", "two", "down"]);
    assert_eq!(samba.line(), "changed TWO 255");
    assert_eq!(samba.line(), "unregistered");
    let mut samba = Samba::start(&binding("connect"), USER, "-", 0, None);
    assert_eq!(samba.line(), "", "it was told something");
}

#[test]
fn a_ticket_opens_the_service_in_three_parts_whatever_its_encryption() {
    if !bindings() {
        return;
    }
    for etype in [
        "aes128-cts-hmac-sha1-96",
        "aes256-cts-hmac-sha1-96",
        "aes128-cts-hmac-sha256-128",
        "aes256-cts-hmac-sha384-192",
    ] {
        let Some(kdc) = Kdc::start(etype) else { return };
        let folder = tempfile::tempdir().unwrap();
        let keytab = folder.path().join("keytab");
        kdc.keytab(&keytab);
        let rest = format!(
            "[kerberos]\nkeytab = \"{}\"\n[kerberos.users]\n\"alice@{REALM}\" = \"{USER}\"\n",
            keytab.display()
        );
        let served = served("", &rest);
        kdc.log_in("alice");
        let target = format!("target_hostname={HOST},target_principal=cifs/{HOST}");
        for options in ["krb5,sign", "krb5,seal", "spnego,seal,ndr64", "spnego,sign"] {
            all_notices(&served, &format!("{options},{target}"), Some(&kdc));
        }
    }
}

fn wish(share: Option<&str>) -> Register {
    Register {
        version: Version::V2.0,
        net_name: Some("files".into()),
        share_name: share.map(str::to_owned),
        address: Some("192.0.2.2".into()),
        client: Some("client.example".into()),
        all_addresses: false,
        keep_alive: 120,
    }
}

fn register(rpc: &mut Rpc) -> Result<Handle, Status> {
    match rpc.ask(&Request::RegisterEx(wish(Some("so")))) {
        Ok(Reply::Registered(done)) => done,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_endpoint_mapper_tells_the_port_to_anybody() {
    let served = served("", "");
    let at = served.mapper.address();
    let mut mapper = Rpc::bind(at, epm::INTERFACE, Transfer::Ndr, None).unwrap();
    let (opnum, stub) = epm::question(witness::INTERFACE, SyntaxId::NDR);
    let answer = mapper.call(opnum, &stub).unwrap();
    assert_eq!(epm::parse_answer(&answer).unwrap(), Some(served.witness.number()));
    let (opnum, stub) = epm::question(epm::INTERFACE, SyntaxId::NDR);
    assert_eq!(epm::parse_answer(&mapper.call(opnum, &stub).unwrap()).unwrap(), None);
    // The service itself is not there.
    let proof = Some((login(USER, PASSWORD), Level::Integrity));
    assert!(Rpc::bind(at, witness::INTERFACE, Transfer::Ndr, proof).is_err());
}

#[test]
fn who_does_not_know_the_password_is_not_let_in_and_its_connection_ends() {
    let served = served("", "");
    for (user, password) in [(USER, "wrong"), ("nobody", PASSWORD), ("", "")] {
        let refused = Rpc::witness(served.at(), user, password);
        assert!(matches!(refused, Err(Failed::Refused(_) | Failed::Ended)), "{user}");
    }
    // Who says nothing of itself is answered that this is denied.
    let mut nobody = Rpc::bind(served.at(), witness::INTERFACE, Transfer::Ndr, None).unwrap();
    let reply = nobody.ask(&Request::GetInterfaceList).unwrap();
    assert_eq!(reply, Reply::Interfaces(Err(Status::ACCESS_DENIED)));
    assert!(served.clients().is_empty());
}

#[test]
fn slow_and_mute_clients_end_and_others_are_served_meanwhile() {
    let served = served("logon_seconds = 1\nidle_seconds = 1", "");
    // One that says nothing, one that begins a message, one that has proved who it is and then begins
    // one, and one that asks for nothing.
    let mut mute = TcpStream::connect(served.at()).unwrap();
    let mut slow = TcpStream::connect(served.at()).unwrap();
    slow.write_all(&[5, 0, 11, 3, 0x10, 0, 0, 0, 200, 0, 0, 0]).unwrap();
    let mut begun = Rpc::witness(served.at(), USER, PASSWORD).unwrap();
    begun.stream.write_all(&[5, 0, 0]).unwrap();
    let mut idle = Rpc::witness(served.at(), USER, PASSWORD).unwrap();
    let mut waiting = Rpc::witness(served.at(), USER, PASSWORD).unwrap();
    let handle = register(&mut waiting).unwrap();
    let (opnum, stub) = Request::AsyncNotify(handle).encode(waiting.client.transfer());
    let call = waiting.client.call(opnum, &stub);
    while let Some(message) = waiting.client.transmit() {
        waiting.stream.write_all(&message).unwrap();
    }
    for stream in [&mut mute, &mut slow] {
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        assert!(std::io::copy(stream, &mut std::io::sink()).is_ok(), "it is not ended");
    }
    assert!(begun.is_ended() && idle.is_ended());
    // Who waits is not idle.
    served.admin(&["state", "two", "down"]);
    let dce_rpc::client::ClientStep::Answer(answer) = waiting.step().unwrap() else {
        panic!("no answer");
    };
    assert_eq!(answer.call, call);
}

#[test]
fn fragments_that_never_end_are_answered_with_a_fault_and_hold_little() {
    let served = served("", "");
    let mut rpc = Rpc::witness(served.at(), USER, PASSWORD).unwrap();
    // Parameters of 4 MiB, in fragments of some kilobytes.
    let failed = rpc.call(4, &vec![7; 4 << 20]);
    assert!(matches!(failed, Err(Failed::Fault(FaultStatus::OUT_OF_MEMORY))), "{failed:?}");
    // The connection is as good as before.
    assert!(register(&mut rpc).is_ok());
}

#[test]
fn a_message_that_was_changed_ends_its_connection_and_carries_nothing_out() {
    let served = served("", "");
    for spoil in ["byte", "verifier", "unsigned"] {
        let mut rpc = Rpc::witness(served.at(), USER, PASSWORD).unwrap();
        let (opnum, stub) = Request::RegisterEx(wish(Some("so"))).encode(rpc.client.transfer());
        rpc.client.call(opnum, &stub);
        let mut message = rpc.client.transmit().unwrap();
        let len = message.len();
        match spoil {
            "byte" => message[40] ^= 1,
            "verifier" => message[len - 1] ^= 1,
            _ => {
                let part = Part { context: 0, opnum, stub: &stub };
                let flags = Flags::FIRST.or(Flags::LAST);
                message = Pdu::encode(Kind::REQUEST, flags, 9, |out| part.encode(out));
            }
        }
        rpc.stream.write_all(&message).unwrap();
        if spoil == "unsigned" {
            // It is nobody's, and nobody is denied, in the clear.
            let mut answer = [0; 64];
            rpc.stream.read_exact(&mut answer[..24 + 24]).unwrap();
            assert_eq!(answer[2], Kind::RESPONSE.0);
            assert_eq!(answer[44..48], Status::ACCESS_DENIED.0.to_le_bytes());
        } else {
            assert!(rpc.is_ended(), "{spoil}");
        }
        assert!(served.clients().is_empty(), "{spoil}");
    }
}

#[test]
fn thousands_of_registrations_are_refused_by_the_name_of_their_limit_and_gone_with_their_clients() {
    let limits = "registrations = 300\nregistrations_per_user = 200";
    let served = served(limits, "");
    let mut rpc = Rpc::witness(served.at(), USER, PASSWORD).unwrap();
    let mut made = 0;
    for _ in 0..2000 {
        match register(&mut rpc) {
            Ok(_) => made += 1,
            Err(status) => assert_eq!(status, Status::NO_SYSTEM_RESOURCES),
        }
    }
    assert_eq!(made, 200);
    served.server.wait_for_log("witness.registrations_per_user");
    assert_eq!(served.clients().len(), 200);
    // Handles of other connections are no good, and nobody's are gone yet.
    let mut other = Rpc::witness(served.at(), USER, PASSWORD).unwrap();
    let reply = other.ask(&Request::AsyncNotify(Handle([1; 20]))).unwrap();
    assert_eq!(reply, Reply::Notified(Err(Status::NOT_FOUND)));
    drop(rpc);
    let since = Instant::now();
    while !served.clients().is_empty() {
        assert!(since.elapsed() < LIMIT, "registrations outlive their connection");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn an_administrator_is_told_what_cannot_be() {
    let served = served("", "");
    for (args, right) in [
        (&["state", "three", "up"][..], "there is no node three"),
        (&["move", "--client", "x", "three"], "neither a node"),
        (&["move", "--client", "x", "TWO"], "nobody is registered"),
    ] {
        let output = served.server.admin(&[&["witness"], args].concat());
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && error.contains(right), "{error}");
    }
    let plain = Smbd::start("", "");
    let output = plain.admin(&["witness", "list"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("no witness"));
}

/// smbtorture asks the endpoint mapper at port 135 for the service, and the file server at port 445 for its
/// shares, over a pipe on which it signs its calls. What it wants of a cluster of Windows it does not get.
#[test]
fn smbtorture_finds_the_service_by_the_endpoint_mapper() {
    let Some(torture) = foreign("smbtorture") else { return };
    let Some(between) = Paths::new() else { return };
    between.enter();
    let address = between.server(paths::Path::A, 445);
    let ip = address.ip();
    let rest = format!(
        "[[share]]\nname = \"so\"\npath = \"files\"\nusers = [\"{USER}\"]\ncluster = \"scale-out\"\n\
         [witness]\nlisten = [\"0.0.0.0:49152\"]\nendpoint_mapper = [\"0.0.0.0:135\"]\n\
         name = \"ONE\"\naddresses = [\"{ip}\"]\ncluster_names = [\"files\", \"{ip}\"]\n\
         [[witness.node]]\nname = \"TWO\"\naddresses = [\"192.0.2.2\"]\n"
    );
    let server = Smbd::start_within(&between.namespace(End::Server), address, "", &rest);
    let mut command = Command::new(torture);
    command.current_dir(server.scratch()).args(["-s", "/dev/null", "-U"]);
    command.arg(format!("{USER}%{PASSWORD}"));
    command.args([&format!("ncacn_ip_tcp:{ip}[sign]"), "rpc.witness"]);
    let output = run(&mut command, LIMIT);
    let text = String::from_utf8_lossy(&output.stdout);
    for test in ["GetInterfaceList", "Register", "UnRegister", "RegisterEx"] {
        assert!(text.contains(&format!("success: witness.{test}\n")), "{test}: {text}");
    }
    drop(server);
}

#[test]
fn the_ports_outlive_the_server_that_serves_them() {
    let served = started("", "", &|rest| Smbd::supervised(&[], "", rest));
    let mut rpc = Rpc::witness(served.at(), USER, PASSWORD).unwrap();
    let handle = register(&mut rpc).unwrap();
    let before = served.server.serving_pid().unwrap();
    let pid = rustix::process::Pid::from_raw(before.cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    assert!(rpc.is_ended());
    // Nobody is refused meanwhile: who connects waits for the next server.
    let mut rpc = Rpc::witness(served.at(), USER, PASSWORD).unwrap();
    let reply = rpc.ask(&Request::AsyncNotify(handle)).unwrap();
    assert_eq!(reply, Reply::Notified(Err(Status::NOT_FOUND)));
    assert!(register(&mut rpc).is_ok());
    let mut served = served;
    // The supervisor says that its server was lost.
    let said = served.server.stop();
    assert!(said.iter().all(|line| line.contains("server")), "{said:?}");
}

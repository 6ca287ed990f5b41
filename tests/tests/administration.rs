//! What administrators do with a running server: look, disconnect, reload, take snapshots.

use std::{
    fs,
    process::Command,
    time::{Duration, Instant},
};

use block_io::File;
use bulkhead_tests::{
    iscsi::ask,
    process::{foreign, run},
    smbd::{PASSWORD, Smbd, USER},
    volume::{Kind, Volume},
};
use serde_json::Value;
use smb_client::{Client, ConnectOptions, Create, Login, OpenOptions};

const LIMIT: Duration = Duration::from_secs(60);

fn smbclient(server: &Smbd, what: &str) -> Option<String> {
    let mut command = Command::new(foreign("smbclient")?);
    command
        .current_dir(server.scratch())
        .args(["-s", "/dev/null", "-p", &server.port().to_string()])
        .args(["-U", &format!("{USER}%{PASSWORD}"), "//127.0.0.1/vms", "-c", what]);
    let output = run(&mut command, LIMIT);
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    Some(out + &String::from_utf8_lossy(&output.stderr))
}

fn login(server: &Smbd) -> ConnectOptions {
    ConnectOptions {
        reconnect_timeout: Duration::from_secs(5),
        ..ConnectOptions::new("127.0.0.1", server.port(), Login::new(USER, PASSWORD))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_and_opens_are_shown_and_ended() {
    let server = Smbd::start("", "");
    let session = Client::connect(login(&server)).await.unwrap();
    let tree = session.tree("vms").await.unwrap();
    let file = tree.open("a.bin", OpenOptions::create(Create::New)).await.unwrap();
    file.write_at(0, b"content").await.unwrap();
    let status = ask(&server, &["server", "--json", "status"]);
    assert_eq!((&status["sessions"], &status["opens"]), (&Value::from(1), &Value::from(1)));
    assert_eq!(status["pid"], server.pid());
    assert!(status["connections"].as_u64() >= Some(1));
    let sessions = ask(&server, &["server", "sessions", "--json"]);
    assert_eq!(sessions[0]["user"], "ADMIN");
    assert_eq!(sessions[0]["dialect"], "3.1.1");
    assert_eq!(sessions[0]["shares"][0], "VMS");
    assert!(sessions[0]["clients"][0].as_str().unwrap().starts_with("127.0.0.1:"));
    let opens = ask(&server, &["server", "opens", "--json"]);
    assert_eq!(opens[0]["path"], "\\a.bin");
    assert_eq!(opens[0]["session"], sessions[0]["id"]);
    let shares = ask(&server, &["server", "shares", "--json"]);
    let vms = shares.as_array().unwrap().iter().find(|share| share["name"] == "vms").unwrap();
    assert_eq!((&vms["opens"], &vms["connected"]), (&Value::from(1), &Value::from(1)));
    assert_eq!(ask(&server, &["server", "locks", "--json"]), Value::Array(Vec::new()));
    // The tables have a line for each.
    let table = server.admin(&["server", "opens"]).stdout;
    let table = String::from_utf8_lossy(&table).into_owned();
    assert!(table.lines().count() == 2 && table.contains("\\a.bin"), "{table}");
    // An open that is closed stays closed; a session that is ended has nothing any more.
    let id = format!("{:x}", opens[0]["id"].as_u64().unwrap());
    assert_eq!(ask(&server, &["server", "disconnect", "--open", &id, "--json"]), 1);
    assert_eq!(ask(&server, &["server", "opens", "--json"]), Value::Array(Vec::new()));
    let ended = ask(&server, &["server", "disconnect", "--user", "Admin", "--json"]);
    assert_eq!(ended, 1);
    assert_eq!(ask(&server, &["server", "sessions", "--json"]), Value::Array(Vec::new()));
    let nobody = server.admin(&["server", "disconnect", "--user", "Admin"]);
    assert!(!nobody.status.success());
    let again = Client::connect(login(&server)).await.unwrap();
    let stat = again.tree("vms").await.unwrap().stat("a.bin").await.unwrap();
    assert_eq!(stat.len, 7, "nothing is forbidden to who logs in again");
}

/// Each connection is told with the reason why it has no RDMA, in JSON and below the table.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_say_why_they_have_no_rdma() {
    let direct = "rdma_listen = [\"127.0.0.1:0\"]";
    for (server, channels, why) in [
        ("", 1, "set server.rdma_listen"),
        (direct, 1, "did not ask for the server's interfaces"),
        (direct, 2, "did not come"),
    ] {
        let server = Smbd::start(server, "");
        let options = ConnectOptions { max_channels: channels, ..login(&server) };
        let session = Client::connect(options).await.unwrap();
        // A client that uses several connections asks when it has the first, and a tree on that.
        let _tree = session.tree("vms").await.unwrap();
        let began = Instant::now();
        let client = loop {
            let sessions = ask(&server, &["server", "sessions", "--json"]);
            let whys = sessions[0]["why_not_rdma"].as_array().unwrap();
            if whys.iter().all(|it| it.as_str().unwrap().contains(why)) {
                break sessions[0]["clients"][whys.len() - 1].as_str().unwrap().to_owned();
            }
            assert!(began.elapsed() < LIMIT, "{why}: {whys:?}");
        };
        let table = server.admin(&["server", "sessions"]).stdout;
        let table = String::from_utf8_lossy(&table).into_owned();
        let told = |line: &str| line.starts_with("no RDMA for ") && line.contains(&client);
        assert!(table.lines().any(|line| told(line) && line.contains(why)), "{table}");
    }
}

#[test]
fn the_admin_socket_is_its_owners_alone() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let server = Smbd::start("", "");
    let socket = server.scratch().join("state/admin.sock");
    let meta = fs::metadata(&socket).unwrap();
    assert_eq!(meta.permissions().mode() & 0o777, 0o600);
    assert_eq!(meta.uid(), rustix::process::geteuid().as_raw());
    // What is not a request is answered, and the next one is served.
    use std::io::{BufRead, BufReader, Write};
    for line in ["nonsense\n", "{\"op\":\"status\",\"x\":1\n", "{\"op\":\"status\"}\n"] {
        let mut stream = std::os::unix::net::UnixStream::connect(&socket).unwrap();
        stream.write_all(line.as_bytes()).unwrap();
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer).unwrap();
        let answer: Value = serde_json::from_str(&answer).unwrap();
        let good = line.ends_with("\"}\n");
        assert_eq!(answer["event"], if good { "done" } else { "failed" }, "{line}");
    }
}

#[test]
fn a_reload_is_answered_with_what_is_wrong() {
    let server = Smbd::start("", "");
    assert!(server.admin(&["server", "reload"]).status.success());
    let config = fs::read_to_string(server.config()).unwrap();
    fs::write(server.config(), format!("{config}[[share]]\nname = \"x\"\npath = \"gone\"\n"))
        .unwrap();
    let output = server.admin(&["server", "reload"]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && errors.contains("no such folder"), "{errors}");
}

#[test]
fn previous_versions_come_back_and_cannot_be_changed() {
    for kind in [Kind::Xfs, Kind::Btrfs] {
        let Some(volume) = Volume::mount(kind) else { return };
        let server = Smbd::start_in(&volume.path(), "", "");
        fs::create_dir(server.files().join("d")).unwrap();
        fs::write(server.files().join("d/f"), "first").unwrap();
        let take = || {
            let output = server.admin(&["share", "snapshot", "vms"]);
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8_lossy(&output.stdout).trim().to_owned()
        };
        let then = take();
        fs::write(server.files().join("d/f"), "second").unwrap();
        let Some(text) = smbclient(&server, "allinfo d\\f") else { return };
        assert!(text.contains(&then) && text.contains("size: 5"), "{kind:?}: {text}");
        let text = smbclient(&server, &format!("get {then}\\d\\f old")).unwrap();
        assert_eq!(fs::read(server.scratch().join("old")).unwrap(), b"first", "{kind:?}: {text}");
        for change in [
            format!("put old {then}\\d\\new"),
            format!("del {then}\\d\\f"),
            format!("mkdir {then}\\e"),
            format!("put old {then}\\d\\f"),
        ] {
            let text = smbclient(&server, &change).unwrap();
            assert!(text.contains("NT_STATUS_"), "{kind:?} {change}: {text}");
        }
        // Clients do not see where snapshots are.
        let text = smbclient(&server, "ls; cd .bulkhead").unwrap();
        assert!(text.contains("NT_STATUS_OBJECT_NAME_INVALID"), "{text}");
        assert_eq!(text.matches(".bulkhead").count(), 1, "{text}");
        let second = take();
        let list = ask(&server, &["share", "snapshot", "vms", "--list", "--json"]);
        assert_eq!(list, serde_json::json!([second, then]));
        let delete = server.admin(&["share", "snapshot", "vms", "--delete", &then]);
        assert!(delete.status.success(), "{}", String::from_utf8_lossy(&delete.stderr));
        let text = smbclient(&server, &format!("get {then}\\d\\f older")).unwrap();
        assert!(text.contains("NT_STATUS_OBJECT_NAME_NOT_FOUND"), "{text}");
        assert_eq!(fs::read(server.files().join("d/f")).unwrap(), b"second");
    }
}

#[test]
fn a_share_that_cannot_have_snapshots_says_so() {
    let server = Smbd::start("", "");
    let output = server.admin(&["share", "snapshot", "vms"]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() || errors.contains("put the share on Btrfs"), "{errors}");
    assert!(!server.admin(&["share", "snapshot", "nothing"]).status.success());
}

fn metric(page: &str, name: &str) -> u64 {
    let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name} in\n{page}")).parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_count_what_was_done() {
    use std::{
        io::{Read, Write},
        net::TcpStream,
    };
    let reserved = bulkhead_tests::port::Port::reserve();
    let port = reserved.number();
    let server = Smbd::start(&format!("metrics = \"127.0.0.1:{port}\""), "");
    let page = |path: &str| {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut page = String::new();
        stream.read_to_string(&mut page).unwrap();
        page
    };
    let session = Client::connect(login(&server)).await.unwrap();
    let tree = session.tree("vms").await.unwrap();
    let file = tree.open("a.bin", OpenOptions::create(Create::New)).await.unwrap();
    file.write_at(0, &[7; 100_000]).await.unwrap();
    for _ in 0..64 {
        file.read_at(0, &mut [0; 4096]).await.unwrap();
    }
    let text = page("/metrics");
    assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
    let count = |name: &str| metric(&text, &format!("bulkhead_smbd_{name}"));
    assert_eq!(count("requests_total{command=\"read\",class=\"success\"}"), 64);
    assert_eq!(count("sessions"), 1);
    assert_eq!(count("opens"), 1);
    assert!(count("received_bytes_total") >= 100_000);
    assert!(count("sent_bytes_total") >= 64 * 4096);
    assert!(count("request_seconds_count{kind=\"read\"}") >= 3, "{text}");
    // What was counted stays when the connection is gone.
    drop((file, tree, session));
    let since = std::time::Instant::now();
    while metric(&page("/metrics"), "bulkhead_smbd_connections") > 0 {
        assert!(since.elapsed() < LIMIT, "the connection does not end");
    }
    let text = page("/metrics");
    let reads = "bulkhead_smbd_requests_total{command=\"read\",class=\"success\"}";
    assert_eq!(metric(&text, reads), 64);
    assert!(page("/").starts_with("HTTP/1.1 404"));
}

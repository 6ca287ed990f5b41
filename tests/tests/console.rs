//! The web console: that the bundle in the tree is what its sources build, that each call has its place, and
//! journeys through it in a real browser.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use bulkhead_tests::{
    console::{Console, modules, sources},
    initiator::{self, TARGET, Who},
    iscsi,
    port::Port,
    process::{ours, run},
    smbd::{PASSWORD, USER},
    volume::{Kind, Volume},
};
use http_api::{OWN, OwnCall};
use serde_json::{Value, json};
use server_api::{CALLS, Role};
use smb_client::{ConnectOptions, Create, Login, OpenOptions, Session};
use tokio::net::{TcpListener, UnixStream};

const LIMIT: Duration = Duration::from_secs(120);

/// Most bytes that the bundle may have, compressed.
const LARGEST: usize = 350 << 10;

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Files of a folder with its folders that end like this.
fn files(folder: &Path, endings: &[&str]) -> Vec<PathBuf> {
    let (mut folders, mut found) = (vec![folder.to_owned()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if endings.iter().any(|ending| path.to_str().unwrap().ends_with(ending)) {
                found.push(path);
            }
        }
    }
    found
}

#[test]
fn the_bundle_in_the_tree_is_what_the_sources_build() {
    let Some(modules) = modules() else { return };
    let types = Command::new("node")
        .arg(modules.join("node_modules/typescript/bin/tsc"))
        .args(["--noEmit", "--typeRoots", "none", "-p"])
        .arg(project_of_types(&modules))
        .output()
        .unwrap();
    assert!(types.status.success(), "{}", text(&types.stdout));
    let out = tempfile::tempdir().unwrap();
    let mut build = Command::new("node");
    build.arg(sources().join("build.mjs")).arg(out.path());
    let built = run(build.env("BULKHEAD_CONSOLE_MODULES", &modules), LIMIT);
    assert!(built.status.success(), "{}", text(&built.stderr));
    let names = |folder: &Path| {
        let name = |path: PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
        files(folder, &[""]).into_iter().map(name).collect::<BTreeSet<_>>()
    };
    let dist = sources().join("dist");
    assert_eq!(names(out.path()), names(&dist));
    for name in names(&dist) {
        let same = fs::read(dist.join(&name)).unwrap() == fs::read(out.path().join(&name)).unwrap();
        assert!(same, "console/dist/{name} is not what the sources build: make console");
    }
}

/// A project for the checker of types with the sources beside the modules, where it looks for them.
fn project_of_types(modules: &Path) -> PathBuf {
    let folder = modules.join("sources");
    let _ = fs::remove_dir_all(&folder);
    for path in files(&sources().join("web"), &[".ts", ".tsx", ".json", ".css"]) {
        let place = folder.join("web").join(path.strip_prefix(sources().join("web")).unwrap());
        fs::create_dir_all(place.parent().unwrap()).unwrap();
        fs::copy(&path, place).unwrap();
    }
    fs::copy(sources().join("tsconfig.json"), folder.join("tsconfig.json")).unwrap();
    folder
}

#[test]
fn the_bundle_is_small() {
    let mut sum = 0;
    for path in files(&sources().join("dist"), &[""]) {
        let packed = run(Command::new("gzip").args(["-9", "-c"]).arg(&path), LIMIT);
        assert!(packed.status.success());
        sum += packed.stdout.len();
    }
    assert!((10 << 10..=LARGEST).contains(&sum), "{sum} bytes, compressed");
}

/// The list of calls that the pages have.
fn calls() -> Vec<Value> {
    let list = fs::read_to_string(sources().join("web/calls.json")).unwrap();
    serde_json::from_str(&list).unwrap()
}

/// What the list calls a call of the interface's own.
fn own_verb(call: OwnCall) -> &'static str {
    match call {
        OwnCall::LogIn => "login",
        OwnCall::WhoAmI => "whoami",
        OwnCall::Tokens => "tokens",
        OwnCall::NewToken => "token-create",
        OwnCall::Revoke => "token-revoke",
        OwnCall::Audit => "audit",
        OwnCall::Events => "events",
        OwnCall::Metrics => "metrics",
        OwnCall::Description => "describe",
    }
}

#[test]
fn each_call_has_a_page_and_a_command_or_a_reason() {
    let server =
        CALLS.iter().map(|call| (call.verb, call.method.name(), call.path, Some(call.role)));
    let own = OWN.iter().map(|row| (own_verb(row.call), row.method.name(), row.path, row.role));
    let named = host_api::CALLS.iter().map(|call| (format!("vm-{}", call.verb), call));
    let host = named.map(|(verb, call)| (verb, call.method.name(), call.path, Some(call.role)));
    let others =
        server.chain(own).map(|(verb, method, path, role)| (verb.to_owned(), method, path, role));
    let pages: String = files(&sources().join("web"), &[".tsx", ".ts"])
        .iter()
        .map(|path| fs::read_to_string(path).unwrap())
        .collect();
    let mut list = calls();
    for (verb, method, path, role) in others.chain(host) {
        let place = list.iter().position(|row| row["verb"] == *verb);
        let row = list.remove(place.unwrap_or_else(|| panic!("{verb} is not in calls.json")));
        let role = json!(role.map(|role: Role| role.to_string()));
        let is = json!([row["method"], row["path"], row["role"]]);
        assert_eq!(is, json!([method, path, role]), "{verb}");
        let reason = row["why"].as_str().is_some_and(|why| why.len() > 20);
        assert!(row["command"].is_string() != reason, "{verb}: a command, or why there is none");
        let seen = !row["pages"].as_array().unwrap().is_empty();
        assert!(seen && pages.contains(&format!("\"{verb}\"")), "{verb} is on no page");
    }
    assert!(list.is_empty(), "no such calls: {list:?}");
}

#[test]
fn each_command_is_one_of_the_tool() {
    for row in calls() {
        let Some(command) = row["command"].as_str() else { continue };
        let mut words = command.split(' ');
        assert_eq!(words.next(), Some("bulkhead"));
        let mut tool = Command::new(ours("bulkhead"));
        tool.args(words.clone().take_while(|word| !word.starts_with(['{', '-']))).arg("--help");
        let help = run(&mut tool, LIMIT);
        assert!(help.status.success(), "{command}: {}", text(&help.stderr));
        let help = text(&help.stdout);
        for option in words.filter(|word| word.starts_with("--")) {
            assert!(help.contains(option), "{command}: {option} is not in\n{help}");
        }
    }
}

#[test]
fn text_never_becomes_markup() {
    const FORBIDDEN: [&str; 9] = [
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "new Function",
        "style={",
        "localStorage",
        "document.cookie",
    ];
    let all = files(&sources().join("web"), &[".ts", ".tsx", ".html"]);
    assert!(all.len() > 20, "the sources are not where this test looks");
    for path in all {
        let text = fs::read_to_string(&path).unwrap();
        for word in FORBIDDEN {
            assert!(!text.contains(word), "{}: {word}", path.display());
        }
        assert!(text.lines().count() <= 650, "{} is longer than one role", path.display());
    }
}

#[test]
fn what_the_console_reckons_is_right() {
    let Some(modules) = modules() else { return };
    let given = json!({ "modules": modules, "sources": sources() });
    let units = Path::new(env!("CARGO_MANIFEST_DIR")).join("console/units.mjs");
    let mut node = Command::new("node");
    node.arg("--test").arg(units).env("BULKHEAD_CONSOLE_UNITS", given.to_string());
    let output = run(&mut node, LIMIT);
    assert!(output.status.success(), "{}", text(&output.stdout));
    assert!(!text(&output.stdout).contains("pass 0"), "there are tests");
}

async fn session(console: &Console) -> Session {
    let login = Login::new(USER, PASSWORD);
    let mut options = ConnectOptions::new("127.0.0.1", console.server.port(), login);
    // Who is cut stays away.
    options.reconnect_timeout = Duration::ZERO;
    smb_client::Client::connect(options).await.unwrap()
}

#[test]
fn a_wrong_password_is_said_and_a_log_out_revokes_the_token() {
    let console = Console::start("");
    console.journey("login", &json!({}));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_is_cut_from_the_page_of_its_share() {
    let console = Console::start("");
    let session = session(&console).await;
    let tree = session.tree("vms").await.unwrap();
    let held = tree.open("held.bin", OpenOptions::create(Create::New)).await.unwrap();
    if !console.journey("cut", &json!({})) {
        return;
    }
    use block_io::File;
    assert!(held.write_at(0, b"more").await.is_err(), "the open went with its session");
    let audit = fs::read_to_string(console.server.scratch().join("state/audit.jsonl")).unwrap();
    let cut = audit.lines().find(|line| line.contains("\"disconnect\"")).unwrap();
    let cut: Value = serde_json::from_str(cut).unwrap();
    assert_eq!(cut["who"], "operator");
    assert_eq!(cut["before"]["sessions"].as_array().map_or(0, Vec::len), 1, "{cut}");
}

#[test]
fn a_previous_version_is_taken_and_removed() {
    let Some(shared) = Volume::mount(Kind::Xfs) else { return };
    let Some(plain) = Volume::mount_in(&std::env::temp_dir(), Kind::Ext4, 16 << 20) else { return };
    let share = |name: &str, volume: &Volume| {
        let path = volume.path().join("share");
        fs::create_dir(&path).unwrap();
        format!(
            "[[share]]\nname = \"{name}\"\npath = \"{}\"\nusers = [\"{USER}\"]\n",
            path.display()
        )
    };
    let console = Console::start(&(share("versions", &shared) + &share("plain", &plain)));
    console.journey("versions", &json!({}));
}

#[test]
fn a_token_is_made_and_revoked() {
    let console = Console::start("");
    console.journey("tokens", &json!({}));
}

#[test]
fn who_holds_a_token_that_has_ended_comes_to_the_log_in() {
    let console = Console::start("");
    console.journey("expired", &json!({}));
}

#[test]
fn the_configuration_is_read_again_and_objects_are_declared() {
    let console = Console::start("");
    let config = fs::read_to_string(console.server.config()).unwrap();
    let added = format!(
        "{config}\n[[share]]\nname = \"added-by-hand\"\npath = \"files\"\nusers = [\"{USER}\"]\n"
    );
    fs::write(console.server.config(), added).unwrap();
    console.journey("reload", &json!({}));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_of_others_are_shown_as_text() {
    let console = Console::start("");
    let session = session(&console).await;
    let tree = session.tree("vms").await.unwrap();
    let mut held = Vec::new();
    for name in ["\u{202e}fdp.exe", "&lt;b&gt; plain"] {
        held.push(tree.open(name, OpenOptions::create(Create::New)).await.unwrap());
    }
    // No name of a file has < over SMB; who asks for a change may write anything.
    console.server.admin(&["server", "disconnect", "--user", "<script>alert(1)</script>\u{202e}"]);
    console.journey("hostile", &json!({}));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_viewer_is_told_what_is_not_for_them() {
    let console = Console::start("");
    let session = session(&console).await;
    let _tree = session.tree("vms").await.unwrap();
    console.journey("viewer", &json!({}));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_keyboard_is_enough() {
    let console = Console::start("");
    let session = session(&console).await;
    let _tree = session.tree("vms").await.unwrap();
    console.journey("keyboard", &json!({}));
}

/// A server with a target that has one LUN, at a port of its own, and the LUN's image.
fn with_target(image: &Path) -> (Console, Port) {
    let port = Port::reserve();
    let keys = format!("authentication = \"none\"\n{}", iscsi::lun(0, image, ""));
    (Console::start(&iscsi::section(&port, &keys)), port)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_initiator_is_disconnected_and_a_lun_takes_its_new_size() {
    let folder = tempfile::tempdir().unwrap();
    let image = iscsi::thin(folder.path(), "a.raw", 16 << 20);
    let (console, port) = with_target(&image);
    let who = Who { initiator: "iqn.me", ..Who::default() };
    let (_client, response) = initiator::Client::log_in(port.address(), who).await;
    assert_eq!(response.status, 0);
    fs::File::options().write(true).open(&image).unwrap().set_len(32 << 20).unwrap();
    console.journey("iscsi", &json!({ "target": TARGET }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_page_is_whole_and_accessible_on_a_desk_and_on_a_phone() {
    let folder = tempfile::tempdir().unwrap();
    let image = iscsi::thin(folder.path(), "a.raw", 16 << 20);
    let (console, port) = with_target(&image);
    let who = Who { initiator: "iqn.2024-01.com.example:me", ..Who::default() };
    let (_client, _) = initiator::Client::log_in(port.address(), who).await;
    let session = session(&console).await;
    let tree = session.tree("vms").await.unwrap();
    let mut held = Vec::new();
    for name in
        ["web-server.vhdx", "a name that is long and goes on and on, until it must be broken.docx"]
    {
        held.push(tree.open(name, OpenOptions::create(Create::New)).await.unwrap());
    }
    console.journey("pages", &json!({}));
}

#[test]
fn a_node_is_said_to_be_down_and_a_client_that_has_gone_is_not_told() {
    let (witness, mapper) = (Port::reserve(), Port::reserve());
    let console = Console::start(&format!(
        "[witness]\nlisten = [\"{}\"]\nendpoint_mapper = [\"{}\"]\nname = \"ONE\"\n\
         cluster_names = [\"files\"]\naddresses = [\"127.0.0.1\"]\n\
         [[witness.node]]\nname = \"TWO\"\naddresses = [\"192.0.2.2\"]\n",
        witness.address(),
        mapper.address(),
    ));
    // What the server says of it to the tool is what the page shows.
    let moved = console.server.admin(&["witness", "move", "--client", "NOBODY", "TWO"]);
    let said = if moved.status.success() { "registrations told" } else { "The server refuses:" };
    console.journey("witness", &json!({ "gone": said }));
}

#[test]
fn ten_thousand_sessions_are_a_list_like_any_other() {
    let console = Console::start("");
    console.journey("many", &json!({}));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_local_socket_has_the_console_without_a_log_in_under_its_own_name_only() {
    let console = Console::start("");
    let socket = console.server.scratch().join("state/api.sock");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    // As ssh -L forwards it.
    let forwarding = tokio::spawn({
        let socket = socket.clone();
        async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let socket = socket.clone();
                tokio::spawn(async move {
                    let mut far = UnixStream::connect(socket).await?;
                    tokio::io::copy_bidirectional(&mut near, &mut far).await
                });
            }
        }
    });
    let local = format!("http://localhost:{port}/");
    let gone =
        tokio::task::block_in_place(|| console.journey("socket", &json!({ "local": local })));
    forwarding.abort();
    let _ = gone;
    // A page elsewhere whose name was made to stand for this machine.
    use std::io::{Read, Write};
    for (host, status) in [("localhost", "200"), ("rebound.example.com", "403")] {
        let mut stream = std::os::unix::net::UnixStream::connect(&socket).unwrap();
        write!(stream, "GET /v1/status HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{host}: {answer}");
    }
}

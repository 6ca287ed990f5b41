//! The control interface over HTTP, as others meet it: who may do what, what strangers can take, and that
//! each verb is the same from afar.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::PathBuf,
    process::{Command, Output},
    sync::Arc,
    time::Duration,
};

use bulkhead_tests::{
    interface::{Interface, ROLES},
    process::{ours, run},
    smbd::{PASSWORD, Smbd, USER},
};
use http_api::{NewToken, OWN, OwnCall, TokenMade, client::Client};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use serde_json::{Value, json};
use server_api::{CALLS, Method, Role};
use smb_client::{ConnectOptions, Create, Login, OpenOptions};

const LIMIT: Duration = Duration::from_secs(60);

/// A server with the interface at a port of its own, and a user for each role.
struct Served {
    server: Smbd,
    interface: Interface,
}

type Tls = StreamOwned<ClientConnection, TcpStream>;

/// An answer without its body.
struct Head {
    status: u16,
    lines: Vec<String>,
}

fn head(stream: &mut impl Read) -> Head {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        match stream.read(&mut byte) {
            Ok(1) => bytes.push(byte[0]),
            _ => break,
        }
    }
    let text = String::from_utf8(bytes).expect("a head is ASCII");
    let mut lines = text.lines().map(str::to_owned);
    let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok());
    Head { status: status.unwrap_or_default(), lines: lines.collect() }
}

impl Head {
    fn has(&self, line: &str) -> bool {
        self.lines.iter().any(|it| it.eq_ignore_ascii_case(line))
    }
}

impl Served {
    fn start(keys: &str) -> Self {
        let interface = Interface::new();
        let server = Smbd::start("", &interface.table(keys));
        Self { server, interface }
    }

    fn ca(&self) -> PathBuf {
        self.interface.ca()
    }

    fn url(&self) -> String {
        self.interface.url()
    }

    fn token(&self, role: Role) -> String {
        self.interface.token(role)
    }

    fn client(&self, token: &str) -> Client {
        self.interface.client(token)
    }

    /// A connection with nothing said yet.
    fn connect(&self) -> std::io::Result<Tls> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.ca()).unwrap()).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = ServerName::try_from("localhost").unwrap();
        let session = ClientConnection::new(Arc::new(config), name).unwrap();
        let socket = TcpStream::connect(self.interface.port.address())?;
        socket.set_read_timeout(Some(LIMIT))?;
        let mut stream = StreamOwned::new(session, socket);
        stream.conn.complete_io(&mut stream.sock)?;
        Ok(stream)
    }

    /// What is answered to a request that is written like this.
    fn raw(&self, text: &str) -> Head {
        let mut stream = self.connect().unwrap();
        // It may be answered before all of it is written.
        let _ = stream.write_all(text.as_bytes());
        head(&mut stream)
    }

    fn status(&self, method: &str, path: &str, token: Option<&str>, body: &str) -> Head {
        let token = token.map(|token| format!("Authorization: Bearer {token}\r\n"));
        let kind = if body.is_empty() { "" } else { "Content-Type: application/json\r\n" };
        self.raw(&format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\n{}{kind}Content-Length: {}\r\n\r\n{body}",
            token.unwrap_or_default(),
            body.len()
        ))
    }

    fn afar(&self, token: &str, args: &[&str]) -> Output {
        self.interface.afar(token, args)
    }

    async fn session(&self) -> smb_client::Session {
        let login = Login::new(USER, PASSWORD);
        let options = ConnectOptions::new("127.0.0.1", self.server.port(), login);
        smb_client::Client::connect(options).await.unwrap()
    }
}

/// A path with something in the place of its fields.
fn filled(path: &str) -> String {
    let part = |part: &str| if part.starts_with('{') { "7".to_owned() } else { part.to_owned() };
    path.split('/').map(part).collect::<Vec<_>>().join("/")
}

#[test]
fn each_role_may_make_its_calls_and_no_others() {
    let served = Served::start("");
    let server = CALLS.iter().map(|call| (call.method, call.path, Some(call.role)));
    let own = OWN.iter().map(|row| (row.method, row.path, row.role));
    let all: Vec<_> = server.chain(own).collect();
    // In one connection for each: who shows no token is told nothing but that.
    for (method, path, role) in &all {
        let answer = served.status(method.name(), &filled(path), None, "");
        match role {
            Some(_) => {
                assert_eq!(answer.status, 401, "{path}");
                assert!(answer.has("www-authenticate: Bearer"));
            }
            None => assert_ne!(answer.status, 401, "{path}"),
        }
    }
    for own in ROLES {
        let token = served.token(own);
        for (method, path, role) in &all {
            let answer = served.status(method.name(), &filled(path), Some(&token), "");
            let allowed = role.is_none_or(|role| role <= own);
            assert_eq!(answer.status == 403, !allowed, "{own} {path}: {}", answer.status);
            assert!(answer.status != 401 && answer.status < 500, "{own} {path}: {}", answer.status);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_verb_is_the_same_from_afar() {
    let served = Served::start("");
    let session = served.session().await;
    let tree = session.tree("vms").await.unwrap();
    let _file = tree.open("a.bin", OpenOptions::create(Create::New)).await.unwrap();
    let token = served.token(Role::Administrator);
    for verb in [
        &["server", "sessions"][..],
        &["server", "sessions", "--json"],
        &["server", "opens", "--json"],
        &["server", "opens"],
        &["server", "locks", "--json"],
        &["server", "shares", "--json"],
        &["server", "history", "month", "--json"],
        &["why", "nothing"],
        &["target", "list", "--json"],
        &["target", "sessions"],
        &["target", "disconnect", "7"],
        &["lun", "resize", "iqn.2024-01.com.example:none", "0"],
        &["witness", "list"],
        &["witness", "state", "n1", "up"],
        &["witness", "move", "--share", "vms", "n1"],
        &["share", "snapshot", "nothing", "--list"],
        &["share", "snapshot", "nothing"],
        &["share", "snapshot", "nothing", "--delete", "@GMT-2026.11.21-00.38.05"],
        &["server", "reload"],
        &["server", "upgrade"],
        &["server", "disconnect", "--user", "nobody"],
    ] {
        let (here, there) = (served.server.admin(verb), served.afar(&token, verb));
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert_eq!(text(&there.stdout), text(&here.stdout), "{verb:?}");
        assert_eq!(there.status.code(), here.status.code(), "{verb:?}: {}", text(&there.stderr));
        assert_eq!(text(&there.stderr), text(&here.stderr), "{verb:?}");
    }
    let status = served.afar(&token, &["server", "status", "--json"]);
    let status: Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!((&status["pid"], &status["opens"]), (&json!(served.server.pid()), &json!(1)));
    let ended = served.afar(&token, &["server", "disconnect", "--user", USER, "--json"]);
    assert_eq!(String::from_utf8_lossy(&ended.stdout), "1\n");
    // What is not for a server elsewhere is not done here instead.
    for verb in [&["user", "list", "--file", "x"][..], &["target", "remove", "iqn.a"]] {
        let refused = served.afar(&token, verb);
        assert!(!refused.status.success());
        assert!(String::from_utf8_lossy(&refused.stderr).contains("--host"), "{verb:?}");
    }
    let untrusted = Client::remote(&served.url(), None, None).unwrap();
    let asked: Result<Value, _> = untrusted.ask(Method::Get, "/v1/openapi.json", None::<&()>);
    assert!(
        asked.unwrap_err().to_string().contains("certificate"),
        "a certificate of nobody known"
    );
}

#[test]
fn strangers_are_given_little_and_every_answer_is_strict() {
    let served = Served::start("");
    let answer = served.status("GET", "/v1/status", None, "");
    for line in [
        "content-type: application/json",
        "cache-control: no-store",
        "x-content-type-options: nosniff",
        "x-frame-options: DENY",
        "content-security-policy: default-src 'none'; frame-ancestors 'none'",
        "referrer-policy: no-referrer",
        "strict-transport-security: max-age=31536000",
    ] {
        assert!(answer.has(line), "{line} is not in {:?}", answer.lines);
    }
    assert!(!answer.lines.iter().any(|line| line.to_ascii_lowercase().starts_with("set-cookie")));
    let token = served.token(Role::Viewer);
    let many = "X: y\r\n".repeat(100);
    let long = "x".repeat(1 << 20);
    let json = "Content-Type: application/json\r\n";
    let known = format!("Authorization: Bearer {token}\r\n");
    let operator = served.token(Role::Operator);
    for (what, text, status) in [
        ("no token", "POST /v1/reload HTTP/1.1\r\nHost: x\r\nContent-Length: 999999\r\n\r\n".to_owned(), 401),
        ("headers", format!("GET /v1/status HTTP/1.1\r\nHost: x\r\n{many}\r\n"), 431),
        ("a long header", format!("GET /v1/status HTTP/1.1\r\nHost: {long}\r\n\r\n"), 431),
        ("a password that is a book", format!("POST /v1/login HTTP/1.1\r\nHost: x\r\n{json}Content-Length: 9000\r\n\r\n"), 413),
        ("no JSON", "POST /v1/login HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}".to_owned(), 415),
        ("a form", "POST /v1/login HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\n{}".to_owned(), 415),
        ("a page of ours", format!("GET /v1/status HTTP/1.1\r\nHost: x\r\nOrigin: https://x\r\n{known}\r\n"), 200),
        ("a page elsewhere", format!("GET /v1/status HTTP/1.1\r\nHost: x\r\nOrigin: https://y\r\n{known}\r\n"), 403),
        ("a page without a place", format!("GET /v1/status HTTP/1.1\r\nHost: x\r\nOrigin: null\r\n{known}\r\n"), 403),
        ("a page elsewhere that does not say where", format!("GET /v1/status HTTP/1.1\r\nHost: x\r\nSec-Fetch-Site: cross-site\r\n{known}\r\n"), 403),
        ("a page elsewhere before the log-in", format!("POST /v1/login HTTP/1.1\r\nHost: x\r\nOrigin: https://y\r\n{json}Content-Length: 2\r\n\r\n{{}}"), 403),
        ("a long body", format!("POST /v1/disconnect HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {operator}\r\n{json}Content-Length: 1048577\r\n\r\n"), 413),
        ("no call", "GET /v1/nothing HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), 404),
        ("no method", "PATCH /v1/status HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), 405),
        ("known", format!("GET /v1/whoami HTTP/1.1\r\nHost: x\r\n{known}\r\n"), 200),
    ] {
        let answer = served.raw(&text).status;
        // What is too long may be cut off while it is still being written.
        let cut = what == "a long header" && answer == 0;
        assert!(cut || answer == status, "{what}: {answer}");
    }
    assert!(served.status("PATCH", "/v1/status", None, "").has("allow: GET"));
}

#[test]
fn the_console_is_given_to_browsers_as_strictly_as_answers() {
    let served = Served::start("");
    for path in ["/", "/console.js", "/console.css", "/icon.svg", "/notices.txt"] {
        let answer = served.status("GET", path, None, "");
        assert_eq!(answer.status, 200, "{path}");
        for line in [
            "cache-control: no-cache",
            "x-content-type-options: nosniff",
            "x-frame-options: DENY",
            "referrer-policy: no-referrer",
            "cross-origin-resource-policy: same-origin",
            "cross-origin-opener-policy: same-origin",
            "vary: Accept-Encoding",
        ] {
            assert!(answer.has(line), "{path}: {line} is not in {:?}", answer.lines);
        }
        let header = |name: &str| {
            let line =
                |line: &String| Some(line.strip_prefix(name)?.strip_prefix(": ")?.to_owned());
            answer.lines.iter().find_map(line).unwrap_or_else(|| panic!("{path}: no {name}"))
        };
        let policy = header("content-security-policy");
        for part in ["default-src 'none'", "frame-ancestors 'none'", "trusted-types 'none'"] {
            assert!(policy.contains(part), "{policy}");
        }
        assert!(!policy.contains("unsafe") && !policy.contains('*'), "{policy}");
        let tag = header("etag");
        let again = format!("GET {path} HTTP/1.1\r\nHost: x\r\nIf-None-Match: {tag}\r\n\r\n");
        assert_eq!(served.raw(&again).status, 304, "{path}");
        assert_eq!(served.status("HEAD", path, None, "").status, 200);
        let refused = served.status("POST", path, None, "");
        assert!(refused.status == 405 && refused.has("allow: GET, HEAD"), "{path}");
    }
    for path in ["/index.html", "/console.js/", "/..", "/v1", "//", "/%2e"] {
        assert_eq!(served.status("GET", path, None, "").status, 404, "{path}");
    }
}

#[test]
fn strangers_leave_room_for_those_who_are_known() {
    let served = Served::start("connections = 4\nconnections_per_address = 4");
    let token = served.token(Role::Viewer);
    // The log-in's connection ends when its client is gone.
    let mut known = loop {
        if let Ok(stream) = served.connect() {
            break stream;
        }
    };
    let ask =
        format!("GET /v1/whoami HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n");
    known.write_all(ask.as_bytes()).unwrap();
    assert_eq!(head(&mut known).status, 200);
    // There is room for two strangers, and the next takes the place of the one that came first.
    let mut strangers = Vec::new();
    for _ in 0..8 {
        let mut stranger = loop {
            if let Ok(stream) = served.connect() {
                break stream;
            }
        };
        stranger.write_all(b"GET /v1/whoami HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        assert_eq!(head(&mut stranger).status, 401, "whoever comes last is heard");
        strangers.push(stranger);
    }
    let mut rest = BufReader::new(&mut known);
    let mut body = vec![0; 4];
    rest.read_exact(&mut body).unwrap();
    drop(rest);
    known.write_all(ask.as_bytes()).unwrap();
    let mut again = [0; 4096];
    assert!(known.read(&mut again).unwrap() > 0, "who is known is served on");
}

#[test]
fn a_password_that_is_guessed_makes_one_wait() {
    let served = Served::start("");
    let body = json!({ "user": "viewer", "password": "guess" }).to_string();
    let mut statuses = Vec::new();
    for _ in 0..12 {
        let answer = served.status("POST", "/v1/login", None, &body);
        statuses.push(answer.status);
        if answer.status == 429 {
            assert!(
                answer
                    .lines
                    .iter()
                    .any(|line| line.to_ascii_lowercase().starts_with("retry-after: "))
            );
            break;
        }
    }
    assert!(statuses.len() > 3 && statuses[..3] == [401; 3], "{statuses:?}");
    assert_eq!(statuses.last(), Some(&429), "{statuses:?}");
    // Also with the right one: an answer would say whether it is.
    let right = json!({ "user": "viewer", "password": "pw-viewer" }).to_string();
    assert_eq!(served.status("POST", "/v1/login", None, &right).status, 429);
    // A user whom nobody has is answered in the same way.
    let other = Served::start("");
    let nobody = json!({ "user": "nobody", "password": "x" }).to_string();
    assert_eq!(other.status("POST", "/v1/login", None, &nobody).status, 401);
}

/// What somebody shows at an address is not held against others there: a proxy has one for all.
#[test]
fn who_shows_a_good_token_does_not_wait_for_who_shows_a_wrong_one() {
    let served = Served::start("");
    let good = served.token(Role::Viewer);
    let status = |token: &str| served.status("GET", "/v1/whoami", Some(token), "").status;
    assert!((0..12).any(|_| status("bh_1_nothing") == 429), "who shows wrong ones does not wait");
    assert_eq!(status(&good), 200);
}

#[test]
fn tokens_end_when_they_are_revoked_and_with_their_user() {
    let served = Served::start("");
    let token = served.token(Role::Operator);
    let client = served.client(&token);
    let asked = NewToken { hours: 2, role: Some(Role::Viewer), note: "for cron".to_owned() };
    let made: TokenMade = client.ask(Method::Post, "/v1/tokens", Some(&asked)).unwrap();
    assert_eq!(made.role, Role::Viewer);
    let more = NewToken { role: Some(Role::Administrator), ..asked.clone() };
    let refused: Result<TokenMade, _> = client.ask(Method::Post, "/v1/tokens", Some(&more));
    assert!(refused.is_err(), "nobody gives more than they have");
    let long = NewToken { hours: u32::MAX, ..asked };
    let refused: Result<TokenMade, _> = client.ask(Method::Post, "/v1/tokens", Some(&long));
    assert!(refused.is_err());
    let is_good = |token: &str| served.status("GET", "/v1/whoami", Some(token), "").status == 200;
    assert!(is_good(&made.token));
    // Another user sees neither the token nor that there is one.
    let viewer = served.token(Role::Viewer);
    let path = format!("/v1/tokens/{}", made.id);
    assert_eq!(served.status("DELETE", &path, Some(&viewer), "").status, 404);
    assert_eq!(served.status("DELETE", &path, Some(&token), "").status, 200);
    assert!(!is_good(&made.token) && is_good(&token));
    let users = served.interface.users();
    let removed = Command::new(ours("bulkhead"))
        .args(["api", "user", "remove", "operator", "--file"])
        .arg(&users)
        .status()
        .unwrap();
    assert!(removed.success());
    assert!(served.server.admin(&["server", "reload"]).status.success());
    assert!(!is_good(&token), "a user who is gone has no token");
    assert!(is_good(&viewer));
    let kept = fs::read_to_string(served.server.scratch().join("state/api-tokens.json")).unwrap();
    for token in [&token, &viewer, &made.token] {
        assert!(!kept.contains(token.rsplit('_').next().unwrap()), "only hashes are kept");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_are_written_down_with_what_was_before_and_after() {
    let served = Served::start("");
    let session = served.session().await;
    let tree = session.tree("vms").await.unwrap();
    let name = "\u{202e}fdp.exe";
    let _file = tree.open(name, OpenOptions::create(Create::New)).await.unwrap();
    let token = served.token(Role::Administrator);
    // A name is shown as text: as JSON in bodies, escaped on a terminal.
    let opens = served.afar(&token, &["server", "opens"]);
    let opens = String::from_utf8(opens.stdout).unwrap();
    assert!(opens.contains("\\u202efdp.exe") && !opens.contains('\u{202e}'), "{opens}");
    let opens = served.afar(&token, &["server", "opens", "--json"]);
    let opens: Value = serde_json::from_slice(&opens.stdout).unwrap();
    assert_eq!(opens[0]["path"], format!("\\{name}"));
    let id = format!("{:x}", opens[0]["id"].as_u64().unwrap());
    assert!(served.afar(&token, &["server", "disconnect", "--open", &id]).status.success());
    // And one by the admin socket, which fails.
    assert!(!served.server.admin(&["server", "disconnect", "--user", "nobody"]).status.success());
    let audit = served.afar(&token, &["api", "audit", "--limit", "2"]);
    let lines = String::from_utf8(audit.stdout).unwrap();
    let records: Vec<Value> =
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(records.len(), 2, "{lines}");
    let uid = rustix::process::geteuid().as_raw();
    assert_eq!(records[0]["who"], format!("uid:{uid}"));
    assert_eq!(records[0]["from"], "admin.sock");
    assert!(records[0]["result"]["refused"].is_string());
    assert_eq!(records[1]["who"], "administrator");
    assert_eq!(records[1]["from"], "127.0.0.1");
    assert_eq!(records[1]["what"]["op"], "disconnect");
    assert_eq!(records[1]["before"]["opens"][0]["path"], format!("\\{name}"));
    assert_eq!(records[1]["after"]["opens"], json!([]));
    assert_eq!(records[1]["result"]["done"]["count"], 1);
    let log = fs::read(served.server.scratch().join("state/audit.jsonl")).unwrap();
    assert!(log.is_ascii());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_that_is_followed_tells_when_it_changes() {
    let served = Served::start("");
    let token = served.token(Role::Viewer);
    let mut stream = served.connect().unwrap();
    let ask = format!(
        "GET /v1/events/sessions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n"
    );
    stream.write_all(ask.as_bytes()).unwrap();
    let answer = head(&mut stream);
    assert!(answer.status == 200 && answer.has("content-type: text/event-stream"));
    let mut lines = BufReader::new(stream);
    let mut next = || loop {
        let mut line = String::new();
        assert!(lines.read_line(&mut line).unwrap() > 0, "the stream has ended");
        if let Some(data) = line.strip_prefix("data: ") {
            return serde_json::from_str::<Value>(data).unwrap()["sessions"].clone();
        }
    };
    assert_eq!(next(), json!([]));
    let session = served.session().await;
    assert_eq!(next()[0]["user"], "ADMIN");
    drop(session);
    served.server.admin(&["server", "disconnect", "--user", USER]);
    while next() != json!([]) {}
}

#[test]
fn the_local_socket_is_its_owners_alone_and_needs_no_token() {
    use std::os::unix::fs::{FileTypeExt, PermissionsExt};
    let server = Smbd::start("", "");
    let socket = server.scratch().join("state/api.sock");
    let about = fs::metadata(&socket).unwrap();
    assert!(about.file_type().is_socket() && about.permissions().mode() & 0o777 == 0o600);
    let ask = |args: &[&str]| {
        run(Command::new(ours("bulkhead")).args(args).env("BULKHEAD_API_SOCKET", &socket), LIMIT)
    };
    let me = ask(&["api", "whoami", "--json"]);
    let me: Value = serde_json::from_slice(&me.stdout).unwrap();
    assert_eq!((&me["role"], &me["from"]), (&json!("administrator"), &json!("api.sock")));
    let token = server.scratch().join("token");
    let made = ask(&[
        "api",
        "token",
        "create",
        "--hours",
        "1",
        "--role",
        "viewer",
        "--out",
        token.to_str().unwrap(),
    ]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    assert_eq!(fs::metadata(&token).unwrap().permissions().mode() & 0o777, 0o600);
    let list: Value =
        serde_json::from_slice(&ask(&["api", "token", "list", "--json"]).stdout).unwrap();
    assert_eq!((&list[0]["role"], list.as_array().unwrap().len()), (&json!("viewer"), 1));
    let described: Value = serde_json::from_slice(&ask(&["api", "describe"]).stdout).unwrap();
    let served: Value =
        Client::local(&socket).ask(Method::Get, "/v1/openapi.json", None::<&()>).unwrap();
    assert_eq!(served, described);
    assert!(
        OWN.iter()
            .any(|row| row.call == OwnCall::Metrics && described["paths"][row.path].is_object())
    );
}

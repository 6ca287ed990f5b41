//! The walls of the house: which crate may use which, and which folder of a crate may import which
//! other. ARCHITECTURE.md draws them; who wants an arrow against them moves the thing instead.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// What each crate of the workspace may depend on (not counting dependencies of tests).
const CRATES: &[(&str, &[&str])] = &[
    ("block-io", &[]),
    ("xca", &[]),
    ("smb-protocol", &["xca"]),
    ("dce-rpc", &["smb-protocol"]),
    ("witness", &["dce-rpc", "smb-protocol"]),
    ("console", &[]),
    ("control-socket", &[]),
    ("cluster", &["state-store"]),
    ("scsi", &["block-io"]),
    ("iscsi", &["scsi", "block-io"]),
    ("state-store", &["block-io"]),
    ("nbd", &["block-io"]),
    ("rdma", &[]),
    ("vhd", &["block-io"]),
    ("smb-client", &["smb-protocol", "block-io", "dce-rpc", "witness", "rdma"]),
    ("disk-source", &["block-io", "iscsi", "smb-client", "vhd"]),
    ("host-api", &["control-socket"]),
    ("server-api", &["control-socket"]),
    ("metric-catalogue", &[]),
    ("http-api", &["control-socket"]),
    ("vmm", &["block-io", "host-api"]),
    (
        "hyperv-host",
        &[
            "vmm",
            "disk-source",
            "vhd",
            "smb-client",
            "block-io",
            "host-api",
            "http-api",
            "metric-catalogue",
            "console",
        ],
    ),
    ("test-support", &["host-api", "iscsi", "smb-protocol"]),
    ("volume", &["smb-protocol", "block-io", "state-store"]),
    (
        "smb-server",
        &[
            "volume",
            "dce-rpc",
            "smb-protocol",
            "block-io",
            "state-store",
            "rdma",
            "metric-catalogue",
        ],
    ),
    (
        "smbd",
        &[
            "smb-server",
            "cluster",
            "volume",
            "smb-protocol",
            "server-api",
            "iscsi",
            "scsi",
            "disk-source",
            "smb-client",
            "vhd",
            "block-io",
            "state-store",
            "dce-rpc",
            "witness",
            "rdma",
            "metric-catalogue",
            "http-api",
            "console",
        ],
    ),
    (
        "bulkhead",
        &[
            "block-io",
            "cluster",
            "disk-source",
            "host-api",
            "http-api",
            "nbd",
            "server-api",
            "smb-client",
            "smb-protocol",
            "vhd",
            "control-socket",
            "state-store",
        ],
    ),
];

/// A folder (or file) of a crate, and what of the same crate nothing in it imports.
const FOLDERS: &[(&str, &[&str])] = &[
    ("vmm/src/platform", &["devices", "machine"]),
    ("vmm/src/devices", &["machine"]),
    ("hyperv-host/src/disks.rs", &["host", "migrate", "control", "recover"]),
    (
        "hyperv-host/src/agent",
        &["host", "migrate", "control", "recover", "tls", "disks", "config", "fault", "allowed"],
    ),
    ("hyperv-host/src/allowed.rs", &["host", "migrate", "disks", "control", "recover"]),
    (
        "hyperv-host/src/handover",
        &["host", "migrate", "control", "recover", "tls", "disks", "config", "fault", "allowed"],
    ),
    ("hyperv-host/src/host", &["migrate", "control", "recover"]),
    ("hyperv-host/src/tls.rs", &["host", "migrate", "control", "recover"]),
    ("hyperv-host/src/migrate", &["control", "recover"]),
    ("smb-client/src/channel_group.rs", &["connection", "channels", "session", "open"]),
    ("smb-client/src/session.rs", &["open", "reconnect"]),
    (
        "iscsi/src/pdu",
        &[
            "text",
            "negotiate",
            "chap",
            "config",
            "login",
            "session",
            "target",
            "driver",
            "initiator",
            "join",
            "server",
        ],
    ),
    ("iscsi/src/login.rs", &["initiator", "session", "target", "driver", "join", "server"]),
    ("iscsi/src/session", &["initiator", "login", "target", "driver", "join", "server"]),
    ("iscsi/src/initiator", &["budget", "driver", "join", "login", "server", "session", "target"]),
    ("rdma/src/smbd", &["connection", "in_process", "iwarp", "memory", "provider"]),
    ("rdma/src/memory.rs", &["connection", "in_process", "iwarp", "provider", "smbd"]),
    ("rdma/src/provider.rs", &["connection", "in_process", "iwarp", "smbd"]),
    ("rdma/src/in_process.rs", &["connection", "iwarp", "smbd"]),
    ("rdma/src/iwarp", &["connection", "in_process", "smbd"]),
    ("state-store/src/etcd/wire.rs", &["etcd", "store", "engine"]),
    ("cluster/src/engine.rs", &["admin", "config", "driver", "validate", "watch"]),
    ("cluster/src/transaction.rs", &["admin", "config", "driver", "validate", "watch"]),
    ("volume/src/fs", &["sharing", "open", "client"]),
    ("volume/src/sharing", &["open", "client"]),
    ("smb-server/src/session.rs", &["command", "exchange", "connection"]),
    ("smb-server/src/breaks", &["command", "exchange", "connection", "server"]),
    ("smb-server/src/rpc", &["command", "exchange", "connection"]),
    ("smb-server/src/config", &["command", "exchange", "connection", "server", "session"]),
    ("smb-server/src/command", &["connection"]),
    ("smb-server/src/exchange", &["connection"]),
    (
        "smb-server/src/transport",
        &["breaks", "command", "config", "connection", "exchange", "rpc", "server", "session"],
    ),
];

/// What of the system's network is named in `smb-server`, and by which folder alone.
const SOCKETS: (&str, &[&str]) = (
    "smb-server/src/transport",
    &[
        "TcpStream",
        "TcpListener",
        "TcpSocket",
        "UdpSocket",
        "UnixStream",
        "tokio::net",
        "rustix::net",
        "std::os::unix::net",
        "sockopt",
        "OUTQ",
        "TCP_INFO",
    ],
);

fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// The names of the workspace's crates that a manifest's `[dependencies]` have.
fn dependencies(manifest: &str, crates: &[&str]) -> Vec<String> {
    let mut inside = false;
    let mut found = Vec::new();
    for line in manifest.lines() {
        if line.starts_with('[') {
            inside = line == "[dependencies]";
        } else if inside {
            let name = line.split(['.', ' ', '=']).next().unwrap_or_default();
            found.extend(crates.contains(&name).then(|| name.to_owned()));
        }
    }
    found
}

/// The code of a file without its tests and comments.
fn code(text: &str) -> String {
    let end = text.find("#[cfg(test)]\nmod tests").unwrap_or(text.len());
    let lines = text[..end].lines().filter(|line| !line.trim_start().starts_with("//"));
    lines.collect::<Vec<_>>().join("\n")
}

/// The first parts of all `crate::…` paths, also in braces.
fn imports(code: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, start) in code.match_indices("crate::") {
        let rest = &code[at + start.len()..];
        if let Some(list) = rest.strip_prefix('{') {
            let (mut depth, mut word, mut first) = (0, String::new(), true);
            for c in list.chars() {
                match c {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    ',' if depth == 0 => first = true,
                    c if depth == 0 && first && (c.is_alphanumeric() || c == '_') => word.push(c),
                    _ if !word.is_empty() => {
                        found.push(std::mem::take(&mut word));
                        first = false;
                    }
                    _ => {}
                }
                if c == ',' && !word.is_empty() {
                    found.push(std::mem::take(&mut word));
                }
            }
            found.extend((!word.is_empty()).then_some(word));
        } else {
            found.push(rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect());
        }
    }
    found
}

fn files(path: &Path, into: &mut Vec<PathBuf>) {
    if path.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            files(&entry.unwrap().path(), into);
        }
    } else if path.extension().is_some_and(|ending| ending == "rs") {
        let name = path.file_name().unwrap_or_default();
        let inside = path.strip_prefix(project()).unwrap();
        let inside_tests = inside.components().any(|part| part.as_os_str() == "tests");
        if name != "tests.rs" && !inside_tests {
            into.push(path.to_owned());
        }
    }
}

#[test]
fn crates_depend_one_way() {
    let names: Vec<&str> = CRATES.iter().map(|(name, _)| *name).collect();
    for (name, allowed) in CRATES {
        let manifest = fs::read_to_string(project().join(name).join("Cargo.toml")).unwrap();
        for dependency in dependencies(&manifest, &names) {
            assert!(
                allowed.contains(&&*dependency),
                "{name} must not depend on {dependency}: see ARCHITECTURE.md"
            );
        }
    }
    let whole = fs::read_to_string(project().join("Cargo.toml")).unwrap();
    let members = whole.split_once("members = [").unwrap().1.split_once(']').unwrap().0;
    for member in members.split('"').skip(1).step_by(2).filter(|name| !name.starts_with("tests")) {
        assert!(names.contains(&member), "{member} has no line in this test");
    }
}

#[test]
fn folders_import_one_way() {
    for (place, nevers) in FOLDERS {
        let mut all = Vec::new();
        let path = project().join(place);
        assert!(path.exists(), "{place} is not there: this test guards nothing");
        files(&path, &mut all);
        assert!(!all.is_empty(), "{place} has no files: this test guards nothing");
        for file in all {
            for import in imports(&code(&fs::read_to_string(&file).unwrap())) {
                assert!(
                    !nevers.contains(&&*import),
                    "{} must not import crate::{import}: see ARCHITECTURE.md",
                    file.display()
                );
            }
        }
    }
}

#[test]
fn nothing_but_the_transport_names_a_socket() {
    let (home, words) = SOCKETS;
    let mut all = Vec::new();
    files(&project().join("smb-server/src"), &mut all);
    let home = project().join(home);
    let (inside, outside): (Vec<_>, Vec<_>) = all.iter().partition(|file| file.starts_with(&home));
    let names = |file: &Path| {
        let code = code(&fs::read_to_string(file).unwrap());
        words.iter().filter(|word| code.contains(**word)).copied().collect::<Vec<_>>()
    };
    assert!(inside.iter().any(|file| names(file).contains(&"TcpStream")), "it has moved");
    for file in outside {
        assert_eq!(names(file), [""; 0], "{}: see ARCHITECTURE.md", file.display());
    }
}

#[test]
fn a_forbidden_import_would_be_seen() {
    let text = "use crate::{\n    budget::{Held, User},\n    server,\n    command::create::job,\n};\n\
                fn f() -> crate::status::X { crate::exchange::g() }\n// crate::comment\n\
                #[cfg(test)]\nmod tests { use crate::connection; }\n";
    let seen = imports(&code(text));
    assert_eq!(seen, ["budget", "server", "command", "status", "exchange"]);
    let manifest = "[dependencies]\nsmbd.workspace = true\nvhd = { path = \"x\" }\nserde = \"1\"\n\
                    [dev-dependencies]\nvmm.workspace = true\n";
    assert_eq!(dependencies(manifest, &["smbd", "vhd", "vmm"]), ["smbd", "vhd"]);
}

//! Schemathesis over the description of the control interface: `api-fuzz PROGRAM [ARGUMENTS]`, where PROGRAM
//! is the whole path of its `schemathesis`; the arguments go to it as they are. `make api-fuzz` has it in a folder of its own.
//!
//! The server is private, with the interface at a port of its own on loopback; the caller is an
//! administrator. Streams, which do not end, are left out, and what would revoke the caller's own token.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    process::{Command, ExitCode},
};

use bulkhead_tests::{port::Port, smbd::Smbd};
use http_api::{LogIn, TokenMade, User, Users, client::Client};
use server_api::{Method, Role};

/// Operations that are left out, and the checks that are: names that nobody has are refused, though they are
/// well formed, and who shows three wrong tokens waits (429), where the check wants 401 for ever.
const LEFT_OUT: [&str; 6] = [
    "--exclude-operation-id",
    "token-revoke",
    "--exclude-path-regex",
    "^/v1/events/",
    "--exclude-checks",
    "positive_data_acceptance,ignored_auth",
];

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let Some(program) = arguments.next() else {
        eprintln!("api-fuzz PROGRAM [ARGUMENTS]: PROGRAM is schemathesis");
        return ExitCode::FAILURE;
    };
    let folder = tempfile::tempdir().expect("a folder");
    let place = folder.path();
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let (certificate, key) = (place.join("api.pem"), place.join("api-key.pem"));
    fs::write(&certificate, made.cert.pem()).expect("the folder is writable");
    fs::write(&key, made.signing_key.serialize_pem()).expect("the folder is writable");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("it is ours");
    let mut users = Users::none().expect("no users");
    let user = User::new("fuzz", Role::Administrator, "pw-of-fuzz").expect("a password");
    users.put(user);
    users.save(&place.join("api-users.toml")).expect("the folder is writable");
    let port = Port::reserve();
    let place = place.display();
    let section = format!(
        "[api]\nlisten = [\"{}\"]\ncertificate = \"{place}/api.pem\"\nkey = \"{place}/api-key.pem\"\n\
         users_file = \"{place}/api-users.toml\"\n",
        port.address()
    );
    let server = Smbd::start("", &section);
    let url = format!("https://localhost:{}", port.number());
    let stranger = Client::remote(&url, Some(&certificate), None).expect("a client");
    let asked = LogIn { user: "fuzz".to_owned(), password: "pw-of-fuzz".to_owned(), hours: 24 };
    let made: TokenMade =
        stranger.ask(Method::Post, "/v1/login", Some(&asked)).expect("it lets its user in");
    let status = Command::new(program)
        // It writes down examples where it is started.
        .current_dir(folder.path())
        .arg("run")
        .arg(format!("{url}/v1/openapi.json"))
        .arg("--header")
        .arg(format!("Authorization: Bearer {}", made.token))
        .arg("--tls-verify")
        .arg(&certificate)
        .args(LEFT_OUT)
        .args(arguments)
        .status()
        .expect("schemathesis starts");
    drop(server);
    if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

//! Remote procedures over IPC$ as Samba's smbclient and rpcclient call them.

use std::{
    fs,
    io::Write,
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use bulkhead_tests::{
    process::{Stopped, foreign, run},
    smbd::{PASSWORD, PASSWORD2, Smbd, USER, USER2},
};

const LIMIT: Duration = Duration::from_secs(60);
const HIDDEN: &str = "[[share]]\nname = \"hidden\"\npath = \"files\"\nusers = [\"admin\"]\n\
                      browseable = false\ncomment = \"not shown\"\n";

fn server() -> Smbd {
    Smbd::start("name = \"TESTER\"\ncomment = \"Disks\"\nadmin_users = [\"admin\"]", HIDDEN)
}

/// What `program` prints, run as a user against the server.
fn output(program: &str, server: &Smbd, user: &str, args: &[&str]) -> Option<String> {
    let password = if user == USER { PASSWORD } else { PASSWORD2 };
    let mut command = Command::new(foreign(program)?);
    command
        .current_dir(server.scratch())
        .args(["-s", "/dev/null", "-p", &server.port().to_string()])
        .args(["-U", &format!("{user}%{password}")])
        .args(args);
    let output = run(&mut command, LIMIT);
    let out = String::from_utf8_lossy(&output.stdout);
    Some(format!("{out}{}", String::from_utf8_lossy(&output.stderr)))
}

fn rpc(server: &Smbd, user: &str, what: &str) -> Option<String> {
    output("rpcclient", server, user, &["127.0.0.1", "-c", what])
}

fn contains(text: &str, all: &[&str]) {
    for part in all {
        assert!(text.contains(part), "{part:?} is missing in:\n{text}");
    }
}

#[test]
fn smbclient_lists_what_is_shown() {
    let server = server();
    let Some(list) = output("smbclient", &server, USER2, &["-L", "127.0.0.1"]) else { return };
    contains(&list, &["vms", "sealed", "ro", "Disk", "IPC$"]);
    assert!(!list.contains("hidden"), "{list}");
}

#[test]
fn rpcclient_asks_about_the_server() {
    let server = server();
    let what = "srvinfo; netshareenumall; netshareenum 1; netsharegetinfo vms; \
                netsharegetinfo hidden 1; netsharegetinfo vms 1005; netremotetod; \
                netnamevalidate fine 9; netnamevalidate a/b 9";
    let Some(text) = rpc(&server, USER, what) else { return };
    contains(
        &text,
        &["TESTER", "Disks", "netname: vms", "netname: IPC$", "not shown", "csc caching: 0"],
    );
    contains(&text, &["files", "max_uses", "SEC_DESC_DACL_PRESENT", "INVALID_NAME"]);
    let second = rpc(&server, USER2, "netsharegetinfo vms").unwrap_or_default();
    contains(&second, &["ACCESS_DENIED"]);
    let second = rpc(&server, USER2, "netsharegetinfo vms 1").unwrap_or_default();
    contains(&second, &["netname: vms"]);
    assert!(!second.contains("files"), "paths are for administrators: {second}");
    let nothing = rpc(&server, USER, "netsharegetinfo nothing 1").unwrap_or_default();
    contains(&nothing, &["NETNAMENOTFOUND"]);
}

#[test]
fn rpcclient_translates_names_and_browses_accounts() {
    let server = server();
    let Some(text) = rpc(&server, USER, "lookupnames admin Second Administrators") else { return };
    contains(&text, &["admin S-1-5-21-", "Second S-1-5-21-", "S-1-5-32-544 (Local Group: 4)"]);
    let sid = text.split_whitespace().nth(1).unwrap_or_default().to_owned();
    let text = rpc(&server, USER, &format!("lookupsids {sid} S-1-1-0")).unwrap_or_default();
    contains(&text, &["TESTER\\admin (1)", "\\Everyone (5)"]);
    let what = "lsaquery; getusername; enumdomains; querydominfo; enumdomusers; enumdomgroups; \
                enumalsgroups builtin; samlookupnames domain admin; queryuser admin";
    let text = rpc(&server, USER, what).unwrap_or_default();
    contains(&text, &["WORKGROUP", "Account Name: admin", "name:[TESTER]", "name:[Builtin]"]);
    contains(&text, &["Total Users:\t2", "user:[admin]", "user:[second]", "group:[None]"]);
    contains(&text, &["group:[Administrators]", "name admin:", "User Name   :\tadmin"]);
    let second = rpc(&server, USER2, "enumdomusers; enumdomgroups").unwrap_or_default();
    assert!(!second.contains(":["), "accounts are for administrators: {second}");
    for class in ["1", "2", "3", "5", "7", "8", "12"] {
        let text = rpc(&server, USER, &format!("querydominfo {class}")).unwrap_or_default();
        assert!(!text.contains("NT_STATUS"), "{class}: {text}");
    }
}

#[test]
fn administrators_see_and_end_sessions() {
    let server = server();
    let Some(program) = foreign("smbclient") else { return };
    // A client that stays until its input ends.
    let second = Command::new(program)
        .current_dir(server.scratch())
        .args(["-s", "/dev/null", "-p", &server.port().to_string()])
        .args(["-U", &format!("{USER2}%{PASSWORD2}"), "//127.0.0.1/vms"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let mut second = Stopped(second);
    let since = std::time::Instant::now();
    let Some(mut text) = rpc(&server, USER, "netsessenum") else { return };
    while !text.contains("Received 2 entries") {
        assert!(since.elapsed() < LIMIT, "{text}");
        text = rpc(&server, USER, "netsessenum").unwrap_or_default();
    }
    let refused = rpc(&server, USER2, "netsessenum; netfileenum").unwrap_or_default();
    contains(&refused, &["ACCESS_DENIED"]);
    let gone = rpc(&server, USER, &format!("netsessdel 127.0.0.1 {USER2}; netsessenum"));
    contains(&gone.unwrap_or_default(), &["Received 1 entries"]);
    drop(second.0.stdin.take());
}

/// A client that opens a file of the share and keeps it open until its input ends.
fn holder(server: &Smbd) -> Option<Stopped> {
    let mut child = Command::new(foreign("smbclient")?)
        .current_dir(server.scratch())
        .args(["-s", "/dev/null", "-p", &server.port().to_string()])
        .args(["-U", &format!("{USER2}%{PASSWORD2}"), "//127.0.0.1/vms"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    child.stdin.as_mut().unwrap().write_all(b"open held\n").unwrap();
    Some(Stopped(child))
}

#[test]
fn administrators_see_and_close_files() {
    let server = server();
    fs::write(server.files().join("held"), "x").unwrap();
    let Some(_holder) = holder(&server) else { return };
    let since = Instant::now();
    loop {
        let Some(text) = rpc(&server, USER, "netfileenum 3") else { return };
        if text.lines().any(|line| line == "\\vms\\held") {
            break;
        }
        assert!(since.elapsed() < LIMIT, "{text}");
    }
    let refused = rpc(&server, USER2, "netfileenum 3").unwrap_or_default();
    assert!(!refused.contains("held"), "{refused}");
    // rpcclient cannot close; Samba's bindings for Python can.
    let script = r#"
import sys
from samba import credentials, param
from samba.dcerpc import srvsvc
lp = param.LoadParm(); lp.set("smb ports", sys.argv[1])
def server(user, password):
    who = credentials.Credentials(); who.guess(lp)
    who.set_username(user); who.set_password(password)
    return srvsvc.srvsvc("ncacn_np:127.0.0.1", lp, who)
def files(admin):
    ctr = srvsvc.NetFileInfoCtr(); ctr.level = 3; ctr.ctr = srvsvc.NetFileCtr3()
    got, _, _ = admin.NetFileEnum(None, None, None, ctr, 0xffffffff, None)
    return {f.path: f for f in got.ctr.array or []}
admin = server(sys.argv[2], sys.argv[3])
held = files(admin)[r"\vms\held"]
print("user", held.user, "permissions", held.permissions & 1)
try:
    server(sys.argv[4], sys.argv[5]).NetFileClose(None, held.fid)
    print("closed by anyone")
except Exception as error:
    print("refused", error.args[0])
admin.NetFileClose(None, held.fid)
print("left", [p for p in files(admin) if "held" in p])
"#;
    let file = server.scratch().join("close.py");
    fs::write(&file, script).unwrap();
    // Debian's packages are those of its own Python, which need not be the first in the path.
    let mut pythons = ["/usr/bin/python3".into()].into_iter().chain(foreign("python3"));
    let Some(python) = pythons.find(|python: &PathBuf| {
        let known = Command::new(python).args(["-c", "import samba.dcerpc.srvsvc"]).output();
        known.is_ok_and(|output| output.status.success())
    }) else {
        bulkhead_tests::skip(
            bulkhead_tests::Need::Programs.because("python3-samba is not installed"),
        );
        return;
    };
    let port = server.port().to_string();
    let output =
        run(Command::new(python).arg(&file).args([&port, USER, PASSWORD, USER2, PASSWORD2]), LIMIT);
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    contains(&text, &["user SECOND permissions 1", "refused 5", "left []"]);
    assert!(output.status.success(), "{text}{errors}");
}

//! The control interface of a VM host over HTTP: who may do what, that the tool does the same from afar, what is
//! written down, and the figures for Prometheus.

use std::{
    io::{BufRead, BufReader},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Output},
    time::Duration,
};

use bulkhead_tests::{
    console::journey,
    interface::{Interface, ROLES},
    process::{foreign, ours, run},
};
use host_api::{CALLS, Request, VmHost, VmState};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use server_api::{Method, Role};
use test_support::host::{HostProcess, Payload};

const LIMIT: Duration = Duration::from_secs(60);

/// A host with the interface, and a VM that is off.
struct Served {
    host: HostProcess,
    vm: Payload,
    interface: Interface,
    folder: tempfile::TempDir,
}

impl Served {
    fn start() -> Option<Self> {
        test_support::kvm()?;
        let folder = tempfile::tempdir().unwrap();
        let (dir, interface) = (folder.path(), Interface::new());
        let more = format!(
            "[storage]\nlocations = [{dir:?}]\n[boot]\nfolders = [{dir:?}]\n{}",
            interface.table("")
        );
        let host = HostProcess::start_saying(dir, "a", &more);
        let vm = Payload::create(dir, &host, 64, "ws_mib=1 iops=500");
        Some(Self { host, vm, interface, folder })
    }

    fn config(&self) -> std::path::PathBuf {
        self.folder.path().join("a/host.toml")
    }

    fn socket(&self) -> std::path::PathBuf {
        self.folder.path().join("a/state/api.sock")
    }
}

fn said(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn a_vm_lives_by_calls_from_afar_and_every_change_is_written_down() {
    let Some(served) = Served::start() else { return };
    let (viewer, operator) =
        (served.interface.token(Role::Viewer), served.interface.token(Role::Operator));
    let administrator = served.interface.token(Role::Administrator);
    let list = said(&served.interface.afar(&viewer, &["vm", "list"]));
    assert!(list.contains("payload") && list.contains("off"), "{list}");
    let refused = served.interface.afar(&viewer, &["vm", "start", "payload"]);
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("another role"));
    said(&served.interface.afar(&operator, &["vm", "start", "payload"]));
    assert_eq!(served.host.state(&served.vm.name), Some(VmState::Running));
    // The console is its connection's.
    let console = served.interface.afar(&operator, &["vm", "console", "payload"]);
    assert!(String::from_utf8_lossy(&console.stderr).contains("without --host"));
    let why = said(&served.interface.afar(&viewer, &["why", "--vms", "payload"]));
    assert!(why.contains("payload"), "{why}");
    said(&served.interface.afar(&operator, &["vm", "stop", "payload", "--force"]));
    let failed = served.interface.afar(&operator, &["vm", "stop", "payload"]);
    assert!(String::from_utf8_lossy(&failed.stderr).contains("is off"), "{failed:?}");
    let denied = served.interface.afar(&operator, &["vm", "delete", "payload"]);
    assert!(!denied.status.success());
    said(&served.interface.afar(&administrator, &["vm", "rename", "payload", "other"]));
    said(&served.interface.afar(&administrator, &["vm", "delete", "other"]));
    // Both ways are in the log: Payload made the VM over the control socket.
    let client = served.interface.client(&administrator);
    let audit: Value = client.ask(Method::Get, "/v1/audit", None::<&()>).unwrap();
    let records = audit["records"].as_array().unwrap();
    let told: Vec<_> = records
        .iter()
        .rev()
        .map(|it| (it["what"]["op"].as_str().unwrap(), it["who"].as_str().unwrap()))
        .filter(|(op, _)| *op != "login")
        .collect();
    let uid = format!("uid:{}", rustix::process::getuid().as_raw());
    assert_eq!(
        told,
        [
            ("create", uid.as_str()),
            ("start", "operator"),
            ("stop", "operator"),
            ("stop", "operator"),
            ("rename", "administrator"),
            ("delete", "administrator"),
        ]
    );
    let created = records.iter().find(|it| it["what"]["op"] == "create").unwrap();
    assert_eq!(created["before"], Value::Null);
    assert_eq!(created["after"]["state"], "off");
    let deleted = records.iter().find(|it| it["what"]["op"] == "delete").unwrap();
    assert_eq!((&deleted["before"]["state"], &deleted["after"]), (&json!("off"), &Value::Null));
}

#[test]
fn each_call_is_for_its_role_and_those_above() {
    let Some(served) = Served::start() else { return };
    for role in ROLES {
        let client = served.interface.client(&served.interface.token(role));
        for call in &CALLS {
            // Of nothing that there is: a caller who may is told so.
            let path = call.path.replace("{name}", "nobody").replace("{what}", "nobody");
            let done: Result<Value, _> = client.ask(call.method, &path, Some(&json!({})));
            let refused = done.is_err_and(|error| error.to_string().contains("another role"));
            assert_eq!(refused, role < call.role, "{role} {}", call.verb);
        }
    }
    let stranger: Result<Value, _> =
        served.interface.stranger().ask(Method::Get, "/v1/vms", None::<&()>);
    assert!(stranger.is_err());
}

#[test]
fn the_local_socket_and_followed_lists_tell_of_changes() {
    let Some(served) = Served::start() else { return };
    let Some(curl) = foreign("curl") else { return };
    assert_eq!(served.socket().metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let socket = served.socket();
    let mut follow = Command::new(curl);
    follow.args(["--silent", "--no-buffer", "--unix-socket"]).arg(&socket);
    follow.arg("http://localhost/v1/events/list").stdout(std::process::Stdio::piped());
    let mut follower = test_support::process::Stopped(follow.spawn().unwrap());
    let mut lines = BufReader::new(follower.0.stdout.take().unwrap()).lines();
    let mut state = || {
        let data = lines.find_map(|line| line.unwrap().strip_prefix("data: ").map(str::to_owned));
        let list: Value = serde_json::from_str(&data.unwrap()).unwrap();
        list["vms"][0]["state"].as_str().unwrap().to_owned()
    };
    assert_eq!(state(), "off");
    let client = http_api::client::Client::local(&socket);
    client.call::<VmHost>(&Request::Start { name: served.vm.name.clone() }).unwrap();
    assert_eq!(state(), "running");
    let stop = Request::Stop { name: served.vm.name.clone(), force: true, timeout_s: None };
    client.call::<VmHost>(&stop).unwrap();
    assert_eq!(state(), "off");
    let other: Result<Value, _> = client.ask(Method::Get, "/v1/events/show", None::<&()>);
    assert!(other.is_err());
}

#[test]
fn figures_are_in_the_catalogue_and_say_what_guests_do() {
    let Some(served) = Served::start() else { return };
    let Some(curl) = foreign("curl") else { return };
    served.host.call(&Request::Start { name: served.vm.name.clone() }).unwrap();
    served.host.console(&served.vm.name).unwrap().next_line("progress");
    let mut command = Command::new(curl);
    command.args(["--silent", "--fail", "--unix-socket"]).arg(served.socket());
    let page = said(&run(command.arg("http://localhost/v1/metrics"), LIMIT));
    let value = |sample: &str| -> f64 {
        let line = page.lines().find_map(|line| line.strip_prefix(sample));
        line.unwrap_or_else(|| panic!("{sample} is not in {page}")).trim().parse().unwrap()
    };
    assert_eq!(value("bulkhead_host_vms{state=\"running\"}"), 1.0);
    assert_eq!(value("bulkhead_host_vms{state=\"failed\"}"), 0.0);
    let of = "{vm=\"payload\",disk=\"0\",kind=\"write\"}";
    assert!(value(&format!("bulkhead_vm_disk_operations_total{of}")) > 0.0);
    assert!(value(&format!("bulkhead_vm_disk_bytes_total{of}")) > 0.0);
    assert!(value("bulkhead_vm_resident_bytes{vm=\"payload\"}") > 0.0);
    let part = "{vm=\"payload\",disk=\"0\",part=\"whole\"}";
    assert!(value(&format!("bulkhead_vm_disk_seconds_count{part}")) > 0.0);
    for line in page.lines().filter(|line| !line.starts_with('#')) {
        let name = line.split(['{', ' ']).next().unwrap();
        assert!(metric_catalogue::of_sample(name).is_some(), "{name}");
    }
}

fn check(config: &Path) -> Output {
    let mut command = Command::new(ours("hyperv-host"));
    run(command.arg("--config").arg(config).arg("--check"), LIMIT)
}

#[test]
fn users_are_read_again_and_a_wrong_table_is_told() {
    let Some(served) = Served::start() else { return };
    let token = served.interface.token(Role::Operator);
    let mut remove = Command::new(ours("bulkhead"));
    remove.args(["api", "user", "remove", "operator", "--file"]).arg(served.interface.users());
    said(&run(&mut remove, LIMIT));
    let pid = Pid::from_raw(served.host.pid().cast_signed()).unwrap();
    kill_process(pid, Signal::HUP).unwrap();
    assert!(served.host.said("read again"), "{}", served.host.log());
    let refused = served.interface.afar(&token, &["vm", "list"]);
    assert!(!refused.status.success());
    // One that cannot be used changes nothing, and the host goes on.
    let config = served.config();
    let good = std::fs::read_to_string(&config).unwrap();
    for (more, why) in [
        ("folders = ['/srv']\n", "api.folders is for a file server"),
        ("token_hours = 0\n", "api.token_hours"),
        ("colour = 'red'\n", "colour"),
    ] {
        std::fs::write(&config, format!("{good}{more}")).unwrap();
        let output = check(&config);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && error.contains(why), "{error}");
    }
    kill_process(pid, Signal::HUP).unwrap();
    assert!(served.host.said("nothing is read again"), "{}", served.host.log());
    said(&served.interface.afar(&served.interface.token(Role::Viewer), &["vm", "list"]));
}

#[test]
fn a_browser_starts_and_moves_a_vm_and_makes_another() {
    let Some(served) = Served::start() else { return };
    let target = HostProcess::start(served.folder.path(), "b", 0, &[]);
    let disk = served.folder.path().join("other.raw");
    std::fs::File::create(&disk).unwrap().set_len(1 << 20).unwrap();
    let more = json!({
        "vm": "payload", "to": target.address(), "disk": disk, "nowhere": "/nowhere/x.raw",
    });
    if !journey(&served.interface, "vms", &more) {
        return;
    }
    assert_eq!(target.state(&served.vm.name), Some(VmState::Running));
    let Ok(host_api::Reply::List { vms }) = served.host.call(&Request::List) else { panic!() };
    assert!(vms.is_empty(), "{vms:?}");
}

//! Targets at a name service that nobody here wrote: open-isns (RFC 4171).

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use bulkhead_tests::{
    iscsi::{lun, thin},
    port::Port,
    process::{Stopped, foreign, ours, run, wait_for},
    smbd::Smbd,
};
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(60);
const ONE: &str = "iqn.2024-01.example:one";
const TWO: &str = "iqn.2024-01.example:two";

/// An iSNS server with a folder and a port of its own.
struct Isnsd {
    folder: tempfile::TempDir,
    port: Port,
    program: PathBuf,
    process: Option<Stopped>,
}

impl Isnsd {
    /// One that forgets who does not come back for three seconds.
    fn start(program: PathBuf) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut server = Self { folder, port: Port::reserve(), program, process: None };
        server.restart();
        server
    }

    /// Ends it, with all that it knew, and starts it again.
    fn restart(&mut self) {
        self.process = None;
        let at = |name: &str| self.folder.path().join(name).display().to_string();
        let _ = fs::remove_dir_all(at("database"));
        fs::create_dir(at("database")).unwrap();
        let lines = [
            format!("Database = {}", at("database")),
            format!("BindAddress = {}", self.port.address()),
            format!("PIDFile = {}", at("pid")),
            format!("Control.Socket = {}", at("control")),
            "Security = 0".into(),
            "SLPRegister = 0".into(),
            "RegistrationPeriod = 3".into(),
            // Nodes that are in no discovery domain find each other.
            "DefaultDiscoveryDomain = 1".into(),
        ];
        fs::write(at("isnsd.conf"), lines.join("\n")).unwrap();
        let mut command = Command::new(&self.program);
        command.args(["-f", "-c", &at("isnsd.conf")]);
        let log = fs::File::create(at("log")).unwrap();
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let child: Child = command.spawn().unwrap();
        self.process = Some(Stopped(child));
        wait_for(self.port.address());
    }

    /// The targets and their portals, as an initiator finds them.
    fn targets(&self) -> Value {
        let mut command = Command::new(ours("bulkhead"));
        let address = format!("isns://{}", self.port.address());
        command.args(["target", "--json", "discover", &address]);
        let output = run(&mut command, LIMIT);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn wait_until(&self, wanted: &Value) {
        let until = Instant::now() + LIMIT;
        loop {
            let now = self.targets();
            if now == *wanted {
                return;
            }
            assert!(Instant::now() < until, "{now} and not {wanted}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// What open-isns' own tool knows of nodes.
    fn listed(&self, isnsadm: &Path) -> String {
        let at = |name: &str| self.folder.path().join(name).display().to_string();
        let lines = [
            format!("ServerAddress = {}", self.port.address()),
            format!("Control.Socket = {}", at("control")),
            "Security = 0".into(),
            format!("SourceName = {ONE}"),
        ];
        fs::write(at("isnsadm.conf"), lines.join("\n")).unwrap();
        let mut command = Command::new(isnsadm);
        command.args(["-c", &at("isnsadm.conf"), "--query", &format!("iscsi-name={ONE}")]);
        let output = run(&mut command, LIMIT);
        let text = [output.stdout, output.stderr].concat();
        String::from_utf8_lossy(&text).into_owned()
    }
}

fn target(name: &str, image: &Path) -> String {
    format!(
        "[[target]]\nname = \"{name}\"\nalias = \"for people\"\nauthentication = \"none\"\n{}",
        lun(0, image, "")
    )
}

#[test]
fn targets_are_found_by_a_name_service_as_long_as_they_are_served() {
    let (Some(isnsd), Some(isnsadm)) = (foreign("isnsd"), foreign("isnsadm")) else { return };
    let mut names = Isnsd::start(isnsd);
    let folder = tempfile::tempdir().unwrap();
    let image = |name: &str| thin(folder.path(), name, 1 << 20);
    let port = Port::reserve();
    let head = format!(
        "[iscsi]\nlisten = [\"{}\"]\nisns = [\"{}\"]\nisns_entity = \"files.example\"\n",
        port.address(),
        names.port.address()
    );
    let (one, two) = (target(ONE, &image("one")), target(TWO, &image("two")));
    let mut server = Smbd::start("", &format!("{head}{one}{two}"));
    let portal = json!([{ "address": port.address().to_string(), "group": 1 }]);
    let found = |names: &[&str]| {
        names.iter().map(|name| json!({ "name": name, "portals": portal })).collect::<Value>()
    };
    names.wait_until(&found(&[ONE, TWO]));
    let listed = names.listed(&isnsadm);
    assert!(listed.contains("for people"), "{listed}");

    // What changes is told.
    let config = fs::read_to_string(server.config()).unwrap();
    fs::write(server.config(), config.replace(&two, "")).unwrap();
    assert!(server.admin(&["server", "reload"]).status.success());
    names.wait_until(&found(&[ONE]));

    // A server that lost what it knew is told again.
    names.restart();
    names.wait_until(&found(&[ONE]));

    // Targets that are not served are not found.
    server.stop();
    names.wait_until(&found(&[]));
}

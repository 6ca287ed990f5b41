//! `make interop-clients`: SMB clients that others wrote, from the registries, against smbd.
//!
//! ```text
//!  namespace of the client                                      namespace of the server
//!  round_trip.py ─► each client × dialect × protection ──────►  smbd, port 445
//!  pytest ─► pike's tests, signed and encrypted        ──────►     │
//!  nmap ─► its smb scripts                             ──────►     │
//!          └► target/interop/clients.json, table beside `tests/clients/expected.tsv`
//! ```
//!
//! Most of the clients know port 445 alone, so both ends are in network namespaces: that needs root.
//! What comes to something else than the table says fails the run; `--record` writes the table. Names
//! of clients as arguments run just those (`pike` and `nmap` are names too). Versions are pinned in
//! `tests/clients/requirements.txt` and `tests/clients/rust/Cargo.toml`.

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::Duration,
};

use bulkhead_tests::{
    paths::{self, End, Paths},
    process::{installed, run},
    smbd::{PASSWORD, Smbd, USER},
};
use serde_json::{Value, json};

const EXPECTED: &str = "clients/expected.tsv";
const HEAD: &str = "# What each client comes to against smbd, one line for each dialect and protection; for \
                    pike the tests\n# that pass, for nmap what it says. Written by `interop-clients --record`.\n";
/// What installing and building may take.
const SETUP: Duration = Duration::from_secs(900);
/// What all round trips of a client together may take.
const ROUND_TRIPS: Duration = Duration::from_secs(7200);
/// What all tests of pike may take.
const PIKE: Duration = Duration::from_secs(900);

/// What one client comes to at one dialect and protection.
struct Cell {
    key: String,
    outcome: String,
    /// Why it failed, or what else is to be known.
    note: String,
}

impl Cell {
    fn json(&self) -> Value {
        let Self { key, outcome, note } = self;
        json!({ "client": key.replace('\t', ", "), "outcome": outcome, "note": note })
    }
}

/// The clients, installed, and the server that they meet.
struct Field {
    clients: PathBuf,
    python: PathBuf,
    rust: PathBuf,
    paths: Paths,
    /// It demands signatures.
    server: Smbd,
    /// It takes what is not signed as well, and has a share `ca` that is continuously available: pike
    /// sends requests of sessions that there are not, and tests persistent handles.
    lenient: Smbd,
}

impl Field {
    /// Installs the clients into `folder`, where they stay for the next run, and starts smbd, twice.
    fn prepare(clients: &Path, folder: &Path) -> Result<Self, String> {
        let rust = build_rust(clients, folder)?;
        let python = install_python(clients, folder)?;
        let paths = Paths::new().ok_or("network namespaces are needed: run as root, with ip")?;
        let options = |signing| format!("signing = \"{signing}\"\nencryption = \"offered\"");
        let start = |port, signing, shares: &str| {
            let address = paths.server(paths::Path::BOTH[0], port);
            let namespace = paths.namespace(End::Server);
            Smbd::start_within(&namespace, address, &options(signing), shares)
        };
        let available = format!(
            "[[share]]\nname = \"ca\"\npath = \"files\"\nusers = [\"{USER}\"]\ncontinuously_available = true\n"
        );
        let (server, lenient) = (start(445, "required", ""), start(4450, "enabled", &available));
        Ok(Self { clients: clients.to_owned(), python, rust, paths, server, lenient })
    }

    /// A program in the client's namespace, with what it needs to log in.
    fn client(&self, program: &Path) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.paths.namespace(End::Client)]).arg(program);
        command.env("SMB_USER", USER).env("SMB_PASSWORD", PASSWORD).env("RUST_CLIENTS", &self.rust);
        command
    }

    fn host(&self) -> String {
        self.server.address().ip().to_string()
    }

    /// The round trips of one client.
    fn round_trips(&self, name: &str) -> Vec<Cell> {
        let scratch = self.server.scratch().join("client");
        fs::create_dir_all(&scratch).expect("the scratch folder takes another");
        let mut command = self.client(&self.python);
        command.arg(self.clients.join("round_trip.py")).arg(self.host()).arg(&scratch).arg(name);
        let output = run(&mut command, ROUND_TRIPS);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let cells = text.lines().filter_map(|line| {
            let fields: Vec<&str> = line.split('\t').collect();
            let [client, dialect, protection, outcome, note] = fields[..] else { return None };
            let key = format!("{client}\t{dialect}\t{protection}");
            Some(Cell { key, outcome: outcome.to_owned(), note: note.to_owned() })
        });
        let cells: Vec<Cell> = cells.collect();
        assert!(!cells.is_empty(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        cells
    }

    /// Pike's own tests, at 3.1.1.
    fn pike(&self, protection: &str) -> Cell {
        let choose = |yes: bool| if yes { "yes" } else { "no" };
        let mut command = self.client(&self.python);
        command
            .args([
                "-m",
                "pytest",
                "-q",
                "-p",
                "no:cacheprovider",
                "-rfE",
                "--tb=line",
                "-o",
                "python_files=*.py",
            ])
            .args(["--pyargs", "pike.test"])
            .env("PIKE_SERVER", self.host())
            .env("PIKE_PORT", self.lenient.address().port().to_string())
            .env("PIKE_SHARE", "ca")
            .env("PIKE_CREDS", format!("{USER}%{PASSWORD}"))
            .env("PIKE_SIGN", choose(protection == "signed"))
            .env("PIKE_ENCRYPT", choose(protection == "encrypted"))
            .current_dir(self.lenient.scratch());
        let output = run(&mut command, PIKE);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        for line in text.lines().filter(|line| line.starts_with("FAILED ")) {
            println!("  pike, {protection}: {line}");
        }
        let last = text.lines().last().unwrap_or_default().trim_matches('=').trim().to_owned();
        let passed = last.split(", ").find_map(|part| part.strip_suffix(" passed"));
        let outcome = passed.unwrap_or("none").to_owned();
        Cell { key: format!("pike\t3.1.1\t{protection}"), outcome, note: last }
    }

    /// What nmap's scripts find.
    fn nmap(&self) -> Vec<Cell> {
        const SCRIPTS: [(&str, &str); 4] = [
            ("smb-protocols", "311"),
            ("smb2-security-mode", "Message signing enabled and required"),
            ("smb2-capabilities", "Leasing"),
            ("smb2-time", "date: "),
        ];
        let one = |(script, wanted): (&str, &str)| {
            let mut command = self.client(Path::new("nmap"));
            command.args(["-n", "-Pn", "-p", "445", "--script", script, &self.host()]);
            let text = String::from_utf8_lossy(&run(&mut command, SETUP).stdout).into_owned();
            let outcome = if text.contains(wanted) { "ok" } else { "failed" };
            let said = text.lines().filter(|line| line.starts_with('|')).collect::<Vec<_>>();
            let note = if outcome == "ok" { String::new() } else { said.join(" ") };
            Cell { key: format!("nmap\t{script}\t-"), outcome: outcome.to_owned(), note }
        };
        SCRIPTS.into_iter().map(one).collect()
    }
}

/// The program for the crates, built apart from the product.
fn build_rust(clients: &Path, folder: &Path) -> Result<PathBuf, String> {
    let target = folder.join("rust");
    let manifest = clients.join("rust/Cargo.toml");
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(["build", "--quiet", "--locked", "--manifest-path"]).arg(manifest);
    command.arg("--target-dir").arg(&target);
    let output = run(&mut command, SETUP);
    if !output.status.success() {
        return Err(format!("rust-clients: {}", String::from_utf8_lossy(&output.stderr)));
    }
    Ok(target.join("debug/rust-clients"))
}

/// A Python with the packages of `requirements.txt`, installed anew only when that file changes.
fn install_python(clients: &Path, folder: &Path) -> Result<PathBuf, String> {
    let requirements = clients.join("requirements.txt");
    let wanted = fs::read(&requirements).map_err(|error| error.to_string())?;
    let venv = folder.join("python");
    let (python, have) = (venv.join("bin/python"), venv.join("requirements.txt"));
    if fs::read(&have).is_ok_and(|have| have == wanted) {
        return Ok(python);
    }
    let mut make = Command::new("python3");
    make.args(["-m", "venv", "--clear"]).arg(&venv);
    let mut install = Command::new(&python);
    install.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r"]);
    install.arg(&requirements);
    for step in [&mut make, &mut install] {
        let output = run(step, SETUP);
        if !output.status.success() {
            return Err(format!("{step:?}: {}", String::from_utf8_lossy(&output.stderr)));
        }
    }
    fs::write(have, wanted).map_err(|error| error.to_string())?;
    Ok(python)
}

/// The table: what is expected of each cell.
fn table(path: &Path) -> BTreeMap<String, String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let rows = lines.filter_map(|line| line.rsplit_once('\t'));
    rows.map(|(key, outcome)| (key.to_owned(), outcome.to_owned())).collect()
}

fn clients_of(clients: &Path) -> Vec<String> {
    let mut command = Command::new("python3");
    command.arg(clients.join("round_trip.py")).arg("--list");
    let output = run(&mut command, Duration::from_secs(60));
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

fn main() -> ExitCode {
    let (flags, names): (Vec<String>, Vec<String>) =
        env::args().skip(1).partition(|word| word.starts_with("--"));
    let tree = Path::new(env!("CARGO_MANIFEST_DIR"));
    let programs = env::current_exe().expect("it runs");
    let target = programs.parent().and_then(Path::parent).expect("it is in target/debug");
    for program in ["rclone", "nmap", "python3"] {
        if installed(program).is_none() {
            eprintln!("interop-clients: {program} is not installed; `make packages` installs it");
            return ExitCode::FAILURE;
        }
    }
    let folder = target.join("interop/clients");
    let mut field = match Field::prepare(&tree.join("clients"), &folder) {
        Ok(field) => field,
        Err(why) => {
            eprintln!("interop-clients: {why}");
            return ExitCode::FAILURE;
        }
    };
    let chosen = |name: &str| names.is_empty() || names.iter().any(|it| it == name);
    let path = tree.join(EXPECTED);
    let mut expected = table(&path);
    let (mut found, mut differs) = (Vec::new(), false);
    let mut show = |cells: Vec<Cell>| {
        for cell in cells {
            let Cell { key, outcome, note } = &cell;
            let wanted = expected.get(key).map_or("nothing", String::as_str);
            let mark = if wanted == outcome { "" } else { "  <-- not as expected" };
            differs |= wanted != outcome;
            println!("{:44} {outcome:8} {note}{mark}", key.replace('\t', ", "));
            found.push(cell);
        }
    };
    for name in clients_of(&field.clients).iter().filter(|name| chosen(name)) {
        show(field.round_trips(name));
    }
    if chosen("pike") {
        for protection in ["plain", "signed", "encrypted"] {
            show(vec![field.pike(protection)]);
        }
    }
    if chosen("nmap") {
        show(field.nmap());
    }
    for line in [field.server.stop(), field.lenient.stop()].concat() {
        println!("smbd says: {line}");
    }
    let rows: Vec<_> = found.iter().map(Cell::json).collect();
    let json = serde_json::to_string_pretty(&rows).expect("it is JSON");
    fs::write(target.join("interop/clients.json"), json).expect("the folder is ours");
    if flags.iter().any(|flag| flag == "--record") {
        expected.extend(found.into_iter().map(|cell| (cell.key, cell.outcome)));
        let rows = expected.iter().map(|(key, outcome)| format!("{key}\t{outcome}\n"));
        fs::write(path, HEAD.to_owned() + &rows.collect::<String>()).expect("the tree is ours");
        return ExitCode::SUCCESS;
    }
    if differs { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

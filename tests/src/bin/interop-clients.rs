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
//! `tests/clients/requirements.txt` and `tests/clients/rust/Cargo.toml`. With `--newest FOLDER`, the
//! Debian system that `tests/interop/newest.sh` makes, the client of that system runs, too: libsmb2.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::Duration,
};

use bulkhead_tests::{
    field::{self, Cell, Table},
    paths::{self, End, Paths},
    process::{installed, run},
    smbd::{PASSWORD, Smbd, USER},
};

const EXPECTED: &str = "clients/expected.tsv";
const HEAD: &str = "# What each client comes to against smbd, one line for each dialect and protection; for \
                    pike the tests\n# that pass, for nmap what it says. Written by `interop-clients --record`.\n";
/// What a script of nmap may take.
const SCRIPT: Duration = Duration::from_secs(300);
/// What all round trips of a client together may take.
const ROUND_TRIPS: Duration = Duration::from_secs(7200);
/// What all tests of pike may take; its signatures and ciphers are written in Python.
const PIKE: Duration = Duration::from_secs(3600);

/// The clients, installed, and the server that they meet.
struct Field {
    clients: PathBuf,
    python: PathBuf,
    rust: PathBuf,
    /// A folder with Debian's newest suite.
    newest: Option<PathBuf>,
    paths: Paths,
    /// It demands signatures.
    server: Smbd,
}

impl Field {
    /// Installs the clients into `folder`, where they stay for the next run, and starts smbd.
    fn prepare(clients: &Path, folder: &Path, newest: Option<PathBuf>) -> Result<Self, String> {
        let rust = field::build_rust(&clients.join("rust"), &folder.join("rust"))?;
        let rust = rust.join("rust-clients");
        let python =
            field::install_python(&clients.join("requirements.txt"), &folder.join("python"))?;
        let paths = Paths::new().ok_or("network namespaces are needed: run as root, with ip")?;
        let server = start(&paths, "required", "");
        Ok(Self { clients: clients.to_owned(), python, rust, newest, paths, server })
    }

    /// A server that takes what is not signed as well, and has a share `ca` that is continuously
    /// available: pike sends requests of sessions that there are not, and tests persistent handles. Some
    /// of its tests know port 445 alone, so no other server runs beside it.
    fn lenient(&self) -> Smbd {
        let available = format!(
            "[[share]]\nname = \"ca\"\npath = \"files\"\nusers = [\"{USER}\"]\ncontinuously_available = true\n"
        );
        start(&self.paths, "enabled", &available)
    }

    /// A program in the client's namespace, with what it needs to log in.
    fn client(&self, program: &Path) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.paths.namespace(End::Client)]).arg(program);
        command.env("SMB_USER", USER).env("SMB_PASSWORD", PASSWORD).env("RUST_CLIENTS", &self.rust);
        if let Some(newest) = &self.newest {
            command.env("NEWEST", newest);
        }
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

    /// Tests of pike at 3.1.1, against a server of their own: what failed, and what pytest says last.
    fn pytest(
        &self,
        protection: &str,
        tests: &str,
        said: &mut Vec<String>,
    ) -> (Vec<String>, String) {
        let choose = |yes: bool| if yes { "yes" } else { "no" };
        let mut lenient = self.lenient();
        let mut command = self.client(&self.python);
        command
            .args(["-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "pike_on_python3"])
            .args(["-rfE", "--tb=line", "-o", "python_files=*.py", "--pyargs", tests])
            .env("PYTHONPATH", &self.clients)
            .env("PIKE_SERVER", self.host())
            .env("PIKE_PORT", lenient.port().to_string())
            .env("PIKE_SHARE", "ca")
            .env("PIKE_CREDS", format!("{USER}%{PASSWORD}"))
            .env("PIKE_SIGN", choose(protection == "signed"))
            .env("PIKE_ENCRYPT", choose(protection == "encrypted"))
            .current_dir(lenient.scratch());
        let output = run(&mut command, PIKE);
        said.extend(lenient.stop());
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let failed = text.lines().filter_map(|line| {
            let test = line.strip_prefix("FAILED ")?.split(" - ").next()?;
            test.rsplit('/').next().map(str::to_owned)
        });
        let last = text.lines().last().unwrap_or_default().trim_matches('=').trim().to_owned();
        (failed.collect(), last)
    }

    /// Pike's own tests. What fails is tried once more by itself: a test that fails leaves files open
    /// which the next ones meet, and some bound how long the client may take.
    fn pike(&self, protection: &str, said: &mut Vec<String>) -> Cell {
        let (failed, last) = self.pytest(protection, "pike.test", said);
        let passed = last.split(", ").find_map(|part| part.strip_suffix(" passed"));
        let mut count: Option<usize> = passed.and_then(|passed| passed.parse().ok());
        for test in failed {
            let alone = format!("pike.test.{}", test.replacen(".py", "", 1));
            if self.pytest(protection, &alone, said).1.starts_with("1 passed") {
                count = count.map(|count| count + 1);
            } else {
                println!("  pike, {protection}, fails: {test}");
            }
        }
        let outcome = count.map_or_else(|| "none".to_owned(), |count| count.to_string());
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
            let text = String::from_utf8_lossy(&run(&mut command, SCRIPT).stdout).into_owned();
            let outcome = if text.contains(wanted) { "ok" } else { "failed" };
            let said = text.lines().filter(|line| line.starts_with('|')).collect::<Vec<_>>();
            let note = if outcome == "ok" { String::new() } else { said.join(" ") };
            Cell { key: format!("nmap\t{script}\t-"), outcome: outcome.to_owned(), note }
        };
        SCRIPTS.into_iter().map(one).collect()
    }
}

/// smbd at port 445, with a policy of signing and more shares.
fn start(paths: &Paths, signing: &str, shares: &str) -> Smbd {
    let options = format!("signing = \"{signing}\"\nencryption = \"offered\"");
    let address = paths.server(paths::Path::BOTH[0], 445);
    Smbd::start_within(&paths.namespace(End::Server), address, &options, shares)
}

fn clients_of(clients: &Path) -> Vec<String> {
    let mut command = Command::new("python3");
    command.arg(clients.join("round_trip.py")).arg("--list");
    let output = run(&mut command, Duration::from_secs(60));
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

fn main() -> ExitCode {
    let (mut record, mut newest, mut names) = (false, None, Vec::new());
    let mut words = env::args().skip(1);
    while let Some(word) = words.next() {
        match &word[..] {
            "--record" => record = true,
            "--newest" => newest = words.next().map(PathBuf::from),
            _ => names.push(word),
        }
    }
    let tree = Path::new(env!("CARGO_MANIFEST_DIR"));
    let programs = env::current_exe().expect("it runs");
    let target = programs.parent().and_then(Path::parent).expect("it is in target/debug");
    for program in ["rclone", "nmap", "python3"] {
        if installed(program).is_none() {
            eprintln!("interop-clients: {program} is not installed; `make needs` installs it");
            return ExitCode::FAILURE;
        }
    }
    let folder = target.join("interop/clients");
    let mut field = match Field::prepare(&tree.join("clients"), &folder, newest) {
        Ok(field) => field,
        Err(why) => {
            eprintln!("interop-clients: {why}");
            return ExitCode::FAILURE;
        }
    };
    let chosen = |name: &str| names.is_empty() || names.iter().any(|it| it == name);
    let mut table = Table::load(tree.join(EXPECTED), HEAD);
    let mut clients = clients_of(&field.clients);
    if field.newest.is_some() {
        clients.push("libsmb2".to_owned());
    }
    for name in clients.iter().filter(|name| chosen(name)) {
        table.show(field.round_trips(name));
    }
    if chosen("nmap") {
        table.show(field.nmap());
    }
    let mut said = field.server.stop();
    if chosen("pike") {
        for protection in ["plain", "signed", "encrypted"] {
            let cell = field.pike(protection, &mut said);
            table.show(vec![cell]);
        }
    }
    for line in said {
        println!("smbd says: {line}");
    }
    match table.finish(&target.join("interop/clients.json"), "client", record) {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

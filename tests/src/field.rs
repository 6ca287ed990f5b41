//! Programs that others wrote, set up from the registries, and the table of what each comes to.

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use serde_json::{Value, json};

use crate::process::run;

/// What installing and building may take.
const SETUP: Duration = Duration::from_secs(900);

/// What one program comes to in one case.
#[derive(Debug)]
pub struct Cell {
    /// The program and the case, tabs between them.
    pub key: String,
    /// `ok`, or what it came to instead.
    pub outcome: String,
    /// Why it failed, or what else is to be known.
    pub note: String,
}

impl Cell {
    /// As a row of the run's JSON; `what` names the column of keys.
    fn json(&self, what: &str) -> Value {
        let Self { key, outcome, note } = self;
        json!({ what: key.replace('\t', ", "), "outcome": outcome, "note": note })
    }
}

/// The outcomes that are expected, and those that a run found.
#[derive(Debug)]
pub struct Table {
    path: PathBuf,
    /// The comment that it begins with.
    head: &'static str,
    expected: BTreeMap<String, String>,
    found: Vec<Cell>,
    differs: bool,
}

impl Table {
    /// Reads what is expected from the file at `path`.
    pub fn load(path: PathBuf, head: &'static str) -> Self {
        let text = fs::read_to_string(&path).unwrap_or_default();
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let rows = lines.filter_map(|line| line.rsplit_once('\t'));
        let expected = rows.map(|(key, outcome)| (key.to_owned(), outcome.to_owned())).collect();
        Self { path, head, expected, found: Vec::new(), differs: false }
    }

    /// Takes what was found, and prints it beside what is expected.
    pub fn show(&mut self, cells: Vec<Cell>) {
        for cell in cells {
            let Cell { key, outcome, note } = &cell;
            let wanted = self.expected.get(key).map_or("nothing", String::as_str);
            let mark = if wanted == outcome { "" } else { "  <-- not as expected" };
            self.differs |= wanted != outcome;
            println!("{:44} {outcome:8} {note}{mark}", key.replace('\t', ", "));
            self.found.push(cell);
        }
    }

    /// Writes what was found to `json`, and with `record` to the table; whether all is as expected.
    ///
    /// # Panics
    /// If a file cannot be written.
    pub fn finish(mut self, json: &Path, what: &str, record: bool) -> bool {
        let rows: Vec<_> = self.found.iter().map(|cell| cell.json(what)).collect();
        let text = serde_json::to_string_pretty(&rows).expect("it is JSON");
        fs::write(json, text).expect("the folder is ours");
        if record {
            self.expected.extend(self.found.into_iter().map(|cell| (cell.key, cell.outcome)));
            let rows = self.expected.iter().map(|(key, outcome)| format!("{key}\t{outcome}\n"));
            let text = self.head.to_owned() + &rows.collect::<String>();
            fs::write(&self.path, text).expect("the tree is ours");
        }
        record || !self.differs
    }
}

/// Builds the package of the folder `source`, apart from the product, below `target`; the folder of its
/// programs.
///
/// # Errors
/// What cargo says.
pub fn build_rust(source: &Path, target: &Path) -> Result<PathBuf, String> {
    build(source, target, &[]).map(|()| target.join("debug"))
}

/// The same, optimised: as a client that is to cost little.
///
/// # Errors
/// What cargo says.
pub fn build_rust_optimised(source: &Path, target: &Path) -> Result<PathBuf, String> {
    build(source, target, &["--release"]).map(|()| target.join("release"))
}

fn build(source: &Path, target: &Path, how: &[&str]) -> Result<(), String> {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(["build", "--quiet", "--locked"]).args(how).arg("--manifest-path");
    command.arg(source.join("Cargo.toml")).arg("--target-dir").arg(target);
    let output = run(&mut command, SETUP);
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{}: {}", source.display(), String::from_utf8_lossy(&output.stderr)))
}

/// A Python in `folder` with the packages that the file `requirements` names, installed anew only when
/// that file changes.
///
/// # Errors
/// What does not succeed, and what it says.
pub fn install_python(requirements: &Path, folder: &Path) -> Result<PathBuf, String> {
    let wanted = fs::read(requirements).map_err(|error| error.to_string())?;
    let (python, have) = (folder.join("bin/python"), folder.join("requirements.txt"));
    if fs::read(&have).is_ok_and(|have| have == wanted) {
        return Ok(python);
    }
    let mut make = Command::new("python3");
    make.args(["-m", "venv", "--clear"]).arg(folder);
    let mut install = Command::new(&python);
    install.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r"]);
    install.arg(requirements);
    for step in [&mut make, &mut install] {
        let output = run(step, SETUP);
        if !output.status.success() {
            return Err(format!("{step:?}: {}", String::from_utf8_lossy(&output.stderr)));
        }
    }
    fs::write(have, wanted).map_err(|error| error.to_string())?;
    Ok(python)
}

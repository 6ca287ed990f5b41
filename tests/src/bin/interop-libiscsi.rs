//! libiscsi's conformance suite of a system in a folder (`tests/interop/newest.sh` makes one) against smbd, as
//! root: each of its tests by itself, on every kind of image.
//!
//! ```text
//!  tests ─► LUN 0 ── skipped ──► LUN with large physical blocks
//!             │            ├─────► read-only LUN: tests of what must not be written
//!             │            └─────► LUN with CHAP: tests of CHAP
//!             │                      what counts is the first that is not skipped
//!             ▼
//!  counts beside tests/interop/expected-newest-iscsi.tsv
//! ```
//!
//! A failure whose fault is the suite's is known by what the suite says; any other fails the run, and so do fewer
//! passes than the table has. `--record` writes the counts as the new table. Names of tests
//! (`Suite.Test`) as arguments run just those.

use std::{
    collections::BTreeMap,
    env, fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use bulkhead_tests::{
    iscsi::{Served, create, lun, thick, thin, vhdx},
    libiscsi::{Case, NO_END, Suite, Verdict},
};

const LIMIT: Duration = Duration::from_secs(120);
/// For what is known not to end.
const SHORT: Duration = Duration::from_secs(5);
const MIB: u64 = 1 << 20;
/// What the suite needs beside a medium: one that can be ejected, and atomic writes as long as its.
const KEYS: &str = "removable = true\natomic_sectors = 256\nsanitize_rate = \"1GiB\"";
/// `Sanitize.Reset` looks for most of a minute at one that goes on.
const SLOW: (&str, u16, &str) = ("Sanitize.Reset", 3, "removable = true\nsanitize_rate = \"9MiB\"");
/// The LUN that refuses writes.
const READ_ONLY: u16 = 2;
const SECRET: &str = "secret-of-alice";

/// Failures that are the suite's own, with what it says. docs/interop.md has why.
const OWN: &[(&str, &str)] = &[
    ("CompareAndWrite.InvalidDataOutSize", "failed with Sense: (null)(0x0e)/(0x1d00)"),
    ("iSCSISendTargets.Simple", "CU_ASSERT_EQUAL(status,0)"),
    ("iSCSISendTargets.Invalid", NO_END),
];

/// A kind of image: its name in the table, how it is made, keys of its LUN, and those of one with several
/// logical blocks in a physical one.
struct Kind {
    name: &'static str,
    make: fn(&Path, &str) -> PathBuf,
    keys: &'static str,
    large: Option<&'static str>,
}

const KINDS: &[Kind] = &[
    Kind {
        name: "thin raw image, 512 bytes a sector",
        make: |folder, name| thin(folder, name, 64 * MIB),
        keys: "physical_sector = 512",
        large: Some(""),
    },
    Kind {
        name: "thick raw image, 4096 bytes a sector",
        make: |folder, name| thick(folder, name, 64 * MIB),
        keys: "sector = 4096\nthin = false",
        large: None,
    },
    Kind {
        name: "thick raw image, 512 bytes a sector",
        make: |folder, name| thick(folder, name, 64 * MIB),
        keys: "thin = false\nphysical_sector = 512",
        large: Some("thin = false"),
    },
    Kind {
        name: "VHDX",
        make: |folder, name| vhdx(folder, &format!("{name}.vhdx"), "64M"),
        keys: "physical_sector = 512",
        large: Some(""),
    },
    Kind {
        name: "fixed VHDX",
        make: |folder, name| create(folder, &format!("{name}.vhdx"), &["--size", "64M", "--fixed"]),
        keys: "physical_sector = 512",
        large: Some(""),
    },
];

/// Servers with LUNs of one kind.
struct Servers {
    open: Served,
    secret: Served,
    /// The LUNs of `open` that a test is tried on in turn.
    luns: Vec<u16>,
    _folder: tempfile::TempDir,
}

impl Servers {
    fn start(kind: &Kind) -> std::io::Result<Self> {
        let folder = tempfile::tempdir()?;
        let make = |name: &str| (kind.make)(folder.path(), name);
        let keys = format!("{KEYS}\n{}", kind.keys);
        let mut units = lun(0, &make("first"), &keys);
        let mut luns = vec![0];
        if let Some(large) = kind.large {
            units += &lun(1, &make("large"), &format!("{KEYS}\n{large}"));
            luns.push(1);
        }
        units += &lun(READ_ONLY, &make("still"), &format!("{keys}\nread_only = true"));
        luns.push(READ_ONLY);
        units += &lun(SLOW.1, &make("slow"), &format!("{}\n{}", SLOW.2, kind.keys));
        let open = Served::start(&format!("authentication = \"none\"\n{units}"));
        let file = folder.path().join("secret");
        fs::write(&file, SECRET)?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600))?;
        let chap = format!("chap = [{{ user = \"alice\", secret_file = \"{}\" }}]", file.display());
        let secret = Served::start(&format!("{chap}\n{}", lun(0, &make("locked"), &keys)));
        Ok(Self { open, secret, luns, _folder: folder })
    }

    /// Where a test may look, in order. One that does not ask for a LUN that refuses writes, or for a log-in
    /// with a secret, would say there what has nothing to do with it.
    fn urls(&self, name: &str) -> Vec<String> {
        let (suite, _) = name.split_once('.').unwrap_or((name, ""));
        let reads = suite == "ReadOnly" || name == "Sanitize.Readonly";
        let luns = self.luns.iter().filter(|lun| **lun != READ_ONLY || reads);
        let mut urls: Vec<String> = luns.map(|lun| self.open.url("", *lun)).collect();
        if suite == "iSCSICHAP" {
            urls.push(self.secret.url(&format!("alice%{SECRET}@"), 0));
        }
        urls
    }

    /// What the servers had to complain of.
    fn stop(mut self) -> Vec<String> {
        let mut complaints = self.open.server.stop();
        complaints.extend(self.secret.server.stop());
        complaints
    }
}

/// Runs one test wherever it might look, until it does.
fn one(suite: &Suite, name: &str, urls: &[String]) -> Case {
    let own = OWN.iter().find(|(own, _)| *own == name);
    let limit = if own.is_some_and(|(_, said)| *said == NO_END) { SHORT } else { LIMIT };
    let mut last = None;
    for url in urls {
        // It gets the same address twice, the others one: some leave a reservation on a second path.
        let twice = [url.as_str(), url];
        let paths = if name.starts_with("MultipathIO.") { &twice[..] } else { &twice[..1] };
        let case = match suite.attempt(paths, &format!("ALL.{name}"), limit) {
            Ok(cases) if cases.len() == 1 => cases.into_iter().next(),
            Ok(cases) => Some(failed(name, format!("{} tests have that name", cases.len()))),
            Err(why) => Some(failed(name, why)),
        };
        let skipped = case.as_ref().is_some_and(|case| case.verdict == Verdict::Skipped);
        // A reason of an earlier LUN stays, unless a later one looks.
        if !skipped || last.is_none() {
            last = case;
        }
        if !skipped {
            break;
        }
    }
    last.unwrap_or_else(|| failed(name, "there is no LUN".to_owned()))
}

fn failed(name: &str, text: String) -> Case {
    Case { name: name.to_owned(), verdict: Verdict::Failed, text }
}

/// Passes, failures and skips of each kind of image.
type Table = BTreeMap<String, [usize; 3]>;

fn table(text: &str) -> Table {
    let row = |line: &str| {
        let mut fields = line.split('\t');
        let name = fields.next()?.to_owned();
        let mut number = || fields.next()?.parse().ok();
        Some((name, [number()?, number()?, number()?]))
    };
    text.lines().filter_map(row).collect()
}

fn text(table: &Table) -> String {
    let head = "# libiscsi 1.20 against smbd: what is expected.\n\
                # Written by `interop-libiscsi FOLDER --record`.\nimage\tpass\tfail\tskip\n";
    let row = |(name, [pass, fail, skip]): (&String, &[usize; 3])| {
        format!("{name}\t{pass}\t{fail}\t{skip}\n")
    };
    head.to_owned() + &table.iter().map(row).collect::<String>()
}

/// Runs the tests on one kind of image; the counts, and what is wrong.
fn kind(
    suite: &Suite,
    kind: &Kind,
    names: &[String],
) -> std::io::Result<([usize; 3], Vec<String>)> {
    let servers = Servers::start(kind)?;
    let slow = [servers.open.url("", SLOW.1)];
    let (mut counts, mut wrong) = ([0; 3], Vec::new());
    for name in names {
        let urls = if name == SLOW.0 { slow.to_vec() } else { servers.urls(name) };
        let case = one(suite, name, &urls);
        match case.verdict {
            Verdict::Passed => counts[0] += 1,
            Verdict::Failed => {
                counts[1] += 1;
                let known = OWN.iter().find(|(own, _)| *own == case.name);
                if known.is_none_or(|(_, said)| !case.text.contains(said)) {
                    wrong.push(format!("{}: {name} fails: {}", kind.name, case.text));
                }
            }
            Verdict::Skipped => {
                counts[2] += 1;
                println!("  {name} is skipped: {}", reason(&case.text));
            }
        }
    }
    let complaints = servers.stop().into_iter();
    wrong.extend(complaints.map(|line| format!("{}: smbd complained: {line}", kind.name)));
    Ok((counts, wrong))
}

fn reason(text: &str) -> &str {
    text.split("[SKIPPED]").nth(1).and_then(|rest| rest.lines().next()).unwrap_or(text).trim()
}

fn main() -> ExitCode {
    let (mut root, mut record, mut wanted) = (None, false, Vec::new());
    for arg in env::args().skip(1) {
        match arg.as_str() {
            "--record" => record = true,
            _ if root.is_none() => root = Some(PathBuf::from(arg)),
            _ => wanted.push(arg),
        }
    }
    let Some(suite) = root.as_deref().and_then(Suite::of_system) else {
        eprintln!("interop-libiscsi: give the folder of a system with libiscsi-bin");
        return ExitCode::from(2);
    };
    let mut names = suite.tests();
    names.retain(|name| wanted.is_empty() || wanted.contains(name));
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("interop/expected-newest-iscsi.tsv");
    let floor = table(&fs::read_to_string(&path).unwrap_or_default());
    let (mut found, mut wrong) = (Table::new(), Vec::new());
    for image in KINDS {
        println!("{}", image.name);
        match kind(&suite, image, &names) {
            Ok((counts, more)) => {
                println!(
                    "{}: {} pass, {} fail, {} skipped",
                    image.name, counts[0], counts[1], counts[2]
                );
                found.insert(image.name.to_owned(), counts);
                wrong.extend(more);
            }
            Err(error) => wrong.push(format!("{}: {error}", image.name)),
        }
    }
    if record && wanted.is_empty() {
        if let Err(error) = fs::write(&path, text(&found)) {
            wrong.push(format!("{}: {error}", path.display()));
        }
    } else if wanted.is_empty() {
        for (name, [pass, _, skip]) in &floor {
            let [passed, _, skipped] = found.get(name).copied().unwrap_or_default();
            if passed < *pass || skipped > *skip {
                wrong.push(format!(
                    "{name}: {passed} pass and {skipped} are skipped; {pass} and {skip} were"
                ));
            }
        }
    }
    wrong.iter().for_each(|line| eprintln!("{line}"));
    if wrong.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

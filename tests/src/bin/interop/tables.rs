//! Suites, what they come to, and the tables of it.

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use serde_json::Value;

/// The suite of CREATEs that meet a persistent open whose client is away.
pub const CONTENDED: &str = "smb2.persistent-open-reconnect-contended";
/// What a suite gets if nothing else is said.
pub const LIMIT: Duration = Duration::from_secs(150);

/// How a suite is run.
pub struct Suite {
    pub name: String,
    /// Seconds that Samba takes, to begin with the longest.
    pub seconds: f64,
}

impl Suite {
    /// How long it may take.
    pub fn limit(&self) -> Duration {
        // Notify's test of filters sleeps for more than a minute, multichannel waits for many
        // connections in turn, and Samba's own runs of both were cut off.
        let long = ["smb2.notify", "smb2.multichannel"].contains(&self.name.as_str());
        let least = match long {
            // It has 300 cases, and sleeps for seconds in each.
            _ if self.name == CONTENDED => LIMIT * 10,
            // Nobody has said how long it takes.
            _ if self.seconds == 0.0 => LIMIT * 3,
            true => LIMIT * 2,
            false => LIMIT,
        };
        least.max(Duration::from_secs_f64(self.seconds * 3.0))
    }

    /// What stands in the `[server]` table. Some tests send requests that no session signs.
    pub fn server(&self) -> &'static str {
        match self.name.as_str() {
            "smb2.session-require-signing" => "signing = \"required\"",
            "smb2.read" | "smb2.ioctl" => {
                "signing = \"enabled\"\nencryption = \"offered\"\ntest_controls = true"
            }
            _ => "signing = \"enabled\"\nencryption = \"offered\"",
        }
    }
}

/// Passes, failures and skips.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    pub pass: usize,
    pub fail: usize,
    pub skip: usize,
}

impl Counts {
    pub fn show(self) -> String {
        format!("{}/{}/{}", self.pass, self.fail, self.skip)
    }

    pub fn add(&mut self, other: Self) {
        self.pass += other.pass;
        self.fail += other.fail;
        self.skip += other.skip;
    }
}

/// Rows of a table: suite, passes, failures, skips, and perhaps seconds.
pub fn table(text: &str) -> BTreeMap<String, (Counts, f64)> {
    let row = |line: &str| {
        let mut fields = line.split('\t');
        let name = fields.next()?.to_owned();
        let mut number = || fields.next()?.parse().ok();
        let counts = Counts { pass: number()?, fail: number()?, skip: number()? };
        let seconds = fields.next().and_then(|text| text.parse().ok()).unwrap_or(0.0);
        Some((name, (counts, seconds)))
    };
    text.lines().filter(|line| line.starts_with("smb2.")).filter_map(row).collect()
}

/// What a suite came to.
pub fn counts(result: &Value) -> Counts {
    let number = |key: &str| result[key].as_u64().map_or(0, |n| n as usize);
    Counts { pass: number("pass"), fail: number("fail"), skip: number("skip") }
}

/// Prints the table; returns the sum and what is to be said, the bad marked.
pub fn show(
    results: &BTreeMap<String, Value>,
    samba: &BTreeMap<String, (Counts, f64)>,
    floor: &BTreeMap<String, (Counts, f64)>,
) -> (Counts, Vec<(bool, String)>) {
    let (mut ours, mut theirs) = (Counts::default(), Counts::default());
    let mut findings = Vec::new();
    println!("{:32} {:>12} {:>12} {:>7}", "suite (pass/fail/skip)", "smbd", "Samba", "s");
    for (name, result) in results {
        let mine = counts(result);
        let peer = match &result["samba"] {
            Value::Null => samba.get(name).map(|row| row.0).unwrap_or_default(),
            beside => counts(beside),
        };
        ours.add(mine);
        theirs.add(peer);
        let ended = if result["ended"] == true { "" } else { "  cut off" };
        let behind = if mine.pass < peer.pass { "  behind" } else { "" };
        let seconds = result["seconds"].as_f64().unwrap_or(0.0);
        println!("{name:32} {:>12} {:>12} {seconds:7.1}{ended}{behind}", mine.show(), peer.show());
        match floor.get(name) {
            Some((least, _)) if mine.pass < least.pass => {
                findings.push((true, format!("{name}: {} pass, {} did", mine.pass, least.pass)));
            }
            Some((least, _)) if mine != *least => {
                let text = format!("{name}: {} was {}", mine.show(), least.show());
                findings.push((false, format!("{text}; take it with interop --record {name}")));
            }
            _ => {}
        }
        for line in result["complaints"].as_array().into_iter().flatten() {
            findings.push((true, format!("{name}: smbd complained: {line}")));
        }
    }
    println!("{:32} {:>12} {:>12}", "total", ours.show(), theirs.show());
    (ours, findings)
}

/// Writes counts of this run into a table that begins with a comment; with Samba's own, and how long
/// they took, if `samba`.
pub fn record(
    path: &Path,
    comment: &str,
    results: &BTreeMap<String, Value>,
    samba: bool,
) -> std::io::Result<()> {
    let mut rows = table(&fs::read_to_string(path).unwrap_or_default());
    for (name, result) in results {
        let of = if samba { &result["samba"] } else { result };
        if !of.is_null() {
            rows.insert(name.clone(), (counts(of), of["seconds"].as_f64().unwrap_or(0.0)));
        }
    }
    let mut text = format!("# {comment}\nsuite\tpass\tfail\tskip\n");
    if samba {
        text = format!("# {comment}\nsuite\tpass\tfail\tskip\tseconds\n");
    }
    for (name, (counts, seconds)) in rows {
        let Counts { pass, fail, skip } = counts;
        text.push_str(&format!("{name}\t{pass}\t{fail}\t{skip}"));
        if samba {
            text.push_str(&format!("\t{seconds:.1}"));
        }
        text.push('\n');
    }
    fs::write(path, text)
}

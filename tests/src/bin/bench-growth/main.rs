//! `make bench-growth`: how what smbd does grows with what it has.
//!
//! ```text
//!  a server with 1         ┐                          ┌ open and close ┐
//!  a server with 1,000     ├ opens, watches, locks, … ┤ 4 KiB read     ├─► µs of the server's CPU,
//!  a server with 100,000   ┘ side by side             └ listing entry  ┘    in turns, the least of some
//!
//!  the one with 100,000 persistent opens: kill -9 ─► the first NEGOTIATE ─► the first open again
//! ```
//!
//! `bench-growth [--seconds N] [--rounds N] [--only TEXT] [--quick]`: all sizes stand at the same time and
//! are measured in turns, `--rounds` times for `--seconds` each; the least counts, for what else the machine
//! does only adds. Sizes beyond what a process may have of descriptors here become what it may have
//! (`ulimit -Hn`; 100,000 opens take 270,000). `--quick` leaves out a folder of a million files. Writes
//! `target/bench/growth.json` and `target/bench/growth.svg`.

mod caller;
mod curve;
mod dimensions;
mod stand;

use std::{env, fs, process::ExitCode, time::Duration};

use bulkhead_tests::{
    process::{ours, run},
    smbd::{PASSWORD, USER},
    target::{Target, Wanted},
};
use caller::Outcome;
use curve::Curve;
use dimensions::{Back, Dimension};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::{Value, json};
use stand::Stand;

/// How long nobody asks for anything while an idle server is looked at.
const IDLE: Duration = Duration::from_secs(10);
/// Connections of one session.
const CHANNELS: [usize; 3] = [1, 4, 32];
/// The name that they have in the report.
const OF_CHANNELS: &str = "channels";
/// What may not grow.
const FLAT: [&str; 3] = ["open and close", "4 KiB read", "listing entry"];

/// What the command line says.
struct Options {
    time: Duration,
    rounds: usize,
    only: String,
    quick: bool,
}

impl Options {
    fn parse(mut words: impl Iterator<Item = String>) -> Option<Self> {
        let mut options =
            Self { time: Duration::from_millis(500), rounds: 5, only: String::new(), quick: false };
        while let Some(word) = words.next() {
            match &word[..] {
                "--seconds" => {
                    let seconds = words.next()?.parse().ok().filter(|it| (0.05..60.0).contains(it));
                    options.time = Duration::from_secs_f64(seconds?);
                }
                "--rounds" => options.rounds = words.next()?.parse().ok().filter(|it| *it > 0)?,
                "--only" => options.only = words.next()?,
                "--quick" => options.quick = true,
                _ => return None,
            }
        }
        Some(options)
    }
}

/// What was measured.
#[derive(Default)]
struct Found {
    curves: Vec<Curve>,
    /// By dimension, size and bytes for each.
    memory: Vec<(&'static str, usize, f64)>,
    /// By the number of idle sessions, in percent of a CPU.
    idle: Vec<(usize, f64)>,
    /// After kill -9, with few persistent opens and with many.
    back: Vec<Back>,
}

impl Found {
    /// Measures everything on the servers of one dimension.
    fn measure(&mut self, options: &Options, dimension: Dimension) -> Outcome<()> {
        let sizes = dimension.sizes(options.quick);
        let mut stands = dimension.stands(&sizes)?;
        for stand in &stands {
            if let Some(each) = stand.memory_each {
                println!("{:<28} {:>9} {each:>12.0} bytes each", dimension.name(), stand.size);
                self.memory.push((dimension.name(), stand.size, each));
            }
        }
        if dimension == Dimension::Sessions {
            for stand in &stands {
                let part = stand.idle(IDLE);
                println!("{:<28} {:>9} {part:>12.3} % of a CPU", dimension.name(), stand.size);
                self.idle.push((stand.size, part));
            }
        }
        let names: Vec<&str> = stands[0].deeds.iter().map(|(name, _)| *name).collect();
        for (at, what) in names.into_iter().enumerate() {
            let points = stand::on_client_cpu(|| turns(options, &mut stands, at))?;
            self.add(dimension.name(), what, points);
        }
        Ok(())
    }

    fn add(&mut self, of: &str, what: &str, points: Vec<(usize, f64)>) {
        let curve = Curve { of: of.to_owned(), what: what.to_owned(), unit: "µs", points };
        let (slope, ratio) = (curve.fit().map_or(0.0, |it| it.1), curve.ratio().unwrap_or(1.0));
        let costs: Vec<String> =
            curve.points.iter().map(|(size, cost)| format!("{size}: {cost:.2}")).collect();
        println!(
            "{of:<20} {what:<28} slope {slope:>6.3} ratio {ratio:>6.2}   {}",
            costs.join("  ")
        );
        self.curves.push(curve);
    }

    /// Reads through one session with several connections, by the client that virtual disks use.
    fn channels(&mut self, options: &Options) -> Outcome<()> {
        let server = stand::server("threads = 1", "")?;
        let mut least = [f64::INFINITY; CHANNELS.len()];
        for _ in 0..options.rounds {
            for (least, channels) in least.iter_mut().zip(CHANNELS) {
                *least = least.min(through(options, &server, channels)?);
            }
        }
        self.add(OF_CHANNELS, "4 KiB read", CHANNELS.into_iter().zip(least).collect());
        Ok(())
    }

    fn targets(&self) -> Vec<Target> {
        let mut targets = Vec::new();
        for curve in self.curves.iter().filter(|curve| FLAT.contains(&curve.what.as_str())) {
            targets.push(Target {
                name: format!("{} by {}: largest over smallest", curve.what, curve.of),
                unit: "×",
                wanted: Some(Wanted::AtMost(1.3)),
                measured: curve.ratio(),
            });
        }
        let memory = |of: &str, most: f64| {
            let largest = self.memory.iter().rfind(|(name, ..)| *name == of);
            Target {
                name: format!("memory of each of {of}"),
                unit: "KiB",
                wanted: Some(Wanted::AtMost(most)),
                measured: largest.map(|(_, _, bytes)| bytes / 1024.0),
            }
        };
        let (sessions, opens) = (Dimension::Sessions.name(), Dimension::Opens.name());
        let persistent = Dimension::PersistentOpens.name();
        targets.extend([memory(sessions, 16.0), memory(opens, 4.0), memory(persistent, 4.0)]);
        let idle = self.idle.iter().find(|(size, _)| *size == 1000);
        targets.push(Target {
            name: "CPU with 1,000 idle sessions".to_owned(),
            unit: "%",
            wanted: Some(Wanted::Below(0.5)),
            measured: idle.map(|(_, part)| *part),
        });
        targets.push(Target {
            name: "from kill -9 to the first open again".to_owned(),
            unit: "s",
            wanted: Some(Wanted::AtMost(2.0)),
            measured: self.back.last().map(|back| back.reclaimed),
        });
        targets
    }

    fn to_json(&self, options: &Options) -> Value {
        let memory = |(of, size, bytes): &(&str, usize, f64)| json!({"of": of, "size": size, "bytes_each": bytes});
        let idle = |(size, part): &(usize, f64)| json!({"sessions": size, "cpu_percent": part});
        json!({
            "seconds": options.time.as_secs_f64(),
            "rounds": options.rounds,
            "descriptors": getrlimit(Resource::Nofile).maximum,
            "curves": self.curves.iter().map(Curve::to_json).collect::<Vec<_>>(),
            "memory": self.memory.iter().map(memory).collect::<Vec<_>>(),
            "idle": self.idle.iter().map(idle).collect::<Vec<_>>(),
            "after_kill": self.back.iter().map(|back| json!({
                "persistent_opens": back.opens,
                "seconds_to_negotiate": back.negotiated,
                "seconds_to_first_open": back.reclaimed,
                "server_cpu_seconds": back.cpu,
            })).collect::<Vec<_>>(),
            "targets": self.targets().iter().map(Target::to_json).collect::<Vec<_>>(),
        })
    }
}

/// One deed on all stands in turns: the least cost at each size.
fn turns(options: &Options, stands: &mut [Stand], deed: usize) -> Outcome<Vec<(usize, f64)>> {
    let mut least: Vec<(usize, f64)> =
        stands.iter().map(|stand| (stand.size, f64::INFINITY)).collect();
    for _ in 0..options.rounds {
        for (stand, (_, cost)) in stands.iter_mut().zip(&mut least) {
            *cost = cost.min(stand.cost(deed, options.time)?);
        }
    }
    Ok(least)
}

/// Microseconds of the server's CPU for a read through so many connections of one session.
fn through(
    options: &Options,
    server: &bulkhead_tests::smbd::Smbd,
    channels: usize,
) -> Outcome<f64> {
    let mut command = std::process::Command::new(ours("bulkhead"));
    command
        .args(["bench", "smb", "--json", "--rw", "read", "--size", "16M"])
        // As many for each: answers that come alone cost more than those that come together.
        .args(["--queue-depth", &(8 * channels).to_string()])
        .args(["--server-pid", &server.pid().to_string(), "--channels", &channels.to_string()])
        .args(["--seconds", &options.time.as_secs_f64().max(1.0).to_string()])
        .arg(format!("smb://{USER}@127.0.0.1:{}/vms/data", server.port()))
        .env("BULKHEAD_SMB_PASSWORD", PASSWORD);
    let output = run(&mut command, Duration::from_secs(120));
    let report: Value = serde_json::from_slice(&output.stdout)
        .map_err(|_| String::from_utf8_lossy(&output.stderr).into_owned())?;
    report["server_cpu_us_per_operation"].as_f64().ok_or("no figure".into())
}

/// Lets this process, and so the servers that it starts, have all descriptors that the system allows.
fn raise() {
    let limit = getrlimit(Resource::Nofile);
    let all = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, all) {
        println!("the limit of open files stays as it is: {error}");
    }
}

fn main() -> ExitCode {
    let Some(options) = Options::parse(env::args().skip(1)) else {
        eprintln!("bench-growth [--seconds N] [--rounds N] [--only TEXT] [--quick]");
        return ExitCode::FAILURE;
    };
    raise();
    let mut found = Found::default();
    let (mut failed, wanted) = (false, |name: &str| name.contains(&options.only));
    let mut note = |of: &str, outcome: Outcome<()>| {
        if let Err(why) = outcome {
            eprintln!("bench-growth: {of}: {why}");
            failed = true;
        }
    };
    for dimension in Dimension::ALL.into_iter().filter(|it| wanted(it.name())) {
        note(dimension.name(), found.measure(&options, dimension));
    }
    if wanted(OF_CHANNELS) {
        note(OF_CHANNELS, found.channels(&options));
    }
    let after = "after kill -9";
    if wanted(after) || wanted(Dimension::PersistentOpens.name()) {
        for size in stand::for_opens(&[1, 100_000]) {
            match dimensions::killed(size) {
                Ok(back) => {
                    println!(
                        "{after:<20} {size} persistent opens: NEGOTIATE {:.2} s, first open {:.2} s, CPU {:.3} s",
                        back.negotiated, back.reclaimed, back.cpu
                    );
                    found.back.push(back);
                }
                Err(why) => note(after, Err(why)),
            }
        }
    }
    println!("{:<66} {:>10} {:>10}", "target", "measured", "met");
    found.targets().iter().for_each(|target| println!("{target}"));
    let folder = ours("bulkhead").ancestors().nth(2).map(|target| target.join("bench"));
    let folder = folder.expect("binaries stand in target/PROFILE");
    fs::create_dir_all(&folder).expect("target is writable");
    let report = found.to_json(&options);
    fs::write(folder.join("growth.json"), format!("{report:#}\n")).expect("target is writable");
    fs::write(folder.join("growth.svg"), curve::svg(&found.curves)).expect("target is writable");
    println!("written: {} and growth.svg", folder.join("growth.json").display());
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

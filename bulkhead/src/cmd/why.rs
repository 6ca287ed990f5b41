//! `bulkhead why`: why a share, a disk or a LUN is slow, or that nothing is wrong with it; of disks of VMs
//! as their host sees them.

use std::path::PathBuf;

use anyhow::bail;
use host_api::{DEFAULT_SOCKET, DiskReport};
use server_api::{Reply, Request, WhyCause, WhyPhase, WhyReport};

use super::server::{Socket, json, table};
use crate::vm_host::Client;

/// Arguments of `bulkhead why`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    socket: Socket,
    /// A share, a disk (share/path) or a LUN (target/number); all of them if it is left out.
    /// With --vms: a VM, a disk of one (VM/NUMBER), or a disk's location.
    what: Option<String>,
    /// Ask the VM host of this machine about the disks of its VMs.
    #[arg(long)]
    vms: bool,
    /// Control socket of the VM host.
    #[arg(long, env = "BULKHEAD_HOST", default_value = DEFAULT_SOCKET)]
    vm_socket: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Asks the server, and prints what it says.
pub fn run(args: Args) -> anyhow::Result<()> {
    if args.vms {
        return of_vms(args);
    }
    let request = match args.what {
        Some(what) => Request::WhyOf { what },
        None => Request::Why,
    };
    let reports = match args.socket.ask(&request)? {
        Reply::Why { reports } => reports,
        other => bail!("the server answered {other:?}"),
    };
    if args.json {
        return json(&reports);
    }
    if reports.is_empty() {
        say!("there is no share and no LUN");
    }
    for (index, report) in reports.iter().enumerate() {
        if index > 0 {
            say!();
        }
        show(report, matches!(request, Request::WhyOf { .. }));
    }
    Ok(())
}

/// Asks the VM host.
fn of_vms(args: Args) -> anyhow::Result<()> {
    let alone = args.what.is_some();
    let request = match args.what {
        Some(what) => host_api::Request::WhyOf { what },
        None => host_api::Request::Why,
    };
    let reports = match Client::connect(&args.vm_socket)?.call(&request)? {
        host_api::Reply::Why { reports } => reports,
        other => bail!("the VM host answered {other:?}"),
    };
    if args.json {
        return json(&reports);
    }
    if reports.is_empty() {
        say!("no VM runs here that has a disk");
    }
    for (index, report) in reports.iter().enumerate() {
        if index > 0 {
            say!();
        }
        show(&as_shown(report), alone);
    }
    Ok(())
}

/// What a host says of a disk, as what a server says is shown.
fn as_shown(report: &DiskReport) -> WhyReport {
    let causes = report.causes.iter().map(|it| WhyCause {
        cause: it.cause.clone(),
        sentence: it.sentence.clone(),
        evidence: it.evidence.clone(),
        since_s: 0,
    });
    let phases = report.parts.iter().map(|it| WhyPhase {
        phase: it.part.clone(),
        count: it.count,
        mean_us: it.mean_us,
        p99_us: it.p99_us,
    });
    WhyReport {
        subject: format!("{}/{}", report.vm, report.disk),
        kind: report.location.clone(),
        sentence: report.sentence.clone(),
        causes: causes.collect(),
        window_s: report.window_s,
        operations: report.operations,
        phases: phases.collect(),
    }
}

/// Prints a report; where the time went only where somebody asked for one subject, or something is wrong.
fn show(report: &WhyReport, alone: bool) {
    say!("{} ({})", report.subject, report.kind);
    if report.causes.is_empty() {
        say!("  {}", report.sentence);
    }
    for cause in &report.causes {
        let since = match cause.since_s {
            0 => String::new(),
            seconds => format!(" (for {seconds} s)"),
        };
        say!("  {}: {}{since}", cause.cause, cause.sentence);
        cause.evidence.iter().for_each(|line| say!("    {line}"));
    }
    if (alone || !report.causes.is_empty()) && !report.phases.is_empty() {
        let rows = report.phases.iter().map(|phase| {
            let micros = |micros: u64| format!("{micros} µs");
            let (count, name) = (phase.count.to_string(), phase.phase.clone());
            [name, count, micros(phase.mean_us), micros(phase.p99_us)]
        });
        table(&["PART", "TIMES", "MEAN", "99 OF 100"], rows);
    }
}

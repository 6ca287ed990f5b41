//! `bulkhead why`: why a share, a disk or a LUN is slow, or that nothing is wrong with it.

use anyhow::bail;
use server_api::{Reply, Request, WhyReport};

use super::server::{Socket, json, table};

/// Arguments of `bulkhead why`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    socket: Socket,
    /// A share, a disk (share/path) or a LUN (target/number); all of them if it is left out.
    what: Option<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Asks the server, and prints what it says.
pub fn run(args: Args) -> anyhow::Result<()> {
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

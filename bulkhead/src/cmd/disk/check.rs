//! `bulkhead disk check`.

use anyhow::{Context, bail};
use serde_json::{Value, json};
use vhd::{
    Damage, Format,
    vhdx::{Finding, Report},
};

use super::{format, print_json};
use crate::{
    storage::{self, Mode},
    units::Human,
};

/// Arguments of `bulkhead disk check`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The image.
    file: String,
    /// The format; by default as the ending of FILE says.
    #[arg(long)]
    format: Option<Format>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub async fn run(args: Args) -> anyhow::Result<()> {
    let format = format(args.format, &args.file)?;
    let file = storage::open(&args.file, Mode::Read).await?;
    let report = match format {
        Format::Vhdx => vhd::vhdx::check(file).await,
        Format::Vhd => vhd::classic::check(file).await,
        Format::Qcow2 => vhd::qcow2::check(file).await,
        Format::Vmdk => vhd::vmdk::check(file).await,
        _ => bail!("{}: there is nothing to check in a {format} image", args.file),
    };
    let report = report.with_context(|| args.file.clone())?;
    if args.json {
        print_json(&to_json(&args.file, &report));
    } else {
        show(&args.file, &report);
    }
    match report.errors {
        0 => Ok(()),
        1 => bail!("{}: 1 error", args.file),
        n => bail!("{}: {n} errors", args.file),
    }
}

fn show(file: &str, report: &Report) {
    for finding in &report.findings {
        match finding {
            Finding::Error(damage) => println!("error: {damage}"),
            Finding::Warning(damage) => println!("warning: {damage}"),
        }
    }
    let more = report.errors + report.warnings - report.findings.len() as u64;
    if more > 0 {
        println!("... and {more} more");
    }
    if report.log_pending {
        println!("note: judged as after the replay of its log (in use, or not closed)");
    }
    println!(
        "{file}: {} errors, {} warnings, {} of {} blocks allocated, {} unused in the file",
        report.errors,
        report.warnings,
        report.allocated_blocks,
        report.blocks,
        Human(report.leaked)
    );
}

fn to_json(file: &str, report: &Report) -> Value {
    let place = |kind: &str, damage: &Damage| {
        json!({
            "kind": kind,
            "structure": damage.structure.to_string(),
            "offset": damage.offset,
            "fault": damage.fault.to_string(),
        })
    };
    let findings: Vec<Value> = report
        .findings
        .iter()
        .map(|finding| match finding {
            Finding::Error(damage) => place("error", damage),
            Finding::Warning(damage) => place("warning", damage),
        })
        .collect();
    json!({
        "file": file,
        "errors": report.errors,
        "warnings": report.warnings,
        "findings": findings,
        "unused_bytes": report.leaked,
        "allocated_blocks": report.allocated_blocks,
        "blocks": report.blocks,
        "log_pending": report.log_pending,
    })
}

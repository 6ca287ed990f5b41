//! `bulkhead disk check`.

use anyhow::{Context, bail};
use serde_json::{Value, json};
use vhd::{
    Damage, Format,
    ops::Repair,
    vhdx::{Finding, Report},
};

use super::{format, print_json};
use crate::{
    storage::{self, Claim},
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
    /// Mend what can be mended without making anything worse, and replay a log that waits. FILE must
    /// not be in use.
    #[arg(long)]
    repair: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub async fn run(args: Args) -> anyhow::Result<()> {
    let format = format(args.format, &args.file)?;
    let mode = if args.repair { Claim::Write } else { Claim::Still };
    let file = storage::open(&args.file, mode).await?;
    let named = || args.file.clone();
    let mut repairs = Vec::new();
    let report = match format {
        Format::Vhdx | Format::Vhd if args.repair => {
            let repaired = vhd::ops::repair(file.clone(), format).await.with_context(named)?;
            file.close().await?;
            repairs = repaired.repairs;
            repaired.report
        }
        Format::Vhdx => vhd::vhdx::check(file).await.with_context(named)?,
        Format::Vhd => vhd::classic::check(file).await.with_context(named)?,
        Format::Qcow2 => vhd::qcow2::check(file).await.with_context(named)?,
        Format::Vmdk => vhd::vmdk::check(file).await.with_context(named)?,
        _ => bail!("{}: there is nothing to check in a {format} image", args.file),
    };
    if args.json {
        let mut value = to_json(&args.file, &report);
        value["repairs"] = repairs_json(&repairs);
        print_json(&value);
    } else {
        for repair in &repairs {
            say!("repaired: {}: {}", repair.damage, repair.action);
        }
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
            Finding::Error(damage) => say!("error: {damage}"),
            Finding::Warning(damage) => say!("warning: {damage}"),
        }
    }
    let more = report.errors + report.warnings - report.findings.len() as u64;
    if more > 0 {
        say!("... and {more} more");
    }
    if report.log_pending {
        say!("note: judged as after the replay of its log (in use, or not closed)");
    }
    say!(
        "{file}: {} errors, {} warnings, {} of {} blocks allocated, {} unused in the file",
        report.errors,
        report.warnings,
        report.allocated_blocks,
        report.blocks,
        Human(report.leaked)
    );
}

fn place(kind: &str, damage: &Damage) -> Value {
    json!({
        "kind": kind,
        "structure": damage.structure.to_string(),
        "offset": damage.offset,
        "fault": damage.fault.to_string(),
    })
}

fn repairs_json(repairs: &[Repair]) -> Value {
    let one = |repair: &Repair| {
        let mut value = place("repaired", &repair.damage);
        value["action"] = repair.action.to_string().into();
        value
    };
    repairs.iter().map(one).collect()
}

fn to_json(file: &str, report: &Report) -> Value {
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

//! `bulkhead vm quiesce`: a command runs while a VM's file systems stand still.

use std::{
    ffi::OsString,
    process::{Command, ExitStatus},
};

use anyhow::{Context, bail, ensure};
use host_api::{Client, Consistency, Reply, Request, VmName};
use serde_json::json;

/// Arguments of `bulkhead vm quiesce`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Which.
    name: VmName,
    /// Seconds after which the file systems thaw though the command still runs: 1 to 300.
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=300))]
    limit: u32,
    /// Do not run the command if the guest's file systems cannot be frozen.
    #[arg(long)]
    require: bool,
    /// The command, as `bulkhead share snapshot vms`, and its arguments.
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// Runs the command while the VM is quiet. The VM is let go whatever becomes of the command, and of this
/// program: the host does so when the connection ends.
pub fn run(mut client: Client, args: Args, as_json: bool) -> anyhow::Result<()> {
    let Args { name, limit, require, command } = args;
    let request = Request::Quiesce { name: name.clone(), limit_s: Some(limit) };
    let (consistency, reason) = match client.call(&request)? {
        Reply::Quiet { consistency, reason } => (consistency, reason),
        other => bail!("the VM host answered {other:?}"),
    };
    let why = reason.clone().unwrap_or_default();
    let frozen = consistency == Consistency::Application;
    ensure!(frozen || !require, "{name} is not quiet: {why}; the command is not run");
    if !frozen {
        eprintln!("{name} is not quiet, what is copied now is as after a loss of power: {why}");
    }
    let ran = execute(&command);
    let held_ms = match client.call(&Request::Thaw)? {
        Reply::Thawed { held_ms } => held_ms,
        other => bail!("the VM host answered {other:?}"),
    };
    let status = ran?;
    if as_json {
        let consistency = serde_json::to_value(consistency)?;
        say!(
            "{}",
            json!({ "consistency": consistency, "reason": reason, "held_ms": held_ms, "status": status.code() })
        );
    } else {
        let word = if frozen { "application" } else { "crash" };
        say!("{name} was quiet for {held_ms} ms ({word}-consistent)");
    }
    ensure!(status.success(), "the command ended with {status}");
    Ok(())
}

fn execute(command: &[OsString]) -> anyhow::Result<ExitStatus> {
    let (program, arguments) = command.split_first().context("no command is given")?;
    let status = Command::new(program).args(arguments).status();
    status.with_context(|| format!("cannot run {}", program.display()))
}

//! `bulkhead bench smb-sessions`: what an idle session costs the server.

use std::time::Instant;

use anyhow::{Context, bail};
use rustix::process::{Resource, getrlimit, setrlimit};
use serde_json::json;
use smb_client::raw::RawConnection;

use super::{
    common::{self, Target},
    memory::{self, Memory},
};
use crate::units::Human;

/// Arguments of `bulkhead bench smb-sessions`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    target: Target,
    /// Sessions, each on a connection of its own and connected to the share.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=60000))]
    sessions: u32,
}

/// Files that are open beside the connections.
const SPARE: u64 = 64;

/// Raises our limit of open files if it is too low.
fn admit(sessions: u32) -> anyhow::Result<()> {
    let need = u64::from(sessions) + SPARE;
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= need) {
        return Ok(());
    }
    if limit.maximum.is_some_and(|most| most < need) {
        bail!("{sessions} sessions need {need} open files; raise the hard limit (ulimit -Hn)");
    }
    limit.current = Some(need);
    setrlimit(Resource::Nofile, limit).context("cannot raise the limit of open files")
}

/// Runs the subcommand that the arguments name.
pub fn run(args: Args) -> anyhow::Result<()> {
    let pid = args.target.server_pid.context("--server-pid says whose memory to look at")?;
    admit(args.sessions)?;
    let options = args.target.options(64)?;
    let before = memory::of_tree(pid)?;
    let started = Instant::now();
    let mut connections = Vec::new();
    for number in 0..args.sessions {
        let connection = RawConnection::connect_share(&options, &args.target.url.share);
        connections.push(connection.with_context(|| format!("session {number}"))?);
    }
    let seconds = started.elapsed().as_secs_f64();
    let after = memory::of_tree(pid)?;
    let protocol = connections.first().map(common::protocol);
    let each =
        |of: fn(&Memory) -> u64| of(&after).saturating_sub(of(&before)) / connections.len() as u64;
    let resident = each(|memory| memory.resident);
    let proportional = each(|memory| memory.proportional);
    if args.target.json {
        let report = json!({
            "url": args.target.url.to_string(),
            "sessions": connections.len(),
            "protocol": protocol,
            "seconds": seconds,
            "server_rss_before": before.resident,
            "server_rss_after": after.resident,
            "server_rss_per_session": resident,
            "server_pss_before": before.proportional,
            "server_pss_after": after.proportional,
            "server_pss_per_session": proportional,
        });
        say!("{report:#}");
    } else {
        say!("{}", args.target.url);
        say!("  {} sessions in {seconds:.2} s", connections.len());
        for (name, before, after, each) in [
            ("resident", before.resident, after.resident, resident),
            ("shared once", before.proportional, after.proportional, proportional),
        ] {
            let (before, after, each) = (Human(before), Human(after), Human(each));
            say!("  memory, {name}: {before} before, {after} after, {each} per session");
        }
    }
    Ok(())
}

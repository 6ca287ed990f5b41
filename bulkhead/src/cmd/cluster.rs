//! `bulkhead cluster`: several file servers that take over from each other. All is asked of etcd, so it
//! works on any node, and while none runs.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context, bail};
use clap::Subcommand;
use cluster::{
    admin::{self, Status},
    config::Config,
    record::{Keys, Standing},
    validate::{Verdict, validate},
    view::View,
    watch,
};
use state_store::etcd::Client;

use super::server::{json, table};

/// How long one attempt with one member of etcd may take.
const ATTEMPT: Duration = Duration::from_secs(2);

/// Arguments of `bulkhead cluster`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The server's configuration, which has [cluster].
    #[arg(
        long,
        global = true,
        env = "BULKHEAD_SERVER_CONFIG",
        default_value = "/etc/bulkhead/smbd.toml"
    )]
    config: PathBuf,
    /// Print JSON instead of a table.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make the cluster that the configuration names, and add this node. Once, on one node.
    Init,
    /// Add this node to the cluster.
    Join,
    /// Take a node that has ended out of the cluster.
    Remove {
        /// Its number.
        node: u16,
    },
    /// Nodes and roles, and why each role is where it is.
    Status,
    /// Have a node give its roles away and take none; waits until it has none.
    Drain(Node),
    /// Have a node keep its roles and take no more.
    Pause(Node),
    /// Have a node take roles again.
    Resume(Node),
    /// Move a role to a node; waits until it is served there.
    Move {
        /// The role.
        role: String,
        /// The node's number.
        node: u16,
        /// Why, for those who look later.
        #[arg(long, default_value = "")]
        reason: String,
        /// How long to wait, in seconds; 0 not at all.
        #[arg(long, default_value_t = 60)]
        wait: u64,
    },
    /// Look at everything that a takeover needs; fails if something is missing.
    Validate,
    /// The last moves of a role, or of all, and why.
    History {
        /// The role.
        role: Option<String>,
    },
}

#[derive(Debug, clap::Args)]
struct Node {
    /// Its number, if it is not this node.
    node: Option<u16>,
    /// Why, for those who look later.
    #[arg(long, default_value = "")]
    reason: String,
    /// How long to wait, in seconds; 0 not at all.
    #[arg(long, default_value_t = 60)]
    wait: u64,
}

/// The cluster that is spoken to.
struct Way {
    config: Config,
    client: Arc<Client>,
    keys: Keys,
    json: bool,
}

/// Runs the subcommand that the arguments name.
pub fn run(args: Args) -> anyhow::Result<()> {
    let config = Config::load(&args.config)?;
    let mut config =
        config.with_context(|| format!("{} has no [cluster]", args.config.display()))?;
    // Who waits is a person, and not a lease.
    config.etcd.attempt = ATTEMPT;
    let client = Client::new(&config.etcd).map_err(anyhow::Error::msg)?;
    let way = Way { keys: config.keys(), config, client, json: args.json };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(way.run(args.command))
}

impl Way {
    async fn run(&self, command: Command) -> anyhow::Result<()> {
        let (client, keys, me) = (&*self.client, &self.keys, self.config.node);
        match command {
            Command::Init => {
                admin::init(client, keys, &self.config.name).await?;
                admin::join(client, keys, me).await?;
                say!("cluster {} is made, with node {me}", self.config.name);
            }
            Command::Join => {
                admin::join(client, keys, me).await?;
                say!("node {me} is in cluster {}", self.config.name);
            }
            Command::Remove { node } => admin::remove(client, keys, node).await?,
            Command::Status => self.show(admin::status(client, keys).await?)?,
            Command::Drain(Node { node, reason, wait }) => {
                let node = node.unwrap_or(me);
                admin::stand(client, keys, node, Standing::Draining, &reason).await?;
                let what = format!("node {node} has no role any more");
                self.wait(wait, &what, |view| view.load(node) == 0).await?;
            }
            Command::Pause(Node { node, reason, .. }) => {
                admin::stand(client, keys, node.unwrap_or(me), Standing::Paused, &reason).await?;
            }
            Command::Resume(Node { node, reason, .. }) => {
                admin::stand(client, keys, node.unwrap_or(me), Standing::Up, &reason).await?;
            }
            Command::Move { role, node, reason, wait } => {
                admin::move_role(client, keys, &role, node, &reason).await?;
                let what = format!("role {role} is served by node {node}");
                self.wait(wait, &what, |view| {
                    let serving = view.members.get(&node).map(|seen| &seen.record.serving);
                    let owner = view.owner(&role).filter(|run| view.is_alive(*run));
                    owner.is_some_and(|run| run.node == node)
                        && serving.is_some_and(|serving| serving.contains(&role))
                })
                .await?;
            }
            Command::Validate => self.validate().await?,
            Command::History { role } => {
                let moves = admin::history(client, keys, role.as_deref()).await?;
                if self.json {
                    return json(&moves);
                }
                let node = |node: Option<u16>| node.map_or("-".to_owned(), |node| node.to_string());
                table(
                    &["WHEN", "ROLE", "FROM", "TO", "WHY"],
                    moves.into_iter().map(|(role, moved)| {
                        let (from, to) = (node(moved.from), node(moved.to));
                        [time(moved.at), role, from, to, moved.reason]
                    }),
                );
            }
        }
        Ok(())
    }

    /// Waits until the cluster is so.
    async fn wait(
        &self,
        seconds: u64,
        what: &str,
        so: impl Fn(&View) -> bool,
    ) -> anyhow::Result<()> {
        if seconds == 0 {
            return Ok(());
        }
        let mut view = watch::follow(self.client.clone(), self.keys.clone());
        let seen = view.wait_for(|view| view.as_ref().is_some_and(&so));
        let waited = tokio::time::timeout(Duration::from_secs(seconds), seen).await;
        match waited {
            Ok(seen) => drop(seen?),
            Err(_) => bail!("asked for, but within {seconds} s not so: {what}"),
        }
        say!("{what}");
        Ok(())
    }

    async fn validate(&self) -> anyhow::Result<()> {
        let all = validate(&self.config).await;
        if self.json {
            json(&all)?;
        } else {
            for finding in &all {
                let verdict = match finding.verdict {
                    Verdict::Ok => "ok",
                    Verdict::Note => "note",
                    Verdict::Missing => "MISSING",
                };
                say!("{verdict:<8} {}", finding.what);
            }
        }
        let missing = all.iter().filter(|finding| finding.verdict == Verdict::Missing).count();
        if missing > 0 {
            bail!("{missing} missing");
        }
        Ok(())
    }

    fn show(&self, status: Status) -> anyhow::Result<()> {
        if self.json {
            return json(&status);
        }
        say!("cluster {}\n", status.cluster);
        let dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        table(
            &["NODE", "NAME", "STATE", "VERSION", "WHY"],
            status.nodes.into_iter().map(|(number, node)| {
                let why = match node.unfit.is_empty() {
                    true => node.reason,
                    false => format!("could not serve {}", node.unfit.join(" ")),
                };
                let (name, version) = (dash(node.name), dash(node.version));
                [number.to_string(), name, node.state.to_owned(), version, why]
            }),
        );
        say!();
        table(
            &["ROLE", "NODE", "STATE", "SINCE", "WHY"],
            status.roles.into_iter().map(|(name, role)| {
                let node = role.node.map_or("-".to_owned(), |node| node.to_string());
                let wanted = role.wanted.map(|node| format!(" (wanted on node {node})"));
                let why = role.reason + &wanted.unwrap_or_default();
                [name, node, role.state.to_owned(), time(role.since), why]
            }),
        );
        Ok(())
    }
}

/// A time in milliseconds since 1970 as a date and a time of day, of Greenwich.
fn time(at: u64) -> String {
    if at == 0 {
        return "-".to_owned();
    }
    let (days, second) = (at / 86_400_000, at / 1000 % 86_400);
    // Years that begin in March, from the year 0 on, in eras of 400.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let (day, month) =
        (day - (153 * month + 2) / 5 + 1, if month < 10 { month + 3 } else { month - 9 });
    let year = year + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_dates() {
        assert_eq!(time(0), "-");
        assert_eq!(time(951_782_400_000), "2000-02-29 00:00:00Z");
        assert_eq!(time(1_796_022_123_456), "2026-11-30 07:02:03Z");
        assert_eq!(time(4_107_542_399_999), "2100-02-28 23:59:59Z");
    }
}

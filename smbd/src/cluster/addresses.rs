//! Addresses that go where their role goes.
//!
//! The kernel is told each time how long it keeps one (`valid_lft`), a little longer than the gate is
//! open: where the node stands still or has ended, nobody tells it any more, and the address goes away by
//! itself. Else a machine whose programs all stand still would go on answering for it.

use std::{net::IpAddr, process::Stdio, time::Duration};

use anyhow::{Context, bail};
use cluster::{config::Floating, driver::steady};
use tokio::{process::Command, sync::watch, time::sleep};

use super::{
    announce::announce,
    peers::{self, Ends},
    tickle::tickle,
};

/// When the network is told that the address is here, counted from when it is.
const TOLD: [Duration; 4] =
    [Duration::ZERO, Duration::from_millis(300), Duration::from_secs(1), Duration::from_secs(3)];

/// How long until the kernel is told again that an address stays: no lease is so short.
const KEPT: Duration = Duration::from_millis(700);

/// The addresses of a role that float.
#[derive(Debug)]
pub(super) struct Addresses {
    floating: Floating,
    all: Vec<IpAddr>,
}

async fn ip(words: &[&str]) -> anyhow::Result<()> {
    let mut command = Command::new("ip");
    command.args(words).stdin(Stdio::null()).kill_on_drop(true);
    let output = command.output().await.context("ip(8) cannot be started")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        bail!("ip {}: {said}", words.join(" "));
    }
    Ok(())
}

impl Addresses {
    /// Those of a role.
    pub(super) fn new(floating: &Floating, all: Vec<IpAddr>) -> Self {
        Self { floating: floating.clone(), all }
    }

    fn place(&self, address: IpAddr) -> String {
        format!("{address}/{}", self.floating.prefix)
    }

    /// Puts them on their interface, or has them stay there, until the gate closes.
    async fn put(&self, gate: Duration) -> anyhow::Result<()> {
        let left = gate.saturating_sub(steady()).as_secs_f64().ceil().max(1.0).to_string();
        for address in &self.all {
            let place = self.place(*address);
            let dev = self.floating.interface.as_str();
            let mut words = vec!["addr", "replace", &place, "dev", dev];
            words.extend(["valid_lft", &left, "preferred_lft", &left]);
            if address.is_ipv6() {
                words.push("nodad");
            }
            ip(&words).await?;
        }
        Ok(())
    }

    /// Puts them on their interface.
    ///
    /// # Errors
    /// What ip(8) says.
    pub(super) async fn add(&self, gate: Duration) -> anyhow::Result<()> {
        self.put(gate).await
    }

    /// Whose connections were lost with the node that had them before, by its note.
    pub(super) fn lost(&self, note: &[u8]) -> Vec<Ends> {
        peers::parse(note, &self.all)
    }

    /// Has them stay as long as the gate is open, and tells the network where they are now, and clients
    /// that connections with them are `lost`; ends when it is dropped.
    pub(super) async fn keep(&self, mut gate: watch::Receiver<Duration>, lost: &[Ends]) {
        let told = async {
            let mut before = Duration::ZERO;
            for at in TOLD {
                sleep(at - before).await;
                before = at;
                for address in &self.all {
                    if let Err(error) = announce(&self.floating.interface, *address).await {
                        tracing::warn!(%error, %address, "the network was not told of an address");
                    }
                }
                // When the way to them is known.
                tickle(lost);
            }
            std::future::pending::<()>().await
        };
        let kept = async {
            while gate.changed().await.is_ok() {
                let until = *gate.borrow_and_update();
                if let Err(error) = self.put(until).await {
                    tracing::warn!("an address does not stay: {error:#}");
                }
                sleep(KEPT).await;
            }
            std::future::pending::<()>().await
        };
        tokio::join!(told, kept);
    }

    /// Takes them away; those that are gone already are.
    pub(super) async fn remove(&self) {
        for address in &self.all {
            let place = self.place(*address);
            let words = ["addr", "del", &place, "dev", &self.floating.interface];
            if let Err(error) = ip(&words).await {
                tracing::debug!("an address was not taken away: {error:#}");
            }
        }
    }
}

//! Keeps the targets registered with iSNS servers (RFC 4171), each by a task of its own: a server
//! that is away holds up nobody, and hears of the targets once it is back.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use iscsi::isns::{self, IsnsError, Registration};
use tokio::{sync::watch, task::JoinHandle, time::timeout};

/// How often a server that names no Registration Period is asked whether it still knows us.
const LOOK: Duration = Duration::from_secs(300);
/// Between tries at a server that does not take the registration: the first, and the longest.
const RETRY: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(120));
/// How long all servers together may take to forget us when the service ends.
const FAREWELL: Duration = Duration::from_secs(5);

/// What a server is to know; `None` when it is to forget us.
type Wanted = Option<Registration>;

struct Registrar {
    wanted: watch::Sender<Wanted>,
    task: JoinHandle<()>,
}

/// The servers that are told of the targets.
#[derive(Default)]
pub(super) struct NameService {
    registrars: Mutex<BTreeMap<String, Registrar>>,
}

impl NameService {
    /// From now on these servers, as `host:port`, know this and no others do.
    pub(super) fn tell(&self, servers: &[String], registration: &Registration) {
        let mut registrars = self.registrars.lock().unwrap_or_else(PoisonError::into_inner);
        for (_, registrar) in registrars.iter().filter(|(server, _)| !servers.contains(server)) {
            // Its task says farewell, and stays: were there another for a server that is named
            // again, the farewell of the first could come after the registration of the second.
            registrar.wanted.send_replace(None);
        }
        for server in servers {
            let start = || {
                let (wanted, told) = watch::channel(Some(registration.clone()));
                Registrar { wanted, task: tokio::spawn(stay(server.clone(), told)) }
            };
            let registrar = registrars.entry(server.clone()).or_insert_with(start);
            registrar.wanted.send_if_modified(|wanted| {
                let differs = wanted.as_ref() != Some(registration);
                if differs {
                    *wanted = Some(registration.clone());
                }
                differs
            });
        }
    }

    /// The service ends: the servers forget it, unless another that takes its place will tell them.
    pub(super) async fn stop(&self, replaced: bool) {
        let all =
            std::mem::take(&mut *self.registrars.lock().unwrap_or_else(PoisonError::into_inner));
        if replaced {
            all.into_values().for_each(|registrar| registrar.task.abort());
            return;
        }
        let last = all.into_values().map(|Registrar { wanted, task }| {
            wanted.send_replace(None);
            task
        });
        let last: Vec<_> = last.collect();
        let farewell = async {
            for task in last {
                let _ = task.await;
            }
        };
        if timeout(FAREWELL, farewell).await.is_err() {
            tracing::warn!("iSNS servers did not answer: they know the targets for longer");
        }
    }
}

/// Keeps one server up to date until nobody can tell of a change any more, and that which was told
/// last is done.
async fn stay(server: String, mut told: watch::Receiver<Wanted>) {
    let mut known = None;
    let (mut retry, mut failing) = (RETRY.0, false);
    loop {
        let wanted = told.borrow_and_update().clone();
        let wait = match step(&server, wanted.as_ref(), &mut known).await {
            Ok(wait) => {
                (retry, failing) = (RETRY.0, false);
                wait
            }
            Err(error) => {
                // Once for each time that it begins to fail.
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(%error, "targets are not registered; tried again");
                }
                let wait = retry;
                retry = (retry * 2).min(RETRY.1);
                wait
            }
        };
        tokio::select! {
            changed = told.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// One look at a server; how long it holds.
async fn step(
    server: &str,
    wanted: Option<&Registration>,
    known: &mut Option<Registration>,
) -> Result<Duration, IsnsError> {
    let wanted = wanted.filter(|wanted| !wanted.nodes.is_empty());
    let Some(wanted) = wanted else {
        if let Some(old) = known.take() {
            isns::deregister(server, &old).await?;
            tracing::info!(server, "targets are not registered any more");
        }
        return Ok(LOOK);
    };
    if known.as_ref() == Some(wanted) {
        if isns::keep(server, wanted).await? {
            return Ok(LOOK);
        }
        tracing::info!(server, "the iSNS server had forgotten the targets");
    }
    *known = None;
    let period = isns::register(server, wanted).await?;
    tracing::info!(server, targets = wanted.nodes.len(), "targets are registered");
    *known = Some(wanted.clone());
    Ok(period.map_or(LOOK, |period| (period / 3).min(LOOK)))
}

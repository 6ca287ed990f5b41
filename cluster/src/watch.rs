//! The view, kept as etcd tells what changes; and the pulses of nodes.

use std::{sync::Arc, time::Duration};

use state_store::etcd::{CallError, Client, KeyWatchEvent, wire::DELETE};
use tokio::sync::{mpsc, watch};

use crate::{
    record::{Keys, Run},
    view::View,
};

/// How long until what etcd did not answer is asked again.
const PAUSE: Duration = Duration::from_millis(200);

/// The view of a cluster as it is now, and was at one revision.
///
/// # Errors
/// [`CallError`]. A record that cannot be read is left out, and told in the log.
pub async fn look(client: &Client, keys: &Keys) -> Result<View, CallError> {
    let (all, revision) = client.list(keys.prefix().as_bytes()).await?;
    let mut view = View::new(keys.clone());
    for kv in all {
        take(&mut view, &kv.key, Some(&kv.value), kv.mod_revision);
    }
    view.revision = revision;
    Ok(view)
}

fn take(view: &mut View, key: &[u8], value: Option<&[u8]>, revision: i64) {
    let key = String::from_utf8_lossy(key);
    if let Err(error) = view.take(&key, value, revision) {
        tracing::error!(%error, "a record of the cluster is left out");
    }
}

/// Follows a cluster until nobody looks any more. There is no view before etcd has answered once.
pub fn follow(client: Arc<Client>, keys: Keys) -> watch::Receiver<Option<View>> {
    let (tell, told) = watch::channel(None);
    tokio::spawn(async move {
        tokio::select! {
            () = run(&client, &keys, &tell) => {}
            () = tell.closed() => {}
        }
    });
    told
}

async fn run(client: &Arc<Client>, keys: &Keys, tell: &watch::Sender<Option<View>>) {
    loop {
        let mut view = match look(client, keys).await {
            Ok(view) => view,
            Err(error) => {
                tracing::debug!(%error, "the cluster cannot be seen");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        tell.send_replace(Some(view.clone()));
        let mut changes = client.watch(keys.prefix().as_bytes(), view.revision);
        while let Some(KeyWatchEvent::Changed { revision, events }) = changes.next().await {
            for event in events {
                let kv = event.kv.unwrap_or_default();
                let value = (event.kind != DELETE).then_some(&*kv.value);
                take(&mut view, &kv.key, value, revision);
            }
            tell.send_replace(Some(view.clone()));
        }
        // What happened meanwhile is not known any more: all is looked at anew.
    }
}

/// Pulses that wait for who listens, at most: more of them say no more.
const PULSES: usize = 64;

/// Listens to the pulses of a cluster's nodes, each with the revision at which it was set, until nobody
/// looks any more.
pub(crate) fn listen(client: Arc<Client>, keys: Keys) -> mpsc::Receiver<(Run, i64)> {
    let (tell, told) = mpsc::channel(PULSES);
    tokio::spawn(async move {
        tokio::select! {
            () = hear(&client, &keys, &tell) => {}
            () = tell.closed() => {}
        }
    });
    told
}

async fn hear(client: &Arc<Client>, keys: &Keys, tell: &mpsc::Sender<(Run, i64)>) {
    let run = |key: &[u8], lease| {
        let node = key.strip_prefix(keys.pulses().as_bytes())?;
        Some(Run { node: std::str::from_utf8(node).ok()?.parse().ok()?, lease })
    };
    loop {
        let (all, revision) = match client.list(keys.pulses().as_bytes()).await {
            Ok(all) => all,
            Err(error) => {
                tracing::debug!(%error, "the pulses of nodes cannot be heard");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        for kv in all {
            if let Some(run) = run(&kv.key, kv.lease) {
                let _ = tell.send((run, kv.mod_revision)).await;
            }
        }
        let mut changes = client.watch(keys.pulses().as_bytes(), revision);
        while let Some(KeyWatchEvent::Changed { events, .. }) = changes.next().await {
            for event in events.into_iter().filter(|event| event.kind != DELETE) {
                let kv = event.kv.unwrap_or_default();
                if let Some(run) = run(&kv.key, kv.lease) {
                    let _ = tell.send((run, kv.mod_revision)).await;
                }
            }
        }
    }
}

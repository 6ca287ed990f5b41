//! The view, kept as etcd tells what changes.

use std::{sync::Arc, time::Duration};

use state_store::etcd::{CallError, Client, KeyWatchEvent, wire::DELETE};
use tokio::sync::watch;

use crate::{record::Keys, view::View};

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

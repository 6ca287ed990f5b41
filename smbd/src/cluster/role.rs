//! A role on the node that owns it: a server process of its own, from its addresses to its end.
//!
//! ```text
//!  mounts are there ─► identity ─► addresses ─► ports ─► server ─► fences the store, recovers the
//!                                                          │       opens, and only then accepts
//!                                  taken away ◄─ ended ◄───┘
//! ```

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, bail};
use cluster::{
    admin,
    config::Role,
    driver::{Ownership, Reports},
};
use tokio::{
    sync::{mpsc::UnboundedReceiver, watch},
    time::timeout,
};

use super::{Node, addresses::Addresses, page::Page, peers::Ends};
use crate::{
    Bound,
    parts::Parts,
    supervise::{self, Plan, Stop},
};

/// How long a file system may take to say that it is there.
const MOUNTED: Duration = Duration::from_secs(5);

/// Where the server of a role keeps what is its own on this node.
pub(super) fn folder(state_dir: &Path, role: &str) -> PathBuf {
    state_dir.join("roles").join(role)
}

/// Whether a folder is a mount point: it lies on another file system than the one above it.
fn is_mounted(path: &Path) -> io::Result<bool> {
    let (here, above) = (fs::metadata(path)?, fs::metadata(path.join(".."))?);
    Ok(here.dev() != above.dev() || here.ino() == above.ino())
}

/// That the folders of a role are mounted; a text that says which is not.
pub(super) fn mounts(role: &Role) -> Result<(), String> {
    for path in &role.mounts {
        match is_mounted(path) {
            Ok(true) => {}
            Ok(false) => return Err(format!("{} is not mounted", path.display())),
            Err(error) => return Err(format!("{}: {error}", path.display())),
        }
    }
    Ok(())
}

/// What users' SIDs are made of, from etcd into the role's folder, where the server looks for it.
fn keep_identity(folder: &Path, identity: [u8; 16]) -> io::Result<()> {
    let (path, fresh) = (folder.join("server-guid"), folder.join("server-guid.new"));
    if fs::read(&path).is_ok_and(|kept| kept == identity) {
        return Ok(());
    }
    let mut options = fs::File::options();
    let file = options.write(true).create(true).truncate(true).mode(0o600).open(&fresh);
    let mut file = file?;
    file.write_all(&identity)?;
    file.sync_all()?;
    fs::rename(&fresh, &path)
}

/// A configuration for one role: its shares, targets and addresses, under the role's name.
pub(super) fn configure(parts: Parts, name: &str, role: &Role) -> Parts {
    let Parts { mut config, mut iscsi, api, .. } = parts;
    iscsi.listen = role.iscsi_listen.clone();
    iscsi.targets.retain(|target| role.targets.contains(&target.config.name));
    iscsi.locks = role.locks;
    config.state_dir = folder(&config.state_dir, name);
    config.listen = role.listen.clone();
    config.metrics = role.metrics;
    if let Some(server_name) = &role.server_name {
        config.name = server_name.clone();
    }
    let folded = |share: &String| smb_protocol::ntlm::users::fold(share);
    let mine: Vec<_> = role.shares.iter().map(folded).collect();
    config.shares.retain(|share, _| mine.contains(share));
    config.namespaces.retain(|share, _| mine.contains(share));
    for share in config.shares.values_mut() {
        Arc::make_mut(share).cluster = Some(smb_server::config::ClusterShare::Failover);
    }
    Parts { config, iscsi, witness: None, cluster: None, api }
}

/// Serves a role until it is told to stop, or cannot.
pub(super) async fn serve(
    node: Arc<Node>,
    ownership: Ownership,
    page: Page,
    gate: watch::Receiver<Duration>,
    mut stops: UnboundedReceiver<Stop>,
    reports: Reports,
) {
    let name = ownership.role.clone();
    let Some(role) = node.cluster.roles.get(&name) else {
        reports.failed(&name, "it is not configured here".to_owned());
        return;
    };
    let addresses =
        role.floating.as_ref().map(|floating| Addresses::new(floating, role.addresses()));
    let prepared = tokio::select! {
        prepared = prepare(&node, &name, role, addresses.as_ref(), ownership.gate) => prepared,
        Some(_) = stops.recv() => Ok(None),
    };
    let result = match prepared {
        Ok(None) => Ok(()),
        Ok(Some((bound, lost))) => {
            let plan = plan(&node, &ownership, &page);
            let notify = |what: &str| {
                if what == "READY=1" {
                    tracing::info!(role = name, "serving");
                    reports.started(&name);
                }
            };
            let run = supervise::run(plan, bound, notify, &mut stops);
            let kept = async {
                match &addresses {
                    Some(addresses) => addresses.keep(gate, &lost).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                ended = run => ended,
                () = kept => Ok(()),
            }
        }
        Err(error) => Err(error),
    };
    if let Some(addresses) = &addresses {
        addresses.remove().await;
    }
    match result {
        Ok(()) => {
            tracing::info!(role = name, "not served here any more");
            reports.stopped(&name);
        }
        Err(error) => {
            tracing::error!(role = name, "cannot be served here: {error:#}");
            reports.failed(&name, format!("it could not serve it: {error:#}"));
        }
    }
}

/// Everything before the server's process.
async fn prepare(
    node: &Node,
    name: &str,
    role: &Role,
    addresses: Option<&Addresses>,
    gate: Duration,
) -> anyhow::Result<Option<(Bound, Vec<Ends>)>> {
    let checked = role.clone();
    let looked = tokio::task::spawn_blocking(move || mounts(&checked));
    match timeout(MOUNTED, looked).await {
        Ok(looked) => looked?.map_err(anyhow::Error::msg)?,
        Err(_) => bail!("a file system of {:?} does not answer", role.mounts),
    }
    let parts = configure(node.parts.clone(), name, role);
    let config = &parts.config;
    fs::create_dir_all(&config.state_dir)
        .with_context(|| config.state_dir.display().to_string())?;
    let (made, keys) = (volume::clock::random()?, node.cluster.keys());
    let identity = admin::identity(&node.client, &keys, name, made).await?;
    keep_identity(&config.state_dir, identity)?;
    let mut lost = Vec::new();
    if let Some(addresses) = addresses {
        // Before our own server notes its clients there.
        let note = node.client.get(keys.peers(name).as_bytes()).await?.kvs.pop();
        lost = addresses.lost(&note.unwrap_or_default().value);
        addresses.add(gate).await?;
    }
    Ok(Some((Bound::with(config, parts.beside(), Vec::new())?, lost)))
}

/// How the server of a role is started.
fn plan(node: &Node, ownership: &Ownership, page: &Page) -> Plan {
    let mut arguments = vec!["--config".into(), node.file.clone().into()];
    let words = [
        ("--role", ownership.role.clone()),
        ("--owned-since", ownership.revision.to_string()),
        ("--gate", page.number().to_string()),
    ];
    for (key, value) in words {
        arguments.extend([key.into(), value.into()]);
    }
    let mut again = vec!["--tried".into()];
    if ownership.tried {
        arguments.append(&mut again);
    }
    Plan { program: node.program.clone(), arguments, again, patience: node.watchdog }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_should_be_mounted_and_is_not_is_named() {
        let folder = tempfile::tempdir().unwrap();
        assert!(is_mounted(Path::new("/proc")).unwrap() && is_mounted(Path::new("/")).unwrap());
        assert!(!is_mounted(folder.path()).unwrap());
        let text = format!(
            "[cluster]\nname='c'\nnode=1\nfence='gate'\nendpoints=['http://127.0.0.1:1']\n\
             [[cluster.role]]\nname='r'\nshares=['s']\nlisten=['127.0.0.1:0']\naddresses='none'\n\
             mounts=['{}']\n",
            folder.path().display()
        );
        let config = cluster::config::Config::parse(&text, Path::new("/smbd.toml")).unwrap();
        let error = mounts(&config.unwrap().roles["r"]).unwrap_err();
        assert!(error.ends_with("is not mounted"), "{error}");
    }

    #[test]
    fn the_identity_of_a_role_is_the_same_on_every_node() {
        let folder = tempfile::tempdir().unwrap();
        for identity in [[1; 16], [1; 16], [2; 16]] {
            keep_identity(folder.path(), identity).unwrap();
            assert_eq!(fs::read(folder.path().join("server-guid")).unwrap(), identity);
        }
    }
}

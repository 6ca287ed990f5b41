//! What a node needs to take roles over safely, each thing by name: there, or missing.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use rustix::fs::statfs;
use serde::Serialize;
use state_store::etcd::{Client, Settings};

use crate::{
    admin,
    config::{Config, Role},
    engine::Fence,
    watch::look,
};

/// How it is about one thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// It works, and there is something to know.
    Note,
    /// Without it something does not work.
    Missing,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How it is.
    pub verdict: Verdict,
    /// What it is, in words.
    pub what: String,
}

fn finding(verdict: Verdict, what: impl Into<String>) -> Finding {
    Finding { verdict, what: what.into() }
}

/// File systems by the number that statfs(2) gives them, with whether several nodes see the same one.
fn file_system(path: &Path) -> Result<(&'static str, Option<bool>), String> {
    let found = statfs(path).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(match found.f_type as u64 {
        0xef53 => ("ext4", Some(false)),
        0x5846_5342 => ("XFS", Some(false)),
        0x9123_683e => ("Btrfs", Some(false)),
        0x0102_1994 => ("tmpfs", Some(false)),
        0x00c3_6400 => ("CephFS", Some(true)),
        0x6573_5546 => ("FUSE (GlusterFS, ceph-fuse and others)", Some(true)),
        0x6969 => ("NFS", Some(true)),
        0x0116_1970 => ("GFS2", Some(true)),
        0x7461_636f => ("OCFS2", Some(true)),
        _ => ("of a kind that is not known here", None),
    })
}

/// Whether there is an interface of this name.
fn is_interface(name: &str) -> bool {
    use rustix::net::{AddressFamily, SocketType, netdevice::name_to_index, socket};
    let found = socket(AddressFamily::INET, SocketType::DGRAM, None);
    found.is_ok_and(|socket| name_to_index(socket, name).is_ok())
}

fn of_role(name: &str, role: &Role, fence: Fence, all: &mut Vec<Finding>) {
    if role.mounts.is_empty() {
        let what =
            "names no mounts, so a folder whose file system is not mounted would be served empty";
        all.push(finding(Verdict::Note, format!("role {name} {what}")));
    }
    for path in &role.mounts {
        let place = format!("role {name}: {}", path.display());
        let parent = path.parent().unwrap_or(path);
        let device = |path: &Path| rustix::fs::stat(path).map(|stat| stat.st_dev);
        match (device(path), device(parent)) {
            (Ok(here), Ok(above)) if here == above && path != parent => {
                all.push(finding(Verdict::Missing, format!("{place} is not mounted")));
            }
            (Err(error), _) => all.push(finding(Verdict::Missing, format!("{place}: {error}"))),
            _ => all.push(match file_system(path) {
                Ok((kind, Some(false))) => {
                    let what = "which other nodes do not see: it must be one and the same on all";
                    finding(Verdict::Missing, format!("{place} is {kind}, {what}"))
                }
                Ok((kind, shared)) => {
                    let cached = fence == Fence::Gate && shared != Some(false);
                    let what = if cached {
                        ": with fence = \"gate\" it must not write behind what a lost node has given to \
                         its cache (docs/cluster.md, Fencing)"
                    } else {
                        ""
                    };
                    let verdict = if cached { Verdict::Note } else { Verdict::Ok };
                    finding(verdict, format!("{place} is {kind}{what}"))
                }
                Err(error) => finding(Verdict::Missing, error),
            }),
        }
    }
    if let Some(floating) = &role.floating {
        let there = is_interface(&floating.interface);
        let (verdict, is) =
            if there { (Verdict::Ok, "is there") } else { (Verdict::Missing, "is missing") };
        all.push(finding(verdict, format!("role {name}: interface {} {is}", floating.interface)));
        let folders = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"];
        if !folders.iter().any(|folder| Path::new(folder).join("ip").exists()) {
            all.push(finding(Verdict::Missing, "ip(8), of the package iproute2, sets addresses"));
        }
    }
}

async fn of_etcd(config: &Config, all: &mut Vec<Finding>) {
    let count = config.etcd.endpoints.len();
    if count < 3 || count.is_multiple_of(2) {
        let what = "an odd number of three or more outlives the loss of one";
        all.push(finding(Verdict::Note, format!("{count} members of etcd are named: {what}")));
    }
    if config.etcd.tls.is_none() {
        let what = "is asked without TLS: whoever reaches it, or listens, can take roles away";
        all.push(finding(Verdict::Note, format!("etcd {what}")));
    }
    for endpoint in &config.etcd.endpoints {
        let settings = Settings { endpoints: vec![endpoint.clone()], ..config.etcd.clone() };
        let status = match Client::new(&settings) {
            Ok(client) => client.status().await.map_err(|error| error.to_string()),
            Err(error) => Err(error),
        };
        all.push(match status {
            Ok(status) if status.leader == 0 => {
                finding(Verdict::Missing, format!("etcd {endpoint} has no leader"))
            }
            Ok(status) => {
                finding(Verdict::Ok, format!("etcd {endpoint} is version {}", status.version))
            }
            Err(error) => finding(Verdict::Missing, format!("etcd {endpoint}: {error}")),
        });
    }
}

fn of_fences(config: &Config, others: &[u16], all: &mut Vec<Finding>) {
    if config.fence == Fence::Gate {
        let what =
            "a node that is lost has stopped itself; a virtual machine that is paused cannot";
        all.push(finding(Verdict::Note, format!("fence = \"gate\": {what}")));
        return;
    }
    for node in others {
        let Some(command) = config.agents.get(node) else {
            let what = "has no [[cluster.fence_agent]]: nothing is taken over from it";
            all.push(finding(Verdict::Missing, format!("node {node} {what}")));
            continue;
        };
        let program = command.first().map(String::as_str).unwrap_or_default();
        let runs = fs::metadata(program).is_ok_and(|meta| meta.permissions().mode() & 0o111 != 0);
        let (verdict, is) =
            if runs { (Verdict::Ok, "is") } else { (Verdict::Missing, "is no program at") };
        all.push(finding(verdict, format!("fence agent of node {node} {is} {program}")));
    }
}

/// Looks at everything that a node can see of what it needs.
pub async fn validate(config: &Config) -> Vec<Finding> {
    let mut all = Vec::new();
    of_etcd(config, &mut all).await;
    let mut others: Vec<u16> = config.agents.keys().copied().collect();
    let seen = async {
        let client = Client::new(&config.etcd).map_err(admin::AdminError::Refused)?;
        let record = admin::cluster(&client, &config.keys()).await?;
        Ok::<_, admin::AdminError>((record, look(&client, &config.keys()).await?))
    };
    match seen.await {
        Ok((record, view)) => {
            all.push(finding(Verdict::Ok, format!("cluster {} is there", record.name)));
            match view.nodes.contains_key(&config.node) {
                true => {
                    all.push(finding(Verdict::Ok, format!("node {} is one of its", config.node)))
                }
                false => all.push(finding(
                    Verdict::Missing,
                    format!("node {}: run `bulkhead cluster join`", config.node),
                )),
            }
            others.extend(view.nodes.keys());
            for name in config.roles.keys() {
                let able = view.members.iter().filter(|(node, seen)| {
                    **node != config.node && seen.record.roles.iter().any(|role| role == name)
                });
                if able.count() == 0 {
                    let what = "is served by no other node that is there: nobody takes it over";
                    all.push(finding(Verdict::Note, format!("role {name} {what}")));
                }
            }
        }
        Err(error) => all.push(finding(Verdict::Missing, error.to_string())),
    }
    others.sort_unstable();
    others.dedup();
    others.retain(|node| *node != config.node);
    of_fences(config, &others, &mut all);
    for (name, role) in &config.roles {
        of_role(name, role, config.fence, &mut all);
    }
    all
}

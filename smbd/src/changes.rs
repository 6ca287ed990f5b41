//! What a change is about, as it is now: looked at before and after, for the log of changes.

use std::collections::BTreeSet;

use serde::Serialize;
use serde_json::{Value, json};
use server_api::{Reply, Request};
use smb_server::Server;

use crate::{
    admin::{self, Program},
    declared,
};

fn all<T: Serialize>(list: impl IntoIterator<Item = T>) -> Value {
    let values = list.into_iter().map(|it| serde_json::to_value(it).unwrap_or_default());
    Value::Array(values.collect())
}

/// The state of what a request is about; nothing for one that changes nothing.
pub(crate) fn state(server: &Server, program: &Program, request: &Request) -> Value {
    match request {
        Request::TargetDisconnect { session } => {
            let sessions = program.iscsi.sessions().into_iter().filter(|it| it.id == *session);
            all(sessions.map(admin::target_session))
        }
        Request::LunResize { target, lun } => {
            let targets =
                admin::targets(&program.iscsi).into_iter().filter(|it| it.name == *target);
            all(targets.flat_map(|it| it.luns).filter(|it| it.number == *lun))
        }
        Request::WitnessState { node, .. } => {
            let Some(Reply::Witness { nodes, .. }) = witness(program) else { return Value::Null };
            all(nodes.into_iter().filter(|it| it.name.eq_ignore_ascii_case(node)))
        }
        Request::WitnessMove { client, share, .. } => {
            let Some(Reply::Witness { clients, .. }) = witness(program) else { return Value::Null };
            let is = |given: &Option<String>, own: Option<&str>| {
                given
                    .as_deref()
                    .is_none_or(|given| own.is_some_and(|own| own.eq_ignore_ascii_case(given)))
            };
            let meant = clients
                .into_iter()
                .filter(|it| is(client, Some(&it.client)) && is(share, it.share.as_deref()));
            all(meant)
        }
        Request::Disconnect { target } => {
            let (sessions, opens) = admin::meant(server, target);
            let sessions = all(sessions.iter().map(|it| admin::session_info(it)));
            json!({ "sessions": sessions, "opens": all(opens.iter().map(|it| admin::open_info(it))) })
        }
        Request::Reload => {
            let config = &server.current().config;
            let targets = admin::targets(&program.iscsi);
            let names: BTreeSet<_> = targets.iter().map(|it| &it.name).collect();
            json!({
                "shares": all(config.shares.values().map(|it| &it.name)),
                "users": all(config.user_names.values()),
                "targets": all(names),
            })
        }
        Request::Apply { .. } => {
            let all = program.declared.as_ref().and_then(|place| declared::all(place).ok());
            json!(all)
        }
        Request::Upgrade => {
            json!({ "version": env!("CARGO_PKG_VERSION"), "pid": std::process::id() })
        }
        Request::SnapshotCreate { share } | Request::SnapshotDelete { share, .. } => {
            let volume = admin::volume(server, share).ok();
            let times = volume.and_then(|volume| volume.snapshots().ok()).unwrap_or_default();
            all(times.iter().map(ToString::to_string))
        }
        Request::Status
        | Request::Sessions
        | Request::Opens
        | Request::Locks
        | Request::Shares
        | Request::Why
        | Request::WhyOf { .. }
        | Request::History { .. }
        | Request::Targets
        | Request::TargetSessions
        | Request::WitnessList
        | Request::DeclaredShow
        | Request::SnapshotList { .. } => Value::Null,
    }
}

/// A request as it is written down: without secrets.
pub(crate) fn shown(request: &Request) -> Value {
    let mut request = request.clone();
    if let Request::Apply { declared, .. } = &mut request {
        declared::hide(declared);
    }
    serde_json::to_value(&request).unwrap_or_default()
}

fn witness(program: &Program) -> Option<Reply> {
    program.witness.as_deref().map(admin::witness_list)
}

//! TREE_CONNECT (MS-SMB2 3.3.5.7).

use std::sync::Arc;

use smb_protocol::{
    NtStatus,
    msg::{
        create::Access,
        tree_connect::{Request, Response, ShareCapabilities, ShareFlags, ShareType},
    },
    ntlm::users,
};

use super::{Ctx, Handled, Outcome};
use crate::{
    config::{ClusterShare, Encryption, Share, ShareCompression},
    session::Tree,
};

/// Carries out a TREE_CONNECT request.
pub fn handle(ctx: &mut Ctx<'_>, body: &[u8], out: &mut Vec<u8>) -> Handled {
    let request = Request::parse(body)?;
    let session = ctx.session()?.clone();
    let name = share_name(&request.path).ok_or(NtStatus::BAD_NETWORK_NAME)?;
    let folded = users::fold(name);
    let current = ctx.ex.server.current();
    let limit = ctx.ex.limits().trees_per_session;
    let (share_type, mut flags, tree);
    let mut capabilities = ShareCapabilities::NONE;
    if folded == "IPC$" {
        share_type = ShareType::PIPE;
        flags = ShareFlags::NO_CACHING;
        tree = session.add_tree(limit, |id| Tree {
            id,
            name: folded,
            share: Arc::new(Share::pipes()),
            volume: None,
            maximal_access: Access(0x001f_00a9),
            continuous: false,
            meter: None,
        })?;
    } else {
        let share = current.config.shares.get(&folded).ok_or(NtStatus::BAD_NETWORK_NAME)?;
        if !share.users.contains(&session.user.name) {
            tracing::info!(
                user = session.user.name,
                share = share.name,
                "not allowed on this share"
            );
            return Err(NtStatus::ACCESS_DENIED.into());
        }
        if !share.admits(ctx.ex.peer.ip()) {
            let (share, peer) = (&share.name, ctx.ex.peer);
            tracing::info!(share, %peer, "this share is not for clients from there");
            return Err(NtStatus::ACCESS_DENIED.into());
        }
        if let Some(most) = share.max_connections {
            let sessions = ctx.ex.server.sessions.all();
            let connected: usize = sessions.iter().map(|session| session.trees_of(&folded)).sum();
            if connected >= most {
                return Err(NtStatus::REQUEST_NOT_ACCEPTED.into());
            }
        }
        if share.must_encrypt() && session.sealing.is_none() {
            return Err(NtStatus::ACCESS_DENIED.into());
        }
        let wants = share.encryption >= Some(Encryption::Desired) && session.sealing.is_some();
        share_type = ShareType::DISK;
        flags = if wants { ShareFlags::ENCRYPT_DATA } else { ShareFlags::NONE };
        if share.force_level2_oplocks {
            flags |= ShareFlags::FORCE_LEVELII_OPLOCK;
        }
        let compresses = ctx.ex.compression().is_some();
        if share.compression == ShareCompression::Force && compresses {
            flags |= ShareFlags::COMPRESS_DATA;
        }
        if share.access_based_enumeration {
            flags |= ShareFlags::ACCESS_BASED_ENUM;
        }
        if current.config.namespaces.contains_key(&folded) {
            flags |= ShareFlags::DFS | ShareFlags::DFS_ROOT;
            capabilities |= ShareCapabilities::DFS;
        }
        // Older dialects know nothing of it (MS-SMB2 3.3.5.7).
        let continuous = share.continuously_available
            && ctx.dialect().is_smb3()
            && ctx.ex.server.open_files.persistent_opens.is_there();
        if continuous {
            capabilities |= ShareCapabilities::CONTINUOUS_AVAILABILITY;
        }
        if ctx.dialect().is_smb3() {
            capabilities |= match share.cluster {
                None => ShareCapabilities::NONE,
                Some(ClusterShare::Failover) => ShareCapabilities::CLUSTER,
                Some(ClusterShare::ScaleOut) => {
                    ShareCapabilities::CLUSTER | ShareCapabilities::SCALEOUT
                }
            };
        }
        let volume = current.volumes.get(&folded).cloned();
        let meter = Some(ctx.ex.server.meters.share(&folded));
        tree = session.add_tree(limit, |id| Tree {
            id,
            name: folded,
            share: share.clone(),
            volume,
            maximal_access: share.maximal_access(),
            continuous,
            meter,
        })?;
    }
    ctx.header.set_tree_id(tree.id);
    Response { share_type, flags, capabilities, maximal_access: tree.maximal_access.0 }.encode(out);
    Ok(Outcome::SUCCESS)
}

/// The share in `\\server\share`.
fn share_name(path: &str) -> Option<&str> {
    let (_, share) = path.strip_prefix("\\\\")?.split_once('\\')?;
    (!share.is_empty() && !share.contains('\\')).then_some(share)
}

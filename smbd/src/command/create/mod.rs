//! CREATE (MS-SMB2 3.3.5.9): the request's checks, its contexts and the answer. What happens on
//! the volume is in [`job`].

pub mod job;

use std::sync::Arc;

use block_io::Engine;
use smb_protocol::{
    FileId, NtStatus,
    msg::{
        context::{self, names},
        create::{Access, CreateOptions, Disposition, RawContext, Request, Response},
        oplock::OplockLevel,
    },
};

use self::job::Job;
use super::{Ctx, Handled};
use crate::{config::IoEngine, volume::FileName};

/// Bits of an access mask that mean nothing (MS-SMB2 2.2.13.1).
const ACCESS_UNKNOWN: Access = Access(0x0ce0_fe00);
/// Attributes that a create may carry.
const ATTRIBUTES_KNOWN: u32 = 0x0000_7fb7;

/// Handles a CREATE.
pub fn handle(ctx: &mut Ctx<'_>, body: &[u8], out: &mut Vec<u8>) -> Handled {
    let request = Request::parse(body)?;
    check(&request)?;
    let tree = ctx.tree()?.clone();
    let Some(volume) = tree.volume.clone() else {
        // IPC$ has no pipes.
        return Err(NtStatus::OBJECT_NAME_NOT_FOUND.into());
    };
    let session = ctx.session()?.clone();
    let limits = ctx.ex.limits();
    session.room_for_open(limits.opens_per_session, limits.opens)?;
    for unsupported in [names::TWRP, names::DHNC, names::DH2C] {
        if context::find(&request.contexts, unsupported).is_some() {
            return Err(NtStatus::OBJECT_NAME_NOT_FOUND.into());
        }
    }
    if context::find(&request.contexts, names::EXTA).is_some_and(|data| !data.is_empty()) {
        return Err(NtStatus::EAS_NOT_SUPPORTED.into());
    }
    let server = ctx.ex.server.clone();
    let id = server.new_open_id();
    let job = Job {
        request: &request,
        tree: &tree,
        sids: &session.sids,
        volume,
        nodes: server.nodes.clone(),
        id: FileId { persistent: id, volatile: id },
        name: FileName::parse(&request.name)?,
        engine: match server.current().config.io_engine {
            IoEngine::Auto => Engine::Auto,
            IoEngine::Uring => Engine::Uring,
            IoEngine::Threads => Engine::Threads,
        },
    };
    let (open, action) = job.run()?;
    let facts = open.facts()?;
    let open = Arc::new(open);
    let maximal;
    let disk_id = context::disk_id(facts.file_id, 0);
    let mut contexts = Vec::new();
    if context::find(&request.contexts, names::MXAC).is_some() {
        let listed = open.rights(&session.sids)?;
        maximal = context::maximal_access(tree.maximal_access.and(listed).0);
        contexts.push(RawContext { name: names::MXAC, data: &maximal });
    }
    if context::find(&request.contexts, names::QFID).is_some() {
        contexts.push(RawContext { name: names::QFID, data: &disk_id });
    }
    Response {
        oplock: OplockLevel::NONE,
        flags: 0,
        action,
        times: facts.times,
        allocation_size: facts.allocation_size,
        end_of_file: facts.end_of_file,
        attributes: facts.attributes,
        file_id: open.id,
        contexts,
    }
    .encode(out);
    ctx.file = Some(open.id);
    session.add_open(tree.id, open);
    Ok(NtStatus::SUCCESS)
}

/// Refuses what no file system is asked about (MS-SMB2 3.3.5.9, MS-FSA 2.1.5.1).
fn check(request: &Request<'_>) -> Result<(), NtStatus> {
    let options = request.options;
    let directory = options.has(CreateOptions::DIRECTORY_FILE);
    if request.impersonation > 3 {
        return Err(NtStatus::BAD_IMPERSONATION_LEVEL);
    }
    if request.disposition > Disposition::OVERWRITE_IF
        || request.share.0 & !7 != 0
        || request.attributes.0 & !ATTRIBUTES_KNOWN != 0
        || options.0 & 0xff00_0000 != 0
        || directory && options.has(CreateOptions::NON_DIRECTORY_FILE)
    {
        return Err(NtStatus::INVALID_PARAMETER);
    }
    let cuts = matches!(
        request.disposition,
        Disposition::SUPERSEDE | Disposition::OVERWRITE | Disposition::OVERWRITE_IF
    );
    if directory && cuts {
        return Err(NtStatus::INVALID_PARAMETER);
    }
    if options.has(CreateOptions::OPEN_BY_FILE_ID) {
        return Err(NtStatus::NOT_SUPPORTED);
    }
    if request.access.any(ACCESS_UNKNOWN) || request.access == Access::NONE {
        return Err(NtStatus::ACCESS_DENIED);
    }
    if request.access.has(Access::ACCESS_SYSTEM_SECURITY) {
        return Err(NtStatus::PRIVILEGE_NOT_HELD);
    }
    Ok(())
}

//! CREATE (MS-SMB2 3.3.5.9): the request's checks, its contexts and the answer. What happens on
//! the volume is in `volume::open`, what is asked for beside the file in [`caching`], opens that are
//! taken up again in [`reconnect`].

pub mod caching;
mod previous;
pub mod reconnect;
mod stopped;

use std::sync::{Arc, atomic::Ordering};

use smb_protocol::{
    FileId, HeaderFlags, NtStatus,
    msg::{
        context::{self, names},
        create::{Access, CreateAction, CreateOptions, Disposition, RawContext, Request, Response},
        notify::{Action, ChangeFilter},
        oplock::OplockLevel,
    },
    name::same_name,
};
use volume::{
    fs::{
        descriptor::unmark,
        path::{FileName, resolve},
        security::is_administrator,
    },
    open::{CreateInfo, Durability, Open, create::CreateOperation, persistent::of_store},
    sharing::file::Refused,
};

use self::caching::{Answers, CreateContexts, Durable, REPLAYABLE};
use super::{Ctx, Deferred, Handled, Outcome};
use crate::{config::ClusterShare, descriptors, dfs};

/// Bits of an access mask that mean nothing (MS-SMB2 2.2.13.1).
const ACCESS_UNKNOWN: Access = Access(0x0ce0_fe00);
/// Options that no server carries out: opening by file number, tree connections and filter oplocks
/// (MS-SMB2 3.3.5.9).
const NOT_SERVED: CreateOptions = CreateOptions(0x0010_2080);
/// Attributes that a create may carry (MS-FSCC 2.6); those that files here do not have mean nothing.
const ATTRIBUTES_KNOWN: u32 = 0x005e_ffb7;

/// Carries out a CREATE request.
#[allow(clippy::too_many_lines, reason = "the checks of a CREATE in their order")]
pub fn handle(ctx: &mut Ctx<'_>, body: &[u8], out: &mut Vec<u8>) -> Handled {
    let mut request = Request::parse(body)?;
    let tree = ctx.tree()?.clone();
    let Some(volume) = tree.volume.clone() else {
        // Pipes are opened elsewhere.
        return Err(NtStatus::OBJECT_NAME_NOT_FOUND.into());
    };
    // Before anything compares it.
    request.name = match ctx.ex.server.current().config.namespaces.get(&tree.name) {
        Some(namespace) => {
            let whole = ctx.header.flags.has(HeaderFlags::DFS);
            dfs::local_name(namespace, &tree.name, &request.name, whole)?
        }
        None => resolve(&request.name)?,
    };
    // MS-SMB2 3.3.5.9: what is not buffered cannot be put behind an end that is none of a sector.
    if request.options.has(CreateOptions::NO_INTERMEDIATE_BUFFERING) {
        request.access = request.access.without(Access::APPEND_DATA);
    }
    let session = ctx.session()?.clone();
    let client = ctx.client()?;
    let wishes = CreateContexts::read(&request, ctx.dialect(), client)?;
    if let Some(handled) = reconnect::handle(ctx, &request, &wishes, out) {
        return handled;
    }
    check(&request)?;
    // SeSecurityPrivilege (MS-FSA 2.1.5.1.1, MS-DTYP 2.5.3.2).
    if request.access.has(Access::ACCESS_SYSTEM_SECURITY) && !is_administrator(&session.sids) {
        return Err(NtStatus::ACCESS_DENIED.into());
    }
    if tree.continuous {
        request.options |= CreateOptions::WRITE_THROUGH;
    }
    let server = ctx.ex.server.clone();
    let limits = ctx.ex.limits();
    session.room_for_open(limits.opens_per_session)?;
    if server.open_files.open_count() >= limits.opens.min(descriptors::most_opens()) {
        return Err(NtStatus::TOO_MANY_OPENED_FILES.into());
    }
    let counted = session.user.opens.take(1).ok_or(NtStatus::TOO_MANY_OPENED_FILES)?;
    if tree.share.max_opens.is_some_and(|most| volume.open_count() >= most) {
        return Err(NtStatus::TOO_MANY_OPENED_FILES.into());
    }
    let (name, time) = previous::moment(&request)?;
    let then = time.map(|time| previous::at(&tree, &volume, time)).transpose()?;
    let frozen = then.as_ref().unwrap_or(&tree);
    let volume = frozen.volume.clone().unwrap_or(volume);
    fence(ctx, &request, &wishes)?;
    let persistent = tree.continuous && ctx.keeps_persistent() && wishes.wants_persistence();
    let id = server.ids.open_file();
    let job = CreateOperation {
        request: &request,
        ceiling: frozen.maximal_access,
        sids: &session.sids,
        volume,
        open_files: server.open_files.clone(),
        id: FileId { persistent: id, volatile: id },
        name: FileName::parse(&name)?,
        engine: server.current().config.io_engine.into(),
        lease: wishes.lease(),
        origin: CreateInfo {
            client,
            user: session.user.clone(),
            share: tree.name.clone(),
            name: request.name.clone(),
            create_guid: wishes.create_guid(),
            app_instance: wishes.app_instance,
            app_version: wishes.app_version,
            parent_lease: wishes.parent_lease(),
            action: 0,
            desired_access: request.access,
            share_access: request.share,
        },
        smb3: ctx.dialect().is_smb3(),
        mark: persistent.then(|| wishes.mark(client.guid)).flatten(),
        replays: ctx.header.flags.has(HeaderFlags::REPLAY),
    };
    let (mut open, action) = match job.run() {
        Err(Refused::Reparse(met)) => {
            let namespaces = &server.current().config.namespaces;
            let whole =
                ctx.header.flags.has(HeaderFlags::DFS) && namespaces.contains_key(&tree.name);
            return Err(stopped::answer(body, whole, &met));
        }
        Err(refused) => {
            if let (Refused::Wait(_), Some(guid), None) =
                (&refused, wishes.create_guid(), &ctx.creating)
            {
                ctx.creating = Some(server.open_files.creates.begin((guid, client)));
            }
            return Err(refused.into());
        }
        Ok(made) => made,
    };
    ctx.creating = None;
    open.origin.action = action.0;
    open.counted = Some(counted);
    let open = Arc::new(open);
    server.open_files.add_open(&open);
    tell(&open, action);
    if let Some(want) = wishes.caching {
        let want = if tree.share.force_level2_oplocks { want.without_writes() } else { want };
        let scales = tree.share.cluster == Some(ClusterShare::ScaleOut) && ctx.dialect().is_smb3();
        let want = if scales { want.of_one_node(open.directory) } else { want };
        let granted = server.open_files.acquire(&open, want);
        open.state().durability = wishes.durability(&open, granted);
    }
    open.sequence.start(ctx.header.channel_sequence());
    let replayable = wishes.create_guid().is_some()
        && (persistent || !open.directory && open.access.any(REPLAYABLE));
    open.replayable.store(replayable, Ordering::Release);
    let mut contexts = Vec::new();
    // MS-SMB2 3.3.5.9.5.
    if context::find(&request.contexts, names::MXAC).is_some() {
        let listed = open.rights(&session.sids)?;
        let maximal = context::maximal_access(frozen.maximal_access.and(listed).0);
        contexts.push((names::MXAC, maximal.to_vec()));
    }
    // MS-SMB2 3.3.5.9.9.
    if context::find(&request.contexts, names::QFID).is_some() {
        contexts.push((
            names::QFID,
            context::disk_id(open.facts()?.file_id, open.volume().serial().into()).to_vec(),
        ));
    }
    let promised = wishes.persistence().filter(|_| persistent).map(Durability::Persistent);
    let remembered = promised.map(|promised| open.remember(promised)).transpose()?.flatten();
    session.add_open(tree.id, open.clone());
    let oplock = open.oplock_level();
    let made = tree.continuous && action != CreateAction::OPENED;
    if remembered.is_none() && !made {
        return answer(ctx, &open, oplock, wishes.durable, contexts, action, out);
    }
    let mut body = Vec::new();
    answer(ctx, &open, oplock, wishes.durable, contexts, action, &mut body)?;
    let creating = wishes.create_guid().map(|guid| {
        // A repetition of the request is not answered before this one is.
        server.open_files.creates.begin((guid, client))
    });
    Ok(Outcome::Deferred(Deferred::storage(body.len(), async move {
        let _creating = creating;
        let done = async {
            if let Some(remembered) = remembered {
                remembered.await.map_err(|error| of_store(&error))?;
            }
            if made {
                unmark(open.holder());
                sync_all(open.clone()).await?;
            }
            Ok(body)
        };
        done.await.inspect_err(|status| {
            tracing::debug!(%status, "an open that cannot be promised is closed");
            open.close_for_good();
        })
    })))
}

/// Makes a file that was made or cut durable, with its name.
pub(super) async fn sync_all(open: Arc<Open>) -> Result<(), NtStatus> {
    let work = move || open.sync_all();
    match tokio::task::spawn_blocking(work).await {
        Ok(settled) => settled,
        Err(error) => {
            tracing::error!(%error, "a thread that makes files durable failed; this is a defect");
            Err(NtStatus::INTERNAL_ERROR)
        }
    }
}

/// Writes the answer about an open that the session has.
fn answer(
    ctx: &mut Ctx<'_>,
    open: &Open,
    oplock: OplockLevel,
    durable: Option<Durable>,
    extra: Vec<(&'static [u8], Vec<u8>)>,
    action: CreateAction,
    out: &mut Vec<u8>,
) -> Handled {
    let facts = open.facts()?;
    let answers = Answers::of(open, durable);
    let mut contexts: Vec<RawContext<'_>> =
        extra.iter().map(|(name, data)| RawContext { name, data }).collect();
    answers.add_to(&mut contexts);
    Response {
        oplock,
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
    Ok(Outcome::SUCCESS)
}

/// Tells those who watch the folder what a CREATE changed.
fn tell(open: &Open, action: CreateAction) {
    match action {
        CreateAction::CREATED if open.stream.is_some() => {
            open.tell(Action::ADDED_STREAM, open.name_filter());
        }
        CreateAction::CREATED => open.tell(Action::ADDED, open.name_filter()),
        CreateAction::OPENED => {}
        // MS-FSA 2.1.5.1.2: of the file nothing has changed.
        _ if open.stream.is_some() => open.tell_written(),
        _ => open.tell(
            Action::MODIFIED,
            ChangeFilter::SIZE | ChangeFilter::LAST_WRITE | ChangeFilter::ATTRIBUTES,
        ),
    }
}

/// Closes what an earlier instance of the same application has open (MS-SMB2 3.3.5.9.13): a VM
/// that was started elsewhere fences its disks from where it was.
fn fence(ctx: &Ctx<'_>, request: &Request<'_>, wishes: &CreateContexts) -> Result<(), NtStatus> {
    let Some(instance) = wishes.app_instance else { return Ok(()) };
    let open_files = &ctx.ex.server.open_files;
    let share = &ctx.tree()?.name;
    let client = ctx.client_guid();
    let stale = open_files.all_opens().into_iter().filter(|open| {
        open.origin.app_instance == Some(instance)
            && open.origin.client.guid != client
            && open.origin.share == *share
            && same_name(&open.origin.name, &request.name)
    });
    for open in stale {
        match (open.origin.app_version, wishes.app_version) {
            (Some(old), Some(new)) if old >= new => return Err(NtStatus::FILE_FORCED_CLOSED),
            (Some(_), None) => return Err(NtStatus::FILE_FORCED_CLOSED),
            _ => {}
        }
        // Knowing the name of an instance is not enough to close what it has open.
        let readable = ctx.tree()?.maximal_access.and(open.rights(&ctx.session()?.sids)?);
        if !readable.has(Access::READ_DATA) {
            continue;
        }
        tracing::info!(file = %volume::quoted::Quoted(&request.name), "an earlier instance is fenced");
        open.close_for_good();
    }
    Ok(())
}

/// Refuses what no file system is asked about (MS-SMB2 3.3.5.9, MS-FSA 2.1.5.1).
fn check(request: &Request<'_>) -> Result<(), NtStatus> {
    let options = request.options;
    let directory = options.has(CreateOptions::DIRECTORY_FILE);
    if request.impersonation > 3 {
        return Err(NtStatus::BAD_IMPERSONATION_LEVEL);
    }
    if request.access == Access::NONE || request.access.any(ACCESS_UNKNOWN) {
        return Err(NtStatus::ACCESS_DENIED);
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
    if options.any(NOT_SERVED) {
        return Err(NtStatus::NOT_SUPPORTED);
    }
    // MS-SMB2 3.3.5.9: the right to the audit list is none to the file.
    if request.access == Access::ACCESS_SYSTEM_SECURITY {
        return Err(NtStatus::ACCESS_DENIED);
    }
    Ok(())
}

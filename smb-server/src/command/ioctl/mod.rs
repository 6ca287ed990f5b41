//! IOCTL (MS-SMB2 3.3.5.15): checks that all controls share, and who carries out which.
//!
//! ```text
//!  request ─► size, credit and handle checks ─► network    no file: negotiation, interfaces
//!                                            ├► sparse     holes, zeros, ranges, trim
//!                                            ├► copychunk  copy between two opens of a session
//!                                            ├► duplicate  blocks shared between two files
//!                                            ├► odx        tokens that stand for data
//!                                            ├► compression
//!                                            ├► snapshots  previous versions
//!                                            ├► resiliency opens that outlive their connection
//!                                            ├► object_ids
//!                                            ├► records    extents, entries of a journal
//!                                            ├► reparse    links and what else is no file
//!                                            └► objects    owners, volume
//! ```
//!
//! What may touch the disk runs on a thread for blocking work; the open is held until it ends.

mod compression;
mod copychunk;
mod duplicate;
mod network;
mod object_ids;
mod objects;
mod odx;
mod records;
mod reparse;
mod resiliency;
mod snapshots;
mod sparse;

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use smb_protocol::{
    FileId, NtStatus,
    fscc::FsctlCode,
    msg::ioctl::{IS_FSCTL, Request, Response},
};
use volume::open::Open;

use super::{Ctx, Deferred, Handled, Outcome};
use crate::dfs;

/// Copies longer than this tell the client that it waits.
const LONG: u64 = 4 << 20;

/// A control of Samba's test suite, which makes the answers to the connection's READs begin their
/// data 8 bytes later than they need to.
const PAD_READS: FsctlCode = FsctlCode(0x8384_8023);

/// Another, which takes as many milliseconds as its input says: what is closed meanwhile is closed
/// after it.
const SLEEP: FsctlCode = FsctlCode(0x8384_8043);

/// A control on an open.
struct Call<'a> {
    request: &'a Request<'a>,
    open: Arc<Open>,
}

/// What a control gives when it ends: status and output, or an error without any.
type Output = Result<(NtStatus, Vec<u8>), NtStatus>;

/// Carries out an IOCTL request.
pub fn handle(ctx: &mut Ctx<'_>, body: &[u8], out: &mut Vec<u8>) -> Handled {
    let request = Request::parse(body)?;
    if request.flags != IS_FSCTL {
        return Err(NtStatus::NOT_SUPPORTED.into());
    }
    let most = ctx.ex.max_message();
    let (input, output) = (request.max_input as usize, request.max_output as usize);
    if request.input.len() > most || input > most || output > most {
        return Err(NtStatus::INVALID_PARAMETER.into());
    }
    ctx.check_charge(request.input.len().max(input + output))?;
    let code = request.code;
    if matches!(
        code,
        FsctlCode::DFS_GET_REFERRALS
            | FsctlCode::DFS_GET_REFERRALS_EX
            | FsctlCode::QUERY_NETWORK_INTERFACE_INFO
            | FsctlCode::VALIDATE_NEGOTIATE_INFO
            | FsctlCode::PIPE_WAIT
    ) {
        if request.file_id != FileId::RELATED {
            return Err(NtStatus::INVALID_PARAMETER.into());
        }
        return match code {
            FsctlCode::VALIDATE_NEGOTIATE_INFO => network::validate(ctx, &request, out),
            FsctlCode::QUERY_NETWORK_INTERFACE_INFO => network::interfaces(ctx, &request, out),
            FsctlCode::DFS_GET_REFERRALS | FsctlCode::DFS_GET_REFERRALS_EX => {
                dfs::referrals(ctx, &request, out)
            }
            _ => Err(NtStatus::INVALID_DEVICE_REQUEST.into()),
        };
    }
    if code == PAD_READS && ctx.ex.server.current().config.test_controls {
        ctx.ex.read_padding = 8;
        return answer(&request, &[], out);
    }
    let call = Call { open: ctx.open(request.file_id)?, request: &request };
    match code {
        SLEEP if ctx.ex.server.current().config.test_controls => {
            let time = Duration::from_millis(request.input.first().copied().unwrap_or(0).into());
            call.later(0, true, move |_| {
                std::thread::sleep(time);
                DONE
            })
        }
        FsctlCode::SET_SPARSE => sparse::set_sparse(call),
        FsctlCode::SET_ZERO_DATA => sparse::zero_data(call),
        FsctlCode::QUERY_ALLOCATED_RANGES => sparse::allocated_ranges(call, out),
        FsctlCode::QUERY_FILE_REGIONS => sparse::file_regions(call, out),
        FsctlCode::FILE_LEVEL_TRIM => sparse::trim(call),
        FsctlCode::SRV_REQUEST_RESUME_KEY => copychunk::resume_key(call, out),
        FsctlCode::SRV_COPYCHUNK => copychunk::copy(ctx, call, out),
        FsctlCode::SRV_COPYCHUNK_WRITE => copychunk::copy(ctx, call, out),
        FsctlCode::DUPLICATE_EXTENTS_TO_FILE => duplicate::duplicate(ctx, call),
        FsctlCode::DUPLICATE_EXTENTS_TO_FILE_EX => duplicate::duplicate(ctx, call),
        FsctlCode::OFFLOAD_READ => odx::read(ctx, call, out),
        FsctlCode::OFFLOAD_WRITE => odx::write(ctx, call, out),
        FsctlCode::SRV_ENUMERATE_SNAPSHOTS => snapshots::enumerate(ctx, call),
        FsctlCode::LMR_REQUEST_RESILIENCY => resiliency::request(ctx, call, out),
        FsctlCode::GET_COMPRESSION => compression::get(call, out),
        FsctlCode::SET_COMPRESSION => compression::set(call, out),
        FsctlCode::CREATE_OR_GET_OBJECT_ID => object_ids::create_or_get(ctx, call, out),
        FsctlCode::GET_OBJECT_ID => object_ids::get(call, out),
        FsctlCode::SET_OBJECT_ID => object_ids::set(call),
        FsctlCode::SET_OBJECT_ID_EXTENDED => object_ids::set_extended(call, out),
        FsctlCode::DELETE_OBJECT_ID => object_ids::delete(ctx, call, out),
        FsctlCode::GET_REPARSE_POINT => reparse::get(call, out),
        FsctlCode::DELETE_REPARSE_POINT => reparse::delete(call, out),
        FsctlCode::SET_REPARSE_POINT => reparse::set(call, out),
        FsctlCode::FIND_FILES_BY_SID => objects::find_by_sid(call),
        FsctlCode::GET_NTFS_VOLUME_DATA => objects::ntfs_volume_data(call, out),
        FsctlCode::SET_ZERO_ON_DEALLOCATION => objects::zero_on_deallocation(call),
        FsctlCode::GET_RETRIEVAL_POINTERS => records::retrieval_pointers(call),
        FsctlCode::READ_FILE_USN_DATA => records::usn_data(call, out),
        // Not allowed on this server (MS-SMB2 3.3.5.15): no file system here has such snapshots.
        FsctlCode::REFS_STREAM_SNAPSHOT_MANAGEMENT => Err(NtStatus::NOT_SUPPORTED.into()),
        // Controls that a file system may lack; among them those of UDF and ReFS, of checksums
        // (MS-FSA 2.1.5.10.10, .33, .34), of a change journal and of shared virtual disks
        // (MS-FSCC 2.3, MS-SMB2 3.3.5.15.15).
        known if known.known_name().is_some() => Err(NtStatus::INVALID_DEVICE_REQUEST.into()),
        // A vendor's own, which is passed on to a file system that has none (MS-SMB2 3.3.5.15.8).
        private if private.0 >> 31 == 1 => Err(NtStatus::INVALID_DEVICE_REQUEST.into()),
        _ => Err(NtStatus::NOT_SUPPORTED.into()),
    }
}

/// Answers at once.
fn answer(request: &Request<'_>, output: &[u8], out: &mut Vec<u8>) -> Handled {
    answer_as(NtStatus::SUCCESS, request, output, out)
}

/// Answers at once with a status of its own and output.
fn answer_as(status: NtStatus, request: &Request<'_>, output: &[u8], out: &mut Vec<u8>) -> Handled {
    if output.len() > request.max_output as usize {
        return Err(NtStatus::BUFFER_TOO_SMALL.into());
    }
    Response { code: request.code, file_id: request.file_id, output }.encode(out);
    Ok(Outcome::Done(status))
}

impl Call<'_> {
    /// Bytes of output that the client takes.
    fn room(&self) -> usize {
        self.request.max_output as usize
    }

    /// Answers when `work`, run where it may wait, has ended. `held` is the memory it takes.
    fn later(
        self,
        held: usize,
        interim: bool,
        work: impl FnOnce(&Open) -> Output + Send + 'static,
    ) -> Handled {
        self.later_after(std::future::ready(()), held, interim, work)
    }

    /// The same when `first` has ended; what it gives is kept until `work` has ended.
    fn later_after<T: Send + 'static>(
        self,
        first: impl Future<Output = T> + Send + 'static,
        held: usize,
        interim: bool,
        work: impl FnOnce(&Open) -> Output + Send + 'static,
    ) -> Handled {
        let (code, file_id, open) = (self.request.code, self.open.id, self.open);
        let future = async move {
            let kept = first.await;
            let work = move || {
                let _kept = kept;
                let done = work(&open)?;
                if open.write_through() && open.written.load(Ordering::Relaxed) {
                    open.sync_all()?;
                }
                Ok(done)
            };
            let ended = tokio::task::spawn_blocking(work).await;
            match ended {
                Ok(Ok((status, output))) => {
                    let mut body = Vec::with_capacity(48 + output.len());
                    Response { code, file_id, output: &output }.encode(&mut body);
                    (status, body)
                }
                Ok(Err(status)) => (status, Vec::new()),
                Err(error) => {
                    tracing::error!(%error, "a control's thread failed; this is a defect");
                    (NtStatus::INTERNAL_ERROR, Vec::new())
                }
            }
        };
        let response = Box::pin(future);
        let deferred = Deferred { response, cancel: None, interim, bytes: held, storage: true };
        Ok(Outcome::Deferred(deferred))
    }
}

/// Fails if a lock forbids `open` to read a range (MS-FSA 2.1.4.10).
fn reads(open: &Open, offset: u64, len: u64) -> Result<(), NtStatus> {
    open.file.check_io(open.opener_id(), offset, len, false)
}

/// Fails if a lock forbids `open` to change a range; else what others cached is void.
fn changes(open: &Open, offset: u64, len: u64) -> Result<(), NtStatus> {
    open.file.check_io(open.opener_id(), offset, len, true)?;
    touches(open)
}

/// Notes that the content of a file is about to change: who caches it, who watches it, its times.
fn touches(open: &Open) -> Result<(), NtStatus> {
    open.break_read_caching()?;
    open.written.store(true, Ordering::Relaxed);
    if open.table().is_watched() {
        open.tell_written();
    }
    open.note_write();
    Ok(())
}

/// A control that succeeded without output.
const DONE: Output = Ok((NtStatus::SUCCESS, Vec::new()));

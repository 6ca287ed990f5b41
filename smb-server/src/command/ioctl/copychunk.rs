//! Server-side copy (MS-SMB2 3.3.5.15.5, 3.3.5.15.6): between two opens of one session.

use std::os::fd::AsFd;

use smb_protocol::{
    FileId, NtStatus,
    fscc::{
        FsctlCode,
        offload::{CopyChunks, CopyResult, ResumeKey, encode_resume_key},
    },
    msg::create::Access,
};
use volume::{fs::space, status::of_errno};

use super::{Call, Ctx, Handled, LONG, answer, answer_as, sparse, touches};
use crate::command::write;

/// Most chunks of a request.
const MAX_CHUNKS: u32 = 256;
/// Most bytes of a chunk.
const MAX_CHUNK: u32 = 1 << 20;
/// Most bytes of a request.
const MAX_TOTAL: u32 = 16 << 20;

/// What stands in the answer to a request that asks for too much.
const LIMITS: CopyResult =
    CopyResult { chunks: MAX_CHUNKS, chunk_bytes: MAX_CHUNK, total: MAX_TOTAL };

/// Names an open as the source of a copy: by its id, which only its session can use.
fn key_of(id: FileId) -> ResumeKey {
    let mut key = [0; 24];
    key[..16].copy_from_slice(&id.to_bytes());
    key
}

/// Answers the key by which a copy can name this open.
pub fn resume_key(call: Call<'_>, out: &mut Vec<u8>) -> Handled {
    let mut output = Vec::with_capacity(32);
    encode_resume_key(&key_of(call.open.id), &mut output);
    if call.room() < output.len() {
        return Err(NtStatus::INVALID_PARAMETER.into());
    }
    answer(call.request, &output, out)
}

/// Copies chunks from the open that the key names into this one.
pub fn copy(ctx: &Ctx<'_>, call: Call<'_>, out: &mut Vec<u8>) -> Handled {
    let input = call.request.input;
    if call.room() < CopyResult::LEN {
        return Err(NtStatus::INVALID_PARAMETER.into());
    }
    // MS-SMB2 3.3.5.15.6.2.
    let too_much = |out: &mut Vec<u8>| {
        let mut output = Vec::new();
        LIMITS.encode(&mut output);
        answer_as(NtStatus::INVALID_PARAMETER, call.request, &output, out)
    };
    let Ok(key) = CopyChunks::parse_key(input) else { return too_much(out) };
    let source = FileId::from_bytes(*key.first_chunk().unwrap_or(&[0; 16]));
    let source = ctx.other_open(source, NtStatus::OBJECT_NAME_NOT_FOUND)?;
    if key != key_of(source.id) {
        return Err(NtStatus::OBJECT_NAME_NOT_FOUND.into());
    }
    let Ok(CopyChunks { chunks, .. }) = CopyChunks::parse(input, MAX_CHUNKS) else {
        return too_much(out);
    };
    let total: u64 = chunks.iter().map(|chunk| u64::from(chunk.length)).sum();
    let beyond =
        |at: u64, len: u32| at.checked_add(len.into()).is_none_or(|end| end > i64::MAX as u64);
    if total > MAX_TOTAL.into()
        || chunks.iter().any(|chunk| {
            chunk.length == 0
                || chunk.length > MAX_CHUNK
                || beyond(chunk.source, chunk.length)
                || beyond(chunk.target, chunk.length)
        })
    {
        return too_much(out);
    }
    let readable = Access::READ_DATA.or(Access::EXECUTE);
    call.open.permit(Access::WRITE_DATA.or(Access::APPEND_DATA))?;
    if call.request.code == FsctlCode::SRV_COPYCHUNK {
        call.open.need(Access::READ_DATA)?;
    }
    let from = source.content(readable)?.clone();
    let to = call.open.writable(Access::WRITE_DATA.or(Access::APPEND_DATA))?.clone();
    let longest = ctx.ex.limits().file_size.0;
    if chunks.iter().any(|chunk| chunk.target + u64::from(chunk.length) > longest) {
        return Err(NtStatus::INVALID_PARAMETER.into());
    }
    if write::appends_only(&call.open) {
        // The right to append is none to change what is there.
        let end = call.open.length()?;
        if chunks.iter().any(|chunk| chunk.target < end) {
            return Err(NtStatus::ACCESS_DENIED.into());
        }
    }
    let sources = chunks.iter().map(|chunk| (chunk.source, u64::from(chunk.length)));
    let targets = chunks.iter().map(|chunk| (chunk.target, u64::from(chunk.length)));
    let target = &call.open;
    let free = source
        .file
        .check_ranges(source.opener_id(), sources, false)
        .and_then(|()| target.file.check_ranges(target.opener_id(), targets, true))
        .and_then(|()| touches(target));
    // MS-SMB2 3.3.5.15.6.1.
    if let Err(status) = free {
        let mut output = Vec::new();
        CopyResult::default().encode(&mut output);
        return answer_as(status, call.request, &output, out);
    }
    call.later(chunks.len() * 24, total > LONG, move |open| {
        let mut result = CopyResult::default();
        let mut status = NtStatus::SUCCESS;
        for chunk in &chunks {
            let len = u64::from(chunk.length);
            // A chunk that the source does not hold whole is refused (STATUS_INVALID_VIEW_SIZE).
            if source.facts()?.end_of_file < chunk.source + len {
                status = NtStatus::INVALID_VIEW_SIZE;
                break;
            }
            let (done, ended) =
                space::copy(from.as_fd(), chunk.source, to.as_fd(), chunk.target, len);
            result.total += done as u32;
            if let Err(error) = ended {
                result.chunk_bytes = done as u32;
                status = of_errno(error);
                break;
            }
            if done < len {
                // The source was cut meanwhile.
                result.chunk_bytes = done as u32;
                status = NtStatus::INVALID_VIEW_SIZE;
                break;
            }
            result.chunks += 1;
        }
        sparse::flush_if_write_through(open)?;
        let mut output = Vec::with_capacity(CopyResult::LEN);
        result.encode(&mut output);
        Ok((status, output))
    })
}

//! Offloaded transfer (MS-FSA 2.1.5.10.20, 2.1.5.10.21): a token stands for the data of a range,
//! and whoever brings it back has the data written by the server.

use std::{os::fd::AsFd, time::Duration};

use smb_protocol::{
    NtStatus,
    fscc::{
        FileAttributes,
        offload::{self, OffloadRead, OffloadReadAnswer, OffloadWrite, Token},
    },
    msg::create::Access,
};
use volume::{fs::space, offload_tokens::Owner, status::of_errno};

use super::{Call, Ctx, Handled, LONG, answer, changes, reads, sparse};
use crate::config::Encryption;

/// Unit of offsets and lengths: a logical sector.
const SECTOR: u64 = 512;
/// Most bytes of one token and of one write; a client asks again for the rest.
const MOST: u64 = 256 << 20;

fn in_sectors(values: &[u64]) -> bool {
    values.iter().all(|value| value.is_multiple_of(SECTOR))
}

/// Gives a token for a range of this open.
pub fn read(ctx: &Ctx<'_>, call: Call<'_>, out: &mut Vec<u8>) -> Handled {
    if call.request.input.len() < OffloadRead::LEN as usize
        || call.room() < OffloadReadAnswer::LEN as usize
    {
        return Err(NtStatus::BUFFER_TOO_SMALL.into());
    }
    let wanted = OffloadRead::parse(call.request.input)?;
    let OffloadRead { offset, length, .. } = wanted;
    let end = offset.checked_add(length).filter(|end| *end <= i64::MAX as u64);
    if !in_sectors(&[offset, length]) || wanted.size != OffloadRead::LEN || end.is_none() {
        return Err(NtStatus::INVALID_PARAMETER.into());
    }
    call.open.need(Access::READ_DATA)?;
    if length == 0 {
        let nothing = OffloadReadAnswer { zero_beyond: false, length: 0, token: Token::zero() };
        return answer(call.request, &answered(&nothing).1, out);
    }
    if call.open.directory {
        return Err(NtStatus::OFFLOAD_READ_FILE_NOT_SUPPORTED.into());
    }
    let data = call.open.content(Access::READ_DATA)?.clone();
    reads(&call.open, offset, length)?;
    // Whoever demands it, the share or the server: what must be encrypted here leaves in no other way.
    let all = ctx.ex.server.current().config.encryption == Encryption::Required;
    let sealed = all || ctx.tree()?.share.must_encrypt();
    let owner = Owner { user: ctx.session()?.user.name.clone(), sealed };
    let server = ctx.ex.server.clone();
    let runtime = tokio::runtime::Handle::current();
    let life = Duration::from_millis(wanted.time_to_live.into());
    call.later(OffloadReadAnswer::LEN as usize, false, move |open| {
        let facts = open.facts()?;
        if facts.attributes.has(FileAttributes::SPARSE_FILE) {
            return Err(NtStatus::OFFLOAD_READ_FILE_NOT_SUPPORTED);
        }
        if open.delete_pending() {
            return Err(NtStatus::FILE_DELETED);
        }
        if offset >= facts.end_of_file {
            return Err(NtStatus::END_OF_FILE);
        }
        let length = length.min(MOST);
        let there = facts.end_of_file - offset;
        let (filled, length) = (length.min(there), length.min(there.next_multiple_of(SECTOR)));
        let range = offset..offset + filled;
        let holds = space::data_ranges(data.as_fd(), range.clone(), 1).map_err(of_errno)?;
        let zero_beyond = offset + filled == facts.end_of_file;
        if holds.is_empty() {
            return Ok(answered(&OffloadReadAnswer { zero_beyond, length, token: Token::zero() }));
        }
        let tokens = server.tokens.clone();
        let (token, expires) =
            tokens.issue(open.volume(), data.as_fd(), range, length, owner, life)?;
        // What the token holds is given back when its time is over, whether or not others come.
        runtime.spawn(async move {
            tokio::time::sleep_until(expires.into()).await;
            tokens.sweep(expires);
        });
        Ok(answered(&OffloadReadAnswer { zero_beyond, length, token }))
    })
}

fn answered(answer: &OffloadReadAnswer) -> (NtStatus, Vec<u8>) {
    let mut output = Vec::with_capacity(OffloadReadAnswer::LEN as usize);
    answer.encode(&mut output);
    (NtStatus::SUCCESS, output)
}

/// Writes what a token stands for into a range of this open.
pub fn write(ctx: &Ctx<'_>, call: Call<'_>, out: &mut Vec<u8>) -> Handled {
    if call.request.input.len() < OffloadWrite::LEN as usize
        || call.room() < offload::OFFLOAD_WRITE_ANSWER_LEN as usize
    {
        return Err(NtStatus::BUFFER_TOO_SMALL.into());
    }
    let wanted = OffloadWrite::parse(call.request.input)?;
    let OffloadWrite { offset, length, token_offset, token, .. } = wanted;
    let end = offset.checked_add(length).filter(|end| *end <= i64::MAX as u64);
    if !in_sectors(&[offset, length, token_offset]) || wanted.size != OffloadWrite::LEN {
        return Err(NtStatus::INVALID_PARAMETER.into());
    }
    if end.is_none_or(|end| end > ctx.ex.limits().file_size.0) {
        return Err(NtStatus::INVALID_PARAMETER.into());
    }
    call.open.permit(Access::WRITE_DATA)?;
    if length == 0 {
        let mut output = Vec::new();
        offload::encode_offload_written(0, &mut output);
        return answer(call.request, &output, out);
    }
    if call.open.directory {
        return Err(NtStatus::OFFLOAD_WRITE_FILE_NOT_SUPPORTED.into());
    }
    let data = call.open.writable(Access::WRITE_DATA)?.clone();
    changes(&call.open, offset, length)?;
    let asks = Owner { user: ctx.session()?.user.name.clone(), sealed: ctx.sealed };
    let server = ctx.ex.server.clone();
    let turn = server.tokens.turn(&token);
    call.later_after(turn, OffloadWrite::LEN as usize, length > LONG, move |open| {
        let facts = open.facts()?;
        if facts.attributes.has(FileAttributes::SPARSE_FILE) {
            return Err(NtStatus::OFFLOAD_WRITE_FILE_NOT_SUPPORTED);
        }
        if open.delete_pending() {
            return Err(NtStatus::FILE_DELETED);
        }
        if offset >= facts.end_of_file {
            return Err(NtStatus::END_OF_FILE);
        }
        // The file does not grow: of its last sector only the part that it has is written.
        let room = facts.end_of_file - offset;
        let mut length = length.min(MOST).min(room.next_multiple_of(SECTOR));
        if token.kind() == Token::ZERO_DATA {
            let end = offset + length.min(room);
            space::zero(data.as_fd(), offset..end, false).map_err(of_errno)?;
        } else {
            let held = server.tokens.redeem_any(&token, &asks)?;
            let left = held.length().checked_sub(token_offset).filter(|left| *left > 0);
            length = length.min(left.ok_or(NtStatus::INVALID_PARAMETER)?);
            held.write_to(token_offset, data.as_fd(), offset, length.min(room))?;
        }
        sparse::flush_if_write_through(open)?;
        let mut output = Vec::new();
        offload::encode_offload_written(length, &mut output);
        Ok((NtStatus::SUCCESS, output))
    })
}

//! Holes: SET_SPARSE, SET_ZERO_DATA, QUERY_ALLOCATED_RANGES, QUERY_FILE_REGIONS, FILE_LEVEL_TRIM
//! (MS-FSA 2.1.5.10.38, .39, .22, .24, .6).
//!
//! A file that is not marked sparse is shown as wholly allocated, as on NTFS; its zeros keep
//! their space. A trim gives space back in either case: it says that the content is not needed.

use std::os::fd::AsFd;

use smb_protocol::{
    NtStatus,
    fscc::{
        FileAttributes,
        fsctl::{self, FileRange},
        offload,
    },
    msg::create::Access,
    wire::Put,
};
use volume::{
    fs::{attributes, space},
    open::Open,
    status::of_errno,
};

use super::{Call, DONE, Handled, Output, answer, changes, touches};

/// Unit in which trims are carried out: the size of a page.
const PAGE: u64 = 4096;
/// Most ranges of a trim; MS-FSCC 2.3.73 names no limit.
const MAX_TRIMS: u32 = 2048;

fn is_sparse(open: &Open) -> Result<bool, NtStatus> {
    Ok(open.facts()?.attributes.has(FileAttributes::SPARSE_FILE))
}

/// Makes what a control did durable if the open wants that of every write.
pub fn flush_if_write_through(open: &Open) -> Result<(), NtStatus> {
    match &open.data {
        Some(_) if open.write_through() => {
            open.flush_by(|fd| rustix::fs::fdatasync(fd)).map_err(of_errno)
        }
        _ => Ok(()),
    }
}

/// Marks a file sparse or, with its holes filled, not.
pub fn set_sparse(call: Call<'_>) -> Handled {
    let open = &call.open;
    if open.directory {
        return Err(NtStatus::INVALID_PARAMETER.into());
    }
    // MS-FSA 2.1.5.10.38; Windows takes the right to append, too.
    open.permit(Access::WRITE_DATA.or(Access::WRITE_ATTRIBUTES).or(Access::APPEND_DATA))?;
    // Without input it means "yes" (MS-FSCC 2.3.83).
    let sparse = call.request.input.first().is_none_or(|flag| *flag != 0);
    call.later(0, false, move |open| {
        if is_sparse(open)? == sparse {
            return DONE;
        }
        if !sparse {
            let len = open.facts()?.end_of_file;
            let file =
                volume::fs::descriptor::reopen_for_writing(open.holder()).map_err(of_errno)?;
            space::fill_holes(file.as_fd(), len).map_err(of_errno)?;
        }
        attributes::set_sparse(open.handle(), sparse).map_err(of_errno)?;
        DONE
    })
}

/// Makes a range zero without growing the file.
pub fn zero_data(call: Call<'_>) -> Handled {
    if call.open.directory {
        return Err(NtStatus::INVALID_PARAMETER.into());
    }
    let data = call.open.writable(Access::WRITE_DATA)?.clone();
    let range = fsctl::parse_zero_data(call.request.input)?;
    changes(&call.open, range.start, range.end - range.start)?;
    call.later(0, false, move |open| {
        let facts = open.facts()?;
        let end = range.end.min(facts.end_of_file);
        if range.start < end {
            let sparse = facts.attributes.has(FileAttributes::SPARSE_FILE);
            let fd = data.as_fd();
            space::zero(fd, range.start..end, sparse).map_err(of_errno)?;
            flush_if_write_through(open)?;
        }
        DONE
    })
}

/// Lists the ranges that hold data.
pub fn allocated_ranges(call: Call<'_>, out: &mut Vec<u8>) -> Handled {
    if call.open.directory {
        return Err(NtStatus::INVALID_PARAMETER.into());
    }
    let data = call.open.content(Access::READ_DATA)?.clone();
    let wanted = FileRange::parse_list(call.request.input)?;
    let wanted = *wanted.first().ok_or(NtStatus::INVALID_PARAMETER)?;
    let facts = call.open.facts()?;
    let range = wanted.offset..(wanted.offset + wanted.length).min(facts.end_of_file);
    if range.is_empty() {
        return answer(call.request, &[], out);
    }
    let most = call.room() / FileRange::LEN;
    if most == 0 {
        return Err(NtStatus::BUFFER_TOO_SMALL.into());
    }
    if !facts.attributes.has(FileAttributes::SPARSE_FILE) {
        let mut output = Vec::new();
        FileRange { offset: range.start, length: range.end - range.start }.encode(&mut output);
        return answer(call.request, &output, out);
    }
    let held = most.min(4096) * FileRange::LEN;
    call.later(held, false, move |_| {
        let fd = data.as_fd();
        let found = space::data_ranges(fd, range, most + 1).map_err(of_errno)?;
        let mut output = Vec::new();
        for range in found.iter().take(most) {
            FileRange { offset: range.start, length: range.end - range.start }.encode(&mut output);
        }
        let status = if found.len() > most { NtStatus::BUFFER_OVERFLOW } else { NtStatus::SUCCESS };
        Ok((status, output))
    })
}

/// Lists the ranges up to the valid data length, which here is the end of the file.
pub fn file_regions(call: Call<'_>, out: &mut Vec<u8>) -> Handled {
    /// `FILE_REGION_USAGE_VALID_CACHED_DATA`.
    const CACHED: u32 = 1;
    if call.open.directory {
        return Err(NtStatus::INVALID_PARAMETER.into());
    }
    let (mut offset, mut length, mut usage) = (0, i64::MAX as u64, CACHED);
    if !call.request.input.is_empty() {
        let mut r = smb_protocol::wire::Reader::new(call.request.input);
        let mut read = || Ok((r.u64("Offset")?, r.u64("Length")?, r.u32("Usage")?, r.u32("Rest")?));
        let given: smb_protocol::wire::Result<_> = read();
        (offset, length, usage, _) = given.map_err(|_| NtStatus::BUFFER_TOO_SMALL)?;
    }
    let end = offset.checked_add(length);
    if length == 0 || end.is_none_or(|end| end > i64::MAX as u64) || usage & CACHED == 0 {
        return Err(NtStatus::INVALID_PARAMETER.into());
    }
    if call.room() < 40 {
        return Err(NtStatus::BUFFER_TOO_SMALL.into());
    }
    let size = call.open.facts()?.end_of_file;
    let mut output = Vec::new();
    if offset < size || offset == 0 {
        output.put_u32(0);
        output.put_u32(1);
        output.put_u32(1);
        output.put_u32(0);
        output.put_u64(offset);
        output.put_u64(length.min(size - offset));
        output.put_u32(if size == 0 { 0 } else { usage });
        output.put_u32(0);
    }
    answer(call.request, &output, out)
}

/// Gives the space of ranges back (MS-SMB2 3.3.5.15.14): whole pages of them that lie in the file.
pub fn trim(call: Call<'_>) -> Handled {
    if call.open.directory {
        return Err(NtStatus::INVALID_PARAMETER.into());
    }
    let data = call.open.writable(Access::WRITE_DATA)?.clone();
    let input = call.request.input;
    let count = input.get(4..8).and_then(|count| count.first_chunk());
    if count.is_some_and(|count| u32::from_le_bytes(*count) > MAX_TRIMS) {
        return Err(NtStatus::INVALID_PARAMETER.into());
    }
    let ranges = offload::parse_trim(input)?;
    let room = call.room();
    if (1..4).contains(&room) {
        return Err(NtStatus::INVALID_PARAMETER.into());
    }
    let held = ranges.len() * 16;
    let open = &call.open;
    open.file.check_ranges(open.opener_id(), ranges.iter().copied(), true)?;
    touches(open)?;
    call.later(held, false, move |open| -> Output {
        let size = open.facts()?.end_of_file;
        let mut processed = 0u32;
        for (offset, length) in ranges {
            let end = offset.checked_add(length).ok_or(NtStatus::INTEGER_OVERFLOW)?;
            let start = offset.checked_next_multiple_of(PAGE).ok_or(NtStatus::INTEGER_OVERFLOW)?;
            // The page that the file ends in may go as a whole.
            let end = if end >= size { size } else { end - end % PAGE };
            if start >= end {
                continue;
            }
            let fd = data.as_fd();
            space::zero(fd, start..end, true).map_err(of_errno)?;
            processed += 1;
        }
        flush_if_write_through(open)?;
        let mut output = Vec::new();
        if room > 0 {
            output.put_u32(processed);
        }
        let status = if processed == 0 { NtStatus::NO_RANGES_PROCESSED } else { NtStatus::SUCCESS };
        Ok((status, output))
    })
}

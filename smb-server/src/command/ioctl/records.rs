//! What a file system has noted of a file: where its content lies, and the entry of the change journal
//! that it would have (MS-FSA 2.1.5.10.15, .27).

use std::os::fd::AsFd;

use rustix::{fs::OFlags, io::Errno};
use smb_protocol::{
    NtStatus, name,
    wire::{Put, len32},
};
use volume::{
    fs::{descriptor::reopen, extents::extents, number::number},
    status::of_errno,
};

use super::{Call, Handled, answer};

/// `RETRIEVAL_POINTERS_BUFFER` up to its extents, and one of these (MS-FSCC 2.3.32).
const POINTERS: usize = 16;
const POINTER: usize = 16;

/// Where on the volume a stream lies.
pub fn retrieval_pointers(call: Call<'_>) -> Handled {
    let start = call.request.input.first_chunk::<8>().ok_or(NtStatus::INVALID_PARAMETER)?;
    let start = u64::from_le_bytes(*start);
    let room = call.room();
    if room < POINTERS + POINTER {
        return Err(NtStatus::BUFFER_TOO_SMALL.into());
    }
    if start > i64::MAX as u64 {
        return Err(NtStatus::INVALID_PARAMETER.into());
    }
    if call.open.directory {
        // What a folder holds takes no clusters of its own here.
        return Err(NtStatus::END_OF_FILE.into());
    }
    call.later(room, false, move |open| {
        let file = reopen(open.holder(), OFlags::RDONLY).map_err(of_errno)?;
        let most = (room - POINTERS) / POINTER;
        let found = match extents(file.as_fd(), start, most) {
            Err(Errno::OPNOTSUPP | Errno::NOTTY) => return Err(NtStatus::INVALID_DEVICE_REQUEST),
            other => other.map_err(of_errno)?,
        };
        if found.runs.is_empty() {
            return Err(NtStatus::END_OF_FILE);
        }
        let mut output = Vec::with_capacity(POINTERS + found.runs.len() * POINTER);
        output.put_u32(len32(found.runs.len()));
        output.put_u32(0);
        output.put_u64(found.start);
        for run in &found.runs {
            output.put_u64(run.next);
            // No cluster has this number: it means a hole.
            output.put_u64(run.cluster.unwrap_or(u64::MAX));
        }
        Ok((if found.more { NtStatus::BUFFER_OVERFLOW } else { NtStatus::SUCCESS }, output))
    })
}

/// The newest version of the record that the client knows (MS-FSCC 2.3.61).
fn version(input: &[u8]) -> Result<u16, NtStatus> {
    const KNOWN: std::ops::RangeInclusive<u16> = 2..=3;
    let Some([a, b, c, d]) = input.first_chunk::<4>() else { return Ok(*KNOWN.start()) };
    let (least, most) = (u16::from_le_bytes([*a, *b]), u16::from_le_bytes([*c, *d]));
    if least > most || least > *KNOWN.end() || most < *KNOWN.start() {
        return Err(NtStatus::INVALID_PARAMETER);
    }
    Ok(most.min(*KNOWN.end()))
}

/// What a change journal would say of the file. There is none, so no change is numbered.
pub fn usn_data(call: Call<'_>, out: &mut Vec<u8>) -> Handled {
    let version = version(call.request.input)?;
    // Up to the name, and the structure with its padding (MS-FSCC 2.3.62).
    let (fixed, least) = if version == 3 { (76, 80) } else { (60, 64) };
    if call.room() < least {
        return Err(NtStatus::BUFFER_TOO_SMALL.into());
    }
    let open = &call.open;
    let facts = open.facts()?;
    let path = open.last_path()?;
    let name = name::to_utf16(path.split().map_or(".", |(_, name)| name));
    let folder = open.volume().folder_of(&path)?;
    let above = number(folder.as_fd(), rustix::fs::fstat(&folder)?.st_ino);
    let id = |output: &mut Vec<u8>, id: u64| {
        output.put_u64(id);
        if version == 3 {
            output.put_u64(0);
        }
    };
    let len = (fixed + name.len()).next_multiple_of(8);
    let mut output = Vec::with_capacity(len);
    output.put_u32(len32(len));
    output.put_u16(version);
    output.put_u16(0);
    id(&mut output, facts.file_id);
    id(&mut output, above);
    // Usn, TimeStamp, Reason, SourceInfo, SecurityId.
    output.put_zeros(28);
    output.put_u32(facts.attributes.0);
    output.put_u16(smb_protocol::wire::len16(name.len()));
    output.put_u16(fixed as u16);
    output.put(&name);
    output.put_zeros(len - output.len());
    answer(call.request, &output, out)
}

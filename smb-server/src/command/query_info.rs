//! QUERY_INFO (MS-SMB2 3.3.5.20).

use std::{borrow::Cow, collections::HashMap, sync::atomic::Ordering};

use smb_protocol::{
    Dialect, NtStatus,
    fscc::{
        InfoClass,
        ea::{self, Ea},
        file_info::{self, Basic, NetworkOpen, Standard},
        fs_info::{self, FsAttributes, Space},
    },
    msg::{
        create::Access,
        query_info::{InfoType, Request},
    },
    security::parts,
    wire::Put,
};
use volume::{
    fs::{
        attributes::{self, Facts},
        eas, security,
        short::short_name,
    },
    open::Open,
    work::aside,
};

use super::{Ctx, Failure, Handled, Outcome};

/// Length of the fields in front of the information.
const PREFIX: usize = 8;
/// Bytes of a list of names that is quickly gone through.
const FEW_NAMES: usize = 4096;

/// Carries out a QUERY_INFO request.
pub fn handle(ctx: &mut Ctx<'_>, body: &[u8], out: &mut Vec<u8>) -> Handled {
    let request = Request::parse(body)?;
    let open = ctx.open(request.file_id)?;
    let room = request.output_len as usize;
    if room > ctx.ex.max_message() {
        return Err(NtStatus::INVALID_PARAMETER.into());
    }
    ctx.check_charge(room.max(request.input.len()))?;
    let start = out.len();
    out.put(&[9, 0, 72, 0, 0, 0, 0, 0]);
    let info = start + PREFIX;
    // Fixed part of the structure: less room than that is an error, more than that but less
    // than all gives as much as fits.
    let least = match request.info_type {
        InfoType::FILE if request.class == InfoClass::FULL_EA => {
            let mut find = || attributes_of(&open, &request, out, info);
            return if request.input.len() > FEW_NAMES { aside(find) } else { find() };
        }
        // Older dialects do not know it (MS-SMB2 3.3.5.20.1).
        InfoType::FILE
            if request.class == InfoClass::NORMALIZED_NAME
                && ctx.ex.negotiated.as_ref().is_none_or(|n| n.dialect != Dialect::SMB_3_1_1) =>
        {
            return Err(NtStatus::NOT_SUPPORTED.into());
        }
        InfoType::FILE => file(&open, request.class, out)?,
        // Its length is looked at before it is refused.
        InfoType::FILESYSTEM
            if request.class.0 == fs_info::DRIVER_PATH && room < fs_info::DRIVER_PATH_LEN =>
        {
            return Err(NtStatus::INFO_LENGTH_MISMATCH.into());
        }
        InfoType::FILESYSTEM => file_system(ctx, &open, request.class.0, out)?,
        InfoType::SECURITY => return security(&open, &request, out, info),
        // MS-SMB2 3.3.5.20.4: no file system here has quotas.
        InfoType::QUOTA => return Err(NtStatus::NOT_SUPPORTED.into()),
        _ => return Err(NtStatus::INVALID_PARAMETER.into()),
    };
    if room < least {
        return Err(NtStatus::INFO_LENGTH_MISMATCH.into());
    }
    let mut status = NtStatus::SUCCESS;
    if out.len() - info > room {
        out.truncate(info + room);
        status = NtStatus::BUFFER_OVERFLOW;
    }
    let len = (out.len() - info) as u32;
    out.patch(info - 4, &len.to_le_bytes());
    Ok(Outcome::Done(status))
}

fn standard(open: &Open, facts: &Facts) -> Standard {
    let links = facts.links.saturating_sub(open.base_file().names_going());
    Standard {
        allocation_size: facts.allocation_size,
        end_of_file: facts.end_of_file,
        links,
        // MS-FSA 2.1.5.12.27
        delete_pending: open.delete_pending() || links == 0,
        directory: facts.directory,
    }
}

/// All streams of the file, the unnamed one first.
fn streams(open: &Open, out: &mut Vec<u8>) -> Result<(), Failure> {
    let base = attributes::facts(open.handle())?;
    let mut list = Vec::new();
    if !base.directory {
        list.push(("::$DATA".to_owned(), base.end_of_file, base.allocation_size));
    }
    let named = open.volume().streams().list(open.handle())?;
    list.extend(named.into_iter().map(|s| (format!(":{}:$DATA", s.name), s.size, s.allocation)));
    file_info::encode_streams(list.iter().map(|(name, a, b)| (name.as_str(), *a, *b)), out);
    Ok(())
}

fn mode(open: &Open) -> u32 {
    open.mode.load(Ordering::Relaxed)
}

/// Appends information about a file; returns the length of its fixed part.
fn file(open: &Open, class: InfoClass, out: &mut Vec<u8>) -> Result<usize, Failure> {
    let facts = open.facts()?;
    let shown = Access::READ_ATTRIBUTES;
    let position = || open.position.load(Ordering::Relaxed);
    Ok(match class {
        InfoClass::BASIC => {
            open.need(shown)?;
            Basic { times: facts.times, attributes: facts.attributes }.encode(out);
            40
        }
        InfoClass::STANDARD => {
            standard(open, &facts).encode(out);
            24
        }
        InfoClass::INTERNAL => {
            out.put_u64(facts.file_id);
            8
        }
        InfoClass::EA => {
            out.put_u32(eas::size(open.handle()));
            4
        }
        InfoClass::ACCESS => {
            out.put_u32(open.access.0);
            4
        }
        InfoClass::POSITION => {
            out.put_u64(position());
            8
        }
        InfoClass::MODE => {
            out.put_u32(mode(open));
            4
        }
        InfoClass::ALIGNMENT => {
            out.put_u32(0);
            4
        }
        InfoClass::ALL => {
            open.need(shown)?;
            Basic { times: facts.times, attributes: facts.attributes }.encode(out);
            standard(open, &facts).encode(out);
            out.put_u64(facts.file_id);
            out.put_u32(eas::size(open.handle()));
            out.put_u32(open.access.0);
            out.put_u64(position());
            out.put_u32(mode(open));
            out.put_u32(0);
            file_info::encode_name(&open.full_name()?, out);
            104
        }
        InfoClass::NETWORK_OPEN => {
            open.need(shown)?;
            NetworkOpen {
                times: facts.times,
                allocation_size: facts.allocation_size,
                end_of_file: facts.end_of_file,
                attributes: facts.attributes,
            }
            .encode(out);
            56
        }
        InfoClass::ATTRIBUTE_TAG => {
            open.need(shown)?;
            out.put_u32(facts.attributes.0);
            out.put_u32(facts.reparse_tag);
            8
        }
        InfoClass::STREAM => {
            streams(open, out)?;
            32
        }
        InfoClass::COMPRESSION => {
            out.put_u64(facts.end_of_file);
            out.put_u64(0);
            16
        }
        InfoClass::NORMALIZED_NAME => {
            let mut name = open.last_path()?.to_windows();
            if let Some(stream) = open.stream_name() {
                name = format!("{name}:{}", stream.as_str());
            }
            file_info::encode_name(name.trim_start_matches('\\'), out);
            8
        }
        InfoClass::ID => {
            out.put_u64(open.volume().serial().into());
            out.put_u64(facts.file_id);
            out.put_u64(0);
            24
        }
        InfoClass::ALTERNATE_NAME => {
            let path = open.last_path()?;
            let name = path.split().map(|(_, name)| name).ok_or(NtStatus::OBJECT_NAME_NOT_FOUND)?;
            file_info::encode_name(&short_name(name).unwrap_or_else(|| name.to_owned()), out);
            8
        }
        _ => return Err(not_served(class).into()),
    })
}

/// Why a class is not answered (MS-SMB2 3.3.5.20.1).
fn not_served(class: InfoClass) -> NtStatus {
    match class {
        // MS-FSA 2.1.5.12.24: who has quotas is asked in another way.
        InfoClass::QUOTA => NtStatus::INVALID_PARAMETER,
        // Those of the other side of the wire.
        InfoClass::NAME
        | InfoClass::MAILSLOT_QUERY
        | InfoClass::OBJECT_ID
        | InfoClass::REPARSE_POINT
        | InfoClass::SFIO_RESERVE
        | InfoClass::SFIO_VOLUME
        | InfoClass::HARD_LINK
        | InfoClass::STANDARD_LINK => NtStatus::NOT_SUPPORTED,
        _ => NtStatus::INVALID_INFO_CLASS,
    }
}

/// `FileFullEaInformation` (MS-FSA 2.1.5.12.12, MS-SMB2 3.3.5.20.1): the attributes that are asked
/// for by name, those from an index on, or the next ones.
fn attributes_of(open: &Open, request: &Request<'_>, out: &mut Vec<u8>, info: usize) -> Handled {
    const RESTART_SCAN: u32 = 1;
    const RETURN_SINGLE_ENTRY: u32 = 2;
    const INDEX_SPECIFIED: u32 = 4;
    open.need(Access::READ_EA)?;
    let room = request.output_len as usize;
    let all = eas::list(open.handle())?;
    let single = request.flags & RETURN_SINGLE_ENTRY != 0;
    let (first, last, count);
    if request.input.is_empty() {
        if all.is_empty() {
            return Err(NtStatus::NO_EAS_ON_FILE.into());
        }
        first = if request.flags & INDEX_SPECIFIED != 0 {
            let index = (request.additional as usize).checked_sub(1);
            index.filter(|at| *at < all.len()).ok_or(NtStatus::NONEXISTENT_EA_ENTRY)?
        } else if request.flags & RESTART_SCAN != 0 {
            0
        } else {
            open.next_ea.load(Ordering::Relaxed)
        };
        if first >= all.len() {
            return Err(NtStatus::NO_MORE_EAS.into());
        }
        last = if single { first + 1 } else { all.len() };
        count = ea::encode(all[first..last].iter(), room, out);
    } else {
        first = 0;
        let names = eas::parse_names(request.input)?;
        let mut known = HashMap::new();
        for ea in &all {
            known.entry(ea.name.to_ascii_uppercase()).or_insert(ea);
        }
        last = if single { 1 } else { names.len() };
        // One that is not there is answered without value.
        let find = |name: &String| match known.get(name) {
            Some(ea) => Cow::Borrowed(*ea),
            None => Cow::Owned(Ea { name: name.clone(), ..Ea::default() }),
        };
        count = ea::encode(names[..last].iter().map(find), room, out);
    }
    if count == 0 {
        return Err(NtStatus::BUFFER_TOO_SMALL.into());
    }
    open.next_ea.store(first + count, Ordering::Relaxed);
    let len = (out.len() - info) as u32;
    out.patch(info - 4, &len.to_le_bytes());
    Ok(Outcome::Done(match first + count < last {
        true => NtStatus::BUFFER_OVERFLOW,
        false => NtStatus::SUCCESS,
    }))
}

/// Appends information about the file system (MS-SMB2 3.3.5.20.2); returns the length of its fixed part.
fn file_system(ctx: &Ctx<'_>, open: &Open, class: u8, out: &mut Vec<u8>) -> Result<usize, Failure> {
    let stat = rustix::fs::fstatvfs(open.handle())?;
    let sector = 512u64;
    let unit = stat.f_frsize.max(sector);
    let space = Space {
        total: stat.f_blocks,
        caller_free: stat.f_bavail,
        free: stat.f_bfree,
        sectors_per_unit: u32::try_from(unit / sector).unwrap_or(8),
        bytes_per_sector: 512,
    };
    let root = rustix::fs::fstat(open.volume().root())?;
    Ok(match class {
        fs_info::VOLUME => {
            let label = ctx.tree.as_ref().map_or("", |tree| &tree.name);
            let created = smb_protocol::fscc::filetime_from_unix(root.st_ctime, 0);
            fs_info::encode_volume(created, open.volume().serial(), label, out);
            24
        }
        fs_info::SIZE => {
            space.encode_size(out);
            24
        }
        fs_info::FULL_SIZE => {
            space.encode_full_size(out);
            32
        }
        fs_info::DEVICE => {
            fs_info::encode_device(out);
            8
        }
        fs_info::ATTRIBUTE => {
            let mut attributes = FsAttributes::CASE_SENSITIVE_SEARCH
                .or(FsAttributes::CASE_PRESERVED_NAMES)
                .or(FsAttributes::UNICODE_ON_DISK)
                .or(FsAttributes::SPARSE_FILES)
                .or(FsAttributes::NAMED_STREAMS)
                .or(FsAttributes::PERSISTENT_ACLS)
                .or(FsAttributes::HARD_LINKS)
                .or(FsAttributes::OBJECT_IDS)
                .or(FsAttributes::REPARSE_POINTS)
                .or(FsAttributes::EXTENDED_ATTRIBUTES);
            // Without it a VM host takes no disk that is marked sparse (MS-HVRS, C0008, C0009).
            if ctx.tree.as_ref().is_some_and(|tree| tree.share.sparse == crate::config::Sparse::Vm)
            {
                attributes |= FsAttributes::SPARSE_VDL;
            }
            if open.volume().shares_blocks() {
                attributes |= FsAttributes::BLOCK_REFCOUNTING;
            }
            fs_info::encode_attribute(attributes, 255, "NTFS", out);
            16
        }
        fs_info::OBJECT_ID => {
            out.put(&open.volume().identity());
            out.put_zeros(48);
            64
        }
        fs_info::SECTOR_SIZE => {
            fs_info::encode_sector_size(512, 4096, out);
            28
        }
        fs_info::CONTROL => {
            fs_info::encode_control(out);
            fs_info::CONTROL_LEN
        }
        fs_info::LABEL | fs_info::DRIVER_PATH | fs_info::VOLUME_FLAGS => {
            return Err(NtStatus::NOT_SUPPORTED.into());
        }
        _ => return Err(NtStatus::INVALID_INFO_CLASS.into()),
    })
}

/// The security descriptor, as far as it was asked for (MS-SMB2 3.3.5.20.3, MS-FSA 2.1.5.14).
fn security(open: &Open, request: &Request<'_>, out: &mut Vec<u8>, info: usize) -> Handled {
    if request.additional & (parts::OWNER | parts::GROUP | parts::DACL | parts::LABEL) != 0 {
        open.need(Access::READ_CONTROL)?;
    }
    if request.additional & parts::SACL != 0 {
        open.need(Access::ACCESS_SYSTEM_SECURITY)?;
    }
    let directory = attributes::facts(open.handle())?.directory;
    let descriptor = security::of(open.handle(), directory)?;
    descriptor.encode(request.additional, out);
    let len = out.len() - info;
    if len > request.output_len as usize {
        return Err(Failure::Data(NtStatus::BUFFER_TOO_SMALL, (len as u32).to_le_bytes().to_vec()));
    }
    out.patch(info - 4, &(len as u32).to_le_bytes());
    Ok(Outcome::SUCCESS)
}

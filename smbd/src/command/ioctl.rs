//! IOCTL (MS-SMB2 3.3.5.15).

use block_io::File;
use smb_protocol::{
    FileId, NtStatus,
    fscc::{
        FsctlCode,
        fsctl::{self, FileRange, ValidateNegotiate, ValidateNegotiateResponse},
    },
    msg::{
        create::Access,
        ioctl::{IS_FSCTL, Request, Response},
    },
};

use super::{Ctx, Fail, Handled, Later};
use crate::{
    interfaces,
    status::{of_errno, of_storage},
    volume::{attributes, open::Open},
};

/// Handles an IOCTL.
pub fn handle(ctx: &mut Ctx<'_>, body: &[u8], out: &mut Vec<u8>) -> Handled {
    let request = Request::parse(body)?;
    if request.flags != IS_FSCTL {
        return Err(NtStatus::NOT_SUPPORTED.into());
    }
    let most = request.max_output as usize;
    if most > ctx.ex.max_message() {
        return Err(NtStatus::INVALID_PARAMETER.into());
    }
    ctx.check_charge(most.max(request.input.len()))?;
    match request.code {
        FsctlCode::VALIDATE_NEGOTIATE_INFO => validate(ctx, &request, out),
        FsctlCode::QUERY_NETWORK_INTERFACE_INFO => interfaces(ctx, &request, out),
        FsctlCode::QUERY_ALLOCATED_RANGES => allocated_ranges(ctx, &request),
        FsctlCode::SET_ZERO_DATA => zero_data(ctx, &request),
        FsctlCode::SET_SPARSE => {
            let open = ctx.open(request.file_id)?;
            if open.directory {
                return Err(NtStatus::INVALID_PARAMETER.into());
            }
            open.need(Access::WRITE_DATA.or(Access::WRITE_ATTRIBUTES).or(Access::APPEND_DATA))?;
            // Without input it means "yes" (MS-FSCC 2.3.69).
            let sparse = request.input.first().is_none_or(|flag| *flag != 0);
            attributes::set_sparse(open.handle(), sparse)?;
            answer(&request, &[], out)
        }
        FsctlCode::CREATE_OR_GET_OBJECT_ID | FsctlCode::GET_OBJECT_ID => {
            let open = ctx.open(request.file_id)?;
            answer(&request, &object_id(&open)?, out)
        }
        // No DFS here (MS-SMB2 3.3.5.15.2).
        FsctlCode::DFS_GET_REFERRALS | FsctlCode::DFS_GET_REFERRALS_EX => {
            Err(NtStatus::NOT_FOUND.into())
        }
        _ => Err(NtStatus::INVALID_DEVICE_REQUEST.into()),
    }
}

fn answer(request: &Request<'_>, output: &[u8], out: &mut Vec<u8>) -> Handled {
    if output.len() > request.max_output as usize {
        return Err(NtStatus::BUFFER_TOO_SMALL.into());
    }
    Response { code: request.code, file_id: request.file_id, output }.encode(out);
    Ok(NtStatus::SUCCESS)
}

/// Whether the client saw the negotiation that we saw (3.3.5.15.12); if not, someone is between.
fn validate(ctx: &Ctx<'_>, request: &Request<'_>, out: &mut Vec<u8>) -> Handled {
    const TAMPERED: Fail = Fail::Drop("the negotiation was tampered with");
    let Some(negotiated) = &ctx.ex.negotiated else { return Err(TAMPERED) };
    let claim = ValidateNegotiate::parse(request.input)?;
    let dialects: Vec<u16> = negotiated.client_dialects.iter().map(|d| d.0).collect();
    if claim.capabilities != negotiated.client_capabilities
        || claim.guid != negotiated.client_guid
        || claim.security_mode != negotiated.client_security_mode
        || claim.dialects != dialects
    {
        return Err(TAMPERED);
    }
    let mut output = Vec::new();
    ValidateNegotiateResponse {
        capabilities: negotiated.capabilities.0,
        guid: ctx.ex.server.guid,
        security_mode: negotiated.security_mode.0,
        dialect: negotiated.dialect.0,
    }
    .encode(&mut output);
    answer(request, &output, out)
}

/// The addresses that the client may use (3.3.5.15.11).
fn interfaces(ctx: &Ctx<'_>, request: &Request<'_>, out: &mut Vec<u8>) -> Handled {
    if request.file_id != FileId::RELATED {
        return Err(NtStatus::INVALID_PARAMETER.into());
    }
    let mut output = Vec::new();
    let listen = &ctx.ex.server.current().config.listen;
    fsctl::encode_interfaces(&interfaces::list(listen, ctx.ex.local), &mut output);
    answer(request, &output, out)
}

/// The object id of a file (MS-FSCC 2.1.3): device and inode, which name it as long as it lives.
fn object_id(open: &Open) -> Result<[u8; 64], Fail> {
    let stat = rustix::fs::fstat(open.handle())?;
    let mut id = [0; 64];
    id[..8].copy_from_slice(&stat.st_ino.to_le_bytes());
    id[8..16].copy_from_slice(&stat.st_dev.to_le_bytes());
    // Birth ids: volume, object, domain.
    id[24..32].copy_from_slice(&stat.st_dev.to_le_bytes());
    id[32..40].copy_from_slice(&stat.st_ino.to_le_bytes());
    Ok(id)
}

fn allocated_ranges(ctx: &mut Ctx<'_>, request: &Request<'_>) -> Handled {
    let open = ctx.open(request.file_id)?;
    let data = open.content(Access::READ_DATA)?.clone();
    let wanted = FileRange::parse_list(request.input)?;
    let wanted = *wanted.first().ok_or(NtStatus::INVALID_PARAMETER)?;
    let (code, file_id) = (request.code, request.file_id);
    let most = request.max_output as usize / 16;
    Err(Fail::Later(Later {
        future: Box::pin(async move {
            let _open = open;
            let range = wanted.offset..wanted.offset + wanted.length;
            let found = data.allocated_ranges(range).await.map_err(|e| of_storage(&e))?;
            if found.len() > most {
                return Err(NtStatus::BUFFER_TOO_SMALL);
            }
            let mut output = Vec::new();
            for range in found {
                FileRange { offset: range.start, length: range.end - range.start }
                    .encode(&mut output);
            }
            let mut body = Vec::new();
            Response { code, file_id, output: &output }.encode(&mut body);
            Ok(body)
        }),
        cancel: None,
        interim: false,
        bytes: request.max_output as usize,
        io: true,
    }))
}

/// Makes a range zero without growing the file (MS-FSCC 2.3.71).
fn zero_data(ctx: &mut Ctx<'_>, request: &Request<'_>) -> Handled {
    let open = ctx.open(request.file_id)?;
    let data = open.content(Access::WRITE_DATA)?.clone();
    let range = fsctl::parse_zero_data(request.input)?;
    let (code, file_id) = (request.code, request.file_id);
    Err(Fail::Later(Later {
        future: Box::pin(async move {
            let end = data.len().await.map_err(|e| of_storage(&e))?.min(range.end);
            if range.start < end {
                match data.punch_hole(range.start..end).await {
                    Err(block_io::Error::Unsupported(_)) => {
                        write_zeros(&*data, range.start, end).await?;
                    }
                    other => other.map_err(|e| of_storage(&e))?,
                }
                if open.write_through() {
                    rustix::fs::fdatasync(&*data).map_err(of_errno)?;
                }
            }
            let mut body = Vec::new();
            Response { code, file_id, output: &[] }.encode(&mut body);
            Ok(body)
        }),
        cancel: None,
        interim: false,
        bytes: 0,
        io: true,
    }))
}

async fn write_zeros(data: &dyn File, mut at: u64, end: u64) -> Result<(), NtStatus> {
    let zeros = vec![0; 1 << 20];
    while at < end {
        let len = (end - at).min(zeros.len() as u64);
        data.write_at(at, &zeros[..len as usize]).await.map_err(|e| of_storage(&e))?;
        at += len;
    }
    Ok(())
}

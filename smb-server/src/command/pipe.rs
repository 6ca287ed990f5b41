//! Requests on IPC$, a tree without a folder, whose files are named pipes (MS-SMB2 3.3.5.9).

use std::sync::Arc;

use smb_protocol::{
    Command, FileId, NtStatus,
    fscc::{FileAttributes, FsctlCode, InfoClass},
    msg::{
        close, create, flush, ioctl, query_info, rdma::CHANNEL_NONE, read, set_info, simple::Empty,
        write,
    },
    name,
    wire::{Put, Reader, len32},
};

use tokio::sync::oneshot;

use super::{Ctx, Deferred, Handled, Outcome};
use crate::rpc::pipe::{PIPE_BYTES, Pipe, service};

/// What a pipe claims to hold in either direction.
const QUOTA: u32 = 4096;

/// `FILE_PIPE_COMPLETE_OPERATION`: nothing waits.
const COMPLETES_AT_ONCE: u32 = 1;

/// Reads when there is something, until the pipe is closed (MS-SMB2 3.3.5.12).
fn wait(pipe: &Arc<Pipe>, most: usize) -> Deferred {
    let (cancel, cancelled) = oneshot::channel::<()>();
    let (pipe, changed) = (Arc::downgrade(pipe), pipe.changed());
    Deferred::event(0, cancel, async move {
        tokio::pin!(cancelled);
        loop {
            let change = changed.notified();
            tokio::pin!(change);
            change.as_mut().enable();
            let read = pipe.upgrade().ok_or(NtStatus::PIPE_BROKEN)?.read(most);
            if read != Err(NtStatus::PIPE_EMPTY) {
                let (data, status) = read?;
                let mut body = Vec::with_capacity(16 + data.len());
                read::Response { data: &data, remaining: 0 }.encode(&mut body);
                return Ok((status, body));
            }
            tokio::select! {
                biased;
                Ok(()) = &mut cancelled => return Err(NtStatus::CANCELLED),
                () = change => {}
            }
        }
    })
}

/// What goes through a pipe is in messages, never in the client's memory.
fn in_message(ctx: &Ctx<'_>, channel: u32) -> Result<(), NtStatus> {
    match channel == CHANNEL_NONE || !ctx.dialect().is_smb3() {
        true => Ok(()),
        false => Err(NtStatus::INVALID_PARAMETER),
    }
}

/// Carries out a request on a tree of pipes.
pub fn handle(ctx: &mut Ctx<'_>, body: &[u8], out: &mut Vec<u8>) -> Handled {
    match ctx.header.command {
        Command::CREATE => create_pipe(ctx, body, out),
        Command::CLOSE => {
            let request = close::Request::parse(body)?;
            let id = ctx.resolve(request.file_id)?;
            ctx.session()?.close_pipe(ctx.tree()?.id, id)?;
            close::Response::default().encode(out);
            Ok(Outcome::SUCCESS)
        }
        Command::READ => {
            let request = read::Request::parse(body)?;
            let pipe = pipe(ctx, request.file_id)?;
            in_message(ctx, request.channel)?;
            let most = (request.length as usize).min(ctx.ex.max_message());
            ctx.check_charge(most)?;
            match pipe.read(most) {
                Err(NtStatus::PIPE_EMPTY) if pipe.blocks() => Ok(wait(&pipe, most).into()),
                ended => {
                    let (data, status) = ended?;
                    read::Response { data: &data, remaining: 0 }.encode(out);
                    Ok(Outcome::Done(status))
                }
            }
        }
        Command::WRITE => {
            let request = write::Request::parse(body)?;
            let pipe = pipe(ctx, request.file_id)?;
            in_message(ctx, request.channel)?;
            ctx.check_charge(request.data.len())?;
            pipe.write(&ctx.ex.server, ctx.session()?, request.data)?;
            write::Response { count: request.length }.encode(out);
            Ok(Outcome::SUCCESS)
        }
        Command::FLUSH => {
            let request = flush::Request::parse(body)?;
            pipe(ctx, request.file_id)?;
            Empty.encode(out);
            Ok(Outcome::SUCCESS)
        }
        Command::IOCTL => control(ctx, body, out),
        Command::QUERY_INFO => query(ctx, body, out),
        Command::SET_INFO => {
            let request = set_info::Request::parse(body)?;
            let pipe = pipe(ctx, request.file_id)?;
            if request.info_type != query_info::InfoType::FILE || request.class != InfoClass::PIPE {
                return Err(NtStatus::NOT_SUPPORTED.into());
            }
            // Read mode, which is that of messages, and completion mode (MS-FSCC 2.4.37).
            let mut r = Reader::new(request.input);
            let short = |_| NtStatus::INFO_LENGTH_MISMATCH;
            r.skip(4, "pipe.ReadMode").map_err(short)?;
            pipe.set_blocks(r.u32("pipe.CompletionMode").map_err(short)? != COMPLETES_AT_ONCE);
            out.put_u16(2);
            Ok(Outcome::SUCCESS)
        }
        _ => Err(NtStatus::INVALID_DEVICE_REQUEST.into()),
    }
}

/// The pipe that a request means.
fn pipe(ctx: &mut Ctx<'_>, id: FileId) -> Result<Arc<Pipe>, NtStatus> {
    let id = ctx.resolve(id)?;
    ctx.session()?.pipe(ctx.tree()?.id, id)
}

fn create_pipe(ctx: &mut Ctx<'_>, body: &[u8], out: &mut Vec<u8>) -> Handled {
    let request = create::Request::parse(body)?;
    if request.impersonation > 3 {
        return Err(NtStatus::BAD_IMPERSONATION_LEVEL.into());
    }
    let number = ctx.ex.server.ids.open_file();
    let id = FileId { persistent: number, volatile: number };
    let held = ctx.budget()?.take(PIPE_BYTES).ok_or(NtStatus::INSUFFICIENT_RESOURCES)?;
    let pipe = Pipe::open(&request.name, id, held).ok_or(NtStatus::OBJECT_NAME_NOT_FOUND)?;
    ctx.session()?.add_pipe(ctx.tree()?.id, Arc::new(pipe))?;
    create::Response {
        action: create::CreateAction::OPENED,
        allocation_size: QUOTA.into(),
        attributes: FileAttributes::NORMAL,
        file_id: id,
        ..Default::default()
    }
    .encode(out);
    ctx.file = Some(id);
    Ok(Outcome::SUCCESS)
}

/// FSCTL_PIPE_TRANSCEIVE, _PEEK and _WAIT (MS-SMB2 3.3.5.15.3, 3.3.5.15.4, 3.3.5.15.10); what is not about pipes
/// is answered as on any tree.
fn control(ctx: &mut Ctx<'_>, body: &[u8], out: &mut Vec<u8>) -> Handled {
    let request = ioctl::Request::parse(body)?;
    let (code, file_id) = (request.code, request.file_id);
    let most = request.max_output as usize;
    if !matches!(code, FsctlCode::PIPE_TRANSCEIVE | FsctlCode::PIPE_PEEK | FsctlCode::PIPE_WAIT) {
        return super::ioctl::handle(ctx, body, out);
    }
    if request.flags != ioctl::IS_FSCTL {
        return Err(NtStatus::NOT_SUPPORTED.into());
    }
    if most > ctx.ex.max_message() {
        return Err(NtStatus::INVALID_PARAMETER.into());
    }
    ctx.check_charge(most.max(request.input.len()))?;
    match code {
        FsctlCode::PIPE_TRANSCEIVE => {
            let pipe = pipe(ctx, file_id)?;
            if pipe.available().0 > 0 {
                // A result must be read before the next question is put in one step.
                return Err(NtStatus::PIPE_BUSY.into());
            }
            pipe.write(&ctx.ex.server, ctx.session()?, request.input)?;
            let (output, status) = pipe.read(most)?;
            ioctl::Response { code, file_id, output: &output }.encode(out);
            Ok(Outcome::Done(status))
        }
        FsctlCode::PIPE_PEEK => {
            let pipe = pipe(ctx, file_id)?;
            let (all, first) = pipe.available();
            const CONNECTED: u32 = 3;
            const CLOSING: u32 = 4;
            let mut output = Vec::new();
            output.put_u32(if pipe.is_broken() { CLOSING } else { CONNECTED });
            output.put_u32(len32(all));
            output.put_u32(u32::from(all > 0));
            output.put_u32(len32(first));
            if most < output.len() {
                return Err(NtStatus::INFO_LENGTH_MISMATCH.into());
            }
            ioctl::Response { code, file_id, output: &output }.encode(out);
            Ok(Outcome::SUCCESS)
        }
        _ => {
            // MS-FSCC 2.3.49: a time, then the length of the name, then the name.
            let mut r = Reader::new(request.input);
            r.skip(8, "pipe_wait.Timeout")?;
            let len = r.u32("pipe_wait.NameLength")? as usize;
            r.skip(2, "pipe_wait.TimeoutSpecified")?;
            let wanted = name::utf16(r.bytes(len, "pipe_wait.Name")?, "pipe_wait.Name")?;
            service(&wanted).ok_or(NtStatus::OBJECT_NAME_NOT_FOUND)?;
            ioctl::Response { code, file_id, output: &[] }.encode(out);
            Ok(Outcome::SUCCESS)
        }
    }
}

/// What file information a pipe has.
fn query(ctx: &mut Ctx<'_>, body: &[u8], out: &mut Vec<u8>) -> Handled {
    let request = query_info::Request::parse(body)?;
    let pipe = pipe(ctx, request.file_id)?;
    if request.info_type != query_info::InfoType::FILE {
        return Err(NtStatus::NOT_SUPPORTED.into());
    }
    let mut info = Vec::new();
    match request.class {
        InfoClass::STANDARD => {
            info.put_u64(QUOTA.into());
            info.put_u64(0);
            info.put_u32(1);
            info.put(&[1, 0, 0, 0]);
        }
        // MS-FSCC 2.4.37: messages in read mode.
        InfoClass::PIPE => {
            info.put_u32(1);
            info.put_u32(if pipe.blocks() { 0 } else { COMPLETES_AT_ONCE });
        }
        // MS-FSCC 2.4.38.
        InfoClass::PIPE_LOCAL => {
            const MESSAGE_TYPE: u32 = 1;
            const DUPLEX: u32 = 2;
            const UNLIMITED: u32 = u32::MAX;
            const CONNECTED: u32 = 3;
            const CLIENT_END: u32 = 0;
            let (available, _) = pipe.available();
            for value in [
                MESSAGE_TYPE,
                DUPLEX,
                UNLIMITED,
                1,
                QUOTA,
                len32(available),
                QUOTA,
                QUOTA,
                CONNECTED,
                CLIENT_END,
            ] {
                info.put_u32(value);
            }
        }
        _ => return Err(NtStatus::NOT_SUPPORTED.into()),
    }
    if (request.output_len as usize) < info.len() {
        return Err(NtStatus::INFO_LENGTH_MISMATCH.into());
    }
    // StructureSize, where the information stands, its length.
    out.put_u16(9);
    out.put_u16(72);
    out.put_u32(len32(info.len()));
    out.put(&info);
    Ok(Outcome::SUCCESS)
}

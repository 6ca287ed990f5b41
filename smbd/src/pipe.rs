//! Named pipes on IPC$: what a tree without a folder serves (MS-SMB2 3.3.5.9, MS-RPCE 2.1.1.2).
//!
//! ```text
//!  CREATE "srvsvc" ─► Pipe { Association }      WRITE, READ or both at once (PIPE_TRANSCEIVE)
//!                                │ calls
//!                                ▼
//!              srvsvc   wkssvc   lsarpc   samr   (one module each)
//! ```
//!
//! A call is answered while it is written, so nothing waits here. What a client leaves unread is
//! bounded, and so are the pipes of a session and the handles of a pipe.

mod handles;
mod lsarpc;
mod samr;
mod srvsvc;
mod wkssvc;

use std::sync::{Arc, Mutex, PoisonError};

use dce_rpc::{Association, Call, FaultStatus, SyntaxId, ndr};
use smb_protocol::{
    Command, FileId, NtStatus, WireError,
    fscc::{FileAttributes, FsctlCode, InfoClass},
    msg::{
        close, create, flush, ioctl, query_info, read, set_info, simple::Empty, write as write_msg,
    },
    name,
    wire::{Put, Reader, len32},
};

use self::handles::Handles;
use crate::{
    Server,
    accounts::Accounts,
    budget::Held,
    command::{Ctx, Handled, ioctl as ioctl_command},
    session::Session,
    work::aside,
};

/// Pipes of one session at a time.
pub const PIPES_PER_SESSION: usize = 128;
/// What a pipe claims to hold in either direction.
const QUOTA: u32 = 4096;

/// The interface behind each pipe.
const SERVICES: [(&str, &[SyntaxId]); 5] = [
    ("SRVSVC", &[srvsvc::INTERFACE]),
    ("WKSSVC", &[wkssvc::INTERFACE]),
    ("LSARPC", &[lsarpc::INTERFACE, samr::INTERFACE]),
    ("LSASS", &[lsarpc::INTERFACE, samr::INTERFACE]),
    ("SAMR", &[samr::INTERFACE, lsarpc::INTERFACE]),
];

/// An open pipe.
#[derive(Debug)]
pub struct Pipe {
    /// How the client names it.
    pub id: FileId,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    association: Association,
    /// What of the user's budget it takes.
    held: Held,
    handles: Handles,
    broken: bool,
}

/// Who calls, and what it may see.
struct Caller<'a> {
    server: &'a Server,
    session: &'a Session,
    accounts: Accounts,
}

impl Caller<'_> {
    fn administers(&self) -> bool {
        self.accounts.administers(&self.session.user)
    }
}

/// What a service does with a call.
type Served = Result<Vec<u8>, FaultStatus>;

/// A stub that is none.
fn bad_stub(error: WireError) -> FaultStatus {
    tracing::debug!(%error, "malformed RPC parameters");
    FaultStatus::BAD_STUB
}

impl Pipe {
    /// The pipe of a name, if there is one.
    fn open(text: &str, id: FileId, held: Held) -> Option<Self> {
        let (name, interfaces) = service(text)?;
        let address = format!("\\PIPE\\{}", name.to_ascii_lowercase());
        let association = Association::new(interfaces, address);
        let state = State { association, held, handles: Handles::default(), broken: false };
        Some(Self { id, state: Mutex::new(state) })
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, server: &Server, session: &Session, data: &[u8]) -> Result<(), NtStatus> {
        let caller = Caller { server, session, accounts: Accounts::of(server) };
        let mut state = self.state();
        let State { association, held, handles, broken } = &mut *state;
        if *broken {
            return Err(NtStatus::PIPE_DISCONNECTED);
        }
        let result = aside(|| association.write(data, |call| serve(&caller, handles, call)));
        if let Err(error) = result {
            tracing::debug!(%error, "a pipe is given up");
            *broken = true;
            return Err(NtStatus::PIPE_DISCONNECTED);
        }
        if !held.resize(association.held()) {
            tracing::debug!("a pipe is given up: its user has too much held");
            *broken = true;
            association.clear();
            return Err(NtStatus::INSUFFICIENT_RESOURCES);
        }
        Ok(())
    }

    /// Takes up to `most` bytes of what stands to be read.
    fn read(&self, most: usize) -> Result<(Vec<u8>, NtStatus), NtStatus> {
        let mut state = self.state();
        let read = state.association.read(most);
        let State { association, held, .. } = &mut *state;
        held.resize(association.held());
        match read {
            Some((data, 0)) => Ok((data, NtStatus::SUCCESS)),
            Some((data, _)) => Ok((data, NtStatus::BUFFER_OVERFLOW)),
            None if state.broken => Err(NtStatus::PIPE_DISCONNECTED),
            None => Err(NtStatus::PIPE_EMPTY),
        }
    }
}

/// The service of a pipe name.
fn service(text: &str) -> Option<(&'static str, &'static [SyntaxId])> {
    let text = text.strip_prefix('\\').unwrap_or(text);
    SERVICES.into_iter().find(|(known, _)| name::same_name(known, text))
}

fn serve(caller: &Caller<'_>, handles: &mut Handles, call: &Call) -> Served {
    let parameters = ndr::Reader::new(&call.stub);
    match call.interface {
        srvsvc::INTERFACE => srvsvc::serve(caller, call.opnum, parameters),
        wkssvc::INTERFACE => wkssvc::serve(caller, call.opnum, parameters),
        lsarpc::INTERFACE => lsarpc::serve(caller, handles, call.opnum, parameters),
        samr::INTERFACE => samr::serve(caller, handles, call.opnum, parameters),
        _ => Err(FaultStatus::UNKNOWN_INTERFACE),
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
            Ok(NtStatus::SUCCESS)
        }
        Command::READ => {
            let request = read::Request::parse(body)?;
            let pipe = pipe(ctx, request.file_id)?;
            let most = (request.length as usize).min(ctx.ex.max_message());
            ctx.check_charge(most)?;
            let (data, status) = pipe.read(most)?;
            read::Response { data: &data, remaining: 0 }.encode(out);
            Ok(status)
        }
        Command::WRITE => {
            let request = write_msg::Request::parse(body)?;
            let pipe = pipe(ctx, request.file_id)?;
            ctx.check_charge(request.data.len())?;
            pipe.write(&ctx.ex.server, ctx.session()?, request.data)?;
            write_msg::Response { count: request.length }.encode(out);
            Ok(NtStatus::SUCCESS)
        }
        Command::FLUSH => {
            let request = flush::Request::parse(body)?;
            pipe(ctx, request.file_id)?;
            Empty.encode(out);
            Ok(NtStatus::SUCCESS)
        }
        Command::IOCTL => control(ctx, body, out),
        Command::QUERY_INFO => query(ctx, body, out),
        Command::SET_INFO => {
            let request = set_info::Request::parse(body)?;
            pipe(ctx, request.file_id)?;
            if request.info_type != query_info::InfoType::FILE || request.class != InfoClass::PIPE {
                return Err(NtStatus::NOT_SUPPORTED.into());
            }
            // Read mode and completion mode: messages, and nothing ever waits.
            if request.input.len() < 8 {
                return Err(NtStatus::INFO_LENGTH_MISMATCH.into());
            }
            out.put_u16(2);
            Ok(NtStatus::SUCCESS)
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
    let number = ctx.ex.server.new_open_id();
    let id = FileId { persistent: number, volatile: number };
    let held = ctx.budget()?.take(0).ok_or(NtStatus::INSUFFICIENT_RESOURCES)?;
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
    Ok(NtStatus::SUCCESS)
}

/// FSCTL_PIPE_TRANSCEIVE, _PEEK and _WAIT (MS-SMB2 3.3.5.15); what is not about pipes
/// is answered as on any tree.
fn control(ctx: &mut Ctx<'_>, body: &[u8], out: &mut Vec<u8>) -> Handled {
    let request = ioctl::Request::parse(body)?;
    let (code, file_id) = (request.code, request.file_id);
    let most = request.max_output as usize;
    if !matches!(code, FsctlCode::PIPE_TRANSCEIVE | FsctlCode::PIPE_PEEK | FsctlCode::PIPE_WAIT) {
        return ioctl_command::handle(ctx, body, out);
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
            if pipe.state().association.available().0 > 0 {
                // A result must be read before the next question is put in one step.
                return Err(NtStatus::PIPE_BUSY.into());
            }
            pipe.write(&ctx.ex.server, ctx.session()?, request.input)?;
            let (output, status) = pipe.read(most)?;
            ioctl::Response { code, file_id, output: &output }.encode(out);
            Ok(status)
        }
        FsctlCode::PIPE_PEEK => {
            let pipe = pipe(ctx, file_id)?;
            let state = pipe.state();
            let (all, first) = state.association.available();
            const CONNECTED: u32 = 3;
            const CLOSING: u32 = 4;
            let mut output = Vec::new();
            output.put_u32(if state.broken { CLOSING } else { CONNECTED });
            output.put_u32(len32(all));
            output.put_u32(u32::from(all > 0));
            output.put_u32(len32(first));
            if most < output.len() {
                return Err(NtStatus::INFO_LENGTH_MISMATCH.into());
            }
            ioctl::Response { code, file_id, output: &output }.encode(out);
            Ok(NtStatus::SUCCESS)
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
            Ok(NtStatus::SUCCESS)
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
        // MS-FSCC 2.4.37: messages in read mode, operations that wait in completion mode.
        InfoClass::PIPE => {
            info.put_u32(1);
            info.put_u32(0);
        }
        // MS-FSCC 2.4.38.
        InfoClass::PIPE_LOCAL => {
            const MESSAGE_TYPE: u32 = 1;
            const DUPLEX: u32 = 2;
            const UNLIMITED: u32 = u32::MAX;
            const CONNECTED: u32 = 3;
            const CLIENT_END: u32 = 0;
            let (available, _) = pipe.state().association.available();
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
    Ok(NtStatus::SUCCESS)
}

#[cfg(test)]
mod tests;

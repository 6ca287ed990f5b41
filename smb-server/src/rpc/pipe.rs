//! The named pipes of IPC$: a client's end of remote procedures (MS-RPCE 2.1.1.2).
//!
//! ```text
//!  CREATE "srvsvc" ─► Pipe { PipeEnd }      WRITE, READ or both at once (PIPE_TRANSCEIVE)
//!                                │ calls
//!                                ▼
//!              srvsvc   wkssvc   lsarpc   samr   (one module each)
//! ```
//!
//! A call is answered while it is written; a read waits for what is written after it. What a client leaves unread is
//! bounded, and so are the pipes of a session and the handles of a pipe.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use dce_rpc::{Call, FaultStatus, PipeEnd, SyntaxId, ndr};
use smb_protocol::{FileId, NtStatus, name};
use tokio::sync::Notify;
use volume::{budget::Held, work::aside};

use super::{
    accounts::Accounts,
    call::{Caller, Served},
    handles::Handles,
    logon::Door,
    lsarpc, samr, srvsvc, wkssvc,
};
use crate::{Server, session::Session};

/// Pipes of one session at a time.
pub const PIPES_PER_SESSION: usize = 2048;
/// Bytes of its user's budget that a pipe takes beside what is in it.
pub const PIPE_BYTES: usize = 1024;
/// The interface behind each pipe.
const SERVICES: [(&str, &[SyntaxId]); 5] = [
    ("SRVSVC", &[srvsvc::INTERFACE]),
    ("WKSSVC", &[wkssvc::INTERFACE]),
    ("LSARPC", &[lsarpc::INTERFACE, samr::INTERFACE]),
    ("LSASS", &[lsarpc::INTERFACE, samr::INTERFACE]),
    ("SAMR", &[samr::INTERFACE, lsarpc::INTERFACE]),
];

/// An open pipe with its association.
#[derive(Debug)]
pub struct Pipe {
    /// How the client names it.
    pub id: FileId,
    state: Mutex<State>,
    /// Reads wait where there is nothing to be read.
    blocks: AtomicBool,
    /// Wakes them when there may be something, and when the pipe is closed.
    changed: Arc<Notify>,
}

impl Drop for Pipe {
    fn drop(&mut self) {
        self.changed.notify_waiters();
    }
}

#[derive(Debug)]
struct State {
    association: PipeEnd,
    /// What of the user's budget it takes.
    held: Held,
    handles: Handles,
    broken: bool,
}

impl Pipe {
    /// The pipe of a name, if there is one.
    pub fn open(text: &str, id: FileId, held: Held) -> Option<Self> {
        let (name, interfaces) = service(text)?;
        let address = format!("\\PIPE\\{}", name.to_ascii_lowercase());
        let association = PipeEnd::new(interfaces, address);
        let state = State { association, held, handles: Handles::default(), broken: false };
        let (blocks, changed) = (AtomicBool::new(true), Arc::default());
        Some(Self { id, state: Mutex::new(state), blocks, changed })
    }

    /// Whether reads wait for something to be read.
    pub fn blocks(&self) -> bool {
        self.blocks.load(Ordering::Relaxed)
    }

    /// Says whether they do.
    pub fn set_blocks(&self, blocks: bool) {
        self.blocks.store(blocks, Ordering::Relaxed);
    }

    /// Wakes who waits for something to be read.
    pub fn changed(&self) -> Arc<Notify> {
        self.changed.clone()
    }

    /// Bytes that can be read, of all messages and of the next.
    pub fn available(&self) -> (usize, usize) {
        self.state().association.available()
    }

    /// Whether it was given up: its client must open another.
    pub fn is_broken(&self) -> bool {
        self.state().broken
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what a client writes; calls that are whole are carried out.
    pub fn write(&self, server: &Server, session: &Session, data: &[u8]) -> Result<(), NtStatus> {
        let caller = Caller { server, session, accounts: Accounts::of(server) };
        let mut state = self.state();
        let State { association, held, handles, broken } = &mut *state;
        if *broken {
            return Err(NtStatus::PIPE_DISCONNECTED);
        }
        let mut door = Door { names: &server.ntlm, current: server.current(), session };
        let mut serve = |call: &Call| serve(&caller, handles, call);
        let result = aside(|| association.write_from(data, &mut door, &mut serve));
        self.changed.notify_waiters();
        if let Err(error) = result {
            tracing::debug!(%error, "a pipe is given up");
            *broken = true;
            return Err(NtStatus::PIPE_DISCONNECTED);
        }
        if !held.resize(PIPE_BYTES + association.held()) {
            tracing::debug!("a pipe is given up: its user has too much held");
            *broken = true;
            association.clear();
            return Err(NtStatus::INSUFFICIENT_RESOURCES);
        }
        Ok(())
    }

    /// Takes up to `most` bytes of what stands to be read.
    pub fn read(&self, most: usize) -> Result<(Vec<u8>, NtStatus), NtStatus> {
        let mut state = self.state();
        let read = state.association.read(most);
        let State { association, held, .. } = &mut *state;
        held.resize(PIPE_BYTES + association.held());
        match read {
            Some((data, 0)) => Ok((data, NtStatus::SUCCESS)),
            Some((data, _)) => Ok((data, NtStatus::BUFFER_OVERFLOW)),
            None if state.broken => Err(NtStatus::PIPE_DISCONNECTED),
            None => Err(NtStatus::PIPE_EMPTY),
        }
    }
}

/// The service of a pipe name.
pub fn service(text: &str) -> Option<(&'static str, &'static [SyntaxId])> {
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

#[cfg(test)]
mod tests;

//! One module per command. Each takes the body of a request, appends the body of its answer and
//! returns the status, or says why it failed, or returns a future for what must wait.

pub mod close;
pub mod create;
pub mod ioctl;
pub mod lock;
pub mod negotiate;
pub mod notify;
pub mod oplock_break;
mod outcome;
mod pipe;
pub mod query_directory;
pub mod query_info;
pub mod read;
mod remote;
pub mod session_setup;
pub mod set_info;
pub mod smb1;
pub mod tree_connect;
pub mod write;

use std::sync::{Arc, atomic::Ordering};

use smb_protocol::{
    Command, Dialect, FileId, Header, NtStatus,
    crypto::SigningKey,
    header::{HEADER_LEN, HeaderFlags},
    msg::{negotiate::Capabilities, simple::Empty},
};
use volume::{
    budget::Budget,
    open::{InProgress, Open, creates::Creating, in_the_way::Asked},
    users::ClientId,
};

pub use self::outcome::{Deferred, Failure, Handled, Outcome};
use crate::{
    exchange::Exchange,
    meters::timer::PathTimer,
    session::{Session, Tree},
};

/// A request with what is known of it.
pub struct Ctx<'a> {
    /// The connection.
    pub ex: &'a mut Exchange,
    /// The request's header; what a handler changes in it stands in the answer.
    pub header: Header,
    /// Its session, checked.
    pub session: Option<Arc<Session>>,
    /// What a SESSION_SETUP is to be bound to.
    pub binding: Option<session_setup::BindingRequest>,
    /// Its tree, checked.
    pub tree: Option<Arc<Tree>>,
    /// It came encrypted.
    pub sealed: bool,
    /// The file of the request before in a related compound, or why there is none.
    pub related_file: Option<Result<FileId, NtStatus>>,
    /// The CREATE was repeated, or may be, while it waits.
    pub creating: Option<Creating>,
    /// Whom it has asked to get out of its way, in the attempts before as well.
    pub asked: Asked,
    /// Its open must know that it is in progress.
    pub in_progress: Option<InProgress>,
    /// The file that the next related request means.
    pub file: Option<FileId>,
    /// Signs the answer whether or not the request was signed.
    pub signer: Option<Arc<SigningKey>>,
    /// Bytes of a WRITE's data that are in the file already and not in the message any more.
    pub placed: usize,
    /// It is timed along its way.
    pub timed: bool,
    /// Who times it, once its open is known.
    pub path: PathTimer,
    /// `Request.CompressReply` (MS-SMB2 3.3.1.13): from how many bytes on the answer is compressed.
    pub compress_reply: Option<usize>,
}

impl<'a> Ctx<'a> {
    /// A request that stands alone and came as it is.
    pub fn new(ex: &'a mut Exchange, header: Header, session: Option<Arc<Session>>) -> Self {
        Self {
            ex,
            header,
            session,
            binding: None,
            tree: None,
            sealed: false,
            related_file: None,
            creating: None,
            asked: Asked::default(),
            in_progress: None,
            file: None,
            signer: None,
            placed: 0,
            timed: false,
            path: PathTimer::default(),
            compress_reply: None,
        }
    }

    /// The session; commands that need one are dispatched with one.
    pub fn session(&self) -> Result<&Arc<Session>, NtStatus> {
        self.session.as_ref().ok_or(NtStatus::USER_SESSION_DELETED)
    }

    /// What the client's user may still have held.
    pub fn budget(&self) -> Result<Arc<Budget>, NtStatus> {
        Ok(self.session()?.user.bytes.clone())
    }

    /// The tree; commands that need one are dispatched with one.
    pub fn tree(&self) -> Result<&Arc<Tree>, NtStatus> {
        self.tree.as_ref().ok_or(NtStatus::NETWORK_NAME_DELETED)
    }

    /// Which file a request means: in a related one that of the request before, whatever it names
    /// itself (MS-SMB2 3.3.5.2.7.2).
    pub fn resolve(&mut self, id: FileId) -> Result<FileId, NtStatus> {
        let id = match self.related_file {
            Some(file) => file?,
            None if self.header.flags.has(HeaderFlags::RELATED) => {
                return Err(NtStatus::INVALID_HANDLE);
            }
            None => id,
        };
        self.file = Some(id);
        Ok(id)
    }

    /// The open that a request means.
    pub fn open(&mut self, id: FileId) -> Result<Arc<Open>, NtStatus> {
        let id = self.resolve(id)?;
        let open = self.session()?.open(self.tree()?.id, id)?;
        if open.replayable.load(Ordering::Relaxed) {
            open.replayable.store(false, Ordering::Release);
        }
        if self.dialect().is_smb3() {
            let replay = self.header.flags.has(HeaderFlags::REPLAY);
            let number = self.header.channel_sequence();
            self.in_progress = InProgress::begin(&open, number, replay);
            let changes =
                matches!(self.header.command, Command::WRITE | Command::SET_INFO | Command::IOCTL);
            if self.in_progress.is_none() && changes {
                return Err(NtStatus::FILE_NOT_AVAILABLE);
            }
        }
        if self.timed {
            self.path = self.timer(&open);
        }
        Ok(open)
    }

    /// Times what a request about an open waits for.
    pub fn timer(&self, open: &Open) -> PathTimer {
        let share = self.tree.as_ref().and_then(|tree| tree.meter.clone());
        PathTimer::new(share, self.ex.server.meters.files.of(open))
    }

    /// Whether this request may use what a tree of its session leads to.
    ///
    /// # Errors
    /// ACCESS_DENIED for one that is not encrypted where its share demands that, and for one that
    /// comes from where the share is not to be used.
    pub fn may_use(&self, tree: &Tree) -> Result<(), NtStatus> {
        // The tree may have been made on another connection of the session.
        let from = self.ex.peer.ip();
        let elsewhere = !tree.share.admits(from);
        if tree.share.must_encrypt() && !self.sealed || elsewhere {
            return Err(NtStatus::ACCESS_DENIED);
        }
        Ok(())
    }

    /// Another open of the session that the request names, on whichever tree it was made. What
    /// that tree demands of requests is demanded of this one.
    ///
    /// # Errors
    /// `missing` if there is none, and those of [`Ctx::may_use`].
    pub fn other_open(&self, id: FileId, missing: NtStatus) -> Result<Arc<Open>, NtStatus> {
        let session = self.session()?;
        let (tree, open) = session.any_open(id).ok_or(missing)?;
        self.may_use(&*session.tree(tree).ok_or(missing)?)?;
        Ok(open)
    }

    /// The dialect that is spoken.
    pub fn dialect(&self) -> Dialect {
        self.ex.negotiated.as_ref().map_or(Dialect::SMB_2_1, |n| n.dialect)
    }

    /// Whether a READ or WRITE may ask for no buffering (MS-SMB2 2.2.19, 2.2.21).
    pub fn may_ask_unbuffered(&self) -> bool {
        [Dialect::SMB_3_0_2, Dialect::SMB_3_1_1].contains(&self.dialect())
    }

    /// Whether the client may have opens that outlive the server.
    pub fn keeps_persistent(&self) -> bool {
        let negotiated = self.ex.negotiated.as_ref();
        negotiated.is_some_and(|n| n.capabilities.has(Capabilities::PERSISTENT_HANDLES))
    }

    /// The client, as the session's user has it.
    pub fn client(&self) -> Result<ClientId, NtStatus> {
        Ok(ClientId { guid: self.client_guid(), user: self.session()?.user.id })
    }

    /// The identity that the client gave at NEGOTIATE.
    pub fn client_guid(&self) -> [u8; 16] {
        self.ex.negotiated.as_ref().map_or([0; 16], |n| n.client_guid)
    }

    /// Checks that a request paid for its payload (MS-SMB2 3.3.5.2.5).
    pub fn check_charge(&self, payload: usize) -> Result<(), NtStatus> {
        let large = self.ex.negotiated.as_ref().is_some_and(|n| n.large_mtu());
        let paid = usize::from(self.header.credit_charge.max(1));
        if large && payload.div_ceil(65_536).max(1) > paid {
            return Err(NtStatus::INVALID_PARAMETER);
        }
        Ok(())
    }
}

/// Carries out one request whose header and protection were checked. `message` is the whole
/// message, header included.
pub fn dispatch(ctx: &mut Ctx<'_>, message: &[u8], out: &mut Vec<u8>) -> Handled {
    let body = &message[HEADER_LEN..];
    let command = ctx.header.command;
    match (&ctx.ex.negotiated, command) {
        (None, Command::NEGOTIATE) => return negotiate::handle(ctx, message, out),
        (None, _) => return Err(Failure::Disconnect("a request before NEGOTIATE")),
        (Some(_), Command::NEGOTIATE) => return Err(Failure::Disconnect("a second NEGOTIATE")),
        _ => {}
    }
    match command {
        Command::SESSION_SETUP => return session_setup::handle(ctx, message, out),
        Command::ECHO => {
            // MS-SMB2 3.3.5.17. Who has logged off may ask whether the server is still there.
            if ctx.ex.sessions.is_empty() {
                return Err(Failure::Disconnect("an ECHO of who has not logged in"));
            }
            Empty::parse(body)?;
            Empty.encode(out);
            return Ok(Outcome::SUCCESS);
        }
        _ => {}
    }
    let session = ctx.session()?.clone();
    if session.is_anonymous() && matches!(command, Command::TREE_CONNECT | Command::CREATE) {
        return Err(NtStatus::ACCESS_DENIED.into());
    }
    match command {
        // MS-SMB2 3.3.5.6.
        Command::LOGOFF => {
            Empty::parse(body)?;
            // Its channels stay until their connections need the room: refusals are signed.
            ctx.ex.server.sessions.end(session.id);
            Empty.encode(out);
            return Ok(Outcome::SUCCESS);
        }
        Command::TREE_CONNECT => {
            // MS-SMB2 3.3.5.7: it proves that nobody changed the logon of 3.1.1 on its way.
            let proven = ctx.sealed || ctx.header.flags.has(HeaderFlags::SIGNED);
            if ctx.dialect() == Dialect::SMB_3_1_1 && !proven {
                return Err(Failure::Disconnect("a TREE_CONNECT that is not signed"));
            }
            return tree_connect::handle(ctx, body, out);
        }
        _ => {}
    }
    // MS-SMB2 3.3.5.2.11.
    let Some(tree) = session.tree(ctx.header.tree_id()) else {
        return Err(NtStatus::NETWORK_NAME_DELETED.into());
    };
    ctx.may_use(&tree)?;
    ctx.tree = Some(tree.clone());
    if tree.volume.is_none() && command != Command::TREE_DISCONNECT {
        return pipe::handle(ctx, body, out);
    }
    match command {
        Command::READ => read::handle(ctx, body, out),
        Command::WRITE => write::handle(ctx, body, out),
        Command::FLUSH => write::flush(ctx, body),
        Command::CREATE => create::handle(ctx, body, out),
        Command::CLOSE => close::handle(ctx, body, out),
        Command::QUERY_INFO => query_info::handle(ctx, body, out),
        Command::SET_INFO => set_info::handle(ctx, body, out),
        Command::QUERY_DIRECTORY => query_directory::handle(ctx, body, out),
        Command::CHANGE_NOTIFY => notify::handle(ctx, body),
        Command::IOCTL => ioctl::handle(ctx, body, out),
        Command::LOCK => lock::handle(ctx, body, out),
        // MS-SMB2 3.3.5.8.
        Command::TREE_DISCONNECT => {
            Empty::parse(body)?;
            session.remove_tree(tree.id);
            Empty.encode(out);
            Ok(Outcome::SUCCESS)
        }
        Command::OPLOCK_BREAK => oplock_break::handle(ctx, body, out),
        _ => Err(NtStatus::INVALID_PARAMETER.into()),
    }
}

/// Whether an answer goes into a pre-authentication hash (MS-SMB2 3.3.5.4, 3.3.5.5.3).
pub fn is_hashed(response: &Header) -> bool {
    match response.command {
        Command::NEGOTIATE => true,
        Command::SESSION_SETUP => response.status == NtStatus::MORE_PROCESSING_REQUIRED,
        _ => false,
    }
}

/// What an answer changes once its bytes stand: the pre-authentication hashes.
pub fn after_answer(exchange: &mut Exchange, response: &Header, message: &[u8]) {
    match response.command {
        Command::NEGOTIATE => {
            if let Some(negotiated) = &mut exchange.negotiated {
                negotiated.preauth.update(message);
            }
        }
        Command::SESSION_SETUP if response.status == NtStatus::MORE_PROCESSING_REQUIRED => {
            if let Some(authentication) = exchange.authentications.get_mut(&response.session_id) {
                authentication.preauth.update(message);
            }
        }
        _ => {}
    }
}

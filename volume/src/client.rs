//! What a volume knows of clients: whom to tell that something they cache is to be given up, and who
//! is still there. The server that serves them has the rest.

use std::{fmt::Debug, sync::Arc};

use smb_protocol::{
    FileId, SessionId,
    msg::oplock::{LeaseBreak, OplockBreak},
};

use crate::users::ClientId;

/// Whether it still matters that a client hears of a break: it is repeated on another connection
/// only then.
pub type Awaited = Box<dyn Fn() -> bool + Send>;

/// The session that has an open.
pub trait Client: Debug + Send + Sync {
    /// `Session.SessionId`.
    fn id(&self) -> SessionId;

    /// Whether it has ended.
    fn ended(&self) -> bool;

    /// Sends an oplock break (MS-SMB2 3.3.4.6); whether a connection took it.
    fn break_oplock(self: Arc<Self>, message: OplockBreak, awaited: Awaited) -> bool;

    /// Closes one of its opens, if it has it.
    fn close_open(&self, id: FileId);
}

/// All clients that are connected.
pub trait Clients: Debug + Send + Sync {
    /// Sends a lease break on a connection of a client on which its user has logged in (MS-SMB2
    /// 3.3.4.7); whether a connection took it.
    fn break_lease(&self, client: ClientId, message: LeaseBreak, awaited: Awaited) -> bool;
}

/// A volume's clients when nobody is connected.
#[derive(Debug, Default)]
pub struct Nobody;

impl Clients for Nobody {
    fn break_lease(&self, _: ClientId, _: LeaseBreak, _: Awaited) -> bool {
        false
    }
}

//! One remote procedure call: who makes it, and what comes of it.

use dce_rpc::FaultStatus;
use smb_protocol::WireError;

use super::accounts::Accounts;
use crate::{Server, session::Session};

/// Who calls, and what it may see.
pub struct Caller<'a> {
    /// Whom.
    pub server: &'a Server,
    /// As whom.
    pub session: &'a Session,
    /// All users.
    pub accounts: Accounts,
}

impl Caller<'_> {
    /// Whether it may change the server and see all of it.
    pub fn administers(&self) -> bool {
        self.accounts.administers(&self.session.user.name)
    }
}

/// What a service does with a call.
pub type Served = Result<Vec<u8>, FaultStatus>;

/// The fault of parameters that cannot be parsed.
pub fn bad_stub(error: WireError) -> FaultStatus {
    tracing::debug!(%error, "malformed RPC parameters");
    FaultStatus::BAD_STUB
}

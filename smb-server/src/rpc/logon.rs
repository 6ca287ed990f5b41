//! A client of a pipe that proves once more, within RPC, who it is, as some do to have their calls
//! signed (MS-RPCE 3.3.1.5.2). It must be the user of the session, so nobody's password can be tried here.

use std::sync::Arc;

use dce_rpc::{
    pipe,
    security::{Acceptance, Accounts, AuthType, Host, Logon},
};
use smb_protocol::{
    ntlm::{FileTime, NtHash, users},
    spnego::{self, Completed},
};
use volume::clock;

use crate::{config::Config, server::Current, session::Session};

/// What a pipe asks of its server.
pub struct Door<'a> {
    /// The server's names, for NTLM.
    pub names: &'a Arc<smb_protocol::ntlm::ServerInfo>,
    /// How it is configured.
    pub current: Arc<Current>,
    /// Whose pipe it is.
    pub session: &'a Session,
}

/// The user of a session, who alone is let in.
struct Own {
    current: Arc<Current>,
    user: String,
}

impl Host for Door<'_> {
    fn group(&mut self, wanted: u32) -> u32 {
        pipe::group(wanted)
    }

    fn logon(&mut self, kind: AuthType) -> Option<Box<dyn Logon>> {
        let own = Own { current: self.current.clone(), user: self.session.user.name.clone() };
        let kerberos = self.current.kerberos.clone();
        Some(Box::new(Acceptance::begin(kind, self.names.clone(), kerberos, own)?))
    }
}

impl Own {
    fn config(&self) -> &Config {
        &self.current.config
    }
}

impl Accounts for Own {
    fn now(&self) -> FileTime {
        clock::now()
    }

    fn hash(&mut self, user: &str, _: &str) -> Option<NtHash> {
        let user = users::fold(user);
        self.config().users.get(&user).filter(|_| user == self.user).cloned()
    }

    fn user(&mut self, done: &Completed) -> Option<String> {
        let user = match &done.ticket {
            None => users::fold(&done.identity.user),
            Some(ticket) => self.config().kerberos.as_ref()?.user_of(&ticket.client)?,
        };
        (user == self.user).then_some(user)
    }

    fn failed(&mut self, why: &spnego::Error) {
        tracing::debug!(error = %why, user = self.user, "a logon within a pipe is refused");
    }
}

//! A client that proves who it is by SPNEGO, with NTLM in it.

use smb_protocol::{
    gss::{self, Side},
    ntlm::{Credentials, FileTime},
    spnego::Initiator,
};

use super::{Initiate, Proof};
use crate::security::AuthType;

/// The proof of a user with a password.
#[derive(Debug)]
pub struct Spnego {
    initiator: Initiator,
    now: FileTime,
    answered: bool,
}

impl Spnego {
    /// Of a user at `workstation` (may be empty), for a service such as `cifs/server`. `now` is used
    /// when the server tells no time.
    pub fn new(credentials: Credentials, workstation: &str, target: &str, now: FileTime) -> Self {
        Self { initiator: Initiator::new(credentials, workstation, target), now, answered: false }
    }
}

impl Initiate for Spnego {
    fn kind(&self) -> AuthType {
        AuthType::NEGOTIATE
    }

    fn first(&mut self) -> Option<Vec<u8>> {
        self.initiator.first(&[]).ok()
    }

    fn next(&mut self, token: &[u8]) -> Option<Proof> {
        if !std::mem::replace(&mut self.answered, true) {
            return self.initiator.second(token, self.now).ok().map(Proof::More);
        }
        self.initiator.last(token).ok()?;
        Some(Proof::Done)
    }

    fn context(&self) -> Option<gss::Context> {
        Some(self.initiator.protection()?.begin(Side::Initiator))
    }
}

//! Authentication by NTLM, Kerberos and SPNEGO, as `smb-protocol` has them.

use std::sync::Arc;

use smb_protocol::{
    gss::Side,
    kerberos,
    ntlm::{FileTime, NtHash, ServerInfo},
    spnego::{self, Acceptor, Completed, Step, token::InitToken},
};

use super::{AuthType, Leg, Logon, Refused};

/// Who may log on, and what happens to those who fail.
pub trait Accounts: Send {
    /// The time, which clients are told and tickets are held against.
    fn now(&self) -> FileTime;
    /// The hash of a user's password; names are compared without regard to case.
    fn hash(&mut self, user: &str, domain: &str) -> Option<NtHash>;
    /// The user that was authenticated; `None` if it is none of this server's.
    fn user(&mut self, done: &Completed) -> Option<String>;
    /// A logon has failed.
    fn failed(&mut self, why: &spnego::Error);
}

/// One authentication at the server.
pub struct Acceptance<A> {
    kind: AuthType,
    acceptor: Acceptor,
    accounts: A,
    begun: bool,
}

impl<A: Accounts> Acceptance<A> {
    /// Begins an authentication of a kind; `None` if it is not spoken, as Kerberos is not without keys.
    pub fn begin(
        kind: AuthType,
        names: Arc<ServerInfo>,
        kerberos: Option<Arc<kerberos::Service>>,
        accounts: A,
    ) -> Option<Self> {
        let spoken = match kind {
            AuthType::NEGOTIATE | AuthType::NTLM => true,
            AuthType::KERBEROS => kerberos.is_some(),
            _ => false,
        };
        let acceptor = Acceptor::new(names, kerberos).with_three_parts();
        spoken.then_some(Self { kind, acceptor, accounts, begun: false })
    }

    /// Whether a first token is of the kind that was announced.
    fn is_of_kind(&self, token: &[u8]) -> bool {
        let ntlm = token.starts_with(b"NTLMSSP\0");
        match self.kind {
            AuthType::NEGOTIATE => InitToken::parse(token).is_ok(),
            AuthType::NTLM => ntlm,
            _ => !ntlm && InitToken::parse(token).is_err(),
        }
    }
}

impl<A: Accounts> Logon for Acceptance<A> {
    fn leg(&mut self, token: &[u8]) -> Result<Leg, Refused> {
        if !std::mem::replace(&mut self.begun, true) && !self.is_of_kind(token) {
            self.accounts.failed(&spnego::Error::NoMechanism);
            return Err(Refused);
        }
        let (now, accounts) = (self.accounts.now(), &mut self.accounts);
        let lookup = |user: &str, domain: &str| accounts.hash(user, domain);
        match self.acceptor.step(token, now, lookup) {
            Ok(Step::Continue(token)) => Ok(Leg::More(token)),
            Ok(Step::Done(done)) => {
                let user = self.accounts.user(&done).ok_or(Refused)?;
                let context = done.protection.as_ref().map(|it| it.begin(Side::Acceptor));
                Ok(Leg::Done { token: done.token, user, context })
            }
            Err(error) => {
                self.accounts.failed(&error);
                Err(Refused)
            }
        }
    }
}

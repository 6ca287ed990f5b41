//! Who may call: the file server's users, by its rules for those who fail.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use dce_rpc::security::Accounts;
use smb_protocol::{
    ntlm::{FileTime, NtHash, users},
    spnego::{self, Completed},
};
use smb_server::{Server, logons::Network};
use tokio::time::Instant;
use volume::{clock, quoted::Quoted};

/// One logon from an address.
pub(super) struct Guest {
    server: Arc<Server>,
    from: IpAddr,
    tried: Option<String>,
    /// How long whoever failed is to wait.
    wait: Arc<Mutex<Duration>>,
}

impl Guest {
    pub(super) fn new(server: Arc<Server>, from: IpAddr, wait: Arc<Mutex<Duration>>) -> Self {
        Self { server, from, tried: None, wait }
    }

    fn step(&self) -> Duration {
        Duration::from_millis(self.server.current().config.limits.failed_logon_ms)
    }
}

impl Accounts for Guest {
    fn now(&self) -> FileTime {
        clock::now()
    }

    fn hash(&mut self, user: &str, _: &str) -> Option<NtHash> {
        let user = users::fold(user);
        let (network, step) = (Network::from(self.from), self.step());
        let looked_at = self.server.logons.may_try(network, &user, step, Instant::now());
        let hash = self.server.current().config.users.get(&user).filter(|_| looked_at).cloned();
        self.tried = Some(user);
        hash
    }

    fn user(&mut self, done: &Completed) -> Option<String> {
        let config = &self.server.current().config;
        let user = match &done.ticket {
            None => users::fold(&done.identity.user),
            Some(ticket) => {
                let user = config.kerberos.as_ref()?.user_of(&ticket.client)?;
                config.user_names.contains_key(&user).then_some(user)?
            }
        };
        self.server.logons.succeeded(Network::from(self.from), &user, Instant::now());
        Some(user)
    }

    fn failed(&mut self, why: &spnego::Error) {
        let user = self.tried.as_deref();
        if self.server.strangers.may_log() {
            let (peer, user) = (self.from, Quoted(user.unwrap_or_default()));
            tracing::info!(%peer, error = %Quoted(why), %user, "a witness client is not let in");
        }
        let (network, step) = (Network::from(self.from), self.step());
        let wait = self.server.logons.failed(network, user, step, Instant::now());
        *self.wait.lock().unwrap_or_else(PoisonError::into_inner) = wait;
    }
}
